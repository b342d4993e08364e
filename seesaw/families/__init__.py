"""Model families: from a Hugging Face config to a ModelSpec. Standard library only."""

from seesaw.families.registry import ARCHITECTURES, spec_from_hf
from seesaw.families.spec import LayerSpec, ModelSpec, ParamSpec, RopeSpec

__all__ = ["ARCHITECTURES", "LayerSpec", "ModelSpec", "ParamSpec", "RopeSpec", "spec_from_hf"]
