"""What the JSON files of a tokenizer may hold: tables, and the functions that check them.

A value that the table does not allow would change ids or crash later, so it is an error. The format
is that of the `tokenizers` library (tokenizer.json) and of transformers (tokenizer_config.json).
"""

from ...errors import InputError
from ...files import short
from . import bpe, steps
from .unigram import BYTE_PIECES

ROLES = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")


def is_text(value):
    return isinstance(value, str)


def is_flag(value):
    return value is None or isinstance(value, bool)


def is_id(value):
    return type(value) is int and 0 <= value < 2**31


def is_list(value, test, length=None):
    return isinstance(value, list) and length in (None, len(value)) and all(map(test, value))


def is_token(value):
    """A special token of a config: its text, or an object with it and flags."""
    if isinstance(value, dict):
        return is_text(value.get("content")) and all(is_flag(value.get(flag)) for flag in FLAGS)
    return is_text(value)


def is_layout_step(value):
    """{"Sequence": {"id": "A", "type_id": 0}}, or the same with "SpecialToken"."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    part = value.get("Sequence") or value.get("SpecialToken")
    return isinstance(part, dict) and is_text(part.get("id")) and part.get("type_id") in (0, 1)


def is_pattern(value):
    return isinstance(value, dict) and list(value) in (["String"], ["Regex"]) and \
        all(is_text(text) and text for text in value.values())


def is_score(value):
    return isinstance(value, list) and len(value) == 2 and is_text(value[0]) and \
        type(value[1]) in (int, float) and abs(value[1]) < 1e38


FLAGS = ("lstrip", "rstrip", "normalized", "special", "single_word")

# (test of a value, what it should be)
TEXT = is_text, "text"
NAME = (lambda value: value is None or is_text(value)), "text"
SHORT = (lambda value: is_text(value) and len(value) <= 1000), "text of at most 1000 characters"
BOOL = (lambda value: isinstance(value, bool)), "true or false"
FLAG = is_flag, "true, false or null"
ANY = (lambda value: True), "any value"  # of a key that changes no id
ID = is_id, "a whole number from 0 up"
INDEX = (lambda value: value is None or type(value) is int), "a whole number"
SCORE = is_score, "[piece, score]"
MERGE = (lambda value: is_text(value) or is_list(value, is_text, 2)), '"a b" or ["a", "b"]'
LAYOUT = ((lambda value: is_list(value, is_layout_step)),
          "a list of Sequence and SpecialToken steps with an id and type_id 0 or 1")
PAIR = ((lambda value: is_list(value, lambda _: True, 2) and is_text(value[0]) and is_id(value[1])),
        "[token, id]")
PATTERN = is_pattern, "an object with one String or Regex that is not empty"
TOKEN = (lambda value: value is None or is_token(value)), "a text, or an object with a content"
TOKENS = ((lambda value: value is None or is_list(value, is_token)
           or isinstance(value, dict) and all(map(is_token, value.values()))), "a list of tokens")
LENGTH = ((lambda value: value is None or type(value) in (int, float) and value >= 1),
          "a number from 1 up")
COUNT = (lambda value: is_id(value) and value <= 10000), "a number from 0 to 10000"
NAMES = (lambda value: value is None or is_list(value, is_text)), "a list of names"


# Schemas, as `check` reads them: (test, words); a tuple of the only values that are supported;
# [schema of each entry]; {"*": schema of each value}; {key: schema}, "key?" may be missing.
VOCAB, SCORES, MERGES, SPECIALS = {"*": ID}, [SCORE], [MERGE], {"*": {"ids": [ID]}}
ADDED_TOKEN = {"content": TEXT} | {f"{flag}?": FLAG for flag in FLAGS}
MERGED_TOKEN = {"id": ID, "content": TEXT, "special?": BOOL, "normalized?": BOOL, "lstrip?": BOOL,
                "rstrip?": BOOL, "single_word?": (False,)}
CONFIG_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space",
                "add_bos_token", "add_eos_token", "legacy", "split_special_tokens",
                "split_by_punct")
CONFIG = {"tokenizer_class?": NAME, "model_max_length?": LENGTH, "max_len?": LENGTH,
          "extra_ids?": COUNT, "model_input_names?": NAMES, "additional_special_tokens?": TOKENS,
          "extra_special_tokens?": TOKENS, "added_tokens_decoder?": {"*": ADDED_TOKEN}}
CONFIG |= {f"{role}_token?": TOKEN for role in ROLES}
CONFIG |= {f"{name}?": FLAG for name in CONFIG_FLAGS}

MERGING = {"vocab": VOCAB, "merges": MERGES, "unk_token?": ANY, "fuse_unk?": ANY,
           "dropout?": (None, 0), "continuing_subword_prefix?": (None, ""),
           "end_of_word_suffix?": (None, "")}
MODELS = {
    "WordPiece": {"vocab": VOCAB, "unk_token": TEXT, "continuing_subword_prefix": TEXT,
                  "max_input_chars_per_word": ID},
    "BPE": MERGING | {"ignore_merges?": FLAG, "byte_fallback?": (False,)},
    "BPE with byte_fallback": MERGING | {"ignore_merges?": (False,), "byte_fallback": (True,)},
    "Unigram": {"vocab": SCORES, "unk_id": INDEX, "byte_fallback?": BOOL},
}
STEPS = {
    "BertNormalizer": {"lowercase": BOOL, "strip_accents?": FLAG, "handle_chinese_chars": BOOL,
                       "clean_text?": (True,)},
    "Precompiled": {"precompiled_charsmap": TEXT},
    "Replace": {"pattern": PATTERN, "content": SHORT},
    "Prepend": {"prepend": SHORT},
    "Strip": {"strip_left": BOOL, "strip_right": BOOL},
    "Lowercase": {}, "NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {},
    "BertPreTokenizer": {},
    "ByteLevel": {"add_prefix_space": BOOL, "trim_offsets?": ANY, "use_regex?": BOOL},
    "Metaspace": {"replacement": (steps.META,), "prepend_scheme?": ("always", "first", "never"),
                  "split?": BOOL, "add_prefix_space?": BOOL, "str_rep?": ANY},
    "Split": {"pattern": PATTERN, "invert?": (False,),
              "behavior": ("Isolated", "MergedWithPrevious", "MergedWithNext")},
    "WhitespaceSplit": {},
    "TemplateProcessing": {"single": LAYOUT, "pair": LAYOUT, "special_tokens": SPECIALS},
    "BertProcessing": {"cls": PAIR, "sep": PAIR},
    "RobertaProcessing": {"cls": PAIR, "sep": PAIR, "trim_offsets?": ANY, "add_prefix_space?": ANY},
}
# model -> the normalizers and pre_tokenizers that go with it; null: it may have none
SENTENCEPIECE = {"normalizer": ("null", *steps.NORMALIZERS),
                 "pre_tokenizer": ("null", "Metaspace", "Split", "WhitespaceSplit")}
KINDS = {"WordPiece": {"normalizer": ("BertNormalizer",), "pre_tokenizer": ("BertPreTokenizer",)},
         "BPE": {"normalizer": ("null", "NFC"), "pre_tokenizer": ("ByteLevel", "Split")},
         "BPE with byte_fallback": SENTENCEPIECE, "Unigram": SENTENCEPIECE}
POST = ("null", "ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing")


def check(value, schema, source, place=""):
    """InputError unless `value` is as the schema says. -> value. place: its keys, for the error."""
    def fail(should_be):
        raise InputError(f"{source}: {place} = {short(value)} (should be {should_be}): fetch the "
                         "file again")

    if isinstance(schema, (dict, list)):
        if not isinstance(value, type(schema)):
            fail("an object" if isinstance(schema, dict) else "a list")
        if isinstance(schema, list) or "*" in schema:
            check_each(value, schema, source, place)
            return value
        for key, inner in schema.items():
            name = key.removesuffix("?")
            where = f"{place}.{name}" if place else name
            if name in value:
                check(value[name], inner, source, where)
            elif name == key:
                raise InputError(f"{source}: {where} is missing: fetch the file again")
    elif not callable(schema[0]):
        if value not in schema:
            raise InputError(f"{source}: {place} = {short(value)} is not supported, only "
                             f"{', '.join(map(repr, schema))}")
    elif not schema[0](value):
        fail(schema[1])
    return value


def check_each(value, schema, source, place):
    """`check` each entry of a list or object, with as little work as possible: there are 250,000."""
    inner = schema[0] if isinstance(schema, list) else schema["*"]
    test = inner[0] if isinstance(inner, tuple) else lambda entry: False
    for key, entry in enumerate(value) if isinstance(schema, list) else value.items():
        if not test(entry):
            check(entry, inner, source, f"{place}[{short(key)}]")


def check_typed(value, table, source, place):
    """InputError unless an object has a type of the table, and only the keys that it names."""
    kind = value["type"]
    if kind not in table:
        raise InputError(f"{source}: {place}.type {short(kind)} is not supported here, only "
                         f"{', '.join(table)}")
    known = ["type", *(key.removesuffix("?") for key in table[kind])]
    for key in value:
        if key not in known:
            raise InputError(f"{source}: {place}.{key} = {short(value[key])} is not supported, "
                             f"only {', '.join(known)}")
    check(value, table[kind], source, place)


def check_component(component, types, source, place):
    """InputError unless the steps of a component are of these types, as STEPS describes them."""
    table = {kind: STEPS.get(kind, {}) for kind in types}
    for step in steps.steps_of(component, place, source) or [{"type": "null"}]:
        check_typed(step, table, source, place)


def check_document(document, source):
    """InputError unless a dict as in a tokenizer.json describes what we implement."""
    check(document, {"model": {"type?": TEXT}}, source)
    model = document["model"]
    # the oldest files leave it out
    kind = model.setdefault("type", "BPE" if "merges" in model else "WordPiece")
    if kind == "BPE" and model.get("byte_fallback"):  # it merges characters, not bytes
        kind = "BPE with byte_fallback"
    check_typed(model | {"type": kind}, MODELS, source, "model")
    for place, types in KINDS[kind].items():
        check_component(document.get(place), types, source, place)
    check_component(document.get("post_processor"), POST, source, "post_processor")
    check([] if document.get("added_tokens") is None else document["added_tokens"],
          [{"id": ID} | ADDED_TOKEN], source, "added_tokens")
    if kind == "WordPiece" and model["unk_token"] not in model["vocab"]:
        raise InputError(f"{source}: unk_token {short(model['unk_token'])} is not among the "
                         f"{len(model['vocab'])} pieces of the vocabulary; add it there, or name "
                         "the right one")
    if kind == "BPE":
        types = [step["type"] for step in steps.steps_of(document["pre_tokenizer"], "pre_tokenizer")]
        if types != ["Split"] * (len(types) - 1) + ["ByteLevel"]:
            raise InputError(f"{source}: pre_tokenizer must be Split any number of times, then "
                             "ByteLevel once")
    if kind.startswith("BPE"):
        check_merges(model, kind, source)


def check_merges(model, kind, source):
    """InputError unless the vocabulary has all bytes, and the pieces that each merge needs."""
    vocab = model["vocab"]
    if kind == "BPE":
        missing = [letter for letter in bpe.BYTES if letter not in vocab]
    else:
        missing = [piece for piece, byte in BYTE_PIECES.items()
                   if piece not in vocab and not (byte < 128 and chr(byte) in vocab)]
    if missing:
        raise InputError(f"{source}: {len(missing)} of the 256 byte pieces are not in the "
                         f"vocabulary, the first is {short(missing[0])}; text with these bytes "
                         "would lose them: add them to the vocabulary")
    for rank, pair in enumerate(merges_of(model)):
        if len(pair) != 2:
            raise InputError(f"{source}: merge {rank} {short(' '.join(pair))} has {len(pair)} "
                             "parts, not 2")
        for piece in (*pair, "".join(pair)):
            if piece not in vocab:
                raise InputError(f"{source}: merge {rank} {short(pair)} needs the piece "
                                 f"{short(piece)}, which is not among the {len(vocab)} pieces of "
                                 "the vocabulary; are both of one checkpoint?")


def merges_of(model):
    """The merges of a "model" as pairs: older files write "a b", newer ones ["a", "b"]."""
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
