"""The steps before the algorithm, as a tokenizer.json lists them.

A normalizer changes a text, a pre_tokenizer cuts it into words:

    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}           "a b"  ->  "a▁b"
    {"type": "Split", "pattern": {"Regex": "[0-9]"}, "behavior": "Isolated"}  "a1b"  ->  "a", "1", "b"

Here: the steps of byte-level BPE and SentencePiece. Not here: BERT's own steps (wordpiece.py), and
which step goes with which algorithm (schema.py). The format is that of the `tokenizers` library.
One difference remains, in "Precompiled": the library replaces a letter together with its marks and
so loses the marks ("ﬁ" + acute becomes "fi"); we do as SentencePiece, which trained the models.
"""

import base64
import functools
import itertools
import unicodedata

import numpy as np
import regex
import sentencepiece

from ...errors import InputError
from ...files import short
from ..patterns import compile_pattern
from . import bpe
from .protobuf import bytes_field

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
SPACES += "".join(map(chr, range(0x2000, 0x200B)))
META = "▁"  # U+2581 stands for a space in the pieces of SentencePiece
CHILDREN = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers",
            "post_processor": "processors"}
GROWTH = 100  # times longer a normalizer may make a text; NFKC makes it at most 18 times longer


def steps_of(component, place, source="tokenizer.json"):
    """The steps of a component in order: none for null, those of a Sequence one by one.

    place: "normalizer", "pre_tokenizer" or "post_processor". source: the file that errors name.
    """
    steps, waiting = [], [component]
    while waiting:  # no recursion: a malformed file may nest thousands
        step = waiting.pop()
        sequence = isinstance(step, dict) and step.get("type") == "Sequence"
        inner = step.get(CHILDREN[place]) if sequence else []
        if step is not None and not (isinstance(step, dict) and isinstance(step.get("type"), str)
                                     and isinstance(inner, list)):
            raise InputError(f"{source}: {place} = {short(component)} (should be null, an object "
                             f"with a type, or a Sequence of such with {CHILDREN[place]}): fetch "
                             "the file again")
        waiting += reversed(inner)
        if step is not None and not sequence:
            steps.append(step)
    return steps


def build_steps(component, place, table, source):
    """The functions for the steps of a component that `schema.check_document` has checked."""
    built = []
    for step in steps_of(component, place, source):
        where = f"{source}: {place}.{step['type']}"
        try:
            built.append(table[step["type"]](step | {"where": where}))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{where}: {short(str(error))[1:-1]}") from None
    return built


def normalizer(component, source="tokenizer.json"):
    """A function text -> text that does all steps of a normalizer in order."""
    steps = build_steps(component, "normalizer", NORMALIZERS, source)

    def normalise(text):
        check_utf8(text)
        longest = 1000 + GROWTH * len(text)
        for step in steps:
            text = step(text)
            if len(text) > longest:
                raise InputError(f"{source}: its normalizer makes {len(text)} characters of "
                                 f"{(longest - 1000) // GROWTH}: remove the step of it that "
                                 "writes so much")
        return text
    return normalise


def check_utf8(text):
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text {text[:20]!r}: {error.reason} at place {error.start}: half of a "
                         "character, which no UTF-8 file holds; decode the text again from its "
                         "bytes") from None


def pre_tokenizer(component, source="tokenizer.json"):
    """A function (text, first) -> words that does all steps of a pre_tokenizer in order.

    first: the text begins here; False after a special token ("</s> and so on").
    """
    steps = build_steps(component, "pre_tokenizer", PRE_TOKENIZERS, source)

    def cut(text, first=True):
        words = [text] if text else []
        for step in steps:
            parts = []
            for n, word in enumerate(words):
                parts += step(word, first and n == 0)
            words = [part for part in parts if part]
        return words
    return cut


# ------------------------------------------------------------------------------- the normalizers

def precompiled(step):
    """SentencePiece's table of rewritings (NFKC and more), through its library."""
    rules = base64.b64decode(step["precompiled_charsmap"])
    check_trie(rules)
    model = bytes_field(3, bytes_field(2, rules))  # a .model file with nothing but the table
    try:
        return sentencepiece.SentencePieceNormalizer(
            model_proto=model, add_dummy_prefix=False, escape_whitespaces=False,
            remove_extra_whitespaces=False).normalize
    except RuntimeError as error:
        raise ValueError(f"precompiled_charsmap: {error}") from None


