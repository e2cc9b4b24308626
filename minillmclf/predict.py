"""python -m minillmclf.predict: the class of a text, of a file's rows, or of the lines on standard input.

  python -m minillmclf.predict --model runs/mine "where is my parcel?"
  python -m minillmclf.predict --model runs/mine --data new.csv --out answers.csv
  cat lines.txt | python -m minillmclf.predict --model runs/mine > answers.jsonl

Answers carry the label (of several "a|b", of none "") and the probability of each class, in the order of the input: JSON
lines, or CSV where --out ends in .csv (or with --format csv).

Rows are read, answered and written 4,096 at a time, so a file may be of any length. With --data and --out a run that was
stopped goes on with the same command: FILE.part holds its answers until all are there. Standard input cannot be read
twice, so with it every run starts anew.
"""
import argparse
import csv
import io
import json
import sys
from itertools import islice
from pathlib import Path

from . import __version__, stream
from .commands import Parser, run
from .errors import InputError
from .files import find_model


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.predict", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text", nargs="*", help="texts to classify, each one argument")
    p.add_argument("--model", required=True, help="a run folder, or a Hugging Face folder with a classification head")
    p.add_argument("--base", help="of an adapter: the folder of its base, where that lies "
                   "elsewhere now")
    p.add_argument("--pair", help="second text, for a model of sentence pairs (with exactly one text)")
    p.add_argument("--data", help="a .csv, .tsv or .jsonl file of texts; labels are not needed")
    p.add_argument("--text-column", help="name(s) of the file's text column(s) [text, or text_a,text_b]")
    p.add_argument("--swap", choices=["none", "predict"], help="of two answers to a prompt: take the mean over both orders, or "
                                                               "not (default: as trained)")
    p.add_argument("--out", help="file for the answers (default: standard output); of --data, a run that was stopped goes on")
    p.add_argument("--format", choices=["jsonl", "csv"], help="[by the name of --out, else jsonl]")
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    return p.parse_args(arguments)


def given_texts(a):
    """The texts among the arguments -> list of tuples; None where they are to be read from a file or from standard input."""
    if any("\ud800" <= char <= "\udfff" for text in [*a.text, a.pair or ""] for char in text):         # bytes, not decoded
        raise InputError("a text on the command line is not UTF-8: convert it with iconv")
    if a.text_column and not a.data:
        raise InputError("--text-column goes with --data")
    if a.pair is not None:
        if len(a.text) != 1 or a.data:
            raise InputError(f"--pair goes with exactly one text, got {len(a.text)}")
        return [(a.text[0], a.pair)]
    if a.text and a.data:
        raise InputError("give texts or --data, not both")
    return [(text,) for text in a.text] or None


def read_rows(path, columns, several):
    """The texts of a file in windows of (list of tuples, sha256 of the file so far)."""
    from .text.data import read_example_windows
    for examples, sha256 in read_example_windows(path, stream.WINDOW, columns, several):
        yield [example.texts for example in examples], sha256


def read_lines(standard_input):
    """Lines of standard input, each a text, in windows of (list of tuples, None); an empty one is an error, or answers would
    not line up."""
    from .text.table_files import decoded, every_end
    lines, before = every_end(decoded(standard_input.buffer, "standard input")), 0
    while window := [line.rstrip("\r\n") for line in islice(lines, stream.WINDOW)]:
        empty = [before + n for n, line in enumerate(window, 1) if not line.strip()]
        if empty:
            raise InputError(f"standard input: line {empty[0]} is empty: give a text on each line")
        yield [(line,) for line in window], None
        before += len(window)
    if not before:
        raise InputError("standard input: no lines: give a text on each line")


def render(texts, probabilities, answers, labels, how, header=True):
    """The answers as text: JSON lines or CSV; header: is it the beginning of a file?"""
    from .text.data import text_names
    names = text_names(len(texts[0]))
    if how == "jsonl":
        return "".join(json.dumps({**dict(zip(names, t)), "label": answer, "probabilities": {
            name: round(float(x), 6) for name, x in zip(labels, p)}}, ensure_ascii=False) + "\n"
            for t, answer, p in zip(texts, answers, probabilities))
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow([*names, "label", *(f"p_{name}" for name in labels)])
    writer.writerows([*t, answer, *(f"{x:.6f}" for x in p)] for t, answer, p in zip(texts, answers, probabilities))
    return out.getvalue()


def reader(a, model, given):
    """Where the texts come from -> a function without arguments that begins to read them, the text columns that are asked for."""
    if given:
        return lambda: iter([(given, None)]), None
    if not a.data:
        return lambda: read_lines(sys.stdin), None
    fields = model.readout.get("fields", ["text"])
    columns = a.text_column or (None if fields in (["text"], ["text_a", "text_b"]) else ",".join(fields))
    return lambda: read_rows(a.data, columns, model.several), columns


def made_of(a, model, folder, columns, how):
    """What the answers to a file depend on beside its rows, for a run that goes on; None for what cannot be read again."""
    if not a.data or not Path(a.data).is_file():
        return None
    folders = [folder, *([find_model(model.base)] if model.base else [])]
    return {"model": stream.identity(folders, a.out), "text columns": columns or "", "swap": a.swap or "", "format": how, "batch size": str(a.batch_size),
            "kind of file": Path(a.data).suffix.lower(), "window": stream.WINDOW, "version": __version__}


def main(arguments=None):
    a = parse(arguments)
    folder, given = find_model(a.model), given_texts(a)        # a mistake is told before a model is loaded
    from .classify.classifier import Classifier
    from .classify.preference import use_swap
    model = Classifier.load(folder, a.base)
    use_swap(model, a.swap)
    how = a.format or ("csv" if a.out and a.out.endswith(".csv") else "jsonl")
    read, columns = reader(a, model, given)

    def answer(texts, first):
        probabilities = model.predict(texts, a.batch_size)
        return render(texts, probabilities, model.answers(probabilities), model.labels, how, first)
    if a.out:
        with stream.Part(a.out, made_of(a, model, folder, columns, how)) as part:
            stream.answer_all(part.to_do(read), answer, part)
        print(f"{part.rows} answers in {a.out}", file=sys.stderr)
    else:
        stream.answer_all(read(), answer, stream.Printed())
    return 0


if __name__ == "__main__":
    run(main)
