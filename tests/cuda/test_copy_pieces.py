"""Tables of pieces: the same bytes as the pieces that were asked for, in fewer rows."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.cuda.copy_pieces import CHUNK_BYTES, Rows, folded, table
from seesaw.kernels.nvrtc import folder


def bytes_of(pieces: list[Rows]) -> dict[int, int]:
    """Source by target of every byte."""
    found = {}
    for piece in pieces:
        for row in range(piece.rows):
            for at in range(piece.row_bytes):
                target = piece.target + row * piece.target_pitch + at
                assert target not in found, "a byte is written twice"
                found[target] = piece.source + row * piece.source_pitch + at
    return found


@given(st.integers(0, 2**32))
def test_folded_pieces_copy_the_same_bytes(seed: int) -> None:
    rng = random.Random(seed)
    pieces, target, source = [], 1000, 1000
    for _ in range(rng.randrange(12)):
        size, gap, step = (rng.choice(choice) for choice in ((0, 3, 7), (0, 1, 9), (-20, 2, 9, 16)))
        pieces.append(Rows(target, source, size))
        target, source = target + size + gap, source + step
    if rng.random() < 0.3:
        rng.shuffle(pieces)
    assert bytes_of(list(folded(pieces))) == bytes_of(pieces)


def test_evenly_spaced_rows_become_one_piece() -> None:
    pieces = [Rows(1000 + 64 * i, 5000 + 100 * i, 48) for i in range(50)]
    assert list(folded(pieces)) == [Rows(1000, 5000, 48, 50, 64, 100)]
    other = Rows(9000, 1000, 48)
    assert list(folded([*pieces, other])) == [Rows(1000, 5000, 48, 50, 64, 100), other]


def test_the_table_counts_chunks() -> None:
    pieces = [Rows(16, 32, 3 * CHUNK_BYTES + 1), Rows(1 << 40, 0, 5, 7, 8, 9)]
    made, num_pieces, num_chunks = table(pieces)
    assert (num_pieces, num_chunks) == (2, 4 + 7)
    assert made.tolist() == [
        [16, 32, 0, 0, 3 * CHUNK_BYTES + 1, 0], [1 << 40, 0, 8, 9, 5, 4], [0, 0, 0, 0, 0, 11],
    ]  # fmt: skip


def test_kernel_and_table_agree() -> None:
    source = (folder() / "copy_pieces.cu").read_text()
    found = re.search(r"#define CHUNK (\d+)", source)
    assert found is not None
    assert int(found[1]) == CHUNK_BYTES
    fields = re.search(r"struct Piece \{(.*?)\}", source, re.DOTALL)
    assert fields is not None
    names = re.findall(r"(\w+)(?=[,;])", re.sub(r"//.*", "", fields[1]))
    assert names == [
        "target", "source", "target_pitch", "source_pitch", "row_bytes", "first_chunk",
    ]  # fmt: skip


@pytest.mark.usefixtures("needs_cuda_cpp")
def test_copies_on_a_gpu(device: str) -> None:
    import torch

    from seesaw.cuda.copy_pieces import copy_pieces

    if device != "cuda":
        pytest.skip("needs --device cuda")
    source = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    expected = target.clone()
    pieces = []
    for at in range(0, 1 << 20, 1 << 16):
        size, start = random.randint(1, 1 << 16), random.randint(0, (1 << 20) - (1 << 16))
        expected[at : at + size] = source[start : start + size]
        pieces.append(Rows(target.data_ptr() + at, source.data_ptr() + start, size))
    copy_pieces(pieces, source.device)
    assert torch.equal(target, expected)
