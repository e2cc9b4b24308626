"""A comparison: find what can be trained, split the data once, train all runs, write tables."""
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from ..classify.classifier import Classifier
from ..cli import build as building
from ..cli.device import check_device, device_kind, device_of
from ..cli.learned_rows import learned_warning
from ..cli.outputs import check_out_folder, holds_only, holds_record, lock_folder
from ..cli.rows import load_dataset, too_few_note
from ..cli.settings import Settings, read_settings
from ..errors import InputError, is_exercise
from ..files import find_model, remove_path, write_json, write_text
from ..report.figures import save_figure
from ..text.doctor import examine_data, shared_warnings
from ..text.table_files import read_table
from ..tuning import tune
from ..tuning.quant_files import open_checkpoint
from . import pictures
from .configurations import SHARED_SETTINGS, make_configurations, labels_of, read_sweep
from .runs import Run, folder_of, run_once
from .source import refuse_other_comparison, source_of
from .summary import summarise
from .table import csv_of_runs, comparison_markdown

PICTURES = ("cost.svg", "curve.svg")
FLAGS = ("models", "methods", "readouts", "sweep", "learning_curve", "seeds", "out")


def compare(a, overwrite):
    """Run the command. a: its flags, checked -> exit code."""
    flags = {key: value for key, value in vars(a).items() if key not in FLAGS}
    methods = a.methods or [flags.get("method", "full")]
    readouts = a.readouts or [flags.get("readout", "head")]
    device = usable_device(flags.get("device", "auto"))
    configurations = make_configurations(a.models, methods, readouts, read_sweep(a.sweep), flags)
    labels = labels_of(configurations)
    configurations, left_out = trainable_configurations(configurations, labels)
    out = Path(a.out)
    models = [find_model(c.settings.model) for c in configurations if not c.is_baseline]
    reads = [("--data", flags.get("data")), *(("--models", folder) for folder in models)]
    check_out_folder(out, is_own(out), overwrite, reads)
    shared = read_settings({key: flags[key] for key in (*SHARED_SETTINGS, "text_column")
                            if key in flags})
    data = load_dataset(replace(shared, readout="labels"))
    notes = [*notes_on_sizes(a.learning_curve, data),
             *(f"WARNING: {line}" for line in shared_warnings(examine_data(data)))]
    with lock_folder(out):
        if not overwrite:
            refuse_other_comparison(out, data)
        (out / "cells").mkdir(parents=True, exist_ok=True)     # which is_own looks for
        path, sha256 = write_split(shared, data, out)
        configurations = [replace(c, settings=replace(c.settings, data=path))
                          for c in configurations]
        runs = [Run(c, size, seed, folder_of(out, c, size, seed))
                for size in a.learning_curve for c in configurations for seed in range(a.seeds)]
        sizes = f"{len(configurations)} x {len(a.learning_curve)} sizes x {a.seeds} seeds"
        lines = [*left_out, *notes, sizes, *([f"on {device}"] if device != "cpu" else [])]
        print("\n".join(lines), flush=True)
        metric = flags.get("metric", Settings().metric)
        run_all(runs, labels, sha256, metric)
        notes += dict.fromkeys(line for run in runs for line in learned_warning(run.record))
        write_tables(runs, labels, metric, left_out, notes, out)
        given = {key: getattr(a, key) for key in FLAGS} | flags | {"source": source_of(data)}
        given["learning_curve"] = list(map(str, a.learning_curve))
        write_text(out / "settings.json", json.dumps(given, indent=2) + "\n")
    if not any(run.is_finished for run in runs):
        raise InputError(f"nothing could be trained: {runs[0].record['reason']}")
    return 0


def is_own(out):
    """Does OUT hold a comparison, or what a killed one has left before its first record?"""
    return (holds_record(out.glob("cells/*/cell.json"), lambda record: "made_from" in record)
            or holds_record([out / "settings.json"],
                            lambda settings: {"models", "seeds"} <= set(settings))
            or (out / "cells").is_dir() and holds_only(out, ["split.jsonl"]))


def notes_on_sizes(sizes, data):
    """--learning-curve -> a line for each size that a class of the Dataset does not reach.
    InputError for one that no class reaches: its runs would be those of "all"."""
    numbers = [size for size in sizes if size != "all"]
    most = max(Counter(e.label for e in data.train).values())
    if numbers and max(numbers) > most:
        raise InputError(f"--learning-curve {max(numbers)}: the largest class has {most} train "
                         f"rows: name all, or a number up to {most}")
    return [note for size in numbers if (note := too_few_note(data.train, size))]


def usable_device(name):
    """As check_device. But a CUDA device that may be there is left to the runs: to look for it here
    would take some of its memory as long as this process runs."""
    may_be_there = device_kind(name) == "cuda" and torch.cuda.is_available()
    return device_of(name) if may_be_there else check_device(name)


