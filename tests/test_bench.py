"""Does the benchmark compare the same work, count what it says, and call a bad run a bad run? Its
seconds are not looked at here."""
import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import small
import torch
from conftest import refused
from live import imported, may_refuse
from safetensors import safe_open
from safetensors.torch import save_file

import minillmclf
from minillmclf.cli.parser import run
from tests.bench import __main__ as bench
from tests.bench import alone, cases, half, sides, tables, timing

PACKAGE = Path(minillmclf.__file__).parent
FOREIGN = {"transformers", "peft", "tokenizers", "accelerate"}


@pytest.fixture(autouse=True, scope="module")
def little():
    """A small vocabulary, and a small product: nothing here is timed."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in ((cases, "VOCABULARY", 1100), (alone, "VOCABULARY", 1100),
                                    (timing, "SQUARE", 32), (tables, "SQUARE", 32)):
            patch.setattr(module, name, value)
        yield


# ------------------------------------------------------------------------------ who may import what

def test_the_package_imports_nothing_that_we_compare_with():
    """The package must work, and be read, without transformers and PEFT."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        where = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not FOREIGN & {name.partition(".")[0] for name in names}, (
                f"{where}: imports {names}")
        callers = {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)
                   for node in ast.walk(f) if isinstance(node, ast.Call)
                   and getattr(node.func, "attr", getattr(node.func, "id", ""))
                   in ("import_module", "__import__")}
        allowed = {"__init__.py": {"__getattr__"}}.get(where, set())
        assert callers <= allowed, f"{where}: {callers - allowed} import modules by name"


def test_help_waits_for_nothing_and_without_the_references_there_is_one_line(monkeypatch, capsys):
    program = ("import sys; from tests.bench import __main__ as bench\n"
               "try: bench.parse(['--help'])\n"
               "except SystemExit: print(sorted({'torch', 'numpy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", program], env=small.environment(), text=True,
                          capture_output=True)
    assert done.stdout.endswith("[]\n") and "--quick" in done.stdout, (
        f"--help should not wait for imports: {done.stdout[-80:]}, {done.stderr}")

    def absent(name):
        raise ImportError(name)
    monkeypatch.setattr(bench.importlib, "import_module", absent)
    with pytest.raises(SystemExit) as end:
        run(lambda: bench.main([]))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1, error
    assert "not installed: transformers, peft" in error and "pip install -e '.[test]'" in error, (
        error)


# ------------------------------------------------------------------- statistics, on made-up seconds

def record(rounds=9, flops=1e9, amount={}, **seconds):
    """A line of the table; usually ours 1 s, T 1.4 s, D 2 s, the machine quiet, sgemm 10 GF/s."""
    usual = {"ours": 1.0, "D": 2.0, "T": 1.4, "again": 1.4,
             "sgemm": 2 * timing.SQUARE**3 / 1e10} | seconds
    made = {"row": "deberta", "name": "T = 32", "aims": [2.6, None], "sides": ["ours", "D", "T"],
            "twin": "T", "unit": "tokens", "work": "train",
            "rounds": [{"seed": number % 3, **usual} for number in range(rounds)],
            "flops": {str(seed): {"ours": flops, "D": flops, "T": flops} for seed in range(3)},
            "amount": {str(seed): {"ours": 1000, "D": 1000, "T": 1000} | amount
                       for seed in range(3)}}
    return made | {"faults": timing.faults(made)}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    made = record() | {"rounds": [{"seed": 0, "T": 1, "again": 1, "ours": ours, "D": D}
                                  for ours, D in ((1, 2), (10, 30), (4, 2))]}
    found = timing.paired(made, "D", "ours")
    assert found == {"median": 2, "low": 0.5, "high": 3}, (
        f"not the paired ratios (of the medians it would be 0.5): {found}")


def test_a_side_with_more_tokens_may_take_longer():
    assert timing.paired(record(amount={"D": 4000}), "D", "ours")["median"] == pytest.approx(0.5), (
        "2 s for four times as many tokens")
    assert timing.paired(record(amount={"T": 2000}), "again", "T")["median"] == pytest.approx(1), (
        "the twin works on what T works on")


