"""python -m minillmclf.folds: k models, each judged on the rows that it has not seen, and their mean for a submission.

  python -m minillmclf.folds --data train.csv --test test.csv --sample sample_submission.csv --folds 5 \\
      --group prompt --out runs/folds

Takes a labelled .csv, .tsv or .jsonl file, and all settings of train. Files with prompt, response_a and response_b are read
as battles of an arena (folds/arena.py). With --preference, or behind a template with --readout labels, these three are read
as they are; a plain head reads two texts, so for it the prompt is joined to the first response: ("prompt, blank line,
response_a", "response_b").

Rows are shared out with equal shares of each class; equal texts, or rows that agree in the columns of --group, stay
together.
OUT/fold-1, ... are runs as of train, with the held-out fold as their test rows; the epoch is chosen on dev rows out of
the fold's own training part. A run that was stopped goes on when the same command is given again; finished folds stay.

  OUT/oof.csv          each row once, with the probabilities of the model that has not seen it ("out of fold")
  OUT/folds.json       metrics of each fold and of all rows, and of these with a temperature fitted to the other folds' rows
  OUT/submission.csv   for the rows of --test: the mean over the folds of probabilities, after a temperature fitted to all
                       out-of-fold rows, if temperatures lower the log loss of rows that they were not fitted to; in the
                       columns and rows of --sample, checked; else id and the winner columns of the data, or p_CLASS
"""
import argparse
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..cli.parser import Parser, Stopped, run
from ..errors import InputError
from ..files import check_folder, check_out, find_model, remove
from ..cli.settings import add_settings, read_settings, refuse_several
from .submission import Form, check_submission, read_form, submission_text, table_text

SHOWN = ("accuracy", "macro_f1", "log_loss", "ece")


@dataclass
class Source:
    """One file as the command needs it."""
    path: Path
    examples: list
    ids: list
    groups: list                  # a text for each row: rows with the same one belong together
    columns: tuple                # names of an example's texts
    sha256: str
    arena: bool
    winners: dict                 # label -> the column of --data that names this winner; {}: one column names the label


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.folds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folds", type=int, default=5, help="how many [5]")
    p.add_argument("--group", default="", help="column(s) of --data, comma between: rows that agree in them share a fold "
                                               "(default: equal texts do)")
    p.add_argument("--test", help="a file of rows to answer; labels are not needed")
    p.add_argument("--sample", help="a sample submission for --test: id, and a column for each class")
    p.add_argument("--temperature", choices=["auto", "off"], default="auto", help="auto divides the logits of a submission by a "
                   "temperature, where this lowers the log loss out of fold [auto]")
    p.add_argument("--config", help="a run.json: take its settings, flags go over them")
    p.add_argument("--overwrite", action="store_true", help="start anew although --out holds folds")
    return add_settings(p).parse_args(arguments)


# ---------------------------------------------------------------- reading

def read_source(path, s, group="", id_column="id", labelled=True):
    """A file of rows -> Source. Of a labelled one with a column split, rows marked test are left out. Raises InputError."""
    from .arena import FIELDS, LABELS, WINNERS, is_arena, read_arena, read_ids
    from ..text.data import read_examples, refuse_blank, row_splits, split_column, usual_texts
    from .split import group_key, read_groups
    from ..text.table_files import read_table
    table = read_table(path, s.quoting)
    arena = is_arena(table.columns) and not (s.text_column or s.label_column)
    if arena:
        examples, columns = read_arena(path, labelled, s.quoting)[0], FIELDS
    else:
        examples = read_examples(path, s.text_column or None, s.label_column or None, labelled,
                                 quoting=s.quoting)
        columns = tuple(c.strip() for c in s.text_column.split(",")) if s.text_column else usual_texts(table)
    from ..cli.build import task_kind
    kind = task_kind(s)
    if arena and s.readout == "head" and kind.TEXTS < 3:
        examples = [replace(e, texts=(f"{e.texts[0]}\n\n{e.texts[1]}", e.texts[2])) for e in examples]
        columns = ("text_a", "text_b")
    kind.check_columns(columns, s.readout)
    refuse_blank(path, examples)
    groups = read_groups(table, group) if group else [group_key(e.texts) for e in examples]
    winners = dict(zip(LABELS, WINNERS)) if arena and set(WINNERS) <= set(table.columns) else {}
    source = Source(path, examples, read_ids(table, id_column), groups, columns, table.sha256, arena, winners)
    if labelled and split_column(table):
        return without_test(source, row_splits(table))
    return source


