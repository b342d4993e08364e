"""Other implementations of what the ops compute, to be timed beside them: torch's fused attention,
FlexAttention, FlashInfer, and this package's own plain torch.

A peer takes an op's inputs, brings them into the form that it wants, which is not timed, and
returns the call that is. It raises UnsupportedError for what it does not compute.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from seesaw.errors import UnsupportedError
from seesaw.measure.timer import Call
from seesaw.ops.triton_backend import plain_torch

# Shape letters: R rows, Q queries and L keys of each row, H query heads, K KV heads, D head_dim, T
# = R * Q tokens.

Inputs = Mapping[str, Any]
Peer = Callable[[Inputs], Call]
WORKSPACE_BYTES = 256 * 2**20
MOST_SHAPES = 256


class Rows(NamedTuple):
    """Rows of equal lengths, keys and values contiguous: what peers without pages take. The longest
    way from a pool to there is not part of their time."""

    q_RHQD: torch.Tensor
    k_RKLD: torch.Tensor
    v_RKLD: torch.Tensor


def plain(function: Callable[..., Any]) -> Peer:
    """The same op in plain torch."""

    def prepare(inputs: Inputs) -> Call:
        def call() -> object:
            with plain_torch():
                return function(**inputs)

        return call

    return prepare


def why_not(provider: str, device: torch.device) -> str | None:
    """Why a provider cannot run here at all; None where it can."""
    if provider == "flex" and device.type == "cpu":
        return "FlexAttention is not fused on CPUs"
    if provider == "flashinfer" and importlib.util.find_spec("flashinfer") is None:
        return "FlashInfer is not installed"
    return None


def _rows(inputs: Inputs) -> Rows:
    _only(inputs.get("k_scale_K") is None, "KV in float8")
    if "cu_seqlens" in inputs:
        ends = inputs["cu_seqlens"].tolist()
        lengths = [end - start for start, end in itertools.pairwise(ends)]
        _only(len(set(lengths)) == 1, "rows of different lengths")
        q, k, v = (
            inputs[name].unflatten(0, (len(lengths), lengths[0])).transpose(1, 2)
            for name in ("q_THD", "k_TKD", "v_TKD")
        )
        return Rows(q.contiguous(), k.contiguous(), v.contiguous())
    _only(inputs["block_table"].dim() == 2, "rows of several segments")
    lengths = inputs["seq_lens"].tolist()
    _only(len(set(lengths)) == 1, "rows of different lengths")
    pages = -(-lengths[0] // inputs["k_cache"].shape[1])
    table = inputs["block_table"][:, :pages].long()
    k, v = (
        inputs[name][table].flatten(1, 2)[:, : lengths[0]].transpose(1, 2)
        for name in ("k_cache", "v_cache")
    )
    q_THD = inputs.get("q_RHD", inputs.get("q_THD"))
    assert q_THD is not None
    q = q_THD.unflatten(0, (len(lengths), -1)).transpose(1, 2)
    _only(len(q_THD) == len(lengths) * q.shape[2], "rows of different lengths")
    return Rows(q.contiguous(), k.contiguous(), v.contiguous())


def _only(ok: bool, what: str) -> None:
    if not ok:
        raise UnsupportedError(f"{what}: not offered by this provider")


def _tokens(out_RHQD: torch.Tensor) -> torch.Tensor:
    """As the ops return it, `[T, H, D]`."""
    return out_RHQD.transpose(1, 2).flatten(0, 1)


# -- torch -----------------------------------------------------------------------------------------


def sdpa(inputs: Inputs) -> Call:
    from torch.nn.attention.bias import causal_lower_right

    _only(inputs.get("sliding_window") is None, "a sliding window")
    _only(inputs.get("soft_cap") is None, "a soft cap")
    rows, scale = _rows(inputs), inputs["sm_scale"]
    queries, keys = rows.q_RHQD.shape[2], rows.k_RKLD.shape[2]
    bias = causal_lower_right(queries, keys) if 1 < queries < keys else None

    def call() -> torch.Tensor:
        out_RHQD = F.scaled_dot_product_attention(
            *rows, attn_mask=bias, is_causal=queries == keys > 1, scale=scale, enable_gqa=True
        )
        return _tokens(out_RHQD)

    return call


def flex(inputs: Inputs) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, scale = _rows(inputs), inputs["sm_scale"]
    window, cap = inputs.get("sliding_window"), inputs.get("soft_cap") or 0.0
    queries, keys = rows.q_RHQD.shape[2], rows.k_RKLD.shape[2]
    before = keys - queries
    device = rows.q_RHQD.device

    def seen(b: Any, h: Any, query: Any, key: Any) -> Any:
        causal = key <= query + before
        return causal if window is None else causal & (key > query + before - window)

    def capped(score: Any, b: Any, h: Any, query: Any, key: Any) -> Any:
        return torch.tanh(score / cap) * cap

    mask = None
    if queries > 1 or window is not None:
        mask = create_block_mask(seen, None, None, queries, keys, device=device)
    attend = _flex(device.type)

    def call() -> torch.Tensor:
        out_RHQD = attend(
            *rows,
            score_mod=capped if cap else None,
            block_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        return _tokens(out_RHQD)

    return call


@functools.cache
def _flex(device: str) -> Callable[..., torch.Tensor]:
    """Compiled on a GPU; on a CPU as it is, which is right and slow."""
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention
    torch._dynamo.config.recompile_limit = MOST_SHAPES  # else later shapes run unfused
    compiled: Callable[..., torch.Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


# -- FlashInfer ------------------------------------------------------------------------------------


def _options(inputs: Inputs, q_THD: torch.Tensor, kv: torch.Tensor) -> dict[str, Any]:
    window = inputs.get("sliding_window")
    return {
        "num_qo_heads": q_THD.shape[1],
        "num_kv_heads": kv.shape[-2],
        "window_left": -1 if window is None else window - 1,
        "logits_soft_cap": inputs.get("soft_cap"),
        "sm_scale": inputs["sm_scale"],
        "q_data_type": q_THD.dtype,
        "kv_data_type": kv.dtype,
    }


def _workspace(device: torch.device) -> torch.Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _pages(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(offsets into page ids, page ids, tokens in the last page) of the rows, int32."""
    _only(inputs.get("k_scale_K") is None, "KV in float8 with a scale for each head")
    _only(inputs["block_table"].dim() == 2, "rows of several segments")
    size = inputs["k_cache"].shape[1]
    lens = inputs["seq_lens"]
    counts = (lens + size - 1) // size
    table = inputs["block_table"]
    held = torch.arange(table.shape[1], device=table.device) < counts[:, None]
    offsets = F.pad(counts.cumsum(0), (1, 0)).int()
    return offsets, table[held].int(), ((lens - 1) % size + 1).int()


