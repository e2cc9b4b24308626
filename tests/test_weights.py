"""Does each tensor of a checkpoint go where it belongs, and is all else refused, with the remedy?

The folders are the stored tiny models, changed on purpose: renamed, cut into shards, spoilt. What
we write is compared with what transformers writes (where it is installed); a write that fails must
leave the earlier file as it was.
"""

import itertools
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODELS, first_difference
from live import imported, loaded, may_refuse
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small import forked_program

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, load_backbone, save_backbone, tensor_files
from minillmclf.models.bert import Bert, Roberta
from minillmclf.models.tensor_files import write_checkpoint, write_tensors
from minillmclf.models.weights import Checkpoint, RenameTable, export_tensors, load_parameters

STORED = ("bert_classifier", "roberta_classifier", "bert_masked_lm", "roberta_masked_lm")


@pytest.fixture
def folder(tmp_path):
    """folder(name) -> a copy of a stored model that may be changed; tensors=...: holding these."""
    def copy(name="bert_masked_lm", tensors=None, **config):
        into = tmp_path / name
        shutil.copytree(MODELS / name, into, dirs_exist_ok=True)
        (into / "expected.safetensors").unlink()
        if tensors is not None:
            save_file(tensors, into / "model.safetensors")
        if config:
            path = into / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return into
    return copy


def tensors_of(name):
    return load_file(MODELS / name / "model.safetensors")


def same(a, b):
    """None, or the first parameter that is not equal bit for bit in two models."""
    return first_difference(dict(a.named_parameters()), dict(b.named_parameters()), 0.0)


# ------------------------------------------------------------------------------- the two-way report

def test_all_faults_are_reported_at_once(folder):
    tensors = tensors_of("bert_masked_lm")
    tensors["bert.encoder.layer.0.attention.self.spin.weight"] = torch.zeros(2, 3)  # unknown
    tensors["bert.encoder.layer.7.output.dense.bias"] = torch.zeros(32)  # a layer too many
    del tensors["bert.encoder.layer.1.attention.self.key.bias"]  # missing
    tensors["bert.encoder.layer.0.output.dense.weight"] = torch.zeros(48, 32)  # transposed
    # twice
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"].clone()
    tensors["cls.predictions.transform.surprise"] = torch.zeros(1)  # unknown
    with pytest.raises(InputError) as caught:
        load_backbone(folder(tensors=tensors))
    text = str(caught.value)
    for part in ("bert_masked_lm: 6 faults: ",
                 "'bert.encoder.layer.0.attention.self.spin.weight' (2, 3) is no tensor of Bert",
                 "download both again, or save them with transformers",
                 "layers.7.down_proj.bias, which this model does not have",
                 "nothing in the file fills layers.1.k_proj.bias (32,)",
                 "(48, 32), layers.0.down_proj.weight is (32, 48)",
                 "fills embedding_norm.weight a second time",
                 "surprise"):
        assert part in text, f"not in the report: {part!r}; it says {text}"
    assert "\n" not in text


