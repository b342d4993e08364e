"""Parameters in panels, made of plain fused ones by reshaping: a path of its own, in which nothing
of `layout`'s formats or of `weights` is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from seesaw.families.spec import ModelSpec

PANEL = 32


def panel_params(spec: ModelSpec, plain: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`plain`: fused parameters of one rank as `Decoder` takes them; those for `CpuDecoder`."""
    out = {}
    for name, tensor in plain.items():
        if ".experts." in name:
            down = "down_proj" in name
            matrices = [expert.T if down else _interleaved(expert) for expert in tensor]
            out[name] = torch.stack([pack(matrix) for matrix in matrices])
            continue
        if "qkv_proj" in name:
            tensor = _padded_heads(tensor, spec.head_dim)
        elif "gate_up_proj" in name:
            tensor = _interleaved(tensor)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor = tensor.T
        if tensor.ndim == 2 and (name != "model.embed_tokens.weight" or spec.tie_word_embeddings):
            tensor = pack(tensor)
        elif name.endswith("bias"):
            tensor = F.pad(tensor, (0, -len(tensor) % PANEL))
        out[name] = tensor
    return out


def pack(weight: torch.Tensor) -> torch.Tensor:
    """`[N, K]` -> panels `[ceil(N / 32), K, 32]`, of bf16 with pairs along K side by side."""
    padded = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    panels, depth = len(padded) // PANEL, weight.shape[1]
    if weight.dtype == torch.float32:
        return padded.view(panels, PANEL, depth).transpose(1, 2).contiguous()
    pairs = padded.view(panels, PANEL, depth // 2, 2).transpose(1, 2)
    return pairs.reshape(panels, depth, PANEL)


def _padded_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    heads = x.reshape(-1, head_dim, *x.shape[1:])
    pad = (0, 0) * (x.ndim - 1) + (0, -head_dim % PANEL)
    return F.pad(heads, pad).flatten(0, 1)


def _interleaved(x: torch.Tensor) -> torch.Tensor:
    """Gate rows, then up rows -> 16 of each in turns."""
    tile = PANEL // 2
    halves = x.view(2, -1, *x.shape[1:])
    pad = (0, 0) * (x.ndim - 1) + (0, -halves.shape[1] % tile)
    tiles = F.pad(halves, pad).unflatten(1, (-1, tile))
    return tiles.transpose(0, 1).flatten(0, 2)
