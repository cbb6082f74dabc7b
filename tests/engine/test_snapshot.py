"""Prompt snapshots: used when they are right, ignored and made again when they are not."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamafn.deadline import Deadline
from llamafn.engine import decoder as decoder_module
from llamafn.engine import snapshot as module
from llamafn.engine.engine import Engine
from llamafn.engine.snapshot import SnapshotStore, fingerprint
from llamafn.fetch import bucket as bucket_module
from llamafn.fetch.bucket import Bucket
from llamafn.settings import Settings
from tests.engines import ask, make_engine
from tests.fetch.server import Answer, Asked, ScriptedServer

SYSTEM = "You are an agronomist. You know all about irrigation, soil, weather, maize, beans and coffee. " * 4
LONG = SYSTEM * 2  # long enough to be shared between machines
COUNT = "Count from 1 to 10, separated by commas."

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make(model_path: str, tmp_path: Path) -> Iterator[MakeEngine]:
    """A new engine, as after a cold start, that keeps its snapshots in `tmp_path`."""
    engines = []

    def make(n_ctx: int = 512, parallel: int = 1) -> Engine:
        store = SnapshotStore([model_path], n_ctx, [str(tmp_path)])
        engines.append(make_engine(model_path, n_ctx=n_ctx, parallel=parallel, snapshots=store))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def snapshots(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.snapshot"))


def test_the_same_tokens_with_and_without_and_no_prefill_of_the_prefix(make: MakeEngine, tmp_path: Path) -> None:
    first = make()
    fresh, without = ask(first, COUNT, system=SYSTEM, max_tokens=24)
    read = len(first.read(SYSTEM, Deadline.after(60)))
    assert without.cached_tokens == 0
    again, with_it = ask(make(), COUNT, system=SYSTEM, max_tokens=24)
    assert again == fresh
    assert with_it.cached_tokens == read > 60
    assert with_it.prompt_tokens == without.prompt_tokens
    assert len(snapshots(tmp_path)) == 1


def test_a_prefix_is_kept_at_second_sight(make: MakeEngine, tmp_path: Path) -> None:
    """Two callers with system prompts of their own take turns: from the third time on, neither has to be read."""
    engine = make()
    seen: list[int] = []
    for _ in range(3):
        systems = (SYSTEM, "Answer in Spanish. " + SYSTEM)
        seen.extend(ask(engine, COUNT, system=system, max_tokens=2)[1].cached_tokens for system in systems)
        assert len(snapshots(tmp_path)) == (0 if len(seen) == 2 else 2)
    assert seen[4] > 60
    assert seen[5] > 60


def test_prefixes_that_begin_alike_are_kept_too(make: MakeEngine, tmp_path: Path) -> None:
    """Each is read on top of what it has in common with the other, until it is wanted; then once from its beginning."""
    engine = make()
    cached: list[int] = []
    for _ in range(3):
        systems = (SYSTEM + "Answer about maize. " * 8, SYSTEM + "Answer about coffee. " * 8)
        cached.extend(ask(engine, COUNT, system=system, max_tokens=2)[1].cached_tokens for system in systems)
    assert cached[0] == 0
    assert 60 < cached[1] < 110
    assert cached[2:4] == [0, 0]
    assert min(cached[4:]) > 110
    assert len(snapshots(tmp_path)) == 2


def test_a_default_that_begins_like_what_was_asked_before_is_kept_at_once(make: MakeEngine, tmp_path: Path) -> None:
    engine = make()
    ask(engine, COUNT, system=SYSTEM + "Answer about coffee. " * 8, max_tokens=1)
    engine.read(SYSTEM + "Answer about maize. " * 8, Deadline.after(60))
    assert len(snapshots(tmp_path)) == 1


def test_a_damaged_one_that_cannot_be_removed_does_not_keep_a_good_one_away(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shipped in a read-only directory. Here for root, too, for whom no directory is: by `unlink`."""
    shipped, kept = tmp_path / "shipped", tmp_path / "kept"
    store = SnapshotStore([model_path], 512, [str(shipped)])
    prefix = list(range(40))
    path = store.save(prefix, bytearray(b"state"))
    assert path is not None
    damaged = bytearray(Path(path).read_bytes())
    damaged[-1] ^= 1
    Path(path).write_bytes(damaged)

    def refuse(path: str) -> None:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "unlink", refuse)
    store = SnapshotStore([model_path], 512, [str(kept), str(shipped)])
    assert store.wants(prefix, keep=True) is False  # it is there, so far as is known
    assert store.find(prefix) is None
    assert store.wants(prefix, keep=True)
    assert store.save(prefix, bytearray(b"state")) is not None
    assert len(snapshots(kept)) == 1
    found = store.find(prefix)
    assert found is not None
    found.close()


