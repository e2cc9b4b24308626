"""What would fail on a GPU, found without one: every family on a device that is not there.

tests/pretend_device.py computes on the CPU what "pretend:0" is asked, and refuses what CUDA would
refuse: tensors of two devices in one call, a generator of the CPU. So its results should be the
CPU's, but for the order of sums (attention is taken apart there). It counts waits, too: each copy
from or to the device, each number read.
"""
import csv
import importlib
import random
import re
import weakref
from types import SimpleNamespace

import pytest
import torch
from pretend_device import DEVICE, Pretend, Watch
from small import TOPICS, module_of, texts_of
from test_families import CONFIGS, folders, spread          # noqa: F401  folders is a fixture

from minillmclf import generate
from minillmclf.cli import device
from minillmclf.cli.build import classifier_options, tuning_config
from minillmclf.cli.parser import limit_message
from minillmclf.cli.settings import Settings
from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError, NoMemory
from minillmclf.models import tensor_files
from minillmclf.models.weights import Checkpoint
from minillmclf.training.completion_loss import CompletionLoss
from minillmclf.training.loop import take_step
from minillmclf.training.monitors import memory
from minillmclf.training.parallel import processes
from minillmclf.training.plan import Split
from minillmclf.tuning import tune

SOME = ["bert", "deberta-v3", "gpt2", "llama", "gemma3", "t5"]  # one of each wiring
ROWS = texts_of(random.Random(5), 6)
LABELS = sorted(TOPICS)
LABEL_READOUT = dict(readout="labels", template="{text} it is {label}", max_length=40, end="none")
SCENES = {
    "head": {}, "labels": LABEL_READOUT,
    "completion": LABEL_READOUT | dict(objective="completion"),
    "lora": dict(method="lora", targets="all-linear"), "qlora": dict(method="qlora"),
    "lora, bf16": dict(method="lora", targets="all-linear", dtype="bf16"),
    "qlora, bf16": dict(method="qlora", dtype="bf16"),
    "prefix": dict(method="prefix", virtual_tokens=3),
    "prompt": dict(method="prompt", virtual_tokens=3),
    "windows": dict(windows="mean", max_length=8, overlap=2),
    "multi-label": dict(multi_label="on", metric="macro_f1"),
    "micro-batches, balanced": dict(micro_batch_size=2, class_weights="balanced",
                                    label_smoothing=0.0, focal_gamma=2.0)}
LABEL_SCENES = ("labels", "completion")


def classifier(folder, s, device=None):
    """A classifier of the settings, with wide weights, and its training rows."""
    task = {"quantise": s.quantise} if s.method == "qlora" else {}
    model = Classifier.from_backbone(folder, LABELS, **classifier_options(s), **task, device=device,
                                     dtype=s.dtype, method=s.method)
    tune(model, tuning_config(s), 0)
    if s.method != "qlora" and s.dtype == "fp32":
        spread(model)
    texts = [text for text, _ in ROWS]
    encoded = model.encode(texts, training=True)[0]
    numbers = [LABELS.index(label) for _, label in ROWS]
    if s.multi_label == "on":
        numbers = [[float(n == c) for c in range(3)] for n in numbers]
    return model, Split(encoded, numbers)


def play(model, rows, s):
    """A training step and the answers after it -> {name: tensor on the CPU}."""
    objective = CompletionLoss(model.head.answer_lengths()) if s.objective == "completion" \
        else model.task.build_objective(s, rows.targets)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    loss = take_step(model.train(), optimizer, rows, list(range(len(ROWS))), s, objective)
    logits = model.compute_logits(model.encode([text for text, _ in ROWS])[0], 4)
    grads = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": torch.tensor(loss), "logits": logits} | grads


def settings_of(scene):
    return Settings(**{"few_rows": "off", "lr": 1e-3, **SCENES[scene]})


def fits(name, scene):
    """Label texts need a language-model head, which the others have none of here."""
    return scene not in LABEL_SCENES or name in ("gpt2", "gemma3", "t5")


