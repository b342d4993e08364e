"""Layered prefill (arXiv 2510.08055), simulated: how many experts' weights are read while a prompt
is in flight, and Qwen3-30B-A3B on two H100 under load; beside chunks of 512 tokens.
"""

from __future__ import annotations

from typing import Any

from seesaw.latency import Slo
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.workload import parse_workload
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.experiments.serving import System, at_rate, machine_of, serve
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Arrival, Scenario

GROUP_TOKENS = 512
"""Of a chunk, and of a wave for each group of layers."""
WAVE_TOKENS = 8192
MODEL, DENSE = "qwen3-30b-a3b", "qwen3-8b"
MACHINE, LAYOUT = "2xh100-sxm", ParallelLayout(tp=2)
SEQUENCES = 256


def chunked(beside: int) -> System:
    """Chunks of 512 beside up to so many answers."""
    tokens = GROUP_TOKENS + beside
    return System(policy="sarathi-serve", options={"token_budget": tokens}, step_tokens=tokens)


def layered(beside: int) -> System:
    return System(
        policy="layered-prefill",
        options={"group_tokens": GROUP_TOKENS, "wave_tokens": WAVE_TOKENS},
        step_tokens=WAVE_TOKENS + beside,
    )


# -- one prompt ----------------------------------------------------------------------------------

PUBLISHED_CUTS = {
    (9194, 16): 0.47, (9194, 32): 0.38, (9194, 64): 0.25, (9194, 128): 0.11,
    (2340, 16): 0.36, (2340, 32): 0.29, (2340, 64): 0.19, (2340, 128): 0.08,
    (1024, 16): 0.23, (1024, 32): 0.19, (1024, 64): 0.13, (1024, 128): 0.05,
}  # fmt: skip
"""Of expert loads, by tokens of the prompt and answers beside it: what the coverage that the paper
measured comes to, while the prompt is in flight. The paper reports 39% and 12% less in all, over
loads in which not every step has a prompt."""
ANSWER = 600
PROMPT_AT_S = 0.5
"""All answers are under way by then, and longer than the prompt takes."""


def coverage(options: ExperimentOptions) -> dict[str, Any]:
    """How many times fewer experts' weights are read while a prompt is in flight, layers one after
    the other against chunks: beside what the coverage that was measured comes to."""
    spec, machine = model(MODEL), machine_of(MACHINE)
    runs: dict[tuple[str, int, int], Scenario] = {}
    for beside in sorted({beside for _, beside in PUBLISHED_CUTS}):
        answers = [Arrival(0.0, 1, ANSWER)] * beside
        for length in sorted({0, *(length for length, _ in PUBLISHED_CUTS)}):
            prompt = [Arrival(PROMPT_AT_S, length, 1)] if length else []
            for name, system in (("chunked", chunked(beside)), ("layered", layered(beside))):
                runs[name, length, beside] = serve(
                    system, spec, machine, LAYOUT, answers + prompt, max_num_seqs=SEQUENCES
                )
    results = run_all(runs, options)
    rows: dict[str, dict[str, float]] = {}
    for (length, beside), published in PUBLISHED_CUTS.items():
        loads = {
            name: _in_flight(results[name, length, beside], results[name, 0, beside], length)
            for name in ("chunked", "layered")
        }
        cut = 1 - loads["layered"] / loads["chunked"]
        rows[f"prompt {length}, {beside} answers"] = {
            "chunked_loads": loads["chunked"], "layered_loads": loads["layered"], "cut": cut,
            "cut_by_measured_coverage": published,
        }  # fmt: skip
    return {
        "expert_loads": rows,
        "plots": [
            {
                "kind": "lines",
                "title": "expert weights read while a prompt is in flight, layered against chunked",
                "x_label": "answers beside it",
                "y_label": "share that is saved",
                "series": {
                    f"prompt of {length}": [
                        (beside, rows[f"prompt {length}, {beside} answers"]["cut"])
                        for other, beside in PUBLISHED_CUTS
                        if other == length
                    ]
                    for length in dict.fromkeys(length for length, _ in PUBLISHED_CUTS)
                },
            }
        ],
    }


