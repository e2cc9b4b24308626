"""Every command on the device that it is given: what a GPU would refuse, that the answers are the
CPU's, what torchrun may share, on what a stopped run goes on, and the switches --deterministic and
no TF32.

The device is tests/pretend_device.py, which computes on the CPU what it is asked.
"""
import contextlib
import csv
import importlib
import json
import os
import random

import numpy as np
import pytest
import torch
from conftest import refused
from flag_world import commands, flags_of
from pretend_device import DEVICE, Pretend, Watch
from safetensors.torch import load_file
from small import TOPICS, bert_folder, data_file, flags, module_of, texts_of

from minillmclf.classify.classifier import Classifier
from minillmclf.cli import device, launch, run_folder
from minillmclf.cli.settings import Settings
from minillmclf.errors import InputError
from minillmclf.training import loop
from minillmclf.training.checkpoint import seed_step
from minillmclf.training.monitors.gradients import checksum
from minillmclf.training.parallel import processes

COMPUTE = {"train", "evaluate", "predict", "compare", "folds", "merge", "pretrain"}
TINY = dict(vocab_size=100, layers=1, width=32, heads=2, mlp_width=24, steps=2, batch_size=4,
            length=20, save_every=5)
QUICK = dict(epochs=1, batch_size=8, lr=1e-3, baselines="off", few_rows="off")
PRETEND = ("--device", "pretend:0")


