"""Reading battles: what people wrote is kept, what no program can write is replaced, and a wrong
row is named by its line."""
import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from minillmclf.errors import InputError
from minillmclf.folds.arena import EMPTY, WINNERS, is_arena, read_arena
from minillmclf.text.examples import read_examples

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COMPETITION = ("id", "model_a", "model_b", "prompt", "response_a", "response_b", *WINNERS)
PLAIN = ("prompt", "response_a", "response_b", "winner")


def write(path, rows, header=COMPETITION):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def battle(name=7, prompt='["Hi"]', a='["Hello"]', b='["Go away"]', won=(1, 0, 0)):
    return [name, "gpt", "llama", prompt, a, b, *won]


def refused(path, *words, **more):
    with pytest.raises(InputError) as error:
        read_arena(path, **more)
    line = str(error.value)
    assert "\n" not in line and not [word for word in words if word not in line], (
        f"should name {words}: {line}")


def test_competition_layout(tmp_path):
    rows = [battle(30), battle(10, won=(0, 1, 0)), battle(20, won=(0, 0, 1)),
            battle(40, won=("1.0", "0.0", "0.0"))]
    examples, ids = read_arena(write(tmp_path / "train.csv", rows))
    assert ids == ["30", "10", "20", "40"], "ids should be texts, in the order of the file"
    assert ([e.label for e in examples] == ["a", "b", "tie", "a"]
            and [e.row for e in examples] == [2, 3, 4, 5])
    assert examples[0].texts == ("Hi", "Hello", "Go away"), (
        "one turn should stand alone, without brackets or a marker")


def test_turns_are_joined_with_a_line_before_each(tmp_path):
    row = battle(prompt=json.dumps(["Hi", "Why?"]), a=json.dumps(["A\n1", "A 2"]),
                 b='["B 1", null]')
    texts = read_arena(write(tmp_path / "train.csv", [row]))[0][0].texts
    assert texts == ("[turn 1]\nHi\n\n[turn 2]\nWhy?", "[turn 1]\nA\n1\n\n[turn 2]\nA 2",
                     f"[turn 1]\nB 1\n\n[turn 2]\n{EMPTY}")


@pytest.mark.parametrize("cell, text", [
    ("[null]", EMPTY), ('[""]', EMPTY), ('["  "]', EMPTY), (r'["a \ud83d b"]', "a \ufffd b"),
    (r'["\ude00\ud83d"]', "\ufffd\ufffd"),
    (r'["\ud83d\ude00"]', "\U0001f600"), (r'["a\u0000b"]', "a\ufffdb"), ('["a\nb"]', "a\nb"),
    (' ["a"] ', "a"),
    ('["say \\"no\\"", "x"]', '[turn 1]\nsay "no"\n\n[turn 2]\nx')])
def test_odd_turns(tmp_path, cell, text):
    """Null turns, half surrogate pairs, null bytes, bare line breaks: no row is lost, and all can
    be written as UTF-8."""
    texts = read_arena(write(tmp_path / "train.csv", [battle(a=cell)]))[0][0].texts
    assert texts[1] == text
    assert "".join(texts).encode("utf-8")


@pytest.mark.parametrize(
    "cell", ['["a", "b"]', "[1, 2]", "[broken", "[]", "[x] done", "[" * 3000, '{"a": 1}'])
def test_a_list_that_a_model_wrote_is_its_text(tmp_path, cell):
    """Where the prompt is no list, nothing of the row is taken apart."""
    texts = read_arena(write(tmp_path / "d.csv", [("Hi", cell, "no", "a")], PLAIN))[0][0].texts
    assert texts == ("Hi", cell, "no")


