"""Read a system prompt once, and keep the state after it to be shipped with the function."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", type=Path, required=True, metavar="FILE", help="the system prompt, UTF-8")
    parser.add_argument("--model", metavar="URI", help="default MODEL; must be the very file that will be deployed")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default SNAPSHOT_DIR, or beside the model")


def run(arguments: argparse.Namespace) -> int:
    import model_loader
    from commands.terminal import CommandFailed, step
    from llamafn.deadline import Deadline
    from llamafn.settings import Settings

    environ = dict(os.environ)
    if arguments.model:
        environ["MODEL"] = arguments.model
    if arguments.output:
        environ["SNAPSHOT_DIR"] = str(arguments.output)
    settings = Settings.from_env(environ)
    try:
        system = arguments.system.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"--system {arguments.system}: {error}.") from error
    with step("Loading the model"):
        engine = model_loader.get_model(settings, Deadline.never())
    with step("Reading the system prompt"):
        prefix = engine.read(system, Deadline.never())
    path = engine.snapshot_of(prefix)
    if path is None:
        raise CommandFailed(
            f"No snapshot was kept of {len(prefix)} tokens.",
            hint="A prompt of a few tokens is read sooner than a file; else, can the directory be written to?",
        )
    if settings.snapshot_dir is not None:
        try:
            path = _put_into(settings.snapshot_dir, path)
        except OSError as error:
            raise CommandFailed(f"The snapshot cannot be put into {settings.snapshot_dir}: {error}.") from error
    print(f"{path}: {len(prefix)} tokens, {os.path.getsize(path) / 1e6:.1f} MB, for N_CTX={settings.n_ctx}")
    print(
        "It is found in SNAPSHOT_DIR, beside the model, and in snapshots/, which ./build zip, package and image take "
        "along;\nby the same model, N_CTX, PARALLEL and release of llama.cpp."
    )
    return 0


def _put_into(directory: str, path: str) -> str:
    """The snapshot's path there: it may have been known already, and lie beside the model."""
    wanted = os.path.join(directory, os.path.basename(path))
    if not os.path.exists(wanted):
        os.makedirs(directory, exist_ok=True)
        unfinished = f"{wanted}.{os.getpid()}"
        shutil.copyfile(path, unfinished)
        os.replace(unfinished, wanted)
    return wanted
