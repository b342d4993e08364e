"""What is tuned and what became of a try. Plain data, nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from seesaw.kernels.kernel import Config, Key

Status = Literal["ok", "wrong", "does not fit", "crashed", "hung"]


@dataclass(frozen=True, slots=True)
class Work:
    """One call of an op that launches are timed in: its case as `Op.make_inputs` takes it, and the
    arguments that lie in page-locked memory of the host."""

    op: str
    case: Mapping[str, Any]
    dtype: str
    host: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """One key of one kernel, and the calls in which launches with that key occur."""

    kernel: str
    key: Key
    work: tuple[Work, ...]
    candidates: tuple[Config, ...]

    @property
    def label(self) -> str:
        return ",".join([self.kernel, *(f"{name}={self.key[name]}" for name in sorted(self.key))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one configuration. Times of a call are medians, in microseconds, over all calls of the
    unit together; `noise_us` is how far batches of either lay apart (p80 - p20). Those and what the
    default took in the same minutes are 0 unless the status is "ok"."""

    status: Status
    why: str = ""
    median_us: float = 0.0
    default_us: float = 0.0
    noise_us: float = 0.0

    @property
    def gain_us(self) -> float:
        """How much faster than the default, beyond the noise; above 0 only where it is worth it."""
        if self.status != "ok":
            return 0.0
        return self.default_us - self.median_us - self.noise_us


def config_to_text(config: Config) -> str:
    """One text per configuration, for the journal."""
    plain = {"blocks": dict(sorted(config.blocks.items())), "num_warps": config.num_warps,
             "num_stages": config.num_stages}  # fmt: skip
    return json.dumps(plain)


def config_from_text(text: str) -> Config:
    plain = json.loads(text)
    return Config(plain["blocks"], plain["num_warps"], plain["num_stages"])


@dataclass(frozen=True, slots=True)
class Card:
    """The device that is tuned for, as the files name it."""

    device_name: str
    capability: int
    triton: str
    clocks_mhz: Mapping[str, int]

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        return cls(**plain)
