"""WordPiece, the tokenizer of BERT: clean the text, split it into words, cut each word greedily.

    "Unbelievable, 你好!"  ->  unbelievable , 你 好 !  ->  un ##bel ##ie ##va ##ble , 你 好 !

`normalizer` does the first step, `WordPieceModel` the other two. Not here: special tokens and files
(tokenizer.py), learning a vocabulary (pretrain/vocabulary.py).
Sources: Devlin et al. 2018 (BERT) and its `tokenization.py`. Where the `tokenizers` library differs
from these, the library is followed. Its Unicode tables date from 2015; here those of the running
Python are used, so about 500 characters of rare scripts are treated differently.
"""
import unicodedata

# Chinese is written without spaces, so each ideograph becomes a word; Hangul and kana do not.
# Extension E begins at 2B820 in Unicode, but at 2B920 in the library, which is followed here.
IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
              (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
SPACES = ("Zs", "Zl", "Zp")   # Unicode categories: space, line and paragraph separators
CONTROL = ("Cc", "Cf", "Co")  # control, format, private use; not Cn, which holds future emoji


class CharacterTable(dict):
    """For `str.translate`: code point -> rewrite(character), computed at its first use and kept."""

    def __init__(self, rewrite):
        super().__init__()
        self.rewrite = rewrite

    def __missing__(self, code):
        self[code] = self.rewrite(chr(code))
        return self[code]


def normalizer(lower=True, strip_accents=None, chinese=True):
    """-> a function, text -> clean text: any space becomes " ", and control characters are dropped.

    lower: letters become lower-case. strip_accents: "é" becomes "e"; None: if `lower` is set.
    chinese: a space is put before and after each ideograph.
    """
    strip_accents = lower if strip_accents is None else strip_accents

    def rewrite(char):
        ideograph = any(first <= ord(char) <= last for first, last in IDEOGRAPHS)
        char = clean_character(char)
        if strip_accents:  # NFD splits "é" into "e" and an accent, a mark of category Mn
            parts = unicodedata.normalize("NFD", char)
            char = "".join(part for part in parts if unicodedata.category(part) != "Mn")
        if lower:
            char = "".join(part.lower() for part in char)
        return f" {char} " if chinese and ideograph else char

    table = CharacterTable(rewrite)
    return lambda text: text.translate(table)


def clean_character(char):
    """The character itself, " " for a space, "" for a control or replacement character."""
    category = unicodedata.category(char)
    if char in "\t\n\r" or category in SPACES:
        return " "
    return "" if char == "\ufffd" or category in CONTROL else char


def is_punctuation(char):
    """Is it of Unicode's categories P*, or an ASCII symbol? Unicode itself puts $ + ~ elsewhere."""
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char).startswith("P")


class WordPieceModel:
    """Clean text -> words -> piece ids.

    vocab: piece -> id; a piece that continues a word begins with `prefix`.
    unk: the piece for a word that no pieces make up, or that has more than `longest` characters.
    """

    def __init__(self, vocab, unk="[UNK]", prefix="##", longest=100):
        self.vocab, self.unk_id, self.prefix, self.longest = vocab, vocab[unk], prefix, longest
        self.longest_piece = max(map(len, vocab))              # in characters, as `longest`
        self.spaced_punctuation = CharacterTable(lambda c: f" {c} " if is_punctuation(c) else c)

    def words(self, text):
        """Text -> words. A punctuation character is a word: "can't" -> ["can", "'", "t"]."""
        return text.translate(self.spaced_punctuation).split()

    def ids(self, text):
        return [i for word in self.words(text) for i in self.word_ids(word)]

    def word_ids(self, word):
        """Cut the longest piece in vocab off the front, again and again; if none fits, [unk_id]."""
        if len(word) > self.longest:
            return [self.unk_id]
        ids, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self.longest_piece), start, -1):
                piece = word[start:end] if start == 0 else self.prefix + word[start:end]
                if piece in self.vocab:
                    break
            else:                                      # no break: no piece fits
                return [self.unk_id]
            ids.append(self.vocab[piece])
            start = end
        return ids

    def join(self, pieces):
        """Pieces -> text, with one space between words."""
        return " ".join(pieces).replace(" " + self.prefix, "")
