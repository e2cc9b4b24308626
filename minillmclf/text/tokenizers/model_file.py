"""A SentencePiece .model file (spiece.model, tokenizer.model) as the sections of a tokenizer.json.

Source: `sentencepiece_model.proto` of the `sentencepiece` library, whose field numbers stand here.
Not here: the special tokens of a family and their layout (families.py, files.py).
"""

import base64
import struct
from typing import NamedTuple

from ...errors import InputError
from ...files import short
from .protobuf import read_fields
from .steps import META, TRIM
from .unigram import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

LONGEST = 1000  # characters of a piece; SentencePiece learns none of more than 16 unless told
UNIGRAM, BPE = 1, 2


class Spec(NamedTuple):
    """The settings in a .model file. See TrainerSpec and NormalizerSpec in the .proto."""

    model_type: int
    suffix: int         # treat_whitespace_as_suffix: "▁" stands at the end of a word
    byte_fallback: int
    charsmap: bytes     # precompiled_charsmap: a table of rewritings, as NFKC
    prefix: int         # add_dummy_prefix: put a space before a text
    collapse: int       # remove_extra_whitespaces
    escape: int         # escape_whitespaces: write "▁" for a space


def read_model(path):
    """([(piece, score, type), ...] in the order of ids, Spec)."""
    try:
        with open(path, "rb") as file:
            parts = read_fields(file.read())
        rows = [{1: b"", 2: bytes(4), 3: NORMAL} | dict(read_fields(value))
                for number, value in parts if number == 1]
        pieces = [(row[1].decode(), struct.unpack("<f", row[2])[0], row[3]) for row in rows]
        if not pieces:
            raise ValueError("it holds no pieces")
        for number, (piece, score, _) in enumerate(pieces):
            if len(piece) > LONGEST or not abs(score) < 1e38:
                raise ValueError(f"piece {number} has {len(piece)} characters and score {score}")
        trainer, normal = {3: UNIGRAM, 24: 0, 35: 0}, {2: b"", 3: 1, 4: 1, 5: 1}
        for number, value in parts:
            if number == 2:
                trainer |= read_fields(value)
            elif number == 3:
                normal |= read_fields(value)
        spec = Spec(*(trainer[n] for n in (3, 24, 35)), *(normal[n] for n in (2, 3, 4, 5)))
        if any(type(value) is not kind for value, kind in zip(spec, Spec.__annotations__.values())):
            raise ValueError("its settings are of other types")
    except (OSError, ValueError, LookupError, struct.error, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a SentencePiece model ({short(str(error))[1:-1]}); fetch it "
                         "again, or use a tokenizer.json, which transformers writes") from None
    return pieces, spec


def read_sections(path, prefix=None, lower=False, later_prefix=True):
    """(sections of a tokenizer.json, the special pieces of the file as added tokens).

    prefix: put a space before a text; None: as the file says. lower: lower-case the text first.
    later_prefix: put a space also before text that follows a special token.
    """
    pieces, spec = read_model(path)
    unused = [piece for piece, _, kind in pieces if kind == UNUSED]
    known = spec.model_type == UNIGRAM or spec.model_type == BPE and spec.byte_fallback
    if not known or spec.suffix or not spec.escape or unused:
        raise InputError(
            f"{path}: model_type {spec.model_type}, byte_fallback {bool(spec.byte_fallback)}, "
            f"treat_whitespace_as_suffix {bool(spec.suffix)}, escape_whitespaces "
            f"{bool(spec.escape)}, {len(unused)} unused pieces: only type 1 (Unigram), or 2 (BPE) "
            "with byte_fallback True, and False, True and 0 are supported")
    prefix = bool(spec.prefix) if prefix is None else prefix
    steps = [{"type": "Lowercase"}] if lower else []
    if spec.charsmap:
        coded = base64.b64encode(spec.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": coded})
    if spec.collapse:
        steps += [replacing("Regex", TRIM, ""), replacing("Regex", " {2,}", " ")]
    cut = None
    if prefix and not later_prefix:
        cut = {"type": "Metaspace", "replacement": META, "prepend_scheme": "first", "split": False}
    else:
        steps += [{"type": "Prepend", "prepend": META}] if prefix else []
        steps.append(replacing("String", " ", META))
    decoders = [replacing("String", META, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    sections = {"normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
                "pre_tokenizer": cut,
                "decoder": {"type": "Sequence", "decoders": decoders},
                "model": model_section(pieces, spec)}
    tokens = [
        # user-defined pieces are looked for in the normalised text, where "▁▁" is two spaces
        {"id": i, "content": piece, "special": kind != USER_DEFINED, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": kind == USER_DEFINED and not prefix}
        for i, (piece, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    return sections, tokens


def replacing(kind, pattern, content):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def model_section(pieces, spec):
    """The "model" of a tokenizer.json.

    The merges of BPE are not in the file: each way to make a piece of two others is a merge, ranked
    by the score of the piece; of one piece, the shortest left part comes first.
    """
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN]
    if spec.model_type == UNIGRAM:
        return {"type": "Unigram", "unk_id": unknown[0] if unknown else None,
                "byte_fallback": bool(spec.byte_fallback),
                "vocab": [[piece, score] for piece, score, _ in pieces]}
    usable = {piece: score for piece, score, kind in pieces if kind in (NORMAL, USER_DEFINED)}
    merges = []
    for piece in usable:
        for n in range(1, len(piece)):
            if piece[:n] in usable and piece[n:] in usable:
                merges.append([piece[:n], piece[n:]])
    merges.sort(key=lambda pair: -usable[pair[0] + pair[1]])
    return {"type": "BPE", "dropout": None, "unk_token": pieces[unknown[0]][0] if unknown else None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": bool(spec.byte_fallback), "ignore_merges": False,
            "vocab": {piece: i for i, (piece, _, _) in enumerate(pieces)}, "merges": merges}
