"""Pages, outputs, quotations and tables of exercises as they are read; each way to be wrong."""
import pytest

from lessons import kit
from lessons.outputs import difference, plain, refreshed
from lessons.page import (all_lessons, all_pages, attached, blocks, exercises, lesson_path,
                          quotation, read)
from minillmclf.errors import InputError

TABLE = '''
[[exercise]]
id = "7.1"
object = "made:twice"
title = "two times"
points = 3
minutes = 20
cases = "Twice"
hints = ["add it to itself"]
'''


def cells(text):
    return attached(text, blocks(text))


def test_cells_have_kinds_lines_and_outputs():
    text = ("# T\n```python\nx\n```\n\n```text out\n1\n```\n```mermaid\na\n```\n```sh\nls\n```\n"
            "````md\n```python\n```\n````\n```sh run\npython -m a\n```\n"
            "```python show=a.py:f\n```\n"
            "  ```python raises=E needs=real\n  y\n  ```\n")
    found = cells(text)
    assert [(each.kind, each.line, each.text) for each in found] == [
        ("python", 3, "x\n"), ("", 10, "a\n"), ("", 13, "ls\n"), ("", 16, "```python\n```\n"),
        ("sh", 20, "python -m a\n"), ("show", 23, ""), ("python", 25, "y\n")]
    assert found[0].output.text == "1\n" and found[0].output.line == 7
    assert found[-1].options == {"raises": "E", "needs": "real"}


@pytest.mark.parametrize("text, words", [
    ("```python\nx\n", "page.md:1: this block is never closed"),
    ("\n```python rises=E\n```\n", "page.md:2: unknown option rises="),
    ("```text out\n```\n", "page.md:1: no cell stands directly above"),
    ("```python\n```\ntext\n```text out\n```\n", "page.md:4: no cell stands directly above"),
    ("```mermaid\n```\n```text out\n```\n", "page.md:3: no cell stands directly above")])
def test_a_wrong_fence_is_named_with_its_line(text, words):
    with pytest.raises(InputError, match=words):
        cells(text)


def test_lessons_are_found_by_number_name_and_path(made_up):
    lesson = made_up()
    for name in (7, "7", "07", "07_made_up", lesson.path):
        assert lesson_path(name, lesson.folder) == lesson.path
    assert read(7, lesson.folder).title == "Lesson 7: made up"
    for name in ("8", "07_made", "none.md"):
        with pytest.raises(InputError, match="there are 07_made_up"):
            lesson_path(name, lesson.folder)


def test_a_page_beside_the_lessons_comes_after_them(made_up):
    lesson = made_up()
    beside, folder = lesson.folder / "made_up.md", lesson.folder
    for path in (beside, folder / "README.md"):
        path.write_text("# Beside\n", encoding="utf-8")
    assert all_pages(folder) == [lesson.path, beside] and all_lessons(folder) == [lesson.path]
    assert lesson_path("made_up", folder) == beside and lesson_path("7", folder) == lesson.path
    assert exercises("made_up", folder) == []
    with pytest.raises(InputError, match="there are 07_made_up, made_up"):
        lesson_path("README", folder)


@pytest.mark.parametrize("given, first, last", [
    (["made.py:twice"], "def twice(x):", "    return 2 * x"),
    (["made.py:RATE"], "RATE = 0.5", "RATE = 0.5"),
    (["made.py:Counter.count"], "@property", "    return 3"),
    (["made.py", "RATE..twice"], "RATE = 0.5", "    return 2 * x")])
def test_what_is_quoted(made_up, given, first, last):
    lines = quotation(*given, root=made_up().folder).splitlines()
    assert (lines[0], lines[-1]) == (first, last)


@pytest.mark.parametrize("given, words", [
    (["none.py:x"], "no file none.py"), (["made.py:thrice"], "does not define thrice"),
    (["made.py"], "give one of"), (["made.py:RATE", "RATE..twice"], "give one of"),
    (["made.py:Counter.none"], "does not define Counter.none"),
    (["made.py", "twice..RATE"], "RATE stands before twice")])
def test_what_cannot_be_quoted(made_up, given, words):
    with pytest.raises(InputError, match=words):
        quotation(*given, root=made_up().folder)


@pytest.mark.parametrize("expected, came, same", [
    ("a 0.5~0.1 b\n", "a 0.45 b\n", True), ("a 0.5~0.1 b\n", "a 0.6 b\n", True),
    ("a 0.5~0.1 b\n", "a 0.61 b\n", False), ("a 0.5~0.1 b\n", "a 0.5\n", False),
    ("x   0.01~0.1 |\n", "x  -0.01 |\n", True), ("12.5~1%\n", "13.1%\n", True),
    ("1,384~10\n", "1,390\n", True), ("2.4e-07~1e-5\n", "-3e-06\n", True),
    ("1~0.5\n", "nan\n", False), ("nan~1\n", "nan\n", False), ("inf~1\n", "inf\n", True),
    ("1 2\n", "1  2\n", False), ("a\n", "a", True), ("", "a\n", False), ("a\n", "", False),
    ("layer3 1.2.3\n", "layer3 1.2.3\n", True), ("layer3\n", "layer4\n", False)])
