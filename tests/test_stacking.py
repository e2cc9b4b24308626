"""Stacking: what a member has not seen stays unseen, both orders agree, and the regression is the
minimum that it says it is."""
import math

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf import Classifier
from minillmclf.classify.swap import swap_columns, swap_texts
from minillmclf.errors import InputError
from minillmclf.folds import stacking
from minillmclf.folds.submission import scores_key
from minillmclf.models.tensor_files import write_tensors
from minillmclf.text.examples import Example
from minillmclf.training.metrics import evaluate

LABELS = ["a", "b", "tie"]
WORDS = "river stone paper cloud green early seven light".split()
FEW = settings(max_examples=25, deadline=None)


def battles(count, seed=0, longer=0.8):
    """Rows in which the longer answer wins with probability `longer`, else a tie."""
    draw, rows = np.random.default_rng(seed), []
    for number in range(count):
        short, long = (" ".join(draw.choice(WORDS, size)) for size in (2, 7))
        a, b = (long, short) if number % 2 else (short, long)
        won = "a" if number % 2 else "b"
        rows.append(Example((f"prompt {number // 3}", a, b),
                            won if draw.random() < longer else "tie", number + 2))
    return rows


def folds_of(rows, k=3):
    return [int(row.texts[0].split()[1]) % k for row in rows]


def random_member(rows, tests, seed=0, name="noise"):
    draw = torch.Generator().manual_seed(seed)
    logs = [torch.randn(n, 3, generator=draw, dtype=torch.float64).log_softmax(1)
            for n in (len(rows), len(tests))]
    return stacking.Member(name, *logs)


# ---------------------------------------------------------------- the regression

def test_the_regression_is_at_its_minimum():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=draw, dtype=torch.float64) * torch.tensor([1, 10, 0.1, 1])
    y = torch.randint(0, 3, (80,), generator=draw)
    logits = stacking.fit_regression(x, y, 3, 5.0)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    weight = torch.linalg.lstsq(torch.cat([z, torch.ones(80, 1)], 1), logits(x)).solution
    gap = logits(x).softmax(1) - F.one_hot(y, 3)                                    # (80, 3)
    gradient = torch.cat([z.T @ gap + 5.0 * weight[:4], gap.sum(0, keepdim=True)])
    assert gradient.abs().max() < 1e-3


def test_without_features_that_tell_it_gives_the_frequencies_of_the_classes():
    x, y = torch.zeros(10, 2, dtype=torch.float64), [0] * 5 + [1] * 3 + [2] * 2
    p = stacking.fit_regression(x, y, 3, 1.0)(x).softmax(1)
    assert torch.allclose(p[0], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), atol=1e-4)


def test_the_unit_of_a_feature_does_not_matter():
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 3, generator=draw, dtype=torch.float64), torch.arange(60) % 3
    one = stacking.fit_regression(x, y, 3, 2.0)(x)
    other = stacking.fit_regression(x * 1000 + 7, y, 3, 2.0)(x * 1000 + 7)
    assert torch.allclose(one, other, atol=1e-4)


# ---------------------------------------------------------------- both orders

@FEW
@given(st.lists(st.text("ab \n", max_size=12), min_size=3, max_size=3))
def test_lengths_of_the_other_order(texts):
    one, other = stacking.length_features([tuple(texts), swap_texts(tuple(texts))])
    sign = torch.tensor([-1.0] * 6 + [1.0] * 5, dtype=torch.float64)
    assert torch.allclose(other, one * sign)


def test_lengths_by_hand():
    found = stacking.length_features([("ask", "one two two", "one")])[0]
    expected = [math.log(12 / 4), math.log(4 / 2), 0, 2 / 3 - 1]
    assert found[:4].tolist() == pytest.approx(expected)
    assert found[-1] == 0 and stacking.length_features([("ask", "x", "x")])[0, -1] == 1


def test_vectors_of_the_other_order():
    draw = torch.Generator().manual_seed(2)
    prompt, a, b = (F.normalize(torch.randn(5, 4, generator=draw), dim=1) for _ in range(3))
    one, other = stacking.pair_features(prompt, a, b), stacking.pair_features(prompt, b, a)
    assert one.shape == (5, 3 * 4 + 2)
    assert torch.allclose(other[:, :9], -one[:, :9]) and torch.allclose(other[:, 9:], one[:, 9:])


@pytest.mark.parametrize("labels", [LABELS, ["tie", "model_b", "model_a"]])
def test_answers_change_places_with_the_texts(labels):
    rows = battles(60)
    if "model_a" in labels:
        names = {"a": "model_a", "b": "model_b", "tie": "tie"}
        rows = [Example(row.texts, names[row.label], row.row) for row in rows]
    tests = [row.texts for row in battles(12, 1)]
    noise = random_member(rows, tests)
    stack = stacking.fit_stack(rows, [noise], folds_of(rows), labels)
    swapped = stacking.Member("noise", noise.out_of_fold, swap_columns(noise.test, labels))
    p = stack.predict(tests, [noise])
    q = stack.predict([swap_texts(row) for row in tests], [swapped])
    assert np.abs(p - swap_columns(torch.from_numpy(q), labels).numpy()).max() < 1e-3
    assert np.abs(p.sum(1) - 1).max() < 1e-9


