"""The commands on bad input: one clear line on stderr, exit code 2, earlier files unharmed.

Commands are called in this process through `commands.run`, as `python -m` calls them; a few tests
at the end start real processes. Models are tiny, so no score here means anything.
"""
import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

from minillmclf.compare import __main__ as compare
from minillmclf import evaluate, train
from minillmclf.predict import __main__ as predict
from minillmclf.classify.classifier import Classifier
from minillmclf.cli import training_run
from minillmclf.cli.judged_rows import choose_rows
from minillmclf.cli.settings import Settings
from minillmclf.text.data import BUNDLED

QUICK = small.flags(epochs=2, batch_size=8, lr=3e-3)
LABELS = list(small.TOPICS)
LEARNED = ("model.safetensors", "config.json", "metrics.jsonl", "predictions.csv", "tokenizer.json",
           "tokenizer_config.json", "learned.json")
COMMANDS = {"train": train, "evaluate": evaluate, "predict": predict, "compare": compare}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the model `bert`, `data.csv`, and a run on them, `finished`. Only read."""
    folder = tmp_path_factory.mktemp("commands")
    small.bert_folder(folder / "bert")
    small.data_file(folder / "data.csv")
    assert train.main(arguments(folder, folder / "finished")) == 0
    return folder


@pytest.fixture
def refused(call):
    """refused(words, folder, command, *arguments): the command ends with code 2 and one line on
    stderr that has all `words`, and every file in `folder` is as it was. -> the line"""
    def refused(words, folder, command, *given):
        before = files(folder)
        code, out, err = call(command, *given)
        assert code == 2, (
            f"a user's mistake should end with exit code 2, not {code}: {out[-500:]} {err[-500:]}")
        assert err.startswith("error: ") and err.count("\n") == 1, (
            f"stderr should be one line, error: ..., not {err}")
        assert len(err) < 1000, f"nobody reads a line of {len(err)} characters: {err}"
        missing = [word for word in words if word not in err]
        assert not missing, f"the line should name {missing}: {err}"
        assert files(folder) == before, "bad input changed a file, or left one behind"
        return err
    return refused


def arguments(place, out, *more, **settings):
    """A quick training run on the small model and data; later flags win."""
    return [str(a) for a in ("--model", place / "bert", "--data", place / "data.csv",
                             "--out", out, *QUICK, *more, *small.flags(**settings))]


def files(folder):
    """Every file below a folder -> its bytes and the time of its last change."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


def result(folder):
    """What a run has come to: bytes and values that depend on neither clock nor folder."""
    record = json.loads((folder / "run.json").read_text())
    record.pop("timing", None)
    record["settings"].pop("out")
    return {name: (folder / name).read_bytes() for name in LEARNED} | {"run.json": record}


def epochs_of(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_of(place, split):
    """The rows of data.csv of one split: (line, text, label)."""
    return [(line, row["text"], row["label"])
            for line, row in enumerate(read_csv(place / "data.csv"), 2) if row["split"] == split]


def copy(source, target, **config):
    """A copy of a model folder or a run; config: keys of its config.json to change."""
    shutil.copytree(source, target)
    if config:
        path = target / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


# ---------------------------------------------------------------- what a run leaves behind

def test_run_json_says_what_was_done(place):
    record = json.loads((place / "finished" / "run.json").read_text())
    assert record["finished"] is True
    assert record["settings"] == {
        **vars(Settings()), "model": str(place / "bert"), "data": str(place / "data.csv"),
        "out": str(place / "finished"), "epochs": 2, "batch_size": 8, "lr": 3e-3}
    import hashlib
    assert record["data"]["sha256"] == {
        "data.csv": hashlib.sha256((place / "data.csv").read_bytes()).hexdigest()}
    assert record["data"]["rows"] == {"train": 30, "dev": 9, "test": 9}
    assert record["data"]["labels"] == LABELS
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["minillmclf"]
    assert record["parameters"]["trainable"] == record["parameters"]["total"] == sum(
        t.numel() for t in load_file(place / "finished" / "model.safetensors").values())
    assert record["split"] == "test" and record["best_epoch"] in (1, 2)
    for name, metrics in record["results"].items():
        assert 0 <= metrics["accuracy"] <= 1 and set(metrics["f1"]) == set(LABELS), name
    assert (sorted(p.name for p in (place / "finished").iterdir())
            == sorted([*LEARNED, "run.json"])), (
        "a finished run should hold no training state and no temporary file")


def test_metrics_have_a_line_per_epoch_and_no_clock(place):
    lines = epochs_of(place / "finished")
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4), (2, 8)]
    for line in lines:
        assert set(line) == {"epoch", "step", "train_loss", "accuracy", "macro_f1", "log_loss",
                             "ece", "f1", "train_accuracy"}, (
            "metrics.jsonl is compared byte for byte between runs: nothing in it may depend on "
            "the clock")


def test_predictions_name_lines_of_the_source_in_order(place):
    found, expected = read_csv(place / "finished" / "predictions.csv"), rows_of(place, "test")
    assert [(int(row["line"]), row["text"], row["label"]) for row in found] == expected
    for row in found:
        p = [float(row[f"p_{label}"]) for label in LABELS]
        assert abs(sum(p) - 1) < 1e-5 and row["predicted"] == LABELS[p.index(max(p))], row
    right = sum(row["predicted"] == row["label"] for row in found) / len(found)
    own = json.loads((place / "finished" / "run.json").read_text())["results"]["bert, full"]
    assert own["accuracy"] == pytest.approx(right), (
        "predictions.csv and run.json should tell of the same answers")


