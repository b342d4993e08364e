"""How much of the machine this process may use: cores and memory, its container's limits included.

Limits of control groups are read from the kernel's files, of this process's group and of all above
it; where there are none, the machine's own figures count.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from seesaw.errors import ConfigError
from seesaw.plan.device_memory import Space

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")


def cpu_backend() -> str:
    """What computes on CPUs here, in words: the kernels, or plain torch and why, or nothing where
    an environment variable is wrong."""
    from seesaw.ops.native import why_plain_torch  # torch, which this file does without

    try:
        why = why_plain_torch()
    except ConfigError as error:  # whoever looks for that is shown it
        return f"none: {error}"
    return "kernels" if why is None else f"plain torch: {why}"


def has_kernels(device: torch.device) -> bool:
    """Whether seesaw's own kernels compute on `device`: in C++ on CPUs, Triton's on GPUs."""
    from seesaw.ops.native import native
    from seesaw.ops.triton_backend import runs_on

    if device.type == "cpu":
        return native() is not None
    return runs_on(device)


def return_free_memory() -> None:
    """Have the C library hand back what was freed: weights of an engine that has ended would else
    stay with the program that embeds it, in the heaps of threads that are gone. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def host_memory() -> tuple[int, int]:
    """(free, total) bytes that this process may use: the machine's, or its container's if less."""
    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    for limit, used in _memory_limits():
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return free, total


def device_space(device: torch.device, num_ranks: int) -> Space:
    """What each of `num_ranks` devices from the first on has, and the host. `device` is the first.

    Devices on CPU have no memory but the host's.
    """
    host_free, host_total = host_memory()
    if device.type != "cuda":
        return Space("cpu", host_free, host_total, host_free, host_total)
    import torch

    free, total = torch.cuda.mem_get_info(device)
    for index in range(1, num_ranks):
        # Asking another GPU what is free would put a context of this process there.
        other = torch.cuda.get_device_properties(index).total_memory
        free, total = min(free, other), min(total, other)
    return Space("cuda", free, total, host_free, host_total)


def usable_cores() -> float:
    """Cores that this process may use: its affinity mask, or its container's quota if less."""
    cores = float(len(os.sched_getaffinity(0)))
    groups = control_groups(CGROUPS, "cpu")
    quotas = [quota for group in groups if (quota := _cpu_quota(group)) is not None]
    return min([cores, *quotas])


def control_groups(root: Path, controller: str) -> list[Path]:
    """Folders below `root` of this process's control group and those above it, as far as they are
    visible. `controller` says which hierarchy counts in version 1; version 2 has one for all.
    """
    groups = [root]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            folder = root / path.lstrip("/")
            groups += [folder, *(above for above in folder.parents if root in above.parents)]
    return groups


def _memory_limits() -> list[tuple[int, int]]:
    """(limit, used) bytes of each control group above this process that has a limit."""
    found = []
    for root, names in (
        (CGROUPS, ("memory.max", "memory.current", "inactive_file")),
        (
            CGROUPS / "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ):
        for group in control_groups(root, "memory"):
            try:
                limit = (group / names[0]).read_text().strip()
                if not limit.isdigit():
                    continue
                used = int((group / names[1]).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").open())
                # Page cache that can be dropped at once is counted as used by the kernel.
                found.append((int(limit), used - int(stat.get(names[2], 0))))
            except (OSError, ValueError):
                continue
    return found


def _cpu_quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
