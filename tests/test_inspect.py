"""Does `python -m minillmclf.inspect` account for every tensor, with the model's numbers?"""

import json
import re
import shutil
import sys

import pytest
import torch
from conftest import MODELS
from safetensors.torch import load_file, save_file
from small import bert_folder

from minillmclf.inspect import __main__ as inspect, page
from minillmclf.cli import device, fits, memory
from minillmclf.cli.memory_limit import group_limits
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import build_head
from minillmclf.classify.head import Head
from minillmclf.errors import InputError
from minillmclf.models import load_backbone
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import Batch
from minillmclf.training.recompute import recompute_blocks
from minillmclf.cli.build import tuning_config
from minillmclf.tuning import tune
from minillmclf.tuning.prompt import new_word_ids

STORED = sorted(path.name for path in MODELS.iterdir() if path.is_dir())


def report(capsys, *arguments):
    """What the command prints."""
    assert inspect.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


@pytest.fixture
def without_memory(monkeypatch):
    """No memory in the report: to measure it takes seconds, and it has its own tests."""
    for lines in ("memory_lines", "switch_lines"):
        monkeypatch.setattr(page, lines, lambda *_: [])


@pytest.mark.parametrize("name", STORED)
def test_every_tensor_of_the_file_is_in_the_report(name, capsys, without_memory):
    tensors = load_file(MODELS / name / "model.safetensors")
    out = report(capsys, MODELS / name, "--layers")
    for tensor, value in tensors.items():
        line = next((line for line in out.splitlines() if line.split()[:1] == [tensor]), None)
        assert line, f"{name}: {tensor} is left out"
        assert " x ".join(map(str, value.shape)) in line, line
        assert re.search("-> |equal to |dropped on purpose", line), line
    counts = re.search(
        r"(\d+) tensors in 1 file\(s\): (\d+) loaded, (\d+) tied, (\d+) dropped on purpose", out)
    total, *kinds = map(int, counts.groups())
    assert total == len(tensors) == sum(kinds), f"{name}: {counts.group()}"
    short = report(capsys, MODELS / name)
    times = sum(int((re.search(r" x (\d+)\s+(->|equal|dropped)", line) or [0, 1])[1])
                for line in short.splitlines() if re.search(r" [FB]F?(16|32) ", line))
    assert times == total, f"{name}: one line for all layers stands for {times} tensors of {total}"


@pytest.mark.parametrize("name", ["bert_classifier", "roberta_classifier", "mini-bert"])
def test_what_train_drops_and_adds_has_its_names(name, capsys, without_memory):
    name = MODELS / name if (MODELS / name).exists() else name
    built = Classifier.from_backbone(name, ["no", "yes"]).report
    line = re.search("^train, with a new head: dropped (.*); new (.*)$", report(capsys, name), re.M)
    assert line and line[2].split(", ") == built.newly_initialised
    dropped = {re.sub(r"\.\d+\.", ".{}.", path) for path in built.dropped}
    assert dropped == set(line[1].split(", "))


@pytest.mark.parametrize("name", STORED)
def test_parts_and_memory_are_those_of_the_model(name, capsys, monkeypatch):
    """One of the T5s is measured with the lengths of a report, others with short ones: they change
    no number here."""
    if name != "t5_lm":
        for length in ("METHOD_LENGTH", "SWITCH_LENGTH"):
            monkeypatch.setattr(page, length, 16)
    out = report(capsys, MODELS / name)
    total = int(re.search(r"^([\d,]+) parameters$", out, re.M).group(1).replace(",", ""))
    parts = [int(number.replace(",", ""))
             for number in re.findall(r"^ {2,}([\d,]+)  [a-z_.]+$", out, re.M)]
    assert sum(parts) == total, f"{name}: the parts add up to {sum(parts)}, not to {total}"
    methods = {m: (int(n.replace(",", "")), held, more) for m, n, held, more in re.findall(
        r"--method (\S+) +([\d,]+) +([\d.]+ .?B) +([\d.]+ .?B)", out)}
    told = {line.split()[1] for line in out.splitlines() if line.startswith("    --method")}
    assert told == set(memory.MEASURED_METHODS) and methods.keys() >= told - {"bitfit"}, (
        f"{name}: {told - methods.keys()}")
    model = load_backbone(MODELS / name)
    head = build_head(model.source_config["model_type"], model, len(model.source_config["id2label"])
                      if "classes:" in out else 2)
    # a classification head takes the place of a language-model head
    if "head.out" in head.NAMES.values():
        model.lm_head = None
    whole = sum(p.numel() for part in (model, head) for p in part.parameters())
    assert methods["full"][0] == whole, f"{name}: full training teaches every parameter"
    assert methods["full"][1] == memory.size_text(12 * whole), (
        "weights and two moments of AdamW, 4 bytes each")
    assert methods["head"][1] == memory.size_text(
        4 * whole + 8 * sum(p.numel() for p in head.parameters()))
    assert methods["head"][0] < methods["lora"][0] < methods["full"][0]


