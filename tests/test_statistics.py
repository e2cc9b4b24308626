"""Intervals and tests against tables, hand computations and, where it is there, scipy."""
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf.errors import InputError
from minillmclf.training.statistics import (bootstrap_interval, mcnemar_p, student_cdf,
                                            student_quantile, t_interval)

# The 97.5 % point of Student's t, as printed in every table.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
         10: 2.228, 11: 2.201, 12: 2.179, 15: 2.131, 20: 2.086, 25: 2.060, 29: 2.045, 30: 2.042,
         60: 2.000, 120: 1.980}


def test_the_quantile_is_that_of_the_printed_table():
    for freedom, t in TABLE.items():
        assert round(student_quantile(0.975, freedom), 3) == t, f"{freedom} degrees of freedom"
    assert student_quantile(0.95, 4) == pytest.approx(2.132, abs=5e-4)
    assert student_quantile(0.995, 2) == pytest.approx(9.925, abs=5e-4)
    assert student_quantile(0.5, 7) == pytest.approx(0, abs=1e-9)


def test_the_cdf_in_closed_form():
    for t in (-3.0, -0.4, 0.0, 0.7, 25.0):
        assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi), (
            "one degree of freedom is Cauchy's")
        assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t))), (
            "and two have a formula too")
        root = t / math.sqrt(3)
        assert student_cdf(t, 3) == pytest.approx(
            0.5 + (root / (1 + t * t / 3) + math.atan(root)) / math.pi)
    normal = 0.5 + math.erf(1.3 / math.sqrt(2)) / 2
    assert student_cdf(1.3, 5000) == pytest.approx(normal, abs=1e-4), (
        "with many degrees it is the normal distribution")


def test_the_interval_by_hand():
    # 0.7, 0.8, 0.9: s = 0.1, t(2) = 4.303, 4.303 * 0.1 / sqrt(3) = 0.2484
    assert t_interval([0.7, 0.8, 0.9]) == pytest.approx((0.8, 0.8 - 0.24841, 0.8 + 0.24841),
                                                        abs=1e-5)
    # 1, 3: s = sqrt(2), t(1) = 12.706, so 12.706 * sqrt(2) / sqrt(2)
    assert t_interval([1, 3]) == pytest.approx((2, 2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="2 seeds or more, got 1"):
        t_interval([0.7])


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    rng = random.Random(0)
    intervals = [t_interval([rng.gauss(3, 2) for _ in range(4)], 0.8) for _ in range(600)]
    held = sum(low <= 3 <= high for _, low, high in intervals)
    assert 0.75 < held / 600 < 0.85, "an 80 % interval should hold the mean in 80 % of 600 samples"


def test_against_scipy():
    stats = pytest.importorskip("scipy.stats", reason="the other side of this comparison")
    for freedom in (1, 2, 3, 7, 30, 31, 200):
        for p in (0.6, 0.9, 0.975, 0.9995):
            assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-8)
    for fewer, n in ((0, 1), (3, 10), (5, 10), (40, 100)):
        first = [True] * fewer + [False] * (n - fewer)
        assert mcnemar_p(first, [not x for x in first]) == pytest.approx(
            stats.binomtest(fewer, n).pvalue)


def test_the_bootstrap_is_near_the_normal_interval_of_a_share():
    right = np.arange(400) < 300
    low, high = bootstrap_interval(lambda rows: right[rows].mean(), 400, draws=4000)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)                                 # 0.0424
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)
    assert (low, high) == bootstrap_interval(lambda rows: right[rows].mean(), 400, draws=4000), (
        "the same seed, other draws")
    assert (low, high) != bootstrap_interval(lambda rows: right[rows].mean(), 400,
                                             draws=4000, seed=1)
    narrow = bootstrap_interval(lambda rows: right[rows].mean(), 400, draws=4000, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_bootstrap_of_two_rows_by_hand():
    """Of two rows, 0 and 1, draws are 00, 01, 10, 11: means 0, 1/2, 1/2, 1; a quarter of them each
    at both ends."""
    assert bootstrap_interval(lambda rows: rows.mean(), 2) == (0, 1)
    assert bootstrap_interval(lambda rows: rows.mean(), 2, level=0.4) == (0.5, 0.5)
    assert bootstrap_interval(lambda rows: 7.0, 5) == (7, 7)


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    one = rng.random(300) < 0.7
    other = one.copy()
    other[np.flatnonzero(one)[:9]] = False                  # wrong on nine rows more, else the same
    low, high = bootstrap_interval(lambda rows: one[rows].mean() - other[rows].mean(), 300)
    assert 0 < low < 0.03 < high, "nine rows of 300, all to one side, are no chance"
    alone = bootstrap_interval(lambda rows: one[rows].mean(), 300)
    assert alone[1] - alone[0] > 2 * (high - low)


def test_mcnemar_by_hand():
    def p(only_first, only_second, both=5, neither=4):
        first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
        second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
        return mcnemar_p(first, second)
    assert p(0, 5) == 2 / 2 ** 5
    assert p(1, 9) == pytest.approx(2 * (1 + 10) / 2 ** 10)
    assert p(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 2 ** 10)
    assert p(5, 5) == p(3, 3) == 1 and p(0, 0) == 1, "no difference at all"
    assert p(1, 9, both=500, neither=0) == p(1, 9), "rows where both are right tell nothing"
    assert p(0, 1) == 1, "one row decides nothing"
    assert p(300, 2000) < 1e-300 and p(1000, 1001) == pytest.approx(1, abs=1e-2), (
        "large numbers should not overflow")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14))
def test_mcnemar_against_all_throws_of_the_coin(rows):
    first, second = zip(*rows)
    n, wins = sum(a != b for a, b in rows), sum(a and not b for a, b in rows)
    uneven = sum(abs(2 * bin(throw).count("1") - n) >= abs(2 * wins - n) for throw in range(2 ** n))
    assert mcnemar_p(first, second) == pytest.approx(uneven / 2 ** n)
    assert mcnemar_p(first, second) == mcnemar_p(second, first)
