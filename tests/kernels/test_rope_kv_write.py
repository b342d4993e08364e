"""The launch between QKV product and attention beyond the op's cases: float8 pools, rows at any
distance, angles of another dtype, what must stay as it is, refusals."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from seesaw.errors import UnsupportedError
from seesaw.kernels.rope_kv_write import rope_kv_write
from seesaw.ops.rope_kv_write import OP, rope_kv_write_reference, to_e4m3

FP8 = torch.float8_e4m3fn


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.randrange(2**31)
    print(f"seed={seed}")  # shown by pytest where a test fails
    return torch.Generator().manual_seed(seed)


def inputs(generator: torch.Generator, dtype: torch.dtype, **sizes: Any) -> dict[str, Any]:
    case = {"tokens": 7, "kv_heads": 2, "group": 3, "head_dim": 32, "block_size": 16,
            "num_blocks": 2, "norm": False, "plus_one": False, **sizes}  # fmt: skip
    made = OP.make_inputs(generator, case, dtype)
    made["slot_mapping_T"][0] = 5
    made["slot_mapping_T"][1:3] = torch.tensor([-1, 31])
    made["slot_mapping_T"][3:] = torch.tensor([0, 16, -1, 17])
    return made


def launch(given: dict[str, Any], device: str) -> dict[str, Any]:
    """The tensors after a launch on copies of `given`, on the CPU."""
    there = {
        name: x.to(device, copy=True) if isinstance(x, torch.Tensor) else x
        for name, x in given.items()
    }
    rope_kv_write(**there)
    return {name: x.cpu() if isinstance(x, torch.Tensor) else x for name, x in there.items()}


def float8_inputs(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
    given = inputs(generator, dtype)
    given["k_scale_K"], given["v_scale_K"] = torch.tensor([0.25, 0.01]), torch.tensor([3.0, 0.007])
    for cache in ("k_cache", "v_cache"):
        given[cache] = torch.full(given[cache].shape, 0x55, dtype=torch.uint8).view(FP8)
    return given


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_float8_pools(dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    """Values bit for bit; keys, which are rotated first, to the step of their size."""
    given = float8_inputs(generator, dtype)
    values = given["qkv_TKJD"][:, :, -1]
    values[0, 1, :6] = torch.tensor([1e4, -1e4, float("inf"), float("nan"), 1e-5, 0.0]).to(dtype)
    got = launch(given, device)
    rope_kv_write_reference(**given)
    stored = got["v_cache"].view(torch.uint8), given["v_cache"].view(torch.uint8)
    assert torch.equal(*stored)
    assert stored[0][0, 5, 1, :4].tolist() == [0x7E, 0xFE, 0x7E, 0x7F]
    one, other = (x["k_cache"].float() for x in (got, given))
    torch.testing.assert_close(one, other, rtol=0.13, atol=2**-9)
    assert (one != other).float().mean() < 0.05


def test_float8_without_scales(generator: torch.Generator, device: str) -> None:
    given = float8_inputs(generator, torch.float32) | {"k_scale_K": None}
    got = launch(given, device)
    keys = got["qkv_TKJD"][:, :, -2]
    assert torch.equal(got["k_cache"].view(torch.uint8)[0, 5], to_e4m3(keys[:1], None)[0])


def test_what_is_not_named_stays(generator: torch.Generator, device: str) -> None:
    """The pool stands between two others, which tokens without a slot must not reach either."""
    given = inputs(generator, torch.float32)
    slots = given["slot_mapping_T"].tolist()
    pools = torch.randn(4, 2, 2, 16, 32, generator=generator)
    before = pools.clone()
    there = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    qkv = there["qkv_TKJD"].cpu().clone()
    pools = pools.to(device)
    for part, name in enumerate(("k_cache", "v_cache")):
        there[name] = pools[1:3, :, part].transpose(1, 2)
    rope_kv_write(**there)
    pools = pools.cpu()
    assert torch.equal(pools[0], before[0])
    assert torch.equal(pools[3], before[3])
    for part in range(2):
        for slot in range(32):
            place = (1 + slot // 16, slice(None), part, slot % 16)
            same = torch.equal(pools[place], before[place])
            assert same == (slot not in slots), f"part {part}, slot {slot}"
    after = there["qkv_TKJD"].cpu()
    assert torch.equal(after[:, :, -1], qkv[:, :, -1])
    assert not torch.equal(after[1, :, :-1], qkv[1, :, :-1])


@pytest.mark.parametrize("norm", [False, True])
def test_rows_at_any_distance(norm: bool, generator: torch.Generator, device: str) -> None:
    """Also angles at any distance, in float32 beside float16, and caches unlike each other."""
    given = inputs(generator, torch.float16, norm=norm, head_dim=48)
    tokens, heads, joined, size = given["qkv_TKJD"].shape
    wide = torch.zeros(tokens + 1, heads, joined + 2, size + 16, dtype=torch.float16)
    plain = {**given, "qkv_TKJD": given["qkv_TKJD"].clone()}
    given["qkv_TKJD"] = wide[1:, :, 1:-1, 16:].copy_(given["qkv_TKJD"])
    for name in ("cos_TF", "sin_TF"):
        # what rounds to the angles of `plain`
        given[name] = torch.cat([plain[name].float() * (1 + 1e-5), torch.ones(tokens, 3)], 1)
        given[name] = given[name][:, : size // 2]
    given["v_cache"] = given["v_cache"].contiguous()
    there = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    if device != "cpu":
        there["qkv_TKJD"] = wide.to(device)[1:, :, 1:-1, 16:]
    rope_kv_write(**there)
    got = launch(plain, device)
    for name in ("qkv_TKJD", "k_cache", "v_cache"):
        assert torch.equal(there[name].cpu(), got[name]), name


def test_refusals(generator: torch.Generator, device: str) -> None:
    given = {
        name: x.to(device) if isinstance(x, torch.Tensor) else x
        for name, x in inputs(generator, torch.float32).items()
    }
    scale = torch.ones(2, device=device)

    def refused(match: str, **changed: Any) -> None:
        with pytest.raises(UnsupportedError, match=match):
            rope_kv_write(**{**given, **changed})

    refused("dtype of k_cache: got float64", k_cache=given["k_cache"].double())
    refused("dtype of slot_mapping: got int32", slot_mapping_T=given["slot_mapping_T"].int())
    refused("shape of cos", cos_TF=given["cos_TF"][:, :-1])
    refused("shapes of the caches", v_cache=given["v_cache"][:, :, :1])
    refused("norms: got one of two", q_norm_D=torch.ones(32, device=device))
    refused("shape of k_scale", k_scale_K=scale[:1], k_cache=given["k_cache"].to(FP8),
            v_cache=given["v_cache"].to(FP8))  # fmt: skip
    refused("head_dim: got 31", qkv_TKJD=given["qkv_TKJD"][..., :31])