PLAYED = [(name, scene) for name in SOME for scene in SCENES if fits(name, scene)]
PLAYED += [(name, scene) for name in CONFIGS if name not in SOME for scene in ("head", "lora")]


@pytest.mark.parametrize("name, scene", PLAYED)
def test_a_step_and_its_answers_are_those_of_the_cpu(name, scene, folders):     # noqa: F811
    s = settings_of(scene)
    expected = play(*classifier(folders[name], s), s)
    model, rows = classifier(folders[name], s)
    with Watch() as watch:
        found = play(model.to(DEVICE), rows, s)
    assert (isinstance(next(model.parameters()), Pretend)
            or next(model.parameters()).device == DEVICE)
    assert not watch.faults
    assert found.keys() == expected.keys() and len(found) > 3
    for key, tensor in expected.items():
        largest = tensor.abs().max().item()
        # after a step of all linear layers with wide weights, rounding of some processors is 8e-5
        allowed = 1e-4 if (scene, key) == ("lora", "logits") else 1e-5
        assert (found[key] - tensor).abs().max() <= allowed * max(1, largest), key


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("scene", ["lora, bf16", "qlora", "qlora, bf16"])
def test_weights_that_are_read_onto_the_device_are_those_of_the_cpu(name, scene, folders):  # noqa: F811
    """Each tensor goes there as it is read, and four bits are made there: the same to the bit."""
    s = settings_of(scene)
    plain, rows = classifier(folders[name], s)
    with Watch() as watch:
        model, _ = classifier(folders[name], s, DEVICE)
        body = [*model.backbone.named_parameters(), *model.backbone.named_buffers()]
        assert all(tensor.device.type == "pretend" for _, tensor in body)
        for path, tensor in body:
            expected = plain.backbone.get_buffer(path) if path in dict(
                plain.backbone.named_buffers()) else plain.backbone.get_parameter(path)
            found = tensor.detach().cpu()
            assert found.dtype == expected.dtype and torch.equal(found, expected), path
        found = play(model.to(DEVICE), rows, s)
    assert not watch.faults
    for key, tensor in play(plain, rows, s).items():
        assert (found[key] - tensor).abs().max() <= 1e-5 * max(1, tensor.abs().max().item()), key


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "t5"])
def test_what_is_written_is_that_of_the_cpu(name, folders):                     # noqa: F811
    model = spread(Classifier.from_backbone(folders[name], LABELS,
                                                    **classifier_options(settings_of("labels"))))
    ids = torch.tensor([[5, 9, 12, 7], [6, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = generate(model.backbone, ids, mask, 5)
    with Watch() as watch:
        found = generate(model.to(DEVICE).backbone, ids.to(DEVICE), mask.to(DEVICE), 5)
    assert [row.tolist() if torch.is_tensor(row) else row for row in found] == \
        [row.tolist() if torch.is_tensor(row) else row for row in expected]
    assert not watch.faults


@pytest.mark.parametrize("name, scene, most", [
    ("bert", "head", 3), ("llama", "head", 3), ("t5", "head", 3), ("bert", "multi-label", 4),
    ("deberta-v3", "head", 5), ("gpt2", "labels", 12), ("gpt2", "completion", 10)])
def test_a_training_step_waits_a_few_times_at_most(name, scene, most, folders):  # noqa: F811
    """One copy of the batch to the device, one number read for the loss, one for the gradient.
    DeBERTa moves its offsets twice; label texts lay out their rows anew, but none waits for each
    row, class or layer: six rows and three classes are here."""
    s = settings_of(scene)
    model, rows = classifier(folders[name], s)
    with Watch() as watch:
        objective = CompletionLoss(model.head.answer_lengths()) if scene == "completion" \
            else model.task.build_objective(s, rows.targets)
        parameters = [p for p in model.to(DEVICE).parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        for _ in range(2):                                   # the first may fill what is kept
            watch.waits.clear()
            take_step(model.train(), optimizer, rows, list(range(len(ROWS))), s, objective)
    assert sum(watch.waits.values()) <= most, watch.waits


def test_a_planted_fault_is_caught(folders, monkeypatch):                       # noqa: F811
    model, rows = classifier(folders["bert"], settings_of("head"))
    monkeypatch.setattr(Classifier, "collate", lambda self, *given: StaysOnTheCpu(
        self.task.collate(*given[:2], self.tokenizer.pad_id, *given[2:])))
    with Watch(), pytest.raises(RuntimeError, match="same device"):
        play(model.to(DEVICE), rows, settings_of("head"))


class StaysOnTheCpu:
    """A batch that forgets to move its mask."""

    def __init__(self, batch):
        self.batch = batch

    def to(self, place):
        moved = self.batch.to(place)
        moved.mask, moved.layout = self.batch.mask, None
        return moved


# ------------------------------------------------------------------------------------ the commands

@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, folders):                                      # noqa: F811
    folder = tmp_path_factory.mktemp("run")
    Classifier.from_backbone(folders["bert"], LABELS, seed=1).save(folder)
    with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    return folder


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_saved_model_answers_on_the_device_it_is_given(command, run_folder, call, monkeypatch):
    main = importlib.import_module(module_of(command))
    given = ["--model", run_folder, "--data", run_folder / "rows.csv"]
    plain = call(main, *given)
    seen, forward = [], Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, batch, *more: (
        seen.append(batch.ids.device.type), forward(self, batch, *more))[1])
    with Watch() as watch:
        code, out, error = call(main, *given, "--device", "pretend:0")
    assert code == 0 and not watch.faults and set(seen) == {"pretend"}
    assert out.split()[:5] == plain[1].split()[:5] and "on pretend:0" in error


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory, folders):                                      # noqa: F811
    """A saved classifier of each kind -> {kind: its folder}."""
    saved = {}
    for kind in ("full", "lora", "qlora", "houlsby"):
        saved[kind] = tmp_path_factory.mktemp(kind)
        classifier(folders["bert"], settings_of(kind) if kind in SCENES else Settings(
            method=kind, max_length=32))[0].save(saved[kind])
    return saved | {"adapter": saved["lora"] / "adapter"}


def most_alive(read, patch):
    """Call read(), which reads weights -> how many of them lay on the CPU at once."""
    alive, most, tensor_of = weakref.WeakSet(), [], Checkpoint.tensor

    def tensor(self, name):
        found = tensor_of(self, name)
        alive.add(found.untyped_storage())
        most.append(len(alive))
        return found
    with patch.context() as patch, Watch():
        patch.setattr(Checkpoint, "tensor", tensor)
        read()
    return max(most)


@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "houlsby", "adapter"])
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_saved_model_is_read_onto_the_device_a_tensor_at_a_time(command, kind, saved_runs,
                                                                 run_folder, call, monkeypatch):
    """While a tensor is read, at most the one before it still lies on the CPU."""
    main = importlib.import_module(module_of(command))
    given = ["--model", saved_runs[kind], "--data", run_folder / "rows.csv"]

    def answer():
        assert call(main, *given, "--device", "pretend:0")[0] == 0
    assert most_alive(answer, monkeypatch) <= 2
    load = Classifier.load
    monkeypatch.setattr(Classifier, "load", lambda path, base, device: load(path, base).to(device))
    assert most_alive(answer, monkeypatch) > 10, "read whole and then moved, all lie there"


