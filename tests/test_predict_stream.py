"""Prediction as a stream: window by window, in flat memory; a stopped run ends as if it were not.

Windows are made small, so that a handful of rows fills several; the models are tiny.
"""
import codecs
import csv
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tracemalloc
from types import SimpleNamespace

import pytest
import small
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf.predict import __main__ as predict, stream
from minillmclf.classify.classifier import Classifier
from minillmclf.cli.parser import run
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights
from minillmclf.text.table_files import read_table, read_chunks

LABELS = list(small.TOPICS)
# five windows of four, and two rows
TEXTS = [text for text, _ in small.texts_of(random.Random(1), 22)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved classifiers by name: one class a text, several, and two answers to a prompt."""
    folder = tmp_path_factory.mktemp("models")
    body = small.bert_folder(tmp_path_factory.mktemp("bert"), layers=1)
    made = {"one": Classifier.from_backbone(body, LABELS),
            "several": Classifier.from_backbone(body, LABELS, multi_label=True),
            "preference": Classifier.from_backbone(body, ["a", "b", "tie"],
                                                   preference={"kind": "head"})}
    for name, model in made.items():
        initialise_weights(model.head, seed=0, std=1.0)
        if name != "preference":  # so that texts are answered differently
            model.head.out.bias.data -= model.compute_logits(model.encode(TEXTS)[0]).mean(0)
        model.save(folder / name)
    return folder


@pytest.fixture
def ask(models, capsys, monkeypatch):
    """ask(*arguments, model="one") -> exit code, stdout, stderr of predict; four rows a window."""
    monkeypatch.setattr(stream, "WINDOW", 4)

    def ask(*given, model="one"):
        with pytest.raises(SystemExit) as end:
            run(lambda: predict.main(["--model", str(models / model), *map(str, given)]))
        return end.value.code, *capsys.readouterr()
    return ask


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "data.csv", [[text] for text in TEXTS])


@pytest.fixture
def windows(monkeypatch):
    """windows.stop = 3 stops the run as the third window is to be written; windows.seen: the texts
    of those before. Ctrl-C counts here even where the tests themselves run in the background, for
    which a shell lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    state, real = SimpleNamespace(stop=None, seen=[], number=signal.SIGINT), predict.render_answers

    def render(texts, *rest):
        if len(state.seen) + 1 == state.stop:
            signal.raise_signal(state.number)
        state.seen.append([text for text, *_ in texts])
        return real(texts, *rest)
    monkeypatch.setattr(predict, "render_answers", render)
    yield state
    signal.signal(signal.SIGINT, before)


def write_rows(path, rows, header=("text",)):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def names(folder):
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------ rows as a stream

FILES = {
    "lines within quotes": ("f.csv", 'text,id\n"a\n\nb",1\nc,2\n\n"d\r\ne",3\n"f\n",4\ng,5\n'),
    "a byte order mark": ("f.tsv", codecs.BOM_UTF8.decode() + "text\tid\na\t1\nb\t2\nc\t3\n"),
    "old ends of lines": ("f.csv", "text,id\ra,1\rb,2\r\nc,3"),
    "JSON": ("f.jsonl", '\n{"text": "a\u2028b"}\n\n{"id": 1, "text": "c"}\r\n{"text": "d"}'),
}


@pytest.mark.parametrize("name, content", FILES.values(), ids=FILES)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_windows_hold_the_rows_of_the_table(tmp_path, name, content, size):
    path = tmp_path / name
    path.write_bytes(content.encode())
    table, parts = read_table(path), list(read_chunks(path, size))
    assert [row for part in parts for row in part.rows] == table.rows, (
        "a row got lost or changed at a window's edge")
    assert {len(part.rows) for part in parts[:-1]} <= {size} and parts[-1].columns == table.columns
    assert len(table.rows) % size == 0 or parts[-1].sha256 == table.sha256


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", ",", "\n", "\r\n", "\r", '"', '""', '"x\ny"', "é", "\u2028"]),
                max_size=14), st.integers(1, 3))
def test_any_csv_is_read_alike_both_ways(tmp_path_factory, parts, size):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes("".join(parts).encode())
    try:
        table = read_table(path)
    except InputError:
        with pytest.raises(InputError):
            list(read_chunks(path, size))
    else:
        assert [row for part in read_chunks(path, size) for row in part.rows] == table.rows


