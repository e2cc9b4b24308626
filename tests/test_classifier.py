"""Do classifiers travel both ways between this package and transformers, with the same answers and
label names?

And what needs no reference: a new head is seeded, an old one dropped with a word; answers come in
the order of the texts; a pooled head comes back as it was; a long pair keeps both its parts; what
cannot be right is refused.
"""

import json
import random
import shutil

import pytest
import small
import torch
from conftest import MODELS, first_difference
from hypothesis import given, settings, strategies as st
from live import imported, may_refuse
from safetensors.torch import load_file, save_file

from minillmclf import train
from minillmclf.inspect import __main__ as inspect
from minillmclf.cli.rows import load_dataset
from minillmclf.compare.comparison import obstacle
from minillmclf.compare.configurations import make_configurations, read_sweep
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.head import POOLINGS, attention_weights, attention_layers
from minillmclf.errors import InputError
from minillmclf.models import load_backbone, save_backbone
from minillmclf.text.batch import Batch, collate
from minillmclf.text.cutting import cut_longest
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.tuning import tune

BOTH = ("bert_classifier", "distilbert_classifier", "roberta_classifier", "xlm_roberta_classifier")
SINGLE = ["the film was slow, and the old book too", "no", "why not?",
          "it is a new day: they love it", "a", "lost!"]
PAIRS = [("is it late?", "it was late again"), ("a", "no refund, no answer; nothing but the cold."),
         ("they love the old film", "no")]


@pytest.fixture(scope="module")
def transformers():
    return imported("transformers")


@pytest.fixture
def folder(tmp_path):
    """folder(name) -> a copy of a stored model, with other values in its config.json if asked."""
    def copy(name, **config):
        into = tmp_path / name
        shutil.copytree(MODELS / name, into, dirs_exist_ok=True)
        path = into / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return into
    return copy


def scores(model, texts, batch_size=64):
    return model.compute_logits(model.encode(texts)[0], batch_size)


@torch.inference_mode()
def their_logits(model, tokenizer, texts):
    """What transformers' model and tokenizer answer for one padded batch of texts, or of pairs."""
    first, second = (texts, None) if isinstance(texts[0], str) else map(list, zip(*texts))
    return model.eval()(**tokenizer(first, second, padding=True, return_tensors="pt")).logits


def asked(transformers, name):
    """What transformers does with its own stored model `name`: a control for what we saved."""
    folder = MODELS / name
    for kind in (transformers.AutoModelForSequenceClassification, transformers.AutoModel):
        kind.from_pretrained(folder).eval()(input_ids=torch.tensor([[3, 4]]),
                                            attention_mask=torch.ones(1, 2))
    transformers.AutoTokenizer.from_pretrained(folder)(["no"], ["why not?"], padding=True,
                                                       return_tensors="pt")
    transformers.pipeline("text-classification", model=str(folder))({
        "text": "no", "text_pair": "why not?"})


def differs(ours, theirs, tolerance=1e-5):
    return first_difference({"logits": ours}, {"logits": theirs}, tolerance)


# ---------------------------------------------------------------------------------------- both ways

@pytest.mark.parametrize("name", BOTH)
def test_transformers_reads_what_we_save(name, transformers, tmp_path):
    model = Classifier.load(MODELS / name)
    model.labels = ["zebra", "ape", "newt"]  # neither sorted nor those of the file
    model.save(tmp_path)
    with may_refuse(lambda: asked(transformers, name)):
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        expected = [their_logits(again, tokenizer, texts) for texts in (SINGLE, PAIRS)]
    assert ("token_type_ids" in tokenizer.model_input_names) == (name == "bert_classifier"), (
        "no type for who takes none")
    for texts, logits in zip((SINGLE, PAIRS), expected):
        found = differs(scores(model, texts), logits)
        assert found is None, f"{name}: transformers answers otherwise for {texts}, {found}"
    assert again.config.id2label == {0: "zebra", 1: "ape", 2: "newt"}
    assert again.config.label2id == {"zebra": 0, "ape": 1, "newt": 2}
    assert again.config.problem_type == "single_label_classification", (
        "it would be guessed, perhaps wrongly")


