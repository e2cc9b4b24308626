"""Are our ids those of SentencePiece, with each family's own tokens around them? For .model files
and tokenizer.json.

References: ids stored in fixtures/tokenizers/ids.json (always); the `sentencepiece` library and
each family's rules, spelled out in `library_ids`; the `tokenizers` library for each tokenizer.json
(when installed). Real files lie in shared/tokenizers and are used when there. Two differences to
the `tokenizers` library are known, and the comparisons with it leave them out: ways to cut with
equal scores (`alike`), and letters with marks in a table of rewritings (`rewritten_alike`); in both
we do as SentencePiece.
"""

import functools
import heapq
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings, strategies as st
from live import imported, may_refuse, tokenizer_of

from minillmclf.errors import InputError
from minillmclf.text.tokenizers import bpe, protobuf, steps, unigram
from minillmclf.text.tokenizers.files import describe
from minillmclf.text.tokenizers.tokenizer import Tokenizer, load_tokenizer
from small import Fairseq
from test_tokenizer import FRAGMENTS, MANY, TEXT, naive_merge, our_ids, write

FOLDER = Path(__file__).parent / "fixtures" / "tokenizers"
STORED = json.loads((FOLDER / "ids.json").read_text(encoding="utf-8"))
SHARED = Path(__file__).resolve().parents[2] / "shared"
FILES = {"t5": "spiece.model", "xlm-roberta": "sentencepiece.bpe.model", "deberta": "spm.model",
         "llama": "tokenizer.model", "gemma": "tokenizer.model"}
NAMES = [*FILES, "llama3"]
SENTINELS = [f"<extra_id_{n}>" for n in range(100)]
REAL = {
    "t5": ("spiece.model",
           {"<pad>": 0, "</s>": 1, "<unk>": 2} | {s: 32099 - n for n, s in enumerate(SENTINELS)}),
    "deberta-v3": ("spm.model", {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "[MASK]": 128000}),
    "llama2": ("tokenizer.model", {"<unk>": 0, "<s>": 1, "</s>": 2}),
    "mistral-v1": ("tokenizer.model", {"<unk>": 0, "<s>": 1, "</s>": 2}),
    "mistral-v3": ("tokenizer.model", {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4})}
SPACED = (
    TEXT | st.lists(st.sampled_from([*FRAGMENTS, "▁", "▁▁", "    ", "=====", "aaaa", "<extra_id_7>",
                                     "[INST]", "Hello", " world"]), max_size=8).map("".join))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """name -> our tokenizer of the fixture: LLaMA-3's tokenizer.json, else a bare .model file."""
    llama3 = write(tmp_path_factory.mktemp("llama3"), {"tokenizer.json": STORED["llama3.json"]})
    return {name: load_tokenizer(FOLDER / name if name in FILES else llama3) for name in NAMES}


def library_ids(library, special, text):
    """The rule for text with special tokens: they are themselves, and each text between is
    SentencePiece's alone. XLM-RoBERTa's mask takes the spaces before it."""
    words = (f"[{steps.SPACES}]*<mask>" if token == "<mask>" else re.escape(token)
             for token in special)
    parts = re.split("(" + "|".join(words) + ")", text)
    return [i for part in parts for i in ([special[part.lstrip()]] if part.lstrip() in special
                                          else library.encode(part))]


def library_of(path):
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return Fairseq(library) if path.name == FILES["xlm-roberta"] else library


@functools.cache
def real(name):
    """(our tokenizer, SentencePiece's, the special tokens) of a real file, or a skip."""
    file, special = REAL[name]
    if not (SHARED / "tokenizers" / name / file).is_file():
        pytest.skip(f"the real {file} of {name} is not in shared/tokenizers")
    library = library_of(SHARED / "tokenizers" / name / file)
    if name == "mistral-v3":
        special = {library.id_to_piece(i): i for i in range(771)}
    return load_tokenizer(SHARED / "tokenizers" / name), library, special


def copy(tokenizer, change=None, config=None):
    """The same tokenizer made anew, after `change` of the dict that describes it."""
    document = json.loads(json.dumps(tokenizer.description.document))
    if change:
        change(document)
    return Tokenizer(describe(document, config or {}, "a copy"))


def ranks_of(tokenizer):
    merges = tokenizer.description.document["model"]["merges"]
    return {tuple(pair): rank for rank, pair in enumerate(merges)}


def notices(tokenizer, name):
    """True if some stored text or pair has other ids with this tokenizer."""
    expected = STORED["ids, " + name]
    return (any(tokenizer.ids(text) != ids for text, ids in zip(STORED["texts"], expected["texts"]))
            or any(list(our_ids(tokenizer, *pair)) != ids
                   for pair, ids in zip(STORED["pairs"], expected["pairs"]))
            or list(our_ids(tokenizer, "the film")) != expected["single"])


# ------------------------------------------------------------------------------ SentencePiece's ids

@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_stored_ones(name, ours):
    expected = STORED["ids, " + name]
    for text, ids in zip(STORED["texts"], expected["texts"], strict=True):
        assert ours[name].ids(text) == ids, f"{name} differs from the stored ids on {text!r}"
    for (text, pair), laid_out in zip(STORED["pairs"], expected["pairs"], strict=True):
        assert list(our_ids(ours[name], text, pair)) == laid_out, (
            f"{name} lays out {text!r}, {pair!r} in another way")
    assert list(our_ids(ours[name], "the film")) == expected["single"], (
        f"{name} lays out one text in another way")


