"""`seesaw calibrate`."""

from __future__ import annotations

import click


@click.command()
def calibrate() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")
