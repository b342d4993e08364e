"""What stands between the QKV product and attention, in one: norms of queries and keys, rotation,
and the write of keys and values into the paged pool.

    q = rope(norm(q));  k = rope(norm(k))
    k_cache[slot] = k / k_scale;  v_cache[slot] = v / v_scale

with `norm` of ops/rms_norm.py (where weights are given), `rope` of ops/rope.py and a pool as in
ops/kv_write.py. Bytes: T K (G + 2) D elements read, T K (G + 1) D written back, 2 T K D written to
the pool, cosines, sines and slots: memory-bound; about 8 flops per element.
"""

from __future__ import annotations

import torch

from seesaw.ops.kv_write import kv_write
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
from seesaw.ops.rms_norm import rms_norm, rms_norm_reference
from seesaw.ops.rope import rope, rope_reference
from seesaw.ops.shapes import LLAMA_8B, QWEN3_600M, SMALL
from seesaw.ops.triton_backend import on_triton

# Shape letters: T tokens, K KV heads, G query heads per KV head, J = G + 2, D head_dim, F = D / 2.

E4M3_MAX = 448.0


def rope_kv_write(
    qkv_TKJD: torch.Tensor,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    *,
    q_norm_D: torch.Tensor | None = None,
    k_norm_D: torch.Tensor | None = None,
    eps: float = 0.0,
    plus_one: bool = False,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
) -> None:
    """Changes queries and keys in place and stores keys and values.

    qkv_TKJD          of each KV head its G query heads, its key, its value; any strides but the
                      last, which is 1
    cos_TF, sin_TF    angles of each token, float32 or qkv's dtype; rounded to qkv's dtype
    k_cache, v_cache  `[num_blocks, block_size, K, D]`, any strides but the last, of qkv's dtype or
                      float8_e4m3fn
    slot_mapping_T    int64, block * block_size + offset; -1 = this token is not stored. Slots of
                      one call are distinct
    q_norm_D, k_norm_D  weights of RMSNorm over the head (both or none), `eps` and `plus_one` as in
                      `rms_norm`; the normed values are rounded to qkv's dtype
    k_scale_K, v_scale_K  float32, on the device, for float8 pools alone: what is stored is the
                      value over the scale (1 where None), to the nearest, at most 448 either way

    Values in qkv stay as they are. All else in the pools stays. Raises ValueError for norms or
    scales that do not go together.
    """
    _check_pairs(q_norm_D, k_norm_D, k_cache, k_scale_K, v_scale_K)
    if on_triton(qkv_TKJD):
        from seesaw.kernels.rope_kv_write import rope_kv_write as launch

        launch(
            qkv_TKJD, cos_TF, sin_TF, k_cache, v_cache, slot_mapping_T, q_norm_D=q_norm_D,
            k_norm_D=k_norm_D, eps=eps, plus_one=plus_one, k_scale_K=k_scale_K, v_scale_K=v_scale_K,
        )  # fmt: skip
        return
    q_TKGD, k_TKD, v_TKD = qkv_TKJD[:, :, :-2], qkv_TKJD[:, :, -2], qkv_TKJD[:, :, -1]
    normed_q, normed_k = q_TKGD, k_TKD
    if q_norm_D is not None and k_norm_D is not None:
        normed_q, _ = rms_norm(q_TKGD, q_norm_D, eps, plus_one=plus_one)
        normed_k, _ = rms_norm(k_TKD, k_norm_D, eps, plus_one=plus_one)
    turned_q, turned_k = rope(normed_q, normed_k, cos_TF, sin_TF)
    q_TKGD.copy_(turned_q)
    k_TKD.copy_(turned_k)
    stored = slot_mapping_T >= 0
    if not bool(stored.all()):
        k_TKD, v_TKD, slot_mapping_T = k_TKD[stored], v_TKD[stored], slot_mapping_T[stored]
    if k_cache.dtype == torch.float8_e4m3fn:
        k_TKD, v_TKD = to_e4m3(k_TKD, k_scale_K), to_e4m3(v_TKD, v_scale_K)
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    kv_write(k_TKD, v_TKD, k_cache, v_cache, slot_mapping_T)


def to_e4m3(x_TKD: torch.Tensor, scale_K: torch.Tensor | None) -> torch.Tensor:
    """`x / scale` as float8_e4m3fn, given as uint8: to the nearest (ties to even), at most 448
    either way; NaN stays NaN."""
    wide = x_TKD.float()
    if scale_K is not None:
        wide = wide / scale_K[:, None]
    return wide.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def _check_pairs(
    q_norm_D: torch.Tensor | None,
    k_norm_D: torch.Tensor | None,
    k_cache: torch.Tensor,
    k_scale_K: torch.Tensor | None,
    v_scale_K: torch.Tensor | None,
) -> None:
    if (q_norm_D is None) != (k_norm_D is None):
        raise ValueError("rope_kv_write: weights of one norm alone, expected q's and k's, or none")
    scaled = k_scale_K is not None or v_scale_K is not None
    if scaled and k_cache.dtype != torch.float8_e4m3fn:
        raise ValueError(
            f"rope_kv_write: scales for a pool of {k_cache.dtype}; only float8_e4m3fn takes them"
        )


