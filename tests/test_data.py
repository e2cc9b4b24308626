"""Labelled data: a refusal names file, line and remedy; splits are deterministic, leak nothing."""
import codecs
import csv
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minillmclf.errors import InputError
from minillmclf.text import data, doctor
from minillmclf.text.data import Dataset, load_data
from minillmclf.text.examples import Example, read_examples

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SMALL = "text,label,split\none,a,train\ntwo,b,train\nthree,a,dev\nfour,b,test\n"


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def write_rows(path: Path, rows, header=("text", "label")) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
            [header, *rows])
    return path


def texts_of(examples):
    return {example.texts for example in examples}


# ---- reading one file

@pytest.mark.parametrize("name, content", [
    ("f.csv", 'text,label\nhello,a\n"x, y",b\n'),
    ("f.tsv", "text\tlabel\nhello\ta\nx, y\tb\n"),
    ("f.jsonl", '{"text": "hello", "label": "a"}\n{"label": "b", "text": "x, y"}\n'),
    ("F.CSV", 'text,label\r\nhello,a\r\n"x, y",b'),
    ("order.csv", 'label,text\na,hello\nb,"x, y"\n'),
    ("spaces.csv", 'text, label\nhello,a\n"x, y", b\n')])
def test_formats_agree(tmp_path, name, content):
    examples = read_examples(write(tmp_path / name, content))
    assert [(e.texts, e.label) for e in examples] == [(("hello",), "a"), (("x, y",), "b")], (
        f"{name} is read otherwise")


def test_example_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example(("a",), "b", 2).label = "c"


@pytest.mark.parametrize("name", ["f.txt", "f.json", "f.xlsx", "f"])
def test_unknown_suffix(tmp_path, name):
    path = write(tmp_path / name, "text,label\nx,a\n")
    refused(lambda: read_examples(path), path, ".csv", ".tsv", ".jsonl")
    refused(lambda: load_data(path), path, ".csv", ".tsv", ".jsonl")


def test_file_that_is_not_there(tmp_path):
    refused(lambda: read_examples(tmp_path / "none.csv"), "none.csv", "check the path")
    refused(lambda: load_data(tmp_path / "none.csv"), "none.csv", "check the path")
    refused(lambda: load_data(tmp_path / "no_folder"), "no_folder", "check the path")
    refused(lambda: load_data(""), "check the path")


def test_byte_order_mark(tmp_path):
    for name, content in (("f.csv", "text,label\nx,a\n"),
                          ("f.jsonl", '{"text": "x", "label": "a"}\n')):
        path = write(tmp_path / name, codecs.BOM_UTF8 + content.encode())
        assert read_examples(path)[0].texts == ("x",), (
            f"a byte order mark hides the first column of {name}")


