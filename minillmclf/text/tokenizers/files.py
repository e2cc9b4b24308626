"""The files that a tokenizer comes in, all read into one `Description`.

    tokenizer.json                              the description itself
    vocab.txt                                   BERT
    vocab.json, merges.txt                      GPT-2, RoBERTa, Qwen
    spiece.model, spm.model, tokenizer.model    T5; DeBERTa-v3; LLaMA, Mistral, Gemma
    sentencepiece.bpe.model                     XLM-RoBERTa

Special tokens stand in tokenizer_config.json, or in the older special_tokens_map.json and
added_tokens.json. Not here: the defaults of a family (families.py), what a file may hold
(schema.py), the content of a .model file (model_file.py), text -> ids (tokenizer.py).
The formats are those of the `tokenizers` and `transformers` libraries.
"""

import functools
import os
import re
from typing import NamedTuple

from ... import files
from ...errors import InputError
from ...files import short
from . import bpe, model_file
from .families import (DEBERTA, FAMILIES, ROBERTA, XLM_ROBERTA, family_layouts, family_of_class,
                       find_family, find_roles, has_one_bos, read_layouts, token_text,
                       write_layouts)
from .schema import ADDED_TOKEN, CONFIG, CONFIG_FLAGS, ID, check, check_document, check_type
from .steps import steps_of


class Description(NamedTuple):
    """All that a Tokenizer is built from. source: the file that errors name."""

    document: dict         # as in a tokenizer.json, checked
    roles: dict            # {"cls": "[CLS]", ...}, the special tokens that the checkpoint has
    layouts: list          # for one text and for a pair, see families.py
    settings: dict         # what the document repeats of tokenizer_config.json, by its keys
    max_length: int | None
    one_bos: bool          # there must be exactly one BOS, see families.py
    inputs: list           # names of the model's inputs: "input_ids", ...
    source: str


def describe(document, config, source):
    """The Description from the contents of tokenizer.json and tokenizer_config.json, two dicts.

    A document without a post_processor gets that of its family. InputError if the two are
    malformed, not supported, or contradict each other.
    """
    check_document(document, source)
    document.setdefault("version", "1.0")
    document |= {"truncation": None, "padding": None}  # decided per batch
    added = read_added_tokens(document, config, source)
    vocab = vocab_of(document) | {text: token["id"] for text, token in added.items()}
    ids = set(vocab.values())
    if len(ids) < len(vocab) or not vocab:
        raise InputError(f"{source}: {len(vocab)} pieces with {len(ids)} different ids; each piece "
                         "needs one of its own, from 0 up: fetch the file again")
    family, roles = find_family(vocab, config), find_roles(vocab, config, source)
    document["added_tokens"] = mark_special_tokens(added, roles, vocab, config, source)
    layouts = find_layouts(document, family, roles, vocab, config, source)
    settings = document_settings(document)
    check_agreement(settings, layouts, roles, vocab, config, source)
    inputs = ["input_ids", "attention_mask"]
    if family is DEBERTA or document["model"]["type"] == "WordPiece":
        inputs.insert(1, "token_type_ids")
    length = config.get("model_max_length", config.get("max_len"))
    max_length = None if length is None or length > 10**9 else int(length)
    return Description(document, roles, layouts, settings, max_length, family.one_bos,
                       config.get("model_input_names") or inputs, source)


def find_layouts(document, family, roles, vocab, config, source):
    """The document's layouts, or else its family's, which are then written into the document."""
    if family.one_bos and config.get("add_bos_token") is False:
        raise InputError(f"{source}: add_bos_token is false in tokenizer_config.json, but a model "
                         "of this family needs exactly one BOS before a text; remove the key")
    if "post_processor" in document:
        layouts = read_layouts(document["post_processor"], source)
        if not family.one_bos or has_one_bos(layouts, roles, vocab):
            return layouts
        eos = [vocab.get(roles.get("eos"))]
        if eos in [part for layout in layouts for part, _ in layout]:
            config = config | {"add_eos_token": True}  # keep its EOS
    layouts = family_layouts(family, roles, vocab, config, source)
    document["post_processor"] = write_layouts(layouts, family, roles, vocab, config)
    return layouts