def test_a_device_that_is_not_there_is_one_line(run_folder, call):
    from minillmclf.predict import __main__ as predict
    code, _, error = call(predict, "--model", run_folder, "--device", "cuda:7", "a rose")
    assert code == 2 and error.startswith("error: --device cuda:7") and error.count("\n") == 1
    assert "take cpu" in error, "the remedy is not named"


# ---------------------------------------------------------------------------------------- bf16

@pytest.mark.parametrize("name", CONFIGS)
def test_in_bf16_answers_stay_near_and_leave_in_fp32(name, folders):            # noqa: F811
    from minillmclf.models.half import convert_to_bf16
    model = Classifier.from_backbone(folders[name], LABELS, seed=0).eval()
    encoded = model.encode([text for text, _ in ROWS])[0]
    before = model.compute_logits(encoded)
    convert_to_bf16(model.backbone)
    after = model.compute_logits(encoded)
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.head.parameters())
    assert after.dtype == torch.float32 and not torch.equal(after, before)
    assert (after - before).norm() < 0.15 * before.norm()


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("scene", ["lora", "qlora", "prefix", "prompt", "windows", "houlsby"])
def test_in_bf16_what_a_method_adds_answers_too(name, scene, folders):          # noqa: F811
    from minillmclf.models.half import convert_to_bf16
    s = Settings(method="houlsby", few_rows="off") if scene == "houlsby" else settings_of(scene)
    model, _ = classifier(folders[name], s)
    encoded = model.eval().encode([text for text, _ in ROWS])[0]
    before = model.compute_logits(encoded)
    convert_to_bf16(model.backbone)
    after = model.compute_logits(encoded)
    assert after.dtype == torch.float32 and 0 < (after - before).norm() < 0.15 * before.norm()


