"""A tuned run on disk: its base is found wherever both lie, a base that changed is named, and no
file of it is believed unread."""
import hashlib
import importlib
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import bert_folder, module_of
from test_families import CONFIGS, LABELS, TEXTS, folders  # noqa: F401  (folders: a fixture)
from test_peft_format import by_peft, made_by_peft, peft, peft_scores, tuned  # noqa: F401

from minillmclf import evaluate
from minillmclf.classify.calibrate import fit_temperature
from minillmclf.classify.classifier import Classifier
from minillmclf.cli.build import build_classifier, model_lines
from minillmclf.cli.settings import read_settings
from minillmclf.errors import InputError
from minillmclf.files import CHECKPOINTS
from minillmclf.text.patterns import Clock
from minillmclf.tuning import selection, tune
from minillmclf.tuning.peft import write_adapter
from minillmclf.tuning.base import fingerprint, hash_files
from minillmclf.tuning.saved import base_of, merge_tuned

LORA = dict(method="lora", rank=3, alpha=6.0, dropout=0.0, use_rslora=False, targets=None,
            bias="none")


def run_of(base, folder, method="lora", **more):
    """A tuned run whose numbers are random all over -> its scores of TEXTS."""
    model = Classifier.from_backbone(base, LABELS, **more)
    tune(model, LORA if method == "lora" else {"method": method, "size": 4} if method == "houlsby"
         else
         {"method": method, "tokens": 3, "projection": False})
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.2, generator=draw)
    model.save(folder)
    return scores(model.eval())


def scores(model):
    return model.compute_logits(model.encode(TEXTS)[0])


def told(run):
    """How a run names its base."""
    return json.loads((run / "tuned.json").read_text())["base"]


def edit(path, **changes):
    """Change keys of a JSON file; a value of `...` removes the key."""
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("given") / "base")


@pytest.fixture
def near(base, tmp_path):
    """(a folder with base/ and run/, the run's scores)."""
    shutil.copytree(base, tmp_path / "here" / "base")
    return tmp_path / "here", run_of(tmp_path / "here" / "base", tmp_path / "here" / "run")


# ---------------------------------------------------------------------------- is it the same base?

def test_a_change_anywhere_in_a_base_is_seen_and_its_file_named(near):
    place, _ = near
    weights = place / "base" / "model.safetensors"
    assert weights.stat().st_size > 3 * 1000
    before, kept = fingerprint(place / "base"), weights.read_bytes()
    for at in (len(kept) // 3, len(kept) // 2, len(kept) - 1):
        weights.write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1:])
        assert fingerprint(place / "base") != before
        with pytest.raises(InputError, match=r"has changed since this was trained on it "
                           r"\('model.safetensors'\): bring back"):
            Classifier.load(place / "run")
    weights.write_bytes(kept)
    (place / "base" / "notes.txt").write_text("what is no part of the model")
    assert fingerprint(place / "base") == before and len(before) == 64
    Classifier.load(place / "run")


def test_the_adapter_folder_of_a_run_refuses_a_changed_base_in_the_same_words(near):
    place, expected = near
    adapter, weights = place / "run" / "adapter", place / "base" / "model.safetensors"
    assert torch.equal(scores(Classifier.load(adapter)), expected)
    shutil.copytree(place / "base", place / "moved")
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    said = []
    for folder in (place / "run", adapter):
        with pytest.raises(InputError) as error:
            Classifier.load(folder)
        said.append(str(error.value).partition(": the base ")[2])
    assert said[0] == said[1] and "has changed since this was trained" in said[0]
    assert torch.equal(scores(Classifier.load(adapter, base=place / "moved")), expected)
    edit(adapter / "minillmclf.json", fingerprint=...)     # as of an earlier version
    Classifier.load(adapter)
    edit(adapter / "minillmclf.json", fingerprint=3)
    with pytest.raises(InputError, match="minillmclf.json: fingerprint = 3 .should be an object"):
        Classifier.load(adapter)