def test_not_utf8(tmp_path):
    path = write(tmp_path / "latin.csv", b"text,label\nfine,a\ncaf\xe9,b\n")
    refused(lambda: read_examples(path), path, "line 3", f"offset {path.read_bytes().index(0xe9)}:",
            "iconv -f WINDOWS-1252")
    path = write(tmp_path / "wide.csv", "text,label\nx,a\n".encode("utf-16"))
    refused(lambda: read_examples(path), path, "line 1", "offset 0", "iconv -f UTF-16 ")
    for name in ("utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        path = write(tmp_path / "wide.csv", "text,label\nx,a\n".encode(name))
        code = name.upper().replace("-LE", "LE").replace("-BE", "BE")
        refused(lambda: read_examples(path), path, "line 1", "offset 0", f"iconv -f {code} ")


@pytest.mark.parametrize("name, content, line", [
    ("f.csv", "text,label\nx,a\na\0b,a\n", 3), ("label.csv", "text,label\nx,a\0\n", 2),
    ("f.jsonl", '{"text": "x", "label": "a"}\n{"text": "a\\u0000b", "label": "a"}\n', 2),
    ("raw.jsonl", '{"text": "x", "label": "a"}\n{"text": "a\0b", "label": "a"}\n', 2)])
def test_null_byte(tmp_path, name, content, line):
    path = write(tmp_path / name, content)
    refused(lambda: read_examples(path), path, f"line {line}")


def test_lone_surrogate(tmp_path):
    path = write(tmp_path / "f.jsonl",
                 '{"text": "\\ud83d\\ude00", "label": "a"}\n{"text": "\\ud83d", "label": "a"}\n')
    refused(lambda: read_examples(path), path, "line 2", "surrogate", "remove")


@pytest.mark.parametrize("name, content", [
    ("e.csv", ""), ("e.tsv", "\n\n"), ("e.jsonl", "\n"), ("bom.csv", codecs.BOM_UTF8),
    ("h.csv", "text,label\n")])
def test_no_rows(tmp_path, name, content):
    path = write(tmp_path / name, content)
    refused(lambda: read_examples(path), path,
            "no rows" if name == "h.csv" else "empty", "add rows")


@pytest.mark.parametrize("content, line, fields", [
    ("text,label\nx,a\ny\n", 3, "1 fields"), ("text,label\nfine, but unquoted,a\n", 2, "3 fields"),
    ('text,label\n"two\nlines",a\n\ny,b,c\n', 5, "3 fields")])
def test_ragged_row(tmp_path, content, line, fields):
    path = write(tmp_path / "f.csv", content)
    refused(lambda: read_examples(path), path, f"line {line}:", fields, "header has 2",
            "double quotes")


def test_another_separator_than_a_comma_in_the_header(tmp_path):
    path = write(tmp_path / "f.csv", "text;label;note, more\nx;a;b\n")
    refused(lambda: read_examples(path), "line 2: 1 fields", "header has 2", "line sep=; above")
    path = write(tmp_path / "g.csv", "text;label;note, more\nx, or y;a;b\n")
    refused(lambda: read_examples(path), "no column 'text'", "line sep=; above")
    path = write(tmp_path / "g.csv", "sep=;\ntext;label;note, more\nx, or y;a;b\n")
    assert read_examples(path)[0].texts == ("x, or y",)


@pytest.mark.parametrize("content, line", [
    ('text,label\nx,a\n"never closed,b\ny,a\n', 3), ('text,label\n"He said" so,a\n', 2)])
def test_broken_quoting_swallows_no_rows(tmp_path, content, line):
    path = write(tmp_path / "f.csv", content)
    refused(lambda: read_examples(path), path, f"line {line}:", "quot", "twice")


def test_column_named_twice(tmp_path):
    path = write(tmp_path / "f.csv", "text,label,text\nx,a,y\n")
    refused(lambda: read_examples(path), path, "'text' twice", "rename")


@pytest.mark.parametrize("bad", ['{"text": "x", "label"', "not json", "[1, 2]", '"a string"', "7",
                                 "null", pytest.param("[" * 100000, id="deep")])
def test_malformed_json_line(tmp_path, bad):
    path = write(tmp_path / "f.jsonl", '{"text": "x", "label": "a"}\n\n' + bad + "\n")
    refused(lambda: read_examples(path), path, "line 3:", "one per line")


def test_long_field(tmp_path):
    limit = csv.field_size_limit(131072)
    try:
        text = "word " * 100_000
        assert read_examples(write_rows(tmp_path / "f.csv", [(text, "a")]))[0].texts == (text,)
    finally:
        csv.field_size_limit(limit)


def test_row_is_the_line_where_the_record_starts(tmp_path):
    path = write(tmp_path / "f.csv",
                 'text,label\r\n"two\r\nlines",a\r\n\r\nb,b\r\n"x\n\ny",c\nlast,d')
    assert [e.row for e in read_examples(path)] == [2, 5, 6, 9], "row is not the line in an editor"
    path = write(tmp_path / "f.jsonl",
                 '{"text": "a\u2028b", "label": "a"}\n\n{"text": "c", "label": "b"}\n')
    found = [(e.row, e.texts[0]) for e in read_examples(path)]
    assert found == [(1, "a\u2028b"), (3, "c")], "U+2028 ends no JSON line"


# ---- columns

def test_pair_and_named_columns(tmp_path):
    path = write(tmp_path / "f.csv", "text_a,text_b,label,extra\n1,2,a,3\n")
    assert read_examples(path) == [Example(("1", "2"), "a", 2)], (
        "text_a and text_b are the default of a pair")
    for columns in ("extra, text_b", ["extra", "text_b"], ("extra", "text_b")):
        assert read_examples(path, columns)[0].texts == ("3", "2"), (
            f"{columns!r} should be read in that order")
    assert read_examples(path, "text_a,text_b,label", "extra")[0] == Example(
        ("1", "2", "a"), "3", 2)


def test_missing_column(tmp_path):
    path = write(tmp_path / "f.csv", "sentence,stars\nx,a\n")
    refused(lambda: read_examples(path), path, "'text'", "'sentence'", "'stars'", "--text-column")
    refused(lambda: read_examples(path, "sentence"), path, "'label'", "'sentence'", "'stars'",
            "--label-column")
    refused(lambda: read_examples(path, "sentence,title", "stars"), path, "'title'", "'stars'",
            "--text-column")
    refused(lambda: load_data(path, "sentence"), path, "'label'", "'stars'", "--label-column")
    path = write(tmp_path / "half.csv", "text_a,label\nx,a\n")
    refused(lambda: read_examples(path), path, "'text_b'", "--text-column")
    path = write(tmp_path / "f.jsonl", '{"text": "x", "label": "a"}\n{"label": "a"}\n')
    refused(lambda: read_examples(path), path, "line 2", "'text'", "null")


def test_a_name_with_commas_or_blanks(tmp_path):
    path = write(tmp_path / "f.csv", '"Well, in short?",b,c,"x, y"\nw,b,c,p\n')
    for columns in ("Well, in short?", ["Well, in short?"], "b, c", "c,Well, in short?, b"):
        texts = read_examples(path, columns, "x, y")[0].texts
        assert "".join(texts) == {"b": "bc", "c": "cwb"}.get(columns[0], "w"), f"{columns!r}"
    refused(lambda: read_examples(path, "Well, in,b", "x, y"), "no column 'Well'", "name one with")
    refused(lambda: load_data(path, "b", "x, y", multi_label=True), "'x, y'", "rename it")
    path = write(tmp_path / "f.jsonl", '{" text": "x", "label": "a"}\n')
    refused(lambda: read_examples(path), "--text-column ' text'")
    assert read_examples(path, " text")[0].texts == ("x",)


@pytest.mark.parametrize("columns", ["", (), "text,text", "text,label", ","])
def test_senseless_text_columns(tmp_path, columns):
    refused(lambda: read_examples(write(tmp_path / "f.csv", SMALL), columns), "--text-column")


def test_labels_are_optional_for_prediction_only(tmp_path):
    path = write(tmp_path / "f.csv", "text\nx\n\ny\n")
    assert read_examples(path, need_labels=False) == [Example(("x",), None, 2),
                                                      Example(("y",), None, 4)]
    assert read_examples(path, label_column="stars", need_labels=False)[0].label is None
    refused(lambda: read_examples(path), path, "'label'", "--label-column")
    path = write(tmp_path / "labelled.csv", "text,label\nx,a\n")
    assert read_examples(path, need_labels=False)[0].label == "a", "labels that are there are read"
    path = write(tmp_path / "gap.csv", "text,label\nx,a\ny,\n")
    assert [e.label for e in read_examples(path, need_labels=False)] == ["a", None], (
        "an empty label is no fault in prediction")


# ---- labels

@pytest.mark.parametrize("value, name", [
    ("1", "1"), ("1.0", "1"), ("-3", "-3"), ("0", "0"),
    ('"a"', "a"), ('" a "', "a"), ('"1.0"', "1.0"), ('"none"', "none")])
def test_label_names_in_json(tmp_path, value, name):
    path = write(tmp_path / "f.jsonl", f'{{"text": "x", "label": {value}}}\n')
    assert read_examples(path)[0].label == name, f"the label {value} should be named {name!r}"


def test_numbers_in_csv_are_names(tmp_path):
    path = write(tmp_path / "f.csv", "text,label\nx,1\ny,01\nz, 1 \n")
    assert [e.label for e in read_examples(path)] == ["1", "01", "1"], (
        "outer spaces are no part of a name; zeros are")


@pytest.mark.parametrize("value", [
    "null", "NaN", "Infinity", "1e999", '""', '"  "', '"nan"', '["a"]', "{}"])
def test_what_is_no_label_in_json(tmp_path, value):
    path = write(tmp_path / "f.jsonl",
                 f'{{"text": "x", "label": "a"}}\n{{"text": "y", "label": {value}}}\n')
    refused(lambda: read_examples(path), path, "line 2", "'label'", "write one name")


@pytest.mark.parametrize("value", ["", " ", "NaN", "nan", "null"])
def test_what_is_no_label_in_csv(tmp_path, value):
    path = write(tmp_path / "f.csv", f"text,label\nx,a\ny,{value}\n")
    refused(lambda: load_data(path), path, "line 3", "'label'", "write one name", "remove the row")


def test_json_text_must_be_text(tmp_path):
    for value in ("null", "3", "true", '["x"]'):
        path = write(tmp_path / "f.jsonl", f'{{"text": {value}, "label": "a"}}\n')
        refused(lambda: read_examples(path), path, "line 1", "'text'", "write a string")


def test_natural_order():
    assert data.natural_order({"10", "b", "2", "A", "C", "-1", "1.5"}) == ["-1", "1.5", "2", "10",
                                                                           "A", "b", "C"]
    assert data.natural_order(["b", "B", "a"]) == data.natural_order(["B", "a", "b"]) == [
        "a", "B", "b"]


def test_label_order_does_not_follow_the_file(tmp_path):
    rows = [(f"text {n}", str(n), "train") for n in (10, 9, 2, 1)] + [("held out", "10", "dev")]
    for order in (rows, rows[::-1]):
        found = load_data(write_rows(tmp_path / "f.csv", order, ("text", "label", "split"))).labels
        assert found == ["1", "2", "9", "10"], "labels sort as strings, or in the order of the file"


# ---- empty texts

def test_empty_text(tmp_path):
    path = write(tmp_path / "f.csv",
                 "text,label,split\n,a,train\nx,a,train\n \t,b,test\ny,b,train\nz,a,dev\n")
    assert read_examples(path)[0].texts == ("",), "read_examples allows an empty text"
    refused(lambda: load_data(path), path, "'text'", "2 row(s)", "line 2, 4)", "remove or fill")
    path = write_rows(tmp_path / "pair.csv", [("x", "", "a")] * 12, ("text_a", "text_b", "label"))
    refused(lambda: load_data(path), path, "'text_b'", "12 row(s)", "line 2, 3,", "11, ...")


# ---- splits by column and by folder

def test_split_column(tmp_path):
    for dev in ("dev", "validation", "valid", " Dev "):
        dataset = load_data(write(tmp_path / "f.csv", SMALL.replace("dev", dev)))
        assert (len(dataset.train), len(dataset.dev), len(dataset.test)) == (2, 1, 1), (
            f"{dev!r} should mean dev")
    assert dataset.name == "f" and dataset.columns == ("text",) and dataset.labels == ["a", "b"]
    raw = (tmp_path / "f.csv").read_bytes()
    assert dataset.source["split"] == "column" and dataset.source["path"] == str(tmp_path / "f.csv")
    assert dataset.source["sha256"] == {"f.csv": hashlib.sha256(raw).hexdigest()}
    json.dumps(dataset.source)


def test_split_column_faults(tmp_path):
    path = write(tmp_path / "f.csv", SMALL.replace("dev", "later"))
    refused(lambda: load_data(path), path, "line 4", "'later'", "train, dev")
    path = write(tmp_path / "g.csv", SMALL.replace("train", "test"))
    refused(lambda: load_data(path), path, "0 train")
    path = write(tmp_path / "g.jsonl",
                 '{"text": "x", "label": "a", "split": "train"}\n{"text": "y", "label": "b"}\n')
    refused(lambda: load_data(path), path, "line 2", "'split'", "None")


def test_missing_dev_is_carved_from_train_never_from_test(tmp_path):
    rows = [(f"train text {i}", "ab"[i % 2], "train") for i in range(40)]
    tests = [(f"test text {i}", "ab"[i % 2], "test") for i in range(40)]
    by_column = load_data(write_rows(tmp_path / "f.csv", rows + tests, ("text", "label", "split")))
    (tmp_path / "d").mkdir()
    write_rows(tmp_path / "d" / "train.csv", [row[:2] for row in rows])
    write_rows(tmp_path / "d" / "test.csv", [row[:2] for row in tests])
    for dataset in (by_column, load_data(tmp_path / "d")):
        assert len(dataset.test) == 40, "rows of test went elsewhere"
        assert len(dataset.dev) == 4 and Counter(e.label for e in dataset.dev) == {"a": 2, "b": 2}
        assert texts_of(dataset.train) | texts_of(dataset.dev) == {(row[0],) for row in rows}, (
            "train rows got lost")
        assert not texts_of(dataset.train) & texts_of(dataset.dev), "a dev text stands in train too"
        assert dataset.source["dev_from_train"]


@pytest.mark.parametrize("dev", ["dev.csv", "validation.csv", "valid.jsonl"])
def test_folder(tmp_path, dev):
    write(tmp_path / "set.v1" / "train.tsv", "text\tlabel\none\tb\ntwo\ta\n")
    write(tmp_path / "set.v1" / dev,
          '{"text": "x", "label": "a"}' if dev.endswith("l") else "text,label\nx,a\n")
    write(tmp_path / "set.v1" / "train_meta.csv", "other\n1\n")
    dataset = load_data(tmp_path / "set.v1")
    assert ((len(dataset.train), len(dataset.dev), dataset.test) == (2, 1, [])
            and dataset.name == "set.v1")
    assert (dataset.source["split"] == "files"
            and set(dataset.source["sha256"]) == {"train.tsv", dev})
    assert not dataset.source["dev_from_train"]


def test_folder_faults(tmp_path):
    write(tmp_path / "test.csv", "text,label\nx,a\n")
    refused(lambda: load_data(tmp_path), tmp_path, "train.csv", "train.jsonl")
    write(tmp_path / "train.csv", "text,label\nx,a\ny,b\n")
    write(tmp_path / "train.tsv", "text\tlabel\nx\ta\n")
    refused(lambda: load_data(tmp_path), tmp_path, "train.csv and train.tsv", "remove one")
    (tmp_path / "train.tsv").unlink()
    write(tmp_path / "dev.csv", "text,label\nz,a\n")
    write(tmp_path / "validation.csv", "text,label\nz,a\n")
    refused(lambda: load_data(tmp_path), "dev.csv and validation.csv", "remove one")
    (tmp_path / "validation.csv").unlink()
    write(tmp_path / "test.csv", "text_a,text_b,label\nx,y,a\n")
    refused(lambda: load_data(tmp_path), tmp_path / "test.csv", "no column 'text'", "'text_b'")
    write(tmp_path / "test.csv", "text,label\nx,a\n")
    write(tmp_path / "dev.csv", "text_a,text_b,label\nx,y,a\n")
    refused(lambda: load_data(tmp_path), tmp_path / "dev.csv", "no column 'text'", "'text_b'")
    write(tmp_path / "dev.csv", "text,label\nx,a\n")
    write(tmp_path / "test.csv", "text,label,split\nx,a,test\ny,b,train\n")
    refused(lambda: load_data(tmp_path), tmp_path / "test.csv", "line 3", "'train'", "write test")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_label_that_train_has_not(tmp_path, split):
    rows = [("1", "a", "train"), ("2", "b", "train"), ("3", "a", "dev"), ("4", "Spam", split)]
    path = write_rows(tmp_path / "f.csv", rows, ("text", "label", "split"))
    refused(lambda: load_data(path), path, "line 5", "'Spam'", split, "'a', 'b'", "add train rows")
    for name in ("train", "dev", "test"):
        here = [row[:2] for row in rows if row[2] == name] or [("5", "b")]
        write_rows(tmp_path / f"{name}.csv", here)
    (tmp_path / "f.csv").unlink()
    refused(lambda: load_data(tmp_path), tmp_path / f"{split}.csv",
            f"line {3 if split == 'dev' else 2}", "'Spam'")


def test_many_known_labels_are_cut_short(tmp_path):
    rows = [(f"t{i}", f"c{i}", "train") for i in range(77)] + [("x", "c0", "dev"),
                                                               ("y", "new", "test")]
    path = write_rows(tmp_path / "f.csv", rows, ("text", "label", "split"))
    refused(lambda: load_data(path), "line 80", "'new'", "and 57 more")


def test_one_class_only(tmp_path):
    path = write_rows(tmp_path / "f.csv", [(f"t{i}", "a") for i in range(20)])
    refused(lambda: load_data(path), path, "one class only", "'a'", "add rows")


def test_too_few_rows_to_hold_out(tmp_path):
    path = write(tmp_path / "f.csv", "text,label\nx,a\ny,b\n")
    refused(lambda: load_data(path), path, "2 train and 0 dev", "add rows")


# ---- the random split

def some_rows(seed, sizes):
    rows = [(f"{label} text {i}", label) for label, size in sizes.items() for i in range(size)]
    random.Random(seed).shuffle(rows)
    return rows


def test_random_split_does_not_depend_on_the_order_of_rows(tmp_path):
    sizes = {"a": 100, "b": 50, "c": 3}
    found = []
    for shuffle in (1, 2):
        dataset = load_data(
            write_rows(tmp_path / f"f{shuffle}.csv", some_rows(shuffle, sizes)), seed=7)
        found.append([texts_of(examples)
                      for examples in (dataset.train, dataset.dev, dataset.test)])
        assert [e.row for e in dataset.train] == sorted(e.row for e in dataset.train), (
            "a split keeps the file's order")
    assert found[0] == found[1], "the split depends on the order of the rows"
    assert dataset.source["split"] == "random" and dataset.source["seed"] == 7
    other = load_data(tmp_path / "f1.csv", seed=8)
    assert texts_of(other.test) != found[0][2], "the seed plays no part"
    again = load_data(tmp_path / "f1.csv", seed=7)
    assert texts_of(again.test) == found[0][2]


def test_random_split_is_the_same_on_every_machine_and_run(tmp_path):
    path = write_rows(tmp_path / "f.csv", [(f"t{i}", "ab"[i % 2]) for i in range(30)])
    code = ("from minillmclf.text.data import load_data as load; "
            f"print([e.texts[0] for e in load({str(path)!r}).test])")
    found = {subprocess.run([sys.executable, "-c", code], cwd=ROOT,
                            env=os.environ | {"PYTHONHASHSEED": seed}, text=True,
                            capture_output=True, check=True).stdout.strip() for seed in ("1", "2")}
    by_hash = {label: sorted((f"t{i}" for i in range(start, 30, 2)),
                             key=lambda text: hashlib.sha256(f'[0, "{text}"]'.encode()).hexdigest())
               for start, label in enumerate("ab")}
    expected = [f"t{i}" for i in range(30) if f"t{i}" in by_hash["a"][2:4] + by_hash["b"][2:4]]
    assert found == {str(expected)}, "the split does not follow from seed and texts alone"


def test_random_split_is_stratified(tmp_path):
    sizes = {"a": 200, "b": 100, "c": 10, "d": 3, "e": 2, "f": 1}
    dataset = load_data(write_rows(tmp_path / "f.csv", some_rows(0, sizes)))
    counts = [Counter(e.label for e in examples)
              for examples in (dataset.train, dataset.dev, dataset.test)]
    assert counts[0] == {"a": 160, "b": 80, "c": 8, "d": 1, "e": 2, "f": 1}
    assert counts[1] == counts[2] == {"a": 20, "b": 10, "c": 1, "d": 1}
    assert dataset.labels == list("abcdef")


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(
    st.tuples(st.sampled_from(["x", "X", " x", "y", "z z", "z  z", "w", "v", "u", "t"]),
              st.sampled_from("abc")), max_size=40),
       names=st.sampled_from([("dev",), ("dev", "test")]), seed=st.integers(0, 3))
