"""Do the folders that an earlier version wrote go on loading, and answer as they did?

fixtures/old_runs holds one folder of each kind, and beside each NAME.json with the command that
made it and what it answered (reference/make_old_runs.py). They were written once and stay as they
are. Runs are asked for again by the same words, in the spelling of then; whole, stopped and
half-made ones must be recognised.

Probabilities in float64 must be the stored ones but for the rounding of scores to float32. In
float32, and where layers have four bits, they must lie within what conftest.fp32 allows.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROUNDED, fp32, refused

from minillmclf import Classifier, evaluate, fine_tune, load_backbone, load_tokenizer, merge, train
from minillmclf.choose import __main__ as choose
from minillmclf.cli.settings import ALIASES, OLD_NAMES, OLD_SIDES, Settings, flag
from minillmclf.compare import __main__ as compare
from minillmclf.folds import __main__ as folds
from minillmclf.predict import __main__ as predict
from minillmclf.pretrain import __main__ as pretrain
from minillmclf.report import __main__ as report

OLD = Path(__file__).parent / "fixtures" / "old_runs"
NOTES = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(OLD.glob("*.json"))
}
ANSWERED = [name for name, note in NOTES.items() if "probabilities" in note]
TRAINED = [name for name in ANSWERED if "command" in NOTES[name]]
FOUR_BITS = ("four-bits", "qlora", "qlora-labels")
SINGLE = fp32(
    width=48, depth=8
)  # no sum has more terms, no model more blocks, T5's two stacks counted
# runs without dropout, whose losses another processor gives too
REPEATED = [
    "bert",
    "focal",
    "roberta",
    "gpt2",
    "llama",
    "several",
    "windows-mean",
    "labels-completion",
    "pool-attention",
    "lora-all",
    "preference",
]
CHANGED = {
    "seed": "7",
    "epochs": "2",
    "max-length": "11",
    "keep": "head+tail",
    "focal": "1",
    "sampling": "balanced",
    "batch-size": "3",
    "label-smoothing": "0.3",
    "rank": "4",
    "pool": "mean",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A copy of all folders, for tests that change none of them."""
    return shutil.copytree(OLD, tmp_path_factory.mktemp("old") / "old_runs")