def num_steps(length: int) -> int:
    """In which a prompt is in flight, in chunks as in groups of layers."""
    waves = [min(WAVE_TOKENS, length - start) for start in range(0, length, WAVE_TOKENS)]
    return sum(-(-wave // GROUP_TOKENS) for wave in waves)


def _in_flight(with_prompt: Result, without: Result, length: int) -> float:
    """Loads of the steps in which the prompt is in flight: those of the answers alone would be the
    same in every one of their steps."""
    of_step = without.expert_loads / ANSWER
    return with_prompt.expert_loads - without.expert_loads + num_steps(length) * of_step


# -- under load ----------------------------------------------------------------------------------

NUM_REQUESTS = 600
LOADS = {"arxiv": (1.3, 1.8, 2.4, 3.0, 3.6), "sharegpt": (4.0, 5.0, 7.0, 9.0, 11.0)}
"""The paper's first and last rate, and beyond: steps are faster here, where no launch takes time
beyond its kernel."""
SLOS = {"arxiv": Slo(ttft_s=10.0, tbt_s=0.125), "sharegpt": Slo(ttft_s=5.0, tbt_s=0.125)}
PUBLISHED_RATES = {
    "arxiv": (1.3, 1.4, 1.5, 1.6, 1.7, 1.8),
    "sharegpt": (4.0, 4.2, 4.4, 4.6, 4.8, 5.0),
}
PUBLISHED_ATTAINMENT = {
    "arxiv": {"chunked": (1.0, 0.97, 0.44, 0.14, 0.11, 0.08),
              "layered": (1.0, 1.0, 1.0, 1.0, 0.98, 0.81)},
    "sharegpt": {"chunked": (1.0, 0.98, 0.72, 0.34, 0.10, 0.09),
                 "layered": (1.0, 1.0, 1.0, 0.99, 0.87, 0.56)},
}  # fmt: skip
"""Share of requests within both bounds, at these rates, read off figure 3."""
PUBLISHED_TABLE = {
    "ttft_mean_s": (2.80, 1.24), "ttft_p99_s": (8.65, 4.10), "tbt_mean": (1.0, 0.65),
    "expert_loads": (1.0, 0.61),
}  # fmt: skip
"""arXiv at 1.3 requests per second, chunked and layered: tables 6 and 7."""
ARXIV_PROMPT = 9194 / 7823
"""The paper's mean prompt over that of `arxiv-16k`."""


def load(options: ExperimentOptions) -> dict[str, Any]:
    """First tokens, time between tokens, bytes and requests within their bounds of Qwen3-30B-A3B on
    two H100, in chunks and in layers; and of a dense 8B model, where layers must not win."""
    runs: dict[tuple[str, str, float], Scenario] = {}
    for dataset, rates in LOADS.items():
        for rate in rates:
            requests = _requests(dataset, rate, options)
            for name, system in (("chunked", chunked(0)), ("layered", layered(0))):
                runs[name, dataset, rate] = serve(
                    system, model(MODEL), machine_of(MACHINE), LAYOUT, requests,
                    max_num_seqs=SEQUENCES,
                )  # fmt: skip
    dense_rate = LOADS["arxiv"][0]
    for name, system in (("chunked", chunked(0)), ("layered", layered(0))):
        runs[name, "dense", dense_rate] = serve(
            system, model(DENSE), machine_of(MACHINE), LAYOUT,
            _requests("arxiv", dense_rate, options), max_num_seqs=SEQUENCES,
        )  # fmt: skip
    results = run_all(runs, options)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for (name, dataset, rate), result in results.items():
        slo = SLOS.get(dataset, SLOS["arxiv"])
        first, between = result.latency_s["first_token"], result.latency_s["between_tokens"]
        figures.setdefault(f"{dataset}, {rate}/s", {})[name] = {
            "ttft_mean_s": first.mean, "ttft_p99_s": first.p99, "tbt_mean_s": between.mean,
            "tbt_p99_s": between.p99, "experts_tb": result.expert_loads * _expert_tb(),
            "within_bounds": slo.num_met(result.timings) / result.num_requests,
        }  # fmt: skip
    return {
        "figures": figures,
        "over_chunked": {
            at: {
                figure: one["layered"][figure] / one["chunked"][figure]
                for figure in ("ttft_mean_s", "ttft_p99_s", "tbt_mean_s", "tbt_p99_s")
            }
            | _loads_ratio(one)
            for at, one in figures.items()
        },
        "published_at_1.3": {
            name: after / before for name, (before, after) in PUBLISHED_TABLE.items()
        },
        "published_within_bounds": {
            dataset: {"rates per s": PUBLISHED_RATES[dataset], **systems}
            for dataset, systems in PUBLISHED_ATTAINMENT.items()
        },
        "plots": [_plot(dataset, figures) for dataset in LOADS],
    }


def _plot(dataset: str, figures: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    return {
        "kind": "lines",
        "title": f"Qwen3-30B-A3B on 2 H100, {dataset} lengths",
        "x_label": "requests per second",
        "y_label": "share of requests within their bounds",
        "series": {
            name: [
                (rate, figures[f"{dataset}, {rate}/s"][name]["within_bounds"])
                for rate in LOADS[dataset]
            ]
            for name in ("chunked", "layered")
        }
        | {
            f"{name}, published": list(zip(PUBLISHED_RATES[dataset], shares, strict=True))
            for name, shares in PUBLISHED_ATTAINMENT[dataset].items()
        },
    }


def _requests(dataset: str, rate: float, options: ExperimentOptions) -> list[Arrival]:
    count = options.requests(NUM_REQUESTS)
    if dataset == "sharegpt":
        return at_rate(parse_workload("sharegpt-8k"), rate, count, options.seed)
    return [
        Arrival(one.arrival_s, round(ARXIV_PROMPT * one.prompt), one.answer)
        for one in at_rate(parse_workload("arxiv-16k"), rate, count, options.seed)
    ]


def _expert_tb() -> float:
    """Of one expert's weights in bf16, in 10^12 bytes."""
    spec = model(MODEL)
    return 1e-12 * 2 * 3 * spec.hidden_size * spec.moe_intermediate_size


def _loads_ratio(one: dict[str, dict[str, float]]) -> dict[str, float]:
    before = one["chunked"]["experts_tb"]
    return {"experts_tb": one["layered"]["experts_tb"] / before} if before else {}
