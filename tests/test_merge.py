"""python -m minillmclf.merge: what it writes answers as the tuned model; what it says is true."""

import errno
import json
import os
import re
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from small import PIECES, bert_folder, data_file, flags, forked
from test_families import CONFIGS

from minillmclf import evaluate, merge, train
from minillmclf.folds import __main__ as folds
from minillmclf.classify.classifier import Classifier
from minillmclf.cli import run_folder
from minillmclf.cli.parser import run
from minillmclf.cli.settings import read_settings
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, model_class, save_backbone
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.tuning import tune
from minillmclf.tuning.linear4bit import Linear4bit


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{method: the folder of a finished run}."""
    place = tmp_path_factory.mktemp("runs")
    asked = dict(model=bert_folder(place / "bert"), data=data_file(place / "data.csv"), epochs=1,
                 batch_size=8, lr=1e-2)
    for method in ("lora", "qlora", "houlsby", "full"):
        assert train.main(flags(**asked, method=method, out=place / method)) == 0
    return {method: place / method for method in ("lora", "qlora", "houlsby", "full")}


def call(capsys, *arguments):
    """(exit code, stdout, stderr) of the command."""
    with pytest.raises(SystemExit) as end:
        run(lambda: merge.main(list(map(str, arguments))))
    return end.value.code, *capsys.readouterr()


def answers(folder):
    model = Classifier.load(folder)
    texts = ["the rose was near a tree", "rain and wind again", "soup with bread", "old salt"]
    return torch.tensor(model.predict(texts))


@pytest.mark.parametrize("method, more", [("lora", ()), ("qlora", ("--base", "full"))])
def test_a_merged_model_is_a_plain_one_with_the_same_answers(method, more, runs, tmp_path, capsys):
    code, out, error = call(capsys, "--model", runs[method], "--out", tmp_path / "merged", *more)
    assert code == 0, error
    assert re.search(r"on 9 rows the largest difference of a probability is [\d.e-]+, 0 rows "
                     r"change their class", out), out
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert "model.safetensors" in names and not names & {"adapter", "tuned.json"}
    assert "quantization_config" not in json.loads(
        (tmp_path / "merged" / "config.json").read_text())
    assert (answers(tmp_path / "merged") - answers(runs[method])).abs().max() <= 1e-5


def evaluated(capsys, *arguments):
    """What evaluate prints after its table's first column."""
    assert evaluate.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def test_a_merged_model_is_judged_by_rows_that_its_run_has_not_learned(runs, tmp_path, capsys):
    """The file has no column split: without the run's record all its rows would judge."""
    place, data, merged = runs["lora"].parent, tmp_path / "data.csv", tmp_path / "merged"
    lines = (place / "data.csv").read_text().splitlines()
    data.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    assert train.main(flags(model=place / "bert", data=data, epochs=1, batch_size=8, method="lora",
                            few_rows="off", out=tmp_path / "run")) == 0
    assert call(capsys, "--model", tmp_path / "run", "--out", merged)[0] == 0
    moved = shutil.copy(data, tmp_path / "moved.csv")
    for split in ("train", "dev", "test"):
        for named in ((), ("--data", moved)):
            asked = ("--split", split, *named)
            first, own = (evaluated(capsys, "--model", model, *asked).split("  ")[0]
                          for model in (merged, tmp_path / "run"))
            assert first == own and f", {split} (" in own, (first, own)
    (merged / "merged.json").unlink()
    assert "all rows (48 rows)" in evaluated(capsys, "--model", merged, "--data", moved)


def test_a_fold_is_merged_too_and_judged_by_its_held_out_rows(runs, tmp_path, capsys):
    place = runs["lora"].parent
    assert folds.main(flags(model=place / "bert", data=place / "data.csv", epochs=1, batch_size=8,
                            method="lora", folds=2, out=tmp_path / "folds")) == 0
    code, out, error = call(capsys, "--model", tmp_path / "folds" / "fold-1", "--out",
                            tmp_path / "merged")
    assert code == 0 and "held-out rows of fold 1 of 2: on " in out, (out, error)
    assert "held-out rows of fold 1 of 2 (20 rows)" in evaluated(
        capsys, "--model", tmp_path / "merged")


def test_merging_into_four_bits_is_said_with_what_it_costs(runs, tmp_path, capsys):
    code, out, error = call(capsys, "--model", runs["qlora"], "--out", tmp_path / "merged",
                            "--base", "4bit")
    assert code == 0, error
    assert json.loads((tmp_path / "merged" / "config.json")
                      .read_text())["quantization_config"]["load_in_4bit"]
    said = float(re.search(r"largest difference of a probability is ([\d.e-]+)", out).group(1))
    assert said > 1e-4, "rounding to four bits changes answers; a report of nothing would be false"
    assert (answers(tmp_path / "merged") - answers(runs["qlora"])).abs().max() > 1e-5


