"""What all pictures share: a matplotlib Figure in one style, and its file.

A figure's label is its alternative text, the picture in words: `figure.get_label()`. `save_figure`
writes it into the file. Figures have a light background, so they can be read on a dark page too;
no text is smaller than 9 points. Series differ in colour, marker and dashes, and the colours differ
for red-green blind readers too. pyplot and the user's matplotlib settings are left unchanged.
"""
import io
import unicodedata
import warnings
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..files import replacing_file

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
FORMATS = {     # suffix -> the keys that a file of this kind has for alternative text and for date
    ".svg": ("Description", "Date"), ".png": ("Description", None),
    ".pdf": ("Subject", "CreationDate")}


def load_matplotlib():
    """Import matplotlib, with the parts that the pictures need, when one is drawn -> the module."""
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
