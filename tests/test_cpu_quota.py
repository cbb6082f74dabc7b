from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafn.cpu_quota import usable_cpus

VISIBLE = len(os.sched_getaffinity(0))


def tree(root: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(root)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, VISIBLE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, VISIBLE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        # The limit of a group above ours counts, too.
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1),
        # In a container the path is the host's, and the mount's root is our own group.
        ({"proc/self/cgroup": "0::/kubepods/pod1\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n1:memory:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            VISIBLE,
        ),
    ],
)
def test_the_quota_decides_not_the_cores_that_can_be_seen(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    assert usable_cpus({}, tree(tmp_path, files)) == cpus


@pytest.mark.parametrize(("megabytes", "cpus"), [("512", 1), ("1769", 1), ("3537", 1), ("10240", min(VISIBLE, 5))])
def test_lambda_gives_a_cpu_per_1769_megabytes(tmp_path: Path, megabytes: str, cpus: int) -> None:
    assert usable_cpus({"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": megabytes}, str(tmp_path)) == cpus
