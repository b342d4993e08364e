"""Which configuration a launch takes: a tuned one of this very device, else one of a device of the
same compute capability, else the kernel's default. Nothing is tried out at run time.

Folders are read once per process and kernel; a launch is one look into a dict.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton

from seesaw import envs
from seesaw.errors import ConfigError
from seesaw.kernels.config_files import SHIPPED, TunedConfig, read_all
from seesaw.kernels.kernel import Config, Kernel, Key, Target
from seesaw.kernels.target import target_of
from seesaw.log import get_logger

logger = get_logger(__name__)

Listener = Callable[[Kernel, Key], None]

_chosen: dict[tuple[str, torch.device, tuple[tuple[str, int | str], ...]], Config] = {}
_usable: dict[str, list[TunedConfig]] = {}
_forced: dict[str, Config] = {}
_listeners: list[Listener] = []


def config_for(kernel: Kernel, device: torch.device, **key: int | str) -> Config:
    """The configuration of `kernel` for `key` on `device`; the same for the same arguments."""
    if _listeners:
        for listen in _listeners:
            listen(kernel, key)
    if kernel.name in _forced:
        return _forced[kernel.name]
    known = (kernel.name, device, tuple(key.items()))
    config = _chosen.get(known)
    if config is None:
        config = _chosen[known] = _choose(kernel, device, key)
    return config


@contextlib.contextmanager
def forced(kernel: Kernel, config: Config) -> Iterator[None]:
    """Launches of `kernel` meanwhile take `config`, in all threads."""
    assert kernel.name not in _forced, f"{kernel.name} is forced already"
    _forced[kernel.name] = config
    try:
        yield
    finally:
        del _forced[kernel.name]


@contextlib.contextmanager
def listening(listen: Listener) -> Iterator[None]:
    """`listen` is told of each choice meanwhile, before it is made."""
    _listeners.append(listen)
    try:
        yield
    finally:
        _listeners.remove(listen)


def forget() -> None:
    """Read the folders again at the next launch, and warn again."""
    _chosen.clear()
    _usable.clear()
    _warn_of_missing.cache_clear()


def folders() -> tuple[Path, ...]:
    """Where tuned configurations are looked for, first found first taken."""
    return (envs.tuned_config_folder(), SHIPPED)


def triton_version() -> str:
    """ "major.minor": what a configuration is tuned with."""
    return ".".join(triton.__version__.split(".")[:2])


def _choose(kernel: Kernel, device: torch.device, key: Key) -> Config:
    target = target_of(device)
    default = kernel.default(key, target)
    if device.type != "cuda" or kernel.candidates is None:
        return default
    name = torch.cuda.get_device_name(device)
    tuned = pick(kernel, dict(key), name, target)
    if tuned is None:
        _warn_of_missing(name, target)
        return default
    return tuned.config


def pick(kernel: Kernel, key: Key, device_name: str, target: Target) -> TunedConfig | None:
    """The tuned configuration for `key` on a device; None where there is none that can be used."""
    alike = [one for one in _tuned(kernel) if dict(one.key) == dict(key)]
    own = [one for one in alike if one.device_name == device_name]
    family = [one for one in alike if one.capability == target.capability]
    return next(iter([*own, *family]), None)


def _tuned(kernel: Kernel) -> list[TunedConfig]:
    """All that can be used of `kernel`, in order of the folders; of others a warning tells."""
    if kernel.name not in _usable:
        _usable[kernel.name] = _read(kernel)
    return _usable[kernel.name]


def _read(kernel: Kernel) -> list[TunedConfig]:
    found: list[TunedConfig] = []
    for folder in folders():
        try:
            read = read_all(folder, kernel.name)
        except ConfigError as error:
            logger.warning("tuned %s in %s is not used: %s", kernel.name, folder, error)
            continue
        for one in read:
            problem = _problem(kernel, one)
            if problem is None:
                found.append(one)
            else:
                logger.warning(
                    "%s is not used: %s. Tune again: seesaw tune --op %s",
                    folder / kernel.name / one.file_name, problem, kernel.op,
                )  # fmt: skip
    return found


def _problem(kernel: Kernel, tuned: TunedConfig) -> str | None:
    """Why a configuration must not be launched. One that another Triton was given may ask for more
    shared memory than the device has, which only a failed launch would show."""
    expected = set(kernel.builds[0].constants) | set(kernel.builds[0].signature)
    arguments = set(kernel.function.arg_names) - expected
    if set(tuned.config.blocks) != arguments:
        return f"it has {sorted(tuned.config.blocks)}, the kernel takes {sorted(arguments)}"
    if tuned.triton != triton_version():
        return f"it was tuned with Triton {tuned.triton}, this is {triton_version()}"
    return None


@functools.cache
def _warn_of_missing(device_name: str, target: Target) -> None:
    """Once per process and device, of all kernels at once."""
    from seesaw.kernels.registry import kernels

    missing = {
        kernel.op
        for kernel in kernels().values()
        if kernel.candidates is not None
        and not any(
            device_name == one.device_name or target.capability == one.capability
            for one in _tuned(kernel)
        )
    }
    if missing:
        ops = " ".join(f"--op {op}" for op in sorted(missing))
        logger.warning(
            "no configurations were tuned for %s; kernels run with defaults. To tune them: "
            "seesaw tune %s", device_name, ops,
        )  # fmt: skip
