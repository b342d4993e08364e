"""Ranks joined over TCP, two for each task. `python -m tests.faults.link_rank
TASK:RANK:STORE:SPACE:HOST ...` has a process for each, in its network namespace and with its
address.

Each says `TASK RANK joined`, then does its task until that ends or fails, and says how. They are
forked from one process that has loaded torch, which takes more time than all that they compute.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

import torch

from seesaw.distributed import RankGroup

TIMEOUT_S = 60.0
CLONE_NEWNET = 0x40000000
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


def enter(space: str) -> None:
    """The network namespace of that name (os.setns is there from Python 3.12 on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {space}")


def main(task: str, rank: int, store: str, space: str, host: str) -> None:
    def say(what: str) -> None:
        os.write(1, f"{task} {rank} {what}\n".encode())  # at once and in one piece

    enter(space)
    os.environ["SEESAW_COMM_HOST"] = host
    group = RankGroup.connect(rank, 2, torch.device("cpu"), "tcp", store, timeout_s=TIMEOUT_S)
    group.tp_comm(two())
    say("joined")
    try:
        {"sums": sums, "waits": waits, "late_reader": late_reader}[task](group)
    except RuntimeError as error:
        say(f"failed: {error}")
        return
    say("done")
    group.close()


if __name__ == "__main__":
    for text in sys.argv[1:]:
        if os.fork() == 0:
            task, rank, store, space, host = text.split(":")
            main(task, int(rank), store, space, host)
            os._exit(0)
    for _ in sys.argv[1:]:
        os.wait()
