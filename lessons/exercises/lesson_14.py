"""Lesson 14, who won: F1, bootstrap, McNemar, calibration error, texts in two splits."""
import math
from types import SimpleNamespace

import numpy as np
import torch

from lessons.exercises.kit import Case, Exercise

# ---------------------------------------------------------------- 14.1 class_f1


def counts(answered, true):
    """-> hits, false alarms, misses."""
    return ((answered & true).sum(), (answered & ~true).sum(), (~answered & true).sum())


def share(part, whole):
    return part / whole if whole else 0.0


def precision_recall(answered, true):
    tp, fp, fn = counts(answered, true)
    return share(tp, tp + fp), share(tp, tp + fn)


def absent_is_1(answered, true):
    tp, fp, fn = counts(answered, true)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0


def divided_by_zero(answered, true):
    tp, fp, fn = map(int, counts(answered, true))
    return 2 * tp / (2 * tp + fp + fn)


def jaccard(answered, true):
    tp, fp, fn = counts(answered, true)
    return share(tp, tp + fp + fn)


def with_true_negatives(answered, true):
    hits = (answered == true).sum()
    return 2 * hits / (2 * hits + (answered != true).sum())


class ClassF1(Exercise):
    """Divisions of whole numbers in float64: 1e-9."""
    tolerance = 1e-9
    variants = {
        "the accuracy on this class and all others": lambda a, t: (a == t).mean(),
        "precision alone": lambda a, t: precision_recall(a, t)[0],
        "recall alone": lambda a, t: precision_recall(a, t)[1],
        "the plain mean of precision and recall": lambda a, t: sum(precision_recall(a, t)) / 2,
        "hits are not counted twice": jaccard,
        "rows that are neither answered nor true count as hits": with_true_negatives,
        "a class that does not occur has F1 1": absent_is_1,
        "a class that does not occur is divided by 0": divided_by_zero,
    }
    hint_for = dict(zip(variants, (0, 1, 1, 0, 0, 0, 2, 2)))

    def inputs(self, draw):
        def case(name, kind, answered, true):
            return Case(name, kind, {"answered": answered, "true": true})
        return [case("twelve rows", "contract", draw.uniform(12) < 0.5, draw.uniform(12) < 0.5),
                case("a rare class", "parity", draw.uniform(60) < 0.2, draw.uniform(60) < 0.1),
                case("answered too often", "parity", draw.uniform(40) < 0.8,
                     draw.uniform(40) < 0.3),
                case("never answered", "parity", draw.uniform(9) < 0, draw.uniform(9) < 0.7),
                case("neither answered nor true", "parity", draw.uniform(5) < 0,
                     draw.uniform(5) < 0)]

    def call(self, function, case):
        return {"output": float(function(case.arguments["answered"].numpy(),
                                         case.arguments["true"].numpy()))}


# ---------------------------------------------------------------- 14.2 bootstrap_interval

def wrong_bootstrap(rows_of=lambda random, rows, draw: random.integers(0, rows, rows),
                    ends=lambda level: ((1 - level) / 2, (1 + level) / 2),
                    generator=np.random.default_rng, times=lambda draws: draws, anew=False):
    """A variant: bootstrap_interval with one thing in it changed."""
    def bootstrap_interval(statistic, rows, draws=1000, seed=0, level=0.95):
        random, values = generator(seed), []
        for draw in range(times(draws)):
            random = generator(seed) if anew else random
            values.append(statistic(rows_of(random, rows, draw)))
        return tuple(map(float, np.quantile(values, ends(level))))
    return bootstrap_interval


def normal_interval(statistic, rows, draws=1000, seed=0, level=0.95):
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(0, rows, rows)) for _ in range(draws)]
    return np.mean(values) - np.std(values), np.mean(values) + np.std(values)


