"""The training loop: gradients, groups, rates, frozen weights, chance, going on after any kill."""
import csv
import json
import math
import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from live import imported, loaded, may_refuse
from small import TOPICS, bert_folder, data_file, flags, forked, start, texts_of

from minillmclf import train
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.task import SingleLabel
from minillmclf.cli.parser import StopSignal
from minillmclf.errors import InputError
from minillmclf.models.tensor_files import open_tensors
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import collate
from minillmclf.pretrain import losses as pretraining
from minillmclf.training import loop, losses as objectives, optim
from minillmclf.training.checkpoint import Store, seed_step
from minillmclf.training.loop import fit, take_step
from minillmclf.training.lr_factors import by_depth
from minillmclf.training.plan import Plan, Split, balanced_rows, plan_epochs
from minillmclf.training.metrics import is_better
from minillmclf.tuning import set_trainable

LABELS = sorted(TOPICS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT without dropout."""
    return bert_folder(tmp_path_factory.mktemp("plain") / "bert", dropout=0.0)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """A tiny BERT with strong dropout."""
    return bert_folder(tmp_path_factory.mktemp("dropping") / "bert", dropout=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_file(tmp_path_factory.mktemp("data") / "topics.csv")


def classifier(folder, method="full", seed=0):
    model = Classifier.from_backbone(folder, LABELS, seed=seed)
    set_trainable(model, method)
    return model


def some_rows(model, rows, seed=0):
    texts, labels = zip(*texts_of(random.Random(seed), rows))
    return Split(model.encode(texts)[0], [LABELS.index(label) for label in labels])


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


# ---- one step: pieces of a batch

def step_in_pieces(folder, size, class_weights=None, **settings):
    """One step of plain SGD on a batch of 7 -> gradients, weights after it, loss. Not Adam: it
    divides each gradient by its own size and so blows up rounding where the true gradient is 0, as
    it is for the bias of the keys."""
    model = classifier(folder)
    data = some_rows(model, 7)
    s = Settings(micro_batch_size=size, **{"clip": 0.0, **settings})
    model.train()
    loss = take_step(model, torch.optim.SGD(model.parameters(), lr=0.1), data, list(range(7)), s,
                     objectives.CrossEntropy(class_weights, s.label_smoothing, s.focal_gamma))
    return {n: p.grad.clone() for n, p in model.named_parameters()}, weights_of(model), loss


@pytest.mark.parametrize("weights, smoothing, clip", [
    (None, 0.0, 0.0), (None, 0.0, 0.5), (None, 0.2, 0.0), ([0.3, 3.0, 1.0], 0.0, 0.0),
    ([0.3, 3.0, 1.0], 0.2, 0.5)])
def test_pieces_of_a_batch_give_the_gradient_of_the_whole(folder, weights, smoothing, clip):
    weights = weights and torch.tensor(weights)
    whole = step_in_pieces(folder, 0, weights, label_smoothing=smoothing, clip=clip)
    assert max(g.abs().max() for g in whole[0].values()) > 1e-2, (
        "there is hardly a gradient: the test could not fail")
    for size in (1, 2, 3, 7):
        grads, after, loss = step_in_pieces(folder, size, weights,
                                            label_smoothing=smoothing, clip=clip)
        assert largest_difference(grads, whole[0]) <= 1e-6, (
            f"pieces of {size} change the gradient of a batch of 7")
        assert largest_difference(after, whole[1]) <= 1e-6, (
            f"pieces of {size} change the weights after the step")
        assert loss == pytest.approx(whole[2], abs=1e-6), (
            f"pieces of {size} change the reported loss")


@pytest.mark.parametrize("weights, sizes_that_differ",
                         [(None, (2, 3)), ([0.3, 3.0, 1.0], (1, 2, 3))])
def test_the_mean_of_the_pieces_means_is_seen_to_be_wrong(folder, weights, sizes_that_differ):
    weights = weights and torch.tensor(weights)
    right = step_in_pieces(folder, 0, weights)[0]
    for size in (1, 2, 3, 7):
        model = classifier(folder).train()
        data, starts = some_rows(model, 7), range(0, 7, size)
        for first in starts:
            batch = collate(data.encoded, list(range(7))[first:first + size], 0, data.targets)
            (F.cross_entropy(model(batch), batch.labels, weights) / len(starts)).backward()
        wrong = {n: p.grad for n, p in model.named_parameters()}
        difference = largest_difference(wrong, right)
        assert (difference > 1e-3) == (size in sizes_that_differ), (
            f"pieces of {size}: the mean of means differs by {difference}; the test above could "
            "not see the fault")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 0.1]])
def test_class_loss_is_the_mean_that_torch_computes(weights, smoothing):
    torch.manual_seed(1)
    scores, labels = torch.randn(9, 4) * 3, torch.randint(4, (9,))
    weights = weights and torch.tensor(weights)
    total = objectives.class_loss(scores, labels, weights, smoothing)
    count = objectives.CrossEntropy(weights).divisor(labels)
    expected = F.cross_entropy(scores, labels, weights, label_smoothing=smoothing)
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-6)


def test_class_loss_by_hand():
    scores, labels = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])
    weights = torch.tensor([1.0, 2.0])
    total = objectives.class_loss(scores, labels)
    count = objectives.CrossEntropy().divisor(labels)
    assert (total.item(), count.item()) == (pytest.approx(math.log(2) + math.log(4)), 2)
    total = objectives.class_loss(scores, labels, weights)
    count = objectives.CrossEntropy(weights).divisor(labels)
    assert (total.item(), count.item()) == (pytest.approx(math.log(2) + 2 * math.log(4)), 3)
    smooth = math.log(2) + 0.9 * math.log(4) + 0.1 * (math.log(4) + math.log(4 / 3)) / 2
    assert objectives.class_loss(scores, labels, None, 0.1).item() == pytest.approx(smooth)


def test_balanced_weights_give_every_class_the_same_say():
    labels = [0] * 6 + [1] * 3 + [2] * 1
    weights = SingleLabel(["a", "b", "c"]).build_objective(
        Settings(class_weights="balanced"), labels).weights
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert sum(weights[label].item() for label in labels) == pytest.approx(len(labels)), (
        "the weights' mean is not 1")


def test_clipping_scales_the_gradient_and_keeps_its_direction(folder):
    free, _, loss = step_in_pieces(folder, 0)
    norm = math.sqrt(sum(g.pow(2).sum().item() for g in free.values()))
    clipped, _, same_loss = step_in_pieces(folder, 0, clip=norm / 10)
    assert math.sqrt(sum(g.pow(2).sum().item() for g in clipped.values())) == pytest.approx(
        norm / 10, rel=1e-4)
    assert largest_difference({n: g / 10 for n, g in free.items()}, clipped) < 1e-5, (
        "clipping turned the gradient")
    below, _, _ = step_in_pieces(folder, 0, clip=norm * 10)
    assert largest_difference(below, free) == 0, "a gradient within the limit was changed"
    assert loss == same_loss


def test_bf16_autocast_comes_close_to_fp32(folder):
    exact, _, loss = step_in_pieces(folder, 0)
    grads, after, rough = step_in_pieces(folder, 0, precision="bf16")
    assert math.isfinite(rough) and rough == pytest.approx(loss, rel=0.05) and rough != loss
    a, b = (torch.cat([g.flatten() for g in some.values()]) for some in (exact, grads))
    assert F.cosine_similarity(a, b, dim=0) > 0.98, "bf16 gradients point elsewhere"
    assert all(w.dtype == torch.float32 for w in after.values()), (
        "the weights themselves should stay fp32")


def test_divergence_is_an_error_that_names_the_remedy_and_spares_the_weights(folder):
    model = classifier(folder)
    with torch.no_grad():
        model.head.out.bias[0] = math.nan
    before, optimizer = weights_of(model), optim.build_optimizer(model, 1e-3, 0.01)
    with pytest.raises(InputError, match=r"loss nan.*diverged.*lower --lr"):
        take_step(model, optimizer, some_rows(model, 4), [0, 1, 2, 3], Settings(), None)
    after = weights_of(model)
    assert all(torch.equal(before[n], after[n]) for n in before if n != "head.out.bias"), (
        "a nan reached the weights")


# ---- the optimiser: groups, rates

def test_matrices_are_decayed_and_vectors_are_not(folder):
    model = classifier(folder, "last-1")
    groups = optim.parameter_groups(model, 1e-3, 0.01)
    names = {id(p): n for n, p in model.named_parameters()}
    placed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(n for n, p in model.named_parameters() if p.requires_grad), \
        "each trainable parameter belongs in exactly one group, a frozen one in none"
    for group in groups:
        for name in (names[id(p)] for p in group["params"]):
            wanted = 0.0 if name.endswith("bias") or "norm" in name else 0.01
            assert group["weight_decay"] == wanted, (
                f"{name} has weight decay {group['weight_decay']}")


def test_all_embeddings_and_norms_are_in_the_groups_of_a_full_run(folder):
    model = classifier(folder)
    groups = optim.parameter_groups(model, 1e-3, 0.01)
    decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.dim() == 2), name
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("layers", [2, 3])
def test_lower_layers_learn_more_slowly(tmp_path, layers):
    model = classifier(bert_folder(tmp_path / "bert", layers=layers))
    rate = {id(p): group["lr"]
            for group in optim.parameter_groups(model, 1e-3, 0.01, by_depth(model, 0.5))
            for p in group["params"]}
    for name, p in model.named_parameters():
        depth = (0 if "embedding" in name else layers + 1 if name.startswith("head")
                 else int(name.split(".")[2]) + 1)
        assert rate[id(p)] == pytest.approx(1e-3 * 0.5 ** (layers + 1 - depth)), (
            f"{name}: the rate of another depth")
    assert rate[id(model.head.out.weight)] == 1e-3, "what stands on top learns at --lr itself"
    assert rate[id(model.backbone.word_embeddings.weight)] == min(rate.values())
    model.backbone.layers[-1].requires_grad_(False)
    for group in optim.parameter_groups(model, 1e-3, 0.01, by_depth(model, 0.5)):
        assert all(rate[id(p)] == group["lr"] for p in group["params"]), (
            "a depth depends on which layers are frozen")


def test_rate_closed_forms():
    factor = optim.lr_factor
    assert [factor(step, 10, 4, "linear") for step in range(10)] == pytest.approx(
        [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]), (
            "up in 4 steps, then down towards 0")
    assert factor(10, 10, 4, "linear") == 0
    cosine = [factor(4 + step, 12, 4, "cosine") for step in range(9)]
    assert cosine == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(9)])
    assert (cosine[0] == 1 and cosine[4] == pytest.approx(0.5)
            and cosine[8] == pytest.approx(0, abs=1e-12))
    assert [factor(step, 10, 2, "constant") for step in range(10)] == pytest.approx(
        [1 / 3, 2 / 3] + 8 * [1])
    assert factor(0, 5, 0, "linear") == 1, "without warm-up the first step has the full rate"


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_rate_is_never_negative_and_never_above_one(schedule):
    for total in (1, 2, 7, 100):
        for warmup in {0, 1, total // 10, total // 2, total - 1, total}:
            rates = [optim.lr_factor(step, total, warmup, schedule) for step in range(total + 1)]
            case = f"{schedule}, {total} steps, {warmup} of warm-up: {rates}"
            assert all(-1e-15 <= rate <= 1 for rate in rates), case
            assert all(rate > 0 for rate in rates[:-1]), f"a step without learning: {case}"
            assert all(a < b for a, b in zip(rates[:warmup], rates[1:warmup])), (
                "the warm-up does not rise")
            assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1:])), (
                "the rate rises after the warm-up")


def build_with_decay(model):
    return optim.build_optimizer(model, 1e-3, 0.01, by_depth(model, 0.5))


def test_set_rate_scales_each_group_from_its_own_rate(folder):
    optimizer = build_with_decay(classifier(folder))
    for factor in (0.5, 0.1, 1.0):
        optim.set_lr(optimizer, factor)
        assert all(g["lr"] == pytest.approx(g["base_lr"] * factor)
                   for g in optimizer.param_groups), "factors must not pile up from step to step"


# ---- what learns and what is frozen

def expected_sizes(config, classes):
    """Numbers of parameters by formula -> embeddings, one block, head."""
    V, P, D, M = (config[k] for k in ("vocab_size", "max_position_embeddings", "hidden_size",
                                      "intermediate_size"))
    block = 4 * (D * D + D) + (D * M + M) + (M * D + D) + 2 * 2 * D
    return ((V + P + config["type_vocab_size"]) * D + 2 * D, block,
            (D * D + D) + (D * classes + classes))


@pytest.mark.parametrize("method, share", [
    ("full", (1, 2, 1)), ("head", (0, 0, 1)), ("last-1", (0, 1, 1)), ("last-2", (0, 2, 1))])
def test_methods_train_what_they_say_and_nothing_else(dropping, method, share):
    model = classifier(dropping)
    trainable, total = set_trainable(model, method)
    sizes = expected_sizes(model.config, len(LABELS))
    assert trainable == sum(n * size for n, size in zip(share, sizes))
    assert total == sizes[0] + 2 * sizes[1] + sizes[2]
    parts = (["head."] + ["backbone.layers.1."] * (share[1] > 0)
             + ["backbone.layers.0."] * (share[1] > 1))
    learns = [share[0] == 1 or name.startswith(tuple(parts))
              for name, _ in model.named_parameters()]
    before = weights_of(model)
    data, optimizer = some_rows(model, 8), optim.build_optimizer(model, 1e-3, 0.01)
    model.train()
    for step in range(10):
        seed_step(0, step)
        take_step(model, optimizer, data, list(range(8)), Settings(), None)
    for (name, after), should in zip(weights_of(model).items(), learns):
        same = before[name].numpy().tobytes() == after.numpy().tobytes()
        assert same != should, (
            f"{method}: {name} " + ("should have learned" if should else "is frozen, but changed"))


def test_choosing_again_undoes_the_choice_before(folder):
    model = classifier(folder, "head")
    assert set_trainable(model, "full") == (sum(p.numel() for p in model.parameters()),) * 2


@pytest.mark.parametrize("method", ["", "last-0", "last-3", "last-", "last-1.5", "FULL"])
def test_unknown_methods_are_refused(folder, method):
    with pytest.raises(InputError,
                       match=r"--method .*full, head, last-N, .* with N from 1 to the model's 2"):
        set_trainable(classifier(folder), method)


# ---- epochs: the best one, stopping early, evaluation

def fit_with_scores(folder, tmp_path, monkeypatch, scores, **settings):
    """Train with dev scores told beforehand -> model, progress, the weights after each epoch."""
    model, told, seen = classifier(folder), iter(scores), []
    s = Settings(**{"epochs": len(scores), "batch_size": 4, "lr": 1e-3, **settings})

    def evaluate(self, probabilities, targets):
        seen.append(weights_of(model))
        return {**dict.fromkeys(("accuracy", "macro_f1", "log_loss", "ece"), 0.5),
                s.metric: next(told)}
    monkeypatch.setattr(SingleLabel, "measure", evaluate)
    return model, fit(model, some_rows(model, 10), some_rows(model, 6, seed=1), s,
                      Store(tmp_path)), seen


@pytest.mark.parametrize("metric, patience, scores, epochs, best", [
    ("accuracy", 0, [0.5, 0.7, 0.6], 3, 2),
    ("accuracy", 0, [0.5, 0.7, 0.6, 0.7], 4, 2),              # a tie: the first of them
    ("accuracy", 0, [0.0, 0.0], 2, 1),                        # a score of 0 is a score
    ("accuracy", 2, [0.5, 0.7, 0.6, 0.7, 0.9], 4, 2),         # a tie is no progress
    ("accuracy", 2, [0.5, 0.4, 0.6, 0.5, 0.7], 5, 5),   # the count begins anew with each better one
    ("macro_f1", 1, [0.1, 0.2, 0.3], 3, 3),
    ("log_loss", 0, [0.9, 0.5, 0.6, 0.5], 4, 2),              # smaller is better
    ("log_loss", 1, [0.9, 0.95, 0.1], 2, 1),
    ("ece", 3, [0.3, 0.2, 0.4, 0.0, 0.1], 5, 4),
])
def test_the_best_epoch_is_the_result(
        folder, tmp_path, monkeypatch, metric, patience, scores, epochs, best):
    model, progress, seen = fit_with_scores(folder, tmp_path, monkeypatch, scores, metric=metric,
                                            patience=patience)
    assert len(progress["history"]) == epochs, (
        f"patience {patience} on {metric} {scores}: {epochs} epochs expected")
    assert [line["epoch"] for line in progress["history"]] == list(range(1, epochs + 1))
    assert [line[metric] for line in progress["history"]] == scores[:epochs]
    assert progress["best"] == {"epoch": best, metric: scores[best - 1]}
    assert largest_difference(weights_of(model), seen[best - 1]) == 0, (
        f"the weights are not those of epoch {best}")
    for other in set(range(epochs)) - {best - 1}:
        assert largest_difference(seen[other], seen[best - 1]) > 0, (
            "epochs do not differ: the test could not fail")
    assert not model.training


def test_better_knows_which_way_a_metric_points():
    for metric, up in (("accuracy", True), ("macro_f1", True), ("log_loss", False), ("ece", False)):
        def one(value, loss=0.5):
            return {"log_loss": loss, metric: value}
        assert is_better(metric, one(0.0), None)
        assert (is_better(metric, one(0.6), one(0.5)) == up
                and is_better(metric, one(0.4), one(0.5)) != up)
        assert not is_better(metric, one(0.5), one(0.5))
        if metric != "log_loss":
            assert is_better(metric, one(0.5, 0.4), one(0.5))
            assert not is_better(metric, one(0.5, 0.6), one(0.5))
            assert is_better(metric, one(0.6, 0.9), one(0.5)) == up, "loss decides ties only"


def test_of_equal_epochs_that_with_the_smallest_log_loss_is_kept(folder, tmp_path, monkeypatch):
    """Two epochs tie in accuracy: the later has less log loss; patience counts from the first."""
    told = iter([(0.7, 0.9), (0.7, 0.6), (0.7, 0.8), (0.6, 0.1), (0.9, 0.1)])

    def evaluate(self, probabilities, targets):
        accuracy, loss = next(told)
        return {"accuracy": accuracy, "log_loss": loss, "macro_f1": 0.5, "ece": 0.5}
    monkeypatch.setattr(SingleLabel, "measure", evaluate)
    model, s = classifier(folder), Settings(epochs=5, batch_size=4, lr=1e-3, patience=3)
    progress = fit(model, some_rows(model, 10), some_rows(model, 6, seed=1), s, Store(tmp_path))
    assert progress["best"] == {"epoch": 2, "accuracy": 0.7} and len(progress["history"]) == 4


@pytest.mark.parametrize("metric, scores, best", [
    ("accuracy", [0.2, 0.4, 0.4], 2), ("log_loss", [0.5, 0.4, 0.4], 2),
    ("ece", [0.1, 0.1, 0.1], 1)])
def test_run_json_names_the_epoch_that_was_kept(
        folder, data, tmp_path, monkeypatch, capsys, metric, scores, best):
    told, kept, seen = iter(scores), {}, []
    real_fit, real_epoch = loop.fit, loop.finish_epoch

    def finish_epoch(model, *more):
        seen.append(weights_of(model))
        return real_epoch(model, *more)

    def evaluate(self, probabilities, targets):
        """What is told, of the 9 dev rows; the 30 training rows are evaluated too."""
        numbers = dict.fromkeys(("accuracy", "macro_f1", "log_loss", "ece"), 0.5)
        numbers["f1"] = dict.fromkeys(self.labels, 0.5)
        return numbers | {metric: next(told, 0.5)} if len(targets) == 9 else numbers
    monkeypatch.setattr(SingleLabel, "measure", evaluate)
    monkeypatch.setattr(loop, "fit", lambda *a, **k: kept.update(real_fit(*a, **k)) or kept)
    monkeypatch.setattr(loop, "finish_epoch", finish_epoch)
    out = tmp_path / "run"
    assert train.main(flags(model=folder, data=data, out=out, epochs=3, batch_size=8,
                            metric=metric)) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["best_epoch"] == kept["best"]["epoch"] == best
    assert f"best epoch {best};" in capsys.readouterr().out
    assert largest_difference(weights_of(Classifier.load(out)), seen[best - 1]) == 0, (
        f"not epoch {best} was saved")


def test_what_each_step_is_given(dropping, tmp_path, monkeypatch):
    """Dropout and random numbers of its own, rows in another order each epoch, the planned rate;
    losses are averaged."""
    model, seen, told = classifier(dropping), [], []

    def record(model, optimizer, train, rows, s):
        loss = take_step(model, optimizer, train, rows, s)
        seen.append((model.training, torch.initial_seed(), rows,
                     optimizer.param_groups[0]["lr"], loss))
        return loss
    s = Settings(epochs=3, batch_size=4, lr=1e-3, warmup=0.2)
    progress = fit(model, some_rows(model, 10), some_rows(model, 6, seed=1), s, Store(tmp_path),
                   record, loop.Hooks(on_step=lambda *a: told.append(a)))
    training, seeds, rows, rates, losses = zip(*seen)
    assert all(training), "a step after an evaluation goes without dropout"
    assert len(set(seeds)) == 9, "two steps drop the same neurons"
    epochs = [sum(rows[start:start + 3], []) for start in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3, (
        "an epoch shows each row once")
    assert len(set(map(tuple, epochs))) == 3, "each epoch has the same order"
    assert rates == pytest.approx(
        [f * 1e-3 for f in (1 / 3, 2 / 3, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7)])
    for number, line in enumerate(progress["history"]):
        assert line["train_loss"] == pytest.approx(sum(losses[3 * number:3 * number + 3]) / 3), (
            "not this epoch's mean")
    assert told == [(step, 9, loss) for step, loss in enumerate(losses, 1)]


def test_evaluation_drops_nothing_and_keeps_the_order_of_rows(dropping):
    model = classifier(dropping)
    texts = [text for text, _ in texts_of(random.Random(3), 20)]
    assert len(set(map(len, map(str.split, texts)))) > 4, (
        "the texts should differ in length, so that they are sorted")
    encoded = model.encode(texts)[0]
    model.train()
    together = model.compute_logits(encoded, batch_size=6)
    assert torch.equal(together, model.train().compute_logits(encoded, batch_size=6)), (
        "two evaluations differ: dropout is on")
    alone = torch.cat([model.compute_logits([one]) for one in encoded])
    assert len({tuple(row) for row in alone.mul(1e4).round().tolist()}) == len(texts), (
        "texts give equal scores")
    assert torch.allclose(together, alone, atol=1e-5), "scores come in another order than the texts"
    model.train()
    assert not torch.allclose(model(collate(encoded, range(20))), alone, atol=1e-3), (
        "dropout has no effect here")


def test_min_steps_adds_epochs(folder):
    model = classifier(folder)
    data = some_rows(model, 10)
    for wanted, epochs in ((0, 2), (6, 2), (7, 3), (31, 11)):
        plan = plan_epochs(model, data, Settings(epochs=2, batch_size=4, min_steps=wanted))
        assert plan.epochs == epochs and sum(map(len, plan)) >= wanted, (
            f"10 rows in batches of 4, min_steps {wanted}")


# ---- random numbers, and the state on disk

def test_what_is_random_in_a_step_follows_from_seed_and_step():
    def draw(seed, step):
        seed_step(seed, step)
        return torch.rand(8).tolist()
    first = draw(0, 5)
    torch.rand(100)
    assert draw(0, 5) == first, "what was drawn before shows"
    draws = [draw(seed, step) for seed in (0, 1, 11) for step in (1, 11, 111)]
    assert len(set(map(tuple, draws))) == len(draws), "two (seed, step) share their random numbers"


def test_a_state_comes_back_bit_for_bit(dropping, tmp_path):
    model = classifier(dropping, "last-1")
    optimizer, data = optim.build_optimizer(model, 1e-3, 0.01), some_rows(model, 8)
    for step in range(3):
        take_step(model, optimizer, data, list(range(8)), Settings(), None)
    progress = {"step": 3, "history": [{"loss": 0.1 + 0.2}], "best": None, "losses": [1 / 3]}
    Store(tmp_path).save(model, optimizer, progress)
    fresh = classifier(dropping, "last-1")
    other = optim.build_optimizer(fresh, 1e-3, 0.01)
    assert Store(tmp_path).load(fresh, other) == progress, "floats should survive JSON exactly"
    assert largest_difference(weights_of(model), weights_of(fresh)) == 0
    for a, b in zip(model.parameters(), fresh.parameters()):
        assert a.requires_grad == b.requires_grad == (a in optimizer.state) == (b in other.state)
        assert not a.requires_grad or set(other.state[b]) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, other.state[b][key])
                   for key, value in optimizer.state.get(a, {}).items())
    assert Store(tmp_path / "none").load(fresh, other) is None


def test_a_state_of_another_method_is_refused(folder, tmp_path):
    model = classifier(folder, "last-1")
    Store(tmp_path).save(model, optim.build_optimizer(model, 1e-3, 0.01), {"step": 0})
    other = classifier(folder, "head")
    with pytest.raises(InputError, match="not a training state of this run .16 parameters "
                       "differ.*another --out"):
        Store(tmp_path).load(other, optim.build_optimizer(other, 1e-3, 0.01))


def test_a_loaded_state_lies_where_the_parameters_lie(folder, tmp_path):
    """Fused AdamW reads its step count on the parameter's device; a count left on the CPU breaks a
    resume on a GPU. The "meta" device, which holds no numbers, stands in for one."""
    model = classifier(folder)
    optimizer, data = optim.build_optimizer(model, 1e-3, 0.01), some_rows(model, 4)
    take_step(model, optimizer, data, [0, 1, 2, 3], Settings(), None)
    Store(tmp_path).save(model, optimizer, {"step": 1})
    elsewhere = classifier(folder).to("meta")
    moments = torch.optim.SGD(elsewhere.parameters())
    Store(tmp_path).load(elsewhere, moments)
    devices = {key: value.device.type for state in moments.state.values()
               for key, value in state.items()}
    assert devices == dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), "meta")


# ---- whole runs: the same bytes from the same seed, and after any interruption

RESULTS = ["model.safetensors", "metrics.jsonl", "predictions.csv", "config.json", "tokenizer.json",
           "tokenizer_config.json", "learned.json"]


@pytest.fixture(scope="module")
def asked(data, tmp_path_factory):
    """The settings of the runs below: dropout, three epochs of four steps, states amid epochs. A
    stop that is certain has its own test."""
    model = bert_folder(tmp_path_factory.mktemp("model") / "bert", dropout=0.1)
    return dict(model=model, data=data, epochs=3, batch_size=8, save_every=5, lr=0.01,
                schedule="constant", warmup=0.1, metric="log_loss", patience=1,
                class_weights="balanced")


@pytest.fixture(scope="module")
def reference(asked, tmp_path_factory):
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "run"
    code, _, error, _ = forked("train", flags(**asked, out=out))
    assert code == 0, error
    return out


def differing(out, reference):
    """Which results of two runs are not the same bytes."""
    differ = [name for name in RESULTS
              if (out / name).read_bytes() != (reference / name).read_bytes()]
    mine, theirs = (json.loads((folder / "run.json").read_text()) for folder in (out, reference))
    keys = ("best_epoch", "results", "doctor", "data", "parameters", "finished")
    return differ + [f"run.json {key}" for key in keys if mine[key] != theirs[key]]


def test_the_reference_run_is_worth_comparing(reference):
    history = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((reference / "run.json").read_text())
    assert record["finished"] and len(history) >= 2 and history[-1]["step"] == 4 * len(history)
    assert (record["best_epoch"]
            == min(history, key=lambda line: (line["log_loss"], line["epoch"]))["epoch"])
    assert sorted(p.name for p in reference.iterdir()) == sorted([*RESULTS, "run.json"]), (
        "something was left behind")


def test_predictions_are_those_of_the_saved_model_in_the_order_of_the_data(reference, data):
    with open(data, encoding="utf-8", newline="") as file:
        wanted = [(row["text"], row["label"])
                  for row in csv.DictReader(file) if row["split"] == "test"]
    with open(reference / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["text"], row["label"]) for row in rows] == wanted
    model = Classifier.load(reference)
    for row in rows:
        probabilities = model.predict([row["text"]])[0]
        assert [float(row[f"p_{name}"]) for name in model.labels] == pytest.approx(
            probabilities.tolist(), abs=2e-6)
        assert row["predicted"] == model.labels[probabilities.argmax()]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(asked, reference, tmp_path):
    assert forked("train", flags(**asked, out=tmp_path / "again"))[0] == 0
    assert differing(tmp_path / "again", reference) == []
    assert forked("train", flags(**asked, out=tmp_path / "other", seed=1))[0] == 0
    assert {"model.safetensors", "metrics.jsonl", "predictions.csv"} <= set(
        differing(tmp_path / "other", reference))


def test_a_run_killed_at_any_change_of_the_disk_goes_on_to_the_same_bytes(
        asked, reference, tmp_path):
    moves = forked("train", flags(**asked, out=tmp_path / "whole"))[3]
    assert moves >= 10, "the run should write its record, states, best weights, results"
    for move in range(1, moves + 1):
        arguments = flags(**asked, out=tmp_path / str(move))
        assert forked("train", arguments, move=move)[0] == -signal.SIGKILL
        code, _, error, _ = forked("train", arguments)
        assert code == 0, (
            f"killed at change {move} of {moves} on disk, the run does not go on: {error[-300:]}")
        assert differing(tmp_path / str(move), reference) == [], (
            f"killed at change {move} of {moves} on disk")


def test_a_run_that_stopped_early_and_was_killed_then_does_not_train_on(asked, tmp_path):
    """With next to no learning all epochs tie: the first is the best, the second the last."""
    still = {**asked, "lr": 1e-9, "metric": "accuracy", "save_every": 4}
    moves = forked("train", flags(**still, out=tmp_path / "whole"))[3]
    assert len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()) == 2
    for move in range(moves - 4, moves + 1):
        arguments = flags(**still, out=tmp_path / str(move))
        assert forked("train", arguments, move=move)[0] == -signal.SIGKILL
        assert forked("train", arguments)[0] == 0
        assert differing(tmp_path / str(move), tmp_path / "whole") == []


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_at_random_steps_ends_the_same(
        asked, reference, tmp_path, seed):
    rng = random.Random(seed)
    arguments = flags(**{**asked, "save_every": rng.randint(1, 3)}, out=tmp_path / "run")
    kills = [rng.randint(1, 6) for _ in range(4)]
    codes = [forked("train", arguments, step=step)[0] for step in kills]
    assert codes[0] == -signal.SIGKILL and set(codes) <= {-signal.SIGKILL, 0}
    assert forked("train", arguments)[0] == 0
    assert differing(tmp_path / "run", reference) == [], f"killed at steps {kills} of the attempts"


def test_a_run_killed_from_outside_goes_on(asked, reference, tmp_path):
    arguments = flags(**{**asked, "save_every": 1}, out=tmp_path / "run")
    state = tmp_path / "run" / "state.safetensors"
    process = start("minillmclf.train", *arguments)
    while process.poll() is None and not state.exists():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert forked("train", arguments)[0] == 0
    assert differing(tmp_path / "run", reference) == []


def test_ctrl_c_saves_and_says_how_to_go_on(asked, reference, tmp_path):
    arguments = flags(**asked, out=tmp_path / "run")
    code, out, error, _ = forked("train", arguments, interrupt=[7])
    assert (code == 130 and "The same command goes on from there" in out
            and str(tmp_path / "run") in out)
    assert "Traceback" not in out + error
    progress = json.loads(
        open_tensors(tmp_path / "run" / "state.safetensors").metadata()["progress"])
    assert progress["step"] == 7, "the step that was under way should be finished and kept"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is False
    code, out, _, _ = forked("train", arguments, interrupt=[1])
    assert code == 130, "a resumed run can be stopped as well"
    assert forked("train", arguments)[0] == 0
    assert differing(tmp_path / "run", reference) == []


def test_a_second_ctrl_c_stops_at_once_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_begun_run_is_not_continued_with_other_settings(asked, tmp_path):
    out = tmp_path / "run"
    assert forked("train", flags(**asked, out=out), step=7)[0] == -signal.SIGKILL
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    code, _, error, _ = forked("train", flags(**{**asked, "lr": 0.02}, out=out))
    assert code == 2 and "another lr" in error and "choose another --out" in error
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before, (
        "a refused run touched the folder")


def test_an_overwritten_run_leaves_nothing_of_itself_to_the_new_one(asked, tmp_path):
    other = {**asked, "seed": 1}
    assert forked("train", flags(**other, out=tmp_path / "fresh"))[0] == 0
    for move in range(1, 6):                       # amid the removal of the old run, and soon after
        out = tmp_path / str(move)
        assert forked("train", flags(**asked, out=out), step=11)[0] == -signal.SIGKILL
        assert (out / "state.safetensors").exists() and (out / "best.safetensors").exists()
        assert (forked("train", [*flags(**other, out=out), "--overwrite"], move=move)[0]
                == -signal.SIGKILL)
        assert (out / "best.safetensors").exists(), "the old run went before the new one was whole"
        code, _, error, _ = forked("train", flags(**other, out=out))
        if code == 2:                             # nothing is written yet: the old run still stands
            assert move <= 3 and "another seed" in error
            code, _, error, _ = forked("train", [*flags(**other, out=out), "--overwrite"])
        assert code == 0, error
        assert differing(out, tmp_path / "fresh") == [], (
            f"killed at change {move}, something of the old run is used")


def test_divergence_ends_a_run_with_one_line(asked, tmp_path):
    code, _, error, _ = forked("train",
                               flags(**{**asked, "lr": 1e30, "warmup": 0.0}, out=tmp_path / "run"))
    assert code == 2 and "diverged; lower --lr" in error and "Traceback" not in error


# ---- masked words, distillation

def test_corrupt_chooses_and_replaces_as_bert_does():
    torch.manual_seed(0)
    specials, mask_id, vocabulary = {0, 1, 2, 3, 4}, 4, 1000
    ids = torch.randint(5, vocabulary, (400, 128))
    mask = (torch.arange(128) < torch.randint(20, 129, (400, 1))).long()
    ids[:, 0], ids[:, 10] = 2, 3
    ids = torch.where(mask.bool(), ids, 9)         # padded with an ordinary id: only the mask tells
    corrupted, chosen = pretraining.corrupt(ids, mask, specials, mask_id, vocabulary)
    real = mask.bool() & ~torch.isin(ids, torch.tensor(sorted(specials)))
    assert not (chosen & ~real).any(), "padding or a special token was chosen"
    assert torch.equal(corrupted[~chosen], ids[~chosen]), (
        "a token was changed that is not to be guessed")
    share = chosen.sum() / real.sum()
    assert abs(share - 0.15) < 0.01, f"{share:.3f} of the tokens chosen"
    masked, kept = corrupted[chosen] == mask_id, corrupted[chosen] == ids[chosen]
    shares = [x.float().mean().item() for x in (masked, ~masked & ~kept, kept)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02), f"masked, random, kept: {shares}"
    random_ones = corrupted[chosen][~masked & ~kept]
    assert (len(random_ones.unique()) > 200 and random_ones.max() < vocabulary
            and random_ones.min() >= 0)
    more = pretraining.corrupt(ids, mask, specials, mask_id, vocabulary, share=0.4)[1]
    assert abs(more.sum() / real.sum() - 0.4) < 0.01


def test_corrupt_always_chooses_something():
    ids, mask = torch.tensor([[2, 7, 3, 0]]), torch.tensor([[1, 1, 1, 0]])
    for seed in range(30):
        torch.manual_seed(seed)
        assert pretraining.corrupt(ids, mask, {0, 2, 3}, 4, 10)[1].tolist() == [
            [False, True, False, False]]


def test_masked_lm_loss_is_that_of_transformers(tmp_path):
    transformers = imported("transformers")
    from minillmclf.models import load_backbone
    from minillmclf.text.tokenizers.tokenizer import load_tokenizer
    folder = bert_folder(tmp_path / "bert", lm_head=True)
    model, tokenizer = load_backbone(folder), load_tokenizer(folder)
    texts = [text for text, _ in texts_of(random.Random(5), 12)]
    encoded = [tokenizer.add_special_tokens(tokenizer.ids(text)) for text in texts]
    batch = collate(encoded, range(12), tokenizer.pad_id)
    torch.manual_seed(2)
    ids, chosen = pretraining.corrupt(batch.ids, batch.mask, tokenizer.special_ids,
                                      tokenizer.mask_id, len(tokenizer))
    assert not batch.mask.all() and chosen.sum() > 5
    ours = pretraining.masked_lm_loss(model, ids, batch.mask, batch.types, chosen, batch.ids)
    theirs = loaded(transformers.BertForMaskedLM.from_pretrained, folder).eval()
    with torch.no_grad(), may_refuse():
        expected = theirs(ids, attention_mask=batch.mask, token_type_ids=batch.types,
                          labels=batch.ids.where(chosen, -100)).loss
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    ours.backward()
    assert model.word_embeddings.weight.grad.abs().sum() > 0


def test_word_means_against_a_loop():
    torch.manual_seed(0)
    hidden, words = torch.randn(9, 5), torch.tensor([-1, 0, 1, 1, 1, -1, 3, 2, 3])
    means = pretraining.word_means(hidden, words, 4)
    for word in range(4):
        expected = np.mean([hidden[i].numpy() for i in range(9) if words[i] == word], axis=0)
        assert means[word].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_cosine_distance_by_hand():
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert pretraining.cosine_distance(a, b).item() == pytest.approx((0 + 1 + 2) / 3)


# ---------------------------------------------------------------------------------------- imbalance

@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_focal_loss_is_what_its_formula_says(weights):
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    weights = weights and torch.tensor(weights)
    p = scores.softmax(1)[torch.arange(6), labels]
    for gamma in (0.5, 2.0):
        expected = -((1 - p) ** gamma * p.log() * (1 if weights is None else weights[labels])).sum()
        assert objectives.focal_loss(scores, labels, weights, gamma) == pytest.approx(
            expected.item(), rel=1e-5)
    plain = objectives.class_loss(scores, labels, weights)
    found = objectives.focal_loss(scores, labels, weights, 0.0)
    assert found == pytest.approx(plain.item(), rel=1e-5), "gamma 0 is cross-entropy"


def test_focal_loss_hears_hard_rows_and_stays_finite():
    scores = torch.tensor([[4.0, 0.0], [0.0, 4.0], [90.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 0])
    objectives.focal_loss(scores, labels, gamma=0.5).backward()
    assert scores.grad.isfinite().all(), "a row of probability 1 has no finite gradient"
    easy, hard = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    one = torch.tensor([0])
    share = [objectives.focal_loss(x, one) / objectives.class_loss(x, one) for x in (easy, hard)]
    assert share[0] < 0.001 and share[1] > 0.9, (
        f"an easy row keeps {share[0]:.4f} of its loss, a hard one {share[1]:.4f}")


def test_a_balanced_epoch_has_all_classes_alike_and_no_row_too_often():
    labels = [0] * 30 + [1] * 9 + [2] * 3
    rows = balanced_rows(labels, "0:0")
    counts, times = Counter(labels[row] for row in rows), Counter(rows)
    assert len(rows) == 42 and set(counts.values()) == {14}, counts
    for label, (least, most) in {0: (0, 1), 1: (1, 2), 2: (4, 5)}.items():
        seen = {times[row] for row, own in enumerate(labels) if own == label}
        assert seen <= {least, most}, f"rows of class {label} are drawn {seen} times"
    assert rows == balanced_rows(labels, "0:0") != balanced_rows(labels, "0:1"), (
        "an epoch follows from its seed, and each is another")


def test_the_plan_draws_balanced_epochs_only_when_asked():
    train = Split([([1] * (row % 5 + 1), None) for row in range(40)], [0] * 36 + [1] * 4)
    for sampling, rare in (("none", 4), ("balanced", 20)):
        for epoch in Plan([len(ids) for ids, _ in train.encoded], train.targets,
                          Settings(batch_size=8, epochs=2, sampling=sampling)):
            assert sum(train.targets[row] for batch in epoch for row in batch) == rare
            assert all(len(batch) <= 8 for batch in epoch) and sum(map(len, epoch)) == 40


@pytest.mark.parametrize("asked", [
    {"focal_gamma": 2.0, "label_smoothing": 0.1},
    {"sampling": "balanced", "class_weights": "balanced"}, {"focal_gamma": -1.0},
    {"focal_gamma": 1.0, "objective": "completion", "readout": "labels"}])
def test_what_does_not_go_together_is_refused(asked):
    with pytest.raises(InputError):
        Settings(**asked).check()


def test_the_loop_minimises_the_focal_loss_when_asked(folder):
    losses = [step_in_pieces(folder, size, focal_gamma=gamma)[2]
              for size, gamma in ((0, 0.0), (0, 2.0), (3, 2.0))]
    assert losses[1] < losses[0] and losses[2] == pytest.approx(losses[1], rel=1e-5), losses


def test_class_weights_count_in_the_focal_loss_too():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = torch.tensor([0.5, 1.0, 4.0])
    batch = type("Batch", (), {"labels": labels})
    found = objectives.CrossEntropy(weights, focal_gamma=2.0)(lambda batch: logits, batch)
    p = logits.softmax(1)[torch.arange(6), labels]
    assert torch.allclose(found, -(weights[labels] * (1 - p) ** 2 * p.log()).sum(), rtol=1e-5)
