"""Four bits a weight: an eighth of fp32's memory, and a linear map that passes gradients on.

Quantising: cut the weights into blocks of 64, divide each block by its largest absolute value
(absmax), and store for each the nearest of 16 numbers, two to a byte. The 16 numbers of NF4 are
quantiles of the normal distribution, as weights are about normal; those of FP4 have a sign, two
bits of exponent and one of fraction. An absmax costs 32/64 bits a weight; "double quantisation"
turns it into a byte of its own: 4.127 bits in all.

`quantise` and `dequantise` are plain torch and equal bitsandbytes' CPU kernels to the bit;
`FrozenLinear` and `fused_product` compute on the kernels. Not here: the layer (linear4bit.py), its
files (quant_files.py), the adapters trained beside it (lora.py), 8-bit layers.
Dettmers et al. 2023, "QLoRA", sections 2 and 3; the 8-bit map: Dettmers et al. 2022, "8-bit
Optimizers via Block-wise Quantization".
"""
import logging
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from ..errors import InputError

NESTED_BLOCKSIZE = 256                           # so many absmax share one nested_absmax
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
TINY_ABSMAX = 1e-38                              # stands in for the absmax of a block of zeros
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODES = {                                        # what each of the 16 half-bytes means
    "nf4": torch.tensor([  # the normal distribution's quantiles, 7 below and 8 above 0, / largest
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], device="cpu"),
    "fp4": torch.tensor([0, 1 / 16, 8, 12, 4, 6, 2, 3, 0, -1 / 16, -8, -12, -4, -6, -2, -3],
                        device="cpu") / 12,
}


# ----------------------------------------------------------------------------------------- by hand

@cache
def dynamic_map(device="cpu"):
    """The 256 numbers of the 8-bit dynamic type, ascending: 0, 1, and in each decade that ends at
    10^(i-6), i from 0 to 6, 2^i numbers of each sign: few for small ones, more for large ones."""
    values = [torch.tensor([0.0, 1.0], device="cpu")]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32, device="cpu")
        steps = (edges[:-1] + edges[1:]) / 2 * 10.0**(i - 6)
        values += [steps, -steps]
    return torch.cat(values).sort().values.to(device)


@dataclass
class Quantised:
    """A tensor in four bits a number.

    packed: (n/2, 1) uint8, two numbers a byte, the first in the high half; absmax: (blocks,) fp32;
    shape, dtype: of the tensor as it was. With double quantisation absmax is (blocks,) uint8, an
    index into `dynamic_map`, times nested_absmax: (blocks/256,) fp32, plus offset: () fp32.
    """
    packed: torch.Tensor
    absmax: torch.Tensor
    kind: str
    blocksize: int
    shape: tuple
    dtype: torch.dtype
    nested_absmax: torch.Tensor | None = None
    offset: torch.Tensor | None = None


def in_blocks(x, size):
    """(n,) -> (n/size, size), the last row filled up with zeros."""
    return F.pad(x, (0, -len(x) % size)).view(-1, size)


def nearest_codes(x, code):
    """For each number of x the index of the nearest in `code`, uint8; of two, of the lower one."""
    ascending, order = code.to(x.device).sort(stable=True)
    borders = (ascending[1:] + ascending[:-1]) / 2
    return order.to(torch.uint8)[torch.bucketize(x, borders, out_int32=True)]


def quantise(x, kind="nf4", blocksize=64, double=True):
    """A float tensor of any shape -> Quantised. double: the absmax too. InputError for an unknown
    kind or blocksize, and for a tensor without numbers or with one that is not finite."""
    if kind not in CODES or blocksize not in BLOCKSIZES:
        raise InputError(f"4-bit kind {kind!r}, blocksize {blocksize}: known are "
                         f"{', '.join(CODES)} with {BLOCKSIZES}")
    if x.dtype not in FLOATS.values() or x.numel() == 0 or not x.isfinite().all():
        raise InputError(f"a {x.dtype} tensor {tuple(x.shape)} cannot be quantised: finite numbers "
                         f"are expected, at least one, in {', '.join(FLOATS)}")
    rows = in_blocks(x.detach().flatten().float(), blocksize)           # (blocks, blocksize)
    absmax = rows.abs().amax(1)                                         # (blocks,)
    scaled = rows * (1 / absmax.clamp(min=TINY_ABSMAX))[:, None]        # in [-1, 1]
    if x.numel() % blocksize:                   # a last block cut short: bitsandbytes divides
        absmax[-1] = absmax[-1].clamp(min=TINY_ABSMAX)
        scaled[-1] = rows[-1] / absmax[-1]
    even = x.numel() + x.numel() % 2                                    # padded with a 0.0
    codes = nearest_codes(scaled, CODES[kind]).flatten()[:even]
    packed = (codes[::2] << 4 | codes[1::2])[:, None]                   # (n/2, 1)
    nested = offset = None
    if double:                                  # on the CPU: a GPU's mean may differ in a bit
        absmax, nested, offset = (part.to(x.device) for part in quantise_absmax(absmax.cpu()))
    return Quantised(packed, absmax, kind, blocksize, tuple(x.shape), x.dtype, nested, offset)


def quantise_absmax(absmax):
    """(blocks,) fp32 -> bytes (blocks,), nested_absmax (blocks/256,), offset ().

    No absmax is below 0: unless their mean (offset) is subtracted, half of the map is never used.
    """
    offset = absmax.mean()
    rows = in_blocks(absmax - offset, NESTED_BLOCKSIZE)                 # (blocks/256, 256)
    nested = rows.abs().amax(1)
    scaled = (rows * (1 / nested)[:, None]).nan_to_num(nan=-1.0).clamp(-1, 1)      # NaN: all equal
    # As the CPU kernel: it rounds to 2^16 steps first, which picks another code once in 600 times.
    steps = ((scaled + 1) * 0.5 * 65535 + 0.5).int()
    codes = nearest_codes(steps.float() * 2 / 65535 - 1, dynamic_map())
    return codes.flatten()[:len(absmax)], nested, offset


