"""Every op's Triton kernel against the op's reference, in Triton's interpreter or on the GPU under
test, over the op's cases.

The interpreter computes with numpy, which has no bfloat16: `tl.dot` of it is wrong there.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from seesaw.kernels.registry import launcher
from seesaw.ops import OPS
from tests.ops.test_registry import check_call

INTERPRETED = (torch.float32, torch.float16)


def cases() -> list[Any]:
    on_gpu = os.environ.get("TRITON_INTERPRET") != "1"
    return [
        pytest.param(op.name, index, dtype, id=f"{op.name}-{index}-{str(dtype)[6:]}")
        for op in OPS.values()
        if launcher(op.name) is not None
        for index in range(len(op.cases))
        for dtype in op.tolerance
        if dtype in INTERPRETED or on_gpu
    ]


@pytest.mark.parametrize(("name", "index", "dtype"), cases())
def test_kernel_equals_reference(name: str, index: int, dtype: torch.dtype, device: str) -> None:
    launch = launcher(name)
    assert launch is not None
    check_call(launch, name, index, dtype, device)
