"""seesaw: high-throughput LLM inference.

`import seesaw` loads no torch; names resolve at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seesaw.api.llm import LLM as LLM
    from seesaw.config import EngineConfig as EngineConfig
    from seesaw.engine.engine import Engine as Engine
    from seesaw.errors import ConfigError as ConfigError
    from seesaw.errors import EngineDeadError as EngineDeadError
    from seesaw.errors import RequestError as RequestError
    from seesaw.errors import SeesawError as SeesawError
    from seesaw.outputs import CompletionOutput as CompletionOutput
    from seesaw.outputs import RequestOutput as RequestOutput
    from seesaw.sampling_params import SamplingParams as SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "seesaw.api.llm",
    "Engine": "seesaw.engine.engine",
    "EngineConfig": "seesaw.config",
    "SamplingParams": "seesaw.sampling_params",
    "RequestOutput": "seesaw.outputs",
    "CompletionOutput": "seesaw.outputs",
    "SeesawError": "seesaw.errors",
    "ConfigError": "seesaw.errors",
    "RequestError": "seesaw.errors",
    "EngineDeadError": "seesaw.errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'seesaw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
