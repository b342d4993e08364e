"""Who gets how much of a device's memory, decided before a weight is read.

The budget is split exactly: weights, work space of the largest step, and what is left for KV
blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from seesaw.config import EngineConfig, format_bytes, parse_bytes
from seesaw.engine.host import host_memory
from seesaw.engine.prompts import longest_wanted
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec

DEFAULT_CUDA_UTILIZATION = 0.9
DEFAULT_CPU_SHARE_OF_FREE = 0.5


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """All sizes in bytes; `reason` says where the budget comes from."""

    budget_bytes: int
    reason: str
    weight_bytes: int
    work_bytes: int
    block_bytes: int
    num_blocks: int
    block_size: int
    max_model_len: int
    model_len_reason: str

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    def describe(self) -> str:
        return (
            f"memory budget {format_bytes(self.budget_bytes)} ({self.reason}): "
            f"weights {format_bytes(self.weight_bytes)}, "
            f"work space {format_bytes(self.work_bytes)}, KV {format_bytes(self.kv_bytes)} = "
            f"{self.num_blocks * self.block_size} tokens in {self.num_blocks} blocks; "
            f"longest prompt + answer {self.max_model_len} tokens ({self.model_len_reason})"
        )


def plan_memory(
    config: EngineConfig,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    work_bytes: Callable[[int, int], int],
) -> MemoryPlan:
    """Split the budget. `work_bytes(num_tokens, max_model_len)` bounds a step's temporary tensors.

    Raises ConfigError, with the bytes of each part, where the budget cannot hold the model and one
    request of the longest length.
    """
    budget, reason = _budget(config, device)
    weight_bytes = spec.num_parameters * dtype.itemsize
    block_bytes = spec.kv_bytes_per_token(dtype.itemsize) * config.block_size
    wanted = longest_wanted(config, spec)
    step_work = work_bytes(config.max_num_batched_tokens, wanted)
    room = (budget - weight_bytes - step_work) // block_bytes
    per_request = -(-wanted // config.block_size)
    if room < (per_request if config.max_model_len else 2):
        need = weight_bytes + step_work + per_request * block_bytes
        raise ConfigError(
            f"the memory budget of {format_bytes(budget)} ({reason}) is too small: weights "
            f"{format_bytes(weight_bytes)}, work space {format_bytes(step_work)}, KV of one "
            f"request of {wanted} tokens {format_bytes(per_request * block_bytes)}, together "
            f"{format_bytes(need)}. Raise device_memory, or lower max_model_len or "
            "max_num_batched_tokens."
        )
    num_blocks = min(room, config.max_num_seqs * per_request)
    fits = num_blocks * config.block_size
    if config.max_model_len:
        why = "as asked for"
    else:
        why = "the model's limit" if fits >= wanted else "as much as the KV memory holds"
    return MemoryPlan(
        budget_bytes=budget,
        reason=reason,
        weight_bytes=weight_bytes,
        work_bytes=step_work,
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_model_len=min(wanted, fits),
        model_len_reason=why,
    )


def _budget(config: EngineConfig, device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        where = "of the GPU's memory"
    else:
        free, total = host_memory()
        where = "of the machine's memory"
    if config.device_memory is not None:
        budget, reason = parse_bytes(config.device_memory, "device_memory"), "device_memory"
    elif config.gpu_memory_utilization is not None:
        budget = int(total * config.gpu_memory_utilization)
        reason = f"{config.gpu_memory_utilization:g} {where}"
    elif device.type == "cuda":
        budget = int(total * DEFAULT_CUDA_UTILIZATION)
        reason = f"{DEFAULT_CUDA_UTILIZATION:g} {where}"
    else:
        return int(free * DEFAULT_CPU_SHARE_OF_FREE), "half of the free memory"
    if budget > free:
        raise ConfigError(
            f"{reason} is {format_bytes(budget)}, but only {format_bytes(free)} of "
            f"{format_bytes(total)} are free. Lower it or free memory first."
        )
    return budget, reason
