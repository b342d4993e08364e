"""The merger against random orders of random reports; messages survive the wire."""

from __future__ import annotations

import random

import pytest

from seesaw.engine.merger import Merger
from seesaw.engine.messages import (
    Setup,
    Step,
    StepReport,
    TransferReport,
)
from seesaw.engine.wire import decode, encode
from seesaw.errors import EngineDeadError
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import (
    Batch,
    Load,
    ModelOutput,
    NewRequest,
    Row,
    SchedulerOutput,
    Store,
    TokenLogprobs,
    TransferDone,
)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_is_done_with_its_last_rank_whatever_the_order(seed: int) -> None:
    rng = random.Random(seed)
    num_ranks, num_steps = rng.randint(1, 4), 12
    drawing = rng.sample(range(num_ranks), rng.randint(1, num_ranks))
    tokens = [[rng.randrange(100) for _ in range(rng.randint(0, 3))] for _ in range(num_steps)]
    reports: list[StepReport | TransferReport] = [
        StepReport(
            rank=rank,
            step_id=step,
            token_ids=list(tokens[step]) if rank in drawing else None,
            busy_s=float(rank),
            weight_bytes={"host": 10, "resident": rank},
        )
        for rank in range(num_ranks)
        for step in range(num_steps)
    ]
    reports += [
        TransferReport(rank, transfer, 100 + rank, float(rank), 0.0)
        for rank in range(num_ranks)
        for transfer in range(5)
    ]
    rng.shuffle(reports)
    merger = Merger(num_ranks)
    seen: dict[object, int] = {}
    finished: list[ModelOutput | TransferDone] = []
    for report in reports:
        if isinstance(report, StepReport):
            key: object = ("step", report.step_id)
            done: ModelOutput | TransferDone | None = merger.add_step(report)
        else:
            key = ("transfer", report.transfer_id)
            done = merger.add_transfer(report)
        seen[key] = seen.get(key, 0) + 1
        assert (done is not None) == (seen[key] == num_ranks)
        finished += [] if done is None else [done]
    steps = {done.step_id: done for done in finished if isinstance(done, ModelOutput)}
    assert {step: done.token_ids for step, done in steps.items()} == dict(enumerate(tokens))
    assert all(done.busy_s == num_ranks - 1 for done in steps.values())
    transfers = [done for done in finished if isinstance(done, TransferDone)]
    assert sorted(done.transfer_id for done in transfers) == list(range(5))
    assert {done.num_bytes for done in transfers} == {sum(100 + rank for rank in range(num_ranks))}
    assert merger.weight_bytes == {
        "host": 10 * num_ranks * num_steps,
        "resident": sum(range(num_ranks)) * num_steps,
    }


def test_ranks_that_draw_different_tokens_are_found_out() -> None:
    merger = Merger(3)
    assert merger.add_step(StepReport(rank=2, step_id=4, token_ids=[1, 2])) is None
    assert merger.add_step(StepReport(rank=1, step_id=4)) is None
    with pytest.raises(EngineDeadError, match=r"ranks 2 and 0 drew different tokens in step 4"):
        merger.add_step(StepReport(rank=0, step_id=4, token_ids=[1, 3]))


def test_log_probabilities_come_from_a_rank_that_drew() -> None:
    entry = TokenLogprobs(-0.5, 1, [7], [-0.5])
    merger = Merger(2)
    merger.add_step(StepReport(rank=1, step_id=0, token_ids=[7], logprobs=[entry]))
    done = merger.add_step(StepReport(rank=0, step_id=0))
    assert done is not None
    assert done.logprobs == [entry]


def test_messages_are_the_same_behind_the_wire() -> None:
    sampling = SamplingParams(max_tokens=3, stop=["x"], logit_bias={3: 1.5}, logprobs=2)
    step = SchedulerOutput(
        3,
        "prefill",
        reshard=True,
        new_requests=[NewRequest("a", [1, 2], sampling, 2**64 - 1, (1, 2))],
        appended_blocks={"a": [1]},
        known_tokens={"a": (3, [1])},
        loads=[Load(1, "a", [1], [2], 3)],
        batches=[Batch([Row("a", 0, 2, 0, 3, True)])],
        stores=[Store(2, "a", "prefill", [1], [2], 3)],
    )
    message = decode(encode(Step(step)))
    assert isinstance(message, Step)
    assert not isinstance(message, Setup)
    assert message.output == step
    report = StepReport(
        rank=1, step_id=2, token_ids=[1], logprobs=[None, TokenLogprobs(-1.0, 1, [2], [3.0])]
    )
    assert decode(encode(report)) == report
