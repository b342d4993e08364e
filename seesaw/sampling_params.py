"""How the tokens of one request are chosen (vLLM's fields and meaning; unsupported ones are
refused).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from seesaw.errors import RequestError, nearest

# Fields of vLLM that seesaw knows of and does not do yet: refused by name, never ignored.
NOT_SUPPORTED = (
    "prompt_logprobs", "allowed_token_ids", "bad_words", "structured_outputs", "guided_decoding",
    "logits_processors", "best_of", "use_beam_search", "truncate_prompt_tokens", "extra_args",
)  # fmt: skip
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
_INT64 = 2**63


def _refuse(param: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{param}={value!r}: expected {expected}.", param=param)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    """Not empty and without halves of surrogate pairs, which no answer holds."""
    return isinstance(value, str) and value != "" and not re.search("[\ud800-\udfff]", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    n: int = 1
    """Number of answers per prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 = greedy."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this probability; 1 = all."""
    top_k: int = 0
    """Keep this many most probable tokens; 0 or -1 = all."""
    min_p: float = 0.0
    """Drop tokens less probable than this fraction of the most probable one; 0 = none."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the answer already holds."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the answer."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 = off.
    """
    seed: int | None = None
    """Fixes the random draws of this request; None = derived from the engine's seed and the request
    id.
    """
    stop: tuple[str, ...] = ()
    """Strings that end the answer, or one string."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the answer, beside the model's own end-of-sequence ids."""
    include_stop_str_in_output: bool = False
    """Keep the stop string at the end of the text."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens cannot be drawn before this many tokens."""
    max_tokens: int | None = None
    """Most tokens of an answer; None = up to the context limit (vLLM's default is 16)."""
    logprobs: int | None = None
    """Log-probabilities of the drawn token and of this many most probable ones at each position."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these token ids."""
    detokenize: bool = True
    """False leaves `text` empty."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        for name, given in (("stop", stop), ("stop_token_ids", self.stop_token_ids)):
            if given is not None and not isinstance(given, list | tuple):
                raise _refuse(name, given, "a list")
            object.__setattr__(self, name, tuple(given or ()))
        self._check_ints()
        self._check_floats()
        for name in (
            "include_stop_str_in_output",
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
        ):
            if not isinstance(getattr(self, name), bool):
                raise _refuse(name, getattr(self, name), "true or false")
        if len(self.stop) > MAX_STOP_STRINGS or not all(map(_is_text, self.stop)):
            raise _refuse(
                "stop", self.stop, f"at most {MAX_STOP_STRINGS} non-empty strings of valid Unicode"
            )
        if not all(_is_int(t) and t >= 0 for t in self.stop_token_ids):
            raise _refuse("stop_token_ids", self.stop_token_ids, "token ids from 0")
        # From here on plain values, whatever kinds of str, int and float were given: what goes to
        # another process must be that.
        object.__setattr__(self, "stop", tuple(map(str.__str__, self.stop)))
        object.__setattr__(self, "stop_token_ids", tuple(map(int, self.stop_token_ids)))
        if self.stop and not self.detokenize:
            raise RequestError(
                "stop strings need detokenize=True. Use stop_token_ids instead.", param="stop"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refuse("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")
        bias = self.logit_bias
        if bias is not None:
            if not isinstance(bias, Mapping):
                raise _refuse("logit_bias", bias, "a mapping from token id to a number")
            for token, value in bias.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not _is_int(token) or token < 0 or not number:
                    raise _refuse("logit_bias", {token: value}, "token ids from 0 and numbers")
                if not -100 <= value <= 100:
                    raise _refuse("logit_bias", {token: value}, "values from -100 to 100")
            plain = {int(token): float(value) for token, value in bias.items()}
            object.__setattr__(self, "logit_bias", plain)

    def _check_ints(self) -> None:
        bounds: dict[str, tuple[int, float]] = {
            "n": (1, 1024), "top_k": (-1, math.inf), "min_tokens": (0, math.inf),
            "max_tokens": (0, math.inf), "logprobs": (0, MAX_LOGPROBS),
            "seed": (-_INT64, 2 * _INT64 - 1),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is None and name in ("max_tokens", "logprobs", "seed"):
                continue
            if not _is_int(value) or not low <= value <= high:
                upto = f" to {high}" if high < math.inf else ""
                raise _refuse(name, value, f"an integer from {low}{upto}")
            # Nothing unbounded means more than 64 bits can say, which is what messages hold.
            plain = int(value) if high < math.inf else min(int(value), _INT64 - 1)
            object.__setattr__(self, name, plain)

    def _check_floats(self) -> None:
        bounds = {
            "temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0),
            "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0),
            "repetition_penalty": (0.0, 100.0),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if not good or not low <= value <= high:  # a NaN fails the comparison
                raise _refuse(name, value, f"a number from {low:g} to {high:g}")
            object.__setattr__(self, name, float(value))
        if self.top_p == 0:
            raise _refuse("top_p", self.top_p, "a number above 0")
        if self.repetition_penalty == 0:
            raise _refuse("repetition_penalty", self.repetition_penalty, "a number above 0")

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    def end_token_ids(self, eos_token_ids: Iterable[int]) -> frozenset[int]:
        """Tokens that end an answer of a model with these end-of-sequence ids."""
        return frozenset(self.stop_token_ids).union(() if self.ignore_eos else eos_token_ids)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Self:
        """`defaults` (of the model) overlaid by `given` (of the request). Raises RequestError on
        unknown names.
        """
        known = {f.name for f in fields(cls)}
        for name in given:
            if name in NOT_SUPPORTED:
                raise RequestError(
                    f"{name} is not supported yet. Leave it out.", param=name, code="unsupported"
                )
            if name not in known:
                raise RequestError(
                    f"unknown sampling parameter {name!r}.{nearest(name, known)}", param=name
                )
        return cls(**{**(defaults or {}), **given})
