"""All that runs, and nothing else, in one directory: our code, the packages it imports, the engine for every CPU.

An allow-list decides. What lies in such a directory needs no installation and no write access; its own path is the
only one it needs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from commands.kept_build import built_once, cache_root, run_logged
from commands.portable_engine import ARCHITECTURES, Recipe, portable_engine
from commands.terminal import CommandFailed, step

ROOT = Path(__file__).resolve().parent.parent

OUR_CODE = ("handler.py", "model_loader.py", "llamafn")
# What may lie in llamafn/: code, data that is read at run time, and one script without a suffix.
OUR_SUFFIXES = (".py", ".html", ".json", "")

# markupsafe is what jinja2 needs. Its C accelerator, one for each Python and processor, is left out: it speeds up
# escaping, and we render no HTML.
ALWAYS = ("jinja2", "markupsafe")
# The descriptions of 400 other services are 95 % of botocore.
BOTOCORE_DATA = re.compile(r"botocore/data/([^/]+\.json|(s3|sts|sso|sso-oidc)/.*)")


class Purpose(NamedTuple):
    """A kind of platform: what has to lie in the directory beside our code and the engine."""

    packages: tuple[str, ...]
    files: tuple[str, ...] = ()  # of this checkout
    written: Mapping[str, str] = {}  # file name to text


PURPOSES = {
    "lambda": Purpose(ALWAYS),
    # certifi is for images without CA certificates; Lambda's have them.
    "server": Purpose(
        (*ALWAYS, "certifi", "gunicorn", "packaging"),
        ("gunicorn.conf.py",),
        # Google's buildpack takes a directory with a requirements.txt for Python's, and starts what Procfile says.
        {
            ".python-version": "{python}\n",
            "requirements.txt": "# Nothing: all that runs lies here.\n",
            "Procfile": "web: HOST=0.0.0.0 python -m gunicorn handler:app\n",
        },
    ),
    # The buildpack installs requirements.txt, and would install a functions-framework of its own choice without.
    "functions": Purpose(
        (*ALWAYS, "certifi"),
        written={
            ".python-version": "{python}\n",
            "main.py": '"""Where Google\'s buildpack looks for the function."""\n\nfrom handler import http as http\n',
            "requirements.txt": "{functions-framework}\n",
        },
    ),
}

# Prompt snapshots that are shipped: those that `./build snapshot --output snapshots` has put there.
SNAPSHOTS = ROOT / "snapshots"


class Plan(NamedTuple):
    """What to assemble."""

    purpose: str
    architecture: str
    python: str  # 3.13
    baseline: bool = False
    with_boto3: bool = False  # for credentials that are not in the environment; Lambda's Python brings it


def assemble(plan: Plan, directory: Path, environ: Mapping[str, str]) -> None:
    """Fill `directory`, which must be empty or absent.

    Raises:
        CommandFailed: the directory holds something, or a part could not be had.
    """
    if directory.exists() and any(directory.iterdir()):
        raise CommandFailed(f"{directory} is not empty.", hint="Remove it, or name another directory.")
    purpose = PURPOSES[plan.purpose]
    names = [*purpose.packages, *(["boto3"] if plan.with_boto3 else [])]
    pinned = pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    # The engine first: what takes long, and can fail, is its build.
    engine = portable_engine(Recipe.of(plan.architecture, baseline=plan.baseline), environ)
    packages = _packages([pinned[name] for name in names], plan, environ)

    for source, name in (*_our_files(purpose), *_files_in(engine), *_needed_of(packages)):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if os.access(source, os.X_OK) and not name.endswith(".py") else 0o644)
    for name, text in purpose.written.items():
        (directory / name).write_text(text.format_map({**pinned, "python": plan.python}), encoding="utf-8")
    compile_bytecode(directory, plan.python, environ)


def pins(requirements: str) -> dict[str, str]:
    """requirements.txt's `name==version`, by name."""
    return {line.partition("==")[0]: line for line in re.findall(r"^[\w-]+==\S+", requirements, re.MULTILINE)}


