"""Runs that stop, go on, replace others, die: nothing saved is lost, what is wrong is one line."""
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import small
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minillmclf.compare import runs
from minillmclf.pretrain import __main__ as pretrain
from minillmclf import train
from minillmclf.cli import training_run
from minillmclf.cli.parser import BreakableStream, StopSignal, limit_message, one_line, run
from minillmclf.errors import InputError
from minillmclf.cli.outputs import lock_folder
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import make_batches, row_size
from minillmclf.training import loop
from minillmclf.training.checkpoint import PROGRESS_FIELDS
from minillmclf.training.plan import Plan, Split


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `bert`, data.csv and runs on them: `finished`, `stopped` after epoch 1."""
    folder = tmp_path_factory.mktemp("runs")
    small.bert_folder(folder / "bert", layers=1)
    small.data_file(folder / "data.csv")
    assert train.main(asked(folder, folder / "finished")) == 0
    code, *_ = small.forked("train", asked(folder, folder / "stopped"), interrupt=[6])
    assert code == 130
    return folder


def asked(place, out, *more, **settings):
    chosen = {"model": place / "bert", "data": place / "data.csv", "out": out,
              "epochs": 2, "batch_size": 8, "lr": 3e-3, **settings}
    return [*map(str, small.flags(**chosen)), *more]


@pytest.fixture
def call(capsys):
    """call(arguments) -> exit code, stdout, stderr of train; of a mistake, stderr is one line."""
    def call(given, command=train):
        with pytest.raises(SystemExit) as end:
            run(lambda: command.main(list(map(str, given))))
        out, err = capsys.readouterr()
        assert (end.value.code != 2
                or err.replace("\r", "\n").strip().split("\n")[-1].startswith("error: ")), err
        return end.value.code, out, err
    return call


def contents(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- what a run depends on

@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_run_does_not_go_on_with_another_base(place, call, tmp_path, name):
    base, out = shutil.copytree(place / "bert", tmp_path / "bert"), tmp_path / "run"
    assert small.forked("train", asked(place, out, model=base), interrupt=[2])[0] == 130
    if name == "config.json":
        (base / name).write_text((base / name).read_text() + " ")
    else:
        tensors = load_file(base / name)
        save_file({key: value * 1.5 for key, value in tensors.items()}, base / name)
    before = contents(out)
    code, _, err = call(asked(place, out, model=base))
    assert (code == 2 and "another base (the weights, config or tokenizer in" in err
            and "--overwrite" in err)
    assert contents(out) == before


def test_pretraining_does_not_go_on_with_another_text(call, tmp_path):
    text = small.text_file(tmp_path / "text.txt")
    given = small.flags(out=tmp_path / "out", text=text, objective="mlm", vocab_size=120, layers=1,
                        width=16, heads=2, mlp_width=16, steps=2, batch_size=4)
    assert call(given, pretrain)[0] == 0
    text.write_text(text.read_text().replace("Rose", "Tree"))
    code, _, err = call(given, pretrain)
    assert code == 2 and f"other text in {text}" in err


# ---------------------------------------------------------------- --overwrite

@pytest.mark.parametrize("more", [[], ["--patience", "1", "--lr", "1e-9", "--epochs", "9"]])
def test_a_stop_behind_the_last_step_costs_no_step(place, call, tmp_path, monkeypatch, more):
    """While test rows are answered or baselines fitted: the same command takes no step again."""
    def stop(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "evaluate_and_save", stop)
        code, out, _ = call([*asked(place, tmp_path / "run"), *more])
    assert code == 130 and "epoch   2" in out
    steps, real = [], loop.take_step
    monkeypatch.setattr(loop, "take_step", lambda *given, **named: steps.append(1)
                        or real(*given, **named))
    code, out, err = call([*asked(place, tmp_path / "run"), *more])
    assert code == 0 and not steps, err
    if not more:
        for name in ("model.safetensors", "predictions.csv", "metrics.jsonl"):
            one, other = tmp_path / "run" / name, place / "finished" / name
            assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("split, more", [
    ("train", []), ("dev", []), ("test", []),
    ("test", ["--windows", "mean", "--max-length", "16"]), ("dev", ["--few-rows", "on"])])
def test_a_text_without_tokens_is_found_before_training(place, call, tmp_path, split, more):
    lines = (place / "data.csv").read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if line.endswith("," + split))
    lines[number] = f"\x02,{lines[number].split(',', 1)[1]}"
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    code, out, err = call(asked(place, tmp_path / "run", *more, data=tmp_path / "data.csv"))
    assert code == 2 and f"line {number + 1}: " in err and "holds no token" in err, err
    assert "epoch" not in out, "training began"


def test_a_full_disk_leaves_the_run_that_was_to_be_replaced(place, call, tmp_path, monkeypatch):
    out, real = shutil.copytree(place / "finished", tmp_path / "run"), os.replace
    before = contents(out)

    def no_room(source, target, **more):
        if os.path.basename(target) == "model.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)
        return real(source, target, **more)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        code, _, err = call(asked(place, out, "--overwrite", seed=1))
    assert code == 2 and "what was saved before is untouched" in err
    assert before.items() <= contents(out).items()
    assert call(asked(place, out, seed=1))[0] == 0
    assert (not (out / ".new").exists()
            and json.loads((out / "run.json").read_text())["settings"]["seed"] == 1)


def test_a_move_that_was_cut_off_is_brought_to_its_end(place, call, tmp_path):
    whole = contents(place / "finished")
    for half in (0, 3, len(whole) - 1):
        out = tmp_path / str(half)
        shutil.copytree(place / "finished", out / ".whole")
        for name in sorted(map(str, whole), key="run.json".__eq__)[:half]:
            os.replace(out / ".whole" / name, out / name)
        code, said, _ = call(asked(place, out))
        assert code == 0 and "finished already" in said and contents(out) == whole


def test_what_a_kill_at_the_end_left_is_removed(place, call, tmp_path):
    out = shutil.copytree(place / "finished", tmp_path / "run")
    shutil.copy(place / "stopped" / "state.safetensors", out)
    shutil.copy(place / "stopped" / "best.safetensors", out)
    (out / ".model.safetensors.writing").mkdir()
    (out / ".model.safetensors.writing" / ".tmpX").write_text("half")
    (out / "mine.txt").write_text("mine")
    assert call(asked(place, out))[0] == 0
    mine = next(out.glob("mine.txt")).relative_to(out)
    assert contents(out).keys() == contents(place / "finished").keys() | {mine}


def test_two_runs_do_not_share_a_folder(place, call, tmp_path):
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"):
        code, _, err = call(asked(place, tmp_path / "run"))
    assert (code == 2 and "another process is writing to this folder" in err
            and not contents(tmp_path))
    assert call(asked(place, tmp_path / "run", epochs=1))[0] == 0, (
        "the lock should end with its process")


# ---------------------------------------------------------------- states and records

def change(path, **values):
    """Other metadata in a state's progress; None removes a key."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    progress = {k: v for k, v in (json.loads(metadata["progress"]) | values).items() if v != "gone"}
    save_file(tensors, path, metadata | {"progress": json.dumps(progress)})


