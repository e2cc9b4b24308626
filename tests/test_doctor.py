"""The gradient doctor: set-ups that are known to be wrong are reported, sound ones in one line."""
import math
import random

import pytest
import torch
from small import TOPICS, bert_folder, texts_of, wrap_lora
from torch import nn

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import collate
from minillmclf.training.monitors import gradients as doctor
from minillmclf.training.checkpoint import Store, seed_step
from minillmclf.training.monitors.gradients import (FirstStepsCheck, check_first_steps,
                                                    examine_gradients)
from minillmclf.training.loop import fit, take_step
from minillmclf.training.plan import Split
from minillmclf.training.monitors.nonfinite import find_nonfinite, locate_divergence
from minillmclf.training.optim import build_optimizer

LABELS = sorted(TOPICS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert") / "bert", dropout=0.0)


def classifier(folder, learning="full"):
    model = Classifier.from_backbone(folder, LABELS)
    if learning == "lora":
        model.requires_grad_(False)
        wrap_lora(model, ["q_proj", "v_proj"], rank=2, alpha=4)
        model.head.requires_grad_(True)
    return model.train()


def some_rows(model, count=8):
    texts, labels = zip(*texts_of(random.Random(0), count))
    return Split(model.encode(texts)[0], [LABELS.index(label) for label in labels])


def backward(model):
    rows = some_rows(model)
    batch = collate(rows.encoded, range(8), labels=rows.targets)
    nn.functional.cross_entropy(model(batch), batch.labels).backward()
    return model


def train(model, optimizer, count=4):
    """What the doctor says after each of `count` steps."""
    checkup, rows, said = FirstStepsCheck(model, optimizer), some_rows(model), []
    for step in range(count):
        seed_step(0, step)
        take_step(model, optimizer, rows, list(range(8)), Settings())
        said.append(checkup.after_step())
    return said


# ---------------------------------------------------------------------------------- gradients

def test_all_is_well_in_one_line(folder):
    model = backward(classifier(folder))
    tensors = len(list(model.parameters()))
    report = examine_gradients(model)
    assert report.lines == [
        f"gradients: {tensors} trainable tensors, all with a gradient; 0 frozen, none with one"]
    assert not report.faults and not report.zero


def test_lora_has_a_zero_gradient_at_first_and_is_judged_at_the_second_step(folder):
    model = classifier(folder, "lora")
    report = examine_gradients(backward(model))
    assert report.zero and all(".lora_A." in name for name in report.zero) and not report.faults
    assert examine_gradients(model, report).faults, (
        "A whose gradient stays zero learns nothing: that is a fault")
    model.zero_grad()
    said = train(model, build_optimizer(model, 1e-2, 0.0))
    assert [len(lines) for lines in said] == [0, 1, 0, 0], (
        f"one line, after the second step: {said}")
    learning = sum(p.requires_grad for p in model.parameters())
    assert said[1][0] == (f"gradients: {learning} trainable tensors, all with a gradient; "
                          f"{len(list(model.parameters())) - learning} frozen, none with one")


def test_a_gradient_that_is_cut_off_is_told(folder):
    model = classifier(folder)
    states = model.backbone.states
    model.backbone.states = lambda *a: states(*a).detach()
    report = examine_gradients(backward(model))
    body = len(list(model.backbone.parameters()))
    assert (len(report.faults) == 1
            and f"{body} of {len(list(model.parameters()))} trainable tensors have no gradient"
            in report.faults[0] and "backbone.word_embeddings.weight" in report.faults[0])


def test_zeros_that_stay_are_told(folder):
    model = classifier(folder)
    forward = model.backbone.layers[0].forward
    model.backbone.layers[0].forward = lambda x, *more: x + 0 * forward(x, *more)
    said = train(model, build_optimizer(model, 1e-3, 0.0))
    assert said[0] == [] and len(said[1]) == 1, said
    own = len(list(model.backbone.layers[0].parameters()))
    assert (f"WARNING: gradients: {own} of" in said[1][0]
            and "backbone.layers.0.q_proj.weight" in said[1][0])


def test_frozen_tensors_with_a_gradient_are_told(folder):
    model = backward(classifier(folder))
    model.backbone.requires_grad_(False)
    fault, = examine_gradients(model).faults
    body = len(list(model.backbone.parameters()))
    assert f"{body} of {body} frozen tensors have a gradient although they are frozen" in fault


# ---------------------------------------------------------------------------------- three steps

def test_an_optimizer_of_other_tensors_is_refused(folder):
    """Row 50 of the silent failures: built before the model got its final tensors."""
    model = classifier(folder)
    optimizer = build_optimizer(model, 1e-3, 0.0)
    model.head.out.weight = nn.Parameter(model.head.out.weight.detach().clone())
    with pytest.raises(InputError, match="does not hold these trainable tensors .head.out.weight."):
        FirstStepsCheck(model, optimizer)


def test_a_frozen_tensor_that_changes_is_an_error(folder):
    model = classifier(folder, "lora")
    optimizer = build_optimizer(model, 1e-2, 0.0)
    step, frozen = optimizer.step, model.backbone.word_embeddings.weight

    def writes_more():
        step()
        frozen.data += 1e-3
    optimizer.step = writes_more
    fault = "after three steps frozen tensors have changed .backbone.word_embeddings.weight."
    with pytest.raises(InputError, match=fault):
        train(model, optimizer)


def test_weights_that_stay_as_they_are_are_told(folder):
    model = classifier(folder)
    optimizer = build_optimizer(model, 1e-3, 0.0)
    optimizer.step = lambda: None
    said = train(model, optimizer)
    assert said[2] and said[2][0].startswith(
        "WARNING: after three steps none of backbone.word_embeddings.weight")


def test_it_costs_nothing_later(folder, monkeypatch):
    model = classifier(folder)
    checkup = FirstStepsCheck(model, build_optimizer(model, 1e-3, 0.0))
    checkup.steps = 3
    monkeypatch.setattr(doctor, "examine_gradients", None)
    monkeypatch.setattr(doctor, "checksum", None)
    assert checkup.after_step() == []


def test_the_loop_says_what_the_doctor_says(folder, tmp_path):
    model, said = classifier(folder), []
    fit(model, some_rows(model), some_rows(model), Settings(epochs=2, batch_size=4),
        Store(tmp_path), check_first_steps(take_step, said.append))
    assert len(said) == 1 and said[0].startswith("gradients: ")


# ---------------------------------------------------------------------------------- where NaN arose

def batch_of(model):
    return collate(some_rows(model).encoded, range(8))


def test_finite_numbers_everywhere(folder):
    model = classifier(folder)
    assert find_nonfinite(model, batch_of(model)) is None
    assert not any(module._forward_hooks for module in model.modules()), "hooks were left behind"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_module_with_a_broken_weight_is_named(folder, value):
    model = classifier(folder)
    with torch.no_grad():
        model.backbone.layers[1].up_proj.bias[3] = value
    found = find_nonfinite(model, batch_of(model))
    assert ("the output of backbone.layers.1.up_proj (2.1% of its numbers; its bias is not finite)"
            in found)


def test_the_module_that_overflows_is_named_with_what_it_was_given(folder):
    model = classifier(folder)
    layer = model.backbone.layers[0]
    layer.up_proj.forward = lambda x: (x.new_full((len(x), layer.up_proj.out_features), 3e38) * 10)
    found = find_nonfinite(model, batch_of(model))
    assert ("the output of backbone.layers.0.up_proj (100.0% of its numbers; the largest number "
            "that it was given is" in found)


def test_what_arises_between_modules_is_laid_to_the_module_around(folder):
    model = classifier(folder)
    layer = model.backbone.layers[1]
    layer.activation = lambda x: x / 0
    found = find_nonfinite(model, batch_of(model))
    assert (found == "first not finite: what backbone.layers.1.down_proj is given; it arose in "
            "backbone.layers.1 itself")


def test_divergence_names_the_module(folder):
    model = classifier(folder)
    with torch.no_grad():
        model.backbone.layers[0].o_proj.weight[0, 0] = math.nan
    fault = "diverged; lower --lr .*the output of backbone.layers.0.o_proj .*its weight"
    with pytest.raises(InputError, match=fault) as told:
        locate_divergence(take_step)(model, build_optimizer(model, 1e-3, 0.0), some_rows(model),
                                     list(range(8)), Settings())
    assert "\n" not in str(told.value) and model.training


def test_gradients_that_overflow_behind_a_finite_forward_pass(folder):
    model = classifier(folder)
    model.head.out.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(InputError, match="the forward pass is finite: it arose in the loss"):
        locate_divergence(take_step)(model, build_optimizer(model, 1e-3, 0.0), some_rows(model),
                                     list(range(8)), Settings())


@pytest.mark.parametrize("name", [
    "backbone.layers.1.mlp_norm.weight", "backbone.layers.0.up_proj.weight", "head.out.bias"])
def test_any_tensor_that_stays_as_it_is_is_told(folder, name):
    model = classifier(folder)
    optimizer, stays = build_optimizer(model, 1e-3, 0.0), model.get_parameter(name)
    step = optimizer.step

    def all_but_one():
        kept = stays.detach().clone()
        step()
        stays.data.copy_(kept)
    optimizer.step = all_but_one
    said = train(model, optimizer)[2]
    assert len(said) == 1 and said[0].startswith(
        f"WARNING: after three steps 1 of {len(list(model.parameters()))} trainable tensors")
    assert name in said[0]


def test_a_rate_too_small_for_some_tensors_is_no_fault(folder):
    """In fp32 a norm's weights, all 1, do not move by 1e-9; matrices, with numbers near 0, do."""
    model = classifier(folder)
    assert train(model, build_optimizer(model, 1e-9, 0.0))[2] == []
