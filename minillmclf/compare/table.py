"""The table of a comparison as Markdown for people and as CSV, a line a cell, for programs. Its numbers: summary.py."""
import csv
import io

from ..training.metrics import METRICS


def signed(x):
    return f"{x['mean']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}]"


def number(value, digits=0):
    """1234.5 -> 1,234 and None -> -"""
    return "-" if value is None else f"{value:,.{digits}f}"


def grid(header, lines):
    """A Markdown table -> lines of text."""
    return ["| " + " | ".join(header) + " |", "|---" * len(header) + "|",
            *("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)]


def spread(x):
    return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"


def curves(summary):
    """A line for each model and method, a column for each size of the training set."""
    rows, metric = summary["rows"], summary["metric"]
    sizes, at = list(dict.fromkeys(row["size"] for row in rows)), {(row["label"], row["size"]): row for row in rows}
    lines = [[label, *(spread(at[label, size]["score"]) if (label, size) in at else "-" for size in sizes)]
             for label in dict.fromkeys(row["label"] for row in rows)]
    return grid([f"{rows[0]['split']} {metric.replace('_', ' ')}", *(f"{size} rows a class" for size in sizes)], lines)


def details(rows, metric):
    """All that is known of the rows of one size."""
    header = ["model", "method", "readout", "settings", f"{rows[0]['split']} {metric.replace('_', ' ')}", "to the best",
              "McNemar p", "log loss", "ECE", "trainable", "memory MB", "train s", "ms a text", "seeds"]
    lines = []
    for row in rows:
        gap = "**best**" if row["best"] else "not the same rows" if row["difference"] is None else signed(row["difference"])
        p = "<0.001" if row["mcnemar"] is not None and row["mcnemar"] < 0.001 else number(row["mcnemar"], 3)
        names = [row[key] or "-" for key in ("model", "method", "readout", "settings")]
        lines.append([*names, spread(row["score"]), gap, p, f"{row['log_loss']:.3f}", f"{row['ece']:.3f}", number(row["trainable"]),
                      number(row["memory_mb"]), number(row["train_seconds"], 1), number(row["ms_per_text"], 2),
                      row["seeds"]])
    return grid(header, lines)


def notes(summary):
    """What the numbers mean, in the file itself: it is read without this one."""
    many = min((row["seeds"] for row in summary["rows"]), default=0) > 1
    return [("In brackets" if many else "In brackets, with one seed from a bootstrap over test rows, else")
            + " 95 % intervals over seeds, Student's. To the best: the difference, from a paired bootstrap over test rows. McNemar "
            "p: exact, the median over seeds, not corrected for the number of rows. Memory: the most that a run's process held, on "
            "the CPU's side. ms a text: tokenization included, batches of 32, median of 3 passes."]


def markdown(summary, unmade=()):
    """The whole of table.md. unmade: lines about what was left out before the first run."""
    rows, out = summary["rows"], []
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    if len(sizes) > 1:
        out += [*curves(summary), ""]
    for size in sizes:
        here = [row for row in rows if row["size"] == size]
        out += [f"**{size} rows a class**", "", *details(here, summary["metric"]), ""]
    if summary["sweep"]:
        lines = [[x["label"], x["size"], x["settings"], f"{x['dev']:.3f}", x["seeds"], "chosen" * x["chosen"]]
                 for x in summary["sweep"]]
        out += ["**Sweep: chosen on dev rows only**", "", *grid(["", "rows a class", "settings",
                f"dev {summary['metric'].replace('_', ' ')}", "seeds", ""], lines), ""]
    out += notes(summary) if rows else []
    missing = [*unmade, *(", ".join(filter(None, [x["label"], x["settings"], f"{x['size']} rows a class", f"seed {x['seed']}"]))
                          + f": not possible: {x['reason']}" for x in summary["left_out"])]
    out += ["", "Left out:", "", *(f"- {line}" for line in missing)] if missing else []
    return "\n".join(out).strip() + "\n"


def lines_of_csv(cells, labels, summary):
    """table.csv: a line a cell, with its state. Of a sweep only the chosen candidate's test scores are told."""
    passed = {(x["label"], x["settings"], str(x["size"])) for x in summary["sweep"] if not x["chosen"]}
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    costs = ("trainable", "memory_mb", "train_seconds", "ms_per_text")
    writer.writerow(["model", "method", "readout", "settings", "rows_per_class", "seed", "state",
                     f"dev_{summary['metric']}", *METRICS, *costs])
    for cell in cells:
        c, r, done = cell["candidate"], cell["record"], cell["record"]["state"] == "finished"
        hidden = not done or (labels[c.group], c.swept, cell["size"]) in passed
        method, readout = ("", "") if c.baseline else (c.settings.method, c.settings.readout)
        writer.writerow([c.model, method, readout, c.swept, cell["size"], cell["seed"],
                         "finished" if done else f"not possible: {r['reason']}",
                         f"{r['dev'][summary['metric']]:.6f}" if done else "",
                         *("" if hidden else f"{r['test'][name]:.6f}" for name in METRICS),
                         *(r[key] if done else "" for key in costs)])
    return out.getvalue()
