"""Every way in which a server or a disk can fail: the end is the right file, or a clear error and nothing bad left."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from llamafn.errors import DeadlinePassed, FetchFailed, FetchRefused, ModelUnavailable
from llamafn.fetch.gguf import NotGGUF
from tests.fetch.conftest import Open, go_on_until_whole, left_in, soon
from tests.fetch.models import a_gguf
from tests.fetch.server import Answer, Asked, ScriptedServer

MODEL = a_gguf(12_000_000)
DIGEST = hashlib.sha256(MODEL).hexdigest()


def fetch(open_: Open, uri: str, **settings: str) -> bytes:
    model = open_(uri, **settings)
    model.wait_whole(soon())
    model.wait_kept(soon())
    with open(model.paths[0], "rb") as file:
        return file.read()


def refused(open_: Open, uri: str, **settings: str) -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as caught:
        open_(uri, **settings).wait_whole(soon())
    return caught.value


@pytest.mark.parametrize("then", ["reset", "stall", "close"])
def test_a_body_that_breaks_off_is_asked_for_again_from_there(
    then: str, server: ScriptedServer, open_: Open, target: Path
) -> None:
    sent: list[int] = []

    def breaks_off(asked: Asked) -> Answer:
        answer = server.right_answer(asked)
        if asked.number in (1, 3, 5):
            answer = answer._replace(cut=300_000, then=then)
        sent.append(len(answer.body[: answer.cut]))
        return answer

    server.faults.append(breaks_off)

    stall = "0.3" if then == "stall" else "10"
    assert fetch(open_, server.put("/model.gguf", MODEL), FETCH_STALL_SECONDS=stall) == MODEL
    assert target.read_bytes() == MODEL
    assert left_in(target) == []
    if then == "close":
        # What had arrived was not asked for again. (A reset takes along what lies in the kernel's buffers.)
        assert sum(sent) == len(MODEL)


def bounds_of(server: ScriptedServer) -> list[tuple[int, int]]:
    return [asked.bounds for asked in server.asked if asked.bounds is not None]


def test_a_stall_without_end_is_given_up(server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: server.right_answer(asked)._replace(cut=0, then="stall"))

    error = refused(open_, server.put("/model.gguf", MODEL), FETCH_STALL_SECONDS="0.1", FETCH_CONNECTIONS="1")

    assert isinstance(error, FetchFailed)
    assert "timed out; given up after 6 attempts" in error.message
    assert error.retry_after is not None


def test_more_bytes_than_asked_for_are_not_taken(server: ScriptedServer, open_: Open) -> None:
    def too_much(asked: Asked) -> Answer | None:
        answer = server.right_answer(asked)
        return answer._replace(body=answer.body + b"extra") if asked.number in (1, 2, 4) else None

    server.faults.append(too_much)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL


def test_bytes_after_the_declared_body_do_not_leak_into_the_next_answer(server: ScriptedServer, open_: Open) -> None:
    def trailing(asked: Asked) -> Answer | None:
        answer = server.right_answer(asked)
        length = str(len(answer.body))
        return answer._replace(headers=answer.headers | {"Content-Length": length}, body=answer.body + b"x" * 50)

    server.faults.append(trailing)

    assert fetch(open_, server.put("/model.gguf", MODEL), FETCH_CONNECTIONS="1") == MODEL


def test_wrong_bytes_of_the_right_size_leave_nothing(server: ScriptedServer, open_: Open, target: Path) -> None:
    wrong = bytearray(MODEL)
    wrong[-5] ^= 1
    uri = server.put("/model.gguf", bytes(wrong))

    error = refused(open_, uri, MODEL_SHA256=DIGEST)

    assert isinstance(error, FetchRefused)
    assert hashlib.sha256(wrong).hexdigest() in error.message
    assert f"expected {DIGEST}" in error.message
    assert list(target.parent.iterdir()) == []
    # Nor is it fetched again for everybody who asks in the next moments.
    requests = len(server.asked)
    assert type(refused(open_, uri, MODEL_SHA256=DIGEST)) is type(error)
    assert len(server.asked) == requests


def test_a_damaged_file_without_a_digest_is_found_by_its_structure(
    server: ScriptedServer, open_: Open, target: Path
) -> None:
    error = refused(open_, server.put("/model.gguf", MODEL[:-1000]))

    assert isinstance(error, NotGGUF)
    assert f"is cut: {len(MODEL) - 1000:,} bytes where its tensors need {len(MODEL):,}" in error.message
    assert list(target.parent.iterdir()) == []


def test_a_web_page_instead_of_a_model(server: ScriptedServer, open_: Open, target: Path) -> None:
    error = refused(open_, server.put("/model.gguf", b"<!DOCTYPE html>" + b" " * 5_000_000))

    assert isinstance(error, NotGGUF)
    assert "begins with b'<!DO', not b'GGUF'" in error.message
    assert list(target.parent.iterdir()) == []


def test_an_address_that_nobody_encoded(server: ScriptedServer, open_: Open) -> None:
    server.put("/a%20b/%C3%B1.gguf", MODEL)

    assert fetch(open_, server.url + "/a b/ñ.gguf?a=b c") == MODEL
    assert server.asked[0].path == "/a%20b/%C3%B1.gguf?a=b%20c"


def test_without_ranges_one_stream_brings_all(server: ScriptedServer, open_: Open, target: Path) -> None:
    def no_ranges(asked: Asked) -> Answer:
        return server.right_answer(asked._replace(headers={}))

    server.faults.append(no_ranges)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL
    assert len(server.asked) == 1
    assert left_in(target) == []


def test_without_ranges_a_broken_stream_is_read_through_again(server: ScriptedServer, open_: Open) -> None:
    def no_ranges(asked: Asked) -> Answer:
        answer = server.right_answer(asked._replace(headers={}))
        return answer._replace(cut=5_000_000, then="reset") if asked.number == 1 else answer

    server.faults.append(no_ranges)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL
    assert len(server.asked) == 2


def test_without_ranges_and_without_a_validator_a_broken_stream_starts_over(
    server: ScriptedServer, open_: Open
) -> None:
    """The other half might be of another version."""
    other = a_gguf(12_000_000, seed=1)

    def bare(asked: Asked) -> Answer:
        body = MODEL if asked.number == 1 else other
        return Answer(200, {}, body, cut=5_000_000 if asked.number == 1 else None, then="reset")

    server.faults.append(bare)

    assert fetch(open_, server.url + "/model.gguf") == other


def test_an_answer_that_tells_no_size_is_refused(server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: Answer(200, {"Content-Length": ""}, MODEL, cut=len(MODEL)))

    error = refused(open_, server.url + "/model.gguf")

    assert "neither honours ranges nor tells the size" in error.message


def test_a_whole_object_to_one_range_among_many_is_asked_for_again(server: ScriptedServer, open_: Open) -> None:
    def whole(asked: Asked) -> Answer | None:
        return server.right_answer(asked._replace(headers={})) if asked.number == 4 else None

    server.faults.append(whole)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    "content_range", ["", "bytes 7-1048575/{size}", "bytes 0-99/{size}", "bytes */{size}", "lines 1-2/3"]
)
def test_a_wrong_content_range_is_not_believed(
    content_range: str, number: int, server: ScriptedServer, open_: Open
) -> None:
    def wrong(asked: Asked) -> Answer | None:
        answer = server.right_answer(asked)
        said = content_range.format(size=len(MODEL))
        return answer._replace(headers=answer.headers | {"Content-Range": said}) if asked.number == number else None

    server.faults.append(wrong)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL


def test_an_object_that_is_replaced_between_two_parts_is_fetched_anew(server: ScriptedServer, open_: Open) -> None:
    other = a_gguf(13_000_000, seed=1)

    def replace(asked: Asked) -> Answer | None:
        if asked.number == 3:
            server.put("/model.gguf", other)
        return None

    server.faults.append(replace)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == other


def test_an_object_of_equal_size_that_is_replaced_is_noticed_by_its_etag(server: ScriptedServer, open_: Open) -> None:
    """Also where the server ignores If-Range and If-Match."""
    other = a_gguf(12_000_000, seed=1)

    def replace(asked: Asked) -> Answer | None:
        if asked.number == 3:
            server.put("/model.gguf", other)
        deaf = {name: value for name, value in asked.headers.items() if not name.startswith("if-")}
        return server.right_answer(asked._replace(headers=deaf))

    server.faults.append(replace)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == other


def test_an_object_is_not_exchanged_under_an_engine_that_has_loaded_it(
    server: ScriptedServer, open_: Open, target: Path
) -> None:
    other = a_gguf(30_000_000, seed=1)
    server.rate = 4e6
    model = open_(server.put("/model.gguf", a_gguf(30_000_000)))
    model.wait_loadable(soon())
    server.rate = None
    server.put("/model.gguf", other)

    with pytest.raises(FetchFailed, match="was replaced"):
        model.wait_whole(soon())

    assert list(target.parent.iterdir()) == []
    model.wait_whole(soon())
    assert model.digest == hashlib.sha256(other).hexdigest()


def test_an_object_that_never_stays_the_same_is_given_up(server: ScriptedServer, open_: Open, target: Path) -> None:
    def replace(asked: Asked) -> Answer | None:
        return server.right_answer(asked)._replace(headers=fresh(asked)) if asked.bounds else None

    def fresh(asked: Asked) -> dict[str, str]:
        return server.right_answer(asked).headers | {"ETag": f'"{asked.number}"'}

    server.put("/model.gguf", MODEL)
    server.faults.append(lambda asked: replace(asked._replace(headers={"range": asked.headers["range"]})))

    error = refused(open_, server.url + "/model.gguf")

    assert isinstance(error, FetchFailed)
    assert "was replaced" in error.message
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "said"), [(401, "credentials"), (403, "not allowed"), (404, "Check the address"), (410, "Check the")]
)
def test_a_refusal_is_final(status: int, said: str, server: ScriptedServer, open_: Open, target: Path) -> None:
    server.faults.append(lambda asked: Answer(status, {}, b"no"))

    error = refused(open_, server.url + "/model.gguf?secret=1")

    assert isinstance(error, FetchRefused)
    assert f"the server answered {status}" in error.message
    assert said in str(error.hint)
    assert "secret" not in error.message
    assert len(server.asked) == 1
    assert not target.parent.exists()


def test_416_to_a_part_is_asked_again(server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: Answer(416, {}) if asked.number == 3 else None)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL


def test_an_empty_object(server: ScriptedServer, open_: Open, target: Path) -> None:
    error = refused(open_, server.put("/model.gguf", b""))

    assert isinstance(error, FetchRefused)
    assert "the object is empty" in error.message
    assert not target.parent.exists()


def test_an_empty_object_without_ranges(server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: Answer(200, {}, b""))

    assert "the object is empty" in refused(open_, server.url + "/model.gguf").message


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_passing_troubles_are_waited_out(status: int, server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: Answer(status, {}, b"later") if asked.number <= 2 else None)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL


def test_retry_after_is_honoured_by_all_connections(server: ScriptedServer, open_: Open) -> None:
    moments: list[float] = []

    def busy(asked: Asked) -> Answer | None:
        moments.append(time.monotonic())
        return Answer(429, {"Retry-After": "1"}) if asked.number == 1 else None

    server.faults.append(busy)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL
    assert moments[1] - moments[0] >= 1.0


def test_retry_after_beyond_the_deadline_is_passed_on(server: ScriptedServer, open_: Open) -> None:
    when = formatdate(time.time() + 3600, usegmt=True)
    server.faults.append(lambda asked: Answer(429, {"Retry-After": when}))

    error = refused(open_, server.url + "/model.gguf", FETCH_DEADLINE_SECONDS="60")

    assert isinstance(error, FetchFailed)
    assert error.retry_after == pytest.approx(3600, abs=10)
    # Nobody asks again before that.
    assert refused(open_, server.url + "/model.gguf", FETCH_DEADLINE_SECONDS="60") is error
    assert 0 < int(dict(error.headers())["Retry-After"]) <= 3600
    assert len(server.asked) == 1


def test_troubles_without_end_are_given_up(server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: Answer(500, {}))

    error = refused(open_, server.url + "/model.gguf")

    assert isinstance(error, FetchFailed)
    assert "the server answered 500; given up after 6 attempts" in error.message
    assert len(server.asked) == 6


def test_one_connection_that_always_fails_does_not_end_the_others_work(server: ScriptedServer, open_: Open) -> None:
    """Some servers allow fewer connections than we open."""
    first_ports: list[int] = []

    def two_only(asked: Asked) -> Answer | None:
        answer = server.right_answer(asked)
        busy = len(first_ports) >= 2
        first_ports.append(asked.number)
        if busy and asked.number % 3 != 0:
            return Answer(503, {})
        return answer

    server.faults.append(two_only)

    assert fetch(open_, server.put("/model.gguf", MODEL)) == MODEL


def test_a_redirect_loop(server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: Answer(302, {"Location": f"/again/{asked.number}"}))

    error = refused(open_, server.url + "/model.gguf")

    assert isinstance(error, FetchRefused)
    assert "redirects in a loop" in error.message
    assert len(server.asked) == 6


def test_a_redirect_from_the_loopback_to_plain_http_elsewhere_is_refused(server: ScriptedServer, open_: Open) -> None:
    server.faults.append(lambda asked: Answer(302, {"Location": "http://models.example/m.gguf"}))

    error = refused(open_, server.url + "/model.gguf")

    assert "http://models.example is not asked: only https" in error.message
    assert "ALLOW_HTTP=1" in str(error.hint)


def test_a_refused_connection(open_: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    error = refused(open_, f"http://127.0.0.1:{port}/model.gguf")

    assert isinstance(error, FetchFailed)
    assert "Connection refused; given up after 6 attempts" in error.message


def test_a_slow_name_lookup_holds_nobody_beyond_the_deadline(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake, because a real name server on this machine would need root to be asked."""

    def slow(*args: object, **kwargs: object) -> list[object]:
        time.sleep(1.0)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    model = open_("https://models.example/model.gguf")
    began = time.monotonic()

    with pytest.raises(DeadlinePassed, match="while the model was being fetched"):
        model.wait_loadable(soon(0.2))

    assert time.monotonic() - began < 0.9


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file may grow beyond this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, before[1]))
    yield 5_000_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_on_the_disk(small_files: int, server: ScriptedServer, open_: Open, target: Path) -> None:
    error = refused(open_, server.put("/model.gguf", MODEL))

    assert isinstance(error, FetchRefused)
    assert f"no room for the model: {len(MODEL):,} bytes in" in error.message
    assert "MODEL_IN_MEMORY=1" in str(error.hint)
    assert list(target.parent.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way(
    small_files: int, server: ScriptedServer, open_: Open, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that cannot promise room: the promise is left out here."""
    monkeypatch.setattr("llamafn.fetch.part._reserve", lambda fd, size: None)

    error = refused(open_, server.put("/model.gguf", MODEL))

    assert isinstance(error, FetchRefused)
    assert "no room for the model" in error.message
    assert list(target.parent.iterdir()) == []


def test_a_directory_that_cannot_be_written(server: ScriptedServer, open_: Open) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            error = refused(open_, server.put("/model.gguf", MODEL), LOCAL_MODEL_PATH=f"{directory}/model.gguf")
        finally:
            os.seteuid(user)
        assert os.listdir(directory) == []

    assert isinstance(error, FetchRefused)
    assert f"cannot be written to {directory!r}: Permission denied" in error.message
    assert "LOCAL_MODEL_PATH" in str(error.hint)


def test_the_deadline_of_a_fetch_keeps_what_has_arrived(server: ScriptedServer, open_: Open, target: Path) -> None:
    server.rate = 2e6
    model = open_(server.put("/model.gguf", MODEL), FETCH_DEADLINE_SECONDS="0.5", FETCH_CONNECTIONS="2")

    with pytest.raises(FetchFailed, match=r"not whole after 0\.5 s") as caught:
        model.wait_whole(soon())

    assert caught.value.headers() == [("Retry-After", "1")]
    assert not target.exists()
    arrived = model.progress().done
    assert arrived > 0
    server.rate = None
    server.asked.clear()
    go_on_until_whole(model)
    assert model.digest == DIGEST
    assert min(first for first, _ in bounds_of(server)) > 0


def test_the_deadline_of_a_request_does_not_end_the_fetch(server: ScriptedServer, open_: Open) -> None:
    server.rate = 5e6
    uri = server.put("/model.gguf", MODEL)
    model = open_(uri)

    with pytest.raises(DeadlinePassed, match="while the model was being fetched") as caught:
        model.wait_whole(soon(0.3))

    assert caught.value.retry_after is not None
    server.rate = None
    again = open_(uri)
    assert again is model
    again.wait_whole(soon())
    assert again.digest == DIGEST
