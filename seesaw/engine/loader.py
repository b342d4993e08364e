"""From a checkpoint to an executor that can run steps: device, dtype, memory plan, weights, KV
pool."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from seesaw.config import EngineConfig, format_bytes
from seesaw.engine.executor import Executor, InProcessExecutor
from seesaw.engine.memory import MemoryPlan, plan_memory
from seesaw.engine.worker import Worker
from seesaw.errors import ConfigError
from seesaw.kvcache.pool import KVCache
from seesaw.log import get_logger
from seesaw.models.decoder import Decoder
from seesaw.models.workspace import workspace_bytes
from seesaw.weights.checkpoint import Checkpoint

logger = get_logger(__name__)


def load_executor(
    config: EngineConfig,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Executor, MemoryPlan]:
    """Plan memory, then load. Raises ConfigError before any weight is read."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, checkpoint.spec.torch_dtype, device)
    spec = checkpoint.spec
    plan = plan_memory(
        config,
        spec,
        dtype,
        device,
        lambda num_tokens, max_model_len: workspace_bytes(
            spec,
            num_tokens=num_tokens,
            num_sampled=config.max_num_seqs,
            max_model_len=max_model_len,
            block_size=config.block_size,
            dtype=dtype,
            device=device,
        ),
    )
    logger.info("%s on %s in %s", checkpoint.name, device, str(dtype).removeprefix("torch."))
    logger.info("%s", plan.describe())
    start = time.perf_counter()
    params = checkpoint.load_params(dtype, device, progress)
    logger.info(
        "weights read: %s in %.1f s",
        format_bytes(plan.weight_bytes),
        time.perf_counter() - start,
    )
    decoder = Decoder(spec, params)
    kv = KVCache.allocate(
        spec.num_hidden_layers,
        plan.num_blocks,
        spec.num_key_value_heads,
        config.block_size,
        spec.head_dim,
        dtype,
        device,
    )
    return InProcessExecutor(Worker(decoder, kv, device)), plan


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device='cuda': torch sees no CUDA device. Use device='cpu', or check the driver and "
            "that torch was installed with CUDA (seesaw collect-env shows both)."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def pick_dtype(name: str, checkpoint_dtype: str, device: torch.device) -> torch.dtype:
    """`auto`: the checkpoint's, but bfloat16 for float32 ones, as nothing is gained by more."""
    if name == "auto":
        name = "bfloat16" if checkpoint_dtype == "float32" else checkpoint_dtype
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            f"dtype=bfloat16: {torch.cuda.get_device_name(device)} does not support it. "
            "Use dtype='float16'."
        )
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype), name
    return dtype
