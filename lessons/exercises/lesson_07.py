"""Lesson 7, the encoder-decoder: cases and known-wrong variants.

The shapes' letters are those of minillmclf/models/layers.py.
"""
import math
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F

from lessons.exercises.kit import Case, Exercise, rows_of

ALL_DROPPED = 1 - 1e-7                       # of dropout: nothing is left

# ---------------------------------------------------------------- 7.1 distance_buckets


def wrong_buckets(exact=lambda count: count // 2, near=lambda distance, exact: distance < exact,
                  share=lambda d, exact, most: torch.log(d / exact) / math.log(most / exact),
                  rest=lambda count, exact: count - exact, whole=torch.floor, last=True):
    """A variant: distance_buckets with one thing in it changed."""
    def distance_buckets(distance, count, max_distance):
        few = exact(count)
        part = share(distance.clamp(min=1).float(), few, max_distance) * rest(count, few)
        far = few + whole(part).long()
        far = far.clamp(max=count - 1) if last else far
        return torch.where(near(distance, few), distance, far)
    return distance_buckets


class DistanceBuckets(Exercise):
    """Whole numbers: compared exactly. No distance lies where two ranges meet, since there the
    rounding of a logarithm decides."""
    variants = {
        "a far bucket is rounded, not cut off": wrong_buckets(whole=torch.round),
        "a far bucket is rounded up": wrong_buckets(whole=torch.ceil),
        "the logarithm begins at 1, not where the exact buckets end": wrong_buckets(
            share=lambda d, exact, most: torch.log(d) / math.log(most)),
        "the largest distance is not divided by the number of exact buckets": wrong_buckets(
            share=lambda d, exact, most: torch.log(d / exact) / math.log(most)),
        "far distances are spread evenly, without a logarithm": wrong_buckets(
            share=lambda d, exact, most: (d - exact) / (most - exact)),
        "the logarithm is to the base 2 in one place": wrong_buckets(
            share=lambda d, exact, most: torch.log2(d / exact) / math.log(most / exact)),
        "all buckets hold one distance":
            wrong_buckets(near=lambda distance, exact: distance >= 0),
        "a quarter of the buckets is exact, not half":
            wrong_buckets(exact=lambda count: count // 4),
        "as many far buckets as exact ones, though count is odd":
            wrong_buckets(rest=lambda count, exact: exact),
        "the last bucket stays empty": wrong_buckets(rest=lambda count, exact: count - exact - 1),
        "distances beyond the largest get buckets that do not exist": wrong_buckets(last=False),
    }
    hint_for = dict(zip(variants, (3, 3, 1, 1, 1, 1, 0, 0, 2, 2, 4)))

    def inputs(self, draw):
        def case(name, kind, count, most, shape, upto):
            distance = draw.integers(0, upto, *shape)
            exact = count // 2
            share = (distance.clamp(min=1).double() / exact).log() / math.log(most / exact)
            part = share * (count - exact)
            meets = (distance >= exact) & (distance < most) & ((part - part.round()).abs() < 1e-3)
            return Case(name, kind, {"distance": distance.masked_fill(meets, 0), "count": count,
                                     "max_distance": most})
        return [case("a table", "contract", 16, 128, (1, 4, 6), 40),
                case("two rows", "contract", 8, 14, (2, 3, 3), 30),
                case("near distances", "parity", 16, 128, (1, 5, 5), 8),
                case("16 buckets up to 128", "parity", 16, 128, (1, 20, 20), 127),
                case("32 buckets up to 128", "parity", 32, 128, (1, 20, 20), 127),
                case("4 buckets up to 14", "parity", 4, 14, (1, 10, 10), 14),
                case("an odd number of buckets", "parity", 9, 50, (1, 10, 10), 50),
                case("beyond the largest distance", "parity", 8, 20, (1, 10, 10), 900)]


# ---------------------------------------------------------------- 7.2 EncoderStack.attention_bias

def one_each(distance, count, max_distance):
    """A stand-in for exercise 7.1: a bucket for each distance, the last one for all others."""
    return distance.clamp(max=count - 1)


def wrong_bias(later=lambda distance: distance < 0, count=lambda buckets: buckets // 2,
               size=lambda distance: distance.abs(), move=lambda bias: bias.permute(0, 3, 1, 2),
               hide=lambda rows: rows.padding_mask, value=-math.inf):
    """A variant: attention_bias with one thing in it changed."""
    def attention_bias(self, rows):
        distance, half = rows.distance(), self.buckets // 2
        bucket = one_each(size(distance), count(self.buckets), self.max_distance)
        bias = move(self.relative_bias(bucket + half * later(distance)))
        mask = hide(rows)
        return bias if mask is None else bias.masked_fill(~mask, value)
    return attention_bias


class AttentionBias(Exercise):
    """Numbers that are looked up: compared to 1e-5."""
    variants = {
        "earlier and later keys are exchanged": wrong_bias(later=lambda distance: distance > 0),
        "the token itself counts as a later key": wrong_bias(later=lambda distance: distance <= 0),
        "earlier and later keys share their buckets":
            wrong_bias(later=lambda distance: 0 * distance),
        "each direction gets all buckets": wrong_bias(count=lambda buckets: buckets),
        "later keys all count as near, as in the decoder":
            wrong_bias(size=lambda distance: distance.clamp(min=0)),
        "the heads stay the last dimension": wrong_bias(move=lambda bias: bias,
                                                        hide=lambda rows: None),
        "padding is not hidden": wrong_bias(hide=lambda rows: None),
        "queries at padding are hidden, not keys": wrong_bias(
            hide=lambda rows: None if rows.padding_mask is None
            else rows.padding_mask.transpose(2, 3)),
        "padding gets the bias 0": wrong_bias(value=0.0),
        "a batch without padding has no mask, and that is forgotten":
            wrong_bias(hide=lambda rows: rows.padding_mask.bool()),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 2, 3, 3, 3, 4)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", H=3, buckets=8):
            return Case(name, kind, {"mask": draw.mask(lengths, side=side), "buckets": buckets,
                                     "table": draw.normal(buckets, H)})
        return [case("rows of 3 and 5 tokens", "contract", [3, 5]),
                case("one row", "contract", [4]),
                case("no padding", "parity", [4, 4]),
                case("padding on the right", "parity", [2, 9, 5]),
                case("padding on the left", "parity", [6, 3], "left"),
                case("one head", "parity", [7, 2], H=1),
                case("four buckets", "parity", [7], buckets=4)]

    def call(self, function, case):
        from minillmclf.models import t5_layers
        given = case.arguments
        stack = SimpleNamespace(buckets=given["buckets"], max_distance=20,
                                relative_bias=lambda bucket: given["table"][bucket])
        rows = rows_of(given["mask"])
        with mock.patch.object(t5_layers, "distance_buckets", one_each):
            return {"bias": function(stack, rows)}


# ---------------------------------------------------------------- 7.3 DecoderLayer.forward

def wrong_layer(first=lambda layer, x, rows, bias: layer.attend(x, rows, bias),
                enter=lambda layer, x: layer.cross_norm(x), source=lambda k, v: (k, v),
                hidden=lambda source_bias: source_bias,
                join=lambda layer, x, mixed: x + layer.dropout(mixed),
                end=lambda layer, x: layer.mlp(x)):
    """A variant: forward with one thing in it changed."""
    def forward(self, x, rows, bias, given, source_bias):
        x = first(self, x, rows, bias)
        mixed = self.cross_attention(enter(self, x), rows, *source(*given), hidden(source_bias))
        return end(self, join(self, x, mixed))
    return forward


def cross_first(self, x, rows, bias, source, source_bias):
    mixed = self.cross_attention(self.cross_norm(rows.queries(x)), rows, *source, source_bias)
    return self.mlp(self.attend(rows.queries(x) + self.dropout(mixed), rows, bias))


def cross_from_before(self, x, rows, bias, source, source_bias):
    mixed = self.cross_attention(self.cross_norm(rows.queries(x)), rows, *source, source_bias)
    return self.mlp(self.attend(x, rows, bias) + self.dropout(mixed))


class CrossAttention(Exercise):
    """Three parts with norms; fp32 sums of 10 products of numbers near 1, scores undivided: 1e-5
    in parts of numbers near 10."""
    tolerance = 1e-4
    variants = {
        "the attention to the target itself is left out": wrong_layer(
            first=lambda layer, x, rows, bias: rows.queries(x)),
        "the cross-attention is left out": wrong_layer(join=lambda layer, x, mixed: x),
        "the MLP is left out": wrong_layer(end=lambda layer, x: x),
        "the cross-attention comes first": cross_first,
        "the cross-attention reads the x that came in, not what attend gives": cross_from_before,
        "the cross-attention reads x without a norm": wrong_layer(enter=lambda layer, x: x),
        "its norm is that of the attention before it":
            wrong_layer(enter=lambda layer, x: layer.attention_norm(x)),
        "x is not added to what the cross-attention gives":
            wrong_layer(join=lambda layer, x, mixed: layer.dropout(mixed)),
        "the normed x is added, not x":
            wrong_layer(join=lambda layer, x, mixed: layer.cross_norm(x) + layer.dropout(mixed)),
        "keys and values of the source are exchanged": wrong_layer(source=lambda k, v: (v, k)),
        "padding of the source is seen": wrong_layer(hidden=lambda source_bias: None),
        "dropout is left out": wrong_layer(join=lambda layer, x, mixed: x + mixed),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4)))

    def inputs(self, draw):
        shapes = {f"{part}.{name}_proj.weight": (8, 8) for part in ("attention", "cross_attention")
                  for name in "qkvo"}
        shapes |= {"up_proj.weight": (12, 8), "down_proj.weight": (8, 12)}

        def case(name, kind, target, source, side="right", which=None, training=False):
            masks = [draw.mask(lengths, side=side) for lengths in (target, source)]
            B, T, S = len(target), max(target), max(source)
            seen = masks[0].bool()[:, None, None, :] & torch.ones(T, T).tril().bool()
            seen = seen | torch.eye(T).bool()                      # each query sees a key
            norms = {f"{each}.weight": draw.uniform(8) + 0.5
                     for each in ("attention_norm", "cross_norm", "mlp_norm")}
            return Case(name, kind, {
                "x": draw.normal(sum(target), 8), "target": masks[0], "source": masks[1],
                "bias": draw.normal(B, 2, T, T).masked_fill(~seen, -math.inf), "which": which,
                "k": draw.normal(B, 2, S, 4), "v": draw.normal(B, 2, S, 4), "training": training,
                "weights": norms | {key: draw.normal(*size) * 0.3 for key, size in shapes.items()}})
        return [case("two rows", "contract", [3, 5], [4, 2]),
                case("one token", "contract", [1], [6]),
                case("no padding", "parity", [3, 3], [5, 5]),
                case("both padded on the right", "parity", [2, 5, 3], [7, 1, 4]),
                case("both padded on the left", "parity", [4, 2], [3, 6], "left"),
                case("the last token of each row alone", "parity", [3, 5], [4, 2], which="last"),
                case("in training, what is dropped out", "parity", [3, 4], [5, 2], training=True)]

    def call(self, function, case):
        from minillmclf.models.last_token import FewQueries
        from minillmclf.models.t5_layers import DecoderLayer
        given = case.arguments
        config = dict(d_model=8, d_kv=4, num_heads=2, d_ff=12, dropout_rate=0.0,
                      layer_norm_epsilon=1e-5, dense_act_fn="relu")
        layer = DecoderLayer(config)
        layer.load_state_dict(given["weights"])
        layer.dropout.p = ALL_DROPPED
        rows, bias = rows_of(given["target"]), given["bias"]
        if given["which"] is not None:
            bias = torch.stack([each[:, t - 1:t] for each, t in zip(bias, given["target"].sum(1))])
            rows = FewQueries(rows, given["which"])
        hidden = torch.zeros(given["source"].shape).masked_fill(given["source"] == 0, -math.inf)
        return {"x": function(layer.train(given["training"]), given["x"], rows, bias,
                              (given["k"], given["v"]), hidden[:, None, None, :])}


