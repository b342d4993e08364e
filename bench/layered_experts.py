"""Reads of experts, first tokens and gaps of prompts that come while others decode: in chunks, and
in groups of layers.

usage: python bench/layered_experts.py --model MOE_DIR [--decodes 8] [--prompt 1500] [--chunk 256]
           [--rounds 5] [--output-json FILE]

Layered prefill's claim (arXiv 2510.08055, section 4) on a real router: `decodes` answers run, then
one prompt of real text comes, under `sarathi-serve` in chunks, under `layered-prefill` in as many
groups of layers; the two take turns. Reads are counted by the kernels. Beside them stands the
closed form, of coverages that are measured by themselves: with d and p the shares of experts that
the decodes and a chunk read alone, chunks read 1 - (1 - d) (1 - p) each, groups d each and the
whole prompt once, if who chooses them chooses independently. An engine of its own reads the chunks
alone: its budget is a chunk, where the other's has room for the decodes too. Needs the C++ kernels,
which count.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Tokenizer

from seesaw import SamplingParams
from seesaw.config import EngineConfig
from seesaw.engine.engine import Engine
from seesaw.scheduler.output import SchedulerOutput

CONTEXT = 64
"""Tokens of the prompt of each request that decodes."""
ANSWER = 400


class Runs:
    """Prompts beside decodes in one engine; every step's reads, rows of each kind, and gap."""

    def __init__(self, engine: Engine, text: list[int], decodes: int, seed: int) -> None:
        self._engine, self._text, self._decodes = engine, text, decodes
        self._rng = random.Random(seed)
        self._number = 0
        self._reads = 0
        self.steps: list[tuple[int, int, int]] = []
        """(prompt tokens, rows that decode, reads of experts) of each step."""
        engine.observe_steps(self._observe)

    def _observe(self, step: SchedulerOutput, seconds: float) -> None:
        reads = self._engine.stats.transfers.expert_loads
        prompts = sum(row.num_tokens for row in step.rows if row.num_tokens > 1)
        decodes = sum(row.num_tokens == 1 for row in step.rows)
        self.steps.append((prompts, decodes, reads - self._reads))
        self._reads = reads

    def _add(self, num_tokens: int, answer: int) -> str:
        self._number += 1
        start = self._rng.randrange(len(self._text) - num_tokens)
        sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=answer)
        name = str(self._number)
        self._engine.add_request(name, self._text[start : start + num_tokens], sampling)
        return name

    def alone(self, num_tokens: int) -> list[int]:
        """Reads of the steps of one prompt with nothing beside it."""
        self.steps.clear()
        self._add(num_tokens, 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return [reads for prompts, _, reads in self.steps if prompts]

    def beside(self, num_tokens: int) -> dict[str, float]:
        """One prompt beside the decodes: reads of its steps and of steps of decodes alone, seconds
        to its token, the longest gap between two steps while it runs."""
        self.steps.clear()
        old = [self._add(CONTEXT, ANSWER) for _ in range(self._decodes)]
        while sum(row == (0, self._decodes) for row in (s[:2] for s in self.steps)) < 8:
            self._engine.step()
        name, began_s = self._add(num_tokens, 1), time.perf_counter()
        gaps, last_s, first_s = [], began_s, None
        while first_s is None:
            outputs = self._engine.step()
            now_s = time.perf_counter()
            gaps.append(now_s - last_s)
            last_s = now_s
            if any(one.request_id == name for one in outputs):
                first_s = now_s - began_s
        for one in old:
            self._engine.abort_request(one)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        # The prompts of those that decode run before there is a step of all of them.
        began = next(n for n, step in enumerate(self.steps) if step[:2] == (0, self._decodes))
        while_prompt = [s for s in self.steps[began:] if s[0] and s[1] == self._decodes]
        plain = [s[2] for s in self.steps[began:] if s[:2] == (0, self._decodes)]
        return {
            "reads": sum(s[2] for s in while_prompt), "steps": len(while_prompt),
            "reads_of_decodes": statistics.mean(plain), "first_token_s": first_s,
            "longest_gap_s": max(gaps), "mean_gap_s": statistics.mean(gaps),
        }  # fmt: skip


def engine_of(args: argparse.Namespace, policy: str, options: dict[str, Any]) -> Engine:
    return Engine(
        EngineConfig(
            model=args.model, dtype="bfloat16", policy=policy, policy_options=options, profile=True,
            max_num_batched_tokens=args.prompt + args.decodes, max_num_seqs=args.decodes + 1,
            max_model_len=max(args.prompt, CONTEXT + ANSWER) + 1, enable_prefix_caching=False,
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--decodes", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=1500, help="tokens")
    parser.add_argument("--chunk", type=int, default=256, help="tokens, and of a group of layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-json", type=Path)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(Path(args.model) / "tokenizer.json"))
    text = tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics))).ids
    found: list[dict[str, Any]] = []
    with engine_of(args, "sarathi-serve", {"token_budget": args.chunk}) as engine:
        plain = Runs(engine, text, args.decodes, 0)
        alone = [plain.alone(args.prompt) for _ in range(args.rounds)]
    with (
        engine_of(args, "sarathi-serve", {"token_budget": args.chunk + args.decodes}) as one,
        engine_of(args, "layered-prefill", {"group_tokens": args.chunk}) as other,
    ):
        experts = one.spec.num_experts * sum(layer.sparse for layer in one.spec.layers)
        chunked = Runs(one, text, args.decodes, 0)
        layered = Runs(other, text, args.decodes, 0)
        for runs in (chunked, layered):
            runs.beside(args.prompt)  # touches code and pools
        for chunks in alone:
            whole = sum(layered.alone(args.prompt))
            both = {"chunked": chunked.beside(args.prompt), "layered": layered.beside(args.prompt)}
            d = both["chunked"]["reads_of_decodes"] / experts
            by_chunks = sum(1 - (1 - d) * (1 - reads / experts) for reads in chunks)
            groups = both["layered"]["steps"]
            by_groups = 1 - (1 - d) * (1 - whole / experts) + (groups - 1) * d
            both["cut"] = 1 - both["layered"]["reads"] / both["chunked"]["reads"]
            both["foreseen_cut"] = 1 - by_groups / by_chunks
            found.append(both)
    for name in ("cut", "foreseen_cut"):
        print(f"{name.replace('_', ' ')}: {statistics.median(one[name] for one in found):.3f}")
    for name in found[0]["chunked"]:
        medians = [
            statistics.median(one[which][name] for one in found) for which in ("chunked", "layered")
        ]
        print(f"{name}: chunked {medians[0]:.4g}, layered {medians[1]:.4g}")
    if args.output_json:
        args.output_json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