FAULTS = {
    "bad quoting": (b'text\n' + b"x\n" * 9 + b'"y" z\n', "line 11: broken quoting"),
    "a field too many": (b"text\n" + b"x\n" * 9 + b"y,z\n", "line 11: 2 fields"),
    "not UTF-8": (b"text\n" + b"x\n" * 9 + b"ab\xe9\n", "line 11: not UTF-8 at byte offset 25:"),
    "a null byte": (b"text\n" + b"x\n" * 9 + b"a\0b\n", "line 11"),
    "an empty text": (b"text\n" + b"x\n" * 9 + b'" "\n', "line 11): remove or fill"),
}


@pytest.mark.parametrize("content, words", FAULTS.values(), ids=FAULTS)
def test_a_bad_row_in_the_third_window(ask, tmp_path, content, words):
    path, out = tmp_path / "bad.csv", tmp_path / "answers.jsonl"
    path.write_bytes(content)
    code, printed, said = ask("--data", path, "--out", out)
    assert ((code, printed) == (2, "") and said.startswith(f"error: {path}")
            and said.count("\n") == 1 and words in said), said
    assert names(tmp_path) == {"bad.csv", "answers.jsonl.part", "answers.jsonl.part.json"}
    path.write_bytes(b"text\n" + b"x\n" * 10)  # what was answered is as it was, so it still counts
    code, _, said = ask("--data", path, "--out", out)
    assert (code, said) == (0, f"going on after 8 rows of an earlier run\n10 answers in {out}\n")
    assert out.read_text() == ask("--data", path)[1]


def test_a_bad_row_in_the_first_window_leaves_nothing(ask, tmp_path):
    path = write_rows(tmp_path / "bad.csv", [["x"], [" "]])
    assert (ask("--data", path, "--out", tmp_path / "answers.csv")[0] == 2
            and names(tmp_path) == {"bad.csv"})


def test_what_the_model_refuses_is_counted_from_the_start(ask, data, monkeypatch):
    real = Classifier.encode

    def encode(model, texts, training=False, lines=None):
        if (TEXTS[9],) in texts:
            raise InputError(f"line {lines[1]}: too long")
        return real(model, texts, training, lines)
    monkeypatch.setattr(Classifier, "encode", encode)
    code, out, said = ask("--data", data)
    assert ((code, said) == (2, f"error: after 8 rows: {data}, line 11: too long\n")
            and len(out.splitlines()) == 8)


def test_a_text_without_a_token_is_named_by_file_and_line(ask, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "f.csv", [["two\nlines"], *[["x"]] * 5, ["\u200b"]])
    code, _, said = ask("--data", path)
    assert code == 2 and f"{path}, line 9: the text" in said and said.count("\n") == 1
    lines = SimpleNamespace(buffer=io.BytesIO("x\n\u200b\n".encode()))
    monkeypatch.setattr(sys, "stdin", lines)
    assert "standard input, line 2: the text" in ask()[2]
    assert ask("x", "\u200b")[2].startswith("error: text 2: the text")


# ------------------------------------------------------------------------ answers

@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_order_and_form_are_those_of_one_window(ask, data, models, monkeypatch, kind):
    found = ask("--data", data, "--format", kind)[1]
    monkeypatch.setattr(stream, "WINDOW", 4096)
    whole = ask("--data", data, "--format", kind)[1]
    rows = (list(csv.DictReader(io.StringIO(found))) if kind == "csv"
            else [json.loads(line) for line in found.splitlines()])
    assert [row["text"] for row in rows] == TEXTS, "answers are not in the order of the rows"
    assert len(found.splitlines()) == len(whole.splitlines()) == 22 + (kind == "csv"), (
        "a header at each window")
    p = Classifier.load(models / "one").predict(TEXTS)
    assert ([row["label"] for row in rows] == [LABELS[best] for best in p.argmax(1)]
            and len(set(p.argmax(1))) > 1)
    for row, expected in zip(rows, p.tolist()):
        numbers = ([float(row[f"p_{name}"]) for name in LABELS] if kind == "csv"
                   else list(row["probabilities"].values()))
        assert numbers == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("name, start", [
    ("a.csv", "text,"), ("a.CSV", "text,"), ("a.jsonl", "{"), ("a.json", "{"), ("a", "{")])
