"""Many continuations of a prompt in one forward pass: a tree after the prompt.

    prompt -> " very" -> " good"       " very good", " very bad" and " bad" have four edges; the
           |          -> " bad"        probability of an edge is read where it begins. So only the
           -> " bad"                   end of the prompt and " very" are computed, not the leaves.

Each node sees the prompt and its ancestors, at the position that its token would have in a text, so
the numbers are those of one pass for each continuation. Miao et al. 2023 ("SpecInfer") call such a
mask tree attention.

Here: the tree, its mask, log-probabilities of its edges; a beginning that all rows share. Not here:
what the continuations stand for (classify/label_text/readout.py).
"""
import torch
from torch import nn

from ..errors import InputError
from ..text.batch import Layout
from .cache import CachedRows, start
from .last_token import FewQueries, read_few

AT_ONCE = 2**24         # numbers over the vocabulary that are held at a time without gradients


class Tree(nn.Module):
    """L sequences of token ids with their shared beginnings merged: E edges, M inner nodes.

    An edge adds a token. Its inner node, if anything follows it, is node 1 .. M; node 0 is the end
    of the prompt. paths: the edges of each sequence.
    """

    def __init__(self, sequences):
        super().__init__()
        if not sequences or not all(sequences):
            empty = sum(not sequence for sequence in sequences)
            raise InputError(f"{len(sequences)} continuations, {empty} of them empty: each needs a "
                             "token")
        edges, self.paths = {}, []                          # (edge before or -1, token) -> edge
        for sequence in sequences:
            path = [-1]
            for token in sequence:
                path.append(edges.setdefault((path[-1], token), len(edges)))
            self.paths.append(path[1:])
        before, tokens = zip(*edges)
        inner = sorted(set(before) - {-1})                  # edges that something follows
        node = {-1: 0} | {edge: number for number, edge in enumerate(inner, 1)}
        ways = {edge: path[:depth] for path in self.paths for depth, edge in enumerate(path, 1)}
        sees = [[other in ways[edge] for other in inner] for edge in inner]
        numbers = {"tokens": tokens, "begins": [node[edge] for edge in before],           # (E,)
                   "fed": [tokens[edge] for edge in inner],                               # (M,)
                   "depths": [len(ways[edge]) - 1 for edge in inner]}                     # (M,)
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)
        sees = torch.tensor(sees, dtype=torch.bool).view(len(inner), len(inner))
        self.register_buffer("sees", sees, persistent=False)                              # (M, M)
        steps = torch.zeros(len(sequences), len(edges))
        for number, path in enumerate(self.paths):
            steps[number, path] = 1.0
        self.register_buffer("steps", steps, persistent=False)                            # (L, E)

    def hide(self, seen):
        """Of the nodes, which are the last queries and keys of a causal mask (B, 1, T, S), each
        sees only its ancestors and itself. -> the mask"""
        M = len(self.fed)
        if M:
            seen[:, :, -M:, -M:] &= self.sees
        return seen

    def sums(self, edges):
        """Log-probabilities of edges (B, E) -> of whole sequences (B, L)."""
        return edges @ self.steps.to(edges.dtype).T


class TreeRows(CachedRows):
    """Rows of prompts, mask (B, T), each followed by the inner nodes of a tree."""

    def __init__(self, mask, tree, cache):
        Layout.of(mask)                                      # refuses a row without a prompt
        M = len(tree.fed)
        nodes = mask.new_ones(len(mask), M, dtype=torch.bool)
        super().__init__(torch.cat([mask.bool(), nodes], 1), cache)
        self.tree, prompts = tree, self.key_mask.sum(1, keepdim=True) - M                 # (B, 1)
        # nodes do not follow one another: each is `depths` tokens after the prompt's end
        self.key_position_ids[:, self.key_mask.shape[1] - M:] = prompts + tree.depths
        self.place_queries()

    def causal_mask(self, window):
        return self.tree.hide(super().causal_mask(window))

    def is_triangle(self, window):
        return False


class TreeQueries(FewQueries):
    """The ends of the prompts and the nodes: all of TreeRows that is read."""

    def __init__(self, rows):
        super().__init__(rows, len(rows.tree.fed) + 1)

    def causal_mask(self, window):
        return self.rows.tree.hide(super().causal_mask(window))


def log_probs(model, ids, mask, tree, cache=None, context=None):
    """Log-probability of each edge of a tree, given the prompt and the edges before it -> (B, E).

    ids, mask: (B, T), what is read before an answer is written, with a token in every row, and
    context, as `Backbone.prompt` gives them. cache: of B rows, what stands before these
    (`prefill`). With gradients, where they are enabled.
    """
    rows = TreeRows(mask, tree, start(model, len(ids)) if cache is None else cache)
    ids = torch.cat([ids, tree.fed.expand(len(ids), -1)], 1)
    states = read_few(model, model.embed(ids, rows), TreeQueries(rows), context)
    size = states.shape[1] * len(model.vocabulary())                              # of (M + 1, V)
    few = len(ids) if torch.is_grad_enabled() else max(1, AT_ONCE // size)
    return torch.cat([edges_of(model.logits(part).float(), tree) for part in states.split(few)])


def edges_of(logits, tree):
    """logits (B, M + 1, V) at the nodes of a tree -> log-probabilities of its edges (B, E)."""
    return logits[:, tree.begins, tree.tokens] - logits.logsumexp(-1)[:, tree.begins]


def pad_right(ids, mask):
    """Rows padded on any side -> the same rows, padded on the right."""
    order = (~mask.bool()).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def shared(ids, mask):
    """How many first tokens all rows share; one of each row is left over. Padded on the right."""
    alike = ((ids == ids[:1]) & mask.bool()).all(0).long().cumprod(0).sum()
    return int(torch.minimum(alike, mask.sum(1).min() - 1))
