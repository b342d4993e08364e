"""The machine that this process runs on, in the planner's terms: measured if `seesaw calibrate` was
run, else by the names of its GPUs, else a CPU by another one's figures.

Loads no torch: a plan needs none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from seesaw.engine.host import host_memory, usable_cores
from seesaw.errors import ConfigError
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import builtin_cpu, device_by_torch_name, local_path, read_machines

NVIDIA_SMI_S = 10
"""Seconds that it may take to name GPUs."""


class AtHand(NamedTuple):
    """Every way to use the machine, and in words where its figures come from."""

    machines: tuple[Machine, ...]
    source: str


def machine_at_hand() -> AtHand:
    """Raises ConfigError for GPUs of which nothing is known."""
    if local_path().is_file():
        return calibrated()
    names = gpu_names()
    return of_gpus(names) if names else of_cpu()


def calibrated() -> AtHand:
    """What `seesaw calibrate` wrote. Raises ConfigError where it cannot be read."""
    path = local_path()
    return AtHand(
        tuple(_with_free_memory(machine) for machine in read_machines(str(path))),
        f"measured by seesaw calibrate: {path}",
    )


def of_gpus(names: Sequence[str]) -> AtHand:
    """A machine with GPUs that torch calls `names`. Raises ConfigError where one is not known."""
    slugs: list[str] = []
    for name in names:
        device = device_by_torch_name(name)
        if device is None:
            raise ConfigError(
                f"this machine has a GPU {name!r}, of which no figures come with seesaw. Run "
                "`seesaw calibrate`, or give --machine with one that is like it."
            )
        slugs.append(device.slug)
    # In their order, since a rank is on the device of its number.
    (machine,) = read_machines("+".join(f"{len([*run])}x{slug}" for slug, run in groupby(slugs)))
    return AtHand(
        (replace(machine, host_memory_bytes=host_memory()[0]),),
        f"{machine.name} by name, with the figures that come with seesaw; not measured",
    )


def of_cpu() -> AtHand:
    cores = max(1, int(usable_cores()))
    return AtHand(
        builtin_cpu(cores, host_memory()[0]),
        f"{cores} cores with another CPU's figures; run `seesaw calibrate` to measure this one",
    )


def gpu_names() -> list[str]:
    """Of the GPUs that processes started now would see; empty where there is no driver or GPU.

    Raises ConfigError where the driver hangs.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"nvidia-smi did not answer within {NVIDIA_SMI_S} s. Give --machine, or see to the "
            "driver."
        ) from error
    if found.returncode != 0:
        return []
    lines = [line.split(",", 1) for line in found.stdout.splitlines() if "," in line]
    gpus = [(uuid.strip(), name.strip()) for uuid, name in lines]
    return _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _visible(gpus: Sequence[tuple[str, str]], chosen: str | None) -> list[str]:
    """Names of those that CUDA_VISIBLE_DEVICES names, by number or UUID; the first name that is
    none ends the list, as it does for CUDA."""
    if chosen is None:
        return [name for _, name in gpus]
    names: list[str] = []
    for part in map(str.strip, chosen.split(",")):
        found = [
            name
            for number, (uuid, name) in enumerate(gpus)
            if part == str(number) or (part.startswith("GPU-") and uuid.startswith(part))
        ]
        if not found:
            break
        names += found[:1]
    return names


def _with_free_memory(machine: Machine) -> Machine:
    """With what the host has free now: a plan made from all of it might not run."""
    return replace(machine, host_memory_bytes=min(machine.host_memory_bytes, host_memory()[0]))
