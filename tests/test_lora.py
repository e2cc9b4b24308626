"""Is our LoRA the papers' and PEFT's, does it leave alone what is frozen, and would these tests
notice if not?

PEFT is the reference where it is installed: the same linear layers, the same A, B and magnitudes,
then outputs and gradients, with and without dropout. What needs no reference: a fresh adapter
changes nothing, merging, counts, errors. Known-wrong variants must fail.
"""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import fp32
from hypothesis import given, settings, strategies as st
from live import imported, may_refuse
from small import wrap_lora
from torch import nn

from minillmclf.classify.family_heads import build_head
from minillmclf.cli.activations import AliveBytes
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights
from minillmclf.models.bert import Bert, Roberta, XlmRoberta
from minillmclf.models.deberta import Deberta
from minillmclf.models.gemma import Gemma, Gemma2
from minillmclf.models.gpt2 import GPT2
from minillmclf.models.llama import Llama, Mistral, Qwen2, Qwen3
from minillmclf.models.t5 import T5
from minillmclf.tuning import lora, selection
from minillmclf.tuning.lora import DoraLinear, LoraConfig, LoraLinear

BERT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=16, type_vocab_size=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LLAMA = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1,
             intermediate_size=24, rms_norm_eps=1e-6, head_dim=8, attention_dropout=0.0)
FAMILIES = {
    "bert": (Bert, BERT),
    "roberta": (Roberta, BERT),
    "xlm-roberta": (XlmRoberta, BERT),
    "deberta-v2": (Deberta, {**BERT, "type_vocab_size": 0, "relative_attention": True,
                             "pos_att_type": ["c2p", "p2c"], "share_att_key": True,
                             "position_buckets": 8, "position_biased_input": False}),
    "gpt2": (GPT2, dict(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16,
                        embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)),
    "llama": (Llama, LLAMA),
    "mistral": (Mistral, LLAMA),
    "qwen2": (Qwen2, LLAMA),
    "qwen3": (Qwen3, LLAMA),
    "gemma": (Gemma, LLAMA),
    "gemma2": (Gemma2, {**LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "t5": (T5, dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                    is_encoder_decoder=True, dropout_rate=0.0)),
}


class Whole(nn.Module):
    """A body and a head, called as a classifier's are."""

    def __init__(self, family, seed=0):
        super().__init__()
        kind, config = FAMILIES[family]
        self.backbone = kind.from_config(config)
        self.head = build_head(family, self.backbone, 3)
        initialise_weights(self, seed, std=0.2)

    def forward(self, ids, mask):
        return self.head(self.backbone.states(ids, mask), mask)


class Pair(nn.Module):
    """Two linear layers, with bias and without: one square, where A and B could be exchanged."""

    def __init__(self, width=6, wide=5, dtype=torch.float32, seed=0):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, wide, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.5, generator=generator)
        self.to(dtype)

    def forward(self, x):
        return self.v_proj(torch.tanh(self.q_proj(x)))


class FourBit(nn.Module):
    """What linear4bit.py's Linear4bit shows of itself."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.register_buffer("packed", linear.weight.detach().clone())

    def dequantised(self):
        return self.packed.clone()

    def forward(self, x):
        return F.linear(x, self.packed, self.bias)


def texts(seed=0):
    """ids and a mask with padding, (3, 7) each."""
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:], mask[2, 6:] = 0, 0
    return ids, mask


def disturb(model, seed=1):
    """Give an adapter values as if it had learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in lora.trainable_parameters(model).items():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if ".magnitude." in path:
                parameter.mul_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.5 * noise)
    return model