def test_the_rows_that_change_their_class_are_counted(runs, tmp_path, capsys, monkeypatch):
    plain = merge.merge_adapter

    def turned(model, *more):
        """A merge after which the unlikeliest class of before is the likeliest."""
        out = plain(model, *more).head.out
        with torch.no_grad():
            out.weight.neg_()
            out.bias.neg_()
        return model
    monkeypatch.setattr(merge, "merge_adapter", turned)
    code, out, error = call(capsys, "--model", runs["lora"], "--out", tmp_path / "merged")
    assert code == 0 and "on 9 rows" in out and " 9 rows change their class" in out, (out, error)


def test_what_was_whole_before_a_merge_into_four_bits_is_whole_after_it(tmp_path):
    """T5's down_proj keeps its precision in a 4-bit base, so also in what is merged from it."""
    kind, config = CONFIGS["t5"]
    body = initialise_weights(
        model_class({"model_type": kind}).from_config({"model_type": kind, **config}), 0)
    body.source_config = {"model_type": kind, **config}
    save_backbone(body, tmp_path)
    WordPiece.from_vocab(PIECES).save(tmp_path)
    model = Classifier.from_backbone(tmp_path, ["a", "b"], quantise="nf4")
    before = {path for path, module in model.named_modules() if isinstance(module, Linear4bit)}
    tune(model, dict(method="qlora", rank=2, alpha=2.0, dropout=0.0, use_rslora=False,
                     targets=None, bias="none"))
    merge.merge_adapter(model, "4bit")
    after = {path for path, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert before == after and before, (
        f"in four bits before or after only: {sorted(before ^ after)[:4]}")


@pytest.mark.parametrize("method, more, fault", [
    ("qlora", (), "4 bits a number: choose --base full .* or --base 4bit"),
    ("houlsby", (), "only lora, dora and qlora can be merged"),
    ("full", (), "only lora, dora and qlora can be merged")])
def test_what_cannot_be_merged_is_one_line(method, more, fault, runs, tmp_path, capsys):
    code, _, error = call(capsys, "--model", runs[method], "--out", tmp_path / "merged", *more)
    assert code == 2 and error.count("\n") == 1 and re.search(fault, error), error
    assert not (tmp_path / "merged").exists(), "nothing is left of a merge that was refused"


@pytest.mark.parametrize("folder, why", [
    ("full", "this is a whole model already"), ("houlsby", "houlsby has learned is no change"),
    ("bert", "this is a whole model already"), ("prefix", "prefix has learned is no change")])
def test_what_cannot_be_merged_is_refused_before_data_is_asked_for(folder, why, runs, tmp_path,
                                                                   capsys):
    place = runs["lora"].parent / folder
    if folder == "prefix":
        place = tmp_path / folder
        place.mkdir()
        (place / "adapter_config.json").write_text(
            '{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}')
    elif folder != "bert":
        place = shutil.copytree(place, tmp_path / folder)
        (place / "run.json").unlink()
    code, _, error = call(capsys, "--model", place, "--out", tmp_path / "merged")
    assert code == 2 and f"{place}: only lora, dora and qlora" in error and why in error, error


def test_a_folder_that_is_not_empty_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "note").write_text("mine")
    code, _, error = call(capsys, "--model", runs["lora"], "--out", tmp_path)
    assert (code == 2 and "is not empty" in error
            and [p.name for p in tmp_path.iterdir()] == ["note"])


def test_the_skip_list_is_printed(tmp_path, capsys):
    asked = dict(model=bert_folder(tmp_path / "bert"), data=data_file(tmp_path / "data.csv"),
                 epochs=1, batch_size=8)
    assert train.main(flags(**asked, method="qlora", out=tmp_path / "run")) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("in four bits (nf4)"))
    for kept in (
            "backbone.word_embeddings", "backbone.layers.{}.mlp_norm", "head.dense", "head.out"):
        assert kept in line, line
    assert "q_proj" not in line


