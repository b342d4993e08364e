"""What the op's cases do not reach: every value that is cast, every bit that is not, and what is
refused before a launch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seesaw.errors import UnsupportedError
from seesaw.kernels.kv_gather import kv_gather
from seesaw.kernels.kv_scatter import kv_scatter

FP8 = torch.float8_e4m3fn
SHAPE = (1, 1, 1, 2, 64, 512)  # 65536 numbers


def ids(device: str) -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


def bits(x: torch.Tensor) -> torch.Tensor:
    """As integers, all NaN alike, as their bits are not said."""
    return x.view(torch.uint8 if x.itemsize == 1 else torch.int16).int().masked_fill(x.isnan(), -1)


@pytest.mark.parametrize("scale", [None, 0.75])
def test_every_float16_is_cast_to_the_nearest_float8(device: str, scale: float | None) -> None:
    """Ties, subnormals, what is out of range, infinities and NaN among them."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    pool, tier = every.view(SHAPE).to(device), torch.zeros(SHAPE, dtype=FP8, device=device)
    scales = None if scale is None else torch.tensor([scale], device=device)
    kv_gather(pool, tier, ids(device), ids(device), scales)
    expected = (every.float() / (scale or 1.0)).clamp(-448, 448).to(FP8)
    assert torch.equal(bits(tier.cpu().flatten()), bits(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_float8_comes_back_exactly(device: str, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(FP8)
    tier = every.view(1, 1, 1, 2, 2, 64).to(device)
    pool = torch.zeros(tier.shape, dtype=dtype, device=device)
    kv_scatter(pool, tier, ids(device), ids(device), None)
    assert torch.equal(pool.cpu().flatten().nan_to_num(7e4), every.to(dtype).nan_to_num(7e4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, FP8])
def test_no_bit_changes_where_nothing_is_cast(device: str, dtype: torch.dtype) -> None:
    """NaN of all kinds included."""
    raw = torch.randint(0, 256, (2 * 2 * 3 * 2 * 4 * 24 * dtype.itemsize,), dtype=torch.uint8)
    pool = raw.view(dtype).view(2, 2, 3, 2, 4, 24).to(device)
    tier = torch.zeros(2, 3, 2, 2, 4, 24, dtype=dtype, device=device)
    back = torch.zeros_like(pool)
    both = torch.arange(2, dtype=torch.int32, device=device)
    kv_gather(pool, tier, both, both.flip(0))
    kv_scatter(back, tier, both, both.flip(0))
    assert torch.equal(back.cpu().view(torch.uint8).flatten(), raw)
    expected = pool.permute(1, 2, 0, 3, 4, 5).flip(0).contiguous()
    assert torch.equal(tier.cpu().view(torch.uint8), expected.cpu().view(torch.uint8))


def good(device: str) -> dict[str, Any]:
    return {
        "pool_LBK2SD": torch.zeros(2, 5, 3, 2, 4, 8, dtype=torch.float16, device=device),
        "tier_TKL2PD": torch.zeros(6, 3, 2, 2, 8, 8, dtype=torch.float16, device=device),
        "blocks_N": torch.arange(4, dtype=torch.int32, device=device),
        "slots_N": torch.arange(4, dtype=torch.int32, device=device),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool_LBK2SD": lambda x: x.double()}, "dtype of pool: got float64, supported"),
        ({"tier_TKL2PD": lambda x: x.float()}, "dtype of tier beside a pool of float16"),
        ({"pool_LBK2SD": lambda x: x.to(FP8)}, "dtype of tier beside a pool of float8"),
        ({"tier_TKL2PD": lambda x: x[:, :2]}, r"shape of tier: got \[6, 2, 2, 2, 8, 8\]"),
        ({"tier_TKL2PD": lambda x: x[:, :, :, :, :6]}, "tokens of a tier block: got 6"),
        ({"tier_TKL2PD": lambda x: x[..., :4], "pool_LBK2SD": lambda x: x[..., :4].clone()},
         r"strides of tier: got .*supported: \(\.\.\., 4, 1\)"),
        ({"pool_LBK2SD": lambda x: x[0]}, "dims of pool and tier"),
        ({"blocks_N": lambda x: x.long()}, "dtype of blocks: got int64"),
        ({"slots_N": lambda x: x[:3]}, r"shape of slots: got \[3\], supported: \[4\]"),
        ({"tier_TKL2PD": lambda x: x.to("meta")}, "device of tier: got meta"),
        ({"scale_K": lambda _: torch.ones(3)}, "scale: got one, supported: none where nothing"),
        ({"scale_K": lambda _: torch.ones(2), "tier_TKL2PD": lambda x: x.to(FP8)},
         r"shape of scale: got \[2\], supported: \[3\]"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(
    change: dict[str, Any], message: str, device: str
) -> None:
    inputs = good(device)
    kv_gather(**inputs)
    kv_scatter(**inputs)
    for name, changed in change.items():
        value = changed(inputs.get(name))
        inputs[name] = value if value.is_meta else value.to(device)
    for launch in (kv_gather, kv_scatter):
        with pytest.raises(UnsupportedError, match=f"{launch.__name__}: {message}"):
            launch(**inputs)
