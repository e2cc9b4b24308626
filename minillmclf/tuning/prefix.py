"""Prefix tuning: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation".

Before every text stand P tokens without a text: in every layer their keys and values are learned,
not computed. So a prefix is a cache (models/cache.py) that is filled before a text begins. The base
stays as it is; attention costs a little more. An encoder-decoder has a prefix before its decoder's
self-attention only. The P tokens have the positions 0 .. P - 1: texts may have P tokens fewer.

Unlike LoRA, a prefix changes the answers from its start; `detach_prefix` gives the base back, bit
for bit. Here too: the paper's re-parameterisation, in which a small network makes the keys and
values while they are trained. Not here: files; new "words" before a text (prompt.py).
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.cache import Cache


class Prefix(nn.Module):
    """Learned keys and values of P tokens, laid out as PEFT's PrefixEncoder does: (P, L*2*K*d).

    The numbers of a token, in a row: layer by layer, a layer's keys before its values, head by
    head. They are `embedding`, or what the network `transform` makes of `embedding` (P, K*d).
    shape: L layers, K heads, d width; tokens: P; projection: with the network.
    """

    def __init__(self, shape, tokens, projection=False, seed=0):
        super().__init__()
        self.shape, self.tokens, self.transform = shape, tokens, None
        layers, heads, width = shape
        vector, row = heads * width, layers * 2 * heads * width
        with torch.random.fork_rng(devices=()):                 # the seed decides, and only here
            torch.default_generator.manual_seed(seed)
            self.embedding = nn.Embedding(tokens, vector if projection else row, device="cpu")
            if projection:
                self.transform = nn.Sequential(nn.Linear(vector, vector, device="cpu"), nn.Tanh(),
                                               nn.Linear(vector, row, device="cpu"))
            else:                                   # small: it attracts little attention at first
                nn.init.normal_(self.embedding.weight, 0.0, 0.02)

    def numbers(self):
        """(P, L*2*K*d), PEFT's `prompt_embeddings`: after training, all that is needed."""
        numbers = self.embedding.weight
        return numbers if self.transform is None else self.transform(numbers)

    @torch.no_grad()
    def load(self, numbers):
        """Take over numbers (P, L*2*K*d), as of `numbers()`, into a prefix without a projection."""
        self.embedding.weight.copy_(numbers)

    def cache(self, batch):
        """A new Cache for `batch` rows with the P tokens in every layer."""
        layers, heads, width = self.shape
        numbers = self.numbers().view(self.tokens, layers, 2, heads, width).permute(1, 2, 3, 0, 4)
        cache = Cache()
        for layer, (k, v) in enumerate(numbers):                                    # (K, P, d) each
            cache.put(layer, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1))
        cache.mask = torch.ones(batch, self.tokens, dtype=torch.bool, device=numbers.device)
        return cache


class Recorder(nn.Module):
    """A prefix of no tokens: after a forward pass, its cache holds the keys of every layer."""

    tokens = 0

    def __init__(self):
        super().__init__()
        self.seen = Cache()

    def cache(self, batch):
        return self.seen


# ------------------------------------------------------------------------------------ the backbone

def body(model):
    """The backbone of a classifier, or the backbone itself."""
    return getattr(model, "backbone", model)


def put_before(backbone, prefix):
    """Let `prefix` (None: none) stand before every text -> what stood there until now."""
    former, backbone.prefix = backbone.prefix, prefix
    return former


def check_tokens(backbone, tokens):
    """How long a text may be after `tokens` more tokens, None: any. InputError if none fits."""
    longest = backbone.max_input_tokens
    if type(tokens) is not int or tokens < 1:
        raise InputError(f"{short(tokens)} tokens before a text: must be a whole number from 1, "
                         "usually 5 to 100")
    if longest is not None and tokens >= longest:
        raise InputError(f"{tokens} tokens before a text leave none of the {longest} positions of "
                         f"this model{backbone.prefix_note()}: take fewer")
    return None if longest is None else longest - tokens


def shorten_texts(model, tokens):
    """Lower a classifier's max_length where `tokens` more before each text would not fit."""
    model.max_length = min(model.max_length, check_tokens(model.backbone, tokens)
                           or model.max_length)


@torch.no_grad()
def shape_of(backbone):
    """(L, K, d): attention layers that take a prefix, their heads of keys, the width of a head.

    One token goes through the model, and the shapes of its keys are read off.
    """
    recorder, was_training = Recorder(), backbone.training
    one = torch.zeros(1, 1, dtype=torch.long, device=next(backbone.parameters()).device)
    former = put_before(backbone, recorder)
    try:
        backbone.eval().states(one, torch.ones_like(one))
    finally:
        put_before(backbone, former)
        backbone.train(was_training)
    (_, heads, _, width), = {k.shape for k in recorder.seen.keys}  # all layers are alike
    return len(recorder.seen.keys), heads, width


def attach_prefix(model, tokens, projection=False, seed=0):
    """Put a new prefix of `tokens` tokens before all texts of a classifier or backbone -> Prefix.

    Deterministic by seed. Raises InputError before anything has changed.
    """
    backbone = body(model)
    if backbone.prefix is not None:
        raise InputError(f"this model has a prefix of {backbone.prefix.tokens} tokens already: "
                         "detach it first")
    check_tokens(backbone, tokens)
    prefix = Prefix(shape_of(backbone), tokens, projection, seed)
    W = backbone.word_embeddings.weight
    put_before(backbone, prefix.to(W.device, torch.promote_types(W.dtype, torch.float32)))
    return prefix                                             # 16 bits would round small steps away


def detach_prefix(model):
    """Take the prefix off again -> Prefix. The base is as it was."""
    trainable_parameters(model)                                 # InputError for a model without one
    return put_before(body(model), None)


def trainable_parameters(model):
    """{path: parameter} of the prefix."""
    if body(model).prefix is None:
        raise InputError("this model has no prefix: attach one first")
    return {path: p for path, p in model.named_parameters() if "prefix" in path.split(".")}
