"""The steps before the algorithm, as a tokenizer.json lists them: normalizers change a text, pre_tokenizers cut it.

    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}      "low lower"  ->  "low▁lower"
    {"type": "Split", "pattern": {"Regex": "\\\\d"}, "behavior": "Isolated"}  "a1b"  ->  "a", "1", "b"

Here: the steps that SentencePiece models and LLaMA-3's byte-level BPE are described with. Not here: BERT's own steps
(wordpiece.py); which step goes with which algorithm (KINDS in tokenizer.py). The format has no paper; it is that of
the `tokenizers` library. One difference stays, in "Precompiled": the library replaces a letter together with the
marks on it and so loses the marks ("ﬁ" + acute becomes "fi"); we do as SentencePiece, with which models were trained.
"""

import base64
import unicodedata

import regex
import sentencepiece

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
META = "▁"  # U+2581 stands for a space in the pieces of SentencePiece
CHILDREN = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}


def parts(component, place):
    """The steps of a component: [] for None, those of a Sequence one by one. place: "normalizer", ..."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for child in component[CHILDREN[place]] for step in parts(child, place)]


def normalizer(component):
    """A function text -> text that does all steps of a normalizer in order."""
    steps = [NORMALIZERS[step["type"]](step) for step in parts(component, "normalizer")]

    def normalise(text):
        for step in steps:
            text = step(text)
        return text
    return normalise


def pre_tokenizer(component):
    """A function (text, first) -> list of words that does all steps of a pre_tokenizer in order.

    first: whether the text begins here; it does not after a special token ("</s> and so on")."""
    steps = [PRE_TOKENIZERS[step["type"]](step) for step in parts(component, "pre_tokenizer")]

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
    proto = tagged(3, tagged(2, rules))  # in the format of a .model file: a normalizer_spec with a charsmap in it
    try:
        return sentencepiece.SentencePieceNormalizer(model_proto=proto, add_dummy_prefix=False, escape_whitespaces=False,
                                                     remove_extra_whitespaces=False).normalize
    except RuntimeError as error:
        raise ValueError(f"precompiled_charsmap: {error}") from None


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


def pattern_of(step):
    """The compiled pattern of a Replace or Split. As in the library's own engine, ^ and $ match at every line."""
    (kind, text), = step["pattern"].items()
    try:
        return regex.compile(regex.escape(text) if kind == "String" else text, regex.MULTILINE)
    except regex.error as error:
        raise ValueError(f"pattern {text!r}: {error}") from None


def replace(step):
    pattern, content = pattern_of(step), step["content"]
    return lambda text: pattern.sub(lambda match: content, text)  # a function: a backslash in content is just that


def prepend(step):
    return lambda text: step["prepend"] + text if text else text


def strip(step):
    left, right = SPACES if step["strip_left"] else "", SPACES if step["strip_right"] else ""
    return lambda text: text.lstrip(left).rstrip(right)


def lowercase(step):
    return lambda text: "".join(map(str.lower, text))  # one by one, so that no final sigma looks around


def unicode_form(step):
    return lambda text: unicodedata.normalize(step["type"], text)


NORMALIZERS = {"Precompiled": precompiled, "Replace": replace, "Prepend": prepend, "Strip": strip,
               "Lowercase": lowercase} | dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD"), unicode_form)


# ---------------------------------------------------------------------------------------------- the pre_tokenizers

def metaspace(step):
    """A "▁" for each space and one at the front, where none is; with `split` each "▁" begins a word.

    prepend_scheme: at the front of every text ("always"), of a text that begins here ("first"), or "never"."""
    scheme = step.get("prepend_scheme") or ("always" if step["add_prefix_space"] else "never")  # the older key
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
