"""The rules of the house, held by the code itself: width, unused names, the order of imports, the
size of functions, and the core tour, the files that a reader goes through first."""
import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minillmclf"
FILES = sorted(PACKAGE.rglob("*.py"))
# A file imports from its own folder and from those before it. Commands, which stand last, may
# import one another.
ORDER = ["errors", "files", "text", "models", "tuning", "training", "classify", "cli"]
LONGEST_FUNCTION, MOST_PARAMETERS, LONGEST_FILE = 45, 7, 300
# Read in this order, they are one way from text to a trained classifier.
TOUR = ["text/tokenizers/wordpiece.py", "text/batch.py", "models/layers.py", "models/bert.py",
        "models/weights.py", "classify/head.py", "classify/classifier.py", "training/losses.py",
        "training/optim.py", "training/loop.py", "training/metrics.py", "train.py",
        "cli/training_run.py"]
LONGEST_TOUR = 1_700
OPTIONAL = re.compile(
    r"preference|bradley|swap|multi.?label|several_labels|threshold|sliding|windowed|prefix_tuning|"
    r"virtual_tokens|soft prompt|torchrun|all_reduce|is_main_process|(?<!Data)parallel|fsdp|ddp|"
    r"cached|remember|last_token|recompute|checkpointing|4.?bit|quant", re.I)


def name_of(path):
    return str(path.relative_to(PACKAGE))


def room(names):
    """Where in ORDER a dotted name, split into parts, stands; commands come after all of it."""
    return ORDER.index(names[0]) if names[0] in ORDER else len(ORDER)


