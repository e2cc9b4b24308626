"""Files: reading JSON, writing a file completely or not at all, finding a model's folder."""
import json
import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

PACKAGE = Path(__file__).resolve().parent
CHECKPOINTS = PACKAGE / "checkpoints"                            # where the package is installed
CHECKPOINTS = CHECKPOINTS if CHECKPOINTS.is_dir() else PACKAGE.parent / "checkpoints"
IGNORED_KEYS = "MINILLMCLF_IGNORE_CONFIG_KEYS"  # environment: unknown config.json keys to leave out
NEW_RUN = ".new"                        # folder in OUT: a run that will replace the one in OUT
NEW_MODEL = ".model.writing"            # the same for a model that is saved without a run
MERGED_RECORD = "merged.json"           # beside a merged model: of the run.json of the adapter
STATE_FILES = ("state.safetensors", "best.safetensors")         # of a run while it trains
RUN_RECORDS = ("run.json", MERGED_RECORD, "metrics.jsonl", "predictions.csv", "report.html",
               *STATE_FILES)            # beside the model of a run: what describes it
MOST_DIGITS = 400                       # of an integer in a file; Python's own limit is 4300


def short(value, most=60):
    """A value for a message: its repr (a path as it is), without its middle if it is long. Never
    raises."""
    try:
        text = str(value) if isinstance(value, os.PathLike) else repr(value)
    except (ValueError, RecursionError):    # a number of thousands of digits; lists in lists
        text = f"a {type(value).__name__} that is too large to show"
    text = text if len(text) <= most else f"{text[:most - 13]} ... {text[-8:]}"
    return escape_control(text)


def escape_control(text):
    """A string with its control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def parse_json(text, where):
    """The value of a JSON text. InputError, beginning with `where`, for invalid JSON, for numbers
    that are not finite or absurdly long, and for half a surrogate pair in a string."""
    def integer(digits):
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def finite(digits):
        value = float(digits)
        if value in (float("inf"), -float("inf")):
            raise ValueError(f"{digits[:40]} is not finite")
        return value

    def refuse(name):
        raise ValueError(f"{name} is no JSON number")
    try:
        value = json.loads(text, parse_int=integer, parse_float=finite, parse_constant=refuse)
        if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):     # could not be written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        fault = "half of a surrogate pair in a string"
    except (ValueError, RecursionError) as error:
        fault = error
    else:
        return value
    raise InputError(f"{where}: not valid JSON ({fault}): save or fetch the file again")


def read_json(path, kind=dict):
    """A JSON object from a file, or InputError. kind: list, for a JSON array."""
    path, expected = Path(path), "a JSON object" if kind is dict else "a JSON array"
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{short(path, 300)}: is no ordinary file: name one that holds "
                             f"{expected}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{short(path, 300)}: is not there") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error}): save or fetch it again") from None
    except (OSError, ValueError) as error:                     # ValueError: a null byte in the path
        raise InputError(f"{short(path, 300)}: cannot be read ({error_text(error)})") from None
    value = parse_json(text, path)
    if not isinstance(value, kind):
        raise InputError(f"{path}: should hold {expected}, holds a {type(value).__name__}")
    return value


def error_text(error):
    """The text of an OSError without its number and path; another error as it is."""
    return getattr(error, "strerror", None) or error


def is_utf8(text):
    """Can a text be written? The name of a file may hold bytes that are no UTF-8."""
    return not re.search("[\ud800-\udfff]", str(text))


def is_number(value):
    """Is a value of JSON a number? true and false are none."""
    return type(value) in (int, float)


def is_text(value):
    return isinstance(value, str)


def is_names(value):
    """Is it a list of texts? From Python, a tuple will do."""
    return isinstance(value, (list, tuple)) and all(map(is_text, value))


def check_fields(record, table, where):
    """Raise InputError unless an object that was read from a file holds what it should. -> record

    table: {key: (test, what it should be)}; test(value) -> bool. A key that ends in "?" may be
    missing; keys that the table does not name are ignored. The error names all faults.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: should be an object, is {short(record)}")
    faults = []
    for name, (test, words) in table.items():
        key = name.removesuffix("?")
        if key in record and not test(record[key]):
            faults.append(f"{key} = {short(record[key])} (should be {words})")
        elif key not in record and key == name:
            faults.append(f"{key} is missing")
    if faults:
        raise InputError(f"{where}: {'; '.join(faults)}: save it again with the command that "
                         "wrote it")
    return record