@pytest.mark.parametrize("change, void", [
    ({}, None), ({"again": 1.4 * 1.04}, None), ({"again": 1.4 * 0.96}, None),
    ({"again": 1.4 * 1.06}, "T against itself is 1.06"),
    ({"again": 1.4 * 0.94}, "T against itself is 0.94"), ({"flops": 9.9e9}, None),
    ({"flops": 1.01e10}, "ours computes 1.01 times"), ({"flops": 0}, None)])
def test_a_line_is_void_where_the_reference_differs_from_itself_or_flops_are_beyond_sgemm(
        change, void):
    made = record(**change)
    assert bool(made["faults"]) == bool(void) and (void or "") in " ".join(made["faults"]), (
        f"{change}: {made['faults']}")
    assert ("**void**" in tables.headline(made)) == bool(void), tables.headline(made)


def test_the_shares_of_sgemm_are_those_of_the_same_round():
    made = record()
    # one round in which all was fast must not count for the others
    made["rounds"][0]["sgemm"] /= 1000
    assert timing.used(made, "ours") == pytest.approx(0.1), (
        "1e9 FLOPs in a second are a tenth of 10 GF/s")
    assert timing.used(made, "D") == pytest.approx(0.05)


def test_flops_are_those_of_products_and_attention():
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3)
    assert timing.flops_of(lambda: a @ b) == 2 * 5 * 7 * 3
    assert timing.flops_of(lambda: (a @ b).sum().backward()) == 2 * 2 * 5 * 7 * 3, (
        "forward, and the gradient of a")
    q = torch.randn(2, 3, 16, 8, requires_grad=True)
    k = torch.randn(2, 3, 16, 8, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    one = 2 * (2 * 3 * 16 * 16 * 8)
    with torch.no_grad():
        assert timing.flops_of(lambda: attention(q, k, k)) == 2 * one, (
            "scores, and their product with the values")
    assert timing.flops_of(lambda: attention(q, k, k).sum().backward()) == 7 * one, (
        "two products, and five behind them")


def test_what_is_made_ready_is_not_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def spend(seconds):
        clock[0] += seconds
    found = timing.seconds_of(lambda: spend(0.1), lambda: spend(5), least=0.25)
    assert found == pytest.approx(0.1), "three calls of 0.1 s fill 0.25 s"


# ----------------------------------------------------------------------------------------- the data

@pytest.mark.parametrize("lengths, mean, most", [("sst2", 22, 50), ("documents", 241, 512)])
def test_texts_are_as_long_as_in_real_sets_and_all_sides_get_the_same(lengths, mean, most):
    case = cases.Case("row", "name", lengths=lengths, batch=8, batches=4)
    drawn = [cases.draw(case, seed) for seed in range(12)]
    found = sum((data.lengths for data in drawn), [])
    assert abs(sum(found) / len(found) / mean - 1) < 0.08 and max(found) <= most, (
        f"{lengths}: mean {sum(found) / len(found)}, most {max(found)}")
    assert drawn[0].rows.encoded != drawn[1].rows.encoded, "another seed should give other texts"
    assert cases.draw(case, 0).rows == drawn[0].rows, "the same seed should give the same texts"

    def places(data, batches):
        return sum(len(rows) * max(data.lengths[row] for row in rows) for rows in batches)
    for data in drawn:
        assert (sorted(sum(data.bucketed, [])) == list(range(32))
                and sorted(sum(data.mixed, [])) == list(range(32, 64)))
    padding = [sum(places(data, getattr(data, order)) for data in drawn)
               / sum(data.tokens(getattr(data, order)) for data in drawn)
               for order in ("bucketed", "mixed")]
    assert padding[0] < 1.1 and padding[1] > 1.3, (
        f"buckets should hold little padding, random batches much: {padding}")


def test_a_single_batch_is_the_same_for_all():
    data = cases.draw(cases.Case("row", "name", batch=8, batches=1), 0)
    assert (sorted(sum(data.mixed, [])) == sorted(sum(data.bucketed, [])) == list(range(8))
            and data.mixed != data.bucketed)


def test_every_row_has_cases_and_quick_is_a_smaller_part():
    plan = bench.planned(bench.parse([]))
    assert [row for _, row, _ in plan if row in bench.ALONE] == list(bench.ALONE)
    of_cases = {case.row for case in cases.CASES}
    assert {row for _, row, _ in plan} == set(bench.ROWS) == of_cases | set(bench.ALONE)
    assert len({key for key, *_ in plan}) == len(plan), (
        "two lines of one name would overwrite each other")
    quick = bench.planned(bench.parse(["--quick"]))
    assert {row for _, row, _ in quick} == set(bench.QUICK)
    assert all(case.layers == 2 for *_, case in quick)


# ---------------------------------------------------------------------------------------- the sides

@pytest.fixture(scope="module")
def hf():
    for name in bench.LIBRARIES:
        imported(name)
    with may_refuse():
        return bench.references()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


def tiny(case):
    """Two layers x 32 (four bits come in blocks of 64)."""
    lengths = min(case.lengths, 24) if isinstance(case.lengths, int) else "sst2"
    return dataclasses.replace(case, layers=2, width=64 if case.method == "qlora" else 32, batch=2,
                               lengths=lengths, labels=min(case.labels, 6))


def different():
    """One case of each kind: lengths and sizes apart."""
    found = {}
    for case in cases.CASES:
        if case.row != "families" or case.work == "train":
            work = "" if case.build == "label_token" else case.work
            found.setdefault((case.build, case.model, case.method, case.targets, work,
                              case.build == "tokenizers" and case.name), case)
    return list(found.values())


@pytest.mark.parametrize("case", different(), ids=lambda case: f"{case.row}: {case.name}")
def test_all_sides_do_the_same_work_and_take_turns(case, hf, place, monkeypatch):
    calls = []

    def seconds_of(call, prepare, least):
        calls.append(call)
        prepare()
        call()
        return 1.0
    monkeypatch.setattr(timing, "seconds_of", seconds_of)
    with may_refuse():
        made = timing.measure(tiny(case), hf, place, seeds=1, rounds=2)
    half = len(calls) // 2
    assert calls[half:] == calls[:half][::-1], "the order should be reversed each round"
    assert calls[0] == calls[half - 1], (
        "the reference and its twin should stand at both ends of a round")
    names = {"sgemm", "again", "seed", *made["sides"]}
    assert (all(set(seconds) == names for seconds in made["rounds"])
            and {"ours", "D"} <= set(made["sides"])), made["rounds"]
    assert case.build == "tokenizers" or min(made["flops"]["0"].values()) > 0, "models compute"
    json.dumps(made)
    assert bench.said(made) and len(tables.headline(made)) == 10


@pytest.fixture(scope="module")
def bert(hf, place):
    """The sides of a tiny BERT, and what they work on."""
    case = dataclasses.replace(tiny(cases.CASES[0]), batch=4)
    with may_refuse():
        found = sides.classes(hf, case, place)
    for side in found.values():
        side.use(cases.draw(case, 0), alike=True)
    return found


def test_other_scores_or_gradients_are_refused(bert, monkeypatch):
    rows = bert["ours"].data.bucketed[0]
    timing.same_answers(bert, "tiny")
    timing.same_answers(bert, "tiny", "scores_in_training")
    timing.same_gradients(bert, rows, "tiny")
    weight = bert["T"].model.bert.encoder.layer[1].attention.self.value.weight
    with torch.no_grad():
        weight[3, 5] += 0.5
    refused(lambda: timing.same_answers(bert, "tiny"), "tiny: the scores of ours and T are",
            "not the same work")
    refused(lambda: timing.same_gradients(bert, rows, "tiny"), "the gradients of ours and T")
    with torch.no_grad():
        weight[3, 5] -= 0.5
        weight[0, 0] = float("nan")
    refused(lambda: timing.same_answers(bert, "tiny"), "ours and T are nan apart")
    with torch.no_grad():
        weight.copy_(bert["D"].model.bert.encoder.layer[1].attention.self.value.weight)
    monkeypatch.setattr(bert["D"], "loss", lambda rows, loss=bert["D"].loss: 1.01 * loss(rows))
    refused(lambda: timing.same_gradients(bert, rows, "tiny"), "the gradients of ours and D for ")
    weight.requires_grad_(False)
    refused(lambda: timing.same_gradients({"ours": bert["ours"], "T": bert["T"]}, rows, "tiny"),
            "do not learn the same", "self.value.weight")
    weight.requires_grad_(True)


def test_a_step_computes_all_and_changes_nothing(bert):
    for name, side in bert.items():
        before = {path: p.detach().clone() for path, p in side.model.named_parameters()}
        side.train()
        moments = sum(len(state) > 0 for state in side.optimizer.state.values())
        assert moments == len(before), (
            f"{name}: {moments} of {len(before)} weights had an optimiser step")
        assert all(torch.equal(p, before[path]) for path, p in side.model.named_parameters()), (
            f"{name}: the sides drift apart")


# --------------------------------------------------------------------------- what is measured alone

def test_weights_in_a_mapped_file_are_in_memory_before_the_mark(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc, which this system has not")
    save_file({"weight": torch.ones(4096, 2048)}, tmp_path / "large.safetensors")
    with safe_open(tmp_path / "large.safetensors", "pt") as file:
        layer = torch.nn.Linear(2048, 4096, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(file.get_tensor("weight"))
    before = alone.resident("VmRSS")
    assert alone.read_weights(layer) == 32 * 2**20
    assert alone.resident("VmRSS") - before > 30, "else they count twice, in the rise and as held"


def test_memory_is_that_of_two_steps_on_both_sides(hf, place, monkeypatch, capsys):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc, which this system has not")
    monkeypatch.setattr(alone, "LARGE",
                        dataclasses.replace(alone.LARGE, layers=1, width=32, batch=2, lengths=8))
    monkeypatch.setattr(alone, "METHODS", ("full", "lora"))
    started = []

    def here(*arguments):                # in this process, where the libraries are imported already
        side, method, folder, saved = arguments[2:]
        started.append((side, method, "print_their_peak" in arguments[1]))
        with may_refuse():
            alone.print_peak(side, method, folder, saved, hf=hf)
        return capsys.readouterr().out
    monkeypatch.setattr(alone, "python", here)
    found = alone.memory(place)
    assert ([line["method"] for line in found] == ["full", "lora"]
            and all(line[side] > 0 for line in found for side in ("ours", "theirs")))
    assert started == [(side, method, side == "theirs") for method in ("full", "lora")
                       for side in ("ours", "theirs")], started


def test_scaling_gives_a_picture(hf, place, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    monkeypatch.setattr(alone, "PLACES", 64)
    with may_refuse():
        points = alone.scaling(hf, place, {"tokens of a text": (32, 64), "rows": (1,),
                                           "labels": (3,), "shots": (0, 1)}, rounds=1)
    assert ([(p["axis"], p["value"]) for p in points][::5]
            == [("tokens of a text", 32), ("shots", 1)]
            and all(p["ours"] > 0 < p["T"] for p in points))
    figure = alone.picture(points)
    assert len(figure.axes) == 4 and "shots 1: " in figure.get_label()


def test_a_failed_process_is_one_line():
    refused(lambda: alone.python("-c", "raise SystemExit('no such thing')"), "ended with 1",
            "no such thing")


# -------------------------------------------------------------------------------------- the command

@pytest.fixture
def fake(monkeypatch):
    """The command with made-up measurements: fake(key) makes a record, fake.done says which were
    asked for."""
    made = SimpleNamespace(done=[], bad=set(), stop=None)

    def record_of(row, case, hf, place, table):
        key = f"{row}: {case.name}" if case else row
        if key == made.stop:
            raise KeyboardInterrupt
        made.done.append(key)
        return record(again=1.6 if key in made.bad else 1.4) | {"row": row, "name": case.name}
    monkeypatch.setattr(bench, "references", SimpleNamespace)
    monkeypatch.setattr(
        bench, "machine",
        lambda threads: {name: "1" for name in ("processor", "cores", "torch", *bench.LIBRARIES)}
        | {"threads": threads})
    monkeypatch.setattr(bench, "record_of", record_of)
    monkeypatch.setattr(bench, "draw_scaling", lambda out, rows: None)
    threads = torch.get_num_threads()
    yield made
    torch.set_num_threads(threads)


def call(*flags):
    """The command -> exit code."""
    with pytest.raises(SystemExit) as end:
        run(lambda: bench.main([*map(str, flags), "--threads", "1"]))
    return end.value.code


def test_a_stopped_run_keeps_its_rows_and_a_void_line_is_measured_again(fake, tmp_path, capsys):
    flags = ("--rows", "deberta", "--out", tmp_path / "out")
    lines = [f"deberta: T = {length}" for length in (32, 128, 256, 512)]
    fake.stop, fake.bad = lines[2], {lines[0]}
    assert call(*flags) == 130 and fake.done == lines[:2], "two lines should be finished"
    assert "the same command goes on" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "out" / "table.json").read_text())["rows"]) == set(lines[:2])
    fake.stop, fake.done = None, []
    assert call(*flags) == 1, "a void line should be exit code 1"
    assert fake.done == [lines[0], *lines[2:]], (
        "what was finished and good should not be measured again, what was void should")
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert ("This run is void" in text and "T against itself is 1.14" in text
            and f"| {lines[0]} |" in text)
    assert f"VOID: {lines[0]}" in capsys.readouterr().out
    fake.bad, fake.done = set(), []
    assert call(*flags) == 0 and fake.done == [lines[0]]
    assert "void" not in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert ({"commit", "date", "made_from"} <= set(table)
            and len(table["rows"][lines[0]]["rounds"]) == 9), "every round's seconds are kept"
    capsys.readouterr()
    assert call(*flags, "--rounds", 1) == 2
    assert ("holds a run with another rounds: choose another --out, or --overwrite"
            in capsys.readouterr().err)
    assert (call(*flags, "--rounds", 1, "--overwrite") == 0
            and "**Only 3 rounds" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8"))


def test_a_quick_run_says_that_it_is_one(fake, tmp_path, capsys):
    assert call("--quick", "--out", tmp_path) == 0
    assert "quick run" in capsys.readouterr().out
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "**This is a quick run**" in text and "and 2 data seeds" in text, text[:600]


@pytest.mark.parametrize("flags, message", [
    (["--rounds", "0"], "--rounds 0"), (["--threads", "0"], "both from 1 up"),
    (["--rows", "x"], "invalid choice")])
def test_flags_without_sense(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        bench.parse(flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1, error


def test_the_tables_of_what_is_measured_alone():
    lines = tables.others(
        {"memory": {"lines": [{"method": "lora", "ours": 65.0, "theirs": 100.0}]},
         "start": {"rounds": [{"help": 1.0}, {"help": 3.0}]},
         "scaling": {"points": [{"axis": "rows", "value": 1, "ours": 0.1, "T": 0.3}]}})
    for line in ("| lora | 65 | 100 | 0.65 |", "| help | 2.00 (1.00-3.00) |",
                 "| rows | 1 | 100.0 | 300.0 | 3.00 |"):
        assert line in lines, f"{line} is missing: {lines}"


# ------------------------------------------------------------------------------------------ in bf16

def half_record(**other):
    made = record() | {"row": "bf16", "name": "inference", "precision": "bf16", "fast": True,
                       "absent": None, "sides": ["ours", "fp32", "D", "T", "ONNX int8"],
                       "apart": {"ours": 0.01, "fp32": 0.0, "D": 0.02, "T": 0.02, "ONNX int8": 0.3}}
    for seconds in made["rounds"]:
        seconds |= {"fp32": 2.5, "ONNX int8": 0.8}
    for amount in made["amount"].values():
        amount |= {"fp32": 1000, "ONNX int8": 1000}
    return made | other


def test_the_table_in_bf16_says_what_is_faster_how_far_apart_and_what_is_missing():
    text = "\n".join(tables.halves({"bf16: inference": half_record()}))
    assert ("| inference | 1000 | 2.50 (2.50-2.50) | 2.00 (2.00-2.00) | 1.40 (1.40-1.40) |  | 0.80 "
            "(0.80-0.80) | 1.00 (1.00-1.00) |" in text), text
    assert ("ours 0.01, D 0.02, T 0.02, ONNX int8 0.3" in text and "not fast" not in text
            and "Without ONNX" not in text)
    text = "\n".join(
        tables.halves({"bf16: inference": half_record(fast=False, absent="not installed: onnx")}))
    assert ("**This machine is not fast at bf16**" in text
            and "Without ONNX Runtime: not installed: onnx." in text)
    assert tables.halves({"deberta: T = 32": record()}) == []


def test_without_onnxruntime_its_sides_are_left_out_with_the_reason(monkeypatch):
    def absent(name):
        raise ImportError(name)
    monkeypatch.setattr(half.importlib, "import_module", absent)
    assert half.absent() == "not installed: onnxruntime, onnx (pip install onnxruntime onnx)"


def half_case(work, method="full"):
    return tiny(next(case for case in cases.CASES if case.row == "bf16" and case.work == work
                     and case.method == method))


def test_sides_in_bf16_compute_in_it_and_ours_in_fp32_does_not(hf, place):
    with may_refuse():
        train = half.in_bf16(hf, half_case("train"), place)
        infer = half.in_bf16(hf, half_case("infer"), place)
    for name in ("ours", "D", "T"):
        side = train[name]
        side.use(cases.draw(half_case("train"), 0), alike=True)
        in_bf16 = side.scores_in_training()
        side.precision = "fp32"
        assert not torch.equal(side.scores_in_training(), in_bf16), (
            f"{name}: autocast changes nothing")
        body = infer[name].model.backbone if name == "ours" else infer[name].model
        assert {p.dtype for p in body.parameters()} == {torch.bfloat16}, name
    assert (train["fp32"].precision == "fp32"
            and {p.dtype for p in infer["fp32"].model.parameters()} == {torch.float32})
    used = []
    hook = train["ours"].model.backbone.layers[0].up_proj.register_forward_hook(
        lambda layer, given, found: used.append(found.dtype))
    for precision in ("bf16", "fp32"):
        train["ours"].precision = precision
        train["ours"].train()
    hook.remove()
    assert (set(used[:len(used) // 2]) == {torch.bfloat16}
            and set(used[len(used) // 2:]) == {torch.float32}), used


def test_onnx_runtime_answers_as_transformers_and_in_8_bits_nearly(hf, place):
    pytest.importorskip("onnxruntime", reason="the sides of ONNX Runtime need onnxruntime")
    pytest.importorskip("onnx", reason="the sides of ONNX Runtime need onnx")
    case = half_case("infer")
    with may_refuse():
        found = half.in_bf16(hf, case, place)
    for side in found.values():
        side.use(cases.draw(case, 0), alike=True)
    timing.same_answers({"ours": found["fp32"], "ONNX fp32": found["ONNX fp32"]}, "tiny")
    distance = half.about(found, "infer")["apart"]
    assert 0 < distance["ONNX int8"] < 0.5 and distance["ONNX fp32"] < 1e-3 < distance["T"] < 0.1, (
        distance)


def test_scores_in_bf16_are_compared_loosely_and_those_of_8_bits_shown_alone():
    def side(score):
        return SimpleNamespace(prepare=int, infer=lambda: torch.tensor([1.0, score]))
    given = {"ours": side(0.5), "T": side(0.55), "ONNX int8": side(0.9)}
    timing.same_answers(given, "x", tolerance=timing.TOLERANCE_OF["bf16"])
    refused(lambda: timing.same_answers(given, "x"), "x: the scores of ours and T are")
    refused(lambda: timing.same_answers(given | {"D": side(0.7)}, "x",
                                        tolerance=timing.TOLERANCE_OF["bf16"]),
            "the scores of ours and D")
