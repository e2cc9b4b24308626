"""Calibration: cases by hand, what a method promises of the rows it was fitted to, refusals."""
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf.classify.calibrate import (CONTENT_FREE, Calibration, fit_batch, fit_contextual,
                                           fit_temperature)
from minillmclf.errors import InputError
from minillmclf.training.metrics import evaluate

LOG = math.log
# mean of the probabilities 0.7, 0.3
HALVES = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64).log()


def synthetic(rows=400, classes=4, sharper=1.0, seed=0):
    """Scores whose softmax is, times `sharper`, the distribution that the labels are drawn from."""
    seeded = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(rows, classes, generator=seeded, dtype=torch.float64)
    return scores * sharper, torch.multinomial(scores.softmax(1), 1, generator=seeded).flatten()


def log_loss(scores, labels, t=1.0):
    return torch.nn.functional.cross_entropy(scores.double() / t, labels).item()


def compare(scores, labels, names, calibrations):
    """{"as they are": metrics, name: metrics, ...} of the scores after each calibration."""
    ways = {"as they are": Calibration([0.0] * scores.shape[1]), **calibrations}
    return {way: evaluate(c(scores).double().softmax(1).numpy(), labels.numpy(), list(names))
            for way, c in ways.items()}


# ---- bias ----

@pytest.mark.parametrize("fit", [fit_contextual, fit_batch])
def test_the_bias_by_hand(fit):
    assert fit(HALVES).bias == pytest.approx([LOG(0.7), LOG(0.3)])
    assert fit(HALVES).temperature == 1
    a, b = 0.9 / 0.7, 0.1 / 0.3
    assert fit(HALVES)(HALVES).softmax(1)[0].tolist() == pytest.approx([a / (a + b), b / (a + b)])


def test_a_text_without_content_comes_out_uniform():
    assert CONTENT_FREE == ("N/A", "", "[MASK]")
    for scores in ([[3.0, -1.0, 0.5]], [[-700.0, -20.0, -21.0]], [[1e4, -1e4, 0.0]]):
        scores = torch.tensor(scores, dtype=torch.float64)
        assert fit_contextual(scores)(scores).softmax(1)[0].tolist() == pytest.approx(
            [1 / 3] * 3, abs=1e-12)


def test_contextual_is_the_diagonal_matrix_of_the_paper():
    free, rows = synthetic(3, seed=1)[0], synthetic(20, seed=2)[0]
    w = torch.diag(1 / free.softmax(1).mean(0))                            # (C, C)
    expected = rows.softmax(1) @ w
    expected = expected / expected.sum(1, keepdim=True)
    assert torch.allclose(fit_contextual(free)(rows).softmax(1), expected, atol=1e-12)


def test_after_batch_calibration_no_class_is_preferred_on_the_batch():
    scores = synthetic(200, seed=3)[0] + torch.tensor([4.0, 0, 0, -3])
    # log (p(y|x) / mean p(y))
    calibrated = fit_batch(scores)(scores - scores.logsumexp(1, keepdim=True))
    assert calibrated.exp().mean(0).tolist() == pytest.approx([1] * 4), (
        "the mean of p(y|x) / exp(bias) should be 1")


def test_batch_calibration_mends_answers_that_a_prompt_has_biased():
    scores, labels = synthetic(1000, seed=4)
    biased = scores + torch.tensor([3.0, 0, 0, 0])
    found = compare(biased, labels, "abcd", {"batch": fit_batch(biased)})
    assert found["batch"]["accuracy"] > found["as they are"]["accuracy"] + 0.1
    assert found["batch"]["log_loss"] < found["as they are"]["log_loss"]


def mean_of_scores(scores):
    return scores.log_softmax(1).mean(0)


def most_likely_only(scores):
    return scores.log_softmax(1).max(1).values.mean().expand(scores.shape[1])


def summed_before_normalising(scores):
    return scores.logsumexp(0).log_softmax(0)


