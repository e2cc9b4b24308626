"""Cross-validation: a model for each fold predicts the fold's held-out rows, and the test rows.

Not here: which rows share a fold (split.py), reading files (reading.py), metrics (measuring.py),
submission.csv's form (submission.py).
"""
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..classify.calibrate import fit_temperature
from ..classify.classifier import Classifier
from ..cli import training_run
from ..cli.build import classifier_options
from ..cli.checks import refuse_multi_label
from ..cli.device import check_device
from ..cli.learned_rows import count_before_folds, learned_warning
from ..cli.outputs import check_out_file, check_out_folder, holds_only, holds_record
from ..cli.rows import draw_rows, encode_examples
from ..cli.run_folder import (FOLD_LINES, MOVING_FOLDER, RunFolder, compare_with_run, out_folder,
                              stopped_line)
from ..cli.settings import read_settings
from ..errors import InputError, Stopped
from ..files import NEW_RUN, find_model, remove_path, write_json, write_text
from ..models.tensor_files import open_tensors, write_tensors
from ..text.cells import natural_order
from ..text.data import Dataset, find_data
from ..training.parallel import processes as parallel
from ..tuning.quant_files import open_checkpoint
from .measuring import (evaluate_folds, mean_probabilities, report_lines,
                        submission_calibration)
from .reading import Source, read_source, read_test
from .split import assign_folds, choose_dev_rows, straddling_warning
from .submission import (SubmissionForm, check_submission, oof_text, refuse_other_submission,
                         scores_key, submission_text)

FLAGS = ("folds", "group", "test", "sample", "temperature", "config", "overwrite")
RESULTS = ("folds.json", "oof.csv", "submission.csv")


@dataclass
class Plan:
    """What to train and to predict. source: the rows of --data; folds: the fold of each of them;
    runs: (Settings, Dataset) for each fold; test and form: None without --test."""
    source: Source
    labels: list
    folds: list
    runs: list
    test: Source | None
    form: SubmissionForm | None


def cross_validate(a):
    """Run the command, in every process of torchrun. a: its flags -> exit code."""
    flags = {key: value for key, value in vars(a).items() if key not in FLAGS}
    s = read_settings(flags, a.config)
    refuse_multi_label(s, "folds")
    out = Path(s.out or f"{out_folder(s)}-folds-{a.folds}")
    reads = [("--data", find_data(s.data)), ("--test", a.test), ("--sample", a.sample),
             ("--model", find_model(s.model))]
    check_out_folder(out, is_own(out), a.overwrite, reads)
    for name in RESULTS:
        check_out_file(out / name, True, reads)
    plan = make_plan(a, s, out)
    folder = FoldsFolder(out)
    with folder.lock():
        place = folds_training_folder(plan.runs, out, a.overwrite)
        logits, test_logits = train_and_predict(plan, place, a.overwrite)
        targets = [plan.labels.index(e.label) for e in plan.source.examples]
        metrics = evaluate_folds(logits, targets, plan.folds, plan.labels)
        fitted = fit_temperature(logits, targets)
        used = submission_calibration(fitted, metrics, a.temperature)
        record = {"settings": vars(s) | {"out": str(out)}, "k": a.folds, "group": a.group,
                  "labels": plan.labels, "finished": True, "temperature": used.temperature,
                  "fitted_temperature": fitted.temperature, **metrics,
                  **count_before_folds(s, plan.source.examples)}
        probabilities = mean_probabilities(test_logits, used) if plan.test else None
        write_results(plan, record, logits, probabilities, place, out)
        folder.move_into_place()
    print("\n" + "\n".join(report_lines(metrics, plan.folds, fitted.temperature, used.temperature)))
    submission = f", submission.csv ({len(plan.form.ids)} rows, checked)" if plan.test else ""
    print(f"\nsaved in {out}: oof.csv, folds.json{submission}")
    print("".join(f"{line}\n" for line in learned_warning(record)), end="")
    return 0


