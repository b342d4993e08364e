"""What carries out copies in tests: the engines of a CPU, and streams on a fake GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Iterator

import pytest

from seesaw.kvcache.transfer import Engine
from tests.kvcache.fake_gpu import FakeGpu, stream_copies


@contextlib.contextmanager
def of_name(name: str) -> Iterator[Engine]:
    """`cpp`, `torch` or `streams`. Skips where there is no C++."""
    if name == "cpp" and importlib.util.find_spec("seesaw._cpu") is None:
        pytest.skip("seesaw._cpu is not built")
    if name == "cpp" or name == "torch":
        yield name
        return
    seed = random.randrange(2**32)
    print(f"fake GPU: seed {seed}")
    gpu = FakeGpu(seed)
    yield lambda report: stream_copies(gpu, report)
    gpu.close()
