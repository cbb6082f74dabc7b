import subprocess
import sys

import pytest

from benchmarks.cgroup import ControlGroup

EAT = "import sys; held = bytearray(int(sys.argv[1]) << 20); print(len(held))"


@pytest.fixture
def group() -> ControlGroup:
    try:
        return ControlGroup(1, 64 << 20)
    except SystemExit as error:
        pytest.skip(str(error))


def test_what_enters_is_limited_and_counted(group: ControlGroup) -> None:
    with group:
        command = [*group.enter, sys.executable, "-c", EAT]
        modest = subprocess.run([*command, "8"], capture_output=True, text=True)
        assert modest.stdout.strip() == str(8 << 20), modest.stderr
        assert 8 << 20 < group.peak_bytes <= 64 << 20
        assert group.kills == 0
        assert subprocess.run([*command, "500"], capture_output=True).returncode == -9
        assert group.kills == 1
