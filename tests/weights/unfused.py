"""The decoder's fused parameters, undone: written apart from `weights/placement.py`."""

from __future__ import annotations

from typing import Any

import torch

from seesaw.families import ModelSpec


def unfuse(spec: ModelSpec, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """HF name -> tensor."""
    found: dict[str, torch.Tensor] = {}
    group = spec.num_attention_heads // spec.num_key_value_heads
    for name, tensor in params.items():
        if ".qkv_proj." in name:
            heads = tensor.view(spec.num_key_value_heads, group + 2, spec.head_dim, -1)
            for part, picked in (
                ("q_proj", heads[:, :group]),
                ("k_proj", heads[:, group]),
                ("v_proj", heads[:, group + 1]),
            ):
                flat = picked.reshape(-1, *tensor.shape[1:])
                found[name.replace("qkv_proj", part)] = flat
        elif ".experts." in name:
            down = name.endswith("down_proj.weight")
            found[name.removesuffix(".weight")] = tensor.transpose(1, 2) if down else tensor
        elif ".gate_up_proj." in name:
            gate, up = tensor.chunk(2)
            found[name.replace("gate_up_proj", "gate_proj")] = gate
            found[name.replace("gate_up_proj", "up_proj")] = up
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            found[name] = tensor.T
        else:
            found[name] = tensor
    return found


def assert_same(spec: ModelSpec, params: dict[str, torch.Tensor], model: Any) -> None:
    """Bit for bit the parameters of a transformers model, converted to their dtype."""
    ours, theirs = unfuse(spec, params), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = tensor.to(ours[name].dtype)
        assert torch.equal(ours[name], expected), name
