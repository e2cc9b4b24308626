"""Answers to a stream of rows, window by window: printed, or in a file that a later run continues.

A window is WINDOW rows. They are read, sorted by length into batches, answered, and written in
their own order before the next window is read. So memory does not grow with the rows. Windows begin
at fixed rows, so a continued run makes the same batches, and the same bytes. Here: the loop, its
two outputs (`PrintedAnswers`, `PartFile`) and a fingerprint of a model. Not here: reading rows and
formatting answers (rows.py).
"""
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from ..cli.outputs import check_out_file, lock_handle, check_out_path
from ..errors import InputError, Stopped
from ..files import read_json, write_json

WINDOW = 4096                   # rows: many batches, so that in most the texts are equally long
LINE_SECONDS = 10               # between two lines of progress
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
MODEL_FILES = (".json", ".safetensors", ".model", ".txt")
NOT_OURS = ("has a broken record", "has another kind of record")      # why a part is not continued
ANOTHER = "is of another "                       # how the reason begins if its answers are sound
OPEN_FILES_STAY = os.name == "nt"                # Windows cannot rename or remove an open file


def answer_all(windows, answer, out):
    """Answer all windows and add the answers to `out`, a PrintedAnswers or a PartFile.

    windows: iterator of (rows, sha256 of the file so far, or None); answer(rows, first) -> (the
    answers as text, how many texts were cut); first: is it the first window?
    """
    before = out.rows
    started = shown = time.monotonic()
    for rows, sha256 in windows:
        now = time.monotonic()
        if out.rows > before and now - shown >= LINE_SECONDS:
            print(f"{out.rows:,} rows, {(out.rows - before) / (now - started):,.0f} rows/s",
                  file=sys.stderr, flush=True)
            shown = now
        try:
            text, cut = answer(rows, out.rows == 0)
        except InputError as error:                      # it counts rows from the window's start
            raise InputError(f"after {out.rows:,} rows: {error}" if out.rows
                             else str(error)) from None
        out.add(text, len(rows), sha256, cut)


class PrintedAnswers:
    """Answers on standard output. rows, cut: the numbers of rows and of cut texts so far."""
    rows = cut = 0

    def add(self, text, rows, sha256, cut):
        sys.stdout.write(text)
        sys.stdout.flush()
        self.rows += rows
        self.cut += cut


