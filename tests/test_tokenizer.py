"""Are our ids the reference's ids? For texts of every kind, every setting, and every kind of file.

Two references: ids stored in fixtures/tokenizer_ids.json (always), and the `tokenizers` library
itself, through the tokenizers of transformers (when installed). Known-wrong variants must differ,
so the stored texts can see.
"""

import heapq
import json
import random
import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from live import imported, may_refuse, tokenizer_of

from minillmclf.errors import InputError
from minillmclf.text.tokenizers import bpe, steps, wordpiece
from minillmclf.text.tokenizers.files import describe
from minillmclf.text.tokenizers.tokenizer import Tokenizer, WordPiece, load_tokenizer

STORED = json.loads(
    (Path(__file__).parent / "fixtures" / "tokenizer_ids.json").read_text(encoding="utf-8"))
SHARED = Path(__file__).resolve().parents[2] / "shared" / "tokenizers"
NAMES = list(STORED["settings"])
BERT_NAMES, BPE_NAMES = NAMES[:5], NAMES[5:]


# -------------------------------------------------------------------------------- the tokenizers

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
    return [*STORED["letters"], "<|endoftext|>"] if name.startswith(("gpt2", "qwen")) else \
        ["<s>", "<pad>", "</s>", "<unk>", *STORED["letters"], "<mask>"]


def plain_files(name):
    """The stored tokenizer `name` as the files of the old kind."""
    pieces = vocabulary(name)
    config = STORED["settings"][name] | {"model_max_length": 512}
    if name in BERT_NAMES:
        return {"vocab.txt": "".join(piece + "\n" for piece in pieces),
                "tokenizer_config.json": config}
    return {"vocab.json": {piece: i for i, piece in enumerate(pieces)},
            "tokenizer_config.json": config,
            "merges.txt": "\n".join(["#version: 0.2", *STORED["merges"], ""])}


def modernbert_files(vocab, merges):
    """The files of a tokenizer of ModernBERT's form: byte-level BPE after NFC, BERT's frame.
    vocab: {piece: id}."""
    first = max(vocab.values()) + 1
    ids = {
        token: first + n for n, token in enumerate(("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
    added = [flags | {"id": number, "content": token, "lstrip": token == "[MASK]"}
             for token, number in ids.items()]
    # runs of spaces
    added.append(flags | {"id": first + 5, "content": "   ", "normalized": True, "special": False})
    cls, sep, a, b, end = ({kind: {"id": name, "type_id": type_id}} for kind, name, type_id in (
        ("SpecialToken", "[CLS]", 0), ("SpecialToken", "[SEP]", 0), ("Sequence", "A", 0),
        ("Sequence", "B", 1), ("SpecialToken", "[SEP]", 1)))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]}
               for token in ("[CLS]", "[SEP]")}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {"type": "TemplateProcessing", "single": [cls, a, sep],
                           "pair": [cls, a, sep, b, end], "special_tokens": special},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True,
              "cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]",
              "sep_token": "[SEP]", "unk_token": "[UNK]",
              "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 8192}
    return {"tokenizer.json": document, "tokenizer_config.json": config}


def test_a_tokenizer_of_modernbert_s_form(tmp_path):
    tokenizers = imported("tokenizers")
    files = modernbert_files({piece: i for i, piece in enumerate(STORED["letters"])},
                             STORED["merges"])
    with may_refuse():
        library = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
        library.encode("a", "b").type_ids
    tokenizer = load_tokenizer(write(tmp_path, files))
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (tokenizer.inputs == again.inputs == ["input_ids", "attention_mask"]
            and again.max_length == 8192)
    assert ((again.cls_id, again.sep_id, again.pad_id, again.mask_id, again.bos_id, again.eos_id)
            == (557, 558, 559, 560, None, None))
    assert (tokenizer.tokens("a [MASK] b") == ["a", "[MASK]", "Ġ", "b"]
            or tokenizer.tokens("a [MASK]")[-1] == "[MASK]")

    @MANY
    @given(TEXT, st.none() | TEXT)
    def agree(text, pair):
        expected = library.encode(text, pair)
        assert our_ids(tokenizer, text, pair) == (expected.ids, expected.type_ids), (
            f"differs on {text!r}, {pair!r}")
        assert again.encode(text, pair) == expected.ids
        plain = unicodedata.normalize("NFC", text)
        if "[" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == plain, f"{text!r} does not come back"
    agree()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """name -> our tokenizer, read from files of the old kind."""
    return {name: load_tokenizer(write(tmp_path_factory.mktemp("plain"), plain_files(name)))
            for name in NAMES}


@pytest.fixture(scope="module")
def theirs():
    """name -> the reference's tokenizer with the same vocabulary and settings."""
    transformers = imported("transformers")
    made, merges = {}, [tuple(merge.split(" ")) for merge in STORED["merges"]]
    for name in NAMES:
        vocab = {piece: i for i, piece in enumerate(vocabulary(name))}
        chosen = STORED["settings"][name]
        with may_refuse():
            if name in BERT_NAMES:
                made[name] = transformers.BertTokenizer(vocab=vocab, **chosen)
            elif name == "qwen":
                made[name] = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
            elif name.startswith("gpt2"):
                made[name] = transformers.GPT2Tokenizer(vocab=vocab, merges=merges, **chosen)
            else:
                mask = transformers.AddedToken("<mask>", lstrip=True)
                made[name] = transformers.RobertaTokenizer(
                    vocab=vocab, merges=merges, mask_token=mask, **chosen)
    return made