@pytest.mark.parametrize("wrong", [mean_of_scores, most_likely_only, summed_before_normalising])
def test_a_wrong_bias_is_told_from_the_right_one(wrong):
    scores = synthetic(50, seed=5)[0] + torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    right, other = torch.tensor(fit_batch(scores).bias), wrong(scores)
    assert (right.softmax(0) - other.softmax(0)).abs().max() > 0.02, (
        "these rows cannot tell the two apart")
    logp, other = scores.log_softmax(1), other - other.logsumexp(0) + right.logsumexp(0)
    assert ((logp - right).exp().mean(0) - 1).abs().max() < 1e-6
    assert ((logp - other).exp().mean(0) - 1).abs().max() > 0.05, (
        "a wrong bias keeps batch calibration's promise")


# ---- temperature ----

def test_the_temperature_by_hand():
    # Three rows of four are right, each with logit gap 6: the best p is 3/4, so 6 / T = log 3.
    scores = torch.tensor([[6.0, 0.0]] * 4)
    found = fit_temperature(scores, [0, 0, 0, 1])
    assert found.temperature == pytest.approx(6 / LOG(3)) and found.bias == [0, 0]
    assert found(scores).softmax(1)[0].tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("sharper", [0.2, 1.0, 5.0])
def test_the_slope_at_the_temperature_is_nothing_and_a_fine_grid_finds_no_better(sharper):
    scores, labels = synthetic(sharper=sharper, seed=6)
    t = fit_temperature(scores, labels).temperature
    sharpness = torch.tensor(1 / t, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(scores * sharpness, labels).backward()
    assert abs(sharpness.grad) < 1e-9 * scores.abs().mean()
    grid = torch.logspace(-2, 2, 4001, dtype=torch.float64).tolist()       # steps of 0.23 percent
    best = min(grid, key=lambda other: log_loss(scores, labels, other))
    assert (t == pytest.approx(best, rel=2e-3)
            and log_loss(scores, labels, t) <= log_loss(scores, labels, best))
    assert t == pytest.approx(sharper, rel=0.2), "the labels were drawn at this temperature"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(-50, 50), min_size=3, max_size=3),
                          st.integers(0, 2)), min_size=1, max_size=8),
       st.sampled_from([0.01, 1.0, 200.0]))
def test_no_temperature_harms_the_rows_it_was_fitted_to_or_changes_an_answer(rows, unit):
    scores = torch.tensor([row for row, _ in rows]).double() * unit
    labels = torch.tensor([label for _, label in rows])
    found = fit_temperature(scores, labels)
    assert 0.00999 < found.temperature < 100.001
    assert log_loss(scores, labels, found.temperature) <= log_loss(scores, labels) + 1e-12
    assert torch.equal(found(scores).argmax(1), scores.argmax(1))
    assert found == fit_temperature(scores, labels), "the same rows give another temperature"


def test_where_no_temperature_is_best_the_search_ends_at_its_bounds():
    scores = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5]])
    for unit in (1, 4):  # 4: long before 1/100 the loss is less than float64 can hold
        assert fit_temperature(unit * scores, [0, 1, 2]).temperature == pytest.approx(0.01), (
            "all right: sharper is better")
    assert fit_temperature(scores, [1, 2, 0]).temperature == pytest.approx(100), (
        "all wrong: flatter is better")
    assert fit_temperature(torch.full((4, 3), -7.0), [0, 1, 2, 0]).temperature == 1, (
        "even scores stay as they are")
    assert fit_temperature(scores * 1e4, [0, 1, 2]).temperature == 1, (
        "a loss of 0 cannot become less")