def trainable_configurations(configurations, labels):
    """-> (the configurations that can be trained, a line for each of the others). InputError if
    none is left."""
    kept, left_out, data = [], [], {}
    for c in configurations:
        columns = c.settings.text_column
        if columns not in data:                            # labels: takes any number of texts
            data[columns] = load_dataset(replace(c.settings, readout="labels"))
        reason = "" if c.is_baseline else obstacle(c, data[columns])
        if reason:
            left_out.append(f"{configuration_title(c, labels)}: not possible: {reason}")
        else:
            kept.append(c)
    if not kept:
        raise InputError(f"nothing to compare: {left_out[0]}")
    return kept, left_out


def obstacle(configuration, data):
    """Why a configuration cannot be trained on a Dataset; "" if it can. No weights are read."""
    s = configuration.settings
    try:
        building.task_class(s).check_columns(data.columns, s.readout)
        building.refuse_adapter_of_random_weights(s)
        options = building.classifier_options(s, data.columns)
        model = Classifier.empty(open_checkpoint(s.model), data.labels, **options)
        config = building.tuning_config(s)
        if s.method == "qlora":                            # it needs real weights
            config["method"] = "lora"
        tune(model, config, s.seed)
    except InputError as error:
        return str(error)
    except NotImplementedError as error:                   # not computed on the device "meta"
        if is_exercise(error):
            raise
        return ""
    return ""


def write_split(s, data, out):
    """Make all seeds use the same split -> (path of the data, {file name: sha256}).

    A run splits a file without a column `split` by its own seed. So the rows of such a file are
    written to OUT/split.jsonl, with that column, as seed 0 splits them.
    """
    path = out / "split.jsonl"
    if data.source["split"] != "random":
        return s.data, data.source["sha256"]
    split = {e.row: name for name in ("train", "dev", "test") for e in getattr(data, name)}
    lines = [json.dumps({**row, "split": split[line]}, ensure_ascii=False) + "\n"
             for line, row in read_table(Path(s.data), s.quoting).rows]
    text = "".join(lines).encode("utf-8", "backslashreplace").decode()  # of half a surrogate pair
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return str(path), {path.name: read_table(path).sha256}


def configuration_title(configuration, labels):
    """A configuration as messages name it: "mini-bert, lora, lr=0.001"."""
    return ", ".join(filter(None, [labels[configuration.group], configuration.row_settings]))


def run_all(runs, labels, sha256, metric):
    """Train each run, which gets its record, and print a line of progress.

    The baselines run last, in this process: on Linux the peak memory of a process starts at that of
    its parent, so this process must stay small until the last model is trained.
    """
    spent, trained = [], sum(not run.configuration.is_baseline for run in runs)
    for number, run in enumerate(sorted(runs, key=lambda run: run.configuration.is_baseline), 1):
        started = time.monotonic()
        run.record, is_new = run_once(run, sha256)
        seconds, took = time.monotonic() - started, "finished before"
        if is_new:
            spent.append(seconds)
            took = duration_text(seconds)
        result = (f"dev {metric} {run.record['dev'][metric]:.3f}" if run.is_finished else
                  f"not possible: {run.record['reason']}")
        if spent and number < trained:
            took += f"; about {duration_text(sum(spent) / len(spent) * (trained - number))} left"
        title = configuration_title(run.configuration, labels)
        print(f"[{number} of {len(runs)}] {title}, {run.size} rows a class, seed {run.seed}: "
              f"{result}, {took}", flush=True)


def duration_text(seconds):
    """85 -> "1 min 25 s"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def write_tables(runs, labels, metric, left_out, notes, out):
    """Write table.md, table.csv, table.json and pictures to `out`; print table.md."""
    summary = summarise(runs, labels, metric)
    text = comparison_markdown(summary, left_out, notes)
    write_text(out / "table.csv", csv_of_runs(runs, labels, summary))
    write_text(out / "table.md", text)
    write_json(out / "table.json", summary | {"not_made": left_out})
    print(f"\n{text}\nsaved in {out}{draw_pictures(summary['rows'], out)}")


def draw_pictures(rows, out):
    """Save pictures: accuracy by cost; for several sizes, a learning curve -> a text about it.
    Those of an earlier table are removed."""
    cost, curve = PICTURES
    for name in PICTURES:
        remove_path(out / name)
    sizes = {row["size"] for row in rows}
    largest = "all" if "all" in sizes else max(sizes, default="all")
    trained = [row for row in rows if row["trainable"] and row["size"] == largest]
    try:
        made = {cost: pictures.cost_figure(trained)} if trained else {}
        if len(sizes) > 1:
            made[curve] = pictures.learning_curve_figure(rows)
    except InputError as error:
        return f"; no pictures: {error}"
    for name, figure in made.items():
        save_figure(figure, out / name)
    return "".join(f", {name}" for name in made)
