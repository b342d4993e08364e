"""A replica in one process: ranks as threads, joined by an exchange in memory that is as unkind as
the contract allows. Beside it what each rank must hold, cut from Hugging Face's tensors by hand."""

from __future__ import annotations

import os
import queue
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from seesaw.families.spec import ModelSpec
from seesaw.layout import (
    ParallelLayout,
    RankRanges,
    ReshardPlan,
    plan_arena,
    plan_reshard,
    rank_ranges,
)
from seesaw.weights.arena import Arena
from seesaw.weights.hashes import param_hashes
from seesaw.weights.image import WeightImage
from seesaw.weights.reshard import Moved, Resharder

Result = TypeVar("Result")
TIMEOUT_S = 60


class ThreadExchange:
    """An `Exchange`: spoils what is to be received before anything arrives, and passes on the
    sender's own tensors, read only when the receiver gets to them."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, int], queue.Queue[torch.Tensor]] = {}
        self._receipts: dict[tuple[int, int], queue.Queue[None]] = {}

    def of(self, rank: int) -> _Member:
        return _Member(self, rank)

    def line(self, sender: int, receiver: int) -> queue.Queue[torch.Tensor]:
        # Both ends may be the first to ask, at the same time: `setdefault` gives them the same one.
        return self._lines.setdefault((sender, receiver), queue.Queue())

    def receipts(self, receiver: int, sender: int) -> queue.Queue[None]:
        return self._receipts.setdefault((receiver, sender), queue.Queue())


class _Member:
    def __init__(self, exchange: ThreadExchange, rank: int) -> None:
        self._exchange, self._rank = exchange, rank

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        assert sends or receives, "called for nothing"
        line, receipts = self._exchange.line, self._exchange.receipts
        for _, target in receives:
            target.fill_(0xEE)
        for peer, content in sends:
            assert peer != self._rank
            assert content.is_contiguous()
            assert content.dtype == torch.uint8
            _finish_work(content)
            line(self._rank, peer).put(content)
        for peer, target in receives:
            content = line(peer, self._rank).get(timeout=TIMEOUT_S)
            assert content.shape == target.shape
            target.copy_(content)
            _finish_work(target)
            receipts(self._rank, peer).put(None)
        for peer, _ in sends:
            receipts(peer, self._rank).get(timeout=TIMEOUT_S)


def _finish_work(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


class Replica:
    """Ranks of a replica over two layouts; `image` has the weights and stays the caller's."""

    def __init__(
        self,
        spec: ModelSpec,
        pair: Sequence[ParallelLayout],
        image: WeightImage,
        dtype: torch.dtype,
        device: torch.device,
        *,
        peers: bool = True,
        reload: str = "missing",
    ) -> None:
        self.num_ranks = pair[0].num_ranks
        self.image = image
        fmt = image.fmt
        self.ranges = [
            [rank_ranges(layout, spec, rank) for rank in range(self.num_ranks)] for layout in pair
        ]
        arena_plans = [plan_arena(fmt, self.ranges, rank) for rank in range(self.num_ranks)]
        self.first = plan_reshard(fmt, None, self.ranges[0], arena_plans, old_index=0, new_index=0)
        self.changes = [
            plan_reshard(
                fmt, self.ranges[1 - new], self.ranges[new], arena_plans,
                old_index=1 - new, new_index=new, peers=peers, reload=reload,  # type: ignore[arg-type]
            )
            for new in (0, 1)
        ]  # fmt: skip
        self.arenas = [Arena(plan, device) for plan in arena_plans]
        for arena in self.arenas:
            arena.bytes.fill_(0xDD)
        self.params = [
            [
                arena.params(fmt, index, self.ranges[index][rank], dtype)
                for index in range(len(pair))
            ]
            for rank, arena in enumerate(self.arenas)
        ]
        exchange = ThreadExchange()
        self.resharders = [
            Resharder(rank, [self.first, *self.changes], arena, image, exchange.of(rank))
            for rank, arena in enumerate(self.arenas)
        ]

    def run(self, plan: ReshardPlan) -> list[Moved]:
        """On all ranks; the bytes that were moved must be those of the plan."""
        moved = on_threads(self.num_ranks, lambda rank: self.resharders[rank].run(plan))
        for rank, found in enumerate(moved):
            assert found.bytes_by_source == plan.bytes_by_source(rank)
            assert found.seconds > 0
        return moved

    def hashes(self, index: int) -> list[dict[str, str]]:
        """Of each rank, which is in layout `index`."""
        return [param_hashes(params[index]) for params in self.params]

    def addresses(self) -> list[tuple[int, int]]:
        return [
            (arena.bytes.data_ptr(), resharder._staging.data_ptr())
            for arena, resharder in zip(self.arenas, self.resharders, strict=True)
        ]


