"""What planning costs: `schedule()` + `update()` of one step, while another one is in flight.

Run: .venv/bin/python -m pytest bench/bench_scheduler.py --benchmark-only
The target is a median of at most 200 us at 256 decode rows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.output import ModelOutput, SchedulerOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig

BLOCK_SIZE = 16
MAX_MODEL_LEN = 4096
ROUNDS = 400
VOCAB_SIZE = 32_000


class Loop:
    """A scheduler with one step in flight, as an engine keeps it. Draws tokens that never stop."""

    def __init__(
        self,
        num_rows: int,
        num_batched_tokens: int,
        num_blocks: int,
        max_model_len: int = MAX_MODEL_LEN,
    ) -> None:
        self.max_model_len = max_model_len
        self.scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=num_blocks,
                block_size=BLOCK_SIZE,
                num_layers=30,
                max_model_len=max_model_len,
                max_num_seqs=num_rows,
                max_num_batched_tokens=num_batched_tokens,
            ),
            policies.make("continuous", {}),
        )
        self.rng = random.Random(0)
        self.ids = map(str, itertools.count())
        self.flying: SchedulerOutput | None = None
        self.num_rows: list[int] = []

    def add(self, prompt: list[int], num_answer: int) -> None:
        sampling = SamplingParams(max_tokens=num_answer, temperature=0.0, ignore_eos=True)
        self.scheduler.validate(len(prompt), sampling)
        self.scheduler.add(
            Request(
                next(self.ids),
                prompt,
                sampling,
                seed=0,
                eos_token_ids=(0,),
                max_model_len=self.max_model_len,
            )
        )

    def random_prompt(self, num_tokens: int) -> list[int]:
        return [self.rng.randrange(VOCAB_SIZE) for _ in range(num_tokens)]

    def draws(self) -> tuple[tuple[ModelOutput | None], dict[str, Any]]:
        """What the step in flight drew: the worker's time, which is not measured."""
        if self.flying is None:
            return (None,), {}
        rows = self.flying.rows
        return (ModelOutput(self.flying.step_id, [5] * sum(row.samples for row in rows)),), {}

    def turn(self, drawn: ModelOutput | None) -> None:
        """The measured part: plan the next step, take in the one before."""
        step = self.scheduler.schedule()
        if drawn is not None:
            self.scheduler.update(drawn)
        self.flying = step

    def measure(self, benchmark: Any, setup: Callable[[], Any], target_us: float | None) -> None:
        benchmark.pedantic(self.turn, setup=setup, rounds=ROUNDS, warmup_rounds=20)
        stats = self.scheduler.stats
        benchmark.extra_info["mean_rows_per_step"] = round(sum(self.num_rows) / len(self.num_rows))
        benchmark.extra_info["num_steps"] = stats.num_steps
        benchmark.extra_info["tokens_per_step"] = round(
            stats.num_scheduled_tokens / stats.num_steps
        )
        benchmark.extra_info["num_preemptions"] = stats.num_preemptions
        if target_us is not None:
            benchmark.extra_info["target_us"] = target_us

    def count_rows(self) -> None:
        if self.flying is not None:
            self.num_rows.append(len(self.flying.rows))


@pytest.mark.parametrize("num_rows", [64, 256])
def test_decode(benchmark: Any, num_rows: int) -> None:
    """All rows decode; block tables grow on the way."""
    loop = Loop(num_rows, num_batched_tokens=8192, num_blocks=num_rows * 64)
    for _ in range(num_rows):
        loop.add(loop.random_prompt(loop.rng.randint(16, 64)), MAX_MODEL_LEN - 64)

    def setup() -> Any:
        loop.count_rows()
        return loop.draws()

    loop.measure(benchmark, setup, 200.0 if num_rows == 256 else None)
    assert min(loop.num_rows[2:]) == num_rows, "a step did not decode all rows"


def test_decode_beside_prefill_chunks(benchmark: Any) -> None:
    """256 places, answers that end, and prompts that take the places: every step has both kinds."""
    loop = Loop(256, num_batched_tokens=512, num_blocks=256 * 64)
    stem = loop.random_prompt(128)

    def setup() -> Any:
        while loop.scheduler.num_waiting < 32:
            own = loop.random_prompt(loop.rng.randint(64, 1024))
            loop.add(stem + own, loop.rng.randint(16, 256))
        loop.count_rows()
        return loop.draws()

    loop.measure(benchmark, setup, None)


def test_decode_beside_a_blocked_prompt(benchmark: Any) -> None:
    """16 rows decode after one long document; one more prompt about it waits for free blocks.

    The waiting prompt is looked up in the prefix cache whenever a step is planned.
    """
    num_document_blocks = 1024
    max_model_len = 2 * num_document_blocks * BLOCK_SIZE
    loop = Loop(64, 32_768, num_blocks=2 * num_document_blocks, max_model_len=max_model_len)
    document = loop.random_prompt(num_document_blocks * BLOCK_SIZE)
    for _ in range(16):
        loop.add(document + loop.random_prompt(8), 2 * ROUNDS)
    loop.add(document + loop.random_prompt(len(document) - 16), 1)

    def setup() -> Any:
        loop.count_rows()
        return loop.draws()

    loop.measure(benchmark, setup, None)
    assert loop.scheduler.num_waiting == 1, "the prompt was not blocked"
    assert loop.num_rows[-1] == 16, "a step did not decode all rows"
