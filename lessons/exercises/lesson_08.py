"""Exercises of lesson 8: pooling, label texts of several tokens, their tree, the temperature."""
import math
from types import SimpleNamespace

import torch

from lessons.exercises.kit import Case, Exercise


# ---------------------------------------------------------------- 8.1 pool

def first_token(real):
    return real.int().argmax(1)


def last_token(real):
    return torch.arange(real.shape[1]).where(real, -1).argmax(1)


def mean_of_tokens(hidden, real):
    return (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)


def max_of_tokens(hidden, real):
    return hidden.masked_fill(~real.unsqueeze(-1), -math.inf).amax(1)


def wrong_pool(first=first_token, last=last_token, mean=mean_of_tokens, largest=max_of_tokens):
    """A variant: pool with one thing in it changed."""
    def pool(hidden, mask, how):
        real, rows = mask.bool(), torch.arange(len(hidden))
        if how == "position":
            return hidden[:, -1]
        if how in ("first", "last"):
            return hidden[rows, (first if how == "first" else last)(real)]
        return (mean if how == "mean" else largest)(hidden, real)
    return pool


class Pool(Exercise):
    """Means of at most 6 numbers near 1 in fp32: 1e-5. What is picked is the same number."""
    variants = {
        "the last column is taken for the last token":
            wrong_pool(last=lambda real: torch.full((len(real),), -1)),
        "the last token is found by counting tokens":
            wrong_pool(last=lambda real: real.sum(1) - 1),
        "the last token is looked for before the first padding":
            wrong_pool(last=lambda real: (~real).int().argmax(1) - 1),
        "the first column is taken for the first token":
            wrong_pool(first=lambda real: torch.zeros(len(real), dtype=torch.long)),
        "the mean is of all columns": wrong_pool(mean=lambda hidden, real: hidden.mean(1)),
        "the sum of the tokens is divided by T":
            wrong_pool(mean=lambda hidden, real: (hidden * real.unsqueeze(-1)).mean(1)),
        "the maximum is of all columns": wrong_pool(largest=lambda hidden, real: hidden.amax(1)),
        "padding counts as 0 in the maximum":
            wrong_pool(largest=lambda hidden, real: (hidden * real.unsqueeze(-1)).amax(1)),
    }
    hint_for = dict(zip(variants, (0, 1, 1, 1, 2, 2, 3, 3)))

    def inputs(self, draw):
        sides = {"right": "on the right", "left": "on the left", "both": "on both sides"}

        def case(how, side, kind="parity"):
            form = ", form" if kind == "contract" else ""
            return Case(f"{how}, padding {sides[side]}{form}", kind,
                        {"hidden": draw.normal(3, 7, 4) - 1,
                         "mask": draw.mask([2, 6, 3], 7, side), "how": how})
        found = [case("last", "right", "contract"), case("mean", "left", "contract")]
        found += [case(how, side) for how in ("last", "first", "mean", "max") for side in sides]
        return [*found, Case("the common mistake, position", "parity",
                             {"hidden": draw.normal(2, 5, 3), "mask": draw.mask([2, 5]),
                              "how": "position"})]


# ---------------------------------------------------------------- 8.2 edge_log_probs

def over_siblings(logits, tree):
    """The softmax runs over the tokens of the edges that start at the same node."""
    chosen = logits[:, tree.edge_starts, tree.edge_tokens]                          # (B, E)
    same = tree.edge_starts[:, None] == tree.edge_starts                            # (E, E)
    return chosen - chosen[:, None].masked_fill(~same, -math.inf).logsumexp(-1)


def overflowing(logits, tree):
    return (logits.exp() / logits.exp().sum(-1, keepdim=True)).log()[
        :, tree.edge_starts, tree.edge_tokens]