def on_threads(num_ranks: int, task: Callable[[int], Result]) -> list[Result]:
    """`task(rank)` on a thread each; the first error, if any, that is not a wait for another's."""
    with ThreadPoolExecutor(num_ranks) as threads:
        futures = [threads.submit(task, rank) for rank in range(num_ranks)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, queue.Empty)):
        raise error
    return [future.result() for future in futures]


def attached(image: WeightImage) -> WeightImage:
    """The same image as another rank has it."""
    return WeightImage.attach(os.dup(image.fd), image.fmt)


def fresh_load(
    spec: ModelSpec, tensors: Mapping[str, torch.Tensor], ranges: RankRanges
) -> dict[str, torch.Tensor]:
    """What a rank must hold, from HF's tensors by name, in the way that the formats are described
    and by no code of theirs."""
    first = ranges.layers.start == 0
    last = ranges.layers.stop == spec.num_hidden_layers
    held: dict[str, torch.Tensor] = {}
    embedding = "model.embed_tokens.weight"
    tied = spec.tie_word_embeddings
    if first or (last and tied):
        held[embedding] = tensors[embedding][slice(*ranges.vocab)]
        if tied:
            held["lm_head.weight"] = held[embedding]
    if last:
        held["model.norm.weight"] = tensors["model.norm.weight"]
        if not tied:
            held["lm_head.weight"] = tensors["lm_head.weight"][slice(*ranges.vocab)]
    for layer in range(*ranges.layers):
        prefix = f"model.layers.{layer}."
        found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        held |= {prefix + name: tensor for name, tensor in _of_layer(spec, found, ranges)}
    return {name: tensor.contiguous() for name, tensor in held.items()}


def _of_layer(
    spec: ModelSpec, tensors: Mapping[str, torch.Tensor], ranges: RankRanges
) -> Iterator[tuple[str, torch.Tensor]]:
    group = spec.num_attention_heads // spec.num_key_value_heads
    mlp = slice(*ranges.mlp)
    dim = spec.head_dim
    yield from _experts(tensors, ranges)
    for name, tensor in tensors.items():
        if ".experts." in name:
            continue
        if ".gate." in name:
            yield "mlp.gate.weight", tensor
        elif ".q_proj." in name:
            q = tensor.unflatten(0, (-1, dim))
            k, v = (
                tensors[name.replace("q_proj", part)].unflatten(0, (-1, dim))
                for part in ("k_proj", "v_proj")
            )
            heads = []
            for head in range(*ranges.kv_heads):
                own = range(head * group, (head + 1) * group)
                heads += [q[i] for i in own if i in range(*ranges.query_heads)] + [k[head], v[head]]
            yield name.replace("q_proj", "qkv_proj"), torch.cat(heads)
        elif ".gate_proj." in name:
            up = tensors[name.replace("gate_proj", "up_proj")]
            yield name.replace("gate_proj", "gate_up_proj"), torch.cat([tensor[mlp], up[mlp]])
        elif name.endswith("o_proj.weight"):
            columns = tensor.unflatten(1, (-1, dim))[:, slice(*ranges.query_heads)]
            yield name, columns.flatten(1).T
        elif name.endswith("down_proj.weight"):
            yield name, tensor[:, mlp].T
        elif all(part not in name for part in (".k_proj.", ".v_proj.", ".up_proj.")):
            yield name, tensor


def _experts(
    tensors: Mapping[str, torch.Tensor], ranges: RankRanges
) -> Iterator[tuple[str, torch.Tensor]]:
    found: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if ".experts." in name:
            _, _, expert, projection, _ = name.split(".")
            found[int(expert)][projection] = tensor
    if not found:
        return
    own = [found[expert] for expert in range(*ranges.experts)]
    gate, up, down = ("w1", "w3", "w2") if "w1" in own[0] else ("gate_proj", "up_proj", "down_proj")
    gate_up = torch.stack([torch.cat([one[gate], one[up]]) for one in own])
    yield "mlp.experts.gate_up_proj.weight", gate_up
    yield "mlp.experts.down_proj.weight", torch.stack([one[down].T for one in own])