def test_commands_that_compute_have_the_flag_and_no_other():
    """labels, choose, inspect, report and grade compute nothing on a model's device."""
    assert {command for command in commands()
            if any("--device" in names for names in flags_of(command))} == COMPUTE


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a BERT that has a masked-LM head, data with a split, and without one."""
    folder = tmp_path_factory.mktemp("place")
    bert_folder(folder / "bert", dropout=0.0, lm_head=True, positions=512)
    data_file(folder / "data.csv")
    with open(folder / "unsplit.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *texts_of(random.Random(3), 30)])
    (folder / "text.txt").write_text(
        "".join(text + "\n" for text, _ in texts_of(random.Random(4), 80)))
    pairs = [json.dumps({"prompt": text, "answer": label}) + "\n"
             for text, label in texts_of(random.Random(6), 60)]
    (folder / "pairs.jsonl").write_text("".join(pairs))
    return folder


@contextlib.contextmanager
def watched(monkeypatch):
    """Within: all faults of the pretend device are raised; -> the set of the devices on which
    matrices were multiplied."""
    seen, real = set(), torch.nn.functional.linear

    def linear(x, *more):
        seen.add("pretend" if isinstance(x, Pretend) or x.device.type == "pretend" else "cpu")
        return real(x, *more)
    with monkeypatch.context() as patch, Watch() as watch:
        patch.setattr(torch.nn.functional, "linear", linear)
        yield seen
    assert not watch.faults


def on_both(command, call, monkeypatch, given):
    """Run a command on the CPU and on the device; given(name of a folder) -> its flags. -> what
    both said on the device"""
    main = importlib.import_module(module_of(command))
    code, _, error = call(main, *given("cpu"), "--device", "cpu")
    assert code == 0, error
    with watched(monkeypatch) as seen:
        code, out, error = call(main, *given("gpu"), *PRETEND)
    assert code == 0, error
    assert seen == {"pretend"}, f"{command} has multiplied matrices elsewhere, or none"
    assert "on pretend:0" in out + error, "it should say on what it computes"
    return out, error


def tensors_near(a, b, names=None):
    """Two files of the same tensors, up to the order of sums."""
    a, b = load_file(a), load_file(b)
    assert a.keys() == b.keys()
    for name in names or a:
        assert (a[name].float() - b[name].float()).abs().max() <= 1e-3 * max(
            1, a[name].abs().max()), name


@pytest.mark.parametrize("more", [
    {}, dict(method="lora"), dict(method="head", head_init="probe"),
    dict(windows="mean", max_length=8, overlap=2),
    dict(objective="contrastive", pool="mean"), dict(precision="fp32", deterministic="on")])
def test_train(more, place, tmp_path, call, monkeypatch):
    if more.get("objective"):
        monkeypatch.setattr("minillmclf.training.contrastive.LEAST_STEPS", 2)
    asked = {"model": place / "bert", "data": place / "data.csv", **QUICK, **more}
    if more.get("head_init"):
        del asked["epochs"]
    on_both("train", call, monkeypatch, lambda name: flags(**asked, out=tmp_path / name))
    cpu, gpu = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("cpu", "gpu"))
    assert gpu["versions"]["device"] == "pretend" and cpu["versions"]["device"] == "cpu"
    (a,), (b,) = ([v for n, v in record["results"].items() if n.startswith("bert")]
                  for record in (cpu, gpu))
    assert a["log_loss"] == pytest.approx(b["log_loss"], rel=1e-3)


def test_folds(place, tmp_path, call, monkeypatch):
    on_both("folds", call, monkeypatch, lambda name: flags(
        model=place / "bert", data=place / "unsplit.csv", folds=2, test=place / "unsplit.csv",
        out=tmp_path / name, **{key: value for key, value in QUICK.items() if key != "few_rows"}))
    cpu, gpu = (np.genfromtxt(tmp_path / name / "oof.csv", delimiter=",", skip_header=1)[:, 5:]
                for name in ("cpu", "gpu"))
    assert cpu.shape == (30, 3) and np.abs(cpu - gpu).max() < 1e-3


def test_compare(place, tmp_path, call, monkeypatch):
    """Its runs are processes of their own; here they run in this one."""
    from minillmclf.compare import runs

    def in_this_process(module, *given, printed, errors):
        with (open(printed, "w") as out, open(errors, "w") as error,
              contextlib.redirect_stdout(out), contextlib.redirect_stderr(error)):
            return importlib.import_module(module).main(list(map(str, given))) or 0
    monkeypatch.setattr(runs, "run_module", in_this_process)
    monkeypatch.setattr(runs, "TIMED_PASSES", 1)
    on_both("compare", call, monkeypatch,
            lambda name: [*flags(models=place / "bert", methods="head", data=place / "data.csv",
                                 seeds=1, out=tmp_path / name, epochs=1, batch_size=8, lr=1e-3)])
    cpu, gpu = (next((tmp_path / name / "cells").glob("*/cell.json")) for name in ("cpu", "gpu"))
    cpu, gpu = (json.loads(path.read_text()) for path in (cpu, gpu))
    assert cpu["state"] == gpu["state"] == "finished" and gpu["ms_per_text"] > 0
    assert cpu["test"]["log_loss"] == pytest.approx(gpu["test"]["log_loss"], rel=1e-3)


def test_merge(place, tmp_path, call, monkeypatch):
    from minillmclf import train
    code, _, error = call(train, *flags(model=place / "bert", data=place / "data.csv",
                                        method="lora", out=tmp_path / "run", **QUICK))
    assert code == 0, error
    on_both("merge", call, monkeypatch,
            lambda name: flags(model=tmp_path / "run", out=tmp_path / name))
    cpu, gpu = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("cpu", "gpu"))
    assert cpu == gpu, "the sums are made on the CPU: the same file anywhere"


@pytest.mark.parametrize("objective, more", [
    ("mlm", {}), ("clm", dict(vocab_size=310)), ("spans", dict(vocab_size=90)),
    ("distill", dict(teacher="bert", heads=4))])
def test_pretrain(objective, more, place, tmp_path, call, monkeypatch):
    more = {name: place / value if name == "teacher" else value for name, value in more.items()}
    on_both("pretrain", call, monkeypatch, lambda name: flags(
        **{**TINY, **more}, objective=objective, text=place / "text.txt", out=tmp_path / name))
    tensors_near(tmp_path / "cpu" / "model.safetensors", tmp_path / "gpu" / "model.safetensors")


def test_pretrain_on_answers_texts_and_vectors_at_once(place, tmp_path, call, monkeypatch):
    from minillmclf.pretrain import __main__ as pretrain
    small = flags(**{**TINY, "vocab_size": 310}, objective="clm", text=place / "text.txt")
    assert call(pretrain, *small, "--out", tmp_path / "start")[0] == 0
    on_both("pretrain", call, monkeypatch,
            lambda name: [*small, *flags(start=tmp_path / "start", pairs=place / "pairs.jsonl",
                                         teacher=place / "bert", out=tmp_path / name)])
    tensors_near(tmp_path / "cpu" / "model.safetensors", tmp_path / "gpu" / "model.safetensors")


def test_pretraining_goes_on_on_its_own_kind_of_device(place, tmp_path, call):
    from minillmclf.pretrain import __main__ as pretrain
    given = flags(**{**TINY, "save_every": 1}, objective="mlm", text=place / "text.txt",
                  out=tmp_path / "out")
    assert call(pretrain, *given)[0] == 0
    with Watch():
        code, _, error = call(pretrain, *given, *PRETEND)
    assert code == 2 and "settings (device)" in error and error.count("\n") == 1


def test_nearest_shots_are_found_on_the_device(place, monkeypatch):
    from minillmclf.classify.label_text.prompting import text_vectors
    rows = [(text,) for text, _ in texts_of(random.Random(2), 5)]
    expected = text_vectors(rows, place / "bert")
    with watched(monkeypatch) as seen:
        found = text_vectors(rows, place / "bert", DEVICE)
    assert seen == {"pretend"} and np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_saved_model_answers_on_the_gpu_without_being_told(command, place, tmp_path, call,
                                                             monkeypatch):
    Classifier.from_backbone(place / "bert", sorted(TOPICS), seed=1).save(tmp_path / "model")
    monkeypatch.setattr(device, "device_of", lambda name: "pretend:0" if name == "auto" else name)
    given = flags(model=tmp_path / "model", data=place / "unsplit.csv")
    with watched(monkeypatch) as seen:
        code, _, error = call(importlib.import_module(module_of(command)), *given)
    assert code == 0 and seen == {"pretend"} and "on pretend:0" in error


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_saved_model_answers_in_bf16_on_the_device(command, place, tmp_path, call, monkeypatch):
    Classifier.from_backbone(place / "bert", sorted(TOPICS), seed=1).save(tmp_path / "model")
    out, said = on_both(command, call, monkeypatch, lambda name: flags(
        model=tmp_path / "model", data=place / "unsplit.csv", precision="bf16"))
    assert "in bf16" in said


# ------------------------------------------------------------------------------------------- MPS

@pytest.mark.parametrize("more",
                         [{}, dict(class_weights="balanced"),
                          dict(multi_label="on", metric="macro_f1"), dict(head_init="probe")])
def test_no_float64_meets_the_device(more, place, tmp_path, call, monkeypatch):
    """Apple's MPS has none. From training to the saved model, with the check of the first steps."""
    from minillmclf import train
    with Watch(float64=False) as watch:
        code, _, error = call(train, *flags(model=place / "bert", data=place / "data.csv",
                                            out=tmp_path / "run", **QUICK, **more), *PRETEND)
    assert code == 0 and not watch.faults, error


