"""`seesaw calibrate`: flags and printing; what is measured and how is `engine/calibrate.py`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seesaw.api.flags import Command, Flag
from seesaw.api.report import STDOUT, check_writable, machine_output, output_json_flag
from seesaw.errors import ConfigError, SeesawError

if TYPE_CHECKING:
    from seesaw.config import Collectives
    from seesaw.engine.calibrate import Calibration, Effort, Way
    from seesaw.plan.machine import Machine


@click.command(
    cls=Command,
    params=[
        Flag(
            ["--dtype"],
            multiple=True,
            default=("bfloat16",),
            show_default=True,
            section="Measuring",
            help="of weights and KV; may be repeated: matrix products are measured in each",
        ),
        Flag(
            ["--num-devices"],
            multiple=True,
            type=click.IntRange(min=1),
            section="Measuring",
            help="a way to use the machine, as that many devices; may be repeated (default: on a "
            "CPU one for each divisor of the cores up to 8, else all GPUs)",
        ),
        Flag(
            ["--collectives"],
            type=click.Choice(["auto", "shm", "tcp", "gloo"]),
            default="auto",
            show_default=True,
            section="Measuring",
            help="what joins ranks on a CPU, as for the engine; tcp = over SEESAW_COMM_HOST",
        ),
        Flag(
            ["--quick"],
            is_flag=True,
            section="Measuring",
            help="a few seconds for each way, for a first look: less exact",
        ),
        Flag(
            ["--force"],
            is_flag=True,
            section="Measuring",
            help="write the file even where it shows that something else ran meanwhile",
        ),
        Flag(
            ["--output"],
            metavar="FILE",
            help="the machine file (default: machines/local.json in $SEESAW_CACHE_ROOT, which "
            "`seesaw plan` reads)",
        ),
        output_json_flag("all that was measured, with its spread,"),
    ],
    examples=[
        "seesaw calibrate",
        "seesaw calibrate --num-devices 1 --num-devices 2 --output my-machine.json",
        "seesaw calibrate --quick --dtype bfloat16 --dtype float32 --output-json -",
    ],
)
def calibrate(
    dtype: Sequence[str],
    num_devices: Sequence[int],
    collectives: Collectives,
    quick: bool,
    force: bool,
    output: str | None,
    output_json: str | None,
) -> int:
    """Measure this machine, for the planner.

    Runs the engine's own operations, copies, links and steps without any model, in every way to
    use the machine, and writes what they reach to a machine file. Takes about half a minute for
    each way; nothing else should run meanwhile.
    """
    from seesaw.plan.machine_files import local_path, write_machines

    path = local_path() if output is None else Path(output)
    _check_output(path, made=output is None)
    with machine_output(output_json) as write:
        from seesaw.engine.calibrate import FULL, QUICK

        found = _measure(dtype, num_devices, collectives, QUICK if quick else FULL)
        write(_summary(found))
        if output_json != STDOUT:
            _print_table(found)
        told = "; ".join(
            f"{way.num_ranks} x {way.num_threads} threads: {way.complaint}"
            for way in found.ways
            if way.complaint
        )
        if told and not force:
            raise SeesawError(
                f"{told}. Something else ran on this machine, so nothing was written. Measure "
                "again when it is quiet, or add --force."
            )
        if told:
            click.echo(f"warning: {told}. Something else ran on this machine.", err=True)
        try:
            write_machines(path, found.machines)
        except OSError as error:
            raise ConfigError(f"--output {path}: {error.strerror}.") from error
        click.echo(f"Written to {path}.")
    return 0


def _check_output(path: Path, *, made: bool) -> None:
    """Before anything is measured. The folder of the default is `made` when it is written."""
    needed = path
    while made and not needed.parent.exists():
        needed = needed.parent
    check_writable(needed, "--output")
    if path.suffix != ".json":
        raise ConfigError(
            f"--output {path}: expected a name that ends in .json, by which --machine knows a file."
        )


def _measure(
    dtype: Sequence[str], num_devices: Sequence[int], collectives: Collectives, effort: Effort
) -> Calibration:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from seesaw.api.environment import cpu_model, gpus
    from seesaw.engine.calibrate import calibrate as run

    names = [gpu["name"] for gpu in gpus()]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    ) as bar:
        task = bar.add_task("measuring", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"measuring {what}", completed=done, total=total)

        return run(
            names[0] if names else cpu_model(),
            dtypes=dtype,
            num_devices=num_devices,
            collectives=collectives,
            effort=effort,
            progress=show,
        )


def _summary(found: Calibration) -> dict[str, Any]:
    from seesaw.api.environment import environment
    from seesaw.plan.machine_json import encode_machines

    return {
        "ways": [
            {
                "num_ranks": way.num_ranks,
                "num_threads": way.num_threads,
                "cpu_share": way.cpu_share,
                "complaint": way.complaint,
                "figures": {
                    one.name: {
                        "seconds": one.seconds,
                        "spread": one.spread,
                        "amount": one.amount,
                        "per_second": one.per_second,
                    }
                    for one in way.figures.values()
                },
            }
            for way in found.ways
        ],
        **encode_machines(found.machines),
        "environment": environment(),
    }


def _print_table(found: Calibration) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What one device reaches, while all of them work")
    table.add_column("figure")
    for way in found.ways:
        table.add_column(f"{way.num_ranks} x {way.num_threads} threads", justify="right")
    columns = [dict(_rows(machine)) for machine in found.machines]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    table.add_row(
        "spread, median of all / most",
        *(f"{_middle(way):.0%} / {max(one.spread for one in way.figures.values()):.0%}"
          for way in found.ways),
    )  # fmt: skip
    table.add_row("share of the cores' time", *(f"{way.cpu_share:.0%}" for way in found.ways))
    Console().print(table)


def _middle(way: Way) -> float:
    return statistics.median(one.spread for one in way.figures.values())


def _rows(machine: Machine) -> Iterator[tuple[str, str]]:
    rates, links = machine.devices[0].rates, machine.links
    for title, curves in (("matmul", rates.matmul_flops), ("row matmul", rates.row_matmul_flops)):
        for dtype, curve in curves.items():
            for rows in (1, 16, 256, 1024):
                yield f"{title} {dtype}, {rows} rows", f"{curve(rows) / 1e9:,.1f} GFLOP/s"
    if (shares := rates.attention_flops_by_share) is not None:
        for keys in (32, 128, 512):
            rate = shares(keys / 2)
            yield f"attention of prompts of {keys}", f"{rate / 1e9:,.1f} GFLOP/s"
    for title, rate in (
        ("weights", rates.memory_bytes_per_s),
        ("KV of decode rows", rates.kv_bytes_per_s),
        ("element-wise", rates.elementwise_bytes_per_s),
        ("KV to the host tier", rates.store_bytes_per_s),
        ("KV from the host tier", rates.load_bytes_per_s),
        ("copies in place", rates.copy_bytes_per_s),
    ):
        yield title, f"{rate / 1e9:,.2f} GB/s"
    for title, seconds in (
        ("per layer", rates.layer_overhead_s),
        ("per step", rates.step_overhead_s),
        ("per row of a step", rates.step_row_overhead_s),
    ):
        yield title, f"{seconds * 1e6:,.1f} us"
    yield "per decode row, in keys", f"{rates.row_overhead_keys:,.1f}"
    for ranks, curve in links.measured.items():
        for nbytes in (2**10, 2**20):
            title = f"all-reduce over {ranks}, {nbytes // 1024:,} KiB"
            yield title, f"{curve(nbytes) * 1e6:,.0f} us"
    if len(machine.devices) > 1:
        yield "send of 1,024 KiB", f"{links.send_s(2**20) * 1e6:,.0f} us"
        yield "weights from peers", f"{links.peer_bytes_per_s / 1e9:,.2f} GB/s"
