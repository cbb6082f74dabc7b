"""`./build fetch [URI]`: put a model in its place ahead of time, for images and persistent volumes."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time

from llamafn.deadline import Deadline
from llamafn.errors import DeadlinePassed, FetchFailed, LlamafnError
from llamafn.fetch import ModelFile, open_model
from llamafn.fetch.gguf import check_whole_gguf
from llamafn.fetch.progress import Progress
from llamafn.settings import Settings

# So that an image's build can fetch a model without building this machine's .venv.
STANDARD_LIBRARY_ONLY = True

# Often enough to see on a terminal that it moves; seldom enough for a build's log.
BAR_SECONDS, LINE_SECONDS = 0.1, 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uri", nargs="?", help="the model, as in MODEL (which is used if this is left out); see docs/configuration.md"
    )


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    environ = dict(os.environ, MODEL_IN_MEMORY="0")
    if arguments.uri:
        environ["MODEL"] = arguments.uri
    try:
        settings = Settings.from_env(environ)
        model = open_model(settings, Deadline.never())
        try:
            show_until_kept(model)
            for path in model.paths:
                check_whole_gguf(path)  # one that was here before may be cut
            said = f"{settings.local_model_path if model.paths[0].startswith('/proc/') else model.paths[0]}: "
            said += f"{model.progress()}" + (f", sha256 {model.digest}" if model.digest else "")
        finally:
            model.close()
    except LlamafnError as error:
        print(f"error: {error.message}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        if isinstance(error, FetchFailed):
            print("Run it again: it goes on where it ended.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run it again: it goes on where it ended.", file=sys.stderr)
        return 130
    print(said)
    return 0


def show_until_kept(model: ModelFile) -> None:
    is_terminal = sys.stderr.isatty()
    next_line = time.monotonic() + LINE_SECONDS
    try:
        while True:
            try:
                model.wait_kept(Deadline.after(BAR_SECONDS))
                return
            except DeadlinePassed:
                progress = model.progress()
            if is_terminal:
                print(f"\r{bar(progress, shutil.get_terminal_size().columns)}", end="", file=sys.stderr, flush=True)
            elif time.monotonic() >= next_line:
                print(progress, file=sys.stderr, flush=True)
                next_line += LINE_SECONDS
    finally:
        if is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # back to the start of the line, and clear it


def bar(progress: Progress, columns: int) -> str:
    """One line of `columns` - 1 characters, so that the cursor stays on it."""
    said = f" {progress}"
    width = min(40, columns - len(said) - 3)
    if progress.total is None or width < 4:
        return said.strip()[: columns - 1].ljust(columns - 1)
    full = width * progress.done // progress.total
    return f"[{'#' * full}{'.' * (width - full)}]{said}".ljust(columns - 1)
