"""python -m minillmclf.report: a finished run as one web page, to read, to keep, to pass on.

  python -m minillmclf.report --run runs/mini-bert-tickets-full-0
  python -m minillmclf.report --run runs/mine --out mine.html

The page shows what was run, the results beside the baselines, the course of the training, which
class is taken for which, calibration, the worst mistakes, F1 of each class, settings and versions.
It is one file: no script, nothing from the network. The pictures need matplotlib (pip install -e
'.[plots]'); without it the page has tables and texts only.

Reads run.json, metrics.jsonl and predictions.csv of a run folder, as train writes them.
"""
from pathlib import Path

from ..cli.outputs import check_out_file
from ..cli.parser import Parser, run
from ..errors import InputError
from ..files import write_text
from .page import render_page
from .run import FinishedRun


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.report", description=__doc__)
    p.add_argument("--run", required=True, help="the folder of a finished run")
    p.add_argument("--out", help="the page, an .html file [report.html in the run folder]")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    return p.parse_args(arguments)


def main(arguments=None):
    a = parse(arguments)
    out = Path(a.out or Path(a.run) / "report.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {out}: a page is an .html file: give it such a name")
    check_out_file(out, a.overwrite)
    write_text(out, render_page(FinishedRun(a.run)))
    print(f"saved in {out}")
    return 0


if __name__ == "__main__":
    run(main)
