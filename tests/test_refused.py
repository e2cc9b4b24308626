"""Mistakes and damage that lay beside those of the other tests: each is told in one line, and
nothing is lost."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import bert_folder, data_file, forked

from minillmclf.choose import measured
from minillmclf import evaluate, labels
from minillmclf.predict import __main__ as predict, stream
from minillmclf.errors import InputError
from minillmclf.files import find_model
from minillmclf.models.config import read_model_config
from minillmclf.cli import few_rows
from minillmclf.cli.settings import read_settings
from minillmclf.compare.summary import read_predictions
from minillmclf.pretrain.corpus import weighted
from minillmclf.text.data import load_data
from minillmclf.text.examples import read_examples


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, data, a finished run and how it was made."""
    place = tmp_path_factory.mktemp("made")
    base, data = bert_folder(place / "base", layers=1), data_file(place / "data.csv", 24, 6, 6)
    told = [
        "--model",
        base,
        "--data",
        data,
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--max-length",
        "16",
        "--baselines",
        "off",
        "--save-every",
        "1",
    ]
    assert forked("train", [*told, "--out", place / "run"])[0] == 0
    return place, told


def refused(do, *words):
    with pytest.raises(InputError) as caught:
        do()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(
        caught.value
    )


def test_no_output_replaces_what_the_command_reads(made, tmp_path):
    place, _ = made
    before = (place / "data.csv").read_bytes()
    refused(
        lambda: evaluate.main(
            ["--model", place / "run", "--out", place / "data.csv", "--overwrite"]
        ),
        "data.csv: is what the run of --model reads",
    )
    assert (place / "data.csv").read_bytes() == before
    for flag, text in (
        ("--template", "It is {text}: {label}"),
        ("--label-texts", '{"a": "rose", "b": "soup"}'),
        ("--instruction", "Say what it is."),
    ):
        path = tmp_path / f"{flag}.txt"
        path.write_text(text)
        refused(
            lambda: labels.main(
                [
                    "--model",
                    place / "base",
                    "--labels",
                    "a",
                    "b",
                    flag,
                    path,
                    "--out",
                    path,
                    "--overwrite",
                ]
            ),
            f"is what {flag} reads",
        )
        assert path.read_text() == text


def test_training_leaves_files_that_are_not_its_own(made, tmp_path):
    place, told = made
    for name in ("predictions.csv", "report.html", "tokenizer.json", "model.safetensors"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        code, _, error, _ = forked("train", [*told, "--out", out])
        assert (
            code == 2
            and f"holds {name} but no run.json" in error
            and (out / name).read_text() == "mine"
        )
    code, _, error, _ = forked("train", [*told, "--out", place / "base" / "inside"])
    assert (
        code == 2
        and "part of what --model reads" in error
        and not (place / "base" / "inside").exists()
    )


@pytest.mark.parametrize("cell", ["1 0", "0,1", "1; 0", "0|1"])
def test_a_multi_hot_text_is_no_class(tmp_path, cell):
    path = tmp_path / "hot.csv"
    other = cell.translate(str.maketrans("01", "10"))
    path.write_text(
        "text\tlabel\n" + "".join(f"a text {i}\t{(cell, other)[i % 2]}\n" for i in range(20))
    )
    for several in (False, True):
        refused(
            lambda: load_data(path, multi_label=several),
            "hot.csv, line 2",
            "zeros and ones",
            "--label-column a,b,c",
        )


def test_a_list_without_quotes_is_no_class(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": "[garden, rain]"}\n')
    refused(lambda: read_examples(tmp_path / "x.jsonl"), "line 1", "a list as a text")


@pytest.mark.parametrize("name", ["test", "Validation", "holdout.parquet", "extra.xlsx"])
def test_no_part_of_a_data_folder_is_left_out_unsaid(tmp_path, name):
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(20))
    )
    (tmp_path / name).write_text("x") if "." in name else (tmp_path / name).mkdir()
    refused(lambda: load_data(tmp_path), name, "no .csv, .tsv or .jsonl file")


def test_a_label_of_400_digits_is_a_name(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": ' + "9" * 400 + "}\n")
    assert read_examples(tmp_path / "x.jsonl")[0].label == "9" * 400


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    refused(
        lambda: read_examples(tmp_path / "x.csv"), "x.csv: cannot be read (it is no ordinary file)"
    )


