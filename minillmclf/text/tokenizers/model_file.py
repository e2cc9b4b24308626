"""A SentencePiece .model file (spiece.model, tokenizer.model) as the sections of a tokenizer.json.

Source of all field numbers: `sentencepiece_model.proto` of the `sentencepiece` library.
Not here: the special tokens of a family and their layout (families.py, files.py).
"""

import base64
import struct

from ...errors import InputError
from ...files import short
from .protobuf import read_fields
from .steps import META, TRIM
from .unigram import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

LONGEST = 1000  # the most characters of a piece; when training, SentencePiece's default is 16
UNIGRAM, BPE = 1, 2                   # values of model_type
PIECE, TRAINER, NORMALIZER = 1, 2, 3  # parts of a file
# (part, field number) -> (name of the setting, default)
SETTINGS = {(TRAINER, 3): ("model_type", UNIGRAM), (TRAINER, 35): ("byte_fallback", False),
            (TRAINER, 24): ("treat_whitespace_as_suffix", False),
            (NORMALIZER, 2): ("precompiled_charsmap", b""),  # a table of replacements, as NFKC
            (NORMALIZER, 3): ("add_dummy_prefix", True),
            (NORMALIZER, 4): ("remove_extra_whitespaces", True),
            (NORMALIZER, 5): ("escape_whitespaces", True)}


def read_model(path):
    """([(piece, score, type), ...] in the order of their ids, {setting: value})."""
    pieces, settings = [], dict(SETTINGS.values())  # each setting with its default
    try:
        with open(path, "rb") as file:
            parts = read_fields(file.read())
        for part, content in parts:
            fields = read_fields(content) if part in (PIECE, TRAINER, NORMALIZER) else []
            if part == PIECE:
                pieces.append(read_piece(fields, len(pieces)))
                continue
            for number, value in fields:
                if (part, number) in SETTINGS:
                    name, default = SETTINGS[part, number]
                    if isinstance(value, bytes) != isinstance(default, bytes):
                        raise ValueError(f"{name} is of another type")
                    settings[name] = type(default)(value)       # a flag is a number in the file
        if not pieces:
            raise ValueError("it holds no pieces")
    except (OSError, ValueError, LookupError, struct.error, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a SentencePiece model ({short(str(error))[1:-1]}); fetch it "
                         "again, or use a tokenizer.json, which transformers writes") from None
    return pieces, settings


def read_piece(fields, number):
    """The fields of piece `number` -> (piece, score, type). ValueError for absurd ones."""
    row = {1: b"", 2: bytes(4), 3: NORMAL} | dict(fields)       # a missing field has its default
    piece, (score,) = row[1].decode(), struct.unpack("<f", row[2])
    if len(piece) > LONGEST or not abs(score) < 1e38:
        raise ValueError(f"piece {number} has {len(piece)} characters and the score {score}")
    return piece, score, row[3]


def read_sections(path, prefix, lower, later_prefix):
    """(sections of a tokenizer.json, its `added_tokens`).

    prefix: put a space before a text; None: as the file says. lower: lower-case the text first.
    later_prefix: if `prefix`, also put one before text that follows a special token.
    """
    pieces, settings = read_model(path)
    unused = sum(kind == UNUSED for _, _, kind in pieces)
    model_type, fallback = settings["model_type"], settings["byte_fallback"]
    suffix, escape = settings["treat_whitespace_as_suffix"], settings["escape_whitespaces"]
    known = model_type == UNIGRAM or model_type == BPE and fallback
    if not known or suffix or not escape or unused:
        raise InputError(f"{path}: model_type {model_type}, byte_fallback {fallback}, "
                         f"treat_whitespace_as_suffix {suffix}, escape_whitespaces {escape}, "
                         f"{unused} unused pieces: only type 1 (Unigram), or 2 (BPE) with "
                         "byte_fallback True, and False, True and 0 are supported")
    prefix = settings["add_dummy_prefix"] if prefix is None else prefix
    steps = [{"type": "Lowercase"}] if lower else []
    if settings["precompiled_charsmap"]:
        coded = base64.b64encode(settings["precompiled_charsmap"]).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": coded})
    if settings["remove_extra_whitespaces"]:
        steps += [replace_step("Regex", TRIM, ""), replace_step("Regex", " {2,}", " ")]
    cut = None
    if prefix and not later_prefix:
        cut = {"type": "Metaspace", "replacement": META, "prepend_scheme": "first", "split": False}
    else:
        steps += [{"type": "Prepend", "prepend": META}] * prefix
        steps.append(replace_step("String", " ", META))
    decoders = [replace_step("String", META, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
    sections = {"normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
                "pre_tokenizer": cut,
                "decoder": {"type": "Sequence", "decoders": decoders},
                "model": model_section(pieces, model_type, fallback)}
    return sections, added_tokens(pieces, prefix)


def added_tokens(pieces, prefix):
    """The added tokens of a tokenizer.json: the special pieces and those that a user defined."""
    # user-defined pieces are matched in the normalised text, where "▁▁" is two spaces
    return [{"id": i, "content": piece, "special": kind != USER_DEFINED, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": kind == USER_DEFINED and not prefix}
            for i, (piece, _, kind) in enumerate(pieces)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)]


def replace_step(kind, pattern, content):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def model_section(pieces, model_type, byte_fallback):
    """The "model" of a tokenizer.json. A .model file has no merges for BPE: every two pieces that
    form a piece are a merge, ranked by that piece's score; for one piece, the shortest left first.
    """
    unk_id = next((i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN), None)
    if model_type == UNIGRAM:
        return {"type": "Unigram", "unk_id": unk_id, "byte_fallback": byte_fallback,
                "vocab": [[piece, score] for piece, score, _ in pieces]}
    usable = {piece: score for piece, score, kind in pieces if kind in (NORMAL, USER_DEFINED)}
    merges = [[piece[:n], piece[n:]] for piece in usable for n in range(1, len(piece))
              if piece[:n] in usable and piece[n:] in usable]
    merges.sort(key=lambda pair: -usable[pair[0] + pair[1]])
    return {"type": "BPE", "dropout": None,
            "unk_token": None if unk_id is None else pieces[unk_id][0],
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": byte_fallback, "ignore_merges": False,
            "vocab": {piece: i for i, (piece, _, _) in enumerate(pieces)}, "merges": merges}
