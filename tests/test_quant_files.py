"""4-bit checkpoints in the layout of transformers and bitsandbytes: theirs are read, ours are read
by them, faults are named."""

import functools
import json
import shutil

import pytest
import torch
from live import imported, loaded, may_refuse
from safetensors.torch import load_file, save_file
from small import PIECES
from test_families import folders  # noqa: F401  a fixture
from test_families import CONFIGS, LABELS, TEXTS, spread, their_scores

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, load_backbone, model_class, save_backbone
from minillmclf.text.batch import collate
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.tuning import set_trainable, lora, tune
from minillmclf.tuning.peft import write_adapter
from minillmclf.tuning.linear4bit import Linear4bit
from minillmclf.tuning.quant_files import open_checkpoint
from minillmclf.tuning.selection import four_bit_sizes

WIDE = dict(hidden_size=64, dim=64, hidden_dim=128, intermediate_size=128, head_dim=16, n_embd=64,
            d_model=64, d_kv=16, d_ff=128)  # bitsandbytes' kernels want such widths
FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "deberta-v3", "modernbert", "gpt2",
            "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "t5", "flan-t5")


def scores(model):
    return model.compute_logits(model.encode(TEXTS)[0])


def four_bit(folder, **options):
    model = Classifier.from_backbone(folder, LABELS, quantise="nf4", **options)
    spread(model.head, 3)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_four_bit_classifier_comes_back_from_disk(name, folders, tmp_path):  # noqa: F811
    model = four_bit(folders[name])
    count = sum(isinstance(module, Linear4bit) for module in model.modules())
    set_trainable(model, "head")
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert config["quantization_config"]["load_in_4bit"]
    again = Classifier.load(tmp_path)
    assert sum(isinstance(module, Linear4bit) for module in again.modules()) == count > 0
    assert torch.equal(scores(again), scores(model)) and not again.report.newly_initialised
    body = Classifier.from_backbone(tmp_path, ["a", "b"], quantise="nf4")
    assert sum(isinstance(module, Linear4bit) for module in body.modules()) == count, (
        "a 4-bit folder is a base too")
    tune(body, dict(method="qlora", rank=2, alpha=2.0, dropout=0.0, use_rslora=False,
                    targets="all-linear", bias="none"))
    body.save(tmp_path / "tuned")
    assert torch.equal(scores(Classifier.load(tmp_path / "tuned")), scores(body)), (
        "QLoRA on a base that has four bits on disk")


