"""Which GPU a tensor is on, and the GPUs that every kernel is compiled for."""

from __future__ import annotations

import functools

import torch

from seesaw.kernels.kernel import Target

INTERPRETER = Target(capability=80, shared_memory_bytes=166_912, num_sms=4)
"""What tensors on the CPU count as: kernels run there in Triton's interpreter alone, for tests."""


def target_of(device: torch.device) -> Target:
    """The target of a CUDA device, or of the interpreter for the CPU."""
    if device.type != "cuda":
        return INTERPRETER
    return _cuda_target(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _cuda_target(index: int) -> Target:
    found = torch.cuda.get_device_properties(index)
    return Target(
        capability=10 * found.major + found.minor,
        shared_memory_bytes=int(found.shared_memory_per_block_optin),  # type: ignore[attr-defined]
        num_sms=found.multi_processor_count,
    )