@pytest.fixture
def place(shared, monkeypatch):
    """The same, as the folder in which commands run."""
    monkeypatch.chdir(shared)
    return shared


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own(name, ...) -> a copy of these folders, the data and the bases; commands run in it."""

    def own(*names):
        home = tmp_path / "old_runs"
        home.mkdir()
        for path in [path for path in OLD.iterdir() if path.is_file() and path.suffix != ".json"]:
            shutil.copy(path, home)
        for name in ("bases", *names):
            shutil.copytree(OLD / name, home / name)
        monkeypatch.chdir(home)
        return home

    return own


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def rows_of(note):
    return [tuple(row) if isinstance(row, list) else row for row in note["texts"]]


def record(folder):
    return json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))


def history(folder):
    return [
        json.loads(line)
        for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(found):
    """What JSON or a table holds -> its numbers, {place: number}, and the rest, {place: value}."""
    values, rest = {}, {}

    def walk(at, item):
        if isinstance(item, dict):
            for key, value in item.items():
                walk(f"{at}.{key}", value)
        elif isinstance(item, list):
            for place, value in enumerate(item):
                walk(f"{at}[{place}]", value)
        else:
            try:
                values[at] = float(item)
            except (TypeError, ValueError):
                rest[at] = item

    walk("", found)
    return values, rest


def assert_near(found, expected, tolerance):
    """Equal in all but numbers, which may differ by the tolerance."""
    (ours, names), (theirs, named) = numbers(found), numbers(expected)
    assert names == named and ours.keys() == theirs.keys()
    apart = {
        at: abs(ours[at] - theirs[at]) for at in ours if not abs(ours[at] - theirs[at]) <= tolerance
    }
    assert not apart, f"differ by more than {tolerance}: {apart}"


def losses(lines):
    return np.array([(line["train_loss"], line["log_loss"]) for line in lines])


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", ANSWERED)
def test_it_loads_and_answers_as_it_did(place, name):
    note, model = NOTES[name], Classifier.load(name)
    assert (model.labels, getattr(model.task, "thresholds", None), model.reading) == (
        note["labels"],
        note["thresholds"],
        note["reading"],
    )
    rows, expected = rows_of(note), np.array(note["probabilities"])
    assert model.answers(expected) == note["answers"]
    apart = abs(model.predict(rows) - expected).max()
    assert apart <= SINGLE, f"{name}: {apart:.2g} apart in float32"
    if name not in FOUR_BITS:
        apart, bound = (
            abs(model.double().predict(rows) - expected).max(),
            ROUNDED * (1 + note["largest_score"]),
        )
        assert apart <= bound, f"{name}: {apart:.2g} apart in float64, {bound:.2g} is rounding"


@pytest.mark.parametrize("name", ["lora", "dora", "lora-all", "prefix", "prompt", "labels-causal"])
def test_its_adapter_alone_answers_so_too_with_the_base_named(place, name):
    """adapter/ is a folder of PEFT; where it says that its base lies, there is nothing."""
    note, words = NOTES[name], NOTES[name]["command"]
    refused(lambda: Classifier.load(f"{name}/adapter"), "/somewhere/old_runs/bases", "--base")
    model = Classifier.load(f"{name}/adapter", base=words[words.index("--model") + 1])
    apart = abs(model.double().predict(rows_of(note)) - np.array(note["probabilities"])).max()
    assert model.labels == note["labels"] and apart <= ROUNDED * (1 + note["largest_score"])


def test_a_base_that_has_changed_is_noticed(own):
    """By the sums that were stored then, of each of its files."""
    home, note = own("lora"), NOTES["lora"]
    (home / "bases").rename(home / "moved")
    refused(lambda: Classifier.load("lora"), "../bases/bert", "--base")
    found = Classifier.load("lora", base="moved/bert").double().predict(note["texts"])
    assert abs(found - np.array(note["probabilities"])).max() <= ROUNDED * (
        1 + note["largest_score"]
    )
    for file in ("config.json", "tokenizer_config.json", "model.safetensors"):
        path = home / "moved" / "bert" / file
        whole = path.read_bytes()
        path.write_bytes(
            whole[:-1] + bytes([whole[-1] ^ 1]) if file.startswith("model") else whole + b" "
        )
        refused(lambda: Classifier.load("lora", base="moved/bert"), "has changed", file)
        path.write_bytes(whole)


def test_there_is_a_folder_of_every_kind():
    files = {name: set(contents(OLD / name)) for name in NOTES}
    tuned = {name for name in ANSWERED if "tuned.json" in files[name]}
    methods = {
        json.loads((OLD / name / "tuned.json").read_text())["recipe"]["method"] for name in tuned
    }
    assert methods == {"lora", "dora", "qlora", "houlsby", "pfeiffer", "prefix", "prompt"}
    whole = [name for name in ANSWERED if "model.safetensors" in files[name]]
    families = {
        json.loads((OLD / name / "config.json").read_text())["model_type"] for name in whole
    }
    assert families == {"bert", "roberta", "deberta-v2", "gpt2", "llama", "t5"}
    assert {"state.safetensors", "best.safetensors"} < files["stopped"] and not record(
        OLD / "stopped"
    )["finished"]
    assert (
        "state.safetensors" in files["pretrain-stopped"]
        and "config.json" not in files["pretrain-stopped"]
    )
    assert {"oof.csv", "folds.json", "submission.csv", "fold-2/tuned.json"} < files["folds"]
    assert {"table.csv", "table.md", "table.json", "settings.json"} < files["compare"]
    assert not [name for name in NOTES if not (OLD / name).is_dir()]


# ---------------------------------------------------------------------- finished runs


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_command_takes_a_finished_run_as_it_is(place, call, name):
    """Flags and run.json, both in the spelling of then, give the same settings."""
    before, told = contents(name), record(name)
    for given in (NOTES[name]["command"], ["--config", f"{name}/run.json", "--out", name]):
        code, said, error = call(train, *given)
        assert code == 0, error
        assert f"{name}: this run is finished already" in said and "epoch   1" not in said
        last = list(told["results"].values())[-1]
        shown = [f"{last[key]:.3f}" for key in ("macro_f1", "log_loss", "ece")]
        assert (
            all(number in said for number in shown) and f"best epoch {told['best_epoch']};" in said
        )
        assert contents(name) == before


def in_new_words(command):
    """A stored command with today's names and values of its flags, switches bare."""
    words, found = iter(command), []
    for word in words:
        name = word[2:].replace("-", "_")
        value = next(words)
        value = OLD_SIDES[value] if name == "keep" else value
        name = OLD_NAMES.get(name, name)
        choices = Settings.__dataclass_fields__[name].metadata["choices"]
        bare = value == "on" and choices == ("off", "on")
        found += [flag(name)] if bare else [flag(name), value]
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_a_finished_run_is_known_under_the_new_names(place, call, name):
    command = in_new_words(NOTES[name]["command"])
    code, said, error = call(train, *command)
    assert code == 0 and f"{name}: this run is finished already" in said, error


