"""The commands that docs/platforms.md gives for servers, run as they stand there."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from commands.assembly import Plan, assemble
from commands.portable_engine import this_architecture
from tests.servers import ROOT, serving

PLATFORMS = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def leapcell(row: str) -> str:
    found = re.search(rf"^\| {row} \| `(.*)` \|$", PLATFORMS, re.MULTILINE)
    assert found, f"docs/platforms.md has no {row}"
    return found[1]


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH whose Python has none of this environment's packages."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("python", "python3"):
        (directory / name).symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    return f"{directory}:/usr/bin:/bin"


def test_leapcells_commands_build_and_start_a_server(tmp_path: Path, bare_path: str, model_path: str) -> None:
    server = tmp_path / "server"
    # The engine with all variants, which has been built already, in place of the baseline's two.
    build = leapcell("build command").replace(" --baseline", "").replace("dist/server", str(server))
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    environ = {"PATH": bare_path, "XDG_CACHE_HOME": cache}
    done = subprocess.run(["bash", "-c", build], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    # Nothing of a test listens to the network.
    start = leapcell("start command").replace("dist/server", str(server)).replace("0.0.0.0", "127.0.0.1")
    command = ["env", "-u", "HOME", "-u", "PYTHONPATH", "bash", "-c", start]
    with serving(command, tmp_path, PATH=bare_path, PORT="0", MODEL=model_path) as running:
        assert running.get("/kaithhealth").status == 200
        answer = running.chat(context="Hello", max_tokens=4)
        assert answer.status == 200, running.said()
        assert answer.json()["content"]
        maps = _maps_of_children(running.process.pid)
    assert str(server / "llama_cpp" / "lib" / "libllama.so") in maps


def _maps_of_children(pid: int) -> str:
    """The files that a process and all that it started have mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text(encoding="utf-8").split():
            maps += _maps_of_children(int(child))
    return maps


def test_a_function_is_found_where_googles_buildpack_looks(tmp_path: Path, model_path: str) -> None:
    directory = tmp_path / "function"
    assemble(Plan("functions", this_architecture(), PYTHON), directory, os.environ)
    requirements = (directory / "requirements.txt").read_text(encoding="utf-8")
    assert re.fullmatch(r"functions-framework==[\d.]+\n", requirements)

    # As the buildpack starts it. The directory goes first, since this environment has an engine of its own.
    command = [
        "env",
        f"--chdir={directory}",
        sys.executable,
        "-m",
        "functions_framework",
        "--source=main.py",
        "--target=http",
    ]
    command += ["--source=main.py", "--target=http", "--host=127.0.0.1", "--port=0"]
    with serving(command, tmp_path, PYTHONPATH=str(directory), MODEL=model_path) as running:
        answer = running.chat(context="Hello", max_tokens=4)
        assert answer.status == 200, running.said()
        maps = _maps_of_children(running.process.pid)
    assert str(directory / "llama_cpp" / "lib" / "libllama.so") in maps


def test_gunicorns_heartbeat_goes_where_it_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # A read-only /dev/shm, as Leapcell's, cannot be had without root.
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["worker_tmp_dir"] is None


def test_the_guide_links_to_what_is_there() -> None:
    for page in ("platforms.md", "migrating.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([\w.-]+)\)", text):
            assert (ROOT / "docs" / link).exists(), f"{page} links to {link}"
