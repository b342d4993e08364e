"""Ids, texts and chats equal those of transformers; what cannot be is said."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ConfigError, ModelError, RequestError
from seesaw.tokenizer import open_tokenizer
from seesaw.tokenizer.json_file import read_json
from tests.checkpoints import SENTENCES, write_tokenizer

TEXTS = [
    *SENTENCES,
    "",
    " ",
    "\n\n  two  spaces\tand tabs \r\n",
    "e\u0301 é ﬁ 東京 \u200d👩‍👩‍👧 \u0000 \ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "12 345 6,789.01 x12 -3",
    str(argparse.__doc__),
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is <b>tojson</b> & 'why'?"},
    {"role": "assistant", "content": "A filter."},
    {"role": "user", "content": "日本語?"},
]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def configure(folder: Path, **changes) -> None:
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def theirs(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"bos_token": {"__type": "AddedToken", "content": "<bos>", "special": True}},
        {"added_tokens_decoder": {"310": {"content": "<tool>", "special": False,
                                          "normalized": False}}},
    ],
)  # fmt: skip
def test_ids_and_texts_equal_those_of_transformers(folder, settings):
    configure(folder, **settings)
    ours, reference = open_tokenizer(folder), theirs(folder)
    for text in [*TEXTS, "a <tool> b <bos>"]:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == reference.encode(text, add_special_tokens=special)
        for skip in (True, False):
            decoded = ours.decode(ids, skip_special_tokens=skip)
            assert decoded == reference.decode(ids, skip_special_tokens=skip)
    assert ours.eos_token_ids == (reference.eos_token_id,)
    assert ours.vocab_size == len(reference)


def test_tokens_around_a_text_are_those_of_tokenizer_json(folder):
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )
    backend.save(str(folder / "tokenizer.json"))
    ours, reference = open_tokenizer(folder), theirs(folder)
    ids = ours.encode("a fox")
    assert ids == reference.encode("a fox")
    assert (ids[0], ids[-1]) == (0, 2)
    assert ours.encode("a fox", add_special_tokens=False) == ids[1:-1]


def test_settings_left_from_training_cut_nothing(folder):
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    plain = open_tokenizer(folder).encode(SENTENCES[0])
    backend.save(str(folder / "tokenizer.json"))
    assert open_tokenizer(folder).encode(SENTENCES[0]) == plain
    assert len(plain) > 9
    assert open_tokenizer(folder).encode("") == []


def test_directory_without_tokenizer_json_is_converted(folder, tmp_path_factory):
    slow = tmp_path_factory.mktemp("slow")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (slow / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (slow / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>",
                "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}  # fmt: skip
    (slow / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, reference = open_tokenizer(slow), theirs(slow)
    for text in SENTENCES:
        assert ours.encode(text) == reference.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_text_that_is_none(folder):
    tokenizer = open_tokenizer(folder, num_embeddings=100)
    for bad in ("a \ud800 b", 7, None):
        with pytest.raises(RequestError, match="not valid Unicode text"):
            tokenizer.encode(bad)
    with pytest.raises(RequestError, match=r"id \d+\), which the model with 100 embeddings"):
        tokenizer.encode("The quick brown fox")


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    with pytest.raises(ModelError, match="Is a directory") as told:
        read_json(tmp_path)
    assert "Download" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("tokenizer.json", "{}", ["not a tokenizer that tokenizers", "Download"]),
        ("tokenizer.json", "\x00", ["not a tokenizer"]),
        ("tokenizer.json", None, ["no tokenizer.json", "--tokenizer"]),
        ("tokenizer_config.json", "[", ["not readable as JSON"]),
        ("tokenizer_config.json", "[]", ["expected an object"]),
        ("tokenizer_config.json", '{"chat_template": 7}', ["chat_template is not text"]),
        ("tokenizer_config.json", '{"chat_template": [{"name": "rag", "template": ""}]}',
         ["['rag']", "named 'default'", "--chat-template FILE"]),
        ("chat_template.jinja", "{% for %}", ["chat_template.jinja", "--chat-template FILE"]),
    ],
)  # fmt: skip
def test_damaged_files(folder, name, content, parts):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        open_tokenizer(folder)
    for part in [str(folder), *parts]:
        assert part in str(caught.value)


TEMPLATES = [
    "{% for m in messages %}\n  {{ m['role'] }}: {{ m.content | trim }}\n{% endfor %}",
    "{{ bos_token }}{{ messages | tojson }}{{ eos_token }}{{ {'a': '<é>'} | tojson(indent=2) }}",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}x",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{% if tools %}t{% endif %}{{ strftime_now('%Y') | length }}{{ unknown_thing }}",
    "{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif "
    "%}{%- if add_generation_prompt %}GO{% endif %}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("place", ["settings", "named", "jinja", "argument"])
def test_templates_render_as_in_transformers(folder, source, place):
    argument = None
    if place == "settings":
        configure(folder, chat_template=source)
    elif place == "named":
        named = [{"name": "default", "template": source}, {"name": "tool_use", "template": "no"}]
        configure(folder, chat_template=named)
    else:
        name = "chat_template.jinja" if place == "jinja" else "mine.txt"
        (folder / name).write_text(source)
        argument = None if place == "jinja" else str(folder / name)
    ours = open_tokenizer(folder, chat_template=argument)
    reference = theirs(folder)
    for prompt in (True, False):
        expected = reference.apply_chat_template(
            CHAT,
            chat_template=source if argument else None,
            add_generation_prompt=prompt,
            tokenize=False,
        )
        assert ours.apply_chat_template(CHAT, add_generation_prompt=prompt) == expected


def test_no_template(folder):
    configure(folder, chat_template=None)
    with pytest.raises(RequestError, match="--chat-template FILE") as caught:
        open_tokenizer(folder).apply_chat_template(CHAT)
    assert caught.value.param == "messages"
    with pytest.raises(ConfigError, match=r"chat_template='/gone': not readable"):
        open_tokenizer(folder, chat_template="/gone")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ messages[99].content.x }}", "99"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(99999999) %}{% endfor %}", "ange"),
    ],
)
def test_a_template_that_refuses_fails_the_request_alone(folder, source, part):
    configure(folder, chat_template=source)
    tokenizer = open_tokenizer(folder)
    with pytest.raises(RequestError) as caught:
        tokenizer.apply_chat_template(CHAT)
    assert part in str(caught.value)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("message", "part"),
    [
        ("hi", "messages[1]: got str"),
        ({"content": "x"}, "messages[1]"),
        ({"role": "user"}, "messages[1].content: got NoneType"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "not text"),
    ],
)
def test_messages_that_cannot_be(folder, message, part):
    with pytest.raises(RequestError) as caught:
        open_tokenizer(folder).apply_chat_template([CHAT[0], message])
    assert part in str(caught.value)


def test_text_parts_are_joined(folder):
    tokenizer = open_tokenizer(folder)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    joined = tokenizer.apply_chat_template([{"role": "user", "content": "a\nb"}])
    assert tokenizer.apply_chat_template([{"role": "user", "content": parts}]) == joined


SPACE = "\u2581"
PIECES = ["h", "e", "l", "o", "w", SPACE, f"{SPACE}h", "he", "lo", f"{SPACE}hello", "hello",
          f"{SPACE}w", "\u00e9", f"{SPACE}{SPACE}"]  # fmt: skip


def sentencepiece(**extra):
    """A SentencePiece-style tokenizer: byte tokens 3 to 258, then PIECES, then a special token."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES, "<sep>"]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(PIECES))] + [0.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [3],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **extra,
    }
    return open_tokenizer(Path("tiny.gguf"), metadata), tokens


