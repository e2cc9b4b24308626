"""python -m minillmclf.train: fine-tune a classifier, evaluate it, save it.

A BERT on your own CSV; LoRA on a decoder; instruction tuning; long documents:
  python -m minillmclf.train --model checkpoints/bert-base-uncased --data my.csv
  python -m minillmclf.train --model DIR --data my.csv --method lora --rank 16
  python -m minillmclf.train --model DIR --data my.csv --readout labels \\
      --objective completion --template "{text}\\nLabel: {label}"
  python -m minillmclf.train --data long.csv --windows mean --micro-batch-size 4

Without arguments: the shipped checkpoint mini-bert on the bundled set tickets.
Where a flag lists its values, the first is the default; a flag with [off] is
switched on when given alone. The run folder holds run.json, metrics.jsonl,
predictions.csv and the model. The same command continues a stopped run.
"""
import json
import random
import time
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

from .cli import run_folder
from .cli.build import build_classifier, build_task, check_saved, model_lines
from .cli.cross import fit_as_asked
from .cli.device import with_device_modes
from .cli.few_rows import read_run
from .cli.launch import in_all_processes
from .cli.machine import (reuse_frozen_features, gather_weights, library_versions, logits_of,
                          peak_memory_mb, prepare_for_training, probe_fitter, step_and_store,
                          writes_files)
from .cli.parser import Parser, StopSignal, run
from .cli.progress import Progress
from .cli.rows import diagnose_data, encode_split, reading_of, write_predictions
from .cli.settings import add_settings
from .errors import InputError, Stopped
from .files import write_json, write_text

TRAIN_SAMPLE_ROWS = 200        # after each epoch the metric is measured on so many training rows


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.train", usage="%(prog)s [--flag VALUE ...]",
               description=__doc__)
    add_settings(p)
    group = p.add_argument_group("the run")
    group.add_argument("--config", metavar="RUN.JSON", help="take its settings; flags go over them")
    group.add_argument("--overwrite", action="store_true", help="start anew over a run in --out")
    return p.parse_args(arguments)


def finished_record(s, folder, data, overwrite=False):
    """As run_folder.finished_record, but InputError for a record that show_record cannot print."""
    record = run_folder.finished_record(s, folder, data, overwrite)
    try:
        if record:
            show_record(record, data, "", say=str)
            if record["split"] not in ("dev", "test"):
                raise ValueError("no such split")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise InputError(f"{folder}/run.json: its results are not as train writes them: "
                         "--overwrite starts anew") from None
    return record


def say_nothing(line):
    """A `say` that prints nothing."""


def fit_with_progress(s, model, data, folder, say, on_epoch=None):
    """Train, with a progress bar -> what loop.fit returns (None if stopped), and `timing_of` the
    steps. s: cli.settings.Settings; data: text.data.Dataset; say: a function that prints a line."""
    from .training import loop                             # it loads torch, which takes seconds
    from .training.plan import Split
    rows = model.task.training_examples(data.train)
    train, dev = encode_split(model, rows, training=True)[0], encode_split(model, data.dev)[0]
    count = min(len(rows), TRAIN_SAMPLE_ROWS)
    chosen = random.Random(f"fitted:{s.seed}").sample(range(len(rows)), count)
    sample = Split([train.encoded[i] for i in chosen], [train.targets[i] for i in chosen])
    fit, started = fit_as_asked(s, model, train, data, say), time.monotonic()
    bar = Progress(say is say_nothing, dynamic_ncols=True, leave=False)
    with bar, StopSignal() as stop, reuse_frozen_features(s, model, [*train.encoded, *dev.encoded]):
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
        if fit_head := probe_fitter(s, model, train):
            if s.objective == "contrastive":               # the head's own loss is not learned
                hooks.before_dev = fit_head
            else:
                fit_head()
        progress = fit(model, train, dev, s, store, step, hooks)
    if progress is not None and writes_files():
        lines = [json.dumps(line) + "\n" for line in progress["history"]]
        write_text(folder / "metrics.jsonl", "".join(lines))
    return progress, timing_of(s, model, train, bar, time.monotonic() - started)


def timing_of(s, model, train, bar, seconds):
    """-> "timing" of run.json. seconds: how long the steps took that this process's bar showed."""
    from .training.plan import plan_epochs
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


