"""Cross-validation: train a model for each fold, predict its held-out rows, average the test rows.

Not here: which rows share a fold (split.py), reading files (reading.py), the form of a submission.
"""
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import train
from ..classify.calibrate import fit_temperature
from ..classify.classifier import Classifier
from ..cli.build import device_of
from ..cli.rows import draw_rows
from ..cli.run_folder import RunFolder, differences
from ..cli.settings import read_settings, refuse_multi_label
from ..cli.tables import csv_text
from ..errors import InputError, Stopped
from ..files import NEW, check_folder, check_out, find_model, remove, write_text
from ..models.tensor_files import open_tensors, write_tensors
from ..text.data import Dataset, natural_order
from ..training.metrics import evaluate
from ..training.parallel import processes as parallel
from .reading import Source, find_data, read_source, read_test
from .split import dev_rows, share_out
from .submission import Form, check_submission, submission_text

FLAGS = ("folds", "group", "test", "sample", "temperature", "config", "overwrite")
RESULTS = ("folds.json", "oof.csv", "submission.csv")
SHOWN = ("accuracy", "macro_f1", "log_loss", "ece")
LINE = "{:<24}{:>8}{:>10}{:>10}{:>8}"


@dataclass
class Plan:
    """What to train and to predict. folds: the fold of each row of the source; runs: (Settings,
    Dataset) for each fold; test and form: None without --test."""
    source: Source
    labels: list
    folds: list
    runs: list
    test: Source | None
    form: Form | None


def cross_validate(a):
    """The command, run by every process of torchrun. a: its flags -> exit code."""
    flags = {key: value for key, value in vars(a).items() if key not in FLAGS}
    s = read_settings(flags, a.config)
    refuse_multi_label(s, "folds")
    name = f"{Path(s.model).name}-{Path(s.data).stem}-{s.method}-{s.seed}-folds-{a.folds}"
    out = Path(s.out or f"runs/{name}")
    reads = [("--data", find_data(s.data)), ("--test", a.test), ("--sample", a.sample),
             ("--model", find_model(s.model))]
    check_folder(out, any(out.glob("fold-*")), a.overwrite, reads)
    for name in RESULTS:
        check_out(out / name, True, reads)
    plan = make_plan(a, s, out)
    folder = FoldsFolder(out)
    with folder.held():
        place = place_of(plan.runs, out, a.overwrite)
        logits, test_logits = train_and_predict(plan, place, a.overwrite)
        targets = [plan.labels.index(e.label) for e in plan.source.examples]
        found = judge(logits, targets, plan.folds, plan.labels)
        fitted = fit_temperature(logits, targets)
        used = applied(fitted, found, a.temperature)
        record = {"settings": vars(s) | {"out": str(out)}, "k": a.folds, "group": a.group,
                  "labels": plan.labels, "finished": True, "temperature": used.temperature,
                  "fitted_temperature": fitted.temperature, **found}
        write_results(plan, record, logits, fold_mean(test_logits, used) if plan.test else None,
                      place, out)
        folder.settle()
    print("\n" + "\n".join(report(found, plan.folds, fitted.temperature, used.temperature)))
    submission = f", submission.csv ({len(plan.form.ids)} rows, checked)" if plan.test else ""
    print(f"\nsaved in {out}: oof.csv, folds.json{submission}")
    return 0


def make_plan(a, s, out):
    """Read all files and divide the rows into folds: mistakes show before anything is trained."""
    source = read_source(find_data(s.data), s, a.group)
    labels = natural_order({e.label for e in source.examples})
    if len(labels) < 2:
        raise InputError(f"{source.path}: {len(source.examples)} rows to train on, of "
                         f"{len(labels)} classes: add rows of two classes or more")
    test, form = read_test(a, s, labels, source)
    folds = share_out([e.label for e in source.examples], source.groups, a.folds, s.seed)
    runs = [(replace(s, out=str(out / f"fold-{fold + 1}")),
             fold_dataset(s, source, folds, fold, labels)) for fold in range(a.folds)]
    return Plan(source, labels, folds, runs, test, form)


