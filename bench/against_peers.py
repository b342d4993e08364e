"""Systems on the same work, run by run in turns, so that a drifting machine hits all alike.

usage: python bench/against_peers.py --model DIR --system seesaw --system vllm
           [--python vllm=VLLM_ENV/bin/python] [--workload 64x256:64 ...] [--rounds 3]
           [--output-json FILE]

--system NAME [ARGUMENTS]: bench/peers/bench_NAME.py and what it is given, as one word of the shell:
--system "vllm --tp 2 --bind 0|1". The first one is what the others are compared with; vllm is bound
to cores 0-1 where nothing else is said. --workload PROMPTSxINPUT:OUTPUT.

Each system is a process that loads the model once and is stopped (SIGSTOP) while another one is
measured. Before each round the machine's limits are measured. The figure to quote is the median of
the rounds' ratios, with their range.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from seesaw.measure.limits import LimitsProbe

PEERS = Path(__file__).parent / "peers"
WORKLOADS = ("64x256:64", "64x64:256", "16x1024:16")
DEFAULT_ARGUMENTS = {"vllm": ["--bind", "0-1"]}


@dataclass(frozen=True)
class Workload:
    num_prompts: int
    input_len: int
    output_len: int

    @classmethod
    def parse(cls, text: str) -> Workload:
        try:
            prompts, _, lengths = text.partition("x")
            input_len, _, output_len = lengths.partition(":")
            return cls(int(prompts), int(input_len), int(output_len))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected PROMPTSxINPUT:OUTPUT, such as 64x256:64"
            ) from None

    def __str__(self) -> str:
        return f"{self.num_prompts} x ({self.input_len} in, {self.output_len} out)"


class System:
    """One system's process, which runs only between `awake` and its end."""

    def __init__(self, text: str, model: str, pythons: dict[str, str], log: Path) -> None:
        self.text = text
        name, *arguments = shlex.split(text)
        if not any(argument == "--bind" for argument in arguments):
            arguments += DEFAULT_ARGUMENTS.get(name, [])
        script = PEERS / f"bench_{name}.py"
        if not script.exists():
            known = sorted(path.stem.removeprefix("bench_") for path in PEERS.glob("bench_*.py"))
            sys.exit(f"--system {text!r}: no {script}; expected one of {', '.join(known)}.")
        self._log = log
        begun_s = time.perf_counter()
        python = pythons.get(name, sys.executable)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, script, "--model", model, "--serve", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self._read()
        self.start_s = time.perf_counter() - begun_s
        self._signal(signal.SIGSTOP)

    def run(self, workload: Workload, *, warm_up: bool) -> float:
        """Seconds; 0 of a warm-up."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps({**asdict(workload), "warm_up": warm_up}), file=self._process.stdin)
        self._process.stdin.flush()
        elapsed_s = self._read()["elapsed_s"]
        self._signal(signal.SIGSTOP)
        return float(elapsed_s or 0.0)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)

    def _read(self) -> dict[str, Any]:
        """The next answer; what libraries print before the first one is passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                if isinstance(found := json.loads(line), dict):
                    return found
        code, last = self._process.wait(), self._log.read_text()[-4000:]
        sys.exit(f"{self.text} ended with {code}; the last it said ({self._log}):\n{last}")

    def _signal(self, number: signal.Signals) -> None:
        """To the process and all that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            for one in [*process.children(recursive=True), process]:
                with contextlib.suppress(ProcessLookupError):  # it has ended since it was listed
                    os.kill(one.pid, number)


@contextlib.contextmanager
def started(args: argparse.Namespace) -> Iterator[list[System]]:
    pythons = dict(text.split("=", 1) for text in args.python)
    systems: list[System] = []
    try:
        for number, text in enumerate(args.system):
            log = args.logs / f"against_peers_{number}.log"
            systems.append(System(text, args.model, pythons, log))
            print(f"{text}: ready {systems[-1].start_s:.1f} s after its start", flush=True)
        yield systems
    finally:
        for system in systems:
            system.close()


def measure(systems: list[System], workload: Workload, rounds: int) -> dict[str, Any]:
    """The rounds of one workload, and each system's ratios to the first one."""
    probe = LimitsProbe()
    for system in systems:
        system.run(workload, warm_up=True)
    done = []
    for number in range(rounds):
        limits = probe.measure()
        seconds = [system.run(workload, warm_up=False) for system in systems]
        done.append({"limits": dict(limits.figures()), "seconds": seconds})
        shown = ", ".join(
            f"{system.text} {taken_s:.2f} s"
            for system, taken_s in zip(systems, seconds, strict=True)
        )
        print(f"{workload}, round {number + 1}: {shown}; {limits.describe()}", flush=True)
    found: dict[str, Any] = {"workload": asdict(workload), "rounds": done, "systems": {}}
    for index, system in enumerate(systems):
        seconds = [entry["seconds"][index] for entry in done]
        ratios = [entry["seconds"][index] / entry["seconds"][0] for entry in done]
        found["systems"][system.text] = {
            "start_s": system.start_s,
            "median_s": statistics.median(seconds),
            "range_s": [min(seconds), max(seconds)],
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return found


def report(found: dict[str, Any], workload: Workload) -> None:
    reads = [entry["limits"]["read_bytes_per_s"] / 1e9 for entry in found["rounds"]]
    print(f"\n{workload}; reads {min(reads):.0f} to {max(reads):.0f} GB/s")
    for text, figures in found["systems"].items():
        low, high = figures["ratio_range"]
        print(
            f"  {text:<30} {figures['median_s']:7.2f} s ({figures['range_s'][0]:.2f} to "
            f"{figures['range_s'][1]:.2f}), {figures['ratio']:.2f} times the first "
            f"({low:.2f} to {high:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory with safetensors")
    parser.add_argument("--system", action="append", required=True)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--workload", action="append", type=Workload.parse)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--logs", type=Path, default=Path("."), help="folder of the systems' logs")
    parser.add_argument("--output-json", type=Path, help="write all figures here")
    args = parser.parse_args()
    workloads = args.workload or [Workload.parse(text) for text in WORKLOADS]
    with started(args) as systems:
        results = [measure(systems, workload, args.rounds) for workload in workloads]
    for found, workload in zip(results, workloads, strict=True):
        report(found, workload)
    if args.output_json:
        args.output_json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