def test_a_planted_float64_is_caught(place, tmp_path, call, monkeypatch):
    from minillmclf import train
    from minillmclf.training.monitors import gradients
    monkeypatch.setattr(gradients, "checksum",
                        lambda tensor: tensor.detach().sum(dtype=torch.float64).item())
    with Watch(float64=False), pytest.raises(RuntimeError, match="float64"):
        train.main(flags(model=place / "bert", data=place / "data.csv", out=tmp_path / "run",
                         **QUICK, device="pretend:0"))


@pytest.mark.parametrize("dtype",
                         [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_a_checksum_sees_the_smallest_change(dtype):
    tensor = torch.arange(1, 4097).remainder(100).to(dtype)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    if dtype == torch.float32:
        tensor[7] = torch.nextafter(tensor[7], torch.tensor(1e9))
    else:
        tensor[7] = tensor[7] + 1 if dtype == torch.uint8 else tensor[7] * 1.01
    assert checksum(tensor) != before


def test_a_step_seeds_the_generator_of_mps(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    seed_step(0, 3)
    assert seeds == [torch.initial_seed()]


# ------------------------------------------------------------------------------- several processes

def together(monkeypatch, here, gpus):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: here)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))


@pytest.mark.parametrize("name, here, gpus, said", [
    ("cuda:0", 2, 2, "each needs a device of its own: --device cuda"),
    ("cuda", 3, 2, "started 3 processes here, and there are 2 CUDA devices: --nproc-per-node 2"),
    ("cuda", 2, 0, "--nproc-per-node 1, or --device cpu"),
    ("mps", 2, 0, "--device cpu or --device cuda")])
def test_processes_that_cannot_share_a_device_are_one_line(name, here, gpus, said, monkeypatch):
    together(monkeypatch, here, gpus)
    refused(lambda: device.move(torch.nn.Linear(1, 1), name), said)


@pytest.mark.parametrize("name, here, gpus", [("cuda", 2, 2), ("cuda:0", 1, 1), ("cpu", 9, 1)])
def test_processes_that_can_share_are_let(name, here, gpus, monkeypatch):
    together(monkeypatch, here, gpus)
    device.check_shared_device(name)


@pytest.mark.parametrize("gpus, nccl, backend, chosen", [
    (2, True, "cpu:gloo,cuda:nccl", [1]), (2, False, "gloo", []), (0, True, "gloo", [])])
