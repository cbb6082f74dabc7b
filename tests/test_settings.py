from __future__ import annotations

from pathlib import Path

import pytest

from llamafn.errors import SettingsError
from llamafn.settings import DEFAULT_MODEL, VARIABLES, Settings, file_name


def test_the_defaults_are_the_contracts() -> None:
    settings = Settings.from_env({})
    assert settings.model == DEFAULT_MODEL
    assert settings.local_model_path == "/tmp/models/qwen2.5-0.5b-instruct-q4_k_m.gguf"
    assert (settings.n_ctx, settings.port, settings.host) == (1024, 8080, "127.0.0.1")
    assert (settings.request_timeout_seconds, settings.max_queue) == (45, 16)
    assert settings.n_threads >= 1


def test_every_field_has_its_variable() -> None:
    assert {variable.field for variable in VARIABLES} == set(Settings._fields)


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"N_CTX": " ", "MODEL": ""}) == Settings.from_env({})


def test_one_message_lists_every_bad_variable() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(
            {"N_CTX": "many", "PORT": "70000", "MODEL": "ftp://x/y", "PRELOAD": "maybe", "MAX_QUEUE": "3"}
        )
    assert caught.value.message.splitlines() == [
        "These environment variables cannot be used:",
        (
            "  MODEL='ftp://x/y': expected hf://owner/repo/file.gguf@revision, s3://bucket/key, https://…, "
            "package://module/file.gguf, file://… or a path"
        ),
        "  N_CTX='many': expected 64 to 1,048,576 tokens",
        "  PRELOAD='maybe': expected 1 or 0",
        "  PORT='70000': expected 0 to 65,535",
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1e9", "x"])
def test_numbers_have_a_range(value: str) -> None:
    with pytest.raises(SettingsError, match=r"REQUEST_TIMEOUT_SECONDS=.*: expected 0.1 to 3,600 seconds"):
        Settings.from_env({"REQUEST_TIMEOUT_SECONDS": value})


def test_the_margin_must_leave_time() -> None:
    with pytest.raises(SettingsError, match="DEADLINE_MARGIN_MS=500: expected less than the time of a request"):
        Settings.from_env({"REQUEST_TIMEOUT_SECONDS": "0.5"})


def test_the_least_of_both_time_limits_counts() -> None:
    limits = {"REQUEST_TIMEOUT_SECONDS": "45", "CLOUD_RUN_TIMEOUT_SECONDS": "30"}
    assert Settings.from_env(limits).request_timeout_seconds == 30
    assert Settings.from_env({**limits, "CLOUD_RUN_TIMEOUT_SECONDS": "300"}).request_timeout_seconds == 45
    assert Settings.from_env({**limits, "CLOUD_RUN_TIMEOUT_SECONDS": "0"}).request_timeout_seconds == 45


def test_a_text_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("Eres un agrónomo.\n", encoding="utf-8")
    assert Settings.from_env({"DEFAULT_SYSTEM": f"@{file}"}).default_system == "Eres un agrónomo.\n"
    assert Settings.from_env({"DEFAULT_SYSTEM": "Hola"}).default_system == "Hola"
    with pytest.raises(SettingsError, match="cannot read the file: No such file"):
        Settings.from_env({"DEFAULT_SYSTEM": f"@{tmp_path}/none"})


def test_origins_are_separated_by_commas() -> None:
    assert Settings.from_env({"CORS_ORIGINS": "https://a.example, https://b.example,"}).cors_origins == (
        "https://a.example",
        "https://b.example",
    )


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://owner/repo/model.gguf@v1.0", "model.gguf"),
        ("s3://bucket/a/b/model.gguf", "model.gguf"),
        ("https://host/model.gguf?token=a/b", "model.gguf"),
        ("package://module/model.gguf", "model.gguf"),
        ("/some/where/model.gguf", "model.gguf"),
        ("file:///some/where/model@2.gguf", "model@2.gguf"),
    ],
)
def test_file_name(uri: str, name: str) -> None:
    assert file_name(uri) == name


def test_a_snapshot_of_memory_wants_the_model_in_memory() -> None:
    assert Settings.from_env({}).model_in_memory is False
    snap_start = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
    assert Settings.from_env(snap_start).model_in_memory is True
    assert Settings.from_env({**snap_start, "MODEL_IN_MEMORY": "0"}).model_in_memory is False


def test_the_prefix_that_snapshots_are_shared_under() -> None:
    assert Settings.from_env({"SNAPSHOT_URI": "s3://bucket/a/b/"}).snapshot_uri == "s3://bucket/a/b"
    for wrong in ("s3://", "s3:///a", "https://bucket/a", "bucket/a"):
        with pytest.raises(SettingsError, match="expected s3://bucket/prefix"):
            Settings.from_env({"SNAPSHOT_URI": wrong})
