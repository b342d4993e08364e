"""Which steps are recorded, when, and that a replay reads what is in the buffers now. The twin of
CUDA's recorder keeps the function and what it was given, as a graph keeps addresses and launches.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seesaw.engine.cuda_graphs import DecodeGraphs, Launch
from seesaw.engine.input_batch import InputBuffers, as_tensors, gather_rows
from seesaw.engine.messages import StepLimits
from seesaw.layout import Range
from seesaw.plan.graph_sizes import graph_size
from tests.engine.deferred import DeferredClock
from tests.engine.test_input_batch import BLOCK, CPU, decode_rows, random_step

LIMITS = StepLimits(num_tokens=64, num_rows=40, row_tokens=100)
HIDDEN = 4


class TwinRecorder:
    """Replays by calling again. `most`: graphs that there is memory for."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.recorded = self.replayed = 0

    def record(self, launch: Launch) -> Launch | None:
        if self.recorded >= self.most:
            return None
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            launch()

        return replay


class SumDecoder:
    """Its answer names all that it was given, and it stores the token of each slot."""

    dtype = torch.float32

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.stored = torch.full((600 * BLOCK,), -7)
        self.calls: list[int] = []

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(token_ids))
        return token_ids[:, None].float() * torch.arange(1, HIDDEN + 1)

    def run_layers(self, hidden, inputs, kv, first, last):
        slots = inputs.slot_mapping_T
        self.stored[slots[slots >= 0]] = hidden[slots >= 0, 0].long()
        lengths = inputs.rows.seq_lens.float() + inputs.positions_T
        first_blocks = inputs.block_table_RP[:, 0] * (inputs.rows.seq_lens > 0)
        return hidden * self.factor + (lengths + first_blocks)[:, None]

    def highest(self, hidden, index):
        return hidden[index].amax(1), hidden[index].sum(1).long()


def phase(factor: int = 3, **given: Any) -> Any:
    defaults = {
        "decoder": SumDecoder(factor),
        "ranges": SimpleNamespace(layers=Range(0, 2)),
        "kv": None,
        "comm": SimpleNamespace(recordable=True),
        "is_whole": True,
    }
    return SimpleNamespace(**(defaults | given))


def made(recorder: TwinRecorder) -> tuple[DecodeGraphs, InputBuffers]:
    buffers = InputBuffers(LIMITS, BLOCK, CPU, DeferredClock())
    return DecodeGraphs(recorder, buffers, LIMITS, HIDDEN, torch.float32, CPU), buffers


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(2**31)
    print(f"rng({seed})")
    return random.Random(seed)


def expected_of(one: Any, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the phase's decoder answers without padding: (hidden, what is stored then)."""
    plain = SumDecoder(one.decoder.factor)
    plain.stored.copy_(one.decoder.stored)
    inputs = as_tensors(rows)
    lens = torch.tensor(inputs.seq_lens_list)
    inputs.rows = SimpleNamespace(seq_lens=lens)
    return plain.run_layers(plain.embed(inputs.token_ids_T), inputs, None, 0, 2), plain.stored


def test_replays_answer_as_plain_steps_do(rng: random.Random) -> None:
    recorder, one = TwinRecorder(), phase()
    graphs, _ = made(recorder)
    for _ in range(40):
        rows, requests = decode_rows(rng.randrange(1, 41), rng)
        arrays = gather_rows(rows, requests, BLOCK, embeds=True)
        assert graphs.suits(arrays, one)
        hidden, stored = expected_of(one, arrays)
        greedy, eager = rng.random() < 0.5, rng.random() < 0.2
        if greedy:
            value, ids = graphs.highest("decode", one, arrays, eager=eager)
            assert torch.equal(value, hidden.amax(1))
            assert torch.equal(ids, hidden.sum(1).long())
        else:
            assert torch.equal(graphs.hidden("decode", one, arrays, eager=eager), hidden)
        assert torch.equal(one.decoder.stored, stored), "padding stored something"
    assert recorder.replayed > 5


def test_a_size_is_recorded_the_second_time_and_replayed_from_then_on(rng: random.Random) -> None:
    recorder, one = TwinRecorder(), phase()
    graphs, _ = made(recorder)
    counts = []
    for count in (3, 4, 3, 2):
        rows, requests = decode_rows(count, rng)
        arrays = gather_rows(rows, requests, BLOCK, embeds=True)
        graphs.hidden("decode", one, arrays, eager=False)
        counts.append((recorder.recorded, recorder.replayed))
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 2)]
    assert one.decoder.calls == [4, 4, 4, 2]


