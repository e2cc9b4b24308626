"""What may lie in a model folder: old keys change nothing, wrapped weights load, else one line.

The folders are the stored tiny models, changed on purpose. What is refused is refused before
anything large is built, so these tests also bound the time. fuzz_models.py makes thousands of them.
"""

import json
import os
import re
import shutil
import time

import pytest
import torch
from conftest import MODELS
from safetensors.torch import load_file, save_file
from small import bert_folder

from minillmclf import load_tokenizer, train
from minillmclf.inspect import __main__ as inspect
from minillmclf.predict import __main__ as predict
from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.files import IGNORED_KEYS
from minillmclf.models import load_backbone
from minillmclf.models.config import INERT, ignoring_config_keys
from minillmclf.tuning import tune
from minillmclf.tuning.quant_files import layer_from_tensors, layer_to_tensors

IDS = torch.tensor([[5, 9, 3, 7, 2], [8, 4, 6, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
FAMILIES = (
    "bert_masked_lm",
    "distilbert_masked_lm",
    "roberta_masked_lm",
    "xlm_roberta_masked_lm",
    "deberta_masked_lm",
    "modernbert_masked_lm",
    "gpt2_lm",
    "llama_lm",
    "mistral_lm",
    "qwen2_lm",
    "qwen3_lm",
    "gemma_classifier",
    "gemma2_lm",
    "gemma3_lm",
    "t5_lm",
    "flan_lm",
)
# what transformers 4 wrote into every config.json, and tools beside it
OLD = dict(
    do_sample=False,
    num_beams=1,
    temperature=1.0,
    top_k=50,
    top_p=1.0,
    typical_p=1.0,
    repetition_penalty=1.0,
    length_penalty=1.0,
    no_repeat_ngram_size=0,
    encoder_no_repeat_ngram_size=0,
    num_return_sequences=1,
    max_length=20,
    min_length=0,
    early_stopping=False,
    num_beam_groups=1,
    diversity_penalty=0.0,
    bad_words_ids=None,
    forced_bos_token_id=None,
    forced_eos_token_id=None,
    remove_invalid_values=False,
    exponential_decay_length_penalty=None,
    suppress_tokens=None,
    begin_suppress_tokens=None,
    return_dict_in_generate=False,
    output_scores=False,
    prefix=None,
    sep_token_id=None,
    cross_attention_hidden_size=None,
    add_cross_attention=False,
    tie_encoder_decoder=False,
    is_decoder=False,
    pruned_heads={},
    tf_legacy_loss=False,
    torchscript=False,
    use_bfloat16=False,
    auto_map={"AutoModel": "modeling.Own"},
    _commit_hash="ab12",
    unsloth_version="2024.9",
    unsloth_fixed=True,
    _flash_attn_2_enabled=True,
    _num_labels=2,
    max_sequence_length=2048,
    model_max_length=512,
    xla_device=None,
    quantization_config=None,
)


@pytest.fixture
def folder(tmp_path):
    """folder(name, change of its tensors, key=value of config.json) -> a copy of a stored model."""

    def copy(name, change=None, **config):
        into = tmp_path / name
        shutil.copytree(MODELS / name, into, dirs_exist_ok=True)
        path = into / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if change:
            tensors = load_file(into / "model.safetensors")
            save_file(change(tensors) or tensors, into / "model.safetensors")
        return into

    return copy


@pytest.fixture
def small(tmp_path):
    """A tiny BERT with its tokenizer, whose config.json has a key that nobody knows."""
    path = bert_folder(tmp_path / "bert") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"talking_head": True}))
    return path.parent


def hidden(path):
    with torch.no_grad():
        return load_backbone(path).states(IDS, MASK)


def refused(path, *words, most=700):
    """Loading tells in one short line what is wrong, and at once."""
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load_backbone(path)
    text = str(caught.value)
    assert time.perf_counter() - start < 5, "something large was built first"
    assert (
        "\n" not in text and len(text) < most and all(word in text for word in (str(path), *words))
    ), text


# ------------------------------------------------------------ keys that change nothing


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_of_old_files_change_nothing(name, folder):
    assert set(OLD) - INERT, "some are of one value only"
    assert torch.equal(hidden(folder(name, **OLD)), hidden(MODELS / name))


