"""The files that a tokenizer comes in, read into one form: a dict as in tokenizer.json.

Here: tokenizer.json itself; vocab.txt, vocab.json and merges.txt with what the family takes for granted; the names of
special tokens in tokenizer_config.json and its older companions special_tokens_map.json and added_tokens.json;
`check`, which refuses what would change ids and is not implemented. Not here: the use of the dict (tokenizer.py).
The format has no paper; these are the files of the `tokenizers` and `transformers` libraries.
"""

import json
import os

from minillmclf import files
from minillmclf.errors import InputError
from minillmclf.text import bpe, wordpiece

ROLES = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")
BERT = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
ROBERTA = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
GPT2 = {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}
FAMILIES = {"BertTokenizer": BERT, "DistilBertTokenizer": BERT, "ElectraTokenizer": BERT,
            "RobertaTokenizer": ROBERTA, "BartTokenizer": ROBERTA, "GPT2Tokenizer": GPT2}
ANY = None
# type of a component -> its keys, each with the values that we implement (ANY: all of them, or the key changes no id)
KEYS = {
    "WordPiece": {"vocab": ANY, "unk_token": ANY, "continuing_subword_prefix": ANY, "max_input_chars_per_word": ANY},
    "BPE": {"vocab": ANY, "merges": ANY, "ignore_merges": ANY, "unk_token": ANY, "fuse_unk": ANY,
            "dropout": (None, 0), "byte_fallback": (False,), "continuing_subword_prefix": (None, ""),
            "end_of_word_suffix": (None, "")},
    "null": {},
    "BertNormalizer": {"lowercase": ANY, "strip_accents": ANY, "handle_chinese_chars": ANY, "clean_text": (True,)},
    "BertPreTokenizer": {},
    "ByteLevel": {"add_prefix_space": ANY, "trim_offsets": ANY, "use_regex": (True,)},
    "TemplateProcessing": {"single": ANY, "pair": ANY, "special_tokens": ANY},
    "BertProcessing": {"cls": ANY, "sep": ANY},
    "RobertaProcessing": {"cls": ANY, "sep": ANY, "trim_offsets": ANY, "add_prefix_space": ANY},
    "added_tokens": {"id": ANY, "content": ANY, "special": ANY, "normalized": ANY, "lstrip": ANY, "rstrip": ANY,
                     "single_word": (False,)},
}


def read_folder(folder):
    """(document, config, source): a dict as in tokenizer.json, one as in tokenizer_config.json, the file for errors.

    Raises InputError if the folder has no tokenizer that we know, or a file in it is malformed."""
    config = read_json(folder, "tokenizer_config.json", {})
    if "added_tokens_decoder" not in config:  # a folder older than this key has its content in two other files
        config |= read_json(folder, "special_tokens_map.json", {})
        added = read_json(folder, "added_tokens.json", {})
        config["added_tokens_decoder"] = {i: {"content": text} for text, i in added.items()}
    if config.get("split_special_tokens"):
        raise InputError(f"{folder}/tokenizer_config.json: split_special_tokens true is not supported, only false")
    for name, read in READERS.items():
        if os.path.isfile(os.path.join(folder, name)):
            return read(folder, config), config, os.path.join(folder, name)
    raise InputError(f"{folder}: no folder that holds {' or '.join(READERS)}; name the folder of a checkpoint")


def read_tokenizer_json(folder, config):
    """The file that says all, and the special tokens that the config names besides."""
    document, source = read_json(folder, "tokenizer.json"), f"{folder}/tokenizer.json"
    document |= {"truncation": None, "padding": None}  # batches decide about these
    document["added_tokens"] = added_tokens(document["model"]["vocab"], document.get("added_tokens"), config, source)
    return document


def read_vocab_txt(folder, config):
    """BERT: a piece a line, the line number is the id."""
    vocab = {piece: i for i, piece in enumerate(read_lines(folder, "vocab.txt"))}
    has_capitals = any(piece != piece.lower() for piece in vocab if not piece.startswith("["))
    lower, unk = config.get("do_lower_case", not has_capitals), content(config.get("unk_token", "[UNK]"))
    accents, chinese = config.get("strip_accents"), config.get("tokenize_chinese_chars", True)
    sections = wordpiece.describe(vocab, lower, accents, chinese, unk)
    config["tokenizer_class"] = config.get("tokenizer_class") or "BertTokenizer"
    return complete(sections, config, f"{folder}/vocab.txt")


def read_vocab_json(folder, config):
    """GPT-2 and RoBERTa: {piece: id}, and a merge a line, the most important first."""
    vocab, lines = read_json(folder, "vocab.json"), read_lines(folder, "merges.txt")
    merges = [line for line in lines if line and not line.startswith("#version")]  # "# #" is a merge, not a comment
    sections = bpe.describe(vocab, merges, config.get("add_prefix_space", False))
    default = "RobertaTokenizer" if "<s>" in vocab and "</s>" in vocab else "GPT2Tokenizer"
    config["tokenizer_class"] = config.get("tokenizer_class") or default
    return complete(sections, config, f"{folder}/vocab.json")


READERS = {"tokenizer.json": read_tokenizer_json, "vocab.txt": read_vocab_txt, "vocab.json": read_vocab_json}


def read_json(folder, name, default=None):
    """The object in a JSON file; if there is no such file, `default`, unless that is None."""
    path = os.path.join(folder, name)
    return default if default is not None and not os.path.isfile(path) else files.read_json(path)


