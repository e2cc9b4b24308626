"""One cell of a comparison: one run in a process of its own, so that its memory is its own; a finished one is kept.

A cell is a run folder with one file more, cell.json: what the cell was made from (settings, the bytes of the model, the
data) and what came out. While these are the same, a finished cell is taken as it is.

  python -m minillmclf.cells RUN          prints the milliseconds that a saved classifier takes for one of its test texts
"""
import argparse
import ctypes
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from ..cli.parser import Parser, StopSignal, run
from ..errors import Stopped
from ..files import check_fields, find_model, read_json, write_json
from ..cli.settings import read_settings

TIMED_TEXTS, TIMED_BATCH, TIMED_PASSES = 200, 32, 3
PR_SET_PDEATHSIG = 1                    # Linux, prctl.h: a signal for this process when its parent ends
METRICS = (lambda v: isinstance(v, dict) and all(type(v.get(name)) in (int, float) for name in (
    "accuracy", "macro_f1", "log_loss", "ece")), "an object with the metrics")
COST = (lambda v: v is None or type(v) in (int, float) and v >= 0, "a number, or null")
CELL = {"split": (lambda v: v in ("dev", "test"), "dev or test"), "dev": METRICS, "test": METRICS,
        "trainable": COST, "memory_mb": COST, "train_seconds": COST, "ms_per_text": COST}


def folder_of(out, candidate, size, seed):
    """The cell's folder: other settings are another cell, and leave the earlier one where it is."""
    s = candidate.settings
    decisive = json.dumps({**s.identity(), "model": candidate.model}, sort_keys=True)
    name = re.sub(r"[^\w.=-]", "_", Path(candidate.model.partition("@")[0]).name)[:40]
    parts = [name] if candidate.baseline else [name, s.method, s.readout]
    return Path(out) / "cells" / "-".join([*parts, str(size), str(seed), hashlib.sha256(decisive.encode()).hexdigest()[:8]])


def run_cell(candidate, sha256, folder, size, seed):
    """The cell's record, from its file if it is finished there, else from a run -> (record, was there work to do).

    record: {"state": "finished" or "not possible", "reason", "made_from", "settings", "dev" and "test" (metrics),
    "trainable", "memory_mb", "train_seconds", "ms_per_text" (of seed 0 only)}. Raises Stopped if the run was stopped.
    """
    s = replace(candidate.settings, seed=seed, rows_per_class=0 if size == "all" else int(size), out=str(folder))
    made_from = {"settings": s.identity(), "data": sha256}
    if not candidate.baseline:
        from ..tuning.saved import fingerprint
        made_from["model"] = fingerprint(find_model(s.model))
    path = folder / "cell.json"
    earlier = read_json(path) if path.exists() else {}
    same = earlier.get("made_from") == made_from
    finished = earlier.get("state") == "finished"
    if same and finished and (folder / "predictions.csv").exists():
        return check_fields(earlier, CELL, path), False
    record = {"state": "begun", "made_from": made_from, "settings": asdict(s)}
    write_json(path, record)                                     # train reads the settings from here
    if candidate.baseline:
        record |= baseline(candidate.model, s, folder)
    else:
        record |= trained(folder, overwrite=finished or not same, timed=seed == 0)
    write_json(path, record)
    return record, True


def process(module, *arguments, printed, errors):
    """`python -m MODULE ARGUMENTS` to its end -> exit code; what it prints goes into the files `printed` and `errors`.

    Ctrl-C is handed on once: the run saves its state and leaves with 130. In a session of its own it does not hear the
    terminal too, for a second signal would stop it before it has saved. Linux tells it if we are killed.
    """
    libc, own = ctypes.CDLL(None) if sys.platform == "linux" else None, os.getpid()

    def follow():
        if libc and (libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) or os.getppid() != own):
            os._exit(1)
    root = str(Path(__file__).resolve().parents[2])
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    with open(printed, "wb") as stdout, open(errors, "wb") as stderr, StopSignal() as stop:
        child = subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], env=known, stdin=subprocess.DEVNULL,
                                 stdout=stdout, stderr=stderr, start_new_session=True,
                                 preexec_fn=libc and follow)
        told = False
        try:
            while child.poll() is None:
                time.sleep(0.05)
                if stop.asked and not told:
                    told = True
                    child.terminate()                       # train takes it as it takes Ctrl-C
        finally:
            if child.poll() is None:                        # a second Ctrl-C
                child.kill()
                child.wait()
    if stop.asked:
        raise Stopped("stopped; the same command goes on from there")
    return child.returncode


