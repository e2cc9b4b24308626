"""python -m minillmclf.train: fine-tune a classifier, evaluate it, save it.

Without arguments: the shipped checkpoint mini-bert on the bundled data set tickets. On your own data:

  python -m minillmclf.train --model checkpoints/bert-base-uncased --data my.csv --out runs/mine --lr 5e-5 --epochs 3

The run folder holds run.json (all settings, data hash, versions, results), metrics.jsonl (a line for each epoch),
predictions.csv, and the model as a Hugging Face folder. A run that was stopped, by Ctrl-C or worse, goes on when the same
command is given again, and ends bit for bit as if nothing had happened. On several GPUs, or cores, of one machine:

  torchrun --nproc-per-node 2 -m minillmclf.train --data my.csv
"""
import argparse
import csv
import functools
import io
import json
import os
import platform
import re
import random
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

from .cli.build import build, encode, reading_of, task_kind, task_of
from .cli.parser import Parser, Stopped, StopSignal, run
from .errors import InputError
from .files import NEW, check_fields, find_model, locked, look_at, read_json, remove, short
from .cli.progress import Progress
from .cli.settings import add_settings, read_settings

FITTED_ROWS = 200              # training rows, drawn by the seed, measured after each epoch


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.train", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", help="a run.json: take its settings, flags go over them")
    p.add_argument("--overwrite", action="store_true", help="start anew although --out holds a run")
    return add_settings(p).parse_args(arguments)


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
    from .text.data import load_data
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
        ways = [] if model.head.described else ["--keep head+tail keeps both ends"]
        if ways and model.head.most_texts == 2 and not new_words(model):
            ways.insert(0, "--windows mean reads them whole")
        remedy = "the model takes no more" + ": " * bool(ways) + ", ".join(ways)
    return examine(data, lengths, most, remedy, unknown)


def versions():
    """What the numbers depend on besides the settings."""
    import numpy
    import safetensors
    import torch

    from . import __version__
    return {"minillmclf": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": numpy.__version__, "safetensors": safetensors.__version__, "threads": torch.get_num_threads()}


def peak_memory():
    """The most memory that this process has held so far, in MB; None on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)


WHOLE = ".whole"                             # where a run that replaces another lies while it is moved; NEW: while it is made
STATES = ("state.safetensors", "best.safetensors")
SAVED = ("run.json", "tuned.json", "config.json", "metrics.jsonl", "predictions.csv", "report.html", *STATES, "tokenizer.json",
         "tokenizer_config.json", "model.safetensors", "model.safetensors.index.json", "adapter/adapter_config.json",
         "adapter/adapter_model.safetensors", "adapter/minillmclf.json")
RUN = {"settings?": (lambda v: isinstance(v, dict), "an object"), "finished?": (lambda v: isinstance(v, bool), "true or false"),
       "data?": (lambda v: isinstance(v, dict), "an object"), "base?": (lambda v: isinstance(v, str), "a text")}


def is_shown(record, data):
    """Does a finished run's record hold what show_record prints?"""
    try:
        show_record(record, data, "", say=str)
        return record["split"] in ("dev", "test")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False


def base_of(s):
    """The fingerprint of the model that a run begins with. A file is read again if it looks as if it had changed."""
    folder = find_model(s.model).resolve()
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return read_base(folder, tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats))


@functools.lru_cache
def read_base(folder, looks):
    from .tuning.saved import fingerprint
    return fingerprint(folder)


def differences(s, place, data):
    """What a run in a folder was made with, other than is asked now, a list of names; and its record."""
    record = check_fields(read_json(place / "run.json"), RUN, place / "run.json")
    then = read_settings({}, place / "run.json").decisive()
    differ = [name for name, value in s.decisive().items() if value != then[name]]
    differ += ["sha256 of the data"] if record.get("data", {}).get("sha256") != data.source["sha256"] else []
    changed = not differ and "base" in record and record["base"] != base_of(s)
    return differ + [f"base (the weights, config or tokenizer in {s.model} have changed)"] * changed, record


def place_of(s, folder, data, overwrite):
    """Where the run is made: in its folder, but beside a run that it is to replace, in folder/.new."""
    if overwrite:
        return folder / NEW if (folder / "run.json").exists() or (folder / "config.json").exists() else folder
    try:
        return folder if differences(s, folder / NEW, data)[0] else folder / NEW
    except InputError:                                     # there is none, or a broken one
        return folder


def open_run(s, folder, data, overwrite):
    """Look at what lies in the run folder -> its run.json if the same run is finished there, else None.

    Another run, or a folder with other things in it, is an InputError: nothing is overwritten unasked.
    """
    apart = [("--model", find_model(s.model)), ("--data", s.data)]
    for name in SAVED:
        look_at(folder / name, apart)
    if overwrite or place_of(s, folder, data, overwrite) != folder:
        return None
    if not (folder / "run.json").exists():
        found = next((name for name in ("config.json", *SAVED)
                      if (folder / name).exists() and name not in STATES), None)
        if found:
            what = "a model" if found == "config.json" else found
            raise InputError(f"--out {short(folder, 200)}: holds {what} but no run.json: choose "
                             "another --out, or --overwrite")
        return None
    differ, earlier = differences(s, folder, data)
    if differ:
        raise InputError(f"{folder}: holds a run with another {', '.join(differ)}: choose another --out, or --overwrite")
    if earlier.get("finished") and not is_shown(earlier, data):
        raise InputError(f"{folder}/run.json: its results are not as train writes them: --overwrite starts anew")
    return earlier if earlier.get("finished") else None


def clear(folder):
    """Remove what an earlier run left in the folder, its record first."""
    for path in [*(folder / name for name in SAVED), *folder.glob("model-*-of-*.safetensors")]:
        if path.exists():
            path.unlink()