@pytest.mark.parametrize(
    "name, kind",
    [
        ("llama_lm", "full_attention"),
        ("mistral_lm", "sliding_attention"),
        ("gemma_classifier", "full_attention"),
    ],
)
def test_layer_types_that_say_what_is_built(name, kind, folder):
    layers = json.loads((MODELS / name / "config.json").read_text())["num_hidden_layers"]
    assert torch.equal(hidden(folder(name, layer_types=[kind] * layers)), hidden(MODELS / name))
    other = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}[kind]
    for wrong in ([kind] * (layers - 1) + [other], [kind] * (layers + 1), [], kind, 3):
        refused(
            folder(name, layer_types=wrong),
            "config.json: layer_types = ",
            f"only '{kind}' for each of {layers} layers",
        )


def test_a_mistral_without_a_window_has_full_attention(folder):
    path = folder("mistral_lm", sliding_window=None)
    assert torch.equal(
        hidden(folder("mistral_lm", sliding_window=None, layer_types=["full_attention"] * 2)),
        hidden(path),
    )
    refused(
        folder("mistral_lm", sliding_window=None, layer_types=["sliding_attention"] * 2),
        "only 'full_attention'",
    )


def test_an_unknown_key_can_be_left_out_at_ones_own_risk(small, tmp_path, monkeypatch):
    monkeypatch.setenv(IGNORED_KEYS, "")
    refused(
        small, "talking_head = True (unknown: it may change the maths)", "--ignore-config-key NAME"
    )
    with ignoring_config_keys(["talking_head"]):
        model = Classifier.from_backbone(small, ["no", "yes"])
        tuned = Classifier.from_backbone(small, ["no", "yes"])
    tune(
        tuned,
        {
            "method": "lora",
            "rank": 2,
            "alpha": 4.0,
            "dropout": 0.0,
            "use_rslora": False,
            "targets": None,
            "bias": "none",
        },
    )
    assert os.environ[IGNORED_KEYS] == ""
    for number, made in enumerate((model, tuned)):
        made.save(tmp_path / f"saved {number}")
        again = Classifier.load(tmp_path / f"saved {number}")  # without being told a second time
        assert (again.predict(["the old rose"]) == made.eval().predict(["the old rose"])).all()
    assert "talking_head" not in json.loads((tmp_path / "saved 0" / "config.json").read_text())
    with ignoring_config_keys(["hidden_size", "talking_head", "is_decoder"]):
        assert load_backbone(small).width == 32, "a known key counts, whatever is ignored"


def test_every_command_takes_the_flag(small, tmp_path, monkeypatch, capsys):
    """Compare and folds hand the environment, where it is kept, to the processes they start."""
    rows, out, flag = (
        tmp_path / "rows.csv",
        tmp_path / "run",
        ["--ignore-config-key", "talking_head"],
    )
    rows.write_text(
        "text,label\n"
        + "".join(
            f"{word} {i},{label}\n"
            for i in range(10)
            for word, label in (("rose", "a"), ("soup", "b"))
        )
    )
    monkeypatch.setenv(IGNORED_KEYS, "")
    with pytest.raises(InputError, match="talking_head"):
        inspect.main([str(small)])
    assert (
        inspect.main([str(small), *flag]) == 0
        and os.environ[IGNORED_KEYS].split(",")[-1] == "talking_head"
    )
    monkeypatch.setenv(IGNORED_KEYS, "")
    train.main(
        [
            "--model",
            str(small),
            "--data",
            str(rows),
            "--epochs",
            "1",
            "--max-length",
            "8",
            "--out",
            str(out),
            *flag,
        ]
    )
    monkeypatch.setenv(IGNORED_KEYS, "")
    assert (
        predict.main(["--model", str(out), "late parcel"]) == 0
    ), "a saved run is asked for nothing"
    saved = json.loads((out / "config.json").read_text())
    assert "talking_head" not in saved and saved["minillmclf"]["ignored"] == ["talking_head"]


# ------------------------------------------------------------ numbers and types


