"""Which texts has a classifier learned? It keeps their hashes, for its score on them is memory.

They lie beside the weights, in learned.json: a hash of 16 hex digits for each text, sorted. Texts
that differ in case and white space only have one hash; the texts of a row are hashed together.
"""
import hashlib
import json
import re
from pathlib import Path

from ..errors import InputError
from ..files import check_fields, read_json, short, write_json
from ..text.examples import text_key

FILE = "learned.json"
HASHES = {"hashes": (lambda v: isinstance(v, list), "a list of hashes")}


def hash_row(example):
    """The first 8 bytes of the sha256 of an Example's texts, as 16 hex digits."""
    return hashlib.sha256(json.dumps(text_key(example.texts)).encode()).hexdigest()[:16]


def hash_rows(examples):
    """Examples -> the set of their hashes."""
    return {hash_row(example) for example in examples}


def unite(*hashes):
    """Several sets, or None for those that are not known -> their union; None if none is known."""
    known = [each for each in hashes if each is not None]
    return set().union(*known) if known else None


def count_learned(learned, examples):
    """How many of these Examples have a hash in the set `learned`? None if that is None."""
    return None if learned is None else sum(hash_row(each) in learned for each in examples)


def read_learned(folder):
    """The set of hashes in a folder; None without the file. InputError for a broken one."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    hashes = check_fields(read_json(path), HASHES, path)["hashes"]
    for each in hashes:
        if not isinstance(each, str) or not re.fullmatch("[0-9a-f]{16}", each):
            raise InputError(f"{path}: {short(each)} is no hash of 16 hex digits: save the model "
                             "again with the command that wrote it")
    return set(hashes)


def write_learned(folder, learned):
    """Write the set of hashes to a folder. None: no file stays there."""
    path = Path(folder) / FILE
    if learned is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, {"hashes": sorted(learned)})