def test_a_zeroed_layer_in_the_middle_of_a_large_file_is_seen(base, tmp_path):
    """More than the two MiB that were looked at once."""
    shutil.copytree(base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "a": torch.zeros(600_000), "z": torch.zeros(600_000),
               "m": torch.ones(9)}, tmp_path / "base" / "model.safetensors")
    before = fingerprint(tmp_path / "base")
    save_file({**tensors, "a": torch.zeros(600_000), "z": torch.zeros(600_000),
               "m": torch.zeros(9)}, tmp_path / "base" / "model.safetensors")
    assert fingerprint(tmp_path / "base") != before


def test_other_words_in_the_tokenizer_are_another_base(near):
    place, _ = near
    tokenizer = place / "base" / "tokenizer.json"
    text = tokenizer.read_text()
    for old, new in (("rose", "@"), ("soup", "rose"), ("@", "soup")):
        text = text.replace(f'"{old}"', f'"{new}"')
    tokenizer.write_text(text)
    edit(place / "base" / "config.json", hidden_act="relu")
    with pytest.raises(InputError, match=r"has changed since .* \('config.json', "
                       r"'tokenizer.json'\): bring back"):
        Classifier.load(place / "run")


def earlier_sum(folder):
    """The fingerprint as it was first: config.json, and sizes, heads and tails of the weights."""
    data = (folder / "model.safetensors").read_bytes()
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for place in (0, max(0, len(data) - 2**20)):
        digest.update(f"model.safetensors {len(data)}".encode() + data[place:place + 2**20])
    return digest.hexdigest()


def test_runs_with_an_earlier_fingerprint_still_load_and_are_looked_at_by_the_earlier_rule(near):
    place, expected = near
    edit(place / "run" / "tuned.json", fingerprint=earlier_sum(place / "base"),
         base=str(place / "base"), base_path=...)
    assert torch.equal(scores(Classifier.load(place / "run")), expected)
    edit(place / "base" / "config.json", hidden_act="relu")
    with pytest.raises(InputError, match=r"has changed since .*config.json or weights"):
        Classifier.load(place / "run")


# ------------------------------------------------------------------------------ where is the base?

@pytest.mark.parametrize("method", ["lora", "houlsby", "prefix"])
def test_a_run_is_found_with_its_base_from_any_folder_and_both_may_move(method, base, tmp_path,
                                                                        monkeypatch):
    (tmp_path / "work").mkdir()
    shutil.copytree(base, tmp_path / "work" / "base")
    monkeypatch.chdir(tmp_path / "work")
    expected = run_of("./base", "run", method)
    assert told(tmp_path / "work" / "run") == "../base"
    monkeypatch.chdir("/")
    assert torch.equal(scores(Classifier.load(tmp_path / "work" / "run")), expected)
    (tmp_path / "work" / "run").rename(tmp_path / "moved alone")
    assert torch.equal(scores(Classifier.load(tmp_path / "moved alone")), expected)
    (tmp_path / "moved alone").rename(tmp_path / "work" / "run")
    (tmp_path / "work").rename(tmp_path / "both moved")
    assert torch.equal(scores(Classifier.load(tmp_path / "both moved" / "run")), expected)


def test_a_base_far_away_is_named_in_full_and_a_shipped_one_by_its_name(base, tmp_path):
    run_of(base, tmp_path / "a" / "run")
    assert told(tmp_path / "a" / "run") == str(base.resolve())
    expected = run_of("mini-bert", tmp_path / "b")
    again = Classifier.load(tmp_path / "b")
    assert told(tmp_path / "b") == again.base == "mini-bert"
    assert torch.equal(scores(again), expected)
    again.save(tmp_path / "c")
    assert told(tmp_path / "c") == "mini-bert"
    assert base_of(tmp_path / "c") == "mini-bert" and base_of(CHECKPOINTS / "mini-bert") is None


def test_a_relative_path_of_an_earlier_run_is_tried_from_here_and_from_the_run(near, monkeypatch):
    place, expected = near
    edit(place / "run" / "tuned.json", base="./base", base_path=...)
    monkeypatch.chdir(place)
    assert torch.equal(scores(Classifier.load("run")), expected)
    monkeypatch.chdir("/")
    with pytest.raises(InputError, match="its base './base' is missing, no such model folder: say "
                       "where it is with --base FOLDER"):
        Classifier.load(place / "run")
    edit(place / "run" / "tuned.json", base="../base")
    assert torch.equal(scores(Classifier.load(place / "run")), expected)


