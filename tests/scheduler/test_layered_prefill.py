"""Layered prefill step by step: who is in a wave, which layers its rows run, and what of it is left
when a member ends or yields. What a prompt costs, against `continuous`, in exact counts."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.scheduler import policies
from seesaw.scheduler.output import ModelOutput, Row, SchedulerOutput
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig
from tests.scheduler.harness import (
    CONFIG,
    add,
    assert_all_free,
    ids_of_rows,
    prompt_of,
    step_of,
)

LAYERS = 7


def layered(options: dict[str, Any], **overrides: Any) -> Scheduler:
    """Groups of 7 layers for each 4 tokens, unless `options` say otherwise."""
    config = CONFIG | {"num_layers": LAYERS, "num_blocks": 64} | overrides
    given = {"group_tokens": 4, "block_watermark": 0.0} | options
    return Scheduler(SchedulerConfig(**config), policies.make("layered-prefill", given))


def update(scheduler: Scheduler, step: SchedulerOutput) -> None:
    """Every row that draws draws a 9."""
    drawn = sum(row.samples for row in step.rows)
    scheduler.update(ModelOutput(step.step_id, [9] * drawn))


def run(scheduler: Scheduler, num_steps: int) -> list[list[Row]]:
    """Rows of the next steps, each of which is done before the next one."""
    found = []
    for _ in range(num_steps):
        step = step_of(scheduler)
        update(scheduler, step)
        found.append(step.rows)
    return found


def finish(scheduler: Scheduler) -> list[list[Row]]:
    found = []
    while scheduler.num_unfinished:
        found += run(scheduler, 1)
    return found


def with_a_decode(options: dict[str, Any], answer: int = 40, **overrides: Any) -> Scheduler:
    """Somebody decodes, for long."""
    scheduler = layered(options, **overrides)
    add(scheduler, "old", prompt_of(3), max_tokens=answer)
    run(scheduler, 1)
    return scheduler


def test_a_wave_runs_its_groups_one_after_another_beside_the_decodes() -> None:
    scheduler = with_a_decode({})
    add(scheduler, "a", prompt_of(7, 200), max_tokens=4)
    add(scheduler, "b", prompt_of(5, 300), max_tokens=4)
    steps = run(scheduler, 4)
    # 12 tokens: 3 groups of 3, 2 and 2 layers.
    for rows, layers in zip(steps, [(0, 3), (3, 5), (5, 7)], strict=False):
        last = layers[1] == LAYERS
        assert rows[0][2:] == (1, 0, LAYERS, True), "the decode goes through all layers"
        assert rows[1:] == [Row("a", 0, 7, *layers, last), Row("b", 0, 5, *layers, last)]
    assert [row.request_id for row in steps[3]] == ["old", "a", "b"]
    assert all(row[2:] == (1, 0, LAYERS, True) for row in steps[3])


def test_progress_and_shared_blocks_count_when_the_last_group_has_run() -> None:
    scheduler = with_a_decode({})
    request = add(scheduler, "a", prompt_of(8, 200), max_tokens=4)
    run(scheduler, 1)
    assert (request.num_computed, request.layer_cursor, request.wave_tokens) == (0, 4, 8)
    assert len(request.blocks) == 2, "all blocks of the prompt are taken with admission"
    twin = add(scheduler, "twin", prompt_of(8, 200), max_tokens=4)
    run(scheduler, 1)
    assert (request.num_computed, request.layer_cursor, request.wave_tokens) == (8, 0, 0)
    assert twin.blocks == [], "who comes meanwhile waits for the wave to end"
    run(scheduler, 1)
    assert twin.num_cached_tokens == 4, "its first block is found again now"


def test_while_nothing_decodes_all_groups_run_at_once() -> None:
    scheduler = layered({})
    add(scheduler, "a", prompt_of(20), max_tokens=3)
    assert run(scheduler, 1) == [[Row("a", 0, 20, 0, LAYERS, True)]]
    scheduler = with_a_decode({"group_tokens": 1})
    add(scheduler, "a", prompt_of(20), max_tokens=3)
    assert run(scheduler, 2)[1][1] == Row("a", 0, 20, 1, 2, False)
    scheduler.finish("old", "abort")
    assert run(scheduler, 1) == [[Row("a", 0, 20, 2, LAYERS, True)]]


def test_the_last_token_of_the_only_answer_is_not_held_up() -> None:
    scheduler = layered({"group_tokens": 1})
    add(scheduler, "old", prompt_of(3), max_tokens=2)
    run(scheduler, 1)
    add(scheduler, "a", prompt_of(20), max_tokens=3)
    old, new = run(scheduler, 1)[0]
    assert old.samples
    assert (new.layer_start, new.layer_stop) == (0, 1)


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        (1, {}, [7]),
        (4, {}, [7]),
        (5, {}, [4, 3]),
        (20, {}, [2, 2, 1, 1, 1]),
        (20, {"max_groups": 3}, [3, 2, 2]),
        (20, {"max_groups": 1}, [7]),
        (20, {"group_tokens": 1}, [1] * 7),
        (20, {"group_tokens": 512}, [7]),
    ],
)
def test_a_longer_wave_has_more_groups(
    tokens: int, options: dict[str, Any], expected: list[int]
) -> None:
    scheduler = with_a_decode(options)
    add(scheduler, "a", prompt_of(tokens), max_tokens=4)
    rows = [row for rows in run(scheduler, len(expected)) for row in rows[1:]]
    assert [row.layer_stop - row.layer_start for row in rows] == expected
    assert [row.layer_stop for row in rows[:-1]] == [row.layer_start for row in rows[1:]]
    assert [row.samples for row in rows] == [False] * (len(expected) - 1) + [True]


def test_a_long_prompt_is_cut_by_tokens_and_each_part_by_layers() -> None:
    scheduler = with_a_decode({"wave_tokens": 8})
    add(scheduler, "a", prompt_of(18, 200), max_tokens=4)
    add(scheduler, "b", prompt_of(3, 300), max_tokens=4)
    rows = [[row[:5] for row in rows[1:]] for rows in run(scheduler, 6)]
    assert rows == [
        [("a", 0, 8, 0, 4)],
        [("a", 0, 8, 4, 7)],
        [("a", 8, 8, 0, 4)],
        [("a", 8, 8, 4, 7)],
        [("a", 16, 2, 0, 4), ("b", 0, 3, 0, 4)],
        [("a", 16, 2, 4, 7), ("b", 0, 3, 4, 7)],
    ]


def test_a_wave_leaves_room_for_every_decode() -> None:
    scheduler = with_a_decode({}, max_num_batched_tokens=10)
    add(scheduler, "a", prompt_of(30, 200), max_tokens=2)
    for rows in finish(scheduler):
        assert sum(row.num_tokens for row in rows) <= 10
        assert rows[0].request_id == "old" or not scheduler.num_running
    assert_all_free(scheduler)


def test_blocks_reserved_for_growth_and_seats_bound_a_wave() -> None:
    scheduler = with_a_decode({}, max_num_seqs=3)
    for index in range(4):
        add(scheduler, str(index), prompt_of(4, 100 * (index + 2)), max_tokens=2)
    assert [row.request_id for row in run(scheduler, 1)[0]] == ["old", "0", "1"]
    # 16 blocks: old has 1, a prompt takes 5, and 8 must stay free.
    scheduler = with_a_decode({"block_watermark": 0.5}, num_blocks=16)
    for index in range(4):
        add(scheduler, str(index), prompt_of(20, 100 * (index + 2)), max_tokens=2)
    assert [row.request_id for row in run(scheduler, 1)[0]] == ["old", "0"]


def test_a_member_that_is_aborted_leaves_the_wave_and_nothing_behind() -> None:
    scheduler = with_a_decode({})
    for name in "ab":
        add(scheduler, name, prompt_of(6, 200 if name == "a" else 300), max_tokens=2)
    run(scheduler, 1)
    scheduler.finish("a", "abort")
    step = step_of(scheduler)
    assert step.finished == ["a"]
    assert ids_of_rows(step) == ["old", "b"]
    update(scheduler, step)
    finish(scheduler)
    assert_all_free(scheduler)


def test_a_wave_whose_members_are_all_gone_is_followed_by_another() -> None:
    scheduler = with_a_decode({})
    add(scheduler, "a", prompt_of(12, 200), max_tokens=2)
    run(scheduler, 1)
    scheduler.finish("a", "abort")
    add(scheduler, "b", prompt_of(5, 300), max_tokens=2)
    rows = run(scheduler, 2)
    assert [row[1][:5] for row in rows] == [("b", 0, 5, 0, 4), ("b", 0, 5, 4, 7)]


def test_the_youngest_member_yields_when_a_decode_must_grow() -> None:
    """And begins again at the first layer."""
    scheduler = layered({"group_tokens": 1}, num_blocks=4, max_num_batched_tokens=16)
    add(scheduler, "old", prompt_of(3), max_tokens=8)
    run(scheduler, 1)
    requests = [
        add(scheduler, name, prompt_of(length, first), max_tokens=2)
        for name, length, first in (("a", 4, 200), ("b", 8, 300))
    ]
    steps = [rows for _ in range(2) for rows in run(scheduler, 1)]
    assert [[row.request_id for row in rows] for rows in steps] == [["old", "a", "b"], ["old", "a"]]
    a, b = requests
    assert (b.num_preemptions, b.layer_cursor, b.wave_tokens) == (1, 0, 0)
    assert a.layer_cursor == 2
    rows = [row for rows in finish(scheduler) for row in rows if row.request_id == "b"]
    assert (rows[0].token_start, rows[0].layer_start) == (0, 0)
    assert_all_free(scheduler)


def test_no_new_wave_before_the_workers_have_dropped_what_the_last_one_left() -> None:
    """So that hidden states of a step's tokens, and no more, are ever kept."""
    scheduler = with_a_decode({"group_tokens": 2}, max_steps_in_flight=3)
    add(scheduler, "a", prompt_of(12, 200), max_tokens=2)
    step = step_of(scheduler)
    scheduler.finish("a", "abort")
    add(scheduler, "b", prompt_of(5, 300), max_tokens=2)
    between = step_of(scheduler)
    assert ids_of_rows(between) == ["old"]
    update(scheduler, step)
    after = step_of(scheduler)
    assert after.finished == ["a"]
    assert ids_of_rows(after) == ["old", "b"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("group_tokens", 0), ("max_groups", True), ("wave_tokens", 2.5), ("block_watermark", 1)],
)
def test_impossible_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option}={value}"):
        policies.make("layered-prefill", {option: value})