def test_numbers_of_the_cpu_go_by_gloo_beside_nccl(gpus, nccl, backend, chosen, monkeypatch):
    """NCCL takes no tensors of the CPU, and the loop's numbers and the logits lie there."""
    asked, devices = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([("store", 1, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group",
                        lambda name, **_: asked.append(name))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch.join_processes() == (1, "store") and asked == [backend] and devices == chosen


def test_sharded_tensors_are_gathered_one_at_a_time(tmp_path, monkeypatch):
    """Where a device holds a share of each tensor, it has no room for all of them whole."""
    alive, most = [], []

    class Whole:
        def __init__(self):
            alive.append(1)
            most.append(len(alive))

        def __del__(self):
            alive.pop()

        def cpu(self):
            return torch.ones(3)
    monkeypatch.setattr(processes, "full_tensor", lambda _: Whole())
    store = processes.SharedStore(tmp_path)
    store.write(store.best, {str(number): torch.ones(1) for number in range(5)}, {})
    assert len(most) == 5 and max(most) <= 2, (
        "the next is gathered before the last one's name is free: two, not five")
    assert len(load_file(store.best)) == 5


# ------------------------------------------------------------------------- what must be the same

@pytest.mark.parametrize("begun, given, goes", [
    ("cpu", "auto", True), ("cuda", "auto", False), (None, "auto", True), ("cpu", "cuda", False)])
def test_an_unfinished_run_goes_on_on_its_own_kind_of_device(begun, given, goes):
    record = {"versions": {"device": begun} if begun else {}}
    s = Settings(device=given)
    if goes:
        assert run_folder.refuse_other_device(s, "out", record) is None
    else:
        refused(lambda: run_folder.refuse_other_device(s, "out", record), f"--device {begun}",
                "--overwrite", given)


def test_a_stopped_run_is_refused_on_another_kind_and_a_finished_one_is_kept(
        place, tmp_path, call, monkeypatch):
    from minillmclf import train
    given = flags(model=place / "bert", data=place / "data.csv", out=tmp_path / "run", save_every=1,
                  **QUICK)
    plain, taken = loop.take_step, []

    def second_fails(*arguments, **more):
        taken.append(1)
        if len(taken) == 2:
            raise InputError("stop here")
        return plain(*arguments, **more)
    monkeypatch.setattr(loop, "take_step", second_fails)
    assert call(train, *given)[0] == 2
    with Watch():
        code, _, error = call(train, *given, *PRETEND)
    assert code == 2 and "begun on cpu" in error and error.count("\n") == 1 and len(taken) == 2
    assert call(train, *given)[0] == 0
    with Watch():
        code, out, _ = call(train, *given, *PRETEND)
    assert code == 0 and "finished already" in out
    taken.clear()
    assert call(train, *given, "--overwrite")[0] == 2  # a new run beside it, stopped
    with Watch():
        code, _, error = call(train, *given, *PRETEND)
    assert code == 2 and ".new: holds a run that was begun on cpu" in error


# -------------------------------------------------------------------- --deterministic, and TF32

def modes():
    return (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark)


def test_deterministic_sets_what_torch_has_and_puts_it_back(monkeypatch):
    monkeypatch.delenv(device.CUBLAS, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = modes()
    with device.deterministic(True):
        assert modes() == (True, True, False) and os.environ[device.CUBLAS] == ":4096:8"
    assert modes() == before
    with device.deterministic(False):
        assert modes() == before


def test_what_torch_cannot_do_deterministically_is_one_line():
    said = (
        "put_ does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this "
        "operation")

    def fails(text):
        with device.deterministic(True):
            raise RuntimeError(text)
    assert "turn off" not in refused(
        lambda: fails(said), "--deterministic: put_ does not have a deterministic implementation",
        "--device cpu")
    with pytest.raises(RuntimeError, match="something else"):
        fails("something else")
    assert not torch.are_deterministic_algorithms_enabled()


def test_fp32_is_fp32_on_a_cuda_device(monkeypatch):
    class Model(torch.nn.Linear):
        def to(self, _):
            return self
    plain = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device=None: plain(*sizes))
    torch.set_float32_matmul_precision("high")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        device.move(Model(1, 1), "cpu")
        assert torch.get_float32_matmul_precision() == "high"
        device.move(Model(1, 1), "cuda")
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("kind, precision, line", [
    ("cuda", "fp32", "on cuda:0 (a GPU), in fp32 without TF32"),
    ("cuda", "bf16", "on cuda:0 (a GPU)"), ("mps", "fp32", "on mps"), ("cpu", "fp32", "")])
def test_the_line_about_the_device(kind, precision, line, monkeypatch):
    class Parameter:
        device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)

    class Model:
        def parameters(self):
            return iter([Parameter])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    assert device.device_lines(Model(), precision) == ([line] if line else [])


@pytest.mark.parametrize("fast, line", [
    (True, "bf16 is faster"), (False, "bf16 is not faster than fp32, fp16 is: --precision fp16")])
def test_inspect_says_which_precision_a_gpu_is_fast_at(fast, line, monkeypatch):
    monkeypatch.setattr(device, "device_of", lambda _: "cuda")
    monkeypatch.setattr(device, "device_text", lambda _: "cuda (a GPU)")
    monkeypatch.setattr(device, "is_bf16_fast", lambda _: fast)
    assert device.machine_line().startswith(f"this machine: cuda (a GPU); {line}")