class BootstrapInterval(Exercise):
    """What is drawn is looked at, not compared: any generator is right. The shares of 400 numbers
    that lie outside may differ by two of them, as quantiles are defined in several ways: 0.006."""
    tolerance = 0.006
    variants = {
        "rows are drawn without replacement":
            wrong_bootstrap(lambda random, rows, draw: random.permutation(rows)),
        "half as many rows are drawn":
            wrong_bootstrap(lambda random, rows, draw: random.integers(0, rows, rows // 2)),
        "one row is left out in each draw, as in the jackknife":
            wrong_bootstrap(lambda random, rows, draw: np.delete(np.arange(rows), draw % rows)),
        "the last row is never drawn":
            wrong_bootstrap(lambda random, rows, draw: random.integers(0, rows - 1, rows)),
        "each draw begins with the seed again, so all are the same": wrong_bootstrap(anew=True),
        "the seed is ignored":
            wrong_bootstrap(generator=lambda seed: np.random.default_rng()),
        "the seed is always 0": wrong_bootstrap(generator=lambda seed: np.random.default_rng(0)),
        "there are always 1,000 draws": wrong_bootstrap(times=lambda draws: 1000),
        "1 - level is cut off on each side": wrong_bootstrap(ends=lambda level: (1 - level, level)),
        "the interval is open below": wrong_bootstrap(ends=lambda level: (0.0, level)),
        "the level is always 0.95": wrong_bootstrap(ends=lambda level: (0.025, 0.975)),
        "the mean, plus and minus one standard deviation": normal_interval,
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3)))

    def inputs(self, draw):
        def case(name, kind, rows, level):
            return Case(name, kind, {"x": draw.normal(rows), "draws": 400, "level": level,
                                     "seed": int(draw.integers(1, 99))})
        return [case("sixty rows, 0.95", "contract", 60, 0.95),
                case("sixty other rows, 0.95", "parity", 60, 0.95),
                case("an interval of 0.8", "parity", 40, 0.8),
                case("an interval of 0.5", "parity", 80, 0.5)]

    def call(self, function, case):
        given, drawn = dict(case.arguments), []
        x = given.pop("x").double().numpy()
        rows = len(x)

        def statistic(numbers):
            drawn.append(np.asarray(numbers).copy())
            return float(x[drawn[-1]].mean())
        low, high = function(statistic, rows, **given)
        values = np.array([x[numbers].mean() for numbers in drawn])
        first, count = [numbers.tolist() for numbers in drawn], len(drawn)
        again = tuple(function(statistic, rows, **given)) == (low, high)
        same = tuple(function(statistic, rows, **given | {"seed": given["seed"] + 1}))
        seen = np.concatenate([np.ravel(numbers) for numbers in drawn])
        return {"draws": count, "rows of a draw": sorted({len(numbers) for numbers in first}),
                "rows that occur": len(np.unique(seen)),
                "different draws": len({tuple(numbers) for numbers in first}) > count / 2,
                "repeated rows in a draw, in tenths": round(
                    10 - 10 * float(np.mean([len(set(n)) / len(n) for n in first]))),
                "below low": float((values < low).mean()),
                "above high": float((values > high).mean()),
                "the same again": again, "another with another seed": same != (low, high)}


# ---------------------------------------------------------------- 14.3 mcnemar_p

def discordant(first, second):
    return int((first & ~second).sum()), int((second & ~first).sum())


def tail(b, c, n=None):
    """The share of the ways of n throws with at most min(b, c) heads."""
    n = b + c if n is None else n
    return sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2 ** n


def wrong_p(p):
    """A variant: another p of b and c, the rows on which only one is right."""
    return lambda first, second: float(p(*discordant(first, second)))


def chi_square(b, c, correction):
    """McNemar's first form: (|b - c| - correction)^2 / (b + c) is nearly chi-square."""
    z = max(0, abs(b - c) - correction) / math.sqrt(b + c) if b + c else 0.0
    return math.erfc(z / math.sqrt(2))


