"""The launcher and the kernel of sums between peers must agree on what a buffer is."""

from __future__ import annotations

import re

from seesaw.cuda import peer_sum
from seesaw.kernels.nvrtc import folder


def test_kernel_and_launcher_agree() -> None:
    source = (folder() / "peer_all_reduce.cu").read_text()
    found = dict(re.findall(r"constexpr int (MAX_\w+) = (\d+);", source))
    max_ranks, max_blocks = int(found["MAX_RANKS"]), int(found["MAX_BLOCKS"])
    assert max_ranks == peer_sum.MAX_RANKS
    assert max_blocks >= peer_sum.BLOCKS
    words = max_blocks + max_blocks * max_ranks  # of 4 bytes, before the slots
    assert 4 * words + 2 * peer_sum.MOST_BYTES == peer_sum.BUFFER_BYTES
    assert 4 * words % 16 == 0, "slots are read 16 bytes at a time"
    bound = re.search(r"__launch_bounds__\((\d+)\)", source)
    assert bound is not None
    assert int(bound[1]) == peer_sum.THREADS
    assert max_ranks <= peer_sum.THREADS, "a thread for each signal"
    for kernel in peer_sum._KERNELS.values():
        assert f"ALL_REDUCE({kernel}," in source