@pytest.mark.parametrize("name", BOTH)
def test_the_pipeline_of_transformers_gives_the_same_label_and_score(name, transformers, tmp_path):
    model = Classifier.load(MODELS / name)
    model.save(tmp_path)
    with may_refuse(lambda: asked(transformers, name)):
        ask = transformers.pipeline("text-classification", model=str(tmp_path))
        answers = [ask(text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]})
                   for text in SINGLE + PAIRS]
    for text, row, found in zip(SINGLE + PAIRS, model.predict(SINGLE + PAIRS), answers):
        found = found[0] if isinstance(found, list) else found
        assert found["label"] == model.labels[row.argmax()], f"{name}: another label for {text!r}"
        assert abs(found["score"] - row.max()) <= 1e-5, f"{name}: another score for {text!r}"


@pytest.mark.parametrize("names", [None, list("zayb"), [str(9 - i) for i in range(11)]],
                         ids=["two", "four", "eleven"])
@pytest.mark.parametrize("name", BOTH)
def test_we_read_what_transformers_saves(name, names, transformers, tmp_path):
    from reference import make_fixtures
    count = 2 if names is None else len(names)
    with may_refuse():
        config = transformers.AutoConfig.from_pretrained(MODELS / name)
        config.num_labels = count
        if names is not None:
            config.id2label = dict(enumerate(names))
            config.label2id = {label: i for i, label in enumerate(names)}
        theirs = transformers.AutoModelForSequenceClassification.from_config(config)
        make_fixtures.exaggerate(theirs, seed=count).save_pretrained(tmp_path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / name)
        tokenizer.save_pretrained(tmp_path)
        expected = [their_logits(theirs, tokenizer, texts) for texts in (SINGLE, PAIRS)]
    model = Classifier.load(tmp_path)
    assert model.labels == [theirs.config.id2label[i] for i in range(count)], (
        "another order than the numbers")
    for texts, logits in zip((SINGLE, PAIRS), expected):
        found = differs(scores(model, texts, 2), logits)
        assert found is None, f"{name}: we answer otherwise for {texts}, {found}"
    assert not model.report.dropped and not model.report.newly_initialised, model.report.summary()


@pytest.mark.parametrize("kind", ["body", "classifier"])
@pytest.mark.parametrize("name", BOTH)
def test_transformers_reads_a_saved_body(name, kind, transformers, tmp_path):
    body = load_backbone(MODELS / name)
    if kind == "body":
        save_backbone(body, tmp_path)
    else:
        Classifier.load(MODELS / name).save(tmp_path)
    batch = load_file(MODELS / name / "expected.safetensors")
    ids, mask, types = (batch[key] for key in ("ids", "mask", "types"))
    with torch.inference_mode():
        with may_refuse(lambda: asked(transformers, name)):
            theirs, loading = transformers.AutoModel.from_pretrained(
                tmp_path, output_loading_info=True)
            hidden = theirs.eval()(input_ids=ids, attention_mask=mask,
                                   token_type_ids=types).last_hidden_state
        assert all("pooler" in key for key in loading["missing_keys"]), (
            f"not found in our file: {loading['missing_keys']}")
        found = differs(body(ids, mask, types)[mask.bool()], hidden[mask.bool()])
    assert found is None, f"{name}: the body in transformers is another, {found}"


@pytest.mark.parametrize("name", BOTH)
def test_saving_what_was_saved_gives_the_same_bytes(name, tmp_path):
    Classifier.load(MODELS / name).save(tmp_path / "once")
    Classifier.load(tmp_path / "once").save(tmp_path / "twice")
    once, twice = ({path.name: path.read_bytes() for path in (tmp_path / run).iterdir()}
                   for run in ("once", "twice"))
    assert set(once) == {"config.json", "model.safetensors", "tokenizer.json",
                         "tokenizer_config.json"}
    assert once == twice, (
        f"these changed: {[file for file in once if once[file] != twice.get(file)]}")