def without_test(source, splits):
    """Source without the rows that the file marks as test, a split for each row."""
    keep = [i for i, split in enumerate(splits) if split != "test"]
    if len(keep) < len(splits):
        print(f"{source.path}: {len(splits) - len(keep)} of {len(splits)} rows are marked test in the column split: left out")
    kept = {name: [getattr(source, name)[i] for i in keep] for name in ("examples", "ids", "groups")}
    return replace(source, **kept)


def find_data(name):
    """The file of --data, by its path or as a bundled set."""
    from ..text.data import BUNDLED
    bundled = BUNDLED / f"{name}.csv"
    return bundled if Path(name).name == name and os.path.isfile(bundled) else Path(name)


def read_test(a, s, labels, like):
    """The rows of --test and what their submission must look like -> Source, Form; (None, None) without --test."""
    from ..text.table_files import read_table
    if a.test is None:
        if a.sample is not None:
            raise InputError("--sample goes with --test: name the file of the rows to answer")
        return None, None
    sample = a.sample and read_table(Path(a.sample))
    id_column = "id" if not sample or "id" in sample.columns else sample.columns[0]
    test = read_source(Path(a.test), s, id_column=id_column, labelled=False)
    if test.columns != like.columns or test.arena != like.arena:
        raise InputError(f"{a.test}: holds {', '.join(test.columns)}, but {like.path} {', '.join(like.columns)}: the same are "
                         "needed")
    if not sample:
        header = [like.winners.get(name, f"p_{name}") for name in labels]
        return test, Form(["id", *header], [None, *range(len(labels))], test.ids)
    if id_column not in read_table(Path(a.test), s.quoting).columns:
        raise InputError(f"{a.test}: no column '{id_column}', by which {a.sample} names its rows: add it")
    return test, read_form(sample, id_column, labels, like.arena, test)


# ---------------------------------------------------------------- folds

def fold_dataset(s, source, folds, fold, labels):
    """The data of one fold: test is the held-out fold; dev is carved out of the rest, group by group."""
    from ..text.data import Dataset
    from .split import dev_rows
    from ..train import draw_rows
    own = [i for i, f in enumerate(folds) if f != fold]
    chosen = dev_rows([source.examples[i].label for i in own], [source.groups[i] for i in own], f"{s.seed}:{fold}")
    dev = {own[i] for i in chosen}
    parts = [[source.examples[i] for i in own if i not in dev], [source.examples[i] for i in sorted(dev)],
             [e for e, f in zip(source.examples, folds) if f == fold]]
    missing = sorted(set(labels) - {e.label for e in parts[0]})
    if missing or not parts[1]:
        why = f"none of class {missing[0]!r} in train" if missing else "both are needed"
        raise InputError(f"{source.path}, fold {fold + 1}: {len(parts[0])} train and {len(parts[1])} dev rows, {why}: take "
                         "fewer or more folds, or add rows in other groups")
    lines = hashlib.sha256(json.dumps([[e.row for e in part] for part in parts]).encode()).hexdigest()
    if s.rows_per_class:
        parts[0] = draw_rows(parts[0], s.rows_per_class, s.seed)
    return Dataset(f"{source.path.stem}, fold {fold + 1}", *parts, labels, source.columns, {
        "path": str(s.data), "sha256": {source.path.name: source.sha256, "lines of train, dev, test": lines},
        "split": f"fold {fold + 1} of {max(folds) + 1}", "seed": s.seed, "dev_from_train": True})


def train_fold(s, data, folder, overwrite, say):
    """Train a fold's model, unless it is finished. overwrite: what the command's message says."""
    from ..train import open_run, train_run
    if open_run(s, folder, data, False):
        print(f"{folder}: finished already")
    elif train_run(s, data, folder, False, say) is None:
        raise Stopped(f"stopped; the state is saved in {folder}. "
                      f"The same command{' without --overwrite' * overwrite} goes on from there.")


def ask_fold(s, folder, name, texts):
    """The scores (N, C) that a fold's saved model gives to texts, on the CPU in float64.

    They are kept in scores-NAME.safetensors with a hash of the run and of the texts, and taken from there next time. Each
    process holds the whole model here, with --parallel fsdp too.
    """
    import torch

    from ..cli.build import device_of
    from ..classify.classifier import Classifier
    from ..models.tensor_files import open_tensors, write_tensors
    from ..training.parallel import processes as parallel
    parallel.barrier()                                        # until the first process has saved the model
    path = folder / f"scores-{name}.safetensors"
    key = {"key": hashlib.sha256((folder / "run.json").read_bytes() + json.dumps(texts).encode()).hexdigest()}
    if path.exists():
        with open_tensors(path) as file:
            same = file.metadata() == key and "scores" in file.keys()
            kept = file.get_tensor("scores").double() if same else torch.empty(0)
        if kept.shape[:1] == (len(texts),) and kept.dim() == 2 and kept.isfinite().all():
            return kept
    model = Classifier.load(folder).to(device_of(s))
    scores = parallel.scores(model, model.encode(texts)[0], s.eval_batch_size).contiguous()
    if parallel.is_main_process():
        write_tensors(path, {"scores": scores}, key)
    return scores.double()


