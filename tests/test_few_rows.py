"""Few rows: the probe, the contrastive loss, its batches, and what train chooses by itself."""
import csv
import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import small
import torch
from conftest import refused

from minillmclf import Classifier, evaluate, fine_tune, train as train_command
from minillmclf.choose import __main__ as choose_command
from minillmclf.classify.sentence_vectors import sentence_settings
from minillmclf.cli import cross
from minillmclf.cli.build import own_head_note
from minillmclf.cli.few_rows import read_run
from minillmclf.cli.settings import read_settings
from minillmclf.errors import InputError
from minillmclf.inspect import __main__ as inspect_command
from minillmclf.report import __main__ as report_command
from minillmclf.training.contrastive import (GROUP, LEAST_STEPS, Contrastive, contrastive_loss,
                                             grouped_batches)
from minillmclf.training.losses import CrossEntropy
from minillmclf.training.plan import Split
from minillmclf.training.probe import L2_PENALTY, features_of, fit_probe


def unsplit(path, rows=36, seed=0):
    """A CSV without a column split; three classes."""
    texts = small.texts_of(random.Random(seed), rows)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *texts])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `bert` and few.csv."""
    folder = tmp_path_factory.mktemp("few")
    small.bert_folder(folder / "bert", layers=1, dropout=0.0)
    unsplit(folder / "few.csv")
    return folder


# ---------------------------------------------------------------- the probe

@pytest.fixture(scope="module")
def probed(place):
    """-> Classifier with a probe, its training rows, the weights of before."""
    texts = small.texts_of(random.Random(1), 30)
    labels = sorted({label for _, label in texts})
    model = Classifier.from_backbone(place / "bert", labels, pool="mean")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = Split(model.encode([text for text, _ in texts])[0],
                 [labels.index(label) for _, label in texts])
    fit_probe(model, rows, CrossEntropy(None, 0.0, 0.0))
    return model, rows, before


def penalised(model, rows, penalty=L2_PENALTY):
    """The probe's loss in float64, from its definition, and its gradient with respect to W, b."""
    batch = model.collate(rows.encoded, range(len(rows.encoded)))
    with torch.no_grad():
        features = features_of(model, batch).double()
    scale = features.norm(dim=1).mean()
    W = (model.head.out.weight.detach().double() * scale).requires_grad_()
    b = model.head.out.bias.detach().double().requires_grad_()
    log_p = (features / scale @ W.T + b).log_softmax(1)
    loss = -log_p[range(len(log_p)), rows.targets].sum() + penalty / 2 * (W ** 2).sum()
    return loss, torch.autograd.grad(loss, [W, b])


def test_the_probe_is_the_least_of_its_loss(probed):
    """The loss is convex, so a gradient of 0 is its only minimum: here at most what fp32 leaves."""
    model, rows, before = probed
    loss, (by_weight, by_bias) = penalised(model, rows)
    assert by_weight.abs().max() < 0.02 and by_bias.abs().max() < 0.02
    assert loss < len(rows.targets) * math.log(3), "better than knowing nothing"
    _, (other, _) = penalised(model, rows, penalty=3 * L2_PENALTY)
    assert other.abs().max() > 0.1, "another penalty has another minimum"
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.out.weight", "head.out.bias"}


def test_the_probe_equals_scikit_learns(probed):
    linear = pytest.importorskip("sklearn.linear_model")
    model, rows, _ = probed
    batch = model.collate(rows.encoded, range(len(rows.encoded)))
    with torch.no_grad():
        features = features_of(model, batch).double()
    scaled = (features / features.norm(dim=1).mean()).numpy()
    found = linear.LogisticRegression(C=1 / L2_PENALTY, tol=1e-8, max_iter=1000).fit(
        scaled, rows.targets)
    with torch.no_grad():
        ours = model(batch).double().softmax(1)
    assert abs(ours.numpy() - found.predict_proba(scaled)).max() < 2e-3


def test_a_probe_of_several_labels_and_of_a_head_without_bias():
    """Each task's own loss is what is minimised; ScoreHead has no bias."""
    torch.manual_seed(0)
    features, targets = torch.randn(20, 4), torch.randint(2, (20, 3)).float()

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(4, 3, bias=False)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head()

        def compute_in_batches(self, encoded, compute, columns, batch_size):
            return features

    from minillmclf.training.multilabel import BinaryCrossEntropy
    model = Model()
    fit_probe(model, Split(list(range(20)), targets.tolist()), BinaryCrossEntropy())
    scale = features.norm(dim=1).mean()
    W = (model.head.out.weight.detach() * scale).requires_grad_()
    logits = features / scale @ W.T
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss + L2_PENALTY / 2 * (W ** 2).sum(), W)
    assert gradient.abs().max() < 0.02