# --------------------------------------------------------------------------------------- a new head

@pytest.mark.parametrize("name, last", [
    (name, "classifier.out_proj" if "roberta" in name else "classifier") for name in BOTH])
def test_an_old_last_layer_is_dropped_with_a_word_and_the_rest_kept(name, last, tmp_path):
    model = Classifier.from_backbone(MODELS / name, ["no", "yes"])
    old, parameters = Classifier.load(MODELS / name), dict(model.named_parameters())
    assert not model.training and not old.training, "dropout would be on"
    assert model.labels == ["no", "yes"] and scores(model, SINGLE).shape == (len(SINGLE), 2)
    assert sorted(model.report.dropped) == [last + ".bias", last + ".weight"]
    assert model.report.newly_initialised == ["head.out.weight", "head.out.bias"]
    assert model.report.summary() == f"{len(model.report.loaded)} tensors loaded, 2 dropped, 2 new"
    kept = {path: p for path, p in old.named_parameters() if not path.startswith("head.out")}
    assert first_difference(parameters, kept, 0.0) is None, "a trained tensor changed on the way"


@pytest.mark.parametrize("name", BOTH)
def test_a_new_head_is_its_seed(name, tmp_path):
    files = []
    for run, seed in enumerate([0, 0, 1]):
        torch.manual_seed(run)  # what happened before is of no account
        Classifier.from_backbone(MODELS / name, ["no", "yes"], seed=seed).save(tmp_path / str(run))
        files.append((tmp_path / str(run) / "model.safetensors").read_bytes())
    assert files[0] == files[1], "the same seed gave another head"
    assert files[0] != files[2], "another seed gave the same head"


def test_a_body_with_a_language_model_head_gets_a_whole_new_head(folder):
    lm = folder("bert_masked_lm")
    WordPiece.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "a", "b"]).save(lm)
    model = Classifier.from_backbone(lm, ["x", "y"], seed=4)
    assert model.report.newly_initialised == ["head.dense.weight", "head.dense.bias",
                                              "head.out.weight", "head.out.bias"]
    assert model.report.dropped
    assert all(tensor.startswith("cls.predictions.") for tensor in model.report.dropped)
    said = "no classification head in it .no tensor classifier.weight.: fine-tune"
    with pytest.raises(InputError, match=said):
        Classifier.load(lm)


def test_a_body_that_lacks_a_tensor_is_refused_though_the_head_is_new(folder):
    broken = folder("bert_classifier")
    tensors = load_file(broken / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, broken / "model.safetensors")
    said = "1 fault: nothing in the file fills backbone.layers.1.down_proj.weight"
    with pytest.raises(InputError, match=said):
        Classifier.from_backbone(broken, ["x", "y"])


@pytest.mark.parametrize("labels, words", [
    ("no", "list of names"), (None, "list of names"), (({"a"} | {"b"}), "list of names"),
    (iter("ab"), "list of names"), ([0, 1], "got 0"), ([None, "a"], "got None"),
    ([["a"], ["b"]], "got \\['a'\\]"), (["a", " "], "got ' '"), (["a", "\ud83d"], "each a text"),
    (["a ", "a"], "two different names"), (["a"], "two different names")])
def test_labels_that_are_no_names_are_refused(labels, words, folder):
    with pytest.raises(InputError, match=words) as error:
        Classifier.from_backbone(folder, labels)
    assert "\n" not in str(error.value)


