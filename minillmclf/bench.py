"""python -m minillmclf.bench: how fast is this package beside transformers and PEFT, on this machine?

  python -m minillmclf.bench --quick                       the most important rows in some minutes, on smaller models
  python -m minillmclf.bench                               all rows, in 9 rounds; half an hour by estimate
  python -m minillmclf.bench --rows deberta qlora          some rows

Written are OUT/table.md, OUT/table.json (every round's seconds) and OUT/scaling.svg. A run that is stopped keeps its finished
rows; the same command goes on from there. Needs transformers and PEFT: pip install -e '.[test]'

All sides work by turns in one process with fixed threads, the order reversed each round; laying out batches is timed, for all.
D is the reference as its users run it, T the same, tuned (benchmarks/sides.py). Before anything is timed all sides must give
the same logits and gradients. A ratio is the median of the rounds' own ratios, with the least and the greatest. Two safeguards
make a row void (exit code 1): the reference against itself must lie in 0.95 to 1.05, and nobody may compute faster than a
large matrix product in the same rounds. Run it on an idle machine.
"""
import argparse
import importlib
import json
import logging
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from .commands import Parser, Stopped, run
from .errors import InputError
from .files import read_json, write_text

LIBRARIES = ("transformers", "peft", "tokenizers", "accelerate", "bitsandbytes")
SEEDS, ROUNDS, WARM_UPS, ENOUGH = 3, 3, 2, 9      # data seeds, rounds with each; ENOUGH: rounds that a table should rest on
BAND = (0.95, 1.05)                               # of the reference against itself
TOLERANCE = 1e-3                                  # of logits and gradients, in parts of the largest
LEAST, SQUARE = 0.2, 1024                         # seconds that a measurement fills at least; rows of the matrices of sgemm
ALONE = ("memory", "start", "scaling")
ROWS = ("bert-sst2", "bert-documents", "equal-lengths", "label-token", "label-scoring", "deberta", "lora-all-linear", "qlora",
        "families", "memory", "tokenizers", "start", "scaling")
QUICK = {"bert-sst2": None, "label-token": None, "label-scoring": ("2 labels", "6 labels"), "deberta": ("T = 32", "T = 256"),
         "qlora": None}                           # rows of --quick, and which lines of them; None: all
THEIR_START = "import sys; from transformers import pipeline; print(pipeline('text-classification', sys.argv[1])('a text'))"


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs/bench", help="folder of the tables [runs/bench]")
    p.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help=f"some rows: {', '.join(ROWS)} [all]")
    p.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds with each of the {SEEDS} data seeds [{ROUNDS}]")
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1),
                   help="threads of torch, and of the library tokenizers [2, if there are so many cores]")
    p.add_argument("--quick", action="store_true",
                   help="2 data seeds, 2 layers, half the rows of a batch, the most important rows")
    p.add_argument("--overwrite", action="store_true", help="begin anew although --out holds another run")
    a = p.parse_args(arguments)
    if a.rounds < 1 or a.threads < 1:
        p.error(f"--rounds {a.rounds}, --threads {a.threads}: both from 1 up")
    return a


def references():
    """The libraries that this package is compared with -> their modules, by name. Nothing else in it imports them."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)      # it warns of a kernel not used here
    found, absent = {}, []
    for name in LIBRARIES:
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            absent.append(name)
    if absent:
        raise InputError(f"the benchmark compares with {', '.join(LIBRARIES)}; not installed: {', '.join(absent)}: "
                         f"pip install -e '.[test]'")
    warnings.filterwarnings("ignore", module="transformers")
    found["transformers"].logging.set_verbosity_error()
    found["transformers"].logging.disable_progress_bar()
    return SimpleNamespace(**found)


def print_their_peak(*arguments):
    """The program of a process that measures a reference's memory (benchmarks/alone.py)."""
    from .benchmarks.alone import print_peak
    print_peak(*arguments, hf=references())


# ------------------------------------------------------------------------------------------------ numbers

