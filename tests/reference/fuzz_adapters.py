"""Damaged adapters and tuned runs: is each answered, or refused in one line, soon and in little
memory?

  python tests/reference/fuzz_adapters.py --count 2000 --seed 0

A good folder (several families; LoRA, DoRA, prefix, prompt, bottlenecks; heads and label texts) is
copied, one of its files is changed, and a process of its own loads it and answers. Answers that are
not finite are bad; what else is: fuzzing.py.
"""

import shutil
import sys
from pathlib import Path

import fuzzing
import torch
from fuzzing import change_file
from small import PIECES
from test_families import CONFIGS, LABELS, TEXTS, spread

from minillmclf.classify.calibrate import Calibration
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.multilabel import MultiLabel
from minillmclf.models import initialise_weights, model_class, save_backbone
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.tuning import METHODS, tune

NUMBERS = dict(
    rank=3,
    alpha=6.0,
    dropout=0.0,
    use_rslora=False,
    targets="all-linear",
    bias="none",
    size=4,
    tokens=3,
    projection=False,
)
GOOD = [
    (family, method, readout)
    for family, methods in {
        "bert": ("lora", "dora", "prefix", "prompt", "houlsby"),
        "gpt2": ("lora", "pfeiffer", "prompt"),
        "t5": ("lora", "prefix"),
        "llama": ("dora", "prefix", "houlsby"),
        "deberta-v3": ("lora",),
        "gemma2": ("prompt", "lora"),
    }.items()
    for method in methods
    for readout in (("head", "labels") if family == "gpt2" else ("head",))
]
SLOW = (
    r"(?:(\w|[a-z]|.)(\w|[a-z]|.))+\d!*$",
    "(a{65535}){65535}",
    r"(?:\w|\w\w|\w\w\w|\.){1,90}!",
    "(" * 3000,
    "*",
    "(?P<n>.)(?P<n>.)",
)


def build(folder):
    """Good folders -> list of the runs'; their bases lie beside them."""
    runs = []
    for family in dict.fromkeys(family for family, *_ in GOOD):
        kind, config = CONFIGS[family]
        model = spread(
            initialise_weights(model_class({"model_type": kind, **config}).from_config(config), 0)
        )
        model.source_config = {"model_type": kind, **config}
        save_backbone(model, folder / f"base-{family}")
        WordPiece.from_vocab(PIECES).save(folder / f"base-{family}")
    for number, (family, method, readout) in enumerate(GOOD):
        windows = {"pool": "mean", "overlap": 2, "max_windows": 4, "max_document": 200}
        more = {"keep": "tail"} if number % 2 else {}
        if readout == "labels":
            more = {"template": "{text} is"}
        elif method == "lora":
            more = {"windows": windows, "max_length": 16}
        model = Classifier.from_backbone(folder / f"base-{family}", LABELS, readout=readout, **more)
        tune(model,
             {"method": method, **{option: NUMBERS[option] for option in METHODS[method].options}})
        with torch.no_grad():
            draw = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0.0, 0.1, generator=draw)
        if number % 3 == 0:
            model.task.set_calibration(Calibration([0.1] * len(LABELS), 2.0))
        elif number % 3 == 1 and readout == "head":
            model.task = MultiLabel(LABELS)
        model.save(folder / f"run-{family}-{method}-{readout}")
        runs.append(folder / f"run-{family}-{method}-{readout}")
    return runs


def case(runs, draw, folder):
    """Damage a copy of a run -> what was done, a function that loads it, or its adapter alone, and
    answers."""
    run = Path(shutil.copytree(draw.choice(runs), folder / "run"))
    files = sorted(path for path in run.rglob("*") if path.is_file())
    path = draw.choice(
        files + [path for path in files if path.suffix == ".json"]
    )  # JSON twice as often
    done = change_file(path, draw)
    known = path.parent.name == "adapter" and (run / "adapter" / "adapter_config.json").exists()
    place = run / "adapter" if known and draw.random() < 0.5 else run

    def read():
        answers = Classifier.load(place).predict(TEXTS[:3])
        return None if torch.tensor(answers).isfinite().all() else "answers that are not finite"

    return f"{path.relative_to(run)}: {done}", read


if __name__ == "__main__":
    fuzzing.VALUES += SLOW
    sys.exit(fuzzing.main(__doc__, build, case))
