"""Each planted fault of the driver is found, within far fewer seeds than `test_fuzz` plays."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.planted import PLANTED, planted
from tests.fuzz.play import play_seed

MOST_SEEDS = 1000


def seeds_until_found(name: str) -> int:
    """How many fresh seeds it took; MOST_SEEDS + 1 where none of so many found it."""
    base = random.SystemRandom().randrange(2**48)
    with planted(name):
        for count in range(MOST_SEEDS):
            try:
                play_seed(base + count)
            except Exception:
                return count + 1
    return MOST_SEEDS + 1


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    assert seeds_until_found(name) <= MOST_SEEDS, f"{name}: not found"
