"""python -m minillmclf.merge: add what LoRA, DoRA or QLoRA learned to the base's matrices, and save a plain model.

  python -m minillmclf.merge --model runs/mine --out merged/mine
  python -m minillmclf.merge --model runs/my-qlora --out merged/mine --base full      # the 4-bit base in full precision
  python -m minillmclf.merge --model runs/my-qlora --out merged/mine --base 4bit      # rounded to four bits once more

The result is an ordinary Hugging Face folder, as fast as the base. Merging is exact but for rounding; in four bits it is
not: the sum is rounded to 16 numbers again. What the merged model answers otherwise, on the rows that it was tested on or
on --data, is printed: the largest difference of a probability, and how many rows change their class.
"""
import argparse

from .cli.parser import Parser, run
from .errors import InputError
from .evaluate import apart, choose_rows
from .files import check_folder, find_model, remove
from .cli.settings import add_settings


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a run folder with an adapter, or an adapter folder of PEFT")
    p.add_argument("--out", required=True, help="a new folder for the merged model")
    p.add_argument("--overwrite", action="store_true", help="replace a model in --out")
    p.add_argument("--base", action="append", default=[], help="full or 4bit: of a 4-bit base, "
                   "what the merged model is to have; "
                   "else the folder of the base, where that lies elsewhere now; may be given twice")
    p.add_argument("--data", help="a file, a folder, or a bundled set's name (default: what the run was trained on)")
    p.add_argument("--split", choices=["train", "dev", "test"], default="test", help="which rows [test]")
    p.add_argument("--text-column", help="name(s) of the text column(s)")
    p.add_argument("--label-column", help="name of the label column")
    add_settings(p, ["quoting"], grouped=False)
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    return p.parse_args(arguments)


def merged(model, base):
    """The plain model, changed in place; base: as the flag says."""
    from .tuning.quant import Linear4bit, quantise_linears
    from .tuning.saved import merge_tuned
    in_four_bits = {path.removesuffix(".base"): module.kind for path, module in model.named_modules() if isinstance(module, Linear4bit)}
    if in_four_bits and base is None:
        raise InputError(f"{len(in_four_bits)} layers of this model have 4 bits a number: choose --base full (the merged model "
                         f"takes 8 times the memory) or --base 4bit (rounded once more: other answers)")
    merge_tuned(model, dequantise=bool(in_four_bits))
    if in_four_bits and base == "4bit":
        quantise_linears(model, in_four_bits.__contains__, next(iter(in_four_bits.values())))
    return model


def compare(before, after, flips):
    """Probabilities (N, C) of the two models, and how many answers differ -> one line."""
    return (f"on {len(before)} rows the largest difference of a probability is {abs(before - after).max():.2g}, "
            f"{flips} rows change their class")


def main(arguments=None):
    a = parse(arguments)
    folder = find_model(a.model)
    out = check_folder(a.out, False, a.overwrite, apart(a))
    from .classify.classifier import Classifier
    kinds, places = ([base for base in a.base if (base in ("full", "4bit")) == kind]
                     for kind in (True, False))
    if len(kinds) > 1 or len(places) > 1:
        raise InputError(f"--base {', '.join(a.base)}: give full or 4bit once, and one folder")
    model = Classifier.load(folder, *places)
    if model.base:
        check_folder(out, False, a.overwrite, [("the base of --model", find_model(model.base))])
    rows, name = choose_rows(a, folder, model)
    encoded, _ = model.encode([row.texts for row in rows])
    first = model.probabilities(model.scores(encoded, a.batch_size))
    model = merged(model, *kinds or [None])
    model.save(out)
    for before in ("tuned.json", "adapter_config.json", "run.json"):   # they would be read, too
        remove(out / before)
    saved = Classifier.load(out)
    after = saved.probabilities(saved.scores(encoded, a.batch_size))
    flips = sum(old != new for old, new in zip(model.answers(first), saved.answers(after)))
    print(f"{name}: {compare(first, after, flips)}\nsaved in {out}")
    return 0


if __name__ == "__main__":
    run(main)