@pytest.mark.parametrize("name", FILES)
def test_ids_are_the_librarys_for_any_text(name, ours):
    library, tokenizer = library_of(FOLDER / name / FILES[name]), ours[name]
    special = {text: i for text, i in tokenizer.vocab.items() if i in tokenizer.special_ids}

    @settings(MANY, max_examples=100)
    @given(SPACED)
    def agree(text):
        assert tokenizer.ids(text) == library_ids(library, special, text), (
            f"{name} differs on {text!r}")
        words = tokenizer.words(text)
        assert [i for _, ids in words for i in ids] == tokenizer.ids(text), (
            f"{name}: words of {text!r} lose ids")
    agree()

    @settings(MANY, max_examples=100)
    @given(st.lists(st.integers(0, len(library) - 1).filter(
        lambda i: i not in tokenizer.special_ids), max_size=8))
    def agree_on_text(ids):
        assert tokenizer.decode(ids) == library.decode(ids), (
            f"{name} decodes {ids} in another way than SentencePiece")
    agree_on_text()


@pytest.mark.parametrize("name", REAL)
def test_ids_of_real_files_are_the_librarys(name):
    tokenizer, library, special = real(name)

    @settings(MANY, max_examples=60)
    @given(SPACED)
    def agree(text):
        ids = tokenizer.ids(text)
        assert ids == library_ids(library, special, text), (
            f"{name} differs from SentencePiece on {text!r}")
        assert [i for _, word in tokenizer.words(text) for i in word] == ids, (
            f"{name}: words of {text!r} lose ids")
    agree()
    rng, last = random.Random(0), len(library)
    for _ in range(300):
        ids = rng.choices(range(last), k=6) + rng.choices(range(260), k=3)
        ids = [i for i in rng.sample(ids, len(ids)) if i not in tokenizer.special_ids]
        expected = library.decode(ids)
        assert tokenizer.decode(ids) == expected, (
            f"{name} decodes {ids} in another way than SentencePiece")


@pytest.mark.parametrize("name, known, single, pair, rows", [
    ("t5", {"translate English to German:": [13959, 1566, 12, 2968, 10],
            "<extra_id_0> a <extra_id_99>": [32099, 3, 9, 32000], "a </s> b": [3, 9, 1, 3, 115]},
     [7, 8, 1], [7, 8, 1, 9, 1], 32100),
    ("llama2", {"Hello world": [15043, 3186], " Hello": [29871, 15043]}, [1, 7, 8], [1, 7, 8, 1, 9],
     32000),
    ("mistral-v1", {"Hello world": [22557, 1526]}, [1, 7, 8], [1, 7, 8, 1, 9], 32000),
    ("mistral-v3", {"[INST]Hello[/INST]": [3, 23325, 4]}, [1, 7, 8], [1, 7, 8, 1, 9], 32768),
    ("deberta-v3", {"Hello world": [5365, 447], "[MASK]": [128000]}, [1, 7, 8, 2],
     [1, 7, 8, 2, 9, 2], 128001)])
def test_published_ids(name, known, single, pair, rows):
    tokenizer, library, special = real(name)
    for text, ids in known.items():
        assert tokenizer.ids(text) == ids, f"{name} lost the published ids of {text!r}"
    assert tokenizer.add_special_tokens([7, 8])[0] == single
    assert tokenizer.add_special_tokens([7, 8], [9])[0] == pair
    # pieces that are user-defined
    text_like = {i for i in special.values() if tokenizer.pieces[i].startswith("[REFERENCE_DOC")}
    assert tokenizer.special_ids == set(special.values()) - text_like
    assert len(tokenizer) == rows, f"{name} needs another number of embedding rows"


def test_roles_layout_and_inputs(ours):
    t5, xlm, deberta, llama, gemma, llama3 = (ours[name] for name in NAMES)
    assert (t5.pad_id, t5.eos_id, t5.unk_id, t5.bos_id, t5.cls_id, t5.mask_id) == (
        0, 1, 2, None, None, None)
    assert [t5.vocab[name] for name in SENTINELS] == list(range(len(t5) - 1, len(t5) - 101, -1)), \
        "the sentinels do not count down from the last id"
    assert (xlm.cls_id, xlm.bos_id, xlm.pad_id, xlm.sep_id, xlm.eos_id, xlm.unk_id) == (
        0, 0, 1, 2, 2, 3)
    assert xlm.mask_id == len(xlm) - 1 == 210 and xlm.special_ids == {0, 1, 2, 3, 210}
    assert xlm.add_special_tokens([7], [8, 9]) == ([0, 7, 2, 2, 8, 9, 2], [0] * 7)
    assert (deberta.pad_id, deberta.cls_id, deberta.sep_id, deberta.unk_id) == (0, 1, 2, 3)
    assert deberta.mask_id == len(deberta) - 1 == 466 and deberta.special_ids == {0, 1, 2, 3, 466}
    assert deberta.add_special_tokens([7], [8, 9]) == ([1, 7, 2, 8, 9, 2], [0, 0, 0, 1, 1, 1])
    assert (llama.unk_id, llama.bos_id, llama.eos_id, llama.pad_id, llama.cls_id) == (
        0, 1, 2, None, None)
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id) == (0, 1, 2, 3)
    assert 6 not in gemma.special_ids, "a user-defined piece of Gemma is text, not a special token"
    assert [t.num_special_tokens(pair) for t in ours.values() for pair in (False, True)] == [
        1, 2, 2, 4, 2, 3, 1, 2, 1, 1, 1, 2]
    assert 1 not in t5.ids("the ＜/s＞ film"), (
        "text that is rewritten to </s> became the special token")
    assert "token_type_ids" in deberta.inputs
    assert "token_type_ids" not in t5.inputs + llama.inputs + xlm.inputs


