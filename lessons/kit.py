"""What a lesson's cells are given: parity(...) compares two tensors, fig(...) keeps a figure.

The runner puts both into each lesson's namespace. At Python's prompt and in a notebook:

    from lessons.kit import fig, parity
"""
import io
import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

DIGITS = 6                                   # significant ones of a stored number
RECORDER = None                              # of the lesson that is being run


# ---------------------------------------------------------------- parity

def parity(name, a, b, atol=1e-5):
    """Prints by how much two tensors differ at most, and whether that is within atol."""
    a, b = (np.asarray(each.detach() if hasattr(each, "detach") else each, dtype=np.float64)
            for each in (a, b))
    if a.shape != b.shape:
        print(f"{name:<16} DIFFERENT shapes {a.shape} and {b.shape}")
        return
    largest = np.abs(a - b).max() if a.size else 0.0
    verdict = "equal within" if largest <= atol else "DIFFERENT by more than"
    print(f"{name:<16} largest difference {largest:.1e}, {verdict} {atol:g}")


# ---------------------------------------------------------------- figures

class Recorder:
    """Where a lesson's figures lie, which it has drawn, and what is wrong with them."""

    def __init__(self, folder, update=False):
        self.folder, self.update, self.drawn, self.faults = Path(folder), update, [], []

    def take(self, name, figure, rtol):
        stored, found = self.folder / f"{name}.json", plotted(figure)
        if name in self.drawn:
            self.faults.append(f"figure {name} is drawn twice")
        self.drawn.append(name)
        if self.update:
            self.folder.mkdir(exist_ok=True)
            save(figure, self.folder / f"{name}.svg")
            lines = ",\n".join(map(json.dumps, found))                # a line for each axes
            stored.write_text(f"[{lines}]\n", encoding="utf-8")
        elif not (stored.exists() and stored.with_suffix(".svg").exists()):
            self.faults.append(f"figure {name} is not there: run with --update")
        elif drift := drifted(json.loads(stored.read_text(encoding="utf-8")), found, rtol):
            self.faults.append(f"figure {name} has drifted: {drift}")


@contextmanager
def recording(folder, update=False):
    """with recording(folder) as recorder: ...   fig() compares with the files there, or writes."""
    global RECORDER
    before, RECORDER = RECORDER, Recorder(folder, update)
    try:
        yield RECORDER
    finally:
        RECORDER = before


def fig(name, figure, rtol=1e-3):
    """Keeps a matplotlib figure, or that of its axes, as lessons/figures/NAME.svg.

    The tests compare the plotted numbers with NAME.json: a number may move by rtol times the
    largest of its series. Outside the runner the figure is shown, or written where you are.
    """
    figure = figure.figure
    if RECORDER is not None:
        RECORDER.take(name, figure, rtol)
    else:
        show(name, figure)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)


def show(name, figure):
    """In a notebook, the figure below the cell; elsewhere, a file NAME.svg."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        from IPython.display import SVG, display
        picture = io.BytesIO()
        save(figure, picture)
        display(SVG(picture.getvalue().decode()))
    else:
        save(figure, f"{name}.svg")
        print(f"written: {name}.svg")


def save(figure, path):
    """The same figure gives the same bytes: no date, and no random names in the file."""
    import matplotlib
    with matplotlib.rc_context({"svg.hashsalt": "minillmclf", "svg.fonttype": "none"}):
        words = {"Date": None, "Description": figure.get_label() or None}
        figure.savefig(path, format="svg", metadata=words)


def plotted(figure):
    """A figure -> all its numbers, as JSON: a list with a dict for each of its axes."""
    return [{"text": [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()],
             "lines": [numbers(line.get_xydata()) for line in axes.lines],
             "images": [numbers(image.get_array()) for image in axes.images],
             "bars": [numbers(bar.get_bbox().bounds) for bar in axes.patches
                      if hasattr(bar, "get_bbox")],
             "points": [numbers(each.get_offsets()) for each in axes.collections],
             "areas": [numbers(path.vertices) for each in axes.collections
                       if each.get_array() is None for path in each.get_paths()],
             "values": [numbers(each.get_array()) for each in axes.collections
                        if each.get_array() is not None]} for axes in figure.axes]


def numbers(values):
    """Numbers of any shape -> nested lists of floats with few digits; a masked one is null."""
    values = np.ma.filled(np.ma.asarray(values, dtype=float), math.nan)
    flat = [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
            for value in values.ravel().tolist()]
    return np.array(flat, dtype=object).reshape(values.shape).tolist()


def drifted(stored, found, rtol):
    """None, or the first plotted number, series or text that is not as it was stored."""
    if len(stored) != len(found):
        return f"{len(stored)} axes were stored, {len(found)} came"
    for place, (old, new) in enumerate(zip(stored, found)):
        for kind in new:
            series = list(zip(old.get(kind, ()), new[kind]))
            if len(old.get(kind, ())) != len(new[kind]):
                return f"axes {place}: {len(old.get(kind, ()))} {kind}, {len(new[kind])} came"
            for number, (was, came) in enumerate(series):
                if message := moved(was, came, rtol):
                    return f"axes {place}, {kind} {number}: {message}"
    return None


def moved(was, came, rtol):
    """None, or how one series differs from another."""
    if isinstance(came, str):
        return None if was == came else f"{was!r} was stored, {came!r} came"
    was, came = (np.array(each, dtype=float) for each in (was, came))        # null becomes nan
    if was.shape != came.shape:
        return f"shape {was.shape} was stored, {came.shape} came"
    unit = np.nanmax(np.abs(was), initial=0.0)
    wrong = ~np.isclose(came, was, rtol=0, atol=rtol * unit, equal_nan=True)
    if not wrong.any():
        return None
    place = tuple(map(int, np.argwhere(wrong)[0]))
    return f"{was[place]:g} was stored at {list(place)}, {came[place]:g} came"
