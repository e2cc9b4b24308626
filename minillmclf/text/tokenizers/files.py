"""The files that a tokenizer comes in, read into one form: a dict as in tokenizer.json.

Here: tokenizer.json itself; vocab.txt, vocab.json with merges.txt, and SentencePiece's .model; the special tokens in
tokenizer_config.json and its older companions special_tokens_map.json and added_tokens.json; `check`, which refuses
what would change ids and is not implemented. Not here: what a family takes for granted (families.py), the use of the
dict (tokenizer.py), the content of a .model file (sentencepiece_model.py).
The format has no paper; these are the files of the `tokenizers` and `transformers` libraries.
"""

import functools
import json
import os
import re

from ... import files
from ...errors import InputError
from ...files import check_fields, short
from . import bpe, components, unigram as sentencepiece_model, wordpiece
from .families import (APPENDED, BERT, FAMILIES, FRAMES, GPT2, ROBERTA, ROLES, content, flagged,
                       frame, role_names, template, with_one_bos)

# --------------------------------------------------------- what a value should be: (test, words), as `check_fields` has it

def is_id(value):
    return type(value) is int and 0 <= value < 2**31


def is_token(value):
    """A special token: its text, or an object with it and flags."""
    return isinstance(value, str) or isinstance(value, dict) and isinstance(value.get("content"), str) and all(
        value.get(flag) in (None, True, False) for flag in ("lstrip", "rstrip", "normalized", "special", "single_word"))


def is_component(place, value):
    """null, an object with a type, or a Sequence of such, however deep."""
    waiting = [value]
    for part in waiting:
        if part is not None and not (isinstance(part, dict) and isinstance(part.get("type"), str)):
            return False
        inner = part.get(components.CHILDREN[place]) if part and part["type"] == "Sequence" else []
        if not isinstance(inner, list):
            return False
        waiting += inner
    return True


def is_pattern(value):
    return isinstance(value, dict) and len(value) == 1 and set(value) <= {"String", "Regex"} and \
        all(isinstance(text, str) and text for text in value.values())


def is_step(value):
    """Of a layout: {"Sequence": {"id": "A", "type_id": 0}}, or a SpecialToken."""
    part = isinstance(value, dict) and len(value) == 1 and (value.get("Sequence") or value.get("SpecialToken"))
    return isinstance(part, dict) and is_text(part.get("id")) and part.get("type_id") in (0, 1)


def list_of(test, *, length=None):
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(test, value))


def is_text(value):
    return isinstance(value, str)


TEXT = is_text, "text"
SHORT = (lambda value: is_text(value) and len(value) <= 1000), "text of at most 1000 characters"
FLAG = (lambda value: isinstance(value, bool)), "true or false"
MAYBE = (lambda value: value is None or isinstance(value, bool)), "true, false or null"
ANY = (lambda value: True), "any value"                                       # of a key that changes no id
ID = is_id, "a whole number from 0 up"
INDEX = (lambda value: value is None or type(value) is int), "a whole number"
OBJECT = (lambda value: isinstance(value, dict)), "an object"
LIST = (lambda value: isinstance(value, list)), "a list"
SCORE = (lambda pair: isinstance(pair, list) and len(pair) == 2 and is_text(pair[0]) and type(pair[1]) in (int, float)
         and abs(pair[1]) < 1e38), "[piece, score]"
MERGE = (lambda pair: is_text(pair) or list_of(is_text, length=2)(pair)), '"a b" or ["a", "b"]'
ADDED = {"content": TEXT} | {f"{flag}?": MAYBE for flag in ("lstrip", "rstrip", "normalized", "special", "single_word")}
FRAME = list_of(is_step), "a list of Sequence and SpecialToken steps with an id and type_id 0 or 1"
SPECIALS = (lambda value: isinstance(value, dict) and all(isinstance(token, dict) and list_of(is_id)(token.get("ids"))
                                                          for token in value.values())), "an object of tokens with ids"
PAIR = (lambda value: list_of(lambda _: True, length=2)(value) and is_text(value[0]) and is_id(value[1])), "[token, id]"
PATTERN = is_pattern, "an object with one String or Regex that is not empty"
TOKEN = (lambda value: value is None or is_token(value)), "a text, or an object with a content"
TOKENS = (lambda value: value is None or all(map(is_token, value.values() if isinstance(value, dict) else value))
          if isinstance(value, (list, dict, type(None))) else False), "a list of tokens"
