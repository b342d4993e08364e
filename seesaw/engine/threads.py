"""Threads that compute on a CPU: how many each rank has, on which cores, and how a process is told.

The C++ pool and OpenMP's threads of torch must not both be awake: where seesaw's own kernels run,
torch has one thread, as its threads spin for a while after each operation on cores that ours need.
"""

from __future__ import annotations

import os
import threading

import torch

from seesaw.config import EngineConfig
from seesaw.engine.host import usable_cores
from seesaw.engine.messages import RankSetup
from seesaw.errors import ConfigError
from seesaw.sizes import parse_cores


def check_threads(config: EngineConfig, device: torch.device, num_ranks: int) -> None:
    """Raises ConfigError where `cpu_threads` and `cpu_cores` cannot be had by `num_ranks` ranks."""
    given = {name: getattr(config, name) for name in ("cpu_threads", "cpu_cores")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and device.type != "cpu":
        name, value = next(iter(given.items()))
        raise ConfigError(
            f"{name}={value!r}: the model runs on {device}. Leave it out, or use device='cpu'."
        )
    if config.cpu_cores is None:
        return
    cores = parse_cores(config.cpu_cores)
    usable = os.sched_getaffinity(0)
    if missing := sorted(set(cores) - usable):
        raise ConfigError(
            f"cpu_cores={config.cpu_cores!r}: this process may not run on "
            f"{', '.join(map(str, missing))}. It may on {', '.join(map(str, sorted(usable)))}."
        )
    each = config.cpu_threads or max(1, len(cores) // num_ranks)
    if len(cores) != each * num_ranks:
        ranks = "one device" if num_ranks == 1 else f"{num_ranks} devices"
        raise ConfigError(
            f"cpu_cores={config.cpu_cores!r}: got {len(cores)} cores, expected {each * num_ranks}: "
            f"{each} for the threads of each of {ranks}. Change it, or cpu_threads."
        )


def threads_of_rank(config: EngineConfig, num_ranks: int, native: bool) -> int:
    """As asked for, or a share of the cores that this process may use. `native`: own kernels run,
    not torch's, which may have been told its number of threads by the user."""
    if config.cpu_threads is not None:
        return config.cpu_threads
    if config.cpu_cores is not None:
        return len(parse_cores(config.cpu_cores)) // num_ranks
    if num_ranks == 1 and not native:
        return torch.get_num_threads()
    return max(1, int(usable_cores()) // num_ranks)


def use_threads(setup: RankSetup, *, own_process: bool) -> None:
    """Before anything is computed, in the thread that will run steps. `own_process`: no one else
    computes in this process; else torch stays as it was for its other threads."""
    native = setup.weights == "panels"
    pinned = setup.cores if setup.pinned and setup.cores is not None else []
    if native:
        from seesaw import _cpu

        _cpu.configure_threads(setup.num_threads, pinned)
    elif pinned:
        os.sched_setaffinity(0, pinned)  # of this thread, and of torch's, which it starts
    before = torch.get_num_threads()
    torch.set_num_threads(1 if native else setup.num_threads)
    if not own_process:
        # It is set for this thread, and for all that have not computed yet: those take what was set
        # last, whoever did.
        restore = threading.Thread(target=torch.set_num_threads, args=(before,))
        restore.start()
        restore.join()