# ---------------------------------------------------------------- the stack

def test_it_learns_that_the_longer_answer_wins_and_that_noise_is_noise():
    rows, unseen = battles(120), battles(60, 1)
    tests, truth = [row.texts for row in unseen], [LABELS.index(row.label) for row in unseen]
    noise = random_member(rows, tests)
    loss = {}
    for name, members, lengths in (("lengths", [], True), ("both", [noise], True),
                                   ("noise", [noise], False)):
        stack = stacking.fit_stack(rows, members, folds_of(rows), LABELS, lengths)
        loss[name] = evaluate(stack.predict(tests, members), truth, LABELS)["log_loss"]
    assert loss["lengths"] < 0.75 < 1.0 < loss["noise"]
    assert loss["both"] < loss["lengths"] + 0.05


def test_a_member_that_knows_the_truth_wins():
    rows = battles(60, longer=0.4)
    tests = [row.texts for row in rows]
    y = torch.tensor([LABELS.index(row.label) for row in rows])
    oracle = F.one_hot(y, 3).double().mul(3).log_softmax(1)
    stack = stacking.fit_stack(rows, [stacking.Member("oracle", oracle, oracle)], folds_of(rows),
                               LABELS)
    assert F.nll_loss(stack.out_of_fold, y) < 0.5
    assert (stack.predict(tests, [stacking.Member("oracle", oracle, oracle)]).argmax(1)
            == y.numpy()).all()


def test_out_of_fold_answers_are_of_rows_that_were_not_seen(monkeypatch):
    """A row's label changes nothing in the out-of-fold answers of its own fold."""
    monkeypatch.setattr(stacking, "STRENGTHS", (10.0,))
    rows = battles(45)
    changed = [Example(rows[0].texts, "a" if rows[0].label == "b" else "b", 2), *rows[1:]]
    one, other = (stacking.fit_stack(each, [], folds_of(rows), LABELS).out_of_fold
                  for each in (rows, changed))
    same_fold = np.array(folds_of(rows)) == folds_of(rows)[0]
    assert torch.equal(one[same_fold], other[same_fold])
    assert not torch.equal(one[~same_fold], other[~same_fold])


def test_nothing_to_stack_and_wrong_labels_are_refused():
    rows = battles(12)
    with pytest.raises(InputError, match="needs a member, or lengths"):
        stacking.fit_stack(rows, [], folds_of(rows), LABELS, lengths=False)
    with pytest.raises(InputError, match="a preference has three"):
        stacking.fit_stack(rows, [], folds_of(rows), ["a", "b", "draw"])


# ---------------------------------------------------------------- members

def test_each_row_is_answered_by_the_fit_that_has_not_seen_it():
    rows, folds, asked = battles(12), [0, 1, 2] * 4, []

    def fit(numbers, fold):
        assert fold not in {folds[i] for i in numbers} and len(numbers) == 8
        def predict(texts):
            asked.append((fold, texts))
            return torch.full((len(texts), 3), 1 / 3).log() + torch.tensor([fold, 0, 0])
        return predict
    member = stacking.make_member("made up", fit, rows, folds, [rows[0].texts])
    for fold, texts in asked[::2]:
        assert texts == [row.texts for row, own in zip(rows, folds) if own == fold]
    shift = member.out_of_fold[:, 0] - member.out_of_fold[:, 1]
    assert torch.allclose(shift, torch.tensor(folds, dtype=torch.float64), atol=1e-6)
    each = torch.tensor([[fold, 0.0, 0.0] for fold in range(3)]).double().softmax(1)
    assert torch.allclose(member.test[0].exp(), each.mean(0))


def test_the_bag_is_symmetric_and_learns_words():
    rows = [Example((f"prompt {n // 2}", *(("good", "bad") if n % 2 else ("bad", "good"))),
                    "a" if n % 2 else "b", n) for n in range(36)]
    tests = [("prompt", "good", "bad"), ("prompt", "bad", "good")]
    folds, groups = folds_of(rows), [row.texts[0] for row in rows]
    rows[0] = Example(rows[0].texts, "tie", 0)
    rows[9] = Example(rows[9].texts, "tie", 9)
    member = stacking.bag_of_words_member(rows, groups, folds, tests, LABELS)
    p = member.test.exp()
    assert torch.allclose(p[0, [1, 0, 2]], p[1], atol=1e-6) and p[0, 0] > 2 * p[0, 1]


