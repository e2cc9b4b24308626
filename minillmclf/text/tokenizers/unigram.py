"""The algorithms of SentencePiece: pieces are written with "▁" for a space.

    "▁Hello▁world"  ->  ▁Hello ▁world            "▁☃"  ->  ▁ <0xE2> <0x98> <0x83>

T5 and DeBERTa-v3 cut by likelihood (Unigram), LLaMA-2, Mistral and Gemma by merges (BPE).
Unigram is left to the `sentencepiece` library, through a model written in its own format: it breaks
near ties by the rounding of its float32 sums, which a search by hand would have to copy. BPE is the
`BytePairModel` of bpe.py: the library ranks merges by a score per piece, a tokenizer.json ranks
each pair, and not every ranking of pairs can be written as scores of pieces.
Sources: Kudo 2018 (Unigram); Kudo and Richardson 2018; `sentencepiece_model.proto`.
Not here: spaces, NFKC and other steps before (steps.py); reading .model files (model_file.py).
"""

import re

import sentencepiece

from ...errors import InputError
from .protobuf import bytes_field, float_field, int_field
from .steps import META

# types of a piece, as sentencepiece_model.proto numbers them
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)}
WORDS = re.compile(f"{META}*[^{META}]+|{META}+")  # a word keeps the spaces before it
CROSSING = re.compile(f"[^{META}]{META}")         # a space after a letter: the piece crosses words


class UnigramModel:
    """Text -> piece ids: of all ways to cut it, the one with the highest sum of piece scores.

    pieces: [(piece, score), ...] in the order of their ids; a score is a log-probability.
    unk_id: of the piece for characters that are in no piece; with byte_fallback their bytes are
    written instead. special: pieces not to be found inside a text, such as "</s>".
    source: the file that errors name.
    """

    def __init__(self, pieces, unk_id, byte_fallback, special, source):
        if unk_id is None or not 0 <= unk_id < len(pieces):
            raise InputError(f"{source}: model.unk_id is {unk_id} for {len(pieces)} pieces; name "
                             "the unknown piece")
        model = []
        for i, (piece, score) in enumerate(pieces):
            kind = NORMAL
            if i == unk_id:
                kind = UNKNOWN
            elif piece in special:
                kind = CONTROL
            elif byte_fallback and piece in BYTE_PIECES:
                kind = BYTE
            row = bytes_field(1, piece.encode()) + float_field(2, score) + int_field(3, kind)
            model.append(bytes_field(1, row))
        model.append(bytes_field(2, int_field(35, byte_fallback) + int_field(40, unk_id)
                                 + bytes_field(45, pieces[unk_id][0].encode())))  # trainer_spec
        # normalizer_spec: no add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
        model.append(bytes_field(3, int_field(3, 0) + int_field(4, 0) + int_field(5, 0)))
        try:
            library = sentencepiece.SentencePieceProcessor(model_proto=b"".join(model))
        except RuntimeError as error:
            raise InputError(f"{source}: SentencePiece cannot use these {len(pieces)} pieces "
                             f"({error})") from None
        self.ids = library.encode


def letters_of(vocab):
    """A function word -> its characters; one that is no piece is written as its bytes, <0xE2>."""
    def letters(word):
        found = []
        for char in word:
            found += [char] if char in vocab else [f"<0x{byte:02X}>" for byte in char.encode()]
        return found
    return letters


def word_cutter(merges):
    """A function text -> words in which merges can be done one word at a time.

    If a piece crosses words, the merges of one word reach into the next: the text is one word.
    """
    if any(CROSSING.search(left + right) for left, right in merges):
        return lambda text: [text]
    return WORDS.findall


def join(pieces, prefixed, collapsed):
    """The text of pieces; a byte that is no part of a character becomes "\ufffd".

    prefixed: a space was put before the text, so one is dropped; collapsed: spaces at the front
    were dropped before, so all are dropped.
    """
    pieces = list(pieces)
    for n, piece in enumerate(pieces):
        if prefixed or collapsed:
            pieces[n] = piece.removeprefix(META)
        if pieces[n] or not collapsed:
            break
    coded = []
    for piece in pieces:
        if piece in BYTE_PIECES:
            coded.append(bytes([BYTE_PIECES[piece]]))
        else:
            coded.append(piece.replace(META, " ").encode())
    text = b"".join(coded).decode("utf-8", errors="surrogateescape")
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
