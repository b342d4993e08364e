"""`seesaw plan`: which layouts to run a model in, before a byte of it is loaded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from seesaw.api.flags import Command, FiniteNumber, FlagField, flag_fields, make_flags
from seesaw.api.job_flags import SETTING_TEXTS, flag, job_flags, kv_dtype_flag
from seesaw.api.report import STDOUT, machine_output, output_json_flag
from seesaw.config import EngineConfig
from seesaw.errors import DoesNotFit

if TYPE_CHECKING:
    from seesaw.api.plan_inputs import ModelToPlan
    from seesaw.api.plan_report import Report

SETTINGS = (
    "dtype", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "device_memory",
    "gpu_memory_utilization", "host_kv_memory", "running_tier", "num_devices",
)  # fmt: skip
"""Of EngineConfig."""


def _setting_flags() -> list[click.Option]:
    found: list[FlagField] = []
    for item, default, text in flag_fields(EngineConfig):
        if item.name in SETTINGS:
            found.append((item, default, SETTING_TEXTS.get(item.name, text)))
    return make_flags(EngineConfig, found, "Settings")


@click.command(
    cls=Command,
    params=[
        *job_flags(model_is_required=True),
        flag("--price-per-hour", "What for", "of the machine, for the price of a million tokens",
             type=FiniteNumber(0, is_open=True)),
        *_setting_flags(),
        kv_dtype_flag("of KV; planning only, as the engine keeps it in --dtype"),
        flag("--top", "Options", "candidates to show", type=click.IntRange(min=1), default=10,
             show_default=True),
        output_json_flag("the plan, with all candidates,"),
    ],
    examples=[
        "seesaw plan --model my-model",
        "seesaw plan --model my-model/config.json --machine g6.48xlarge --workload arxiv",
        "seesaw plan --model my-model --machine 8xl4 --workload in.jsonl --price-per-hour 13.35",
    ],
)  # fmt: skip
def plan(output_json: str | None, top: int, **values: Any) -> int:
    """Rank the layouts of a model on a machine, without loading it.

    Estimates of a cost model, for one offline job: the layout of prompts and the layout of answers,
    with phase times, tokens per second and a command that runs the best. Exit codes: 0 planned,
    1 nothing fits, 2 usage.
    """
    with machine_output(output_json) as write:
        try:
            report = _report(**values)
        except DoesNotFit as error:
            click.echo(f"seesaw: error: {error}", err=True)
            return 1
        write(report.as_json())
        if output_json != STDOUT:
            from rich.console import Console

            # What is no terminal has no width: nothing is cut short there.
            report.print(Console(width=None if sys.stdout.isatty() else 140), top)
    return 0


def _report(
    model: str, machine: str | None, workload: str, num_requests: int | None,
    answer_tokens: int | None, price_per_hour: float | None, kv_dtype: str | None,
    **settings: Any,
) -> Report:  # fmt: skip
    from seesaw.api.plan_inputs import read_machine, read_model, read_workload, tokenizer_of
    from seesaw.api.plan_report import Report
    from seesaw.plan.search import search

    # A bad setting is told before any file is read; the folder of the model comes with the file.
    EngineConfig(model=model, **settings)
    read = read_model(model)
    config = EngineConfig(model=str(read.folder), **settings)
    machines, source = read_machine(machine)
    job = read_workload(workload, lambda: tokenizer_of(read), num_requests, answer_tokens)
    found = search(
        read.spec, machines, job.workload, job.num_requests, config,
        kv_dtype=kv_dtype,
    )  # fmt: skip
    return Report(
        plan=found,
        config=config,
        machines=machines,
        machine_source=source,
        workload=job.workload,
        num_requests=job.num_requests,
        batch_file=job.file,
        price_per_hour=price_per_hour or machines[0].price_per_hour,
        notes=_notes(read, kv_dtype),
    )


def _notes(read: ModelToPlan, kv_dtype: str | None) -> list[str]:
    notes = []
    if kv_dtype is not None:
        notes.append(f"KV in {kv_dtype} is planned only: the engine keeps it in --dtype")
    if not read.has_weights:
        notes.append(f"no weights in {read.folder}: the command needs them there")
    return notes
