"""A page of Markdown -> HTML. Beyond what GitHub shows:

- ```python show=FILE:NAME   two columns: docstring and comments beside the code (columns.py)
- ```mermaid                 drawn here, by flowchart.py, which says what it supports
- ```predict answer=0.83 tolerance=0.02   a question above a cell, whose output opens after a guess
- <!-- widget NAME(...) -->  a picture that moves, with the numbers that a cell gave (widgets/)
- $...$ and $$...$$          formulas, as MathML; so are ```math blocks
- lessons/NN_name.exercises.toml: what its exercises are worth, and their hints, below each one

A diagram, formula, link or anchor that cannot be set is an InputError with file and line.
"""
import os
import re
from html import escape
from pathlib import Path

import latex2mathml.converter
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

from minillmclf.errors import InputError

from ..page import WIDGET, exercises, find, kind_of, span, widget_of
from .columns import coloured, two_columns
from .flowchart import FlowchartError, draw

NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
TAGS = {"raises": "must fail with {}", "needs": "needs {} data or weights, which do not ship"}
OPENINGS = {"Remember": "remember", "Question": "question"}     # of paragraphs: "**Remember:** ..."


# ---------------------------------------------------------------- the page

def page_of_text(site, path):
    """A page of Markdown -> its HTML, with the table of contents below the first heading."""
    markdown = MarkdownIt("commonmark", {"html": True, "typographer": True})
    markdown.enable(["table", "strikethrough", "smartquotes"])
    markdown.use(dollarmath_plugin, allow_digits=False, allow_space=False)
    for rule in (fence, table_open, table_close, td_open, heading_open, paragraph_open, code_inline,
                 math_inline, math_block):
        markdown.add_render_rule(rule.__name__, rule)
    env = {"site": site, "path": path}
    tokens = markdown.parse(path.read_text(encoding="utf-8"), env)
    prepare(tokens, site, path, markdown)
    pair_predictions(tokens, env)
    if re.match(r"\d\d_", path.name):
        insert_exercises(tokens, site, path)
    html = markdown.renderer.render(tokens, markdown.options, env)
    first, end, rest = html.partition("</h1>")
    return first + end + contents(site.documents[path]) + rest


def contents(document):
    """The table of contents: headings of the second and third level, if there are several."""
    rows = [f'<li class="level-{level}"><a href="#{anchor}">{html}</a></li>'
            for level, anchor, html in document.headings if level in (2, 3)]
    return '<nav class="contents" aria-label="Contents of this page"><ol>' \
        f'{"".join(rows)}</ol></nav>' if len(rows) > 1 else ""


def prepare(tokens, site, path, markdown):
    """Set links, formulas, figures and headings, while the line of each is known."""
    document, line, figures = site.documents[path], 1, 0
    for at, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else line
        token.meta["where"] = f"{site.name(path)}:{line}"
        for child in token.children or ():
            child.meta["where"] = token.meta["where"]
            if child.type == "link_open":
                child.attrSet("href", site.link(child.attrGet("href"), path, line))
            elif child.type == "image":
                figures += 1
                child.type, child.tag = "html_inline", ""
                child.content = figure(site, child, path, figures)
        if token.type == "html_block" and token.content.startswith(WIDGET):
            token.content = widget(token, path, document)
        if token.type == "inline" and [c.type for c in token.children] == ["html_inline"] \
                and token.children[0].content.startswith("<figure"):
            tokens[at - 1].hidden = tokens[at + 1].hidden = True
        if token.type == "heading_open":
            tokens[at].meta["anchor"] = anchor = anchor_of(tokens[at + 1].content, document.ids)
            document.ids.add(anchor)
            words = markdown.renderer.renderInline(tokens[at + 1].children, markdown.options,
                                                   {"site": site, "path": path})
            words = re.sub(r"</?a\b[^>]*>", "", words)
            document.headings.append((int(token.tag[1]), anchor, words))


