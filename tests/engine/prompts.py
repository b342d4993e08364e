"""Random prompts of engine tests."""

from __future__ import annotations

import random

from tests.checkpoints import VOCAB_SIZE


def random_prompts(count: int, longest: int) -> list[list[int]]:
    """Of random lengths, the shortest of one token; half of them with a common beginning."""
    seed = random.randrange(2**31)
    print(f"random_prompts(seed={seed})")
    rng = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [rng.randrange(4, VOCAB_SIZE) for _ in range(length)]

    common = ids(longest // 2)
    prompts = [ids(1), ids(longest)]
    while len(prompts) < count:
        rest = ids(rng.randrange(1, longest // 2))
        prompts.append(common + rest if len(prompts) % 2 else rest)
    return prompts