def test_overconfident_scores_get_a_better_log_loss_and_ece():
    dev, test = synthetic(600, sharper=4.0, seed=7), synthetic(600, sharper=4.0, seed=8)
    found = compare(*test, ["a", "b", "c", "d"], {"temperature": fit_temperature(*dev)})
    before, after = found["as they are"], found["temperature"]
    assert list(found) == ["as they are", "temperature"]
    assert before["log_loss"] == pytest.approx(log_loss(*test), abs=1e-6), (
        "the first line should change nothing")
    assert after["log_loss"] < 0.7 * before["log_loss"] and after["ece"] < 0.5 * before["ece"]
    assert after["accuracy"] == before["accuracy"] and after["f1"] == before["f1"]
    # multiplied in place of divided
    hotter = Calibration([0.0] * 4, 1 / fit_temperature(*dev).temperature)
    assert compare(*test, "abcd", {"wrong": hotter})["wrong"]["log_loss"] > before["log_loss"]


def test_bias_first_then_temperature():
    scores, labels = synthetic(500, sharper=3.0, seed=9)
    biased = scores + torch.tensor([0.0, 6, 0, 0])
    first = fit_batch(biased)
    both = Calibration(first.bias, fit_temperature(first(biased), labels).temperature)
    assert torch.allclose(both(biased), first(biased) / both.temperature, atol=1e-6)
    found = compare(biased, labels, "abcd", {"bias": first, "both": both})
    assert found["both"]["log_loss"] < found["bias"]["log_loss"] < found["as they are"]["log_loss"]


# ---- all of them ----

FITS = {"contextual": lambda scores, labels: fit_contextual(scores),
        "batch": lambda scores, labels: fit_batch(scores), "temperature": fit_temperature}


@pytest.mark.parametrize("name", FITS)
def test_a_constant_added_to_a_row_changes_nothing_and_classes_may_trade_places(name):
    scores, labels = synthetic(60, sharper=2.0, seed=10)
    found = FITS[name](scores, labels)
    shifted = scores + torch.linspace(-300, 300, 60, dtype=torch.float64)[:, None]
    moved = FITS[name](shifted, labels)
    assert moved.bias == pytest.approx(found.bias, abs=1e-9)
    assert moved.temperature == pytest.approx(found.temperature, rel=1e-9)
    assert torch.allclose(moved(shifted).softmax(1), found(scores).softmax(1), atol=1e-9)
    order = torch.tensor([2, 0, 3, 1])  # the new class i is the old class order[i]
    traded = FITS[name](scores[:, order], order.argsort()[labels])
    assert traded.bias == pytest.approx(
        torch.tensor(found.bias, dtype=torch.float64)[order].tolist(), abs=1e-12)
    assert traded.temperature == pytest.approx(found.temperature, rel=1e-12)


@pytest.mark.parametrize("name", FITS)
def test_extreme_scores_give_finite_numbers(name):
    scores = torch.tensor(
        [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [-1e4, -1e4, -1e4], [3e4, 3e4, -1e4]])
    found = FITS[name](scores, torch.tensor([1, 1, 2, 0]))
    assert all(map(math.isfinite, [*found.bias, found.temperature]))
    assert found(scores).softmax(1).sum(1).tolist() == pytest.approx([1] * 4)


