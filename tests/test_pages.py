"""The pages hold what they say: links, paths, commands and flags exist, and the README is short."""
import re
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from small import forked_program

import minillmclf
from minillmclf import Classifier
from minillmclf.cli.settings import ALIASES, flag
from minillmclf.models.backbone import Backbone

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MEASURED = sorted((ROOT / "lessons" / "measurements").glob("*.md"))
REFERENCE = sorted((ROOT / "lessons" / "reference").glob("*.md"))
LESSONS = sorted((ROOT / "lessons").glob("[0-9a-z]*.md"))
CARDS = sorted((ROOT / "checkpoints").glob("README.md")) + [
    ROOT / "checkpoints" / name / "README.md" for name in ("mini-bert", "mini-llama", "mini-t5")]
COURSE = ROOT / "lessons" / "README.md"
GUIDES = sorted((ROOT / "lessons" / "guides").glob("*.md"))
PAGES = [README, COURSE, *LESSONS, *GUIDES, *REFERENCE, *MEASURED, *CARDS]
# in backticks with a slash, and no path of the repository: what a reader makes, fetches or has
ELSEWHERE = re.compile(r"runs/|merged/|adapter/$|shared/weights$|checkpoints/mine|microsoft/")
# flags of pytest, torchrun, hf and pip, and of every command, which argparse does not list
OTHERS = {"--dist", "--nproc-per-node", "--local-dir", "--include", "--no-deps", "--help"}
FENCE = re.compile(r"^```(.*?)\n(.*?)^```", re.S | re.M)


def name_of(path):
    return str(path.relative_to(ROOT))


def prose(text):
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(path):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path, text):
    """The links of a page that lead nowhere; addresses of the network are not looked at."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text))):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if "://" not in target and (not there.exists() or anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken


def missing_paths(path, text):
    """The paths in backticks that are neither in the repository nor beside the page."""
    spans = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/[\w.-]*)`", prose(text))
    scripts = re.findall(r"python (?!show=)(\S+/\S+\.py)\b", text)
    return [span for span in [*spans, *scripts] if not ELSEWHERE.match(span)
            and not any((place / span).exists() for place in (ROOT, path.parent))]


def missing_modules(text):
    named = set(re.findall(r"-m ((?:minillmclf|tests|lessons)(?:\.[a-z_]\w*)+)", text))
    places = {name: ROOT / name.replace(".", "/") for name in named}
    return [name for name, place in places.items()
            if not place.with_suffix(".py").exists() and not (place / "__main__.py").exists()]


def commands(text):
    """Each command line of a page's sh blocks -> (the command's name, its flags)."""
    for kind, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if kind.startswith("sh") else ():
            found = re.search(r"-m (?:minillmclf|tests|lessons)\.([\w.]+)(.*)",
                              line.partition(" #")[0])
            if found:
                yield found[1], re.findall(r"(?<!\S)--[a-z][\w-]*", found[2])


def flags_in(text):
    """The flags that a page names, but those of commands that are not ours."""
    text = re.sub(r"^(python tests/|python -m pip|pip|hf) .*$", "", text.replace("\\\n", " "),
                  flags=re.M)
    text = re.sub(r"`(python tests/|pip )[^`]*`", "", text)
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def run(*arguments):
    """What `python -m ARGUMENTS` prints, run in a fork of a process that has torch."""
    code, out, error = forked_program("-c", RUN, *arguments)
    assert code == 0, error
    return out


RUN = """
import os, runpy, sys
os.environ["COLUMNS"], sys.argv = "200", sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def of_the_course():
    """The name of each command of the course -> its module."""
    files = [path for path in (ROOT / "lessons").glob("*.py")
             if "Parser(prog=\"python -m lessons." in path.read_text(encoding="utf-8")]
    return {path.stem: f"lessons.{path.stem}" for path in files} | {
        "exercises.make": "lessons.exercises.make"}


@cache
def parsers():
    """The name of each command -> the flags that its --help lists."""
    listed = re.findall(r"^  (\w+) ", run("minillmclf"), re.M)
    names = {name: f"minillmclf.{name}" for name in listed}
    helps = {name: run(module, "--help")
             for name, module in {**names, "bench": "tests.bench", **of_the_course()}.items()}
    return {name: set(re.findall(r"^  (?:-\w, )?(--[a-z][\w-]*)", text, re.M))
            for name, text in helps.items()}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_paths_and_modules_of_a_page_exist(path):
    text = path.read_text(encoding="utf-8")
    assert broken_links(path, text) == []
    assert missing_paths(path, text) == []
    assert missing_modules(text) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_each_command_line_has_flags_that_its_command_knows(path):
    known = parsers()
    unknown = [(name, flag) for name, flags in commands(path.read_text(encoding="utf-8"))
               for flag in flags if flag not in known[name] | OTHERS]
    assert unknown == []


