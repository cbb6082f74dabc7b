"""The proxy that HTTPS_PROXY, ALL_PROXY and NO_PROXY name for a host, by the standard library's reading of them."""

from __future__ import annotations

import os
from base64 import b64encode
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from llamafn.errors import FetchRefused

_NAMES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class Proxy(NamedTuple):
    """Takes `CONNECT`, as nearly all do."""

    host: str
    port: int
    headers: dict[str, str]  # of the request for a tunnel: who we are, if the address says so


def proxy_for(host: str, port: int) -> Proxy | None:
    """None if `host` is asked directly.

    Raises:
        FetchRefused: the variable names no proxy that we can use.
    """
    if not any(os.environ.get(name) for name in _NAMES):
        return None
    from urllib.request import getproxies_environment, proxy_bypass  # 20 ms, for whoever has a proxy

    proxies = getproxies_environment()
    address = proxies.get("https") or proxies.get("all")
    if not address or proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        named = parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        named = False
    # The address may hold a password, so no message shows it.
    if parts.scheme != "http" or not named:
        raise FetchRefused(
            "HTTPS_PROXY (or ALL_PROXY) names no proxy that can be used: it must be http://host:port or "
            "http://user:password@host:port.",
            hint=f"Correct it, or put {host} into NO_PROXY.",
        )
    headers = {}
    if parts.username is not None:
        account = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {b64encode(account.encode()).decode()}"
    return Proxy(parts.hostname or "", parts.port or 80, headers)
