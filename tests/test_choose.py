"""Does the advice follow from the facts, rule by rule, and are the facts those of the data, the
models and the comparison?"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MODELS, refused
from small import ROOT, bert_folder, data_file, environment

from minillmclf import train
from minillmclf.compare import __main__ as compare
from minillmclf.choose import facts as the_facts, measured, page, __main__ as choose
from minillmclf.choose.advice import (FEW_ROWS_GAIN, advise, command_of, is_near,
                                       measured_flags)
from minillmclf.classify.family_heads import build_head
from minillmclf.cli.few_rows import read_run
from minillmclf.cli.memory import training_memory
from minillmclf.compare.source import other_source, source_of
from minillmclf.models import load_backbone
from minillmclf.cli.settings import Settings, read_settings
from minillmclf.text.data import Dataset, load_data


def model(kind="encoder", name=None, median=50, limit=100, over=0.0, fit=("full", "lora", "qlora")):
    ways = [{"method": method, "trainable": 1, "bytes": 1, "at_least": False, "fits": method in fit}
            for method in ("full", "head", "lora", "qlora")]
    return {"name": name or kind, "kind": kind, "median": median, "limit": limit, "over": over,
            "methods": ways}


def facts(*models, purpose="classify", texts=1, preference=False, imbalance=1.0, room=1,
          comparison=None, rows_per_class=100, few=False):
    return {"purpose": purpose, "asked": {}, "rows_at_once": 32, "machine": {"room": room},
            "comparison": comparison,
            "models": models or (model("decoder"), model(), model("encoder-decoder")),
            "data": {"texts": texts, "preference": preference, "imbalance": imbalance,
                     "rows_per_class": rows_per_class, "few": few}}


@pytest.mark.parametrize("given, flags, reason", [
    (facts(), {"model": "encoder", "method": "full"},
     "an encoder is fastest; training in full fits"),
    (facts(purpose="generate"), {"model": "decoder", "method": "full", "readout": "labels"},
     "a decoder writes and classifies"),
    (facts(purpose="text-to-text"),
     {"model": "encoder-decoder", "method": "full", "readout": "labels"}, "made for text to text"),
    (facts(model("decoder")), {"model": "decoder", "method": "full"},
     "there is no encoder among the models"),
    (facts(model(name="a"), model(name="b")), {"model": "a", "method": "full"}, "fits"),
    (facts(model(fit=("head", "lora", "qlora"))), {"model": "encoder", "method": "lora"},
     "lora fits, full does not"),
    (facts(model(fit=("qlora",))), {"model": "encoder", "method": "qlora"},
     "qlora fits, full does not"),
    (facts(model(name="large", fit=()), model(name="small", fit=("lora",))),
     {"model": "small", "method": "lora"}, "lora fits"),
    (facts(model(fit=())), {"model": "encoder", "method": "qlora", "micro_batch_size": 1,
                            "gradient_checkpointing": "on"}, "nothing fits"),
    (facts(model(fit=()), room=None), {"model": "encoder", "method": "full"}, "not known here"),
    (facts(model(over=0.05)), {"model": "encoder", "method": "full"}, "fits"),
    (facts(model(over=0.06)), {"model": "encoder", "method": "full", "truncation_side": "middle"},
     "6% of the texts are cut"),
    (facts(model(over=0.6, median=101)), {"model": "encoder", "method": "full", "windows": "mean",
                                          "micro_batch_size": 4}, "windows read them whole"),
    (facts(model("decoder", over=0.6, median=101), purpose="generate"),
     {"model": "decoder", "method": "full", "readout": "labels"}, "a model that writes"),
    (facts(rows_per_class=49), {"model": "encoder", "method": "full", "few_rows": "on"},
     "49 rows a class are few"),
    (facts(rows_per_class=49) | {"asked": {"micro_batch_size": 4}},
     {"model": "encoder", "method": "full"}, "fits"),    # train refuses both together
    (facts(imbalance=5.1), {"model": "encoder", "method": "full", "class_weights": "balanced",
                            "metric": "macro_f1"}, "5.1 times the rows"),
    (facts(texts=3, preference=True),
     {"model": "encoder", "method": "full", "preference": "bradley-terry"}, "two answers"),
    (facts(texts=3), {"model": "encoder", "method": "full", "readout": "labels"},
     "label texts take 3 texts a row")])
def test_each_rule_gives_its_flags_and_its_reason(given, flags, reason):
    found, why = advise(given)
    assert found == flags and reason in "; ".join(why), (found, why)
    if "preference" not in flags or hasattr(Settings(), "preference"):
        # a run would take them
        read_settings({name: value for name, value in found.items() if name != "model"})
    words = shlex.split(command_of(found))[3:]              # and the command as it is printed
    typed = vars(train.parse(words))
    assert {name: typed[name] for name in found} == {
        name: type(typed[name])(value) for name, value in found.items()}, words


def row(label, method="full", score=0.9, seconds=10.0, ms=1.0, low=-0.2, high=-0.1, p=0.001,
        best=False, **more):
    return {"model": label.partition(",")[0], "label": label, "method": method,
            "readout": "head" if method else "", "settings": "", "size": "all", "split": "test",
            "metric": "accuracy", "score": {"mean": score, "low": score - .01, "high": score + .01},
            "dev": score, "dev_rows": 100, "train_seconds": seconds,
            "ms_per_text": ms, "best": best,
            "difference": None if best else {"mean": (low + high) / 2, "low": low, "high": high},
            "mcnemar": None if best else p, **more}


ROWS = [row("bag-of-words", "", 0.7, 0.1, 0.01),
        row("bert, full", score=0.90, dev=0.95, seconds=90.0),
        row("bert, lora", "lora", 0.94, 60.0, dev=0.93,
            settings="rank=4"),  # the error at 0.95 is 0.0218
        row("bert, head", "head", 0.8, 5.0, 0.5),
        row("bert, bitfit", "bitfit", 0.97, 50.0, dev=0.928, best=True),
        row("bert, lora", "lora", 0.99, 1.0, 0.1, size=10)]


def comparison(folder, data, rows=ROWS, **asked):
    folder.mkdir(parents=True)
    (folder / "table.json").write_text(json.dumps({"metric": "accuracy", "rows": rows}))
    (folder / "settings.json").write_text(
        json.dumps({"models": ["path/to/bert@pool=mean"], "seeds": 2, "out": "x", "data": str(data),
                    "epochs": 3, **asked}))
    return folder


def of(path, sha256="0", text="text", label="label"):
    """The Dataset of a file."""
    return Dataset("d", [], [], [], [], (text,), {"path": path, "sha256": {path: sha256}},
                   label_column=label)


def test_a_comparison_is_of_the_rows_and_columns_that_it_read(tmp_path):
    folder = comparison(tmp_path / "c", "my.csv", source=source_of(of("my.csv")))
    assert measured.comparison_facts(str(folder), of("moved.csv")), "the same rows, moved"
    for data, words in ((of("my.csv", sha256="1"), "other rows than my.csv has now"),
                        (of("my.csv", label="long"), "another label column (label)"),
                        (of("my.csv", text="title"), "other text columns (text)")):
        refused(lambda: measured.comparison_facts(str(folder), data), "--comparison", words)
    old = comparison(tmp_path / "old", "my.csv", label_column="topic", text_column="a, b")
    assert not other_source(old, Dataset("d", [], [], [], [], ("a", "b"), of("my.csv").source,
                                         label_column="topic"))
    assert other_source(old, of("my.csv")) == "other text columns (a, b)"
    broken = comparison(tmp_path / "broken", "my.csv", source={"sha256": 3})
    refused(lambda: other_source(broken, of("my.csv")), "settings.json", "source")
    for number, lr in enumerate((None, "auto", 1, 3e-4)):
        other_source(comparison(tmp_path / f"rate-{number}", "my.csv", lr=lr), of("my.csv"))
    broken = comparison(tmp_path / "fast", "my.csv", lr="fast")
    refused(lambda: other_source(broken, of("my.csv")), "settings.json", "lr")


def test_a_comparison_is_read_and_goes_before_the_rules(tmp_path, monkeypatch):
    folder = comparison(tmp_path / "runs" / "mine", "my.csv")
    found = measured.comparison_facts(str(folder), of("my.csv"))
    assert found["best"] == ROWS[1] and found["fastest"] == ROWS[3], (
        "fastest: of trained rows, the baseline is none")
    assert found["cheapest"] == ROWS[2], (
        "bitfit is best on test, which chooses nothing; 10 rows a class are another question")
    flags, why = advise(facts(comparison=found))
    assert flags == {"model": "path/to/bert", "method": "lora", "epochs": 3, "rank": "4"}, flags
    assert why == [
        "measured: the shortest training within one standard error of the best on dev (bert, full)"]
    text = "\n".join(page.comparison_lines(found))
    for part in ("bert, lora rank=4",
                 "0.940 [0.930, 0.950], dev 0.930, trained in 60 s, 1.00 ms a text",
                 "test accuracy"):
        assert part in text, text
    monkeypatch.chdir(tmp_path)
    assert measured.comparison_facts(None, of("my.csv"))["folder"] == "runs/mine", (
        "the comparison in runs/ is found")
    comparison(tmp_path / "runs" / "vain", "my.csv", [])
    assert measured.comparison_facts(None, of("my.csv"))["folder"] == "runs/mine", (
        "a newer one that trained nothing is passed over")
    assert measured.comparison_facts(None, of("other.csv")) is None, "that of other data is not"
    refused(lambda: measured.comparison_facts(str(folder), of("other.csv")),
            "--comparison", "other rows than other.csv has now (its --data is my.csv)")
    empty = str(comparison(tmp_path / "empty", "a", []))
    refused(lambda: measured.comparison_facts(empty, of("a")), "has no rows")
    refused(lambda: measured.comparison_facts(str(tmp_path / "nothing"), of("a")),
            "settings.json: is not there")


def test_what_is_no_comparison_is_passed_over_unless_it_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    comparison(tmp_path / "runs" / "mine", "my.csv")
    for number, (name, text) in enumerate((
            ("settings.json", "[1]"), ("settings.json", "{"), ("table.json", "[]"),
            ("table.json", '{"rows": [{}]}'), ("table.json", "{}"))):
        folder = comparison(tmp_path / "runs" / str(number), "my.csv")
        (folder / name).write_text(text)
        assert measured.comparison_facts(None, of("my.csv"))["folder"] == "runs/mine", text
        assert f"passed over: runs/{number}/{name}: " in capsys.readouterr().err
        refused(lambda: measured.comparison_facts(str(folder), of("my.csv")), name)


def test_where_nothing_trained_comes_near_a_baseline_the_rules_advise_and_it_is_said(tmp_path):
    rows = [row("bag-of-words", ""), row("bert, full", score=0.95, dev=0.8, best=True)]
    found = measured.comparison_facts(str(comparison(tmp_path / "c", "a", rows)), of("a"))
    assert found["cheapest"] is None
    flags, why = advise(facts(comparison=found))
    assert flags["model"] == "encoder" and "worse on dev than the best (bag-of-words)" in why[0]


def test_near_is_within_one_standard_error_of_the_best_on_dev():
    best = row("a", dev=0.8)                                     # sqrt(0.8 x 0.2 / 100) = 0.04
    assert is_near(row("b", dev=0.761), best) and not is_near(row("b", dev=0.759), best)
    assert is_near(best, best)
    assert not is_near(row("b", dev=0.79), {**best, "dev_rows": None}), (
        "of an older comparison the number of dev rows is not known")
    assert not is_near(row("b", dev=0.81, metric="log_loss"), {**best, "metric": "log_loss"})


def test_the_best_log_loss_is_the_smallest(tmp_path):
    rows = [row("a", dev=0.5, metric="log_loss", best=True), row("b", dev=0.4, metric="log_loss")]
    assert measured.comparison_facts(str(comparison(tmp_path / "c", "a", rows)),
                                     of("a"))["best"]["label"] == "b"


def test_a_models_own_settings_and_those_of_all_are_flags():
    made = {"settings": {"models": ["a/bert@lr=0.1,pool=mean"], "methods": ["full"], "data": "x",
                         "batch_size": 8, "sweep": [], "out": "y"}}
    found = measured_flags(made, row("bert", readout="labels", settings="epochs=2") | {
        "model": "bert@lr=0.1,pool=mean"})
    assert found == {"model": "a/bert", "method": "full", "batch_size": 8, "readout": "labels",
                     "lr": "0.1", "pool": "mean", "epochs": "2"}
    made["settings"]["models"] = None                      # which check_fields allows
    assert measured_flags(made, row("bert"))["model"] == "bert"
    made["settings"] |= {"methods": ["full", "lora"], "rank": 16}
    assert measured_flags(made, row("bert", method="lora"))["rank"] == 16
    assert "rank" not in measured_flags(made, row("bert")), "train refuses --rank with full"


def test_the_printed_command_makes_the_run_of_the_comparison_again(tmp_path, call):
    """Of few rows train by itself would choose settings that no comparison has."""
    bert_folder(tmp_path / "bert", layers=1)
    data, folder = tmp_path / "few.csv", tmp_path / "compared"
    data.write_text("text,label\n" + "".join(
        f"a rose {n},garden\na soup {n},kitchen\n" for n in range(20)))
    code, _, error = call(compare, "--data", data, "--models", tmp_path / "bert", "--methods",
                          "full@objective=contrastive", "--head-init", "probe", "--seeds", 1,
                          "--epochs", 1, "--out", folder)
    assert code == 0, error
    _, out, _ = call(choose, "--data", data, "--models", tmp_path / "bert", "--comparison", folder)
    command = re.search("start with: python -m minillmclf.train (.*)", out)[1]
    assert "--few-rows off" in command
    given = vars(train.parse(shlex.split(command)))
    given = {name: value for name, value in given.items() if name not in ("config", "overwrite")}
    s, _, line = read_run(read_settings(given), given)
    run = next(folder.glob("cells/bert-*/run.json"))
    compared = read_settings({}, run).decisive_settings()
    assert s.decisive_settings() == compared | {"data": str(data)} and not line
    found = the_facts.data_facts(load_data(data))
    assert found["few"] and found["rows_per_class"] == 18, "2 of 20 are test rows"
    many = the_facts.data_facts(load_data("tickets"))
    assert not many["few"] and many["rows_per_class"] == 776 / 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `bert` and data.csv. Tests only read it."""
    folder = tmp_path_factory.mktemp("choose")
    bert_folder(folder / "bert")
    data_file(folder / "data.csv")
    return folder


