"""Lesson 4, disentangled attention: cases and known-wrong variants.

The shapes' letters are those of minillmclf/models/layers.py; P: offsets in use.
"""
import math
from unittest.mock import patch

import torch
import torch.nn.functional as F

from lessons.exercises.kit import Case, Exercise

# ---------------------------------------------------------------- 4.1 table_rows

# for 4.1, so that it does not need 4.2: the buckets of the offsets 0 to 24, of 8 up to 20
EIGHT = [0, 1, 2, 3, 4, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7, 8, 8, 8, 8, 8]


def read_bucket(offset, buckets, max_distance):
    """What log_buckets gives for 8 buckets up to 20."""
    if (buckets, max_distance) != (8, 20):
        raise ValueError(f"log_buckets was called with {buckets} buckets up to {max_distance}; "
                         "this case has 8 up to 20")
    return torch.tensor(EIGHT)[offset.abs()] * offset.sign()


def wrong_rows(span=lambda buckets, most: buckets or most, buckets_used=True,
               finish=lambda bucket, span: (bucket + span).clamp(0, 2 * span - 1)):
    """A variant: table_rows with one thing in it changed."""
    def table_rows(offset, buckets, max_distance):
        bucket = offset
        if buckets and buckets_used:
            bucket = read_bucket(offset, buckets, max_distance)
        return finish(bucket, span(buckets, max_distance))
    return table_rows


class TableRows(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "the span is not added: negative offsets all get row 0":
            wrong_rows(finish=lambda bucket, span: bucket.clamp(0, 2 * span - 1)),
        "left and right share rows":
            wrong_rows(finish=lambda bucket, span: (bucket.abs() + span).clamp(0, 2 * span - 1)),
        "the offset is key minus query":
            wrong_rows(finish=lambda bucket, span: (span - bucket).clamp(0, 2 * span - 1)),
        "offset 0 is at span - 1":
            wrong_rows(finish=lambda bucket, span: (bucket + span - 1).clamp(0, 2 * span - 1)),
        "the span is the max distance, even with buckets": wrong_rows(lambda buckets, most: most),
        "offsets beyond the ends have rows that the table has not":
            wrong_rows(finish=lambda bucket, span: bucket + span),
        "offsets beyond the ends begin again at the other end":
            wrong_rows(finish=lambda bucket, span: (bucket + span).remainder(2 * span)),
        "the highest row is 2 * span, one more than there is":
            wrong_rows(finish=lambda bucket, span: (bucket + span).clamp(0, 2 * span)),
        "the highest row is never used":
            wrong_rows(finish=lambda bucket, span: (bucket + span).clamp(0, 2 * span - 2)),
        "there are no buckets": wrong_rows(buckets_used=False),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 2, 2, 2, 2, 3)))

    def inputs(self, draw):
        def case(name, kind, offset, buckets, most):
            return Case(name, kind, {"offset": offset, "buckets": buckets, "max_distance": most})
        far = torch.arange(-24, 25)
        pairs = torch.arange(11)[:, None] - torch.arange(11)                         # (T, S)
        return [case("a few offsets", "contract", torch.tensor([-1, 0, 2]), 0, 9),
                case("no buckets", "parity", torch.arange(-8, 9), 0, 9),
                case("no buckets, far offsets", "parity", far, 0, 9),
                case("pairs of a text", "parity", pairs, 0, 7),
                case("8 buckets", "parity", torch.arange(-19, 20), 8, 20),
                case("8 buckets, far offsets", "parity", far, 8, 20),
                case("8 buckets, drawn pairs", "parity", draw.integers(-24, 25, 3, 4, 4), 8, 20)]

    def call(self, function, case):
        from minillmclf.models import deberta
        with patch.object(deberta, "log_buckets", read_bucket):
            return super().call(function, case)


# ---------------------------------------------------------------- 4.2 log_buckets

def wrong_buckets(middle=lambda buckets: buckets // 2, most=lambda most: most - 1, log=torch.log,
                  whole=torch.ceil, left=lambda middle: middle - 1, finish=None):
    """A variant: log_buckets with one thing in it changed."""
    def log_buckets(offset, buckets, max_distance):
        half = middle(buckets)
        far = log(offset.abs().clamp(min=half).float() / half)
        farthest = log(torch.tensor(most(max_distance) / half, dtype=torch.float32))
        far = whole(far / farthest * left(half)) + half
        if finish:
            return finish(offset, far, half)
        return torch.where(offset.abs() <= half, offset, (far * offset.sign()).long())
    return log_buckets


def not_divided(offset, buckets, max_distance):
    middle = buckets // 2
    far = (offset.abs().clamp(min=middle).float() / middle).log()
    far = torch.ceil(far * (middle - 1)) + middle
    return torch.where(offset.abs() <= middle, offset, (far * offset.sign()).long())


