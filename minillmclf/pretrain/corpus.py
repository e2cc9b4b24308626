"""Text to pretrain on: files with weights, read as sentences, as whole documents, or as prompts with their answers.

A file is named FILE or FILE:WEIGHT; what stands in a file of weight 3 is seen three times as often. One document in a
hundred is held out, to be measured on and never learned from: which one follows from its own text (`is_held_out`), so
that it is the same one in every run, and a text that stands there twice is not on both sides.
"""
import hashlib
import re
from pathlib import Path

from ..errors import InputError
from ..files import short
from ..text.data import row_splits, split_column
from ..text.table_files import read_table

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def documents(path):
    """The documents of one file: lines of a .txt; else the text cells of a table (its train rows, if it has a split)."""
    if path.suffix != ".txt":
        table = read_table(path)
        for (_, row), split in zip(table.rows, row_splits(table)):
            if split == "train":
                yield from (value for key, value in row.items()
                            if key not in ("label", split_column(table)) and isinstance(value, str))
        return
    try:
        with open(path, encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def weighted(specs):
    """FILE[:WEIGHT], ... -> (path, weight), ..."""
    for spec in specs:
        name, weight = re.fullmatch(r"(.*?)(?::(\d+(?:\.\d+)?))?", spec, re.DOTALL).groups()
        weight = float(weight or 1)
        if not name or not 0 < weight <= 1000:
            raise InputError(f"{short(spec, 200)}: should be FILE or FILE:WEIGHT, the weight above "
                             "0 and at most 1000")
        yield Path(name), weight


def read_sentences(specs, shortest=4, longest=50):
    """Sentences of `shortest` to `longest` words from the files -> list of sentences, list of weights."""
    sentences, weights = [], []
    for path, weight in weighted(specs):
        for document in documents(path):
            found = [s for s in SENTENCE_END.split(" ".join(document.split())) if shortest <= len(s.split()) <= longest]
            sentences += found
            weights += [weight] * len(found)
    if not sentences:
        raise InputError(f"{', '.join(specs)}: no sentence of {shortest} to {longest} words in them")
    return sentences, weights


def read_documents(specs):
    """Whole documents, without the white space around them -> list of documents, list of weights.

    One that stands in a file several times is read once: its weight says how often it is seen.
    """
    found = [(text, weight) for path, weight in weighted(specs)
             for text in dict.fromkeys(map(str.strip, documents(path))) if text]
    if not found:
        raise InputError(f"{', '.join(specs)}: no text in them")
    return [text for text, _ in found], [weight for _, weight in found]


def read_pairs(specs):
    """Lines {"prompt": ..., "answer": ...} of .jsonl files -> list of (prompt, answer), list of weights."""
    pairs, weights = [], []
    for path, weight in weighted(specs):
        for line, row in read_table(path).rows:
            pair = row.get("prompt"), row.get("answer")
            if not all(isinstance(text, str) and text.strip() for text in pair):
                raise InputError(f"{path}, line {line}: should hold a \"prompt\" and an \"answer\", both texts and not empty")
            pairs.append(pair)
            weights.append(weight)
    return pairs, weights


def is_held_out(text, share=0.01):
    """Is this text one of those that are kept for measuring? About `share` of all texts are; by a hash, not by chance."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") < share * 2**32


def hold_out(items, weights):
    """-> (items to learn from, their weights), (held-out items, theirs). An item: a text, or a (prompt, answer)."""
    learned, held = [], []
    for item, weight in zip(items, weights):
        side = held if is_held_out(item if isinstance(item, str) else "\n".join(item)) else learned
        side.append((item, weight))
    return tuple(([item for item, _ in side], [weight for _, weight in side]) for side in (learned, held))
