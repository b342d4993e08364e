"""Every op at the shapes that its file lists as `bench`, beside other implementations of it.

    pytest bench/bench_ops.py --benchmark-only -k rms_norm                  # on the CPU
    pytest bench/bench_ops.py --benchmark-only --device cuda --benchmark-json figures.json

Times are those of the device; p20, p50, p80, GB/s, TFLOP/s and shares of the limits measured beside
them are in `extra_info`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.replay import REPLAY
from seesaw.api.bench_peers import PEERS
from seesaw.ops import OPS

pytestmark = pytest.mark.benchmark(timer=REPLAY)


def cases() -> list[Any]:
    return [
        pytest.param(op.name, case, provider, id=f"{op.name}: {case}: {provider}")
        for op in OPS.values()
        for case in op.bench
        for provider in ("seesaw", *PEERS.get(op.name, ()))
    ]


@pytest.mark.parametrize(("name", "case", "provider"), cases())
def test_op(run_op: Callable[[str, str, str], None], name: str, case: str, provider: str) -> None:
    run_op(name, case, provider)