def test_the_stored_commands_have_every_old_name_that_was_a_flag():
    words = {word[2:].replace("-", "_") for name in TRAINED for word in NOTES[name]["command"]}
    assert set(OLD_NAMES) <= words


def test_from_python_a_finished_run_is_loaded(place):
    before, note, lines = contents("last-1"), NOTES["last-1"], []
    model = fine_tune(
        "bases/bert",
        "data.csv",
        out="last-1",
        say=lines.append,
        method="last-1",
        layer_decay=0.5,
        epochs=8,
        batch_size=6,
        lr=0.01,
        seed=1,
        metric="log_loss",
        baselines=False,
    )
    assert (
        "last-1: this run is finished already" in "\n".join(lines) and contents("last-1") == before
    )
    assert abs(model.predict(note["texts"]) - np.array(note["probabilities"])).max() <= SINGLE


@pytest.mark.parametrize("changed", CHANGED)
def test_a_finished_run_with_another_setting_is_another_run(place, call, changed):
    """The flag that is given last counts."""
    before = contents("split-by-seed")
    code, _, error = call(train, *NOTES["split-by-seed"]["command"], f"--{changed}",
                          CHANGED[changed])
    name = changed.replace("-", "_")
    name = ALIASES.get(name, name)
    assert code == 2 and "holds a run with another" in error and name in error, error
    assert contents("split-by-seed") == before


@pytest.mark.parametrize("name", REPEATED)
def test_an_old_run_json_as_config_trains_the_same(own, call, name):
    home = own()
    code, _, error = call(train, "--config", OLD / name / "run.json", "--out", "again")
    assert code == 0, error
    stored, found = history(OLD / name), history(home / "again")
    assert [(line["epoch"], line["step"]) for line in found] == [
        (line["epoch"], line["step"]) for line in stored
    ]
    apart = abs(losses(found) - losses(stored)).max()
    assert apart <= 1e-3, f"{name}: a loss differs by {apart:.2g}"
    then, now = record(OLD / name), record(home / "again")
    assert (
        now["best_epoch"] == then["best_epoch"] and now["results"].keys() == then["results"].keys()
    )
    rows = table(OLD / name / "predictions.csv")
    assert_near(table(home / "again" / "predictions.csv"), rows, 2e-3)


def test_flags_and_config_of_a_run_with_dropout_are_the_same_run(own, call):
    """The draws of dropout are a processor's own, so both runs are made here."""
    home, given = own(), NOTES["lora"]["command"][:-2]
    assert given[given.index("--adapter-dropout") + 1] == "0.2"
    for out, words in {
        "flags": given,
        "config": ["--config", OLD / "lora" / "run.json"],
        "without": [*given, "--adapter-dropout", "0"],
    }.items():
        assert call(train, *words, "--out", out)[0] == 0
    same = [(home / out / "metrics.jsonl").read_bytes() for out in ("flags", "config", "without")]
    assert same[0] == same[1] != same[2]


