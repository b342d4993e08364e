"""Loads the replicas of several ranks: host image and tiers, worker processes, a setup for each."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable

from seesaw.distributed import new_shared_file
from seesaw.engine.build import tier_shape, torch_dtype
from seesaw.engine.host import usable_cores
from seesaw.engine.messages import RankSetup
from seesaw.engine.predict import predict_bytes
from seesaw.engine.rank_executor import RankExecutor
from seesaw.engine.ranks import Ranks
from seesaw.engine.replicas import Replicas
from seesaw.kvcache.tier import HostTier
from seesaw.layout.formats import make_format
from seesaw.scheduler.scheduler import Scheduler
from seesaw.weights.checkpoint import Checkpoint
from seesaw.weights.image import WeightImage


def load_ranks(
    schedulers: list[Scheduler], setup: RankSetup, checkpoint: Checkpoint,
    progress: Callable[[int, int], None] | None, ranks: Ranks | None,
) -> Replicas:  # fmt: skip
    """A process per device. They start while the host image is read, which they share."""
    dp, size = len(schedulers), setup.num_ranks
    fmt = make_format(setup.weights, setup.spec, torch_dtype(setup.dtype).itemsize)
    keep = ranks is not None
    release = contextlib.ExitStack()  # what the executor lets go at its end
    with contextlib.ExitStack() as undo:
        undo.callback(release.close)
        image = WeightImage.create(fmt)
        release.callback(image.close)
        tiers: list[HostTier] = []
        for _ in range(dp if setup.tier is not None else 0):
            tiers.append(HostTier.create(tier_shape(setup)))
            release.callback(tiers[-1].close)
        links: list[int] = []
        for _ in range(dp if setup.collectives == "shm" and size > 1 else 0):
            links.append(new_shared_file(size, setup.slot_bytes))
            release.callback(os.close, links[-1])
        if ranks is None:
            ranks = Ranks(dp * size)
            release.callback(ranks.close, kill=True)
        assert ranks.num_ranks == dp * size, f"{ranks.num_ranks} ranks for {dp} x {size}"
        checkpoint.load_image(image, torch_dtype(setup.dtype), progress)
        files = [
            [
                image.fd,
                *(tier.fd for tier in tiers[replica : replica + 1]),
                *links[replica : replica + 1],
            ]
            for replica in range(dp)
        ]
        executor = RankExecutor(
            ranks,
            [_of_rank(setup, rank, ranks) for rank in range(dp * size)],
            [files[rank // size] for rank in range(dp * size)],
            keep_ranks=keep,
            released=release.close,
        )
        undo.callback(executor.shutdown)
        executor.wait_ready()
        undo.pop_all()
    if setup.prefill == setup.decode:
        image.close()  # nothing will be read from it again
    return Replicas(
        executor,
        schedulers,
        predict=predict_bytes(setup),
        commit_tier=(lambda replica, blocks: tiers[replica].commit(blocks)) if tiers else None,
    )


def _of_rank(setup: RankSetup, rank: int, ranks: Ranks) -> RankSetup:
    """`rank` counts over all replicas. Each setup of the same processes has a store of its own."""
    replica, own = divmod(rank, setup.num_ranks)
    device = f"cuda:{rank}" if setup.device.startswith("cuda") else setup.device
    store = f"{ranks.folder}/store-{ranks.num_setups}-{replica}"
    if setup.pinned and setup.cores is not None:
        cores: list[int] | None = setup.cores[rank * setup.num_threads :][: setup.num_threads]
    else:
        cores = cores_of_rank(rank, ranks.num_ranks, setup.num_threads)
    return dataclasses.replace(setup, rank=own, device=device, store_path=store, cores=cores)


def cores_of_rank(rank: int, num_ranks: int, num_threads: int) -> list[int] | None:
    """Cores of their own for ranks on the CPU, where there are enough."""
    usable = sorted(os.sched_getaffinity(0))
    if num_ranks * num_threads > min(len(usable), int(usable_cores())):
        return None
    return usable[rank * num_threads : (rank + 1) * num_threads]