def test_trying_every_method_leaves_the_model_as_it_was():
    model = load_backbone(MODELS / "llama_lm")
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    head = build_head("llama", model, 2)
    for method in memory.MEASURED_METHODS:
        if method != "bitfit":
            memory.training_memory(model, head, method, 8)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys(), "something is still wrapped"
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())


def test_four_bits_are_counted_as_such():
    """LoRA and QLoRA differ by the linear layers: 4 bytes against 4.127 bits a number."""
    model = load_backbone(MODELS / "bert_masked_lm")
    head = build_head("bert", model, 2)
    lora, qlora = (memory.training_memory(model, head, method, 8)[1]
                   for method in ("lora", "qlora"))
    linear = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert abs((lora - qlora) - linear * (4 - 4.127 / 8)) < 0.001 * (lora - qlora)


def test_what_is_kept_for_the_backward_pass_is_counted():
    """One linear layer and a tanh by hand: the layer's input, and the tanh's output."""
    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(8, 16)

        def states(self, ids, mask, types=None, layout=None):
            return torch.tanh(self.up(torch.ones(*ids.shape, 8)))

    class Sum(Head):
        def forward(self, hidden, mask):
            return hidden.sum()
    def kept(body, head, length):
        return memory.saved_activation_bytes(torch.nn.ModuleDict({"backbone": body, "head": head}),
                                             length)
    found = kept(Body(), Sum(), 10)
    assert found == 4 * 10 * (8 + 16), f"{found} bytes for 10 tokens"
    body = load_backbone(MODELS / "bert_classifier").train()
    head = build_head("bert", body, 2)
    one, two = (kept(body, head, length) for length in (10, 20))
    assert 1.5 < two / one < 2.5, "twice the tokens keep about twice the memory"


