"""Is a release whole: bodies cut and nothing else, 0 points as it is, all points when solved?"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from minillmclf.errors import InputError

from lessons import page
from lessons import release as releases
from lessons.exercises.tables import tables
from lessons.grader import grading
from lessons.grader.graft import cut

ROOT, UPTO = page.ROOT, 2
ROWS = [row for row in tables() if int(row.lesson) <= UPTO]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A release of the first lessons."""
    out = tmp_path_factory.mktemp("release") / "out"
    releases.release(ROOT, out, UPTO)
    return out


def python(folder, *arguments):
    """A command in a release, which stands first on the path -> CompletedProcess."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1",
                   "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)


def results(folder, *arguments):
    done = python(folder, "-m", "minillmclf.grade", "--json", "../grades.json", "--overwrite",
                  *arguments)
    assert done.returncode in (0, 1), done.stderr
    told = json.loads((folder.parent / "grades.json").read_text(encoding="utf-8"))
    return done.returncode, told


def functions(path, names):
    """A file without the bodies of some functions, as ast shows it, and these functions."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        for name, each in [(each.name, each) for each in getattr(node, "body", ())
                           if isinstance(each, ast.FunctionDef)] if hasattr(node, "body") \
                and isinstance(node.body, list) else []:
            if name in names:
                found[name] = each.body
                each.body = [ast.Pass()]
    return ast.dump(tree), found


def test_only_bodies_are_cut(folder):
    for file in {row.file(".") for row in ROWS}:
        names = [row.name.split(".")[-1] for row in ROWS if row.file(".") == file]
        (ours, old), (theirs, new) = functions(ROOT / file, names), functions(folder / file, names)
        assert ours == theirs
        for name in names:
            *docs, stub = new[name]
            assert ast.unparse(stub).startswith("raise NotImplementedError('Exercise ")
            assert [ast.dump(each) for each in docs] == \
                [ast.dump(each) for each in old[name][:1] if ast.get_docstring(ast.FunctionDef(
                    name="f", args=None, body=[each], decorator_list=[])) is not None]
    changed = {str(path.relative_to(folder)) for path in (folder / "minillmclf").rglob("*.py")
               if path.read_bytes() != (ROOT / path.relative_to(folder)).read_bytes()}
    assert changed == {str(row.file(".")) for row in ROWS}


def test_nothing_of_the_instructor_is_in_it(folder):
    for name in releases.KEPT_BACK:
        assert (ROOT / name).exists() and not (folder / name).exists(), name
    text = (folder / "lessons" / "exercises" / "lesson_02.py").read_text(encoding="utf-8")
    assert "def wrong_" not in text and "lambda rows" not in text
    assert not list(folder.rglob("*.pyc")) and not (folder / ".git").exists()


def test_what_is_written_besides(folder):
    record = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    assert [each["id"] for each in record["exercises"]] == [row.id for row in ROWS]
    assert record["points"] == sum(row.points for row in ROWS)
    student = (folder / "STUDENT.md").read_text(encoding="utf-8")
    workflow = (folder / ".github" / "workflows" / "classroom.yml").read_text(encoding="utf-8")
    assert "{" not in student and workflow.count("autograding-command-grader@v1") == len(ROWS)
    for row in ROWS:
        assert f"| {row.id} | {row.title} |" in student
        assert f"command: python -m minillmclf.grade {row.id}\n" in workflow
    runners = re.search(r'runners: "(.*)"', workflow)[1].split(",")
    assert runners == re.findall(r"^ +id: (\S+)$", workflow, re.M)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```sh setup\n(.*?)^```", readme, re.S | re.M)[1].strip().splitlines()
    assert len(block) == 2 and block[0].endswith("python -m minillmclf.grade")


def test_a_quotation_shows_the_stub(tmp_path):
    shutil.copytree(ROOT / "minillmclf", tmp_path / "minillmclf",
                    ignore=shutil.ignore_patterns("__pycache__", "datasets"))
    (tmp_path / "lessons" / "exercises").mkdir(parents=True)
    lesson, row = tmp_path / "lessons" / "99_x.md", ROWS[0]
    show = f"show={row.file('.')}:{row.name}"
    text = f"# x\n```python {show}\nold\n```\nand\n```python\nx = 1\n```\n"
    lesson.write_text(text, encoding="utf-8")
    releases.cut_all([row], tmp_path)
    releases.quote_again(tmp_path)
    found = lesson.read_text(encoding="utf-8")
    assert f'NotImplementedError("{row.not_started}")' in found and "old" not in found
    assert "```\nand\n```python\nx = 1\n```\n" in found


