"""Is a class's probability that of its label texts, as the language model itself gives it, token by
token?

The reference is brute force with transformers: each row with each label text alone, one forward
without padding, a log-softmax over the whole vocabulary, summed. Every family has a tokenizer of
its kind here: byte-level, SentencePiece with and without BOS, WordPiece. Models are tiny, with
exaggerated random weights. The prompts are written out in this file, not made by a template.
Known-wrong readouts must fail the same comparison.
"""
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROUNDED, fp32
from live import imported, loaded, may_refuse
from small import PIECES
from test_families import CONFIGS, spread
from test_tokenizer import modernbert_files, plain_files, write

from minillmclf.classify.label_text import readout as labels_file
from minillmclf.classify.calibrate import Calibration
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.label_text.prompting import change_prompt
from minillmclf.classify.label_text.readout import (SHARED, LabelReadout, common_length,
                                                    ids_after, text_log_probs)
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, load_backbone, model_class, save_backbone
from minillmclf.text.batch import collate
from minillmclf.text.tokenizers.bpe import byte_letters
from minillmclf.text.tokenizers.tokenizer import WordPiece, load_tokenizer
from minillmclf.training.completion_loss import CompletionLoss
from minillmclf.training.losses import class_loss

STORED = Path(__file__).parent / "fixtures" / "tokenizers"
TOKENIZERS = {"bert": "wordpiece", "distilbert": "wordpiece", "roberta": "roberta",
              "xlm-roberta": "xlm-roberta", "deberta-v3": "deberta", "modernbert": "modernbert",
              "gpt2": "bytes", "llama": "llama", "mistral": "llama", "qwen2": "qwen",
              "qwen3": "qwen", "gemma": "gemma", "gemma2": "gemma", "gemma3": "gemma", "t5": "t5",
              "flan-t5": "t5", "ul2": "t5"}
MASKED = ["bert", "distilbert", "roberta", "xlm-roberta", "deberta-v3", "modernbert"]
ANSWERING = ["t5", "flan-t5", "ul2"]
DECODERS = [name for name in CONFIGS if name not in MASKED + ANSWERING]
WORDS = ["positive", "negative", "neutral", "review", "mood", "dull", "good"]
TEMPLATE = "review: {text}\nmood: {label}"
MASKED_TEMPLATE = "review: {text}\nmood: {label}, it was."
APART = {"bad": ["negative", "dull"], "mixed": ["neutral"], "good": ["positive", "good day"]}
# one begins another
ALIKE = {"bad": ["negative"], "mixed": ["neutral", "dull"], "good": ["neutral positive", "good"]}
LABELS = list(APART)
TEXTS = ["a dull film", "soup", "the rose was near a tree, and the tree was old",
         "rain. rain", "my bread"]
every_family = pytest.mark.parametrize("name", CONFIGS)
every_decoder = pytest.mark.parametrize("name", DECODERS)


# --------------------------------------------------------------------------- models with tokenizers

