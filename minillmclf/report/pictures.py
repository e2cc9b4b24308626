"""Pictures of results: numbers in, a matplotlib Figure out. Needs the extra: pip install -e '.[plots]'

Here: accuracy against rows, quality against cost, confusions, calibration (the reliability diagram of Guo et al. 2017, "On
Calibration of Modern Neural Networks"), the course of a training. Not here: how the numbers come about (training/metrics.py,
compare.py), nor a page around the pictures (report.py).

A figure's label is its alternative text, in words what the picture shows: `figure.get_label()`; `save` writes it into the
file. Nothing is left behind in pyplot or in matplotlib's settings. Figures have a light background of their own, so that
they can be read on a dark page too; no text is smaller than 9 points. Series differ in colour, marker and dash pattern, and
the colours stay apart for eyes without red or green cones.
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
from ..files import replacing
from ..training.metrics import calibration_error

COLOURS = "#4A90D9", "#D55E00", "#000000", "#332288", "#5D3A00"       # farthest apart in simulated colour blindness
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
GOOD, BAD, PAPER, INK = "#0072B2", "#D55E00", "#FCFCFC", "#1A1A1A"
STYLE = {"font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
         "legend.fontsize": 9, "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.facecolor": PAPER,
         "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#DDDDDD",
         "axes.axisbelow": True, "legend.frameon": False, "legend.handlelength": 3.5, "text.parse_math": False,
         "svg.hashsalt": "minillmclf", "svg.fonttype": "none"}        # text stays text, in the browser's fonts
COSTS = {"train_seconds": "training time (s)", "ms_per_text": "time for a text (ms)", "memory_mb": "peak memory (MB)",
         "trainable": "trained parameters"}
FORMATS = {".svg": "Description", ".png": "Description", ".pdf": "Subject"}       # suffix -> where alternative text goes
NUMBERED, SHOWN = 12, 60          # classes up to which cells hold numbers; that are drawn at most


@contextmanager
def any_script():
    """with any_script(): ...   No warning for letters that matplotlib's font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def width(text):
    """How many Latin letters a text is as wide as: Chinese letters and emoji count twice."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


@contextmanager
def drawing(width, height):
    """with drawing(4, 3) as figure: ...   An empty Figure, in inches, in the style of all pictures here."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib, which is not installed: pip install -e '.[plots]'") from None
    with matplotlib.rc_context(STYLE), any_script():
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        FigureCanvasAgg(figure)
        yield figure


def save(figure, path):
    """The figure as a file, whole or not at all; its suffix says how: .svg, .png (160 dots an inch) or .pdf."""
    with replacing(path) as temporary:
        Path(temporary).write_bytes(render(figure, Path(path).suffix.lower(), path))


def render(figure, suffix=".svg", name="a picture"):
    """The figure as the bytes of such a file; the same data give the same bytes. name: what an error calls it."""
    import matplotlib
    if suffix not in FORMATS:
        raise InputError(f"{name}: unknown suffix '{suffix}': use {', '.join(FORMATS)}")
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE), any_script():
        figure.savefig(out, format=suffix[1:], dpi=160, metadata={FORMATS[suffix]: figure.get_label(), **dates[suffix]})
    return out.getvalue()


def short(text, most=32):
    """A name on one line, of `most` characters at most: a long one loses its middle, for names differ at their ends."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[:most // 2] + "…" + text[len(text) - (most - most // 2 - 1):]


def check_table(table, keys):
    """Every row of a comparison's table has these keys, and an accuracy that is a number."""
    if not table:
        raise InputError("a picture of a comparison needs a row at least, the table has none")
    for number, row in enumerate(table, 1):
        missing = [key for key in (*keys, "accuracy") if key not in row]
        if missing:
            raise InputError(f"row {number} of the table: has no {', '.join(missing)}, only {', '.join(row)}")
        if not isinstance(row["accuracy"], dict) or row["accuracy"].get("mean") is None:
            raise InputError(f"row {number} of the table: accuracy should be {{mean, low, high}}, is "
                             f"{row['accuracy']!r:.60}: give the rows of a table.json that minillmclf.compare has written")


def interval(row):
    """The accuracy of a row -> mean, and how far the interval goes below and above; 0 where there is none."""
    mean, low, high = (row["accuracy"].get(key) for key in ("mean", "low", "high"))
    return mean, max(0.0, mean - low) if low is not None else 0.0, max(0.0, high - mean) if high is not None else 0.0


def rows_of(size):
    """The size of a training set, 25 or "25" or "all" -> 25 or "all"."""
    if str(size) != "all" and not (str(size).isdigit() and int(size) > 0):
        raise InputError(f"size {size!r} in the table: should be a number of rows a class, or all")
    return size if size == "all" else int(size)