LENGTH = (lambda value: value is None or type(value) in (int, float) and value >= 1), "a number from 1 up"

MERGED = {"vocab": OBJECT, "merges": LIST, "unk_token?": ANY, "fuse_unk?": ANY, "dropout?": (None, 0),
          "continuing_subword_prefix?": (None, ""), "end_of_word_suffix?": (None, "")}
# type of a component -> its keys, each with the values that we implement or (test, words); "?": may be missing
KEYS = {
    "WordPiece": {"vocab": OBJECT, "unk_token": TEXT, "continuing_subword_prefix": TEXT,
                  "max_input_chars_per_word": ((lambda value: type(value) is int and value >= 0), "a whole number from 0 up")},
    "BPE": MERGED | {"ignore_merges?": MAYBE, "byte_fallback?": (False,)},
    "BPE with byte_fallback": MERGED | {"ignore_merges?": (False,), "byte_fallback": (True,)},
    "Unigram": {"vocab": LIST, "unk_id": INDEX, "byte_fallback?": FLAG},
    "null": {},
    "BertNormalizer": {"lowercase": FLAG, "strip_accents?": MAYBE, "handle_chinese_chars": FLAG, "clean_text?": (True,)},
    "BertPreTokenizer": {},
    "ByteLevel": {"add_prefix_space": FLAG, "trim_offsets?": ANY, "use_regex?": FLAG},
    "Precompiled": {"precompiled_charsmap": TEXT},
    "Replace": {"pattern": PATTERN, "content": SHORT},
    "Prepend": {"prepend": SHORT},
    "Strip": {"strip_left": FLAG, "strip_right": FLAG},
    "Lowercase": {}, "NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {},
    "Metaspace": {"replacement": (components.META,), "prepend_scheme?": ("always", "first", "never"), "split?": FLAG,
                  "add_prefix_space?": FLAG, "str_rep?": ANY},
    "Split": {"pattern": PATTERN, "behavior": ("Isolated", "MergedWithPrevious", "MergedWithNext"), "invert?": (False,)},
    "WhitespaceSplit": {},
    "TemplateProcessing": {"single": FRAME, "pair": FRAME, "special_tokens": SPECIALS},
    "BertProcessing": {"cls": PAIR, "sep": PAIR},
    "RobertaProcessing": {"cls": PAIR, "sep": PAIR, "trim_offsets?": ANY, "add_prefix_space?": ANY},
    "added_tokens": {"id": ID, "content": TEXT, "special?": FLAG, "normalized?": FLAG, "lstrip?": FLAG, "rstrip?": FLAG,
                     "single_word?": (False,)},
}
DOCUMENT = {"model": OBJECT, "added_tokens?": ((lambda value: value is None or isinstance(value, list)), "a list"),
            } | {f"{place}?": (functools.partial(is_component, place), f"null, an object with a type, or a Sequence of such "
                               f"with {inner}") for place, inner in components.CHILDREN.items()}
FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "add_bos_token", "add_eos_token",
         "legacy", "split_special_tokens", "split_by_punct")
CONFIG = {f"{name}?": MAYBE for name in FLAGS} | {f"{role}_token?": TOKEN for role in ROLES} | {
    "tokenizer_class?": ((lambda value: value is None or is_text(value)), "text"),
    "model_max_length?": LENGTH, "max_len?": LENGTH,
    "extra_ids?": ((lambda value: type(value) is int and 0 <= value <= 10000), "a number from 0 to 10000"),
    "model_input_names?": ((lambda value: value is None or list_of(is_text)(value)), "a list of names"),
    "additional_special_tokens?": TOKENS, "extra_special_tokens?": TOKENS,
    "added_tokens_decoder?": OBJECT}