def test_hold_out_properties(rows, names, seed):
    examples = [Example((text,), label, i + 2) for i, (text, label) in enumerate(rows)]
    parts = data.hold_out(examples, names, seed)
    assert sorted(e.row for part in parts.values() for e in part) == [e.row for e in examples], (
        "rows lost or doubled")
    keys = [{data.text_key(e.texts) for e in part} for part in parts.values()]
    assert sum(map(len, keys)) == len(set().union(*keys)), "equal texts fall in different splits"
    assert {e.label for e in parts["train"]} == {e.label for e in examples}, (
        "a class is missing from train")
    labels = {}
    for e in examples:
        labels.setdefault(data.text_key(e.texts), set()).add(e.label)
    for label in "abc":
        if sum(its == {label} for its in labels.values()) > len(names):
            assert all(label in {e.label for e in part} for part in parts.values()), (
                f"{label} is missing from a split")


# ---- bundled sets

def test_bundled_set_is_found_from_any_directory(tmp_path, monkeypatch):
    write(tmp_path / "package" / "toy.csv", SMALL)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(data, "BUNDLED", tmp_path / "package")
    monkeypatch.chdir(tmp_path / "elsewhere")
    dataset = load_data("toy")
    assert dataset.name == "toy" and dataset.source["path"] == "toy" and len(dataset.train) == 2
    refused(lambda: load_data("tickts"), "'tickts'", "bundled", "toy")
    refused(lambda: load_data("toy.csv"), "toy.csv", "check the path")
    refused(lambda: load_data("./toys/toy"), "toys/toy", "check the path")
    write(tmp_path / "elsewhere" / "toy" / "train.csv", "text,label\nx,p\ny,q\n")
    write(tmp_path / "elsewhere" / "toy" / "dev.csv", "text,label\nz,p\n")
    assert load_data("toy").labels == ["a", "b"], "a bundled name depends on the working directory"
    for place in ("./toy", Path("toy"), data.find_data("./toy"), str(data.find_data("./toy"))):
        assert load_data(place).labels == ["p", "q"], f"{place!r} is not taken as a path"