def test_base_says_where_it_lies_now(near, tmp_path):
    place, expected = near
    (place / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds an adapter, and its base '../base' is missing"):
        Classifier.load(place / "run")
    again = Classifier.load(place / "run", base=tmp_path / "elsewhere")
    assert torch.equal(scores(again), expected)
    again.save(tmp_path / "saved")
    assert torch.equal(scores(Classifier.load(tmp_path / "saved")), expected)
    with pytest.raises(InputError, match="has changed since"):
        Classifier.load(place / "run", base="mini-bert")
    with pytest.raises(InputError, match="is a whole model, which has no base beside it: leave "
                       "--base out"):
        Classifier.load("mini-bert", base=tmp_path / "elsewhere")


@pytest.mark.parametrize("command, more", [("predict", ["the rose"]),
                                           ("evaluate", ["--data", "data.csv"]),
                                           ("merge", ["--data", "data.csv", "--out", "merged"])])
def test_the_commands_have_the_flag(command, more, near, tmp_path, monkeypatch, capsys):
    place, _ = near
    (place / "base").rename(tmp_path / "elsewhere")
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"the {label} rose,{label}\n"
                                                                for label in LABELS))
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(module_of(command)).main
    with pytest.raises(InputError, match="--base FOLDER"):
        main(["--model", str(place / "run"), *more])
    assert main(["--model", str(place / "run"), *more, "--base", "elsewhere"]) == 0
    assert capsys.readouterr().out


def test_a_base_of_the_hub_that_is_not_here_gets_the_line_that_fetches_it(near):
    place, _ = near
    edit(place / "run" / "adapter" / "adapter_config.json",
         base_model_name_or_path="someone/some-model")
    with pytest.raises(InputError, match=r"its base 'someone/some-model' is missing, .*--base "
                       r"FOLDER \(of huggingface.co: "
                                         r"hf download someone/some-model --local-dir FOLDER\)"):
        Classifier.load(place / "run" / "adapter")
    Classifier.load(place / "run" / "adapter", base=place / "base")


def test_an_adapter_takes_the_names_of_its_bases_classes_if_they_are_as_many(near):
    place, _ = near
    (place / "run" / "adapter" / "minillmclf.json").unlink()
    assert Classifier.load(place / "run" / "adapter").labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    for names, expected in ((["x", "y", "z"], ["x", "y", "z"]), (["x", "y"],
                                                                 ["LABEL_0", "LABEL_1", "LABEL_2"]),
                            (["x", "x", "z"], ["LABEL_0", "LABEL_1", "LABEL_2"])):
        edit(place / "base" / "config.json", id2label=dict(enumerate(names)))
        assert Classifier.load(place / "run" / "adapter").labels == expected


@pytest.mark.parametrize("names, method, said", [
    (["rain", "rose", "soup"], "lora", "class 0 is 'garden', there 'rain'"),
    (["garden", "weather", "kitchen"], "prompt", "class 1 is 'kitchen', there 'weather'"),
    (["garden", "kitchen", "weather"], "lora", ""), (["garden", "weather", "kitchen"], "full", ""),
    (["garden", "weather", "kitchen"], "houlsby", ""), (["garden", "weather"], "lora", "")])
def test_a_run_tells_which_names_transformers_would_give_an_adapters_classes(names, method, said,
                                                                             base, tmp_path):
    assert LABELS == ["garden", "kitchen", "weather"]
    Classifier.from_backbone(base, names).save(tmp_path)
    s = read_settings({"model": str(tmp_path), "method": method, "device": "cpu"})
    lines = [line for line in model_lines(s, *build_classifier(s, LABELS)) if "NOTE" in line]
    assert len(lines) == bool(said) and said in "".join(lines)


def test_an_adapter_of_peft_keeps_the_end_that_its_bases_tokenizer_says(near):
    place, _ = near
    edit(place / "base" / "tokenizer_config.json", truncation_side="left")
    edit(place / "run" / "adapter" / "minillmclf.json", fingerprint=...)
    assert Classifier.load(place / "run" / "adapter").head.keep == "head", "trained here"
    (place / "run" / "adapter" / "minillmclf.json").unlink()
    assert Classifier.load(place / "run" / "adapter").head.keep == "tail"


