"""Exercises of lesson 12: bottlenecks, prefixes as keys and values, recomputing, windows."""
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lessons.exercises.kit import Case, Exercise

# ---------------------------------------------------------------- 12.1 Bottleneck.forward


def wrong_forward(enter=lambda layer, x, y: y, inner=lambda layer, x: layer.activation(
        layer.down(x)), join=lambda x, y, change: y + change.to(y.dtype), last=lambda x: x):
    """A variant: forward with one thing in it changed."""
    def forward(self, x):
        y = self.base(x)
        entered = enter(self, x, y).to(self.down.weight.dtype)
        return join(x, y, last(self.up(inner(self, entered))))
    return forward


class BottleneckForward(Exercise):
    """fp32 sums of 5 products of numbers near 1: 1e-5. The two GELUs differ by up to 5e-4."""
    variants = {
        "what the layer gives is not added": wrong_forward(
            join=lambda x, y, change: change.to(y.dtype)),
        "the network reads what enters the layer": wrong_forward(lambda layer, x, y: x),
        "what enters the layer is added": wrong_forward(
            join=lambda x, y, change: x + change.to(y.dtype)),
        "there is no activation": wrong_forward(inner=lambda layer, x: layer.down(x)),
        "the activation comes after up": wrong_forward(inner=lambda layer, x: layer.down(x),
                                                       last=F.gelu),
        "the activation comes before down": wrong_forward(
            inner=lambda layer, x: layer.down(layer.activation(x))),
        "ReLU in place of GELU": wrong_forward(inner=lambda layer, x: layer.down(x).relu()),
        "GELU is the formula with tanh": wrong_forward(
            inner=lambda layer, x: F.gelu(layer.down(x), approximate="tanh")),
        "the result is fp32 where the layer has 16 bits": wrong_forward(
            join=lambda x, y, change: y + change),
    }
    hint_for = dict(zip(variants, (1, 0, 1, 2, 2, 2, 2, 2, 3)))

    def inputs(self, draw):
        def case(name, kind, shape, D=5, dtype="float32", tolerance=None):
            weights = {"base.weight": draw.normal(D, shape[-1]), "base.bias": draw.normal(D),
                       "down.weight": draw.normal(2, D), "down.bias": draw.normal(2),
                       "up.weight": draw.normal(D, 2), "up.bias": draw.normal(D)}
            return Case(name, kind, {"x": draw.normal(*shape), "weights": weights, "dtype": dtype},
                        tolerance)
        return [case("three tokens", "contract", (3, 5)), case("many tokens", "parity", (9, 5)),
                case("another width behind the layer", "parity", (4, 3)),
                case("three dimensions", "parity", (2, 3, 5)),
                case("a layer in 16 bits", "parity", (4, 5), dtype="bfloat16", tolerance=0.2)]

    def call(self, function, case):
        from minillmclf.tuning.bottleneck import Bottleneck
        given, weights = case.arguments, case.arguments["weights"]
        dtype, (D, width) = getattr(torch, given["dtype"]), weights["base.weight"].shape
        layer = Bottleneck(torch.nn.Linear(width, D).to(dtype), 2, torch.Generator())
        layer.load_state_dict(weights)
        with torch.no_grad():
            return {"y": function(layer, given["x"].to(dtype))}


# ---------------------------------------------------------------- 12.2 Prefix.cache

def split(prefix, rows):
    """(P, L*2*K*d) -> (L, 2, K, P, d), right."""
    layers, heads, width = prefix.shape
    return rows.view(prefix.tokens, layers, 2, heads, width).permute(1, 2, 3, 0, 4)


def sides_first(prefix, rows):
    layers, heads, width = prefix.shape
    return rows.view(prefix.tokens, 2, layers, heads, width).permute(2, 1, 3, 0, 4)


def width_first(prefix, rows):
    layers, heads, width = prefix.shape
    return rows.view(prefix.tokens, layers, 2, width, heads).permute(1, 2, 4, 0, 3)


def only_viewed(prefix, rows):
    layers, heads, width = prefix.shape
    return rows.view(layers, 2, heads, prefix.tokens, width)


def wrong_cache(parts=split, rows=lambda prefix: prefix.embeddings(), repeat=None,
                mask=lambda batch, tokens: torch.ones(batch, tokens, dtype=torch.bool)):
    """A variant: cache with one thing in it changed."""
    def cache(self, batch):
        from minillmclf.models.cache import Cache
        made = Cache()
        for layer, (k, v) in enumerate(parts(self, rows(self))):
            k, v = ((repeat or torch.Tensor.expand)(x, batch, *x.shape) for x in (k, v))
            made.put(layer, k, v)
        made.mask = mask(batch, self.tokens)
        return made
    return cache


