"""float8_e4m3fn inside kernels. From sm_89 on Triton converts it; below, and in the interpreter,
pools are read as uint8 and the bits decoded here, to the same values.

The format (Micikevicius et al. 2022, FP8 Formats for Deep Learning, table 1): sign, 4 exponent bits
of bias 7, 3 mantissa bits; no infinity, NaN is all ones below the sign.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.target import target_of


@triton.jit
def decode_e4m3(bits, dtype: tl.constexpr):
    """The values, in `dtype` (float16, bfloat16 or float32, all of which hold them exactly), of
    float8_e4m3fn given as uint8."""
    wide = bits.to(tl.uint16)
    # in the place of float16's exponent and mantissa, whose bias is 8 more; subnormals come out too
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = half.to(tl.float16, bitcast=True) * 256.0
    value = tl.where((wide & 0x7F) == 0x7F, float("nan"), value)
    return value.to(dtype)


@triton.jit
def widen(x, dtype: tl.constexpr):
    """`x` in `dtype`; uint8 stands for the bits of float8_e4m3fn."""
    if x.dtype == tl.uint8:
        return decode_e4m3(x, dtype)
    else:
        return x.to(dtype)


def readable(pool: torch.Tensor) -> torch.Tensor:
    """`pool` as kernels read it where it lies: a view as uint8 where they must decode it."""
    if pool.dtype != torch.float8_e4m3fn or target_of(pool.device).has_fp8:
        return pool
    return pool.view(torch.uint8)


@triton.jit
def encode_e4m3(x):
    """Bits, as uint8, of the float8_e4m3fn next to each float32 of `x`, ties to even; what is out
    of its range becomes the largest, NaN stays NaN. The same bits on every GPU."""
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # 20 of 23 mantissa bits go; the carry of rounding runs on into the exponent, as it should
    normal = (size + 0x7FFFF + ((size >> 20) & 1)) >> 20
    normal = tl.minimum(normal, 0x43E) - 0x3C0  # 2**-6 is 0x08, 448 is 0x7E
    # below 2**-6 steps are 2**-9 wide, which is what 2**14 leaves of a float32 added to it
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, small, normal)
    code = tl.where(size > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
