"""What a model remembers of its data, what it takes as texts, what predict says beside the answers.

A run reads the columns that it was trained on, in predict, evaluate and merge; other columns of the
input are kept; texts that were cut are told; numbers that are not finite are no answers.
"""
import csv
import json

import numpy as np
import pytest
import small
import torch
from conftest import refused

from minillmclf import evaluate, train
from minillmclf.predict import __main__ as predict, stream
from minillmclf.classify.classifier import Classifier
from minillmclf.models import initialise_weights

LABELS = list(small.TOPICS)
QUICK = small.flags(epochs=1, batch_size=8, lr=3e-3, max_length=16)


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return small.bert_folder(tmp_path_factory.mktemp("body"), layers=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory, body):
    """A folder with runs on the column `body` of two.csv, in which `text` says nothing: in full and
    by LoRA; and a run on pairs. Their labels are in the column `topic`."""
    folder = tmp_path_factory.mktemp("remembered")
    small.data_file(folder / "plain.csv")
    rows = list(csv.DictReader(open(folder / "plain.csv", newline="")))
    header = ["id", "text", "body", "other", "topic", "split", "label"]
    write_rows(folder / "two.csv", header, [[n, "new", row["text"], "rose", row["label"],
                                             row["split"], "x"] for n, row in enumerate(rows)])
    common = {"model": body, "data": folder / "two.csv", "label_column": "topic"}
    for name, more in {"full": {"text_column": "body"}, "pair": {"text_column": "body,other"},
                       "lora": {"text_column": "body", "method": "lora"}}.items():
        assert train.main([*small.flags(**common, **more, out=folder / name), *QUICK]) == 0
    return folder


