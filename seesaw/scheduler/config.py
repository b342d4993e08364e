"""The budgets that every step keeps. Set once by the engine; knows no requests."""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.scheduler.output import Phase


@dataclass(frozen=True, kw_only=True)
class TierConfig:
    """Two phases with a host tier between them.

    `prefill_blocks` device blocks in the prefill pool; `tier_blocks` blocks of `tier_block_size`
    tokens in the host tier, a multiple of the device block; pipeline stages of either layout.
    `relays`: prompts for which the decode pool has room go there from rank to rank.
    """

    prefill_blocks: int
    tier_blocks: int
    tier_block_size: int
    prefill_stages: int = 1
    decode_stages: int = 1
    relays: bool = False
    rotation_tokens: int = 0
    """Positions of running requests that a step may load from the tier beside its rows, so that
    more requests run than the decode pool holds (`policies/rotation.py`); 0 = none."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Budgets that every step keeps. Tokens and blocks are counts.

    With a tier, `num_blocks` is the decode pool and `num_stages` is unused; without one there is
    one layout of `num_stages` pipeline stages, and each step is of phase "decode".
    """

    num_blocks: int
    block_size: int
    num_layers: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_steps_in_flight: int = 2
    """In a layout with one stage; several stages have one more step in flight than stages."""
    enable_prefix_caching: bool = True
    debug: bool = False
    """Check the block accounting after every step and list freed blocks for poisoning."""
    num_stages: int = 1
    tier: TierConfig | None = None
    num_lanes: int = 1
    """Streams of steps that run beside each other on a device, each with `max_steps_in_flight`."""
    share_units: int = 1
    """Equal parts of the device's compute units, of which lanes have whole numbers."""

    def __post_init__(self) -> None:
        tier = self.tier
        assert tier is None or tier.tier_block_size % self.block_size == 0, (
            f"tier blocks of {tier} must be whole device blocks of {self.block_size} tokens"
        )
        assert self.num_lanes == 1 or (tier is None and self.num_stages == 1), (
            "lanes share one device, with one layout"
        )

    def stages(self, phase: Phase) -> int:
        """Pipeline stages of the phase's layout."""
        if self.tier is None:
            return self.num_stages
        return self.tier.prefill_stages if phase == "prefill" else self.tier.decode_stages

    def most_in_flight(self, phase: Phase) -> int:
        """Steps of the phase that may be in flight at once."""
        stages = self.stages(phase)
        return stages + 1 if stages > 1 else self.max_steps_in_flight
