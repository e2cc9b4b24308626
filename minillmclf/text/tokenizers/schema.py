"""What the JSON files of a tokenizer may hold: tables, and `check`, which applies them.

A value that the tables do not allow would change ids or crash later, so it is an error. The formats
are those of the `tokenizers` library (tokenizer.json) and transformers (tokenizer_config.json).
"""

from ...errors import InputError
from ...files import is_number, is_text, short
from . import steps

ROLES = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")
LIMIT = "minillmclf_limit"     # in tokenizer_config.json: max_length, if model_max_length is other
CONFIG_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space",
                "add_bos_token", "add_eos_token", "legacy", "split_special_tokens",
                "split_by_punct")


def is_id(value):
    return type(value) is int and 0 <= value < 2**31


def is_list(value, test, length=None):
    return isinstance(value, list) and length in (None, len(value)) and all(map(test, value))


def is_token(value):
    """A special token of a config: its text, or an object with it."""
    return is_text(value) or isinstance(value, dict) and is_text(value.get("content"))


def or_null(schema):
    test, words = schema
    return (lambda value: value is None or test(value)), words


TEXT = is_text, "text"
BOOL = (lambda value: isinstance(value, bool)), "true or false"
FLAG = or_null(BOOL)
ANY = (lambda value: True), "any value"  # for keys that change no id
ID = is_id, "a whole number from 0 up"
INDEX = or_null(((lambda value: type(value) is int), "a whole number"))
SCORE = (lambda value: is_list(value, lambda _: True, 2) and is_text(value[0])
         and is_number(value[1]) and abs(value[1]) < 1e38), "[piece, score]"
MERGE = (lambda value: is_text(value) and value.count(" ") == 1
         or is_list(value, is_text, 2)), '"a b" or ["a", "b"]'
PAIR = (lambda value: is_list(value, lambda _: True, 2) and is_text(value[0])
        and is_id(value[1])), "[token, id]"
PATTERN = (lambda value: isinstance(value, dict) and list(value) in (["String"], ["Regex"])
           and all(is_text(text) and text for text in value.values()),
           "an object with one String or Regex that is not empty")
TOKEN = or_null((is_token, "a text, or an object with a content"))
TOKENS = or_null((lambda value: is_list(value, is_token) or isinstance(value, dict)
                  and all(map(is_token, value.values())), "a list of tokens"))
LENGTH = or_null((lambda value: is_number(value) and value >= 1, "a number from 1 up"))
COUNT = (lambda value: is_id(value) and value <= 10000), "a number from 0 to 10000"
NAMES = or_null((lambda value: is_list(value, is_text), "a list of names"))

# --------------------------------------------------------------------------- objects: {key: schema}
# "key?" may be missing. A schema is a single value as above; a tuple of the only values that are
# supported; [schema of each entry]; {"*": schema of each value}; or an object again.

ADDED_TOKEN = {"id": ID, "content": TEXT, "special?": BOOL, "normalized?": BOOL, "lstrip?": BOOL,
               "rstrip?": BOOL, "single_word?": (False,)}
CONFIG = {"tokenizer_class?": or_null(TEXT), "model_max_length?": LENGTH, "max_len?": LENGTH,
          f"{LIMIT}?": LENGTH,
          "extra_ids?": COUNT, "model_input_names?": NAMES, "additional_special_tokens?": TOKENS,
          "extra_special_tokens?": TOKENS, "added_tokens_decoder?": {"*": {"content": TEXT}},
          "truncation_side?": (None, "left", "right")}
CONFIG |= {f"{role}_token?": TOKEN for role in ROLES}
CONFIG |= {f"{flag}?": FLAG for flag in CONFIG_FLAGS}

BPE = {"vocab": {"*": ID}, "merges": [MERGE], "unk_token?": ANY, "fuse_unk?": ANY,
       "dropout?": (None, 0), "continuing_subword_prefix?": (None, ""),
       "end_of_word_suffix?": (None, "")}
MODELS = {
    "WordPiece": {"vocab": {"*": ID}, "unk_token": TEXT, "continuing_subword_prefix": TEXT,
                  "max_input_chars_per_word": ID},
    "BPE": BPE | {"ignore_merges?": FLAG, "byte_fallback?": (False,)},
    "BPE with byte_fallback": BPE | {"ignore_merges?": (False,), "byte_fallback": (True,)},
    "Unigram": {"vocab": [SCORE], "unk_id": INDEX, "byte_fallback?": BOOL},
}
BERT_NORMALIZER = {"BertNormalizer": {"lowercase": BOOL, "strip_accents?": FLAG,
                                      "handle_chinese_chars": BOOL, "clean_text?": (True,)}}
NORMALIZERS = {
    "null": {},
    "Precompiled": {"precompiled_charsmap": TEXT},
    "Replace": {"pattern": PATTERN, "content": TEXT},
    "Prepend": {"prepend": TEXT},
    "Strip": {"strip_left": BOOL, "strip_right": BOOL},
    "Lowercase": {}, "NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {},
}
SPLIT = {"Split": {"pattern": PATTERN, "invert?": (False,),
                   "behavior": ("Isolated", "MergedWithPrevious", "MergedWithNext")}}
