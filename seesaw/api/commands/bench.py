"""`seesaw bench throughput`, `startup` and `kernels`: flags and printing; the work is done in
`api/bench_throughput.py`, `api/bench_startup.py` and `api/bench_kernels.py`. `serve` and `policies`
stand in `serving.py`.
"""

from __future__ import annotations

from typing import Any

import click

from seesaw.api.commands.serving import policies, serve
from seesaw.api.flags import Command, Flag
from seesaw.api.report import STDOUT, check_trace, machine_output, output_json_flag, trace_flag
from seesaw.api.settings import EngineCommand, engine_flags, take_engine_settings

POSITIVE = click.IntRange(min=1)


@click.group()
def bench() -> None:
    """Measure tokens per second, latencies under load, start-up time, or single kernels.

    Each command runs on this machine, unless told to --simulate another one; --output-json keeps
    figures and environment.
    """


bench.add_command(serve)
bench.add_command(policies)


def _workload(name: str, default: int, text: str) -> click.Option:
    return Flag(
        [name], type=POSITIVE, default=default, show_default=True, section="Workload", help=text
    )


@bench.command(
    cls=EngineCommand,
    params=[
        _workload("--num-prompts", 64, "prompts of a run"),
        _workload("--input-len", 256, "random tokens of each prompt"),
        _workload("--output-len", 64, "tokens of each answer"),
        _workload("--repeats", 2, "runs, each with new random tokens; the best one counts"),
        *engine_flags(enable_prefix_caching=False),
        Flag(
            ["--plot"],
            metavar="FILE",
            help="draw the best run's steps under this machine's limits, measured beside it "
            "(a roofline), to FILE (.svg or .png); on the CPU only",
        ),
        trace_flag(),
        output_json_flag("the figures"),
    ],
    examples=[
        "seesaw bench throughput --model model.gguf --plot roofline.svg",
        "seesaw bench throughput --model my-model --prefill-layout pp2 --decode-layout tp2 "
        "--output-json figures.json",
    ],
)
def throughput(
    num_prompts: int,
    input_len: int,
    output_len: int,
    repeats: int,
    plot: str | None,
    trace: str | None,
    output_json: str | None,
    **values: Any,
) -> None:
    """Tokens per second of one offline batch.

    Random prompts, greedy, no early end, texts decoded.
    """
    check_trace(trace)
    with machine_output(output_json) as write:
        from seesaw.api import bench_roofline
        from seesaw.api.bench_throughput import Workload, describe_movement, measure
        from seesaw.engine.profile import describe

        settings = take_engine_settings(values)
        probe = None if plot is None else bench_roofline.prepare(plot, settings["device"])
        workload = Workload(num_prompts=num_prompts, input_len=input_len, output_len=output_len)
        figures = measure(settings, workload, repeats, probe, trace)
        if plot is not None:
            title = f"{num_prompts} x ({input_len} in, {output_len} out)"
            bench_roofline.plot(figures["roofline"], plot, title)
        write(figures)
    if output_json != STDOUT:
        click.echo(
            f"{figures['output_tokens_per_s']:,.1f} tokens/s out, "
            f"{figures['total_tokens_per_s']:,.1f} in and out: {num_prompts} prompts x "
            f"({input_len} in, {output_len} out) in {figures['elapsed_s']:.2f} s, best of {repeats}"
        )
        if (moved := describe_movement(figures)) is not None:
            click.echo(moved)
        if "profile" in figures:
            click.echo(describe(figures["profile"]))
        if plot is not None:
            click.echo(bench_roofline.describe(figures["roofline"]))
            click.echo(f"wrote {plot}")


@bench.command(
    cls=EngineCommand,
    params=[
        _workload("--repeats", 3, "fresh processes to measure; the best one counts"),
        *engine_flags(),
        output_json_flag("the figures"),
    ],
    examples=[
        "seesaw bench startup --model model.gguf",
        "seesaw bench startup --model my-model --repeats 5 --output-json startup.json",
    ],
)
def startup(repeats: int, output_json: str | None, **values: Any) -> None:
    """Seconds from a cold process to the first token."""
    with machine_output(output_json) as write:
        from seesaw.api.bench_startup import PARTS, measure

        figures = measure(take_engine_settings(values), repeats)
        write(figures)
    if output_json != STDOUT:
        for name in (*PARTS, "total_s"):
            click.echo(f"{name:<16} {figures[name]:8.3f}")


@bench.command(
    cls=Command,
    params=[
        Flag(["ops", "--op"], multiple=True, metavar="OP", help="only this op (repeatable)"),
        Flag(
            ["--dtype"],
            type=click.Choice(["bfloat16", "float16", "float32"]),
            help="of all inputs (default: what models use)",
        ),
        Flag(
            ["--providers"],
            default="seesaw,torch,flex,flashinfer",
            show_default=True,
            help="what is timed side by side, where it is installed and computes the op",
        ),
        Flag(
            ["--device"],
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto = cuda where there is one",
        ),
        Flag(["--quick"], is_flag=True, help="a few shapes of each op, a few batches of each"),
        Flag(
            ["--within"],
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="begin no shape after that; what is left out is listed",
        ),
        Flag(["--plot"], metavar="DIR", help="draw DIR/OP.png: shares of the limit, by provider"),
        output_json_flag("all figures"),
    ],
    examples=[
        "seesaw bench kernels --quick",
        "seesaw bench kernels --op paged_decode --op paged_prefill --plot plots "
        "--output-json kernels.json",
    ],
)
def kernels(
    ops: tuple[str, ...],
    dtype: str | None,
    providers: str,
    device: str,
    quick: bool,
    within: float | None,
    plot: str | None,
    output_json: str | None,
) -> None:
    """Time single ops at shapes of real models.

    Beside other implementations, and beside what this machine can copy and multiply.
    """
    with machine_output(output_json) as write:
        from seesaw.api.bench_kernels_run import measure

        found = measure(ops, dtype, providers, device, quick=quick, within_s=within, plot=plot)
        write(found.figures())
    if output_json != STDOUT:
        click.echo("\n".join(found.lines()))
    if found.findings.failed:
        raise click.exceptions.Exit(1)
