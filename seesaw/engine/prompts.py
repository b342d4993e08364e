"""Prompts in, token ids out: what validates and tokenises requests. Needs no weights and no
torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seesaw.config import EngineConfig
from seesaw.errors import ModelError, RequestError
from seesaw.plan.device_memory import longest_wanted
from seesaw.sampling_params import SamplingParams
from seesaw.weights.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt that was validated; `text` is None where token ids were given."""

    text: str | None
    token_ids: list[int]


Prompt = str | Sequence[int] | Mapping[str, Any] | EncodedPrompt
"""Text, token ids, `{"prompt": text}`, `{"prompt_token_ids": ids}` or `{"messages": chat}`."""


PROMPT_KEYS = ("prompt", "prompt_token_ids", "messages")


class PromptEncoder:
    """A checkpoint's tokenizer, chat template and sampling defaults, as `batch.PromptEncoder`."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer()
        self.default_sampling = sampling_defaults(
            checkpoint.generation_config, str(checkpoint.path)
        )
        self.eos_token_ids = tuple(checkpoint.eos_token_ids)
        longest_wanted(config, checkpoint.spec)  # a limit that cannot be is told at once
        self.vocab_size = checkpoint.spec.vocab_size

    @property
    def model_name(self) -> str:
        return self._config.model

    @property
    def fingerprint(self) -> str:
        parts = (self._checkpoint.fingerprint, self._config.dtype, str(self._config.seed))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def max_model_len(self) -> int:
        """Of the settings or the model; what memory allows is known only to an engine."""
        return longest_wanted(self._config, self._checkpoint.spec)

    def encode_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """Text with the tokenizer's special tokens, or ids, checked. Raises RequestError."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        size = self.vocab_size
        ids = list(prompt)
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
                raise RequestError(
                    f"prompt holds {token!r}: expected token ids from 0 to {size - 1}.",
                    param="prompt",
                )
        return ids

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raise RequestError where `sampling` names tokens that the model does not have."""
        size = self.vocab_size
        for name in ("logit_bias", "stop_token_ids"):
            for token in getattr(sampling, name) or ():
                if token >= size:
                    raise RequestError(
                        f"{name} holds {token}: expected token ids from 0 to {size - 1}.",
                        param=name,
                    )

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Messages through the chat template, up to where the answer begins."""
        return self.render_chat(messages).token_ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> EncodedPrompt:
        """Like `encode_chat`, with the text that the template made."""
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            got = "empty" if messages in ([], (), "") else type(messages).__name__
            raise RequestError(
                f"messages is {got}: expected a list of messages, each with role and content.",
                param="messages",
            )
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        # The template writes the special tokens itself.
        return EncodedPrompt(text, self.tokenizer.encode(text, add_special_tokens=False))

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Any form of prompt, validated. Raises RequestError."""
        if isinstance(prompt, EncodedPrompt):
            return prompt
        if isinstance(prompt, Mapping):
            if len(prompt) != 1 or next(iter(prompt)) not in PROMPT_KEYS:
                raise RequestError(
                    f"prompt has keys {sorted(map(str, prompt))}: expected exactly one of "
                    f"{', '.join(PROMPT_KEYS)}.",
                    param="prompt",
                )
            if "messages" in prompt:
                return self.render_chat(prompt["messages"])
            ((key, prompt),) = prompt.items()
            if key == "prompt_token_ids" and isinstance(prompt, str):
                raise RequestError("prompt_token_ids is text: expected token ids.", param="prompt")
        if isinstance(prompt, str):
            return EncodedPrompt(prompt, self.encode_prompt(prompt))
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise RequestError(
                f"prompt is {type(prompt).__name__}: expected text or a list of token ids.",
                param="prompt",
            )
        return EncodedPrompt(None, self.encode_prompt(prompt))


def sampling_defaults(generation_config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Sampling settings of generation_config.json, under our names (the fields that vLLM reads).

    Raises ModelError, which names `place`, where a request could not have them.
    """
    names = {
        "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
        "repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens",
    }  # fmt: skip
    given = {ours: generation_config.get(theirs) for theirs, ours in names.items()}
    found = {name: value for name, value in given.items() if value is not None}
    try:
        SamplingParams.from_dict(found)
    except RequestError as error:
        raise ModelError(
            f"{place}: the model's sampling defaults cannot be used: {error} Correct "
            "generation_config.json, or download it again."
        ) from error
    return found
