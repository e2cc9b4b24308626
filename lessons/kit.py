"""What a lesson's cells are given: parity(...) compares two tensors, fig(...) keeps a figure. For a
page's widgets, keep(...) keeps their numbers.

The runner puts parity and fig into each lesson's namespace. At Python's prompt and in a notebook:

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
    """Where a lesson's figures and its widgets' numbers lie, which it has kept, and what is wrong
    with them."""

    def __init__(self, folder, update=False):
        self.folder, self.update, self.faults = Path(folder), update, []
        self.drawn, self.kept = [], []                # names of figures, and of widgets

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


    def keep(self, name, values, rtol):
        stored = self.folder / f"{name}.json"
        if name in [*self.drawn, *self.kept]:
            self.faults.append(f"{name} is the name of two figures or widgets")
        self.kept.append(name)
        old = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else None
        drift = "run with --update" if old is None else shifted(old, values, rtol)
        if drift and self.update:
            self.folder.mkdir(exist_ok=True)
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(values[key])}" for key in values)
            stored.write_text(f"{{{lines}}}\n", encoding="utf-8")
        elif drift:
            what = "are not there" if old is None else "have drifted"
            self.faults.append(f"the numbers of widget {name} {what}: {drift}")


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
    largest x, or y, of its series. Outside the runner the figure is shown, or written in the
    working folder.
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


COLUMNS = ("lines", "bars", "points", "areas")         # rows of (x, y), of (x, y, width, height)


def drifted(stored, found, rtol):
    """None, or the first plotted number, series or text that is not as it was stored."""
    if len(stored) != len(found):
        return f"{len(stored)} axes were stored, {len(found)} came"
    for place, (old, new) in enumerate(zip(stored, found)):
        for kind in new:
            series = list(zip(old.get(kind, ()), new[kind]))
            if len(old.get(kind, ())) != len(new[kind]):
                return f"axes {place}: {len(old.get(kind, ()))} {kind}, {len(new[kind])} came"
            if kind == "bars" and series:                  # a row each, of one series
                series = [tuple(map(list, zip(*series)))]
            for number, (was, came) in enumerate(series):
                if message := moved(was, came, rtol, by_column=kind in COLUMNS):
                    return f"axes {place}, {kind} {number}: {message}"
    return None


def moved(was, came, rtol, by_column=False):
    """None, or how one series differs from another. A number may move by rtol times the largest of
    the series; by_column: of its own column, so that a long x axis does not hide what y does."""
    if isinstance(came, str):
        return None if was == came else f"{was!r} was stored, {came!r} came"
    was, came = (np.array(each, dtype=float) for each in (was, came))        # null becomes nan
    if was.shape != came.shape:
        return f"shape {was.shape} was stored, {came.shape} came"
    unit = np.nanmax(np.abs(was), axis=0 if by_column and was.ndim > 1 else None, initial=0.0)
    wrong = ~np.isclose(came, was, rtol=0, atol=rtol * unit, equal_nan=True)
    if not wrong.any():
        return None
    place = tuple(map(int, np.argwhere(wrong)[0]))
    return f"{was[place]:g} was stored at {list(place)}, {came[place]:g} came"


# ---------------------------------------------------------------- the numbers of widgets

def keep(name, rtol=1e-3, **values):
    """Keeps what a widget of the web page shows, texts and numbers, as lessons/figures/NAME.json.

    The tests compare: whole numbers and texts must be equal, another number may move by rtol times
    the largest of its array. The runner calls this for a page's `<!-- widget ... -->`.
    """
    RECORDER.keep(name, {key: as_json(value, rtol) for key, value in values.items()}, rtol)


def as_json(value, rtol):
    """Texts, numbers, tensors and lists of them -> JSON, without digits that rtol does not see."""
    if isinstance(value, str):
        return value
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except ValueError:                                              # rows of different lengths
        return [as_json(each, rtol) for each in value]
    if array.dtype.kind not in "iufb":
        return [as_json(each, rtol) for each in value]
    if array.dtype.kind != "f":
        return array.astype(int).tolist()
    unit = np.abs(array).max(initial=0.0)
    digits = max(0, math.ceil(-math.log10(min(rtol / 10, 1e-4) * unit))) if unit else 0
    return np.array([round(each, digits) + 0.0 for each in array.ravel().tolist()],
                    dtype=object).reshape(array.shape).tolist()


def shifted(was, came, rtol):
    """None, or the first of a widget's texts and numbers that is not as it was stored."""
    if isinstance(came, dict):
        if list(was) != list(came):
            return f"{', '.join(was)} were stored, {', '.join(came)} came"
        return next((f"{key}: {message}" for key in came
                     if (message := shifted(was[key], came[key], rtol))), None)
    try:
        numbers = [np.array(each) for each in (was, came)]
        if all(each.dtype.kind in "if" for each in numbers):
            whole = all(each.dtype.kind == "i" for each in numbers)
            return moved(was, came, 0 if whole else rtol)
    except ValueError:                                              # rows of different lengths
        pass
    if isinstance(was, str) or isinstance(came, str) or len(was) != len(came):
        return None if was == came else f"{was!r} was stored, {came!r} came"
    return next(filter(None, (shifted(*both, rtol) for both in zip(was, came))), None)
