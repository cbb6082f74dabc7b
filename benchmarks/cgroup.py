"""A control group with one CPU and little memory, of version 1 or 2. Making one takes root.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 100_000


class ControlGroup:
    """`with ControlGroup(1, 512 << 20) as group:` and start what is to be in it with `group.enter` before its command.

    Raises:
        SystemExit: no right to make one, or the kernel has no such controllers.
    """

    def __init__(self, cpus: float, memory_bytes: int) -> None:
        name = f"llamafn-bench-{os.getpid()}"
        self._is_v2 = (ROOT / "cgroup.controllers").exists()
        quota = round(cpus * PERIOD_MICROSECONDS)
        if self._is_v2:
            self._memory = self._cpu = ROOT / name
            limits = {
                self._cpu / "cpu.max": f"{quota} {PERIOD_MICROSECONDS}",
                self._memory / "memory.max": f"{memory_bytes}",
                self._memory / "memory.swap.max": "0",
            }
        else:
            self._memory, self._cpu = ROOT / "memory" / name, ROOT / "cpu" / name
            limits = {
                self._cpu / "cpu.cfs_period_us": f"{PERIOD_MICROSECONDS}",
                self._cpu / "cpu.cfs_quota_us": f"{quota}",
                self._memory / "memory.limit_in_bytes": f"{memory_bytes}",
            }
        try:
            if self._is_v2:
                (ROOT / "cgroup.subtree_control").write_text("+cpu +memory")
            for directory in {self._cpu, self._memory}:
                directory.mkdir()
            for file, value in limits.items():
                file.write_text(value)
        except OSError as error:
            self._remove()
            raise SystemExit(
                f"No control group can be made here: {error}. It takes root, and the controllers cpu and memory."
            ) from error

    def __enter__(self) -> ControlGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    @property
    def enter(self) -> list[str]:
        """A command that puts itself into the group and becomes what follows it."""
        files = {str(directory / "cgroup.procs") for directory in (self._cpu, self._memory)}
        writes = " && ".join(f"echo $$ > {file}" for file in sorted(files))
        return ["sh", "-c", f'{writes} && exec "$@"', "sh"]

    @property
    def peak_bytes(self) -> int:
        """The most memory it has used, file pages included."""
        return int((self._memory / ("memory.peak" if self._is_v2 else "memory.max_usage_in_bytes")).read_text())

    @property
    def kills(self) -> int:
        """How many of its processes were killed because it had no memory left."""
        lines = (self._memory / ("memory.events" if self._is_v2 else "memory.oom_control")).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def _remove(self) -> None:
        for directory in {self._cpu, self._memory}:
            with contextlib.suppress(OSError):
                directory.rmdir()
