"""`seesaw simulate`: a job run step by step against a cost model, without loading the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from seesaw.api.bars import shown
from seesaw.api.flags import FiniteNumber, Flag, FlagField, flag_fields, make_flags
from seesaw.api.job_flags import SETTING_TEXTS, flag, job_flags, kv_dtype_flag
from seesaw.api.report import STDOUT, check_trace, machine_output, output_json_flag
from seesaw.api.settings import EngineCommand, take_engine_settings
from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, DoesNotFit

if TYPE_CHECKING:
    from seesaw.api.simulation_inputs import Asked
    from seesaw.simulate.results import Result
    from seesaw.trace import Spans

POSITIVE = click.IntRange(min=1)
SETTINGS = (
    "prefill_layout", "decode_layout", "policy", "dtype", "max_num_seqs", "max_num_batched_tokens",
    "max_model_len", "block_size", "tier_block_size", "device_memory", "gpu_memory_utilization",
    "host_kv_memory", "num_devices", "reload", "reshard_from", "kv_path", "running_tier",
    "overlap", "seed",
)  # fmt: skip
"""Of EngineConfig."""
WITH_EXPERIMENT = ("experiment", "scale", "jobs", "seed", "plot", "output_json")
OF_EXPERIMENTS = ("scale", "jobs")


def _setting_flags() -> list[click.Option]:
    texts = {
        "prefill_layout": "how prompts are computed, such as pp4 (default: what a plan recommends)",
        "decode_layout": "how answers are computed (one of the two stands for both)",
        **SETTING_TEXTS,
        "max_model_len": "longest prompt + answer in tokens (default: of the workload)",
        "seed": "of lengths, arrivals and faults",
    }
    found: dict[str, FlagField] = {}
    for item, own, text in flag_fields(EngineConfig):
        found[item.name] = (item, own, texts.get(item.name, text))
    return make_flags(EngineConfig, [found[name] for name in SETTINGS], "Settings")


@click.command(
    cls=EngineCommand,
    params=[
        *job_flags(model_is_required=False),
        flag("--arrivals", "What for",
             "closed = all at once, trace = as the workload's came (default: closed, or poisson "
             "with --rate)",
             type=click.Choice(("closed", "constant", "poisson", "gamma", "trace"))),
        flag("--rate", "What for", "requests per second",
             type=FiniteNumber(0.0, is_open=True)),
        flag("--cv", "What for", "coefficient of variation of gamma arrivals; 1 = poisson",
             type=FiniteNumber(0.0, is_open=True)),
        Flag(["answers_known", "--answers-known/--no-answers-known"], section="What for",
             default=True, help="policies know how long each answer will be [default]; else it "
             "ends at a token nobody foresaw"),
        flag("--max-tokens", "What for",
             "of every request, with --no-answers-known (default: the longest answer)",
             type=POSITIVE),
        *_setting_flags(),
        kv_dtype_flag("of KV, where it is not kept in --dtype"),
        flag("--host-step-s", "Settings", "seconds of the driver for each step",
             type=FiniteNumber(0.0), default=0.0, show_default=True),
        flag("--host-row-s", "Settings", "and for each of its rows",
             type=FiniteNumber(0.0), default=0.0, show_default=True),
        flag("--late", "Faults", "SHARE:SECONDS; so many reports of ranks are late, by so much in "
             "the mean"),
        flag("--slow", "Faults", "RANK:BEGIN:END:TIMES; a rank is so many times slower for a "
             "while; may be repeated", multiple=True),
        flag("--death", "Faults", "RANK:SECONDS; a rank dies then; may be repeated",
             multiple=True),
        flag("--restart-s", "Faults", "seconds until its replica is back (default: 60)",
             type=FiniteNumber(0.0)),
        flag("--experiment", "Experiments", "run a committed experiment instead, by its name"),
        Flag(["--list-experiments"], section="Experiments", is_flag=True,
             help="say what they are and do no more"),
        flag("--scale", "Experiments", "times the published numbers of requests",
             type=FiniteNumber(0.0, is_open=True, most=1000), default=1.0, show_default=True),
        flag("--jobs", "Experiments", "processes to simulate in", type=POSITIVE, default=1,
             show_default=True),
        flag("--compare", "Options", "simulate so many layouts, those that a plan ranks first",
             type=POSITIVE),
        flag("--trace", "Options", "FILE.json of what every rank did, for ui.perfetto.dev"),
        flag("--plot", "Options", "FILE.svg or FILE.png of the same, as a timeline; with "
             "--experiment of its figures, FILE-1.svg, .. where there are several"),
        flag("--plot-latency", "Options", "FILE.svg or FILE.png: which part of the requests had "
             "their first token, and their end, after how long"),
        output_json_flag("the result"),
    ],
    examples=[
        "seesaw simulate --model my-model --machine g6.48xlarge --workload arxiv",
        "seesaw simulate --model my-model --machine 8xl4 --prefill-layout pp8 --decode-layout "
        "tp4-pp2 --trace trace.json",
        "seesaw simulate --model my-model --machine 8xl4 --workload azure-conv --rate 2 --compare "
        "10",
    ],
)  # fmt: skip
@click.pass_context
def simulate(
    ctx: click.Context, /, experiment: str | None, list_experiments: bool, scale: float, jobs: int,
    output_json: str | None, compare: int | None, trace: str | None, plot: str | None,
    plot_latency: str | None,
    **values: Any,
) -> int:  # fmt: skip
    """Run a job step by step against a cost model, without loading the model.

    The scheduler and the policies are the engine's own; only time is computed. Exit codes: 0 done,
    1 nothing fits or a request could never run, 2 usage.
    """
    if list_experiments:
        from seesaw.api.experiment_report import listing

        click.echo("\n".join(listing()))
        return 0
    _refuse_what_does_nothing(ctx, experiment)
    if experiment is not None:
        with machine_output(output_json) as write:
            found, lines = _run_experiment(experiment, scale, jobs, values["seed"], plot)
            write(found)
        _tell(lines, output_json)
        return 0
    with machine_output(output_json) as write:
        try:
            figures, lines = _run(
                _asked(values), compare, _files(trace, plot, plot_latency, compare)
            )
        except DoesNotFit as error:
            click.echo(f"seesaw: error: {error}", err=True)
            return 1
        write(figures)
    _tell(lines, output_json)
    return 0


def _tell(lines: Sequence[str], output_json: str | None) -> None:
    if output_json != STDOUT:
        click.echo("\n".join(lines))


def _refuse_what_does_nothing(ctx: click.Context, experiment: str | None) -> None:
    for name in ctx.params:
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        told = "--" + name.replace("_", "-")
        if experiment is not None and name not in WITH_EXPERIMENT:
            raise click.UsageError(
                f"{told}: an experiment has its own scenarios. Leave it out, or --experiment."
            )
        if experiment is None and name in OF_EXPERIMENTS:
            raise click.UsageError(
                f"{told}: is of experiments. Leave it out, or name an --experiment."
            )


def _run_experiment(
    name: str, scale: float, jobs: int, seed: int, plot: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The figures, and lines for people."""
    from seesaw.api.experiment_report import describe
    from seesaw.simulate.experiments import find
    from seesaw.simulate.experiments.runner import ExperimentOptions

    run = find(name)
    file = None
    if plot is not None:
        from seesaw.api.plots import check_plot_file

        file = check_plot_file(plot)
    with shown("simulations") as progress:
        found = run(ExperimentOptions(scale=scale, jobs=jobs, seed=seed, progress=progress))
    drawn = []
    if file is not None:
        drawn.append(_drawn(found.get("plots", ()), file))
    return found, [*describe(name, found), *drawn]


