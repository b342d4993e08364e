"""Changes of layout in the background: layers may be used as they land, in whatever order threads
run, and what goes wrong is told to who waits."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import torch

from seesaw.engine.phase_weights import ChangingWeights
from seesaw.errors import EngineDeadError
from seesaw.layout import ParallelLayout, PlainFormat
from seesaw.layout.reshard import ReshardPlan
from seesaw.scheduler.output import Phase
from seesaw.weights.change import Change
from seesaw.weights.hashes import param_hashes
from seesaw.weights.image import WeightImage
from tests.layout.models import make_model
from tests.weights.replica import Replica, on_threads

LAYERS = 6


def unexpected(error: EngineDeadError) -> None:
    pytest.fail(f"nothing was to fail: {error}")


@pytest.fixture
def image() -> Iterator[WeightImage]:
    made = WeightImage.create(PlainFormat(make_model(layers=LAYERS), 2))
    seed = random.randrange(2**31)
    print(f"image(seed={seed})")
    made.tensor.random_(0, 256, generator=torch.Generator().manual_seed(seed))
    yield made
    made.close()


def replica_of(image: WeightImage, *pair: str, **options: object) -> Replica:
    layouts = [ParallelLayout.parse(text) for text in pair]
    spec = make_model(layers=LAYERS)
    device = torch.device("cpu")
    made = Replica(spec, layouts, image, torch.bfloat16, device, **options)  # type: ignore[arg-type]
    made.run(made.first)
    return made


def layer_hashes(replica: Replica, rank: int, index: int, layer: int) -> dict[str, str]:
    part = f".layers.{layer}."
    return param_hashes({n: t for n, t in replica.params[rank][index].items() if part in n})


@pytest.mark.parametrize("options", [{"peers": True}, {"peers": False}, {"reload": "all"}])
@pytest.mark.parametrize("pair", [("pp2", "tp2"), ("pp3", "tp3"), ("pp2-tp2", "tp4")])
def test_a_layer_that_was_waited_for_is_right_whatever_is_on_its_way(image, pair, options):
    replica, fresh = (replica_of(image, *pair, **options) for _ in range(2))
    for index in (1, 0, 1):
        plan = replica.changes[index]
        fresh.run(fresh.changes[index])

        def use(rank: int, index: int = index, plan: ReshardPlan = plan) -> dict[str, int]:
            change = Change(replica.resharders[rank], plan, unexpected)
            for layer in range(*replica.ranges[index][rank].layers):
                change.wait(layer)
                wanted = layer_hashes(fresh, rank, index, layer)
                assert layer_hashes(replica, rank, index, layer) == wanted, f"layer {layer}"
            assert change.has_all, "all layers were waited for"
            moved = change.take_moved()
            assert not change.take_moved()
            change.finish()
            assert len(change.take_spans()) == len(plan.rounds)
            return dict(moved)

        for rank, moved in enumerate(on_threads(replica.num_ranks, use)):
            assert moved == plan.bytes_by_source(rank)
        assert replica.hashes(index) == fresh.hashes(index)


class HeldImage:
    """Lets so many copies through, until told."""

    def __init__(self, image: WeightImage, count: int, error: Exception | None = None) -> None:
        self._image, self._left, self._error = image, count, error
        self.go_on = threading.Event()

    def copy_all(self, wanted: list[tuple[torch.Tensor, int]]) -> None:
        self._left -= 1
        if self._left < 0:
            if self._error is not None:
                raise self._error
            assert self.go_on.wait(60)
        self._image.copy_all(wanted)


def test_the_first_layers_are_there_before_the_last_and_late_ones_are_waited_for(image):
    replica = replica_of(image, "tp2", "pp2", peers=False)
    held = HeldImage(image, 2)
    resharder = replica.resharders[0]
    resharder._image = held  # type: ignore[assignment]
    change = Change(resharder, replica.changes[1], unexpected)
    for layer in (0, 1):
        change.wait(layer)
    assert not change.has_all
    arrived = []

    def wait_for_the_third() -> None:
        change.wait(2)
        arrived.append(held.go_on.is_set())

    waiting = threading.Thread(target=wait_for_the_third)
    waiting.start()
    waiting.join(0.05)  # long enough for a wait that does not wait
    held.go_on.set()
    waiting.join(60)
    change.finish()
    assert arrived == [True]
    replica.resharders[1].run(replica.changes[1])
    fresh = replica_of(image, "tp2", "pp2", peers=False)
    fresh.run(fresh.changes[1])
    assert replica.hashes(1) == fresh.hashes(1)


def test_a_copy_that_fails_is_told_to_who_waits_and_no_layer_before_it_is_lost(image):
    replica = replica_of(image, "tp2", "pp2", peers=False)
    resharder = replica.resharders[0]
    resharder._image = HeldImage(image, 2, OSError("no such page"))  # type: ignore[assignment]
    heard: list[EngineDeadError] = []
    change = Change(resharder, replica.changes[1], heard.append)
    change.wait(0)
    change.wait(1)
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="did not arrive: no such page") as caught:
            change.wait(2)
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(EngineDeadError, match="no such page"):
        change.finish()
    change.join()
    assert not change.has_all
    # Told once by the thread itself: a rank may have nothing to wait for.
    (error,) = heard
    assert "did not arrive: no such page" in str(error)


@pytest.mark.parametrize("pair", [("pp2", "tp2"), ("pp3", "tp3")])
def test_a_phase_waits_for_its_own_layers_alone_and_no_span_is_lost(image, pair):
    """With peers a round is about layers of several stages."""
    replica = replica_of(image, *pair, peers=True)
    names: tuple[Phase, ...] = ("prefill", "decode")

    def use(rank: int) -> list[str]:
        weights = ChangingWeights(
            replica.resharders[rank],
            dict(zip(names, replica.changes, strict=True)),
            {name: replica.ranges[at][rank].layers for at, name in enumerate(names)},
            background=True,
            on_error=unexpected,
        )
        spans: list[str] = []
        for phase in ("decode", "prefill", "decode"):
            weights.begin(phase)
            for layer in range(*replica.ranges[names.index(phase)][rank].layers):
                weights.wait(layer)
            assert not weights.is_changing, "all of its layers were waited for"
        weights.finish()
        spans += [what for what, _, _ in weights.take_spans()]
        weights.begin("prefill")  # whose spans may come before or after the next look
        weights.begin("decode")
        spans += [what for what, _, _ in weights.take_spans()]
        weights.finish()
        spans += [what for what, _, _ in weights.take_spans()]
        weights.close()
        return spans

    plans = [replica.changes[1], replica.changes[0], replica.changes[1]]
    for spans in on_threads(replica.num_ranks, use):
        assert len(spans) == sum(len(plan.rounds) for plan in plans)