def test_dtype_is_kept_and_half_precision_is_rounded_only_once():
    calibration = Calibration([-0.3, -1.2], 1.7)
    scores = torch.tensor([[-20.125, -22.5], [3.0, 0.25]], dtype=torch.float64)  # whole in bfloat16
    exact = torch.tensor(
        [[(-20.125 + 0.3) / 1.7, (-22.5 + 1.2) / 1.7], [(3 + 0.3) / 1.7, (0.25 + 1.2) / 1.7]],
        dtype=torch.float64)
    assert torch.allclose(calibration(scores), exact, atol=1e-15, rtol=0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = calibration(scores.to(dtype))
        assert found.dtype == dtype and torch.equal(found, exact.to(dtype)), (
            f"{dtype} is rounded more than once")


@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
def test_scores_that_are_not_finite_are_refused_by_their_row(bad):
    scores = torch.zeros(4, 3)
    scores[2, 1] = bad
    calls = [lambda: fit_contextual(scores), lambda: fit_batch(scores),
             lambda: fit_temperature(scores, [0] * 4), lambda: Calibration([0.0] * 3)(scores)]
    for call in calls:
        with pytest.raises(InputError, match=r"row 2 \(from 0\) is \[0.0, -?(inf|nan), 0.0\]"):
            call()


@pytest.mark.parametrize("call, said", [
    (lambda: fit_contextual(torch.zeros(0, 3)), "at least 1 rows of scores, not 0"),
    (lambda: fit_batch(torch.zeros(0, 3)), "at least 2 rows of scores, not 0"),
    (lambda: fit_batch(torch.zeros(1, 3)), "at least 2 rows of scores, not 1"),
    (lambda: fit_temperature(torch.zeros(0, 3), []), "at least 1 rows of scores, not 0"),
    (lambda: fit_contextual(torch.zeros(3)), r"\(N, C\), not torch.float32 \(3,\)"),
    (lambda: fit_contextual(torch.zeros(2, 3).long()), "floating-point numbers"),
    (lambda: fit_temperature(torch.zeros(2, 3), [0]), "2 class numbers"),
    (lambda: fit_temperature(torch.zeros(2, 3), [0, 3]), r"row 1 \(from 0\) has class 3.*0 to 2"),
    (lambda: fit_temperature(torch.zeros(2, 3), [-100, 0]), r"row 0 \(from 0\) has class -100"),
    (lambda: fit_temperature(torch.zeros(2, 3), [0.0, 1.0]), "2 class numbers"),
    (lambda: Calibration([0.0])(torch.zeros(2, 3)), "3 classes, but a calibration for 1"),
    (lambda: Calibration([0.0] * 2, 0.01)(torch.full((2, 2), 1e3).half()),
     "calibrated scores: row 0.*float32"),
])
def test_what_cannot_be_calibrated_is_refused(call, said):
    with pytest.raises(InputError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_through_json_and_back():
    for found in (fit_batch(HALVES), fit_temperature(*synthetic(50)), Calibration([0, -1e4], 3)):
        read = json.loads(json.dumps(found.as_dict()))
        assert Calibration.from_dict(read, len(found.bias), "config.json") == found


@pytest.mark.parametrize("d, said", [
    (None, "keys bias and temperature"), ([0, 1], "keys bias and temperature"),
    ({}, "keys bias and temperature"), ({"bias": [0, 0]}, "keys bias and temperature"),
    ({"bias": [0, 0], "temperature": 1, "scale": 2}, "no other, not .*scale"),
    ({"bias": [0, 0, 0], "temperature": 1}, "2 finite numbers"),
    ({"bias": "00", "temperature": 1}, "2 finite numbers"),
    ({"bias": [0, "0"], "temperature": 1}, "2 finite numbers"),
    ({"bias": [0, True], "temperature": 1}, "2 finite numbers"),
    ({"bias": [0, math.inf], "temperature": 1}, "2 finite numbers"),
    ({"bias": [0, math.nan], "temperature": 1}, "2 finite numbers"),
    ({"bias": [0, 10 ** 400], "temperature": 1}, "2 finite numbers"),
    ({"bias": [0, 0], "temperature": 0}, "above 0, not 0"),
    ({"bias": [0, 0], "temperature": -1.5}, "above 0, not -1.5"),
    ({"bias": [0, 0], "temperature": math.inf}, "above 0, not inf"),
    ({"bias": [0, 0], "temperature": math.nan}, "above 0, not nan"),
    ({"bias": [0, 0], "temperature": None}, "above 0, not None"),
    ({"bias": [0, 0], "temperature": "1"}, "above 0, not '1'"),
])
def test_a_malformed_record_is_refused(d, said):
    with pytest.raises(InputError, match=said) as caught:
        Calibration.from_dict(d, 2, "model/config.json calibration")
    assert (str(caught.value).startswith("model/config.json calibration")
            and "\n" not in str(caught.value))
