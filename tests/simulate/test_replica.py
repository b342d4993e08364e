"""The clock of one replica, step by step: changes of layout and stores beside computing."""

from __future__ import annotations

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import CostModel
from seesaw.plan.transition import Landing
from seesaw.plan.work import WorkCounter
from seesaw.scheduler.output import Batch, Phase, Row, SchedulerOutput, Store
from seesaw.simulate.replica import PhaseModel, Ran, ReplicaClock, Transition
from tests.plan.devices import make_device, make_links, make_machine
from tests.simulate.scenarios import tiny_spec


def make_clock(layout: str, landing: Landing, **settings: bool) -> ReplicaClock:
    """Steps take a second per stage, a block a second to be stored; both phases in one layout."""
    spec, parallel = tiny_spec(), ParallelLayout.parse(layout)
    device = make_device(step_overhead_s=1.0, store_bytes_per_s=1.0)
    machine = make_machine(device, parallel.num_ranks, make_links())
    model = PhaseModel(
        CostModel(spec, machine, parallel, "float16"),
        num_layers=[spec.num_hidden_layers // parallel.pp] * parallel.num_ranks,
        store_block_bytes=[1] * parallel.num_ranks,
        load_block_bytes=[1] * parallel.num_ranks,
    )
    change = Transition([landing] * parallel.num_ranks, is_beside=True, **settings)
    return ReplicaClock(
        {"prefill": model, "decode": model}, WorkCounter(spec),
        transitions={"prefill": change, "decode": change},
    )  # fmt: skip


def submit(
    clock: ReplicaClock, step_id: int, phase: Phase, *requests: str, stores: tuple[str, ...] = (),
    reshard: bool = False, at_s: float = 0.0,
) -> Ran:  # fmt: skip
    """A step in which these decode."""
    rows = [
        Row(request_id, 4, 1, 0, tiny_spec().num_hidden_layers, True) for request_id in requests
    ]
    step = SchedulerOutput(
        step_id=step_id, phase=phase, batches=[Batch(rows)] if rows else [], reshard=reshard,
        stores=[Store(n, request_id, phase, [0], [0], 4) for n, request_id in enumerate(stores)],
    )  # fmt: skip
    return clock.submit(step, at_s)


def test_a_change_waits_for_the_one_before() -> None:
    """Nothing is computed between them: 8 s, 8 s, and half of a second behind the last round."""
    clock = make_clock("tp1", Landing(2.0, 8.0, 0.5))
    submit(clock, 0, "decode", reshard=True)
    submit(clock, 1, "prefill", reshard=True)
    assert submit(clock, 2, "prefill", "a").done_s == 16.5


def test_waiting_for_others_to_begin_a_change_is_not_waiting_for_weights() -> None:
    """The first stage is done at 1 and the second at 2, when the change begins: weights come from
    2 to 3, and the stages are through at 4 and 5."""
    clock = make_clock("pp2", Landing(1.0, 1.0, 1.0), is_joint=True)
    assert submit(clock, 0, "decode", "a").done_s == 2.0
    ran = submit(clock, 1, "prefill", "a", reshard=True)
    assert (ran.done_s, ran.output.reshard_s, ran.output.busy_s) == (5.0, 1.0, 1.0)


def test_what_no_row_adds_to_is_stored_when_the_rank_comes_to_the_step() -> None:
    """The step is from 1 to 2: one block is stored meanwhile, the row's own behind it."""
    clock = make_clock("tp1", Landing(0.0, 0.0, 1.0))
    submit(clock, 0, "decode", "a")
    ran = submit(clock, 1, "decode", "a", stores=("a", "gone"))
    assert [(end_s, done.transfer_id, done.num_bytes) for end_s, done in ran.transfers] == [
        (3.0, 0, 1), (2.0, 1, 1)
    ]  # fmt: skip


def test_bubbles_are_what_stages_stand_still_while_steps_are_under_way() -> None:
    """Steps of a second a stage: the second stage waits for the first one's first step, nothing
    waits between two that follow at once, and a step that comes late is waited for by the stages
    that were done before, but not when nothing is under way."""
    clock = make_clock("pp2", Landing(0.0, 0.0, 1.0))
    assert submit(clock, 0, "decode", "a").bubble_s == 1.0
    assert submit(clock, 1, "decode", "b").bubble_s == 0.0  # through at 3
    assert submit(clock, 2, "decode", "a", at_s=2.5).bubble_s == 1.0  # 0.5 on either stage
    assert submit(clock, 3, "decode", "a", at_s=100.0).bubble_s == 2.0  # one on the way in, one out
    assert submit(clock, 4, "decode", at_s=102.5).bubble_s == 0.0  # without rows
