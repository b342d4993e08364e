"""From what `seesaw bench serve` and `bench policies` are asked for to figures: the load and the
systems are made, and refused where they cannot be, before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seesaw.api.bars import shown
from seesaw.api.plan_inputs import CONFIG, read_model, read_workload, tokenizer_of
from seesaw.api.serving.bench import Bench
from seesaw.api.serving.capacity import Rule
from seesaw.api.serving.journal import Journal
from seesaw.api.serving.load import Traffic, check_lengths
from seesaw.api.serving.report import plots_of
from seesaw.api.serving.system import Simulated, System
from seesaw.api.simulation_inputs import Asked as SimulationAsked
from seesaw.api.simulation_inputs import choose_arrivals, read
from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.latency import Slo
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.device_memory import longest_wanted
from seesaw.plan.workload import Lengths, Workload
from seesaw.scheduler.build import check_settings
from seesaw.simulate.faults import NO_FAULTS
from seesaw.simulate.scenario import HostCosts

if TYPE_CHECKING:
    from seesaw.tokenizer import Tokenizer

FIRST_RATE = 1.0
"""Where none was given."""
TRACE = "trace"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for, as it was written. `policies`: each as it was named, and the settings of
    EngineConfig with it. Bounds may be infinite; `rates` empty."""

    policies: Sequence[tuple[str, Mapping[str, Any]]]
    simulates: bool
    workload: str
    num_requests: int
    answer_tokens: int | None
    rates: Sequence[float]
    arrivals: str
    cv: float | None
    longest: int | None
    ttft_s: float
    tbt_s: float
    delay_s: float
    finds_capacity: bool
    machine: str | None
    kv_dtype: str | None
    host_step_s: float
    host_row_s: float
    journal: Path | None
    plot: str | None
    trace: str | None

    @property
    def model(self) -> str:
        model: str = self.policies[0][1]["model"]
        return model

    @property
    def seed(self) -> int:
        seed: int = self.policies[0][1]["seed"]
        return seed


def run(asked: Asked) -> dict[str, Any]:
    """Raises ConfigError before anything is run, DoesNotFit where a simulated machine has too
    little memory."""
    file = None
    if asked.plot is not None:
        from seesaw.api.plots import check_plot_file

        file = check_plot_file(asked.plot)
    workload = _workload(asked)
    traffic, rates = _traffic(asked, workload)
    _check_lengths(asked, traffic)
    _check_policies(asked)
    systems, about = _systems(asked, traffic)
    bench = Bench(
        traffic=traffic,
        rates=rates,
        rule=Rule(slo=Slo(ttft_s=asked.ttft_s, tbt_s=asked.tbt_s), delay_s=asked.delay_s),
        finds_capacity=asked.finds_capacity,
        journal=Journal(
            asked.journal, {name: one for name, one in about.items() if name != "environment"}
        ),
        bar=shown,
    )
    figures = about | bench.run(systems)
    figures["plots"] = plots_of(figures)
    if file is not None:
        from seesaw.api.plots import draw_all

        figures["drawn"] = [str(one) for one in draw_all(figures["plots"], file)]
    return figures


def _workload(asked: Asked) -> Workload:
    """Prompts of a batch file are counted by the model's tokenizer, that of a GGUF file too."""
    if asked.simulates or _has_config(asked.model):
        tokenizer: Callable[[], Tokenizer | None] = partial(tokenizer_of, read_model(asked.model))
    else:
        config = EngineConfig(**asked.policies[0][1])
        tokenizer = partial(_tokenizer_of_checkpoint, config)
    return read_workload(
        asked.workload, tokenizer, asked.num_requests, asked.answer_tokens
    ).workload


def _tokenizer_of_checkpoint(config: EngineConfig) -> Tokenizer:
    from seesaw.weights.checkpoint import open_checkpoint

    return open_checkpoint(config).tokenizer()


def _check_lengths(asked: Asked, traffic: Traffic) -> None:
    """By the settings and the model's config. Memory may allow less; that is known later."""
    if not _has_config(asked.model):
        return
    spec = read_model(asked.model).spec
    most = min(longest_wanted(EngineConfig(**one), spec) for _, one in asked.policies)
    check_lengths(traffic.lengths, most)