def is_own(out):
    """Does OUT hold a cross-validation, or what a killed one has left before its first record?"""
    def paths_of(pattern):
        return [path for at in ("", NEW_RUN, MOVING_FOLDER) for path in (out / at).glob(pattern)]
    return (holds_record(paths_of("folds.json"), lambda record: {"settings", "k"} <= set(record))
            or holds_record(paths_of("fold-*/run.json"),
                            lambda record: record["data"]["split"].startswith("fold "))
            or holds_only(out, ()))


def make_plan(a, s, out):
    """Read all files and divide the rows into folds, so that mistakes show before training."""
    source = read_source(find_data(s.data), s, a.group)
    labels = natural_order({e.label for e in source.examples})
    if len(labels) < 2:
        raise InputError(f"{source.path}: {len(source.examples)} rows to train on, of "
                         f"{len(labels)} classes: add rows of two classes or more")
    test, form = read_test(a, s, labels, source)
    folds = assign_folds([e.label for e in source.examples], source.groups, a.folds, s.seed)
    runs = [(replace(s, out=str(out / f"fold-{fold + 1}")),
             fold_dataset(s, source, folds, fold, labels)) for fold in range(a.folds)]
    return Plan(source, labels, folds, runs, test, form)


def fold_dataset(s, source, folds, fold, labels):
    """The Dataset of a fold. test: its rows; dev: whole groups of the others; train: the rest."""
    others = [i for i, own in enumerate(folds) if own != fold]
    in_dev = choose_dev_rows(others, source.examples, source.groups, f"{s.seed}:{fold}")
    train = [source.examples[i] for i in others if i not in in_dev]
    dev = [source.examples[i] for i in sorted(in_dev)]
    test = [e for e, own in zip(source.examples, folds) if own == fold]
    missing = sorted(set(labels) - {e.label for e in train})
    if missing or not dev:
        why = f"none of class {missing[0]!r} in train" if missing else "both are needed"
        raise InputError(f"{source.path}, fold {fold + 1}: {len(train)} train and {len(dev)} dev "
                         f"rows, {why}: take fewer or more folds, or add rows in other groups")
    lines = json.dumps([[e.row for e in part] for part in (train, dev, test)]).encode()
    if s.rows_per_class:
        train = draw_rows(train, s.rows_per_class, s.seed)
    sha256 = {source.path.name: source.sha256, FOLD_LINES: hashlib.sha256(lines).hexdigest()}
    return Dataset(f"{source.path.stem}, fold {fold + 1}", train, dev, test, labels, source.columns,
                   {"path": str(s.data), "sha256": sha256,
                    "split": f"fold {fold + 1} of {max(folds) + 1}", "seed": s.seed,
                    "dev_from_train": True})


def folds_training_folder(runs, out, overwrite):
    """Where to train the folds: in OUT/.new if they are to replace folds in OUT, or go on with such
    folds that were stopped; else in OUT."""
    if overwrite:
        is_taken = any((out / name).exists() for name in RESULTS) or any(out.glob("fold-*"))
        parallel.barrier()
        if parallel.is_main_process():
            remove_path(out / NEW_RUN)
        parallel.barrier()
        return out / NEW_RUN if is_taken else out
    place = out
    try:
        for s, data in runs:
            folder = out / NEW_RUN / Path(s.out).name
            if (folder / "run.json").exists():
                place = out / NEW_RUN
                if compare_with_run(s, folder, data)[0]:       # the settings that differ
                    return out
    except InputError:                                         # a damaged run.json
        return out
    return place


class FoldsFolder(RunFolder):
    """OUT, as in cli/run_folder.py, but with runs in fold-1, ... and folds.json as the record."""
    RECORD_FILE = "folds.json"

    def remove_files(self, folder):
        """Remove the files of earlier folds, their record first."""
        results = [folder / name for name in RESULTS]
        for path in [*results, *folder.glob("fold-*/scores-*.safetensors")]:
            remove_path(path)
        for fold in filter(Path.is_dir, folder.glob("fold-*")):
            super().remove_files(fold)
            if not any(fold.iterdir()):
                fold.rmdir()


