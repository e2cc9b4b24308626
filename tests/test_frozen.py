"""--dtype bf16: frozen matrices in bf16 train and answer as the same rounded numbers in fp32, to
the bit; what is saved says so, loads again, and a stopped run goes on.

The reference is the package itself in fp32, with the matrices rounded before the method is
attached. Known-wrong variants must fail the same comparison.
"""
import json
import random
import sys

import pytest
import torch
from flag_world import World, call
from safetensors.torch import load_file, save_file
from small import forked_program, texts_of
from test_device import LABELS, play
from test_families import CONFIGS, folders, spread          # noqa: F401  folders is a fixture

from minillmclf.classify.classifier import Classifier
from minillmclf.cli.build import classifier_options, tuning_config
from minillmclf.cli.activations import AliveBytes
from minillmclf.cli.settings import Settings
from minillmclf.errors import InputError
from minillmclf.merge import merge_adapter
from minillmclf.models import half
from minillmclf.models.half import HalfEmbedding, HalfLinear, convert_to_bf16, product
from minillmclf.training.plan import Split
from minillmclf.tuning import frozen, linear4bit, quant, quant_files, trained_in_place, tune
from minillmclf.tuning.frozen import frozen_matrices, half_modules, widen

SOME = ["bert", "deberta-v3", "gpt2", "llama", "gemma3", "t5"]  # one of each wiring
ROWS = texts_of(random.Random(5), 6)
TEXTS = [text for text, _ in ROWS]
METHODS = ["head", "last-1", "lora", "dora", "qlora", "houlsby", "pfeiffer", "prefix", "prompt"]
FREEZING = [(name, dict(method="lora", targets="all-linear")) for name in CONFIGS]
FREEZING += [(name, dict(method=method)) for name in SOME for method in METHODS]
FREEZING += [(name, dict(method="bitfit")) for name in ("bert", "gpt2")]
FREEZING += [("gpt2", dict(method="lora", bias="all")),
             ("llama", dict(method="lora", adapter_dropout=0.3)),
             ("bert", dict(method="dora", adapter_dropout=0.3)),
             ("bert", dict(method="lora", micro_batch_size=2, gradient_checkpointing="on"))]
LABEL_TEXTS = {"readout": "labels", "template": "{text} it is {label}", "max_length": 40,
               "end": "none"}
FREEZING += [(name, LABEL_TEXTS | dict(method=method)) for name in ("gpt2", "gemma3", "t5")
             for method in ("lora", "prompt")]


def settings(**given):
    return Settings(**{"few_rows": "off", "lr": 1e-3} | given)


def build(folder, s, dtype, rounded=False):
    """A classifier of the settings -> it, its training rows. rounded: in fp32, with the matrices
    that stay frozen rounded to bf16 before anything is attached."""
    fours = s.quantise if s.method == "qlora" else None
    model = Classifier.from_backbone(folder, LABELS, **classifier_options(s), quantise=fours,
                                     dtype=dtype, method=s.method)
    if rounded:
        for path in frozen_matrices(model, trained_in_place(model, s.method)):
            W = model.get_parameter(path)
            W.data.copy_(W.data.bfloat16())
    tune(model, tuning_config(s), 0)
    encoded = model.encode(TEXTS, training=True)[0]
    return model, Split(encoded, [LABELS.index(label) for _, label in ROWS])


def first_difference(found, expected):
    """The first name whose tensors differ in a bit or in dtype, or None."""
    assert found.keys() == expected.keys() and len(found) >= 3
    return next((name for name in expected if found[name].dtype != expected[name].dtype
                 or not torch.equal(found[name], expected[name])), None)


PRECISIONS = [("fp32", *scene) for scene in FREEZING]
PRECISIONS += [("bf16", name, dict(method=method)) for name in SOME for method in ("lora", "dora")]


@pytest.mark.parametrize("precision, name, given", PRECISIONS, ids=lambda part: str(part)[:60])
def test_a_step_is_that_of_the_rounded_weights_in_fp32(precision, name, given, folders):  # noqa: F811
    s = settings(precision=precision, **given)
    model, rows = build(folders[name], s, "bf16")
    matrices = half_modules(model)
    assert matrices and all(module.weight.dtype == torch.bfloat16 for module in matrices.values())
    learns = {path for path, p in model.named_parameters() if p.requires_grad}
    others = {path: p for path, p in model.named_parameters()
              if path.removesuffix(".weight") not in matrices}
    assert learns and learns <= others.keys()
    assert all(p.dtype == torch.float32 for p in others.values())
    expected = play(*build(folders[name], s, "fp32", rounded=True), s)
    assert first_difference(play(model, rows, s), expected) is None
    plain = play(*build(folders[name], s, "fp32"), s)
    if s.precision == "fp32":                  # autocast rounds the matrices of layers anyway
        assert not torch.equal(plain["logits"], expected["logits"]), "nothing was rounded"


