"""Many continuations of a prompt in one forward pass: a tree after the prompt.

    prompt -> " very" -> " good"       " very good", " very bad" and " bad" have four edges, of a
           |          -> " bad"        token each. The probability of an edge is read at its start.
           -> " bad"                   So the model reads the prompt and " very", but no leaf.

Each node sees the prompt and its ancestors, and has the position that its token has in a text, so
the result is that of one pass per continuation ("tree attention", Miao et al. 2023, "SpecInfer").

Not here: what the continuations stand for (classify/label_text/readout.py).
"""
import torch
from torch import nn

from ..errors import InputError
from ..text.batch import Layout
from .cache import CachedRows, new_cache
from .last_token import FewQueries, run_few_queries

MAX_LOGITS = 2**24      # in memory at a time, if no gradients are needed


def merge_beginnings(sequences):
    """L sequences of token ids, none of them empty -> the tree that they form, a dict of lists.

    Sequences that begin alike share the edges of their beginning. Edges are numbered as they come,
    sequence by sequence; inner nodes from 1, in the order of the edges that end in them.
    """
    edges, paths = {}, []                               # (edge before or -1, token) -> edge
    for sequence in sequences:
        path = [-1]
        for token in sequence:
            path.append(edges.setdefault((path[-1], token), len(edges)))
        paths.append(path[1:])
    before, tokens = zip(*edges)
    inner = sorted(set(before) - {-1})                  # edges that another edge follows
    node = {-1: 0} | {edge: number for number, edge in enumerate(inner, 1)}
    # edge -> the edges from the prompt up to it, itself included
    upto = {edge: path[:depth] for path in paths for depth, edge in enumerate(path, 1)}
    return {"paths": paths,                                            # L lists of edges
            "edge_tokens": list(tokens),                               # (E,)
            "edge_starts": [node[edge] for edge in before],            # (E,), the nodes there
            "node_tokens": [tokens[edge] for edge in inner],           # (M,)
            "node_depths": [len(upto[edge]) - 1 for edge in inner],    # (M,), 0 after the prompt
            "node_mask": [[other in upto[edge] for other in inner]     # (M, M), node sees node
                          for edge in inner]}


class TokenTree(nn.Module):
    """L sequences of token ids, their shared beginnings merged into E edges and M inner nodes.

    An edge adds a token. If another edge follows it, it ends in an inner node, 1 .. M; node 0 is
    the end of the prompt. paths: the edges of each sequence.
    """

    def __init__(self, sequences):
        super().__init__()
        if not sequences or not all(sequences):
            empty = sum(not sequence for sequence in sequences)
            raise InputError(f"{len(sequences)} continuations, {empty} of them empty: each needs a "
                             "token")
        numbers = merge_beginnings(sequences)
        self.paths, sees = numbers.pop("paths"), numbers.pop("node_mask")
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)
        sees = torch.tensor(sees, dtype=torch.bool).view(len(sees), len(sees))
        self.register_buffer("node_mask", sees, persistent=False)          # (M, M), node sees node
        steps = torch.zeros(len(sequences), len(self.edge_tokens))
        for number, path in enumerate(self.paths):
            steps[number, path] = 1.0
        self.register_buffer("on_path", steps, persistent=False)        # (L, E), 1.0: on its path

    def hide_branches(self, seen):
        """seen: (B, 1, T, S), a causal mask whose last M queries and keys are the nodes -> the
        mask in which each of them sees no nodes but its ancestors and itself."""
        M = len(self.node_tokens)
        if M:                                                         # -0: would be all
            seen[:, :, -M:, -M:] &= self.node_mask
        return seen

    def sum_paths(self, log_probs):
        """Log-probabilities of edges (B, E) -> of whole sequences (B, L)."""
        return log_probs @ self.on_path.to(log_probs.dtype).T


class TreeRows(CachedRows):
    """Rows of prompts, mask (B, T), each followed by the inner nodes of a tree."""

    def __init__(self, mask, tree, cache):
        Layout.from_mask(mask)                 # InputError for a row without a prompt; not used
        M = len(tree.node_tokens)
        nodes = mask.new_ones(len(mask), M, dtype=torch.bool)
        super().__init__(torch.cat([mask.bool(), nodes], 1), cache)
        self.tree, prompts = tree, self.key_mask.sum(1, keepdim=True) - M                 # (B, 1)
        # position of a node: that of the first token after the prompt, plus the node's depth
        self.key_position_ids[:, self.key_mask.shape[1] - M:] = prompts + tree.node_depths
        self.set_query_positions()

    def compute_causal_mask(self, window):
        return self.tree.hide_branches(super().compute_causal_mask(window))

    def is_triangle(self, window):
        return False


class TreeQueries(FewQueries):
    """The queries of TreeRows that are read: the end of each prompt and the nodes."""

    def __init__(self, rows):
        super().__init__(rows, len(rows.tree.node_tokens) + 1)

    def compute_causal_mask(self, window):
        return self.rows.tree.hide_branches(super().compute_causal_mask(window))


def tree_log_probs(model, ids, mask, tree, cache=None, context=None):
    """Log-probability of each edge of a tree, given the prompt and the edges before it -> (B, E).

    ids, mask (B, T), with a token in every row, and context: of `Backbone.prepare_prompt`.
    cache: keys and values of B rows that stand before these (`prefill`).
    """
    rows = TreeRows(mask, tree, new_cache(model, len(ids)) if cache is None else cache)
    ids = torch.cat([ids, tree.node_tokens.expand(len(ids), -1)], 1)
    states = run_few_queries(model, model.embed(ids, rows), TreeQueries(rows), context)
    size = states.shape[1] * len(model.output_embeddings())            # logits of a row, (M + 1) V
    count = len(ids) if torch.is_grad_enabled() else max(1, MAX_LOGITS // size)
    return torch.cat([edge_log_probs(model.logits(part).float(), tree)
                      for part in states.split(count)])


def edge_log_probs(logits, tree):
    """logits (B, M + 1, V) at the nodes of a tree -> log-probabilities of its edges (B, E)."""
    return logits[:, tree.edge_starts, tree.edge_tokens] - logits.logsumexp(-1)[:, tree.edge_starts]


def pad_right(ids, mask):
    """Rows padded on any side -> the same rows, padded on the right."""
    order = (~mask.bool()).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def num_shared_tokens(ids, mask):
    """ids, mask: (B, T), padded on the right -> how many first tokens all rows share. One token of
    the shortest row is left in any case."""
    alike = ((ids == ids[:1]) & mask.bool()).all(0)                     # (T,), the same in all rows
    shared = alike.long().cumprod(0).sum()                              # those before a difference
    return int(torch.minimum(shared, mask.sum(1).min() - 1))
