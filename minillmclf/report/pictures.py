"""Pictures of one run: confusion matrix, reliability diagram (Guo et al. 2017, "On Calibration of
Modern Neural Networks"), the course of a training -> Figures. Needs: pip install -e '.[plots]'

Not here: how the numbers are computed (training/metrics.py), what all pictures share (figures.py),
and the page (page.py).
"""
import math
from collections import Counter
from contextlib import contextmanager

import numpy as np

from ..training.metrics import calibration_error
from .figures import (BAD, COLOURS, GOOD, INK, add_legend, letter_width, load_matplotlib,
                      new_figure, short_name)

MOST_NUMBERED, MOST_DRAWN = 12, 60      # classes of a confusion matrix: with numbers; drawn at all


def frequent_mistakes(matrix, most=10):
    """The most frequent mistakes of a confusion matrix (C, C) -> [(rows, true class, answer)]."""
    matrix = np.asarray(matrix)
    wrong = {(int(t), int(a)): int(matrix[t, a]) for t, a in np.argwhere(matrix) if t != a}
    return [(n, t, a) for (t, a), n in Counter(wrong).most_common(most)]


def confusion_figure(matrix, labels):
    """The confusion matrix, each row shaded by its shares -> Figure.

    matrix: (C, C) counts, [true, answered]. Up to 12 classes, each cell has its count and its share
    of the row; of more classes, the ten most frequent mistakes are listed beside the matrix. Of
    more than 60 classes, those 60 are drawn that have the most mistakes, as truth or as answer.
    """
    counts, mistakes = np.asarray(matrix), frequent_mistakes(matrix)         # (C, C), a list
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()            # (C,)
    drawn = np.sort(np.argsort(-wrong, kind="stable")[:MOST_DRAWN])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)            # (C, C), rows of 0 too
    counts_drawn, shares = counts[np.ix_(drawn, drawn)], shares[np.ix_(drawn, drawn)]
    names, numbered = [short_name(labels[i]) for i in drawn], len(drawn) <= MOST_NUMBERED
    which = f"the {MOST_DRAWN} most confused of {len(labels)}" if len(labels) > MOST_DRAWN else ""
    with matrix_figure(names, numbered) as (figure, axes, beside):
        norm = load_matplotlib().colors.PowerNorm(0.5, 0, 1)    # the root: rare mistakes show too
        image = axes.imshow(shares, cmap="Blues", norm=norm)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.grid(False)
        axes.set(anchor="N", xlabel="answered class", ylabel="true class", title=which)
        if numbered:
            for (row, column), n in np.ndenumerate(counts_drawn):
                share = shares[row, column]
                axes.text(column, row, f"{n}\n{share:.0%}" if n else "0", ha="center", va="center",
                          fontsize=9, color="white" if share > 0.4 else "black")
        else:
            figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1],
                            label="share of the true class's rows")
            lines = [f"{n} x {short_name(labels[t])}\n      taken for {short_name(labels[a])}"
                     for n, t, a in mistakes]
            beside.text(0, 1, "\n".join(["Most frequent mistakes", "", *(lines or ["none"])]),
                        va="top", fontsize=9, linespacing=1.3)
        right = counts.trace() / max(1, counts.sum())
        worst = [f"{n} x {labels[t]} taken for {labels[a]}" for n, t, a in mistakes]
        figure.set_label(f"Confusions of {len(labels)} classes{', ' * bool(which)}{which}, "
                         f"{right:.1%} of {counts.sum()} rows right. Most frequent mistakes: "
                         f"{'; '.join(worst) or 'none'}.")
    return figure


