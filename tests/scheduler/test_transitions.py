"""How often policy `seesaw` changes its layout, against the exact minimum.

The minimum is well-defined where all prompts are there from the begin, each has an answer to
decode, one request decodes at a time (`max_num_seqs` 1), and each copy is reported before the next
step is planned. Then the first prompt moves on to the decode pool at once and stays there through
the first prefill phase; each later phase begins with the tier empty and the last request of the one
before in the decode pool, so that what it takes stays in the tier. So a phase takes a run of
prompts in order that fits the tier, the very first prompt not counted, and the fewest phases are
those of the best cut into such runs, found here by trying all cuts.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from tests.scheduler.player import Player
from tests.scheduler.traces import Script, Trace

STRICT = {"tail": False}


class AllAtOnce(Player):
    """Everything is reported before the next step is planned."""

    def _turn(self) -> None:
        step = self.scheduler.schedule()
        assert step is not None or not self.scheduler.num_unfinished
        if step is not None:
            self._issue(step)
        self._drain()


def fewest_runs(needs: list[int], room: int) -> int:
    """Of all cuts of `needs` into runs of sums up to `room`, the fewest runs; by trying all."""
    best = len(needs)
    for cuts in range(2 ** (len(needs) - 1)):
        ends = [0, *(i + 1 for i in range(len(needs) - 1) if cuts >> i & 1), len(needs)]
        if all(sum(needs[start:end]) <= room for start, end in pairwise(ends)):
            best = min(best, len(ends) - 1)
    return best


def random_case(
    rng: random.Random, options: dict[str, Any], *, max_tokens: int = 6, max_num_seqs: int = 1
) -> Trace:
    block_size, factor = rng.choice((1, 4, 16)), rng.choice((1, 2, 4))
    tier_block_size = block_size * factor
    longest = 5 * tier_block_size
    scripts = [
        Script(
            tuple(rng.randrange(40) for _ in range(rng.randint(1, longest))),
            SamplingParams(max_tokens=rng.randint(min(2, max_tokens), max_tokens), ignore_eos=True),
            seed=rng.randrange(2**32),
            arrival_tick=0,
        )
        for _ in range(rng.randint(1, 8))
    ]
    most = max(len(script.prompt) for script in scripts) + max_tokens
    config = SchedulerConfig(
        num_blocks=-(-most // block_size) + rng.randint(0, 40),
        block_size=block_size,
        num_layers=1,
        max_model_len=longest + max_tokens,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=rng.randint(1, 2 * longest),
        debug=True,
        tier=TierConfig(
            prefill_blocks=8 * -(-(longest + max_tokens) // block_size),
            tier_blocks=-(-most // tier_block_size) + rng.randint(0, 12),
            tier_block_size=tier_block_size,
            prefill_stages=rng.randint(1, 3),
            decode_stages=rng.randint(1, 3),
        ),
    )
    return Trace(config, scripts, 40, rng.randrange(2**32), policy="seesaw", options=options)


def played(player_class: type[Player], seed: int, options: dict[str, Any], **kind: Any) -> Player:
    player = player_class(random_case(random.Random(seed), options, **kind))
    try:
        player.play()
    except Exception as error:
        error.add_note(f"seed {seed}, options {options}")
        raise
    return player


def fewest_transitions(player: Player) -> int:
    tier = player.trace.config.tier
    assert tier is not None
    needs = [-(-len(one.prompt) // tier.tier_block_size) for one in player.trace.scripts]
    return 2 * fewest_runs([0, *needs[1:]], tier.tier_blocks) - 1


def test_the_oracle_tries_all_cuts() -> None:
    assert fewest_runs([3], 3) == 1
    assert fewest_runs([1, 2, 3], 6) == 1
    assert fewest_runs([1, 2, 3], 5) == 2
    assert fewest_runs([3, 3, 3], 4) == 3
    assert fewest_runs([2, 3, 1, 2], 5) == 2


def test_transitions_are_as_few_as_can_be() -> None:
    base = random.SystemRandom().randrange(2**48)
    found = set()
    for seed in range(base, base + 300):
        player = played(AllAtOnce, seed, STRICT)
        assert player.scheduler.stats.num_preemptions == 0, f"seed {seed}"
        assert player.num_transitions == fewest_transitions(player), f"seed {seed}"
        found.add(fewest_transitions(player))
    assert {1, 3, 5} <= found, "these cases show little"


def test_switching_as_soon_as_a_prompt_fits_takes_more() -> None:
    base = random.SystemRandom().randrange(2**48)
    more = 0
    for seed in range(base, base + 100):
        player = played(AllAtOnce, seed, {**STRICT, "switch": "prefill-first"})
        more += player.num_transitions - fewest_transitions(player)
    assert more > 0, f"from seed {base}"


def test_a_tail_saves_transitions_and_never_adds_any() -> None:
    base = random.SystemRandom().randrange(2**48)
    saved = 0
    for seed in range(base, base + 100):
        player = played(AllAtOnce, seed, {})
        less = fewest_transitions(player) - player.num_transitions
        assert less >= 0, f"seed {seed}"
        saved += less > 0
    assert saved


def test_with_room_for_all_in_the_decode_pool_there_is_one_transition() -> None:
    """Each prompt moves on from the tier before the next one needs it."""
    base = random.SystemRandom().randrange(2**48)
    for seed in range(base, base + 100):
        trace = random_case(random.Random(seed), STRICT, max_num_seqs=8)
        config = replace(trace.config, num_blocks=9 * trace.config.num_blocks)
        player = AllAtOnce(replace(trace, config=config))
        player.play()
        assert player.num_transitions == 1, f"seed {seed}"


@pytest.mark.parametrize("player_class", [AllAtOnce, Player])
def test_where_nothing_decodes_there_is_no_transition(player_class: type[Player]) -> None:
    base = random.SystemRandom().randrange(2**48)
    for seed in range(base, base + 100):
        player = played(player_class, seed, {}, max_tokens=1, max_num_seqs=3)
        assert player.num_transitions == 0, f"seed {seed}"
        assert player.worker.transfers.num_begun == 0, "a store that nobody reads"
