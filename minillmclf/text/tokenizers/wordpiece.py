"""WordPiece, as BERT uses it: clean, lower-case, split at spaces and punctuation, then cut each word greedily.

    "Unbelievable, 你好!"  ->  unbelievable , 你 好 !  ->  un ##bel ##ie ##va ##ble , 你 好 !

Here: the algorithm. Not here: special tokens and files (tokenizer.py), training a vocabulary. Sources: Devlin et al.
2018 (BERT) and its `tokenization.py`; where that and the `tokenizers` library differ, we do as the library does. One
difference stays: its Unicode tables for marks, punctuation and format characters are of 2015, ours are those of the
Python that runs, so about 500 characters of rare scripts that came or changed since then are treated otherwise.
"""

import functools
import unicodedata

from ...errors import InputError
from ...files import short
from .components import in_form

# Chinese is written without spaces, so every ideograph becomes a word of its own; Korean and kana do not. The trap:
# the sixth block begins at 2B820, but the library begins it at 2B920, and ids must be those of the library.
IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
              (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
CONTROL = ("Cc", "Cf", "Co")  # control, format, private use; not the unassigned Cn: it may be tomorrow's emoji
REMEMBERED = 2**16  # runs of characters whose ids are kept


class WordPieceModel:
    """Text -> words -> piece ids.

    vocab: piece -> id; a piece that continues a word begins with `prefix`.
    unk: the piece for a word that cannot be cut, or has more than `longest` characters.
    lower, strip_accents (None: as `lower`), chinese: what `normalise` does.
    source: the file that errors name.
    """

    inputs = ["input_ids", "token_type_ids", "attention_mask"]  # what a model of this kind is given

    def __init__(self, vocab, unk="[UNK]", lower=True, strip_accents=None, chinese=True, prefix="##", longest=100,
                 source="vocabulary"):
        if unk not in vocab:
            raise InputError(f"{source}: unk_token {short(unk)} is not among the {len(vocab)} pieces of the vocabulary; "
                             "add it there, or name the right one")
        self.vocab, self.unk_id, self.prefix, self.longest = vocab, vocab[unk], prefix, longest
        self._most = max(map(len, vocab))           # letters of a piece
        self.lower = lower
        self.strip_accents = lower if strip_accents is None else strip_accents
        # as tokenizer_config.json names them
        self.settings = {"do_lower_case": lower, "strip_accents": self.strip_accents,
                         "tokenize_chinese_chars": chinese}
        self._clean_table = CleanTable(chinese)
        self._run = functools.lru_cache(REMEMBERED)(self._cut_run)  # language repeats itself

    @classmethod
    def from_document(cls, document, source):
        """The model that a checked tokenizer.json describes."""
        model, normal = document["model"], document["normalizer"]
        return cls(model["vocab"], model["unk_token"], normal["lowercase"], normal.get("strip_accents"),
                   normal["handle_chinese_chars"], model["continuing_subword_prefix"],
                   model["max_input_chars_per_word"], source)

    def normalise(self, text):
        """One kind of space, no control characters, ideographs set apart, accents and capitals removed if so set."""
        return self._fold(text.translate(self._clean_table))

    def words(self, text):
        """The normalised words of a text in order, each with its piece ids: [("un", [4]), ...]."""
        return [word for run in text.translate(self._clean_table).split() for word in self._run(run)[0]]

    def words_within(self, text, first):
        """The words of a normalised part of a text. Here it is the same wherever the part stands."""
        return self.words(text)

    def ids(self, text):
        """The piece ids of a text, without special tokens."""
        return [i for run in text.translate(self._clean_table).split() for i in self._run(run)[1]]

    def join(self, pieces):
        """Text of pieces: words with a space between, for pieces do not hold more."""
        return " ".join(pieces).replace(" " + self.prefix, "")

    def _cut_run(self, run):
        """A run of clean characters between spaces: (its words with their ids, all their ids)."""
        words = [(word, self.pieces(word)) for word in split_punctuation(self._fold(run))]
        return words, [i for _, ids in words for i in ids]

    def _fold(self, text):
        """Without accents ("é" is "e" and a mark in NFD form; marks are dropped) and capitals, if so set."""
        if self.strip_accents and not text.isascii():
            text = "".join(c for c in in_form("NFD", text) if unicodedata.category(c) != "Mn")
        if self.lower:  # one by one: "ΟΔΟΣ".lower() looks around and ends in "ς", the library's ends in "σ"
            text = "".join(map(str.lower, text))
        return text

    def pieces(self, word):
        """Ids of one word: the longest piece that fits, again and again. One place without: all is unknown."""
        if len(word) > self.longest:
            return [self.unk_id]
        ids, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self._most), start, -1):
                piece = word[start:end] if start == 0 else self.prefix + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return [self.unk_id]
            ids.append(self.vocab[piece])
            start = end
        return ids


class CleanTable(dict):
    """Code point -> what stands for it in clean text, for `str.translate`; filled as characters are met."""

    def __init__(self, chinese):
        super().__init__()
        self.chinese = chinese

    def __missing__(self, code):
        char, category = chr(code), unicodedata.category(chr(code))
        if char in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
            clean = " "
        elif char == "\ufffd" or category in CONTROL:
            clean = ""
        elif self.chinese and any(first <= code <= last for first, last in IDEOGRAPHS):
            clean = f" {char} "
        else:
            clean = char
        self[code] = clean
        return clean


def is_punctuation(char):
    """True for every ASCII sign (also $ + ~, which Unicode calls symbols) and for Unicode's P* categories."""
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char).startswith("P")


def split_punctuation(text):
    """["can", "'", "t"] for "can't": every punctuation character is a word of its own."""
    words, start = [], 0
    for place, char in enumerate(text):
        if is_punctuation(char):
            words += [text[start:place], char]
            start = place + 1
    return [word for word in [*words, text[start:]] if word]


def describe(vocab, lower, strip_accents=None, chinese=True, unk="[UNK]"):
    """The sections of a tokenizer.json for a BERT vocabulary."""
    return {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": chinese,
                           "strip_accents": strip_accents, "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab}}