@pytest.mark.parametrize("values", [*({key: "gone"} for key in PROGRESS_FIELDS),
                                    *({key: "x"} for key in PROGRESS_FIELDS), {"step": -1},
                                    {"step": 10**9}, {"history": [3]}, {"losses": []},
                                    {"best": None}, {"best": {"epoch": 1}}],
                         ids=str)
def test_a_broken_state_is_one_line(place, call, tmp_path, values):
    out = shutil.copytree(place / "stopped", tmp_path / "run")
    change(out / "state.safetensors", **values)
    code, _, err = call(asked(place, out))
    assert (code == 2 and "state.safetensors" in err.replace("\r", "\n").strip().split("\n")[-1]
            and "Traceback" not in err)


def test_broken_tensors_in_a_state_are_one_line(place, call, tmp_path):
    path, faults = tmp_path / "run" / "state.safetensors", {
        "nan": lambda t, n: t[n].view(-1)[:1].fill_(float("nan")), "missing": lambda t, n: t.pop(n),
        "shape": lambda t, n: t.update({n: torch.zeros(2)}),
        "unknown": lambda t, n: t.update(more=torch.zeros(2))}
    for (word, fault), kind in itertools.product(faults.items(), ("model.", "optimizer.exp_avg.")):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(place / "stopped", tmp_path / "run")
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        fault(tensors, kind + "head.out.weight")
        save_file(tensors, path, metadata)
        code, _, err = call(asked(place, tmp_path / "run"))
        assert code == 2 and str(path) in err and "--overwrite" in err, (word, kind, err)


