"""SentencePiece: pieces with a "▁" for the space, cut by likelihood (Unigram) or by merges (BPE); and .model files.

    "Hello world"  ->  "▁Hello▁world"  ->  ▁Hello ▁world            "☃"  ->  "▁☃"  ->  ▁ <0xE2> <0x98> <0x83>

Here: the two algorithms as a tokenizer.json describes them, and `describe`, which makes that description of a .model
file. Not here: special tokens and their layout (tokenizer.py, tokenizer_files.py); spaces, NFKC and other steps before
(components.py); training. Sources: Kudo 2018 (Unigram), Kudo and Richardson 2018, `sentencepiece_model.proto`.
Unigram is given to the `sentencepiece` library, as a model written in its own format: that is as long as a Viterbi
search by hand, and exact, for the library breaks near ties by the rounding of its float32 sums.
"""

import base64
import functools
import re
import struct

import sentencepiece

from ...errors import InputError
from ...files import short
from . import bpe, components
from .components import META, tagged, varint

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of a piece in a .model file
BYTE_PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)}
LONGEST = 1000  # characters of a piece; SentencePiece learns none of more than 16 unless told
WORDS = re.compile(f"{META}*[^{META}]+|{META}+")  # a word keeps the spaces before it
RUN_ON = re.compile(f"[^{META}]{META}")             # in a piece: a space after a letter, so that it crosses words


class PieceModel:
    """What Unigram and BPE share: text -> normalised chunks -> words -> piece ids, and back. See the subclasses.

    vocab: piece -> id.        document: the checked tokenizer.json.        source: the file that errors name.
    """

    inputs = ["input_ids", "attention_mask"]  # what a model of this kind is given, if no config says more
    settings = {}                             # tokenizer_config.json has no other name for what is in tokenizer.json

    def __init__(self, vocab, document, source):
        self.vocab, self.source = vocab, source
        self._normalise = components.normalizer(document.get("normalizer"), source)
        self._cut = components.pre_tokenizer(document.get("pre_tokenizer"), source)
        one, spaced = (self._cut(self._normalise(text), True) for text in ("a", "  a"))
        self._prefixed, self._collapsed = one[0].startswith(META), one == spaced  # "a" became "▁a"; "  a" did too

    def normalise(self, text):
        """The text after the normalizer: nothing but "▁" for spaces (LLaMA), or NFKC and more (T5)."""
        return self._normalise(bpe.whole_characters(text))

    def words(self, text):
        """The words of a text in order, each with its piece ids; as in the pieces, a word keeps the space before."""
        return self.words_within(self.normalise(text), first=True)

    def words_within(self, text, first):
        """The words of a normalised part of a text. first: the text begins with it, no special token does."""
        return [(word.replace(META, " "), ids) for chunk in self._cut(text, first) for word, ids in self._words(chunk)]

    def ids(self, text):
        """The piece ids of a text, without special tokens."""
        return [i for _, ids in self.words(text) for i in ids]

    def join(self, pieces):
        """The text of pieces: bytes joined (one that is no part of a character: "\ufffd"), the first space dropped;
        all at the front where `normalise` drops these too."""
        pieces = list(pieces)
        for n, piece in enumerate(pieces):
            if self._prefixed or self._collapsed:
                pieces[n] = piece.removeprefix(META)
            if pieces[n] or not self._collapsed:
                break
        coded = b"".join(bytes([BYTE_PIECES[piece]]) if piece in BYTE_PIECES else piece.replace(META, " ").encode()
                         for piece in pieces)
        return re.sub("[\ud800-\udfff]", "\ufffd", coded.decode("utf-8", errors="surrogateescape"))


class BytePairPieces(PieceModel):
    """BPE whose letters are characters; a character that is no piece is written as its bytes: <0xE2> <0x98> <0x83>."""

    def __init__(self, vocab, merges, document, source):
        super().__init__(vocab, document, source)
        missing = [piece for piece, byte in BYTE_PIECES.items()
                   if piece not in vocab and not (byte < 128 and chr(byte) in vocab)]
        if missing:
            raise InputError(f"{source}: {len(missing)} of the 256 byte pieces are not in the vocabulary, the first is "
                             f"{short(missing[0])}; text with these bytes would lose them: add them to the vocabulary")
        self.ranks = bpe.ranks_of(merges, vocab, source)
        # where no piece crosses words, the merges of each word are its own: words are merged one by one, and kept
        self._apart = not any(RUN_ON.search(left + right) for left, right in self.ranks)
        self._word = functools.lru_cache(bpe.REMEMBERED)(self._word_ids)

    @classmethod
    def from_document(cls, document, source):
        """The model that a checked tokenizer.json describes."""
        model = document["model"]
        return cls(model["vocab"], bpe.merges_of(model), document, source)

    def _words(self, chunk):
        return [(word, self._word(word)) for word in (WORDS.findall(chunk) if self._apart else [chunk])]

    def _word_ids(self, word):
        letters = []
        for char in word:
            letters += [char] if char in self.vocab else [f"<0x{byte:02X}>" for byte in char.encode()]
        return [self.vocab[piece] for piece in bpe.merge(letters, self.ranks)]


