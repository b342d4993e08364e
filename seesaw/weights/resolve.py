"""From the name of a model to files on this machine: a directory, a GGUF file or a hub name.

No torch. The hub is asked only for what the local cache does not hold, and only for the files
that are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seesaw.config import LoadFormat
from seesaw.errors import ConfigError, ModelError
from seesaw.tokenizer.json_file import read_json
from seesaw.weights.safetensors_dir import INDEX, SINGLE, weight_files

# What a model needs beside its weights; what else a repository holds is not fetched.
SIDE_FILES = (
    "config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def resolve(model: str, revision: str | None, load_format: LoadFormat) -> Path:
    """The directory or `.gguf` file that holds `model`. Raises ConfigError or ModelError."""
    path = Path(model).expanduser()
    if revision is not None and path.exists():
        raise ConfigError(
            f"revision={revision!r}: model={model!r} is on this machine, and only hub models have "
            "revisions. Leave it out."
        )
    if path.is_file():
        return _check_format(_gguf_file(path), load_format)
    if path.is_dir():
        return _check_format(_model_in(path, load_format), load_format)
    if looks_like_path(model):
        raise ConfigError(
            f"model={model!r}: no such file or directory. Expected a directory with config.json "
            "and safetensors files, a .gguf file or a hub name such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    if load_format == "gguf":
        raise ConfigError(
            f"model={model!r} with load_format='gguf': expected the path of a .gguf file. Download "
            "the file first and give its path."
        )
    return fetch(model, revision)


def looks_like_path(model: str) -> bool:
    """Whether `model` can only be meant as a path: a hub name is `name` or `owner/name`."""
    return (
        model.startswith((".", "/", "~"))
        or model.count("/") > 1
        or model.endswith((".gguf", "/", ".safetensors"))
        or not model.strip()
    )


def _check_format(path: Path, load_format: LoadFormat) -> Path:
    found = "gguf" if path.is_file() else "safetensors"
    if load_format not in ("auto", found):
        raise ConfigError(
            f"load_format={load_format!r}: {path} is {found}. Leave load_format at 'auto'."
        )
    return path


def _gguf_file(path: Path) -> Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return path
    if path.suffix in (".safetensors", ".json"):
        raise ConfigError(f"model={str(path)!r}: expected its directory. Give {path.parent}.")
    raise ModelError(
        f"{path}: begins with {magic!r}, expected b'GGUF' or a directory with config.json and "
        "safetensors files. Download it again, or check that it is the file you mean."
    )


def _model_in(folder: Path, load_format: LoadFormat) -> Path:
    """The model that a directory holds: itself, or the only GGUF file in it."""
    ggufs = sorted(folder.glob("*.gguf"))
    if load_format != "gguf" and (folder / "config.json").is_file():
        if weight_files(folder):
            return folder
        if bins := sorted(folder.glob("*.bin")):
            raise ModelError(
                f"{folder}: got PyTorch weights ({bins[0].name}), expected safetensors. Convert "
                'them: python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\""
            )
        if not ggufs:
            raise ModelError(
                f"{folder}: got config.json and no weights, expected *.safetensors. Download them."
            )
    if len(ggufs) == 1:
        return _gguf_file(ggufs[0])
    if ggufs:
        raise ModelError(
            f"{folder}: got {len(ggufs)} GGUF files ({', '.join(p.name for p in ggufs[:4])}), "
            "expected one model. Give the path of one of them."
        )
    raise ModelError(
        f"{folder}: got no model in it, expected config.json with *.safetensors, or a .gguf file. "
        "Check the path."
    )


def fetch(name: str, revision: str | None, *, weights: bool = True) -> Path:
    """The local copy of a hub repository's needed files, downloaded where the cache lacks them.

    `weights=False`: only what a tokenizer needs. Raises ConfigError where the hub cannot be asked
    or does not have it.
    """
    setting, kinds = ("model", "directory or .gguf file") if weights else ("tokenizer", "directory")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if _is_complete(folder, weights):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ConfigError(
            f"{setting}={name!r}: no such file or directory, and not a hub name ({error}). "
            f"Expected a {kinds} or owner/name."
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"{setting}={name!r}: not (wholly) in the cache {constants.HF_HUB_CACHE}, and "
            f"HF_HUB_OFFLINE is set. Unset it, or give the path of a {kinds}."
        )
    try:
        wanted = _wanted_files(name, revision, weights)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except ModelError:
        raise
    # Without a network the hub's library lets the error of its HTTP client through, and that is
    # another library from version to version.
    except Exception as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConfigError(
            f"{setting}={name!r}{at}: not in the cache {constants.HF_HUB_CACHE} and the hub did "
            f"not give it: {_first_line(error)}. Check the name, the network"
            f" and, for a gated model, your access; or give the path of a {kinds}."
        ) from error


def _is_complete(folder: Path, weights: bool) -> bool:
    """Whether a snapshot in the cache, which others may have begun, holds all that is needed."""
    if not weights:
        return any((folder / name).is_file() for name in _VOCABULARIES)
    if not (folder / "config.json").is_file():
        return False
    has_weights = (folder / INDEX).is_file() or (folder / SINGLE).is_file()
    return has_weights and all(path.is_file() for path in weight_files(folder))


def _wanted_files(name: str, revision: str | None, weights: bool) -> list[str]:
    from huggingface_hub import HfApi, hf_hub_download

    names: list[str] = HfApi().list_repo_files(name, revision=revision)
    wanted = [file for file in names if file in SIDE_FILES]
    if not weights:
        return wanted
    if INDEX in names:
        index: dict[str, Any] = read_json(Path(hf_hub_download(name, INDEX, revision=revision)))
        return wanted + sorted({str(file) for file in index.get("weight_map", {}).values()})
    if SINGLE in names:
        return [*wanted, SINGLE]
    ggufs = [file for file in names if file.endswith(".gguf")]
    if ggufs:
        raise ModelError(
            f"model={name!r}: got a repository of {len(ggufs)} GGUF files, expected safetensors. "
            f"Download one (hf download {name} {ggufs[0]}) and give its path."
        )
    raise ModelError(
        f"model={name!r}: got a repository without {SINGLE} or {INDEX}, expected safetensors. "
        "Choose a repository that has them, or convert the model with transformers."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
