"""python -m minillmclf.grade 2.1: is the function of an exercise right, and if not, what is wrong?

  python -m minillmclf.grade                all exercises of the course
  python -m minillmclf.grade 2 3.1          those of lesson 2, and exercise 3.1
  python -m minillmclf.grade 2.1 --hint 1   the first hint; that you have seen it is remembered
  python -m minillmclf.grade --overlay SUBMISSION --reference .

The code runs in a process of its own, with limits of time and memory, without the network, and
without the expected outputs. Exit code 0 only at full marks. For instructors, --overlay takes the
functions of the exercises, and nothing else, from a submission. Each one alone is put into a copy
of the reference, so that one mistake is not charged twice.
"""
from pathlib import Path

from ..cli.parser import Parser, run
from ..errors import InputError
from ..files import check_out_file
from . import grading, output

OWN_CLONE = """This is the course's own clone, where the functions are written. The exercises are
done in a release, a copy in which they are missing: python -m lessons.release --upto {} OUT"""


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.grade", description=__doc__)
    p.add_argument("exercise", nargs="*",
                   help="numbers of lessons (2) or of exercises (2.1); none: all")
    p.add_argument("--hint", type=int, metavar="N", help="print hint N of one exercise")
    p.add_argument("--json", metavar="FILE", help="write the results to a JSON file")
    p.add_argument("--junit", metavar="FILE", help="write them in JUnit's XML format")
    p.add_argument("--overwrite", action="store_true", help="replace these files if they exist")
    group = p.add_argument_group("for instructors")
    group.add_argument("--overlay", metavar="DIR",
                       help="a student's clone; needs --reference")
    group.add_argument("--reference", metavar="DIR", help="a clone with all exercises solved")
    group.add_argument("--seed", help="other cases, drawn from this seed; the reference computes "
                       "what to expect")
    group.add_argument("--fixtures", metavar="DIR", help="a folder of answers that python -m "
                       "lessons.exercises.make --seed SEED --out DIR has made")
    a = p.parse_args(arguments)
    if bool(a.overlay) != bool(a.reference):
        raise InputError("--overlay and --reference go together: a student's clone, and one with "
                         "all exercises solved")
    if a.seed is not None and a.fixtures:
        raise InputError("--seed and --fixtures: give one of them")
    if a.seed is not None and not a.reference:
        raise InputError("--seed: needs --reference, a clone that can compute the answers")
    if a.hint is not None and len(a.exercise) != 1:
        raise InputError("--hint: name one exercise: python -m minillmclf.grade 2.1 --hint 1")
    for file in filter(None, (a.json, a.junit)):
        check_out_file(file, a.overwrite)
    return a


def hint(row, number, root):
    """Print a hint, and remember that it was seen."""
    if not 1 <= number <= len(row.hints):
        raise InputError(f"--hint {number}: exercise {row.id} has hints 1 to {len(row.hints)}")
    print(f"{row.id}, hint {number} of {len(row.hints)}: {row.hints[number - 1]}")
    output.remember(root, output.with_hint(output.read_record(root), row.id, number))
    return 0


def main(arguments=None):
    a = parse(arguments)
    root = grading.find_clone(a.reference)
    from lessons.exercises.tables import tables
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


if __name__ == "__main__":
    run(main)