def test_sentencepiece_from_metadata():
    tokenizer, tokens = sentencepiece()
    ids = tokenizer.encode("hello  wolé\u4f60")
    spelled = [tokens[i] for i in ids]
    assert spelled[0] == "<s>"
    assert "".join(spelled[1:]).startswith(f"{SPACE}hello")
    assert spelled[-3:] == ["<0xE4>", "<0xBD>", "<0xA0>"]
    assert tokenizer.decode(ids) == "hello  wolé\u4f60"
    plain, _ = sentencepiece(
        **{"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    )
    assert tokens[plain.encode("hello")[0]] != "<s>"
    assert plain.decode(plain.encode(" hello")) == " hello"


def test_gemma_spells_runs_of_spaces_as_spaces():
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "  ", "\n\n"]
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    tokens += [SPACE, "a", "b", f"{SPACE}a", "ab"]
    metadata = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0] * len(tokens),
        "tokenizer.ggml.token_type": [3, 3, 3, 3, 4, 4] + [6] * 256 + [1] * 5,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = open_tokenizer(Path("gemma.gguf"), metadata, num_embeddings=len(tokens))
    assert tokenizer.vocab_size == len(tokens)
    text = "ab  a ab\n\nb"
    ids = tokenizer.encode(text)
    assert [tokens[i] for i in ids] == ["<bos>", "ab", "  ", "a", f"{SPACE}a", "b", "\n\n", "b"]
    assert tokenizer.decode(ids) == text
    assert "".join(pieces(tokenizer, ids, True)) == text