def fold_dataset(s, source, folds, fold, labels):
    """The data of one fold: test is the held-out fold; dev is taken from the rest, by groups."""
    own = [i for i, f in enumerate(folds) if f != fold]
    chosen = dev_rows([source.examples[i].label for i in own], [source.groups[i] for i in own],
                      f"{s.seed}:{fold}")
    dev = {own[i] for i in chosen}
    parts = [[source.examples[i] for i in own if i not in dev],
             [source.examples[i] for i in sorted(dev)],
             [e for e, f in zip(source.examples, folds) if f == fold]]
    missing = sorted(set(labels) - {e.label for e in parts[0]})
    if missing or not parts[1]:
        why = f"none of class {missing[0]!r} in train" if missing else "both are needed"
        raise InputError(f"{source.path}, fold {fold + 1}: {len(parts[0])} train and "
                         f"{len(parts[1])} dev rows, {why}: take fewer or more folds, or add rows "
                         "in other groups")
    lines = json.dumps([[e.row for e in part] for part in parts]).encode()
    if s.rows_per_class:
        parts[0] = draw_rows(parts[0], s.rows_per_class, s.seed)
    sha256 = {source.path.name: source.sha256,
              "lines of train, dev, test": hashlib.sha256(lines).hexdigest()}
    return Dataset(f"{source.path.stem}, fold {fold + 1}", *parts, labels, source.columns, {
        "path": str(s.data), "sha256": sha256, "split": f"fold {fold + 1} of {max(folds) + 1}",
        "seed": s.seed, "dev_from_train": True})


def place_of(runs, out, overwrite):
    """Where the folds are trained: OUT/.new where they replace folds in OUT, else OUT."""
    if overwrite:
        held = (out / "folds.json").exists() or any(out.glob("fold-*/run.json"))
        parallel.barrier()
        if parallel.is_main_process():
            remove(out / NEW)
        parallel.barrier()
        return out / NEW if held else out
    begun = []                                             # for each run in .new, how it differs
    try:
        for s, data in runs:
            folder = out / NEW / Path(s.out).name
            if (folder / "run.json").exists():
                begun.append(differences(s, folder, data)[0])
    except InputError:
        return out
    return out / NEW if begun and not any(begun) else out


class FoldsFolder(RunFolder):
    """OUT as cli/run_folder.py has it, with runs in fold-1, ... and folds.json as the record."""
    RECORD = "folds.json"

    def clear(self, folder):
        """Remove the files of earlier folds, their record first."""
        results = [folder / name for name in RESULTS]
        for path in [*results, *folder.glob("fold-*/scores-*.safetensors")]:
            remove(path)
        for fold in folder.glob("fold-*"):
            super().clear(fold)
            if not any(fold.iterdir()):
                fold.rmdir()


def train_and_predict(plan, place, overwrite):
    """-> out-of-fold logits (N, C) in float64, and a list of each model's test logits."""
    folders = [place / Path(s.out).name for s, _ in plan.runs]
    for (s, data), folder in zip(plan.runs, folders):      # InputError for another run there,
        train.open_run(s, folder, data, False)             # before any fold is trained
    logits = torch.empty(len(plan.folds), len(plan.labels), dtype=torch.float64)
    folds, test_logits = torch.tensor(plan.folds), []
    for fold, ((s, data), folder) in enumerate(zip(plan.runs, folders)):
        print(f"\n[fold {fold + 1} of {len(folders)}] {len(data.train)} train, {len(data.dev)} "
              f"dev, {len(data.test)} held-out rows", flush=True)
        train_fold(s, data, folder, overwrite, print if fold == 0 else lambda line: None)
        logits[folds == fold] = fold_logits(s, folder, "held-out", [e.texts for e in data.test])
        if plan.test:
            texts = [e.texts for e in plan.test.examples]
            test_logits.append(fold_logits(s, folder, "test", texts))
    return logits, test_logits


def train_fold(s, data, folder, overwrite, say):
    """Train a fold's model, unless it is finished. overwrite: only for the message after Ctrl-C."""
    if train.open_run(s, folder, data, False):
        print(f"{folder}: finished already")
    elif train.train_run(s, data, folder, False, say) is None:
        raise Stopped(f"stopped; the state is saved in {folder}. "
                      f"The same command{' without --overwrite' * overwrite} goes on from there.")


def fold_logits(s, folder, name, texts):
    """A fold's saved model -> logits (N, C) of the texts, on the CPU in float64.

    They are cached in scores-NAME.safetensors with a hash of the run and of the texts. Each process
    loads the whole model here, with --parallel fsdp too.
    """
    parallel.barrier()                                        # until the model is saved
    path, run_json = folder / f"scores-{name}.safetensors", (folder / "run.json").read_bytes()
    key = {"key": hashlib.sha256(run_json + json.dumps(texts).encode()).hexdigest()}
    if path.exists():
        with open_tensors(path) as file:
            same = file.metadata() == key and "scores" in file.keys()
            kept = file.get_tensor("scores").double() if same else torch.empty(0)
        if kept.shape[:1] == (len(texts),) and kept.dim() == 2 and kept.isfinite().all():
            return kept
    model = Classifier.load(folder).to(device_of(s))
    logits = parallel.shared_logits(model, model.encode(texts)[0], s.eval_batch_size).contiguous()
    if parallel.is_main_process():
        write_tensors(path, {"scores": logits}, key)
    return logits.double()