def unpaired(first, second):
    """The two accuracies, as if they came from different rows: a z-test."""
    p, q, n = first.mean(), second.mean(), len(first)
    middle = (p + q) / 2
    spread = math.sqrt(2 * middle * (1 - middle) / n)
    return math.erfc(abs(p - q) / spread / math.sqrt(2)) if spread else 1.0


class McnemarP(Exercise):
    """Quotients of whole numbers: 1e-9."""
    tolerance = 1e-9
    variants = {
        "one tail alone": wrong_p(lambda b, c: tail(b, c)),
        "the smaller count itself is left out":
            wrong_p(lambda b, c: min(1.0, 2 * (tail(b, c) - math.comb(b + c, min(b, c))
                                               / 2 ** (b + c)))),
        "only this very count, not the more uneven ones":
            wrong_p(lambda b, c: min(1.0, 2 * math.comb(b + c, min(b, c)) / 2 ** (b + c))),
        "p may be larger than 1": wrong_p(lambda b, c: 2 * tail(b, c)),
        "the chi-square approximation": wrong_p(lambda b, c: chi_square(b, c, 0)),
        "the chi-square approximation with its correction":
            wrong_p(lambda b, c: chi_square(b, c, 1)),
        "rows on which both agree are throws, too":
            lambda first, second: min(1.0, 2 * tail(*discordant(first, second), len(first))),
        "the two accuracies are compared as if their rows were different": unpaired,
        "p is 0 if the two never differ":
            wrong_p(lambda b, c: min(1.0, 2 * tail(b, c)) if b + c else 0.0),
        "2^n as a float overflows":
            wrong_p(lambda b, c: min(1.0, 2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
                                     * 2.0 ** -(b + c) if b + c < 1024 else 2.0 ** (b + c))),
    }
    hint_for = dict(zip(variants, (3, 2, 2, 3, 1, 1, 0, 0, 3, 4)))

    def inputs(self, draw):
        def case(name, kind, rows, both, only_first):
            """both: how probable it is that both agree; only_first: of the others."""
            agree, right = draw.uniform(rows) < both, draw.uniform(rows) < 0.6
            wins = draw.uniform(rows) < only_first
            first = agree & right | ~agree & wins
            return Case(name, kind, {"first": first, "second": agree & right | ~agree & ~wins})
        pattern = draw.integers(0, 2, 12).bool()
        even = torch.stack([pattern, ~pattern], 1).flatten()         # each wins one row of two
        return [case("forty rows", "contract", 40, 0.7, 0.7),
                case("another forty rows", "parity", 40, 0.6, 0.3),
                case("they seldom differ", "parity", 200, 0.95, 0.8),
                Case("each wins as often", "parity", {"first": even, "second": ~even}),
                Case("they never differ", "parity", {"first": pattern, "second": pattern.clone()}),
                case("two thousand rows that differ", "parity", 2000, 0.0, 0.515)]

    def call(self, function, case):
        return {"output": float(function(case.arguments["first"].numpy(),
                                         case.arguments["second"].numpy()))}


# ---------------------------------------------------------------- 14.4 calibration_error

def bins_of(confidence, bins):
    return np.minimum((confidence * bins).astype(int), bins - 1)


def wrong_error(place=bins_of, gap=lambda p, right, middle: abs(p.mean() - right.mean()),
                weight=lambda size, rows, used: size / rows, bins_used=lambda bins: bins):
    """A variant: calibration_error with one thing in it changed."""
    def calibration_error(confidence, right, bins=15):
        bins = bins_used(bins)
        bin_of, total = place(confidence, bins), 0.0
        used = len(np.unique(bin_of))
        for b in range(bins):
            rows = bin_of == b
            if rows.any():
                found = gap(confidence[rows], right[rows], (b + 0.5) / bins)
                total += weight(rows.sum(), len(confidence), used) * found
        return total
    return calibration_error


