"""Messages between processes as bytes: MessagePack by msgspec, behind a byte that says which.

Only what runs on several ranks needs this.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from seesaw.engine.messages import FromWorker, ToWorker

_KINDS: tuple[type[Any], ...] = (*get_args(ToWorker), *get_args(FromWorker))
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_encoder = msgspec.msgpack.Encoder()
_decoders = [msgspec.msgpack.Decoder(kind) for kind in _KINDS]


def encode(message: ToWorker | FromWorker) -> bytes:
    return bytes((_NUMBERS[type(message)],)) + _encoder.encode(message)


def decode(data: bytes) -> Any:
    """The message that `encode` was given."""
    return _decoders[data[0]].decode(memoryview(data)[1:])
