"""How good is the estimate of memory of python -m minillmclf.inspect? Families, methods, shapes.

  python tests/reference/memory_grid.py [FAMILY ...]

Each line: the estimate of a training step, the most bytes that tensors take in two real steps (by
torch's profiler), and their ratio. Random models of 4 layers x 256; fp32, AdamW, dropout on, one
thread.
"""
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("full", "last-1", "head", "bitfit", "lora", "dora", "qlora", "houlsby", "pfeiffer",
           "prefix", "prompt")
SHAPES = ((8, 128), (32, 32), (4, 256))


def main(*families):
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from test_inspect import estimate_and_peak

    from minillmclf.errors import InputError
    from tests.bench import cases
    torch.set_num_threads(1)
    worst = 0.0
    print(f"{'family':12}{'method':10}{'texts x tokens':>15}{'estimate':>12}{'tensors':>12}"
          f"{'ratio':>7}")
    with tempfile.TemporaryDirectory() as place:
        for family in families or (
                "bert", "roberta", "deberta", "gpt2", "llama", "mistral", "gemma", "t5"):
            folder = cases.body(place, family, 4, 256)
            kind = cases.config(family, 4, 256)["model_type"]
            for method in METHODS:
                for rows, length in SHAPES:
                    try:
                        said, most = estimate_and_peak(folder, kind, method, rows, length)
                    except InputError as error:
                        print(f"{family:12}{method:10} {str(error):.60}", flush=True)
                        break
                    worst = max(worst, abs(said / most - 1))
                    print(f"{family:12}{method:10}{f'{rows} x {length}':>15}{said / 1e6:>9.1f} MB"
                          f"{most / 1e6:>9.1f} MB{said / most:>7.2f}", flush=True)
    print(f"the worst is {worst:.0%} off")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
