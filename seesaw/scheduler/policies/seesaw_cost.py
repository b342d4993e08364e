"""Seesaw's schedule with decode -> prefill decided by measured costs; the rest is `seesaw`.

Once the tier is drained the decode batch only shrinks. Going back at once keeps it large; going
back later lets more requests move on before the tier is full again, so that fewer changes of layout
are paid for. TD-Pipe's intensities weigh the two: decode goes on while its rows per second, as a
fraction of the best measured, are no worse than the fraction of the next prefill phase that would
be spent prefilling. And where two changes of layout cost more than they save (the cycle model of
re-sharding), what waits is prefilled in the decode layout, as `seesaw` does with its tail.

Sources: TD-Pipe (arXiv 2506.10470), its I_dec and I_pre; Seesaw (arXiv 2503.06433), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from seesaw.errors import ConfigError
from seesaw.scheduler.output import ModelOutput, SchedulerOutput
from seesaw.scheduler.policies.costs import Costs
from seesaw.scheduler.policies.seesaw import Seesaw, SeesawOptions
from seesaw.scheduler.step import StepBuilder


@dataclass(frozen=True, kw_only=True)
class SeesawCostOptions:
    load_watermark: float = field(
        default=SeesawOptions.load_watermark,
        metadata={"help": "fraction of the decode pool's blocks kept free of loads"},
    )
    least_measured: int = field(
        default=16,
        metadata={
            "help": "steps of each phase to measure before costs decide; until then as `seesaw`"
        },
    )

    def __post_init__(self) -> None:
        SeesawOptions(load_watermark=self.load_watermark)
        steps = self.least_measured
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"least_measured={steps!r}: expected steps, at least 1.")


class SeesawCost(Seesaw):
    Options: type[Any] = SeesawCostOptions

    def __init__(self, options: SeesawCostOptions) -> None:
        super().__init__(SeesawOptions(load_watermark=options.load_watermark))
        self._least = options.least_measured
        self.costs = Costs()

    def observe(self, step: SchedulerOutput, done: ModelOutput) -> None:
        self.costs.observe(step, done)

    def wants_prefill(self, step: StepBuilder) -> bool:
        """Decode is less intense than the prefill phase that could begin now."""
        if not super().wants_prefill(step):
            return False
        costs, batch = self.costs, step.num_seats
        if batch == 0 or not costs.are_known(self._least):
            return True
        most, stages = step.config.max_num_seqs, step.stages
        intensity = costs.decode_intensity(batch / stages)
        if intensity >= 1:
            return False
        num_prompts, num_tokens = next_phase(step)
        return intensity < costs.prefill_intensity(
            num_tokens,
            step.config.max_num_batched_tokens,
            step.config.stages("prefill"),
            min(batch + num_prompts, most) / stages,
        )

    def is_tail(self, step: StepBuilder) -> bool:
        """Two changes of layout cost more than prefilling in the decode layout."""
        costs = self.costs
        if costs.in_place.count == 0 or not costs.are_known(self._least):
            return super().is_tail(step)
        if not step.waiting or step.prefilling or not self.is_drained(step):
            return False
        return not costs.pays(next_phase(step)[1])


def next_phase(step: StepBuilder) -> tuple[int, int]:
    """How many of the waiting prompts, and of their tokens, a prefill phase could take now: those
    that fit the free part of the tier, in order."""
    room = step.num_free_tier_blocks
    num_prompts = num_tokens = 0
    for request in step.waiting:
        room -= step.tier_blocks_for(request)
        if room < 0:
            break
        num_prompts += 1
        num_tokens += request.num_tokens
    return num_prompts, num_tokens
