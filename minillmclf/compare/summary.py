"""From finished runs to the numbers of a comparison: means with intervals, differences, costs.

Intervals: Student's t over seeds; with one seed, a bootstrap over test rows. The interval of the
difference to the best row: a paired bootstrap over test rows. The best row is the one with the best
mean on these same rows, which flatters it a little. Of a sweep only the configuration with the best
dev metric gets a table row: test scores choose nothing. How the numbers are shown: table.py.
"""
from statistics import mean, median
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..text.table_files import read_table
from ..training.metrics import METRICS, evaluate
from ..training.statistics import bootstrap_interval, mcnemar_p, t_interval

ROUNDING_ERROR = 5e-7       # half of the last digit of a probability in predictions.csv


@dataclass
class Predictions:
    """A run's predictions.csv. rows: (line, label) of each of N rows; labels: the C classes."""
    rows: list
    labels: list
    targets: np.ndarray         # (N,) class numbers
    right: np.ndarray           # (N,) bool
    probabilities: np.ndarray   # (N, C)

    def statistic(self, metric):
        """-> a function: indices of rows, some maybe repeated -> the metric on these rows."""
        if metric == "accuracy":
            return lambda rows: float(self.right[rows].mean())
        if metric == "log_loss":
            losses = -np.log(self.probabilities[np.arange(len(self.targets)), self.targets])
            return lambda rows: float(losses[rows].mean())
        return lambda rows: evaluate(self.probabilities[rows], self.targets[rows],
                                     self.labels)[metric]


def read_predictions(path, accuracy=None):
    """predictions.csv -> Predictions. InputError if it is faulty, or has another accuracy."""
    table, is_good = read_table(path, "double"), False
    rows = [row for _, row in table.rows]
    try:
        names = table.columns[table.columns.index("predicted") + 1:]
        labels = [name.removeprefix("p_") for name in names]
        probabilities = np.array([[row[name] for name in names] for row in rows], float)   # (N, C)
        targets = np.array([labels.index(row["label"]) for row in rows])
        answers = np.array([labels.index(row["predicted"]) for row in rows])
        right = answers == targets
        is_good = ((probabilities >= 0) & (probabilities <= 1)).all() and (
            accuracy is None or abs(right.mean() - accuracy) <= 1e-6)
    except (ValueError, KeyError):
        pass
    if not is_good:
        raise InputError(f"{path}: holds other answers than were written: remove it, and its run "
                         "is made again")
    probabilities = np.clip(probabilities, ROUNDING_ERROR, 1)
    probabilities[np.arange(len(rows)), answers] += ROUNDING_ERROR / 10      # the answer wins ties
    return Predictions([(row["line"], row["label"]) for row in rows], labels, targets, right,
                       probabilities)


def interval_over_seeds(metric, values, predictions):
    """Mean over seeds with its 95 % interval -> {"mean", "low", "high"}. values: one for each seed;
    predictions: of the first seed, read only if there is no other."""
    if len(values) > 1:
        average, low, high = t_interval(values)
    else:
        average = values[0]
        low, high = bootstrap_interval(predictions.statistic(metric), len(predictions.rows))
    return {"mean": average, "low": max(low, 0.0),
            "high": high if metric == "log_loss" else min(high, 1.0)}


def difference_to_best(metric, own, best):
    """One table row's score minus the best one's -> ({"mean", "low", "high"}, McNemar's p for each
    seed); (None, []) if the two have no seed in common, or different test rows. own, best: {seed:
    Predictions} of the two."""
    pairs = [(own[seed], best[seed]) for seed in own if seed in best]
    rows = pairs[0][0].rows if pairs else None
    if not pairs or any(a.rows != rows or b.rows != rows for a, b in pairs):
        return None, []
    statistics = [(a.statistic(metric), b.statistic(metric)) for a, b in pairs]

    def mean_difference(indices):
        return mean(a(indices) - b(indices) for a, b in statistics)
    low, high = bootstrap_interval(mean_difference, len(rows))
    return ({"mean": mean_difference(np.arange(len(rows))), "low": low, "high": high},
            [mcnemar_p(a.right, b.right) for a, b in pairs])


