"""The steps before the algorithm, as a tokenizer.json lists them.

A normalizer changes a text, a pre_tokenizer cuts it into words:

    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}        "a b"  ->  "a▁b"
    {"type": "Split", "pattern": {"Regex": "1"}, "behavior": "Isolated"}   "a1b"  ->  "a", "1", "b"

Here: the steps of byte-level BPE and SentencePiece. Not here: BERT's own steps (wordpiece.py), and
which step goes with which algorithm (schema.py). The format is that of the `tokenizers` library.
One difference remains, in "Precompiled": that library replaces a letter together with its combining
marks and so loses them ("ﬁ" + acute becomes "fi"). SentencePiece and this file keep them.
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
from .protobuf import encode_field

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
SPACES += "".join(map(chr, range(0x2000, 0x200B)))
META = "▁"  # U+2581 stands for a space in the pieces of SentencePiece
CHILDREN = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers",
            "post_processor": "processors"}
GROWTH = 100  # a normalizer may make a text so many times longer; NFKC: up to 18 times
MARKS = regex.compile(r"[\p{M}\uff9e\uff9f]{32,}")  # long runs; the last two: in NFKD only
TRIM = rf"\A +|[ {META}]+\z"  # the spaces at the front of a text and at its end
# pattern -> an equivalent one that takes n steps, not n^2, for a run of n spaces
LINEAR = {TRIM: rf"\A[ {META}]+\z|\A +|(?<![ {META}])[ {META}]+\z"}


def steps_of(component, place, source="tokenizer.json"):
    """The steps of a component in order: none for null, a Sequence is flattened.

    place: "normalizer", "pre_tokenizer" or "post_processor". source: the file that errors name.
    """
    steps, waiting = [], [component]
    while waiting:  # no recursion: a malformed file may nest thousands
        step = waiting.pop()
        if step is None:
            continue
        kind = step.get("type") if isinstance(step, dict) else None
        inner = step.get(CHILDREN[place]) if kind == "Sequence" else []
        if not isinstance(kind, str) or not isinstance(inner, list):
            raise InputError(f"{source}: {place} = {short(component)} (should be null, an object "
                             f"with a type, or a Sequence of such with {CHILDREN[place]}): fetch "
                             "the file again")
        waiting += reversed(inner)
        if kind != "Sequence":
            steps.append(step)
    return steps


def normalizer(component, source="tokenizer.json"):
    """A function text -> text that does all steps of a normalizer in order."""
    steps = [normalizer_step(step, f"{source}: normalizer.{step['type']}")
             for step in steps_of(component, "normalizer")]

    def normalise(text):
        length = len(text)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"text {text[:20]!r}: {error.reason} at place {error.start}: half of "
                             "a character, which no UTF-8 file holds; decode the text again from "
                             "its bytes") from None
        for step in steps:
            text = step(text)
            if len(text) > 1000 + GROWTH * length:
                raise InputError(f"{source}: its normalizer makes {len(text)} characters of "
                                 f"{length}: remove the step of it that writes so much")
        return text
    return normalise


def pre_tokenizer(component, source="tokenizer.json"):
    """A function (text, first) -> words that does all steps of a pre_tokenizer in order.

    first: False if the text follows a special token, as in "</s> and so on".
    """
    steps = [pre_tokenizer_step(step, f"{source}: pre_tokenizer.{step['type']}")
             for step in steps_of(component, "pre_tokenizer")]

    def cut(text, first=True):
        words = [text] if text else []
        for step in steps:
            parts = []
            for n, word in enumerate(words):
                parts += step(word, first and n == 0)
            words = [part for part in parts if part]
        return words
    return cut


def pattern_of(step, where):
    """The pattern of a Replace or Split; ^ and $ match at every line, as in the library."""
    (kind, text), = step["pattern"].items()
    text = regex.escape(text) if kind == "String" else LINEAR.get(text, text)
    return compile_pattern(text, f"{where}.pattern", regex.MULTILINE)


def normalizer_step(step, where):
    """The function text -> text of one step. where: the file and step that errors name."""
    kind = step["type"]
    if kind == "Precompiled":
        return precompiled_step(step, where)
    if kind == "Replace":
        pattern, content = pattern_of(step, where), step["content"]
        if "String" in step["pattern"]:
            return lambda text: text.replace(step["pattern"]["String"], content)
        return lambda text: pattern.sub(lambda match: content, text)  # no escapes in content
    if kind == "Prepend":
        return lambda text: step["prepend"] + text if text else text
    if kind == "Strip":
        left, right = (SPACES if step[side] else "" for side in ("strip_left", "strip_right"))
        return lambda text: text.lstrip(left).rstrip(right)
    if kind == "Lowercase":  # per character: "ΟΔΟΣ".lower() ends in "ς", the library writes "σ"
        return lambda text: "".join(map(str.lower, text))
    return functools.partial(unicode_form, kind)


def unicode_form(form, text):
    """A text in a Unicode normal form: "NFC", "NFD", "NFKC" or "NFKD".

    Python takes n^2 steps to sort the n combining marks of a letter. So a long run of marks is
    decomposed and sorted beforehand; the result is the same.
    """
    def sort(match):
        decomposed = "NFKD" if "K" in form else "NFD"
        marks = "".join(unicodedata.normalize(decomposed, mark) for mark in match.group())
        groups = itertools.groupby(marks, lambda mark: unicodedata.combining(mark) > 0)
        return "".join("".join(sorted(group, key=unicodedata.combining)) for _, group in groups)
    return unicodedata.normalize(form, text if text.isascii() else MARKS.sub(sort, text))


def precompiled_step(step, where):
    """A function text -> text that applies SentencePiece's table of replacements, as NFKC."""
    try:
        rules = base64.b64decode(step["precompiled_charsmap"])
        check_trie(rules)
        return sentencepiece.SentencePieceNormalizer(
            model_proto=encode_field(3, encode_field(2, rules)),   # a file with the table alone
            add_dummy_prefix=False, escape_whitespaces=False,
            remove_extra_whitespaces=False).normalize
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{where}.precompiled_charsmap: the table of rewritings is damaged "
                         f"({short(str(error))[1:-1]}); fetch the file again") from None