# ---------------------------------------------------------------- the contrastive loss

def by_loops(features, targets, temperature, own_too=False, inside=False):
    """The loss as in the paper, equation 2, one term at a time. own_too, inside: two mistakes."""
    unit = features / features.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(unit)):
        others = [a for a in range(len(unit)) if a != i]
        positives = [p for p in others if targets[p] == targets[i]]
        if not positives:
            continue
        among = range(len(unit)) if own_too else others
        below = sum(math.exp(float(unit[i] @ unit[a]) / temperature) for a in among)
        terms = [math.exp(float(unit[i] @ unit[p]) / temperature) / below for p in positives]
        if inside:
            total -= math.log(sum(terms) / len(terms))
        else:
            total -= sum(map(math.log, terms)) / len(terms)
    return total


def test_the_contrastive_loss_is_the_papers():
    torch.manual_seed(0)
    features, targets = torch.randn(9, 5) * 3, torch.tensor([0, 1, 0, 2, 1, 0, 3, 2, 2])
    expected = by_loops(features.double(), targets.tolist(), 0.1)
    assert contrastive_loss(features, targets).item() == pytest.approx(expected, rel=1e-5)
    assert contrastive_loss(features, targets, 0.5).item() == pytest.approx(
        by_loops(features.double(), targets.tolist(), 0.5), rel=1e-5)
    for mistake in ({"own_too": True}, {"inside": True}):
        assert abs(by_loops(features.double(), targets.tolist(), 0.1, **mistake) - expected) > 0.1
    assert Contrastive().divisor(targets) == 8, "class 3 has one row, which has no positive"
    alone = contrastive_loss(features[:4], torch.arange(4))
    assert alone == 0 and Contrastive().divisor(torch.arange(4)) == 1
    features.requires_grad_()
    contrastive_loss(features, targets).backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("counts, size", [((10, 10, 10), 32), ((10,) * 77, 32), ((2, 5, 1), 16),
                                          ((40, 3), 16), ((6, 6), 8)])
def test_batches_hold_several_rows_of_each_class(counts, size):
    targets = [target for target, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(targets)
    batches = grouped_batches(targets, size, "0:1")
    assert batches == grouped_batches(targets, size, "0:1") != grouped_batches(targets, size, "0:2")
    assert len(batches) == max(LEAST_STEPS, math.ceil(len(targets) / size))
    for batch in batches:
        assert len(set(batch)) == len(batch) <= max(size, GROUP)
        for target in {targets[row] for row in batch}:
            own = sum(targets[row] == target for row in batch)
            assert own >= min(GROUP, counts[target])
    epochs = [grouped_batches(targets, size, f"0:{epoch}") for epoch in range(10)]
    drawn = {row for epoch in epochs for batch in epoch for row in batch}
    assert drawn == set(range(len(targets))), "all rows are learned from"


@pytest.mark.parametrize("size", [4, 5, 7])
def test_a_small_batch_compares_two_classes(size):
    targets = [n % 4 for n in range(40)]
    for batch in grouped_batches(targets, size, "0:1"):
        assert len(batch) <= size
        assert sorted(Counter(targets[row] for row in batch).values()) == [size // 2] * 2
    refused(lambda: read_settings({"objective": "contrastive", "batch_size": 3}),
            "--batch-size 3 should be 4 or more")


@pytest.mark.parametrize("name, value", [("head_lr", 1e-2), ("head_init", "random")])
def test_contrastive_training_refuses_settings_of_a_head_that_it_does_not_train(name, value):
    refused(lambda: read_settings({"objective": "contrastive", name: value}),
            "--objective contrastive", "--" + name.replace("_", "-"))


def test_a_run_of_an_earlier_version_is_read_with_settings_without_effect(tmp_path):
    for number, old in enumerate((
            {"patience": 2, "dev": "none"}, {"objective": "contrastive", "head_lr": 1e-2},
            {"objective": "contrastive", "batch_size": 2})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"settings": vars(read_settings({})) | old}))
        assert vars(read_settings({}, path)).items() >= old.items()


# ---------------------------------------------------------------- what train chooses

def chosen(place, data="few.csv", **flags):
    flags |= {"model": str(place / "bert"), "data": str(place / data)}
    return read_run(read_settings(flags), flags)


