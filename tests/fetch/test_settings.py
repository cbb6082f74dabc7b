"""The settings that fetching reads; above all that secrets do not show themselves."""

from __future__ import annotations

import pytest

from llamafn.errors import SettingsError
from llamafn.settings import VARIABLES, Settings, file_name

SECRETS = [variable.name for variable in VARIABLES if variable.secret]


def test_secrets_do_not_show_themselves() -> None:
    settings = Settings.from_env(dict.fromkeys(SECRETS, "hidden"))

    assert "hidden" not in repr(settings)
    assert settings.hf_token == "hidden"
    assert SECRETS == ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "API_KEYS"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_no_header_can_hold_is_not_printed(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({name: "hid\x07den"})

    assert f"{name}=<secret>: expected" in caught.value.message
    assert "hid" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_SHA256", "0123"),
        ("MODEL_SHA256", "g" * 64),
        ("FETCH_CONNECTIONS", "0"),
        ("FETCH_STALL_SECONDS", "nan"),
        ("HF_ENDPOINT", "huggingface.co"),
        ("S3_ADDRESSING_STYLE", "host"),
    ],
)
def test_values_that_cannot_be_used_are_said(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{value}': expected"):
        Settings.from_env({name: value})


def test_digests_of_a_split_model() -> None:
    assert Settings.from_env({"MODEL_SHA256": f"{'A' * 64}, {'0' * 64}"}).model_sha256 == ("a" * 64, "0" * 64)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://o/r/sub/m.gguf", "m.gguf"),
        ("hf://o/r/m.gguf@v1", "m.gguf"),
        ("hf://o/r/m.gguf@refs/pr/1", "m.gguf"),
        ("https://h/a/m.gguf?sig=/x", "m.gguf"),
        ("s3://b/a@b/m.gguf", "m.gguf"),
    ],
)
def test_the_file_name_of_a_model(uri: str, name: str) -> None:
    assert file_name(uri) == name
