"""python -m minillmclf.train: fine-tune a classifier, evaluate it, save it.

A BERT on your own CSV; LoRA on a decoder; instruction tuning; long documents:
  python -m minillmclf.train --model checkpoints/bert-base-uncased --data my.csv
  python -m minillmclf.train --model DIR --data my.csv --method lora --rank 16
  python -m minillmclf.train --model DIR --data my.csv --readout labels \\
      --objective completion --template "{text}\\nLabel: {label}"
  python -m minillmclf.train --data long.csv --windows mean --micro-batch-size 4

Without arguments: the shipped checkpoint mini-bert on the bundled set tickets.
Of listed values the first is the default; a flag with [off] alone means on.
The run folder holds run.json, metrics.jsonl, predictions.csv and the model. The
same command goes on with a run that was stopped.
"""
import csv
import functools
import io
import json
import platform
import random
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

from . import __version__
from .cli import run_folder
from .cli.build import build, encode, model_lines, prepare, reading_of, task_kind, task_of
from .cli.launch import distributed
from .cli.parser import Parser, StopSignal, run
from .errors import InputError, Stopped
from .files import write_json, write_text
from .text.data import load_data, text_names
from .cli.progress import Progress
from .cli.settings import add_settings, read_settings

FITTED_ROWS = 200              # training rows, drawn by the seed, measured after each epoch


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.train", usage="%(prog)s [--flag VALUE ...]",
               description=__doc__)
    add_settings(p)
    group = p.add_argument_group("the run")
    group.add_argument("--config", metavar="RUN.JSON", help="take its settings; flags go over them")
    group.add_argument("--overwrite", action="store_true", help="start anew over a run in --out")
    return p.parse_args(arguments)


def draw_rows(examples, per_class, seed):
    """`per_class` rows of each class, drawn by the seed; a class with fewer gives all it has."""
    order = sorted(examples, key=lambda e: (e.label, e.texts))
    random.Random(f"rows:{seed}").shuffle(order)
    taken, kept = {}, []
    for example in order:
        taken[example.label] = taken.get(example.label, 0) + 1
        if taken[example.label] <= per_class:
            kept.append(example)
    return kept


def load_dataset(s, table=None):
    """The data of a run, with the columns and the training rows that are asked for. table: in
    the place of s.data."""
    data = load_data(table or s.data, s.text_column or None, s.label_column or None, s.seed,
                     task_kind(s).MULTI_LABEL, s.quoting)
    task_kind(s).check_columns(data.columns, s.readout)
    if s.rows_per_class:
        data.train = draw_rows(data.train, s.rows_per_class, s.seed)
    return data


def diagnose(model, data):
    """What the data doctor says, with lengths in the model's own tokens."""
    from .text.doctor import examine, unknown_share
    from .tuning.prompt import new_words
    lengths = {split: [model.head.length(model.tokenizer, e.texts) for e in getattr(data, split)]
               for split in ("train", "dev", "test")}
    setting, most = model.head.limit(model.max_length)
    unknown = {split: unknown_share(model.tokenizer, [e.texts for e in getattr(data, split)])
               for split in lengths}
    remedy = f"raise {setting}"
    if setting == "max_length" and most >= (model.backbone.max_input_tokens or most + 1):
        ways = [] if model.head.described else ["--truncation-side middle keeps both ends"]
        if ways and model.head.most_texts == 2 and not new_words(model):
            ways.insert(0, "--windows mean reads them whole")
        remedy = "the model takes no more" + ": " * bool(ways) + ", ".join(ways)
    return examine(data, lengths, most, remedy, unknown)


def versions():
    """What the numbers depend on besides the settings."""
    import numpy
    import safetensors
    import torch
    return {"minillmclf": __version__, "python": platform.python_version(),
            "torch": torch.__version__, "numpy": numpy.__version__,
            "safetensors": safetensors.__version__, "threads": torch.get_num_threads()}


def peak_memory():
    """The most memory that this process has held so far, in MB; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def is_shown(record, data):
    """Does a finished run's record hold what show_record prints?"""
    try:
        show_record(record, data, "", say=str)
        return record["split"] in ("dev", "test")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False


def open_run(s, folder, data, overwrite=False):
    """As cli.run_folder.open_run; InputError also where show_record could not print the record."""
    record = run_folder.open_run(s, folder, data, overwrite)
    if record and not is_shown(record, data):
        raise InputError(f"{folder}/run.json: its results are not as train writes them: "
                         "--overwrite starts anew")
    return record