def test_train_chooses_by_the_number_of_rows(place):
    s, data, line = chosen(place)
    assert (s.objective, s.head_init, s.pool, s.dev) == ("contrastive", "probe", "mean", "none")
    assert s.lr < 3e-4 and s.min_steps >= 25 and not data.dev and data.test
    assert len(data.train) + len(data.test) == 36
    assert "--objective contrastive" in line and "--few-rows off" in line and "\n" not in line
    s, data, line = chosen(place, few_rows="off")
    assert (s.objective, s.head_init, s.pool, s.dev) == ("classes", "random", "family", "split")
    assert data.dev and not line
    s, _, line = chosen(place, pool="first", lr=1e-3, dev="split")
    assert (s.pool, s.lr, s.dev, s.objective) == ("first", 1e-3, "split", "contrastive")
    assert "--pool" not in line and "--lr" not in line
    s, _, line = chosen(place, method="head")
    assert (s.objective, s.head_init, s.epochs) == ("classes", "probe", 0)
    s, _, line = chosen(place, micro_batch_size=4)
    assert s.objective == "classes" and "left out" in line and "--micro-batch-size" in line, (
        "the user's own setting does not go with it")
    with pytest.raises(InputError, match="--few-rows on"):
        chosen(place, micro_batch_size=4, few_rows="on")


@pytest.mark.parametrize("given, goes_with", [
    ({"readout": "labels", "template": "{text} [MASK]"}, "--readout head"),
    ({"windows": "mean"}, "--windows none"), ({"preference": "head"}, "--preference none")])
def test_where_no_setting_applies_this_is_said(place, given, goes_with):
    data = "few.csv"
    if "preference" in given:
        data, answers = "answers.csv", ["a", "b", "tie"] * 10
        rows = [(f"prompt {n}", f"one {n}", f"two {n}", own) for n, own in enumerate(answers)]
        with open(place / data, "w", newline="") as file:
            csv.writer(file).writerows([("prompt", "response_a", "response_b", "label"), *rows])
        given = given | {"text_column": "prompt,response_a,response_b"}
    for few_rows, begins in (("auto", "rows a class are few, but"), ("on", "--few-rows on:")):
        s, found, line = chosen(place, data, **given, few_rows=few_rows)
        assert (s.objective, s.head_init, s.dev) == ("classes", "random", "split") and found.dev
        assert begins in line and line.endswith(f"are left out: they are for {goes_with}")
    assert not chosen(place, data, **given, few_rows="off")[2]
    unsplit(place / "many.csv", rows=3 * 70)
    assert not chosen(place, "many.csv", windows="mean")[2], "many rows: nothing was to choose"


def test_no_step_is_chosen_where_none_is_wanted(place):
    s, _, line = chosen(place, epochs=0, head_init="probe")
    assert (s.objective, s.epochs, s.min_steps, s.pool) == ("classes", 0, 0, "mean")
    assert s.lr == 3e-4 and "--min-steps" not in line and "--dev none" in line


@pytest.mark.parametrize("given", [{"lr": "auto"}, {"pool": "auto"}, {"learning_rate": "auto"}])
def test_auto_is_as_if_not_given(place, given):
    s, _, line = chosen(place, **given)
    assert (s, line) == (chosen(place)[0], chosen(place)[2])
    assert s.lr < 3e-4 and s.pool == "mean"