def test_without_its_best_weights_a_run_says_how_to_begin_anew(place, call, tmp_path):
    out = shutil.copytree(place / "stopped", tmp_path / "run")
    (out / "best.safetensors").unlink()
    code, _, err = call(asked(place, out))
    assert code == 2 and "best.safetensors: is not there" in err and "--overwrite" in err
    assert call(asked(place, out, "--overwrite"))[0] == 0


@pytest.mark.parametrize("values", [{"results": 3}, {"results": {}}, {"split": "x"},
                                    {"timing": None}, {"parameters": []}, {"data": 3}, {"base": 3},
                                    {"settings": [1]}, {"finished": "yes"}],
                         ids=str)
def test_a_broken_record_is_one_line(place, call, tmp_path, values):
    out = shutil.copytree(place / "finished", tmp_path / "run")
    (out / "run.json").write_text(json.dumps(json.loads((out / "run.json").read_text()) | values))
    code, _, err = call(asked(place, out))
    assert code == 2 and "run.json" in err and err.count("\n") == 1


# ---------------------------------------------------------------- what the machine cannot do

@pytest.mark.parametrize("fails, words", [
    (lambda: torch.empty(10**16), "not enough memory"),
    (lambda: torch.empty(2**62, 8), "too large to count with"),
    (lambda: torch.nn.Linear(2, 10**30), "too large to count with"),
    (lambda: [0] * 10**16, "not enough memory"),
    (lambda: float(10**400), "too large to count with"),
    (lambda: os.open("/nowhere/at/all", 0), "/nowhere/at/all: No such file"),
    (lambda: exec("raise OSError(24, 'Too many open files')"), "ulimit -n"),
    (lambda: json.loads("[" * 10**5), "nested too deep"),
    (lambda: exec("raise RuntimeError('Symlink loop from /a')"), "in a circle")])
def test_what_the_machine_cannot_do_is_one_line(fails, words, capsys):
    with pytest.raises(SystemExit) as end:
        run(fails)
    err = capsys.readouterr().err
    assert (end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
            and words in err)


@pytest.mark.parametrize("error", [AssertionError("x"), AttributeError("x"), KeyError("x"),
                                   RuntimeError("shapes differ"), TypeError("x")])
def test_a_mistake_of_ours_keeps_its_traceback(error):
    assert limit_message(error) is None

    def fails():
        raise error
    with pytest.raises(type(error)):
        run(fails)


def test_messages_are_short_and_keep_their_end():
    line = one_line("file: " + "x" * 10**6 + "\ndo this")
    assert (len(line) < 1000 and line.startswith("file: ") and line.endswith("do this")
            and "\n" not in line)


