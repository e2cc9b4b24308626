"""From a row of a table of exercises to its Result: cases, a worker, its reply, the comparison.

Torch is imported only where it is needed: meanwhile the fork server of the workers loads it, too.
"""
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from lessons.grader.process import Workers
from lessons.grader.result import FAILED, REFUSED, Result
from lessons.grader.workplace import environment, readable, workplace
from minillmclf.errors import InputError


def scope(rows, asked):
    """The exercises that are meant by words such as 2 (a lesson) and 2.1; all of them by none."""
    found = []
    for word in asked:
        named = [row for row in rows if word == row.id or word.isdecimal()
                 and int(word) == int(row.lesson)]
        if not named:
            known = ", ".join(row.id for row in rows)
            raise InputError(f"{word[:40]}: no such lesson or exercise; there are "
                             f"{known or 'none'}")
        found += [row for row in named if row not in found]
    return found or rows


def read_fixtures(lessons, root, fixtures=None):
    """{lesson: (answers, seed)}: the stored ones, or those in the folder `fixtures`."""
    from lessons.exercises import kit
    folder = Path(fixtures or root / "lessons" / "exercises" / "answers")
    found = {}
    for lesson in sorted(lessons):
        try:
            found[lesson] = kit.read_answers(lesson, folder)
        except FileNotFoundError as error:
            raise InputError(f"{error.filename}: is not there: make it with python -m "
                             f"lessons.exercises.make {int(lesson)}") from None
    return found


def hidden_fixtures(lessons, root, seed):
    """The same for another seed, computed by the clone `root`, which must be the reference."""
    with TemporaryDirectory(prefix="minillmclf-answers-") as folder:
        numbers = [str(int(lesson)) for lesson in sorted(lessons)]
        done = subprocess.run(
            [sys.executable, "-m", "lessons.exercises.make", *numbers, "--seed", seed, "--out",
             folder], cwd=root, env=environment(root), capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "?").splitlines()[-1]
            raise InputError(f"--seed {seed}: {root} cannot compute the answers: {last}")
        return read_fixtures(lessons, root, folder)


def grade(rows, root, read, submission=None, workers=None):
    """-> the Result of each exercise, in their order; several workers run at the same time.

    read: a function, () -> fixtures, as read_fixtures gives them; workers: a Workers, or None.
    """
    with workers or Workers() as workers:
        fixtures = read()

        def one(row):
            return grade_one(row, root, *fixtures[row.lesson], workers, submission)
        with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
            return list(pool.map(one, rows))


def grade_one(row, root, answers, seed, workers, submission=None):
    """answers: of the row's lesson, for `seed`. submission: a folder, for an overlay."""
    from lessons.exercises import kit
    from lessons.grader.score import judge
    exercise, stored = kit.exercise_of(row.lesson, row.cases), answers.get(row.id)
    cases = exercise.cases(seed, row.id)
    if stored is None or stored["inputs"] != kit.digest(cases):
        raise InputError(f"the answers to exercise {row.id} belong to other cases: make them again "
                         f"with python -m lessons.exercises.make {int(row.lesson)}")
    try:
        with workplace(root, row, submission) as folder:
            job = kit.pack({
                "lesson": row.lesson, "cases": row.cases, "object": row.object,
                "inputs": [[case.name, case.kind, case.arguments] for case in cases],
                "roots": readable(folder, root)})
            reply, fault = workers.work(folder, job, exercise.seconds)
    except InputError as error:                          # of the submission: no such function ...
        return Result.of_row(row, 0, FAILED, str(error))
    try:
        reply = reply and complete(kit.unpack(reply), cases)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        reply, fault = None, "sends a reply of its own making"
    if not reply:
        return Result.of_row(row, 0, REFUSED, fault)
    return judge(row, exercise, cases, stored, reply)


def complete(reply, cases):
    """The reply, if it has the form that a worker gives it; ValueError if not."""
    if isinstance(reply.get("attempt"), str):
        return {"attempt": reply["attempt"]}
    told = [reply["import"]] if "import" in reply else reply["cases"]
    whole = all(isinstance(each.get("words"), str) or {"outputs", "after"} <= set(each)
                for each in told)
    if not whole or "import" not in reply and len(told) != len(cases):
        raise ValueError("incomplete")
    return reply
