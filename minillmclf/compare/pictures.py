"""Pictures of a comparison: accuracy by number of training rows, accuracy by cost -> Figures.

Needs: pip install -e '.[plots]'. Not here: how the numbers are computed (summary.py), and what all
pictures share (report/figures.py).
"""
import textwrap

import numpy as np

from ..errors import InputError
from ..report.figures import (COLOURS, DASHES, GOOD, INK, MARKERS, PAPER, add_legend,
                              load_matplotlib, new_figure, short_name)

COSTS = {"train_seconds": "training time (s)", "ms_per_text": "time for a text (ms)",
         "memory_mb": "peak memory (MB)", "trainable": "trained parameters"}


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
    points are the Pareto front, and a line joins them. The names stand beside the picture: among
    the points, many names would hide the points.
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
    costs = [point[1] for point in shown]
    low, high = min(costs), max(costs)
    margin = max(1.5, (high / low) ** 0.1)
    axes.set_xlim(low / margin, high * margin)   # before points: one alone would be no range
    for n, (_, x, y, below, above) in enumerate(shown):
        ink, fill = (GOOD, GOOD) if n in front else (INK, PAPER)
        axes.errorbar(x, y, [[below], [above]], color=ink, marker="o", markersize=6,
                      markerfacecolor=fill, capsize=2, elinewidth=0.8)
    x, y = np.array([shown[i][1:3] for i in front]).T
    axes.plot(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1], color=GOOD, linewidth=1.2, zorder=1,
              label="Pareto front: nothing here is both cheaper and better")
    ticks = (1,)                                 # times powers of ten; more of them on a short axis
    if high / low < 300:
        ticks = range(1, 10) if high / low < 5 else (1, 2, 5)
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
