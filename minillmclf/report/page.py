"""The page of a FinishedRun as HTML. All texts go through `escape_text`: none can be markup."""
import base64
import html
import math
import time
from dataclasses import asdict
from pathlib import Path
from string import Template

import numpy as np

from ..cli.settings import Settings
from ..training.metrics import METRICS
from . import figures, pictures

WORST_ROWS = 20                   # rows in the list of the worst mistakes
LONGEST_TEXT = 600                # characters of a text that are shown
STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$body</main>
</body>
</html>
""")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NO_PICTURES = ("<p>Without pictures, for matplotlib is not installed. To have them: pip install -e "
               "'.[plots]' and make this page again, with --overwrite.</p>\n")


def render_page(run):
    """The complete page of a FinishedRun -> str."""
    body = "" if figures.has_matplotlib() else NO_PICTURES
    for title, section in SECTIONS.items():
        body += f"<section>\n<h2>{escape_text(title)}</h2>\n{section(run)}</section>\n"
    title = f"Run {escape_text(run.folder.resolve().name)}"
    return PAGE.substitute(policy=POLICY, title=title, style=STYLE, body=body)


def escape_text(value):
    return html.escape(str(value), quote=True)


def html_table(header, rows, numbers=(), texts=(), bold=None):
    """A table in a box that scrolls by itself. numbers, texts: indices of columns with these; bold:
    index of a row. dir=auto: a text may run from right to left."""
    kinds = ["number" if i in numbers else "text" if i in texts else "" for i in range(len(header))]

    def cells(start, end, values):
        return "".join(f'<{start} class="{kind}" dir="auto">{escape_text(value)}</{end}>'
                       for kind, value in zip(kinds, values))
    lines = [f"<tr{' class=own' if i == bold else ''}>{cells('td', 'td', row)}</tr>\n"
             for i, row in enumerate(rows)]
    label = escape_text(", ".join(header))
    return (f'<div class="box" tabindex="0" role="region" aria-label="table: {label}"><table>\n'
            f"<thead><tr>{cells('th scope=col', 'th', header)}</tr></thead>\n"
            f"<tbody>{''.join(lines)}</tbody></table></div>\n")


def html_picture(draw, *data):
    """A picture in a box that scrolls; "" without matplotlib. draw(*data) -> Figure. On a narrow
    screen the picture keeps 80 % of its width, so that its words can be read."""
    if not figures.has_matplotlib():
        return ""
    figure = draw(*data)
    code = base64.b64encode(figures.figure_bytes(figure, ".svg")).decode("ascii")
    least = f"{figure.get_figwidth() * 96 * 0.8:.0f}px"
    return ('<div class="box" tabindex="0" role="region" aria-label="picture"><figure><img '
            f'alt="{escape_text(figure.get_label())}" style="min-width: {least}" '
            f'src="data:image/svg+xml;base64,{code}"></figure></div>\n')


# The sections of the page, which SECTIONS lists. Each takes a FinishedRun and returns HTML.

def overview(run):
    settings, data, parameters, timing = (
        run.record[key] for key in ("settings", "data", "parameters", "timing"))
    rows = ", ".join(f"{split} {n}" for split, n in data["rows"].items())
    memory, best = timing.get("peak_memory_mb"), run.record["best_epoch"]
    kept = f"best on dev: epoch {best}, by {settings['metric'].replace('_', ' ')}"
    if "log_loss" not in run.history[0]:
        kept = f"kept: epoch {best}, the last, no dev rows were held out"
    written = time.localtime((run.folder / "run.json").stat().st_mtime)
    facts = [
        ("model", settings.get("model")),
        ("data", f"{data.get('path')}: {rows} rows, {len(run.labels)} classes"),
        ("method", f"{settings.get('method')}, readout {settings.get('readout')}"),
        ("trained parameters", f"{parameters['trainable']:,} of {parameters['total']:,}"),
        ("epochs", f"{len(run.history)}; {kept}"),
        ("training time", f"{timing['train_seconds']} s"
                          + (f", peak memory {memory} MB" if memory else "")),
        ("run.json written", time.strftime("%Y-%m-%d %H:%M", written))]
    section = html_table(["what", "value"], facts, texts=[1])
    warnings = "".join(f"<li>{escape_text(w)}</li>\n" for w in run.record["doctor"]["warnings"])
    if warnings:
        section += f"<p>Warnings about the data:</p>\n<ul>\n{warnings}</ul>\n"
    return section


def results_table(run):
    rows = [[name, *(f"{m[key]:.3f}" for key in METRICS)] for name, m in run.results.items()]
    header = ["model", "accuracy", "macro F1", "log loss", "ECE"]
    return (f"<p>On {len(run.targets):,} {escape_text(run.split)} rows. Accuracy and macro F1: "
            "more is better; log loss and ECE (expected calibration error): less is better.</p>\n"
            + html_table(header, rows, numbers=range(1, 5), bold=len(rows) - 1))


def training_course(run):
    metric = run.record["settings"]["metric"]
    keys = dict.fromkeys(["train_loss", "log_loss", "accuracy", metric])
    keys = [key for key in keys if key in run.history[0]]      # without dev rows only train_loss
    rows = [[line["epoch"], *(f"{line[key]:.3f}" for key in keys)] for line in run.history]
    header = ["epoch", "train loss", *(f"dev {key.replace('_', ' ')}" for key in keys[1:])]
    best = [line["epoch"] for line in run.history].index(run.record["best_epoch"])
    return (html_picture(pictures.training_figure, run.history, metric)
            + "<p>In bold: the epoch that was kept.</p>\n"
            + html_table(header, rows, numbers=range(len(header)), bold=best))


def confusions(run):
    matrix = np.zeros((len(run.labels), len(run.labels)), dtype=int)         # (C, C)
    np.add.at(matrix, (run.targets, run.answers), 1)
    rows = [[n, run.labels[t], run.labels[a]] for n, t, a in pictures.frequent_mistakes(matrix)]
    listed = "<p>No mistakes.</p>\n"
    if rows:
        listed = (f"<p>The most frequent mistakes, of {int(matrix.sum() - matrix.trace())} in all:"
                  "</p>\n" + html_table(["rows", "true class", "answer"], rows, numbers=[0]))
    return html_picture(pictures.confusion_figure, matrix, run.labels) + listed


def calibration(run):
    confidence = run.probabilities[np.arange(len(run.answers)), run.answers]     # (N,)
    right = run.targets == run.answers
    return (f"<p>The model is right in {right.mean():.1%} of the rows and gives its answers a "
            f"probability of {confidence.mean():.1%} on average.</p>\n"
            + html_picture(pictures.reliability_figure, confidence, right))


def worst_mistakes(run):
    of_target = run.probabilities[np.arange(len(run.targets)), run.targets]      # (N,)
    order = np.argsort(of_target, kind="stable")
    rows = []
    for i in order[run.targets[order] != run.answers[order]][:WORST_ROWS]:
        texts = [t if len(t) <= LONGEST_TEXT else t[:LONGEST_TEXT] + " …" for t in run.texts[i]]
        target, answer = run.targets[i], run.answers[i]
        rows.append([run.lines[i], *texts, run.labels[target], run.labels[answer],
                     f"{run.probabilities[i, answer]:.3f}", f"{of_target[i]:.3f}"])
    if not rows:
        return "<p>No mistakes.</p>\n"
    n = len(run.fields)
    header = ["line", *run.fields, "true class", "answer", "probability", "of the true class"]
    return ("<p>Wrong answers in whose rows the true class has the lowest probability. Some of "
            "them may be wrong labels.</p>\n"
            + html_table(header, rows, numbers=[0, n + 3, n + 4], texts=range(1, n + 1)))


def f1_of_classes(run):
    rows = []
    for i, label in enumerate(run.labels):
        f1 = [f"{m['f1'].get(label, math.nan):.3f}" for m in run.results.values()]
        rows.append([label, int((run.targets == i).sum()), *f1])
    header = ["class", "rows", *run.results]
    return html_table(header, rows, numbers=range(1, len(header)))


def changed_settings(run):
    defaults, given = asdict(Settings()), run.record["settings"]
    changed = [(key, value) for key, value in given.items() if value != defaults.get(key)]
    header = ["setting", "value"]
    return ("<p>Other than the defaults:</p>\n" + html_table(header, changed, texts=[1])
            + "<details><summary>All settings</summary>\n"
            + html_table(header, given.items(), texts=[1]) + "</details>\n")


def versions_table(run):
    rows, files = list(run.record["versions"].items()), run.record["data"].get("sha256")
    if isinstance(files, dict):
        rows += [(f"sha256 of {name}", value) for name, value in files.items()]
    return html_table(["what", "version"], rows, texts=[1])


SECTIONS = {"What was run": overview, "Results": results_table, "Training": training_course,
            "Which class is taken for which": confusions, "Calibration": calibration,
            f"The {WORST_ROWS} worst mistakes": worst_mistakes, "F1 of each class": f1_of_classes,
            "Settings": changed_settings, "Versions": versions_table}