def _our_files(purpose: Purpose) -> Iterator[tuple[Path, str]]:
    for snapshot in sorted(SNAPSHOTS.glob("*.snapshot")):
        yield snapshot, f"snapshots/{snapshot.name}"
    for top in (*OUR_CODE, *purpose.files):
        path = ROOT / top
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.is_dir() or "__pycache__" in file.parts:
                continue
            if file.suffix not in OUR_SUFFIXES:
                raise CommandFailed(
                    f"{file.relative_to(ROOT)} is neither code nor data that is known to be needed at run time.",
                    hint="Move it out of llamafn/, or add its suffix to OUR_SUFFIXES in commands/assembly.py.",
                )
            yield file, str(file.relative_to(ROOT))


def _files_in(directory: Path) -> Iterator[tuple[Path, str]]:
    for file in sorted(directory.rglob("*")):
        if file.is_file():
            yield file, str(file.relative_to(directory))


def _needed_of(packages: Path) -> Iterator[tuple[Path, str]]:
    for file, name in _files_in(packages):
        if (
            name.endswith(".py")
            or re.fullmatch(r"[^/]+\.dist-info/(licenses/)?(LICENSE|NOTICE)[^/]*", name)
            or BOTOCORE_DATA.fullmatch(name)
            or name in ("botocore/cacert.pem", "certifi/cacert.pem")
        ):
            yield file, name


def _packages(requirements: Sequence[str], plan: Plan, environ: Mapping[str, str]) -> Path:
    """The packages installed into a directory, from the cache or from pip's index."""
    name = hashlib.sha256(repr((requirements, plan.architecture, plan.python)).encode()).hexdigest()[:16]

    def build(directory: Path, log: Path) -> Path:
        with step(f"Fetching {', '.join(requirements)}"):
            python = Path(sys.executable)
            failure = "the packages could not be fetched"
            if importlib.util.find_spec("pip") is None:
                run_logged([python, "-m", "venv", directory / "venv"], environ, log, failure=failure)
                python = directory / "venv" / "bin" / "python"
            target = [f"--target={directory / 'finished'}", "--no-compile", "--only-binary=:all:"]
            machine = ARCHITECTURES[plan.architecture].machine
            platform = [f"--platform=manylinux2014_{machine}", f"--python-version={plan.python}"]
            pip = (python, "-m", "pip", "install", "--disable-pip-version-check")
            run_logged([*pip, *target, *platform, *requirements], environ, log, failure=failure)
        return directory / "finished"

    return built_once(cache_root(environ) / "packages", name, build)


def compile_bytecode(directory: Path, python: str, environ: Mapping[str, str]) -> None:
    """Put that Python's bytecode beside each source; say so if no such Python is to be found on this machine."""
    interpreter = find_python(python, environ)
    if interpreter is None:
        print(
            f"There is no working python{python} on this machine, so the bytecode is left out. A cold start then\n"
            "compiles what it imports each time, 0.15 s of a fast CPU. "
            f"Install python{python}, on PATH, by pyenv or by uv.",
            file=sys.stderr,
        )
        return
    # Unchecked: the runtime neither reads nor stats the source. No absolute path, no hash seed, one process: the same
    # source always gives the same bytes.
    options = ("-q", f"-s{directory}", "--invalidation-mode=unchecked-hash")
    done = subprocess.run(
        [interpreter, "-m", "compileall", *options, directory],
        env={**environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CommandFailed(f"python{python} cannot compile a file that is to be deployed:\n{done.stdout}{done.stderr}")


def find_python(version: str, environ: Mapping[str, str]) -> str | None:
    """A Python of `version` (3.13) that runs: this one, on PATH, pyenv's or uv's."""
    home = Path(environ.get("HOME") or "/nonexistent")
    candidates = [sys.executable, shutil.which(f"python{version}", path=environ.get("PATH"))]
    for installed in (
        Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions",
        Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "uv" / "python",
    ):
        candidates += map(str, sorted(installed.glob(f"*{version}*/bin/python{version}")))
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        # Run it: pyenv puts programs on PATH that only say that they are not there.
        done = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None