def test_phases_and_ends_have_graphs_of_their_own(rng: random.Random) -> None:
    recorder, phases = TwinRecorder(), {"prefill": phase(3), "decode": phase(5)}
    graphs, _ = made(recorder)
    for _ in range(3):
        for name, one in phases.items():
            rows, requests = decode_rows(4, rng)
            arrays = gather_rows(rows, requests, BLOCK, embeds=True)
            expected, _ = expected_of(one, arrays)
            assert torch.equal(graphs.hidden(name, one, arrays, eager=False), expected)
            value, _ = graphs.highest(name, one, arrays, eager=False)
            assert torch.equal(value, expected.amax(1))
    assert recorder.recorded == 4
    assert recorder.replayed == 8


def test_the_first_step_after_a_change_of_layout_runs_without(rng: random.Random) -> None:
    recorder, one = TwinRecorder(), phase()
    graphs, _ = made(recorder)
    replayed = []
    for eager in (False, False, True, False):
        rows, requests = decode_rows(2, rng)
        arrays = gather_rows(rows, requests, BLOCK, embeds=True)
        expected, _ = expected_of(one, arrays)
        assert torch.equal(graphs.hidden("decode", one, arrays, eager=eager), expected)
        replayed.append(recorder.replayed)
    assert replayed == [0, 1, 1, 2]
    assert recorder.recorded == 1


def test_without_memory_for_more_steps_still_run(rng: random.Random) -> None:
    recorder, one = TwinRecorder(most=1), phase()
    graphs, _ = made(recorder)
    for count in (1, 1, 2, 2, 2, 1):
        rows, requests = decode_rows(count, rng)
        arrays = gather_rows(rows, requests, BLOCK, embeds=True)
        expected, _ = expected_of(one, arrays)
        assert torch.equal(graphs.hidden("decode", one, arrays, eager=False), expected)
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_tokens_of_the_step_before_are_found_on_the_device(rng: random.Random) -> None:
    recorder, one = TwinRecorder(), phase()
    graphs, buffers = made(recorder)
    for _ in range(3):
        rows, requests = decode_rows(3, rng)
        expected, _ = expected_of(one, gather_rows(rows, requests, BLOCK, embeds=True))
        for at, state in enumerate(requests.values()):
            state.begin_draw(2 - at)
            buffers.drawn[2 - at] = state.tokens.pop()
        arrays = gather_rows(rows, requests, BLOCK, embeds=True)
        assert torch.equal(graphs.hidden("decode", one, arrays, eager=False), expected)
    assert recorder.replayed == 2


def test_other_steps_are_not_recorded(rng: random.Random) -> None:
    graphs, _ = made(TwinRecorder())
    rows, requests = decode_rows(3, rng)
    arrays = gather_rows(rows, requests, BLOCK, embeds=True)
    assert graphs.suits(arrays, phase())
    assert not graphs.suits(arrays, phase(is_whole=False)), "a stage"
    assert not graphs.suits(arrays, phase(comm=SimpleNamespace(recordable=False))), "gloo"
    silent = [row._replace(samples=index > 0) for index, row in enumerate(rows)]
    assert not graphs.suits(gather_rows(silent, requests, BLOCK, embeds=True), phase())
    while True:
        rows, requests = random_step(rng)
        if any(row.num_tokens > 1 for row in rows):
            break
    assert not graphs.suits(gather_rows(rows, requests, BLOCK, embeds=True), phase()), "prompts"


@pytest.mark.parametrize("most", [1, 2, 3, 30, 32, 40, 256, 1000])
def test_sizes_hold_all_rows_and_pad_few(most: int) -> None:
    sizes = [graph_size(rows, most) for rows in range(1, most + 1)]
    assert sizes == sorted(sizes)
    assert max(sizes) == most
    assert set(sizes) == {size for size in sizes if graph_size(size, most) == size}
    for rows, size in enumerate(sizes, 1):
        assert rows <= size <= max(2 * rows, rows + 15)
    with pytest.raises(AssertionError):
        graph_size(most + 1, most)