def settle(folder, record="run.json", clear=clear):
    """Bring to its end what a process had not the time for: a new run that is whole takes the place of the one before;
    the state of a finished run and files that were half written go."""
    def finished(place):
        try:
            return read_json(place / record).get("finished") is True
        except InputError:
            return False
    new, whole = folder / NEW, folder / WHOLE
    if finished(new):
        clear(folder)
        os.replace(new, whole)
    late = ("config.json", "tuned.json", record)           # without which nobody loads a folder that is half moved
    for path in sorted(whole.rglob("*"), key=lambda path: late.index(path.name) if path.name in late else -1):
        if path.is_file():
            target = folder / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    half = [(folder / name).with_name(f".{Path(name).name}.writing") for name in SAVED]
    for path in [whole, *half, *(folder / name for name in STATES if finished(folder))]:
        if path.exists():
            remove(path)


@contextmanager
def owned(folder, **more):
    """with owned(folder): ...   No other process writes there, and what a killed one has left is settled (`settle`)."""
    from .training.parallel import processes as parallel
    with locked(folder) if parallel.is_main_process() else nullcontext():
        if parallel.is_main_process():
            settle(folder, **more)
        parallel.barrier()                                    # until all can see what lies in the folder
        yield


def write_predictions(path, examples, probabilities, labels, answers=None):
    """predictions.csv: line in the source, texts, true label, answer (default: the likeliest class), and a probability for
    each class. Texts are as they are in the data, even those that a spreadsheet computes: =1+1."""
    from .files import write_text
    from .text.data import text_names
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["line", *text_names(len(examples[0].texts)), "label", "predicted", *(f"p_{name}" for name in labels)])
    for example, answer, p in zip(examples, answers or [labels[p.argmax()] for p in probabilities], probabilities):
        writer.writerow([example.row, *example.texts, example.label, answer, *(f"{x:.6f}" for x in p)])
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
    from .files import write_text
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
    from .files import write_text
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
    write_text(folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
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
    from .cli.baseline_warning import baseline_warning
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
    for line in baseline_warning(record):
        say(line)


def train_run(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """One whole run: build, look at the data, learn, finish -> its record (what run.json holds), None if it was stopped.

    overwrite: start anew although the folder holds a run; say: called with what a person should
    read on the way; on_epoch: with a line of metrics.jsonl, a dict, after each epoch.
    """
    from .files import write_text
    from .training.parallel import processes as parallel
    from .training.rates import lr_line
    from .training.recompute import recompute_blocks
    place = place_of(s, folder, data, overwrite)
    model, trainable, total = build(s, data.labels, data.columns)
    model.read_as(reading_of(s, data))
    parallel.replicate(model)
    if s.parallel == "fsdp":
        from .training.parallel.fsdp import shard
        shard(model, s.optimizer)
    if s.checkpointing == "on":
        recompute_blocks(model)
    report = diagnose(model, data)
    say("\n".join(report.lines()))
    cut, lines = model.task.check_rows(model, [e.texts for e in data.train + data.dev + data.test])
    if lines:
        say("\n" + "\n".join(lines))
    if model.head.described:
        from .classify.label_text.doctor import examine
        say("\n" + "\n".join(examine(model.tokenizer, model.head, model.labels).lines()))
    say(f"\n{s.model}: {model.report.line() if s.weights == 'pretrained' else 'random weights'}; "
        f"{trainable:,} of {total:,} parameters trainable; {lr_line(s)}")
    if model.quantise:
        kinds = sorted({re.sub(r"\.\d+\.", ".{}.", path) for path in model.kept_whole})
        say(f"in four bits ({model.quantise}): the body's linear layers; kept whole: {', '.join(kinds)}")
    record = {"settings": asdict(s), "finished": False, "base": base_of(s),
              "data": {**data.source, "rows": report.rows, "labels": data.labels},
              "doctor": report.as_dict(), **cut, "versions": versions(), "parameters": {"trainable": trainable, "total": total}}
    parallel.barrier()                                        # until all have seen what lies in the folder
    if parallel.is_main_process():
        if overwrite or not (place / "run.json").exists():     # only now: a run that cannot begin costs no earlier one
            remove(folder / NEW)
            clear(place)
        write_text(place / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    parallel.barrier()
    progress, timing = learn(s, model, data, place, say, on_epoch)
    record = progress and finish(s, model, data, place, record, progress, timing)
    if record and parallel.is_main_process():
        settle(folder)
    return record


def whole_run(s, data, folder, overwrite=False, say=print, on_epoch=None):
    """`train_run` in a folder of one's own -> its record, or that of a run that is finished there."""
    with owned(folder):
        if finished := open_run(s, folder, data, overwrite):
            say(f"{folder}: this run is finished already (--overwrite starts it anew)")
        return finished or train_run(s, data, folder, overwrite, say, on_epoch)


def main(arguments=None):
    from .cli.launch import distributed
    with distributed():
        return carry_out(arguments)


def carry_out(arguments):
    """The command, in one process of however many there are -> exit code."""
    flags = vars(parse(arguments))
    config, overwrite = flags.pop("config"), flags.pop("overwrite")
    s = read_settings(flags, config)
    folder = Path(s.out or f"runs/{Path(s.model).name}-{Path(s.data).stem}-{s.method}-{s.seed}")
    data = load_dataset(s)
    record = whole_run(s, data, folder, overwrite)
    if record is None:
        raise Stopped(f"stopped; the state is saved in {folder}. "
                      f"The same command{' without --overwrite' * overwrite} goes on from there.")
    if record["finished"]:                                 # in the first process; the others leave all writing to it
        show_record(record, data, folder)
    return 0


if __name__ == "__main__":
    run(main)
