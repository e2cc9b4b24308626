"""python -m minillmclf.folds: k models, each tested on rows that it has not seen, and their mean.

  python -m minillmclf.folds --data train.csv --test test.csv --sample sample_submission.csv \\
      --folds 5 --group prompt --out runs/folds

Takes a labelled .csv, .tsv or .jsonl file, and all settings of train. Files with prompt, response_a
and response_b are read as battles of an arena (folds/arena.py). With --preference, or in a template
with --readout labels, these are three texts. A plain head reads two texts, so for it the prompt is
joined to the first response: ("prompt, blank line, response_a", "response_b").

The folds get equal shares of each class. Rows with equal texts, or that agree in the columns of
--group, stay together. OUT/fold-1, ... are runs of train: the held-out fold is their test rows, and
dev rows from the other folds choose the epoch. A stopped run goes on when the same command is given
again; finished folds stay.

  OUT/oof.csv          each row once, with the probabilities of the model that has not seen it
                       ("out of fold")
  OUT/folds.json       metrics of each fold and of all rows; the same after division by a
                       temperature that is fitted to the other folds' rows
  OUT/submission.csv   the mean of the models' probabilities for the rows of --test, after a
                       temperature fitted to all out-of-fold rows, if temperatures lower the log
                       loss of rows that they were not fitted to. Its columns and rows are those of
                       --sample; without it, id and the winner columns of the data, or p_CLASS
"""
from ..cli.launch import in_all_processes
from ..cli.parser import Parser, run
from ..cli.settings import add_settings


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.folds", description=__doc__,
               usage="%(prog)s [--flag VALUE ...]")
    p.add_argument("--folds", type=int, default=5, help="how many [5]")
    p.add_argument("--group", default="",
                   help="column(s) of --data, comma between: rows that agree in them share a fold "
                        "(default: equal texts do)")
    p.add_argument("--test", help="a file of rows to predict; labels are not needed")
    p.add_argument("--sample", help="a sample submission for --test: id, and a column per class")
    p.add_argument("--temperature", choices=["auto", "off"], default="auto",
                   help="auto divides the logits of a submission by a temperature, where this "
                        "lowers the log loss out of fold [auto]")
    p.add_argument("--config", help="a run.json: take its settings, flags override them")
    p.add_argument("--overwrite", action="store_true",
                   help="start anew although --out holds folds")
    decided = ("few_rows", "dev")                                   # the folds decide dev rows
    return add_settings(p, but=decided).parse_args(arguments)


@in_all_processes()
def main(arguments=None):
    """The command, also as one of several processes -> exit code."""
    a = parse(arguments)
    from .cross_validation import cross_validate       # torch takes seconds, --help should not
    return cross_validate(a)


if __name__ == "__main__":
    run(main)
