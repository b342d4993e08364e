"""Bytes that the ranks of a replica send each other in a step, as a counter at a link should show.

Sums within a layer and hidden states between stages; words of the sampler (some bytes for each
drawn token) and headers of the network are left out.
"""

from __future__ import annotations

from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import rank_ranges


def sent_bytes(
    spec: ModelSpec,
    layout: ParallelLayout,
    element_bytes: int,
    num_tokens: int,
    num_sampled: int,
) -> list[int]:
    """By rank of one replica (`layout` with dp 1), in a step of `num_tokens` positions of which
    `num_sampled` draw a token.

    A sum of n bytes over `tp` ranks has each send 2 (tp - 1) / tp of n: its part to the others, and
    the sum of its own part. The first stage sums the rows that it embeds. The last layer of the
    last stage computes sampled rows only, once keys and values are there.
    """
    assert layout.dp == 1, f"bytes are those of one replica, got {layout}"
    row = spec.hidden_size * element_bytes
    found = []
    for rank in range(layout.num_ranks):
        stage = layout.coordinates(rank).pp
        is_last = stage == layout.pp - 1
        layers = rank_ranges(layout, spec, rank).layers.size
        sums = 2 * layers * num_tokens
        if stage == 0:
            sums += num_tokens
        if is_last:
            sums -= 2 * (num_tokens - num_sampled)
        nbytes = sums * row * 2 * (layout.tp - 1) // layout.tp
        found.append(nbytes if is_last else nbytes + num_tokens * row)
    return found
