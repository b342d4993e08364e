"""Weights in panels, bit for bit those that reshaping makes of plain ones: packed, loaded, mapped
by ranks, moved between layouts."""

from __future__ import annotations

import itertools
import random
from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from seesaw.config import EngineConfig
from seesaw.layout import PanelFormat, ParallelLayout, PlainFormat, rank_ranges
from seesaw.ops.native import native
from seesaw.weights import load
from seesaw.weights.checkpoint import open_checkpoint
from seesaw.weights.hashes import param_hashes
from seesaw.weights.image import WeightImage
from seesaw.weights.panels import pack, unpack
from seesaw.weights.placement import Run
from tests.checkpoints import FAMILIES, tiny_config, tiny_model
from tests.layout.models import panel_layouts, panel_models_and_pairs
from tests.models import panels as reference
from tests.weights.gguf_files import write_gguf
from tests.weights.replica import Replica, attached, fresh_load

pytestmark = pytest.mark.skipif(native() is None, reason="panels are for the C++ kernels")
CPU = torch.device("cpu")
DTYPES = [torch.bfloat16, torch.float32]
UNEVEN = [
    # three heads of 16 in panels of their own, a last tile of 2, a last panel of one row
    {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144, "head_dim": 16,
     "intermediate_size": 114, "vocab_size": 321, "tie_word_embeddings": True},
    # a KV head for four ranks, heads of two and a half panels
    {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 80, "attention_bias": True,
     "mlp_bias": True, "intermediate_size": 128},
]  # fmt: skip
VARIANTS = [
    *((family, {}) for family in FAMILIES),
    *(("llama", sizes) for sizes in UNEVEN),
    # a last tile of 4 in each expert, a last panel of 4 columns, routers of two panels
    ("qwen3_moe", {"moe_intermediate_size": 36, "hidden_size": 100, "num_experts": 34}),
]
variants = pytest.mark.parametrize(
    ("family", "overrides"), VARIANTS, ids=[f"{f}-{len(o)}" for f, o in VARIANTS]
)


