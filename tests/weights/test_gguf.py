"""GGUF: same numbers as the model it was written from, same words for what cannot be read."""

from __future__ import annotations

import contextlib
import math
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.config import EngineConfig
from seesaw.errors import ModelError, SeesawError
from seesaw.weights.checkpoint import open_checkpoint
from tests.checkpoints import PLAIN_FAMILIES, SENTENCES, tiny_config, tiny_model
from tests.weights.gguf_files import GGUF_ARCH, write_gguf
from tests.weights.unfused import unfuse

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer_folder(tiny_checkpoint) -> Path:
    return tiny_checkpoint("llama")


@pytest.fixture
def write(tmp_path, tokenizer_folder):
    """`write(family, ...)` -> (path, model, expected tensors)."""

    def write(family, overrides=None, **options):
        model = tiny_model(tiny_config(family, **(overrides or {})))
        path = tmp_path / "model.gguf"
        read = write_gguf(path, family, model, tokenizer=tokenizer_folder, **options)
        return path, model, read

    return write


def opened(path: Path, **settings):
    return open_checkpoint(EngineConfig(model=str(path), **settings))


def error_of(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        opened(path)
    return str(caught.value)


def assert_read(checkpoint, read, dtype=torch.float32) -> None:
    found = unfuse(checkpoint.spec, checkpoint.load_params(dtype, CPU))
    assert found.keys() == read.keys()
    for name, tensor in read.items():
        assert torch.equal(found[name], tensor.to(dtype)), name


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
@pytest.mark.parametrize("encoding", ["F32", "BF16", "F16", "Q8_0", "Q4_1"])
def test_parameters(write, family, encoding):
    path, model, read = write(family, encoding=encoding)
    if encoding == "F32" and family != "gemma3":  # Gemma's norms were rounded when 1 was added
        assert all(torch.equal(read[n], t) for n, t in model.state_dict().items())
    for dtype in (torch.float32, torch.bfloat16):
        assert_read(opened(path), read, dtype)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 32}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_variants(write, family, overrides):
    path, _, read = write(family, overrides)
    checkpoint = opened(path)
    assert checkpoint.spec.tie_word_embeddings == overrides.get("tie_word_embeddings", False)
    assert_read(checkpoint, read)


def test_chunks_hold_whole_heads(write, monkeypatch):
    from seesaw.weights import load

    path, _, read = write("llama", encoding="Q8_0")
    for elements in (1, 1500):
        monkeypatch.setattr(load, "CHUNK_ELEMENTS", elements)
        assert_read(opened(path), read)


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_spec_equals_that_of_the_directory(write, tiny_checkpoint, family):
    directory = open_checkpoint(EngineConfig(model=str(tiny_checkpoint(family)))).spec
    overrides = {"sliding_window": None} if family == "mistral" else {}
    path, _, _ = write(family, overrides)
    spec = opened(path).spec
    for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
        "rms_norm_eps", "tie_word_embeddings", "attention_bias", "qk_norm", "norm_plus_one",
        "sandwich_norm", "embed_scale", "eos_token_ids", "hidden_act", "params",
    ):  # fmt: skip
        assert getattr(spec, name) == getattr(directory, name), name
    if family != "mistral":
        assert spec.layers == directory.layers
    assert spec.torch_dtype == "bfloat16"


def test_mistral_keeps_its_window(write):
    path, _, read = write("mistral", extra={"llama.attention.sliding_window": 24})
    checkpoint = opened(path)
    assert {layer.sliding_window for layer in checkpoint.spec.layers} == {24}
    assert_read(checkpoint, read)