def check_trie(rules):
    """ValueError if a table of replacements points outside itself: SentencePiece would read there.

    rules: the length of the trie (4 bytes); the trie, 32-bit units as the library Darts-clone
    writes them; texts, each ending in NUL. The bits of a unit from 10 on are the offset of its
    children, in 256s if bit 9 is set; bit 8: one child is a leaf, which holds a place in the texts.
    """
    length = int.from_bytes(rules[:4], "little")
    texts = rules[4 + length:]
    if not length or length % 1024 or not texts.endswith(b"\0"):
        raise ValueError("it is cut short")
    units = np.frombuffer(rules[4:4 + length], "<u4").astype(np.int64)
    offsets = (units >> 10) << np.where(units & 512, 8, 0)
    children = np.arange(len(units)) ^ offsets  # the child for byte 0; for another: this ^ byte
    inner = units < 2**31  # the others are leaves
    leaves = children[inner & ((units & 256) > 0)]
    if (children[inner] | 255).max(initial=0) >= len(units) or \
            (units[leaves] & (2**31 - 1)).max(initial=0) >= len(texts):
        raise ValueError("it leads outside itself")
    texts.decode("utf-8")


def pre_tokenizer_step(step, where):
    """The function (text, first) -> words of one step. where: as for `normalizer_step`."""
    kind = step["type"]
    if kind == "ByteLevel":
        return bpe.pre_tokenizer(step["add_prefix_space"], step.get("use_regex", True))
    if kind == "Split":
        return splitter(pattern_of(step, where), step["behavior"])
    if kind == "Metaspace":
        return metaspace_step(step)
    spaces = regex.compile(f"[{SPACES}]+")  # WhitespaceSplit
    return lambda text, first: spaces.split(text)


def splitter(pattern, behavior):
    """Cut at each match. It is a word ("Isolated"), or belongs to the word before or after it."""
    def cut(text, first):
        spans = [match.span() for match in pattern.finditer(text) if match.group()]
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        places = {"Isolated": sorted(starts + ends), "MergedWithNext": starts,
                  "MergedWithPrevious": ends}[behavior]
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)])]
    return cut


def metaspace_step(step):
    """Write "▁" for each space and one at the front if none is there; `split`: cut before each "▁".

    prepend_scheme: at the front of every text ("always"), of a text that begins here ("first"), or
    "never". Older files have add_prefix_space instead.
    """
    older = "always" if step.get("add_prefix_space", True) else "never"
    scheme = step.get("prepend_scheme") or older
    cut_at_meta = splitter(regex.compile(META), "MergedWithNext")

    def cut(text, first):
        text = text.replace(" ", META)
        if not text.startswith(META) and (scheme == "always" or scheme == "first" and first):
            text = META + text
        return cut_at_meta(text, first) if step.get("split", True) else [text]
    return cut
