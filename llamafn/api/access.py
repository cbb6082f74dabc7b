"""Who may ask: whoever knows one of API_KEYS, or everybody if there are none."""

from __future__ import annotations

from llamafn.errors import InvalidKey
from llamafn.settings import Settings
from llamafn.web import Request


def check(request: Request, settings: Settings) -> None:
    """Let a request with a key pass, as `Authorization: Bearer` or, where that header is taken, as `x-api-key`.

    Raises:
        InvalidKey: no key, or none of ours.
    """
    if not settings.api_keys or request.is_authorized:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    sent = request.headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
    if not sent:
        raise InvalidKey("This needs a key.", hint="Send Authorization: Bearer <key>, or x-api-key: <key>.")
    import hmac  # only here: it pulls in hashlib

    # All of them, whichever fits, and each in constant time: how long it takes says nothing.
    fits = [hmac.compare_digest(sent.encode(), key.encode()) for key in settings.api_keys]
    if not any(fits):
        raise InvalidKey("The key is none of those that are known here.", hint="The server's API_KEYS lists them.")