def pieces(tokenizer, ids, skip) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


SENTENCEPIECE = sentencepiece()[0]


@given(data=st.data(), skip=st.booleans())
def test_sentencepiece_pieces_joined_are_the_whole_text(data, skip):
    some = [0, 1, 2, *range(3 + 0x80, 3 + 0x100, 9), 3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 3 + 0x41]
    tokens = [*some, *range(259, SENTENCEPIECE.vocab_size)]
    ids = data.draw(st.lists(st.sampled_from(tokens), max_size=12))
    joined = "".join(pieces(SENTENCEPIECE, ids, skip))
    assert joined == SENTENCEPIECE.decode(ids, skip_special_tokens=skip)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    configure(folder, added_tokens_decoder={"310": {"content": "<a tool>", "special": False}})
    return open_tokenizer(folder)


@given(data=st.data(), skip=st.booleans())
def test_byte_level_pieces_joined_are_the_whole_text(byte_level, data, skip):
    tokens = st.integers(0, byte_level.vocab_size - 1)
    ids = data.draw(st.lists(tokens, max_size=16))
    joined = "".join(pieces(byte_level, ids, skip))
    assert joined == byte_level.decode(ids, skip_special_tokens=skip)


@given(text=st.text())
def test_each_piece_is_given_as_soon_as_it_is_whole(byte_level, text):
    ids = byte_level.encode(text, add_special_tokens=False)
    given_text = ""
    for piece in pieces(byte_level, ids, False):
        given_text += piece
        assert text.startswith(given_text)
    assert given_text == text


def test_import_needs_no_torch_and_no_transformers(folder):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from seesaw.tokenizer import open_tokenizer\n"
        "t = open_tokenizer(Path(sys.argv[1]))\n"
        "assert t.encode(t.apply_chat_template([{'role': 'user', 'content': 'x'}]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@pytest.mark.model
def test_smollm2_ids_equal_those_of_transformers(smollm2_gguf, tmp_path):
    from transformers import AutoTokenizer

    from seesaw.weights.gguf_file import read_gguf

    ours = open_tokenizer(smollm2_gguf, read_gguf(smollm2_gguf).metadata)
    reference = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    source = Path(str(os.__file__)).read_text()
    start = random.randrange(len(source) // 2)
    for text in [*TEXTS, source[start : start + 5000]]:
        ids = ours.encode(text)
        assert ids == reference.encode(text)
        assert ours.decode(ids, skip_special_tokens=False) == text
        assert "".join(pieces(ours, ids, False)) == text
    for prompt in (True, False):
        assert ours.apply_chat_template(
            CHAT, add_generation_prompt=prompt
        ) == reference.apply_chat_template(CHAT, add_generation_prompt=prompt, tokenize=False)
    assert ours.eos_token_ids == (reference.eos_token_id,)
    # Digits are cut one by one, which the converter of transformers does not do: the vocabulary
    # has no token of two.
    assert [ours.decode([i]) for i in ours.encode("2026")] == ["2", "0", "2", "6"]
    # What it saves as tokenizer.json gives the same ids through our other door.
    reference.save_pretrained(tmp_path)
    assert open_tokenizer(tmp_path).encode(SENTENCES[0]) == ours.encode(SENTENCES[0])


def test_fingerprint_follows_what_changes_ids(folder, tmp_path_factory):
    first = open_tokenizer(folder).fingerprint
    other = Path(shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "x"))
    assert open_tokenizer(other).fingerprint == first
    configure(other, chat_template="{{ 1 }}")
    assert open_tokenizer(other).fingerprint != first
    shutil.copy(folder / "tokenizer_config.json", other)
    configure(other, eos_token="<|endoftext|>")
    assert open_tokenizer(other).fingerprint != first
