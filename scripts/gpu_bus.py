"""KV to and from page-locked memory at the same time, by the kernels of kv_gather and kv_scatter,
over what plain copies both ways at once reach.

usage: python scripts/gpu_bus.py --output FILE
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from seesaw.api.bench_kernels import Bencher, Job
from seesaw.measure.timer import alternate
from seesaw.ops import OPS

LEAST = 0.85


def together(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """All of them, each on a stream of its own."""
    streams = [torch.cuda.Stream() for _ in calls]

    def call() -> None:
        current = torch.cuda.current_stream()
        for stream, one in zip(streams, calls, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                one()
        for stream in streams:
            current.wait_stream(stream)

    return call


def calls_of(bencher: Bencher, op: str, case: str) -> tuple[Callable[[], object], int]:
    """One call of `op`, and the bytes that it takes over the bus."""
    bench = OPS[op].bench[case]
    inputs = bencher.inputs(Job(OPS[op], case, bench))[0]
    return (lambda: OPS[op].function(**inputs)), bench.link_bytes


def measure() -> dict[str, Any]:
    bencher = Bencher(torch.device("cuda", 0))
    found, goals = {}, []
    for case, bench in OPS["kv_gather"].bench.items():
        gather, stored = calls_of(bencher, "kv_gather", case)
        scatter, loaded = calls_of(bencher, "kv_scatter", case)
        both = together([gather, scatter])
        limits = bencher.limits()
        assert limits is not None
        seconds = alternate({"both": both}, batches=9, clock=bencher.clock)["both"].median_s
        duplex = limits.rate("duplex", "bfloat16")
        assert duplex is not None
        share = (stored + loaded) / seconds / duplex
        found[case] = {"seconds": seconds, "of_duplex": share, "limits": dict(limits.figures())}
        if bench.aim is not None:
            what = f"KV both ways at once, {case}, of plain copies"
            goals.append({"what": what, "value": share, "least": LEAST, "met": share >= LEAST})
    return {"cases": found, "goals": goals}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_bus: torch sees no CUDA device.")
    with torch.inference_mode():
        figures = measure()
    asked.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
