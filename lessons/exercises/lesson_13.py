"""Exercises of lesson 13: answers as targets, their loss, ties, both orders of two answers."""
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from lessons.exercises.kit import Case, Exercise

# ---------------------------------------------------------------- 13.1 LabelReadout.target_ids


def first_text(readout, label):
    return readout.class_texts[label][0]


def tokens_of(readout, number):
    return readout.tree.edge_tokens[readout.tree.paths[number]]


def wrong_targets(number=first_text, tokens=tokens_of, order=lambda labels: labels,
                  mask=lambda ids, real: real, pad=lambda rows: pad_sequence(rows, True)):
    """A variant: target_ids with one thing in it changed."""
    def target_ids(self, labels):
        rows = [tokens(self, number(self, label)) for label in order(labels.tolist())]
        ids, real = pad(rows), pad([torch.ones_like(row) for row in rows])
        return ids, mask(ids, real)
    return target_ids


def pad_left(rows):
    return pad_sequence([row.flip(0) for row in rows], True).flip(1)


def all_texts(self, labels):
    rows = [torch.cat([tokens_of(self, number) for number in self.class_texts[label]])
            for label in labels.tolist()]
    return pad_sequence(rows, True), pad_sequence([torch.ones_like(row) for row in rows], True)


class TargetIds(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "edges are taken for tokens": wrong_targets(
            tokens=lambda readout, number: torch.tensor(readout.tree.paths[number])),
        "the number of the class is taken for that of its text":
            wrong_targets(lambda readout, label: label),
        "the last text of a class, not its first":
            wrong_targets(lambda readout, label: readout.class_texts[label][-1]),
        "all texts of a class, one after another": all_texts,
        "padding is known by its id, 0": wrong_targets(mask=lambda ids, real: (ids != 0).long()),
        "padding is not masked": wrong_targets(mask=lambda ids, real: torch.ones_like(ids)),
        "padding stands on the left": wrong_targets(pad=pad_left),
        "the last token is left out": wrong_targets(
            tokens=lambda readout, number: tokens_of(readout, number)[:-1]),
        "the rows are in the order of the classes": wrong_targets(order=sorted),
    }
    hint_for = dict(zip(variants, (1, 0, 0, 0, 3, 3, 2, 1, 0)))

    def inputs(self, draw):
        def case(name, kind, paths, class_texts, labels):
            edges = 1 + max(map(max, paths))
            return Case(name, kind, {"paths": paths, "class_texts": class_texts,
                                     "edge_tokens": 20 + draw.integers(0, 50, edges),
                                     "labels": torch.tensor(labels)})
        with_zeros = case("tokens with the id 0", "parity", [[0, 1], [2], [0, 3, 1]],
                          [[0], [1], [2]], [1, 0, 2, 1])
        with_zeros.arguments["edge_tokens"] = torch.tensor([5, 0, 0, 7])
        return [case("two answers of two tokens", "contract", [[0, 1], [0, 2]], [[0], [1]], [1, 0]),
                case("answers of different lengths", "parity", [[0], [1, 2], [1, 3, 4]],
                     [[0], [1], [2]], [2, 0, 1, 0]),
                case("several texts for a class", "parity", [[0], [1, 2], [3], [4, 5, 6], [7, 8]],
                     [[0, 1], [2], [3, 4]], [2, 1, 0, 2]),
                case("texts in another order", "parity", [[0, 1, 2], [3], [4, 5]],
                     [[2], [0], [1]], [0, 2, 1]), with_zeros]

    def call(self, function, case):
        given = case.arguments
        tree = SimpleNamespace(paths=given["paths"], edge_tokens=given["edge_tokens"])
        readout = SimpleNamespace(tree=tree, class_texts=given["class_texts"])
        ids, mask = function(readout, given["labels"])
        used = int(mask.long().any(0).nonzero().max()) + 1         # wider padding is no mistake
        mask = mask.long()[:, :used]
        return {"ids": ids[:, :used] * mask, "mask": mask}


# ---------------------------------------------------------------- 13.2 completion_loss

LLAMA = dict(vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
             num_attention_heads=2, num_key_value_heads=1, head_dim=4, rms_norm_eps=1e-6,
             max_position_embeddings=32, tie_word_embeddings=True)
