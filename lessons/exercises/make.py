"""python -m lessons.exercises.make 2: computes the expected outputs of a lesson's exercises.

They come from the package as it is here, the reference, and so do the outputs of the known-wrong
variants. Without a number: all lessons that have exercises. With --seed and --out: hidden cases,
which an instructor gives to `python -m minillmclf.grade --fixtures`.
"""
from pathlib import Path

from lessons import page
from lessons.exercises import kit
from lessons.exercises.tables import tables
from minillmclf.cli.parser import Parser, run
from minillmclf.errors import InputError


def answers_of(row, seed):
    """A row of a table of exercises -> its expected outputs, and those of its variants."""
    exercise = kit.exercise_of(row.lesson, row.cases)
    cases = exercise.cases(seed, row.id)
    functions = {"": kit.resolve(row.object), **exercise.variants}
    found = {name: {case.name: kit.outputs_of(exercise, function, case) for case in cases}
             for name, function in functions.items()}
    expected = found.pop("")
    failed = [name for name, each in expected.items() if "error" in each]
    if failed:
        raise ValueError(f"exercise {row.id}, case {failed[0]}: the reference raises "
                         f"{expected[failed[0]]['error']}")
    return {"inputs": kit.digest(cases), "expected": expected, "variants": found}


def make(lessons=(), seed="0", folder=kit.ANSWERS):
    """Write the answers of some lessons, or of all -> their numbers."""
    rows = [row for row in tables() if not lessons or row.lesson in lessons]
    for lesson in sorted({row.lesson for row in rows}):
        answers = {row.id: answers_of(row, seed) for row in rows if row.lesson == lesson}
        kit.write_answers(lesson, answers, seed, folder)
    return sorted({row.lesson for row in rows})


def main(arguments=None):
    p = Parser("python -m lessons.exercises.make", description=__doc__)
    p.add_argument("lesson", nargs="*", type=int, help="numbers of lessons; none: all")
    p.add_argument("--seed", default="0", help="what the inputs are drawn from (default 0)")
    p.add_argument("--out", type=Path, default=kit.ANSWERS, help="a folder for the answers")
    a = p.parse_args(arguments)
    if (page.ROOT / "release.json").exists():
        raise InputError(f"{page.ROOT}: is a release, in which functions are missing; answers are "
                         "computed in the course's own clone")
    made = make([f"{number:02d}" for number in a.lesson], a.seed, a.out)
    print(f"answers of lessons {', '.join(made) or 'none'} in {a.out}")
    return 0


if __name__ == "__main__":
    run(main)
