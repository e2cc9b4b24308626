"""python -m minillmclf.labels: what do label texts become for a model's tokenizer, before anything is computed?

  python -m minillmclf.labels --model path/to/gpt2 --labels positive negative neutral
  python -m minillmclf.labels --model path/to/t5 --data tickets --template "Message: {text}\\nTopic: {label}"

Reads the tokenizer and config.json, no weights. Prints the tokens of each label text in its place and cut alone, which
texts begin alike, lengths, unknown tokens, and the ends of the prompt. The last line counts the warnings.
"""
import argparse
import json

from .cli.parser import Parser, run
from .errors import InputError
from .files import check_out, find_model, named, read_json, write_text
from .cli.settings import add_settings


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.labels", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a Hugging Face folder: its config.json and tokenizer are read")
    p.add_argument("--labels", nargs="+", help="names of the classes")
    p.add_argument("--data", help="a file, a folder, or a bundled set's name: its labels instead of --labels")
    p.add_argument("--text-column", help="name(s) of the text column(s) of --data, which are the fields of the template")
    p.add_argument("--label-column", help="name of the label column of --data")
    add_settings(p, ["quoting"])
    p.add_argument("--label-texts", default="",
                   help='{"class": "text" or [...]} as JSON, or a file with it [the names]')
    p.add_argument("--template", default="", help='"Review: {text}\\nSentiment: {label}", or a file with it')
    p.add_argument("--instruction", default="", help="what stands before every text, or a file with it")
    p.add_argument("--end", choices=["auto", "none", "eos"], default="auto", help="does an end token belong to each label? [auto]")
    p.add_argument("--score-by", choices=["sum", "token", "char", "byte"], default="sum", help="what will be compared [sum]")
    p.add_argument("--out", help="also write the report to this JSON file")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    return p.parse_args(arguments)


def choose_labels(a):
    """Names of the classes, and the fields of a template: None where the template says them."""
    if (a.labels is None) == (a.data is None):
        raise InputError("give the classes with --labels, or with --data the data that has them, and not both")
    if a.labels:
        if a.text_column or a.label_column:
            raise InputError("--text-column and --label-column go with --data")
        return a.labels, None
    from .text.data import load_data
    data = load_data(a.data, a.text_column, a.label_column, several="," in (a.label_column or ""),
                     quoting=getattr(a, "quoting", "auto"))
    return data.labels, data.columns


def build(a, labels, fields):
    """(tokenizer, the readout that training would build)."""
    from .classify.build import check_labels
    from .classify.label_text.options import build_labels, read_readout
    from .models import model_class
    from .text.tokenizers.tokenizer import load_tokenizer
    from .classify.label_text.wordings import read_template
    check_labels(labels, "--data" if a.data else "--labels")
    folder = find_model(a.model)
    model = model_class(read_json(folder / "config.json"), folder / "config.json")
    asked = {"template": read_template(a.template) or None, "label_texts": a.label_texts, "fields": fields,
             "instruction": read_template(a.instruction), "end": a.end, "score_by": a.score_by}
    tokenizer = load_tokenizer(folder)
    return tokenizer, build_labels(model, tokenizer, labels, read_readout("labels", asked, labels))


def main(arguments=None):
    a = parse(arguments)
    if a.out:
        check_out(a.out, a.overwrite, named(a))
    labels, fields = choose_labels(a)
    tokenizer, readout = build(a, labels, fields)
    from .classify.label_text.doctor import examine
    report = examine(tokenizer, readout, labels)
    print("\n".join(report.lines()))
    if a.out:
        write_text(a.out, json.dumps({"model": str(a.model), **report.as_dict()}, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
