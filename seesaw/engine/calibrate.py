"""Measures this machine in the terms of `seesaw.plan`: how fast the engine's own operations,
copies, links and steps are in every way to use it, all ranks of a way at the same time.

Owns which ways there are, and what samples say of them. What one rank runs is `calibrate_cases` and
`calibrate_rank`, its processes are `calibrate_processes`, whole steps `calibrate_steps`, and how
seconds become rates `calibrate_fit`. Writes nothing.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from seesaw.config import Collectives
from seesaw.distributed import Kind, choose, links_name
from seesaw.engine.calibrate_cases import Sizes
from seesaw.engine.calibrate_fit import links_of, rates_of
from seesaw.engine.calibrate_processes import run_ranks
from seesaw.engine.calibrate_rank import RankTask
from seesaw.engine.calibrate_steps import step_samples
from seesaw.engine.host import host_memory, usable_cores
from seesaw.engine.loader import pick_device
from seesaw.errors import ConfigError, nearest
from seesaw.plan.cost_model import ELEMENT_BYTES
from seesaw.plan.machine import Device, Machine
from seesaw.plan.machine_files import device_by_torch_name

MOST_RANKS = 8
"""Of a CPU, where nothing else is asked for."""
WALK_BYTES = 256 * 2**20
"""Of weights over all ranks: more than caches hold."""
COPY_BYTES = 32 * 2**20
LINK_BYTES = tuple(2**power for power in range(10, 25, 2))
MOST_SPREAD = 0.5
"""Between the quartiles of what was measured, in units of its median; more is no measurement."""
LEAST_CPU_SHARE = 0.85
"""Of a core's time that a rank must get while it measures, or others have slowed it."""
LINKS = ("all_reduce/", "send/", "peer")

Progress = Callable[[str, int, int], None]
"""(what is being measured, rounds done, rounds in all)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: `rounds` over all cases, about `sample_s` for each case of a round."""

    rounds: int
    sample_s: float
    sizes: Sizes
    link_bytes: tuple[int, ...] = LINK_BYTES


