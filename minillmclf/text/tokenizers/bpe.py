"""Byte-pair encoding (BPE), as GPT-2, RoBERTa and LLaMA-3 use it: merge neighbours by rank.

    "low lower"  ->  "low", " lower"  ->  l o w / Ġ l o w e r  ->  low / Ġlow er

The letters of a word are its bytes, so no text is ever unknown: each of the 256 bytes is a piece.
LLaMA-2, Mistral and Gemma merge characters instead (unigram.py), with the same `BytePairModel`.
Not here: special tokens and files (tokenizer.py), learning the merges.
Sources: Sennrich et al. 2016 (merges); Radford et al. 2019 and GPT-2's `encoder.py` (bytes, SPLIT).
"""

import heapq

import regex

# English endings, then letters, digits, other signs (each with one space before it), then spaces.
# `(?!\S)`: a run of spaces leaves its last one to the word that follows.
SPLIT = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_letters():
    """Byte -> the one character that stands for it in vocab.json and merges.txt.

    Printable Latin-1 characters stand for themselves; the other 68 bytes (controls, space,
    127-160, 173) take the characters from 256 on, in order: a space is "Ġ", a line end "Ċ".
    """
    letters = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in LETTERS.items()}


def pre_tokenizer(prefix_space=False, use_regex=True):
    """A function text -> words, cut at GPT-2's pattern; a word keeps the space before it.

    prefix_space: put a space before a text that has none, so its first word is like any other.
    use_regex: False leaves the text in one part, for files that bring another pattern.
    """
    def cut(text, first=True):
        if prefix_space and not text.startswith(" "):
            text = " " + text
        return SPLIT.findall(text) if use_regex else [text]
    return cut


def letters_of(word):
    """["Ġ", "Ã", "©"] for " é": the characters that stand for the bytes of a word."""
    return [LETTERS[byte] for byte in word.encode("utf-8")]


class BytePairModel:
    """Word -> piece ids.

    vocab: piece -> id.
    merges: [(left, right), ...], the most important first; its place in the list is its rank.
    letters: a function word -> list of pieces, from which merging starts.
    whole_words: a word that is a piece is taken as it is (`ignore_merges` in a tokenizer.json).
    """

    def __init__(self, vocab, merges, letters=letters_of, whole_words=False):
        self.vocab, self.letters, self.whole_words = vocab, letters, whole_words
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}

    def ids(self, word):
        """The ids of "Ġlow" and "er" for " lower"."""
        letters = self.letters(word)
        if self.whole_words and "".join(letters) in self.vocab:
            return [self.vocab["".join(letters)]]
        return [self.vocab[piece] for piece in merge(letters, self.ranks)]


def merge(letters, ranks):
    """Merge neighbours, the pair of lowest rank first, of equals the leftmost, as long as any can.

    The plain way looks through all pairs for each merge: n^2 steps for n letters, hours for a page
    without spaces. Here the parts form a linked list and the candidate pairs a heap, so a merge
    costs log n. A pair whose parts have changed since it was pushed is skipped when it comes up.
    """
    end = len(letters)
    parts = [*letters, None]                 # None: merged into the part on its left, or the end
    after = list(range(1, end + 1)) + [end]  # index of the next part
    before = list(range(-1, end))            # index of the part before
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


def join(pieces):
    """The text of pieces; bytes that form no whole character become "\ufffd".

    An added token that is not written in byte letters stands for itself.
    """
    coded = []
    for piece in pieces:
        if all(letter in BYTES for letter in piece):
            coded.append(bytes(BYTES[letter] for letter in piece))
        else:
            coded.append(piece.encode("utf-8"))
    return b"".join(coded).decode("utf-8", errors="replace")