def test_bundled_folder_is_the_package_s_own():
    assert data.BUNDLED == ROOT / "minillmclf" / "datasets", (
        "the bundled sets are looked for in another place")


def test_tickets(monkeypatch, tmp_path):
    if not (data.BUNDLED / "tickets.csv").is_file():
        pytest.skip("minillmclf/datasets/tickets.csv is not there yet")
    monkeypatch.chdir(tmp_path)
    dataset = load_data("tickets")
    assert (dataset.name == "tickets" and dataset.source["split"] == "column"
            and dataset.columns == ("text",))
    report = doctor.examine_data(dataset)
    assert not any(sum(n.values()) for n in report.shared.values()), (
        f"tickets leaks between splits: {report.shared}")


# ---- round trip

cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
traps = ['"', '""', ",", "a\nb", "a\r\nb", "\ta", "'", "\\n", "\u2028", "\x85", "#", "\ufeff"]
cells = st.one_of(cell, st.sampled_from(traps))
name = cells.map(lambda text: "label " + text.strip() + "!")


def looks_like_rows(row, suffix):
    """Do the lines on which a row of three cells is written each have two separators?"""
    separator, text = {".csv": ",", ".tsv": "\t"}[suffix], io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerow(row)
    lines = [line for line in re.split("\r\n|\r|\n", text.getvalue()) if line.strip()]
    return len(lines) > 1 and all(line.count(separator) == 2 for line in lines)


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(cells, cells, name), min_size=1, max_size=8),
       suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]))
