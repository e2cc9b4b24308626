"""Lesson 1, words to numbers: cases and known-wrong variants.

Vocabularies, merges and scores are small and made up here, of few letters, so that pieces overlap.
"""
import itertools
import math

import torch

from lessons.exercises.kit import Case, Exercise


def word_of(draw, letters, length):
    return "".join(letters[i] for i in draw.integers(0, len(letters), length).tolist())


# ---------------------------------------------------------------- 1.1 WordPieceModel.word_ids

def wrong_words(order=sorted, prefix=lambda model, start: model.prefix if start else "",
                failed=lambda model, ids, rest: [model.unk_id],
                too_long=lambda model, word: len(word) > model.longest):
    """A variant: word_ids with one thing in it changed.

    order: of the ends that are tried, after they were put from the last to the first; failed: what
    is returned when nothing fits.
    """
    def word_ids(self, word):
        if too_long(self, word):
            return [self.unk_id]
        ids, start = [], 0
        while start < len(word):
            for end in order(range(start + 1, len(word) + 1), reverse=True):
                piece = prefix(self, start) + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return failed(self, ids, word[start:])
            ids.append(self.vocab[piece])
            start = end
        return ids
    return word_ids


def unknown_letters(model, word):
    """Each letter that fits nothing is [UNK] by itself, and the word goes on behind it."""
    ids, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = (model.prefix if start else "") + word[start:end]
            if piece in model.vocab:
                break
        else:
            piece, end = None, start + 1
        ids.append(model.vocab.get(piece, model.unk_id))
        start = end
    return ids


def from_the_end(model, word):
    """The longest piece at the end of the word is cut off first."""
    ids, end = [], len(word)
    while end > 0:
        for start in range(end):
            piece = (model.prefix if start else "") + word[start:end]
            if piece in model.vocab:
                break
        else:
            return [model.unk_id]
        ids.insert(0, model.vocab[piece])
        end = start
    return ids


class WordIds(Exercise):
    """Whole numbers: compared exactly."""
    preload = ("numpy", "regex", "sentencepiece")
    variants = {
        "the shortest piece is cut off, not the longest":
            wrong_words(order=lambda ends, reverse: ends),
        "the piece is cut off at the end of the word": from_the_end,
        "pieces inside a word are looked up without the prefix":
            wrong_words(prefix=lambda model, start: ""),
        "the prefix is always ##":
            wrong_words(prefix=lambda model, start: "##" if start else ""),
        "[UNK] follows the pieces that were found":
            wrong_words(failed=lambda model, ids, rest: [*ids, model.unk_id]),
        "what fits nothing is left out": wrong_words(failed=lambda model, ids, rest: ids),
        "each unknown letter is an [UNK] of its own": unknown_letters,
        "the id of [UNK] is 0":
            wrong_words(failed=lambda model, ids, rest: [0]),
        "a word that is too long is cut all the same":
            wrong_words(too_long=lambda model, word: False),
        "a word of exactly the longest length is unknown":
            wrong_words(too_long=lambda model, word: len(word) >= model.longest),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 2, 2, 2, 3, 3, 3)))

    def inputs(self, draw):
        pieces = ["a", "b", "ab", "aba", "abab", "##a", "##b", "##bb", "##aba", "##ba", "##bab"]
        few = ["a", "ab", "aba", "##ba", "##ab", "##b", "b"]

        def case(name, kind, words, pieces=pieces, prefix="##", longest=12):
            vocab = {piece.replace("##", prefix): i for i, piece in enumerate(["pad", *pieces])}
            return Case(name, kind, {"words": words, "vocab": vocab | {"[UNK]": len(vocab)},
                                     "prefix": prefix, "longest": longest})
        words = [word_of(draw, "ab", 1 + i % 8) for i in range(24)]
        return [case("one piece", "contract", ["a", "ab", "abab"]),
                case("words that are known", "parity", words),
                case("words that fail half-way", "parity",
                     ["abac", "cab", "abcab", "ca", *(word_of(draw, "abc", 6) for _ in range(8))]),
                case("a vocabulary with gaps", "parity",
                     [word_of(draw, "ab", 2 + i % 6) for i in range(24)], few),
                case("another prefix", "parity", words, prefix="@@"),
                case("long words", "parity", ["ab" * 6, "ab" * 6 + "a", "a" * 5], longest=12)]

    def call(self, function, case):
        from minillmclf.text.tokenizers.wordpiece import WordPieceModel
        given = case.arguments
        model = WordPieceModel(given["vocab"], prefix=given["prefix"], longest=given["longest"])
        return {f"the ids of {word!r}": function(model, word) for word in given["words"]}


