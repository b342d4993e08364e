"""Logits and their columns as one integer each, which sorts as (higher logit, lower column).

The highest of such integers is the highest logit with ties broken, whatever the order in which
they are compared; no two of a row are equal.
"""

from __future__ import annotations

import triton
import triton.language as tl

NONE = tl.constexpr(-(2**63))
"""Below every logit, -inf too."""


@triton.jit
def order_key(x, column):
    """int64 of float32 `x` (no NaN; both zeros are equal) and `column` (int32, 0 .. 2^31 - 2)."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - column).to(tl.int64)


@triton.jit
def key_logit(key):
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def key_column(key):
    """int64."""
    return 0x7FFFFFFF - (key & 0xFFFFFFFF)
