"""python -m minillmclf.evaluate: how good is a saved classifier on labelled data?

  python -m minillmclf.evaluate --model runs/mini-bert-tickets-full-0
  python -m minillmclf.evaluate --model runs/mine --data other.csv --out other.json
  python -m minillmclf.evaluate --model checkpoints/gpt2 --method prompt --data tickets --shots 8

Without --data, the data that the run was trained on; of these, known by their sha256, the rows of
--split are those of the run's own split. Of a bundled set, a folder, or a file with a split column,
the rows of --split are used; of any other file, all rows. A fold of a cross-validation is judged on
its held-out rows. Prints accuracy, macro F1, log loss, ECE, F1 of each class and the most frequent
confusions; for a multi-label model, what its thresholds are worth (classify/multilabel.py). Warns
where the model has learned some of the rows, unless --split train asks for these.

--method prompt evaluates a language model without training, by --template, --label-texts,
--instruction, and --shots of the training rows. Prints the metrics for each way to read its
log-probabilities, plain and calibrated.
"""
import json
import random
from dataclasses import replace

from .cli.checks import flag
from .cli.device import add_device_flags, check_device, set_precision
from .cli.judged_rows import choose_rows, paths_read, read_run_record
from .cli.learned_rows import warn_of_learned
from .cli.outputs import check_out_file
from .cli.parser import Parser, run
from .cli.rows import encode_examples, load_dataset
from .cli.settings import add_settings, read_settings
from .errors import InputError
from .files import find_model, write_text
from .text.doctor import examine_data, shared_warnings

PROMPT_SETTINGS = ("template", "label_texts", "instruction", "end", "max_length", "seed")
PROMPT_FLAGS = ("shots", "neighbours", "rows", "beams", "variance")


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.evaluate", description=__doc__)
    p.add_argument("--model", required=True,
                   help="a run folder, or a Hugging Face folder with a classification head")
    p.add_argument("--data", help="a file, a folder, or a bundled set's name (default: what the "
                                  "run was trained on)")
    p.add_argument("--split", choices=["train", "dev", "test"], help="which rows [test]")
    p.add_argument("--text-column", help="name(s) of the text column(s)")
    p.add_argument("--label-column", help="name of the label column")
    add_settings(p, ["quoting"], grouped=False)
    add_device_flags(p)
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    p.add_argument("--base", help="of an adapter: the folder of its base, where that lies "
                                  "elsewhere now")
    p.add_argument("--swap", choices=["none", "predict"],
                   help="of two answers to a prompt: take the mean over both orders, or not "
                        "(default: as trained)")
    p.add_argument("--out", help="also write the metrics to this JSON file")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    g = p.add_argument_group("with --method prompt")
    g.add_argument("--method", choices=["prompt"],
                   help="prompt: ask a language model instead of a saved classifier")
    add_settings(g, PROMPT_SETTINGS, grouped=False)
    g.add_argument("--shots", type=int, default=0,
                   help="finished examples before every row, in all, balanced [0]")
    g.add_argument("--neighbours", metavar="ENCODER",
                   help="as shots, the rows that are nearest by this encoder (mini-bert)")
    g.add_argument("--rows", type=int, default=0,
                   help="evaluate so many rows only, drawn by the seed (0: all)")
    g.add_argument("--beams", type=int, default=0,
                   help="show where decoding with so many beams errs (1: greedy)")
    g.add_argument("--variance", action="store_true",
                   help="five wordings and five orders of the shots, each evaluated")
    return p.parse_args(arguments)


def main(arguments=None):
    a = parse(arguments)
    given = [name for name in PROMPT_SETTINGS if getattr(a, name, None) is not None]
    given += [name for name in PROMPT_FLAGS if getattr(a, name)]
    if given and a.method is None:
        raise InputError(f"{flag(given[0])} goes with --method prompt")
    if a.out:
        check_out_file(a.out, a.overwrite, paths_read(a))
    name, rows, metrics = evaluate_prompted(a) if a.method == "prompt" else evaluate_saved(a)
    if a.out:
        record = {"model": str(a.model), "data": name, "rows": len(rows), **metrics}
        write_text(a.out, json.dumps(record, indent=2) + "\n")
    return 0


