"""What carries out copies in tests: the engines of a CPU, and streams on a fake GPU."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from seesaw.kvcache.transfer import Engine
from tests.kvcache.fake_gpu import FakeGpu, stream_copies


@contextlib.contextmanager
def of_name(name: str) -> Iterator[Engine]:
    """`cpp`, `torch` or `streams`."""
    if name == "cpp" or name == "torch":
        yield name
        return
    seed = random.randrange(2**32)
    print(f"fake GPU: seed {seed}")
    gpu = FakeGpu(seed)
    yield lambda report: stream_copies(gpu, report)
    gpu.close()
