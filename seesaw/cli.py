"""`seesaw` on the command line: finds the verb, turns errors into one message and an exit code.

Loads no torch until a verb needs it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from seesaw import __version__, envs
from seesaw.errors import ConfigError, SeesawError, nearest

VERBS = {
    "generate": "seesaw.api.commands.generate:generate",
    "run-batch": "seesaw.api.commands.run_batch:run_batch",
    "report": "seesaw.api.commands.report:report",
    "plan": "seesaw.api.commands.plan:plan",
    "simulate": "seesaw.api.commands.simulate:simulate",
    "calibrate": "seesaw.api.commands.calibrate:calibrate",
    "tune": "seesaw.api.commands.tune:tune",
    "bench": "seesaw.api.commands.bench:bench",
    "collect-env": "seesaw.api.commands.collect_env:collect_env",
}
INTERRUPTED = 128 + signal.SIGINT
USAGE_ERROR = 2


class Verbs(click.Group):
    """A group that imports a verb when it is asked for, and knows the nearest name of a typo."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            raise click.UsageError(
                f"no command {args[0]!r}.{nearest(args[0], known)} Known: {', '.join(known)}.", ctx
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="seesaw %(version)s")
def seesaw() -> None:
    """Offline LLM inference: one batch file in, every answer out.

    Start with `seesaw run-batch --help`. Each command ends its help with examples.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, 1 (failed), 2 (usage or settings), 130 (interrupted) or what the
    command decides.
    """
    try:
        code: Any = seesaw.main(args=args, prog_name="seesaw", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        # Threads that compute are waited for at exit. Cut off there by a second Ctrl-C, Python
        # would end them inside of C++, which aborts the process.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        click.echo("seesaw: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except SeesawError as error:
        _raise_when_debugging()
        click.echo(f"seesaw: error: {error}", err=True)
        sys.exit(USAGE_ERROR if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        # The reader of our output left (`| head`); nothing may be written to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _raise_when_debugging()
        click.echo(f"seesaw: error: {error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _raise_when_debugging() -> None:
    """Inside an `except`: with SEESAW_LOGGING_LEVEL=DEBUG the traceback is shown."""
    if envs.debugging():
        raise


if __name__ == "__main__":
    main()
