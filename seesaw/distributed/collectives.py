"""What carries the words of ranks to each other. Settled by the driver, for all ranks alike."""

from __future__ import annotations

from typing import Literal

from seesaw import envs
from seesaw.config import Collectives
from seesaw.distributed import tcp
from seesaw.errors import ConfigError

Kind = Literal["shm", "tcp", "gloo", "nccl"]


def choose(wanted: Collectives, device_type: str) -> Kind:
    """For ranks of one host on devices of that type. Raises ConfigError."""
    if device_type == "cuda":
        if wanted != "auto":
            raise ConfigError(
                f"collectives={wanted!r}: ranks on GPUs talk over NCCL. Leave it out, or use "
                "device='cpu'."
            )
        return "nccl"
    if wanted == "gloo":
        return "gloo"
    if not _is_built():
        if wanted == "auto":
            return "gloo"
        raise ConfigError(
            f"collectives={wanted!r}: it is part of seesaw._cpu, which is not built here. Install "
            "seesaw where there is a C++ compiler, or use collectives='gloo'."
        )
    if wanted == "tcp":
        tcp.check_host()  # ranks have this process's environment
    return "shm" if wanted == "auto" else wanted


def links_name(kind: Kind, num_ranks: int) -> str:
    """What joins so many ranks, in words that are the same for the same kind of link: figures of
    one say nothing of another."""
    if kind == "tcp":
        hosts = dict.fromkeys(envs.comm_host(rank) for rank in range(num_ranks))
        return f"TCP over {', '.join(hosts)}"
    names = {"shm": "memory of the host", "gloo": "gloo on this host", "nccl": "between these GPUs"}
    return names[kind]


def _is_built() -> bool:
    try:
        import seesaw._cpu  # noqa: F401
    except ImportError:
        return False
    return True
