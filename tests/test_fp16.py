"""--precision fp16: the loss's scale by hand, overflows, what is saved, one process and two."""
import json
import math
import random

import pytest
import torch
from conftest import refused
from safetensors import safe_open
from safetensors.torch import load_file
from small import TOPICS, bert_folder, data_file, flags, forked_program, texts_of

from test_families import CONFIGS, folders          # noqa: F401  folders is a fixture

from minillmclf import train
from minillmclf.classify.classifier import Classifier
from minillmclf.cli.settings import Settings
from minillmclf.errors import InputError
from minillmclf.training import fp16, loop
from minillmclf.training.checkpoint import Store
from minillmclf.training.losses import CrossEntropy
from minillmclf.training.monitors.nonfinite import locate_divergence
from minillmclf.training.plan import Split

ROUNDED = 2**-10                          # fp16 rounds to 11 bits


class Rows:
    """A batch of the toy model: ids (B, D) are its features."""

    def __init__(self, features, labels):
        self.ids, self.labels = features, labels

    def to(self, _):
        return self


class Toy(torch.nn.Module):
    """A matrix, without tokens. factor: of the logits in the backward pass alone."""

    def __init__(self, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.out, self.factor = torch.nn.Linear(8, 3, bias=False), factor

    def collate(self, encoded, rows, targets):
        return Rows(torch.stack([encoded[row] for row in rows]),
                    torch.tensor([targets[row] for row in rows]))

    def forward(self, batch):
        logits = self.out(batch.ids)
        return logits.detach() + self.factor * (logits - logits.detach())


def rows(spread=1.0):
    draw = torch.Generator().manual_seed(1)
    return Split([spread * torch.randn(8, generator=draw) for _ in range(6)], [0, 1, 2, 0, 1, 2])


def step_of(model, loss_scale=None, lr=0.1, **settings):
    """A step of SGD on all rows -> (loss, gradient as the optimiser sees it)."""
    optimizer, data = torch.optim.SGD(model.parameters(), lr=lr), rows()
    s = Settings(precision="fp16" if loss_scale else "fp32", **settings)
    if loss_scale is None:
        loss = loop.take_step(model, optimizer, data, list(range(6)), s, CrossEntropy())
    else:
        step = fp16.step_in_fp16(loop.take_step, CrossEntropy(), loss_scale)
        loss = step(model, optimizer, data, list(range(6)), s)
    return loss, model.out.weight.grad


@pytest.mark.parametrize("settings",
                         [{}, dict(clip=0.05), dict(clip=0.0), dict(micro_batch_size=4)])
def test_a_scaled_step_is_a_step(settings):
    """The scale is out of the gradient before it is clipped, and never in the loss."""
    plain, scaled = Toy(), Toy()
    loss, gradient = step_of(plain, **settings)
    half_loss, half_gradient = step_of(scaled, fp16.LossScale(), **settings)
    assert half_loss == pytest.approx(loss, rel=4 * ROUNDED) and half_loss != loss
    assert (half_gradient - gradient).norm() <= 4 * ROUNDED * gradient.norm()
    assert (scaled.out.weight - plain.out.weight).norm() <= 4 * ROUNDED * (0.1 * gradient.norm())
    if settings.get("clip") == 0.05:
        assert half_gradient.norm().item() == pytest.approx(0.05, rel=1e-4)


def test_without_a_scale_small_gradients_are_zero():
    for scale, is_zero in ((1.0, True), (2.0**16, False)):
        loss_scale = fp16.LossScale()
        loss_scale.scale = scale
        model = Toy(factor=1e-8)
        gradient = step_of(model, loss_scale)[1]
        assert (gradient == 0).all() == is_zero
    exact = step_of(Toy(factor=1e-8))[1]
    assert (gradient - exact).norm() <= 0.05 * exact.norm(), (
        "a gradient of 1e-8, whose 1e-4th part fp16 has room for")


def test_a_step_that_overflows_is_computed_again_with_half_the_scale():
    """Gradients of at most 2**-2 times 2**5: a scale of 2**16 is 8 times too large or more."""
    model, plain, loss_scale = Toy(factor=32.0), Toy(factor=32.0), fp16.LossScale()
    seen, update = [], loss_scale.update_weights

    def watched(*given):
        seen.append(loss_scale.scale)
        update(*given)
    loss_scale.update_weights = watched
    start = model.out.weight.detach().clone()
    loss, _ = step_of(model, loss_scale)
    assert len(seen) >= 3 and seen == [2.0**16 / 2**n for n in range(len(seen))]
    assert loss_scale.scale == seen[-1] and loss_scale.good_steps == 1
    step_of(plain)
    moved = plain.out.weight - start
    assert (model.out.weight - plain.out.weight).norm() <= 4 * ROUNDED * moved.norm(), (
        "one step, not as many as were tried")
    assert math.isfinite(loss)


def test_the_scale_grows_as_that_of_torch(monkeypatch):
    """The same gradients, of which the 5th and the 6th overflow, to torch.amp.GradScaler, which
    leaves such a step out: a step here is as many of its steps as it takes."""
    monkeypatch.setattr(fp16, "GROW_AFTER", 3)
    ours = fp16.LossScale()
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for number in range(1, 13):
        broken = number in (5, 6)
        optimizer.zero_grad()
        theirs.scale(model(torch.ones(1, 2)).sum() * (math.inf if broken else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        if broken:
            ours.shrink()
        else:
            ours.count_good_step()
        assert ours.scale == theirs.get_scale(), number
    assert ours.scale == 2.0**17


def test_the_scale_has_a_top(monkeypatch):
    monkeypatch.setattr(fp16, "GROW_AFTER", 1)
    loss_scale = fp16.LossScale()
    for _ in range(20):
        loss_scale.count_good_step()
    assert loss_scale.scale == fp16.LARGEST_SCALE


@pytest.mark.parametrize("factor, spread, tried", [(1e38, 1.0, 17), (1.0, 1e30, 1)])
def test_what_no_scale_mends_has_diverged(factor, spread, tried, monkeypatch):
    """Gradients that overflow at every scale; and a loss that is not finite."""
    model, loss_scale, count = Toy(factor), fp16.LossScale(), []
    plain = loop.take_step
    monkeypatch.setattr(loop, "take_step", lambda *given: count.append(1) or plain(*given))
    step = fp16.step_in_fp16(loop.take_step, CrossEntropy(), loss_scale)
    start = model.out.weight.detach().clone()
    with pytest.raises(loop.Diverged):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1), rows(spread), list(range(6)),
             Settings(precision="fp16"))
    assert len(count) == tried and torch.equal(model.out.weight, start)


def test_the_place_of_an_overflow_is_found_in_fp16():
    """Numbers of 1e5 are too large for fp16 alone."""
    model, data = Toy(), rows(1e5)
    step = locate_divergence(fp16.step_in_fp16(loop.take_step, CrossEntropy(), fp16.LossScale()))
    with pytest.raises(loop.Diverged, match="the output of out"):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1), data, list(range(6)),
             Settings(precision="fp16"))


