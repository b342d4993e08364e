"""The tuner against processes that answer well, wrongly, late or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from seesaw.errors import ConfigError
from seesaw.kernels.config_files import read, read_all
from seesaw.kernels.kernel import Config
from seesaw.tune.journal import Journal
from seesaw.tune.trials import ProcessTrials
from seesaw.tune.tuner import Result, estimate, tune
from seesaw.tune.units import Card, Outcome, Unit, Work

FAKE = Path(__file__).with_name("fake_trial.py")
CARD = Card("Fake 9000", 90, "3.9", {})


def unit(*blocks: int, kernel: str = "rms_norm", size: int = 64) -> Unit:
    configs = tuple(Config({"BLOCK": block}) for block in blocks)
    return Unit(kernel, {"size": size}, (Work("rms_norm", {"size": size}, "bfloat16"),), configs)


@pytest.fixture
def trials() -> Iterator[ProcessTrials]:
    made = ProcessTrials([sys.executable, str(FAKE)], start_s=5.0, try_s=1.0)
    yield made
    made.close()


def run(
    trials: ProcessTrials, folder: Path, *units: Unit, budget_s: float = 1e9
) -> tuple[list[Result], list[int]]:
    """Results, and the blocks that were tried now."""
    tried: list[int] = []

    def on_try(unit: Unit, config: Config, outcome: Outcome) -> None:
        tried.append(config.blocks["BLOCK"])

    journal = Journal(folder / "tuning.sqlite", CARD)
    try:
        return tune(units, CARD, trials, journal, folder, budget_s, on_try=on_try), tried
    finally:
        journal.close()


def test_keeps_the_fastest_and_writes_it_down(trials: ProcessTrials, tmp_path: Path) -> None:
    (result,), _ = run(trials, tmp_path, unit(64, 200, 125))
    assert result.verdict == "tuned"
    assert result.best == Config({"BLOCK": 200})
    assert result.path is not None
    written = read(result.path)
    assert written.config == Config({"BLOCK": 200})
    assert (written.median_us, written.default_us) == (5.0, 10.0)
    assert (written.key, written.device_name, written.capability) == ({"size": 64}, "Fake 9000", 90)
    assert result.path.name == "size=64,device_name=Fake_9000.json"


def test_refuses_what_is_wrong_dies_or_hangs_and_goes_on(
    trials: ProcessTrials, tmp_path: Path
) -> None:
    (result,), _ = run(trials, tmp_path, unit(13, 17, 19, 125, 17))
    assert result.bad == {"wrong": 1, "crashed": 2, "hung": 1}
    assert result.best == Config({"BLOCK": 125})


def test_what_a_dead_process_said_is_kept(trials: ProcessTrials) -> None:
    outcome = trials.attempt(unit(17), Config({"BLOCK": 17}))
    assert outcome.status == "crashed"
    assert "illegal memory access" in outcome.why
    assert "exit code 3" in outcome.why


@pytest.mark.parametrize("block", [50, 100, 104])
def test_slower_or_within_the_noise_is_not_kept(
    trials: ProcessTrials, tmp_path: Path, block: int
) -> None:
    """104: 9.62 us, faster than 10 by less than the 0.5 of noise."""
    (result,), _ = run(trials, tmp_path, unit(block))
    assert result.verdict == "the default is best"
    assert read_all(tmp_path, "rms_norm") == []


def test_a_second_run_tries_nothing_again(trials: ProcessTrials, tmp_path: Path) -> None:
    one = unit(64, 13, 125)
    first, tried = run(trials, tmp_path, one)
    assert tried == [64, 13, 125]
    second, tried = run(trials, tmp_path, one)
    assert tried == []
    assert [result.best for result in second] == [result.best for result in first]


def test_no_try_begins_after_the_budget(trials: ProcessTrials, tmp_path: Path) -> None:
    results, tried = run(trials, tmp_path, unit(125), unit(200, size=80), budget_s=0.0)
    assert tried == []
    assert [result.verdict for result in results] == ["not done", "not done"]
    assert [result.left for result in results] == [1, 1]


def test_the_estimate_counts_what_is_left(trials: ProcessTrials, tmp_path: Path) -> None:
    units = [unit(64, 125), unit(64, size=80)]
    run(trials, tmp_path, units[0])
    journal = Journal(tmp_path / "tuning.sqlite", CARD)
    found = estimate(units, journal)
    journal.close()
    assert (found.units, found.candidates, found.done, found.measured) == (2, 3, 2, True)
    assert found.seconds > 0


def test_other_cards_and_tritons_are_tried_anew(trials: ProcessTrials, tmp_path: Path) -> None:
    run(trials, tmp_path, unit(125))
    for card in (Card("Other", 90, "3.9", {}), Card("Fake 9000", 90, "3.6", {})):
        journal = Journal(tmp_path / "tuning.sqlite", card)
        assert journal.outcome(unit(125), Config({"BLOCK": 125})) is None
        journal.close()


def test_what_took_the_tuner_down_twice_is_not_begun_again(tmp_path: Path) -> None:
    one, config = unit(125), Config({"BLOCK": 125})
    for _ in range(2):
        journal = Journal(tmp_path / "tuning.sqlite", CARD)
        assert journal.outcome(one, config) is None
        journal.begin(one, config)
        journal.close()
    journal = Journal(tmp_path / "tuning.sqlite", CARD)
    outcome = journal.outcome(one, config)
    journal.close()
    assert outcome is not None
    assert outcome.status == "crashed"


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tuning.sqlite").write_text("no database, but long enough to be looked at" * 40)
    with pytest.raises(ConfigError, match="no journal of a tuning"):
        Journal(tmp_path / "tuning.sqlite", CARD)


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.tune.test_tuner import CARD, FAKE, unit
from seesaw.tune.journal import Journal
from seesaw.tune.trials import ProcessTrials
from seesaw.tune.tuner import tune

folder = Path(sys.argv[1])
trials = ProcessTrials([sys.executable, str(FAKE)])
journal = Journal(folder / "tuning.sqlite", CARD)
units = [unit(*range(101, 121), size=size) for size in (64, 80)]
def tell(unit, config, outcome):
    print(config.blocks["BLOCK"], flush=True)
    sys.stdin.readline()  # goes on when it is told to
tune(units, CARD, trials, journal, folder, 1e9, on_try=tell)
print("done", flush=True)
"""


def test_killed_anywhere_it_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    code = DRIVER.format(root=root)
    kills, tried = 0, 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        wanted, lines = random.randrange(1, 8), []
        for line in process.stdout:
            lines.append(line.strip())
            if lines[-1] != "done":
                process.stdin.write("\n")
                process.stdin.flush()
            if kills < 4 and len(lines) >= wanted:
                time.sleep(random.uniform(0, 0.005))  # the next try may have begun, or ended
                break
        if lines and lines[-1] == "done":
            process.wait()
            tried += len(lines) - 1
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        tried += len(lines)
    assert kills == 4
    assert tried <= 40, "tried again what was known"
    best = {one.key["size"]: one.config.blocks["BLOCK"] for one in read_all(tmp_path, "rms_norm")}
    assert best == {64: 120, 80: 120}
    assert json.loads(next((tmp_path / "rms_norm").glob("*.json")).read_text())["median_us"] < 9