@example(rows=[("", "", "label !"), (",", "\n", "label ,!")], suffix=".csv")
def test_round_trip(tmp_path, rows, suffix):
    path = tmp_path / f"f{suffix}"
    if suffix == ".jsonl":
        records = [dict(zip(("text_a", "text_b", "label"), row)) for row in rows]
        path.write_text("".join(json.dumps(r, ensure_ascii=i % 2 == 0) + "\n"
                                for i, r in enumerate(records)), encoding="utf-8", newline="")
    else:
        write_rows(path, rows, ("text_a", "text_b", "label"))
    for quoting in ("double", "auto"):
        try:
            read = read_examples(path, quoting=quoting)
        except InputError as error:        # every line of a record looks like a row, such as ",","
            assert quoting == "auto" and "lines that look like rows" in str(error)
            assert any(looks_like_rows(row, suffix) for row in rows), error
            continue
        found = [(*example.texts, example.label) for example in read]
        assert found == rows, f"what was written to {suffix} is not what is read"


# ---- the doctor

def made(train, dev=(), test=(), labels="ab") -> Dataset:
    parts = [[Example(texts if isinstance(texts, tuple) else (texts,), label, row)
              for row, (texts, label) in enumerate(part, start=2)] for part in (train, dev, test)]
    return Dataset("toy", *parts, list(labels), ("text",), {"split": "files"})


