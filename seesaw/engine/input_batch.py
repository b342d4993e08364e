"""From rows of a step to the tensors that a decoder takes.

Numbers are put together in arrays of the host. On a CPU these are the tensors; for a device they
are packed into one piece of page-locked memory and copied at once, always to the same place, so
that what was recorded with one step's inputs can be replayed with another's.
"""

from __future__ import annotations

import ctypes
import itertools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from seesaw.engine.device_clock import DeviceClock, Mark
from seesaw.engine.messages import StepLimits
from seesaw.engine.request_state import RequestState
from seesaw.models.inputs import StepInputs
from seesaw.ops.device_rows import DeviceRows
from seesaw.ops.triton_backend import on_triton
from seesaw.scheduler.output import Row

# Shape letters: T tokens, R rows, S rows that sample, P blocks of the longest row.

_SLOTS = 2
_ALIGNMENT = 64
"""In bytes. Equal from step to step, since Triton compiles a kernel for each alignment."""
_TABLE_COLUMNS = 16
"""A row of the block table has a multiple of these, for the same reason."""


@dataclass(slots=True)
class RowArrays:
    """As `StepInputs`, on the host. In `token_ids` -1 - i stands for the token that row i of the
    draws of the step before this one has drawn, which only the device knows yet."""

    token_ids: array[int] = field(default_factory=lambda: array("q"))
    positions: array[int] = field(default_factory=lambda: array("q"))
    slots: array[int] = field(default_factory=lambda: array("q"))
    sample_index: array[int] = field(default_factory=lambda: array("q"))
    tables: list[array[int]] = field(default_factory=list)
    cu_seqlens_q: list[int] = field(default_factory=lambda: [0])
    seq_lens: list[int] = field(default_factory=list)
    num_unknown: int = 0
    whole_prompts: bool = True

    @property
    def only_decodes(self) -> bool:
        """Each row has one token and samples."""
        return len(self.positions) == len(self.seq_lens) == len(self.sample_index)


