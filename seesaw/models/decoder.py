"""The one decoder: every family is this, with the switches of its ModelSpec.

Turns tokens of a step into logits over a paged KV pool, or does one rank's share of that. Knows
rows and positions, nothing of requests, scheduling or sampling. Layers may be run in any cut, for
pipeline stages and layered prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from seesaw.families.spec import LayerSpec, ModelSpec
from seesaw.kvcache.pool import KVCache
from seesaw.layers.attention import Attention, AttentionInputs
from seesaw.layers.comm import ALONE, Comm
from seesaw.layers.embedding import embed
from seesaw.layers.mlp import MLP
from seesaw.layers.moe import MoE
from seesaw.layers.rope import Rotary
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.models.inputs import StepInputs
from seesaw.ops.attention_plan import AttentionPlan, plan_attention
from seesaw.ops.device_rows import DeviceRows
from seesaw.ops.highest import highest
from seesaw.ops.rms_norm import rms_norm
from seesaw.ops.triton_backend import on_triton
from seesaw.plan.workspace import attention_shape

# Shape letters: T tokens of the step, H hidden, S rows that sample, V vocabulary rows of the rank.


class _Layer:
    """One decoder layer. The residual stream is carried as (hidden, delta), delta not yet added, so
    that the add and the next norm are one op."""

    def __init__(
        self,
        spec: ModelSpec,
        params: Mapping[str, torch.Tensor],
        layer: int,
        ranges: RankRanges,
        comm: Comm,
    ) -> None:
        prefix = f"model.layers.{layer}."
        self._spec = spec
        self._attention = Attention(spec, params, layer, ranges, comm)
        self._mlp: MLP | MoE = (
            MoE(spec, params, layer, ranges, comm)
            if spec.layers[layer].sparse
            else MLP(spec, params, layer, comm)
        )
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

    @property
    def expert_loads(self) -> torch.Tensor | None:
        return self._mlp.loads_E if isinstance(self._mlp, MoE) else None

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
    """What one rank runs of a model; the whole model without `ranges`.

    `params` are the rank's, by name, as `layout` stores and cuts them (`stored_params`), all of one
    dtype and on one device; names that the rank has no use for are ignored. `comm` joins the ranks
    of its stage, which make all calls together.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Mapping[str, torch.Tensor],
        ranges: RankRanges | None = None,
        comm: Comm = ALONE,
    ) -> None:
        self.spec = spec
        self.ranges = ranges = ranges or rank_ranges(ParallelLayout(), spec, 0)
        self._comm = comm
        self._embedding = self._final_norm = self._head = None
        if ranges.layers.start == 0:
            self._embedding = params["model.embed_tokens.weight"]
        if ranges.layers.stop == spec.num_hidden_layers:
            head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
            self._final_norm, self._head = params["model.norm.weight"], params[head]
        self._layers = {
            layer: _Layer(spec, params, layer, ranges, comm) for layer in range(*ranges.layers)
        }
        some = params[f"model.layers.{ranges.layers.start}.input_layernorm.weight"]
        self.dtype, self.device = some.dtype, some.device
        self._rotaries = {
            layer.rope: Rotary(layer.rope, spec.head_dim, self.device)
            for layer in spec.layers[slice(*ranges.layers)]
        }
        # rounded to the weights' dtype, as the models were trained
        self._embed_scale = torch.tensor(spec.embed_scale, dtype=self.dtype).item()

    def embed(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Token ids (int64, below the vocabulary's size) -> hidden `[T, H]`; first stage only."""
        assert self._embedding is not None, f"{self.ranges} is not of the first stage"
        vocab, scale = self.ranges.vocab, self._embed_scale
        return embed(token_ids_T, self._embedding, vocab, scale, self._comm)

    def run_layers(
        self,
        hidden_TH: torch.Tensor,
        inputs: StepInputs,
        kv: KVCache,
        layer_start: int,
        layer_stop: int,
        *,
        only_sampled: bool = False,
        before: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Hidden `[T, H]` through layers layer_start .. layer_stop (exclusive), numbered as in the
        model and all of this rank; writes their KV. Layer 0 of `kv` is the rank's first.

        Any cut of the layers gives the same result: the residual stream is whole at the cut.
        `hidden_TH` is not changed here, but a caller must not rely on it (`CpuDecoder`). With
        `only_sampled` the rows `[S, H]` of `inputs.sample_index_S` are returned.
        `before` is called with each layer when the device has been given those before it.
        """
        first = self.ranges.layers.start
        prepared: dict[LayerSpec, AttentionInputs] = {}
        delta_TH: torch.Tensor | None = None
        for index in range(layer_start, layer_stop):
            if before is not None:
                before(index)
            kind, local = self.spec.layers[index], index - first
            if kind not in prepared:
                prepared[kind] = self._attention_inputs(kind, inputs, kv)
            hidden_TH, delta_TH = self._layers[index](
                hidden_TH, delta_TH, prepared[kind], kv.k_cache(local), kv.v_cache(local)
            )
        if only_sampled:
            hidden_TH = hidden_TH[inputs.sample_index_S]
            delta_TH = None if delta_TH is None else delta_TH[inputs.sample_index_S]
        return hidden_TH if delta_TH is None else hidden_TH + delta_TH

    def logits(self, hidden_TH: torch.Tensor, sample_index_S: torch.Tensor) -> torch.Tensor:
        """Logits `[S, V]` in float32 of the tokens at `sample_index_S`, from the last layer's
        output; V are the ids `ranges.vocab`. Last stage only.
        """
        logits_SV = self._head_product(hidden_TH, sample_index_S).float()
        soft_cap = self.spec.logits_soft_cap
        return logits_SV if soft_cap is None else logits_SV.div_(soft_cap).tanh_().mul_(soft_cap)

    def highest(
        self, hidden_TH: torch.Tensor, sample_index_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(logit (float32), token id (int64)) of the highest of each row of `logits`, the lowest id
        among equals. Last stage only."""
        if self.spec.logits_soft_cap is None:
            logits_SV = self._head_product(hidden_TH, sample_index_S)
        else:  # which may make equals of what was not
            logits_SV = self.logits(hidden_TH, sample_index_S)
        return highest(logits_SV, self.ranges.vocab.start)

    def _head_product(self, hidden_TH: torch.Tensor, sample_index_S: torch.Tensor) -> torch.Tensor:
        """Logits in the weights' dtype, before their cap."""
        spec = self.spec
        assert self._final_norm is not None, f"{self.ranges} is not of the last stage"
        assert self._head is not None, "a last stage has a head"
        last_SH, _ = rms_norm(
            hidden_TH[sample_index_S],
            self._final_norm,
            spec.rms_norm_eps,
            plus_one=spec.norm_plus_one,
        )
        return F.linear(last_SH, self._head)

    def set_profiling(self, on: bool) -> None:
        """Nothing is counted here: operations may still run when a call of them has returned."""

    def take_profile(self) -> dict[str, float]:
        return {}

    def expert_loads(self) -> dict[int, torch.Tensor]:
        """Of each sparse layer of this rank: how often each of its experts' weights were read, an
        int64 tensor on the device, which goes on counting."""
        counted = {index: layer.expert_loads for index, layer in self._layers.items()}
        return {index: loads_E for index, loads_E in counted.items() if loads_E is not None}

    def _attention_inputs(
        self, kind: LayerSpec, inputs: StepInputs, kv: KVCache
    ) -> AttentionInputs:
        cos_TF, sin_TF = self._rotaries[kind.rope].cos_sin(inputs.positions_T, self.dtype)
        rows = plan = None
        if on_triton(inputs.positions_T):
            rows = inputs.rows or DeviceRows.of(
                inputs.cu_seqlens_q_list, inputs.seq_lens_list, self.device
            )
        else:
            plan = self._plan(kind, inputs, kv)
        return AttentionInputs(
            cos_TF=cos_TF,
            sin_TF=sin_TF,
            slot_mapping_T=inputs.slot_mapping_T,
            block_table_RP=inputs.block_table_RP,
            cu_seqlens_q=inputs.cu_seqlens_q_list,
            seq_lens=inputs.seq_lens_list,
            plan=plan,
            rows=rows,
            whole_prompts=inputs.whole_prompts,
        )

    def _plan(self, kind: LayerSpec, inputs: StepInputs, kv: KVCache) -> AttentionPlan:
        """For plain torch."""
        shape = attention_shape(
            self.spec,
            self.ranges,
            kind.sliding_window,
            kv.block_size,
            self.dtype.itemsize,
            "cuda" if self.device.type == "cuda" else "cpu",
        )
        return plan_attention(
            inputs.block_table_RP,
            inputs.cu_seqlens_q_list,
            inputs.seq_lens_list,
            shape,
            self.dtype,
        )
