"""Table files: the rows of a CSV, TSV or JSONL file, all at once or in chunks, read strictly.

Files are in UTF-8; CSV and TSV are quoted by RFC 4180; JSONL has one JSON object per line
(jsonlines.org). A row that cannot be read is an error that names its line; no row is ever dropped.
Not here: what the columns mean (examples.py).

Bytes become lines (`decode_lines`), lines become rows (`TableReader`), and rows become a `Table`
(`read_chunks`; `read_table` for the whole file). `quoting` is one of

  auto     RFC 4180, but a quoted field that seems to have swallowed rows is an error
  double   RFC 4180 without that check
  none     a quote is an ordinary character
"""
import codecs
import csv
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path

from ..errors import InputError
from ..files import short

SEPARATORS = {".csv": ",", ".tsv": "\t", ".jsonl": None}
MEMORY = "rows in memory"         # the path of a Table that was not read from a file
THOUSANDS = re.compile(r"\d,(000\b|\d{3}\b(?!\s*(,|$)))")    # "36,000", not "error 7,404"
MAX_DEPTH = 100                   # levels of lists and objects in a line of JSON


@dataclass(frozen=True)
class Table:
    """The rows of a file, or a chunk of them."""
    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, dict]]  # (line, {column: value}); values of JSONL keep their JSON type
    sha256: str                   # of the bytes of the file, up to the last of these rows
    separator: str | None = None  # of fields, as found in the file; None: JSONL


def read_table(path: Path, quoting="auto") -> Table:
    """Read one .csv, .tsv or .jsonl file; blank lines are skipped. InputError names the line."""
    [table] = read_chunks(path, None, quoting)
    return table


def read_chunks(path: Path, size, quoting="auto"):
    """Yield the file as Tables of `size` rows, the last with the rest; size None: one Table.

    Memory grows with the chunk, not with the file. The columns of a chunk of JSONL are the keys of
    all rows up to its end. InputError for a file without rows, and for a faulty row when its chunk
    is read.
    """
    suffix = path.suffix.lower()
    if suffix not in SEPARATORS:
        raise InputError(f"{short(path, 200)}: unknown suffix {short(suffix)}: use a .csv, .tsv or "
                         ".jsonl file")
    reading = TableReader(path, suffix, quoting)
    try:
        if "\0" in str(path):
            raise OSError(0, "a null byte in its name")
        if path.exists() and not path.is_file():                   # a FIFO would block
            raise OSError(0, "it is no ordinary file")
        with open(path, "rb") as file:
            rows, empty = reading.rows(file), True
            while chunk := list(islice(rows, size)):
                empty = False
                yield Table(path, tuple(reading.columns), chunk, reading.file_hash.hexdigest(),
                            reading.separator)
    except OSError as error:
        raise InputError(f"{short(path, 200)}: cannot be read ({error.strerror}): check the "
                         "path") from error
    if empty:
        fault = "a header but no rows" if reading.columns else "the file is empty"
        raise InputError(f"{path}: {fault}: add rows")


def decode_lines(file, where, suffix="", file_hash=None):
    """Lines of UTF-8 bytes -> lines of text with their ends, without a byte order mark.

    where: the name of the file in errors; file_hash: to update with the bytes read.
    """
    offset = 0
    for number, line in enumerate(file, 1):
        wide = wide_encoding(line) if number == 1 else None
        try:
            if wide:
                raise UnicodeDecodeError(wide, line, 0, 1, "it is no UTF-8")
            text = line.decode("utf-8")             # the byte of \n is no part of another character
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}, line {number}: not UTF-8 at byte offset {offset + error.start}: convert "
                f"the file, for example with iconv -f {wide or 'WINDOWS-1252'} "
                f"-t UTF-8 old{suffix} > new{suffix}") from error
        if file_hash is not None:
            file_hash.update(line)
        yield text.removeprefix("\ufeff") if number == 1 else text
        offset += len(line)


def wide_encoding(line):
    """UTF-16 or UTF-32, if a byte order mark or many null bytes in a file's first line tell of it,
    else None."""
    for name in ("UTF-32", "UTF-16"):             # in this order: the marks begin with equal bytes
        marks = [getattr(codecs, f"BOM_{name.replace('-', '')}_{order}") for order in ("LE", "BE")]
        if line.startswith(tuple(marks)):
            return name
    share = line.count(0) / max(1, len(line))     # of ASCII: 1/2, 3/4
    if share > 1 / 3:
        return f"UTF-{32 if share > 0.6 else 16}{'LE' if line[0] else 'BE'}"
    return None


def split_at_returns(lines):
    """Split lines also at a lone \\r, the line end of old Mac files."""
    for line in lines:
        yield from io.StringIO(line, newline="")