# ------------------------------------------------------- a saved classifier, or a prompted model

def evaluate_saved(a):
    """Evaluate a saved classifier -> (the name of the rows, the rows, a dict of metrics)."""
    from .classify.classifier import Classifier
    from .classify.preference import set_swap
    folder = find_model(a.model)
    if a.data is None:
        read_run_record(folder)                            # errors come before a model is loaded
    model = Classifier.load(folder, a.base, check_device(a.device))
    if a.out and model.base:
        check_out_file(a.out, a.overwrite, [("the base of --model", find_model(model.base))])
    rows, name, own = choose_rows(a, folder, model)
    set_swap(model, a.swap)
    texts, targets = [row.texts for row in rows], model.task.targets(rows, name)
    encoded, shortened = encode_examples(model, rows)
    precision = set_precision(model, a.precision, texts)
    probabilities = model.probabilities(model.compute_logits(encoded, a.batch_size))        # (N, C)
    metrics = model.task.evaluate(probabilities, targets)
    own_dev = own and a.split == "dev"
    print("\n".join(model.task.metric_lines({folder.name: metrics}, name, rows, fitted=own_dev)))
    max_tokens = model.head.length_limit(model.max_length)[1]
    mistakes = model.task.confusion_text(probabilities, targets)
    print(f"\n{shortened} of {len(rows)} texts cut to {max_tokens} tokens. {mistakes}".rstrip())
    checks = print_checks(model, texts, a.batch_size) | warn_of_learned(model, rows, a.split)
    return name, rows, metrics | checks | {"dtype": precision}


def print_checks(model, texts, batch_size):
    """Print what the task checks in rows and in answers -> its findings, a dict."""
    answers = model.task.check_answers(
        model, texts, lambda rows: model.compute_logits(rows, batch_size))
    rows, lines = model.task.check_rows(model, texts)
    for line in lines + model.task.answer_lines(answers):
        print(line)
    return answers | rows


def check_prompt_flags(a):
    """Raise InputError for flags that do not go with --method prompt, or with one another."""
    if a.data is None or a.split == "train":
        raise InputError("--method prompt needs --data with a dev or test split")
    if a.base is not None:
        raise InputError("--base goes with an adapter, and --method prompt asks a whole model: "
                         "leave it out")
    if min(a.shots, a.rows, a.beams) < 0:
        raise InputError(f"--shots {a.shots}, --rows {a.rows}, --beams {a.beams}: should be 0 or "
                         "more")
    if a.neighbours and not a.shots:
        raise InputError("--neighbours needs a number of --shots")
    for name in ("neighbours", "template", "beams"):
        if a.variance and getattr(a, name, None):
            raise InputError(f"--{name} does nothing beside --variance, which has wordings of its "
                             "own and the same shots for all rows")


def evaluate_prompted(a):
    """Evaluate a language model with prompts -> (the name of the rows, the rows, a dict)."""
    from .cli.build import build_classifier
    check_prompt_flags(a)
    a.split = a.split or "test"
    names = (*PROMPT_SETTINGS, "device", "text_column", "label_column", "swap", "quoting")
    given = {name: getattr(a, name) for name in names if getattr(a, name, None) is not None}
    s = read_settings({**given, "model": a.model, "data": a.data, "readout": "labels",
                       "method": "full"})
    data = load_dataset(s)
    rows = data.test if a.split == "test" else data.dev
    if 0 < a.rows < len(rows):
        rows = random.Random(f"judged:{s.seed}").sample(rows, a.rows)
    name = f"{data.source['path']}, {a.split}"
    if not rows:
        raise InputError(f"{name}: no such rows: choose another --split")
    for line in shared_warnings(examine_data(data)) if a.shots else []:
        print(f"WARNING: {line}")                          # a shot may be a row that is judged
    model, _, _ = build_classifier(s, data.labels, data.columns)
    precision = set_precision(model, a.precision, [row.texts for row in rows])
    if a.beams and model.backbone.KIND == "encoder":
        raise InputError("--beams: an encoder fills in its masks at once, there is nothing to "
                         "decode step by step")
    evaluate = evaluate_wordings if a.variance else evaluate_readings
    found = evaluate(a, model, replace(data, test=rows), name, s.seed)
    found |= warn_of_learned(model, rows, a.split)
    return name, rows, found | {"dtype": precision}


