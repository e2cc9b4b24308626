"""A run of training: from the rows to a saved classifier. train and fine_tune begin it.

train_run is all of it: fit_with_progress trains, evaluate_and_save tests and writes.
train_unless_finished first looks for a finished run.
"""
import json
import random
import shlex
import time
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

from ..classify.label_text.doctor import examine_labels
from ..errors import InputError
from ..files import write_json, write_text
from ..training import loop
from ..training.plan import Split, plan_epochs
from . import run_folder
from .baseline_warning import baseline_warning
from .build import build_classifier, build_task, check_saved, model_lines, own_head_note
from .cross import fit_as_asked
from .device import deterministic
from .fits import too_large_line
from .learned_rows import learned_warning, mark_learned
from .machine import (add_probe, gather_weights, library_versions, memory_of_run, peak_memory_mb,
                      prepare_for_training, step_and_store, writes_files)
from .parser import StopSignal
from .progress import Progress
from .rows import diagnose_data, encode_split, reading_of, write_predictions

TRAIN_SAMPLE_ROWS = 200        # after each epoch the metric is measured on so many training rows


def say_nothing(line):
    """A `say` that prints nothing."""


def finished_record(s, folder, data, overwrite=False):
    """As run_folder.finished_record, but InputError for a record that show_record cannot print."""
    record = run_folder.finished_record(s, folder, data, overwrite)
    try:
        if record:
            show_record(record, data, "", say_nothing)
            if record["split"] not in ("dev", "test"):
                raise ValueError("no such split")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise InputError(f"{folder}/run.json: its results are not as train writes them: "
                         "--overwrite starts anew") from None
    return record


def fit_with_progress(s, model, data, folder, say, on_epoch=None):
    """Train, with a progress bar -> what loop.fit returns (None if stopped), and the dict of
    `timing_of`. s: cli.settings.Settings; data: text.data.Dataset; say: prints a line."""
    rows = model.task.training_examples(data.train)
    train, dev = encode_split(model, rows, training=True), encode_split(model, data.dev)
    count = min(len(rows), TRAIN_SAMPLE_ROWS)
    chosen = random.Random(f"fitted:{s.seed}").sample(range(len(rows)), count)
    sample = Split([train.encoded[i] for i in chosen], [train.targets[i] for i in chosen])
    fit, started = fit_as_asked(s, model, train, data, say), time.monotonic()
    bar = Progress(say is say_nothing, dynamic_ncols=True, leave=False)
    with bar, StopSignal() as stop, memory_of_run(s, model, [*train.encoded, *dev.encoded]):
        def say_above(line):
            bar.clear()
            say(line)

        def after_step(step, total, loss):
            bar(step, total, loss=f"{loss:.3f}")

        def after_epoch(line):
            logits = model.compute_logits(sample.encoded, s.eval_batch_size)
            metrics = model.task.measure(model.probabilities(logits), sample.targets)
            line[f"train_{s.metric}"] = metrics[s.metric]          # on the same rows in each epoch
            say_above(epoch_line(line, s.metric, model.task.METRICS))
            if on_epoch:
                on_epoch(dict(line))
        step, store = step_and_store(s, model, train.targets, folder, stop, say_above)
        hooks = loop.Hooks(after_step, on_epoch=after_epoch)
        add_probe(s, model, train, hooks)
        progress = fit(model, train, dev, s, store, step, hooks)
    if progress is not None and writes_files():
        lines = [json.dumps(line) + "\n" for line in progress["history"]]
        write_text(folder / "metrics.jsonl", "".join(lines))
    return progress, timing_of(s, model, train, bar, time.monotonic() - started)


def timing_of(s, model, train, bar, seconds):
    """-> "timing" of run.json. seconds: of the steps of this process, without those of a stopped
    run before it."""
    seconds = max(seconds, 1e-6)                           # a coarse clock may measure 0
    all_steps = chain.from_iterable(plan_epochs(model, train, s))      # a step is a list of rows
    steps = list(islice(all_steps, bar.steps_before, bar.last_step))
    return {"train_seconds": round(seconds, 1),
            "seconds_per_step": round(seconds / max(1, len(steps)), 4),
            "examples_per_second": round(sum(map(len, steps)) / seconds, 1)}


def epoch_line(epoch, metric, names):
    """A line of metrics.jsonl, as text. metric: shown for training rows; names: metrics of dev."""
    dev = "  ".join(f"{name} {epoch[name]:.3f}" for name in names if name in epoch)
    return (f"epoch {epoch['epoch']:3d}  train loss {epoch['train_loss']:.3f}  "
            f"{metric} {epoch[f'train_{metric}']:.3f}" + f"  dev {dev}" * bool(dev))