@pytest.mark.parametrize("name", [name for name, (kind, _) in CONFIGS.items() if kind != "t5"])
def test_every_family_but_t5_computes_in_fp16(name, folders):                   # noqa: F811
    """Ragged rows: a mask of numbers that fp16 does not hold would make NaN of them. The gradient
    of the loss, too, is that of fp32."""
    texts = texts_of(random.Random(5), 6)
    model = Classifier.from_backbone(folders[name], sorted(TOPICS), seed=0).eval()
    encoded = model.encode([text for text, _ in texts])[0]
    targets = [sorted(TOPICS).index(label) for _, label in texts]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = {}
    for how in ("fp32", "fp16"):
        given = (model, optimizer, Split(encoded, targets), list(range(6)),
                 Settings(clip=0.0, precision=how))
        loss = (loop.take_step(*given) if how == "fp32"
                else fp16.step_in_fp16(loop.take_step, CrossEntropy(), fp16.LossScale())(*given))
        found[how] = loss, torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None])
    (loss, gradient), (half_loss, half_gradient) = found.values()
    assert half_loss != loss and half_loss == pytest.approx(loss, rel=0.01)
    assert (half_gradient - gradient).norm() < 0.03 * gradient.norm()


# --------------------------------------------------------------------------------------- whole runs

@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    return dict(model=bert_folder(place / "bert"), data=data_file(place / "data.csv"), epochs=2,
                batch_size=8, lr=1e-3,
                save_every=1, few_rows="off", baselines="off", precision="fp16")


@pytest.mark.parametrize("name, more, words", [
    ("t5", {}, "T5's hidden states may pass 65504"),
    ("bert", {"method": "qlora"}, "4-bit layers compute in fp32 or bf16")])
def test_what_fp16_cannot_hold_is_refused_before_training(
        asked, name, more, words, folders, tmp_path, call):                    # noqa: F811
    given = flags(**asked | {"model": folders[name], "out": tmp_path / "run"} | more)
    code, out, err = call(train, *given)
    assert code == 2 and words in err and "--precision bf16" in err
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_with_its_scale(asked, tmp_path, call, monkeypatch):
    """The scale grows every 3 steps: a run that forgot it would end elsewhere."""
    monkeypatch.setattr(fp16, "GROW_AFTER", 3)
    code, out, error = call(train, *flags(**asked, out=tmp_path / "whole"))
    assert code == 0 and "WARNING: --precision fp16 is for GPUs" in out + error, error
    plain, taken, scales = loop.take_step, [], []

    def fifth_fails(*given, **more):
        taken.append(1)
        scales.append(given[5].scale)
        if len(taken) == 5:
            raise InputError("stop here")
        return plain(*given, **more)
    monkeypatch.setattr(loop, "take_step", fifth_fails)
    assert call(train, *flags(**asked, out=tmp_path / "run"))[0] == 2
    with safe_open(tmp_path / "run" / "state.safetensors", "pt") as file:
        kept = json.loads(file.metadata()["progress"])["loss_scale"]
    assert kept == {"scale": 2.0**17, "good_steps": 1}
    assert call(train, *flags(**asked, out=tmp_path / "run"))[0] == 0
    assert scales == [2.0**16] * 3 + [2.0**17] * 2 + [2.0**17] * 2 + [2.0**18] * 2
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kept",
                         [None, {}, {"scale": 0.0, "good_steps": 0},
                          {"scale": 4.0, "good_steps": -1}, {"scale": 1e9, "good_steps": 0}])
def test_a_broken_scale_in_a_state_is_one_line(kept, tmp_path):
    store = Store(tmp_path)
    store.load = lambda model, optimizer: {"step": 1} | (
        {} if kept is None else {"loss_scale": kept})
    refused(lambda: fp16.keep_scale(store, fp16.LossScale()).load(None, None), "state.safetensors")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_have_one_scale(asked, tmp_path, kind):
    program = tmp_path / "train.py"
    program.write_text(
        "from minillmclf import train\nfrom minillmclf.cli.parser import run\nrun(train.main)\n")
    losses = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        more = {"parallel": kind} if processes == 2 else {}
        code, _, error = forked_program(program, *flags(**{**asked, "epochs": 1}, out=out, **more),
                                        processes=processes)
        assert code == 0, error
        losses.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["log_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
