"""Draws one token per row from its logits, with the filters in vLLM's order.

    x = logits / temperature;  drop p < min_p * max p;  keep the top_k most probable;
    keep the fewest most probable that reach top_p;  renormalise;
    token = inverse CDF at the row's uniform number

A row's token depends on that row alone. Kernels (csrc/cpu/sampling.h, kernels/sample.py) sort next
to nothing. Bytes: the logits once for greedy rows, about four times for random ones; memory-bound
in plain torch, bound by exponentials and buckets in kernels.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F

from seesaw.ops.native import native
from seesaw.ops.registry import EXACT, Bench, Case, Cost, Door, Op
from seesaw.ops.shapes import SMALL
from seesaw.ops.top_tokens import top_tokens
from seesaw.ops.triton_backend import on_triton
from seesaw.plan.sampling_workspace import rows_at_once

# Shape letters: S rows, N rows of one kind, V vocabulary, W candidates.

_CHUNK = 256
_FIRST_CANDIDATES = 1024
"""Candidates looked at first where only top_p limits; rows that need more sort all."""


def sample(
    logits_SV: torch.Tensor,
    *,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    min_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    """Token ids `[S]`, int64, on the logits' device.

    logits_SV      float32; -inf = impossible; at least one finite value per row; not changed
    temperature_S  float32; 0 = greedy (the lowest id among equals)
    top_k_S        int64; 0 or at least V = all. Exactly k are kept, of equals those with lower ids
    top_p_S, min_p_S  float32; 1 and 0 = all
    uniform_S      float64 in [0, 1), one independent draw per row

    The CDF runs over descending probability, equals by id, where top_k or top_p is set, and over
    ids where not (the same distribution without a sort). Sums are in float64, in Triton in integers
    of 2^-36 of the most probable's weight or less; nothing there waits for the device.
    """
    if on_triton(logits_SV):
        from seesaw.kernels.sample import sample as launch

        return launch(
            logits_SV, temperature_S=temperature_S, top_k_S=top_k_S, top_p_S=top_p_S,
            min_p_S=min_p_S, uniform_S=uniform_S,
        )  # fmt: skip
    settings = (temperature_S, top_k_S, top_p_S, min_p_S, uniform_S)
    if (cpu := native()) is not None and logits_SV.is_cpu and logits_SV.dtype == torch.float32:
        return _sample_cpu(cpu, logits_SV, *settings)
    vocab = logits_SV.shape[1]
    tokens_S = torch.empty(len(logits_SV), dtype=torch.int64, device=logits_SV.device)
    random_S = temperature_S != 0
    ordered_S = random_S & (((top_k_S > 0) & (top_k_S < vocab)) | (top_p_S < 1))
    if len(rows_N := (~random_S).nonzero().flatten()):
        tokens_S[rows_N] = logits_SV.argmax(-1)[rows_N]  # a copy of the rows would cost more
    for ordered, chosen_S in ((True, ordered_S), (False, random_S & ~ordered_S)):
        at_once = rows_at_once(vocab)
        chosen_N = chosen_S.nonzero().flatten()
        for start in range(0, len(chosen_N), at_once):
            rows_N = chosen_N[start : start + at_once]
            x_NV = _scaled(logits_SV[rows_N], temperature_S[rows_N], min_p_S[rows_N])
            if ordered:
                limits = (top_k_S[rows_N], top_p_S[rows_N])
                tokens_S[rows_N] = _draw_ordered(x_NV, *limits, uniform_S[rows_N])
            else:
                tokens_S[rows_N] = _draw_by_id(x_NV.exp_(), uniform_S[rows_N])
    return tokens_S


def _sample_cpu(
    cpu: ModuleType,
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    min_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    rows, vocab = logits_SV.shape
    settings = (
        temperature_S.float().contiguous(),
        top_k_S.long().contiguous(),
        top_p_S.float().contiguous(),
        min_p_S.float().contiguous(),
        uniform_S.double().contiguous(),
    )
    for x in settings:
        if x.shape != (rows,):
            raise ValueError(f"settings of a row: got {list(x.shape)} for {rows} rows")
    if logits_SV.stride(1) != 1:
        logits_SV = logits_SV.contiguous()
    tokens_S = torch.empty(rows, dtype=torch.int64)
    temperature, top_k, top_p, min_p, uniform = (x.data_ptr() for x in settings)
    cpu.sample(
        rows=rows,
        vocab=vocab,
        logits=logits_SV.data_ptr(),
        ld_logits=logits_SV.stride(0),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        uniform=uniform,
        tokens=tokens_S.data_ptr(),
    )
    return tokens_S


def _scaled(
    logits_NV: torch.Tensor, temperature_N: torch.Tensor, min_p_N: torch.Tensor
) -> torch.Tensor:
    """Logits over temperature, the highest moved to 0, what min_p drops at -inf."""
    x_NV = logits_NV / temperature_N[:, None]
    x_NV -= x_NV.amax(-1, keepdim=True)
    if bool((min_p_N > 0).any()):
        x_NV.masked_fill_(x_NV < min_p_N[:, None].log(), float("-inf"))
    return x_NV


def _draw_by_id(weights_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """Inverse CDF over ids in two levels, so that no float64 sum of the whole vocabulary is
    written.
    """
    padded_NU = F.pad(weights_NV, (0, -weights_NV.shape[1] % _CHUNK))
    chunks_NJC = padded_NU.view(len(padded_NU), -1, _CHUNK)
    sums_NJ = chunks_NJC.sum(-1, dtype=torch.float64).cumsum(-1)
    target_N1 = uniform_N[:, None] * sums_NJ[:, -1:]
    chunk_N1 = _first_above(sums_NJ, target_N1)
    before_N1 = F.pad(sums_NJ, (1, 0)).gather(1, chunk_N1)
    inner_NC = chunks_NJC.gather(1, chunk_N1[:, :, None].expand(-1, -1, _CHUNK))[:, 0]
    inner_NC = inner_NC.double().cumsum(-1)
    # the chunk's own sum may differ from its cumulative one in the last bit
    token_N1 = _first_above(inner_NC, target_N1 - before_N1)
    return (chunk_N1 * _CHUNK + token_N1).squeeze(1)


def _first_above(cdf_NW: torch.Tensor, target_N1: torch.Tensor) -> torch.Tensor:
    """First place where the CDF exceeds the target: never one of weight 0, never past the last
    weight.
    """
    last_N1 = (cdf_NW < cdf_NW[:, -1:]).sum(-1, keepdim=True)
    return torch.searchsorted(cdf_NW, target_N1, right=True).minimum(last_N1)


def _draw_ordered(
    x_NV: torch.Tensor, top_k_N: torch.Tensor, top_p_N: torch.Tensor, uniform_N: torch.Tensor
) -> torch.Tensor:
    """Draw from the most probable tokens. Rows with top_k need k candidates; the others as many as
    reach top_p: few are tried first, all where those do not suffice.
    """
    vocab = x_NV.shape[1]
    has_k_N = (top_k_N > 0) & (top_k_N < vocab)
    wanted_N = torch.where(has_k_N, top_k_N, min(_FIRST_CANDIDATES, vocab))
    ids_NW, cdf_NW = _candidates(x_NV, wanted_N)
    all_N = x_NV.exp().sum(-1, dtype=torch.float64)
    total_N = torch.where(has_k_N, cdf_NW[:, -1], all_N)
    reach_N = total_N * top_p_N
    short_N = ~has_k_N & (cdf_NW[:, -1] < reach_N) & (wanted_N < vocab)
    tokens_N = _draw_within(ids_NW, cdf_NW, reach_N, uniform_N)
    if bool(short_N.any()):
        ids_NW, cdf_NW = _candidates(x_NV[short_N], torch.full_like(wanted_N[short_N], vocab))
        tokens_N[short_N] = _draw_within(ids_NW, cdf_NW, reach_N[short_N], uniform_N[short_N])
    return tokens_N


def _candidates(x_NV: torch.Tensor, count_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and cumulative weights (float64) of each row's first candidates, most probable first."""
    x_NW, ids_NW = top_tokens(x_NV, count_N)
    return ids_NW, x_NW.exp().double().cumsum(-1)


