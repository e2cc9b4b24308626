"""Does the grader see: the reference, each known-wrong variant, and each attempt to get around it?

A submission is a folder with one file: an overlay takes the exercise's function from it, and no
more. The worker's limits are those that a student's code meets.
"""
import ast
import contextlib
import inspect
import json
import shutil
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import pytest
import torch

from lessons import page
from lessons.exercises import kit, make
from lessons.exercises.tables import tables
from lessons.grader import grading, limits, output, score
from lessons.grader.graft import cut, graft, without_variants
from lessons.grader.process import Workers
from minillmclf import grade as command
from minillmclf.cli.parser import run
from minillmclf.errors import InputError

ROOT = page.ROOT
ROWS = {row.id: row for row in tables()}
NORM = ROWS["2.4"]                             # the exercise that the attacks pretend to solve
RIGHT = "return x * 0 + x / (x.float().square().mean(-1, keepdim=True) + eps).sqrt().to(x.dtype)"


def answers_of(row):
    answers, seed = kit.read_answers(row.lesson)
    return answers[row.id], seed


def reply_of(exercise, function, cases):
    """What a worker would send, for a function that can be trusted."""
    told = []
    for case in cases:
        found = kit.outputs_of(exercise, function, case)
        if "error" in found:
            told.append({"error": found["error"], "words": found["error"]})
        else:
            told.append({"after": case.arguments, **found})
    return {"cases": told, "replaced": []}


def judged(row, function):
    exercise, (stored, seed) = kit.exercise_of(row.lesson, row.cases), answers_of(row)
    cases = exercise.cases(seed, row.id)
    return score.judge(row, exercise, cases, stored, reply_of(exercise, function, cases))


# ---------------------------------------------------------------- reference and variants

@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_the_reference_has_all_points_and_each_variant_is_named(row):
    assert judged(row, kit.resolve(row.object)).points == row.points
    exercise = kit.exercise_of(row.lesson, row.cases)
    for name, variant in exercise.variants.items():
        result = judged(row, variant)
        assert result.points < row.points, f"{row.id}: no case sees {name!r}"
        assert result.looks_like == name, f"{row.id}: {name!r} is named {result.looks_like!r}"
        assert result.hint == exercise.hint_for[name] + 1 <= len(row.hints)


def test_the_classic_mistakes_are_there():
    counts = {row.id: len(kit.exercise_of(row.lesson, row.cases).variants)
              for row in ROWS.values()}
    assert min(counts[name] for name in ("2.1", "2.2", "2.3", "2.4")) >= 6


def numbers_in(outputs):
    """Yield the tensors of fp32 and fp64 numbers in nested outputs; a float is a fp64 number."""
    if isinstance(outputs, (dict, list)):
        for inner in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from numbers_in(inner)
    elif isinstance(outputs, float):
        yield torch.tensor(outputs, dtype=torch.float64)
    elif isinstance(outputs, torch.Tensor) and outputs.dtype in (torch.float32, torch.float64):
        yield outputs


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_tolerances_leave_room_for_the_rounding_of_other_processors(row):
    """Two rounding steps of the largest number at least; a mask's lowest number is not computed."""
    (stored, seed), exercise = answers_of(row), kit.exercise_of(row.lesson, row.cases)
    for case in exercise.cases(seed, row.id):
        for found in numbers_in(stored["expected"][case.name].get("outputs")):
            found = found[found.isfinite() & (found.abs() < 1e30)]
            if case.kind == "parity" and found.numel():
                room = 2 * torch.finfo(found.dtype).eps * found.abs().max().item()
                assert room <= score.tolerance_of(exercise, case), case.name


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_stored_answers_are_those_of_the_reference(row):
    (stored, seed), exercise = answers_of(row), kit.exercise_of(row.lesson, row.cases)
    again, remade = make.answers_of(row, seed), f"python -m lessons.exercises.make {row.lesson}"
    assert again["inputs"] == stored["inputs"], remade
    assert list(again["variants"]) == list(stored["variants"]) == list(exercise.variants), remade
    for name, old in {"": stored["expected"], **stored["variants"]}.items():
        new = again["variants"][name] if name else again["expected"]
        assert score.difference(old, new, 1e-4) is None, f"{row.id} {name}: {remade}"


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_hidden_cases_are_others_and_the_reference_has_all_points(row):
    exercise = kit.exercise_of(row.lesson, row.cases)
    stored = make.answers_of(row, "7")
    assert stored["inputs"] != answers_of(row)[0]["inputs"]
    cases = exercise.cases("7", row.id)
    for name, function in {"": kit.resolve(row.object), **exercise.variants}.items():
        result = score.judge(row, exercise, cases, stored, reply_of(exercise, function, cases))
        assert (result.points == row.points) == (not name), f"{row.id} {name!r}"


