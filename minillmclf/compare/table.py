"""The tables of a comparison: Markdown, and CSV with a line for each run (numbers: summary.py)."""
from ..cli.tables import csv_text, markdown_table
from ..training.metrics import METRICS
from .runs import COSTS

NOTE = """95 % intervals over seeds, Student's. To the best: the difference, from a paired \
bootstrap over test rows. McNemar p: exact, the median over seeds, not corrected for the number of \
rows. Memory: the most that a run's process held, on the CPU's side. ms a text: tokenization \
included, batches of 32, median of 3 passes."""


def interval_text(x, digits=".3f"):
    """{"mean": 0.5, "low": 0.4, "high": 0.6} -> "0.500 [0.400, 0.600]"."""
    return f"{x['mean']:{digits}} [{x['low']:{digits}}, {x['high']:{digits}}]"


def number_text(value, digits=0):
    """1234.5 -> "1,234"; None -> "-"."""
    return "-" if value is None else f"{value:,.{digits}f}"


def p_value_text(p):
    return "<0.001" if p is not None and p < 0.001 else number_text(p, 3)


def difference_text(row):
    """The difference to the best row as text."""
    if row["best"]:
        return "**best**"
    return interval_text(row["difference"], "+.3f") if row["difference"] else "not the same rows"


def learning_curve_table(rows, sizes, score):
    """A table with a row for each model and method, a column for each training size -> lines."""
    cells = {(row["label"], row["size"]): interval_text(row["score"]) for row in rows}
    lines = [[label, *(cells.get((label, size), "-") for size in sizes)]
             for label in dict.fromkeys(row["label"] for row in rows)]
    return markdown_table([score, *(f"{size} rows a class" for size in sizes)], lines)


def details_table(rows, score):
    """A table with all columns, for the rows of one training size -> lines."""
    names = ("model", "method", "readout", "settings")
    header = [*names, score, "to the best", "McNemar p", "log loss", "ECE", "trainable",
              "memory MB", "train s", "ms a text", "seeds"]
    return markdown_table(header, [
        [*(row[name] or "-" for name in names), interval_text(row["score"]), difference_text(row),
         p_value_text(row["mcnemar"]), number_text(row["log_loss"], 3), number_text(row["ece"], 3),
         number_text(row["trainable"]), number_text(row["memory_mb"]),
         number_text(row["train_seconds"], 1), number_text(row["ms_per_text"], 2), row["seeds"]]
        for row in rows])


def comparison_markdown(summary, left_out=(), notes=()):
    """table.md as text. left_out: a line for each configuration that cannot be trained; notes:
    lines about the sizes."""
    rows, out, metric = summary["rows"], [], summary["metric"].replace("_", " ")
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    score = f"{rows[0]['split']} {metric}" if rows else ""
    if len(sizes) > 1:
        out += [*learning_curve_table(rows, sizes, score), ""]
    for size in sizes:
        here = [row for row in rows if row["size"] == size]
        out += [f"**{size} rows a class**", "", *details_table(here, score), ""]
    if summary["sweep"]:
        lines = [[x["label"], x["size"], x["settings"], f"{x['dev']:.3f}", x["seeds"],
                  "chosen" if x["chosen"] else ""] for x in summary["sweep"]]
        header = ["", "rows a class", "settings", f"dev {metric}", "seeds", ""]
        out += ["**Sweep: chosen on dev rows only**", "", *markdown_table(header, lines), ""]
    out += [f"{note}.\n" for note in notes]
    if rows:
        several = min(row["seeds"] for row in rows) > 1
        out.append(f"In brackets {NOTE}" if several else
                   f"In brackets, with one seed from a bootstrap over test rows, else {NOTE}")
    missing = [*left_out]
    for x in summary["left_out"]:
        which = [x["label"], x["settings"], f"{x['size']} rows a class", f"seed {x['seed']}"]
        missing.append(f"{', '.join(filter(None, which))}: not possible: {x['reason']}")
    if missing:
        out += ["", "Left out:", "", *(f"- {line}" for line in missing)]
    return "\n".join(out).strip() + "\n"


def csv_of_runs(runs, labels, summary):
    """table.csv as text. Of a sweep only the chosen configuration shows its test scores."""
    metric, lines = summary["metric"], []
    chosen = {(x["label"], x["settings"], x["size"]): x["chosen"] for x in summary["sweep"]}
    for run in runs:
        c, record = run.configuration, run.record
        kind = ["", ""] if c.is_baseline else [c.settings.method, c.settings.readout]
        line = [c.model, *kind, c.row_settings, run.size, run.seed]
        if run.is_finished:
            shown = chosen.get((labels[c.group], c.row_settings, run.size), True)
            line += ["finished", f"{record['dev'][metric]:.6f}"]
            line += [f"{record['test'][name]:.6f}" if shown else "" for name in METRICS]
            line += [record[key] for key in COSTS]
        else:
            line += [f"not possible: {record['reason']}", *[""] * (1 + len(METRICS) + len(COSTS))]
        lines.append(line)
    return csv_text(["model", "method", "readout", "settings", "rows_per_class", "seed", "state",
                     f"dev_{metric}", *METRICS, *COSTS], lines)
