"""Lesson 6, variations of the decoder: cases and known-wrong variants.

The shapes' letters are those of minillmclf/models/layers.py.
"""
import math

import torch
import torch.nn.functional as F

from lessons.exercises.kit import Case, Exercise, rows_of

# ---------------------------------------------------------------- 6.1 Rows.is_triangle


class IsTriangle(Exercise):
    """True or false: compared exactly."""
    variants = {
        "padding on the left is not noticed": lambda self, window: window >= self.mask.shape[1],
        "padding on the right is refused, too":
            lambda self, window: self.no_padding and window >= self.mask.shape[1],
        "the window is not noticed": lambda self, window: self.layout.right_padded,
        "only models without a window get by without a mask":
            lambda self, window: self.layout.right_padded and window == math.inf,
        "a window of T is taken for too small":
            lambda self, window: self.layout.right_padded and window > self.mask.shape[1],
        "a window of T - 1 is taken for large enough":
            lambda self, window: self.layout.right_padded and window >= self.mask.shape[1] - 1,
        "the shortest row counts, not the longest":
            lambda self, window: self.layout.right_padded and window >= int(self.lengths.min()),
        "the opposite: true where a mask is needed":
            lambda self, window: not (self.layout.right_padded and window >= self.mask.shape[1]),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 2, 2, 1, 1)))

    def inputs(self, draw):
        def case(name, kind, lengths, windows, side="right"):
            return Case(name, kind, {"mask": draw.mask(lengths, side=side), "windows": windows})
        a = int(draw.integers(5, 9))
        return [case("no window", "contract", [4, 4], ["inf"]),
                case("no padding", "parity", [a, a], ["inf", a + 3, a, a - 1, 1]),
                case("padding on the right", "parity", [a, 2], ["inf", a + 3, a, a - 1, 2]),
                case("padding on the left", "parity", [3, a], ["inf", a, a - 1], "left"),
                case("one token", "parity", [1], ["inf", 1])]

    def call(self, function, case):
        from minillmclf.models.layers import Rows
        rows = Rows(case.arguments["mask"])
        return {"triangle": [bool(function(rows, math.inf if window == "inf" else window))
                             for window in case.arguments["windows"]]}


# ---------------------------------------------------------------- 6.2 soft_cap

def wrong_cap(squeeze, none=lambda x: x):
    """A variant: squeeze(x, cap), and what becomes of x without a cap."""
    return lambda x, cap: none(x) if cap is None else squeeze(x, cap)


class SoftCap(Exercise):
    """tanh and a product with numbers up to 50, in fp32: 1e-4."""
    tolerance = 1e-4
    variants = {
        "a hard cap: x is cut off": wrong_cap(lambda x, cap: x.clamp(-cap, cap)),
        "not multiplied with the cap: the result is below 1":
            wrong_cap(lambda x, cap: torch.tanh(x / cap)),
        "not divided by the cap: small numbers change, too":
            wrong_cap(lambda x, cap: cap * torch.tanh(x)),
        "multiplied and divided in the wrong order":
            wrong_cap(lambda x, cap: torch.tanh(x * cap) / cap),
        "a sigmoid, which has no negative results":
            wrong_cap(lambda x, cap: cap * torch.sigmoid(x / cap)),
        "without a cap, tanh is taken all the same":
            wrong_cap(lambda x, cap: cap * torch.tanh(x / cap), torch.tanh),
        "without a cap, 0 comes back":
            wrong_cap(lambda x, cap: cap * torch.tanh(x / cap), lambda x: x * 0),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 0, 0, 2, 2)))

    def inputs(self, draw):
        def case(name, kind, x, cap):
            return Case(name, kind, {"x": x, "cap": cap})
        return [case("a few scores", "contract", draw.normal(2, 3), 30.0),
                case("near 0", "parity", draw.normal(20) / 10, 50.0),
                case("scores of a batch", "parity", draw.normal(2, 2, 4, 4) * 30, 50.0),
                case("logits", "parity", draw.normal(3, 11) * 40, 30.0),
                case("far beyond", "parity", torch.tensor([-1e4, -200.0, 200.0, 1e4]), 3.0),
                case("no cap", "parity", draw.normal(7) * 100, None)]


# ---------------------------------------------------------------- 6.3 capped_attention