def test_the_name_of_out_tells_its_format(ask, tmp_path, name, start):
    assert ask("rose", "--out", tmp_path / name)[0] == 0
    assert (tmp_path / name).read_text().startswith(start)


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv.gz"])
def test_a_format_that_is_not_written_is_refused(ask, tmp_path, name):
    code, _, said = ask("rose", "--out", tmp_path / name)
    assert code == 2 and name in said and "--format" in said and said.count("\n") == 1
    assert not names(tmp_path)
    assert ask("rose", "--out", tmp_path / name, "--format", "csv")[0] == 0


def test_a_lone_return_in_a_text_ends_no_line_of_the_answers(ask, tmp_path):
    texts = ["one\rtwo", "\r", "three\r\nfour\nfive", 'a "quote"', "six"]
    rows = [(text, f"{text}\r") for text in texts if text.strip()]
    path = tmp_path / "returns.jsonl"
    path.write_text("".join(json.dumps({"text": a, "more\r": b}) + "\n" for a, b in rows))
    assert ask("--data", path, "--out", tmp_path / "p.csv")[0] == 0
    with open(tmp_path / "p.csv", encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    assert header[:2] == ["more\r", "text"]
    assert [(text, more) for more, text, *_ in found] == rows


def test_several_labels(ask, data, models):
    found = [json.loads(line)["label"]
             for line in ask("--data", data, model="several")[1].splitlines()]
    model = Classifier.load(models / "several")
    assert found == model.answers(model.predict(TEXTS)) and len(set(found)) > 1


def test_three_texts_a_row(ask, tmp_path, models):
    rows = [(text, "a rose", other) for text, other in zip(TEXTS, TEXTS[1:])]
    path = write_rows(tmp_path / "battles.csv", rows, ("prompt", "response_a", "response_b"))
    found = [json.loads(line) for line in ask("--data", path, model="preference")[1].splitlines()]
    assert [(row["text_a"], row["text_b"], row["text_c"]) for row in found] == rows
    expected = Classifier.load(models / "preference").predict(rows)
    assert [list(row["probabilities"].values()) for row in found] == [
        pytest.approx(p, abs=2e-6) for p in expected.tolist()]


def test_jsonl_with_a_column_of_its_own_name(ask, tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(
        "".join(json.dumps({"n": n, "words": text}) + "\n" for n, text in enumerate(TEXTS)))
    found = [json.loads(line)["text"]
             for line in ask("--data", path, "--text-column", "words")[1].splitlines()]
    assert found == TEXTS


def test_standard_input_is_answered_as_it_comes(ask, monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", printed)

    def lines():
        for number, text in enumerate(TEXTS):
            there = printed.buffer.getvalue().count(b"\n")
            assert there == number - number % 4, (
                f"before line {number + 1}, {there} answers had been written")
            yield text.encode() + b"\r\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines()))
    assert ask()[0] == 0
    assert [json.loads(line)["text"] for line in printed.buffer.getvalue().splitlines()] == TEXTS


@pytest.mark.parametrize("bad, words", [
    (b" \n", "line 10 is empty"), (b"caf\xe9\n", "line 10: not UTF-8 at byte offset 21")])
def test_standard_input_that_ends_badly_leaves_no_file(ask, tmp_path, monkeypatch, bad, words):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"x\n" * 9 + bad)))
    code, _, said = ask("--out", tmp_path / "answers.csv")
    assert code == 2 and words in said and said.count("\n") == 1 and not names(tmp_path)


def test_how_far_it_is(ask, data, monkeypatch):
    monkeypatch.setattr(stream, "LINE_SECONDS", 0)
    said = ask("--data", data)[2].splitlines()
    assert ([line.split(" rows, ")[0] for line in said] == ["4", "8", "12", "16", "20"]
            and said[0].endswith(" rows/s"))


# ------------------------------------------------------------------------ stopped, and gone on with

