from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import pytest

from llamafn.errors import FetchRefused
from llamafn.fetch.sources.s3 import S3Source
from llamafn.settings import Settings
from tests.fetch.conftest import Open
from tests.fetch.models import a_gguf
from tests.fetch.server import Answer, Asked, ScriptedServer
from tests.fetch.test_faults import fetch, refused

MODEL = a_gguf(12_000_000)
DIGEST = hashlib.sha256(MODEL).hexdigest()
KEYS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hidden"}


@pytest.fixture
def client(moto: str) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=moto,
        region_name="us-east-1",
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="hidden",
        config=botocore.config.Config(request_checksum_calculation="when_required"),
    )
    client.create_bucket(Bucket="models")
    yield client
    for found in client.list_objects_v2(Bucket="models").get("Contents", []):
        client.delete_object(Bucket="models", Key=found["Key"])
    client.delete_bucket(Bucket="models")
    client.close()


def test_an_object_with_a_key_that_needs_quoting(moto: str, client: Any, open_: Open) -> None:
    client.put_object(Bucket="models", Key="año 1/q4+k.gguf", Body=MODEL)

    assert fetch(open_, "s3://models/año 1/q4+k.gguf", S3_ENDPOINT_URL=moto, **KEYS) == MODEL


def test_the_other_names_of_settings_and_a_session_token(moto: str, client: Any, open_: Open) -> None:
    client.put_object(Bucket="models", Key="model.gguf", Body=MODEL)
    settings = KEYS | {"AWS_SESSION_TOKEN": "token", "AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL_S3": moto}

    assert fetch(open_, "s3://models/model.gguf", **settings) == MODEL


