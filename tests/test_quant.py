"""Are our four bits bitsandbytes' four bits, and would the tests notice if they were not?

References: bitsandbytes itself on drawn tensors (bytes and statistics to the last bit),
transformers with bitsandbytes for files in both directions, an ordinary linear layer of the
dequantised weight for outputs and gradients. Known-wrong variants must fail.

bitsandbytes 0.50.2 itself is wrong on CPUs with AVX-512 where the width of a matrix is a multiple
of 16 but not of 64: its kernel takes the absmax of other blocks. So as a reference it reads a
tensor as one row, or gets widths of 64 k.
"""
import importlib.util
import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS
from hypothesis import given, settings, strategies as st
from live import imported, may_refuse
from safetensors.torch import load_file, save_file
from small import forked_program
from torch import nn

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.models import Checkpoint, build_backbone, load_backbone
from minillmclf.tuning import linear4bit, quant
from minillmclf.tuning.frozen import Placer
from minillmclf.tuning.linear4bit import Linear4bit, Quantiser, quantise_linears
from minillmclf.tuning.quant import (CODES, bits_per_parameter, dequantise, dynamic_map,
                                     fast_dequantise, quantise)
from minillmclf.tuning.quant_files import layer_from_tensors, layer_to_tensors

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_kernels = pytest.mark.skipif(not INSTALLED, reason="compares with bitsandbytes itself")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normal_quantiles():
    """NF4 from its definition -> (16,) float64: the normal distribution's quantiles, 8 from the
    lower end to 0 and 9 from 0 to the upper, 0 in common, at equal distances in probability,
    divided by the largest. The ends stop half a step (the mean of both halves') before
    probabilities 0 and 1, whose quantiles are infinite."""
    end = 1 - (1 / 32 + 1 / 30) / 2
    above = torch.special.ndtri(torch.linspace(0.5, end, 9, dtype=torch.float64))
    below = -torch.special.ndtri(torch.linspace(0.5, end, 8, dtype=torch.float64))
    return torch.cat([below.flip(0), above[1:]]) / above[-1]


def by_hand(layer, x):
    """What a 4-bit layer computes, in plain torch, without bitsandbytes."""
    return F.linear(x, dequantise(layer.quantised, x.dtype),
                    None if layer.bias is None else layer.bias.to(x.dtype))


def linear(bias=True, width=96, out=40, **options):
    """A 4-bit layer and the ordinary layer with its dequantised weight."""
    layer = Linear4bit.from_linear(normal(out, width),
                                   normal(out, seed=1) if bias else None, **options)
    full = nn.Linear(width, out, bias)
    full.weight = nn.Parameter(layer.dequantised())
    if bias:
        full.bias = nn.Parameter(layer.bias.detach().clone())
    return layer, full


# --------------------------------------------------------------------------------------------- bits

@st.composite
def tensors(draw):
    """Any shape, scale and dtype, with zeros in places: whole blocks of them, or the ragged end."""
    shape = draw(st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 80)),
                           st.tuples(st.integers(1, 40000))))
    x = normal(math.prod(shape), seed=draw(st.integers(0, 2**31)))
    x = x * 10.0 ** draw(st.integers(-30, 20))
    start, end = (sorted(draw(st.tuples(*[st.integers(0, len(x))] * 2)))
                  if draw(st.booleans()) else (0, 0))
    x[start:end] = 0
    return x.view(shape).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


def difference(x, kind, blocksize, double):
    """None, or where our quantisation of x first differs from bitsandbytes'."""
    import bitsandbytes.functional as reference
    packed, state = reference.quantize_4bit(x, blocksize=blocksize, compress_statistics=double,
                                            quant_type=kind)
    q = quant.quantise(x, kind, blocksize, double)
    state.shape = torch.Size([2 * len(packed)])               # read as one row, without the odd end
    values = reference.dequantize_4bit(packed, state).flatten()[:x.numel()].view(x.shape)
    pairs = {"packed bytes": (q.packed, packed), "absmax": (q.absmax, state.absmax)}
    if double:
        pairs |= {"offset": (q.offset, state.offset),
                  "nested absmax": (q.nested_absmax, state.state2.absmax)}
    pairs |= {"values": (quant.dequantise(q), values),
              "kernel's values": (fast_dequantise(q, x.dtype), values)}
    return next((name for name, (ours, theirs) in pairs.items()
                 if ours.dtype != theirs.dtype or not torch.equal(ours, theirs)), None)