def evaluate_and_save(s, model, data, rows, folder, record):
    """Test the model, save it, compare it with the baselines -> the finished record. rows: of
    test, or dev without one, a Split; record: the run.json so far, with timing."""
    split, examples = ("test", data.test) if data.test else ("dev", data.dev)

    def logits(encoded):
        return model.compute_logits(encoded, s.eval_batch_size)                        # (N, C)
    probabilities = model.probabilities(logits(rows.encoded))                          # (N, C)

    def dev_probabilities():
        return model.probabilities(logits(encode_split(model, data.dev).encoded))
    model.task = model.task.fit_to_dev(dev_probabilities, data.dev)  # such as a cut-off per label
    checks = model.task.check_answers(model, [e.texts for e in examples], logits)
    gather_weights(model)
    if not writes_files():
        return record                      # of several processes only the main one goes on
    record["timing"]["peak_memory_mb"] = peak_memory_mb()
    model.save(folder, in_run=True)        # before the baselines, which may run out of memory
    check_saved(model, folder, [e.texts for e in examples[:3]])
    write_predictions(folder / "predictions.csv", examples, probabilities, model.labels,
                      model.answers(probabilities))
    results = model.task.baselines(data, quick=s.baselines == "off")
    results[f"{Path(s.model).name}, {s.method}"] = model.task.evaluate(probabilities, rows.targets)
    record |= {"finished": True, "split": split, "results": results, **checks}
    write_json(folder / "run.json", record)
    return record


def show_record(record, data, folder, say=print):
    """Print a finished run: the table of results, the folder, and warnings about the baselines."""
    timing, split, task = record["timing"], record["split"], build_task(record["settings"], data)
    known = "examples_per_second" in timing
    speed = f"{timing['examples_per_second']:.0f} examples a second, " if known else ""
    lines = task.metric_lines(record["results"], split, getattr(data, split), fitted=split == "dev")
    say("\n" + "\n".join(lines))
    for line in task.answer_lines(record):
        say("\n" + line)
    trainable, total = (record["parameters"][name] for name in ("trainable", "total"))
    say(f"\nbest epoch {record['best_epoch']}; {trainable:,} of {total:,} parameters trained; "
        f"{timing['train_seconds']} s, {timing['seconds_per_step'] * 1000:.0f} ms a step, {speed}"
        f"peak memory {timing['peak_memory_mb']} MB")
    if folder:
        say(f"saved in {folder}; try:  python -m minillmclf.predict --model "
            f"{shlex.quote(str(folder))} {task.PREDICT_EXAMPLE}")
    for line in [*own_head_note(record["settings"]), *learned_warning(record),
                 *baseline_warning(record)]:
        say(line)


def describe(s, model, data, sizes, say):
    """Print what is known before training -> the doctor's Report of the data, and what check_rows
    of the task found, for run.json. sizes: numbers of trainable and of all parameters."""
    report = diagnose_data(model, data)
    say("\n".join(report.lines()))
    cut, lines = model.task.check_rows(model, [e.texts for e in data.train + data.dev + data.test])
    if lines:
        say("\n" + "\n".join(lines))
    if model.head.label_options:             # it reads label texts
        say("\n" + "\n".join(examine_labels(model.tokenizer, model.head, model.labels).lines()))
    say("\n" + "\n".join(model_lines(s, model, *sizes)))
    return report, cut


def train_run(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """A run from the data to the saved model -> its record (run.json), None if it was stopped.

    overwrite: an earlier run in the folder may be replaced, once this one is finished; say: called
    with each line of output; on_epoch: with a dict, a line of metrics.jsonl, after each epoch.
    """
    run_files = run_folder.RunFolder(folder)
    place = run_folder.training_folder(s, folder, data, overwrite)     # `folder`, or one inside it
    for line in too_large_line(s, data.labels, data.columns):
        say(line)
    with deterministic(s.deterministic == "on"):
        model, *sizes = build_classifier(s, data.labels, data.columns)
        model.set_reading(reading_of(s, data))
        prepare_for_training(s, model)
        report, cut = describe(s, model, data, sizes, say)
        record = {"settings": asdict(s), "finished": False, "base": run_folder.base_fingerprint(s),
                  "data": {**data.source, "rows": report.rows, "labels": data.labels},
                  "doctor": report.as_dict(), **cut, "versions": library_versions(s.device),
                  "parameters": dict(zip(("trainable", "total"), sizes)),
                  **mark_learned(model, data)}
        rows = encode_split(model, data.test or data.dev)   # before training: a fault is told now
        run_files.start(place, record, overwrite)
        progress, timing = fit_with_progress(s, model, data, place, say, on_epoch)
        if progress is None:
            return None
        record |= {"best_epoch": progress["best"]["epoch"], "timing": timing}
        record = evaluate_and_save(s, model, data, rows, place, record)
    run_files.move_into_place()         # from `place` into the folder
    return record


def train_unless_finished(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """The record of the run that is finished in the folder, else that of `train_run`. The folder
    is locked meanwhile."""
    with run_folder.RunFolder(folder).lock():
        if finished := finished_record(s, folder, data, overwrite):
            say(f"{folder}: this run is finished already (--overwrite starts it anew)")
        return finished or train_run(s, data, folder, overwrite, say, on_epoch)
