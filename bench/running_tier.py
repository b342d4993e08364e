"""What running requests in the host tier are worth (`--running-tier`), simulated: tokens of answers
a second with it off and on, and which of the two `auto` takes.

    python bench/running_tier.py

Prints the table of docs/resharding.md, nothing of which is measured: figures of devices are those
that come with seesaw, with both directions of each host link set to the rate of the row. The first
two shapes were at hand when the planner was written; by the next two its margin was raised; the
last two have changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from seesaw.config import EngineConfig
from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import read_machines
from seesaw.simulate.setup import Setup
from seesaw.simulate.simulation import Scenario, simulate

MAX_NUM_SEQS = 256


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> ModelSpec:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return spec_from_hf(config)


MODELS = {
    "Llama 2 70B": llama(8192, 28672, 80, 64, 8, 32000),
    "CodeLlama 34B": llama(8192, 22016, 48, 64, 8, 32000),
    "a 15B": llama(6144, 16384, 40, 48, 8, 32768),
}


@dataclass(frozen=True)
class Shape:
    model: str
    machine: str
    prefill: str
    decode: str
    prompt: int
    answer: int
    num_requests: int
    link_gbs: tuple[float, ...]

    def scenario(self, running_tier: str, link_gbs: float) -> Scenario:
        (machine,) = read_machines(self.machine)
        config = EngineConfig(
            model="m", policy="seesaw", max_num_seqs=MAX_NUM_SEQS, running_tier=running_tier,
        )  # fmt: skip
        return Scenario(
            spec=MODELS[self.model],
            machine=with_host_links(machine, link_gbs * 1e9),
            layouts=(ParallelLayout.parse(self.prefill), ParallelLayout.parse(self.decode)),
            config=config,
            requests=[(0.0, self.prompt, self.answer)] * self.num_requests,
        )

    @property
    def name(self) -> str:
        layouts = self.decode if self.prefill == self.decode else f"{self.prefill} -> {self.decode}"
        machine = self.machine.replace("x", " ", 1).upper()
        return (
            f"{self.model}, {machine}, {layouts} | {self.prompt}:{self.answer}, {self.num_requests}"
        )


SHAPES = (
    Shape("Llama 2 70B", "8xl4", "pp8", "pp8", 1000, 250, 500, (16, 2, 0.5)),
    Shape("Llama 2 70B", "8xl4", "pp8", "tp2-pp4", 3000, 250, 200, (16, 4, 1)),
    Shape("CodeLlama 34B", "4xa10g", "pp4", "pp4", 2000, 400, 200, (16, 4)),
    Shape("a 15B", "4xl4", "pp4", "pp4", 4000, 200, 200, (16, 4)),
    Shape("CodeLlama 34B", "8xl4", "tp2-pp4", "tp2-pp4", 6000, 300, 100, (16, 3)),
    Shape("Llama 2 70B", "8xa10g", "pp8", "pp8", 2000, 300, 200, (8, 2)),
)


def with_host_links(machine: Machine, rate: float) -> Machine:
    """Each device's own, both ways; nothing is shared between them."""
    devices = [
        replace(
            one, rates=replace(one.rates, load_bytes_per_s=rate, store_bytes_per_s=rate)
        )
        for one in machine.devices
    ]  # fmt: skip
    return replace(machine, devices=devices, host_bytes_per_s=None)


def row(shape: Shape, link_gbs: float) -> str:
    rates = {}
    for mode in ("off", "on"):
        result = simulate(shape.scenario(mode, link_gbs))
        rates[mode] = result.output_tokens / result.elapsed_s
    plan = Setup(shape.scenario("auto", link_gbs)).rotation
    chosen = "off" if plan is None else "on"
    gain = "" if plan is None else f", {plan.gain:.2f}x foreseen"
    lost = rates[chosen] / max(rates.values())
    return (
        f"| {shape.name} | {link_gbs:g} | {rates['off']:.1f} | {rates['on']:.1f} | "
        f"{chosen}{gain} | {lost:.2f} |"
    )


def main() -> None:
    print(
        "| model, machine, layouts | in:out, requests | link GB/s | off, tokens/s out | on | auto "
        "| of the better |\n| --- | --- | --: | --: | --: | --- | --: |"
    )
    for shape in SHAPES:
        for link_gbs in shape.link_gbs:
            print(row(shape, link_gbs), flush=True)


if __name__ == "__main__":
    main()
