"""What steps cost on a part of a device while another lane has the rest: the contention model of
Nexus (arXiv 2507.06608), on the figures of a machine.

Compute is shared out, memory is not. So with fewer units computing slows down: nearly in proportion
up to a share R_sat, less beyond. Memory loses nothing until a share is too small to ask for all of
it (the knee that Bullet, arXiv 2504.19516, measured and Nexus lacks). And rows that decode read
their KV with the part of the bandwidth that the prompts of the other lane leave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import Range
from seesaw.plan.cost_model import ELEMENT_BYTES, MOST_COUNTS, CostModel
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Device, Machine, Rates
from seesaw.plan.traffic import TrafficCounter
from seesaw.plan.work import Work, WorkCounter

UNIT_SMS = 8
"""SMs of a unit: green contexts on Hopper have no smaller parts."""
MOST_CORE_UNITS = 16
"""Of a CPU: each split has threads of its own."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """What a share of a device's units reaches of what all of them do: in proportion up to `knee`,
    beyond it `slope` times as much for each more."""

    knee: float
    slope: float

    def __call__(self, share: float) -> float:
        return self._reached(share) / self._reached(1.0)

    def _reached(self, share: float) -> float:
        return min(share, self.knee) + self.slope * max(0.0, share - self.knee)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Of computing and of reading memory, with where the figures come from, in words."""

    compute: Saturation
    memory: Saturation
    source: str


GPU_SCALING = Scaling(
    # From 30 to 40% of the SMs saves a quarter of the time, from 70 to 80% a tenth (figure 5).
    Saturation(0.6, 0.75),
    # All of the bandwidth from 30 of 108 SMs on.
    Saturation(0.28, 0.0),
    "R_sat and lambda read off Nexus' figure 5 (L20), Bullet's knee (A100); not measured here",
)
CPU_KNEE_CORES = 55 / 40
"""Cores that read all that memory has, in the machine behind `cpu.json`: one reads 40e9 bytes/s,
two read 55e9."""


def scaling_of(device: Device, units: int) -> Scaling:
    """Of a device whose lanes share `units` units."""
    if device.kind == "cuda":
        return GPU_SCALING
    return Scaling(
        Saturation(1.0, 0.0),
        Saturation(min(1.0, CPU_KNEE_CORES / units), 0.0),
        "cores compute in proportion, memory as in another machine (cpu.json)",
    )


def sm_units(num_sms: int) -> int:
    """Of a GPU."""
    return max(1, num_sms // UNIT_SMS)


def core_units(num_cores: int) -> int:
    """Of a CPU: a core each, or whole cores where there are many."""
    return min(num_cores, MOST_CORE_UNITS)


class Beside(NamedTuple):
    """What the other lane runs meanwhile, and on how many units."""

    work: Work
    units: int


class LaneCosts:
    """Of one device, the first of `machine`, which has the whole model; its `units` equal parts are
    what lanes share. `kv_bytes` of an element of KV, if not as `dtype`."""

    def __init__(
        self,
        spec: ModelSpec,
        machine: Machine,
        dtype: str,
        units: int,
        *,
        kv_bytes: int | None = None,
    ) -> None:
        device = machine.devices[0]
        self.units = units
        self._counter = WorkCounter(spec)
        self._num_layers = spec.num_hidden_layers
        self.scaling = scaling_of(device, units)
        self._models = [
            CostModel(
                spec,
                replace(machine, devices=(_scaled(device, self.scaling, count / units),)),
                ParallelLayout(),
                dtype,
                kv_bytes=kv_bytes,
            )
            for count in range(1, units + 1)
        ]
        element = ELEMENT_BYTES[dtype]
        kv_columns = 2 * spec.num_key_value_heads * spec.head_dim
        self._key_bytes = self._num_layers * kv_columns * (kv_bytes or element)
        weight_bytes = TrafficCounter(spec, element).weight_bytes
        self._weight_bytes = lru_cache(MOST_COUNTS)(weight_bytes)

    def work(self, rows: Sequence[tuple[int, int, bool]]) -> Work:
        """Of rows: (tokens before it, its own, whether it draws)."""
        starts, counts, samples = zip(*rows, strict=True)
        return self._counter.count_columns(counts, starts, sum(samples))

    def expert_loads(self, work: Work) -> float:
        """How often an expert's weights are read, over all layers, as expected."""
        return self._models[-1].expert_loads(Range(0, self._num_layers), work)

    def seconds(self, work: Work, units: int, beside: Beside | None = None) -> float:
        """Of a step on `units` units, alone or beside another lane's."""
        time = self._models[units - 1].stage(0, work)
        if beside is None or not work.decode_keys:
            return time.total_s
        return time.total_s + time.kv_s * (1 / self._bandwidth_share(work, beside) - 1)

    def _bandwidth_share(self, work: Work, beside: Beside) -> float:
        """Of what the KV of `work` is read with: the paper's BW_d, by bytes that both want, in the
        time in which the other lane is in its attention and in the time in which it is not."""
        other = self._models[beside.units - 1].stage(0, beside.work)
        in_attention = (other.attention_s + other.kv_s) / other.total_s
        own = work.decode_keys * self._key_bytes
        keys = (beside.work.chunk_keys + beside.work.decode_keys) * self._key_bytes
        weights = self._weight_bytes(beside.work.num_tokens, beside.work.num_decodes)
        return in_attention * own / (own + keys) + (1 - in_attention) * own / (own + weights)


def _scaled(device: Device, scaling: Scaling, share: float) -> Device:
    rates: Rates = device.rates
    compute, memory = scaling.compute(share), scaling.memory(share)
    passes = memory if device.kind == "cuda" else compute  # of a core they are in its caches
    by_share = rates.attention_flops_by_share
    return replace(
        device,
        rates=replace(
            rates,
            matmul_flops={
                name: _times(curve, compute) for name, curve in rates.matmul_flops.items()
            },
            row_matmul_flops={
                name: _times(curve, compute) for name, curve in rates.row_matmul_flops.items()
            },
            attention_flops=compute * rates.attention_flops,
            attention_flops_by_share=None if by_share is None else _times(by_share, compute),
            memory_bytes_per_s=memory * rates.memory_bytes_per_s,
            kv_bytes_per_s=memory * rates.kv_bytes_per_s,
            elementwise_bytes_per_s=passes * rates.elementwise_bytes_per_s,
        ),
    )


def _times(curve: Curve, factor: float) -> Curve:
    return Curve(curve.xs, tuple(factor * y for y in curve.ys))
