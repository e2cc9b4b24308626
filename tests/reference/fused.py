"""A 4-bit layer in bf16 on a CPU with AVX512-BF16: bitsandbytes' fused product beside dequantising.

  python tests/reference/fused.py

Printed are milliseconds of one product, the best of seven, of x (rows, in) with a matrix (out, in).
"""
import time

import torch
import torch.nn.functional as F
from minillmclf.tuning import quant


def milliseconds(run):
    """The shortest of seven runs, after one that is not counted."""
    run()
    times = []
    for _ in range(7):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main():
    print("| out x in | rows | dequantised | fused | ratio |\n|---|---|---|---|---|")
    for size in (768, 4096):
        q = quant.quantise(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))
        packed = quant.interleave(q)
        for rows in (1, 8, 64):
            x = torch.randn(rows, size).bfloat16()
            plain = milliseconds(lambda: F.linear(x, quant.fast_dequantise(q, x.dtype)))
            fused = milliseconds(lambda: quant.fused_product(x, packed, q))
            print(f"| {size} x {size} | {rows} | {plain:.2f} | {fused:.2f} | {plain / fused:.1f} |")


if __name__ == "__main__":
    main()
