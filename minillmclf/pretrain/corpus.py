"""Text to pretrain on: files with weights, read as sentences, documents, or prompts with answers.

A file is named FILE or FILE:WEIGHT; items of a file of weight 3 are seen three times as often. One
text in a hundred is held out: the loss is measured on it, and it is never learned from.
"""
import hashlib
import re
from pathlib import Path

from ..errors import InputError
from ..files import short
from ..text.splits import row_splits, split_column
from ..text.table_files import read_table

OTHER_FLAGS = re.compile(r",( or)? read a file without quoting by --quoting .*", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def weighted(specs):
    """Yield (path, weight) of each FILE[:WEIGHT]."""
    for spec in specs:
        name, weight = re.fullmatch(r"(.*?)(?::(\d+(?:\.\d+)?))?", spec, re.DOTALL).groups()
        weight = float(weight or 1)
        if not name or not 0 < weight <= 1000:
            raise InputError(f"{short(spec, 200)}: should be FILE or FILE:WEIGHT, the weight above "
                             "0 and at most 1000")
        yield Path(name), weight


def read_items(specs, items_of, what):
    """-> list of (item, weight) from several files. items_of(path): an iterable; what: the items'
    name, for the error where there are none."""
    items = [(item, weight) for path, weight in weighted(specs) for item in items_of(path)]
    if not items:
        raise InputError(f"{', '.join(specs)}: no {what} in them")
    return items


def read_sentences(specs, shortest=4, longest=50):
    """Sentences of `shortest` to `longest` words -> list of (sentence, weight)."""
    def sentences(path):
        for document in documents(path):
            for sentence in SENTENCE_END.split(" ".join(document.split())):
                if shortest <= len(sentence.split()) <= longest:
                    yield sentence
    return read_items(specs, sentences, f"sentence of {shortest} to {longest} words")


def read_documents(specs):
    """-> list of (stripped document, weight). Repetitions in a file are left out: the weight alone
    says how often a document is seen."""
    def texts(path):
        return [text for text in dict.fromkeys(map(str.strip, documents(path))) if text]
    return read_items(specs, texts, "text")


def read_pairs(specs):
    """Lines {"prompt": ..., "answer": ...} -> list of ((prompt, answer), weight). Of a file with a
    column `split`, its train rows."""
    def pairs(path):
        table = read_table(path)
        for (line, row), split in zip(table.rows, row_splits(table)):
            if split != "train":
                continue
            pair = row.get("prompt"), row.get("answer")
            if not all(isinstance(text, str) and text.strip() for text in pair):
                raise InputError(f'{path}, line {line}: should hold a "prompt" and an "answer", '
                                 "both texts and not empty")
            yield pair
    return read_items(specs, pairs, "pair")


def documents(path):
    """Yield the lines of a .txt file, or the texts in a table's cells (of its train rows, if it has
    a column `split`)."""
    if path.suffix.lower() != ".txt":
        try:
            table = read_table(path)
        except InputError as error:
            raise InputError(OTHER_FLAGS.sub("", str(error))) from None
        ignored = ("label", split_column(table))
        for (_, row), split in zip(table.rows, row_splits(table)):
            if split == "train":
                yield from (value for key, value in row.items()
                            if key not in ignored and isinstance(value, str))
        return
    try:
        with open(path, encoding="utf-8-sig") as file:       # without a byte order mark
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def is_held_out(text, share=0.01):
    """Is this text held out, as about `share` of all texts are? A hash of the text decides, so it
    is the same in every run, and a text that occurs twice is not on both sides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") < share * 2**32


def hold_out(items):
    """(item, weight) of each -> those to learn from, those held out. An item is a text or a
    (prompt, answer)."""
    learned, held = [], []
    for item, weight in items:
        text = item if isinstance(item, str) else "\n".join(item)
        side = held if is_held_out(text) else learned
        side.append((item, weight))
    return learned, held
