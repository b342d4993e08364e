"""`seesaw bench serve` and `seesaw bench policies`: flags, and what is refused before any work.

The work is done in `api/serving/`, for an engine and for a simulation of one alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from seesaw.api.commands.simulate import SETTINGS
from seesaw.api.flags import Command, FiniteNumber, Flag
from seesaw.api.job_flags import flag, kv_dtype_flag
from seesaw.api.report import STDOUT, check_trace, machine_output, output_json_flag, trace_flag
from seesaw.api.settings import (
    EngineCommand,
    engine_flags,
    parse_policy,
    policies_with,
    take_engine_settings,
    written_policy,
)
from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, DoesNotFit
from seesaw.scheduler import policies as known_policies

POSITIVE = click.IntRange(min=1)
SIMULATED_ONLY = ("machine", "kv_dtype", "host_step_s", "host_row_s")
LOAD = ("workload", "num_requests", "answer_tokens", "qps", "arrivals", "cv", "longest")
LAYOUTS = ("layouts", "data_parallel_size", "tensor_parallel_size", "pipeline_parallel_size")
"""Of EngineConfig: they say what SETTINGS say too."""
PROMISES = ("slo_ttft_s", "slo_tbt_s", "max_delay_s", "capacity")


class PoliciesCommand(EngineCommand):
    """Policies come with their options in one flag, so that none is a flag of this command."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return Command.get_params(self, ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return Command.parse_args(self, ctx, args)
        except click.NoSuchOption as error:
            if owners := policies_with(error.option_name):
                told = (
                    f"{error.option_name} is an option of policy {' and '.join(owners)}. Write it "
                    f"behind the policy's name: --policies '{owners[0]} {error.option_name} ..'."
                )
                raise click.NoSuchOption(error.option_name, told, ctx=ctx) from error
            raise


def _flags(*own: click.Option, without: Sequence[str] = ()) -> list[click.Option]:
    number, positive = FiniteNumber(0.0), FiniteNumber(0.0, is_open=True)
    load, promised, simulated = "Load", "What is promised", "Simulation"
    return [
        *own,
        flag("--workload", load,
             "sharegpt, arxiv, another trace's name, IN:OUT tokens, or a batch FILE.jsonl; prompts "
             "are random tokens of these lengths",
             default="sharegpt", show_default=True),
        flag("--num-requests", load, "requests of a run", type=POSITIVE, default=128,
             show_default=True),
        flag("--answer-tokens", load,
             "mean answer of a batch file (default: max_tokens of each row)", type=POSITIVE),
        flag("--qps", load, "requests per second; several rates one after the other: 1,2,4 "
             "(--capacity: where the search begins; default: 1)"),
        flag("--arrivals", load, "how they come; trace = as the workload's",
             type=click.Choice(("poisson", "constant", "gamma", "trace")), default="poisson",
             show_default=True),
        flag("--cv", load, "coefficient of variation of gamma arrivals; 1 = poisson",
             type=positive),
        flag("--longest", load,
             "draw requests of more tokens again, prompt and answer (default: none is too long)",
             type=click.IntRange(min=2)),
        flag("--slo-ttft-s", promised, "seconds until the first token (TTFT)", type=positive),
        flag("--slo-tbt-s", promised, "seconds between two tokens of an answer (TBT); a longer gap "
             "is a stall", type=positive),
        Flag(["--capacity"], section=promised, is_flag=True,
             help="search for the highest rate at which p99 of both is within its bound, and the "
             "median request waits no longer than --max-delay-s to begin"),
        flag("--max-delay-s", promised, "see --capacity", type=positive, default=2.0,
             show_default=True),
        *[one for one in engine_flags(enable_prefix_caching=False) if one.name not in without],
        Flag(["--simulate"], section=simulated, is_flag=True,
             help="compute the time of steps instead of running them; loads no model"),
        flag("--machine", simulated,
             "g6.48xlarge, 8xl4, 4xl4+4xt4 or FILE.json (default: the machine at hand)"),
        kv_dtype_flag("of KV, where it is not kept in --dtype", simulated),
        flag("--host-step-s", simulated, "seconds of the driver for each step", type=number,
             default=0.0, show_default=True),
        flag("--host-row-s", simulated, "and for each of its rows", type=number, default=0.0,
             show_default=True),
        flag("--journal", "Options", "FILE.jsonl: keep each run there, and take those that are "
             "there already"),
        flag("--plot", "Options", "FILE.svg or FILE.png: TTFT against TBT; with several rates "
             "FILE-1 that, FILE-2 and FILE-3 each over the rate"),
        output_json_flag("the figures"),
    ]  # fmt: skip


@click.command(
    cls=EngineCommand,
    params=_flags(trace_flag()),
    examples=[
        "seesaw bench serve --model my-model --workload 256:64 --qps 1,2,4 --slo-tbt-s 0.2",
        "seesaw bench serve --model my-model --simulate --machine 4xl4 --workload azure-conv "
        "--capacity --slo-tbt-s 0.1",
    ],
)
@click.pass_context
def serve(ctx: click.Context, /, output_json: str | None, trace: str | None, **values: Any) -> int:
    """Latencies under requests that come one after the other.

    Each comes at its moment, whether earlier ones are answered or not. TTFT is the time from then
    to the first token, TBT each gap between two tokens; goodput counts requests that got what
    --slo-ttft-s and --slo-tbt-s promise. Exit codes: 0 done, 1 nothing fits, 2 usage, 130
    interrupted (runs that were finished are told).
    """
    check_trace(trace)
    own = _take_own(ctx, values)
    settings = take_engine_settings(values)
    return _bench(own, [(written_policy(settings), settings)], output_json, trace)


