"""How good are the out-of-fold answers? Metrics over folds, a temperature, the printed table."""
from dataclasses import replace

import numpy as np
import torch

from ..classify.calibrate import fit_temperature
from ..training.metrics import METRICS, evaluate

LINE_FORMAT = "{:<24}{:>8}{:>10}{:>10}{:>8}"


def cross_fitted_logits(logits, targets, folds):
    """The logits (N, C) of each fold, divided by the temperature fitted to all *other* folds."""
    out, folds, targets = torch.empty_like(logits), torch.tensor(folds), torch.tensor(targets)
    for fold in folds.unique():
        rows = folds == fold                                                # (N,)
        out[rows] = fit_temperature(logits[~rows], targets[~rows])(logits[rows])
    return out


def evaluate_folds(logits, targets, folds, labels):
    """Metrics of out-of-fold logits (N, C) -> {"folds": of each fold, "mean" and "sd" of these,
    "all": of all rows, "calibrated": of all rows, with `cross_fitted_logits`}."""
    fold_of_row, target_of_row = np.array(folds), np.array(targets)         # (N,) each

    def measure(logits, rows):
        return evaluate(logits.softmax(-1).numpy()[rows], target_of_row[rows], labels)
    each = [measure(logits, fold_of_row == fold) for fold in range(max(folds) + 1)]
    return {"folds": each,
            "mean": {name: float(np.mean([m[name] for m in each])) for name in METRICS},
            "sd": {name: float(np.std([m[name] for m in each], ddof=1)) for name in METRICS},
            "all": measure(logits, slice(None)),
            "calibrated": measure(cross_fitted_logits(logits, targets, folds), slice(None))}


def submission_calibration(fitted, metrics, flag):
    """The Calibration of a submission: `fitted` if cross-fitted temperatures lower the log loss and
    --temperature (`flag`) is auto, else one with temperature 1. metrics: of `evaluate_folds`."""
    helps = metrics["calibrated"]["log_loss"] < metrics["all"]["log_loss"]
    return fitted if helps and flag == "auto" else replace(fitted, temperature=1.0)


def mean_probabilities(logits, calibration):
    """A list of the models' logits (M, C) -> the mean of their probabilities (M, C). Where models
    disagree, the mean is less confident than they are."""
    return (sum(calibration(one).softmax(-1) for one in logits) / len(logits)).numpy()


def report_lines(metrics, folds, fitted, used):
    """The printed table -> lines. fitted, used: temperatures; `used` is 1 if none is applied."""
    rows = {f"fold {i} ({folds.count(i - 1)} rows)": m for i, m in enumerate(metrics["folds"], 1)}
    rows |= {"sd over the folds": metrics["sd"], f"all {len(folds)} rows": metrics["all"],
             "all, calibrated": metrics["calibrated"]}
    lines = [LINE_FORMAT.format("out of fold", "accuracy", "macro F1", "log loss", "ECE")]
    lines += [LINE_FORMAT.format(name, *(f"{m[key]:.3f}" for key in METRICS))
              for name, m in rows.items()]
    before, after = metrics["all"]["log_loss"], metrics["calibrated"]["log_loss"]
    if used == fitted:
        verdict = "applied"
    elif after < before:
        verdict = "NOT applied: --temperature off"
    else:
        verdict = "NOT applied: it does not lower the log loss"
    return lines + ["", f"temperature {fitted:.3f} (fitted to all rows); log loss {before:.4f} "
                        f"before, {after:.4f} after, where each fold's temperature is fitted to "
                        f"the other folds; {verdict}"]