def test_a_base_in_four_bits_keeps_its_type(runs, tmp_path, capsys):
    base, out = tmp_path / "base", tmp_path / "run"
    assert merge.main(flags(model=runs["qlora"], out=base, base="4bit")) == 0
    asked = flags(model=base, data=runs["qlora"].parent / "data.csv", method="qlora", epochs=1,
                  batch_size=8, out=out)
    with pytest.raises(SystemExit):
        run(lambda: train.main([*asked, "--quantise", "fp4"]))
    said = capsys.readouterr().err
    assert f"--quantise fp4: {base} is already in four bits (nf4)" in said, said
    assert train.main([*asked, "--quantise", "nf4"]) == 0
    assert "in four bits (nf4): the layers that are so in the file\n" in capsys.readouterr().out
    record = json.loads((out / "run.json").read_text())
    record["settings"]["quantise"] = "fp4"                     # as an earlier version recorded it
    (out / "run.json").write_text(json.dumps(record))
    assert read_settings({}, out / "run.json").quantise == "nf4"
    assert train.main(asked) == 0, "it is the same run"
    model = Classifier.from_backbone(base, ["plant", "weather"], quantise="fp4")
    assert model.quantise == "nf4", "what is recorded is what is there"


# ------------------------------------------------------------------- a model that lies in --out

def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The folder of another merged model, with other words in its tokenizer and other labels."""
    place = tmp_path_factory.mktemp("older")
    WordPiece.from_vocab([*PIECES[:-6], *PIECES[:-7:-1]]).save(bert_folder(place / "bert"))
    model = Classifier.from_backbone(place / "bert", ["plant", "weather", "=1+1"], seed=5)
    model.save(place / "model")
    return place / "model"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "model.safetensors", "config.json"])
def test_a_full_disk_leaves_the_model_that_was_to_be_replaced(name, runs, older, tmp_path, capsys,
                                                              monkeypatch):
    real, out = os.replace, shutil.copytree(older, tmp_path / "old")

    def no_room(source, target, **more):
        if os.path.basename(target) == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)
        return real(source, target, **more)
    asked = ("--model", runs["lora"], "--out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        code, _, error = call(capsys, *asked, out, "--overwrite")
        assert code == 2 and error.count("\n") == 1 and "saved before is untouched" in error, error
        assert call(capsys, *asked, tmp_path / "new")[0] == 2
    assert contents(out) == contents(older) and not (tmp_path / "new").exists()
    assert call(capsys, *asked, tmp_path / "new")[0] == 0, "the same command, when there is room"


def test_a_merge_killed_at_any_change_of_the_disk_leaves_no_mixture(runs, older, tmp_path):
    def asked(out):
        return ("merge", ["--model", runs["lora"], "--out", out, "--overwrite"])
    whole = shutil.copytree(older, tmp_path / "whole")
    moves = forked(*asked(whole))[3]
    expected = [answers(folder).tolist() for folder in (older, whole)]
    for move in range(1, moves + 1):
        out = shutil.copytree(older, tmp_path / str(move))
        assert forked(*asked(out), move=move)[0] == -signal.SIGKILL
        try:
            assert answers(out).tolist() in expected, f"killed at change {move} of {moves}"
        except InputError as error:
            assert "config.json: is not there" in str(error)
        code, _, error, _ = forked(*asked(out))
        assert code == 0 and contents(out) == contents(whole), error


def test_one_merge_at_a_time_and_none_replaces_another_unasked(runs, tmp_path, capsys, monkeypatch):
    given = ("--model", runs["lora"], "--out", tmp_path / "out")
    with run_folder.RunFolder(tmp_path / "out").lock():
        code, _, error = call(capsys, *given)
        assert code == 2 and "another process is writing to this folder" in error, error
        assert (tmp_path / "out").exists(), "the second one removes the folder of the first"
    real = run_folder.lock_folder

    @contextmanager
    def late(out):
        """Another merge ends just before this one gets the lock."""
        out.mkdir()
        (out / "config.json").write_text("{}")
        with real(out):
            yield
    monkeypatch.setattr(run_folder, "lock_folder", late)
    code, _, error = call(capsys, *given)
    assert code == 2 and "is not empty, it holds a model" in error, error
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_of_a_run_that_is_replaced_nothing_stays(runs, tmp_path, capsys):
    for method in ("full", "lora"):
        out = shutil.copytree(runs[method], tmp_path / method)
        shutil.copytree(runs["full"], out / ".new")
        edit = json.loads((out / ".new" / "run.json").read_text()) | {"finished": False}
        (out / ".new" / "run.json").write_text(json.dumps(edit))
        (out / "report.html").write_text("of the run")
        (out / "mine.txt").write_text("mine")
        assert call(capsys, "--model", runs["lora"], "--out", out, "--overwrite")[0] == 0
        assert {str(name) for name in contents(out)} == {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "merged.json", "learned.json", "mine.txt"}
        assert torch.equal(answers(out), answers(tmp_path / "full"))
