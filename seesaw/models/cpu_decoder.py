"""The decoder of models/decoder.py on kernels for CPUs: one call into C++ runs a whole range of
layers, on all threads, without Python's lock.

Takes weights in panels (layout/panels.py) and hands over where they lie; csrc/cpu/decoder.h says
what becomes of them. Knows no requests, and no model but through its ModelSpec.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NotRequired, TypedDict

import torch

from seesaw.families.spec import ModelSpec
from seesaw.kvcache.pool import KVCache
from seesaw.layers.comm import ALONE, Comm
from seesaw.layers.rope import Rotary
from seesaw.layout.panels import PANEL
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.models.inputs import StepInputs

if TYPE_CHECKING:
    from seesaw import _cpu

# Shape letters: T tokens of the step, H hidden, S rows that sample, V vocabulary rows of the rank,
# E experts of it, P panels, K inner size of a matrix.

_Matrix = tuple[int, int, int, int, int, int]


class _Mlp(TypedDict):
    """What C++ is told of a layer's MLP, or of its experts."""

    gate_up: _Matrix
    down: _Matrix
    router: NotRequired[_Matrix]
    first_expert: NotRequired[int]
    num_experts: NotRequired[int]
    expert_loads: NotRequired[int]


class CpuDecoder:
    """What one rank runs of a model, as `Decoder`; the whole model without `ranges`.

    `params` are the rank's, by name, in panels, all of one dtype (bfloat16 or float32) and any
    stride from panel to panel. `own_threads`: run on so many threads of its own instead of those of
    the process, where several ranks are in one.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Mapping[str, torch.Tensor],
        ranges: RankRanges | None = None,
        comm: Comm = ALONE,
        *,
        own_threads: int = 0,
    ) -> None:
        self.spec = spec
        self.ranges = ranges = ranges or rank_ranges(ParallelLayout(), spec, 0)
        self._params = params  # what C++ has the addresses of
        self._comm = comm
        some = params[f"model.layers.{ranges.layers.start}.input_layernorm.weight"]
        self.dtype, self.device = some.dtype, some.device
        kinds = dict.fromkeys(layer.rope for layer in spec.layers[slice(*ranges.layers)])
        self._ropes = {rope: index for index, rope in enumerate(kinds)}
        self._rotaries = [Rotary(rope, spec.head_dim, self.device) for rope in kinds]
        self._expert_loads = {
            layer: torch.zeros(ranges.experts.size, dtype=torch.int64)
            for layer in range(*ranges.layers)
            if spec.layers[layer].sparse
        }
        self._native = self._make(own_threads)
        for layer in range(*ranges.layers):
            self._add_layer(layer)
        if ranges.layers.start == 0:
            self._set_embedding()
        if ranges.layers.stop == spec.num_hidden_layers:
            self._set_head()

    # -- what a step calls ------------------------------------------------------------------------

    def embed(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Token ids (int64, below the vocabulary's size) -> hidden `[T, H]`; first stage only."""
        assert self.ranges.layers.start == 0, f"{self.ranges} is not of the first stage"
        num_tokens = len(token_ids_T)
        hidden_TH = torch.empty(num_tokens, self.spec.hidden_size, dtype=self.dtype)
        self._native.embed(_address(token_ids_T, torch.int64), num_tokens, hidden_TH.data_ptr())
        return hidden_TH

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

        Any cut of the layers gives the same result but for one rounding of the residual stream.
        Changes `hidden_TH` and returns it, or with `only_sampled` the rows `[S, H]` of
        `inputs.sample_index_S`: after its keys and values the last layer computes no others.
        `before` is called with each layer when those before it are done; what it raises ends the
        call. It changes no bit of the result.
        """
        first = self.ranges.layers.start
        table = inputs.block_table_RP
        cu_seqlens = array("q", inputs.cu_seqlens_q_list)
        seq_lens = array("q", inputs.seq_lens_list)
        cos_sin = [rotary.cos_sin(inputs.positions_T, self.dtype) for rotary in self._rotaries]
        assert table.dtype == torch.int32, f"a block table of {table.dtype}"
        sampled = len(inputs.sample_index_S)
        pruned = only_sampled and sampled < len(hidden_TH)
        assert table.stride(1) == 1, "block tables are rows"
        assert kv.pool.is_contiguous(), "a pool is one piece"
        self._native.run_layers(
            hidden=_address(hidden_TH, self.dtype),
            tokens=len(hidden_TH),
            num_rows=len(seq_lens),
            cu_seqlens_q=cu_seqlens.buffer_info()[0],
            seq_lens=seq_lens.buffer_info()[0],
            block_table=table.data_ptr(),
            table_stride=table.stride(0),
            slots=_address(inputs.slot_mapping_T, torch.int64),
            cos_sin=[(cos.data_ptr(), sin.data_ptr()) for cos, sin in cos_sin],
            pool=kv.pool.data_ptr(),
            num_blocks=kv.num_blocks,
            block_size=kv.block_size,
            panels=kv.panels,
            begin=layer_start - first,
            end=layer_stop - first,
            wanted=_address(inputs.sample_index_S, torch.int64),
            num_wanted=sampled if pruned else -1,
            before=None if before is None else lambda local: before(local + first),
        )
        return hidden_TH[:sampled] if pruned else hidden_TH

    def logits(self, hidden_TH: torch.Tensor, sample_index_S: torch.Tensor) -> torch.Tensor:
        """Logits `[S, V]` in float32 of the tokens at `sample_index_S`, from the last layer's
        output; V are the ids `ranges.vocab`. Last stage only.
        """
        self._check_last_stage()
        count = len(sample_index_S)
        logits_SV = torch.empty(count, self.ranges.vocab.size)
        self._native.logits(
            _address(hidden_TH, self.dtype),
            _address(sample_index_S, torch.int64),
            count,
            logits_SV.data_ptr(),
        )
        cap = self.spec.logits_soft_cap
        return logits_SV if cap is None else logits_SV.div_(cap).tanh_().mul_(cap)

    def highest(
        self, hidden_TH: torch.Tensor, sample_index_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(logit (float32), token id (int64)) of the highest of each row of `logits`, the lowest id
        among equals; without a soft cap the logits are written nowhere. Last stage only."""
        self._check_last_stage()
        if self.spec.logits_soft_cap is not None:
            # A cap makes equals of neighbours, and then the lowest id counts.
            value_S, column_S = self.logits(hidden_TH, sample_index_S).max(-1)
            return value_S, column_S.add_(self.ranges.vocab.start)
        count = len(sample_index_S)
        value_S, id_S = torch.empty(count), torch.empty(count, dtype=torch.int64)
        self._native.highest(
            _address(hidden_TH, self.dtype),
            _address(sample_index_S, torch.int64),
            count,
            value_S.data_ptr(),
            id_S.data_ptr(),
        )
        return value_S, id_S

    def set_profiling(self, on: bool) -> None:
        """Count the seconds of each part of a step from now on, or no more."""
        self._native.set_profiling(on)

    def take_profile(self) -> dict[str, float]:
        """Seconds by part of a step (csrc/cpu/decoder.h names them) since the last call; parts that
        did not run are left out."""
        return self._native.take_profile()

    def expert_loads(self) -> dict[int, torch.Tensor]:
        """Of each sparse layer of this rank: how often each of its experts' weights were read, an
        int64 tensor which goes on counting."""
        return dict(self._expert_loads)

    def _check_last_stage(self) -> None:
        last = self.ranges.layers.stop == self.spec.num_hidden_layers
        assert last, f"{self.ranges} is not of the last stage"

    # -- construction -----------------------------------------------------------------------------

    def _make(self, own_threads: int) -> _cpu.Decoder:
        from seesaw import _cpu

        spec, ranges = self.spec, self.ranges
        comm: _cpu.Comm | None = None
        if self._comm.size > 1:
            comm = getattr(self._comm, "native", None) or _callback_comm(self._comm, self.dtype)
        return _cpu.Decoder(
            dtype=str(self.dtype).removeprefix("torch."),
            hidden_size=spec.hidden_size,
            head_dim=spec.head_dim,
            head_step=-(-spec.head_dim // PANEL) * PANEL,
            num_kv_heads=ranges.kv_heads.size,
            group=ranges.query_heads.size // ranges.kv_heads.size,
            norm_eps=spec.rms_norm_eps,
            norm_plus_one=spec.norm_plus_one,
            sm_scale=spec.sm_scale,
            attn_soft_cap=spec.attn_soft_cap or 0.0,
            gelu=spec.hidden_act == "gelu_pytorch_tanh",
            comm=comm,
            own_threads=own_threads,
            experts_per_token=spec.num_experts_per_tok,
            renormalize_experts=spec.norm_topk_prob,
        )

    def _add_layer(self, layer: int) -> None:
        spec, kind = self.spec, self.spec.layers[layer]
        prefix = f"model.layers.{layer}."
        after_attention = self._vector(prefix + "post_attention_layernorm.weight")
        mlp_norm, attention_out_norm, mlp_out_norm = after_attention, 0, 0
        if spec.sandwich_norm:
            mlp_norm = self._vector(prefix + "pre_feedforward_layernorm.weight")
            mlp_out_norm = self._vector(prefix + "post_feedforward_layernorm.weight")
            attention_out_norm = after_attention
        attention = prefix + "self_attn."
        # A bias that is not cut is added once: by the first rank.
        once = self._comm.rank == 0
        self._native.add_layer(
            input_norm=self._vector(prefix + "input_layernorm.weight"),
            attention_out_norm=attention_out_norm,
            mlp_norm=mlp_norm,
            mlp_out_norm=mlp_out_norm,
            q_norm=self._vector(attention + "q_norm.weight") if spec.qk_norm else 0,
            k_norm=self._vector(attention + "k_norm.weight") if spec.qk_norm else 0,
            qkv=self._matrix(attention + "qkv_proj", None, spec.attention_bias),
            o=self._matrix(
                attention + "o_proj", spec.hidden_size, spec.attention_out_bias and once
            ),
            window=kind.sliding_window or 0,
            rope=self._ropes[kind.rope],
            **(self._experts(layer) if kind.sparse else self._mlp(layer)),
        )

    def _mlp(self, layer: int) -> _Mlp:
        spec, prefix = self.spec, f"model.layers.{layer}.mlp."
        columns, once = 2 * self.ranges.mlp.size, self._comm.rank == 0
        return {
            "gate_up": self._matrix(prefix + "gate_up_proj", columns, spec.mlp_bias),
            "down": self._matrix(prefix + "down_proj", spec.hidden_size, spec.mlp_bias and once),
        }

    def _experts(self, layer: int) -> _Mlp:
        spec, prefix = self.spec, f"model.layers.{layer}.mlp."
        columns = 2 * spec.moe_intermediate_size
        return {
            "router": self._matrix(prefix + "gate", spec.num_experts, False),
            "gate_up": self._matrix(prefix + "experts.gate_up_proj", columns, False),
            "down": self._matrix(prefix + "experts.down_proj", spec.hidden_size, False),
            "first_expert": self.ranges.experts.start,
            "num_experts": self.ranges.experts.size,
            "expert_loads": self._expert_loads[layer].data_ptr(),
        }

    def _set_embedding(self) -> None:
        spec, vocab = self.spec, self.ranges.vocab
        name = "model.embed_tokens"
        tied = spec.tie_word_embeddings
        self._native.set_embedding(
            table=self._matrix(name, vocab.size, False) if tied else None,
            rows=0 if tied else self._vector(name + ".weight"),
            num_rows=vocab.size,
            first_id=vocab.start,
            # rounded to the weights' dtype, as the models were trained
            scale=torch.tensor(spec.embed_scale, dtype=self.dtype).item(),
        )

    def _set_head(self) -> None:
        head = "model.embed_tokens" if self.spec.tie_word_embeddings else "lm_head"
        vocab = self.ranges.vocab
        self._native.set_head(
            norm=self._vector("model.norm.weight"),
            head=self._matrix(head, vocab.size, False),
            first_id=vocab.start,
        )

    def _vector(self, name: str) -> int:
        """Where a tensor begins that lies in one piece."""
        return _address(self._params[name], self.dtype)

    def _matrix(self, name: str, columns: int | None, bias: bool) -> _Matrix:
        """A matrix `[P, K, 32]` with its real `columns`, None = all that its panels have; or those
        of experts, `[E, P, K, 32]`, with the columns of one."""
        weight_PK = self._params[name + ".weight"]
        if weight_PK.ndim == 4:
            weight_PK = weight_PK.view(-1, *weight_PK.shape[2:])
        assert weight_PK.dtype == self.dtype, f"{name} is {weight_PK.dtype}"
        assert weight_PK.stride()[1:] == (PANEL, 1), f"{name} is not in panels"
        panels, depth, _ = weight_PK.shape
        return (
            weight_PK.data_ptr(),
            weight_PK.stride(0) * weight_PK.element_size(),
            panels,
            panels * PANEL if columns is None else columns,
            depth,
            self._vector(name + ".bias") if bias else 0,
        )


def _address(x: torch.Tensor, dtype: torch.dtype) -> int:
    assert x.dtype == dtype, f"got {x.dtype}, expected {dtype}"
    assert x.is_contiguous(), "C++ walks it row after row"
    return x.data_ptr()


def _callback_comm(comm: Comm, dtype: torch.dtype) -> _cpu.CallbackComm:
    """Sums by a `Comm` that C++ knows nothing of."""
    from seesaw import _cpu

    def all_reduce(address: int, count: int) -> None:
        held = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        x = torch.frombuffer(held, dtype=dtype)
        total = comm.all_reduce(x)
        if total.data_ptr() != address:
            x.copy_(total)

    return _cpu.CallbackComm(comm.size, comm.rank, all_reduce)