# -- what a prompt costs --------------------------------------------------------------------------


def count(policy: str, options: dict[str, Any], prompt: int) -> tuple[Counter[int], int, int]:
    """One prompt beside a decode: passes of each layer by its rows, positions that these read in a
    layer (mean over layers), and steps to its first token."""
    config = SchedulerConfig(
        **CONFIG
        | {
            "num_layers": LAYERS, "num_blocks": 400, "max_model_len": 1000, "debug": False,
            "max_num_batched_tokens": 600,
        }
    )  # fmt: skip
    scheduler = Scheduler(config, policies.make(policy, options))
    add(scheduler, "old", prompt_of(1), max_tokens=500)
    run(scheduler, 1)
    request = add(scheduler, "a", prompt_of(prompt, 1000), max_tokens=2)
    passes: Counter[int] = Counter()
    read = num_steps = 0
    while not request.num_output_tokens:
        (rows,) = run(scheduler, 1)
        num_steps += 1
        assert rows[0][2:] == (1, 0, LAYERS, True), "the decode is never held up"
        for row in rows[1:]:
            passes.update(range(row.layer_start, row.layer_stop))
            read += (row.token_start + row.num_tokens) * (row.layer_stop - row.layer_start)
    assert read % LAYERS == 0
    return passes, read // LAYERS, num_steps


