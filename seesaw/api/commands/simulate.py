"""`seesaw simulate`: a job run step by step against a cost model, without loading the model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from seesaw.api.flags import Flag, make_flags
from seesaw.api.report import STDOUT, check_writable, machine_output, output_json_flag
from seesaw.api.settings import EngineCommand, take_engine_settings
from seesaw.config import EngineConfig, FlagField, flag_fields
from seesaw.errors import ConfigError, DoesNotFit

if TYPE_CHECKING:
    from seesaw.api.simulation_inputs import Asked
    from seesaw.simulate.simulation import Progress
    from seesaw.simulate.trace import Spans

POSITIVE = click.IntRange(min=1)
SETTINGS = (
    "prefill_layout", "decode_layout", "policy", "dtype", "max_num_seqs", "max_num_batched_tokens",
    "max_model_len", "block_size", "tier_block_size", "device_memory", "gpu_memory_utilization",
    "host_kv_memory", "num_devices", "reload", "reshard_from", "seed",
)  # fmt: skip
"""Of EngineConfig."""
WITH_EXPERIMENT = ("experiment", "scale", "jobs", "seed", "output_json")
SHOW_AFTER_S = 2


def _own(name: str, section: str, text: str, **settings: Any) -> click.Option:
    return Flag([name], section=section, help=text, **settings)


def _setting_flags() -> list[click.Option]:
    texts = {
        "prefill_layout": "how prompts are computed, such as pp4 (default: what a plan recommends)",
        "decode_layout": "how answers are computed (one of the two stands for both)",
        "num_devices": "devices of the machine to use (default: all)",
        "max_num_batched_tokens": "most tokens computed in one step (default: what is fastest)",
        "max_model_len": "longest prompt + answer in tokens (default: of the workload)",
        "seed": "of lengths, arrivals and faults",
    }
    found: dict[str, FlagField] = {}
    for item, own, text in flag_fields(EngineConfig):
        default = None if item.name == "max_num_batched_tokens" else own
        found[item.name] = (item, default, texts.get(item.name, text))
    return make_flags(EngineConfig, [found[name] for name in SETTINGS], "Settings")


@click.command(
    cls=EngineCommand,
    params=[
        _own("--model", "What for", "model directory or its config.json"),
        _own("--machine", "What for",
             "g6.48xlarge, 8xl4, 4xl4+4xt4 or FILE.json (default: the machine at hand)"),
        _own("--workload", "What for",
             "sharegpt, arxiv, another trace's name, IN:OUT tokens, or a batch FILE.jsonl",
             default="sharegpt", show_default=True),
        _own("--num-requests", "What for",
             "requests of the job (default: 1000, or those of the batch file)", type=POSITIVE),
        _own("--answer-tokens", "What for",
             "mean answer of a batch file (default: max_tokens of each row)", type=POSITIVE),
        _own("--arrivals", "What for",
             "closed = all at once, trace = as the workload's came (default: closed, or poisson "
             "with --rate)",
             type=click.Choice(("closed", "constant", "poisson", "gamma", "trace"))),
        _own("--rate", "What for", "requests per second",
             type=click.FloatRange(min=0, min_open=True)),
        _own("--cv", "What for", "coefficient of variation of gamma arrivals; 1 = poisson",
             type=click.FloatRange(min=0, min_open=True)),
        Flag(["answers_known", "--answers-known/--no-answers-known"], section="What for",
             default=True, help="policies know how long each answer will be [default]; else it "
             "ends at a token nobody foresaw"),
        _own("--max-tokens", "What for",
             "of every request, with --no-answers-known (default: the longest answer)",
             type=POSITIVE),
        *_setting_flags(),
        _own("--kv-dtype", "Settings", "of KV, where it is not kept in --dtype",
             type=click.Choice(("float32", "float16", "bfloat16", "fp8"))),
        _own("--host-step-s", "Settings", "seconds of the driver for each step",
             type=click.FloatRange(min=0), default=0.0, show_default=True),
        _own("--host-row-s", "Settings", "and for each of its rows",
             type=click.FloatRange(min=0), default=0.0, show_default=True),
        _own("--late", "Faults", "SHARE:SECONDS; so many reports of ranks are late, by so much in "
             "the mean"),
        _own("--slow", "Faults", "RANK:BEGIN:END:TIMES; a rank is so many times slower for a "
             "while; may be repeated", multiple=True),
        _own("--death", "Faults", "RANK:SECONDS; a rank dies then; may be repeated",
             multiple=True),
        _own("--restart-s", "Faults", "seconds until its replica is back",
             type=click.FloatRange(min=0), default=60.0, show_default=True),
        _own("--experiment", "Experiments", "run a committed experiment instead, by its name"),
        Flag(["--list-experiments"], section="Experiments", is_flag=True,
             help="name them and do no more"),
        _own("--scale", "Experiments", "times the published numbers of requests",
             type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True),
        _own("--jobs", "Experiments", "processes to simulate in", type=POSITIVE, default=1,
             show_default=True),
        _own("--compare", "Options", "simulate so many layouts, those that a plan ranks first",
             type=POSITIVE),
        _own("--trace", "Options", "FILE.json of what every rank did, for ui.perfetto.dev"),
        _own("--plot", "Options", "FILE.svg or FILE.png of the same, as a timeline"),
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
    **values: Any,
) -> int:  # fmt: skip
    """Run a job step by step against a cost model, without loading the model.

    The scheduler and the policies are the engine's own; only time is computed. Exit codes: 0 done,
    1 nothing fits or a request could never run, 2 usage.
    """
    if list_experiments:
        from seesaw.simulate.experiments import EXPERIMENTS

        for name in EXPERIMENTS:
            click.echo(name)
        return 0
    if experiment is not None:
        _refuse_others(ctx)
        with machine_output(output_json) as write:
            found = _run_experiment(experiment, scale, jobs, values["seed"])
            write(found)
        if output_json is None:
            click.echo(json.dumps(found, indent=2))
        return 0
    with machine_output(output_json) as write:
        try:
            figures, lines = _run(_asked(values), compare, _files(trace, plot, compare))
        except DoesNotFit as error:
            click.echo(f"seesaw: error: {error}", err=True)
            return 1
        write(figures)
    if output_json != STDOUT:
        for line in lines:
            click.echo(line)
    return 0


def _refuse_others(ctx: click.Context) -> None:
    for name in ctx.params:
        given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in WITH_EXPERIMENT:
            flag = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{flag}: an experiment has its own scenarios. Leave it out, or --experiment."
            )


def _run_experiment(name: str, scale: float, jobs: int, seed: int) -> dict[str, Any]:
    from seesaw.simulate.experiments import find
    from seesaw.simulate.experiments.runner import ExperimentOptions

    run = find(name)
    with _progress("simulations") as progress:
        return run(ExperimentOptions(scale=scale, jobs=jobs, seed=seed, progress=progress))


def _files(trace: str | None, plot: str | None, compare: int | None) -> Mapping[str, Path]:
    """What to draw and write; told before anything is simulated."""
    found = {}
    if compare is not None and (trace or plot):
        raise ConfigError("--trace and --plot show one simulation. Leave out --compare.")
    if trace is not None:
        check_writable(Path(trace), "--trace")
        found["trace"] = Path(trace)
    if plot is not None:
        from seesaw.api.plots.figure import check_plot_file

        found["plot"] = check_plot_file(plot)
    return found


def _asked(values: dict[str, Any]) -> Asked:
    from seesaw.api.simulation_inputs import Asked, parse_faults
    from seesaw.simulate.scenario import HostCosts

    if values["model"] is None:
        raise click.UsageError("no model given. Pass --model DIR, or --experiment NAME.")
    own = {
        name: values.pop(name)
        for name in (
            "machine", "workload", "num_requests", "answer_tokens", "arrivals", "rate", "cv",
            "answers_known", "max_tokens", "kv_dtype",
        )
    }  # fmt: skip
    host = HostCosts(step_s=values.pop("host_step_s"), row_s=values.pop("host_row_s"))
    faults = parse_faults(*(values.pop(name) for name in ("late", "slow", "death", "restart_s")))
    chunk = values.pop("max_num_batched_tokens")
    settings = take_engine_settings(values)
    return Asked(
        model=settings.pop("model"), settings=settings, chunk=chunk, host=host, faults=faults,
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
    from seesaw.simulate.trace import Spans

    inputs = read(asked, compares=compare is not None)
    candidates = inputs.scenarios(compare)
    arrivals = "closed"
    if inputs.arrivals is not None:
        arrivals = f"{inputs.arrivals.rate_per_s:g} requests/s, cv {inputs.arrivals.cv:g}"
    results = []
    spans = Spans() if files else None
    for at, candidate in enumerate(candidates):
        label = "requests" if len(candidates) == 1 else f"layout {at + 1} of {len(candidates)}"
        with _progress(label) as progress:
            found = run(candidate.scenario, spans, progress)
        results.append(replace(found, workload=inputs.job.workload.name, arrivals=arrivals))
    if spans is not None:
        machine = candidates[0].scenario.machine
        _write_files(files, spans, [device.name for device in machine.devices], results[0])
    about = {"machine_source": inputs.machine_source, "workload_source": inputs.job.workload.source}
    if compare is None:
        return results[0].to_json() | about, describe(results[0])
    from seesaw.api.simulation_report import comparison

    estimates = [candidate.estimate for candidate in candidates]
    return {"results": [one.to_json() for one in results], **about}, comparison(results, estimates)


def _write_files(files: Mapping[str, Path], spans: Spans, labels: list[str], result: Any) -> None:
    from seesaw.simulate.trace import write_trace

    if "trace" in files:
        write_trace(files["trace"], spans.spans, labels[: len(result.busy_share)])
    if "plot" in files:
        from seesaw.api.plots import timeline

        title = f"{result.prefill_layout} -> {result.decode_layout}, {result.policy}"
        timeline(spans.spans, files["plot"], title)


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """A bar on a terminal, once it takes longer than a moment."""
    from tqdm import tqdm

    with tqdm(
        desc=what, unit="", delay=SHOW_AFTER_S, leave=False, disable=None, file=sys.stderr
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
