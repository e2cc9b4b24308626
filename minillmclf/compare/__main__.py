"""python -m minillmclf.compare: which model, and which way to adapt it? Measured on the same rows.

  python -m minillmclf.compare --models majority bag-of-words mini-bert --learning-curve 10 25 all
  python -m minillmclf.compare --models mini-bert minilm --methods full lora head \\
      --sweep lr=1e-4,3e-4 rank=4,8 --seeds 3

Without arguments: the baselines and the shipped models, the latter with a head and with label
texts, trained in full, by LoRA, by QLoRA and the head alone, on tickets. A model is a folder, a
shipped name, or one of the two baselines. After @ a model, or a method, may have settings of its
own, with commas between: mini-bert@weights=random, lora@lr=3e-3,rank=16. Each model is combined
with every method, readout and value of --sweep; what is not possible is left out, with the reason.

Each run trains in a process of its own, in a folder in OUT/cells. A stopped comparison goes on when
the same command is given again; a finished run is kept while its settings, its model and its data
are the same. OUT gets table.md, table.csv (a line for each run) and table.json ("rows"): test
scores with intervals, differences to the best row, costs. table.json also has "sweep" (the dev
score of every configuration), "not_made" and "left_out" (what was not possible, and why).
"""
import argparse

from ..cli.checks import flag, refuse_multi_label
from ..cli.parser import Parser, run
from ..cli.settings import Settings, add_settings
from ..errors import InputError
from .configurations import BASELINES, DECIDED_SETTINGS, DEFAULT_METHODS, SHIPPED_MODELS


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.compare", description=__doc__,
               usage="%(prog)s [--flag VALUE ...]")
    p.add_argument("--models", nargs="+", metavar="MODEL[@key=value,...]",
                   help="[the baselines and the shipped models]")
    p.add_argument("--methods", nargs="+", metavar="METHOD[@key=value,...]",
                   help="each model with each of them [that of --method]")
    p.add_argument("--readouts", nargs="+", choices=["head", "labels"],
                   help="and with each of these [that of --readout]")
    p.add_argument("--sweep", nargs="+", default=[], metavar="KEY=VALUE,...",
                   help="and with each of these settings; the best on dev rows is chosen, and it "
                        "alone has a test score")
    p.add_argument("--learning-curve", nargs="+", default=["all"], metavar="N", type=rows_per_class,
                   help="training rows a class, or all [all]")
    p.add_argument("--seeds", type=at_least_one, default=3, help="seeds 0, 1, ... [3]")
    p.add_argument("--out", default="runs/compare",
                   help="folder of the comparison [runs/compare]")
    p.add_argument("--overwrite", action="store_true",
                   help="write into a folder that holds other things, or a comparison of other "
                        "data")
    return add_settings(p, but=DECIDED_SETTINGS).parse_args(arguments)


def rows_per_class(text):
    """"10" -> 10; "all" stays."""
    return text if text == "all" else at_least_one(text, "a number of rows a class, or all")


def at_least_one(text, what="1 or more"):
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text}: should be {what}")
    return int(text)


def check_flags(a):
    """Raise InputError for flags that contradict each other."""
    given = {key: getattr(a, key) for key in ("multi_label", "label_column") if hasattr(a, key)}
    refuse_multi_label(Settings(**given), "compare")
    for name in ("method", "readout"):
        if hasattr(a, name) and getattr(a, name + "s"):
            raise InputError(f"--{name} and --{name}s: give one of them")
    for name in ("models", "methods", "readouts", "learning_curve"):
        values = getattr(a, name) or []
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{flag(name)}: {value} is named twice")


def fill_in_defaults(a):
    """Without --models: the default comparison, but for what the flags say."""
    if a.models is None:
        a.models = [*BASELINES, *SHIPPED_MODELS]
        if not hasattr(a, "method"):
            a.methods = a.methods or [*DEFAULT_METHODS]
        if not hasattr(a, "readout"):
            a.readouts = a.readouts or ["head", "labels"]


def main(arguments=None):
    a = parse(arguments)
    overwrite = vars(a).pop("overwrite")
    check_flags(a)
    fill_in_defaults(a)
    from .comparison import compare                    # torch takes seconds, --help should not
    return compare(a, overwrite)


if __name__ == "__main__":
    run(main)