def reference_ids(reference, text, pair=None):
    """(ids, token type ids) with special tokens, of the library below transformers.

    transformers itself takes a pair "" for None."""
    with may_refuse():
        encoded = reference._tokenizer.encode(text, pair)
    return encoded.ids, encoded.type_ids


def our_ids(tokenizer, text, pair=None):
    return tokenizer.add_special_tokens(
        tokenizer.ids(text), None if pair is None else tokenizer.ids(pair))


# ------------------------------------------------------------------------------------ the texts

def settled(char):
    """True if the reference's tables of 2015 cannot differ from Python's: the category of a
    character has not changed since 2002, or it is a newer letter, number or symbol, which those
    tables do not list."""
    then, now = unicodedata.ucd_3_2_0.category(char), unicodedata.category(char)
    return then == now and now not in ("Cn", "Cs") or then == "Cn" and now[0] in "LNS"


FRAGMENTS = [
    "the ", "lowest", " film", "Unbelievable", "?", "don't", " I'll've", "'S", "CAFÉ", "cafe\u0301",
    "Å", "İ", "ΟΔΟΣ", "ß", " ", "  ", "\t", "\n\n", "\r", "\x0b", "\x1c", "\x85", "\u00a0",
    "\u2003", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff", "\u00ad", "\x00", "\x07", "\ufffd",
    "北京", "東", "カタカナ", "서울", "\U0002b820", "\u9fff", "שלום", "مرحبا", "\u202e", "हिन्दी",
    "👩‍👩‍👧", "👍🏽", "🇩🇪", "☃", "🫨", "\u0301", "\u0316\u0301\u0302", "Z̸", "1234", "½", "Ⅷ",
    "٣", "$", "+", "^", "`", "~", "“", "…", "#", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]",
    "[sep]", "[", "]", "##", "<s>", "</s>", "<mask>", " <mask> ", "<pad>", "<", ">",
    "<|endoftext|>", "<|", "e" * 100, "e" * 101, "lower" * 40, "e\u0301" * 60,
]
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"]).filter(settled)
PIECE = st.sampled_from(FRAGMENTS) | st.text(CHARACTERS, max_size=4)
TEXT = st.lists(PIECE, max_size=12).map("".join)
MANY = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_references_for_any_text(name, ours, theirs):
    @MANY
    @given(TEXT, st.none() | TEXT)
    def agree(text, pair):
        expected = reference_ids(theirs[name], text, pair)
        assert our_ids(ours[name], text, pair) == expected, (
            f"{name} differs from the reference on {text!r}, {pair!r}")
        assert ours[name].encode(text, pair) == expected[0], "encode is not layout(ids)"
        with may_refuse():
            pieces = theirs[name].convert_ids_to_tokens(ours[name].ids(text))
        assert ours[name].tokens(text) == pieces, "tokens() are not the reference's pieces"
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
    transformers = imported("transformers")
    with may_refuse():
        mask = {"mask_token": transformers.AddedToken("<mask>", lstrip=True)}
        reference = getattr(transformers, cls).from_pretrained(
            SHARED / name, **mask if name == "roberta" else {})
    assert len(tokenizer) == len(reference)

    @settings(MANY, max_examples=100)
    @given(TEXT, st.none() | TEXT)
    def agree(text, pair):
        assert our_ids(tokenizer, text, pair) == reference_ids(reference, text, pair), (
            f"{name} differs on {text!r}")
    agree()


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_stored_ones(name, ours):
    expected = STORED["ids, " + name]
    for text, ids in zip(STORED["texts"], expected["texts"], strict=True):
        assert ours[name].ids(text) == ids, f"{name} differs from the stored ids on {text!r}"
    for (text, pair), laid_out in zip(STORED["pairs"], expected["pairs"], strict=True):
        assert list(our_ids(ours[name], text, pair)) == laid_out, (
            f"{name} lays out {text!r}, {pair!r} in another way")


def test_character_tables_are_the_references():
    """Characters that both sides know: cleaned, folded and split alike; few are known otherwise."""
    tokenizers = imported("tokenizers")
    with may_refuse():
        clean = tokenizers.normalizers.BertNormalizer(lowercase=False)
        fold = tokenizers.normalizers.BertNormalizer(lowercase=True)
        punctuation = tokenizers.pre_tokenizers.BertPreTokenizer()
        clean.normalize_str("a"), fold.normalize_str("a"), punctuation.pre_tokenize_str("a")
    cased = wordpiece.normalizer(lower=False)
    lower, model = wordpiece.normalizer(), wordpiece.WordPieceModel({"[UNK]": 0})
    differ = 0
    for char in map(chr, [*range(0xD800), *range(0xE000, 0x20000), *range(0x2A600, 0x30000)]):
        if unicodedata.category(char) == "Cn":
            continue
        same = cased(char) == clean.normalize_str(char) and lower(char) == fold.normalize_str(char)
        if unicodedata.category(char)[0] in "PS":
            words, expected = model.words(f"a{char}b"), punctuation.pre_tokenize_str(f"a{char}b")
            same = same and words == [word for word, _ in expected]
        assert same or not settled(char), f"U+{ord(char):04X} is treated otherwise"
        differ += not same
    assert differ <= 510, "more characters differ than the docstring of wordpiece.py admits"


# ----------------------------------------------------------------------------- known-wrong variants

