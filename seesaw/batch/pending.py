"""Rows still to run: found again in the input, and turned into token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from seesaw.batch.body import BatchRequest
from seesaw.batch.journal import PendingRow
from seesaw.batch.protocol import PromptEncoder
from seesaw.batch.reader import Row, parse_row, read_lines
from seesaw.errors import JobError, RequestError
from seesaw.log import get_logger

log = get_logger(__name__)


class EncodingFailed(RequestError):
    """Tokenizer or template failed in a way it should not; the row fails, the job goes on."""


def read_pending(path: Path, pending: Iterator[PendingRow]) -> Iterator[tuple[PendingRow, Row]]:
    """The input's rows for journal entries that come in line order. Raises JobError if the input is
    not what the scan saw.
    """
    lines = read_lines(path)
    for known in pending:
        line = next((line for line in lines if line.number >= known.line), None)
        try:
            row = None if line is None else parse_row(line)
        except RequestError:
            row = None
        if row is None or row[:3] != (known.line, known.custom_id, known.digest):
            raise JobError(
                f"input {path} changed while the job runs (line {known.line}). "
                "Start the job again: it takes the new rows and keeps the answers."
            )
        yield known, row


def encode(encoder: PromptEncoder, request: BatchRequest) -> list[int]:
    """Token ids of a row, at least one and fewer than the context limit. Raises RequestError, also
    for sampling that the model cannot do.
    """
    encoder.check_sampling(request.sampling)
    param = "prompt" if request.messages is None else "messages"
    try:
        if request.messages is not None:
            token_ids = encoder.encode_chat(request.messages)
        else:
            assert request.prompt is not None, "a completion has a prompt"
            token_ids = encoder.encode_prompt(request.prompt)
    except RequestError:
        raise
    except Exception as error:
        log.debug("a prompt could not be encoded", exc_info=True)  # a million rows may follow
        raise EncodingFailed(
            f"the prompt could not be encoded: {type(error).__name__}: {error}",
            param=param,
            code="internal_error",
        ) from error
    if not token_ids:
        raise RequestError(f"{param}: has no tokens. Send some text.", param=param)
    if len(token_ids) >= encoder.max_model_len:
        raise RequestError(
            f"the prompt has {len(token_ids)} tokens, but the context limit is "
            f"{encoder.max_model_len} for prompt and answer together. Shorten it.",
            param=param,
            code="context_length_exceeded",
        )
    return token_ids