@pytest.mark.parametrize(
    "name, key, value, words",
    [
        ("bert_masked_lm", "layer_norm_eps", -1e-3, "a number from 1e-30 to 1"),
        ("bert_masked_lm", "layer_norm_eps", 0, "1e-30"),
        ("gpt2_lm", "layer_norm_epsilon", 1e30, "a number from 1e-30 to 1"),
        ("llama_lm", "rms_norm_eps", "1e-6", "a number from 1e-30"),
        ("t5_lm", "layer_norm_epsilon", True, "a number from 1e-30 to 1"),
        ("llama_lm", "rms_norm_eps", 10**399, "too large|1000000"),
        ("bert_masked_lm", "hidden_dropout_prob", 8, "a number from 0 to below 1"),
        ("t5_lm", "dropout_rate", -0.1, "from 0 to below 1"),
        ("gpt2_lm", "attn_pdrop", 1, "a number from 0 to below 1"),
        ("bert_masked_lm", "classifier_dropout", [], "from 0 to below 1"),
        ("bert_masked_lm", "vocab_size", 10**20, "the tensors have 61"),
        ("llama_lm", "vocab_size", 1e20, "a whole number"),
        ("llama_lm", "intermediate_size", 10**20, "a whole number below 2147483648"),
        ("bert_masked_lm", "num_attention_heads", 0, "a whole number from 1 up"),
        ("gpt2_lm", "n_head", -2, "a whole number from 1 up"),
        ("llama_lm", "num_hidden_layers", True, "a whole number from 1 up"),
        ("bert_masked_lm", "type_vocab_size", 0, "from 1 up"),
        ("roberta_masked_lm", "pad_token_id", 69, "leaves none of max_position_embeddings 70"),
        ("gemma2_lm", "attn_logit_softcapping", 1e-30, "a number from 0.001"),
        ("gemma2_lm", "final_logit_softcapping", 1e300, "1000000"),
        ("llama_lm", "rope_parameters", {"rope_theta": 1e300}, "rope_theta = 1e+300"),
        (
            "llama_lm",
            "rope_parameters",
            {"rope_type": "linear", "rope_theta": 9.0, "factor": 1e-300},
            "factor = 1e-300",
        ),
        ("llama_lm", "rope_scaling", {"type": ["linear"], "factor": 2.0}, "rope_type"),
        ("gemma3_lm", "rope_parameters", [1], "[1]"),
        ("bert_masked_lm", "architectures", [3], "architectures = [3] (should be a list of names)"),
        (
            "bert_masked_lm",
            "quantization_config",
            "x",
            "quantization_config = 'x' (should be an object)",
        ),
        ("bert_masked_lm", "torch_dtype", 5, "torch_dtype = 5 (should be a name)"),
        ("gpt2_lm", "dtype", ["float32"], "should be a name"),
        ("bert_masked_lm", "id2label", {"0": ["a"], "1": "b"}, "id2label"),
        ("bert_masked_lm", "num_labels", 10**8, "num_labels = 100000000"),
        ("bert_masked_lm", "x" * 10**6, "y" * 10**6, "unknown"),
        ("bert_masked_lm", "a\nb", 1, "unknown"),
        ("gemma2_lm", "layer_types", [[1], {}, None], "layer_types"),
        ("deberta_masked_lm", "pos_att_type", [{}], "pos_att_type"),
        ("t5_lm", "feed_forward_proj", "x" * 10**6, "is not supported"),
        ("bert_masked_lm", "hidden_act", {"a": 1}, "should be a name"),
    ],
)
def test_a_number_or_a_type_that_cannot_be_is_refused(name, key, value, words, folder):
    path = folder(name, **{key: value})
    with pytest.raises(
        InputError,
        match=re.escape(str(path / "config.json"))
        + ": .*("
        + "|".join(map(re.escape, words.split("|")))
        + ")",
    ):
        load_backbone(path)
    refused(path)