BYTE_LEVEL = {"ByteLevel": {"add_prefix_space": BOOL, "trim_offsets?": ANY, "use_regex?": BOOL}}
PRE_TOKENIZERS = SPLIT | {
    "null": {}, "WhitespaceSplit": {},
    "Metaspace": {"replacement": (steps.META,), "prepend_scheme?": ("always", "first", "never"),
                  "split?": BOOL, "add_prefix_space?": BOOL, "str_rep?": ANY},
}
PART = {"id": TEXT, "type_id": (0, 1)}
LAYOUT = [{"Sequence?": PART, "SpecialToken?": PART}]
POST_PROCESSORS = BYTE_LEVEL | {
    "null": {},
    "TemplateProcessing": {"single": LAYOUT, "pair": LAYOUT,
                           "special_tokens": {"*": {"ids": [ID]}}},
    "BertProcessing": {"cls": PAIR, "sep": PAIR},
    "RobertaProcessing": {"cls": PAIR, "sep": PAIR, "trim_offsets?": ANY, "add_prefix_space?": ANY},
}
# model -> the normalizers and the pre_tokenizers that go with it
COMPONENTS = {
    "WordPiece": (BERT_NORMALIZER, {"BertPreTokenizer": {}}),
    "BPE": ({"null": {}, "NFC": {}}, BYTE_LEVEL | SPLIT),
    "BPE with byte_fallback": (NORMALIZERS, PRE_TOKENIZERS),
    "Unigram": (NORMALIZERS, PRE_TOKENIZERS),
}


def check(value, schema, source, place=""):
    """InputError unless `value` is as the schema says. -> value

    place: the path of keys to the value; source: the file. Errors name both.
    """
    def fail(should_be):
        raise InputError(f"{source}: {place} = {short(value)} (should be {should_be}): fetch the "
                         "file again")

    if isinstance(schema, tuple) and not callable(schema[0]):               # the only values
        if value not in schema:
            raise InputError(f"{source}: {place} = {short(value)} is not supported, only "
                             f"{', '.join(map(repr, schema))}")
    elif isinstance(schema, tuple):
        test, words = schema
        if not test(value):
            fail(words)
    elif not isinstance(value, type(schema)):
        fail("an object" if isinstance(schema, dict) else "a list")
    elif isinstance(schema, list) or "*" in schema:
        inner = schema[0] if isinstance(schema, list) else schema["*"]
        test = inner[0] if isinstance(inner, tuple) else lambda entry: False
        for key, entry in enumerate(value) if isinstance(schema, list) else value.items():
            if not test(entry):  # a call for each of 250,000 pieces would be slow
                check(entry, inner, source, f"{place}[{short(key)}]")
    else:
        for key, inner in schema.items():
            name = key.removesuffix("?")
            where = f"{place}.{name}" if place else name
            if name in value:
                check(value[name], inner, source, where)
            elif name == key:
                raise InputError(f"{source}: {where} is missing: fetch the file again")
    return value


def check_type(value, schemas, source, place):
    """InputError unless `schemas`, {type: schema}, has value["type"] and allows all of its keys."""
    kind = value["type"]
    if kind not in schemas:
        raise InputError(f"{source}: {place}.type {short(kind)} is not supported here, only "
                         f"{', '.join(schemas)}")
    known = ["type", *(key.removesuffix("?") for key in schemas[kind])]
    for key in value:
        if key not in known:
            raise InputError(f"{source}: {place}.{key} = {short(value[key])} is not supported, "
                             f"only {', '.join(known)}")
    check(value, schemas[kind], source, place)


def check_document(document, source):
    """InputError unless the content of a tokenizer.json, a dict, is supported."""
    check(document, {"model": {"type?": TEXT}}, source)
    model = document["model"]
    # the oldest files leave the type out
    kind = model.setdefault("type", "BPE" if "merges" in model else "WordPiece")
    if kind == "BPE" and model.get("byte_fallback"):  # it merges characters, not bytes
        kind = "BPE with byte_fallback"
    check_type(model | {"type": kind}, MODELS, source, "model")
    for place, schemas in zip(steps.CHILDREN, (*COMPONENTS[kind], POST_PROCESSORS)):
        for step in steps.steps_of(document.get(place), place, source) or [{"type": "null"}]:
            check_type(step, schemas, source, place)
    check(document.get("added_tokens") or [], [{"id": ID, "content": TEXT}], source, "added_tokens")
    if kind == "WordPiece" and model["unk_token"] not in model["vocab"]:
        raise InputError(f"{source}: unk_token {short(model['unk_token'])} is not among the "
                         f"{len(model['vocab'])} pieces of the vocabulary; add it there, or name "
                         "the right one")
    if kind == "BPE":
        cuts = steps.steps_of(document["pre_tokenizer"], "pre_tokenizer")
        if [step["type"] for step in cuts] != ["Split"] * (len(cuts) - 1) + ["ByteLevel"]:
            raise InputError(f"{source}: pre_tokenizer must be Split any number of times, then "
                             "ByteLevel once")


def read_merges(model, byte_pieces, source):
    """The merges of a "model" as (left, right): older files write "a b", newer ones ["a", "b"].

    byte_pieces: piece -> byte. InputError unless the vocabulary has a piece for each byte ("<0x41>"
    is not needed beside "A") and all pieces of each merge.
    """
    vocab, merges = model["vocab"], []
    missing = [piece for piece, byte in byte_pieces.items() if piece not in vocab
               and (len(piece) == 1 or byte > 127 or chr(byte) not in vocab)]
    if missing:
        raise InputError(f"{source}: {len(missing)} of the 256 byte pieces are not in the "
                         f"vocabulary, the first is {short(missing[0])}; text with these bytes "
                         "would lose them: add them to the vocabulary")
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        for piece in (left, right, left + right):
            if piece not in vocab:
                raise InputError(f"{source}: merge {rank} {short([left, right])} needs the piece "
                                 f"{short(piece)}, which is not among the {len(vocab)} pieces of "
                                 "the vocabulary; are both of one checkpoint?")
        merges.append((left, right))
    return merges