def keep_widened(patch):
    """By autograd: the same numbers, but each widened matrix stays until the backward pass."""
    patch.setattr(half, "product", lambda x, W, bias=None: torch.nn.functional.linear(
        x, W.to(x.dtype), bias))


def round_input(patch):
    patch.setattr(half, "product", lambda x, W, bias=None: torch.nn.functional.linear(
        x.to(W.dtype), W, None if bias is None else bias.to(W.dtype)).to(x.dtype))


def half_vectors(patch):
    patch.setattr(HalfEmbedding, "forward", lambda self, ids: super(HalfEmbedding, self).forward(
        ids).float() * (1 + 2 ** -9))


def grad_in_bf16(patch):
    right = half.WidenedProduct.backward

    def backward(ctx, grad):
        grad_x, none, grad_bias = right(ctx, grad.bfloat16().float())
        return grad_x, none, grad_bias
    patch.setattr(half.WidenedProduct, "backward", staticmethod(backward))


@pytest.mark.parametrize("wrong", [round_input, half_vectors, grad_in_bf16])
def test_a_wrong_product_is_noticed(wrong, folders, monkeypatch):               # noqa: F811
    s = settings(method="lora", targets="all-linear")
    expected = play(*build(folders["llama"], s, "fp32", rounded=True), s)
    wrong(monkeypatch)
    assert first_difference(play(*build(folders["llama"], s, "bf16"), s), expected) is not None


def saved_bytes(run):
    """Bytes that autograd saves in run()."""
    seen = {}

    def count(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = run()                                                   # noqa: F841  keeps the graph
    return sum(seen.values())


def test_no_widened_matrix_is_kept_for_the_backward_pass(monkeypatch):
    layers = [HalfLinear(torch.randn(256, 256)) for _ in range(4)]

    def run():
        x = torch.randn(2, 256, requires_grad=True)
        for layer in layers:
            x = layer(x)
        return x
    matrix = 2 * 256 * 256
    assert saved_bytes(run) < 5 * matrix
    keep_widened(monkeypatch)
    assert saved_bytes(run) > 7 * matrix, "the test would not see it"


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_large_matrix_is_widened_a_block_at_a_time(with_bias, monkeypatch):
    W, bias = torch.randn(777, 40).bfloat16(), torch.randn(777) if with_bias else None
    x, weights = torch.randn(2, 3, 40, requires_grad=True), torch.randn(2, 3, 777)

    def play(product):
        x.grad = None
        with AliveBytes() as count:
            y = product(x, W, bias)
            (y * weights).sum().backward()
        return y.detach(), x.grad, count.peak
    y, grad, _ = play(lambda x, W, bias: torch.nn.functional.linear(x, W.float(), bias))
    for most, blocks in ((1000, 32), (777 * 40, 1)):
        monkeypatch.setattr(half, "MAX_WIDENED", most)
        assert len(half.row_blocks(W)) == blocks
        found, found_grad, peak = play(product)
        assert (found - y).abs().max() < 1e-4 and (found_grad - grad).abs().max() < 1e-4
        assert (peak > 4 * W.numel()) == (blocks == 1), "a whole matrix is in fp32, or is not"


def test_a_product_with_a_wide_matrix_is_the_plain_one():
    x, W, bias = torch.randn(3, 5), torch.randn(4, 5, requires_grad=True), torch.randn(4)
    assert torch.equal(product(x, W, bias), torch.nn.functional.linear(x, W, bias))
    product(x, W, bias).sum().backward()
    assert W.grad is not None


# ----------------------------------------------------------------------------------- saved, loaded

def probabilities(model):
    return torch.as_tensor(model.eval().predict(TEXTS))


SAVED = [scene for scene in FREEZING if scene[0] in ("bert", "gpt2", "t5")]


@pytest.mark.parametrize("name, given", SAVED, ids=lambda part: str(part)[:60])
def test_what_is_saved_loads_in_bf16_with_the_same_answers(name, given, folders, tmp_path):  # noqa: F811
    s = settings(**given)
    model, rows = build(folders[name], s, "bf16")
    play(model, rows, s)
    before = probabilities(model)
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert torch.equal(probabilities(again), before)
    assert half_modules(again).keys() == half_modules(model).keys()
    adapter = tmp_path / "adapter"
    if (adapter / "adapter_config.json").exists() and s.method != "qlora":
        assert torch.equal(probabilities(Classifier.load(adapter)), before)
    where = tmp_path / ("tuned.json" if (tmp_path / "tuned.json").exists() else "config.json")
    record = json.loads(where.read_text())
    assert (record if "labels" in record else record["minillmclf"])["dtype"] == "bf16"


@pytest.mark.parametrize("name, method", [("bert", "lora"), ("gpt2", "lora"), ("t5", "dora")])
def test_merged_weights_are_not_rounded(name, method, folders, tmp_path):       # noqa: F811
    from minillmclf.tuning.saved import merge_tuned
    s = settings(method=method, lr=0.5)
    model, rows = build(folders[name], s, "bf16")
    play(model, rows, s)
    before = probabilities(model)
    merge_tuned(model)
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert (probabilities(again) - before).abs().max() < 1e-5
    assert half_modules(again) and half_modules(again).keys() == half_modules(model).keys()
    layers = {path for path in half_modules(again) if path.endswith(("q_proj", "qkv_proj"))}
    assert not layers, "a merged sum was rounded to bf16"


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_beside_four_bits_a_saved_model_has_no_bf16(name, folders, tmp_path):    # noqa: F811
    """transformers keeps the dtypes of such a file, and fails where a bf16 vector meets fp32."""
    model, _ = build(folders[name], settings(method="qlora"), "bf16")
    merge_adapter(model, "4bit").save(tmp_path)
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()}
    assert half_modules(model) and dtypes == {torch.float32, torch.uint8}
    assert "dtype" not in json.loads((tmp_path / "config.json").read_text())["minillmclf"]
    assert torch.equal(probabilities(Classifier.load(tmp_path)), probabilities(model))