# ---------------------------------------------------------------- 7.4 GatedLayer.mlp_inner

class GatedInner(Exercise):
    """Products of two sums of 6 products of numbers near 1: 1e-5."""
    variants = {
        "the activation is of up_proj, not of the gate":
            lambda layer, x: layer.gate_proj(x) * layer.activation(layer.up_proj(x)),
        "there is no activation": lambda layer, x: layer.gate_proj(x) * layer.up_proj(x),
        "the activation comes after the product":
            lambda layer, x: layer.activation(layer.gate_proj(x) * layer.up_proj(x)),
        "both go through the activation":
            lambda layer, x: layer.activation(layer.gate_proj(x)) * layer.activation(
                layer.up_proj(x)),
        "the two are added":
            lambda layer, x: layer.activation(layer.gate_proj(x)) + layer.up_proj(x),
        "there is no gate, as in T5 1.0": lambda layer, x: layer.activation(layer.up_proj(x)),
        "the activation is always GELU":
            lambda layer, x: F.gelu(layer.gate_proj(x), approximate="tanh") * layer.up_proj(x),
        "the gate is squashed by a sigmoid":
            lambda layer, x: layer.gate_proj(x).sigmoid() * layer.up_proj(x),
    }
    hint_for = dict(zip(variants, (0, 1, 0, 0, 2, 2, 1, 1)))

    def inputs(self, draw):
        def case(name, kind, count, activation="gelu_new"):
            matrices = {name: draw.normal(9, 6) * 0.6 for name in ("gate", "up")}
            return Case(name, kind, {"x": draw.normal(count, 6), "activation": activation,
                                     **matrices})
        return [case("four tokens", "contract", 4), case("one token", "contract", 1),
                case("GELU", "parity", 7), case("SiLU", "parity", 7, "silu"),
                case("ReLU", "parity", 7, "relu")]

    def call(self, function, case):
        from minillmclf.models.layers import ACTIVATIONS
        given = case.arguments
        layer = SimpleNamespace(activation=ACTIVATIONS[given["activation"]],
                                gate_proj=lambda x: x @ given["gate"].T,
                                up_proj=lambda x: x @ given["up"].T)
        return {"inner": function(layer, given["x"])}


