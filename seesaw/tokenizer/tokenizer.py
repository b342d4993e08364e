"""Text to token ids and back, and messages to the text of a chat.

No torch, and no transformers where the model brings a `tokenizer.json` or is a GGUF. What files a
tokenizer is made from is the business of `hf.py` and `gguf.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from seesaw.errors import RequestError
from seesaw.tokenizer.chat_template import ChatTemplate
from seesaw.tokenizer.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Tokenizer:
    """`backend` does the work; `special_tokens` (bos_token, eos_token, ..) are the texts that chat
    templates may write; `num_embeddings` is the model's vocabulary, which a tokenizer may exceed.
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    chat_template: ChatTemplate | None = None
    num_embeddings: int | None = None

    @property
    def vocab_size(self) -> int:
        """Token ids that the tokenizer can produce, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """What `skip_special_tokens` leaves out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token for token, content in added.items() if content.special)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with those (BOS, ..) that the model expects around a prompt.

        Special tokens written out in the text become their ids. Raises RequestError where the text
        is no valid Unicode or holds a token that the model has no embedding of.
        """
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(
                f"prompt: got {type(text).__name__} that is not valid Unicode text ({error}), "
                "expected text. Remove lone surrogates (\\ud800 to \\udfff).",
                param="prompt",
            ) from error
        if self.num_embeddings is not None and ids and max(ids) >= self.num_embeddings:
            token = self.backend.id_to_token(max(ids))
            raise RequestError(
                f"prompt: holds the token {token!r} (id {max(ids)}), which the model with "
                f"{self.num_embeddings} embeddings does not have. Remove it from the text.",
                param="prompt",
            )
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that form no character become U+FFFD, unknown ids nothing."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A new incremental decoder of one answer: all its pieces joined are `decode` of all."""
        from tokenizers import decoders

        skipped = self.special_token_ids if skip_special_tokens else frozenset()
        if isinstance(self.backend.decoder, decoders.ByteLevel):
            return ByteLevelDetokenizer(self._token_bytes, skipped)
        return WindowDetokenizer(self.backend, self._byte_token_ids, skipped)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The chat as text, special tokens written out: encode it with add_special_tokens=False.

        Raises RequestError where the model has no template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise RequestError(
                "messages: the model has no chat template, which chat needs. Pass one with "
                "--chat-template FILE (chat_template='FILE' in Python), or send plain prompts.",
                param="messages",
                code="no_chat_template",
            )
        return self.chat_template.render(messages, add_generation_prompt, self.special_tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever a text or a chat could get other ids."""
        template = self.chat_template.source if self.chat_template else ""
        special = repr((sorted(self.special_tokens.items()), self.eos_token_ids))
        digest = hashlib.sha256(self.backend.to_str().encode())
        for part in (template, special):
            digest.update(hashlib.sha256(part.encode()).digest())
        return digest.hexdigest()

    @cached_property
    def _byte_token_ids(self) -> frozenset[int]:
        """Tokens that stand for one byte, as SentencePiece writes them."""
        ids = (self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in ids if token is not None)

    @cached_property
    def _token_bytes(self) -> _TokenBytes:
        return _TokenBytes(self.backend)


class _TokenBytes(dict[int, bytes]):
    """Bytes of a token of a byte-level vocabulary, found at first use and kept."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._byte_of = byte_alphabet()

    def __missing__(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) or ""
        try:
            found = bytes([self._byte_of[char] for char in token])
        except KeyError:  # an added token with a character outside the alphabet stands for itself
            found = token.encode()
        self[token_id] = found
        return found


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte: printable Latin-1 stands for itself, the other
    bytes follow from U+0100 on in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }
