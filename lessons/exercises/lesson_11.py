"""Lesson 11, four bits: cases and known-wrong variants.

Each exercise is tried without the others': `standing_in` puts simple functions in their places.
"""
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from lessons.exercises.kit import Case, Exercise

TINY = 1e-38                                 # stands in for the absmax of a block of zeros
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def standing_in(**functions):
    """Functions of minillmclf/tuning/quant.py, replaced for a while."""
    from minillmclf.tuning import quant
    old = {name: getattr(quant, name) for name in functions}
    for name, function in functions.items():
        setattr(quant, name, function)
    try:
        yield
    finally:
        for name, function in old.items():
            setattr(quant, name, function)


def marked(absmax):
    """In place of quantise_absmax: three tensors that show what it was given."""
    return absmax * 2, absmax[:1] * 3, absmax.sum()


# ---------------------------------------------------------------- 11.1 quantise

def rows_of(x, size):
    return torch.nn.functional.pad(x, (0, -len(x) % size)).view(-1, size)


def pack(codes):
    return (codes[::2] << 4 | codes[1::2])[:, None]


def wrong_quantise(cut=rows_of, largest=lambda rows: rows.abs().amax(1), tiny=TINY,
                   pair=pack, length=lambda n: n + n % 2, kind_of=lambda kind: kind,
                   nested=lambda absmax, double: marked(absmax) if double else (absmax,)):
    """A variant: quantise with one thing in it changed."""
    def quantise(x, kind="nf4", blocksize=64, double=True):
        from minillmclf.errors import InputError
        from minillmclf.tuning.quant import BLOCKSIZES, CODES, Quantised, nearest_codes
        if kind not in CODES or blocksize not in BLOCKSIZES or x.dtype not in FLOATS:
            raise InputError("refused")
        if tiny is not None and (x.numel() == 0 or not x.isfinite().all()):
            raise InputError("refused")
        rows = cut(x.flatten().float(), blocksize)
        absmax = largest(rows)
        scaled = rows / absmax.clamp(min=tiny or TINY)[:, None]
        codes = nearest_codes(scaled, CODES[kind_of(kind)]).flatten()[:length(x.numel())]
        first, *more = nested(absmax, double)
        return Quantised(pair(codes), first, kind, blocksize, tuple(x.shape), x.dtype, *more)
    return quantise


def by_rows(x, kind="nf4", blocksize=64, double=True):
    """Blocks begin anew in each row of the matrix."""
    if not x.numel() or x.dim() < 2:
        return wrong_quantise()(x, kind, blocksize, double)
    parts = [wrong_quantise()(row, kind, blocksize, False) for row in x.flatten(0, -2)]
    absmax = torch.cat([part.absmax for part in parts])
    found = wrong_quantise()(x, kind, blocksize, double)
    found.packed = torch.cat([part.packed for part in parts])
    return SimpleNamespace(**vars(found) | {"absmax": marked(absmax)[0] if double else absmax})


def not_guarded(x, kind="nf4", blocksize=64, double=True):
    """A block of zeros is divided by 0."""
    def largest(rows):
        absmax = rows.abs().amax(1)
        rows[absmax == 0] = float("nan")
        return absmax
    return wrong_quantise(largest=largest)(x, kind, blocksize, double)


