"""One run of a comparison, trained in a process of its own, so that its peak memory is its own.

The run's folder is that of train with one more file, cell.json: what the run was made from
(settings, sha256 of the model and the data) and its results. A finished run is not trained again
while these are the same.

`python -m minillmclf.compare.runs FOLDER`, which `run_train` starts, prints the milliseconds that
the run's saved classifier takes for one of its test texts.
"""
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..classify.baseline import BagOfWords, class_frequencies
from ..classify.classifier import Classifier
from ..cli.device import check_device
from ..cli.parser import StopSignal, run
from ..cli.rows import load_dataset, write_predictions
from ..cli.settings import read_settings
from ..errors import Stopped
from ..files import check_fields, find_model, is_number, read_json, write_json
from ..training.metrics import METRICS, evaluate
from ..tuning.base import fingerprint
from .configurations import Configuration

TIMED_TEXTS, TIMED_BATCH, TIMED_PASSES = 200, 32, 3           # of `milliseconds_per_text`
PR_SET_PDEATHSIG = 1            # Linux, prctl.h: a signal for this process when its parent ends
IS_METRICS = (lambda v: isinstance(v, dict) and all(is_number(v.get(name)) for name in METRICS),
              "an object with the metrics")
IS_COST = (lambda v: v is None or is_number(v) and v >= 0, "a number, or null")
IS_COUNTS = (lambda v: isinstance(v, dict) and all(
    isinstance(pair, list) and len(pair) == 2 for pair in v.values()), "an object of pairs")
COSTS = ("trainable", "memory_mb", "train_seconds", "ms_per_text")
RECORD_FIELDS = {                              # of cell.json, as files.check_fields takes them
    "split": (lambda v: v in ("dev", "test"), "dev or test"), "dev": IS_METRICS, "test": IS_METRICS,
    **dict.fromkeys(COSTS, IS_COST), "learned_before?": IS_COUNTS}


@dataclass
class Run:
    """size: training rows a class, or "all"; record: None until `run_once` has returned it."""
    configuration: Configuration
    size: int | str
    seed: int
    folder: Path
    record: dict | None = None

    @property
    def is_finished(self):
        return self.record["state"] == "finished"


def folder_of(out, configuration, size, seed):
    """The folder of a run. Its name ends with a hash of the settings."""
    s = configuration.settings
    decisive = {**s.decisive_under_old_names(), "model": configuration.model}
    name = re.sub(r"[^\w.=-]", "_", Path(configuration.model.partition("@")[0]).name)[:40]
    parts = [name] if configuration.is_baseline else [name, s.method, s.readout]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    return Path(out) / "cells" / "-".join([*parts, str(size), str(seed), digest])


def run_once(run, sha256):
    """Train a run, unless it is finished already -> (its record, was it trained now?).

    sha256: {file name: sha256} of the data. The record, which cell.json holds: "state" ("begun",
    "finished" or "not possible"), "made_from" and "settings"; if it is not possible, "reason"; if
    it is finished, the results of `run_train` or `run_baseline`. Raises Stopped.
    """
    c, folder, path = run.configuration, run.folder, run.folder / "cell.json"
    rows = 0 if run.size == "all" else run.size
    s = replace(c.settings, seed=run.seed, rows_per_class=rows, out=str(folder))
    made_from = {"settings": s.decisive_under_old_names(), "data": sha256}
    if not c.is_baseline:
        made_from["model"] = fingerprint(find_model(s.model))
    earlier = read_json(path) if path.exists() else {}
    same = earlier.get("made_from") == made_from
    finished = earlier.get("state") == "finished"
    if same and finished and (folder / "predictions.csv").exists():
        return check_fields(earlier, RECORD_FIELDS, path), False
    record = {"state": "begun", "made_from": made_from, "settings": asdict(s)}
    write_json(path, record)                               # train reads its settings from here
    if c.is_baseline:
        record |= run_baseline(c.model, s, folder)
    else:
        record |= run_train(folder, overwrite=finished or not same, timed=run.seed == 0)
    write_json(path, record)
    return record, True


