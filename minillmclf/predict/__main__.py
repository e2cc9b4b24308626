"""python -m minillmclf.predict: the class of a text, of a file's rows, or of the lines on standard input.

  python -m minillmclf.predict --model runs/mine "where is my parcel?"
  python -m minillmclf.predict --model runs/mine --data new.csv --out answers.csv
  cat lines.txt | python -m minillmclf.predict --model runs/mine > answers.jsonl

Answers carry the texts (text, or text_a, text_b, ...), the label (of several "a|b", of none "")
and the probability of each class, in the order of the input: JSON lines, or CSV where --out ends in
.csv (or with --format csv). The other columns of --data come first, as they were, and keep their
names. Where one of these is a name of the answer, the text columns keep their own names too, the
answered label is called predicted, and any other name gets a number (p_yes_2). Cells are as in any
data file: one that begins with =, +, - or @ is not changed, so let no spreadsheet compute it.

A model remembers its text columns and reads the same ones of --data; --text-column names others.
How many texts were cut is told on standard error.

Rows are read, answered and written 4,096 at a time, so a file may be of any length. With --data and
--out a run that was stopped goes on with the same command: FILE.part holds its answers until all
are there. Standard input cannot be read twice, so with it every run starts anew. A file that lies
at --out is replaced only with --overwrite.
"""
import argparse
import csv
import io
import itertools
import json
import sys
from pathlib import Path

from .. import __version__
from . import stream
from ..cli.parser import Parser, run
from ..errors import InputError
from ..files import find_model, short
from ..cli.settings import add_settings
from ..text.data import read_text_windows, text_names


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.predict", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text", nargs="*", help="texts to classify, each one argument")
    p.add_argument("--model", required=True, help="a run folder, or a Hugging Face folder with a classification head")
    p.add_argument("--base", help="of an adapter: the folder of its base, where that lies "
                   "elsewhere now")
    p.add_argument("--pair", help="second text, for a model of sentence pairs (with exactly one text)")
    p.add_argument("--data", help="a .csv, .tsv or .jsonl file of texts; labels are not needed")
    p.add_argument("--text-column", help="name(s) of the file's text column(s) [as in training]")
    p.add_argument("--swap", choices=["none", "predict"], help="of two answers to a prompt: take the mean over both orders, or "
                                                               "not (default: as trained)")
    p.add_argument("--out", help="file for the answers (default: standard output); of --data, a run that was stopped goes on")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    p.add_argument("--show-cut", action="store_true",
                   help="a column `cut` says which texts were cut, true or false")
    p.add_argument("--format", choices=["jsonl", "csv"], help="[by the name of --out, else jsonl]")
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    add_settings(p, ["quoting"], grouped=False)
    return p.parse_args(arguments)


def given_texts(a):
    """The texts among the arguments -> list of rows, or None without any."""
    if any("\ud800" <= char <= "\udfff" for text in [*a.text, a.pair or ""] for char in text):         # bytes, not decoded
        raise InputError("a text on the command line is not UTF-8: convert it with iconv")
    if a.text_column and not a.data:
        raise InputError("--text-column goes with --data")
    if a.pair is not None:
        if len(a.text) != 1 or a.data:
            raise InputError(f"--pair goes with exactly one text, got {len(a.text)}")
        return [((a.text[0], a.pair), {})]
    if a.text and a.data:
        raise InputError("give texts or --data, not both")
    return [((text,), {}) for text in a.text] or None


class Names:
    """What the columns of an answer are called. The input's other columns keep their names."""

    def __init__(self, labels):
        self.labels = labels

    def settle(self, columns, others=()):
        """columns: the text columns that are read; others: those that are not, in order."""
        self.others, taken = list(others), set(others)
        usual = text_names(len(columns))
        self.texts = list(columns) if taken & set(usual) else usual
        taken.update(self.texts)

        def free(*names):
            more = (f"{names[-1]}_{n}" for n in itertools.count(2))
            found = next(name for name in itertools.chain(names, more) if name not in taken)
            taken.add(found)
            return found
        self.label, self.probabilities = free("label", "predicted"), free("probabilities")
        self.each, self.cut = [free(f"p_{name}") for name in self.labels], free("cut")


def read_rows(path, columns, how, names, fixed):
    """The rows of a file in windows of (rows, sha256 of the file so far); a row: texts, the rest.

    columns, how: as for text.data.read_text_windows. names: settled by the first window. A column
    that begins later is an error if it has a name of the answer, or if columns are fixed (CSV).
    """
    first = True
    for table, read, texts in read_text_windows(path, stream.WINDOW, columns, **how):
        others = [name for name in dict.fromkeys(table.columns) if name not in read]
        if first:
            names.settle(read, others)
        late, own = set(others) - set(names.others), {names.label, names.probabilities, names.cut}
        if late and (fixed or late & {*own, *names.texts}):
            raise InputError(f"{path}: the column {short(min(late))} begins after row "
                             f"{stream.WINDOW}: write it into the first row too")
        records = [{name: value for name, value in record.items() if name not in read}
                   for _, record in table.rows]
        yield list(zip(texts, records)), table.sha256
        first = False


