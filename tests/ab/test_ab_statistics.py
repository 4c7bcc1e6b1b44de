"""The anytime-valid test and Krippendorff's alpha, against other ways to compute them."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ab import result, statistics
from launcher.ab.traffic import Traffic
from support import ab

COUNTS = st.integers(0, 400)
few = settings(max_examples=40, deadline=None)


def integrated(wins: float, losses: float, rate: float) -> float:
    """The mixture likelihood ratio by the midpoint rule over the Beta density."""
    steps, total = 20_000, 0.0
    log_beta = 2 * math.lgamma(statistics.PRIOR) - math.lgamma(2 * statistics.PRIOR)
    for i in range(steps):
        x = (i + 0.5) / steps
        density = (statistics.PRIOR - 1) * (math.log(x) + math.log1p(-x)) - log_beta
        ratio = wins * math.log(x / rate) + losses * math.log((1 - x) / (1 - rate))
        total += math.exp(density + ratio)
    return total / steps


@pytest.mark.parametrize(
    ("wins", "losses", "rate"), [(0, 0, 0.5), (7, 2, 0.5), (40.5, 20, 0.5), (3, 30, 0.1)]
)
def test_evidence_is_the_integral_over_the_prior(wins, losses, rate):
    expected = math.log(integrated(wins, losses, rate))
    assert statistics.evidence(wins, losses, rate) == pytest.approx(expected, abs=1e-6)


@few
@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.02, 0.98))
def test_evidence_is_a_martingale_under_its_rate(wins, losses, rate):
    now = math.exp(statistics.evidence(wins, losses, rate))
    won = math.exp(statistics.evidence(wins + 1, losses, rate))
    lost = math.exp(statistics.evidence(wins, losses + 1, rate))
    assert rate * won + (1 - rate) * lost == pytest.approx(now, rel=1e-9)


@few
@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.02, 0.98), st.floats(0, 1))
def test_a_divided_win_raises_it_by_no_more_than_a_whole_one_of_its_mean(wins, losses, rate, part):
    won, lost = (
        math.exp(statistics.evidence(wins + win, losses + 1 - win, rate)) for win in (1, 0)
    )
    divided = math.exp(statistics.evidence(wins + part, losses + 1 - part, rate))
    assert divided <= (part * won + (1 - part) * lost) * (1 + 1e-9)


@few
@given(COUNTS, COUNTS)
def test_interval_and_p_value_say_the_same(wins, losses):
    low, high = statistics.confidence_sequence(wins, losses)
    assert 0 <= low <= high <= 1
    p = statistics.p_value(wins, losses)
    assert p == pytest.approx(statistics.p_value(losses, wins))
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (not low < 0.5 < high)
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:  # closer to 0 or 1 it is the last rate that is looked at
            assert statistics.p_value(wins, losses, end) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("many", [10**6, 10**9])
def test_large_counts_stay_finite(many):
    assert statistics.p_value(many, many + 10) == 1.0
    assert statistics.p_value(many, many // 2) == 0.0
    low, high = statistics.confidence_sequence(many, many)
    assert low < 0.5 < high < low + 0.01


def test_needed_is_the_first_number_that_decides():
    count = statistics.needed(6, 4)
    assert count is not None
    assert statistics.p_value(0.6 * count, 0.4 * count) <= 0.05
    assert statistics.p_value(0.6 * (count - 1), 0.4 * (count - 1)) > 0.05
    assert statistics.needed(5, 5) is None
    assert statistics.needed(0, 0) is None
    assert statistics.needed(500_001, 500_000) is None


def by_letter(*rows: str) -> list[list[str]]:
    """Units of the rows of observers, as Krippendorff's tables have them; "." is no value."""
    return [[value for value in unit if value != "."] for unit in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [
        (("0100000010", "1110010000"), 0.095),
        (("aabbdcccedda", "babbbcccedd" + "d"), 0.692),
        (("123321412...", "123322412" + "5.3", ".333234225" + "1.", "123324412" + "51."), 0.743),
    ],
    ids=["two observers, binary", "two observers, nominal", "four observers, values missing"],
)
def test_alpha_of_the_worked_examples(rows, alpha):
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), sections A, B and C."""
    assert statistics.krippendorff_alpha(by_letter(*rows)) == pytest.approx(alpha, abs=5e-4)


@few
@given(st.lists(st.lists(st.sampled_from("abtx"), max_size=5), max_size=20))
def test_alpha_is_that_of_the_coincidence_matrix(units):
    matrix: Counter[tuple[str, str]] = Counter()
    for unit in units:
        for one, other in permutations(range(len(unit)), 2):
            matrix[unit[one], unit[other]] += 1 / (len(unit) - 1)
    margin: Counter[str] = Counter()
    for (one, _), count in matrix.items():
        margin[one] += count
    total = sum(margin.values())
    observed = sum(count for (one, other), count in matrix.items() if one != other)
    expected = sum(margin[c] * margin[k] for c, k in permutations(margin, 2)) / (total - 1 or 1)
    alpha = statistics.krippendorff_alpha(units)
    assert alpha == (pytest.approx(1 - observed / expected) if expected > 1e-9 else None)


def test_a_prompt_counts_once_however_many_judge_it():
    wins, losses, equal = result.preferences([[1], [1, 1, -1], [-1, 0], [0, 0], [1, 1, 1]])
    assert (wins, losses, equal) == (pytest.approx(1 + 2 / 3 + 1), pytest.approx(4 / 3), 1)


def test_users_are_paired_by_their_first_word_with_the_mean_of_all():
    said = [("u", "a", 1.0), ("v", "b", 0.0), ("w", "b", 1.0), ("u", "a", 0.0), ("x", "a", 0.0)]
    assert result.pairs(said) == [-0.5, 1.0]
    assert result.pairs([("u", "a", 1.0)]) == []


def test_a_new_user_is_paired_with_the_newest_who_waits():
    """A's users were happy once; B's few come later and are as unhappy as A's are by then."""
    early = [(f"early {number}", "a", 1.0) for number in range(9)]
    late = [("x", "a", 0.0), ("y", "b", 0.0), ("z", "a", 0.0), ("w", "b", 0.5)]
    assert result.pairs([*early, *late]) == [0.0, 0.5]
    assert result.pairs([*early, *late, ("v", "b", 0.0)]) == [0.0, 0.5, -1.0]


