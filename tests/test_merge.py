"""python -m minillmclf.merge: what it writes answers as the tuned model; what it says is true."""

import json
import re

import pytest
import torch
from small import PIECES, bert_folder, data_file, flags
from test_families import CONFIGS

from minillmclf import merge, train
from minillmclf.folds import __main__ as folds
from minillmclf.classify.classifier import Classifier
from minillmclf.cli.parser import run
from minillmclf.models import initialise_weights, model_class, save_backbone
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.tuning import tune
from minillmclf.tuning.quant import Linear4bit


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


def test_a_fold_of_a_cross_validation_is_merged_too(runs, tmp_path, capsys):
    place = runs["lora"].parent
    assert folds.main(flags(model=place / "bert", data=place / "data.csv", epochs=1, batch_size=8,
                            method="lora", folds=2, out=tmp_path / "folds")) == 0
    code, out, error = call(capsys, "--model", tmp_path / "folds" / "fold-1", "--out",
                            tmp_path / "merged")
    assert code == 0 and "held-out rows of fold 1 of 2: on " in out, (out, error)


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