def test_words_and_decode(ours):
    words = [word for word, _ in ours["llama"].words("the film, half</s> a")]
    assert words == ["▁the", "▁film,", "▁half", "</s>", "▁▁a"]
    assert [word for word, _ in ours["t5"].words("the  film</s> half ")] == [
        "▁the▁film", "</s>", "▁half"]
    assert [word for word, _ in ours["gemma"].words("the film")] == ["the", "▁film"]
    for text in [t for t in STORED["texts"] if not any(s in t for s in ("<", "[", "▁"))]:
        for name in ("llama", "gemma"):
            assert ours[name].decode(ours[name].encode(text)) == text, (
                f"{name} does not give {text!r} back")
    llama = ours["llama"]
    assert llama.decode(llama.encode("the ☃"), keep_specials=True) == "<s> the ☃"
    assert llama.decode(llama.ids("☃")[:-1]) == "\ufffd\ufffd", (
        "not a sign for each byte, as in SentencePiece")
    assert ours["t5"].decode(ours["t5"].encode("the <extra_id_4>film ")) == "the film"
    # the first of them says that spaces are dropped
    for name, text in (("t5", "the"), ("llama", " the")):
        ids = [ours[name].vocab[piece] for piece in ("▁", "▁the")]
        assert ours[name].decode(ids) == text == library_of(FOLDER / name / FILES[name]).decode(ids)
    with pytest.raises(InputError, match="id 99999 has no piece"):
        llama.decode([99999])


@pytest.mark.parametrize("name", NAMES)
def test_half_a_character_is_an_error(name, ours):
    with pytest.raises(InputError, match="half of a character"):
        ours[name].ids("a \ud83d b")


# ----------------------------------------------------------------------------- known-wrong variants

def without(kind):
    """Remove the normalizer's steps of a type."""
    def change(document):
        steps = document["normalizer"]["normalizers"]
        steps[:] = [step for step in steps if step["type"] != kind]
    return change


def sentinels_up(document):
    first = min(token["id"] for token in document["added_tokens"] if "extra_id" in token["content"])
    for token in document["added_tokens"]:
        if "extra_id" in token["content"]:
            token["id"] = first + int(token["content"][10:-1])


def steps_of(single):
    def change(document):
        document["post_processor"]["single"] = single
    return change


BOS = {"SpecialToken": {"id": "<s>", "type_id": 0}}
SEQUENCE_A = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize("name, change", [
    ("llama", without("Prepend")),  # dropped prefix space
    ("llama", lambda d: d.update(pre_tokenizer={"type": "Metaspace", "replacement": "▁",
                                                "prepend_scheme": "always", "split": False},
                                 normalizer=None)),  # none where one is
    ("llama", steps_of([SEQUENCE_A])),  # no BOS
    ("llama", steps_of([BOS, BOS, SEQUENCE_A])),  # two
    ("llama", lambda d: d["model"]["merges"].reverse()),
    ("llama", lambda d: d["added_tokens"].clear()),
    ("gemma",
     lambda d: d["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "▁"})),
    ("t5", without("Precompiled")),  # no NFKC
    ("t5", without("Prepend")),
    ("t5", sentinels_up),
    ("t5", steps_of([SEQUENCE_A])),  # no </s>
    ("t5", lambda d: d["normalizer"]["normalizers"].pop(2)),  # spaces not collapsed
    ("t5", lambda d: d["normalizer"]["normalizers"].pop(1)),  # spaces kept at the ends
    ("t5", lambda d: d["model"]["vocab"][7].__setitem__(1, -99.0)),
    ("xlm-roberta", without("Precompiled")),
    ("xlm-roberta", lambda d: d["model"]["vocab"].append(
        d["model"]["vocab"].pop(4))),  # ids one too low, as in the file
    ("xlm-roberta", steps_of([BOS, SEQUENCE_A])),  # no </s>
    ("deberta", lambda d: d["model"].update(byte_fallback=False)),
    ("deberta", without("Precompiled")),
    ("llama3",
     lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=bpe.SPLIT.pattern)),
    ("llama3", lambda d: d["pre_tokenizer"].update(
        pretokenizers=[d["pre_tokenizer"]["pretokenizers"][1] | {"use_regex": True}])),
    ("llama3", lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)),
    ("llama3", lambda d: d["post_processor"]["processors"].pop(1)),
])
def test_a_wrong_setting_is_seen(name, change, ours):
    assert not notices(copy(ours[name]), name), "the untouched copy already differs"
    assert notices(copy(ours[name], change), name), (
        "no stored text tells this wrong setting from the right one")


def test_a_second_bos_is_seen(ours):
    single, pair = ours["gemma"].description.layouts
    wrong = ours["gemma"].description._replace(layouts=[single, [pair[0], *pair]])
    assert notices(Tokenizer(wrong), "gemma"), "no stored pair tells two BOS from one"


@pytest.mark.parametrize("name, where, attribute, wrong", [
    ("llama", unigram, "WORDS", re.compile("▁|[^▁]+")),
    ("llama", bpe, "merge_pairs", lambda letters, ranks: list(letters)),
    ("t5", steps, "precompiled_step", lambda step, where: str),  # no NFKC; only NFC
    ("t5", steps, "precompiled_step",
     lambda step, where: functools.partial(steps.unicode_form, "NFC")),
])
def test_a_wrong_algorithm_is_seen(name, where, attribute, wrong, ours, monkeypatch):
    monkeypatch.setattr(where, attribute, wrong)
    assert notices(copy(ours[name]), name), f"no stored text sees a wrong {attribute}"


# ----------------------------------------------------------------------------------- the algorithms

