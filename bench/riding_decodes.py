"""What a decode token costs that rides on a chunk of a prompt, and in a step of decodes alone.

usage: python bench/riding_decodes.py --model DIR_OR_GGUF [--rows 4] [--chunk 256] [--context 256]
           [--rounds 5] [--output-json FILE]

SARATHI's claim (arXiv 2308.16369, section 5.1, as in its table 2): a step's weights are read once
for all its rows, so that what decodes beside a chunk adds little. Both are measured in one engine
in turns: the same chunk alone and with `rows` decodes beside it, and steps of these decodes between
such chunks. Of medians over rounds of medians a riding token costs (hybrid - chunk) / rows, one by
itself decode / rows: what the difference of two long steps says depends on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from seesaw import SamplingParams
from seesaw.config import EngineConfig
from seesaw.engine.engine import Engine
from seesaw.scheduler.output import SchedulerOutput

CHUNKS = 12
"""Of each kind in a round."""
CLAIM = 4.0


class Bench:
    def __init__(self, engine: Engine, rows: int, chunk: int, context: int) -> None:
        self._engine = engine
        self._rows, self._chunk, self._context = rows, chunk, context
        self._rng = random.Random(0)
        self._number = 0
        self._steps: list[tuple[int, int, float]] = []
        engine.observe_steps(self._observe)

    def _observe(self, step: SchedulerOutput, seconds: float) -> None:
        rows = list(step.rows)
        prompts = sum(row.num_tokens for row in rows if row.num_tokens > 1)
        decodes = sum(row.num_tokens == 1 for row in rows)
        self._steps.append((prompts, decodes, seconds))

    def _add(self, num_tokens: int, answer: int) -> None:
        self._number += 1
        prompt = [self._rng.randrange(self._engine.vocab_size) for _ in range(num_tokens)]
        sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=answer)
        self._engine.add_request(str(self._number), prompt, sampling)

    def _median_ms(self, prompts: int, decodes: int) -> float:
        found = [s for tokens, rows, s in self._steps if (tokens, rows) == (prompts, decodes)]
        assert len(found) >= CHUNKS // 2, f"{len(found)} steps of {prompts} and {decodes} tokens"
        return statistics.median(found) * 1e3

    def round(self) -> dict[str, float]:
        """Milliseconds of a step of each kind."""
        self._steps.clear()
        for _ in range(CHUNKS):
            self._add(self._chunk, 1)
            self._finish()
        for _ in range(self._rows):
            self._add(self._context, 4 * CHUNKS)
        while sum(rows == self._rows for _, rows, _ in self._steps) < 2:
            self._engine.step()
        for _ in range(CHUNKS):
            self._add(self._chunk, 1)
            for _ in range(3):
                self._engine.step()
        self._finish()
        chunk = self._median_ms(self._chunk, 0)
        hybrid = self._median_ms(self._chunk, self._rows)
        decode = self._median_ms(0, self._rows)
        return {"chunk_ms": chunk, "hybrid_ms": hybrid, "decode_ms": decode}

    def _finish(self) -> None:
        while self._engine.has_unfinished_requests():
            self._engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=4, help="decodes of a step")
    parser.add_argument("--chunk", type=int, default=256, help="tokens of the prompt beside them")
    parser.add_argument("--context", type=int, default=256, help="tokens before a decode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-json", type=Path)
    args = parser.parse_args()
    config = EngineConfig(
        model=args.model, dtype="bfloat16", policy="sarathi-serve", enable_prefix_caching=False,
        policy_options={"token_budget": args.chunk + args.rows},
        max_num_batched_tokens=max(args.chunk, args.context) + args.rows,
        max_model_len=max(args.chunk, args.context) + 4 * CHUNKS + 1, max_num_seqs=args.rows + 1,
    )  # fmt: skip
    rounds: list[dict[str, Any]] = []
    with Engine(config) as engine:
        bench = Bench(engine, args.rows, args.chunk, args.context)
        bench.round()  # touches code and pools
        for _ in range(args.rounds):
            rounds.append(bench.round())
            print(
                ", ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items()), flush=True
            )
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    riding = (found["hybrid_ms"] - found["chunk_ms"]) / args.rows
    alone = found["decode_ms"] / args.rows
    print(
        f"medians of {args.rounds} rounds: a decode token costs {alone:.2f} ms in a step of "
        f"{args.rows} decodes and {riding:.2f} ms on a chunk of {args.chunk}: {alone / riding:.1f} "
        f"times less (asked for: {CLAIM:.0f})"
    )
    if args.output_json:
        args.output_json.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
