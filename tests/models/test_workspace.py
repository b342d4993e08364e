"""The bound on a step's memory against what a process of its own is seen to allocate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seesaw.ops.native import native

SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}
WIDE = {**SMALL, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128}
TALL = {**SMALL, "vocab_size": 262144, "hidden_size": 128, "intermediate_size": 256}
DEEP = {**SMALL, "hidden_size": 2048, "num_attention_heads": 3}
SPARSE = {
    **SMALL,
    "num_experts": 24,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
CASES: dict[str, dict[str, Any]] = {
    "prompts": {"spec": SMALL, "rows": [[256, 0]] * 8},
    "one-long-prompt": {"spec": SMALL, "rows": [[4096, 0]]},
    "chunks-with-prefix": {"spec": SMALL, "rows": [[512, 3000], [700, 1500], [40, 900]]},
    "long-context": {"spec": WIDE, "rows": [[512, 60_000], [1, 50_000]]},
    "decode": {"spec": SMALL, "rows": [[1, 100 + 7 * n] for n in range(200)]},
    "window": {"spec": {**WIDE, "sliding_window": 512}, "rows": [[3000, 2000], [1, 9000]]},
    "soft-cap": {"spec": {**SMALL, "attn_soft_cap": 30.0}, "rows": [[512, 1000], [1, 3000]]},
    "large-vocabulary": {"spec": TALL, "rows": [[1, 10]] * 100},
    "first-stage": {"spec": DEEP, "rows": [[3000, 0]], "rank": ["pp2", 0]},
    "slice-of-prompts": {"spec": WIDE, "rows": [[512, 0]] * 8, "rank": ["tp4-pp2", 7]},
    "slice-of-vocabulary": {"spec": TALL, "rows": [[1, 10]] * 100, "rank": ["tp3-pp2", 5]},
    "experts": {"spec": SPARSE, "rows": [[256, 0]] * 12},
    "slice-of-experts": {"spec": SPARSE, "rows": [[256, 0]] * 12, "rank": ["tp3-pp2", 3]},
    "float32": {"spec": SMALL, "rows": [[1000, 1000]] + [[1, 500]] * 50, "dtype": "float32"},
}


SAMPLING = {"temperature": 1.0, "top_p": 0.95, "logprobs": 20}
SAMPLED = ("decode", "large-vocabulary", "slice-of-vocabulary")


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in CASES), *((name, SAMPLING) for name in SAMPLED)],
    ids=[*CASES, *(f"{name}-sampling" for name in SAMPLED)],
)
def test_peak_stays_below_the_bound(name: str, settings: dict[str, Any]) -> None:
    check(name, {"dtype": "bfloat16", "settings": settings, **CASES[name]})


@pytest.mark.skipif(native() is None, reason="seesaw._cpu is not built")
@pytest.mark.parametrize(
    "name",
    ["one-long-prompt", "slice-of-prompts", "large-vocabulary", "experts", "slice-of-experts"],
)
def test_so_does_that_of_kernels(name: str) -> None:
    check(name, {"dtype": "bfloat16", "settings": {}, "kernels": True, **CASES[name]})


def check(name: str, job: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.measure_step", json.dumps(job)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    peak, bound = measured["peak_bytes"], measured["bound_bytes"]
    print(f"{name}: peak {peak / 2**20:.0f} MiB, bound {bound / 2**20:.0f} MiB")
    assert peak <= bound
    assert bound <= 2.5 * peak + 192 * 2**20, "the bound wastes memory that KV could use"
