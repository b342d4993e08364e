"""The JSON files of a model directory, those beside the tokenizer too. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seesaw.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. ModelError where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}. Expected a JSON file to read.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: not readable as JSON ({error}). Download the file again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: got a JSON {type(value).__name__}, expected an object.")
    return value