def test_an_architecture_alone_takes_no_weight_from_the_file():
    make = Classifier.from_backbone
    trained, fresh, again = (make(MODELS / "bert_classifier", ["x", "y"], seed=1,
                                  pretrained=pretrained) for pretrained in (True, False, False))
    own = {path: p for path, p in trained.named_parameters() if not path.startswith("head.out")}
    same = [
        path for path, p in fresh.named_parameters() if path in own and torch.equal(p, own[path])]
    assert not same, f"these came from the file: {same}"
    assert (first_difference(dict(fresh.named_parameters()), dict(again.named_parameters()), 0.0)
            is None)


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("name", BOTH)
def test_a_pooled_head_comes_back_exactly(name, how, tmp_path):
    model = Classifier.from_backbone(MODELS / name, ["x", "y"], pool=how, max_length=17)
    torch.nn.init.normal_(model.head.out.weight, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert (again.head.pool_option, again.max_length, again.labels, again.head.pooling) == (
        how, 17, ["x", "y"], how)
    found = differs(scores(again, SINGLE + PAIRS), scores(model, SINGLE + PAIRS), 0.0)
    assert found is None, f"{how}: other answers after loading, {found}"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "MinillmclfPooledClassifier"]
    others = [other for other in POOLINGS if other != how]
    for other in others:
        model.head.pooling = other
        assert differs(scores(model, SINGLE), scores(again, SINGLE), 1e-3), (
            f"{how} and {other} give the same answers")


# ------------------------------------------------------------------------------------------ answers

@pytest.mark.parametrize("name", BOTH)
def test_answers_come_in_the_order_of_the_texts(name):
    model = Classifier.load(MODELS / name)
    texts = SINGLE + PAIRS + [word for text in SINGLE for word in text.split()]
    random.Random(0).shuffle(texts)
    alone = torch.cat([scores(model, [text]) for text in texts])
    for batch_size in (1, 2, 7, 100):
        found = differs(scores(model.train(), texts, batch_size), alone)
        assert found is None, (
            f"in batches of {batch_size} texts change places, or dropout is on: {found}")
    probabilities = model.predict(texts, 5)
    assert abs(probabilities.sum(1) - 1).max() <= 1e-6
    assert (probabilities.argmax(1) == alone.argmax(1).numpy()).all()


@pytest.mark.parametrize("name", BOTH)
@torch.inference_mode()
def test_padding_on_the_left_gives_the_same_scores(name):
    model = Classifier.load(MODELS / name)
    encoded, _ = model.encode(SINGLE + PAIRS)
    right = collate(encoded, range(len(encoded)), model.tokenizer.pad_id)
    shifts = (1 - right.mask).sum(1).tolist()
    ids, mask, types = (torch.stack([row.roll(shift) for row, shift in zip(x, shifts)])
                        for x in (right.ids, right.mask, right.types))
    found = differs(model(Batch(ids, mask, types, None, right.rows)), model(right))
    assert found is None, f"{name}: the head reads a padded place, {found}"


@pytest.mark.parametrize("own", [None, 0.6], ids=["dropout of the body", "dropout of its own"])
@pytest.mark.parametrize("name", BOTH)
def test_dropout_stands_where_transformers_has_it(name, own, transformers, folder):
    numbers = dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0,
                   classifier_dropout=own)
    if "distilbert" in name:
        numbers = dict(dropout=0.3, attention_dropout=0.0, seq_classif_dropout=own or 0.2)
    chosen = folder(name, **numbers)
    with may_refuse():
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(chosen).train()
    model = Classifier.load(chosen).train()
    (row,), _ = model.encode(SINGLE[:1])
    # no padding, and the states of all tokens: both draw as many numbers
    batch = collate([row] * 3, [0, 1, 2])
    torch.manual_seed(0)
    states = model.backbone.states(batch.ids, batch.mask, batch.types)
    ours = model.head(states, batch.mask).detach()
    torch.manual_seed(0)
    with may_refuse():
        given = {"token_type_ids": batch.types} if model.backbone.TOKEN_TYPES else {}
        expected = theirs(input_ids=batch.ids, attention_mask=batch.mask, **given).logits.detach()
    assert differs(ours, expected) is None, (
        f"{name}: the same random numbers drop other things: {ours} and {expected}")