def asked(place, capsys, *more):
    assert choose.main(["--data", str(place / "data.csv"), "--models", str(place / "bert"),
                        "--batch-size", "8", *more]) == 0
    return capsys.readouterr().out


def test_facts_are_those_of_the_data_and_of_the_estimator(place, capsys):
    found = json.loads(asked(place, capsys, "--json"))
    data = load_data(place / "data.csv")
    rows = [example.label for example in data.train]
    assert found["data"]["rows"] == {"train": 30, "dev": 9, "test": 9}
    assert found["data"]["rarest_rows"] == min(map(rows.count, data.labels))
    (it,), body = found["models"], load_backbone(place / "bert")
    assert it["kind"] == "encoder" and it["median"] <= it["p95"] <= it["limit"] == 64
    assert it["over"] == 0
    head = build_head("bert", body, len(data.labels))
    for way in it["methods"]:
        trained, held, kept = training_memory(body, head, way["method"], it["p95"])
        assert (way["trainable"], way["fits"]) == (trained, True)
        assert way["bytes"] == pytest.approx(held + 8 * kept, rel=1e-3), (
            f"{way['method']}: another estimate than inspect's")
    said = asked(place, capsys, "--json", "--micro-batch-size", "2")
    few = json.loads(said)["models"][0]["methods"]
    assert all(a["bytes"] < b["bytes"] for a, b in zip(few, it["methods"])), (
        "fewer rows at a time keep less")
    for way in few:                       # from the second two rows on, gradients are held too
        trained, held, kept = training_memory(body, head, way["method"], it["p95"])
        assert way["bytes"] == pytest.approx(held + 4 * trained + 2 * kept, rel=1e-3), way
    short = json.loads(asked(place, capsys, "--json", "--max-length", "5"))["models"][0]
    assert short["limit"] == short["length"] == 5 and short["over"] > 0.5