def check_agreement(settings, layouts, roles, vocab, config, source):
    """InputError if a layout has an unknown id, or if config and document disagree.

    Versions of transformers differ in which of the two they follow.
    """
    single, pair = layouts
    ids = set(vocab.values())
    unknown = [i for part, _ in single + pair if part not in ("A", "B") for i in part
               if i not in ids]
    if unknown:
        raise InputError(f"{source}: post_processor puts id {unknown[0]} around a text, which is "
                         f"no piece's; the highest id is {max(ids)}: fetch the file again")
    bos, eos = ([vocab.get(roles.get(role))] for role in ("bos", "eos"))
    found = settings | {"add_bos_token": single[0][0] == bos, "add_eos_token": single[-1][0] == eos}
    for key, value in found.items():
        if config.get(key) not in (None, value):
            raise InputError(f"{source} has {key} {value}, but tokenizer_config.json "
                             f"{config[key]}; set both alike")


def document_settings(document):
    """The document's settings that tokenizer_config.json repeats, by its keys."""
    model, normal, cut = (document.get(key) for key in ("model", "normalizer", "pre_tokenizer"))
    if model["type"] == "WordPiece":
        lower, accents = normal["lowercase"], normal.get("strip_accents")
        return {"do_lower_case": lower, "strip_accents": lower if accents is None else accents,
                "tokenize_chinese_chars": normal["handle_chinese_chars"]}
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        return {"add_prefix_space": steps_of(cut, "pre_tokenizer")[-1]["add_prefix_space"]}
    return {}


def vocab_of(document):
    """{piece: id}, added tokens included. A Unigram document lists [piece, score] by id."""
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in document.get("added_tokens") or []}


# ------------------------------------------------------------------------------- the added tokens

def read_added_tokens(document, config, source):
    """{text: token}: the tokens to match literally in a text, from document and config."""
    added = {token["content"]: token for token in document.get("added_tokens") or []}
    vocab = vocab_of({"model": document["model"]})
    for i, token in config.get("added_tokens_decoder", {}).items():
        known = added.setdefault(token["content"], {"id": int(i), **token})
        for key, said in (("id", int(i)), ("lstrip", token.get("lstrip", False)),
                          ("rstrip", token.get("rstrip", False))):
            if known.get(key, False) != said:
                raise InputError(f"{source} has {key} {known.get(key)} for "
                                 f"{short(token['content'])}, but tokenizer_config.json {said}; "
                                 "set both alike")
    for text, token in added.items():
        if vocab.get(text, token["id"]) != token["id"]:
            raise InputError(f"{source}: {short(text)} has id {token['id']} as an added token, "
                             f"{vocab[text]} in the vocabulary; set both alike")
    return added


def mark_special_tokens(added, roles, vocab, config, source):
    """The added tokens, sorted by id, with the special tokens of the config or its class."""
    family, special = family_of_class(config), {}
    for role, text in roles.items():
        given = config.get(f"{role}_token")
        if isinstance(given, dict):
            flags = {flag: bool(given.get(flag)) for flag in ("lstrip", "rstrip")}
            special.setdefault(text, flags)
        elif given or family and role in family.tokens:
            # RoBERTa's mask takes the space before it: "a <mask>" is two pieces
            lstrip = family in (ROBERTA, XLM_ROBERTA) and role == "mask"
            special.setdefault(text, {"lstrip": lstrip})
    for key in ("additional_special_tokens", "extra_special_tokens"):
        given = config.get(key) or []
        for token in given.values() if isinstance(given, dict) else given:
            special.setdefault(token_text(token), {})
            if token_text(token) not in vocab:
                raise InputError(f"{source}: {key} has {short(token_text(token))}, which is "
                                 f"neither in the vocabulary of {len(vocab)} pieces nor an added "
                                 "token; add it, or leave it out of the config")
    for text, flags in special.items():
        added[text] = {"id": vocab[text], "normalized": False, **flags, **added.get(text, {}),
                       "content": text, "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
             "special": False}
    tokens = sorted((flags | token for token in added.values()), key=lambda token: token["id"])
    for token in tokens:
        check_type(token | {"type": "added_token"}, {"added_token": ADDED_TOKEN}, source,
                   f"added_tokens {short(token['content'])}")
    return tokens


