"""Workloads: the fits against the tables they were made from, names, and what is refused."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import pytest

from seesaw.errors import ConfigError
from seesaw.plan.workload import (
    PERCENTS,
    Constant,
    Fitted,
    Lengths,
    Listed,
    Mixed,
    Quantiles,
    known_workloads,
    mean_lengths,
    parse_workload,
)

# Of the traces, as published: mean, P50, P90, P99, largest.
TABLES = {
    "sharegpt-8k": ((2340, 1730, 5696, 7434, 8141), (439, 415, 834, 998, 1024)),
    "arxiv-4k": ((2588, 2730, 3702, 3933, 4054), (291, 167, 372, 3271, 4056)),
    "azure-code": ((2048, 1469, 5188, 7436, 7437), (28, 13, 55, 252, 1899)),
    "azure-conv": ((1155, 1020, 2735, 4142, 14050), (211, 129, 424, 601, 1000)),
    "mooncake-conv": ((12035, 6909, 27367, 85400, 126195), (343, 350, 597, 1119, 2000)),
    "mooncake-synthetic": ((15326, 11587, 38611, 66456, 191378), (149, 69, 389, 768, 893)),
}
CORRELATIONS = dict.fromkeys(TABLES, 0.0) | {"arxiv-4k": -0.46}
# Of papers that give fewer figures: by rank, and the mean.
FEWER = {
    "arxiv-16k": (({0.5: 7059, 0.9: 12985}, 7823), ({0.5: 208, 0.9: 371}, 226)),
    "nexus-ldc": (
        ({0.5: 5461, 0.95: 9292, 0.99: 9817}, 5905), ({0.5: 159, 0.95: 339, 0.99: 454}, 180)
    ),
    "nexus-arxiv": (
        ({0.5: 3575, 0.95: 6460, 0.99: 6894}, 3832), ({0.5: 181, 0.95: 357, 0.99: 443}, 200)
    ),
    "nexus-sharegpt": (
        ({0.5: 432, 0.95: 970, 0.99: 1367}, 496), ({0.5: 37, 0.95: 383, 0.99: 474}, 97)
    ),
}  # fmt: skip
COUNT = 40_000


def drawn(name: str, seed: int) -> tuple[list[int], list[int]]:
    lengths = parse_workload(name).draw(COUNT, seed)
    return [one.prompt for one in lengths], [one.answer for one in lengths]


@pytest.mark.parametrize("name", TABLES)
def test_fits_meet_the_means_and_quantiles_of_their_traces(name: str) -> None:
    workload = parse_workload(name)
    assert isinstance(workload, Fitted)
    for fit, row in zip((workload.prompt, workload.answer), TABLES[name], strict=True):
        mean, p50, p90, p99, largest = row
        grid = [fit((step + 0.5) / 50_000) for step in range(50_000)]
        assert statistics.fmean(grid) == pytest.approx(mean, rel=0.02)
        for share, expected in ((0.5, p50), (0.9, p90), (0.99, p99), (1.0, largest)):
            assert fit(share) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", FEWER)
def test_fits_meet_what_papers_give(name: str) -> None:
    workload = parse_workload(name)
    assert isinstance(workload, Fitted)
    for fit, (quantiles, mean) in zip((workload.prompt, workload.answer), FEWER[name], strict=True):
        grid = [fit((step + 0.5) / 20_000) for step in range(20_000)]
        assert statistics.fmean(grid) == pytest.approx(mean, rel=0.02)
        for share, expected in quantiles.items():
            assert fit(share) == pytest.approx(expected, rel=0.03)
        assert grid == sorted(grid)
        assert grid[0] >= 1


def test_the_deviation_of_arxiv_16k_is_the_published_one() -> None:
    """Sarathi-Serve, table 1; those of the answers stand in each other's row there."""
    workload = parse_workload("arxiv-16k")
    assert isinstance(workload, Fitted)
    for fit, published in ((workload.prompt, 3638), (workload.answer, 101)):
        grid = [fit((step + 0.5) / 20_000) for step in range(20_000)]
        assert statistics.pstdev(grid) == pytest.approx(published, rel=0.03)


def test_a_mixed_workload_has_the_shares_of_its_parts() -> None:
    short, long = Constant("short", "", Lengths(5, 1)), Constant("long", "", Lengths(70, 9))
    mixed = Mixed("mixed", "", ((0.7, short), (0.3, long)))
    seed = random.randrange(2**32)
    drawn = mixed.draw(20_000, seed)
    assert drawn == mixed.draw(20_000, seed)
    assert {*drawn} == {short.lengths, long.lengths}
    assert drawn.count(short.lengths) / 20_000 == pytest.approx(0.7, abs=0.02), f"seed {seed}"
    assert drawn[:8000].count(short.lengths) / 8000 == pytest.approx(0.7, abs=0.03), f"seed {seed}"


def test_nexus_mixed_is_sharegpt_and_long_data() -> None:
    prompt, answer = mean_lengths(parse_workload("nexus-mixed"), 20_000, 1)
    assert prompt == pytest.approx(0.6 * 496 + 0.4 * 5905, rel=0.03)
    assert answer == pytest.approx(0.6 * 97 + 0.4 * 180, rel=0.03)