def test_texts_in_two_splits_are_told(place, capsys, tmp_path):
    """A comparison shows its test scores there, and these texts flatter them."""
    assert "WARNING" not in asked(place, capsys)
    lines = (place / "data.csv").read_text().splitlines()
    again = [line.replace(",train", ",test") for line in lines if line.endswith(",train")][:5]
    (tmp_path / "again.csv").write_text("\n".join([*lines, *again]))
    out = asked(place, capsys, "--data", tmp_path / "again.csv")
    warning = "5 text(s) of train stand in test too and flatter its scores: remove them from train"
    assert f"\n  WARNING: {warning}\n" in out
    found = json.loads(asked(place, capsys, "--data", tmp_path / "again.csv", "--json"))
    assert found["data"]["warnings"] == [warning]


def test_the_page_fits_and_ends_with_a_command(place, capsys):
    out = asked(place, capsys, "--max-length", "5")
    assert max(len(line) for line in out.splitlines()
               if "start with" not in line and "because" not in line) <= 120
    for part in ("the rule of thumb", "one text a row", "48 rows (30 train, 9 dev, 9 test)",
                 "--windows mean reads them whole", "cores; memory", "no comparison of these data"):
        assert part in out, f"{part!r} is not in {out}"
    last = next(line for line in out.splitlines() if line.startswith("start with: "))
    assert "python -m minillmclf.train --model " in last and "--method full" in last
    assert "--max-length 5" in last