# ------------------------------------------------------------------------------------- the files

def read_folder(folder):
    """The Description of a folder's tokenizer, from the first file of READERS that exists."""
    config = read_config(folder)
    for name, read in READERS.items():
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return describe(read(path, config), config, path)
    raise InputError(f"{folder}: no folder that holds {' or '.join(READERS)}; name the folder of a "
                     "checkpoint")


def read_config(folder):
    """The content of tokenizer_config.json, without flags that are null."""
    def read(name, schema):
        path = os.path.join(folder, name)
        return check(files.read_json(path), schema, path) if os.path.isfile(path) else {}

    config = read("tokenizer_config.json", CONFIG)
    if "added_tokens_decoder" not in config:  # older checkpoints: in two other files
        config |= read("special_tokens_map.json", CONFIG)
        added = read("added_tokens.json", {"*": ID})
        config["added_tokens_decoder"] = {str(i): {"content": text} for text, i in added.items()}
        if len(config["added_tokens_decoder"]) < len(added):
            raise InputError(f"{folder}/added_tokens.json: {len(added)} tokens with "
                             f"{len(config['added_tokens_decoder'])} different ids; each needs one "
                             "of its own: fetch it again")
    for i in config["added_tokens_decoder"]:
        if not re.fullmatch("[0-9]{1,10}", i):
            raise InputError(f"{folder}/tokenizer_config.json: added_tokens_decoder[{short(i)}] is "
                             "no id: fetch the file again")
    if config.get("split_special_tokens"):
        raise InputError(f"{folder}/tokenizer_config.json: split_special_tokens true is not "
                         "supported, only false")
    return {key: value for key, value in config.items()
            if value is not None or key not in CONFIG_FLAGS}


def read_tokenizer_json(path, config):
    document = files.read_json(path)
    document.setdefault("post_processor", None)
    return document


def read_vocab_txt(path, config):
    """BERT: one piece per line; the line number, from 0, is the id."""
    vocab = {piece: i for i, piece in enumerate(read_lines(path))}
    cased = any(piece != piece.lower() for piece in vocab if not piece.startswith("["))
    set_class("BertTokenizer", "vocab.txt", config, path)
    return wordpiece_document(vocab, config.get("do_lower_case", not cased),
                              config.get("strip_accents"),
                              config.get("tokenize_chinese_chars", True),
                              token_text(config.get("unk_token", "[UNK]")))