def rope_kv_write_reference(
    qkv_TKJD: torch.Tensor,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    *,
    q_norm_D: torch.Tensor | None = None,
    k_norm_D: torch.Tensor | None = None,
    eps: float = 0.0,
    plus_one: bool = False,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
) -> None:
    q, k, v = qkv_TKJD[:, :, :-2], qkv_TKJD[:, :, -2], qkv_TKJD[:, :, -1]
    if q_norm_D is not None and k_norm_D is not None:
        q.copy_(rms_norm_reference(q, q_norm_D, eps, plus_one=plus_one)[0])
        k.copy_(rms_norm_reference(k, k_norm_D, eps, plus_one=plus_one)[0])
    turned_q, turned_k = rope_reference(q, k, cos_TF, sin_TF)
    q.copy_(turned_q)
    k.copy_(turned_k)
    for token, slot in enumerate(slot_mapping_T.tolist()):
        if slot < 0:
            continue
        block, offset = divmod(slot, k_cache.shape[1])
        for x, cache, scale in ((k, k_cache, k_scale_K), (v, v_cache, v_scale_K)):
            if cache.dtype == torch.float8_e4m3fn:
                cache.view(torch.uint8)[block, offset] = to_e4m3(x[token : token + 1], scale)[0]
            else:
                cache[block, offset] = x[token]


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    tokens, heads, group, size = (case[n] for n in ("tokens", "kv_heads", "group", "head_dim"))
    blocks, block = case["num_blocks"], case["block_size"]
    pool = torch.randn(blocks, heads, 2, block, size, generator=generator).to(dtype)
    angles = torch.rand(tokens, size // 2, generator=generator) * 6.3
    slots = torch.randperm(blocks * block, generator=generator)[:tokens]
    slots[torch.rand(tokens, generator=generator) < 0.2] = -1
    weights = [torch.randn(size, generator=generator).to(dtype) for _ in range(2)]
    qkv = torch.randn(tokens, heads, group + 2, size, generator=generator).to(dtype)
    return {
        "qkv_TKJD": qkv,
        "cos_TF": angles.cos().to(dtype),
        "sin_TF": angles.sin().to(dtype),
        "k_cache": pool[:, :, 0].transpose(1, 2),
        "v_cache": pool[:, :, 1].transpose(1, 2),
        "slot_mapping_T": slots,
        "q_norm_D": weights[0] if case["norm"] else None,
        "k_norm_D": weights[1] if case["norm"] else None,
        "eps": 1e-2,  # large enough to matter
        "plus_one": case["plus_one"],
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    heads = case["tokens"] * case["kv_heads"]
    group, size = case["group"], case["head_dim"]
    moved = heads * size * (group + 2 + group + 1 + 2) * dtype.itemsize
    angles_and_slots = case["tokens"] * (size * dtype.itemsize + 8)
    return Cost(moved + angles_and_slots, 8 * heads * (group + 1) * size)


def _case(tokens: int, kv_heads: int, group: int, head_dim: int, block_size: int, num_blocks: int,
          norm: bool = False, plus_one: bool = False) -> Case:  # fmt: skip
    return {"tokens": tokens, "kv_heads": kv_heads, "group": group, "head_dim": head_dim,
            "block_size": block_size, "num_blocks": num_blocks, "norm": norm,
            "plus_one": plus_one}  # fmt: skip


OP = Op(
    name="rope_kv_write",
    function=rope_kv_write,
    reference=rope_kv_write_reference,
    make_inputs=_make_inputs,
    cases=(
        _case(0, 2, 2, 64, 16, 1),
        _case(1, 1, 1, 2, 1, 1),
        _case(1, 3, 3, 64, 16, 3, norm=True),
        _case(19, 2, 7, 80, 16, 3, norm=True, plus_one=True),
        _case(33, 1, 4, 128, 64, 1),
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    door=Door(rope_kv_write, lambda *_, **__: None),
    bench={
        f"{model.name}, {tokens} tokens": Bench(
            case=_case(
                tokens,
                model.kv_heads,
                model.group,
                model.head_dim,
                32,
                tokens // 16 + 2,
                norm=model is QWEN3_600M,
            )
        )
        for model in (*SMALL, LLAMA_8B)
        for tokens in (1, 64, 2048)
    },
    mutates=("qkv_TKJD", "k_cache", "v_cache"),
)
