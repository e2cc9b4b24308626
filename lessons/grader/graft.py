"""Functions are cut out of a file, and put into it: by their qualified name, with ast.

Nothing in the files is executed or marked.
"""
import ast
import io
import re
import threading
import tokenize

from minillmclf.errors import InputError

LARGEST = 2_000_000            # bytes of a file of a submission
WIDTH = 100
PARSING = threading.Lock()     # Python 3.11 counts the depth of all threads' trees together


def parse(source):
    with PARSING:
        return ast.parse(source)


def find(source, name, where):
    """The syntax node of a function, "function" or "Class.method"; InputError if there is none."""
    try:
        node = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" line {error.lineno}:" if getattr(error, "lineno", None) else ""
        raise InputError(f"{where}:{line} {type(error).__name__}: "
                         f"{getattr(error, 'msg', error)}") from None
    for part in name.split("."):
        named = [each for each in getattr(node, "body", ()) if getattr(each, "name", None) == part]
        if not named:
            raise InputError(f"{where}: defines no {name}")
        node = named[-1]                                       # the last one counts, as in Python
    if not isinstance(node, ast.FunctionDef):
        raise InputError(f"{where}: {name} is no function")
    return node


def header_end(lines, node):
    """(line from 1, column) behind the colon that ends a function's `def ...:`."""
    text, depth = "".join(lines[node.lineno - 1:node.end_lineno]), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        depth += (token.string in "([{") - (token.string in ")]}") if token.string else 0
        if token.type == tokenize.OP and token.string == ":" and depth == 0:
            return node.lineno + token.end[0] - 1, token.end[1]
    raise AssertionError("ast has found a function without a colon")


def cut(source, name, message, where="the file"):
    """The source with the body of a function replaced: it raises NotImplementedError(message).

    Decorators, signature and docstring stay. Comments of the body go too.
    """
    node, lines = find(source, name, where), source.splitlines(keepends=True)
    indent = " " * (node.col_offset + 4)
    body = f'{indent}raise NotImplementedError("{message}")\n'
    if len(body) > WIDTH + 1:
        body = f'{indent}raise NotImplementedError(\n{indent}    "{message}")\n'
    line, column = header_end(lines, node)
    if ast.get_docstring(node, clean=False) is not None and node.body[0].lineno > line:
        head = lines[:node.body[0].end_lineno]
    else:
        head = [*lines[:line - 1], lines[line - 1].encode()[:column].decode() + "\n"]
        if node.body[0].lineno > line:                         # what follows the colon is a comment
            head[-1] = lines[line - 1]
    return "".join([*head, body, *lines[last_line(lines, node):]])


def last_line(lines, node):
    """The number of a function's last line, comments that are indented as its body included."""
    end = found = node.end_lineno
    for number, line in enumerate(lines[end:], end + 1):
        stripped = line.strip()
        if stripped and not (stripped.startswith("#")
                             and len(line) - len(line.lstrip()) > node.col_offset):
            break
        found = number if stripped else found
    return found


def without_variants(source, where="the cases"):
    """A file of cases without its known-wrong variants, each of which is nearly the solution.

    Their names stay. What stands at the top of the file and is used by no class is left out.
    """
    tree, lines = parse(source), source.splitlines(keepends=True)
    parts = [each for node in tree.body if isinstance(node, ast.ClassDef) for each in node.body]
    gone = [node for node in tree.body if defined(node) and not defined(node) & needed(tree, parts)]
    variants = [node for node in parts if defined(node) == {"variants"}]
    for node in sorted([*gone, *variants], key=lambda node: -node.lineno):
        indent, new = " " * node.col_offset, []
        if node in variants:
            if not isinstance(node.value, ast.Dict):
                raise InputError(f"{where}, line {node.lineno}: variants should be a dict, written "
                                 "out")
            names = [f"{indent}    {ast.literal_eval(key)!r}: None,\n" for key in node.value.keys]
            new = [f"{indent}variants = {{\n", *names, f"{indent}}}\n"]
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        lines[first - 1:node.end_lineno] = new
    return re.sub(r"\n{4,}", "\n\n\n", "".join(lines))


def defined(node):
    """The names that a statement at the top of a file or class gives a meaning; no imports."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return {each.id for target in targets if target for each in ast.walk(target)
            if isinstance(each, ast.Name)}


def needed(tree, parts):
    """The names that the statements of classes use, directly or not, but for their variants."""
    found, waiting = set(), [each for each in parts if defined(each) != {"variants"}]
    while waiting:
        used = {each.id for each in ast.walk(waiting.pop()) if isinstance(each, ast.Name)}
        waiting += [node for node in tree.body if defined(node) & (used - found)]
        found |= used
    return found


def graft(reference, submission, name, where="the submission"):
    """The reference's source with one function of the submission in it, and nothing else of it.

    The function keeps the reference's decorators and gets the submission's signature and body.
    """
    theirs, node = find(submission, name, where), find(reference, name, "the reference")
    theirs.decorator_list = []
    text = indented(theirs, node.col_offset // 4) + "\n"
    lines = reference.splitlines(keepends=True)
    return "".join([*lines[:node.lineno - 1], text, *lines[node.end_lineno:]])


def indented(node, levels):
    """The text of a node, 4 * levels blanks to the right; lines of a docstring stay as they are."""
    for _ in range(levels):
        node = ast.If(ast.Constant(True), [node], [])
    return "\n".join(ast.unparse(node).split("\n")[levels:])


def read_submitted(folder, relative):
    """The text of a submission's file. A link that leads out of the submission is not followed."""
    path = folder / relative
    if not path.is_file():
        raise InputError(f"{relative}: is not in the submission")
    if folder.resolve() not in path.resolve().parents:
        raise InputError(f"{relative}: is a link that leads out of the submission")
    if path.stat().st_size > LARGEST:
        raise InputError(f"{relative}: has more than {LARGEST:,} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{relative}: cannot be read ({error})") from None
