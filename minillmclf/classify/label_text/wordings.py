"""How a task is put into words: default wordings, and a user's templates and label texts.

Not here: what a template means (text/prompt.py), the tokens of a label text (readout.py).
"""
import json
import os
import re
from pathlib import Path

from ...errors import InputError
from ...files import read_json, short

WORDINGS = (        # for any task, the default first; the wording alone can change accuracy
    "Text: {text}\nLabel: {label}",
    "Input: {text}\nClass: {label}",
    "Passage: {text}\nCategory: {label}",
    "Message: {text}\nAnswer: {label}",
    "Text: {text}\nThe right label is {label}",
)


def wordings(fields):
    """WORDINGS with these fields. One field takes the place of {text}; several get a line each:
    "Text A: {premise}\\nText B: {claim}"."""
    if len(fields) == 1:
        return tuple(wording.replace("{text}", f"{{{fields[0]}}}") for wording in WORDINGS)
    several = []
    for wording in WORDINGS:
        noun, rest = wording.split(": {text}")
        lines = [f"{noun} {chr(ord('A') + i)}: {{{field}}}" for i, field in enumerate(fields)]
        several.append("\n".join(lines) + rest)
    return tuple(several)


def read_template(value):
    """A template or instruction from the command line: the path of a file, or the text itself.

    A file loses one newline at its end. In a text \\n means a newline, \\t a tab. InputError if a
    file cannot be read.
    """
    if not os.path.isfile(value):
        return value.replace("\\n", "\n").replace("\\t", "\t")
    try:
        return Path(value).read_text(encoding="utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise InputError(f"{value}: cannot be read ({error.strerror}): check its "
                         "permissions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{value}: not UTF-8 at byte offset {error.start}: save the file as "
                         "UTF-8") from None


def read_label_texts(value, labels):
    """The words for each class: {label: [text, ...]}, in the order of `labels`, stripped.

    value: "" for the names themselves, with spaces for _ and - (but "-1" is a number); or {label:
    text or list of texts}: a dict, JSON text that begins with "{", or the path of a JSON file.
    InputError if a label is missing or unknown, or a text is blank or comes twice.
    """
    where, given = "label texts", value
    if not value:
        given = {label: re.sub("_|(?<!^)-", " ", label) for label in labels}
    elif not isinstance(value, dict) and value.lstrip().startswith("{"):
        try:
            given = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"label texts {short(value)}: not valid JSON ({error}): write "
                             '{"label": "text", ...}') from None
    elif not isinstance(value, dict):
        where, given = str(value), read_json(value)
    for problem, names in (("no text for", set(labels) - set(given)),
                           ("no such class as", set(given) - set(labels))):
        if names:
            raise InputError(f"{where}: {problem} {', '.join(map(repr, sorted(names)))}: name each "
                             f"of the {len(labels)} classes once: {', '.join(map(repr, labels))}")
    texts = {label: given[label] if isinstance(given[label], list) else [given[label]]
             for label in labels}
    check_label_texts(texts, where)
    return {label: [text.strip() for text in texts[label]] for label in labels}


def check_label_texts(texts, where):
    """InputError for a class without a text, a blank text, or one that comes twice."""
    class_of = {}                                                  # text -> its class
    for label, several in texts.items():
        for text in several or [several]:                       # [] is no text: refused just below
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: {short(label)} has {json.dumps(text)[:40]}: write a "
                                 "text of at least one word")
            if text.strip() in class_of:
                raise InputError(f"{where}: {text.strip()!r} stands for {class_of[text.strip()]!r} "
                                 f"and again for {label!r}: give each text once, and each class "
                                 "texts of its own")
            class_of[text.strip()] = label