def test_the_rows_that_are_learned_are_counted(place):
    """Whether the user types the --dev none that is chosen anyway changes nothing."""
    for name, count, classes in (("ten", 10, 3), ("three", 3, 10), ("sixty", 60, 2),
                                 ("large", 49, 20)):
        rows = [(f"text {n} of {label}", f"class {label}")
                for n in range(count) for label in range(classes)]
        with open(place / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    for name, steps, says in (("ten", 50, "9 rows a class are few: "),
                              ("three", 50, "2 rows a class are few: "),
                              ("large", 55, "44 rows a class are few: ")):
        s, data, line = chosen(place, f"{name}.csv")
        typed, same, typed_line = chosen(place, f"{name}.csv", dev="none")
        assert s == typed and data.train == same.train and not data.dev
        assert (s.objective, s.min_steps) == ("contrastive", steps)
        assert line.startswith(says) and line.replace(" --dev none", "") == typed_line
    assert chosen(place, "ten.csv", dev="split")[2].startswith("8 rows a class are few: ")
    s, _, line = chosen(place, "ten.csv", micro_batch_size=4)
    assert line.startswith("8 rows a class are few, but ") and s.dev == "split"
    assert chosen(place, "three.csv", dev="split")[0].objective == "classes", "a row a class"
    for dev in ({}, {"dev": "none"}, {"dev": "cross"}):
        assert not chosen(place, "sixty.csv", **dev)[2], "of 60 rows, 54 are no test rows"
    assert chosen(place, "sixty.csv", dev="split")[2].startswith("48 rows a class are few: ")


def test_it_chooses_nothing_for_several_processes(place, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "2")
    s, _, line = chosen(place)
    assert s.objective == "classes" and "left out: they are for one process" in line
    assert chosen(place, few_rows="on")[0].objective == "contrastive"    # refused where it trains
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert chosen(place)[0].objective == "contrastive"


def test_it_chooses_nothing_for_many_rows_or_marked_splits(place):
    unsplit(place / "many.csv", rows=3 * 70)
    assert chosen(place, "many.csv")[2] == "" and chosen(place, "many.csv", few_rows="on")[2]
    small.data_file(place / "marked.csv")
    s, data, line = chosen(place, "marked.csv")
    assert line == "" and s.objective == "classes" and data.dev
    s, data, line = chosen(place, "marked.csv", few_rows="on")
    assert s.objective == "contrastive" and s.dev == "split" and len(data.dev) == 9


def test_a_run_goes_on_as_it_began(place, tmp_path):
    """A run that an earlier version began has no few_rows in its run.json."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"settings": {"seed": 0}, "finished": False}))
    assert chosen(place, out=str(out))[2] == ""
    (out / "run.json").write_text(json.dumps({"settings": {"few_rows": "auto"}}))
    assert chosen(place, out=str(out))[2]


SETTINGS = {"epochs": 1, "min_steps": 30, "batch_size": 9, "lr": 3e-3, "baselines": "off"}


@pytest.mark.parametrize("settings, expected", [
    ({}, ""), ({"pool": "mean"}, "no head that pools mean: .* --pool family$"),
    ({"pool": "mean", "readout": "label_texts"}, ""),
    ({"windows": "attention"}, "no head that weighs windows: .* --windows mean or none$"),
    ({"windows": "max"}, "reads the first window of a text alone$"),
    ({"truncation_side": "left", "max_length": 64, "method": "full"}, ""),
    ({"truncation_side": "middle"}, "no --truncation-side middle, .* beginning of a long text: "),
    ({"truncation_side": "both", "method": "lora"}, "side both, .* right or left$"),
    ({"truncation_side": "right", "max_length": 64, "method": "lora"}, "where the base's tokenizer "
     "says, .* minillmclf.merge$"), ({"truncation_side": "left", "method": "dora"}, "base's token"),
    ({"truncation_side": "right", "max_length": 0, "method": "lora"}, ""),
    ({"truncation_side": "middle", "readout": "labels"}, ""),
    ({"windows": "mean", "pool": "last"}, "no head that pools last: "),
    ({"preference": "bradley-terry"}, "no head that compares answers: .* --preference head$")])
def test_what_transformers_lacks_or_leaves_out_is_said(settings, expected):
    lines = own_head_note(settings)
    assert len(lines) == bool(expected) and re.search(expected, "".join(lines))


@pytest.fixture(scope="module")
def finished(place):
    """A run of few rows."""
    given = small.flags(model=place / "bert", data=place / "few.csv", out=place / "run", **SETTINGS)
    assert small.forked("train", given)[0] == 0
    return place / "run"


def test_what_the_probe_sets_is_no_fault_of_the_first_steps(place, tmp_path, call):
    more = small.flags(model=place / "bert", data=place / "few.csv", out=tmp_path / "run",
                       **SETTINGS)
    code, out, err = call(train_command, *more)
    assert code == 0 and "WARNING: gradients" not in out and "WARNING: after three" not in out, out
    assert "trainable tensors, all with a gradient" in out
    assert "transformers has no head that pools mean" in out
    code, out, _ = call(train_command, *more, "--few-rows", "off", "--min-steps", 3, "--out",
                        tmp_path / "off")
    assert code == 0 and "transformers has no head" not in out


def test_a_run_of_few_rows_learns_and_is_read_again(place, finished, call):
    record = json.loads((finished / "run.json").read_text())
    assert record["finished"] and record["settings"]["objective"] == "contrastive"
    history = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert [line["step"] for line in history] == [25, 50], "epochs of 25 steps until --min-steps"
    assert history[-1]["train_loss"] < history[0]["train_loss"] and "log_loss" not in history[0]
    assert history[-1]["train_accuracy"] == 1.0, "the head is fitted before each evaluation"
    assert record["best_epoch"] == len(history), "without dev rows the last epoch is kept"
    model = Classifier.load(finished)
    assert model.head.pooling == "mean"
    assert model.predict(["the old rose"]).sum() == pytest.approx(1)
    code, out, error = call(evaluate, "--model", finished)
    assert code == 0, error
    code, out, error = call(evaluate, "--model", finished, "--split", "dev")
    assert code == 2 and "dev" in error, "no dev rows were held out"
    pytest.importorskip("matplotlib")
    code, out, error = call(report_command, "--run", finished)
    page = (finished / "report.html").read_text()
    assert code == 0 and "no dev rows were held out" in page.replace("\n", " "), error


def test_a_killed_run_of_few_rows_ends_in_the_same_bytes(place, finished, tmp_path):
    given = small.flags(model=place / "bert", data=place / "few.csv", out=tmp_path / "again",
                        save_every=4, **SETTINGS)
    assert small.forked("train", given, interrupt=[31])[0] == 130
    assert (tmp_path / "again" / "state.safetensors").exists()
    assert small.forked("train", given)[0] == 0
    for name in ("model.safetensors", "predictions.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


def test_transformers_loads_a_run_of_few_rows_with_its_familys_head(place, tmp_path, call):
    """The README's remedy, also for a sentence-transformers folder, which says how to pool."""
    transformers = pytest.importorskip("transformers")
    start = sentence_folder(tmp_path / "st", {"pooling_mode_mean_tokens": True})
    code, out, _ = call(train_command, "--model", start, "--data", place / "few.csv", "--pool",
                        "family", "--min-steps", 3, "--out", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert code == 0 and record["settings"]["objective"] == "contrastive", out
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    texts = ["rain on the salt", "a rose and soup with bread"]
    given = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")(
        texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.eval()(**given).logits.softmax(-1)
    ours = torch.tensor(Classifier.load(tmp_path / "run").predict(texts))
    assert (ours - expected).abs().max() < 1e-5 and theirs.config.num_labels == 3


def test_the_probe_alone_takes_no_step(place, tmp_path):
    model = fine_tune(place / "bert", str(place / "few.csv"), out=tmp_path / "run", method="head")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["head_init"] == "probe" and record["timing"]["train_seconds"] < 60
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert line["step"] == 0
    again = fine_tune(place / "bert", str(place / "few.csv"), method="head", epochs=3, lr=1e-3)
    assert not torch.equal(model.head.out.weight, again.head.out.weight), "training goes on from it"


@pytest.mark.parametrize("given, says", [
    ({"objective": "contrastive", "method": "head"}, "changes the body"),
    ({"objective": "contrastive", "readout": "labels", "template": "{text}"}, "--readout head"),
    ({"objective": "contrastive", "batch_tokens": 100}, "--batch-tokens"),
    ({"objective": "contrastive", "windows": "mean"}, "--windows none"),
    ({"objective": "completion"}, "--readout labels"),
    ({"head_init": "probe", "windows": "mean"}, "--windows none"),
    ({"head_init": "probe", "preference": "head"}, "--preference none"),
    ({"head_lr": -1.0}, "0 or more"),
    ({"epochs": 0}, "1 or more"),
])
def test_what_does_not_go_together_is_refused(given, says):
    refused(lambda: read_settings(given), says)


# ---------------------------------------------------------------- --dev cross

CROSS = {"epochs": 3, "min_steps": 0, "batch_size": 9, "lr": 3e-3, "baselines": "off",
         "dev": "cross"}


class Closed(list):
    """Test rows that nobody may look at."""

    def __iter__(self):
        raise AssertionError("the test rows were read")
    __getitem__ = __iter__


def test_the_folds_answer_rows_that_they_have_not_learned(place, monkeypatch):
    """Labels drawn at random can be learned by heart and cannot be guessed: what is right for a
    third of the held-out rows only was not learned from them."""
    s, data, _ = chosen(place, **CROSS)
    rng, learned, by_heart = random.Random(0), [], []
    data.train = [replace(e, texts=(" ".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 6)),),
                          label=data.labels[n % 3]) for n, e in enumerate(data.train * 2)]
    data.test = Closed(data.test)
    fit_fold = cross.fit_fold

    def watched(s, data, own, held_out, stop):
        assert not {e.texts for e in own} & {e.texts for e in held_out}
        assert len(own) + len(held_out) == len(data.train)
        learned.extend(e.texts for e in held_out)
        model, dev, logits = fit_fold(s, data, own, held_out, stop)
        again = model.predict([e.texts[0] for e in own]).argmax(1)
        by_heart.append(sum(data.labels[n] == e.label for n, e in zip(again, own)) / len(own))
        return model, dev, logits
    monkeypatch.setattr(cross, "fit_fold", watched)
    found = cross.answer_held_out(replace(s, epochs=4, min_steps=0), data, None, lambda line: None)
    assert sorted(learned) == sorted(e.texts for e in data.train), "each row is held out once"
    assert len(found) == 4 and found[-1]["accuracy"] < 0.55 < 0.9 < min(by_heart)