@pytest.mark.parametrize("name", TABLES)
def test_draws_scatter_about_the_table_as_chance_has_it(name: str) -> None:
    seed = random.randrange(2**32)
    for values, row in zip(drawn(name, seed), TABLES[name], strict=True):
        mean, *quantiles, largest = row
        told = f"seed {seed}"
        error = statistics.pstdev(values) / math.sqrt(COUNT)
        assert abs(statistics.fmean(values) - mean) <= 6 * error + 0.005 * mean, told
        for share, value in zip((0.5, 0.9, 0.99), quantiles, strict=True):
            slack = 6 * math.sqrt(share * (1 - share) / COUNT)
            below = sum(one < value for one in values) / COUNT
            not_above = sum(one <= value for one in values) / COUNT
            assert below - slack <= share <= not_above + slack, (told, share)
        assert min(values) >= 1
        assert max(values) <= largest


@pytest.mark.parametrize("name", TABLES)
def test_fits_keep_how_answers_depend_on_prompts(name: str) -> None:
    seed = random.randrange(2**32)
    prompts, answers = drawn(name, seed)
    found = statistics.correlation(prompts, answers)
    assert found == pytest.approx(CORRELATIONS[name], abs=0.04), f"seed {seed}"


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_met_exactly_at_their_ranks(name: str) -> None:
    workload = parse_workload(name)
    assert isinstance(workload, Fitted)
    for quantiles in (workload.prompt, workload.answer):
        assert [quantiles(rank) for rank in PERCENTS] == list(quantiles.values)
        lengths = [quantiles(step / 500) for step in range(501)]
        assert lengths == sorted(lengths)


def test_any_table_gets_its_mean() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(20):
        values = sorted(rng.sample(range(1000, 100_000), len(PERCENTS)))
        widths = [other - one for one, other in pairwise(PERCENTS)]
        low = sum(width * value for width, value in zip(widths, values, strict=False))
        high = sum(width * value for width, value in zip(widths, values[1:], strict=True))
        # Near either end the lengths jump at the ranks, where a grid sees little.
        mean = low + (high - low) * rng.uniform(0.2, 0.8)
        quantiles = Quantiles(mean, values)
        grid = statistics.fmean(quantiles((step + 0.5) / 20_000) for step in range(20_000))
        assert grid == pytest.approx(mean, rel=0.003), f"seed {seed}"


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    for name in TABLES:
        workload = parse_workload(name)
        assert workload.draw(50, 3) == workload.draw(50, 3)
        assert workload.draw(50, 3) != workload.draw(50, 4)
        assert workload.draw(50, 3)[:20] == workload.draw(20, 3)
        assert workload.draw(0, 3) == []


def test_arrivals_come_with_the_traces_that_have_them() -> None:
    for name, rate, cv in (
        ("azure-code", 2.57, 13.2), ("azure-conv", 5.53, 1.09), ("mooncake-conv", 3.4, 3.0),
        ("mooncake-synthetic", 3.9, 1.01),
    ):  # fmt: skip
        arrivals = parse_workload(name).arrivals
        assert arrivals is not None
        assert (arrivals.rate_per_s, arrivals.cv) == (rate, cv)
    for name in (
        "arxiv",
        "sharegpt",
        "sharegpt-8k",
        "arxiv-4k",
        "arxiv-16k",
        "nexus-mixed",
        "10:10",
    ):
        assert parse_workload(name).arrivals is None


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("arxiv", (3000, 250)),
        ("sharegpt", (350, 300)),
        ("1024:128", (1024, 128)),
        (" 1 : 1 ", (1, 1)),
        ("ShareGPT", (350, 300)),
    ],
)
def test_constant_lengths(text: str, lengths: tuple[int, int]) -> None:
    workload = parse_workload(text)
    assert isinstance(workload, Constant)
    assert workload.draw(3, 0) == [Lengths(*lengths)] * 3
    assert mean_lengths(workload, 7, 1) == lengths


def test_every_known_name_parses_to_a_workload_of_that_name() -> None:
    assert set(known_workloads()) == {
        "arxiv", "sharegpt", "nexus-mixed", *TABLES, *FEWER
    }  # fmt: skip
    for name in known_workloads():
        workload = parse_workload(name)
        assert workload.name == name
        assert workload.source


def test_listed_lengths_come_in_their_order_again_and_again() -> None:
    own = [Lengths(5, 1), Lengths(7, 2), Lengths(1, 9)]
    workload = Listed("in.jsonl", iter(own))
    assert workload.draw(7, 1) == [*own, *own, own[0]] == workload.draw(7, 2)
    assert workload.draw(2, 0) == own[:2]
    assert mean_lengths(workload, 3, 0) == (13 / 3, 4.0)
    assert "3 requests" in workload.source
    assert Listed("one", own[:1]).draw(2, 0) == own[:1] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sharegtp", "Did you mean 'sharegpt'.*arxiv-4k.*1024:128"),
        ("", "Known: arxiv"),
        ("0:5", "got 0 prompt and 5 answer"),
        ("5:0", "expected 1 or more"),
        ("-5:7", "got -5 prompt"),
        ("5:-7", "got 5 prompt and -7 answer"),
        ("5", "not known"),
        ("5:6:7", "not known"),
        ("1e3:5", "not known"),
        ("5.0:6", "not known"),
    ],
)
def test_refused_names(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_workload(text)


@pytest.mark.parametrize("lengths", [[], [Lengths(3, 0)], [Lengths(1, 1), Lengths(0, 4)]])
def test_refused_lists(lengths: list[Lengths]) -> None:
    with pytest.raises(ConfigError, match=r"in\.jsonl"):
        Listed("in.jsonl", lengths)
