"""Activation checkpointing gives the same numbers for less memory, in every family; optimisers of
bitsandbytes go on from a state on disk as if nothing had happened."""
import json
import random
import signal
import sys

import pytest
import torch
from small import TOPICS, bert_folder, data_file, flags, forked, texts_of, wrap_lora
from test_families import CONFIGS, spread

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, model_class
from minillmclf.cli.settings import Settings
from minillmclf.training.checkpoint import Store, seed_step
from minillmclf.training.loop import take_step
from minillmclf.training.plan import Split
from minillmclf.training.optim import build_optimizer
from minillmclf.training.recompute import all_blocks, recompute_blocks
from minillmclf.tuning import set_trainable
from minillmclf.tuning.prefix import attach_prefix

LABELS = sorted(TOPICS)
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop",
            "attn_pdrop", "embd_pdrop",
            "attention_dropout", "dropout_rate", "dropout", "embedding_dropout", "mlp_dropout")
IDS = torch.randint(5, 40, (4, 12), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(12) < torch.tensor([12, 7, 10, 3]).unsqueeze(1)).long()


def body(name, dropout=0.2):
    """A tiny backbone of a family in training mode, with dropout wherever the family has some."""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config}
    with_dropout = {**config,
                    **{key: dropout for key in DROPOUTS if key in model_class(config).FIELDS}}
    return spread(initialise_weights(model_class(config).from_config(with_dropout), 0)).train()


def gradients(model, seed=3):
    """Of a loss that depends on every number of the result -> loss, name -> gradient."""
    torch.manual_seed(seed)
    hidden = model.states(IDS, MASK)
    loss = (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum()
    model.zero_grad()
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(model, name):
    """The same gradients before and after `recompute_blocks`?"""
    plain, loss = gradients(model)[1], gradients(model)[0]
    assert any("layers." in n for n in plain), "no block has a gradient: this compares nothing"
    assert recompute_blocks(model) == len(all_blocks(model)) >= 2
    again, grads = gradients(model)
    assert again == pytest.approx(loss, rel=1e-6), f"{name}: recomputation changes the loss"
    assert grads.keys() == plain.keys(), (
        f"{name}: other tensors have gradients: {grads.keys() ^ plain.keys()}")
    for n, g in grads.items():
        apart = (g - plain[n]).abs().max() / plain[n].abs().max().clamp(min=1e-6)
        assert apart <= 1e-6, (
            f"{name}: recomputed, the gradient of {n} is {apart:.2g} of its largest number off")


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_the_same_with_dropout(name):
    compare(body(name), name)


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2", "flan-t5"])
def test_dropout_matters_to_the_comparison(name):
    model = body(name)
    if name in ("bert", "flan-t5"):
        assert gradients(model, 3)[0] != gradients(model, 4)[0], (
            "dropout has no effect, so nothing tests its seed")
    recompute_blocks(model)
    with torch.no_grad():
        model.eval()
        a, b = model.states(IDS, MASK), body(name).eval().states(IDS, MASK)
    assert torch.equal(a, b), "where nothing is learned, recomputation changes nothing"


@pytest.mark.parametrize("name", ["bert", "deberta-v3", "llama", "gemma3", "t5"])
def test_a_prefix_is_added_once_although_blocks_run_twice(name):
    model = body(name)
    prefix = attach_prefix(model, 3, seed=1)
    for n, p in model.named_parameters():
        p.requires_grad_(n.startswith("prefix."))
    with torch.no_grad():
        prefix.embedding.weight.normal_(generator=torch.Generator().manual_seed(2))
    plain, _ = gradients(model), recompute_blocks(model)
    loss, grads = gradients(model)
    assert loss == pytest.approx(plain[0], rel=1e-6) and set(grads) == {"prefix.embedding.weight"}
    grad, other = grads["prefix.embedding.weight"], plain[1]["prefix.embedding.weight"]
    assert other.abs().max() > 1e-3 and (grad - other).abs().max() <= 1e-6 * other.abs().max(), (
        "the prefix was added twice")


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_lora_on_a_frozen_base_gets_its_gradients(name):
    """Row 28 of the silent failures: nothing that goes into the first block needs a gradient."""
    model = body(name)
    model.requires_grad_(False)
    wrap_lora(model, "all-linear" if name == "llama" else ["q_proj", "v_proj"], rank=2, alpha=4,
              dropout=0.1)
    recompute_blocks(model)
    grads = gradients(model)[1]
    B = [n for n, _ in model.named_parameters() if ".lora_B." in n]
    assert B and all(n in grads and grads[n].any() for n in B), (
        "LoRA's B has no gradient behind a frozen base")
    assert all("lora_" in n for n in grads)


def saved_numbers(model):
    """How many numbers autograd keeps for the backward pass, each piece of memory counted once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.states(IDS, MASK)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    del hidden
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_less_is_kept(name):
    model = body(name)
    before = saved_numbers(model)
    recompute_blocks(model)
    after = saved_numbers(model)
    assert after < before / 3, (
        f"{name}: {after} bytes are kept for the backward pass, {before} without recomputation")


# --------------------------------------------------------------------------------------- optimisers

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with dropout, some matrices above 4096 numbers: from there on states have 8 bits."""
    return bert_folder(tmp_path_factory.mktemp("bert") / "bert", width=64, mlp=80, dropout=0.1)


def classifier(folder):
    model = Classifier.from_backbone(folder, LABELS)
    set_trainable(model, "full")
    texts, labels = zip(*texts_of(random.Random(0), 8))
    return model.train(), Split(model.encode(texts)[0], [LABELS.index(label) for label in labels])


def steps(model, optimizer, rows, numbers):
    for number in numbers:
        seed_step(0, number)
        take_step(model, optimizer, rows, list(range(8)), Settings(), None)


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "paged-adamw"])
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_a_state_goes_on_bit_for_bit(folder, tmp_path, kind):
    if kind != "adamw":
        pytest.importorskip("bitsandbytes", reason="these optimisers are its")
    model, rows = classifier(folder)
    optimizer = build_optimizer(model, 1e-3, 0.01, kind=kind)
    steps(model, optimizer, rows, [1, 2, 3])
    Store(tmp_path).save(model, optimizer, {"step": 3})
    steps(model, optimizer, rows, [4, 5])
    other, _ = classifier(folder)
    again = build_optimizer(other, 1e-3, 0.01, kind=kind)
    assert Store(tmp_path).load(other, again) == {"step": 3}
    dtypes = {value.dtype for state in again.state.values()
              for value in state.values() if torch.is_tensor(value)}
    assert (torch.uint8 in dtypes) == (kind == "adamw8bit"), f"{kind} holds its state in {dtypes}"
    steps(other, again, rows, [4, 5])
    differ = [n for (n, p), q in zip(model.named_parameters(), other.parameters())
              if not torch.equal(p, q)]
    assert not differ, f"{kind}: a restored state goes on otherwise: {differ}"


