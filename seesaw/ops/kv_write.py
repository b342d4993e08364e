"""Writes the keys and values of a step's tokens into the paged pool.

    k_cache[slot / block_size, slot % block_size] = k;  the same for v

Bytes: 4 T Hk D elements (two read, two written) and 8 T of slots; no flops.
"""

from __future__ import annotations

from types import ModuleType

import torch

from seesaw.ops.native import native, usable
from seesaw.ops.registry import EXACT, Bench, Case, Cost, Door, Op
from seesaw.ops.shapes import SMALL

# Shape letters: T tokens, H KV heads, D head_dim; caches are [num_blocks, block_size, H, D].


def kv_write(
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> None:
    """Store row t of k and v in slot `slot_mapping_T[t]` (int64, block * block_size + offset).

    k and v `[T, H, D]` and the caches `[num_blocks, block_size, H, D]` may have any strides and
    must share a dtype. Slots of one call are distinct; all else in the caches stays as it is.
    Raises IndexError for a slot past the caches.
    """
    cpu = native()
    if cpu is not None and _fits(k_THD, v_THD, k_cache, v_cache):
        _kv_write_cpu(cpu, k_THD, v_THD, k_cache, v_cache, slot_mapping_T.long())
        return
    block_size = k_cache.shape[1]
    where = (slot_mapping_T // block_size, slot_mapping_T % block_size)
    k_cache.index_put_(where, k_THD)
    v_cache.index_put_(where, v_THD)


def _fits(*tensors: torch.Tensor) -> bool:
    """Whether the kernel takes k, v and their caches: two equal caches of contiguous heads."""
    k_cache, v_cache = tensors[2:]
    return (
        usable(*tensors)
        and all(x.stride(-1) == 1 for x in tensors)
        and k_cache.stride() == v_cache.stride()
    )


def _kv_write_cpu(
    cpu: ModuleType,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> None:
    num_blocks, block_size, num_heads, head_dim = k_cache.shape
    wanted = (len(slot_mapping_T), num_heads, head_dim)
    if not k_THD.shape == v_THD.shape == wanted or v_cache.shape != k_cache.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (k_THD, v_THD, k_cache, v_cache))
        raise ValueError(f"{wanted[0]} slots, k, v and their caches do not fit: {shapes}")
    slot_mapping_T = slot_mapping_T.contiguous()
    block_stride, token_stride, head_stride, _ = k_cache.stride()
    cpu.kv_write(
        itemsize=k_THD.itemsize,
        tokens=len(k_THD),
        k=k_THD.data_ptr(),
        k_token_stride=k_THD.stride(0),
        k_head_stride=k_THD.stride(1),
        v=v_THD.data_ptr(),
        v_token_stride=v_THD.stride(0),
        v_head_stride=v_THD.stride(1),
        slots=slot_mapping_T.data_ptr(),
        k_cache=k_cache.data_ptr(),
        v_cache=v_cache.data_ptr(),
        strides=(block_stride, head_stride, token_stride),
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=num_heads,
        head_dim=head_dim,
        panels=False,
    )


def kv_write_reference(
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> None:
    for token, slot in enumerate(slot_mapping_T.tolist()):
        block, offset = divmod(slot, k_cache.shape[1])
        k_cache[block, offset] = k_THD[token]
        v_cache[block, offset] = v_THD[token]


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    tokens, heads, size, block = (case[n] for n in ("tokens", "kv_heads", "head_dim", "block_size"))
    blocks = case["num_blocks"]
    pool = torch.randn(blocks, heads, 2, block, size, generator=generator).to(dtype)
    kv = torch.randn(tokens, heads, 2, size, generator=generator).to(dtype)
    return {
        "k_THD": kv[:, :, 0],
        "v_THD": kv[:, :, 1],
        "k_cache": pool[:, :, 0].transpose(1, 2),
        "v_cache": pool[:, :, 1].transpose(1, 2),
        "slot_mapping_T": torch.randperm(blocks * block, generator=generator)[:tokens],
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["tokens"] * case["kv_heads"] * case["head_dim"]
    return Cost(4 * elements * dtype.itemsize + 8 * case["tokens"], 0)


OP = Op(
    name="kv_write",
    function=kv_write,
    reference=kv_write_reference,
    make_inputs=_make_inputs,
    cases=(
        {"tokens": 0, "kv_heads": 2, "head_dim": 64, "block_size": 16, "num_blocks": 3},
        {"tokens": 1, "kv_heads": 1, "head_dim": 80, "block_size": 1, "num_blocks": 1},
        {"tokens": 48, "kv_heads": 3, "head_dim": 64, "block_size": 16, "num_blocks": 3},
        {"tokens": 70, "kv_heads": 2, "head_dim": 96, "block_size": 32, "num_blocks": 9},
    ),
    tolerance=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), EXACT),
    cost=_cost,
    bench={
        f"{model.name}, {tokens} tokens": Bench(
            case={
                "tokens": tokens,
                "kv_heads": model.kv_heads,
                "head_dim": model.head_dim,
                # slots in no order in a pool of twice the size
                "block_size": 32,
                "num_blocks": tokens // 16 + 2,
            },
            devices=("cpu",),
        )
        for model in SMALL
        for tokens in (1, 64, 2048)
    },
    door=Door(kv_write, lambda *_: None),
    mutates=("k_cache", "v_cache"),
)