def test_renamed_transposed_tied_and_dropped_are_said(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "gpt2_lm", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    out = report(capsys, folder)
    for line in (r"transformer.h.{}.attn.c_attn.weight .* -> layers.{}.qkv_proj.weight, transposed",
                 r"lm_head.weight .* equal to word_embeddings.weight, tied",
                 r"transformer.h.{}.attn.bias .* dropped on purpose",
                 "the word embeddings as language-model head", "tokenizer: none that is read here"):
        assert re.search(line, out), f"{line!r} is not in {out}"


def test_a_classifier_and_its_tokenizer(capsys):
    out = report(capsys, MODELS / "roberta_classifier")
    for line in ("classes: praise, question, complaint",
                 "classifier.dense.weight .* -> head.dense.weight",
                 "tokenizer: ids 0 to 273, as many as the embedding has rows", "head.out"):
        assert re.search(line, out), f"{line!r} is not in {out}"


@pytest.mark.parametrize("rows, said", [
    (-3, "ERROR: the embedding has only"), (5, "5 rows of the embedding are never used")])
def test_a_tokenizer_that_does_not_fit_is_said(rows, said, tmp_path, capsys):
    folder = bert_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    longest = torch.cat([tensors[name], torch.zeros(5, 32)])
    tensors[name] = longest[:len(tensors[name]) + rows].contiguous()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": len(tensors[name])}
    (folder / "config.json").write_text(json.dumps(config))
    assert said in report(capsys, folder)


def test_a_folder_with_an_adapter_names_its_base_and_four_bits_are_accounted_for(tmp_path, capsys):
    base = bert_folder(tmp_path / "base")
    model = Classifier.from_backbone(base, ["a", "b"])
    tune(model, tuning_config(Settings(method="lora")))
    model.save(tmp_path / "run")
    with pytest.raises(InputError,
                       match=f"holds an adapter, its model is {base}: inspect that, or what"):
        inspect.main([str(tmp_path / "run")])
    Classifier.from_backbone(base, ["a", "b"], quantise="nf4").save(tmp_path / "small")
    out = report(capsys, tmp_path / "small")
    assert (re.search(r"query.weight.absmax .* x 2 +part of a 4-bit weight", out)
            and "dropped on purpose; 0 parameters" in out), out
    assert re.search(r"query.weight +\d+ x 1 U8 +x 2 +-> backbone.layers.{}.q_proj.weight",
                     out), out
    plain, learn = report(capsys, base), r"--method (lora|dora|qlora|houlsby|prompt) +([\d,]+) "
    assert len(re.findall(learn, out)) == 5 and re.findall(learn, out) == re.findall(learn, plain)
    Classifier.from_backbone(base, ["a", "b"]).save(tmp_path / "plain")
    plain = report(capsys, tmp_path / "plain")
    count = r"\n([\d,]+) parameters(?:, ([\d,]+) of them in four bits)?\n"
    assert re.search(count, out)[1] == re.search(count, plain)[1]
    assert re.search(count, out)[2] and not re.search(count, plain)[2]
    needed = r"--method qlora +[\d,]+ +([\d.]+ [kM]?B)"
    assert re.search(needed, out)[1] == re.search(needed, plain)[1], "counted once, in four bits"
    assert "--method full               matrices in four bits cannot learn" in out
    assert "a step of --method qlora" in out and "a step of --method full" in plain


def test_mistakes_are_one_line(tmp_path, call):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for arguments, fault in ((["nowhere"], "nowhere: no such model folder"),
                             ([tmp_path], "neither model.safetensors nor"),
                             ([], "required: model")):
        code, out, error = call(inspect, *arguments)
        assert code == 2 and not out and fault in error and error.count("\n") == 1, error


def test_sizes_are_for_people():
    assert ([memory.size_text(n) for n in (0, 999, 1000, 12_345, 999_499, 999_500, 4_400_000_000)]
            == ["0.00 B", "999 B", "1.00 kB", "12.3 kB", "999 kB", "1.00 MB", "4.40 GB"])


def peak_of_tensors(model, rows, length, pieces=1, precision="fp32"):
    """The most bytes that tensors take at a time in two training steps, those of the model
    included, by torch's profiler.

    pieces: of `rows` rows each, whose gradients are added up.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4,
                                  fused=True)
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.tensor(new_word_ids(model), dtype=torch.long).expand(rows, -1), ids], 1)
    batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), None, list(range(rows)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as profile:
        for _ in range(2):
            for _ in range(pieces):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    loss = model.train()(batch).logsumexp(1).sum()
                loss.backward()
                del loss  # or what it kept would stay during the next piece
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*model.parameters(), *model.buffers()]}
    now = most = sum(held.values())
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def estimate_and_peak(folder, kind, method, rows, length, dtype="fp32"):
    """What `inspect` says that a step takes, and the most that its tensors take."""
    body = load_backbone(folder).train()
    trained, held, text = memory.training_memory(body, build_head(kind, body, 2), method, length,
                                                 dtype)
    model = Classifier.from_backbone(folder, ["a", "b"],
                                     quantise="nf4" if method == "qlora" else None,
                                     dtype=dtype, method=method)
    tune(model, tuning_config(Settings(method=method)))
    return memory.step_bytes(held, trained, rows * text), peak_of_tensors(model, rows, length)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("large"), layers=6, width=256, mlp=1024,
                       positions=160, dropout=0.0)


@pytest.mark.parametrize("method, dtype", [
    *((method, "fp32") for method in ("full", "last-1", "lora", "qlora", "houlsby", "prefix")),
    ("last-1", "bf16"), ("lora", "bf16")])
def test_what_training_takes_is_estimated_within_15_percent(method, dtype, large):
    said, most = estimate_and_peak(large, "bert", method, 8, 128, dtype)
    assert abs(said - most) <= 0.15 * most, \
        f"{method}: estimated {said / 2**20:.1f} MB, tensors take {most / 2**20:.1f} MB"


@pytest.mark.parametrize("rows, length", [(8, 96), (32, 24)])
@pytest.mark.parametrize("name, kind, method", [
    ("mini-bert", "bert", "full"), ("mini-bert", "bert", "head"), ("mini-bert", "bert", "dora"),
    ("mini-llama", "llama", "full"), ("mini-llama", "llama", "last-1"),
    ("mini-llama", "llama", "prompt"),
    ("mini-t5", "t5", "full"), ("mini-t5", "t5", "lora"), ("mini-t5", "t5", "prefix")])
def test_of_every_kind_of_model_and_shape_too(name, kind, method, rows, length):
    """mini-bert comes with a masked-LM head, which a classifier drops: it takes nothing."""
    said, most = estimate_and_peak(name, kind, method, rows, length)
    assert abs(said - most) <= 0.15 * most, \
        f"{name}, {method}: estimated {said / 2**20:.1f} MB, tensors take {most / 2**20:.1f} MB"


V2 = ("0::{}\n", "", "memory.max", "memory.current", "inactive_file")
V1 = ("9:name=systemd:/\n4:memory:{}\n3:cpuset:/\n", "memory", "memory.limit_in_bytes",
      "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize("listed, top, limit, use, cache", [V1, V2])
def test_the_limits_of_a_container_are_the_memory_there_is(listed, top, limit, use, cache, tmp_path,
                                                           monkeypatch):
    """A job of 3,000 bytes in a group of 5,000, in one without a limit."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(listed.format("/slurm/job"))
    folder = tmp_path / "sys/fs/cgroup" / top
    groups = (("", "max", 9000), ("slurm", "5000", 4900), ("slurm/job", "3000", 900))
    for name, most, used in groups:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / limit).write_text(f"{most}\n")
        (place / use).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 7\n{cache} 400\n")
    assert group_limits(tmp_path) == [(3000, 2500), (5000, 500)]
    assert group_limits(tmp_path / "nowhere") == []
    monkeypatch.setattr(device, "group_limits", lambda: group_limits(tmp_path))
    if sys.platform == "linux":
        assert device.memory_of(torch.device("cpu")) == {"total": 3000, "free": 500}


