"""float8_e4m3fn decoded from its bits, against torch, over all codes."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from seesaw.kernels.fp8 import readable, widen


@triton.jit
def _widen_kernel(bits_ptr, out_ptr):
    code = tl.arange(0, 256)
    tl.store(out_ptr + code, widen(tl.load(bits_ptr + code), out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_all_codes_decode_to_the_bit(dtype: torch.dtype, device: str) -> None:
    bits = torch.arange(256, dtype=torch.uint8, device=device)
    values = bits.view(torch.float8_e4m3fn).to(dtype)
    got = torch.empty(256, dtype=dtype, device=device)
    _widen_kernel[(1,)](bits, got)
    assert values.isnan().sum() == 2
    torch.testing.assert_close(got, values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.signbit()[~got.isnan()], values.signbit()[~values.isnan()])
    other = torch.empty_like(got)
    _widen_kernel[(1,)](readable(bits.view(torch.float8_e4m3fn)), other)
    torch.testing.assert_close(other, got, rtol=0, atol=0, equal_nan=True)


def test_pools_of_other_types_are_read_as_they_are(device: str) -> None:
    pool = torch.zeros(2, 4, 3, 8, dtype=torch.float16, device=device).transpose(1, 2)
    assert readable(pool) is pool
    bits = readable(pool.to(torch.float8_e4m3fn))
    assert bits.stride() == pool.to(torch.float8_e4m3fn).stride()