def test_doctor_counts_by_hand():
    dataset = made([("x", "a"), ("X ", "a"), ("y", "a"), ("y", "b"), ("z  z", "b"), ("", "a")],
                   [("Z z", "b"), ("y", "a")], [("x", "b"), ("new", "a"), (" ", "b")])
    report = doctor.examine_data(dataset)
    assert report.rows == {"train": 6, "dev": 2, "test": 3}
    assert report.classes == {"a": {"train": 4, "dev": 1, "test": 1, "share": 4 / 6},
                              "b": {"train": 2, "dev": 1, "test": 2, "share": 2 / 6}}
    assert report.imbalance == 2
    assert report.repeated == {"train": 1, "dev": 0, "test": 0}, (
        "case and white space make no other text")
    assert report.contradicting == {"train": 1, "dev": 0, "test": 0}
    assert report.shared == {"train/dev": {"same_label": 1, "conflicting": 1},
                             "train/test": {"same_label": 0, "conflicting": 2},
                             "dev/test": {"same_label": 0, "conflicting": 0}}
    assert report.empty == {"train": 1, "dev": 0, "test": 1}
    text = "\n".join(report.warnings)
    for remedy in ("1 train, 1 test row(s) have an empty text: remove or fill", "remove the copies",
                   "keep the right one", "2 text(s) of train stand in dev too",
                   "2 text(s) of train stand in test too", "remove them from train",
                   "2 class(es) (a, b) with fewer than 5 train rows"):
        assert remedy in text, f"no warning says {remedy!r}: {text}"
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict(), (
        "as_dict is not ready for JSON")