ALL_DROPPED = 1 - 1e-7                       # of dropout: nothing is left


def squeezed(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


def repeated(x, heads):
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def wrong_capped(share=repeated, score=lambda raw, scale, cap, seen: squeezed(
        raw * scale, cap).masked_fill(~seen, -math.inf), weigh=lambda s: s.float().softmax(-1),
        drop=lambda weights, dropout: F.dropout(weights, dropout)):
    """A variant: capped_attention with one thing in it changed."""
    def capped_attention(q, k, v, seen, scale, cap, dropout):
        k, v = (share(x, q.shape[1]) for x in (k, v))
        scores = score(q @ k.transpose(-2, -1), scale, cap, seen)
        return drop(weigh(scores).to(q.dtype), dropout) @ v
    return capped_attention


class CappedAttention(Exercise):
    """fp32 sums of 4 products of numbers near 1, a softmax: 1e-5."""
    variants = {
        "the mask comes before the cap": wrong_capped(
            score=lambda raw, scale, cap, seen: squeezed(
                (raw * scale).masked_fill(~seen, -math.inf), cap)),
        "scores are not capped": wrong_capped(score=lambda raw, scale, cap, seen: (
            raw * scale).masked_fill(~seen, -math.inf)),
        "the cap comes before the scale": wrong_capped(score=lambda raw, scale, cap, seen: (
            squeezed(raw, cap) * scale).masked_fill(~seen, -math.inf)),
        "scores are divided by sqrt(d), whatever the scale is": wrong_capped(
            score=lambda raw, scale, cap, seen: squeezed(raw / 2, cap).masked_fill(
                ~seen, -math.inf)),
        "all keys are seen": wrong_capped(
            score=lambda raw, scale, cap, seen: squeezed(raw * scale, cap)),
        "what is not seen gets the score 0": wrong_capped(
            score=lambda raw, scale, cap, seen: squeezed(raw * scale, cap) * seen),
        "heads of keys are repeated in turn: 0 1 0 1, not 0 0 1 1": wrong_capped(
            lambda x, heads: x.repeat(1, heads // x.shape[1], 1, 1)),
        "softmax runs over the queries": wrong_capped(
            weigh=lambda s: s.float().softmax(-2).nan_to_num()),
        "dropout is left out": wrong_capped(drop=lambda weights, dropout: weights),
    }
    hint_for = dict(zip(variants, (1, 0, 0, 0, 1, 1, 2, 3, 4)))

    def inputs(self, draw):
        def case(name, kind, lengths, heads=(4, 2), window=math.inf, cap=2.0, dropout=0.0, **more):
            (B, T), (H, K), d = (len(lengths), max(lengths)), heads, 4
            distance = torch.arange(T)[:, None] - torch.arange(T)                    # (T, S)
            seen = (distance >= 0) & (distance < window) & draw.mask(lengths).bool()[:, None, None]
            seen = seen | torch.eye(T).bool()          # a query at padding sees itself: no NaN
            return Case(name, kind, {
                "q": draw.normal(B, H, T, d) * 2, "k": draw.normal(B, K, T, d) * 2,
                "v": draw.normal(B, K, T, d), "seen": seen, "scale": 0.3, "cap": cap,
                "dropout": dropout}, **more)
        return [case("two rows", "contract", [3, 3]),
                case("one head of keys for each of queries", "parity", [5], (2, 2)),
                case("shared heads, padding", "parity", [6, 3]),
                case("a window", "parity", [7, 5], window=3),
                case("a small cap", "parity", [5, 4], cap=0.5),
                case("no cap", "parity", [4, 6], cap=None),
                case("one row for the mask of all", "parity", [4, 4], (3, 1)),
                case("everything is dropped", "parity", [4, 3], dropout=ALL_DROPPED)]


# ---------------------------------------------------------------- 6.4 GemmaNorm.forward

def mean_square_norm(x, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def wrong_norm(factor=lambda weight: 1 + weight, eps=lambda norm: norm.eps, centre=False,
               norm=mean_square_norm):
    """A variant: the forward pass of GemmaNorm with one thing in it changed."""
    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True) if centre else wide
        return (norm(wide, eps(self)) * factor(self.weight.float())).to(x.dtype)
    return forward


class OnePlusWeight(Exercise):
    """fp32: 1e-5. In fp16, rounded once: 4e-3 for numbers below 4."""
    variants = {
        "the factor is w, as in LLaMA": wrong_norm(lambda weight: weight),
        "the factor is left out": wrong_norm(lambda weight: 1.0),
        "w is added, not multiplied with": lambda self, x: (
            mean_square_norm(x.float(), self.eps) + self.weight.float()).to(x.dtype),
        "the factor is 1 - w": wrong_norm(lambda weight: 1 - weight),
        "eps is left out": wrong_norm(eps=lambda norm: 0.0),
        "the mean is subtracted, as in a layer norm": wrong_norm(centre=True),
        "the norm runs over the tokens, not over the numbers of one":
            wrong_norm(norm=lambda x, eps: x * torch.rsqrt(
                x.square().mean(0, keepdim=True) + eps)),
        "squared in fp16, where it is inf": lambda self, x: mean_square_norm(
            x, self.eps) * (1 + self.weight.to(x.dtype)),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 1, 1, 2)))

    def inputs(self, draw):
        def case(name, kind, x, eps=1e-6, tolerance=None):
            weight = draw.uniform(x.shape[-1]) - 0.5
            return Case(name, kind, {"x": x, "eps": eps, "weight": weight}, tolerance)
        return [case("two tokens", "contract", draw.normal(2, 6)),
                case("tokens", "parity", draw.normal(5, 8) + 1),
                case("a large eps", "parity", draw.normal(4, 8), 0.5),
                case("heads of queries", "parity", draw.normal(3, 2, 4)),
                case("fp16, 300s and more", "parity", (draw.normal(3, 8) * 10 + 300).half(), 1e-6,
                     4e-3)]

    def call(self, function, case):
        from minillmclf.models.gemma import GemmaNorm
        given = case.arguments
        norm = GemmaNorm(given["x"].shape[-1], given["eps"])
        norm.load_state_dict({"weight": given["weight"]})
        return {"x": function(norm, given["x"])}


# ---------------------------------------------------------------- 6.5 Llama.build_layer

def wrong_layer(window=lambda c, number: c["sliding_window"] if c["layer_types"][
        number] == "sliding_attention" else math.inf,
        scale=lambda c: c.get("query_pre_attn_scalar", c["head_dim"]) ** -0.5,
        kind=lambda model: model.LAYER,
        norm=lambda model: model.NORM):
    """A variant: build_layer with one thing in it changed."""
    def build_layer(self, number):
        c = self.config
        return kind(self)(c, norm(self), window(c, number), scale(c))
    return build_layer


def gemma2_layer(model):
    from minillmclf.models.gemma import Gemma2Layer
    return Gemma2Layer


def plain_norm(model):
    from minillmclf.models.layers import RMSNorm
    return RMSNorm


class BuildLayer(Exercise):
    """Windows, scales and names of classes: 1e-5."""
    variants = {
        "every other layer is local, whatever layer_types says": wrong_layer(
            lambda c, number: math.inf if number % 2 else c["sliding_window"]),
        "local and global are exchanged": wrong_layer(
            lambda c, number: c["sliding_window"] if c["layer_types"][number] == "full_attention"
            else math.inf),
        "the types are read one layer off": wrong_layer(
            lambda c, number: c["sliding_window"] if c["layer_types"][number - 1]
            == "sliding_attention" else math.inf),
        "all layers have the window": wrong_layer(lambda c, number: c["sliding_window"]),
        "no layer has a window": wrong_layer(lambda c, number: math.inf),
        "a global layer has the window None": wrong_layer(
            lambda c, number: c["sliding_window"] if c["layer_types"][number]
            == "sliding_attention" else None),
        "the scale is 1 / sqrt(width of a head)":
            wrong_layer(scale=lambda c: c["head_dim"] ** -0.5),
        "the scale is query_pre_attn_scalar itself":
            wrong_layer(scale=lambda c: c.get("query_pre_attn_scalar", c["head_dim"])),
        "the layer is Gemma 2's, in Gemma 3 too": wrong_layer(kind=gemma2_layer),
        "the norms are LLaMA's": wrong_layer(norm=plain_norm),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 1, 2, 2, 3, 3)))

    def inputs(self, draw):
        def case(name, kind, family, letters, **more):
            types = [{"s": "sliding_attention", "f": "full_attention"}[x] for x in letters]
            return Case(name, kind, {"family": family, "fields": {
                "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "head_dim": 4,
                "num_hidden_layers": len(types), "num_attention_heads": 2,
                "num_key_value_heads": 1, "layer_types": types, "sliding_window": 7,
                "query_pre_attn_scalar": 20, **more}})
        drawn = "".join("sf"[number] for number in draw.integers(0, 2, 7).tolist())
        return [case("Gemma 2, two layers", "contract", "Gemma2", "sf"),
                case("Gemma 2, four layers", "parity", "Gemma2", "sfsf"),
                case("Gemma 2, another order", "parity", "Gemma2", "ffsfs"),
                case("Gemma 2, drawn types", "parity", "Gemma2", f"{drawn}ffss"),
                case("Gemma 2, another scalar and window", "parity", "Gemma2", "fs",
                     query_pre_attn_scalar=144, sliding_window=3),
                case("Gemma 3", "parity", "Gemma3", "sssssfs"),
                case("Qwen 3, which has no scalar", "parity", "Qwen3", "ffss",
                     use_sliding_window=True, query_pre_attn_scalar=None)]

    def call(self, function, case):
        from minillmclf.models import gemma, llama
        given, module = case.arguments, llama if case.arguments["family"] == "Qwen3" else gemma
        fields = {key: value for key, value in given["fields"].items() if value is not None}
        model = getattr(module, given["family"]).from_config(fields)
        layers = [function(model, number) for number in range(len(given["fields"]["layer_types"]))]
        return {"windows": [layer.window if isinstance(layer.window, int) else str(layer.window)
                            for layer in layers],
                "scales": torch.tensor([float(layer.scale) for layer in layers]),
                "layers": [type(layer).__name__ for layer in layers],
                "norms": [type(layer.mlp_norm).__name__ for layer in layers]}


