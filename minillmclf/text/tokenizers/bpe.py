"""Byte-level byte-pair encoding, as GPT-2, RoBERTa and LLaMA-3 use it: bytes as letters, a ranked list of merges.

    "low lower"  ->  "low", " lower"  ->  l o w / Ġ l o w e r  ->  low / Ġlow er

Here: the algorithm. Not here: special tokens and files (tokenizer.py), training the merges; other split patterns than
GPT-2's, which a tokenizer.json brings with it (components.py). Sources: Sennrich et al. 2016 (merges), Radford et al.
2019 (bytes, the split pattern) and GPT-2's `encoder.py`. No text is ever unknown: each of the 256 bytes is a piece.
"""

import functools
import heapq

import regex

from ...errors import InputError
from ...files import short
from . import components

# English endings, then letters, digits, other signs (each with one space before it), then spaces. A run of spaces
# leaves its last one to the word that follows: that is what `(?!\S)` does.
SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
REMEMBERED = 2**16  # words whose ids are kept


def byte_letters():
    """Byte -> the one character that stands for it in vocab.json and merges.txt (an invertible table of 256).

    Printable Latin-1 characters stand for themselves; the other 68 bytes (controls, space, 127-160, 173) take the
    characters from 256 on, in order. So a space is "Ġ" (256 + 32) and a line end "Ċ".
    """
    letters = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in LETTERS.items()}


class BytePairModel:
    """Text -> words -> piece ids.

    vocab: piece -> id, pieces written in `byte_letters`.
    merges: [(left, right), ...], the most important first; its place in the list is the rank of a merge.
    normalise, cut: what a text goes through before, see `components`; None: it stays as it is, and whole.
    split: then cut at GPT-2's pattern.
    prefix_space: put a space before a text that has none, so that its first word is written as any other.
    whole_words: a word that is itself a piece is taken whole, merges or not (`ignore_merges` in a tokenizer.json).
    source: the file that errors name.
    """

    inputs = ["input_ids", "attention_mask"]  # what a model of this kind is given

    def __init__(self, vocab, merges, normalise=None, cut=None, split=True, prefix_space=False, whole_words=False,
                 source="vocabulary"):
        missing = [letter for letter in BYTES if letter not in vocab]
        if missing:
            raise InputError(f"{source}: {len(missing)} of the 256 byte pieces are not in the vocabulary, the first "
                             f"is {short(missing[0])}; text with these bytes would lose them: add them to the vocabulary")
        self.vocab, self.ranks = vocab, ranks_of(merges, vocab, source)
        self.normalise = normalise or components.normalizer(None)
        self._cut, self._split = cut or components.pre_tokenizer(None), split
        self.prefix_space, self.whole_words = prefix_space, whole_words
        self.settings = {"add_prefix_space": prefix_space}  # as tokenizer_config.json names it
        self._word = functools.lru_cache(REMEMBERED)(self._word_ids)  # language repeats itself

    @classmethod
    def from_document(cls, document, source):
        """The model that a checked tokenizer.json describes. The last step before the merges is ByteLevel."""
        *before, last = components.parts(document["pre_tokenizer"], "pre_tokenizer")
        if last["type"] != "ByteLevel" or any(step["type"] == "ByteLevel" for step in before):
            raise InputError(f"{source}: pre_tokenizer must be Split any number of times, then ByteLevel once")
        model, cut = document["model"], {"type": "Sequence", "pretokenizers": before}
        return cls(model["vocab"], merges_of(model), components.normalizer(document.get("normalizer"), source),
                   components.pre_tokenizer(cut, source), last.get("use_regex", True), last["add_prefix_space"],
                   model.get("ignore_merges", False), source)

    def words(self, text):
        """The words of a text in order (a word keeps the space before it), each with its piece ids."""
        return self.words_within(self.normalise(text), first=True)

    def words_within(self, text, first):
        """The words of a normalised part of a text. first: the text begins with it, no special token does."""
        words = []
        for part in self._cut(text, first):
            if self.prefix_space and not part.startswith(" "):
                part = " " + part
            words += SPLIT.findall(part) if self._split else [part]
        return [(word, self._word(word)) for word in words]

    def ids(self, text):
        """The piece ids of a text, without special tokens."""
        return [i for _, ids in self.words(text) for i in ids]

    def join(self, pieces):
        """The text of pieces; bytes that are no whole character become "\ufffd"."""
        return b"".join(map(bytes_of, pieces)).decode("utf-8", errors="replace")

    def _word_ids(self, word):
        return [self.vocab[piece] for piece in self.pieces(word)]

    def pieces(self, word):
        """The pieces of one word: ["Ġlow", "er"] for " lower"."""
        letters = "".join(LETTERS[byte] for byte in whole_characters(word).encode("utf-8"))
        if self.whole_words and letters in self.vocab:
            return [letters]
        return merge(letters, self.ranks)


def whole_characters(text):
    """The text itself. Raises InputError if half of a character is in it, which has no bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text {text[:20]!r}: {error.reason} at place {error.start}: half of a character, which "
                         "no UTF-8 file holds; decode the text again from its bytes") from None
    return text


def merges_of(model):
    """The merges in the "model" of a tokenizer.json: "a b" in older files, ["a", "b"] in newer."""
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]


def ranks_of(merges, vocab, source):
    """{(left, right): its place in the list}. Raises InputError for a merge whose pieces are not in `vocab`."""
    for rank, pair in enumerate(merges):
        if len(pair) != 2:
            raise InputError(f"{source}: merge {rank} {short(' '.join(pair))} has {len(pair)} parts, not 2")
        for piece in (*pair, "".join(pair)):
            if piece not in vocab:
                raise InputError(f"{source}: merge {rank} {short(pair)} needs the piece {short(piece)}, which is not among "
                                 f"the {len(vocab)} pieces of the vocabulary; are both of one checkpoint?")
    return {tuple(pair): rank for rank, pair in enumerate(merges)}


def merge(letters, ranks):
    """Join neighbours, the pair of lowest rank first and of equals the leftmost, until no pair is in `ranks`.

    The plain way looks through all pairs for each merge: n^2 steps for n letters, hours for a page without spaces.
    Here the parts are a linked list and the candidate pairs a heap, so a merge costs log n. A pair in the heap may
    have gone stale (one of its parts was merged elsewhere): it is dropped when it comes up.
    """
    end = len(letters)
    parts = [*letters, None]                # a part that was merged into the one on its left is None, as is the end
    after = list(range(1, end + 1)) + [end]   # place of the next part
    before = list(range(-1, end))             # place of the part before; parts[-1] is the None at the end
    heap = []

    def offer(left):
        pair = parts[left], parts[after[left]]
        if pair in ranks:
            heapq.heappush(heap, (ranks[pair], left, pair))

    for left in range(end):
        offer(left)
    while heap:
        _, left, pair = heapq.heappop(heap)
        right = after[left]
        if (parts[left], parts[right]) != pair:
            continue
        parts[left], parts[right] = parts[left] + parts[right], None
        after[left] = after[right]
        before[after[right]] = left
        offer(left)
        offer(before[left])
    return [part for part in parts if part is not None]


def bytes_of(piece):
    """The bytes that a piece stands for; an added token in other letters stands for itself."""
    if all(letter in BYTES for letter in piece):
        return bytes(BYTES[letter] for letter in piece)
    return piece.encode("utf-8")


def describe(vocab, merges, prefix_space=False):
    """The sections of a tokenizer.json for a byte-level vocabulary; merges: ["Ġ t", ...]."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": True}
    return {"normalizer": None, "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": merges}}