LLAMA_SHAPES = {"word_embeddings.weight": (12, 8), "final_norm.weight": (8,)} | {
    f"layers.0.{name}.weight": shape for name, shape in {
        "attention_norm": (8,), "mlp_norm": (8,), "q_proj": (8, 8), "k_proj": (4, 8),
        "v_proj": (4, 8), "o_proj": (8, 8), "gate_proj": (12, 8), "up_proj": (12, 8),
        "down_proj": (8, 12)}.items()}


def row_losses(backbone, ids, answer, shift=0):
    """A prompt (T) and its answer (n) -> -log p of all tokens after the first, (T + n - 1)."""
    row = torch.cat([ids, answer])
    logits = backbone.logits(backbone(row[None], torch.ones_like(row[None]))[0])       # (T + n, V)
    return F.cross_entropy(logits[:-1], row[1:] if not shift else row[:-1], reduction="none")


def wrong_loss(choose=lambda losses, answer: losses[-len(answer):], join=torch.sum, shift=0,
               prompts=lambda ids, mask: ids[mask.bool()]):
    """A variant: completion_loss with one thing in it changed, row by row."""
    def completion_loss(self, backbone, ids, mask, labels):
        answers, real = self.target_ids(labels)
        found = []
        for row, seen, answer, length in zip(ids, mask, answers, real.sum(1).tolist()):
            answer = answer[:length]
            losses = row_losses(backbone, prompts(row, seen), answer, shift)
            found.append(choose(losses, answer))
        return join(torch.cat(found))
    return completion_loss


def padded_answers(self, backbone, ids, mask, labels):
    answers, _ = self.target_ids(labels)
    return sum(row_losses(backbone, row[seen.bool()], answer)[-len(answer):].sum()
               for row, seen, answer in zip(ids, mask, answers))


def label_tokens_only(self, backbone, ids, mask, labels):
    """The softmax runs over the tokens of this batch's answers alone."""
    answers, real = self.target_ids(labels)
    known = answers[real.bool()].unique()
    total = 0.0
    for row, seen, answer, length in zip(ids, mask, answers, real.sum(1).tolist()):
        row = torch.cat([row[seen.bool()], answer[:length]])
        logits = backbone.logits(backbone(row[None], torch.ones_like(row[None]))[0])[-length - 1:-1]
        total = total + F.cross_entropy(logits[:, known], torch.searchsorted(
            known, answer[:length]), reduction="sum")
    return total


def first_states(self, backbone, ids, mask, labels):
    """Of the n states of a row with a short answer, the first are taken, not the last."""
    answers, real = self.target_ids(labels)
    total = 0.0
    for row, seen, answer, length in zip(ids, mask, answers, real.sum(1).tolist()):
        row = torch.cat([row[seen.bool()], answer[:length - 1]])
        logits = backbone.logits(backbone(row[None], torch.ones_like(row[None]))[0])       # (T, V)
        total = total + F.cross_entropy(logits[-answers.shape[1]:][:length], answer[:length],
                                        reduction="sum")
    return total


