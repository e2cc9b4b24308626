"""Every lesson: cells print what stands below them, quotations and figures are up to date."""
import ast
import re
from code import InteractiveConsole

import pytest

from lessons.outputs import NUMBER, difference
from lessons.page import LESSONS, ROOT, all_lessons, all_pages, exercises, read
from lessons.run import run_lesson
from minillmclf.errors import InputError

each_lesson = pytest.mark.parametrize("path", all_lessons(), ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", all_pages(), ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def ran():
    """ran(path) -> the lesson after it was run, once for all tests."""
    known = {}
    return lambda path: known.setdefault(path, None) or known.update({path: run_lesson(path)}) \
        or known[path]


@each_page
def test_all_that_a_lesson_shows_is_true(path, ran):
    lesson = ran(path)
    assert lesson.faults == [], "\n".join(map(str, lesson.faults))
    assert len(lesson.printed) + len(lesson.skipped) >= 5
    for line, reason in lesson.skipped.items():
        print(f"{path.name}:{line}: skipped: {reason}")


@each_page
def test_each_wrong_digit_is_noticed(path, ran):
    lesson, wrong = ran(path), 0
    for cell in lesson.page.cells:
        if cell.output and cell.line in lesson.printed:
            text, came = cell.output.text, lesson.printed[cell.line]
            free = [found.span() for found in NUMBER.finditer(text) if found[2]]
            for digit in re.finditer(r"\d", text):
                if not any(first <= digit.start() < last for first, last in free):
                    other = str((int(digit[0]) + 1) % 10)
                    changed = text[:digit.start()] + other + text[digit.end():]
                    assert difference(changed, came), changed
                    wrong += 1
    assert wrong > 20, "\n".join(map(str, lesson.faults))


@each_lesson
def test_answers_to_questions_stand_in_the_output(path):
    cells, found = read(path).cells, 0
    for at, cell in enumerate(cells):
        if cell.info.startswith("predict"):
            answer, tolerance = (float(cell.options[key]) for key in ("answer", "tolerance"))
            below = next(each for each in cells[at:] if each.output)
            numbers = [float(number.replace(",", "")) for number, _ in
                       NUMBER.findall(below.output.text)]
            assert any(abs(n - answer) <= tolerance / 2 for n in numbers), cell.text
            found += 1
    assert found >= 2


@each_lesson
def test_exercises_are_well_formed_and_on_the_page(path):
    try:
        table = exercises(path)
    except InputError as error:
        pytest.fail(str(error))
    text = path.read_text(encoding="utf-8")
    assert [each.id for each in table if each.id not in text] == []


@each_lesson
def test_length_width_and_the_line_to_remember(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    cells = read(path).cells
    quoted = sum(cell.text.count("\n") for cell in cells if cell.kind == "show")
    unseen = sum(cell.text.count("\n") + 1 for cell in cells if cell.kind == "widget")
    assert 260 <= len(lines) - quoted - unseen <= 340       # quotations grow with the package
    assert [line for line in lines if len(line) > 100] == []
    sections = re.split(r"^## (?=\d)", text, flags=re.M)[1:]
    sections = [section.partition("\n## ")[0] for section in sections]
    assert sections and all(section.count("**Remember:**") == 1 for section in sections)
    assert text.count("<details>") == text.count("</details>")


# ---------------------------------------------------------------- at Python's prompt

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


@each_page
def test_cells_can_be_pasted_at_the_prompt(path):
    for cell in read(path).cells:
        if cell.kind == "python":
            paste(cell.text)
    with pytest.raises(SyntaxError):                                 # no blank line after a block
        paste("for x in (1, 2):\n    print(x)\nprint(3)\n")


# ---------------------------------------------------------------- the map

def test_the_map_leaves_nothing_behind(ran):
    assert ran(all_lessons()[0]).left == []


def test_the_map_quotes_the_readme_and_the_measurements():
    text = (LESSONS / "00_map.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.*?)` \|", text.partition("## 12.")[2], re.M)
    assert len(quoted) >= 10 and not [each for each in quoted if each not in readme]
    setup = re.search(r"^```sh setup\n(.*?)^```", readme, re.S | re.M)[1]
    if (ROOT / "release.json").exists():             # there the first command grades
        setup = setup.replace("minillmclf.grade", "minillmclf.train")
    assert f"```sh\n{setup}```" in text
    measured = (LESSONS / "measurements" / "architectures.md").read_text(encoding="utf-8")
    numbers = re.findall(r"0\.\d{3}", text.partition("## 10.")[2].partition("## 11")[0])
    assert len(numbers) >= 5 and not [number for number in numbers if number not in measured]


# ---------------------------------------------------------------- the house

@pytest.mark.parametrize("path", sorted(LESSONS.rglob("*.py")), ids=lambda path: path.name)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 45, node.name
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([each for each in given if each.arg not in ("self", "cls")]) <= 7, node.name