def learning_curve(table):
    """Accuracy against training rows a class, a line a model, with its interval -> Figure.

    table: of `compare`'s table.json: rows with `label` (whose line), `size` (rows a class, or "all") and `accuracy`
    {mean, low, high}. "all" stands one doubling to the right of the largest number.
    """
    check_table(table, ["label", "size"])
    series = {}
    for row in table:
        series.setdefault(row["label"], []).append(row)
    sizes = [rows_of(row["size"]) for row in table]
    numbers = sorted({size for size in sizes if size != "all"})
    place = {**{n: float(n) for n in numbers}, "all": 2.0 * max(numbers, default=1)}
    with drawing(5.2, 3.4 + 0.2 * len(series)) as figure:
        axes = figure.add_subplot()
        for number, (label, rows) in enumerate(series.items()):
            points = sorted((place[rows_of(r["size"])], *interval(r)) for r in rows)
            x, y, below, above = np.array(points).T
            aside = 1.2 ** ((number + 0.5) / len(series) - 0.5)          # or intervals would hide each other
            axes.errorbar(x * aside, y, [below, above], label=short(label, 60), color=COLOURS[number % len(COLOURS)],
                          marker=MARKERS[number % len(MARKERS)], linestyle=DASHES[number % len(DASHES)], capsize=3)
        axes.set_xscale("log")
        used = numbers + ["all"] * ("all" in sizes)
        axes.set_xticks([place[n] for n in used], [str(n) for n in used])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training rows a class (log scale)")
        axes.set_ylabel("accuracy (share of rows)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
        ends = [f"{label}: " + ", ".join(f"{r['accuracy']['mean']:.3f} at {r['size']}" for r in rows)
                for label, rows in series.items()]
        figure.set_label("Accuracy against training rows a class. " + "; ".join(ends) + ".")
    return figure


def pareto_front(points):
    """points: (cost, quality) each -> set of the numbers of those that no other beats, which would be as cheap and better, or
    as good and cheaper. Equal points are on it together."""
    return {i for i, (cost, quality) in enumerate(points)
            if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)}


def cost(table, by="train_seconds"):
    """Accuracy against what it costs, a numbered point a row, 1 the most accurate; the Pareto front is a line through full
    points -> Figure.

    table: as for `learning_curve`; by: train_seconds, ms_per_text, memory_mb or trainable. The axis is logarithmic: rows
    that have no cost above 0 (a baseline trains no parameters) are named below the picture. Numbers with a key, not names
    beside the points: sixteen names near each other hide the points.
    """
    if by not in COSTS:
        raise InputError(f"cost by {by!r}: known are {', '.join(COSTS)}")
    check_table(table, ["label", "size", by])
    sizes = len({row["size"] for row in table}) > 1
    named = [(short(row["label"]) + (f" ({row['size']})" if sizes else ""), row) for row in table]
    free = [name for name, row in named if not row[by] or not row[by] > 0]
    shown = sorted(((name, row) for name, row in named if row[by] and row[by] > 0), key=lambda pair: -interval(pair[1])[0])
    if not shown:
        raise InputError(f"cost by {by}: no row of the table has a number above 0 there")
    points = [(row[by], row["accuracy"]["mean"]) for _, row in shown]
    front = sorted(pareto_front(points), key=points.__getitem__)
    note = f"not shown, no number above 0 here: {', '.join(free)}" if free else ""
    with drawing(7.6, max(4.4, 1.2 + 0.2 * len(shown))) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for number, ((_, row), (x, y)) in enumerate(zip(shown, points)):
            ink, fill = (GOOD, GOOD) if number in front else (INK, PAPER)
            axes.errorbar(x, y, np.array([interval(row)[1:]]).T, color=ink, marker="o", markersize=6, markerfacecolor=fill,
                          capsize=2, elinewidth=0.8)
        x, y = np.array([points[i] for i in front]).T
        axes.plot(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1], color=GOOD, linewidth=1.2, zorder=1,
                  label="Pareto front: nothing here is both cheaper and better")
        plain_log_axis(axes, [x for x, _ in points])
        axes.margins(y=0.1)
        axes.set_xlabel("\n".join([COSTS[by] + ", log scale", *textwrap.wrap(note, 60)]))
        axes.set_ylabel("accuracy (share of rows)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left")
        key = "\n".join(f"{number:\u2007>2}  {name}" for number, (name, _) in enumerate(shown, 1))
        figure.legend([axes.plot([], [], linestyle="none")[0]], [key], loc="outside right upper", handlelength=0, handletextpad=0)
        put_numbers(figure, axes, points)
        best = [f"{shown[i][0]}, accuracy {points[i][1]:.3f} for {points[i][0]:,.4g}" for i in front]
        figure.set_label(f"Accuracy against {COSTS[by]}. On the Pareto front: {'; '.join(best)}." + f" {note}." * bool(note))
    return figure


