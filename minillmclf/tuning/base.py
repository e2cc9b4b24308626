"""The model that a run started from: where it is, and has it changed since?"""
import hashlib
import json
import os
import re
from pathlib import Path

from ..errors import InputError
from ..files import CHECKPOINTS, NEW_MODEL, NEW_RUN, find_model, shipped_folder, short
from ..models.weights import Checkpoint
from ..text.tokenizers.files import READERS

TOKENIZER_FILES = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json")
CHUNK_BYTES = 2**20                                 # bytes that are read at a time


def hash_files(folder):
    """{file name: sha256 of the content} of a model's config.json, weights and tokenizer."""
    folder = Path(folder)
    tokenizer = [name for name in READERS if (folder / name).exists()][:1]
    names = {"config.json", *(path.name for path in Checkpoint(folder).files.values()), *tokenizer,
             *(name for name in TOKENIZER_FILES if (folder / name).exists())}
    hashes = {}
    for name in sorted(names):
        digest = hashlib.sha256()
        with open(folder / name, "rb") as file:
            while block := file.read(CHUNK_BYTES):
                digest.update(block)
        hashes[name] = digest.hexdigest()
    return hashes


def fingerprint(folder):
    """A short text that changes with a model's config.json, its weights or its tokenizer."""
    return hashlib.sha256(json.dumps(hash_files(folder), sort_keys=True).encode()).hexdigest()


def changed_files(folder, saved):
    """The names of a base's files that have changed since `saved`, the hashes at that time.

    saved: from `hash_files`; in old runs one hash, of config.json and both ends of weight files.
    """
    if isinstance(saved, dict):
        now = hash_files(folder)
        return [name for name in sorted({*now, *saved}) if now.get(name) != saved.get(name)]
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            for place in (0, max(0, size - CHUNK_BYTES)):
                file.seek(place)
                digest.update(f"{path.name} {size}".encode() + file.read(CHUNK_BYTES))
    return [] if digest.hexdigest() == saved else ["config.json or weights"]


def base_record(base, folder):
    """How tuned.json names its base: a shipped one by its name; one in the folder two levels above
    the run by a path relative to the run, so that both may be moved together; others by the full
    path."""
    base, folder = Path(base).resolve(), Path(folder).resolve()
    if base.parent == CHECKPOINTS:
        return {"base": base.name}
    new = (NEW_RUN, NEW_MODEL)
    folder = Path(*(part for part in folder.parts if part not in new))   # where it will be moved
    above = [path for path in (folder, *folder.parents[:2]) if path != path.parent]   # not the root
    there = os.path.relpath(base, folder) if above[-1] in base.parents else str(base)
    if os.sep not in there:                         # a bare name would be that of a shipped model
        there = os.path.join(".", there)
    return {"base": there, "base_path": str(base)}


def find_base(names, folder, given=None):
    """The folder of an adapter's base, as find_model takes it.

    given: where it is now; else the first that exists of `names`, each a shipped name, or a path
    from the adapter's folder or from the working directory.
    """
    if given is not None:
        found = find_model(given)                           # InputError if there is no model
        return given if isinstance(given, str) else str(found)
    for name in filter(None, names):
        try:
            if Path(name).name == name and shipped_folder(name):
                return name
            for path in ((Path(folder) / name).resolve(), Path(name)):
                if path.is_dir():
                    return str(find_model(path))
        except (OSError, ValueError, RuntimeError):         # too long for a path; a loop of links
            pass
    name, fetch = names[0], ""
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        fetch = f" (of huggingface.co: hf download {name} --local-dir FOLDER)"
    raise InputError(f"{short(folder, 200)}: holds an adapter, and its base {short(name, 200)} is "
                     f"missing, no such model folder: say where it is with --base FOLDER{fetch}")