def read_lines(folder, name):
    """The lines of a text file without the spaces at their ends."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.rstrip() for line in file]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); fetch the file again") from None


def complete(sections, config, source):
    """A whole tokenizer.json: the sections of an algorithm, and the special tokens of config["tokenizer_class"]."""
    name, kind = config["tokenizer_class"], sections["model"]["type"]
    usual = FAMILIES.get(name.removesuffix("Fast"))
    if usual is None or (usual is BERT) != (kind == "WordPiece"):
        raise InputError(f"{source}: tokenizer_class {name!r} is not supported without a tokenizer.json; save the "
                         "tokenizer once with transformers, which writes that file")
    if config.get("add_bos_token") or config.get("add_eos_token"):
        raise InputError(f"{source}: add_bos_token and add_eos_token are supported in a tokenizer.json only")
    added = added_tokens(sections["model"]["vocab"], [], config, source)
    post = None if usual is GPT2 else frame(added, config, usual, source)
    return sections | {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                       "post_processor": post}


def added_tokens(vocab, added, config, source):
    """The tokens to be found literally in a text: `added` of tokenizer.json, what the config adds, special ones.

    Raises InputError for a token without id, or if the two files say different things of it."""
    added = {token["content"]: token for token in added or []}
    for i, token in config["added_tokens_decoder"].items():
        token = {"id": int(i), **token}
        known = added.setdefault(token["content"], token)
        for key in ("id", "lstrip", "rstrip"):
            if known.get(key, False) != token.get(key, False):
                raise InputError(f"{source} has {key} {known.get(key)} for {token['content']!r}, but "
                                 f"tokenizer_config.json {token.get(key)}; set both alike")
    ids = {text: token["id"] for text, token in added.items()}
    moved = [text for text in ids if vocab.get(text, ids[text]) != ids[text]]
    if moved:
        raise InputError(f"{source}: {moved[0]!r} has id {ids[moved[0]]} as an added token, {vocab[moved[0]]} in the "
                         "vocabulary; set both alike")
    for text, given in special_tokens(vocab | ids, config, source):
        added[text] = {"id": vocab.get(text), "normalized": False, **given, **added.get(text, {}), "content": text,
                       "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return sorted((flags | token for token in added.values()), key=lambda token: token["id"])


def special_tokens(vocab, config, source):
    """[(text, its flags), ...] of the special tokens that the config or its tokenizer_class names."""
    usual = FAMILIES.get((config.get("tokenizer_class") or "").removesuffix("Fast"), {})
    roles, found = role_names(vocab, config, source), []
    for role, text in roles.items():
        given = config.get(f"{role}_token")
        if isinstance(given, dict):
            found.append((text, {key: given[key] for key in given if key in KEYS["added_tokens"]}))
        elif given or role in usual:  # RoBERTa's mask takes the space before it: "a <mask>" is two pieces
            found.append((text, {"lstrip": usual is ROBERTA and role == "mask"}))
    for key in ("additional_special_tokens", "extra_special_tokens"):
        given = config.get(key) or []
        for token in given.values() if isinstance(given, dict) else given:
            if content(token) not in vocab:
                raise InputError(f"{source}: {key} has {content(token)!r}, which is neither in the vocabulary of "
                                 f"{len(vocab)} pieces nor an added token; add it, or leave it out of the config")
            found.append((content(token), {}))
    return found


def frame(added, config, usual, source):
    """The post_processor that sets [CLS] and [SEP], or <s> and </s>, around a text."""
    ids = {token["content"]: token["id"] for token in added}
    roles = role_names(ids, config, source)
    if "cls" not in roles or "sep" not in roles:
        raise InputError(f"{source}: {usual['cls']} and {usual['sep']}, which frame a text, are not both in the "
                         "vocabulary; add them")
    cls, sep = ([roles[role], ids[roles[role]]] for role in ("cls", "sep"))
    if usual is BERT:
        return {"type": "BertProcessing", "sep": sep, "cls": cls}
    return {"type": "RobertaProcessing", "sep": sep, "cls": cls, "trim_offsets": True,
            "add_prefix_space": bool(config.get("add_prefix_space"))}


def content(token):
    """The text of a special token, which is given as "[SEP]" or as {"content": "[SEP]", ...}."""
    return token["content"] if isinstance(token, dict) else token


def family(vocab, config):
    """The usual names of special tokens, by tokenizer_class or else by what the vocabulary holds."""
    usual = BERT if "[UNK]" in vocab else ROBERTA if "<s>" in vocab and "</s>" in vocab else GPT2
    return FAMILIES.get((config.get("tokenizer_class") or "").removesuffix("Fast"), usual)


def role_names(vocab, config, source):
    """{"cls": "[CLS]", ...}: what the config says, else the usual name if the vocabulary has it."""
    names = {role: name for role, name in family(vocab, config).items() if name in vocab}
    for role in ROLES:
        if f"{role}_token" in config:
            names[role] = content(config[f"{role}_token"])
            if names[role] is not None and names[role] not in vocab:
                raise InputError(f"{source}: {role}_token {names[role]!r} is neither in the vocabulary of "
                                 f"{len(vocab)} pieces nor an added token; add it, or leave it out of the config")
    return {role: name for role, name in names.items() if name is not None}


def check(component, types, source, place):
    """Raise InputError unless the component is of one of `types`, with settings that we implement."""
    kind = "null" if component is None else component["type"]
    if kind not in types:
        raise InputError(f"{source}: {place}.type {kind!r} is not supported here, only {', '.join(types)}")
    for key, value in (component or {}).items():
        if key != "type" and (key not in KEYS[kind] or KEYS[kind][key] is not ANY and value not in KEYS[kind][key]):
            only = ", ".join(map(json.dumps, KEYS[kind].get(key) or ())) or f"{', '.join(KEYS[kind])}"
            raise InputError(f"{source}: {place}.{key} = {json.dumps(value)[:60]} is not supported, only {only}")