@click.command(
    cls=PoliciesCommand,
    params=_flags(
        flag("--policies", "What is compared",
             "policies by commas, each with its options if any: 'prefill-first,sarathi-serve "
             "--token-budget 256'", required=True),
        without=("policy",),
    ),
    examples=[
        "seesaw bench policies --model my-model --policies "
        "\"prefill-first,sarathi-serve --token-budget 128\" --qps 2 --plot frontier.svg",
        "seesaw bench policies --model my-model --simulate --machine 8xl4 --policies "
        "prefill-first,sarathi-serve --capacity --slo-tbt-s 0.2",
    ],
)  # fmt: skip
@click.pass_context
def policies(ctx: click.Context, /, policies: str, output_json: str | None, **values: Any) -> int:
    """Compare policies on the same requests, at the same moments.

    Runs one after the other, and tells each one's TTFT and TBT, throughput, stalls and preemptions.
    Exit codes: 0 done, 1 nothing fits, 2 usage, 130 interrupted (runs that were finished are told).
    """
    own = _take_own(ctx, values)
    settings = take_engine_settings(values)
    each = [_with_policy(settings, text) for text in policies.split(",")]
    labels = [written_policy(one) for one in each]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"--policies {policies}: one is named twice. Give each of them once.")
    return _bench(own, list(zip(labels, each, strict=True)), output_json)


def _with_policy(settings: dict[str, Any], text: str) -> dict[str, Any]:
    """Raises ConfigError for a policy that does not exist, or not with these settings."""
    name, options = parse_policy(text)
    found = settings | {"policy": name, "policy_options": options}
    config = EngineConfig(**found)
    known_policies.make(name, config.policy_options)
    return found


def _take_own(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """What belongs to these commands, out of `values`. Raises click.UsageError for what would do
    nothing."""
    simulated = values.pop("simulate")
    delay_source = ctx.get_parameter_source("max_delay_s")
    if delay_source is ParameterSource.COMMANDLINE and not values["capacity"]:
        raise click.UsageError(
            "--max-delay-s: is a bound of --capacity. Leave it out, or add that."
        )
    for name in ctx.params:
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        told = "--" + name.replace("_", "-")
        if not simulated and name in SIMULATED_ONLY:
            raise click.UsageError(f"{told}: is of simulations. Leave it out, or add --simulate.")
        if simulated and name in _engine_only():
            raise click.UsageError(
                f"{told}: means nothing where no model is loaded. Leave it out, or --simulate."
            )
    names = (*LOAD, *PROMISES, *SIMULATED_ONLY, "journal", "plot")
    return {"simulate": simulated, **{name: values.pop(name) for name in names}}


def _engine_only() -> set[str]:
    """Settings of EngineConfig that a simulation does not know."""
    names = {str(one.name) for one in (*engine_flags(), trace_flag())}
    return names - {*SETTINGS, *LAYOUTS, "model"}


def _bench(
    own: dict[str, Any],
    asked: Sequence[tuple[str, dict[str, Any]]],
    output_json: str | None,
    trace: str | None = None,
) -> int:
    with machine_output(output_json) as write:
        from seesaw.api.serving.report import describe
        from seesaw.api.serving.run import Asked, run

        promised = {
            name: math.inf if own[name] is None else own[name]
            for name in ("slo_ttft_s", "slo_tbt_s")
        }
        try:
            figures = run(
                Asked(
                    policies=asked,
                    simulates=own["simulate"],
                    workload=own["workload"],
                    num_requests=own["num_requests"],
                    answer_tokens=own["answer_tokens"],
                    rates=_rates(own["qps"], finds_capacity=own["capacity"]),
                    arrivals=own["arrivals"],
                    cv=own["cv"],
                    longest=own["longest"],
                    ttft_s=promised["slo_ttft_s"],
                    tbt_s=promised["slo_tbt_s"],
                    delay_s=own["max_delay_s"],
                    finds_capacity=own["capacity"],
                    machine=own["machine"],
                    kv_dtype=own["kv_dtype"],
                    host_step_s=own["host_step_s"],
                    host_row_s=own["host_row_s"],
                    journal=None if own["journal"] is None else Path(own["journal"]),
                    plot=own["plot"],
                    trace=trace,
                )
            )
        except DoesNotFit as error:
            click.echo(f"seesaw: error: {error}", err=True)
            return 1
        write(figures)
    if output_json != STDOUT:
        click.echo("\n".join(describe(figures)))
    if figures["interrupted"]:
        raise KeyboardInterrupt
    return 0


def _rates(text: str | None, *, finds_capacity: bool) -> tuple[float, ...]:
    """Empty where none were given."""
    if text is None:
        return ()
    kind = FiniteNumber(0.0, is_open=True)
    try:
        rates = tuple(kind.convert(part.strip(), None, None) for part in text.split(","))
    except click.BadParameter as error:
        raise ConfigError(f"--qps {text}: {error.message}") from error
    if finds_capacity and len(rates) > 1:
        raise ConfigError(
            f"--qps {text}: a search for the capacity begins at one rate. Give one, or leave out "
            "--capacity."
        )
    if len(set(rates)) < len(rates):
        raise ConfigError(f"--qps {text}: a rate is named twice. Give each of them once.")
    return rates
