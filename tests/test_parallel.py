"""Two processes under torchrun come to what one process comes to; they stop, fail and go on
together. Most are forks that are told what torchrun tells its processes."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROUNDED, fp32
from safetensors.torch import load_file
from small import ROOT, bert_folder, data_file, environment, flags, forked, forked_program

from minillmclf.cli.settings import Settings
from minillmclf.errors import InputError
from minillmclf.models.tensor_files import open_tensors
from minillmclf.training.checkpoint import seed_step
from minillmclf.training.losses import CrossEntropy
from minillmclf.training.plan import Split
from minillmclf.training.parallel import fsdp, processes as parallel

# A command, in float64, of which process 1 alone is disturbed as its N-th step begins. AdamW
# divides each gradient by its own size, so that in float32 a gradient of nothing but rounding moves
# a weight as far as any other: no comparison.
DISTURBED = """
import os, signal, sys
import torch
from minillmclf import train
from minillmclf.cli import training_run
from minillmclf.cli.parser import run
from minillmclf.errors import InputError
from minillmclf.training.parallel import processes
what, number, count, real = sys.argv[1], int(sys.argv[2]), 0, processes.take_step
def take_step(*arguments, **more):
    global count
    count += 1
    if count == number and os.environ["RANK"] == "1":
        if what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise InputError("only here")
    return real(*arguments, **more)
