"""Every lesson as a notebook: executed, it prints what the page says; it installs the project."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lessons import export
from lessons.outputs import difference
from lessons.page import ROOT, all_lessons, all_pages, read
from minillmclf.cli.parser import run

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[lessons]'")
nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[lessons]'")
pytest.importorskip("ipykernel", reason="pip install -e '.[lessons]'")

PAGE = """# Lesson 7: made up
See [the code](made.py), [it](https://a.test/x) and [below](#1-a).
```python
print(3)
```
```text out
3.1~0.2
```
<details><summary>Answer</summary>

Text.
```python raises=ZeroDivisionError
1 / 0
```
```text out
ZeroDivisionError: division by zero
```
</details>

```sh run
python -m minillmclf.labels --help
```
```python show=made.py:twice
def twice(x):
```
```python
from matplotlib.figure import Figure
fig("07_x", Figure())
print("after")
```
![x](figures/07_x.svg)
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Notebooks are executed in an empty folder, by this Python, with this clone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def execute(notebook):
    return nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()


def printed(cell):
    return "".join(out["text"] for out in cell["outputs"] if out.get("name") == "stdout")


def command(*given):
    with pytest.raises(SystemExit) as end:
        run(lambda: export.main(list(map(str, given))))
    return end.value.code


@pytest.mark.parametrize("path", all_pages(), ids=lambda path: path.stem)
def test_an_executed_notebook_prints_what_the_page_says(path, kernel):
    assert command(path, "--ipynb") == 0
    written = nbformat.read(kernel / f"{path.stem}.ipynb", as_version=4)
    nbformat.validate(written)
    done = [cell for cell in execute(written)["cells"] if cell["cell_type"] == "code"][1:]
    cells = [cell for cell in read(path).cells if cell.kind in ("python", "sh")]
    assert len(done) == len(cells)
    for cell, came in zip(cells, done):
        if cell.kind == "python" and not {"raises", "needs"} & set(cell.options):
            expected = cell.output.text if cell.output else ""
            assert difference(expected, printed(came)) is None, f"{path.name}:{cell.line}"


def test_each_part_of_a_page_becomes_a_cell(made_up, kernel):
    lesson = made_up(PAGE.partition("\n")[2])
    cells = export.notebook(read(7, lesson.folder))["cells"]
    assert [cell["cell_type"][0] for cell in cells] == list("cmcmccmc")
    text = "\n".join(cell["source"] for cell in cells)
    assert "details" not in text and "show=" not in text and "figures/" not in text
    assert "See the code, [it](https://a.test/x) and [below](#1-a)." in text
    assert "**Answer**" in text
    assert cells[2]["outputs"][0]["text"] == "3.1\n"
    assert cells[4]["metadata"]["tags"] == ["raises-exception"]
    assert cells[5]["source"] == "!{sys.executable} -m minillmclf.labels --help"
    done = execute(export.notebook(read(7, lesson.folder)))["cells"]
    assert "ZeroDivisionError" in done[4]["outputs"][0]["ename"]
    assert "usage:" in printed(done[5]) and "after" in printed(done[7])
    pictures = [out for out in done[7]["outputs"] if "image/svg+xml" in out.get("data", {})]
    assert len(pictures) == 1


def test_links_lead_to_the_address(made_up):
    page = read(all_lessons()[0])
    cells = export.notebook(page, "https://a.test/me/course.git")["cells"]
    text = "\n".join(cell["source"] for cell in cells)
    assert "](https://a.test/me/course/blob/HEAD/lessons/in_one_file.py)" in text
    assert "](https://a.test/me/course/blob/HEAD/README.md)" in text


def test_the_first_cell_installs_the_project_where_it_is_missing(kernel, monkeypatch):
    """A clone of a repository with a lessons/kit.py, and a pip that notes what it was asked."""
    source, fake = kernel / "source", kernel / "fake"
    for name, text in (("lessons/__init__.py", ""), ("lessons/kit.py", "fig, parity = 1, 2\n")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@a.test",
                                                 "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=source, check=True)
    (fake / "pip").mkdir(parents=True)
    (fake / "pip" / "__init__.py").touch()
    (fake / "pip" / "__main__.py").write_text(
        "import json, sys\njson.dump(sys.argv[1:], open('asked.json', 'w'))\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(fake))
    cell = export.INSTALL.format(source=str(source)) + "\nprint(fig, parity)\n"
    for _ in range(2):                                        # again, after a restart
        done = subprocess.run([sys.executable, "-c", cell], capture_output=True, text=True)
        assert (done.stdout, done.returncode) == ("1 2\n", 0), done.stderr
    asked = json.loads(Path("asked.json").read_text())
    assert asked == ["install", "-q", "-e", f"{kernel / 'minillmclf-course'}[plots]"]
    done = subprocess.run([sys.executable, "-c", export.INSTALL.format(source="")],
                          capture_output=True, text=True, cwd=os.sep)
    assert "write the address" in done.stderr and done.returncode == 1


@pytest.mark.parametrize("address, public", [
    ("https://a.test/me/course.git", "https://a.test/me/course.git"),
    ("git@a.test:me/course.git", "https://a.test/me/course.git"),
    ("ssh://git@a.test/me/course", "https://a.test/me/course"),
    ("https://me:secret@a.test/me/course", "https://a.test/me/course"), (None, "")])
def test_the_address_of_a_clone_names_nobody(tmp_path, address, public):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if address:
        subprocess.run(["git", "remote", "add", "origin", address], cwd=tmp_path, check=True)
    assert export.origin(tmp_path) == public


def test_a_notebook_is_the_same_each_time_and_replaces_nothing(kernel, capsys):
    assert command("0", "--ipynb", "--source", "") == 0
    assert "This clone has no address" in capsys.readouterr().out
    first = Path("00_map.ipynb").read_bytes()
    assert command("0", "--ipynb", "--out", "00_map.ipynb") == 2
    assert command("0", "--ipynb", "--source", "", "--overwrite") == 0
    assert Path("00_map.ipynb").read_bytes() == first
