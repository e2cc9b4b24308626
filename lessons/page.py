"""A lesson's page, read: its cells with their outputs, its quotations, and its table of exercises.

Here: reading, with the standard library alone. Not here: running (run.py), figures (kit.py).

    page = read("2")                                  # or "02", or "02_heads", or a path
    for cell in page.cells: ...                       # Cell(kind, info, text, line, output)
    quotation("minillmclf/models/layers.py:attention")        # the code as it is now
    exercises("2")                                    # [Exercise(id="2.1", ...), ...]
"""
import ast
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import dedent

from minillmclf.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LESSONS = Path(__file__).resolve().parent
ROOT = LESSONS.parent
WIDGETS = LESSONS / "site" / "widgets"
OPENING = re.compile(r"^( {0,3})(`{3,})\s*([^`]*)$")
WIDGET = "<!-- widget "                # ... attention("02_attention", weights=weights) -->
OPTIONS = {"python": {"raises", "needs"}, "show": {"show", "lines"}, "sh": {"exit", "needs"}}


@dataclass
class Cell:
    """A fenced block of a page.

    kind: "python" is executed, "show" a quotation of the package, "sh" a command that is run, "out"
    an expected output, "widget" a comment with a call; "" is a block that is only shown. info: all
    that stands after the backticks.
    line: of the file, from 1, of the first line of text. output: the "out" cell below, or None.
    """
    kind: str
    info: str
    text: str
    line: int
    output: "Cell | None" = None

    @property
    def options(self):
        """{"raises": "InputError"}: the words of the info string that have a value."""
        return dict(word.split("=", 1) for word in self.info.split() if "=" in word)


@dataclass
class Page:
    path: Path
    text: str
    cells: list                                       # without "out" cells: they hang on others

    @property
    def title(self):
        return re.search(r"^# (.*)$", self.text, re.M)[1]


@dataclass
class Exercise:
    """A row of a lesson's table. object: "minillmclf.models.layers:attention_by_hand"."""
    id: str
    object: str
    title: str
    points: int
    minutes: int
    cases: str
    hints: list

    @property
    def name(self):
        """The function's qualified name: "attention_by_hand" or "Class.method"."""
        return self.object.partition(":")[2]

    def file(self, root=ROOT):
        """The file that defines the function, in a clone."""
        place = Path(root, *self.object.partition(":")[0].split("."))
        return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


# ---------------------------------------------------------------- lessons and their cells

def all_lessons(folder=LESSONS):
    """The paths of all lessons, in their order."""
    return sorted(Path(folder).glob("[0-9][0-9]_*.md"))


def all_pages(folder=LESSONS):
    """The paths of all lessons, then those of the pages beside them: names in small letters."""
    beside = [path for path in Path(folder).glob("*.md") if re.fullmatch(r"[a-z_]+", path.stem)]
    return all_lessons(folder) + sorted(beside)


def lesson_path(name, folder=LESSONS):
    """A lesson's number (3 or "03"), its name ("03_encoder"; "competition", of a page beside the
    lessons) or its path -> its path."""
    if str(name).endswith(".md"):
        if Path(name).is_file():
            return Path(name)
    else:
        number = f"{int(name):02d}" if str(name).isdecimal() else str(name)
        for path in all_pages(folder):
            if number in (path.stem, path.stem[:2]):
                return path
    known = ", ".join(path.stem for path in all_pages(folder))
    raise InputError(f"no lesson {name}: there are {known or 'none'}")


def read(name, folder=LESSONS):
    """A lesson's number, name or path -> Page."""
    path = lesson_path(name, folder)
    text = path.read_text(encoding="utf-8")
    return Page(path, text, attached(text, blocks(text, path), path))


def kind_of(info):
    """What a fence's info string makes of the block: a Cell's kind."""
    words = info.split()
    if words[:1] == ["python"]:
        return "show" if any(word.startswith("show=") for word in words) else "python"
    return {("sh", "run"): "sh", ("text", "out"): "out"}.get(tuple(words[:2]), "")


def blocks(text, path="page.md"):
    """All fenced blocks and widgets of a page, in their order, as cells without outputs."""
    found, cell, indent, fence = [], None, "", ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if cell is None:
            if opening := OPENING.match(line.rstrip("\n")):
                indent, fence, info = opening.groups()
                cell = Cell(kind_of(info), info.strip(), "", number + 1)
                continue
            if not line.startswith(WIDGET):
                continue
            cell, line = Cell("widget", "", "", number), line.removeprefix(WIDGET)
        is_widget = cell.kind == "widget"
        ends = "-->" in line if is_widget else line.strip() == fence
        if is_widget or not ends:
            cell.text += line if is_widget else line.removeprefix(indent)
        if ends:
            found.append(checked(cell, path))
            cell = None
    if cell is not None:
        line = cell.line if cell.kind == "widget" else cell.line - 1
        raise InputError(f"{path}:{line}: this block is never closed")
    return found


def checked(cell, path):
    """The cell; an option that its kind does not know is an error, and so is an unknown widget."""
    if cell.kind == "widget":
        cell.text = cell.text.partition("-->")[0]
        widget_of(cell.text, f"{path}:{cell.line}")
    unknown = set(cell.options) - OPTIONS.get(cell.kind, set())
    if cell.kind in OPTIONS and unknown:
        raise InputError(f"{path}:{cell.line - 1}: unknown option {min(unknown)}= (known are "
                         f"{', '.join(sorted(OPTIONS[cell.kind]))})")
    return cell


