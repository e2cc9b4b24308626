"""Peak memory of predicting long documents: in windows, cut to one, and all windows at once.

  python tests/reference/long_memory.py

A BERT of 4 layers x 256 with random weights, 8 documents of 500, 2,000 or 8,000 tokens, windows of
128 tokens that share 32, one process for each number. Printed is how far the peak of one prediction
lies above the level after building, in MB (ru_maxrss), the windows of all documents, and the
seconds that it took.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("cut", "windows", "all at once")
ASK = """
import resource, sys, time
import torch
from minillmclf.classify import windows
from minillmclf.classify.classifier import Classifier
torch.set_num_threads(1)
folder, way, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
described = dict(pool="mean", overlap=32, max_windows=8, max_document=10**6)
model = Classifier.from_backbone(folder, ["a", "b"], max_length=128,
                                 windows=None if way == "cut" else described)
if way == "all at once":
    windows.WINDOWS_AT_ONCE = 10**6
texts = [" ".join(["a"] * tokens)] * 8
encoded, _ = model.encode(texts)
short = model.encode(["a"] * 2)[0]
model.compute_logits(short)  # libraries load what they need
unit = 2**20 if sys.platform == "darwin" else 2**10
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
before, began = peak(), time.time()
model.compute_logits(encoded)
count = sum(-(-len(ids) // 128) for ids, _ in encoded)
print(f"{peak() - before:.0f} {count} {time.time() - began:.1f}")
"""


def main():
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from small import bert_folder, environment
    print(f"{'tokens':>8}" + "".join(f"{way:>34}" for way in WAYS))
    with tempfile.TemporaryDirectory() as folder:
        bert_folder(folder, layers=4, width=256, mlp=1024, positions=128, dropout=0.0)
        for tokens in (500, 2000, 8000):
            cells = []
            for way in WAYS:
                done = subprocess.run([sys.executable, "-c", ASK, folder, way, str(tokens)],
                                      env=environment(), cwd=ROOT, text=True, capture_output=True,
                                      check=True)
                out = done.stdout.split()
                cells.append(f"{out[0]} MB, {out[1]} windows, {out[2]} s")
            print(f"{tokens:>8}" + "".join(f"{cell:>34}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
