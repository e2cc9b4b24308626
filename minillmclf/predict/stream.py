"""Answers to a stream of rows, window by window: printed, or in a file that a later run continues.

The WINDOW rows of a window are read, sorted by length into batches, answered, and
written in their own order before the next window is read. So memory does not grow with the rows.
Windows begin at fixed rows, so a continued run makes the same batches, hence the same bytes. Here:
the loop, its two outputs (`Printed`, `Part`) and the identity of a model. Not here: reading rows
and formatting answers (rows.py).
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

WINDOW = 4096                   # rows; many batches, so that most hold texts of one length
EVERY = 10                      # seconds between two lines of progress
STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
MODEL_FILES = (".json", ".safetensors", ".model", ".txt")
OPEN_FILES_STAY = os.name == "nt"                # Windows cannot rename or remove an open file


def answer_all(windows, answer, out):
    """Answer all windows and add them to `out`, a Printed or a Part.

    windows: iterator of (rows, sha256 of the file so far, or None); answer(rows, first) -> (the
    answers as text, how many texts were cut).
    """
    before = out.rows
    started = shown = time.monotonic()
    for rows, sha256 in windows:
        now = time.monotonic()
        if out.rows > before and now - shown >= EVERY:
            print(f"{out.rows:,} rows, {(out.rows - before) / (now - started):,.0f} rows/s",
                  file=sys.stderr, flush=True)
            shown = now
        try:
            text, cut = answer(rows, out.rows == 0)
        except InputError as error:                      # it counts rows from the window's first
            raise InputError(f"after {out.rows:,} rows: {error}" if out.rows
                             else str(error)) from None
        out.add(text, len(rows), sha256, cut)


class Printed:
    """Answers on standard output. rows, cut: how many rows and cut texts so far."""
    rows = cut = 0

    def add(self, text, rows, sha256, cut):
        sys.stdout.write(text)
        sys.stdout.flush()
        self.rows += rows
        self.cut += cut


class Part:
    """Answers in OUT.part, and in OUT.part.json a record of how many of them count.

    with Part(out, made) as part: answer_all(part.to_do(read), answer, part)

    At its end OUT.part is renamed to OUT. made: what the answers depend on besides the rows,
    {name: value}; the record holds it, and a hash of the rows. After each full window the answers
    are flushed to the disk, then the record, so that it never counts answers that are not there. A
    continued run cuts off answers that it does not count. made=None: no record, and a run that
    fails leaves nothing.
    """

    def __init__(self, out, made=None):
        self.out, self.made = Path(out), made
        self.part, self.record = part_files(out)
        self.rows = self.bytes = self.cut = 0            # rows and bytes in the part, texts cut
        self.hash = hashlib.sha256()                     # of these bytes
        self.kept = 0                                    # rows on record
        self.begun = False

    def __enter__(self):
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.fdopen(own_file(self.part), "r+b")
        except OSError as error:
            raise self.unwritten(error) from None
        self.handlers = {number: signal.signal(number, signal.default_int_handler)   # as Ctrl-C
                         for number in STOPS
                         if signal.getsignal(number) != signal.SIG_IGN}              # nohup
        return self

    def __exit__(self, kind, error, trace):
        done = False
        try:
            if kind is None:
                self.finish()
                done = True
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            if OPEN_FILES_STAY:
                self.file.close()
            if not done and not self.record.exists():
                self.part.unlink(missing_ok=True)
            self.file.close()
        if kind is KeyboardInterrupt and self.kept:
            raise Stopped(f"stopped; {self.kept:,} rows are in {self.part}, the same command goes "
                          "on from there") from None

    def to_do(self, read):
        """The windows of read() that an earlier run has not answered yet."""
        if self.made is None or not self.record.exists():
            return read()
        found, why = self.earlier()
        windows = read()
        if not why and skip(windows, found["rows"]) != found.get("sha256"):
            why = "is of other rows"
        if why:
            print(f"{self.part} {why}: starting anew", file=sys.stderr)
            self.hash = hashlib.sha256()
            return read()
        self.on_record, self.rows, self.kept = found, found["rows"], found["rows"]
        self.bytes, self.cut = found["bytes"], found["cut"]
        print(f"going on after {self.rows:,} rows of an earlier run", file=sys.stderr)
        return windows

    def earlier(self):
        """-> the record of an earlier run, and the reason why it cannot be continued, or None."""
        try:
            found = read_json(self.record)
        except InputError:
            return {}, "has a broken record"
        made, counts = found.get("made"), [found.get(key) for key in ("rows", "bytes", "cut")]
        if not all(type(count) is int and count >= 0 for count in counts) \
                or not isinstance(made, dict) or made.keys() != self.made.keys():
            return found, "has another kind of record"
        if other := [name for name in made if made[name] != self.made[name]]:
            return found, f"is of another {' and '.join(other)}"
        left = found["bytes"]
        if os.fstat(self.file.fileno()).st_size < left:
            return found, "holds less than its record says"
        while left and (block := self.file.read(min(left, 2**20))):
            self.hash.update(block)
            left -= len(block)
        same = self.hash.hexdigest() == found.get("written")
        return found, None if same else "holds other bytes than its record says"

    def add(self, text, rows, sha256, cut):
        """Write the answers of a window. A full window is counted in the record."""
        try:
            self.begin()
            data = text.encode("utf-8", "backslashreplace")
            self.bytes += self.file.write(data)
            self.hash.update(data)
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self.unwritten(error) from None
        self.rows += rows
        self.cut += cut
        if self.made is not None and rows == WINDOW:     # a shorter one is the last
            self.on_record = {"rows": self.rows, "bytes": self.bytes, "cut": self.cut,
                              "written": self.hash.hexdigest(), "sha256": sha256, "made": self.made}
            self.keep()

    def keep(self):
        """Write the record."""
        write_text(self.record, json.dumps(self.on_record, indent=2, ensure_ascii=False) + "\n")
        self.kept = self.on_record["rows"]

    def begin(self):
        """Before the first write, cut the part to the bytes that the record counts."""
        if not self.begun:
            if not self.kept:
                self.record.unlink(missing_ok=True)      # it counts answers of another run
            self.file.truncate(self.bytes)
            self.file.seek(self.bytes)
            self.begun = True

    def finish(self):
        """Rename the part to OUT. The record goes first: a kill in between leaves no old record."""
        try:
            self.begin()                                 # there may have been nothing to add
            if OPEN_FILES_STAY:
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
        remedy = "free some space or choose another place"
        if self.kept:
            remedy = f"free some space, the same command goes on after {self.kept:,} rows"
        return InputError(f"{self.out}: could not be written ({error}); what was saved before is "
                          f"untouched: {remedy}")


def part_files(out):
    """The file of unfinished answers, and its record."""
    return Path(f"{Path(out)}.part"), Path(f"{Path(out)}.part.json")


def check_answers(out, overwrite, sources):
    """files.check_out for OUT and the two files of its Part."""
    for path in part_files(out):
        look_at(path, sources)
    return check_out(out, overwrite, sources)


def own_file(path):
    """Open a file to read and write, new if it is not there, and lock it -> its handle. InputError
    for a symbolic link and for whatever is no ordinary file."""
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


def skip(windows, rows):
    """Read windows of `rows` rows in all -> sha256 of the file there; None if no window ends so."""
    for window, sha256 in windows:
        rows -= len(window)
        if rows <= 0:
            return sha256 if rows == 0 else None
    return None


def identity(folders):
    """A hash that changes with the name, size or time of any file a model is loaded from."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in MODEL_FILES and path.is_file():
                name, stat = path.relative_to(folder), path.stat()
                digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