@pytest.mark.parametrize("free, expected", [
    (2000, "a step fits"), (1000, "does not fit, with --b it does"),
    (300, "with --c it does"), (100, "with none of these switches"), (None, "is not known here")])
def test_whether_a_step_fits_is_said_with_the_first_switch_that_helps(free, expected, monkeypatch):
    monkeypatch.setattr(fits, "memory_of", lambda device: {"free": free})
    table = [("as it is", None, 1600), ("--a", None, 1000), ("--b", None, 800), ("--c", None, 200)]
    assert expected in fits.fit_line(table, torch.device("cpu"))


@pytest.mark.parametrize("given, share, expected", [
    ({}, 1.01, None), ({}, 0.5, "; --method lora may fit"),
    ({}, 0.25, "; --method lora --dtype bf16 may fit"), ({}, 0.001, ": take a smaller model"),
    (dict(method="lora"), 1.01, None), (dict(method="lora"), 0.9, "; --dtype bf16 may fit"),
    (dict(method="lora"), 0.36, "; --method qlora")])
def test_train_says_before_it_loads_that_a_model_will_not_fit(given, share, expected, tmp_path,
                                                              monkeypatch):
    folder = bert_folder(tmp_path, layers=4, width=64, mlp=256)
    s = Settings(model=str(folder), **given)
    needed = fits.least_bytes(s, ["a", "b"], ("text",))
    model = Classifier.from_backbone(folder, ["a", "b"])
    trained, total = tune(model, tuning_config(s))
    assert needed == 4 * total + 12 * trained
    monkeypatch.setattr(fits, "memory_of", lambda device: {"free": int(share * needed)})
    # no weights are read
    monkeypatch.setattr(Classifier, "from_backbone", lambda *given, **more: 1 / 0)
    lines = fits.too_large_line(s, ["a", "b"])
    assert [expected in line for line in lines] == [True] * (expected is not None), lines


def test_gradients_count_where_they_are_more_than_the_texts():
    assert memory.step_bytes(100, 10, 30) == 140 and memory.step_bytes(100, 10, 50) == 150
    assert memory.step_bytes(100, 10, 30, accumulating=True) == 170, (
        "a second micro-batch finds gradients there")