def test_the_run_is_a_hugging_face_folder(place):
    config = json.loads((place / "finished" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["model_type"] == "bert"
    assert config["id2label"] == {str(i): label for i, label in enumerate(LABELS)}
    names = set(load_file(place / "finished" / "model.safetensors"))
    assert {"classifier.weight", "bert.pooler.dense.weight",
            "bert.encoder.layer.1.output.dense.bias"} <= names


def test_table_shows_the_baselines_beside_the_model(place, call, tmp_path):
    code, out, err = call(train, *arguments(place, tmp_path / "run"))
    assert code == 0
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert list(results) == ["majority class", "bag of words", "bert, full"]
    for name, m in results.items():
        line = next(line for line in out.splitlines() if line.startswith(name + " "))
        numbers = [float(word) for word in line.removeprefix(name).split()]
        assert numbers == [round(m[k], 3)
                           for k in ("accuracy", "macro_f1", "log_loss", "ece")], line
    assert result(tmp_path / "run") == result(place / "finished"), (
        "the same command elsewhere should be the same run")


# ---------------------------------------------------------------- the same run again

def test_finished_run_is_shown_and_not_touched(place, call, monkeypatch):
    monkeypatch.setattr(training_run, "train_run", None)             # whoever trains again, fails
    before = files(place / "finished")
    code, out, err = call(train, *arguments(place, place / "finished"))
    assert code == 0 and "finished already" in out and "bag of words" in out and "bert, full" in out
    assert files(place / "finished") == before


def test_config_repeats_a_run(place, call, tmp_path):
    record = place / "finished" / "run.json"
    assert call(train, "--config", record, "--out", tmp_path / "again")[0] == 0
    assert result(tmp_path / "again") == result(place / "finished")
    assert call(train, "--config", record, "--out", tmp_path / "other", "--seed", 1)[0] == 0
    settings = json.loads((tmp_path / "other" / "run.json").read_text())["settings"]
    assert settings["seed"] == 1 and settings["lr"] == 3e-3, (
        "flags go over the settings of --config, others stay")


def test_another_run_is_not_overwritten_unasked(place, refused, call, tmp_path):
    out = copy(place / "finished", tmp_path / "run")
    refused(["lr", "--overwrite", str(out)], tmp_path, train, *arguments(place, out, lr=1e-3))
    assert call(train, *arguments(place, out, "--overwrite", lr=1e-3))[0] == 0
    assert json.loads((out / "run.json").read_text())["settings"]["lr"] == 1e-3
    assert call(train, *arguments(place, tmp_path / "fresh", lr=1e-3))[0] == 0
    assert result(out) == result(tmp_path / "fresh"), (
        "--overwrite should start anew, and not from what lay there")


def test_other_data_is_another_run(place, refused, tmp_path):
    out, data = copy(place / "finished", tmp_path / "run"), tmp_path / "data.csv"
    shutil.copy(place / "data.csv", data)
    record = json.loads((out / "run.json").read_text())
    record["settings"]["data"] = str(data)
    (out / "run.json").write_text(json.dumps(record))
    data.write_text(data.read_text() + "a new rose,garden,train\n")
    refused(["sha256", "--overwrite"], tmp_path, train, *arguments(place, out, data=data))
    refused(["changed", str(data), "--data"], tmp_path, evaluate, "--model", out)


def test_an_overwritten_run_stays_until_the_new_one_is_whole(place, tmp_path, monkeypatch, call):
    out = copy(place / "finished", tmp_path / "run")
    (out / "notes.txt").write_text("mine")
    before = files(out)
    with monkeypatch.context() as patch:
        # as if Ctrl-C came at once
        patch.setattr(training_run, "fit_with_progress", lambda *_: (None, 0.0))
        code, said, _ = call(train, *arguments(place, out, "--overwrite", lr=1e-3))
    assert code == 130 and "The same command without --overwrite begins anew" in said
    assert before.items() <= files(out).items(), (
        "a new run that is not whole has changed the one before")
    assert call(train, *arguments(place, out))[0] == 0 and before.items() <= files(out).items()
    assert call(train, *arguments(place, out, lr=1e-3))[0] == 0, (
        "the stopped run should go on without --overwrite")
    assert call(train, *arguments(place, tmp_path / "fresh", lr=1e-3))[0] == 0
    assert result(out) == result(tmp_path / "fresh") and (out / "notes.txt").read_text() == "mine"
    assert ({path.name for path in out.iterdir()}
            == {path.name for path in (tmp_path / "fresh").iterdir()} | {"notes.txt"})


def test_a_run_never_replaces_its_own_base(place, refused, tmp_path):
    base = copy(place / "bert", tmp_path / "base")
    refused([str(base), "--out"], tmp_path, train, *arguments(place, base, model=base))
    refused([str(base), "--out"], tmp_path,
            train, *arguments(place, base, "--overwrite", model=base))


def test_foreign_state_is_not_continued(place, call, tmp_path):
    """A state without its run.json, as a copy of a folder may have it, belongs to nothing. It stays
    until --overwrite is given."""
    settings = arguments(place, tmp_path / "run", lr=1e-3)
    (tmp_path / "run").mkdir()
    model = Classifier.from_backbone(place / "bert", LABELS)
    from minillmclf.training.checkpoint import Store
    from minillmclf.training.optim import build_optimizer
    for parameter in model.parameters():
        parameter.data.zero_()
    Store(tmp_path / "run").save(model, build_optimizer(model, 1.0, 0.0),
                                 {"step": 4, "history": [], "best": None, "losses": [1.0] * 4})
    state = (tmp_path / "run" / "state.safetensors").read_bytes()
    code, _, err = call(train, *settings)
    assert code == 2 and "state.safetensors but no run.json" in err
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == state
    assert call(train, *settings, "--overwrite")[0] == 0
    assert call(train, *arguments(place, tmp_path / "fresh", lr=1e-3))[0] == 0
    assert result(tmp_path / "run") == result(tmp_path / "fresh")


# ---------------------------------------------------------------- settings do what they say

def trained(place, call, out, **settings):
    """A run with some settings -> its record."""
    code, _, err = call(train, *arguments(place, out, **settings))
    assert code == 0, err
    return json.loads((out / "run.json").read_text())


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed(folder, base):
    """Names of the body's tensors that differ in two folders (the base may lack the pooler)."""
    new, old = weights(folder), weights(base)
    return {name for name in new.keys() & old.keys() if not torch.equal(new[name], old[name])}


def test_rows_per_class(place, call, tmp_path):
    record = trained(place, call, tmp_path / "run", rows_per_class=4)
    assert record["data"]["rows"] == {"train": 12, "dev": 9, "test": 9}, "only train gets smaller"
    classes = record["doctor"]["classes"]
    assert {label: n["train"] for label, n in classes.items()} == dict.fromkeys(LABELS, 4)
    from minillmclf.cli.rows import draw_rows
    from minillmclf.text.data import load_data
    everything = load_data(place / "data.csv").train
    draw = [draw_rows(everything, 4, seed) for seed in (0, 0, 1)]
    assert draw[0] == draw[1] and set(draw[0]) != set(draw[2]), (
        "the seed, and nothing else, should draw the rows")
    assert set(draw_rows(everything, 2, 0)) <= set(draw[0]), (
        "a smaller set should lie in the larger one")


def test_a_class_with_fewer_rows_is_noted(place, capsys):
    from minillmclf.cli.rows import draw_rows
    from minillmclf.text.data import load_data
    rows = load_data(place / "data.csv").train
    assert len(draw_rows(rows, 10, 0)) == 30 and not capsys.readouterr().err
    assert draw_rows(rows, 11, 0) and draw_rows(rows, 11, 1)
    assert capsys.readouterr().err == ("note: 3 of 3 classes have fewer than 11 train rows and "
                                       "give all of them: 'garden' has 10\n"), "once"


def test_min_steps_adds_epochs(place, call, tmp_path):
    trained(place, call, tmp_path / "run", min_steps=9)               # 4 steps an epoch
    assert [(line["epoch"], line["step"]) for line in epochs_of(tmp_path / "run")] == [
        (1, 4), (2, 8), (3, 12)]
    trained(place, call, tmp_path / "less", min_steps=3)
    assert len(epochs_of(tmp_path / "less")) == 2, "min_steps should take no epochs away"


@pytest.mark.parametrize("method, layers",
                         [("head", set()), ("last-1", {"1"}), ("full", {"0", "1"})])
def test_method_freezes_the_rest(place, call, tmp_path, method, layers):
    record = trained(place, call, tmp_path / "run", method=method)
    moved = changed(tmp_path / "run", place / "bert")
    assert {name.split(".")[3] for name in moved if ".layer." in name} == layers
    assert any("embeddings" in name for name in moved) == (method == "full")
    assert (record["parameters"]["trainable"] < record["parameters"]["total"]) == (method != "full")


def test_pool_mean_is_kept_for_later(place, call, tmp_path):
    trained(place, call, tmp_path / "run", pool="mean")
    model = Classifier.load(tmp_path / "run")
    assert model.head.pool_option == "mean"
    assert "minillmclf_head.weight" in weights(tmp_path / "run")
    assert not any("pooler" in name for name in weights(tmp_path / "run"))
    assert call(evaluate, "--model", tmp_path / "run")[0] == 0


def test_class_weights_balanced(place, call, tmp_path, monkeypatch):
    rows = read_csv(place / "data.csv")
    drop = [row for row in rows if row["split"] == "train" and row["label"] == "garden"][2:]
    with open(tmp_path / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row for row in rows if row not in drop)
    seen = []
    from minillmclf.training import losses as objectives
    real = objectives.class_loss
    monkeypatch.setattr(objectives, "class_loss",
                        lambda *given: (seen.append(given[2]), real(*given))[1])
    trained(place, call, tmp_path / "plain", data=tmp_path / "data.csv")
    assert all(weight is None for weight in seen)
    seen.clear()
    trained(place, call, tmp_path / "balanced", data=tmp_path / "data.csv",
            class_weights="balanced")
    assert all(torch.allclose(weight, torch.tensor([22 / 6, 22 / 30, 22 / 30])) for weight in seen)
    assert seen
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "balanced").keys()
    assert changed(tmp_path / "plain", tmp_path / "balanced"), (
        "other weights of classes should lead elsewhere")


def test_random_weights_keep_only_the_architecture(place, call, tmp_path):
    trained(place, call, tmp_path / "run", weights="random", method="head")
    assert "bert.encoder.layer.0.output.dense.weight" in changed(tmp_path / "run", place / "bert")
    spread = weights(tmp_path / "run")["bert.encoder.layer.0.output.dense.weight"].std()
    assert 0.01 < spread < 0.03, (
        f"random weights deviate by 0.02; {spread} is like the checkpoint's")


def test_micro_batches_add_up_to_the_batch(place, call, tmp_path):
    # with dropout, pieces would draw other masks
    small.bert_folder(tmp_path / "still", dropout=0.0)
    for size in (0, 3):
        trained(place, call, tmp_path / str(size), model=tmp_path / "still", micro_batch_size=size)
    whole, pieces = epochs_of(tmp_path / "0"), epochs_of(tmp_path / "3")
    assert [line["step"] for line in whole] == [line["step"] for line in pieces] == [4, 8]
    for key in ("train_loss", "log_loss"):
        assert [line[key] for line in whole] == pytest.approx([line[key] for line in pieces],
                                                              rel=1e-4), key


def test_early_stop(place, call, tmp_path):
    # nothing changes: epoch 1 stays the best
    trained(place, call, tmp_path / "run", epochs=9, patience=1, lr=1e-9)
    assert len(epochs_of(tmp_path / "run")) == 2


def test_long_texts_are_cut_counted_and_answered(place, call, tmp_path):
    data = tmp_path / "data.csv"
    long = " ".join(["rose", "old"] * 100)
    data.write_text(
        (place / "data.csv").read_text() + f"{long},garden,train\n{long} big,garden,test\n")
    code, out, err = call(train, *arguments(place, tmp_path / "run", data=data, max_length=16))
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("over 16 tokens: truncated"))
    assert line.split()[-3:] == ["1", "0", "1"], line
    assert "1 train, 1 test row(s) exceed 16 tokens and get truncated" in out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["doctor"]["truncated"] == {"train": 1, "dev": 0, "test": 1}
    code, out, err = call(predict, "--model", tmp_path / "run", long, "rose")
    assert code == 0 and len(out.splitlines()) == 2
    model = Classifier.load(tmp_path / "run")
    encoded, shortened = model.encode([long, "rose"])
    assert shortened == 1 and len(encoded[0][0]) == 16, (
        "--max-length of the training holds for predictions too")
    assert "1 of 10 texts cut to 16 tokens" in call(evaluate, "--model", tmp_path / "run")[1]