@pytest.mark.parametrize(
    "name, key, value, words",
    [
        (
            "bert_masked_lm",
            "num_hidden_layers",
            10**8,
            "num_hidden_layers = 100000000, the tensors have 2",
        ),
        ("gpt2_lm", "n_layer", 10**8, "n_layer = 100000000, the tensors have 3"),
        (
            "gemma2_lm",
            "num_hidden_layers",
            10**8,
            "num_hidden_layers = 100000000, the tensors have 3",
        ),
        (
            "t5_lm",
            "num_decoder_layers",
            10**8,
            "num_decoder_layers = 100000000, the tensors have 3",
        ),
        ("flan_lm", "num_layers", 10**8, "num_layers = 100000000, the tensors have 3"),
        ("bert_masked_lm", "hidden_size", 10**9, "hidden_size = 1000000000, the tensors have 32"),
        ("t5_lm", "d_model", 10**9, "d_model = 1000000000, the tensors have 24"),
        ("llama_lm", "vocab_size", 10**9, "vocab_size = 1000000000, the tensors have 45"),
        ("llama_lm", "intermediate_size", 10**9, "faults"),
        ("llama_lm", "head_dim", 2**31 - 2, "faults"),
        ("t5_lm", "d_kv", 2**31 - 1, "faults"),
        ("bert_masked_lm", "max_position_embeddings", 10**9, "(1000000000, 32)"),
    ],
)
def test_sizes_are_compared_with_the_tensors_before_anything_is_built(
    name, key, value, words, folder
):
    refused(folder(name, **{key: value}), words, most=2000)


@pytest.mark.parametrize(
    "settings, words",
    [
        ("x", "should be an object"),
        ([], "should be an object"),
        ({}, "no load_in_4bit"),
        ({"load_in_4bit": [True]}, "load_in_4bit = [True]"),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "take the files that this model",
        ),
    ],
)
def test_a_quantization_config_that_is_not_read_here(settings, words, small):
    path = small / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises(InputError, match=re.escape(words)):
        Classifier.from_backbone(small, ["no", "yes"])


# ------------------------------------------------------------ weights


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["bert_masked_lm", "llama_lm", "flan_lm"])
def test_weights_of_a_wrapped_model_load(name, before, folder):
    wrapped = folder(
        name, lambda tensors: {before + key: tensor for key, tensor in tensors.items()}
    )
    assert torch.equal(hidden(wrapped), hidden(MODELS / name))
    if before == "_orig_mod.":  # torch.compile of the blocks
        blocks = folder(
            name,
            lambda tensors: {
                re.sub(r"(\.\d+\.)", r"\1_orig_mod.", key): t
                for key, t in load_file(MODELS / name / "model.safetensors").items()
            },
        )
        assert torch.equal(hidden(blocks), hidden(MODELS / name))
    refused(
        folder(
            name,
            lambda t: load_file(MODELS / name / "model.safetensors")
            | {"module." + key: v.clone() for key, v in t.items()}
            | {key.removeprefix(before): v.clone() for key, v in t.items()},
        ),
        "unwrapped",
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_weights_load_as_the_numbers_that_they_are(dtype, folder):
    small = folder(
        "llama_lm", lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()}
    )
    stored = load_file(small / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    found = load_backbone(small).layers[0].up_proj.weight
    assert (
        stored.dtype == dtype
        and found.dtype == torch.float32
        and torch.equal(found, stored.float())
    )
    refused(
        folder(
            "llama_lm",
            lambda t: t.update({"model.norm.weight": torch.full((24,), float("nan")).to(dtype)}),
        ),
        "model.norm.weight",
        "finite",
    )


@pytest.mark.parametrize(
    "extra, remedy",
    [
        ("model.layers.0.mlp.up_proj.weight_scale", "take the files that it was quantised from"),
        ("model.layers.0.mlp.up_proj.qweight", "take the files that it was quantised from"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "merge_and_unload"),
        ("model.layers.0.mlp.router.weight", "save them with transformers"),
    ],
)
def test_an_unknown_tensor_is_told_with_what_its_user_can_do(extra, remedy, folder):
    refused(
        folder("llama_lm", lambda tensors: tensors.update({extra: torch.ones(2)})),
        f"'{extra}' (2,) is no tensor of Llama",
        remedy,
    )


def test_a_tensor_that_is_infinite_only_in_fp32_is_refused(folder):
    refused(
        folder(
            "llama_lm",
            lambda t: t.update(
                {"model.norm.weight": torch.full((24,), 1e300, dtype=torch.float64)}
            ),
        ),
        "'model.norm.weight' holds values that are not finite in float32",
    )


def test_answers_that_are_not_finite_are_an_error(tmp_path):
    model = Classifier.from_backbone(bert_folder(tmp_path / "bert"), ["no", "yes"])
    with torch.no_grad():
        model.backbone.layers[1].down_proj.weight.fill_(3e38)
    model.save(tmp_path / "saved")
    with pytest.raises(InputError, match="text 1: the model.s answer is not finite"):
        Classifier.load(tmp_path / "saved").predict(["the old rose", "my bread"])


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def loop(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    "change",
    [fifo, loop, lambda path: path.unlink() or path.mkdir()],
    ids=["fifo", "loop", "folder"],
)
def test_weights_that_are_no_file_are_refused(change, folder):
    path = folder("llama_lm")
    change(path / "model.safetensors")
    refused(path)


@pytest.mark.parametrize("shard", ["/dev/zero", "..", "", "x" * 5000, "a\0b", "config.json"])
def test_an_index_that_leads_astray_is_refused(shard, folder):
    path = folder("llama_lm")
    names = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, shard)})
    )
    refused(path)