def anchor_of(heading, taken):
    """The anchor that GitHub gives to a heading."""
    name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    number = next(n for n in range(len(taken) + 1) if (f"{name}-{n}" if n else name) not in taken)
    return f"{name}-{number}" if number else name


def drop_repeated_ids(svg):
    """matplotlib gives equal pictures within a figure the same id: only the first keeps it."""
    seen = set()

    def once(found):
        new = found[1] not in seen
        seen.add(found[1])
        return found[0] if new else ""
    return re.sub(r' id="([^"]*)"', once, svg)


def figure(site, image, path, number):
    """An SVG file inside the page. Its names get a prefix, so that two figures do not share any."""
    where = image.meta["where"]
    file = Path(os.path.normpath(path.parent / image.attrGet("src")))
    if file.suffix != ".svg" or not file.is_file():
        raise InputError(f"{where}: there is no SVG file {image.attrGet('src')}")
    svg = re.search(r"<svg.*</svg>", file.read_text(encoding="utf-8"), re.S)[0]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1figure-{number}-", svg)
    svg = drop_repeated_ids(svg)
    words = escape(" ".join(image.content.split()))
    # On a phone it is two thirds as wide, no less, and moves in its box.
    width = re.match(r'<svg[^>]* width="([\d.]+)pt"', svg)
    least = f'style="min-width: {float(width[1]) * 4 / 3 * 0.68:.0f}px" ' if width else ""
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{words}" {least}', 1)
    return f'<figure><div class="drawing">{svg}</div><figcaption>{words}</figcaption></figure>'


def widget(token, path, document):
    """The place of a widget, hidden until its script runs, with its numbers inside."""
    where, text = token.meta["where"], token.content.removeprefix(WIDGET).partition("-->")[0]
    kind, name = widget_of(text, where)
    file = path.parent / "figures" / f"{name}.json"
    if not file.is_file():
        raise InputError(f"{where}: there is no file figures/{name}.json: python -m lessons.run "
                         f"{path.stem[:2]} --update")
    document.widgets.add(kind)
    numbers = file.read_text(encoding="utf-8").replace("<", "\\u003c")
    return (f'<section class="widget" data-widget="{kind}" hidden>'
            f'<script type="application/json">{numbers}</script></section>\n')


def options_of(info):
    return dict(word.split("=", 1) for word in info.split() if "=" in word)


def is_output(tokens, at):
    """Is this fence an output? Also a bare `text` fence directly below a cell is one."""
    info = tokens[at].info.split()
    below = at and tokens[at - 1].type == "fence" and tokens[at - 1].info.startswith("python")
    return info[:2] == ["text", "out"] or info == ["text"] and below


def pair_predictions(tokens, env):
    """Each ```predict fence belongs to the next output of its section."""
    open_question = None
    for at, token in enumerate([*tokens, Token("heading_open", "", 1)]):
        if token.type == "fence" and token.info.startswith("predict"):
            options = options_of(token.info)
            for name in ("answer", "tolerance"):
                if not re.fullmatch(NUMBER, options.get(name, "")):
                    raise InputError(f"{token.meta['where']}: predict needs {name}=NUMBER")
            open_question = token
        elif token.type == "fence" and is_output(tokens, at) and open_question:
            token.meta["predicted"], open_question = True, None
        elif token.type == "heading_open" and open_question:
            raise InputError(f"{open_question.meta['where']}: no output follows this question")


# ---------------------------------------------------------------- what each token becomes

