"""`seesaw tune`: flags, progress and the table at the end; the work is done in `seesaw.tune`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seesaw import envs
from seesaw.api.flags import Command, Flag
from seesaw.api.report import STDOUT, machine_output, output_json_flag
from seesaw.errors import ConfigError

if TYPE_CHECKING:
    from seesaw.families.spec import ModelSpec
    from seesaw.kernels.kernel import Config
    from seesaw.tune.trials import Trials
    from seesaw.tune.tuner import Estimate, Result
    from seesaw.tune.units import Outcome, Unit

UNITS_S = {"s": 1, "m": 60, "h": 3600}
JOURNAL = "tuning.sqlite"


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """90s, 30m or 2h, as seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r}: expected a time such as 90s, 30m or 2h.", param, ctx)
        return float(found[1]) * UNITS_S[found[2]]


@click.command(
    cls=Command,
    params=[
        Flag(
            ["--op"],
            multiple=True,
            section="What",
            help="op whose kernels are tuned; may be repeated (default: all)",
        ),
        Flag(
            ["--model"],
            metavar="DIR|FILE",
            section="What",
            help="a model's folder or config.json, whose sizes are tuned for (default: sizes of "
            "common models)",
        ),
        Flag(
            ["--budget"],
            type=Duration(),
            default="30m",
            show_default=True,
            help="no try is begun after it; run again to go on",
        ),
        Flag(
            ["--output-dir"],
            metavar="DIR",
            help="where configurations and the journal go (default: $SEESAW_TUNED_CONFIG_FOLDER, "
            "which kernels read)",
        ),
        output_json_flag("all results"),
    ],
    examples=[
        "seesaw tune --op paged_decode --op ragged_prefill --budget 10m",
        "seesaw tune --model my-model/config.json --budget 2h",
    ],
)
def tune(
    op: Sequence[str],
    model: str | None,
    budget: float,
    output_dir: str | None,
    output_json: str | None,
) -> int:
    """Find fast configurations of the GPU kernels for this machine's card.

    Each candidate runs in a process of its own, is checked against the op's reference and timed
    beside the default; it is kept only if it is faster by more than the noise. Interrupt it at any
    time: what was tried is not tried again. Nothing else should run on the card meanwhile.
    """
    folder = envs.tuned_config_folder() if output_dir is None else Path(output_dir).expanduser()
    with machine_output(output_json) as write:
        from seesaw.tune.model_cases import works

        spec = None if model is None else _spec(model)
        wanted = works(op, spec)
        if not wanted:
            raise ConfigError(
                f"--op {' '.join(op)}: not timed on a GPU, so there is nothing to tune by."
            )
        trials = make_trials()
        try:
            results = run(trials, wanted, folder, budget)
        finally:
            trials.close()
        write(_summary(results))
        if output_json != STDOUT:
            _print_table(results)
    return 0


def make_trials() -> Trials:
    """Trials on the card of this machine. Raises ConfigError where there is none."""
    import torch

    from seesaw.tune.trials import ProcessTrials

    if not torch.cuda.is_available():
        raise ConfigError(
            "tune: found no GPU that torch can use, expected an NVIDIA one of sm_80 or newer. "
            "Kernels are tuned on the card that they will run on."
        )
    return ProcessTrials()


def run(trials: Trials, wanted: Sequence[Any], folder: Path, budget_s: float) -> list[Result]:
    """Says what is ahead, tries it, and returns what was found."""
    from seesaw.tune.journal import Journal
    from seesaw.tune.tuner import estimate, tune

    card = trials.card()
    units = trials.units(wanted)
    journal = Journal(folder / JOURNAL, card)
    try:
        ahead = estimate(units, journal)
        click.echo(_describe(ahead, card.device_name, budget_s), err=True)
        with _progress(ahead.candidates - ahead.done) as on_try:
            return tune(units, card, trials, journal, folder, budget_s, on_try=on_try)
    finally:
        journal.close()


def _spec(name: str) -> ModelSpec:
    from seesaw.api.plan_inputs import read_model

    return read_model(name).spec


def _describe(ahead: Estimate, device_name: str, budget_s: float) -> str:
    told = (
        f"{device_name}: {ahead.candidates} candidates for {ahead.units} keys, {ahead.done} of "
        f"them tried before; about {ahead.seconds / 3600:.1f} hours"
    )
    told += "" if ahead.measured else " (a guess: nothing was tried on this card yet)"
    if ahead.seconds > budget_s:
        told += f", of which the budget allows {budget_s / 3600:.1f}; run again to go on"
    return f"{told}."


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Unit, Config, Outcome], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tuning", total=total, detail="")

        def on_try(unit: Unit, config: Config, outcome: Outcome) -> None:
            said: str = outcome.status
            if outcome.status == "ok":
                said = f"{outcome.median_us:.1f} us, default {outcome.default_us:.1f}"
            bar.update(task, advance=1, detail=f"{unit.label}: {config}: {said}")

        yield on_try


def _summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {
            "kernel": one.unit.kernel,
            "key": dict(one.unit.key),
            "verdict": one.verdict,
            "config": None if one.best is None else one.best.arguments(),
            "median_us": None if one.outcome is None else one.outcome.median_us,
            "default_us": None if one.outcome is None else one.outcome.default_us,
            "noise_us": None if one.outcome is None else one.outcome.noise_us,
            "file": None if one.path is None else str(one.path),
            "tried": one.tried,
            "left": one.left,
            "bad": one.bad,
        }
        for one in results
    ]


def _print_table(results: Sequence[Result]) -> None:
    for one in results:
        told = f"{one.unit.label}: {one.verdict}"
        if one.best is not None and one.outcome is not None:
            gain = one.outcome.default_us / one.outcome.median_us
            told += f", {gain:.2f}x the default ({one.outcome.median_us:.1f} us): {one.best}"
        extra = [f"{one.tried} tried"]
        extra += [f"{one.left} left"] if one.left else []
        extra += [f"{count} {status}" for status, count in sorted(one.bad.items())]
        click.echo(f"{told} ({', '.join(extra)})")
    tuned = sum(one.best is not None for one in results)
    left = sum(one.left for one in results)
    click.echo(
        f"{tuned} of {len(results)} keys have a configuration faster than the default"
        + (f"; {left} candidates are left, run again to go on" if left else "")
    )