def dequantise(q, dtype=None):
    """Quantised -> the tensor, in the dtype that it had, or in another."""
    absmax = q.absmax
    if q.offset is not None:
        scale = q.nested_absmax.repeat_interleave(NESTED_BLOCKSIZE)[:len(absmax)]
        absmax = dynamic_map(scale.device)[absmax.int()] * scale + q.offset          # (blocks,)
    codes = torch.cat([q.packed >> 4, q.packed & 15], 1).flatten()               # (n,) or one more
    absmax = absmax.repeat_interleave(q.blocksize)[:len(codes)]
    values = CODES[q.kind].to(codes.device)[codes.int()] * absmax
    return values[:torch.Size(q.shape).numel()].view(q.shape).to(dtype or q.dtype)


def bits_per_parameter(blocksize=64, double=True):
    """What a weight costs: 4 bits and its share of the absmax. 4.5, or 4.127 doubly quantised."""
    return 4 + (8 / blocksize + 32 / (blocksize * NESTED_BLOCKSIZE) if double else 32 / blocksize)


# --------------------------------------------------------------------------------- on the kernels

def import_kernels():
    """bitsandbytes' functions, imported at first use, since this takes seconds."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)   # unused kernels
    try:
        from bitsandbytes import functional
        return functional
    except ImportError as error:
        raise InputError(f"4-bit layers compute with bitsandbytes, which is not there ({error}): "
                         f"pip install 'bitsandbytes>=0.50'") from None


def nested_state(q):
    """What bitsandbytes knows of the bytes of a doubly quantised absmax."""
    code = dynamic_map(q.absmax.device)
    return import_kernels().QuantState(q.nested_absmax, code=code, blocksize=NESTED_BLOCKSIZE,
                                       dtype=torch.float32)


def fast_dequantise(q, dtype):
    """What `dequantise` computes, by bitsandbytes' kernel, on the device of the weights."""
    bnb = import_kernels()
    nested = None if q.offset is None else nested_state(q)
    # Read as one long row of an even length. Where a matrix' width is no multiple of the blocksize,
    # the AVX-512 kernel of 0.50.2 takes the absmax of other blocks without a warning: at width 96
    # the error is 0.28 instead of 0.09. Odd lengths take a slow path in the kernel.
    row = torch.Size([2 * len(q.packed)])
    state = bnb.QuantState(q.absmax, row, None, q.blocksize, q.kind, dtype, q.offset, nested)
    values = bnb.dequantize_4bit(q.packed, state).flatten()
    return values[:torch.Size(q.shape).numel()].view(q.shape)


# ------------------------------------------------------ without dequantising: few rows, on a CPU

FEW_ROWS = 64            # rows of x up to which the fused product is the faster one
LANES = 32               # rows of W whose half-bytes it reads at a time


@cache
def has_fused_product():
    """Has bitsandbytes a 4-bit product for this CPU (AVX512-BF16)?"""
    return bool(import_kernels().has_avx512bf16())


def can_fuse(x, q):
    """Is x (..., in) bf16 of few rows on a CPU, and does the shape of the Quantised q fit?"""
    rows, (out, width) = x.numel() // x.shape[-1], q.shape
    return (x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < rows <= FEW_ROWS
            and out % LANES == 0 and width % q.blocksize == 0 and has_fused_product())


def interleave(q):
    """Quantised (out, in) -> what the fused product reads: bytes (out, in/2) of two weights each,
    and absmax (in/blocksize, out) in bf16.

    Bytes of 32 rows of W stand together, 32 bytes for a pair of columns. Byte j holds row j // 2
    (low half) and row j // 2 + 16 (high half), of the first column if j is even, else the second.
    """
    out, width = q.shape
    low, high = q.packed.view(out // LANES, 2, LANES // 2, width // 2).unbind(1)
    first, second = low >> 4 | high & 0xF0, low & 0x0F | high << 4        # (out/32, 16, in/2)
    packed = torch.stack([first, second], -1).transpose(1, 2).reshape(out, width // 2)
    absmax = q.absmax
    if q.offset is not None:
        absmax = import_kernels().dequantize_blockwise(absmax, nested_state(q)) + q.offset
    absmax = absmax.view(out, width // q.blocksize).T.to(torch.bfloat16)
    return packed.contiguous(), absmax.contiguous()


def fused_product(x, interleaved, q):
    """x W^T for few rows of x in bf16 -> (..., out), without W in memory. interleaved: of
    `interleave`, which rounds each absmax to bf16; dequantising rounds each weight instead."""
    packed, absmax = interleaved
    return torch.ops.bitsandbytes.gemv_4bit(x, packed, q.shape, absmax, CODES[q.kind], q.blocksize)


class FrozenLinear(torch.autograd.Function):
    """x W^T + b with gradients for x and b. The forward and the backward pass each dequantise W and
    drop it: between them only the packed weight is in memory."""

    @staticmethod
    def forward(ctx, x, bias, q):
        ctx.q = q
        return F.linear(x, fast_dequantise(q, x.dtype), bias)                          # (..., out)

    @staticmethod
    def backward(ctx, grad):
        """grad (..., out) -> of x (..., in), of the bias (out,), None of q; None if not needed."""
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ fast_dequantise(ctx.q, grad.dtype)                          # (..., in)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)                            # (out,)
        return grad_x, grad_bias, None