@pytest.fixture
def expected(ask, data, tmp_path):
    """The bytes of an undisturbed run, for a file name."""
    def expected(name):
        folder = tmp_path / "undisturbed"
        assert ask("--data", data, "--out", folder / name)[0] == 0 and names(folder) == {name}
        content = (folder / name).read_bytes()
        shutil.rmtree(folder)
        return content
    return expected


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_was_stopped_goes_on(ask, data, expected, windows, tmp_path, name, number):
    out, whole = tmp_path / name, expected(name)
    out.write_text("earlier answers\n")
    windows.seen, windows.stop, windows.number = [], 3, number
    code, printed, said = ask("--data", data, "--out", out, "--overwrite")
    stop = f"stopped; 8 rows are in {out}.part, the same command goes on from there\n"
    assert (code, printed) == (130, stop), (printed, said)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "SIGTERM is left as it was"
    assert (out.read_text() == "earlier answers\n"
            and whole.startswith((tmp_path / f"{name}.part").read_bytes()))
    windows.seen, windows.stop = [], 2                              # and stopped again
    assert ask("--data", data, "--out", out, "--overwrite")[0] == 130
    windows.seen, windows.stop = [], None
    code, _, said = ask("--data", data, "--out", out, "--overwrite")
    assert (code, said) == (0, f"going on after 12 rows of an earlier run\n22 answers in {out}\n")
    assert sum(windows.seen, []) == TEXTS[12:], "rows are answered twice, or not at all"
    assert out.read_bytes() == whole and names(tmp_path) == {"data.csv", name}


def test_stopped_before_anything_is_done(ask, data, windows, tmp_path):
    windows.stop = 1
    code, _, said = ask("--data", data, "--out", tmp_path / "answers.csv")
    assert code == 130 and said == "\nstopped\n" and names(tmp_path) == {"data.csv"}


def stopped(ask, windows, data, out, after=2):
    windows.seen, windows.stop = [], after + 1
    assert ask("--data", data, "--out", out, "--overwrite")[0] == 130
    windows.seen, windows.stop = [], None


def test_answers_behind_the_record_do_not_count(ask, data, expected, windows, tmp_path):
    out, whole = tmp_path / "answers.csv", expected("answers.csv")
    stopped(ask, windows, data, out)
    with open(f"{out}.part", "ab") as file:
        file.write(b"half a row" * 500)
    assert ("going on after 8 rows" in ask("--data", data, "--out", out)[2]
            and out.read_bytes() == whole)


def fewer(part, record):
    os.truncate(part, part.stat().st_size - 1)


ANEW = {"a shorter part": (fewer, "holds less than its record says"),
        "no part": (lambda part, _: part.unlink(), "holds less"),
        "half a record": (lambda _, record: os.truncate(record, 20), "has a broken record"),
        "a foreign record": (lambda _, record: record.write_text("{}"), "another kind of record")}


@pytest.mark.parametrize("change, words", ANEW.values(), ids=ANEW)
def test_a_part_that_is_no_use(ask, data, expected, windows, tmp_path, change, words):
    out, whole = tmp_path / "answers.csv", expected("answers.csv")
    stopped(ask, windows, data, out)
    change(tmp_path / "answers.csv.part", tmp_path / "answers.csv.part.json")
    asked = ["--overwrite"] * ("record" in words and "says" not in words)
    if asked:                                              # what lies there may be another's
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        code, _, said = ask("--data", data, "--out", out)
        assert code == 2 and "answers.csv.part.json: has " in said and words in said, said
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    code, _, said = ask("--data", data, "--out", out, *asked)
    assert code == 0 and words in said and "starting anew" in said and said.count("\n") == 2, said
    assert (sum(windows.seen, []) == TEXTS and out.read_bytes() == whole
            and names(tmp_path) == {"data.csv", "answers.csv"})


@pytest.mark.parametrize("name", ["answers.csv.part", "answers.csv.part.json"])
@pytest.mark.parametrize("rows", ["a rose", "bad rows"])
def test_a_part_of_others_stays(ask, data, tmp_path, name, rows):
    given = ["a rose"] if rows == "a rose" else ["--data", data]
    if rows == "bad rows":
        data.write_text("text\n\"no end\n")
    (tmp_path / name).write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, said = ask(*given, "--out", tmp_path / "answers.csv")
    assert code == 2 and f"{name}: " in said and "--overwrite" in said and said.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_killed_in_its_first_window_it_begins_anew(ask, data, expected, tmp_path):
    out, whole = tmp_path / "answers.csv", expected("answers.csv")
    for made in ({}, {"model": "another"}):
        (tmp_path / "answers.csv.part").write_text("half a row")
        (tmp_path / "answers.csv.part.json").write_text(json.dumps(
            {"rows": 0, "bytes": 0, "cut": 0, "sha256": None, "made": made}))
        assert ask("--data", data, "--out", out, "--overwrite")[0] == 0
        assert out.read_bytes() == whole and names(tmp_path) == {"data.csv", "answers.csv"}


