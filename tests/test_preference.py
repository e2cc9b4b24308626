"""Which of two answers is better: the formula by hand, symmetry to the bit, swapping, files, and
that it is learned."""
import csv
import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import ROUNDED, fp32
from hypothesis import given
from hypothesis import strategies as st
from live import imported, loaded, may_refuse
from small import FILLERS, PIECES
from test_families import CONFIGS, spread

from minillmclf import evaluate, train
from minillmclf.cli.rows import load_dataset
from minillmclf.folds import __main__ as folds
from minillmclf.predict import __main__ as predict
from minillmclf.compare.comparison import obstacle
from minillmclf.compare.configurations import make_configurations, read_sweep
from minillmclf.classify import preference, swap
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.preference import describe_cuts, count_cuts, davidson, set_swap
from minillmclf.classify.swap import (average_orders, swap_columns, position_bias,
                                      longer_answer, side_numbers,
                                      compare_orders, swap_texts, swap_label, add_swapped)
from minillmclf.errors import InputError
from minillmclf.cli.activations import saved_activation_bytes
from minillmclf.models import initialise_weights, model_class, save_backbone
from minillmclf.cli.settings import Settings
from minillmclf.text import parts
from minillmclf.text.batch import Batch
from minillmclf.text.examples import Example
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.training.loop import take_step
from minillmclf.training.plan import Split
from minillmclf.training.optim import build_optimizer
from minillmclf.tuning import tune

FAMILIES = ["bert", "deberta-v3", "gpt2", "gemma3", "t5"]
LABELS = ["a", "b", "tie"]
HEAD, BOTH_WAYS = {"kind": "head"}, {"kind": "head", "swap": "predict"}
APART = {"kind": "bradley-terry"}
ROWS = [("the rose", "a soup was near and quite old", "rain"), ("wind", "knife", "salt salt salt"),
        ("is it", "bread", "bread")]
