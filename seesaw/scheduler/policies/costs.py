"""What steps cost, measured while running, and the rules that weigh a change of layout by it.

Owns the measurements: seconds per prompt token in either layout, of a decode step by its rows, of a
change of layout. Knows no request and has no clock: seconds come with the results of steps.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from seesaw.scheduler.output import ModelOutput, SchedulerOutput

MEMORY = 64
"""When a mean holds this many measurements, they count half from then on: it follows contexts as
they grow."""


@dataclass(slots=True)
class Mean:
    """Seconds per unit (token, step, change) over the latest measurements."""

    seconds: float = 0.0
    units: float = 0.0
    count: int = 0

    def add(self, seconds: float, units: float = 1.0) -> None:
        if self.count == MEMORY:
            self.seconds, self.units, self.count = self.seconds / 2, self.units / 2, MEMORY // 2
        self.seconds += seconds
        self.units += units
        self.count += 1

    @property
    def value(self) -> float:
        return self.seconds / self.units


@dataclass(slots=True)
class StepTimes:
    """Seconds of a decode step by its number of rows."""

    means: dict[int, Mean] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    """Numbers of rows that were measured, rising."""

    def add(self, rows: int, seconds: float) -> None:
        if rows not in self.means:
            self.means[rows] = Mean()
            insort(self.sizes, rows)
        self.means[rows].add(seconds)

    def seconds(self, rows: float) -> float:
        """Between measured sizes on the line through both. A smaller step than any measured costs
        no less (weights are read for one row too), in a larger one each row costs the same."""
        above = bisect_left(self.sizes, rows)
        if above == len(self.sizes):
            return self.means[self.sizes[-1]].value * rows / self.sizes[-1]
        high = self.sizes[above]
        if above == 0:
            return self.means[high].value
        low = self.sizes[above - 1]
        share = (rows - low) / (high - low)
        return self.means[low].value * (1 - share) + self.means[high].value * share

    def best_rate(self) -> float:
        """Most rows per second that were measured."""
        return max(rows / mean.value for rows, mean in self.means.items())


@dataclass(slots=True)
class Costs:
    """All that was measured. Seconds are those of the slowest rank, so of one pipeline stage."""

    prefill: Mean = field(default_factory=Mean)
    """Per prompt token in the prefill layout."""
    in_place: Mean = field(default_factory=Mean)
    """Per prompt token in the decode layout, beside rows that decode."""
    decode: StepTimes = field(default_factory=StepTimes)
    reshard: Mean = field(default_factory=Mean)

    def observe(self, step: SchedulerOutput, done: ModelOutput) -> None:
        if step.reshard:
            self.reshard.add(done.reshard_s)
        num_decodes = num_prompt_tokens = 0
        for row in step.rows:
            # A chunk of one token that draws costs what a decode does.
            if step.phase == "decode" and row.num_tokens == 1 and row.samples:
                num_decodes += 1
            else:
                num_prompt_tokens += row.num_tokens
        if done.busy_s <= 0:
            return
        if step.phase == "prefill":
            if num_prompt_tokens:
                self.prefill.add(done.busy_s, num_prompt_tokens)
        elif not num_prompt_tokens:
            if num_decodes:
                self.decode.add(num_decodes, done.busy_s)
        elif not num_decodes or self.decode.sizes:
            beside = self.decode.seconds(num_decodes) if num_decodes else 0.0
            self.in_place.add(max(0.0, done.busy_s - beside), num_prompt_tokens)

    def are_known(self, least: int) -> bool:
        """Whether `least` prefill and decode steps were measured, the latter of more than one size,
        and a change of layout."""
        decodes = sum(mean.count for mean in self.decode.means.values())
        return (
            self.prefill.count >= least
            and decodes >= least
            and len(self.decode.sizes) > 1
            and self.reshard.count > 0
        )

    def decode_intensity(self, rows: float) -> float:
        """Rows per second at this batch size, as a fraction of the best measured.

        TD-Pipe's I_dec, with the best measured size in place of a fixed one.
        """
        if rows <= 0:
            return 0.0
        return min(1.0, rows / self.decode.seconds(rows) / self.decode.best_rate())

    def prefill_intensity(
        self, num_tokens: int, step_tokens: int, stages: int, rows_after: float
    ) -> float:
        """The fraction of a prefill phase over `num_tokens` in steps of up to `step_tokens` that is
        spent prefilling; below 0 where going there and back takes longer than being there.

        TD-Pipe's I_pre: filling a pipeline of `stages` leaves a bubble wherever a prefill step
        takes longer than the decode steps (of `rows_after`) that follow it. Two changes of layout
        are added to it.
        """
        if num_tokens <= 0:
            return 0.0
        largest_s = self.prefill.value * min(num_tokens, step_tokens)
        phase_s = self.prefill.value * num_tokens + (stages - 1) * largest_s
        after_s = self.decode.seconds(rows_after)
        bubble_s = (stages - 1) * max(0.0, largest_s - after_s)
        return (phase_s - bubble_s - 2 * self.reshard.value) / phase_s

    def pays(self, num_tokens: int) -> bool:
        """Whether prefilling this much in the prefill layout is worth two changes of layout.

        The cycle model: n * (1/X_static - 1/X_split) > 2 * t_switch for n sequences, where decoding
        costs the same either way, so that prompt tokens are what differs. True while prefilling in
        the decode layout was not measured.
        """
        if self.in_place.count == 0:
            return True
        return num_tokens * (self.in_place.value - self.prefill.value) > 2 * self.reshard.value
