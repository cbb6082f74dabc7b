"""From a model's URI to a GGUF on disk."""

from __future__ import annotations

import os

from llamafn.errors import ModelUnavailable
from llamafn.settings import Settings


def local_path(settings: Settings) -> str:
    """Where the model's file is."""
    scheme, separator, rest = settings.model.partition("://")
    if not separator:
        return settings.model
    if scheme == "file":
        from urllib.parse import unquote

        return unquote(rest)
    if scheme == "package":
        return _in_package(*rest.split("/", 1))
    if os.path.isfile(settings.local_model_path):
        return settings.local_model_path
    raise ModelUnavailable(
        f"There is no model file at {settings.local_model_path!r}, and {scheme}:// cannot be fetched yet.",
        hint="Put the GGUF there, or set MODEL to a path.",
    )


def _in_package(module: str, file: str) -> str:
    import importlib.util

    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(
            f"There is no Python package {module!r} that could hold the model.", hint=f"Run: pip install {module}"
        )
    return os.path.join(spec.submodule_search_locations[0], file)
