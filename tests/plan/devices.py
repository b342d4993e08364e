"""Machines of round figures for tests of costs: nothing takes time but what a test asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seesaw.plan.curve import Curve
from seesaw.plan.machine import Device, Links, Machine, Rates

FAST: dict[str, Any] = {
    "matmul_flops": {"float16": Curve.flat(math.inf)},
    "memory_bytes_per_s": math.inf,
    "kv_bytes_per_s": math.inf,
    "attention_flops": math.inf,
    "elementwise_bytes_per_s": math.inf,
    "load_bytes_per_s": math.inf,
    "store_bytes_per_s": math.inf,
    "copy_bytes_per_s": math.inf,
    "layer_overhead_s": 0.0,
    "step_overhead_s": 0.0,
}


def make_device(*, flops: float = math.inf, **rates: Any) -> Device:
    """A device on which everything is free but what `rates` (fields of Rates) says; `flops` are
    those of matrix products of any size."""
    curves = {"matmul_flops": {"float16": Curve.flat(flops)}}
    return Device(
        slug="round", name="round figures", kind="cuda", memory_bytes=2**34, peak=None,
        rates=Rates(**{**FAST, **curves, **rates}),
    )  # fmt: skip


def make_links(
    *,
    bus: float = math.inf,
    latency_s: Curve | None = None,
    measured: Mapping[int, Curve] | None = None,
    send: float = math.inf,
    send_latency_s: float = 0.0,
    peer: float = math.inf,
) -> Links:
    return Links(
        name="round", bus_bytes_per_s=bus, send_bytes_per_s=send, send_latency_s=send_latency_s,
        latency_s=latency_s or Curve.flat(0.0), measured=measured or {},
        peer_bytes_per_s=peer,
    )  # fmt: skip


def make_machine(
    devices: Sequence[Device] | Device, count: int = 1, links: Links | None = None, **fields: Any
) -> Machine:
    """`count` devices alike, or those given."""
    all_of_it = (devices,) * count if isinstance(devices, Device) else tuple(devices)
    return Machine(
        slug="round", name="round figures", devices=all_of_it, links=links or make_links(),
        host_memory_bytes=2**36, **fields,
    )  # fmt: skip
