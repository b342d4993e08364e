"""The least that a step must move and compute, whatever runs it: the two numbers that place it on a
roofline (Williams, Waterman, Patterson 2009).

Bytes: each weight of the layers that its rows pass once (of experts those that tokens choose), keys
and values that queries see once per row, and what is written of them. Activations are left out:
they stay in caches. Flops: matrix products and attention, a multiply-add being two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from seesaw.families.spec import ModelSpec
from seesaw.plan.experts import expert_load
from seesaw.plan.work import Work, WorkCounter

LayerRow = tuple[int, int, bool, int, int]
"""(queries, keys up to and with the last query, whether it draws a token, first layer, stop)."""


@dataclass(slots=True)
class Traffic:
    num_bytes: float = 0.0
    flops: float = 0.0

    def add(self, other: Traffic) -> None:
        self.num_bytes += other.num_bytes
        self.flops += other.flops


class TrafficCounter:
    """Of one model, over all ranks of a replica. KV heads that several ranks hold count once."""

    def __init__(self, spec: ModelSpec, element_bytes: int) -> None:
        self._spec = spec
        self._element = element_bytes
        self._work = WorkCounter(spec)
        self._query = spec.num_attention_heads * spec.head_dim
        self._kv = 2 * spec.num_key_value_heads * spec.head_dim

    def step(self, rows: Iterable[LayerRow]) -> Traffic:
        """Of rows that run together."""
        spec = self._spec
        by_layers: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
        for queries, keys, samples, start, stop in rows:
            by_layers.setdefault((start, stop), []).append((queries, keys, samples))
        tokens_of, decodes_of = [0] * spec.num_hidden_layers, [0] * spec.num_hidden_layers
        total, sampled = Traffic(), 0
        for (start, stop), those in by_layers.items():
            work = self._work.count(those)
            sampled += work.num_sampled
            for layer in range(start, stop):
                tokens_of[layer] += work.num_tokens
                decodes_of[layer] += work.num_decodes
            total.add(self._attention(work, stop - start))
        for layer, (tokens, decodes) in enumerate(zip(tokens_of, decodes_of, strict=True)):
            if tokens:
                total.add(self._products(layer, tokens, decodes))
        if sampled:
            head = spec.vocab_size * spec.hidden_size
            total.add(Traffic(head * self._element, 2.0 * head * sampled))
        return total

    def weight_bytes(self, num_tokens: int, num_decodes: int) -> float:
        """Of the layers' weights, in a step of so many tokens, of which some decode."""
        layers = range(self._spec.num_hidden_layers)
        return sum(self._products(layer, num_tokens, num_decodes).num_bytes for layer in layers)

    def _products(self, layer: int, tokens: int, decodes: int) -> Traffic:
        """Weights of one layer times `tokens` rows."""
        spec = self._spec
        hidden = spec.hidden_size
        read = computed = float(hidden * (2 * self._query + self._kv))
        if spec.layers[layer].sparse:
            expert = 3 * hidden * spec.moe_intermediate_size
            load = expert_load(spec.num_experts, spec.num_experts_per_tok, 1)
            read += hidden * spec.num_experts + expert * load.touched(tokens, tokens - decodes)
            computed += hidden * spec.num_experts + expert * spec.num_experts_per_tok
        else:
            read += 3 * hidden * spec.intermediate_size
            computed += 3 * hidden * spec.intermediate_size
        return Traffic(read * self._element, 2.0 * computed * tokens)

    def _attention(self, work: Work, num_layers: int) -> Traffic:
        keys = work.chunk_keys + work.decode_keys
        pairs = work.pairs + work.decode_keys
        elements = (keys + work.num_tokens) * self._kv
        return Traffic(
            num_layers * elements * self._element, num_layers * 4.0 * pairs * self._query
        )
