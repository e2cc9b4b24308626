"""What bf16 is worth on this machine: seconds of whole predictions, texts to answers, one thread.

  python tests/reference/half_precision.py --model MINILM --data sst2/test.csv

Ours in fp32 and with weights in bf16, and transformers in both, its texts sorted by length too. All
four in turn, --rounds times; a ratio is the median of fp32 of ours divided by the way. Answers that
differ from ours in fp32 are counted: the heads are equal, of random weights.
"""
import argparse
import copy
import statistics
import tempfile
import time

import torch
import transformers

from minillmclf import Classifier, load_data
from minillmclf.models.half import convert_to_bf16


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


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--rows", type=int, default=512)
    p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args()
    torch.set_num_threads(1)
    texts = [row.texts[0] for row in load_data(a.data).test[:a.rows]]
    ways = ways_of(a.model, texts)
    first, seconds = {name: way() for name, way in ways.items()}, {name: [] for name in ways}
    for _ in range(a.rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    plain = statistics.median(seconds["ours, fp32"])
    print("| way | seconds | times as fast as ours in fp32 | other answers |\n|---|---|---|---|")
    for name, taken in seconds.items():
        other = (first[name] != first["ours, fp32"]).float().mean().item()
        print(f"| {name} | {statistics.median(taken):.2f} | {plain / statistics.median(taken):.2f} "
              f"| {other:.1%} |")


if __name__ == "__main__":
    main()
