"""How fast a file of short texts is predicted, beside transformers.pipeline. Does memory grow?

  python tests/reference/throughput.py [--rows 100000] [--theirs 10000] [--rounds 3] [--threads 1]
    [--model DIR]

  ours    python -m minillmclf.predict --data FILE --out ANSWERS
  theirs  transformers.pipeline("text-classification", DIR, batch_size=64, device=-1), asked for
          all classes, over the first --theirs rows, which it is given as a generator, as its
          documentation has it for long inputs

Texts are one to three sentences of the bundled tickets, drawn with a seed, so of lengths that
people write. The model is mini-bert with a random head, weights ten times as wide as usual so that
classes differ, or --model, which then is a folder with one class a text that both can read. Each
run is a process of its own with the same number of threads; both have the texts in the same round,
who is first changes. "with start" is from the start of the process to its end. "stream" is without
start: ours from the difference of N and N/10 rows, theirs from its first answer to its last. A
ratio is the median of the rounds' own ratios, with the least and the greatest. Peak memory is the
process's own (ru_maxrss). Before the table is printed both must have given the same labels and
probabilities on the rows that they share.
"""
import argparse
import csv
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAME, TOLERANCE = 0.999, 1e-4                          # share of labels; of probabilities
THEIRS = """
import csv, json, sys, time
import torch, transformers
transformers.logging.set_verbosity_error()
folder, data, out, rows, threads = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(threads)
ask = transformers.pipeline("text-classification", folder, batch_size=64, device=-1, top_k=None)

def texts():
    with open(data, encoding="utf-8", newline="") as file:
        for number, row in zip(range(rows), csv.DictReader(file)):
            yield row["text"]

began = time.perf_counter()
with open(out, "w", encoding="utf-8") as file:
    for found in ask(texts(), truncation=True):
        probabilities = {f["label"]: f["score"] for f in found}
        row = {"label": found[0]["label"], "probabilities": probabilities}
        file.write(json.dumps(row) + "\\n")
print(time.perf_counter() - began)
"""


def sentences():
    """All sentences of the bundled tickets."""
    from minillmclf.text.data import BUNDLED
    from minillmclf.text.examples import read_examples
    texts = [example.texts[0] for example in read_examples(BUNDLED / "tickets.csv")]
    return [part for text in texts for part in re.split(r"(?<=[.!?])\s+", text) if part]


def write_texts(path, rows, seed=0):
    """A CSV of so many texts of one to three sentences; a shorter file begins a longer one."""
    rng, known = random.Random(seed), sentences()
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows(
            [" ".join(rng.choices(known, k=rng.choice((1, 1, 2, 3))))] for _ in range(rows))


def build(folder):
    """mini-bert with a random head."""
    import torch

    from minillmclf import Classifier
    from minillmclf.models import initialise_weights
    model = Classifier.from_backbone("mini-bert", ["refund", "damaged", "question", "praise"])
    initialise_weights(model.head, seed=0, std=0.2)
    with torch.no_grad():
        assert model.predict(["where is it?", "it is broken"]).std() > 0.01, (
            "all classes alike: this would compare little")
    model.save(folder)


