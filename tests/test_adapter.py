"""Do bottleneck adapters stand where the papers say, start as nothing, learn alone, come out?

There is no second implementation at hand that puts them in the same places, so the reference is the
formula, step by step, and a block of BERT written out with its adapters. Known-wrong variants must
fail.
"""
import pytest
import torch
import torch.nn.functional as F
from small import wrap_lora
from torch import nn

from minillmclf.classify.family_heads import build_head
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights
from minillmclf.models.bert import Bert
from minillmclf.models.deberta import Deberta
from minillmclf.models.gemma import Gemma2
from minillmclf.models.gpt2 import GPT2
from minillmclf.models.layers import Rows, attention
from minillmclf.models.llama import Llama
from minillmclf.models.t5 import T5
from minillmclf.tuning import bottleneck as adapter, lora
from minillmclf.tuning.bottleneck import Bottleneck

BERT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=16, type_vocab_size=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LLAMA = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=1,
             intermediate_size=24, rms_norm_eps=1e-6, head_dim=8, attention_dropout=0.0)
FAMILIES = {
    "bert": (Bert, BERT),
    "deberta-v2": (Deberta, {**BERT, "type_vocab_size": 0, "relative_attention": True,
                             "pos_att_type": ["c2p", "p2c"], "share_att_key": True,
                             "position_buckets": 8, "position_biased_input": False}),
    "gpt2": (GPT2, dict(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16,
                        embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)),
    "llama": (Llama, LLAMA),
    "gemma2": (Gemma2, {**LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "t5": (T5, dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                    is_encoder_decoder=True, dropout_rate=0.0)),
}
PLACES = {  # how many in a model of two blocks; T5 has two blocks of each kind
    ("houlsby", "t5"): 4 + 4 + 2, ("pfeiffer", "t5"): 4,
    **{("houlsby", family): 4 for family in FAMILIES if family != "t5"},
    **{("pfeiffer", family): 2 for family in FAMILIES if family != "t5"},
}


class Whole(nn.Module):
    """A body and a head, called as a classifier's are."""

    def __init__(self, family):
        super().__init__()
        kind, config = FAMILIES[family]
        self.backbone = kind.from_config(config)
        self.head = build_head(family, self.backbone, 3)
        initialise_weights(self, 0, std=0.2)

    def forward(self, ids, mask):
        return self.head(self.backbone.states(ids, mask), mask)


def texts(seed=0):
    """ids and a mask with padding, (3, 7) each."""
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:], mask[2, 6:] = 0, 0
    return ids, mask


def disturb(model):
    """Give the adapters values as if they had learned."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.trainable_parameters(model).values():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("place, family", PLACES)
def test_identity_at_the_start_and_wrap_unwrap_inverse(place, family):
    model = Whole(family).eval()
    before, names = model(*texts()).detach(), dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    paths = adapter.wrap(model, place, 5)
    assert (len(paths) == PLACES[place, family]
            and all(path.startswith("backbone.") for path in paths))
    assert torch.equal(model(*texts()), before), (
        "fresh adapters must leave the logits as they were, bit for bit")
    trained = adapter.trainable_parameters(model)
    count = sum(p.numel() for p in trained.values())
    assert count == sum(p.numel() for p in model.parameters()) - total
    assert count == len(paths) * (2 * 16 * 5 + 5 + 16), "2 D size + size + D for each place"
    model(*texts()).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for path, p in trained.items() if ".up." in path), (
        "an adapter cannot learn")
    assert all(model.get_submodule(path).base.weight.grad is None for path in paths), (
        "a wrapped layer learns")
    assert (disturb(model)(*texts()) - before).abs().max() > 1e-3, (
        "the adapters are not in the path of the logits")
    assert adapter.unwrap(model) == paths
    assert torch.equal(model(*texts()), before), "unwrap is not the inverse"
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: id(p) for name, p in names.items()}


def test_t5_cross_attention_counts_for_houlsby():
    paths = adapter.wrap(Whole("t5"), "houlsby", 3)
    assert [path for path in paths if ".1." in path] == [
        "backbone.encoder.layers.1.attention.o_proj", "backbone.encoder.layers.1.down_proj",
        *(f"backbone.decoder.layers.1.{leaf}"
          for leaf in ("attention.o_proj", "down_proj", "cross_attention.o_proj"))]


def test_first_values():
    model = nn.ModuleDict({"down_proj": nn.Linear(24, 400)})
    adapter.wrap(model, "pfeiffer", 50)
    layer = model["down_proj"]
    assert layer.down.weight.shape == (50, 400) and layer.up.weight.shape == (400, 50)
    assert abs(layer.down.weight.std() - 0.01) < 2e-4 and abs(layer.down.weight.mean()) < 2e-4
    assert not any(p.any() for p in (layer.down.bias, layer.up.weight, layer.up.bias)), (
        "up and biases start at zero")


def test_the_seed_decides():
    def first(seed):
        model = Whole("bert")
        adapter.wrap(model, "houlsby", 4, seed=seed)
        return {path: p for path, p in adapter.trainable_parameters(model).items()
                if path.endswith("down.weight")}
    a, b, c = first(0), first(0), first(1)
    assert all(torch.equal(a[path], b[path]) and not torch.equal(a[path], c[path]) for path in a)
    assert len({tuple(tensor.flatten().tolist()) for tensor in a.values()}) == len(a), (
        "two places start alike")


# --------------------------------------------------------------------------- the formula, the place

def by_hand(model, place, ids, mask):
    """A BERT's body written out: adapters behind the linear layer, before the residual sum."""
    body, rows = model.backbone, Rows(mask)
    x = body.embed(ids, rows, None)                                  # (N, D)

    def bottleneck(module, y):
        return y + F.linear(F.gelu(F.linear(y, module.down.weight, module.down.bias)),
                            module.up.weight, module.up.bias)
    for layer in body.layers:
        seen = attention(*layer.project(x, x), rows)
        if place == "houlsby":
            y = bottleneck(layer.o_proj,
                           F.linear(seen, layer.o_proj.base.weight, layer.o_proj.base.bias))
        else:
            y = layer.o_proj(seen)
        x = layer.attention_norm(x + y)
        inner = F.gelu(layer.up_proj(x))
        y = F.linear(inner, layer.down_proj.base.weight, layer.down_proj.base.bias)
        x = layer.mlp_norm(x + bottleneck(layer.down_proj, y))
    return model.head(rows.pad(x), mask)


