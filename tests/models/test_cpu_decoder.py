"""The decoder on C++ kernels against transformers: every family, any chunking, both forms of KV
tiles, every instruction set, ranks of a stage.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.layers.comm import ALONE, Comm
from seesaw.layout import ParallelLayout, RankRanges, rank_ranges
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder
from seesaw.ops.native import native
from tests.checkpoints import FAMILIES, SPARSE_FAMILIES, VOCAB_SIZE, tiny_config, tiny_model
from tests.models.fuse import fused_params
from tests.models.harness import Rows
from tests.models.panels import panel_params
from tests.models.ranks import run_ranks, slice_params, stage_comms

pytestmark = pytest.mark.skipif(native() is None, reason="seesaw._cpu is not built")

LENGTHS = (1, 2, 70, 33, 48)
VARIANTS = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144}),
    ("llama", {"tie_word_embeddings": True, "vocab_size": 333}),
    ("llama", {"head_dim": 80, "intermediate_size": 90}),
    ("mistral", {"sliding_window": 1}),
    ("gemma3", {"final_logit_softcapping": 5.0}),
    ("mixtral", {"num_local_experts": 1, "num_experts_per_tok": 1, "intermediate_size": 52}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 4, "sliding_window": 20}),
    ("qwen3_moe", {"norm_topk_prob": False, "num_experts": 40, "mlp_only_layers": []}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "moe_intermediate_size": 132}),
]
IDS = [f"{family}-{'-'.join(overrides) or 'plain'}" for family, overrides in VARIANTS]


@pytest.fixture
def isas() -> Iterator[list[str]]:
    """Instruction sets that this processor has, slowest first; the present one is restored."""
    cpu = native()
    assert cpu is not None
    before = cpu.isa()
    names = ["generic", "avx2", "avx512", "avx512bf16"]
    yield names[: names.index(cpu.best_isa()) + 1]
    cpu.set_isa(before)


def sequences(vocab_size: int = VOCAB_SIZE) -> list[torch.Tensor]:
    return [torch.randint(vocab_size, (length,)) for length in LENGTHS]


def parts_of(model: Any) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """Spec and plain fused parameters of a transformers model."""
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    return spec_from_hf(config), fused_params(model)


def random_parts(
    family: str, dtype: str = "float32", **overrides: Any
) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    return parts_of(tiny_model(tiny_config(family, **overrides), dtype=dtype))


def random_decoder(family: str, dtype: str = "float32", **overrides: Any) -> CpuDecoder:
    spec, plain = random_parts(family, dtype, **overrides)
    return CpuDecoder(spec, panel_params(spec, plain))


def reference_logits(model: Any, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(input_ids=ids[None]).logits[0].float() for ids in tokens]


def error(got: list[torch.Tensor], expected: list[torch.Tensor], middle: bool = False) -> float:
    """Root mean square of the difference, as a share of that of `expected`; `middle`: that of the
    median token."""
    squares = (torch.cat(got) - torch.cat(expected)).square().mean(-1)
    found = squares.median() if middle else squares.mean()
    return float((found / torch.cat(expected).square().mean()).sqrt())


@pytest.mark.parametrize(("family", "overrides"), VARIANTS, ids=IDS)
def test_float32_logits_equal_those_of_transformers(family: str, overrides: dict[str, Any]) -> None:
    model = tiny_model(tiny_config(family, **overrides))
    spec, plain = parts_of(model)
    cpu = CpuDecoder(spec, panel_params(spec, plain))
    tokens = sequences()
    expected = reference_logits(model, tokens)
    for block_size, panels in ((32, True), (64, True), (32, False), (1, False), (16, False)):
        got = Rows(cpu, tokens, block_size, panels=panels).step(LENGTHS)
        torch.testing.assert_close(torch.cat(got), torch.cat(expected), atol=2e-4, rtol=1e-4)


def test_attention_may_have_a_soft_cap() -> None:
    spec, plain = random_parts("qwen3")
    spec = dataclasses.replace(spec, attn_soft_cap=0.5)
    tokens = sequences()
    expected = torch.cat(Rows(Decoder(spec, plain), tokens, 16).step(LENGTHS))
    cpu = CpuDecoder(spec, panel_params(spec, plain))
    got = torch.cat(Rows(cpu, tokens, 32, panels=True).step(LENGTHS))
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_instruction_set_is_close_in_bfloat16(family: str, isas: list[str]) -> None:
    """As close to float32 over the same weights as transformers in bfloat16, within 20%. With
    experts of the median token, within half: some tokens go to others than in float32, and are far
    from it."""
    model = tiny_model(tiny_config(family), dtype="bfloat16")
    spec, params = parts_of(model)
    cpu = CpuDecoder(spec, panel_params(spec, params))
    tokens = sequences()
    rough = reference_logits(model, tokens)
    exact = reference_logits(model.float(), tokens)
    middle = family in SPARSE_FAMILIES
    allowed = 1.5 if middle else 1.2
    rough_error = error(rough, exact, middle)
    module = native()
    assert module is not None
    for isa in isas:
        module.set_isa(isa)
        for panels in (True, False):
            got = error(Rows(cpu, tokens, 32, panels=panels).step(LENGTHS), exact, middle)
            assert got < allowed * rough_error, (
                f"{isa}, panels={panels}: {got} against {rough_error}"
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma3", *SPARSE_FAMILIES])
def test_any_chunks_give_the_same_bits(family: str, dtype: str) -> None:
    """And any company: rows join and leave the batch."""
    cpu = random_decoder(family, dtype)
    tokens = sequences()
    whole = Rows(cpu, tokens, 32, panels=True).step(LENGTHS)
    rows = Rows(cpu, tokens, 32, panels=True)
    parts: list[list[torch.Tensor]] = [[] for _ in tokens]
    while any(left := [len(ids) - done for ids, done in zip(tokens, rows.done, strict=True)]):
        counts = [min(n, random.choice((0, 1, 1, 3, 20))) for n in left]
        if any(counts):
            running = [row for row, count in enumerate(counts) if count]
            for row, logits in zip(running, rows.step(counts), strict=True):
                parts[row].append(logits)
    for got, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(torch.cat(got), expected, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "qwen3_moe"])
def test_layers_may_be_cut_anywhere(family: str) -> None:
    cpu = random_decoder(family)
    tokens = sequences()
    whole = torch.cat(Rows(cpu, tokens, 32, panels=True).step(LENGTHS))
    for cuts in ((1,), (2,), (1, 2), (0, 3)):
        got = torch.cat(Rows(cpu, tokens, 32, panels=True).step(LENGTHS, cuts))
        torch.testing.assert_close(got, whole, atol=0, rtol=0)


@pytest.mark.parametrize("own_threads", [1, 3])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_any_number_of_threads_gives_the_same_bits(family: str, own_threads: int) -> None:
    spec, plain = random_parts(family)
    params, tokens = panel_params(spec, plain), sequences()
    expected = Rows(CpuDecoder(spec, params), tokens, 32, panels=True).step(LENGTHS)
    cpu = CpuDecoder(spec, params, own_threads=own_threads)
    got = Rows(cpu, tokens, 32, panels=True).step(LENGTHS)
    torch.testing.assert_close(torch.cat(got), torch.cat(expected), atol=0, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_highest_is_that_of_the_logits(tied: bool) -> None:
    cpu = random_decoder("gemma3", tie_word_embeddings=tied, final_logit_softcapping=20.0)
    rows = Rows(cpu, sequences(), 32, panels=True)
    inputs = rows.inputs(LENGTHS)
    hidden = cpu.run_layers(cpu.embed(inputs.token_ids_T), inputs, rows.kv, 0, 3)
    index = torch.randint(sum(LENGTHS), (17,))
    for some in (index, index[:1], index[:0]):
        value_S, id_S = cpu.highest(hidden, some)
        capped = cpu.logits(hidden, some)
        assert torch.equal(id_S, capped.argmax(-1))
        expected = capped.gather(1, id_S[:, None])[:, 0]
        torch.testing.assert_close(value_S, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_what_is_sampled_is_computed_to_the_end(family: str, dtype: str) -> None:
    """The same bits as with all tokens, in hidden states and in keys and values."""
    cpu = random_decoder(family, dtype=dtype)
    tokens = sequences()
    every, some = (Rows(cpu, tokens, 32, panels=True) for _ in range(2))
    some.tables = every.tables
    for counts in ([min(5, length) for length in LENGTHS], [int(n > 5) for n in LENGTHS]):
        inputs = every.inputs(counts)
        ends = torch.tensor(inputs.cu_seqlens_q_list[1:]) - 1
        for index in (ends, ends[1::2].clone(), ends[:0]):
            inputs.sample_index_S = index
            hidden = cpu.embed(inputs.token_ids_T)
            expected = cpu.run_layers(hidden.clone(), inputs, every.kv, 0, 3)[index]
            got = cpu.run_layers(hidden, inputs, some.kv, 0, 3, only_sampled=True)
            assert torch.equal(got, expected)
            assert torch.equal(some.kv.pool.view(torch.uint8), every.kv.pool.view(torch.uint8))


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral"])
def test_a_call_before_each_layer_changes_no_bit(family: str) -> None:
    cpu = random_decoder(family, dtype="bfloat16")
    every, some = (Rows(cpu, sequences(), 32, panels=True) for _ in range(2))
    some.tables = every.tables
    inputs = every.inputs(LENGTHS)
    hidden = cpu.embed(inputs.token_ids_T)
    expected = cpu.run_layers(hidden.clone(), inputs, every.kv, 0, 3)
    called: list[tuple[int, bool]] = []

    def before(layer: int) -> None:
        untouched = some.kv.pool[layer].view(torch.uint8)
        written = every.kv.pool[:layer].view(torch.uint8)
        assert torch.equal(some.kv.pool[:layer].view(torch.uint8), written), "layers not done"
        called.append((layer, torch.equal(untouched, every.kv.pool[layer].view(torch.uint8))))

    got = cpu.run_layers(hidden, inputs, some.kv, 0, 3, before=before)
    assert called == [(layer, False) for layer in range(3)], "each once, before it begins"
    assert torch.equal(got, expected)


def test_what_is_raised_before_a_layer_ends_the_call() -> None:
    cpu = random_decoder("llama")
    rows = Rows(cpu, sequences(), 32, panels=True)
    inputs = rows.inputs(LENGTHS)
    called: list[int] = []

    def before(layer: int) -> None:
        called.append(layer)
        if layer == 1:
            raise OSError("no weights")

    for _ in range(2):
        called.clear()
        with pytest.raises(OSError, match="no weights"):
            cpu.run_layers(cpu.embed(inputs.token_ids_T), inputs, rows.kv, 0, 3, before=before)
        assert called == [0, 1]


def test_the_lowest_id_of_equals_is_the_highest() -> None:
    spec, plain = random_parts("llama", tie_word_embeddings=False)
    half = VOCAB_SIZE // 2
    plain["lm_head.weight"][half:] = plain["lm_head.weight"][:half].clone()
    cpu = CpuDecoder(spec, panel_params(spec, plain))
    hidden = torch.randn(40, spec.hidden_size)
    index = torch.arange(40)
    _, id_S = cpu.highest(hidden, index)
    assert torch.equal(id_S, cpu.logits(hidden, index)[:, :half].argmax(-1))


# -- ranks of a stage -----------------------------------------------------------------------------


def rank_decoder(
    spec: ModelSpec, plain: dict[str, torch.Tensor], ranges: RankRanges, comm: Comm
) -> CpuDecoder:
    """`ranges` of the model, on one thread of its own: ranks wait for each other."""
    local = panel_params(spec, slice_params(spec, plain, ranges))
    return CpuDecoder(spec, local, ranges, comm, own_threads=1)


CUTS = [
    ("llama", 2, {}),
    ("llama", 2, {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144}),
    ("llama", 2, {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    ("qwen2", 3, {}),
    ("gemma3", 2, {}),
    ("gemma3", 4, {}),
    ("mixtral", 2, {}),
    ("mixtral", 4, {"num_local_experts": 4, "num_experts_per_tok": 3}),
    ("qwen3_moe", 3, {}),
]


@pytest.mark.parametrize(("family", "tp", "overrides"), CUTS)
def test_ranks_of_a_stage_equal_one(family: str, tp: int, overrides: dict[str, Any]) -> None:
    spec, plain = random_parts(family, **overrides)
    tokens = sequences()
    whole = torch.cat(Rows(Decoder(spec, plain), tokens, 16).step(LENGTHS))
    layout, comms = ParallelLayout(tp=tp), stage_comms(tp)
    decoders = [
        rank_decoder(spec, plain, rank_ranges(layout, spec, rank), comms[rank])
        for rank in range(tp)
    ]
    rows = [Rows(decoder, tokens, 32, panels=True) for decoder in decoders]

    def run(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        decoder, inputs = decoders[rank], rows[rank].inputs(LENGTHS)
        hidden = decoder.run_layers(
            decoder.embed(inputs.token_ids_T), inputs, rows[rank].kv, 0, spec.num_hidden_layers
        )
        index_S = inputs.sample_index_S
        return hidden, decoder.logits(hidden, index_S), decoder.highest(hidden, index_S)[1]

    hidden, logits, ids = zip(*run_ranks(comms, run), strict=True)
    assert all(torch.equal(x, hidden[0]) for x in hidden), "ranks differ in bits"
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=2e-4, rtol=1e-4)
    for decoder, own_logits, own_ids in zip(decoders, logits, ids, strict=True):
        assert torch.equal(own_ids, own_logits.argmax(-1) + decoder.ranges.vocab.start)


class Broken:
    """A `Comm` that fails after `sums` of them."""

    size, rank = 2, 0

    def __init__(self, sums: int) -> None:
        self.left = sums

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the other rank is gone")
        return x

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


@pytest.mark.parametrize("sums", [0, 1, 2, 4])
def test_a_sum_that_fails_is_told_and_the_decoder_goes_on(sums: int) -> None:
    spec, plain = random_parts("gemma3")
    ranges = rank_ranges(ParallelLayout(tp=2), spec, 0)
    local = panel_params(spec, slice_params(spec, plain, ranges))
    tokens, comm = sequences(), Broken(sums)
    rows = Rows(CpuDecoder(spec, local, ranges, comm, own_threads=2), tokens, 32, panels=True)
    with pytest.raises(ConnectionError, match="the other rank is gone"):
        rows.step(LENGTHS)
    assert comm.left == -1, "a step goes on without its ranks"
    rows.done = [0] * len(tokens)
    comm.left = 1000
    again = torch.cat(rows.step(LENGTHS))
    healthy = CpuDecoder(spec, local, ranges, Broken(1000), own_threads=1)
    expected = torch.cat(Rows(healthy, tokens, 32, panels=True).step(LENGTHS))
    assert torch.equal(again, expected)


@pytest.mark.parametrize("family", SPARSE_FAMILIES)
def test_reads_of_experts_are_counted(family: str) -> None:
    """Once a step for each expert that some token chose, as `Decoder` does; a rank those it has."""
    spec, plain = random_parts(family)
    tokens = sequences()
    decoders = [Decoder(spec, plain), CpuDecoder(spec, panel_params(spec, plain))]
    rows = [Rows(decoder, tokens, 32, panels=index == 1) for index, decoder in enumerate(decoders)]
    steps = [[1] * 5, [0, 1, 0, 0, 0], [0, 0, 69, 1, 1], [0] * 4 + [1]]
    for counts in steps:
        for one in rows:
            one.step(counts)
    expected, found = (decoder.expert_loads() for decoder in decoders)
    assert found.keys() == expected.keys()
    assert set(found) == {index for index, kind in enumerate(spec.layers) if kind.sparse}
    for layer, loads_E in found.items():
        assert torch.equal(loads_E, expected[layer])
        assert loads_E.sum() >= len(steps) * spec.num_experts_per_tok
        assert loads_E.max() <= len(steps)


@pytest.mark.parametrize(("family", "more"), [("llama", set()), ("qwen3_moe", {"route"})])
def test_the_profile_names_what_ran(family: str, more: set[str]) -> None:
    spec, plain = random_parts(family)
    cpu = CpuDecoder(spec, panel_params(spec, plain), comm=ALONE)
    rows = Rows(cpu, sequences(), 32, panels=True)
    rows.step([1] * 5)
    assert cpu.take_profile() == {}
    cpu.set_profiling(True)
    rows.step([0, 1, 3, 4, 5])
    found = cpu.take_profile()
    layer = {"norms", "qkv", "rope_kv", "attention", "o", "gate_up", "down"}
    assert set(found) == {"embed", "head"} | layer | more
    assert all(seconds > 0 for seconds in found.values())
    assert cpu.take_profile() == {}
