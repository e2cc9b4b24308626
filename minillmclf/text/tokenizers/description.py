"""The `Description` of a tokenizer: what its files say, checked, with the defaults of its family.

Two dicts go in, the contents of tokenizer.json and of tokenizer_config.json, and must agree. Not
here: reading files (files.py), the defaults of a family (families.py), what a file may hold
(schema.py), text -> ids (tokenizer.py).
"""
from typing import NamedTuple

from ...errors import InputError
from ...files import short
from .families import (DEBERTA, ROBERTA, XLM_ROBERTA, family_layouts, family_of_class, find_family,
                       find_roles, has_one_bos, read_layouts, token_text, write_layouts)
from .schema import ADDED_TOKEN, LIMIT, check_document, check_type
from .steps import steps_of


class Description(NamedTuple):
    """All that a Tokenizer is built from. On the right: what it is for mini-bert."""

    document: dict         # as in a tokenizer.json, checked     {"model": {"type": "WordPiece", ...
    roles: dict            # the special tokens that it has      {"cls": "[CLS]", "sep": "[SEP]", ..
    layouts: tuple         # of one text and of a pair           ([([2], 0), ("A", 0), ([3], 0)], ..
    settings: dict         # what the config repeats of it       {"do_lower_case": True, ...
    max_length: int | None                                     # 512
    one_bos: bool          # must there be exactly one BOS?      False
    inputs: list           # names of the model's inputs         ["input_ids", "token_type_ids", ...
    kept_end: str          # of a text that transformers cuts    "head", or else "tail"
    source: str            # the file that errors name           checkpoints/.../tokenizer.json


def describe(document, config, source):
    """-> Description. document, config: the contents of tokenizer.json and tokenizer_config.json.

    The document is completed in place; without a post_processor it gets that of its family.
    InputError if the two are malformed, not supported, or contradict each other.
    """
    check_document(document, source)
    document.setdefault("version", "1.0")
    cut_side = config.get("truncation_side") or (document.get("truncation") or {}).get("direction")
    document |= {"truncation": None, "padding": None}  # decided per batch
    added = read_added_tokens(document, config, source)
    vocab = vocab_of(document) | {text: token["id"] for text, token in added.items()}
    ids = set(vocab.values())
    if len(ids) < len(vocab) or not vocab:
        raise InputError(f"{source}: {len(vocab)} pieces with {len(ids)} different ids; each piece "
                         "needs one of its own, from 0 up: fetch the file again")
    family = find_family(vocab, config)
    roles = find_roles(family, vocab, config, source)
    document["added_tokens"] = mark_special_tokens(added, roles, vocab, config, source)
    layouts = find_layouts(document, family, roles, vocab, config, source)
    settings = document_settings(document)
    check_agreement(settings, layouts, roles, vocab, config, source)
    inputs = ["input_ids", "attention_mask"]
    if family is DEBERTA or document["model"]["type"] == "WordPiece":
        inputs.insert(1, "token_type_ids")
    length = config.get(LIMIT, config.get("model_max_length", config.get("max_len")))
    max_length = None if length is None or length > 10**9 else int(length)
    return Description(document, roles, layouts, settings, max_length, family.one_bos,
                       config.get("model_input_names") or inputs,
                       "tail" if cut_side in ("left", "Left") else "head", source)


def find_layouts(document, family, roles, vocab, config, source):
    """The document's layouts, or else its family's, which are then written into the document.

    The document's own are not taken either if they lack the one BOS that a family must have.
    """
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
    model, normalizer = document["model"], document.get("normalizer")
    if model["type"] == "WordPiece":
        lower, accents = normalizer["lowercase"], normalizer.get("strip_accents")
        return {"do_lower_case": lower, "strip_accents": lower if accents is None else accents,
                "tokenize_chinese_chars": normalizer["handle_chinese_chars"]}
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        byte_level = steps_of(document.get("pre_tokenizer"), "pre_tokenizer")[-1]
        return {"add_prefix_space": byte_level["add_prefix_space"]}
    return {}


def vocab_of(document):
    """{piece: id}, added tokens included. A Unigram document lists [piece, score] by id."""
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in document.get("added_tokens") or []}


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


def find_special_tokens(roles, vocab, config, source):
    """{text: flags} of the special tokens that the config names, or that its class always has."""
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
    return special


def mark_special_tokens(added, roles, vocab, config, source):
    """The added tokens with all their flags, sorted by id; the special ones are among them."""
    for text, flags in find_special_tokens(roles, vocab, config, source).items():
        added[text] = {"id": vocab[text], "normalized": False, **flags, **added.get(text, {}),
                       "content": text, "special": True}
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
                "special": False}
    tokens = sorted((defaults | token for token in added.values()), key=lambda token: token["id"])
    for token in tokens:
        check_type(token | {"type": "added_token"}, {"added_token": ADDED_TOKEN}, source,
                   f"added_tokens {short(token['content'])}")
    return tokens
