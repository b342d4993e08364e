"""From what `seesaw simulate` is asked for to scenarios: layouts that were given or that a plan
recommends, arrivals and faults as people write them. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from seesaw.api.flags import FiniteNumber
from seesaw.api.plan_inputs import (
    CONFIG,
    Job,
    ModelToPlan,
    read_machine,
    read_model,
    read_workload,
    tokenizer_of,
)
from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.estimate import Estimate
from seesaw.plan.machine import Machine
from seesaw.plan.search import KV_BYTES, Plan, search
from seesaw.plan.ways import usable
from seesaw.plan.workload import Arrivals, Lengths, Listed, Workload
from seesaw.scheduler import policies
from seesaw.simulate.arrivals import draw_requests
from seesaw.simulate.faults import Death, Faults, SlowRank
from seesaw.simulate.scenario import HostCosts, Scenario

RESTART_S = Faults().restart_s
CLOSED, TRACE = "closed", "trace"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for, as it was written. `settings` are those of EngineConfig; `lengths` those
    of all requests, where they were drawn already."""

    model: str
    machine: str | None
    workload: str
    num_requests: int | None
    answer_tokens: int | None
    settings: Mapping[str, Any]
    kv_dtype: str | None
    arrivals: str | None
    rate: float | None
    cv: float | None
    answers_known: bool
    max_tokens: int | None
    host: HostCosts
    faults: Faults
    lengths: Sequence[Lengths] | None = None

    @property
    def seed(self) -> int:
        seed: int = self.settings["seed"]
        return seed


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scenario, and what was estimated for it where a plan proposed it."""

    scenario: Scenario
    estimate: Estimate | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What `Asked` names, read. `plan` is None where layouts were given."""

    asked: Asked
    model: ModelToPlan
    job: Job
    machines: Sequence[Machine]
    machine_source: str
    arrivals: Arrivals | None
    config: EngineConfig
    plan: Plan | None

    def scenarios(self, most: int | None) -> list[Candidate]:
        """One, of the layouts that were given or are recommended; or the `most` best of a plan."""
        if self.plan is None:
            layouts = self.config.given_layouts
            assert layouts is not None, "without layouts there is a plan"
            return [Candidate(self._scenario(layouts, self.config), None)]
        chosen = [self.plan.recommended] if most is None else self.plan.candidates[:most]
        return [Candidate(self._proposed(one), one) for one in chosen]

    def _proposed(self, one: Estimate) -> Scenario:
        config = replace(
            self.config,
            policy=one.policy,
            max_num_batched_tokens=one.max_num_batched_tokens,
            reshard_from=one.reshard_from if one.is_split else self.config.reshard_from,
        )
        if not policies.uses_tier(one.policy):
            config = replace(config, host_kv_memory=None)
        return self._scenario((one.prefill, one.decode), config)

    def _scenario(
        self, layouts: tuple[ParallelLayout, ParallelLayout], config: EngineConfig
    ) -> Scenario:
        asked = self.asked
        requests = draw_requests(
            self.job.workload, self.job.num_requests, arrivals=self.arrivals, seed=asked.seed
        )
        return Scenario(
            spec=self.model.spec,
            machine=usable(self.machines, layouts[1].num_ranks)[0],
            layouts=layouts,
            config=config,
            requests=requests,
            answers_known=asked.answers_known,
            max_tokens=asked.max_tokens,
            host=asked.host,
            kv_element_bytes=None if asked.kv_dtype is None else KV_BYTES[asked.kv_dtype],
            faults=asked.faults,
            seed=asked.seed,
        )


