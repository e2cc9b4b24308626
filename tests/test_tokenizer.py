"""Are our ids the reference's ids? For texts of every kind, every setting, and every kind of file.

Two references: ids stored in fixtures/tokenizer_ids.json (always), and the `tokenizers` library itself, through the
tokenizers of transformers (when installed). Known-wrong variants must differ, so the stored texts can see.
"""

import heapq
import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from minillmclf.errors import InputError
from minillmclf.text import bpe, wordpiece
from minillmclf.text.tokenizer import Tokenizer, WordPiece, load_tokenizer

STORED = json.loads((Path(__file__).parent / "fixtures" / "tokenizer_ids.json").read_text(encoding="utf-8"))
SHARED = Path(__file__).resolve().parents[2] / "shared" / "tokenizers"
NAMES = list(STORED["settings"])
BERT_NAMES, BPE_NAMES = NAMES[:5], NAMES[5:]


# ------------------------------------------------------------------------------------------------ the tokenizers

def write(folder, files):
    """Write {file name: text, or what becomes JSON} into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return folder


def vocabulary(name):
    """The pieces of the stored tokenizer `name`, in the order of their ids."""
    if name in BERT_NAMES:
        return STORED["bert"]
    return [*STORED["letters"], "<|endoftext|>"] if name.startswith("gpt2") else \
        ["<s>", "<pad>", "</s>", "<unk>", *STORED["letters"], "<mask>"]


def plain_files(name):
    """The stored tokenizer `name` as the files of the old kind."""
    pieces = vocabulary(name)
    config = STORED["settings"][name] | {"model_max_length": 512}
    if name in BERT_NAMES:
        return {"vocab.txt": "".join(piece + "\n" for piece in pieces), "tokenizer_config.json": config}
    return {"vocab.json": {piece: i for i, piece in enumerate(pieces)}, "tokenizer_config.json": config,
            "merges.txt": "\n".join(["#version: 0.2", *STORED["merges"], ""])}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """name -> our tokenizer, read from files of the old kind."""
    return {name: load_tokenizer(write(tmp_path_factory.mktemp("plain"), plain_files(name))) for name in NAMES}


@pytest.fixture(scope="module")
def theirs():
    """name -> the reference's tokenizer with the same vocabulary and settings."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers' own tokenizers")
    made, merges = {}, [tuple(merge.split(" ")) for merge in STORED["merges"]]
    for name in NAMES:
        vocab, chosen = {piece: i for i, piece in enumerate(vocabulary(name))}, STORED["settings"][name]
        if name in BERT_NAMES:
            made[name] = transformers.BertTokenizer(vocab=vocab, **chosen)
        elif name.startswith("gpt2"):
            made[name] = transformers.GPT2Tokenizer(vocab=vocab, merges=merges, **chosen)
        else:
            mask = transformers.AddedToken("<mask>", lstrip=True)
            made[name] = transformers.RobertaTokenizer(vocab=vocab, merges=merges, mask_token=mask, **chosen)
    return made


def reference_ids(reference, text, pair=None):
    """(ids, token type ids) with special tokens; from the library below transformers, which takes pair "" for None."""
    encoded = reference._tokenizer.encode(text, pair)
    return encoded.ids, encoded.type_ids


def our_ids(tokenizer, text, pair=None):
    return tokenizer.layout(tokenizer.ids(text), None if pair is None else tokenizer.ids(pair))


# ---------------------------------------------------------------------------------------------------- the texts

def settled(char):
    """False for what the reference's tables of 2015 may not know as Python's do: unassigned, or changed since 2002."""
    category = unicodedata.category(char)
    if category[0] in "MP" or category == "Cf":
        return unicodedata.ucd_3_2_0.category(char) == category
    return category not in ("Cn", "Cs")


FRAGMENTS = [
    "the ", "lowest", " film", "Unbelievable", "!?", "don't", " I'll've", "'S", "CAFÉ", "cafe\u0301", "Å", "İ", "ΟΔΟΣ", "ß",
    " ", "  ", "\t", "\n\n", "\r", "\x0b", "\x1c", "\x85", "\u00a0", "\u2003", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff",
    "\u00ad", "\x00", "\x07", "\ufffd", "北京", "東", "カタカナ", "서울", "\U0002b820", "\u9fff", "שלום", "مرحبا", "\u202e", "हिन्दी",
    "👩‍👩‍👧", "👍🏽", "🇩🇪", "☃", "🫨", "\u0301", "\u0316\u0301\u0302", "Z̸", "1234", "½", "Ⅷ", "٣", "$", "+", "^", "`", "~", "“", "…", "#",
    "[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[sep]", "[", "]", "##", "<s>", "</s>", "<mask>", " <mask> ", "<pad>", "<", ">",
    "<|endoftext|>", "<|", "q" * 99, "q" * 101, "lower" * 40, "e\u0301" * 60,
]
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"]).filter(settled)
TEXT = st.lists(st.sampled_from(FRAGMENTS) | st.text(CHARACTERS, max_size=4), max_size=12).map("".join)
MANY = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_references_for_any_text(name, ours, theirs):
    @MANY
    @given(TEXT, st.none() | TEXT)
    def agree(text, pair):
        expected = reference_ids(theirs[name], text, pair)
        assert our_ids(ours[name], text, pair) == expected, f"{name} differs from the reference on {text!r}, {pair!r}"
        assert ours[name].encode(text, pair) == expected[0], "encode is not layout(ids)"
        if pair is None:
            assert ours[name].tokens(text) == theirs[name].tokenize(text), "tokens() are not the reference's pieces"
    agree()