def paired(rounds, top, bottom):
    """How many times longer `top` takes than `bottom`: of each round's own ratio the median, the least and the greatest."""
    found = [seconds[top] / seconds[bottom] for seconds in rounds]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def used(record, side):
    """Executed FLOPs of a side, in parts of what sgemm reached in the same rounds: the median. None where none were counted."""
    flops = [record["flops"][str(seconds["seed"])].get(side, 0) for seconds in record["rounds"]]
    if not all(flops):
        return None
    return statistics.median(count / seconds[side] / (2 * SQUARE**3 / seconds["sgemm"])
                             for count, seconds in zip(flops, record["rounds"]))


def faults(record):
    """What makes a line void -> list of sentences, empty for a good one."""
    found, itself = [], paired(record["rounds"], "again", record["twin"])["median"]
    if not BAND[0] <= itself <= BAND[1]:
        found.append(f"{record['twin']} against itself is {itself:.2f}, outside {BAND[0]}-{BAND[1]}: the machine is not quiet")
    for side in record["sides"]:
        share = used(record, side)
        if share is not None and share > 1:
            found.append(f"{side} computes {share:.2f} times as many FLOPs a second as sgemm: something is counted wrongly")
    return found


def apart(found, expected):
    """The largest difference of two tensors, in parts of the largest number of `expected`; NaN where one holds a NaN."""
    unit = max(expected.abs().max().item(), 1e-12)
    return (found - expected).abs().max().item() / unit if found.shape == expected.shape else float("inf")


def same_answers(sides, where, way="infer"):
    """Refuse to time sides that do not give the same scores. way: infer, or scores_in_training."""
    answers = {name: getattr(side, way)() for name, side in prepared(sides)}
    for name, answer in answers.items():
        if isinstance(answer, list):
            difference = 0.0 if answer == answers["ours"] else float("inf")
        else:
            difference = apart(answers["ours"], answer)
        if not difference <= TOLERANCE:
            raise InputError(f"{where}: the scores of ours and {name} are {difference:.1g} apart (in parts of the largest): "
                             f"not the same work, so not timed")


def same_gradients(sides, rows, where):
    """Refuse to time sides that do not learn the same weights, or not by the same gradients. rows: a batch."""
    for side in sides.values():
        side.differentiate(rows)
    ours = sides["ours"].gradients()
    for name in sides.keys() - {"ours"}:
        theirs = sides[name].gradients()
        if ours.keys() != theirs.keys():
            raise InputError(f"{where}: ours and {name} do not learn the same: {sorted(ours.keys() ^ theirs.keys())[:4]}")
        largest = max(gradient.abs().max().item() for gradient in theirs.values())
        for weight, gradient in theirs.items():
            unit = max(gradient.abs().max().item(), 1e-3 * largest)        # a key's bias has none but rounding
            difference = (ours[weight] - gradient).abs().max().item() / unit
            if not difference <= TOLERANCE:                                # so written that NaN is a difference too
                raise InputError(f"{where}: the gradients of ours and {name} for {weight} are {difference:.1g} apart (in parts "
                                 f"of the largest): not the same work, so not timed")


def prepared(sides):
    """The items of `sides`, each made ready."""
    for name, side in sides.items():
        side.prepare()
        yield name, side


# ------------------------------------------------------------------------------------------------ timing

def sgemm():
    """A product of two large square matrices, the most that this machine computes -> a function without arguments."""
    import torch
    a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    return lambda: a @ b


def seconds_of(call, prepare, least):
    """Seconds of one call, over as many as fill `least` seconds. prepare: called before each, and not counted."""
    total = calls = 0
    while not calls or total < least:
        prepare()
        began = time.perf_counter()
        call()
        total, calls = total + time.perf_counter() - began, calls + 1
    return total / calls