def difference(place="houlsby"):
    """The largest difference of the logits from those by hand."""
    model = Whole("bert").eval()
    adapter.wrap(model, place, 5)
    disturb(model)
    return (model(*texts()) - by_hand(model, place, *texts())).abs().max().item()


@pytest.mark.parametrize("place", adapter.WRAPPED_LAYERS)
def test_the_papers_place_and_formula(place):
    assert difference(place) < 1e-5, f"{place} is another network than the one by hand"


WRONG = {
    "no residual of its own": lambda self, x: self.up(self.activation(self.down(self.base(x)))),
    "no activation": lambda self, x: (y := self.base(x)) + self.up(self.down(y)),
    "activation after up": lambda self, x: (
        (y := self.base(x)) + self.activation(self.up(self.down(y)))),
    "no adapter at all": lambda self, x: self.base(x),
}


@pytest.mark.parametrize("name", WRONG)
def test_known_wrong_variants_fail(name, monkeypatch):
    monkeypatch.setattr(Bottleneck, "forward", WRONG[name])
    assert difference() > 1e-3, f"{name}: the tests do not see it"


# --------------------------------------------------------------------------- training

@pytest.mark.parametrize("norms", [False, True])
def test_steps_change_every_adapter_and_nothing_else(norms):
    model = Whole("bert")
    adapter.wrap(model, "houlsby", 4)
    learning = set(adapter.trainable_parameters(model, norms))
    assert all((f"backbone.{norm}" in learning) is norms
               for norm in ("layers.0.mlp_norm.weight", "embedding_norm.bias"))
    learning |= {name for name, _ in model.named_parameters() if name.startswith("head.")}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2,
                                  weight_decay=0.0)
    for step in range(3):
        F.cross_entropy(model(*texts(step)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in learning), \
            f"{name} {'did not learn' if name in learning else 'was frozen and has changed'}"


def test_norms_are_those_of_the_body():
    body = Bert.from_config(BERT, lm_head=True)
    adapter.wrap(body, "pfeiffer", 2)
    norms = set(adapter.trainable_parameters(body, norms=True))
    norms -= set(adapter.trainable_parameters(body))
    assert len(norms) == 2 * (1 + 2 * 2) and not any("lm_head" in name for name in norms)


def test_half_precision_and_the_meta_device():
    linear = nn.ModuleDict({"down_proj": nn.Linear(6, 4)}).bfloat16().eval()
    x = torch.randn(3, 6).bfloat16()
    before = linear["down_proj"](x)
    adapter.wrap(linear, "pfeiffer", 2)
    layer = linear["down_proj"]
    assert (layer.down.weight.dtype == torch.float32 and layer.base.weight.dtype == torch.bfloat16
            and not layer.training)
    assert layer(x).dtype == torch.bfloat16 and torch.equal(layer(x), before)
    with torch.device("meta"):
        model = Bert.from_config(BERT)
    adapter.wrap(model, "houlsby", 2)
    assert all(parameter.is_meta for parameter in adapter.trainable_parameters(model).values())


# --------------------------------------------------------------------------- errors

@pytest.mark.parametrize("change, says", [
    (dict(place="lora"), "houlsby, pfeiffer"), (dict(size=0), "size 0"),
    (dict(size=2.0), "size 2.0")])
def test_errors_come_before_any_change(change, says):
    model = Whole("bert")
    with pytest.raises(InputError, match=says) as error:
        adapter.wrap(model, **{"place": "houlsby", "size": 4} | change)
    assert ("\n" not in str(error.value)
            and not any(isinstance(m, Bottleneck) for m in model.modules()))


def test_wrappers_do_not_stack_silently():
    model = Whole("bert")
    with pytest.raises(InputError, match="wrap it first"):
        adapter.unwrap(model)
    adapter.wrap(model, "houlsby", 4)
    with pytest.raises(InputError, match="Bottleneck, it takes no bottleneck"):
        adapter.wrap(model, "pfeiffer", 4)
    with pytest.raises(InputError, match="o_proj is a Bottleneck, it takes no LoraLinear"):
        wrap_lora(model, "all-linear", rank=2, alpha=2)
    wrap_lora(model, ["q_proj"], rank=2, alpha=2)  # beside each other they may stand
    lora.merge(model)
    adapter.unwrap(model)
    wrap_lora(model, ["down_proj"], rank=2, alpha=2)
    with pytest.raises(InputError, match="LoraLinear, it takes no bottleneck"):
        adapter.wrap(model, "pfeiffer", 4)