def check_trie(rules):
    """ValueError if a table of rewritings leads outside itself: SentencePiece would read there.

    rules: four bytes, the length of the trie; the trie, units of 32 bits as the library Darts-clone
    writes them; texts that end in NUL. The upper bits of a unit are the distance to its children;
    bit 8 says that one of them is a leaf, which holds a place among the texts.
    """
    length = int.from_bytes(rules[:4], "little")
    texts = rules[4 + length:]
    if not length or length % 1024 or not texts.endswith(b"\0"):
        raise ValueError("precompiled_charsmap: the table of rewritings is cut short")
    units = np.frombuffer(rules[4:4 + length], "<u4").astype(np.int64)
    children = np.arange(len(units)) ^ (units >> 10 << ((units & 512) >> 6))
    inner = units < 2**31  # the others are leaves
    leaves = children[inner & (units & 256 > 0)]
    if (children[inner] | 255).max(initial=0) >= len(units) or \
            (units[leaves] & 2**31 - 1).max(initial=0) >= len(texts):
        raise ValueError("precompiled_charsmap: the table of rewritings leads outside itself")
    texts.decode("utf-8")


TRIM = rf"\A +|[ {META}]+\z"
# a pattern and an equal one that reads each run of spaces once: n steps, not n^2, for n spaces
LINEAR = {TRIM: rf"\A[ {META}]+\z|\A +|(?<![ {META}])[ {META}]+\z"}


def pattern_of(step):
    """The compiled pattern of a Replace or Split. ^ and $ match at every line, as in the library."""
    (kind, text), = step["pattern"].items()
    text = regex.escape(text) if kind == "String" else LINEAR.get(text, text)
    return compile_pattern(text, f"{step.get('where', 'a step')}.pattern", regex.MULTILINE)


def replace(step):
    content, pattern = step["content"], pattern_of(step)
    if "String" in step["pattern"]:
        return lambda text: text.replace(step["pattern"]["String"], content)
    return lambda text: pattern.sub(lambda match: content, text)  # a backslash is just that


def prepend(step):
    return lambda text: step["prepend"] + text if text else text


def strip(step):
    left = SPACES if step["strip_left"] else ""
    right = SPACES if step["strip_right"] else ""
    return lambda text: text.lstrip(left).rstrip(right)


def lowercase(step):
    # one by one: "ΟΔΟΣ".lower() ends in "ς", the library writes "σ"
    return lambda text: "".join(map(str.lower, text))


MARKS = regex.compile(r"[\p{M}\uff9e\uff9f]{32,}")  # the last two are marks in NFKD only


def unicode_form(form, text):
    """A text in a Unicode normal form: "NFC", "NFD", "NFKC" or "NFKD".

    Python sorts the marks on a letter by insertion, n^2 steps for n of them. So a long run of marks
    is decomposed and sorted before; the result is the same.
    """
    def sort(match):
        decomposed = "NFKD" if "K" in form else "NFD"
        marks = "".join(unicodedata.normalize(decomposed, mark) for mark in match.group())
        ordered = ""
        for _, group in itertools.groupby(marks, lambda mark: unicodedata.combining(mark) > 0):
            ordered += "".join(sorted(group, key=unicodedata.combining))
        return ordered
    return unicodedata.normalize(form, text if text.isascii() else MARKS.sub(sort, text))


NORMALIZERS = {"Precompiled": precompiled, "Replace": replace, "Prepend": prepend, "Strip": strip,
               "Lowercase": lowercase}
NORMALIZERS |= {form: lambda step: functools.partial(unicode_form, step["type"])
                for form in ("NFC", "NFD", "NFKC", "NFKD")}


# ----------------------------------------------------------------------------- the pre_tokenizers

def metaspace(step):
    """A "▁" for each space and one at the front, where none is; with `split` each begins a word.

    prepend_scheme: at the front of every text ("always"), of a text that begins here ("first"), or
    "never". Older files have add_prefix_space instead.
    """
    older = "always" if step.get("add_prefix_space", True) else "never"
    scheme = step.get("prepend_scheme") or older
    to_next = split({"pattern": {"String": META}, "behavior": "MergedWithNext"})

    def cut(text, first):
        text = text.replace(" ", META)
        if not text.startswith(META) and (scheme == "always" or scheme == "first" and first):
            text = META + text
        return to_next(text, first) if step.get("split", True) else [text]
    return cut


def split(step):
    """Cut at each match of a pattern.

    behavior: the match is a word of its own, the end of the word before, or the beginning of one.
    """
    pattern, behavior = pattern_of(step), step["behavior"]

    def cut(text, first):
        spans = [match.span() for match in pattern.finditer(text) if match.group()]
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        places = {"Isolated": sorted(starts + ends), "MergedWithNext": starts,
                  "MergedWithPrevious": ends}[behavior]
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)])]
    return cut


def whitespace_split(step):
    pattern = regex.compile(f"[{SPACES}]+")
    return lambda text, first: pattern.split(text)


def byte_level(step):
    return bpe.pre_tokenizer(step["add_prefix_space"], step.get("use_regex", True))


PRE_TOKENIZERS = {"Metaspace": metaspace, "Split": split, "WhitespaceSplit": whitespace_split,
                  "ByteLevel": byte_level}
