"""Lesson 5, the decoder: cases and known-wrong variants.

The shapes' letters are those of minillmclf/models/layers.py.
"""
import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from lessons.exercises.kit import Case, Exercise, rows_of

ALL_DROPPED = 1 - 1e-7                       # of dropout: nothing is left

# ---------------------------------------------------------------- 5.1 LlamaLayer.attend


def wrong_block(enter=lambda layer, x: layer.attention_norm(x), rotation=lambda given: given,
                join=lambda layer, x, change, rows: rows.queries(x) + change):
    """A variant: attend with one thing in it changed."""
    def attend(self, x, rows, given):
        return join(self, x, self.attention(enter(self, x), rows, rotation(given)), rows)
    return attend


def norm_of(weight, eps):
    """A root-mean-square norm that needs no exercise."""
    return lambda x: F.rms_norm(x, x.shape[-1:], weight, eps)


class PreNorm(Exercise):
    """A norm and sums of 6 products of numbers near 1: 1e-5. Attention is a stand-in that mixes
    all tokens and uses the rotation, so that no other exercise is needed."""
    variants = {
        "the norm comes after the sum, as in post-LN": wrong_block(
            enter=lambda layer, x: x,
            join=lambda layer, x, change, rows: layer.attention_norm(rows.queries(x) + change)),
        "the norm is of the change: x + norm(attention(x))": wrong_block(
            enter=lambda layer, x: x,
            join=lambda layer, x, change, rows: rows.queries(x) + layer.attention_norm(change)),
        "there is no norm": wrong_block(enter=lambda layer, x: x),
        "the norm is that of the MLP": wrong_block(enter=lambda layer, x: layer.mlp_norm(x)),
        "what came in is not added":
            wrong_block(join=lambda layer, x, change, rows: change),
        "the normed x is added, not x": wrong_block(
            join=lambda layer, x, change, rows: rows.queries(layer.attention_norm(x)) + change),
        "the sum is normed once more": wrong_block(
            join=lambda layer, x, change, rows: layer.attention_norm(rows.queries(x) + change)),
        "x of the first M tokens is added, not that of the queries": wrong_block(
            join=lambda layer, x, change, rows: x[:len(change)] + change),
        "cosines and sines are exchanged":
            wrong_block(rotation=lambda given: (given[1], given[0])),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 1, 0, 2, 3)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", which=None, eps=1e-5):
            count = sum(lengths)
            return Case(name, kind, {
                "x": draw.normal(count, 6), "mask": draw.mask(lengths, side=side), "which": which,
                "norms": draw.uniform(2, 6) + 0.5, "eps": eps, "matrix": draw.normal(6, 6) * 0.4,
                "cos": draw.uniform(count, 1, 3), "sin": draw.uniform(count, 1, 3) - 1})
        return [case("rows of 3 and 5 tokens", "contract", [3, 5]),
                case("one token", "contract", [1]),
                case("padding on the right", "parity", [3, 6, 1]),
                case("padding on the left", "parity", [4, 2], "left"),
                case("a large eps", "parity", [3, 3], eps=0.5),
                case("the last token of each row alone", "parity", [3, 5], which="last"),
                case("the last two tokens of each row", "parity", [3, 5, 4], "left", 2)]

    def call(self, function, case):
        from minillmclf.models.last_token import FewQueries
        given = case.arguments
        rows = rows_of(given["mask"])
        rows = rows if given["which"] is None else FewQueries(rows, given["which"])

        def attention(x, rows, rotation):
            cos, sin = rotation
            mixed = x @ given["matrix"] + x.mean(0) + cos.sum((1, 2))[:, None] - sin.mean()
            return rows.queries(mixed)
        norms = [norm_of(weight, given["eps"]) for weight in given["norms"]]
        layer = SimpleNamespace(attention=attention, attention_norm=norms[0], mlp_norm=norms[1])
        return {"x": function(layer, given["x"], rows, (given["cos"], given["sin"]))}


# ---------------------------------------------------------------- 5.2 rotate

def wrong_rotate(split=lambda x: x.chunk(2, dim=-1), first=lambda a, b, cos, sin: a * cos - b * sin,
                 second=lambda a, b, cos, sin: b * cos + a * sin,
                 join=lambda a, b: torch.cat((a, b), dim=-1)):
    """A variant: rotate with one thing in it changed."""
    def rotate(x, cos, sin):
        a, b = split(x)
        return join(first(a, b, cos, sin), second(a, b, cos, sin))
    return rotate


