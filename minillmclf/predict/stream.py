"""Answers to a stream of rows, window by window: printed as they are ready, or in a file that a stopped run goes on with.

A window is WINDOW rows: they are read, sorted by length into batches (Classifier.over), answered, and written in their
own order before the next is read. So memory does not grow with the rows; and as windows lie at fixed rows, a run that
goes on where another has stopped makes the same batches, hence the same bytes.

Here: the loop, its two ends (`Printed`, `Part`) and what tells a model from another. Not here: rows and answers (predict.py).
"""
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from ..errors import InputError, Stopped
from ..files import check_out, hold, look_at, read_json, write_text

WINDOW = 4096                   # rows at a time; many batches, so that most of them hold texts of one length
EVERY = 10                      # seconds between two lines on how far it is
STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
READ = (".json", ".safetensors", ".model", ".txt")       # what a model is read from


def answer_all(windows, answer, end):
    """Answer all windows. windows: (rows, sha256 of their file up to the last of them, or None)
    each; answer(rows, is it the first window?) -> what is written, how many texts were cut; end: a
    Printed or a Part."""
    before, begun = end.rows, time.monotonic()
    told = begun
    for rows, sha256 in windows:
        now = time.monotonic()
        if end.rows > before and now - told >= EVERY:
            print(f"{end.rows:,} rows, {(end.rows - before) / (now - begun):,.0f} rows/s", file=sys.stderr, flush=True)
            told = now
        try:
            written, cut = answer(rows, end.rows == 0)
        except InputError as error:                        # it counts texts from the window's first
            raise InputError(f"after {end.rows:,} rows: {error}" if end.rows else str(error)) from None
        end.add(written, len(rows), sha256, cut)


class Printed:
    """Standard output: whoever reads it has each window's answers at once."""
    rows = cut = 0

    def add(self, text, rows, sha256, cut):
        sys.stdout.write(text)
        sys.stdout.flush()
        self.rows += rows
        self.cut += cut


