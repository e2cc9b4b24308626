"""python -m lessons.instructors --update: the tables of the instructors' pages, made anew.

They come from the tables of exercises, lessons/*.exercises.toml, and from the known-wrong variants
in lessons/exercises/. Each stands between <!-- made: NAME --> and <!-- end -->, in lessons/guides/.
Without --update, the command says which pages are stale; exit code 1 if any is.
"""
import re
from functools import partial
from pathlib import Path

from lessons import page
from lessons.exercises.kit import exercise_of
from lessons.exercises.tables import table
from minillmclf.cli.parser import Parser, run
from minillmclf.cli.tables import markdown_table
from minillmclf.errors import InputError
from minillmclf.files import write_text

GUIDES = page.LESSONS / "guides"
PAGES = ("instructors.md", "mistakes_a.md", "mistakes_b.md", "mistakes_c.md")
ASSIGNMENTS = {"A, encoders": (0, 4), "B, decoders and label tokens": (5, 8),
               "C, tuning and evaluation": (9, 14)}            # first and last lesson
SHORT_COURSE = (3, 8, 9, 10, 14)
BLOCK = re.compile(r"^(<!-- made: (\w+) -->\n)(.*?)^(<!-- end -->)$", re.M | re.S)


def all_rows(root=page.ROOT):
    """The exercises of all lessons, in a release too."""
    paths = sorted(Path(root, "lessons").glob("[0-9][0-9]_*.exercises.toml"))
    return [row for path in paths for row in table(path, root)]


def variants_of(row):
    """The names of an exercise's known-wrong variants."""
    return list(exercise_of(row.lesson, row.cases).variants)


def counts(rows):
    """-> what each table says of some exercises: their number, points, hours and mistakes."""
    hours = sum(row.minutes for row in rows) / 60
    return [len(rows), sum(row.points for row in rows), f"{hours:.1f}",
            sum(len(variants_of(row)) for row in rows)]


def within(rows, first, last):
    return [row for row in rows if first <= int(row.lesson) <= last]


def lesson_link(path):
    """A lesson's path -> a link with its title."""
    return f"[{page.read(path).title.removeprefix('Lesson ')}](../{path.name})"


# ---------------------------------------------------------------- the tables

def semester(rows):
    """A line for each week; lesson 0 is read in week 1."""
    lines = []
    for path in page.all_lessons():
        number = int(path.stem[:2])
        due = [name[0] for name, (_, last) in ASSIGNMENTS.items() if last == number]
        out = [name[0] for name, (_, last) in ASSIGNMENTS.items() if last == number + 1]
        note = "".join([f"{each} is given" for each in out] + [f"{each} is due" for each in due])
        lines.append([number + 1, lesson_link(path), *counts(within(rows, number, number)), note])
    return markdown_table(["week", "lesson", "exercises", "points", "hours", "mistakes", ""], lines)


def assignments(rows):
    lines = [[name, f"{first} to {last}", *counts(within(rows, first, last))]
             for name, (first, last) in ASSIGNMENTS.items()]
    lines.append(["all", "0 to 14", *counts(rows)])
    return markdown_table(["assignment", "lessons", "exercises", "points", "hours", "mistakes"],
                          lines)


def short_course(rows):
    chosen, lines = [], []
    for number in SHORT_COURSE:
        paths = [path for path in page.all_lessons() if int(path.stem[:2]) == number]
        here = within(rows, number, number)
        chosen += here
        lines += [[lesson_link(path), *counts(here)] for path in paths]
    return markdown_table(["lesson", "exercises", "points", "hours", "mistakes"],
                          [*lines, ["all", *counts(chosen)]])


def mistakes(rows, first, last):
    """For each lesson a table: its exercises, and what each recognises."""
    lines = []
    for path in page.all_lessons():
        here = [row for row in within(rows, first, last) if row.page == path.name]
        if here:
            lines += [f"## {page.read(path).title}", "", f"[{path.name}](../{path.name})", ""]
            lines += markdown_table(["", "exercise", "points", "minutes", "it recognises"], [
                [row.id, f"{row.title}: `{row.name}`", row.points, row.minutes,
                 "; ".join(variants_of(row))] for row in here])
            lines.append("")
    return lines[:-1]


MAKERS = {"semester": semester, "assignments": assignments, "short_course": short_course}
for _name, _lessons in ASSIGNMENTS.items():
    MAKERS[f"mistakes_{_name[0].lower()}"] = partial(mistakes, first=_lessons[0], last=_lessons[1])


def made_again(text, rows, where="page.md"):
    """A page -> the page with all its tables made anew."""
    def block(found):
        if found[2] not in MAKERS:
            raise InputError(f"{where}: there is no table {found[2]}: known are "
                             f"{', '.join(MAKERS)}")
        return found[1] + "\n".join(MAKERS[found[2]](rows)) + "\n" + found[4]
    if len(BLOCK.findall(text)) != text.count("<!-- made:"):
        raise InputError(f"{where}: a <!-- made: NAME --> has no line <!-- end --> below it")
    return BLOCK.sub(block, text)


def stale(folder=GUIDES, update=False):
    """-> the names of the pages whose tables differ from what they are made of."""
    rows, found = all_rows(), []
    for name in PAGES:
        path = Path(folder, name)
        text = path.read_text(encoding="utf-8")
        new = made_again(text, rows, path)
        if new != text:
            found.append(name)
            if update:
                write_text(path, new)
    return found


def main(arguments=None):
    p = Parser(prog="python -m lessons.instructors", description=__doc__)
    p.add_argument("--update", action="store_true", help="write the tables into the pages")
    a = p.parse_args(arguments)
    found = stale(update=a.update)
    words = "made anew" if a.update else "stale: python -m lessons.instructors --update"
    print("\n".join(f"lessons/guides/{name}: {words}" for name in found)
          or "all tables are as they should be")
    return int(bool(found) and not a.update)


if __name__ == "__main__":
    run(main)
