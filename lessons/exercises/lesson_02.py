"""Lesson 2, attention by hand: cases and known-wrong variants.

The shapes' letters are those of minillmclf/models/layers.py.
"""
import math

import torch

from lessons.exercises.kit import Case, Exercise, rows_of

# ---------------------------------------------------------------- 2.1 attention_by_hand


def wrong_attention(factor=None, mask=None, dim=-1, tiled=False, after=False):
    """A variant: attention with one thing in it changed.

    factor(q, scale): of the scores; mask(rows, seen): True for keys that are seen.
    """
    factor = factor or (lambda q, scale: q.shape[-1] ** -0.5 if scale is None else scale)
    mask = mask or (lambda rows, seen: rows.key_mask[:, None, None, :] if seen is None else seen)

    def attention(q, k, v, rows, seen=None, scale=None):
        q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)
        times = q.shape[1] // k.shape[1]
        k, v = (x.repeat(1, times, 1, 1) if tiled else x.repeat_interleave(times, 1)
                for x in (k, v))
        scores, keys = q @ k.transpose(-2, -1) * factor(q, scale), mask(rows, seen)
        if after:
            return rows.merge_heads((scores.softmax(dim) * keys) @ v)
        return rows.merge_heads(scores.masked_fill(~keys, float("-inf")).softmax(dim) @ v)
    return attention


def masked_with_zero(q, k, v, rows, seen=None, scale=None):
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = rows.key_mask[:, None, None, :] if seen is None else seen
    return rows.merge_heads(scores.masked_fill(~seen, 0.0).softmax(-1) @ v)


def over_queries(q, k, v, rows, seen=None, scale=None):
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = rows.key_mask[:, None, None, :] if seen is None else seen
    return rows.merge_heads(scores.masked_fill(~seen, -1e9).softmax(-2) @ v)


def overflowing(q, k, v, rows, seen=None, scale=None):
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = rows.key_mask[:, None, None, :] if seen is None else seen
    weights = scores.masked_fill(~seen, float("-inf")).exp()
    return rows.merge_heads(weights / weights.sum(-1, keepdim=True) @ v)


class Attention(Exercise):
    """Scores, mask, softmax, mean. fp32 sums of at most 8 products of numbers near 1: 1e-5.

    Scores near 100 have an error near 1e-5 themselves, and so have the logarithms of the weights.
    """
    variants = {
        "the scores are not divided by the square root of d":
            wrong_attention(lambda q, scale: 1.0 if scale is None else scale),
        "the scores are divided by d, not by its square root":
            wrong_attention(lambda q, scale: 1 / q.shape[-1] if scale is None else scale),
        "the scores are divided by the square root of the model's width":
            wrong_attention(lambda q, scale: (q.shape[1] * q.shape[-1]) ** -0.5
                            if scale is None else scale),
        "the argument scale is ignored":
            wrong_attention(lambda q, scale: q.shape[-1] ** -0.5),
        "padding is attended to":
            wrong_attention(mask=lambda rows, seen: torch.ones_like(rows.key_mask)
                            [:, None, None, :] if seen is None else seen),
        "the argument seen is ignored":
            wrong_attention(mask=lambda rows, seen: rows.key_mask[:, None, None, :]),
        "the mask is the wrong way round":
            wrong_attention(mask=lambda rows, seen: ~rows.key_mask[:, None, None, :]
                            if seen is None else ~seen),
        "what is not seen gets the score 0": masked_with_zero,
        "the mask comes after the softmax": wrong_attention(after=True),
        "the softmax runs over the queries": over_queries,
        "exp of large scores overflows": overflowing,
        "shared heads are tiled: head 0 serves heads 0, 2, 4": wrong_attention(tiled=True),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 4, 1, 1, 1, 2, 2, 3)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", K=4, causal=False, scale=None):
            mask = draw.mask(lengths, side=side)
            q, k, v = (draw.normal(sum(lengths), heads, 8) for heads in (4, K, K))
            seen = causal_seen(mask) if causal else None
            return Case(name, kind, {"q": q, "k": k, "v": v, "mask": mask, "seen": seen,
                                     "scale": scale})
        large = case("large scores", "parity", [3, 4], scale=40.0)
        large.tolerance = 1e-4
        return [case("rows of 3 and 5 tokens", "contract", [3, 5]),
                case("one token", "contract", [1]),
                case("no padding", "parity", [4, 4]),
                case("padding on the right", "parity", [2, 6, 3]),
                case("padding on the left", "parity", [5, 2, 1], "left"),
                case("heads that share keys", "parity", [3, 5], K=2),
                case("causal", "parity", [4, 2], causal=True),
                case("another scale", "parity", [3, 4], scale=0.7),
                large]

    def call(self, function, case):
        given = dict(case.arguments)
        rows = rows_of(given.pop("mask"))
        return {"output": function(given["q"], given["k"], given["v"], rows, given["seen"],
                                   given["scale"])}


