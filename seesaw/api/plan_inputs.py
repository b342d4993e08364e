"""What a plan is made from, by the names that people give: model, machine, workload.

Reads configuration and lengths, never a weight; loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from seesaw.errors import ConfigError
from seesaw.plan.workload import parse_workload

if TYPE_CHECKING:
    from seesaw.engine.at_hand import AtHand
    from seesaw.families.spec import ModelSpec
    from seesaw.plan.workload import Workload
    from seesaw.tokenizer import Tokenizer

CONFIG = "config.json"
DEFAULT_REQUESTS = 1000
"""Of a workload that is no batch file."""
BATCH_SUFFIXES = (".jsonl", ".jsonl.gz", ".json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class ModelToPlan(NamedTuple):
    """`folder` has the config; `has_weights` says whether it could be run from there."""

    folder: Path
    spec: ModelSpec
    has_weights: bool


def read_model(name: str) -> ModelToPlan:
    """A model directory or its config.json. Raises ConfigError or ModelError."""
    from seesaw.families.registry import spec_from_hf
    from seesaw.tokenizer.json_file import read_json

    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        raise ConfigError(
            f"model={name!r}: a plan reads config.json, and a GGUF file has none. Give the "
            "directory or the config.json of the model that it was made from."
        )
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        what = f"has no {CONFIG}" if path.is_dir() else "is not there"
        raise ConfigError(
            f"model={name!r}: {what}. Expected a model directory or the path of its {CONFIG}; for "
            f"a hub model download {CONFIG} first."
        )
    spec = spec_from_hf(read_json(file), str(file))
    folder = file.parent
    return ModelToPlan(folder, spec, any(folder.glob("*.safetensors")))


def read_machine(name: str | None) -> AtHand:
    """Every way to use the machine `name`, or the one at hand. Raises ConfigError."""
    from seesaw.engine.at_hand import AtHand, machine_at_hand
    from seesaw.plan.machine_files import read_machines

    if name is None:
        return machine_at_hand()
    source = "as given" if name.endswith(".json") else "figures that come with seesaw"
    return AtHand(read_machines(name), source)


class Job(NamedTuple):
    """`file` is the batch file that the lengths are of, if they are."""

    workload: Workload
    num_requests: int
    file: str | None


def read_workload(
    name: str,
    tokenizer: Callable[[], Tokenizer | None],
    num_requests: int | None,
    answer_tokens: int | None,
) -> Job:
    """A known name, IN:OUT or a batch file, for which alone `tokenizer` is called. Raises
    ConfigError."""
    path = Path(name).expanduser()
    if not name.endswith(BATCH_SUFFIXES) and not path.is_file():
        if answer_tokens is not None:
            raise ConfigError(
                f"--answer-tokens {answer_tokens}: workload {name} has answers of its own. "
                "Leave it out."
            )
        return Job(_known(name), num_requests or DEFAULT_REQUESTS, None)
    if not path.is_file():
        raise ConfigError(f"workload={name!r}: no such file. Expected JSON lines of a batch job.")
    from seesaw.api.batch_lengths import batch_workload

    found = batch_workload(path, tokenizer(), answer_tokens)
    return Job(found, num_requests or len(found.lengths), name)


def _known(name: str) -> Workload:
    try:
        return parse_workload(name)
    except ConfigError as error:
        raise ConfigError(f"{error} A batch file is known by its end, .jsonl.") from error


def tokenizer_of(model: ModelToPlan) -> Tokenizer | None:
    """None where its folder has none."""
    if not any((model.folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    from seesaw.tokenizer import open_tokenizer

    return open_tokenizer(model.folder, num_embeddings=model.spec.vocab_size)