@needs_kernels
@pytest.mark.parametrize("width", [16, 32, 80, 96, 33])
def test_rows_that_are_no_whole_blocks_are_read_right(width):
    layer, _ = linear(width=width)
    assert torch.equal(fast_dequantise(layer.quantised, torch.float32), layer.dequantised()), \
        f"the kernel takes the absmax of other blocks where rows have {width} numbers"


@needs_kernels
@given(x=tensors(), kind=st.sampled_from(["nf4", "fp4"]),
       blocksize=st.sampled_from([64, 64, 32, 256]), double=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_every_bit_is_that_of_bitsandbytes(x, kind, blocksize, double):
    found = difference(x, kind, blocksize, double)
    assert found is None, (
        f"{kind}, {tuple(x.shape)} {x.dtype}, blocks of {blocksize}, double {double}: "
        f"{found} differ")


@needs_kernels
def test_the_codes_are_those_of_bitsandbytes_and_of_the_paper():
    import bitsandbytes.functional as reference
    for kind, code in CODES.items():
        assert torch.equal(code, reference.get_4bit_type(kind, device="cpu")), (
            f"{kind} means other numbers")
    assert torch.equal(dynamic_map(), reference.create_dynamic_map()), (
        "the 8-bit map of absmax is another")
    assert (normal_quantiles() - CODES["nf4"]).abs().max() < 3e-7, (
        "NF4 is not what its definition gives")


def low_half_first(patch):
    patch.setattr(quant, "dequantise", lambda q, dtype=None: dequantise(
        quant.Quantised(q.packed >> 4 | q.packed << 4, q.absmax, q.kind, q.blocksize, q.shape,
                        q.dtype, q.nested_absmax, q.offset), dtype))


def mean_stays(patch):
    """The bytes hold absmax itself, not what is left of it without its mean."""
    right = quant.quantise_absmax
    patch.setattr(quant, "quantise_absmax", lambda absmax: (
        *[t[:len(t) // 2] for t in right(torch.cat([absmax, -absmax]))[:2]], torch.tensor(0.0)))


def no_grid(patch):
    """The nearest 8-bit number itself instead of the one that the kernel's table finds."""
    def exact(absmax):
        rows = quant.in_blocks(absmax - absmax.mean(), 256)
        nested = rows.abs().amax(1)
        return (quant.nearest_codes(rows / nested[:, None], dynamic_map()).flatten()[:len(absmax)],
                nested, absmax.mean())
    patch.setattr(quant, "quantise_absmax", exact)


def other_blocks(patch):
    right = quant.in_blocks

    def pairs(x, size):
        rows = right(x, size)
        return rows.view(-1, 2 * size).repeat_interleave(2, 0)[:, :size] if size == 64 else rows
    patch.setattr(quant, "in_blocks", pairs)


def fp4_for_nf4(patch):
    patch.setitem(CODES, "nf4", CODES["fp4"])


def one_absmax(patch):
    """The largest value of the whole tensor for every block."""
    right = torch.Tensor.amax
    patch.setattr(torch.Tensor, "amax", lambda x, dim: right(x, dim) * 0 + x.max())


WRONG = {low_half_first: "values", mean_stays: "absmax", no_grid: "absmax",
         other_blocks: "packed bytes", fp4_for_nf4: "packed bytes", one_absmax: "packed bytes"}


@needs_kernels
@pytest.mark.parametrize("wrong, where", WRONG.items(), ids=lambda w: getattr(w, "__name__", ""))
def test_a_wrong_variant_is_noticed(wrong, where, monkeypatch):
    x = normal(512, 512)
    assert difference(x, "nf4", 64, True) is None
    wrong(monkeypatch)
    assert difference(x, "nf4", 64, True) == where, (
        f"{wrong.__name__} is not noticed, or elsewhere than in {where}")


# -------------------------------------------------------------------------------- the fused product

FUSED = INSTALLED and quant.has_fused_product()
needs_fused = pytest.mark.skipif(not FUSED,
                                 reason="bitsandbytes has a fused product for AVX512-BF16 only")
BF16_STEP = 2.0 ** -8                  # rounding moves a number by half of this share of it at most


def products(layer, x):
    """The fused product, and the exact one of the dequantised weight -> two (rows, out) in fp64."""
    q = layer.quantised
    exact = F.linear(x.double(), dequantise(q, torch.float64))
    return quant.fused_product(x, quant.interleave(q), q).double(), exact


@needs_fused
@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("kind, double, out, width", [
    ("nf4", True, 32, 64), ("nf4", False, 96, 192), ("fp4", True, 64, 320),
    ("nf4", True, 256, 1024)])
def test_the_fused_product_is_exact_within_the_rounding_of_bf16(kind, double, out, width, rows):
    layer = Linear4bit.from_linear(normal(out, width), kind=kind, double=double)
    found, exact = products(layer, normal(rows, width, seed=2).bfloat16())
    terms = F.linear(normal(rows, width, seed=2).bfloat16().double().abs(),
                     layer.dequantised().double().abs())
    # each code, each absmax, their product and the sum are rounded once to bf16
    assert ((found - exact).abs() <= 2 * BF16_STEP * terms).all()
    assert (found - exact).norm() < 1.5 * BF16_STEP * exact.norm()


def other_halves(patch):
    right = quant.interleave
    patch.setattr(
        quant, "interleave",
        lambda q: ((lambda packed, absmax: (packed >> 4 | packed << 4, absmax))(*right(q))))


def other_columns(patch):
    right = quant.interleave
    patch.setattr(quant, "interleave",
                  lambda q: ((lambda packed, absmax: (packed, absmax.flip(0)))(*right(q))))


@needs_fused
@pytest.mark.parametrize("wrong", [other_halves, other_columns])
def test_a_wrong_layout_is_noticed(wrong, monkeypatch):
    wrong(monkeypatch)
    found, exact = products(Linear4bit.from_linear(normal(64, 192)),
                            normal(3, 192, seed=2).bfloat16())
    assert (found - exact).norm() > 0.1 * exact.norm()


@needs_fused
@pytest.mark.parametrize("case, rows, out, width, dtype, grad, fused", [
    ("few rows", 64, 32, 64, torch.bfloat16, False, True),
    ("one row", 1, 32, 64, torch.bfloat16, False, True),
    ("many rows", 65, 32, 64, torch.bfloat16, False, False),
    ("fp32", 4, 32, 64, torch.float32, False, False),
    ("training", 4, 32, 64, torch.bfloat16, True, False),
    ("odd rows of W", 4, 40, 64, torch.bfloat16, False, False),
    ("cut blocks", 4, 32, 96, torch.bfloat16, False, False),
    ("no rows", 0, 32, 64, torch.bfloat16, False, False)])
def test_when_the_fused_product_is_taken(case, rows, out, width, dtype, grad, fused, monkeypatch):
    calls, right = [], linear4bit.fused_product
    monkeypatch.setattr(linear4bit, "fused_product",
                        lambda *given: (calls.append(1), right(*given))[1])
    layer = Linear4bit.from_linear(normal(out, width), normal(out))
    x = normal(rows, width, seed=2).to(dtype)
    with torch.set_grad_enabled(grad):
        y = layer(x)
    assert bool(calls) == fused and y.dtype == dtype and y.shape == (rows, out), case
    expected, share = by_hand(layer, x).float(), 2 * BF16_STEP if dtype == torch.bfloat16 else 1e-6
    assert (y.float() - expected).norm() <= share * expected.norm()
    assert len(layer.state_dict()) == 5, "the interleaved copy would be saved"


@needs_kernels
def test_importing_the_kernels_says_nothing():
    """bitsandbytes warns of a package `kernels`, which is not needed."""
    code = "from minillmclf.tuning import quant; quant.import_kernels()"
    assert forked_program("-c", code) == (0, "", "")


# --------------------------------------------------------------------------------- error and memory

@pytest.mark.parametrize("kind, expected", [("nf4", 0.092), ("fp4", 0.122)])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_the_error_on_normal_weights(kind, expected, scale):
    x = normal(512, 512) * scale
    single, double = ((dequantise(quantise(x, kind, double=d)) - x).norm() / x.norm()
                      for d in (False, True))
    assert abs(single - expected) < 1e-3 and abs(double - expected) < 2e-3, (
        f"{kind} changes normal weights by {single:.4f}, {double:.4f} doubly quantised, published "
        f"is {expected}")


@pytest.mark.parametrize("double, bits", [(False, 4.5), (True, 4.127)])
def test_a_layer_takes_the_memory_of_the_formula(double, bits):
    layer = Linear4bit.from_linear(normal(512, 1024), double=double)
    # the buffer without dimensions is the offset, one for a layer
    held = 8 * sum(b.numel() * b.element_size() for b in layer.buffers() if b.dim())
    assert held / (512 * 1024) == bits_per_parameter(double=double) == pytest.approx(bits, abs=1e-4)
    assert not list(layer.parameters()), "the 4-bit weight would be given to an optimiser"


# ---------------------------------------------------------------------------------------- the layer

@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind, double, bias", [
    ("nf4", True, True), ("nf4", False, False), ("fp4", True, True)])
def test_outputs_and_gradients_are_those_of_the_dequantised_layer(kind, double, bias, dtype):
    layer, full = linear(bias, kind=kind, double=double)
    full, upstream = full.to(dtype), normal(2, 5, 40, seed=3).to(dtype)
    inputs = [normal(2, 5, 96, seed=2).to(dtype).requires_grad_() for _ in range(3)]
    outputs = [run(x) for run, x in zip((full, layer, lambda x: by_hand(layer, x)), inputs)]
    for y in outputs:
        y.backward(upstream)
    for name, y, x in zip(("on the kernels", "by hand"), outputs[1:], inputs[1:]):
        assert torch.equal(y, outputs[0]), (
            f"the layer {name} answers other than the linear layer of its weight")
        assert torch.equal(x.grad, inputs[0].grad), (
            f"the gradient {name} is not that of the linear layer")
    if bias:                                                    # twice: layer and by hand
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(layer.bias.grad.to(dtype), 2 * full.bias.grad, rtol=tolerance), (
            "the bias learns other")


@needs_kernels
def test_the_layer_computes_what_bitsandbytes_layer_computes():
    import bitsandbytes as reference
    for seed, (out, width, rows) in enumerate([(40, 128, 5), (64, 64, 1), (7, 34, 2), (2, 64, 1)]):
        weight, x = normal(out, width, seed=seed), normal(rows, width, seed=seed + 9)
        theirs = reference.nn.Params4bit(weight, quant_type="nf4").to("cpu")
        layer = Linear4bit.from_linear(weight)
        y = reference.matmul_4bit(x, theirs, theirs.quant_state)
        assert torch.allclose(layer(x), y, atol=1e-6), (
            f"a weight {tuple(weight.shape)} answers other than bitsandbytes'")


@needs_kernels
def test_forward_and_backward_see_the_same_weight_whatever_it_was_made_from():
    layer = Linear4bit.from_linear(normal(40, 96).to(torch.bfloat16))
    x = normal(3, 96).requires_grad_()
    layer(x).sum().backward()
    expected = dequantise(layer.quantised, torch.float32).sum(0).expand(3, 96)
    assert torch.allclose(x.grad, expected, atol=1e-5), (
        "float32 gradients see a weight that was rounded to bfloat16")


@needs_kernels
def test_a_single_vector_passes_both_ways():
    layer, full = linear()
    for run in (layer, full):
        run(normal(96)).sum().backward()
    assert torch.equal(layer(normal(96)), full(normal(96)))
    assert torch.equal(layer.bias.grad, full.bias.grad)


@needs_kernels
def test_the_full_weight_is_not_kept_for_the_backward_pass():
    kept = []
    layer = Linear4bit.from_linear(normal(96, 96), normal(96))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        y = layer(normal(3, 96).requires_grad_())
    kept += [t.shape for t in vars(y.grad_fn).values() if torch.is_tensor(t)]
    assert y.requires_grad and (96, 96) not in kept, (
        "between forward and backward a dequantised weight lies in memory")


@needs_kernels
def test_autocast_and_a_change_of_dtype_leave_the_statistics_alone():
    layer, full = linear(double=False)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    moved = nn.Sequential(layer).to(torch.bfloat16)[0]
    assert moved.bias.dtype == torch.bfloat16
    same = [torch.equal(b, before[name]) and b.dtype == before[name].dtype
            for name, b in moved.named_buffers()]
    assert all(same), "model.to(bfloat16) rounds absmax: the layer has another weight now"
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(normal(3, 96)), full(normal(3, 96))
    assert y.dtype == torch.bfloat16 and torch.allclose(y, expected, rtol=2e-2, atol=2e-2)


# -------------------------------------------------------------------------------------------- files

@pytest.mark.parametrize("kind, double", [("nf4", True), ("nf4", False), ("fp4", True)])
def test_a_round_trip_through_a_file(tmp_path, kind, double):
    layer, _ = linear(kind=kind, double=double)
    pair = {f"{i}.{name}": tensor for i in "ab"
            for name, tensor in layer_to_tensors(Linear4bit.from_linear(
                layer.dequantised() * (1 + (i == "b")), kind=kind, double=double)).items()}
    # two layers: safetensors refuses memory that is shared
    save_file(pair, tmp_path / "x.safetensors")
    read = {n.removeprefix("a."): t
            for n, t in load_file(tmp_path / "x.safetensors").items() if n.startswith("a.")}
    back = layer_from_tensors(read)
    again = layer_to_tensors(back)
    assert again.keys() == read.keys() and all(torch.equal(again[n], read[n]) for n in read), (
        "a second save differs")
    assert torch.equal(back.dequantised(),
                       dequantise(quantise(layer.dequantised(), kind, double=double)))


@needs_kernels
@pytest.mark.parametrize("kind, double, dtype", [
    ("nf4", True, torch.float32), ("fp4", False, torch.bfloat16), ("nf4", True, torch.float16)])
def test_the_tensors_are_those_that_bitsandbytes_writes(kind, double, dtype):
    from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
    weight = normal(48, 128).to(dtype)
    packed, state = quantize_4bit(weight, quant_type=kind, compress_statistics=double)
    theirs = {"weight": packed} | {"weight." + name: tensor
                                   for name, tensor in state.as_dict(packed=True).items()}
    ours = layer_to_tensors(Linear4bit.from_linear(weight, kind=kind, double=double))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), (
            f"{name} differs")
    assert torch.equal(layer_from_tensors(theirs).dequantised(), dequantize_4bit(packed, state)), (
        "we read other numbers")
    read = QuantState.from_dict({n: t for n, t in ours.items() if n != "weight"}, device="cpu")
    assert torch.equal(dequantize_4bit(ours["weight"], read), dequantize_4bit(packed, state)), (
        "they read other numbers")


@pytest.fixture(scope="module", params=["llama", "bert"])
def of_transformers(request, tmp_path_factory):
    """(a tiny model's folder, its 4-bit copy's folder, the class) as transformers and bitsandbytes
    write them."""
    transformers = imported("transformers")
    imported("accelerate")
    pytest.importorskip("bitsandbytes", reason="compares with files of bitsandbytes")
    sizes = dict(vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                 num_attention_heads=4)
    full, small = tmp_path_factory.mktemp("full"), tmp_path_factory.mktemp("small")
    with may_refuse():
        config, cls = {"llama": (transformers.LlamaConfig(**sizes, num_key_value_heads=2),
                                 transformers.LlamaForCausalLM),
                       "bert": (transformers.BertConfig(**sizes),
                                transformers.BertForSequenceClassification)}[request.param]
        torch.manual_seed(0)
        cls(config).save_pretrained(full)
        bits = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                               bnb_4bit_use_double_quant=True,
                                               bnb_4bit_compute_dtype=torch.float32)
        cls.from_pretrained(full, quantization_config=bits, device_map="cpu").save_pretrained(small)
    return full, small, cls


def layers_of(folder):
    """{module: {suffix: tensor}} of the 4-bit layers in a file."""
    tensors, mark = load_file(folder / "model.safetensors"), ".weight.quant_map"
    modules = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    return {m: {n.removeprefix(m + "."): t
                for n, t in tensors.items() if n.startswith(m + ".weight")} for m in modules}


def test_files_of_transformers_are_read_and_written(of_transformers, tmp_path):
    full, small, cls = of_transformers
    weights, rest = (load_file(folder / "model.safetensors") for folder in (full, small))
    layers = layers_of(small)
    assert len(layers) >= 7
    with may_refuse():
        model, written = cls.from_pretrained(small, device_map="cpu"), dict(rest)
    from bitsandbytes.functional import dequantize_4bit
    for name, tensors in layers.items():
        theirs = model.get_submodule(name).weight
        layer = layer_from_tensors(tensors, rest.get(name + ".bias"), f"{small}: {name}")
        expected = dequantize_4bit(theirs.data, theirs.quant_state)
        assert torch.equal(layer.dequantised(), expected), f"{name}: we read other weights"
        ours = layer_to_tensors(Linear4bit.from_linear(weights[name + ".weight"]))
        assert all(torch.equal(ours[n], t) for n, t in tensors.items()), (
            f"{name}: we would write another file")
        shifted = layer_to_tensors(Linear4bit.from_linear(weights[name + ".weight"] * 2))
        written |= {f"{name}.{suffix}": tensor for suffix, tensor in shifted.items()}
    save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    with may_refuse(lambda: cls.from_pretrained(small, device_map="cpu")):
        again = cls.from_pretrained(tmp_path, device_map="cpu")
    for name in layers:
        theirs = again.get_submodule(name).weight
        expected = dequantise(quantise(weights[name + ".weight"] * 2))
        assert torch.equal(dequantize_4bit(theirs.data, theirs.quant_state), expected), (
            f"{name}: they read other weights")


# ------------------------------------------------------------------------------------------- models

def bert():
    return Classifier.load(MODELS / "bert_classifier")


def test_linears_are_replaced_and_the_rest_is_named():
    model = bert()
    full = {name: p.clone() for name, p in model.named_parameters()}
    replaced, skipped = quantise_linears(model)
    blocks = [f"backbone.layers.{i}." for i in range(len(model.backbone.layers))]
    assert replaced and all(path.startswith(tuple(blocks)) for path in replaced), (
        f"replaced {replaced}")
    assert ("head.out" in skipped and "backbone.word_embeddings" in skipped
            and not set(replaced) & set(skipped))
    for path in replaced:
        layer = model.get_submodule(path)
        assert isinstance(layer, Linear4bit) and layer.training == model.training
        assert torch.equal(layer.dequantised(), dequantise(quantise(full[path + ".weight"])))
        assert torch.equal(layer.bias, full[path + ".bias"])
    modules = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert modules == set(skipped) | set(replaced)


def test_linears_are_chosen_by_path():
    model = bert()
    replaced, _ = quantise_linears(model, lambda path: ".layers.0." in path)
    assert replaced and all(".layers.0." in path for path in replaced)
    with pytest.raises(InputError, match="no linear layer outside the heads was chosen"):
        quantise_linears(bert(), lambda path: "head" in path)


@pytest.mark.parametrize(
    "name", ["bert_masked_lm", "deberta_masked_lm", "gpt2_lm", "llama_lm", "gemma3_lm", "t5_lm"])
def test_a_model_is_quantised_as_it_is_read(name):
    """The loader is written out: what it must do is call the Placer for each tensor."""
    checkpoint, quantiser = Checkpoint(MODELS / name), Quantiser()
    place = Placer((), None, quantiser)
    model = build_backbone(checkpoint, lm_head=True)
    table = model.rename_table()
    for file in (n for n in checkpoint.files if n not in table.ties):
        ours = table.path_of(file)
        if ours is None:
            continue
        tensor = checkpoint.tensor(file)
        place(model, ours, (tensor.T if table.is_transposed(ours) else tensor).contiguous())
        full = [path for path, parameter in model.named_parameters()
                if quantiser.is_chosen(model, path) and not parameter.is_meta]
        assert not full, f"{full} lie in memory in full"
    replaced, _ = quantiser.list_paths(model)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers())), (
        "something was not filled")
    assert not any("head" in path or "norm" in path for path in replaced)
    afterwards = load_backbone(MODELS / name)
    assert sorted(quantise_linears(afterwards)[0]) == sorted(replaced)
    ids = torch.arange(1, 9)[None]
    inputs = (ids, torch.ones_like(ids), *((ids, torch.ones_like(ids)) if name == "t5_lm" else ()))
    if INSTALLED:
        assert torch.equal(model.eval()(*inputs), afterwards(*inputs)), (
            "quantised while read, it answers otherwise")


