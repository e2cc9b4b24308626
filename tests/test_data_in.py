"""Data as people bring it: no row is lost unsaid, nothing is guessed, no cell is a traceback."""
import json
import random
import time

import pytest
import small
from conftest import refused

from minillmclf.choose import __main__ as choose
from minillmclf import evaluate, train
from minillmclf.folds import __main__ as folds
from minillmclf.predict import __main__ as predict
from minillmclf.errors import InputError
from minillmclf.cli.settings import read_settings
from minillmclf.text import doctor
from minillmclf.folds.arena import read_arena, read_ids
from minillmclf.folds.reading import read_source
from minillmclf.text.data import load_data
from minillmclf.text.examples import read_examples, read_text_chunks
from minillmclf.text.splits import row_splits
from minillmclf.text.cutting import cut_longest
from minillmclf.text.table_files import read_table



@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return str(small.bert_folder(tmp_path_factory.mktemp("data_in") / "bert"))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def rows_of(path, quoting="auto"):
    return [tuple(record.values()) for _, record in read_table(path, quoting).rows]


def jsonl(path, *rows):
    return write(
        path, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


# ---- rows that a quote swallows

SWALLOWS = {
    "several.tsv": ("text\tlabel\na\tx\n\"foo\tx\nmore\ty\nbar \"\ty\nb\tx\n", 3,
                    [('"foo', "x"), ("more", "y"), ('bar "', "y")]),
    "one.csv": ('text,label\na,x\n"foo,x\nbar ",y\nb,x\n', 3, [('"foo', "x"), ('bar "', "y")]),
    "middle.csv": ('id,text,label\n1,a,x\n2,"foo,x\n3,c,y\n4,bar ",y\n', 3,
                   [("2", '"foo', "x"), ("3", "c", "y"), ("4", 'bar "', "y")]),
    "last.csv": ('label,text\nx,a\nx,"foo\ny,c\ny,bar "\nx,b\n', 3,
                 [("x", '"foo'), ("y", "c"), ("y", 'bar "')]),
    "end.tsv": ('text\tlabel\na\tx\n"foo\tx\nlast "\ty\n', 3, [('"foo', "x"), ('last "', "y")]),
    "open.tsv": ('text\tlabel\na\tx\n"foo\tx\nbar\ty\n', 3, [('"foo', "x"), ("bar", "y")]),
    "empty.tsv": ('text\tnote\tlabel\n"foo\t\tx\n\nb\tn\ty\nbar "\t\ty\n', 2,
                  [('"foo', "", "x"), ("b", "n", "y"), ('bar "', "", "y")]),
    "space.csv": ('text, label\na, x\n"foo, x\nbar ", y\n', 3, [('"foo', " x"), ('bar "', " y")]),
    "no_label.csv": ('text,label\n"foo,\nbar,\nbaz ",\n', 2,
                     [('"foo', ""), ("bar", ""), ('baz "', "")]),
    "crlf.tsv": ('text\tlabel\r\n"foo\tx\r\nbar "\ty\r\n', 2, [('"foo', "x"), ('bar "', "y")]),
    "same_line.tsv": ('text\tlabel\n"He said" so\tx\nfoo\ty\n', 2,
                      [('"He said" so', "x"), ("foo", "y")])}


@pytest.mark.parametrize("name", SWALLOWS)
def test_a_quote_swallows_no_row(tmp_path, name):
    text, line, rows = SWALLOWS[name]
    path = write(tmp_path / name, text)
    for read in (lambda: read_table(path), lambda: list(read_text_chunks(path, 1, "text"))):
        refused(read, path, f"line {line}:", "quot", "twice", "--quoting none")
    found = rows_of(path, "none")
    assert [row for row in found if row in rows] == rows, "--quoting none reads other rows"
    assert len(found) == len(list(filter(None, text.splitlines()))) - 1, "a row is lost, or made"


@pytest.mark.parametrize("text, rows", [
    ('text,label\n"Dear Sir,\nwhere is it?",late\n', [("Dear Sir,\nwhere is it?", "late")]),
    ('text,label\n"Roses are red,\nViolets are blue,\n\nSugar is sweet",love\n',
     [("Roses are red,\nViolets are blue,\n\nSugar is sweet", "love")]),
    ('text,label\n"The sun is warm, the grass is green\nthe sky is wide, the air is clean",poem\n',
     [("The sun is warm, the grass is green\nthe sky is wide, the air is clean", "poem")]),
    ('id,text\n1,"Roses are red,\nViolets are blue,\nSugar is sweet"\n',
     [("1", "Roses are red,\nViolets are blue,\nSugar is sweet")]),
    ('text,label\n"I paid 1,000\nplease refund",late\n', [("I paid 1,000\nplease refund", "late")]),
    ('text,label\n"it cost $36,000 to make\nand bores",bad\n',
     [("it cost $36,000 to make\nand bores", "bad")]),
    ('label,text\nlate,"Hello Bob\nwhere is it\nThanks,\nAnn"\n',
     [("late", "Hello Bob\nwhere is it\nThanks,\nAnn")]),
    ('text,label\n"a,b\nc,d",table\n', [("a,b\nc,d", "table")]),
    ('text\n"one\ntwo"\n', [("one\ntwo",)]),
    ('text,label\na 27" screen,x\n3" by 4",y\n', [('a 27" screen', "x"), ('3" by 4"', "y")])])
def test_texts_of_several_lines_are_read(tmp_path, text, rows):
    assert rows_of(write(tmp_path / "f.csv", text)) == rows, (
        "a text that is rightly quoted is refused, or read otherwise")


def test_lines_that_look_like_rows_are_read_when_asked_for(tmp_path):
    path = write(tmp_path / "f.csv", 'name,text\nx,"one\ntwo,three"\n')
    refused(lambda: read_table(path), "--quoting double")
    assert rows_of(path, "double") == [("x", "one\ntwo,three")]


def unquoted(tmp_path):
    topics = {"late": "where is my parcel", "bill": "the invoice is wrong"}
    rows = "".join(f"{text} {n}\t{label}\n" for n in range(12) for label, text in topics.items())
    return write(tmp_path / "f.tsv", 'text\tlabel\n' + rows + '" nothing came\tlate\n'
                 'no bill\tbill\nnot a word "\tbill\n')


def test_quoting_is_a_setting_that_a_run_remembers(tmp_path, body, capsys):
    path, out = unquoted(tmp_path), tmp_path / "run"
    flags = ["--model", body, "--data", str(path), "--epochs", "1", "--out", str(out)]
    refused(lambda: train.main(flags), "line 26", "--quoting none")
    assert train.main([*flags, "--quoting", "none"]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["settings"]["quoting"] == "none" and sum(record["data"]["rows"].values()) == 27
    other = write(tmp_path / "other.tsv", path.read_text(encoding="utf-8") + "it is late\tlate\n")
    capsys.readouterr()
    assert (evaluate.main(["--model", str(out)])
            == evaluate.main(["--model", str(out), "--data", str(other)]) == 0)
    assert "(28 rows)" in capsys.readouterr().out, (
        "evaluate has forgotten how the run's files are quoted")
    assert predict.main(["--model", str(out), "--data", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 27
    refused(lambda: predict.main(["--model", str(out), "--data", str(path), "--quoting", "auto"]),
            "line 26")


# ---- names of splits

@pytest.mark.parametrize("names", [
    ("Train", "VAL", "Test"), ("training", "eval", "testing"), ("TRAIN", "Development", "test"),
    ("train", "validation", "TESTING"), ("train", "valid", "test"),
    ("train", "evaluation", "test")])
def test_split_names_in_files_and_in_the_column(tmp_path, names):
    rows = ["one,a\ntwo,b\n", "three,a\n", "four,b\n"]
    for name, text in zip(names, rows):
        write(tmp_path / "folder" / f"{name}.csv", "text,label\n" + text)
    column = "".join(
        f"{line},{name}\n" for name, text in zip(names, rows) for line in text.splitlines())
    for header in ("split", "Split"):
        path = write(tmp_path / "f.csv", f"text,label,{header}\n{column}")
        for data in (load_data(tmp_path / "folder"), load_data(path)):
            found = [[e.texts[0] for e in part] for part in (data.train, data.dev, data.test)]
            assert found == [["one", "two"], ["three"], ["four"]], f"{names} are read as {found}"


@pytest.mark.parametrize("name", ["sample.csv", "train2.tsv", "held-out.jsonl", "labels_meta.csv"])
def test_a_table_without_a_split_name_is_no_part_of_a_folder(tmp_path, name):
    write(tmp_path / "train.csv", "text,label\none,a\ntwo,b\n")
    write(tmp_path / name, "text,label\nx,a\n")
    refused(lambda: load_data(tmp_path), tmp_path, name, "train, dev or test", "move it")


def test_a_split_in_a_file_that_is_not_read_is_an_error(tmp_path):
    write(tmp_path / "train.csv", "text,label\none,a\ntwo,b\n")
    write(tmp_path / "README.md", "nothing")
    write(tmp_path / ".test.csv", "hidden")
    for name in ("test.json", "Val.parquet", "test.csv.gz"):
        path = write(tmp_path / name, "x")
        refused(lambda: load_data(tmp_path), name, "convert it")
        path.unlink()


def test_every_command_refuses_an_unknown_split(tmp_path):
    lines = [f"text {n},{'ab'[n % 2]},{'train' if n < 12 else 'dev' if n < 16 else 'later'}\n"
             for n in range(20)]
    path = write(tmp_path / "f.csv", "text,label,split\n" + "".join(lines))
    for call in (lambda: train.main(["--data", str(path), "--out", str(tmp_path / "x")]),
                 lambda: folds.main(["--data", str(path), "--out", str(tmp_path / "x")]),
                 lambda: choose.main(["--data", str(path)])):
        refused(call, path, "line 18", "'later'", "train, dev or test")
    source = read_source(write(tmp_path / "g.csv", path.read_text().replace("later", "Testing")),
                         read_settings({}))
    assert len(source.examples) == 16, "folds trains on rows that are marked as test"


def test_row_splits_of_a_table(tmp_path):
    table = read_table(write(tmp_path / "f.csv", "text,split\na,Training\nb,VAL\nc, test \n"))
    assert row_splits(table) == ["train", "dev", "test"]


# ---- several labels a row

TOXIC = "text,toxic,rude,threat\none,1,0,0\ntwo,0,1.0,0\nthree,True,false,1\nfour,0,0,0\n"


def test_a_column_for_each_class(tmp_path):
    rows = "".join(f"more {n},{n % 2},{int(n % 3 == 0)},{int(n % 5 == 0)}\n" for n in range(30))
    path = write(tmp_path / "f.csv", TOXIC + rows)
    found = [
        e.label for e in read_examples(path, label_column="toxic, rude,threat", multi_label=True)]
    assert found[:6] == ["toxic", "rude", "threat|toxic", "", "rude|threat", "toxic"]
    data = load_data(path, label_column="toxic,rude,threat", multi_label=True)
    assert data.labels == ["rude", "threat", "toxic"] and data.multi_label
    two = read_examples(path, label_column="rude,toxic", multi_label=True)
    assert two[2].label == "toxic", "a column that is not named"
    refused(lambda: load_data(path, label_column="toxic,rude"), "--multi-label")
    refused(lambda: load_data(path, label_column="toxic,none", multi_label=True), "'none'",
            "--label-column")
    refused(lambda: load_data(path, label_column="toxic,toxic", multi_label=True), "once")
    refused(
        lambda: load_data(write(tmp_path / "g.csv", TOXIC + rows.replace("more 7,1", "more 7,2")),
                          label_column="toxic,rude", multi_label=True),
        "line 13", "'toxic'", "0 or 1", '"2"')
    never = write(tmp_path / "h.csv",
                  "text,a,b,c\n" + "".join(f"t {n},{n % 2},{n % 3 % 2},0\n" for n in range(30)))
    refused(lambda: load_data(never, label_column="a,b,c", multi_label=True), "'c'", "no train row",
            "leave it out")


def test_a_run_with_a_column_for_each_class(tmp_path, body, capsys):
    path = write(tmp_path / "f.csv", "text,garden,kitchen\n" + "".join(
        f"{'rose' * (n % 2)} {'soup' * (n % 3 % 2)} the {n},{n % 2},{n % 3 % 2}\n"
        for n in range(40)))
    assert train.main(["--model", body, "--data", str(path), "--label-column", "garden,kitchen",
                       "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["data"]["labels"] == ["garden", "kitchen"]
            and record["settings"]["multi_label"] == "on")
    told = record["doctor"]
    assert told["classes"]["garden"]["train"] + told["unlabelled"]["train"] > 10
    assert evaluate.main(["--model", str(tmp_path / "run")]) == 0
    other = write(tmp_path / "other.csv", path.read_text(encoding="utf-8") + "the rose,1,0\n")
    assert evaluate.main(["--model", str(tmp_path / "run"), "--data", str(other),
                          "--label-column", "kitchen,garden"]) == 0
    assert "(41 rows)" in capsys.readouterr().out


def test_columns_of_classes_are_several_labels_without_saying_so(tmp_path):
    s = read_settings({"label_column": "a,b,c"})
    assert (s.multi_label, s.metric) == ("on", "log_loss")
    refused(lambda: read_settings({"label_column": "a,b", "multi_label": "off"}), "--multi-label")
    for command in (choose, folds):
        refused(lambda: command.main(["--label-column", "a,b"]), "one label a row")


@pytest.mark.parametrize("cells", [
    [[1, 0], [0, 1]], [[1, 1, 0], [0, 0, 0]], [["1", "0"], ["0", "1"]],
    [[True, False], [False, True]], [[1.0, 0.0], [0.0, 1.0]], ["1|0", "0|1"]])
def test_lists_of_zeros_and_ones_name_no_class(tmp_path, cells):
    path = jsonl(tmp_path / "f.jsonl",
                 *({"text": f"t{n}", "label": cells[n % 2]} for n in range(40)))
    refused(lambda: load_data(path, multi_label=True), path, "line 1", "zeros and ones",
            "--label-column a,b,c")


def test_lists_of_class_numbers_are_names(tmp_path):
    cells = [[0, 1], [2], [1], [], [0]]
    path = jsonl(tmp_path / "f.jsonl",
                 *({"text": f"t{n}", "label": cells[n % 5]} for n in range(60)))
    assert load_data(path, multi_label=True).labels == ["0", "1", "2"]


@pytest.mark.parametrize("cell", [
    "['a', 'b']", '["a"]', "('a', 'b')", "{'a'}", "[1, 0]", "[1 0 1]", "[]", "('a',)"])
@pytest.mark.parametrize("several", [False, True])
def test_a_list_as_a_text_is_no_name(tmp_path, cell, several):
    path = jsonl(tmp_path / "f.jsonl", {"text": "x", "label": cell})
    refused(lambda: read_examples(path, multi_label=several), "line 1", "list as a text", "a|b",
            "--multi-label", "--label-column a,b,c")


def test_names_with_brackets_stay_names(tmp_path):
    for name in ("[urgent]", "(none)", "a, b", "{x}", "it's"):
        path = jsonl(tmp_path / "f.jsonl", {"text": "x", "label": name})
        assert read_examples(path)[0].label == name


def warnings_of(path, **how):
    return "\n".join(doctor.examine_data(load_data(path, **how)).warnings)


def test_the_doctor_on_bars_and_classes_of_all_rows(tmp_path):
    lines = "".join(f"t {n},{'a' if n % 2 else 'a|b'}\n" for n in range(40))
    path = write(tmp_path / "f.csv", "text,label\n" + lines)
    assert ("1 class(es) (a|b) with a bar in the name" in warnings_of(path)
            and "--multi-label" in warnings_of(path))
    several = warnings_of(path, multi_label=True)
    assert "1 class(es) (a) in every train row" in several and "bar" not in several
    path = write(tmp_path / "g.csv",
                 "text,label,split\n" + "x,a,train\ny,b,train\nz,a,dev\nw,a|b,test\n")
    refused(lambda: load_data(path), "line 5", "'a|b'", "--multi-label")


# ---- labels

@pytest.mark.parametrize("one, other", [
    ("late", "Late"), ("caf\u00e9", "cafe\u0301"), ("not spam", "not  spam"),
    ("not spam", "notspam"), ("late", "la\u200bte"), ("a b", "a\u00a0b"), ("fine", "\ufb01ne"),
    ("1", "\uff11"), ("1", "1.0"), ("07", "7"), ("0", "0.00"), ("10.0", "0010"), ("-1", "-1.0"),
    ("pos", '"pos"'), ("pos", "'Pos'"), ("pos", "\u201cpos\u201d"),
    ("\u2764", "\u2764\ufe0f"), ("stra\u00dfe", "STRASSE")])
def test_names_that_look_alike(tmp_path, one, other):
    rows = [{"text": f"t{n}", "label": (one, other, "third")[n % 3]} for n in range(60)]
    path = jsonl(tmp_path / "f.jsonl", *rows)
    assert ("2 class(es) (" in warnings_of(path)
            and "differ only by case, Unicode form" in warnings_of(path))
    assert doctor.look_alikes(["late", "later", "1", "10", "1.1", "1.10", "-1", "0.0.0", "a-b",
                               "a_b", "x", "\u00e9", "e", "1e0"]) == []


@pytest.mark.parametrize("value, name", [
    ("true", "true"), ("false", "false"), ("0.5", "0.5"), ("1", "1"), ("1.0", "1"),
    ("-2.5", "-2.5"), ("12345678901234567890", "12345678901234567890")])
def test_numbers_and_truth_values_are_names(tmp_path, value, name):
    assert read_examples(jsonl(tmp_path / "f.jsonl",
                               f'{{"text": "x", "label": {value}}}'))[0].label == name
    assert read_examples(write(tmp_path / "f.csv", f"text,label\nx,{name}\n"))[0].label == name, (
        "CSV names it otherwise")


@pytest.mark.parametrize("value", ['""', "null", "NaN", "true", "[]", "{}", "1e999"])
def test_labels_of_files_to_predict_are_not_asked_for(tmp_path, value):
    path = jsonl(tmp_path / "f.jsonl", f'{{"id": 1, "text": "x", "label": {value}}}',
                 '{"id": 2, "text": "y", "label": "a"}')
    assert [texts for *_, rows in read_text_chunks(path, 10) for texts in rows] == [("x",), ("y",)]
    assert [e.texts for e in read_source(path, read_settings({}), labelled=False).examples] == [
        ("x",), ("y",)]
    battle = '{"id": %d, "prompt": "p", "response_a": "x", "response_b": "y", "winner": %s}'
    path = jsonl(tmp_path / "arena.jsonl", battle % (1, value), battle % (2, '"a"'))
    assert [e.label for e in read_arena(path, need_labels=False)[0]] == [None, "a"]
    refused(lambda: read_arena(path), "line 1", "'winner'")
    for empty in ("", "NaN", "True"):
        assert len(read_examples(write(tmp_path / "f.csv", f"text,label\nx,{empty}\n"),
                                 need_labels=False)) == 1


# ---- separators, headers, names of columns

@pytest.mark.parametrize("name, text", [
    ("a.csv", "text;label\none, two;a\nthree;b\n"),
    ("b.csv", '"text";"label"\n"one, two";"a"\nthree;b\n'),
    ("c.csv", "sep=;\ntext;label\none, two;a\nthree;b\n"),
    ("d.csv", '\ufeff"sep=;"\r\ntext;label\r\none, two;a\r\nthree;b\r\n'),
    ("e.csv", "text\tlabel\none, two\ta\nthree\tb\n"),
    ("f.tsv", 'text,label\n"one, two",a\nthree,b\n')])
def test_another_separator_is_read_with_a_note(tmp_path, capsys, name, text):
    path = write(tmp_path / name, text)
    for _ in range(2):
        found = read_examples(path)
    assert [(e.texts[0], e.label) for e in found] == [("one, two", "a"), ("three", "b")]
    assert [e.row for e in found] == ([3, 4] if "sep=" in text else [2, 3]), (
        "lines are counted otherwise than in the file")
    note, = capsys.readouterr().err.splitlines()
    assert (str(path) in note and repr(text[9 if "sep" in text and text[0] != '"' else 4]) in note
            or "stands between" in note)


def test_files_that_are_as_usual_draw_no_note(tmp_path, capsys):
    read_examples(write(tmp_path / "f.csv", "text,label\none; two,a\n"))
    list(read_text_chunks(write(tmp_path / "g.csv", "text\none; two, three\n".replace(",", "")), 5))
    load_data("tickets")
    assert capsys.readouterr().err == ""


def test_what_a_missing_column_may_be(tmp_path):
    refused(lambda: read_examples(write(tmp_path / "a.csv", "Text,LABEL\nx,a\n")),
            "no column 'text'", "--text-column Text", "--label-column LABEL")
    refused(lambda: read_examples(write(tmp_path / "b.csv", "text,Label\nx,a\n")),
            "no column 'label'", "--label-column Label")
    refused(lambda: read_examples(jsonl(tmp_path / "c.jsonl",
                                        {"Text_A": "x", "text_b": "y", "label": "a"})),
            "--text-column Text_A,text_b")
    refused(
        lambda: read_examples(write(tmp_path / "d.csv", "where is my parcel,late\nrefund,bill\n")),
        "no column 'text'", "where is my parcel", "a line with the columns' names above")
    refused(lambda: read_examples(write(tmp_path / "e.csv", "text|label\nx|a\n")), "separated by |",
            "','")
    refused(lambda: read_examples(jsonl(tmp_path / "f.jsonl", {})), "no column 'text' in []",
            "--text-column")
    refused(lambda: read_examples(write(tmp_path / "f.csv", "good,good\nx,a\n")), "'good' twice",
            "above the rows")


# ---- odd contents

def test_a_hundred_thousand_columns(tmp_path):
    names = [f"c{n}" for n in range(100_000)]
    path = write(tmp_path / "f.csv",
                 ",".join(["text", "label", *names]) + "\n" + ("x,a" + ",1" * 100_000 + "\n") * 2)
    started = time.process_time()
    assert len(read_examples(path)) == 2
    message = refused(lambda: read_examples(path, "body"), "'body'")
    assert time.process_time() - started < 5 and len(message) < 1000, (
        "columns are compared with each other")


def test_fit_takes_no_step_for_each_token_that_is_dropped():
    started = time.process_time()
    kept, cut = cut_longest([range(3_000_000), range(2_000_000)], 100)
    assert [len(part) for part in kept] == [50, 50] and cut == 4_999_900
    assert time.process_time() - started < 1


def test_fit_cuts_the_longest_first():
    """A token at a time, of the longest; of equal ones the one shorter before, then the first."""
    rng = random.Random(0)
    for _ in range(500):
        sizes, budget = [rng.randint(0, 9) for _ in range(rng.randint(1, 5))], rng.randint(0, 40)
        left = list(sizes)
        for _ in range(max(0, sum(sizes) - budget)):
            left[max(range(len(left)), key=lambda i: (left[i], -sizes[i], -i))] -= 1
        parts, cut = cut_longest([list(range(size)) for size in sizes], budget)
        assert ([len(part) for part in parts], cut) == (left, sum(sizes) - sum(left)), (
            f"{sizes} in {budget}")


def test_a_key_that_stands_twice_in_a_row_is_refused(tmp_path):
    """json.loads keeps the last of them, and says nothing."""
    for row in ('{"text": "x", "label": "a", "text": "y"}',
                '{"text": "x", "label": "a", "more": {"b": 1, "b": 1}}'):
        path = jsonl(tmp_path / "f.jsonl", '{"text": "x", "label": "a"}', row)
        refused(lambda: read_examples(path), path, "line 2", "twice", "each key once")


@pytest.mark.parametrize("cell", [
    "9" * 5000, '{"a": 1}', "[" * 5000 + "]" * 5000, "[" * 500 + "]" * 500, '"\\ud83d"',
    '"\\u0000"', "NaN", "-Infinity", "null", "[" * 90 + "]" * 90])
def test_odd_cells_are_one_line(tmp_path, cell):
    for row in (f'{{"text": "x", "label": {cell}}}', f'{{"text": {cell}, "label": "a"}}'):
        path = jsonl(tmp_path / "f.jsonl", '{"text": "x", "label": "a"}', row)
        for several in (False, True):
            message = refused(lambda: read_examples(path, multi_label=several), path, "line 2")
            assert len(message) < 400 and message.isprintable(), message
    path = jsonl(tmp_path / "g.jsonl", f'{{"id": {cell}, "text": "x"}}')
    try:
        assert read_ids(read_table(path)) != ["nan"]
    except InputError as error:
        assert "line 1" in str(error) and len(str(error)) < 400


def test_ids_are_texts_or_finite_numbers(tmp_path):
    assert (read_ids(read_table(jsonl(tmp_path / "f.jsonl", {"id": 7}, {"id": " b "}, {"id": 0.5})))
            == ["7", "b", "0.5"])
    for value in ("1e400", "NaN", "null", "[1]", "{}"):
        refused(lambda: read_ids(read_table(jsonl(tmp_path / "g.jsonl",
                                                  '{"id": 1}', f'{{"id": {value}}}'))),
                "line 2", "'id'")


@pytest.mark.parametrize("name", [
    "a\0b.csv", "x" * 10_000 + ".csv", "x" * 300, "y\0", "a" * 5000 + "/b.jsonl"])
def test_odd_paths_are_one_line(tmp_path, name):
    for call in (lambda: load_data(name), lambda: load_data(tmp_path / name),
                 lambda: read_examples(tmp_path / (name + ".csv"))):
        message = refused(call, "check the path")
        assert len(message) < 600 and message.isprintable()


# ---- unknown tokens

RUSSIAN = ("\u0433\u0434\u0435 \u043c\u043e\u044f \u043f\u043e\u0441\u044b\u043b\u043a\u0430 "
           "\u2603\u4e2d\u6587")


class Words:
    """A tokenizer that knows words of letters a to z."""
    unk_id = 1

    def ids(self, text):
        return [2 if word.isascii() else 1 for word in text.split()]


def test_unknown_tokens_are_counted():
    rows = [("one two", "three"), ("four \u0433\u0434\u0435",)]
    assert doctor.unknown_share(Words(), rows) == 0.2 and doctor.unknown_share(Words(), []) == 0.0
    none = Words()
    none.unk_id = None
    assert doctor.unknown_share(none, rows) == 0.0, "a tokenizer of bytes knows all"
    assert doctor.unknown_warning({"train": 0.049, "dev": 0.0}) == []
    line, = doctor.unknown_warning({"train": 0.05, "dev": 0.01, "test": 0.41})
    assert line.startswith("5% of the tokens in train, 41% of the tokens in test are unknown")


def test_a_stream_warns_once(capsys):
    watch = doctor.UnknownTokens(Words())
    for rows in (
            [("one",)] * 4096, [("\u0433\u0434\u0435",)] * 4096, [("\u0433\u0434\u0435",)] * 9):
        watch(rows)
    line, = capsys.readouterr().err.splitlines()
    assert "100% of the tokens in the texts" in line


def test_the_commands_warn_of_unknown_tokens(tmp_path, body, capsys):
    topics = {"a": RUSSIAN, "b": RUSSIAN[::-1]}
    path = write(tmp_path / "f.csv", "text,label\n" + "".join(
        f"{text} {n},{label}\n" for n in range(12) for label, text in topics.items()))
    from minillmclf.text.tokenizers.tokenizer import load_tokenizer
    share = doctor.unknown_share(load_tokenizer(body), [e.texts for e in read_examples(path)])
    assert share > 0.2
    assert train.main(["--model", body, "--data", str(path), "--epochs", "1",
                       "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "of the tokens in train" in printed and "unknown to this model's tokenizer" in printed
    assert (json.loads((tmp_path / "run" / "run.json").read_text())["doctor"]["unknown"]["train"]
            == pytest.approx(share, abs=0.05))
    assert predict.main(["--model", str(tmp_path / "run"), RUSSIAN]) == 0
    told = capsys.readouterr()
    assert "unknown to this model's tokenizer" in told.err and len(told.out.splitlines()) == 1
    assert (predict.main(["--model", str(tmp_path / "run"), "where is my parcel"]) == 0
            and not capsys.readouterr().err)
    assert choose.main(["--data", str(path), "--models", body]) == 0
    assert "bert: " in (printed := capsys.readouterr().out) and "of the tokens in train" in printed
