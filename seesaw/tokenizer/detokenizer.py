"""Text of an answer as its tokens come, one object per answer.

The pieces, joined, are exactly what decoding all tokens at once gives: a piece is held back while
a later token could still change it (a character split over tokens, a run of byte tokens).
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tokenizers


class Detokenizer(Protocol):
    """All pieces joined are what `decode` makes of all tokens."""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end of the answer."""
        ...


class ByteLevelDetokenizer:
    """For byte-level vocabularies, where each token is bytes of its own: one look-up a token."""

    def __init__(self, token_bytes: Mapping[int, bytes], skipped: AbstractSet[int]) -> None:
        self._token_bytes, self._skipped = token_bytes, skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._token_bytes[token_id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For all other vocabularies (SentencePiece): decodes a window of tokens and gives what is new.

    The window begins with the tokens of the last piece, so that a decoder that treats the first
    token apart (a stripped leading space) does so only at the true beginning.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        byte_tokens: AbstractSet[int],
        skipped: AbstractSet[int],
    ) -> None:
        self._backend, self._byte_tokens, self._skipped = backend, byte_tokens, skipped
        self._window: list[int] = []
        self._num_given = 0
        """Tokens at the beginning of the window whose text was given."""
        self._given = ""

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        held = ""
        if token_id not in self._byte_tokens:
            # The run of byte tokens before it, if there was one, can no longer change.
            held = self._advance() if self._is_holding else ""
        self._window.append(token_id)
        if token_id in self._byte_tokens:
            return held
        return held + self._advance()

    def flush(self) -> str:
        return self._advance() if self._is_holding else ""

    @property
    def _is_holding(self) -> bool:
        return len(self._window) > self._num_given

    def _advance(self) -> str:
        text = self._decode(self._window)
        piece = text[len(self._given) :]
        del self._window[: self._num_given]
        self._num_given = len(self._window)
        self._given = self._decode(self._window)
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=False)