def test_anonymous(moto: str, client: Any, open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put_object(Bucket="models", Key="model.gguf", Body=MODEL, ACL="public-read")

    assert fetch(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=moto, S3_ANONYMOUS="1") == MODEL


@pytest.mark.parametrize(
    ("kind", "checksum", "verified"),
    [
        ("FULL_OBJECT", hashlib.sha256(MODEL).digest(), True),
        ("FULL_OBJECT", b"not a SHA-256", False),
        ("COMPOSITE", hashlib.sha256(b"of the parts").digest(), False),
    ],
)
def test_the_checksum_of_the_whole_object_is_compared(
    kind: str, checksum: bytes, verified: bool, server: ScriptedServer, open_: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Amazon's answer to a HEAD; moto leaves out the type."""

    def tell(asked: Asked) -> Answer | None:
        if asked.method != "HEAD":
            return None
        assert asked.headers["x-amz-checksum-mode"] == "ENABLED"
        said = base64.b64encode(checksum).decode()
        return Answer(200, {"x-amz-checksum-sha256": said, "x-amz-checksum-type": kind})

    server.faults.append(tell)
    server.put("/models/model.gguf", MODEL)

    assert fetch(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=server.url, **KEYS) == MODEL
    assert ("could not be verified" not in caplog.text) == verified


def test_another_checksum_than_that_of_the_bytes(server: ScriptedServer, open_: Open) -> None:
    wrong = base64.b64encode(bytes(32)).decode()
    headers = {"x-amz-checksum-sha256": wrong, "x-amz-checksum-type": "FULL_OBJECT"}
    server.faults.append(lambda asked: Answer(200, headers) if asked.method == "HEAD" else None)
    server.put("/models/model.gguf", MODEL)

    error = refused(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=server.url, **KEYS)

    assert f"expected {'0' * 64}" in error.message


def test_the_objects_metadata_may_tell_the_digest(moto: str, client: Any, open_: Open) -> None:
    client.put_object(Bucket="models", Key="model.gguf", Body=MODEL, Metadata={"sha256": "0" * 64})

    assert f"expected {'0' * 64}" in refused(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=moto, **KEYS).message


def test_a_multipart_object_has_no_digest(
    moto: str, client: Any, open_: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Its ETag is not an MD5, and its SHA-256, if it has one, is one of its parts' checksums."""
    part = 6 << 20
    upload = client.create_multipart_upload(Bucket="models", Key="model.gguf", ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(MODEL), part), 1):
        answer = client.upload_part(
            Bucket="models",
            Key="model.gguf",
            UploadId=upload,
            PartNumber=number,
            Body=MODEL[start : start + part],
            ChecksumAlgorithm="SHA256",
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": answer["ChecksumSHA256"]})
    client.complete_multipart_upload(
        Bucket="models", Key="model.gguf", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert "-2" in client.head_object(Bucket="models", Key="model.gguf")["ETag"]

    assert fetch(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=moto, **KEYS) == MODEL
    assert "could not be verified" in caplog.text


def test_a_missing_key(moto: str, client: Any, open_: Open) -> None:
    error = refused(open_, "s3://models/none.gguf", S3_ENDPOINT_URL=moto, **KEYS)

    assert isinstance(error, FetchRefused)
    assert error.message == "s3://models/none.gguf: S3 answered 404 NoSuchKey."
    assert error.hint == "There is no object 'none.gguf' in 'models'. Check the key in MODEL."


def test_a_missing_bucket(moto: str, open_: Open) -> None:
    error = refused(open_, "s3://nothing-here/model.gguf", S3_ENDPOINT_URL=moto, **KEYS)

    assert "404 NoSuchBucket" in error.message
    assert "There is no bucket 'nothing-here'" in str(error.hint)


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (403, "AccessDenied", "without s3:ListBucket S3 answers 403 for both"),
        (403, "SignatureDoesNotMatch", "Check AWS_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", "Check AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", "get new credentials"),
    ],
)
def test_wrong_credentials(status: int, code: str, hint: str, server: ScriptedServer, open_: Open) -> None:
    """moto accepts any: these are the answers of Amazon's."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    server.faults.append(lambda asked: Answer(status, {}, body))

    error = refused(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=server.url, **KEYS)

    assert f"S3 answered {status} {code}." in error.message
    assert hint in str(error.hint)
    assert "hidden" not in f"{error.message}{error.hint}"
    assert len(server.asked) == 1


def test_a_bucket_in_another_region_is_asked_there(server: ScriptedServer, open_: Open) -> None:
    def redirect(asked: Asked) -> Answer | None:
        if "/eu-south-2/s3/" in asked.headers["authorization"]:
            return None
        return Answer(301, {"x-amz-bucket-region": "eu-south-2"}, b"<Code>PermanentRedirect</Code>")

    server.faults.append(redirect)
    server.put("/models/model.gguf", MODEL)

    assert fetch(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=server.url, **KEYS) == MODEL


def test_parts_are_pinned_by_if_match(server: ScriptedServer, open_: Open) -> None:
    server.put("/models/model.gguf", MODEL)

    assert fetch(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=server.url, **KEYS) == MODEL
    ranges = server.ranges_asked()
    assert "if-match" not in ranges[0].headers
    assert len({asked.headers["if-match"] for asked in ranges[1:]}) == 1


def test_no_credentials_anywhere(open_: Open, monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")

    error = refused(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=server.url)

    assert error.message == "There are no AWS credentials, and S3_ANONYMOUS is not set."
    assert server.asked == []


def test_the_usual_chain_is_asked_where_the_environment_has_no_keys(
    open_: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, server: ScriptedServer
) -> None:
    profile = tmp_path / "credentials"
    profile.write_text("[default]\naws_access_key_id=AKIAFILE\naws_secret_access_key=hidden\nregion=eu-west-3\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))
    server.put("/models/model.gguf", MODEL)

    assert fetch(open_, "s3://models/model.gguf", S3_ENDPOINT_URL=server.url) == MODEL
    assert "Credential=AKIAFILE/" in server.asked[0].headers["authorization"]
    assert "/eu-west-3/s3/" in server.asked[0].headers["authorization"]


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "https://models.s3.us-east-1.amazonaws.com/a%20b.gguf"),
        ({"AWS_REGION": "cn-north-1"}, "https://models.s3.cn-north-1.amazonaws.com.cn/a%20b.gguf"),
        ({"S3_ADDRESSING_STYLE": "path"}, "https://s3.us-east-1.amazonaws.com/models/a%20b.gguf"),
        ({"MODEL": "s3://my.models/a b.gguf"}, "https://s3.us-east-1.amazonaws.com/my.models/a%20b.gguf"),
        ({"S3_ENDPOINT_URL": "https://r2.example/x/"}, "https://r2.example/x/models/a%20b.gguf"),
        (
            {"S3_ENDPOINT_URL": "https://r2.example", "S3_ADDRESSING_STYLE": "virtual"},
            "https://models.r2.example/a%20b.gguf",
        ),
    ],
)
def test_addresses(environ: dict[str, str], url: str) -> None:
    settings = Settings.from_env({"MODEL": "s3://models/a b.gguf", **KEYS, **environ})

    asked, headers = S3Source(settings.model, settings).request()

    assert asked == url
    assert "Credential=AKIATEST/" in headers["Authorization"]
