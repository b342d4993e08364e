"""What `kernels/moe_mlp.py` refuses, before anything is launched."""

from __future__ import annotations

import torch

from seesaw.kernels.checks import FLOATS, expect, expect_one_of, expect_tensors
from seesaw.kernels.gated_activation import ACTIVATIONS

# Shape letters: T tokens, H hidden, E experts held, I inner size, J = 2 I, N experts of a token.

OP = "moe_mlp"


def check_moe_mlp(
    x_TH: torch.Tensor,
    gate_up_EJH: torch.Tensor,
    down_EIH: torch.Tensor,
    weights_TN: torch.Tensor,
    experts_TN: torch.Tensor,
    counts_E: torch.Tensor | None,
    *,
    first_expert: int,
    activation: str,
) -> None:
    """Raises UnsupportedError."""
    matrices = {"x": x_TH, "gate_up": gate_up_EJH, "down": down_EIH}
    expect_tensors(OP, FLOATS, **matrices)
    for name, tensor in matrices.items():
        dims = 2 if name == "x" else 3
        expect(OP, f"dims of {name}", tensor.dim(), dims, tensor.dim() == dims)
        expect(OP, f"strides of {name}", tensor.stride(), "1 in the last dim",
               tensor.stride(-1) == 1 or tensor.shape[-1] == 1 or not tensor.numel())  # fmt: skip
    tokens, hidden = x_TH.shape
    num_experts, inner, _ = down_EIH.shape
    expect(OP, "shape of down", list(down_EIH.shape), "none that is 0, and hidden of x last",
           min(down_EIH.shape) > 0 and down_EIH.shape[2] == hidden)  # fmt: skip
    gate_up = (num_experts, 2 * inner, hidden)
    expect(OP, "shape of gate_up", list(gate_up_EJH.shape), list(gate_up),
           gate_up_EJH.shape == gate_up)  # fmt: skip
    expect(OP, "shape of experts", list(experts_TN.shape), f"[{tokens}, 1 or more]",
           experts_TN.dim() == 2 and len(experts_TN) == tokens and experts_TN.shape[1] > 0
           )  # fmt: skip
    expect(OP, "shape of weights", list(weights_TN.shape), list(experts_TN.shape),
           weights_TN.shape == experts_TN.shape)  # fmt: skip
    expect(OP, "pairs", experts_TN.numel(), "below 2^30", experts_TN.numel() < 2**30)
    of = {"weights": (weights_TN, torch.float32), "experts": (experts_TN, torch.int32)}
    if counts_E is not None:
        of["counts"] = (counts_E, torch.int64)
        expect(OP, "shape of counts", list(counts_E.shape), [num_experts],
               counts_E.shape == (num_experts,) and counts_E.is_contiguous())  # fmt: skip
    for name, (tensor, dtype) in of.items():
        expect_one_of(OP, f"dtype of {name}", tensor.dtype, (dtype,))
        expect(OP, f"device of {name}", tensor.device, x_TH.device, tensor.device == x_TH.device)
    expect_one_of(OP, "activation", activation, ACTIVATIONS)
    expect(OP, "first_expert", first_expert, "0 or more", first_expert >= 0)
