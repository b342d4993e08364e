"""What a batch job needs of a tokenizer and of an engine. `engine.prompts.PromptEncoder` and
`seesaw.Engine` are one each; tests bring fake ones without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from seesaw.outputs import EngineStatus, RequestOutput
from seesaw.sampling_params import SamplingParams


class PromptEncoder(Protocol):
    """What validates and tokenises rows; needs no weights, so `--dry-run` has only this."""

    @property
    def model_name(self) -> str:
        """Model as the user named it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same request could get another answer: weights, tokenizer, template,
        dtype, seed.
        """
        ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        """The model's own defaults (generation_config.json), to be overlaid by a row's settings."""
        ...

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raise RequestError where `sampling` names tokens that the model does not have."""
        ...

    def encode_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """Text -> token ids with the tokenizer's special tokens; ids are checked against the
        vocabulary. Raises RequestError.
        """
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Messages -> token ids through the chat template, with the generation prompt. Raises
        RequestError.
        """
        ...


class BatchEngine(Protocol):
    """What answers encoded rows; needs no tokenizer of its own."""

    @property
    def max_num_queued(self) -> int:
        """Requests that a job keeps unfinished in the engine, so that it never waits for a row."""
        ...

    @property
    def status(self) -> EngineStatus:
        """Where it stands, for people; asked for many times a second."""
        ...

    def add_request(
        self, request_id: str, prompt_token_ids: Sequence[int], sampling: SamplingParams
    ) -> None:
        """Queue a request. Raises RequestError if it can never run (too long, duplicate id)."""
        ...

    def abort_request(self, request_id: str) -> None: ...

    def step(self) -> list[RequestOutput]:
        """Advance; return the requests that finished. Raises EngineDeadError when the engine cannot
        go on.
        """
        ...

    def has_unfinished_requests(self) -> bool: ...

    def shutdown(self) -> None:
        """Free everything; safe to call twice and after a crash."""
        ...


EngineFactory = Callable[[], BatchEngine]
