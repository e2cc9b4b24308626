"""The runner, on a made-up lesson: what is true passes, and each kind of untruth is found."""
import os
import shutil
import socket

import pytest

from lessons.conftest import MadeUp
from lessons.run import main
from minillmclf.cli.parser import run

WHOLE = """
Text before.
```python
import torch
x = torch.tensor([1.0, 2.0])
print("sum", x.sum().item(), "of", len(x))
```

```python show=made.py:twice
```
```python raises=ZeroDivisionError
print("before")
1 / 0
```
```python
from matplotlib.figure import Figure
figure = Figure(figsize=(2, 2))
axes = figure.subplots()
axes.plot([0, 1, 2], [0.0, 1.0, 4.0])
axes.imshow(x.reshape(1, 2).numpy())
axes.bar([0, 1], [0.25, 0.75])
fig("07_line", figure, rtol=1e-2)
```
![A line](figures/07_line.svg)
```python
parity("layer 0", x, x + 0.5, atol=1.0)
```
```sh run
python -m minillmclf.labels --help
```
"""


def cell(code, info="python", out=None):
    text = f"```{info}\n{code}\n```\n"
    return text if out is None else f"{text}```text out\n{out}\n```\n"


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    """A folder with the made-up lesson after --update: all is true."""
    lesson = MadeUp(tmp_path_factory.mktemp("updated"), WHOLE)
    assert lesson.faults(update=True) == []
    return lesson.folder


@pytest.fixture
def whole(updated, made_up):
    lesson = made_up()
    shutil.copytree(updated, lesson.folder, dirs_exist_ok=True)
    return lesson


def test_update_makes_a_page_true_and_then_changes_nothing(whole):
    assert "sum 3.0 of 2\n```\n" in whole.text
    assert "before\nZeroDivisionError: division by zero\n```\n" in whole.text
    assert 'twice(x):\n    """Two times x."""\n    return 2 * x\n```\n' in whole.text
    assert "layer 0          largest difference 5.0e-01, equal within 1\n" in whole.text
    assert "usage: python -m minillmclf.labels" in whole.text
    assert whole.faults() == []
    before = {path: path.read_bytes() for path in whole.folder.rglob("*.*") if path.is_file()}
    assert len(before) == 4
    assert whole.faults(update=True) == []
    assert before == {path: path.read_bytes() for path in before}


def test_a_page_without_outputs_fails_at_each_cell(made_up):
    faults = made_up(WHOLE).faults()
    assert len(faults) == 6 and sum("drifted output" in each for each in faults) == 4


def test_a_stale_quotation_is_named_with_its_line(whole):
    whole.replace("2 * x", "x + x", whole.code)
    fault, = whole.faults()
    assert "07_made_up.md:14: stale quotation of made.py:twice" in fault
    assert "-     return 2 * x" in fault and "+     return x + x" in fault
    whole.replace("def twice", "def double", whole.code)
    assert "07_made_up.md:14: quotation of nothing" in whole.faults()[0]


@pytest.mark.parametrize("shown, passes", [
    ("sum 3.0 of 2", True), ("sum 3.1 of 2", False), ("sum 3.04~0.05 of 2", True),
    ("sum 3.04~0.03 of 2", False), ("sum -3.0~0.1 of 2", False), ("sum  3.0 of 2", False),
    ("sum 3.0 of 3", False), ("sum 3.0 of 2 ", False), ("sum 3.0", False),
    ("sum nan~9 of 2", False)])
def test_a_drifted_number_is_named_with_its_line(whole, shown, passes):
    whole.replace("sum 3.0 of 2", shown)
    faults = whole.faults()
    assert (faults == []) == passes
    if not passes:
        assert len(faults) == 1 and "07_made_up.md:5: drifted output" in faults[0]
        assert f"- {shown.rstrip()}" in faults[0] and "+ sum 3.0 of 2" in faults[0]


def test_update_keeps_tolerances_and_lines_that_hold(whole):
    whole.replace("sum 3.0 of 2", "sum 3.04~0.05 of 2")
    whole.faults(update=True)
    assert "sum 3.04~0.05 of 2\n" in whole.text
    whole.replace("sum 3.04~0.05 of 2", "sum 4.0~0.05 of 2")
    whole.faults(update=True)
    assert "sum 3.0~0.05 of 2\n" in whole.text and whole.faults() == []


@pytest.mark.parametrize("old, new, parts", [
    ("[1.0, 1.0]", "[1.0, 1.5]", ["axes 0, lines 0: 1.5 was stored at [1, 1], 1 came"]),
    ("[[1.0, 2.0]]", "[[1.0, 2.1]]", ["axes 0, images 0: 2.1 was"]),
    ("0.75]", "0.7]", ["axes 0, bars 0: 0.7 was stored at [1, 3]"]),
    ("[[1.0, 2.0]]", "[[1.0, 2.001]]", None),
    ('["", "", ""]', '["a", "", ""]', ["axes 0, text 0: 'a' was stored, '' came"]),
    ('[{"text"', '[{}, {"text"', ["2 axes were stored, 1 came"])])
def test_a_drifted_figure_is_named_with_its_number(whole, old, new, parts):
    whole.replace(old, new, whole.folder / "figures" / "07_line.json")
    faults = whole.faults()
    if parts is None:
        assert faults == []
    else:
        assert len(faults) == 1 and "07_made_up.md:27: figure 07_line has drifted" in faults[0]
        assert all(part in faults[0] for part in parts), faults[0]