def in_place(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    a.copy_(a * cos - b * sin)
    b.copy_(b * cos + a * sin)                     # a is the new one
    return x


class Rotate(Exercise):
    """Sums of two products of numbers near 1: 1e-5."""
    variants = {
        "neighbours are a pair: x[2i] and x[2i + 1]": wrong_rotate(
            split=lambda x: (x[..., ::2], x[..., 1::2]),
            join=lambda a, b: torch.stack((a, b), dim=-1).flatten(-2)),
        "pairs are halves, but the results are laid down as neighbours": wrong_rotate(
            join=lambda a, b: torch.stack((a, b), dim=-1).flatten(-2)),
        "the rotation goes the other way": wrong_rotate(
            first=lambda a, b, cos, sin: a * cos + b * sin,
            second=lambda a, b, cos, sin: b * cos - a * sin),
        "both halves get plus": wrong_rotate(first=lambda a, b, cos, sin: a * cos + b * sin),
        "both halves get minus": wrong_rotate(second=lambda a, b, cos, sin: b * cos - a * sin),
        "cosines and sines are exchanged": wrong_rotate(
            first=lambda a, b, cos, sin: a * sin - b * cos,
            second=lambda a, b, cos, sin: b * sin + a * cos),
        "each half is rotated with itself": wrong_rotate(
            first=lambda a, b, cos, sin: a * cos - a * sin,
            second=lambda a, b, cos, sin: b * cos + b * sin),
        "the second half is rotated with itself":
            wrong_rotate(second=lambda a, b, cos, sin: b * cos + b * sin),
        "the halves are exchanged": wrong_rotate(join=lambda a, b: torch.cat((b, a), dim=-1)),
        "only the first half is rotated": wrong_rotate(second=lambda a, b, cos, sin: b),
        "x is overwritten, and its new first half is used for the second": in_place,
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 2)))

    def inputs(self, draw):
        def case(name, kind, N, H, d, angle=None):
            angle = draw.uniform(N, 1, d // 2) * 6 if angle is None else angle
            return Case(name, kind, {"x": draw.normal(N, H, d), "cos": angle.cos(),
                                     "sin": angle.sin()})
        half = torch.full((3, 1, 2), math.pi / 2)
        typed = case("bfloat16", "contract", 2, 2, 4)
        typed.arguments = {name: each.bfloat16() for name, each in typed.arguments.items()}
        return [case("five tokens, two heads", "contract", 5, 2, 8), typed,
                case("one pair", "parity", 6, 1, 2), case("two pairs", "parity", 4, 3, 4),
                case("eight pairs", "parity", 5, 2, 16),
                case("a quarter of a turn", "parity", 3, 2, 4, half),
                case("no turn", "parity", 3, 2, 4, 0 * half)]


# ---------------------------------------------------------------- 5.3 rotation_speeds

def wrong_speeds(exponents=lambda width: torch.arange(0, width, 2).float() / width,
                 power=lambda theta, e: theta ** -e, theta=lambda rope: rope["rope_theta"],
                 linear=lambda speed, factor: speed / factor, llama3=None):
    """A variant: rotation_speeds with one thing in it changed."""
    def rotation_speeds(rope, width, device=None):
        speed = power(torch.tensor(float(theta(rope))), exponents(width))
        if rope["rope_type"] == "linear":
            return linear(speed, rope["factor"])
        if rope["rope_type"] != "llama3":
            return speed
        return (llama3 or blended)(speed, rope)
    return rotation_speeds


def blended(speed, rope):
    """What llama3_speeds computes."""
    turns = rope["original_max_position_embeddings"] * speed / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * speed + (1 - kept) * speed / rope["factor"]


class RotationSpeeds(Exercise):
    """Powers in fp32, at most 1, exact to 1e-7: 1e-6."""
    tolerance = 1e-6
    variants = {
        "the exponent is i / d, not 2i / d": wrong_speeds(
            lambda width: torch.arange(width // 2).float() / width),
        "each of the d numbers has a speed of its own": wrong_speeds(
            lambda width: torch.arange(width).float() / width),
        "each speed stands there twice, for both halves": wrong_speeds(
            lambda width: (torch.arange(0, width, 2).float() / width).repeat(2)),
        "the last pair has the speed 1 / theta": wrong_speeds(
            lambda width: torch.linspace(0, 1, width // 2)),
        "exponents begin at 1, not at 0": wrong_speeds(
            lambda width: torch.arange(2, width + 2, 2).float() / width),
        "speeds grow with the pair": wrong_speeds(power=lambda theta, e: theta ** e),
        "theta is always 10000": wrong_speeds(theta=lambda rope: 10000.0),
        "linear turns faster: times factor": wrong_speeds(
            linear=lambda speed, factor: speed * factor),
        "linear is ignored": wrong_speeds(linear=lambda speed, factor: speed),
        "llama3 is ignored": wrong_speeds(llama3=lambda speed, rope: speed),
        "llama3 slows all pairs down, as linear does": wrong_speeds(
            llama3=lambda speed, rope: speed / rope["factor"]),
    }
    hint_for = dict(zip(variants, (0, 1, 1, 0, 0, 0, 2, 3, 3, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, width, theta=100.0, rope_type="default", **more):
            return Case(name, kind, {"rope": {"rope_type": rope_type, "rope_theta": theta, **more},
                                     "width": width})
        longer = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)
        theta = float(draw.integers(50, 5000))
        return [case("four pairs", "contract", 8), case("one pair", "contract", 2),
                case("32 pairs", "parity", 64, 10000.0), case("another theta", "parity", 16, theta),
                case("a large theta", "parity", 8, 500000.0),
                case("linear", "parity", 8, theta, "linear", factor=4.0),
                case("llama3", "parity", 16, factor=4.0, original_max_position_embeddings=32,
                     **longer),
                case("llama3, another length", "parity", 32, theta, factor=8.0,
                     original_max_position_embeddings=256, **longer)]


# ---------------------------------------------------------------- 5.4 causal_attention

def wrong_causal(mask=lambda rows, window: rows.causal_mask(window), window=lambda given: given,
                 scale=lambda given: given, heads=lambda x, times: x.repeat_interleave(times, 1),
                 drop=lambda p: p):
    """A variant: causal_attention with one thing in it changed."""
    def causal_attention(q, k, v, rows, given=math.inf, dropout=0.0, factor=None):
        q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)
        k, v = (heads(x, q.shape[1] // x.shape[1]) for x in (k, v))
        return rows.merge_heads(F.scaled_dot_product_attention(
            q, k, v, mask(rows, window(given)), drop(dropout), scale=scale(factor)))
    return causal_attention


def torch_triangle(rows, window):
    """is_causal=True, whatever rows.is_triangle says."""
    T, S = rows.mask.shape[1], rows.key_mask.shape[1]
    return torch.ones(T, S).tril().bool()


def without_itself(rows, window):
    seen = rows.causal_mask(window).clone()
    return seen & (rows.distance() != 0).unsqueeze(1)


class CausalAttention(Exercise):
    """Scores, a mask, a softmax, a mean; fp32 sums of 8 products of numbers near 1: 1e-5."""
    variants = {
        "a token sees the later ones, too, as in an encoder":
            wrong_causal(lambda rows, window: rows.key_mask[:, None, None, :]),
        "a token does not see itself": wrong_causal(without_itself),
        "the triangle counts columns: padding on the left is seen": wrong_causal(torch_triangle),
        "the window is ignored": wrong_causal(window=lambda given: math.inf),
        "the window is one token too wide": wrong_causal(window=lambda given: given + 1),
        "the argument scale is ignored": wrong_causal(scale=lambda given: None),
        "the scores are not divided by the square root of d": wrong_causal(
            scale=lambda given: 1.0 if given is None else given),
        "shared heads are tiled: head 0 serves heads 0, 2, 4":
            wrong_causal(heads=lambda x, times: x.repeat(1, times, 1, 1)),
        "all heads of queries read the first head of keys":
            wrong_causal(heads=lambda x, times: x[:, :1].repeat(1, times * x.shape[1], 1, 1)),
        "dropout is left out": wrong_causal(drop=lambda p: 0.0),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 0, 0, 3, 3, 2, 2, 4)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", K=2, **more):
            q, k, v = (draw.normal(sum(lengths), heads, 8) for heads in (4, K, K))
            return Case(name, kind, {"q": q, "k": k, "v": v, "mask": draw.mask(lengths, side=side),
                                     "which": more.pop("which", None), "given": more})
        return [case("rows of 3 and 5 tokens", "contract", [3, 5]),
                case("one token", "contract", [1]),
                case("no padding", "parity", [4, 4]),
                case("as many heads of keys as of queries", "parity", [2, 6, 3], K=4),
                case("heads that share keys", "parity", [2, 6, 3]),
                case("one head of keys for all", "parity", [5, 3], K=1),
                case("padding on the left", "parity", [5, 2, 1], "left"),
                case("a window of 3", "parity", [7, 4], window=3),
                case("a window of 2, padding on the left", "parity", [6, 3], "left", window=2),
                case("another scale", "parity", [3, 4], scale=0.7),
                case("all weights dropped", "parity", [3, 4], dropout=ALL_DROPPED),
                case("the last token of each row alone", "parity", [3, 6], which="last"),
                case("the last two tokens, with a window", "parity", [3, 6], which=2, window=2)]

    def call(self, function, case):
        from minillmclf.models.last_token import FewQueries
        given = case.arguments
        rows = rows_of(given["mask"])
        rows = rows if given["which"] is None else FewQueries(rows, given["which"])
        more = {"window": math.inf, "dropout": 0.0, "scale": None} | given["given"]
        return {"output": function(rows.queries(given["q"]), given["k"], given["v"], rows,
                                   more["window"], more["dropout"], more["scale"])}


# ---------------------------------------------------------------- 5.5 set_query_positions

def wrong_positions(chosen=lambda rows, T: rows.key_position_ids[:, -T:], table=True, flat=True,
                    longest=lambda rows: int(rows.key_position_ids.max()) + 1):
    """A variant: set_query_positions with one thing in it changed."""
    def set_query_positions(self):
        positions = chosen(self, self.mask.shape[1])
        if table:
            self.position_ids = positions
        if flat:
            self.positions = self.unpad(positions) if flat is True else positions.flatten()
        self.longest = longest(self)
    return set_query_positions


class QueryPositions(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "the positions of new tokens begin at 0 again":
            wrong_positions(lambda rows, T: rows.position_ids),
        "positions are those of the first keys, not of the last":
            wrong_positions(lambda rows, T: rows.key_position_ids[:, :T]),
        "positions count the places of the cache, padding too": wrong_positions(
            lambda rows, T: torch.arange(rows.key_mask.shape[1])[-T:].repeat(len(rows.mask), 1)),
        "new tokens count on from the places of the cache, padding too": wrong_positions(
            lambda rows, T: rows.position_ids + rows.key_mask.shape[1] - T),
        "positions begin one too late":
            wrong_positions(lambda rows, T: rows.key_position_ids[:, -T:] + 1),
        "position_ids stay those of the new tokens' own mask": wrong_positions(table=False),
        "positions stay those of the new tokens' own mask": wrong_positions(flat=False),
        "positions have an entry for padding, too": wrong_positions(flat="all"),
        "longest counts the new tokens alone": wrong_positions(longest=lambda rows: rows.longest),
        "longest is the last position, not the number of tokens":
            wrong_positions(longest=lambda rows: int(rows.key_position_ids.max())),
        "longest counts the places of the cache, padding too":
            wrong_positions(longest=lambda rows: rows.key_mask.shape[1]),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 1, 1, 2, 3, 3, 3)))

    def inputs(self, draw):
        def case(name, kind, old, new, sides=("right", "right")):
            masks = [draw.mask(lengths, side=side) for lengths, side in zip((old, new), sides)]
            return Case(name, kind, {"old": masks[0], "new": masks[1]})
        some = (1 + draw.integers(0, 5, 3)).tolist()
        return [case("one new token in each row", "contract", [3, 5], [1, 1]),
                case("several new tokens", "contract", [2, 4], [3, 1]),
                case("the same length in all rows", "parity", [4, 4], [1, 1]),
                case("old padding on the right", "parity", some, [1, 1, 1]),
                case("old padding on the left", "parity", some, [1, 1, 1], ("left", "right")),
                case("new padding on the right", "parity", some, [2, 4, 1]),
                case("new padding on the left", "parity", some, [3, 1, 4], ("left", "left")),
                case("an empty cache", "parity", [0, 0], [3, 5])]

    def call(self, function, case):
        given, rows = case.arguments, rows_of(case.arguments["new"])
        rows.key_mask = torch.cat([given["old"], given["new"]], 1).bool()
        rows.key_position_ids = (rows.key_mask.cumsum(1) - 1).clamp(min=0)
        function(rows)
        return {"position_ids": rows.position_ids, "positions": rows.positions,
                "longest": rows.longest}


# ---------------------------------------------------------------- 5.6 CachedRows.keys_values

def wrong_cache(join=lambda old, new: torch.cat([old.to(new.dtype), new], dim=2),
                layer=lambda number: number, keep=lambda cache, number, new, all: cache.put(
                    number, *all)):
    """A variant: keys_values with one thing in it changed."""
    def keys_values(self, k, v):
        new = all = self.pad_heads(k), self.pad_heads(v)
        self.layer += 1
        number = layer(self.layer)
        if self.layer < len(self.earlier):
            all = tuple(join(*both) for both in zip(self.earlier[number], new))
        keep(self.cache, number, new, all)
        return all
    return keys_values


def append(cache, number, new, all):
    cache.keys.append(all[0])
    cache.values.append(all[1])


class KeysValues(Exercise):
    """Numbers that are only moved: compared exactly, but for bfloat16."""
    variants = {
        "the earlier ones are left out": wrong_cache(join=lambda old, new: new),
        "the new ones stand before the earlier ones": wrong_cache(
            join=lambda old, new: torch.cat([new, old.to(new.dtype)], dim=2)),
        "they are joined along the heads": wrong_cache(
            join=lambda old, new: torch.cat([old.to(new.dtype), new], dim=1)),
        "nothing is kept": wrong_cache(keep=lambda *given: None),
        "only the new ones are kept": wrong_cache(
            keep=lambda cache, number, new, all: cache.put(number, *new)),
        "keys are kept as values, values as keys": wrong_cache(
            keep=lambda cache, number, new, all: cache.put(number, all[1], all[0])),
        "each step appends, and replaces nothing": wrong_cache(keep=append),
        "all layers share the cache of layer 0": wrong_cache(layer=lambda number: 0),
        "layer 0 reads what the last layer kept": wrong_cache(layer=lambda number: number - 1),
        "the result has the type of the cache, not that of the new keys": wrong_cache(
            join=lambda old, new: torch.cat([old, new], dim=2)),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 1, 2, 3, 3, 4)))

    def inputs(self, draw):
        def case(name, kind, layers, *steps, side="right", new=torch.float32):
            return Case(name, kind, {"steps": [
                {"mask": draw.mask(lengths, side=side),
                 "k": draw.normal(layers, sum(lengths), 2, 4).to(new if step else torch.float32),
                 "v": draw.normal(layers, sum(lengths), 2, 4).to(new if step else torch.float32)}
                for step, lengths in enumerate(steps)]})
        return [case("the first step", "contract", 2, [3, 5]),
                case("one more token", "contract", 2, [3, 5], [1, 1]),
                case("one layer, four steps", "parity", 1, [4], [1], [1], [1]),
                case("three layers", "parity", 3, [2, 4], [1, 1], [1, 1]),
                case("padding on the left", "parity", 2, [2, 4, 1], [1, 1, 1], side="left"),
                case("several new tokens, some rows padded", "parity", 2, [2, 4], [3, 2], [1, 1]),
                case("a prefix in fp32, new tokens in bfloat16", "parity", 2, [3, 3], [2, 4],
                     new=torch.bfloat16)]

    def call(self, function, case):
        from minillmclf.models.cache import Cache, CachedRows
        cache, found = Cache(), []
        for step in case.arguments["steps"]:
            rows = object.__new__(CachedRows)              # its __init__ needs exercise 5.5
            vars(rows).update(vars(rows_of(step["mask"])), cache=cache, layer=-1,
                              earlier=list(zip(cache.keys, cache.values)))
            found.append([list(function(rows, k, v)) for k, v in zip(step["k"], step["v"])])
        return {"steps": found, "kept keys": list(cache.keys), "kept values": list(cache.values)}
