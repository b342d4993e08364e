"""What a row asks for: OpenAI's request bodies, checked field by field.

Each field is used, known and ignored (`IGNORED`, counted), known and refused ("not supported
yet"), or unknown and refused with the nearest known name. Raises RequestError and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from seesaw.batch.reader import Row, check_text, clip
from seesaw.errors import RequestError, nearest
from seesaw.sampling_params import SamplingParams

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"
IGNORED = ("user", "metadata", "store")

_SAMPLING = (
    "temperature", "top_p", "n", "stop", "seed", "max_tokens", "presence_penalty",
    "frequency_penalty", "logit_bias", "top_k", "min_p", "repetition_penalty", "stop_token_ids",
    "ignore_eos", "min_tokens", "include_stop_str_in_output", "skip_special_tokens", "logprobs",
)  # fmt: skip
_CHAT = ("model", "messages", "max_completion_tokens", "top_logprobs", *_SAMPLING)
_COMPLETIONS = ("model", "prompt", *_SAMPLING)
# Known fields that seesaw does not act on -> the values that ask for nothing and so are accepted.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "stream": (False,), "stream_options": (), "tools": ([],), "tool_choice": ("none",),
    "parallel_tool_calls": (), "functions": ([],), "function_call": ("none",),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (),
    "prediction": (), "reasoning_effort": (), "verbosity": (), "web_search_options": (),
    "service_tier": ("auto", "default"), "echo": (False,), "suffix": ("",), "best_of": (1,),
    "prompt_logprobs": (), "guided_json": (), "guided_regex": (), "guided_choice": (),
    "guided_grammar": (), "structured_outputs": (), "bad_words": ([],), "allowed_token_ids": (),
    "use_beam_search": (False,), "truncate_prompt_tokens": (), "chat_template": (),
    "chat_template_kwargs": (), "add_generation_prompt": (True,),
    "continue_final_message": (False,), "add_special_tokens": (), "logits_processors": (),
}  # fmt: skip
_REFUSED_IN_MESSAGES = ("tool_calls", "tool_call_id", "function_call", "audio", "refusal")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """A checked row. `prompt` is text or token ids of a completion, None for a chat."""

    kind: Literal["chat", "completions"]
    messages: list[dict[str, str]] | None
    prompt: str | list[int] | None
    sampling: SamplingParams
    model: str | None
    ignored: tuple[str, ...]


def parse_request(
    row: Row,
    *,
    defaults: Mapping[str, Any],
    job_seed: int = 0,
    served_model_name: str | None = None,
) -> BatchRequest:
    """Check all that can be checked without a tokenizer. `defaults`: the model's own sampling."""
    try:
        return _parse(row, defaults, job_seed, served_model_name)
    except RecursionError as error:  # the repr of a value nested a thousand deep
        raise RequestError("the body is nested too deeply.", param="body") from error


def _parse(
    row: Row, defaults: Mapping[str, Any], job_seed: int, served_model_name: str | None
) -> BatchRequest:
    record = row.record
    for name in record:
        if name not in ("custom_id", "method", "url", "body"):
            raise _unknown(name, ("custom_id", "method", "url", "body"), "of a batch line")
    if record.get("method", "POST") != "POST":
        raise _expected("method", record["method"], "'POST'")
    url, body = record.get("url"), record.get("body")
    if url not in (CHAT_URL, COMPLETIONS_URL):
        raise RequestError(
            f"url {clip(repr(url))} is not supported. Use {CHAT_URL} or {COMPLETIONS_URL}.",
            param="url",
            code="unsupported_url",
        )
    if not isinstance(body, dict):
        raise _expected("body", body, "an object")
    chat = url == CHAT_URL
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(given, _CHAT if chat else _COMPLETIONS, url)
    model = given.get("model")
    if model is not None and not isinstance(model, str):
        raise _expected("model", model, "a string")
    if served_model_name is not None and model is not None and model != served_model_name:
        raise RequestError(
            f"model {clip(repr(model))} is not served here; this job serves "
            f"{served_model_name!r}. Change the row or --served-model-name.",
            param="model",
            code="model_not_found",
        )
    wanted = _sampling_of(given, chat)
    wanted.setdefault("seed", derive_seed(job_seed, row.custom_id))
    return BatchRequest(
        kind="chat" if chat else "completions",
        messages=_messages(given.get("messages")) if chat else None,
        prompt=None if chat else _prompt(given.get("prompt")),
        sampling=SamplingParams.from_dict(wanted, defaults),
        model=model,
        ignored=tuple(name for name in IGNORED if name in given),
    )


def derive_seed(job_seed: int, custom_id: str) -> int:
    """The seed, 0 .. 2**63 - 1, of a row that names none: the same in any order and after any
    resume.
    """
    text = f"{job_seed}\0{custom_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], url: str) -> None:
    for name, value in given.items():
        if name in known or name in IGNORED:
            continue
        if name not in _REFUSED:
            raise _unknown(name, (*known, *IGNORED, *_REFUSED), f"of {url}")
        # bool == int in Python: False must not pass for 0, nor 1.0 for 1
        if not any(value == ok and type(value) is type(ok) for ok in _REFUSED[name]):
            raise RequestError(
                f"{name}={clip(repr(value))} is not supported yet. Leave it out.",
                param=name,
                code="unsupported",
            )


