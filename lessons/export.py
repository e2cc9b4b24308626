"""python -m lessons.export: writes a lesson as a notebook.

  python -m lessons.export 3 --ipynb                       03_encoder.ipynb, in this folder
  python -m lessons.export 3 --ipynb --out X.ipynb --source https://github.com/me/minillmclf

Its first cell installs the project where it is missing, as on Kaggle or Colab, from the address of
--source. The outputs are those of the page. A cell that should fail has the tag raises-exception,
so that "run all" goes on.
"""
import re
import subprocess

from minillmclf.cli.parser import Parser, run
from minillmclf.errors import InputError
from minillmclf.cli.outputs import check_out_file
from minillmclf.files import write_text

from .outputs import plain
from .page import LESSONS, ROOT, read

INSTALL = '''\
# Installs the project where it is missing, as on Kaggle or Colab.
import subprocess
import sys
from pathlib import Path

SOURCE = {source!r}
CLONE = Path("minillmclf-course").resolve()
try:
    from lessons.kit import fig, parity
except ImportError:
    if not SOURCE:
        raise SystemExit("write the address of the project's git repository into SOURCE")
    if not CLONE.exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", SOURCE, CLONE], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", f"{{CLONE}}[plots]"],
                   check=True)
    sys.path.insert(0, str(CLONE))
    from lessons.kit import fig, parity
import torch
torch.manual_seed(0);'''
FIGURE = re.compile(r"^!\[[^\]]*\]\(figures/([\w-]+)\.svg\)\n?", re.M)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def origin(root=ROOT):
    """The address from which this clone came, as anybody can reach it; "" if there is none."""
    done = subprocess.run(["git", "-C", root, "remote", "get-url", "origin"], capture_output=True,
                          text=True)
    address = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", done.stdout.strip())
    return re.sub(r"^(https?://)[^/@]*@", r"\1", address)            # no name, no password


def notebook(page, source=""):
    """A Page -> a notebook. source: the address of the project's git repository."""
    import nbformat.v4 as v4
    cells = [v4.new_code_cell(INSTALL.format(source=source))]
    place, lines = 0, page.text.splitlines(keepends=True)
    for cell in page.cells:
        if cell.kind in ("python", "sh"):
            cells += prose("".join(lines[place:cell.line - 2]), page, source)
            cells.append(code(cell, page))
            last = cell.output or cell
            place = last.line + last.text.count("\n")
    cells += prose("".join(lines[place:]), page, source)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"                                # the same in each export
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def code(cell, page):
    """A "python" or "sh" cell of a page -> a code cell, with the output and figures of the page."""
    import nbformat.v4 as v4
    text = cell.text.rstrip("\n")
    if cell.kind == "sh":
        text = "!" + re.sub(r"^python ", "{sys.executable} ", text)
    out = plain(cell.output.text) if cell.output else ""
    outputs = [v4.new_output("stream", name="stdout", text=out)] if out else []
    for name in drawn(cell):
        picture = page.path.parent / "figures" / f"{name}.svg"
        if picture.exists():
            data = {"image/svg+xml": picture.read_text(encoding="utf-8")}
            outputs.append(v4.new_output("display_data", data=data))
    tags = ["raises-exception"] if {"raises", "needs"} & set(cell.options) else []
    return v4.new_code_cell(text, outputs=outputs, metadata={"tags": tags} if tags else {})


def drawn(cell):
    """The names of the figures that a cell draws."""
    found = re.findall(r"\bfig\([\"']([\w-]+)", cell.text)
    return found if cell.kind == "python" else []


def prose(text, page, source):
    """A page between two cells -> [a markdown cell], or [] if nothing stands there.

    A figure that a cell draws is shown by the cell. Folded text is unfolded, for a notebook cannot
    fold a cell. Links into the repository become addresses.
    """
    import nbformat.v4 as v4
    names = {name for cell in page.cells for name in drawn(cell)}
    text = FIGURE.sub(lambda found: "" if found[1] in names else found[0], text)
    text = re.sub(r"<details>\s*<summary>(.*?)</summary>\n?", r"**\1**\n", text)
    text = text.replace("</details>", "")
    text = re.sub(r"^```python show=.*$", "```python", text, flags=re.M)
    text = LINK.sub(lambda found: linked(*found.groups(), page, source), text)
    return [v4.new_markdown_cell(text.strip())] if text.strip() else []


def linked(words, target, page, source):
    """A link of a page to a file of the repository -> its address there, or the words alone."""
    file, _, anchor = target.partition("#")
    path = (page.path.parent / file).resolve()
    if not source.startswith("https://") or not path.is_relative_to(ROOT):
        return words
    place = f"{source.removesuffix('.git')}/blob/HEAD/{path.relative_to(ROOT)}"
    return f"[{words}]({place}{'#' * bool(anchor)}{anchor})"


# ---------------------------------------------------------------- the command

def parse(arguments=None):
    p = Parser(prog="python -m lessons.export", description=__doc__)
    p.add_argument("lesson", help="a number, a name or a path")
    p.add_argument("--ipynb", action="store_true", required=True, help="as a Jupyter notebook")
    p.add_argument("--out", help="the file [NN_name.ipynb]")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    p.add_argument("--source", help="address of the project's git repository [that from which "
                                    "this clone came]")
    return p.parse_args(arguments)


def main(arguments=None):
    given = parse(arguments)
    page = read(given.lesson)
    out = given.out or f"{page.path.stem}.ipynb"
    out = check_out_file(out, given.overwrite, [("LESSON", page.path)])
    source = origin() if given.source is None else given.source
    try:
        import nbformat
    except ImportError:
        raise InputError("notebooks need nbformat, which is not installed: "
                         "pip install -e '.[lessons]'") from None
    write_text(out, nbformat.writes(notebook(page, source)) + "\n")
    print(f"{out}: {len(page.cells)} blocks of {page.path.relative_to(LESSONS.parent)}")
    if not source:
        print("This clone has no address: write that of the project into the first cell, or give "
              "--source")


if __name__ == "__main__":
    run(main)