# ------------------------------------------------------------------------------------------- errors

def broken(change):
    tensors = layer_to_tensors(Linear4bit.from_linear(normal(40, 96)))
    change(tensors)
    return tensors


def put(key, value):
    def change(tensors):
        name = "weight.quant_state.bitsandbytes__nf4"
        state = json.loads(bytes(tensors[name].tolist())) | {key: value}
        tensors[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return change


def replace(name, value):
    return lambda tensors: tensors.update({name: value})


STATE = "weight.quant_state.bitsandbytes__nf4"
BROKEN = {
    "weight.absmax is missing": lambda t: t.pop("weight.absmax"),
    "weight.nested_absmax is missing": lambda t: t.pop("weight.nested_absmax"),
    "weight is missing": lambda t: t.pop("weight"),
    r"weight.quant_state.bitsandbytes__\* is missing": lambda t: t.pop(STATE),
    r"not valid JSON \(Unterminated string": replace(
        STATE, torch.tensor([123, 34], dtype=torch.uint8)),
    r"is corrupt \('utf-8' codec": replace(
        STATE, torch.tensor([255, 254, 253, 252, 251], dtype=torch.uint8)),
    r"is corrupt \('float' object": replace(STATE, torch.tensor([1.5])),
    r"should be an object, is \[1\]": replace(STATE, torch.tensor(list(b"[1]"), dtype=torch.uint8)),
    r"quant_type = 'int4'": put("quant_type", "int4"), r"blocksize = 63": put("blocksize", 63),
    r"dtype = 'float64'": put("dtype", "float64"),
    r"nested_blocksize = 128": put("nested_blocksize", 128),
    r"Infinity is no JSON number": put("nested_offset", math.inf),
    r"shape = \[0, 5\]": put("shape", [0, 5]),
    r"shape = \[5\] \(should be two whole numbers": put("shape", [5]),
    r"weight is uint8 \(1920, 1\), should be finite uint8 \(1968, 1\)": put("shape", [41, 96]),
    r"weight.absmax is uint8 \(59,\)": lambda t: t.update(
        {"weight.absmax": t["weight.absmax"][:-1]}),
    r"weight.absmax is float32": replace("weight.absmax", torch.zeros(60)),
    r"weight.nested_absmax is float32": replace("weight.nested_absmax", torch.tensor([math.nan])),
    r"weight.quant_map has other values": replace("weight.quant_map", CODES["fp4"]),
    r"weight.nested_quant_map has other values": replace(
        "weight.nested_quant_map", torch.zeros(256)),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_file_is_one_clear_line(message):
    with pytest.raises(InputError, match=message) as caught:
        layer_from_tensors(broken(BROKEN[message]), where="model.safetensors: layers.3.q_proj")
    assert ("\n" not in str(caught.value)
            and str(caught.value).startswith("model.safetensors: layers.3.q_proj: "))


def test_what_cannot_be_quantised_or_computed_is_refused():
    layer, _ = linear()
    for dtype in (torch.float16, torch.float64):
        with pytest.raises(InputError, match=f"float32 or bfloat16, not in {str(dtype)[6:]}"):
            layer(normal(2, 96).to(dtype))
    with pytest.raises(InputError, match="not in float16"), torch.autocast("cpu", torch.float16):
        layer(normal(2, 96))
    with pytest.raises(InputError, match="vectors of 96 numbers, not of 40"):
        layer(normal(2, 40))                          # bitsandbytes would turn the weight and go on
    for kind, blocksize in (("int4", 64), ("nf4", 100)):
        with pytest.raises(InputError, match="4-bit kind"):
            quantise(normal(64), kind, blocksize)
    for x in (torch.tensor([1.0, math.nan]), torch.arange(9), torch.zeros(0, 3)):
        with pytest.raises(InputError, match="cannot be quantised"):
            quantise(x)


def test_without_bitsandbytes_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    layer, full = linear()
    with pytest.raises(InputError, match="pip install 'bitsandbytes"):
        layer(normal(2, 96))
    assert torch.equal(by_hand(layer, normal(2, 96)), full(normal(2, 96))), (
        "by hand needs no bitsandbytes")


def test_the_package_is_imported_without_bitsandbytes():
    code, _, error = forked_program(
        "-c", "import sys, minillmclf, minillmclf.tuning.quant\n"
        "assert 'bitsandbytes' not in sys.modules, 'it is imported: seconds for everybody'")
    assert code == 0, error