def wordpiece_document(vocab, lower, strip_accents=None, chinese=True, unk="[UNK]"):
    return {"normalizer": {"type": "BertNormalizer", "clean_text": True,
                           "handle_chinese_chars": chinese, "strip_accents": strip_accents,
                           "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab}}


def read_vocab_json(path, config):
    """GPT-2, RoBERTa and Qwen: {piece: id}; merges.txt has one merge per line, the lowest rank
    first. Qwen is known by its tokenizer_class alone."""
    vocab = files.read_json(path)
    lines = read_lines(os.path.join(os.path.dirname(path), "merges.txt"))
    merges = [line for line in lines if line and not line.startswith("#version")]
    roberta = "<s>" in vocab and "</s>" in vocab
    default = "RobertaTokenizer" if roberta else "GPT2Tokenizer"
    name = set_class(default, "vocab.json", config, path)
    byte_level = {"type": "ByteLevel", "add_prefix_space": config.get("add_prefix_space", False),
                  "trim_offsets": True, "use_regex": True}
    normal, cut = None, byte_level
    if name == "Qwen2Tokenizer":
        normal = {"type": "NFC"}
        split = {"type": "Split", "pattern": {"Regex": bpe.QWEN_SPLIT}, "behavior": "Isolated"}
        cut = {"type": "Sequence",
               "pretokenizers": [split | {"invert": False}, byte_level | {"use_regex": False}]}
    return {"normalizer": normal, "pre_tokenizer": cut, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
                      "byte_fallback": False, "ignore_merges": False, "vocab": vocab,
                      "merges": merges}}


def read_sentencepiece(default_class, path, config):
    """A SentencePiece .model file, with the added tokens of its family."""
    for key in ("split_by_punct", "sp_model_kwargs"):
        if config.get(key):
            raise InputError(f"{path}: {key} in tokenizer_config.json is not supported with a "
                             ".model file; save the tokenizer once with transformers, which writes "
                             "a tokenizer.json")
    # only LLaMA with `legacy` false puts no space before text that follows a special token
    later_prefix = default_class != "LlamaTokenizer" or config.get("legacy") is not False
    sections, tokens = model_file.read_sections(
        path, config.get("add_prefix_space"), config.get("do_lower_case", False), later_prefix)
    vocab = vocab_of(sections)
    if default_class == "LlamaTokenizer" and "<bos>" in vocab:
        default_class = "GemmaTokenizer"
    name, more = set_class(default_class, ".model", config, path), []
    if name == "T5Tokenizer":  # its sentinels count down: <extra_id_0> has the last id
        more = [f"<extra_id_{n}>" for n in reversed(range(config.get("extra_ids", 100)))]
    elif name == "DebertaV2Tokenizer":
        more = ["[MASK]"]
    elif name == "XLMRobertaTokenizer":
        tokens, more = number_as_fairseq(sections, path), ["<mask>"]
        vocab = vocab_of(sections)
    more = [text for text in more if text not in vocab]
    tokens += [{"id": len(vocab) + n, "content": text, "special": True, "normalized": False}
               for n, text in enumerate(more)]
    known = {token["content"] for token in config["added_tokens_decoder"].values()}
    sections["added_tokens"] = [token for token in tokens if token["content"] not in known]
    return sections


def number_as_fairseq(sections, source):
    """Give the pieces of a .model file the ids that XLM-RoBERTa was trained with: four special ones
    come first, and all that follows the file's own three has an id higher by 1. -> added tokens"""
    special, model = ["<s>", "<pad>", "</s>", "<unk>"], sections["model"]
    found = [piece for piece, _ in model["vocab"][:3]]
    if model["type"] != "Unigram" or sorted(found) != ["</s>", "<s>", "<unk>"]:
        raise InputError(f"{source}: a {model['type']} model that begins with {short(found)}: for "
                         "XLM-RoBERTa it should be Unigram, and begin with <unk>, <s> and </s>")
    model["vocab"], model["unk_id"] = [*([piece, 0.0] for piece in special), *model["vocab"][3:]], 3
    return [{"id": i, "content": piece, "special": True, "normalized": False}
            for i, piece in enumerate(special)]


READERS = {"tokenizer.json": read_tokenizer_json, "vocab.txt": read_vocab_txt,
           "vocab.json": read_vocab_json,
           "spiece.model": functools.partial(read_sentencepiece, "T5Tokenizer"),
           "sentencepiece.bpe.model": functools.partial(read_sentencepiece, "XLMRobertaTokenizer"),
           "spm.model": functools.partial(read_sentencepiece, "DebertaV2Tokenizer"),
           "tokenizer.model": functools.partial(read_sentencepiece, "LlamaTokenizer")}


def set_class(default, vocab_file, config, source):
    """Set a missing tokenizer_class to `default` -> the class without "Fast"."""
    config["tokenizer_class"] = config.get("tokenizer_class") or default
    name = config["tokenizer_class"].removesuffix("Fast")
    known = [each for each, family in FAMILIES.items() if family.vocab_file == vocab_file]
    if name not in known:
        raise InputError(f"{source}: tokenizer_class {short(name)} is not supported without a "
                         f"tokenizer.json, only {', '.join(known)}; save the tokenizer once with "
                         "transformers, which writes that file")
    if vocab_file != ".model" and (config.get("add_bos_token") or config.get("add_eos_token")):
        raise InputError(f"{source}: add_bos_token and add_eos_token are supported in a "
                         "tokenizer.json only")
    return name


def read_lines(path):
    """The lines of a UTF-8 file, without trailing whitespace."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.rstrip() for line in file]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); fetch the file "
                         "again") from None
