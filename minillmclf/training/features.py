"""Cached features: where only a head learns, a frozen backbone is run once for each text.

All texts go through the backbone before the first step; later its output is looked up by a text's
tokens. Results stay the same up to rounding, for texts are batched differently. The features are
computed in a fixed order, so an interrupted run resumes bit for bit (on a CPU).

Features are cached only where that changes nothing. A frozen backbone keeps its dropout in
training, as in transformers. So the output of a BERT with dropout 0.1 differs in each step and is
not cached; that of a LLaMA is. Never cached: windows, label texts, more than MAX_BYTES.
"""
from contextlib import contextmanager
from hashlib import blake2b

import torch

MAX_BYTES = 2**30                           # of features, 4 bytes a number


@contextmanager
def cached_features(model, encoded, settings):
    """with cached_features(...): the backbone's outputs for these rows are cached, if `can_cache`.

    model: Classifier; encoded: rows, see text/batch.py. On leaving, the backbone is restored.
    """
    if not can_cache(model, encoded, settings):
        yield
        return
    cache = FeatureCache(model.backbone.states)
    model.backbone.states = cache
    try:
        model.compute_logits(encoded, settings.eval_batch_size)
        cache.finish_filling()
        yield
    finally:
        del model.backbone.states           # only the cache: the class still has its method


def can_cache(model, encoded, settings):
    """Is the backbone's output the same in every step, one vector for each sequence?"""
    backbone, head = model.backbone, model.head
    one_vector = head.pooling in ("first", "last")          # None: windows, label texts
    in_fp32 = settings.precision == "fp32"                  # as the cache is filled
    if not one_vector or not in_fp32 or has_dropout(backbone):
        return False
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        return False
    return 4 * backbone.width * sum(len(model.task.sequences(row)) for row in encoded) <= MAX_BYTES


def has_dropout(backbone):
    """Does any dropout act in a backbone in training?"""
    names = ("p", "attention_dropout")                      # of nn.Dropout; of our attention layers
    return any(getattr(module, name, 0) > 0 for module in backbone.modules() for name in names)


class FeatureCache:
    """Replaces Backbone.states. Until `finish_filling` it calls the original and keeps one vector
    per text; then it looks texts up, and calls the original for batches with an unknown text."""

    def __init__(self, states):
        self.states, self.indices, self.vectors, self.is_filled = states, {}, [], False

    def finish_filling(self):
        self.vectors, self.is_filled = torch.cat(self.vectors), True          # (texts, D)

    def __call__(self, ids, mask, types=None, read=None, layout=None):
        keys = text_keys(ids, mask, types, read)
        if self.is_filled and all(key in self.indices for key in keys):
            return self.vectors[[self.indices[key] for key in keys]].unsqueeze(1)   # (B, 1, D)
        states = self.states(ids, mask, types, read, layout)
        if not self.is_filled and read is not None:
            for key, vector in zip(keys, states):                            # (1, D) each
                if key not in self.indices:
                    self.indices[key] = len(self.vectors)
                    self.vectors.append(vector)
        return states


def text_keys(ids, mask, types, read):
    """A hash of 16 bytes for each text: of its ids without padding, their types, and `read`."""
    types = torch.zeros_like(ids) if types is None else types
    rows, masks = torch.stack([ids, types], 2).cpu().numpy(), mask.bool().cpu().numpy()
    return [blake2b(row[real].tobytes() + str(read).encode(), digest_size=16).digest()
            for row, real in zip(rows, masks)]
