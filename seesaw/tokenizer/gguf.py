"""A tokenizer from the metadata of a GGUF file.

GGUF keeps the vocabulary, the merges or scores, and only the name of the pre-tokenizer: the rules
behind the names are in the table here, as llama.cpp has them. An unknown name is refused, as a near
miss would give other ids without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seesaw.errors import ModelError
from seesaw.tokenizer.chat_template import ChatTemplate
from seesaw.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_CONTROL, _USER_DEFINED = 3, 4
_ANOTHER = "Name a directory with the model's tokenizer.json: --tokenizer DIR."
_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
_SPACE = "▁"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Pre:
    """How text is cut before merges apply. `split` None = GPT-2's rule."""

    split: str | None = None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    """A piece that is a token is taken whole."""
    bos: bool = False
    """Whether BOS is put first where the file does not say."""


_PRE = {
    "gpt-2": _Pre(),
    "smollm": _Pre(single_digits=True),
    "qwen2": _Pre(_QWEN2, nfc=True),
    "deepseek-r1-qwen": _Pre(_QWEN2),
    "llama-bpe": _Pre(_LLAMA3, ignore_merges=True, bos=True),
    "llama3": _Pre(_LLAMA3, ignore_merges=True, bos=True),
    "tekken": _Pre(_TEKKEN, ignore_merges=True, bos=True),
}


def from_gguf(
    metadata: Mapping[str, Any], place: str, template: ChatTemplate | None,
    num_embeddings: int | None,
) -> Tokenizer:  # fmt: skip
    """Raises ModelError where the metadata holds no tokenizer, a damaged or an unknown one."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens) or not tokens:
        raise ModelError(f"{place}: got no vocabulary (tokenizer.ggml.tokens). {_ANOTHER}")
    kind = metadata.get("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            backend, bos = _byte_level(metadata, place, tokens)
        elif kind == "llama":
            backend, bos = _sentencepiece(metadata, tokens), True
        else:
            raise ModelError(
                f"{place}: got tokenizer.ggml.model={kind!r}, expected gpt2 or llama. {_ANOTHER}"
            )
        _add_tokens(backend, metadata, tokens)
        special = {
            name: tokens[index]
            for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"),
                              ("unk_token", "unknown"))
            if (index := _token_id(metadata, key, tokens)) is not None
        }  # fmt: skip
        _set_bos_eos(
            backend,
            special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", bos) else None,
            special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token") else None,
        )
    except ModelError:
        raise
    # The library raises bare exceptions; whatever it says, the metadata are what is wrong.
    except Exception as error:
        raise ModelError(
            f"{place}: its tokenizer metadata are damaged ({error}). Download the file again, or "
            "name a directory with the model's tokenizer.json: --tokenizer DIR."
        ) from error
    own = metadata.get("tokenizer.chat_template")
    if template is None and isinstance(own, str):
        template = ChatTemplate(own, place)
    eos_ids = _eos_ids(metadata, tokens, own if isinstance(own, str) else "")
    return Tokenizer(backend, special, eos_ids, template, num_embeddings)


def _token_id(metadata: Mapping[str, Any], key: str, tokens: list[str]) -> int | None:
    index = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return index if isinstance(index, int) and 0 <= index < len(tokens) else None


def _eos_ids(metadata: Mapping[str, Any], tokens: list[str], template: str) -> tuple[int, ...]:
    """What ends an answer: the ids that the file names, and the end of a turn that its own template
    writes, as many files name only the end of a document."""
    found = [_token_id(metadata, key, tokens) for key in ("eos", "eot", "eom")]
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if kind == _CONTROL and token in _ENDS_OF_TURN and token in template:
            found.append(index)
    return tuple(dict.fromkeys(index for index in found if index is not None))


def _byte_level(
    metadata: Mapping[str, Any], place: str, tokens: list[str]
) -> tuple[tokenizers.Tokenizer, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = metadata.get("tokenizer.ggml.pre")
    if name not in _PRE:
        raise ModelError(
            f"{place}: got tokenizer.ggml.pre={name!r}, expected one of {', '.join(_PRE)}. "
            f"{_ANOTHER}"
        )
    pre = _PRE[name]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.ignore_merges))
    steps: list[Any] = []
    if pre.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.split is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend, pre.bos


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    if str(metadata.get("general.architecture")).startswith("gemma"):
        # Runs of spaces are stored as spaces, and the scores are not the order of merging.
        tokens = [_SPACE * len(t) if t and not t.strip(" ") else t for t in tokens]
        scores: list[float] = [-float(index) for index in range(len(tokens))]
    else:
        scores = metadata["tokenizer.ggml.scores"]
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = _token_id(metadata, "unknown", tokens)
    model = models.BPE(
        vocab,
        merges_of(tokens, scores),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    ends: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.insert(0, normalizers.Prepend(_SPACE))
        ends.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(ends)
    return backend


def merges_of(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Merges that make each token of two others, best score first: SentencePiece's BPE joins the
    pair whose token scores highest."""
    vocab = {token: index for index, token in enumerate(tokens)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right, token[:cut], token[cut:]))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_tokens(
    backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: list[str]
) -> None:
    """Control and user-defined tokens are found whole in a text, before anything else."""
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    # A run of spaces that was respelled is no token of its own: normalisation makes it one.
    pairs = [
        (token, kind)
        for token, kind in zip(tokens, kinds, strict=True)
        if token and backend.token_to_id(token) is not None
    ]
    for special, wanted in ((True, _CONTROL), (False, _USER_DEFINED)):
        chosen = [
            AddedToken(token, special=special, normalized=False)
            for token, kind in pairs
            if kind == wanted
        ]
        if special:
            backend.add_special_tokens(chosen)
        else:
            backend.add_tokens(chosen)


def _set_bos_eos(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Put these tokens around each encoded text."""
    from tokenizers.processors import TemplateProcessing

    around = [token for token in (bos, eos) if token is not None]
    single = [*([bos] if bos is not None else []), "$A", *([eos] if eos is not None else [])]
    backend.post_processor = TemplateProcessing(
        single=single, special_tokens=[(token, backend.token_to_id(token)) for token in around]
    )
