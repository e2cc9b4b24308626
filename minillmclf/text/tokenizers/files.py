"""The files that a tokenizer comes in, all read into one `Description`: READERS has their names,
and `load_tokenizer` says which family has which.

Special tokens stand in tokenizer_config.json, or in the older special_tokens_map.json and
added_tokens.json. Not here: what is made of their contents (description.py), what a file may hold
(schema.py), the content of a .model file (model_file.py).
The formats are those of the `tokenizers` and `transformers` libraries.
"""

import functools
import os
import re

from ... import files
from ...errors import InputError
from ...files import short
from . import bpe, model_file
from .description import describe, vocab_of
from .families import FAMILIES, token_text
from .schema import CONFIG, CONFIG_FLAGS, ID, check


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
    """The content of the file. Where it has no post_processor there is none, not the family's."""
    document = files.read_json(path)
    document.setdefault("post_processor", None)
    return document


def read_vocab_txt(path, config):
    """BERT: one piece per line; the line number, from 0, is the id."""
    vocab = {piece: i for i, piece in enumerate(read_lines(path))}
    cased = any(piece != piece.lower() for piece in vocab if not piece.startswith("["))
    set_class("BertTokenizer", "vocab.txt", config, path)
    return wordpiece_document(vocab, {"do_lower_case": not cased} | config)


def wordpiece_document(vocab, config):
    return {"normalizer": {"type": "BertNormalizer", "clean_text": True,
                           "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
                           "strip_accents": config.get("strip_accents"),
                           "lowercase": config["do_lower_case"]},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece",
                      "unk_token": token_text(config.get("unk_token", "[UNK]")),
                      "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                      "vocab": vocab}}


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
    name, more = set_class(default_class, ".model", config, path), []    # more: not in the file
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
    """Set a missing tokenizer_class to `default` -> the class without "Fast". InputError for one
    that does not come in files like `vocab_file`."""
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
