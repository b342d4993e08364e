"""Input lines: from bytes on disk to rows with an identity. Never holds more than one line.

What a row asks for is `body.py`'s business; here a line only has to be a JSON object with a
custom_id.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from seesaw.errors import ConfigError, RequestError

MAX_LINE_BYTES = 64 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    """A line that is not blank; `raw` is None where it is longer than MAX_LINE_BYTES."""

    number: int
    raw: bytes | None


class Row(NamedTuple):
    """A line with an identity. `digest` changes with anything in the line but custom_id and
    spelling.
    """

    line: int
    custom_id: str
    digest: bytes
    record: dict[str, Any]


def read_lines(path: Path) -> Iterator[Line]:
    """Lines numbered from 1, blank ones left out (but counted). Gzip is known by its first bytes.

    Raises ConfigError where the file cannot be read or is damaged.
    """
    number = 0
    try:
        with path.open("rb") as probe:
            head = probe.read(3)
        if head[:2] in _UTF16_BOMS:
            raise ConfigError(
                f"input {path}: is UTF-16, expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8."
            )
        with gzip.open(path, "rb") if head[:2] == _GZIP_MAGIC else path.open("rb") as file:
            while (raw := file.readline(MAX_LINE_BYTES + 1)) != b"":
                number += 1
                if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    _skip_line(file)
                    yield Line(number, None)
                    continue
                if number == 1:
                    raw = raw.removeprefix(_UTF8_BOM)
                raw = raw.strip(b" \t\r\n")
                if raw:
                    yield Line(number, raw)
    except (EOFError, zlib.error, OSError) as error:  # gzip.BadGzipFile is an OSError
        raise ConfigError(
            f"input {path}: cannot be read after line {number}: {error}. "
            "Is the file complete? Copy it again."
        ) from error


def _skip_line(file: gzip.GzipFile | BufferedReader) -> None:
    while (part := file.readline(MAX_LINE_BYTES)) != b"" and not part.endswith(b"\n"):
        pass


def parse_row(line: Line) -> Row:
    """Raises RequestError for a line without identity: not JSON, not an object, no custom_id."""
    record = _parse_json(line)
    if not isinstance(record, dict):
        raise RequestError(
            f"expected a JSON object per line, got {_kind(record)}.", code="invalid_json"
        )
    custom_id = record.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        got = "none" if custom_id is None else f"{_kind(custom_id)} {clip(repr(custom_id))}"
        raise RequestError(
            f"custom_id: expected a string that is not empty, got {got}.",
            param="custom_id",
            code="missing_custom_id" if custom_id is None else "invalid_type",
        )
    check_text(custom_id, "custom_id")
    rest = {name: value for name, value in record.items() if name != "custom_id"}
    return Row(line.number, custom_id, _digest(rest), record)


def _parse_json(line: Line) -> Any:
    if line.raw is None:
        raise RequestError(
            f"the line is longer than {MAX_LINE_BYTES >> 20} MiB. Is a line break missing?",
            code="invalid_json",
        )
    try:
        return _DECODER.decode(line.raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the line is not UTF-8 (byte {error.start} is 0x{line.raw[error.start]:02x}).",
            code="invalid_json",
        ) from error
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else clip(str(error))
        raise RequestError(f"the line is not valid JSON: {detail}.", code="invalid_json") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _digest(record: dict[str, Any]) -> bytes:
    try:
        canonical = _CANONICAL.encode(record)
    except RecursionError as error:
        raise RequestError(
            "the line is not valid JSON: nested too deeply.", code="invalid_json"
        ) from error
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=16).digest()


def check_text(text: str, param: str) -> None:
    """Raise RequestError if `text` has half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{param}: character {error.start} is half of a surrogate pair. Send valid Unicode.",
            param=param,
            code="invalid_unicode",
        ) from error


def clip(text: str, most: int = 200) -> str:
    """`text` for a message: a long middle is left out."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}...{text[-(most // 2) :]}"


def _kind(value: object) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names = {bool: "a boolean", dict: "an object", list: "an array", str: "a string"}
    return names.get(type(value), "a number")
