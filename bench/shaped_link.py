"""Two ranks of one core each, joined by a link of limited rate: one layout, two, and `auto`.

usage: python bench/shaped_link.py --models FOLDER [--results FILE] [--only CELL ...]
           [--ablations] [--weak] [--rounds 1] [--minutes N] [--list]
       python bench/shaped_link_report.py --results FILE [--plots FOLDER]

FOLDER has models llama1024 and llama2048 of peers/random_llama.py. Each rank runs in a network
namespace of its own (shaped_link.sh: needs root and iproute2) and talks to the other one over TCP.
Before a cell is measured the machine is calibrated over that link; the simulator's prediction and
the planner's choice (`auto`) come from that. Static layouts run with the chunk size, and stages of
the sizes, that were best in runs of their own; two layouts with the chunks that were best for the
first. `auto` chooses both itself.

Every run is a process of its own and is kept in FILE when it is done: started again, the bench
goes on with what is missing. Runs of a cell follow each other, since the machine drifts. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shaped_link_cells import (
    ABLATIONS,
    BASE,
    CELLS,
    CHUNKS,
    STAGES,
    SYSTEMS,
    TUNED_ON,
    WEAK_CELLS,
    Cell,
    System,
    settings_of,
)

from seesaw.config import EngineConfig
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.machine_files import read_machines, write_machines
from seesaw.simulate.scenario import Arrival, Scenario
from seesaw.simulate.simulation import simulate
from seesaw.weights.checkpoint import open_checkpoint

HERE = Path(__file__).parent
HOSTS = {
    "SEESAW_RANK_COMMAND": "ip netns exec ssw{rank}",
    "SEESAW_COMM_HOST": "10.77.0.1,10.77.0.2",
    "SEESAW_LOGGING_LEVEL": "WARNING",
}
RUN_TIMEOUT_S = 1800


class Results:
    """Runs by cell, system and round, in a JSON file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.runs: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, key: str, run: dict[str, Any]) -> None:
        self.runs[key] = run
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.runs, indent=1) + "\n")
        draft.replace(self._path)