def process(command, threads):
    """Run a command -> its stdout, seconds, peak memory in MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads),
                   "MKL_NUM_THREADS": str(threads),
                   "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
                   "RAYON_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, *map(str, command)], stdout=printed, stderr=said,
                                 env=environment, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        for stream in (printed, said):
            stream.seek(0)
        if status:
            sys.exit(f"{' '.join(map(str, command[:3]))[:80]} failed:\n{said.read()[-2000:]}")
        return (printed.read(), seconds,
                usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


def compare(ours, theirs):
    """Two files of answers -> share of equal labels, greatest difference of a probability, rows.

    Of the rows that both have."""
    equal, apart, rows = 0, 0.0, 0
    with open(ours, encoding="utf-8") as one, open(theirs, encoding="utf-8") as other:
        for a, b in zip(map(json.loads, one), map(json.loads, other)):
            equal, rows = equal + (a["label"] == b["label"]), rows + 1
            apart = max(apart, *(
                abs(p - b["probabilities"][name]) for name, p in a["probabilities"].items()))
    return equal / rows, apart, rows


def one_round(a, folder, model, ours_first):
    """-> {"ours": (seconds, MB), "few": of a tenth of the rows, "theirs", "their few", and "asked":
    seconds of theirs without start}."""
    few = max(1, a.rows // 10)
    found = {}

    def ours():
        for name, rows in (("few", few), ("ours", a.rows)):
            command = ["-m", "minillmclf.predict", "--model", model,
                       "--data", folder / f"{rows}.csv", "--out", folder / name]
            found[name] = process(command, a.threads)[1:]

    def theirs():
        for name, rows in (("their few", max(1, a.theirs // 10)), ("theirs", a.theirs)):
            data = folder / f"{a.rows}.csv"
            printed, *found[name] = process(
                ["-c", THEIRS, model, data, folder / name, rows, a.threads], a.threads)
        found["asked"] = float(printed)
    for part in (ours, theirs) if ours_first else (theirs, ours):
        part()
    return found


def cell(numbers, form="{:,.0f}"):
    """Median (least-greatest)."""
    least, middle, most = (form.format(f(numbers)) for f in (min, statistics.median, max))
    return f"{middle} ({least}-{most})"


def table(a, rounds):
    """The rounds as a Markdown table -> lines."""
    few = max(1, a.rows // 10)
    speed = {
        "rows/s with start": ([a.rows / r["ours"][0] for r in rounds],
                              [a.theirs / r["theirs"][0] for r in rounds]),
        "rows/s of the stream": ([(a.rows - few) / (r["ours"][0] - r["few"][0]) for r in rounds],
                                 [a.theirs / r["asked"] for r in rounds])}
    lines = [f"| {len(rounds)} rounds, {a.threads} thread(s) | ours, {a.rows:,} rows | theirs, "
             f"{a.theirs:,} rows | " "ours / theirs |", "|---|---|---|---|"]
    for name, (ours, theirs) in speed.items():
        lines.append(f"| {name} | {cell(ours)} | {cell(theirs)} | "
                     f"{cell([x / y for x, y in zip(ours, theirs)], '{:.2f}')} |")
    for name, own, other in (("peak memory, a tenth of the rows, MB", "few", "their few"),
                             ("peak memory, MB", "ours", "theirs")):
        lines.append(f"| {name} | {cell([r[own][1] for r in rounds])} | "
                     f"{cell([r[other][1] for r in rounds])} | |")
    return lines


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--theirs", type=int, default=10_000,
                   help="rows that transformers is given [10000]")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--model", help="a saved classifier [mini-bert with a random head]")
    a = p.parse_args()
    a.theirs = min(a.theirs, a.rows)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = Path(a.model).resolve() if a.model else folder / "model"
        if not a.model:
            build(model)
        for rows in {a.rows, max(1, a.rows // 10)}:
            write_texts(folder / f"{rows}.csv", rows)
        rounds = []
        for number in range(a.rounds):
            rounds.append(one_round(a, folder, model, number % 2 == 0))
            took = {name: f"{rounds[-1][name][0]:.1f} s" for name in ("ours", "theirs")}
            print(f"round {number + 1}: {took}", file=sys.stderr, flush=True)
        same, apart, rows = compare(folder / "ours", folder / "theirs")
        assert rows == a.theirs, f"{rows} rows have both answers, not {a.theirs}"
        assert same >= SAME and apart <= TOLERANCE, (
            f"{same:.2%} of the labels are equal, probabilities up to {apart:.1g} apart: "
            f"not the same work")
        print("\n".join(table(a, rounds)))
        print(f"\n{same:.2%} of {rows:,} labels are equal; "
              f"probabilities are at most {apart:.1g} apart.")


if __name__ == "__main__":
    main()
