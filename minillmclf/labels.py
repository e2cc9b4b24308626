"""python -m minillmclf.labels: which tokens do label texts become, before anything is computed?

  python -m minillmclf.labels --model path/to/gpt2 --labels positive negative neutral
  python -m minillmclf.labels --model path/to/t5 --data tickets \\
      --template "Message: {text}\\nTopic: {label}"

Reads the tokenizer and config.json, no weights. Prints the tokens of each label text in its place
and cut alone, which texts begin alike, lengths, unknown tokens, and the ends of the prompt. The
last line counts the warnings.
"""
from .classify.label_text.wordings import read_template
from .cli.outputs import check_out_file, input_paths
from .cli.parser import Parser, run
from .cli.settings import add_settings
from .errors import InputError
from .files import find_model, write_json
from .text.data import load_data

READOUT_SETTINGS = ("template", "label_texts", "instruction", "end", "score_by")   # of train


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.labels", description=__doc__)
    p.add_argument("--model", required=True,
                   help="a Hugging Face folder: its config.json and tokenizer are read")
    p.add_argument("--labels", nargs="+", help="names of the classes")
    p.add_argument("--data", help="a file, a folder, or a bundled set's name: its labels instead "
                   "of --labels")
    p.add_argument("--text-column", help="name(s) of the text column(s) of --data, which are the "
                   "fields of the template")
    p.add_argument("--label-column", help="name of the label column of --data")
    add_settings(p, ["quoting", *READOUT_SETTINGS], grouped=False)
    p.add_argument("--out", help="also write the report to this JSON file")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    return p.parse_args(arguments)


def choose_labels(a):
    """-> (names of the classes, fields of the template), the fields None without --data."""
    if (a.labels is None) == (a.data is None):
        raise InputError("give the classes with --labels, or with --data the data that has them, "
                         "and not both")
    if a.data:
        data = load_data(a.data, a.text_column, a.label_column,
                         multi_label="," in (a.label_column or ""),
                         quoting=getattr(a, "quoting", "auto"))
        return data.labels, data.columns
    if a.text_column or a.label_column:
        raise InputError("--text-column and --label-column go with --data")
    return a.labels, None


def build_report(a, labels, fields):
    """The label doctor's LabelReport on the readout that training would build."""
    from .classify.build import check_labels               # torch takes seconds, --help should not
    from .classify.label_text.doctor import examine_labels
    from .classify.label_text.options import label_readout, read_label_options
    from .models import model_class
    from .models.config import read_model_config
    from .text.tokenizers.tokenizer import load_tokenizer
    check_labels(labels, "--data" if a.data else "--labels")
    folder = find_model(a.model)
    model = model_class(read_model_config(folder), folder / "config.json")
    options = {name: getattr(a, name, "") for name in READOUT_SETTINGS} | {"fields": fields}
    for name in ("template", "instruction"):
        options[name] = read_template(options[name])
    tokenizer = load_tokenizer(folder)
    readout = label_readout(model, tokenizer, labels, read_label_options("labels", options, labels))
    return examine_labels(tokenizer, readout, labels)


def main(arguments=None):
    a = parse(arguments)
    if a.out:
        check_out_file(a.out, a.overwrite, input_paths(a))
    report = build_report(a, *choose_labels(a))
    print("\n".join(report.lines()))
    if a.out:
        write_json(a.out, {"model": str(a.model), **report.as_dict()})
    return 0


if __name__ == "__main__":
    run(main)