def test_changed_rows(ask, data, windows, tmp_path):
    out = tmp_path / "answers.csv"
    for row, anew in ((5, True), (20, False)):  # answered already; still to come
        write_rows(data, [[text] for text in TEXTS])
        stopped(ask, windows, data, out)
        write_rows(data, [["a rose" if n == row else text] for n, text in enumerate(TEXTS)])
        said = ask("--data", data, "--out", out, "--overwrite")[2]
        assert ("is of other rows: starting anew" in said) == anew != ("going on" in said), said
        fresh = ask("--data", data, "--format", "csv")[1]
        assert out.read_text() == fresh
    stopped(ask, windows, data, out)
    write_rows(data, [[text] for text in TEXTS[:6]])
    assert "other rows" in ask("--data", data, "--out", out, "--overwrite")[2]
    assert len(out.read_text().splitlines()) == 7


def test_another_model_or_form(ask, models, data, windows, tmp_path):
    out = tmp_path / "answers.csv"
    given = ("--data", data, "--out", out, "--overwrite")
    for more, model, words in (
            ([], "several", "another model:"), (["--format", "jsonl"], "one", "another format:"),
            (["--text-column", "text"], "one", "another text columns:"),
            (["--show-cut"], "one", "another cut column:")):
        stopped(ask, windows, data, out)
        assert words in ask(*given, *more, model=model)[2]
        assert out.read_text() == ask("--data", data, "--format", "csv", *more, model=model)[1]
    shutil.copytree(models / "one", models / "copied")
    try:
        windows.seen, windows.stop = [], 3
        assert ask(*given, model="copied")[0] == 130
        os.utime(models / "copied" / "model.safetensors", ns=(1, 1))  # written once more
        windows.stop = None
        assert "another model: starting anew" in ask(*given, model="copied")[2]
    finally:
        shutil.rmtree(models / "copied")


def test_answers_of_another_run_are_dropped_only_when_asked(ask, data, expected, windows, tmp_path):
    """Another model, other rows, or a text on the command line: the answers stay, and go on."""
    out, whole, other = tmp_path / "answers.csv", expected("answers.csv"), tmp_path / "other.csv"
    stopped(ask, windows, data, out)
    write_rows(other, [["a rose"]] * 9)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for asked, model, words in ((["--data", data], "several", "is of another model"),
                                (["--data", other], "one", "is of other rows"),
                                (["a rose"], "one", "is of another input")):
        code, _, said = ask(*asked, "--out", out, model=model)
        assert code == 2 and f"answers.csv.part: {words}, and holds 8 answers" in said, said
        assert "another --out, or --overwrite" in said and said.count("\n") == 1
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "going on after 8 rows" in ask("--data", data, "--out", out)[2]
    assert out.read_bytes() == whole
    stopped(ask, windows, data, out)
    assert ask("a rose", "--out", out, "--overwrite")[0] == 0
    assert len(out.read_text().splitlines()) == 2


def test_a_record_counts_no_answers_of_another_run(
        ask, data, expected, windows, tmp_path, monkeypatch):
    """Another run starts anew; power fails before its first record.

    Its part is then longer than the old record says."""
    out, cut, whole = tmp_path / "answers.csv", tmp_path / "cut", expected("answers.csv")
    stopped(ask, windows, data, out, after=1)
    shutil.copy(data, tmp_path / "first.csv")
    write_rows(data, [[text * 9] for text in TEXTS])

    def power_cut(*_):
        shutil.copytree(tmp_path, cut)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(stream, "write_json", power_cut)
        assert ask("--data", data, "--out", out, "--overwrite")[0] == 130
    assert (cut / "answers.csv.part").stat().st_size > 0
    assert ask("--data", cut / "first.csv", "--out", cut / "answers.csv")[0] == 0
    assert (cut / "answers.csv").read_bytes() == whole, "answers of another run are in the file"