# ---------------------------------------------------------------- 7.5 T5.shift_right

def wrong_shift(before=lambda tokens, rows: tokens.roll(1), first=lambda rows: rows.positions == 0,
                start=lambda model, tokens, rows: model.config["decoder_start_token_id"],
                padding=0):
    """A variant: shift_right with one thing in it changed."""
    def shift_right(self, ids, mask, layout=None):
        from minillmclf.models.layers import Rows
        rows = Rows(mask, layout)
        tokens = rows.unpad(ids)
        shifted = torch.where(first(rows), torch.as_tensor(start(self, tokens, rows)),
                              before(tokens, rows))
        out = rows.pad(shifted)
        return torch.where(rows.mask, out, padding)
    return shift_right


def of_columns(self, ids, mask, layout=None):
    start = torch.full_like(ids[:, :1], self.config["decoder_start_token_id"])
    return torch.cat([start, ids[:, :-1]], dim=1) * mask


def in_column_0(self, ids, mask, layout=None):
    out = (ids.roll(1, dims=1) * mask).clone()
    out[:, 0] = self.config["decoder_start_token_id"]
    return out


def with_the_last(self, ids, mask, layout=None):
    start = torch.full_like(ids[:, :1], self.config["decoder_start_token_id"])
    return torch.cat([start, ids * mask], dim=1)


