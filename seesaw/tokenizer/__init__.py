"""Tokenizers and chat templates. No torch at import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seesaw.errors import ConfigError
from seesaw.tokenizer.chat_template import ChatTemplate
from seesaw.tokenizer.detokenizer import Detokenizer
from seesaw.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "Tokenizer", "open_tokenizer"]


def open_tokenizer(
    folder: Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    chat_template: str | None = None,
    num_embeddings: int | None = None,
) -> Tokenizer:
    """The tokenizer of a model directory, or of a GGUF file's `metadata` if they are given.

    `chat_template` is a file that replaces the model's own template; `num_embeddings` the model's
    vocabulary size. Raises ConfigError or ModelError.
    """
    from seesaw.tokenizer import gguf, hf

    template = _read_template(chat_template) if chat_template is not None else None
    if metadata is not None:
        return gguf.from_gguf(metadata, str(folder), template, num_embeddings)
    return hf.from_directory(folder, template, num_embeddings)


def _read_template(name: str) -> ChatTemplate:
    try:
        source = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template={name!r}: not readable as text ({error}). Expected the path of a file "
            "with a Jinja template."
        ) from error
    return ChatTemplate(source, name)
