"""From finished cells to the numbers of a comparison: means with intervals, differences to the best row, costs.

How they are shown is in table.py. Intervals over seeds are Student's; with one seed they are drawn over test rows. The
difference to the best row is drawn over test rows that both share, seed by seed; the best row is the one with the best mean
on these same rows, which flatters it a little. Of a sweep only the candidate with the best dev metric gets a row: test
scores choose nothing, so those of the others are not shown.
"""
import statistics
from dataclasses import dataclass

import numpy as np

from .candidates import how
from ..errors import InputError
from ..training.metrics import METRICS, evaluate
from ..training.statistics import bootstrap, mcnemar, t_interval

BOUNDED = ("accuracy", "macro_f1", "ece")
ROUNDED = 5e-7                                             # half of the last digit of a probability in predictions.csv


@dataclass
class Answers:
    """The predictions.csv of one cell: which rows, their classes (N,), right or not (N,), probabilities (N, C)."""
    rows: list
    labels: list
    truth: np.ndarray
    right: np.ndarray
    probabilities: np.ndarray

    def per_row(self, metric):
        """What each row adds to a metric that is a mean over rows (N,); None for the others."""
        if metric == "accuracy":
            return self.right.astype(float)
        return -np.log(self.probabilities[np.arange(len(self.truth)), self.truth]) if metric == "log_loss" else None

    def score(self, metric, which):
        """The metric on some of the rows."""
        return evaluate(self.probabilities[which], self.truth[which], self.labels)[metric]


def read_answers(path, accuracy=None):
    """predictions.csv -> Answers; InputError for other things in it, or another accuracy."""
    from ..text.table_files import read_table
    table, right = read_table(path, "double"), None
    try:
        names = table.columns[table.columns.index("predicted") + 1:]
        labels, rows = [name.removeprefix("p_") for name in names], [row for _, row in table.rows]
        probabilities = np.array([[row[name] for name in names] for row in rows], float)   # (N, C)
        answer, truth = (np.array([labels.index(row[column]) for row in rows])
                         for column in ("predicted", "label"))
        right, told = answer == truth, [(row["line"], row["label"]) for row in rows]
    except (ValueError, KeyError):
        pass
    if right is None or not ((probabilities >= 0) & (probabilities <= 1)).all() \
            or accuracy is not None and abs(right.mean() - accuracy) > 1e-6:
        raise InputError(f"{path}: holds other answers than were written: remove it, and its cell "
                         "is made again")
    probabilities = np.clip(probabilities, ROUNDED, 1)
    probabilities[np.arange(len(rows)), answer] += ROUNDED / 10          # what rounding made equal
    return Answers(told, labels, truth, right, probabilities)


def interval(metric, values, answers):
    """Mean over seeds with its interval -> {"mean", "low", "high"}. values: a score a seed; answers: those of the first."""
    if len(values) > 1:
        mean, low, high = t_interval(values)
    else:
        rows, mean = answers.per_row(metric), values[0]
        low, high = bootstrap((lambda i: rows[i].mean()) if rows is not None else (lambda i: answers.score(metric, i)),
                              len(answers.rows))
    low = max(low, 0.0)
    return {"mean": mean, "low": low, "high": min(high, 1.0) if metric in BOUNDED else high}


def against(metric, own, best):
    """A row's answers against the best row's, {seed: Answers} each -> ({"mean", "low", "high"} of own minus best, [p of McNemar's
    test for each seed]); (None, []) where they have no seed in common or not the same test rows."""
    seeds = [seed for seed in own if seed in best]
    first = own[seeds[0]].rows if seeds else None
    if not seeds or any(cells[seed].rows != first for cells in (own, best) for seed in seeds):
        return None, []
    pairs, all_rows = [(own[seed], best[seed]) for seed in seeds], np.arange(len(first))
    if pairs[0][0].per_row(metric) is not None:
        gaps = np.mean([a.per_row(metric) - b.per_row(metric) for a, b in pairs], axis=0)               # (N,)

        def difference(which):
            return float(gaps[which].mean())
    else:
        def difference(which):
            return float(np.mean([a.score(metric, which) - b.score(metric, which) for a, b in pairs]))
    low, high = bootstrap(difference, len(first))
    return {"mean": difference(all_rows), "low": low, "high": high}, [mcnemar(a.right, b.right) for a, b in pairs]