def write_predictions(path, examples, probabilities, labels, answers=None):
    """predictions.csv: the line in the source, the texts, the label, the answer, p of each class.

    answers: by default the likeliest classes. Texts are as they are in the data, even those that a
    spreadsheet computes: =1+1.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    names = text_names(len(examples[0].texts))
    writer.writerow(["line", *names, "label", "predicted", *(f"p_{name}" for name in labels)])
    answers = answers or [labels[p.argmax()] for p in probabilities]
    for example, answer, p in zip(examples, answers, probabilities):
        row = [example.row, *example.texts, example.label, answer]
        writer.writerow([*row, *(f"{x:.6f}" for x in p)])
    write_text(path, out.getvalue())


def objective_of(s, model, targets):
    """What training minimises. targets: of the training rows."""
    from .training.completion_loss import CompletionLoss
    if s.objective == "completion":
        return CompletionLoss(model.head.answer_lengths())
    return model.task.loss(s, targets)


def silent(line):
    """Says nothing, where others print."""


def step_and_store(s, model, targets, folder, stop, say):
    """What the loop is given -> its step and its store: plain, or those of several processes.

    The step checks its first gradients, and says where a number that is not finite arose.
    """
    from .training import loop
    from .training.checkpoint import Store
    from .training.monitors.gradients import check_first_steps
    from .training.monitors.nonfinite import locate_divergence
    from .training.parallel import processes as parallel
    take_step, store = loop.take_step, Store
    if parallel.is_distributed():
        take_step, store = parallel.take_step, parallel.SharedStore
    step = functools.partial(take_step, objective=objective_of(s, model, targets))
    return check_first_steps(locate_divergence(step), say), store(folder, stop)


def learn(s, model, data, folder, say, on_epoch=None):
    """The training itself, with its progress bar -> the loop's progress (None if it was stopped),
    timing.

    timing: what this process did; a run that goes on counts its own steps only.
    """
    from .training import loop
    from .training.features import cached_features
    from .training.parallel import processes as parallel
    from .training.plan import plan_epochs, Rows
    rows = model.task.training_rows(data.train)
    train, dev = encode(model, rows, training=True)[0], encode(model, data.dev)[0]
    chosen = random.Random(f"fitted:{s.seed}").sample(range(len(rows)), min(len(rows), FITTED_ROWS))
    sample = Rows([train.encoded[row] for row in chosen], [train.labels[row] for row in chosen])
    cache = nullcontext()
    if not parallel.is_distributed():
        cache = cached_features(model, [*train.encoded, *dev.encoded], s)
    started = time.monotonic()
    with Progress(say is silent, dynamic_ncols=True, leave=False) as bar, StopSignal() as stop, cache:
        def say_above(line):
            bar.clear()
            say(line)

        def after_epoch(line):
            logits = model.scores(sample.encoded, s.eval_batch_size)
            fitted = model.task.measure(model.probabilities(logits), sample.labels)
            line[f"train_{s.metric}"] = fitted[s.metric]       # of the same rows in each epoch
            say_above(epoch_line(line, s.metric, model.task.METRICS))
            if on_epoch:
                on_epoch(dict(line))
        step, store = step_and_store(s, model, train.labels, folder, stop, say_above)
        hooks = loop.Hooks(lambda step, total, loss: bar(step, total, loss=f"{loss:.3f}"), after_epoch)
        progress = loop.fit(model, train, dev, s, store, step, hooks)
    if progress is not None and parallel.is_main_process():
        write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in progress["history"]))
    seconds = max(time.monotonic() - started, 1e-6)        # a clock may stand still
    steps = list(islice(chain.from_iterable(plan_epochs(model, train, s)), bar.first, bar.last))
    return progress, {"train_seconds": round(seconds, 1), "seconds_per_step": round(seconds / max(1, len(steps)), 4),
                      "examples_per_second": round(sum(map(len, steps)) / seconds, 1)}


def epoch_line(line, metric, names):
    """A line of the history in words: the loss, the metric on training rows, the metrics on dev."""
    dev = "  ".join(f"{name} {line[name]:.3f}" for name in names)
    return (f"epoch {line['epoch']:3d}  train loss {line['train_loss']:.3f}  "
            f"{metric} {line[f'train_{metric}']:.3f}  dev {dev}")


def finish(s, model, data, folder, record, progress, timing):
    """Test, compare with the baselines, save everything."""
    from .training.parallel import processes as parallel
    split = "test" if data.test else "dev"
    examples = getattr(data, split)
    rows, _ = encode(model, examples)

    def logits(encoded):
        return parallel.scores(model, encoded, s.eval_batch_size)
    probabilities = model.probabilities(logits(rows.encoded))

    def dev_probabilities():
        return model.probabilities(logits(encode(model, data.dev)[0].encoded))
    model.task = model.task.fitted(dev_probabilities, data.dev)
    found = model.task.check_answers(model, [e.texts for e in examples], logits)
    parallel.gather(model)
    if not parallel.is_main_process():
        return record
    name, own = f"{Path(s.model).name}, {s.method}", model.task.evaluate(probabilities, rows.labels)
    timing |= {"peak_memory_mb": peak_memory()}
    model.save(folder)                     # before the baselines, which may take more time and memory than there is
    check_saved(model, folder, [e.texts for e in examples[:3]])
    write_predictions(folder / "predictions.csv", examples, probabilities, model.labels, model.answers(probabilities))
    results = {**model.task.baselines(data, quick=s.baselines == "off"), name: own}
    record |= {"finished": True, "best_epoch": progress["best"]["epoch"], "split": split, "results": results, **found,
               "timing": timing}
    write_json(folder / "run.json", record)
    return record


def check_saved(model, folder, texts):
    """Load what was just saved: InputError unless it answers bit for bit as the model does."""
    from .classify.classifier import Classifier
    try:
        again = Classifier.load(folder).to(next(model.parameters()).device)
    except InputError as error:
        fault = f"is refused when it is loaded again ({error})"
    else:
        told, said = model.predict(texts), again.predict(texts)
        same = (again.labels, again.task.settings()) == (model.labels, model.task.settings())
        if same and (told == said).all():
            return
        apart = abs(told - said).max()
        fault = f"answers otherwise when it is loaded again, by {apart:.2g} in a probability"
    raise InputError(f"{folder}: what was saved {fault}: the state of training is kept; give the "
                     "same command again; if that ends here too, look whether the base has changed")


def show_record(record, data, folder, say=print):
    """Print a finished run: the final table, what speaks against it, and the folder, if it stays."""
    from .choose.advice import second_thoughts
    timing, split, task = record["timing"], record["split"], task_of(record["settings"], data)
    speed = f"{timing['examples_per_second']:.0f} examples a second, " if "examples_per_second" in timing else ""
    lines = task.table(record["results"], split, getattr(data, split), fitted=split == "dev")
    say("\n" + "\n".join(lines))
    for line in task.answer_lines(record):
        say("\n" + line)
    say(f"\nbest epoch {record['best_epoch']}; {record['parameters']['trainable']:,} of {record['parameters']['total']:,} "
          f"parameters trained; {timing['train_seconds']} s, {timing['seconds_per_step'] * 1000:.0f} ms a step, {speed}"
          f"peak memory {timing['peak_memory_mb']} MB")
    if folder:
        say(f"saved in {folder}; try:  python -m minillmclf.predict --model {folder} {task.EXAMPLE}")
    for line in second_thoughts(record):
        say(line)


def train_run(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """A run from the data to the saved model -> its record (run.json), None if it was stopped.

    overwrite: start anew although the folder holds a run; say: called with each line to be read on
    the way; on_epoch: called with a line of metrics.jsonl, a dict, after each epoch.
    """
    own = run_folder.RunFolder(folder)
    place = run_folder.place_of(s, folder, data, overwrite)
    model, trainable, total = build(s, data.labels, data.columns)
    model.read_as(reading_of(s, data))
    prepare(s, model)
    report = diagnose(model, data)
    say("\n".join(report.lines()))
    cut, lines = model.task.check_rows(model, [e.texts for e in data.train + data.dev + data.test])
    if lines:
        say("\n" + "\n".join(lines))
    if model.head.described:
        from .classify.label_text.doctor import examine
        say("\n" + "\n".join(examine(model.tokenizer, model.head, model.labels).lines()))
    say("\n" + "\n".join(model_lines(s, model, trainable, total)))
    record = {"settings": asdict(s), "finished": False, "base": run_folder.base_of(s),
              "data": {**data.source, "rows": report.rows, "labels": data.labels},
              "doctor": report.as_dict(), **cut, "versions": versions(),
              "parameters": {"trainable": trainable, "total": total}}
    own.begin(place, record, overwrite)
    progress, timing = learn(s, model, data, place, say, on_epoch)
    if progress is None:
        return None
    record = finish(s, model, data, place, record, progress, timing)
    own.settle()
    return record


def whole_run(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """The record of a run that is finished in the folder, else of `train_run`, which only this
    process may do there."""
    with run_folder.RunFolder(folder).held():
        if finished := open_run(s, folder, data, overwrite):
            say(f"{folder}: this run is finished already (--overwrite starts it anew)")
        return finished or train_run(s, data, folder, overwrite, say, on_epoch)


def main(arguments=None):
    with distributed():
        return carry_out(arguments)


def carry_out(arguments):
    """The command, in one process of however many there are -> exit code."""
    flags = vars(parse(arguments))
    config, overwrite = flags.pop("config"), flags.pop("overwrite")
    s = read_settings(flags, config)
    folder = Path(s.out or "runs/{}-{}-{}-{}".format(Path(s.model).name, Path(s.data).stem,
                                                     s.method, s.seed))
    data = load_dataset(s)
    record = whole_run(s, data, folder, overwrite)
    if record is None:
        again = "The same command" + " without --overwrite" * overwrite
        raise Stopped(f"stopped; the state is saved in {folder}. {again} goes on from there.")
    if record["finished"]:                         # in the main process, which alone writes
        show_record(record, data, folder)
    return 0


if __name__ == "__main__":
    run(main)
