"""Which texts has a classifier learned? It keeps their hashes, for its score on them is memory.

They lie beside the weights, in learned.safetensors: 8 bytes a text, sorted, each once. Texts that
differ in case and white space only have one hash; the texts of a row are hashed together.
"""
import hashlib
import json
from pathlib import Path

import torch

from ..errors import InputError
from ..models.tensor_files import open_tensors, write_tensors
from ..text.examples import text_key

FILE, NAME = "learned.safetensors", "hashes"           # of the file; of the tensor in it


def hash_rows(examples):
    """N Examples -> their hashes, int64 (N,): 8 bytes of the sha256 of each one's texts."""
    digests = (hashlib.sha256(json.dumps(text_key(e.texts)).encode()).digest() for e in examples)
    return torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests],
                        dtype=torch.int64)


def unite(*hashes):
    """Several int64 (n,), or None for those that are not known -> int64 (N,), sorted, without
    repeats; None if none is known."""
    known = [each for each in hashes if each is not None]
    return torch.cat(known).unique() if known else None


def count_learned(learned, examples):
    """How many of these Examples have a hash in `learned`? None if that is None."""
    return None if learned is None else int(torch.isin(hash_rows(examples), learned).sum())


def read_learned(folder):
    """The hashes in a folder, int64 (N,); None without the file. InputError for a broken one."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    with open_tensors(path) as file:
        names = [*file.keys()]
        hashes = file.get_tensor(NAME).clone() if names == [NAME] else torch.empty(0)
    if hashes.dtype != torch.int64 or hashes.dim() != 1 or not (hashes[1:] > hashes[:-1]).all():
        raise InputError(f"{path}: should hold 64-bit hashes of texts, sorted, each once, and "
                         "nothing else: save the model again with the command that wrote it")
    return hashes


def write_learned(folder, learned):
    """Write the hashes, int64 (N,), to a folder. None: no file stays there."""
    path = Path(folder) / FILE
    if learned is None:
        path.unlink(missing_ok=True)
    else:
        write_tensors(path, {NAME: learned}, {"format": "pt"})
