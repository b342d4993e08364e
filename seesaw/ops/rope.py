"""Rotary position embedding of queries and keys (Su et al. 2021, in GPT-NeoX's split-half order).

    out[:D/2] = x[:D/2] cos - x[D/2:] sin;   out[D/2:] = x[D/2:] cos + x[:D/2] sin

Bytes: q, k read and written once, cos and sin read once; 3 flops per element: memory-bound.
"""

from __future__ import annotations

from types import ModuleType

import torch

from seesaw.ops.native import native, usable
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
from seesaw.ops.shapes import SMALL

# Shape letters: T tokens, D head_dim, F = D / 2 frequencies; `...` any head dims.


def rope(
    q_TxD: torch.Tensor, k_TxD: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q `[T, ..., D]` and k `[T, ..., D]` (any strides) by each token's angles; D is even.

    cos_TF and sin_TF are rows of the cache in `layers/rope.py`, float32 or q's dtype; they are
    rounded to q's dtype first, as the models were trained. Returns new contiguous tensors of q's
    dtype.
    """
    cos_TF, sin_TF = cos_TF.to(q_TxD.dtype), sin_TF.to(q_TxD.dtype)
    cpu = native()
    if cpu is not None and usable(q_TxD, k_TxD, cos_TF, sin_TF):
        cos_TF, sin_TF = cos_TF.contiguous(), sin_TF.contiguous()
        return _rotate_cpu(cpu, q_TxD, cos_TF, sin_TF), _rotate_cpu(cpu, k_TxD, cos_TF, sin_TF)
    cos_TD = torch.cat((cos_TF, cos_TF), -1)
    sin_TD = torch.cat((-sin_TF, sin_TF), -1)
    return _rotate(q_TxD, cos_TD, sin_TD), _rotate(k_TxD, cos_TD, sin_TD)


def _rotate(x_TxD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    heads = (1,) * (x_TxD.dim() - 2)
    size = x_TxD.shape[-1]
    cos = cos_TD.view(-1, *heads, size)
    sin = sin_TD.view(-1, *heads, size)
    swapped = x_TxD.roll(size // 2, -1)
    return torch.mul(x_TxD, cos).contiguous().addcmul_(swapped, sin)


def _rotate_cpu(
    cpu: ModuleType, x_TxD: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor
) -> torch.Tensor:
    if cos_TF.shape != sin_TF.shape or cos_TF.shape != (len(x_TxD), x_TxD.shape[-1] / 2):
        raise ValueError(f"angles: got {list(cos_TF.shape)} for heads {list(x_TxD.shape)}")
    x_TABD = x_TxD if x_TxD.stride(-1) == 1 else x_TxD.contiguous()
    while x_TABD.dim() < 4:
        x_TABD = x_TABD.unsqueeze(1)
    x_TABD = x_TABD.flatten(1, -3)
    tokens, outer, inner, head_dim = x_TABD.shape
    out_TxD = torch.empty(x_TxD.shape, dtype=x_TxD.dtype)
    cpu.rope(
        itemsize=x_TxD.itemsize,
        tokens=tokens,
        outer=outer,
        inner=inner,
        head_dim=head_dim,
        x=x_TABD.data_ptr(),
        strides=x_TABD.stride()[:3],
        cos=cos_TF.data_ptr(),
        sin=sin_TF.data_ptr(),
        out=out_TxD.data_ptr(),
    )
    return out_TxD


def rope_reference(
    q_TxD: torch.Tensor, k_TxD: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    angles_TF = torch.complex(cos_TF.double(), sin_TF.double())

    def rotate(x: torch.Tensor) -> torch.Tensor:
        real, imaginary = x.double().chunk(2, -1)
        heads = (1,) * (x.dim() - 2)
        turned = torch.complex(real, imaginary) * angles_TF.view(len(x), *heads, real.shape[-1])
        return torch.cat((turned.real, turned.imag), -1).to(x.dtype)

    return rotate(q_TxD), rotate(k_TxD)


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    tokens, kv_heads, group, size = (case[n] for n in ("tokens", "kv_heads", "group", "head_dim"))
    qkv = torch.randn(tokens, kv_heads, group + 2, size, generator=generator).to(dtype)
    angles = torch.rand(tokens, size // 2, generator=generator) * 6.3
    return {
        "q_TxD": qkv[:, :, :group],
        "k_TxD": qkv[:, :, group],
        "cos_TF": angles.cos(),
        "sin_TF": angles.sin(),
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["tokens"] * case["kv_heads"] * (case["group"] + 1) * case["head_dim"]
    angles = case["tokens"] * case["head_dim"] * 4
    return Cost(2 * elements * dtype.itemsize + angles, 3 * elements)


OP = Op(
    name="rope",
    function=rope,
    reference=rope_reference,
    make_inputs=_make_inputs,
    cases=(
        {"tokens": 0, "kv_heads": 2, "group": 2, "head_dim": 64},
        {"tokens": 1, "kv_heads": 1, "group": 1, "head_dim": 2},
        {"tokens": 1, "kv_heads": 3, "group": 3, "head_dim": 64},
        {"tokens": 37, "kv_heads": 2, "group": 7, "head_dim": 80},
        {"tokens": 64, "kv_heads": 1, "group": 4, "head_dim": 256},
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    bench={
        f"{model.name}, {tokens} tokens": Bench(
            case={
                "tokens": tokens,
                "kv_heads": model.kv_heads,
                "group": model.group,
                "head_dim": model.head_dim,
            },
            devices=("cpu",),
        )
        for model in SMALL
        for tokens in (1, 64, 2048)
    },
    door=Door(rope, lambda q, k, cos, sin: (q.new_empty(q.shape), k.new_empty(k.shape))),
)