FULL = Effort(rounds=7, sample_s=0.04, sizes=Sizes(walk_bytes=WALK_BYTES, copy_bytes=COPY_BYTES))
QUICK = Effort(
    rounds=3,
    sample_s=0.004,
    sizes=Sizes(
        walk_bytes=WALK_BYTES // 4,
        copy_bytes=COPY_BYTES,
        matmul_rows=(1, 16, 256, 1024),
    ),
    link_bytes=LINK_BYTES[::3],
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured in one way: `amount` a run of what `name` counts."""

    name: str
    seconds: float
    """Of one run: the median over ranks and rounds."""
    spread: float
    """From the lower to the upper quartile, in units of the median."""
    amount: float

    @property
    def per_second(self) -> float:
        return self.amount / self.seconds


@dataclass(frozen=True, slots=True)
class Way:
    """The machine used as `num_ranks` devices of `num_threads` threads (1 on CUDA)."""

    num_ranks: int
    num_threads: int
    figures: Mapping[str, Figure]
    cpu_share: float
    """Of the time of its cores that the slowest rank got; 1 on CUDA."""

    @property
    def noisy(self) -> tuple[Figure, ...]:
        """Figures of the device that are no measurement. Those of links between processes vary on
        a quiet machine too: messages wait for threads to wake."""
        return tuple(
            one
            for one in self.figures.values()
            if one.spread > MOST_SPREAD and not one.name.startswith(LINKS)
        )

    @property
    def complaint(self) -> str | None:
        """Why this must not be relied on, for people; None where it may."""
        if self.cpu_share < LEAST_CPU_SHARE:
            return f"they got {self.cpu_share:.0%} of their cores' time"
        if noisy := self.noisy:
            shown = ", ".join(f"{one.name} by {one.spread:.0%}" for one in noisy[:3])
            more = f" and {len(noisy) - 3} more" if len(noisy) > 3 else ""
            return (
                f"figures are spread by more than {MOST_SPREAD:.0%} of their median: {shown}{more}"
            )
        return None


@dataclass(frozen=True, slots=True)
class Calibration:
    ways: tuple[Way, ...]
    machines: tuple[Machine, ...]
    """One for each of the ways."""


def calibrate(
    name: str,
    *,
    device: str = "auto",
    dtypes: Sequence[str] = ("bfloat16",),
    num_devices: Sequence[int] = (),
    collectives: Collectives = "auto",
    effort: Effort = FULL,
    progress: Progress = lambda what, done, total: None,
) -> Calibration:
    """Measure this machine, which people know as `name`. Nothing else should run on it meanwhile.

    `num_devices`: the ways to measure; none given = one rank per divisor of the cores, up to
    MOST_RANKS, on CPU, and all GPUs together on CUDA (fewer follow from them). `collectives`: what
    joins ranks on CPU, as in the engine that is planned for. Raises ConfigError
    before anything is measured, EngineDeadError where a rank fails.
    """
    for dtype in dtypes:
        if dtype not in ELEMENT_BYTES:
            raise ConfigError(
                f"dtype={dtype!r}: not known.{nearest(dtype, ELEMENT_BYTES)} "
                f"Known: {', '.join(ELEMENT_BYTES)}."
            )
    dtypes, found = tuple(dict.fromkeys(dtypes)), pick_device(device)
    kind = choose(collectives, found.type)
    counts = tuple(dict.fromkeys(num_devices)) or ways_of(found)
    _check_counts(counts, found)
    ways, machines = [], []
    for count in counts:
        way = _measure(count, found, dtypes, kind, effort, progress)
        ways.append(way)
        machines.append(_machine(way, name, found, dtypes, effort.sizes, links_name(kind, count)))
    return Calibration(tuple(ways), tuple(machines))


def ways_of(device: torch.device) -> tuple[int, ...]:
    """Numbers of ranks that this machine is measured with where none are asked for."""
    if device.type == "cuda":
        return (torch.cuda.device_count(),)
    cores = max(1, int(usable_cores()))
    return tuple(n for n in range(1, min(cores, MOST_RANKS) + 1) if cores % n == 0)


def _check_counts(counts: Sequence[int], device: torch.device) -> None:
    if device.type == "cuda":
        most = torch.cuda.device_count()
        why = "CUDA devices visible: nothing would be measured"
    else:
        most = max(1, int(usable_cores()))
        why = "usable cores: ranks that share one would be measured at a fraction of their speed"
    for count in counts:
        if not 1 <= count <= most:
            raise ConfigError(f"num_devices={count}: there are {most} {why}. Give 1 to {most}.")


def _measure(
    count: int, device: torch.device, dtypes: Sequence[str], kind: Kind, effort: Effort,
    progress: Progress,
) -> Way:  # fmt: skip
    threads = max(1, int(usable_cores()) // count)
    unit = "GPU" if device.type == "cuda" else "rank"
    what = f"{count} {unit}{'s' if count > 1 else ''}"
    total = effort.rounds + 2
    progress(what, 0, total)
    task = RankTask(
        rank=0,
        num_ranks=count,
        device=device.type,
        num_threads=threads,
        cores=None,
        collectives=kind,
        store_path="",
        shared_fd=None,
        dtypes=list(dtypes),
        rounds=effort.rounds,
        sample_s=effort.sample_s,
        sizes=replace(effort.sizes, walk_bytes=effort.sizes.walk_bytes // count),
        link_bytes=list(effort.link_bytes),
        exchange_bytes=effort.sizes.copy_bytes // 4,
    )
    reports = run_ranks(task, threads, lambda done: progress(what, done, total))
    samples: dict[str, list[float]] = {}
    for report in reports:
        for name, values in report.samples.items():
            samples.setdefault(name, []).extend(values)
    amounts = dict(reports[0].amounts)
    for name, values in step_samples(
        effort.sizes.layer, count, device.type, dtypes[0], effort.rounds
    ).items():
        samples[name], amounts[name] = values, 1.0
    progress(what, total, total)
    figures = {name: _figure(name, values, amounts[name]) for name, values in samples.items()}
    share = min(report.cpu_share for report in reports)
    return Way(count, reports[0].num_threads, figures, share)


def _figure(name: str, values: Sequence[float], amount: float) -> Figure:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(name, middle, (high - low) / middle, amount)


def _machine(
    way: Way, name: str, device: torch.device, dtypes: Sequence[str], sizes: Sizes, links: str
) -> Machine:
    is_cuda = device.type == "cuda"
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    threads = f"{way.num_threads} thread{'s' if way.num_threads > 1 else ''}"
    source = f"measured by seesaw calibrate on {today}, torch {torch.__version__}, {threads}"
    seconds = {one.name: one.seconds for one in way.figures.values()}
    amounts = {one.name: one.amount for one in way.figures.values()}
    rates = rates_of(seconds, amounts, dtypes, sizes)
    memory, total = _memory(device)
    own = Device(
        slug="local",
        name=name,
        kind="cuda" if is_cuda else "cpu",
        memory_bytes=memory,
        rates=rates,
        dtypes=tuple(dtypes),
        sources={"rates": source},
    )
    known = device_by_torch_name(torch.cuda.get_device_name(device)) if is_cuda else None
    if known is not None:
        # What its data sheet says of it stays true.
        own = replace(
            known,
            slug="local",
            memory_bytes=memory,
            rates=rates,
            dtypes=tuple(dtypes),
            sources={**known.sources, "rates": source},
        )
    unit = "GPUs" if is_cuda else "ranks"
    return Machine(
        slug=f"local-{way.num_ranks}",
        name=f"{name}, as {way.num_ranks} {unit} of {threads}",
        devices=(own,) * way.num_ranks,
        links=links_of(seconds, amounts, way.num_ranks, rates, links),
        host_memory_bytes=total,
        sources={"links": source if way.num_ranks > 1 else "one rank: no link, not measured"},
    )


def _memory(device: torch.device) -> tuple[int, int]:
    """(of a device, of the host). Ranks on the CPU have no memory but the host's."""
    _, total = host_memory()
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory), total
    return total, total
