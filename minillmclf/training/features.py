"""Cached features: where only a head learns, a frozen body is run once for each text.

All texts go through the body before the first step; from then on its output is looked up, by the
text's tokens. A run ends as it would without (up to rounding: texts share batches with others), and
since the features are computed in a fixed order, an interrupted run goes on bit for bit.

It is done only where it changes nothing. A frozen body's dropout does act in training here, as in
transformers, and differs in each step: so a BERT with dropout 0.1 is not cached, while LLaMA,
Mistral and Gemma, which have none, are. Nor are windows, label texts, or more than MAX_BYTES.
"""
from contextlib import contextmanager
from hashlib import blake2b

import torch


MAX_BYTES = 2**30                           # of features


@contextmanager
def cached_features(model, encoded, settings):
    """with cached_features(...): the body's outputs for these rows are cached, if `can_cache`.

    model: Classifier; encoded: rows as text/batch.py has them. Afterwards the body is as it was.
    """
    if not can_cache(model, encoded, settings):
        yield
        return
    cache = FeatureCache(model.backbone.states)
    model.backbone.states = cache
    try:
        model.scores(encoded, settings.eval_batch_size)
        cache.close()
        yield
    finally:
        del model.backbone.states


def can_cache(model, encoded, settings):
    """Is the body's output for a row the same in every step, and one vector?"""
    body, head = model.backbone, model.head
    one_vector = head.how in ("first", "last")
    if not one_vector or settings.precision != "fp32" or has_dropout(body):
        return False
    if any(parameter.requires_grad for parameter in body.parameters()):
        return False
    return 4 * body.width * sum(len(model.task.sequences(row)) for row in encoded) <= MAX_BYTES


def has_dropout(body):
    """Does any dropout act in a body in training?"""
    return any(getattr(module, name, 0) > 0
               for module in body.modules() for name in ("p", "attention_dropout"))


class FeatureCache:
    """Stands for Backbone.states. Until `close` it calls that and keeps one vector per text; then
    it looks texts up, and calls it only for batches with an unknown text."""

    def __init__(self, states):
        self.states, self.places, self.vectors, self.closed = states, {}, [], False

    def close(self):
        self.vectors, self.closed = torch.cat(self.vectors), True             # (texts, D)

    def __call__(self, ids, mask, types=None, read=None, layout=None):
        keys = keys_of(ids, mask, types, read)
        if self.closed and all(key in self.places for key in keys):
            return self.vectors[[self.places[key] for key in keys]].unsqueeze(1)    # (B, 1, D)
        states = self.states(ids, mask, types, read, layout)
        if not self.closed and read is not None:
            for key, vector in zip(keys, states):                            # (1, D) each
                if key not in self.places:
                    self.places[key] = len(self.vectors)
                    self.vectors.append(vector)
        return states


def keys_of(ids, mask, types, read):
    """16 bytes for each text, a hash of its tokens, its types, and the place that is read; padding
    does not count."""
    types = torch.zeros_like(ids) if types is None else types
    rows, real = torch.stack([ids, types], 2).cpu().numpy(), mask.bool().cpu().numpy()
    return [blake2b(row[at].tobytes() + str(read).encode(), digest_size=16).digest()
            for row, at in zip(rows, real)]