def bits(model):
    """{name: tensor} of all parameters, copied."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --------------------------------------------------------------------------------- parity with PEFT

def parity(use_dora=False, use_rslora=False, dropout=0.0, dtype=torch.float64, tolerance=1e-12):
    """None, or what differs from PEFT on the same numbers in training: outputs or a gradient."""
    peft = imported("peft")
    ours, theirs = Pair(dtype=dtype), Pair(dtype=dtype)
    wrap_lora(ours, ["q_proj", "v_proj"], rank=3, alpha=7.0, dropout=dropout, use_rslora=use_rslora,
              use_dora=use_dora)
    with may_refuse():
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(
            r=3, lora_alpha=7.0, lora_dropout=dropout, use_rslora=use_rslora, use_dora=use_dora,
            target_modules=["q_proj", "v_proj"]))
    disturb(ours.train())
    with may_refuse():
        names = {path: theirs.get_parameter(
            f"base_model.model.{path.replace('magnitude', 'lora_magnitude_vector')}.weight")
                 for path in lora.trainable_parameters(ours)}
    with torch.no_grad():
        for path, parameter in lora.trainable_parameters(ours).items():
            names[path].copy_(parameter)
    found = []
    for model in (ours, theirs.train()):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
        torch.manual_seed(3)  # the same dropout masks for both
        with may_refuse():
            y = model(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
        found.append((y, x.grad))
    for what, a, b in (("outputs", found[0][0], found[1][0]),
                       ("the gradient of x", found[0][1], found[1][1])):
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance):
            return f"{what} differ by {(a - b).abs().max():.2g}"
    for path, parameter in lora.trainable_parameters(ours).items():
        if not torch.allclose(parameter.grad, names[path].grad, rtol=tolerance, atol=tolerance):
            difference = (parameter.grad - names[path].grad).abs().max()
            return f"the gradient of {path} differs by {difference:.2g}"
    return None


KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
         "rsdora": {"use_dora": True, "use_rslora": True}}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_peft_s(kind, dropout):
    assert parity(**KINDS[kind], dropout=dropout) is None, f"{kind} is another formula than PEFT's"


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_peft_s_in_single_precision(kind):
    assert parity(**KINDS[kind], dtype=torch.float32, tolerance=fp32(width=9, depth=2)) is None, (
        f"{kind} loses precision")


def test_default_targets_are_peft_s():
    """PEFT's names, put through each family's table of names, give ours."""
    constants = imported("peft.utils.constants")
    with may_refuse():
        theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for family, (kind, _) in FAMILIES.items():
        leaves = {ours.split(".")[-1] for file, ours in kind.NAMES.items()
                  if ours and "lm_head" not in ours and file.split(".")[-1] in theirs[family]}
        assert leaves == set(lora.DEFAULT_TARGETS[family]), (
            f"{family} adapts other layers than PEFT does")
    assert set(theirs["gemma3_text"]) == set(lora.DEFAULT_TARGETS["gemma3_text"])


# ----------------------------------------------------------------------------- known-wrong variants

def exchanged(self, x):
    A, B = self.A, self.B
    s, y = self.config.scale, self.base(x)
    return y + s * (x @ B @ A if B.shape == A.T.shape else x @ A.T @ B.T)


def dropout_on_all(self, x):
    x = F.dropout(x, self.config.dropout, self.training)
    return self.base(x) + x @ self.A.T @ (self.config.scale * self.B).T


def attached_lengths(self, W):
    return torch.linalg.norm(W + self.update_matrix(), dim=1)


def column_lengths(self, W):
    rows = W + self.update_matrix()
    return torch.linalg.norm(rows.detach(), dim=0 if len(W) == len(W.T) else 1)


def unscaled_divisor(self, W):
    return torch.linalg.norm((W + self.update_matrix() / self.config.scale).detach(), dim=1)


def scaled_bias(self, x):
    W = self.base.weight
    factor = self.m / self.row_norms(W)
    return factor * (self.base(x) + x @ self.A.T @ (self.config.scale * self.B).T)


WRONG = {
    "alpha for alpha / r": (LoraConfig, "scale", property(lambda self: self.alpha), {}),
    "alpha / r for alpha / sqrt(r)": (
        LoraConfig, "scale", property(lambda self: self.alpha / self.rank), {"use_rslora": True}),
    "A and B exchanged": (LoraLinear, "forward", exchanged, {}),
    "dropout on the base's input too": (LoraLinear, "forward", dropout_on_all, {"dropout": 0.4}),
    "DoRA's divisor not held constant": (DoraLinear, "row_norms", attached_lengths,
                                         {"use_dora": True}),
    "DoRA's lengths of columns": (DoraLinear, "row_norms", column_lengths, {"use_dora": True}),
    "DoRA's divisor without s": (DoraLinear, "row_norms", unscaled_divisor, {"use_dora": True}),
    "DoRA's factor on the bias": (DoraLinear, "forward", scaled_bias, {"use_dora": True}),
}


@pytest.mark.parametrize("name", WRONG)
def test_known_wrong_variants_fail_parity(name, monkeypatch):
    where, attribute, wrong, kind = WRONG[name]
    assert parity(**kind) is None
    monkeypatch.setattr(where, attribute, wrong)
    assert parity(**kind) is not None, f"{name}: the parity test does not see it"


# ---------------------------------------------------------------------------------- a fresh adapter

@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing_and_all_learn(family, dora):
    model = Whole(family).eval()
    before = model(*texts()).detach()  # not in no_grad: attention has other kernels there
    paths = wrap_lora(model, list(lora.DEFAULT_TARGETS[family]), rank=2, alpha=4, use_dora=dora)
    assert paths and all(path.startswith("backbone.") for path in paths)
    assert torch.equal(model(*texts()), before), (
        "B = 0 must leave the logits as they were, bit for bit")
    model(*texts()).square().sum().backward()
    adapters = lora.trainable_parameters(model)
    for path, parameter in adapters.items():
        grad = parameter.grad
        assert grad is not None and (".lora_A." in path or grad.abs().max() > 0), (
            f"{path} gets no gradient")
        assert ".lora_A." not in path or grad.abs().max() == 0, "while B = 0, A has no say"
    assert all(model.get_submodule(path).base.weight.grad is None for path in paths), (
        "a base learns")
    disturb(model)
    with torch.no_grad():
        tuned = model(*texts())
        assert (tuned - before).abs().max() > 1e-3, "the adapters are not in the path of the logits"
        assert lora.merge(model) == paths
        assert (model(*texts()) - tuned).abs().max() < 1e-5, "merged and unmerged models differ"
    assert all(type(model.get_submodule(path)) is nn.Linear for path in paths)


def test_first_values_are_the_papers():
    linear = nn.Linear(400, 50)
    model = nn.ModuleDict({"q_proj": linear})
    wrap_lora(model, ["q_proj"], rank=64, alpha=1)
    layer = model["q_proj"]
    A, bound = layer.lora_A["default"], 1 / math.sqrt(400)
    assert A.shape == (64, 400) and layer.lora_B["default"].shape == (50, 64)
    assert A.abs().max() <= bound and A.abs().max() > 0.99 * bound, (
        "A is not uniform within 1 / sqrt(in)")
    assert abs(A.mean()) < 0.02 * bound and abs(A.std() - bound / math.sqrt(3)) < 0.01 * bound
    assert not layer.lora_B["default"].any(), "B must start at zero"


def test_dora_magnitudes_start_as_row_lengths():
    model = Pair()
    W = model.v_proj.weight.detach().clone()                         # (out, in) = (5, 6)
    wrap_lora(model, ["v_proj"], rank=2, alpha=2, use_dora=True)
    m = model.v_proj.magnitude["default"]
    assert m.shape == (5,) and torch.allclose(m, W.square().sum(1).sqrt()), (
        "m is one length for each output")


def test_dora_takes_a_row_of_zeros():
    model = Pair()
    with torch.no_grad():
        model.v_proj.weight[2] = 0.0
    wrap_lora(model, ["v_proj"], rank=2, alpha=2, use_dora=True)
    y = model(torch.ones(2, 6))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in lora.trainable_parameters(model).values())


def test_the_seed_decides():
    def first(seed):
        model = Whole("bert")
        wrap_lora(model, "all-linear", rank=2, alpha=2, seed=seed)
        return lora.trainable_parameters(model)
    a, b, c = first(0), first(0), first(1)
    assert all(torch.equal(a[path], b[path]) for path in a), "the same seed gives other values"
    assert not any(torch.equal(a[path], c[path]) for path in a if ".lora_A." in path), (
        "the seed is ignored")
    values = [parameter for path, parameter in a.items() if path.endswith("q_proj.lora_A.default")]
    assert not torch.equal(*values), "two layers start with the same A"


def test_the_update_is_added_in_place():
    layer = LoraLinear(nn.Linear(8, 512), LoraConfig(2, 4.0), torch.Generator().manual_seed(0))
    x = torch.randn(300, 8, requires_grad=True)
    with AliveBytes() as count:
        y = layer(x)
    assert count.peak < 2.5 * y.nbytes, "base and update, but no third tensor of their size"


def test_half_precision_base_keeps_adapters_in_single():
    model = Pair(dtype=torch.bfloat16)
    x = torch.randn(4, 6).bfloat16()
    before = model(x)
    for dora in (False, True):
        wrapped = copy.deepcopy(model)
        wrap_lora(wrapped, ["q_proj", "v_proj"], rank=2, alpha=2, use_dora=dora)
        assert all(p.dtype == torch.float32 for p in lora.trainable_parameters(wrapped).values())
        assert wrapped(x).dtype == torch.bfloat16 and torch.equal(wrapped(x), before)
        weight = wrapped.q_proj.base.weight.clone()
        disturb(wrapped.eval())
        lora.merge(wrapped)
        assert wrapped.q_proj.weight.dtype == torch.bfloat16
        assert not torch.equal(wrapped.q_proj.weight, weight)


# ----------------------------------------------------------------------------------------- training

@pytest.mark.parametrize("dora", [False, True])
def test_steps_change_every_adapter_and_nothing_else(dora):
    model = Whole("bert")
    wrap_lora(model, ["q_proj", "v_proj", "down_proj"], rank=2, alpha=4, use_dora=dora, dropout=0.1)
    learning = {f"head.{name}" for name, _ in model.head.named_parameters()} | set(
        lora.trainable_parameters(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    before = bits(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2,
                                  weight_decay=0.0)
    for step in range(3):
        F.cross_entropy(model(*texts(step)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in bits(model).items():
        assert torch.equal(tensor, before[name]) == (name not in learning), \
            f"{name} {'did not learn' if name in learning else 'was frozen and has changed'}"


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_only_in_training(dora):
    def noisy(model, x):
        return not torch.equal(model(x), model(x))
    model, x = Pair().eval(), torch.ones(4, 6)
    wrap_lora(model, "all-linear", rank=2, alpha=4, dropout=0.5, use_dora=dora)
    disturb(model)
    assert not noisy(model, x), "a model that was wrapped in eval mode has dropout"
    assert noisy(model.train(), x), "no dropout in training"
    assert not noisy(model.eval(), x), "dropout in eval mode"
    before = bits(model)
    model.train().eval()
    assert all(torch.equal(p, before[name]) for name, p in bits(model).items()), (
        "train() or eval() has changed weights")


def test_dropout_in_eval_would_be_seen(monkeypatch):
    real = F.dropout
    monkeypatch.setattr(F, "dropout", lambda x, p, training=True: real(x, p, True))
    with pytest.raises(AssertionError, match="eval mode"):
        test_dropout_only_in_training(False)


# ------------------------------------------------------------------------------------------ merging

@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 9), wide=st.integers(1, 9), rank=st.integers(1, 12),
       alpha=st.floats(0.1, 64.0),
       dora=st.booleans(), stable=st.booleans(), seed=st.integers(0, 99))
def test_merge_is_the_inverse_of_wrap(width, wide, rank, alpha, dora, stable, seed):
    model = Pair(width, wide, torch.float64, seed).eval()
    plain = bits(model)
    wrap_lora(model, ["q_proj", "v_proj"], rank, alpha, use_rslora=stable, use_dora=dora, seed=seed)
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)).double()
    fresh = copy.deepcopy(model)
    lora.merge(fresh)
    assert all(torch.equal(p, plain[name]) for name, p in bits(fresh).items()), (
        "merging nothing changes something")
    disturb(model, seed=seed)
    with torch.no_grad():
        y = model(x)
        by_matrix = F.linear(torch.tanh(F.linear(x, model.q_proj.weight, model.q_proj.base.bias)),
                             model.v_proj.weight)
        assert torch.allclose(y, by_matrix, rtol=1e-9, atol=1e-9), (
            "`weight` is not what the layer computes")
        lora.merge(model)
        assert torch.allclose(model(x), y, rtol=1e-9, atol=1e-9), (
            "the merged model answers otherwise")
    assert set(bits(model)) == set(plain), "merge is not wrap's inverse"


def test_merged_equals_unmerged_in_single_precision():
    model = Whole("bert").eval()
    wrap_lora(model, "all-linear", rank=2, alpha=2)
    with torch.no_grad():
        for parameter in lora.trainable_parameters(disturb(model)).values():
            parameter.mul_(0.2)
        y = model(*texts())
        lora.merge(model)
        assert (model(*texts()) - y).abs().max() < fp32(width=24, depth=4) * y.abs().max(), (
            "merged and unmerged differ in fp32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
def test_four_bit_bases(dora, dtype):
    model, plain = Pair(dtype=dtype), Pair(dtype=dtype).eval()
    model.q_proj, model.v_proj = FourBit(model.q_proj), FourBit(model.v_proj)
    model.eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    wrap_lora(model, "all-linear", rank=2, alpha=2, use_dora=dora)
    wrap_lora(plain, "all-linear", rank=2, alpha=2, use_dora=dora)
    assert torch.equal(disturb(model)(x), disturb(plain)(x)), (
        "a 4-bit base counts as other numbers than it stands for")
    y = model(x)
    with pytest.raises(InputError, match="q_proj .*dequantise=True"):
        lora.merge(model)
    assert torch.equal(model(x), y), "a refused merge has changed something"
    lora.merge(model, dequantise=True)
    assert torch.allclose(model(x), y, atol=1e-5 if dtype == torch.float32 else 0.1), (
        "the plain layer answers otherwise")
    assert type(model.q_proj) is nn.Linear and model.q_proj.weight.dtype == dtype
    assert model.v_proj.bias is None
    assert repr(model.q_proj) == "Linear(in_features=6, out_features=6, bias=True)"
    assert not model.q_proj.training


@pytest.mark.parametrize("dora", [False, True])
def test_state_dicts_carry_the_adapter_under_the_names_of_earlier_versions(dora):
    model, other = Pair(), Pair(seed=5)
    for seed, target in enumerate((model, other)):
        wrap_lora(target, ["q_proj", "v_proj"], rank=3, alpha=2, use_dora=dora, seed=seed)
    disturb(model)
    assert set(lora.trainable_parameters(model)) == {
        f"{layer}.{part}.default" for layer in ("q_proj", "v_proj")
        for part in ("lora_A", "lora_B", *["magnitude"] * dora)}
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(torch.ones(1, 6)), model(torch.ones(1, 6)))


# -------------------------------------------------------------------------- targets, counts, errors

def test_targets():
    model = Whole("bert")
    leaves = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    body = [f"backbone.layers.{n}.{leaf}" for n in range(2) for leaf in leaves]
    assert selection.find_targets(model, "all-linear") == body, (
        "all-linear is every linear layer of the body, never the head")
    assert selection.find_targets(model, r".*") == body, (
        "a regular expression must not reach the head")
    assert selection.find_targets(model, ["v_proj", "q_proj"]) == [
        p for p in body if p.endswith(("q_proj", "v_proj"))]
    assert selection.find_targets(model, ["layers.1.q_proj"]) == ["backbone.layers.1.q_proj"]
    assert selection.find_targets(model, r".*\.0\.(q|k)_proj") == [
        "backbone.layers.0.q_proj", "backbone.layers.0.k_proj"]
    assert selection.find_targets(model, ["q_proj", "head.out"])[-1] == "head.out", (
        "a head that is named is taken")
    wrap_lora(model, ["q_proj"], rank=2, alpha=2)
    assert selection.find_targets(model, "all-linear") == body, (
        "wrapped layers must be found once, under the same path")


def test_the_vocabulary_s_head_is_no_target():
    model = Bert.from_config(BERT, lm_head=True)
    assert not [path for path in selection.find_targets(model, "all-linear") if "lm_head" in path]
    assert selection.find_targets(model, ["lm_head.dense"]) == ["lm_head.dense"]


def test_t5_targets_reach_the_cross_attention():
    paths = selection.find_targets(Whole("t5"), ["q_proj"])
    assert "backbone.decoder.layers.1.cross_attention.q_proj" in paths and len(paths) == 6


@pytest.mark.parametrize("targets", [
    ["query"], ["q_proj", "qproj"], [], "q_proj", r".*\.nothing", ["dense"], ["proj"], [".q_proj"]])
def test_targets_that_mean_nothing_are_errors(targets):
    model = Whole("bert")
    with pytest.raises(InputError, match=r"backbone\.layers\.N\.q_proj.*head\.out") as error:
        wrap_lora(model, targets, rank=2, alpha=2)
    assert "\n" not in str(error.value)
    assert not any(isinstance(m, LoraLinear) for m in model.modules())


@pytest.mark.parametrize("change, says", [
    (dict(rank=0), "rank 0"), (dict(rank=2.0), "rank 2.0"), (dict(alpha=0), "alpha 0"),
    (dict(alpha=math.nan), "alpha nan"), (dict(alpha="8"), "alpha '8'"),
    (dict(dropout=1.0), "dropout 1.0"), (dict(dropout=-0.1), "dropout -0.1"),
    (dict(ranks={"k_proj": 4}), "'k_proj' decides about none"),
    (dict(alphas={"x": 4}), "'x' decides"),
    (dict(ranks={"v_proj": 0}), "rank 0"), (dict(targets="("), "regular expression"),
    (dict(ranks={"(": 1}), "regular expression"), ({}, "LoraLinear, it takes no LoraLinear"),
    (dict(use_dora=True), "LoraLinear, it takes no DoraLinear"),])
def test_errors_come_before_any_change(change, says):
    model = Pair()
    wrap_lora(model, ["q_proj"], rank=2, alpha=2)
    before = repr(model), set(bits(model))
    with pytest.raises(InputError, match=says.replace("(", r"\(")) as error:
        wrap_lora(model, **{"targets": ["q_proj", "v_proj"], "rank": 2, "alpha": 2} | change)
    assert "\n" not in str(error.value)
    assert (repr(model), set(bits(model))) == before, "a refused wrap has changed the model"


def test_unwrapped_models():
    model = Pair()
    for call in (lora.merge, lora.trainable_parameters):
        with pytest.raises(InputError, match="wrap it first"):
            call(model)


def test_ranks_and_alphas_by_pattern():
    model = Whole("bert")
    wrap_lora(model, ["q_proj", "v_proj"], rank=2, alpha=4,
              ranks={"v_proj": 5, r"layers\.1\.[qv]_proj": 3},
              alphas={r"layers\.0\..*": 1.5}, use_rslora=True)
    numbers = {path[len("backbone.layers."):]: layer.config
               for path, layer in lora.find_wrapped(model).items()}
    assert {path: (n.rank, n.alpha) for path, n in numbers.items()} == {
        "0.q_proj": (2, 1.5), "0.v_proj": (5, 1.5), "1.q_proj": (3, 4), "1.v_proj": (5, 4)}, (
        "the first fit must decide")
    assert numbers["1.q_proj"].scale == 4 / math.sqrt(3) and LoraConfig(4, 6).scale == 1.5


def test_counts():
    config = dict(vocab_size=50265, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                  intermediate_size=3072, max_position_embeddings=514, type_vocab_size=1)
    for dora, more in ((False, 0), (True, 24 * 768)):
        with torch.device("meta"):
            model = Roberta.from_config(config)
        wrap_lora(model, ["q_proj", "v_proj"], rank=8, alpha=8, use_dora=dora)
        added = sum(p.numel() for p in lora.trainable_parameters(model).values())
        assert added == 294_912 + more, "roberta-base, r = 8, q and v"


@pytest.mark.parametrize("dora", [False, True])
def test_wrap_on_the_meta_device(dora):
    with torch.device("meta"):
        model = Bert.from_config(BERT)
        wrap_lora(model, ["q_proj"], rank=2, alpha=2, use_dora=dora)
    wrap_lora(model, ["v_proj"], rank=2, alpha=2, use_dora=dora)
    assert all(p.is_meta for p in lora.trainable_parameters(model).values())


# ------------------------------------------------------------------------------------------- biases

def test_which_biases_learn():
    model = Whole("bert")
    everything = {
        name for name, _ in model.backbone.named_parameters("backbone") if name.endswith(".bias")}
    assert set(selection.bitfit_parameters(model)) == everything and len(everything) == 2 * 8 + 1, (
        "BitFit is every bias of the body")
    wrap_lora(model, ["q_proj"], rank=2, alpha=2)
    assert selection.trainable_biases(model, "none") == []
    assert selection.trainable_biases(model, "lora_only") == [
        f"backbone.layers.{n}.q_proj.base.bias" for n in range(2)]
    assert len(selection.trainable_biases(model, "all")) == len(everything)
    with pytest.raises(InputError, match="'lora'.*lora_only"):
        selection.trainable_biases(model, "lora")


@pytest.mark.parametrize("family", ["llama", "t5", "gemma"])
def test_families_without_biases_refuse_bitfit(family):
    """T5 has a `relative_bias.weight` in its attention and a bias in its head: neither is meant."""
    with pytest.raises(InputError, match="has none"):
        selection.bitfit_parameters(Whole(family))


@pytest.mark.parametrize("dora", [False, True])
def test_trained_biases_get_their_gradient(dora):
    model = Pair()
    wrap_lora(model, ["q_proj"], rank=2, alpha=2, use_dora=dora)
    disturb(model)
    model.q_proj.base.bias.requires_grad_()
    x = torch.ones(3, 6)
    model.q_proj(x).sum().backward()
    assert torch.allclose(model.q_proj.base.bias.grad, torch.full((6,), 3.0)), (
        "the bias is scaled by something")