# ---------------------------------------------------------------- judging

def cross_fitted(scores, truth, folds):
    """Scores (N, C) -> the same, each fold's divided by the temperature that suits all *other* folds."""
    import torch

    from ..classify.calibrate import temperature
    out, folds, truth = torch.empty_like(scores), torch.tensor(folds), torch.tensor(truth)
    for fold in folds.unique():
        held = folds == fold
        out[held] = temperature(scores[~held], truth[~held])(scores[held])
    return out


def judge(scores, truth, folds, labels):
    """Out-of-fold scores (N, C) -> metrics of each fold, their mean and standard deviation, of all rows, and calibrated."""
    import numpy as np

    from ..training.metrics import evaluate

    def measured(scores, rows):
        return evaluate(scores.softmax(-1).numpy()[rows], np.array(truth)[rows], labels)
    every = [measured(scores, [i for i, f in enumerate(folds) if f == fold]) for fold in range(max(folds) + 1)]
    values = {name: [m[name] for m in every] for name in SHOWN}
    return {"folds": every, "mean": {name: float(np.mean(v)) for name, v in values.items()},
            "sd": {name: float(np.std(v, ddof=1)) for name, v in values.items()},
            "all": measured(scores, slice(None)), "calibrated": measured(cross_fitted(scores, truth, folds), slice(None))}


def applied(fitted, found, asked):
    """The calibration of a submission -> Calibration: `fitted`, or one of temperature 1 where it does not lower the log loss
    of rows that it was not fitted to, or where it was not asked for."""
    helps = found["calibrated"]["log_loss"] < found["all"]["log_loss"]
    return fitted if helps and asked == "auto" else replace(fitted, temperature=1.0)


def report(found, folds, fitted, used):
    """The table that a person reads -> lines. fitted, used: temperatures; `used` is 1 where they do not help."""
    rows = {f"fold {i} ({folds.count(i - 1)} rows)": m for i, m in enumerate(found["folds"], 1)}
    rows |= {"sd over the folds": found["sd"], f"all {len(folds)} rows": found["all"], "all, calibrated": found["calibrated"]}
    before, after = found["all"]["log_loss"], found["calibrated"]["log_loss"]
    lines = [f"{'out of fold':<24}accuracy  macro F1  log loss     ECE"]
    lines += [f"{name:<24}{m['accuracy']:8.3f}{m['macro_f1']:10.3f}{m['log_loss']:10.3f}{m['ece']:8.3f}"
              for name, m in rows.items()]
    verdict = "applied" if used == fitted else "NOT applied: --temperature off" if after < before else \
        "NOT applied: it does not lower the log loss"
    return lines + ["", f"temperature {fitted:.3f} (fitted to all rows); log loss {before:.4f} before, {after:.4f} after, "
                        f"where each fold's temperature is fitted to the other folds; {verdict}"]


def fold_mean(scores, calibration):
    """Scores of the same rows by each fold's model, a list of (N, C) -> probabilities (N, C): the mean of what they say
    after the calibration. Where models differ, the mean is less sure than each of them."""
    return (sum(calibration(one).softmax(-1) for one in scores) / len(scores)).numpy()


# ---------------------------------------------------------------- writing

def oof_text(source, scores, folds, labels):
    """oof.csv: id, line in the source, fold, true label, answer, and a probability for each class."""
    rows = [[name, e.row, fold + 1, e.label, labels[p.argmax()], *(f"{x:.8f}" for x in p)]
            for name, e, fold, p in zip(source.ids, source.examples, folds, scores.softmax(-1).numpy())]
    return table_text(["id", "line", "fold", "label", "predicted", *(f"p_{name}" for name in labels)], rows)


# ---------------------------------------------------------------- the command

def main(arguments=None):
    from ..cli.launch import distributed
    with distributed():
        return carry_out(arguments)