def test_what_does_not_fit_is_marked_and_not_loaded(place, capsys, monkeypatch):
    machine = {"cores": 1, "memory": {"total": 10**5, "free": 50_000}, "gpu": None}
    monkeypatch.setattr(page, "machine_facts", lambda: machine | {"room": 50_000})
    out = asked(place, capsys)
    assert "> " in out and " NO" in out and " yes" not in out, out
    assert "--method qlora --micro-batch-size 1 --gradient-checkpointing --data" in out
    assert "nothing fits" in out
    monkeypatch.setattr(page, "machine_facts",
                        lambda: {**machine, "memory": {"total": None, "free": None}, "room": None})
    out = asked(place, capsys)
    assert "memory not known, free not known" in out and " NO" not in out.replace("(NO:", "")
    assert "not known here" in out


def test_models_in_checkpoints_are_found_and_a_broken_one_is_said(tmp_path, place, capsys,
                                                                  monkeypatch):
    bert_folder(tmp_path / "good")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "bert"}')
    for module in (the_facts, sys.modules["minillmclf.files"]):
        monkeypatch.setattr(module, "CHECKPOINTS", tmp_path)
    assert choose.main(["--data", str(place / "data.csv")]) == 0
    out = capsys.readouterr().out
    assert "broken: left out: " in out and "--model good" in out, out
    refused(lambda: choose.main(["--data", str(place / "data.csv"), "--models", "broken"]),
            "broken")


