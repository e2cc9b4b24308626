"""--dev cross: k-fold inside the training rows chooses the epoch; then all of them are learned.

A tenth of few rows is too few to choose an epoch by. So each row is held out once: for each of
FOLDS folds a new model learns the other rows, and answers the fold's rows after each epoch. The run
keeps the epoch with the best answers to all rows (Stone 1974, "Cross-validatory choice and
assessment of statistical predictions"). Its dev score is a little too good, as the same rows chose
the epoch. Test rows are not read. It takes FOLDS + 1 trainings; a stopped run makes its folds
again, with the same result.
"""
import hashlib
import json
import tempfile
from dataclasses import replace

import torch

from ..errors import InputError
from ..text.examples import text_key
from ..training import loop
from ..training.metrics import is_better
from ..training.parallel.processes import is_distributed
from ..training.plan import Split, plan_epochs
from .build import build_classifier
from .machine import add_probe, memory_of_run, prepare_for_training, step_and_store
from .parser import StopSignal
from .rows import encode_split

FOLDS = 5


def assign_rows(examples, seed):
    """-> the fold, 0 to FOLDS - 1, of each example. Equal texts share a fold, and the texts of a
    class are dealt evenly, in the order of sha256(seed, text). InputError for a class with fewer
    texts than FOLDS."""
    label_of = {text_key(e.texts): e.label for e in reversed(examples)}  # of equals, the first
    for label in sorted({e.label for e in examples}):
        count = sum(own == label for own in label_of.values())
        if count < FOLDS:
            raise InputError(f"--dev cross: class {label!r:.60} has {count} different texts for "
                             f"{FOLDS} folds: add rows of it, or set --dev none")
    order = sorted(label_of, key=lambda text: (label_of[text], hashlib.sha256(
        json.dumps([seed, *text]).encode()).digest()))
    fold_of = {text: place % FOLDS for place, text in enumerate(order)}
    return [fold_of[text_key(e.texts)] for e in examples]


def fit_as_asked(s, model, train, data, say):
    """-> a function with the arguments of loop.fit: loop.fit itself, or with --dev cross one that
    keeps the epoch that the folds chose; its history has the metrics of the held-out rows.

    s: cli.settings.Settings; train: plan.Split of data.train; say: a function that prints a line.
    """
    if s.dev != "cross":
        return loop.fit
    if is_distributed():
        raise InputError("--dev cross takes one process, not torchrun")
    with StopSignal() as stop:
        epochs = plan_epochs(model, train, s).epochs       # as many in a fold, of fewer steps each
        found = answer_held_out(replace(s, epochs=epochs, min_steps=0), data, stop, say)
    if found is None:
        return lambda *_: None                             # stopped, as loop.fit says it
    best = choose_epoch(found, s.metric)
    say(f"epoch {best} of {len(found)} is the best on the held-out rows of {FOLDS} folds: "
        f"{s.metric} {found[best - 1][s.metric]:.3f}")
    return keep_epoch(best, found)


def keep_epoch(best, found):
    """-> a function as loop.fit, which keeps the weights of epoch `best`. It replaces
    store.save_best and hooks.on_epoch, so that an epoch's metrics are those of `found`."""
    def fit(model, train, dev, s, store, step, hooks):
        save, on_epoch = store.save_best, hooks.on_epoch

        def with_metrics(line):
            line |= found[line["epoch"] - 1]
            on_epoch(line)
        store.save_best = lambda model, epoch: save(model, epoch) if epoch <= best else None
        hooks.on_epoch = with_metrics
        progress = loop.fit(model, train, dev, s, store, step, hooks)
        if progress is not None:                   # also the epochs of before an interruption
            progress["history"] = [line | metrics
                                   for line, metrics in zip(progress["history"], found)]
            progress["best"] = {"epoch": best, s.metric: found[best - 1][s.metric]}
        return progress
    return fit


def choose_epoch(found, metric):
    """The metrics of each epoch -> the best epoch, from 1; ties are broken as in the loop."""
    best = 1
    for epoch, metrics in enumerate(found, 1):
        if is_better(metric, metrics, found[best - 1]):
            best = epoch
    return best


def answer_held_out(s, data, stop, say):
    """-> for each epoch {name of a metric: value} over all training rows, each row answered by the
    model that has not learned it; None if the user stopped."""
    folds, targets = assign_rows(data.train, s.seed), []
    logits = []                                 # of each fold: a tensor (n, C) for each epoch
    for fold in range(FOLDS):
        learned = [example for example, own in zip(data.train, folds) if own != fold]
        held_out = [example for example, own in zip(data.train, folds) if own == fold]
        say(f"fold {fold + 1} of {FOLDS}: {len(learned)} rows learned, {len(held_out)} held out")
        model, dev, answers = fit_fold(s, data, learned, held_out, stop)
        if answers is None:
            return None
        targets, logits = targets + list(dev.targets), [*logits, answers]
    return [model.task.measure(model.probabilities(torch.cat(parts)), targets)
            for parts in zip(*logits)]          # any fold's model would do: all have the same task


def fit_fold(s, data, learned, held_out, stop):
    """Train a new model on `learned` -> the model; `held_out` as a plan.Split; the logits (n, C)
    of `held_out` after each epoch, or None if the user stopped."""
    model, _, _ = build_classifier(s, data.labels, data.columns)
    prepare_for_training(s, model)
    train = encode_split(model, model.task.training_examples(learned), training=True)
    dev, logits = encode_split(model, held_out), []

    def answer(line=None):
        logits.append(model.compute_logits(dev.encoded, s.eval_batch_size))
    with tempfile.TemporaryDirectory() as folder, \
            memory_of_run(s, model, [*train.encoded, *dev.encoded]):
        step, store = step_and_store(s, model, train.targets, folder, stop, lambda line: None)
        hooks = loop.Hooks(on_epoch=answer)
        add_probe(s, model, train, hooks)
        progress = loop.fit(model, train, Split([], []), s, store, step, hooks)
        if progress and not logits:                        # no epochs: the probe alone
            answer()
    return model, dev, logits if progress else None