class AnswerLoss(Exercise):
    """fp32 sums of at most 12 losses below 30, after one layer: 1e-3."""
    tolerance = 1e-3
    variants = {
        "the prompt's tokens count, too": wrong_loss(lambda losses, answer: losses),
        "the mean in place of the sum": wrong_loss(join=torch.mean),
        "only the first token of an answer counts":
            wrong_loss(lambda losses, answer: losses[-len(answer):][:1]),
        "the last token of an answer does not count":
            wrong_loss(lambda losses, answer: losses[-len(answer):][:-1]),
        "each token is predicted from itself, not from the one before it": wrong_loss(shift=1),
        "the padding behind short answers counts": padded_answers,
        "tokens with the id 0 do not count, as if they were padding":
            wrong_loss(lambda losses, answer: losses[-len(answer):][answer != 0]),
        "padding in the prompt is read like text": wrong_loss(prompts=lambda ids, mask: ids),
        "the softmax runs over the tokens of answers alone": label_tokens_only,
        "of a short answer's n states the first are taken, not the last": first_states,
    }
    hint_for = dict(zip(variants, (2, 3, 2, 2, 1, 2, 2, 4, 3, 4)))

    def inputs(self, draw):
        weights = {name: draw.normal(*shape) + name.endswith("norm.weight")
                   for name, shape in LLAMA_SHAPES.items()}

        def case(name, kind, lengths, answers, labels, side="left"):
            mask = draw.mask(lengths, side=side)
            return Case(name, kind, {"weights": weights, "mask": mask, "answers": answers,
                                     "ids": draw.integers(1, 12, *mask.shape),
                                     "labels": torch.tensor(labels)})
        return [case("two answers of two tokens", "contract", [3, 3], [[4, 5], [7, 8]], [1, 0]),
                case("no padding", "parity", [4, 4], [[3, 9], [5, 2]], [0, 1]),
                case("answers of different lengths", "parity", [3, 3, 3], [[4], [7, 8, 2], [1, 6]],
                     [1, 0, 2]),
                case("ragged prompts, padded on the left", "parity", [2, 6, 4], [[4, 3], [7]],
                     [0, 1, 0]),
                case("ragged prompts, padded on the right", "parity", [5, 2, 3],
                     [[4, 3, 9], [7, 8]], [1, 0, 1], "right"),
                case("an end token that also pads", "parity", [3, 5, 2], [[4, 0], [7, 8, 0]],
                     [0, 1, 1], "right")]

    def call(self, function, case):
        from minillmclf.models.llama import Llama
        given = case.arguments
        backbone = Llama.from_config(LLAMA)
        backbone.load_state_dict(given["weights"])

        def target_ids(labels):
            rows = [torch.tensor(given["answers"][label]) for label in labels.tolist()]
            return pad_sequence(rows, True), pad_sequence([torch.ones_like(r) for r in rows], True)
        readout = SimpleNamespace(target_ids=target_ids)
        with torch.no_grad():
            return {"loss": function(readout, backbone.eval(), given["ids"], given["mask"],
                                     given["labels"])}


# ---------------------------------------------------------------- 13.3 davidson

def wrong_davidson(weights):
    """A variant: log-weights of a, b and tie, of which the softmax is taken."""
    def davidson(r_a, r_b, log_nu):
        return torch.stack(weights(r_a, r_b, log_nu.expand_as(r_a)), 1).log_softmax(1)
    return davidson


def overflowing(r_a, r_b, log_nu):
    a, b = r_a.exp(), r_b.exp()
    weights = torch.stack([a, b, log_nu.exp() * (a * b).sqrt()], 1)
    return (weights / weights.sum(1, keepdim=True)).log()


def without_ties_below(r_a, r_b, log_nu):
    half = (r_a - r_b) / 2
    log_z = torch.logaddexp(half, -half)
    return torch.stack([half - log_z, -half - log_z, log_nu.expand_as(half) - log_z], 1)


def rao_kupper(r_a, r_b, log_nu):
    """Ties by a threshold: p(a) = sigmoid(d - log(1 + nu)), and the rest is a tie."""
    d, threshold = r_a - r_b, torch.log1p(log_nu.exp())
    a, b = (d - threshold).sigmoid(), (-d - threshold).sigmoid()
    return torch.stack([a, b, 1 - a - b], 1).log()