class UnigramModel(PieceModel):
    """Of all ways to cut a text, the one with the highest sum of piece scores (log-probabilities).

    pieces: [(piece, score), ...] in the order of their ids. unk_id: of the piece for characters that are in no piece,
    unless byte_fallback, which writes their bytes. whole: pieces not to be found inside a text, such as "</s>".
    """

    def __init__(self, pieces, unk_id, byte_fallback, whole, document, source):
        super().__init__({piece: i for i, (piece, _) in enumerate(pieces)}, document, source)
        if unk_id is None or not 0 <= unk_id < len(pieces):
            raise InputError(f"{source}: model.unk_id is {unk_id} for {len(pieces)} pieces; name the unknown piece")
        kinds = [UNKNOWN if i == unk_id else CONTROL if piece in whole else
                 BYTE if byte_fallback and piece in BYTE_PIECES else NORMAL for i, (piece, _) in enumerate(pieces)]
        rows = [tagged(1, tagged(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))
                for (piece, score), kind in zip(pieces, kinds)]
        trainer = tagged(45, pieces[unk_id][0].encode()) + varint(40 << 3) + varint(unk_id)
        trainer += varint(35 << 3) + varint(byte_fallback)
        as_it_is = b"\x18\x00\x20\x00\x28\x00"  # add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces: no
        try:
            self._library = sentencepiece.SentencePieceProcessor(
                model_proto=b"".join(rows) + tagged(2, trainer) + tagged(3, as_it_is))
        except RuntimeError as error:
            raise InputError(f"{source}: SentencePiece cannot use these {len(pieces)} pieces ({error})") from None
        self._opens = [piece.startswith(META) for piece, _ in pieces]

    @classmethod
    def from_document(cls, document, source):
        """The model that a checked tokenizer.json describes."""
        model, whole = document["model"], {token["content"] for token in document.get("added_tokens") or []}
        return cls(model["vocab"], model["unk_id"], model.get("byte_fallback", False), whole, document, source)

    def _words(self, chunk):
        """A piece with a "▁" begins a word. Where pieces cross words, the chunk is taken as one word."""
        ids, words = self._library.encode(chunk), WORDS.findall(chunk)
        starts = [n for n, i in enumerate(ids) if n == 0 or self._opens[i]]
        if len(starts) != len(words):
            return [(chunk, ids)]
        return [(word, ids[start:end]) for word, start, end in zip(words, starts, [*starts[1:], len(ids)])]


# ------------------------------------------------------------------------------------------------- the .model file

def fields(data):
    """[(number, value), ...] of a protobuf message: whole numbers as int, all else as bytes."""
    found, place = [], 0

    def number():
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError(f"a number of more than 64 bits at byte {place}")

    while place < len(data):
        tag = number()
        if tag & 7 == 0:
            found.append((tag >> 3, number()))
            continue
        length = number() if tag & 7 == 2 else {1: 8, 5: 4}.get(tag & 7, len(data))
        if place + length > len(data):
            raise ValueError(f"the file, or a part of it, ends in the middle of field {tag >> 3}")
        found.append((tag >> 3, data[place:place + length]))
        place += length
    return found


