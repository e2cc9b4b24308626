"""python -m minillmclf.report: a finished run as one web page, to read, to keep, to pass on.

  python -m minillmclf.report --run runs/mini-bert-tickets-full-0
  python -m minillmclf.report --run runs/mine --out mine.html

What was run, the results beside the baselines, the course of the training, which class is taken for which, calibration, the
worst mistakes, F1 of each class, settings and versions. The page is whole in itself: no script, nothing from the network.
The pictures need matplotlib (pip install -e '.[plots]'); without it the page has tables and texts only.

Reads run.json, metrics.jsonl and predictions.csv of a run folder, as train writes them; no model, no data.
"""
import argparse
import base64
import html
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import pictures
from ..cli.parser import Parser, run
from ..errors import InputError
from ..files import check_out, read_json, write_text
from ..cli.settings import Settings, renamed
from ..text.table_files import read_table
from ..training.metrics import METRICS

WORST = 20                        # so many rows with the lowest probability of the true class
LONGEST = 600                     # characters of a text that are shown
ANEW = "train the run again with --overwrite"
STYLE = """
:root { --paper: #ffffff; --ink: #1a1a1a; --soft: #55595f; --line: #c8ccd1; --band: #f2f4f6; --mark: #005a9c; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e8eaed; --soft: #b4bac2; --line: #444a52; --band: #20252b; --mark: #8ec5ff; }
}
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
p, figcaption { color: var(--soft); margin: 0.4rem 0; }
.box { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; overflow-wrap: normal; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { background: var(--band); }
th:first-child, td:first-child { padding-left: 0.4rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.text { min-width: 14rem; max-width: 34rem; overflow-wrap: anywhere; }
tr.own { font-weight: bold; }
figure { margin: 0.8rem 0; }
img { display: block; height: auto; max-width: 100%; border-radius: 4px; }
summary { cursor: pointer; color: var(--mark); }
"""


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", required=True, help="the folder of a finished run")
    p.add_argument("--out", help="the page, an .html file [report.html in the run folder]")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    return p.parse_args(arguments)


class Run:
    """What a run folder holds, checked: record (run.json), history (metrics.jsonl), and of each judged row its line, texts,
    truth and answer (class numbers) and probabilities (N, C), from predictions.csv."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        self.labels, self.split, self.results = self.record["data"]["labels"], self.record["split"], self.record["results"]
        self.history = read_history(self.folder / "metrics.jsonl", self.record["settings"]["metric"], self.record["best_epoch"])
        self.read_predictions(self.folder / "predictions.csv")

    def read_predictions(self, path):
        """predictions.csv into fields, lines, texts, truth, answers and probabilities; it must fit run.json."""
        table, names = read_table(path, "double"), [f"p_{label}".strip() for label in self.labels]
        self.fields = table.columns[1:-2 - len(names)]
        if table.columns != ("line", *self.fields, "label", "predicted", *names) or not self.fields:
            raise InputError(f"{path}: its columns are not line, text, label, predicted and a p_ for each of the {len(names)} classes "
                             f"of run.json ({', '.join(self.labels)}): {ANEW}")
        self.lines, self.texts = [row["line"] for _, row in table.rows], [[row[f] for f in self.fields] for _, row in table.rows]
        self.truth, self.answers = (np.array([class_number(path, line, row[column], self.labels) for line, row in table.rows])
                                    for column in ("label", "predicted"))
        self.probabilities = np.array([[probability(path, line, name, row[name]) for name in names]
                                       for line, row in table.rows])               # (N, C)
        accuracy, said = float((self.truth == self.answers).mean()), list(self.results.values())[-1]["accuracy"]
        if abs(accuracy - said) > 1e-6:
            raise InputError(f"{path}: {len(table.rows)} rows, of which {accuracy:.4f} are right, but run.json says {said:.4f}: "
                             f"{ANEW}")


WANTED = {"settings": dict, "settings.metric": str, "data.labels": list, "data.rows": dict, "doctor.warnings": list,
          "versions": dict, "parameters.trainable": int, "parameters.total": int, "split": str, "results": dict,
          "best_epoch": int, "timing.train_seconds": (int, float)}


def read_record(folder):
    """run.json of a finished run, or InputError."""
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no run.json: give the folder of a run that minillmclf.train has made")
    record = read_json(path)
    if isinstance(record.get("settings"), dict):
        record["settings"] = renamed(record["settings"])
    if record.get("finished") is False:
        raise InputError(f"{folder}: this run is not finished: give its training command again, it goes on from there")
    if inner(record, "settings.multi_label") == "on":
        raise InputError(f"{folder}: report is for one label a row, and this run has several: look at it with minillmclf.evaluate")
    faulty = [name for name, kind in WANTED.items() if not isinstance(inner(record, name), kind)]
    if "results" not in faulty and not all(is_metrics(metrics) for metrics in [*record["results"].values()] or [None]):
        faulty.append("results")
    if faulty:
        raise InputError(f"{path}: {', '.join(faulty)} missing, or not as minillmclf.train writes it: give the folder of a run "
                         "that it has made")
    return record


def inner(record, name):
    """"data.rows" -> record["data"]["rows"]; None where there is no such place."""
    for key in name.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def is_metrics(metrics):
    """Does it hold what training.metrics.evaluate gives, all of it numbers?"""
    return isinstance(inner(metrics, "f1"), dict) and all(
        isinstance(value, (int, float)) for value in [*(metrics.get(key) for key in METRICS), *metrics["f1"].values()])


def read_history(path, metric, best):
    """The lines of metrics.jsonl, each with a number for all that the page shows, one of them for the best epoch."""
    rows, keys = read_table(path).rows, ("epoch", "train_loss", "log_loss", "accuracy", metric)
    for line, row in rows:
        missing = [key for key in keys if not isinstance(row.get(key), (int, float))]
        if missing:
            raise InputError(f"{path}, line {line}: {', '.join(missing)} should be a number: {ANEW}")
    if best not in [row["epoch"] for _, row in rows]:
        raise InputError(f"{path}: has no epoch {best}, which run.json calls the best: {ANEW}")
    return [row for _, row in rows]


def class_number(path, line, name, labels):
    """The place of a class's name in the list of all."""
    if name not in labels:
        raise InputError(f"{path}, line {line}: {name!r:.60} is not a class of run.json ({', '.join(labels)}): {ANEW}")
    return labels.index(name)