def cross_fitted(logits, targets, folds):
    """Divide the logits (N, C) of each fold by the temperature fitted to all *other* folds."""
    out, folds, targets = torch.empty_like(logits), torch.tensor(folds), torch.tensor(targets)
    for fold in folds.unique():
        held = folds == fold
        out[held] = fit_temperature(logits[~held], targets[~held])(logits[held])
    return out


def judge(logits, targets, folds, labels):
    """Metrics of out-of-fold logits (N, C) -> {"folds": of each fold, "mean" and "sd" of these,
    "all": of all rows, "calibrated": of all rows after `cross_fitted`}."""
    folds_of_rows, targets_of_rows = np.array(folds), np.array(targets)

    def measured(logits, rows):
        return evaluate(logits.softmax(-1).numpy()[rows], targets_of_rows[rows], labels)
    each = [measured(logits, folds_of_rows == fold) for fold in range(max(folds) + 1)]
    every = slice(None)
    return {"folds": each,
            "mean": {name: float(np.mean([m[name] for m in each])) for name in SHOWN},
            "sd": {name: float(np.std([m[name] for m in each], ddof=1)) for name in SHOWN},
            "all": measured(logits, every),
            "calibrated": measured(cross_fitted(logits, targets, folds), every)}


def applied(fitted, found, asked):
    """The Calibration of a submission: `fitted` if cross-fitted temperatures lower the log loss and
    --temperature (`asked`) is auto, else temperature 1."""
    helps = found["calibrated"]["log_loss"] < found["all"]["log_loss"]
    return fitted if helps and asked == "auto" else replace(fitted, temperature=1.0)


def fold_mean(logits, calibration):
    """List of the models' logits (N, C) -> mean of their probabilities (N, C). Where models differ,
    the mean is less confident than each of them."""
    return (sum(calibration(one).softmax(-1) for one in logits) / len(logits)).numpy()


def report(found, folds, fitted, used):
    """The printed table -> lines. fitted, used: temperatures, `used` being 1 if not applied."""
    rows = {f"fold {i} ({folds.count(i - 1)} rows)": m for i, m in enumerate(found["folds"], 1)}
    rows |= {"sd over the folds": found["sd"], f"all {len(folds)} rows": found["all"],
             "all, calibrated": found["calibrated"]}
    lines = [LINE.format("out of fold", "accuracy", "macro F1", "log loss", "ECE")]
    lines += [LINE.format(name, *(f"{m[key]:.3f}" for key in SHOWN)) for name, m in rows.items()]
    before, after = found["all"]["log_loss"], found["calibrated"]["log_loss"]
    if used == fitted:
        verdict = "applied"
    elif after < before:
        verdict = "NOT applied: --temperature off"
    else:
        verdict = "NOT applied: it does not lower the log loss"
    return lines + ["", f"temperature {fitted:.3f} (fitted to all rows); log loss {before:.4f} "
                        f"before, {after:.4f} after, where each fold's temperature is fitted to "
                        f"the other folds; {verdict}"]


def oof_text(source, logits, folds, labels):
    """oof.csv: id, line in the source, fold, label, predicted label, probability of each class."""
    rows = []
    for i, (example, p) in enumerate(zip(source.examples, logits.softmax(-1).numpy())):
        rows.append([source.ids[i], example.row, folds[i] + 1, example.label, labels[p.argmax()],
                     *(f"{x:.8f}" for x in p)])
    header = ["id", "line", "fold", "label", "predicted", *(f"p_{label}" for label in labels)]
    return csv_text(header, rows)


def write_results(plan, record, logits, probabilities, place, out):
    """Write oof.csv, submission.csv, folds.json to `place`. probabilities (N, C): of test rows."""
    files = {"oof.csv": oof_text(plan.source, logits, plan.folds, plan.labels)}
    if plan.test:
        files["submission.csv"] = submission_text(plan.form, plan.test.ids, probabilities)
        check_submission(files["submission.csv"], plan.form, out / "submission.csv")
    files["folds.json"] = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    if parallel.is_main_process():
        for name, text in files.items():
            write_text(place / name, text)