def test_a_prefix_that_is_still_in_memory_is_kept_too(make: MakeEngine, tmp_path: Path) -> None:
    """One caller, one system prompt: the next cold start must find it."""
    engine = make()
    for _ in range(2):
        ask(engine, COUNT, system=SYSTEM, max_tokens=2)
    assert len(snapshots(tmp_path)) == 1


def test_a_state_that_is_too_large_is_tried_once(
    make: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bound is lowered; models that reach the real one take gigabytes."""
    caplog.set_level("INFO")
    monkeypatch.setattr(decoder_module, "MAX_BYTES", 1_000)
    engine = make()
    for _ in range(4):
        assert ask(engine, COUNT, system=SYSTEM, max_tokens=2)[0]
    assert snapshots(tmp_path) == []
    assert caplog.text.count("No snapshot of") == 1


def test_a_short_prefix_is_not_worth_a_file(make: MakeEngine, tmp_path: Path) -> None:
    make().read("Be brief.", Deadline.after(60))
    assert snapshots(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: data[:20], "it is cut"),
        (lambda data: data[:-1], "it is cut"),
        (lambda data: data + b"x", "it is cut"),
        (lambda data: b"x" + data[1:], "it is no snapshot"),
        (lambda data: data[:8] + bytes(32) + data[40:], "it is of another prompt or model"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "its checksum is wrong"),
    ],
    ids=["empty", "header cut", "cut", "longer", "foreign", "renamed", "one bit"],
)
def test_a_damaged_snapshot_is_ignored_and_made_again(
    make: MakeEngine,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    make().read(SYSTEM, Deadline.after(60))
    (path,) = snapshots(tmp_path)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    engine = make()
    text, generation = ask(engine, COUNT, system=SYSTEM, max_tokens=12)
    assert text.startswith("1")
    assert generation.cached_tokens == 0
    assert said in caplog.text
    make().read(SYSTEM, Deadline.after(60))
    assert snapshots(tmp_path) == [path]
    assert path.read_bytes() == good


def test_a_state_that_llama_cpp_refuses_is_read_again(make: MakeEngine, tmp_path: Path, model_path: str) -> None:
    """A file that is right in form and wrong in content, as from a llama.cpp that changed its format in silence."""
    engine = make()
    prefix = engine.read(SYSTEM, Deadline.after(60))
    (path,) = snapshots(tmp_path)
    good = path.read_bytes()
    SnapshotStore([model_path], 512, [str(tmp_path)]).save(prefix, bytearray(b"\x07" * 5000))
    text, generation = ask(make(), COUNT, system=SYSTEM, max_tokens=12)
    assert text.startswith("1")
    assert generation.cached_tokens == 0
    make().read(SYSTEM, Deadline.after(60))
    assert path.read_bytes() == good


def test_another_context_size_has_other_snapshots(make: MakeEngine, tmp_path: Path) -> None:
    make(n_ctx=512).read(SYSTEM, Deadline.after(60))
    _, generation = ask(make(n_ctx=768), COUNT, system=SYSTEM, max_tokens=1)
    assert generation.cached_tokens == 0


def test_a_fingerprint_tells_models_apart(tmp_path: Path, model_path: str) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(model_path, copy)
    assert fingerprint(str(copy)) == fingerprint(model_path)
    with copy.open("r+b") as file:  # the weights of another training, say
        for offset in range(8 << 20, os.path.getsize(copy), 1 << 20):
            file.seek(offset)
            file.write(b"\x55" * (1 << 19))
    assert fingerprint(str(copy)) != fingerprint(model_path)
    copy.write_bytes(b"GGUF")
    assert fingerprint(str(copy)) != fingerprint(model_path)


def test_the_least_recently_used_goes_first(
    make: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_path: str
) -> None:
    monkeypatch.setattr(module, "MAX_SNAPSHOTS", 2)
    store = SnapshotStore([model_path], 512, [str(tmp_path)])
    prefixes = [list(range(start, start + 40)) for start in range(3)]
    for age, prefix in enumerate(prefixes[:2]):
        path = store.save(prefix, bytearray(100))
        assert path
        os.utime(path, (1000 + age, 1000 + age))
    found = store.find(prefixes[0])  # used now
    assert found
    found.close()
    store.save(prefixes[2], bytearray(100))
    kept = [store.find(prefix) for prefix in prefixes]
    assert [snapshot is not None for snapshot in kept] == [True, False, True]
    for snapshot in kept:
        if snapshot:
            snapshot.close()


def test_bytes_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_path: str) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    store = SnapshotStore([model_path], 512, [str(tmp_path)])
    for start in range(3):
        store.save(list(range(start, start + 40)), bytearray(400))
    assert sum(path.stat().st_size for path in snapshots(tmp_path)) <= 1000
    assert snapshots(tmp_path) == sorted(tmp_path.iterdir())


def test_the_first_directory_that_can_be_written_to_is_used(tmp_path: Path, model_path: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    store = SnapshotStore([model_path], 512, [str(blocked), str(tmp_path / "here")])
    path = store.save(list(range(40)), bytearray(100))
    assert path
    assert Path(path).parent == tmp_path / "here"
    assert SnapshotStore([model_path], 512, [str(blocked)]).save(list(range(40)), bytearray(100)) is None


# Shared between instances.


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """The bucket. A busy machine may take its time to answer."""
    monkeypatch.setattr(bucket_module, "STALL_SECONDS", 60.0)
    monkeypatch.setattr(module, "REMOTE_SECONDS", 60.0)
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def instance(model_path: str, tmp_path: Path, server: ScriptedServer) -> Iterator[MakeEngine]:
    """An engine with a directory of its own, and a bucket that all share."""
    engines = []

    def make(name: str, parallel: int = 1) -> Engine:
        store = shared_store(model_path, tmp_path / name, server.url, parallel)
        engines.append(make_engine(model_path, parallel=parallel, snapshots=store))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def shared_store(model_path: str, directory: Path, endpoint: str, parallel: int = 1) -> SnapshotStore:
    settings = Settings.from_env(
        {"S3_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hidden"}
    )
    return SnapshotStore([model_path], 512, [str(directory)], parallel, Bucket("s3://shared/farm", settings))


def methods(server: ScriptedServer) -> list[str]:
    return [asked.method for asked in server.asked]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_new_instance_finds_what_another_one_read(
    instance: MakeEngine, tmp_path: Path, server: ScriptedServer
) -> None:
    first = instance("first")
    read = len(first.read(LONG, Deadline.after(60)))
    text, _ = ask(first, COUNT, system=LONG, max_tokens=12)
    assert methods(server) == ["GET", "PUT"]

    again, generation = ask(instance("second"), COUNT, system=LONG, max_tokens=12)

    assert generation.cached_tokens == read >= module.SHORTEST_SHARED_PREFIX
    assert again == text
    assert methods(server) == ["GET", "PUT", "GET"]
    (ours,), (theirs,) = snapshots(tmp_path / "first"), snapshots(tmp_path / "second")
    assert server.objects == {f"/shared/farm/{ours.name}": ours.read_bytes()}
    assert theirs.read_bytes() == ours.read_bytes()


def test_the_bucket_is_asked_once_for_each_prefix(instance: MakeEngine, server: ScriptedServer) -> None:
    """Two callers push each other out of the only sequence."""
    engine = instance("first")
    for _ in range(2):
        for system in (LONG, "Answer in Spanish. " + LONG):
            ask(engine, COUNT, system=system, max_tokens=1)
    assert methods(server) == ["GET", "GET", "PUT", "PUT"]


def test_a_prefix_that_is_soon_read_is_not_asked_for(
    instance: MakeEngine, tmp_path: Path, server: ScriptedServer
) -> None:
    instance("first").read(SYSTEM, Deadline.after(60))
    assert len(snapshots(tmp_path / "first")) == 1
    assert server.asked == []


def test_a_damaged_one_in_the_bucket_is_ignored_and_replaced(
    instance: MakeEngine,
    tmp_path: Path,
    server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    instance("first").read(LONG, Deadline.after(60))
    ((path, good),) = server.objects.items()
    server.objects[path] = good[:-9] + b"x" * 9
    engine = instance("second")

    text, generation = ask(engine, COUNT, system=LONG, max_tokens=8)

    assert text.startswith("1")
    assert generation.cached_tokens == 0
    assert "that was fetched is not trusted: its checksum is wrong" in caplog.text
    assert snapshots(tmp_path / "second") == []
    engine.read(LONG, Deadline.after(60))
    assert server.objects == {path: good}


def test_a_bucket_that_is_not_there_fails_no_request(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ScriptedServer() as gone:
        endpoint = gone.url
    engine = make_engine(model_path, snapshots=shared_store(model_path, tmp_path, endpoint))
    with contextlib.closing(engine):
        assert len(engine.read(LONG, Deadline.after(60))) > 128
        text, generation = ask(engine, COUNT, system=LONG, max_tokens=8)
    assert text.startswith("1")
    assert generation.cached_tokens > 128
    assert len(snapshots(tmp_path)) == 1
    assert caplog.text.count("the GET failed") == 1
    assert "the PUT failed" not in caplog.text
    assert "hidden" not in caplog.text


def test_other_answers_go_on_while_the_bucket_is_slow(instance: MakeEngine, server: ScriptedServer) -> None:
    """And of two that want the same prefix, one asks."""
    instance("first", parallel=3).read(LONG, Deadline.after(60))
    answers = threading.Event()

    def wait(asked: Asked) -> Answer | None:
        answers.wait(60)
        return None

    server.faults.append(wait)
    server.asked.clear()
    engine = instance("second", parallel=3)
    cached: list[int] = []
    threads = [
        threading.Thread(target=lambda: cached.append(ask(engine, COUNT, system=LONG, max_tokens=1)[1].cached_tokens))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: engine.answering == 2 and methods(server) == ["GET"])

    text, _ = ask(engine, COUNT, max_tokens=2)

    assert text
    assert engine.answering == 2
    assert cached == []
    answers.set()
    for thread in threads:
        thread.join()
    assert min(cached) > 128
    assert methods(server) == ["GET"]


def test_without_a_directory_there_are_none(
    model_path: str, tmp_path: Path, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    other = shared_store(model_path, tmp_path, server.url)
    assert other.save(list(range(200)), bytearray(100))
    other.share(list(range(200)), Deadline.after(60))
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    store = shared_store(model_path, blocked, server.url)
    for start in (0, 1):
        prefix = list(range(start, start + 200))
        if store.may_be_remote(prefix):
            store.fetch(prefix, Deadline.after(60))
        assert store.find(prefix) is None
        assert not store.wants(prefix, keep=True)
    assert methods(server) == ["PUT", "GET"]
    assert caplog.text.count("No prompt snapshots are kept") == 1


def test_a_request_without_time_leaves_the_bucket_to_the_next(
    model_path: str, tmp_path: Path, server: ScriptedServer
) -> None:
    store = shared_store(model_path, tmp_path, server.url)
    prefix = list(range(200))
    store.fetch(prefix, Deadline.after(0.1))
    assert server.asked == []
    assert store.may_be_remote(prefix)
    store.fetch(prefix, Deadline.after(60))
    assert methods(server) == ["GET"]
    assert not store.may_be_remote(prefix)
    store.save(prefix, bytearray(100))
    for seconds in (0.1, 60, 60):
        store.share(prefix, Deadline.after(seconds))
    assert methods(server) == ["GET", "PUT"]
