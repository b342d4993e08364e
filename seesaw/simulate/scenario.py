"""What is simulated: a model on a machine, how it is laid out and scheduled, and who asks for what.

Plain data, checked when it is made; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.pairs import check_pair
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.machine import Machine
from seesaw.plan.pair_times import PairTimes
from seesaw.simulate.faults import MOST_S, NO_FAULTS, Faults, is_time


class Arrival(NamedTuple):
    """A request: when it comes, and its tokens."""

    arrival_s: float
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCosts:
    """Seconds that the driver needs before a step can be handed over: for the step, and for each
    of its rows. A driver does one thing at a time; there is one for all replicas, as in this
    runtime, or one `per_replica`."""

    step_s: float = 0.0
    row_s: float = 0.0
    per_replica: bool = False


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`layouts` are (prefill, decode), equal where there is one; they take the first devices of
    `machine`. Of `config` all that is not about files and devices counts; `model` is a label.
    Prefixes are not shared: no two prompts are alike.

    `requests` by rising arrival; all at 0 is an offline job. With `answers_known` their lengths are
    what policies may know (max_tokens, no early end); else each may have `max_tokens` (None = as
    many as the longest answer) and stops before, at an end-of-sequence token. `max_model_len` of
    None is the longest request.

    `kv_element_bytes` of None keeps KV in `config.dtype`. `native`: ranks on CPU compute with
    seesaw's own kernels.

    `times` makes the scheduler decide anew while it runs, as where the layouts were chosen by a
    plan that predicts these.

    `num_blocks`, `prefill_blocks` and `tier_blocks` replace what the memory plan gives, and
    `transition_s` the seconds of every change of layout. `open_loop`: the scheduler has every
    request that has come, else no more than a batch job keeps in the engine. `times_tokens` notes
    when each token was known; with `tile`, rows in which matrix products are computed, the result
    has `StepCounts`. `debug` has the scheduler check its blocks after every step.
    """

    spec: ModelSpec
    machine: Machine
    layouts: tuple[ParallelLayout, ParallelLayout]
    config: EngineConfig
    requests: Sequence[Arrival | tuple[float, int, int]]
    answers_known: bool = True
    max_tokens: int | None = None
    host: HostCosts = field(default_factory=HostCosts)
    max_steps_in_flight: int = 2
    kv_element_bytes: int | None = None
    native: bool = True
    times: PairTimes | None = None
    transition_s: float | None = None
    num_blocks: int | None = None
    prefill_blocks: int | None = None
    tier_blocks: int | None = None
    faults: Faults = NO_FAULTS
    seed: int = 0
    open_loop: bool = False
    times_tokens: bool = False
    tile: int | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        prefill, decode = self.layouts
        check_pair(prefill, decode, self.spec)
        num_devices = len(self.machine.devices)
        if decode.num_ranks > num_devices:
            raise ConfigError(
                f"layout {decode} takes {decode.num_ranks} devices, {self.machine.name} has "
                f"{num_devices}. Give a smaller layout or a larger machine."
            )
        self._check_requests()
        self.faults.check(decode.num_ranks)
        seconds = {
            "transition_s": self.transition_s or 0.0,
            "host.step_s": self.host.step_s,
            "host.row_s": self.host.row_s,
        }
        for name, value in seconds.items():
            if not is_time(value):
                raise ConfigError(f"{name}={value:g}: expected seconds, 0 or more.")
        for name in ("num_blocks", "prefill_blocks", "tier_blocks", "max_tokens", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: expected 1 or more.")
        if self.answers_known and self.max_tokens is not None:
            raise ConfigError(
                f"max_tokens={self.max_tokens}: with answers_known=True each answer's own length "
                "is its max_tokens. Leave it out, or set answers_known=False."
            )

    def _check_requests(self) -> None:
        if not self.requests:
            raise ConfigError("requests: expected at least one.")
        before_s = 0.0
        for index, (arrival_s, prompt, answer) in enumerate(self.requests):
            if not before_s <= arrival_s <= MOST_S or prompt < 1 or answer < 1:
                raise ConfigError(
                    f"requests[{index}]: arrival {arrival_s} s, prompt {prompt}, answer {answer}: "
                    f"expected an arrival from {before_s} s to {MOST_S:g} s, and at least one "
                    "token of each."
                )
            before_s = arrival_s

    @property
    def longest_answer(self) -> int:
        return max(answer for _, _, answer in self.requests)

    @property
    def longest_request(self) -> int:
        """Tokens of prompt and answer, where a request is let go on as long as it may."""
        if self.answers_known:
            return max(prompt + answer for _, prompt, answer in self.requests)
        cap = self.max_tokens or self.longest_answer
        return max(prompt for _, prompt, _ in self.requests) + cap
