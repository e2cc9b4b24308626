"""A frozen body's features are computed once: is a run the same? Only where nothing changes?"""
import random

import pytest
import torch
from conftest import first_difference
from small import PIECES, TOPICS, bert_folder, texts_of
from test_families import CONFIGS, spread

from minillmclf.classify.classifier import Classifier
from minillmclf.models import initialise_weights, model_class, save_backbone
from minillmclf.cli.settings import Settings
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.training import features
from minillmclf.training.checkpoint import Store
from minillmclf.training.features import cached_features, can_cache, has_dropout, text_keys
from minillmclf.training.loop import fit
from minillmclf.training.plan import Split
from minillmclf.tuning import tune

LABELS = sorted(TOPICS)
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embd_pdrop",
            "resid_pdrop", "attn_pdrop",
            "attention_dropout", "dropout_rate", "dropout", "embedding_dropout", "mlp_dropout")
WINDOWS = {"pool": "mean", "overlap": 2, "max_windows": 9, "max_document": 500}


def body(name, **dropout):
    """A tiny body of a family without dropout, but where it is said."""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config}
    given = (dict.fromkeys((key for key in DROPOUTS if key in model_class(config).FIELDS), 0.0)
             | dropout)
    model = spread(initialise_weights(model_class(config).from_config(config | given), 0))
    model.source_config = config | given
    return model


def classifier(folder, method="head", **more):
    model = Classifier.from_backbone(folder, LABELS, **more)
    tune(model, {"method": method})
    return model


@pytest.fixture
def folder(tmp_path):
    return bert_folder(tmp_path / "bert", dropout=0.0)


def some_rows(model, rows, seed=0):
    texts, labels = zip(*texts_of(random.Random(seed), rows))
    return Split(model.encode(texts)[0], [LABELS.index(label) for label in labels])


class StopAt:
    """Asks the loop to stop after some steps."""

    def __init__(self, steps):
        self.left = steps

    @property
    def asked(self):
        self.left -= 1
        return self.left == 0


def run(model, folder, stop=None, **settings):
    """Train a classifier -> (its history, what has learned, tokens that the first block saw)."""
    folder.mkdir(exist_ok=True)
    tokens = []
    block = model.backbone.get_submodule(model.backbone.BLOCKS_PATH)[0]
    hook = block.register_forward_pre_hook(lambda m, given: tokens.append(len(given[0])))
    s = Settings(**{"epochs": 3, "batch_size": 7, "lr": 2e-3, "eval_batch_size": 5, **settings})
    train, dev = some_rows(model, 18), some_rows(model, 8, seed=1)
    with cached_features(model, [*train.encoded, *dev.encoded], s):
        progress = fit(model, train, dev, s, Store(folder, stop))
    hook.remove()
    assert "states" not in vars(model.backbone), "the body is not as it was"
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return progress and progress["history"], weights, sum(tokens)


