"""Checks of options that several policies have. Raise ConfigError; know no policy."""

from __future__ import annotations

from seesaw.errors import ConfigError


def check_tokens(name: str, value: object, least: int, expected: str) -> None:
    """An integer from `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: expected {expected}.")


def check_fraction(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ConfigError(f"{name}={value!r}: expected a fraction from 0 to below 1.")