def test_folds_are_even_and_hold_equal_texts_together(place):
    _, data, _ = chosen(place, dev="none")
    rows = data.train + [replace(e, row=99) for e in data.train[:4]]
    folds = cross.assign_rows(rows, seed=0)
    assert folds[-4:] == folds[:4] and folds != cross.assign_rows(rows, seed=1)
    for label in data.labels:
        sizes = [sum(fold == own and e.label == label for own, e in zip(folds, data.train))
                 for fold in range(cross.FOLDS)]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0
    assert [cross.assign_rows(rows[::-1], seed=0)] == [folds[::-1]]


def test_the_epoch_of_the_held_out_rows_is_kept(place, tmp_path, monkeypatch):
    """Whatever the folds say, the kept weights are those after that epoch of a run without dev
    rows; and the history shows the metrics of the held-out rows."""
    monkeypatch.setattr(cross, "answer_held_out", lambda *_: [
        {"accuracy": score, "macro_f1": 0.0, "log_loss": 1.0, "ece": 0.0} for score in told])
    epochs, tensors = {}, {}
    for told in ((0.5, 0.9, 0.7), (0.5, 0.6, 0.7)):
        out = tmp_path / str(told)
        fine_tune(place / "bert", str(place / "few.csv"), out=out, **CROSS)
        epochs[told] = json.loads((out / "run.json").read_text())["best_epoch"]
        tensors[told] = (out / "model.safetensors").read_bytes()
        lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
        assert [line["accuracy"] for line in lines] == list(told)
    assert list(epochs.values()) == [2, 3]
    second, last = tensors.values()
    fine_tune(place / "bert", str(place / "few.csv"), out=tmp_path / "none",
              **CROSS | {"dev": "none"})
    assert last == (tmp_path / "none" / "model.safetensors").read_bytes() != second


