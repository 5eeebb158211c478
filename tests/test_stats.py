"""Intervals and tests against published values and against SciPy."""

import math

import pytest

from edgekit.stats import (
    Paired,
    holm,
    images_needed,
    mcnemar,
    paired,
    paired_reach,
    t_interval,
    welch_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_intervals(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_are_exact_and_mirror_each_other() -> None:
    assert wilson(0, 9)[0] == 0.0
    assert wilson(9, 9)[1] == 1.0
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson(3, 10, confidence=0.99)[0] < low


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_of_impossible_counts_is_refused(successes: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {count}"):
        wilson(successes, count)


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 0.0625),  # 2 / 2**5
        (1, 9, 22 / 1024),  # 2 (1 + 10) / 2**10
        (3, 9, 598 / 4096),  # 2 (1 + 12 + 66 + 220) / 2**12
        (121, 59, 4.434e-6),  # Agresti's 2x2 table of Fagerland et al. 2013: 59 against 121
    ],
)
def test_mcnemar_is_twice_the_binomial_tail(first: int, second: int, p_value: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p_value, rel=1e-3)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_of_many_images() -> None:
    tail = 2 * sum(math.comb(1_000, i) for i in range(481)) / 2**1_000
    assert mcnemar(480, 520) == pytest.approx(tail, rel=1e-9)
    assert mcnemar(4_000, 4_500) < 1e-7


def test_the_t_interval_of_a_textbook_sample() -> None:
    """Mean 0.75, sd 1.789 of 10 sleep gains (Student 1908, first drug): t = 1.326, p = 0.2176."""
    low, high, p_value = t_interval([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    assert low == pytest.approx(-0.5298, abs=1e-4)
    assert high == pytest.approx(2.0298, abs=1e-4)
    assert p_value == pytest.approx(0.2176, abs=1e-4)


def test_equal_values_have_no_width() -> None:
    assert t_interval([0.5, 0.5]) == (0.5, 0.5, 0.0)
    assert t_interval([0.0, 0.0, 0.0]) == (0.0, 0.0, 1.0)


def test_paired_counts_what_each_alone_got_right() -> None:
    #       both right | only second | only first | both wrong, same | both wrong, differ
    truth = [0, 0, 0, 1, 1, 2, 2, 2]
    first = [0, 0, 1, 0, 1, 0, 0, 1]
    second = [0, 0, 0, 1, 2, 0, 1, 0]
    found = paired(truth, first, second)
    assert (found.count, found.only_first, found.only_second, found.flips) == (8, 1, 2, 5)
    assert found.difference == 1 / 8
    assert found.flip_rate == 5 / 8
    assert found.p_value == 1.0


def test_paired_refuses_lists_of_other_lengths() -> None:
    with pytest.raises(ValueError, match="3 true classes, 3 first and 2 second"):
        paired([0, 1, 2], [0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match="0 true classes"):
        paired([], [], [])


def test_welchs_interval_by_hand() -> None:
    """Variances 5/3 and 20/3 of four values each: t is the root of 3, and the freedom 4.41."""
    from scipy.stats import t

    difference, low, high, p_value = welch_interval([1, 2, 3, 4], [2, 4, 6, 8])
    error = math.sqrt((5 / 3 + 20 / 3) / 4)
    freedom = (25 / 12) ** 2 / ((5 / 12) ** 2 / 3 + (20 / 12) ** 2 / 3)
    assert difference == 2.5
    assert (low, high) == pytest.approx([2.5 + side * t.ppf(0.975, freedom) * error for side in (-1, 1)])
    assert p_value == pytest.approx(2 * t.sf(math.sqrt(3), freedom))
    assert welch_interval([1.0, 1.0], [1.0, 1.0]) == (0.0, 0.0, 0.0, 1.0)
    assert welch_interval([1.0, 1.0], [2.0, 2.0])[3] == 0.0


def test_holms_correction_of_a_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()


def test_the_reach_of_a_paired_difference() -> None:
    """Agresti, Categorical Data Analysis, table 10.1: 150 and 86 of 1,600 voters change their minds."""
    found = Paired(count=1600, only_first=150, only_second=86, flips=236, p_value=3e-5)
    assert found.difference == pytest.approx(-0.04)
    assert paired_reach(found) == pytest.approx(0.0187, abs=2e-4)
    assert images_needed(found, 0.0187) == pytest.approx(1600, rel=0.02)
    assert images_needed(found, 0.00935) == pytest.approx(4 * 1600, rel=0.02)
    nothing = Paired(count=300, only_first=0, only_second=0, flips=0, p_value=1.0)
    assert paired_reach(nothing) == pytest.approx(1.96 / 302, rel=1e-3)