class EdgeLogProbs(Exercise):
    """fp32 sums of 9 exponentials; a difference of numbers up to 200 keeps 2e-5: 1e-4."""
    tolerance = 1e-4
    variants = {
        "logits are taken for log-probabilities":
            lambda logits, tree: logits[:, tree.edge_starts, tree.edge_tokens],
        "the softmax runs over the tokens of the labels alone": over_siblings,
        "all edges are read at the end of the prompt":
            lambda logits, tree: logits.log_softmax(-1)[:, 0, tree.edge_tokens],
        "an edge is read one node too late":
            lambda logits, tree: logits.log_softmax(-1)[
                :, (tree.edge_starts + 1) % logits.shape[1], tree.edge_tokens],
        "probabilities, without a logarithm":
            lambda logits, tree: logits.softmax(-1)[:, tree.edge_starts, tree.edge_tokens],
        "the softmax runs over the nodes":
            lambda logits, tree: logits.log_softmax(1)[:, tree.edge_starts, tree.edge_tokens],
        "exp of a large logit overflows": overflowing,
    }
    hint_for = dict(zip(variants, (0, 1, 2, 2, 0, 1, 3)))

    def inputs(self, draw):
        def case(name, kind, starts, tokens, B=2, large=1):
            return Case(name, kind, {"logits": draw.normal(B, max(starts) + 1, 9) * large,
                                     "edge_starts": torch.tensor(starts),
                                     "edge_tokens": torch.tensor(tokens)})
        return [case("two texts of one token", "contract", [0, 0], [3, 5]),
                case("one text of two tokens", "contract", [0, 1], [3, 5], B=1),
                case("texts of one token", "parity", [0, 0, 0], [8, 0, 4], B=3),
                case("texts that begin alike", "parity", [0, 1, 1, 0], [7, 8, 2, 2]),
                case("texts of three tokens", "parity", [0, 1, 2, 2, 0, 3], [1, 2, 3, 4, 4, 2]),
                case("large logits", "parity", [0, 1, 1], [7, 8, 2], large=60)]

    def call(self, function, case):
        given = case.arguments
        tree = SimpleNamespace(edge_starts=given["edge_starts"], edge_tokens=given["edge_tokens"])
        return {"output": function(given["logits"], tree)}


# ---------------------------------------------------------------- 8.3 LabelReadout.add_by_class

def wrong_sum(join):
    """A variant: other sums over the texts of a class, join: (B, n) -> (B)."""
    def add_by_class(readout, log_probs):
        return torch.stack([join(log_probs[:, texts]) for texts in readout.class_texts], 1)
    return add_by_class


def in_order(readout, log_probs):
    """Takes the texts in their order, whatever class_texts says."""
    parts = log_probs.split([len(texts) for texts in readout.class_texts], 1)
    return torch.stack([part.logsumexp(1) for part in parts], 1)


class AddByClass(Exercise):
    """fp32 numbers up to 200 keep 2e-5: 1e-4."""
    tolerance = 1e-4
    variants = {
        "the log-probabilities are added": wrong_sum(lambda x: x.sum(1)),
        "the best text alone counts": wrong_sum(lambda x: x.amax(1)),
        "the first text alone counts": wrong_sum(lambda x: x[:, 0]),
        "the mean of the log-probabilities": wrong_sum(lambda x: x.mean(1)),
        "the mean of the probabilities, so a second text costs the first":
            wrong_sum(lambda x: x.logsumexp(1) - math.log(x.shape[1])),
        "exp of a small log-probability becomes 0": wrong_sum(lambda x: x.exp().sum(1).log()),
        "probabilities, without a logarithm": wrong_sum(lambda x: x.exp().sum(1)),
        "the numbers in class_texts are ignored": in_order,
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 1, 2, 2, 3)))

    def inputs(self, draw):
        def case(name, kind, class_texts, B=3, shift=3):
            count = sum(map(len, class_texts))
            return Case(name, kind, {"log_probs": -draw.uniform(B, count) * 4 - shift,
                                     "class_texts": class_texts})
        return [case("two classes", "contract", [[0], [1, 2]]),
                case("one text each", "parity", [[0], [1], [2]]),
                case("several texts", "parity", [[0, 1, 2], [3], [4, 5]]),
                case("long texts", "parity", [[0, 1], [2, 3]], shift=190),
                case("texts of two classes in turn", "parity", [[0, 2], [1, 3, 4]])]

    def call(self, function, case):
        readout = SimpleNamespace(class_texts=case.arguments["class_texts"])
        return {"output": function(readout, case.arguments["log_probs"])}


# ---------------------------------------------------------------- 8.4 fit_temperature

