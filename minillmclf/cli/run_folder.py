"""The folder of a run, OUT: what is written there, when, and what may be replaced.

1. run.json is written first, with "finished": false.
2. While the run trains, it writes state.safetensors and best.safetensors.
3. At the end: the model, metrics.jsonl, predictions.csv, and run.json with "finished": true. Then
   the two states are removed.
With --overwrite, if OUT holds a run or a model, 1 to 3 happen in OUT/.new, and the files in OUT
stay until 3 is done. Then they are removed, run.json first; OUT/.new is renamed to OUT/.whole, and
its files are moved up into OUT, config.json, tuned.json and run.json last. Each file is written as
.NAME.writing and then renamed (files.replacing_file). A process may be killed at any moment: the
same command (without --overwrite) continues an unfinished run in OUT or OUT/.new, and every command
that locks OUT first moves up what a finished run left in OUT/.new or OUT/.whole
(`move_into_place`). merge saves its model in OUT/.model.writing, and it moves up in the same way.
"""
import functools
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import InputError
from ..files import (NEW_MODEL, NEW_RUN, RUN_RECORDS, STATE_FILES, check_fields, find_model,
                     move_files, read_json, remove_path, short, write_json)
from ..training.parallel import processes as parallel
from ..tuning.base import fingerprint
from .device import device_kind
from .outputs import check_out_path, lock_folder
from .settings import read_settings, with_current_names

MOVING_FOLDER = ".whole"                # in OUT: a finished new run, while its files are moved up
SHARDS = "model-*-of-*.safetensors"
MODEL_FILES = ("run.json", "config.json", "adapter_config.json", "tuned.json")
RUN_FILES = (*MODEL_FILES, *RUN_RECORDS[1:], "tokenizer.json", "tokenizer_config.json",
             "model.safetensors", "model.safetensors.index.json", "learned.json",
             "adapter_model.safetensors", "adapter/adapter_config.json",
             "adapter/adapter_model.safetensors", "adapter/learned.json",
             "adapter/minillmclf.json")
FOLD_LINES = "lines of train, dev, test"       # beside a file's sha256, where folds shares it out
OBJECT = (lambda v: isinstance(v, dict), "an object")
RECORD_FIELDS = {                       # of run.json, as files.check_fields takes them
    "settings?": OBJECT, "finished?": (lambda v: isinstance(v, bool), "true or false"),
    "data?": OBJECT, "versions?": OBJECT, "base?": (lambda v: isinstance(v, str), "a text")}


def out_folder(s):
    """The folder that the settings name, or the usual one."""
    name = f"{Path(s.model).name}-{Path(s.data).stem}-{s.method}-{s.seed}"
    return Path(s.out or f"runs/{name}")