# ---------------------------------------------------------------- 6.6 nearby_mask

def masked_keys(rows, near, keys=lambda rows: rows.key_mask):
    return (near & keys(rows)[:len(near), None, :]).unsqueeze(1)


def wrong_nearby(near=lambda distance, reach: distance.abs() <= reach,
                 short=lambda rows, reach: rows.longest <= reach + 1,
                 brief=lambda rows: rows.padding_mask, keys=lambda rows: rows.key_mask):
    """A variant: nearby_mask with one thing in it changed."""
    def nearby_mask(rows, reach):
        if short(rows, reach):
            return brief(rows)
        return masked_keys(rows, near(rows.distance(), reach), keys)
    return nearby_mask


def places_mask(rows, reach):
    if rows.longest <= reach + 1:
        return rows.padding_mask
    places = [torch.arange(ids.shape[1]) for ids in (rows.position_ids, rows.key_position_ids)]
    near = (places[0][:, None] - places[1]).abs() <= reach                           # (T, S)
    return masked_keys(rows, near.expand(len(rows.key_mask), -1, -1))


class NearbyMask(Exercise):
    """True and false: compared exactly, at queries that are tokens.

    A query at padding should see a key, whichever: a softmax over none would be NaN.
    """
    variants = {
        "one side only: a token sees those before it, as in a decoder":
            wrong_nearby(lambda distance, reach: (distance >= 0) & (distance <= reach)),
        "one side only: a token sees those behind it":
            wrong_nearby(lambda distance, reach: (distance <= 0) & (distance >= -reach)),
        "the sign is not taken off: all that stands behind a token is seen":
            wrong_nearby(lambda distance, reach: distance <= reach),
        "one too few: a token `reach` positions away is not seen":
            wrong_nearby(lambda distance, reach: distance.abs() < reach),
        "one too many: a token `reach` + 1 positions away is seen":
            wrong_nearby(lambda distance, reach: distance.abs() <= reach + 1),
        "reach counts both sides, half of it for each":
            wrong_nearby(lambda distance, reach: distance.abs() <= reach // 2),
        "reach is doubled: it is for each side already":
            wrong_nearby(lambda distance, reach: distance.abs() <= 2 * reach),
        "the opposite: far tokens are seen":
            wrong_nearby(lambda distance, reach: distance.abs() > reach),
        "padding is seen": wrong_nearby(keys=lambda rows: torch.ones_like(rows.key_mask)),
        "keys are masked by rows.mask, which is that of the queries":
            wrong_nearby(keys=lambda rows: rows.mask),
        "None for short texts, so their padding is seen": wrong_nearby(brief=lambda rows: None),
        "None, or padding alone, up to 2 * reach + 1 tokens":
            wrong_nearby(short=lambda rows, reach: rows.longest <= 2 * reach + 1),
        "None, or padding alone, for a text of reach + 2 tokens":
            wrong_nearby(short=lambda rows, reach: rows.longest <= reach + 2),
        "the shortest row decides, not the longest": wrong_nearby(
            short=lambda rows, reach: int(rows.key_mask.sum(1).min()) <= reach + 1),
        "never None: a mask where all is seen": wrong_nearby(short=lambda rows, reach: False),
        "the padded row's places instead of positions": places_mask,
        "without the dimension of heads":
            lambda rows, reach: masked_keys(rows, rows.distance().abs() <= reach)[:, 0],
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 1, 1, 0, 2, 2, 3, 3, 3, 3, 3, 0, 4)))

    def inputs(self, draw):
        def case(name, kind, lengths, reach, side="right", first=False):
            return Case(name, kind, {"mask": draw.mask(lengths, side=side), "reach": reach,
                                     "first": first})
        a = int(draw.integers(8, 12))
        return [case("one text", "contract", [a], 2),
                case("no padding", "parity", [a, a], 3),
                case("reach is 1", "parity", [a], 1),
                case("padding on the right", "parity", [a, 6, 2], 2),
                case("padding on the left", "parity", [a, 4], 2, "left"),
                case("a text of reach + 1 tokens", "parity", [5], 4),
                case("a text of reach + 2 tokens", "parity", [5, 5], 3),
                case("a text of 2 * reach + 1 tokens, padding", "parity", [7, 3], 3),
                case("short texts with padding", "parity", [4, 2], 6),
                case("one token", "parity", [1, 1], 2),
                case("the first token alone is a query", "parity", [a, 3], 3, "right", True)]

    def call(self, function, case):
        from minillmclf.models.last_token import FewQueries
        given = case.arguments
        rows = rows_of(given["mask"])
        rows = FewQueries(rows, "first") if given["first"] else rows
        found = function(rows, given["reach"])
        return {"seen": at_tokens(found, rows), "each query sees a key":
                found is None or bool(found.any(-1).all())}