# ---------------------------------------------------------------------- stopped runs


def test_a_stopped_run_goes_on_to_the_end_of_an_unstopped_one(own, call):
    """To the same bytes where a run from the start ends in the stored ones; else about as near."""
    home = own("stopped")
    whole, again = OLD / "not-stopped", home / "again"
    assert call(train, *NOTES["not-stopped"]["command"][:-2], "--out", "again")[0] == 0
    code, said, error = call(train, *NOTES["stopped"]["command"])
    assert code == 0, error
    assert "epoch   3" in said and "epoch   2" not in said, "it goes on after the second epoch"
    files = ("model.safetensors", "config.json", "metrics.jsonl", "predictions.csv")
    assert set(contents("stopped")) == {*contents(whole), "learned.json"}, (
        "its state is gone, all else is there")
    stored, found, here = history(whole), history("stopped"), history(again)
    assert found[:2] == stored[:2], "what the state holds is taken as it is"
    if all((again / name).read_bytes() == (whole / name).read_bytes() for name in files):
        for name in files:
            assert (home / "stopped" / name).read_bytes() == (whole / name).read_bytes(), (
                f"{name} has other bytes"
            )
    apart, allowed = (
        abs(losses(found) - losses(stored)).max(),
        abs(losses(here) - losses(stored)).max(),
    )
    assert apart <= 1e-4 + 2 * allowed
    assert record("stopped")["best_epoch"] == 2, "the weights of an epoch before the stop"
    rows, model = rows_of(NOTES["not-stopped"]), Classifier.load("stopped").double()
    assert abs(model.predict(rows) - np.array(NOTES["not-stopped"]["probabilities"])).max() <= 1e-6


def test_a_stopped_run_does_not_go_on_as_another(own, call):
    own("stopped")
    before = contents("stopped")
    for name, value in (("keep", "head"), ("seed", "2"), ("batch_size", "2")):
        code, _, error = call(train, *NOTES["stopped"]["command"], flag(name), value)
        assert (
            code == 2
            and f"another {ALIASES.get(name, name)}" in error
            and contents("stopped") == before
        )


def test_pretraining_that_was_stopped_goes_on(own, call):
    home = own("pretrain-stopped", "pretrained")
    before = contents("pretrained")
    code, _, error = call(pretrain, *NOTES["pretrain-stopped"]["command"], "--seed", "2")
    assert code == 2 and "settings (seed)" in error
    words = NOTES["pretrained"]["command"]
    assert call(pretrain, *words[:-1], "again")[0] == 0
    code, said, error = call(pretrain, *NOTES["pretrain-stopped"]["command"])
    assert code == 0 and "after 8 steps" in said, error
    weights = [
        (home / name / "model.safetensors").read_bytes() for name in ("again", "pretrain-stopped")
    ]
    if weights[0] == before["model.safetensors"]:
        assert weights[1] == weights[0], "other weights than those of a run that was not stopped"
    stored, found = (
        [json.loads(line) for line in text.splitlines()]
        for text in (
            before["pretrain.jsonl"],
            (home / "pretrain-stopped" / "pretrain.jsonl").read_text(),
        )
    )
    assert_near(found, stored, 2e-3)
    code, said, _ = call(pretrain, *words)  # it is at its end: nothing is learned any more
    assert code == 0 and contents("pretrained")["model.safetensors"] == before["model.safetensors"]
    tokenizer, model = load_tokenizer("pretrained"), load_backbone("pretrained")
    assert len(tokenizer) == model.config["vocab_size"] and tokenizer.encode(
        "rose"
    ) == load_tokenizer("pretrain-stopped").encode("rose")


# ---------------------------------------------------------------------- collections of runs