# --------------------------------------------------------------------------------------- long texts

@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3), budget=st.integers(1, 30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_budget_is_used_up_and_no_short_part_is_cut_for_a_longer_one(lengths, budget):
    parts = [list(range(length)) for length in lengths]
    kept, cut = cut_longest(parts, budget)
    assert sum(map(len, kept)) == min(sum(lengths), budget)
    assert cut == sum(lengths) - sum(map(len, kept))
    assert all(part == whole[:len(part)] for part, whole in zip(kept, parts)), (
        "a part loses its end only")
    for part, whole in zip(kept, parts):
        assert part == whole or len(part) >= max(map(len, kept)) - 1, (
            "a part was cut while a longer one was left")


@pytest.mark.parametrize("config, document, kept", [
    ("left", None, "tail"), (None, "Left", "tail"), ("right", "Left", "head"),
    (None, None, "head")])
def test_a_long_text_is_cut_on_the_side_that_the_tokenizer_says(config, document, kept,
                                                                transformers, tmp_path):
    folder = small.bert_folder(tmp_path / "bert")
    Classifier.from_backbone(folder, ["x", "y"]).save(folder)
    truncation = document and {"direction": document, "max_length": 9, "strategy": "LongestFirst",
                               "stride": 0}
    for name, more in (("config.json", {"minillmclf": ...}), ("tokenizer.json",
                       {"truncation": truncation}),
                       ("tokenizer_config.json", {"truncation_side": config or ...})):
        content = json.loads((folder / name).read_text()) | more
        content = {key: value for key, value in content.items() if value is not ...}
        (folder / name).write_text(json.dumps(content))
    Classifier.load(folder).save(tmp_path / "again")
    assert Classifier.from_backbone(folder, ["x", "y"]).head.keep == "head", "a new run has its own"
    long = " ".join(["rose soup rain tree salt wind"] * 30)
    for place in (folder, tmp_path / "again"):
        ours = Classifier.load(place)
        assert ours.head.keep == kept
        with may_refuse(), torch.no_grad():
            tokenizer = transformers.AutoTokenizer.from_pretrained(place)
            theirs = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
            rows = [tokenizer(*texts, truncation=True, max_length=ours.max_length - 1,
                              return_tensors="pt") for texts in ((long,), (long, "the " * 90))]
            expected = torch.cat([theirs(**row).logits for row in rows])
        ours.max_length -= 1                    # else head and tail of this text are alike
        found = torch.cat([ours.compute_logits(ours.encode([texts])[0])
                           for texts in ((long,), (long, "the " * 90))])
        assert torch.allclose(found, expected, atol=1e-5), f"{place.name}: other tokens are kept"


@pytest.mark.parametrize("name", BOTH)
def test_long_pairs_keep_both_parts(name):
    model = Classifier.load(MODELS / name)
    long = "the slow old film " * 30
    for pair in ((long, "is it late?"), ("is it late?", long), (long, long)):
        (encoded,), shortened = model.encode([pair])
        ids, room = encoded[0], model.max_length - model.tokenizer.num_special_tokens(True)
        parts = [model.tokenizer.ids(part) for part in pair]
        assert shortened == 1 and len(ids) == model.max_length
        for part in parts:
            least = part[:room // 2]
            assert any(ids[i:i + len(least)] == least for i in range(len(ids))), (
                f"{name}: {part} is not in {ids}")
    assert model.encode(["no", ("no", "why")])[1] == 0
    assert scores(model, [(long, long), long]).isfinite().all()


@pytest.mark.parametrize("name", BOTH)
def test_truncation_is_longest_first_as_in_transformers(name, transformers):
    model = Classifier.load(MODELS / name)
    with may_refuse():
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / name)
    for max_length in range(model.tokenizer.num_special_tokens(True) + 1, 17):
        model.max_length = max_length
        pairs = [(" ".join("abcdefghi"[:a]), " ".join("rstuvwxyz"[:b])) for a in range(1, 10)
                 for b in range(1, 10)]
        texts = [*pairs, *(first for first, _ in pairs[::9])]
        for text, (ids, types) in zip(texts, model.encode(texts)[0]):
            text = [text] if isinstance(text, str) else text
            with may_refuse():
                theirs = tokenizer(*text, truncation="longest_first", max_length=max_length,
                                   return_token_type_ids=True)
            assert ids == theirs["input_ids"], (
                f"{name}: {text} in {max_length}: {ids}, not {theirs['input_ids']}")
            assert types == theirs["token_type_ids"]


# ---------------------------------------------------------------------------------- what is refused

def test_more_ids_than_rows_is_refused(folder):
    for name in BOTH:
        rows = json.loads((MODELS / name / "config.json").read_text())["vocab_size"]
        broken = folder(name, vocab_size=rows - 1)
        tensors = load_file(broken / "model.safetensors")
        words = next(tensor for tensor in tensors if tensor.endswith("word_embeddings.weight"))
        save_file(tensors | {words: tensors[words][:-1].clone()}, broken / "model.safetensors")
        for make in (Classifier.load, lambda path: Classifier.from_backbone(path, ["x", "y"])):
            with pytest.raises(
                    InputError,
                    match=f"ids go to {rows - 1}, the embedding has only {rows - 1} rows"):
                make(broken)


@pytest.mark.parametrize("config, fault", [
    ({"problem_type": "single"},
     "config.json: problem_type 'single' is not supported; supported: single_label_"),
    ({"problem_type": "regression"}, "config.json: problem_type 'regression' is not supported"),
    ({"id2label": {"0": "x", "1": "x", "2": "y"}}, "labels must be at least two different names"),
    ({"id2label": {"0": "x"}}, "labels must be at least two different names"),
    ({"id2label": {"1": "x", "2": "y", "3": "z"}},
     "config.json: id2label should number its classes"),
    ({"id2label": {"a": "x", "b": "y"}}, "config.json: id2label should number its classes"),
    ({"id2label": {"0": "x", "1": "y"}}, r"\(3, 32\), head.out.weight is \(2, 32\)"),
    ({"id2label": None, "num_labels": None}, r"\(3, 32\), head.out.weight is \(2, 32\)"),
    ({"minillmclf": {"pool": "median"}}, "config.json: minillmclf = .*median"),
    ({"minillmclf": {"max_length": 25}}, "max_length 25: must lie between 4 and the 24 positions")])
def test_a_config_that_does_not_fit_is_refused(config, fault, folder):
    with pytest.raises(InputError, match=fault):
        Classifier.load(folder("bert_classifier", **config))


@pytest.mark.parametrize("options, fault", [
    ({"labels": ["x"]}, "at least two different names"),
    ({"labels": ["x", "x"]}, "at least two different names"),
    ({"readout": "oracle"}, "readout 'oracle' is not known; known: head, labels"),
    ({"pool": "median"}, "'median' is not known; known: family, first"),
    ({"max_length": 25}, "max_length 25: must lie between 4 and the 24"),
    ({"max_length": 3}, "max_length 3: must lie between 4")])
def test_an_option_that_cannot_be_is_refused(options, fault):
    with pytest.raises(InputError, match=fault):
        Classifier.from_backbone(MODELS / "bert_classifier", **{"labels": ["x", "y"], **options})


@pytest.mark.parametrize("text, fault", [
    ("", "text 2 is empty"), (" \n\t", "text 2 is empty"), (("", " "), "text 2 is empty"),
    (("a", "b", "c"), "text 2: a text is a string"), (("a", None), "text 2: a text is a string"),
    (None, "text 2: a text is a string"), (float("nan"), "text 2: a text is a string")])
def test_what_is_no_text_is_refused_by_its_number(text, fault):
    with pytest.raises(InputError, match=fault):
        Classifier.load(MODELS / "bert_classifier").predict(["no", text])


def test_a_body_is_taken_out_of_a_folder_with_a_pooled_head(folder, tmp_path):
    Classifier.from_backbone(folder("bert_classifier"), ["a", "b"], pool="mean").save(
        tmp_path / "pooled")
    body = load_backbone(tmp_path / "pooled")
    assert "minillmclf_head.weight" in body.report.dropped, (
        "the pooled head was not reported as dropped")
    again = Classifier.from_backbone(tmp_path / "pooled", ["c", "d", "e"])
    assert again.labels == ["c", "d", "e"] and again.head.pool_option == "family"


def test_a_text_of_which_nothing_is_left_is_refused(folder):
    model = Classifier.load(folder("bert_classifier"))
    with pytest.raises(InputError, match="text 2: the text .* holds no token"):
        model.predict(["a", "\u200b\u0007"])


def test_a_token_type_that_the_model_lacks_is_refused(folder):
    model = load_backbone(folder("roberta_classifier"))
    ids = torch.tensor([[0, 5, 2]])
    with pytest.raises(InputError, match="token type 1"):
        model(ids, torch.ones_like(ids), torch.ones_like(ids))


# ---------------------------------------------------------------- attention over tokens

FAMILIES = ("bert_classifier", "distilbert_classifier", "roberta_classifier",
            "xlm_roberta_classifier", "deberta_classifier", "modernbert_classifier",
            "gpt2_classifier", "gemma_classifier", "ul2_classifier")
NUMBERS = {"lora": dict(rank=2, alpha=4.0, dropout=0.0, use_rslora=False, targets=None,
                        bias="none"),
           "houlsby": dict(size=4), "prefix": dict(tokens=2, projection=False),
           "prompt": dict(tokens=2)}


def attentive(path, **more):
    """A classifier that pools by attention, its numbers so large that no two tokens count alike."""
    model = Classifier.from_backbone(path, ["x", "y", "z"], pool="attention", **more)
    generator = torch.Generator().manual_seed(3)
    for weight in (model.head.U.weight, model.head.v.weight, model.head.out.weight):
        torch.nn.init.normal_(weight, generator=generator)
    return model


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """worded(name) -> a stored model, with a tokenizer of whole words where it has none."""
    def find(name):
        if any((MODELS / name).glob("vocab*")):
            return MODELS / name
        into = tmp_path_factory.mktemp(name)
        shutil.copytree(MODELS / name, into, dirs_exist_ok=True)
        words = sorted({word.strip(",:?!") for text in SINGLE for word in text.split()})
        WordPiece.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]).save(into)
        return into
    return find