def test_eight_bits_learn_what_thirty_two_learn(folder):
    pytest.importorskip("bitsandbytes", reason="these optimisers are its")
    ends = {}
    for kind in ("adamw", "adamw8bit", "paged-adamw"):
        model, rows = classifier(folder)
        steps(model, build_optimizer(model, 1e-3, 0.01, kind=kind), rows, range(10))
        ends[kind] = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = torch.cat([p.detach().flatten() for p in classifier(folder)[0].parameters()])
    way = (ends["adamw"] - start).norm()
    assert (ends["paged-adamw"] - ends["adamw"]).norm() < 1e-2 * way, (
        "32 bits of bitsandbytes are not those of torch")
    assert 0 < (ends["adamw8bit"] - ends["adamw"]).norm() < 0.5 * way, "8 bits lead elsewhere"


def test_without_the_package_there_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    fault = "--optimizer adamw8bit needs the package bitsandbytes .*pip install"
    with pytest.raises(InputError, match=fault) as told:
        build_optimizer(classifier(folder)[0], 1e-3, 0.01, kind="adamw8bit")
    assert "\n" not in str(told.value)


def test_a_killed_run_in_8_bits_and_with_checkpointing_goes_on_to_the_same_bytes(folder, tmp_path):
    pytest.importorskip("bitsandbytes", reason="these optimisers are its")
    asked = dict(model=folder, data=data_file(tmp_path / "data.csv"), epochs=2, batch_size=8,
                 save_every=3, lr=1e-3, optimizer="adamw8bit")
    whole, killed = (flags(**asked, gradient_checkpointing=how, out=tmp_path / name)
                     for name, how in (("a", "off"), ("b", "on")))
    assert forked("train", whole)[0] == 0
    assert forked("train", killed, step=6)[0] == -signal.SIGKILL
    code, out, error, _ = forked("train", killed)
    assert code == 0, error
    for name in ("model.safetensors", "metrics.jsonl", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), (
            f"{name} differs")
    timing = json.loads((tmp_path / "b" / "run.json").read_text())["timing"]
    assert timing["examples_per_second"] > 0 and "examples a second" in out