def row_of(cells, label, metric, answers):
    """The finished cells of one candidate at one size, a seed each -> a row of the table, not yet compared with others."""
    records, c = [cell["record"] for cell in cells], cells[0]["candidate"]
    test = {name: [r["test"][name] for r in records] for name in METRICS}
    known = {key: [r[key] for r in records if r[key] is not None] for key in ("memory_mb", "train_seconds", "ms_per_text")}
    method, readout = ("", "") if c.baseline else (c.settings.method, c.settings.readout)
    return {"model": label.removesuffix(how(c)), "method": method, "readout": readout, "label": label, "settings": c.swept,
            "size": number_of(cells[0]["size"]), "split": records[0]["split"], "metric": metric, "score": interval(metric, test[metric], answers),
            "accuracy": interval("accuracy", test["accuracy"], answers),
            **{name: statistics.mean(test[name]) for name in ("macro_f1", "log_loss", "ece")},
            "dev": statistics.mean(r["dev"][metric] for r in records), "dev_rows": records[0].get("dev_rows"), "trainable": records[0]["trainable"],
            "memory_mb": max(known["memory_mb"], default=None),
            "train_seconds": statistics.mean(known["train_seconds"]) if known["train_seconds"] else None,
            "ms_per_text": known["ms_per_text"][0] if known["ms_per_text"] else None,
            "seeds": len(cells), "scores": test[metric]}


def number_of(size):
    """"10" -> 10; "all" stays."""
    return size if size == "all" else int(size)


def choose(groups, metric):
    """The candidate with the best mean dev metric in each group, {group: {candidate number: cells}} -> {group: number}."""
    def dev(cells):
        return METRICS[metric] * statistics.mean(cell["record"]["dev"][metric] for cell in cells)
    return {group: max(found, key=lambda number: dev(found[number])) for group, found in groups.items()}


def summarise(cells, labels, metric):
    """All cells -> {"metric", "rows", "sweep", "left_out"}, plain enough for JSON.

    cells: {"candidate", "number" (of the candidate), "size", "seed", "record", "folder"} each; labels: of each group.
    """
    summary = {"metric": metric, "rows": [], "sweep": [], "left_out": []}
    for size in dict.fromkeys(cell["size"] for cell in cells):
        here, groups, compared = [cell for cell in cells if cell["size"] == size], {}, []
        for cell in here:
            c = cell["candidate"]
            if cell["record"]["state"] == "finished":
                groups.setdefault(c.group, {}).setdefault(cell["number"], []).append(cell)
            else:
                summary["left_out"].append({"label": labels[c.group], "settings": c.swept, "size": number_of(size),
                                            "seed": cell["seed"], "reason": cell["record"]["reason"]})
        chosen = choose(groups, metric)
        for group, found in groups.items():
            for number, many in found.items():
                if many[0]["candidate"].sweep:
                    summary["sweep"].append({
                        "label": labels[group], "settings": many[0]["candidate"].swept, "size": number_of(size),
                        "dev": statistics.mean(cell["record"]["dev"][metric] for cell in many), "seeds": len(many),
                        "chosen": number == chosen[group]})
            best = found[chosen[group]]
            answers = {cell["seed"]: read_answers(cell["folder"] / "predictions.csv",
                                                  cell["record"]["test"]["accuracy"])
                       for cell in best}
            compared.append((row_of(best, labels[group], metric, next(iter(answers.values()))), answers))
        summary["rows"] += with_differences(compared, metric)
    return summary


def with_differences(compared, metric):
    """Rows of one size, each with its answers -> rows that also say how far they are from the best."""
    if not compared:
        return []
    top, its_answers = max(compared, key=lambda pair: METRICS[metric] * pair[0]["score"]["mean"])
    for row, answers in compared:
        difference, p = (None, []) if row is top else against(metric, answers, its_answers)
        row |= {"best": row is top, "difference": difference, "mcnemar": statistics.median(p) if p else None,
                "mcnemar_seeds": p}
    return [row for row, _ in compared]