@pytest.mark.parametrize("multi_label", [False, True])
def test_rows_for_classes_without_names_are_told_where_names_belong(near, tmp_path, multi_label):
    place, _ = near
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"the {label} rose,{label}\n" for label in "xyz"))
    adapter = place / "run" / "adapter"
    (adapter / "minillmclf.json").write_text(json.dumps(
        {"thresholds": [0.5] * 3} if multi_label else {}))
    asked = ["--model", str(adapter), "--data", str(data)]
    with pytest.raises(InputError, match=r"line 2: label 'x': the model's 3 classes have no names: "
                       r'write them, .* "id2label": .* .of an adapter: that of its base'):
        evaluate.main(asked)
    edit(place / "base" / "config.json", id2label=dict(enumerate("xyz")))
    assert evaluate.main(asked) == 0
    data.write_text(data.read_text() + "a rose,w\n")
    with pytest.raises(InputError, match="label 'w' is not one of the model's: x, y, z"):
        evaluate.main(asked)


# ------------------------------------------------------------------------------------- saved again

@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_peft_that_was_loaded_can_be_saved(name, folders, tmp_path):
    write_adapter(tmp_path / "adapter", tuned(folders[name], use_dora=name == "gemma"),
                  str(folders[name]))
    model = Classifier.load(tmp_path / "adapter")
    model.save(tmp_path / "run")
    again = Classifier.load(tmp_path / "run")
    assert torch.equal(scores(again), scores(model))
    again.save(tmp_path / "twice")
    assert torch.equal(scores(Classifier.load(tmp_path / "twice")), scores(model))
    expected = scores(model.double())
    assert torch.allclose(scores(merge_tuned(model)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name, config", [("llama", dict(modules_to_save=["norm"])),
                                          ("bert", dict(bias="all", modules_to_save=["pooler"])),
                                          ("bert", dict(modules_to_save=["LayerNorm", "pooler"])),
                                          ("t5", dict(use_dora=True)),
                                          ("roberta", dict(modules_to_save=["output.dense"],
                                                           target_modules=["key"]))])
def test_modules_are_saved_by_the_ending_of_their_names_as_peft_does(name, config, folders, peft,
                                                                     tmp_path):
    theirs = made_by_peft(peft, folders[name], tmp_path / "adapter", **config)
    model = Classifier.load(tmp_path / "adapter", base=folders[name])
    model.save(tmp_path / "run")
    again = Classifier.load(tmp_path / "run")
    assert torch.equal(scores(again), scores(model)), "what learned beside the adapter was lost"
    expected = scores(model.double())
    for by in (theirs, by_peft(peft, folders[name], tmp_path / "run" / "adapter",
                               lambda own: made_by_peft(peft, folders[name], own, **config))):
        assert torch.allclose(peft_scores(by.double(), model).float(), expected, rtol=1e-6,
                              atol=1e-6)


def test_texts_leave_room_for_a_prompt_whose_length_nobody_told(base, tmp_path):
    """A prompt of PEFT's has no max_length of ours: texts are cut to what is left."""
    run_of(base, tmp_path / "run", "prompt")
    (tmp_path / "run" / "adapter" / "minillmclf.json").unlink()
    model = Classifier.load(tmp_path / "run" / "adapter")
    assert model.max_length == 64 - 3
    assert torch.tensor(model.predict(["rose " * 200])).isfinite().all()


# ---------------------------------------------------------------------------------- what files say