def test_folds_are_taken_as_they_are_and_go_on(own, call):
    own("folds")
    words = NOTES["folds"]["command"]

    def assert_same(tolerance):
        for name in ("oof.csv", "submission.csv"):
            assert_near(table(f"folds/{name}"), table(OLD / "folds" / name), tolerance)
        found, stored = (
            json.loads((folder / "folds.json").read_text())
            for folder in (Path("folds"), OLD / "folds")
        )
        assert_near(found["all"], stored["all"], tolerance)
        assert_near(
            [found["folds"], found["labels"]], [stored["folds"], stored["labels"]], tolerance
        )

    code, said, error = call(folds, *words)
    assert code == 0, error
    assert said.count("finished already") == 2 and "epoch   1" not in said
    assert_same(1e-6)
    for path in Path("folds").glob("fold-*/scores-*.safetensors"):
        path.unlink()
    assert call(folds, *words)[0] == 0  # the models themselves are asked again
    assert_same(1e-4)
    shutil.rmtree("folds/fold-2")
    Path("folds/folds.json").unlink()
    code, said, _ = call(folds, *words)
    assert code == 0 and said.count("finished already") == 1
    assert_same(5e-3)


def test_a_comparison_is_taken_as_it_is(own, call):
    own("compare")
    stored, words = contents(OLD / "compare"), NOTES["compare"]["command"]
    code, said, error = call(compare, *words)
    assert code == 0, error
    assert said.count("finished before") == 3, said
    found = contents("compare")
    assert found["table.csv"] == stored["table.csv"] and found["table.md"] == stored["table.md"]
    assert {name: found[name] for name in stored if name.startswith("cells")} == {
        name: data for name, data in stored.items() if name.startswith("cells")
    }
    code, said, error = call(
        choose, "--data", "data.csv", "--models", "bases/bert", "--comparison", "compare"
    )
    assert code == 0 and "compare" in said, error


# ---------------------------------------------------------------------- other commands


@pytest.mark.parametrize("name", ["bert", "lora"])
def test_predict_answers_as_it_did(place, call, name):
    note = NOTES[name]
    code, said, error = call(predict, "--model", name, *note["texts"])
    assert code == 0, error
    found = [json.loads(line) for line in said.splitlines()]
    assert [line["text"] for line in found] == note["texts"]
    assert [line["label"] for line in found] == note["answers"]
    p = np.array([[line["probabilities"][label] for label in note["labels"]] for line in found])
    assert abs(p - np.array(note["probabilities"])).max() <= SINGLE + 1e-6


def test_predict_reads_the_columns_that_it_was_trained_on(place, call, tmp_path):
    code, _, error = call(
        predict, "--model", "columns", "--data", "columns.tsv", "--out", tmp_path / "a.csv"
    )
    assert code == 0, error
    answered = {row["body" if "body" in row else "text"]: row for row in table(tmp_path / "a.csv")}
    tested = table("columns/predictions.csv")
    assert tested and tested[0]["body" if "body" in tested[0] else "text"].startswith('"')
    for row in tested:
        answer = answered[row["body" if "body" in row else "text"]]
        for label in NOTES["columns"]["labels"]:
            assert abs(float(answer[f"p_{label}"]) - float(row[f"p_{label}"])) <= SINGLE + 1e-5


@pytest.mark.parametrize("name", ["roberta", "split-by-seed", "several", "preference", "columns"])
def test_evaluate_finds_the_stored_test_result(place, call, tmp_path, name):
    """Without --data: on the test rows of the run, which its seed drew if the file does not say."""
    code, _, error = call(evaluate, "--model", name, "--out", tmp_path / "found.json")
    assert code == 0, error
    found, stored = (
        json.loads((tmp_path / "found.json").read_text()),
        list(record(name)["results"].values())[-1],
    )
    told = {key: value for key, value in stored.items() if key in found}
    assert {"log_loss", "macro_f1"} <= told.keys()
    assert_near({key: found[key] for key in told}, told, 1e-4)


def test_merge_and_report_read_old_runs(own, call):
    own("lora", "bert")
    assert call(merge, "--model", "lora", "--out", "merged")[0] == 0
    note, model = NOTES["lora"], Classifier.load("merged").double()
    assert abs(model.predict(note["texts"]) - np.array(note["probabilities"])).max() <= SINGLE
    assert call(report, "--run", "bert", "--out", "page.html")[0] == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert all(
        f"{metrics['log_loss']:.3f}" in page for metrics in record("bert")["results"].values()
    )
