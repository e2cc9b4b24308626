r"""Fine-tune one checkpoint with this package and with transformers in the same way: one table.

  python tests/reference/real_sets.py --model MINILM_DIR --data SST2_DIR --lr 5e-5 --seeds 3 \
    --out runs/sst2

The same batches in the same order, AdamW with the same groups and schedule, the best epoch by dev
accuracy, for both; the model, its tokenizer, its new last layer and its dropout are each library's
own. Results are kept, so a stopped run goes on.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from minillmclf.cli.rows import load_dataset
from minillmclf.cli.settings import Settings
from minillmclf.cli.training_run import finished_record, train_run
from minillmclf.text.batch import make_batches
from minillmclf.training.checkpoint import seed_step
from minillmclf.training.optim import lr_factor


def groups(model, lr, weight_decay):
    """Matrices are decayed, biases and norms are not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay, "lr": lr},
            {"params": others, "weight_decay": 0.0, "lr": lr}]


def pack(tokenizer, examples, rows):
    """Rows of a split as transformers' tokenizer makes them."""
    texts = [examples[row].texts for row in rows]
    return tokenizer(*map(list, zip(*texts)), padding=True, truncation=True, return_tensors="pt")


@torch.inference_mode()
def accuracy(model, tokenizer, examples, labels, lengths):
    model.eval()
    right = 0
    for rows in make_batches(lengths, 64):
        answer = model(**pack(tokenizer, examples, rows)).logits.argmax(-1).tolist()
        right += sum(labels[a] == examples[row].label for a, row in zip(answer, rows))
    return right / len(examples)


def reference_run(s):
    """transformers' model in a plain loop, settings `s` -> best epoch's test accuracy, seconds."""
    torch.manual_seed(s.seed)
    data, tokenizer = load_dataset(s), AutoTokenizer.from_pretrained(s.model)
    model = AutoModelForSequenceClassification.from_pretrained(s.model, num_labels=len(data.labels))
    lengths = {}
    for k in ("train", "dev", "test"):
        columns = map(list, zip(*[e.texts for e in getattr(data, k)]))
        lengths[k] = [len(ids) for ids in tokenizer(*columns, truncation=True).input_ids]
    plan = [make_batches(lengths["train"], s.batch_size, seed=f"{s.seed}:{epoch}")
            for epoch in range(s.epochs)]
    optimizer = torch.optim.AdamW(groups(model, s.lr, s.weight_decay), fused=True)
    total, step, best, started = sum(map(len, plan)), 0, (-1.0, 0.0), time.time()
    for batches in plan:
        model.train()
        for rows in batches:
            for group in optimizer.param_groups:
                group["lr"] = s.lr * lr_factor(step, total, round(s.warmup * total), s.schedule)
            step += 1
            seed_step(s.seed, step)
            truth = torch.tensor([data.labels.index(data.train[row].label) for row in rows])
            optimizer.zero_grad()
            logits = model(**pack(tokenizer, data.train, rows)).logits
            torch.nn.functional.cross_entropy(logits, truth).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
            optimizer.step()
        dev = accuracy(model, tokenizer, data.dev, data.labels, lengths["dev"])
        if dev > best[0]:
            best = (dev, accuracy(model, tokenizer, data.test, data.labels, lengths["test"]))
    return {"accuracy": best[1], "seconds": time.time() - started}


def own_run(s, folder):
    """This package's train command -> the same."""
    data = load_dataset(s)
    record = finished_record(s, folder, data, False) or train_run(s, data, folder)
    return {"accuracy": list(record["results"].values())[-1]["accuracy"],
            "bag of words": record["results"]["bag of words"]["accuracy"],
            "seconds": record["timing"]["train_seconds"]}


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--lr", type=float, required=True)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--out", required=True)
    p.add_argument("--threads", type=int, default=None)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    kept = Path(a.out) / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in range(a.seeds):
        s = Settings(model=a.model, data=a.data, lr=a.lr, epochs=a.epochs, seed=seed).check()
        for name, make in (("minillmclf", lambda: own_run(s, Path(a.out) / f"seed{seed}")),
                           ("transformers", lambda: reference_run(s))):
            if f"{name} {seed}" not in results:
                results[f"{name} {seed}"] = make()
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(results, indent=2))
                print(name, seed, results[f"{name} {seed}"], flush=True)
    for name in ("minillmclf", "transformers"):
        values = [results[f"{name} {seed}"]["accuracy"] for seed in range(a.seeds)]
        spread = statistics.stdev(values) if a.seeds > 1 else 0.0
        print(f"{name:<14}{statistics.mean(values):.4f} +- {spread:.4f}  "
              f"{[round(v, 4) for v in values]}")


if __name__ == "__main__":
    main()