def flops_of(call):
    """Floating-point operations of the matrix products and attentions in a call: 2 for a multiplication with its addition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def attention(q, k, *_, out_shape=None, **__):                        # shapes (B, H, T, d), (B, H, S, d)
        return 4 * q[0] * q[1] * q[2] * k[2] * q[3]

    def attention_backward(_, q, k, *__, out_shape=None, **___):          # five products where the forward pass has two
        return attention(q, k) * 5 // 2
    ops = torch.ops.aten
    with FlopCounterMode(display=False, custom_mapping={
            ops._scaled_dot_product_flash_attention_for_cpu: attention,
            ops._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward}) as counter:
        call()
    return counter.get_total_flops()


def measure(case, hf, place, seeds, rounds, least=LEAST):
    """One line of the table -> its record: every round's seconds, the FLOPs and the real tokens of a call for each seed."""
    from .benchmarks import alone, cases, sides
    build = {"tokenizers": alone.tokenizers, "classes": sides.classes, "label_token": sides.label_token,
             "label_scoring": sides.label_scoring}[case.build]
    where, found, products = f"{case.row}, {case.name}", build(hf, case, place), sgemm()
    twin = "T" if "T" in found else "D"
    record = {"row": case.row, "name": case.name, "aims": list(case.aims), "sides": list(found), "twin": twin, "work": case.work,
              "unit": "texts" if case.build == "tokenizers" else "tokens", "rounds": [], "flops": {}, "amount": {}}
    order = [twin, "sgemm", "ours", *(["D"] if twin == "T" else []), "again"]             # the twins at both ends of a round
    for seed in range(seeds):
        data = alone.Texts(seed, case.batch) if case.build == "tokenizers" else cases.draw(case, seed)
        for side in found.values():
            side.use(data)
        same_answers(found, where, "infer" if case.work == "infer" else "scores_in_training")
        if case.work != "infer":
            same_gradients(found, data.bucketed[0], where)
        calls = {name: getattr(side, case.work) for name, side in found.items()}
        record["flops"][str(seed)] = {name: flops_of(calls[name]) for name, _ in prepared(found)}        # the first warm-up
        record["amount"][str(seed)] = data.amount
        for _ in range(WARM_UPS - 1 if seed == 0 else 0):                          # another seed has texts of like lengths
            for name, _ in prepared(found):
                calls[name]()
        products()
        calls |= {"again": calls[twin], "sgemm": products}
        prepare = {name: side.prepare for name, side in found.items()} | {"again": found[twin].prepare, "sgemm": int}
        for _ in range(rounds):
            turns = order if len(record["rounds"]) % 2 == 0 else order[::-1]
            record["rounds"].append({"seed": seed, **{name: seconds_of(calls[name], prepare[name], least) for name in turns}})
    return record | {"faults": faults(record)}


# ------------------------------------------------------------------------------------------------ tables

def machine(threads):
    """What the numbers depend on besides the code."""
    import torch
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        told = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        processor = told[0] if told else processor
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, "system": platform.platform(),
            "python": platform.python_version(), "torch": torch.__version__,
            **{name: metadata.version(name) for name in LIBRARIES}}