BODY = dict(layers=4, width=64, mlp=256, positions=128, dropout=0.1)


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt"])
def test_every_switch_takes_less_than_the_step_as_it_is(method, tmp_path):
    body = load_backbone(bert_folder(tmp_path, **BODY))
    head = build_head("bert", body, 2)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    (flags, step, whole), *others = memory.switch_table(body, head, method, 16, 128)
    assert flags == "as it is" and step.rows == 16
    assert len(others) == {"full": 7, "prompt": 7}.get(method, 8)
    for flags, _, needed in others:
        assert needed < whole, (
            f"{method} {flags}: {memory.size_text(needed)}, as it is {memory.size_text(whole)}")
    assert min(others, key=lambda other: other[2]) == others[-1], "all together take least"
    after = body.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not body.training and not any("forward" in vars(block) for block in body.layers)


def test_what_checkpointing_keeps_is_what_autograd_saves(tmp_path):
    """Run as --gradient-checkpointing runs it: what all blocks keep, and what one block more keeps
    once it is computed again."""
    rows, length = 4, 128
    folder = bert_folder(tmp_path, **BODY)
    body = load_backbone(folder)
    head = build_head("bert", body, 2)
    with memory.tuned_classifier(body, head, "full", length) as (model, _, _):
        said = memory.step_activation_bytes(model, memory.Step(rows, length, checkpointing=True))
        plain = memory.saved_activation_bytes(model, length, rows)
        assert memory.step_activation_bytes(model, memory.Step(rows, length)) == plain, (
            "one text and two tell what four keep")
        recompute_blocks(model)
        inputs = memory.saved_activation_bytes(model, length, rows)
    block, hidden = said - inputs, 4 * rows * length * BODY["width"]
    assert inputs >= BODY["layers"] * hidden, "the input of each block, at least, is kept"
    assert inputs < said < plain and 0.9 * plain < inputs + BODY["layers"] * block < 1.4 * plain, \
        f"{said} bytes: {inputs} for all inputs, {block} for a block, and {plain} as it is"
    again = Classifier.from_backbone(folder, ["a", "b"])
    tune(again, tuning_config(Settings()))
    recompute_blocks(again)
    held = 16 * sum(p.numel() for p in again.parameters())
    most = peak_of_tensors(again, rows, length)
    assert abs(held + said - most) <= 0.15 * most, (
        f"estimated {memory.size_text(held + said)}, tensors take {memory.size_text(most)}")


@pytest.mark.parametrize("step, pieces", [
    (memory.Step(8, 128), 1), (memory.Step(2, 128), 4), (memory.Step(8, 64), 1),
    (memory.Step(8, 128, precision="bf16"), 1)])
def test_what_a_switch_leaves_is_estimated_within_20_percent(step, pieces, tmp_path):
    """With dropout more passes by in the backward pass; that is not in the estimate."""
    folder = bert_folder(tmp_path, **BODY)
    body = load_backbone(folder)
    head = build_head("bert", body, 2)
    with memory.tuned_classifier(body, head, "full", 128) as (model, trained, total):
        said = (memory.state_bytes(body, "full", trained, total)
                + memory.step_activation_bytes(model, step))
    again = Classifier.from_backbone(folder, ["a", "b"])
    tune(again, tuning_config(Settings()))
    most = peak_of_tensors(again, step.rows, step.length, pieces, step.precision)
    assert abs(said - most) <= 0.2 * most, (
        f"{step}: estimated {memory.size_text(said)}, tensors take {memory.size_text(most)}")


def test_the_switches_are_printed_with_what_they_save(capsys):
    out = report(capsys, MODELS / "bert_masked_lm", "--method", "lora", "--batch-size", "8",
                 "--max-length", "16")
    assert "a step of --method lora --batch-size 8, all texts of 16 tokens, and its switches" in out
    for flags in ("--micro-batch-size 1", "--batch-tokens 32", "--gradient-checkpointing",
                  "--precision bf16", "--max-length 8",
                  "--max-length 8 --windows mean --max-windows 2",
                  "--micro-batch-size 1 --gradient-checkpointing --precision bf16 --max-length 8"):
        assert re.search(rf"^    {flags} +[\d.]+ .?B +-?[\d.]+ .?B$", out, re.M), (
            f"{flags} is not in {out}")
    with pytest.raises(InputError, match="--max-length 10000: this model takes"):
        inspect.main([str(MODELS / "bert_masked_lm"), "--max-length", "10000"])