@pytest.mark.parametrize("path", [README, COURSE, *LESSONS, *GUIDES, *REFERENCE], ids=name_of)
def test_each_flag_in_the_text_is_known_to_a_command(path):
    known = set.union(*parsers().values()) | OTHERS
    text = path.read_text(encoding="utf-8")
    if path.name == "commands.md":
        text = text.replace(other_names(text), "")
    assert flags_in(text) - known == set()


def other_names(text):
    """The part of the page of commands that lists hidden flags."""
    return re.search(r"^### Other names of flags\n.*?(?=^### )", text, re.M | re.S)[0]


def test_each_other_name_of_a_flag_is_listed():
    page = (ROOT / "lessons" / "reference" / "commands.md").read_text(encoding="utf-8")
    pairs = {flag(name) for pair in ALIASES.items() for name in pair}
    assert flags_in(other_names(page)) == pairs | {"--config"}


def test_each_flag_of_a_command_is_on_the_page_of_commands():
    page = flags_in((ROOT / "lessons" / "reference" / "commands.md").read_text(encoding="utf-8"))
    known = [flags for name, flags in parsers().items() if name not in of_the_course()]
    assert set.union(*known) - page == set()


def test_the_readme_is_short_and_sets_up_in_two_commands():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 220
    block = re.search(r"^```sh setup\n(.*?)^```", text, re.S | re.M)[1].strip().splitlines()
    assert len(block) == 2


@pytest.mark.parametrize("path", [README, COURSE, *LESSONS, *GUIDES, *REFERENCE, *MEASURED],
                         ids=name_of)
def test_lines_are_at_most_100_columns_but_in_tables_and_output(path):
    text = re.sub(r"^```text(?: out)?\n.*?^```", "", path.read_text(encoding="utf-8"),
                  flags=re.S | re.M)
    wide = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert wide == []


def part_of_tree(folder):
    """The lines of the tree under a folder: those below its own that are further in."""
    lines = (ROOT / "lessons" / "reference" / "tree.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{folder}/"))
    indent = len(lines[start]) - len(lines[start].lstrip())
    inside = takewhile(lambda line: not line.strip() or len(line) - len(line.lstrip()) > indent,
                       lines[start + 1:])
    return "\n".join([lines[start], *inside])


def test_the_tree_names_every_module():
    for path in [*(ROOT / "minillmclf").rglob("*.py"), *(ROOT / "lessons").glob("*.py")]:
        if path.name not in ("__init__.py", "__main__.py", "conftest.py", "figures.py") \
                and not path.name.startswith("test_"):
            assert re.search(rf"\b{path.name}\b", part_of_tree(path.parent.name)), (
                f"the tree has no {path.name} under {path.parent.name}/")
    assert "bert.py" not in part_of_tree("tuning") and "wordpiece.py" in part_of_tree("text")


@pytest.mark.parametrize("path", [README, *GUIDES, *REFERENCE, *MEASURED, *CARDS], ids=name_of)
def test_what_python_lines_call_exists(path):
    """`model.NAME(` is a method of a classifier or a body, `minillmclf.NAME` a public name."""
    assert unknown_calls(path.read_text(encoding="utf-8")) == []


def unknown_calls(text):
    """The methods of a model, and the names of the package, that a page calls and nothing has."""
    blocks = [code for kind, code in FENCE.findall(text) if kind == "python"]
    code = "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose(text))])
    methods = set(re.findall(r"\bmodel\.(\w+)\(", code))
    names = set(re.findall(r"\bminillmclf\.(\w+)\(", code))
    return ([f"model.{name}" for name in sorted(methods)
             if not hasattr(Classifier, name) and not hasattr(Backbone, name)]
            + [f"minillmclf.{name}" for name in sorted(names) if not hasattr(minillmclf, name)])


def test_a_fault_of_each_kind_is_found():
    page = ROOT / "lessons" / "reference" / "commands.md"
    text = ("[a](nowhere.md) [b](files.md#nothing) [c](files.md#splits) `lessons/none.md` "
            "`minillmclf/train.py`\n"
            "```sh\npython -m minillmclf.none --lr 1 \\\n  --no-flag 2\n```\n")
    assert broken_links(page, text) == ["nowhere.md", "files.md#nothing"]
    assert missing_paths(page, text) == ["lessons/none.md"]
    assert missing_modules(text) == ["minillmclf.none"]
    assert list(commands(text)) == [("none", ["--lr", "--no-flag"])]
    assert flags_in(text) == {"--lr", "--no-flag"}
    assert unknown_calls("`model.write(x)`\n```python\nmodel.predict(minillmclf.nothing())\n```\n"
                         ) == ["model.write", "minillmclf.nothing"]