class LogBuckets(Exercise):
    """Whole numbers: compared exactly. No offset lies where fp32 decides the bucket."""
    variants = {
        "rounded down, not up": wrong_buckets(whole=torch.floor),
        "rounded to the nearest": wrong_buckets(whole=torch.round),
        "the middle is all buckets, not half of them": wrong_buckets(lambda buckets: buckets),
        "max_distance is taken for the farthest offset, which is max_distance - 1":
            wrong_buckets(most=lambda most: most),
        "no logarithm: the way is linear": wrong_buckets(log=lambda x: x - 1),
        "the logarithm is not divided by that of the farthest offset": not_divided,
        "middle buckets are left, not middle - 1": wrong_buckets(left=lambda middle: middle),
        "the middle is not added": wrong_buckets(finish=lambda offset, far, middle: torch.where(
            offset.abs() <= middle, offset, ((far - middle) * offset.sign()).long())),
        "the sign is lost": wrong_buckets(finish=lambda offset, far, middle: torch.where(
            offset.abs() <= middle, offset.abs(), far.long())),
        "far negative offsets get positive buckets":
            wrong_buckets(finish=lambda offset, far, middle: torch.where(
                offset.abs() <= middle, offset, far.long())),
        "near offsets go by logarithm, too":
            wrong_buckets(finish=lambda offset, far, middle: (far * offset.sign()).long()),
        "buckets are floating-point numbers":
            wrong_buckets(finish=lambda offset, far, middle: torch.where(
                offset.abs() <= middle, offset.float(), far * offset.sign())),
    }
    hint_for = dict(zip(variants, (2, 2, 0, 1, 1, 1, 2, 2, 3, 3, 0, 4)))

    def inputs(self, draw):
        def clear(offset, buckets, most):
            """Is the quotient of an offset far enough from a whole number, in any precision?"""
            middle = buckets // 2
            way = math.log(max(abs(offset), middle) / middle) / math.log((most - 1) / middle)
            place = way * (middle - 1)
            return abs(offset) <= middle or 0.001 < place % 1 < 0.999

        def case(name, kind, buckets, most, offsets=None):
            if offsets is None:
                offsets = torch.arange(-2 * most, 2 * most + 1)
            kept = [each for each in offsets.flatten().tolist() if clear(each, buckets, most)]
            return Case(name, kind, {"offset": torch.tensor(kept), "buckets": buckets,
                                     "max_distance": most})
        pairs = torch.arange(3)[:, None] - torch.arange(3)                           # (T, S)
        return [Case("near pairs", "contract", {"offset": pairs, "buckets": 8,
                                                "max_distance": 20}),
                case("8 buckets up to 20", "parity", 8, 20),
                case("32 buckets up to 128", "parity", 32, 128),
                case("an odd number of buckets", "parity", 7, 30),
                case("those of DeBERTa-v3", "parity", 256, 512, draw.integers(-900, 901, 400))]


# ---------------------------------------------------------------- 4.3 disentangled_attention

ALL_DROPPED = 1 - 1e-7                       # of dropout: nothing is left


def wrong_attention(scale=lambda d, scores: 1 / math.sqrt(d * scores), content=True,
                    c2p=lambda q, keys, column: (q @ keys.mT).gather(-1, column),
                    p2c=lambda queries, k, column: (queries @ k.mT).gather(-2, column),
                    masked=True, drop=True):
    """A variant: disentangled_attention with one thing in it changed."""
    def disentangled_attention(q, k, v, positions, column, rows, dropout):
        q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)
        factor = scale(q.shape[-1], 1 + sum(each is not None for each in positions))
        keys, queries = (None if each is None else each.transpose(0, 1) * factor
                         for each in positions)
        column = column.unsqueeze(1).expand(len(q), q.shape[1], -1, -1)
        bias = q.new_zeros(len(q), q.shape[1], q.shape[2], k.shape[2])
        bias = bias if keys is None else bias + c2p(q, keys, column)
        bias = bias if queries is None else bias + p2c(queries, k, column)
        if masked and rows.padding_mask is not None:
            bias = bias.masked_fill(~rows.padding_mask, float("-inf"))
        return rows.merge_heads(F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout if drop else 0.0,
            scale=factor if content is True else content(q.shape[-1])))
    return disentangled_attention


def swapped_tables(q, k, v, positions, column, rows, dropout):
    return wrong_attention()(q, k, v, positions[::-1], column, rows, dropout)


def turned_offsets(q, k, v, positions, column, rows, dropout):
    """Key minus query: the offset n is read where -n stands, as far as the table reaches."""
    most = max(len(each) for each in positions if each is not None) if any(
        each is not None for each in positions) else 1
    return wrong_attention()(q, k, v, positions, most - 1 - column, rows, dropout)


