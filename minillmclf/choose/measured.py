"""What python -m minillmclf.compare has measured on the same data, read from its folder."""
import sys
from pathlib import Path

from ..compare.source import other_source, read_comparison
from ..errors import InputError
from ..files import check_fields, is_number, read_json
from ..training.metrics import METRICS
from .advice import is_near

TEXT = (lambda v: isinstance(v, str), "a text")
COST = (lambda v: v is None or is_number(v), "a number, or null")
SPREAD = (lambda v: isinstance(v, dict) and all(is_number(v.get(name)) for name in (
    "mean", "low", "high")), "an object with mean, low and high")
ROW_FIELDS = {                      # of a row in table.json, as files.check_fields takes them
    **dict.fromkeys(("label", "model", "method", "readout", "split", "settings"), TEXT),
    "score": SPREAD, "metric": (lambda v: isinstance(v, str) and v in METRICS, "a metric"),
    "size": (lambda v: v == "all" or type(v) is int, "a number, or all"), "dev_rows?": COST,
    "dev": (is_number, "a number"), "train_seconds": COST, "ms_per_text": COST,
    "best": (lambda v: type(v) is bool, "true or false")}


def comparison_facts(asked, data):
    """What a comparison says at its largest training size -> the dict of `facts_of`, or None if
    there is none.

    asked: its folder, or None for the newest in runs/ that has trained something; data: the Dataset
    that it must be of.
    """
    if asked and (other := other_source(asked, data)):
        raise InputError(f"--comparison {asked}: is of {other}: name the same with --data, "
                         "--text-column and --label-column, or leave it out")
    if asked:
        return facts_of(Path(asked))
    tables = [table for table in Path("runs").glob("*/table.json")
              if (table.parent / "settings.json").exists()]
    for table in sorted(tables, key=lambda table: table.stat().st_mtime, reverse=True):
        try:
            if not other_source(table.parent, data) and read_json(table).get("rows") != []:
                return facts_of(table.parent)
        except InputError as error:                      # nobody has named it
            print(f"note: passed over: {error}", file=sys.stderr)
    return None


def facts_of(folder):
    """The facts of a comparison in a folder -> dict. "best": the row with the best dev score;
    "cheapest": of the trained rows near the best (advice.is_near), the one with the shortest
    training; "fastest": the trained row with the least time a text. Test scores choose nothing."""
    settings, path = read_comparison(folder), folder / "table.json"
    rows = read_json(path).get("rows")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: has no rows: make it with python -m minillmclf.compare")
    for row in rows:
        check_fields(row, ROW_FIELDS, path)
    if not any(row["best"] for row in rows):
        raise InputError(f"{path}: has no best row: make it with python -m minillmclf.compare")
    sizes = {row["size"] for row in rows}
    largest = "all" if "all" in sizes else max(sizes)
    rows = [row for row in rows if row["size"] == largest]
    best = max(rows, key=lambda row: METRICS[row["metric"]] * row["dev"])
    trained = [row for row in rows if row["method"] and row["train_seconds"] is not None]
    close = [row for row in trained if is_near(row, best)]
    timed = [row for row in trained if row["ms_per_text"] is not None]
    return {"folder": str(folder), "settings": settings, "best": best,
            "cheapest": min(close, key=lambda row: row["train_seconds"], default=None),
            "fastest": min(timed, key=lambda row: row["ms_per_text"], default=None)}
