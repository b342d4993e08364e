"""The whole driver against ranks that are late, out of step and mortal: 1,000 fresh seeds here,
100,000 by `make fuzz`. What is checked is in `play`, `fake_ranks` and the scheduler tests' worker
model; `test_planted_faults` shows that faults of the driver are found.
"""

from __future__ import annotations

import random
from collections import Counter

from tests.fuzz.play import Play, play_seed
from tests.fuzz.scenario import random_scenario

SEEDS = 1000


def test_fresh_seeds() -> None:
    base = random.SystemRandom().randrange(2**48)
    seen: Counter[str] = Counter()
    for seed in range(base, base + SEEDS):
        seen += play_seed(seed).seen
    wanted = {
        "aborts", "bound", "deaths", "discarded", "ends by abort", "ends by length",
        "ends by stop", "left", "loads", "preemptions", "relays", "stores", "transitions",
    }  # fmt: skip
    assert wanted <= set(seen), f"{SEEDS} seeds did not meet {wanted - set(seen)}"


def test_a_seed_can_be_played_again() -> None:
    """Else a failing one could not be looked at."""
    base = random.SystemRandom().randrange(2**48)
    for seed in range(base, base + 20):
        first, second = (Play(random_scenario(seed)) for _ in range(2))
        first.play()
        second.play()
        assert list(first.clock.notes) == list(second.clock.notes), f"seed {seed}"
