"""From a model's name to its files: directories, GGUF files, the hub's cache, and what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, ModelError
from seesaw.weights.checkpoint import open_checkpoint
from seesaw.weights.resolve import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_revision_of_a_local_model_is_refused(tmp_path: Path) -> None:
    message = error_of(tmp_path, revision="main")
    assert "revision='main'" in message
    assert "only hub models have revisions" in message


def error_of(model: object, revision: str | None = None, load_format: str = "auto") -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(str(model), revision, load_format)
    return str(caught.value)


def assert_parts(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


@pytest.mark.parametrize("name", ["/gone", "./gone", "~/gone", "a/b/c", "gone.gguf", "a/", " "])
def test_path_that_is_not_there(name):
    assert_parts(error_of(name), repr(name), "no such file or directory", "hub name such as")


def test_directories(tmp_path):
    assert_parts(error_of(tmp_path), "no model in it", "config.json with *.safetensors")
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path), None, "auto") == tmp_path / "one.gguf"
    (tmp_path / "two.gguf").write_bytes(b"GGUF")
    assert_parts(error_of(tmp_path), "2 GGUF files (one.gguf, two.gguf)", "path of one of them")
    (tmp_path / "two.gguf").unlink()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve(str(tmp_path), None, "auto") == tmp_path
    assert resolve(str(tmp_path), None, "gguf") == tmp_path / "one.gguf"


def test_directory_without_safetensors(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert_parts(error_of(tmp_path), "config.json and no weights")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    message = error_of(tmp_path)
    assert_parts(message, "pytorch_model.bin", "expected safetensors", "save_pretrained")


def test_files(tmp_path):
    for name, content in (("model.safetensors", b"x" * 9), ("config.json", b"{}")):
        path = tmp_path / name
        path.write_bytes(content)
        assert_parts(error_of(path), f"Give {tmp_path}")
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK")
    assert_parts(error_of(path), "begins with b'PK'", "expected b'GGUF'")
    path.write_bytes(b"GGUF")
    assert resolve(str(path), None, "gguf") == path
    assert_parts(error_of(path, load_format="safetensors"), "load_format='safetensors'", "is gguf")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def put_in_cache(cache: Path, name: str, folder: Path, branch: str = "main") -> Path:
    """Lay `folder` into the hub's cache as it would be after a download."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / branch).write_text(COMMIT)
    return Path(shutil.copytree(folder, repository / "snapshots" / COMMIT))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)


def test_hub_name_in_the_cache_asks_nobody(cache, no_network, tiny_checkpoint):
    source = tiny_checkpoint("llama", max_shard_size="60KB")
    folder = put_in_cache(cache, "someone/tiny", source)
    assert resolve("someone/tiny", None, "auto").resolve() == folder.resolve()
    checkpoint = open_checkpoint(EngineConfig(model="someone/tiny"))
    assert checkpoint.name == "someone/tiny"
    assert checkpoint.fingerprint == open_checkpoint(EngineConfig(model=str(source))).fingerprint
    put_in_cache(cache, "someone/other", source, branch="v2")
    assert resolve("someone/other", "v2", "auto").name == COMMIT
    assert resolve("someone/other", COMMIT, "auto").name == COMMIT


def test_offline_and_not_in_the_cache(cache, no_network, monkeypatch, tiny_checkpoint):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = error_of("someone/tiny")
    assert_parts(message, "'someone/tiny'", str(cache), "HF_HUB_OFFLINE is set", "Unset it")
    source = tiny_checkpoint("llama", max_shard_size="60KB")
    folder = put_in_cache(cache, "someone/tiny", source)
    next(folder.glob("*.safetensors")).unlink()
    assert_parts(error_of("someone/tiny"), "not (wholly) in the cache")
    # What another tool fetched of the same repository is no model to us.
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "consolidated.safetensors").write_bytes(b"")
    assert_parts(error_of("someone/tiny"), "not (wholly) in the cache")


def test_partly_cached_model_is_completed(cache, monkeypatch, tiny_checkpoint):
    source = tiny_checkpoint("llama", max_shard_size="60KB")
    folder = put_in_cache(cache, "someone/tiny", source)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    listed = [path.name for path in source.iterdir()]
    extra = ["README.md", "original/consolidated.00.pth", "onnx/model.onnx", "tf_model.h5",
             "consolidated.safetensors"]  # fmt: skip
    asked: list[list[str]] = []
    download = huggingface_hub.snapshot_download

    def snapshot_download(name, *, revision=None, local_files_only=False, allow_patterns=None):
        if local_files_only:
            return download(name, revision=revision, local_files_only=True)
        asked.append(allow_patterns)
        for file in allow_patterns:
            shutil.copy(source / file, folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision: listed + extra
    )
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file, revision: str(source / file)
    )
    assert open_checkpoint(EngineConfig(model="someone/tiny")).spec.num_hidden_layers == 3
    (wanted,) = asked
    assert sorted(wanted) == sorted(listed)


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["a-Q4_0.gguf", "a-Q8_0.gguf"], ["2 GGUF files", "hf download someone/x a-Q4_0.gguf"]),
        (["config.json", "pytorch_model.bin"], ["without model.safetensors", "convert"]),
    ],
)
def test_repository_without_safetensors(cache, monkeypatch, files, parts):
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision: files
    )
    message = error_of("someone/x")
    assert_parts(message, "'someone/x'", "expected safetensors", *parts)


def test_hub_that_does_not_answer(cache, monkeypatch):
    class OfTheClient(Exception):
        """No OSError: what the HTTP client of some versions raises without a network."""

    def fail(self, name, revision):
        raise OfTheClient("Name or service not known.\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    message = error_of("someone/gone", revision="v9")
    assert_parts(
        message, "'someone/gone' at revision 'v9'", "Name or service not known", "your access"
    )
    assert "more" not in message


def test_name_that_no_hub_has(cache):
    assert_parts(error_of("what is this"), "not a hub name", "owner/name")
    assert_parts(error_of("someone/tiny", load_format="gguf"), "load_format='gguf'", "path")


def test_tokenizer_of_another_directory(cache, no_network, tiny_checkpoint, tmp_path):
    source = tiny_checkpoint("llama")
    bare = Path(shutil.copytree(source, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer.json.*--tokenizer"):
        open_checkpoint(EngineConfig(model=str(bare))).tokenizer()
    checkpoint = open_checkpoint(EngineConfig(model=str(bare), tokenizer=str(source)))
    whole = open_checkpoint(EngineConfig(model=str(source)))
    assert checkpoint.tokenizer().encode("a dog") == whole.tokenizer().encode("a dog")
    put_in_cache(cache, "someone/tokenizer", source)
    by_name = open_checkpoint(EngineConfig(model=str(bare), tokenizer="someone/tokenizer"))
    assert by_name.tokenizer().encode("a dog") == whole.tokenizer().encode("a dog")
    with pytest.raises(ConfigError, match="no such file or directory"):
        open_checkpoint(EngineConfig(model=str(bare), tokenizer="/gone")).tokenizer()


def test_damaged_config(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model"))
    for content, part in (("{", "not readable as JSON"), ("[]", "expected an object")):
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match=part):
            open_checkpoint(EngineConfig(model=str(folder)))
    (folder / "config.json").write_text(json.dumps({"architectures": ["T5Model"]}))
    with pytest.raises(ModelError, match=r"'T5Model', expected one of LlamaForCausalLM"):
        open_checkpoint(EngineConfig(model=str(folder)))
