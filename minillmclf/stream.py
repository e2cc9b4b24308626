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

from .commands import Stopped
from .errors import InputError
from .files import read_json, write_text

WINDOW = 4096                   # rows at a time; many batches, so that most of them hold texts of one length
EVERY = 10                      # seconds between two lines on how far it is
READ = (".json", ".safetensors", ".model", ".txt")       # what a model is read from


def answer_all(windows, answer, end):
    """Answer all windows. windows: (texts, sha256 of their file up to the last of them, or None) each; answer(texts, is it the
    first window?) -> what is written; end: a Printed or a Part."""
    before, begun = end.rows, time.monotonic()
    told = begun
    for texts, sha256 in windows:
        now = time.monotonic()
        if end.rows > before and now - told >= EVERY:
            print(f"{end.rows:,} rows, {(end.rows - before) / (now - begun):,.0f} rows/s", file=sys.stderr, flush=True)
            told = now
        try:
            written = answer(texts, end.rows == 0)
        except InputError as error:                        # it counts texts from the window's first
            raise InputError(f"after {end.rows:,} rows: {error}" if end.rows else str(error)) from None
        end.add(written, len(texts), sha256)


class Printed:
    """Standard output: whoever reads it has each window's answers at once."""
    rows = 0

    def add(self, text, rows, sha256):
        sys.stdout.write(text)
        sys.stdout.flush()
        self.rows += rows


class Part:
    """OUT.part, the answers so far, and OUT.part.json, the record of how many of them count.

    with Part(out, made) as part: answer_all(part.to_do(read), answer, part)      at its end OUT.part becomes OUT

    made: what the answers depend on beside the rows, {what: text}. The record holds it, and of the rows a hash. After each
    full window the answers are brought to the disk, then the record: it never counts answers that are not there, and what
    stands behind them is cut off by the run that goes on. made=None: no record, and of a run that fails nothing is left.
    """

    def __init__(self, out, made=None):
        self.out, self.made = Path(out), made
        self.part, self.record = record_of(out).with_suffix(""), record_of(out)
        self.rows = self.bytes = self.kept = 0             # rows and bytes in the part; of the rows, how many are on record
        self.file = None
        if self.out.is_dir():
            raise InputError(f"{out}: could not be written (it is a folder): name a file")

    def __enter__(self):
        self.before = signal.signal(signal.SIGTERM, signal.default_int_handler)          # as Ctrl-C: at once
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.finish()
        finally:
            signal.signal(signal.SIGTERM, self.before)
            if self.file is not None:
                self.file.close()
                if not self.kept:
                    self.part.unlink(missing_ok=True)
        if kind is KeyboardInterrupt and self.kept:
            raise Stopped(f"stopped; {self.kept:,} rows are in {self.part}, the same command goes on from there") from None

    def to_do(self, read):
        """The windows of read() that no earlier run has answered."""
        if self.made is None or not self.record.exists():
            return read()
        found, why = self.earlier()
        windows = read()
        if not why and passed(windows, found["rows"]) != found["sha256"]:
            why = "is of other rows"
        if why:
            print(f"{self.part} {why}: starting anew", file=sys.stderr)
            return read()
        self.rows = self.kept = found["rows"]
        self.bytes = found["bytes"]
        print(f"going on after {self.rows:,} rows of an earlier run", file=sys.stderr)
        return windows

    def earlier(self):
        """What is on record of an earlier run, and why it is of no use to this one, or None."""
        try:
            found = read_json(self.record)
        except InputError:
            return {}, "has a broken record"
        made = found.get("made")
        if found.keys() != {"rows", "bytes", "sha256", "made"} or made.keys() != self.made.keys():
            return found, "has another kind of record"
        if other := [what for what in made if made[what] != self.made[what]]:
            return found, f"is of another {' and '.join(other)}"
        if not self.part.is_file() or self.part.stat().st_size < found["bytes"]:
            return found, "holds less than its record says"
        return found, None

    def add(self, text, rows, sha256):
        """Write a window's answers; it counts once it is on record."""
        try:
            self.open()
            self.bytes += self.file.write(text.encode("utf-8"))
            self.file.flush()
            os.fsync(self.file.fileno())
        except (OSError, UnicodeEncodeError) as error:
            raise self.unwritten(error) from None
        self.rows += rows
        if self.made is not None and rows == WINDOW:       # behind a shorter one, the last, nothing could go on
            record = {"rows": self.rows, "bytes": self.bytes, "sha256": sha256, "made": self.made}
            write_text(self.record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
            self.kept = self.rows

    def open(self):
        """The part, as far as the record counts; a new one without."""
        if self.file is None and self.kept:
            self.file = open(self.part, "r+b")
            self.file.truncate(self.bytes)
            self.file.seek(self.bytes)
        elif self.file is None:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self.record.unlink(missing_ok=True)            # it must not count answers of another run
            self.file = open(self.part, "wb")

    def finish(self):
        try:
            self.open()                                    # where a run was stopped here, nothing was left to add
            self.file.close()
            os.replace(self.part, self.out)
            self.record.unlink(missing_ok=True)
        except OSError as error:
            raise self.unwritten(error) from None

    def unwritten(self, error):
        remedy = f"free some space, the same command goes on after {self.kept:,} rows" if self.kept else \
            "free some space or choose another place"
        return InputError(f"{self.out}: could not be written ({error}); what was saved before is untouched: {remedy}")


def record_of(out):
    """Where the record of a file of answers lies while it is made."""
    return Path(f"{Path(out)}.part.json")


def passed(windows, rows):
    """Read windows up to so many rows -> sha256 of their file there, or None if no window ends there."""
    for texts, sha256 in windows:
        rows -= len(texts)
        if rows <= 0:
            return sha256 if rows == 0 else None
    return None


def identity(folders, out):
    """A text that changes with a model's files: with the name, size or time of its settings, weights or vocabulary. out: the
    answers, whose own record may lie there too."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in READ and path.is_file()):
            if path.resolve() != record_of(out).resolve():
                stat = path.stat()
                digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