scores = st.floats(-30, 30, width=32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> a folder with a tiny body, as wide as in test_families.py, and a tokenizer."""
    made = {}
    for name in FAMILIES:
        kind, config = CONFIGS[name]
        made[name], config = tmp_path_factory.mktemp(name), {"model_type": kind, **config}
        model = spread(initialise_weights(model_class(config).from_config(config), 0))
        model.source_config = config
        save_backbone(model, made[name])
        WordPiece.from_vocab(PIECES).save(made[name])
    return made


def classifier(folder, asked, labels=LABELS, **more):
    model = Classifier.from_backbone(folder, labels, preference=asked, **more)
    spread(model.head, 3)
    return model


def answers(model, rows=ROWS):
    return model.compute_logits(model.encode(rows)[0]).softmax(-1)


# -------------------------------------------------------------------------------------- the formula

def test_davidson_by_hand():
    # worths 4 and 1, nu 0.5: ties weigh 0.5 * sqrt(4 * 1) = 1, all together 6
    found = davidson(torch.tensor([math.log(4.0)]), torch.tensor([0.0]),
                     torch.tensor([math.log(0.5)])).exp()
    assert torch.allclose(found, torch.tensor([[4 / 6, 1 / 6, 1 / 6]])), (
        f"not Davidson's formula: {found}")
    none = davidson(torch.tensor([1.3]), torch.tensor([0.2]), torch.tensor([-40.0])).exp()
    assert torch.allclose(none[0, 0], torch.tensor(1.1).sigmoid()), (
        "without ties it is Bradley and Terry's")


@given(scores, scores, scores)
def test_probabilities_add_up_to_one_and_a_swap_is_exact(r_a, r_b, log_nu):
    a, b, nu = torch.tensor([r_a]), torch.tensor([r_b]), torch.tensor([log_nu])
    found, turned = davidson(a, b, nu), davidson(b, a, nu)
    assert abs(found.exp().sum() - 1) < 1e-5, f"probabilities add up to {found.exp().sum()}"
    assert torch.equal(found, turned[:, [1, 0, 2]]), (
        f"a and b exchanged give other bits: {found}, {turned}")


def test_gradients_of_davidson_are_right():
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True)
             for size in (5, 5, 1)]
    assert torch.autograd.gradcheck(davidson, given)
    equal = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    davidson(equal, torch.zeros(2, dtype=torch.float64),
             torch.zeros(1, dtype=torch.float64)).sum().backward()
    assert equal.grad.isfinite().all(), "two equal answers break the gradient"


def test_the_tie_parameter_learns_the_share_of_ties():
    """For equally good answers the best fit is known: with a share of ties t, nu = 2t / (1 - t)."""
    log_nu = torch.zeros(1, requires_grad=True)
    truth, equal = torch.tensor([2] * 6 + [0, 0, 1, 1]), torch.zeros(10)
    solver = torch.optim.LBFGS([log_nu], max_iter=50)

    def loss():
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(davidson(equal, equal, log_nu), truth)
        value.backward()
        return value
    solver.step(loss)
    assert abs(log_nu.item() - math.log(2 * 0.6 / 0.4)) < 1e-3, f"log nu went to {log_nu.item()}"


# ----------------------------------------------------------------------------------------- swapping

def test_which_class_is_which():
    assert side_numbers(["tie", "b", "a"]) == [2, 1, 0]
    assert side_numbers(["model_a", "model_b", "tie"]) == [0, 1, 2]
    assert side_numbers(["A", "B", "tie"]) == [0, 1, 2]
    for labels in (["a", "b"], ["a", "b", "draw"], ["a", "B", "tie"], ["a", "b", "tie", "tie2"]):
        with pytest.raises(InputError, match="a preference has three"):
            side_numbers(labels)


@given(st.tuples(st.text(), st.text(), st.text()), st.sampled_from(sum(swap.SIDE_NAMES, ())))
def test_swapping_twice_is_nothing(texts, label):
    assert swap_texts(swap_texts(texts)) == texts and swap_texts(texts)[0] == texts[0]
    assert swap_label(swap_label(label)) == label
    assert (swap_label(label) == label) == (label == "tie")


@pytest.mark.parametrize("labels", [["a", "b", "tie"], ["tie", "b", "a"], ["b", "tie", "a"]])
def test_columns_are_exchanged_by_the_names_of_the_classes(labels):
    p = np.array([[0.5, 0.3, 0.2]])
    turned = swap_columns(p, labels)
    for name in labels:
        assert turned[0, labels.index(swap_label(name))] == p[0, labels.index(name)], (
            f"{labels}: p of {name} is lost")
    assert (swap_columns(turned, labels) == p).all(), "exchanging twice is nothing"


def test_training_rows_are_doubled_with_their_labels_and_no_other_row():
    rows = [Example(("p", "x", "y"), "model_a", 2), Example(("q", "u", "v"), "tie", 3)]
    both = add_swapped(rows)
    assert both[:2] == rows
    assert both[2:] == [Example(("p", "y", "x"), "model_b", 2), Example(("q", "v", "u"), "tie", 3)]
    with pytest.raises(InputError, match="needs three texts, a prompt and two answers, not 2"):
        add_swapped([Example(("x", "y"), "a", 2)])
    with pytest.raises(InputError, match="label 'draw' is no side"):
        add_swapped([Example(("p", "x", "y"), "draw", 2)])


@pytest.mark.parametrize("way", preference.SWAPS)
def test_each_swap_says_where_both_orders_are_used(way, folders):
    model = classifier(folders["gpt2"], {"kind": "head", "swap": way})
    task, examples = model.task, [Example(ROWS[0], "a", 2)]
    assert len(task.training_examples(examples)) == (2 if way in ("train", "both") else 1)
    learned, read = (model.encode(ROWS[:1], training=now)[0][0] for now in (True, False))
    orders = 2 if way in ("predict", "both") else 1
    assert len(task.sequences(learned)) == 1 and len(task.sequences(read)) == orders
    said, = task.answer_lines({"swap": {"answers_changed": 0.5, "mean_difference": 0.1}})
    assert said.endswith("(before averaging)") == (orders == 2), said


def test_averaging_by_hand():
    # in the second b stood first
    first, second = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.6, 0.3, 0.1]])
    found = average_orders(torch.cat([first.log() + 5, second.log()]), LABELS).exp()
    assert torch.allclose(found, torch.tensor([[0.5, 0.4, 0.1]])), (
        f"not (p(a | a, b) + p(b | b, a)) / 2: {found}")
    turned = average_orders(torch.cat([second.log(), first.log()]), LABELS).exp()
    assert torch.equal(turned, swap_columns(found, LABELS)), (
        "after averaging the order still matters")


def test_swap_inconsistency_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    q = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]])
    found = compare_orders(p, q)
    assert found["answers_changed"] == 0.5 and found["mean_difference"] == pytest.approx(0.4 / 6)
    assert compare_orders(p, p) == {"answers_changed": 0.0, "mean_difference": 0.0}


@pytest.mark.parametrize("labels", [["a", "b", "tie"], ["tie", "b", "a"]])
@pytest.mark.parametrize("asked", [BOTH_WAYS, APART])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_the_answers_changes_nothing(name, asked, labels, folders):
    model = classifier(folders[name], asked, labels)
    p, q = answers(model), swap_columns(answers(model, [swap_texts(row) for row in ROWS]), labels)
    assert (p - q).abs().max() < 1e-6, (
        f"{name}: p(a | a, b) and p(b | b, a) are {(p - q).abs().max():.2g} apart")
    a, b, tie = (p[:, labels.index(side)] for side in LABELS)
    assert abs(a[2] - b[2]) < 1e-6, f"{name}: of two equal answers one is preferred"
    assert (a[:2] - b[:2]).abs().min() > 1e-4 and tie.min() > 0, (
        f"{name}: nothing is preferred, so this compares nothing")
    once = position_bias(model, ROWS, model.compute_logits)
    assert (once["mean_difference"] > 1e-3) == (asked is BOTH_WAYS), (
        f"{name}: {once}: one head is biased, the other cannot be")


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_label_texts_are_read_in_both_orders_too(name, folders):
    asked = dict(template="{prompt}. {response_a}, {response_b}. {label}",
                 fields=["prompt", "response_a", "response_b"],
                 instruction="was the rose near a tree and the soup very old today again")
    once = Classifier.from_backbone(folders[name], LABELS, "labels", **asked)
    both = Classifier.from_backbone(folders[name], LABELS, "labels", preference={"swap": "predict"},
                                    **asked)
    turned = [swap_texts(row) for row in ROWS]
    expected = (answers(once) + swap_columns(answers(once, turned), LABELS)) / 2
    assert (answers(both) - expected).abs().max() < 1e-6, "not the mean over both prompts"
    assert (answers(both, ROWS[:1]) - expected[:1]).abs().max() < 1e-6, (
        "one row alone gets another answer")
    assert (answers(both) - answers(once)).abs().max() > 1e-3, (
        "one order answers as both do, so this compares nothing")


# --------------------------------------------------------------------------------- rows and batches

@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_the_two_answers_are_read_apart(name, folders):
    """Against the slow form: each sequence alone and unpadded, the formula by hand."""
    model = classifier(folders[name], APART, ["tie", "a", "b"])
    for prompt, a, b in ROWS[:2]:
        r = []
        for answer in (a, b):
            row, _ = parts.join_parts(model.tokenizer, (prompt, answer), parts.ONE_ANSWER, 64)
            ids, types = (torch.tensor([numbers]) for numbers in row)
            r.append(model.head(model.backbone.states(ids, ids >= 0, types), ids >= 0)[0, 0])
        worth = [r[0].exp(), r[1].exp()]
        tie = model.head.tie.bias[0].exp() * (worth[0] * worth[1]).sqrt()
        expected = torch.stack([tie, *worth]) / (tie + sum(worth))
        assert (answers(model, [(prompt, a, b)])[0] - expected).abs().max() < 1e-5, (
            f"{name}: not the scores of each answer alone")


@pytest.mark.parametrize("dtype, tolerance",
                         [(torch.float32, fp32(width=48, depth=6)), (torch.float64, ROUNDED)])
@pytest.mark.parametrize("asked", [HEAD, BOTH_WAYS, APART])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_padding_and_batch_mates_change_no_answer(name, asked, dtype, tolerance, folders):
    model = classifier(folders[name], asked).to(dtype)
    encoded = model.encode(ROWS)[0]
    alone = torch.cat([model(model.collate(encoded, [row])) for row in range(3)])
    batch = model.collate(encoded, range(3))
    left = [torch.zeros_like(batch.ids) for _ in range(3)]
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        for new, old in zip(left, (batch.ids, batch.mask, batch.types)):
            new[row, -length:] = old[row, :length]
    for way, found in {"right": model(batch), "left": model(Batch(*left, None, [0, 1, 2]))}.items():
        assert (found - alone).abs().max() <= tolerance * alone.abs().max(), (
            f"{name}: padded {way} with mates: other answers than alone")


def test_long_answers_are_cut_and_none_vanishes(folders):
    long = ("the rose", "soup " * 300, "rain " * 300 + "storm")
    for asked in (HEAD, BOTH_WAYS, APART):
        model = classifier(folders["bert"], asked, keep="head+tail")
        (row,), cut = model.encode([long])
        sequences = model.task.sequences(row)
        assert cut == 1 and all(len(ids) == 64 for ids, _ in sequences), (
            f"{asked}: not the whole room is used")
        assert any(model.tokenizer.ids("storm")[0] in ids for ids, _ in sequences), (
            f"{asked}: the end of an answer, which often decides, is gone")
        assert model.head.count_tokens(model.tokenizer, long) > 300
        counts = count_cuts(model, [long, *ROWS])
        assert counts == {"prompt": 0, "a": 1, "b": 1, "of": 4}, f"{asked}: {counts}"
        assert describe_cuts(counts) == "shortened: the prompt in 0 of 4 rows, a in 1, b in 1"
        with pytest.raises(InputError, match="text 1: a preference needs three texts"):
            model.encode([("the rose", "soup")])


def test_micro_batches_have_the_gradient_of_the_whole(folders):
    model = classifier(folders["bert"], APART)
    rows, found = rows_of(model, battles(12, 0)), []
    for size in (0, 5):
        optimizer = build_optimizer(model, 0.0, 0.0)
        take_step(model.eval(), optimizer, rows, list(range(12)),
                  Settings(micro_batch_size=size, clip=0.0), None)
        found.append({
            path: p.grad.clone() for path, p in model.named_parameters() if p.grad is not None})
    assert max((found[0][path] - found[1][path]).abs().max() for path in found[0]) < 1e-5, (
        "pieces add up to another gradient")


# Each is a mistake that is easily made, and the test that has to see it.
WRONG = {
    "texts are exchanged, labels not": (
        swap, "swap_label", lambda label: label,
        lambda _: test_training_rows_are_doubled_with_their_labels_and_no_other_row()),
    "the mean without the exchange of columns": (
        preference, "average_orders",
        lambda scores, labels: torch.logaddexp(*scores.log_softmax(-1).chunk(2)).log_softmax(-1),
        lambda folders: test_the_order_of_the_answers_changes_nothing("bert", BOTH_WAYS, LABELS,
                                                                      folders)),
    "the mean of twice the same order": (
        preference, "swap_texts", lambda texts: texts,
        lambda folders: test_the_order_of_the_answers_changes_nothing("bert", BOTH_WAYS, LABELS,
                                                                      folders)),
    "the mean of scores, not of probabilities": (
        preference, "average_orders",
        lambda scores, labels: scores.chunk(2)[0] + swap_columns(scores.chunk(2)[1], labels),
        lambda folders: test_label_texts_are_read_in_both_orders_too("gpt2", folders)),
    "a tie that depends on one worth": (
        preference, "davidson",
        lambda r_a, r_b, log_nu: torch.stack([r_a, r_b, log_nu + r_a], 1).log_softmax(1),
        lambda folders: test_the_order_of_the_answers_changes_nothing("bert", APART, LABELS,
                                                                      folders)),
    "a tie that depends on no worth": (
        preference, "davidson",
        lambda r_a, r_b, log_nu: torch.stack([r_a, r_b, log_nu.expand_as(r_a)], 1).log_softmax(1),
        lambda folders: test_the_two_answers_are_read_apart("bert", folders)),
    "classes in the order a, b, tie whatever their names": (
        preference, "side_numbers", lambda labels: [0, 1, 2],
        lambda folders: test_the_order_of_the_answers_changes_nothing("bert", APART,
                                                                      ["tie", "b", "a"], folders)),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_known_mistakes_are_seen(mistake, folders, monkeypatch):
    module, name, wrong, test = WRONG[mistake]
    test(folders)
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        test(folders)


# -------------------------------------------------------------------------------------------- files

@pytest.mark.parametrize("pool", ["family", "mean"])
@pytest.mark.parametrize("asked", [HEAD, BOTH_WAYS, APART])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_comes_back_bit_for_bit(name, asked, pool, folders, tmp_path):
    model = classifier(folders[name], asked, pool=pool)
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert again.settings()["preference"] == model.settings()["preference"] == {
        "swap": "none", **asked}
    assert not again.report.newly_initialised
    assert torch.equal(answers(again), answers(model)), (
        f"{name}: {asked} answers otherwise from its folder")
    other = Classifier.from_backbone(tmp_path, ["x", "y"])
    assert all(path.startswith(("head.out", "head.dense"))
               for path in other.report.newly_initialised), "its body is no body any more"


@pytest.mark.parametrize("method", ["lora", "houlsby", "prompt", "prefix"])
@pytest.mark.parametrize("asked", [BOTH_WAYS, APART])
def test_it_is_tuned_beside_its_base_and_comes_back(asked, method, folders, tmp_path):
    lora = dict(rank=2, alpha=4.0, dropout=0.0, use_rslora=False, targets=None, bias="none")
    recipe = {"lora": lora, "houlsby": dict(size=4), "prompt": dict(tokens=3),
              "prefix": dict(tokens=3, projection=False)}[method]
    model = classifier(folders["bert"], asked)
    tune(model, {"method": method, **recipe})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    model.eval().save(tmp_path)
    again = Classifier.load(tmp_path)
    assert torch.equal(answers(again), answers(model)), (
        f"{method}: what was learned is not all in the folder")
    p, q = answers(model), swap_columns(answers(model, [swap_texts(row) for row in ROWS]), LABELS)
    assert (p - q).abs().max() < 1e-6, (
        f"{method}: what stands before a text does so for one of the two only")


def test_transformers_reads_the_head_as_an_ordinary_classifier(folders, tmp_path):
    transformers = imported("transformers")
    model = classifier(folders["bert"], HEAD)
    model.save(tmp_path)
    theirs = loaded(transformers.AutoModelForSequenceClassification.from_pretrained, tmp_path)
    batch = model.collate(model.encode(ROWS)[0], range(3))
    with torch.no_grad(), may_refuse():
        logits = theirs(input_ids=batch.ids, attention_mask=batch.mask,
                        token_type_ids=batch.types).logits
    assert (logits.softmax(-1) - answers(model)).abs().max() < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_reads_the_trunk_of_bradley_terry(name, folders, tmp_path):
    transformers = imported("transformers")
    model = classifier(folders[name], APART)
    model.save(tmp_path)
    kind = transformers.T5EncoderModel if name == "t5" else transformers.AutoModel
    theirs, said = loaded(kind.from_pretrained, tmp_path, output_loading_info=True)
    assert not [key for key in said["missing_keys"] if "pooler" not in key], (
        f"{name}: the trunk is not whole: {said}")
    row = model.encode(ROWS)[0][0].second
    ids = torch.tensor([row[0]])
    with torch.no_grad(), may_refuse():
        hidden = theirs.eval()(input_ids=ids).last_hidden_state
        read = model.backbone.encode if name == "t5" else model.backbone.states
        ours = read(ids, ids >= 0)
    assert (hidden - ours).abs().max() < 1e-4, f"{name}: another trunk than ours"


def test_what_does_not_go_together_is_told(folders, tmp_path):
    cases = [
        (dict(kind="bradley-terry", swap="both"), {}, "--swap both changes nothing"),
        (dict(swap="train"), {}, "--swap train needs two answers"),
        (dict(kind="head"), dict(readout="labels"), "--preference head goes with --readout head"),
        (dict(kind="head"),
         dict(windows={"pool": "mean", "overlap": 2, "max_windows": 8, "max_document": 99}),
         "windows go with one text or two"), (dict(kind="best"), {}, "preference 'best'"),
        (dict(how="x"), {}, "an object with kind and swap")]
    for asked, more, message in cases:
        with pytest.raises(InputError, match=message):
            Classifier.from_backbone(folders["bert"], LABELS, preference=asked, **more)
    with pytest.raises(InputError, match="a preference has three"):
        Classifier.from_backbone(folders["bert"], ["good", "bad", "tie"], preference=HEAD)
    classifier(folders["bert"], HEAD).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["minillmclf"]["preference"] = {"kind": "?"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: preference '\?'"):
        Classifier.load(tmp_path)


# ----------------------------------------------------------------------------------------- learning

def battles(rows, seed, good="rose"):
    """Rows in which the answer with the good word wins; a tie where none has it."""
    draw, found = random.Random(seed), []
    for number in range(rows):
        label = LABELS[number % 3]
        prompt, a, b = (" ".join(draw.choices(FILLERS[2:], k=draw.randint(1, 3))) for _ in range(3))
        a, b = f"{a} {good}" if label == "a" else a, f"{b} {good}" if label == "b" else b
        found.append(Example((prompt, a, b), label, number + 2))
    return found


def rows_of(model, examples):
    return Split(model.encode([e.texts for e in examples], training=True)[0],
                 [LABELS.index(e.label) for e in examples])


@pytest.mark.parametrize("name, asked, steps",
                         [("bert", APART, 30), ("gpt2", APART, 30), ("t5", APART, 30),
                          ("bert", HEAD, 100), ("gpt2", HEAD, 60)])
def test_the_good_word_is_learned(name, asked, steps, folders):
    model = Classifier.from_backbone(folders[name], LABELS, preference=asked)
    initialise_weights(model, 0, std=0.15)
    data, fresh = rows_of(model, add_swapped(battles(48, 0))), battles(60, 1)
    model(model.collate(data.encoded, range(24))).logsumexp(0).square().sum().backward()
    idle = [path for path, p in model.named_parameters()
            if p.requires_grad and p.grad is not None and p.grad.abs().max() < 1e-7]
    assert not [path for path in idle if path.startswith("head.")], (
        f"{name}, {asked}: never learn: {idle}")
    optimizer = build_optimizer(model, 1e-2, 0.0)
    draw = random.Random(0)  # and no dropout: the same course each time
    for _ in range(steps):
        take_step(model.eval(), optimizer, data, draw.sample(range(96), 24), Settings(), None)
    right = answers(model, [e.texts for e in fresh]).argmax(1) == torch.tensor(
        [LABELS.index(e.label) for e in fresh])
    assert right.float().mean() > 0.9, (
        f"{name}, {asked}: {right.float().mean():.2f} of new rows are right after {steps} steps")
    if asked is APART:
        assert model.head.tie.bias.item() != 0, "the tie parameter does not learn"


def test_the_longer_answer_by_hand():
    def row(a, b, label):
        return Example(("p", "x" * a, "x" * b), label, 2)
    rows = [row(5, 1, "a"), row(1, 5, "b"), row(1, 5, "a"), row(2, 1, "tie"), row(3, 3, "tie")]
    found = longer_answer(rows, [row(9, 2, "a").texts, row(2, 9, "a").texts, row(4, 4, "a").texts],
                          ["tie", "b", "a"])
    # each class's count begins at one
    expected = [[2 / 7, 2 / 7, 3 / 7], [2 / 7, 3 / 7, 2 / 7], [2 / 4, 1 / 4, 1 / 4]]
    assert np.allclose(found, expected), found
    one, turned = (longer_answer(add_swapped(rows), [row(*lengths, "a").texts], LABELS)
                   for lengths in ((9, 2), (2, 9)))
    assert np.allclose(turned, swap_columns(one, LABELS))


# ----------------------------------------------------------------------------------------- commands

def arena_file(path, train_rows=24, others=9):
    rows = battles(train_rows + 2 * others, 5)
    splits = ["train"] * train_rows + ["dev"] * others + ["test"] * others
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([
            ("prompt", "response_a", "response_b", "winner", "split"),
            *((*e.texts, e.label, split) for e, split in zip(rows, splits))])
    return path


@pytest.mark.parametrize("name, flags", [
    ("bert", ["--preference", "head", "--swap", "both"]),
    ("bert", ["--preference", "bradley-terry"]),
    ("bert", ["--preference", "head", "--swap", "train", "--method", "lora"]),
    ("gpt2", ["--readout", "labels", "--swap", "both",
              "--label-texts", '{"a": "rose", "b": "soup", "tie": "rain"}'])])
def test_the_commands_train_evaluate_and_predict(name, flags, folders, tmp_path, capsys):
    data, out = arena_file(tmp_path / "arena.csv"), tmp_path / "run"
    common = ["--model", str(folders[name]), "--data", str(data), "--out", str(out),
              "--epochs", "1", "--batch-size", "8"]
    with pytest.raises(InputError, match="two answers to a prompt are compared with --preference"):
        train.main(common)
    assert train.main([*common, *flags]) == 0
    said, record = capsys.readouterr().out, json.loads((out / "run.json").read_text())
    assert "longer answer" in said
    assert record["results"].keys() >= {"longer answer", "majority class"}
    steps = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["step"]
    assert steps == (6 if "--swap" in flags else 3), "augmentation doubles the rows of train"
    assert record["data"]["rows"] == {"train": 24, "dev": 9, "test": 9}, "and no other row"
    assert evaluate.main(["--model", str(out), "--out", str(tmp_path / "e.json")]) == 0
    again, said = json.loads((tmp_path / "e.json").read_text()), capsys.readouterr().out
    assert again["log_loss"] == pytest.approx(list(record["results"].values())[-1]["log_loss"],
                                              abs=1e-6)
    assert "of the answers change" in said
    assert (again["swap"]["mean_difference"] > 1e-6) == ("--swap" in flags)
    assert again["cut"] == {"prompt": 0, "a": 0, "b": 0, "of": 9}
    assert "shortened: the prompt in 0 of 9 rows" in said
    assert record["cut"]["of"] == 42 and record["swap"] == pytest.approx(again["swap"], abs=1e-6)
    assert predict.main(["--model", str(out), "--data", str(data),
                         "--out", str(tmp_path / "answers.jsonl")]) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 42
    texts = [e.texts for e in battles(42, 5)]
    said = [json.loads(line)["probabilities"]
            for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    expected = answers(Classifier.load(out), texts)
    assert max(abs(row[label] - p) for row, ps in zip(said, expected.tolist())
               for label, p in zip(LABELS, ps)) < 1e-5


def test_a_saved_head_may_average_or_not(folders, tmp_path, capsys):
    """--swap of evaluate and predict goes over what the folder says."""
    model, data = classifier(folders["bert"], HEAD), arena_file(tmp_path / "arena.csv")
    model.save(tmp_path / "model")
    texts, found = [e.texts for e in battles(42, 5)], {}
    for way in ("none", "predict"):
        set_swap(model, way)
        expected, file = answers(model, texts), tmp_path / f"{way}.jsonl"
        predict.main(["--model", str(tmp_path / "model"), "--data", str(data), "--swap", way,
                      "--out", str(file)])
        said = [list(json.loads(line)["probabilities"].values())
                for line in file.read_text().splitlines()]
        assert (torch.tensor(said) - expected).abs().max() < 1e-5, (
            f"--swap {way} is not what answers")
        evaluate.main(["--model", str(tmp_path / "model"), "--data", str(data), "--swap", way,
                       "--out", str(tmp_path / "e.json"), "--overwrite"])
        found[way] = json.loads((tmp_path / "e.json").read_text())
    assert found["none"]["log_loss"] != found["predict"]["log_loss"], (
        "both ways answer alike, so this compares nothing")
    assert found["none"]["swap"] == found["predict"]["swap"], (
        "the inconsistency is told before averaging")
    model = classifier(folders["bert"], None, labels=["x", "y"])
    with pytest.raises(InputError, match="--swap predict needs two answers"):
        set_swap(model, "predict")


def test_the_calibration_stays_where_the_swap_changes(folders):
    model = classifier(folders["gpt2"], HEAD)
    model.task.set_calibration({"bias": [0.3, -0.2, 0.1], "temperature": 2.0})
    kept = model.task.calibration
    for way in ("predict", "none"):
        set_swap(model, way)
        assert model.task.swap == way and model.task.calibration == kept, way


def test_the_command_that_asks_a_language_model_reads_both_orders(folders, tmp_path, capsys):
    data, found = arena_file(tmp_path / "arena.csv"), {}
    texts = json.dumps({"a": "rose", "b": "soup", "tie": "rain"})
    common = ["--model", str(folders["gpt2"]), "--data", str(data), "--method", "prompt",
              "--label-texts", texts, "--shots", "0"]
    for way in ("none", "predict"):
        out = ["--out", str(tmp_path / "e.json"), "--overwrite"]
        assert evaluate.main([*common, "--swap", way, *out]) == 0
        found[way] = json.loads((tmp_path / "e.json").read_text())
    assert "longer answer" in capsys.readouterr().out
    once = Classifier.from_backbone(folders["gpt2"], LABELS, "labels",
                                    fields=["prompt", "response_a", "response_b"],
                                    label_texts={"a": ["rose"], "b": ["soup"], "tie": ["rain"]})
    rows = [e for e in battles(42, 5)][33:]
    p = answers(once, [e.texts for e in rows])
    q = answers(once, [swap_texts(e.texts) for e in rows])
    truth = torch.tensor([LABELS.index(e.label) for e in rows])
    for way, probabilities in (("none", p), ("predict", (p + swap_columns(q, LABELS)) / 2)):
        loss = -probabilities[torch.arange(9), truth].log().mean().item()
        assert found[way]["results"]["as it is"]["log_loss"] == pytest.approx(loss, abs=1e-4), (
            f"--swap {way}: another answer")
    assert found["predict"]["swap"] == pytest.approx(compare_orders(p, swap_columns(q, LABELS)),
                                                     abs=1e-5)
    assert found["none"]["results"]["temperature"] != found["predict"]["results"]["temperature"]


def test_folds_read_the_three_texts_as_they_are(folders, tmp_path):
    rows = battles(36, 5)
    with open(tmp_path / "arena.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([
            ("prompt", "response_a", "response_b", "winner"), *((*e.texts, e.label) for e in rows)])
    out = tmp_path / "out"
    assert folds.main(["--model", str(folders["bert"]), "--data", str(tmp_path / "arena.csv"),
                       "--folds", "2", "--epochs", "1",
                       "--preference", "head", "--swap", "both", "--out", str(out)]) == 0
    found = {row["line"]: row for row in csv.DictReader(open(out / "oof.csv", encoding="utf-8"))}
    models = [Classifier.load(out / f"fold-{fold}") for fold in (1, 2)]
    for line, example in enumerate(rows[:6], 2):
        row = found[str(line)]
        expected = answers(models[int(row["fold"]) - 1], [example.texts])[0]
        assert ([float(row[f"p_{label}"]) for label in LABELS]
                == pytest.approx(expected.tolist(), abs=1e-5)), (
            "a fold's model was not asked with prompt, response_a and response_b as they are")
    with pytest.raises(InputError, match="need three, a prompt and two answers"):
        folds.main(["--data", "tickets", "--preference", "head", "--out", str(tmp_path / "no")])


def test_a_comparison_may_vary_the_preference(folders, tmp_path):
    data, model = str(arena_file(tmp_path / "arena.csv")), str(folders["bert"])
    found = make_configurations([f"{model}@preference=head", f"{model}@preference=bradley-terry",
                                 model], ["full"], ["head"],
                                read_sweep(["swap=none,both"]), {"data": data})
    rows = load_dataset(found[0].settings)
    assert [obstacle(c, rows) and obstacle(c, rows).split(":")[0] for c in found] == [
        "", "", "", "--swap both changes nothing beside --preference bradley-terry, "
        "which reads each answer alone",
        *["a head reads one text or two of a row, not 3"] * 2]


def test_what_a_step_keeps_counts_both_sequences(folders):
    one, two = (saved_activation_bytes(classifier(folders["bert"], asked).train(), 20, rows)
                for asked, rows in ((HEAD, 2), (APART, 1)))
    assert abs(one - two) < 0.05 * one, (
        f"a row of two answers keeps {two} bytes, two rows keep {one}")