# ---------------------------------------------------------------- 1.2 merge_pairs

def wrong_merge(key=lambda rank, i: (rank, i), most=math.inf, new=True, once=False):
    """A variant: the simple form of merge_pairs with one thing in it changed.

    key: the smallest is merged first; most: merges that are done; new: may merged parts be merged
    again? once: is each pair merged in one place only?
    """
    def merge_pairs(letters, ranks):
        parts, done, merged, left = list(letters), 0, set(), dict(ranks)
        while done < most:
            found = [(key(left[pair], i), i) for i, pair in enumerate(zip(parts, parts[1:]))
                     if pair in left and (new or not merged & set(pair))]
            if not found:
                break
            _, i = min(found)
            pair, done = (parts[i], parts[i + 1]), done + 1
            parts[i:i + 2] = ["".join(pair)]
            merged.add(parts[i])
            if once:
                del left[pair]
        return parts
    return merge_pairs


def longest_pieces(letters, ranks):
    """As WordPiece: from the left, the longest piece that some merge makes."""
    text, known, parts, start = "".join(letters), {"".join(pair) for pair in ranks}, [], 0
    while start < len(text):
        end = next((end for end in range(len(text), start, -1) if text[start:end] in known),
                   start + 1)
        parts.append(text[start:end])
        start = end
    return parts


class MergePairs(Exercise):
    """Texts: compared exactly. No two merges make the same piece, so rounds of equal merges, as
    GPT-2 does them, give the same."""
    preload = ("numpy", "regex", "sentencepiece")
    variants = {
        "the leftmost pair is merged first, whatever its rank":
            wrong_merge(key=lambda rank, i: (i, rank)),
        "the highest rank is merged first": wrong_merge(key=lambda rank, i: (-rank, i)),
        "of equal pairs the rightmost is merged first": wrong_merge(key=lambda rank, i: (rank, -i)),
        "one merge, and no more": wrong_merge(most=1),
        "a merged part is not merged again": wrong_merge(new=False),
        "each pair is merged in one place only": wrong_merge(once=True),
        "the longest piece is taken, as in WordPiece": longest_pieces,
        "the last part is lost": lambda letters, ranks: wrong_merge()(letters, ranks)[:-1],
    }
    hint_for = dict(zip(variants, (0, 0, 1, 2, 2, 2, 0, 3)))

    def inputs(self, draw):
        def ranks(letters, count):
            pieces, pairs = list(letters), []
            while len(pairs) < count:
                left, right = (pieces[int(i)] for i in draw.integers(0, len(pieces), 2))
                if left + right not in pieces:
                    pieces.append(left + right)
                    pairs.append([left, right])
            return pairs

        def case(name, kind, letters, merges, lengths):
            return Case(name, kind, {"merges": merges, "words": [word_of(draw, letters, length)
                                                                 for length in lengths]})
        return [case("no merge", "contract", "abc", [], [0, 1, 4]),
                case("a few letters", "parity", "ab", [["a", "b"], ["b", "a"], ["ab", "ab"]],
                     range(2, 14)),
                case("equal letters", "parity", "a", [["a", "a"], ["aa", "a"]], range(1, 10)),
                case("many merges", "parity", "abc", ranks("abc", 14), range(5, 25)),
                case("more letters", "parity", "abcde", ranks("abcd", 20), range(5, 25)),
                case("a long word", "parity", "abc", ranks("abc", 12), [300])]

    def call(self, function, case):
        given = case.arguments
        ranks = {tuple(pair): rank for rank, pair in enumerate(given["merges"])}
        return {f"the parts of {word!r}": list(function(list(word), dict(ranks)))
                for word in given["words"]}


