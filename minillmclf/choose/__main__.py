"""python -m minillmclf.choose: which model, and which way to adapt it, for these data, here?

  python -m minillmclf.choose --data my.csv
  python -m minillmclf.choose --data my.csv --models mini-bert path/to/llama --batch-size 16 \\
      --comparison runs/compare

Prints a rule of thumb; the data (rows, classes, lengths in each model's own tokens); this machine
(memory to train each model by each method, on texts as long as the 95th percentile); what an
earlier python -m minillmclf.compare has measured on these data; and a command to start with (by the
rules in advice.py). It trains nothing. --json prints all of it for programs.
"""
from ..cli.parser import Parser, run
from ..cli.settings import add_settings
from .advice import KIND_FOR

SETTINGS = ("data", "text_column", "label_column", "quoting", "batch_size", "micro_batch_size",
            "max_length")


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.choose", description=__doc__)
    p.add_argument("--models", nargs="+", metavar="MODEL",
                   help="folders or shipped names [all in checkpoints/]")
    p.add_argument("--purpose", choices=list(KIND_FOR), default="classify",
                   help="what the model is for, besides [classify]")
    p.add_argument("--comparison",
                   help="folder of a comparison [the newest in runs/ that has these data]")
    p.add_argument("--json", action="store_true", help="print all facts and the advice as JSON")
    return add_settings(p, SETTINGS).parse_args(arguments)


def main(arguments=None):
    a = parse(arguments)
    from .page import choose                           # torch takes seconds, --help should not
    return choose(a, {key: value for key, value in vars(a).items() if key in SETTINGS})


if __name__ == "__main__":
    run(main)
