"""The bucket that instances share: what it has is had, and what is wrong with it costs no more than was allowed."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from llamafn.fetch import bucket as module
from llamafn.fetch.bucket import Bucket
from llamafn.settings import Settings
from tests.fetch.server import Answer, Asked, ScriptedServer

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hidden"}
DATA = bytes(range(256)) * 4000
LIMIT = 2_000_000


@pytest.fixture(autouse=True)
def no_thread_is_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nor a secret in the log. A busy machine may take its time to answer."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "STALL_SECONDS", 10.0)
    yield
    deadline = time.monotonic() + 10
    while any(thread.name == "llamafn-bucket" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a request is still under way"
        time.sleep(0.01)
    assert "hidden" not in caplog.text


def bucket_at(endpoint: str, uri: str = "s3://shared/farm", **settings: str) -> Bucket:
    environ = {**KEYS, "SNAPSHOT_URI": uri, "S3_ENDPOINT_URL": endpoint, **settings}
    checked = Settings.from_env(environ)
    assert checked.snapshot_uri is not None
    return Bucket(checked.snapshot_uri, checked)


def get(bucket: Bucket, name: str = "a.snapshot", seconds: float = 10.0) -> bytes | None:
    found = bucket.get(name, most_bytes=LIMIT, seconds=seconds)
    return None if found is None else bytes(found)


@pytest.fixture
def client(moto: str) -> Iterator[Any]:
    client = boto3.client(
        "s3", endpoint_url=moto, region_name="us-east-1", aws_access_key_id="A", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="shared")
    yield client
    for found in client.list_objects_v2(Bucket="shared").get("Contents", []):
        client.delete_object(Bucket="shared", Key=found["Key"])
    client.delete_bucket(Bucket="shared")
    client.close()


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://shared", "a.snapshot"),
        ("s3://shared/farm/", "farm/a.snapshot"),
        ("s3://shared/año 1/q+4", "año 1/q+4/a.snapshot"),
    ],
)
def test_what_one_stores_another_gets(uri: str, key: str, moto: str, client: Any) -> None:
    bucket_at(moto, uri).put("a.snapshot", DATA, seconds=10)

    assert client.get_object(Bucket="shared", Key=key)["Body"].read() == DATA
    assert get(bucket_at(moto, uri, AWS_SESSION_TOKEN="hidden too", AWS_REGION="eu-west-1")) == DATA


def test_what_is_missing_is_none_and_the_next_is_asked_for(moto: str, client: Any) -> None:
    bucket = bucket_at(moto)
    client.put_object(Bucket="shared", Key="farm/b.snapshot", Body=DATA)

    assert get(bucket, "a.snapshot") is None
    assert get(bucket, "b.snapshot") == DATA


def test_without_the_right_to_list_a_missing_one_is_a_403(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """moto allows everything: this is Amazon's answer."""
    server.faults.append(lambda asked: Answer(403, {}, b"<Code>AccessDenied</Code>") if "/a." in asked.path else None)
    server.put("/shared/farm/b.snapshot", DATA)
    bucket = bucket_at(server.url)

    assert get(bucket, "a.snapshot") is None
    assert get(bucket, "b.snapshot") == DATA
    assert "403 AccessDenied" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_one_that_may_only_read_stops_storing_and_goes_on_reading(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The refusal comes before the body was read: the rest of it meets a closed connection."""
    server.faults.append(lambda asked: Answer(403, {}, b"<Code>AccessDenied</Code>") if asked.method == "PUT" else None)
    server.put("/shared/farm/a.snapshot", DATA)
    bucket = bucket_at(server.url)

    for _ in range(2):
        bucket.put("b.snapshot", bytes(20_000_000), seconds=10)

    assert "403 AccessDenied" in caplog.text
    assert "s3:PutObject" in caplog.text
    assert get(bucket) == DATA
    assert [asked.method for asked in server.asked] == ["PUT", "GET"]


def test_another_region_is_learnt_once(server: ScriptedServer) -> None:
    def redirect(asked: Asked) -> Answer | None:
        if "/eu-south-2/s3/" in asked.headers["authorization"]:
            return None
        return Answer(301, {"x-amz-bucket-region": "eu-south-2"}, b"<Code>PermanentRedirect</Code>")

    server.faults.append(redirect)
    bucket = bucket_at(server.url)

    assert get(bucket) is None
    bucket.put("a.snapshot", DATA, seconds=10)
    assert get(bucket) == DATA
    assert [asked.method for asked in server.asked] == ["GET", "GET", "PUT", "GET"]


def test_what_is_too_large_is_not_fetched(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    server.put("/shared/farm/a.snapshot", bytes(LIMIT + 1))
    server.put("/shared/farm/b.snapshot", bytes(LIMIT))
    bucket = bucket_at(server.url)

    assert get(bucket, "a.snapshot") is None
    assert "2000001 bytes" in caplog.text
    assert get(bucket, "b.snapshot") == bytes(LIMIT)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(500, {}, b"<Code>InternalError</Code>"), "S3 answered 500 InternalError"),
        (Answer(400, {}, b"<Code>ExpiredToken</Code>"), "S3 answered 400 ExpiredToken"),
        (Answer(200, {"Content-Length": "900"}, b"x" * 900, cut=100), "after 100 of 900 bytes"),
        (
            Answer(200, {"Content-Length": "900"}, b"x" * 900, cut=100, then="stall"),
            "timed out|nothing moved for 0.3 s",
        ),
    ],
    ids=["500", "expired", "cut", "stalled"],
)
def test_after_a_failure_it_is_left_alone_for_a_while(
    answer: Answer,
    said: str,
    server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if answer.then == "stall":
        monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    server.faults.append(lambda asked: answer)
    bucket = bucket_at(server.url)

    assert get(bucket) is None
    assert get(bucket) is None
    bucket.put("a.snapshot", DATA, seconds=10)

    assert re.search(said, caplog.text)
    assert len(server.asked) == 1
    bucket._paused_until = 0.0  # a minute later
    server.faults.clear()
    server.put("/shared/farm/a.snapshot", DATA)
    assert get(bucket) == DATA


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as reserved:  # bound, and so nobody else's; a connection is refused
        reserved.bind(("127.0.0.1", 0))
        bucket = bucket_at(f"http://127.0.0.1:{reserved.getsockname()[1]}")
        assert get(bucket) is None
        bucket.put("a.snapshot", DATA, seconds=10)

    assert caplog.text.count("Connection refused") == 1


def test_nobody_waits_longer_than_allowed(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes trickle, so that no read of the socket ever times out."""
    server.rate = 50_000
    server.put("/shared/farm/a.snapshot", DATA)
    began = time.monotonic()

    assert get(bucket_at(server.url), seconds=0.5) is None

    assert time.monotonic() - began < 3
    assert "0.5 s were not enough" in caplog.text


def test_an_anonymous_one_signs_nothing(server: ScriptedServer) -> None:
    server.put("/shared/farm/a.snapshot", DATA)

    assert get(bucket_at(server.url, S3_ANONYMOUS="1")) == DATA
    assert "authorization" not in server.asked[0].headers


def test_a_key_that_no_header_can_hold_is_not_quoted(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    assert get(bucket_at(server.url, AWS_ACCESS_KEY_ID="AKIA\nhidden")) is None

    assert "the GET failed: ValueError" in caplog.text
    assert server.asked == []


def test_plain_http_to_another_host_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert get(bucket_at("http://minio.example")) is None

    assert "http://minio.example is not asked" in caplog.text


def test_it_is_imported_where_it_is_wanted_and_http_where_it_is_asked() -> None:
    code = (
        "import sys, model_loader, llamafn.engine.snapshot\n"
        "assert 'llamafn.fetch.bucket' not in sys.modules\n"
        "from llamafn.settings import Settings\n"
        "assert model_loader._snapshot_bucket(Settings.from_env({})) is None\n"
        "assert 'llamafn.fetch.bucket' not in sys.modules\n"
        "model_loader._snapshot_bucket(Settings.from_env({'SNAPSHOT_URI': 's3://shared/farm'}))\n"
        "assert 'llamafn.fetch.bucket' in sys.modules\n"
        "assert 'http.client' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