# ---------------------------------------------------------------- 1.3 best_pieces

def cuts_of(text, scores, unknown):
    """All cuts of a short text: (list of pieces, list of their scores)."""
    for places in itertools.product((0, 1), repeat=max(len(text) - 1, 0)):
        ends = [i + 1 for i, cut in enumerate(places) if cut] + [len(text)]
        pieces = [text[a:b] for a, b in zip([0, *ends], ends)] if text else []
        values = [scores.get(piece, unknown if len(piece) == 1 else -math.inf) for piece in pieces]
        if -math.inf not in values:
            yield pieces, values


def wrong_cut(key):
    """A variant: of all cuts, the one with the largest key(pieces, values)."""
    def best_pieces(text, scores, unknown):
        return max(cuts_of(text, scores, unknown), key=lambda cut: key(*cut))[0]
    return best_pieces


def greedy(key):
    """A variant: from the left, the piece with the largest key, without looking ahead."""
    def best_pieces(text, scores, unknown):
        pieces, start = [], 0
        while start < len(text):
            fits = [text[start:end] for end in range(start + 1, len(text) + 1)
                    if text[start:end] in scores] or [text[start]]
            pieces.append(max(fits, key=lambda piece: key(piece, scores.get(piece, unknown))))
            start += len(pieces[-1])
        return pieces
    return best_pieces


def right(text, scores, unknown):
    return wrong_cut(lambda pieces, values: sum(values))(text, scores, unknown)


class BestPieces(Exercise):
    """What is compared is the text that the pieces make, and the sum of their scores: two cuts may
    have equal sums. fp64 sums of at most 12 numbers below 40: 1e-5 is far from rounding.
    """
    preload = ("numpy", "regex", "sentencepiece")
    variants = {
        "the longest piece is taken, without looking ahead":
            greedy(lambda piece, score: len(piece)),
        "the piece with the highest score is taken, without looking ahead":
            greedy(lambda piece, score: score),
        "the cut with the fewest pieces wins":
            wrong_cut(lambda pieces, values: (-len(pieces), sum(values))),
        "the mean of the scores decides, not the sum":
            wrong_cut(lambda pieces, values: sum(values) / max(len(values), 1)),
        "the lowest sum wins": wrong_cut(lambda pieces, values: -sum(values)),
        "an unknown character costs nothing":
            lambda text, scores, unknown: right(text, scores, 0.0),
        "a known character may be unknown as well": lambda text, scores, unknown: right(
            text, {piece: max(score, unknown) if len(piece) == 1 else score
                   for piece, score in scores.items()}, unknown),
        "the pieces stand from the last to the first":
            lambda text, scores, unknown: right(text, scores, unknown)[::-1],
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 2, 2, 3)))

    def inputs(self, draw):
        def case(name, kind, letters, count, lengths, unknown=-30.0, known=""):
            pieces = {word_of(draw, letters, 1 + i % 4) for i in range(count)} | set(known)
            pieces = sorted(piece for piece in pieces if len(piece) > 1 or piece in known)
            values = draw.uniform(len(pieces)).double().mul(9).add(1).neg().tolist()
            scores = {piece: value - 4 * (len(piece) == 1) for piece, value in zip(pieces, values)}
            return Case(name, kind, {"scores": scores, "unknown": unknown, "texts": [
                word_of(draw, letters, length) for length in lengths]})
        return [case("one letter", "contract", "ab", 6, [1, 1], known="ab"),
                case("all letters known", "parity", "ab", 24, range(3, 12), known="ab"),
                case("three letters", "parity", "abc", 40, range(3, 12), known="abc"),
                case("an unknown letter", "parity", "abcd", 40, range(3, 12), known="abc"),
                case("unknown letters cost little", "parity", "abc", 24, range(3, 12), -4.0, "abc"),
                Case("two letters beat their pair", "parity", {"unknown": -30.0, "scores": {
                    "a": -1.0, "b": -2.0, "ab": -9.0, "abb": -4.0}, "texts": ["ab", "abab", ""]}),
                Case("a piece beats an unknown letter", "parity", {"unknown": -5.0, "scores": {
                    "a": -1.0, "b": -3.0, "abc": -8.0}, "texts": ["abc", "abcc"]})]

    def call(self, function, case):
        scores, unknown = case.arguments["scores"], case.arguments["unknown"]

        found = {}
        for text in case.arguments["texts"]:
            pieces = function(text, dict(scores), unknown)
            values = [scores.get(piece, unknown if len(piece) == 1 else -1e6) for piece in pieces]
            found[f"the pieces of {text!r}, joined,"] = "".join(pieces)
            found[f"the sum of scores of the pieces of {text!r}"] = torch.tensor(
                sum(values), dtype=torch.float64)
        return found


