"""How sure is a number? Intervals for a mean over seeds and for a metric over test rows, and a test for two classifiers.

Two kinds of chance are kept apart. Another seed gives another model: `t_interval` over seeds (Student 1908). Another test
set gives another score of the same model: `bootstrap` over rows (Efron and Tibshirani 1993, chapter 13); a difference of
two models is drawn on the same rows for both. `mcnemar` asks whether two models err on equally many rows (McNemar 1947),
in its exact form (Dietterich 1998, "Approximate Statistical Tests for Comparing Supervised Classification Learning
Algorithms"). Not here: corrections for many comparisons at once.
"""
import math

import numpy as np

from ..errors import InputError


def student_cdf(t, freedom):
    """P(T <= t) of Student's t with `freedom` degrees of freedom, a whole number from 1 up.

    The finite sums in the angle atan(t / sqrt(freedom)): Abramowitz and Stegun 1964, 26.7.3 (odd) and 26.7.4 (even).
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd, term, total = freedom % 2, 1.0, 0.0
    for power in range(odd, freedom - 1, 2):                # cos^odd, cos^(odd+2), ..., cos^(freedom-2)
        if power > odd:
            term *= (power - 1) / power                     # even: 1, 1/2, 1/2 3/4 ...; odd: 1, 2/3, 2/3 4/5 ...
        total += term * math.cos(angle) ** power
    middle = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total      # P(-t < T < t)
    return 0.5 + middle / 2


def student_quantile(p, freedom):
    """The t with P(T <= t) = p, for p from 0.5 up to below 1: `student_cdf` turned around by halving."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return high


def t_interval(values, level=0.95):
    """Mean of two numbers or more, with the interval that holds the true mean with probability `level` -> (mean, low, high).

    mean -+ t * s / sqrt(n), with n - 1 in the divisor of s and n - 1 degrees of freedom; values should be about normal.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise InputError(f"an interval over seeds needs 2 seeds or more, got {len(values)}: raise --seeds")
    mean = float(values.mean())
    half = student_quantile((1 + level) / 2, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def bootstrap(statistic, rows, draws=1000, seed=0, level=0.95):
    """The interval of a number computed from test rows, by drawing as many rows with replacement -> (low, high).

    statistic: takes row numbers (rows,), an array in which some come twice and some not at all, and returns a number.
    The interval is from one percentile of the draws to another. Paired, where the statistic is a difference of two models.
    """
    random = np.random.default_rng(seed)
    found = [statistic(random.integers(0, rows, rows)) for _ in range(draws)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(first, second):
    """Are two classifiers right equally often? -> p, exact and two-sided. first, second: boolean (N,), right on each row.

    Only rows where one is right and the other wrong tell: if both were equally good, which of the two is right there would
    be a coin's throw. p is the probability of a split at least as uneven: twice a tail of Binomial(n, 1/2), at most 1.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways, tail = 1, 0                                       # whole numbers: exact for any n
    for k in range(fewer + 1):
        tail, ways = tail + ways, ways * (n - k) // (k + 1)                     # n choose k, then n choose k + 1
    return min(1.0, 2 * tail / 2 ** n)