def read_lines(standard_input):
    """Lines of standard input, each a text, in windows of (rows, None); an empty one is an error,
    or answers would not line up."""
    from ..text.table_files import decoded, every_end
    lines, before = every_end(decoded(standard_input.buffer, "standard input")), 0
    while window := [line.rstrip("\r\n") for line in itertools.islice(lines, stream.WINDOW)]:
        empty = [before + n for n, line in enumerate(window, 1) if not line.strip()]
        if empty:
            raise InputError(f"standard input: line {empty[0]} is empty: give a text on each line")
        yield [((line,), {}) for line in window], None
        before += len(window)
    if not before:
        raise InputError("standard input: no lines: give a text on each line")


def render(texts, others, probabilities, answers, cut, names, how, header=True):
    """The answers as text: JSON lines or CSV.

    others: what else each row holds, a dict; cut: for each text whether it was, or None where that
    is not to be told; header: is it the beginning of a file?
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    if header and how == "csv":
        told = [names.cut] if cut else []
        writer.writerow([*names.others, *names.texts, names.label, *names.each, *told])
    for n, (row, other, answer, p) in enumerate(zip(texts, others, answers, probabilities)):
        if how == "csv":
            told = [cell(cut[n])] if cut else []
            before = [cell(other.get(name)) for name in names.others]
            writer.writerow([*before, *row, answer, *(f"{x:.6f}" for x in p), *told])
        else:
            each = {name: round(float(x), 6) for name, x in zip(names.labels, p)}
            record = {**other, **dict(zip(names.texts, row)), names.label: answer,
                      names.probabilities: each, **({names.cut: cut[n]} if cut else {})}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return out.getvalue()


def cell(value):
    """A value of JSON as a cell of CSV: text as it is, null as nothing, all else as JSON has it."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def made_of(a, folders, columns, reading, how):
    """What the answers to a file depend on beside its rows, for a run that goes on; None for what
    cannot be read again."""
    if not a.data or not Path(a.data).is_file():
        return None
    return {"model": stream.identity(folders), "text columns": ",".join(columns or ()),
            "swap": a.swap or "", "format": how, "batch size": str(a.batch_size),
            "kind of file": Path(a.data).suffix.lower(), "window": stream.WINDOW,
            "version": __version__, "cut column": a.show_cut, "way to read": json.dumps(reading)}


def main(arguments=None):
    a = parse(arguments)
    folder, given = find_model(a.model), given_texts(a)    # mistakes first: loading takes its time
    apart = [("--data", a.data), ("--model", folder)]
    if a.out:
        stream.check_answers(a.out, a.overwrite, apart)
    from ..cli.rows import how_to_read, text_columns
    from ..classify.classifier import Classifier
    from ..classify.preference import use_swap
    from ..text.doctor import UnknownTokens
    model = Classifier.load(folder, a.base)
    watch = UnknownTokens(model.tokenizer)
    use_swap(model, a.swap)
    how = a.format or ("csv" if a.out and a.out.endswith(".csv") else "jsonl")
    columns, reading = text_columns(model, a.text_column), how_to_read(model, a)
    names, base = Names(model.labels), [find_model(model.base)] if model.base else []

    def read():
        if a.data:
            return read_rows(a.data, columns, reading, names, how == "csv")
        names.settle(range(len(given[0][0]) if given else 1))
        return iter([(given, None)]) if given else read_lines(sys.stdin)

    def answer(rows, first):
        texts, others = zip(*rows)
        watch(texts)
        encoded, cut = model.encode(texts)
        probabilities = model.probabilities(model.scores(encoded, a.batch_size))
        which = [cut > 0 and model.row(row)[1] for row in texts] if a.show_cut else None
        answers = model.answers(probabilities)
        return render(texts, others, probabilities, answers, which, names, how, first), cut
    if a.out:
        apart += [("the base of --model", path) for path in base]
        stream.check_answers(a.out, a.overwrite, apart)
        with stream.Part(a.out, made_of(a, [folder, *base], columns, reading, how)) as end:
            stream.answer_all(end.to_do(read), answer, end)
        print(f"{end.rows} answers in {a.out}", file=sys.stderr)
    else:
        end = stream.Printed()
        stream.answer_all(read(), answer, end)
    if end.cut:
        most, hint = model.head.limit(model.max_length)[1], " (--show-cut tells which)"
        print(f"{end.cut} of {end.rows} texts cut to {most} tokens{hint * (not a.show_cut)}",
              file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main, lasting=False)