def causal_seen(mask):
    """(B, 1, T, T), True for the tokens up to itself."""
    tokens = mask.bool()
    upto = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    own = torch.eye(mask.shape[1], dtype=torch.bool)          # a query at padding sees something
    return ((tokens[:, None, :] & upto) | own)[:, None]


# ---------------------------------------------------------------- 2.2 Rows.compute_causal_mask

def wrong_causal(near=lambda distance, window: (distance >= 0) & (distance < window),
                 keys=lambda rows, count: rows.key_mask[:count, None, :]):
    def causal_mask(rows, window):
        distance = rows.distance()
        return (near(distance, window) & keys(rows, len(distance))).unsqueeze(1)
    return causal_mask


def without_heads(rows, window):
    return wrong_causal()(rows, window).squeeze(1)


class CausalMask(Exercise):
    """True and False: compared exactly."""
    variants = {
        "a token does not see itself": wrong_causal(lambda d, window: (d > 0) & (d < window)),
        "the window is one too long": wrong_causal(lambda d, window: (d >= 0) & (d <= window)),
        "the window is ignored": wrong_causal(lambda d, window: d >= 0),
        "it looks forward instead of back":
            wrong_causal(lambda d, window: (d <= 0) & (-d < window)),
        "the window reaches both ways": wrong_causal(lambda d, window: d.abs() < window),
        "padding is seen": wrong_causal(keys=lambda rows, count: True),
        "the mask of the tokens is laid over the queries":
            wrong_causal(keys=lambda rows, count: rows.mask[:count, :, None]),
        "True where a key is not seen":
            lambda rows, window: ~wrong_causal()(rows, window),
        "the dimension of the heads is missing": without_heads,
    }
    hint_for = dict(zip(variants, (0, 1, 1, 0, 0, 2, 2, 0, 3)))

    def inputs(self, draw):
        def case(name, kind, lengths, window, side="right"):
            more = int(draw.integers(0, 4))
            mask = draw.mask([length + more for length in lengths], side=side)
            return Case(name, kind, {"mask": mask, "window": window})
        return [case("rows of 2 and 4 tokens", "contract", [2, 4], math.inf),
                case("no padding", "parity", [4, 4], math.inf),
                case("padding on the right", "parity", [5, 3, 1], math.inf),
                case("padding on the left", "parity", [2, 5, 3], math.inf, "left"),
                case("a window of 3", "parity", [6, 4], 3),
                case("a window of 2, padding on the left", "parity", [3, 6], 2, "left"),
                case("a window of 1", "parity", [3, 3], 1)]

    def call(self, function, case):
        return {"output": function(rows_of(case.arguments["mask"]), case.arguments["window"])}


# ---------------------------------------------------------------- 2.3 Rows.merge_heads

def not_transposed(rows, x):
    B, H, T, d = x.shape
    return rows.unpad(x.reshape(B, T, H * d))


def numbers_first(rows, x):
    return rows.unpad(x.permute(0, 2, 3, 1).flatten(2))


def padding_kept(rows, x):
    return x.transpose(1, 2).flatten(2).flatten(0, 1)


def heads_added(rows, x):
    return rows.unpad(x.sum(1).repeat(1, 1, x.shape[1]))


def last_head_first(rows, x):
    return rows.unpad(x.flip(1).transpose(1, 2).flatten(2))


def still_padded(rows, x):
    return x.transpose(1, 2).flatten(2)


