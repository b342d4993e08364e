"""Which family reads which architecture. Adding a family = adding a file and its line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from seesaw.errors import ModelError, nearest
from seesaw.families import gemma3, llama, mistral, mixtral, qwen2, qwen3, qwen3_moe
from seesaw.families.fields import Fields
from seesaw.families.spec import ModelSpec

ARCHITECTURES: dict[str, Callable[[Fields, str], ModelSpec]] = {
    "LlamaForCausalLM": llama.from_hf,
    "MistralForCausalLM": mistral.from_hf,
    "MixtralForCausalLM": mixtral.from_hf,
    "Qwen2ForCausalLM": qwen2.from_hf,
    "Qwen3ForCausalLM": qwen3.from_hf,
    "Qwen3MoeForCausalLM": qwen3_moe.from_hf,
    "Gemma3ForCausalLM": gemma3.from_hf,
    "Gemma3ForConditionalGeneration": gemma3.from_hf,
}


def spec_from_hf(config: Mapping[str, Any], place: str = "config.json") -> ModelSpec:
    """The ModelSpec of an HF config. `place` names it in errors.

    Raises ModelError where the architecture is unknown, a field is missing, of the wrong type or
    impossible, or where a field asks for mathematics that seesaw does not do.
    """
    fields = Fields(config, place)
    architectures = fields.raw("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    known = ", ".join(ARCHITECTURES)
    if not isinstance(name, str):
        raise fields.error(
            "architectures", f"a list that begins with one of {known}", "Add the model's own."
        )
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{place}: got architecture {name!r}, expected one of {known}."
            f"{nearest(name, ARCHITECTURES)} To add a family, write seesaw/families/<name>.py "
            "with a from_hf and list it in seesaw/families/registry.py."
        )
    return ARCHITECTURES[name](fields, name)
