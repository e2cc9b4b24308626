"""How a task is put into words: wordings that suit any task, templates and label texts as a person gives them.

The words that stand for a class are its label texts ("verbalizer": Schick and Schuetze 2021, arXiv:2001.07676). Not here:
what a template means (prompt.py), which tokens a label text becomes (classify/label_text/labels.py).
"""
import json
import os
import re
from pathlib import Path

from ...errors import InputError
from ...files import short
from ...files import read_json

WORDINGS = (                      # for any task with one text; several ones, for the wording alone can move accuracy
    "Text: {text}\nLabel: {label}",
    "Input: {text}\nClass: {label}",
    "Passage: {text}\nCategory: {label}",
    "Message: {text}\nAnswer: {label}",
    "Text: {text}\nThe right label is {label}",
)


def wordings(fields):
    """WORDINGS for these fields: {text} becomes the only field; for several, "Text A: {premise}\\nText B: ..."."""
    if len(fields) == 1:
        return tuple(wording.replace("{text}", f"{{{fields[0]}}}") for wording in WORDINGS)
    several = []
    for wording in WORDINGS:
        noun, rest = wording.split(": {text}")
        lines = [f"{noun} {chr(ord('A') + i)}: {{{field}}}" for i, field in enumerate(fields)]
        several.append("\n".join(lines) + rest)
    return tuple(several)


def default_template(fields):
    """The template text that is used where none is given: the first of `wordings`."""
    return wordings(fields)[0]


def read_template(value):
    """A template or instruction from the command line: the path of a file, or else the text itself.

    Of a file all is kept but one newline at its end, a chat format for example. On a command line a newline is hard to
    type, so in a text the two characters \\n mean one, and \\t a tab. Raises InputError if a file cannot be read.
    """
    if not os.path.isfile(value):
        return value.replace("\\n", "\n").replace("\\t", "\t")
    try:
        return Path(value).read_text(encoding="utf-8-sig").removesuffix("\n")     # "-sig": no byte order mark
    except OSError as error:
        raise InputError(f"{value}: cannot be read ({error.strerror}): check its permissions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{value}: not UTF-8 at byte offset {error.start}: save the file as UTF-8") from None


def read_label_texts(value, labels):
    """The words that stand for each class: {label: [text, ...]}, in the order of `labels`, without outer white space.

    value: "" for the names themselves, with spaces for _ and - (a - in front stays: "-1" is a number); or an object
    {label: text or list of texts}: a dict, JSON text that begins with "{", or the path of a JSON file. Raises InputError if a label
    is missing or unknown, a text is blank, or the same text comes twice: a model could not tell the classes apart.
    """
    if isinstance(value, dict):
        where, said = "label texts", value
    elif not value:
        where, said = "label texts", {label: re.sub("_|(?<!^)-", " ", label) for label in labels}
    elif value.lstrip().startswith("{"):
        where, said = "label texts", _parse(value)
    else:
        where, said = str(value), read_json(value)
    for problem, names in (("no text for", set(labels) - set(said)), ("no such class as", set(said) - set(labels))):
        if names:
            raise InputError(f"{where}: {problem} {', '.join(map(repr, sorted(names)))}: name each of the "
                             f"{len(labels)} classes once: {', '.join(map(repr, labels))}")
    texts = {label: said[label] if isinstance(said[label], list) else [said[label]] for label in labels}
    _check_label_texts(texts, where)
    return {label: [text.strip() for text in texts[label]] for label in labels}


def _parse(value):
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"label texts {short(value)}: not valid JSON ({error}): write "
                         '{"label": "text", ...}') from None


def _check_label_texts(texts, where):
    owner = {}                                                     # text -> the class that it stands for
    for label in texts:
        if not texts[label]:
            raise InputError(f"{where}: the list of {label!r} is empty: give the class at least one text")
        for text in texts[label]:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: {short(label)} has {json.dumps(text)[:40]}: write a text of at least one word")
            if text.strip() in owner:
                raise InputError(f"{where}: {text.strip()!r} stands for {owner[text.strip()]!r} and again for "
                                 f"{label!r}: give each text once, and each class texts of its own")
            owner[text.strip()] = label