def imported(path):
    """(line, dotted name in the package, split into parts) of each import of our own modules."""
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[:len(here) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            names = [base] if base else [[alias.name] for alias in node.names]
            yield from ((node.lineno, each) for each in names if not each[0].startswith("__"))


def functions(tree):
    return [node for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def parameters(node):
    """How many parameters a function has; self and cls are not counted, *args and **kwargs count
    one each."""
    names = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    starred = bool(node.args.vararg) + bool(node.args.kwarg)
    return len(names) - (names[:1] in (["self"], ["cls"])) + starred


def test_ruff_finds_no_wide_line_and_no_unused_name():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format", "concise", "."],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_function_writes_csv():
    """In Python 3.11 csv.writer leaves a lone \\r unquoted, unless it is told to."""
    writers = [name_of(path) for path in FILES
               if re.search(r"csv\.(writer|DictWriter)", path.read_text(encoding="utf-8"))]
    assert writers == ["cli/tables.py"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    own = room(path.relative_to(PACKAGE).with_suffix("").parts)
    back = [f"line {line}: {'.'.join(names)}"
            for line, names in imported(path) if room(names) > own]
    assert back == [], f"{name_of(path)} imports from a folder that stands after its own"


def dotted(path):
    """A file of the package -> the parts of its module's name: text/data.py -> ("text", "data")."""
    names = path.relative_to(PACKAGE).with_suffix("").parts
    return names[:-1] if names[-1] == "__init__" else names


MODULES = {dotted(path): path for path in FILES}


def loaded(path, node):
    """What an import statement loads: modules of the package as tuples, others by their names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not node.level:
        return {node.module}
    here = path.relative_to(PACKAGE).parts[:-1]
    base = (*here[:len(here) - node.level + 1], *filter(None, (node.module or "").split(".")))
    return {(*base, alias.name) if (*base, alias.name) in MODULES else base for alias in node.names}


def loaded_at_the_top(names):
    """What a module loads by the statements at its top."""
    body = ast.parse(MODULES[names].read_text(encoding="utf-8")).body
    found = (loaded(MODULES[names], node) for node in body
             if isinstance(node, (ast.Import, ast.ImportFrom)))
    return set().union(*found) - {names, ()}


def test_no_circle_of_imports():
    """Between files, at their tops: repeatedly take away files that import none of those left."""
    needs = {names: loaded_at_the_top(names) for names in MODULES}
    while free := {names for names, wanted in needs.items() if not wanted & set(needs)}:
        needs = {names: wanted for names, wanted in needs.items() if names not in free}
    assert needs == {}


OPTIONAL_PACKAGES = {"matplotlib", "bitsandbytes"}
FSDP = "torch.distributed.fsdp"                # half a second more than torch
SLOW = ("torch", "numpy", "safetensors", FSDP)


@functools.cache
def reached():
    """{module: all that is loaded with it}; with a.b also the __init__.py of a."""
    everything = {names: loaded_at_the_top(names) for names in MODULES}
    for names, found in everything.items():
        found |= {names[:end] for end in range(1, len(names)) if names[:end] in MODULES}
    while True:
        more = {names: found.union(*(everything.get(each, ()) for each in found))
                for names, found in everything.items()}
        if more == everything:
            return everything
        everything = more


def slow_parts(names):
    """Those of SLOW that are loaded with a module of the package, or with another package."""
    return {slow for slow in SLOW for each in {names, *reached().get(names, ())}
            if isinstance(each, str) and (each + ".").startswith(slow + ".")}


def without_reason(path):
    """The imports inside a file's functions for which there is none of three reasons: the package
    may be missing; grade looks for the lessons first; --help, or an error in the flags, need not
    wait until torch or numpy is loaded."""
    commands = [names for names in MODULES if names[-1:] == ("__main__",) or len(names) == 1]
    quick = {each for names in commands for each in {names, *reached()[names]}}
    tree, here = ast.parse(path.read_text(encoding="utf-8")), dotted(path)
    for node in {each for function in functions(tree) for each in ast.walk(function)
                 if isinstance(each, (ast.Import, ast.ImportFrom))}:
        for names in loaded(path, node):
            package = names.partition(".")[0] if isinstance(names, str) else names[0]
            needed = package in OPTIONAL_PACKAGES or (package, here) == ("lessons", ("grade",))
            later = slow_parts(names) - slow_parts(here)
            if not (needed or later and (here in quick or FSDP in later)):
                yield f"line {node.lineno}: {names if isinstance(names, str) else '.'.join(names)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_import_inside_a_function_has_a_reason(path):
    assert list(without_reason(path)) == [], "move it to the top of the file"


def test_the_package_is_installed_without_the_lessons():
    """So grade alone imports them, inside a function, once it has found a clone."""
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if {"lessons", "tests"} & {name.partition(".")[0] for name in names}:
                found.append((name_of(path),
                              "at the top" if node in tree.body else "in a function"))
    assert found == [("grade.py", "in a function")]


def check_functions(tree):
    """Short functions of few parameters."""
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(tree)}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}
    many = {node.name: parameters(node) for node in functions(tree)}
    assert {name: count for name, count in many.items() if count > MOST_PARAMETERS} == {}


def test_a_file_is_read_at_one_sitting():
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {name for name, count in lines.items() if count > LONGEST_FILE} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "lessons" / "grader").glob("*.py")),
                         ids=lambda path: path.name)
def test_the_grader_keeps_the_rules_of_the_package(path):
    text = path.read_text(encoding="utf-8")
    check_functions(ast.parse(text))
    assert re.findall(r"import (?:transformers|peft|tokenizers|pickle)|torch\.load\(", text) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short_and_imports_stand_at_the_top(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    check_functions(tree)
    parts = path.relative_to(PACKAGE).parts
    if room((parts[0].removesuffix(".py"),)) < ORDER.index("cli"):
        inner = [f"line {each.lineno}" for node in functions(tree) for each in ast.walk(node)
                 if isinstance(each, ast.ImportFrom) and each.level]
        assert inner == [], "an import of the package's own inside a function"


def test_the_core_tour_is_short_and_names_no_optional_feature():
    texts = {name: (PACKAGE / name).read_text(encoding="utf-8") for name in TOUR}
    found = [f"{name}:{number}: {line.strip()}" for name, text in texts.items()
             for number, line in enumerate(text.splitlines(), 1) if OPTIONAL.search(line)]
    assert found == []
    assert sum(text.count("\n") for text in texts.values()) <= LONGEST_TOUR


def test_the_tour_is_the_table_of_contents():
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    places = [text.find(name) for name in TOUR]
    assert -1 not in places and places == sorted(places), (
        "minillmclf/__init__.py lists the tour in its order")