class Davidson(Exercise):
    """fp32 differences of numbers up to 200 keep 2e-5: 1e-4."""
    tolerance = 1e-4
    variants = {
        "d is not halved, though nu stands for sqrt(w_a w_b)": wrong_davidson(
            lambda a, b, tie: [a - b, b - a, tie]),
        "the weight of a tie is nu alone": wrong_davidson(lambda a, b, tie: [a, b, tie]),
        "the weight of a tie is nu w_a w_b, without a root": wrong_davidson(
            lambda a, b, tie: [a, b, tie + a + b]),
        "a tie has the probability of a coin: nu times that of a": wrong_davidson(
            lambda a, b, tie: [a, b, tie + a]),
        "nu is taken for its logarithm": wrong_davidson(
            lambda a, b, tie: [(a - b) / 2, (b - a) / 2, tie.exp()]),
        "a and b have changed places": wrong_davidson(
            lambda a, b, tie: [(b - a) / 2, (a - b) / 2, tie]),
        "the tie is the first column": wrong_davidson(
            lambda a, b, tie: [tie, (a - b) / 2, (b - a) / 2]),
        "the sum that divides has no tie in it": without_ties_below,
        "ties by a threshold, as in Rao and Kupper": rao_kupper,
        "probabilities, without a logarithm": lambda r_a, r_b, log_nu: torch.stack(
            [(r_a - r_b) / 2, (r_b - r_a) / 2, log_nu.expand_as(r_a)], 1).softmax(1),
        "exp of a large score overflows": overflowing,
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 2, 4, 4, 1, 0, 4, 3)))

    def inputs(self, draw):
        def case(name, kind, r_a, r_b, log_nu):
            return Case(name, kind, {"r_a": r_a, "r_b": r_b, "log_nu": torch.tensor([log_nu])})
        scores = [draw.normal(5) * 2 for _ in range(4)]
        return [case("five pairs", "contract", draw.normal(5), draw.normal(5), 0.3),
                case("scores near 0", "parity", scores[0], scores[1], -0.5),
                case("other scores, more ties", "parity", scores[2] + 3, scores[3], 1.5),
                case("equal answers", "parity", scores[0], scores[0].clone(), 0.7),
                case("hardly any ties", "parity", scores[1], scores[2], -30.0),
                case("scores near 200", "parity", scores[0] + 200, scores[1] + 190, 0.2)]


# ---------------------------------------------------------------- 13.4 average_orders

def turned(second, labels):
    """Columns of a and b exchanged, right."""
    a, b = (next(n for n, name in enumerate(labels) if name.lower().removeprefix("model_") == side)
            for side in "ab")
    columns = list(range(3))
    columns[a], columns[b] = b, a
    return second[:, columns]


def wrong_average(turn=turned, enter=lambda x: x.log_softmax(-1), join=torch.logaddexp,
                  leave=lambda x: x.log_softmax(-1), halves=lambda x: x.chunk(2), which=1):
    """A variant: average_orders with one thing in it changed."""
    def average_orders(logits, labels):
        parts = list(halves(enter(logits)))
        parts[which] = turn(parts[which], labels)
        return leave(join(*parts))
    return average_orders


class AverageOrders(Exercise):
    """fp32 logits up to 200 keep 2e-5: 1e-4."""
    tolerance = 1e-4
    variants = {
        "the second order is not turned round": wrong_average(lambda second, labels: second),
        "the first order is turned round, not the second": wrong_average(which=0),
        "columns 0 and 1 change places, whatever the labels":
            wrong_average(lambda second, labels: second[:, [1, 0, 2]]),
        "all columns are reversed": wrong_average(lambda second, labels: second.flip(1)),
        "the mean is of log-probabilities": wrong_average(join=lambda p, q: (p + q) / 2),
        "logits are taken for log-probabilities": wrong_average(enter=lambda x: x),
        "the sum of both orders, which is 2": wrong_average(leave=lambda x: x),
        "probabilities, without a logarithm": wrong_average(leave=lambda x: x.softmax(-1)),
        "the rows of a pair are taken to stand side by side":
            wrong_average(halves=lambda x: (x[0::2], x[1::2])),
        "a small probability becomes 0": wrong_average(
            enter=lambda x: x.softmax(-1), join=lambda p, q: ((p + q) / 2).log(),
            leave=lambda x: x),
    }
    hint_for = dict(zip(variants, (1, 1, 1, 1, 2, 2, 3, 3, 0, 4)))

    def inputs(self, draw):
        def case(name, kind, labels, B=3, large=1.0):
            logits = draw.normal(2 * B, 3) * large + draw.normal(2 * B, 1) * 2
            return Case(name, kind, {"logits": logits, "labels": labels})
        sure = case("sure of everything", "parity", ["a", "b", "tie"], 4)
        sure.arguments["logits"] += torch.tensor([[150.0, 0, -150]] * 4 + [[0, 150.0, -150]] * 4)
        return [case("a, b, tie", "contract", ["a", "b", "tie"]),
                case("one row", "parity", ["a", "b", "tie"], 1),
                case("many rows", "parity", ["a", "b", "tie"], 6, 2.0),
                case("labels in another order", "parity", ["b", "tie", "a"], 4, 2.0),
                case("labels with other names", "parity", ["tie", "model_a", "model_b"], 4),
                sure]