class Part:
    """OUT.part, the answers so far, and OUT.part.json, the record of how many of them count.

    with Part(out, made) as part: answer_all(part.to_do(read), answer, part)      at its end OUT.part becomes OUT

    made: what the answers depend on beside the rows, {what: text}. The record holds it, and of the rows a hash. After each
    full window the answers are brought to the disk, then the record: it never counts answers that are not there, and what
    stands behind them is cut off by the run that goes on. made=None: no record, and of a run that fails nothing is left.
    """

    def __init__(self, out, made=None):
        self.out, self.made = Path(out), made
        self.part, self.record = beside(out)
        self.rows = self.bytes = self.cut = 0              # rows and bytes in the part, texts cut
        self.kept, self.begun = 0, False                   # of the rows, how many are on record
        self.written = hashlib.sha256()                    # of the part's bytes that count

    def __enter__(self):
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.fdopen(own_file(self.part), "r+b")
        except OSError as error:
            raise self.unwritten(error) from None
        self.before = {s: signal.signal(s, signal.default_int_handler)       # as Ctrl-C: at once
                       for s in STOPS if signal.getsignal(s) != signal.SIG_IGN}             # nohup
        return self

    def __exit__(self, kind, error, trace):
        done = False
        try:
            if kind is None:
                self.finish()
                done = True
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)
            if os.name == "nt":                            # there no open file is moved or removed
                self.file.close()
            if not done and not self.record.exists():
                self.part.unlink(missing_ok=True)
            self.file.close()
        if kind is KeyboardInterrupt and self.kept:
            raise Stopped(f"stopped; {self.kept:,} rows are in {self.part}, the same command goes on from there") from None

    def to_do(self, read):
        """The windows of read() that no earlier run has answered."""
        if self.made is None or not self.record.exists():
            return read()
        found, why = self.earlier()
        windows = read()
        if not why and passed(windows, found["rows"]) != found.get("sha256"):
            why = "is of other rows"
        if why:
            print(f"{self.part} {why}: starting anew", file=sys.stderr)
            self.written = hashlib.sha256()
            return read()
        self.on_record, self.rows, self.kept = found, found["rows"], found["rows"]
        self.bytes, self.cut = found["bytes"], found["cut"]
        print(f"going on after {self.rows:,} rows of an earlier run", file=sys.stderr)
        return windows

    def earlier(self):
        """What is on record of an earlier run, and why it is of no use to this one, or None."""
        try:
            found = read_json(self.record)
        except InputError:
            return {}, "has a broken record"
        made = found.get("made")
        counts = [found.get(key) for key in ("rows", "bytes", "cut")]
        good = all(type(count) is int and count >= 0 for count in counts)
        if not good or not isinstance(made, dict) or made.keys() != self.made.keys():
            return found, "has another kind of record"
        if other := [what for what in made if made[what] != self.made[what]]:
            return found, f"is of another {' and '.join(other)}"
        if os.fstat(self.file.fileno()).st_size < found["bytes"]:
            return found, "holds less than its record says"
        left = found["bytes"]
        while left and (some := self.file.read(min(left, 2**20))):
            self.written.update(some)
            left -= len(some)
        same = self.written.hexdigest() == found.get("written")
        return found, None if same else "holds other bytes than its record says"

    def add(self, text, rows, sha256, cut):
        """Write a window's answers; they count once they are on record."""
        try:
            self.begin()
            told = text.encode("utf-8", "backslashreplace")                    # as JSON has it
            self.bytes += self.file.write(told)
            self.written.update(told)
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self.unwritten(error) from None
        self.rows += rows
        self.cut += cut
        if self.made is not None and rows == WINDOW:       # behind a shorter one, the last, nothing could go on
            self.on_record = {"rows": self.rows, "bytes": self.bytes, "cut": self.cut,
                              "written": self.written.hexdigest(), "sha256": sha256,
                              "made": self.made}
            self.keep()

    def keep(self):
        """Bring the record to the disk."""
        write_text(self.record, json.dumps(self.on_record, indent=2, ensure_ascii=False) + "\n")
        self.kept = self.on_record["rows"]

    def begin(self):
        """The part, as far as the record counts; empty without."""
        if not self.begun:
            if not self.kept:
                self.record.unlink(missing_ok=True)        # it must count no answers of another run
            self.file.truncate(self.bytes)
            self.file.seek(self.bytes)
            self.begun = True

    def finish(self):
        """Give the part its name. The record goes first: a kill in between leaves nothing over."""
        try:
            self.begin()                                   # stopped here, a run has nothing to add
            if os.name == "nt":
                self.file.close()
            self.record.unlink(missing_ok=True)
            os.replace(self.part, self.out)
        except BaseException as error:
            if self.kept:
                self.keep()
            if isinstance(error, OSError):
                raise self.unwritten(error) from None
            raise

    def unwritten(self, error):
        remedy = f"free some space, the same command goes on after {self.kept:,} rows" if self.kept else \
            "free some space or choose another place"
        return InputError(f"{self.out}: could not be written ({error}); what was saved before is untouched: {remedy}")


def beside(out):
    """Where answers lie while they are made, and the record of them."""
    return Path(f"{Path(out)}.part"), Path(f"{Path(out)}.part.json")


def check_answers(out, overwrite, apart):
    """files.check_out, for a Part."""
    for path in beside(out):
        look_at(path, apart)
    return check_out(out, overwrite, apart)


def own_file(path):
    """Open a file, there or new, to read and write, and lock it -> its handle. InputError for a
    symbolic link and for all that is no ordinary file."""
    if path.is_symlink() or path.exists() and not path.is_file():
        raise InputError(f"{path}: is no ordinary file: remove it, or choose another --out")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        hold(handle, path)
        if not path.exists() or not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise InputError(f"{path}: another process has just ended: give the command again")
        return handle
    except BaseException:
        os.close(handle)
        raise


def passed(windows, rows):
    """Read windows up to so many rows -> sha256 of their file there, or None if no window ends there."""
    for texts, sha256 in windows:
        rows -= len(texts)
        if rows <= 0:
            return sha256 if rows == 0 else None
    return None


def identity(folders):
    """A text that changes with a model's files: with the name, size or time of its settings,
    weights or vocabulary."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in READ and path.is_file():
                name, stat = path.relative_to(folder), path.stat()
                digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
