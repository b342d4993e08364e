"""Sums of small tensors over GPUs that map each other's memory, one kernel per rank
(csrc/cuda/peer_all_reduce.cu). Captured into a graph it replays right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

MAX_RANKS = 8
MOST_BYTES = 1 << 20
"""Of a tensor: what one slot takes."""
BLOCKS, THREADS = 32, 512
"""The same in every call; few enough to be on a GPU at once beside what else it does."""
_HEAD_BYTES = 64 * 4 + 64 * MAX_RANKS * 4  # counts and signals of up to 64 blocks
BUFFER_BYTES = _HEAD_BYTES + 2 * MOST_BYTES
"""That each rank gives, zeroed."""
_PACK_BYTES = 16
_KERNELS = {
    torch.float32: "all_reduce_float32",
    torch.bfloat16: "all_reduce_bfloat16",
    torch.float16: "all_reduce_float16",
}


def takes(x: torch.Tensor) -> bool:
    """Whether `PeerSum` adds tensors of this type and size; the same for all ranks."""
    return x.dtype in _KERNELS and x.nbytes <= MOST_BYTES and x.nbytes % _PACK_BYTES == 0


class PeerSum:
    """Of the ranks whose buffers lie at `addresses`, in order of rank, in the memory of this
    process; this one is `rank`. Ranks make the same calls in the same order, each on one stream.
    Compiles the kernel at once."""

    def __init__(self, device: torch.device, rank: int, addresses: Sequence[int]) -> None:
        import numpy

        from seesaw.kernels.nvrtc import function

        assert len(addresses) <= MAX_RANKS, f"{len(addresses)} ranks"
        self._functions: dict[torch.dtype, Any] = {
            dtype: function("peer_all_reduce", name, device) for dtype, name in _KERNELS.items()
        }
        padded = [*addresses, *[0] * (MAX_RANKS - len(addresses))]
        # a struct by value: cupy passes the bytes of an array of one
        self._peers = numpy.array([(padded,)], dtype=[("buffer", numpy.uint64, (MAX_RANKS,))])
        self._rank, self._size = numpy.int32(rank), numpy.int32(len(addresses))
        self._slot_bytes = numpy.int64(MOST_BYTES)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of `x` (contiguous, see `takes`) over the ranks, in place, rounded once from float32;
        same bits on all. Begins on the current stream."""
        import numpy
        from cupy.cuda import ExternalStream

        own = x if x.data_ptr() % _PACK_BYTES == 0 else x.clone()
        stream = torch.cuda.current_stream(x.device)
        self._functions[x.dtype](
            (BLOCKS,),
            (THREADS,),
            (numpy.uint64(own.data_ptr()), numpy.int64(x.nbytes // _PACK_BYTES), self._peers,
             self._rank, self._size, self._slot_bytes),
            stream=ExternalStream(stream.cuda_stream, stream.device.index),
        )  # fmt: skip
        return x if own is x else x.copy_(own)