def table_row(runs, label, metric, predictions):
    """The finished runs of a configuration, one size, all seeds -> a row of the table, a dict."""
    records, c = [run.record for run in runs], runs[0].configuration
    test = {name: [record["test"][name] for record in records] for name in METRICS}
    costs = {key: [record[key] for record in records if record[key] is not None]
             for key in ("memory_mb", "train_seconds", "ms_per_text")}
    model = label.removesuffix(f" {c.method_settings}") if c.method_settings else label
    return {
        "model": model.removesuffix(c.label_suffix),
        "method": "" if c.is_baseline else c.settings.method,
        "readout": "" if c.is_baseline else c.settings.readout, "label": label,
        "settings": c.row_settings, "size": runs[0].size, "split": records[0]["split"],
        "metric": metric,
        "score": interval_over_seeds(metric, test[metric], predictions),
        "accuracy": interval_over_seeds("accuracy", test["accuracy"], predictions),
        **{name: mean(test[name]) for name in ("macro_f1", "log_loss", "ece")},
        "dev": dev_mean(runs, metric), "dev_rows": records[0].get("dev_rows"),
        "trainable": records[0]["trainable"], "memory_mb": max(costs["memory_mb"], default=None),
        "train_seconds": mean(costs["train_seconds"]) if costs["train_seconds"] else None,
        "ms_per_text": next(iter(costs["ms_per_text"]), None),
        "seeds": len(runs), "scores": test[metric]}


def dev_mean(runs, metric):
    return mean(run.record["dev"][metric] for run in runs)


def summarise(runs, labels, metric):
    """Runs with their records -> {"metric", "rows", "sweep", "left_out"}, ready for JSON.

    labels: {group: label}.
    """
    summary = {"metric": metric, "rows": [], "sweep": [], "left_out": []}
    for size in dict.fromkeys(run.size for run in runs):
        groups, compared = {}, []               # group -> row_settings -> runs, one for each seed
        for run in [run for run in runs if run.size == size]:
            c = run.configuration
            if run.is_finished:
                groups.setdefault(c.group, {}).setdefault(c.row_settings, []).append(run)
            else:
                summary["left_out"].append({
                    "label": labels[c.group], "settings": c.row_settings, "size": size,
                    "seed": run.seed, "reason": run.record["reason"]})
        for group, variants in groups.items():
            dev = {settings: dev_mean(same, metric) for settings, same in variants.items()}
            chosen = max(dev, key=lambda settings: METRICS[metric] * dev[settings])
            for settings, same in variants.items():
                if same[0].configuration.sweep:
                    summary["sweep"].append({
                        "label": labels[group], "settings": settings, "size": size,
                        "dev": dev[settings], "seeds": len(same), "chosen": settings == chosen})
            predictions = {run.seed: read_predictions(run.folder / "predictions.csv",
                                                      run.record["test"]["accuracy"])
                           for run in variants[chosen]}
            first = next(iter(predictions.values()))
            row = table_row(variants[chosen], labels[group], metric, first)
            compared.append((row, predictions))
        add_differences(compared, metric)
        summary["rows"] += [row for row, _ in compared]
    return summary


def add_differences(compared, metric):
    """Add to each row its difference to the best. compared: [(row, {seed: Predictions}), ...]."""
    if not compared:
        return
    best, answers = max(compared, key=lambda pair: METRICS[metric] * pair[0]["score"]["mean"])
    for row, own in compared:
        gap, p = (None, []) if row is best else difference_to_best(metric, own, answers)
        row |= {"best": row is best, "difference": gap,
                "mcnemar": median(p) if p else None, "mcnemar_seeds": p}
