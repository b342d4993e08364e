"""Reading the header of a GGUF file: metadata, and where each tensor lies.

No torch. Layout after ggml's docs/gguf.md (versions 2 and 3, little-endian). The header is parsed
here and not by gguf.GGUFReader, which takes seconds for a real vocabulary and maps the whole file;
block sizes and de-quantisation are the gguf package's. Every length is checked against the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seesaw.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor as GGUF has it; `shape` in torch's order, slowest dim first."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Raises ModelError where the file is damaged, truncated or of another version."""
    size = path.stat().st_size
    if size < 24:
        raise _damaged(path, f"got {size} bytes, expected a header of 24 or more")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        try:
            return cursor.read_file()
        except (struct.error, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(path, f"near byte {cursor.at}: {error}") from error


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path}: not a complete GGUF file: {what}. Download it again.")


class _Cursor:
    """A position in the header of a mapped file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def count(self, item_bytes: int, what: str) -> int:
        """A number of items that the rest of the file can hold."""
        number: int = self.scalar("Q")
        if number * item_bytes > len(self.data) - self.at:
            raise _damaged(
                self.path, f"{number} {what} at byte {self.at} of {len(self.data)} do not fit"
            )
        return number

    def text(self) -> str:
        length = self.count(1, "characters")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY or depth > 2:
            raise _damaged(self.path, f"value of type {kind} at byte {self.at}, expected 0 to 12")
        item = self.scalar("I")
        if item in _SCALARS:
            code = _SCALARS[item]
            number = self.count(struct.calcsize("<" + code), "array items")
            values = struct.unpack_from(f"<{number}{code}", self.data, self.at)
            self.at += struct.calcsize(f"<{number}{code}")
            return list(values)
        return [self.value(item, depth + 1) for _ in range(self.count(8, "array items"))]

    def read_file(self) -> GGUFFile:
        magic, version = self.data[:4], struct.unpack_from("<I", self.data, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            swapped = version == struct.unpack("<I", struct.pack(">I", 3))[0]
            found = "a big-endian file" if swapped else f"{magic!r} version {version}"
            raise ModelError(
                f"{self.path}: got {found}, expected little-endian GGUF version 2 or 3. Convert "
                "the model again with a current llama.cpp."
            )
        self.at = 8
        num_tensors = self.count(24, "tensors")
        metadata: dict[str, Any] = {}
        for _ in range(self.count(12, "metadata entries")):
            key = self.text()
            if key in metadata:
                raise _damaged(self.path, f"metadata key {key!r} appears twice")
            metadata[key] = self.value(self.scalar("I"))
        infos = [self.tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise _damaged(self.path, f"general.alignment is {alignment!r}, expected 1 or more")
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise ModelError(
                    f"{self.path}: tensor {name} is stored twice: expected once. Download the "
                    "file again."
                )
            tensors[name] = self.placed(name, shape, kind, start + offset)
        return GGUFFile(self.path, metadata, tensors)

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dims = self.text(), self.scalar("I")
        if not 1 <= num_dims <= MAX_DIMS:
            raise _damaged(self.path, f"tensor {name!r} has {num_dims} dims, expected 1 to 4")
        shape = tuple(self.scalar("Q") for _ in range(num_dims))[::-1]
        return name, shape, self.scalar("I"), self.scalar("Q")

    def placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GGUFTensor:
        """The tensor with its bytes, which must lie inside the file."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            encoding = GGMLQuantizationType(kind)
            block_size, block_bytes = GGML_QUANT_SIZES[encoding]
        except (ValueError, KeyError) as error:
            raise ModelError(
                f"{self.path}: tensor {name} has encoding number {kind}, which this version of "
                "the gguf package does not know. Update it: pip install -U gguf."
            ) from error
        if shape[-1] % block_size:
            raise _damaged(
                self.path, f"tensor {name} has rows of {shape[-1]}, expected blocks of {block_size}"
            )
        nbytes = math.prod(shape) // block_size * block_bytes
        if offset + nbytes > len(self.data):
            raise _damaged(
                self.path,
                f"tensor {name} ends at byte {offset + nbytes}, the file at {len(self.data)}",
            )
        return GGUFTensor(name, shape, encoding.name, offset, nbytes)
