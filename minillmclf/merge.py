"""python -m minillmclf.merge: add what LoRA, DoRA or QLoRA learned to the matrices of the base.

A matrix W becomes W + alpha / r * B A (Hu et al. 2021); tuning/lora.py adds it.

  python -m minillmclf.merge --model runs/mine --out merged/mine
  python -m minillmclf.merge --model runs/my-qlora --out merged/mine --base full
  python -m minillmclf.merge --model runs/my-qlora --out merged/mine --base 4bit

The result is an ordinary Hugging Face folder, as fast as the base. If the base has 4 bits a weight,
--base full writes the sums in full precision, and --base 4bit rounds them to four bits again, which
changes answers. merged.json keeps the settings and data of the run, so that evaluate judges the
merged model by the rows that judge the run. The command prints how the merged model's answers
differ on these rows, or on --data: the largest difference of a probability, and how many rows
change their class. With --overwrite, what lies in --out goes when the merged model is whole; if
that is a run, all its files go.
"""
from .cli.device import add_device_flag, check_device, set_precision
from .cli.judged_rows import choose_rows, copy_record, paths_read
from .cli.outputs import check_out_folder
from .cli.parser import Parser, run
from .cli.rows import encode_examples
from .cli.settings import add_settings
from .errors import InputError
from .files import NEW_MODEL, find_model, remove_path


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.merge", description=__doc__)
    p.add_argument("--model", required=True, help="a run folder or a PEFT folder with an adapter")
    p.add_argument("--out", required=True, help="a new folder for the merged model")
    p.add_argument("--overwrite", action="store_true", help="replace a model or a run in --out")
    p.add_argument("--base", action="append", default=[], help="full or 4bit, see above; or the "
                   "folder of the base, where that lies elsewhere now; may be given twice")
    p.add_argument("--data", help="a file, a folder, or a bundled set's name [that of the run]")
    p.add_argument("--split", choices=["train", "dev", "test"], help="which rows [test]")
    p.add_argument("--text-column", help="name(s) of the text column(s)")
    p.add_argument("--label-column", help="name of the label column")
    add_settings(p, ["quoting"], grouped=False)
    add_device_flag(p)
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    return p.parse_args(arguments)


def merge_adapter(model, precision):
    """Merge an adapter into its base, in place -> the model. precision: "full" or "4bit" where the
    base has 4 bits a weight, else None. InputError for a 4-bit base without a precision."""
    from .tuning.linear4bit import Linear4bit, quantise_linears
    from .tuning.saved import merge_tuned
    kinds = {path.removesuffix(".base"): module.kind for path, module in model.named_modules()
             if isinstance(module, Linear4bit)}
    if kinds and precision is None:
        raise InputError(f"{len(kinds)} layers of this model have 4 bits a number: choose --base "
                         "full (the merged model takes 8 times the memory) or --base 4bit "
                         "(rounded once more: other answers)")
    merge_tuned(model, dequantise=bool(kinds))
    if kinds and precision == "4bit":
        quantise_linears(model, kinds.__contains__, next(iter(kinds.values())))
    return model


def main(arguments=None):
    a = parse(arguments)
    from .classify.classifier import Classifier
    from .cli.run_folder import RunFolder
    from .tuning.saved import check_mergeable, stored_method
    folder = find_model(a.model)
    method = stored_method(folder)
    if method:                                      # a folder without a model is refused below
        check_mergeable(method, folder)
    out = check_out_folder(a.out, False, a.overwrite, paths_read(a))
    precisions = [base for base in a.base if base in ("full", "4bit")]
    folders = [base for base in a.base if base not in ("full", "4bit")]
    if len(precisions) > 1 or len(folders) > 1:
        raise InputError(f"--base {', '.join(a.base)}: give full or 4bit once, and one folder")
    device = check_device(a.device)
    model = Classifier.load(folder, *folders or [None], device)
    if model.base:
        check_out_folder(out, False, a.overwrite, [("the base of --model", find_model(model.base))])
    run_files, place = RunFolder(out), out / NEW_MODEL
    with run_files.lock():
        check_out_folder(out, False, a.overwrite)          # another merge may just have ended
        rows, name, _ = choose_rows(a, folder, model)
        encoded, _ = encode_examples(model, rows)
        set_precision(model, "fp32")

        def probabilities(model):
            return model.probabilities(model.compute_logits(encoded, a.batch_size))
        before = probabilities(model)
        answers = model.answers(before)
        try:
            merge_adapter(model.to("cpu"), *precisions or [None]).save(place)   # the same anywhere
            copy_record(folder, place)
            saved = Classifier.load(place, device=device)
            run_files.replace_with(place)
        finally:
            remove_path(place)
    after = probabilities(saved)
    changed = sum(one != other for one, other in zip(answers, saved.answers(after)))
    print(f"{name}: on {len(rows)} rows the largest difference of a probability is "
          f"{abs(before - after).max():.2g}, {changed} rows change their class\nsaved in {out}")
    return 0


if __name__ == "__main__":
    run(main)