def test_doctor_is_silent_on_clean_data():
    train = [(f"train {i}", "ab"[i % 2]) for i in range(20)]
    report = doctor.examine_data(made(train, [("d0", "a"), ("d1", "b")], []), max_length=10)
    assert report.warnings == [], "a warning without a fault"
    assert "over 10 words: truncated      0    0     0" in report.lines(), (
        "truncated rows are printed, also when 0")
    assert not any("truncated" in line for line in doctor.examine_data(made(train)).lines()), (
        "no max_length, no truncation")


@pytest.mark.parametrize("large, warned", [(25, False), (26, True)])
def test_doctor_imbalance(large, warned):
    rows = [(f"a{i}", "a") for i in range(large)] + [(f"b{i}", "b") for i in range(5)]
    report = doctor.examine_data(made(rows))
    assert report.imbalance == large / 5 and any("macro-F1" in w for w in report.warnings) == warned
    assert f"largest / smallest class of train: {large / 5:.1f}" in report.lines()
    assert not any("fewer than" in w for w in report.warnings), "five rows are not fewer than five"


def test_doctor_classes_without_rows():
    rows = [(f"a{i}", "a") for i in range(9)] + [(f"b{i}", "b") for i in range(4)]
    report = doctor.examine_data(made(rows, [("d", "a")], [], labels="abc"))
    assert report.imbalance is None, "a class without a train row has no ratio"
    text = "\n".join(report.warnings)
    assert ("2 class(es) (b, c) with fewer than 5" in text
            and "2 class(es) (b, c) without a dev row" in text)
    assert "test row" not in text, "an absent test split is no fault"


