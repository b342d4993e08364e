"""What a launcher refuses before anything is launched: a message that names the op, what was got
and what is supported.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from seesaw.errors import UnsupportedError
from seesaw.kernels.target import target_of

LEAST_CAPABILITY = 80
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def expect(op: str, what: str, got: object, supported: object, ok: bool) -> None:
    """Raises UnsupportedError unless `ok`."""
    if not ok:
        raise UnsupportedError(f"{op}: {what}: got {got}, supported: {supported}")


def expect_one_of(op: str, what: str, got: object, supported: Iterable[object]) -> None:
    known = tuple(supported)
    if got not in known:
        expect(op, what, _name(got), ", ".join(map(_name, known)), False)


def expect_tensors(op: str, dtypes: Iterable[torch.dtype], **tensors: torch.Tensor) -> None:
    """All on one device that kernels run on (a GPU of sm_80 or newer, or the CPU in Triton's
    interpreter), of one dtype out of `dtypes`."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        expect_one_of(op, f"dtype of {name}", tensor.dtype, dtypes)
        expect(op, f"dtype of {name}", tensor.dtype, first.dtype, tensor.dtype == first.dtype)
        expect(op, f"device of {name}", tensor.device, first.device, tensor.device == first.device)
    expect_device(op, first.device)


def expect_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Of one of `dtypes`, of `shape`, on `device`, the elements of its last dim side by side."""
    side_by_side = tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.numel() <= 1
    side_by_side = side_by_side or tensor.shape[-1] == 1
    if (
        side_by_side
        and tensor.dtype in dtypes
        and tensor.shape == shape
        and tensor.device == device
    ):
        return  # launches pass here: no messages are made
    expect_one_of(op, f"dtype of {name}", tensor.dtype, dtypes)
    expect(op, f"shape of {name}", list(tensor.shape), list(shape), tensor.shape == shape)
    expect(op, f"device of {name}", tensor.device, device, tensor.device == device)
    expect(op, f"strides of {name}", tensor.stride(), "1 for the last dim", side_by_side)


def expect_device(op: str, device: torch.device) -> None:
    """One that kernels run on; of several GPUs the current one, on whose stream Triton launches."""
    if device.type == "cuda":
        capability = target_of(device).capability
        supported = f"sm_{LEAST_CAPABILITY} or newer"
        expect(op, "GPU", f"sm_{capability}", supported, capability >= LEAST_CAPABILITY)
        current = torch.cuda.current_device()
        if device.index not in (None, current):
            supported = f"that of the tensors: with torch.cuda.device({device.index})"
            expect(op, "current device", f"cuda:{current}", supported, False)
        return
    from triton import knobs

    expect(
        op, "device", device, "cuda, or cpu with TRITON_INTERPRET=1 set before Triton is imported",
        device.type == "cpu" and bool(knobs.runtime.interpret),
    )  # fmt: skip


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")