def test_a_figure_is_there_and_on_the_page(whole):
    (whole.folder / "figures" / "07_line.svg").unlink()
    assert "figure 07_line is not there" in whole.faults()[0]
    whole.faults(update=True)
    whole.replace("![A line](figures/07_line.svg)", "![A line](figures/07_lime.svg)")
    assert [each.partition(": ")[2][:25] for each in whole.faults()] == [
        "figure 07_lime is drawn b", "figure 07_line is drawn, "]


def test_a_cell_that_should_raise_and_does_not(whole):
    whole.replace("1 / 0", "1 / 2")
    fault, = whole.faults()
    assert "07_made_up.md:19: should raise ZeroDivisionError and does not" in fault
    whole.replace("1 / 2", "1 / len(3)")
    assert "07_made_up.md:19: unexpected TypeError" in whole.faults()[0]
    whole.replace("raises=ZeroDivisionError", "raises=Exception")        # an ancestor will do
    whole.replace("1 / len(3)", "1 / 0")
    assert whole.faults() == []


def test_an_unexpected_traceback_has_the_line_of_the_page(made_up):
    lesson = made_up("\nText.\n" + cell("def half(x):\n    return x / none\n") + "\nText.\n"
                     + cell("y = 1\nprint(half(y))") + cell("print(2)", out="3"))
    ran = lesson.run()
    fault, = map(str, ran.faults)
    assert "07_made_up.md:12: unexpected NameError" in fault
    for line in (13, 6):
        assert f'07_made_up.md", line {line}, in' in fault
    assert "return x / none" in fault and "cells.py" not in fault
    assert ran.skipped == {16: "a cell above failed"}
    lesson.write("# L\n" + cell("x = 1\nprint(x"))
    fault, = lesson.faults()
    assert "unexpected SyntaxError" in fault and 'md", line 4' in fault


@pytest.mark.parametrize("call", [
    "socket.create_connection(('192.0.2.1', 80), timeout=5)", "socket.getaddrinfo('a.test', 80)",
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
    "__import__('urllib.request').request.urlopen('http://192.0.2.1', timeout=5)"])
def test_cells_and_commands_have_no_network(made_up, call):
    faults = made_up(cell(f"import socket\n{call}")).faults()
    assert len(faults) == 1 and "a lesson may not use the network" in faults[0]
    faults = made_up(cell(f"python -m timeit -n 1 -r 1 -s 'import socket' \"{call}\"",
                          "sh run")).faults()
    assert "exit code 1, not 0" in faults[0] and "a lesson may not use the network" in faults[0]
    assert socket.getaddrinfo("127.0.0.1", 80)                           # as before


def test_cells_share_a_namespace_a_folder_and_a_seed(made_up):
    here = os.getcwd()
    lesson = made_up(cell("from pathlib import Path\nx = 1\nPath('a.txt').write_text('a');")
                     + cell("import torch\nx += 1\nprint(x, Path('a.txt').read_text())\n"
                            "print(f'{torch.rand(1).item():.4f}')", out="2 a\n0.4963"))
    ran = lesson.run()
    assert ran.faults == [] and ran.left == ["a.txt"]
    assert os.getcwd() == here and not (lesson.folder / "a.txt").exists()


def test_what_does_not_ship_is_skipped_with_its_reason(made_up):
    load = cell("from minillmclf import load_tokenizer\nt = load_tokenizer('no-such')",
                "python needs=real")
    ran = made_up(load + cell("print(t)", "python needs=real", out="t") + cell(
        "print(3)", out="3")).run()
    assert ran.faults == [] and list(ran.skipped) == [3, 7] and list(ran.printed) == [13]
    assert all("no such model folder" in reason for reason in ran.skipped.values())
    ran = made_up(cell("python -m minillmclf.inspect no-such", "sh run needs=real")).run()
    assert ran.faults == [] and "no such model folder" in ran.skipped[3]
    assert made_up(load.replace(" needs=real", "")).faults()


def test_commands_of_a_page(made_up):
    command = cell("python -m minillmclf.labels \\\n  --no-such", "sh run exit=2")
    lesson = made_up(command)
    assert lesson.faults(update=True) == []
    assert "```text out\nerror: unknown flag --no-such" in lesson.text and lesson.faults() == []
    lesson.replace(" exit=2", "")
    assert "exit code 2, not 0" in lesson.faults()[0]
    assert "takes one command" in made_up(cell("ls /", "sh run")).faults()[0]


def test_the_command_prints_the_lesson_and_ends_with_1_at_a_fault(made_up, capsys):
    lesson = made_up(cell("print(2 + 2)", out="5") + cell("x = 2"))

    def call(*given):
        with pytest.raises(SystemExit) as end:
            run(lambda: main(list(map(str, given))))
        return end.value.code, *capsys.readouterr()
    code, out, _ = call(lesson.path)
    assert code == 1 and "   3  print(2 + 2)\n    | 4\n" in out
    assert f"{lesson.path}:3: drifted output\n    - 5\n    + 4\n" in out
    assert "2 cells and quotations, 0 skipped, 1 faults" in out
    assert [call(lesson.path, "--update")[0], call(lesson.path)[0]] == [0, 0]
    code, _, errors = call("99")
    assert (code, errors.count("\n")) == (2, 1) and "error: no lesson 99: there are" in errors