@contextmanager
def matrix_figure(names, numbered):
    """with matrix_figure(names, numbered) as (figure, axes, beside): ...   A figure that is large
    enough for a matrix with these names; beside: axes for text, None if the cells have numbers."""
    margin = 0.6 + 0.08 * max(map(letter_width, names))             # inches for the names
    least, cell, more_width, more_height = 3.4, 0.155, 5.6, 0.8     # inches, too
    if numbered:
        least, cell, more_width, more_height = 1.6, 0.56, 0.2, 0.3
    side = max(least, len(names) * cell)
    extra = 0.05 * max(letter_width(name) - len(name) for name in names)    # for wide letters,
    wide = side + margin + extra + more_width                               # which matplotlib
    high = side + margin + extra + more_height                              # takes for narrow ones
    with new_figure(wide, high) as figure:
        layout = figure.get_layout_engine()
        layout.set(rect=(extra / wide, extra / high, 1 - extra / wide, 1 - extra / high))
        if numbered:
            yield figure, figure.add_subplot(), None
        else:
            layout.set(w_pad=0.15, h_pad=0.3)                  # or the axis title is cut off
            axes, beside = figure.subplots(1, 2, width_ratios=[side + margin + 1.2, 4.4])
            beside.axis("off")
            yield figure, axes, beside


def reliability_figure(confidences, right, bins=15):
    """Is a model that says 80 % right in 80 of 100 rows? Accuracy and rows by confidence -> Figure.

    confidences: (N,) probability of each answer; right: (N,) whether it is the true class. The
    title has the expected calibration error (training.metrics.calibration_error).
    """
    confidences = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(right, dtype=bool)
    which = np.minimum((confidences * bins).astype(int), bins - 1)           # (N,)
    rows = np.bincount(which, minlength=bins)                                # (bins,)
    hits, means = (np.bincount(which, weights=values, minlength=bins) / np.maximum(rows, 1)
                   for values in (right, confidences))                       # (bins,) each
    error = calibration_error(confidences, right, bins)
    middle, full, thick = (np.arange(bins) + 0.5) / bins, rows > 0, 0.92 / bins
    with new_figure(4, 4.9) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.bar(middle[full], hits[full], thick, color=GOOD, label="right answers")
        above.bar(middle[full], (means - hits)[full], thick, bottom=hits[full], color="none",
                  edgecolor=BAD, linewidth=1, hatch="////", label="gap to what the model said")
        above.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="well calibrated")
        above.set(title=f"expected calibration error {error:.3f}", xlim=(0, 1), ylim=(0, 1),
                  ylabel="share of right answers")
        below.bar(middle, rows, thick, color="#6B6B6B")
        below.set(ylabel="rows", xlabel="confidence: probability of the answer")
        figure.align_ylabels()
        add_legend(figure, above, "lower center")
        figure.set_label(f"Reliability diagram of {len(right)} answers: {right.mean():.1%} are "
                         f"right, the mean confidence is {confidences.mean():.1%}, the expected "
                         f"calibration error {error:.3f}.")
    return figure


def training_figure(history, metric="accuracy"):
    """Losses and, below them, a metric of the dev rows, by epoch -> Figure.

    history: lines of metrics.jsonl, with epoch, train_loss, log_loss (of the dev rows) and metric;
    without dev rows the metric of training rows is drawn, and one loss.
    """
    dev = metric in history[0]
    keys = ("train_loss", "log_loss", metric) if dev else ("train_loss", None, f"train_{metric}")
    epochs = [line["epoch"] for line in history]
    curves = [[line.get(key, math.nan) for line in history] for key in keys]
    names = "train loss", "dev log loss", f"{'dev' if dev else 'train'} {metric.replace('_', ' ')}"
    with new_figure(4, 4.2) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        for curve, name, line, colour, axes in zip(curves, names, ("o-", "s--", "D-"), COLOURS,
                                                   (above, above, below)):
            if not math.isnan(curve[0]):
                axes.plot(epochs, curve, line, color=colour, label=name)
        above.set(ylabel="loss (nats a row)")
        above.legend()
        below.set(xlabel="epoch", ylabel=names[2])
        below.locator_params(axis="x", integer=True, min_n_ticks=1)
        figure.align_ylabels()
        courses = [f"{name} from {curve[0]:.3f} to {curve[-1]:.3f}"
                   for name, curve in zip(names, curves) if not math.isnan(curve[0])]
        figure.set_label(f"Training over {len(history)} epochs: {', '.join(courses)}.")
    return figure
