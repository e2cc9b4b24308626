"""Tables: the rows of a CSV, TSV or JSONL file, read whole or as a stream, strictly.

Here: UTF-8, RFC 4180 quoting for CSV and TSV, one JSON object per line for JSONL (jsonlines.org). A row that cannot be read
is an error with its line, never a row that is dropped. Not here: what the columns mean (data.py), Markdown (table.py).

quoting   auto: as RFC 4180 has it, but a quoted field that seems to have swallowed rows is an error; double:
          without that question; none: a quote is a character like any other, for files without quoting

`decoded` makes text of bytes line by line, `Reading` makes rows of lines, `read_windows` gathers as many rows as one wants
to hold at a time; `read_table` is the one window that holds them all.
"""
import codecs
import csv
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from ..errors import InputError
from ..files import short

SEPARATORS = {".csv": ",", ".tsv": "\t", ".jsonl": None}
MEMORY = "rows in memory"         # the path of a Table that was read from no file
THOUSANDS = re.compile(r"\d,(000\b|\d{3}\b(?!\s*(,|$)))")          # not "error 7,404": 404 is a field
DEEPEST = 100                     # lists and objects within each other in a line of JSON


@dataclass(frozen=True)
class Table:
    """One file as read, or a window of it: `rows` holds (line, {column: value}); JSONL values keep their JSON type."""
    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, dict]]
    sha256: str                   # of the file, or of its bytes from the first to the last of these rows
    separator: str | None = None  # of fields, as found in the file; None: JSONL


def read_table(path: Path, quoting="auto") -> Table:
    """Read one .csv, .tsv or .jsonl file; blank lines are skipped. Raises InputError with the line at fault."""
    [table] = read_windows(path, None, quoting)
    return table


def read_windows(path: Path, size, quoting="auto"):
    """The same file in Tables of `size` rows each, the last with what is left; None: all rows in one.

    Memory grows with the window, not with the file. The columns of a JSONL window are the keys of all rows up to its end.
    Raises InputError for a file without rows, and for a fault of a row once its window is read.
    """
    suffix = path.suffix.lower()
    if suffix not in SEPARATORS:
        raise InputError(f"{short(path, 200)}: unknown suffix {short(suffix)}: use a .csv, .tsv or .jsonl "
                         "file")
    try:
        if "\0" in str(path):
            raise OSError(0, "a null byte in its name")
        if path.exists() and not path.is_file():                   # a FIFO would be waited for
            raise OSError(0, "it is no ordinary file")
        with open(path, "rb") as file:
            reading = Reading(path, suffix, iter if size else list, quoting)
            rows = reading.rows(file)
            while window := list(islice(rows, size)):
                sha256 = reading.read.hexdigest()
                yield Table(path, tuple(reading.columns), window, sha256, reading.separator)
    except OSError as error:
        raise InputError(f"{short(path, 200)}: cannot be read ({error.strerror}): check the path") from error
    if not reading.count:
        raise InputError(f"{path}: {'a header but no rows' if reading.columns else 'the file is empty'}: add rows")


def decoded(file, where, suffix="", read=None):
    """Lines of bytes -> lines of text with their ends, \\n or \\r\\n. where: what InputError names; read: a hash of what
    has been read, kept up to date."""
    offset = 0
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8")                            # no character of several bytes holds the byte of \n
        except UnicodeDecodeError as error:
            wide = number == 1 and line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raise InputError(f"{where}, line {number}: not UTF-8 at byte offset {offset + error.start}: convert the file, for "
                             f"example with iconv -f {'UTF-16' if wide else 'WINDOWS-1252'} -t UTF-8 old{suffix} > new{suffix}"
                             ) from error
        if read is not None:
            read.update(line)
        yield text.removeprefix("\ufeff") if number == 1 else text             # a byte order mark is no part of the text
        offset += len(line)


def every_end(lines):
    """Cut lines also where a lone \\r ends one, as files of old have it."""
    for line in lines:
        yield from io.StringIO(line, newline="")


