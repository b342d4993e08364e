"""RoPE with the write of KV, and embedding, for which no public op stands, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seesaw.ops.gated_activation import Activation, gated_activation
from seesaw.ops.kv_write import kv_write_reference
from seesaw.ops.panels import pack
from seesaw.ops.registry import FLOAT_TOLERANCE
from seesaw.ops.rms_norm import rms_norm_reference
from seesaw.ops.rope import rope_reference
from tests.ops.threads import threads

DTYPES = [torch.bfloat16, torch.float32]
BLOCKS = 5


def rope_kv(
    qkv_TKJD: torch.Tensor,
    head_dim: int,
    angles: tuple[torch.Tensor, torch.Tensor],
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    plus_one: bool,
    slots_T: torch.Tensor,
    pool: torch.Tensor,
    panels: bool,
) -> None:
    """`pool` is [block][kv_head][k|v][block_size][head_dim]; all tensors are contiguous."""
    from seesaw import _cpu

    tokens, kv_heads, heads, head_step = qkv_TKJD.shape
    block_stride, head_stride, tile, token_stride, _ = pool.stride()
    _cpu.rope_kv(
        itemsize=pool.itemsize,
        tokens=tokens,
        qkv=qkv_TKJD.data_ptr(),
        ld_qkv=kv_heads * heads * head_step,
        head_step=head_step,
        group=heads - 2,
        cos=angles[0].data_ptr(),
        sin=angles[1].data_ptr(),
        q_norm=norms[0].data_ptr() if norms else 0,
        k_norm=norms[1].data_ptr() if norms else 0,
        eps=1e-6,
        plus_one=plus_one,
        slots=slots_T.data_ptr(),
        k_cache=pool.data_ptr(),
        v_cache=pool.data_ptr() + tile * pool.itemsize,
        strides=(block_stride, head_stride, token_stride),
        num_blocks=len(pool),
        block_size=pool.shape[3],
        num_heads=kv_heads,
        head_dim=head_dim,
        panels=panels,
    )


def unpacked(pool: torch.Tensor) -> torch.Tensor:
    """The tiles of a pool in panels (csrc/cpu/kv_view.h) as plain ones."""
    blocks, heads, _, block_size, size = pool.shape
    pack = 2 if pool.itemsize == 2 else 1
    k = pool[:, :, 0].reshape(blocks, heads, block_size // 32, size // pack, 32, pack)
    v = pool[:, :, 1].reshape(blocks, heads, block_size // 32, 32 // pack, size, pack)
    k = k.permute(0, 1, 2, 4, 3, 5).reshape(blocks, heads, block_size, size)
    v = v.permute(0, 1, 2, 3, 5, 4).reshape(blocks, heads, block_size, size)
    return torch.stack((k, v), dim=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "kv_heads", "group", "head_dim", "block_size", "norm", "panels"),
    [
        (0, 2, 2, 64, 32, True, True),
        (1, 1, 1, 16, 1, False, False),
        (1, 3, 3, 64, 32, False, True),
        (37, 2, 1, 80, 64, True, True),
        (37, 2, 7, 80, 48, True, False),
        (160, 3, 3, 64, 32, False, True),
        (9, 2, 4, 128, 96, True, True),
        (20, 1, 2, 256, 32, True, True),
        (20, 1, 2, 6, 32, True, True),
    ],
)
def test_rope_kv_is_norms_rope_and_kv_write(
    isa: str,
    dtype: torch.dtype,
    tokens: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    norm: bool,
    panels: bool,
) -> None:
    head_step = -(-head_dim // 32) * 32
    qkv = torch.randn(tokens, kv_heads, group + 2, head_step).to(dtype)
    angles = torch.rand(tokens, head_dim // 2) * 6.3
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    norms = (torch.randn(head_dim).to(dtype), torch.randn(head_dim).to(dtype)) if norm else None
    pool = torch.randn(BLOCKS, kv_heads, 2, block_size, head_dim).to(dtype)
    slots = torch.randperm(BLOCKS * block_size)[:tokens]
    plus_one = bool(tokens % 2)

    heads = qkv[..., :head_dim]
    q, k, v = heads[:, :, :group], heads[:, :, group], heads[:, :, -1]
    if norms:
        q, _ = rms_norm_reference(q, norms[0], 1e-6, plus_one=plus_one)
        k, _ = rms_norm_reference(k, norms[1], 1e-6, plus_one=plus_one)
    q, k = rope_reference(q, k, cos, sin)
    expected_pool = unpacked(pool) if panels else pool.clone()
    caches = expected_pool.unbind(2)
    kv_write_reference(k, v, caches[0].transpose(1, 2), caches[1].transpose(1, 2), slots)
    expected_qkv = qkv.clone()
    expected_qkv[:, :, :group, :head_dim] = q

    for num_threads in (1, 2):
        got_qkv, got_pool = qkv.clone(), pool.clone()
        with threads(num_threads):
            rope_kv(got_qkv, head_dim, (cos, sin), norms, plus_one, slots, got_pool, panels)
        got_pool = unpacked(got_pool) if panels else got_pool
        atol, rtol = FLOAT_TOLERANCE[dtype]
        torch.testing.assert_close(got_qkv, expected_qkv, atol=atol, rtol=rtol)
        torch.testing.assert_close(got_pool, expected_pool, atol=atol, rtol=rtol)
        assert torch.equal(got_pool[:, :, 1], expected_pool[:, :, 1])
        untouched = torch.ones(BLOCKS * block_size, dtype=torch.bool)
        untouched[slots] = False
        untouched = untouched.view(BLOCKS, 1, block_size).expand(-1, kv_heads, -1)
        assert torch.equal(got_pool[:, :, 0][untouched], expected_pool[:, :, 0][untouched])
        assert torch.equal(got_qkv[..., head_dim:], qkv[..., head_dim:])


def test_a_slot_outside_the_pool_is_refused() -> None:
    pytest.importorskip("seesaw._cpu")
    qkv = torch.zeros(2, 1, 3, 32)
    angle = torch.ones(2, 16)
    pool = torch.zeros(BLOCKS, 1, 2, 32, 32)
    for slot in (-1, BLOCKS * 32):
        slots = torch.tensor([3, slot])
        with pytest.raises(IndexError, match=f"slot {slot} of token 1.*less than 160"):
            rope_kv(qkv, 32, (angle, angle), None, False, slots, pool, True)
    assert not pool.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab", "size", "tokens", "first", "scale"),
    [(1, 2, 0, 0, 1.0), (70, 6, 1, 0, 1.0), (70, 576, 50, 40, 1.0), (96, 130, 33, 7, 11.5)],
)
def test_embedding_from_panels_and_rows(
    isa: str, dtype: torch.dtype, vocab: int, size: int, tokens: int, first: int, scale: float
) -> None:
    from seesaw import _cpu

    table = torch.randn(vocab, size).to(dtype)
    ids = torch.randint(vocab + 2 * first, (tokens,))
    expected = torch.zeros(tokens, size, dtype=dtype)
    for token, row in enumerate((ids - first).tolist()):
        if 0 <= row < vocab:
            expected[token] = (table[row].double() * scale).to(dtype)
    panels = pack(table)
    got = torch.full((2, tokens, size), 7.0, dtype=dtype)
    where: dict[str, Any] = {
        "ids": ids.data_ptr(),
        "tokens": tokens,
        "first": first,
        "scale": scale,
    }
    for num_threads in (1, 2):
        with threads(num_threads):
            _cpu.embed_panels(
                itemsize=dtype.itemsize,
                panels=panels.data_ptr(),
                panel_stride_bytes=panels.stride(0) * dtype.itemsize,
                num_panels=len(panels),
                columns=vocab,
                depth=size,
                out=got[0].data_ptr(),
                **where,
            )
            _cpu.embed_rows(
                itemsize=dtype.itemsize,
                table=table.data_ptr(),
                num_rows=vocab,
                size=size,
                out=got[1].data_ptr(),
                **where,
            )
        assert torch.equal(got[0], expected)
        assert torch.equal(got[1], expected)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_far_below_zero_are_closed(
    isa: str, dtype: torch.dtype, activation: Activation
) -> None:
    gate = torch.tensor([-90.0, -1e4, -1e20, -1e34, -3e38]).repeat(1, 8)
    x = torch.cat((gate, torch.ones_like(gate)), dim=1).to(dtype)
    assert gated_activation(x, activation).abs().max() < 1e-30
