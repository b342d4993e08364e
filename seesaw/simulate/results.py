"""What a simulation found: throughput, phases, bytes, latencies. Plain data; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from seesaw.latency import Spread, Timing
from seesaw.scheduler.counters import StepCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the time, and what was done in it: prompt tokens of answers that began in it, and
    answer tokens drawn in it."""

    seconds: float
    input_tokens: int
    output_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Prompt and answer tokens."""
        return rate(self.input_tokens + self.output_tokens, self.seconds)

    @property
    def output_tokens_per_s(self) -> float:
        return rate(self.output_tokens, self.seconds)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "tokens_per_s": self.tokens_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
        }


def rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """Seconds are those of the simulated machine, from the begin to the last answer's end.

    `phase_s` parts them by what ran, in the mean over replicas: steps of phase "prefill" and
    "decode", "mixed" ones where one layout does both in a step, "reshard" for changes of layout,
    and "idle"; `transition_s` is such a mean too, while `num_transitions` are those of all replicas
    together. `bubble_s` is of each request: for how long stages stood still before the steps that
    had a row of it, summed over steps and stages, while others were under way. `tail` begins when
    no request waits and those left are fewer than half of the best batch; `steady` is all before.
    `busy_share` is of each rank's compute lane, changes of layout not counted. A change of layout
    counts once the step that it comes before is done.
    The names in `latency_s` are those of `seesaw.latency.samples`.
    """

    model: str
    machine: str
    prefill_layout: str
    decode_layout: str
    policy: str
    num_requests: int
    elapsed_s: float
    input_tokens: int
    output_tokens: int
    phase_s: Mapping[str, float]
    num_transitions: int
    transition_s: float
    kv_store_bytes: int
    kv_load_bytes: int
    kv_relay_bytes: int
    weight_bytes_moved: Mapping[str, int]
    mean_decode_batch: float
    num_preemptions: int
    num_lost: int
    """Times that a request was lost with a rank and ran again."""
    steady: Part
    tail: Part
    busy_share: Sequence[float]
    latency_s: Mapping[str, Spread]
    bubble_s: Spread
    scheduler: Mapping[str, int]
    """Counters of the schedulers, summed."""
    memory: Mapping[str, int]
    """Blocks of each replica: of the pools and of the tier."""
    faults: Mapping[str, Any]
    seed: int
    counts: StepCounts | None = None
    """What steps asked of the model, where the scenario says `tile`."""
    expert_loads: float = 0.0
    """How often an expert's weights were read, over all layers and replicas, as expected."""
    workload: str = ""
    arrivals: str = "closed"
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    """What is behind `latency_s`, and "bubble" behind `bubble_s`; not part of the JSON, as are
    `timings`, which are there with `Scenario.times_tokens`: of each request, in their order."""
    timings: Sequence[Timing] = field(default=(), repr=False)

    @property
    def layouts(self) -> str:
        """For people."""
        prefill, decode = self.prefill_layout, self.decode_layout
        return decode if prefill == decode else f"{prefill} -> {decode}"

    @property
    def requests_per_s(self) -> float:
        return rate(self.num_requests, self.elapsed_s)

    @property
    def tokens_per_s(self) -> float:
        """Prompt and answer tokens."""
        return rate(self.input_tokens + self.output_tokens, self.elapsed_s)

    @property
    def output_tokens_per_s(self) -> float:
        return rate(self.output_tokens, self.elapsed_s)

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "arrivals": self.arrivals,
            "num_requests": self.num_requests,
            "model": self.model,
            "machine": self.machine,
            "layouts": {"prefill": self.prefill_layout, "decode": self.decode_layout},
            "policy": self.policy,
            "memory": dict(self.memory),
            "elapsed_s": self.elapsed_s,
            "requests_per_s": self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "input_tokens_per_s": rate(self.input_tokens, self.elapsed_s),
            "output_tokens_per_s": self.output_tokens_per_s,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "phase_s": dict(self.phase_s),
            "num_transitions": self.num_transitions,
            "transition_s": self.transition_s,
            "kv_store_bytes": self.kv_store_bytes,
            "kv_load_bytes": self.kv_load_bytes,
            "kv_relay_bytes": self.kv_relay_bytes,
            "weight_bytes_moved": dict(self.weight_bytes_moved),
            "mean_decode_batch": self.mean_decode_batch,
            "num_preemptions": self.num_preemptions,
            "num_lost": self.num_lost,
            "expert_loads": self.expert_loads,
            "steady": self.steady.to_json(),
            "tail": self.tail.to_json(),
            "busy_share": list(self.busy_share),
            "latency_s": {name: asdict(spread) for name, spread in self.latency_s.items()},
            "bubble_s": asdict(self.bubble_s),
            "scheduler": dict(self.scheduler),
            "counts": None if self.counts is None else asdict(self.counts),
            "faults": dict(self.faults),
            "seed": self.seed,
        }