def test_cases_import_nothing_of_the_package_at_their_top():
    for path in (ROOT / "lessons" / "exercises").glob("lesson_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [getattr(node, "module", None) or "", *(each.name for each in getattr(
                node, "names", ()))] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            assert not any(name.startswith("minillmclf") for name in names), path.name


def test_an_exercise_with_one_variant_is_none():
    with pytest.raises(TypeError, match="has 1 known-wrong variants: 2 or more"):
        type("Thin", (kit.Exercise,), {"variants": {"wrong": print}})
    with pytest.raises(TypeError, match="hint_for names no variant: 'c'"):
        type("Astray", (kit.Exercise,), {"variants": {"a": print, "b": print},
                                         "hint_for": {"c": 0}})


# ---------------------------------------------------------------- points

def marks(points, contract, parity):
    """The points for lists of right (1) and wrong (0) cases."""
    cases = [kit.Case(str(number), kind, {}) for number, kind in
             enumerate(["contract"] * len(contract) + ["parity"] * len(parity))]
    row = page.Exercise("1.1", "a:b", "t", points, 5, "C", ["h"])
    return score.points_of(row, cases, [None if each else "wrong" for each in contract + parity])


@pytest.mark.parametrize("points, contract, parity, reached", [
    (3, [1, 1], [1, 1, 1], 3), (3, [1, 1], [0, 0, 0], 1), (3, [1, 0], [1, 1, 1], 2),
    (3, [1, 1], [1, 1, 0], 2), (3, [1, 1], [1, 0, 0], 1), (3, [0, 0], [0, 0, 0], 0),
    (1, [1, 1], [1, 0], 0), (1, [1], [1], 1), (1, [0], [1, 1], 0), (4, [], [1, 1, 1, 0], 3),
    (2, [1], [], 2)])
def test_points(points, contract, parity, reached):
    assert marks(points, contract, parity) == reached


@pytest.mark.parametrize("expected, found, words", [
    (torch.zeros(2, 3), torch.zeros(3, 2), "outputs has shape (3, 2), should have (2, 3)"),
    (torch.zeros(2), torch.zeros(2).double(), "outputs has dtype float64, should have float32"),
    ({"a": torch.zeros(2)}, {"a": None}, "a should be a tensor of shape (2,), is None"),
    ({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 0.5])}, "a[1] should be 0, is 0.5 (1 of 2"),
    ({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, torch.nan])}, "a[1] should be 0, is nan"),
    ({"a": torch.tensor(-torch.inf)}, {"a": torch.tensor(-torch.inf)}, None),
    ({"a": torch.zeros(0, 3)}, {"a": torch.zeros(0, 3)}, None),
    ({"a": [1, 2]}, {"a": [1]}, "a should be [1, 2], is [1]"),
    ({"a": [1, 2.0]}, {"a": [1, 3.0]}, "a should be [1, 2], is [1, 3]"),
    ({"a": [0] * 90}, {"a": [0] * 80}, "a should be a list of 90 items, is a list of 80 items"),
    ({"a": [0] * 90}, {"a": [0] * 89 + [7]}, "a[89] should be 0, is 7"),
    ({"a": [torch.zeros(2)]}, {"a": [torch.ones(2)]}, "a[0][0] should be 0, is 1 (2 of 2 differ)"),
    ({"a": "x"}, {"a": "y"}, "a should be 'x', is 'y'"),
    ({"a": True}, {"a": 1}, "a should be True (bool), is 1 (int)"),
    ({"a": 1 / 3}, {"a": 1 / 3 + 2e-5}, "a should be 0.333333, is 0.333353"),
    ({"a": 1e6 / 3}, {"a": 1e6 / 3 + 2e-5}, "a should be 333333.3333333333, is 333333.33335"),
    ({"a": torch.tensor(-0.0)}, {"a": torch.tensor(2.0)}, "a should be 0, is 2"),
    ({"a": 1.0}, {"a": 1.0 + 1e-6}, None), ({"a": 1, "b": 2}, {"a": 1, "c": 2}, "has no b")])
def test_differences(expected, found, words):
    told = score.difference(expected, found, 1e-5)
    assert (told is None) if words is None else words in told


