"""Files: read whole or refused in one line, replaced whole or left as they were; and where the shipped models lie."""
import json
import os
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"


def read_json(path):
    """A JSON object from a file, or one clear error."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: is not there") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}): save or fetch the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: should hold a JSON object, holds a {type(value).__name__}")
    return value


@contextmanager
def replacing(path):
    """with replacing(path) as temporary: ...   A file written beside `path` takes its name once it is whole and on disk.

    If anything goes wrong, what lay at `path` before is untouched, and InputError says so.
    """
    path = Path(path)
    temporary = Path(f"{path}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except (OSError, UnicodeEncodeError) as error:
        if temporary.is_file():
            temporary.unlink()
        raise InputError(f"{path}: could not be written ({error}); what was saved before is untouched: "
                         f"free some space or choose another place") from None


def write_text(path, text):
    """A text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def flush(path):
    """Bring a finished file to the disk, with the permissions that a new file has here."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def find_model(name):
    """A model's folder: the name of one in checkpoints/ (mini-bert), or a path (./mini-bert is a folder of one's own)."""
    path, shipped = Path(name), CHECKPOINTS / name
    if path.name == str(name) and shipped.is_dir():
        return shipped
    if path.is_dir():
        return path
    known = sorted(p.name for p in CHECKPOINTS.glob("*") if (p / "config.json").exists()) if CHECKPOINTS.is_dir() else []
    raise InputError(f"{name}: no such model folder; shipped checkpoints: {', '.join(known) or 'none'} "
                     f"(checkpoints/README.md says how to bring others)")