def at_tokens(seen, rows):
    """A mask as (B, 1, T, S), without the queries at padding; anything else as it is."""
    shape = (len(rows.key_mask), 1, rows.mask.shape[1], rows.key_mask.shape[1])
    if seen is None or seen.dtype is not torch.bool or seen.dim() != 4 or any(
            size not in (1, whole) for size, whole in zip(seen.shape, shape)):
        return seen
    return seen.expand(shape) & rows.mask[:, None, :, None]


# ---------------------------------------------------------------- 6.7 NormedHeadsLayer.project

def unit(x, eps=1e-3):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def whole_norm(norm, x):
    """All heads of a token normalised together, with the weight of each head."""
    return unit(x.flatten(-2), norm.eps).view_as(x) * norm.weight


def wrong_project(q=lambda layer, q: layer.q_norm(q), k=lambda layer, k: layer.k_norm(k),
                  v=lambda layer, v: v, swap=lambda x, queries: (queries, x, x), cut=lambda x, d:
                  x.unflatten(-1, (-1, d))):
    """A variant: project with one thing in it changed."""
    def project(self, x, queries):
        inputs = swap(x, queries)
        flat = [linear(each) for linear, each in
                zip((self.q_proj, self.k_proj, self.v_proj), inputs)]
        heads = [cut(each, self.head_dim) for each in flat]
        return tuple(change(self, each) for change, each in zip((q, k, v), heads))
    return project


