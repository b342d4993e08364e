"""What a model is, in numbers and tensor names: all that layouts, planner, loader and decoder need
to know.

Standard library only. A family file turns a Hugging Face `config.json` into a `ModelSpec`; nothing
else in seesaw looks at the config again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SplitDim = Literal["heads", "kv_heads", "mlp", "vocab", "expert", "none"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding; inverse frequencies are made by `layers/rope.py`.

    `kind` and `params` (sorted by name, complete: what a config leaves out is filled in) follow
    HF's `rope_parameters`: linear has factor; llama3 factor, low_freq_factor, high_freq_factor,
    original_max_position_embeddings; yarn factor, original_max_position_embeddings, beta_fast,
    beta_slow, attention_factor (multiplies cos and sin), truncate.
    """

    theta: float
    kind: RopeKind = "default"
    params: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What differs from layer to layer. `sliding_window` in tokens, None = full attention;
    `sparse`: a router and experts in place of one MLP."""

    sliding_window: int | None
    rope: RopeSpec
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One tensor of the checkpoint as the decoder wants it.

    `name` is the HF tensor name, `shape` its shape [out, in] or [size], `split_dim` what tensor
    parallelism cuts (`heads`: rows by query head, `kv_heads`: rows by KV head, `mlp`: MLP columns,
    `vocab`: vocabulary rows, `expert`: nothing, it is whole on the rank that holds `expert`), `dim`
    the tensor dim that is cut, `layer` its layer or None.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    split_dim: SplitDim = "none"
    dim: int = 0
    expert: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer in HF's words (shapes in elements)."""

    family: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    torch_dtype: Literal["float32", "bfloat16", "float16"]
    layers: tuple[LayerSpec, ...]
    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    attention_bias: bool = False
    """Bias on q, k, v (Qwen2)."""
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over head_dim on q and k before RoPE (Qwen3, Gemma 3)."""
    norm_plus_one: bool = False
    """Norm weights are stored minus one (Gemma)."""
    sandwich_norm: bool = False
    """Norms after attention and MLP too, before the residual is added (Gemma)."""
    embed_scale: float = 1.0
    """Multiplies the embedding (Gemma: sqrt(hidden_size), rounded to the weights' dtype)."""
    query_scale: float | None = None
    """Softmax scale; None = head_dim ** -0.5."""
    logits_soft_cap: float | None = None
    attn_soft_cap: float | None = None
    num_experts: int = 0
    """0 = one MLP for all tokens in every layer. Else in sparse layers a router chooses
    `num_experts_per_tok` of them for each token, every one `moe_intermediate_size` wide."""
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    """The weights of a token's experts are scaled to add up to 1."""
    eos_token_ids: tuple[int, ...] = ()
    params: tuple[ParamSpec, ...] = ()

    @property
    def sm_scale(self) -> float:
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    @property
    def num_plain_layers(self) -> int:
        """Layers with one MLP of `intermediate_size` for all tokens."""
        return sum(not layer.sparse for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors; a tied head is counted once."""
        total = 0
        for p in self.params:
            size = 1
            for extent in p.shape:
                size *= extent
            total += size
        return total

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """KV bytes of one token over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * element_bytes
