"""Changes of layout on ranks: every tensor bit for bit that of a fresh load, every byte counted."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from seesaw.config import EngineConfig
from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, PlainFormat, layouts_for
from seesaw.weights.checkpoint import open_checkpoint
from seesaw.weights.hashes import param_hashes
from seesaw.weights.image import WeightImage
from seesaw.weights.reshard import Resharder
from tests.checkpoints import FAMILIES
from tests.layout.models import make_model, models_and_pairs
from tests.weights.replica import Replica, attached, fresh_load

VARIANTS = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72,
               "intermediate_size": 97, "vocab_size": 321, "tie_word_embeddings": True,
               "num_hidden_layers": 5}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True,
               "num_hidden_layers": 4}),
]  # fmt: skip


@contextlib.contextmanager
def loaded_image(checkpoint, dtype: torch.dtype) -> Iterator[WeightImage]:
    """As a rank has it: attached, the creator's gone."""
    image = WeightImage.create(PlainFormat(checkpoint.spec, dtype.itemsize))
    checkpoint.load_image(image, dtype)
    other = attached(image)
    image.close()
    yield other
    other.close()


@pytest.mark.usefixtures("needs_cuda_cpp")
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("family", "overrides"), VARIANTS, ids=[f"{f}-{'-'.join(o)}" for f, o in VARIANTS]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_twenty_changes_equal_a_fresh_load(
    tiny_checkpoint, family, overrides, num_ranks, dtype, device
):
    folder = tiny_checkpoint(family, **overrides)
    checkpoint = open_checkpoint(EngineConfig(model=str(folder)))
    layouts = layouts_for(num_ranks, checkpoint.spec, dp=1)
    assert len(layouts) >= min(num_ranks, 2)
    tensors = {n: t.to(dtype) for n, t in load_file(folder / "model.safetensors").items()}
    choices = [{"peers": True}, {"peers": False}, {"peers": True, "reload": "all"}]
    with loaded_image(checkpoint, dtype) as image:
        for pair in combinations_with_replacement(layouts, 2):
            for choice in choices if pair[0] != pair[1] else choices[:1]:
                replica = Replica(
                    checkpoint.spec, pair, image, dtype, torch.device(device), **choice
                )
                walk(replica, checkpoint.spec, tensors)


def walk(replica: Replica, spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> None:
    """There and back ten times; nothing is allocated on the way."""
    expected = [
        [param_hashes(fresh_load(spec, tensors, ranges)) for ranges in ranks]
        for ranks in replica.ranges
    ]
    addresses = replica.addresses()
    replica.run(replica.first)
    assert replica.hashes(0) == expected[0]
    for _ in range(10):
        for index in (1, 0):
            replica.run(replica.changes[index])
            assert replica.hashes(index) == expected[index]
    assert replica.addresses() == addresses


@settings(max_examples=40)
@given(
    models_and_pairs(),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_model_any_pair(
    case: tuple[ModelSpec, ParallelLayout, ParallelLayout],
    dtype: torch.dtype,
    peers: bool,
    seed: int,
) -> None:
    spec, *pair = case
    image = WeightImage.create(PlainFormat(spec, dtype.itemsize))
    content = random.Random(seed).randbytes(image.fmt.image_bytes)
    image.tensor.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    replica = Replica(spec, pair, image, dtype, torch.device("cpu"), peers=peers)
    params = {param.name: param for param in image.fmt.params}

    def assert_holds(index: int) -> None:
        for rank, held in enumerate(replica.params):
            for name, tensor in held[index].items():
                if name not in params:
                    assert tensor is held[index]["model.embed_tokens.weight"]
                    continue
                start = image.fmt.image_offsets[name]
                runs = image.fmt.runs(params[name], replica.ranges[index][rank])
                wanted = b"".join(content[start + r.start :][: r.size] for r in runs)
                assert tensor.view(torch.uint8).numpy().tobytes() == wanted, (rank, name)

    replica.run(replica.first)
    assert_holds(0)
    for index in (1, 0, 1):
        replica.run(replica.changes[index])
        assert_holds(index)
    image.close()


def test_staging_is_as_large_as_the_largest_round_and_no_more() -> None:
    spec = make_model(layers=6)
    fmt = PlainFormat(spec, 2)
    image = WeightImage.create(fmt)
    pair = [ParallelLayout(pp=2), ParallelLayout(tp=2)]
    replica = Replica(spec, pair, image, torch.bfloat16, torch.device("cpu"))
    for rank, resharder in enumerate(replica.resharders):
        sizes = [plan.snapshot_bytes(rank) for plan in replica.changes]
        assert resharder.staging_bytes == max(sizes) > 0
    image.close()


def test_a_plan_that_was_not_named_is_refused() -> None:
    spec = make_model()
    fmt = PlainFormat(spec, 4)
    image = WeightImage.create(fmt)
    pair = [ParallelLayout(pp=2), ParallelLayout(tp=2)]
    replica = Replica(spec, pair, image, torch.float32, torch.device("cpu"))
    alone = Resharder(0, [replica.first], replica.arenas[0], image, None)
    assert alone.staging_bytes == 0
    assert alone.run(replica.first).bytes_by_source["host"] > 0
    with pytest.raises(AssertionError, match="not named beforehand"):
        alone.run(replica.changes[1])
    image.close()


def test_one_rank_loads_all_and_never_moves() -> None:
    spec = make_model(layers=1, vocab=1, query_heads=1, kv_heads=1, mlp=1)
    fmt = PlainFormat(spec, 2)
    image = WeightImage.create(fmt)
    image.tensor.random_(0, 256)
    layout = ParallelLayout()
    replica = Replica(spec, [layout, layout], image, torch.float16, torch.device("cpu"))
    (moved,) = replica.run(replica.first)
    assert moved.bytes_by_source["host"] == sum(fmt.nbytes(param) for param in fmt.params)
    (moved,) = replica.run(replica.changes[1])
    assert moved.bytes_by_source.pop("resident") > 0
    assert set(moved.bytes_by_source.values()) == {0}
    for param in fmt.params:
        held = replica.params[0][1][param.name]
        assert torch.equal(
            held.view(torch.uint8), image.view(param, torch.float16).view(torch.uint8)
        )
    image.close()