def flashinfer_decode(inputs: Inputs) -> Call:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper  # type: ignore[import-not-found]

    q_RHD = inputs["q_RHD"]
    caches = (inputs["k_cache"].contiguous(), inputs["v_cache"].contiguous())
    offsets, ids, last = _pages(inputs)
    attend = BatchDecodeWithPagedKVCacheWrapper(
        _workspace(q_RHD.device), "NHD", use_tensor_cores=True
    )
    attend.plan(
        offsets,
        ids,
        last,
        head_dim=q_RHD.shape[2],
        page_size=caches[0].shape[1],
        **_options(inputs, q_RHD, caches[0]),
    )
    return lambda: attend.run(q_RHD, caches)


def flashinfer_paged(inputs: Inputs) -> Call:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    q_THD = inputs["q_THD"]
    caches = (inputs["k_cache"].contiguous(), inputs["v_cache"].contiguous())
    offsets, ids, last = _pages(inputs)
    attend = BatchPrefillWithPagedKVCacheWrapper(_workspace(q_THD.device), "NHD")
    attend.plan(
        inputs["cu_seqlens_q"],
        offsets,
        ids,
        last,
        head_dim_qk=q_THD.shape[2],
        page_size=caches[0].shape[1],
        causal=True,
        **_options(inputs, q_THD, caches[0]),
    )
    return lambda: attend.run(q_THD, caches)


def flashinfer_ragged(inputs: Inputs) -> Call:
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    q_THD = inputs["q_THD"].contiguous()
    k_TKD, v_TKD = inputs["k_TKD"].contiguous(), inputs["v_TKD"].contiguous()
    attend = BatchPrefillWithRaggedKVCacheWrapper(_workspace(q_THD.device), "NHD")
    attend.plan(
        inputs["cu_seqlens"],
        inputs["cu_seqlens"],
        head_dim_qk=q_THD.shape[2],
        causal=True,
        **_options(inputs, q_THD, k_TKD),
    )
    return lambda: attend.run(q_THD, k_TKD, v_TKD)


PEERS: Mapping[str, Mapping[str, Peer]] = {
    "paged_decode": {"torch": sdpa, "flex": flex, "flashinfer": flashinfer_decode},
    "paged_prefill": {"torch": sdpa, "flex": flex, "flashinfer": flashinfer_paged},
    "ragged_prefill": {"torch": sdpa, "flex": flex, "flashinfer": flashinfer_ragged},
}
"""Of attention, by op and provider; of other ops the only peer is plain torch."""
