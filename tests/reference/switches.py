"""What each switch of the loop saves: as python -m minillmclf.inspect says, and as peaks show.

  python tests/reference/switches.py [MODEL] [DATA] [BATCH_SIZE] [METHOD]

By default mini-bert, the bundled set long, 16 texts, full. Each switch has a process of its own,
which trains as python -m minillmclf.train does: two optimiser steps on texts as long as the switch
lets them be. Printed is how far the peak of these steps lies above the level before the first,
where the model is loaded and libraries have loaded what they need; the estimate beside it is
without the weights too. Linux only (/proc), one thread.

Measured twice. glibc keeps blocks of up to 32 MB that were freed, in pieces that the next tensor
does not fit into; with MALLOC_MMAP_THRESHOLD_=65536 in the environment it gives every larger block
back at once, and what a process holds is what its tensors take. The results are the same.
"""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = """
import gc, json, sys, time
import torch
from minillmclf.cli.build import build_classifier as build
from minillmclf.cli.rows import encode_split as encode
from minillmclf.cli.settings import read_settings
from minillmclf.cli.rows import load_dataset
from minillmclf.train import parse
from minillmclf.training.loop import plan_epochs, take_step
from minillmclf.training import lr_factors
from minillmclf.training.optim import build_optimizer
from minillmclf.training.recompute import recompute_blocks
flags = vars(parse(sys.argv[1:]))
s = read_settings({key: value for key, value in flags.items()
                   if key not in ("config", "overwrite")})
data = load_dataset(s)
model = build(s, data.labels, data.columns)[0].train()
longest = sorted(data.train, key=lambda example: sum(map(len, example.texts)))[-2 * s.batch_size:]
train = encode(model, longest)
if s.gradient_checkpointing == "on":
    recompute_blocks(model)
small = torch.nn.Linear(4, 4)  # libraries load what they need
warm = torch.optim.AdamW(small.parameters(), fused=True)
with torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16"):
    torch.utils.checkpoint.checkpoint(small, torch.ones(1, 4), use_reentrant=False).sum().backward()
warm.step()
factors = lr_factors.of_settings(model, s)
optimizer = build_optimizer(model, s.lr, s.weight_decay, factors, s.optimizer)
plan = [rows for epoch in plan_epochs(model, train, s) for rows in epoch]
steps = sorted(plan, key=lambda rows: sum(len(train.encoded[row][0]) for row in rows))[-2:]

def memory(name):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins here
before, began = memory("VmRSS"), time.time()
for rows in steps:
    take_step(model, optimizer, train, rows, s)
tokens = [len(ids) for rows in steps for ids in (train.encoded[row][0] for row in rows)]
print(json.dumps({"peak": memory("VmHWM") - before, "seconds": (time.time() - began) / 2,
                  "rows": len(steps[0]), "tokens": sum(tokens) / len(tokens)}))
"""


def measured(*flags, give_back=False):
    """What STEPS prints, in its own process. give_back: the C library gives back what was freed."""
    sys.path[:0] = [str(ROOT / "tests")]
    from small import environment
    ran = subprocess.run(
        [sys.executable, "-c", STEPS, *map(str, flags)], cwd=ROOT, capture_output=True, text=True,
        env=environment() | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if give_back else {}))
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def main(model="mini-bert", data="long", batch_size="16", method="full"):
    sys.path[:0] = [str(ROOT)]
    from minillmclf.classify.family_heads import build_head
    from minillmclf.files import find_model
    from minillmclf.cli.memory import switch_table
    from minillmclf.models import load_backbone
    from minillmclf.cli.rows import load_dataset
    from minillmclf.cli.settings import Settings
    backbone = load_backbone(find_model(model))
    head = build_head(backbone.source_config["model_type"], backbone,
                      len(load_dataset(Settings(data=data)).labels))
    weights = 4 * sum(p.numel() for part in (backbone, head) for p in part.parameters())
    table = switch_table(backbone, head, method, int(batch_size),
                         min(512, backbone.max_tokens or 512))
    print("| switch | estimate | measured, freed blocks given back | estimate / measured | "
          "measured, glibc as it is | saved: estimate | measured | s a step |\n"
          "|---|---|---|---|---|---|---|---|")
    first = None
    for flags, _, needed in table:
        given = [] if flags == "as it is" else flags.split()
        length = ([] if "--max-length" in given
                  else ["--max-length", min(512, backbone.max_tokens or 512)])
        asked = ["--model", model, "--data", data, "--batch-size", batch_size, "--method", method,
                 *length, *given]
        ran, plain = measured(*asked, give_back=True), measured(*asked)
        said, peak = (needed - weights) / 1e6, ran["peak"] / 1e6
        first = first or (said, peak)
        print(f"| {flags} | {said:,.0f} MB | {peak:,.0f} MB | {said / peak:.2f} | "
              f"{plain['peak'] / 1e6:,.0f} MB | {first[0] - said:,.0f} MB | {first[1] - peak:,.0f} "
              f"MB | {ran['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
