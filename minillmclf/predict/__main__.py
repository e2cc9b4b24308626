"""python -m minillmclf.predict: the class of a text, of a file's rows, or of lines on stdin.

  python -m minillmclf.predict --model runs/mine "where is my parcel?"
  python -m minillmclf.predict --model runs/mine --data new.csv --out answers.csv
  cat lines.txt | python -m minillmclf.predict --model runs/mine > answers.jsonl

Answers come in the order of the input. Each has the texts (text, or text_a, text_b, ...), the label
(several labels as "a|b", none as "") and the probability of each class: JSON lines, or CSV if --out
ends in .csv (or with --format csv). The other columns of --data come first and keep their names. If
one of them is named like a part of the answer, the text columns keep their own names too, the label
is called predicted, and any other name gets a number (p_yes_2). Cells are written as they are, even
if they begin with =, +, - or @: let no spreadsheet compute them.

A model remembers its text columns and reads the same ones of --data; --text-column names others.
How many texts were cut is told on standard error.

Rows are read, answered and written 4,096 at a time, so a file may be of any length. With --data and
--out a run that was stopped goes on with the same command: FILE.part holds its answers until all
are there. Standard input cannot be read twice, so with it every run starts anew. A file that lies
at --out, or answers of another run in FILE.part, are replaced only with --overwrite.
"""
import json
import sys
from itertools import chain
from pathlib import Path

from .. import __version__
from . import stream
from ..cli import device
from ..cli.parser import Parser, run
from ..cli.rows import reading_options, text_columns
from ..cli.settings import add_settings
from ..errors import InputError
from ..files import find_model, is_utf8, short
from ..text.data import find_data
from ..text.doctor import UnknownTokens
from ..text.table_files import read_chunks
from .rows import AnswerColumns, read_lines, read_rows, render_answers

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", "": "jsonl"}     # by suffix of --out


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.predict", description=__doc__)
    p.add_argument("text", nargs="*", help="texts to classify, each one argument")
    p.add_argument("--model", required=True,
                   help="a run folder, or a Hugging Face folder with a classification head")
    p.add_argument("--base", help="of an adapter: the folder of its base, where that lies "
                   "elsewhere now")
    p.add_argument("--pair", help="second text, for a model of sentence pairs (with one text)")
    p.add_argument("--data", help="a .csv, .tsv or .jsonl file of texts, or a bundled set's name; "
                   "labels are not needed")
    p.add_argument("--text-column", help="name(s) of the file's text column(s) [as in training]")
    p.add_argument("--swap", choices=["none", "predict"],
                   help="of two answers to a prompt: take the mean over both orders, or not "
                        "(default: as trained)")
    p.add_argument("--out", help="file for the answers (default: standard output); of --data, a "
                   "run that was stopped goes on")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    p.add_argument("--show-cut", action="store_true",
                   help="a column `cut` says which texts were cut, true or false")
    p.add_argument("--format", choices=["jsonl", "csv"], help="[by the name of --out, else jsonl]")
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    add_settings(p, ["quoting"], grouped=False)
    device.add_device_flags(p)
    a = p.parse_args(arguments)
    if a.data is not None and not Path(a.data).suffix:
        a.data = str(find_data(a.data))                                # the name of a bundled set
    a.format = a.format or format_of(a.out)
    return a


def format_of(out):
    """The format of answers by the name of --out. InputError if it names another one."""
    suffix = Path(out or "").suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"--out {short(out, 200)}: answers are written as JSON lines or CSV, not "
                         f"as {short(suffix)}: name it .jsonl or .csv, or add --format")
    return FORMATS[suffix]


def given_texts(a):
    """The texts on the command line -> rows as `read_rows` yields them; None without any."""
    for text in [*a.text, a.pair or ""]:
        if not is_utf8(text):                                        # bytes that were not decoded
            raise InputError("a text on the command line is not UTF-8: convert it with iconv")
    if a.text_column and not a.data:
        raise InputError("--text-column goes with --data")
    if a.data and (a.text or a.pair is not None):
        raise InputError("give texts or --data, not both")
    if a.pair is not None and len(a.text) != 1:
        raise InputError(f"--pair goes with exactly one text, got {len(a.text)}")
    if a.pair is not None:
        return [((a.text[0], a.pair), {}, None)]
    return [((text,), {}, None) for text in a.text] or None