def test_texts_without_any_word(place, call, tmp_path):
    """Bag of words finds nothing in single characters; that must not lose the run at its end."""
    rows = [f"{'? ! . , ; :'.split()[i % 6]}{'+-*/'[i // 6]},{'ab'[i % 2]}" for i in range(24)]
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f'"{row[:2]}",{row[-1]}\n' for row in rows))
    record = trained(place, call, tmp_path / "run", data=tmp_path / "data.csv")
    assert (record["results"]["bag of words"]["accuracy"]
            == record["results"]["majority class"]["accuracy"])


def test_labels_may_be_numbers(place, call, tmp_path):
    """Numbers are names of classes, in the order of their values: 2 comes before 10."""
    number = {"garden": 10, "kitchen": 2, "weather": 1}
    rows = read_csv(place / "data.csv")
    with open(tmp_path / "data.jsonl", "w") as file:
        file.writelines(json.dumps({**row, "label": number[row["label"]]}) + "\n" for row in rows)
    record = trained(place, call, tmp_path / "run", data=tmp_path / "data.jsonl")
    assert record["data"]["labels"] == ["1", "2", "10"]
    code, out, _ = call(predict, "--model", tmp_path / "run", "rose")
    assert code == 0 and list(json.loads(out)["probabilities"]) == ["1", "2", "10"]
    assert call(evaluate, "--model", tmp_path / "run", "--data", tmp_path / "data.jsonl")[0] == 0


# ---------------------------------------------------------------- evaluate and predict

def test_evaluate_gives_the_runs_own_numbers(place, call, tmp_path):
    code, out, err = call(evaluate, "--model", place / "finished",
                          "--out", tmp_path / "deep" / "metrics.json")
    own = json.loads((place / "finished" / "run.json").read_text())["results"]["bert, full"]
    found = json.loads((tmp_path / "deep" / "metrics.json").read_text())
    assert code == 0 and found["rows"] == 9
    assert found["accuracy"] == own["accuracy"] and found["f1"] == own["f1"]
    for key in ("macro_f1", "log_loss", "ece"):
        assert found[key] == pytest.approx(own[key], abs=1e-6), key
    line = next(line for line in out.splitlines() if line.startswith("finished "))
    assert float(line.split()[1]) == round(own["accuracy"], 3)


def test_the_best_epoch_is_what_is_saved(place, call, tmp_path, monkeypatch):
    from minillmclf.training import loop
    # the first epoch counts as the best
    monkeypatch.setattr(loop, "is_better", lambda metric, new, old: old is None)
    assert trained(place, call, tmp_path / "run")["best_epoch"] == 1
    assert call(evaluate, "--model", tmp_path / "run", "--split", "dev",
                "--out", tmp_path / "dev.json")[0] == 0
    first, last = [line["log_loss"] for line in epochs_of(tmp_path / "run")]
    assert (json.loads((tmp_path / "dev.json").read_text())["log_loss"]
            == pytest.approx(first, abs=1e-6) != last)


def test_evaluate_on_another_file(place, call, tmp_path):
    (tmp_path / "other.csv").write_text("text,label\na rose,garden\nthe soup,kitchen\n")
    code, out, _ = call(evaluate, "--model", place / "finished", "--data", tmp_path / "other.csv",
                        "--out", tmp_path / "other.json")
    assert code == 0 and "all rows" in out
    assert json.loads((tmp_path / "other.json").read_text())["rows"] == 2