def test_values_survive_packing():
    value = {"a": [torch.ones(2, 3).bfloat16(), None, True, float("inf"), "x"], "dict": {"b": 1},
             "tensor": torch.arange(3), "t": torch.ones(3, 2).t(), "e": torch.zeros(0)}
    found = kit.unpack(kit.pack(value))
    assert score.difference(value, found, 0.0) is None and found["a"][0].dtype is torch.bfloat16
    with pytest.raises(TypeError, match="where a torch.Tensor"):
        kit.pack({"a": object()})


# ---------------------------------------------------------------- cutting and grafting

SOURCE = '''
import math
class A:
    @property
    def f(self):   # why
        """Doc."""
        # a comment that tells
        x = 1
        return x
        # and another

    def g(self, x=lambda: {1: 2}, *, y: "a:b" = 3) -> dict: return {"x": x}

def h(a,
      b):
    return a + b     # end


def after(): ...
'''


def test_a_cut_function_keeps_its_head():
    text = SOURCE
    for name in ("A.f", "A.g", "h"):
        text = cut(text, name, "Exercise 9.1: see lessons/09_x.md")
    assert text == '''
import math
class A:
    @property
    def f(self):   # why
        """Doc."""
        raise NotImplementedError("Exercise 9.1: see lessons/09_x.md")

    def g(self, x=lambda: {1: 2}, *, y: "a:b" = 3) -> dict:
        raise NotImplementedError("Exercise 9.1: see lessons/09_x.md")

def h(a,
      b):
    raise NotImplementedError("Exercise 9.1: see lessons/09_x.md")


def after(): ...
'''
    for name, fault in (("A.z", "defines no A.z"), ("A", "A is no function"), ("A.f.x", "no A.f")):
        with pytest.raises(InputError, match=fault):
            cut(SOURCE, name, "")


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_each_exercise_can_be_cut_and_put_back(row):
    source = row.file(ROOT).read_text(encoding="utf-8")
    stub = cut(source, row.name, row.not_started)
    assert ast.dump(ast.parse(graft(stub, source, row.name))) == ast.dump(ast.parse(source))
    assert max(map(len, stub.splitlines())) <= 100


def test_nothing_but_the_function_is_taken():
    theirs = SOURCE.replace("return a + b", "return a - b").replace("import math", "import os") \
        .replace("def h(", "@print\ndef h(")
    found = graft(SOURCE, theirs, "h")
    assert "return a - b" in found and "import os" not in found and "@print" not in found


def test_cases_without_variants_hold_no_solution():
    path = ROOT / "lessons" / "exercises" / "lesson_02.py"
    text = without_variants(path.read_text(encoding="utf-8"))
    assert not any(word in text for word in (".softmax(", "masked_fill", ".sqrt(", "lambda rows"))
    assert "def causal_seen" in text and ".tril()" in text       # the cases call it


def test_a_copy_has_the_cases_of_one_lesson_and_what_a_worker_runs():
    with grading.workplace(ROOT, NORM) as folder:
        inner = folder / "lessons"
        found = {path.relative_to(inner).as_posix() for path in inner.rglob("*") if path.is_file()}
    assert found == {"__init__.py", "exercises/__init__.py", "exercises/kit.py",
                     "exercises/lesson_02.py", "grader/__init__.py", "grader/limits.py",
                     "grader/worker.py"}


# ---------------------------------------------------------------- submissions

def submission(folder, body, row=NORM, before=""):
    """A folder in which the file of an exercise has this body in its function."""
    file = row.file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(before + cut(row.file(ROOT).read_text(encoding="utf-8"), row.name, "BODY")
                    .replace('raise NotImplementedError("BODY")',
                             textwrap.indent(textwrap.dedent(body).strip(), "    ").strip()),
                    encoding="utf-8")
    return folder


@pytest.fixture
def graded(workers):
    """graded(submission, row of a table) -> Result."""
    def graded(folder, row=NORM):
        return grading.grade([row], ROOT, lambda: grading.read_fixtures([row.lesson], ROOT), folder,
                             workers)[0]
    return graded