def test_attention_by_hand():
    U, v = attention_layers(2, hidden=3)
    with torch.no_grad():
        U.weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]).atanh())
        v.weight.copy_(torch.tensor([[9.0, 1.0, 1.0]]).log())     # scores ln 9 / 2 = ln 3, and 0
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [99.0, 99.0]]])
    mask = torch.tensor([[1, 1, 0]])
    weights = attention_weights(U, v, vectors, mask)
    assert torch.allclose(weights, torch.tensor([[0.75, 0.25, 0.0]]), atol=1e-6)
    assert weights[0, 2] == 0
    half = attention_weights(U.bfloat16(), v.bfloat16(), vectors.bfloat16(), mask)
    scores = v(torch.tanh(U(vectors.bfloat16()))).squeeze(-1)[:, :2].float()
    assert torch.equal(half[:, :2], scores.softmax(-1).bfloat16()), "no softmax in fp32"


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_attention_sees_neither_padding_nor_batch_mates(name, worded, monkeypatch):
    model = attentive(worded(name)).double()
    encoded, _ = model.encode(SINGLE)
    alone = torch.cat([model(collate([row], [0])) for row in encoded])
    batch = collate(encoded, range(len(encoded)), model.tokenizer.pad_id)
    given = (batch.ids, batch.mask, batch.types)
    padded = [torch.nn.functional.pad(x, (0, 9)) for x in given]
    for ids, mask, types in (given, padded, [x.roll(9, 1) for x in padded]):
        apart = (model(Batch(ids, mask, types, None, batch.rows)) - alone).abs().max()
        assert apart <= 1e-10, f"{name}: {apart:.2g} apart"
    monkeypatch.setattr("minillmclf.classify.head.attention_weights",
                        lambda U, v, x, mask: attention_weights(U, v, x))
    apart = (model(batch) - alone).abs().max()
    assert apart > 1e-3, "this test cannot tell whether the mask is looked at"