def read(asked: Asked, *, compares: bool) -> Inputs:
    """Raises ConfigError, ModelError, or DoesNotFit where no layouts were given and none fits."""
    config = EngineConfig(model=asked.model, **asked.settings)
    if compares and config.given_layouts is not None:
        raise ConfigError(
            "--compare simulates the layouts that a plan ranks first. Leave out --prefill-layout "
            "and --decode-layout, or --compare."
        )
    model = read_model(asked.model)
    config = replace(config, model=_label(asked.model, model))
    machines, source = read_machine(asked.machine)
    job = read_workload(
        asked.workload, lambda: tokenizer_of(model), asked.num_requests, asked.answer_tokens
    )
    if asked.lengths is not None:
        job = job._replace(workload=Listed(job.workload.name, asked.lengths))
    arrivals = choose_arrivals(asked.arrivals, asked.rate, asked.cv, job.workload)
    plan = None
    if config.given_layouts is None:
        uses_tier = None if config.policy == "auto" else policies.uses_tier(config.policy)
        plan = search(
            model.spec, machines, job.workload, job.num_requests, config, kv_dtype=asked.kv_dtype,
            uses_tier=uses_tier, splits_layers=policies.splits_layers(config.resolve_policy(False)),
        )  # fmt: skip
    return Inputs(asked, model, job, machines, source, arrivals, config, plan)


def _label(given: str, model: ModelToPlan) -> str:
    """The file's own name, where it is not that of every config."""
    path = Path(given)
    if path.is_file() and path.name != CONFIG:
        return path.stem
    return model.folder.resolve().name


def choose_arrivals(
    kind: str | None,
    rate: float | None,
    cv: float | None,
    workload: Workload,
    *,
    rate_flag: str = "--rate",
) -> Arrivals | None:
    """None = an offline job. Raises ConfigError where the flags do not go together."""
    kind = kind or (CLOSED if rate is None else "poisson")
    if kind == TRACE and workload.arrivals is None:
        raise ConfigError(
            f"--arrivals trace: workload {workload.name} comes without arrivals. Use --arrivals "
            f"poisson {rate_flag} R, or a workload of a service such as azure-conv."
        )
    wants_rate = kind not in (CLOSED, TRACE)
    if wants_rate != (rate is not None):
        raise ConfigError(
            f"--arrivals {kind}: "
            + (
                f"needs {rate_flag}, requests per second."
                if wants_rate
                else f"has no use for {rate_flag}."
            )
        )
    if (kind == "gamma") != (cv is not None):
        raise ConfigError(
            f"--arrivals {kind}: "
            + (
                "needs --cv, the coefficient of variation of the gaps."
                if kind == "gamma"
                else "has no use for --cv. It belongs to --arrivals gamma."
            )
        )
    if kind == TRACE:
        return workload.arrivals
    if rate is None:
        return None
    return Arrivals(rate, {"constant": 0.0, "poisson": 1.0}.get(kind, cv or 0.0))


def parse_faults(
    late: str | None, slow: Sequence[str], death: Sequence[str], restart_s: float | None
) -> Faults:
    """`SHARE:SECONDS`, `RANK:BEGIN:END:TIMES` and `RANK:SECONDS`. Raises ConfigError."""
    if restart_s is not None and not death:
        raise ConfigError(
            "--restart-s: nothing dies without --death RANK:SECONDS. Give one, or leave it out."
        )
    share, late_s = _numbers("--late", late, "SHARE:SECONDS") if late is not None else (0.0, 0.0)
    slows = [_numbers("--slow", one, "RANK:BEGIN:END:TIMES") for one in slow]
    deaths = [_numbers("--death", one, "RANK:SECONDS") for one in death]
    return Faults(
        late_share=share,
        late_s=late_s,
        slow=tuple(
            SlowRank(_rank("--slow", rank), begin, end, by) for rank, begin, end, by in slows
        ),
        deaths=tuple(Death(_rank("--death", rank), at_s) for rank, at_s in deaths),
        restart_s=RESTART_S if restart_s is None else restart_s,
    )


def _numbers(flag: str, text: str, form: str) -> list[float]:
    parts = text.split(":")
    if len(parts) != form.count(":") + 1:
        raise ConfigError(f"{flag} {text}: expected {form}.")
    try:
        return [FiniteNumber(0.0).convert(part, None, None) for part in parts]
    except click.BadParameter as error:
        raise ConfigError(f"{flag} {text}: expected {form}. {error.message}") from error


def _rank(flag: str, value: float) -> int:
    if value != int(value):
        raise ConfigError(f"{flag}: rank {value:g} is not a whole number.")
    return int(value)
