"""What the parity tests of all families share: stored models with exaggerated weights, and what
ours compute of the batch that is stored beside them."""
import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, trace
from safetensors.torch import load_file

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import build_head
from minillmclf.classify.task import SingleLabel
from minillmclf.models import build_backbone, load_backbone
from minillmclf.models.weights import Checkpoint, load_parameters
from minillmclf.pretrain.losses import masked_lm_loss


def stored_models(names):
    """The fixture `stored`: name -> the stored batch and what transformers computed with it."""
    @pytest.fixture(scope="module", name="stored")
    def stored():
        return {name: load_file(MODELS / name / "expected.safetensors") for name in names}
    return stored


def in_dtype(tensors, dtype):
    """The same tensors, those of floating-point numbers in this dtype."""
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def load_without_tokenizer(folder):
    """(the classifier, without a tokenizer, or the body in an encoder's folder; its body)."""
    checkpoint = Checkpoint(folder)
    if not checkpoint.config["architectures"][0].endswith("ForSequenceClassification"):
        body = load_backbone(folder)
        return body, body
    body = build_backbone(checkpoint, lm_head=True)
    labels = list(checkpoint.config.get("id2label", ("0", "1")))
    assert body.lm_head is None, "a classifier's head was taken for that of masked words"
    with torch.device("meta"):
        head = build_head(checkpoint.config["model_type"], body, len(labels))
    model = Classifier(body, head, None, SingleLabel(labels))
    model.report = load_parameters(model, checkpoint, model.rename_table())
    return model.eval(), body


def compute_encoder(model, body, batch, class_loss=F.cross_entropy):
    """What an encoder, or a classifier on it, computes for a batch: every step, logits, loss, and
    gradients by the file's names."""
    ids, mask, types, labels = (batch.get(name) for name in ("ids", "mask", "types", "labels"))
    steps = trace(body, ids, mask, types)
    steps["norm"] = steps["hidden"][mask.bool()].detach()
    if model is body:
        logits = body.logits(steps["hidden"])[mask.bool()]
        loss = masked_lm_loss(body, ids, mask, types, labels >= 0, labels)
    else:
        logits = model.head(steps["hidden"], mask)
        loss = class_loss(logits, labels)
    loss.backward()
    parameters = dict(model.named_parameters())
    return steps | {"logits": logits.detach(), "loss": loss.detach()} | {
        "gradient of " + name: parameters[ours].grad for name, ours in model.report.loaded.items()}