def test_auto_takes_bf16_only_where_it_is_fast_and_agrees(run_folder, monkeypatch, capsys):
    texts = [text for text, _ in ROWS]
    for fast, limit, expected in ((True, 1.0, "bf16"), (False, 1.0, "fp32"), (True, -1.0, "fp32")):
        monkeypatch.setattr(device, "is_bf16_fast", lambda place: fast)
        monkeypatch.setattr(device, "LARGEST_CHANGE", limit)
        model = Classifier.load(run_folder)
        plain = model.predict(texts)
        assert device.set_precision(model, "auto", texts) == expected
        assert f"in {expected}" in capsys.readouterr().err
        found = next(model.backbone.parameters()).dtype
        assert found == (torch.bfloat16 if expected == "bf16" else torch.float32)
        assert (model.predict(texts) == plain).all() == (expected == "fp32")


def test_attention_in_bf16_is_that_of_fp32_on_a_cpu():
    from minillmclf.models.layers import dot_product_attention
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, generator=draw).bfloat16() for _ in range(3))
    bias = torch.randn(2, 1, 5, 5, generator=draw).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = dot_product_attention(q, k, v, attn_mask=bias)
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), attn_mask=bias.float())
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("kind", ["nothing", "mask", "bias", "causal", "grouped", "scale"])
def test_attention_with_dropout_in_bf16_is_near_that_of_fp32(kind, monkeypatch):
    from minillmclf.models import half_attention
    draw = torch.Generator().manual_seed(0)
    heads = 1 if kind == "grouped" else 3
    q, k, v, out = (torch.randn(2, h, 5, 8, generator=draw).bfloat16()
                    for h in (3, heads, heads, 3))
    q = q.float()                                                  # as rotated under autocast
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    options = {"nothing": {}, "mask": {"attn_mask": mask}, "causal": {"is_causal": True},
               "bias": {"attn_mask": torch.randn(2, 1, 5, 5, generator=draw)},
               "grouped": {"enable_gqa": True}, "scale": {"scale": 1.0}}[kind]
    asked = []
    monkeypatch.setattr(half_attention, "dropout", lambda x, p: (asked.append(p), x)[1])

    def both(attend, *tensors, **more):
        tensors = [x.detach().requires_grad_() for x in tensors]
        found = attend(*tensors, **options, **more)
        found.backward(out.to(found.dtype))
        return [found, *(x.grad for x in tensors)]
    found = both(half_attention.dot_product_attention, q, k, v, dropout_p=0.1)
    exact = both(torch.nn.functional.scaled_dot_product_attention, *(x.float() for x in (q, k, v)))
    assert asked == [0.1] and found[0].dtype == torch.bfloat16
    for mine, theirs in zip(found, exact):                         # a few roundings to 8 bits
        assert (mine.float() - theirs).abs().max() < 2**-5 * theirs.abs().max()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999999])