def probability(path, line, name, text):
    """A cell of the column `name` as a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"{path}, line {line}: {name} should be a probability from 0 to 1, is {text!r:.60}: {ANEW}")
    return value


# ---- small pieces of HTML: every text goes through `text` ----

def text(value):
    """A value as text of the page: nothing in it can be markup."""
    return html.escape(str(value), quote=True)


def table(header, rows, numbers=(), texts=(), own=None):
    """A table in a box that scrolls by itself. numbers, texts: columns of such; own: the row in bold. dir=auto: a text may
    run from right to left."""
    kinds = ["number" if i in numbers else "text" if i in texts else "" for i in range(len(header))]

    def cells(tag, values):
        return "".join(f'<{tag} class="{kind}" dir="auto">{text(value)}</{tag[:2]}>' for kind, value in zip(kinds, values))
    body = "".join(f"<tr{' class=own' * (i == own)}>{cells('td', row)}</tr>\n" for i, row in enumerate(rows))
    return (f'<div class="box" tabindex="0" role="region" aria-label="table: {text(", ".join(header))}"><table>\n'
            f"<thead><tr>{cells('th scope=col', header)}</tr></thead>\n<tbody>{body}</tbody></table></div>\n")


def picture(draw, *data):
    """A picture in a box of its own; without matplotlib, nothing. No smaller than 80 % of its size, or its words are lost."""
    if not drawable():
        return ""
    figure = draw(*data)
    code = base64.b64encode(pictures.render(figure, ".svg")).decode("ascii")
    return (f'<div class="box" tabindex="0" role="region" aria-label="picture"><figure><img alt="{text(figure.get_label())}" '
            f'style="min-width: {figure.get_figwidth() * 96 * 0.8:.0f}px" src="data:image/svg+xml;base64,{code}"></figure>'
            "</div>\n")


def drawable():
    """Is matplotlib here?"""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


# ---- the sections of the page: a Run in, HTML out ----

def what(r):
    s, data, parameters, timing = (r.record[key] for key in ("settings", "data", "parameters", "timing"))
    rows, memory = ", ".join(f"{split} {n}" for split, n in data["rows"].items()), timing.get("peak_memory_mb")
    facts = [("model", s.get("model")), ("data", f"{data.get('path')}: {rows} rows, {len(r.labels)} classes"),
             ("method", f"{s.get('method')}, readout {s.get('readout')}"),
             ("trained parameters", f"{parameters['trainable']:,} of {parameters['total']:,}"),
             ("epochs", f"{len(r.history)}; best on dev: epoch {r.record['best_epoch']}, by {s['metric'].replace('_', ' ')}"),
             ("training time", f"{timing['train_seconds']} s" + (f", peak memory {memory} MB" if memory else "")),
             ("run.json written", time.strftime("%Y-%m-%d %H:%M", time.localtime((r.folder / "run.json").stat().st_mtime)))]
    listed = "".join(f"<li>{text(w)}</li>\n" for w in r.record["doctor"]["warnings"])
    warnings = f"<p>Warnings about the data:</p>\n<ul>\n{listed}</ul>\n" if listed else ""
    return table(["what", "value"], facts, texts=[1]) + warnings


def results(r):
    keys = ("accuracy", "macro_f1", "log_loss", "ece")
    rows = [[name, *(f"{m[key]:.3f}" for key in keys)] for name, m in r.results.items()]
    return (f"<p>On {len(r.truth):,} {text(r.split)} rows. Accuracy and macro F1: more is better; log loss and ECE (expected "
            "calibration error): less is better.</p>\n"
            + table(["model", "accuracy", "macro F1", "log loss", "ECE"], rows, numbers=range(1, 5), own=len(rows) - 1))


def training(r):
    metric = r.record["settings"]["metric"]
    keys = list(dict.fromkeys(["train_loss", "log_loss", "accuracy", metric]))
    rows = [[line["epoch"], *(f"{line[key]:.3f}" for key in keys)] for line in r.history]
    header = ["epoch", "train loss", *(f"dev {key.replace('_', ' ')}" for key in keys[1:])]
    best = [line["epoch"] for line in r.history].index(r.record["best_epoch"])
    return picture(pictures.training, r.history, metric) + "<p>In bold: the epoch that was kept.</p>\n" + table(
        header, rows, numbers=range(len(header)), own=best)


def confusions(r):
    matrix = np.zeros((len(r.labels), len(r.labels)), dtype=int)               # (C, C) [true, answered]
    np.add.at(matrix, (r.truth, r.answers), 1)
    rows = [[n, r.labels[t], r.labels[a]] for n, t, a in pictures.mistakes(matrix)]
    listed = (f"<p>The most frequent mistakes, of {int(matrix.sum() - matrix.trace())} in all:</p>\n"
              + table(["rows", "true class", "answer"], rows, numbers=[0])) if rows else "<p>No mistakes.</p>\n"
    return picture(pictures.confusion, matrix, r.labels) + listed


def calibration(r):
    confidence, right = r.probabilities[np.arange(len(r.truth)), r.answers], r.truth == r.answers
    return (f"<p>The model is right in {right.mean():.1%} of the rows and gives its answers a probability of "
            f"{confidence.mean():.1%} on average.</p>\n" + picture(pictures.reliability, confidence, right))


def worst(r):
    own = r.probabilities[np.arange(len(r.truth)), r.truth]                    # (N,) of the true class
    wrong = [i for i in np.argsort(own, kind="stable") if r.truth[i] != r.answers[i]][:WORST]
    rows = [[r.lines[i], *(t if len(t) <= LONGEST else t[:LONGEST] + " …" for t in r.texts[i]), r.labels[r.truth[i]],
             r.labels[r.answers[i]], f"{r.probabilities[i, r.answers[i]]:.3f}", f"{own[i]:.3f}"] for i in wrong]
    n = len(r.fields)
    return "<p>No mistakes.</p>\n" if not rows else (
        "<p>Wrong answers in whose rows the true class has the lowest probability. Some of them may be wrong labels.</p>\n"
        + table(["line", *r.fields, "true class", "answer", "probability", "of the true class"], rows,
                numbers=[0, n + 3, n + 4], texts=range(1, n + 1)))


def classes(r):
    rows = [[label, int((r.truth == i).sum()), *(f"{m['f1'].get(label, math.nan):.3f}" for m in r.results.values())]
            for i, label in enumerate(r.labels)]
    header = ["class", "rows", *r.results]
    return table(header, rows, numbers=range(1, len(header)))


def settings(r):
    plain, now = asdict(Settings()), r.record["settings"]
    own = [(key, value) for key, value in now.items() if value != plain.get(key)]
    told = "<p>Other than the defaults:</p>\n" + table(["setting", "value"], own, texts=[1])
    return told + ("<details><summary>All settings</summary>\n" + table(["setting", "value"], now.items(), texts=[1])
                   + "</details>\n")


def versions(r):
    files = r.record["data"].get("sha256")
    hashes = [(f"sha256 of {name}", value) for name, value in files.items()] if isinstance(files, dict) else []
    return table(["what", "version"], [*r.record["versions"].items(), *hashes], texts=[1])


SECTIONS = {"What was run": what, "Results": results, "Training": training, "Which class is taken for which": confusions,
            "Calibration": calibration, f"The {WORST} worst mistakes": worst, "F1 of each class": classes,
            "Settings": settings, "Versions": versions}


def page(r):
    """The whole page. -> str"""
    name = r.folder.resolve().name
    advice = "" if drawable() else ("<p>Without pictures, for matplotlib is not installed. To have them: pip install -e "
                                    "'.[plots]' and make this page again, with --overwrite.</p>\n")
    body = "".join(f"<section>\n<h2>{text(title)}</h2>\n{section(r)}</section>\n" for title, section in SECTIONS.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Run {text(name)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Run {text(name)}</h1>
{advice}{body}</main>
</body>
</html>
"""


def main(arguments=None):
    a = parse(arguments)
    out = Path(a.out or Path(a.run) / "report.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {out}: a page is an .html file: give it such a name")
    check_out(out, a.overwrite)
    write_text(out, page(Run(a.run)))
    print(f"saved in {out}")
    return 0


if __name__ == "__main__":
    run(main)
