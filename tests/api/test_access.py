"""API_KEYS: who may ask what."""

from __future__ import annotations

import pytest

from llamafn.errors import SettingsError
from llamafn.routes import ROUTES
from llamafn.settings import Settings
from tests.api.asking import SETTINGS, ask

KEYS = SETTINGS._replace(api_keys=Settings.from_env({"API_KEYS": "first-key, second-key"}).api_keys, playground=True)
OPEN = {"/", "/health", "/kaithhealth", "/kaithhealthcheck", "/kaithheathcheck"}


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_open_without_a_key(path: str) -> None:
    method = next(iter(ROUTES[path]))
    reply = ask(path, method=method, settings=KEYS)
    if path in OPEN:
        assert reply.status == 200
    else:
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert reply.json()["error"]["code"] == "invalid_api_key"
        assert reply.json()["error"]["message"] == "This needs a key."


def test_nor_does_it_say_what_there_is() -> None:
    assert ask("/nothing", settings=KEYS).status == 401
    assert ask("/chat", method="PUT", settings=KEYS).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer  second-key"},
        {"x-api-key": "second-key"},
        # Behind IAM, Authorization holds a signature.
        {"x-api-key": "first-key", "authorization": "AWS4-HMAC-SHA256 Credential=x"},
    ],
)
def test_each_key_opens(headers: dict[str, str]) -> None:
    assert ask("/v1/models", headers=headers, settings=KEYS).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-key, second-key"},
        {"authorization": "Basic first-key"},
        {"authorization": "Bearer"},
        {"authorization": "first-key"},
        {"x-api-key": "ñ"},
    ],
)
def test_nothing_else_does(headers: dict[str, str]) -> None:
    reply = ask("/v1/models", headers=headers, settings=KEYS)
    assert reply.status == 401
    assert "first-key" not in reply.body.decode()


def test_a_browser_may_ask_what_is_allowed_without_a_key() -> None:
    settings = KEYS._replace(cors_origins=("*",))
    assert ask("/chat", method="OPTIONS", headers={"origin": "https://a.example"}, settings=settings).status == 204


def test_without_keys_everybody_may_ask() -> None:
    assert ask("/v1/models").status == 200


@pytest.mark.parametrize("value", [",", "kéy", "two words"])
def test_a_bad_key_stops_the_start_and_is_not_shown(value: str) -> None:
    with pytest.raises(SettingsError, match="  API_KEYS=<secret>: expected keys of printable ASCII") as caught:
        Settings.from_env({"API_KEYS": value})
    assert value.strip(",") not in caught.value.message.replace("API_KEYS", "") or value == ","


def test_the_settings_do_not_show_them() -> None:
    assert "first-key" not in repr(KEYS)


def test_health_shows_no_secret_of_the_models_address() -> None:
    address = "https://user:secret@models.example/farm.gguf?X-Amz-Signature=secret#secret"
    found = ask("/health", settings=Settings.from_env({"MODEL": address}))
    assert found.json()["model"]["uri"] == "https://models.example/farm.gguf"
    assert b"secret" not in found.body
