"""A checkpoint: all that a model name stands for. Opening it reads no weights and loads no torch.

The only door to this package: `open_checkpoint` checks that the model can be loaded, and
`Checkpoint.load_params` or `load_image` loads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seesaw.config import EngineConfig
from seesaw.errors import ModelError
from seesaw.families import ModelSpec, spec_from_hf
from seesaw.layout.format import FormatName
from seesaw.layout.formats import make_format
from seesaw.sizes import format_bytes
from seesaw.tokenizer import Tokenizer, open_tokenizer
from seesaw.tokenizer.json_file import read_json
from seesaw.weights import gguf_model, safetensors_dir
from seesaw.weights.fused_experts import split_experts
from seesaw.weights.gguf_file import GGUFFile, read_gguf
from seesaw.weights.resolve import fetch, resolve
from seesaw.weights.stored import StoredTensor, by_name, check_complete

if TYPE_CHECKING:
    import torch

    from seesaw.weights.image import WeightImage
    from seesaw.weights.load import Progress

SAMPLES_PER_FILE, SAMPLE_BYTES = 16, 4096


def open_checkpoint(config: EngineConfig) -> Checkpoint:
    """Find `config.model`, check its config, its tensors' names, shapes and encodings.

    Downloads what a hub model lacks in the cache. Raises ConfigError or ModelError.
    """
    path = resolve(config.model, config.revision, config.load_format)
    if path.is_file():
        return _open_gguf(config, read_gguf(path))
    return _open_directory(config, path)


@dataclass(frozen=True)
class Checkpoint:
    config: EngineConfig
    path: Path
    """The model's directory or `.gguf` file."""
    spec: ModelSpec
    generation_config: Mapping[str, Any]
    """Of generation_config.json, or the sampling defaults of a GGUF; empty where there are none."""
    tensors: Mapping[str, StoredTensor]
    gguf: GGUFFile | None = None

    @property
    def name(self) -> str:
        """The model as the user named it."""
        return self.config.model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer with its chat template, made at the first call."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        folder, metadata = self.path, self.gguf.metadata if self.gguf else None
        if (name := self.config.tokenizer) is not None:
            folder, metadata = Path(name).expanduser(), None
            if not folder.is_dir():
                folder = fetch(name, None, weights=False)
        return open_tokenizer(
            folder,
            metadata,
            chat_template=self.config.chat_template,
            num_embeddings=self.spec.vocab_size,
        )

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer: of the config, the generation config, the tokenizer."""
        generation = self.generation_config.get("eos_token_id")
        listed = generation if isinstance(generation, list) else [generation]
        known = [*self.spec.eos_token_ids, *listed, *self.tokenizer().eos_token_ids]
        size = self.spec.vocab_size
        return tuple(dict.fromkeys(t for t in known if isinstance(t, int) and 0 <= t < size))

    @cached_property
    def fingerprint(self) -> str:
        """Changes with config, tokenizer, chat template and weights (header and samples of each
        file, not all of it); not with where the files lie."""
        digest = hashlib.sha256()
        for part in (repr(self.spec), repr(sorted(self.generation_config.items(), key=str))):
            digest.update(part.encode())
        digest.update(self.tokenizer().fingerprint.encode())
        for tensor in sorted(self.tensors.values(), key=lambda t: t.name):
            digest.update(f"{tensor.name} {tensor.shape} {tensor.encoding}\n".encode())
        for path in sorted({tensor.file for tensor in self.tensors.values()}):
            digest.update(_sample(path))
        return digest.hexdigest()

    def load_params(
        self,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None = None,
        format_name: FormatName = "plain",
    ) -> dict[str, torch.Tensor]:
        """All parameters, for a device that holds the model (`seesaw.weights.load.load_params`)."""
        from seesaw.weights.load import load_params

        fmt = make_format(format_name, self.spec, dtype.itemsize)
        return load_params(self.spec, self.tensors, fmt, dtype, device, progress)

    def load_image(
        self, image: WeightImage, dtype: torch.dtype, progress: Progress | None = None
    ) -> None:
        """All parameters into `image`, for ranks (`seesaw.weights.load.load_image`)."""
        from seesaw.weights.load import load_image

        load_image(image, self.spec, self.tensors, dtype, progress)


def _open_directory(config: EngineConfig, folder: Path) -> Checkpoint:
    path = folder / "config.json"
    hf_config = read_json(path)
    tensors = safetensors_dir.read_tensors(folder)
    text_config = hf_config.get("text_config")
    configs = [hf_config, text_config] if isinstance(text_config, dict) else [hf_config]
    if not any(c.get("dtype") or c.get("torch_dtype") for c in configs):
        hf_config["dtype"] = safetensors_dir.stored_dtype(tensors.values())
    spec = spec_from_hf(hf_config, str(path))
    for found in configs:
        _refuse_quantized(found, spec, path)
    tensors = split_experts(spec, tensors)
    check_complete(spec, tensors, str(folder), safetensors_dir.OTHER_PARTS)
    safetensors_dir.check_encodings(tensors, [p.name for p in spec.params])
    generation = folder / "generation_config.json"
    return Checkpoint(
        config,
        folder,
        spec,
        read_json(generation) if generation.is_file() else {},
        tensors,
    )


def _open_gguf(config: EngineConfig, file: GGUFFile) -> Checkpoint:
    spec = spec_from_hf(gguf_model.hf_config(file), f"{file.path} (metadata)")
    tensors = by_name(gguf_model.hf_tensors(file, spec))
    check_complete(spec, tensors, str(file.path))
    gguf_model.check_encodings(tensors, [p.name for p in spec.params])
    defaults = gguf_model.sampling_defaults(file)
    return Checkpoint(config, file.path, spec, defaults, tensors, file)


def _refuse_quantized(hf_config: Mapping[str, Any], spec: ModelSpec, path: Path) -> None:
    quantization = hf_config.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    raise ModelError(
        f"{path}: got quantization_config with method {method!r}, expected unquantised weights. "
        f"Use the original model: in bfloat16 it takes {format_bytes(2 * spec.num_parameters)}. "
        "GGUF files are de-quantised on load."
    )


def _sample(path: Path) -> bytes:
    """Digest of the size, the beginning and evenly spread pieces of a file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(SAMPLES_PER_FILE + 1):
            file.seek(max(0, size - SAMPLE_BYTES) * i // SAMPLES_PER_FILE)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()
