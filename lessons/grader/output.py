"""The results as lines, as JSON, as JUnit's XML, and in a record of what was reached so far."""
import textwrap
from xml.etree import ElementTree

from lessons.grader.result import NOT_STARTED, PASSED, REFUSED, WAITS
from minillmclf.errors import InputError
from minillmclf.files import read_json, write_json, write_text

WIDTH = 100
INDENT = " " * 5
RECORD = "runs/grade.json"


def lines_of(result, hints=0, wide=0):
    """A result -> its lines: points, then what is wrong, what it looks like, and a hint.

    hints: how many there are; wide: characters of the longest title.
    """
    head = f"{result.id:<5}{result.title:<{wide}} {f'{result.points}/{result.of}':>5}"
    if result.state == PASSED:
        return [head]
    if result.state == NOT_STARTED:
        return [f"{head}   not started: {result.message.partition(': ')[2]}"]
    told = [f"refused: {result.message}" if result.state == REFUSED else result.message]
    if result.looks_like:
        told.append(f'looks like "{result.looks_like}"')
    if hints and not result.message.startswith(WAITS):
        told.append(f"hint {result.hint or 1} of {hints}: python -m minillmclf.grade {result.id} "
                    f"--hint {result.hint or 1}")
    return [head, *(INDENT + line for text in told for line in
                    textwrap.wrap(text, WIDTH - len(INDENT), subsequent_indent="  "))]


def page(results, rows, book=None):
    """All results -> the text that is printed. book: (points so far, points of all exercises)."""
    hints = {row.id: len(row.hints) for row in rows}
    lesson_of = {row.id: int(row.lesson) for row in rows}
    lines, last = [], []
    wide = max((len(result.title) for result in results), default=0)
    for result in results:
        lines += lines_of(result, hints[result.id], wide)
    for lesson in dict.fromkeys(lesson_of[result.id] for result in results):
        own = [each for each in results if lesson_of[each.id] == lesson]
        last.append(f"lesson {lesson}: {total(own)}")
    if book:
        last.append(f"course so far: {book[0]}/{book[1]}")
    following = [each.id for each in results if each.state != PASSED]
    if following:
        last.append(f"next: {following[0]}")
    return "\n".join([*lines, "    ".join(last)])


def total(results):
    return f"{sum(each.points for each in results)}/{sum(each.of for each in results)}"


def as_json(results, **more):
    return {"points": sum(each.points for each in results), "of": sum(each.of for each in results),
            **more, "exercises": [vars(each) for each in results]}


def as_junit(results):
    suite = ElementTree.Element("testsuite", name="minillmclf.grade", tests=str(len(results)),
                                failures=str(sum(each.state not in (PASSED, NOT_STARTED)
                                                 for each in results)),
                                skipped=str(sum(each.state == NOT_STARTED for each in results)))
    for each in results:
        case = ElementTree.SubElement(suite, "testcase", classname=each.object,
                                      name=f"{each.id} {each.title} ({each.points}/{each.of})")
        if each.state == NOT_STARTED:
            ElementTree.SubElement(case, "skipped", message=each.message)
        elif each.state != PASSED:
            text = each.message + (f'; looks like "{each.looks_like}"' if each.looks_like else "")
            ElementTree.SubElement(case, "failure", type=each.state, message=printable(text))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def printable(text):
    """Without the characters that XML forbids."""
    return "".join(char if char.isprintable() else "?" for char in text)


# ---------------------------------------------------------------- the record

def read_record(root):
    """{"points": {exercise: points}, "hints": {exercise: [numbers]}}, as far as it is known."""
    empty = {"points": {}, "hints": {}}
    try:
        found = read_json(root / RECORD)
    except InputError:
        return empty
    return {key: found[key] if isinstance(found.get(key), dict) else {} for key in empty}


def remember(root, record):
    """Write the record; where that is impossible, nothing is remembered."""
    try:
        write_json(root / RECORD, record)
    except InputError:
        return


def with_results(record, results):
    return {**record, "points": {**record["points"],
                                 **{each.id: each.points for each in results}}}


def with_hint(record, exercise, number):
    seen = record["hints"].get(exercise, [])
    seen = sorted({*(seen if isinstance(seen, list) else []), number})
    return {**record, "hints": {**record["hints"], exercise: seen}}


def book_of(record, rows):
    """(points so far, points of all exercises)."""
    reached = {row.id: record["points"].get(row.id, 0) for row in rows}
    return (sum(value for value in reached.values() if isinstance(value, int)),
            sum(row.points for row in rows))


def write_results(results, json_file, junit_file, **more):
    if json_file:
        write_json(json_file, as_json(results, **more))
    if junit_file:
        write_text(junit_file, as_junit(results))
