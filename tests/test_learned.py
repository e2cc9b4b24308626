"""A classifier knows which texts it has learned, wherever it is copied to, and who judges it by
them is told so."""
import csv
import hashlib
import json
import os
import random
import shutil

import pytest
import small
from conftest import refused

from minillmclf import Classifier, evaluate, fine_tune, merge, train
from minillmclf.classify.learned import (count_learned, hash_row, hash_rows, read_learned,
                                         unite)
from minillmclf.compare import __main__ as compare
from minillmclf.compare.runs import RECORD_FIELDS
from minillmclf.files import check_fields
from minillmclf.folds import __main__ as folds
from minillmclf.text.examples import Example, read_examples

QUICK = dict(epochs=1, batch_size=8, lr=3e-3, max_length=16)
TOLD = "rows were learned by this model: judge it by others"


def write(path, rows, header=("text", "label")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def examples(*texts):
    return [Example(each if isinstance(each, tuple) else (each,), None, 0) for each in texts]


def trained(place, **settings):
    return train.main(small.flags(**QUICK, model=place / "bert", **settings))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with bert, my.csv without a column split, and runs on it in full and by LoRA."""
    folder = tmp_path_factory.mktemp("learned")
    small.bert_folder(folder / "bert", layers=1)
    write(folder / "my.csv", small.texts_of(random.Random(0), 60))
    for method in ("full", "lora", "houlsby"):
        assert trained(folder, data=folder / "my.csv", method=method, out=folder / method) == 0
    return folder


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def learned_of(run):
    """The hashes of the training rows of a run on my.csv: of those that it was not judged by."""
    sizes = json.loads((run / "run.json").read_text())["data"]["rows"]
    judged = {row[1] for row in rows_of(run / "predictions.csv")}
    return sizes, judged


def judge(capsys, tmp_path, model, *more):
    """evaluate -> what it prints, the record of --out."""
    out = tmp_path / "judged.json"
    assert evaluate.main(["--model", str(model), "--out", str(out), "--overwrite",
                          *map(str, more)]) == 0
    return capsys.readouterr().out, json.loads(out.read_text())


# ---------------------------------------------------------------- hashes

def test_a_hash_is_that_of_all_texts_of_a_row_without_case_and_white_space():
    one, same, pair, joined, other = map(hash_row, examples(
        "A rose", " a \n ROSE ", ("a", "rose"), "a, rose", ("rose", "a")))
    assert one == same and len({one, pair, joined, other}) == 4
    assert one == hashlib.sha256(b'["a rose"]').hexdigest()[:16]   # as old files have it
    assert hash_rows([]) == set() and len(hash_rows(examples("\udc80", "\udc80"))) == 1


def test_hashes_are_united_and_counted():
    a, b = hash_rows(examples("a", "b", "a")), hash_rows(examples("b", "c"))
    assert unite(None, None) is None and unite(a, None) == a and len(a) == 2
    assert unite(a, b) == hash_rows(examples("a", "b", "c"))
    assert count_learned(unite(a, b), examples("a", "A", "d")) == 2
    assert count_learned(None, examples("a")) is None


@pytest.mark.parametrize("fault", [
    {"hashes": [1]}, {"hashes": ["0123456789abcde"]}, {"hashes": ["0123456789abcdeF"]}, {},
    {"hashes": "0123456789abcdef"}, [], "no JSON", None])
def test_a_broken_file_is_named(place, tmp_path, fault):
    run = shutil.copytree(place / "full", tmp_path / "run")
    path = run / "learned.json"
    path.unlink()
    if fault is None:
        path.mkdir()
    else:
        path.write_text(fault if isinstance(fault, str) else json.dumps(fault))
    refused(lambda: Classifier.load(run), str(path))


# ---------------------------------------------------------------- carried along

def test_a_run_writes_its_training_rows_and_each_way_to_load_it_reads_them(place):
    rows, found = read_examples(place / "my.csv"), {}
    for method in ("full", "lora", "houlsby"):
        run, (sizes, judged) = place / method, learned_of(place / method)
        folder = run if method == "full" else run / "adapter"
        found[method] = read_learned(folder)
        assert os.path.getsize(folder / "learned.json") < 100 + 26 * len(rows)
        assert len(found[method]) == sizes["train"] == 60 - sizes["dev"] - sizes["test"]
        assert count_learned(found[method], [e for e in rows if e.texts[0] in judged]) == 0
        assert Classifier.load(run).learned == found[method]
    assert found["full"] == found["lora"]
    assert Classifier.load(place / "lora" / "adapter").learned == found["lora"]
    assert Classifier.load(place / "lora", base=place / "bert").learned is not None
    assert Classifier.from_backbone(place / "bert", ["a", "b"]).learned is None


def saved_again(place, tmp_path, method="full"):
    Classifier.load(place / method).save(tmp_path / "again")
    return tmp_path / "again"


def merged(place, tmp_path):
    assert merge.main(small.flags(model=place / "lora", out=tmp_path / "merged")) == 0
    (tmp_path / "merged" / "merged.json").unlink()
    return tmp_path / "merged"


def merged_adapter(place, tmp_path):
    assert merge.main(small.flags(model=place / "lora" / "adapter", out=tmp_path / "merged",
                                  data=place / "my.csv")) == 0
    return tmp_path / "merged"


def from_memory(place, tmp_path):
    fine_tune(place / "bert", [tuple(row) for row in rows_of(place / "my.csv")],
              out=tmp_path / "memory", **QUICK)
    return tmp_path / "memory"


@pytest.mark.parametrize("made", [
    saved_again, lambda *a: saved_again(*a, "lora"), lambda *a: saved_again(*a, "houlsby"),
    lambda place, _: place / "lora" / "adapter", merged, merged_adapter, from_memory])
def test_evaluate_tells_that_most_rows_were_learned(place, tmp_path, capsys, made):
    model = made(place, tmp_path)
    printed, record = judge(capsys, tmp_path, model, "--data", place / "my.csv")
    count = len(read_learned(place / "full"))
    assert record["rows"] == 60 and record["learned_rows"] == count > 30
    assert printed.endswith(f"WARNING: {count} of 60 {TOLD}\n")


def test_evaluate_knows_the_rows_of_a_file_that_was_changed(place, tmp_path, capsys):
    rows = rows_of(place / "my.csv")
    count = len(read_learned(place / "full"))
    for name, changed in (("reordered", rows[::-1]), ("longer", [*rows, ["new text", rows[0][1]]])):
        path = write(tmp_path / f"{name}.csv", changed)
        printed, record = judge(capsys, tmp_path, place / "full", "--data", path)
        assert record["learned_rows"] == count and f"{count} of {len(changed)} {TOLD}" in printed
    path = write(tmp_path / "other.csv", small.texts_of(random.Random(9), 30))
    printed, record = judge(capsys, tmp_path, place / "full", "--data", path)
    assert record["learned_rows"] == count_learned(
        read_learned(place / "full"), read_examples(path)) == 0
    assert "WARNING" not in printed


def test_evaluate_is_silent_on_the_runs_own_rows_and_on_train_rows_that_were_asked_for(
        place, tmp_path, capsys):
    data = small.data_file(tmp_path / "data.csv")
    assert trained(place, data=data, out=tmp_path / "run") == 0
    capsys.readouterr()
    for split, learned in (("test", 0), ("dev", 0), ("train", 30)):
        printed, record = judge(capsys, tmp_path, tmp_path / "run", "--split", split)
        assert "WARNING" not in printed and record["learned_rows"] == learned


def test_a_model_without_the_file_is_judged_as_before(place, tmp_path, capsys):
    run = shutil.copytree(place / "full", tmp_path / "run")
    (run / "learned.json").unlink()
    printed, record = judge(capsys, tmp_path, run)
    assert "WARNING" not in printed and record["learned_rows"] is None
    Classifier.load(run).save(tmp_path / "again")
    assert not (tmp_path / "again" / "learned.json").exists()


def test_prompts_of_a_model_that_has_learned_the_rows(place, tmp_path, capsys):
    small.bert_folder(tmp_path / "lm", layers=1, lm_head=True)
    asked = dict(template="{text} the {label}", data=place / "my.csv")
    assert train.main(small.flags(**QUICK, **asked, model=tmp_path / "lm", readout="labels",
                                  out=tmp_path / "run")) == 0
    printed, record = judge(capsys, tmp_path, tmp_path / "run", "--method", "prompt", "--seed", 1,
                            *small.flags(**asked))
    assert record["learned_rows"] > 0 and f"{record['learned_rows']} of" in printed
    assert TOLD in printed


# ---------------------------------------------------------------- replaced

def test_an_older_file_goes_with_its_model(place, tmp_path):
    for method in ("full", "lora"):
        run = shutil.copytree(place / method, tmp_path / method)
        model = Classifier.load(run)
        model.learned = None
        model.save(run)
        assert Classifier.load(run).learned is None, method


def test_overwrite_removes_the_file_of_the_other_kind_of_run(place, tmp_path):
    data = small.data_file(tmp_path / "data.csv")
    for old, new, gone in (("full", "lora", "learned.json"),
                           ("lora", "full", "adapter/learned.json")):
        run = shutil.copytree(place / old, tmp_path / old)
        assert train.main([*small.flags(**QUICK, model=place / "bert", data=data, method=new,
                                        out=run), "--overwrite"]) == 0
        assert not (run / gone).exists() and len(Classifier.load(run).learned) == 30


# ---------------------------------------------------------------- learned before

def test_training_goes_on_from_what_its_model_has_learned(place, tmp_path, capsys):
    """The same rows, split otherwise: the test rows were learned, and their score is memory."""
    asked = dict(QUICK, model=place / "full", data=place / "my.csv", seed=1, few_rows="off")
    assert train.main(small.flags(**asked, out=tmp_path / "next")) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "had learned" in line]
    record = json.loads((tmp_path / "next" / "run.json").read_text())
    counts = record["learned_before"]
    before, rows = read_learned(place / "full"), read_examples(place / "my.csv")
    judged = {row[1] for row in rows_of(tmp_path / "next" / "predictions.csv")}
    tested = [e for e in rows if e.texts[0] in judged]
    assert counts["test"] == [count_learned(before, tested), len(tested)] and counts["test"][0]
    assert len(told) == 1 and told[0].startswith(
        f"WARNING: {place / 'full'} had learned {counts['test'][0]} of {len(tested)} test rows")
    after = Classifier.load(tmp_path / "next").learned
    assert after == unite(before, after) and len(after) > len(before)
    assert train.main(small.flags(**asked, out=tmp_path / "next")) == 0     # finished already
    assert told[0] in capsys.readouterr().out
    assert train.main(small.flags(**asked, weights="random", out=tmp_path / "random")) == 0
    assert "had learned" not in capsys.readouterr().out


def test_an_adapter_on_a_model_that_has_learned_keeps_both(place, tmp_path, capsys):
    said = []
    rows = [tuple(row) for row in rows_of(place / "my.csv")]
    model = fine_tune(place / "full", rows, seed=1, method="lora", say=said.append,
                      out=tmp_path / "run", **QUICK)
    assert len([line for line in said if "had learned" in line]) == 1
    alone = fine_tune(place / "bert", rows, seed=1, method="lora", **QUICK).learned
    assert model.learned == unite(alone, read_learned(place / "full"))
    assert model.learned == read_learned(tmp_path / "run" / "adapter")


def test_no_word_where_the_model_has_learned_the_train_rows_alone(place, tmp_path, capsys):
    assert train.main(small.flags(**QUICK, model=place / "full", data=place / "my.csv",
                                  out=tmp_path / "run")) == 0
    assert "had learned" not in capsys.readouterr().out
    assert "learned_before" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_folds_tell_how_many_rows_were_learned(place, tmp_path, capsys):
    count = len(read_learned(place / "full"))
    for model, told in (("full", [f"WARNING: {place / 'full'} had learned {count} of 60 held-out "
                                  "rows before this training"]), ("bert", [])):
        assert folds.main(small.flags(**QUICK, model=place / model, data=place / "my.csv", folds=2,
                                      out=tmp_path / model)) == 0
        found = [line for line in capsys.readouterr().out.splitlines() if "had learned" in line]
        assert [line[:len(start)] for line, start in zip(found, told, strict=True)] == told
    record = json.loads((tmp_path / "full" / "folds.json").read_text())
    assert record["learned_before"] == {"held-out": [count, 60]}


def test_a_comparison_tells_it_once_a_model(place, tmp_path, capsys):
    judged = learned_of(place / "full")[1]
    rows = [[*row, "train" if row[0] in judged else ("train", "dev", "test")[number % 3]]
            for number, row in enumerate(rows_of(place / "my.csv"))]
    parts = [split for _, _, split in rows]
    data = write(tmp_path / "marked.csv", rows, ("text", "label", "split"))
    assert compare.main(["--models", "majority", str(place / "full"), str(place / "bert"),
                         *small.flags(**QUICK, seeds=2, data=data, out=tmp_path / "out")]) == 0
    test, dev = parts.count("test"), parts.count("dev")
    for text in (capsys.readouterr().out, (tmp_path / "out" / "table.md").read_text()):
        told, = [line for line in text.splitlines() if "had learned" in line]
        assert told.startswith(f"WARNING: {place / 'full'} had learned {test} of {test} test rows "
                               f"and {dev} of {dev} dev rows before this training")


def test_swapped_pairs_count_as_learned(tmp_path):
    """A model that learns each row in both orders has learned both."""
    small.bert_folder(tmp_path / "bert", layers=1)
    texts = [text for text, _ in small.texts_of(random.Random(4), 180)]
    rows = [[*texts[i:i + 3], ("a", "b", "tie")[i // 3 % 3]] for i in range(0, 180, 3)]
    data = write(tmp_path / "pairs.csv", rows, ("prompt", "response_a", "response_b", "label"))
    sizes = {}
    for swap in ("none", "both"):
        assert train.main(small.flags(**{**QUICK, "max_length": 48}, model=tmp_path / "bert",
                                      data=data, preference="head", swap=swap,
                                      out=tmp_path / swap)) == 0
        sizes[swap] = len(read_learned(tmp_path / swap))
    assert sizes["both"] == 2 * sizes["none"] > 0


def test_the_bytes_are_the_same_however_the_rows_came(place, tmp_path):
    again = saved_again(place, tmp_path) / "learned.json"
    assert again.read_bytes() == (place / "full" / "learned.json").read_bytes()
    hashes = json.loads(again.read_text())["hashes"]
    assert hashes == sorted({*hashes}) and len(hashes) == len(read_learned(place / "full"))


def test_a_damaged_record_of_a_run_of_a_comparison_is_named():
    counts = {"learned_before?": RECORD_FIELDS["learned_before?"]}
    for value in ({}, {"test": [3, 9]}):
        check_fields({"learned_before": value}, counts, "cell.json")
    for value in (3, {"test": 3}, {"test": [1, 2, 3]}):
        refused(lambda: check_fields({"learned_before": value}, counts, "cell.json"),
                "learned_before")
