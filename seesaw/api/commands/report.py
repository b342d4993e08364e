"""`seesaw report`: what a trace shows, as a picture, a text and figures."""

from __future__ import annotations

from pathlib import Path

import click

from seesaw.api.flags import Command, Flag
from seesaw.api.report import STDOUT, machine_output, output_json_flag


@click.command(
    cls=Command,
    params=[
        click.Argument(["trace"], metavar="TRACE"),
        Flag(
            ["folder", "-o", "--output"],
            metavar="DIR",
            required=True,
            help="folder for timeline.png and report.txt",
        ),
        output_json_flag("the figures"),
    ],
    examples=[
        "seesaw report trace.json -o report",
        "seesaw report trace.json -o report --output-json -",
    ],
)
def report(trace: str, folder: str, output_json: str | None) -> None:
    """Say where the time of a run went, from the file that its --trace wrote.

    A picture of phases, transitions and copies with pools and tier below; a text of what bounded
    the run, what moved, and where measured and predicted seconds differ.
    """
    with machine_output(output_json) as write:
        from seesaw.api.run_report import write_report

        figures, lines = write_report(Path(trace), Path(folder))
        write(figures)
    if output_json != STDOUT:
        click.echo("\n".join(lines))
        click.echo(f"\nwrote {Path(folder) / 'timeline.png'} and {Path(folder) / 'report.txt'}")
