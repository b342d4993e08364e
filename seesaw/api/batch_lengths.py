"""How long the prompts and answers of a batch file are, without running it.

Counts with the model's tokenizer where there is one, else estimates from characters. Loads no
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seesaw.batch.body import BatchRequest, parse_request
from seesaw.batch.reader import parse_row, read_lines
from seesaw.errors import ConfigError, RequestError
from seesaw.plan.workload import Lengths, Listed
from seesaw.tokenizer import Tokenizer

CHARACTERS_PER_TOKEN = 4
"""Of English text, as a rule of thumb."""

MOST_SAMPLED = 2000
"""Rows whose lengths are looked at before a job begins."""

Count = Callable[[BatchRequest], int]


def batch_workload(path: Path, tokenizer: Tokenizer | None, answer_tokens: int | None) -> Listed:
    """The lengths of each row that can be served; an answer is as long as its `max_tokens`, or
    `answer_tokens` if that is given.

    Raises ConfigError where no row can be served, or answers are bounded by neither.
    """
    count = _by_characters if tokenizer is None else _by_tokens(tokenizer)
    lengths, problems = [], []
    for line in read_lines(path):
        try:
            request = parse_request(parse_row(line), defaults={})
            answer = answer_tokens or request.sampling.max_tokens
            if answer is None:
                raise ConfigError(
                    f"{path}, line {line.number}: has no max_tokens, so its answer may be of any "
                    "length. Give --answer-tokens, the mean that you expect."
                )
            lengths += [Lengths(max(1, count(request)), answer)] * request.sampling.n
        except RequestError as error:
            problems.append(f"line {line.number}: {error}")
    if not lengths and not problems:
        raise ConfigError(
            f"workload {path}: has no row. Expected a batch file, one JSON request a line."
        )
    if not lengths:
        raise ConfigError(
            f"workload {path}: none of {len(problems)} rows can be served. The first: {problems[0]}"
        )
    found = Listed(str(path), lengths)
    how = "the model's tokenizer"
    if tokenizer is None:
        how = f"characters, {CHARACTERS_PER_TOKEN} to a token, as the model has no tokenizer here"
    left_out = ""
    if problems:
        left_out = (
            f"; {len(problems)} rows that cannot be served left out, the first is {problems[0]}"
        )
    answers = "--answer-tokens" if answer_tokens else "max_tokens of each row"
    found.source = f"{len(lengths)} answers; prompts by {how}; answers by {answers}{left_out}"
    return found


def sample_lengths(path: Path) -> tuple[Sequence[Lengths], int]:
    """Lengths of up to MOST_SAMPLED rows that say how long their answers may be, spread over the
    file, prompts by their characters; and how many answers the file asks for. Rows that cannot be
    read are left to the job, which says what is wrong with them."""
    found: list[Lengths] = []
    num_answers, stride = 0, 1
    for number, line in enumerate(read_lines(path)):
        if number % stride:
            num_answers += 1  # as many as most rows ask for: one
            continue
        try:
            request = parse_request(parse_row(line), defaults={})
        except RequestError:
            continue
        num_answers += request.sampling.n
        if request.sampling.max_tokens:
            found.append(Lengths(max(1, _by_characters(request)), request.sampling.max_tokens))
        if len(found) == MOST_SAMPLED:
            found, stride = found[::2], 2 * stride
    return found, num_answers


def _by_tokens(tokenizer: Tokenizer) -> Count:
    def count(request: BatchRequest) -> int:
        if request.messages is not None:
            text = tokenizer.apply_chat_template(request.messages, add_generation_prompt=True)
            return len(tokenizer.encode(text, add_special_tokens=False))
        if isinstance(request.prompt, str):
            return len(tokenizer.encode(request.prompt))
        return len(request.prompt or ())

    return count


def _by_characters(request: BatchRequest) -> int:
    if request.messages is not None:
        return sum(_tokens(message) for message in request.messages)
    if isinstance(request.prompt, str):
        return -(-len(request.prompt) // CHARACTERS_PER_TOKEN)
    return len(request.prompt or ())


def _tokens(message: Mapping[str, Any]) -> int:
    parts: Sequence[str] = [str(value) for value in message.values()]
    return -(-sum(map(len, parts)) // CHARACTERS_PER_TOKEN)