def test_whatever_a_power_cut_leaves(ask, expected, data, tmp_path, monkeypatch):
    """The disk before each file is written, put in place or removed: each state ends alike."""
    # the last window is full: nothing may follow the last record
    write_rows(data, [[text] for text in TEXTS[:8]])
    work, states, whole = tmp_path / "work", tmp_path / "states", expected("answers.csv")
    number = itertools.count()
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "unlink"):
            def kept(*given, real=getattr(os, name)):
                shutil.copytree(work, states / str(next(number)))
                return real(*given)
            patch.setattr(os, name, kept)
        assert ask("--data", data, "--out", work / "answers.csv")[0] == 0
    went_on = set()
    for state in sorted(states.iterdir()):
        done = (state / "answers.csv").exists()        # only its record has not been removed
        assert not done or (state / "answers.csv").read_bytes() == whole
        more = ["--overwrite"] * done
        code, _, said = ask("--data", data, "--out", state / "answers.csv", *more)
        assert code == 0 and names(state) == {"answers.csv"}, (state.name, said)
        assert (state / "answers.csv").read_bytes() == whole, (
            f"from state {state.name} the answers are others")
        went_on.add(said.splitlines()[0])
    assert {f"going on after {rows} rows of an earlier run" for rows in (4, 8)} <= went_on, went_on


def test_out_that_is_a_folder(ask, data, tmp_path):
    refused(lambda: stream.check_answer_files(tmp_path, True, []), tmp_path,
            "could not be written", "no ordinary file")
    before = names(tmp_path.parent)
    assert (ask("--data", data, "--out", tmp_path)[0] == 2 and names(tmp_path) == {"data.csv"}
            and names(tmp_path.parent) == before)


def test_a_full_disk_keeps_what_is_done(ask, data, expected, tmp_path, monkeypatch):
    out, whole, calls = tmp_path / "answers.csv", expected("answers.csv"), itertools.count(1)

    def no_room(number, real=os.fsync):
        if next(calls) == 6:  # a first record, two a window: the third window's answers
            raise OSError(28, "No space left on device")
        real(number)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        code, _, said = ask("--data", data, "--out", out)
    assert (code == 2 and said.count("\n") == 1 and "No space left" in said
            and "goes on after 8 rows" in said), said
    assert ("going on after 8 rows" in ask("--data", data, "--out", out)[2]
            and out.read_bytes() == whole)


def test_a_short_window_is_not_on_record(ask, data, tmp_path, monkeypatch):
    """It was the last; if rows are added before the run goes on, its own go into a full window."""
    out = tmp_path / "answers.csv"

    def no_place(*_):
        raise InputError("could not be put in place")
    with monkeypatch.context() as patch:
        patch.setattr(stream.PartFile, "rename_to_out", no_place)
        assert ask("--data", data, "--out", out)[0] == 2
    write_rows(data, [[text] for text in [*TEXTS, *TEXTS]])
    assert "going on after 20 rows" in ask("--data", data, "--out", out)[2]
    assert out.read_text() == ask("--data", data, "--format", "csv")[1]


# ------------------------------------------------------------------------ memory

@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_memory_does_not_grow_with_the_rows(ask, tmp_path, monkeypatch, kind):
    """Five times the rows, of texts that repeat, so that the tokenizer keeps as much for both."""
    monkeypatch.setattr(stream, "WINDOW", 128)
    peaks = []
    for rows in (128, 256, 1280):  # the first run pays for what is loaded once
        file, texts = tmp_path / f"{rows}.{kind}", [TEXTS[n % 22].split()[0] for n in range(rows)]
        if kind == "csv":
            write_rows(file, [[text] for text in texts])
        else:
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        tracemalloc.start()
        try:
            assert ask("--data", file, "--out", tmp_path / "answers", "--overwrite")[0] == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert (tmp_path / "answers").read_bytes().count(b"\n") == rows
    assert peaks[2] < 1.5 * peaks[1], (
        f"256 rows took {peaks[1]:,} bytes at the peak, 1,280 rows {peaks[2]:,}")
