"""Which ways to use a machine there are: with how many of its devices, in which dtypes."""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.errors import ConfigError
from seesaw.plan.cost_model import ELEMENT_BYTES
from seesaw.plan.machine import Machine


def usable(machines: Sequence[Machine], num_devices: int | None) -> list[Machine]:
    """The ways of `machines` with so many devices. Raises ConfigError."""
    if num_devices is None:
        return list(machines)
    exact = [one for one in machines if len(one.devices) == num_devices]
    if exact:
        return exact
    largest = max(machines, key=lambda one: len(one.devices))
    if largest.kind == "cpu":
        counts = ", ".join(sorted({str(len(one.devices)) for one in machines}))
        raise ConfigError(
            f"num_devices={num_devices}: {largest.name} is known with {counts} ranks, since how "
            "fast a rank is depends on how many there are. Give one of these, or run `seesaw "
            "calibrate`."
        )
    return [largest.first(num_devices)]


def check_dtype(machine: Machine, dtype: str) -> None:
    """Raises ConfigError where not all devices compute in `dtype`, as far as is known."""
    known = known_dtypes(machine)
    if dtype not in known:
        other = "float16" if "float16" in known else (*known, dtype)[0]
        raise ConfigError(
            f"dtype={dtype}: {machine.name} is known to compute in {', '.join(known) or 'none'}. "
            f"Use --dtype {other}."
        )


def known_dtypes(machine: Machine) -> tuple[str, ...]:
    """What all devices compute in, at rates that are known."""
    return tuple(
        dtype
        for dtype in ELEMENT_BYTES
        if all(
            dtype in device.dtypes and dtype in device.rates.matmul_flops
            for device in machine.devices
        )
    )