def test_fast_dropout_drops_as_often_and_scales_as_torch(p):
    from minillmclf.models.half_attention import dropout
    torch.manual_seed(0)
    x = torch.ones(7, 111, 13, requires_grad=True)                 # no multiple of four
    found = dropout(x, p)
    found.sum().backward()
    kept, numbers = found != 0, x.numel()
    assert torch.equal(x.grad, found) and torch.equal(found[kept], torch.full_like(
        found[kept], 1 / (1 - p)))
    for part in range(4):                                          # of each draw of 64 bits
        share = kept.flatten()[part::4].float().mean().item()
        assert abs(share - (1 - p)) <= 5 * (p * (1 - p) / (numbers / 4)) ** 0.5 + 2**-16, part
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), found) and (p > 0.9 or not torch.equal(dropout(x, p), found))


def test_under_autocast_no_family_takes_torchs_slow_attention(folders, monkeypatch):  # noqa: F811
    whole, seen = torch.nn.functional.scaled_dot_product_attention, {}
    for name in CONFIGS:
        def attend(q, k, v, *more, name=name, **options):
            in_bf16 = torch.is_autocast_enabled("cpu") or torch.bfloat16 in (q.dtype, v.dtype)
            seen.setdefault(name, set()).add(in_bf16)
            return whole(q, k, v, *more, **options)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        model = Classifier.from_backbone(folders[name], LABELS, seed=0).eval()
        encoded = model.encode([text for text, _ in ROWS])[0]
        with torch.autocast("cpu", torch.bfloat16):
            model.compute_logits(encoded)
    assert {"bert", "llama"} <= seen.keys() and not any(True in found for found in seen.values()), \
        f"in bf16: {seen}"


def test_an_unknown_device_is_an_input_error():
    with pytest.raises(InputError, match="--device nowhere"):
        device.move(torch.nn.Linear(1, 1), "nowhere")


def test_a_model_on_the_device_that_is_put_into_bf16_holds_bf16():
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3, dtype=torch.bfloat16)
    expected = torch.nn.functional.linear(x, *(p.to(torch.bfloat16) for p in layer.parameters()))
    with Watch():
        layer.to(DEVICE).to(torch.bfloat16)
        assert all(p.held.dtype == p.dtype == torch.bfloat16 for p in layer.parameters())
        assert torch.equal(layer(x.to(DEVICE)).cpu(), expected)


# --------------------------------------------------------------------------------- no more memory

@pytest.mark.parametrize("error, flags, remedy", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), {},
     "--micro-batch-size 2"),
    (torch.OutOfMemoryError("CUDA out of memory."), {"objective": "contrastive", "pool": "mean"},
     "--gradient-checkpointing"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
     {"micro_batch_size": 1}, "--gradient-checkpointing"),
    (MemoryError(), {"micro_batch_size": 1, "gradient_checkpointing": "on"}, "--method lora"),
    (MemoryError(), {"micro_batch_size": 1, "gradient_checkpointing": "on", "method": "bitfit"},
     "--max-length")])
