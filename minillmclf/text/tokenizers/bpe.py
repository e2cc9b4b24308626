"""Byte-pair encoding (BPE), as GPT-2, RoBERTa, LLaMA-3 and Qwen use it: merge neighbours by rank.

    "low lower"  ->  "low", " lower"  ->  l o w / Ġ l o w e r  ->  low / Ġlow er

Merging starts from a word's bytes. Each of the 256 bytes is a piece, so no text is unknown.
LLaMA-2, Mistral and Gemma merge characters instead (unigram.py), with the same `BytePairModel`.
Not here: special tokens and files (tokenizer.py), learning the merges.
Sources: Sennrich et al. 2016 (merges); Radford et al. 2019 and GPT-2's `encoder.py` (bytes, SPLIT).
"""

import heapq

import regex

# English contractions, runs of letters, digits or other signs, each with one space before; spaces.
# `(?!\S)`: a run of spaces leaves its last one to the word that follows.
SPLIT = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
# Qwen's: each digit alone, letters with one sign before them, line ends with what stands before
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_letters():
    """Byte -> the one character that stands for it in vocab.json and merges.txt.

    Printable Latin-1 characters stand for themselves; the other 68 bytes (controls, space,
    127-160, 173) take the characters from 256 on, in order: a space is "Ġ", a line end "Ċ".
    """
    letters = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


LETTER_OF = byte_letters()
BYTE_OF = {letter: byte for byte, letter in LETTER_OF.items()}


def pre_tokenizer(prefix_space=False, use_regex=True):
    """A function text -> words that cuts by GPT-2's pattern; a word keeps the space before it.

    prefix_space: put a space before a text that has none, so its first word is like any other.
    use_regex: False returns the text uncut, for files that cut by a pattern of their own.
    """
    def cut(text, first=True):  # first: not used, but every step of steps.py is called with it
        if prefix_space and not text.startswith(" "):
            text = " " + text
        return SPLIT.findall(text) if use_regex else [text]
    return cut


def letters_of(word):
    """["Ġ", "Ã", "©"] for " é": the characters that stand for the bytes of a word."""
    return [LETTER_OF[byte] for byte in word.encode("utf-8")]


class BytePairModel:
    """Word -> piece ids.

    vocab: piece -> id.
    merges: [(left, right), ...]; a pair's index is its rank, and the lowest rank merges first.
    letters: a function word -> the list of pieces that merging starts from.
    whole_words: a word that is itself a piece is not merged (`ignore_merges` in a tokenizer.json).
    """

    def __init__(self, vocab, merges, letters=letters_of, whole_words=False):
        self.vocab, self.letters, self.whole_words = vocab, letters, whole_words
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}

    def ids(self, word):
        """The ids of "Ġlow" and "er" for " lower"."""
        letters = self.letters(word)
        if self.whole_words and "".join(letters) in self.vocab:
            return [self.vocab["".join(letters)]]
        return [self.vocab[piece] for piece in merge_pairs(letters, self.ranks)]


def merge_pairs(letters, ranks):
    """Merge neighbours until no pair has a rank: the lowest first, the leftmost among equals.

    A search of all pairs for each merge takes n^2 steps for n letters: hours for a page without
    spaces. Here the parts form a linked list and the mergeable pairs a heap: log n steps a merge.
    A popped pair is skipped if one of its parts has been merged since it was pushed.
    """
    end = len(letters)
    parts = [*letters, None]                 # None: merged into the part on its left, or the end
    after = list(range(1, end + 1)) + [end]  # index of the next part
    before = list(range(-1, end))            # index of the part before; -1: the None at the end
    heap = []

    def push(left):
        pair = parts[left], parts[after[left]]
        if pair in ranks:
            heapq.heappush(heap, (ranks[pair], left, pair))

    for left in range(end):
        push(left)
    while heap:
        _, left, pair = heapq.heappop(heap)
        right = after[left]
        if (parts[left], parts[right]) != pair:
            continue
        parts[left], parts[right] = parts[left] + parts[right], None
        after[left] = after[right]
        before[after[right]] = left
        push(left)
        push(before[left])
    return [part for part in parts if part is not None]


def join_pieces(pieces):
    """The text of pieces; invalid UTF-8 becomes "\ufffd".

    An added token that is not written in byte letters stands for itself.
    """
    encoded = []
    for piece in pieces:
        if all(letter in BYTE_OF for letter in piece):
            encoded.append(bytes(BYTE_OF[letter] for letter in piece))
        else:
            encoded.append(piece.encode("utf-8"))
    return b"".join(encoded).decode("utf-8", errors="replace")
