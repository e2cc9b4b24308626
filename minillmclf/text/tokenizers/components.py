"""The steps before the algorithm, as a tokenizer.json lists them: normalizers change a text, pre_tokenizers cut it.

    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}      "low lower"  ->  "low▁lower"
    {"type": "Split", "pattern": {"Regex": "\\\\d"}, "behavior": "Isolated"}  "a1b"  ->  "a", "1", "b"

Here: the steps that SentencePiece models and LLaMA-3's byte-level BPE are described with. Not here: BERT's own steps
(wordpiece.py); which step goes with which algorithm (KINDS in tokenizer.py). The format has no paper; it is that of
the `tokenizers` library. One difference stays, in "Precompiled": the library replaces a letter together with the
marks on it and so loses the marks ("ﬁ" + acute becomes "fi"); we do as SentencePiece, with which models were trained.
"""

import base64
import itertools
import unicodedata

import numpy as np
import regex
import sentencepiece

from ...errors import InputError
from ...files import short
from ..patterns import compile_pattern

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
META = "▁"  # U+2581 stands for a space in the pieces of SentencePiece
CHILDREN = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}
GROWTH = 100                   # times longer a normalizer may make a text; NFKC makes it 18 times longer at most
MARKS = regex.compile(r"[\p{M}\uff9e\uff9f]{32,}")         # the last two are marks in NFKD only


def parts(component, place):
    """The steps of a component: [] for None, those of a Sequence one by one. place: "normalizer", ..."""
    steps, waiting = [], [component]
    while waiting:                                          # no recursion: a file may nest thousands
        step = waiting.pop()
        if step is not None and step["type"] == "Sequence":
            waiting += reversed(step[CHILDREN[place]])
        elif step is not None:
            steps.append(step)
    return steps


def made(component, place, table, source):
    """The functions for the steps of a checked component. source: the file that errors name."""
    steps = []
    for step in parts(component, place):
        where = f"{source}: {place}.{step['type']}"
        try:
            steps.append(table[step["type"]](step | {"where": where}))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: {short(str(error))[1:-1]}") from None
    return steps


def normalizer(component, source="tokenizer.json"):
    """A function text -> text that does all steps of a normalizer in order. source: the file that errors name."""
    steps = made(component, "normalizer", NORMALIZERS, source)

    def normalise(text):
        most = 1000 + GROWTH * len(text)
        for step in steps:
            text = step(text)
            if len(text) > most:
                raise InputError(f"{source}: its normalizer makes {len(text)} characters of {(most - 1000) // GROWTH}: "
                                 "remove the step of it that writes so much")
        return text
    return normalise


def pre_tokenizer(component, source="tokenizer.json"):
    """A function (text, first) -> list of words that does all steps of a pre_tokenizer in order.

    first: whether the text begins here; it does not after a special token ("</s> and so on")."""
    steps = made(component, "pre_tokenizer", PRE_TOKENIZERS, source)

    def cut(text, first):
        words = [text] if text else []
        for step in steps:
            words = [new for n, word in enumerate(words) for new in step(word, first and n == 0) if new]
        return words
    return cut


# ------------------------------------------------------------------------------------------------- the normalizers

def precompiled(step):
    """SentencePiece's table of rewritings (NFKC and some more), through its library. It is a trie in binary form."""
    rules = base64.b64decode(step["precompiled_charsmap"])
    check_trie(rules)
    proto = tagged(3, tagged(2, rules))  # in the format of a .model file: a normalizer_spec with a charsmap in it
    try:
        return sentencepiece.SentencePieceNormalizer(model_proto=proto, add_dummy_prefix=False, escape_whitespaces=False,
                                                     remove_extra_whitespaces=False).normalize
    except RuntimeError as error:
        raise ValueError(f"precompiled_charsmap: {error}") from None


def check_trie(rules):
    """Raise ValueError for a table of rewritings that leads outside itself: SentencePiece would read there.

    Four bytes, the length of the trie; the trie, an array of 32 bits as the library Darts-clone has
    it; texts that end in NUL. A unit's upper bits are the distance to its children; bit 8 says that
    one of them is a leaf, a place among the texts."""
    length = int.from_bytes(rules[:4], "little")
    texts = rules[4 + length:]
    if not length or length % 1024 or not texts.endswith(b"\0"):
        raise ValueError("precompiled_charsmap: the table of rewritings is cut short")
    units = np.frombuffer(rules[4:4 + length], "<u4").astype(np.int64)
    children = np.arange(len(units)) ^ (units >> 10 << ((units & 512) >> 6))
    inner = units < 2**31                                    # the others are leaves
    leaves = children[inner & (units & 256 > 0)]
    if (children[inner] | 255).max(initial=0) >= len(units) or \
            (units[leaves] & 2**31 - 1).max(initial=0) >= len(texts):
        raise ValueError("precompiled_charsmap: the table of rewritings leads outside itself")
    texts.decode("utf-8")


