"""Environment variables, each read in one place.

Everything that is not listed here is configuration.
"""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path

from seesaw.errors import ConfigError

DESCRIPTIONS: dict[str, str] = {
    "SEESAW_LOGGING_LEVEL": "DEBUG, INFO, WARNING or ERROR (default INFO)",
    "SEESAW_DISABLE_OVERLAP": (
        "1 = finish each step before the next one is planned, for debugging (default 0)"
    ),
    "SEESAW_DEBUG_BLOCKS": (
        "1 = check the block accounting after every step and poison freed KV blocks (default 0)"
    ),
    "SEESAW_KERNELS": (
        "auto, torch or triton: torch = plain torch in place of all kernels; triton = Triton's "
        "kernels also on the CPU, for tests, with TRITON_INTERPRET=1 (default auto)"
    ),
    "SEESAW_CPU_ISA": (
        "generic, avx2, avx512 or avx512bf16: instruction set of the C++ kernels, which read this "
        "themselves (default: the fastest of this processor)"
    ),
    "SEESAW_COMM_HOST": (
        "address that a rank listens on for the others, with collectives=tcp; several joined by "
        "commas = one for each rank (default 127.0.0.1)"
    ),
    "SEESAW_RANK_COMMAND": (
        "what each rank's process is started with, {rank} being its number, such as "
        "'ip netns exec ns{rank}' or 'numactl --cpunodebind={rank}' (default nothing)"
    ),
    "SEESAW_RANK_TIMEOUT": (
        "seconds after which a rank that answers nothing is given up, 0 = never (default 6)"
    ),
    "SEESAW_STEP_TIMEOUT": (
        "seconds after which ranks that answer but finish no step are given up, 0 = never "
        "(default 600)"
    ),
    "SEESAW_DUMP_FOLDER": (
        "folder for the text that says what an engine was doing when it failed "
        "(default the system's folder for temporary files)"
    ),
    "SEESAW_CACHE_ROOT": (
        "folder for what seesaw measured of this machine "
        "(default $XDG_CACHE_HOME/seesaw, or ~/.cache/seesaw)"
    ),
    "SEESAW_TUNED_CONFIG_FOLDER": (
        "folder that kernels' configurations are looked for in, before those that come with "
        "seesaw, and that `seesaw tune` writes to (default tuned in $SEESAW_CACHE_ROOT)"
    ),
}


def _flag(name: str) -> bool:
    value = os.environ.get(name, "0")
    if value not in ("0", "1"):
        raise ConfigError(f"{name}={value!r}: expected 0 or 1. Unset it or set it to one of these.")
    return value == "1"


def logging_level() -> str:
    level = os.environ.get("SEESAW_LOGGING_LEVEL", "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(
            f"SEESAW_LOGGING_LEVEL={level!r}: expected DEBUG, INFO, WARNING or ERROR."
        )
    return level


def debugging() -> bool:
    """Whether tracebacks are wanted; raises nothing, as it is asked while an error is handled."""
    return os.environ.get("SEESAW_LOGGING_LEVEL", "").upper() == "DEBUG"


def disable_overlap() -> bool:
    return _flag("SEESAW_DISABLE_OVERLAP")


def debug_blocks() -> bool:
    return _flag("SEESAW_DEBUG_BLOCKS")


def kernels() -> str:
    value = os.environ.get("SEESAW_KERNELS", "auto")
    if value not in ("auto", "torch", "triton"):
        raise ConfigError(
            f"SEESAW_KERNELS={value!r}: expected auto, torch or triton. Unset it or set it to one "
            "of these."
        )
    return value


def _seconds(name: str, default: float) -> float:
    given = os.environ.get(name, "")
    try:
        value = float(given or default)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name}={given!r}: expected seconds from 0 (0 = never).")
    return value


def rank_timeout_s() -> float:
    """0 = ranks are not asked. The default is far beyond what a busy machine makes a thread wait
    that only answers (tenths of a second, with ten processes to a core), and with the end of all
    ranks within the 10 seconds in which a failure is to be told."""
    return _seconds("SEESAW_RANK_TIMEOUT", 6.0)


def step_timeout_s() -> float:
    """0 = never. The default is what ranks wait for each other at most."""
    return _seconds("SEESAW_STEP_TIMEOUT", 600.0)


def dump_folder() -> str | None:
    """None = where temporary files are."""
    return os.environ.get("SEESAW_DUMP_FOLDER") or None


def comm_host(rank: int) -> str:
    """Of a rank; ranks are counted over all replicas. Raises ConfigError where it has none."""
    given = os.environ.get("SEESAW_COMM_HOST") or "127.0.0.1"
    hosts = [host.strip() for host in given.split(",")]
    if len(hosts) > 1 and rank >= len(hosts):
        raise ConfigError(
            f"SEESAW_COMM_HOST={given}: {len(hosts)} addresses, and there is a rank {rank}. Give "
            "one for all, or one for each rank."
        )
    return hosts[rank] if len(hosts) > 1 else hosts[0]


def rank_command(rank: int) -> list[str]:
    """What the process of a rank is started with; empty for nothing. Ranks are counted over all
    replicas. Raises ConfigError."""
    given = os.environ.get("SEESAW_RANK_COMMAND", "")
    try:
        return [word.replace("{rank}", str(rank)) for word in shlex.split(given)]
    except ValueError as error:
        raise ConfigError(
            f"SEESAW_RANK_COMMAND={given!r}: cannot be read ({error}). Expected a command as in a "
            "shell, such as 'ip netns exec ns{rank}'."
        ) from error


def cache_root() -> Path:
    """Need not exist. Raises ConfigError unless the folder is given as an absolute path."""
    given = os.environ.get("SEESAW_CACHE_ROOT")
    if given:
        path = Path(given).expanduser()
        if not path.is_absolute():
            raise ConfigError(f"SEESAW_CACHE_ROOT={given!r}: expected an absolute path.")
        return path
    # The XDG base directory specification: a relative path in its variable is to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "seesaw"


def tuned_config_folder() -> Path:
    """Need not exist. Raises ConfigError as `cache_root`."""
    given = os.environ.get("SEESAW_TUNED_CONFIG_FOLDER")
    return Path(given).expanduser() if given else cache_root() / "tuned"
