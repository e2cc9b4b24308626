"""Do the pictures show the numbers that they are given, and can everyone read them?"""
import sys
import warnings

import numpy as np
import pytest

from minillmclf.compare import pictures as comparisons
from minillmclf.report import figures as kit, pictures
from minillmclf.errors import InputError
from minillmclf.training.metrics import calibration_error

METHODS = ("full", "head", "lora", "dora", "bitfit", "prefix", "prompt", "houlsby")
NAMES = ["majority", "bag of words", *(f"mini-bert, {method}" for method in METHODS),
         "gpt2, full", "gpt2, qlora, completion", "t5-small, full",
         "a-very-long-name-of-a-model-that-someone-has-made, full", "x", "y"]


def row(label, accuracy, size="all", **costs):
    return {"label": label, "size": size,
            "accuracy": {"mean": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02},
            **costs}


def crowd(seed=0):
    """Sixteen rows, most of them close together."""
    rng = np.random.default_rng(seed)
    return [row(name, rng.uniform(0.7, 0.9), train_seconds=10 ** rng.uniform(1, 1.7),
                trainable=0 if i < 2 else 10.0 ** i, memory_mb=800.0, ms_per_text=None)
            for i, name in enumerate(NAMES)]


def history(epochs=3):
    return [{"epoch": e, "train_loss": 2 / e, "log_loss": 1.5 / e, "accuracy": 1 - 1 / (e + 1),
             "macro_f1": 0.3} for e in range(1, epochs + 1)]


def figures():
    """One of each kind, easy and hard."""
    rng = np.random.default_rng(0)
    yield comparisons.learning_curve_figure(
        [row("a", 0.5, 10), row("a", 0.6), row("b", 0.7, 10), row("b", 0.8, 25)])
    yield comparisons.cost_figure(crowd())
    for classes in (2, 12, 13, 77):
        yield pictures.confusion_figure(rng.integers(0, 9, (classes, classes)), [
            f"MANY wide letters, as in WWWW, {i}" for i in range(classes)])
    confidence = rng.uniform(0.1, 1, 200)
    yield pictures.reliability_figure(confidence, rng.uniform(size=200) < confidence)
    yield pictures.training_figure(history())


@pytest.fixture(scope="module")
def drawn():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    return list(figures())


def words(figure):
    from matplotlib.text import Text
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def test_text_is_large_enough_and_inside_the_picture(drawn):
    for figure in drawn:
        figure.canvas.draw()
        page = figure.bbox
        unseen = {id(text) for axes in figure.axes for text in hidden_ticks(axes)}
        for word in words(figure):
            box = word.get_window_extent()
            assert word.get_fontsize() >= 9, (
                f"{word.get_text()!r} has {word.get_fontsize()} points, fewer than 9")
            inside = (box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1
                      and box.y1 <= page.y1 + 1)
            assert inside or id(word) in unseen, (
                f"{word.get_text()!r} is cut off: {box} is not within {page}")