class TableReader:
    """The rows of one file: for line, record in TableReader(path, suffix).rows(file): ...

    columns, and `file_hash`, are those of the rows read so far.
    """

    def __init__(self, path, suffix, quoting="auto"):
        self.path, self.suffix, self.quoting = path, suffix, quoting
        self.separator, self.other_mark = SEPARATORS[suffix], None
        self.columns, self.file_hash = [], hashlib.sha256()

    def rows(self, file):
        """Lines of bytes -> (line number, {column: value}) of each row."""
        lines = decode_lines(file, self.path, self.suffix, self.file_hash)
        return self.json_rows(lines) if self.suffix == ".jsonl" else self.csv_rows(lines)

    def fault(self, line, text):
        return InputError(f"{self.path}, line {line}: {text}")

    # ------------------------------------------------------------ JSONL

    def json_rows(self, lines):
        self.columns = {}                                          # an ordered set
        for line, source in enumerate(lines, 1):                   # only \n ends a line, not U+2028
            source = source.removesuffix("\n")
            if not source.strip():
                continue
            try:
                record = json.loads(source, object_pairs_hook=dict_of_pairs)
                if not isinstance(record, dict):
                    raise ValueError(f"found a {type(record).__name__}")
                if source.count("[") + source.count("{") > MAX_DEPTH and depth(source) > MAX_DEPTH:
                    raise ValueError(f"more than {MAX_DEPTH} lists and objects within each other")
            except (ValueError, RecursionError) as error:
                fault = f"not a JSON object ({error}): write one per line, each key once"
                raise self.fault(line, fault) from error
            self.columns.update(dict.fromkeys(record))
            yield line, record

    # ------------------------------------------------------------ CSV and TSV

    def csv_rows(self, lines):
        for line, fields in self.records(lines):
            if not self.columns:
                self.columns = self.header(fields)
            elif len(fields) == len(self.columns):
                yield line, dict(zip(self.columns, fields))
            else:
                remedy = "put a text that holds the separator or a line break between double quotes"
                if self.quoting == "none":
                    remedy = "with --quoting none no text may hold the separator"
                if self.other_mark:
                    remedy += (f"; or write the line sep={self.other_mark} above the header, if "
                               f"{self.other_mark!r} stands between the fields")
                raise self.fault(line, f"{len(fields)} fields where the header has "
                                       f"{len(self.columns)}: {remedy}")

    def header(self, fields):
        """The names of the columns; where several are empty, "column 1" and so on."""
        names = [name.strip() for name in fields]
        if names.count("") > 1:
            names = [name or f"column {place}" for place, name in enumerate(names, 1)]
        twice = next((name for name, times in Counter(names).items() if name and times > 1), None)
        if twice:
            raise InputError(f"{self.path}: the header names the column {short(twice)} twice: "
                             "rename one, or write a line with the columns' names above the rows")
        return names

    def records(self, lines):
        """Lines -> (line number, fields) of each record, the header included."""
        csv.field_size_limit(2**31 - 1)                            # the default is 131072
        lines, current, head, line = split_at_returns(lines), [], None, 1
        start = self.find_separator(lines)

        def remembered(lines):
            for text in lines:
                current.append(text)                               # the lines of one record
                yield text
        plain = {"quoting": csv.QUOTE_NONE, "quotechar": None} if self.quoting == "none" else {}
        reader = csv.reader(remembered(chain(start, lines)), delimiter=self.separator, strict=True,
                            **plain)
        try:
            for fields in reader:
                if fields:
                    head = head or (len(fields), "".join(current))
                    if self.quoting == "auto" and self.swallows_rows(current, fields, *head):
                        raise self.fault(
                            line, f"a quote opens a field of {len(current)} lines that look like "
                            f"rows of {head[0]} fields each: write each inner quote twice (\"\"), "
                            "read a file without quoting by --quoting none, one whose texts are "
                            "such lines by --quoting double")
                    yield line, fields
                current.clear()
                line = reader.line_num + 1                         # a quoted field may span lines
        except csv.Error as error:
            raise self.fault(
                line, f"broken quoting ({error}): put a text that holds quotes between double "
                'quotes and write each inner quote twice (""), or read a file without quoting by '
                "--quoting none") from error

    def find_separator(self, lines):
        """Set self.separator from the first line that is not blank -> the lines up to that one.

        A line "sep=;", which spreadsheets write, names it and becomes blank. Otherwise the line
        shows it: the usual separator of the suffix if it holds it, else the first of ; tab ,
        `other_mark` is another of them in it.
        """
        start = []
        for text in lines:
            start.append(text)
            if named := re.fullmatch(r'"?sep=([;,|:\t])"?\s*', text):
                self.separator = named[1]
                return [*start[:-1], "\n"]                         # keeps line numbers right
            if text.strip():
                unquoted = re.sub('"[^"]*"', "", text)
                marks = (self.separator, *";\t,")
                self.separator = next((mark for mark in marks if mark in unquoted), self.separator)
                self.other_mark = next((mark for mark in marks if mark != self.separator
                                        and mark in unquoted), None)
                break
        return start

    def swallows_rows(self, lines, record, count, header):
        """Does each line of a quoted record look like a row, of `count` fields as the header?

        It does not if a comma is followed by a space, unless so in the header, or is part of a
        number (36,000); nor, with two columns, if the last field is empty but not in the record:
        "Dear Sir,\\nwhere is it?" is a text.
        """
        space = self.separator + " "
        spaced = self.separator == "\t" or space in header
        for line in filter(str.strip, lines):
            fields = line.strip("\r\n").split(self.separator)
            prose = not spaced and (space in line or THOUSANDS.search(line))
            empty = count == 2 and not fields[-1].strip('" ') and record[-1].strip()
            if len(fields) != count or prose or empty:
                return False
        return len(lines) > 1 and count > 1


def dict_of_pairs(pairs):
    """The pairs of a JSON object -> dict. ValueError for a key that stands there twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {short(twice)} stands there twice")
    return record


def depth(source):
    """How many lists and objects stand within each other in a text of valid JSON."""
    brackets = re.sub(r'"(?:[^"\\]|\\.)*"|[^][{}]', "", source)          # none of those in strings
    return max(accumulate(1 if mark in "[{" else -1 for mark in brackets))
