"""Safetensors directories: every parameter bit for bit, every damage named."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from seesaw.config import EngineConfig
from seesaw.errors import ModelError, SeesawError
from seesaw.weights.checkpoint import open_checkpoint
from tests.checkpoints import FAMILIES
from tests.weights.unfused import assert_same

CPU = torch.device("cpu")


def reference(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def opened(folder: Path, **settings):
    return open_checkpoint(EngineConfig(model=str(folder), **settings))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", ["1GB", "60KB"])
def test_parameters_are_those_of_the_checkpoint(tiny_checkpoint, family, shards):
    folder = tiny_checkpoint(family, max_shard_size=shards)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards == "60KB")
    checkpoint, model = opened(folder), reference(folder)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        params = checkpoint.load_params(dtype, CPU)
        assert all(p.dtype == dtype and p.is_contiguous() for p in params.values())
        assert_same(checkpoint.spec, params, model)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True, "dtype": "bfloat16"}),
        ("qwen2", {"num_key_value_heads": 6}),
        ("qwen3", {"attention_bias": True, "dtype": "float16"}),
        ("mistral", {"num_key_value_heads": 1}),
        ("gemma3", {"tie_word_embeddings": False}),
    ],
)
def test_variants(tiny_checkpoint, family, overrides):
    folder = tiny_checkpoint(family, **overrides)
    checkpoint = opened(folder)
    for dtype in (torch.float32, torch.bfloat16):
        params = checkpoint.load_params(dtype, CPU)
        assert_same(checkpoint.spec, params, reference(folder))
    tied = params["lm_head.weight"] is params["model.embed_tokens.weight"]
    assert tied == checkpoint.spec.tie_word_embeddings


def test_rows_larger_and_smaller_than_a_chunk(tiny_checkpoint, monkeypatch):
    from seesaw.weights import load

    folder = tiny_checkpoint("llama")
    model, checkpoint = reference(folder), opened(folder)
    for elements in (1, 65, 1000):
        monkeypatch.setattr(load, "CHUNK_ELEMENTS", elements)
        assert_same(checkpoint.spec, checkpoint.load_params(torch.bfloat16, CPU), model)


def test_progress_counts_each_byte_once(tiny_checkpoint):
    folder = tiny_checkpoint("qwen2", max_shard_size="60KB")
    calls: list[tuple[int, int]] = []
    opened(folder).load_params(torch.bfloat16, CPU, lambda done, total: calls.append((done, total)))
    total = sum(
        t.numel() * 4 for file in folder.glob("*.safetensors") for t in load_file(file).values()
    )
    assert {call[1] for call in calls} == {total}
    assert calls[-1][0] == total
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_text_part_of_a_model_that_also_sees(tiny_checkpoint, tmp_path, caplog):
    source = tiny_checkpoint("gemma3")
    tensors = load_file(source / "model.safetensors")
    text = json.loads((source / "config.json").read_text())
    for prefix in ("model.language_model.", "language_model.model."):
        folder = tmp_path / prefix
        shutil.copytree(source, folder)
        renamed = {prefix + n.removeprefix("model."): t for n, t in tensors.items()}
        renamed["vision_tower.embeddings.weight"] = torch.zeros(3, 3)
        save_file(renamed, folder / "model.safetensors")
        whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
        (folder / "config.json").write_text(json.dumps(whole))
        checkpoint = opened(folder)
        assert_same(checkpoint.spec, checkpoint.load_params(torch.float32, CPU), reference(source))


def test_dtype_of_the_tensors_where_the_config_has_none(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama", dtype="float16"), tmp_path)
    edit_config(folder, dtype=None)
    assert opened(folder).spec.torch_dtype == "float16"


def test_opening_loads_no_torch(tiny_checkpoint):
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from seesaw.config import EngineConfig\n"
        "from seesaw.weights.checkpoint import open_checkpoint\n"
        "c = open_checkpoint(EngineConfig(model=sys.argv[1]))\n"
        "assert c.tokenizer().encode('a dog') and c.fingerprint and c.eos_token_ids == (2,)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    folder = tiny_checkpoint("llama", max_shard_size="60KB")
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "model"))


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def error_of(folder: Path, **settings) -> str:
    with pytest.raises(ModelError) as caught:
        opened(folder, **settings)
    return str(caught.value)


def test_missing_tensor(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama"), tmp_path)
    edit_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    message = error_of(folder)
    assert "tensor model.layers.1.mlp.up_proj.weight missing" in message
    assert "expected 30 tensors for LlamaForCausalLM with 3 layers" in message
    assert "Download" in message


def test_wrong_shape(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama"), tmp_path)
    edit_config(folder, intermediate_size=100)
    message = error_of(folder)
    assert "has shape [96, 64], expected [100, 64]" in message
    assert "not of the same model" in message


def test_unexpected_tensors_are_warned_of_and_buffers_are_not(tiny_checkpoint, tmp_path, caplog):
    folder = copy(tiny_checkpoint("llama"), tmp_path)

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        tensors["adapter.weight"] = torch.zeros(8)

    edit_tensors(folder, add)
    logger = logging.getLogger("seesaw")
    logger.addHandler(caplog.handler)
    try:
        opened(folder)
    finally:
        logger.removeHandler(caplog.handler)
    (record,) = caplog.records
    assert "adapter.weight" in record.getMessage()
    assert "inv_freq" not in record.getMessage()


def test_stored_as_something_else(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama"), tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    message = error_of(folder)
    assert name in message
    assert "F8_E4M3" in message
    assert "F32, F16, BF16" in message


def test_quantization_config_names_the_method_and_the_size(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama"), tmp_path)
    edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    message = error_of(folder)
    assert "'awq'" in message
    parameters = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    assert f"{2 * parameters / 1024:.2f} KiB" in message


def test_truncated_at_opening_and_while_reading(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama"), tmp_path)
    path = folder / "model.safetensors"
    whole, checkpoint = path.read_bytes(), opened(folder)
    path.write_bytes(whole[:-100])
    assert "not a complete safetensors file" in error_of(folder)
    with pytest.raises(ModelError, match=r"ends inside tensor .*truncated"):
        checkpoint.load_params(torch.bfloat16, CPU)
    for cut in (0, 4, 8, 100):
        path.write_bytes(whole[:cut])
        assert f"file of {cut} bytes" in error_of(folder)


def test_index_that_does_not_fit_its_files(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama", max_shard_size="60KB"), tmp_path)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    moved = next(f for f in index["weight_map"].values() if f != file)

    def with_map(**changes) -> str:
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], **changes}}))
        return error_of(folder)

    assert f"{moved} holds tensor {name}" in with_map(**{name: moved})
    assert f"{file} holds tensor ghost" in with_map(ghost=file)
    assert "names gone.safetensors, which is not there" in with_map(ghost="gone.safetensors")
    for bad in ("../model.safetensors", "", 7, None, "a/b"):
        assert "expected a weight_map" in with_map(ghost=bad)
    path.write_text("[]")
    assert "expected an object" in error_of(folder)
    path.write_text("{")
    assert "not readable as JSON" in error_of(folder)


def test_duplicate_tensors(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama", max_shard_size="60KB"), tmp_path)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    other = next(f for f in sorted(set(index["weight_map"].values())) if f != file)
    save_file({**load_file(folder / other), name: torch.zeros(2)}, folder / other)
    assert f"tensor {name} is stored twice" in error_of(folder)
    path.unlink()
    assert "no model.safetensors.index.json" in error_of(folder)


def test_fingerprint_follows_content_and_not_place(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint("llama")
    folder = copy(source, tmp_path)
    first = opened(source).fingerprint
    assert opened(folder).fingerprint == first
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    assert opened(folder, chat_template=str(template)).fingerprint != first
    edit_tensors(folder, lambda t: t["model.embed_tokens.weight"].add_(1))
    assert opened(folder).fingerprint != first
    shutil.copy(source / "model.safetensors", folder)
    assert opened(folder).fingerprint == first
    edit_config(folder, eos_token_id=5)
    assert opened(folder).fingerprint != first


def test_eos_of_config_generation_config_and_tokenizer(tiny_checkpoint, tmp_path):
    folder = copy(tiny_checkpoint("llama"), tmp_path)
    edit_config(folder, eos_token_id=[5, 7])
    generation = {"eos_token_id": [9, 5], "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = opened(folder)
    assert set(checkpoint.eos_token_ids) == {2, 5, 7, 9}
    assert checkpoint.generation_config["temperature"] == 0.5


@settings(max_examples=150)
@given(data=st.data())
def test_mutated_files_raise_nothing_but_our_errors(tiny_checkpoint, tmp_path, data):
    source = tiny_checkpoint("llama")
    folder = tmp_path / "mutated"
    if not folder.exists():
        shutil.copytree(source, folder)
    whole = (source / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 7), st.integers(0, 7 + length)))
        mutated[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789[]{}",:'))
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(mutated) - 1)) :]
    (folder / "model.safetensors").write_bytes(mutated)
    config = bytearray((source / "config.json").read_bytes())
    if data.draw(st.booleans()):
        config[data.draw(st.integers(0, len(config) - 1))] = data.draw(st.integers(0, 255))
    (folder / "config.json").write_bytes(config)
    with contextlib.suppress(SeesawError):
        opened(folder).load_params(torch.bfloat16, CPU)