def train_and_predict(plan, place, overwrite):
    """-> out-of-fold logits (N, C) in float64, and a list of each model's test logits (M, C)."""
    folders = [place / Path(s.out).name for s, _ in plan.runs]
    check_before_training(plan, place, folders, overwrite)
    for line in straddling_warning(plan.source.examples, plan.folds):
        print(line, flush=True)
    logits = torch.empty(len(plan.folds), len(plan.labels), dtype=torch.float64)
    folds, test_logits = torch.tensor(plan.folds), []
    for fold, ((s, data), folder) in enumerate(zip(plan.runs, folders)):
        rows = f"{len(data.train)} train, {len(data.dev)} dev, {len(data.test)} held-out rows"
        print(f"\n[fold {fold + 1} of {len(folders)}] {rows}", flush=True)
        # only the first fold tells of its rows and model. Not say_nothing: that hides the bar too
        train_fold(s, data, folder, overwrite, print if fold == 0 else lambda line: None)
        logits[folds == fold] = fold_logits(s, folder, "held-out", data.test)
        if plan.test:
            test_logits.append(fold_logits(s, folder, "test", plan.test.examples))
    return logits, test_logits


def check_before_training(plan, place, folders, overwrite):
    """InputError, before any fold is trained, for another run in the folder of a fold, for another
    submission in `place`, and for a test row without a token."""
    for (s, data), folder in zip(plan.runs, folders):
        training_run.finished_record(s, folder, data)
    if plan.test and not overwrite:
        refuse_other_submission(place / "submission.csv", plan.form, folders[0], plan.test.examples)
    if plan.test:
        s, data = plan.runs[0]
        options = classifier_options(s, data.columns)
        empty = Classifier.empty(open_checkpoint(s.model), plan.labels, **options)
        encode_examples(empty, plan.test.examples)


def train_fold(s, data, folder, overwrite, say):
    """Train a fold's model, unless it is finished. overwrite: was it given? (for the message)"""
    if training_run.finished_record(s, folder, data):
        print(f"{folder}: finished already")
    elif training_run.train_run(s, data, folder, False, say) is None:
        raise Stopped(stopped_line(folder, overwrite))


def fold_logits(s, folder, name, examples):
    """The logits (N, C) of the examples by a fold's saved model, on the CPU in float64. They are
    cached in scores-NAME.safetensors with a hash of the run and of the texts. Each process loads
    the whole model here, even with --parallel fsdp."""
    parallel.barrier()                                        # until the model is saved
    path, key = folder / f"scores-{name}.safetensors", scores_key(folder, examples)
    if path.exists():
        with open_tensors(path) as file:
            same = file.metadata() == key and "scores" in file.keys()
            cached = file.get_tensor("scores").double() if same else None
        if same and cached.dim() == 2 and len(cached) == len(examples) and cached.isfinite().all():
            return cached
    model = Classifier.load(folder, device=check_device(s.device))
    encoded, _ = encode_examples(model, examples)
    logits = parallel.shared_logits(model, encoded, s.eval_batch_size).contiguous()
    if parallel.is_main_process():
        write_tensors(path, {"scores": logits}, key)
    return logits.double()


def write_results(plan, record, logits, probabilities, place, out):
    """Write oof.csv, submission.csv, folds.json to `place`. probabilities: (M, C) of test rows."""
    files = {"oof.csv": oof_text(plan.source, logits, plan.folds, plan.labels)}
    if plan.test:
        files["submission.csv"] = submission_text(plan.form, plan.test.ids, probabilities)
        check_submission(files["submission.csv"], plan.form, out / "submission.csv")
    if parallel.is_main_process():
        for name, text in files.items():
            write_text(place / name, text)
        write_json(place / "folds.json", record)