def test_a_prompt_crosses_each_layer_once_and_reads_its_keys_once() -> None:
    """Against chunks of C: N passes of each layer, which read C * N * (N + 1) / 2 positions; as
    many steps to the first token where there are as many groups as chunks."""
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    for _ in range(20):
        chunk, num_chunks = rng.randint(1, 70), rng.randint(1, LAYERS)
        prompt = chunk * num_chunks
        expected = (dict.fromkeys(range(LAYERS), 1), prompt, num_chunks)
        assert count("layered-prefill", {"group_tokens": chunk}, prompt) == expected
        reads = chunk * num_chunks * (num_chunks + 1) // 2
        expected = (dict.fromkeys(range(LAYERS), num_chunks), reads, num_chunks)
        assert count("continuous", {"max_prefill_chunk": chunk}, prompt) == expected


def test_groups_are_contiguous_and_as_even_as_can_be() -> None:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    for _ in range(40):
        num_layers, tokens, per_group = rng.randint(1, 50), rng.randint(1, 60), rng.randint(1, 70)
        most = rng.randint(1, 60)
        scheduler = with_a_decode(
            {"group_tokens": per_group, "max_groups": most},
            60,  # steps, more than there are groups
            num_layers=num_layers, max_num_batched_tokens=64, max_model_len=64,
        )  # fmt: skip
        request = add(scheduler, "a", prompt_of(tokens, 200), max_tokens=2)
        sizes = []
        while not request.num_output_tokens:
            (row,) = run(scheduler, 1)[0][1:]
            assert row.layer_start == sum(sizes)
            sizes.append(row.layer_stop - row.layer_start)
        assert sum(sizes) == num_layers
        assert len(sizes) == min(-(-tokens // per_group), most, num_layers)
        assert sizes == sorted(sizes, reverse=True), "larger ones first"
        assert sizes[0] - sizes[-1] <= 1


def test_a_token_is_computed_once_though_it_is_in_a_step_for_each_group() -> None:
    scheduler = with_a_decode({})
    before, decoded = scheduler.stats.num_computed_tokens, scheduler.stats.num_decode_rows
    add(scheduler, "p", prompt_of(12, 500), max_tokens=1)
    groups = run(scheduler, 3)
    assert [row.num_tokens for rows in groups for row in rows if row.request_id == "p"] == [12] * 3
    decodes = scheduler.stats.num_decode_rows - decoded
    assert scheduler.stats.num_computed_tokens - before == 12 + decodes


def test_what_is_computed_again_of_an_answer_is_no_decode() -> None:
    """Rows of a wave that begin behind the prompt, which is found again."""
    scheduler = with_a_decode({"group_tokens": 1})
    request = add(scheduler, "p", prompt_of(8, 500), max_tokens=20, ignore_eos=True)
    while request.num_output_tokens < 6:
        run(scheduler, 1)
    scheduler._residency.preempt(request)
    stats = scheduler.stats
    computed, decoded = stats.num_computed_tokens, stats.num_decode_rows
    groups = [
        (row.token_start, row.num_tokens)
        for rows in run(scheduler, 2)
        for row in rows
        if row.request_id == "p"
    ]
    assert groups == [(12, 2), (12, 2)]
    assert stats.num_decode_rows - decoded == 2, "the other one's"
    assert stats.num_computed_tokens - computed == 2 + 2