def test_outputs_are_compared_as_text_and_numbers_within_their_tolerance(expected, came, same):
    assert (difference(expected, came) is None) == same
    kept = refreshed(expected, came)
    if same:
        assert kept == expected
    elif "nan" not in expected + came:
        assert difference(kept, came) is None


def test_refreshed_outputs_keep_tolerances_where_lines_come_and_go():
    old = "epoch 1 0.5~0.1\nepoch 2 0.4~0.2\nlast\n"
    assert refreshed(old, "new\nepoch 1 0.9\nepoch 2 0.5\nlast\n") == (
        "new\nepoch 1 0.9~0.1\nepoch 2 0.4~0.2\nlast\n")
    assert plain(old) == "epoch 1 0.5\nepoch 2 0.4\nlast\n"


def test_parity_says_whether_and_by_how_much(capsys):
    kit.parity("a", [1.0], [1.0 + 1e-7])
    kit.parity("b", [1.0], [1.1])
    kit.parity("c", [1.0], [[1.0]])
    kit.parity("d", [float("nan")], [float("nan")])
    lines = capsys.readouterr().out.splitlines()
    assert ["DIFFERENT" in line for line in lines] == [False, True, True, True]
    assert lines[0] == "a                largest difference 1.0e-07, equal within 1e-05"


def test_a_figure_outside_the_runner_is_written_where_you_are(tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure
    monkeypatch.chdir(tmp_path)
    kit.fig("07_x", Figure().subplots())
    assert capsys.readouterr().out == "written: 07_x.svg\n" and (tmp_path / "07_x.svg").exists()


def test_what_a_figure_shows_is_stored():
    from matplotlib.figure import Figure
    figure = Figure()
    axes = figure.subplots()
    axes.scatter([1, 2], [3, 4], c=[0.1, 0.2])
    axes.fill_between([0, 1], [0, 0], [1, 2])
    axes.pcolormesh([[1.0, float("nan")]])
    found, = kit.plotted(figure)
    assert found["points"][0] == [[1.0, 3.0], [2.0, 4.0]] and found["values"][0] == [0.1, 0.2]
    assert [1.0, 2.0] in found["areas"][0] and found["values"][1] == [[1.0, None]]
    assert kit.drifted([found], [found], 0) is None


def test_a_long_x_axis_does_not_hide_what_y_does():
    stored, came = ([{"lines": [[[0.0, y], [100.0, 2 * y]]]}] for y in (1.0, 1.1))
    assert "axes 0, lines 0: 1 was stored" in kit.drifted(stored, came, 0.04)
    assert kit.drifted(stored, came, 0.11) is None
    bars = [{"bars": [[0.0, 0.0, 50.0, height]]} for height in (1.0, 2.0)]
    assert kit.drifted(bars[:1], bars[1:], 0.05) is not None


@pytest.fixture
def table(made_up):
    lesson = made_up()

    def read_table(text):
        (lesson.folder / "07_made_up.exercises.toml").write_text(text, encoding="utf-8")
        return exercises(7, lesson.folder, lesson.folder)
    return read_table


def test_exercises_are_read(table, made_up):
    found, = table(TABLE)
    assert (found.id, found.name, found.points, found.hints) == (
        "7.1", "twice", 3, ["add it to itself"])
    assert found.file(made_up().folder) == made_up().code
    assert table(TABLE.replace("made:twice", "made:Counter.count"))[0].name == "Counter.count"


def test_a_lesson_without_a_table_has_no_exercises(made_up):
    assert exercises(7, made_up().folder) == []


@pytest.mark.parametrize("old, new, words", [
    ("[[exercise]]", "[[exercise]", "not TOML"), ("[[exercise]]", "[[task]]", "expected"),
    ('"7.1"', '"8.1"', "the id should be 7.1"), ('"7.1"', "7.1", "id = 7.1 should be a str"),
    ("points = 3", "points = 0", "points = 0 should"), ("points", "pints", "key"),
    ("points = 3", "points = true", "points = True should"),
    ("minutes = 20\n", "", "missing key minutes"), ("made:twice", "none:twice", "no such module"),
    ("made:twice", "made:thrice", "does not define thrice"), ("made:twice", "made:RATE", "no func"),
    ('["add it to itself"]', "[]", "hints"), ('["add it to itself"]', "[1]", "hints"),
    (TABLE, TABLE + TABLE, "two exercises have the same id")])
def test_a_wrong_table_is_one_line_that_names_file_and_exercise(table, old, new, words):
    assert old in TABLE
    with pytest.raises(InputError, match=words) as caught:
        table(TABLE.replace(old, new, 1))
    assert "07_made_up.exercises.toml" in str(caught.value) or "made:" in str(caught.value)
    assert "\n" not in str(caught.value)
