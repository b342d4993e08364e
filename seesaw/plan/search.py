"""Which layouts do a job fastest: every layout and every pair of layouts of a machine, estimated.

Owns the candidates, their order and what is said of them. What a candidate takes is `estimate`'s
business, what it needs `memory`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from seesaw.config import EngineConfig, auto_policy
from seesaw.errors import ConfigError, DoesNotFit
from seesaw.families.spec import ModelSpec
from seesaw.layout.pairs import layouts_for
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.cost_model import ELEMENT_BYTES
from seesaw.plan.demand import Demand
from seesaw.plan.device_memory import longest_wanted
from seesaw.plan.estimate import Estimate, Estimator, name_of
from seesaw.plan.machine import Kind, Machine
from seesaw.plan.memory import MemoryPlan, Space, plan_memory
from seesaw.plan.pair_times import PairTimes, pair_times
from seesaw.plan.transition import Moved, faster_source, missing_bytes, planned_bytes
from seesaw.plan.ways import check_dtype, usable
from seesaw.plan.weight_bytes import dtype_of
from seesaw.plan.workload import Workload
from seesaw.sizes import format_bytes

KV_BYTES: Mapping[str, int] = {**ELEMENT_BYTES, "fp8": 1}
"""Of an element."""

MOST_DRAWN = 2000
"""Requests of a workload whose lengths are drawn; more would not change their moments."""

CHUNKS: Mapping[Kind, Sequence[int]] = {
    "cuda": (512, 1024, 2048, 4096, 8192),
    "cpu": (128, 256, 512, 1024, 2048, 4096),
}
"""Values of `max_num_batched_tokens` that are tried. A core is busy with fewer rows than a GPU, and
what was calibrated says how many; figures of GPUs do not reach that far down."""

UNCERTAINTY = 0.03
"""A split must gain more than this over the best static layout to be recommended."""

MOST_BALANCED = 3
"""Candidates with stages, of the static ones and of the splits, that are tried with other numbers
of layers in these too."""

EQUAL = 1.01
"""Times that differ by less are not told apart."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate that cannot run. `missing_bytes`: of the device or host that lacks
    most."""

    prefill: ParallelLayout
    decode: ParallelLayout
    reason: str
    missing_bytes: int

    def __str__(self) -> str:
        return name_of(self.prefill, self.decode)


@dataclass(frozen=True, slots=True)
class Plan:
    """`candidates`, fastest first, static and split; `recommended` is one of them."""

    recommended: Estimate
    candidates: Sequence[Estimate]
    refused: Sequence[Refused]
    verdict: str
    times: PairTimes | None = None
    """Of a recommended pair, should lengths turn out to be others."""

    def best(self, *, split: bool) -> Estimate | None:
        return next((one for one in self.candidates if one.is_split == split), None)


def search(
    spec: ModelSpec,
    machines: Sequence[Machine],
    workload: Workload,
    num_requests: int,
    config: EngineConfig,
    *,
    kv_dtype: str | None = None,
    uses_tier: bool | None = None,
    space: Space | None = None,
    native: bool = True,
    splits_layers: bool = False,
) -> Plan:
    """Rank every layout and pair of layouts of every way to use a machine.

    `kv_dtype` where KV is stored in another one than the model's. Where the config
    does not say `max_num_batched_tokens`, CHUNKS are tried. A policy other than `auto` is taken for
    all, and `uses_tier` says whether it keeps KV on the host: one that does not cannot change
    layouts. `space`: memory that there is (default: all of the machine's). `native`:
    ranks on CPU compute with seesaw's own kernels, as they do where these are built.
    `splits_layers`: rows of the policy may stop between two layers.

    Raises DoesNotFit where no candidate has room, with the figures of the one that lacks least;
    ConfigError where the machine cannot be used so.
    """
    if num_requests < 1:
        raise ConfigError(f"num_requests={num_requests}: expected 1 or more.")
    sample = workload.draw(min(num_requests, MOST_DRAWN), seed=0)
    asked = _Asked(
        spec=spec,
        demand=Demand.of(sample, num_requests),
        config=config,
        dtype=dtype_of(config, spec),
        kv_bytes=None if kv_dtype is None else KV_BYTES[kv_dtype],
        uses_tier=uses_tier,
        space=space,
        native=native,
        splits_layers=splits_layers,
    )
    _check_wanted(asked)
    found: list[_Found] = []
    refused: list[Refused] = []
    for machine in usable(machines, config.num_devices):
        check_dtype(machine, asked.dtype)
        _try_all(asked.on(machine), machine, found, refused)
    if not found:
        raise _nothing_fits(refused)
    ranked = _with_exact_transitions(_with_balanced_stages(found))
    plan = _plan([one.estimate for one in ranked], refused)
    plan = replace(plan, verdict=f"{plan.verdict} {plan.recommended.caveat}".rstrip())
    if not plan.recommended.is_split:
        return plan
    chosen = next(one for one in ranked if one.estimate is plan.recommended)
    return replace(plan, times=pair_times(chosen.estimator, chosen.estimate, chosen.moved))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What all candidates are asked for."""

    spec: ModelSpec
    demand: Demand
    config: EngineConfig
    dtype: str
    kv_bytes: int | None
    uses_tier: bool | None
    space: Space | None
    native: bool
    splits_layers: bool

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    def on(self, machine: Machine) -> Self:
        """With weights from where they come fastest, where a choice there is."""
        if machine.kind == "cpu":
            return self
        source = faster_source(self.config, machine)
        return replace(self, config=replace(self.config, reshard_from=source))

    def policy(self, is_split: bool) -> tuple[str, bool]:
        """Its name, and whether it uses the tier."""
        if self.config.policy == "auto":
            return auto_policy(is_split), is_split
        assert self.uses_tier is not None, "say what the policy uses"
        return self.config.policy, self.uses_tier


@dataclass(slots=True)
class _Found:
    """A candidate that fits, by its fastest chunk."""

    estimator: Estimator
    asked: _Asked
    estimate: Estimate
    moved: tuple[Moved, Moved] | None = None
    """By a change of layout, where that was planned to the byte."""

    def with_balanced_stages(self) -> list[tuple[ParallelLayout, ParallelLayout]]:
        """The same layouts with stages balanced for prompts, for answers, or both."""
        one, balanced = self.estimate, self.estimator.balanced
        chunk = one.max_num_batched_tokens
        tokens = min(float(chunk), self.asked.demand.num_requests * self.asked.demand.prompt)
        rows = one.decode_batch / one.decode.pp
        if one.is_split:
            prompts = balanced(one.prefill, chunk, tokens, 0.0)
            answers = balanced(one.decode, chunk, 0.0, rows)
            pairs = [(prompts, one.decode), (one.prefill, answers), (prompts, answers)]
        else:
            mixed = balanced(one.decode, chunk, max(1.0, tokens - rows), rows)
            answers = balanced(one.decode, chunk, 0.0, rows)
            pairs = [(mixed, mixed), (answers, answers)]
        return [pair for pair in dict.fromkeys(pairs) if pair != (one.prefill, one.decode)]

    def replan(self) -> None:
        """Take the change of layout as the engine would plan it."""
        asked, one = self.asked, self.estimate
        self.moved = moved = planned_bytes(
            asked.spec, asked.element_bytes, one.prefill.replica, one.decode.replica,
            asked.config, self.estimator.machine.kind, asked.native,
        )  # fmt: skip
        exact = self.estimator.estimate(
            one.prefill, one.decode, one.policy, one.max_num_batched_tokens, one.memory, moved
        )
        self.estimate = replace(exact, reshard_from=one.reshard_from)


def _try_all(asked: _Asked, machine: Machine, found: list[_Found], refused: list[Refused]) -> None:
    """Every candidate over all devices of `machine`, into one of the lists."""
    estimator = Estimator(
        asked.spec, machine, asked.demand, asked.dtype, asked.config, kv_bytes=asked.kv_bytes
    )
    layouts = layouts_for(len(machine.devices), asked.spec, asked.config.data_parallel_size)
    pairs = [(one, other) for one in layouts for other in layouts if one.dp == other.dp]
    for prefill, decode in pairs:
        is_split = prefill != decode
        if is_split and not asked.policy(is_split)[1]:
            continue
        try:
            best = _best_chunk(asked, estimator, prefill, decode)
        except DoesNotFit as error:
            refused.append(Refused(prefill, decode, str(error), error.missing_bytes))
            continue
        if is_split:
            best = replace(best, reshard_from=asked.config.reshard_from)
        found.append(_Found(estimator, asked, best))


def _with_balanced_stages(found: list[_Found]) -> list[_Found]:
    """Beside the fastest that have stages the same ones with layers so shared out that the slowest
    stage takes less, where the job is done faster so."""
    found.sort(key=lambda one: one.estimate.elapsed_s)
    better: list[_Found] = []
    for is_split in (False, True):
        own = [
            one
            for one in found
            if one.estimate.is_split == is_split
            and max(one.estimate.prefill.pp, one.estimate.decode.pp) > 1
        ]
        for one in own[:MOST_BALANCED]:
            for prefill, decode in one.with_balanced_stages():
                with contextlib.suppress(DoesNotFit):  # the equal stages do
                    best = _best_chunk(one.asked, one.estimator, prefill, decode)
                    if best.elapsed_s * EQUAL <= one.estimate.elapsed_s:
                        best = replace(best, reshard_from=one.estimate.reshard_from)
                        better.append(_Found(one.estimator, one.asked, best))
    return found + better


def _best_chunk(
    asked: _Asked, estimator: Estimator, prefill: ParallelLayout, decode: ParallelLayout
) -> Estimate:
    """Raises DoesNotFit where no chunk leaves room for the longest request."""
    spec, machine = asked.spec, estimator.machine
    is_split = prefill != decode
    policy, uses_tier = asked.policy(is_split)
    config = asked.config if uses_tier else replace(asked.config, host_kv_memory=None)
    moved = None
    if is_split:
        moved = missing_bytes(
            spec,
            asked.element_bytes,
            prefill.replica,
            decode.replica,
            config,
            machine.kind,
            asked.native,
        )
    found: list[Estimate] = []
    lacking: DoesNotFit | None = None
    layouts = LayoutChoice(prefill, decode, "planned")
    given = config.max_num_batched_tokens
    for chunk in CHUNKS[machine.kind] if given is None else (given,):
        try:
            memory = plan_memory(
                replace(config, max_num_batched_tokens=chunk), spec, asked.element_bytes,
                asked.space or Space.of(machine), layouts, uses_tier,
                kv_element_bytes=asked.kv_bytes, name_others=False, native=asked.native,
                splits_layers=asked.splits_layers,
            )  # fmt: skip
            _check_length(asked.demand, memory)
        except DoesNotFit as error:
            lacking = error  # larger chunks need more
            break
        found.append(estimator.estimate(prefill, decode, policy, chunk, memory, moved))
    if not found:
        assert lacking is not None, "no chunk was tried"
        raise lacking
    best = min(found, key=lambda one: one.elapsed_s)
    usual = (one for one in found if one.max_num_batched_tokens == config.step_tokens)
    # What is as good as the same keeps the usual value.
    return next((one for one in usual if one.elapsed_s <= EQUAL * best.elapsed_s), best)


def _check_wanted(asked: _Asked) -> None:
    """Raises ConfigError where a request is longer than any may be, whatever memory there is."""
    most = longest_wanted(asked.config, asked.spec)
    if asked.demand.longest > most:
        why = "max_model_len" if asked.config.max_model_len else "the model"
        other = "raise max_model_len" if asked.config.max_model_len else "take another model"
        raise ConfigError(
            f"the workload has requests of up to {asked.demand.longest} tokens, prompt and answer "
            f"together; {why} allows {most}. Give a workload of shorter requests, or {other}."
        )


def _check_length(demand: Demand, memory: MemoryPlan) -> None:
    if demand.longest > memory.max_model_len:
        missing = (demand.longest - memory.max_model_len) * memory.block_bytes // memory.block_size
        raise DoesNotFit(
            f"requests of up to {demand.longest} tokens: prompt and answer together may have "
            f"{memory.max_model_len} ({memory.model_len_reason}), which takes "
            f"{format_bytes(missing)} more KV on each device. Raise the memory budget, or take "
            "shorter requests.",
            missing_bytes=missing,
        )


def _with_exact_transitions(found: list[_Found]) -> list[_Found]:
    """Fastest first; the change of layout of the best split is planned to the byte."""
    exact: set[int] = set()
    while True:
        found.sort(key=lambda one: one.estimate.elapsed_s)
        best = next((one for one in found if one.estimate.is_split), None)
        # What is exact only grows, so that the first split that is exact already is the best.
        if best is None or id(best) in exact:
            return found
        best.replan()
        exact.add(id(best))


def _nothing_fits(refused: Sequence[Refused]) -> DoesNotFit:
    least = min(refused, key=lambda one: one.missing_bytes)
    return DoesNotFit(
        f"none of {len(refused)} layouts has room. {least} lacks least, "
        f"{format_bytes(least.missing_bytes)}: {least.reason}",
        missing_bytes=least.missing_bytes,
    )


# -- what is said of them --------------------------------------------------------------------------


def _plan(candidates: Sequence[Estimate], refused: Sequence[Refused]) -> Plan:
    static = next((one for one in candidates if not one.is_split), None)
    split = next((one for one in candidates if one.is_split), None)
    if static is None or split is None:
        best = candidates[0]
        return Plan(best, candidates, refused, _only(best, split is None))
    gain = split.requests_per_s / static.requests_per_s
    parts = (
        f"prefill {_seconds(split.prefill_s)} in {split.prefill.short}, decode "
        f"{_seconds(split.decode_s)} in {split.decode.short}, {split.num_transitions} "
        f"transition{'s' * (split.num_transitions != 1)} {_seconds(split.transition_s)}, against "
        f"{_seconds(static.elapsed_s)}"
    )
    if gain > 1 + UNCERTAINTY:
        verdict = (
            f"split gains {gain:.2f}x over the best static layout {static.decode.short}: {parts}."
        )
        return Plan(split, candidates, refused, verdict)
    verdict = (
        f"no split pays here: the best, {split.name}, reaches {gain:.2f}x of static "
        f"{static.decode.short} ({parts}); a gain is trusted from {1 + UNCERTAINTY:.2f}x on."
    )
    return Plan(static, candidates, refused, verdict)


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def _only(best: Estimate, is_static: bool) -> str:
    if is_static and best.decode.num_ranks == 1:
        return "no split is possible on one device."
    if is_static:
        return f"no split can run; the best static layout is {best.decode.short}."
    return "no static layout fits."
