"""Pictures of results: numbers in, a matplotlib Figure out. Needs: pip install -e '.[plots]'

Here: accuracy by number of training rows, accuracy by cost, confusion matrix, reliability diagram
(Guo et al. 2017, "On Calibration of Modern Neural Networks"), the course of a training. Not here:
how the numbers are computed (training/metrics.py, compare/), and the page (page.py).

A figure's label is its alternative text, the picture in words: `figure.get_label()`. `save_figure`
writes it into the file. Figures have a light background, so they can be read on a dark page too;
no text is smaller than 9 points. Series differ in colour, marker and dashes, and the colours differ
for red-green blind readers too. pyplot and the user's matplotlib settings are left unchanged.
"""
import io
import math
import textwrap
import unicodedata
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import replacing_file
from ..training.metrics import calibration_error

COLOURS = "#4A90D9", "#D55E00", "#000000", "#332288", "#5D3A00"    # for colour-blind readers too
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
GOOD, BAD, PAPER, INK = "#0072B2", "#D55E00", "#FCFCFC", "#1A1A1A"
STYLE = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9,
    "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False, "legend.handlelength": 3.5,
    "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.facecolor": PAPER,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#DDDDDD", "axes.axisbelow": True, "text.parse_math": False,
    "svg.hashsalt": "minillmclf", "svg.fonttype": "none"}     # text stays text, in browser fonts
COSTS = {"train_seconds": "training time (s)", "ms_per_text": "time for a text (ms)",
         "memory_mb": "peak memory (MB)", "trainable": "trained parameters"}
FORMATS = {     # suffix -> the keys that a file of this kind has for alternative text and for date
    ".svg": ("Description", "Date"), ".png": ("Description", None),
    ".pdf": ("Subject", "CreationDate")}
MOST_NUMBERED, MOST_DRAWN = 12, 60      # classes of a confusion matrix: with numbers; drawn at all


# ---------------------------------------------------------------- figures and files