def base_fingerprint(s):
    """The fingerprint of the model that a run starts from. It is cached until a file changes."""
    folder = find_model(s.model).resolve()
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return cached_fingerprint(folder, tuple(
        (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats))


@functools.lru_cache                    # `stats` is not read: it is a part of the cache's key
def cached_fingerprint(folder, stats):
    return fingerprint(folder)


def compare_with_run(s, folder, data):
    """Compare the run in a folder with a run of these settings and data -> (names of the settings
    and inputs that differ, the record in the folder). InputError if there is no run."""
    path = folder / "run.json"
    record = check_fields(read_json(path), RECORD_FIELDS, path)
    if "settings" not in record:
        raise InputError(f"{path}: is no record of a run, it has no settings")
    record["settings"] = with_current_names(record["settings"])
    earlier = read_settings({}, path).decisive_settings()
    differ = [name for name, value in s.decisive_settings().items() if value != earlier[name]]
    differ += differing_data(record.get("data", {}), data.source)
    if not differ and "base" in record and record["base"] != base_fingerprint(s):
        differ.append(f"base (the weights, config or tokenizer in {s.model} have changed)")
    return differ, record


def differing_data(earlier, source):
    """What differs between the data in a run.json and a Dataset's source -> a list of names."""
    hashes, now = earlier.get("sha256"), source["sha256"]
    if hashes == now:
        return []
    same_lines = {FOLD_LINES: ""}                          # put into both: only files are compared
    if not isinstance(hashes, dict) or hashes | same_lines != now | same_lines:
        return ["sha256 of the data"]
    before, after = earlier.get("split"), source["split"]
    return ["division into folds" + f" ({before} before, {after} now)" * (before != after)]


def training_folder(s, out, data, overwrite=False):
    """The folder to train in: OUT; or OUT/.new if the run is to replace what lies in OUT, or goes
    on with such a run that was stopped."""
    if overwrite:
        is_taken = any((out / name).exists() for name in MODEL_FILES)
        return out / NEW_RUN if is_taken else out
    try:
        return out if compare_with_run(s, out / NEW_RUN, data)[0] else out / NEW_RUN
    except InputError:                                     # no run there, or a broken one
        return out


def files_of_run(folder):
    """The paths of all that a run would replace or remove in a folder, the record first."""
    paths = [*(folder / name for name in RUN_FILES), *sorted(folder.glob(SHARDS))]
    return [path for path in paths if path.exists()]


def finished_record(s, out, data, overwrite=False):
    """The record of this run if it is finished in OUT, else None.

    Without `overwrite`, InputError if OUT holds another run, or a model without a run.json. A run
    that has saved no state does not count as another.
    """
    for name in RUN_FILES:                  # InputError if one is the model or the data itself
        check_out_path(out / name, [("--model", find_model(s.model)), ("--data", s.data)])
    if overwrite:
        return None
    place = training_folder(s, out, data)
    if place != out:
        refuse_other_device(s, place, read_json(place / "run.json"))
        return None
    if not (out / "run.json").exists():
        found = [path.relative_to(out) for path in files_of_run(out)]
        if found:
            what = "a model" if Path("config.json") in found else short(found[0])
            raise InputError(f"--out {short(out, 200)}: holds {what} but no run.json: choose "
                             "another --out, or --overwrite")
        return None
    try:
        differ, record = compare_with_run(s, out, data)
    except InputError as error:
        raise InputError(f"{error}; or choose another --out, or --overwrite") from None
    is_alone = files_of_run(out) == [out / "run.json"]
    if is_alone and record.get("finished") is False:   # it was refused, or ended in its first steps
        return None
    if differ:
        raise InputError(f"{out}: holds a run with another {', '.join(differ)}: choose another "
                         "--out, or --overwrite")
    if not record.get("finished"):
        refuse_other_device(s, out, record)
        return None
    return record


def refuse_other_device(s, folder, record):
    """InputError if an unfinished run was begun on another kind of device than --device is here:
    its dropout and the order of its sums are others, so the result would be that of no single run.
    A record without the kind is of an earlier version, and goes on anywhere."""
    now = device_kind(s.device)
    begun = record.get("versions", {}).get("device", now)
    if begun != now:
        raise InputError(f"{folder}: holds a run that was begun on {begun}, and --device "
                         f"{s.device} is {now} here, which draws other random numbers: go on with "
                         f"--device {begun}, or start anew with --overwrite")


def stopped_line(folder, overwrite, again="command"):
    """What a stopped run says: whether the same command goes on, or begins anew as the folds of
    --dev cross do, which save no state. again: what is to be made again."""
    again = f"The same {again}" + " without --overwrite" * overwrite
    if any((place / STATE_FILES[0]).exists() for place in (folder, folder / NEW_RUN)):
        return f"stopped; the state is saved in {folder}. {again} goes on from there."
    return f"stopped before a state was saved in {folder}. {again} begins anew."


class RunFolder:
    """OUT, as the module describes it. folds and pretrain have subclasses with another record and
    other files. NOT_KEPT: files that a finished run needs no more."""
    RECORD_FILE, NOT_KEPT = "run.json", STATE_FILES

    def __init__(self, out):
        self.out = out

    @contextmanager
    def lock(self):
        """with folder.lock(): ...   No other process writes to OUT. First `move_into_place`."""
        with lock_folder(self.out) if parallel.is_main_process() else nullcontext():
            self.move_into_place()
            yield

    def move_into_place(self):
        """Move a finished run from OUT/.new or OUT/.whole into OUT; remove old states and .writing.
        The main process does it, the others wait."""
        if parallel.is_main_process():
            if self.is_finished(self.out / NEW_RUN):
                self.replace_with(self.out / NEW_RUN)
            self.move_up()
            left = [self.out / name for name in self.NOT_KEPT if self.is_finished(self.out)]
            paths = [self.out / name for name in RUN_FILES]
            left += [path.with_name(f".{path.name}.writing") for path in paths]
            left.append(self.out / NEW_MODEL)
            for path in left:
                if path.exists():
                    remove_path(path)
        parallel.barrier()

    def is_finished(self, folder):
        try:
            return read_json(folder / self.RECORD_FILE).get("finished") is True
        except InputError:
            return False

    def replace_with(self, place):
        """Put the files of `place`, a folder in OUT, in the place of a run or model in OUT, and of
        one that was to replace that."""
        self.remove_files(self.out)
        os.replace(place, self.out / MOVING_FOLDER)
        remove_path(self.out / NEW_RUN)
        self.move_up()

    def move_up(self):
        """Move all files of OUT/.whole into OUT. A folder without the last ones is not loaded."""
        last = ("config.json", "tuned.json", self.RECORD_FILE)
        if (self.out / MOVING_FOLDER).exists():
            move_files(self.out / MOVING_FOLDER, self.out, last)

    def remove_files(self, folder):
        """Remove the files of an earlier run, its record first."""
        for path in files_of_run(folder):
            path.unlink()

    def start(self, place, record, overwrite):
        """Write the record of a run to the folder `place`, and remove an earlier run there unless
        this one continues it. Called after the model and the data are read: if that fails, nothing
        is lost."""
        parallel.barrier()                     # until all processes have seen what lies in OUT
        if parallel.is_main_process():
            if overwrite or not (place / self.RECORD_FILE).exists():
                remove_path(self.out / NEW_RUN)
                self.remove_files(place)
            write_json(place / self.RECORD_FILE, record)
        parallel.barrier()
