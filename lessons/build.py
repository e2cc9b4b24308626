"""The static site of the course: README, lessons, reference and measurements, as linked HTML files.

    python -m lessons.build OUT/                      # then open OUT/index.html in a browser

The files need no server and no network. The folders of the site are those of the repository:
lessons/00_map.md is OUT/lessons/00_map.html, and README.md is index.html. A file of the package
that a page links to or quotes has its own page. Here: which pages there are, the frame around each,
and links between them. site/markdown.py makes the pages. site/style.css and site/page.js go along,
and site/widgets/ for the pages that have a widget.
"""
import argparse
import os
import re
import shutil
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

from minillmclf.cli.parser import run
from minillmclf.errors import InputError
from minillmclf.cli.outputs import check_out_folder
from minillmclf.files import write_text

from .page import ROOT, WIDGETS, all_pages
from .site.columns import coloured, two_columns
from .site.markdown import page_of_text

SITE = Path(__file__).resolve().parent / "site"


@dataclass
class Document:
    """A page of the site. path: its source in the repository. ids: the anchors that it has.
    widgets: the names of its widgets."""
    path: Path
    title: str
    headings: list = field(default_factory=list)      # (level, anchor, HTML)
    ids: set = field(default_factory=set)
    widgets: set = field(default_factory=set)


class Site:
    """All pages, and what they ask for: links, anchors, and pages of quoted files."""

    def __init__(self, root=ROOT):
        self.root = Path(root).resolve()
        lessons, guides = self.root / "lessons", self.root / "lessons" / "guides"
        self.groups = {
            "Start": [self.root / "README.md", lessons / "README.md",
                      self.root / "checkpoints/README.md"],
            "Lessons": [lessons / "in_one_file.py", *all_pages(lessons)],
            "Beside the lessons": [guides / "resources.md", guides / "tools.md"],
            "For instructors": [guides / "instructors.md", guides / "assignments.md",
                                *sorted(guides.glob("mistakes_*.md"))],
            "Reference": sorted((lessons / "reference").glob("*.md")),
            "Measurements": sorted((lessons / "measurements").glob("*.md"),
                                   key=lambda path: (path.name != "README.md", path.name))}
        self.groups = {name: [path for path in paths if path.is_file()]
                       for name, paths in self.groups.items()}
        self.order = [path for paths in self.groups.values() for path in paths]
        self.documents = {path: Document(path, title_of(path)) for path in self.order}
        self.asked = []                               # (path, anchor, who asks: "file:line")

    def url(self, path, page):
        """The address of a file's page, from another page."""
        name = path.with_name("index.html") if path.name == "README.md" else \
            path.with_suffix(".html") if path.suffix == ".md" else Path(f"{path}.html")
        return Path(os.path.relpath(name, page.parent)).as_posix()

    def link(self, target, page, line):
        """What a Markdown link leads to, as an address of the site."""
        if re.match(r"[a-z]+:", target):
            return target
        file, _, anchor = target.partition("#")
        path = Path(os.path.normpath(page.parent / file)) if file else page
        where = f"{self.name(page)}:{line}"
        if not path.is_file() or self.root not in path.parents:
            raise InputError(f"{where}: there is no file {target}")
        self.documents.setdefault(path, Document(path, title_of(path)))
        self.asked.append((path, anchor, where))
        return (self.url(path, page) if file else "") + (f"#{anchor}" if anchor else "")

    def name(self, path):
        return path.relative_to(self.root).as_posix()

    def write(self, out):
        """Write all pages, also those that other pages ask for. -> how many"""
        written = set()
        while left := [path for path in self.documents if path not in written]:
            for path in left:
                written.add(path)
                body = page_of_text(self, path) if path.suffix == ".md" else \
                    page_of_code(self, path)
                target = out / self.url(path, self.root / "x")
                target.parent.mkdir(parents=True, exist_ok=True)
                write_text(target, framed(self, path, body))
        for path, anchor, where in self.asked:
            if anchor and anchor not in self.documents[path].ids:
                raise InputError(f"{where}: {self.name(path)} has no heading #{anchor}")
        for name in ("style.css", "page.js"):
            shutil.copyfile(SITE / name, out / name)
        shutil.copytree(WIDGETS, out / WIDGETS.name, dirs_exist_ok=True)
        return len(written)


def title_of(path):
    """A page's first heading; a code file's name."""
    if path.suffix == ".md":
        found = re.search(r"^# (.*)$", path.read_text(encoding="utf-8"), re.M)
        return found[1].replace("`", "") if found else path.stem
    return {"in_one_file.py": "The whole idea in one file"}.get(path.name, path.name)


# ---------------------------------------------------------------- the frame around a page

def framed(site, path, body):
    """A page's body -> the whole HTML file."""
    menu = "".join(f"<h2>{group}</h2><ul>{''.join(entry(site, each, path) for each in paths)}</ul>"
                   for group, paths in site.groups.items() if paths)
    turn = ""
    if path in site.order:
        at = site.order.index(path)
        turn = "".join(
            f'<a rel="{rel}" href="{site.url(site.order[to], path)}"><small>{word}</small> '
            f"{escape(site.documents[site.order[to]].title)}</a>" if 0 <= to < len(site.order)
            else "<span></span>"
            for rel, word, to in (("prev", "Previous", at - 1), ("next", "Next", at + 1)))
    base = os.path.relpath(site.root, path.parent) + "/"
    base, document = "" if base == "./" else base, site.documents[path]
    names = ["kit", *sorted(document.widgets)] if document.widgets else []
    scripts = "".join(f'<script defer src="{base}widgets/{name}.js"></script>\n' for name in names)
    return Template((SITE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(document.title), base=base, scripts=scripts, body=body,
        menu=menu, turn=turn, kind="text" if path.suffix == ".md" else "source")


def entry(site, path, page):
    here = ' aria-current="page"' if path == page else ""
    title = escape(site.documents[path].title)
    return f'<li><a{here} href="{site.url(path, page)}">{title}</a></li>'


def page_of_code(site, path):
    """A file of the repository, with an anchor for each line."""
    document, text = site.documents[path], path.read_text(encoding="utf-8")
    lines = text.rstrip("\n").split("\n")
    if path.suffix == ".py":
        code = two_columns(text, anchors=True)
    else:
        code = '<pre class="code"><code>' + "\n".join(
            f'<span id="L{n}">{line}</span>'
            for n, line in enumerate(coloured(text, path.suffix[1:]), 1)) + "</code></pre>"
    document.ids = {f"L{n}" for n in range(1, len(lines) + 1)}
    name = "" if document.title == path.name else f"<p><code>{site.name(path)}</code></p>"
    return f"<h1>{escape(site.name(path) if not name else document.title)}</h1>{name}{code}"


def main():
    parser = argparse.ArgumentParser(prog="python -m lessons.build",
                                     description="Write the static site of the course.")
    parser.add_argument("out", help="a new folder for the site")
    parser.add_argument("--overwrite", action="store_true", help="the folder may hold files")
    a = parser.parse_args()
    out = check_out_folder(a.out, False, a.overwrite)
    count = Site().write(out)
    print(f"{count} pages: open {out / 'index.html'}")


if __name__ == "__main__":
    run(main)