def llama3_freqs(config) -> np.ndarray:
    """What each frequency is divided by, from transformers' own frequencies."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    dim = config.head_dim
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, dim, 2) / dim)
    return (plain / scaled).numpy().astype(np.float32)


def test_llama3_scaling_is_recovered(write):
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
    overrides = {"rope_parameters": rope, "head_dim": 64, "max_position_embeddings": 131072}
    freqs = llama3_freqs(tiny_config("llama", **overrides))
    path, _, read = write("llama", overrides, extra_tensors={"rope_freqs.weight": freqs})
    checkpoint = opened(path)
    found = checkpoint.spec.layers[0].rope
    assert found.kind == "llama3"
    assert found.theta == 500000.0
    assert dict(found.params) == {n: rope[n] for n in rope if n not in ("rope_type", "rope_theta")}
    assert_read(checkpoint, read)
    path, _, _ = write("llama", overrides, extra_tensors={"rope_freqs.weight": freqs * 1.01})
    assert "rope_freqs.weight that is not Llama 3's scaling" in error_of(path)
    ones = np.ones_like(freqs)
    path, _, _ = write("llama", overrides, extra_tensors={"rope_freqs.weight": ones})
    assert opened(path).spec.layers[0].rope.kind == "default"


@pytest.mark.parametrize(
    ("scaling", "kind", "params"),
    [
        ({"type": "none"}, "default", {}),
        ({"type": "linear", "factor": 4.0}, "linear", {"factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 128},
            "yarn",
            {"factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0,
             "beta_slow": 1.0, "attention_factor": 0.1 * math.log(4) + 1, "truncate": True},
        ),
    ],
)  # fmt: skip
def test_rope_scaling(write, scaling, kind, params):
    extra = {f"qwen2.rope.scaling.{name}": value for name, value in scaling.items()}
    path, _, _ = write("qwen2", extra=extra)
    rope = opened(path).spec.layers[0].rope
    assert (rope.kind, dict(rope.params)) == (kind, params)


def test_gemma_scales_only_its_global_layers(write):
    extra = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    path, _, _ = write("gemma3", extra=extra)
    kinds = [(layer.sliding_window, layer.rope.kind) for layer in opened(path).spec.layers]
    assert kinds == [(16, "default"), (None, "linear"), (16, "default")]


def test_tokenizer_template_and_eos_come_from_the_metadata(write, tokenizer_folder):
    path, _, _ = write("llama", extra={"tokenizer.ggml.eot_token_id": 3})
    checkpoint = opened(path)
    ours = checkpoint.tokenizer()
    theirs = open_checkpoint(EngineConfig(model=str(tokenizer_folder))).tokenizer()
    chat = [{"role": "user", "content": "What is a fox? 🦊 42"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    text = ours.apply_chat_template(chat) + " naïve\n\n  def f(x): pass"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
    assert set(checkpoint.eos_token_ids) == {2, 3}


def test_end_of_turn_of_the_template_ends_an_answer(write):
    only_document = {"tokenizer.ggml.eos_token_id": 0}
    path, _, _ = write("llama", extra=only_document)
    assert set(opened(path).eos_token_ids) == {0, 2}
    path, _, _ = write("llama", extra={**only_document, "tokenizer.chat_template": None})
    assert opened(path).eos_token_ids == (0,)


@pytest.mark.parametrize(
    ("family", "pre"),
    [("llama", "gpt-2"), ("llama", "llama-bpe"), ("llama", "tekken"), ("qwen2", "qwen2"),
     ("qwen2", "deepseek-r1-qwen")],
)  # fmt: skip
def test_pre_tokenizers_cut_as_those_of_transformers(write, family, pre):
    from transformers import AutoTokenizer

    bos = pre in ("llama-bpe", "tekken")
    extra = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": bos}
    path, _, _ = write(family, extra=extra)
    ours = opened(path).tokenizer()
    reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = [*SENTENCES, "I'LL we've\r\n\n  x==1234567,  y!!\n", "ǅ aBcDeF \t/\n ½", " ", ""]
    for text in texts:
        assert ours.encode(text) == reference.encode(text), text
    path, _, _ = write(family, extra={"tokenizer.ggml.pre": pre})
    assert (opened(path).tokenizer().encode("a")[0] == 0) == bos, "the default of llama.cpp"


def test_sampling_defaults(write):
    path, _, _ = write("llama", extra={"general.sampling.temp": 0.6, "general.sampling.top_k": 20})
    assert opened(path).generation_config == {"temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"general.architecture": "gpt2"}, ["'gpt2'", "expected one of llama, qwen2"]),
        ({"llama.expert_count": 8}, ["llama.expert_count=8, expected 0", "not supported"]),
        ({"llama.block_count": None}, ["no num_hidden_layers", "metadata"]),
        ({"llama.block_count": 4}, ["model.layers.3.", "missing"]),
        ({"llama.embedding_length": 32}, ["shape [320, 64], expected [320, 32]"]),
        ({"llama.rope.dimension_count": 8}, ["rope.dimension_count=8", "16"]),
        ({"llama.rope.scaling.type": "longrope"}, ["longrope", "yarn"]),
        ({"split.count": 3}, ["one of 3 parts", "--merge"]),
    ],
)
def test_metadata_that_cannot_be(write, extra, parts):
    path, _, _ = write("llama", extra=extra)
    message = error_of(path)
    for part in [str(path), "expected", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"tokenizer.ggml.pre": "new-bpe"}, ["'new-bpe'", "smollm", "--tokenizer DIR"]),
        ({"tokenizer.ggml.model": "t5"}, ["'t5'", "gpt2 or llama"]),
        ({"tokenizer.ggml.tokens": None}, ["no vocabulary"]),
        ({"tokenizer.ggml.merges": ["zz yy"]}, ["damaged"]),
        ({"tokenizer.chat_template": "{% if %}"}, ["chat template", "--chat-template"]),
    ],
)
def test_tokenizer_metadata_that_cannot_be(write, extra, parts):
    path, _, _ = write("llama", extra=extra)
    checkpoint = opened(path)
    with pytest.raises(SeesawError) as caught:
        checkpoint.tokenizer()
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_encodings_that_cannot_be_undone(write, monkeypatch):
    path, _, _ = write("llama", encoding="Q8_0")

    def refuse(data, kind):
        raise NotImplementedError(kind)

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    message = error_of(path)
    assert "Q8_0, which cannot be de-quantised" in message
    assert "BF16" in message


def test_truncated_old_and_foreign_files(write, tmp_path):
    path, _, _ = write("llama")
    whole = path.read_bytes()
    for cut in (4, 20, 23, 24, 100, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "not a complete GGUF file" in error_of(path), cut
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + whole[8:])
    assert "version 1, expected little-endian GGUF version 2 or 3" in error_of(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + whole[8:])
    assert "big-endian" in error_of(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    assert "begins with b'PK\\x03\\x04', expected b'GGUF'" in error_of(path)


@settings(max_examples=200)
@given(data=st.data())
def test_mutated_bytes_raise_nothing_but_our_errors(tokenizer_folder, tmp_path, data):
    path, source = tmp_path / "mutated.gguf", tmp_path / "source.gguf"
    if not source.exists():
        model = tiny_model(tiny_config("llama", num_hidden_layers=1), seed=1)
        write_gguf(source, "llama", model, tokenizer=tokenizer_folder)
    mutated = bytearray(source.read_bytes())
    header = mutated.index(b"output_norm.weight") + 100
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(4, 200), st.integers(4, header)))
        mutated[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(mutated) - 1)) :]
    path.write_bytes(mutated)
    with contextlib.suppress(SeesawError):
        checkpoint = opened(path)
        checkpoint.load_params(torch.bfloat16, CPU)
        checkpoint.tokenizer().encode("the quick brown fox 🙂")
        assert checkpoint.eos_token_ids is not None


def test_architectures_are_those_that_are_tested():
    from seesaw.weights import gguf_model

    assert set(gguf_model.ARCHITECTURES) == set(GGUF_ARCH.values())