def largest_gap(confidence, right, bins=15):
    bin_of = bins_of(confidence, bins)
    return max(abs(confidence[bin_of == b].mean() - right[bin_of == b].mean())
               for b in np.unique(bin_of))


def equal_sizes(confidence, bins):
    """Bins with equal numbers of rows, in place of equal widths."""
    return confidence.argsort().argsort() * bins // len(confidence)


def signed(confidence, right, bins=15):
    return abs(confidence.mean() - right.mean())


class CalibrationError(Exercise):
    """Sums of at most 200 numbers in float64: 1e-6."""
    tolerance = 1e-6
    variants = {
        "all bins count the same": wrong_error(weight=lambda size, rows, used: 1 / used),
        "the largest gap, not the mean": largest_gap,
        "gaps of opposite signs cancel": signed,
        "gaps are squared":
            wrong_error(gap=lambda p, right, middle: (p.mean() - right.mean()) ** 2),
        "the middle of a bin is taken for the mean probability of its rows":
            wrong_error(gap=lambda p, right, middle: abs(middle - right.mean())),
        "bins have equal numbers of rows, not equal widths": wrong_error(equal_sizes),
        "a probability of 1 is in no bin":
            wrong_error(lambda confidence, bins: (confidence * bins).astype(int)),
        "probabilities are rounded to the nearest bin":
            wrong_error(lambda confidence, bins:
                        np.minimum(np.round(confidence * bins).astype(int), bins - 1)),
        "there are always 15 bins": wrong_error(bins_used=lambda bins: 15),
        "there are always 10 bins": wrong_error(bins_used=lambda bins: 10),
    }
    hint_for = dict(zip(variants, (3, 3, 2, 2, 1, 0, 0, 0, 0, 0)))

    def inputs(self, draw):
        def case(name, kind, rows, bins, lowest=0.25, sure=0):
            confidence = lowest + (1 - lowest) * draw.uniform(rows)
            confidence[:sure] = 1.0
            return Case(name, kind, {"confidence": confidence, "bins": bins,
                                     "right": draw.uniform(rows) < confidence - 0.2})
        return [case("forty rows", "contract", 40, 15), case("200 rows", "parity", 200, 15),
                case("five bins", "parity", 60, 5), case("one bin", "parity", 30, 1),
                case("a few are quite sure", "parity", 50, 12, 0.6, 8),
                case("many empty bins", "parity", 12, 40, 0.9)]

    def call(self, function, case):
        given = case.arguments
        return {"output": float(function(given["confidence"].double().numpy(),
                                         given["right"].numpy(), given["bins"]))}


# ---------------------------------------------------------------- 14.5 labels_of_texts

def plain_key(texts):
    return tuple(" ".join(text.casefold().split()) for text in texts)


def wrong_texts(key=plain_key, add=lambda labels, label: [*labels, label]):
    """A variant: labels_of_texts with another key, or another way to keep labels."""
    def labels_of_texts(examples):
        found = {}
        for example in examples:
            each = key(example.texts)
            found[each] = add(found.get(each, []), example.label)
        return found
    return labels_of_texts