@pytest.mark.parametrize("word", ["filmfilm" * 1500, "z" * 10_000, "☃" * 3000, " " * 9000])
def test_a_very_long_word_costs_no_square(word, ours, monkeypatch):
    pushes = []

    class Counting:
        heappop = staticmethod(heapq.heappop)

        @staticmethod
        def heappush(heap, item):
            pushes.append(item)
            heapq.heappush(heap, item)

    monkeypatch.setattr(bpe, "heapq", Counting)
    for name in ("llama", "gemma"):
        pushes.clear()
        tokenizer = copy(ours[name], config={"tokenizer_class": "LlamaTokenizer"})
        assert tokenizer.decode(tokenizer.ids(word)) == word
        assert len(pushes) <= 3 * len(word) * 3, (
            f"{len(pushes)} pairs for {len(word)} letters: not linear")
    letters, ranks = word.replace(" ", "▁")[:200], ranks_of(ours["llama"])
    assert bpe.merge_pairs(letters, ranks) == naive_merge(letters, ranks), (
        "heap and plain merge differ")


def test_merging_words_apart_is_merging_the_whole(ours):
    llama, ranks = ours["llama"], ranks_of(ours["llama"])
    assert unigram.word_cutter(ranks)("▁a▁b") == ["▁a", "▁b"], \
        "a piece of the fixture crosses words: the words would be merged as one"
    letters_of = unigram.letter_splitter(llama.vocab)
    for text in STORED["texts"]:
        if not any(token["content"] in text
                   for token in llama.description.document["added_tokens"]):
            whole = bpe.merge_pairs(letters_of(llama.steps.normalise(text)), ranks)
            assert whole == llama.tokens(text), f"merges cross the words of {text!r}"
    document = json.loads(json.dumps(ours["llama"].description.document))
    document["model"]["vocab"] |= {"e▁": 9000, "e▁f": 9001}
    document["model"]["merges"][:0] = [["e", "▁"], ["e▁", "f"]]
    tokenizer = Tokenizer(describe(document, {}, "made here"))
    assert 9001 in tokenizer.ids("the film"), "a piece that crosses words is never found"
    assert [i for _, ids in tokenizer.words("the film") for i in ids] == tokenizer.ids("the film")


def test_unigram_is_the_slow_explicit_form(ours):
    """Equal sums, not equal pieces: between ties, float32 and float64 may choose differently."""
    t5 = ours["t5"]
    special = {token["content"] for token in t5.description.document["added_tokens"]}
    scores = {piece: score
              for piece, score in t5.description.document["model"]["vocab"] if piece not in special}
    unknown = min(scores.values()) - 10

    @MANY
    @given(SPACED)
    def agree(text):
        for word, ids in t5.words(text):
            if ids == [t5.vocab.get(word)] and word in special:
                continue
            pieces = unigram.best_pieces(word, scores, unknown)
            known = [piece if piece in scores else "" for piece in pieces]
            joined = [
                piece for piece, before in zip(known, [None, *known]) if piece or before != ""]
            theirs = ["" if i == t5.unk_id else t5.pieces[i] for i in ids]
            assert "".join(pieces) == word and joined.count("") == theirs.count("")
            sums = [sum(scores[piece] for piece in cut if piece) for cut in (joined, theirs)]
            assert sums[0] == pytest.approx(sums[1], abs=1e-3), (
                f"Viterbi and SentencePiece differ on {word!r}")
    agree()


def cut_at_spaces(document):
    """The same pieces with the usual pre_tokenizer: its parts are words, which are remembered."""
    # without the steps for the space and its sign
    document["normalizer"]["normalizers"] = document["normalizer"]["normalizers"][:-2]
    document["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁",
                                 "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize("name", ["t5", "xlm-roberta", "deberta", "real t5", "real deberta-v3"])
def test_a_word_that_is_remembered_has_the_ids_it_had(name, ours):
    tokenizer = copy(real(name.removeprefix("real "))[0] if name.startswith("real ")
                     else ours[name], cut_at_spaces)
    model, source = tokenizer.description.document["model"], name
    special = {token["content"] for token in tokenizer.description.document["added_tokens"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unigram, "remember_words", lambda encode: encode)
        plain = unigram.unigram_model(model["vocab"], model["unk_id"],
                                      model.get("byte_fallback", False), special, source)

    @settings(MANY, max_examples=100)
    @given(SPACED | st.lists(SPACED, max_size=4).map("  ".join))
    def agree(text):
        expected = []
        for part, added, first in tokenizer.split_added(text):
            expected += [added] if added is not None else [
                i for word in tokenizer.steps.cut(part, first) for i in plain(word)]
        for _ in range(2):  # new, and out of the memory
            assert tokenizer.ids(text) == expected, f"{name} remembers other ids of {text!r}"
            # what a caller gets is its own
            tokenizer.words(text)[:1] and tokenizer.words(text)[0][1].append(-1)
    agree()


def test_short_parts_are_remembered_and_long_ones_are_not():
    asked = []
    ids_of = unigram.remember_words(lambda text: asked.append(text) or [len(text)])
    texts = ["", "▁a", "▁b", "x" * unigram.LONGEST_WORD, "x" * (unigram.LONGEST_WORD + 1)]
    assert [ids_of(text) for text in texts * 2] == [[len(text)] for text in texts * 2]
    assert asked == [*texts, texts[-1]]
    for n in range(unigram.REMEMBERED + 1):
        ids_of(f"▁{n}")
    asked.clear()
    ids_of("▁a")
    assert asked == ["▁a"], "the memory grows without a limit"


def test_a_unigram_piece_that_crosses_words(ours):
    def change(document):
        document["model"]["vocab"][7] = ["▁the▁film", 0.0]
    assert copy(ours["t5"], change).ids("the film")[0] == 7


@MANY
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 2**40) | st.binary(max_size=300)),
                max_size=6))