def notices(tokenizer, name):
    """True if some stored text has other ids with this tokenizer."""
    expected = STORED["ids, " + name]
    return (any(tokenizer.ids(text) != ids for text, ids in zip(STORED["texts"], expected["texts"]))
            or any(list(our_ids(tokenizer, *pair)) != ids
                   for pair, ids in zip(STORED["pairs"], expected["pairs"])))


def copy(tokenizer, change=None):
    """The same tokenizer made anew, after `change` has edited the dict that describes it."""
    document = json.loads(json.dumps(tokenizer.description.document))
    if change:
        change(document)
    return Tokenizer(describe(document, {}, "a copy"))


def naive_merge(letters, ranks):
    """The slow explicit form: look through all pairs, join the best, begin again."""
    parts = list(letters)
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:])) if pair in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def merge_in_text_order(letters, ranks):
    parts = list(letters)
    while True:
        places = [i for i, pair in enumerate(zip(parts, parts[1:])) if pair in ranks]
        if not places:
            return parts
        parts[places[0]:places[0] + 2] = [parts[places[0]] + parts[places[0] + 1]]


CASED = wordpiece.normalizer(lower=False)


def without_lstrip(document):
    for token in document["added_tokens"]:
        token["lstrip"] = False


def byte_level_alone(document):
    byte_level = document["pre_tokenizer"]["pretokenizers"][1]
    document["pre_tokenizer"]["pretokenizers"] = [byte_level | {"use_regex": True}]


@pytest.mark.parametrize("name, change", [
    ("uncased", lambda d: d["normalizer"].update(strip_accents=False)),
    ("uncased", lambda d: d["normalizer"].update(lowercase=False)),
    ("uncased", lambda d: d["normalizer"].update(handle_chinese_chars=False)),
    ("cased", lambda d: d["normalizer"].update(strip_accents=True)),
    ("uncased", lambda d: d["model"].update(max_input_chars_per_word=101)),
    ("uncased", lambda d: d["model"].update(max_input_chars_per_word=99)),
    ("uncased", lambda d: d["model"].update(continuing_subword_prefix="")),
    ("uncased", lambda d: d.update(added_tokens=[])),
    ("uncased", lambda d: d["post_processor"].update(type="RobertaProcessing")),
    ("roberta", lambda d: d.update(post_processor={"type": "BertProcessing", "cls": ["<s>", 0],
                                                   "sep": ["</s>", 2]})),
    ("roberta", lambda d: d.update(post_processor=None)),
    ("roberta", without_lstrip),
    ("gpt2, prefix space", lambda d: d["pre_tokenizer"].update(add_prefix_space=False)),
    ("gpt2", lambda d: d["pre_tokenizer"].update(add_prefix_space=True)),
    ("gpt2", lambda d: d["model"]["merges"].reverse()),
    ("qwen", byte_level_alone),
    ("qwen",
     lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=bpe.SPLIT.pattern)),
    ("qwen", lambda d: d.update(normalizer=None)),
    ("gpt2", lambda d: d["model"]["merges"].sort()),
    ("gpt2", lambda d: d["model"]["merges"].pop(0)),
])
def test_a_wrong_setting_is_seen(name, change, ours):
    assert not notices(copy(ours[name]), name), "the untouched copy already differs"
    assert notices(copy(ours[name], change), name), (
        "no stored text tells this wrong setting from the right one")


@pytest.mark.parametrize("name, where, attribute, wrong", [
    ("gpt2", bpe, "merge_pairs", merge_in_text_order),
    ("gpt2", bpe, "SPLIT", re.compile(r"\S+|\s+")),
    ("uncased", wordpiece, "CONTROL", ("Cc", "Cf", "Co", "Cn")),  # unassigned characters dropped
    ("uncased", wordpiece, "CONTROL", ("Cc",)),
    ("uncased", wordpiece, "IDEOGRAPHS", ((0x4E00, 0x9FFF),)),
    ("uncased", wordpiece, "is_punctuation", str.isspace),
    ("uncased", wordpiece, "is_punctuation",
     lambda char: unicodedata.category(char).startswith("P")),
    # a final sigma: ς
    ("lower, accents kept", wordpiece, "normalizer", lambda *_: lambda text: CASED(text).lower()),
    ("lower, accents kept", wordpiece, "normalizer",
     lambda *_: lambda text: CASED(text).casefold()),
])
def test_a_wrong_algorithm_is_seen(name, where, attribute, wrong, ours, monkeypatch):
    if attribute == "CONTROL" and "Cn" in wrong and unicodedata.category("\U0001fae8") != "Cn":
        pytest.skip("this Python knows the newest emoji of the stored texts")
    monkeypatch.setattr(where, attribute, wrong)
    assert notices(copy(ours[name]), name), f"no stored text sees a wrong {attribute}"


# -------------------------------------------------------------------------------- the algorithms

@MANY
@given(st.text("abc", max_size=40), st.integers(0, 10**6))
def test_merge_is_the_slow_explicit_form(letters, seed):
    pieces, rng, ranks = ["a", "b", "c"], random.Random(seed), {}
    for rank in range(12):
        left, right = rng.choice(pieces), rng.choice(pieces)
        ranks.setdefault((left, right), rank)
        pieces.append(left + right)
    shuffled = dict(zip(ranks, rng.sample(sorted(ranks.values()), len(ranks))))
    for order in (ranks, shuffled):
        assert bpe.merge_pairs(letters, order) == naive_merge(letters, order), (
            f"heap and plain merge differ for {order}")


