"""The worker model refuses what real workers could not run right: it has to, or the property tests
show nothing. Steps are written by hand, right ones first, each wrong one after them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from seesaw.scheduler.output import Batch, Load, NewRequest, Phase, Row, SchedulerOutput, Store
from tests.scheduler.worker_model import WorkerModel, serial_tokens

PROMPT = [5, 6, 7, 8, 9]
FIRST, SECOND = serial_tokens(PROMPT, 3, 40, 2)
STORE = Store(0, "a", "prefill", [2, 0], [1], 5)
LOAD = Load(1, "a", [1], [3, 1], 5)


class Steps:
    """A worker model and its steps. Blocks of 4 tokens, tier blocks of 8."""

    def __init__(self, prefill_stages: int = 1, decode_stages: int = 1) -> None:
        tier = TierConfig(
            prefill_blocks=4,
            tier_blocks=3,
            tier_block_size=8,
            prefill_stages=prefill_stages,
            decode_stages=decode_stages,
        )
        config = SchedulerConfig(
            num_blocks=4, block_size=4, num_layers=2, max_model_len=64, max_num_seqs=8,
            max_num_batched_tokens=32, tier=tier,
        )  # fmt: skip
        self.worker = WorkerModel(config, 40)
        self.rng = random.Random(0)

    def step(self, phase: Phase, *rows: tuple[str, int, int, bool], **fields: Any) -> list[int]:
        step = SchedulerOutput(
            self.worker.next_step,
            phase,
            fields.pop("reshard", phase != self.worker.phase),
            batches=[Batch([Row(name, at, n, 0, 2, samples) for name, at, n, samples in rows])],
            **fields,
        )
        return self.worker.execute(step).token_ids

    def prefill(self, request_id: str = "a", blocks: tuple[int, ...] = (2, 0), **fields: Any):  # type: ignore[no-untyped-def]
        new = NewRequest(request_id, PROMPT, SamplingParams(), 3, ())
        return self.step(
            "prefill",
            (request_id, 0, 5, True),
            new_requests=[new],
            appended_blocks={request_id: list(blocks)},
            **fields,
        )

    def done(self, transfer_id: int) -> None:
        self.worker.transferred(transfer_id, self.rng)

    def loaded(self) -> Steps:
        """`a` is prefilled, stored and loaded, in the decode phase."""
        self.prefill(stores=[STORE])
        self.done(0)
        self.step("decode", loads=[LOAD])
        self.done(1)
        return self


def test_a_life_through_the_tier() -> None:
    steps = Steps()
    assert steps.prefill(stores=[STORE]) == [FIRST]
    steps.done(0)
    assert steps.step("decode", loads=[LOAD]) == []
    steps.done(1)
    assert steps.step("decode", ("a", 5, 1, True)) == [SECOND]


def test_a_resident_waits_through_a_prefill_phase() -> None:
    steps = Steps().loaded()
    steps.prefill("b", (2, 0), stores=[Store(2, "b", "prefill", [2, 0], [1], 5)])
    assert steps.step("decode", ("a", 5, 1, True)) == [SECOND]


def test_a_resident_goes_back_to_the_tier_and_returns() -> None:
    steps = Steps().loaded()
    steps.step("decode", ("a", 5, 1, True), stores=[Store(2, "a", "decode", [3, 1], [0], 6)])
    steps.done(2)
    steps.step("decode", loads=[Load(3, "a", [0], [0, 2], 6)])
    steps.done(3)
    steps.step("decode", ("a", 6, 1, True))


def test_copies_happen_at_any_moment_until_they_are_reported() -> None:
    early, late = Steps(), Steps()
    for steps in (early, late):
        steps.prefill(stores=[STORE])
    while early.worker.transfers.open[0].pieces:
        early.worker.transfers.copy_some(early.rng)
    assert early.worker.transfers.tier != late.worker.transfers.tier
    for steps in (early, late):
        steps.done(0)
    assert early.worker.transfers.tier == late.worker.transfers.tier


def refuses(message: str, steps: Steps, *args: Any, **fields: Any) -> None:
    with pytest.raises((AssertionError, KeyError), match=message):
        steps.step(*args, **fields)


def test_a_row_before_its_load_is_reported() -> None:
    steps = Steps()
    steps.prefill(stores=[STORE])
    steps.done(0)
    steps.step("decode", loads=[LOAD])
    refuses("before its load is complete", steps, "decode", ("a", 5, 1, True))


def test_a_load_before_its_store_is_reported() -> None:
    steps = Steps()
    steps.prefill(stores=[STORE])
    refuses("before its store is complete", steps, "decode", loads=[LOAD])


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (LOAD._replace(tier_blocks=[2]), "stored in"),
        (LOAD._replace(num_tokens=4), "stored 5"),
        (LOAD._replace(blocks=[3, 3]), "twice"),
        (LOAD._replace(request_id="b"), "b"),
    ],
)
def test_loads_of_something_else(load: Load, message: str) -> None:
    steps = Steps()
    steps.prefill(stores=[STORE])
    steps.done(0)
    refuses(message, steps, "decode", loads=[load])


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (STORE._replace(phase="decode"), "the table is of prefill"),
        (STORE._replace(num_tokens=4), "5 computed"),
        (STORE._replace(blocks=[0, 2]), "not its table"),
        (STORE._replace(tier_blocks=[0, 1]), "tier blocks"),
        (STORE._replace(tier_blocks=[3]), "Store"),
    ],
)
def test_stores_of_something_else(store: Store, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        Steps().prefill(stores=[store])


def test_tier_blocks_that_others_hold() -> None:
    steps = Steps()
    steps.prefill(stores=[STORE])
    for moment in ("stored", "loading"):
        with pytest.raises(AssertionError, match="are in use"):
            steps.prefill("b", (3, 1), stores=[Store(7, "b", "prefill", [3, 1], [1], 5)])
        if moment == "stored":
            steps = Steps()
            steps.prefill(stores=[STORE])
            steps.done(0)
            steps.step("prefill", loads=[LOAD])
    steps = Steps().loaded()  # free when the load is reported
    steps.prefill("b", stores=[Store(7, "b", "prefill", [2, 0], [1], 5)])


def test_blocks_that_are_still_being_stored() -> None:
    steps = Steps()
    steps.prefill(stores=[STORE])
    with pytest.raises(AssertionError, match="while it is copied"):
        steps.prefill("b", (3, 0))


def test_blocks_of_the_decode_pool_that_others_hold() -> None:
    steps = Steps().loaded()
    steps.prefill("b", stores=[Store(2, "b", "prefill", [2, 0], [2], 5)])
    steps.done(2)
    refuses("are in use", steps, "decode", loads=[Load(3, "b", [2], [2, 1], 5)])


def test_blocks_that_are_poisoned_while_they_are_loaded() -> None:
    steps = Steps()
    steps.prefill(stores=[STORE])
    steps.done(0)
    steps.step("decode", loads=[LOAD])
    refuses("poisoned while it is copied", steps, "decode", reshard=False, poison_blocks=[3])


def test_poison_of_blocks_in_use_shows() -> None:
    steps = Steps().loaded()
    refuses("attends to KV", steps, "decode", ("a", 5, 1, True), poison_blocks=[3])


def test_rows_in_the_other_pool() -> None:
    steps = Steps().loaded()
    refuses("its table is of decode", steps, "prefill", ("a", 5, 1, True))
    steps = Steps()
    steps.prefill()
    refuses("its table is of prefill", steps, "decode", ("a", 5, 1, True))


def test_a_table_of_two_pools() -> None:
    steps = Steps().loaded()
    refuses("two pools", steps, "prefill", appended_blocks={"a": [3]})


def test_a_change_of_phase_that_is_not_said() -> None:
    refuses("reshard and phase disagree", Steps(), "decode", reshard=False)
    refuses("reshard and phase disagree", Steps(), "prefill", reshard=True)


def test_a_step_that_does_nothing() -> None:
    refuses("an empty step", Steps(), "prefill")


def test_tokens_drawn_by_a_pipeline_are_not_known_to_its_first_stage() -> None:
    def loaded() -> Steps:
        return Steps(prefill_stages=2).loaded()

    row = ("a", 5, 1, True)
    refuses("unknown to the first stage", loaded(), "decode", row)
    assert loaded().step("decode", row, known_tokens={"a": (5, [FIRST])}) == [SECOND]
    refuses("a gap", loaded(), "decode", row, known_tokens={"a": (6, [FIRST])})
    refuses("wrong tokens", loaded(), "decode", row, known_tokens={"a": (5, [FIRST + 1])})
    refuses("told nothing", loaded(), "decode", row, known_tokens={"a": (5, [])})
    # Drawn with one stage, known to all.
    assert Steps(decode_stages=2).loaded().step("decode", row) == [SECOND]
    refuses(
        "what every rank knows", Steps().loaded(), "decode", row, known_tokens={"a": (5, [FIRST])}
    )


def test_a_request_that_yields_while_it_is_copied() -> None:
    steps = Steps()
    steps.prefill(stores=[STORE])
    refuses("yields while it is copied", steps, "prefill", preempted=["a"])