@pytest.mark.parametrize("name, file, ours", [
    ("bert_masked_lm", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("bert_masked_lm", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("roberta_masked_lm", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ("roberta_masked_lm", "lm_head.decoder.bias", "lm_head.bias")])
def test_a_tied_tensor_may_be_there_and_must_then_be_equal(folder, name, file, ours):
    tensors = tensors_of(name)
    tensors[file] = tensors[ours].clone()
    model = load_backbone(folder(name, tensors))
    assert list(model.report.tied) == [file] and file not in model.report.loaded
    tensors[file].view(-1)[3] += 1e-3
    with pytest.raises(InputError,
                       match=re.escape(f"{file!r} should be tied to ") + ".* values differ"):
        load_backbone(folder(name, tensors))


def test_a_tensor_of_integers_is_refused(folder):
    tensors = tensors_of("bert_masked_lm")
    tensors["bert.embeddings.LayerNorm.bias"] = torch.zeros(32, dtype=torch.int8)
    with pytest.raises(InputError,
                       match="'bert.embeddings.LayerNorm.bias' holds I8, floats are expected"):
        load_backbone(folder(tensors=tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_refused(folder, value):
    tensors = tensors_of("bert_masked_lm")
    tensors["bert.encoder.layer.1.output.dense.weight"][0, 0] = value
    fault = "1 fault: .bert.encoder.layer.1.output.dense.weight. holds .* not finite"
    with pytest.raises(InputError, match=fault):
        load_backbone(folder(tensors=tensors))


@pytest.mark.parametrize("name", STORED)
def test_every_tensor_is_accounted_for(name):
    report, names = load_backbone(MODELS / name).report, set(tensors_of(name))
    assert set(report.loaded) | set(report.dropped) | set(report.tied) == names, (
        f"{name}: a tensor went unreported")
    assert not report.newly_initialised and len(report.loaded) + len(report.dropped) == len(names)
    heads = {n for n in names if "classifier" in n or "pooler" in n}
    assert set(report.dropped) == heads, (
        f"{name}: the body should drop the classifier and nothing else")
    assert f"{len(report.loaded)} tensors loaded" in report.summary()


def test_each_parameter_holds_the_tensor_of_its_own_name():
    """The table itself: two rows exchanged would load without a fault where the shapes agree."""
    pairs = {"attention.self.query": "q_proj", "attention.self.key": "k_proj",
             "attention.self.value": "v_proj", "attention.output.dense": "o_proj",
             "attention.output.LayerNorm": "attention_norm", "intermediate.dense": "up_proj",
             "output.dense": "down_proj", "output.LayerNorm": "mlp_norm"}
    for cls in (Bert, Roberta):
        for (file, ours), leaf in itertools.product(pairs.items(), ("weight", "bias")):
            found = RenameTable(cls.NAMES).path_of(
                f"{cls.ALIASES[0][1]}encoder.layer.11.{file}.{leaf}")
            assert found == f"layers.11.{ours}.{leaf}", f"{cls.__name__}: {file} went to {found}"
    with pytest.raises(KeyError):
        RenameTable(Bert.NAMES, aliases=Bert.ALIASES).path_of(
            "bert.encoder.layer.0.output.dense.scale")
    with pytest.raises(KeyError):
        RenameTable(Bert.NAMES, aliases=Bert.ALIASES).path_of(
            "roberta.encoder.layer.0.output.dense.bias")


def test_fresh_parameters_are_allowed_by_pattern_only(folder):
    tensors = {n: t for n, t in tensors_of("bert_masked_lm").items() if "LayerNorm" not in n}
    checkpoint = Checkpoint(folder(tensors=tensors))
    model = Bert.from_config(checkpoint.config)
    names = Bert.NAMES | {"cls.predictions.bias": None, "cls.predictions.transform.dense": None}
    fault = "2 faults: nothing in the file fills embedding_norm.weight .*norm.bias"
    with pytest.raises(InputError, match=fault):
        # a pattern begins where the name begins
        load_parameters(model, checkpoint, RenameTable(names), optional=["layers", "norm"])
    report = load_parameters(model, checkpoint, RenameTable(names), optional=[".*_norm"])
    assert (len(report.newly_initialised) == 10
            and all("_norm." in name for name in report.newly_initialised))
    assert report.summary().endswith(", 10 new")


# ------------------------------------------------------------------------------- other spellings

def test_names_before_2019_load_alike(folder):
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
                                                                    "LayerNorm.beta"): t
           for n, t in tensors_of("bert_masked_lm").items()}
    assert any(n.endswith(".gamma") for n in old) and any(n.endswith(".beta") for n in old)
    model = load_backbone(folder(tensors=old))
    assert same(model, load_backbone(MODELS / "bert_masked_lm")) is None


@pytest.mark.parametrize("name", ["bert_classifier", "roberta_classifier"])
def test_a_file_of_the_body_alone_needs_no_prefix(folder, name):
    prefix = name.split("_")[0] + "."
    bare = {n.removeprefix(prefix): t for n, t in tensors_of(name).items() if n.startswith(prefix)}
    bare["embeddings.position_ids"] = torch.arange(24)[None]  # a buffer that old files carry
    model = load_backbone(folder(name, bare))
    assert same(model, load_backbone(MODELS / name)) is None
    assert "embeddings.position_ids" in model.report.dropped


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_load_as_fp32(folder, dtype):
    stored = {n: t.to(dtype) for n, t in tensors_of("bert_masked_lm").items()}
    model = load_backbone(folder(tensors=stored))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    parameters = dict(model.named_parameters())
    for name, ours in model.report.loaded.items():
        assert torch.equal(parameters[ours], stored[name].float()), (
            f"{name} changed on the way from {dtype}")


# ------------------------------------------------------------------------------- shards

def shard(folder, changes=None):
    """Cut model.safetensors in two, with an index; changes: entries of the index that differ."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2],
             "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {n: file for file, part in parts.items() for n in part} | (changes or {})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def test_shards_are_one_checkpoint(folder):
    assert same(load_backbone(shard(folder())), load_backbone(MODELS / "bert_masked_lm")) is None


def test_a_missing_shard_is_named(folder):
    broken = shard(folder())
    (broken / "model-00002-of-00002.safetensors").unlink()
    fault = "index.json: shard model-00002-of-00002.safetensors is not there: download"
    with pytest.raises(InputError, match=fault):
        load_backbone(broken)


def test_a_stale_index_is_named(folder):
    broken = shard(folder(), {"bert.extra.weight": "model-00001-of-00002.safetensors"})
    fault = "names 1 tensors that its shards lack, 'bert.extra.weight' first: .*stale"
    with pytest.raises(InputError, match=fault):
        load_backbone(broken)


def test_tensors_in_a_shard_that_the_index_does_not_name_are_no_part_of_the_model(folder):
    whole = shard(folder())
    path = whole / "model-00001-of-00002.safetensors"
    save_file(load_file(path) | {"left.over": torch.zeros(3)}, path)
    assert same(load_backbone(whole), load_backbone(MODELS / "bert_masked_lm")) is None


@pytest.mark.parametrize("outside", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_a_shard_outside_the_folder_is_refused(folder, outside):
    broken = shard(folder(), {"bert.extra.weight": outside})
    save_file({"bert.extra.weight": torch.zeros(1)}, broken.parent / "x.safetensors")
    with pytest.raises(InputError, match=f"{re.escape(outside)} lies outside the folder"):
        load_backbone(broken)


@pytest.mark.parametrize("content", ['{"metadata": {}}', '{"weight_map": []}', '{"weight_map": {}}',
                                     '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map_is_refused(folder, content):
    broken = shard(folder())
    (broken / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError,
                       match="model.safetensors.index.json: .*download the folder again"):
        load_backbone(broken)


# ------------------------------------------------------------------------------- spoilt folders

class Harm:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_never_opened(folder, tmp_path):
    for name in ("pytorch_model.bin", "model.safetensors"):
        broken = folder()
        (broken / "model.safetensors").unlink()
        (broken / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
        fault = (r"model.safetensors: not a whole safetensors file \(\d+ bytes; .*\): download or "
                 r"save it again")
        with pytest.raises(InputError, match="pickles and never opened here" if name.endswith("bin")
                           else fault):
            load_backbone(broken)
    assert not (tmp_path / "harm").exists(), "a pickle was opened: it can run anything"


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file_is_refused(folder, keep):
    path = folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    fault = rf"model.safetensors: not a whole .* file \({path.stat().st_size} bytes"
    with pytest.raises(InputError, match=fault):
        load_backbone(path.parent)


@pytest.mark.parametrize("content, fault", [
    (None, "config.json: is not there"), (b"{", "config.json: not valid JSON"),
    (b"\xff\xfe{}", "config.json: not valid JSON"),
    (b"[1]", "config.json: should hold a JSON object, holds a list"),
    (b"{}", "config.json: model_type = None is not supported; supported: bert, distilbert"),
    (b'{"model_type": "bart"}', "config.json: model_type = 'bart' is not supported"),
    (b'{"model_type": "bert"}', "config.json: vocab_size is missing; hidden_size is missing; ")])
def test_a_broken_config_is_named(folder, content, fault):
    path = folder() / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(fault)):
        load_backbone(path.parent)


@pytest.mark.parametrize("key, value, fault", [
    ("position_embedding_type", "relative_key",
     "position_embedding_type = 'relative_key' (only 'absolute' is built)"),
    ("is_decoder", True, "is_decoder = True (only False is built)"),
    ("tie_word_embeddings", False, "tie_word_embeddings = False (only True is built)"),
    ("embedding_size", 16, "embedding_size = 16 (unknown: it may change the maths)"),
    ("hidden_act", "gelu_fast",
     "hidden_act = 'gelu_fast' is not supported; supported: gelu, gelu_new"),
    ("num_hidden_layers", "2", "num_hidden_layers = '2' (should be a whole number from 1 up)"),
    ("layer_norm_eps", None, "layer_norm_eps = None (should be a number"),
    ("num_attention_heads", 5, "hidden_size 32 is not a multiple of num_attention_heads 5")])
def test_a_config_that_changes_the_maths_is_refused(folder, key, value, fault):
    with pytest.raises(InputError, match=re.escape("config.json: " + fault)):
        load_backbone(folder(**{key: value}))


def test_a_folder_without_weights_or_none_at_all_is_named(folder, tmp_path):
    bare = folder()
    (bare / "model.safetensors").unlink()
    fault = "bert_masked_lm: neither model.safetensors nor model.safetensors.index.json"
    with pytest.raises(InputError, match=fault):
        load_backbone(bare)
    with pytest.raises(InputError, match="nowhere: no such model folder"):
        load_backbone(tmp_path / "nowhere")


# ------------------------------------------------------------------------------- writing

@pytest.mark.parametrize("name", STORED)
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
    model = (Classifier.load if "classifier" in name else load_backbone)(MODELS / name)
    model.save(tmp_path) if "classifier" in name else save_backbone(model, tmp_path)
    written, stored = load_file(tmp_path / "model.safetensors"), tensors_of(name)
    assert set(written) == set(stored), (
        f"{name}: transformers saves other names: {set(written) ^ set(stored)}")
    for tensor in stored:
        assert (written[tensor].dtype == stored[tensor].dtype
                and torch.equal(written[tensor], stored[tensor])), tensor
    architectures = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert architectures == json.loads((MODELS / name / "config.json").read_text())["architectures"]
    assert not list(tmp_path.glob(".*.writing"))


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForSequenceClassification", "Model"])
def test_names_are_those_of_the_installed_transformers(family, kind, tmp_path):
    transformers = imported("transformers")
    small = dict(vocab_size=300, hidden_size=8, num_hidden_layers=11, num_attention_heads=2,
                 intermediate_size=6)
    options = {"add_pooling_layer": False} if kind == "Model" else {}
    with may_refuse():
        theirs = getattr(transformers, family + kind)(
            getattr(transformers, family + "Config")(**small), **options)
        theirs.save_pretrained(tmp_path / "theirs")
    if kind == "ForSequenceClassification":
        name = family.lower() + "_classifier"
        for path in MODELS.glob(f"{name}/*.txt"), MODELS.glob(f"{name}/vocab.json"):
            for file in path:
                shutil.copy(file, tmp_path / "theirs")
        Classifier.load(tmp_path / "theirs").save(tmp_path / "ours")
    else:
        save_backbone(load_backbone(tmp_path / "theirs"), tmp_path / "ours")
    ours, expected = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    if kind == "Model":  # of a body alone transformers leaves out the prefix
        expected = {f"{family.lower()}.{name}": tensor for name, tensor in expected.items()}
    assert set(ours) == set(expected) and all(torch.equal(ours[n], expected[n]) for n in ours)
    load = getattr(transformers, family + kind).from_pretrained
    again, loading = loaded(load, tmp_path / "ours", output_loading_info=True, **options)
    assert not any(loading.values()), f"transformers does not find all it expects: {loading}"
    assert first_difference(again.state_dict(), theirs.state_dict(), 0.0) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_written_as_asked_and_said_in_the_config(dtype, tmp_path):
    model = load_backbone(MODELS / "bert_masked_lm")
    save_backbone(model, tmp_path, dtype)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert (json.loads((tmp_path / "config.json").read_text())["dtype"]
            == str(dtype).removeprefix("torch."))
    rounded = {name: parameter.to(dtype).float() for name, parameter in model.named_parameters()}
    assert first_difference(dict(load_backbone(tmp_path).named_parameters()), rounded, 0.0) is None


def test_export_and_fill_are_inverse_for_more_than_ten_layers(tmp_path):
    config = dict(model_type="roberta", vocab_size=9, hidden_size=4, num_hidden_layers=12,
                  num_attention_heads=1, intermediate_size=3)
    model = initialise_weights(Roberta.from_config(config, lm_head=True), 5, 0.5)
    model.source_config = config
    assert len(export_tensors(model, model.rename_table())) == len(list(model.parameters()))
    save_backbone(model, tmp_path)
    assert same(load_backbone(tmp_path), model) is None, "layer 1 and layer 11 must not be mixed up"


# ------------------------------------------------------------------------------- writing shards

def test_a_large_model_is_written_in_shards_that_are_one_checkpoint(tmp_path):
    model = load_backbone(MODELS / "bert_masked_lm")
    tensors = export_tensors(model, model.rename_table())
    write_checkpoint(tmp_path, model.source_config, tensors, shard_bytes=20_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    held = {path: load_file(tmp_path / path) for path in files}
    for path, part in held.items():
        size = sum(t.numel() * 4 for t in part.values())
        assert size <= 20_000 or len(part) == 1, (
            f"{path} has {size} bytes: only a single tensor may be larger than asked")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: path for path, part in held.items() for name in part}
    assert index["metadata"] == {"total_size": 4 * sum(t.numel() for t in tensors.values()),
                                 "total_parameters": sum(t.numel() for t in tensors.values())}
    assert same(load_backbone(tmp_path), model) is None


def test_shards_are_read_by_transformers(tmp_path):
    transformers = imported("transformers")
    model = load_backbone(MODELS / "bert_masked_lm")
    write_checkpoint(tmp_path, model.source_config, export_tensors(model, model.rename_table()),
                     shard_bytes=20_000)
    theirs, loading = loaded(transformers.BertForMaskedLM.from_pretrained, tmp_path,
                             output_loading_info=True)
    assert not any(loading.values()), f"transformers does not find all it expects: {loading}"
    with may_refuse():
        expected = (
            transformers.BertForMaskedLM.from_pretrained(MODELS / "bert_masked_lm").state_dict())
    assert first_difference(theirs.state_dict(), expected, 0.0) is None


def test_an_index_counts_the_bytes_that_are_written(tmp_path):
    tensors = {"a": torch.zeros(8), "b": torch.zeros(8), "c": torch.zeros(8, dtype=torch.uint8)}
    write_checkpoint(tmp_path, {}, tensors, torch.bfloat16, shard_bytes=16, keep=("a",))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 8 * (4 + 2 + 1), "total_parameters": 24}


def test_a_standard_deviation_of_0_is_not_the_default():
    model = initialise_weights(torch.nn.Linear(2, 3), 0, std=0.0)
    assert not model.weight.any(), "std=0.0 drew numbers"


def test_what_an_earlier_save_left_is_not_read_again(tmp_path):
    """A folder's weights are those of the last save, in one file, more shards or fewer."""
    one, two = (initialise_weights(load_backbone(MODELS / "bert_masked_lm"), seed)
                for seed in (1, 2))
    for model, shard_bytes in (
            (one, 10**9), (two, 20_000), (one, 40_000), (two, 10**9), (one, 20_000)):
        write_checkpoint(tmp_path, model.source_config, export_tensors(model, model.rename_table()),
                         shard_bytes=shard_bytes)
        assert same(load_backbone(tmp_path), model) is None, (
            f"shards of {shard_bytes}: an earlier save was read")
        left = [p.name for p in tmp_path.glob("model*")]
        assert ("model.safetensors" in left) == (len(left) == 1), (
            f"two saves lie side by side: {left}")


# ------------------------------------------------------------------------------- memory

PEAK = """
import ctypes, sys
ctypes.CDLL(None).mallopt(-3, 65536)             # M_MMAP_THRESHOLD: what is freed is given back
import torch
from minillmclf.models import load_backbone
def high():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
load_backbone(sys.argv[1])  # a small model first: imports and buffers do not count
before = high()
model = load_backbone(sys.argv[2])
print((high() - before) / (sum(p.numel() for p in model.parameters()) * 4 / 2**20))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype, shards", [
    (torch.float32, 1), (torch.float32, 3), (torch.float16, 1)])
def test_loading_takes_one_model_and_one_tensor(dtype, shards, tmp_path):
    """150 MB in 12 layers: a second copy would be 2.0 models, a file kept open 1.5 or 2.0."""
    config = dict(model_type="bert", vocab_size=2000, hidden_size=512, num_hidden_layers=12,
                  num_attention_heads=4, intermediate_size=2048)
    model = initialise_weights(Bert.from_config(config), 0)
    total = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    write_checkpoint(tmp_path, config, export_tensors(model, model.rename_table()), dtype,
                     shard_bytes=-(-total // shards) + 10**6)
    code, out, error = forked_program("-c", PEAK, MODELS / "bert_masked_lm", tmp_path)
    assert code == 0, error
    assert 0.8 < float(out) < 1.3, (
        f"loading {dtype} from {shards} file(s) took {float(out):.2f} models of memory")


def test_a_loaded_model_does_not_change_with_its_file(folder):
    stored = folder()
    model, before = load_backbone(stored), load_backbone(stored)
    with open(stored / "model.safetensors", "r+b") as file:  # written over in place, as `cp` does
        file.seek(-20_000, os.SEEK_END)
        file.write(bytes(20_000))
    assert same(model, before) is None


def test_weights_may_be_loaded_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        model = load_backbone(MODELS / "bert_masked_lm", dtype=dtype)
        full = load_backbone(MODELS / "bert_masked_lm")
        rounded = {name: parameter.to(dtype) for name, parameter in full.named_parameters()}
        assert first_difference(dict(model.named_parameters()), rounded, 0.0) is None


# ------------------------------------------------------------------------------- writes that fail

@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"), SafetensorError("File too large")])
def test_a_failed_write_leaves_the_earlier_file(error, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, None)
    before = path.read_bytes()

    def fail(tensors, file, metadata):
        Path(file).write_bytes(b"half a file")
        raise error
    monkeypatch.setattr(tensor_files, "save_file", fail)
    fault = "model.safetensors: could not be written .*(No space|too large).* untouched"
    with pytest.raises(InputError, match=fault):
        write_tensors(path, {"a": torch.zeros(3)}, None)
    assert path.read_bytes() == before, "the earlier file is gone"
    assert os.listdir(tmp_path) == ["model.safetensors"], "the half file is still there"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_last_moment_leaves_the_earlier_file(call, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, None)
    before = path.read_bytes()

    def fail(*given):
        raise OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InputError, match="could not be written .*Input/output error"):
            write_tensors(path, {"a": torch.zeros(3)}, None)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.safetensors"]


LIMITED = """
import resource, sys
from minillmclf.errors import InputError
from minillmclf.models import load_backbone, save_backbone
model = load_backbone(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a full disk: the tensors need more
try:
    save_backbone(model, sys.argv[2])
except InputError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_is_one_line_and_leaves_the_earlier_files(tmp_path):
    save_backbone(load_backbone(MODELS / "bert_classifier"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, error = forked_program("-c", LIMITED, MODELS / "roberta_masked_lm", tmp_path)
    assert code == 2, f"the process ended with {code} (a negative number is a signal): {error}"
    assert "model.safetensors: could not be written" in out and "untouched" in out
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == before, f"an earlier file changed, or a half one is left: {list(after)}"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"{out}.*choose another place"):
            write_checkpoint(out, {}, {"a": torch.zeros(2)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InputError,
                       match="model.safetensors: could not be written .*choose another place"):
        write_checkpoint(tmp_path, {}, {"a": torch.zeros(2)})


def test_a_written_file_has_the_permissions_of_a_new_file(tmp_path):
    write_checkpoint(tmp_path, {}, {"a": torch.zeros(2)})
    (tmp_path / "plain").write_text("")
    modes = {path.name: oct(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, (
        f"others could read one file of a run and not the other: {modes}")