def commit():
    """The git commit of this package's checkout, with + if files differ from it; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    try:
        head, changed = (subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
                         for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "minillmclf")))
    except OSError:
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout.strip()) if head.returncode == 0 else None


def times(ratio):
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def headline(record):
    """One line of the main table."""
    rounds, sides = record["rounds"], record["sides"]
    cost = statistics.median(1e6 * seconds["ours"] / record["amount"][str(seconds["seed"])] for seconds in rounds)
    faster = {name: paired(rounds, name, "ours") for name in sides if name != "ours"}
    shares = [used(record, name) for name in ("ours", record["twin"])]
    aims = ["" if aim is None else f"{aim:g}" for aim in record["aims"]]
    return [f"{record['row']}: {record['name']}", f"{cost:.0f}",
            *(times(faster[name]) if name in faster else "" for name in "DT"), *aims, times(paired(rounds, "again", record["twin"])),
            *("" if share is None else f"{100 * share:.0f} %" for share in shares), "**void**" if record["faults"] else ""]


def markdown(table):
    """table.md from what table.json holds -> str."""
    from .table import grid
    made, rows = table["made_from"], table["rows"]
    about, lines = made["machine"], ["# Speed beside transformers and PEFT", ""]
    lines.append(f"{about['processor']}, {about['cores']} cores, **{about['threads']} threads**; " + ", ".join(
        f"{name} {about[name]}" for name in ("torch", *LIBRARIES)) + f"; commit {table['commit'] or 'unknown'}, {table['date']}.")
    if made["quick"]:
        lines.append("\n**This is a quick run**: 2 layers, half the rows of a batch. Its ratios are no results.")
    count = made["seeds"] * made["rounds"]
    if count < ENOUGH or made["seeds"] < SEEDS:
        lines.append(f"\n**Only {count} rounds and {made['seeds']} data seeds**: {ENOUGH} and {SEEDS} are wanted.")
    broken = [f"- {record['row']}, {record['name']}: {fault}" for record in rows.values() for fault in record.get("faults", [])]
    if broken:
        lines += ["", "**This run is void**; the same command measures these lines again:", "", *broken]
    unit = {"tokens": [], "texts": []}
    for record in rows.values():
        if "rounds" in record and "sides" in record:
            unit[record["unit"]].append(headline(record))
    for name, found in unit.items():
        if found:
            lines += ["", f"## {'Models' if name == 'tokens' else 'Tokenizers'}", "", *grid(
                ["work", f"ours, µs a {'real token' if name == 'tokens' else 'text'}", "D / ours", "T / ours", "aim D", "aim T",
                 "reference / itself", "ours of sgemm", "reference of sgemm", ""], found)]
    return "\n".join(lines + others(rows) + notes(rows)) + "\n"


def others(rows):
    """The tables of what was not measured by turns."""
    from .table import grid
    lines = []
    if rows.get("memory", {}).get("lines"):
        lines += ["", "## Peak memory of two training steps, 12 x 768, 8 x 128 tokens", "", *grid(
            ["method", "ours, MB", "transformers + PEFT, MB", "ratio"],
            [[x["method"], f"{x['ours']:.0f}", f"{x['theirs']:.0f}", f"{x['ours'] / x['theirs']:.2f}"]
             for x in rows["memory"]["lines"]])]
    if "start" in rows:
        found = {name: [seconds[name] for seconds in rows["start"]["rounds"]] for name in rows["start"]["rounds"][0]}
        lines += ["", "## Start, in fresh processes", "", *grid(["command", "seconds"], [
            [name, times({"median": statistics.median(s), "low": min(s), "high": max(s)})] for name, s in found.items()])]
    if "scaling" in rows:
        lines += ["", "## Scaling (scaling.svg), LLaMA's wiring, 2 x 256, prediction", "", *grid(
            ["axis", "value", "ours, ms", "transformers tuned, ms", "ratio"],
            [[p["axis"], p["value"], f"{1000 * p['ours']:.1f}", f"{1000 * p['T']:.1f}", f"{p['T'] / p['ours']:.2f}"]
             for p in rows["scaling"]["points"]])]
    return lines


def notes(rows):
    """What the numbers mean, in the file itself: it is read without this one."""
    text = ("D: transformers and PEFT as users run them; T: the same with length buckets, fused AdamW and, for one label token, the "
            "language-model head at one place. Label scoring: D reads each (prompt, label) pair, T the prompt once with a cache. "
            "Ratios: median of the rounds' own ratios (least-greatest); above 1 ours is faster; 0.9 to 1.1 shows no difference. Real "
            "tokens are counted, padding is not; laying out batches is timed for all. Dropout 0. Before timing, logits and (in "
            "training) gradients were equal. Of sgemm: executed FLOPs a second against those of a large matrix product.")
    speeds = [2e-9 * SQUARE**3 / seconds["sgemm"]
              for record in rows.values() if "sides" in record for seconds in record["rounds"]]
    if speeds:
        text += (f" sgemm ({SQUARE} x {SQUARE}) in the same rounds: {statistics.median(speeds):.0f} GF/s "
                 f"({min(speeds):.0f}-{max(speeds):.0f}).")
    return ["", text]


# ------------------------------------------------------------------------------------------------ the command

def planned(a):
    """What is to be measured -> [(key in table.json, row, Case or None)]."""
    from .benchmarks.cases import CASES, small
    rows, plan = a.rows or (QUICK if a.quick else ROWS), []
    for row in (row for row in ROWS if row in rows):
        if row in ALONE:
            plan.append((row, row, None))
        for case in (case for case in CASES if case.row == row):
            if not a.quick or QUICK.get(row) is None or case.name in QUICK[row]:
                plan.append((f"{row}: {case.name}", row, small(case) if a.quick and case.build != "tokenizers" else case))
    return plan


def open_table(a, out):
    """What the folder holds of the same run, else an empty table. Another run there is an InputError."""
    import hashlib
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))).hexdigest()[:12]
    made_from = {"quick": a.quick, "seeds": 2 if a.quick else SEEDS, "rounds": a.rounds, "code": code,
                 "machine": machine(a.threads)}
    path = out / "table.json"
    if a.overwrite or not path.exists():
        return {"made_from": made_from, "commit": commit(), "date": f"{datetime.now():%Y-%m-%d %H:%M}", "rows": {}}
    table = read_json(path)
    earlier = table.get("made_from", {})
    differ = [key for key in made_from if earlier.get(key) != made_from[key]]
    if differ:
        raise InputError(f"{path}: holds a run with another {', '.join(differ)}: choose another --out, or --overwrite")
    return table


def write(out, table):
    """Both files, the lines in the order of ROWS."""
    table["rows"] = dict(sorted(table["rows"].items(), key=lambda pair: ROWS.index(pair[0].partition(":")[0])))
    write_text(out / "table.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "table.md", markdown(table))


def record_of(row, case, hf, place, table):
    """Measure one line -> its record."""
    from .benchmarks import alone
    made = table["made_from"]
    if row == "memory":
        return {"lines": alone.memory(place)}
    if row == "start":
        return {"rounds": alone.start(place, made["rounds"], THEIR_START)}
    if row == "scaling":
        return {"points": alone.scaling(hf, place)}
    return measure(case, hf, place, made["seeds"], made["rounds"], LEAST / 2 if made["quick"] else LEAST)


def said(record):
    """The line that a person sees when it is measured."""
    if "sides" not in record:
        return "done"
    faster = {name: paired(record["rounds"], name, "ours")["median"] for name in record["sides"] if name != "ours"}
    itself = paired(record["rounds"], "again", record["twin"])["median"]
    return ", ".join(f"{name} / ours {ratio:.2f}" for name, ratio in faster.items()) + f", itself {itself:.2f}" + "".join(
        f"; VOID: {fault}" for fault in record["faults"])


def draw_scaling(out, rows):
    if "scaling" in rows:
        from .benchmarks.alone import picture
        from .pictures import save
        try:
            save(picture(rows["scaling"]["points"]), out / "scaling.svg")
        except InputError as error:
            print(f"no scaling.svg: {error}")


def main(arguments=None):
    a = parse(arguments)
    os.environ["RAYON_NUM_THREADS"] = str(a.threads)                   # of tokenizers, read when it is imported
    hf, out = references(), Path(a.out)
    import torch
    torch.set_num_threads(a.threads)
    table, plan = open_table(a, out), planned(a)
    todo = [each for each in plan if each[0] not in table["rows"] or table["rows"][each[0]].get("faults")]
    if len(todo) < len(plan):
        print(f"{len(plan) - len(todo)} of {len(plan)} lines are finished in {out}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        for number, (key, row, case) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {key} ... ", end="", flush=True)
            try:
                table["rows"][key] = record_of(row, case, hf, place, table)
            except KeyboardInterrupt:
                raise Stopped(f"\nstopped; finished lines are kept in {out}, the same command goes on from there") from None
            spent = time.perf_counter() - began
            write(out, table)
            left = spent / number * (len(todo) - number)
            print(f"{said(table['rows'][key])}  ({spent / 60:.1f} min, about {left / 60:.1f} to go)", flush=True)
    draw_scaling(out, table["rows"])
    void = [key for key, *_ in plan if table["rows"][key].get("faults")]
    print(f"\n{'quick run; ' * a.quick}{len(plan)} lines in {out / 'table.md'}" + (f"; VOID: {', '.join(void)}" if void else ""))
    return 1 if void else 0


if __name__ == "__main__":
    run(main)
