"""Measures in a moment what joins the ranks of this machine, where nobody has: a plan made with the
figures of other links would be another machine's.

`seesaw calibrate --collectives` measures the same more exactly, with all else, once and for all.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from seesaw.distributed import Kind, links_name
from seesaw.engine.calibrate_cases import Sizes
from seesaw.engine.calibrate_fit import links_of
from seesaw.engine.calibrate_processes import run_ranks
from seesaw.engine.calibrate_rank import RankTask
from seesaw.plan.machine import Machine

ROUNDS = 3
SAMPLE_S = 0.005
LINK_BYTES = (2**10, 2**16, 2**20)


def with_links_of(machine: Machine, kind: Kind) -> Machine:
    """`machine`, whose ranks are processes on CPU, with what joins them measured now over `kind`.
    Raises EngineDeadError where they cannot be joined."""
    count = len(machine.devices)
    task = RankTask(
        rank=0,
        num_ranks=count,
        device="cpu",
        num_threads=1,
        cores=None,
        collectives=kind,
        store_path="",
        shared_fd=None,
        dtypes=["bfloat16"],
        rounds=ROUNDS,
        sample_s=SAMPLE_S,
        sizes=Sizes(walk_bytes=0, copy_bytes=0),
        link_bytes=list(LINK_BYTES),
        exchange_bytes=LINK_BYTES[-1],
        links_only=True,
    )
    reports = run_ranks(task, 1, lambda done: None)
    samples: dict[str, list[float]] = {}
    for report in reports:
        for name, values in report.samples.items():
            samples.setdefault(name, []).extend(values)
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    rates, name = machine.devices[0].rates, links_name(kind, count)
    return replace(machine, links=links_of(seconds, reports[0].amounts, count, rates, name))