@contextlib.contextmanager
def link(rate: str) -> Iterator[None]:
    subprocess.run(["bash", HERE / "shaped_link.sh", "down"], check=True)
    subprocess.run(["bash", HERE / "shaped_link.sh", "up", rate], check=True)
    try:
        yield
    finally:
        subprocess.run(["bash", HERE / "shaped_link.sh", "down"], check=True)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self._models = Path(args.models)
        self._results = Results(Path(args.results))
        self._ends_s = time.monotonic() + 60 * args.minutes
        self._cache = self._models / "machines"

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._ends_s

    def model(self, cell: Cell) -> str:
        return str(self._models / f"llama{cell.hidden}")

    def measure(self, cell: Cell, systems: Sequence[System], round: int) -> None:
        """All runs of a cell that are missing."""
        keys = {system.name: f"{cell.name}/{system.name}/{round}" for system in systems}
        missing = [system for system in systems if keys[system.name] not in self._results.runs]
        if not missing or self.is_over:
            return
        if any(system.tuned_as for system in missing):
            self.tune(cell.hidden)
        with link(cell.rate):
            self.calibrate(cell.rate)
            for system in missing:
                if self.is_over:
                    return
                settings = settings_of(cell, system, self.model(cell)) | self.tuned(cell, system)
                run = self.run(cell, settings, cell.num_requests, round)
                run["simulated"] = self.predict(cell, settings | run["chosen"], run["layouts"])
                self.keep(keys[system.name], cell, system, run)

    def keep(self, key: str, cell: Cell, system: System, run: dict[str, Any]) -> None:
        described = {"cell": asdict(cell), "system": system.name}
        self._results.add(key, described | run)
        predicted = run.get("simulated") or {}
        print(
            f"{key:44} {run['output_tokens_per_s']:8.2f} tokens/s"
            + (f", predicted {predicted['output_tokens_per_s']:8.2f}" if predicted else "")
            + f", {run['elapsed_s']:7.1f} s",
            flush=True,
        )

    def run(
        self, cell: Cell, settings: dict[str, Any], num_requests: int, seed: int
    ) -> dict[str, Any]:
        job = {
            "settings": settings,
            "num_requests": num_requests,
            "input_len": cell.input_len,
            "output_len": cell.output_len,
            "resident": cell.resident,
            "seed": seed,
        }
        done = subprocess.run(
            [sys.executable, HERE / "shaped_link_run.py"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=self.environment(cell.rate),
            timeout=RUN_TIMEOUT_S,
        )
        if done.returncode:
            sys.exit(f"{cell.name} with {settings} failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        kept = settings | {"model": Path(settings["model"]).name}
        # Which folder a calibration lay in is nobody's business.
        reason = found["reason"].replace(f"{self._cache.absolute()}/", "")
        return found | {"reason": reason, "settings": kept, "num_requests": num_requests}

    def environment(self, rate: str) -> dict[str, str]:
        return {**os.environ, **HOSTS, "SEESAW_CACHE_ROOT": str((self._cache / rate).absolute())}

    # -- what is tuned ---------------------------------------------------------------------------

    def tune(self, hidden: int) -> None:
        """Chunk sizes of both static layouts, then the stages of pp2, where they are not known."""
        cell = TUNED_ON[hidden]
        trials = [("tp2", "tp2", chunk) for chunk in CHUNKS]
        trials += [("pp2", "pp2", chunk) for chunk in CHUNKS]
        self._try_all(cell, trials)
        chunk = self._best(cell, "pp2")["max_num_batched_tokens"]
        self._try_all(cell, [("pp2", stages, chunk) for stages in STAGES[1:]])

    def _try_all(self, cell: Cell, trials: list[tuple[str, str, int]]) -> None:
        keys = {trial: f"tune-{cell.name}/{trial[0]}/{trial[1]}-{trial[2]}" for trial in trials}
        missing = [trial for trial in trials if keys[trial] not in self._results.runs]
        if not missing:
            return
        with link(cell.rate):
            for trial in missing:
                name, layout, chunk = trial
                system = System(name, {"prefill_layout": layout, "max_num_batched_tokens": chunk})
                settings = settings_of(cell, system, self.model(cell))
                run = self.run(cell, settings, cell.num_requests // 2, 0)
                self.keep(keys[trial], cell, system, run)

    def _best(self, cell: Cell, name: str) -> dict[str, Any]:
        """Settings of the fastest trial."""
        prefix = f"tune-{cell.name}/{name}/"
        trials = [run for key, run in self._results.runs.items() if key.startswith(prefix)]
        best = max(trials, key=lambda run: run["output_tokens_per_s"])
        return {key: best["settings"][key] for key in ("prefill_layout", "max_num_batched_tokens")}

    def tuned(self, cell: Cell, system: System) -> dict[str, Any]:
        if system.tuned_as is None:
            return {}
        best = self._best(TUNED_ON[cell.hidden], system.tuned_as)
        if system.name != system.tuned_as:
            del best["prefill_layout"]
        return best

    # -- what is predicted -----------------------------------------------------------------------

    def calibrate(self, rate: str) -> None:
        """Once for each rate; `auto` finds the file in its cache. Figures of the cores are those of
        the first calibration for all rates: a link does not change them, and what the machine does
        otherwise at that moment should not look as if it did."""
        path = self._cache / rate / "machines" / "local.json"
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["calibrate", "--force", "--num-devices", "2", "--collectives", "tcp"]
        done = subprocess.run(
            [sys.executable, "-m", "seesaw", *command, "--output", str(path)],
            capture_output=True,
            text=True,
            env=self.environment(rate),
        )
        if done.returncode:
            sys.exit(f"calibration at {rate} failed:\n{done.stderr[-4000:]}")
        first = self._cache / "cores.json"
        if not first.exists():
            shutil.copy(path, first)
        cores = {len(one.devices): one for one in read_machines(str(first))}
        found = [
            replace(one, devices=cores[len(one.devices)].devices)
            for one in read_machines(str(path))
        ]
        write_machines(path, tuple(found))

    def predict(
        self, cell: Cell, settings: dict[str, Any], layouts: dict[str, str]
    ) -> dict[str, Any]:
        """The simulator's answer for the layouts that ran."""
        if layouts["prefill"] == layouts["decode"]:
            settings = {name: settings[name] for name in settings if name != "host_kv_memory"}
        config = EngineConfig(**settings)
        machines = read_machines(str(self._cache / cell.rate / "machines" / "local.json"))
        scenario = Scenario(
            spec=open_checkpoint(config).spec,
            machine=next(one for one in machines if len(one.devices) == 2),
            layouts=(
                ParallelLayout.parse(layouts["prefill"]),
                ParallelLayout.parse(layouts["decode"]),
            ),
            config=config,
            requests=[Arrival(0.0, cell.input_len, cell.output_len)] * cell.num_requests,
        )
        found = simulate(scenario)
        outputs = cell.num_requests * cell.output_len
        return {
            "output_tokens_per_s": outputs / found.elapsed_s,
            "elapsed_s": found.elapsed_s,
            "transition_s": found.transition_s,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", required=True, help="folder with llama1024 and llama2048")
    parser.add_argument("--results", default=str(HERE / "results" / "shaped_link.json"))
    parser.add_argument("--only", action="append", metavar="CELL", help="may be repeated")
    parser.add_argument("--ablations", action="store_true", help=f"on {BASE.name}, after the cells")
    parser.add_argument("--weak", action="store_true", help="also cells with nothing to gain")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after these")
    parser.add_argument("--list", action="store_true", help="print the cells")
    args = parser.parse_args()
    cells = [*CELLS, *(WEAK_CELLS if args.weak else ())]
    if args.list:
        print("\n".join(cell.name for cell in cells))
        return
    known = {cell.name: cell for cell in cells}
    for name in args.only or ():
        if name not in known:
            parser.error(f"--only {name}: expected one of {', '.join(known)}")
    if os.geteuid() != 0:
        sys.exit("shaped_link.py makes network namespaces, which needs root.")
    bench = Bench(args)
    for round in range(args.rounds):
        for name in args.only or known:
            bench.measure(known[name], SYSTEMS, round)
        if args.ablations:
            bench.measure(BASE, ABLATIONS, round)


if __name__ == "__main__":
    main()