def scaled_at_the_end(q, k, v, positions, column, rows, dropout):
    """The products are scaled, not the vectors: in fp16 they are inf before."""
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)
    column = column.unsqueeze(1).expand(len(q), q.shape[1], -1, -1)
    scores, terms = q @ k.mT, 1
    if positions[0] is not None:
        scores, terms = scores + (q @ positions[0].transpose(0, 1).mT).gather(-1, column), 2
    if positions[1] is not None:
        scores = scores + (positions[1].transpose(0, 1) @ k.mT).gather(-2, column)
        terms += 1
    scores = scores / math.sqrt(q.shape[-1] * terms)
    if rows.padding_mask is not None:
        scores = scores.masked_fill(~rows.padding_mask, float("-inf"))
    return rows.merge_heads(F.dropout(scores.softmax(-1), dropout) @ v)


def rows_of(mask, which=None):
    """mask: (B, T) -> its Rows, made without exercise 3.2; which: see FewQueries."""
    from minillmclf.models.last_token import FewQueries
    from minillmclf.models.layers import Rows
    from minillmclf.text.batch import Layout
    tokens, positions = mask.bool(), torch.zeros_like(mask)
    for row, here in zip(positions, tokens):
        row[here] = torch.arange(int(here.sum()))
    rows = Rows(mask, Layout(
        mask=tokens, lengths=mask.sum(1), indices=tokens.flatten().nonzero().squeeze(1),
        position_ids=positions, no_padding=bool(tokens.all()), right_padded=False,
        longest=int(mask.sum(1).max())))
    return rows if which is None else FewQueries(rows, which)


class Disentangled(Exercise):
    """fp32 sums of 4 products of numbers near 1, and a softmax: 1e-5; fp16: 4e-3."""
    variants = {
        "scores are divided by sqrt(d), as in BERT":
            wrong_attention(lambda d, scores: 1 / math.sqrt(d)),
        "scores are divided by sqrt(3 d), even if there are fewer of them":
            wrong_attention(lambda d, scores: 1 / math.sqrt(3 * d)),
        "c2p and p2c are divided twice": wrong_attention(
            c2p=lambda q, keys, column: (q @ keys.mT).gather(-1, column) / math.sqrt(3 * 4),
            p2c=lambda queries, k, column: (queries @ k.mT).gather(-2, column) / math.sqrt(3 * 4)),
        "q k is divided by sqrt(d) alone":
            wrong_attention(content=lambda d: 1 / math.sqrt(d)),
        "c2p is left out": wrong_attention(c2p=lambda q, keys, column: 0),
        "p2c is left out": wrong_attention(p2c=lambda queries, k, column: 0),
        "p2c asks the key of word i, the query, not that of word j":
            wrong_attention(p2c=lambda queries, k, column: (k @ queries.mT).gather(-1, column)),
        "p2c is not gathered by pair: all queries get the offset of the first": wrong_attention(
            p2c=lambda queries, k, column: (queries @ k.mT).gather(
                -2, column[..., :1, :].expand_as(column))),
        "the offset is key minus query": turned_offsets,
        "keys and queries of offsets are swapped": swapped_tables,
        "padding is seen": wrong_attention(masked=False),
        "dropout is left out": wrong_attention(drop=False),
        "products are scaled too late: in fp16 they are inf": scaled_at_the_end,
    }
    hint_for = dict(zip(variants, (0, 0, 4, 0, 1, 2, 2, 2, 1, 1, 3, 4, 5)))
    MOST = 2                                                   # offsets beyond share a row: P = 5

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", which=None, use="both", **more):
            mask, N, H, d, P = draw.mask(lengths, side=side), sum(lengths), 2, 4, 5
            queries = len(lengths) if which == "first" else N
            keys = draw.normal(P, H, d) if use in ("both", "c2p") else None
            asked = draw.normal(P, H, d) if use in ("both", "p2c") else None
            return Case(name, kind, {
                "q": draw.normal(queries, H, d), "k": draw.normal(N, H, d),
                "v": draw.normal(N, H, d), "positions": [keys, asked], "mask": mask,
                "which": which, "dropout": 0.0, **more})
        large = {name: torch.full((4, 1, 64), 40.0).half() for name in ("q", "k", "v")}
        return [case("two rows", "contract", [2, 4]),
                case("one row", "parity", [6]),
                case("padding on the right", "parity", [3, 7, 1]),
                case("padding on the left", "parity", [5, 2], "left"),
                case("c2p alone", "parity", [4, 6], use="c2p"),
                case("p2c alone", "parity", [6, 3], use="p2c"),
                case("content alone", "parity", [5, 2], use="none"),
                case("the first token of each row alone", "parity", [5, 3], which="first"),
                case("everything is dropped", "parity", [3, 3], dropout=ALL_DROPPED),
                Case("fp16, large numbers", "parity", large | {
                    "positions": [torch.full((5, 1, 64), 40.0).half()] * 2, "which": None,
                    "mask": draw.mask([3, 1]), "dropout": 0.0}, 4e-3)]

    def call(self, function, case):
        given = dict(case.arguments)
        rows = rows_of(given.pop("mask"), given.pop("which"))
        distance = rows.position_ids[:, :, None] - rows.key_position_ids[:, None, :]
        column = distance.clamp(-self.MOST, self.MOST) + self.MOST                   # (B, T, S)
        return {"x": function(rows=rows, column=column, **given)}
