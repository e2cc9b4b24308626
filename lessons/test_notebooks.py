"""Every lesson as a notebook: executed, it prints what the page says; it installs the project."""
import json
import os
import subprocess
import sys
import tempfile
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

# A process that has loaded torch, of which each kernel is a copy, and the command that starts such
# a kernel for Jupyter. It ends when the kernel does, which alone keeps the connection open.
FORKS = """
import json, os, signal, socket, sys
import ipykernel.kernelapp, torch
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen()
    print("ready", flush=True)
    while True:
        asked, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            told = json.loads(asked.makefile().readline())
            os.environ.clear()
            os.environ.update(told["environment"])
            os.chdir(told["folder"])
            sys.argv = ["ipykernel_launcher", *told["arguments"]]
            ipykernel.kernelapp.launch_new_instance()
            os._exit(0)
        asked.close()
"""
ASK = """
import json, os, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX) as way:
    way.connect(sys.argv[1])
    told = {"environment": dict(os.environ), "folder": os.getcwd(), "arguments": sys.argv[2:]}
    way.sendall(json.dumps(told).encode() + b"\\n")
    way.recv(1)
"""


@pytest.fixture(scope="module")
def forked():
    """The name of a kernel that does not load torch anew, and where Jupyter finds it. Where no
    process may be forked that has loaded torch, it is the usual one."""
    if not sys.platform.startswith("linux"):
        yield "python3", ""
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        socket, spec = f"{folder}/s", Path(folder, "kernels", "forked", "kernel.json")
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({
            "argv": [sys.executable, "-c", ASK, socket, "-f", "{connection_file}"],
            "display_name": "forked", "language": "python"}), encoding="utf-8")
        with subprocess.Popen([sys.executable, "-c", FORKS, socket], stdout=subprocess.PIPE,
                              env=environment, cwd=folder) as server:
            assert server.stdout.readline() == b"ready\n"
            yield "forked", folder
            server.kill()


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


def execute(notebook, name="python3"):
    return nbclient.NotebookClient(notebook, timeout=120, kernel_name=name).execute()


def printed(cell):
    return "".join(out["text"] for out in cell["outputs"] if out.get("name") == "stdout")


def command(*given):
    with pytest.raises(SystemExit) as end:
        run(lambda: export.main(list(map(str, given))))
    return end.value.code


@pytest.mark.parametrize("path", all_pages(), ids=lambda path: path.stem)
def test_an_executed_notebook_prints_what_the_page_says(path, kernel, forked, monkeypatch):
    name, folder = forked
    monkeypatch.setenv("JUPYTER_PATH", folder)
    assert command(path, "--ipynb") == 0
    written = nbformat.read(kernel / f"{path.stem}.ipynb", as_version=4)
    nbformat.validate(written)
    done = [cell for cell in execute(written, name)["cells"] if cell["cell_type"] == "code"][1:]
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
