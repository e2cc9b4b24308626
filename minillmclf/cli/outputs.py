"""What a command may write to: --out is checked before anything is computed, and locked."""
import os
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from ..errors import InputError
from ..files import CHECKPOINTS, error_text, read_json, short
from .checks import flag

try:
    import fcntl
except ImportError:                                    # Windows
    fcntl = None


def check_out_path(out, inputs, option="--out"):
    """What check_out_file and check_out_folder share -> (Path, does it exist?).

    inputs: list of (option, path or None) that the command reads; option: that names `out`.
    InputError if `out` cannot be a file's name, is one of the inputs, lies inside one, or is the
    folder in which one lies.
    """
    path = Path(out)
    try:
        here = path.resolve()
        there = path.exists() or path.is_symlink()
    except (OSError, ValueError, RuntimeError) as error:       # too long; a null byte; a loop
        raise InputError(f"{option} {short(path, 200)}: cannot be a file's name "
                         f"({error_text(error)})") from None
    for flag_of_input, read in inputs:
        try:
            read = read and Path(read).resolve()
            same = read and (read == here or there and read.is_file() and path.samefile(read))
            clash = read and (same or read in here.parents
                              or read.is_file() and path.is_dir() and read.parent == here)
        except (OSError, ValueError, RuntimeError):            # raised again where it is read
            continue
        if clash:
            part = "" if same else "part of "
            raise InputError(f"{option} {short(path, 200)}: is {part}what {flag_of_input} reads: "
                             f"choose another {option}")
    return path, there


def input_paths(flags):
    """The existing files and folders that an argparse namespace names -> [(option, path), ...], for
    the argument `inputs` of the checks."""
    names = ("config", "data", "test", "sample", "model", "base", "template", "label_texts",
             "instruction", "neighbours")
    return [(flag(name), path) for name in names
            if isinstance(value := getattr(flags, name, None), str) and value
            for path in (value, CHECKPOINTS / value) if os.path.exists(path)]


def check_writable(out, folder, option="--out"):
    """InputError unless files can be made in a folder, or in the nearest one above it that exists.
    out, option: what the message names. A full disk is only seen when something is written."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        fault = f"{short(there, 200)} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        fault = f"permission denied, or a read-only disk: {short(there, 200)}"
    else:
        return
    raise InputError(f"{option} {short(out, 200)}: could not be written ({fault}): choose another "
                     f"{option}")


def check_out_file(out, overwrite=False, inputs=(), option="--out"):
    """Raise InputError where a command must not or cannot write its file `out`. -> Path

    overwrite: an ordinary file there may be replaced; inputs, option: as for `check_out_path`.
    """
    path, there = check_out_path(out, inputs, option)
    if there and not path.is_file():
        raise InputError(f"{option} {short(path, 200)}: could not be written (it is no ordinary "
                         "file): name a new file")
    if there and not overwrite:
        raise InputError(f"{option} {short(path, 200)}: is there already: choose another {option}, "
                         "or --overwrite")
    check_writable(path, path.parent, option)
    return path


def check_out_folder(out, own=False, overwrite=False, inputs=()):
    """Raise InputError where a command must not or cannot write into its folder `out`. -> Path

    own: the folder holds an earlier run of this command, which may be continued; overwrite: any
    files in it may be replaced; inputs: as for `check_out_path`.
    """
    path, there = check_out_path(out, inputs)
    if there and not path.is_dir():
        raise InputError(f"--out {short(path, 200)}: could not be written (it is no folder): "
                         "choose another --out")
    if there and not (own or overwrite):
        found = sorted(p.name for p in path.iterdir() if not p.name.endswith(".writing"))
        if found:
            what = "a model" if "config.json" in found else short(found[0])
            raise InputError(f"--out {short(path, 200)}: is not empty, it holds {what}: choose a "
                             "new folder, or --overwrite")
    check_writable(path, path)
    return path


def holds_record(paths, is_ours):
    """Is one of these files a record of ours? is_ours(its JSON object)."""
    for path in paths:
        try:
            if is_ours(read_json(path)):
                return True
        except (InputError, AttributeError, KeyError, TypeError):
            continue
    return False


def holds_only(folder, names):
    """Does a folder hold nothing but `names` and files that a killed process was writing? names:
    patterns of the files and folders at its top."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return all(any(part.endswith(".writing") for part in path.parts)
               or any(fnmatch(path.parts[0], name) for name in names) for path in paths)


def lock_handle(handle, name):
    """Lock an open file or folder until `handle` is closed; InputError if another process holds
    the lock. Without fcntl (Windows), and on disks without locks, nothing is locked."""
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        kind = "folder" if Path(name).is_dir() else "file"
        raise InputError(f"{name}: another process is writing to this {kind}: wait for it, or "
                         "choose another --out") from None
    except OSError:
        return


@contextmanager
def lock_folder(folder):
    """with lock_folder(folder): ...   Another command that would write there is refused meanwhile.

    folder: a Path. The lock is on the folder itself and ends with the process, even if that is
    killed. A new folder that stays empty is removed.
    """
    if os.name == "nt":                                        # Windows opens no folders
        yield
        return
    try:
        new = not folder.exists()
        if not new and not folder.is_dir():
            raise OSError(0, "it is a file, a folder is needed")
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except (OSError, ValueError) as error:
        raise InputError(f"--out {short(folder, 300)}: could not be written ({error_text(error)}): "
                         "choose another --out") from None
    try:
        lock_handle(handle, folder)
        try:
            yield
        finally:
            if new and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(handle)