@pytest.mark.slow
def test_peeking_at_traffic_raises_few_false_alarms():
    """Of 150 routers of 1,000 users without a difference at most 5 % may alarm; here 7."""

    def looks(seed: int, rates: tuple[float, float]) -> list[ab.Counts]:
        router = Traffic(Path("no.db"), str(seed), 0.5)
        return list(ab.traffic(router, rates, random.Random(seed), users=1000, batch=25))

    null = [looks(seed, (0.5, 0.5)) for seed in range(150)]
    assert sum(map(ab.detects, null)) <= 7
    # The same looks at a test made for one of them: the reason for all this.
    assert sum(ab.detects(one, ab.fixed_size) for one in null) > 20
    assert sum(ab.detects(looks(seed, (0.4, 0.6))) for seed in range(20)) >= 18


@pytest.mark.slow
@pytest.mark.parametrize("judges", [1, 3])
def test_peeking_at_votes_raises_few_false_alarms(judges):
    """Also where judges agree because prompts differ, so that their votes are not independent."""
    null = [
        list(ab.study(0.5, 0.4, random.Random(seed), prompts=80, judges=judges))
        for seed in range(150)
    ]
    assert sum(map(ab.detects, null)) <= 7
    clear = (ab.study(0.8, 0.1, random.Random(s), prompts=80, judges=judges) for s in range(20))
    assert sum(map(ab.detects, clear)) >= 18