def read_model(path):
    """([(piece, score, type), ...] in the order of ids, dict of what describes the training and the normalisation)."""
    try:
        with open(path, "rb") as file:
            top = fields(file.read())
        rows = [{1: b"", 2: bytes(4), 3: NORMAL} | dict(fields(value)) for number, value in top if number == 1]
        pieces = [(row[1].decode(), struct.unpack("<f", row[2])[0], row[3]) for row in rows]
        trainer, normal = ([pair for number, value in top if number == n for pair in fields(value)] for n in (2, 3))
        pieces[0]
        for number, (piece, score, _) in enumerate(pieces):
            if len(piece) > LONGEST or not abs(score) < 1e38:
                raise ValueError(f"piece {number} has {len(piece)} characters and the score {score}")
    except (OSError, ValueError, LookupError, struct.error, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a SentencePiece model ({short(str(error))[1:-1]}); fetch it again, "
                         "or use a tokenizer.json, which transformers writes") from None
    trainer = {3: 1, 24: 0, 35: 0} | dict(trainer)
    normal = {2: b"", 3: 1, 4: 1, 5: 1} | dict(normal)
    numbers = trainer[3], trainer[24], trainer[35]
    if not all(isinstance(value, int) for value in numbers) or not isinstance(normal[2], bytes):
        raise InputError(f"{path}: not a SentencePiece model (its settings are of other types); fetch it again")
    return pieces, {
        "kind": trainer[3], "suffix": bool(trainer[24]), "byte_fallback": bool(trainer[35]), "charsmap": normal[2],
        "prefix": bool(normal[3]), "collapse": bool(normal[4]), "escape": bool(normal[5])}


def describe(path, prefix=None, lower=False, later_prefix=True):
    """The sections of a tokenizer.json for a .model file, and its special pieces as added tokens: (sections, tokens).

    prefix: put a space before a text; None: as the file says. lower: in lower case first.
    later_prefix: put a space also before text that follows a special token.
    """
    pieces, spec = read_model(path)
    prefix = spec["prefix"] if prefix is None else prefix
    unused = [piece for piece, _, kind in pieces if kind == UNUSED]
    unknown_kind = spec["kind"] not in (1, 2) or spec["kind"] == 2 and not spec["byte_fallback"]
    if unknown_kind or spec["suffix"] or not spec["escape"] or unused:
        raise InputError(f"{path}: model_type {spec['kind']}, byte_fallback {spec['byte_fallback']}, "
                         f"treat_whitespace_as_suffix {spec['suffix']}, escape_whitespaces {spec['escape']}, "
                         f"{len(unused)} unused pieces: only type 1 (Unigram), or 2 (BPE) with byte_fallback True, and "
                         "False, True and 0 are supported")
    steps = [{"type": "Lowercase"}] if lower else []
    if spec["charsmap"]:
        coded = base64.b64encode(spec["charsmap"]).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": coded})
    if spec["collapse"]:
        steps += [replacing("Regex", components.TRIM, ""), replacing("Regex", " {2,}", " ")]
    cut = None
    if prefix and not later_prefix:
        cut = {"type": "Metaspace", "replacement": META, "prepend_scheme": "first", "split": False}
    else:
        steps += [{"type": "Prepend", "prepend": META}] * prefix + [replacing("String", " ", META)]
    decoders = [replacing("String", META, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
    sections = {"normalizer": {"type": "Sequence", "normalizers": steps} if steps else None, "pre_tokenizer": cut,
                "decoder": {"type": "Sequence", "decoders": decoders},
                "model": unigram_section(pieces, spec) if spec["kind"] == 1 else bpe_section(pieces, spec)}
    # user-defined symbols are looked for once the text is normalised, so "▁▁" is two spaces; control pieces before
    tokens = [{"id": i, "content": piece, "special": kind != USER_DEFINED, "single_word": False, "lstrip": False,
               "rstrip": False, "normalized": kind == USER_DEFINED and not prefix}
              for i, (piece, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    return sections, tokens


def replacing(kind, pattern, content):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def unigram_section(pieces, spec):
    unk = [i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN]
    return {"type": "Unigram", "unk_id": unk[0] if unk else None, "byte_fallback": spec["byte_fallback"],
            "vocab": [[piece, score] for piece, score, _ in pieces]}


def bpe_section(pieces, spec):
    """The merges are not in the file: each way to make a piece of two others is one, ranked by the piece's score."""
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    usable = {piece: score for piece, score, kind in pieces if kind in (NORMAL, USER_DEFINED)}
    merges = [(piece[:n], piece[n:]) for piece in usable for n in range(1, len(piece))
              if piece[:n] in usable and piece[n:] in usable]
    merges.sort(key=lambda pair: -usable[pair[0] + pair[1]])  # stable: of one piece, the shortest left part first
    unk = [piece for piece, _, kind in pieces if kind == UNKNOWN]
    return {"type": "BPE", "dropout": None, "unk_token": unk[0] if unk else None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": spec["byte_fallback"],
            "ignore_merges": False, "vocab": vocab, "merges": [list(pair) for pair in merges]}