class MergeHeads(Exercise):
    """Numbers move and do not change: compared to 1e-6."""
    tolerance = 1e-6
    variants = {"the heads are not moved behind the tokens": not_transposed,
                "the numbers of the heads alternate": numbers_first,
                "padding is kept": padding_kept,
                "the heads are added up": heads_added,
                "the last head stands first": last_head_first,
                "the rows are still padded": still_padded}
    hint_for = dict(zip(variants, (0, 0, 1, 0, 0, 1)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", heads=3):
            return Case(name, kind, {"x": draw.normal(len(lengths), heads, max(lengths), 4),
                                     "mask": draw.mask(lengths, side=side)})
        return [case("rows of 2 and 5 tokens", "contract", [2, 5]),
                case("no padding", "parity", [3, 3]),
                case("padding on the right", "parity", [4, 2, 3]),
                case("padding on the left", "parity", [1, 5], "left"),
                case("two heads", "parity", [2, 3], heads=2)]

    def call(self, function, case):
        return {"output": function(rows_of(case.arguments["mask"]), case.arguments["x"])}


# ---------------------------------------------------------------- 2.4 root_mean_square_norm

def wrong_norm(mean=lambda x: x.square().mean(-1, keepdim=True), centre=False, cast=True,
               back=True, root=lambda mean, eps: (mean + eps).sqrt()):
    def norm(x, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) if cast else x
        wide = wide - wide.mean(-1, keepdim=True) if centre else wide
        result = wide / root(mean(wide), eps)
        return result.to(x.dtype) if back else result
    return norm


class RootMeanSquareNorm(Exercise):
    """fp32 sums of 6 squares near 1: 1e-5. fp16 keeps 11 bits: 2 of its steps near 2 are 4e-3."""
    variants = {
        "the mean is subtracted first, as in a layer norm": wrong_norm(centre=True),
        "eps is added to the root": wrong_norm(root=lambda mean, eps: mean.sqrt() + eps),
        "eps is ignored": wrong_norm(root=lambda mean, eps: mean.sqrt()),
        "the squares are added up, without a mean":
            wrong_norm(lambda x: x.square().sum(-1, keepdim=True)),
        "the mean of the sizes takes the place of the root of the mean square":
            wrong_norm(lambda x: x.abs().mean(-1, keepdim=True).square()),
        "one mean for all vectors": wrong_norm(lambda x: x.square().mean()),
        "half precision is squared in half precision": wrong_norm(cast=False),
        "the result stays in fp32": wrong_norm(back=False),
        "the root is forgotten": wrong_norm(root=lambda mean, eps: mean + eps),
        "eps is added to the root, and half precision is squared in half precision":
            wrong_norm(cast=False, root=lambda mean, eps: mean.sqrt() + eps),
    }
    hint_for = dict(zip(variants, (0, 1, 1, 0, 0, 3, 2, 2, 1, 1)))

    def inputs(self, draw):
        return [Case("bf16", "contract", {"x": draw.normal(3, 6).bfloat16(), "eps": 1e-6}),
                Case("fp64", "contract", {"x": draw.normal(2, 6).double(), "eps": 1e-6}),
                Case("vectors", "parity", {"x": draw.normal(5, 6) + 0.5, "eps": 1e-6}),
                Case("rows of vectors", "parity", {"x": draw.normal(2, 3, 6), "eps": 1e-6}),
                Case("a large eps", "parity", {"x": draw.normal(4, 6), "eps": 0.5}),
                Case("a vector of zeros", "parity", {"x": torch.zeros(1, 6), "eps": 1e-6}),
                Case("large fp16 numbers", "parity",
                     {"x": (draw.normal(3, 6) * 300).half(), "eps": 1e-6}, 4e-3)]


# ---------------------------------------------------------------- 2.5 Rows.pad

def end_to_end(rows, x):
    padded = x.new_zeros(rows.mask.numel(), *x.shape[1:])
    padded[:len(x)] = x
    return padded.unflatten(0, rows.mask.shape)


def from_column_0(rows, x):
    padded = x.new_zeros(*rows.mask.shape, *x.shape[1:])
    for row, tokens in zip(padded, x.split(rows.lengths.tolist())):
        row[:len(tokens)] = tokens
    return padded


def last_token_repeated(rows, x):
    padded = from_column_0(rows, x)
    for row, tokens in zip(padded, x.split(rows.lengths.tolist())):
        row[:] = tokens[-1]
    padded[rows.mask] = x
    return padded


def filled(value):
    def pad(rows, x):
        padded = x.new_full((*rows.mask.shape, *x.shape[1:]), value)
        padded[rows.mask] = x
        return padded
    return pad


def always_fp32(rows, x):
    padded = torch.zeros(*rows.mask.shape, *x.shape[1:])
    padded[rows.mask] = x.float()
    return padded


def heads_merged(rows, x):
    padded = x.new_zeros(*rows.mask.shape, x[0].numel())
    padded[rows.mask] = x.flatten(1)
    return padded


def in_one_row(rows, x):
    padded = x.new_zeros(rows.mask.numel(), *x.shape[1:])
    padded[rows.mask.flatten()] = x
    return padded


class Pad(Exercise):
    """Numbers move and do not change: compared to 1e-6."""
    tolerance = 1e-6
    variants = {"the tokens stay end to end, and all padding follows": end_to_end,
                "each row begins in column 0, also with padding on the left": from_column_0,
                "padding repeats the last token of its row": last_token_repeated,
                "padding is 1": filled(1),
                "padding is -inf": filled(-math.inf),
                "the result is fp32, whatever came": always_fp32,
                "the heads are merged": heads_merged,
                "the rows of the batch are not parted": in_one_row}
    hint_for = dict(zip(variants, (0, 1, 2, 2, 2, 3, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", shape=(3,), dtype=torch.float32):
            return Case(name, kind, {"x": draw.normal(sum(lengths), *shape).to(dtype),
                                     "mask": draw.mask(lengths, side=side)})
        return [case("rows of 2 and 4 tokens", "contract", [2, 4]),
                case("bf16", "contract", [3, 1], dtype=torch.bfloat16),
                case("no padding", "parity", [3, 3]),
                case("padding on the right", "parity", [2, 5, 3]),
                case("padding on the left", "parity", [4, 1, 2], "left"),
                case("padding on both sides", "parity", [5, 1, 3], "both"),
                case("heads", "parity", [1, 4], shape=(2, 3))]

    def call(self, function, case):
        return {"output": function(rows_of(case.arguments["mask"]), case.arguments["x"])}