def bisected(logits, targets, lowest=1 / 100, highest=100.0, compare=True, halvings=60, gap=None):
    """The temperature, by halving the interval of log(1/T) until a rising function is 0."""
    logits = logits.double()
    rows = torch.arange(len(targets))

    def too_sharp(sharpness):
        p = (logits * sharpness).softmax(1)
        return gap(p) > 0 if gap else ((p * logits).sum(1) - logits[rows, targets]).mean() > 0

    def loss(sharpness):
        return -(logits * sharpness).log_softmax(1)[rows, targets].mean()
    low, high = -math.log(highest), -math.log(lowest)
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (low, middle) if too_sharp(math.exp(middle)) else (middle, high)
    sharpness = math.exp((low + high) / 2)
    return 1.0 if compare and loss(sharpness) >= loss(1.0) else 1 / sharpness


def wrong_fit(temperature, bias=lambda logits: [0.0] * logits.shape[1]):
    def fit_temperature(logits, targets):
        from minillmclf.classify.calibrate import Calibration
        return Calibration(bias(logits), temperature(logits, targets))
    return fit_temperature


def matched(logits, targets):
    """The temperature at which the mean probability of the answers is the accuracy."""
    accuracy = (logits.argmax(1) == targets).double().mean()
    return bisected(logits, targets, compare=False, gap=lambda p: p.amax(1).mean() - accuracy)


def some_steps(logits, targets):
    sharpness = torch.ones((), dtype=torch.float64, requires_grad=True)
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(logits.double() * sharpness, targets)
        sharpness = sharpness - 0.1 * torch.autograd.grad(loss, sharpness)[0]
    return 1 / sharpness.item()


class FitTemperature(Exercise):
    """The minimum is found in float64; near T = 1 a search by another way finds it to 1e-3."""
    tolerance = 1e-3
    variants = {
        "1/T is returned in place of T":
            wrong_fit(lambda logits, targets: 1 / bisected(logits, targets)),
        "probabilities are divided, not logits":
            wrong_fit(lambda logits, targets: bisected(logits.softmax(1), targets)),
        "the accuracy chooses, and no temperature changes it": wrong_fit(lambda *given: 1.0),
        "the mean probability of the answers is made equal to the accuracy": wrong_fit(matched),
        "five steps of gradient descent, which end too early": wrong_fit(some_steps),
        "no temperature below 1 is tried":
            wrong_fit(lambda logits, targets: bisected(logits, targets, lowest=1.0)),
        "no temperature above 10 is tried":
            wrong_fit(lambda logits, targets: bisected(logits, targets, highest=10.0)),
        "the temperature 1 is not compared":
            wrong_fit(lambda logits, targets: bisected(logits, targets, compare=False)),
        "a bias is fitted, too":
            wrong_fit(bisected, lambda logits: logits.double().log_softmax(1).mean(0).tolist()),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 2, 3, 3, 3, 4)))

    def inputs(self, draw):
        def drawn(N, C, large, wrong):
            """Logits (N, C), and their likeliest classes, but for every row of N / `wrong`."""
            logits = draw.normal(N, C)
            targets = logits.argmax(1)
            targets[:wrong] = (targets[:wrong] + 1) % C
            return {"logits": logits * large, "targets": targets}
        shifted = drawn(30, 4, 3, 8)
        shifted["logits"] = shifted["logits"] - 20 * draw.uniform(30, 1)
        return [Case("twenty rows", "contract", drawn(20, 3, 2, 6)),
                Case("too sure", "parity", drawn(40, 4, 5, 14)),
                Case("not sure enough", "parity", drawn(40, 4, 0.3, 4)),
                Case("log-probabilities that do not sum to one", "parity", shifted),
                Case("all rows are right", "parity", drawn(12, 3, 2, 0)),
                Case("all rows are wrong", "parity", drawn(12, 3, 2, 12)),
                Case("all logits are 0", "parity", {"logits": torch.zeros(5, 3),
                                                    "targets": draw.integers(0, 3, 5)})]

    def call(self, function, case):
        found = function(**case.arguments)
        return {"bias": [float(number) for number in found.bias],
                "temperature": float(found.temperature)}