def test_doctor_lengths():
    train = [(f"t {i}", "ab"[i % 2]) for i in range(100)]
    report = doctor.examine_data(
        made(train), lengths={"train": list(range(1, 101)), "dev": [], "test": []}, max_length=90)
    assert (report.lengths == {"train": {"p50": 50, "p90": 90, "p99": 99, "max": 100}}
            and report.unit == "tokens")
    assert report.truncated == {"train": 10, "dev": 0, "test": 0}, (
        "a row of max_length tokens is not truncated")
    assert any("10 train row(s) exceed 90 tokens and get truncated: raise" in w
               for w in report.warnings)
    assert "tokens, p50                   50    -     -" in report.lines()
    words = doctor.examine_data(made([(("one two", "three"), "a"), (("x", ""), "b")]), max_length=2)
    assert words.unit == "words" and words.lengths["train"]["max"] == 3, (
        "the texts of a row count together")
    assert words.truncated["train"] == 1 and any("counted in words" in w for w in words.warnings)
    odd = doctor.examine_data(made(train[:3]), lengths={"train": [30, 10, 20]}).lengths["train"]
    assert odd == {"p50": 20, "p90": 30, "p99": 30, "max": 30}, (
        "a percentile is the nearest rank from above")
    with pytest.raises(ValueError, match=r"lengths\['train'\] has 3 numbers for 100 rows"):
        doctor.examine_data(made(train), lengths={"train": [1, 2, 3]})
    json.dumps(doctor.examine_data(made(train), lengths={"train": np.arange(100)},
                                   max_length=50).as_dict())


def test_doctor_lines_are_ascii_and_aligned():
    names = ["\u00fcber", "a\nb", "all", "a rather long name of a class"]
    rows = [(f"{name} {i}", name) for name in names for i in range(6 if name == "all" else 1)]
    report = doctor.examine_data(made(rows, labels=names))
    lines = report.lines()
    assert all(line.isascii() and "\n" not in line for line in lines), "a line is not plain ASCII"
    table = lines[2:2 + 2 + len(names)]
    assert len({len(line) for line in table if line.endswith("%")} | {len(table[0])}) == 1, (
        f"not aligned: {table}")
    assert sum(line.startswith("all ") for line in table) == 2, (
        "a class named 'all' and the sum are two lines")


# ---- real data

def test_real_folders():
    folders = sorted(path for path in SHARED.iterdir() if path.is_dir()) if SHARED.is_dir() else []
    if not folders:
        pytest.skip("no folder shared/data beside the checkout")
    for folder in folders:
        dataset = load_data(
            folder, "prompt,response_a,response_b" if folder.name.startswith("pref_") else None)
        report = doctor.examine_data(dataset, max_length=512)
        assert report.rows["train"] > 1000 and not any(report.empty.values()), (
            f"{folder.name} is read otherwise")
        assert sum(n["train"] for n in report.classes.values()) == report.rows["train"]
        assert all(line.isascii() for line in report.lines())