FORKS = [True, False] if sys.platform.startswith("linux") else [False]
ATTACKS = {                       # body -> what the line must say
    "os._exit(0)": ("import os\nos._exit(0)", "ends its process (exit code 0)"),
    "SystemExit": ("raise SystemExit(0)", "raises SystemExit"),
    "a loop": ("while True: pass", "does not end: it took more than 1 s"),
    "memory": ("import torch\nreturn torch.ones(10 ** 11)", "needs more memory"),
    "memory of lists": ("return [0] * 10 ** 10", "needs more memory"),
    "fork": ("import os\nos.fork()\nreturn x", "forks its process"),
    "a process": ("import subprocess\nsubprocess.run(['true'])", "starts a process"),
    "a process, by hand": ("import _posixsubprocess as p\np.fork_exec(*[None] * 23)",
                           "starts a process"),
    "a socket": ("import socket\nsocket.socket()", "opens a network connection"),
    "the reference": (f"return open({str(NORM.file(ROOT))!r}).read()", "reads "),
    "the answers": (f"return open({str(kit.ANSWERS / '02.safetensors')!r}, 'rb').read()",
                    "which is not its own"),
    "a file": ("open('/tmp/minillmclf-attack', 'w')", "writes to /tmp/minillmclf-attack"),
    "ctypes": ("import ctypes\nctypes.CDLL(None)", "calls native code"),
    "torch.allclose": ("import torch\ntorch.allclose = lambda *a, **k: True\nreturn x",
                       "replaces torch.allclose"),
    "Tensor.__eq__": ("import torch\ntorch.Tensor.__eq__ = lambda *a: True\nreturn x",
                      "replaces torch.Tensor.__eq__"),
    "pytest": ("import pytest\npytest.approx = lambda *a: None\nreturn x", "imports pytest"),
    "a lying tensor": ("""
        class Liar(type(x)):
            def __eq__(self, other): return True
        return x.as_subclass(Liar)""", "Liar was returned, where a torch.Tensor"),
    "a printed result": ("print('2.4 the root-mean-square norm 2/2')\nreturn None",
                         "should be a tensor of shape (3, 6), is None"),
    "a reply of its own": ("""
        import json, os
        text = json.dumps({"cases": [], "replaced": [], "points": 2}).encode()
        for number in range(3, 40):
            try: os.write(number, len(text).to_bytes(8, "little") + text)
            except OSError: pass
        os._exit(0)""", "sends a reply of its own making"),
    "its inputs": (f"result = {RIGHT.removeprefix('return ')}\nx.zero_()\nreturn result",
                   "changes its argument in place: x"),
}


@contextlib.contextmanager
def short_workplace(*given, real=grading.workplace):
    """A workplace in which an exercise may take one second: the loop takes all that it is given."""
    with real(*given) as folder:
        file = folder / "lessons" / "exercises" / "kit.py"
        text = file.read_text(encoding="utf-8")
        assert text.count("    seconds = 10\n") == 1
        file.write_text(text.replace("    seconds = 10\n", "    seconds = 1\n"), encoding="utf-8")
        yield folder


@pytest.fixture(scope="module", params=FORKS, ids=lambda fork: "forked" if fork else "started")
def attacks(request, tmp_path_factory):
    """All attacks, in workers that run at the same time -> {name: Result}."""
    folder = tmp_path_factory.mktemp("attacks")
    fixtures = grading.read_fixtures([NORM.lesson], ROOT)

    def one(number, body):
        return grading.grade_one(NORM, ROOT, *fixtures[NORM.lesson], workers,
                                 submission(folder / str(number), body))
    with pytest.MonkeyPatch.context() as patch, Workers(request.param) as workers, \
            ThreadPoolExecutor(2) as pool:
        patch.setattr(grading, "workplace", short_workplace)
        patch.setattr(kit.Exercise, "seconds", 1)
        found = list(pool.map(one, range(len(ATTACKS)), [body for body, _ in ATTACKS.values()]))
    assert workers.alone is not request.param
    return dict(zip(ATTACKS, found))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_has_no_points_and_is_named(name, attacks):
    result = attacks[name]
    assert result.points == 0 and ATTACKS[name][1] in result.message, result


def told_by(folder, body, workers):
    """The message of a submission with this body."""
    answers = grading.read_fixtures([NORM.lesson], ROOT)[NORM.lesson]
    return grading.grade_one(NORM, ROOT, *answers, workers, submission(folder, body)).message