# ---------------------------------------------------------------- 8.5 merge_beginnings

def wrong_merge(key=lambda path, number, token: (path[-1], token), starts=None, inner=None,
                depth=lambda upto: len(upto) - 1, order=None,
                sees=lambda edge, other, upto: other in upto[edge]):
    """A variant: merge_beginnings with one thing in it changed."""
    def merge_beginnings(sequences):
        edges, paths, before, tokens = {}, [], [], []
        for number, sequence in enumerate(sequences):
            path = [-1]
            for token in sequence:
                known = key(path, number, token)
                if known not in edges:
                    edges[known] = len(edges)
                    before.append(path[-1])
                    tokens.append(token)
                path.append(edges[known])
            paths.append(path[1:])
        if order:
            paths, before, tokens = order(paths, before, tokens)
        nodes = inner(paths) if inner else sorted(set(before) - {-1})
        node = {-1: 0} | {edge: place for place, edge in enumerate(nodes, 1)}
        upto = {edge: path[:place] for path in paths for place, edge in enumerate(path, 1)}
        return {"paths": paths, "edge_tokens": tokens,
                "edge_starts": (starts or (lambda node, before: [node[e] for e in before]))(
                    node, before),
                "node_tokens": [tokens[edge] for edge in nodes],
                "node_depths": [depth(upto[edge]) for edge in nodes],
                "node_mask": [[sees(edge, other, upto) for other in nodes] for edge in nodes]}
    return merge_beginnings


def by_level(paths, before, tokens):
    """Edges are numbered anew: all first tokens, all second ones, and so on."""
    upto = {edge: place for path in paths for place, edge in enumerate(path)}
    found = sorted(upto, key=lambda edge: (upto[edge], edge))
    new = {-1: -1} | {edge: place for place, edge in enumerate(found)}
    return ([[new[edge] for edge in path] for path in paths],
            [new[before[edge]] for edge in found], [tokens[edge] for edge in found])


class MergeBeginnings(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "nothing is shared: each text has edges of its own":
            wrong_merge(lambda path, number, token: (number, len(path), token)),
        "a token is shared wherever it stands at the same depth":
            wrong_merge(lambda path, number, token: (len(path), token)),
        "only the first token is shared":
            wrong_merge(lambda path, number, token: token if len(path) == 1
                        else (number, len(path), token)),
        "leaves are nodes, too": wrong_merge(inner=lambda paths: sorted(set(sum(paths, [])))),
        "an edge starts at the node where it ends":
            wrong_merge(starts=lambda node, before: [node.get(edge, 0)
                                                     for edge in range(len(before))]),
        "all edges start at the end of the prompt":
            wrong_merge(starts=lambda node, before: [0] * len(before)),
        "depths are counted from 1": wrong_merge(depth=len),
        "a node does not see itself":
            wrong_merge(sees=lambda edge, other, upto: other in upto[edge][:-1]),
        "a node sees all nodes before it, those of other texts too":
            wrong_merge(sees=lambda edge, other, upto: other <= edge),
        "a node sees those after it, not those before":
            wrong_merge(sees=lambda edge, other, upto: edge in upto[other]),
        "edges are numbered level by level": wrong_merge(order=by_level),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 5)))

    def inputs(self, draw):
        def texts(count, longest):
            return [draw.integers(1, 4, int(draw.integers(1, longest + 1))).tolist()
                    for _ in range(count)]
        named = {"texts of one token": [[4], [7], [1]],
                 "very good, very bad, bad": [[7, 8], [7, 9], [9]],
                 "the same token after two beginnings": [[1, 2, 3], [4, 2, 5]],
                 "one text begins another": [[1], [1, 2], [1, 2, 3]],
                 "a long beginning": [[5, 6, 7, 1, 2], [5, 6, 7, 3], [5, 6, 8, 1, 4], [2, 6, 1]]}
        return [Case("two texts", "contract", {"sequences": [[3, 4, 5], [3, 6]]}),
                *(Case(name, "parity", {"sequences": each}) for name, each in named.items()),
                Case("five drawn texts", "parity", {"sequences": texts(5, 4)}),
                Case("twelve drawn texts", "parity", {"sequences": texts(12, 5)})]