def fence(self, tokens, at, options, env):
    """A fenced block: a diagram, a formula, a question, a quotation, an output, or a cell."""
    token = tokens[at]
    language = (token.info.split() or [""])[0]
    if language == "mermaid":
        try:
            drawn = draw(token.content)
        except FlowchartError as error:
            file, _, line = token.meta["where"].rpartition(":")
            raise InputError(f"{file}:{int(line) + 1 + error.line}: {error}") from None
        return f'<div class="diagram">{drawn}</div>\n'
    if language == "math":
        return formula(token.content, "block", token.meta["where"])
    if language == "predict":
        return question(token)
    if kind_of(token.info) == "show":
        return quoted(token, env)
    if is_output(tokens, at):
        return output(token)
    tags = [TAGS[name].format(value) for name, value in options_of(token.info).items()
            if name in TAGS]
    tag = f'<p class="tag">{escape("; ".join(tags))}</p>' if tags else ""
    code = "\n".join(coloured(token.content, {"sh": "bash"}.get(language, language)))
    return f'<div class="cell">{tag}<pre class="code"><code>{code}</code></pre></div>\n'


def output(token):
    """What a cell prints; `0.8312~2e-3` is shown as the number and what it may differ by."""
    text = re.sub(rf"({NUMBER})~({NUMBER}%?)", r'\1<span class="tolerance"> ±\2</span>',
                  escape(token.content.rstrip("\n"), quote=False))
    html = f'<pre><samp>{text}</samp></pre>'
    if token.meta.get("predicted"):
        return f'<details class="out"><summary>What it prints</summary>{html}</details>\n'
    return f'<div class="out">{html}</div>\n'


def question(token):
    """A form for a guess. page.js compares it, opens the next output, and keeps it."""
    given = options_of(token.info)
    words = MarkdownIt().renderInline(" ".join(token.content.split()))
    return (f'<form class="predict" data-answer="{given["answer"]}" '
            f'data-tolerance="{given["tolerance"]}"><label>{words} '
            '<input type="text" inputmode="decimal" autocomplete="off" size="8" name="guess">'
            '</label> <button type="submit">Compare</button> '
            '<output role="status"></output></form>\n')


def quoted(token, env):
    """A quotation of the package in two columns, with a link to its place in its file."""
    site, path = env["site"], env["path"]
    options = options_of(token.info)
    file, _, name = options["show"].partition(":")
    name = name or options.get("lines", "").partition("..")[0]
    where = token.meta["where"]
    if not (site.root / file).is_file():
        raise InputError(f"{where}: show={options['show']}: there is no file {file}")
    tree = find((site.root / file).read_text(encoding="utf-8"), name, f"{where}: {file}")
    first = span(tree)[0]
    target = os.path.relpath(site.root / file, path.parent)
    link = site.link(f"{target}#L{first}", path, where.rpartition(":")[2])
    return (f'<figure class="quotation"><figcaption><a href="{link}">{escape(file)}</a>, '
            f"{escape(name)}</figcaption>{two_columns(token.content)}</figure>\n")


def table_open(self, tokens, at, options, env):
    return '<div class="table"><table>\n'


def table_close(self, tokens, at, options, env):
    return "</table></div>\n"


def td_open(self, tokens, at, options, env):
    """A cell of a table; a short one, as a number with its range, stays on one line."""
    if len(tokens[at + 1].content) < 22:
        tokens[at].attrJoin("class", "short")
    return self.renderToken(tokens, at, options, env)


def heading_open(self, tokens, at, options, env):
    """A heading with its anchor; its number stands in a span of its own."""
    words, number = tokens[at + 1].children[0], ""
    found = re.match(r"(\d+\.|Lesson \d+)(:?) (.)", words.content)
    if found and words.type == "text":
        words.content = found[3].upper() + words.content[found.end():]
        number = f'<span class="number">{found[1]}<span class="colon">{found[2]}</span></span> '
    return f'<{tokens[at].tag} id="{tokens[at].meta["anchor"]}">{number}'


def paragraph_open(self, tokens, at, options, env):
    """**Remember:** and **Question.** at the beginning give a paragraph its look."""
    if tokens[at].hidden:
        return ""
    found = re.match(r"\*\*(\w+)[.:]\*\*", tokens[at + 1].content)
    kind = OPENINGS.get(found[1]) if found else None
    return f'<p class="{kind}">' if kind else "<p>"