def header_of(a, reading):
    """The columns of --data, which tell whether a comma in --text-column is part of a name; () if
    there is no comma. reading: as read_rows."""
    if "," not in (a.text_column or ""):
        return ()
    return next(read_chunks(Path(a.data), 1, **reading)).columns


def made_from(a, folders, columns, reading, precision):
    """What the answers to a file depend on besides its rows -> dict for stream.PartFile; None if
    the rows cannot be read twice. folders: of the model and its base; columns: the text columns;
    precision: "fp32" or "bf16", from set_precision."""
    if not a.data or not Path(a.data).is_file():
        return None
    return {"model": stream.model_identity(folders), "text columns": ",".join(columns or ()),
            "swap": a.swap or "", "format": a.format, "batch size": str(a.batch_size),
            "kind of file": Path(a.data).suffix.lower(), "window": stream.WINDOW,
            "version": __version__, "cut column": a.show_cut, "way to read": json.dumps(reading),
            "precision": precision, "device": device.device_kind(a.device)}


def peek(a, read):
    """-> the texts of the first window, which --precision auto tries, and a function like `read`
    whose windows begin with that one: standard input cannot be read twice."""
    if a.precision != "auto":
        return [], read
    windows = read()
    first = next(windows, ([], None))
    again = read if a.data else lambda: chain([first] if first[0] else [], windows)
    return [texts for texts, *_ in first[0]], again


def answerer(model, columns, batch_size, source):
    """-> the function answer(rows, first) that `stream.answer_all` calls for each window. source:
    what errors call the file."""
    warn_of_unknown = UnknownTokens(model.tokenizer)

    def answer(rows, first):
        texts, others, lines = map(list, zip(*rows))
        warn_of_unknown(texts)
        in_file = None not in lines
        try:
            encoded, shortened = model.encode(texts, lines=lines if in_file else None)
        except InputError as error:
            raise InputError(f"{source}, {error}" if in_file else str(error)) from None
        probabilities = model.probabilities(model.compute_logits(encoded, batch_size))  # (N, C)
        cut = None
        if columns.show_cut:                     # encode has told only how many: look at each row
            cut = [shortened > 0 and model.encode_row(row)[1] for row in texts]
        answers = model.answers(probabilities)
        return render_answers(texts, others, answers, probabilities, cut, columns, first), shortened
    return answer


def main(arguments=None):
    a = parse(arguments)
    folder, texts = find_model(a.model), given_texts(a)
    sources = [("--data", a.data), ("--model", folder)]
    if a.out:
        stream.check_answer_files(a.out, a.overwrite, sources)       # before the model is loaded
    from ..classify.classifier import Classifier                     # torch takes seconds
    from ..classify.preference import set_swap
    model = Classifier.load(folder, a.base, device.check_device(a.device))
    set_swap(model, a.swap)
    reading = reading_options(model, a)
    chosen = text_columns(model, a.text_column, header_of(a, reading))
    columns = AnswerColumns(model.labels, a.format == "csv", a.show_cut)
    answer = answerer(model, columns, a.batch_size, a.data or "standard input")

    def read():
        if a.data:
            return read_rows(a.data, chosen, reading, columns)
        columns.choose_names(range(len(texts[0][0]) if texts else 1))
        return iter([(texts, None)]) if texts else read_lines(sys.stdin)
    first, read = peek(a, read)
    precision = device.set_precision(model, a.precision, first)
    if a.out:
        base = [find_model(model.base)] if model.base else []
        sources += [("the base of --model", path) for path in base]
        stream.check_answer_files(a.out, a.overwrite, sources)
        made = made_from(a, [folder, *base], chosen, reading, precision)
        with stream.PartFile(a.out, made, a.overwrite) as out:
            stream.answer_all(out.unanswered(read), answer, out)
        print(f"{out.rows} answers in {a.out}", file=sys.stderr)
    else:
        out = stream.PrintedAnswers()
        stream.answer_all(read(), answer, out)
    if out.cut:
        hint = "" if a.show_cut else " (--show-cut tells which)"
        limit = model.head.length_limit(model.max_length)[1]
        print(f"{out.cut} of {out.rows} texts cut to {limit} tokens{hint}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main, needs_reader=True)