def test_a_saved_head_has_its_bf16_matrices_in_the_file(folders, tmp_path):     # noqa: F811
    s = settings(method="head")
    model, _ = build(folders["llama"], s, "bf16")
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    assert dtypes["model.layers.0.self_attn.q_proj.weight"] == torch.bfloat16
    assert dtypes["model.norm.weight"] == dtypes["score.weight"] == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_a_bf16_tensor_that_belongs_nowhere_is_refused(folders, tmp_path):       # noqa: F811
    model, _ = build(folders["bert"], settings(method="head"), "bf16")
    model.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights) | {"stray.weight": torch.zeros(3, dtype=torch.bfloat16)}
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match="'stray.weight' .* is no tensor of Bert"):
        Classifier.load(tmp_path)


def test_widened_it_is_the_rounded_model_in_fp32(folders):                      # noqa: F811
    s = settings(method="lora")
    model, _ = build(folders["t5"], s, "bf16")
    before = probabilities(model)
    widen(model)
    assert frozen.half_modules(model) == {} and torch.equal(probabilities(model), before)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", SOME)
def test_it_answers_in_bf16_too(name, folders):                                 # noqa: F811
    s = settings(method="lora")
    model, _ = build(folders[name], s, "bf16")
    before = probabilities(model)
    convert_to_bf16(model.backbone)
    after = probabilities(model)
    assert after.dtype == before.dtype and 0 < (after - before).abs().max() < 0.1


def test_random_weights_are_rounded_too(folders):                               # noqa: F811
    options = dict(pretrained=False, dtype="bf16", method="last-1")
    model = Classifier.from_backbone(folders["bert"], LABELS, **options)
    plain = Classifier.from_backbone(folders["bert"], LABELS, pretrained=False)
    assert half_modules(model)
    for path, p in plain.named_parameters():
        found = model.get_parameter(path)
        assert torch.equal(found.float(), p.to(found.dtype).float()), path


# ---------------------------------------------------------------------------------------- refused

def test_where_nothing_is_frozen_it_is_refused(folders):                        # noqa: F811
    with pytest.raises(InputError, match="--method full trains all of them"):
        settings(method="full", dtype="bf16").check()
    with pytest.raises(InputError, match="--parallel fsdp"):
        settings(method="lora", dtype="bf16", parallel="fsdp").check()
    with pytest.raises(InputError, match="trains all of them"):
        Classifier.from_backbone(folders["bert"], LABELS, dtype="bf16", method="full")
    with pytest.raises(InputError, match="dtype 'fp16': known are fp32, bf16"):
        Classifier.from_backbone(folders["bert"], LABELS, dtype="fp16", method="lora")


# -------------------------------------------------------------------------------------- the runs

@pytest.fixture(scope="module")
def w(tmp_path_factory):
    return World(tmp_path_factory.mktemp("frozen"))