@pytest.mark.parametrize("name", ["bert", "deberta-v3", "llama", "gemma3", "flan-t5"])
def test_a_run_is_the_same_and_reads_each_text_once(name, tmp_path, monkeypatch):
    save_backbone(body(name), tmp_path / "body")
    WordPiece.from_vocab(PIECES).save(tmp_path / "body")
    history, weights, read = run(classifier(tmp_path / "body"), tmp_path / "remembered")
    monkeypatch.setattr(features, "MAX_BYTES", 0)
    expected, plain, often = run(classifier(tmp_path / "body"), tmp_path / "plain")
    model = classifier(tmp_path / "body")
    once = sum(len(row[0]) for seed, count in ((0, 18), (1, 8))
               for row in some_rows(model, count, seed).encoded)
    assert (read, often) == (once, 3 * once), (
        f"{name}: of {once} tokens {read} went through the body, {often} without")
    # AdamW makes much of small gradients
    found = first_difference(weights, plain, 2e-5, relative=True)
    assert found is None, f"{name}: another head is learned: {found}"
    start = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert first_difference(start, plain, 1e-2, relative=True), (
        "nothing is learned, so this compares nothing")
    for ours, theirs in zip(history, expected, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["log_loss"] == pytest.approx(theirs["log_loss"], rel=1e-5)


def test_a_run_goes_on_bit_for_bit(folder, tmp_path):
    _, whole, _ = run(classifier(folder), tmp_path / "whole")
    stopped, part, _ = run(classifier(folder), tmp_path / "parts", StopAt(5))
    assert stopped is None and first_difference(part, whole, 0.0), "it did not stop"
    _, weights, _ = run(classifier(folder), tmp_path / "parts")
    assert first_difference(weights, whole, 0.0) is None, "an interrupted run ends elsewhere"


def test_dropout_keeps_a_body_from_being_cached_features(tmp_path):
    for name, (kind, _) in CONFIGS.items():
        assert not has_dropout(body(name)), f"{name}: there is no dropout"
        keys = [key for key in DROPOUTS if key in model_class({"model_type": kind}).FIELDS]
        assert keys
        for key in keys:
            assert has_dropout(body(name, **{key: 0.1})), f"{name}: {key} is not seen"
    dropping = bert_folder(tmp_path / "dropping", dropout=0.3)
    tokens = run(classifier(dropping), tmp_path / "run")[2]
    still = bert_folder(tmp_path / "bert", dropout=0.0)
    assert tokens == 3 * run(classifier(still), tmp_path / "other")[2]


def test_it_is_done_only_where_nothing_changes(folder, monkeypatch):
    s, rows = Settings(), some_rows(classifier(folder), 6).encoded
    assert (can_cache(classifier(folder), rows, s)
            and can_cache(classifier(folder, pool="last"), rows, s))
    others = [classifier(folder, "last-1"), classifier(folder, "full"),
              classifier(folder, pool="mean"),
              classifier(folder, pool="max"), classifier(folder, max_length=9, windows=WINDOWS)]
    assert not any(can_cache(model, rows, s) for model in others)
    assert not can_cache(classifier(folder), rows, Settings(precision="bf16"))
    monkeypatch.setattr(features, "MAX_BYTES", 4 * 32 * 6 - 1)
    assert not can_cache(classifier(folder), rows, s) and can_cache(classifier(folder), rows[:5], s)


def test_label_texts_are_not_cached_features(tmp_path):
    labels = Classifier.from_backbone(bert_folder(tmp_path, dropout=0.0, lm_head=True), LABELS,
                                      readout="labels", template="{text} was")
    labels.requires_grad_(False)
    assert not can_cache(labels, some_rows(labels, 3).encoded, Settings())


def test_texts_are_told_apart_and_unknown_ones_are_read(folder):
    model = classifier(folder)
    known, other = some_rows(model, 6).encoded, some_rows(model, 5, seed=9).encoded
    turned = [(ids, [1] * len(ids)) for ids, _ in known]  # other token types
    plain = [model.compute_logits(rows) for rows in (known, other, turned, known + other)]
    with cached_features(model, known, Settings()):
        assert "states" in vars(model.backbone)
        found = [model.compute_logits(rows) for rows in (known, other, turned, known + other)]
    for a, b in zip(found, plain):
        assert torch.allclose(a, b, atol=1e-5, rtol=0)
    assert (plain[0] - plain[2]).abs().max() > 1e-3, (
        "token types change nothing, so this compares nothing")


def test_keys_are_of_the_text_alone():
    ids = torch.tensor([[5, 6, 0]])
    right, left = torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 1]])
    same = [(ids, right, None, "last"), (ids.roll(1), left, torch.zeros_like(ids), "last"),
            (torch.tensor([[5, 6]]), torch.ones(1, 2), None, "last")]
    assert len({text_keys(*given)[0] for given in same}) == 1, "padding tells a text from itself"
    others = [same[0], (ids, right, None, "first"), (ids, torch.ones_like(ids), None, "last"),
              (ids, right, torch.tensor([[0, 1, 0]]), "last"),
              (ids, right, torch.tensor([[1, 0, 0]]), "last")]
    assert len({text_keys(*given)[0] for given in others}) == len(others), "two texts have one key"


def test_the_body_is_as_it_was_after_an_error(folder):
    model = classifier(folder)
    rows = some_rows(model, 3).encoded
    with pytest.raises(KeyboardInterrupt), cached_features(model, rows, Settings()):
        raise KeyboardInterrupt
    assert "states" not in vars(model.backbone)