def evaluate_readings(a, model, data, name, seed):
    """Evaluate each way to read the log-probabilities, on the rows data.test -> dict for --out."""
    from .classify.label_text import prompting
    from .training.metrics import evaluate
    task, rows, dev_rows = model.task, data.test, data.dev if a.split == "test" else []
    texts, targets, dev = [row.texts for row in rows], model.task.targets(rows, name), []
    if a.neighbours:
        encoded, cut, shorter = prompting.encode_with_nearest_shots(
            model, data.train, rows, a.shots, a.neighbours)
        print(f"{a.shots} shots, each row's nearest by {a.neighbours}; shortened before {shorter} "
              f"of {len(rows)} rows\n")
        if dev_rows:
            dev = prompting.encode_with_nearest_shots(model, data.train, dev_rows, a.shots,
                                                      a.neighbours)[0]
    else:
        shorter = prompting.set_balanced_shots(model, data.train, a.shots, seed)
        first = model.head.fit_texts(model.tokenizer, texts[0], model.max_length)[0]
        print(f"{model.head.prompt.display_text(first)}\n\n{a.shots} shots, {shorter} of them "
              "shortened. Above: the first prompt, and where the label goes.\n")
        encoded, cut = encode_examples(model, rows)
        if dev_rows:
            dev = encode_examples(model, dev_rows)[0]
    readings = prompting.read_answers(model, encoded, dev, task.targets(dev_rows, name),
                                  not a.neighbours, a.batch_size)
    results = {way: evaluate(logits.softmax(-1).numpy(), targets, data.labels)         # (N, C)
               for way, logits in readings.items()}
    table = task.metric_lines(task.baselines(data, quick=True) | results, name, rows)
    print("\n".join(table[:table.index("")]))                       # without F1 of each class
    print(f"\n{cut} of {len(rows)} rows cut to {model.max_length} tokens")
    if a.beams:
        print("\n".join(prompting.report_decoding(model, encoded, rows, a.beams, a.batch_size)))
    settings = {"readout": model.head.label_options, "max_length": model.max_length, "seed": seed,
                "shots": a.shots, "neighbours": a.neighbours}
    checks = {} if a.neighbours else print_checks(model, texts, a.batch_size)
    return {"settings": settings, "results": results, **checks}


def evaluate_wordings(a, model, data, name, seed):
    """How much accuracy depends on the wording, and on the order of the shots -> dict for --out."""
    from .classify.label_text import prompting
    model.task.targets(data.test, name)                    # InputError for a label it does not have
    prompts = prompting.vary_prompt(model.eval(), data, data.test, a.shots, seed,
                                     batch_size=a.batch_size)
    ways = ("as it is", "contextual", "batch")
    spreads = {way: prompting.summarize(prompts, way) for way in ways}
    print(f"\n{name} ({len(data.test)} rows): accuracy over {len(prompts)} prompts\n"
          f"{'':<22}    mean     min     max      sd")
    for way, values in spreads.items():
        print(f"{way:<22}" + "".join(f"{values[key]:8.3f}" for key in ("mean", "min", "max", "sd")))
    return {"prompts": prompts, "spread": spreads}


if __name__ == "__main__":
    run(main)