def load_matplotlib():
    """-> the module matplotlib with the parts that are used here, imported when they are needed."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.ticker
        import matplotlib.transforms
    except ImportError:
        raise InputError("pictures need matplotlib, which is not installed: "
                         "pip install -e '.[plots]'") from None
    return matplotlib


def has_matplotlib():
    """Is matplotlib installed?"""
    try:
        return bool(load_matplotlib())
    except InputError:
        return False


@contextmanager
def picture_style():
    """with picture_style(): ...   STYLE holds; no warning for letters that the font lacks."""
    with load_matplotlib().rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


@contextmanager
def new_figure(width, height):
    """with new_figure(4, 3) as figure: ...   An empty Figure of that size in inches."""
    with picture_style():
        figure = load_matplotlib().figure.Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        load_matplotlib().backends.backend_agg.FigureCanvasAgg(figure)
        yield figure


def save_figure(figure, path):
    """Write the figure to a .svg, .png (160 dots an inch) or .pdf file, complete or not at all."""
    with replacing_file(path) as temporary:
        Path(temporary).write_bytes(figure_bytes(figure, Path(path).suffix.lower(), path))


def figure_bytes(figure, suffix=".svg", name="a picture"):
    """The figure as the bytes of a file; the same data give the same bytes. name: for errors."""
    if suffix not in FORMATS:
        raise InputError(f"{name}: unknown suffix '{suffix}': use {', '.join(FORMATS)}")
    description, date = FORMATS[suffix]
    metadata = {description: figure.get_label()} | ({date: None} if date else {})
    out = io.BytesIO()
    with picture_style():
        figure.savefig(out, format=suffix[1:], dpi=160, metadata=metadata)
    return out.getvalue()


def short_name(text, most=32):
    """A name on one line of at most `most` characters; names differ at their ends, so a long one
    loses its middle."""
    text = " ".join(str(text).split())
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}…{text[len(text) - (most - half - 1):]}"


def letter_width(text):
    """The width of a text in Latin letters: Chinese letters and emoji count twice."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def add_legend(figure, axes, place):
    """Add a legend of what is drawn in `axes`, outside of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc=f"outside {place}")


# ---------------------------------------------------------------- comparisons

def accuracy_interval(row):
    """The accuracy of a row -> its mean, and how far its interval reaches below and above it."""
    mean, low, high = (row["accuracy"][key] for key in ("mean", "low", "high"))
    return mean, max(0.0, mean - low), max(0.0, high - mean)


def learning_curve_figure(table):
    """Accuracy by training rows a class, a line for each model, with intervals -> Figure.

    table: the rows of compare's table.json, with `label` (which line), `size` (rows a class, or
    "all") and `accuracy` {mean, low, high}. "all" is drawn at twice the largest number.
    """
    series = {}
    for row in table:
        series.setdefault(row["label"], []).append(row)
    sizes = {row["size"] for row in table}
    numbers = sorted(sizes - {"all"})
    places = {**{n: float(n) for n in numbers}, "all": 2.0 * max(numbers, default=1)}
    with new_figure(5.2, 3.4 + 0.2 * len(series)) as figure:
        axes = figure.add_subplot()
        for n, (label, rows) in enumerate(series.items()):
            points = sorted((places[row["size"]], *accuracy_interval(row)) for row in rows)
            x, y, below, above = np.array(points).T
            shift = 1.2 ** ((n + 0.5) / len(series) - 0.5)      # or intervals would hide each other
            axes.errorbar(x * shift, y, [below, above], label=short_name(label, 60), capsize=3,
                          color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)],
                          linestyle=DASHES[n % len(DASHES)])
        axes.set_xscale("log")
        used = numbers + ["all"] * ("all" in sizes)
        axes.set_xticks([places[size] for size in used], [str(size) for size in used])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="training rows a class (log scale)", ylabel="accuracy (share of rows)")
        add_legend(figure, axes, "lower center")
        lines = [f"{label}: " + ", ".join(f"{r['accuracy']['mean']:.3f} at {r['size']}"
                                          for r in rows) for label, rows in series.items()]
        figure.set_label(f"Accuracy against training rows a class. {'; '.join(lines)}.")
    return figure


def pareto_front(points):
    """Points (cost, quality) -> the set of indices of points that no other point beats: none is as
    cheap and better, or as good and cheaper. Equal points do not beat each other."""
    return {i for i, (cost, quality) in enumerate(points)
            if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)}


def cost_figure(table, by="train_seconds"):
    """Accuracy by cost, a numbered point for each row, 1 the most accurate -> Figure.

    table: as for `learning_curve_figure`; by: a key of COSTS. The axis is logarithmic, so rows
    without a cost above 0 (a baseline trains no parameters) are named below the picture. Filled
    points are the Pareto front, and a line joins them. The names stand beside the picture: sixteen
    names among the points would hide these.
    """
    several_sizes = len({row["size"] for row in table}) > 1
    shown, free = [], []
    for row in table:
        name = short_name(row["label"]) + (f" ({row['size']})" if several_sizes else "")
        if row[by] and row[by] > 0:
            shown.append((name, row[by], *accuracy_interval(row)))
        else:
            free.append(name)
    if not shown:
        raise InputError(f"cost by {by}: no row of the table has a number above 0 there")
    shown.sort(key=lambda point: -point[2])
    points = [(x, y) for _, x, y, *_ in shown]
    front = sorted(pareto_front(points), key=points.__getitem__)
    note = f"not shown, no number above 0 here: {', '.join(free)}" if free else ""
    with new_figure(7.6, max(4.4, 1.2 + 0.2 * len(shown))) as figure:
        axes = figure.add_subplot(xscale="log")
        draw_points(axes, shown, front)
        axes.set(xlabel="\n".join([COSTS[by] + ", log scale", *textwrap.wrap(note, 60)]),
                 ylabel="accuracy (share of rows)")
        add_legend(figure, axes, "upper left")
        key = "\n".join(f"{n:\u2007>2}  {name}" for n, (name, *_) in enumerate(shown, 1))
        figure.legend([axes.plot([], [], linestyle="none")[0]], [key], handlelength=0,
                      loc="outside right upper", handletextpad=0)
        put_numbers(figure, axes, points)
        best = [f"{shown[i][0]}, accuracy {shown[i][2]:.3f} for {shown[i][1]:,.4g}" for i in front]
        figure.set_label(f"Accuracy against {COSTS[by]}. On the Pareto front: {'; '.join(best)}."
                         + f" {note}." * bool(note))
    return figure


def draw_points(axes, shown, front):
    """Points with intervals, and the Pareto front as steps. shown: (name, cost, mean, below, above)
    for each point; front: the indices of points on the front, from cheap to expensive."""
    for n, (_, x, y, below, above) in enumerate(shown):
        ink, fill = (GOOD, GOOD) if n in front else (INK, PAPER)
        axes.errorbar(x, y, [[below], [above]], color=ink, marker="o", markersize=6,
                      markerfacecolor=fill, capsize=2, elinewidth=0.8)
    x, y = np.array([shown[i][1:3] for i in front]).T
    axes.plot(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1], color=GOOD, linewidth=1.2, zorder=1,
              label="Pareto front: nothing here is both cheaper and better")
    costs = [point[1] for point in shown]
    low, high = min(costs), max(costs)
    margin = max(1.5, (high / low) ** 0.1)
    axes.set_xlim(low / margin, high * margin)
    ticks = range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 300 else (1,)
    axes.xaxis.set_major_locator(load_matplotlib().ticker.LogLocator(subs=ticks))
    axes.xaxis.set_major_formatter(                            # whole numbers, not powers of ten
        lambda value, _: f"{value:,.10g}" if value < 1e6 else f"{value / 1e6:,.10g} M")
    axes.xaxis.set_minor_formatter("")
    axes.margins(y=0.1)


def put_numbers(figure, axes, points):
    """Write 1, 2, ... beside the points (x, y), each where it hides the fewest points and numbers,
    and as near as possible."""
    figure.canvas.draw()                                       # settles the layout
    figure.set_layout_engine("none")
    dot = figure.dpi / 72                                      # pixels of a typographic point
    box_at = load_matplotlib().transforms.Bbox.from_bounds     # left, bottom, width, height
    centres = [axes.transData.transform(point) for point in points]
    taken = [box_at(x - 4 * dot, y - 4 * dot, 8 * dot, 8 * dot) for x, y in centres]
    directions = [(-0.7, 0.7), (-1, 0), (0.7, 0.7), (1, 0), (0.7, -0.7), (-0.7, -0.7), (0, 1),
                  (0, -1)]
    offsets = [(far * x, far * y) for far in (10, 14, 19, 25) for x, y in directions]
    for n, (point, (x, y)) in enumerate(zip(points, centres), 1):
        label = axes.annotate(str(n), point, (0, 0), textcoords="offset points", fontsize=9,
                              ha="center", va="center")
        size, choices = label.get_window_extent(), []
        for right, up in offsets:
            box = box_at(x + right * dot - size.width / 2, y + up * dot - size.height / 2,
                         size.width, size.height)
            choices.append((box.count_overlaps(taken), len(choices), (right, up), box))
        _, _, offset, box = min(choices)
        label.set_position(offset)
        taken.append(box)


# ---------------------------------------------------------------- one run

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
    least, cell, more_width, more_height = (1.6, 0.56, 0.2, 0.3) if numbered else (
        3.4, 0.155, 5.6, 0.8)
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
