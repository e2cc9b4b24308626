"""Both doors out of one model: asked in words, tuned to answer in words, tuned with a head. One
split, several seeds, a table.

  python tests/reference/doors.py --model DIR --data DIR --out runs/doors \\
    --template "Question: {text}\\nKind: {label}" --lr full=1e-3 lora=5e-3 --epochs 2

Prompts are asked with 0 and 8 shots and read as they are, and calibrated (contextual, batch). Then,
with the same template: instruction tuning (completion), the same scores trained as classes, and a
head, each in full and by LoRA. A seed draws the shots, or the order of the rows. Finished cells are
not computed again; --ways leaves some out (mini-bert has only a head).
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SHOTS = (0, 8)
READ = ("as it is", "contextual", "batch")
TUNED = {"completion": ["--readout", "labels", "--objective", "completion"],
         "classes": ["--readout", "labels"], "head": []}


def call(command, *flags):
    """python -m minillmclf.COMMAND in a process of its own; only its mistakes are shown."""
    subprocess.run([sys.executable, "-m", f"minillmclf.{command}", *map(str, flags)], check=True,
                   stdout=subprocess.DEVNULL)


def asked(a, shots, seed):
    """A prompt with so many shots -> {way of reading: metrics}."""
    out = Path(a.out) / f"shots-{shots}-{seed}.json"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        call("evaluate", "--method", "prompt", "--model", a.model, "--data", a.data, "--template",
             a.template, "--shots", shots, "--seed", seed, "--out", out, "--max-length",
             a.max_length, *(["--label-texts", a.label_texts] if a.label_texts else []))
    return json.loads(out.read_text())["results"]


def tuned(a, readout, method, seed):
    """A training run -> its metrics on test."""
    folder = Path(a.out) / f"{readout}-{method}-{seed}"
    words = []
    if readout != "head":
        words = ["--template", a.template,
                 *(["--label-texts", a.label_texts] if a.label_texts else [])]
    call("train", "--model", a.model, "--data", a.data, "--method", method, "--lr", a.lr[method],
         "--epochs", a.epochs, "--targets", "all-linear", "--max-length", a.max_length, "--seed",
         seed, "--out", folder, *TUNED[readout], *words)
    return list(json.loads((folder / "run.json").read_text())["results"].values())[-1]


def row(name, metrics):
    """One line of the table: mean and standard deviation over the seeds."""
    cells = []
    for key in ("accuracy", "log_loss", "ece"):
        values = [m[key] for m in metrics]
        cells.append(f"{statistics.mean(values):.3f} +- {statistics.stdev(values):.3f}"
                     if len(values) > 1 else f"{values[0]:.3f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--model", "--data", "--out", "--template"):
        p.add_argument(flag, required=True)
    p.add_argument("--ways", nargs="+", default=["prompt", *TUNED], choices=["prompt", *TUNED])
    p.add_argument("--label-texts", default="")
    p.add_argument("--lr", nargs="+", default=["full=1e-3", "lora=5e-3"], metavar="METHOD=LR")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--max-length", type=int, default=256)
    p.add_argument("--seeds", type=int, default=3)
    a = p.parse_args()
    a.lr = dict(pair.split("=") for pair in a.lr)
    print("| way | test accuracy | log loss | ECE |\n|---|---|---|---|", flush=True)
    for shots in SHOTS if "prompt" in a.ways else ():
        found = [asked(a, shots, seed) for seed in range(a.seeds if shots else 1)]
        for way in READ:
            print(row(f"prompt, {shots} shots, {way}", [results[way] for results in found]),
                  flush=True)
    for readout in (way for way in a.ways if way in TUNED):
        for method in a.lr:
            print(row(f"{readout}, {method}",
                      [tuned(a, readout, method, seed) for seed in range(a.seeds)]), flush=True)


if __name__ == "__main__":
    main()