def test_the_file_of_a_run_is_judged_by_the_split_of_the_run(place, call, refused, tmp_path):
    """Its sha256 tells it, also under another name; so no training row is judged unsaid."""
    data, run, other = tmp_path / "data.csv", tmp_path / "run", tmp_path / "other.csv"
    rows = [(row["text"], row["label"]) for row in read_csv(place / "data.csv")]
    with open(data, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    trained(place, call, run, data=data, seed=3, few_rows="off", epochs=1)
    shutil.copy(data, tmp_path / "copy.csv")

    def found(*given):
        out = tmp_path / "found.json"
        assert call(evaluate, "--model", run, *given, "--out", out, "--overwrite")[0] == 0
        return {key: value for key, value in json.loads(out.read_text()).items() if key != "data"}
    for split in ([], ["--split", "dev"], ["--split", "train"]):
        own = found(*split)
        assert own["rows"] < len(rows)
        assert own == found("--data", data, *split) == found("--data", tmp_path / "copy.csv",
                                                             *split)
    other.write_text(data.read_text().replace("big", "old"))
    assert found("--data", other)["rows"] == len(rows)
    refused([str(other), "no column split", "leave --split test out"], tmp_path, evaluate,
            "--model", run, "--data", other, "--split", "test")


def test_a_run_s_data_are_not_read_by_another_quoting(place, call, refused, tmp_path):
    """Texts decide the split: read with their quotes, rows that were learned would be judged."""
    data, run, other = tmp_path / "data.csv", tmp_path / "run", tmp_path / "other.csv"
    rows = [f'"{row["text"]}",{row["label"]}\n' for row in read_csv(place / "data.csv")]
    data.write_text("text,label\n" + "".join(rows))
    trained(place, call, run, data=data, few_rows="off", epochs=1)
    for more in [], ["--data", data]:
        refused(["--quoting none", str(run), "--quoting auto", "leave --quoting out"], tmp_path,
                evaluate, "--model", run, *more, "--quoting", "none")
        assert call(evaluate, "--model", run, *more, "--quoting", "auto")[0] == 0
    other.write_text("text,label\n" + "".join(rows[1:]))
    for quoting in "none", "double":
        code, out, err = call(evaluate, "--model", run, "--data", other, "--quoting", quoting)
        assert code == 0 and "all rows" in out, err


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_no_dev_rows_are_taken_from_the_train_rows_of_other_data(kind, place, call, refused,
                                                                 tmp_path):
    """Seed 0 would call rows dev that the run, of another seed, has learned."""
    data, run, marked = tmp_path / "data", tmp_path / "run", read_csv(place / "data.csv")
    rows = {split: [f"{row['text']},{row['label']}" for row in marked if row["split"] in names]
            for split, names in (("train", ("train", "dev")), ("test", ("test",)))}
    if kind == "folder":
        data.mkdir()

    def write():
        if kind == "folder":
            for split, lines in rows.items():
                (data / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
        else:
            lines = [f"{line},{split}" for split in rows for line in rows[split]]
            data.with_suffix(".csv").write_text("\n".join(["text,label,split", *lines]))
        return data if kind == "folder" else data.with_suffix(".csv")
    trained(place, call, run, data=write(), seed=3, epochs=1, few_rows="off")
    found = tmp_path / "found.json"
    code, _, err = call(evaluate, "--model", run, "--data", write(), "--split", "dev",
                        "--out", found)
    assert code == 0 and 0 < json.loads(found.read_text())["rows"] < len(rows["train"]), err
    rows["train"].append("one more rose,garden")
    refused([str(write()), "has no dev rows", "mark some", "another --split"], tmp_path, evaluate,
            "--model", run, "--data", write(), "--split", "dev")
    code, _, err = call(evaluate, "--model", run, "--data", write(), "--split", "train",
                        "--out", found, "--overwrite")
    assert code == 0 and json.loads(found.read_text())["rows"] == len(rows["train"]), err


def test_other_columns_of_a_run_s_data_are_read_in_the_same_rows(place, call, tmp_path):
    """A second column of labels; the split of a run was made by the first one."""
    data, run = tmp_path / "data.csv", tmp_path / "run"
    rows = [(row["text"], row["label"]) for row in read_csv(place / "data.csv")]
    again = sorted(label for _, label in rows)                   # another class for most rows
    with open(data, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "again"),
                                    *[(*row, label) for row, label in zip(rows, again)]])
    trained(place, call, run, data=data, few_rows="off", epochs=1)
    flags = evaluate.parse(["--model", str(run), "--label-column", "again"])
    found, *_ = choose_rows(flags, run, Classifier.load(run))
    assert ([(row.row, row.label) for row in found]
            == [(int(row["line"]), again[int(row["line"]) - 2])
                for row in read_csv(run / "predictions.csv")])


