"""SARATHI (arXiv 2308.16369), simulated: GPT-3 on 64 A100 in eight stages of eight ranks, where
chunks of one size leave fewer bubbles than whole prompts, and what answers that ride on a chunk
cost on one card.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import CostModel
from seesaw.plan.machine import Machine
from seesaw.plan.work import WorkCounter
from seesaw.plan.workload import Lengths
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.experiments.serving import BLOCK, System, machine_of, serve
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Arrival, Scenario

CHUNK = 256
"""Tokens of a step, answers among them."""
TILE = 128
SARATHI = System(policy="sarathi", options={"chunk": CHUNK, "tile": TILE}, step_tokens=CHUNK)
WHOLE_TOKENS = 4096
"""Of a step with whole prompts, which are of 4K at most."""
ORCA = System(policy="sarathi-serve", options={"batches": "hybrid-only"}, step_tokens=WHOLE_TOKENS)
"""Whole prompts beside answers, step by step, as Orca has them."""
PREFILL_FIRST = System(policy="prefill-first", step_tokens=WHOLE_TOKENS)

# -- eight stages --------------------------------------------------------------------------------

NUM_REQUESTS = 10_000
LENGTHS = 1024, 4096
THETA = 0.4
RATIO = 10
RATIOS = (5, 10, 20, 50)
SLOTS = (8, 16, 27)
"""Requests per stage. The paper has as many as memory holds, here 27 of the longest."""
STAGES = ParallelLayout(tp=8, pp=8)
REPLICAS = ParallelLayout(dp=8, tp=8)
REPLICA_SLOTS = {"in slots for the longest": 12, "as many as memory holds": 256}
"""Requests of a replica, at most: of 4K each, as the paper keeps room for, or of their own length,
which is fewer than 256. For the longest the stages have `SLOTS[-1]` by the same rule."""
IB_BYTES_PER_S, IB_LATENCY_S = 20e9, 3e-5
"""Between servers: assumed, 200 Gbit/s to each card."""
PUBLISHED_PIPELINE = {"median_bubble": 6.29, "makespan": 1.91}
PUBLISHED_REPLICAS = 1.48
"""Their makespan over that of chunks in stages."""


def pipeline(options: ExperimentOptions) -> dict[str, Any]:
    """Bubbles of a request and makespan of GPT-3 in eight stages of eight A100: chunks against
    whole prompts, over the slots of a stage and over prompt : answer."""
    points = dict.fromkeys(
        [*((slots, RATIO) for slots in SLOTS), *((SLOTS[-1], r) for r in RATIOS)]
    )
    machine, spec = _servers(), model("gpt3")
    runs: dict[tuple[str, int, int], Scenario] = {}
    for slots, ratio in points:
        requests = _requests(ratio, options)
        for name, system in (("whole", ORCA), ("chunks", SARATHI)):
            runs[name, slots, ratio] = serve(
                system, spec, machine, STAGES, requests, max_num_seqs=STAGES.pp * slots
            )
    results = run_all(runs, options)
    gains = {
        f"{slots} slots, {ratio}:1": _over(
            results["whole", slots, ratio], results["chunks", slots, ratio]
        )
        for slots, ratio in points
    }
    return {
        "chunks_against_whole_prompts": gains,
        "published": PUBLISHED_PIPELINE,
        "plots": [
            {
                "kind": "lines",
                "title": f"GPT-3 on 64 A100 in {STAGES.short}, prompt : answer {RATIO}",
                "x_label": "requests of a stage",
                "y_label": "whole prompts over chunks",
                "series": {
                    name: [(slots, gains[f"{slots} slots, {RATIO}:1"][name]) for slots in SLOTS]
                    for name in ("bubble_gain", "makespan_gain")
                },
            }
        ],
    }


def replicas(options: ExperimentOptions) -> dict[str, Any]:
    """Makespan of eight replicas of GPT-3 with whole prompts beside answers, over that of chunks in
    eight stages: beside SARATHI's 1.48, by how many requests a replica has at once."""
    machine, spec, requests = _servers(), model("gpt3"), _requests(RATIO, options)
    runs = {
        "chunks": serve(
            SARATHI, spec, machine, STAGES, requests, max_num_seqs=STAGES.pp * SLOTS[-1]
        )
    }
    for name, slots in REPLICA_SLOTS.items():
        runs[name] = serve(ORCA, spec, machine, REPLICAS, requests, max_num_seqs=slots)
    results = run_all(runs, options)
    chunks_s = results["chunks"].elapsed_s
    return {
        "replicas": {
            name: {
                "makespan_s": results[name].elapsed_s,
                "chunks_makespan_s": chunks_s,
                "over_chunks": results[name].elapsed_s / chunks_s,
                "rows_of_a_decode_step": results[name].mean_decode_batch,
            }
            for name in REPLICA_SLOTS
        },
        "published_over_chunks": PUBLISHED_REPLICAS,
        "seconds_of_a_prompt_token_in_a_chunk_over_2048": _chunk_cost(machine),
    }


def _chunk_cost(machine: Machine) -> float:
    """How much more of a stage's time a token of a prompt takes in a step of `CHUNK` of them, than
    in one of 2048: the weights are read for fewer."""
    spec = model("gpt3")
    costs, counter = CostModel(spec, machine, STAGES, "float16"), WorkCounter(spec)

    def seconds(tokens: int) -> float:
        return costs.stages_s(counter.count([(tokens, 0, False)]))[1] / tokens

    return seconds(CHUNK) / seconds(2048)


