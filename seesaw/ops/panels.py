"""Between a plain matrix `[N, K]` and panels of 32 of its columns, in plain torch.

What the loader of weights must equal, for ops, tests and benches; it packs on its own. In panels
`[P, K, 32]` of 2-byte types two neighbouring k of a column lie side by side (csrc/cpu/numbers.h).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from seesaw.layout.panels import PANEL

# Shape letters: K depth, N columns, P panels, Z = 32 columns of one.


def pack(weight_NK: torch.Tensor, gated: bool = False) -> torch.Tensor:
    """Panels `[P, K, 32]` of a plain matrix; columns past N are zero.

    gated: the rows are all of gate, then all of up; a panel gets 16 of gate and the same 16 of up.
    Raises ValueError where K is odd in a 2-byte type.
    """
    depth = weight_NK.shape[1]
    words = _words_of_row(weight_NK.dtype, depth)
    half = PANEL // 2
    parts = weight_NK.chunk(2) if gated else (weight_NK,)
    tile = half if gated else PANEL
    tiles = [F.pad(part, (0, 0, 0, -len(part) % tile)).view(-1, tile, depth) for part in parts]
    rows_PZK = torch.cat(tiles, dim=1)
    pairs = rows_PZK.view(len(rows_PZK), PANEL, words, depth // words)
    return pairs.transpose(1, 2).contiguous().view(-1, depth, PANEL)


def pack_bias(bias_N: torch.Tensor, gated: bool = False) -> torch.Tensor:
    """The bias of `pack`'s columns, `[32 P]`."""
    panels_P1Z = pack(bias_N.float()[:, None], gated)
    return panels_P1Z.flatten().to(bias_N.dtype)


def unpack(panels_PKZ: torch.Tensor, num_columns: int, gated: bool = False) -> torch.Tensor:
    """What `pack` was made from: `[num_columns, K]`."""
    depth = panels_PKZ.shape[1]
    words = _words_of_row(panels_PKZ.dtype, depth)
    pairs = panels_PKZ.reshape(-1, words, PANEL, depth // words)
    rows_PZK = pairs.transpose(1, 2).flatten(2)
    if not gated:
        return rows_PZK.flatten(0, 1)[:num_columns]
    half = PANEL // 2
    parts = (rows_PZK[:, :half], rows_PZK[:, half:])
    return torch.cat([part.flatten(0, 1)[: num_columns // 2] for part in parts])


def _words_of_row(dtype: torch.dtype, depth: int) -> int:
    """Rows of a panel: pairs of k in types of 2 bytes."""
    pair = 2 if dtype.itemsize == 2 else 1
    if depth % pair:
        raise ValueError(f"panels of {dtype} hold pairs of k: got depth {depth}, expected even")
    return depth // pair
