"""The demo's rows: 200 of them, valid, the same each time, and answered by a real `run-batch`."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from seesaw.api.commands import run_batch

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_script", ROOT / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    return module


def test_two_hundred_different_rows_of_three_tasks(demo: ModuleType) -> None:
    text = demo.make_requests()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 200
    assert len({row["custom_id"] for row in rows}) == 200
    asked = {json.dumps(row["body"]["messages"]) for row in rows}
    assert len(asked) == 200
    tasks = [row["custom_id"].partition("-")[0] for row in rows]
    assert {task: tasks.count(task) for task in set(tasks)} == {
        "summarise": 67,
        "classify": 67,
        "extract": 66,
    }
    assert demo.make_requests() == text


def test_preparing_twice_changes_nothing(demo: ModuleType, smollm2_gguf: Path) -> None:
    demo.prepare()
    before = demo.REQUESTS.stat().st_mtime_ns
    demo.prepare()
    assert demo.REQUESTS.stat().st_mtime_ns == before
    assert demo.MODEL.samefile(smollm2_gguf)


def test_answers_are_shown(
    demo: ModuleType,
    tiny_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo.OUT.mkdir()
    demo.REQUESTS.write_text(demo.make_requests(), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run_batch.run_batch.main(
            [
                "-i", str(demo.REQUESTS), "-o", str(demo.answers_path([])),
                "--model", str(tiny_checkpoint("llama", max_position_embeddings=4096)),
                "--device-memory", "512MiB", "--limit", "12",
            ]
        )  # fmt: skip
    assert stop.value.code in (0, None)
    capsys.readouterr()
    demo.show_answers(demo.answers_path([]))
    shown = capsys.readouterr().out
    assert all(f"[{task}]" in shown for task in demo.TASKS)
    assert shown.count("\n    > ") >= len(demo.TASKS)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ([], "answers.jsonl"),
        (["--dtype", "float32"], "answers.jsonl"),
        (["--decode-layout=tp2", "--prefill-layout", "pp2"], "answers-pp2-tp2.jsonl"),
        (["--prefill-layout", "tp2", "--limit", "9"], "answers-tp2.jsonl"),
    ],
)
def test_answers_of_other_layouts_have_a_file_of_their_own(
    demo: ModuleType, args: list[str], name: str
) -> None:
    assert demo.answers_path(args) == demo.OUT / name


def test_ctrl_c_is_left_to_the_command_that_runs(demo: ModuleType) -> None:
    """A terminal sends SIGINT to both; the command saves what it has and ends by itself."""
    child = (
        "import os, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.6)\n"  # longer than subprocess.run would wait before it kills
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert demo.run([sys.executable, "-c", child]) == 130
    assert demo.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == 143
