"""What a sentence-transformers folder says: how its model was taught to pool, and text lengths.

Models such as MiniLM, BGE or E5 are trained so that pooled hidden states stand near each other for
texts that mean the same (Reimers and Gurevych 2019, "Sentence-BERT"). A head should pool in the
same way. modules.json lists the parts: a transformer, a pooling, perhaps a normalisation to length
1, which a linear layer does not need. Not read: a Dense module behind the pooling, as LaBSE has,
and prompts that belong before a text, as E5's "query: ".
"""
from pathlib import Path

from ..errors import InputError
from ..files import check_fields, read_json, short

MODES = {                      # in the pooling's config.json -> our name
    "pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "last"}
NAMES = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
MODE = {"pooling_mode?": (lambda v: v is None or type(v) is str, "the name of a pooling")}
LENGTH = {"max_seq_length?": (lambda v: v is None or type(v) is int and v > 2,
                              "a number of tokens above 2")}


def sentence_settings(folder):
    """A model folder -> {"pool": one of head.POOLINGS, "max_length": tokens of a text}, without
    what the folder does not say; {} for a folder of another kind. InputError for a broken file."""
    folder = Path(folder)
    if not (folder / "modules.json").is_file():
        return {}
    found, path = {"pool": pooling_of(folder)}, folder / "sentence_bert_config.json"
    if path.is_file():
        found["max_length"] = check_fields(read_json(path), LENGTH, path).get("max_seq_length")
    return {name: value for name, value in found.items() if value is not None}


def pooling_of(folder):
    """The pooling that modules.json names, or None if the head has no such pooling."""
    path = folder / "modules.json"
    for module in read_json(path, list):
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise InputError(f"{path}: {short(module)} should be an object with a type")
        if module["type"].endswith("Pooling"):
            place = module.get("path")
            if not isinstance(place, str) or ".." in Path(place).parts or Path(place).is_absolute():
                raise InputError(f"{path}: {short(place)} should be a folder beside it")
            return read_pooling(folder / place / "config.json")
    return None


def read_pooling(path):
    """The config.json of a pooling -> one of head.POOLINGS, or None for another, or for several."""
    if not path.is_file():
        raise InputError(f"{path}: is not there, but modules.json names it: download the folder "
                         "again, or choose the pooling by --pool")
    config = check_fields(read_json(path), MODE, path)
    switched_on = {key for key in config if key.startswith("pooling_mode_") and config[key] is True}
    found = {MODES.get(key) for key in switched_on}
    if config.get("pooling_mode") in NAMES:
        found.add(NAMES[config["pooling_mode"]])
    return found.pop() if len(found) == 1 else None         # {None}: another pooling
