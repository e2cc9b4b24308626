"""The capstone's table: computed from predictions and labels alone, and it does not believe."""
import csv
import json
import math
import re

import pytest

from lessons import capstone
from minillmclf.cli.parser import run
from minillmclf.compare.__main__ import main as compare
from minillmclf.train import main as train

# four rows: three right, one wrong; probabilities of (no, yes)
ROWS = [("a b", "no", .9, .1), ("c, d", "yes", .19, .81), ("e", "yes", .3, .7),
        ("f", "yes", .61, .39)]
LOSS = -(math.log(.9) + math.log(.81) + math.log(.7) + math.log(.39)) / 4
F1 = (2 / 3 + 4 / 5) / 2                          # no: 1 hit, 1 false alarm; yes: 2 hits, 1 miss
ECE = (.1 + .19 + .3 + .61) / 4                     # four bins of one row each
CLAIM = {"accuracy": .75, "macro_f1": F1, "log_loss": LOSS, "ece": ECE, "f1": {}}


@pytest.fixture
def submission(tmp_path):
    """A run folder as train writes it, and the data beside it."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    texts = [["id", "text", "label", "split"], ["x", "train it", "no", "train"]]
    write(tmp_path / "data.csv", texts + [[f"k{i}", text, label, "test"] for i, (
        text, label, *_) in enumerate(ROWS)])
    lines = [["line", "text", "label", "predicted", "p_no", "p_yes"]]
    lines += [[i, text, label, "yes" if yes > no else "no", f"{no:.6f}", f"{yes:.6f}"]
              for i, (text, label, no, yes) in enumerate(ROWS, 3)]
    write(folder / "predictions.csv", lines)
    claim(folder)
    return folder


def write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def change(path, make):
    """Rewrite a CSV file: make(rows) -> rows."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    write(path, make(rows))


def claim(folder, **other):
    (folder / "run.json").write_text(json.dumps({
        "settings": {"model": "checkpoints/mini-bert", "method": "lora", "readout": "head",
                     "seed": 1}, "parameters": {"trainable": 1234}, "timing": {"train_seconds": 5},
        "results": {"majority class": {}, "mini-bert, lora": CLAIM | other}}), encoding="utf-8")


def judge(folder, *flags):
    data = next(place / "data.csv" for place in folder.parents if (place / "data.csv").exists())
    return capstone.main([str(folder), "--data", str(data), *flags])


def test_metrics_are_those_of_pencil_and_paper(submission, capsys):
    assert judge(submission) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row == (f"| one | mini-bert | lora | head | 1 | 0.750 | {F1:.3f} | {LOSS:.3f} | "
                   f"{ECE:.3f} | 1,234 | 5 | holds |")


@pytest.mark.parametrize("metric, value", [("accuracy", 1.0), ("macro_f1", F1 + 1e-3),
                                           ("log_loss", LOSS - 1e-4), ("ece", ECE - 1e-4)])
def test_a_false_claim_is_named(submission, capsys, metric, value):
    claim(submission, **{metric: value})
    assert judge(submission) == 1
    assert f"| {metric} {value:.3f} is not so |" in capsys.readouterr().out


def test_the_labels_of_the_submission_count_for_nothing(submission, capsys):
    path = submission / "predictions.csv"
    change(path, lambda rows: [rows[0], *([*row[:2], row[3], *row[3:]] for row in rows[1:])])
    claim(submission, accuracy=1.0)
    assert judge(submission) == 1
    assert "accuracy 1.000 is not so" in capsys.readouterr().out


def test_a_claim_from_before_rounding_holds(submission):
    """A right class with 3e-7 is 0.000000 in the file: its loss is known only within bounds."""
    change(submission / "predictions.csv", lambda rows: [
        *rows[:4], [*rows[4][:4], "1.000000", "0.000000"]])
    loss = LOSS + (math.log(.39) - math.log(3e-7)) / 4
    claim(submission, log_loss=loss, ece=ECE + .39 / 4)
    assert judge(submission) == 0
    claim(submission, log_loss=LOSS, ece=ECE + .39 / 4)
    assert judge(submission) == 1