def last_error(path):
    """The line of a process's standard error that says what was wrong: the last that begins with error:, else the last."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or ["it said nothing"])[-1]


def trained(folder, overwrite, timed):
    """Train in the folder with the settings of its cell.json -> what came out."""
    files = {"printed": folder / "stdout.txt", "errors": folder / "stderr.txt"}
    again = ["--overwrite"] if overwrite else []
    code = process("minillmclf.train", "--config", folder / "cell.json", "--out", folder, *again, **files)
    if code:
        killed = f"ended by signal {-code}, as for want of memory"
        return {"state": "not possible", "reason": killed if code < 0 else last_error(files["errors"])}
    record = read_json(folder / "run.json")
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    dev, = [line for line in epochs if line["epoch"] == record["best_epoch"]]
    ms = None
    if timed:
        code = process("minillmclf.compare.cells", folder, **files)
        ms = float(files["printed"].read_text()) if code == 0 else None
    for file in files.values():
        file.unlink()
    return {"state": "finished", "split": record["split"], "dev": dev, "dev_rows": record["data"]["rows"]["dev"],
            "test": list(record["results"].values())[-1],
            "trainable": record["parameters"]["trainable"], "memory_mb": record["timing"]["peak_memory_mb"],
            "train_seconds": record["timing"]["train_seconds"], "ms_per_text": ms}


def baseline(name, s, folder):
    """The majority class or the bag of words, in this process, on the rows that the models of this cell have -> what came out."""
    from .. import train
    from ..classify.baseline import BagOfWords, majority
    from ..training.metrics import evaluate
    data = train.load_dataset(replace(s, readout="labels"))  # which takes any number of texts
    final = "test" if data.test else "dev"
    texts = {split: [e.texts for e in getattr(data, split)] for split in ("train", "dev", final)}
    truth = {split: [data.labels.index(e.label) for e in getattr(data, split)] for split in texts}
    started, bag = time.perf_counter(), BagOfWords(len(data.labels))
    if name == "bag-of-words":
        bag.fit(texts["train"], truth["train"], texts["dev"], truth["dev"])
    answer = bag.predict if name == "bag-of-words" else lambda given: majority(truth["train"], len(given), len(data.labels))
    seconds = time.perf_counter() - started
    train.write_predictions(folder / "predictions.csv", getattr(data, final), answer(texts[final]), data.labels)
    metrics = {split: evaluate(answer(texts[split]), truth[split], data.labels) for split in ("dev", final)}
    size = sum(w.numel() for w in bag.weights) if name == "bag-of-words" else 0
    return {"state": "finished", "split": final, "dev": metrics["dev"], "dev_rows": len(data.dev), "test": metrics[final],
            "trainable": size,
            "memory_mb": None, "train_seconds": round(seconds, 1), "ms_per_text": milliseconds(answer, texts[final])}


def milliseconds(predict, texts):
    """What `predict` takes for one text, tokenization included: up to 200 texts in batches of 32, once to warm up, then
    the median of 3 passes."""
    texts, passes = texts[:TIMED_TEXTS], []
    for _ in range(1 + TIMED_PASSES):
        started = time.perf_counter()
        for place in range(0, len(texts), TIMED_BATCH):
            predict(texts[place:place + TIMED_BATCH])
        passes.append((time.perf_counter() - started) / len(texts) * 1000)
    return round(statistics.median(passes[1:]), 3)


def main(arguments=None):
    p = Parser(prog="python -m minillmclf.cells", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", help="the folder of a finished run")
    folder = find_model(p.parse_args(arguments).run)
    from .. import train
    from ..cli.build import device_of
    from ..classify.classifier import Classifier
    s = read_settings({}, folder / "run.json")
    data = train.load_dataset(s)
    model = Classifier.load(folder).to(device_of(s))
    print(milliseconds(model.predict, [e.texts for e in data.test or data.dev]))
    return 0


if __name__ == "__main__":
    run(main)