class ProjectNormed(Exercise):
    """Sums of 8 products of numbers near 1, and a norm: 1e-5; of numbers near 100: 1e-3."""
    variants = {
        "no norms, as in LLaMA": wrong_project(lambda layer, q: q, lambda layer, k: k),
        "queries are not normed": wrong_project(lambda layer, q: q),
        "keys are not normed": wrong_project(k=lambda layer, k: k),
        "the two norms are exchanged": wrong_project(lambda layer, q: layer.k_norm(q),
                                                     lambda layer, k: layer.q_norm(k)),
        "keys get the norm of the queries": wrong_project(k=lambda layer, k: layer.q_norm(k)),
        "values are normed, too": wrong_project(v=lambda layer, v: layer.k_norm(v)),
        "normed over the whole width, not head by head": wrong_project(
            lambda layer, q: whole_norm(layer.q_norm, q),
            lambda layer, k: whole_norm(layer.k_norm, k)),
        "normed over the tokens, not over the numbers of a head": wrong_project(
            *(lambda layer, x, name=name: unit(x.transpose(0, -1)).transpose(0, -1)
              * getattr(layer, name).weight for name in ("q_norm", "k_norm"))),
        "the weights of the norms are left out": wrong_project(lambda layer, q: unit(q),
                                                               lambda layer, k: unit(k)),
        "divided by the length: vectors of length 1, not sqrt(d)": wrong_project(
            lambda layer, q: F.normalize(q, dim=-1) * layer.q_norm.weight,
            lambda layer, k: F.normalize(k, dim=-1) * layer.k_norm.weight),
        "the mean is subtracted, as in a layer norm": wrong_project(
            lambda layer, q: layer.q_norm(q - q.mean(-1, keepdim=True)),
            lambda layer, k: layer.k_norm(k - k.mean(-1, keepdim=True))),
        "normed twice": wrong_project(lambda layer, q: layer.q_norm(layer.q_norm(q)),
                                      lambda layer, k: layer.k_norm(layer.k_norm(k))),
        "queries are made of all tokens": wrong_project(swap=lambda x, queries: (x, x, x)),
        "keys and values are made of the queries' tokens":
            wrong_project(swap=lambda x, queries: (queries, queries, queries)),
        "heads are cut in turn: numbers 0, H, 2 H ... to head 0": wrong_project(
            cut=lambda x, d: x.unflatten(-1, (d, -1)).transpose(-1, -2)),
        "heads are not cut: (N, H * d)": lambda self, x, queries: (
            whole_norm(self.q_norm, self.q_proj(queries).unflatten(-1, (-1, self.head_dim)))
            .flatten(-2), self.k_proj(x), self.v_proj(x)),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 1, 2, 2, 0, 0, 0, 0, 3, 3, 2, 2)))

    def inputs(self, draw):
        def case(name, kind, heads=(4, 2), tokens=6, chosen=None, factor=1.0, tolerance=None):
            (H, K), D, d = heads, 8, 4
            weights = {"q_proj.weight": draw.normal(H * d, D), "k_proj.weight": draw.normal(
                K * d, D), "v_proj.weight": draw.normal(K * d, D),
                "q_norm.weight": draw.uniform(d) + 0.5, "k_norm.weight": draw.uniform(d) - 1.5}
            return Case(name, kind, {"heads": list(heads), "x": draw.normal(tokens, D) * factor,
                                     "chosen": chosen, "weights": weights}, tolerance)
        return [case("two tokens", "contract", tokens=2),
                case("shared keys", "parity"),
                case("one head of keys for each of queries", "parity", (3, 3)),
                case("one head", "parity", (1, 1)),
                case("small numbers, where eps counts", "parity", factor=0.01),
                case("large numbers", "parity", factor=100.0, tolerance=1e-3),
                case("a few tokens are queries", "parity", chosen=[1, 4])]

    def call(self, function, case):
        from minillmclf.models.layers import RMSNorm
        from minillmclf.models.llama import NormedHeadsLayer
        given = case.arguments
        H, K = given["heads"]
        layer = NormedHeadsLayer({
            "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": H, "head_dim": 4,
            "num_key_value_heads": K, "attention_bias": False, "mlp_bias": False,
            "hidden_act": "silu", "rms_norm_eps": 1e-3, "attention_dropout": 0.0},
            RMSNorm, math.inf, 0.5)
        layer.load_state_dict(given["weights"], strict=False)
        x, chosen = given["x"], given["chosen"]
        with torch.no_grad():
            q, k, v = function(layer, x, x if chosen is None else x[chosen])
        return {"q": q, "k": k, "v": v}
