"""What is set aside for parts of rows holds what Triton's decode kernel asks for, on every GPU that
there is a machine file of and in every configuration that may be tuned."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("triton")

from seesaw.kernels.paged_decode import KERNEL, num_splits
from seesaw.kernels.target import compile_targets
from seesaw.plan.attention_workspace import AttentionShape, split_workspace_bytes


def test_parts_of_rows_fit_what_is_set_aside() -> None:
    seed = random.randrange(2**31)
    print(f"seed={seed}")
    rng = random.Random(seed)
    targets = compile_targets().values()
    assert targets, "no GPU to plan for"
    for target in targets:
        for _ in range(30):
            kv_heads, group = rng.choice([1, 2, 3, 8]), rng.randrange(1, 17)
            size, rows = rng.choice([64, 80, 128, 256]), rng.randrange(1, 600)
            key = {"dtype": "bfloat16", "kv_dtype": "bfloat16", "head_dim": size}
            assert KERNEL.candidates is not None
            config = rng.choice([KERNEL.default(key, target), *KERNEL.candidates(key, target)])
            splits = num_splits(rows * kv_heads, 2**20, target.num_sms, config)
            taken = rows * kv_heads * group * splits * (size + 1) * 4 if splits > 1 else 0
            shape = AttentionShape(kv_heads * group, kv_heads, size, 32, 2)
            assert taken <= split_workspace_bytes(shape, rows), (target, rows, config)
