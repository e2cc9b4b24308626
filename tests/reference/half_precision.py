"""What bf16 is worth on this machine: seconds of whole predictions, texts to answers, one thread.

  python tests/reference/half_precision.py --model MINILM --data sst2/test.csv

Ours in fp32 and with weights in bf16, and transformers in both, its texts sorted by length too. All
four in turn, --rounds times; a ratio is the median of fp32 of ours divided by the way. Answers that
differ from ours in fp32 are counted: the heads are equal, of random weights. With --train, a step
of 32 rows in full and with LoRA instead, in fp32 and by autocast.
"""
import argparse
import copy
import statistics
import tempfile
import time
from functools import partial

import torch
import transformers

from minillmclf import Classifier, load_data
from minillmclf.cli.build import build_classifier
from minillmclf.cli.rows import encode_split
from minillmclf.cli.settings import Settings
from minillmclf.models.half import convert_to_bf16
from minillmclf.training.loop import take_step
from minillmclf.training.optim import build_optimizer


def their_answers(model, tokenizer, texts, size=64):
    """Class numbers of the texts, in their order; batches are of texts of like length."""
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    found = torch.empty(len(texts), dtype=torch.long)
    for start in range(0, len(order), size):
        rows = order[start:start + size]
        batch = tokenizer([texts[n] for n in rows], padding=True, truncation=True,
                          return_tensors="pt")
        with torch.inference_mode():
            found[rows] = model(**batch).logits.argmax(1)
    return found


def ways_of(path, texts):
    """{name: function () -> class numbers (N,)}."""
    ours = Classifier.from_backbone(path, ["a", "b", "c", "d"], seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    half, their_half = copy.deepcopy(ours), copy.deepcopy(theirs).to(torch.bfloat16)
    convert_to_bf16(half.backbone)

    def answers(model):
        return torch.from_numpy(model.predict(texts).argmax(1))
    return {"ours, fp32": lambda: answers(ours), "ours, bf16": lambda: answers(half),
            "transformers, fp32": lambda: their_answers(theirs, tokenizer, texts),
            "transformers, bf16": lambda: their_answers(their_half, tokenizer, texts)}


def steps_of(a):
    """{name: function () -> None, four training steps}."""
    ways = {}
    for method in ("full", "lora"):
        for precision in ("fp32", "bf16"):
            s = Settings(model=a.model, data=a.data, method=method, precision=precision,
                         few_rows="off", lr=1e-5)
            data = load_data(a.data)
            model = build_classifier(s, data.labels)[0].train()
            train = encode_split(model, data.train[:128])
            optimizer = build_optimizer(model, s.lr, s.weight_decay)
            ways[f"{method}, {precision}"] = partial(take_steps, model, optimizer, train, s)
    return ways


def take_steps(model, optimizer, train, s):
    for start in range(0, 128, 32):
        take_step(model, optimizer, train, list(range(start, start + 32)), s)


def time_in_turn(ways, rounds):
    """{name: [seconds of the processor, of each round]}, after one round to warm up."""
    seconds = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    return {name: taken[1:] for name, taken in seconds.items()}


def print_steps(a):
    found = time_in_turn(steps_of(a), a.rounds)
    print("| step | ms | of that in fp32 |\n|---|---|---|")
    for name, taken in found.items():
        mean, plain = (statistics.median(found[each]) / 4
                       for each in (name, name.replace("bf16", "fp32")))
        print(f"| {name} | {1000 * mean:.0f} | {mean / plain:.2f} |")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--rows", type=int, default=512)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--train", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.train:
        print_steps(a)
        return
    texts = [row.texts[0] for row in load_data(a.data).test[:a.rows]]
    ways = ways_of(a.model, texts)
    first, seconds = {name: way() for name, way in ways.items()}, time_in_turn(ways, a.rounds)
    plain = statistics.median(seconds["ours, fp32"])
    print("| way | seconds | times as fast as ours in fp32 | other answers |\n|---|---|---|---|")
    for name, taken in seconds.items():
        other = (first[name] != first["ours, fp32"]).float().mean().item()
        print(f"| {name} | {statistics.median(taken):.2f} | {plain / statistics.median(taken):.2f} "
              f"| {other:.1%} |")


if __name__ == "__main__":
    main()
