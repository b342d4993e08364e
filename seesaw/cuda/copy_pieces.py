"""Copies of many pieces within a GPU in one launch (csrc/cuda/copy_pieces.cu), each of evenly
spaced rows: slices of weights at a change of layout.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

CHUNK_BYTES = 32768
"""As in the kernel."""
THREADS = 256
BLOCKS_PER_SM = 4


class Rows(NamedTuple):
    """`rows` times `row_bytes` bytes, from address `source` to `target`, so many bytes apart."""

    target: int
    source: int
    row_bytes: int
    rows: int = 1
    target_pitch: int = 0
    source_pitch: int = 0


class _Piece(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("target", "source", "target_pitch", "source_pitch", "row_bytes", "first_chunk")
    )


def folded(pieces: Iterable[Rows]) -> Iterator[Rows]:
    """The same bytes in fewer pieces: single rows of equal size and distance become one."""
    last: Rows | None = None
    for piece in pieces:
        if piece.rows * piece.row_bytes == 0:
            continue
        grown = None if last is None else _grown(last, piece)
        if grown is None and last is not None:
            yield last
        last = grown or piece
    if last is not None:
        yield last


def _grown(last: Rows, piece: Rows) -> Rows | None:
    """`last` with `piece` as its next row; None where that is not one."""
    if piece.rows != 1 or piece.row_bytes != last.row_bytes:
        return None
    if last.rows == 1:
        target_pitch, source_pitch = piece.target - last.target, piece.source - last.source
        if min(target_pitch, source_pitch) < 0:
            return None
    else:
        target_pitch, source_pitch = last.target_pitch, last.source_pitch
        expected = last.target + last.rows * target_pitch, last.source + last.rows * source_pitch
        if (piece.target, piece.source) != expected:
            return None
    return last._replace(
        rows=last.rows + 1, target_pitch=target_pitch, source_pitch=source_pitch
    )  # fmt: skip


def table(pieces: Iterable[Rows]) -> tuple[torch.Tensor, int, int]:
    """What the kernel reads, as int64 `[pieces + 1, 6]`, the number of pieces, and that of chunks
    of at most CHUNK_BYTES bytes."""
    rows: list[int] = []
    chunks = 0
    for piece in pieces:
        rows += (
            piece.target, piece.source, piece.target_pitch, piece.source_pitch, piece.row_bytes,
            chunks,
        )  # fmt: skip
        chunks += piece.rows * -(-piece.row_bytes // CHUNK_BYTES)
    rows += (0, 0, 0, 0, 0, chunks)
    made = torch.tensor(rows, dtype=torch.int64).view(-1, len(_Piece._fields_))
    return made, len(made) - 1, chunks


def copy_pieces(pieces: Iterable[Rows], device: torch.device) -> None:
    """Begin to copy all `pieces` on the current stream of `device`, in any order among each other:
    none may overlap a target. What is at the addresses must stay until that is done."""
    from seesaw.kernels.nvrtc import function
    from seesaw.kernels.target import target_of

    made, num_pieces, num_chunks = table(folded(pieces))
    if not num_chunks:
        return
    import cupy
    import numpy

    on_device = made.pin_memory().to(device, non_blocking=True)
    blocks = min(num_chunks, BLOCKS_PER_SM * target_of(device).num_sms)
    stream = torch.cuda.current_stream(device)
    function("copy_pieces", "copy_pieces", device)(
        (blocks,),
        (THREADS,),
        (numpy.uint64(on_device.data_ptr()), numpy.int32(num_pieces)),
        stream=cupy.cuda.ExternalStream(stream.cuda_stream, stream.device.index),
    )