def hidden_ticks(axes):
    """Labels of ticks beyond the ends of an axis: matplotlib keeps them, and does not draw them."""
    for axis, (low, high) in (
            (axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            if not low <= tick.get_loc() <= high:
                yield tick.label1


def test_axes_are_named_and_the_picture_is_told_in_words(drawn):
    for figure in drawn:
        alone = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
        assert all(axes.get_ylabel() for axes in alone) and alone[-1].get_xlabel(), (
            figure.get_label())
        assert len(figure.get_label()) > 40, (
            "a figure without alternative text says nothing to who cannot see it")


def test_nothing_is_left_in_matplotlib(drawn):
    import matplotlib
    before = dict(matplotlib.rcParams)
    kit.figure_bytes(pictures.training_figure(history()))
    assert dict(matplotlib.rcParams) == before, (
        "the style of the pictures leaks into the user's own")
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums(), (
            "a figure is kept alive by pyplot")


def test_learning_curve_shows_means_and_intervals(drawn):
    axes = drawn[0].axes[0]
    lines = [c for c in axes.containers]
    assert [line.get_label() for line in lines] == ["a", "b"]
    assert (lines[0][0].get_ydata() == pytest.approx([0.5, 0.6])
            and lines[1][0].get_ydata() == pytest.approx([0.7, 0.8]))
    low, high = np.array(lines[0][2][0].get_segments())[:, :, 1].T
    assert low == pytest.approx([0.48, 0.58]) and high == pytest.approx([0.52, 0.62]), (
        "the bars are not low to high")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["10", "25", "all"]
    assert axes.get_xscale() == "log" and lines[0][0].get_xdata()[1] > 40, (
        "all should stand right of the largest number")


def test_a_line_goes_from_few_rows_to_many(drawn):
    figure = comparisons.learning_curve_figure([row("a", 0.5, 25), row("a", 0.4, 5)])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["5", "25"]
    assert figure.axes[0].containers[0][0].get_ydata() == pytest.approx([0.4, 0.5]), (
        "a line goes from few rows to many")


def test_pareto_front_by_hand():
    assert (comparisons.pareto_front([(1, 0.5), (2, 0.7), (3, 0.6), (2, 0.6), (4, 0.7), (9, 0.8)])
            == {0, 1, 5})
    assert comparisons.pareto_front([(1, 0.5), (1, 0.5), (1, 0.4)]) == {0, 1}, (
        "equal points do not beat each other")


def test_the_front_is_drawn_as_steps(drawn):
    axes = comparisons.cost_figure([row("a", 0.5, memory_mb=10.0), row("b", 0.8, memory_mb=20.0),
                                 row("c", 0.6, memory_mb=30.0)], "memory_mb").axes[0]
    line = next(line for line in axes.lines if line.get_label().startswith("Pareto front"))
    assert line.get_xydata().tolist() == [[10, 0.5], [20, 0.5], [20, 0.8]], (
        "as good as a until b is reached, and no further")


def test_cost_numbers_do_not_overlap_and_name_every_row(drawn):
    from matplotlib.text import Annotation
    for seed in range(2):
        figure = comparisons.cost_figure(crowd(seed))
        boxes = [a.get_window_extent() for a in figure.axes[0].findobj(Annotation)]
        assert len(boxes) == 16
        clashes = sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert clashes == 0, f"seed {seed}: {clashes} pairs of numbers lie over each other"
        key = figure.legends[1].get_texts()[0].get_text().splitlines()
        best = [r["label"] for r in sorted(crowd(seed), key=lambda r: -r["accuracy"]["mean"])]
        assert [line.split("  ")[1] for line in key] == [kit.short_name(name) for name in best]


def test_rows_without_a_cost_are_named_not_dropped_silently(drawn):
    figure = comparisons.cost_figure(crowd(), "trainable")
    assert ("majority, bag of words" in figure.axes[0].get_xlabel()
            and "majority, bag of words" in figure.get_label())
    assert figure.axes[0].get_xscale() == "log"
    with pytest.raises(InputError, match="no row of the table has a number above 0"):
        comparisons.cost_figure(crowd(), "ms_per_text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparisons.cost_figure(crowd(), "memory_mb")                    # all the same cost
        comparisons.cost_figure([row("a", 0.5, train_seconds=0.1)])      # one, a power of ten


def test_confusion_says_counts_and_shares(drawn):
    figure = pictures.confusion_figure([[3, 1], [0, 0]], ["yes", "$no$"])
    cells = [t.get_text() for t in figure.axes[0].texts]
    assert cells == ["3\n75%", "1\n25%", "0", "0"], (
        "a class without rows has no shares, and no division by zero")
    assert figure.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["yes", "$no$"]
    kit.figure_bytes(figure, ".png")                            # "$" begins no formula
    assert ("75.0% of 4 rows right" in figure.get_label()
            and "1 x yes taken for $no$" in figure.get_label())


def test_many_classes_have_no_numbers_but_the_worst_pairs(drawn):
    matrix = np.diag([5] * 77)
    for i in range(12):
        matrix[i, i + 1] = 20 - i
    figure = pictures.confusion_figure(matrix, [f"c{i}" for i in range(77)])
    axes, beside = figure.axes[:2]
    assert not axes.texts, "numbers in 5929 cells cannot be read"
    listed = beside.texts[0].get_text()
    assert ("20 x c0\n      taken for c1" in listed and listed.count("taken for") == 10
            and "c10\n" not in listed)
    assert pictures.frequent_mistakes(matrix)[0] == (20, 0, 1)


def test_reliability_agrees_with_the_metric(drawn):
    rng = np.random.default_rng(1)
    # the edges of the bins too
    confidence = np.concatenate([rng.uniform(0, 1, 300), np.arange(16) / 15])
    right = rng.uniform(size=316) < confidence ** 2
    for bins in (15, 10):
        figure = pictures.reliability_figure(confidence, right, bins)
        above, below = figure.axes
        hits, gaps = ([bar.get_height() for bar in c] for c in above.containers)
        rows = np.array([bar.get_height() for bar in below.containers[0]])
        error = (np.abs(gaps) * rows[rows > 0]).sum() / 316
        expected = calibration_error(confidence, right, bins)
        assert error == pytest.approx(expected), (
            f"{bins} bins: the bars show {error}, the metric says {expected}")
        assert f"{expected:.3f}" in above.get_title() and rows.sum() == 316
        assert (np.array(hits) * rows[rows > 0]).sum() == pytest.approx(right.sum())


def test_training_shows_each_epoch(drawn):
    above, below = pictures.training_figure(history(4), "macro_f1").axes
    assert [line.get_ydata().tolist() for line in above.lines] == [
        [h[k] for h in history(4)] for k in ("train_loss", "log_loss")]
    assert below.lines[0].get_ydata().tolist() == [0.3] * 4 and below.get_ylabel() == "dev macro f1"
    kit.figure_bytes(pictures.training_figure(history(1)))             # one epoch is a point


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def rgb(colour):
    return [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]


def contrast(a, b):
    """WCAG 2: from 1 to 21."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_and_stay_apart_without_red_or_green_cones():
    # Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB
    blind = {"protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]],
             "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]}
    for colour in kit.COLOURS:
        assert contrast(colour, kit.PAPER) >= 3, f"{colour} is too faint on {kit.PAPER}"
    assert contrast(kit.INK, kit.PAPER) >= 7
    for name, matrix in blind.items():
        seen = [np.clip(np.dot(matrix, np.array(rgb(c)) ** 2.2), 0, 1) ** (1 / 2.2)
                for c in kit.COLOURS]
        for i, a in enumerate(seen):
            for j in range(i):
                apart = np.linalg.norm(a - seen[j])
                assert apart > 0.25, (
                    f"{name}: {kit.COLOURS[i]} and {kit.COLOURS[j]} look alike "
                    f"({apart:.2f})")
    kinds = (kit.COLOURS, kit.MARKERS, kit.DASHES)
    assert len(set(zip(*(np.resize(kind, 60) for kind in kinds)))) >= 16


@pytest.mark.parametrize("suffix, start", [
    (".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_save(drawn, tmp_path, suffix, start):
    kit.save_figure(pictures.training_figure(history()), tmp_path / f"a{suffix}")
    found = (tmp_path / f"a{suffix}").read_bytes()
    again = kit.figure_bytes(pictures.training_figure(history()), suffix)
    assert found.startswith(start) and found == again, "the same data should give the same bytes"
    assert suffix == ".pdf" or b"Training over 3 epochs" in found, (
        "the alternative text is not in the file")
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_an_unknown_suffix_writes_nothing(drawn, tmp_path):
    with pytest.raises(InputError, match=r"a.gif: unknown suffix '.gif': use .svg, .png, .pdf"):
        kit.save_figure(drawn[-1], tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_one_clear_line(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[plots\]'") as error:
        pictures.training_figure(history())
    assert "\n" not in str(error.value)


def test_of_very_many_classes_the_most_confused_are_drawn(drawn):
    matrix = np.diag([5] * 700)
    for i in range(100, 170):
        matrix[i, i + 1] = i
    figure = pictures.confusion_figure(matrix, [f"c{i}" for i in range(700)])
    axes = figure.axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [f"c{i}" for i in range(110, 170)], (
        "those with the most mistakes, in their order")
    assert axes.images[0].get_array().shape == (60, 60) and max(figure.get_size_inches()) < 25
    assert axes.images[0].get_array()[0, 1] == pytest.approx(110 / 115), (
        "a share of all rows of the class, drawn or not")
    assert (axes.get_title() == "the 60 most confused of 700"
            and "169 x c169 taken for c170" in figure.get_label())


def test_names_in_any_script_are_text_and_warn_of_nothing(drawn, recwarn):
    names = ["退款申请", "تأخير", "delivery 😀"]
    figure = pictures.confusion_figure(np.eye(3, dtype=int), names)
    source = kit.figure_bytes(figure).decode("utf-8")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    for name in names:
        assert f">{name}</text>" in source, (
            "a browser should draw the name with a font that has its letters")
