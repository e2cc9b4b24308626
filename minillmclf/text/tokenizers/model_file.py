"""A SentencePiece .model file (spiece.model, tokenizer.model) as the sections of a tokenizer.json.

Source: `sentencepiece_model.proto` of the `sentencepiece` library, whose field numbers stand here.
Not here: the special tokens of a family and their layout (families.py, files.py).
"""

import base64
import struct

from ...errors import InputError
from ...files import short
from .protobuf import read_fields
from .steps import META, TRIM
from .unigram import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

LONGEST = 1000  # characters of a piece; SentencePiece learns none of more than 16 unless told
UNIGRAM, BPE = 1, 2
PIECE, TRAINER, NORMALIZER = 1, 2, 3  # parts of a file
# (part, number of a field) -> its name and what it is if absent
SETTINGS = {(TRAINER, 3): ("model_type", UNIGRAM), (TRAINER, 35): ("byte_fallback", False),
            (TRAINER, 24): ("treat_whitespace_as_suffix", False),
            (NORMALIZER, 2): ("precompiled_charsmap", b""),  # a table of rewritings, as NFKC
            (NORMALIZER, 3): ("add_dummy_prefix", True),
            (NORMALIZER, 4): ("remove_extra_whitespaces", True),
            (NORMALIZER, 5): ("escape_whitespaces", True)}


def read_model(path):
    """([(piece, score, type), ...] in the order of ids, {name of a setting: value})."""
    pieces, settings = [], dict(SETTINGS.values())
    try:
        with open(path, "rb") as file:
            parts = read_fields(file.read())
        for part, content in parts:
            fields = read_fields(content) if part in (PIECE, TRAINER, NORMALIZER) else []
            if part == PIECE:
                row = {1: b"", 2: bytes(4), 3: NORMAL} | dict(fields)
                piece, (score,) = row[1].decode(), struct.unpack("<f", row[2])
                if len(piece) > LONGEST or not abs(score) < 1e38:
                    raise ValueError(f"piece {len(pieces)} has {len(piece)} characters and the "
                                     f"score {score}")
                pieces.append((piece, score, row[3]))
                continue
            for number, value in fields:
                if (part, number) in SETTINGS:
                    name, default = SETTINGS[part, number]
                    if isinstance(value, bytes) != isinstance(default, bytes):
                        raise ValueError(f"{name} is of another type")
                    settings[name] = type(default)(value)
        if not pieces:
            raise ValueError("it holds no pieces")
    except (OSError, ValueError, LookupError, struct.error, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a SentencePiece model ({short(str(error))[1:-1]}); fetch it "
                         "again, or use a tokenizer.json, which transformers writes") from None
    return pieces, settings


def read_sections(path, prefix=None, lower=False, later_prefix=True):
    """(sections of a tokenizer.json, the special pieces of the file as added tokens).

    prefix: put a space before a text; None: as the file says. lower: lower-case the text first.
    later_prefix: put a space also before text that follows a special token.
    """
    pieces, settings = read_model(path)
    unused = sum(kind == UNUSED for _, _, kind in pieces)
    type_name, fallback = settings["model_type"], settings["byte_fallback"]
    suffix, escape = settings["treat_whitespace_as_suffix"], settings["escape_whitespaces"]
    known = type_name == UNIGRAM or type_name == BPE and fallback
    if not known or suffix or not escape or unused:
        raise InputError(f"{path}: model_type {type_name}, byte_fallback {fallback}, "
                         f"treat_whitespace_as_suffix {suffix}, escape_whitespaces {escape}, "
                         f"{unused} unused pieces: only type 1 (Unigram), or 2 (BPE) with "
                         "byte_fallback True, and False, True and 0 are supported")
    prefix = settings["add_dummy_prefix"] if prefix is None else prefix
    steps = [{"type": "Lowercase"}] if lower else []
    if settings["precompiled_charsmap"]:
        coded = base64.b64encode(settings["precompiled_charsmap"]).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": coded})
    if settings["remove_extra_whitespaces"]:
        steps += [replacing("Regex", TRIM, ""), replacing("Regex", " {2,}", " ")]
    cut = None
    if prefix and not later_prefix:
        cut = {"type": "Metaspace", "replacement": META, "prepend_scheme": "first", "split": False}
    else:
        steps += [{"type": "Prepend", "prepend": META}] * prefix + [replacing("String", " ", META)]
    decoders = [replacing("String", META, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
    sections = {"normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
                "pre_tokenizer": cut,
                "decoder": {"type": "Sequence", "decoders": decoders},
                "model": model_section(pieces, type_name, fallback)}
    # user-defined pieces are looked for in the normalised text, where "▁▁" is two spaces
    tokens = [{"id": i, "content": piece, "special": kind != USER_DEFINED, "single_word": False,
               "lstrip": False, "rstrip": False,
               "normalized": kind == USER_DEFINED and not prefix}
              for i, (piece, _, kind) in enumerate(pieces)
              if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    return sections, tokens


def replacing(kind, pattern, content):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def model_section(pieces, model_type, byte_fallback):
    """The "model" of a tokenizer.json.

    The merges of BPE are not in the file: each way to make a piece of two others is a merge, ranked
    by the score of the piece; of one piece, the shortest left part comes first.
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
