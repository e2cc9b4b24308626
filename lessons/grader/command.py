"""What python -m minillmclf.grade does once its flags are read and the clone is found."""
from pathlib import Path

from lessons.exercises.tables import tables
from lessons.grader import grading, output
from minillmclf.errors import InputError

OWN_CLONE = """This is the course's own clone: its functions are written already. Exercises are
done in a release, a copy in which they are missing: python -m lessons.release --upto {} OUT"""


def hint(row, number, root):
    """Print a hint, and remember that it was seen."""
    if not 1 <= number <= len(row.hints):
        raise InputError(f"--hint {number}: exercise {row.id} has hints 1 to {len(row.hints)}")
    print(f"{row.id}, hint {number} of {len(row.hints)}: {row.hints[number - 1]}")
    output.remember(root, output.with_hint(output.read_record(root), row.id, number))
    return 0


def main(a, root):
    """a: the flags, as minillmclf/grade.py has read them; root: the clone. -> exit code"""
    rows = tables(root)
    asked = grading.scope(rows, a.exercise)
    if a.hint is not None:
        if a.exercise != [asked[0].id]:
            raise InputError(f"--hint: {a.exercise[0]} is a lesson; name one exercise")
        return hint(asked[0], a.hint, root)
    if a.overlay and not Path(a.overlay).is_dir():
        raise InputError(f"--overlay {a.overlay}: there is no such folder")
    needed = {row.lesson for row in asked}

    def read():
        if a.seed is not None:
            return grading.hidden_fixtures(needed, root, a.seed)
        return grading.read_fixtures(needed, root, a.fixtures)
    results = grading.grade(asked, root, read, a.overlay and Path(a.overlay))
    if a.overlay:
        print(output.page(results, rows))
        output.write_results(results, a.json, a.junit, overlay=str(a.overlay))
    else:
        record = output.with_results(output.read_record(root), results)
        output.remember(root, record)
        print(output.page(results, rows, output.book_of(record, rows)))
        if not (root / "release.json").exists():
            print(OWN_CLONE.format(max(int(row.lesson) for row in rows)))
        output.write_results(results, a.json, a.junit, hints=record["hints"])
    return 0 if results and all(each.points == each.of for each in results) else 1