def test_a_run_with_folds_says_what_it_chose_and_is_resumed(place, tmp_path, call):
    """A fold has 3 steps an epoch, all rows have 4: the 51st step is the 6th of the kept model."""
    def given(out):
        return small.flags(model=place / "bert", data=place / "few.csv", out=tmp_path / out,
                           few_rows="off", save_every=5, **CROSS)
    code, out, error = call(train_command, *given("run"))
    assert code == 0 and "fold 5 of 5" in out and "on the held-out rows of 5 folds" in out, error
    assert out.count("dev accuracy") == 3
    for step, state in ((7, False), (51, True)):
        code, out, _, _ = small.forked("train", given("again"), interrupt=[step])
        assert code == 130 and ("goes on from there" if state else "begins anew") in out
        assert (tmp_path / "again" / "state.safetensors").exists() == state
    assert small.forked("train", given("again"))[0] == 0
    for name in ("model.safetensors", "predictions.csv", "metrics.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_the_probe_alone_has_held_out_metrics_too(place, tmp_path):
    fine_tune(place / "bert", str(place / "few.csv"), out=tmp_path / "run", method="head",
              dev="cross")
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert line["step"] == 0 and 0 <= line["accuracy"] <= 1 and line["log_loss"] > 0


def test_folds_that_cannot_be_are_refused(place, tmp_path):
    rows = [("text", "label"), *((f"a rose {n}", "garden") for n in range(20)),
            *((f"the soup {n}", "kitchen") for n in range(5))]
    with (tmp_path / "rare.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    refused(lambda: chosen(place, tmp_path / "rare.csv", dev="cross"),
            "'kitchen' has 4 different texts for 5 folds")
    small.data_file(tmp_path / "marked.csv")
    refused(lambda: chosen(place, tmp_path / "marked.csv", dev="cross"),
            "--dev cross", "dev rows of its own")
    refused(lambda: read_settings({"dev": "cross", "multi_label": "on", "metric": "log_loss"}),
            "--multi-label off")


@pytest.mark.parametrize("dev", ["none", "cross"])
def test_dev_rows_that_others_marked_and_patience_need_a_dev_split(dev, place, tmp_path):
    small.data_file(tmp_path / "marked.csv")
    refused(lambda: chosen(place, tmp_path / "marked.csv", dev=dev, few_rows="off"),
            f"--dev {dev}", "dev rows of its own", "--dev split")
    refused(lambda: read_settings({"dev": dev, "patience": 2}), "--patience 2", "--dev split")
    _, _, line = chosen(place, patience=2)
    assert "left out: --patience 2" in line                        # it asks for dev rows


def test_without_dev_rows_a_class_may_have_one_row(place, tmp_path, call):
    for name, word in (("train", "old"), ("test", "new")):
        rows = [("text", "label"), *((f"a {word} {topic}", topic) for topic in small.TOPICS)]
        (tmp_path / "data").mkdir(exist_ok=True)
        with (tmp_path / "data" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    given = small.flags(model=place / "bert", data=tmp_path / "data", out=tmp_path / "run",
                        epochs=1)
    code, _, error = call(train_command, *given)
    assert code == 2 and "3 train and 0 dev rows" in error and "--dev none" in error
    code, out, error = call(train_command, *given, "--dev", "none", "--few-rows", "off")
    assert code == 0 and "test (3 rows)" in out, error
    code, out, error = call(evaluate, *small.flags(model=tmp_path / "run"))
    assert code == 0 and "3 rows" in out, error
    code, _, error = call(evaluate, *small.flags(model=tmp_path / "run", split="dev"))
    assert code == 2 and "has no dev rows" in error


def test_several_labels_without_dev_rows_keep_thresholds_of_a_half(place, tmp_path, call):
    texts = small.texts_of(random.Random(0), 30)
    with (tmp_path / "several.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *(
            (text, label + "|urgent" * (n % 3 == 0)) for n, (text, label) in enumerate(texts))])
    code, out, error = call(train_command, *small.flags(
        model=place / "bert", data=tmp_path / "several.csv", out=tmp_path / "run", epochs=1),
        "--multi-label", "--dev", "none")
    assert code == 0, error
    assert set(Classifier.load(tmp_path / "run").task.thresholds) == {0.5}


