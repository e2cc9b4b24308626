"""What python -m minillmclf.compare has measured on the same data, read from its folder."""
from pathlib import Path

from ..cli.settings import Settings, with_current_names
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
SETTINGS_FIELDS = {                 # of settings.json
    "models?": (lambda v: v is None or isinstance(v, list) and all(isinstance(name, str)
                for name in v), "a list of names"),
    **{f"{name}?": (lambda v, kind=type(default): type(v) is kind or
                    kind is float and type(v) is int, "as train takes it")
       for name, default in vars(Settings()).items() if name != "lr"}}


def has_same_data(folder, data):
    """Was this comparison made of the same data?"""
    path = folder / "settings.json"
    settings = check_fields(with_current_names(read_json(path)), SETTINGS_FIELDS, path)
    own = settings.get("data", Settings().data)
    return own == data or Path(own).resolve() == Path(data).resolve()


def find_comparison(data):
    """The newest comparison of these data in runs/ that has trained something, or None."""
    tables = [table for table in Path("runs").glob("*/table.json")
              if (table.parent / "settings.json").exists() and has_same_data(table.parent, data)
              and read_json(table).get("rows") != []]
    return max(tables, key=lambda table: table.stat().st_mtime).parent if tables else None


def comparison_facts(asked, data):
    """What a comparison says at its largest training size -> dict, or None if there is none.

    asked: its folder, or None to look into runs/. "best": the row with the best dev score;
    "cheapest": of the trained rows near the best (advice.is_near), the one with the shortest
    training; "fastest": the trained row with the least time a text. Test scores choose nothing.
    """
    if asked and not has_same_data(Path(asked), data):
        raise InputError(f"--comparison {asked}: was made of other data than {data}: name those "
                         "with --data, or leave it out")
    folder = Path(asked) if asked else find_comparison(data)
    if folder is None:
        return None
    settings, path = read_json(folder / "settings.json"), folder / "table.json"
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
    return {"folder": str(folder), "settings": with_current_names(settings), "best": best,
            "cheapest": min(close, key=lambda row: row["train_seconds"], default=None),
            "fastest": min(timed, key=lambda row: row["ms_per_text"], default=None)}