@pytest.mark.parametrize("fork", FORKS)
def test_a_worker_has_few_files_open_and_no_socket(fork, tmp_path):
    """Three streams, the way for its reply, and nowhere: it cannot give the fork server orders."""
    body = """
        import os, stat, sys
        found, frame = [], sys._getframe()
        for number in range(1000):
            try: found.append(stat.S_IFMT(os.fstat(number).st_mode))
            except OSError: pass
        ends = []
        while frame:
            ends += [each.fileno() for each in frame.f_locals.values() if hasattr(each, "detach")
                     and type(each).__name__ == "socket"]
            frame = frame.f_back
        raise ValueError(f"{found.count(stat.S_IFSOCK)} sockets, {len(found)} files, {set(ends)}")
    """
    with Workers(fork) as workers:
        told = told_by(tmp_path, body, workers)
    assert f"0 sockets, 5 files, {'{-1}' if fork else 'set()'}" in told


@pytest.mark.parametrize("fork", FORKS)
def test_a_worker_leaves_nothing_to_the_next_one(fork, tmp_path):
    body = """
        import builtins, sys, torch
        found = [hasattr(builtins, "left"), torch.initial_seed() == 5, len(sys.path)]
        found += [name for name in sys.modules if name.startswith("lessons.exercises.lesson_")]
        builtins.left = x
        torch.manual_seed(5)
        sys.path.append("/left")
        raise ValueError(found)
    """
    with Workers(fork) as workers:
        told = [told_by(tmp_path / str(number), body, workers) for number in (1, 2)]
    assert told[0] == told[1] and "[False, False, " in told[0]


@pytest.mark.skipif(True not in FORKS, reason="workers are forked on Linux alone")
def test_without_its_fork_server_a_worker_is_started(tmp_path):
    with Workers(True) as workers:
        workers.server.kill()
        workers.server.wait()
        told = told_by(tmp_path, "raise ValueError('it runs')", workers)
        assert workers.alone and "it runs" in told


def test_a_file_that_native_code_opens_cannot_be_read(tmp_path, graded):
    """The audit hook does not see it; the kernel does, where it has Landlock."""
    if not limits.landlock_abi():
        pytest.skip("this kernel has no Landlock: native code can read files")
    file = NORM.file(ROOT)
    body = f"""
        import torch
        source = torch.from_file({str(file)!r}, size={file.stat().st_size}, dtype=torch.uint8)
        space = {{}}
        exec(bytes(source.tolist()).split(b"def root_mean")[1], space)
        return x"""
    result = graded(submission(tmp_path, body))
    assert result.points == 0 and "Permission denied" in result.message, result


def test_what_surrounds_the_function_does_not_count(tmp_path, graded):
    """Code at the top of a submitted file is not run; its other functions are the reference's."""
    folder = submission(tmp_path, RIGHT, before="import os\nos._exit(0)\n")
    text = cut(NORM.file(folder).read_text(encoding="utf-8"), "Rows.unpad", "wrong")
    NORM.file(folder).write_text(text, encoding="utf-8")
    assert graded(folder).points in (1, 2)


@pytest.mark.parametrize("change, words", [
    (lambda file: file.unlink(), "is not in the submission"),
    (lambda file: file.write_text("def f(:"), "line 1: SyntaxError"),
    (lambda file: file.write_text("x = 1"), "defines no root_mean_square_norm"),
    (lambda file: (file.unlink(), file.symlink_to(NORM.file(ROOT))), "leads out of the submission"),
    (lambda file: file.write_bytes(b"\xff\xfe"), "cannot be read"),
    (lambda file: file.write_text("#" * 2_000_001), "more than 2,000,000 bytes")])
def test_a_submission_that_cannot_be_read_is_named(change, words, tmp_path, graded):
    folder = submission(tmp_path, RIGHT)
    change(NORM.file(folder))
    result = graded(folder)
    assert result.points == 0 and words in result.message


@pytest.mark.parametrize("body, words", [
    ("x.mean()", "output should be a tensor of shape (3, 6), is None"),
    ("return undefined", "NameError: name 'undefined' is not defined (minillmclf/models/layers"),
    ("return x.tolist", "a builtins.builtin_function_or_method was returned, where a torch.Tensor"),
    ("return x[0]", 'form, case "bf16": output has shape (6,), should have (3, 6)'),
    ("return x", 'numbers, case "vectors": output[0, 0] should be')])
def test_a_message_tells_what_is_wrong(body, words, tmp_path, graded):
    assert words in graded(submission(tmp_path, body)).message


def test_a_function_that_returns_nothing_is_named(tmp_path, graded):
    """Its caller, which cannot go on without a number, is not."""
    row = ROWS["9.2"]
    message = graded(submission(tmp_path, "if step < warmup: (step + 1) / (warmup + 1)", row),
                     row).message
    assert ": returns None: TypeError: float() argument" in message and "worker" not in message