def test_protobuf_fields_are_read_as_written(written):
    assert (protobuf.read_fields(b"".join(protobuf.encode_field(n, value) for n, value in written))
            == written)


STEPS = [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
         for scheme in ("always", "first", "never") for split in (True, False)]
STEPS += [{"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}
          for pattern in ({"String": " "}, {"Regex": r"\p{L}+|\s"}, {"String": "."})
          for behavior in ("Isolated", "MergedWithPrevious", "MergedWithNext")]
STEPS += [{"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, STEPS[0]]},
          {"type": "WhitespaceSplit"}]


@pytest.mark.parametrize("step", STEPS, ids=json.dumps)
def test_pre_tokenizers_are_the_librarys(step, ours):
    tokenizers = imported("tokenizers")
    with may_refuse():
        library = tokenizers.Tokenizer.from_str(
            json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []},
                        "pre_tokenizer": step, "added_tokens": []})).pre_tokenizer
        library.pre_tokenize_str("a")
    cut = steps.pre_tokenizer(step)

    @settings(MANY, max_examples=25)
    @given(SPACED)
    def agree(text):
        assert cut(text, True) == [word for word, _ in library.pre_tokenize_str(text)], (
            f"{step} differs on {text!r}")
    agree()


@pytest.mark.parametrize("step", [
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Lowercase"}, {"type": "NFC"},
    {"type": "Replace", "pattern": {"String": "."}, "content": r"\1"},
    {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "},
    {"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "^a| +$"}, "content": "x"}]}],
    ids=json.dumps)
def test_normalizers_are_the_librarys(step):
    tokenizers = imported("tokenizers")
    with may_refuse():
        library = tokenizers.Tokenizer.from_str(
            json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []},
                        "normalizer": step, "added_tokens": []})).normalizer
        library.normalize_str("a")
    normalise = steps.normalizer(step)

    @settings(MANY, max_examples=25)
    @given(SPACED)
    def agree(text):
        assert normalise(text) == library.normalize_str(text), f"{step} differs on {text!r}"
    agree()


# --------------------------------------------------------------------- tokenizer.json, transformers

def rewritten_alike(document, text):
    """True if the `tokenizers` library rewrites each letter of a text as SentencePiece does."""
    tokenizers = imported("tokenizers")
    for step in steps.steps_of(document["normalizer"], "normalizer"):
        if step["type"] == "Precompiled":
            with may_refuse():
                theirs = tokenizers.normalizers.Precompiled(
                    steps.base64.b64decode(step["precompiled_charsmap"]))
            return theirs.normalize_str(text) == steps.precompiled_step(step, "here")(text)
    return True


def alike(tokenizer, ids, expected):
    """True if ids are the expected ones, or in Unigram the same in another order: a tie."""
    return ids == expected or tokenizer.description.document["model"]["type"] == "Unigram" and \
        sorted(ids) == sorted(expected)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, ours, tmp_path):
    ours[name].max_length = 77
    ours[name].save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    again.save(tmp_path / "twice")
    assert not notices(again, name) and not notices(load_tokenizer(tmp_path / "twice"), name), (
        "ids changed on disk")
    roles = [f"{role}_id" for role in again.roles]
    for field in ("vocab", "special_ids", "max_length", "inputs", *roles):
        assert getattr(again, field) == getattr(ours[name], field), f"{field} changed on disk"
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name, model_type", [
    ("t5", "t5"), ("xlm-roberta", "xlm-roberta"), ("deberta", "deberta-v2"), ("llama", "llama"),
    ("llama", "mistral"), ("gemma", "gemma2"), ("llama3", "llama")])
def test_saved_folder_is_read_by_transformers(name, model_type, ours, tmp_path):
    tokenizer = ours[name]
    tokenizer.max_length = 77
    tokenizer.save(tmp_path)
    own = {"t5": "T5Tokenizer", "xlm-roberta": "XLMRobertaTokenizer",
           "deberta": "DebertaV2Tokenizer", "gemma": "GemmaTokenizer"}
    # the tokenizer alone, and in the folder of a model
    for beside in ({}, {"config.json": {"model_type": model_type}}):
        read = tokenizer_of(write(tmp_path, beside), own.get(name, "LlamaTokenizer"))
        assert len(read) == len(tokenizer) and read.model_max_length == 77
        assert list(read("a")) == tokenizer.inputs
        assert set(read.all_special_ids) <= tokenizer.special_ids
        for text in STORED["texts"]:
            # in transformers no text is a byte piece
            if rewritten_alike(tokenizer.description.document, text) and "<0x41>" not in text:
                ids = read(text)["input_ids"]
                assert alike(tokenizer, tokenizer.encode(text), ids), (
                    f"transformers differs on {text!r}")
        for pair in STORED["pairs"]:
            assert read(*pair)["input_ids"] == tokenizer.encode(*pair), (
                f"transformers differs on {pair}")


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_bpe_of_a_saved_folder_is_the_librarys_for_any_text(name, ours, tmp_path):
    tokenizers = imported("tokenizers")
    ours[name].save(tmp_path)
    bare = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}

    def control():
        file = write(tmp_path / "bare", {"tokenizer.json": bare}) / "tokenizer.json"
        tokenizers.Tokenizer.from_file(str(file)).encode("a", add_special_tokens=False).ids
    with may_refuse(control):
        library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        library.encode("a", add_special_tokens=False).ids

    @settings(MANY, max_examples=100)
    @given(SPACED)
    def agree(text):
        expected = library.encode(text, add_special_tokens=False).ids
        assert ours[name].ids(text) == expected, f"{name} differs on {text!r}"
    agree()