@pytest.mark.parametrize("file, changes, message", [
    ("tuned.json", dict(base=...), "tuned.json: base is missing: save it again"),
    ("tuned.json", dict(recipe=[]), r"recipe = \[\] \(should be a method and its numbers"),
    ("tuned.json", dict(recipe={"method": ["lora"]}), "recipe = .*should be a method"),
    ("tuned.json", dict(recipe={"method": "houlsby", "size": 10**9}), "holds bottlenecks of width "
     "none, tuned.json says 1000000000"),
    ("tuned.json", dict(recipe={"method": "prompt", "tokens": 3}), "tells of prompt, but adapter/ "
     "holds lora"),
    ("tuned.json", dict(recipe={"method": "full"}), "recipe = .*should be a method"),
    ("tuned.json", dict(labels=[{"a": 1}, "b", "c"]), r"labels = \[\{'a': 1\}, 'b', 'c'\] \(should "
     r"be a list of names"),
    ("tuned.json", dict(labels=5), "labels = 5 .should be a list of names"),
    ("tuned.json", dict(max_length=10**30), "max_length = 10+ .should be a whole number"),
    ("tuned.json", dict(quantise={}), "quantise = {} .should be nf4, fp4 or null"),
    ("tuned.json", dict(fingerprint=[1]), r"fingerprint = \[1\] .should be an object of sums"),
    ("tuned.json", dict(thresholds={"a": 1}), "thresholds = .*should be a list of numbers"),
    ("tuned.json", dict(calibration={"bias": [0.0] * 3, "temperature": 0}), "temperature should be "
     "a finite number above 0"),
    ("tuned.json", dict(pool={}, keep=[]), r"pool = \{\} .should be a word.; keep = \[\] .should "
     r"be a word"),
    ("tuned.json", dict(readout={"": 1}), "tuned.json: .*unexpected keyword|takes no"),
    ("adapter/minillmclf.json", dict(labels=[1, 2, 3]), r"labels = \[1, 2, 3\] .should be a list "
     r"of names|labels of the adapter"),
    ("adapter/adapter_config.json", dict(lora_alpha=1e308), r"lora_alpha = 1e\+308 .should be a "
     r"number above 0, at most 1e\+06"),
    ("adapter/adapter_config.json", dict(alpha_pattern={"query": 1e300}), "alpha_pattern = "
     ".*should be an object of numbers above 0"),
    ("adapter/adapter_config.json", dict(r=10**9), r"lora_A is \(3, 32\), should be \(1000000000, "
     r"32\)"),
    ("adapter/adapter_config.json", dict(rank_pattern={"query": 2.5}), "rank_pattern = .*should be "
     "an object of whole numbers"),
    ("adapter/adapter_config.json", dict(rank_pattern={f"x{i}": 2 for i in range(99)}),
     "99 patterns for ranks or alphas, but 4 targets"),
    ("adapter/adapter_config.json", dict(layers_to_transform=[{}]), "layers_to_transform = "
     ".*should be layer numbers"),
    ("adapter/adapter_config.json", dict(target_modules=[""]), r"target_modules = \[''\] .should "
     r"be names or a pattern"),
    ("adapter/adapter_config.json", dict(target_modules="(" * 300), "target_modules: .* is not a "
     "regular expression"),
    ("adapter/adapter_config.json", dict(lora_dropout="x" * 10**6), r"lora_dropout = 'x+ \.\.\. "
     r"x+' .should be from 0"),
])
def test_what_the_files_of_a_run_say_is_looked_at_first(file, changes, message, near):
    place, _ = near
    edit(place / "run" / file, **changes)
    folder = place / "run" / "adapter" if file.startswith("adapter/mini") else place / "run"
    with pytest.raises(InputError, match=message) as error:
        Classifier.load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern",
                                 "alpha_pattern"])
def test_a_pattern_of_an_adapter_that_never_ends_is_one_line(key, near, monkeypatch):
    place, _ = near
    monkeypatch.setattr(selection, "Clock", lambda: Clock(0.05))
    endless = r"(?:(\w|[a-z]|\.|.)(\w|[a-z]|\.|.))+\d!*$"
    edit(place / "run" / "adapter" / "adapter_config.json", **{key: {endless: 2}
                                                               if "pattern" in key else endless})
    with pytest.raises(InputError, match="takes more than a second on '.*encoder.layer"):
        Classifier.load(place / "run")


@pytest.mark.parametrize("method", ["lora", "houlsby", "prefix", "prompt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_no_tensor_of_an_adapter_may_be_other_than_finite(method, value, base, tmp_path):
    run_of(base, tmp_path / "run", method)
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].double()
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    with pytest.raises(InputError, match=f"adapter_model.safetensors: 1 fault: "
                       f"'.*{name.split('.')[-2 if '.' in name else 0]}.* holds values that are "
                       f"not finite"):
        Classifier.load(tmp_path / "run")


def test_numbers_of_eight_bits_are_refused_by_name(near):
    place, _ = near
    path = place / "run" / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()},
              path)
    with pytest.raises(InputError, match="holds torch.float8_e4m3fn, floats are expected, of 16 "
                       "bits or more.*; and .* more"):
        Classifier.load(place / "run")