def _sampling_of(given: Mapping[str, Any], chat: bool) -> dict[str, Any]:
    """The body's sampling fields as SamplingParams takes them."""
    wanted = {name: given[name] for name in _SAMPLING if name in given}
    if "max_completion_tokens" in given:
        limit = given["max_completion_tokens"]
        if wanted.get("max_tokens", limit) != limit:
            raise RequestError(
                f"max_tokens={clip(repr(wanted['max_tokens']))} and max_completion_tokens="
                f"{clip(repr(limit))} mean the same. Give one of them.",
                param="max_completion_tokens",
            )
        wanted["max_tokens"] = limit
    if chat:
        logprobs = wanted.pop("logprobs", False)
        if not isinstance(logprobs, bool):
            raise _expected("logprobs", logprobs, "true or false (the count is top_logprobs)")
        if not logprobs and "top_logprobs" in given:
            raise RequestError("top_logprobs needs logprobs=true.", param="top_logprobs")
        if logprobs:
            wanted["logprobs"] = given.get("top_logprobs", 0)
    if "logit_bias" in wanted:
        wanted["logit_bias"] = _logit_bias(wanted["logit_bias"])
    for name in ("stop", "stop_token_ids"):
        kinds = (list, str) if name == "stop" else (list,)
        if name in wanted and not isinstance(wanted[name], kinds):
            raise _expected(name, wanted[name], "an array")
    for text in wanted.get("stop", ()):
        if isinstance(text, str):
            check_text(text, "stop")
    return wanted


def _logit_bias(given: object) -> dict[int, float]:
    """JSON has string keys only: {"50256": -100} -> {50256: -100}."""
    if not isinstance(given, dict):
        raise _expected("logit_bias", given, "an object from token id to a number")
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise _expected("logit_bias", key, "token ids as keys")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _expected("logit_bias", value, "numbers from -100 to 100")
        bias[int(key)] = value
    return bias


def _prompt(prompt: object) -> str | list[int]:
    if isinstance(prompt, str) and prompt:
        check_text(prompt, "prompt")
        return prompt
    if isinstance(prompt, list) and prompt:
        if all(isinstance(t, int) and not isinstance(t, bool) for t in prompt):
            return prompt
        if all(isinstance(t, str | list) for t in prompt):
            raise RequestError(
                f"a list of {len(prompt)} prompts is not supported yet. Send one row per prompt.",
                param="prompt",
                code="unsupported",
            )
    raise _expected("prompt", prompt, "text or a list of token ids, not empty")


def _messages(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise _expected("messages", messages, "a list of messages, not empty")
    return [_message(m, f"messages[{i}]") for i, m in enumerate(messages)]


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _expected(where, message, "an object with role and content")
    for name, value in message.items():
        if name in ("role", "content", "name"):
            continue
        if name not in _REFUSED_IN_MESSAGES:
            raise _unknown(name, ("role", "content", "name"), f"of {where}", param=where)
        if value is not None:
            raise RequestError(
                f"{where}.{name} is not supported yet. Leave it out.",
                param=f"{where}.{name}",
                code="unsupported",
            )
    role = message.get("role")
    if role in ("tool", "function"):
        raise RequestError(
            f"{where}.role={role!r} is not supported yet.",
            param=f"{where}.role",
            code="unsupported",
        )
    if role not in ("system", "developer", "user", "assistant"):
        raise _expected(f"{where}.role", role, "system, developer, user or assistant")
    # `developer` is OpenAI's newer word for the same thing; templates only know `system`.
    made = {
        "role": "system" if role == "developer" else role,
        "content": _content(message.get("content"), f"{where}.content"),
    }
    if message.get("name") is not None:
        if not isinstance(message["name"], str):
            raise _expected(f"{where}.name", message["name"], "a string")
        check_text(message["name"], f"{where}.name")
        made["name"] = message["name"]
    return made


def _content(content: object, where: str) -> str:
    """Text, or parts of type text joined by line breaks (as vLLM does)."""
    if isinstance(content, list) and content:
        parts: list[str] = []
        for i, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise _expected(f"{where}[{i}]", part, "an object with a type")
            if part["type"] != "text":
                raise RequestError(
                    f"{where}[{i}]: content of type {clip(repr(part['type']))} is not supported "
                    "yet, only text.",
                    param=f"{where}[{i}]",
                    code="unsupported",
                )
            if not isinstance(part.get("text"), str):
                raise _expected(f"{where}[{i}].text", part.get("text"), "text")
            parts.append(part["text"])
        content = "\n".join(parts)
    if not isinstance(content, str):
        raise _expected(where, content, "text or a list of text parts")
    check_text(content, where)
    return content


def _expected(param: str, value: object, expected: str) -> RequestError:
    return RequestError(
        f"{param}={clip(repr(value))}: expected {expected}.", param=param, code="invalid_type"
    )


def _unknown(
    name: str, known: tuple[str, ...], what: str, param: str | None = None
) -> RequestError:
    return RequestError(
        f"unknown field {clip(repr(name))} {what}.{nearest(name, known)}",
        param=param or clip(name),
        code="unknown_parameter",
    )
