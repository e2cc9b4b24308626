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

from minillmclf import files
from minillmclf.errors import InputError
from minillmclf.text import bpe, components, sentencepiece_model, wordpiece
from minillmclf.text.families import (APPENDED, BERT, FAMILIES, FRAMES, GPT2, ROBERTA, content, flagged, frame,
                                      role_names, template, with_one_bos)

ANY = None
# type of a component -> its keys, each with the values that we implement (ANY: all of them, or the key changes no id)
KEYS = {
    "WordPiece": {"vocab": ANY, "unk_token": ANY, "continuing_subword_prefix": ANY, "max_input_chars_per_word": ANY},
    "BPE": {"vocab": ANY, "merges": ANY, "ignore_merges": ANY, "unk_token": ANY, "fuse_unk": ANY,
            "dropout": (None, 0), "byte_fallback": (False,), "continuing_subword_prefix": (None, ""),
            "end_of_word_suffix": (None, "")},
    "BPE with byte_fallback": {"vocab": ANY, "merges": ANY, "ignore_merges": (False,), "unk_token": ANY,
                               "fuse_unk": ANY, "dropout": (None, 0), "byte_fallback": (True,),
                               "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")},
    "Unigram": {"vocab": ANY, "unk_id": ANY, "byte_fallback": ANY},
    "null": {},
    "BertNormalizer": {"lowercase": ANY, "strip_accents": ANY, "handle_chinese_chars": ANY, "clean_text": (True,)},
    "BertPreTokenizer": {},
    "ByteLevel": {"add_prefix_space": ANY, "trim_offsets": ANY, "use_regex": ANY},
    "Precompiled": {"precompiled_charsmap": ANY},
    "Replace": {"pattern": ANY, "content": ANY},
    "Prepend": {"prepend": ANY},
    "Strip": {"strip_left": ANY, "strip_right": ANY},
    "Lowercase": {}, "NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {},
    "Metaspace": {"replacement": (components.META,), "prepend_scheme": ("always", "first", "never"), "split": ANY,
                  "add_prefix_space": ANY, "str_rep": ANY},
    "Split": {"pattern": ANY, "behavior": ("Isolated", "MergedWithPrevious", "MergedWithNext"), "invert": (False,)},
    "WhitespaceSplit": {},
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
            document, source = read(folder, config), os.path.join(folder, name)
            post = with_one_bos(document.get("post_processor"), vocab_of(document), config, source)
            return document | {"post_processor": post}, config, source
    raise InputError(f"{folder}: no folder that holds {' or '.join(READERS)}; name the folder of a checkpoint")


def read_tokenizer_json(folder, config):
    """The file that says all, and the special tokens that the config names besides."""
    document, source = read_json(folder, "tokenizer.json"), f"{folder}/tokenizer.json"
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
        raise InputError(f"{source}: tokenizer_class {name_of_class!r} is not supported without a tokenizer.json, only "
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


def check(component, types, source, place):
    """Raise InputError unless the component is of one of `types`, with settings that we implement."""
    kind = "null" if component is None else component["type"]
    if kind == "Sequence" and kind in types:
        for step in components.parts(component, place):
            check(step, types, source, place)
        return
    if kind not in types:
        raise InputError(f"{source}: {place}.type {kind!r} is not supported here, only {', '.join(types)}")
    for key, value in (component or {}).items():
        if key != "type" and (key not in KEYS[kind] or KEYS[kind][key] is not ANY and value not in KEYS[kind][key]):
            only = ", ".join(map(json.dumps, KEYS[kind].get(key) or ())) or f"{', '.join(KEYS[kind])}"
            raise InputError(f"{source}: {place}.{key} = {json.dumps(value)[:60]} is not supported, only {only}")