# ---------------------------------------------------------------- sentence-transformers folders

def sentence_folder(folder, pooling, length=40):
    small.bert_folder(folder, layers=1)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(
        [{"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
         for n, (path, kind) in enumerate(kinds)]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return folder


@pytest.mark.parametrize("pooling, expected", [
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
    ({"pooling_mode_cls_token": True}, "first"), ({"pooling_mode_max_tokens": True}, "max"),
    ({"pooling_mode_lasttoken": True}, "last"), ({"pooling_mode": "cls"}, "first"),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "family"),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, "family"), ({}, "family")])
def test_a_sentence_transformers_folder_says_how_it_pools(tmp_path, pooling, expected):
    folder = str(sentence_folder(tmp_path / "st", pooling))
    s = read_settings({"model": folder})
    assert (s.pool, s.max_length) == (expected, 40)
    s = read_settings({"model": folder, "pool": "last", "max_length": 30})
    assert (s.pool, s.max_length) == ("last", 30)
    assert read_settings({"model": folder, "max_length": 30}).max_length == 30
    assert read_settings({"model": "mini-bert", "pool": "auto"}).pool == "family"
    assert sentence_settings("checkpoints/mini-bert") == {}


def test_choose_and_inspect_say_how_many_tokens_it_takes(place, tmp_path, call):
    """The body takes 64 tokens; the folder says 5."""
    folder = sentence_folder(tmp_path / "st", {"pooling_mode_mean_tokens": True}, length=5)
    asked = ["--data", place / "few.csv", "--models", folder, "--json"]
    for more, limit in (([], 5), (["--max-length", 7], 7)):
        (found,) = json.loads(call(choose_command, *asked, *more)[1])["models"]
        assert found["limit"] == found["length"] == limit and found["over"] > 0
    says = "train reads 5 tokens of a text under a head"
    assert says in call(inspect_command, folder)[1]
    assert "train reads" not in call(inspect_command, place / "bert")[1]