@pytest.mark.parametrize("word", ["lower" * 2000, "z" * 10_000, "the" * 3334])
def test_a_very_long_word_costs_no_square(word, ours, monkeypatch):
    pushes = []

    class Counting:
        heappop = staticmethod(heapq.heappop)

        @staticmethod
        def heappush(heap, item):
            pushes.append(item)
            heapq.heappush(heap, item)

    model = bpe.BytePairModel(ours["gpt2"].vocab,
                              [tuple(merge.split(" ")) for merge in STORED["merges"]])
    with monkeypatch.context() as patched:
        patched.setattr(bpe, "heapq", Counting)
        pieces = bpe.merge_pairs(word, model.ranks)
    assert "".join(pieces) == word
    assert len(pushes) <= 3 * len(word), (
        f"{len(pushes)} pairs were offered for {len(word)} letters: not linear")
    assert bpe.merge_pairs(word[:300], model.ranks) == naive_merge(word[:300], model.ranks)


def test_the_byte_table_is_invertible_and_as_published():
    assert len(bpe.BYTE_OF) == 256
    assert [bpe.LETTER_OF[byte] for byte in (*b" \nA", 173)] == ["Ġ", "Ċ", "A", "Ń"]


@pytest.mark.parametrize("name", NAMES)
def test_words_hold_the_ids_of_the_text(name, ours):
    for text in STORED["texts"]:
        words = ours[name].words(text)
        assert [i for _, ids in words for i in ids] == ours[name].ids(text), (
            f"{name}: words of {text!r} lose ids")
    assert [word for word, _ in ours["uncased"].words("Can't [SEP] CAFÉ")] == [
        "can", "'", "t", "[SEP]", "cafe"]
    assert [word for word, _ in ours["gpt2"].words("I can't go")] == ["I", " can", "'t", " go"]
    ours[name].words("lower")[0][1].append(-1)
    assert -1 not in ours[name].ids("lower"), (
        "a caller's change to the list of words() reached the memory of words")


def test_decode(ours):
    for text in STORED["texts"]:
        whole = re.sub(r"\s*(<mask>)", r"\1", text)
        assert ours["gpt2"].decode(ours["gpt2"].ids(text), keep_specials=True) == text
        assert (ours["qwen"].decode(ours["qwen"].ids(text), keep_specials=True)
                == unicodedata.normalize("NFC", text))
        assert (ours["roberta"].decode(ours["roberta"].encode(text), keep_specials=True)
                == f"<s>{whole}</s>")
    ids = ours["uncased"].encode("The lowest, slowest [MASK] RIVER")
    assert ours["uncased"].decode(ids) == "the lowest , slowest river"
    assert (ours["uncased"].decode(ids, keep_specials=True)
            == "[CLS] the lowest , slowest [MASK] river [SEP]")
    assert ours["gpt2"].decode(ours["gpt2"].ids("☃")[:1]) == "\ufffd", (
        "a broken character is no replacement sign")
    with pytest.raises(InputError, match="id 99999 has no piece"):
        ours["gpt2"].decode([99999])


def test_layout_overhead_and_special_ids(ours):
    bert, roberta, gpt2, qwen = (ours[name] for name in ("uncased", "roberta", "gpt2", "qwen"))
    assert (qwen.pad_id, qwen.eos_id, qwen.unk_id, qwen.bos_id) == (556, 556, 556, None), (
        "Qwen begins no text with a token")
    assert (qwen.add_special_tokens([7, 8], [9])[0] == [7, 8, 9]
            and qwen.num_special_tokens(True) == 0)
    assert bert.add_special_tokens([7, 8], [9]) == ([2, 7, 8, 3, 9, 3], [0, 0, 0, 0, 1, 1])
    assert roberta.add_special_tokens([7, 8], [9]) == ([0, 7, 8, 2, 2, 9, 2], [0] * 7)
    assert gpt2.add_special_tokens([7, 8], [9])[0] == [7, 8, 9]
    assert ([t.num_special_tokens(pair) for t in (bert, roberta, gpt2) for pair in (False, True)]
            == [2, 3, 2, 4, 0, 0])
    assert (bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id) == (0, 1, 2, 3, 4)
    assert (gpt2.pad_id, gpt2.cls_id, gpt2.sep_id, gpt2.mask_id, gpt2.unk_id) == (
        None, None, None, None, 556)
    assert (roberta.special_ids == {0, 1, 2, 3, 560} and len(roberta) == 561
            and gpt2.special_ids == {556})
    assert bert.max_length == 512