class ShiftRight(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "nothing is shifted": wrong_shift(before=lambda tokens, rows: tokens,
                                          first=lambda rows: rows.positions < 0),
        "the tokens are shifted to the left": wrong_shift(
            before=lambda tokens, rows: tokens.roll(-1)),
        "the first token is replaced, and none is shifted":
            wrong_shift(before=lambda tokens, rows: tokens),
        "columns are shifted, so padding on the left swallows the start token": of_columns,
        "the start token stands in column 0, wherever the text begins": in_column_0,
        "the last token is kept, too": with_the_last,
        "a row begins with the last token of the row before":
            wrong_shift(first=lambda rows: rows.positions < 0),
        "the start token is always 0": wrong_shift(start=lambda model, tokens, rows: 0),
        "the start token is the last token of the row": wrong_shift(
            start=lambda model, tokens, rows: tokens[
                rows.lengths.cumsum(0) - 1].repeat_interleave(rows.lengths)),
        "padding has the id of the last token, not 0": wrong_shift(padding=1),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 0, 2, 3, 3, 4)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", start=0):
            mask = draw.mask(lengths, side=side)
            ids = draw.integers(5, 40, *mask.shape) * mask + (1 - mask) * 9
            return Case(name, kind, {"ids": ids, "mask": mask, "start": start})
        return [case("rows of 3 and 5 tokens", "contract", [3, 5]),
                case("one token in each row", "contract", [1, 1]),
                case("no padding", "parity", [4, 4], start=2),
                case("padding on the right", "parity", [2, 6, 3], start=3),
                case("padding on the left", "parity", [5, 1, 3], "left"),
                case("padding on the left, another start", "parity", [2, 4], "left", start=3),
                case("padding on both sides", "parity", [6, 2, 1], "both", start=2)]

    def call(self, function, case):
        given = case.arguments
        model = SimpleNamespace(config={"decoder_start_token_id": given["start"]})
        layout = rows_of(given["mask"]).layout
        return {"ids": function(model, given["ids"], given["mask"], layout)}