def test_a_split_that_a_file_does_not_have_is_named(place, refused, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("text,label,split\na rose,garden,test\n")
    for split in ("dev", "train"):
        refused([str(data), f"has no {split} rows", "another --split"], tmp_path, evaluate,
                "--model", place / "finished", "--data", data, "--split", split)


def test_evaluate_says_none_where_nothing_is_confused(place, call, tmp_path):
    answer = json.loads(call(predict, "--model", place / "finished", "a rose")[1])["label"]
    (tmp_path / "right.csv").write_text(f"text,label\na rose,{answer}\n")
    out = call(evaluate, "--model", place / "finished", "--data", tmp_path / "right.csv")[1]
    assert out.rstrip().endswith("none")


TEXTS = ["the old rose", "soup, bread and salt", "storm", "x",
         "a very very very long rain near the tree", "café"]


def answers(out):
    """JSON lines -> texts, labels, probabilities."""
    rows = [json.loads(line) for line in out.splitlines()]
    return ([row["text"] for row in rows], [row["label"] for row in rows],
            [list(row["probabilities"].values()) for row in rows])


@pytest.fixture
def expected(place):
    """What the Python interface answers to TEXTS."""
    probabilities = Classifier.load(place / "finished").predict(TEXTS)
    return (TEXTS, [LABELS[p.argmax()] for p in probabilities],
            [[pytest.approx(x, abs=2e-6) for x in p] for p in probabilities])


def stdin(monkeypatch, data):
    """Bytes on standard input, which Python, left to itself, would read in another encoding."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


@pytest.mark.parametrize("size", [64, 2])
def test_predict_arguments(place, call, expected, size):
    code, out, err = call(predict, "--model", place / "finished", "--batch-size", size, *TEXTS)
    assert (code, err) == (0, "") and answers(out) == expected, (
        "answers should keep the order of the input")


def test_predict_stdin(place, call, expected, monkeypatch):
    stdin(monkeypatch, "\r\n".join(TEXTS).encode())
    code, out, err = call(predict, "--model", place / "finished")
    assert (code, err) == (0, "") and answers(out) == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_predict_file(place, call, expected, tmp_path, suffix):
    with open(tmp_path / "new.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    out = tmp_path / f"answers.{suffix}"
    code, printed, err = call(predict, "--model", place / "finished",
                              "--data", tmp_path / "new.csv", "--out", out)
    assert (code, printed) == (0, "") and "6 answers" in err
    if suffix == "jsonl":
        assert answers(out.read_text(encoding="utf-8")) == expected
    else:
        rows = read_csv(out)
        assert ([row["text"] for row in rows], [row["label"] for row in rows],
                [[float(row[f"p_{label}"]) for label in LABELS] for row in rows]) == expected
    to_stdout = call(predict, "--model", place / "finished", "--data", tmp_path / "new.csv",
                     "--format", suffix)[1]
    assert to_stdout == out.read_text(encoding="utf-8")


def test_predict_a_bundled_set(place, call):
    code, out, err = call(predict, "--model", place / "finished", "--data", "tickets")
    assert code == 0 and len(out.splitlines()) == len(read_csv(BUNDLED / "tickets.csv")), err


def without_reading(source, target):
    """A copy of a run as it was saved before models remembered their columns."""
    copy(source, target)
    config = json.loads((target / "config.json").read_text())
    del config["minillmclf"]["reading"]
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_predict_pair(place, call, tmp_path):
    old = without_reading(place / "finished", tmp_path / "old")
    model = Classifier.load(old)
    code, out, _ = call(predict, "--model", old, "the old rose", "--pair", "a storm")
    row = json.loads(out)
    assert code == 0 and (row["text_a"], row["text_b"]) == ("the old rose", "a storm")
    p = model.predict([("the old rose", "a storm")])[0].tolist()
    assert list(row["probabilities"].values()) == pytest.approx(p, abs=2e-6)
    (tmp_path / "pairs.csv").write_text("text_a,text_b\nthe old rose,a storm\n")
    assert call(predict, "--model", old, "--data", tmp_path / "pairs.csv")[1] == out


def test_train_on_pairs(place, call, tmp_path):
    rows = read_csv(place / "data.csv")
    with open(tmp_path / "pairs.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["text_a", "text_b", "label", "split"], *(
            [row["text"], "the rain", row["label"], row["split"]] for row in rows)])
    trained(place, call, tmp_path / "run", data=tmp_path / "pairs.tsv")
    assert list(read_csv(tmp_path / "run" / "predictions.csv")[0])[:4] == [
        "line", "text_a", "text_b", "label"]
    assert call(evaluate, "--model", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("given", [["--epochs", "many"], ["--nonsense"], ["--schedule", "square"]])
def test_a_flag_s_mistake_is_one_line(given, call):
    code, out, err = call(train, *given)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and "--help" in err
    assert not out


# ---------------------------------------------------------------- bad data

HEADER = "text,label,split\n"
GOOD = "a rose,garden,train\nsoup,kitchen,train\na tree,garden,dev\nsalt,kitchen,test\n"
BAD_DATA = {
    "missing label column": ("text,class\na,x\n",
                             ["no column 'label'", "'class'", "--label-column"]),
    "missing text column": ("body,label\na,x\n", ["no column 'text'", "'body'", "--text-column"]),
    "unknown label in dev": (HEADER + GOOD + "rain,weather,dev\n",
                             ["line 6", "dev", "'weather'", "'garden'"]),
    "unknown label in test": (HEADER + GOOD + "rain,weather,test\n",
                              ["line 6", "test", "'weather'"]),
    "one class only": ("text,label\n" + "".join(f"rose {i},garden\n" for i in range(30)),
                       ["one class", "'garden'"]),
    "empty text": (HEADER + GOOD + ",garden,train\n", ["empty", "line 6", "'text'"]),
    "text of spaces": (HEADER + GOOD + '" ",garden,dev\n', ["empty", "line 6"]),
    "empty label": (HEADER + GOOD + "rose,,train\n", ["line 6", "label"]),
    "nan label": (HEADER + GOOD + "rose,NaN,train\n", ["line 6", "NaN"]),
    "unknown split": (HEADER + GOOD + "rose,garden,final\n", ["line 6", "'final'", "train, dev"]),
    "one field too many": (HEADER + GOOD + "rose, red,garden,train\n",
                           ["line 6", "4 fields", "header has 3"]),
    "open quote": (HEADER + GOOD + '"rose,garden,train\n', ["line 6", "quot"]),
    "header only": (HEADER, ["no rows"]),
    "empty file": ("", ["empty"]),
    "not UTF-8": ((HEADER + GOOD + "caf\xe9,garden,train\n").encode("latin-1"),
                  ["line 6", "UTF-8", "iconv"]),
    "UTF-16": ((HEADER + GOOD).encode("utf-16"), ["UTF-8", "UTF-16"]),
    "no dev rows possible": ("text,label\nrose,garden\nsoup,kitchen\n", ["2 train", "0 dev"]),
}
BAD_JSONL = {
    "NaN as label": ('{"text": "rose", "label": NaN}\n', ["line 1", "NaN", "label"]),
    "null as label": ('{"text": "rose", "label": null}\n', ["line 1", "null", "label"]),
    "object as label": ('{"text": "rose", "label": {"a": 1}}\n', ["line 1", '{"a": 1}']),
    "endless label": ('{"text": "rose", "label": 1e999}\n', ["line 1", "Infinity"]),
    "number as text": ('{"text": 5, "label": "garden"}\n', ["line 1", "5", "text"]),
    "half a surrogate pair": ('{"text": "a \\ud83d", "label": "garden"}\n',
                              ["line 1", "surrogate"]),
    "broken JSON": ('{"text": "rose", "label": "garden"\n', ["line 1", "JSON"]),
    "a list": ('["rose", "garden"]\n', ["line 1", "list"]),
}


@pytest.mark.parametrize("suffix, content, words", [
    *(pytest.param(".csv", *case, id=name) for name, case in BAD_DATA.items()),
    *(pytest.param(".jsonl", *case, id=name) for name, case in BAD_JSONL.items())])
def test_bad_data(place, refused, tmp_path, suffix, content, words):
    """Even with --overwrite: an earlier run is not given up for one that cannot begin."""
    out, data = copy(place / "finished", tmp_path / "run"), tmp_path / f"data{suffix}"
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused([f"data{suffix}", *words], tmp_path,
                   train, *arguments(place, out, "--overwrite", data=data))
    if "UTF-8" in line:
        refused([f"data{suffix}", *words], tmp_path, predict, "--model", out, "--data", data,
                "--out", tmp_path / "a")
        refused([f"data{suffix}", *words], tmp_path, evaluate, "--model", out, "--data", data)


# ---------------------------------------------------------------- bad settings

BAD_SETTINGS = {
    "lr 0": ({"lr": 0}, ["--lr", "0"]),
    "lr below 0": ({"lr": -1e-3}, ["--lr", "-0.001"]),
    "lr nan": ({"lr": "nan"}, ["--lr", "nan"]),
    "epochs": ({"epochs": 0}, ["--epochs 0"]),
    "batch size": ({"batch_size": 0}, ["--batch-size 0"]),
    "warmup": ({"warmup": 1.5}, ["--warmup 1.5"]),
    "a seed too long": ({"seed": 10**20}, ["--seed"]),
    "method": ({"method": "lora-9"}, ["--method lora-9", "full, head", "last-N"]),
    "more blocks than there are": ({"method": "last-3"}, ["--method last-3", "2 blocks"]),
    "device": ({"device": "abacus"}, ["--device abacus", "cpu, cuda"]),
    "a device that cannot compute": ({"device": "meta"}, ["--device meta"]),
    "model name": ({"model": "big-bert"}, ["big-bert", "shipped", "mini-bert"]),
    "data name": ({"data": "letters"}, ["'letters'", "bundled", "tickets"]),
    "data of a strange kind": ({"data": small.__file__}, ["small.py", ".csv, .tsv or .jsonl"]),
    "max length beyond the positions": ({"max_length": 65}, ["max_length 65", "64 positions"]),
    "max length too small": ({"max_length": 3}, ["max_length 3", "4"]),
    "three texts": ({"text_column": "text,split,more"}, ["'more'"]),
    "text column": ({"text_column": "title"}, ["'title'", "'text'"]),
    "text is label": ({"text_column": "label"}, ["'label'", "--text-column"]),
}


@pytest.mark.parametrize("settings, words", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings(place, refused, tmp_path, monkeypatch, settings, words):
    if "model" in settings:
        from minillmclf import files
        copy(place / "bert", tmp_path / "checkpoints" / "mini-bert")
        monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    out = copy(place / "finished", tmp_path / "run")
    refused(words, tmp_path, train, *arguments(place, out, "--overwrite", **settings))


def test_three_text_columns(place, refused, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text(
        "a,b,c,label\n" + "".join(f"rose {i},soup,rain,{'xy'[i % 2]}\n" for i in range(40)))
    refused(["--text-column a,b,c", "two"], tmp_path, train,
            *arguments(place, tmp_path / "run", data=data, text_column="a,b,c"))


BAD_CONFIG = {
    "broken JSON": ('{"lr": 1e-3', ["not valid JSON"]),
    "not UTF-8": (b'{"model": "\xe9"}', ["not valid JSON"]),
    "a list": ("[1]", ["JSON object", "list"]),
    "nested without end": ("[" * 100_000, ["not valid JSON"]),
    "unknown setting": ('{"num_epochs": 3}', ["num_epochs", "known", "epochs"]),
    "unknown setting in a run.json": ('{"settings": {"num_epochs": 3}}', ["num_epochs", "known"]),
    "settings of another kind": ('{"settings": "fast"}', ["settings"]),
    "text for a number": ('{"lr": "fast"}', ["lr", "float", "'fast'"]),
    "fraction for a whole number": ('{"epochs": 2.5}', ["epochs", "int", "2.5"]),
    "true for a number": ('{"epochs": true}', ["epochs", "int", "True"]),
    "null": ('{"metric": null}', ["metric", "str", "None"]),
    "out of range": ('{"settings": {"clip": -1}}', ["--clip"]),
    "unknown choice of metric": ('{"metric": "f1"}', ["--metric", "f1", "macro_f1"]),
    "unknown choice of schedule": ('{"schedule": "step"}', ["--schedule", "step", "cosine"]),
    "unknown choice of weights": ('{"weights": "none"}', ["--weights", "none", "random"]),
    "unknown choice of precision": ('{"precision": "fp8"}', ["--precision", "fp8", "bf16"]),
    "unknown choice of readout": ('{"readout": "words"}', ["--readout", "words", "labels"]),
}


@pytest.mark.parametrize("content, words", BAD_CONFIG.values(), ids=BAD_CONFIG)
def test_bad_config(place, refused, tmp_path, content, words):
    config = tmp_path / "settings.json"
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    named = [] if any(word.startswith("--") for word in words) else ["settings.json"]
    refused(words + named, tmp_path, train, "--model", place / "bert", "--data", place / "data.csv",
            "--out", tmp_path / "run", "--config", config)


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_config_that_is_no_file(place, refused, tmp_path, name):
    refused([str(tmp_path)], tmp_path, train, "--config", tmp_path / name)


@pytest.mark.parametrize("content, words", [("not JSON", ["run.json", "JSON"]),
                                            ("{}", ["run.json", "no settings", "--out"]),
                                            ('{"settings": {"speed": 3}}', ["run.json", "speed"]),
                                            ('{"settings": [1], "data": 3}', ["run.json"])])
def test_out_holds_a_foreign_run_json(place, refused, tmp_path, content, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    refused([*words, str(tmp_path / "run")], tmp_path, train, *arguments(place, tmp_path / "run"))


def test_out_is_a_file(place, refused, tmp_path):
    file, model, unwritten = tmp_path / "file", place / "finished", "could not be written"
    file.write_text("precious")
    for flags in ([], ["--overwrite"]):
        refused([f"--out {file}", "is a file"], tmp_path, train, *arguments(place, file, *flags))
        refused(["deeper", unwritten], tmp_path, train, *arguments(place, file / "deeper", *flags))
    refused(["deeper.csv", unwritten], tmp_path, predict, "--model", model,
            "--out", file / "deeper.csv", "rose")
    refused(["deeper.json", unwritten], tmp_path, evaluate, "--model", model,
            "--out", file / "deeper.json")
    refused([str(tmp_path), unwritten], tmp_path, predict, "--model", model, "--out", tmp_path,
            "rose")
    refused([str(file), unwritten], tmp_path, compare, "--models", "majority", "--out", file,
            "--data", place / "data.csv")


def test_out_is_the_root_of_nothing(place, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(["could not be written"], tmp_path, predict, "--model", place / "finished",
            "--out", ".", "rose")


def test_out_without_permission(place, refused, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user, the superuser perhaps, may write anywhere")
    refused(["closed", "ermission"], tmp_path, train, *arguments(place, closed / "run"))
    refused(["closed", "ermission"], tmp_path, predict, "--model", place / "finished",
            "--out", closed / "a", "rose")


def test_out_holds_a_model(place, refused, tmp_path):
    other = copy(place / "bert", tmp_path / "other")
    refused([str(other), "no run.json", "--overwrite"], tmp_path, train, *arguments(place, other))


# ---------------------------------------------------------------- bad model folders

def write(name, content):
    """A fault: the file `name` gets other bytes (new ones, or a function of the old ones)."""
    def fault(folder):
        path = folder / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    return fault


def tensors(change):
    """A fault: a function that changes the dict of tensors."""
    def fault(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")
    return fault


def shards(folder, keep=("a", "b"), names=lambda where: where):
    """A fault: two shards, of which only `keep` are there; names: changes the weight_map."""
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(sorted(found))}
    for letter in keep:
        file = f"{letter}.safetensors"
        save_file({name: tensor for name, tensor in found.items() if where[name] == file},
                  folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names(where)}))


def config(**values):
    """A fault: keys of config.json."""
    return write("config.json", lambda old: json.dumps(json.loads(old) | values).encode())


def only_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BODY = "bert.encoder.layer.0.output.dense.weight"
BAD_MODEL = {
    "truncated": (write("model.safetensors", lambda old: old[:-100]),
                  ["model.safetensors", "not a whole", "bytes"]),
    "cut in the header": (write("model.safetensors", lambda old: old[:50]),
                          ["model.safetensors", "not a whole"]),
    "empty": (write("model.safetensors", b""), ["model.safetensors", "not a whole", "0 bytes"]),
    "a zip": (write("model.safetensors", b"PK\x03\x04" + bytes(500)),
              ["model.safetensors", "not a whole"]),
    "a pickle": (write("model.safetensors", b"\x80\x04\x95" + bytes(500)),
                 ["model.safetensors", "not a whole"]),
    "a web page": (write("model.safetensors", b"<!DOCTYPE html><html>"),
                   ["model.safetensors", "not a whole"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(),
                   ["neither model.safetensors nor"]),
    "only a pickle": (only_bin, [".bin", "pickles", "save_pretrained"]),
    "missing shard": (lambda folder: shards(folder, keep="a"),
                      ["index.json", "shard b.safetensors is not there"]),
    "shard outside": (lambda f: shards(f, names=lambda where: where | {BODY: "../a.safetensors"}),
                      ["lies outside"]),
    "stale index": (lambda f: shards(f, names=lambda where: where | {"more": "a.safetensors"}),
                    ["'more'", "stale"]),
    "index without a map": (lambda folder: shards(folder, names=lambda w: []),
                            ["index.json", "weight_map"]),
    "index of numbers": (lambda folder: shards(folder, names=lambda w: w | {BODY: 3}),
                         ["index.json", "weight_map"]),
    "missing tensor": (tensors(lambda t: t.pop(BODY)),
                       ["nothing in the file fills", "layers.0.down_proj.weight"]),
    "unknown tensor": (tensors(lambda t: t.update(more=torch.ones(2))), ["'more'", "(2,)"]),
    "another shape": (tensors(lambda t: t.update({BODY: torch.ones(2, 2)})),
                      [BODY, "(2, 2)", "(32, 48)"]),
    "whole numbers": (tensors(lambda t: t.update({BODY: torch.ones(32, 48, dtype=torch.int64)})),
                      [BODY, "I64"]),
    "not a number": (tensors(lambda t: t[BODY].view(-1)[3:4].fill_(float("nan"))),
                     [BODY, "not finite"]),
    "another family's keys": (config(model_type="gpt2"),
                              ["config.json", "hidden_size = 32 (unknown", "and 7 more"]),
    "model_type": (config(model_type="mamba"),
                   ["config.json", "'mamba'", "supported: bert, distilbert"]),
    "no model_type": (write("config.json", b"{}"),
                      ["config.json", "model_type", "supported: bert, distilbert"]),
    "model_type of another kind": (config(model_type=["bert"]), ["config.json", "model_type"]),
    "other maths": (config(position_embedding_type="relative_key"),
                    ["config.json", "'relative_key'", "'absolute'"]),
    "unknown key": (config(rope_theta=10000),
                    ["config.json", "rope_theta", "may change the maths"]),
    "unknown activation": (config(hidden_act="mish"), ["config.json", "'mish'", "gelu"]),
    "heads that do not divide": (config(num_attention_heads=5), ["config.json", "32", "5"]),
    "no heads": (config(num_attention_heads=0), ["config.json", "num_attention_heads", "0"]),
    "text for a number": (config(hidden_size="32"), ["config.json", "hidden_size", "'32'"]),
    "null for a number": (config(num_hidden_layers=None),
                          ["config.json", "num_hidden_layers", "None"]),
    "a size below 0": (config(vocab_size=-1), ["config.json", "vocab_size", "-1"]),
    "text for a probability": (config(hidden_dropout_prob="low"),
                               ["config.json", "hidden_dropout_prob", "'low'"]),
    "broken config.json": (write("config.json", lambda old: old[:-5]),
                           ["config.json", "not valid JSON"]),
    "no config.json": (lambda folder: (folder / "config.json").unlink(),
                       ["config.json", "not there"]),
    "a list in config.json": (write("config.json", b"[]"), ["config.json", "JSON object"]),
    "broken tokenizer.json": (write("tokenizer.json", lambda old: old[:-5]),
                              ["tokenizer.json", "JSON"]),
    "foreign tokenizer.json": (write("tokenizer.json", b"{}"),
                               ["tokenizer.json", "model is missing"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(),
                     ["tokenizer.json or vocab.txt"]),
    "too many pieces": (write("tokenizer.json",
                              lambda old: old.replace(b'"bread": ', b'"bread": 9')), ["88 rows"]),
}


@pytest.mark.parametrize("fault, words", BAD_MODEL.values(), ids=BAD_MODEL)
def test_bad_model(place, refused, tmp_path, fault, words):
    """Refused by train, which builds on it, even where it was to replace a run, and by predict."""
    out = copy(place / "finished", tmp_path / "run")
    bad = copy(place / "bert", tmp_path / "bad")
    run_folder = copy(place / "finished", tmp_path / "bad-run")
    fault(bad)
    fault(run_folder)
    line = refused([str(bad), *words], tmp_path,
                   train, *arguments(place, out, "--overwrite", model=bad))
    assert "/bad/" in line or "/bad:" in line
    refused([str(run_folder), *words], tmp_path, predict, "--model", run_folder, "rose")


BAD_CLASSIFIER = {
    "id2label with a gap": (config(id2label={"0": "a", "2": "b", "3": "c"}),
                            ["config.json", "id2label", "'3'"]),
    "id2label by name": (config(id2label={"a": "0", "b": "1", "c": "2"}),
                         ["config.json", "id2label", "'a'"]),
    "id2label of another kind": (config(id2label=["a", "b", "c"]),
                                 ["config.json", "id2label", "'a'"]),
    "a name twice": (config(id2label={"0": "a", "1": "a", "2": "c"}),
                     ["config.json", "labels", "'a', 'a'"]),
    "more names than rows": (config(id2label={str(i): f"L{i}" for i in range(4)}),
                             ["(3, 32)", "(4, 32)"]),
    "one class": (config(id2label={"0": "score"}), ["config.json", "labels", "score"]),
    "a number for a text": (config(problem_type="regression"),
                            ["config.json", "'regression' is not supported"]),
    "pooling": (config(minillmclf={"pool": "middle"}), ["'middle'", "first, mean, max, last"]),
    "max length": (config(minillmclf={"max_length": 9999}), ["9999", "64 positions"]),
    "max length of another kind": (config(minillmclf={"max_length": "9"}), ["max_length", "'9'"]),
    "our section of another kind": (config(minillmclf=3), ["config.json", "minillmclf"]),
}


@pytest.mark.parametrize("fault, words", BAD_CLASSIFIER.values(), ids=BAD_CLASSIFIER)
def test_bad_classifier(place, refused, tmp_path, fault, words):
    bad = copy(place / "finished", tmp_path / "bad")
    fault(bad)
    refused([str(bad), *words], tmp_path, predict, "--model", bad, "rose")
    refused([str(bad), *words], tmp_path, evaluate, "--model", bad)


def test_numbers_as_names_of_classes(place, call, tmp_path):
    bad = copy(place / "finished", tmp_path / "numbers", id2label={"0": 1, "1": 2, "2": 10})
    code, out, err = call(predict, "--model", bad, "rose")
    assert code == 0 and set(json.loads(out)["probabilities"]) == {"1", "2", "10"}, err
    (tmp_path / "data.jsonl").write_text('{"text": "rose", "label": 10}\n')
    assert call(evaluate, "--model", bad, "--data", tmp_path / "data.jsonl")[0] == 0


@pytest.mark.parametrize("lm_head", [False, True])
def test_model_without_a_head(refused, tmp_path, lm_head):
    small.bert_folder(tmp_path / "body", lm_head=lm_head)
    refused([str(tmp_path / "body"), "no classification head", "minillmclf.train --model"],
            tmp_path, predict, "--model", tmp_path / "body", "rose")


def test_evaluate_refuses(place, refused, tmp_path):
    model, data = place / "finished", tmp_path / "data.csv"
    data.write_text("text,label\nrose,garden\nrose,flower\n")
    refused([str(data), "line 3", "'flower'", ", ".join(LABELS), "correct it"], place, evaluate,
            "--model", model, "--data", data)
    data.write_text("text,label\nrose,Garden\n")
    refused(["'Garden'", "correct it", "did you mean garden?"], place, evaluate, "--model", model,
            "--data", data)
    data.write_text("text,label\nrose,garden\n ,garden\n")
    refused([str(data), "line 3", "empty"], place, evaluate, "--model", model, "--data", data)
    refused(["--data", "run.json"], place, evaluate, "--model", place / "bert")
    refused(["nowhere", "no such model"], place, evaluate, "--model", "nowhere")
    refused(["'nothing.csv'", "bundled", "tickets"], place, evaluate, "--model", model,
            "--data", "nothing.csv")
    refused(["batch size 0"], place, evaluate, "--model", model, "--batch-size", 0)
    data.write_text(
        HEADER + "".join(f"a {name},{name},train\nthe {name},{name},dev\n" for name in LABELS))
    refused([str(data), "no test rows", "--split"], place, evaluate, "--model", model,
            "--data", data)
    broken = copy(model, tmp_path / "broken")
    (broken / "run.json").write_text("{}")
    refused([str(broken), "--data"], broken, evaluate, "--model", broken)


def test_predict_refuses(place, refused, tmp_path, monkeypatch):
    model, data, out = place / "finished", tmp_path / "data.csv", tmp_path / "answers.csv"
    out.write_text("earlier answers\n")
    refused([str(out), "is there already", "--overwrite"], tmp_path, predict, "--model", model,
            "--out", out, "rose")
    anew = ("--overwrite", "--out", out)
    refused(["empty", "text 2"], tmp_path, predict, "--model", model, *anew, "rose", "")
    refused(["empty"], tmp_path, predict, "--model", model, *anew, " ")
    refused(["--pair", "one text, got 2"], tmp_path, predict, "--model", model, "--pair", "x", "a",
            "b")
    refused(["give texts or --data, not both"], tmp_path, predict, "--model", model, "--pair", "x",
            "--data", data)
    refused(["--data", "not both"], tmp_path, predict, "--model", model, "--data", data, "rose")
    refused(["--text-column", "--data"], tmp_path, predict, "--model", model,
            "--text-column", "title", "rose")
    refused(["batch size 0"], tmp_path, predict, "--model", model, "--batch-size", 0, "rose")
    refused([str(data), "No such file"], tmp_path, predict, "--model", model, "--data", data)
    for name in ("ticket", ""):
        refused([repr(name), "bundled", "tickets"], tmp_path, predict, "--model", model,
                "--data", name)
    refused(["not UTF-8"], tmp_path, predict, "--model", model, *anew, os.fsdecode(b"caf\xe9"))
    data.write_text("text\nrose\n\"\"\ntree\n\" \"\n")
    anew = ("--data", data, *anew)
    refused([str(data), "2 empty", "line 3, 5"], tmp_path, predict, "--model", model, *anew)
    data.write_text("title\nrose\n")
    refused([str(data), "'text'", "'title'"], tmp_path, predict, "--model", model, *anew)
    for content, words in ((b"caf\xe9\n", ["not UTF-8", "iconv"]),
                           (b"rose\n\ntree\n", ["line 2 is empty"]), (b"", ["no lines"])):
        stdin(monkeypatch, content)
        refused(["standard input", *words], tmp_path, predict, "--model", model, *anew[2:])


# ---------------------------------------------------------------- a full disk

def whole(folder):
    """Every file in a run's folder, if there is one, is read to its end: none is half written."""
    for path in folder.iterdir() if folder.exists() else ():
        assert not path.name.endswith(".writing"), f"{path.name} was left behind"
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())


