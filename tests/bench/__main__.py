"""python -m tests.bench: how fast is this package beside transformers and PEFT, on this machine?

  python -m tests.bench --quick                    the most important rows in some minutes, on
                                                   smaller models
  python -m tests.bench                            all rows, in 9 rounds; about half an hour
  python -m tests.bench --rows deberta qlora       some rows

Written are OUT/table.md, OUT/table.json (every round's seconds) and OUT/scaling.svg. A run that is
stopped keeps its finished rows; the same command goes on from there. Needs transformers and PEFT:
pip install -e '.[test]'

All sides work by turns in one process with fixed threads, the order reversed each round; laying out
batches is timed, for all. Ours and T take batches of like length out of an epoch, D takes batches
as they come; ratios are of seconds a real token. D is the reference as its users run it, T the
same, tuned (tests/bench/sides.py). Before anything is timed all sides must give the same logits and
gradients. A ratio is the median of the rounds' own ratios, with the least and the greatest. Two
safeguards make a row void (exit code 1): the reference against itself must lie in 0.95 to 1.05, and
nobody may compute faster than a large matrix product in the same rounds. Run it on an idle machine.
"""
import argparse
import importlib
import json
import logging
import os
import tempfile
import time
import warnings
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from .tables import LIBRARIES, SEEDS, commit, machine, markdown
from .timing import LEAST, measure, paired
from minillmclf.cli.parser import Parser, run
from minillmclf.errors import InputError, Stopped
from minillmclf.cli.outputs import check_out_folder
from minillmclf.files import read_json, write_text

ROUNDS = 3                                        # with each data seed
ALONE = ("memory", "start", "scaling")
ROWS = ("bert-sst2", "bert-documents", "equal-lengths", "label-token", "label-scoring", "deberta",
        "lora-all-linear", "qlora", "families", "bf16", "memory", "tokenizers", "start", "scaling")
# rows of --quick, and which lines of them; None: all
QUICK = {"bert-sst2": None, "label-token": None, "label-scoring": ("2 labels", "6 labels"),
         "deberta": ("T = 32", "T = 256"), "qlora": None, "bf16": ("inference",)}
THEIR_START = ("import sys; from transformers import pipeline; "
               "print(pipeline('text-classification', sys.argv[1])('a text'))")


def parse(arguments=None):
    p = Parser(prog="python -m tests.bench", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs/bench", help="folder of the tables [runs/bench]")
    p.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME",
                   help=f"some rows: {', '.join(ROWS)} [all]")
    p.add_argument("--rounds", type=int, default=ROUNDS,
                   help=f"rounds with each of the {SEEDS} data seeds [{ROUNDS}]")
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1),
                   help="threads of torch, and of the library tokenizers [2, if there are so many "
                        "cores]")
    p.add_argument("--quick", action="store_true",
                   help="2 data seeds, 2 layers, half the rows of a batch, the most important rows")
    p.add_argument("--overwrite", action="store_true",
                   help="begin anew although --out holds another run")
    a = p.parse_args(arguments)
    if a.rounds < 1 or a.threads < 1:
        p.error(f"--rounds {a.rounds}, --threads {a.threads}: both from 1 up")
    return a


def references():
    """The libraries that this package is compared with -> their modules, by name. Nothing else in
    it imports them."""
    # it warns of a kernel that is not used here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    found, absent = {}, []
    for name in LIBRARIES:
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            absent.append(name)
    if absent:
        raise InputError(f"the benchmark compares with {', '.join(LIBRARIES)}; not installed: "
                         f"{', '.join(absent)}: pip install -e '.[test]'")
    warnings.filterwarnings("ignore", module="transformers")
    found["transformers"].logging.set_verbosity_error()
    found["transformers"].logging.disable_progress_bar()
    return SimpleNamespace(**found)


def print_their_peak(*arguments):
    """The program of a process that measures a reference's memory (benchmarks/alone.py)."""
    from .alone import print_peak
    print_peak(*arguments, hf=references())


# -------------------------------------------------------------------------------------- the command

