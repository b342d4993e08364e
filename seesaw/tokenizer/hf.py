"""A tokenizer from the files of a Hugging Face model directory.

As in transformers 5, tokenizer.json alone says which tokens go around a text: an add_bos_token in
tokenizer_config.json was for classes without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seesaw.errors import ModelError
from seesaw.tokenizer.chat_template import ChatTemplate
from seesaw.tokenizer.json_file import read_json
from seesaw.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
            "mask_token")  # fmt: skip


def from_directory(
    folder: Path, template: ChatTemplate | None, num_embeddings: int | None
) -> Tokenizer:
    """Raises ModelError where there is no tokenizer in `folder` or it is damaged."""
    settings = _read(folder / "tokenizer_config.json")
    special = _special_tokens({**_read(folder / "special_tokens_map.json"), **settings})
    if (folder / "tokenizer.json").is_file():
        backend = _read_backend(folder / "tokenizer.json")
    else:
        backend = _convert(folder)
    _add_missing(backend, settings, special)
    # Some are saved as they were used in training; a prompt is never cut or filled up here.
    backend.no_truncation()
    backend.no_padding()
    eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return Tokenizer(
        backend,
        special,
        () if eos is None else (eos,),
        template or _template(folder, settings),
        num_embeddings,
    )


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_buffer(path.read_bytes())
    # The library raises bare exceptions; whatever it says, the file is what is wrong.
    except Exception as error:
        raise ModelError(
            f"{path}: not a tokenizer that tokenizers {tokenizers.__version__} can read ({error}). "
            "Download it again, or update: pip install -U tokenizers."
        ) from error


def _convert(folder: Path) -> tokenizers.Tokenizer:
    """Through transformers, from tokenizer.model, vocab.json or what else its class reads."""
    if not any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        raise ModelError(
            f"{folder}: got no tokenizer.json, tokenizer.model or vocab.json, expected one of "
            "them. Download tokenizer.json, or name another directory with --tokenizer."
        )
    try:
        from transformers import AutoTokenizer

        backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
        return backend
    # Conversion runs foreign code over foreign files: any failure means that it cannot be done.
    except Exception as error:
        raise ModelError(
            f"{folder}: got no tokenizer.json, and transformers cannot make one ({error}). "
            "Download tokenizer.json, or name another directory with --tokenizer."
        ) from error


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in _SPECIAL:
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _add_missing(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]
) -> None:
    """Tokens that only tokenizer_config.json knows get the next ids, as in transformers."""
    from tokenizers import AddedToken

    listed = settings.get("added_tokens_decoder")
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    if isinstance(listed, dict):
        entries = sorted((int(i), e) for i, e in listed.items() if str(i).isdigit())
        for _, entry in entries:
            content = entry.get("content") if isinstance(entry, dict) else None
            if isinstance(content, str) and content and content not in known:
                flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
                options = {flag: entry[flag] for flag in flags if isinstance(entry.get(flag), bool)}
                backend.add_tokens([AddedToken(content, **options)])
                known.add(content)
    for content in special.values():
        if content and content not in known:
            backend.add_special_tokens([AddedToken(content, special=True)])
            known.add(content)


def _template(folder: Path, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """The directory's own template: chat_template.jinja wins over tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8", errors="replace"), str(path))
    name, source = "tokenizer_config.json", settings.get("chat_template")
    if source is None:
        name = "chat_template.json"
        source = _read(folder / name).get("chat_template")
    if isinstance(source, list):  # named ones
        named = {e.get("name"): e.get("template") for e in source if isinstance(e, dict)}
        source = named.get("default")
        if source is None:
            raise ModelError(
                f"{folder / name}: got chat templates named {sorted(map(str, named))}, expected "
                "one named 'default'. Save the one you mean to a file and pass it with "
                "--chat-template FILE."
            )
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelError(f"{folder / name}: chat_template is not text. Download the file again.")
    return ChatTemplate(source, str(folder / name))
