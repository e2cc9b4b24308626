"""How sure is a number? Intervals over seeds and over test rows, and a test of two classifiers.

Two kinds of chance are distinguished. Another seed gives another model: `t_interval` over seeds
(Student 1908). Another test set gives another metric of the same model: `bootstrap_interval` over
rows (Efron and Tibshirani 1993, chapter 13). `mcnemar_p` asks whether two models err on equally
many rows (McNemar 1947), in its exact form (Dietterich 1998, "Approximate Statistical Tests for
Comparing Supervised Classification Learning Algorithms"). Not here: corrections for many tests.
"""
import math

import numpy as np

from ..errors import InputError


def student_cdf(t, freedom):
    """P(T <= t) of Student's t with `freedom` degrees of freedom, an integer from 1 up.

    The finite sums in the angle atan(t / sqrt(freedom)) of Abramowitz and Stegun 1964, 26.7.3 for
    an odd number and 26.7.4 for an even one.
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd, term, total = freedom % 2, 1.0, 0.0
    for power in range(odd, freedom - 1, 2):              # cos^odd, ..., cos^(freedom - 2)
        if power > odd:
            term *= (power - 1) / power                   # even: 1, 1/2, 3/8; odd: 1, 2/3, 8/15
        total += term * math.cos(angle) ** power
    inside = math.sin(angle) * total                      # P(-t < T < t)
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return 0.5 + inside / 2


def student_quantile(p, freedom):
    """The t with P(T <= t) = p, for 0.5 <= p < 1, found by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return high


def t_interval(values, level=0.95):
    """The interval that holds the true mean with probability `level` -> (mean, low, high).

    mean +- t * s / sqrt(n), with n - 1 degrees of freedom; values: two or more, roughly normal.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise InputError("an interval over seeds needs 2 seeds or more, got "
                         f"{len(values)}: raise --seeds")
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    half = student_quantile((1 + level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def bootstrap_interval(statistic, rows, draws=1000, seed=0, level=0.95):
    """The percentile interval of a statistic of test rows -> (low, high).

    rows: how many there are; statistic: takes row numbers (rows,), drawn with replacement, and
    returns a number. If this is the difference of two models on these rows, the interval is a
    paired one.
    """
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(0, rows, rows)) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar_p(first, second):
    """Are two classifiers right equally often? -> p, exact and two-sided.

    first, second: boolean (N,), True where that classifier is right. Only the n rows count on which
    one is right and the other wrong: if both are equally good, each is right there with probability
    1/2. p is the probability of counts at least as uneven: twice a tail of Binomial(n, 1/2), <= 1.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1                                     # Python's integers: exact for any n
    for k in range(fewer + 1):
        tail, ways = tail + ways, ways * (n - k) // (k + 1)      # (n choose k) to (n choose k + 1)
    return min(1.0, 2 * tail / 2 ** n)