def test_a_broken_sentence_transformers_folder_is_one_line(tmp_path):
    folder = sentence_folder(tmp_path / "st", {"pooling_mode_mean_tokens": True})
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": "long"}')
    refused(lambda: sentence_settings(folder), "sentence_bert_config.json", "max_seq_length")
    (folder / "sentence_bert_config.json").unlink()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["mean"]}')
    refused(lambda: sentence_settings(folder), "1_Pooling/config.json", "pooling_mode")
    (folder / "1_Pooling" / "config.json").unlink()
    refused(lambda: sentence_settings(folder), "1_Pooling/config.json: is not there", "--pool")
    (folder / "modules.json").write_text('{"0": 1}')
    refused(lambda: sentence_settings(folder), "modules.json", "array")
    for path in ("../x", "/etc", 7):
        (folder / "modules.json").write_text(json.dumps([{"type": "Pooling", "path": path}]))
        refused(lambda: sentence_settings(folder), "modules.json", "beside it")


def test_the_heads_rate_is_its_own(place):
    from minillmclf.training import lr_factors
    from minillmclf.training.optim import parameter_groups
    model = Classifier.from_backbone(place / "bert", ["a", "b"])
    s = SimpleNamespace(layer_decay=1.0, head_lr=0.02, lr=0.001)
    groups = parameter_groups(model, s.lr, 0.01, lr_factors.of_settings(model, s))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.02 if name.startswith("head.") else 0.001
        assert rates[id(parameter)] == pytest.approx(expected), name


# ---------------------------------------------------------------- the page of what was measured

def test_the_tables_of_the_page_are_those_of_the_runs():
    from reference import few_rows as measured
    runs = list(measured.read(measured.RUNS).values())
    page = measured.PAGE.read_text(encoding="utf-8")
    assert measured.with_tables(page, runs) == page, "python tests/reference/few_rows.py --table"
    assert runs and all(line.keys() == {*measured.KEYS, "accuracy", "seconds", "steps"}
                        and "/" not in line["model"] for line in runs)
    changed = [line | {"accuracy": 1 - line["accuracy"]} for line in runs]
    assert measured.with_tables(page, changed) != page


def test_a_table_of_made_up_runs():
    from reference import few_rows as measured
    runs = [{"model": "m", "set": "trec6", "rows": rows, "seed": seed, "way": way, "seconds": 2.0,
             "accuracy": score, "steps": 7}
            for rows, seed, way, score in (("25", 0, "setfit", 0.5), ("10", 0, "setfit", 0.25),
                                           ("10", 1, "setfit", 0.75), ("10", 0, "probe", 0.5))]
    assert measured.table_of("m", runs).splitlines() == [
        "| set (m) | rows a class | probe | setfit |", "|---|---|---|---|",
        "| trec6 | 10 | 0.500 (1 seed), 2 s | 0.500 +- 0.354, 2 s, 7 steps |",
        "| trec6 | 25 | - | 0.500 (1 seed), 2 s, 7 steps |"]
    with pytest.raises(SystemExit, match="no table 'set .m.'"):
        measured.with_tables("a page", runs)


def test_ways_are_compared_on_the_same_draws():
    from reference import few_rows as measured
    runs = [{"model": "minilm", "set": name, "rows": "10", "seed": seed, "way": way,
             "accuracy": score}
            for name, seed, way, score in (
                ("trec6", 0, "contrastive", 0.5), ("trec6", 1, "contrastive", 0.75),
                ("trec6", 2, "contrastive", 0.0), ("trec6", 0, "setfit", 0.25),
                ("trec6", 1, "setfit", 0.875), ("sst2", 0, "contrastive", 0.5),
                ("sst2", 0, "full", 0.5), ("trec6", 1, "full", 0.25), ("trec6", 5, "probe", 0.5),
                ("trec6", 5, "probe, then full", 1.0), ("sst2", 0, "probe", 0.5))]
    assert measured.table_of_differences(runs).splitlines()[2:] == [
        "| full, minilm | 10 | - | +50.0, 1 of 1 | - | +0.0, 0 of 1 | - |",
        "| setfit, minilm | 10 | - | +6.2, 1 of 2 | - | - | - |"]
    means = measured.table_of_means(runs).splitlines()
    assert means[0] == "| mean of the sets | rows a class | full | probe | probe, then full | " \
                       "contrastive |"
    assert means[2:] == ["| minilm, 1 sets | 10 | 0.250 | 0.500 | 1.000 | 0.417 |"]