@contextmanager
def replacing_file(path):
    """with replacing_file(path) as temporary: ...   `temporary` is renamed to `path` at the end.

    `temporary` lies in a hidden folder beside `path`; if the process is killed, the next write of
    `path` removes that folder. If anything fails, there is an InputError, and `path` is unchanged.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.writing")
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no ordinary file")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_path(scratch)
        scratch.mkdir()
        yield scratch / path.name
        flush_to_disk(scratch / path.name)
        os.replace(scratch / path.name, path)
    except UnicodeEncodeError as error:
        raise InputError(f"{short(path, 300)}: could not be written: {short(error.object, 200)} is "
                         "not UTF-8: rename the file or the folder") from None
    except OSError as error:
        raise InputError(f"{short(path, 300)}: could not be written ({error}); what was saved "
                         "before is untouched: free some space or choose another place") from None
    finally:
        remove_path(scratch)


def flush_to_disk(path):
    """Flush a finished file to the disk, with the permissions that the umask gives a new file."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def write_text(path, text):
    """Write a text file, complete or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def run_records(folder):
    """The names of the files that describe the model in a folder: all RUN_RECORDS of a run."""
    try:
        is_run = "settings" in read_json(Path(folder) / "run.json")
    except InputError:
        is_run = False
    return RUN_RECORDS if is_run else (MERGED_RECORD,)


def write_json(path, value):
    """Write a JSON file, complete or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_path(path):
    """Remove a file, a symbolic link, or a folder with its contents. Never raises."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):                                # the next write there will raise it
            path.unlink(missing_ok=True)


def move_files(source, folder, last):
    """Move all files of a folder into another one, those with the names `last` at the end, in this
    order. InputError if one cannot be moved: it and those after it stay in `source`."""
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    try:
        for path in sorted(paths, key=lambda path: last.index(path.name) if path.name in last
                           else -1):
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    except OSError as error:
        raise InputError(f"{path}: whole, but could not be moved to {target} "
                         f"({error_text(error)}): remove what is in the way there, and do it "
                         "again") from None
    remove_path(source)


def shipped_folder(name):
    """The folder in checkpoints/ of this name, or None."""
    folder = CHECKPOINTS / name
    return folder if name and name not in (".", "..") and folder.is_dir() else None


def stays_local(path, shipped):
    """A path of the user, in full if it would otherwise read like one of the `shipped` names."""
    return path.absolute() if str(path) in shipped else path


def find_model(name):
    """A model's folder: the name of one in checkpoints/ (mini-bert), or a path (./mini-bert).

    A Path, which drops the "./", means what lies there, if anything does. checkpoints/mini-bert
    means the shipped model too, unless it is a path that exists. The result means the same again,
    as a Path and as text.
    """
    if str(name) == "":
        raise InputError("the name of a model is empty, perhaps a variable of the shell: name a "
                         "folder (. for this one) or a shipped checkpoint")
    path = Path(name)
    try:
        shipped = shipped_folder(path.name)
        is_place = isinstance(name, os.PathLike) and path.is_dir()
        if shipped and path.name == str(name) and not is_place:
            return shipped
        if path.is_dir():
            return stays_local(path, [path.name] if shipped else [])
        if shipped and path.parent == Path("checkpoints"):
            return shipped
    except OSError as error:                                   # a name of thousands of characters
        raise InputError(f"{short(path, 100)}: no such model folder ({error.strerror})") from None
    known = sorted(p.parent.name for p in CHECKPOINTS.glob("*/config.json"))
    fetch, place = "", f"checkpoints/{path.name}"
    if re.fullmatch(r"(?!runs/)\w[\w.-]*/[\w.-]+", str(name)) and not path.parent.exists():
        fetch = (f"if it is one of huggingface.co, fetch it first: hf download {name} --local-dir "
                 f"{place}, then --model {place}; ")
    raise InputError(f"{short(path, 200)}: no such model folder; {fetch}shipped checkpoints: "
                     f"{', '.join(known) or 'none'} ({CHECKPOINTS / 'README.md'} says how to bring "
                     "others)")
