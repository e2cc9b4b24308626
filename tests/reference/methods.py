r"""Which method on a real set? Trains by each over several seeds, a process a run; prints a table.

  python tests/reference/methods.py --model checkpoints/minilm --data DIR --out runs/methods \
    --epochs 2 full@lr=5e-5 lora@lr=1e-3 qlora@lr=1e-3 houlsby@lr=5e-4 prefix@lr=1e-2 head@lr=1e-3

DIR holds train, dev and test files. A run that is finished already is not run again. Memory is the
peak of its process.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def train(method, seed, a):
    """One run in a process of its own -> its run.json, parsed."""
    name, _, own = method.partition("@")
    folder = Path(a.out) / f"{method}-{seed}"
    flags = [f"--{key.replace('_', '-')}={value}"
             for key, value in (pair.split("=") for pair in filter(None, own.split(",")))]
    subprocess.run(
        [sys.executable, "-m", "minillmclf.train", "--model", a.model, "--data", a.data,
         "--method", name, "--out", folder, "--seed", str(seed), "--epochs", str(a.epochs), *flags],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "run.json").read_text())


def row(method, records):
    """One line of the table: medians, and the mean and spread of accuracy."""
    accuracy = [list(r["results"].values())[-1]["accuracy"] for r in records]
    spread = f" +- {statistics.stdev(accuracy):.3f}" if len(accuracy) > 1 else ""
    timing = [r["timing"] for r in records]
    middle = {key: statistics.median(t[key] for t in timing)
              for key in ("peak_memory_mb", "seconds_per_step", "train_seconds")}
    return (f"| {method} | {statistics.mean(accuracy):.3f}{spread} | "
            f"{records[0]['parameters']['trainable']:,} | {middle['peak_memory_mb']:.0f} MB | "
            f"{1000 * middle['seconds_per_step']:.0f} ms | {middle['train_seconds']:.0f} s |")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("methods", nargs="+", metavar="METHOD[@key=value,...]")
    for flag in ("--model", "--data", "--out"):
        p.add_argument(flag, required=True)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--seeds", type=int, default=3)
    a = p.parse_args()
    print("| method | test accuracy | parameters that learn | peak memory | a step | training |\n"
          "|---|---|---|---|---|---|", flush=True)
    for method in a.methods:
        print(row(method, [train(method, seed, a) for seed in range(a.seeds)]), flush=True)


if __name__ == "__main__":
    main()