def byte_level():
    """The files of a byte-level tokenizer that knows WORDS as one piece, and as another where a
    space stands before."""
    letters, merges = [*byte_letters().values()], []
    for word in [*("Ġ" + word for word in WORDS), *WORDS]:
        for end in range(1, len(word)):
            if (word[:end], word[end]) not in merges:
                merges.append((word[:end], word[end]))
    pieces = [*letters, *map("".join, merges), "<|endoftext|>"]
    return {"vocab.json": {piece: number for number, piece in enumerate(pieces)},
            "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""])}


def tokenizer_into(kind, folder):
    """Write a tokenizer of this kind -> the tokenizer."""
    if kind == "wordpiece":
        WordPiece.from_vocab([*PIECES, ":", *WORDS]).save(folder)
    elif kind in ("bytes", "qwen"):
        name = {"bytes": "GPT2Tokenizer", "qwen": "Qwen2Tokenizer"}[kind]
        write(folder, byte_level() | {"tokenizer_config.json": {"tokenizer_class": name}})
    elif kind == "modernbert":
        files = byte_level()
        write(folder, modernbert_files(files["vocab.json"], files["merges.txt"].splitlines()[1:]))
    elif kind == "roberta":
        write(folder, plain_files("roberta"))
    else:
        shutil.copytree(STORED / kind, folder, dirs_exist_ok=True)
    return load_tokenizer(folder)


def folder_of(name, tokenizer, folder, lm_head=True, **changes):
    """Write a model of this family with wide weights, and a tokenizer -> the folder."""
    vocabulary = len(tokenizer_into(tokenizer, folder))
    kind, config = CONFIGS[name]
    places = ({"n_positions": 160} if kind == "gpt2" else {} if kind == "t5"
              else {"max_position_embeddings": 160})
    config = {"model_type": kind, **config, "vocab_size": vocabulary, **places, **changes}
    config |= {"pad_token_id": 1} if "roberta" in tokenizer else {}
    model = spread(initialise_weights(model_class(config).from_config(config, lm_head=lm_head), 0))
    model.source_config = config
    save_backbone(model, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders(name, tokenizer=its own) -> a folder, written once."""
    made = {}

    def get(name, tokenizer=None):
        key = (name, tokenizer or TOKENIZERS[name])
        if key not in made:
            made[key] = folder_of(*key, tmp_path_factory.mktemp("-".join(key)))
        return made[key]
    return get


@pytest.fixture(scope="module")
def theirs(folders):
    """theirs(name, tokenizer=its own) -> transformers' model of the same folder, loaded once."""
    transformers = imported("transformers")
    made = {}

    def get(name, tokenizer=None):
        if (name, tokenizer) not in made:
            folder = folders(name, tokenizer)
            config = json.loads((folder / "config.json").read_text())
            kind = getattr(transformers, config["architectures"][0])
            made[name, tokenizer], loading = loaded(kind.from_pretrained, folder,
                                                    output_loading_info=True)
            assert not any(loading.values()), (
                f"{name}: transformers does not find all it expects: {loading}")
            made[name, tokenizer].eval()
        return made[name, tokenizer]
    return get


def asking(folder, label_texts=APART, template=TEMPLATE, labels=None, **asked):
    """A classifier by label texts."""
    labels = labels or list(label_texts)
    return Classifier.from_backbone(folder, labels, readout="labels", template=template,
                                    label_texts=label_texts, **asked)


def template_for(name):
    return MASKED_TEMPLATE if name in MASKED else TEMPLATE


def scores_of(model, texts=TEXTS, **more):
    return model.compute_logits(model.encode(texts)[0], **more)


def pieces_of(model):
    """Each label text's tokens as the vocabulary writes them."""
    pieces = {number: piece for piece, number in model.tokenizer.vocab.items()}
    return {text: [pieces[model.head.tree.edge_tokens[edge].item()] for edge in path]
            for text, path in zip(model.head.texts, model.head.tree.paths)}


def apart(found, expected):
    """The largest difference; NaN is one too."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
    return (found.double() - expected.double()).abs().nan_to_num(torch.inf).max().item()


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_language_model_has_a_vocabulary(name, folders):
    body = load_backbone(folders(name))
    assert body.output_embeddings() is body.word_embeddings.weight, (
        "its head ends in the word embeddings")


# ----------------------------------------------------------------------------------- 1. brute force

# what stands before a text
FRONT = {"llama": ["<s>"], "gemma": ["<bos>"], "bytes": [], "qwen": [], "wordpiece": ["[CLS]"]}


@torch.no_grad()
def brute_force(name, kind, theirs, tokenizer, label_texts, end, texts=TEXTS):
    """Log-probabilities (N, L) of the label texts, one forward of transformers for each, and how
    many tokens each has."""
    rows, lengths, eos = [], [], [tokenizer.eos_id] if end else []
    for text in texts:
        prompt, row = f"review: {text}\nmood:", []
        for label in (label for several in label_texts.values() for label in several):
            before, both = tokenizer.ids(prompt), tokenizer.ids(f"{prompt} {label}")
            answer = both[len(before):]
            assert answer and both[:len(before)] == before
            if name in ANSWERING:
                source, answer = tokenizer.ids(prompt) + [1], tokenizer.ids(label) + [1]
                begun = torch.tensor([[0, *answer[:-1]]])
                with may_refuse():
                    found = theirs(input_ids=torch.tensor([source]), decoder_input_ids=begun)
                    logits = found.logits[0]
            elif name in MASKED:
                ids = tokenizer.encode(f"{prompt} {tokenizer.mask_text * len(answer)}, it was.")
                with may_refuse():
                    logits = theirs(input_ids=torch.tensor([ids])).logits[0]
                logits = logits[torch.tensor(ids) == tokenizer.mask_id]
                assert len(logits) == len(answer)
            else:
                ids = [tokenizer.vocab[piece] for piece in FRONT[kind]] + before
                answer = answer + eos
                with may_refuse():
                    found = theirs(input_ids=torch.tensor([ids + answer]))
                    logits = found.logits[0, len(ids) - 1:-1]
            row.append(sum(logits.log_softmax(-1)[place, token].item()
                           for place, token in enumerate(answer)))
            lengths.append(len(answer))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(lengths[:len(rows[0])])


def of_classes(sums, label_texts):
    """(N, L) -> log of the summed probabilities of each class (N, C), by hand."""
    found, place = [], 0
    for several in label_texts.values():
        own = sums[:, place:place + len(several)]
        most = own.amax(1, keepdim=True)
        found.append(((own - most).exp().sum(1).log() + most[:, 0]))
        place += len(several)
    return torch.stack(found, 1)


@every_family
@pytest.mark.parametrize("label_texts", [APART, ALIKE], ids=["apart", "alike"])
def test_probabilities_are_those_of_one_forward_for_each_text(name, label_texts, folders, theirs):
    """In fp32, ragged texts in one batch."""
    model = asking(folders(name), label_texts, template_for(name))
    end = name in ANSWERING or (name not in MASKED and label_texts is ALIKE)
    assert model.head.end == ("eos" if end else "none"), (
        f"{name}: labels that begin alike have an end, and T5's")
    sums, lengths = brute_force(name, TOKENIZERS[name], theirs(name), model.tokenizer,
                                label_texts, end)
    encoded, cut = model.encode(TEXTS)
    found = text_log_probs(model, encoded)
    assert not cut and len({len(ids) for ids, _ in encoded}) > 3, "ragged, and whole"
    bound = fp32(width=48, depth=6) * (sums.abs() / lengths).max()                         # a token
    assert ((found - sums).abs() / lengths).max() <= bound, (
        f"{name}: {apart(found, sums):.1g} apart from transformers")
    classes = of_classes(sums, label_texts)
    assert apart(model.compute_logits(encoded), classes) <= bound * lengths.max(), (
        f"{name}: a class is not the sum of its texts")
    found = torch.from_numpy(model.predict(TEXTS))
    assert apart(found, classes.softmax(1)) <= bound * lengths.max(), name
    assert classes.std(0).min() > 0.02 and (classes.amax(1) - classes.amin(1)).min() > 0.05, (
        "or this compares little")


@every_family
def test_in_double_precision_the_scores_are_the_same(name, folders, theirs, monkeypatch):
    # nothing is rounded to fp32 on the way
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = asking(folders(name), template=template_for(name)).double()
    reference, texts = theirs(name).double(), TEXTS[:2]
    try:
        sums, lengths = brute_force(name, TOKENIZERS[name], reference, model.tokenizer, APART,
                                    name in ANSWERING, texts)
    finally:
        reference.to(torch.float32)
    with torch.no_grad():
        made = collate(model.encode(texts)[0], range(2))
        batch = made.ids, made.mask, made.types
        found = model.head.text_log_probs(model.backbone, *batch)
        classes = model.head.read(model.backbone, *batch)
    each = ((found - sums).abs() / lengths).max()
    # transformers takes some steps, no products, in fp32
    bound = fp32(width=1, depth=6) * (sums.abs() / lengths).max()
    assert found.dtype == torch.float64 and each <= bound, f"{name}: {each:.1g} a token apart"
    assert apart(classes, of_classes(sums, APART)) <= bound * lengths.max(), name


def first_token_only(patch):
    label_ids = LabelReadout.label_ids
    patch.setattr(LabelReadout, "label_ids",
                  lambda self, tokenizer, text: label_ids(self, tokenizer, text)[:1])


def without_its_space(patch):
    patch.setattr(LabelReadout, "label_ids",
                  lambda self, tokenizer, text: ids_after(tokenizer, "mood:\n", text))


def first_tokens_compete(patch):
    def only_first(backbone, ids, mask, tree, cache, context):
        hidden = backbone(ids, mask) if cache is None else None
        last = backbone.logits(hidden[torch.arange(len(ids)), mask.sum(1) - 1])
        first = torch.stack([last[:, tree.edge_tokens[path[0]]] for path in tree.paths], 1)
        out = torch.zeros(len(ids), len(tree.edge_tokens))
        out[:, [path[0] for path in tree.paths]] = first.log_softmax(1)
        return out
    patch.setattr(labels_file, "tree_log_probs", only_first)


def best_synonym(patch):
    patch.setattr(
        LabelReadout, "add_by_class",
        lambda self, scores: torch.stack([scores[:, own].amax(1) for own in self.class_texts], 1))


def behind_the_end_of_a_text(patch):
    patch.setattr(
        LabelReadout, "prompt_ids",
        lambda self, tokenizer, text: tokenizer.add_special_tokens(tokenizer.ids(text))[0])


def mean_of_tokens(patch):
    normalized = LabelReadout.normalize_lengths
    patch.setattr(LabelReadout, "normalize_lengths",
                  lambda self, sums, by: normalized(self, sums, "token"))


# each begins with another token
DISTINCT = {"bad": ["dull", "mood"], "mixed": ["neutral"], "good": ["positive", "good day"]}


@pytest.mark.parametrize("wrong, kind", [
    (None, "bytes"), (None, "wordpiece"), (first_token_only, "bytes"), (without_its_space, "bytes"),
    (best_synonym, "bytes"), (first_tokens_compete, "bytes"), (mean_of_tokens, "bytes"),
    (behind_the_end_of_a_text, "wordpiece")])
def test_a_wrong_readout_is_seen(wrong, kind, folders, theirs, monkeypatch):
    """In the probabilities already: those of a class that the reference gives are missed by more
    than 1 %."""
    tokenizer = load_tokenizer(folders("llama", kind))
    sums, _ = brute_force("llama", kind, theirs("llama", kind), tokenizer, DISTINCT, end=False)
    if wrong:
        wrong(monkeypatch)
    model = asking(folders("llama", kind), DISTINCT, end="none")
    found = apart(torch.from_numpy(model.predict(TEXTS)), of_classes(sums, DISTINCT).softmax(1))
    if wrong:
        assert found > 1e-2, f"{wrong.__name__} passes for right: {found:.1g}"
    else:
        assert found <= 1e-5


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_label_behind_the_end_of_a_source_is_not_one_behind_a_prompt(name, folders):
    """T5's tokenizer ends a text with </s>: an encoder reads it, a decoder's prompt has none."""
    model = asking(folders(name, "t5"))
    ids = model.encode(TEXTS)[0][0][0]
    assert (ids[-1] == 1) == (name == "t5") and ids.count(1) == (name == "t5")


# -------------------------------------------------------------------------------- 2. ids in context

SPELLED = ["o", "s", "it", "i", "ve"]


@pytest.mark.parametrize("name, template, expected", [
    ("gpt2", "{text}\nmood:", ["Ġpositive"]), ("gpt2", "{text}\nmood: ", ["Ġpositive"]),
    ("gpt2", "{text}\nmood: {label}", ["Ġpositive"]),
    ("gpt2", "{text}\nmood:\n", ["positive"]), ("gpt2", "{text}\nmood:\n{label}", ["positive"]),
    ("gpt2", "{text}\nmood:{label}", ["positive"]), ("gpt2", "{text} ({label} mood)", ["positive"]),
    ("gpt2", "{text} was {label} then.", ["Ġpositive"]),
    ("llama", "{text}\nmood:", ["▁p", *SPELLED]), ("llama", "{text}\nmood: ", ["▁p", *SPELLED]),
    ("llama", "{text}\nmood:\n", ["p", *SPELLED]),
    ("llama", "{text}\nmood:{label}", ["p", *SPELLED]),
    ("gemma", "{text}\nmood: ", ["▁p", *SPELLED]), ("gemma", "{text}\nmood:\n", ["p", *SPELLED]),
    ("bert", "{text}. mood: {label}.", ["positive"]),
    ("bert", "{text}. mood:{label} {text}", ["positive"]),
    ("t5", "{text}\nmood:", ["▁", "p", "o", "s", "i", "ti", "ve", "</s>"]),
    ("t5", "{text}\nmood:\n", ["▁", "p", "o", "s", "i", "ti", "ve", "</s>"])])
def test_a_label_has_the_tokens_of_its_place(name, template, expected, folders):
    model = asking(folders(name), {"a": ["positive"], "b": ["negative"]}, template)
    assert pieces_of(model)["positive"] == expected, f"{name}, {template!r}"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_a_prompt_never_ends_in_a_lone_space(name, folders):
    with_space, without = (asking(folders(name), template=template).encode(TEXTS) for template in (
        "review: {text}\nmood: ", "review: {text}\nmood:"))
    assert with_space == without, "the space belongs to the label"
    tokenizer = load_tokenizer(folders(name))
    for ids, _ in with_space[0]:
        assert ids[-1] == tokenizer.ids("x:")[-1], (
            f"{name}: the prompt ends in {ids[-1]}, not in its colon")


@pytest.mark.parametrize("name, template, label", [
    ("gpt2", "{text} posi{label}", "tive"), ("gpt2", "{text} goo{label}", "d"),
    ("bert", "{text} ro{label} .", "se")])
def test_a_label_that_merges_with_its_template_is_named(name, template, label, folders):
    fault = rf"label text '{label}': after .* it is not cut into tokens of its own .*end the"
    with pytest.raises(InputError, match=fault):
        asking(folders(name), {"a": [label], "b": ["negative"]}, template)


def test_a_label_that_depends_on_the_text_before_it_is_named(folders):
    fault = "label text 'dull': its tokens depend on the text before it .*put fixed words"
    with pytest.raises(InputError, match=fault):
        asking(folders("llama", "wordpiece"), {"a": ["dull"], "b": ["rose"]}, "{text}{label}")


# ----------------------------------------------------------------------------------- 3. label texts

@pytest.mark.parametrize("name, label_texts, fault", [
    ("gpt2", {"a": ["good"], "b": ["dull", "good "]}, "'good' stands for 'a' and again for 'b'"),
    ("gpt2", {"a": ["good", "good"], "b": ["dull"]}, "'good' stands for 'a' and again for 'a'"),
    ("gpt2", {"a": [""], "b": ["dull"]}, "'a' has \"\": write a text of at least one word"),
    ("gpt2", {"a": ["good"], "b": [" \n\t"]}, "'b' has .*write a text"),
    ("gpt2", {"a": ["good"], "b": []}, r"'b' has \[\]: write a text of at least one word"),
    ("gpt2", {"a": ["good"], "c": ["dull"]}, "no text for 'b'"),
    ("gpt2", {"a": "good", "b": "dull", "c": "x"}, "no such class as 'c'"),
    ("gpt2", {"a": ["good"], "b": [3]}, "'b' has 3"),
    ("bert", {"a": ["good"], "b": ["好"]},
     "label text '好' is made of unknown tokens alone .*choose another word"),
    ("t5", {"a": ["good"], "b": ["😀"]}, "label text '😀' is made of unknown tokens alone"),
    ("bert", {"a": ["good"], "b": ["Good"]},
     "label texts 'good' and 'Good' are the same tokens .*choose another word"),
    ("bert", {"a": ["good"], "b": ["dull", "Ĝood"]},
     "label texts 'good' and 'Ĝood' are the same tokens")])
def test_label_texts_that_no_model_could_tell_apart(name, label_texts, fault, folders):
    with pytest.raises(InputError, match=fault):
        asking(folders(name), label_texts, template_for(name), labels=["a", "b"])


def test_unknown_beside_known_tokens_is_enough(folders):
    assert scores_of(asking(folders("t5"), {"a": ["good 😀"], "b": ["good"]})).isfinite().all()


def test_an_end_token_is_needed_where_a_label_begins_another(folders):
    label_texts = {"a": ["neutral"], "b": ["neutral positive"]}
    ends = {end: asking(folders("gpt2"), label_texts, end=end) for end in ("auto", "none", "eos")}
    assert [model.head.end for model in ends.values()] == ["eos", "none", "eos"]
    assert pieces_of(ends["auto"]) == {"neutral": ["Ġneutral", "<|endoftext|>"],
                                       "neutral positive": ["Ġneutral", "Ġpositive",
                                                            "<|endoftext|>"]}
    assert pieces_of(ends["none"]) == {"neutral": ["Ġneutral"],
                                       "neutral positive": ["Ġneutral", "Ġpositive"]}
    with_end, without = (scores_of(ends[end]) for end in ("auto", "none"))
    assert (without[:, 0] > without[:, 1]).all(), (
        "what begins another is never less likely, where nothing ends it")
    assert (with_end < without).all(), "an end token is one more factor"
    assert asking(folders("gpt2"), APART).head.end == "none", "no label here begins another"


def test_only_with_an_end_token_can_the_longer_label_win(folders):
    """A model is made that ends behind "neutral positive", and never behind "neutral"."""
    model = asking(folders("gpt2"), {"a": ["neutral"], "b": ["neutral positive"]})
    (ids, _), = model.encode(["soup"])[0]
    behind = [torch.tensor([ids + model.tokenizer.ids(text)])
              for text in (" neutral", " neutral positive")]
    with torch.no_grad():
        one, two = (model.backbone(row, torch.ones_like(row))[0, -1] for row in behind)
        model.backbone.word_embeddings.weight[model.tokenizer.eos_id] = (
            60 * (two - one) / (two - one).norm() ** 2)
    found = scores_of(model, ["soup"])[0]
    change_prompt(model, end="none")
    without = scores_of(model, ["soup"])[0]
    assert found[1] > found[0] and without[1] < without[0], f"{found.tolist()}, {without.tolist()}"


def test_synonyms_that_begin_alike_need_an_end_too(folders):
    assert asking(folders("gpt2"),
                  {"a": ["neutral", "neutral positive"], "b": ["dull"]}).head.end == "eos"


@pytest.mark.parametrize("asked, fault", [
    ({"end": "eos"}, "this tokenizer has none: choose label texts of which none begins another"),
    ({"end": "stop"}, "end 'stop'.*auto, none, eos"),
    ({"score_by": "word"}, "score_by 'word'.*sum, token, char, byte")])
def test_ends_and_ways_that_there_are_not(asked, fault, folders):
    with pytest.raises(InputError, match=fault):
        asking(folders("llama", "wordpiece"), **asked)


# --------------------------------------------------------------------------------- 4. probabilities

@every_family
def test_probabilities_are_probabilities(name, folders):
    model = asking(folders(name), template=template_for(name))
    found = model.predict(TEXTS)
    assert (found.shape == (len(TEXTS), 3) and abs(found.sum(1) - 1).max() < 1e-6
            and (found > 0).all())
    order, model = ["good", "bad", "mixed"], model.double()
    swapped = asking(folders(name), {label: APART[label] for label in order},
                     template_for(name)).double().predict(TEXTS)
    expected = model.predict(TEXTS)[:, [LABELS.index(label) for label in order]]
    bound = ROUNDED * scores_of(model).abs().max().item()          # scores are handed on in float32
    assert abs(swapped - expected).max() <= bound, f"{name}: a class depends on its place"
    bound = fp32(width=48, depth=6) * scores_of(model).abs().max().item()
    assert abs(found - model.predict(TEXTS)).max() <= bound, (
        f"{name}: in float32 these are other probabilities")


@every_family
def test_synonyms_add_their_probabilities(name, folders):
    words = ["dull", "soup", "rain", "storm", "bread", "garden", "tree", "cloud", "wind", "salt",
             "seed", "rose"]
    alone = scores_of(asking(folders(name), {word: [word] for word in words}, template_for(name)))
    between = {(i, j): (alone[:, i] - alone[:, j]).abs().min().item() for i in range(12)
               for j in range(i)}
    one, two = min(between, key=between.get)                    # the most alike, so that both count
    other = next(number for number in range(12) if number not in (one, two))
    texts = {"class": [words[one], words[two]], "other": [words[other]]}
    model = asking(folders(name), texts, template_for(name))
    found, a, b = scores_of(model), alone[:, one], alone[:, two]
    assert apart((found[:, 0].exp() / (a.exp() + b.exp())), torch.ones(len(TEXTS))) < 1e-4, (
        f"{name}: probabilities add")
    gain = found[:, 0] - torch.maximum(a, b)
    assert (gain >= -1e-5).all(), f"{name}: a synonym lowers the score of its class"
    assert gain.max() > 0.1, (
        f"{name}: one text is so much likelier than the other that this tests nothing")
    assert apart(found[:, 1], alone[:, other]) < 1e-4, (
        f"{name}: a synonym of one class changes another")
    sums = text_log_probs(model, model.encode(TEXTS)[0])
    assert (model.head.texts == [words[one], words[two], words[other]]
            and apart(sums, alone[:, [one, two, other]]) < 1e-4)


# -------------------------------------------------------------------------------------- 5. score_by

@pytest.mark.parametrize("name", ["gpt2", "t5", "roberta"])
def test_scores_are_divided_as_asked(name, folders):
    texts = {"a": ["good day"], "b": ["dull", "so é" if name == "t5" else "so 😀 é"],
             "c": ["neutral"]}
    ways = {way: asking(folders(name), texts, template_for(name), score_by=way)
            for way in ("sum", "token", "char", "byte")}
    sums = text_log_probs(ways["sum"], ways["sum"].encode(TEXTS)[0]).double()
    flat = [text for several in texts.values() for text in several]
    odd = flat[2]
    tokens = list(map(len, pieces_of(ways["sum"]).values()))
    lengths = {"sum": [1] * 4, "token": tokens, "char": [8, 4, {"so é": 4}.get(odd, 6), 7],
               "byte": [8, 4, {"so é": 5}.get(odd, 10), 7]}
    for way, model in ways.items():
        by_hand = of_classes(sums / torch.tensor(lengths[way]), texts)
        assert apart(scores_of(model), by_hand) < 2e-5, f"{name}: score_by {way}"
        assert apart(text_log_probs(model, model.encode(TEXTS)[0]), sums) < 1e-4, (
            "text_scores are always sums")
    assert len({tuple(found) for found in lengths.values()}) == 4, (
        "or two ways are not told apart here")
    default = asking(folders(name), texts, template_for(name))
    assert torch.equal(scores_of(default), scores_of(ways["sum"])), (
        "as they are, where nothing is said")


# ------------------------------------------------------------------------------- 6. a shared prompt

INSTRUCTION = "Say of each review whether its mood is negative, neutral or positive."
SHOTS = [("a good soup", "positive"), ("the dull rain", "negative")]
MANY = [f"{word} {' '.join(TEXTS[number % 5].split()[:1 + number % 4])}"
        for number, word in enumerate(["soup", "old", "dull", "rain", "my", "big"] * 5)]
LONG = {name: {"n_positions": 320} if name == "gpt2" else {"max_position_embeddings": 320}
        for name in DECODERS}


@pytest.fixture(scope="module")
def long_folders(tmp_path_factory):
    """Decoders with room for an instruction and shots, without dropout, behind a byte-level
    tokenizer: short prompts."""
    made, calm = {}, dict(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)

    def get(name):
        if name not in made:
            changes = LONG[name] | (calm if name == "gpt2" else {})
            made[name] = folder_of(name, "bytes", tmp_path_factory.mktemp(name), **changes)
        return made[name]
    return get


def counted(model):
    """A list that grows by how many tokens each pass of the word embeddings reads."""
    read = []
    model.backbone.word_embeddings.register_forward_hook(
        lambda module, given, out: read.append(given[0].numel()))
    return read


def row_by_row(model, encoded):
    """Scores (N, C) of each row alone, with no shared beginning."""
    with torch.no_grad():
        return torch.cat([model(collate(encoded, [row])) for row in range(len(encoded))])


@every_decoder
def test_a_shared_prompt_is_read_once(name, long_folders):
    model = asking(long_folders(name), ALIKE, instruction=INSTRUCTION, shots=SHOTS)
    encoded, _ = model.encode(MANY)
    alone = row_by_row(model, encoded)
    rows = [ids for ids, _ in encoded]
    shared = next(place for place in range(999) if len({ids[place] for ids in rows}) > 1)
    assert shared > 60 and len(model.head.tree.node_tokens) > 2, "or there is little to share"
    read = counted(model)
    found = model.compute_logits(encoded, batch_size=7)
    assert apart(found, alone) <= 1e-5 * 2 * model.head.longest_label, (
        f"{name}: {apart(found, alone):.1g} apart from row by row")
    assert alone.std(0).min() > 0.02
    nodes = len(model.head.tree.node_tokens)
    expected = shared + sum(len(ids) - shared for ids in rows) + len(rows) * nodes
    assert sum(read) == expected, f"{name}: the shared beginning is not read just once"
    assert read.count(shared) == 1 and len(read) == 1 + 5, (
        "one pass for it, and one for each of the batches")


def test_nothing_shared_is_remembered(long_folders):
    model = asking(long_folders("llama"), instruction=INSTRUCTION, shots=SHOTS)
    encoded, _ = model.encode(MANY)
    before = model.compute_logits(encoded, batch_size=7)
    assert SHARED.get() is None
    with torch.no_grad():
        next(p for p in model.backbone.layers[0].parameters() if p.dim() == 2).mul_(1.3)
    after = model.compute_logits(encoded, batch_size=7)
    assert apart(after, before) > 1e-2, "keys and values of the old weights are still in use"
    assert apart(after, row_by_row(model, encoded)) <= 2e-5 * model.head.longest_label
    with pytest.raises(ZeroDivisionError):
        model.compute_in_batches(encoded, lambda batch: (model(batch), 1 / 0), 3)
    assert SHARED.get() is None, "after an error too"


def test_threads_share_nothing(long_folders):
    model = asking(long_folders("llama"), instruction=INSTRUCTION)
    texts = [text * (1 + number % 3) for number, text in enumerate(MANY)]
    alone, barrier = [model.predict([text]) for text in texts], threading.Barrier(2)
    read = model.head.read

    def wait_and_read(*given):
        barrier.wait(20)                         # both are in their `shared_work` before both read
        return read(*given)
    model.head.read = wait_and_read
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda text: model.predict([text]), texts[:len(texts) // 2 * 2]))
    assert max(abs(a - b).max() for a, b in zip(alone, together)) < 1e-6


def test_each_call_shares_what_its_own_rows_share(long_folders):
    model = asking(long_folders("llama"), instruction=INSTRUCTION)
    for texts in (MANY[:1], ["soup soup"] * 3, ["soup", "soup and bread"], MANY[:3]):
        encoded, _ = model.encode(texts)
        found, alone = model.compute_logits(encoded, batch_size=2), row_by_row(model, encoded)
        assert apart(found, alone) <= 2e-5 * model.head.longest_label, texts
    assert (common_length([[1, 2, 3], [1, 2, 3]]) == 2 and common_length([[1, 2], [1, 2, 3]]) == 1
            and common_length([[5], [6, 1]]) == 0)
    assert common_length([[7, 8, 9]]) == 2, "a token of each row is left over"


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3"])
def test_learning_shares_within_a_batch(name, long_folders):
    model = asking(long_folders(name), ALIKE, instruction=INSTRUCTION, shots=SHOTS).train()
    encoded, answers = model.encode(MANY[:6])[0], [0, 1, 2, 2, 1, 0]

    def gradients(batches):
        model.zero_grad()
        loss = 0.0
        for rows in batches:
            batch = collate(encoded, rows, labels=answers)
            part = class_loss(model(batch), batch.labels)
            part.backward()
            loss += part.item()
        return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    expected, alone = gradients([[row] for row in range(6)])
    read = counted(model)
    loss, together = gradients([list(range(6))])
    whole = sum(len(ids) for ids, _ in encoded)
    assert sum(read) < 0.6 * whole, (
        f"{name}: {sum(read)} tokens of {whole} are read: a batch that learns shares nothing")
    assert abs(loss - expected) <= 1e-4 * abs(expected), name
    assert set(alone) == set(together)
    for parameter, gradient in alone.items():
        unit = max(gradient.abs().max().item(), 1e-4)
        assert apart(together[parameter], gradient) <= 1e-4 * unit, (
            f"{name}: the gradient of {parameter} differs")


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_where_a_prompt_is_read_from_both_sides_nothing_is_shared(name, folders):
    model = asking(folders(name), template=template_for(name),
                   instruction="a big old tree near the garden. " * 2)
    encoded, _ = model.encode(MANY)
    assert common_length([ids for ids, _ in encoded]) > 16
    alone, read = row_by_row(model, encoded), counted(model)
    found = model.compute_logits(encoded, batch_size=7)
    assert apart(found, alone) <= 2e-5 * model.head.longest_label, name
    assert sum(read) >= sum(len(ids) for ids, _ in encoded), (
        f"{name}: an encoder reads each row whole")


@every_family
def test_the_loss_of_answers_is_minus_their_score(name, folders):
    model = asking(folders(name), ALIKE, template_for(name),
                   end="none" if name in MASKED else "eos")
    encoded, answers = model.encode(TEXTS)[0], [0, 1, 2, 1, 0]
    first = [own[0] for own in model.head.class_texts]
    sums = text_log_probs(model, encoded)
    expected = -sum(sums[row, first[answer]].item() for row, answer in enumerate(answers))
    with torch.no_grad():
        found = CompletionLoss(model.head.answer_lengths())(
            model, collate(encoded, range(5), labels=answers)).item()
    assert found == pytest.approx(expected, rel=1e-5), name


# ------------------------------------------------------------------------ 7. tokens around a prompt

@pytest.mark.parametrize("name, bos", [("llama", 1), ("gemma", 2)])
def test_exactly_one_token_begins_a_prompt(name, bos, folders):
    for ids, _ in asking(folders(name)).encode(TEXTS)[0]:
        assert ids[0] == bos and ids.count(bos) == 1, f"{name}: {ids[:3]}"


def test_a_second_beginning_is_refused(folders):
    for name, bos in (("llama", "<s>"), ("gemma", "<bos>")):
        once = asking(folders(name), template=bos + "review: {text}\nmood:")
        assert once.encode(TEXTS) == asking(folders(name)).encode(TEXTS), (
            f"{name}: one at the front is not doubled")
        with pytest.raises(InputError, match=f"text 2: .*{bos} stands inside a text"):
            once.encode(["soup", f"so {bos} up"])


@pytest.mark.parametrize("kind, first", [
    ("wordpiece", "[CLS]"), ("deberta", "[CLS]"), ("roberta", "<s>"), ("t5", None),
    ("bytes", None)])
def test_no_token_stands_between_prompt_and_label(kind, first, folders):
    model = asking(folders("llama", kind))
    tokenizer, prompt = model.tokenizer, "review: soup\nmood:"
    ids = model.encode(["soup"])[0][0][0]
    assert ids == ([] if first is None else [tokenizer.vocab[first]]) + tokenizer.ids(prompt), kind
    assert tokenizer.prompt_ids(tokenizer.ids(prompt)) == ids


# -------------------------------------------------------------------------------------- 8. too long

LENGTHY = "soup and bread with salt " * 30


def test_the_text_alone_is_cut(folders):
    asked = dict(instruction="Say it.", shots=[("a tree", "positive")],
                 template="review: {text}\nmood was: {label}")
    front, behind = "Say it.\n\nreview: a tree\nmood was: positive\n\nreview: ", "\nmood was:"
    whole = asking(folders("gpt2"), ALIKE, **asked)
    least = len(whole.tokenizer.ids(front + "s" + behind)) + whole.head.longest_label
    for max_length in (least, least + 1, least + 17, 160):
        model = asking(folders("gpt2"), ALIKE, max_length=max_length, **asked)
        encoded, cut = model.encode([LENGTHY, "s"])
        text = model.tokenizer.decode(encoded[0][0])
        assert cut == 1 and text.startswith(front) and text.endswith(behind), (
            f"{max_length}: {text!r}")
        kept = text[len(front):-len(behind)]
        assert kept and LENGTHY.startswith(kept), (
            f"{max_length}: {kept!r} is not the beginning of the text")
        assert max_length - 2 <= len(encoded[0][0]) + model.head.longest_label <= max_length, (
            "a space may be dropped at the cut")
        assert model.tokenizer.decode(encoded[1][0]) == front + "s" + behind
        assert model.compute_logits(encoded).isfinite().all()
        assert (model.head.count_tokens(model.tokenizer, ("s",)) == least
                and model.head.count_tokens(model.tokenizer, (LENGTHY,)) > 160)
    model = asking(folders("gpt2"), ALIKE, max_length=least - 1, **asked)
    fixed = len(model.tokenizer.ids(front + behind))
    fault = rf"^text 1: the prompt takes {fixed} tokens without its texts, and {fixed} are allowed"
    with pytest.raises(InputError, match=fault):
        model.encode([LENGTHY])


@pytest.mark.parametrize("name", ["t5", "bert", "roberta", "deberta-v3"])
def test_the_text_alone_is_cut_in_other_places_too(name, folders):
    template = ("review: {text}\nmood: {label}, it was." if name != "t5"
                else "review: {text}\nmood: ")
    model = asking(folders(name), APART, template, max_length=60)
    (ids, _), = model.encode([LENGTHY])[0]
    tokenizer, room = model.tokenizer, 60 - (0 if name == "t5" else model.head.longest_label - 1)
    before = tokenizer.prompt_ids(tokenizer.ids("review: soup and"))
    behind = tokenizer.ids("\nmood:" if name == "t5" else f"\nmood: {tokenizer.mask_text}, it was.")
    behind += [1 if name == "t5" else tokenizer.vocab["</s>" if name == "roberta" else "[SEP]"]]
    assert ids[:len(before)] == before and room - 3 <= len(ids) <= room, (
        f"{name}: {len(ids)} tokens where {room} have room")
    assert ids[-len(behind) + 1:] == behind[1:], f"{name}: what stands behind the text is not whole"
    assert scores_of(model, [LENGTHY, "soup"]).isfinite().all()


def test_a_mask_inside_a_word_costs_what_it_splits(tmp_path):
    folder = folder_of("bert", "wordpiece", tmp_path)
    for max_length in range(30, 40):
        model = asking(folder, {"a": ["x"], "b": ["y"]}, "{text} ro{label}se",
                       max_length=max_length)
        (ids, _), = model.encode([LENGTHY])[0]
        assert len(ids) <= max_length, (
            f"{len(ids)} tokens, {max_length} allowed: 'rose' is one, 'ro[MASK]se' are five")


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "mistral"])
def test_an_instruction_and_shots_stand_before_each_text(name, folders):
    shots = [("a tree", "positive"), ("rain", "dull")]
    model = asking(folders(name), template=template_for(name),
                   instruction=" Say it. \n", shots=shots)
    tokenizer, tail = model.tokenizer, ", it was." if name in MASKED else ""
    front = f"Say it.\n\nreview: a tree\nmood: positive{tail}\n\nreview: rain\nmood: dull{tail}\n\n"
    whole = f"{front}review: soup\nmood:" + (f" {tokenizer.mask_text}{tail}" if tail else "")
    frame = (tokenizer.prompt_ids if name == "mistral"
             else lambda ids: tokenizer.add_special_tokens(ids)[0])
    assert model.encode(["soup"]) == (
        [(frame(tokenizer.ids(whole)), [0] * len(frame(tokenizer.ids(whole))))], 0)


def test_of_several_texts_the_longest_is_cut_first(folders):
    fields = ("prompt", "response_a", "response_b")
    template = "[{prompt}]<{response_a}>({response_b}) better: {label}"
    model = asking(folders("gpt2"), {"a": ["good"], "b": ["dull"]}, template, fields=fields,
                   max_length=90)
    rows = [("why is it so", LENGTHY, "it was"), (LENGTHY, LENGTHY, "x"), ("a", "b", LENGTHY),
            (LENGTHY,) * 3]
    encoded, cut = model.encode(rows)
    assert cut == 4 and model.compute_logits(encoded).isfinite().all()
    for (ids, _), row in zip(encoded, rows):
        text = model.tokenizer.decode(ids)
        assert text[0] == "[" and text.endswith(") better:") and len(ids) + 1 <= 90
        kept = [text[1:].split("]<")[0], text.split("]<")[1].split(">(")[0],
                text.split(">(")[1][:-len(") better:")]]
        assert all(part and whole.startswith(part) for part, whole in zip(kept, row)), kept
        short = [len(part) for part, whole in zip(kept, row) if len(part) < len(whole)]
        whole = [len(part) for part, full in zip(kept, row) if part == full]
        assert max(short) - min(short) <= 1 and (not whole or max(whole) <= max(short) + 1), (
            f"{kept}: a shorter text is cut")
    with pytest.raises(InputError, match="text 2: .*needs 3 text"):
        model.encode([rows[0], ("a", "b")])
    with pytest.raises(InputError, match="text 1: a text is a string, or a tuple of 3"):
        model.encode([("a", "b", "c", "d")])


# ----------------------------------------------------------------------------- 9. what does not fit

@pytest.mark.parametrize("name, mask", [("bert", "[MASK]"), ("roberta", "<mask>"),
                                        ("deberta-v3", "[MASK]"), ("modernbert", "[MASK]")])
def test_a_mask_of_the_users_own_is_refused(name, mask, folders):
    model = asking(folders(name), template=MASKED_TEMPLATE)
    with pytest.raises(InputError, match=f"text 2: a text holds the tokenizer's own "
                       f"{re.escape(mask)}: it cannot be told"):
        model.encode(["soup", f"so {mask} up"])


def test_a_text_behind_the_label_is_for_encoders(folders):
    template = "{label}: {text}"
    for name in ("gpt2", "t5"):
        with pytest.raises(InputError, match="a field stands after {label}.*put it before"):
            asking(folders(name), template=template)
    model = asking(folders("bert"), template=template)
    assert [scores_of(model).shape, scores_of(model).std(0).min() > 0.02] == [(5, 3), True]
    tokenizer = model.tokenizer
    assert model.encode(["soup"])[0][0][0] == tokenizer.encode("[MASK]: soup")


@pytest.mark.parametrize("name", ["bert", "llama", "flan-t5"])
def test_a_checkpoint_without_language_model_head_is_named(name, tmp_path):
    changes = {} if name == "bert" else {"tie_word_embeddings": False}
    folder = folder_of(name, TOKENIZERS[name], tmp_path, lm_head=False, **changes)
    with pytest.raises(InputError, match="this checkpoint has no language-model head"):
        asking(folder, template=template_for(name))


def test_a_tokenizer_without_mask_token(tmp_path):
    folder_of("bert", "wordpiece", tmp_path)
    WordPiece.from_vocab([piece for piece in [*PIECES, ":", *WORDS] if piece != "[MASK]"]).save(
        tmp_path)
    with pytest.raises(InputError,
                       match="has no mask token: label texts cannot be read from this encoder"):
        asking(tmp_path)


def test_an_end_token_in_place_of_a_mask(folders):
    with pytest.raises(InputError, match="end eos"):
        asking(folders("roberta"), template=MASKED_TEMPLATE, end="eos")


def test_a_blank_text_is_named(folders):
    with pytest.raises(InputError, match="text 2 is empty"):
        asking(folders("gpt2"), template="{text}:").encode(["soup", " "])


def test_an_encoder_writes_no_answers_of_its_own(folders):
    with pytest.raises(InputError, match="reads text and writes none"):
        asking(folders("bert"), template=MASKED_TEMPLATE).generate(TEXTS)


# -------------------------------------------------------------------------------------- 10. folders

ASKED = dict(instruction=INSTRUCTION[:20], shots=SHOTS[:1], score_by="char")


@every_family
def test_a_folder_gives_the_same_bits_again_and_to_transformers_the_same_logits(
        name, folders, tmp_path):
    model = asking(folders(name), ALIKE, template_for(name), max_length=140, **ASKED)
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert (again.encode(TEXTS) == model.encode(TEXTS) and again.labels == LABELS
            and again.max_length == 140)
    assert (again.predict(TEXTS) == model.predict(TEXTS)).all(), (
        f"{name}: other probabilities from its own folder")
    assert not again.report.newly_initialised and not again.report.dropped, (
        f"{name}: {again.report.summary()}")
    assert again.head.label_options == model.head.label_options
    transformers = imported("transformers")
    kind = "MaskedLM" if name in MASKED else "Seq2SeqLM" if name in ANSWERING else "CausalLM"
    load = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
    theirs, loading = loaded(load, tmp_path, output_loading_info=True)
    assert not any(loading.values()), f"{name}: {loading}"
    ours, ids = load_backbone(tmp_path), torch.tensor([[7, 30, 12, 9, 41, 8]])
    with torch.no_grad(), may_refuse():
        if kind == "Seq2SeqLM":
            begun = torch.tensor([[0]])
            expected = theirs.eval()(input_ids=ids, decoder_input_ids=begun).logits[:, 0]
            begin, mask, context = ours.prepare_prompt(ids, torch.ones_like(ids))
            rows = ours.make_rows(mask)
            found = ours.logits(rows.final_tokens(ours.hidden_states(begin, rows, context)))
        else:
            expected = theirs.eval()(input_ids=ids).logits
            found = ours.logits(ours(ids, torch.ones_like(ids)))
    assert apart(found, expected) <= 2e-5, f"{name}: transformers gives other logits"


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_what_a_model_writes_unasked_is_text(name, folders, tmp_path):
    model = asking(folders(name), APART)
    model.save(tmp_path)
    written = model.generate(TEXTS, 5)
    assert (written == Classifier.load(tmp_path).generate(TEXTS, 5)
            and list(map(type, written)) == [str] * 5)
    assert written == [model.generate([text], 5)[0] for text in TEXTS], (
        "batch mates change what is written")


def test_a_calibration_comes_back_and_is_used(folders, tmp_path):
    model = asking(folders("gpt2"))
    raw = scores_of(model)
    model.task.set_calibration(Calibration([-3.0, 1.0, 0.5], 2.0))
    expected = ((raw - torch.tensor([-3.0, 1.0, 0.5])) / 2).softmax(1)
    assert apart(torch.from_numpy(model.predict(TEXTS)), expected) < 1e-6
    assert apart(expected, raw.softmax(1)) > 0.05
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert ((again.predict(TEXTS) == model.predict(TEXTS)).all()
            and again.task.calibration == model.task.calibration)
    again.task.set_calibration(None)
    assert torch.equal(scores_of(again), raw)


def edited(model, folder, **changes):
    """The folder of a saved model, with these keys changed in config.json's part on the readout."""
    model.save(folder)
    config = json.loads((folder / "config.json").read_text())
    config["minillmclf"]["readout"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


FAULTS = {
    "an unknown key": {"tone": "kind"}, "an unknown readout": {"readout": "oracle"},
    "no text for a class": {"label_texts": {"bad": ["x"]}},
    "a blank label text": {"label_texts": {"bad": [" "], "mixed": ["a"], "good": ["b"]}},
    "the same text twice": {"label_texts": {"bad": ["a"], "mixed": ["a"], "good": ["b"]}},
}
UNNAMED = {                                # InputError, but it does not name the file
    "a template without its field": {"template": "text"},
    "a field that there is not": {"template": "{foo} {text}"},
    "a shot of two texts": {"shots": [[["a", "b"], "x"]]},
    "a shot without answer": {"shots": [[["a"], ""]]},
    "an unknown end": {"end": "stop"}, "an unknown way": {"score_by": "word"},
    "a field twice": {"fields": ["text", "text"]},
    "a label that merges": {"template": "{text} negati{label}",
                            "label_texts": {"bad": ["ve"], "mixed": ["a"], "good": ["b"]},
                            "shots": []},
}
CRASHES = {                                # TypeError, ValueError or AttributeError
    "a template that is a number": {"template": 5}, "shots that are numbers": {"shots": [1]},
    "shots that are text": {"shots": "ab"},
    "an answer that is a number": {"shots": [["a", 3]]},
    "a shown text that is a number": {"shots": [[[3], "x"]]},
    "an instruction that is a number": {"instruction": 5},
    "fields that are numbers": {"fields": [1]},
    "fields that are one": {"fields": 5},
    "label texts that are a list": {"label_texts": ["x"]},
    "label texts that are a number": {"label_texts": 5},
}
FAULTS = [pytest.param(change, id=fault) for fault, change in (FAULTS | UNNAMED | CRASHES).items()]


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_settings_are_named_with_their_file(fault, folders, tmp_path):
    folder = edited(asking(folders("gpt2")), tmp_path, **fault)
    with pytest.raises(InputError) as error:
        Classifier.load(folder)
    assert str(folder / "config.json") in str(error.value) and "\n" not in str(error.value), (
        str(error.value))


def test_a_readout_that_is_no_object_is_named(folders, tmp_path):
    asking(folders("gpt2")).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ([1], "labels", 3):
        config["minillmclf"]["readout"] = wrong
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="config.json: minillmclf"):
            Classifier.load(tmp_path)


def test_a_calibration_that_is_no_object_is_named(folders, tmp_path):
    asking(folders("gpt2")).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["minillmclf"]["calibration"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("readout", [{}, {"readout": "labels"}])
def test_no_texts_have_no_scores(readout, folders):
    assert Classifier.from_backbone(folders("gpt2"), LABELS, **readout).predict([]).shape == (0, 3)