def _drawn(plots: Sequence[Mapping[str, Any]], file: Path) -> str:
    """Draws them, and says what was drawn."""
    from seesaw.api.plots import draw_all

    if not plots:
        return f"nothing to draw in {file}: this experiment has figures, and no plot of them"
    return f"drawn: {', '.join(map(str, draw_all(plots, file)))}"


def _files(
    trace: str | None, plot: str | None, plot_latency: str | None, compare: int | None
) -> Mapping[str, Path]:
    """What to draw and write; told before anything is simulated."""
    found = {}
    if compare is not None and (trace or plot or plot_latency):
        raise ConfigError(
            "--trace, --plot and --plot-latency show one simulation. Leave out --compare."
        )
    if trace is not None:
        check_trace(trace)
        found["trace"] = Path(trace)
    for name, path in (("plot", plot), ("plot-latency", plot_latency)):
        if path is not None:
            from seesaw.api.plots.figure import check_plot_file

            found[name] = check_plot_file(path)
    return found


def _asked(values: dict[str, Any]) -> Asked:
    from seesaw.api.simulation_inputs import Asked, parse_faults
    from seesaw.simulate.scenario import HostCosts

    if values["model"] is None:
        raise click.UsageError("no model given. Pass --model DIR, or --experiment NAME.")
    if values["answers_known"] and values["max_tokens"] is not None:
        raise click.UsageError(
            "--max-tokens: answers whose length is known end there. Add --no-answers-known, or "
            "leave it out."
        )
    own = {
        name: values.pop(name)
        for name in (
            "machine", "workload", "num_requests", "answer_tokens", "arrivals", "rate", "cv",
            "answers_known", "max_tokens", "kv_dtype",
        )
    }  # fmt: skip
    host = HostCosts(step_s=values.pop("host_step_s"), row_s=values.pop("host_row_s"))
    faults = parse_faults(*(values.pop(name) for name in ("late", "slow", "death", "restart_s")))
    settings = take_engine_settings(values)
    return Asked(
        model=settings.pop("model"), settings=settings, host=host, faults=faults,
        **own,
    )  # fmt: skip


