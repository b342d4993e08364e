"""Lines of the answers file and of the errors file, in OpenAI's shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from seesaw.batch.reader import clip
from seesaw.errors import RequestError
from seesaw.outputs import CompletionOutput, Logprob, RequestOutput

_LOWEST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's stand-in
_MAX_MESSAGE = 2000


def stable_id(*parts: str | bytes) -> str:
    """24 hex digits that are the same whenever the parts are, so that a resumed job repeats
    itself.
    """
    mix = hashlib.blake2b(digest_size=12)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        mix.update(len(data).to_bytes(8, "big") + data)
    return mix.hexdigest()


def to_line(value: Mapping[str, Any]) -> bytes:
    """One line of JSON, UTF-8, with its line break."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: legal in JSON only as an escape
        return json.dumps(value, allow_nan=False).encode("ascii") + b"\n"


def answer_line(
    custom_id: str,
    kind: Literal["chat", "completions"],
    output: RequestOutput,
    *,
    row_key: str,
    model: str,
    created: int,
    num_top_logprobs: int = 0,
) -> bytes:
    """The line of an answered row. `row_key` makes the ids, `created` is in seconds."""
    chat = kind == "chat"
    choices = [
        _chat_choice(c, num_top_logprobs) if chat else _completion_choice(c) for c in output.outputs
    ]
    prompt_tokens = len(output.prompt_token_ids)
    completion_tokens = sum(len(c.token_ids) for c in output.outputs)
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{row_key}",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": output.num_cached_tokens},
        },
    }
    return to_line(
        {
            "id": f"batch_req_{row_key}",
            "custom_id": custom_id,
            "response": {"status_code": 200, "request_id": f"req_{row_key}", "body": body},
            "error": None,
        }
    )


def failure_of(error: RequestError, status: int | None = 400) -> dict[str, Any]:
    """What the journal keeps of a failed row. `status` None: there never was a response."""
    return {
        "status": status,
        "message": clip(error.message, _MAX_MESSAGE),
        "param": error.param,
        "code": error.code,
    }


def error_line(
    custom_id: str | None, line: int, failure: Mapping[str, Any], *, row_key: str
) -> bytes:
    """The line of a failed row. A request that was refused has a response with its status; a row
    that never got a response (it killed the engine) has a top-level error instead.
    """
    message = f"line {line}: {failure['message']}"
    status = failure["status"]
    error = {"message": message, "param": failure["param"], "code": failure["code"]}
    response: dict[str, Any] | None = None
    if status is not None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = {"error": {"message": message, "type": kind, **error}}
        response = {"status_code": status, "request_id": f"req_{row_key}", "body": body}
    return to_line(
        {
            "id": f"batch_req_{row_key}",
            "custom_id": custom_id,
            "response": response,
            "error": None if response else {"code": failure["code"], "message": message},
        }
    )


def _chat_choice(choice: CompletionOutput, num_top: int) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs is not None:
        content = []
        for token_id, ranked in zip(choice.token_ids, choice.logprobs, strict=True):
            top = [_token_entry(t, lp) for t, lp in _top(ranked, num_top)]
            content.append({**_token_entry(token_id, ranked[token_id]), "top_logprobs": top})
        logprobs = {"content": content, "refusal": None}
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _completion_choice(choice: CompletionOutput) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs is not None:
        tokens, token_logprobs, tops, offsets, offset = [], [], [], [], 0
        for token_id, ranked in zip(choice.token_ids, choice.logprobs, strict=True):
            text = _text(token_id, ranked[token_id])
            tokens.append(text)
            token_logprobs.append(_finite(ranked[token_id].logprob))
            tops.append({_text(t, lp): _finite(lp.logprob) for t, lp in ranked.items()})
            offsets.append(offset)
            offset += len(text)
        logprobs = {
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _top(ranked: Mapping[int, Logprob], num_top: int) -> list[tuple[int, Logprob]]:
    """The `num_top` most probable tokens, best first; the drawn one is in `ranked` besides them."""
    return sorted(ranked.items(), key=lambda entry: -entry[1].logprob)[:num_top]


def _token_entry(token_id: int, logprob: Logprob) -> dict[str, Any]:
    text = _text(token_id, logprob)
    return {
        "token": text,
        "logprob": _finite(logprob.logprob),
        "bytes": list(text.encode("utf-8", "replace")),
    }


def _text(token_id: int, logprob: Logprob) -> str:
    return f"token_id:{token_id}" if logprob.decoded_token is None else logprob.decoded_token


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