class LabelsOfTexts(Exercise):
    """Texts: compared exactly."""
    variants = {
        "texts are compared letter by letter": wrong_texts(tuple),
        "white space counts":
            wrong_texts(lambda texts: tuple(text.casefold() for text in texts)),
        "case counts": wrong_texts(lambda texts: tuple(" ".join(t.split()) for t in texts)),
        "only the first text of a row is the key": wrong_texts(lambda texts: plain_key(texts[:1])),
        "the texts of a row are joined to one":
            wrong_texts(lambda texts: (" ".join(plain_key(texts)),)),
        "only the last label of a text is kept": wrong_texts(add=lambda labels, label: [label]),
        "only the first label of a text is kept":
            wrong_texts(add=lambda labels, label: labels or [label]),
        "equal labels are kept once":
            wrong_texts(add=lambda labels, label:
                        labels if label in labels else [*labels, label]),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 2, 2, 2)))

    def inputs(self, draw):
        words = ["late", "Parcel", "PARCEL", "is  late", "is late", "Is Late", " late", "invoice"]

        def case(name, kind, texts, rows):
            drawn = [[[words[i] for i in draw.integers(0, len(words), texts).tolist()],
                      "abc"[int(draw.integers(0, 3))]] for _ in range(rows)]
            return Case(name, kind, {"rows": drawn})
        border = [[["is late", "parcel"], "a"], [["is", "late parcel"], "b"]]
        repeated = [[["Parcel"], "a"], [["parcel "], "b"], [["PARCEL"], "a"], [["late"], "c"]]
        return [case("six rows", "contract", 1, 6), case("forty rows", "parity", 1, 40),
                case("rows of two texts", "parity", 2, 80),
                Case("a border between two texts", "parity", {"rows": border}),
                Case("one text, three rows", "parity", {"rows": repeated}),
                Case("no rows", "parity", {"rows": []})]

    def call(self, function, case):
        rows = [SimpleNamespace(texts=tuple(texts), label=label)
                for texts, label in case.arguments["rows"]]
        return {"texts": [[list(key), list(labels)] for key, labels in function(rows).items()]}


# ---------------------------------------------------------------- 14.6 count_shared

def wrong_shared(is_same=lambda a, b: len({*a, *b}) == 1, texts=lambda a, b: a.keys() & b.keys(),
                 size=lambda a, b: 1, conflicts=lambda same, all: all - same):
    """A variant: count_shared with one thing in it changed. a, b: of a text, or of two splits."""
    def count_shared(first, second):
        same = total = 0
        for text in texts(first, second):
            a, b = first.get(text, []), second.get(text, [])
            same += size(a, b) * is_same(a, b)
            total += size(a, b)
        return {"same_label": same, "conflicting": conflicts(same, total)}
    return count_shared


class CountShared(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "rows of the second split are counted, not texts": wrong_shared(size=lambda a, b: len(b)),
        "rows of both splits are counted": wrong_shared(size=lambda a, b: len(a) + len(b)),
        "only the first label of each split is compared":
            wrong_shared(lambda a, b: a[0] == b[0]),
        "one label in common is enough": wrong_shared(lambda a, b: bool({*a} & {*b})),
        "equal sets of several labels are the same label":
            wrong_shared(lambda a, b: {*a} == {*b}),
        "repeated equal labels are a conflict": wrong_shared(lambda a, b: a == b and len(a) == 1),
        "texts of one split alone are counted, too":
            wrong_shared(texts=lambda a, b: a.keys() | b.keys()),
        "conflicting counts all shared texts": wrong_shared(conflicts=lambda same, all: all),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 2, 1, 0, 1)))

    def inputs(self, draw):
        def split(texts, most):
            found = {}
            for _ in range(texts):
                labels = ["ab"[i] for i in draw.integers(0, 2, int(draw.integers(1, most + 1)))]
                found[f"text {int(draw.integers(0, 2 * texts))}"] = labels
            return found

        def case(name, kind, texts, most):
            return Case(name, kind, {"first": split(texts, most), "second": split(texts, most)})
        both = {"late": ["a", "b"], "parcel": ["a", "a"], "invoice": ["b"]}
        return [case("ten texts", "contract", 10, 1), case("one label each", "parity", 40, 1),
                case("several labels", "parity", 60, 3),
                Case("two labels in both splits", "parity", {
                    "first": both, "second": {"late": ["a", "b"], "parcel": ["a"], "new": ["a"]}}),
                Case("nothing is shared", "parity", {"first": both, "second": {"new": ["a"]}})]

    def call(self, function, case):
        first, second = ({(text,): labels for text, labels in case.arguments[name].items()}
                         for name in ("first", "second"))
        found = function(first, second)
        return {"same_label": int(found["same_label"]), "conflicting": int(found["conflicting"])}
