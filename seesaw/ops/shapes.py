"""Sizes of real models, from their config.json: the shapes at which ops are timed."""

from __future__ import annotations

from typing import NamedTuple


class Shapes(NamedTuple):
    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    activation: str = "silu"

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


SMOLLM2_135M = Shapes("SmolLM2-135M", 576, 1536, 9, 3, 64, 49152)
LLAMA_1B = Shapes("Llama-3.2-1B", 2048, 8192, 32, 8, 64, 128256)
QWEN3_600M = Shapes("Qwen3-0.6B", 1024, 3072, 16, 8, 128, 151936)
GEMMA3_270M = Shapes("Gemma-3-270M", 640, 2048, 4, 1, 256, 262144, "gelu_pytorch_tanh")
SMALL = (SMOLLM2_135M, LLAMA_1B, QWEN3_600M, GEMMA3_270M)
"""Of those that run on CPUs, too."""
LLAMA_8B = Shapes("Llama-3.1-8B", 4096, 14336, 32, 8, 128, 128256)
