"""One of two ranks joined over TCP: `python -m tests.faults.link_rank TASK RANK STORE`.

Says `joined`, then does its task until that ends or fails, and says how.
"""

from __future__ import annotations

import sys
import time

import torch

from seesaw.distributed import RankGroup

TIMEOUT_S = 60.0
READER_IS_BUSY_S = 9.0
NUM_FLOATS = 1 << 20
"""More than sockets and the kernel hold on the way."""


def sums(group: RankGroup) -> None:
    """Both always have something on its way."""
    comm = group.tp_comm(two())
    while True:
        comm.all_reduce(torch.ones(4096))


def waits(group: RankGroup) -> None:
    """Rank 1 waits for rank 0, which waits for nobody; nothing is on its way."""
    if group.rank == 1:
        group.recv((4,), torch.float32, 0)
    time.sleep(TIMEOUT_S)


def late_reader(group: RankGroup) -> None:
    """Rank 1 reads nothing for longer than a link may be silent, and then slowly."""
    if group.rank == 0:
        group.send(torch.full((NUM_FLOATS,), 3.0), 1)
        assert group.recv((1,), torch.float32, 1).item() == 5.0
    else:
        time.sleep(READER_IS_BUSY_S)
        assert group.recv((NUM_FLOATS,), torch.float32, 0).sum().item() == 3.0 * NUM_FLOATS
        group.send(torch.tensor([5.0]), 0)


def two():
    from seesaw.layout import ParallelLayout

    return ParallelLayout(1, 2, 1)


def main(task: str, rank: int, store: str) -> None:
    group = RankGroup.connect(rank, 2, torch.device("cpu"), "tcp", store, timeout_s=TIMEOUT_S)
    group.tp_comm(two())
    print("joined", flush=True)
    try:
        {"sums": sums, "waits": waits, "late_reader": late_reader}[task](group)
    except RuntimeError as error:
        print(f"failed: {error}", flush=True)
        return
    print("done", flush=True)
    group.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
