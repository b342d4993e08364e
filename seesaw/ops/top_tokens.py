"""The highest values of each row in a fixed order, for sampling and log-probabilities."""

from __future__ import annotations

import torch

# Shape letters: N rows, V vocabulary, W most candidates of any row.


def top_tokens(x_NV: torch.Tensor, count_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count_N[n]` (1..V) highest of each row, descending, equals by id: values `[N, W]` and
    ids `[N, W]` (int64), W the largest count. Places past a row's count, or past its last finite
    value, hold -inf and an id that means nothing.

    torch.topk leaves open which of several equals it takes, and bf16 logits are full of equals; so
    it only finds the lowest value that is in, and the order among equals is made here. No row is
    sorted whole unless its count says so.
    """
    num_rows, vocab = x_NV.shape
    if num_rows == 0:
        empty = torch.empty(0, 0, device=x_NV.device)
        return empty.to(x_NV.dtype), empty.long()
    width = int(count_N.max())
    if width == vocab:
        values_NW, ids_NW = x_NV.sort(dim=-1, descending=True, stable=True)
    else:
        lowest_N1 = x_NV.topk(width, dim=-1).values.gather(1, count_N[:, None] - 1)
        chosen_NV = (x_NV >= lowest_N1) & (x_NV > float("-inf"))
        row_M, id_M = chosen_NV.nonzero(as_tuple=True)  # by row, then by id
        sizes_N = torch.bincount(row_M, minlength=num_rows)
        place_M = torch.arange(len(row_M), device=x_NV.device)
        place_M -= (sizes_N.cumsum(0) - sizes_N)[row_M]
        shape = (num_rows, max(width, int(sizes_N.max())))
        found_NM = torch.full(shape, float("-inf"), dtype=x_NV.dtype, device=x_NV.device)
        found_NM[row_M, place_M] = x_NV[row_M, id_M]
        id_NM = torch.zeros(shape, dtype=torch.int64, device=x_NV.device)
        id_NM[row_M, place_M] = id_M
        values_NW, order_NM = found_NM.sort(dim=-1, descending=True, stable=True)
        values_NW, ids_NW = values_NW[:, :width], id_NM.gather(1, order_NM)[:, :width]
    past_NW = torch.arange(width, device=x_NV.device) >= count_N[:, None]
    return values_NW.masked_fill(past_NW, float("-inf")), ids_NW
