"""A quotation in two columns: docstrings and comments on the left, beside the code on the right.

What stands on lines of its own goes left: docstrings, and comments before the lines that they are
about. A comment at the end of a line belongs to that line, as its shapes do, and stays there.
"""
import ast
import io
import re
import tokenize
from html import escape
from textwrap import dedent

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from ..page import span


def coloured(text, language):
    """Source text -> a list of its lines in HTML, with the classes of Pygments."""
    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False)
    return highlight(text.rstrip("\n"), lexer, HtmlFormatter(nowrap=True)).rstrip("\n").split("\n")


def docstrings(tree):
    """First and last line of each docstring -> its text."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, holders) and ast.get_docstring(node):
            yield node.body[0].lineno, node.body[0].end_lineno, ast.get_docstring(node)


def own_lines(code):
    """Number of each line that holds nothing but a comment -> the comment without its #."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {token.start[0]: re.sub(r"^# ?", "", token.string) for token in tokens
            if token.type == tokenize.COMMENT and not token.line[:token.start[1]].strip()}


def notes(code):
    """-> [(first line, last line, text)] of all docstrings and blocks of comments, in order."""
    found = list(docstrings(ast.parse(code)))
    block = None
    for number, text in sorted(own_lines(code).items()):
        if block and block[1] == number - 1:
            block[1], block[2] = number, f"{block[2]}\n{text}"
        else:
            block = [number, number, text]
            found.append(block)
    return sorted(tuple(each) for each in found)


def rows(code):
    """-> [(note, first line, [numbers of its code lines])]: what stands side by side.

    A docstring stands beside its `def` line; so the lines from there on are its row.
    """
    found, lines = notes(code), code.splitlines()
    hidden = {n for first, last, _ in found for n in range(first, last + 1)}
    starts = {}
    tree = ast.parse(code)
    heads = {node.body[0].lineno: span(node)[0] for node in ast.walk(tree)
             if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.body}
    for first, _, text in found:
        is_docstring = lines[first - 1].lstrip()[:1] != "#"
        begin = heads.get(first, first) if is_docstring else first
        starts[begin] = f"{starts[begin]}\n\n{text}" if begin in starts else text
    made = [("", 1, [])]
    for number in range(1, len(lines) + 1):
        if number in starts:
            made.append((starts[number], number, []))
        if number not in hidden:
            made[-1][2].append(number)
    return joined(made, lines)


def joined(made, lines):
    """Rows without code lend their note to the next row."""
    kept = []
    for text, begin, numbers in made:
        if kept and not any(lines[n - 1].strip() for n in kept[-1][2]):
            before, begin, _ = kept.pop()
            text = "\n\n".join(filter(None, (before, text)))
        kept.append((text, begin, numbers))
    return kept


def note_html(text):
    """A docstring's text: paragraphs, lists and indented blocks as they are, `code`."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        words = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(paragraph, quote=False))
        rule = re.fullmatch(r"-{3,} *(.+?) *-{3,}(\n.*)?", words, re.S)
        if rule:                             # "# --- 1. A text becomes ids ----------"
            parts.append(f"<h3>{rule[1]}</h3>")
            words = (rule[2] or "").strip("\n")
        shaped = re.match(r"  |- ", words)
        parts.append(f'<pre>{dedent(words)}</pre>' if shaped
                     else f"<p>{words}</p>" if words else "")
    return "".join(parts)


def two_columns(code, first=1, anchors=False):
    """Python code -> the HTML of its rows. first: number of its first line in its file.

    Code that is no whole syntax, as some lines out of a function, is one column.
    """
    code = dedent(code).rstrip("\n") + "\n"
    html = coloured(code, "python")
    try:
        made = rows(code)
    except (SyntaxError, tokenize.TokenError):
        made = [("", 1, list(range(1, len(html) + 1)))]
    parts = []
    for text, begin, numbers in made:
        while numbers and not html[numbers[-1] - 1].strip():
            numbers.pop()
        while numbers and not html[numbers[0] - 1].strip():
            numbers.pop(0)
        mark = f' id="L{begin + first - 1}"' if anchors else ""
        shown = "\n".join(
            f'<span id="L{n + first - 1}">{html[n - 1]}</span>' if anchors and n != begin
            else html[n - 1] for n in numbers)
        parts.append(f'<div class="note"{mark}>{note_html(text) if text else ""}</div>'
                     f'<pre class="code"><code>{shown}</code></pre>')
    return f'<div class="columns">{"".join(parts)}</div>'
