"""Are BERT and RoBERTa what transformers says they are? Layer by layer, with padding, and would the tests notice if not?

Two references: four tiny models with exaggerated weights and what transformers computed with them in float64, stored by
reference/make_fixtures.py (always), and transformers itself on random configurations (where it is installed). Then what
needs no reference: padding, batch mates and attention by hand. Known-wrong variants must fail, each at the right layer.
"""

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, first_difference, trace
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.head import POOLINGS, BertHead, pool
from minillmclf.errors import InputError
from minillmclf.models import bert, fresh_weights, layers, load_backbone
from minillmclf.models.bert import Bert, Roberta
from minillmclf.models.layers import Rows, attention, attention_by_hand
from minillmclf.training.objectives import masked_lm_loss

STORED = ("bert_classifier", "roberta_classifier", "bert_masked_lm", "roberta_masked_lm")
BOTH = ("bert_classifier", "roberta_classifier")


# ------------------------------------------------------------------------------------------------ parity

def load(folder):
    """(the classifier or the body that a folder holds, its body); only classifiers have a tokenizer here."""
    model = Classifier.load(folder) if (folder / "texts.json").exists() else load_backbone(folder)
    return model, getattr(model, "backbone", model)


def compute(folder, batch, dtype=torch.float32):
    """What our model in `folder` computes for a batch: every step, logits, loss, and gradients by the file's names."""
    model, body = load(folder)
    model.to(dtype)
    ids, mask, types, labels = (batch[name] for name in ("ids", "mask", "types", "labels"))
    steps = trace(body, ids, mask, types)
    if model is body:
        logits, loss = body.logits(steps["hidden"])[mask.bool()], masked_lm_loss(body, ids, mask, types, labels >= 0, labels)
    else:
        logits = model.head(steps["hidden"], mask)
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    parameters = dict(model.named_parameters())
    return steps | {"logits": logits.detach(), "loss": loss.detach()} | {
        "gradient of " + name: parameters[ours].grad for name, ours in model.report.loaded.items()}


def split(expected):
    """What is stored or computed by make_fixtures.run -> (layers, logits and loss in order, gradients)."""
    steps = ["embeddings", *sorted(name for name in expected if name.startswith("layer ")), "logits", "loss"]
    return {name: expected[name] for name in steps}, {n: t for n, t in expected.items() if n.startswith("gradient of ")}


@pytest.fixture(scope="module")
def stored():
    """name -> the stored batch and what transformers computed with it."""
    return {name: load_file(MODELS / name / "expected.safetensors") for name in STORED}


def parity(name, stored, dtype=torch.float32, tolerance=1e-5):
    """None, or the first step of the stored model `name` that differs."""
    steps, gradients = split({n: t.to(dtype) if t.is_floating_point() else t for n, t in stored[name].items()})
    ours = compute(MODELS / name, stored[name], dtype)
    return first_difference(ours, steps, tolerance) or first_difference(ours, gradients, 1e-4, relative=True)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", STORED)
def test_every_step_is_that_of_transformers(name, stored, dtype, tolerance):
    found = parity(name, stored, dtype, tolerance)
    assert found is None, f"{name} in {dtype}: not what transformers computed, {found}"


def test_the_stored_batches_are_ragged_and_the_weights_exaggerated(stored):
    for name, batch in stored.items():
        lengths = batch["mask"].sum(1)
        assert len(set(lengths.tolist())) >= 3, f"{name}: padding could be wrong unseen, lengths are {lengths}"
        model, body = load(MODELS / name)
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            assert (norm.weight - 1).abs().mean() > 0.1 < norm.bias.abs().mean(), f"{name}: a plain norm hides mistakes"
    assert stored["bert_classifier"]["types"].any(), "without pairs, ignored token types would not show"


def test_stored_logits_come_from_the_texts_too(stored):
    for name in BOTH:
        model, _ = load(MODELS / name)
        texts = json.loads((MODELS / name / "texts.json").read_text())
        texts = [text if isinstance(text, str) else tuple(text) for text in texts]
        ids = [ids for ids, _ in model.encode(texts)[0]]
        assert ids == [row[m.bool()].tolist() for row, m in zip(stored[name]["ids"], stored[name]["mask"])], \
            f"{name}: our tokenizer gives other ids than transformers'"
        found = first_difference({"scores": model.scores(model.encode(texts)[0], 2)}, {"scores": stored[name]["logits"]}, 1e-5)
        assert found is None, f"{name}: batches sorted by length give other scores or another order, {found}"


def numbers(draw, family):
    """A random configuration, as keyword arguments of transformers' BertConfig or RobertaConfig."""
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    config = dict(vocab_size=draw(st.integers(20, 40)), num_attention_heads=heads, hidden_size=heads * draw(st.integers(2, 9)),
                  num_hidden_layers=draw(st.integers(1, 3)), intermediate_size=draw(st.integers(3, 40)),
                  hidden_act=draw(st.sampled_from(["gelu", "relu", "gelu_new", "silu", "gelu_pytorch_tanh"])),
                  type_vocab_size=draw(st.integers(1, 3)), layer_norm_eps=draw(st.sampled_from([1e-12, 1e-5, 1e-2])),
                  max_position_embeddings=draw(st.integers(24, 30)))
    return config | {"pad_token_id": draw(st.integers(0, 9))} if family == "Roberta" else config


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@given(data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_random_models_are_those_of_transformers(family, data, seed):
    transformers = pytest.importorskip("transformers", reason="compares with transformers itself")
    from reference import make_fixtures
    config = getattr(transformers, family + "Config")(**data.draw(st.composite(numbers)(family)), attn_implementation="eager")
    model = make_fixtures.exaggerate(getattr(transformers, family + "ForMaskedLM")(config), seed)
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    ids, mask, types = make_fixtures.random_batch(config, seed, lengths)
    batch = {"ids": ids, "mask": mask, "types": types, "labels": make_fixtures.masked_labels(ids, mask)}
    batch["labels"][0, 0] = 7                                       # a text of one token has no other place to predict
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = compute(Path(folder), batch, torch.float64)
    steps, gradients = split(make_fixtures.run(model, **batch))
    found = first_difference(ours, steps, 1e-6) or first_difference(ours, gradients, 1e-4, relative=True)
    assert found is None, f"{family}: {found}"