class PartFile:
    """Answers in OUT.part, and in OUT.part.json a record of how many of them count.

    with PartFile(out, made_from, overwrite) as part:
        answer_all(part.unanswered(read), answer, part)

    At the end OUT.part is renamed to OUT. made_from: {name: value} of what the answers depend on
    besides the rows; the record holds it, and a hash of the rows. After each full window first the
    answers are flushed to the disk, then the record, so that it never counts answers that are not
    there. A continued run drops answers that the record does not count. The first record, of no
    rows, is written before the first answer: a part without a record is not ours, and stays.
    made_from=None: no other record is written, and a run that fails leaves nothing. overwrite:
    answers of another run may be dropped, and files that are not ours.
    """

    def __init__(self, out, made_from=None, overwrite=False):
        self.out, self.made_from, self.overwrite = Path(out), made_from, overwrite
        self.part, self.record = part_files(out)
        self.rows = self.bytes = self.cut = 0            # rows and bytes in the part, texts cut
        self.hash = hashlib.sha256()                     # of these bytes
        self.on_record = {"rows": 0}                     # the record on the disk
        self.is_truncated = False                        # to the bytes that the record counts?

    def __enter__(self):
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.fdopen(open_locked(self.part), "r+b")
        except OSError as error:
            raise self.write_error(error) from None
        if self.part_size() and not self.record.exists() and not self.overwrite:
            self.file.close()
            raise InputError(f"{self.part}: is there already, without a record of this command: "
                             "remove it, choose another --out, or --overwrite")
        self.handlers = {number: signal.signal(number, signal.default_int_handler)   # as Ctrl-C
                         for number in STOP_SIGNALS
                         if signal.getsignal(number) != signal.SIG_IGN}              # nohup
        return self

    def part_size(self):
        """How many bytes the part file holds."""
        return self.part.stat().st_size if self.part.exists() else 0

    def __exit__(self, kind, error, trace):
        done = False
        try:
            if kind is None:
                self.rename_to_out()
                done = True
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            if OPEN_FILES_STAY:
                self.file.close()
            if not done and self.is_truncated and not self.on_record["rows"]:
                self.record.unlink(missing_ok=True)
            if not done and not (self.record.exists() and self.part_size()):
                self.part.unlink(missing_ok=True)
            self.file.close()
        if kind is KeyboardInterrupt and self.on_record["rows"]:
            raise Stopped(f"stopped; {self.on_record['rows']:,} rows are in {self.part}, the same "
                          "command goes on from there") from None

    def unanswered(self, read):
        """The windows of read() that an earlier run has not answered yet. InputError if that run is
        another one, unless `overwrite`."""
        if not self.record.exists():
            return read()
        record, why = self.read_earlier_record()
        if not why and not record["rows"]:               # it was killed before it was sure of any
            return read()
        if why in NOT_OURS and not self.overwrite:
            raise InputError(f"{self.record}: {why}: remove it, choose another --out, or "
                             "--overwrite")
        windows, other = read(), why.startswith(ANOTHER)
        if not why and skip_windows(windows, record["rows"]) != record.get("sha256"):
            why, other = "is of other rows", True
        if other and not self.overwrite:
            raise InputError(f"{self.part}: {why}, and holds {record['rows']:,} answers: choose "
                             "another --out, or --overwrite")
        if why:
            print(f"{self.part} {why}: starting anew", file=sys.stderr)
            self.hash = hashlib.sha256()
            return read()
        self.on_record, self.rows = record, record["rows"]
        self.bytes, self.cut = record["bytes"], record["cut"]
        print(f"going on after {self.rows:,} rows of an earlier run", file=sys.stderr)
        return windows

    def read_earlier_record(self):
        """-> the record of an earlier run, and the reason why it cannot be continued, or "".
        Where it can, self.hash is then that of the bytes that the record counts."""
        try:
            record = read_json(self.record)
        except InputError:
            return {}, NOT_OURS[0]
        made, counts = record.get("made"), [record.get(key) for key in ("rows", "bytes", "cut")]
        if not all(type(count) is int and count >= 0 for count in counts) \
                or not isinstance(made, dict):
            return record, NOT_OURS[1]
        if not record["rows"]:
            return record, ""
        left, mine = record["bytes"], self.made_from or {}
        if self.part_size() < left:
            return record, "holds less than its record says"
        if other := [name for name in made | mine if made.get(name) != mine.get(name)]:
            return record, f"{ANOTHER}{' and '.join(other) if mine else 'input'}"
        while left and (block := self.file.read(min(left, 2**20))):
            self.hash.update(block)
            left -= len(block)
        same = self.hash.hexdigest() == record.get("written")
        return record, "" if same else "holds other bytes than its record says"

    def add(self, text, rows, sha256, cut):
        """Write the answers of a window. A full window is counted in the record."""
        try:
            self.truncate_to_record()
            data = text.encode("utf-8", "backslashreplace")
            self.bytes += self.file.write(data)
            self.hash.update(data)
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self.write_error(error) from None
        self.rows += rows
        self.cut += cut
        if self.made_from is not None and rows == WINDOW:     # a shorter one is the last
            self.count_all(sha256)

    def count_all(self, sha256):
        """Write a record that counts all answers so far."""
        record = {"rows": self.rows, "bytes": self.bytes, "cut": self.cut, "sha256": sha256,
                  "written": self.hash.hexdigest(), "made": self.made_from or {}}
        write_json(self.record, record)
        self.on_record = record

    def truncate_to_record(self):
        """Before the first write, shorten the part file to the bytes that the record counts."""
        if not self.is_truncated:
            if not self.on_record["rows"]:
                self.count_all(None)                     # an old one counts another run's answers
            self.file.truncate(self.bytes)
            self.file.seek(self.bytes)
            self.is_truncated = True

    def rename_to_out(self):
        """Rename the part file to OUT. The record counts nothing then: no kill leaves an old one,
        or a part without one."""
        try:
            self.truncate_to_record()                    # there may have been nothing to add
            if OPEN_FILES_STAY:
                self.file.close()
            write_json(self.record, self.on_record | {"rows": 0, "bytes": 0, "cut": 0})
            os.replace(self.part, self.out)
            self.record.unlink(missing_ok=True)
        except BaseException as error:
            if self.on_record["rows"]:
                write_json(self.record, self.on_record)
            if isinstance(error, OSError):
                raise self.write_error(error) from None
            raise

    def write_error(self, error):
        remedy = "free some space or choose another place"
        if rows := self.on_record["rows"]:
            remedy = f"free some space, the same command goes on after {rows:,} rows"
        return InputError(f"{self.out}: could not be written ({error}); what was saved before is "
                          f"untouched: {remedy}")


def part_files(out):
    """-> the paths of the part file of OUT, and of its record."""
    return Path(f"{Path(out)}.part"), Path(f"{Path(out)}.part.json")


def check_answer_files(out, overwrite, sources):
    """check_out_file for OUT and for its two `part_files`."""
    for path in part_files(out):
        check_out_path(path, sources)
    return check_out_file(out, overwrite, sources)


def open_locked(path):
    """Open a file to read and write, new if it is not there, and lock it -> its handle. InputError
    for a symbolic link and for whatever is no ordinary file."""
    if path.is_symlink() or path.exists() and not path.is_file():
        raise InputError(f"{path}: is no ordinary file: remove it, or choose another --out")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        lock_handle(handle, path)
        if not path.exists() or not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise InputError(f"{path}: another process has just ended: give the command again")
        return handle
    except BaseException:
        os.close(handle)
        raise


def skip_windows(windows, rows):
    """Read windows up to `rows` rows -> sha256 of the file so far; None if no window ends there."""
    for window, sha256 in windows:
        rows -= len(window)
        if rows <= 0:
            return sha256 if rows == 0 else None
    return None


def model_identity(folders):
    """A hash that changes with the name, size or time of any file a model is loaded from."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in MODEL_FILES and path.is_file():
                name, stat = path.relative_to(folder), path.stat()
                digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
