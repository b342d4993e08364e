"""The matrix product whose inner dim is cut over the ranks: output projection and MLP's down.

Each rank multiplies its columns of x with its rows of the weight; the sum over ranks is the
product. The weight is stored `[in, out]`, so that a rank's rows are one run of bytes.
"""

from __future__ import annotations

import torch

from seesaw.layers.comm import Comm

# Shape letters: T tokens, N inner columns of this rank, H hidden.


def row_parallel(
    x_TN: torch.Tensor, weight_NH: torch.Tensor, bias_H: torch.Tensor | None, comm: Comm
) -> torch.Tensor:
    """`x @ weight + bias`, `[T, H]`, the same on all ranks. The bias, which is not cut, is added
    once, to the sum.
    """
    if comm.size == 1 and bias_H is not None:
        return torch.addmm(bias_H, x_TN, weight_NH)
    out_TH = comm.all_reduce(torch.mm(x_TN, weight_NH))
    return out_TH if bias_H is None else out_TH.add_(bias_H)