class Quantise(Exercise):
    """Bytes and absmax are compared exactly, or nearly: 1e-6."""
    tolerance = 1e-6
    variants = {
        "there is one absmax for the whole tensor":
            wrong_quantise(largest=lambda rows: rows.abs().amax().expand(len(rows)).clone()),
        "the largest number counts, not the largest absolute value":
            wrong_quantise(largest=lambda rows: rows.amax(1)),
        "blocks begin anew in each row of the matrix": by_rows,
        "the blocks have 64 weights, whatever blocksize says":
            wrong_quantise(cut=lambda x, size: rows_of(x, 64)),
        "the first number is in the low half of a byte":
            wrong_quantise(pair=lambda codes: (codes[1::2] << 4 | codes[::2])[:, None]),
        "each byte holds one number": wrong_quantise(pair=lambda codes: codes[:, None]),
        "the last of an odd number of weights is lost":
            wrong_quantise(length=lambda n: n - n % 2),
        "what fills up the last block is stored, too": wrong_quantise(length=lambda n: None),
        "kind is ignored": wrong_quantise(kind_of=lambda kind: "nf4"),
        "a block of zeros is divided by 0": not_guarded,
        "double is ignored": wrong_quantise(nested=lambda absmax, double: (absmax,)),
        "an empty tensor, or one that is not finite, is not refused": wrong_quantise(tiny=None),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)))

    def inputs(self, draw):
        def case(name, form, *shape, dtype=torch.float32, scale=0.3, **options):
            options = {"kind": "nf4", "blocksize": 64, "double": False} | options
            return Case(name, form, {"x": (draw.normal(*shape) * scale).to(dtype), **options})
        cases = [case("two blocks", "contract", 2, 64), case("many blocks", "parity", 9, 128),
                 case("rows that are no whole blocks", "parity", 6, 96),
                 case("a short last block, an odd number", "parity", 5, 27),
                 case("16 bits", "parity", 4, 64, dtype=torch.bfloat16),
                 case("blocks of 32", "parity", 3, 64, blocksize=32),
                 case("FP4", "parity", 4, 64, kind="fp4"),
                 case("a block of zeros", "parity", 3, 64),
                 case("doubly", "parity", 4, 64, double=True),
                 case("not finite", "parity", 2, 64), case("empty", "parity", 0, 64),
                 case("another kind", "parity", 2, 64, kind="int4")]
        found = {each.name: each.arguments["x"] for each in cases}
        found["a block of zeros"][1] = 0
        found["not finite"][1, 3] = float("nan")
        found["FP4"][found["FP4"].abs() < 0.1] = 0.2               # its two zeros are one number
        return cases

    def call(self, function, case):
        from minillmclf.errors import InputError
        with standing_in(quantise_absmax=marked):
            try:
                q = function(**case.arguments)
            except InputError:
                return {"refused": True}
        return {"packed": q.packed, "absmax": q.absmax, "nested": q.nested_absmax,
                "offset": q.offset, "shape": list(q.shape), "dtype": str(q.dtype),
                "kind": q.kind, "blocksize": q.blocksize}


# ---------------------------------------------------------------- 11.2 dequantise

def wrong_dequantise(halves=lambda packed: torch.cat([packed >> 4, packed & 15], 1).flatten(),
                     looked_up=lambda absmax, table: table[absmax.int()],
                     shares=lambda nested, n: nested.repeat_interleave(256)[:n],
                     add=lambda absmax, offset: absmax + offset,
                     spread=lambda absmax, size: absmax.repeat_interleave(size),
                     code=lambda q: q.kind, end=lambda q, dtype: dtype or q.dtype):
    """A variant: dequantise with one thing in it changed."""
    def dequantise(q, dtype=None):
        from minillmclf.tuning.quant import CODES, dynamic_map
        absmax = q.absmax
        if q.offset is not None:
            absmax = looked_up(absmax, dynamic_map()) * shares(q.nested_absmax, len(absmax))
            absmax = add(absmax, q.offset)
        codes = halves(q.packed)
        values = CODES[code(q)][codes.int()] * spread(absmax, q.blocksize)[:len(codes)]
        return values[:torch.Size(q.shape).numel()].view(q.shape).to(end(q, dtype))
    return dequantise


