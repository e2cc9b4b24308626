"""The last block only where it is read: a head that pools one token needs no other token.

A block mixes tokens only in its attention. So the last block computes keys and values of all
tokens, but queries, and all that follows, only of the few tokens that are read. The result is
exact. The earlier blocks and the model files are unchanged.
"""
import torch

from .layers import Rows


class FewQueries(Rows):
    """Rows with n queries each, while all tokens have keys and values.

    which: "first", "last", or a number n for each row's last n tokens; a row with fewer than n
    repeats its first one. query_indices: (B * n,), where the queries stand among the N tokens.

    Queries alone are never padded: M = B * n. Keys are those of `rows`, which keeps its cache.
    """

    def __init__(self, rows, which):
        n = which if isinstance(which, int) else 1
        ends = rows.lengths.cumsum(0).unsqueeze(1)                               # (B, 1)
        starts = ends - rows.lengths.unsqueeze(1)
        back = torch.arange(n, 0, -1, device=ends.device)                        # (n,): n, ..., 1
        chosen = starts if which == "first" else (ends - back).maximum(starts)   # (B, n), below N
        self.rows, self.which, self.query_indices = rows, which, chosen.flatten()  # (B * n,)
        self.mask, self.no_padding, self.causal_masks = torch.ones_like(chosen).bool(), True, {}
        self.position_ids = rows.positions[self.query_indices].view(chosen.shape)  # (B, n)
        self.positions, self.longest, self.uniform = rows.positions, rows.longest, rows.uniform
        self.key_mask, self.key_position_ids = rows.key_mask, rows.key_position_ids

    def queries(self, x):
        return x.index_select(0, self.query_indices)

    def keys_values(self, k, v):
        return self.rows.keys_values(k, v)

    def is_triangle(self, window):
        return False                                   # query i of a row is not its token i


def run_few_queries(model, x, few, context=None):
    """Run the blocks of a model, the last one for few queries -> (B, n, D).

    x: (N, D), from `model.embed`; few: FewQueries; context: as in `model.run`.
    """
    *earlier, last = model.blocks
    x = model.run(earlier, x, few.rows, context)
    return few.pad(model.finish(model.run([last], x, few, context)))