class Reading:
    """for line, record in Reading(path, suffix).rows(file): ...   columns, count and the hash `read` are of what was read.

    step: iter takes each line through all steps before the next is read; list takes all lines through a step before the
    next step, so that of a file's faults the most basic is told: that it is not UTF-8, for one.
    """

    def __init__(self, path, suffix, step=iter, quoting="auto"):
        self.path, self.suffix, self.step, self.quoting = path, suffix, step, quoting
        self.separator = SEPARATORS[suffix]
        self.columns, self.count, self.read = [], 0, hashlib.sha256()

    def rows(self, file):
        """The rows of a file of bytes."""
        lines = self.step(decoded(file, self.path, self.suffix, self.read))
        for row in self.of_json(lines) if self.suffix == ".jsonl" else self.of_csv(lines):
            self.count += 1
            yield row

    def records(self, lines):
        """Lines of CSV or TSV -> (line, fields) of each record, the header being the first."""
        csv.field_size_limit(2**31 - 1)                            # the default, 131072, is less than a long text
        lines, taken, header, line = every_end(lines), [], None, 1
        first = self.find_separator(lines)

        def kept():
            for text in chain(first, lines):
                taken.append(text)                                 # the lines of one record
                yield text
        plain = {"quoting": csv.QUOTE_NONE, "quotechar": None} if self.quoting == "none" else {}
        reader = csv.reader(kept(), delimiter=self.separator, strict=True, **plain)
        try:
            for fields in reader:
                if fields:
                    header = header or (len(fields), "".join(taken))
                    if self.quoting == "auto" and self.swallowed(taken, fields, *header):
                        raise InputError(
                            f"{self.path}, line {line}: a quote opens a field of {len(taken)} lines that look like "
                            f"rows of {header[0]} fields each: write each inner quote twice (\"\"), read a file "
                            "without quoting by --quoting none, one whose texts are such lines by --quoting double")
                    yield line, fields
                taken.clear()
                line = reader.line_num + 1                         # a quoted field may span lines
        except csv.Error as error:
            raise InputError(f"{self.path}, line {line}: broken quoting ({error}): put a text that holds quotes "
                             'between double quotes and write each inner quote twice (""), or read a file '
                             "without quoting by --quoting none") from error

    def find_separator(self, lines):
        """Lines up to the first that is not blank, as they should be read. Sets self.separator: as a first line
        "sep=;" of a spreadsheet says; else that of the suffix, or, if it is not in the line, ; or a tab or ,."""
        first = []
        for text in lines:
            first.append(text)
            if said := re.fullmatch(r'"?sep=([;,|:\t])"?\s*', text):
                self.separator = said[1]
                return [*first[:-1], "\n"]                         # blank: lines count as in the file
            if text.strip():
                bare = re.sub('"[^"]*"', "", text)
                marks = (self.separator, *";\t,")
                self.separator = next((mark for mark in marks if mark in bare), self.separator)
                break
        return first

    def swallowed(self, lines, record, count, header):
        """Do these lines, which quotes make one record, each look like a row? count: of the header's fields.

        Without quoting no text holds the separator. A comma before a space is punctuation, unless the header
        has one, and in 36,000 part of a number. Of two columns the last is empty in no row, if it is not in the
        record: "Dear Sir,\\nwhere is it?" is a text.
        """
        space = self.separator + " "
        loose = self.separator == "\t" or space in header
        for line in filter(str.strip, lines):
            fields = line.strip("\r\n").split(self.separator)
            prose = not loose and (space in line or THOUSANDS.search(line))
            empty = count == 2 and not fields[-1].strip('" ') and record[-1].strip()
            if len(fields) != count or prose or empty:
                return False
        return len(lines) > 1 and count > 1

    def of_csv(self, lines):
        records = iter(self.step(self.records(lines)))
        header = self.columns = [name.strip() for name in next(records, (1, []))[1]]
        if header.count("") > 1:                                   # or all but the last are lost
            header[:] = [name or f"column {place}" for place, name in enumerate(header, 1)]
        twice = next((name for name, times in Counter(header).items() if name and times > 1), None)
        if twice:
            raise InputError(f"{self.path}: the header names the column {short(twice)} twice: rename one, or "
                             "write a line with the columns' names above the rows")
        for line, fields in records:
            if len(fields) != len(header):
                remedy = "put a text that holds the separator or a line break between double quotes"
                if self.quoting == "none":
                    remedy = "with --quoting none no text may hold the separator"
                raise InputError(f"{self.path}, line {line}: {len(fields)} fields where the header has "
                                 f"{len(header)}: {remedy}")
            yield line, dict(zip(header, fields))

    def of_json(self, lines):
        self.columns = {}                                          # as a set that keeps its order
        for line, source in enumerate(lines, 1):                   # a line ends in \n alone: U+2028 may stand in a string
            source = source.removesuffix("\n")
            if source.strip():
                try:
                    record = json.loads(source)
                    if not isinstance(record, dict):
                        raise ValueError(f"found a {type(record).__name__}")
                    if source.count("[") + source.count("{") > DEEPEST and depth(record) > DEEPEST:
                        raise ValueError(f"more than {DEEPEST} lists and objects within each other")
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{self.path}, line {line}: not a JSON object ({error}): write one per line") from error
                self.columns.update(dict.fromkeys(record))
                yield line, record


def depth(value):
    """How many lists and objects stand within each other."""
    level, count = [value], 0
    while level := [inner for one in level if isinstance(one, (dict, list))
                    for inner in (one.values() if isinstance(one, dict) else one)]:
        count += 1
    return count
