"""Every KV head of every layer that a rank holds in the decode layout comes to it once, from a rank
that holds it in the prefill layout: itself where it does.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from seesaw.layout import ParallelLayout, layouts_for, rank_ranges
from seesaw.layout.relay import relay_pieces, relay_takes
from tests.kvcache.kv_harness import make_spec

SPECS = [make_spec(9, 9, 3), make_spec(8, 28, 4), make_spec(10, 8, 8), make_spec(5, 4, 1)]


@pytest.mark.parametrize("num_ranks", range(1, 9))
@pytest.mark.parametrize("spec", SPECS)
def test_every_tile_comes_once_from_where_it_is(spec, num_ranks):
    layouts = layouts_for(num_ranks, spec, dp=1)
    if num_ranks == 2:
        layouts.append(ParallelLayout.parse(f"pp{spec.num_hidden_layers - 1}+1"))
    for prefill in layouts:
        for decode in layouts:
            pieces = relay_pieces(prefill, decode, spec)
            found: Counter[tuple[int, int, int]] = Counter()
            for piece in pieces:
                source = rank_ranges(prefill, spec, piece.sender)
                assert source.layers.overlap(piece.layers) == piece.layers
                assert source.kv_heads.overlap(piece.heads) == piece.heads
                for layer in range(*piece.layers):
                    for head in range(*piece.heads):
                        found[piece.receiver, layer, head] += 1
                        own = rank_ranges(prefill, spec, piece.receiver)
                        has_it = layer in range(*own.layers) and head in range(*own.kv_heads)
                        assert has_it == piece.is_local, f"{prefill} -> {decode}: {piece}"
            expected = {
                (rank, layer, head): 1
                for rank in range(num_ranks)
                for layer in range(*rank_ranges(decode, spec, rank).layers)
                for head in range(*rank_ranges(decode, spec, rank).kv_heads)
            }
            assert found == expected, f"{prefill} -> {decode}"
            assert list(pieces) == sorted(pieces)


def test_bytes_of_a_block():
    spec = make_spec(8, 8, 4)
    pp2, tp2 = ParallelLayout(pp=2), ParallelLayout(tp=2)
    # A rank has 4 layers of 4 heads, and needs 8 layers of 2 heads: half of them are its own.
    takes = relay_takes(relay_pieces(pp2, tp2, spec), 10, 2)
    assert takes == [{"copy": 4 * 2 * 20, "peer": 4 * 2 * 20}] * 2
    tile_bytes = random.randrange(1, 99)
    same = relay_takes(relay_pieces(tp2, tp2, spec), tile_bytes, 2)
    assert same == [{"copy": 8 * 2 * 2 * tile_bytes, "peer": 0}] * 2
