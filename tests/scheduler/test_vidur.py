"""Batches against those of Vidur's schedulers, step by step, for the same requests and the same
time for each token (`bench/vidur/batches.py` made the fixture).

Where requests are restarted the two may differ from there on, by what Vidur does on purpose: it
asks for a free block for each row, whether the row begins a block or not; it keeps requests sorted
by their arrival, here the one that came back is the youngest; and its watermark also holds where
nobody runs.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.output import ModelOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig

VIDUR: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parent / "vidur_batches.json.gz").read_bytes())
)
OURS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vllm": ("prefill-first", {}, VIDUR["whole_tokens"]),
    "sarathi": ("sarathi-serve", {"token_budget": VIDUR["chunk"]}, VIDUR["chunk"]),
}
"""Policy, its options, and the most tokens of a step."""


def batches(name: str, num_blocks: int, most: int) -> list[list[list[int]]]:
    """The first `most` steps as [[request, tokens], ...], by request."""
    policy, options, step_tokens = OURS[name]
    config = SchedulerConfig(
        num_blocks=num_blocks, block_size=VIDUR["block_size"], num_layers=1,
        max_model_len=VIDUR["max_tokens"], max_num_seqs=VIDUR["batch"],
        max_num_batched_tokens=step_tokens, max_steps_in_flight=1, enable_prefix_caching=False,
    )  # fmt: skip
    options = options | {"block_watermark": VIDUR["watermark"]}
    scheduler = Scheduler(config, policies.make(policy, options))
    to_come = [(at, *one) for at, one in enumerate(VIDUR["requests"])]
    now_s, found = 0.0, []
    while len(found) < most and (to_come or scheduler.num_running + scheduler.num_waiting):
        while to_come and to_come[0][1] <= now_s:
            number, _, prompt, answer = to_come.pop(0)
            sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=answer)
            scheduler.add(
                Request(
                    str(number), [0] * prompt, sampling, seed=0, eos_token_ids=(),
                    max_model_len=config.max_model_len,
                )
            )  # fmt: skip
        step = scheduler.schedule()
        if step is None:
            now_s = to_come[0][1]
            continue
        found.append(sorted([int(row.request_id), row.num_tokens] for row in step.rows))
        now_s += VIDUR["step_s"] + VIDUR["token_s"] * step.num_tokens
        scheduler.update(ModelOutput(step.step_id, [0] * sum(row.samples for row in step.rows)))
    return found


@pytest.mark.parametrize("run", VIDUR["runs"])
def test_batches_are_vidur_s(run: str) -> None:
    theirs = VIDUR["runs"][run]
    wanted = [sorted(batch) for batch in theirs["batches"]]
    # Where a request was restarted the batches end before that.
    found = batches(run.split(",")[0], theirs["num_blocks"], most=len(wanted) + theirs["ended"])
    for number, (ours, batch) in enumerate(zip(found, wanted, strict=False)):
        assert ours == batch, f"step {number}"
    assert len(found) == len(wanted)


def test_the_fixture_is_of_a_thousand_requests_that_wait() -> None:
    assert VIDUR["vidur"] == "0.0.26"
    assert len(VIDUR["requests"]) == 1000
    for run, theirs in VIDUR["runs"].items():
        rows = [len(batch) for batch in theirs["batches"]]
        assert theirs["ended"] == ("roomy" in run)
        assert len(rows) > 100, run
        assert max(rows) == VIDUR["batch"] or not theirs["ended"], run
        if theirs["ended"]:
            # Each prompt, and every token of an answer but the last, is computed once.
            tokens = sum(count for batch in theirs["batches"] for _, count in batch)
            assert tokens == sum(prompt + answer - 1 for _, prompt, answer in VIDUR["requests"])