CONFIGS = {
    "t5": {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512},
    "xlm-roberta": {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512},
    "deberta": {"tokenizer_class": "DebertaV2Tokenizer", "model_max_length": 512},
    "llama": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False,
              "model_max_length": 512},
    "gemma": {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "model_max_length": 512}}
SAVED_AS = {"t5": "t5", "deberta-v3": "deberta", "llama2": "llama", "mistral-v1": "llama",
            "mistral-v3": "llama"}


def saved_by_transformers(source, file, config, folder):
    """Transformers reads a .model file and saves it: only tokenizer.json and a config come out."""
    transformers = imported("transformers")
    pytest.importorskip("google.protobuf", reason="transformers needs it to read a .model file")
    write(folder / "from", {"tokenizer_config.json": config})
    shutil.copy(source / file, folder / "from" / file)
    with may_refuse():
        transformers.AutoTokenizer.from_pretrained(folder / "from").save_pretrained(
            folder / "saved")
    assert not list((folder / "saved").glob("*.model")), (
        "the .model lies beside: this proves nothing")
    return folder / "saved"


@pytest.mark.parametrize("name", [*FILES, *SAVED_AS])
def test_what_transformers_saves_is_read(name, tmp_path):
    if name in FILES:
        source, file, config = FOLDER / name, FILES[name], CONFIGS[name]
    else:
        real(name)
        source, file, config = SHARED / "tokenizers" / name, REAL[name][0], CONFIGS[SAVED_AS[name]]
    folder = saved_by_transformers(source, file, config, tmp_path)
    tokenizers = imported("tokenizers")
    with may_refuse():
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        library.encode("a").ids
    tokenizer = load_tokenizer(folder)
    assert tokenizer.max_length == 512 and len(tokenizer) == library.get_vocab_size()
    texts = STORED["texts"] + [a for pair in STORED["pairs"] for a in pair]
    for text in texts:
        if rewritten_alike(tokenizer.description.document, text):
            expected = library.encode(text).ids
            assert alike(tokenizer, tokenizer.encode(text), expected), f"{name} differs on {text!r}"

    @settings(MANY, max_examples=25)
    @given(SPACED)
    def agree(text):
        if rewritten_alike(tokenizer.description.document, text):
            expected = library.encode(text).ids
            assert alike(tokenizer, tokenizer.encode(text), expected), f"{name} differs on {text!r}"
    agree()
    bare = load_tokenizer(write(tmp_path / "from", {}))
    for text in ("the film was slow", "it isn't slow, and it's the last book"):
        assert bare.encode(text) == tokenizer.encode(text), (
            f"{name}: .model and tokenizer.json differ on {text!r}")
    for role in ("pad", "cls", "sep", "unk", "bos", "eos"):
        assert getattr(bare, f"{role}_id") == getattr(tokenizer, f"{role}_id"), (
            f"{name}: {role}_id differs")