def test_what_the_record_of_a_run_holds(near):
    place, _ = near
    record = json.loads((place / "run" / "tuned.json").read_text())
    assert record["fingerprint"] == hash_files(place / "base") and set(record["fingerprint"]) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    config = (place / "base" / "config.json").read_bytes()
    assert record["fingerprint"]["config.json"] == hashlib.sha256(config).hexdigest()


def test_all_biases_of_a_model_that_answers_in_words_are_saved(tmp_path):
    """Those of its masked-language-model head are trained, so they are part of the adapter."""
    base = bert_folder(tmp_path / "base", lm_head=True)
    model = Classifier.from_backbone(base, LABELS, readout="labels", template="{text} is {label}")
    tune(model, LORA | {"bias": "all"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert model.backbone.lm_head.bias.requires_grad
    model.save(tmp_path / "run")
    again = Classifier.load(tmp_path / "run")
    assert torch.equal(scores(again), scores(model.eval()))


def test_the_key_names_of_earlier_versions_are_read(near):
    place, expected = near
    recipe = json.loads((place / "run" / "tuned.json").read_text())["recipe"]
    recipe["rank_stabilised"] = recipe.pop("use_rslora")
    edit(place / "run" / "tuned.json", recipe=recipe)
    again = Classifier.load(place / "run")
    assert torch.equal(scores(again), expected)
    assert again.tuning["use_rslora"] is False and "rank_stabilised" not in again.tuning


WINDOWS = {"pool": "mean", "overlap": 1, "max_windows": 2, "max_document": 40}


@pytest.mark.parametrize("method", ["lora", "houlsby"])
@pytest.mark.parametrize("built", [{"keep": "tail"}, {"windows": WINDOWS}, {"pool": "max"}],
                         ids=["keep", "windows", "pool"])
def test_a_tuned_run_reads_long_texts_as_before(built, method, base, tmp_path):
    run_of(base, tmp_path / "run", method, max_length=8, **built)
    again = Classifier.load(tmp_path / "run")
    plain = Classifier.from_backbone(base, LABELS, max_length=8, **built)
    assert again.settings() == plain.settings(), "it is not built as it was"
    text = " ".join([f"the rose and soup {word}" for word in ("rain", "salt", "wind", "tree")])
    assert again.encode([text]) == plain.encode([text]), "a long text is read otherwise"


def test_a_calibration_that_is_fitted_again_is_the_same_one(near):
    model, targets = Classifier.load(near[0] / "run"), [0] * len(TEXTS)
    plain_scores, found = scores(model), []
    for _ in range(3):
        logits = model.compute_logits(model.encode(TEXTS)[0], calibrated=False)
        model.task.set_calibration(fit_temperature(logits, targets))
        found.append(model.task.calibration)
        assert torch.equal(logits, plain_scores)
    assert found[0] == found[1] == found[2] and found[0].temperature != 1.0
    assert torch.equal(scores(model), found[0](plain_scores)), "it is not applied"


# ---------------------------------------------------------------------- saved over another model

def plain(base, seed):
    """An untuned classifier whose answers depend on the seed."""
    return Classifier.from_backbone(base, LABELS, seed=seed).eval()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("old, new", [("plain", "plain"), ("lora", "plain"), ("lora", "lora"),
                                      ("plain", "lora")])
def test_what_is_saved_over_another_model_is_what_is_loaded(old, new, near, monkeypatch):
    place, _ = near
    out, real = place / "run", os.replace
    if old == "plain":
        out = place / "whole"
        plain(place / "base", 1).save(out)
    model = plain(place / "base", 2) if new == "plain" else Classifier.load(place / "run")
    if new == "lora":
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).add_(1.0)
    before, expected, left = contents(out), scores(model), 0

    def no_room(source, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return real(source, target)
    for moves in range(9):                                 # so many files can be put in place
        left, said = moves, ""
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", no_room)
            try:
                model.save(out)
                break
            except InputError as error:
                said = str(error)
        assert "No space left" in said
        if "untouched" in said:
            assert contents(out) == before
        else:                                              # a file could not be moved up
            with pytest.raises(InputError, match="config.json: is not there"):
                Classifier.load(out)
    assert moves >= 4, "few writes have failed"
    assert torch.equal(scores(Classifier.load(out)), expected)
    assert not (out / ".model.writing").exists()
    assert new == "plain" or told(out) == "../base"
    whole = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    adapter = {"tuned.json", "adapter_config.json", "adapter_model.safetensors", "minillmclf.json"}
    assert {path.name for path in contents(out)} == (whole if new == "plain" else adapter)


RECORDS = ("merged.json", "metrics.jsonl", "predictions.csv", "report.html", "state.safetensors")


@pytest.mark.parametrize("new", ["plain", "lora"])
@pytest.mark.parametrize("has_model", [True, False])
def test_what_described_a_model_goes_with_it_unless_its_own_run_saves(new, has_model, near):
    place, _ = near
    out = place / "over"
    model = plain(place / "base", 2) if new == "plain" else Classifier.load(place / "run")
    out.mkdir()
    if has_model:
        plain(place / "base", 1).save(out)
    (out / "notes.txt").write_text("mine")
    for name in RECORDS:
        (out / name).write_text("old")
    model.save(out, in_run=True)
    assert {path.name for path in out.iterdir()} >= {*RECORDS, "notes.txt"}
    model.save(out)                                        # what is of no run is the user's
    assert {path.name for path in out.iterdir()} >= {*RECORDS[1:], "notes.txt"}
    assert not (out / "merged.json").exists()
    for text in ("mine", "{}", '{"settings": {}}'):
        (out / "run.json").write_text(text)
        model.save(out)
        assert (out / "run.json").exists() == ("settings" not in text)
    left = {path.name for path in out.iterdir()}
    assert "notes.txt" in left and not left & {*RECORDS, "run.json"}
    assert torch.equal(scores(Classifier.load(out)), scores(model))


def test_an_adapter_is_not_saved_over_its_base(near):
    place, _ = near
    before, model = contents(place), Classifier.load(place / "run")
    with pytest.raises(InputError, match="is the base of this adapter.*another folder"):
        model.save(place / "run" / ".." / "base")
    assert contents(place) == before


def test_of_another_adapter_nothing_stays_either(near, tmp_path):
    """An adapter in PEFT's own folder, and LoRA's files under bottlenecks, which PEFT reads not."""
    place, _ = near
    out = shutil.copytree(place / "run" / "adapter", tmp_path / "theirs")
    edit(out / "adapter_config.json", base_model_name_or_path=str(place / "base"))
    for folder in (out, place / "run"):
        expected = run_of(place / "base", folder, "houlsby")
        assert {path.relative_to(folder).as_posix() for path in contents(folder)} == {
            "tuned.json", "adapter/adapter_model.safetensors"}
        assert torch.equal(scores(Classifier.load(folder)), expected)


def test_shards_of_an_older_model_are_gone(base, tmp_path):
    model = plain(base, 1)
    model.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    names, shard = load_file(weights), "model-00001-of-00001.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    weights.rename(tmp_path / shard)
    other = plain(base, 2)
    other.save(tmp_path)
    assert torch.equal(scores(Classifier.load(tmp_path)), scores(other))
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.safetensors"]


@pytest.mark.parametrize("name, text", [
    ("config.json", '{"my": "app"}'), ("config.json", "[1]"), ("config.json", "mine"),
    ("tuned.json", "{}"), ("adapter_config.json", "{}")])
def test_what_is_no_model_is_not_replaced(near, tmp_path, name, text):
    out = tmp_path / "mine"
    out.mkdir()
    for other in ("model-1-of-2.safetensors", "tokenizer.json"):
        (out / other).write_text("mine")
    (out / name).write_text(text)
    before = {path: path.read_bytes() for path in out.iterdir()}
    model = merge_tuned(Classifier.load(near[0] / "run"))
    with pytest.raises(InputError, match=f"holds a {name} that is not a model's.*another folder"):
        model.save(out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (out / name).unlink()
    model.save(out)
    model.save(out)
    assert Classifier.load(out).tuning is None


@pytest.mark.parametrize("name", CONFIGS)
def test_a_classifier_can_be_handed_to_another_process(name, folders):  # noqa: F811
    model = Classifier.from_backbone(folders[name], LABELS).eval()
    assert torch.equal(scores(pickle.loads(pickle.dumps(model))), scores(model))
