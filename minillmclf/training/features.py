"""Features of a frozen body, computed once: where only a head learns, the body says the same of a text in every epoch.

All texts go through the body before the first step; from then on its answers are looked up, by a text's tokens. What
learns sees the same numbers as before (up to rounding: batch mates are others), in the same batches, so a run ends as it
would have; and since they are computed in one fixed order, an interrupted run goes on bit for bit.

It is done only where it changes nothing: no number of the body learns, and no dropout acts in it. A frozen body's dropout
does act in training here, as in transformers, and draws anew in each step; so a BERT with dropout 0.1 is not remembered,
LLaMA, Mistral and Gemma, which have none, are. Nor are windows and label texts, or more than MOST bytes.
"""
from contextlib import contextmanager
from hashlib import blake2b

import torch

from .parallel import processes as parallel

MOST = 2**30                                # bytes of features that are kept


@contextmanager
def remembered(model, encoded, s):
    """with remembered(...): what the body says of these rows is looked up, where `unchanging` allows it.

    model: Classifier; encoded: rows as text/batch.py has them; s: Settings. Afterwards the body is as it was.
    """
    if not unchanging(model, encoded, s):
        yield
        return
    memory = Memory(model.backbone.states)
    model.backbone.states = memory
    try:
        model.scores(encoded, s.eval_batch_size)
        memory.close()
        yield
    finally:
        del model.backbone.states


def unchanging(model, encoded, s):
    """Does the body say the same of a row in every step, one vector that can be kept?"""
    body, head = model.backbone, model.head
    if head.how not in ("first", "last") or s.precision != "fp32" or parallel.several():
        return False
    if any(parameter.requires_grad for parameter in body.parameters()) or drops(body):
        return False
    return 4 * body.width * sum(len(model.task.sequences(row)) for row in encoded) <= MOST


def drops(body):
    """Does any dropout act in a body in training?"""
    return any(getattr(module, name, 0) > 0 for module in body.modules() for name in ("p", "attention_dropout"))


class Memory:
    """Stands for a body's `states`: passes questions on and keeps the answers, one vector a text, until it is closed;
    then it knows them, and passes on only batches with a text that it does not know."""

    def __init__(self, states):
        self.states, self.places, self.vectors, self.closed = states, {}, [], False

    def close(self):
        """From now on nothing is added, and what is known is looked up."""
        self.vectors, self.closed = torch.cat(self.vectors), True                         # (texts, D)

    def __call__(self, ids, mask, types=None, read=None):
        """As Backbone.states."""
        keys = keys_of(ids, mask, types, read)
        if self.closed and all(key in self.places for key in keys):
            return self.vectors[[self.places[key] for key in keys]].unsqueeze(1)         # (B, 1, D)
        states = self.states(ids, mask, types, read)
        if not self.closed and read is not None:
            for key, vector in zip(keys, states):                                         # (1, D) each
                if key not in self.places:
                    self.places[key] = len(self.vectors)
                    self.vectors.append(vector)
        return states


def keys_of(ids, mask, types, read):
    """16 bytes for each text, of its tokens and types and of the place that is read, wherever its padding stands."""
    types = torch.zeros_like(ids) if types is None else types
    rows, real = torch.stack([ids, types], 2).cpu().numpy(), mask.bool().cpu().numpy()   # (B, T, 2), (B, T)
    return [blake2b(row[at].tobytes() + str(read).encode(), digest_size=16).digest() for row, at in zip(rows, real)]
