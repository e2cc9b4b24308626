"""A cell of a table: a text, the name of a class, or the names of several classes.

Here: what such a cell may hold, and the order of names. Not here: which column is which
(examples.py). Each InputError begins with `where`, the place of the cell.
"""
import json
import math
import re

from ..errors import InputError

UNWRITABLE = re.compile("[\0\ud800-\udfff]")           # a null byte, half of a surrogate pair
LIST_AS_TEXT = re.compile(r"""[\[({]\s*['"].*['"],?\s*[])}]|\[[-+\d.,\s]*]|\[[^][]*,[^][]*]""",
                    re.DOTALL)                         # a list as a text: "['a', 'b']", "[a, b]"


def check_text(value, where: str) -> str:
    """Check a cell that must hold text."""
    if not isinstance(value, str):
        raise InputError(f"{where} must hold text, found {as_json(value)}: write a string")
    if UNWRITABLE.search(value):                    # JSON can hold both: "\u0000" and "\ud83d"
        raise InputError(f"{where} holds a null byte or half of a surrogate pair: remove it")
    return value


def as_json(value) -> str:
    """A cell for a message, as in JSON."""
    return json.dumps(value)[:40]


def label_name(value, where: str) -> str:
    """The name of a class: text without outer spaces; 1 and 1.0 -> "1", true -> "true"."""
    if isinstance(value, int) or isinstance(value, float) and math.isfinite(value):
        whole = isinstance(value, float) and value.is_integer()
        return json.dumps(int(value) if whole else value)
    if not isinstance(value, str) or value.strip().casefold() in ("", "nan", "null"):
        more = ' (several: ["a", "b"] with --multi-label)' * isinstance(value, list)
        raise InputError(f"{where} must hold a label, found {as_json(value)}: write one name, such "
                         f'as "yes" or "no"{more}, or remove the row')
    if LIST_AS_TEXT.fullmatch(value.strip()):
        raise InputError(f'{where} holds a list as a text, {as_json(value)}: write "a|b" with '
                         "--multi-label, or, of zeros and ones, a column for each class with "
                         "--label-column a,b,c")
    return check_text(value.strip(), where)


def label_set(value, where: str) -> str:
    """Any number of labels as one text: names in natural order, joined by bars; "" for none.

    "b | a" -> "a|b"; from JSONL also ["b", "a"] -> "a|b" and [] -> "".
    """
    if value is None:
        raise InputError(f'{where} must hold labels, found null: write "a|b" or ["a", "b"], and "" '
                         "or [] for a row without any")
    names = value if isinstance(value, list) else [value]
    if isinstance(value, str):
        names = value.split("|") if value.strip() else []
        if not all(name.strip() for name in names):
            raise InputError(f"{where} has an empty name beside a bar, {value[:40]!r}: write a "
                             "name on both sides of each bar")
    names = [label_name(name, where) for name in names]
    for name in names:
        if "|" in name:
            raise InputError(f"{where} has the label {name!r}, but a bar stands between names: "
                             "write each as an item of its own")
        if names.count(name) > 1:
            raise InputError(f"{where} names {name!r} twice: write each label of a row once")
    return "|".join(natural_order(names))


def split_label(label: str, multi_label=True) -> list[str]:
    """The names in a label: "a|b" -> ["a", "b"], "" -> []. multi_label=False: it is one name."""
    if not multi_label:
        return [label]
    return label.split("|") if label else []


def natural_order(labels) -> list[str]:
    """Numbers by value, then other names regardless of case: 2, 10, A, b."""
    def key(label):
        number = re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", label)
        return (0, float(label), "", label) if number else (1, 0.0, label.casefold(), label)
    return sorted(labels, key=key)