def random_rows(num_rows: int, depth: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 256, (num_rows, depth * dtype.itemsize), dtype=torch.uint8).view(dtype)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of NaN too."""
    return one.shape == other.shape and param_hashes({"": one}) == param_hashes({"": other})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [2, 14, 32, 66, 576])
@pytest.mark.parametrize("num_rows", [1, 15, 32, 33, 100])
def test_packing_is_reshaping_and_comes_back(
    isa: str, num_rows: int, depth: int, dtype: torch.dtype
) -> None:
    rows = random_rows(num_rows, depth, dtype)
    run = Run(0, 0, num_rows, num_rows, num_rows)
    panels = torch.zeros(-(-num_rows // 32), depth, 32, dtype=dtype)
    pack(rows, run, panels)
    assert same_bytes(panels, reference.pack(rows))
    assert same_bytes(unpack(panels, run), rows)


@settings(max_examples=100)
@given(
    target=st.integers(0, 70),
    group=st.integers(1, 80),
    gap=st.integers(0, 40),
    num_rows=st.integers(0, 200),
    depth=st.integers(1, 40).map(lambda half: 2 * half),
    dtype=st.sampled_from(DTYPES),
)
def test_groups_go_to_their_columns_and_nothing_else_changes(
    target: int, group: int, gap: int, num_rows: int, depth: int, dtype: torch.dtype
) -> None:
    run = Run(0, target, num_rows, group, group + gap)
    columns = [target + row // group * (group + gap) + row % group for row in range(num_rows)]
    size = -(-(max(columns, default=0) + 1) // 32) * 32
    before, rows = random_rows(size, depth, dtype), random_rows(num_rows, depth, dtype)
    # Panels and rows that are part of something larger.
    panels = torch.empty(size // 32, depth + 4, 32, dtype=dtype)[:, 2:-2]
    panels.copy_(reference.pack(before))
    wide = torch.empty(num_rows, depth + 6, dtype=dtype)[:, 2:-4]
    wide.copy_(rows)
    pack(wide, run, panels)
    after = before.clone()
    after[columns] = rows
    assert same_bytes(panels, reference.pack(after))
    assert same_bytes(unpack(panels, run), rows)


def test_what_would_leave_its_tensor_is_refused() -> None:
    panels = torch.zeros(2, 8, 32)
    for rows, run in (
        (torch.zeros(3, 8), Run(0, 62, 3, 3, 3)),
        (torch.zeros(4, 8), Run(0, 30, 4, 2, 33)),
        (torch.zeros(3, 6), Run(0, 0, 3, 3, 3)),
        (torch.zeros(3, 8).bfloat16(), Run(0, 0, 3, 3, 3)),
    ):
        with pytest.raises(AssertionError):
            pack(rows, run, panels)
    assert not panels.any()


@variants
@pytest.mark.parametrize("dtype", DTYPES)
def test_loaded_into_panels(tiny_checkpoint, family, overrides, dtype):
    checkpoint = open_checkpoint(EngineConfig(model=str(tiny_checkpoint(family, **overrides))))
    calls: list[tuple[int, int]] = []
    found = checkpoint.load_params(
        dtype, CPU, lambda done, total: calls.append((done, total)), "panels"
    )
    plain = checkpoint.load_params(dtype, CPU)
    assert param_hashes(found) == param_hashes(reference.panel_params(checkpoint.spec, plain))
    assert found.keys() == plain.keys()
    assert (found["lm_head.weight"] is found["model.embed_tokens.weight"]) == (
        checkpoint.spec.tie_word_embeddings
    )
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert calls[-1] == (total, total)
    shapes = {p.name: p.shape for p in PanelFormat(checkpoint.spec, dtype.itemsize).params}
    assert {name: found[name].shape for name in shapes} == shapes


@pytest.mark.parametrize("encoding", ["BF16", "F16", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_loaded_from_a_gguf(tmp_path, tiny_checkpoint, family, encoding):
    """Rows in pairs, blocks of 32 numbers, norms plus one."""
    path = tmp_path / "model.gguf"
    model = tiny_model(tiny_config(family))
    write_gguf(path, family, model, encoding=encoding, tokenizer=tiny_checkpoint(family))
    checkpoint = open_checkpoint(EngineConfig(model=str(path)))
    for dtype in DTYPES:
        found = checkpoint.load_params(dtype, CPU, None, "panels")
        plain = checkpoint.load_params(dtype, CPU)
        assert param_hashes(found) == param_hashes(reference.panel_params(checkpoint.spec, plain))


def test_rows_are_read_in_chunks(tiny_checkpoint, tmp_path, monkeypatch):
    """However small: gates in tiles, heads with pads, heads stored in pairs are put together."""
    models = [tiny_checkpoint("llama", **sizes) for sizes in UNEVEN]
    paired = tmp_path / "model.gguf"
    model = tiny_model(tiny_config("llama", head_dim=80))
    write_gguf(paired, "llama", model, encoding="F16", tokenizer=models[0])
    whole = {}
    for chunk in (1 << 20, 1):
        monkeypatch.setattr(load, "PANEL_CHUNK_BYTES", chunk)
        monkeypatch.setattr(load, "CHUNK_ELEMENTS", chunk)
        for path, dtype in itertools.product([*models, paired], DTYPES):
            params = open_checkpoint(EngineConfig(model=str(path))).load_params(
                dtype, CPU, None, "panels"
            )
            hashes = param_hashes(params)
            assert whole.setdefault((path, dtype), hashes) == hashes


@variants
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_run_from_the_image(tiny_checkpoint, family, overrides, dtype):
    """Views of what a fresh load cut to the rank would be; copies only of a shared KV head."""
    folder = tiny_checkpoint(family, **overrides)
    checkpoint = open_checkpoint(EngineConfig(model=str(folder)))
    spec = checkpoint.spec
    tensors = {n: t.to(dtype) for n, t in load_file(folder / "model.safetensors").items()}
    image = WeightImage.create(PanelFormat(spec, dtype.itemsize))
    checkpoint.load_image(image, dtype)
    rank_image = attached(image)
    image.close()
    start, seen = rank_image.tensor.data_ptr(), 0
    for num_ranks in (1, 2, 3, 4):
        for layout in panel_layouts(num_ranks, spec):
            for rank in range(num_ranks):
                ranges = rank_ranges(layout, spec, rank)
                params = rank_image.params(ranges, dtype)
                wanted = reference.panel_params(spec, fresh_load(spec, tensors, ranges))
                assert param_hashes(params) == param_hashes(wanted), (layout, rank)
                for name, tensor in params.items():
                    at = tensor.data_ptr() - start
                    if not 0 <= at < rank_image.nbytes:
                        assert "qkv_proj" in name
                        assert layout.tp > spec.num_key_value_heads
                        continue
                    assert at % 64 == 0, "a panel's rows fill whole cache lines"
                seen += 1
    assert seen > 10
    rank_image.close()


@variants
def test_changes_of_layout_equal_a_fresh_load(tiny_checkpoint, family, overrides):
    folder, dtype = tiny_checkpoint(family, **overrides), random.choice(DTYPES)
    print(f"{dtype=}")
    checkpoint = open_checkpoint(EngineConfig(model=str(folder)))
    spec = checkpoint.spec
    tensors = {n: t.to(dtype) for n, t in load_file(folder / "model.safetensors").items()}
    image = WeightImage.create(PanelFormat(spec, dtype.itemsize))
    checkpoint.load_image(image, dtype)
    for num_ranks in (2, 3, 4):
        for pair in combinations_with_replacement(panel_layouts(num_ranks, spec), 2):
            choices = {"peers": random.choice([True, False])}, {"reload": "all"}
            for choice in choices if pair[0] != pair[1] else choices[:1]:
                replica = Replica(spec, pair, image, dtype, CPU, **choice)
                expected = [
                    [
                        param_hashes(reference.panel_params(spec, fresh_load(spec, tensors, held)))
                        for held in ranks
                    ]
                    for ranks in replica.ranges
                ]
                replica.run(replica.first)
                assert replica.hashes(0) == expected[0], (pair, choice)
                for index in (1, 0, 1):
                    replica.run(replica.changes[index])
                    assert replica.hashes(index) == expected[index], (pair, choice)
    image.close()


@settings(max_examples=40)
@given(panel_models_and_pairs(), st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_views_have_the_bytes_of_their_runs(
    case: tuple[object, ParallelLayout, ParallelLayout], dtype: torch.dtype, seed: int
) -> None:
    spec, layout, _ = case
    for kind in (PanelFormat, PlainFormat):
        image = WeightImage.create(kind(spec, dtype.itemsize))  # type: ignore[arg-type]
        content = random.Random(seed).randbytes(image.fmt.image_bytes)
        image.tensor.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        params = {param.name: param for param in image.fmt.params}
        for rank in range(layout.num_ranks):
            ranges = rank_ranges(layout, spec, rank)  # type: ignore[arg-type]
            for name, tensor in image.params(ranges, dtype).items():
                if name in params:
                    start = image.fmt.image_offsets[name]
                    runs = image.fmt.runs(params[name], ranges)
                    wanted = b"".join(content[start + r.start :][: r.size] for r in runs)
                    found = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                    assert found == wanted, (rank, name)
                    assert tensor.shape == image.fmt.local_shape(params[name], ranges)
        image.close()
