"""Typed reading of a Hugging Face `config.json`.

Standard library only. Every number that reaches a ModelSpec went through here, so that a damaged
or foreign config is an error with the field's name, never a wrong model. A field that is null
counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from seesaw.errors import ModelError

MAX_INT = 2**31 - 1
MAX_NUMBER = 1e15
REQUIRED: Any = object()
"""Default of a field that a config must have."""


class Fields:
    """A config with the place it came from, as people know it."""

    def __init__(self, config: Mapping[str, Any], place: str = "config.json"):
        self._config = config
        self.place = place

    def __contains__(self, name: str) -> bool:
        return self._config.get(name) is not None

    def over(self, defaults: Mapping[str, Any]) -> Fields:
        """These fields over `defaults` of a family; a null stays null, as in transformers."""
        return Fields({**defaults, **self._config}, self.place)

    def raw(self, name: str) -> Any:
        return self._config.get(name)

    def error(self, name: str, expected: str, todo: str = "") -> ModelError:
        value = repr(self._config.get(name))
        value = value if len(value) <= 80 else value[:77] + "..."
        got = f"{name}={value}" if name in self._config else f"no {name}"
        todo = todo or "Compare it with the model's published config.json and download it again."
        return ModelError(f"{self.place}: got {got}, expected {expected}. {todo}")

    def unsupported(self, name: str, expected: str) -> ModelError:
        return self.error(
            name, expected, "This changes the model's mathematics and is not supported yet."
        )

    def _absent(self, name: str, default: Any, expected: str) -> Any:
        if default is REQUIRED:
            raise self.error(name, expected)
        return default

    def integer(self, name: str, default: Any = REQUIRED, low: int = 1, high: int = MAX_INT) -> int:
        value, expected = self._config.get(name), f"an integer from {low} to {high}"
        if value is None:
            return int(self._absent(name, default, expected))
        if not _is_number(value) or value != int(value) or not low <= value <= high:
            raise self.error(name, expected)
        return int(value)

    def optional_integer(self, name: str, low: int = 1) -> int | None:
        return self.integer(name, low=low) if name in self else None

    def number(self, name: str, default: Any = REQUIRED, above: float = 0.0) -> float:
        """A number greater than `above`, up to MAX_NUMBER."""
        value, expected = self._config.get(name), f"a number above {above:g}"
        if value is None:
            return float(self._absent(name, default, expected))
        if not _is_number(value) or not above < value <= MAX_NUMBER:
            raise self.error(name, expected)
        return float(value)

    def optional_number(self, name: str, above: float = 0.0) -> float | None:
        return self.number(name, above=above) if name in self else None

    def flag(self, name: str, default: bool) -> bool:
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def text(self, name: str, default: Any, known: Sequence[str]) -> str:
        value, expected = self._config.get(name), " or ".join(known)
        if value is None:
            return str(self._absent(name, default, expected))
        if value not in known:
            raise self.unsupported(name, expected)
        return str(value)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        value = self._config.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(name, "an object")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them or nothing."""
        value = self._config.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token <= MAX_INT:
                raise self.error(name, "a token id or a list of token ids")
        return tuple(ids)

    def refuse(self, name: str, neutral: Sequence[Any]) -> None:
        """Raise unless the field is absent or has a value that changes nothing."""
        value = self._config.get(name)
        if value is not None and value not in neutral:
            allowed = " or ".join(map(repr, neutral))
            raise self.unsupported(name, f"none or {allowed}" if allowed else "none")


def _is_number(value: object) -> TypeGuard[int | float]:
    """Neither NaN nor beyond MAX_NUMBER, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_NUMBER
