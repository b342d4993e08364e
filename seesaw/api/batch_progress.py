"""The live line of a batch job on a terminal. Elsewhere `batch.progress.PlainReporter` serves."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from seesaw.batch.progress import Phase, Progress, clock, describe_engine

_PHASES: dict[Phase, str] = {"check": "checking", "load": "loading the model", "run": "running"}


class TerminalReporter:
    """A `batch.progress.Reporter` with one bar on standard error, which it keeps below all else
    that is printed there. A context manager; outside of it nothing is drawn.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(4, self._console.width // 8)),
            MofNCompleteColumn(),
            _Yielding("{task.fields[detail]}"),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(_PHASES["check"], total=None, detail="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, now: Progress) -> None:
        checking = now.phase == "check"
        self._bar.update(
            self._task,
            description=_PHASES[now.phase],
            completed=now.read_rows if checking else now.done_rows,
            total=now.total_rows,
            detail=describe_detail(now),
            left="" if now.left_s is None else f"{clock(now.left_s)} left,",
        )

    def loading(self, read_bytes: int, all_bytes: int) -> None:
        """Progress of the weights, as `Engine` reports it."""
        self._bar.update(self._task, detail=f"weights {read_bytes / max(1, all_bytes):.0%}")


class _Yielding(TextColumn):
    """The one column that is cut where the terminal is narrow: others would lose their ends, such
    as how many rows there are, if all shrank alike."""

    def __init__(self, text: str) -> None:
        super().__init__(text, table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


def describe_detail(now: Progress) -> str:
    """What stands behind the bar: the engine and its speed while rows run, failed rows once there
    are any."""
    parts = describe_engine(now)
    if now.phase == "run" and now.engine is None and now.elapsed_s > 0:
        parts.append(f"{now.completion_tokens / now.elapsed_s:,.0f} tokens/s")
    if now.failed_rows:
        parts.append(f"{now.failed_rows:,} failed")
    return ", ".join(parts)