# ------------------------------------------------------------ 4-bit layers


def stored_layer(tmp_path):
    """What lies in a file of one 4-bit layer -> {what follows its name: tensor}."""
    model = Classifier.from_backbone(
        bert_folder(tmp_path / "bert", width=64, mlp=64), ["no", "yes"], quantise="nf4"
    )
    return layer_to_tensors(model.backbone.layers[0].q_proj)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("nested_offset", "1e308", "nested_offset = 1e\\+308"),
        ("nested_offset", "1e400", "not finite"),
        ("nested_offset", "NaN", "NaN"),
        ("nested_offset", "9" * 399, "nested_offset"),
        ("nested_offset", "true", "nested_offset"),
        ("blocksize", "[64]", "blocksize"),
        ("shape", "[64, 64.0]", "shape"),
        ("shape", "[64, true]", "shape"),
        ("shape", "[-64, -64]", "shape"),
        ("shape", "5", "shape"),
        ("quant_type", "{}", "quant_type"),
        ("dtype", "5", "dtype"),
        ("more", "[" * 9000 + "]" * 9000, "not valid JSON"),
        ("more", "9" * 5000, "digits"),
    ],
)
def test_the_state_of_a_four_bit_layer_is_checked(key, value, words, tmp_path):
    tensors = stored_layer(tmp_path)
    name = next(name for name in tensors if "quant_state" in name)
    assert torch.equal(layer_from_tensors(tensors).weight, tensors["weight"])
    text = bytes(tensors[name].tolist()).decode()
    text = (
        re.sub(f'"{key}": (\\[[^]]*\\]|[^,}}]*)', lambda _: f'"{key}": {value}', text)
        if key in text
        else text[:-1] + f', "{key}": {value}}}'
    )
    with pytest.raises(InputError, match=f"here: weight.quant_state.*{words}") as caught:
        layer_from_tensors(
            tensors | {name: torch.tensor(list(text.encode()), dtype=torch.uint8)}, where="here"
        )
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "part, value", [("weight.nested_absmax", float("inf")), ("weight.quant_map", float("nan"))]
)
def test_the_numbers_of_a_four_bit_layer_are_finite(part, value, tmp_path):
    tensors = stored_layer(tmp_path)
    with pytest.raises(InputError, match="here: .*finite"):
        layer_from_tensors(tensors | {part: torch.full_like(tensors[part], value)}, where="here")


# ------------------------------------------------------------ one BOS


def test_a_classifier_never_reads_two_bos():
    """One that a chat template wrote is not doubled, one inside a text is refused; without a
    classifier ids are those of transformers."""
    model = Classifier.from_backbone("mini-llama", ["no", "yes"])
    bos, plain = model.tokenizer.bos_id, model.encode(["the film"])[0][0][0]
    name = model.tokenizer.tokens(model.tokenizer.roles["bos"])[0]
    assert plain.count(bos) == 1 and plain[0] == bos
    assert model.encode([name + "the film"])[0][0][0].count(bos) == 1
    for texts in (f"the {name} film", f"{name}{name}the film", ("the", f"{name}film")):
        with pytest.raises(InputError, match="text 1: .*stands inside a text"):
            model.encode([texts])
    assert load_tokenizer("mini-llama").encode(name + "the film").count(bos) == 2
    shots = Classifier.from_backbone(
        "mini-llama", ["no", "yes"], readout="labels", template="x " + name + " {text} label:"
    )
    with pytest.raises(InputError, match="stands inside a text"):
        shots.predict(["the film"])