def test_plain_layout(tmp_path):
    winners = ["a", "b", "tie", "model_a", "model_b", "tie (bothbad)", " Tie ", "MODEL_B"]
    examples, ids = read_arena(
        write(tmp_path / "d.csv", [("p", "x", "", w) for w in winners], PLAIN))
    assert [e.label for e in examples] == ["a", "b", "tie", "a", "b", "tie", "tie", "b"]
    assert ids == [str(line) for line in range(2, 10)], (
        "without a column id the lines should be the ids")
    assert examples[0].texts == ("p", "x", EMPTY)
    other = write(tmp_path / "e.csv", [("p", "x", "y", "b")], (*PLAIN[:3], "label"))
    assert read_arena(other)[0][0].label == "b"


def test_of_label_and_winner_folds_and_train_read_the_same(tmp_path, capsys):
    path = write(tmp_path / "d.csv", [("p", "x", "y", "b", "a")], (*PLAIN, "label"))
    assert read_arena(path)[0][0].label == read_examples(path)[0].label == "a"
    assert capsys.readouterr().err == (f"note: {path}: of its columns label and winner, label is "
                                       "read (another: --label-column winner)\n")


def test_jsonl(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [dict(zip(COMPETITION, battle(1, ["Hi", "x"], ["a", None], ["b", "c"]))),
            dict(zip(COMPETITION, battle(2, "Hi", "a", "b", (False, 0, 1))))]
    path.write_text(json.dumps(rows[0]))
    assert read_arena(path)[0][0].texts[1] == f"[turn 1]\na\n\n[turn 2]\n{EMPTY}", (
        "a list need not be spelled in a string")
    path.write_text("\n".join(map(json.dumps, rows)))
    refused(path, "line 2", "winner_model_a", "False")
    rows[1] |= {"prompt": 3, "winner_model_a": 0}
    path.write_text("\n".join(map(json.dumps, rows)))
    refused(path, "line 2", "'prompt'", "3")


def test_without_a_winner(tmp_path):
    path = write(tmp_path / "test.csv", [(136060, "[1]", "a", "b")], ("id", *PLAIN[:3]))
    examples, ids = read_arena(path, need_labels=False)
    assert ids == ["136060"] and examples[0].label is None
    refused(path, "winner")
    assert is_arena(("id", *PLAIN[:3])) and not is_arena(("prompt", "response_a", "winner"))


@pytest.mark.parametrize("won", [
    (1, 1, 0), (0, 0, 0), (1, 0, 1), (1, 1, 1), (2, 0, 0), (-1, 1, 1), ("", "", ""), ("yes", 0, 0),
    (0.5, 0.5, 0)])
def test_not_exactly_one_winner(tmp_path, won):
    refused(write(tmp_path / "train.csv", [battle(), battle(8, won=won)]), "train.csv, line 3",
            "winner_tie", "one 1 and two 0")


def test_other_refusals(tmp_path):
    wrong = write(tmp_path / "a.csv", [("p", "x", "y", "a"), ("p", "x", "y", "c")], PLAIN)
    refused(wrong, "line 3", "'winner'", '"c"', "tie (bothbad)")
    refused(write(tmp_path / "b.csv", [("p", "x", "y", "")], PLAIN), "line 2", "'winner'")
    refused(write(tmp_path / "c.csv", [("p", "x", "a")], ("prompt", "response_a", "winner")),
            "'response_b'")
    refused(write(tmp_path / "d.csv", [battle(5), battle(6), battle(5)]), "line 4", "'5'", "line 2")
    refused(write(tmp_path / "e.csv", [battle()[:-1]], COMPETITION[:-1]), "line 2", "None")


@pytest.mark.parametrize("name, rows", [("pref_human", 2345), ("pref_gpt4", 4163)])
def test_real_battles(name, rows):
    path = SHARED / name / "train.csv"
    if not path.exists():
        pytest.skip(f"{path.name} of {name} is not there")
    examples, ids = read_arena(path)
    with open(path, encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    assert len(examples) == len(set(ids)) == rows
    assert Counter(e.label for e in examples) == Counter(r["label"] for r in records)
    changed = [e.row for e, r in zip(examples, records)
               if e.texts != tuple(r[c] or EMPTY for c in PLAIN[:3])]
    assert not changed, f"plain texts should be read as they are: {changed[:5]}"