@pytest.mark.parametrize("method", ["full", "head", "last-1", "bitfit", *NUMBERS])
def test_the_query_learns_with_every_method_and_comes_back_exactly(method, worded, tmp_path):
    model = attentive(worded("bert_classifier"), max_length=17)
    tune(model, {"method": method, **NUMBERS.get(method, {})})
    encoded, _ = model.encode(SINGLE)
    answers = model(collate(encoded, range(6), model.tokenizer.pad_id))
    torch.nn.functional.cross_entropy(answers, torch.arange(6) % 3).backward()
    for layer in (model.head.U, model.head.v):
        assert layer.weight.requires_grad and layer.weight.grad.abs().max() > 0, method
        layer.weight.data += 0.5 * layer.weight.grad.sign()
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert (again.head.pool_option, again.head.pooling) == ("attention", "attention")
    assert again.max_length == model.max_length
    assert differs(scores(again, SINGLE + PAIRS), scores(model, SINGLE + PAIRS), 0.0) is None
    if method == "full":
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["architectures"] == ["MinillmclfPooledClassifier"]
        own = {name for name in load_file(tmp_path / "model.safetensors") if "minillmclf" in name}
        assert own == {"minillmclf_pool.U.weight", "minillmclf_pool.v.weight",
                       "minillmclf_head.weight", "minillmclf_head.bias"}


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_of_every_family_is_saved_with_windows_and_without(name, worded, tmp_path):
    windows = {"pool": "attention", "overlap": 2, "max_windows": 4, "max_document": 100}
    for number, more in enumerate(({}, {"windows": windows, "max_length": 8})):
        model = attentive(worded(name), **more)
        model.save(tmp_path / str(number))
        again = Classifier.load(tmp_path / str(number))
        assert differs(scores(again, SINGLE), scores(model, SINGLE), 0.0) is None, name
        base = Classifier.from_backbone(tmp_path / str(number), ["x", "y", "z"])
        dropped = {name.rpartition(".")[0] for name in base.report.dropped if "minillmclf" in name}
        of = ("pool", "windows")[:1 + number]
        assert dropped == {"minillmclf_head"} | {f"minillmclf_{x}.{y}" for x in of for y in "Uv"}
        assert not load_backbone(tmp_path / str(number)).report.newly_initialised


def test_commands_pool_by_attention(tmp_path, capsys):
    data, body = small.data_file(tmp_path / "data.csv"), small.bert_folder(tmp_path / "body")
    train.main(small.flags(data=data, model=body, pool="attention", epochs=1, device="cpu",
                           max_length=16, out=tmp_path / "run"))
    model = Classifier.load(tmp_path / "run")
    line = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1].split(",")
    text = next(row.split(",")[0] for row in data.read_text().splitlines() if row.endswith("test"))
    assert model.head.pool_option == "attention"
    assert line[-3:] == [f"{p:.6f}" for p in model.predict([text])[0]]
    capsys.readouterr()
    inspect.main([str(tmp_path / "run")])
    assert "head.U.weight" in (said := capsys.readouterr().out) and "head.v.weight" in said
    found = make_configurations([f"{body}@pool=attention"], ["full", "lora", "prefix"], ["head"],
                                read_sweep([]), {"data": str(data)})
    rows = load_dataset(found[0].settings)
    assert [c.settings.pool for c in found] == ["attention"] * 3
    assert not any(obstacle(c, rows) for c in found)
