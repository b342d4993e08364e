"""Rows, files and jobs for the tests of the batch package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seesaw.batch.job import JobResult, run
from seesaw.batch.options import JobOptions
from seesaw.batch.progress import Progress
from tests.batch.fake_engine import FakeEncoder, FakeEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat(custom_id: str, text: str = "a question", **body: Any) -> dict[str, Any]:
    messages = body.pop("messages", [{"role": "user", "content": text}])
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "fake", "messages": messages, **body},
    }


def completion(custom_id: str, prompt: Any = "once upon", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": COMPLETIONS,
        "body": {"prompt": prompt, **body},
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def ids(path: Path) -> list[str | None]:
    return [row["custom_id"] for row in read_rows(path)]


def questions(n: int, **body: Any) -> list[dict[str, Any]]:
    return [chat(f"r{i}", f"question {i}", **body) for i in range(n)]


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.moments: list[Progress] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, now: Progress) -> None:
        self.moments.append(now)

    @property
    def text(self) -> str:
        return "\n".join(self.messages)


class Jobs:
    """Jobs in one folder. `engines` are those made by the last run, `said` what it told."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.input = folder / "in.jsonl"
        self.answers = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"
        self.journal = folder / "out.journal.sqlite"
        self.engines: list[FakeEngine] = []
        self.said = Listener()

    def write(self, *rows: dict[str, Any] | str) -> None:
        write_rows(self.input, rows)

    def run(
        self,
        *,
        engine: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        now_s: float = 1e9,
        **options: Any,
    ) -> JobResult:
        self.engines, self.said = [], Listener()
        options = {"input": str(self.input), "output": str(self.answers), **options}

        def make_engine() -> FakeEngine:
            self.engines.append(FakeEngine(**(engine or {}), **(encoder or {})))
            return self.engines[-1]

        return run(
            JobOptions(**options),
            lambda: FakeEncoder(**(encoder or {})),
            make_engine,
            self.said,
            clock=lambda: now_s,
        )

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "out.summary.json").read_text())

    def contents(self) -> dict[str, bytes]:
        """All files of the job but the journal and the summary, which hold times."""
        return {
            p.name: p.read_bytes()
            for p in self.folder.iterdir()
            if p not in (self.input, self.journal) and "summary" not in p.name
        }
