"""The attention block of one layer: fused QKV; norms, RoPE and KV write in one; attention; output
projection. Heads are cut over the ranks of a stage.

Holds references to the layer's parameters; knows nothing of requests or of how blocks are given
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from seesaw.families.spec import ModelSpec
from seesaw.layers.comm import Comm
from seesaw.layers.row_parallel import row_parallel
from seesaw.layout.ranges import RankRanges
from seesaw.ops.attention_plan import AttentionPlan
from seesaw.ops.device_rows import DeviceRows
from seesaw.ops.paged_attention import paged_attention
from seesaw.ops.ragged_prefill import ragged_prefill
from seesaw.ops.rope_kv_write import rope_kv_write

# Shape letters: T tokens, H hidden, K KV heads of the rank, G its query heads per KV head, J = G +
# 2, D head_dim, F = D / 2, R rows, P blocks per row.


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What attention needs of a step, for layers of one RoPE and one window: `rows` where Triton's
    kernels run, else a `plan`. `whole_prompts` as in StepInputs."""

    cos_TF: torch.Tensor
    sin_TF: torch.Tensor
    slot_mapping_T: torch.Tensor
    block_table_RP: torch.Tensor
    cu_seqlens_q: list[int]
    seq_lens: list[int]
    plan: AttentionPlan | None
    rows: DeviceRows | None
    whole_prompts: bool


class Attention:
    """Of the heads in `ranges`: for each KV head the rows of `qkv_proj` are its query heads, its K
    head, its V head. Where ranks share a KV head, each has it and some of its query heads.
    `o_proj` is `[in, out]`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Mapping[str, torch.Tensor],
        layer: int,
        ranges: RankRanges,
        comm: Comm,
    ) -> None:
        prefix = f"model.layers.{layer}.self_attn."
        self._spec = spec
        self._comm = comm
        self._num_kv_heads = ranges.kv_heads.size
        self._group = ranges.query_heads.size // ranges.kv_heads.size
        self._window = spec.layers[layer].sliding_window
        self._qkv_weight = params[prefix + "qkv_proj.weight"]
        self._qkv_bias = params[prefix + "qkv_proj.bias"] if spec.attention_bias else None
        self._o_weight = params[prefix + "o_proj.weight"]
        self._o_bias = params[prefix + "o_proj.bias"] if spec.attention_out_bias else None
        self._q_norm = params[prefix + "q_norm.weight"] if spec.qk_norm else None
        self._k_norm = params[prefix + "k_norm.weight"] if spec.qk_norm else None

    def __call__(
        self,
        x_TH: torch.Tensor,
        inputs: AttentionInputs,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Attention output `[T, H]` before the residual, the same on all ranks; writes the step's K
        and V into the caches.
        """
        spec, group = self._spec, self._group
        qkv = F.linear(x_TH, self._qkv_weight, self._qkv_bias)
        qkv_TKJD = qkv.view(len(x_TH), self._num_kv_heads, group + 2, spec.head_dim)
        rope_kv_write(
            qkv_TKJD,
            inputs.cos_TF,
            inputs.sin_TF,
            k_cache,
            v_cache,
            inputs.slot_mapping_T,
            q_norm_D=self._q_norm,
            k_norm_D=self._k_norm,
            eps=spec.rms_norm_eps,
            plus_one=spec.norm_plus_one,
        )
        out_THD = self._attend(qkv_TKJD, inputs, k_cache, v_cache)
        return row_parallel(out_THD.flatten(1), self._o_weight, self._o_bias, self._comm)

    def _attend(
        self,
        qkv_TKJD: torch.Tensor,
        inputs: AttentionInputs,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        """On Triton whole prompts read keys and values where they were computed."""
        spec, group = self._spec, self._group
        q_THD, rows = qkv_TKJD[:, :, :group].flatten(1, 2), inputs.rows
        if rows is not None and inputs.whole_prompts:
            out_THD = ragged_prefill(
                q_THD,
                qkv_TKJD[:, :, group],
                qkv_TKJD[:, :, -1],
                rows.cu_seqlens_q,
                max_seqlen=rows.max_seqlen_q,
                sm_scale=spec.sm_scale,
                sliding_window=self._window,
                soft_cap=spec.attn_soft_cap,
            )
            assert isinstance(out_THD, torch.Tensor), "no log-sum-exp was asked for"
            return out_THD
        return paged_attention(
            q_THD,
            k_cache,
            v_cache,
            inputs.block_table_RP,
            inputs.cu_seqlens_q,
            inputs.seq_lens,
            sm_scale=spec.sm_scale,
            sliding_window=self._window,
            soft_cap=spec.attn_soft_cap,
            plan=inputs.plan,
            device_rows=rows,
        )