def gather_rows(
    rows: Sequence[Row], requests: Mapping[str, RequestState], block_size: int, *, embeds: bool
) -> RowArrays:
    """`embeds`: token ids are wanted, as the first stage does."""
    found = RowArrays()
    positions, slots = found.positions, found.slots
    for request_id, start, count, _, _, samples in rows:
        state = requests[request_id]
        end = start + count
        table = state.blocks[: -(-end // block_size)]
        assert len(table) * block_size >= end, f"{request_id}: no block for token {end - 1}"
        if count == 1:
            positions.append(start)
            slots.append(table[-1] * block_size + start % block_size)
        else:
            positions.extend(range(start, end))
            for index in range(start // block_size, len(table)):
                # slots and positions of a block's tokens differ by the same
                base = (table[index] - index) * block_size
                first, last = max(start, index * block_size), min(end, (index + 1) * block_size)
                slots.extend(range(base + first, base + last))
        if embeds:
            found.token_ids.extend(state.tokens[start:end])
            if len(found.token_ids) < len(positions):
                _name_drawn(found, request_id, state, end)
        found.tables.append(table)
        found.cu_seqlens_q.append(len(positions))
        found.seq_lens.append(end)
        found.whole_prompts &= start == 0
        if samples:
            found.sample_index.append(len(positions) - 1)
    return found


def _name_drawn(found: RowArrays, request_id: str, state: RequestState, end: int) -> None:
    """The last token of a row is being drawn."""
    assert end - len(state.tokens) == state.num_drawing == 1, (
        f"{request_id}: tokens {len(state.tokens)} to {end - 1} are unknown, "
        f"{state.num_drawing} are being drawn"
    )
    found.token_ids.append(-1 - state.drawn_at)
    found.num_unknown += 1


def as_tensors(rows: RowArrays) -> StepInputs:
    """On the CPU, in the memory of the arrays."""
    assert not rows.num_unknown, "tokens that only a device knows"
    return StepInputs(
        token_ids_T=_tensor(rows.token_ids),
        positions_T=_tensor(rows.positions),
        slot_mapping_T=_tensor(rows.slots),
        block_table_RP=_tensor(_padded(rows.tables)).view(len(rows.tables), -1),
        cu_seqlens_q_list=rows.cu_seqlens_q,
        seq_lens_list=rows.seq_lens,
        sample_index_S=_tensor(rows.sample_index),
    )


def _tensor(values: array[int]) -> torch.Tensor:
    dtype = torch.int64 if values.typecode == "q" else torch.int32
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


def _padded(tables: Sequence[array[int]]) -> array[int]:
    """One after another, with zeros up to the longest."""
    width = max(map(len, tables))
    joined = array("i", bytes(4 * width * len(tables)))
    for row, table in enumerate(tables):
        joined[row * width : row * width + len(table)] = table
    return joined


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a step's numbers lie in the packed piece, in bytes: the same for the same sizes."""

    num_tokens: int
    num_rows: int
    num_sampled: int
    token_ids: int
    positions: int
    slots: int
    sample_index: int
    cu_seqlens_q: int
    seq_lens: int
    table: int

    @classmethod
    def of(cls, num_tokens: int, num_rows: int, num_sampled: int) -> _Places:
        offsets: list[int] = []
        end = 0
        sizes = (*(8 * num_tokens,) * 3, 8 * num_sampled, 4 * (num_rows + 1), 4 * num_rows)
        for nbytes in sizes:
            offsets.append(end)
            end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        offsets.append(end)
        return cls(num_tokens, num_rows, num_sampled, *offsets)


class InputBuffers:
    """The memory of inputs on the device and, page-locked, on the host, for steps within `limits`.

    `drawn`: int64, what the last step that drew has drawn, in the order of its draws.
    """

    def __init__(
        self, limits: StepLimits, block_size: int, device: torch.device, clock: DeviceClock
    ) -> None:
        self._limits = limits
        self._clock = clock
        blocks = -(-limits.row_tokens // block_size)
        self._columns = -(-blocks // _TABLE_COLUMNS) * _TABLE_COLUMNS
        places = _Places.of(limits.num_tokens, limits.num_rows, limits.num_rows)
        nbytes = places.table + 4 * limits.num_rows * self._columns
        self._device = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        # Two, since the copy of a step's inputs waits behind the step before it.
        self._host = [_HostBuffer(nbytes, pin=device.type == "cuda") for _ in range(_SLOTS)]
        self._next = 0
        # Kernels read no blocks past those of a row; plain torch does, and leaves the keys out.
        self._clears = not on_triton(self._device)
        self.drawn = torch.zeros(limits.num_rows, dtype=torch.int64, device=device)

    def upload(self, rows: RowArrays) -> StepInputs:
        """The tensors of a step, which are good until the next one's are asked for."""
        places = _Places.of(len(rows.positions), len(rows.seq_lens), len(rows.sample_index))
        self._copy(rows, places)
        inputs = self._views(places, rows.cu_seqlens_q, rows.seq_lens)
        counts = [stop - start for start, stop in itertools.pairwise(rows.cu_seqlens_q)]
        inputs.rows = self._rows(
            places,
            max_seqlen_q=max(counts),
            max_seq_len=max(rows.seq_lens),
            num_single=counts.count(1),
        )
        inputs.whole_prompts = rows.whole_prompts
        if rows.num_unknown:
            inputs.token_ids_T = latest(inputs.token_ids_T, self.drawn)
        return inputs

    def upload_padded(self, rows: RowArrays, num_rows: int) -> None:
        """Bring rows of one token each to where `padded(num_rows)` reads them."""
        assert rows.only_decodes, "rows of several tokens"
        self._copy(_pad(rows, num_rows), _Places.of(num_rows, num_rows, num_rows))

    def padded(self, num_rows: int) -> StepInputs:
        """Tensors of a step of so many rows of one token each: the same memory each time, and
        nothing in them depends on a step. Token ids may be names of drawn ones (`latest`)."""
        places = _Places.of(num_rows, num_rows, num_rows)
        inputs = self._views(places, [], [])
        inputs.rows = self._rows(
            places,
            max_seqlen_q=1,
            max_seq_len=self._limits.row_tokens,
            num_single=num_rows,
        )
        return inputs

    def _copy(self, rows: RowArrays, places: _Places) -> None:
        host = self._host[self._next]
        self._next = (self._next + 1) % _SLOTS
        nbytes = host.fill(rows, places, self._columns, clear=self._clears)
        self._device[:nbytes].copy_(host.tensor[:nbytes], non_blocking=True)
        host.copied = self._clock.mark()

    def _views(self, places: _Places, cu_seqlens_q: list[int], seq_lens: list[int]) -> StepInputs:
        tokens, rows = places.num_tokens, places.num_rows
        table = self._view(places.table, rows * self._columns, torch.int32)
        return StepInputs(
            token_ids_T=self._view(places.token_ids, tokens, torch.int64),
            positions_T=self._view(places.positions, tokens, torch.int64),
            slot_mapping_T=self._view(places.slots, tokens, torch.int64),
            block_table_RP=table.view(rows, self._columns),
            cu_seqlens_q_list=cu_seqlens_q,
            seq_lens_list=seq_lens,
            sample_index_S=self._view(places.sample_index, places.num_sampled, torch.int64),
        )

    def _rows(
        self, places: _Places, *, max_seqlen_q: int, max_seq_len: int, num_single: int
    ) -> DeviceRows:
        return DeviceRows(
            self._view(places.cu_seqlens_q, places.num_rows + 1, torch.int32),
            self._view(places.seq_lens, places.num_rows, torch.int32),
            max_seqlen_q=max_seqlen_q,
            max_seq_len=max_seq_len,
            num_single=num_single,
        )

    def _view(self, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        return self._device[start : start + count * dtype.itemsize].view(dtype)


class _HostBuffer:
    """One of the pieces that copies to the device start from."""

    def __init__(self, nbytes: int, *, pin: bool) -> None:
        self.tensor = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=pin)
        self.copied: Mark | None = None
        address = (ctypes.c_char * nbytes).from_address(self.tensor.data_ptr())
        whole = memoryview(address).cast("B")
        self._words, self._halves = whole.cast("q"), whole.cast("i")

    def fill(self, rows: RowArrays, places: _Places, columns: int, *, clear: bool) -> int:
        """Put a step's numbers to their places; how many bytes they take. Waits where the copy from
        here is not done. `clear`: rows of the table are padded with 0, else with whatever is there.
        """
        if self.copied is not None:
            self.copied.wait()
        for start, values in (
            (places.token_ids, rows.token_ids),
            (places.positions, rows.positions),
            (places.slots, rows.slots),
            (places.sample_index, rows.sample_index),
        ):
            self._words[start // 8 : start // 8 + len(values)] = values
        for start, numbers in (
            (places.cu_seqlens_q, rows.cu_seqlens_q),
            (places.seq_lens, rows.seq_lens),
        ):
            self._halves[start // 4 : start // 4 + len(numbers)] = array("i", numbers)
        start = places.table // 4
        for table in rows.tables:
            end = start + len(table)
            self._halves[start:end] = table
            start += columns
            if clear:
                self._halves[end:start] = array("i", bytes(4 * (start - end)))
        return 4 * start


def _pad(rows: RowArrays, num_rows: int) -> RowArrays:
    """With rows that have no tokens of KV and store none."""
    more = num_rows - len(rows.seq_lens)
    return RowArrays(
        rows.token_ids + array("q", [0]) * more,
        rows.positions + array("q", [0]) * more,
        rows.slots + array("q", [-1]) * more,
        array("q", range(num_rows)),
        rows.tables,
        list(range(num_rows + 1)),
        rows.seq_lens + [0] * more,
        rows.num_unknown,
    )


def latest(token_ids_T: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Token ids, with those in place that were named by where they stand in `drawn`."""
    at_T = (-1 - token_ids_T).clamp_(min=0)
    return torch.where(token_ids_T < 0, drawn[at_T], token_ids_T)