def run_module(module, *arguments, printed, errors):
    """Run `python -m MODULE ARGUMENTS` -> exit code. printed, errors: files for its two outputs.

    Ctrl-C is passed on once, so that the child saves its state; then Stopped is raised. The child
    has a session of its own: else it would get the terminal's Ctrl-C too, and a second signal would
    end it before it has saved. On Linux the child is stopped if this process is killed.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def end_with_parent():
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) or os.getppid() != parent:
            os._exit(1)
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with open(printed, "wb") as stdout, open(errors, "wb") as stderr, StopSignal() as stop:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)], stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=stderr, env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True, preexec_fn=libc and end_with_parent)
        passed_on = False
        try:
            while child.poll() is None:
                time.sleep(0.05)
                if stop.asked and not passed_on:
                    passed_on = True
                    child.terminate()                      # train treats SIGTERM like Ctrl-C
        finally:
            if child.poll() is None:                       # a second Ctrl-C
                child.kill()
                child.wait()
    if stop.asked:
        raise Stopped("stopped; the same command goes on from there")
    return child.returncode


def last_error(path):
    """The last line with "error: " in a file of standard error, else its last line."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def run_train(folder, overwrite, timed):
    """Train with the settings in the folder's cell.json -> results, for the record: "split" (test,
    or dev without test rows), "dev" and "test" (metrics; "test" of that split), COSTS and more.
    timed: is ms_per_text measured?"""
    files = {"printed": folder / "stdout.txt", "errors": folder / "stderr.txt"}
    again = ["--overwrite"] if overwrite else []
    code = run_module("minillmclf.train", "--config", folder / "cell.json", "--out", folder, *again,
                      **files)
    if code:
        killed = f"ended by signal {-code}, as for want of memory"
        reason = killed if code < 0 else last_error(files["errors"])
        return {"state": "not possible", "reason": reason}
    record, ms = read_json(folder / "run.json"), None
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    [dev] = [epoch for epoch in map(json.loads, lines) if epoch["epoch"] == record["best_epoch"]]
    if timed and run_module("minillmclf.compare.runs", folder, **files) == 0:
        ms = float(files["printed"].read_text())
    for file in files.values():
        file.unlink()
    return {"state": "finished", "split": record["split"], "dev": dev,
            "dev_rows": record["data"]["rows"]["dev"], "test": list(record["results"].values())[-1],
            "trainable": record["parameters"]["trainable"],
            "memory_mb": record["timing"]["peak_memory_mb"],
            "train_seconds": record["timing"]["train_seconds"], "ms_per_text": ms,
            "learned_before": record.get("learned_before", {})}


def run_baseline(name, s, folder):
    """Fit a baseline in this process -> results, for the record."""
    data = load_dataset(replace(s, readout="labels"))    # labels: any number of texts a row
    final = "test" if data.test else "dev"
    texts, targets = {}, {}
    for split in ("train", "dev", final):
        texts[split] = [e.texts for e in getattr(data, split)]
        targets[split] = [data.labels.index(e.label) for e in getattr(data, split)]
    started, parameters = time.perf_counter(), 0
    if name == "bag-of-words":
        bag = BagOfWords(len(data.labels))
        bag.fit(texts["train"], targets["train"], texts["dev"], targets["dev"])
        predict, parameters = bag.predict, sum(w.numel() for w in bag.weights)
    else:
        def predict(texts):
            return class_frequencies(targets["train"], len(texts), len(data.labels))
    seconds = time.perf_counter() - started
    write_predictions(folder / "predictions.csv", getattr(data, final),
                      predict(texts[final]), data.labels)
    metrics = {split: evaluate(predict(texts[split]), targets[split], data.labels)
               for split in ("dev", final)}
    return {"state": "finished", "split": final, "dev": metrics["dev"], "dev_rows": len(data.dev),
            "test": metrics[final], "trainable": parameters, "memory_mb": None,
            "train_seconds": round(seconds, 1),
            "ms_per_text": milliseconds_per_text(predict, texts[final])}


def milliseconds_per_text(predict, texts):
    """Time of `predict` for a text, tokenization included: up to 200 texts in batches of 32, first
    a pass to warm up, then the median of 3 passes."""
    texts, passes = texts[:TIMED_TEXTS], []
    for _ in range(1 + TIMED_PASSES):
        started = time.perf_counter()
        for first in range(0, len(texts), TIMED_BATCH):
            predict(texts[first:first + TIMED_BATCH])
        passes.append((time.perf_counter() - started) / len(texts) * 1000)
    return round(statistics.median(passes[1:]), 3)


def main(arguments=None):
    [folder] = map(Path, arguments or sys.argv[1:])
    s = read_settings({}, folder / "run.json")
    data = load_dataset(s)
    model = Classifier.load(folder, device=check_device(s.device))
    print(milliseconds_per_text(model.predict, [e.texts for e in data.test or data.dev]))
    return 0


if __name__ == "__main__":
    run(main)