def test_a_stopped_run_goes_on_in_its_dtype_and_in_no_other(w, monkeypatch):
    from minillmclf.training import loop
    given = dict(model=w.bert, data=w.data, epochs=2, batch_size=8, lr=1e-2, method="lora",
                 dtype="bf16", save_every=1, baselines="off")
    whole, out, taken, plain = w.new(), w.new(), [], loop.take_step
    assert call("train", **given, out=whole).code == 0

    def fourth_fails(*arguments, **more):
        taken.append(1)
        if len(taken) == 4:
            raise MemoryError
        return plain(*arguments, **more)
    monkeypatch.setattr(loop, "take_step", fourth_fails)
    assert call("train", **given, out=out).code == 2
    other = call("train", **given | {"dtype": "fp32"}, out=out)
    assert other.code == 2 and "another dtype" in other.err and other.err.count("\n") == 1
    assert call("train", **given, out=out).code == 0 and len(taken) == 4 + 3
    for name in ("adapter/adapter_model.safetensors", "predictions.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


# ------------------------------------------------------------------------------- memory of loading

PEAK = """
import ctypes, sys
ctypes.CDLL(None).mallopt(-3, 65536)             # M_MMAP_THRESHOLD: what is freed is given back
from minillmclf.classify.classifier import Classifier
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
options = dict(dtype=sys.argv[2], method="lora", quantise=sys.argv[3] or None)
Classifier.from_backbone(sys.argv[4], ["a", "b"], **options)                   # what libraries take
before = peak()
model = Classifier.from_backbone(sys.argv[1], ["a", "b"], **options)
held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
print((peak() - before) / held, held)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A BERT of 38 million parameters, in fp32 and in bf16."""
    from minillmclf.models import Bert, initialise_weights, save_backbone
    from minillmclf.text.tokenizers.tokenizer import WordPiece
    from small import PIECES
    config = dict(model_type="bert", vocab_size=2000, hidden_size=512, num_hidden_layers=12,
                  num_attention_heads=4, intermediate_size=2048)
    model, folders = initialise_weights(Bert.from_config(config), 0), {}    # noqa: F811
    model.source_config = config
    for dtype in (torch.float32, torch.bfloat16):
        folders[dtype] = tmp_path_factory.mktemp("large")
        save_backbone(model, folders[dtype], dtype)
        WordPiece.from_vocab(PIECES).save(folders[dtype])
    return folders


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype, quantise, stored, most", [
    ("bf16", "", torch.bfloat16, 1.3), ("bf16", "", torch.float32, 1.3),
    ("fp32", "", torch.float32, 1.3), ("fp32", "nf4", torch.float32, 3.0)])
def test_loading_takes_one_model_and_one_tensor(dtype, quantise, stored, most, large, w):
    """A copy in fp32 beside bf16 matrices would be 3 models, a second one in bf16 2. Beside the
    22 MB of four bits one fp32 layer and what quantising takes of it weigh more."""
    if quantise:
        pytest.importorskip("bitsandbytes")
    code, out, error = forked_program("-c", PEAK, large[stored], dtype, quantise, w.bert)
    assert code == 0, error
    ratio, held = map(float, out.split())
    expected = {"bf16": 2, "fp32": 4}[dtype] * 38.9e6 if not quantise else 24e6
    assert 0.95 * expected < held < 1.1 * expected
    assert 0.8 < ratio < most, f"{ratio:.2f} models of memory"


# ---------------------------------------------------------------------------------------- four bits

def test_a_4bit_base_is_quantised_as_it_is_read_and_never_again(folders, tmp_path, monkeypatch):  # noqa: F811
    calls, right = [], quant.quantise
    monkeypatch.setattr(linear4bit, "quantise", lambda *given, **more: (
        calls.append(1), right(*given, **more))[1])
    model = Classifier.from_backbone(folders["llama"], LABELS, quantise="nf4")
    layers = [m for m in model.modules() if isinstance(m, linear4bit.Linear4bit)]
    assert len(calls) == len(layers) > 5
    model.save(tmp_path)
    calls.clear()
    again = Classifier.load(tmp_path)
    tuned = Classifier.from_backbone(tmp_path, LABELS, quantise="nf4")
    tune(tuned, tuning_config(settings(method="qlora")), 0)
    assert calls == [] and len([m for m in again.modules()
                                if isinstance(m, linear4bit.Linear4bit)]) == len(layers)


@pytest.mark.parametrize("method", ["qlora", "houlsby"])
def test_a_4bit_weight_is_not_dequantised_to_learn_a_dtype(method, folders, monkeypatch):  # noqa: F811
    model = Classifier.from_backbone(folders["llama"], LABELS, quantise="nf4")

    def never(*given, **more):
        raise AssertionError("dequantised")
    for place in (quant, quant_files):
        monkeypatch.setattr(place, "dequantise", never, raising=False)
    tune(model, tuning_config(settings(method=method)), 0)
    added = [p for path, p in model.named_parameters() if p.requires_grad]
    assert added and all(p.dtype == torch.float32 for p in added)