def _run(
    asked: Asked, compare: int | None, files: Mapping[str, Path]
) -> tuple[dict[str, Any], list[str]]:
    """The figures, and lines for people."""
    from dataclasses import replace

    from seesaw.api.simulation_inputs import read
    from seesaw.api.simulation_report import describe
    from seesaw.simulate.simulation import simulate as run
    from seesaw.trace import Spans

    inputs = read(asked, compares=compare is not None)
    candidates = inputs.scenarios(compare)
    arrivals = "closed"
    if inputs.arrivals is not None:
        arrivals = f"{inputs.arrivals.rate_per_s:g} requests/s, cv {inputs.arrivals.cv:g}"
    results = []
    spans = Spans() if files else None
    for at, candidate in enumerate(candidates):
        label = "requests" if len(candidates) == 1 else f"layout {at + 1} of {len(candidates)}"
        with shown(label) as progress:
            found = run(candidate.scenario, spans, progress)
        results.append(replace(found, workload=inputs.job.workload.name, arrivals=arrivals))
    if spans is not None:
        machine = candidates[0].scenario.machine
        _write_files(files, spans, [device.name for device in machine.devices], results[0])
    about = {"machine_source": inputs.machine_source, "workload_source": inputs.job.workload.source}
    told = [f"machine   {candidates[0].scenario.machine.name} ({inputs.machine_source})",
            f"workload  {inputs.job.workload.source}"]  # fmt: skip
    if compare is None:
        return results[0].to_json() | about, [*told, *describe(results[0])]
    from seesaw.api.simulation_report import comparison

    estimates = [candidate.estimate for candidate in candidates]
    table = comparison(results, estimates)
    return {"results": [one.to_json() for one in results], **about}, [*told, *table]


def _write_files(
    files: Mapping[str, Path], spans: Spans, labels: list[str], result: Result
) -> None:
    from seesaw.trace import write_trace

    title = f"{result.layouts}, {result.policy}"
    if "trace" in files:
        labels = labels[: len(result.busy_share)]
        write_trace(files["trace"], spans.spans, labels, simulated=True)
    if "plot" in files:
        from seesaw.api.plots import timeline

        timeline(spans.spans, files["plot"], title)
    if "plot-latency" in files:
        from seesaw.api.plots import percentiles

        shown = {"first_token": "first token", "end_to_end": "last token"}
        series = {told: result.samples[name] for name, told in shown.items()}
        percentiles(series, files["plot-latency"], title, "seconds since the request came")