def read_folder(folder):
    """(document, config, source): a dict as in tokenizer.json, one as in tokenizer_config.json, the file for errors.

    Raises InputError if the folder has no tokenizer that we know, or a file in it is malformed."""
    config = read_config(folder, "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # a folder older than this key has its content in two other files
        config |= read_config(folder, "special_tokens_map.json")
        added = check_each(read_json(folder, "added_tokens.json", {}), ID, f"{folder}/added_tokens.json: ")
        if len(set(added.values())) < len(added):
            raise InputError(f"{folder}/added_tokens.json: {len(added)} tokens with {len(set(added.values()))} "
                             "different ids; each needs one of its own: fetch it again")
        config["added_tokens_decoder"] = {i: {"content": text} for text, i in added.items()}
    if config.get("split_special_tokens"):
        raise InputError(f"{folder}/tokenizer_config.json: split_special_tokens true is not supported, only false")
    for name, read in READERS.items():
        if os.path.isfile(os.path.join(folder, name)):
            document, source = read(folder, config), os.path.join(folder, name)
            for step in components.parts(document.get("post_processor"), "post_processor"):
                if step["type"] == "TemplateProcessing":
                    check(step, ["TemplateProcessing"], source, "post_processor")
            post = with_one_bos(document.get("post_processor"), vocab_of(document), config, source)
            return document | {"post_processor": post}, config, source
    raise InputError(f"{folder}: no folder that holds {' or '.join(READERS)}; name the folder of a checkpoint")


def read_tokenizer_json(folder, config):
    """The file that says all, and the special tokens that the config names besides."""
    source = f"{folder}/tokenizer.json"
    document = check_fields(read_json(folder, "tokenizer.json"), DOCUMENT, source)
    filled = (lambda value: isinstance(value, (dict, list))), "an object or a list"
    model = check_fields(document["model"], {"vocab": filled, "type?": TEXT, "merges?": LIST}, f"{source}: model")
    check_each(model["vocab"], ID if isinstance(model["vocab"], dict) else SCORE, f"{source}: model.vocab")
    check_each(model.get("merges", []), MERGE, f"{source}: model.merges")
    for n, token in enumerate(document.get("added_tokens") or []):
        check_fields(token, {"id": ID, **ADDED}, f"{source}: added_tokens[{n}]")
    document |= {"truncation": None, "padding": None}  # batches decide about these
    vocab = vocab_of({"model": document["model"]})  # as yet without added tokens
    document["added_tokens"] = added_tokens(vocab, document.get("added_tokens"), config, source)
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
    check_each(vocab, ID, f"{folder}/vocab.json: ")
    merges = [line for line in lines if line and not line.startswith("#version")]  # "# #" is a merge, not a comment
    sections = bpe.describe(vocab, merges, config.get("add_prefix_space", False))
    default = "RobertaTokenizer" if "<s>" in vocab and "</s>" in vocab else "GPT2Tokenizer"
    config["tokenizer_class"] = config.get("tokenizer_class") or default
    return complete(sections, config, f"{folder}/vocab.json")


def read_model(name, usual, folder, config):
    """A SentencePiece file, with the tokens and the layout that its family adds. name: of the file.
    usual: tokenizer_class if none is given; None: Gemma's if "<bos>" is a piece, else LLaMA's."""
    source = os.path.join(folder, name)
    later_prefix = usual is not None or config.get("legacy") is not False  # only LLaMA's `legacy` false drops it
    if config.get("split_by_punct") or config.get("sp_model_kwargs"):
        raise InputError(f"{folder}/tokenizer_config.json: split_by_punct and sp_model_kwargs are not supported with "
                         f"{name}; save the tokenizer once with transformers, which writes a tokenizer.json")
    sections, tokens = sentencepiece_model.describe(source, config.get("add_prefix_space"),
                                                    config.get("do_lower_case", False), later_prefix)
    vocab = vocab_of(sections)
    usual = usual or ("GemmaTokenizer" if "<bos>" in vocab else "LlamaTokenizer")
    name_of_class = (config.get("tokenizer_class") or usual).removesuffix("Fast")
    if name_of_class not in FRAMES:
        raise InputError(f"{source}: tokenizer_class {short(name_of_class)} is not supported without a tokenizer.json, only "
                         f"{', '.join(FRAMES)}; save the tokenizer once with transformers, which writes that file")
    config["tokenizer_class"] = name_of_class
    more = [text for text in APPENDED.get(name_of_class, lambda config: [])(config) if text not in vocab]
    tokens += [{"id": len(vocab) + n, "content": text, "special": True, "normalized": False}
               for n, text in enumerate(more)]
    said = {token["content"] for token in config["added_tokens_decoder"].values()}  # the config knows better
    sections["added_tokens"] = added_tokens(vocab, [t for t in tokens if t["content"] not in said], config, source)
    frames = FRAMES[name_of_class] or flagged(config)
    return sections | {"version": "1.0", "truncation": None, "padding": None,
                       "post_processor": template(*frames, vocab_of(sections), config, source)}


READERS = {"tokenizer.json": read_tokenizer_json, "vocab.txt": read_vocab_txt, "vocab.json": read_vocab_json,
           "spiece.model": functools.partial(read_model, "spiece.model", "T5Tokenizer"),
           "spm.model": functools.partial(read_model, "spm.model", "DebertaV2Tokenizer"),
           "tokenizer.model": functools.partial(read_model, "tokenizer.model", None)}


def read_json(folder, name, default=None):
    """The object in a JSON file; if there is no such file, `default`, unless that is None."""
    path = os.path.join(folder, name)
    return default if default is not None and not os.path.isfile(path) else files.read_json(path)


def read_config(folder, name):
    """tokenizer_config.json or its companion, checked; a null says as little as a missing key."""
    path = os.path.join(folder, name)
    config = check_fields(read_json(folder, name, {}), CONFIG, path)
    for i, token in config.get("added_tokens_decoder", {}).items():
        check_fields(token, ADDED, f"{path}: added_tokens_decoder[{short(i)}]")
        if not re.fullmatch("[0-9]{1,9}", i):
            raise InputError(f"{path}: added_tokens_decoder[{short(i)}] is no id: fetch the file again")
    return {key: value for key, value in config.items() if value is not None or key not in FLAGS}


def check_each(values, should_be, where):
    """Raise InputError unless each entry of a list or object is what it should be: (test, words). -> values"""
    test, words = should_be
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if not test(value):
            raise InputError(f"{where}[{short(key)}] = {short(value)}, which should be {words}: fetch the file again")
    return values


def read_lines(folder, name):
    """The lines of a text file without the spaces at their ends."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.rstrip() for line in file]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); fetch the file again") from None


def vocab_of(document):
    """{piece: id}, added tokens included. Unigram has a list of [piece, score], the others a dict."""
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in document.get("added_tokens") or []}


def complete(sections, config, source):
    """A whole tokenizer.json: the sections of an algorithm, and the special tokens of config["tokenizer_class"]."""
    name, kind = config["tokenizer_class"], sections["model"]["type"]
    usual = FAMILIES.get(name.removesuffix("Fast"))
    if usual is None or (usual is BERT) != (kind == "WordPiece"):
        raise InputError(f"{source}: tokenizer_class {short(name)} is not supported without a tokenizer.json; save the "
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
                raise InputError(f"{source} has {key} {known.get(key)} for {short(token['content'])}, but "
                                 f"tokenizer_config.json {token.get(key)}; set both alike")
    ids = {text: token["id"] for text, token in added.items()}
    moved = [text for text in ids if vocab.get(text, ids[text]) != ids[text]]
    if moved:
        raise InputError(f"{source}: {short(moved[0])} has id {ids[moved[0]]} as an added token, {vocab[moved[0]]} in the "
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
                raise InputError(f"{source}: {key} has {short(content(token))}, which is neither in the vocabulary of "
                                 f"{len(vocab)} pieces nor an added token; add it, or leave it out of the config")
            found.append((content(token), {}))
    return found


def check(component, types, source, place):
    """Raise InputError unless the component is of one of `types`, with settings that we implement."""
    kind = "null" if component is None else component["type"]
    if kind == "Sequence" and kind in types:
        for step in components.parts(component, place):
            check(step, types, source, place)
        return
    if kind not in types:
        raise InputError(f"{source}: {place}.type {short(kind)} is not supported here, only {', '.join(types)}")
    keys = {key.removesuffix("?"): values for key, values in KEYS[kind].items()}
    for key, value in (component or {}).items():
        if key != "type" and (key not in keys or not callable(keys[key][0]) and value not in keys[key]):
            only = ", ".join(map(json.dumps, keys[key]) if key in keys else keys)
            plain = isinstance(value, (str, bool, type(None))) and len(str(value)) < 60
            shown = json.dumps(value) if plain else short(value)
            raise InputError(f"{source}: {place}.{key} = {shown} is not supported, only {only}")
    check_fields(component or {}, {key: values if callable(values[0]) else ANY for key, values in KEYS[kind].items()},
                 f"{source}: {place}")
