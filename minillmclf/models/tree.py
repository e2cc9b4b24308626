"""Many continuations of a prompt in one forward: a tree behind the prompt, each node seeing the prompt and its ancestors.

    prompt -> " very" -> " good"            " very good", " very bad" and " bad" have four edges; an edge's probability is
           |          -> " bad"             read where it begins, so only the end of the prompt and " very" are computed,
           -> " bad"                        not the three leaves: one token behind the prompt instead of five.

A node has the position that its token would have in a text, and sees what it would see there, so the numbers are those of
one forward for each continuation. Miao et al. 2023 ("SpecInfer") call such a mask tree attention.

Here: the tree, its mask, log-probabilities of its edges; a beginning that all rows share. Not here: what the continuations
stand for (classify/label_text/labels.py).
"""
import torch
from torch import nn

from ..errors import InputError
from .cache import CachedRows, start
from .layers import refuse_empty

AT_ONCE = 2**24         # numbers over the vocabulary that are held at a time, where no gradient needs them


class Tree(nn.Module):
    """Sequences of token ids, their shared beginnings laid together. L sequences, E edges, M inner nodes.

    An edge adds a token; its inner node, if anything follows it, is place 1 .. M, and place 0 is the end of the prompt.
    """

    def __init__(self, sequences):
        super().__init__()
        if not sequences or not all(sequences):
            raise InputError(f"{len(sequences)} continuations, {sum(not s for s in sequences)} of them empty: each needs a token")
        edges, self.paths = {}, []                          # (edge before or -1, token) -> edge
        for sequence in sequences:
            path = [-1]
            for token in sequence:
                path.append(edges.setdefault((path[-1], token), len(edges)))
            self.paths.append(path[1:])
        before, tokens = zip(*edges)
        inner = sorted(set(before) - {-1})
        place = {-1: 0} | {edge: number for number, edge in enumerate(inner, 1)}
        lines = {edge: [*path[:path.index(edge) + 1]] for path in self.paths for edge in path}     # the way to each edge
        sees = [[other in lines[edge] for other in inner] for edge in inner]
        buffers = {"tokens": tokens, "begins": [place[edge] for edge in before],                  # (E,), (E,)
                   "fed": [tokens[edge] for edge in inner],                                       # (M,)
                   "depths": [len(lines[edge]) - 1 for edge in inner]}                            # (M,)
        for name, numbers in buffers.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.register_buffer("sees", torch.tensor(sees, dtype=torch.bool).view(len(inner), len(inner)), persistent=False)
        steps = torch.zeros(len(sequences), len(edges))
        for number, path in enumerate(self.paths):
            steps[number, path] = 1.0
        self.register_buffer("steps", steps, persistent=False)                                    # (L, E)

    def sums(self, edges):
        """Log-probabilities of edges (B, E) -> of whole sequences (B, L)."""
        return edges @ self.steps.to(edges.dtype).T


class TreeRows(CachedRows):
    """Rows of prompts, mask (B, T), behind each of which the inner nodes of a tree stand."""

    def __init__(self, mask, tree, cache):
        M = len(tree.fed)
        refuse_empty(mask)                                                                        # the nodes would hide it
        super().__init__(torch.cat([mask.bool(), mask.new_ones(len(mask), M, dtype=torch.bool)], 1), cache)
        self.tree, texts = tree, self.key_real.sum(1, keepdim=True) - M                           # (B, 1) tokens before it
        places = slice(self.key_grid.shape[1] - M, None)
        self.key_grid[:, places] = texts + tree.depths                                            # not one after the other
        self.grid = self.key_grid[:, -self.mask.shape[1]:]
        self.positions = self.grid.flatten()[self.places]

    def limit(self, seen):
        """Of the tree's nodes only a node's ancestors and itself are seen. The nodes are the last queries, and the last keys."""
        M = len(self.tree.fed)
        if M:
            seen[:, :, -M:, -M:] &= self.tree.sees
        return seen

    def plain(self, window):
        return False


def log_probs(model, ids, mask, tree, cache=None, context=None):
    """Log-probability of each edge of a tree, given the prompt and the edges before it -> (B, E).

    ids, mask: (B, T), what is read before an answer is written (`Backbone.prompt`; context: from there too), with a token
    in every row; cache: what stands before these (`prefill`), of B rows. With gradients, where they are enabled.
    """
    M = len(tree.fed)
    rows = TreeRows(mask, tree, start(model, len(ids)) if cache is None else cache)
    rows.read = M + 1                                                                             # the prompt's end, the nodes
    x = model.hidden(torch.cat([ids, tree.fed.expand(len(ids), -1)], 1), rows, context)           # (B * (M + 1), D)
    states = rows.read_from(x)                                                                    # (B, M + 1, D)
    few = len(ids) if torch.is_grad_enabled() else max(1, AT_ONCE // ((M + 1) * len(model.vocabulary())))
    return torch.cat([edges_of(model.logits(part).float(), tree) for part in states.split(few)])


def edges_of(logits, tree):
    """logits (B, M + 1, V) at the places of a tree -> log-probabilities of its edges (B, E)."""
    return logits[:, tree.begins, tree.tokens] - logits.logsumexp(-1)[:, tree.begins]


def log_probs_one_by_one(model, ids, mask, sequences):
    """What `tree.sums(log_probs(...))` computes, with one forward for each sequence and no tree -> (B, L). Slower; a test
    holds the two equal."""
    ids, mask, context = model.prompt(ids, mask)
    sums = []
    for sequence in sequences:
        more = torch.tensor(sequence, device=ids.device).expand(len(ids), -1)                     # (B, n)
        rows = model.rows(torch.cat([mask.bool(), torch.ones_like(more).bool()], 1))
        x = model.hidden(torch.cat([ids, more], 1), rows, context)                                # (N, D)
        places = rows.lengths.cumsum(0)[:, None] - len(sequence) - 1 + torch.arange(len(sequence), device=x.device)
        found = model.logits(x[places]).float().log_softmax(-1).gather(2, more.unsqueeze(2))       # (B, n, 1)
        sums.append(found.sum((1, 2)))
    return torch.stack(sums, 1)


def to_the_left(ids, mask):
    """Rows padded on any side -> the same rows, padded on the right."""
    order = (~mask.bool()).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def shared(ids, mask):
    """How many tokens all rows begin with alike; at least one of each row is left over. Padded on the right."""
    alike = ((ids == ids[:1]) & mask.bool()).all(0).long().cumprod(0).sum()
    return int(torch.minimum(alike, mask.sum(1).min() - 1))
