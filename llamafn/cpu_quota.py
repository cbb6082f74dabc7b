"""How many CPUs this process may use, which is often fewer than it can see.

More threads than quota is a disaster: the kernel stops all of them for the rest of each scheduling period,
and llama.cpp's threads wait for each other at every graph node.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# AWS gives one vCPU of credit per 1,769 MB, though two or more can be seen.
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
LAMBDA_MB_PER_CPU = 1769


def usable_cpus(environ: Mapping[str, str], root: str = "/") -> int:
    """Whole CPUs, at least 1: the least of Lambda's share, the cgroup's quota (v1 and v2) and the affinity mask.

    `root` stands for the file system's root in tests.
    """
    limits = [float(len(os.sched_getaffinity(0)))]
    memory_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if memory_mb.isdecimal():
        limits.append(int(memory_mb) / LAMBDA_MB_PER_CPU)
    limits.extend(_cgroup_quotas(root))
    return max(1, int(min(limits)))


def _cgroup_quotas(root: str) -> list[float]:
    """CPUs allowed by the process's own cgroup and each one above it; empty where nothing limits.

    Inside a container the hierarchy is usually mounted so that the root is our own group,
    while /proc/self/cgroup may still name the host's path: directories that are not there are passed over.
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    quotas = []
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mounts, read_quota = ["sys/fs/cgroup"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read_quota = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"], _quota_v1
        else:
            continue
        mount = next((mount for mount in mounts if os.path.isdir(os.path.join(root, mount))), mounts[0])
        level = group.strip("/")
        while True:
            quota = read_quota(root, os.path.join(mount, level))
            if quota is not None:
                quotas.append(quota)
            if not level:
                break
            level = os.path.dirname(level)
    return quotas


def _quota_v2(root: str, group: str) -> float | None:
    quota, _, period = _read(root, group, "cpu.max").partition(" ")
    return None if quota in ("", "max") else int(quota) / int(period)


def _quota_v1(root: str, group: str) -> float | None:
    quota = _read(root, group, "cpu.cfs_quota_us").strip()
    period = _read(root, group, "cpu.cfs_period_us").strip()
    # A quota of -1 means none.
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _read(*path: str) -> str:
    try:
        with open(os.path.join(*path)) as file:
            return file.read()
    except OSError:
        return ""
