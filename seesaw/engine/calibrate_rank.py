"""The process of one rank while the machine is measured: `python -m seesaw.engine.calibrate_rank
JSON`, started by `calibrate_processes.py` only.

Runs all cases round by round, in step with the other ranks, so that what they share is shared as
it is when an engine runs; writes one line of JSON per round and one of samples to standard output.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from seesaw.distributed import Kind, RankGroup
from seesaw.engine.build import torch_dtype
from seesaw.engine.calibrate_cases import Case, Sizes, device_cases, runs_kernels
from seesaw.engine.calibrate_model import LayerSizes
from seesaw.engine.host import usable_cores
from seesaw.layers.comm import Comm
from seesaw.layout.parallel import ParallelLayout

MOST_RUNS = 2000
"""Of a case in one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTask:
    """What a rank is to measure. Without `num_threads` it has those that one device would have."""

    rank: int
    num_ranks: int
    device: str
    num_threads: int | None
    cores: list[int] | None
    collectives: Kind
    store_path: str
    shared_fd: int | None
    dtypes: list[str]
    rounds: int
    sample_s: float
    sizes: Sizes
    link_bytes: list[int]
    exchange_bytes: int
    links_only: bool = False
    """Nothing of the device itself."""

    @property
    def slot_bytes(self) -> int:
        """What `send` hands over, so that it waits for nobody, as in an engine."""
        return max(self.link_bytes, default=0)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RankTask:
        values = json.loads(text)
        sizes = values.pop("sizes")
        layer = LayerSizes(**sizes.pop("layer"))
        return cls(**values, sizes=Sizes(**sizes, layer=layer))


class RankMeasurement:
    def __init__(self, task: RankTask) -> None:
        self._task = task
        if task.cores is not None:
            os.sched_setaffinity(0, task.cores)
        self._device = torch.device(task.device)
        self._num_threads = self._use_threads()
        self._close: list[Callable[[], None]] = []
        self._cpu_shares: list[float] = []
        self._group: RankGroup | None = None
        self._all: Comm | None = None
        if task.num_ranks > 1:
            self._group = RankGroup.connect(
                task.rank,
                task.num_ranks,
                self._device,
                task.collectives,
                task.store_path,
                shared_fd=task.shared_fd,
                slot_bytes=task.slot_bytes,
            )
            self._all = self._group.tp_comm(ParallelLayout(tp=task.num_ranks))

    def _use_threads(self) -> int:
        """As an engine would (`threads.py`): of seesaw's own kernels, or of torch."""
        given = self._task.num_threads
        if runs_kernels(self._device, [torch_dtype(name) for name in self._task.dtypes]):
            from seesaw import _cpu

            threads = given or max(1, int(usable_cores()))
            _cpu.configure_threads(threads)
            torch.set_num_threads(1)
            return threads
        if given is not None:
            torch.set_num_threads(given)
        return torch.get_num_threads()

    @torch.inference_mode()
    def run(self) -> Iterator[dict[str, object]]:
        """After each round how far it is; at the end the seconds per run, by case and round."""
        task = self._task
        dtypes = [torch_dtype(name) for name in task.dtypes]
        cases: list[Case] = []
        if not task.links_only:
            cases += device_cases(task.sizes, self._device, dtypes, self._close)
        if self._group is not None:
            cases += _link_cases(self._group, task, dtypes[0])
        runs = {case.name: self._runs_of(case) for case in cases}
        yield {"done": 1}
        samples: dict[str, list[float]] = {case.name: [] for case in cases}
        for number in range(task.rounds):
            for case in cases:
                seconds = self._sample(case, runs[case.name])
                if case.takes_part:
                    samples[case.name].append(seconds)
            yield {"done": 2 + number}
        yield {
            "samples": samples,
            "amounts": {case.name: case.amount for case in cases},
            "num_threads": self._num_threads,
            "cpu_share": statistics.median(self._cpu_shares) if self._cpu_shares else 1.0,
        }
        for close in self._close:
            close()
        if self._group is not None:
            self._group.close()

    def _runs_of(self, case: Case) -> int:
        """Runs in a sample: the same on all ranks, which is what links need."""
        self._sample(case, 1)
        once_s = self._mean(self._sample(case, 1))
        return max(1, min(MOST_RUNS, round(self._task.sample_s / once_s)))

    def _sample(self, case: Case, runs: int) -> float:
        """Seconds of one run, over `runs` of them that all ranks begin together."""
        self._mean(0.0)
        if self._device.type == "cuda":
            return self._cuda_sample(case, runs)
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        for _ in range(runs):
            case.run()
        seconds = time.perf_counter() - began_s
        if case.keeps_busy:
            cpu_s = time.process_time() - cpu_began_s
            self._cpu_shares.append(cpu_s / seconds / self._num_threads)
        return seconds / runs

    def _cuda_sample(self, case: Case, runs: int) -> float:
        begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        begin.record()
        for _ in range(runs):
            case.run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / runs

    def _mean(self, value: float) -> float:
        """Over the ranks; a barrier as well."""
        if self._all is None:
            return value
        x = torch.tensor([value], device=self._device)
        return float(self._all.all_reduce(x)) / self._task.num_ranks


def _link_cases(group: RankGroup, task: RankTask, dtype: torch.dtype) -> Iterator[Case]:
    """Sums over every number of ranks that divides all, all groups of them at once; hidden states
    to the next rank and back, and weights both ways, in pairs of neighbours. With an odd number of
    ranks the last has none."""
    device = torch.device(task.device)
    peer = group.rank ^ 1
    paired = peer < group.num_ranks
    for ranks in range(2, task.num_ranks + 1):
        if task.num_ranks % ranks:
            continue
        comm = group.tp_comm(ParallelLayout(tp=ranks, pp=task.num_ranks // ranks))
        for nbytes in task.link_bytes:
            x = torch.zeros(nbytes // dtype.itemsize, dtype=dtype, device=device)
            run = partial(comm.all_reduce, x)
            yield Case(f"all_reduce/{ranks}/{nbytes}", float(nbytes), run)
    for nbytes in task.link_bytes:
        x = torch.zeros(nbytes // dtype.itemsize, dtype=dtype, device=device)
        turn = partial(_there_and_back, group, x)
        yield Case(f"send/{nbytes}", 2.0 * nbytes, turn, takes_part=paired)
    exchange = group.peer_exchange()
    ours, theirs = torch.zeros((2, task.exchange_bytes), dtype=torch.uint8, device=device)
    pieces = ([(peer, ours)], [(peer, theirs)]) if paired else ([], [])
    both = partial(exchange.exchange, *pieces)
    yield Case("peer", float(len(ours)), both, takes_part=paired)


def _there_and_back(group: RankGroup, x: torch.Tensor) -> None:
    peer = group.rank ^ 1
    if peer >= group.num_ranks:
        return
    if group.rank < peer:
        group.send(x, peer)
        group.recv(x.shape, x.dtype, peer)
    else:
        group.send(group.recv(x.shape, x.dtype, peer), peer)


def main(text: str) -> None:
    for line in RankMeasurement(RankTask.from_json(text)).run():
        print(json.dumps(line), flush=True)
    sys.stdout.flush()
    # Threads of libraries must not hold the process.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
