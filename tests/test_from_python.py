"""fine_tune: from Python the same run as by the command, on rows in memory as on a file of them."""
import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small
import torch

import minillmclf
from minillmclf import Classifier, InputError, evaluate, fine_tune, train
from minillmclf.cli.parser import run
from minillmclf.from_python import flag_value, table_from_memory

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"epochs": 2, "batch_size": 8, "lr": 3e-3}
SAME = ("model.safetensors", "config.json", "metrics.jsonl", "predictions.csv",
        "learned.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, data.jsonl with a column split, whole.jsonl without, pairs.jsonl, and `run`, a run
    on data.jsonl by the command."""
    folder = tmp_path_factory.mktemp("python")
    small.bert_folder(folder / "bert")
    small.data_file(folder / "data.csv")
    with open(folder / "data.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, lines in {"data": rows,
                        "whole": [{"text": r["text"], "label": r["label"]} for r in rows],
                        "pairs": [{"text_a": r["text"], "text_b": "a rose", "label": r["label"]}
                                  for r in rows]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines),
                                              encoding="utf-8")
    command(folder, "data", folder / "run")
    return folder


def command(place, name, out, **more):
    flags = small.flags(model=place / "bert", data=place / f"{name}.jsonl", out=out, **QUICK | more)
    assert train.main(list(map(str, flags))) == 0


def rows_of(place, name):
    return [json.loads(line)
            for line in (place / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_run(one, other):
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (json.loads((run / "run.json").read_text(encoding="utf-8"))
                     for run in (one, other))
    for record in (first, second):
        record["settings"] |= {"data": "", "out": ""}
        record["data"] |= {"path": "", "sha256": ""}
        record["doctor"]["name"] = record["timing"] = ""
    assert first == second


class Frame:
    """What fine_tune needs of a DataFrame, for machines without pandas: iterating gives names, a
    column is an array."""

    def __init__(self, columns):
        self.columns, self.values = np.array(list(columns), dtype=object), columns

    def __getitem__(self, name):
        return np.array(self.values[name], dtype=object)


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_values_that_no_json_can_hold_are_refused():
    loop = []
    loop.append(loop)
    for value in (10 ** 5000, loop):
        for row in (("a", value), {"text": "a", "label": "b", "more": value}):
            with pytest.raises(InputError, match="rows in memory, line 2: holds a number of thous"):
                table_from_memory([("a", "b"), row])


def test_a_path_is_what_lies_there_and_no_shipped_name(place, tmp_path, monkeypatch):
    shutil.copytree(place / "bert", tmp_path / "mini-bert")
    (tmp_path / "tickets").mkdir()
    shutil.copy(place / "whole.jsonl", tmp_path / "tickets" / "train.jsonl")
    monkeypatch.chdir(tmp_path)
    model = fine_tune(Path("mini-bert"), Path("tickets"), **QUICK)
    assert model.labels == list(small.TOPICS), "the bundled rows"
    assert model.backbone.width == fine_tune("./mini-bert", "./tickets", **QUICK).backbone.width
    assert model.backbone.width < 128, "the shipped model"


@pytest.mark.parametrize("kind", ["dicts", "columns", "frame", "DataFrame"])
def test_rows_in_memory_make_the_run_that_the_command_makes_of_a_file(place, tmp_path, kind):
    rows = rows_of(place, "data")
    data = rows if kind == "dicts" else columns(rows)
    if kind == "frame":
        data = Frame(data)
    elif kind == "DataFrame":
        data = pytest.importorskip("pandas").DataFrame(data)
    lines = []
    model = fine_tune(place / "bert", data, tmp_path / "run", lines.append, **QUICK)
    assert_same_run(place / "run", tmp_path / "run")
    assert lines == [json.loads(line)
                     for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    texts = ["a rose in the soil", "soup"]
    probabilities = model.predict(texts)
    assert (probabilities == Classifier.load(place / "run").predict(texts)).all()
    assert model.answers(probabilities) == [model.labels[best] for best in probabilities.argmax(1)]


def test_a_list_without_splits_is_split_as_its_file_is(place, tmp_path):
    command(place, "whole", tmp_path / "file", seed=3)
    data = [(row["text"], row["label"]) for row in rows_of(place, "whole")]
    fine_tune(place / "bert", data, tmp_path / "list", seed=3, **QUICK)
    assert_same_run(tmp_path / "file", tmp_path / "list")


def test_pairs_and_a_path_are_as_by_the_command(place, tmp_path):
    command(place, "pairs", tmp_path / "file", method="lora", rank=2)
    data = [((row["text_a"], row["text_b"]), row["label"]) for row in rows_of(place, "pairs")]
    model = fine_tune(str(place / "bert"), data, tmp_path / "list", method="lora",
                      rank=np.int64(2), **QUICK)
    fine_tune(place / "bert", place / "pairs.jsonl", tmp_path / "path",
              config=tmp_path / "file" / "run.json")
    for out in ("list", "path"):
        for name in ("metrics.jsonl", "predictions.csv", "adapter/adapter_model.safetensors"):
            expected = (tmp_path / "file" / name).read_bytes()
            assert (tmp_path / out / name).read_bytes() == expected, (out, name)
    assert model.predict([("soup", "a rose")]).shape == (1, 3)


def test_without_out_nothing_is_left_and_nothing_printed(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    model = fine_tune(place / "bert", rows_of(place, "data"), method="lora", **QUICK)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")
    before = model.predict(["soup"])
    model.save(tmp_path / "later")
    assert (Classifier.load(tmp_path / "later").predict(["soup"]) == before).all()
    said = []
    fine_tune(place / "bert", rows_of(place, "data"), say=said.append, **QUICK)
    text = "\n".join(said)
    assert capsys.readouterr() == ("", "") and "rows in memory" in text and "macro F1" in text
    assert "saved in" not in text, "where it was is gone"
    assert re.search(
        r"bert: 37 tensors loaded, 4 new; ([\d,]+) of \1 parameters trainable; learning rate 0.003 "
        r"\(0.0003 is usual for full at width 32\)$", text, re.M), text


def test_a_stopped_run_goes_on_and_a_finished_one_is_loaded(place, tmp_path, capsys):
    data, seen = rows_of(place, "data"), []

    def fail(line):
        raise RuntimeError("asked to")
    with pytest.raises(RuntimeError, match="asked to"):
        fine_tune(place / "bert", data, tmp_path / "run", fail, save_every=1, **QUICK)
    with pytest.raises(InputError, match="holds a run with another sha256 of the data"):
        fine_tune(place / "bert", data[:-1], tmp_path / "run", save_every=1, **QUICK)
    fine_tune(place / "bert", data, tmp_path / "run", **QUICK)
    assert ((tmp_path / "run" / "model.safetensors").read_bytes()
            == (place / "run" / "model.safetensors").read_bytes())
    model = fine_tune(place / "bert", data, tmp_path / "run", seen.append, **QUICK)
    assert (seen == []
            and (model.predict(["soup"]) == Classifier.load(place / "run").predict(["soup"])).all())
    fine_tune(place / "bert", data[:-1], tmp_path / "run", seen.append, overwrite=True, **QUICK)
    assert len(seen) == 2
    with pytest.raises(SystemExit) as end:
        run(lambda: evaluate.main(["--model", str(tmp_path / "run")]))
    assert end.value.code == 2 and "it has not learned with --data" in capsys.readouterr().err


def test_ctrl_c_saves_the_state_and_is_heard(place, tmp_path):
    import signal
    data = rows_of(place, "data")
    for out, words in ((tmp_path / "run", "saved in .*The same call goes on"),
                       (None, "nothing is kept")):
        with pytest.raises(KeyboardInterrupt, match=words):
            fine_tune(place / "bert", data, out,
                      lambda line: os.kill(os.getpid(), signal.SIGINT), **QUICK)
    fine_tune(place / "bert", data, tmp_path / "run", **QUICK)
    assert ((tmp_path / "run" / "model.safetensors").read_bytes()
            == (place / "run" / "model.safetensors").read_bytes())


def test_a_thread_may_train(place):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(fine_tune(place / "bert", rows_of(place, "data"), **QUICK)))
    thread.start()
    thread.join()
    assert (found[0].predict(["soup"]) == Classifier.load(place / "run").predict(["soup"])).all()


def test_threads_train_in_turn_and_the_generator_stays(place):
    """Dropout draws from the one generator of the process: seeded by each step, and put back."""
    def trained():
        return fine_tune(place / "bert", rows_of(place, "data"), **QUICK).predict(["hot soup"])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    alone = trained()
    assert torch.equal(torch.rand(3), expected), "what is drawn outside is as without fine_tune"
    with ThreadPoolExecutor(2) as pool:
        found = [job.result() for job in [pool.submit(trained) for _ in range(2)]]
    assert all((each == alone).all() for each in found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(place, mode):
    with mode():
        inside = fine_tune(place / "bert", rows_of(place, "data"), **QUICK).predict(["hot soup"])
    assert (inside == Classifier.load(place / "run").predict(["hot soup"])).all()


@contextlib.contextmanager
def in_bf16():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == torch.bfloat16, "the caller's dtype is put back"
        torch.set_default_dtype(before)


@pytest.mark.parametrize("mode", [lambda: torch.autocast("cpu", torch.bfloat16), in_bf16])
def test_it_trains_in_fp32_where_the_caller_computes_in_less(place, mode):
    with mode():
        inside = fine_tune(place / "bert", rows_of(place, "data"), **QUICK)
        assert torch.is_autocast_enabled("cpu") == (mode is not in_bf16), "as it was"
    found, expected = inside.state_dict(), Classifier.load(place / "run").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_rows_may_be_an_array():
    rows = [("hot soup", "kitchen"), ("rain", "weather")]
    assert table_from_memory(np.array(rows)).rows == table_from_memory(rows).rows


@pytest.mark.parametrize("data, words", [
    ([("a", float("nan"))], "rows in memory, line 1: column 'label' must hold a label, found NaN"),
    ([("a", "x"), ("b", None)], "line 2: column 'label' must hold a label, found null"),
    ([("a", object())], "line 1: column 'label' must hold a label"),
    ([("a", "x"), (1.5, "x")], "line 2: should be .text, label.*, is .1.5, 'x'."),
    (["ab"], "line 1: should be .text, label.*, is 'ab'"),
    ([(tuple("abcd"), "x")], "line 1: should be"), ([], "there are none"),
    ({"text": ["a"], "label": []},
     "columns should be lists of one length, have .*'text': 1, 'label': 0"),
    ({"text": "abc", "label": "xyz"}, "columns should be lists of one length, have .*'text': None"),
    ({"text": ["a"]},
     "rows in memory: no column 'label' in .'text'.: name one with --label-column$"),
    ({"text": ["a", " "], "label": [1, 0]},
     "rows in memory: column 'text' is empty in 1 row.s.*line 2"),
    ([("a", "x"), ("b", "x")], "train has one class only|both are needed"),
    (7, "data should be a path, a list .* is a int"), ({("a", "b")}, "data should be .* is a set"),
    ([{("a",): 1}], "no column 'text' in"), ("nowhere.csv", "nowhere.csv': no such file"),
])
def test_wrong_data_are_refused_in_one_line(data, words):
    with pytest.raises(InputError, match=words) as error:
        fine_tune("mini-bert", data)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("settings, words", [
    ({"num_epochs": 1}, "'num_epochs'; did you mean epochs"),
    ({"output_dir": "x"}, "did you mean out"),
    ({"learning_rate": 1e-3, "lr": 1e-3}, "lr is enough"),
    ({"batchsize": 8}, "did you mean batch_size"),
    ({"epochs": 0}, "--epochs 0: should be 1 or more"),
    ({"epochs": "3"}, "epochs should be int, is '3'"), ({"method": "lorra"}, "did you mean lora"),
    ({"rank": 4}, "--rank goes with --method lora"),
    ({"model": "nothing"}, "nothing: no such model folder"),
])
def test_wrong_settings_are_refused_with_what_was_meant(settings, words):
    with pytest.raises(InputError, match=words):
        fine_tune(**settings)


def test_values_of_python_stand_for_what_a_flag_takes():
    values = (True, False, ["a", "b"], {"a": "ä"}, np.float64(0.5), Path("x"), 3, "s")
    assert [flag_value(value) for value in values] == [
        "on", "off", "a,b", '{"a": "\\u00e4"}', 0.5, "x", 3, "s"]
    rows = table_from_memory(
        {"text": ["a", "b"], "label": np.array([1, 0]), "when": [object, {1}]}).rows
    assert [(line, row["text"], row["label"], type(row["label"])) for line, row in rows] == [
        (1, "a", 1, int), (2, "b", 0, int)]
    assert table_from_memory([("a", ("x", "y"))]).rows == [(1, {"text": "a", "label": ["x", "y"]})]
    same = [table_from_memory(data).sha256
            for data in ([("a", "x")], {"text": ["a"], "label": ["x"]}, iter([("a", "x")]))]
    assert len(set(same)) == 1 and table_from_memory([("a", "y")]).sha256 != same[0]


def test_multi_label_rows(place):
    data = [(row["text"], [row["label"]] * (i % 4 > 0))
            for i, row in enumerate(rows_of(place, "data"))]
    model = fine_tune(place / "bert", data, multi_label=True, **QUICK)
    assert model.task.MULTI_LABEL and model.labels == list(small.TOPICS)


def test_fine_tune_stays_a_function_whatever_is_imported_first():
    lines = ("import minillmclf.from_python, minillmclf, sys; a = minillmclf.fine_tune; "
             "from minillmclf import fine_tune; "
             "print(callable(a), a is fine_tune, 'torch' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True,
                           check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert found.stdout.split() == ["True", "True", "False"] and "fine_tune" in dir(minillmclf)


def test_the_lines_of_the_readme_run(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## From Python\n")[2].partition("\n## ")[0]
    blocks, out = re.findall(r"^```python\n(.*?)^```", section, re.S | re.M), io.StringIO()
    monkeypatch.chdir(tmp_path)
    names = {}
    with contextlib.redirect_stdout(out):
        for block in blocks:
            exec(block.partition("\nfrom transformers")[0], names)
    *epochs, last = out.getvalue().splitlines()
    assert ([line.split()[0] for line in epochs] == ["1", "2", "3"]
            and names["probabilities"].shape == (1, 2))
    assert last in ("['delivery', 'refund'] ['delivery']", "['delivery', 'refund'] ['refund']")
    assert (tmp_path / "runs" / "mine" / "run.json").exists() and len(blocks) == 2
    transformers = pytest.importorskip("transformers")
    run, texts = tmp_path / "runs" / "mine", ["it never came", "pay"]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(run)(texts, padding=True,
                                                             return_tensors="pt")
    with torch.no_grad():
        probabilities = theirs(**tokens).logits.softmax(-1).numpy()
    assert abs(probabilities - Classifier.load(run).predict(texts)).max() < 1e-5