def test_a_file_that_cannot_be_imported_is_named(tmp_path, workers):
    """In a student's own clone: an overlay does not come so far."""
    (tmp_path / "lessons").symlink_to(ROOT / "lessons")
    shutil.copytree(ROOT / "minillmclf", tmp_path / "minillmclf",
                    ignore=shutil.ignore_patterns("__pycache__", "datasets", "checkpoints"))
    file = ROWS["9.2"].file(tmp_path)
    file.write_text("x = (1\n", encoding="utf-8")
    found = grading.grade([ROWS["9.2"], ROWS["9.6"]], tmp_path,
                          lambda: grading.read_fixtures(["09"], ROOT), workers=workers)
    assert found[0].message == "its file cannot be imported: SyntaxError: '(' was never closed " \
        "(optim.py, line 1)"
    assert found[1].state == score.PASSED
    with pytest.raises(InputError, match="line 1: SyntaxError"):
        page.find("x = (1", "x")


# ---------------------------------------------------------------- the command

def called(capsys, *given):
    with pytest.raises(SystemExit) as end:
        run(lambda: command.main(list(map(str, given))))
    return end.value.code, *capsys.readouterr()


def test_an_overlay_by_the_command(tmp_path, capsys, workers, monkeypatch):
    """One function not started, one known-wrong variant; hidden cases; JSON and JUnit."""
    monkeypatch.setattr(grading, "Workers", lambda: workers)
    row = ROWS["2.3"]
    body = inspect.getsource(kit.exercise_of("02", "MergeHeads")
                             .variants["the last head stands first"]).split(":\n", 1)[1]
    folder = submission(tmp_path / "sub", textwrap.dedent(body).replace("rows.", "self."), row)
    text = cut(row.file(folder).read_text(encoding="utf-8"), NORM.name, NORM.not_started)
    row.file(folder).write_text(text, encoding="utf-8")
    files = tmp_path / "a.json", tmp_path / "a.xml"
    code, out, err = called(capsys, "2.3", "2.4", "--overlay", folder, "--reference", ROOT,
                            "--seed", "5", "--json", files[0], "--junit", files[1])
    assert (code, err) == (1, "")
    assert 'looks like "the last head stands first"' in out and "hint 1 of 2" in out
    assert "0/2   not started: see lessons/02_attention.md\n" in out
    assert out.splitlines()[-1] == "lesson 2: 1/4    next: 2.3"
    told = json.loads(files[0].read_text(encoding="utf-8"))
    assert [(each["id"], each["points"], each["state"]) for each in told["exercises"]] == \
        [("2.3", 1, "failed"), ("2.4", 0, "not started")]
    suite = ElementTree.parse(files[1]).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")


@pytest.mark.parametrize("given, words", [
    (["9.9"], "9.9: no such lesson or exercise; there are "),
    (["2", "--hint", "1"], "2 is a lesson"), (["2.1", "--hint", "9"], "has hints 1 to 5"),
    (["--hint", "1"], "name one exercise"), (["--overlay", "x"], "go together"),
    (["--overlay", "none", "--reference", str(ROOT)], "there is no such folder"),
    (["--seed", "1"], "needs --reference"), (["--seed", "1", "--fixtures", "x"], "give one of"),
    (["--fixtures", "nowhere"], "is not there: make it with"),
    (["--json", str(ROOT / "README.md")], "is there already"),
    (["--overlay", ".", "--reference", "/"], "there is no lessons/exercises/ there")])
def test_a_mistake_is_one_line(given, words, capsys):
    code, out, err = called(capsys, *given)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err


def test_a_clone_of_an_older_version_is_named(tmp_path, capsys):
    """Its lessons have no grader: that was part of the package."""
    (tmp_path / "lessons" / "exercises").mkdir(parents=True)
    (tmp_path / "lessons" / "exercises" / "kit.py").touch()
    code, out, err = called(capsys, "--overlay", ".", "--reference", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1) and "of the same version" in err


def test_a_hint_is_shown_and_remembered(capsys, monkeypatch):
    kept = []
    monkeypatch.setattr(output, "read_record", lambda root: {"points": {}, "hints": {}})
    monkeypatch.setattr(output, "remember", lambda root, record: kept.append(record))
    code, out, err = called(capsys, "2.1", "--hint", "2")
    assert (code, err) == (0, "") and out.startswith("2.1, hint 2 of 5: ")
    assert kept == [{"points": {}, "hints": {"2.1": [2]}}]
