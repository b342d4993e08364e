"""`seesaw collect-env`: what a bug report should carry."""

from __future__ import annotations

import click

from seesaw.api.environment import describe, environment
from seesaw.api.flags import Command
from seesaw.api.report import STDOUT, machine_output, output_json_flag


@click.command(
    cls=Command,
    params=[output_json_flag("the facts")],
    examples=["seesaw collect-env", "seesaw collect-env --output-json environment.json"],
)
def collect_env(output_json: str | None) -> None:
    """Print what a bug report needs to know.

    Versions, devices and limits of this machine, and the variables that seesaw reads.
    """
    with machine_output(output_json) as write:
        facts = environment()
        write(facts)
        if output_json != STDOUT:
            click.echo(describe(facts))