def tagged(number, content):
    """A field of a protobuf message: its number and kind (2: bytes), the length of `content`, `content`."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number):
    """A whole number as protobuf writes it: 7 bits a byte, the lowest first, the top bit set where more follow."""
    coded = bytearray()
    while number > 127:
        coded.append(number & 127 | 128)
        number >>= 7
    return bytes([*coded, number])


TRIM = rf"\A +|[ {META}]+\z"
# pattern -> an equal one that is tried once for a run of spaces: n steps, not n^2, for n spaces
LINEAR = {TRIM: rf"\A[ {META}]+\z|\A +|(?<![ {META}])[ {META}]+\z"}


def pattern_of(step):
    """The compiled pattern of a Replace or Split. As in the library's own engine, ^ and $ match at every line."""
    (kind, text), = step["pattern"].items()
    return compile_pattern(regex.escape(text) if kind == "String" else LINEAR.get(text, text),
                           f"{step.get('where', 'a step')}.pattern", regex.MULTILINE)


def replace(step):
    content, pattern = step["content"], pattern_of(step)
    if "String" in step["pattern"]:
        return lambda text: text.replace(step["pattern"]["String"], content)
    return lambda text: pattern.sub(lambda match: content, text)  # a function: a backslash in content is just that


def prepend(step):
    return lambda text: step["prepend"] + text if text else text


def strip(step):
    left, right = SPACES if step["strip_left"] else "", SPACES if step["strip_right"] else ""
    return lambda text: text.lstrip(left).rstrip(right)


def lowercase(step):
    return lambda text: "".join(map(str.lower, text))  # one by one, so that no final sigma looks around


def unicode_form(step):
    return lambda text: in_form(step["type"], text)


def in_form(form, text):
    """A text in a Unicode normal form, "NFC", "NFD", "NFKC" or "NFKD". Python sorts the marks on a
    letter by insertion, n^2 steps for n of them, so a long run of marks is taken apart and sorted
    before: the form stays the same."""
    def in_order(match):
        marks = "".join(unicodedata.normalize("NFKD" if "K" in form else "NFD", mark) for mark in match.group())
        groups = itertools.groupby(marks, lambda mark: unicodedata.combining(mark) > 0)
        return "".join(mark for _, group in groups for mark in sorted(group, key=unicodedata.combining))
    return unicodedata.normalize(form, text if text.isascii() else MARKS.sub(in_order, text))


NORMALIZERS = {"Precompiled": precompiled, "Replace": replace, "Prepend": prepend, "Strip": strip,
               "Lowercase": lowercase} | dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD"), unicode_form)


# ---------------------------------------------------------------------------------------------- the pre_tokenizers

def metaspace(step):
    """A "▁" for each space and one at the front, where none is; with `split` each "▁" begins a word.

    prepend_scheme: at the front of every text ("always"), of a text that begins here ("first"), or "never"."""
    scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")  # the older key
    to_next = split({"pattern": {"String": META}, "behavior": "MergedWithNext"})

    def cut(text, first):
        text = text.replace(" ", META)
        if not text.startswith(META) and (scheme == "always" or scheme == "first" and first):
            text = META + text
        return to_next(text, first) if step.get("split", True) else [text]
    return cut


def split(step):
    """Cut at each match of a pattern. The match: a word of its own, or the end of the word before, or a beginning."""
    pattern, behavior = pattern_of(step), step["behavior"]

    def cut(text, first):
        ends = [end for match in pattern.finditer(text) if match.group() for end in match.span()]
        if behavior == "MergedWithPrevious":
            ends = ends[1::2]
        elif behavior == "MergedWithNext":
            ends = ends[0::2]
        places = [0, *ends, len(text)]
        return [text[start:end] for start, end in zip(places, places[1:])]
    return cut


def whitespace_split(step):
    pattern = regex.compile(f"[{SPACES}]+")
    return lambda text, first: pattern.split(text)


PRE_TOKENIZERS = {"Metaspace": metaspace, "Split": split, "WhitespaceSplit": whitespace_split}
