"""The one decoder: every family is this, with the switches of its ModelSpec.

Turns tokens of a step into logits over a paged KV pool. Knows rows and positions, nothing of
requests, scheduling or sampling. Layers may be run in any cut, for pipeline stages and layered
prefill.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from seesaw.families.spec import LayerSpec, ModelSpec
from seesaw.kvcache.pool import KVCache
from seesaw.layers.attention import Attention, AttentionInputs
from seesaw.layers.mlp import MLP
from seesaw.layers.rope import Rotary
from seesaw.models.inputs import StepInputs
from seesaw.models.workspace import attention_shape
from seesaw.ops.attention_plan import plan_attention
from seesaw.ops.rms_norm import rms_norm

# Shape letters: T tokens of the step, H hidden, S rows that sample, V vocabulary.


class _Layer:
    """One decoder layer. The residual stream is carried as (hidden, delta), delta not yet added, so
    that the add and the next norm are one op."""

    def __init__(self, spec: ModelSpec, params: Mapping[str, torch.Tensor], layer: int) -> None:
        prefix = f"model.layers.{layer}."
        self._spec = spec
        self._attention = Attention(spec, params, layer)
        self._mlp = MLP(spec, params, layer)
        self._input_norm = params[prefix + "input_layernorm.weight"]
        after_attention = params[prefix + "post_attention_layernorm.weight"]
        if spec.sandwich_norm:
            self._attention_out_norm: torch.Tensor | None = after_attention
            self._mlp_norm = params[prefix + "pre_feedforward_layernorm.weight"]
            self._mlp_out_norm: torch.Tensor | None = params[
                prefix + "post_feedforward_layernorm.weight"
            ]
        else:
            self._attention_out_norm = self._mlp_out_norm = None
            self._mlp_norm = after_attention

    def __call__(
        self,
        hidden_TH: torch.Tensor,
        delta_TH: torch.Tensor | None,
        inputs: AttentionInputs,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_TH, hidden_TH = self._norm(hidden_TH, self._input_norm, delta_TH)
        delta_TH = self._attention(x_TH, inputs, k_cache, v_cache)
        if self._attention_out_norm is not None:
            delta_TH, _ = self._norm(delta_TH, self._attention_out_norm)
        x_TH, hidden_TH = self._norm(hidden_TH, self._mlp_norm, delta_TH)
        delta_TH = self._mlp(x_TH)
        if self._mlp_out_norm is not None:
            delta_TH, _ = self._norm(delta_TH, self._mlp_out_norm)
        return hidden_TH, delta_TH

    def _norm(
        self, x_TH: torch.Tensor, weight_H: torch.Tensor, residual_TH: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self._spec
        return rms_norm(
            x_TH, weight_H, spec.rms_norm_eps, residual_NH=residual_TH, plus_one=spec.norm_plus_one
        )


class Decoder:
    """`params` are named and fused as `weights` loads them, all of one dtype and on one device; QKV
    rows are interleaved by KV head: its query heads, its K head, its V head."""

    def __init__(self, spec: ModelSpec, params: Mapping[str, torch.Tensor]) -> None:
        self.spec = spec
        self._embedding = params["model.embed_tokens.weight"]
        self._final_norm = params["model.norm.weight"]
        self._head = params["lm_head.weight"]
        self._layers = [_Layer(spec, params, i) for i in range(spec.num_hidden_layers)]
        device = self._embedding.device
        self._rotaries = {
            layer.rope: Rotary(layer.rope, spec.head_dim, device) for layer in spec.layers
        }
        # rounded to the weights' dtype, as the models were trained
        self._embed_scale = torch.tensor(spec.embed_scale, dtype=self.dtype).item()

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    def embed(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Token ids (int64, below the vocabulary's size) -> hidden `[T, H]`."""
        hidden_TH = F.embedding(token_ids_T, self._embedding)
        return hidden_TH if self._embed_scale == 1.0 else hidden_TH.mul_(self._embed_scale)

    def run_layers(
        self,
        hidden_TH: torch.Tensor,
        inputs: StepInputs,
        kv: KVCache,
        layer_start: int,
        layer_stop: int,
    ) -> torch.Tensor:
        """Hidden `[T, H]` through layers layer_start .. layer_stop (exclusive); writes their KV.

        Any cut of the layers gives the same result: the residual stream is whole at the cut.
        `hidden_TH` is not changed.
        """
        prepared: dict[LayerSpec, AttentionInputs] = {}
        delta_TH: torch.Tensor | None = None
        for index in range(layer_start, layer_stop):
            kind = self.spec.layers[index]
            if kind not in prepared:
                prepared[kind] = self._attention_inputs(kind, inputs, kv)
            hidden_TH, delta_TH = self._layers[index](
                hidden_TH, delta_TH, prepared[kind], kv.k_cache(index), kv.v_cache(index)
            )
        return hidden_TH if delta_TH is None else hidden_TH + delta_TH

    def logits(self, hidden_TH: torch.Tensor, sample_index_S: torch.Tensor) -> torch.Tensor:
        """Logits `[S, V]` in float32 of the tokens at `sample_index_S`, from the last layer's
        output.
        """
        spec = self.spec
        last_SH, _ = rms_norm(
            hidden_TH[sample_index_S],
            self._final_norm,
            spec.rms_norm_eps,
            plus_one=spec.norm_plus_one,
        )
        logits_SV = F.linear(last_SH, self._head).float()
        if spec.logits_soft_cap is not None:
            logits_SV.div_(spec.logits_soft_cap).tanh_().mul_(spec.logits_soft_cap)
        return logits_SV

    def _attention_inputs(
        self, kind: LayerSpec, inputs: StepInputs, kv: KVCache
    ) -> AttentionInputs:
        cos_TF, sin_TF = self._rotaries[kind.rope].cos_sin(inputs.positions_T, self.dtype)
        shape = attention_shape(
            self.spec, kind.sliding_window, kv.block_size, self.dtype, self.device
        )
        table, cu_seqlens, seq_lens = (
            inputs.block_table_RP,
            inputs.cu_seqlens_q_list,
            inputs.seq_lens_list,
        )
        return AttentionInputs(
            cos_TF=cos_TF,
            sin_TF=sin_TF,
            plan=plan_attention(table, cu_seqlens, seq_lens, shape, self.dtype),
            slot_mapping_T=inputs.slot_mapping_T,
            block_table_RP=table,
            cu_seqlens_q=cu_seqlens,
            seq_lens=seq_lens,
        )
