"""How commands say what they do: one line for each step, with how long it took."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llamafn.errors import LlamafnError

CLEAR_LINE = "\r\033[K"


class CommandFailed(LlamafnError):
    """A command could not do what was asked; the message says why, the hint what mends it."""


class ProcessFailed(CommandFailed):
    """A program ended with another status than 0. `tail` holds the last lines that it wrote."""

    def __init__(self, argv: Sequence[str], status: int, tail: Sequence[str]) -> None:
        self.tail = tuple(tail)
        ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__("\n".join([f"{' '.join(argv)} {ended}. Its last lines:", *self.tail]))


@contextmanager
def step(what: str) -> Iterator[Callable[[str], None]]:
    """Say `what` now, and the seconds it took once it is over.

    The function that is given shows a passing detail: on a terminal behind `what` on the same line, elsewhere on a line
    of its own (so there, call it rarely).
    """
    terminal = sys.stderr.isatty()

    def show(detail: str) -> None:
        if not terminal:
            print(f"  {detail}", file=sys.stderr, flush=True)
            return
        line = f"{what} ... {detail}".replace("\t", " ")[: shutil.get_terminal_size().columns - 1]
        print(f"{CLEAR_LINE}{line}", end="", file=sys.stderr, flush=True)

    elapsed = stopwatch()
    print(f"{what} ...", end="" if terminal else "\n", file=sys.stderr, flush=True)
    try:
        yield show
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f"{CLEAR_LINE if terminal else ''}{what}: {seconds(elapsed())}", file=sys.stderr, flush=True)


def stopwatch() -> Callable[[], float]:
    """Started now; seconds since then."""
    started = time.monotonic()
    return lambda: time.monotonic() - started


def seconds(elapsed: float) -> str:
    """`0.42 s`, `12 s` or `3 min 07 s`."""
    if elapsed < 10:
        return f"{elapsed:.2f} s"
    if elapsed < 100:
        return f"{elapsed:.0f} s"
    return f"{elapsed // 60:.0f} min {elapsed % 60:02.0f} s"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others, which are figures, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *figures in rows:
        cells = [first.ljust(widths[0])]
        cells += (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def follow(
    argv: Sequence[str | Path],
    parse: Callable[[str], None],
    *,
    environ: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> None:
    """Run a program, giving `parse` each line that it writes; all of them go into `log`.

    Raises:
        ProcessFailed: its status was not 0.
    """
    tail: deque[str] = deque(maxlen=20)
    with (
        open(log or os.devnull, "w", encoding="utf-8", buffering=1) as record,
        subprocess.Popen(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            record.write(line)
            tail.append(line.rstrip()[:300])
            parse(line)
    if process.returncode:
        raise ProcessFailed([str(part) for part in argv], process.returncode, tail)


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock on `path` among processes; say so if another holds it. The kernel lets go when a holder dies."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"Waiting for another ./build that is {what}"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
