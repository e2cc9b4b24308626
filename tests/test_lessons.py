"""The cells of the lessons run in order, and print exactly what stands below them."""
import contextlib
import io
import re
import time
from code import InteractiveConsole
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.md"))
MAP = ROOT / "lessons" / "00_map.md"
CELL = re.compile(r"^```python\n(.*?)^```\n(?:\n*```text\n(.*?)^```$)?", re.S | re.M)
PLANTED = """
```python
x = 0.25
print(x, "and", 3)
print(x + 1)
```
```text
0.25 and 3
1.25
```
"""


def cells_of(text):
    """A page -> its python cells: [(line of the first line of code, code, output below it), ...].

    The output is None where no text block follows.
    """
    return [(text.count("\n", 0, found.start(1)) + 1, found[1], found[2])
            for found in CELL.finditer(text)]


def run_cells(text, name="page.md"):
    """Runs the cells of a page in one namespace -> what each printed, in their order.

    A traceback names the page and the line in it.
    """
    namespace, printed = {"__name__": "__main__"}, []
    for line, code, _ in cells_of(text):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
        printed.append(out.getvalue())
    return printed


def differences(text, printed):
    """Where a page shows another output than what its cells printed -> [(line, shown, printed)]."""
    shown = cells_of(text)
    assert len(shown) == len(printed)
    return [(line, output, out) for (line, _, output), out in zip(shown, printed) if output != out]


@pytest.fixture(scope="module", params=LESSONS, ids=lambda path: path.stem)
def lesson(request, tmp_path_factory):
    """A lesson's path, its text, what its cells printed, and the seconds of CPU that they took."""
    text = request.param.read_text(encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.process_time()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("lesson"))
            printed = run_cells(text, request.param)
            left = list(Path().iterdir())
    finally:
        torch.set_num_threads(threads)
    assert left == [], f"{request.param.name} leaves files behind"
    return request.param, text, printed, time.process_time() - begin


def test_each_cell_prints_what_stands_below_it(lesson):
    _, text, printed, seconds = lesson
    assert text.count("```python") == len(printed) >= 10
    assert differences(text, printed) == []
    assert seconds < 20


def test_each_wrong_digit_is_noticed(lesson):
    _, text, printed, _ = lesson
    wrong = 0
    for found in CELL.finditer(text):
        for digit in re.finditer(r"\d", found[2]):
            place = found.start(2) + digit.start()
            changed = text[:place] + str((int(digit[0]) + 1) % 10) + text[place + 1:]
            assert len(differences(changed, printed)) == 1
            wrong += 1
    assert wrong > 100


@pytest.mark.parametrize("old, new", [
    ("1.25\n", "1.26\n"), ("1.25\n", ""), ("1.25\n", "1.25\n\n"), ("1.25\n", "1.25 \n"),
    ("and 3", "and  3"), ("```text\n0.25 and 3\n1.25\n```\n", ""), ("print(x + 1)", "print(x + 2)"),
    ("print(x + 1)\n", "")])
def test_a_page_with_a_fault_is_noticed(old, new):
    assert differences(PLANTED, run_cells(PLANTED)) == []
    text = PLANTED.replace(old, new)
    assert text != PLANTED and len(differences(text, run_cells(text))) == 1


class Prompt(InteractiveConsole):
    """Python's prompt, which compiles what is pasted and runs nothing."""

    def runcode(self, compiled):
        pass

    def showsyntaxerror(self, *given, **more):
        raise SyntaxError


def paste(cell):
    prompt = Prompt()
    for line in [*cell.splitlines(), ""]:
        waiting = prompt.push(line)
    assert not waiting


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_cells_can_be_pasted_at_the_prompt(path):
    for _, cell, _ in cells_of(path.read_text(encoding="utf-8")):
        paste(cell)
    with pytest.raises(SyntaxError):                                 # no blank line after a block
        paste("for x in (1, 2):\n    print(x)\nprint(3)\n")


def test_an_error_names_the_line_of_the_page():
    with pytest.raises(ZeroDivisionError) as caught:
        run_cells(PLANTED.replace("x + 1", "x / 0"))
    last = caught.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 5)


def test_cells_share_one_namespace_in_their_order():
    text = PLANTED + PLANTED.replace("x = 0.25\n", "x += 1\n")
    assert run_cells(text) == ["0.25 and 3\n1.25\n", "1.25 and 3\n2.25\n"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_length_width_and_the_line_to_remember(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert 260 <= len(lines) <= 340
    assert [line for line in lines if len(line) > 100] == []
    sections = re.split(r"^## ", text, flags=re.M)[1:-1]             # the last are the exercises
    assert all(section.count("**Remember:**") == 1 for section in sections)
    assert 3 <= text.count("<details>") == text.count("</details>") <= 4


def test_the_map_quotes_the_readme_and_the_measurements():
    text = MAP.read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.*?)` \|", text.partition("## 12.")[2], re.M)
    assert len(quoted) >= 10 and not [each for each in quoted if each not in readme]
    setup = re.search(r"^```sh setup\n(.*?)^```", readme, re.S | re.M)[1]
    assert f"```sh\n{setup}```" in text
    measured = (ROOT / "lessons" / "measurements" / "architectures.md").read_text(encoding="utf-8")
    numbers = re.findall(r"0\.\d{3}", text.partition("A quick chooser")[2].partition("## 11")[0])
    assert len(numbers) >= 5 and not [number for number in numbers if number not in measured]
