"""Two sizes of the KV pools: the published rerun of the paper's artifact on four L4 lost more than
half of the throughput with small ones and won a quarter with large ones.

Its runs: 100 arXiv prompts, Llama 3 15B, pp4 -> tp4, against vLLM in tp4
(github.com/anoop-rehman/cgen, logs). Pools of 20k tokens on the host and 500 pages per device: 0.45
times vLLM; of 128k tokens and 8192 pages: 1.26 times.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.workload import parse_workload
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.experiments.systems import baseline, paper_machine, split
from seesaw.simulate.scenario import Arrival, Scenario

PAGE = 16
TRANSITION_S = 2.6
"""From the decision to the first step in the other layout, in that rerun: 2.3 to 2.9 s. The
artifact drains its pipeline and reloads all weights; this runtime does neither."""
PREFILL_TOKENS = 4096
"""Of a batch of the artifact, at most."""
BASELINE_CHUNK = 2048
POOLS = {"small": (20_000, 500), "large": (128_000, 8192)}
"""Tokens on the host, pages per device."""
PUBLISHED = {
    "vllm_s": (270.0, 278.0),
    "small_s": (572.0, 602.0),
    "large_s": (214.9, 214.9),
    "small": 0.45,
    "large": 1.26,
}
SEEDS = 5
"""Draws of the 100 lengths: the tail of the longest answers differs from draw to draw."""


def pools(options: ExperimentOptions) -> dict[str, Any]:
    """A 15B model on 4 L4 with small and large KV pools: seconds, and over vLLM."""
    spec, machine = model("llama3-15b"), paper_machine("g6.48xlarge", 4)
    layouts = ParallelLayout(pp=4), ParallelLayout(tp=4)
    runs: dict[tuple[str, int], Scenario] = {}
    for seed in range(options.seed, options.seed + SEEDS):
        lengths = parse_workload("arxiv-4k").draw(options.requests(100), seed)
        requests = [Arrival(0.0, *one) for one in lengths]
        runs["vllm", seed] = baseline(spec, machine, layouts[1], requests, BASELINE_CHUNK)
        for size, (tier_tokens, pages) in POOLS.items():
            plain = split(spec, machine, layouts, requests, PREFILL_TOKENS)
            tier = plain.config.tier_block_size
            runs[size, seed] = replace(
                plain,
                num_blocks=pages,
                tier_blocks=tier_tokens // tier,
                transition_s=TRANSITION_S,
            )
            runs[f"{size}, our transitions", seed] = replace(runs[size, seed], transition_s=None)
    results = run_all(runs, options)
    seconds: dict[str, float] = {}
    transitions: dict[str, float] = {}
    for (system, _), result in results.items():
        seconds[system] = seconds.get(system, 0.0) + result.elapsed_s / SEEDS
        transitions[system] = transitions.get(system, 0.0) + result.num_transitions / SEEDS
    return {
        "seconds": seconds,
        "transitions": transitions,
        "over_vllm": {
            system: seconds["vllm"] / taken for system, taken in seconds.items() if system != "vllm"
        },
        "published": PUBLISHED,
    }
