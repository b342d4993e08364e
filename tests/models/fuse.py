"""Parameters of a transformers model in the decoder's fused form, by a path of its own.

What the loader makes is compared with transformers elsewhere; here nothing of `weights` is used.
"""

from __future__ import annotations

from typing import Any

import torch


def fused_params(model: Any) -> dict[str, torch.Tensor]:
    """Fused parameters named and laid out as the decoder wants them; the model is not changed."""
    config, state = model.config, model.state_dict()
    kv_heads = config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    out = {
        name: state[name]
        for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            if prefix + f"self_attn.q_proj.{kind}" in state:
                q, k, v = (state[f"{prefix}self_attn.{n}_proj.{kind}"] for n in "qkv")
                heads = []
                for head in range(kv_heads):
                    heads.append(q.chunk(kv_heads)[head])
                    heads += [k.chunk(kv_heads)[head], v.chunk(kv_heads)[head]]
                assert len(heads[0]) == group * len(heads[1])
                out[f"{prefix}self_attn.qkv_proj.{kind}"] = torch.cat(heads)
            if prefix + f"mlp.gate_proj.{kind}" in state:
                halves = [state[f"{prefix}mlp.{n}_proj.{kind}"] for n in ("gate", "up")]
                out[f"{prefix}mlp.gate_up_proj.{kind}"] = torch.cat(halves)
        for name, tensor in state.items():
            split = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
            if name.startswith(prefix) and ".experts." in name:
                down = name.endswith("down_proj")
                out[f"{name}.weight"] = tensor.transpose(1, 2).contiguous() if down else tensor
            elif name.startswith(prefix) and not any(part in name for part in split):
                rows_are_cut = name.endswith(("o_proj.weight", "down_proj.weight"))
                out[name] = tensor.T.contiguous() if rows_are_cut else tensor
    return out
