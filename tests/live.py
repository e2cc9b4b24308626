"""Comparisons with the libraries: what a library refuses or lacks is a skip, our fault is not.

A release of transformers, PEFT or tokenizers may take a class away, refuse what it did, or not even
be importable. That says nothing about us, and what we must do is stored beside it (fixtures/). So
every live comparison

- gets the library by `imported(name)`: a skip where it is missing, broken, or of a version that
  nobody compared with;
- calls it inside `with may_refuse():`, with its own material: what it raises is a skip, in its own
  words;
- lets it read what *we* wrote inside `with may_refuse(control):`. There a refusal is our fault, and
  fails, unless the library refuses the control too, the same done with what it made itself. For
  folders see `loaded` and `tokenizer_of`.

An AssertionError, an InputError, a NameError and what was raised in minillmclf pass all of them.
"""
import functools
import importlib
import inspect
import json
import re
import tempfile
import traceback
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import minillmclf
from minillmclf.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(minillmclf.__file__).resolve().parent
LIBRARIES = ("transformers", "tokenizers", "peft", "accelerate")
STORED = {  # model_type -> a folder of fixtures/models, by transformers
    "bert": "bert_classifier", "distilbert": "distilbert_classifier",
    "xlm-roberta": "xlm_roberta_classifier", "roberta": "roberta_classifier",
    "deberta-v2": "deberta_classifier", "modernbert": "modernbert_classifier",
    "gpt2": "gpt2_classifier", "llama": "llama_lm", "mistral": "mistral_lm", "qwen2": "qwen2_lm",
    "qwen3": "qwen3_lm", "gemma": "gemma_classifier",
    "gemma2": "gemma2_lm", "gemma3_text": "gemma3_lm", "t5": "t5_lm"}


@functools.cache
def claimed():
    """name -> the versions of setup.py's extra `test`: the comparison is claimed for these."""
    names, text = "|".join(LIBRARIES), (ROOT / "setup.py").read_text()
    said = map(Requirement, re.findall(rf'"((?:{names})\b[^"]*)"', text))
    return {requirement.name: requirement.specifier for requirement in said}


def imported(name):
    """The library or the module of one that a test compares with, or a skip."""
    library = name.partition(".")[0]
    with may_refuse():
        module = importlib.import_module(name)
        version = metadata.version(library)
    wanted = claimed().get(library)  # None: a library that the package itself needs
    if wanted is not None and not wanted.contains(version, prereleases=True):
        pytest.skip(f"{library} {version} is installed, the comparison is with {library}{wanted}")
    return module


def is_ours(error):
    """Whether an exception is a fault of ours: by its kind, or since it, or one that it came from,
    was raised in minillmclf: of what was called, that and not the library is the last before the
    fault."""
    if isinstance(error, (AssertionError, InputError, NameError)):
        return True
    while error:
        files = [Path(step.filename) for step in traceback.extract_tb(error.__traceback__)]
        ours = [PACKAGE in file.parents for file in files
                if PACKAGE in file.parents or set(LIBRARIES) & set(file.parts)]
        if ours and ours[-1]:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def may_refuse(control=None):
    """Around calls of a library that we compare with: what it refuses is a skip, its words are the
    reason.

    control: a function that does the same with nothing of ours. With it, a refusal is a skip only
    where the control is refused too, and else our fault: the library takes what it made itself and
    not what we made.
    """
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        if control is None:
            words = " ".join(str(error).split())[:300]
            pytest.skip(f"the reference refuses: {type(error).__name__}: {words}")
        with may_refuse():
            control()
        raise


def tokenizer_of(folder, kind, read=None):
    """The tokenizer that transformers reads in a folder that we wrote. That it reads what it wrote
    itself, a fresh one of class `kind`, and not the folder, is our fault. read: the class that
    reads [AutoTokenizer]."""
    transformers = imported("transformers")

    def asked(place):
        theirs = (read or transformers.AutoTokenizer).from_pretrained(place)
        theirs(["a b", "c"], padding=theirs.pad_token is not None)
        return theirs

    def control():
        with tempfile.TemporaryDirectory() as own:
            getattr(transformers, kind)().save_pretrained(own)
            asked(own)
    with may_refuse(control):
        return asked(folder)


def loaded(load, folder, ask=True, **given):
    """What `load` of transformers returns for a folder that we wrote, its model asked once. That it
    takes what it wrote itself, a stored model of the same model_type, and not the folder, is our
    fault. ask: False where an answer would change the model, as one of four bits, whose weights
    bitsandbytes packs anew."""
    def asked(place):
        found = load(place, **given)
        if not ask:
            return found
        theirs = found[0] if isinstance(found, tuple) else found
        end = getattr(theirs.config, "eos_token_id", None) or 5  # T5's classifiers ask for one
        ids, takes = torch.tensor([[3, 4, 5, end]]), inspect.signature(theirs.forward).parameters
        more = {"decoder_input_ids": ids} if "decoder_input_ids" in takes else {}
        with torch.no_grad():
            theirs.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
        return found
    kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    with may_refuse(lambda: asked(ROOT / "tests" / "fixtures" / "models" / STORED[kind])):
        return asked(folder)