@pytest.mark.parametrize("name, time", [
    ("run.json", 1), ("state.safetensors", 1), ("state.safetensors", 2), ("best.safetensors", 1),
    ("metrics.jsonl", 1), ("learned.json", 1), ("tokenizer.json", 1),
    ("tokenizer_config.json", 1), ("model.safetensors", 1), ("config.json", 1),
    ("predictions.csv", 1), ("run.json", 2)])
def test_full_disk(place, call, tmp_path, monkeypatch, name, time):
    """No room for the `time`-th file of that name: one line. With room, it ends as undisturbed."""
    real, times = os.replace, [0]

    def no_room(source, target, **more):
        times[0] += os.path.basename(target) == name
        if os.path.basename(target) == name and times[0] == time:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)
        return real(source, target, **more)

    given = arguments(place, tmp_path / "run", save_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        code, _, err = call(train, *given)
    last = err.replace("\r", "\n").splitlines()[-1]
    assert code == 2 and last.startswith("error: "), err
    assert name in last and "No space left" in last, err
    assert "Traceback" not in err
    whole(tmp_path / "run")
    assert call(train, *given)[0] == 0
    assert {k: v for k, v in result(tmp_path / "run").items() if k != "run.json"} == {
        k: v for k, v in result(place / "finished").items() if k != "run.json"}
    assert (result(tmp_path / "run")["run.json"]["results"]
            == result(place / "finished")["run.json"]["results"])


def test_full_disk_after_an_early_stop(place, call, tmp_path, monkeypatch):
    """A run that ended early and could not be saved ends at the same epoch when it goes on."""
    given = dict(epochs=9, patience=1, lr=1e-9)
    trained(place, call, tmp_path / "undisturbed", **given)
    real = os.replace

    def no_room(source, target, **more):
        if os.path.basename(target) == "model.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)
        return real(source, target, **more)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        assert call(train, *arguments(place, tmp_path / "run", **given))[0] == 2
    trained(place, call, tmp_path / "run", **given)
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")


def test_full_disk_for_answers(place, refused, tmp_path, monkeypatch):
    out = tmp_path / "answers.csv"
    out.write_text("earlier answers\n")

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", no_room)
    refused([str(out), "No space left"], tmp_path, predict, "--model", place / "finished",
            "--out", out, "rose", "--overwrite")


# ---------------------------------------------------------------- real processes

def process(module, *given, cwd=small.ROOT, stdout=subprocess.PIPE, env={}, **more):
    """`python -m minillmclf.MODULE ...` in a folder -> the finished process, output as bytes."""
    return subprocess.run([sys.executable, "-m", f"minillmclf.{module}", *map(str, given)], cwd=cwd,
                          timeout=120, env=small.environment() | env, stdout=stdout,
                          stderr=subprocess.PIPE, **more)


def test_train_from_another_folder_where_files_may_not_grow(place, tmp_path):
    """A real failed write (RLIMIT_FSIZE: a full disk), then the same command with room."""
    shutil.copytree(place / "bert", tmp_path / "bert")
    shutil.copy(place / "data.csv", tmp_path / "data.csv")
    # a state is saved after epoch 1
    given = ["--model", "bert", "--data", "data.csv", "--out", "run", *QUICK, "--save-every", 5]

    code, _, error, _ = small.forked("train", given, cwd=str(tmp_path), limit=100_000)
    lines = error.replace("\r", "\n").splitlines()
    assert code == 2 and "Traceback" not in error, error
    assert lines[-1].startswith("error: run/state.safetensors: could not be written"), lines[-1]
    whole(tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").exists(), (
        "the first file, under the limit, should be there")
    code, _, error, _ = small.forked("train", given, cwd=str(tmp_path))
    assert code == 0, error
    for name in LEARNED:
        assert (tmp_path / "run" / name).read_bytes() == (place / "finished" / name).read_bytes(), (
            "a run disturbed by a full disk, in another process and folder, should end with the "
            f"same {name}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_answers_in_utf8_and_a_full_pipe(place):
    """Output is UTF-8 in any terminal; where it cannot be written, there is one line."""
    texts = "caf\u00e9 \u4f60\n".encode()
    done = process("predict", "--model", place / "finished", input=texts,
                   env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stderr.startswith(b"WARNING: 20% of the tokens")
    assert done.stderr.count(b"\n") == 1
    assert json.loads(done.stdout.decode("utf-8"))["text"] == "caf\u00e9 \u4f60"
    with open("/dev/full", "wb") as full:  # buffered, so that nothing fails before the end
        done = process("predict", "--model", place / "finished", input=texts, stdout=full,
                       env={"PYTHONUNBUFFERED": ""})
    warning, *errors = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert warning.startswith("WARNING: "), done.stderr
    assert errors[0].startswith("error: ") and "No space left" in errors[0]


HELP = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name).parse(["--help"])
    except SystemExit as end:
        print("exit", end.code)
print("slow:", sorted({"torch", "numpy", "safetensors"} & set(sys.modules)))
"""


@pytest.mark.parametrize("given, kept", [(None, "10000"), ("7", "7")])
def test_threads_do_not_wait_in_a_busy_loop_unless_asked_to(given, kept):
    program = ("import os, sys; from minillmclf.cli.parser import run; "
               "run(lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules))")
    known = {key: value for key, value in small.environment().items() if key != "GOMP_SPINCOUNT"}
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True,
                          env=known | ({"GOMP_SPINCOUNT": given} if given else {}))
    assert done.stdout.split() == [kept, "False"], (
        f"{done.stdout}{done.stderr}: it must be set before torch is loaded")


def test_a_first_prediction_loads_no_more_than_it_needs(tmp_path):
    """torch's compiler alone takes longer to load than all else together."""
    Classifier.from_backbone(small.bert_folder(tmp_path / "body"), ["a", "b"]).save(
        tmp_path / "model")
    program = (
        "import sys; from minillmclf.predict import __main__ as p; p.main(sys.argv[1:]); "
        "print('slow:', sorted({'torch._dynamo', 'sympy', 'bitsandbytes', 'matplotlib'} "
        "& set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", program, "--model", tmp_path / "model", "soup"],
                          capture_output=True, text=True, env=small.environment())
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "slow: []", (
        done.stdout + done.stderr)


def test_help_without_docstrings():
    names = [*COMMANDS, "pretrain"]
    done = subprocess.run([sys.executable, "-OO", "-c", HELP, *map(small.module_of, names)],
                          env=small.environment(), text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.count("exit 0") == len(names), done.stderr


def test_help_is_quick_and_complete():
    names = [*COMMANDS, "pretrain"]
    done = subprocess.run([sys.executable, "-c", HELP, *map(small.module_of, names)],
                          env=small.environment(), text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.count("exit 0") == len(names), done.stderr
    assert "slow: []" in done.stdout, (
        f"--help should not wait for imports of {done.stdout.splitlines()[-1]}")
    helps = dict(zip(names, done.stdout.split("exit 0\n")))
    for name in vars(Settings()):
        flag = "--" + name.replace("_", "-")
        assert f"  {flag} " in helps["train"], f"train --help does not explain {flag}"
        assert (f"  {flag} " in helps["compare"]) == (name not in compare.DECIDED_SETTINGS
                                                      or name == "out"), flag
    own = {"train": "--config --overwrite", "compare": "--models --learning-curve --seeds --out",
           "evaluate": "--model --data --split --text-column --label-column --batch-size --out",
           "predict": "text --model --pair --data --text-column --out --format --batch-size"}
    for name, flags in own.items():
        missing = [flag for flag in flags.split() if f"  {flag} " not in helps[name]]
        assert not missing, f"{name} --help does not explain {missing}"


def test_without_the_bag_of_words(place, call, tmp_path, monkeypatch):
    from minillmclf.classify import baseline
    monkeypatch.setattr(baseline.BagOfWords, "fit", None)                # whoever fits one, fails
    code, out, err = call(train, *arguments(place, tmp_path / "run", baselines="off"))
    assert code == 0 and "bag of words" not in out and "majority class" in out
    own = json.loads((place / "finished" / "run.json").read_text())["results"]["bert, full"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["bert, full"] == own
    assert call(train, *arguments(place, tmp_path / "run"))[0] == 0, (
        "the switch made it another run")


def test_the_model_is_saved_before_the_baselines(place, tmp_path, monkeypatch):
    from minillmclf.classify import baseline

    def too_large(*_):
        raise MemoryError
    monkeypatch.setattr(baseline.BagOfWords, "fit", too_large)
    with pytest.raises(MemoryError):
        train.main(arguments(place, tmp_path / "run"))
    for name in ("model.safetensors", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (place / "finished" / name).read_bytes()


def test_a_bag_of_words_keeps_the_terms_in_the_most_rows(monkeypatch):
    from minillmclf.classify import baseline
    texts = ["good film good", "good cast", "bad film", "bad bad cast", "bad plot"] * 4
    labels = [1, 1, 0, 0, 0] * 4
    whole = baseline.BagOfWords(2).fit(texts, labels, texts, labels)
    assert len(whole.index) == 12 and whole.predict(["good"]).argmax() == 1
    monkeypatch.setattr(baseline, "MAX_WEIGHTS", 8)
    four = baseline.BagOfWords(2).fit(texts, labels, texts, labels)
    assert sorted(four.index) == ["0:bad", "0:cast", "0:film", "0:good"], (
        "8 weights are 4 terms of 2 classes")
    assert four.weights[0].shape == (4, 2)
    assert four.predict(["good", "bad"]).argmax(1).tolist() == [1, 0]