def widget_of(text, where):
    """'attention("02_attention", weights=w)' -> ("attention", "02_attention"): the widget, and the
    name of the file with its numbers."""
    known = sorted({path.stem for path in WIDGETS.glob("*.js")} - {"kit"})
    try:
        call = ast.parse(text.strip(), mode="eval").body
        kind, name = call.func.id, call.args[0].value
    except (SyntaxError, AttributeError, IndexError):
        kind = name = None
    if kind not in known or not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        raise InputError(f'{where}: a widget is written WIDGET("NAME", key=value), with one of '
                         f"{', '.join(known)}")
    return kind, name


def attached(text, found, path="page.md"):
    """Blocks of a page -> its cells: what only blank lines part from an output has that output."""
    lines, cells, before = text.splitlines(), [], None
    for cell in found:
        if cell.kind != "out":
            cells.append(cell)
        else:
            end = before and before.line + before.text.count("\n")       # its closing line
            if not before or before.kind not in ("python", "sh") \
                    or any(line.strip() for line in lines[end:cell.line - 2]):
                raise InputError(f"{path}:{cell.line - 1}: no cell stands directly above this "
                                 "output")
            before.output = cell
        before = cell
    return cells


# ---------------------------------------------------------------- quotations

def quotation(show, lines=None, root=ROOT):
    """What `show=FILE:NAME`, or `show=FILE lines=NAME..NAME`, quotes: the code as it is now.

    A name is a function, a class, an assigned name at the top level, or Class.method.
    """
    file, _, name = show.partition(":")
    path = Path(root, file)
    if not path.is_file():
        raise InputError(f"show={show}: there is no file {file}")
    if bool(name) == bool(lines):
        raise InputError(f"show={show}: give one of :NAME and lines=NAME..NAME")
    source = path.read_text(encoding="utf-8")
    first, _, last = (lines or name).partition("..")
    begin = span(find(source, first, file))[0]
    end = span(find(source, last or first, file))[1]
    if end < begin:
        raise InputError(f"show={show}: {last} stands before {first}")
    return dedent("".join(source.splitlines(keepends=True)[begin - 1:end]))


def find(source, name, file="the file"):
    """The syntax node that defines a name, "function", "Class", "Class.method" or "NAME"."""
    try:
        node = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"{file}, line {error.lineno}: SyntaxError: {error.msg}") from None
    for part in name.split("."):
        for each in getattr(node, "body", ()):
            targets = getattr(each, "targets", [getattr(each, "target", None)])
            if part in [getattr(each, "name", None), *(getattr(t, "id", None) for t in targets)]:
                node = each
                break
        else:
            raise InputError(f"{file} does not define {name}")
    return node


def span(node):
    """The first and last line of a definition, from 1; its decorators belong to it."""
    decorators = getattr(node, "decorator_list", ())
    return min([node.lineno, *(each.lineno for each in decorators)]), node.end_lineno


# ---------------------------------------------------------------- tables of exercises

def exercises(name, folder=LESSONS, root=ROOT):
    """A lesson's number, name or path -> its exercises; [] if it has no table."""
    lesson = lesson_path(name, folder)
    path = lesson.with_name(f"{lesson.stem}.exercises.toml")
    if not path.exists():
        return []
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path.name}: not TOML: {error}") from None
    if list(table) != ["exercise"] or not isinstance(table["exercise"], list):
        raise InputError(f"{path.name}: expected [[exercise]] tables and nothing else")
    found = [exercise_of(row, f"{path.name}, exercise {number}")
             for number, row in enumerate(table["exercise"], 1)]
    for each in found:
        check(each, lesson, f"{path.name}, exercise {each.id}", root)
    if len({each.id for each in found}) < len(found):
        raise InputError(f"{path.name}: two exercises have the same id")
    return found


def exercise_of(row, where):
    """A row of the table -> Exercise; names, types and signs are checked."""
    types = {field.name: field.type for field in fields(Exercise)}
    wrong = set(row) ^ set(types)
    if wrong:
        raise InputError(f"{where}: {'missing' if min(wrong) in types else 'unknown'} key "
                         f"{min(wrong)}")
    for key, value in row.items():
        if type(value) is not types[key] or value in ("", []) or types[key] is int and value < 1:
            raise InputError(f"{where}: {key} = {value!r} should be a {types[key].__name__}, "
                             "not empty and not below 1")
    if not all(isinstance(hint, str) and hint for hint in row["hints"]):
        raise InputError(f"{where}: hints should be texts")
    return Exercise(**row)


def check(exercise, lesson, where, root=ROOT):
    """The id has the lesson's number, and the object is defined where it says. root: a clone; None:
    the id alone is checked, as in a release the functions are the student's."""
    if not re.fullmatch(rf"{int(lesson.stem[:2])}\.[1-9]\d*", exercise.id):
        raise InputError(f"{where}: the id should be {int(lesson.stem[:2])}.1 or so")
    if root is None:
        return
    file = exercise.file(root)
    if not file.is_file():
        raise InputError(f"{where}: {exercise.object}: there is no such module")
    found = find(file.read_text(encoding="utf-8"), exercise.name, exercise.object)
    if not isinstance(found, ast.FunctionDef):
        raise InputError(f"{where}: {exercise.object} is no function")