def test_kinds_are_those_of_the_families():
    names = {"bert_masked_lm": "encoder", "llama_lm": "decoder", "gpt2_lm": "decoder",
             "t5_lm": "encoder-decoder"}
    assert {name: load_backbone(MODELS / name).KIND for name in names} == names


def test_a_percentile_is_the_nearest_rank():
    assert [the_facts.percentile(range(1, 21), p) for p in (50, 95, 100)] == [10, 19, 20]
    assert the_facts.percentile([7], 95) == 7
    eleven = [the_facts.percentile(range(1, 12), p) for p in (50, 95)]   # ranks 5.5 and 10.45
    assert eleven == [6, 11], "between two ranks it is the upper one"


def test_a_path_with_blanks_stays_one_argument():
    assert (command_of({"model": "my models/a", "batch_size": 8})
            == "python -m minillmclf.train --model 'my models/a' --batch-size 8")


def test_mistakes_are_one_line_and_help_needs_no_torch(place, call):
    for arguments, fault in ((["--models", "nowhere"], "nowhere: no such model folder"),
                             (["--data", "nowhere"], "'nowhere': no such file"),
                             (["--batch-size", "0"], "--batch-size 0: should be 1 or more"),
                             (["--comparison", "nowhere"], "nowhere/settings.json: is not there")):
        code, out, error = call(choose, *arguments)
        assert code == 2 and not out and fault in error and error.count("\n") == 1, error
    program = ("import sys; import minillmclf.choose.__main__, minillmclf.choose.advice; "
               "sys.exit('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment())
    assert done.returncode == 0, "torch was loaded"


@pytest.mark.parametrize("labels", [("a", "b", "tie"), ("model_a", "model_b", "tie")])
def test_a_preference_is_seen_by_each_spelling_of_its_classes(labels, tmp_path):
    rows = [{"prompt": f"name a fruit {i}", "response_a": "an apple", "response_b": f"chair {i}",
             "label": labels[i % 3]} for i in range(30)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_data(path, "prompt,response_a,response_b")
    assert the_facts.data_facts(data)["preference"] is True


def test_what_few_rows_gain_is_what_was_measured():
    page = (Path(__file__).parents[1] / "lessons/measurements/few_rows.md").read_text(
        encoding="utf-8")
    row = next(line for line in page.splitlines()
               if line.startswith("| tickets | 10 |") and FEW_ROWS_GAIN["contrastive"] in line)
    assert FEW_ROWS_GAIN["full"] in row