def test_a_link_to_itself_is_one_line(place, call, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    code, _, err = call(asked(place, tmp_path / "loop"))
    assert code == 2 and "loop" in err


def test_a_clock_that_stands_still(place, call, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run.time, "monotonic", lambda: 5.0)
    monkeypatch.setattr(training_run.time, "time", lambda: 5.0)
    assert call(asked(place, tmp_path / "run", epochs=1))[0] == 0


# ---------------------------------------------------------------- outputs that are closed

def test_a_closed_pipe_stops_printing_only():
    reader, writer = os.pipe()
    os.close(reader)
    spare = os.open(os.devnull, os.O_WRONLY)
    for needs_reader in (False, True):
        with open(os.dup(writer), "w", buffering=1) as stream:
            out = BreakableStream(stream, spare, needs_reader)
            if not needs_reader:
                print("a line", file=out, flush=True)
                print("another", file=out, flush=True)
                assert out.error is None
            else:
                with pytest.raises(SystemExit):
                    print("a line", file=out, flush=True)


@pytest.mark.parametrize("redirect", ["2>&1 | head -1", ">&- 2>&- <&-"])
def test_a_run_that_nobody_reads_is_finished(place, tmp_path, redirect):
    words = " ".join(
        [sys.executable, "-m", "minillmclf.train", *asked(place, tmp_path / "run", epochs=1)])
    subprocess.run(["bash", "-c", f"{words} {redirect}"], cwd=small.ROOT, env=small.environment(),
                   timeout=120, check=True, stdout=subprocess.DEVNULL)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is True


# ---------------------------------------------------------------- signals

def test_a_closed_terminal_saves_unless_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)        # the tests may run under nohup
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_a_comparison_that_is_killed_takes_its_process_along(tmp_path):
    note, script = tmp_path / "note", tmp_path / "waits.py"
    script.write_text("import signal, sys, time, pathlib\n"
                      "def told(number, frame):\n"
                      "    pathlib.Path(sys.argv[1]).write_text('told'); sys.exit()\n"
                      "signal.signal(signal.SIGTERM, told)\n"
                      "pathlib.Path(sys.argv[1]).write_text('up')\ntime.sleep(60)\n")
    program = ("import sys; from pathlib import Path; from minillmclf.compare import runs; "
               "t = Path(sys.argv[1]); "
               "runs.run_module('waits', t / 'note', printed=t / 'out', errors=t / 'err')")
    parent = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=small.ROOT,
        env=small.environment() | {"PYTHONPATH": f"{small.ROOT}{os.pathsep}{tmp_path}"})
    wait_for(lambda: note.exists() and note.read_text() == "up")
    parent.kill()
    parent.wait()
    wait_for(lambda: note.read_text() == "told")


def wait_for(holds, seconds=30):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it has not come to pass"
        time.sleep(0.02)


# ---------------------------------------------------------------- the plan, and cells

@pytest.mark.parametrize("asked, epochs, steps", [
    ({"epochs": 10**12}, 10**12, 5 * 10**12),
    ({"epochs": 3, "min_steps": 10**12 + 1}, 2 * 10**11 + 1, 10**12 + 5),
    ({"epochs": 3, "batch_tokens": 12}, 3, None), ({"epochs": 3, "sampling": "balanced"}, 3, 15)])
def test_the_plan_is_made_an_epoch_at_a_time(asked, epochs, steps):
    rows = Split([([1] * (row % 5 + 1), None) for row in range(20)], [0, 1] * 10)
    s = Settings(batch_size=4, **asked)
    plan = Plan([row_size(row) for row in rows.encoded], rows.targets, s)
    assert plan.epochs == epochs and plan.steps == (steps or sum(map(len, plan)))
    if s.sampling == "none":
        lengths = list(map(row_size, rows.encoded))
        for number in (0, 2):
            assert plan[number] == make_batches(
                lengths, 4, seed=f"0:{number}", tokens=s.batch_tokens)


def test_a_broken_cell_is_one_line(tmp_path, monkeypatch):
    from minillmclf.compare.configurations import Configuration
    s = Settings()
    made = {"settings": s.decisive_under_old_names(), "data": {}}
    (tmp_path / "predictions.csv").write_text("")
    for broken in ({}, {"split": "test", "dev": 3}):
        (tmp_path / "cell.json").write_text(
            json.dumps({"state": "finished", "made_from": made, **broken}))
        with pytest.raises(InputError, match="cell.json: .*save it again"):
            runs.run_once(runs.Run(Configuration("majority", s), "all", 0, tmp_path), {})


# ---------------------------------------------------------------- what a run may go on with

def test_rows_at_a_time_do_not_decide_a_run_but_name_a_cell_of_compare():
    s = Settings()
    for name in ("micro_batch_size", "eval_batch_size", "gradient_checkpointing"):
        other = replace(s, **{name: "on" if name == "gradient_checkpointing" else 3})
        assert other.decisive_settings() == s.decisive_settings(), f"{name}: another run"
    old = replace(s, micro_batch_size=3, eval_batch_size=5).decisive_under_old_names()
    assert (old["micro_batch_size"], old["eval_batch_size"]) == (3, 5), "its cells lie there"
    assert replace(s, batch_size=3).decisive_settings() != s.decisive_settings()