@pytest.mark.parametrize("method", ["full", "last-1", "last-2"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_what_is_in_four_bits_is_not_said_to_learn(name, method, folders):  # noqa: F811
    model = four_bit(folders[name])
    with pytest.raises(InputError, match=f"four bits .* --method {method} .* --method qlora"):
        tune(model, {"method": method})
    assert model.tuning is None, "refused before anything has changed"
    tune(Classifier.from_backbone(folders[name], LABELS), {"method": method})


def test_the_numbers_in_four_bits_are_counted(folders):  # noqa: F811
    plain, small = Classifier.from_backbone(folders["llama"], LABELS), four_bit(folders["llama"])
    sizes, layers = four_bit_sizes(small), dict(plain.named_modules())
    assert sizes == {path: layers[path].weight.numel() for path in sizes}
    assert len(sizes) == sum(isinstance(m, Linear4bit) for m in small.modules()) > 0
    assert not four_bit_sizes(plain)
    assert set_trainable(small, "head") == set_trainable(plain, "head")


def test_a_body_alone_is_not_read_from_four_bits(folders, tmp_path):  # noqa: F811
    four_bit(folders["llama"]).save(tmp_path)
    with pytest.raises(InputError, match="quantization_config: .* take the model that"):
        load_backbone(tmp_path)


def wide(name, folder):
    """Write a body wide enough for bitsandbytes' own layers, without dropout -> its folder."""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config} | {key: WIDE[key] for key in WIDE if key in config}
    config |= {key: 0.0 for key in model_class(config).FIELDS if "drop" in key}
    body = spread(initialise_weights(model_class(config).from_config(config), 0), std=0.1)
    body.source_config = config
    save_backbone(body, folder)
    WordPiece.from_vocab(PIECES).save(folder)
    return folder


@pytest.mark.parametrize("name",
                         ["bert", "distilbert", "roberta", "xlm-roberta", "deberta-v3",
                          "modernbert", "llama", "mistral", "qwen2", "qwen3", "gemma2", "flan-t5"])
def test_qlora_is_that_of_peft_on_bitsandbytes(name, tmp_path):
    """The same 4-bit base and updates: equal scores and equal gradients of A and B in training."""
    transformers = imported("transformers")
    peft = imported("peft")
    imported("accelerate")
    ours = four_bit(wide(name, tmp_path / "base"))
    tune(ours, dict(method="qlora", rank=4, alpha=8.0, dropout=0.0, use_rslora=False, targets=None,
                    bias="none"))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in lora.trainable_parameters(ours).items():
            parameter.normal_(0.0, 0.2, generator=draw)
    record = write_adapter(tmp_path / "adapter", ours, str(tmp_path / "base"))
    with may_refuse():
        bits = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=[*record["modules_to_save"], "bert.pooler"])
    load = functools.partial(transformers.AutoModelForSequenceClassification.from_pretrained,
                             device_map="cpu")
    base = loaded(load, tmp_path / "base", False, num_labels=len(LABELS), quantization_config=bits)

    def control():
        own = load(tmp_path / "base", num_labels=len(LABELS), quantization_config=bits)
        targets = record["target_modules"]
        own = peft.get_peft_model(own,
                                  peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets))
        own.save_pretrained(tmp_path / "own")
        again = load(tmp_path / "base", num_labels=len(LABELS), quantization_config=bits)
        peft.PeftModel.from_pretrained(again, tmp_path / "own", is_trainable=True)
    with may_refuse(control):
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
        theirs.train()
    batch = collate(ours.encode(TEXTS)[0], range(len(TEXTS)), pad_id=0)
    given = {"input_ids": batch.ids, "attention_mask": batch.mask}
    scores = ours.train()(batch)
    with may_refuse():
        expected = theirs(**given).logits
    assert (scores - expected).abs().max() <= 1e-4, (
        f"{name}: scores {(scores - expected).abs().max():.2g} apart")
    for out in (scores, expected):
        out.square().sum().backward()
    found = {f"{path}.{part}": grad for path, part, grad in gradients(theirs)}
    names = ours.rename_table().file_names(
        [path.rpartition(".lora")[0] for path in lora.trainable_parameters(ours)])
    for path, parameter in lora.trainable_parameters(ours).items():
        layer, _, part = path.rpartition(".lora")
        grad = found[f"{names[layer]}.lora{part.partition('.')[0]}"]
        apart = (parameter.grad - grad).abs().max() / grad.abs().max()
        assert apart <= 1e-4, (
            f"{name}: the gradient of {path} is {apart:.2g} of its largest number apart")


def gradients(theirs):
    """(module in the base, lora_A or lora_B, gradient) of a PEFT model."""
    for name, parameter in theirs.named_parameters():
        if ".lora_" in name:
            path, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            yield path, "lora_" + rest.partition(".")[0], parameter.grad


