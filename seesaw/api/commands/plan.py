"""`seesaw plan`."""

from __future__ import annotations

import click


@click.command()
def plan() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")
