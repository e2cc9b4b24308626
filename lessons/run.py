"""python -m lessons.run: runs a lesson, shows it, and says where the page is not true any more.

  python -m lessons.run 3              run lesson 3: each cell, what it printed, what differs
  python -m lessons.run                all lessons, and the pages beside them
  python -m lessons.run 3 --update     also write outputs, quotations, figures and widgets'
                                       numbers into the page; then look over what `git diff` shows

The cells of a lesson run in their order, in one namespace, in a temporary folder, with seed 0 and
without network. Exit code 1: a cell, a quotation or a figure is not as the page says.
"""
import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from minillmclf.cli.parser import Parser, run

from . import kit, offline, outputs
from .page import LESSONS, ROOT, Page, all_pages, read


@dataclass
class Fault:
    """Where a page is not true: its line, in a few words what is wrong, and the details."""
    path: Path
    line: int
    what: str
    details: str = ""

    def __str__(self):
        place = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        details = "".join(f"\n    {line}" for line in self.details.splitlines())
        return f"{place}:{self.line}: {self.what}{details}"


@dataclass
class Lesson:
    """A lesson that was run. printed: line of a cell -> what it printed; skipped: -> why."""
    page: Page
    printed: dict = field(default_factory=dict)
    skipped: dict = field(default_factory=dict)
    faults: list = field(default_factory=list)
    left: list = field(default_factory=list)             # files in the temporary folder at the end
    seconds: float = 0.0                                 # of processor time, with that of commands


def run_lesson(name, folder=LESSONS, root=ROOT, update=False, tell=lambda text: None):
    """Runs a lesson (its number, name or path) -> Lesson; tell(text) is called with what to show.

    root: the clone that is quoted. update: write what came into the page.
    """
    from .cells import Cells, surroundings                       # they need torch, --help does not
    lesson, begin = Lesson(read(name, folder)), processor_time()
    path, edits = lesson.page.path.resolve(), []
    with surroundings() as temporary, kit.recording(path.parent / "figures", update) as figures:
        cells = Cells(path, root, offline.environment(temporary / "site", root))
        for cell in lesson.page.cells:
            if cell.kind:
                came, problem = cells.run(cell)
                problem = problem or settle(cell, came, lesson, edits if update else None)
                lesson.faults += [Fault(path, cell.line, *problem)] if problem else []
                lesson.faults += [Fault(path, cell.line, what) for what in figures.faults]
                figures.faults.clear()
                tell(shown(cell, came, cells))
        lesson.skipped = cells.skipped
        lesson.left = [each.name for each in (temporary / "work").iterdir()]
    if not lesson.skipped:
        lesson.faults += unseen(lesson.page, figures.drawn)
    if edits:
        path.write_text(edited(lesson.page.text, edits), encoding="utf-8")
    lesson.seconds = processor_time() - begin
    return lesson


def processor_time():
    """Seconds of processor time, of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def settle(cell, came, lesson, edits):
    """What a cell gave is compared with the page -> None, or (what is wrong, details).

    edits: None, or a list to which what should be changed in the page is added.
    """
    if came is None:
        return None
    lesson.printed[cell.line] = came
    expected = cell.text if cell.kind == "show" else cell.output.text if cell.output else ""
    if cell.kind == "show":
        lines = list(difflib.ndiff(expected.splitlines(), came.splitlines()))
        details = None if expected == came else "\n".join(s for s in lines if s[0] in "+-")
        what = f"stale quotation of {cell.options['show']}"
    else:
        details, what = outputs.difference(expected, came), "drifted output"
    if details is None:
        return None
    if edits is None:
        return what, details
    edits.append((cell, came))
    return None


def shown(cell, came, cells):
    """A cell as `python -m lessons.run` shows it."""
    if cell.kind == "show":
        return f"{cell.line:>4}  {cell.info}\n"
    code = "".join(f"{number:>4}  {line}\n"
                   for number, line in enumerate(cell.text.splitlines(), cell.line))
    below = f"(skipped: {cells.skipped[cell.line]})" if cell.line in cells.skipped else came or ""
    return code + "".join(f"    | {line}\n" for line in below.splitlines())


def unseen(page, drawn):
    """Figures that are drawn and not on the page, or on the page and drawn by no cell."""
    links = {found[1]: page.text.count("\n", 0, found.start()) + 1
             for found in re.finditer(r"\]\(figures/([\w-]+)\.svg\)", page.text)}
    wrong = [Fault(page.path, line, f"figure {name} is drawn by no cell")
             for name, line in links.items() if name not in drawn]
    return wrong + [Fault(page.path, 1, f"figure {name} is drawn, but the page does not show it: "
                                        f"![what is seen](figures/{name}.svg)")
                    for name in drawn if name not in links]


def edited(text, edits):
    """A page with new outputs and quotations: edits is [(cell, what came), ...]."""
    lines = text.splitlines(keepends=True)
    for cell, came in reversed(edits):
        block = cell if cell.kind == "show" else cell.output
        end = cell.line + cell.text.count("\n")                    # closing line of the cell
        if block is None:
            lines[end:end] = ["```text out\n", came, "```\n"]
        else:
            old, first = block.text, block.line - 1
            lines[first:first + old.count("\n")] = [
                came if cell.kind == "show" else outputs.refreshed(old, came)]
    return "".join(lines)


# ---------------------------------------------------------------- the command

def parse(arguments=None):
    p = Parser(prog="python -m lessons.run", description=__doc__)
    p.add_argument("lesson", nargs="*", help="numbers, names or paths [all]")
    p.add_argument("--update", action="store_true",
                   help="write outputs, quotations and figures into the page")
    return p.parse_args(arguments)


def main(arguments=None):
    given, faults = parse(arguments), []
    for name in given.lesson or all_pages():
        print(f"---- {read(name).title}\n")
        lesson = run_lesson(name, update=given.update, tell=print)
        for fault in lesson.faults:
            print(f"{fault}\n")
        print(f"{lesson.page.path.name}: {len(lesson.printed)} cells and quotations, "
              f"{len(lesson.skipped)} skipped, {len(lesson.faults)} faults, "
              f"{lesson.seconds:.1f} s of the processor")
        faults += lesson.faults
    return 1 if faults else 0


if __name__ == "__main__":
    run(main)
