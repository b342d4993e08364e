"""Pieces of weights from rank to rank, many at once.

On a group of its own: NCCL must not see these beside unordered collectives of the same group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


class PeerExchange:
    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """Send and fill contiguous tensors, (peer, tensor) each; on return all is done (on a GPU:
        in the order of the current stream).

        What rank a sends to b must be what b receives from a: as many, in this order, of these
        sizes. Empty tensors are left out on both sides. A rank with nothing to move returns at
        once.
        """
        operations = [
            dist.P2POp(operation, x, peer, self._group)
            for operation, pieces in ((dist.isend, sends), (dist.irecv, receives))
            for peer, x in pieces
            if x.numel()
        ]
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
