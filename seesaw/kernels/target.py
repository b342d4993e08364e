"""Which GPU a tensor is on, and the GPUs that every kernel is compiled for."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from seesaw.kernels.kernel import Target
from seesaw.plan.machine_files import device_by_slug

INTERPRETER = Target(capability=80, shared_memory_bytes=166_912, num_sms=4)
"""What tensors on the CPU count as: kernels run there in Triton's interpreter alone, for tests."""

COMPILED_FOR: Mapping[int, str] = {
    80: "a100-80-sxm",
    86: "a10",
    89: "l4",
    90: "h100-sxm",
    100: "b200",
    120: "rtx5090",
}
"""Compute capability to the device (plan/machines) that stands for it in the compile check."""


@functools.cache
def compile_targets() -> Mapping[int, Target]:
    """The GPUs that every kernel is compiled for, by compute capability."""
    found = {}
    for capability, slug in COMPILED_FOR.items():
        device, _ = device_by_slug(slug)
        assert device.shared_memory_bytes is not None, slug
        assert device.num_sms is not None, slug
        assert device.compute_capability == f"{capability // 10}.{capability % 10}", slug
        found[capability] = Target(capability, device.shared_memory_bytes, device.num_sms)
    return found


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
