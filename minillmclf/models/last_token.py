"""The last block only where it is read: a head that pools one token of a text needs no other.

A block mixes tokens in its attention alone. So the last block takes keys and values of all tokens,
but queries of the few that are read; all that follows is computed for these. The result is exact.
The blocks before it, and the model files, are as they are.
"""
import torch

from .layers import Rows


class FewQueries(Rows):
    """Rows of which n tokens each are queries, while their keys and values are those of all tokens.

    which: "first", "last", or a number n for each row's last n tokens; a row with fewer than n
    repeats its first one.
    """

    def __init__(self, rows, which):
        n = which if isinstance(which, int) else 1
        ends = rows.lengths.cumsum(0).unsqueeze(1)                               # (B, 1)
        starts = ends - rows.lengths.unsqueeze(1)
        back = torch.arange(n, 0, -1, device=ends.device)
        chosen = starts if which == "first" else (ends - back).maximum(starts)   # (B, n) of the N
        self.rows, self.which, self.chosen = rows, which, chosen.flatten()       # (B * n,)
        self.mask, self.full, self.causal_masks = torch.ones_like(chosen).bool(), True, {}
        self.position_ids = rows.positions[self.chosen].view(chosen.shape)      # (B, n)
        self.positions, self.longest, self.uniform = rows.positions, rows.longest, rows.uniform
        self.key_mask, self.key_position_ids = rows.key_mask, rows.key_position_ids

    def queries(self, x):
        return x.index_select(0, self.chosen)

    def keys_values(self, k, v):
        return self.rows.keys_values(k, v)

    def is_triangle(self, window):
        return False                                   # its queries are not the first of the rows


def read_few(model, x, few, context=None):
    """Runs the blocks of a model, the last one for few queries.

    x: (N, D) as of `model.embed`; few: FewQueries; context: as in `model.run`. -> (B, n, D)
    """
    *earlier, last = model.blocks
    x = model.run(earlier, x, few.rows, context)
    return few.pad(model.finish(model.run([last], x, few, context)))