@pytest.mark.parametrize("name", ["lr", "alpha", "weight_decay", "focal_gamma", "clip"])
def test_numbers_of_a_run_are_finite(name):
    asked = {name: math.inf, **({"method": "lora"} if name == "alpha" else {})}
    refused(
        lambda: read_settings(asked), f"--{name.replace('_', '-')} inf: should be a finite number"
    )


def test_a_run_whose_weights_end_not_finite_has_diverged(made, tmp_path):
    _, told = made
    code, _, error, _ = forked(
        "train",
        [*told, "--out", tmp_path / "out", "--lr", "1e30", "--clip", "0", "--batch-size", "64"],
    )
    line = [part for part in error.splitlines() if part.startswith("error")]
    assert code == 2 and "training has diverged; lower --lr" in line[0] and "epoch 1" in line[0]


def test_half_a_surrogate_pair_in_another_column_stays_as_json_has_it(made, tmp_path):
    place, _ = made
    (tmp_path / "x.jsonl").write_text('{"text": "a rose", "more": "\\ud83d"}\n')
    assert (
        predict.main(
            [
                "--model",
                place / "run",
                "--data",
                tmp_path / "x.jsonl",
                "--out",
                tmp_path / "out.jsonl",
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["more"] == "\ud83d"


def test_answers_that_were_changed_are_made_anew(made, tmp_path, monkeypatch):
    place, _ = made
    monkeypatch.setattr(stream, "WINDOW", 4)
    asked = ["--model", place / "run", "--data", place / "data.csv", "--batch-size", "4", "--out"]
    predict.main([*asked, tmp_path / "whole.csv"])
    real = stream.PartFile.add

    def add(self, *given):
        real(self, *given)
        if self.rows == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(Exception, match="stopped"):
        patch.setattr(stream.PartFile, "add", add)
        predict.main([*asked, tmp_path / "a.csv"])
    part = tmp_path / "a.csv.part"
    part.write_bytes(part.read_bytes().replace(b"garden", b"GARDEN", 1))
    predict.main([*asked, tmp_path / "a.csv"])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_damaged_states_are_refused(made, tmp_path):
    place, told = made
    whole = tmp_path / "whole"
    code, *_ = forked("train", [*told, "--out", whole], interrupt=[5])
    assert code == 130 and (whole / "state.safetensors").exists()
    with safe_open(whole / "state.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(whole / "state.safetensors")
    own = next(
        name for name in tensors if name.startswith("model.") and name.endswith("out.weight")
    )
    kept = own.replace("model.", "optimizer.exp_avg.", 1)
    progress = json.loads(metadata["progress"])
    far = {**progress, "best": {**progress["best"], "epoch": 10**6}}
    odd = {**progress, "history": [{**progress["history"][0], "log_loss": None}]}
    cases = [
        ({own: torch.float8_e4m3fn}, progress, "parameters differ"),
        ({own: torch.float16}, progress, "parameters differ"),
        ({kept: torch.float16}, progress, "torch.float16"),
        ({kept: torch.float8_e4m3fn}, progress, "what the optimiser kept"),
        ({}, far, "do not fit together"),
        ({}, odd, "do not fit together"),
    ]
    for number, (types, said, words) in enumerate(cases):
        out = Path(shutil.copytree(whole, tmp_path / str(number)))
        save_file(
            {name: t.to(types.get(name, t.dtype)) for name, t in tensors.items()},
            out / "state.safetensors",
            {**metadata, "progress": json.dumps(said)},
        )
        code, _, error, _ = forked("train", [*told, "--out", out])
        assert (
            code == 2
            and words in error
            and "state.safetensors" in error
            and "Traceback" not in error
        ), (words, error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "line,text\n1,a\n",
        "line,text,label,predicted,p_a,p_b\n1,x,a,c,.5,.5\n",
        "line,text,label,predicted,p_a,p_b\n1,x,a,a,nan,.5\n",
        "line,text,label,predicted,p_a,p_b\n1,x,a,a,2,.5\n",
        "line,text,label,predicted,p_a,p_b\n1,x,a,b,.4,.6\n",
    ],
)
def test_damaged_answers_of_a_cell_are_told(tmp_path, text):
    (tmp_path / "predictions.csv").write_text(text)
    refused(lambda: read_predictions(tmp_path / "predictions.csv", 1.0), "predictions.csv")


@pytest.mark.parametrize(
    "settings",
    [{"models": [3]}, {"models": "x"}, {"epochs": "3"}, {"method": []}, {"source": {}}],
)
def test_damaged_settings_of_a_comparison_are_told(tmp_path, settings):
    (tmp_path / "settings.json").write_text(json.dumps({"data": "tickets", **settings}))
    refused(
        lambda: measured.comparison_facts(str(tmp_path), load_data("tickets")),
        "settings.json",
        next(iter(settings)),
    )


@pytest.mark.parametrize("spec", ["", ":2", "x.txt:0", "x.txt:99999999999"])
def test_weights_of_texts_have_bounds(spec):
    refused(lambda: list(weighted([spec])), "FILE:WEIGHT")


def test_sizes_of_a_new_model_have_bounds(tmp_path):
    from minillmclf.pretrain import __main__ as pretrain

    for flag, value in (
        ("--layers", 10**9),
        ("--threads", -1),
        ("--vocab-size", 10**30),
        ("--lr", "inf"),
        ("--lr", "nan"),
    ):
        refused(
            lambda: pretrain.main(
                ["--text", "x.txt", "--objective", "mlm", "--out", tmp_path / "o", flag, value]
            ),
            flag,
        )


def test_a_folder_without_config_says_what_is_meant(tmp_path):
    refused(lambda: read_model_config(tmp_path), "config.json: is not there", "minillmclf.merge")
    for place in ("fold-1", "cells/one", ".new/fold-1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "tuned.json").write_text("{}")
    one = f"name a model inside this folder, such as {tmp_path / 'cells' / 'one'} (2 in all)"
    refused(lambda: read_model_config(tmp_path), "config.json: is not there", one)
    given = ["--model", str(tmp_path / "fold-1"), "--labels", "a", "b"]
    refused(lambda: labels.main(given), "merged with it", "or name its base")
    refused(lambda: few_rows.is_encoder(tmp_path / "fold-1"), "merged with it")


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    refused(lambda: find_model(""), "the name of a model is empty", "name a folder")
    refused(lambda: find_model("owner/name"), "hf download owner/name")
    for name in ("runs/typo", "mine/typo", "./typo"):
        with pytest.raises(InputError, match="no such model folder; shipped checkpoints"):
            find_model(name)


def test_columns_without_names_are_kept_apart(made, tmp_path):
    place, _ = made
    (tmp_path / "x.csv").write_text("text,,\na rose,1,2\n")
    predict.main(
        ["--model", place / "run", "--data", tmp_path / "x.csv", "--out", tmp_path / "out.csv"]
    )
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("1,2,a rose,")


def test_a_file_that_is_marked_as_test_alone_is_judged(made, tmp_path):
    place, _ = made
    (tmp_path / "x.csv").write_text(
        "text,label,split\na rose,garden,Testing\nold soup,kitchen,test\nmy storm,weather,train\n"
    )
    evaluate.main(
        ["--model", place / "run", "--data", tmp_path / "x.csv", "--out", tmp_path / "found.json"]
    )
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == 2


def test_a_text_without_a_token_is_named_by_its_line(made, tmp_path):
    place, told = made
    lines = (place / "data.csv").read_text().splitlines()
    lines.insert(len(lines) - 1, "\u200b,garden,test")
    data = tmp_path / "x.csv"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    evaluated = ["--model", place / "run", "--data", data]
    for command, given in (
        ("train", [*told, "--data", data, "--out", tmp_path / "run"]),
        ("evaluate", evaluated),
    ):
        code, _, error, _ = forked(command, given)
        assert code == 2 and error.startswith(f"error: line {len(lines) - 1}: the text"), error
        assert "no token" in error and "remove it" in error and error.count("\n") == 1


def test_a_run_that_has_saved_nothing_blocks_no_other_settings(made, tmp_path):
    """It was refused in its first step: the remedy is another setting, with the same --out."""
    _, told = made
    out = tmp_path / "run"
    given = [*told, "--out", out]
    assert forked("train", given, step=1)[0] == -9
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == ["run.json"]
    code, _, error, _ = forked("train", [*given, "--batch-size", "4"], step=3)
    assert code == -9 and json.loads((out / "run.json").read_text())["settings"]["batch_size"] == 4
    assert (out / "state.safetensors").exists()
    code, _, error, _ = forked("train", given)
    assert code == 2 and "another batch_size" in error and "--overwrite" in error