def carry_out(arguments):
    """The command, in one process of however many there are -> exit code."""
    a = parse(arguments)
    own = ("folds", "group", "test", "sample", "temperature", "config", "overwrite")
    s = read_settings({k: v for k, v in vars(a).items() if k not in own}, a.config)
    refuse_several(s, "folds")
    out = Path(s.out or f"runs/{Path(s.model).name}-{Path(s.data).stem}-{s.method}-{s.seed}-folds-{a.folds}")
    apart = [("--data", find_data(s.data)), ("--test", a.test), ("--sample", a.sample),
             ("--model", find_model(s.model))]
    check_folder(out, any(out.glob("fold-*")), a.overwrite, apart)
    for name in ("oof.csv", "folds.json", "submission.csv"):
        check_out(out / name, True, apart)
    from ..text.data import natural_order
    from .split import share_out
    source = read_source(find_data(s.data), s, a.group)
    labels = natural_order({e.label for e in source.examples})
    if len(labels) < 2:
        raise InputError(f"{source.path}: {len(source.examples)} rows to train on, of {len(labels)} classes: add rows of two "
                         "classes or more")
    test, form = read_test(a, s, labels, source)           # all mistakes before the first hour of work
    folds = share_out([e.label for e in source.examples], source.groups, a.folds, s.seed)
    data = [fold_dataset(s, source, folds, fold, labels) for fold in range(a.folds)]
    from ..train import owned, settle
    from ..training.parallel import processes as parallel
    with owned(out, record="folds.json", clear=clear):
        code = learn_and_answer(s, a, source, test, form, folds, data, out)
        if parallel.is_main_process():
            settle(out, "folds.json", clear)
    return code


def place_of(runs, out, overwrite):
    """Where the folds are made: in OUT, but beside folds that they are to replace, in OUT/.new.

    runs: (settings, data) of each.
    """
    from ..train import NEW, differences
    from ..training.parallel import processes as parallel
    if overwrite:
        held = (out / "folds.json").exists() or any(out.glob("fold-*/run.json"))
        place = out / NEW if held else out
        parallel.barrier()
        if parallel.is_main_process():
            remove(out / NEW)
        parallel.barrier()
        return place
    try:
        folders = [out / NEW / name_of(fold) for fold in range(len(runs))]
        begun = [differences(s, folder, one)[0] for folder, (s, one) in zip(folders, runs)
                 if (folder / "run.json").exists()]
    except InputError:
        return out
    return out / NEW if begun and not any(begun) else out


def name_of(fold):
    """The folder of a fold (0, 1, ...) in OUT."""
    return f"fold-{fold + 1}"


def clear(out):
    """Remove what earlier folds left in the folder."""
    from .. import train
    own = [out / name for name in ("folds.json", "oof.csv", "submission.csv")]
    for path in [*own, *out.glob("fold-*/scores-*.safetensors")]:
        remove(path)
    for folder in out.glob("fold-*"):
        train.clear(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def learn_and_answer(s, a, source, test, form, folds, data, out):
    """Train what is not trained yet, ask all models, and write down what they say -> exit code."""
    import torch

    from ..classify.calibrate import temperature
    from ..files import write_text
    from ..train import open_run
    from ..training.parallel import processes as parallel
    labels, truth = data[0].labels, [data[0].labels.index(e.label) for e in source.examples]
    runs = [(replace(s, out=str(out / name_of(fold))), one) for fold, one in enumerate(data)]
    place = place_of(runs, out, a.overwrite)
    places = [place / name_of(fold) for fold in range(len(runs))]
    for (one, held), folder in zip(runs, places):      # another run in any is found before any is trained
        open_run(one, folder, held, False)
    scores, answers = torch.empty(len(folds), len(labels), dtype=torch.float64), []
    for fold, ((its, one), folder) in enumerate(zip(runs, places)):
        print(f"\n[fold {fold + 1} of {len(places)}] {len(one.train)} train, {len(one.dev)} dev, {len(one.test)} held-out rows",
              flush=True)
        train_fold(its, one, folder, a.overwrite, print if fold == 0 else lambda line: None)
        held = torch.tensor(folds) == fold
        scores[held] = ask_fold(s, folder, "held-out", [e.texts for e in one.test])
        if test:
            answers.append(ask_fold(s, folder, "test", [e.texts for e in test.examples]))
    found, fitted = judge(scores, truth, folds, labels), temperature(scores, truth)
    calibration = applied(fitted, found, a.temperature)
    if test:
        submission = submission_text(form, test.ids, fold_mean(answers, calibration))
        check_submission(submission, form, out / "submission.csv")
    if parallel.is_main_process():
        write_text(place / "oof.csv", oof_text(source, scores, folds, labels))
        if test:
            write_text(place / "submission.csv", submission)
        write_text(place / "folds.json", json.dumps({
            "settings": vars(s) | {"out": str(out)}, "k": len(places), "group": a.group, "labels": labels,
            "finished": True, "temperature": calibration.temperature, "fitted_temperature": fitted.temperature,
            **found}, indent=2, ensure_ascii=False) + "\n")
    print("\n" + "\n".join(report(found, folds, fitted.temperature, calibration.temperature)))
    print(f"\nsaved in {out}: oof.csv, folds.json" + (f", submission.csv ({len(form.ids)} rows, checked)" if test else ""))
    return 0


if __name__ == "__main__":
    run(main)