def test_vectors_of_a_model(tmp_path):
    model = Classifier.from_backbone(small.bert_folder(tmp_path / "bert"), LABELS, pool="mean",
                                     max_length=16)
    rows = battles(24)
    tests = [rows[0].texts, swap_texts(rows[0].texts)]
    known = stacking.text_vectors(model, tests)
    assert set(known) == set(rows[0].texts)
    assert all(abs(vector.norm().item() - 1) < 1e-5 for vector in known.values())
    member = stacking.vector_member("small", model, rows, folds_of(rows), tests, LABELS)
    assert member.out_of_fold.shape == (24, 3) and member.test.exp().sum(1).allclose(
        torch.ones(2, dtype=torch.float64), atol=1e-5)
    p = member.test.exp()
    assert torch.allclose(p[0, [1, 0, 2]], p[1], atol=1e-3)


def folds_folder(folder, rows, logits, texts, tests):
    """What the command folds leaves behind, as far as a stack reads it. texts: of the test rows;
    tests: their logits, for each fold."""
    folds, p = folds_of(rows), logits.softmax(1)
    lines = ["id,line,fold,label,predicted,p_a,p_b,p_tie"]
    for number, row in enumerate(rows):
        values = ",".join(f"{value:.10f}" for value in p[number].tolist())
        lines.append(f"{100 + number},{row.row},{folds[number] + 1},{row.label},a,{values}")
    folder.mkdir(exist_ok=True)
    (folder / "oof.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, scores in enumerate(tests, 1):
        fold = folder / f"fold-{number}"
        fold.mkdir(exist_ok=True)
        (fold / "run.json").write_text("{}")
        write_tensors(fold / "scores-test.safetensors", {"scores": scores},
                      scores_key(fold, [Example(row, None, 0) for row in texts]))
    return folder


def test_a_folder_of_folds_is_a_member(tmp_path):
    rows, draw = battles(9), torch.Generator().manual_seed(3)
    texts = [row.texts for row in battles(4, 1)]
    logits = torch.randn(9, 3, generator=draw, dtype=torch.float64)
    tests = [torch.randn(4, 3, generator=draw) for _ in range(3)]
    folder, ids = folds_folder(tmp_path / "bert", rows, logits, texts, tests), range(100, 109)
    member = stacking.read_member(folder, ids, texts, LABELS, folds_of(rows))
    assert member.name == "bert"
    assert torch.allclose(member.out_of_fold, logits.log_softmax(1), atol=1e-6)
    mean = sum(each.double().softmax(1) for each in tests) / 3
    assert torch.allclose(member.test.exp(), mean, atol=1e-6)
    turned = stacking.read_member(folder, ids, texts, ["tie", "a", "b"])
    for found, columns in ((turned.out_of_fold, member.out_of_fold), (turned.test, member.test)):
        assert torch.allclose(found, columns[:, [2, 0, 1]])
    for wrong, words in (((range(9), texts, LABELS), "are not the 9 rows of the data"),
                         ((ids, texts[:3], LABELS), "its 4 rows are not these 3 test rows"),
                         ((ids, texts[::-1], LABELS), "its 4 rows are not these 4 test rows"),
                         ((ids, texts, [*LABELS, "both"]), "has no column 'p_both'"),
                         ((ids, texts, LABELS[:2]), r"shape \(4, 3\), should be \(4, 2\)"),
                         ((ids, texts, LABELS, [0] * 9), "has other folds")):
        with pytest.raises(InputError, match=words):
            stacking.read_member(folder, *wrong)
    for name in "scores-test.safetensors", "run.json":
        (folder / "fold-2" / name).unlink()
        with pytest.raises(InputError, match=f"{name}: is not there: run folds with --test"):
            stacking.read_member(folder, ids, texts, LABELS)
        folds_folder(folder, rows, logits, texts, tests)


def test_a_text_without_a_token_has_a_vector(tmp_path):
    model = Classifier.from_backbone(small.bert_folder(tmp_path / "bert"), LABELS, pool="mean")
    known = stacking.text_vectors(model, [("", "\u200b", "rain"), ("(empty)", "rain", "soup")])
    assert torch.allclose(known["\u200b"], known["(empty)"], atol=1e-5)
    assert not torch.allclose(known["rain"], known["soup"], atol=1e-2)


def test_vectors_are_fitted_to_what_lengths_leave(tmp_path, monkeypatch):
    """With a penalty that lets no weight live, a model's member is that of the lengths alone."""
    from reference.stacking import length_member
    monkeypatch.setattr(stacking, "VECTOR_STRENGTH", 1e9)
    model = Classifier.from_backbone(small.bert_folder(tmp_path / "bert"), LABELS, pool="mean",
                                     max_length=16)
    rows = battles(45)
    tests = [row.texts for row in battles(9, 1)]
    alone = length_member(rows, folds_of(rows), tests)
    member = stacking.vector_member("small", model, rows, folds_of(rows), tests, LABELS)
    assert torch.allclose(member.out_of_fold, alone.out_of_fold, atol=1e-3)
    assert torch.allclose(member.test, alone.test, atol=1e-3)
    assert alone.test.exp().max() > 0.6