def assert_same_weights(name, theirs, ours):
    """Every 4-bit layer of transformers' model stands for the numbers of ours, bit for bit."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit as Theirs
    table, count = ours.rename_table(), 0
    for path, layer in theirs.named_modules():
        if isinstance(layer, Theirs):
            mine = ours.get_submodule(table.path_of(path + ".weight").removesuffix(".weight"))
            assert torch.equal(dequantize_4bit(layer.weight.data, layer.weight.quant_state),
                               mine.dequantised()), f"{name}: {path}"
            count += 1
    assert count == sum(isinstance(module, Linear4bit) for module in ours.modules()), (
        f"{name}: another number of 4-bit layers")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gpt2"])
def test_transformers_reads_what_we_write_and_we_what_it_writes(
        name, folders, tmp_path):  # noqa: F811
    transformers = imported("transformers")
    imported("accelerate")
    ours = four_bit(wide(name, tmp_path / "base"))
    ours.save(tmp_path / "ours")
    load = functools.partial(transformers.AutoModelForSequenceClassification.from_pretrained,
                             device_map="cpu")
    theirs, loading = loaded(load, tmp_path / "ours", False, output_loading_info=True)
    assert not any(loading.values()), (
        f"{name}: transformers does not find all it expects: {loading}")
    assert_same_weights(name, theirs, ours)
    # bitsandbytes' kernel on a CPU computes in bfloat16
    expected, found = scores(ours), their_scores(theirs, ours)
    assert (found - expected).abs().mean() <= 0.05 * expected.std(), (
        f"{name}: transformers answers otherwise: {found}, {expected}")
    with may_refuse():
        bits = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                               bnb_4bit_use_double_quant=True,
                                               bnb_4bit_compute_dtype=torch.float32)
    Classifier.from_backbone(tmp_path / "base", LABELS).save(tmp_path / "full")
    full = loaded(load, tmp_path / "full", False, quantization_config=bits)
    with may_refuse():
        full.save_pretrained(tmp_path / "theirs")
        theirs = load(tmp_path / "theirs")
    WordPiece.from_vocab(PIECES).save(tmp_path / "theirs")
    assert_same_weights(name, theirs, Classifier.load(tmp_path / "theirs"))


def spoil(folder, tmp_path, tensors=None, **settings):
    """A copy of a 4-bit folder with one thing changed."""
    model = four_bit(folder)
    model.save(tmp_path)
    if tensors:
        stored = load_file(tmp_path / "model.safetensors")
        tensors(stored)
        save_file(stored, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("settings, fault", [
    (dict(load_in_8bit=True), "load_in_8bit = True"),
    (dict(quant_method="gptq"), "quant_method = 'gptq'"),
    (dict(bnb_4bit_quant_storage="bfloat16"), "bnb_4bit_quant_storage = 'bfloat16'"),
    (dict(load_in_4bit=False), "load_in_4bit"), (dict(new_option=3), "new_option = 3")])
def test_other_quantisations_are_refused(settings, fault, folders, tmp_path):  # noqa: F811
    said = f"quantization_config has .*{fault}.*: only 4-bit layers of bitsandbytes"
    with pytest.raises(InputError, match=said):
        Classifier.load(spoil(folders["llama"], tmp_path, **settings))


LAYER = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("change, fault", [
    (lambda t: t.pop(LAYER + ".absmax"), "absmax is missing"),
    (lambda t: t.pop(LAYER), "weight is missing"),
    (lambda t: t.update({LAYER: t[LAYER][:-1]}), "weight is uint8"),
    (lambda t: t.update({"model.layers.9.extra.weight.quant_state.bitsandbytes__nf4": torch.zeros(
        3, dtype=torch.uint8)}), "no row for the 4-bit layer"),
    (lambda t: t.pop("model.layers.0.input_layernorm.weight"), "nothing in the file fills")])
def test_spoilt_four_bit_files_are_named(change, fault, folders, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=fault) as caught:
        Classifier.load(spoil(folders["llama"], tmp_path, change))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_plain_checkpoint_is_opened_as_one(folders, tmp_path):  # noqa: F811
    assert not hasattr(open_checkpoint(folders["bert"]), "packed")
    shutil.copytree(folders["bert"], tmp_path / "copy")
    assert Classifier.from_backbone(tmp_path / "copy", LABELS).report.newly_initialised