def _requests(ratio: float, options: ExperimentOptions) -> list[Arrival]:
    drawn = zipf_lengths(options.requests(NUM_REQUESTS), ratio, options.seed)
    return [Arrival(0.0, *one) for one in drawn]


def zipf_lengths(count: int, ratio: float, seed: int) -> list[Lengths]:
    """Of prompt and answer together from 1K to 4K, drawn with the weight rank ** -0.4; the paper
    does not say which end is frequent: here short ones are."""
    rng = random.Random(f"{seed}/zipf")
    totals = range(LENGTHS[0], LENGTHS[1] + 1)
    weights = [rank**-THETA for rank in range(1, len(totals) + 1)]
    drawn = []
    for total in rng.choices(totals, weights, k=count):
        answer = max(1, round(total / (ratio + 1)))
        drawn.append(Lengths(total - answer, answer))
    return drawn


def _servers() -> Machine:
    machine = machine_of("64xa100-80-sxm")
    links = replace(machine.links, send_bytes_per_s=IB_BYTES_PER_S, send_latency_s=IB_LATENCY_S)
    return replace(machine, links=links)


def _over(whole: Result, chunks: Result) -> dict[str, float]:
    return {
        "whole_makespan_s": whole.elapsed_s,
        "chunks_makespan_s": chunks.elapsed_s,
        "makespan_gain": whole.elapsed_s / chunks.elapsed_s,
        "whole_median_bubble_s": whole.bubble_s.p50,
        "chunks_median_bubble_s": chunks.bubble_s.p50,
        "bubble_gain": whole.bubble_s.p50 / chunks.bubble_s.p50,
        "whole_idle_share": 1 - fmean(whole.busy_share),
        "chunks_idle_share": 1 - fmean(chunks.busy_share),
    }


# -- one card ------------------------------------------------------------------------------------

CARDS = {"llama-13b": "a6000", "llama-33b": "a100-80-sxm"}
TABLE: Mapping[tuple[str, int], tuple[int, int, float, float]] = {
    ("llama-13b", 1024): (6, 50, 5.45, 1.33),
    ("llama-13b", 2048): (6, 50, 3.26, 1.26),
    ("llama-13b", 3072): (6, 50, 2.51, 1.22),
    ("llama-33b", 1024): (10, 28, 3.83, 1.25),
    ("llama-33b", 2048): (5, 63, 4.25, 1.22),
    ("llama-33b", 3072): (3, 127, 3.51, 1.14),
}
"""Model and length: requests at once, prompt : answer, and the gain in decoding and end to end of
the paper's table 4. It gives the former two for the first length of the 13B model only."""
TABLE_REQUESTS = 120


def tables(options: ExperimentOptions) -> dict[str, Any]:
    """What an answer's token costs beside a chunk and by itself, and jobs end to end, on one card:
    beside the paper's table 4."""
    runs: dict[tuple[str, int, str], Scenario] = {}
    for (name, length), (batch, ratio, *_) in TABLE.items():
        answer = max(2, round(length / (ratio + 1)))
        requests = [Arrival(0.0, length - answer, answer)] * options.requests(TABLE_REQUESTS)
        for told, system in (("sarathi", SARATHI), ("prefill first", PREFILL_FIRST)):
            runs[name, length, told] = serve(
                system, model(name), machine_of(CARDS[name]), ParallelLayout(), requests,
                max_num_seqs=batch, num_blocks=batch * -(-length // BLOCK) + batch,
            )  # fmt: skip
    results = run_all(runs, options)
    rows: dict[str, dict[str, float]] = {}
    for (name, length), (batch, _, decode, whole) in TABLE.items():
        row = rows[f"{name}, {length}"] = {
            "decode": decode_gain(name, length, batch), "decode_published": decode,
        }  # fmt: skip
        if (name, length, "sarathi") in results:
            seconds = (results[name, length, one].elapsed_s for one in ("prefill first", "sarathi"))
            row |= {"end_to_end": next(seconds) / next(seconds), "end_to_end_published": whole}
    return {
        "gains": rows,
        "plots": [
            {
                "kind": "bars",
                "title": "a decode token by itself over one beside a chunk of 256",
                "y_label": "times as long",
                "groups": {
                    name: {"simulated": row["decode"], "published": row["decode_published"]}
                    for name, row in rows.items()
                },
            }
        ],
    }


def decode_gain(name: str, length: int, batch: int) -> float:
    """Seconds of a decode token in a step of `batch` of them, over what each of `batch` - 1 adds to
    a step with a chunk that they fill up to `CHUNK` rows; all at the end of their context."""
    spec = model(name)
    costs = CostModel(spec, machine_of(CARDS[name]), ParallelLayout(), "float16")
    counter = WorkCounter(spec)
    riders = batch - 1
    size = CHUNK - riders

    def seconds(num_decodes: int, chunk: int = 0) -> float:
        rows = [(chunk, length // 2, False)] if chunk else []
        return sum(costs.stages_s(counter.count(rows + [(1, length, True)] * num_decodes)))

    return seconds(batch) / batch / ((seconds(riders, size) - seconds(0, size)) / riders)
