"""No command replaces what it was not asked to replace: files, folders, what it reads, and what is
no ordinary file. Two runs never write one file, and nothing is left behind.
"""
import json
import os
import shlex
import shutil
import signal
import sys

import pytest
import small
from conftest import refused

from minillmclf.compare import comparison, __main__ as compare
from minillmclf import evaluate, labels, merge
from minillmclf.folds import __main__ as folds
from minillmclf.predict import __main__ as predict
from minillmclf.pretrain import __main__ as pretrain, pretraining
from minillmclf.report import __main__ as report
from minillmclf.predict import stream
from minillmclf import train
from minillmclf.classify.classifier import Classifier
from minillmclf.cli import outputs, training_run
from minillmclf.cli.parser import run
from minillmclf.errors import InputError
from minillmclf.files import write_text
from tests.bench import __main__ as bench

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and links are of POSIX")
SIZES = small.flags(layers=1, width=16, heads=2, mlp_width=16, vocab_size=90, steps=2, batch_size=2)
QUICK = small.flags(epochs=1, batch_size=8, lr=3e-3, max_length=32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the body `bert`, the data, and two runs: `full`, and `lora` on its base."""
    folder = tmp_path_factory.mktemp("out")
    small.bert_folder(folder / "bert", layers=1)
    small.data_file(folder / "data.csv")
    for method in ("full", "lora"):
        asked = {"model": folder / "bert", "data": folder / "data.csv", "method": method}
        assert train.main([*small.flags(**asked, out=folder / method), *QUICK]) == 0
    return folder


@pytest.fixture
def call(capsys):
    """call(command, *arguments) -> exit code, stderr."""
    def call(command, *given):
        with pytest.raises(SystemExit) as end:
            run(lambda: command.main(list(map(str, given))))
        return end.value.code or 0, capsys.readouterr().err
    return call


def state_of(path):
    """Bytes of a file, or of all files in a folder."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return {each: each.read_bytes() for each in found if each.is_file()}


def commands(place):
    """Every command that writes a file, without its --out."""
    data, full = ("--data", place / "data.csv"), ("--model", place / "full")
    return {"predict": (predict, *full, *data), "predict texts": (predict, *full, "a rose"),
            "evaluate": (evaluate, *full, *data), "evaluate, own data": (evaluate, *full),
            "prompt": (evaluate, "--method", "prompt", "--model", place / "bert", *data),
            "labels": (labels, "--model", place / "bert", *data)}


COMMANDS = ["predict", "predict texts", "evaluate", "evaluate, own data", "labels"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_is_replaced_only_if_that_is_asked(place, call, tmp_path, name):
    command, out = commands(place)[name], tmp_path / "mine.json"
    out.write_text("mine")
    code, said = call(*command, "--out", out)
    assert code == 2 and said.count("\n") == 1
    assert "is there already" in said and "--overwrite" in said
    assert out.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["mine.json"]
    code, said = call(*command, "--out", out, "--overwrite")
    assert code == 0 and out.read_text() != "mine", said
    out.unlink()
    assert call(*command, "--out", out)[0] == 0 and out.exists()


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["plainly", "with --overwrite"])
@pytest.mark.parametrize("name", ["predict", "evaluate", "prompt", "labels"])
def test_what_is_read_is_never_replaced(place, call, tmp_path, name, more):
    command = commands(place)[name]
    model = command[command.index("--model") + 1]
    before = state_of(place)
    link, hard = tmp_path / "link.csv", tmp_path / "hard.csv"
    link.symlink_to(place / "data.csv")
    os.link(place / "data.csv", hard)
    inside = (model / "config.json", model / "new.json", model / "deep" / "new.json")
    for out in (place / "data.csv", *inside, link, hard):
        code, said = call(*command, "--out", out, *more)
        assert code == 2 and said.count("\n") == 1 and "reads" in said, (out, said)
        assert str(out) in said
    assert state_of(place) == before and link.is_symlink()


def test_the_base_of_a_model_is_never_replaced(place, call):
    before, given = state_of(place), ("--model", place / "lora", "--overwrite", "--out")
    for command, *more in ((predict, "a rose"), (evaluate,)):
        for out in (place / "bert" / "config.json", place / "bert" / "new.json"):
            code, said = call(command, *given, out, *more)
            assert code == 2 and "base of --model" in said, (out, said)
    assert state_of(place) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_only_ordinary_files(place, call, tmp_path, name):
    command, fifo, link = commands(place)[name], tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    (tmp_path / "nothing").symlink_to(tmp_path / "nowhere")
    (tmp_path / "null").symlink_to("/dev/null")
    for out in (fifo, link, tmp_path / "nothing", tmp_path / "null", tmp_path):
        code, said = call(*command, "--out", out, "--overwrite")
        assert code == 2 and "no ordinary file" in said and said.count("\n") == 1, (out, said)
    assert fifo.is_fifo() and len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("out", ["x" * 5000, "a\0b"])
def test_a_name_that_cannot_be(place, call, out):
    code, said = call(predict, "--model", place / "full", "--out", out, "a rose")
    assert code == 2 and said.count("\n") == 1 and len(said) < 500, said


def test_what_cannot_be_read_is_no_clash(tmp_path):
    strange = [("--data", "x" * 5000), ("--data", "a\0b"), ("--data", None)]
    assert outputs.check_out_file(tmp_path / "new", False, strange) == tmp_path / "new"


class Loaded(Exception):
    pass


@pytest.mark.parametrize("name", [*COMMANDS, "prompt", "merge", "compare", "folds"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(place, call, tmp_path, monkeypatch,
                                                                name):
    def work(*_, **__):
        raise Loaded
    common = ("--data", place / "data.csv", *QUICK)
    command = {**commands(place), "merge": (merge, "--model", place / "lora"),
               "compare": (compare, "--models", "majority", *common),
               "folds": (folds, "--model", place / "bert", *common)}[name]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "closed").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: (
        str(path) != str(tmp_path / "closed") and real(path, mode)))         # also for root
    for module, function in ((Classifier, "load"), (labels, "build_report"),
                             (evaluate, "evaluate_prompted"), (comparison, "run_all")):
        monkeypatch.setattr(module, function, work)
    before = state_of(tmp_path)
    for out, fault in (("file/a.json", "file is no folder"),
                       ("closed/a.json", "permission denied, or a read-only disk"),
                       ("closed/a/b.json", "permission denied")):
        code, said = call(*command, "--out", tmp_path / out)
        assert code == 2 and said.count("\n") == 1 and "could not be written" in said, said
        assert fault in said, said
    assert state_of(tmp_path) == before and not list((tmp_path / "closed").iterdir())
    with pytest.raises(Loaded):
        run(lambda: command[0].main([*map(str, command[1:]), "--out", str(tmp_path / "new.json")]))


# ------------------------------------------------------------------------------------------ folders

def test_merge_asks(place, call, tmp_path):
    given, before = (merge, "--model", place / "lora", "--out"), state_of(place)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert "is not empty, it holds 'note'" in call(*given, tmp_path / "mine")[1]
    for out in (place / "lora", place / "bert", place / "bert" / "deep"):
        for more in ([], ["--overwrite"]):
            code, said = call(*given, out, *more)
            assert code == 2 and ("reads: choose another" in said or not more), said
    assert "it is no folder" in call(*given, tmp_path / "file", "--overwrite")[1]
    assert state_of(place) == before and (tmp_path / "file").read_text() == "mine"
    shutil.copytree(place / "lora", tmp_path / "mine", dirs_exist_ok=True)
    assert call(*given, tmp_path / "mine", "--overwrite")[0] == 0
    assert (tmp_path / "mine" / "note").read_text() == "mine", "nobody asked to remove this"
    assert Classifier.load(tmp_path / "mine").tuning is None, "the run that lay there is still read"


def test_train_asks_before_it_replaces_an_adapter(place, call, tmp_path, monkeypatch):
    adapter = shutil.copytree(place / "lora" / "adapter", tmp_path / "adapter")
    before = state_of(adapter)
    given = (train, "--model", place / "bert", "--data", place / "data.csv", *QUICK, "--out",
             adapter)
    code, said = call(*given)
    assert code == 2 and "holds adapter_config.json but no run.json" in said, said
    assert state_of(adapter) == before
    Classifier.load(place / "lora").save(tmp_path / "saved")                 # without a run.json
    for out in (adapter, tmp_path / "saved"):
        before = state_of(out)
        with monkeypatch.context() as patch:
            patch.setattr(training_run, "fit_with_progress", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                call(*given[:-1], out, "--overwrite")
        assert before.items() <= state_of(out).items(), "it is gone before another is there"
        assert call(*given[:-1], out, "--overwrite")[0] == 0
        assert Classifier.load(out).tuning is None


@pytest.mark.parametrize("name", ["best.safetensors", "state.safetensors",
                                  "model-00001-of-00002.safetensors"])
def test_train_asks_before_it_removes_weights(place, call, tmp_path, name):
    (tmp_path / name).write_text("mine")
    given = (train, "--model", place / "bert", "--data", place / "data.csv", *QUICK, "--out")
    code, said = call(*given, tmp_path)
    assert code == 2 and f"holds {name} but no run.json" in said and said.count("\n") == 1, said
    assert {p.name for p in tmp_path.iterdir()} == {name}
    assert call(*given, tmp_path, "--overwrite")[0] == 0 and not (tmp_path / name).exists()


def test_a_link_to_nowhere_beside_a_model_stops_nothing(place, call, tmp_path):
    model = shutil.copytree(place / "bert", tmp_path / "model")
    (model / "pytorch_model.bin").symlink_to("../../blobs/abc")
    assert call(train, "--model", model, "--data", place / "data.csv", *QUICK, "--out",
                tmp_path / "run")[0] == 0


def test_pretrain_asks(place, call, tmp_path):
    text = small.text_file(tmp_path / "text.txt", sentences=60)
    given = (pretrain, "--objective", "mlm", "--text", text, *SIZES)
    body = shutil.copytree(place / "bert", tmp_path / "body")
    before = state_of(tmp_path)
    for more in ([], ["--overwrite"]):
        code, said = call(*given, "--start", body, "--out", body, *more)
        assert code == 2 and "what --start reads" in said, said
        assert "what --text reads" in call(*given, "--out", tmp_path, *more)[1]
    assert "holds a model" in call(*given, "--out", body)[1]
    other = shutil.copytree(place / "bert", tmp_path / "other")
    assert "holds a model" in call(*given, "--start", body, "--out", other)[1]
    assert state_of(body) == {k: v for k, v in before.items() if body in k.parents}
    assert state_of(other).keys() == {other / path.name for path in state_of(body)}
    assert call(*given, "--out", other, "--overwrite")[0] == 0
    assert json.loads((other / "config.json").read_text())["hidden_size"] == 16
    made = state_of(other)
    assert call(*given, "--out", other)[0] == 0 and state_of(other) == made, "it is at its end"
    assert "other settings" in call(*given, "--lr", "0.1", "--out", other)[1]
    assert call(*given, "--lr", "0.1", "--out", other, "--overwrite")[0] == 0


def test_pretrain_killed_before_its_first_state_goes_on(tmp_path, call, monkeypatch):
    text, out = small.text_file(tmp_path / "text.txt", sentences=60), tmp_path / "new"
    given = (pretrain, "--objective", "mlm", "--text", text, *SIZES, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(*given)
    assert (out / "tokenizer.json").exists() and call(*given)[0] == 0


@pytest.mark.parametrize("fault", [
    ("--objective", "distill"), ("--device", "cuda:9"), ("--heads", "5")])
def test_pretrain_refuses_before_it_replaces(tmp_path, call, fault):
    text, out = small.text_file(tmp_path / "text.txt", sentences=60), tmp_path / "new"
    given = (pretrain, "--objective", "mlm", "--text", text, *SIZES, "--out", out)
    assert call(*given)[0] == 0
    before = state_of(out)
    start = ["--start", small.bert_folder(tmp_path / "body")] * (fault[0] == "--device")
    for more in ([], start):
        code, said = call(*given, *more, *fault, "--overwrite")
        assert code == 2 and said.count("\n") == 1 and state_of(out) == before, said


def test_pretrain_keeps_the_old_model_until_the_new_one_is_whole(tmp_path, call, monkeypatch):
    text, out = small.text_file(tmp_path / "text.txt", sentences=60), tmp_path / "new"
    given = (pretrain, "--objective", "mlm", "--text", text, *SIZES, "--out", out)
    assert call(*given)[0] == 0
    before = state_of(out)

    class Asked(pretraining.StopSignal):
        def __enter__(self):
            super().__enter__().asked = True
            return self
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "StopSignal", Asked)
        assert call(*given, "--lr", "0.1", "--overwrite")[0] == 130
    assert before.items() <= state_of(out).items()
    assert (out / ".new" / "state.safetensors").exists()
    assert "other settings" in call(*given, "--lr", "0.2")[1]
    assert call(*given, "--lr", "0.1")[0] == 0, "the same command without --overwrite goes on"
    after = state_of(out)
    assert after.keys() == before.keys() and not (out / ".new").exists()
    assert after[out / "model.safetensors"] != before[out / "model.safetensors"]
    assert call(*given, "--lr", "0.1")[0] == 0 and state_of(out) == after, "it is at its end"


def test_compare_and_folds_ask(place, call, tmp_path):
    (tmp_path / "table.md").write_text("mine")
    (tmp_path / "oof.csv").write_text("mine")
    common = ("--data", place / "data.csv", *QUICK, "--out", tmp_path)
    for command in ((compare, "--models", "majority"), (folds, "--model", place / "bert")):
        code, said = call(*command, *common)
        assert code == 2 and "is not empty, it holds" in said and said.count("\n") == 1, said
    model = ("--model", place / "bert", *common[:-1])
    for out in (place / "bert", place / "bert" / "deep", place):
        code, said = call(folds, *model, out, "--overwrite")
        assert code == 2 and "reads: choose another" in said, said
        code, said = call(compare, "--models", place / "bert", *common[:-1], out, "--overwrite")
        assert code == 2 and "reads: choose another" in said, said
    assert (tmp_path / "table.md").read_text() == (tmp_path / "oof.csv").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"table.md", "oof.csv"}


FOREIGN = {"folds": {"fold-1/best.safetensors": "mine", "oof.csv": "mine", "folds.json": "[]",
                     "fold-2/run.json": '{"data": {"split": "random"}}', "fold-notes.txt": "mine"},
           "compare": {"cells/mine/cell.json": "{}", "table.csv": "mine", "cost.svg": "mine",
                       "settings.json": "{}"}}


@pytest.mark.parametrize("name", FOREIGN)
def test_folders_of_others_look_like_folds_and_cells(place, call, tmp_path, name):
    for path, text in FOREIGN[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before = state_of(tmp_path)
    own = {"folds": (folds, "--model", place / "bert", "--folds", 2),
           "compare": (compare, "--models", "majority", "--seeds", 1)}[name]
    given = (*own, "--data", place / "data.csv", *QUICK, "--out", tmp_path)
    code, said = call(*given)
    assert code == 2 and "is not empty, it holds" in said and said.count("\n") == 1, said
    assert state_of(tmp_path) == before
    assert call(*given, "--overwrite")[0] == 0 and call(*given)[0] == 0, "the same again"


@pytest.mark.parametrize("left", ["fold-1/.run.json.writing/run.json", ".new/fold-1/run.json"])
def test_folds_killed_before_their_first_record_go_on(place, call, tmp_path, left):
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_text('{"data": {"split": "fold 1 of 2"}}')
    assert call(folds, "--model", place / "bert", "--folds", 2, "--data", place / "data.csv",
                *QUICK, "--out", tmp_path)[0] == 0


def test_a_comparison_stopped_before_its_first_cell_goes_on(place, call, tmp_path, monkeypatch):
    given = (compare, "--models", "majority", "--seeds", "1", "--data", place / "data.csv", *QUICK,
             "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "run_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(*given)
    assert call(*given)[0] == 0 and call(*given)[0] == 0, "the same again"


def test_bench_and_report_ask(place, call, tmp_path, monkeypatch):
    (tmp_path / "table.md").write_text("mine")
    monkeypatch.setattr(bench, "references", lambda: None)
    code, said = call(bench, "--quick", "--out", tmp_path)
    assert code == 2 and "is not empty, it holds 'table.md'" in said, said
    page = tmp_path / "page.html"
    for out in ([], ["--out", page]):
        target = page if out else place / "full" / "report.html"
        target.write_text("mine")
        code, said = call(report, "--run", place / "full", *out)
        assert code == 2 and "--overwrite" in said and target.read_text() == "mine", said
        assert call(report, "--run", place / "full", *out, "--overwrite")[0] == 0
        assert target.read_text().startswith("<!DOCTYPE html>")


# ------------------------------------------------------------- a part, its lock, what stops a run

def test_the_part_of_answers_is_no_link_and_no_data(place, call, tmp_path):
    out, part, precious = tmp_path / "a.csv", tmp_path / "a.csv.part", tmp_path / "precious"
    precious.write_text("text\nmine\n")
    part.symlink_to(precious)
    code, said = call(predict, "--model", place / "full", "--out", out, "a rose")
    assert code == 2 and "a.csv.part: is no ordinary file" in said and part.is_symlink(), said
    part.unlink()
    os.mkfifo(part)
    assert "no ordinary file" in call(predict, "--model", place / "full", "--out", out, "a rose")[1]
    part.unlink()
    shutil.copy(precious, part.with_suffix(".csv"))
    part.with_suffix(".csv").rename(part)
    code, said = call(predict, "--model", place / "full", "--data", part, "--out", out)
    assert code == 2 and "what --data reads" in said and part.read_text() == "text\nmine\n", said
    record = tmp_path / "a.csv.part.json"
    record.symlink_to(precious)
    part.unlink()
    asked = (predict, "--model", place / "full", "--out", out, "a rose")
    assert "a.csv.part.json: has a broken record" in call(*asked)[1] and record.is_symlink()
    assert call(*asked, "--overwrite")[0] == 0
    assert precious.read_text() == "text\nmine\n" and not record.exists()


def test_two_runs_into_one_file_are_told(place, call, tmp_path):
    out = tmp_path / "a.csv"
    with pytest.raises(KeyboardInterrupt), stream.PartFile(out) as part:
        part.add("one\n", 1, None, 0)
        code, said = call(predict, "--model", place / "full", "--out", out, "a rose")
        assert code == 2 and "another process is writing to this file" in said, said
        assert part.part.read_text() == "one\n", "the second run changed what the first has written"
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir()), "a run without a record leaves nothing"
    assert call(predict, "--model", place / "full", "--out", out, "a rose")[0] == 0


def test_a_lock_on_a_file_that_has_its_name_already(tmp_path, monkeypatch):
    """The other run ends between opening the part and locking it: what is locked is its OUT."""
    part, real = tmp_path / "a.part", outputs.lock_handle

    def late(handle, name):
        os.replace(part, tmp_path / "a")
        real(handle, name)
    monkeypatch.setattr(stream, "lock_handle", late)
    refused(lambda: stream.open_locked(part), "give the command again")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_hangup_stops_as_a_termination_does(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), stream.PartFile(tmp_path / "a"):
            signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)                            # under nohup
        with stream.PartFile(tmp_path / "b"):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and (tmp_path / "b").exists()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("fault", [OSError(1, "Operation not permitted"), KeyboardInterrupt()])
def test_answers_that_cannot_get_their_name_stay_on_record(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(stream, "WINDOW", 1)

    def fails(*_):
        raise fault
    made = {"model": "x"}
    ends = (InputError, KeyboardInterrupt)
    with pytest.raises(ends), stream.PartFile(tmp_path / "a", made) as part:
        part.add("one\n", 1, "sha", 0)
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: (fails if b == part.out else real)(a, b))
    monkeypatch.setattr(os, "replace", real)
    assert json.loads((tmp_path / "a.part.json").read_text())["rows"] == 1
    # a part with nothing new to add
    with pytest.raises(ends), stream.PartFile(tmp_path / "a", made) as part:
        assert part.unanswered(lambda: iter([(["one"], "sha")])) and part.on_record["rows"] == 1
        monkeypatch.setattr(os, "replace", lambda a, b: (fails if b == part.out else real)(a, b))
    monkeypatch.setattr(os, "replace", real)
    with stream.PartFile(tmp_path / "a", made) as part:
        rest = list(part.unanswered(lambda: iter([(["one"], "sha"), (["two"], "more")])))
        part.add("two\n", len(rest), "more", 0)
    assert (tmp_path / "a").read_text() == "one\ntwo\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_another_swap_starts_anew(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 1)
    body = small.bert_folder(tmp_path / "bert", layers=1)
    model = Classifier.from_backbone(body, ["a", "b", "tie"], preference={"kind": "head"})
    model.save(tmp_path / "model")
    data, out = tmp_path / "data.csv", tmp_path / "a.csv"
    data.write_text("prompt,response_a,response_b\nx,a rose,soup\ny,rain,a tree\nz,soil,salt\n")
    calls, real = [], predict.render_answers

    def stops(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)
    command = ["--model", str(tmp_path / "model"), "--data", str(data), "--out", str(out)]
    with monkeypatch.context() as patch, pytest.raises(stream.Stopped):
        patch.setattr(predict, "render_answers", stops)
        predict.main([*command, "--swap", "none"])
    assert predict.main([*command, "--swap", "predict", "--overwrite"]) == 0
    assert "is of another swap: starting anew" in capsys.readouterr().err
    mixed = out.read_text()
    assert predict.main([*command[:4], "--format", "csv", "--swap", "predict"]) == 0
    assert capsys.readouterr().out == mixed


# ------------------------------------------------------------------- what is said of files and runs

def test_a_foreign_record_is_told_with_the_way_out(place, call, tmp_path):
    (tmp_path / "run.json").write_text('{"my": 1}')
    given = (train, "--model", place / "bert", "--data", place / "data.csv", *QUICK, "--out",
             tmp_path)
    code, said = call(*given)
    assert code == 2 and said.count("\n") == 1 and "run.json: is no record of a run" in said, said
    assert "another --out, or --overwrite" in said and "known:" not in said, said
    assert (tmp_path / "run.json").read_text() == '{"my": 1}'
    assert call(*given, "--overwrite")[0] == 0


def test_the_data_of_a_run_that_are_not_here_are_told(place, call, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    assert train.main(["--model", "bert", "--data", "data.csv", *QUICK, "--out",
                       str(tmp_path / "run b's")]) == 0
    monkeypatch.chdir(tmp_path)
    for command in ([evaluate], [merge, "--out", "merged"]):
        run_of = "run b's" if command[0] is evaluate else place / "moved"
        if command[0] is merge:
            shutil.copytree(place / "lora", run_of)
            record = json.loads((run_of / "run.json").read_text())
            record["settings"]["data"] = "data.csv"
            (run_of / "run.json").write_text(json.dumps(record))
        code, said = call(*command, "--model", run_of)
        assert code == 2 and "was trained on 'data.csv', which is not found from here" in said, said
        assert "with --data" in said and said.count("\n") == 1, said


def test_the_command_that_is_printed_runs(place, capsys, tmp_path):
    out = tmp_path / "run b's"
    capsys.readouterr()
    assert train.main(small.flags(model=place / "bert", data=place / "data.csv", out=out)
                      + QUICK) == 0
    words = shlex.split(capsys.readouterr().out.partition("try:  ")[2].splitlines()[0])
    assert words[:5] == ["python", "-m", "minillmclf.predict", "--model", str(out)]
    assert predict.main(words[3:]) == 0


def test_names_that_are_not_utf8_are_told_as_such(place, call, tmp_path):
    data, model = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.csv", b"run_\xe9"))
    try:
        shutil.copy(place / "data.csv", data)
    except OSError:
        pytest.skip("this disk takes no such names")
    shutil.copytree(place / "full", model)
    given = (train, "--model", place / "bert", *QUICK, "--out", tmp_path / "run", "--data")
    code, said = call(*given, data)
    assert code == 2 and said.count("\n") == 1 and "caf\\udce9.csv'" in said, said
    assert "--data" in said and "is not UTF-8" in said and "rename" in said, said
    assert "space" not in said and not (tmp_path / "run").exists()
    code, said = call(predict, "--model", model, "a rose")
    assert code == 2 and "not UTF-8" in said and "rename" in said and "download" not in said, said
    with pytest.raises(InputError, match="not UTF-8: rename the file"):
        write_text(tmp_path / "scores.json", str(data))
    assert not list(tmp_path.glob("*scores*"))