class Dequantise(Exercise):
    """Products of two fp32 numbers: 1e-6; in 16 bits they are rounded once more."""
    tolerance = 1e-6
    variants = {
        "the first number is taken from the low half of a byte": wrong_dequantise(
            lambda packed: torch.cat([packed & 15, packed >> 4], 1).flatten()),
        "all high halves come first, then all low ones": wrong_dequantise(
            lambda packed: torch.cat([packed >> 4, packed & 15], 0).flatten()),
        "the absmax take turns, weight by weight":
            wrong_dequantise(spread=lambda absmax, size: absmax.repeat(size)),
        "blocks have 64 weights, whatever blocksize says":
            wrong_dequantise(spread=lambda absmax, size: torch.cat([
                absmax.repeat_interleave(64), absmax[-1:].expand(len(absmax) * size)])),
        "the bytes of absmax are taken for numbers":
            wrong_dequantise(looked_up=lambda absmax, table: absmax / 127.5 - 1),
        "the first nested_absmax is taken for all":
            wrong_dequantise(shares=lambda nested, n: nested[0].expand(n)),
        "the offset is not added": wrong_dequantise(add=lambda absmax, offset: absmax),
        "the offset is subtracted": wrong_dequantise(add=lambda absmax, offset: absmax - offset),
        "kind is ignored": wrong_dequantise(code=lambda q: "nf4"),
        "the dtype that is asked for is ignored": wrong_dequantise(end=lambda q, dtype: q.dtype),
        "the result has 32 bits, whatever the tensor had":
            wrong_dequantise(end=lambda q, dtype: dtype or torch.float32),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, *shape, size=64, double=False, dtype=torch.float32, asked=None,
                 code="nf4"):
            n = torch.Size(shape).numel()
            blocks, pairs = -(-n // size), (n + 1) // 2
            given = {"packed": draw.integers(0, 256, pairs, 1).to(torch.uint8), "size": size,
                     "shape": list(shape), "kind": code, "like": torch.zeros(0, dtype=dtype),
                     "asked": None if asked is None else torch.zeros(0, dtype=asked)}
            given["absmax"] = draw.integers(0, 256, blocks).to(torch.uint8) if double \
                else draw.uniform(blocks) + 0.1
            if double:
                given |= {"nested": draw.uniform(-(-blocks // 256)) + 0.2, "offset":
                          draw.uniform(1)[0] + 1}
            return Case(name, kind, given)
        return [case("two blocks", "contract", 2, 64), case("many blocks", "parity", 7, 96),
                case("an odd number", "parity", 5, 27), case("a vector", "parity", 130),
                case("blocks of 32", "parity", 4, 48, size=32),
                case("FP4", "parity", 3, 64, code="fp4"),
                case("16 bits", "parity", 4, 64, dtype=torch.bfloat16),
                case("32 bits are asked for", "parity", 2, 64, dtype=torch.bfloat16,
                     asked=torch.float32),
                case("doubly", "parity", 6, 64, double=True),
                case("doubly, two nested blocks", "parity", 90, 100, size=32, double=True)]

    def call(self, function, case):
        from minillmclf.tuning.quant import Quantised
        g = case.arguments
        q = Quantised(g["packed"], g["absmax"], g["kind"], g["size"], tuple(g["shape"]),
                      g["like"].dtype, g.get("nested"), g.get("offset"))
        return {"tensor": function(q) if g["asked"] is None else function(q, g["asked"].dtype)}


# ---------------------------------------------------------------- 11.3 quantise_absmax

def wrong_absmax(offset=lambda absmax: absmax.mean(), told=lambda offset: offset, size=256,
                 largest=lambda rows: rows.abs().amax(1), scaled=lambda x: x, rounded=None,
                 taken=lambda offset: offset):
    """A variant: quantise_absmax with one thing in it changed."""
    def quantise_absmax(absmax):
        from minillmclf.tuning.quant import dynamic_map, nearest_codes
        middle = offset(absmax)
        rows = rows_of(absmax - taken(middle), size)
        nested = largest(rows)
        parts = scaled((rows / nested[:, None]).nan_to_num(nan=-1.0).clamp(-1, 1))
        codes = rounded(parts) if rounded else nearest_codes(parts, dynamic_map())
        return codes.flatten()[:len(absmax)], nested, told(middle)
    return quantise_absmax


class QuantiseAbsmax(Exercise):
    """Of two neighbouring codes at a border both are right: bytes may differ by 1, numbers by 1e-5.
    """
    tolerance = 1e-5
    variants = {
        "the mean is not subtracted": wrong_absmax(lambda absmax: torch.zeros(())),
        "the smallest absmax is subtracted, not the mean":
            wrong_absmax(lambda absmax: absmax.min()),
        "the mean is subtracted, and not given back":
            wrong_absmax(told=lambda offset: torch.zeros(())),
        "the mean is given back, and not subtracted":
            wrong_absmax(taken=lambda offset: torch.zeros(())),
        "one nested_absmax is shared by all":
            wrong_absmax(largest=lambda rows: rows.abs().amax().expand(len(rows)).clone()),
        "64 absmax share a nested_absmax, not 256": wrong_absmax(size=64),
        "the largest number counts, not the largest absolute value":
            wrong_absmax(largest=lambda rows: rows.amax(1)),
        "the sign is lost": wrong_absmax(scaled=lambda x: x.abs()),
        "the codes are evenly spaced, not those of dynamic_map": wrong_absmax(
            rounded=lambda x: ((x + 1) * 127.5).round().to(torch.uint8)),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 1, 1, 2, 2)))

    def inputs(self, draw):
        def case(name, kind, absmax):
            return Case(name, kind, {"absmax": absmax})
        steep = draw.uniform(600) * 0.1 + 0.2
        steep[:256] += draw.uniform(256)
        low = draw.uniform(300) * 0.2 + 2
        low[17] = 0.1
        return [case("forty", "contract", draw.uniform(40) + 0.5),
                case("less than a block", "parity", draw.uniform(100) + 0.1),
                case("three blocks, the first with larger ones", "parity", steep),
                case("one is far below the mean", "parity", low),
                case("all are equal", "parity", torch.full((70,), 0.25))]

    def call(self, function, case):
        from minillmclf.tuning.quant import dynamic_map
        codes, nested, offset = function(case.arguments["absmax"])
        found = {"nested_absmax": nested, "offset": offset, "type of codes": str(codes.dtype)}
        if case.name == "all are equal":                           # any code is right, times 0
            return found | {"back": dynamic_map()[codes.int()] * nested + offset}
        return found | {"codes": codes.float() * 0.9e-5}           # so 1 is within the tolerance


# ---------------------------------------------------------------- 11.4 FrozenLinear.backward

def wrong_backward(product=lambda grad, W: grad @ W,
                   bias=lambda grad: grad.reshape(-1, grad.shape[-1]).sum(0),
                   needed=lambda ctx: ctx.needs_input_grad, dtype=lambda ctx, grad: grad.dtype,
                   order=lambda grad_x, grad_bias, grad: (grad_x, grad_bias, None)):
    """A variant: backward with one thing in it changed."""
    def backward(ctx, grad):
        from minillmclf.tuning.quant import fast_dequantise
        W, asked = fast_dequantise(ctx.q, dtype(ctx, grad)), needed(ctx)
        return order(product(grad, W) if asked[0] else None, bias(grad) if asked[1] else None,
                     grad)
    return backward


class Backward(Exercise):
    """fp32 sums of at most 12 products of numbers near 1: 1e-5; in 16 bits three digits."""
    variants = {
        "the product is with W transposed": wrong_backward(lambda grad, W: grad @ W.T),
        "the gradient of y is passed on as it is": wrong_backward(lambda grad, W: grad * 1),
        "W comes back in its own dtype, not in that of the gradient":
            wrong_backward(dtype=lambda ctx, grad: ctx.q.dtype),
        "the bias gets the sum over the first dimension alone":
            wrong_backward(bias=lambda grad: grad.sum(0)),
        "the bias gets the mean, not the sum":
            wrong_backward(bias=lambda grad: grad.reshape(-1, grad.shape[-1]).mean(0)),
        "what is not needed is computed, too": wrong_backward(needed=lambda ctx: (True, True)),
        "the bias gets no gradient": wrong_backward(
            needed=lambda ctx: (ctx.needs_input_grad[0], False)),
        "the gradients are in another order": wrong_backward(
            order=lambda grad_x, grad_bias, grad: (grad_bias, grad_x, None)),
        "the frozen weight gets a gradient, too": wrong_backward(
            order=lambda grad_x, grad_bias, grad: (grad_x, grad_bias, grad.sum())),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 2, 2, 3, 3, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, shape, width, needs=(True, True), dtype=torch.float32,
                 tolerance=None):
            return Case(name, kind, {
                "grad": draw.normal(*shape).to(dtype), "W": draw.normal(shape[-1], width) * 0.3,
                "needs": [*needs, False], "own": torch.zeros(0)}, tolerance)
        return [case("both", "contract", (5, 4), 6), case("rows", "parity", (5, 12), 8),
                case("a square matrix", "parity", (3, 6), 6),
                case("batch and tokens", "parity", (2, 3, 4), 7),
                case("x alone", "parity", (4, 5), 3, (True, False)),
                case("the bias alone", "parity", (4, 5), 3, (False, True)),
                case("one vector", "parity", (5,), 3),
                case("16 bits, W was in 32", "parity", (4, 6), 8, dtype=torch.bfloat16,
                     tolerance=0.05)]

    def call(self, function, case):
        given = case.arguments

        def back(q, dtype=None):
            return given["W"].to(dtype or q.dtype)
        ctx = SimpleNamespace(q=SimpleNamespace(dtype=given["own"].dtype),
                              needs_input_grad=tuple(given["needs"]))
        with standing_in(fast_dequantise=back, dequantise=back):
            return {"gradients": list(function(ctx, given["grad"]))}