def test_too_little_memory_names_the_switch_and_keeps_what_was_saved(
        error, flags, remedy, folders, tmp_path, call, monkeypatch):            # noqa: F811
    from minillmclf import train
    from minillmclf.training import loop
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        rows = texts_of(random.Random(5), 40)
        csv.writer(file).writerows([("text", "label"), *rows])
    given = {"model": folders["bert"], "data": tmp_path / "rows.csv", "out": tmp_path / "run",
             "epochs": 1, "batch_size": 8, "save_every": 1, "few_rows": "off", "baselines": "off",
             **flags}
    given = [part for name, value in given.items()
             for part in ("--" + name.replace("_", "-"), value)]
    plain, taken = loop.take_step, []

    def third_fails(*arguments, **more):
        taken.append(1)
        if len(taken) == 3:
            raise error
        return plain(*arguments, **more)
    monkeypatch.setattr(loop, "take_step", third_fails)
    code, _, said = call(train, *given)
    assert code == 2 and remedy in said and "rows of up to" in said
    assert said.rstrip().count("\n") <= 3 and "Traceback" not in said
    if "batch-size" in remedy:                       # the switch that the line names lets it go on
        given += remedy.split()
    code, _, _ = call(train, *given)
    steps = 25 if "objective" in flags else 5                    # contrastive: LEAST_STEPS
    assert code == 0 and len(taken) == 3 + steps - 2, "it takes the steps after the second"


def test_too_little_memory_for_answers_names_rows_at_a_time_and_the_run_goes_on(
        folders, tmp_path, call, monkeypatch):                                  # noqa: F811
    from minillmclf import train
    from minillmclf.predict import __main__ as predict
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *texts_of(random.Random(5), 120)])
    given = ["--model", folders["bert"], "--data", tmp_path / "rows.csv", "--out", tmp_path / "run",
             "--epochs", 1, "--few-rows", "off", "--baselines", "off", "--save-every", 1]
    whole = Classifier.forward

    def fails_for_many(model, batch, *more):
        if not torch.is_grad_enabled() and len(batch.rows) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(model, batch, *more)
    monkeypatch.setattr(Classifier, "forward", fails_for_many)
    code, _, said = call(train, *given)
    found = re.search(r"not enough memory to answer (\d+) rows of up to \d+ tokens at a time: set "
                      r"--eval-batch-size (\d+) ", said)
    assert code == 2 and found and "Traceback" not in said and "diverged" not in said, said
    assert int(found[1]) // 4 == int(found[2])
    code, _, said = call(train, *given, "--eval-batch-size", 4)
    assert code == 0, said
    asked = ["--model", tmp_path / "run", "--data", tmp_path / "rows.csv"]
    code, _, said = call(predict, *asked)
    assert code == 2 and "64 rows of up to" in said and "predict, evaluate and merge: " in said
    assert "--batch-size 16)" in said and call(predict, *asked, "--batch-size", 4)[0] == 0


def test_too_little_memory_for_one_row_or_for_a_file_is_told(folders, tmp_path,   # noqa: F811
                                                             monkeypatch):
    model = Classifier.from_backbone(folders["bert"], LABELS)

    def fails(*given, **more):
        raise RuntimeError("unable to mmap 17 bytes from file <x>: Cannot allocate memory (12)")
    monkeypatch.setattr(model, "collate", fails)
    with pytest.raises(NoMemory, match="1 rows of up to .* tokens at a time: cut the texts"):
        model.predict(["the old rose"])
    monkeypatch.setattr(tensor_files, "safe_open", fails)
    with pytest.raises(NoMemory) as told:
        Classifier.from_backbone(folders["bert"], LABELS)
    line = limit_message(told.value)
    assert "not enough memory to open its" in line and "model.safetensors" in line
    monkeypatch.setattr(tensor_files, "safe_open", lambda *_, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Classifier.from_backbone(folders["bert"], LABELS)


def test_too_little_memory_of_one_of_two_processes_counts_its_own_rows(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    train = SimpleNamespace(encoded=["a", "ab", "abcd", "abc", "a", "ab", "a", "a"])

    def fails(*given):
        raise MemoryError
    for micro, rows, words in ((0, 4, "--micro-batch-size 1,"), (8, 4, "--micro-batch-size 1,"),
                               (2, 2, "--micro-batch-size 1,")):
        with pytest.raises(InputError, match=f"for {rows} rows of up to 4 tokens .*{words}"):
            memory.name_memory_switch(fails)(SimpleNamespace(row_size=len), None, train,
                                             list(range(8)), Settings(micro_batch_size=micro))
