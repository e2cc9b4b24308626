"""Learning a WordPiece vocabulary from text: start from characters, join the most frequent neighbours, again and again.

This is byte-pair encoding's training (Sennrich et al. 2016) with BERT's spelling: a piece that does not begin a word is
written `##piece`. Words come from WordPiece's own cleaning and splitting, so what is learned is what will be looked up.
Here: the trainer. Not here: cutting words with the result (wordpiece.py).
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
    """The `size` most frequent characters; words with any other are left to [UNK], or they would eat the vocabulary."""
    characters = Counter()
    for word, count in counts.items():
        for char in word:
            characters[char] += count
    return {char for char, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:size]}


def learn_wordpiece(counts, size, alphabet=120):
    """counts: word -> frequency; size: pieces wanted, specials included -> list of pieces, the vocabulary in id order."""
    allowed = alphabet_of(counts, alphabet)
    # In whole thousandths: sums of fractions (a text may weigh 0.1) would leave remains of pairs that are no more.
    words = [(spell(word), round(1000 * count)) for word, count in sorted(counts.items()) if set(word) <= allowed]
    pieces = dict.fromkeys(SPECIALS + sorted({piece for spelled, _ in words for piece in spelled}))
    pairs, where = Counter(), defaultdict(set)          # neighbours -> frequency, -> words that hold them
    for index, (spelled, count) in enumerate(words):
        for pair in zip(spelled, spelled[1:]):
            pairs[pair] += count
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(pieces) < size:
        negative, pair = heapq.heappop(heap)
        if -negative != pairs[pair]:                    # an old entry: its count has changed since it was pushed
            continue
        pieces[pair[0] + pair[1].removeprefix("##")] = None
        for changed in join(pair, words, pairs, where):
            heapq.heappush(heap, (-pairs[changed], changed))
    return list(pieces)


def join(pair, words, pairs, where):
    """Write `pair` as one piece in every word that holds it; keeps the counts right -> the pairs whose count changed."""
    changed, joined = set(), pair[0] + pair[1].removeprefix("##")
    for index in where.pop(pair):
        spelled, count = words[index]
        for old in zip(spelled, spelled[1:]):
            pairs[old] -= count
            changed.add(old)
        merged, i = [], 0
        while i < len(spelled):
            here = tuple(spelled[i:i + 2]) == pair
            merged.append(joined if here else spelled[i])
            i += 2 if here else 1
        words[index] = (merged, count)
        for new in zip(merged, merged[1:]):
            pairs[new] += count
            where[new].add(index)
            changed.add(new)
    return {p for p in changed if pairs[p] > 0}