def evaluate_and_save(s, model, data, folder, record, progress, timing):
    """Test the model, save it, compare it with the baselines -> the finished record. record: the
    run.json so far; progress, timing: what `fit_with_progress` returns."""
    split = "test" if data.test else "dev"
    examples = getattr(data, split)
    rows, _ = encode_split(model, examples)

    def logits(encoded):
        return logits_of(s, model, encoded)                                            # (N, C)
    probabilities = model.probabilities(logits(rows.encoded))                          # (N, C)

    def dev_probabilities():
        return model.probabilities(logits(encode_split(model, data.dev)[0].encoded))
    model.task = model.task.fit_to_dev(dev_probabilities, data.dev)  # such as a cut-off per label
    checks = model.task.check_answers(model, [e.texts for e in examples], logits)
    gather_weights(model)
    if not writes_files():
        return record                      # of several processes only the main one goes on
    timing |= {"peak_memory_mb": peak_memory_mb()}
    model.save(folder)                     # before the baselines, which may run out of memory
    check_saved(model, folder, [e.texts for e in examples[:3]])
    write_predictions(folder / "predictions.csv", examples, probabilities, model.labels,
                      model.answers(probabilities))
    results = model.task.baselines(data, quick=s.baselines == "off")
    results[f"{Path(s.model).name}, {s.method}"] = model.task.evaluate(probabilities, rows.targets)
    record |= {"finished": True, "best_epoch": progress["best"]["epoch"], "split": split,
               "results": results, **checks, "timing": timing}
    write_json(folder / "run.json", record)
    return record


def show_record(record, data, folder, say=print):
    """Print a finished run: the table of results, the folder, and warnings about the baselines."""
    from .cli.baseline_warning import baseline_warning     # it loads numpy
    timing, split, task = record["timing"], record["split"], build_task(record["settings"], data)
    speed = ""
    if "examples_per_second" in timing:
        speed = f"{timing['examples_per_second']:.0f} examples a second, "
    lines = task.metric_lines(record["results"], split, getattr(data, split), fitted=split == "dev")
    say("\n" + "\n".join(lines))
    for line in task.answer_lines(record):
        say("\n" + line)
    trainable, total = (record["parameters"][name] for name in ("trainable", "total"))
    say(f"\nbest epoch {record['best_epoch']}; {trainable:,} of {total:,} parameters trained; "
        f"{timing['train_seconds']} s, {timing['seconds_per_step'] * 1000:.0f} ms a step, {speed}"
        f"peak memory {timing['peak_memory_mb']} MB")
    if folder:
        say(f"saved in {folder}; try:  python -m minillmclf.predict --model {folder} "
            f"{task.PREDICT_EXAMPLE}")
    for line in baseline_warning(record):
        say(line)


@with_device_modes
def train_run(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """A run from the data to the saved model -> its record (run.json), None if it was stopped.

    overwrite: replace a run in the folder, once this one is finished; say: called with each line
    of output; on_epoch: called after each epoch with a dict, a line of metrics.jsonl.
    """
    from .cli.fits import too_large_line                   # it loads torch
    run_files = run_folder.RunFolder(folder)
    place = run_folder.training_folder(s, folder, data, overwrite)     # `folder`, or one inside it
    for line in too_large_line(s, data.labels, data.columns):
        say(line)
    model, trainable, total = build_classifier(s, data.labels, data.columns)
    model.set_reading(reading_of(s, data))
    prepare_for_training(s, model)
    report = diagnose_data(model, data)
    say("\n".join(report.lines()))
    cut, lines = model.task.check_rows(model, [e.texts for e in data.train + data.dev + data.test])
    if lines:
        say("\n" + "\n".join(lines))
    if model.head.label_options:             # it reads label texts
        from .classify.label_text.doctor import examine_labels
        say("\n" + "\n".join(examine_labels(model.tokenizer, model.head, model.labels).lines()))
    say("\n" + "\n".join(model_lines(s, model, trainable, total)))
    record = {"settings": asdict(s), "finished": False, "base": run_folder.base_fingerprint(s),
              "data": {**data.source, "rows": report.rows, "labels": data.labels},
              "doctor": report.as_dict(), **cut, "versions": library_versions(s.device),
              "parameters": {"trainable": trainable, "total": total}}
    run_files.start(place, record, overwrite)
    progress, timing = fit_with_progress(s, model, data, place, say, on_epoch)
    if progress is None:
        return None
    record = evaluate_and_save(s, model, data, place, record, progress, timing)
    run_files.move_into_place()         # from `place` into the folder
    return record


def train_unless_finished(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """The record of the run that is finished in the folder, else that of `train_run`. No other
    process can use the folder meanwhile."""
    with run_folder.RunFolder(folder).lock():
        if finished := finished_record(s, folder, data, overwrite):
            say(f"{folder}: this run is finished already (--overwrite starts it anew)")
        return finished or train_run(s, data, folder, overwrite, say, on_epoch)


@in_all_processes()
def main(arguments=None):
    """The command, also as one of several processes -> exit code."""
    flags = vars(parse(arguments))
    config, overwrite = flags.pop("config"), flags.pop("overwrite")
    s, data, line = read_run(flags, config)
    folder = run_folder.out_folder(s)
    if line:
        print(line)
    record = train_unless_finished(s, data, folder, overwrite)
    if record is None:
        again = "The same command" + " without --overwrite" * overwrite
        raise Stopped(f"stopped; the state is saved in {folder}. {again} goes on from there.")
    if record["finished"]:                         # true in the main process only
        show_record(record, data, folder)
    return 0


if __name__ == "__main__":
    run(main)
