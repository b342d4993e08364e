"""What the planner's simulator predicts for this machine beside what the engine does on it.

usage: python bench/plan_vs_measured.py --model DIR_OR_GGUF [--rounds 3] [--machine FILE.json]
           [--layouts tp1,dp2,pp2,tp2,pp2:tp2,tp2:pp2] [--output-json FILE]

Each round measures the machine (`seesaw calibrate`), then every layout and workload with
`seesaw bench throughput`, each in a process of its own, so that a machine that drifts hits both
sides alike. Predictions are the simulator's with the machine of the same round, or of `--machine`.
The figure to quote is the median over rounds of predicted / measured tokens per second. Nothing
else should run meanwhile; a round takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from seesaw.config import EngineConfig
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import read_machines
from seesaw.simulate.scenario import Arrival, Scenario
from seesaw.simulate.simulation import simulate
from seesaw.weights.checkpoint import open_checkpoint

LAYOUTS = "tp1,dp2,pp2,tp2,pp2:tp2,tp2:pp2"
SETTINGS = {
    "dtype": "bfloat16", "device": "cpu", "device_memory": "2GiB", "max_model_len": 512,
}  # fmt: skip
SPLIT_SETTINGS = {"host_kv_memory": "512MiB"}


class Work(NamedTuple):
    """`num_prompts` prompts of `input_len` random tokens, each answered with `output_len`."""

    name: str
    num_prompts: int
    input_len: int
    output_len: int


WORKLOADS = (Work("prefill", 48, 256, 4), Work("decode", 48, 32, 64))


class Pair(NamedTuple):
    """Layouts of the two phases."""

    prefill: str
    decode: str

    @classmethod
    def parse(cls, text: str) -> Pair:
        prefill, _, decode = text.partition(":")
        return cls(prefill, decode or prefill)

    @property
    def settings(self) -> dict[str, Any]:
        layouts = {"prefill_layout": self.prefill, "decode_layout": self.decode}
        return SETTINGS | layouts | (SPLIT_SETTINGS if self.prefill != self.decode else {})

    def __str__(self) -> str:
        return self.prefill if self.prefill == self.decode else f"{self.prefill} -> {self.decode}"


def measure(model: str, pair: Pair, work: Work) -> dict[str, Any]:
    """The figures of `seesaw bench throughput`."""
    flags = [
        text
        for name, value in pair.settings.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    return json.loads(
        run(
            "bench", "throughput", "--model", model, "--num-prompts", work.num_prompts,
            "--input-len", work.input_len, "--output-len", work.output_len, "--repeats", 2,
            "--output-json", "-", *flags,
        )
    )  # fmt: skip


def calibrate() -> tuple[Machine, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/machine.json"
        run("calibrate", "--force", "--output", path)
        return read_machines(path)


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "seesaw", *map(str, arguments)]
    environment = {**os.environ, "SEESAW_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    for line in done.stderr.splitlines():
        if "warning" in line.lower():
            print(f"  {line.strip()}", flush=True)
    return done.stdout


def predict(
    config: EngineConfig, machines: tuple[Machine, ...], pair: Pair, work: Work
) -> dict[str, Any]:
    """The JSON of `seesaw simulate`."""
    layouts = ParallelLayout.parse(pair.prefill), ParallelLayout.parse(pair.decode)
    ranks = layouts[0].num_ranks
    machine = next((one for one in machines if len(one.devices) == ranks), None)
    if machine is None:
        sys.exit(f"{pair}: the machine file has no way to use {ranks} ranks.")
    scenario = Scenario(
        spec=open_checkpoint(config).spec,
        machine=machine,
        layouts=layouts,
        config=EngineConfig(model=config.model, enable_prefix_caching=False, **pair.settings),
        requests=[Arrival(0.0, work.input_len, work.output_len)] * work.num_prompts,
    )
    return simulate(scenario).to_json()


class Compared(NamedTuple):
    """One layout and workload in one round; tokens are those of prompts and answers."""

    layout: str
    work: str
    measured: float
    predicted: float
    measured_phase_s: dict[str, float]
    predicted_phase_s: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def compare(
    args: argparse.Namespace, config: EngineConfig, machines: tuple[Machine, ...]
) -> list[Compared]:
    found = []
    for work in WORKLOADS:
        for pair in map(Pair.parse, args.layouts.split(",")):
            predicted = predict(config, machines, pair, work)
            measured = measure(args.model, pair, work)
            tokens = work.num_prompts * (work.input_len + work.output_len)
            one = Compared(
                str(pair),
                work.name,
                tokens / statistics.median(measured["elapsed_s_all"]),
                predicted["tokens_per_s"],
                measured["phase_s"],
                predicted["phase_s"],
            )
            found.append(one)
            print(
                f"  {one.work:8} {one.layout:12} measured {one.measured:9,.1f} tokens/s, "
                f"predicted {one.predicted:9,.1f}, ratio {one.ratio:.2f}",
                flush=True,
            )
    return found


def report(rounds: list[list[Compared]]) -> dict[str, Any]:
    """Medians over rounds, and whether the layouts come in the same order on both sides."""
    table: dict[str, Any] = {}
    for work in WORKLOADS:
        rows: dict[str, Any] = {}
        for found in zip(*rounds, strict=True):
            if found[0].work == work.name:
                rows[found[0].layout] = {
                    "measured": statistics.median(one.measured for one in found),
                    "predicted": statistics.median(one.predicted for one in found),
                    "ratio": statistics.median(one.ratio for one in found),
                }
        orders = {
            side: sorted(rows, key=lambda layout, side=side: -rows[layout][side])
            for side in ("measured", "predicted")
        }
        misses = [abs(row["ratio"] - 1) for row in rows.values()]
        table[work.name] = {"layouts": rows, "orders": orders, "worst": max(misses)}
        print(f"\n{work.name}: {work.num_prompts} x ({work.input_len} in, {work.output_len} out)")
        for layout, row in rows.items():
            print(
                f"  {layout:12} measured {row['measured']:9,.1f} tokens/s, "
                f"predicted {row['predicted']:9,.1f}, ratio {row['ratio']:.2f}"
            )
        same = orders["measured"] == orders["predicted"]
        print(f"  worst miss {max(misses):.0%}; order {'right' if same else f'wrong: {orders}'}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="model directory or .gguf file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--machine", help="machine file (default: calibrate in each round)")
    parser.add_argument("--layouts", default=LAYOUTS, help=f"default: {LAYOUTS}")
    parser.add_argument("--output-json", help="write all figures here")
    args = parser.parse_args()

    config = EngineConfig(model=args.model)
    rounds = []
    for number in range(args.rounds):
        print(f"round {number + 1}", flush=True)
        machines = read_machines(args.machine) if args.machine else calibrate()
        rounds.append(compare(args, config, machines))
    table = report(rounds)
    if args.output_json:
        result = {
            "arguments": vars(args),
            "rounds": [[one._asdict() for one in found] for found in rounds],
            "medians": table,
        }
        Path(args.output_json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