class PrefixCache(Exercise):
    """Numbers are moved, not computed, but for a small network of the prefix in fp32: 1e-5."""
    variants = {
        "values stand before keys": wrong_cache(lambda p, rows: split(p, rows).flip(1)),
        "a row has the keys of all layers, then the values": wrong_cache(sides_first),
        "a row has the numbers of all heads side by side": wrong_cache(width_first),
        "the table is viewed in its new shape, so that numbers of tokens mix":
            wrong_cache(only_viewed),
        "tokens stand before heads: (B, P, K, d)":
            wrong_cache(lambda p, rows: split(p, rows).transpose(2, 3)),
        "the layers are in reverse": wrong_cache(lambda p, rows: split(p, rows).flip(0)),
        "all layers have the first one's": wrong_cache(
            lambda p, rows: split(p, rows)[:1].expand(p.shape[0], -1, -1, -1, -1)),
        "one row in place of the batch":
            wrong_cache(repeat=lambda x, batch, *shape: x.expand(1, *shape)),
        "the network of the prefix is left out":
            wrong_cache(rows=lambda prefix: prefix.embedding.weight),
        "nothing can learn: the numbers are cut off from the parameters":
            wrong_cache(rows=lambda prefix: prefix.embeddings().detach()),
        "no token of the prefix is seen": wrong_cache(
            mask=lambda batch, tokens: torch.zeros(batch, tokens, dtype=torch.bool)),
        "there is no mask": wrong_cache(mask=lambda batch, tokens: None),
    }
    hint_for = dict(zip(variants, (1, 0, 0, 2, 2, 0, 0, 3, 0, 0, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, shape, P, batch, projection=False):
            L, K, d = shape
            D, row = K * d, L * 2 * K * d
            shapes = {"embedding.weight": (P, D if projection else row)}
            if projection:
                shapes |= {"transform.0.weight": (D, D), "transform.0.bias": (D,),
                           "transform.2.weight": (row, D), "transform.2.bias": (row,)}
            return Case(name, kind, {
                "shape": [L, K, d], "tokens": P, "batch": batch, "projection": projection,
                "weights": {name: draw.normal(*shape) for name, shape in shapes.items()}})
        return [case("one text", "contract", (2, 2, 3), 4, 1),
                case("three texts", "parity", (3, 2, 3), 4, 3),
                case("one layer, one head, one token", "parity", (1, 1, 4), 1, 2),
                case("as many of each", "parity", (2, 2, 2), 2, 2),
                case("with the network of the paper", "parity", (2, 2, 3), 5, 2, True)]

    def call(self, function, case):
        from minillmclf.tuning.prefix import Prefix
        given = case.arguments
        prefix = Prefix(tuple(given["shape"]), given["tokens"], given["projection"])
        prefix.load_state_dict(given["weights"])
        cache, learns = function(prefix, given["batch"]), None
        if all(x.requires_grad for x in [*cache.keys, *cache.values]):
            sum(x.square().sum() for x in [*cache.keys, *cache.values]).backward()
            learns = prefix.embedding.weight.grad is not None
        return {"keys": cache.keys, "values": cache.values, "mask": cache.mask, "learns": learns}


# ---------------------------------------------------------------- 12.3 RecomputedForward.__call__

class Block(torch.nn.Module):
    """A block that counts its runs, draws numbers as dropout does, and asks rows for keys."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.runs = torch.nn.Parameter(weight), 0

    def forward(self, x, rows):
        self.runs += 1
        keys, values = rows.keys_values(*(x @ self.weight for _ in range(2)))     # (B, 1, S, d)
        drawn = torch.randint(0, 2, x.shape)           # whole numbers: the same on each machine
        return (x @ self.weight).tanh() * drawn + (keys * values).mean() / 8


def counted(arguments, inside=True):
    """-> [(rows that count layers, the layer), ...]. inside: also those that other rows hold."""
    rows = [getattr(each, "rows", each) if inside else each for each in arguments]
    return [(each, each.layer) for each in rows if hasattr(each, "layer")]


def wrong_call(set_back=counted, enter=lambda x: x, **options):
    """A variant: __call__ with one thing in it changed."""
    def __call__(self, *arguments):
        if not torch.is_grad_enabled():
            return self.forward(*arguments)
        remembered = set_back(arguments)

        def run(*arguments):
            for rows, layer in remembered:
                rows.layer = layer
            return self.forward(*arguments)
        return checkpoint(run, *map(enter, arguments), **{"use_reentrant": False} | options)
    return __call__


def not_kept(self, *arguments):
    with torch.no_grad():
        return self.forward(*arguments)


def not_again(self, *arguments):
    return self.forward(*arguments)


class Recompute(Exercise):
    """fp32 sums of 4 products of numbers near 1, and their gradients up to 20: 1e-4."""
    tolerance = 1e-4
    preload = ("torch._dynamo",)                       # torch's checkpoint imports it when called
    variants = {
        "nothing is forgotten and computed again": not_again,
        "nothing is kept, so nothing learns": not_kept,
        "dropout drops other numbers the second time": wrong_call(preserve_rng_state=False),
        "reentrant: no gradient where the input needs none": wrong_call(use_reentrant=True),
        "the input is detached, so lower blocks do not learn": wrong_call(
            enter=lambda x: x.detach() if isinstance(x, torch.Tensor) else x),
        "the number of the layer is not set back": wrong_call(lambda arguments: []),
        "the number of the layer is set back to 0": wrong_call(
            lambda arguments: [(rows, 0) for rows, layer in counted(arguments)]),
        "rows inside others are not set back": wrong_call(
            lambda arguments: counted(arguments, inside=False)),
    }
    hint_for = dict(zip(variants, (0, 0, 2, 3, 0, 4, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, **more):
            return Case(name, kind, {
                "x": draw.normal(3, 4), "weights": draw.normal(2, 4, 4), "mask": draw.mask([2, 1]),
                "kept": draw.normal(2, 2, 2, 1, 2, 4), "gradient": draw.normal(3, 4),
                "cached": False, "few": False, "needs": True, "learn": True, **more})
        return [case("one block after another", "contract"), case("gradients", "parity"),
                case("an input without a gradient", "parity", needs=False),
                case("behind a prefix", "parity", cached=True),
                case("behind a prefix, rows inside others", "parity", cached=True, few=True),
                case("without gradients", "parity", learn=False)]

    def rows_for(self, given):
        from minillmclf.models.cache import Cache, CachedRows
        from minillmclf.models.last_token import FewQueries
        from minillmclf.models.layers import Rows
        if not given["cached"]:
            return Rows(given["mask"])
        cache = Cache()
        for layer, (k, v) in enumerate(given["kept"]):
            cache.put(layer, k, v)
        cache.mask = torch.ones(2, 2, dtype=torch.bool)
        rows = CachedRows(given["mask"], cache)
        return FewQueries(rows, "last") if given["few"] else rows

    def call(self, function, case):
        from minillmclf.training.recompute import RecomputedForward
        given = case.arguments
        torch.manual_seed(0)
        x = given["x"].unsqueeze(1).clone().requires_grad_(given["needs"])
        rows = self.rows_for(given)
        blocks, y = [Block(weight) for weight in given["weights"]], x              # x: (N, 1, 4)
        with torch.set_grad_enabled(given["learn"]):
            for block in blocks:
                y = function(RecomputedForward(block.forward), y, rows)
        before = [block.runs for block in blocks]
        torch.randint(0, 2, (5,))                                  # others draw numbers, too
        if y.requires_grad:
            y.backward(given["gradient"].unsqueeze(1))
        return {"y": y, "runs before": before, "runs": [block.runs for block in blocks],
                "of x": x.grad, "of weights": [block.weight.grad for block in blocks]}


# ---------------------------------------------------------------- 12.4 Windows.read

class WindowHead:
    """A head that a window of ids (W, size) goes through, and that counts what it is given."""

    def __init__(self, given):
        self.given, self.most, self.seen = given, 0, 0

    def states_to_pool(self, backbone, ids, mask, types=None, layout=None):
        self.most, self.seen = max(self.most, len(ids)), self.seen + len(ids)
        hidden = self.given["words"][ids]                                           # (W, size, D)
        return hidden if types is None else hidden + self.given["types"][types], mask

    def features(self, hidden, mask):
        return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)

    def class_logits(self, features):
        return features.tanh() @ self.given["out"]

    def __call__(self, hidden, mask):
        return self.class_logits(self.features(hidden, mask))


def pooled(windows, head, parts):
    """Each document's features (its windows, D) -> logits (B, C), right."""
    if windows.pool == "attention":
        return head.class_logits(torch.stack([windows.window_weights(x) @ x for x in parts]))
    logits = [head.class_logits(x) for x in parts]
    return torch.stack([x.mean(0) if windows.pool == "mean" else x.amax(0) for x in logits])


def other_logits(change):
    """As `pooled`, but the logits of the windows are changed first."""
    def pool(windows, head, parts):
        if windows.pool == "attention":
            return pooled(windows, head, parts)
        logits = [change(head.class_logits(x)) for x in parts]
        return torch.stack([x.mean(0) if windows.pool == "mean" else x.amax(0) for x in logits])
    return pool


def weighed(weights, logits=False):
    """As `pooled`, with other weights of attention, or with logits weighed."""
    def pool(windows, head, parts):
        if windows.pool != "attention":
            return pooled(windows, head, parts)
        if logits:
            return torch.stack([weights(windows, x) @ head.class_logits(x) for x in parts])
        return head.class_logits(torch.stack([weights(windows, x) @ x for x in parts]))
    return pool


def wrong_read(pool=pooled, at_once=lambda B: max(B, 8), drawn=lambda training: training,
               documents=lambda x, counts: x.split(counts), kinds=lambda types: types):
    """A variant: read with one thing in it changed."""
    def read(self, head, backbone, ids, mask, types=None):
        from minillmclf.classify.windows import cut_into_windows
        size, types = at_once(len(ids)), kinds(types)
        ids, mask, types, counts = cut_into_windows(ids, mask, types, self.size)
        if drawn(self.training):
            ids, mask, types, counts = self.draw_windows(ids, mask, types, counts)
        found = []
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            chosen = (x if x is None else x[part] for x in (ids, mask, types))
            found.append(head.features(*head.states_to_pool(backbone, *chosen)))
        return pool(self, head, documents(torch.cat(found), counts))
    return read


def uncut(self, head, backbone, ids, mask, types=None):
    return head(*head.states_to_pool(backbone, ids, mask, types))


def last_windows(x, counts):
    return [part[-1:] for part in x.split(counts)]


class ReadWindows(Exercise):
    """fp32 means of at most 60 numbers near 1: 1e-5."""
    variants = {
        "rows are not cut into windows": uncut,
        "all documents have equally many windows":
            wrong_read(documents=lambda x, counts: x.tensor_split(len(counts))),
        "only the first window of each document is read":
            wrong_read(documents=lambda x, counts: [part[:1] for part in x.split(counts)]),
        "only the last window of each document is read": wrong_read(documents=last_windows),
        "probabilities are pooled, not logits": wrong_read(
            other_logits(lambda logits: logits.softmax(-1))),
        "the mean where the maximum is asked for": wrong_read(lambda windows, head, parts: pooled(
            windows if windows.pool == "attention" else SimpleNamespace(pool="mean"), head, parts)),
        "the sum in place of the mean": wrong_read(lambda windows, head, parts: torch.stack(
            [head.class_logits(x).sum(0) for x in parts]) if windows.pool == "mean"
            else pooled(windows, head, parts)),
        "attention weighs all windows alike": wrong_read(weighed(
            lambda windows, x: torch.full((len(x),), 1 / len(x)))),
        "attention weighs logits, not features": wrong_read(weighed(
            lambda windows, x: windows.window_weights(x), True)),
        "attention gives the mean of the logits": wrong_read(weighed(
            lambda windows, x: torch.full((len(x),), 1 / len(x)), True)),
        "windows are drawn in prediction, too": wrong_read(drawn=lambda training: True),
        "all windows are read in training": wrong_read(drawn=lambda training: False),
        "all windows are read at once": wrong_read(at_once=lambda B: 1000),
        "token types are forgotten": wrong_read(kinds=lambda types: None),
    }
    hint_for = dict(zip(variants, (0, 3, 3, 3, 3, 3, 3, 4, 4, 4, 1, 1, 5, 2)))

    def inputs(self, draw):
        def case(name, kind, pool, lengths=(18, 4, 12), side="right", types=False, training=False):
            mask = draw.mask(lengths, side=side)
            ids = torch.full_like(mask, 3) if training else draw.integers(0, 9, *mask.shape)
            return Case(name, kind, {
                "pool": pool, "ids": ids, "mask": mask, "training": training,
                "kinds": draw.integers(0, 2, *mask.shape) if types else None,
                "words": draw.normal(9, 3), "types": draw.normal(2, 3), "out": draw.normal(3, 4),
                "U": draw.normal(128, 3), "v": draw.normal(1, 128)})
        return [case("two documents", "contract", "mean", (12, 6)),
                case("short texts alone", "contract", "max", (4, 6)),
                *(case(f"{pool} of ragged documents", "parity", pool)
                  for pool in ("mean", "max", "attention")),
                case("padding on the left", "parity", "max", (6, 30), "left"),
                case("a long document", "parity", "mean", (66, 6)),
                case("token types", "parity", "max", types=True),
                case("in training, more windows than are drawn", "parity", "mean", (30, 12),
                     training=True)]

    def call(self, function, case):
        from minillmclf.classify.windows import Windows
        given = case.arguments
        windows = Windows(3, 6, given["pool"], 2, 4, 100).train(given["training"])
        if given["pool"] == "attention":
            windows.load_state_dict({"U.weight": given["U"], "v.weight": given["v"]})
        head, texts = WindowHead(given), len(given["ids"])
        torch.manual_seed(0)                                       # windows are drawn
        with torch.no_grad():
            logits = function(windows, head, None, given["ids"], given["mask"], given["kinds"])
        return {"logits": logits, "few windows at a time": head.most <= max(texts, 8),
                "windows read": head.seen}
