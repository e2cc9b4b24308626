"""python -m minillmclf.train: fine-tune a classifier, evaluate it, save it.

A BERT on your own CSV; LoRA on a decoder; instruction tuning; long documents:
  python -m minillmclf.train --model checkpoints/bert-base-uncased --data my.csv
  python -m minillmclf.train --model DIR --data my.csv --method lora --rank 16
  python -m minillmclf.train --model DIR --data my.csv --readout labels \\
      --objective completion --template "{text}\\nLabel: {label}"
  python -m minillmclf.train --data long.csv --windows mean --micro-batch-size 4

Without arguments: the shipped checkpoint mini-bert on the bundled set tickets.
Where a flag lists its values, the first is the default; a flag with [off] is
switched on when given alone. The run folder holds run.json, metrics.jsonl,
predictions.csv and the model. The same command continues a stopped run.
"""
from .cli.launch import in_all_processes
from .cli.parser import Parser, run
from .cli.settings import add_settings, read_settings
from .errors import Stopped


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.train", usage="%(prog)s [--flag VALUE ...]",
               description=__doc__)
    add_settings(p)
    group = p.add_argument_group("the run")
    group.add_argument("--config", metavar="RUN.JSON", help="take its settings; flags go over them")
    group.add_argument("--overwrite", action="store_true", help="start anew over a run in --out")
    return p.parse_args(arguments)


@in_all_processes()
def main(arguments=None):
    """The command, also as one of several processes -> exit code."""
    flags = vars(parse(arguments))
    config, overwrite = flags.pop("config"), flags.pop("overwrite")
    s = read_settings(flags, config)
    from .cli import few_rows, run_folder, training_run  # torch takes seconds, --help should not
    s, data, line = few_rows.read_run(s, flags, config)
    folder = run_folder.out_folder(s)
    if line:
        print(line)
    record = training_run.train_unless_finished(s, data, folder, overwrite)
    if record is None:
        raise Stopped(run_folder.stopped_line(folder, overwrite))
    if record["finished"]:                         # true in the main process only
        training_run.show_record(record, data, folder)
    return 0


if __name__ == "__main__":
    run(main)
