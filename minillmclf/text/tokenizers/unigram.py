"""The algorithms of SentencePiece. In its pieces "▁" stands for a space.

    "▁Hello▁world"  ->  ▁Hello ▁world            "▁☃"  ->  ▁ <0xE2> <0x98> <0x83>

T5, XLM-RoBERTa and DeBERTa-v3 cut by likelihood (Unigram); LLaMA-2, Mistral, Gemma merge (BPE).
Unigram is computed by the `sentencepiece` library, since near ties depend on the rounding of its
float32 sums; `best_pieces` is the same by hand. BPE is computed by bpe.py: a tokenizer.json ranks
pairs, but the library ranks pieces, and not every ranking of pairs can be written as one of pieces.
Sources: Kudo 2018 (Unigram); Kudo and Richardson 2018; `sentencepiece_model.proto`.
Not here: the steps before, as spaces and NFKC (steps.py); reading .model files (model_file.py).
"""

import functools
import math
import re

import sentencepiece

from ...errors import InputError
from .protobuf import encode_field, encode_fields
from .steps import META

# types of pieces in sentencepiece_model.proto
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)}
WORDS = re.compile(f"{META}*[^{META}]+|{META}+")  # a word keeps the spaces before it
CROSSING = re.compile(f"[^{META}]{META}")         # a space after a letter: the piece crosses words
LONGEST_WORD, REMEMBERED = 64, 2**16              # characters of a word; words at most


def unigram_model(pieces, unk_id, byte_fallback, special, source):
    """A function text -> ids of the pieces of this text with the highest sum of scores.

    pieces: [(piece, score), ...] in the order of their ids; a score is a log-probability.
    unk_id: the id for characters that no piece holds; with byte_fallback they become the pieces of
    their bytes instead. special: pieces that are never matched in a text, such as "</s>".
    """
    if unk_id is None or not 0 <= unk_id < len(pieces):
        raise InputError(f"{source}: model.unk_id is {unk_id} for {len(pieces)} pieces; name the "
                         "unknown piece")
    model = []  # the fields of a .model file, by their numbers: 1 a piece, 2 training, 3 normalizer
    for i, (piece, score) in enumerate(pieces):
        kind = CONTROL if piece in special else NORMAL
        if i == unk_id:
            kind = UNKNOWN
        elif kind == NORMAL and byte_fallback and piece in BYTE_PIECES:
            kind = BYTE
        row = {1: piece.encode(), 2: float(score), 3: kind}
        model.append(encode_field(1, encode_fields(row)))
    # byte_fallback, unk_id, unk_piece
    training = {35: byte_fallback, 40: unk_id, 45: pieces[unk_id][0].encode()}
    model.append(encode_field(2, encode_fields(training)))
    # no add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces: steps.py does these
    model.append(encode_field(3, encode_fields({3: 0, 4: 0, 5: 0})))
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=b"".join(model))
    except RuntimeError as error:
        raise InputError(f"{source}: SentencePiece cannot use these {len(pieces)} pieces "
                         f"({error})") from None
    return remember_words(processor.encode)


def remember_words(encode):
    """The function `encode`, text -> ids, with a memory for short texts: the words of a tokenizer
    whose pre_tokenizer cuts at spaces. A call of the library costs as much as ten look-ups.

    A longer text is one call. Its words are not looked up one by one: that would take longer, and
    give other ids in near ties, since `encode` adds float32 scores from the front of a text on.
    """
    remembered = functools.lru_cache(REMEMBERED)(encode)
    return lambda text: remembered(text) if len(text) <= LONGEST_WORD else encode(text)


def best_pieces(text, scores, unknown):
    """The pieces of a text with the highest sum of scores, by hand (Viterbi).

    scores: piece -> log-probability; unknown: that of a character which is no piece. SentencePiece
    does so in float32, with the lowest score - 10, and joins unknown characters side by side.
    """
    longest = max(map(len, scores))
    best = [0.0] + [-math.inf] * len(text)  # best[end]: the highest sum for text[:end]
    start_of = [0] * len(best)              # where the last piece of text[:end] begins
    for end in range(1, len(best)):
        for start in range(max(0, end - longest), end):
            alone = unknown if end - start == 1 else -math.inf
            score = best[start] + scores.get(text[start:end], alone)
            if score > best[end]:
                best[end], start_of[end] = score, start
    pieces, end = [], len(text)
    while end > 0:                          # back from the end, piece by piece
        pieces.append(text[start_of[end]:end])
        end = start_of[end]
    return pieces[::-1]


def letter_splitter(vocab):
    """A function word -> its characters; one that is no piece becomes its bytes, as <0xE2>."""
    def letters(word):
        found = []
        for char in word:
            found += [char] if char in vocab else [f"<0x{byte:02X}>" for byte in char.encode()]
        return found
    return letters


def word_cutter(merges):
    """A function text -> words that can be merged one by one.

    If any merge crosses from one word into the next, the whole text stays one word.
    """
    if any(CROSSING.search(left + right) for left, right in merges):
        return lambda text: [text]
    return WORDS.findall


def join_pieces(pieces, prefixed, collapsed):
    """The text of pieces; each invalid UTF-8 byte becomes "\ufffd".

    prefixed: one space was put before the text, so one is dropped. collapsed: all spaces at the
    front of the text were dropped, so all are.
    """
    pieces = list(pieces)
    for n, piece in enumerate(pieces):      # to the first piece; if collapsed, to the first letter
        if prefixed or collapsed:
            pieces[n] = piece.removeprefix(META)
        if pieces[n] or not collapsed:
            break
    encoded = b"".join(bytes([BYTE_PIECES[piece]]) if piece in BYTE_PIECES
                       else piece.replace(META, " ").encode() for piece in pieces)
    text = encoded.decode("utf-8", errors="surrogateescape")
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
