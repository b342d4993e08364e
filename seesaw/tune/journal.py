"""What was tried, kept in SQLite, so that a tuning which ends anywhere goes on where it stood.

A try is written down before it begins: one that took the machine down is not begun a third time.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from seesaw.errors import ConfigError
from seesaw.kernels.kernel import Config
from seesaw.tune.units import Card, Outcome, Unit, config_to_text

MOST_BEGINS = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tries (
    device TEXT, triton TEXT, unit TEXT, work TEXT, config TEXT,
    begins INTEGER NOT NULL, status TEXT, why TEXT,
    median_us REAL, default_us REAL, noise_us REAL, seconds REAL,
    PRIMARY KEY (device, triton, unit, work, config)
) WITHOUT ROWID
"""
_WHERE = "device = ? AND triton = ? AND unit = ? AND work = ? AND config = ?"


class Journal:
    """Of one card and Triton; a try counts for the calls that it was timed in."""

    def __init__(self, path: Path, card: Card) -> None:
        """Raises ConfigError where the file cannot be a journal."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._card = card
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError(
                f"{path}: no journal of a tuning ({error}). Move it away, or give another "
                "--output-dir."
            ) from error

    def close(self) -> None:
        self._db.close()

    def outcome(self, unit: Unit, config: Config) -> Outcome | None:
        """What became of a try; None where it is still to be made."""
        row = self._db.execute(
            "SELECT begins, status, why, median_us, default_us, noise_us FROM tries "
            f"WHERE {_WHERE}",
            self._key(unit, config),
        ).fetchone()
        if row is None:
            return None
        begins, status, why, *times = row
        if status is None:
            if begins < MOST_BEGINS:
                return None
            return Outcome(status="crashed", why=f"begun {begins} times, ended with the tuner")
        median_us, default_us, noise_us = times
        return Outcome(
            status=status, why=why, median_us=median_us, default_us=default_us, noise_us=noise_us
        )

    def begin(self, unit: Unit, config: Config) -> None:
        self._db.execute(
            "INSERT INTO tries (device, triton, unit, work, config, begins) VALUES (?,?,?,?,?,1) "
            "ON CONFLICT DO UPDATE SET begins = begins + 1",
            self._key(unit, config),
        )

    def interrupted(self, unit: Unit, config: Config) -> None:
        """The try did not end for a reason that is not its own."""
        self._db.execute(
            f"UPDATE tries SET begins = begins - 1 WHERE {_WHERE}", self._key(unit, config)
        )

    def end(self, unit: Unit, config: Config, outcome: Outcome, seconds: float) -> None:
        self._db.execute(
            "UPDATE tries SET status = ?, why = ?, median_us = ?, default_us = ?, noise_us = ?, "
            f"seconds = ? WHERE {_WHERE}",
            (outcome.status, outcome.why, outcome.median_us, outcome.default_us, outcome.noise_us,
             seconds, *self._key(unit, config)),
        )  # fmt: skip

    def seconds_per_try(self) -> float | None:
        """The mean of all tries so far on this card; None before the first."""
        (mean,) = self._db.execute(
            "SELECT avg(seconds) FROM tries WHERE device = ?", (self._card.device_name,)
        ).fetchone()
        return None if mean is None else float(mean)

    def _key(self, unit: Unit, config: Config) -> tuple[str, str, str, str, str]:
        work = "; ".join(f"{one.op} {sorted(one.case.items())} {one.dtype}" for one in unit.work)
        card = self._card
        return (card.device_name, card.triton, unit.label, work, config_to_text(config))
