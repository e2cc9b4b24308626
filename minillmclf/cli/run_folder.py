"""Where a run is written, its folder OUT, and what it may replace.

1. run.json is written first, with "finished": false.
2. While the run trains, it writes state.safetensors and best.safetensors.
3. At the end: the model, metrics.jsonl, predictions.csv, and run.json with "finished": true. Then
   the two states are removed.
With --overwrite, where OUT holds a run or a model, 1 to 3 happen in OUT/.new, and the files in OUT
stay until 3 is done. Then they are removed, run.json first; OUT/.new is renamed to OUT/.whole, and
its files are moved up into OUT, config.json, tuned.json and run.json last. Each file is written as
.NAME.writing and then renamed (files.replacing). A process may be killed at any moment. If OUT or
OUT/.new holds an unfinished run, the same command (without --overwrite) continues it. `settle`
moves up a finished OUT/.new or a half-emptied OUT/.whole, and removes old states and .writing.
"""
import functools
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import InputError
from ..files import (NEW_RUN, check_fields, check_out_path, find_model, lock_folder, read_json,
                     remove_path, short, write_json)
from .settings import read_settings, renamed

MOVING = ".whole"                       # in OUT: a finished new run, while its files are moved up
STATES = ("state.safetensors", "best.safetensors")
SAVED = ("run.json", "tuned.json", "config.json", "metrics.jsonl", "predictions.csv", "report.html",
         *STATES, "tokenizer.json", "tokenizer_config.json", "model.safetensors",
         "model.safetensors.index.json", "adapter/adapter_config.json",
         "adapter/adapter_model.safetensors", "adapter/minillmclf.json")
OBJECT = (lambda v: isinstance(v, dict), "an object")
RECORD = {"settings?": OBJECT, "finished?": (lambda v: isinstance(v, bool), "true or false"),
          "data?": OBJECT, "base?": (lambda v: isinstance(v, str), "a text")}


def read_record(folder):
    """The run.json of a folder, with old names of settings translated, or InputError."""
    record = check_fields(read_json(folder / "run.json"), RECORD, folder / "run.json")
    return record | ({"settings": renamed(record["settings"])} if "settings" in record else {})


# ---------------------------------------------------------------- is it the same run?

def base_of(s):
    """The fingerprint of the model that a run starts from, cached until a file changes."""
    folder = find_model(s.model).resolve()
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return read_base(folder, tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                                   for name, stat in stats))


@functools.lru_cache                    # `stats` is only a part of the cache's key
def read_base(folder, stats):
    from ..tuning.saved import fingerprint
    return fingerprint(folder)


def differences(s, folder, data):
    """Compare the run in a folder with the one that is asked for -> what differs (names of settings
    and inputs, [] if it is the same run), its record. InputError where there is no run."""
    record = read_record(folder)
    earlier = read_settings({}, folder / "run.json").decisive()
    differ = [name for name, value in s.decisive().items() if value != earlier[name]]
    if record.get("data", {}).get("sha256") != data.source["sha256"]:
        differ.append("sha256 of the data")
    if not differ and "base" in record and record["base"] != base_of(s):
        differ.append(f"base (the weights, config or tokenizer in {s.model} have changed)")
    return differ, record


def place_of(s, out, data, overwrite):
    """Where the run is made: in OUT, or in OUT/.new where it is to replace what lies in OUT."""
    if overwrite:
        held = (out / "run.json").exists() or (out / "config.json").exists()
        return out / NEW_RUN if held else out
    try:
        return out if differences(s, out / NEW_RUN, data)[0] else out / NEW_RUN
    except InputError:                                     # no run there, or a broken one
        return out


def open_run(s, out, data, overwrite=False):
    """Check that the run may be made in OUT -> its record if it is finished there, else None.

    Without `overwrite`, InputError where OUT holds another run, or a model without a run.json.
    """
    for name in SAVED:                      # InputError if one is the model or the data itself
        check_out_path(out / name, [("--model", find_model(s.model)), ("--data", s.data)])
    if overwrite or place_of(s, out, data, overwrite) != out:
        return None
    if not (out / "run.json").exists():
        found = [name for name in ("config.json", *SAVED)
                 if (out / name).exists() and name not in STATES]
        if found:
            what = "a model" if found[0] == "config.json" else found[0]
            raise InputError(f"--out {short(out, 200)}: holds {what} but no run.json: choose "
                             "another --out, or --overwrite")
        return None
    differ, record = differences(s, out, data)
    if differ:
        raise InputError(f"{out}: holds a run with another {', '.join(differ)}: choose another "
                         "--out, or --overwrite")
    return record if record.get("finished") else None


# ---------------------------------------------------------------- the folder during a run

class RunFolder:
    """OUT as this module describes it. A subclass in folds has another record and other files."""
    RECORD = "run.json"

    def __init__(self, out):
        self.out = out

    @contextmanager
    def held(self):
        """with folder.held(): ...   No other process writes to OUT, and it is settled."""
        from ..training.parallel import processes as parallel
        with lock_folder(self.out) if parallel.is_main_process() else nullcontext():
            self.settle()
            yield

    def settle(self):
        """Finish what a killed process left half done: the main process does, the others wait."""
        from ..training.parallel import processes as parallel
        if parallel.is_main_process():
            if self.is_finished(self.out / NEW_RUN):
                self.clear(self.out)
                os.replace(self.out / NEW_RUN, self.out / MOVING)
            self.move_up(self.out / MOVING)
            left = [self.out / name for name in STATES if self.is_finished(self.out)]
            left += [(self.out / name).with_name(f".{Path(name).name}.writing") for name in SAVED]
            for path in left:
                if path.exists():
                    remove_path(path)
        parallel.barrier()

    def is_finished(self, folder):
        try:
            return read_json(folder / self.RECORD).get("finished") is True
        except InputError:
            return False

    def move_up(self, source):
        """Move all files of OUT/.whole into OUT; a folder without the late ones is not loaded."""
        late = ("config.json", "tuned.json", self.RECORD)
        paths = [path for path in source.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: late.index(path.name) if path.name in late
                           else -1):
            target = self.out / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        if source.exists():
            remove_path(source)

    def clear(self, folder):
        """Remove the files of an earlier run, its record first."""
        for path in [*(folder / name for name in SAVED), *folder.glob("model-*-of-*.safetensors")]:
            if path.exists():
                path.unlink()

    def begin(self, place, record, overwrite):
        """Clear the place of a run, unless it is continued there, and write its record. Called once
        the model and the data are read, so that a run that cannot begin removes no earlier one.
        """
        from ..training.parallel import processes as parallel
        parallel.barrier()                     # until all processes have seen what lies in OUT
        if parallel.is_main_process():
            if overwrite or not (place / self.RECORD).exists():
                remove_path(self.out / NEW_RUN)
                self.clear(place)
            write_json(place / self.RECORD, record)
        parallel.barrier()
