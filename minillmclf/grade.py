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
import sys
from pathlib import Path

from .cli.outputs import check_out_file
from .cli.parser import Parser, run
from .errors import InputError
from .files import PACKAGE


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
    for option, file in (("--json", a.json), ("--junit", a.junit)):
        if file:
            check_out_file(file, a.overwrite, option=option)
    return a


def find_clone(given=None):
    """Find the clone with exercises and grader, and make its lessons/ importable -> its folder.
    InputError if there is none, or an older one."""
    places = [Path(given)] if given else [PACKAGE.parent, Path.cwd(), *Path.cwd().parents]
    for place in places:
        if (place / "lessons" / "exercises" / "kit.py").is_file():
            if not (place / "lessons" / "grader").is_dir():
                raise InputError(f"{place}: there is no lessons/grader/ there: the clone is of an "
                                 "older version; take one of the same version as this command")
            sys.path.insert(0, str(place.resolve()))
            return place.resolve()
    raise InputError(f"{places[0]}: there is no lessons/exercises/ there: exercises are part of "
                     "the clone, not of the installed package; run this command in a clone")


def main(arguments=None):
    """Read the flags, find the clone, and hand over to its lessons/grader/."""
    a = parse(arguments)
    root = find_clone(a.reference)
    from lessons.grader import command
    return command.main(a, root)


if __name__ == "__main__":
    run(main)