def test_as_it_is_it_has_no_points_and_solved_it_has_all(folder):
    code, told = results(folder)
    assert (code, told["points"], told["of"]) == (1, 0, sum(row.points for row in ROWS))
    assert {each["state"] for each in told["exercises"]} == {"not started"}
    stubs = {row.file("."): (folder / row.file(".")).read_bytes() for row in ROWS}
    try:
        for file in stubs:
            shutil.copyfile(ROOT / file, folder / file)
        code, told = results(folder)
        assert (code, told["points"]) == (0, told["of"]), told
    finally:
        for file, text in stubs.items():
            (folder / file).write_bytes(text)


@pytest.mark.parametrize("lesson", sorted({row.lesson for row in tables()}))
def test_exercises_need_none_of_a_later_lesson(lesson, tmp_path, workers):
    """Those of a lesson have full marks where the functions of all later lessons are cut."""
    shutil.copytree(ROOT / "minillmclf", tmp_path / "minillmclf",
                    ignore=shutil.ignore_patterns("__pycache__", "datasets", "checkpoints"))
    for name in ("minillmclf/datasets", "checkpoints", "lessons"):
        (tmp_path / name).symlink_to(ROOT / name)
    for row in tables():
        if row.lesson > lesson:
            file = row.file(tmp_path)
            source = file.read_text(encoding="utf-8")
            file.write_text(cut(source, row.name, row.not_started), encoding="utf-8")
    own = [row for row in tables() if row.lesson == lesson]
    found = grading.grade(own, tmp_path, lambda: grading.read_fixtures([lesson], ROOT),
                          workers=workers)
    assert [(each.id, each.message) for each in found if each.points < each.of] == []


def test_tests_of_a_release_wait_and_only_the_students_fail(folder):
    """A file of tests whose functions are cut, called here or in a process that a test starts."""
    (folder / "tests" / "test_waiting.py").write_text('''
import subprocess, sys
import pytest, torch
from minillmclf.models.layers import root_mean_square_norm
CODE = """import torch
from minillmclf.models.layers import root_mean_square_norm
root_mean_square_norm(torch.ones(2), 0.1)"""

def test_fine():
    assert True

def test_called():
    assert root_mean_square_norm(torch.ones(2), 0.1).shape == (2,)

def test_called_and_caught():
    with pytest.raises(ValueError):
        try:
            root_mean_square_norm(torch.ones(2), 0.1)
        except NotImplementedError as error:
            raise KeyError("x") from error

def test_in_a_process():
    assert subprocess.run([sys.executable, "-c", CODE], capture_output=True).returncode == 0

def test_wrong_for_itself():
    assert 1 == 2
''', encoding="utf-8")
    done = python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_waiting.py",
                  "lessons/test_exercises.py", "tests/test_house.py")
    failed = set(re.findall(r"^FAILED (\S+)", done.stdout, re.M))
    assert failed == {"tests/test_waiting.py::test_wrong_for_itself",
                      *(f"lessons/test_exercises.py::test_exercise[{row.id}]" for row in ROWS)}
    assert "3 tests wait: exercise 2.4 is not started" in done.stdout
    assert done.stdout.count("not started: see lessons/") >= len(ROWS)


@pytest.mark.parametrize("given, words", [
    (["--upto", "2", "."], "is not empty"), (["--upto", "2", "lessons/x"], "lies in the clone"),
    (["--upto", "2", "--since", "50", "{tmp}"], "have no exercises")])
def test_a_mistake_is_one_line(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=words):
        releases.main([each.format(tmp=tmp_path / "new") for each in given])


def test_a_release_is_not_released_again(folder, tmp_path):
    with pytest.raises(InputError, match="is a release itself"):
        releases.release(folder, tmp_path, UPTO)
    for given, words in ((["lessons.release", "--upto", "1", tmp_path / "out"], "is a release"),
                         (["lessons.exercises.make", "1"], "is a release, in which")):
        done = python(folder, "-m", *map(str, given))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr
    assert not (tmp_path / "out").exists()


def test_its_pages_name_what_is_there(folder):
    done = python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_pages.py",
                  "lessons/test_lessons.py", "-k", "exist or each_flag or map or digit")
    assert done.returncode == 0, done.stdout[-3000:]


def test_earlier_lessons_may_be_shipped_solved(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(releases, "copy_clone", lambda root, out: seen.append(out))
    with pytest.raises(InputError, match="lessons 15 to 15 have no exercises"):
        releases.release(ROOT, tmp_path, 15, 15)
    assert seen == []
