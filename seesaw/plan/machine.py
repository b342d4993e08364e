"""What a machine is to the planner: its devices, the links between them, and its host.

Rates are bytes or floating-point operations per second of one device, times are seconds, sizes are
bytes. What a data sheet promises (`peak`) and what kernels reach (`rates`) are kept apart; only the
latter enters a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from seesaw.errors import ConfigError
from seesaw.plan.curve import Curve

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peak:
    """Of the data sheet. `matmul_flops` by dtype, dense, accumulated in float32."""

    matmul_flops: Mapping[str, float]
    memory_bytes_per_s: float
    host_bytes_per_s: float
    """Between host and device, in each direction."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rates:
    """What kernels reach on one device."""

    matmul_flops: Mapping[str, Curve]
    """By dtype: flop/s of a product of `rows` rows with a weight matrix, over rows."""
    row_matmul_flops: Mapping[str, Curve] = field(default_factory=dict)
    """The same for matrices stored `[in, out]` (o_proj, down_proj), where that differs."""
    memory_bytes_per_s: float
    """Of weights as they are read."""
    kv_bytes_per_s: float
    """Of keys and values as rows with one query read them."""
    attention_flops: float
    """Of rows with many queries: 4 * head_dim operations per (query head, query, key)."""
    attention_flops_by_share: Curve | None = None
    """The same where it was measured over (query, key) pairs per key: short prompts are slower."""
    elementwise_bytes_per_s: float
    """Of norms, rotations, activations, sampling: what is read and written."""
    load_bytes_per_s: float
    """Host to device, with pages locked where the device needs that."""
    store_bytes_per_s: float
    copy_bytes_per_s: float
    """Within the device's memory, counted once."""
    layer_overhead_s: float
    """Of one layer of one step, whatever its size: launches, calls."""
    step_overhead_s: float
    """Of one step on one rank, whatever its size: messages, inputs, sampling's calls."""
    row_overhead_keys: float = 0.0
    """Keys that a row with one query costs beyond its own: padding to blocks, calls per head."""
    step_row_overhead_s: float = 0.0
    """Of each row of a step, once: scheduler, inputs, sampling."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Device:
    """One device. `slug` names its file; `torch_names` are what torch calls it. Shared memory is
    the most one block may ask for; `memory_bytes` is what torch reports as total."""

    slug: str
    name: str
    kind: Kind
    memory_bytes: int
    peak: Peak | None = None
    rates: Rates
    torch_names: tuple[str, ...] = ()
    compute_capability: str | None = None
    num_sms: int | None = None
    shared_memory_bytes: int | None = None
    l2_bytes: int | None = None
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each figure comes from, by its name in the file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Links:
    """Between the devices of one machine.

    An all-reduce of `n` bytes over T ranks takes `measured[T]` where that is there, else
    `latency_s[T] + 2 * (T - 1) / T * n / bus_bytes_per_s`.
    """

    name: str
    bus_bytes_per_s: float
    latency_s: Curve
    """Of an all-reduce, over its ranks."""
    measured: Mapping[int, Curve] = field(default_factory=dict)
    """By ranks: seconds of an all-reduce over its bytes."""
    send_bytes_per_s: float
    """From one pipeline stage to the next."""
    send_latency_s: float
    peer_bytes_per_s: float
    """Into one device, from others, when weights change places."""

    def all_reduce_s(self, ranks: int, nbytes: float) -> float:
        """Seconds of one all-reduce of `nbytes` (the tensor's, on each rank)."""
        if ranks == 1 or nbytes <= 0:
            return 0.0
        if ranks in self.measured:
            curve = self.measured[ranks]
            largest = curve.xs[-1]
            # Beyond what was measured bytes cost what they cost at the end.
            return curve(nbytes) * max(1.0, nbytes / largest)
        wire = 2 * (ranks - 1) / ranks * nbytes
        return self.latency_s(ranks) + wire / self.bus_bytes_per_s

    def send_s(self, nbytes: float) -> float:
        return self.send_latency_s + nbytes / self.send_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Machine:
    """Devices that can be the ranks of a layout, in their order, with what joins them.

    `host_bytes_per_s` bounds what all devices together move to and from the host; None = their own
    links do.
    """

    slug: str
    name: str
    devices: tuple[Device, ...]
    links: Links
    host_memory_bytes: int
    host_bytes_per_s: float | None = None
    price_per_hour: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return self.devices[0].kind

    def first(self, count: int) -> Self:
        """The machine as if it had its first `count` devices only; raises ConfigError."""
        if not 1 <= count <= len(self.devices):
            raise ConfigError(
                f"num_devices={count}: {self.name} has {len(self.devices)} devices. "
                f"Give 1 to {len(self.devices)}."
            )
        return replace(self, devices=self.devices[:count])

    def part(self, start: int, count: int) -> Self:
        """`count` devices from `start` on, with their share of what all have of the host."""
        share = count / len(self.devices)
        host = self.host_bytes_per_s
        return replace(
            self,
            devices=self.devices[start : start + count],
            host_memory_bytes=int(share * self.host_memory_bytes),
            host_bytes_per_s=None if host is None else share * host,
        )