def planned(a):
    """What is to be measured -> [(key in table.json, row, Case or None)]."""
    from .cases import CASES, small
    rows, plan = a.rows or (QUICK if a.quick else ROWS), []
    for row in (row for row in ROWS if row in rows):
        if row in ALONE:
            plan.append((row, row, None))
        for case in (case for case in CASES if case.row == row):
            if not a.quick or QUICK.get(row) is None or case.name in QUICK[row]:
                plan.append((f"{row}: {case.name}", row,
                             small(case) if a.quick and case.build != "tokenizers" else case))
    return plan


def open_table(a, out):
    """The table of the same run in the folder, else an empty one. Another run is an InputError."""
    import hashlib
    code = hashlib.sha256(b"".join(
        path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))).hexdigest()[:12]
    made_from = {"quick": a.quick, "seeds": 2 if a.quick else SEEDS, "rounds": a.rounds,
                 "code": code, "machine": machine(a.threads)}
    path = check_out_folder(out, (out / "table.json").exists(), a.overwrite) / "table.json"
    if a.overwrite or not path.exists():
        return {"made_from": made_from, "commit": commit(),
                "date": f"{datetime.now():%Y-%m-%d %H:%M}", "rows": {}}
    table = read_json(path)
    earlier = table.get("made_from", {})
    differ = [key for key in made_from if earlier.get(key) != made_from[key]]
    if differ:
        raise InputError(f"{path}: holds a run with another {', '.join(differ)}: choose another "
                         "--out, or --overwrite")
    return table


def write(out, table):
    """Both files, the lines in the order of ROWS."""
    table["rows"] = dict(sorted(table["rows"].items(),
                                key=lambda pair: ROWS.index(pair[0].partition(":")[0])))
    write_text(out / "table.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "table.md", markdown(table))


def record_of(row, case, hf, place, table):
    """Measure one line -> its record."""
    from . import alone
    made = table["made_from"]
    if row == "memory":
        return {"lines": alone.memory(place)}
    if row == "start":
        return {"rounds": alone.start(place, made["rounds"], THEIR_START)}
    if row == "scaling":
        return {"points": alone.scaling(hf, place)}
    return measure(case, hf, place, made["seeds"], made["rounds"],
                   LEAST / 2 if made["quick"] else LEAST)


def said(record):
    """The line that a person sees when it is measured."""
    if "sides" not in record:
        return "done"
    faster = {name: paired(record, name, "ours")["median"]
              for name in record["sides"] if name != "ours"}
    itself = paired(record, "again", record["twin"])["median"]
    return (", ".join(f"{name} / ours {ratio:.2f}" for name, ratio in faster.items())
            + f", itself {itself:.2f}" + "".join(f"; VOID: {fault}" for fault in record["faults"]))


def draw_scaling(out, rows):
    if "scaling" in rows:
        from .alone import picture
        from minillmclf.report.figures import save_figure
        try:
            save_figure(picture(rows["scaling"]["points"]), out / "scaling.svg")
        except InputError as error:
            print(f"no scaling.svg: {error}")


def main(arguments=None):
    a = parse(arguments)
    os.environ["RAYON_NUM_THREADS"] = str(a.threads)       # of tokenizers, read when it is imported
    hf, out = references(), Path(a.out)
    import torch
    torch.set_num_threads(a.threads)
    table, plan = open_table(a, out), planned(a)
    todo = [each for each in plan if each[0] not in table["rows"]
            or table["rows"][each[0]].get("faults")]
    if len(todo) < len(plan):
        print(f"{len(plan) - len(todo)} of {len(plan)} lines are finished in {out}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        for number, (key, row, case) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {key} ... ", end="", flush=True)
            try:
                table["rows"][key] = record_of(row, case, hf, place, table)
            except KeyboardInterrupt:
                raise Stopped(f"\nstopped; finished lines are kept in {out}, the same command goes "
                              "on from there") from None
            spent = time.perf_counter() - began
            write(out, table)
            left = spent / number * (len(todo) - number)
            print(f"{said(table['rows'][key])}  ({spent / 60:.1f} min, about "
                  f"{left / 60:.1f} to go)", flush=True)
    draw_scaling(out, table["rows"])
    void = [key for key, *_ in plan if table["rows"][key].get("faults")]
    print(f"\n{'quick run; ' * a.quick}{len(plan)} lines in {out / 'table.md'}"
          + (f"; VOID: {', '.join(void)}" if void else ""))
    return 1 if void else 0


if __name__ == "__main__":
    run(main)
