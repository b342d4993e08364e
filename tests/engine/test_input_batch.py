"""Rows of a step become the same tensors in memory of their own and in buffers that are used again,
padded or not; a buffer is filled only when what was copied from it has arrived."""

from __future__ import annotations

import random
from array import array

import pytest
import torch

from seesaw.engine.input_batch import InputBuffers, as_tensors, gather_rows, latest
from seesaw.engine.messages import StepLimits
from seesaw.engine.request_state import RequestState
from seesaw.engine.sampler import SamplingState
from seesaw.models.inputs import StepInputs
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import NewRequest, Row
from tests.engine.deferred import DeferredClock, DeferredMark

CPU = torch.device("cpu")
BLOCK = 8
LIMITS = StepLimits(num_tokens=64, num_rows=12, row_tokens=100)


def request(num_tokens: int, rng: random.Random) -> RequestState:
    """With blocks for some more tokens than it has."""
    sampling = SamplingState(NewRequest("", [], SamplingParams(), 0, ()))
    state = RequestState([rng.randrange(1000) for _ in range(num_tokens)], sampling)
    state.blocks = array("i", [rng.randrange(500) for _ in range(num_tokens // BLOCK + 2)])
    return state


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(2**31)
    print(f"rng({seed})")
    return random.Random(seed)


def random_step(rng: random.Random) -> tuple[list[Row], dict[str, RequestState]]:
    """Chunks, whole prompts and single tokens within LIMITS."""
    rows, requests, left = [], {}, LIMITS.num_tokens
    for index in range(rng.randrange(1, LIMITS.num_rows + 1)):
        total = rng.randrange(1, 90)
        count = min(rng.choice([1, rng.randrange(1, total + 1)]), left)
        if not count:
            break
        left -= count
        name = str(index)
        requests[name] = request(total, rng)
        rows.append(Row(name, total - count, count, 0, 1, rng.random() < 0.7))
    return rows, requests


def same(one: StepInputs, other: StepInputs) -> None:
    for name in ("token_ids_T", "positions_T", "slot_mapping_T", "sample_index_S"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype == torch.int64, name
        assert torch.equal(mine, theirs), name
    assert one.cu_seqlens_q_list == other.cu_seqlens_q_list
    assert one.seq_lens_list == other.seq_lens_list
    for row, seq_len in enumerate(one.seq_lens_list):
        used = -(-seq_len // BLOCK)
        mine, theirs = one.block_table_RP[row, :used], other.block_table_RP[row, :used]
        assert torch.equal(mine, theirs), f"table of row {row}"


def test_buffers_hold_what_the_rows_say(rng: random.Random) -> None:
    buffers = InputBuffers(LIMITS, BLOCK, CPU, DeferredClock())
    for _ in range(20):
        rows, requests = random_step(rng)
        arrays = gather_rows(rows, requests, BLOCK, embeds=True)
        inputs = buffers.upload(arrays)
        same(inputs, as_tensors(arrays))
        for at, slot in zip(
            inputs.positions_T.tolist(), inputs.slot_mapping_T.tolist(), strict=True
        ):
            assert slot % BLOCK == at % BLOCK
        bounds, counts = inputs.rows, [row.num_tokens for row in rows]
        assert bounds is not None
        assert bounds.cu_seqlens_q.tolist() == inputs.cu_seqlens_q_list
        assert bounds.seq_lens.tolist() == inputs.seq_lens_list
        assert (bounds.max_seqlen_q, bounds.num_single) == (max(counts), counts.count(1))
        assert bounds.max_seq_len == max(inputs.seq_lens_list)
        assert inputs.whole_prompts == all(row.token_start == 0 for row in rows)
        pointers = [bounds.cu_seqlens_q, bounds.seq_lens, inputs.block_table_RP]
        assert len({x.data_ptr() % 64 for x in pointers}) == 1, "Triton would compile anew"


def test_where_plain_torch_reads_the_table_no_block_in_it_is_unknown(rng: random.Random) -> None:
    """It reads rows up to the longest of a group, and leaves out what is past their end."""
    buffers = InputBuffers(LIMITS, BLOCK, CPU, DeferredClock())
    for _ in range(20):
        rows, requests = random_step(rng)
        inputs = buffers.upload(gather_rows(rows, requests, BLOCK, embeds=True))
        for table, seq_len in zip(inputs.block_table_RP, inputs.seq_lens_list, strict=True):
            assert not table[-(-seq_len // BLOCK) :].any()


def decode_rows(count: int, rng: random.Random) -> tuple[list[Row], dict[str, RequestState]]:
    requests = {str(index): request(rng.randrange(1, 90), rng) for index in range(count)}
    rows = [Row(name, len(state.tokens) - 1, 1, 0, 1, True) for name, state in requests.items()]
    return rows, requests


def test_padded_rows_lie_where_they_lay_before_and_store_nothing(rng: random.Random) -> None:
    buffers = InputBuffers(LIMITS, BLOCK, CPU, DeferredClock())
    inputs = buffers.padded(8)
    for count in (8, 3, 5):
        rows, requests = decode_rows(count, rng)
        arrays = gather_rows(rows, requests, BLOCK, embeds=True)
        buffers.upload_padded(arrays, 8)
        expected, bounds = as_tensors(arrays), inputs.rows
        assert bounds is not None
        for name in ("token_ids_T", "positions_T", "slot_mapping_T"):
            found = getattr(inputs, name)
            assert torch.equal(found[:count], getattr(expected, name))
            assert set(found[count:].tolist()) <= {-1 if name == "slot_mapping_T" else 0}
        assert bounds.seq_lens.tolist() == expected.seq_lens_list + [0] * (8 - count)
        assert bounds.cu_seqlens_q.tolist() == list(range(9))
        assert inputs.sample_index_S.tolist() == list(range(8))
        assert (bounds.max_seqlen_q, bounds.max_seq_len, bounds.num_single) == (1, 100, 8)


def test_a_token_that_is_being_drawn_is_taken_from_the_device(rng: random.Random) -> None:
    buffers = InputBuffers(LIMITS, BLOCK, CPU, DeferredClock())
    rows, requests = decode_rows(4, rng)
    expected = [state.tokens[-1] for state in requests.values()]
    order = rng.sample(range(12), 4)
    for at, state in zip(order[:3], requests.values(), strict=False):
        state.begin_draw(at)
        buffers.drawn[at] = state.tokens.pop()
    arrays = gather_rows(rows, requests, BLOCK, embeds=True)
    assert arrays.num_unknown == 3
    assert buffers.upload(arrays).token_ids_T.tolist() == expected
    buffers.upload_padded(arrays, 8)
    named = buffers.padded(8).token_ids_T
    assert latest(named, buffers.drawn)[:4].tolist() == expected
    assert gather_rows(rows, requests, BLOCK, embeds=False).num_unknown == 0
    next(iter(requests.values())).begin_draw(0)
    with pytest.raises(AssertionError, match="are being drawn"):
        gather_rows(rows, requests, BLOCK, embeds=True)


def test_a_buffer_is_filled_when_its_copy_has_arrived(rng: random.Random) -> None:
    marks: list[DeferredMark] = []

    class Noting(DeferredClock):
        def mark(self) -> DeferredMark:
            marks.append(super().mark())
            return marks[-1]

    buffers = InputBuffers(LIMITS, BLOCK, CPU, Noting())
    waits = []
    for _ in range(5):
        rows, requests = random_step(rng)
        buffers.upload(gather_rows(rows, requests, BLOCK, embeds=True))
        waits.append([mark.waits for mark in marks])
    assert len(marks) == 5, "one copy for each step"
    for step in range(2, 5):
        assert waits[step][step - 2] > waits[step - 1][step - 2], f"step {step} overwrote a copy"