def _check_policies(asked: Asked) -> None:
    """One that cannot run in its layouts is refused here: found only when its turn comes, it would
    cost the runs of those before it."""
    for _, settings in asked.policies:
        config = EngineConfig(**settings)
        layouts = config.given_layouts
        if layouts is None and _has_one_device(config, simulates=asked.simulates):
            layouts = (ParallelLayout(), ParallelLayout())
        if layouts is None:
            continue
        choice = LayoutChoice(*layouts, "as asked for")
        check_settings(config, choice)
        if not asked.simulates:
            from seesaw.engine.lane_plan import check_one_device

            check_one_device(config.resolve_policy(choice.prefill != choice.decode), choice)


def _has_one_device(config: EngineConfig, *, simulates: bool) -> bool:
    if config.num_devices is not None or simulates:
        return config.num_devices == 1
    from seesaw.engine.loader import pick_device

    return pick_device(config.device).type == "cpu"  # which is taken once unless more are asked for


def _has_config(model: str) -> bool:
    path = Path(model).expanduser()
    return path.suffix == ".json" or (path / CONFIG).is_file()


def _traffic(asked: Asked, workload: Workload) -> tuple[Traffic, Sequence[float]]:
    """The traffic, and the rates that it is to have."""
    if asked.arrivals == TRACE and asked.finds_capacity:
        raise ConfigError(
            "--arrivals trace: has a rate of its own, --capacity looks for one. Use --arrivals "
            "gamma with the trace's --cv, or leave out --capacity."
        )
    rates = asked.rates or ((None,) if asked.arrivals == TRACE else (FIRST_RATE,))
    found = [
        choose_arrivals(asked.arrivals, rate, asked.cv, workload, rate_flag="--qps")
        for rate in rates
    ]
    assert all(one is not None for one in found), "requests come one after the other"
    chosen = [one for one in found if one is not None]
    traffic = Traffic(
        workload, asked.num_requests, cv=chosen[0].cv, seed=asked.seed, longest=asked.longest
    )
    _ = traffic.lengths  # refused now if at all
    return traffic, [one.rate_per_s for one in chosen]


def _systems(asked: Asked, traffic: Traffic) -> tuple[list[System], dict[str, Any]]:
    """What the load is put on, and what all of it has in common."""
    about: dict[str, Any] = {
        "simulated": asked.simulates,
        "workload": traffic.workload.name,
        "workload_source": traffic.workload.source,
        "num_requests": asked.num_requests,
        "longest": asked.longest,
        "arrivals": {"kind": asked.arrivals, "cv": traffic.cv},
        "seed": asked.seed,
        "promised": {
            "ttft_s": _finite(asked.ttft_s),
            "tbt_s": _finite(asked.tbt_s),
            "delay_s": asked.delay_s,
        },
        "settings": _common(asked),
    }
    if asked.simulates:
        return _simulated(asked, traffic.lengths, about)
    from seesaw.api.environment import environment
    from seesaw.api.serving.live import Live

    expected = {
        "expected_lengths": tuple(traffic.lengths),
        "expected_requests": asked.num_requests,
    }
    about |= {"model": asked.model, "environment": environment()}
    systems: list[System] = [
        Live(label, settings, expected, asked.trace) for label, settings in asked.policies
    ]
    return systems, about


def _simulated(
    asked: Asked, lengths: Sequence[Lengths], about: dict[str, Any]
) -> tuple[list[System], dict[str, Any]]:
    systems: list[System] = []
    for label, settings in asked.policies:
        inputs = read(
            SimulationAsked(
                model=asked.model, machine=asked.machine, workload=asked.workload,
                num_requests=asked.num_requests, answer_tokens=asked.answer_tokens,
                settings={name: value for name, value in settings.items() if name != "model"},
                kv_dtype=asked.kv_dtype, arrivals=None, rate=None, cv=None, answers_known=True,
                max_tokens=None, faults=NO_FAULTS,
                host=HostCosts(step_s=asked.host_step_s, row_s=asked.host_row_s),
                lengths=lengths,
            ),
            compares=False,
        )  # fmt: skip
        scenario = inputs.scenarios(None)[0].scenario
        about |= {
            "model": scenario.config.model,
            "machine": scenario.machine.slug,
            "machine_source": inputs.machine_source,
            "kv_dtype": asked.kv_dtype,
            "host": {"step_s": asked.host_step_s, "row_s": asked.host_row_s},
        }
        systems.append(Simulated(label, scenario))
    return systems, about


def _common(asked: Asked) -> dict[str, Any]:
    """Settings of all policies but what names them."""
    own = ("policy", "policy_options")
    return {name: value for name, value in asked.policies[0][1].items() if name not in own}


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if value < float("inf") else None
