"""What takes minutes to build: built once, kept outside the checkout, never built again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from commands.terminal import CommandFailed, ProcessFailed, follow, lock

# What a failed build's output says, and what mends it.
CAUSES = (
    (
        r"No space left on device|Disk quota exceeded",
        "The disk is full: the build needs 1 GB in the temporary directory (TMPDIR names another one).",
    ),
    (
        r"Killed signal terminated program|internal compiler error: Killed|signal 9|unable to spawn|out of memory",
        "The compiler ran out of memory: CMAKE_BUILD_PARALLEL_LEVEL=1 needs the least, about 1 GB.",
    ),
    (
        r"No CMAKE_C(XX)?_COMPILER could be found|is not able to compile a simple test program",
        "There is no working C++ compiler: install g++ or clang (Debian, Ubuntu: apt install g++).",
    ),
    (
        r"No matching distribution found|Temporary failure in name resolution|Connection refused|Read timed out",
        "pip could not fetch a package: check the network, and pip's own configuration (pip config list).",
    ),
)


def cache_root(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamafn"


def built_once(cache: Path, name: str, build: Callable[[Path, Path], Path]) -> Path:
    """`cache`/`name`, built unless it is there. `name` has to say everything that the build depends on.

    `build` is given an empty directory to work in and the path for its log, which stays only if it fails; it returns
    what is to be kept, inside that directory. Of several processes one builds, and the others wait.
    """
    kept = cache / name
    if kept.exists():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache / f"{name}.lock", f"making {name}"):
        if kept.exists():
            return kept
        building = cache / f"{name}.building"
        shutil.rmtree(building, ignore_errors=True)  # what a build that was killed left behind
        building.mkdir()
        log = cache / f"{name}.log"
        try:
            # Renamed at the end, so that what is in the cache is always whole.
            os.replace(build(building, log), kept)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        log.unlink(missing_ok=True)
    return kept


def run_logged(
    argv: Sequence[str | Path],
    environ: Mapping[str, str],
    log: Path,
    parse: Callable[[str], None] = lambda line: None,
    *,
    failure: str,
) -> None:
    """Run a step of a build.

    Raises:
        CommandFailed: `failure`, the end of its log, and what mends it if that can be told.
    """
    try:
        follow(argv, parse, environ=environ, log=log)
    except ProcessFailed as error:
        tail = "\n".join(f"  {line}" for line in error.tail)
        hint = likely_cause(log.read_text(encoding="utf-8", errors="replace"))
        raise CommandFailed(f"{failure}. The end of {log}:\n{tail}", hint=hint) from error


def likely_cause(output: str) -> str | None:
    """What the user can do about a failed build, if its output tells."""
    return next((advice for pattern, advice in CAUSES if re.search(pattern, output, re.IGNORECASE)), None)
