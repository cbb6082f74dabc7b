from __future__ import annotations

import subprocess
import sys

import pytest

from tests.servers import ROOT

# What `./build serve` does: a process that has been busy says so, and the server takes its place.
EXECUTE = """
import os, sys
os.environ["LLAMAFN_EXECUTED_AT"] = f"{os.getpid() + int(sys.argv[1])} 123.5"
script = "from llamafn.timeline import process_start; print(process_start())"
os.execv(sys.executable, [sys.executable, "-c", script])
"""


@pytest.mark.parametrize(("another", "is_believed"), [(0, True), (1, False)], ids=["its own", "another process's"])
def test_a_cold_start_begins_where_the_server_took_a_processs_place(another: int, is_believed: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(another)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert (float(done.stdout) == 123.5) is is_believed
