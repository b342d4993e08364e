"""What is known of a Triton kernel besides its code: the specialisations that launches make, and
which configurations it may run with.

The compile check, the tuner and the tables walk these, so a kernel that lists itself in the
`KERNELS` of its file gets all of them. This file knows no particular kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Key = Mapping[str, "int | str"]
"""What a configuration is chosen by, for example {"dtype": "bfloat16", "head_dim": 128}: names of
sizes that change which blocks are fast, not of those that only change how many there are."""


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU as far as kernels depend on it. `capability`: 90 for sm_90."""

    capability: int
    shared_memory_bytes: int
    num_sms: int

    @property
    def has_fp8(self) -> bool:
        """Whether Triton converts float8_e4m3fn here; below, kernels decode its bits."""
        return self.capability >= 89

    @property
    def has_tma(self) -> bool:
        """Whether tensor descriptors run on the copy engine."""
        return self.capability >= 90


@dataclass(frozen=True, slots=True)
class Config:
    """`blocks`: constexpr arguments of the kernel by name."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2

    def arguments(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {**self.blocks, **self.options()}

    def options(self) -> dict[str, int]:
        """What the compiler is told. Products and sums are always fused: without a word on it,
        Triton 3.9 warns that later versions will not."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    def __str__(self) -> str:
        blocks = [f"{name}={value}" for name, value in self.blocks.items()]
        return ",".join([*blocks, f"warps={self.num_warps}", f"stages={self.num_stages}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One specialisation as launches make it, for the compile check.

    signature   types of the arguments that are not constexpr, in Triton's words: "*bf16", "i64",
                "fp32"; without those that `constants` names
    descriptors types that replace those of `signature` where a configuration has USE_TMA, with its
                blocks in braces: "tensordesc<bf16[{BLOCK_N},128]>"
    constants   constexpr arguments that are no part of a `Config`; None for an absent pointer
    aligned     arguments that Triton finds divisible by 16: pointers of tensors, most strides
    least       lowest compute capability it is for
    """

    key: Key
    signature: Mapping[str, str]
    descriptors: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    least: int = 80

    def types(self, config: Config) -> dict[str, str]:
        """Of the arguments that are not constexpr, as a launch with `config` passes them."""
        if not config.blocks.get("USE_TMA"):
            return dict(self.signature)
        tiles = {name: text.format(**config.blocks) for name, text in self.descriptors.items()}
        return {**self.signature, **tiles}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One `@triton.jit` function and what it is built and run with.

    name         `<op>` or `<op>.<part>` where an op has several
    function     the decorated function
    builds       representative specialisations, each compiled for every target from `Build.least`
    default      the configuration where none is tuned; must fit the target's shared memory
    candidates   what the tuner tries; None where there is nothing to tune
    max_spills   bytes of spilled registers that the compile check lets pass, with the reason in a
                 comment where it is not 0
    """

    name: str
    function: Any
    builds: tuple[Build, ...]
    default: Callable[[Key, Target], Config]
    candidates: Callable[[Key, Target], tuple[Config, ...]] | None = None
    max_spills: int = 0

    @property
    def op(self) -> str:
        return self.name.partition(".")[0]
