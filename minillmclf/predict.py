"""python -m minillmclf.predict: the class of a text, of a file's rows, or of the lines on standard input.

  python -m minillmclf.predict --model runs/mine "where is my parcel?"
  python -m minillmclf.predict --model runs/mine --data new.csv --out answers.csv
  cat lines.txt | python -m minillmclf.predict --model runs/mine > answers.jsonl

Answers carry the label (of several "a|b", of none "") and the probability of each class, in the order of the input: JSON
lines, or CSV where --out ends in .csv (or with --format csv).
"""
import argparse
import csv
import io
import json
import sys

from .commands import Parser, run
from .errors import InputError
from .files import find_model


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.predict", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text", nargs="*", help="texts to classify, each one argument")
    p.add_argument("--model", required=True, help="a run folder, or a Hugging Face folder with a classification head")
    p.add_argument("--pair", help="second text, for a model of sentence pairs (with exactly one text)")
    p.add_argument("--data", help="a .csv, .tsv or .jsonl file of texts; labels are not needed")
    p.add_argument("--text-column", help="name(s) of the file's text column(s) [text, or text_a,text_b]")
    p.add_argument("--swap", choices=["none", "predict"], help="of two answers to a prompt: take the mean over both orders, or "
                                                               "not (default: as trained)")
    p.add_argument("--out", help="file for the answers (default: standard output)")
    p.add_argument("--format", choices=["jsonl", "csv"], help="[by the name of --out, else jsonl]")
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    return p.parse_args(arguments)


def read_texts(a, columns=None, several=False):
    """Where the texts come from: arguments, a file, or standard input -> list of tuples of texts. columns: of a file, where
    --text-column does not name them."""
    if any("\ud800" <= char <= "\udfff" for text in [*a.text, a.pair or ""] for char in text):    # bytes that Python could not decode
        raise InputError("a text on the command line is not UTF-8: convert it with iconv")
    if a.text_column and not a.data:
        raise InputError("--text-column goes with --data")
    if a.pair is not None:
        if len(a.text) != 1 or a.data:
            raise InputError(f"--pair goes with exactly one text, got {len(a.text)}")
        return [(a.text[0], a.pair)]
    if a.text and a.data:
        raise InputError("give texts or --data, not both")
    if a.text:
        return [(text,) for text in a.text]
    if a.data:
        from .text.data import read_examples, refuse_blank
        examples = read_examples(a.data, a.text_column or columns, need_labels=False, several=several)
        refuse_blank(a.data, examples)
        return [e.texts for e in examples]
    return read_lines(sys.stdin)


def read_lines(stream):
    """Lines of standard input, each a text; an empty one is an error, or answers would not line up."""
    try:
        lines = [line.rstrip("\r\n") for line in io.TextIOWrapper(stream.buffer, encoding="utf-8")]
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 ({error}): convert it with iconv") from None
    empty = [str(n) for n, line in enumerate(lines, 1) if not line.strip()]
    if empty or not lines:
        raise InputError(f"standard input: {f'line {empty[0]} is empty' if empty else 'no lines'}: give a text on each line")
    return [(line,) for line in lines]


def render(texts, probabilities, answers, labels, how):
    """The answers as text: JSON lines or CSV."""
    from .text.data import text_names
    names = text_names(len(texts[0]))
    if how == "jsonl":
        return "".join(json.dumps({**dict(zip(names, t)), "label": answer, "probabilities": {
            name: round(float(x), 6) for name, x in zip(labels, p)}}, ensure_ascii=False) + "\n"
            for t, answer, p in zip(texts, answers, probabilities))
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "label", *(f"p_{name}" for name in labels)])
    writer.writerows([*t, answer, *(f"{x:.6f}" for x in p)] for t, answer, p in zip(texts, answers, probabilities))
    return out.getvalue()


def main(arguments=None):
    a = parse(arguments)
    folder, of_model = find_model(a.model), a.data and not (a.text or a.pair is not None)
    texts = None if of_model else read_texts(a)                # a mistake is told before a model is loaded
    from .classify.classifier import Classifier
    from .classify.preference import use_swap
    from .files import write_text
    model = Classifier.load(folder)
    use_swap(model, a.swap)
    if of_model:
        fields = model.readout.get("fields", ["text"])
        texts = read_texts(a, None if fields in (["text"], ["text_a", "text_b"]) else ",".join(fields), model.several)
    probabilities = model.predict(texts, a.batch_size)
    answer = render(texts, probabilities, model.answers(probabilities), model.labels,
                    a.format or ("csv" if a.out and a.out.endswith(".csv") else "jsonl"))
    if a.out:
        write_text(a.out, answer)
        print(f"{len(texts)} answers in {a.out}", file=sys.stderr)
    else:
        sys.stdout.write(answer)
    return 0


if __name__ == "__main__":
    run(main)
