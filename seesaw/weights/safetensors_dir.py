"""A Hugging Face model directory: which safetensors files are its weights and what they hold.

No torch. The safetensors library checks each header (bounds, overlaps, size of the file); the
tensors themselves are read by `load.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seesaw.errors import ModelError
from seesaw.tokenizer.json_file import read_json
from seesaw.weights.stored import PLAIN, StoredTensor, by_name

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Gemma3ForConditionalGeneration puts the decoder under a prefix, in one of two spellings.
_TEXT_PREFIXES = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.",
                  "model.language_model.": "model."}  # fmt: skip
OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
               "model.multi_modal_projector.")  # fmt: skip


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those of the index, else the only one there is."""
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1:
        raise ModelError(
            f"{folder}: got {len(found)} safetensors files ({found[0].name}, ..) and no {INDEX}, "
            f"expected one file or an index. Download {INDEX} too."
        )
    return found


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a directory, under the names of a text model."""
    files = weight_files(folder)
    for path in files:
        if not path.is_file():
            raise ModelError(
                f"{folder / INDEX} names {path.name}, which is not there. Download that file."
            )
    tensors = by_name(tensor for path in files for tensor in _read_header(path))
    if (folder / INDEX).is_file():
        for name, file in _weight_map(folder).items():
            if (stored := tensors.get(_text_name(name))) is None or stored.file.name != file:
                raise ModelError(
                    f"{folder / INDEX} says that {file} holds tensor {name}, and it does not. The "
                    "index and the files are not of the same checkpoint: download both again."
                )
    return tensors


def stored_dtype(tensors: Iterable[StoredTensor]) -> str:
    """Name of the dtype that most bytes of the checkpoint have."""
    sizes = dict.fromkeys(PLAIN, 0)
    for tensor in tensors:
        if tensor.encoding in sizes:
            sizes[tensor.encoding] += tensor.nbytes
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return names[max(PLAIN, key=lambda encoding: sizes[encoding])]


def check_encodings(tensors: Mapping[str, StoredTensor], wanted: Iterable[str]) -> None:
    """Raise ModelError where a tensor of `wanted` is stored as something we do not read."""
    for name in wanted:
        stored = tensors[name]
        if stored.encoding not in PLAIN:
            raise ModelError(
                f"{stored.file}: tensor {name} is stored as {stored.encoding}, expected one of "
                f"{', '.join(PLAIN)}. Use the unquantised version of this model."
            )


def _weight_map(folder: Path) -> dict[str, str]:
    names = read_json(folder / INDEX).get("weight_map")
    good = isinstance(names, dict) and all(
        isinstance(file, str) and file and Path(file).name == file for file in names.values()
    )
    if not isinstance(names, dict) or not good:
        raise ModelError(
            f"{folder / INDEX}: expected a weight_map from tensor names to file names beside it. "
            "Download the file again."
        )
    return names


def _text_name(name: str) -> str:
    for prefix, replacement in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _read_header(path: Path) -> list[StoredTensor]:
    from safetensors import SafetensorError, safe_open

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(names := dict(pairs)) != len(pairs):
            raise ValueError("a name appears twice")
        return names

    try:
        with safe_open(path, framework="np"):
            pass  # opening checks the header
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=without_duplicates)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: not a complete safetensors file of {path.stat().st_size} bytes ({error}). "
            "Download it again."
        ) from error
    return [
        StoredTensor(
            name=_text_name(name),
            shape=tuple(entry["shape"]),
            encoding=entry["dtype"],
            file=path,
            offset=8 + length + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    ]