REFUSED = {
    "missing": (lambda rows: rows[:-1], r"3 answers to the 4 rows .*: 1 missing \(line 6\)"),
    "extra": (lambda rows: [*rows, ["7", *rows[1][1:]]], r"5 answers .*: 1 extra \(line 7\)"),
    "twice": (lambda rows: [*rows, rows[1]], r"1 there more than once \(line 3\)"),
    "missing and extra": (lambda rows: [*rows[:-1], ["99", *rows[-1][1:]]],
                          r"1 missing \(line 6\); 1 extra \(line 99\): answer each row once"),
    "another text": (lambda rows: [rows[0], [rows[1][0], "easier", *rows[1][2:]], *rows[2:]],
                     r"line 2: line '3' of .*data.csv has another text, 'a b'"),
    "no probability": (lambda rows: [*rows[:-1], [*rows[-1][:4], "0.6", "nan"]],
                       r"line 5: expected 2 probabilities from 0 to 1 with the sum 1"),
    "their sum": (lambda rows: [*rows[:-1], [*rows[-1][:4], "0.6", "0.5"]], "with the sum 1"),
    "another answer": (lambda rows: [*rows[:-1], [*rows[-1][:3], "yes", "0.6", "0.4"]],
                       "line 5: answers 'yes', but the likeliest class is 'no'"),
    "a class": (lambda rows: [row[:5] for row in rows], "no column p_yes: write a probability"),
    "the answer": (lambda rows: [[*row[:2], *row[4:]] for row in rows], "no column 'label'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_answer_to_these_rows_is_refused_in_one_line(submission, capsys, case):
    make, message = REFUSED[case]
    change(submission / "predictions.csv", make)
    with pytest.raises(SystemExit) as ended:
        run(lambda: judge(submission))
    told = capsys.readouterr()
    assert ended.value.code == 2 and not told.out and told.err.count("\n") == 1
    assert re.search(message, told.err), told.err


def test_answers_of_predict_to_hidden_labels(submission, capsys):
    """Other columns first, `label` for the answer, any order; nothing is claimed."""
    lines = [["id", "text", "label", "p_no", "p_yes"]]
    lines += [[f"k{i}", text, "yes" if yes > no else "no", no, yes]
              for i, (text, _, no, yes) in enumerate(ROWS)]
    answers = submission.parent.parent / "answers"
    answers.mkdir()
    write(answers / "mine.csv", [lines[0], *reversed(lines[1:])])
    for place in (answers, answers / "mine.csv"):
        assert judge(place, "--key", "id") == 0
        assert (f"| mine | - | - | - | - | 0.750 | {F1:.3f} | {LOSS:.3f} | {ECE:.3f} | - | - | - |"
                in capsys.readouterr().out)


@pytest.mark.parametrize("flags, spoil, message", [
    (["--split", "dev"], None, "has no dev rows"),
    (["--key", "number"], None, "no column 'number' for --key"),
    (["--key", "label"], None, "label 'yes' stands twice"),
    ([], '{"finished": false}', "claims no accuracy, macro_f1, log_loss, ece"),
    ([], '{"settings": {}, "finished": false}', "claims no accuracy, macro_f1, log_loss, ece"),
    ([], None, "holds neither a run.json of train nor a CSV file of predict")])
def test_other_faults_are_one_line_too(submission, tmp_path, flags, spoil, message):
    if spoil:
        (submission / "run.json").write_text(spoil, encoding="utf-8")
    elif not flags:
        for path in submission.iterdir():
            path.unlink()
    with pytest.raises(capstone.InputError, match=message):
        judge(submission, *flags)


def test_what_train_and_compare_write_is_read(tmp_path, capsys):
    """A run of one epoch on a few rows, and a baseline of a comparison."""
    rows = [[f"{word} {i}", label, split] for split in ("train", "dev", "test")
            for i in range(4) for word, label in (("pay me back", "refund"), ("late", "parcel"))]
    write(tmp_path / "few.csv", [["text", "label", "split"], *rows])
    data, out = ["--data", str(tmp_path / "few.csv")], tmp_path / "out"
    compare([*data, "--models", "majority", "--seeds", "1", "--out", str(out)])
    train([*data, "--method", "head", "--epochs", "1", "--min-steps", "0", "--few-rows", "off",
           "--baselines", "off", "--out", str(out / "head")])
    capsys.readouterr()
    assert capstone.main([str(out), *data]) == 0
    table = capsys.readouterr().out
    assert "| a baseline | - | - | 0 | 0.500 |" in table
    assert "| head | mini-bert | head | head | 0 |" in table and table.count("| holds |") == 2