# ---------------------------------------------------------------- 1.4 collate

def wrong_collate(mask=None, width=None, side="right", fill=None, targets=None, typed=True):
    """A variant: collate with one thing in it changed."""
    def collate(encoded, rows, pad_id=0, labels=None):
        from minillmclf.text.batch import Batch
        chosen = [encoded[row] for row in rows]
        wide = (width or (lambda encoded, chosen: max(len(ids) for ids, _ in chosen)))(
            encoded, chosen)
        ids = torch.full((len(rows), wide), (pad_id or 0) if fill is None else fill)
        types, tokens = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, (row_ids, row_types) in enumerate(chosen):
            start = 0 if side == "right" else wide - len(row_ids)
            place = slice(start, start + len(row_ids))
            ids[i, place], tokens[i, place] = torch.tensor(row_ids), 1
            if typed:
                types[i, place] = torch.tensor(row_types)
        tokens = tokens if mask is None else mask(ids, pad_id or 0)
        chosen_labels = None if labels is None else torch.tensor(
            [(targets or (lambda labels, i, row: labels[row]))(labels, i, row)
             for i, row in enumerate(rows)])
        return Batch(ids, tokens, types, chosen_labels, list(rows))
    return collate


class Collate(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "the mask is 0 wherever an id is the padding's id":
            wrong_collate(mask=lambda ids, pad_id: (ids != pad_id).long()),
        "the mask is 1 everywhere": wrong_collate(mask=lambda ids, pad_id: torch.ones_like(ids)),
        "the mask is 1 at padding":
            wrong_collate(mask=lambda ids, pad_id: (ids == pad_id).long()),
        "padding stands on the left": wrong_collate(side="left"),
        "pad_id is ignored": wrong_collate(fill=0),
        "labels are those of the first rows":
            wrong_collate(targets=lambda labels, i, row: labels[i]),
        "the batch is as wide as the longest row of all data":
            wrong_collate(width=lambda encoded, chosen: max(len(ids) for ids, _ in encoded)),
        "token types are forgotten": wrong_collate(typed=False),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 2, 3, 2)))

    def inputs(self, draw):
        def texts(*lengths):
            return [[draw.integers(0, 9, length).tolist(), draw.integers(0, 2, length).tolist()]
                    for length in lengths]

        def case(name, kind, lengths, rows, pad_id=0, labels=None):
            encoded = texts(*lengths)
            encoded[rows[0]][0][-1] = pad_id or 0       # a token that looks like padding
            return Case(name, kind, {"encoded": encoded, "rows": rows, "pad_id": pad_id,
                                     "labels": labels})
        return [case("two rows of three", "contract", [3, 7, 4], [0, 2]),
                case("rows of one length", "parity", [4, 4, 4], [2, 0], labels=[0, 1, 2]),
                case("padding", "parity", [2, 9, 5, 3], [3, 0, 2], labels=[5, 6, 7, 8]),
                case("another padding", "parity", [4, 2, 6], [1, 2], pad_id=7),
                case("no padding id", "parity", [3, 1], [0, 1], pad_id=None)]

    def call(self, function, case):
        from minillmclf.text import batch as module
        given, positions = case.arguments, module.token_positions
        encoded = [(ids, types) for ids, types in given["encoded"]]
        module.token_positions = torch.zeros_like     # of a Layout: exercise 3.2 may not be written
        try:
            batch = function(encoded, given["rows"], given["pad_id"], given["labels"])
        finally:
            module.token_positions = positions
        return {name: getattr(batch, name) for name in ("ids", "mask", "types", "labels", "rows")}
