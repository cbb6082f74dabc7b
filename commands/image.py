"""Build a container image, for Lambda or for any server, with or without the model in it."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from commands.portable_engine import ARCHITECTURES, this_architecture
from commands.terminal import CommandFailed
from llamafn.errors import SettingsError
from llamafn.settings import Settings

STANDARD_LIBRARY_ONLY = True

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=("server", "lambda"), default="server", help="default: %(default)s")
    parser.add_argument("--model", metavar="URI", help="put this model into the image: hf://, s3:// or https://")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=this_architecture(), help="default: this machine's")
    parser.add_argument("--tag", default="llamafn", help="default: %(default)s")
    parser.add_argument("--print", action="store_true", help="only print the command")


def run(arguments: argparse.Namespace) -> int:
    engine = next(filter(shutil.which, ("docker", "podman", "buildah")), None)
    command = build_command(engine or "docker", arguments.target, arguments.model, arguments.arch, arguments.tag)
    print(shlex.join(command), flush=True)
    if arguments.print:
        return 0
    if engine is None:
        raise CommandFailed(
            "There is no docker, podman or buildah on PATH.", hint="The command above is for one of them."
        )
    return subprocess.call(command, cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"})


def build_command(engine: str, target: str, model: str | None, architecture: str, tag: str) -> list[str]:
    """The command line that makes the image.

    Raises:
        CommandFailed: the model's address cannot be fetched from inside the build.
    """
    command = [engine, "build", f"--target={target}", f"--tag={tag}", f"--platform={PLATFORMS[architecture]}"]
    if model is not None:
        try:
            Settings.from_env({"MODEL": model})
        except SettingsError as error:
            raise CommandFailed(f"--model {model!r}: expected hf://, s3:// or https://.") from error
        if model.partition("://")[0] not in ("hf", "s3", "https"):
            raise CommandFailed(
                f"--model {model!r} is on this machine, where the image's build does not see it.",
                hint="Make the image without a model, and mount the file, or copy it in: docs/platforms.md says how.",
            )
        command[2] = f"--target={target}-with-model"
        command.append(f"--build-arg=MODEL={model}")
    return [*command, "."]