def test_a_trained_vocabulary():
    tokenizer = WordPiece.from_vocab(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", "É", "e"])
    assert tokenizer.encode("UNABLE é [MASK] x") == [2, 5, 6, 8, 4, 1, 3]
    cased = WordPiece.from_vocab(list(tokenizer.vocab), lower=False)
    assert cased.encode("unable É UN") == [2, 5, 6, 7, 1, 3]
    for pieces, fault in ((["[UNK]", "[CLS]"], r"\[SEP\]"), (["[CLS]", "[SEP]"], r"\[UNK\]"),
                          (["[UNK]", "[CLS]", "[SEP]", "a", "a"], "1 of 5 pieces repeat")):
        with pytest.raises(InputError, match=fault):
            WordPiece.from_vocab(pieces)


# ------------------------------------------------------------------------------------ the files

@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, ours, tmp_path):
    ours[name].save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    again.save(tmp_path / "twice")
    assert not notices(again, name) and not notices(load_tokenizer(tmp_path / "twice"), name), (
        "ids changed on disk")
    for field in ("vocab", "special_ids", "max_length", "pad_id", "cls_id", "sep_id", "unk_id",
                  "mask_id", "bos_id"):
        assert getattr(again, field) == getattr(ours[name], field), f"{field} changed on disk"
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", NAMES)
def test_saved_folder_is_read_by_transformers(name, ours, theirs, tmp_path):
    ours[name].save(tmp_path)
    kinds = {"uncased": "bert", "cased": "bert", "gpt2": "gpt2", "roberta": "roberta",
             "qwen": "qwen2"}
    for number, reader in enumerate([None, type(theirs[name]), None]):
        if number == 2:  # as it lies in the folder of a model
            write(tmp_path, {"config.json": {"model_type": kinds.get(name.split(",")[0], "bert")}})
        read = tokenizer_of(tmp_path, type(theirs[name]).__name__, reader)
        assert len(read) == len(ours[name]) and read.model_max_length == 512
        assert read.special_tokens_map == theirs[name].special_tokens_map, (
            "transformers reads other special tokens")
        for text, pair in [(text, None) for text in STORED["texts"]] + STORED["pairs"]:
            assert reference_ids(read, text, pair) == our_ids(ours[name], text, pair), (
                f"{type(read).__name__}: {text!r}")
        if number != 1:
            assert list(read("a")) == ours[name].inputs, (
                "a model would be given token types it does not have")


@pytest.mark.parametrize("name", NAMES)
def test_folder_saved_by_transformers(name, theirs, tmp_path):
    transformers = imported("transformers")
    merges = [tuple(merge.split(" ")) for merge in STORED["merges"]]
    vocab = {piece: i for i, piece in enumerate(vocabulary(name))}
    with may_refuse():
        chosen = {key: value for key, value in STORED["settings"][name].items()
                  if key != "tokenizer_class"}
        reference = type(theirs[name])(vocab=vocab, **chosen, model_max_length=99,
                                       **({} if name in BERT_NAMES else {"merges": merges}))
        up = transformers.AddedToken("<up>", rstrip=True, normalized=False)
        reference.add_tokens(["Covid-19", "東", up, "lowest river"])
        reference.add_special_tokens({"pad_token": "[FILL]", "extra_special_tokens": ["<|turn|>"]})
        reference.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.max_length, tokenizer.pad_id, len(tokenizer)) == (
        99, reference.pad_token_id, len(reference))
    texts = STORED["texts"] + [
        "covid-19 COVID-19, Covid-19s", "a<up>  b<|turn|> c", "Lowest river", "東京<up>[FILL]"]
    for text in texts:
        assert our_ids(tokenizer, text) == reference_ids(reference, text), (
            f"added tokens differ on {text!r}")
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    auto = tokenizer_of(tmp_path / "again", type(theirs[name]).__name__)
    for text in texts:
        assert again.encode(text) == tokenizer.encode(text) == auto._tokenizer.encode(text).ids, (
            f"saved: {text!r}")


@pytest.mark.parametrize("name", ["uncased", "cased", "gpt2", "roberta, prefix space"])
def test_literal_tokens_are_cut_as_the_library_does(name, ours):
    tokenizers = imported("tokenizers")
    flags = [("<pad>", {"lstrip": True}), ("<mask>", {"lstrip": True, "rstrip": True}),
             ("[CLS]", {"rstrip": True}), ("</s", {}), ("<", {}), ("##", {}),
             ("Unbelievable", {"normalized": True}), ("lowest film", {"normalized": True})]
    bare = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    with may_refuse(lambda: tokenizers.Tokenizer.from_str(json.dumps(bare))):
        reference = tokenizers.Tokenizer.from_str(
            json.dumps(ours[name].description.document | {"added_tokens": []}))
    with may_refuse():
        reference.add_tokens(
            [tokenizers.AddedToken(text, **({"normalized": False} | how)) for text, how in flags])
        reference.encode("a", add_special_tokens=False).ids
    tokenizer = Tokenizer(describe(json.loads(reference.to_str()), {}, "made here"))

    @MANY
    @given(TEXT)
    def agree(text):
        expected = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.ids(text) == expected, f"{name} differs on {text!r}"
    agree()