def _draw_within(
    ids_NW: torch.Tensor, cdf_NW: torch.Tensor, reach_N: torch.Tensor, uniform_N: torch.Tensor
) -> torch.Tensor:
    """Cut after the first token that brings the sum to `reach`, draw from what is left."""
    cut_N1 = torch.searchsorted(cdf_NW, reach_N[:, None]).clamp_(max=cdf_NW.shape[1] - 1)
    kept_N1 = cdf_NW.gather(1, cut_N1)
    place_N1 = torch.searchsorted(cdf_NW, uniform_N[:, None] * kept_N1, right=True)
    # u * kept can round up to kept, which is at or past the last token of weight above 0
    place_N1 = place_N1.minimum((cdf_NW < kept_N1).sum(-1, keepdim=True))
    return ids_NW.gather(1, place_N1).squeeze(1)


_MASK = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) that belongs to `position` of the stream `seed`: no state, any
    order.

    Both are taken modulo 2^64. Two rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014,
    constants of Stafford's mix 13): one spreads the seed, one mixes in the position; the top 53
    bits make the number.
    """
    mixed = _splitmix(_splitmix(seed) + position)
    return (mixed >> 11) * 2.0**-53


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def sample_reference(
    logits_SV: torch.Tensor,
    *,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    min_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    tokens = []
    vocab = logits_SV.shape[1]
    for row, logits in enumerate(logits_SV):
        if temperature_S[row] == 0:
            tokens.append(logits.tolist().index(logits.max().item()))
            continue
        x = logits / temperature_S[row]
        x = x - x.max()
        kept = [i for i, v in enumerate(x.tolist()) if v >= min_p_S[row].log().item()]
        limit = int(top_k_S[row]) if 0 < int(top_k_S[row]) < vocab else vocab
        if limit < vocab or top_p_S[row] < 1:
            kept = sorted(kept, key=lambda i: (-float(x[i]), i))[:limit]
        weights = [float(x[i].exp()) for i in kept]
        if top_p_S[row] < 1:
            reach, total, count = float(top_p_S[row]) * sum(weights), 0.0, 0
            while count == 0 or total < reach:
                total += weights[count]
                count += 1
            kept, weights = kept[:count], weights[:count]
        target, total, place = float(uniform_S[row]) * sum(weights), weights[0], 0
        while total <= target and place + 1 < len(kept):
            place += 1
            total += weights[place]
        tokens.append(kept[place])
    return torch.tensor(tokens, dtype=torch.int64)


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    rows, vocab = case["rows"], case["vocab"]

    def pick(values: list[float], kind: torch.dtype) -> torch.Tensor:
        index = torch.randint(len(values), (rows,), generator=generator)
        return torch.tensor(values, dtype=kind)[index]

    logits = (torch.randn(rows, vocab, generator=generator) * case["spread"]).to(dtype)
    return {
        "logits_SV": logits,
        "temperature_S": pick([0.0, 0.3, 1.0, 2.0], torch.float32),
        "top_k_S": pick([0, 0, 1, 7, vocab, 2 * vocab], torch.int64),
        "top_p_S": pick([1.0, 1.0, 0.01, 0.5, 0.95], torch.float32),
        "min_p_S": pick([0.0, 0.0, 0.05, 1.0], torch.float32),
        "uniform_S": torch.rand(rows, generator=generator, dtype=torch.float64),
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["rows"] * case["vocab"]
    settings_and_token = 36 * case["rows"]
    return Cost(elements * dtype.itemsize + settings_and_token, 4 * elements)


OP = Op(
    name="sample",
    function=sample,
    reference=sample_reference,
    make_inputs=_make_inputs,
    cases=(
        {"rows": 0, "vocab": 8, "spread": 1.0},
        {"rows": 5, "vocab": 1, "spread": 1.0},
        {"rows": 60, "vocab": 5, "spread": 2.0},
        {"rows": 32, "vocab": 1000, "spread": 3.0},
        {"rows": 24, "vocab": 5000, "spread": 0.5},
    ),
    tolerance={torch.float32: EXACT},
    cost=_cost,
    door=Door(sample, lambda x, **_: x.new_empty(len(x), dtype=torch.int64)),
    bench={
        f"{model.name}, {rows} rows": Bench(
            # of mixed settings, a quarter of them greedy
            case={"rows": rows, "vocab": model.vocab, "spread": 3.0},
            dtype=torch.float32,
        )
        for model in SMALL
        for rows in (1, 64)
    },
)
