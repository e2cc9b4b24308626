"""Damaged run folders: does each command go on, start anew, or refuse in one line?

  python tests/reference/fuzz_runs.py --count 2000 --seed 0

Good: a finished run, one that was stopped (state and best weights), folds finished and stopped, a
comparison, answers that were stopped (FILE.part). One file of a copy is damaged; then the command
that reads it is given once more: train, folds, compare, predict, report, choose, evaluate. Answers
must be finite, and answers that go on must be those of a run that was not stopped. What is counted
as bad: fuzzing.py.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from fuzzing import change_file, main
from small import bert_folder, data_file

from minillmclf.compare import runs, __main__ as compare
from minillmclf.choose import __main__ as choose
from minillmclf import evaluate, train
from minillmclf.folds import __main__ as folds
from minillmclf.predict import __main__ as predict, stream
from minillmclf.report import __main__ as report
from minillmclf.errors import Stopped
from minillmclf.training import loop

KINDS = (
    "train",
    "train",
    "go on",
    "go on",
    "go on",
    "folds",
    "folds go on",
    "compare",
    "compare",
    "predict",
    "predict",
    "report",
    "report",
    "report",
    "choose",
    "evaluate",
    "evaluate",
)
FILES = {
    "train": ("run.json", "metrics.jsonl", "config.json"),
    "go on": ("run.json", "state.safetensors", "state.safetensors", "best.safetensors"),
    "folds": (
        "folds.json",
        "fold-1/run.json",
        "fold-2/scores-held-out.safetensors",
        "fold-1/config.json",
    ),
    "folds go on": ("fold-1/run.json", "fold-1/state.safetensors", "fold-1/best.safetensors"),
    "compare": ("table.json", "settings.json"),
    "predict": ("a.csv.part.json", "a.csv.part.json", "a.csv.part"),
    "report": ("run.json", "metrics.jsonl", "predictions.csv"),
    "choose": ("table.json", "settings.json"),
    "evaluate": ("run.json", "config.json", "tuned.json", "adapter/adapter_model.safetensors"),
}


def stopped(command, arguments, step):
    """Run a command and stop it as its step begins."""
    real, count = loop.take_step, []

    def take_step(*given, **more):
        count.append(1)
        if len(count) == step:
            os.kill(os.getpid(), 15)
        return real(*given, **more)

    loop.take_step = take_step
    try:
        command.main(arguments)
        raise AssertionError("it was not stopped")
    except Stopped:
        pass
    finally:
        loop.take_step = real


def process(module, *arguments, printed, errors):
    """runs.process without a process: this one is a fork already."""
    from minillmclf.errors import InputError

    printed.write_text("1.0")
    errors.write_text("")
    if module == "minillmclf.train":
        try:
            train.main([str(one) for one in arguments])
        except InputError as error:
            errors.write_text(f"error: {error}")
            return 2
    return 0


def prepare(folder):
    runs.run_module, stream.WINDOW = process, 4
    base, data = bert_folder(folder / "base", layers=1), data_file(folder / "data.csv", 24, 6, 6)
    common = [
        "--data",
        str(data),
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--max-length",
        "16",
        "--baselines",
        "off",
    ]
    own = ["--model", str(base), *common, "--save-every", "1"]
    train.main([*own, "--method", "lora", "--out", str(folder / "evaluate")])
    train.main([*own, "--out", str(folder / "train")])
    stopped(train, [*own, "--out", str(folder / "go on")], 5)
    folds.main([*own, "--folds", "2", "--out", str(folder / "folds")])
    stopped(folds, [*own, "--folds", "2", "--out", str(folder / "folds go on")], 4)
    models = ["--models", "majority", str(base), "--seeds", "1", *common]
    compare.main([*models, "--out", str(folder / "compare")])
    shutil.copytree(folder / "train", folder / "report")
    shutil.copytree(folder / "compare", folder / "choose")
    asked = ["--model", str(folder / "train"), "--data", str(data), "--batch-size", "4"]
    predict.main([*asked, "--out", str(folder / "whole.csv")])
    (folder / "predict").mkdir()
    real = stream.PartFile.add

    def add(self, *given):
        real(self, *given)
        if self.rows == 12:
            raise KeyboardInterrupt

    stream.PartFile.add = add
    try:
        predict.main([*asked, "--out", str(folder / "predict" / "a.csv")])
    except Stopped:
        stream.PartFile.add = real
    return {
        "folder": folder,
        "own": own,
        "models": models,
        "asked": asked,
        "base": str(base),
        "data": str(data),
    }


def files_of(kind, run):
    """The files that are damaged, some twice as often."""
    found = [run / name for name in FILES[kind] if (run / name).is_file()]
    return found + (
        sorted(run.glob("cells/*/cell.json"))
        + sorted(run.glob("cells/*/predictions.csv"))
        + sorted(run.glob("cells/*/run.json"))
    ) * 2 * (kind == "compare")


def case(good, draw, folder):
    kind = draw.choice(KINDS)
    run = Path(shutil.copytree(good["folder"] / kind, folder / "run"))
    path = draw.choice(files_of(kind, run))
    done = change_file(path, draw)
    return f"{kind} {path.relative_to(run).name}: {done}", lambda: read(kind, good, run)


def read(kind, good, run):
    """Give the command once more -> what is wrong, or None."""
    out, begun = ["--out", str(run)], time.time()
    if kind in ("train", "go on"):
        train.main([*good["own"], *out])
        return finite(run, begun)
    if kind in ("folds", "folds go on"):
        folds.main([*good["own"], "--folds", "2", *out])
        return finite(run, begun)
    if kind == "compare":
        compare.main([*good["models"], *out])
        return finite(run, begun)
    if kind == "predict":
        predict.main([*good["asked"], "--out", str(run / "a.csv")])
        same = (run / "a.csv").read_bytes() == (good["folder"] / "whole.csv").read_bytes()
        return None if same else "other answers than those of a run that was not stopped"
    if kind == "report":
        report.main(["--run", str(run), "--out", str(run / "page.html")])
    if kind == "choose":
        choose.main(["--models", good["base"], "--data", good["data"], "--comparison", str(run)])
    if kind == "evaluate":
        evaluate.main(
            ["--model", str(run), "--out", str(run / "found.json"), "--data", good["data"]]
        )
        evaluate.main(["--model", str(run)])
        predict.main(["--model", str(run), "a rose and rain"])
        return finite(run, begun)
    return None


def finite(run, begun):
    """Does a result that was written since `begun` hold a number that is not finite? -> which
    file, or None."""
    for path in [
        *run.rglob("run.json"),
        *run.rglob("folds.json"),
        *run.rglob("table.json"),
        *run.rglob("metrics.jsonl"),
    ]:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if (
            any(word in text for word in (": NaN", ": Infinity", ": -Infinity"))
            and path.stat().st_mtime > begun
        ):
            return f"{path.name} holds a number that is not finite"
    return None


if __name__ == "__main__":
    sys.exit(main(__doc__, prepare, case, seconds=60))