def test_tokenizer_json_alone_and_in_its_older_forms(ours, tmp_path):
    bert, gpt2 = (json.loads(json.dumps(ours[name].description.document))
                  for name in ("uncased", "gpt2"))
    single = [
        {kind: {"id": name, "type_id": 0}}
        for kind, name in (("SpecialToken", "[CLS]"), ("Sequence", "A"), ("SpecialToken", "[SEP]"))]
    second = [{"Sequence": {"id": "B", "type_id": 1}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    special = {name: {"id": name, "ids": [i], "tokens": [name]}
               for name, i in (("[CLS]", 2), ("[SEP]", 3))}
    template = {"type": "TemplateProcessing", "special_tokens": special, "single": single,
                "pair": single + second}
    untyped = {key: value for key, value in bert["model"].items() if key != "type"}
    pairs = [merge.split(" ") for merge in gpt2["model"]["merges"]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    for name, document in [
            ("uncased", bert), ("uncased", bert | {"post_processor": template}),
            ("uncased", bert | {"model": untyped}),
            ("uncased", bert | {"truncation": {"max_length": 2}, "padding": {"length": 9}}),
            ("uncased",
             bert | {"post_processor": {"type": "Sequence", "processors": [byte_level, template]}}),
            ("gpt2", gpt2 | {"model": gpt2["model"] | {"merges": pairs}}),
            ("gpt2", gpt2 | {"post_processor": byte_level})]:
        tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": document}))
        assert not notices(tokenizer, name), f"{name} is read otherwise from this tokenizer.json"
        tokenizer.save(tmp_path / "saved")
        kept = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
        assert kept["truncation"] is None and kept["padding"] is None, (
            "what loading does not follow was handed on")
        assert tokenizer.max_length is None and tokenizer.unk_id == ours[name].unk_id
    gpt2["model"] |= {"ignore_merges": True, "vocab": gpt2["model"]["vocab"] | {"Ġqqq": 600}}
    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": gpt2}))
    assert tokenizer.ids("a qqq")[-1] == 600, (
        "a word that is a piece was cut although ignore_merges is true")


def test_old_companion_files_and_family_defaults(ours, tmp_path):
    bert, gpt2, roberta = (plain_files(name) for name in ("uncased", "gpt2", "roberta"))
    for files in (bert, gpt2, roberta):
        del files["tokenizer_config.json"]
    assert not notices(load_tokenizer(write(tmp_path / "g", gpt2)), "gpt2")
    assert not notices(load_tokenizer(write(tmp_path / "r", roberta)), "roberta")
    assert not notices(load_tokenizer(write(tmp_path / "b", bert)), "cased"), (
        "capitals do not make a vocab.txt cased")
    small = "".join(piece + "\n"
                    for piece in STORED["bert"] if piece.startswith("[") or piece == piece.lower())
    assert load_tokenizer(write(tmp_path / "u", {"vocab.txt": small})).tokens("THE É")[0] == "the"
    mask = {"content": "<mask>", "lstrip": False}
    older = roberta | {"special_tokens_map.json": {"mask_token": mask, "cls_token": "<s>"},
                       "added_tokens.json": {"Lowest River": 561, "<mask>": 560}}
    tokenizer = load_tokenizer(write(tmp_path / "older", older))
    assert tokenizer.tokens("a <mask>xLowest River") == ["a", "Ġ", "<mask>", "x", "Lowest River"]
    assert len(tokenizer) == 562 and tokenizer.special_ids == {0, 1, 2, 3, 560}
    stripping = older | {"special_tokens_map.json": {"mask_token": mask | {"lstrip": True}}}
    tokens = load_tokenizer(write(tmp_path / "stripping", stripping)).tokens("a <mask>")
    assert tokens == ["a", "<mask>"], (
        "lstrip in special_tokens_map.json, as RoBERTa's has it, is not followed")
    crlf = {"vocab.txt": bert["vocab.txt"].replace("\n", "\r\n")}
    assert not notices(load_tokenizer(write(tmp_path / "crlf", crlf)), "cased"), (
        "Windows line ends became pieces")


def old(name, file, change):
    """The stored tokenizer `name` as old files, one of them replaced, or changed by a function."""
    def build(ours):
        files = plain_files(name)
        files[file] = change(files[file]) or files[file] if callable(change) else change
        return files
    return build


def new(name, change=lambda document: None, **config):
    """The stored tokenizer `name`: a changed tokenizer.json, and a tokenizer_config.json."""
    def build(ours):
        document = json.loads(json.dumps(ours[name].description.document))
        change(document)
        return {"tokenizer.json": document, "tokenizer_config.json": config}
    return build


CONFIG, SEQUENCE_A = "tokenizer_config.json", {"Sequence": {"id": "A", "type_id": 0}}
LOSES_B = {"type": "TemplateProcessing", "special_tokens": {}, "single": [SEQUENCE_A],
           "pair": [SEQUENCE_A]}


@pytest.mark.parametrize("files, fault", [
    (lambda ours: {}, "no folder that holds tokenizer.json or vocab.txt or vocab.json"),
    (old("uncased", CONFIG, "{"), "tokenizer_config.json: not valid JSON"),
    (old("uncased", CONFIG, "[]"),
     "tokenizer_config.json: should hold a JSON object, holds a list"),
    (old("uncased", "vocab.txt", "[CLS]\n[SEP]\na\n"),
     r"vocab.txt: unk_token '\[UNK\]' is not among the 3 pieces"),
    (old("uncased", "vocab.txt", "[PAD]\n[UNK]\na\n"),
     r"vocab.txt: cls_token, which frames a text, is not in the vocabulary of 3 pieces"),
    (old("uncased", "vocab.txt", ""), "vocab.txt: "),
    (old("uncased", CONFIG, {"tokenizer_class": "MPNetTokenizer"}),
     "vocab.txt: .*'MPNetTokenizer' is not supported"),
    (old("uncased", CONFIG, {"tokenizer_class": "GPT2Tokenizer"}),
     "vocab.txt: .*'GPT2Tokenizer' is not supported"),
    (old("uncased", CONFIG, {"cls_token": "[START]"}), r"cls_token '\[START\]' is neither"),
    (old("uncased", CONFIG, {"additional_special_tokens": ["<x>"]}), "'<x>', which is neither"),
    (old("uncased", CONFIG, {"split_special_tokens": True}), "split_special_tokens"),
    (old("gpt2", CONFIG, {"add_bos_token": True}), "add_bos_token"),
    (old("gpt2", CONFIG, {"added_tokens_decoder": {"x": {"content": "a"}}}),
     r"added_tokens_decoder\['x'\] is no id"),
    (old("gpt2", CONFIG, {"extra_special_tokens": {"image_token": "<i>"}}),
     "'<i>', which is neither"),
    (old("gpt2", "merges.txt", STORED["merges"][0] + "\nzz top\n"),
     "merge 1 .* needs the piece 'zz'"),
    (old("gpt2", "merges.txt", "a b c\n"), r"model.merges\[0\] = 'a b c' \(should be .a b. or"),
    (old("gpt2", "vocab.json", {"a": 0}), "255 of the 256 byte pieces"),
    (old("gpt2", "vocab.json", lambda v: v.update(a=v["b"])), "557 pieces with 556 different ids"),
    (old("gpt2", "vocab.json", lambda v: v.update(a="7")),
     r"vocab.json: model.vocab\['a'\] = '7' \(should be a whole number"),
    (lambda ours: {"tokenizer.json": "{"}, "tokenizer.json: not valid JSON"),
    (lambda ours: {"tokenizer.json": {}}, "tokenizer.json: model is missing"),
    (new("uncased", lambda d: d["model"].update(type="WordLevel")),
     "model.type 'WordLevel' .* WordPiece, BPE"),
    (new("uncased", lambda d: d.update(normalizer={"type": "Lowercase"})),
     "type 'Lowercase' .* only BertNormalizer"),
    (new("uncased", lambda d: d.update(normalizer=None)),
     "normalizer.type 'null' .* only BertNormalizer"),
    (new("uncased", lambda d: d["normalizer"].update(clean_text=False)),
     "normalizer.clean_text = False .* True"),
    (new("gpt2", lambda d: d.update(normalizer={"type": "NFD"})),
     "normalizer.type 'NFD' .* only null"),
    (new("gpt2", lambda d: d.update(pre_tokenizer={"type": "Digits"})),
     "pre_tokenizer.type 'Digits' .* ByteLevel"),
    (new("gpt2", lambda d: d.update(pre_tokenizer={"type": "Split", "pattern": {"String": " "},
                                                   "invert": False, "behavior": "Isolated"})),
     "Split any number of times, then Byte"),
    (new("gpt2", lambda d: d["model"].update(dropout=0.1)), "model.dropout = 0.1"),
    (new("gpt2", lambda d: d["model"].update(byte_fallback=True)),
     "pre_tokenizer.type 'ByteLevel' .* Metaspace"),
    (new("gpt2", lambda d: d["model"].update(end_of_word_suffix="</w>")),
     "model.end_of_word_suffix = '</w>'"),
    (new("gpt2", lambda d: d["model"].update(novelty=1)), "model.novelty = 1"),
    (new("gpt2", lambda d: d["added_tokens"][0].update(single_word=True)),
     "single_word = True .* only False"),
    (new("gpt2", lambda d: d["added_tokens"][0].update(content="a")),
     "'a' has id 556 .* in the vocabulary"),
    (new("gpt2", lambda d: d["added_tokens"].append({"content": "new", "id": 5})),
     "558 pieces with 557 diff"),
    (new("gpt2", lambda d: d.update(post_processor={"type": "Novelty"})),
     "post_processor.type 'Novelty'"),
    (new("gpt2", lambda d: d.update(post_processor=LOSES_B)),
     "post_processor.pair holds the texts"),
    (new("uncased", do_lower_case=False), "do_lower_case True, but tokenizer_config.json False"),
    (new("gpt2", add_prefix_space=True), "add_prefix_space False, but tokenizer_config.json True"),
    (new("gpt2", added_tokens_decoder={"556": {"content": "<|endoftext|>", "lstrip": True}}),
     "has lstrip False for"),
])
def test_faults_of_files_are_named(files, fault, ours, tmp_path):
    with pytest.raises(InputError, match=fault) as caught:
        load_tokenizer(write(tmp_path, files(ours)))
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message, (
        "the message is not one line with the path in it")


def test_other_faults(ours, tmp_path):
    with pytest.raises(InputError, match="no such model folder"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(InputError, match="vocab.txt: cannot be read as UTF-8"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="half of a character"):
        ours["gpt2"].ids("a \ud83d b")
    write(tmp_path / "nomerges",
          {key: value for key, value in plain_files("gpt2").items() if key != "merges.txt"})
    with pytest.raises(InputError, match="merges.txt: cannot be read"):
        load_tokenizer(tmp_path / "nomerges")


# ------------------------------------------------------------------------- hostile texts and files

def test_marks_in_any_order_are_sorted_as_python_does():
    rng, marks = random.Random(0), "\u0301\u0316\u0f73\u0344\u3099\uff9e\uff9fa\u00e9\u1161 "
    for _ in range(300):
        text = "".join(rng.choices(rng.sample(marks, rng.randint(2, 9)), k=rng.choice((5, 40, 90))))
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert steps.unicode_form(form, text) == unicodedata.normalize(form, text), (
                f"{form} of {text!a} differs")


def seconds(work):
    """Of the processor, the least of three times."""
    times = []
    for _ in range(3):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("kind, text", [
    ("spaces", lambda n: "x" + " " * n + "y"), ("line ends", lambda n: "x" + "\r\n" * n + "y"),
    ("marks", lambda n: "e" + "\u0316\u0301" * n), ("stripping tokens", lambda n: "[CLS]" * n)])
@pytest.mark.parametrize("name", ["uncased", "gpt2", "mini-t5"])
def test_time_grows_with_the_text_not_with_its_square(kind, text, name, ours):
    tokenizer = ours[name] if name in ours else load_tokenizer(name)
    if kind == "stripping tokens":
        tokenizer = copy(tokenizer, lambda d: d["added_tokens"].append(
            {"content": "[CLS]", "id": tokenizer.vocab.get("[CLS]", len(tokenizer)), "rstrip": True,
             "normalized": False}))
    spent = seconds(lambda: tokenizer.ids(text(20_000)))
    assert spent < 1.5, f"{spent:.1f} s for 20,000 {kind}: it was 0.1 s, and 2 to 10 s as a square"


def test_a_pattern_that_runs_for_ever_is_stopped(ours, tmp_path):
    document = json.loads(json.dumps(ours["gpt2"].description.document))
    step = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated",
            "invert": False}
    document["pre_tokenizer"] = {"type": "Sequence",
                                 "pretokenizers": [step, document["pre_tokenizer"]]}
    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": document}))
    assert tokenizer.ids("ab") == ours["gpt2"].ids("ab")
    fault = r"tokenizer.json: pre_tokenizer.Split.pattern: the pattern '\(a\|aa\)\+\$' takes more"
    with pytest.raises(InputError, match=fault):
        tokenizer.ids("a" * 100 + "b")


def not_finite(ours):
    document = json.dumps(ours["gpt2"].description.document)
    return {"tokenizer.json": document.replace("556", "1e400")}


@pytest.mark.parametrize("files, fault", [
    (new("uncased", lambda d: d["model"].update(max_input_chars_per_word=None)),
     "max_input_chars_per_word = None .* whole number"),
    (new("uncased", lambda d: d["model"]["vocab"].update(the=-7)), r"model.vocab\['the'\] = -7"),
    (new("uncased", lambda d: d["model"]["vocab"].update(the=1.0)), r"model.vocab\['the'\] = 1.0"),
    (new("gpt2", lambda d: d["model"]["merges"].append(["a", 1])),
     r"model.merges\[\d+\] = \['a', 1\]"),
    (new("gpt2", lambda d: d["model"].update(type=["BPE"])),
     r"model.type = \['BPE'\] \(should be text\)"),
    (new("gpt2", lambda d: d["added_tokens"][0].pop("id")), r"added_tokens\[0\].id is missing"),
    (new("gpt2", lambda d: d["added_tokens"][0].update(content=7)),
     r"added_tokens\[0\].content = 7"),
    (new("gpt2", lambda d: d["pre_tokenizer"].pop("add_prefix_space")),
     "pre_tokenizer.add_prefix_space is missing"),
    (new("gpt2", lambda d: d.update(normalizer=[])),
     r"normalizer = \[\] \(should be null, an object with a type"),
    (new("uncased", lambda d: d["post_processor"].update(cls=["[CLS]", 10**9])),
     "puts id 1000000000 around a text"),
    (new("uncased", lambda d: d["post_processor"].update(cls="[CLS]")),
     r"cls = '\[CLS\]' \(should be \[token, id\]\)"),
    (new("uncased", model_max_length="512"), "tokenizer_config.json: model_max_length = '512'"),
    (new("uncased", model_max_length=-1), "tokenizer_config.json: model_max_length = -1"),
    (new("uncased", unk_token=["x"]), r"tokenizer_config.json: unk_token = \['x'\]"),
    (new("uncased", tokenizer_class=3), "tokenizer_config.json: tokenizer_class = 3"),
    (new("uncased", additional_special_tokens=[3]),
     "tokenizer_config.json: additional_special_tokens"),
    (new("uncased", model_input_names=5), "tokenizer_config.json: model_input_names = 5"),
    (new("uncased", unk_token="x" * 10**6), "unk_token .* is neither"),
    (lambda ours: {"tokenizer.json": '{"model": ' + "[" * 5000 + "]" * 5000 + "}"},
     "tokenizer.json: (not valid JSON|model = )"),
    (not_finite, "1e400 is not finite"),
    (lambda ours: plain_files("gpt2") | {"special_tokens_map.json": {"unk_token": 5}, CONFIG: {}},
     "special_tokens_map.json: unk_token = 5"),
    (lambda ours: plain_files("gpt2") | {"added_tokens.json": {"x": 557, "y": 557}, CONFIG: {}},
     "added_tokens.json: 2 tokens with 1 diff"),
    (lambda ours: plain_files("gpt2") | {"added_tokens.json": {"x": None}, CONFIG: {}},
     r"added_tokens.json: \['x'\] = None"),
])
def test_values_of_other_types_are_named(files, fault, ours, tmp_path):
    with pytest.raises(InputError, match=fault) as caught:
        load_tokenizer(write(tmp_path, files(ours)))
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 600, message[:1000]


def test_the_usual_values_of_absence_are_taken(ours, tmp_path):
    config = {"model_max_length": 1e30, "do_lower_case": None, "strip_accents": None,
              "add_bos_token": None, "bos_token": None,
              "added_tokens_decoder": {}, "extra_special_tokens": {}}
    tokenizer = load_tokenizer(write(tmp_path, plain_files("gpt2") | {CONFIG: config}))
    assert tokenizer.max_length is None
