"""A batch over ranks of which one fails: it restarts its engine by itself, and no row is lost or
twice. When that is not enough it says so and can be resumed, which tests/batch and tests/fuzz play
with engines and ranks that are not real.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.engine.rank_harness import BASE
from tests.faults.strike import SMALL_TIER

NUM_ROWS = 2000
"""Several times as many as are done before the first answers reach the file."""

WAIT_S = 120.0
HOW = {signal.SIGKILL: "was killed by SIGKILL", signal.SIGSTOP: "does not answer"}


class Job:
    """`seesaw run-batch` of NUM_ROWS rows over two ranks, which restarts its engine once."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.answers = folder / "answers.jsonl"
        rows = folder / "rows.jsonl"
        if not rows.exists():
            rows.write_text("".join(_row(index) for index in range(NUM_ROWS)))
        settings = BASE | SMALL_TIER
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "seesaw", "run-batch", "-i", str(rows),
                "-o", str(self.answers), "--model", str(model), "--prefill-layout=pp2",
                "--decode-layout=tp2", "--max-restarts=1", *flags,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SEESAW_RANK_TIMEOUT": "3"},
        )  # fmt: skip
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def wait_until(self, done: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not done():
            assert self.process.poll() is None, f"it ended too early:\n{self.said}"
            assert time.monotonic() < deadline_s, f"it hangs:\n{self.said}"
            time.sleep(0.01)

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if "seesaw.engine.worker" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def num_answers(self) -> int:
        return self.answers.read_bytes().count(b"\n") if self.answers.exists() else 0

    def end(self) -> int:
        code = self.process.wait(WAIT_S)
        self._reader.join()
        return code


def _row(index: int) -> str:
    body = {"prompt": f"Row {index} says", "max_tokens": 24, "temperature": 0}
    row = {"custom_id": f"r{index}", "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(row) + "\n"


def test_a_batch_restarts_by_itself_and_answers_each_row_once(tiny_checkpoint, tmp_path):
    number = random.choice(list(HOW))
    print(number)
    job = Job(tiny_checkpoint("llama"), tmp_path)
    job.wait_until(lambda: job.num_answers() > 0)
    os.kill(job.process.pid, signal.SIGUSR1)  # how far is it?
    random.choice(job.workers()).send_signal(number)
    assert job.end() == 0, job.said
    assert "what the engine is doing is in" in job.said
    assert HOW[number] in job.said[: job.said.index("restart 1 of at most 1")], job.said
    # Both the signal and the failure have left a text that says where requests and ranks were.
    dumps = re.findall(r"is in (\S+seesaw-dump-\S+\.txt)", job.said)
    assert len(set(dumps)) == 2, job.said
    for path in set(dumps):
        text = Path(path).read_text()
        assert "rank 1: in " in text, text
        assert "host tier: " in text, text
        os.remove(path)
    # Not splitlines: texts of a random model hold other characters that end lines.
    with job.answers.open() as file:
        found = Counter(json.loads(line)["custom_id"] for line in file)
    assert found == Counter(f"r{index}" for index in range(NUM_ROWS))
