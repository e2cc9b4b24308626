"""Which rows and columns a comparison is of: compare writes them, choose compares them."""
from pathlib import Path

from ..cli.settings import Settings, with_current_names
from ..errors import InputError
from ..files import check_fields, is_names, is_number, read_json, short
from ..text.examples import split_names


def is_of_type(kind):
    """-> a test of values for a setting whose default has this type. 1 may be 1.0."""
    return lambda v: type(v) is kind or kind is float and type(v) is int


SETTINGS_FIELDS = {                 # of settings.json, as files.check_fields takes them
    "models?": (lambda v: v is None or is_names(v), "a list of names"),
    "source?": (lambda v: isinstance(v, dict) and isinstance(v.get("label_column"), str) and all(
        is_names(v.get(key)) for key in ("sha256", "text_columns")), "as compare writes it"),
    "lr?": (lambda v: v in (None, "auto") or is_number(v), "as train takes it"),
    **{f"{name}?": (is_of_type(type(default)), "as train takes it")
       for name, default in vars(Settings()).items() if name != "lr"}}


def source_of(data):
    """What was read for a Dataset -> dict, "source" in settings.json."""
    return {"sha256": [*data.source["sha256"].values()], "text_columns": [*data.columns],
            "label_column": data.label_column}


def read_comparison(folder):
    """The settings.json of a comparison -> dict. InputError if it is not as compare writes it."""
    path = Path(folder) / "settings.json"
    return check_fields(with_current_names(read_json(path)), SETTINGS_FIELDS, path)


def other_source(folder, data):
    """What a comparison is of that a Dataset is not: "other rows than my.csv has now (its --data is
    a.csv)"; "" if it has the same rows and columns. An earlier version has written no "source":
    then the path and the flags tell."""
    settings, here, path = read_comparison(folder), source_of(data), data.source["path"]
    own = settings.get("data", Settings().data)
    if (known := settings.get("source")) is None:
        same = own == path or Path(own).resolve() == Path(path).resolve()
        texts, label = settings.get("text_column"), settings.get("label_column")
        columns = here["text_columns"]
        known = {"sha256": here["sha256"] if same else [],
                 "text_columns": [*split_names(texts, columns)] if texts else columns,
                 "label_column": label or here["label_column"]}
    words = {"sha256": f"other rows than {path} has now (its --data is {own})",
             "text_columns": f"other text columns ({', '.join(known['text_columns'])})",
             "label_column": f"another label column ({known['label_column']})"}
    return next((words[key] for key in words if known[key] != here[key]), "")


def refuse_other_comparison(out, data):
    """InputError if OUT holds a comparison that is not of the rows and columns of a Dataset."""
    if not (out / "settings.json").exists():
        return
    try:
        other = other_source(out, data)
    except InputError as error:                            # a damaged file
        raise InputError(f"{error}, or --overwrite") from None
    if other:
        raise InputError(f"--out {short(out, 200)}: holds a comparison of {other}: choose another "
                         "--out, or --overwrite")
