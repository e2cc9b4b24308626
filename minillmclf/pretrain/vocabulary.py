"""Learning a WordPiece vocabulary: start from characters, merge the most frequent pair, repeat.

This is how byte-pair encoding is trained (Sennrich et al. 2016), with BERT's notation: a piece that
does not begin a word is written `##piece`. Words are normalised and split as the tokenizer does it.
Not here: cutting words into the learned pieces (wordpiece.py).
"""
import heapq
from collections import Counter, defaultdict

from ..text.tokenizers.wordpiece import WordPieceModel, normalizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def count_words(texts):
    """How often each normalised word occurs. texts: iterable of (text, weight)."""
    normalise, splitter, counts = normalizer(), WordPieceModel({"[UNK]": 0}), Counter()
    for text, weight in texts:
        for word in splitter.words(normalise(text)):
            counts[word] += weight
    return counts


def spell(word):
    """"cats" -> ["c", "##a", "##t", "##s"]."""
    return [word[0]] + ["##" + char for char in word[1:]]


def alphabet_of(counts, size):
    """The `size` most frequent characters. Words with others become [UNK]: rare characters would
    fill the vocabulary."""
    characters = Counter()
    for word, count in counts.items():
        for char in word:
            characters[char] += count
    ranked = sorted(characters, key=lambda char: (-characters[char], char))
    return set(ranked[:size])


def learn_wordpiece(counts, size, alphabet=120):
    """counts: {word: frequency}; size: pieces, specials included -> list of pieces in id order."""
    allowed = alphabet_of(counts, alphabet)
    # Counts in integer thousandths: sums of fractions (a text may weigh 0.1) would leave remainders
    # for pairs that no longer occur.
    words = [(spell(word), round(1000 * count)) for word, count in sorted(counts.items())
             if set(word) <= allowed]
    pieces = dict.fromkeys(SPECIALS + sorted({piece for spelled, _ in words for piece in spelled}))
    pairs, where = Counter(), defaultdict(set)       # pair -> frequency, -> words that contain it
    for index, (spelled, count) in enumerate(words):
        for pair in zip(spelled, spelled[1:]):
            pairs[pair] += count
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(pieces) < size:
        negative, pair = heapq.heappop(heap)
        if -negative != pairs[pair]:                 # an old entry: the count has changed since
            continue
        pieces[joined(pair)] = None
        for changed in join(pair, words, pairs, where):
            heapq.heappush(heap, (-pairs[changed], changed))
    return list(pieces)


def joined(pair):
    """("##a", "##b") -> "##ab"."""
    return pair[0] + pair[1].removeprefix("##")


def join(pair, words, pairs, where):
    """Merge `pair` in each word that contains it, and update `pairs` and `where` -> the pairs whose
    count has changed and is not 0."""
    changed = set()
    for index in where.pop(pair):
        spelled, count = words[index]
        for old in zip(spelled, spelled[1:]):
            pairs[old] -= count
            changed.add(old)
        merged, i = [], 0
        while i < len(spelled):
            here = tuple(spelled[i:i + 2]) == pair
            merged.append(joined(pair) if here else spelled[i])
            i += 2 if here else 1
        words[index] = (merged, count)
        for new in zip(merged, merged[1:]):
            pairs[new] += count
            where[new].add(index)
            changed.add(new)
    return {p for p in changed if pairs[p] > 0}