PATTERNS = {
    "llama3": STORED["llama3.json"]["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
    "qwen":
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt4o":
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"}


@pytest.mark.parametrize("name", PATTERNS)
def test_byte_level_with_the_split_pattern_of_its_file(name, tmp_path):
    tokenizers = imported("tokenizers")
    document = json.loads(json.dumps(STORED["llama3.json"]))
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = PATTERNS[name]
    if name == "qwen":
        document["normalizer"] = {"type": "NFC"}
    with may_refuse():
        library = tokenizers.Tokenizer.from_str(json.dumps(document))
        library.encode("a").type_ids
    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": document}))
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    texts = st.lists(
        st.sampled_from([*FRAGMENTS, "1234567", "\r\n", "I'LL", " filmstrip", "<|begin_of_text|>",
                         "camelCase", "a/b/"]) | st.text(max_size=3), max_size=9).map("".join)

    @MANY
    @given(TEXT | texts.filter(lambda text: text.isprintable()
                               or not re.search("[\ud800-\udfff]", text)))
    def agree(text):
        expected = library.encode(text)
        assert our_ids(tokenizer, text) == (expected.ids, expected.type_ids), (
            f"{name} differs on {text!r}")
        assert again.encode(text) == expected.ids
        assert [i for _, ids in tokenizer.words(text) for i in ids] == tokenizer.ids(text)
    agree()
    bos = tokenizer.vocab["<|begin_of_text|>"]
    assert tokenizer.encode("the film").count(bos) == 1
    assert tokenizer.special_ids == {bos, bos + 1, bos + 2}
    assert tokenizer.tokens("a filmstrip") == ["a", "Ġfilmstrip"], (
        "ignore_merges true was not followed")
    merged = copy(tokenizer, lambda document: document["model"].update(ignore_merges=False))
    assert merged.tokens("a filmstrip") == merged.tokens("a film") + merged.tokens("strip"), (
        "nor ignore_merges false")


def test_a_json_and_its_model_are_one_tokenizer(tmp_path):
    folder = SHARED / "weights" / "stories260K"
    if not (folder / "tokenizer.model").is_file():
        pytest.skip("the weights of stories260K, with both files, are not in shared/weights")
    both = load_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(tmp_path, {"tokenizer_config.json": config | {"tokenizer_class": "LlamaTokenizer"}})
    shutil.copy(folder / "tokenizer.model", tmp_path)
    alone, library = load_tokenizer(tmp_path), library_of(folder / "tokenizer.model")
    assert both.cls_id is None
    assert (both.bos_id, both.eos_id, both.unk_id, both.max_length) == (1, 2, 0, 512)
    for text in STORED["texts"]:
        assert both.encode(text) == alone.encode(text), (
            f"tokenizer.json and tokenizer.model differ on {text!r}")
        if "<" not in text:
            assert both.encode(text) == [1, *library.encode(text)], (
                f"not SentencePiece's ids for {text!r}")


# ----------------------------------------------------------------------------- what the config says

def model_folder(folder, name, config=None, **more):
    """The fixture `name` with a tokenizer_config.json."""
    write(folder, {"tokenizer_config.json": config} if config else {})
    shutil.copy(FOLDER / name / FILES[name], folder / FILES[name])
    return folder


def test_bos_and_eos_as_the_config_says(ours, tmp_path):
    for number, (flags, single, pair) in enumerate([
            ({}, [1, 7], [1, 7, 1, 8]), ({"add_bos_token": False}, [7], [7, 8]),
            ({"add_eos_token": True}, [1, 7, 2], [1, 7, 2, 1, 8, 2]),
            ({"add_bos_token": False, "add_eos_token": True}, [7, 2], [7, 2, 8, 2])]):
        tokenizer = load_tokenizer(model_folder(tmp_path / str(number), "llama", flags))
        assert (tokenizer.add_special_tokens([7])[0] == single
                and tokenizer.add_special_tokens([7], [8])[0] == pair), (
            f"{flags} not followed")
    ours["llama"].save(tmp_path / "json")
    config = json.loads((tmp_path / "json" / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(tmp_path / "json",
          {"tokenizer_config.json": config | {"add_bos_token": True, "add_eos_token": False}})
    assert load_tokenizer(tmp_path / "json").add_special_tokens([7])[0] == [1, 7]
    for flag, fault in (
            ({"add_bos_token": False}, "has add_bos_token True, but tokenizer_config.json False"),
            ({"add_eos_token": True},
             "has add_eos_token False, but tokenizer_config.json True; set both alike")):
        write(tmp_path / "json", {"tokenizer_config.json": config | flag})
        with pytest.raises(InputError, match=fault):
            load_tokenizer(tmp_path / "json")


def test_other_keys_of_the_config(ours, tmp_path):
    bare = load_tokenizer(model_folder(tmp_path / "bare", "llama", {"add_prefix_space": False}))
    first = load_tokenizer(model_folder(tmp_path / "legacy", "llama", {"legacy": False}))
    assert first.ids("the</s>film") == ours["llama"].ids("the") + [2] + bare.ids("film"), \
        "legacy false: no space is put before text that follows a special token"
    ids = ours["llama"].ids
    assert ids("the</s>film") == ids("the") + [2] + ids("film")
    assert bare.ids(" the film") == ours["llama"].ids("the film"), (
        "add_prefix_space false is not followed")
    few = load_tokenizer(model_folder(tmp_path / "few", "t5", {"extra_ids": 3}))
    assert few.ids("<extra_id_0><extra_id_2>") == [211, 209] and len(few) == 212
    lower = load_tokenizer(model_folder(tmp_path / "lower", "deberta", {"do_lower_case": True}))
    assert lower.ids("THE Film") == ours["deberta"].ids("the film")
    said = {"32": {"content": "the"}, "900": {"content": "<new>", "lstrip": True, "special": True}}
    said["32"] = {"content": "<extra_id_1>", "lstrip": True, "rstrip": True, "special": True}
    said = {"307": said["32"], "900": said["900"]}
    added = load_tokenizer(model_folder(tmp_path / "added", "t5", {"added_tokens_decoder": said}))
    assert added.ids("<new> <extra_id_1> <extra_id_0>") == [900, 307, 308], (
        "flags of added_tokens_decoder are lost")
    old = write(model_folder(tmp_path / "old", "deberta"), {"added_tokens.json": {"[MASK]": 466}})
    assert load_tokenizer(old).mask_id == 466


def test_gemma_has_exactly_one_bos(ours, tmp_path):
    gemma = ours["gemma"]
    film = gemma.ids("the film")
    assert gemma.encode("<bos>the film") == gemma.encode("the film") == [2, *film], (
        "BOS of a chat template was doubled")
    assert gemma.add_special_tokens(film, film) == ([2, *film, *film],
                                                    [0] * (1 + len(film)) + [1] * len(film))
    for text, pair in (("the <bos> film", None), ("<bos><bos>the", None), ("the", "<bos>film")):
        with pytest.raises(InputError, match="<bos> stands inside a text"):
            gemma.encode(text, pair)
    gemma.save(tmp_path / "base")
    base = json.loads((tmp_path / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    a, b = SEQUENCE_A, {"Sequence": {"id": "B", "type_id": 1}}
    ids = {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
    frames = [([a], [a, b]), ([bos, bos, a], [bos, a, bos, b]), ([bos, a], [bos, a, b]),
              ([a, bos], [a, b, bos])]
    for number, (single, pair) in enumerate(frames):
        post = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}
        for config in ({}, {"tokenizer_class": "GemmaTokenizer"}, {"add_bos_token": True}):
            folder = write(tmp_path / f"layout {number}", {
                "tokenizer.json": base | {"post_processor": post}, "tokenizer_config.json": config})
            read = load_tokenizer(folder)
            assert read.encode("the film") == [2, *film], f"layout {number} gives no BOS or two"
            assert read.encode("the", "film").count(2) == 1, (
                f"the pair of layout {number} has no BOS or two")
    for config in ({"add_bos_token": False},
                   {"add_bos_token": False, "tokenizer_class": "GemmaTokenizer"}):
        with pytest.raises(InputError, match="exactly one BOS"):
            load_tokenizer(write(tmp_path / "none",
                                 {"tokenizer.json": base, "tokenizer_config.json": config}))
    with pytest.raises(InputError, match="exactly one BOS"):
        load_tokenizer(model_folder(tmp_path / "none as model", "gemma", {"add_bos_token": False}))
    eos = load_tokenizer(model_folder(tmp_path / "eos", "gemma", {"add_eos_token": True}))
    assert eos.add_special_tokens([7], [8])[0] == [2, 7, 1, 8, 1]
    assert eos.add_special_tokens([7])[0] == [2, 7, 1]


def test_gemma_as_transformers_saves_it_has_a_bos(ours, tmp_path):
    transformers = imported("transformers")
    model = ours["gemma"].description.document["model"]
    with may_refuse():
        reference = transformers.GemmaTokenizer(vocab=model["vocab"],
                                                merges=[tuple(pair) for pair in model["merges"]])
        reference.save_pretrained(tmp_path)
        ids = reference("the film")["input_ids"]
    if ids[0] == 2:
        pytest.skip("transformers adds a BOS by itself: this test has lost its point")
    assert load_tokenizer(tmp_path).encode("the film") == [2, *ids]


# --------------------------------------------------------------------------------------- the faults

def packed(*pieces, trainer=b"", normal=b""):
    """A .model file. pieces: (text, score, type)."""
    field = protobuf.encode_field
    rows = b"".join(field(1, field(1, text.encode()) + field(2, score) + field(3, kind))
                    for text, score, kind in pieces)
    return rows + field(2, trainer) + field(3, normal)


UNK, LETTER = ("<unk>", 0.0, 2), ("a", -1.0, 1)


@pytest.mark.parametrize("content, config, fault", [
    (b"not a model", {}, "tokenizer.model: not a SentencePiece model"),
    (b"", {}, "tokenizer.model: not a SentencePiece model"),
    (b"IQ== 0\nIg== 1\n", {}, "tokenizer.model: not a SentencePiece model .* use a tokenizer.json"),
    (packed(UNK, LETTER)[:-9], {}, "not a SentencePiece model|bos_token"),
    (packed(UNK, LETTER, trainer=b"\x18\x03"), {}, "model_type 3, .* only type 1"),
    (packed(UNK, LETTER, trainer=b"\xc0\x01\x01"), {}, "treat_whitespace_as_suffix True"),
    (packed(UNK, LETTER, normal=b"\x28\x00"), {}, "escape_whitespaces False"),
    (packed(UNK, LETTER, ("b", -2.0, 5)), {}, "1 unused pieces"),
    (packed(UNK, LETTER), {},
     "bos_token, which frames a text, is not in the vocabulary of 2 pieces"),
    (packed(LETTER), {"add_bos_token": False}, "unk_id is None for 1 pieces"),
    (packed(UNK, ("<s>", 0.0, 3), LETTER, trainer=b"\x18\x02"), {},
     "model_type 2, byte_fallback False"),
    (packed(UNK, ("<s>", 0.0, 3), LETTER, trainer=b"\x18\x02\x98\x02\x01"), {},
     "255 of the 256 byte pieces"),
    (packed(UNK, LETTER), {"tokenizer_class": "CodeLlamaTokenizer"},
     "'CodeLlamaTokenizer' is not supported without"),
    (packed(UNK, LETTER), {"sp_model_kwargs": {"alpha": 0.1}}, "sp_model_kwargs"),
    (packed(UNK, LETTER), {"split_by_punct": True}, "split_by_punct"),
])
def test_faults_of_model_files_are_named(content, config, fault, tmp_path):
    write(tmp_path, {"tokenizer_config.json": config})
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=fault) as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message, (
        "the message is not one line with the path in it")


@pytest.mark.parametrize("name, change, fault", [
    ("t5", lambda d: d["model"].update(unk_id=None), "model.unk_id is None for 209 pieces"),
    ("t5", lambda d: d["model"].update(unk_id=5000), "model.unk_id is 5000"),
    ("t5", lambda d: d["model"]["vocab"].append(["▁the", 0.0]),
     "different ids|SentencePiece cannot use"),
    ("t5", lambda d: d["normalizer"]["normalizers"].append({"type": "StripAccents"}),
     "normalizer.type 'StripAccents'"),
    ("t5", lambda d: d.update(pre_tokenizer={"type": "Punctuation"}),
     "pre_tokenizer.type 'Punctuation'"),
    ("llama", lambda d: d["model"]["vocab"].pop("<0x07>"), "1 of the 256 byte pieces .* '<0x07>'"),
    ("llama", lambda d: d["model"].update(ignore_merges=True), "model.ignore_merges = True"),
    ("llama", lambda d: d["model"].update(dropout=0.1), "model.dropout = 0.1"),
    ("llama", lambda d: d["model"]["merges"].append(["zz", "top"]), "needs the piece 'zz'"),
    ("llama", lambda d: d.update(pre_tokenizer={"type": "Metaspace", "replacement": "_"}),
     "Metaspace.*|replacement"),
    ("llama3", lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
     "pre_tokenizer.invert = True"),
    ("llama3", lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
     "behavior = 'Removed'"),
    ("llama3", lambda d: d["pre_tokenizer"]["pretokenizers"].reverse(),
     "Split any number of times, then ByteLevel"),
    ("llama3", lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("),
     "pattern"),
])
def test_faults_of_a_json_are_named(name, change, fault, ours, tmp_path):
    document = json.loads(json.dumps(ours[name].description.document))
    change(document)
    with pytest.raises(InputError, match=fault) as caught:
        load_tokenizer(write(tmp_path, {"tokenizer.json": document}))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_table_of_rewritings(ours, tmp_path):
    document = json.loads(json.dumps(ours["t5"].description.document))
    document["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "AAECAwQFBgc="
    with pytest.raises(InputError, match="Precompiled.*cut short"):
        load_tokenizer(write(tmp_path, {"tokenizer.json": document}))