@pytest.mark.parametrize("name, cls, known", [
    ("bert-base-uncased", "BertTokenizer", {"hello world": [7592, 2088]}),
    ("gpt2", "GPT2Tokenizer", {"Hello world": [15496, 995]}),
    ("roberta", "RobertaTokenizer", {"Hello world": [31414, 232]})])
def test_real_vocabularies(name, cls, known):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the real vocabulary of {name} is not in shared/tokenizers")
    tokenizer = load_tokenizer(SHARED / name)
    for text, ids in known.items():
        assert tokenizer.ids(text) == ids, f"{name} lost the published ids of {text!r}"
    transformers = pytest.importorskip("transformers", reason="compares with transformers' own tokenizers")
    mask = {"mask_token": transformers.AddedToken("<mask>", lstrip=True)} if name == "roberta" else {}
    reference = getattr(transformers, cls).from_pretrained(SHARED / name, **mask)
    assert len(tokenizer) == len(reference)

    @settings(MANY, max_examples=150)
    @given(TEXT, st.none() | TEXT)
    def agree(text, pair):
        assert our_ids(tokenizer, text, pair) == reference_ids(reference, text, pair), f"{name} differs on {text!r}"
    agree()


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_stored_ones(name, ours):
    expected = STORED["ids, " + name]
    for text, ids in zip(STORED["texts"], expected["texts"], strict=True):
        assert ours[name].ids(text) == ids, f"{name} differs from the stored ids on {text!r}"
    for (text, pair), laid_out in zip(STORED["pairs"], expected["pairs"], strict=True):
        assert list(our_ids(ours[name], text, pair)) == laid_out, f"{name} lays out {text!r}, {pair!r} in another way"


def test_character_tables_are_the_references():
    """Every character that both sides know: cleaned, folded and split alike; and few that they know differently."""
    tokenizers = pytest.importorskip("tokenizers", reason="compares with the library's normalizer")
    clean = tokenizers.normalizers.BertNormalizer(lowercase=False)
    fold = tokenizers.normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, lowercase=True)
    punctuation = tokenizers.pre_tokenizers.BertPreTokenizer()
    cased = wordpiece.WordPieceModel({"[UNK]": 0}, lower=False)
    lower = wordpiece.WordPieceModel({"[UNK]": 0})
    differ = 0
    for char in map(chr, [*range(0xD800), *range(0xE000, 0x20000), *range(0x2A600, 0x30000)]):
        if unicodedata.category(char) == "Cn":
            continue
        same = cased.normalise(char) == clean.normalize_str(char) and lower._fold(char) == fold.normalize_str(char)
        if unicodedata.category(char)[0] in "PS":
            same = same and len(wordpiece.split_punctuation(f"a{char}b")) == len(punctuation.pre_tokenize_str(f"a{char}b"))
        assert same or not settled(char) or unicodedata.category(char) == "So", f"U+{ord(char):04X} is treated otherwise"
        differ += not same
    assert differ <= 510, "more characters differ than the docstring of wordpiece.py admits"


# --------------------------------------------------------------------------------------------- known-wrong variants

def notices(tokenizer, name):
    """True if some stored text has other ids with this tokenizer."""
    expected = STORED["ids, " + name]
    return any(tokenizer.ids(text) != ids for text, ids in zip(STORED["texts"], expected["texts"])) or \
        any(list(our_ids(tokenizer, *pair)) != ids for pair, ids in zip(STORED["pairs"], expected["pairs"]))


def with_model(tokenizer, **changes):
    """The same tokenizer over a fresh algorithm with other settings."""
    document, config = json.loads(json.dumps(tokenizer._document)), {"added_tokens_decoder": {}}
    for section, values in changes.items():
        document[section] = values if document[section] is None else document[section] | values
    return Tokenizer(document, config, "a wrong variant")


@pytest.mark.parametrize("name, changes", [
    ("uncased", {"normalizer": {"strip_accents": False}}), ("uncased", {"normalizer": {"lowercase": False}}),
    ("uncased", {"normalizer": {"handle_chinese_chars": False}}), ("cased", {"normalizer": {"strip_accents": True}}),
    ("uncased", {"model": {"max_input_chars_per_word": 101}}), ("uncased", {"model": {"max_input_chars_per_word": 99}}),
    ("uncased", {"model": {"continuing_subword_prefix": ""}}), ("uncased", {"added_tokens": []}),
    ("uncased", {"post_processor": {"type": "RobertaProcessing"}}),
    ("roberta", {"post_processor": {"type": "BertProcessing", "trim_offsets": None, "add_prefix_space": None}}),
    ("gpt2, prefix space", {"pre_tokenizer": {"add_prefix_space": False}}),
    ("gpt2", {"pre_tokenizer": {"add_prefix_space": True}}), ("gpt2", {"model": {"ignore_merges": True}}),
    ("gpt2", {"model": {"merges": STORED["merges"][::-1]}}), ("gpt2", {"model": {"merges": sorted(STORED["merges"])}}),
])
def test_a_wrong_setting_is_seen(name, changes, ours):
    tokenizer = ours[name]
    if "added_tokens" in changes:
        changes, tokenizer = {}, with_model(tokenizer)
        tokenizer._literal = type(tokenizer._literal)({})
    elif "post_processor" in changes:
        changed = {k: v for k, v in (tokenizer._document["post_processor"] | changes["post_processor"]).items()
                   if v is not None}
        tokenizer = with_model(tokenizer)
        tokenizer._document["post_processor"] = changed
        tokenizer = with_model(tokenizer)
        changes = {}
    assert not notices(with_model(ours[name]), name), "the untouched copy already differs"
    assert notices(with_model(tokenizer, **changes) if changes else tokenizer, name), f"no stored text sees {changes}"
