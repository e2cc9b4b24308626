"""The instructors' tables are made of the tables of exercises, and of nothing else."""
import re

import pytest

from lessons import instructors, page
from lessons.exercises import kit, lesson_09
from lessons.exercises.tables import Row
from lessons.grader import score
from minillmclf.errors import InputError

WORDS_IN_TEN_MINUTES = 2400


def raw():
    """Each row of each table of exercises, as TOML has it."""
    return [row for path in sorted(page.LESSONS.glob("*.exercises.toml"))
            for row in page.tomllib.loads(path.read_text(encoding="utf-8"))["exercise"]]


def test_no_table_is_stale():
    assert instructors.stale() == [], "python -m lessons.instructors --update"


def test_the_sums_are_those_of_the_rows():
    text = (instructors.GUIDES / "instructors.md").read_text(encoding="utf-8")
    total = re.search(r"^\| all \| 0 to 14 \| (\d+) \| (\d+) \| ([\d.]+) \| (\d+) \|$", text, re.M)
    rows = raw()
    assert int(total[1]) == len(rows)
    assert int(total[2]) == sum(row["points"] for row in rows)
    assert float(total[3]) == round(sum(row["minutes"] for row in rows) / 60, 1)
    assert int(total[4]) >= 2 * len(rows)
    parts = re.findall(r"^\| [ABC], .*? \| \d+ to \d+ \| (\d+) \| (\d+) \|", text, re.M)
    assert len(parts) == 3
    assert [sum(int(part[i]) for part in parts) for i in (0, 1)] == [int(total[1]), int(total[2])]


def test_each_exercise_stands_in_one_page_with_its_variants():
    texts = [(instructors.GUIDES / name).read_text(encoding="utf-8")
             for name in instructors.PAGES[1:]]
    for row in instructors.all_rows():
        lines = [line for text in texts for line in text.splitlines()
                 if line.startswith(f"| {row.id} |")]
        assert len(lines) == 1, row.id
        assert f"`{row.name}` | {row.points} | {row.minutes} |" in lines[0]
        for name in instructors.variants_of(row):
            assert name.replace("|", "\\|") in lines[0]


def test_the_assignments_cover_all_lessons_once():
    covered = [number for first, last in instructors.ASSIGNMENTS.values()
               for number in range(first, last + 1)]
    assert covered == list(range(15)) and set(instructors.SHORT_COURSE) < set(covered)


def test_a_change_is_noticed_and_written(tmp_path, capsys):
    for name in instructors.PAGES:
        (tmp_path / name).write_text((instructors.GUIDES / name).read_text(encoding="utf-8"))
    path = tmp_path / "instructors.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(\| all \| 0 to 14 \| )\d+", r"\g<1>7", text), encoding="utf-8")
    assert instructors.stale(tmp_path) == ["instructors.md"]
    assert instructors.stale(tmp_path, update=True) == ["instructors.md"]
    assert instructors.stale(tmp_path) == [] and path.read_text(encoding="utf-8") == text
    assert instructors.main([]) == 0 and "as they should be" in capsys.readouterr().out


@pytest.mark.parametrize("text, message", [
    ("<!-- made: nothing -->\n<!-- end -->\n", "page.md: there is no table nothing: known are sem"),
    ("<!-- made: semester -->\n| old |\n", "page.md: .* has no line <!-- end -->")])
def test_a_wrong_mark_is_one_line(text, message):
    with pytest.raises(InputError, match=message):
        instructors.made_again(text, [])


@pytest.mark.parametrize("path", sorted(
    {*instructors.GUIDES.glob("*.md")} - {*instructors.GUIDES.glob("mistakes_*.md")}),
                         ids=lambda path: path.name)
def test_a_page_is_read_in_ten_minutes(path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$|\]\(.*?\)", "", text, flags=re.M | re.S)
    assert len(re.findall(r"[\w'’-]+", text)) <= WORDS_IN_TEN_MINUTES


# ---------------------------------------------------------------- the exercise that is made there

@pytest.fixture
def made():
    """The row of assignments.md, whose cases stand in lesson 9 meanwhile."""
    text = (instructors.GUIDES / "assignments.md").read_text(encoding="utf-8")
    row, = page.tomllib.loads(re.search(r"^```toml\n(.*?)^```", text, re.M | re.S)[1])["exercise"]
    before = set(vars(lesson_09))
    code = re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1]
    exec(compile(code, "assignments.md", "exec"), vars(lesson_09))
    row = Row(**vars(page.exercise_of(row, "assignments.md")), lesson="09", page="09_loop.md")
    page.check(row, page.lesson_path(9), "assignments.md")
    yield row
    for name in set(vars(lesson_09)) - before:
        delattr(lesson_09, name)


@pytest.mark.parametrize("seed", ["0", "2027-a"])
def test_the_exercise_on_the_page_works_as_the_page_says(made, seed):
    exercise, stored = kit.exercise_of("09", made.cases), answers_of(made, seed)
    cases = exercise.cases(seed, made.id)

    def judged(function):
        told = [{"after": case.arguments, **kit.outputs_of(exercise, function, case)}
                for case in cases]
        return score.judge(made, exercise, cases, stored, {"cases": told, "replaced": []})
    assert judged(kit.resolve(made.object)).points == made.points
    for name, variant in exercise.variants.items():
        result = judged(variant)
        assert (result.points < made.points, result.looks_like) == (True, name)
        assert result.hint == exercise.hint_for[name] + 1 <= len(made.hints)


def answers_of(row, seed):
    """The right answers and those of the variants, as lessons.exercises.make computes them."""
    exercise = kit.exercise_of(row.lesson, row.cases)
    cases = exercise.cases(seed, row.id)
    found = {name: {case.name: kit.outputs_of(exercise, function, case) for case in cases}
             for name, function in {"": kit.resolve(row.object), **exercise.variants}.items()}
    return {"expected": found.pop(""), "variants": found, "inputs": kit.digest(cases)}
