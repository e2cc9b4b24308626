"""Prefix tuning: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation".

P virtual tokens stand before every text: their keys and values in every layer are parameters. So a
prefix is a KV cache (models/cache.py) that is filled before a text begins. The base stays frozen;
attention costs a little more. In an encoder-decoder only the decoder's self-attention has a prefix.
The P tokens have the positions 0 .. P - 1, so the longest text is P tokens shorter.

Unlike LoRA, a new prefix changes the answers; `detach_prefix` restores the base bit for bit. Here
too: the paper's re-parameterisation, in which a small network computes the keys and values during
training. Not here: files (peft/); new "words" before a text (prompt.py).
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.cache import Cache


class Prefix(nn.Module):
    """Learned keys and values of P tokens, laid out as PEFT's PrefixEncoder does: (P, L*2*K*d).

    shape: (L, K, d), with L layers and in each K heads of keys and values, d wide; tokens: P.
    A row holds one token: for each layer its keys, then its values, head by head. The rows are the
    weights of `embedding`; with projection these are (P, K*d), and `transform` makes rows of them.
    """

    def __init__(self, shape, tokens, projection=False, seed=0):
        super().__init__()
        self.shape, self.tokens, self.transform = shape, tokens, None
        layers, heads, width = shape
        vector, row = heads * width, layers * 2 * heads * width
        with torch.random.fork_rng(devices=()):                 # torch's generator stays as it is
            torch.default_generator.manual_seed(seed)
            self.embedding = nn.Embedding(tokens, vector if projection else row, device="cpu")
            if projection:
                self.transform = nn.Sequential(nn.Linear(vector, vector, device="cpu"), nn.Tanh(),
                                               nn.Linear(vector, row, device="cpu"))
            else:                                   # small: it attracts little attention at first
                nn.init.normal_(self.embedding.weight, 0.0, 0.02)

    def embeddings(self):
        """(P, L*2*K*d), PEFT's `prompt_embeddings`: all that is needed after training."""
        rows = self.embedding.weight
        return rows if self.transform is None else self.transform(rows)

    @torch.no_grad()
    def load(self, embeddings):
        """Set the embeddings (P, L*2*K*d) of a prefix without a projection."""
        self.embedding.weight.copy_(embeddings)

    def cache(self, batch):
        """A new Cache for a batch of `batch` texts, with the P tokens in every layer."""
        layers, heads, width = self.shape
        rows = self.embeddings().view(self.tokens, layers, 2, heads, width)        # (P, L, 2, K, d)
        cache = Cache()
        for layer, (k, v) in enumerate(rows.permute(1, 2, 3, 0, 4)):             # (K, P, d) each
            cache.put(layer, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1))
        cache.mask = torch.ones(batch, self.tokens, dtype=torch.bool, device=k.device)
        return cache


class KeyRecorder(nn.Module):
    """A prefix without tokens: after a forward pass its cache holds the keys of every layer."""

    tokens = 0

    def __init__(self):
        super().__init__()
        self.seen = Cache()

    def cache(self, batch):
        return self.seen


def backbone_of(model):
    """The backbone of a classifier, or the backbone itself."""
    return getattr(model, "backbone", model)


def set_prefix(backbone, prefix):
    """Set the prefix of a backbone (None: take it off) -> the former one."""
    former, backbone.prefix = backbone.prefix, prefix
    return former


def check_tokens(backbone, tokens):
    """-> the longest text after `tokens` tokens; None: no limit. InputError if none fits."""
    longest = backbone.max_input_tokens
    if type(tokens) is not int or tokens < 1:
        raise InputError(f"{short(tokens)} tokens before a text: must be a whole number from 1, "
                         "usually 5 to 100")
    if longest is not None and tokens >= longest:
        raise InputError(f"{tokens} tokens before a text leave none of the {longest} positions of "
                         f"this model{backbone.prefix_note()}: take fewer")
    return None if longest is None else longest - tokens


def shorten_texts(model, tokens):
    """Lower a classifier's max_length to what fits after `tokens` tokens."""
    longest = check_tokens(model.backbone, tokens)
    if longest is not None:
        model.max_length = min(model.max_length, longest)


@torch.no_grad()
def prefix_shape(backbone):
    """(L, K, d): the number of attention layers that take a prefix, KV heads, head width.

    One token runs through the model, and the shapes of its keys are read.
    """
    recorder, was_training = KeyRecorder(), backbone.training
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(backbone.parameters()).device)
    former = set_prefix(backbone, recorder)
    try:
        backbone.eval().states(ids, torch.ones_like(ids))
    finally:
        set_prefix(backbone, former)
        backbone.train(was_training)
    keys = recorder.seen.keys
    [(_, heads, _, width)] = {k.shape for k in keys}            # (1, K, 1, d), one for all layers
    return len(keys), heads, width


def attach_prefix(model, tokens, projection=False, seed=0):
    """Put a new prefix of `tokens` tokens before all texts of a classifier or backbone -> Prefix.

    The seed decides its first values. Raises InputError before anything has changed.
    """
    backbone = backbone_of(model)
    if backbone.prefix is not None:
        raise InputError(f"this model has a prefix of {backbone.prefix.tokens} tokens already: "
                         "detach it first")
    check_tokens(backbone, tokens)
    prefix = Prefix(prefix_shape(backbone), tokens, projection, seed)
    W = backbone.word_embeddings.weight         # 16 bits would round small steps away: fp32 or more
    set_prefix(backbone, prefix.to(W.device, torch.promote_types(W.dtype, torch.float32)))
    return prefix


def detach_prefix(model):
    """Take the prefix off again -> Prefix. The base is as it was."""
    trainable_parameters(model)                                 # InputError for a model without one
    return set_prefix(backbone_of(model), None)


def trainable_parameters(model):
    """{path: parameter} of the prefix."""
    if backbone_of(model).prefix is None:
        raise InputError("this model has no prefix: attach one first")
    return {path: p for path, p in model.named_parameters() if "prefix" in path.split(".")}