def plain_log_axis(axes, values):
    """A logarithmic x axis with room around the values and whole numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    low, high = min(values), max(values)
    room = max(1.5, (high / low) ** 0.1)
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(LogLocator(subs=range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 300 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if value < 1e6 else f"{value / 1e6:,.10g} M"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def put_numbers(figure, axes, points):
    """1, 2, ... beside the points (x, y), each where it hides the fewest points and numbers, as near as can be."""
    figure.canvas.draw()                                    # the layout is settled here, and stays
    figure.set_layout_engine("none")
    renderer, dot = figure.canvas.get_renderer(), figure.dpi / 72              # pixels of a typographic point
    centres = [axes.transData.transform(point) for point in points]
    taken = [(x - 4 * dot, y - 4 * dot, x + 4 * dot, y + 4 * dot) for x, y in centres]
    places = [(far * right, far * up) for far in (10, 14, 19, 25) for right, up in
              ((-0.7, 0.7), (-1, 0), (0.7, 0.7), (1, 0), (0.7, -0.7), (-0.7, -0.7), (0, 1), (0, -1))]
    for number, (point, (x, y)) in enumerate(zip(points, centres), 1):
        label = axes.annotate(str(number), point, (0, 0), textcoords="offset points", fontsize=9, ha="center", va="center")
        size, choices = label.get_window_extent(renderer), []
        for right, up in places:
            box = (x + right * dot - size.width / 2, y + up * dot - size.height / 2,
                   x + right * dot + size.width / 2, y + up * dot + size.height / 2)
            hidden = sum(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
            choices.append((hidden, len(choices), (right, up), box))
        _, _, place, box = min(choices)
        label.set_position(place)
        taken.append(box)


def confusion(matrix, labels):
    """Which class is taken for which: a row for each true class, shaded by the share of its rows -> Figure.

    matrix: (C, C) counts, [true, answered]. Up to 12 classes each cell says its count and its share of the row; beyond
    that the ten most frequent mistakes stand beside the shades. Of more than 60 classes, the 60 are
    drawn that have the most mistakes, in their rows or as answers.
    """
    whole, known = np.asarray(matrix), labels
    if whole.shape != (len(labels), len(labels)):
        raise InputError(f"confusions: {len(labels)} labels need {len(labels)} x {len(labels)} counts, got {whole.shape}")
    lines = [f"{n} x {short(labels[t])}\n      taken for {short(labels[a])}" for n, t, a in mistakes(whole)]
    wrong = whole.sum(0) + whole.sum(1) - 2 * whole.diagonal()                 # (C,)
    drawn = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN])
    matrix, labels = whole[np.ix_(drawn, drawn)], [labels[i] for i in drawn]
    shares = matrix / np.maximum(whole[drawn].sum(1, keepdims=True), 1)        # (C, C); a class without rows: all 0
    names, numbered = [short(label) for label in labels], len(labels) <= NUMBERED
    margin = 0.6 + 0.08 * max(map(width, names))                              # inches that the names take
    side = max(1.6, len(labels) * 0.56) if numbered else max(3.4, len(labels) * 0.155)
    room = 0.05 * max(width(name) - len(name) for name in names)               # inches that matplotlib does not know of
    wide, high = (side + margin + room + more for more in ((0.2, 0.3) if numbered else (5.6, 0.8)))
    with drawing(wide, high) as figure:
        figure.get_layout_engine().set(rect=(room / wide, room / high, 1 - room / wide, 1 - room / high))
        from matplotlib.colors import PowerNorm
        if numbered:
            axes = figure.add_subplot()
        else:
            axes, beside = figure.subplots(1, 2, width_ratios=[side + margin + 1.2, 4.4])
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))   # the root: rare mistakes show too
        axes.set_xticks(range(len(labels)), names, rotation=90)
        axes.set_yticks(range(len(labels)), names)
        axes.grid(False)
        axes.set_anchor("N")
        which = f", the {SHOWN} most confused of {len(known)}" if len(known) > SHOWN else ""
        axes.set_xlabel("answered class")
        axes.set_ylabel("true class")
        axes.set_title(which.removeprefix(", "))
        if numbered:
            for (row, column), count in np.ndenumerate(matrix):
                axes.text(column, row, f"{count}\n{shares[row, column]:.0%}" if count else "0", ha="center", va="center",
                          fontsize=9, color="white" if shares[row, column] > 0.4 else "black")
        else:
            figure.get_layout_engine().set(w_pad=0.15, h_pad=0.3)              # or the axis title leaves the page
            figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1],
                            label="share of the true class's rows")
            beside.text(0, 1, "\n".join(["Most frequent mistakes", "", *(lines or ["none"])]), va="top", fontsize=9,
                        linespacing=1.3)
            beside.axis("off")
        right = whole.trace() / max(1, whole.sum())
        worst = "; ".join(f"{n} x {known[t]} taken for {known[a]}" for n, t, a in mistakes(whole)) or "none"
        figure.set_label(f"Confusions of {len(known)} classes{which}, {right:.1%} of {whole.sum()} rows right. "
                         f"Most frequent mistakes: {worst}.")
    return figure


def mistakes(matrix, most=10):
    """The most frequent mistakes in a table of confusions -> list of (rows, true class number, answered class number)."""
    matrix = np.asarray(matrix)
    wrong = {(int(t), int(a)): int(matrix[t, a]) for t, a in np.argwhere(matrix) if t != a}
    return [(n, t, a) for (t, a), n in Counter(wrong).most_common(most)]


def reliability(confidences, right, bins=15):
    """Is a model that says 80 % right in 80 of 100 rows? Accuracy in bins of confidence, and how full they are -> Figure.

    confidences: (N,) probability of each answer; right: (N,) is it the true class? The title says the expected calibration
    error, the gaps of the bins weighted by their rows (training.metrics.calibration_error).
    """
    confidences, right = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=bool)
    if confidences.ndim != 1 or confidences.shape != right.shape or not len(right):
        raise InputError(f"reliability: needs as many confidences as answers, got {confidences.shape} and {right.shape}")
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise InputError("reliability: a confidence is a probability, from 0 to 1")
    which = np.minimum((confidences * bins).astype(int), bins - 1)             # (N,) as calibration_error has it
    rows = np.bincount(which, minlength=bins)                                  # (bins,)
    hits, said = (np.bincount(which, weights=w, minlength=bins) / np.maximum(rows, 1) for w in (right, confidences))
    error, middle, full = calibration_error(confidences, right, bins), (np.arange(bins) + 0.5) / bins, rows > 0
    with drawing(4, 4.9) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.bar(middle[full], hits[full], 0.92 / bins, color=GOOD, label="right answers")
        above.bar(middle[full], (said - hits)[full], 0.92 / bins, bottom=hits[full], color="none", edgecolor=BAD, linewidth=1,
                  hatch="////", label="gap to what the model said")
        above.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="well calibrated")
        above.set_title(f"expected calibration error {error:.3f}")
        above.set_ylabel("share of right answers")
        above.set_xlim(0, 1)
        above.set_ylim(0, 1)
        below.bar(middle, rows, 0.92 / bins, color="#6B6B6B")
        below.set_ylabel("rows")
        below.set_xlabel("confidence: probability of the answer")
        figure.align_ylabels()
        figure.legend(*above.get_legend_handles_labels(), loc="outside lower center")
        figure.set_label(f"Reliability diagram of {len(right)} answers: {right.mean():.1%} are right, the mean confidence is "
                         f"{confidences.mean():.1%}, the expected calibration error {error:.3f}.")
    return figure


def training(history, metric="accuracy"):
    """Losses above, a metric of the dev rows below, by epoch -> Figure.

    history: lines of metrics.jsonl: dicts with epoch, train_loss, log_loss (of the dev rows) and the metric.
    """
    if not history:
        raise InputError("the course of a training needs an epoch at least, the history has none")
    for line in history:
        missing = [key for key in ("epoch", "train_loss", "log_loss", metric) if key not in line]
        if missing:
            raise InputError(f"epoch {line.get('epoch', '?')} of the history: has no {', '.join(missing)}, only "
                             f"{', '.join(line)}: give the lines of a run's metrics.jsonl")
    epochs, train, dev, reached = ([math.nan if line[key] is None else line[key] for line in history]
                                   for key in ("epoch", "train_loss", "log_loss", metric))
    with drawing(4, 4.2) as figure:
        from matplotlib.ticker import MaxNLocator
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(epochs, train, "o-", color=COLOURS[0], label="train loss")
        above.plot(epochs, dev, "s--", color=COLOURS[1], label="dev log loss")
        above.set_ylabel("loss (nats a row)")
        above.legend()
        below.plot(epochs, reached, "D-", color=COLOURS[2])
        below.set_ylabel(f"dev {metric.replace('_', ' ')}")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.align_ylabels()
        courses = [f"{name} from {values[0]:.3f} to {values[-1]:.3f}" for name, values in (
            ("train loss", train), ("dev log loss", dev), (f"dev {metric.replace('_', ' ')}", reached))]
        figure.set_label(f"Training over {len(history)} epochs: {', '.join(courses)}.")
    return figure