processes.take_step = take_step
build = training_run.build_classifier
training_run.build_classifier = lambda *arguments: (
    lambda model, *rest: (model.double(), *rest))(*build(*arguments))
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)
training_run.check_saved = lambda *_: None                # a model in float64 is saved in float32
run(lambda: train.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The settings of all runs: no dropout, a last batch of a single row, pieces of two rows,
    weighted classes."""
    place = tmp_path_factory.mktemp("place")
    (place / "disturbed.py").write_text(DISTURBED)
    return dict(model=bert_folder(place / "bert", dropout=0.0),
                data=data_file(place / "data.csv", train=29, dev=9, test=7),
                epochs=2, batch_size=7, micro_batch_size=2, lr=3e-3, class_weights="balanced",
                clip=0.5, save_every=100)


@pytest.fixture(scope="module")
def alone(asked, tmp_path_factory):
    """The folder of the run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    code, error = in_one_process(asked, out)
    assert code == 0, error
    return out


def in_one_process(asked, out):
    """The same command in one process, undisturbed -> (exit code, stderr)."""
    script = asked["model"].parent / "disturbed.py"
    code, _, error = forked_program(script, "nothing", 0, *flags(**asked, out=out))
    return code, error


def two(*program):
    """The same of two processes, told what torchrun tells them -> (exit code, stdout, stderr)."""
    return forked_program(*program, processes=2)


def torchrun(*command):
    """Two processes of a command under torchrun itself -> (its exit code, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc-per-node", "2", *map(str, command)],
                          cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def check_equal(out, alone):
    """Losses equal to 1e-6, to which they are written, and weights to the float32 in which they are
    written."""
    one, two = ([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                for folder in (alone, out))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two):
        for name in ("train_loss", "log_loss"):
            assert a[name] == pytest.approx(b[name], abs=1e-6), (
                f"{name} of epoch {a['epoch']} is another in two processes")
    a, b = load_file(alone / "model.safetensors"), load_file(out / "model.safetensors")
    assert a.keys() == b.keys()
    apart = {n: ((a[n] - b[n]).abs() / a[n].abs().max()).max().item()
             for n in a if not n.endswith("key.bias")}             # its gradient is rounding alone
    assert max(apart.values()) <= ROUNDED, (
        f"final weights differ: {max(apart, key=apart.get)} by {max(apart.values()):.2g}")
    assert json.loads((out / "run.json").read_text())["finished"]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in alone.iterdir())


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_are_one(asked, alone, tmp_path, kind):
    start = load_file(asked["model"] / "model.safetensors")
    moved = load_file(alone / "model.safetensors")
    assert max((start[n] - moved[n]).abs().max() for n in start if n in moved) > 1e-3, (
        "nothing was learned: no comparison")
    script = asked["model"].parent / "disturbed.py"
    arguments = flags(**asked, out=tmp_path / "run", parallel=kind)
    code, out, error = two(script, "nothing", 0, *arguments)
    assert code == 0, error
    check_equal(tmp_path / "run", alone)
    assert out.count("gradients: ") == out.count("best epoch") == 1, (
        f"printed by other than one process: {out}")
    assert "all with a gradient" in out


def test_in_float32_two_processes_learn_what_one_learns(asked, tmp_path):
    """As users run it: what was learned, as a whole, is apart by rounding; for single weights see
    DISTURBED."""
    runs = {"one": tmp_path / "one", "two": tmp_path / "two"}
    code, _, error, _ = forked("train", flags(**asked, out=runs["one"]))
    assert code == 0, error
    code, _, error = torchrun("-m", "minillmclf.train", *flags(**asked, out=runs["two"]))
    assert code == 0, error
    first = load_file(asked["model"] / "model.safetensors")
    one, two = (load_file(out / "model.safetensors") for out in runs.values())
    shared = [n for n in one if n in first and not n.endswith("key.bias")]
    moved, apart = (sum((a[n] - b[n]).square().sum().item() for n in shared) ** 0.5
                    for a, b in ((one, first), (one, two)))
    steps = 2 * 5                                   # each may add what one step's gradient is apart
    assert moved > 0.1 and apart <= steps * fp32(48, 4) * moved, (
        f"{apart:.2g} apart, moved by {moved:.2g}")
    losses = [[json.loads(line)["log_loss"]
               for line in (out / "metrics.jsonl").read_text().splitlines()]
              for out in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=steps * fp32(48, 4))


def test_they_stop_together_and_one_goes_on(asked, alone, tmp_path):
    """A signal that reaches one process only; the state of shared tensors is whole, so one process
    can go on with it."""
    arguments = flags(**asked, out=tmp_path / "run")
    script = asked["model"].parent / "disturbed.py"
    code, out, error = two(script, "signal", 4, *arguments, "--parallel", "fsdp")
    assert code != 0 and out.count("goes on from there") == 1, out + error
    saved = open_tensors(tmp_path / "run" / "state.safetensors").metadata()
    assert json.loads(saved["progress"])["step"] == 4
    code, error = in_one_process(asked, tmp_path / "run")
    assert code == 0, error
    check_equal(tmp_path / "run", alone)


def test_sharded_models_go_on_behind_the_last_step_of_an_epoch(asked, alone, tmp_path):
    """The dev rows are read before the optimiser takes its first step: shards must be back."""
    arguments = [*flags(**asked, out=tmp_path / "run"), "--parallel", "fsdp"]
    script = asked["model"].parent / "disturbed.py"
    code, out, error = two(script, "signal", 5, *arguments)
    assert code != 0 and out.count("goes on from there") == 1, out + error
    saved = json.loads(open_tensors(tmp_path / "run" / "state.safetensors").metadata()["progress"])
    assert saved["step"] == 5 and not saved["history"]
    code, out, error = two(script, "nothing", 0, *arguments)
    assert code == 0, error
    check_equal(tmp_path / "run", alone)


def test_an_error_in_one_process_ends_all_with_its_line(asked, tmp_path):
    script = asked["model"].parent / "disturbed.py"
    code, out, error = two(script, "error", 3, *flags(**asked, out=tmp_path / "run"))
    told = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code != 0 and told == ["error: only here"], error
    assert "Connection closed" not in error, (
        "the process that waited in vain should end without a word")


def test_a_mistake_of_all_is_told_once(asked, tmp_path):
    program = tmp_path / "train.py"
    program.write_text("from minillmclf import train\nfrom minillmclf.cli.parser import run\n"
                       "run(train.main)\n")
    code, out, error = two(program, *flags(**{**asked, "method": "none"}, out=tmp_path / "run"))
    told = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(told) == 1, error


def test_fsdp_needs_several_processes(asked, tmp_path):
    code, _, error, _ = forked("train", flags(**asked, out=tmp_path / "run", parallel="fsdp"))
    assert code == 2 and error.count("\n") == 1 and "torchrun --nproc-per-node" in error


def test_alone_nothing_changes():
    rows = [5, 3, 8, 1, 9]
    assert parallel.own_share(rows, 0) == (rows, 0) and parallel.own_share(rows, 2) == (rows, 0)
    assert parallel.all_reduce(0.1) == 0.1 and parallel.is_main_process()
    assert not parallel.is_distributed()
    with pytest.raises(InputError, match="one: start it with torchrun"):
        fsdp.shard_model(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("count, size, most", [
    (7, 2, 0), (7, 2, 2), (1, 2, 0), (1, 3, 1), (9, 4, 2)])
def test_shares_are_all_rows_once_in_equally_many_micro_batches(monkeypatch, count, size, most):
    rows = list(range(10, 10 + count))
    monkeypatch.setattr(parallel, "world_size", lambda: size)
    dealt, passes = [], []
    for rank in range(size):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        own, missing = parallel.own_share(rows, most)
        dealt += own
        passes.append(-(-len(own) // (most or max(1, len(own)))) + missing)
    assert len(set(passes)) == 1, f"unequal numbers of passes: {passes}"
    assert sorted(dealt) == rows


def test_two_processes_drop_other_neurons(monkeypatch):
    """Each process seeds its own dropout; the main process has the seed of a run alone."""
    seeds = []
    monkeypatch.setattr(parallel.loop, "add_gradients",
                        lambda *_: seeds.append(torch.initial_seed()) or 0.0)
    monkeypatch.setattr(parallel.loop, "update_weights", lambda *_: None)
    monkeypatch.setattr(parallel, "all_reduce", lambda number: number)
    model, rows = torch.nn.Linear(2, 2), Split([None] * 2, [0, 1])
    for rank in range(2):
        seed_step(7, 1)
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parallel.take_step(model, torch.optim.SGD(model.parameters()), rows, [0, 1], Settings(),
                           CrossEntropy())
    seed_step(7, 1)
    assert seeds[0] == torch.initial_seed() != seeds[1], "two processes drop the same neurons"