def code_inline(self, tokens, at, options, env):
    """Code in a line; the path of a Python file of the repository is a link."""
    text, site = tokens[at].content, env["site"]
    short = ' class="short"' if len(text) < 22 else ""              # stays on one line
    html = f"<code{short}>{escape(text).replace('/', '/<wbr>')}</code>"
    inside = sum(token.nesting for token in tokens[:at] if token.type.startswith("link_"))
    if inside or not re.fullmatch(r"[\w./]+/\w+\.py", text) or not (site.root / text).is_file():
        return html
    target = os.path.relpath(site.root / text, env["path"].parent)
    return f'<a href="{site.link(target, env["path"], 0)}">{html}</a>'


def math_inline(self, tokens, at, options, env):
    return formula(tokens[at].content, "inline", tokens[at].meta["where"])


def math_block(self, tokens, at, options, env):
    return formula(tokens[at].content, "block", tokens[at].meta["where"])


def formula(text, display, where):
    """LaTeX -> MathML; a command that is not known or a brace that stands alone is an error."""
    braces = re.findall(r"(?<!\\)[{}]", text)
    if braces.count("{") != braces.count("}"):
        raise InputError(f"{where}: cannot set ${text.strip()}$: a brace has no partner")
    try:
        html = latex2mathml.converter.convert(text.strip(), display=display)
    except Exception as error:               # its errors have no common class
        raise InputError(f"{where}: cannot set ${text.strip()}$ ({type(error).__name__})") from None
    unknown = re.search(r"\\[a-zA-Z]+", re.sub(r"<annotation.*?</annotation>", "", html))
    if unknown:
        raise InputError(f"{where}: cannot set {unknown[0]}")
    return f'<div class="formula">{html}</div>\n' if display == "block" else html


# ---------------------------------------------------------------- exercises

def insert_exercises(tokens, site, path):
    """Below the text of each exercise: its points, and its hints to open one by one.

    The text of exercise 2.1 begins with a heading or a paragraph that begins with 2.1, and ends
    before the next heading or numbered paragraph. One without a text stands at the end.
    """
    rows = {row.id: row for row in exercises(path, path.parent, site.root)}
    starts, ends = {}, [len(tokens)]
    for at, token in enumerate(tokens):
        if token.type in ("heading_open", "paragraph_open") and token.level == 0:
            found = re.match(r"(?:\*\*)?(\d+\.\d*)\W", tokens[at + 1].content)
            if found and found[1] in rows:
                starts.setdefault(found[1], at)
            if token.type == "heading_open" or found:
                ends.append(at)
    places = {key: min(end for end in ends if end > starts.get(key, len(tokens) - 1))
              for key in rows}
    for key, at in sorted(places.items(), key=lambda item: (-item[1], -float(item[0]))):
        block = Token("html_block", "", 0)
        block.content = exercise_html(site, path, rows[key], key not in starts)
        tokens.insert(at, block)


def exercise_html(site, path, row, with_title):
    target = os.path.relpath(row.file(site.root), path.parent)
    line = span(find(row.file(site.root).read_text(encoding="utf-8"), row.name))[0]
    hints = "".join(f"<details><summary>Hint {number} of {len(row.hints)}</summary>"
                    f"<p>{MarkdownIt().renderInline(hint)}</p></details>"
                    for number, hint in enumerate(row.hints, 1))
    title = f"<p><b>{row.id} {escape(row.title)}</b></p>" if with_title else ""
    points = "1 point" if row.points == 1 else f"{row.points} points"
    return (f'<div class="exercise">{title}<p class="worth">{points}, {row.minutes} minutes: '
            f'<a href="{site.link(f"{target}#L{line}", path, 0)}"><code>{escape(row.name)}</code>'
            f"</a>. <code>python -m minillmclf.grade {row.id}</code></p>{hints}</div>\n")
