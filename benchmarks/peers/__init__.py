"""What we are measured against, each a program of its own that the benchmarks start."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.cache import cache_directory

_REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def python() -> Path:
    """The Python of an environment that has the peers' own requirements, made when it is first asked for.

    llama-cpp-python itself is seen in this environment's directory: the same build for everybody, built once.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:8]
    environment = cache_directory() / f"peers-{version}-{digest}"
    interpreter = environment / "bin" / "python"
    ours = Path(sysconfig.get_path("purelib"))
    path_file = environment / "lib" / f"python{version}" / "site-packages" / "llamafn-environment.pth"
    if not path_file.exists():
        print(f"Making {environment} for the peers …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "--quiet", "-r", str(_REQUIREMENTS)], check=True)
    if not path_file.exists() or path_file.read_text() != f"{ours}\n":
        unfinished = path_file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(f"{ours}\n")
        os.replace(unfinished, path_file)
    return interpreter