def write_rows(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def model_of(body, folder, **how):
    """A saved classifier that answers differently to different texts."""
    model = Classifier.from_backbone(body, LABELS, **how)
    initialise_weights(model.head, seed=0, std=1.0)
    model.save(folder)
    return folder


# ------------------------------------------------------------------------------------------ columns

@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_run_reads_the_columns_it_was_trained_on(place, call, tmp_path, name):
    model = Classifier.load(place / name)
    assert model.reading == {"text_column": ["body"], "label_column": "topic", **{
        key: value for key, value in model.reading.items() if key == "quoting"}}
    given = ("--model", place / name, "--data", place / "two.csv")
    code, out, _ = call(evaluate, *given, "--out", tmp_path / "own.json")
    assert code == 0, out
    columns = ("--text-column", "body", "--label-column", "topic")
    call(evaluate, *given, *columns, "--out", tmp_path / "asked.json")
    own, asked = ((tmp_path / f"{n}.json").read_text() for n in ("own", "asked"))
    results = list(json.loads((place / name / "run.json").read_text())["results"].values())[-1]
    assert own == asked and json.loads(own)["accuracy"] == results["accuracy"]
    answers = [json.loads(line) for line in call(predict, *given)[1].splitlines()]
    rows = read_rows(place / "two.csv")
    expected = model.predict([row["body"] for row in rows])
    assert [list(row["probabilities"].values()) for row in answers] == [
        pytest.approx(p, abs=2e-6) for p in expected.tolist()]
    named = call(predict, *given, "--text-column", "text")[1].splitlines()
    assert len({str(json.loads(line)["probabilities"]) for line in named}) == 1
    assert len({str(row["probabilities"]) for row in answers}) > 1


def test_a_file_without_these_columns_is_an_error(place, call, tmp_path):
    plain = place / "plain.csv"                                     # text, label, split
    for command in (predict, evaluate):
        code, _, said = call(command, "--model", place / "full", "--data", plain)
        assert code == 2 and said.count("\n") == 1, said
        assert "'body'" in said and "--text-column" in said, said
    given = ("--model", place / "full", "--data", plain, "--text-column", "text")
    code, _, said = call(evaluate, *given)
    assert code == 2 and "'topic'" in said and "--label-column" in said, said
    assert call(evaluate, *given, "--label-column", "label")[0] == 0


def test_a_column_with_a_comma_in_its_name(place, call, tmp_path):
    data = write_rows(tmp_path / "c.csv", ["Well, now?", "b", "label"], [["a rose", "soup",
                                                                         "garden"]])
    for name, columns in {"full": "Well, now?", "pair": "b,Well, now?"}.items():
        for command in (predict, evaluate):
            given = ("--model", place / name, "--data", data, "--text-column", columns)
            code, _, said = call(command, *given, *(["--label-column", "label"]
                                                    if command is evaluate else []))
            assert code == 0, said


@pytest.mark.parametrize("name, columns, count", [("full", "body,other", 1), ("pair", "body", 2)])
def test_one_text_or_two_but_never_the_other(place, call, tmp_path, name, columns, count):
    data = write_rows(tmp_path / "p.csv", ["text_a", "text_b"], [["a rose", "soup"]])
    single = write_rows(tmp_path / "s.csv", ["text"], [["a rose"]])
    given = ("--model", place / name)
    for command in (predict, evaluate):
        said = call(command, *given, "--data", place / "two.csv", "--text-column", columns)[2]
        assert f"{count} text(s) a row" in said and said.startswith("error: --text-column"), said
    for file in (data, single):
        code, out, said = call(predict, *given, "--data", file)
        assert (code, out) == (2, "") and "'body'" in said, said
    texts = ["a rose", "--pair", "soup"] if count == 1 else ["a rose"]
    code, out, said = call(predict, *given, *texts)
    assert (code, out) == (2, "") and f"trained on {count} text(s) a row (body" in said, said
    model = Classifier.load(place / name)
    other = [("a", "b")] if count == 1 else ["a"]
    refused(lambda: model.predict(other), "text 1", f"{count} text(s)")
    assert model.predict(["a"] if count == 1 else [("a", "b")]).shape == (1, 3)
    assert call(predict, *given, "a rose", *(["--pair", "soup"] if count == 2 else []))[0] == 0


def test_the_usual_label_column_is_remembered(body, tmp_path, call):
    """`winner`, which is the label column only of a file without `label`."""
    rows = read_rows(small.data_file(tmp_path / "plain.csv"))
    data = write_rows(tmp_path / "w.csv", ["text", "winner", "split"], map(dict.values, rows))
    assert train.main([*small.flags(model=body, data=data, out=tmp_path / "run"), *QUICK]) == 0
    assert Classifier.load(tmp_path / "run").reading["label_column"] == "winner"
    both = write_rows(tmp_path / "both.csv", ["text", "label", "winner"], [
        [row["text"], "soup", row["label"]] for row in rows])
    assert call(evaluate, "--model", tmp_path / "run", "--data", both)[0] == 0


def test_a_model_without_a_memory_reads_as_before(body, tmp_path, call):
    model = model_of(body, tmp_path / "old")
    assert Classifier.load(model).reading is None
    assert "reading" not in json.loads((model / "config.json").read_text())["minillmclf"]
    data = write_rows(tmp_path / "pairs.csv", ["text_a", "text_b"], [["a rose", "soup"]])
    assert call(predict, "--model", model, "--data", data)[0] == 0


@pytest.mark.parametrize("reading", [
    5, [], {"text_column": "body"}, {"text_column": []}, {"label_column": "x"},
    {"text_column": [3]}, {"text_column": ["a"], "quoting": 1}])
def test_a_broken_memory_is_told(place, tmp_path, call, reading):
    import shutil
    bad = shutil.copytree(place / "full", tmp_path / "bad")
    config = json.loads((bad / "config.json").read_text())
    config["minillmclf"]["reading"] = reading
    (bad / "config.json").write_text(json.dumps(config))
    code, _, said = call(predict, "--model", bad, "a rose")
    assert (code, said.count("\n")) == ((2, 1) if reading else (0, 0)), said
    assert not reading or "config.json: reading" in said, said


def test_labels_of_a_file_to_predict_are_not_read(body, tmp_path, call):
    model = model_of(body, tmp_path / "m")
    cells, values = ["", "NaN", "null"], [None, True, "", 0.5, ["a"], {"a": 1}]
    data = write_rows(tmp_path / "d.csv", ["text", "label"], [["a rose", cell] for cell in cells])
    lines = tmp_path / "d.jsonl"
    lines.write_text("".join(json.dumps({"text": "a", "label": value}) + "\n" for value in values))
    found = read_rows(as_csv(call, tmp_path, model, data))
    assert [row["label"] for row in found] == cells
    assert {row["predicted"] for row in found} <= {*LABELS}
    code, out, said = call(predict, "--model", model, "--data", lines)
    assert code == 0, said
    assert [json.loads(line)["label"] for line in out.splitlines()] == values


# ------------------------------------------------------------------------------------ other columns

def as_csv(call, tmp_path, model, data, *more):
    out = tmp_path / "answers.csv"
    given = ("--model", model, "--data", data, "--out", out, "--overwrite", *more)
    code, _, said = call(predict, *given)
    assert code == 0, said
    return out


def test_other_columns_come_first_as_they_were(body, tmp_path, call):
    model = model_of(body, tmp_path / "m")
    cells = [["007", "=1+1", "=HYPERLINK(\"x\")", "+x"], ["", "-2, \"so\"", "@a\nb", " spaces "]]
    data = write_rows(tmp_path / "d.csv", ["id", "note", "text", "more"], cells)
    out = as_csv(call, tmp_path, model, data)
    header, *rows = csv.reader(open(out, newline="", encoding="utf-8"))
    assert header == ["id", "note", "more", "text", "label", *(f"p_{name}" for name in LABELS)]
    assert [row[:4] for row in rows] == [[a, b, d, c] for a, b, c, d in cells]
    p = Classifier.load(model).predict([row[2] for row in cells])
    assert [row[4] for row in rows] == [LABELS[i] for i in p.argmax(1)]
    lines = call(predict, "--model", model, "--data", data)[1].splitlines()
    found = [json.loads(line) for line in lines]
    assert [list(row.items())[:4] for row in found] == [
        [("id", a), ("note", b), ("more", d), ("text", c)] for a, b, c, d in cells]
    assert [row["label"] for row in found] == [row[4] for row in rows]


CLASHES = [                                               # header, text column, names of the answer
    (["text", "label", "p_garden"], "text",
     ["label", "p_garden", "text", "predicted", "p_garden_2"]),
    (["words", "text"], "words", ["text", "words", "label", "p_garden"]),
    (["line", "text", "label", "predicted"], "text",
     ["line", "label", "predicted", "text", "predicted_2", "p_garden"])]


@pytest.mark.parametrize("header, column, names", CLASHES)
def test_names_that_clash(body, tmp_path, call, header, column, names):
    model = model_of(body, tmp_path / "m")
    cells = ["a rose", "soup", "rain", "z"][:len(header)]
    data = write_rows(tmp_path / "d.csv", header, [cells] * 2)
    out = as_csv(call, tmp_path, model, data, "--text-column", column)
    header_out, row, _ = csv.reader(open(out, newline=""))
    assert header_out[:len(names)] == names and len(set(header_out)) == len(header_out)
    kept = dict(zip(header, cells))
    assert {name: value for name, value in zip(header_out, row) if name in kept} == kept
    again = as_csv(call, tmp_path / "..", model, out, "--text-column", names[names.index(column)])
    assert len(read_rows(again)) == 2, "answers can be answered again"


def test_json_keeps_its_types(body, tmp_path, call, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 2)
    model, data = model_of(body, tmp_path / "m"), tmp_path / "d.jsonl"
    rows = [{"id": 1, "text": "a rose", "tags": ["x"], "probabilities": 0.5},
            {"text": "soup", "id": None}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = call(predict, "--model", model, "--data", data)[1].splitlines()
    found = [json.loads(line) for line in lines]
    for row, answer in zip(rows, found):
        assert row.items() <= answer.items() and set(answer["probabilities_2"]) == set(LABELS)
    assert [(row["id"], row["tags"], row["probabilities"]) for row in read_rows(
        as_csv(call, tmp_path, model, data))] == [("1", '["x"]', "0.5"), ("", "", "")]
    with open(data, "a") as file:
        file.write('{"text": "rain", "late": 1}\n')
    assert "late" in call(predict, "--model", model, "--data", data)[1]
    code, _, said = call(predict, "--model", model, "--data", data, "--format", "csv")
    assert code == 2 and "'late' begins after row 2" in said and said.count("\n") == 1, said
    data.write_text(data.read_text().replace("late", "label"))
    assert "'label' begins after row 2" in call(predict, "--model", model, "--data", data)[2]


# -------------------------------------------------------------------------------------- texts cut

def test_texts_that_were_cut_are_told(body, tmp_path, call, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 2)
    model, long = model_of(body, tmp_path / "m", max_length=8), "rose soup rain " * 9
    data = write_rows(tmp_path / "d.csv", ["text"], [[long], ["a rose"], ["soup"], [long], [long]])
    out = tmp_path / "a.csv"
    code, _, said = call(predict, "--model", model, "--data", data, "--out", out)
    assert (code, said) == (0, f"5 answers in {out}\n"
                            "3 of 5 texts cut to 8 tokens (--show-cut tells which)\n")
    assert "cut" not in read_rows(out)[0]
    rows = read_rows(as_csv(call, tmp_path, model, data, "--show-cut"))
    assert [row["cut"] for row in rows] == ["true", "false", "false", "true", "true"]
    code, printed, said = call(predict, "--model", model, "--data", data, "--show-cut")
    cut = [json.loads(line)["cut"] for line in printed.splitlines()]
    assert cut == [True, False, False, True, True]
    assert said == "3 of 5 texts cut to 8 tokens\n"
    assert call(predict, "--model", model, "a rose")[2] == "", "nothing was cut, nothing is said"
    out.unlink()
    calls, real = [], predict.render_answers

    def stops(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)
    with monkeypatch.context() as patch:
        patch.setattr(predict, "render_answers", stops)
        assert call(predict, "--model", model, "--data", data, "--out", out)[0] == 130
    said = call(predict, "--model", model, "--data", data, "--out", out)[2]
    assert "going on after 2 rows" in said
    assert "3 of 5 texts cut" in said, "those of the first run count, too"


# --------------------------------------------------------------------- what is no list of texts

class Table(dict):
    columns = ["text"]


WRONG = ["refund", b"refund", None, 5, {"text": "a"}, {"a", "b"}, frozenset("a"), Table(text="a"),
         np.array("a"), bytearray(b"a")]


@pytest.mark.parametrize("wrong", WRONG, ids=[type(wrong).__name__ for wrong in WRONG])
def test_what_is_no_list_of_texts_is_refused(body, tmp_path, wrong):
    model = Classifier.load(model_of(body, tmp_path / "m"))
    for ask in (model.predict, model.encode, model.generate):
        refused(lambda: ask(wrong), "list of texts", type(wrong).__name__, "[text]")


def test_what_is_a_list_of_texts(body, tmp_path):
    model, texts = Classifier.load(model_of(body, tmp_path / "m")), ["a rose", "soup", "rain"]
    expected = model.predict(texts)
    for given in (tuple(texts), np.array(texts), (text for text in texts), {t: 1 for t in texts}):
        given = given.keys() if isinstance(given, dict) else given
        assert np.array_equal(model.predict(given), expected), type(given)
    assert model.predict([]).shape == (0, 3)
    for wrong in ([b"a"], [None], [1.0], [["a", 2]], np.array([b"a"]), [("a", "b", "c")]):
        refused(lambda: model.predict(wrong), "text 1: a text is a string")


def test_pandas_columns_are_texts_and_tables_are_none(body, tmp_path):
    pandas = pytest.importorskip("pandas")
    model, texts = Classifier.load(model_of(body, tmp_path / "m")), ["a rose", "soup", "rain"]
    frame = pandas.DataFrame({"text": texts})
    assert np.array_equal(model.predict(frame["text"]), model.predict(texts))
    refused(lambda: model.predict(frame), "DataFrame", "list(table['text'])")
    refused(lambda: model.predict(pandas.Series(["a", None])), "text 2")


def test_scores_are_of_rows(body, tmp_path):
    model = Classifier.load(model_of(body, tmp_path / "m"))
    for wrong in ("refund", ["a", "b"], model.encode(["a"]), None):
        refused(lambda: model.compute_logits(wrong), "model.encode(texts)[0]", "predict")


# -------------------------------------------------------------------------------- not finite

@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_answers_that_are_not_finite_are_an_error(body, tmp_path, call, several):
    model = Classifier.from_backbone(body, LABELS, multi_label=several)
    with torch.no_grad():
        model.head.dense.bias.fill_(9)                              # a text's vector is all ones
        model.head.out.weight.fill_(3e38)                           # finite; a sum of two is not
    model.save(tmp_path / "m")
    rows, out = [["a rose", "garden"], ["soup", "kitchen"]], tmp_path / "out.json"
    data = write_rows(tmp_path / "d.csv", ["text", "label"], rows)
    for command in (predict, evaluate):
        code, printed, said = call(command, "--model", tmp_path / "m", "--data", data, "--out", out)
        assert code == 2 and "not finite" in said and said.count("\n") == 1 and not printed, said
        assert not out.exists()
    refused(lambda: Classifier.load(tmp_path / "m").predict(["a"]), "text 1", "not finite")
