"""Prefix tuning: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation".

Before every text stand P tokens that nobody wrote: in every layer, they have keys and values that are learned, not
computed. So a prefix is a cache (models/cache.py) that is already filled when a text begins. The model stays as it is;
attention costs a little more, MLPs cost the same. An encoder-decoder has it before its decoder's self-attention only.

The P tokens have the positions 0 .. P - 1: texts may have P tokens fewer (`Backbone.max_input_tokens`), and a window may pass them.
Unlike LoRA, a prefix changes the answers from its start; `detach_prefix` gives the base back, bit for bit.

Here too: the paper's re-parameterisation, in which a small network makes the keys and values while they learn. Nothing
is frozen here: `trained_parameters` says what should learn, the head of a classifier besides. Not here: files; new
"words" before a text (prompt.py).
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.cache import Cache


class Prefix(nn.Module):
    """Learned keys and values of P tokens, laid out as PEFT's PrefixEncoder does: (P, L*2*K*d).

    The numbers of a token, in a row: layer by layer, a layer's keys before its values, head by head. They are `embedding`
    itself, or with a projection what `transform` makes of `embedding` (P, K*d).
    """

    def __init__(self, layers, heads, width, tokens, projection=False, hidden=None, seed=0):
        """layers: L; heads: K; width: d; tokens: P; hidden: the network's inner width, default K*d.

        The first values are PyTorch's for a network, else normal(0, 0.02): the tokens then attract little at first.
        """
        super().__init__()
        self.layers, self.heads, self.width, self.tokens = layers, heads, width, tokens
        vector, row, self.transform = heads * width, layers * 2 * heads * width, None
        with torch.random.fork_rng(devices=()):                      # the seed decides, and only here
            torch.default_generator.manual_seed(seed)
            self.embedding = nn.Embedding(tokens, vector if projection else row, device="cpu")     # normal(0, 1)
            if projection:
                hidden = hidden or vector
                self.transform = nn.Sequential(nn.Linear(vector, hidden, device="cpu"), nn.Tanh(),
                                               nn.Linear(hidden, row, device="cpu"))
            else:
                nn.init.normal_(self.embedding.weight, 0.0, 0.02)

    def numbers(self):
        """(P, L*2*K*d), what PEFT saves as `prompt_embeddings`; after training, all that is needed of a network."""
        return self.embedding.weight if self.transform is None else self.transform(self.embedding.weight)

    @torch.no_grad()
    def load(self, numbers):
        """Take over numbers (P, L*2*K*d), as of `numbers()`. Those of a projection cannot be found from them."""
        expected = (self.tokens, self.layers * 2 * self.heads * self.width)
        if self.transform is not None:
            raise InputError("a prefix with a projection cannot take finished numbers: attach one without")
        if tuple(numbers.shape) != expected:
            raise InputError(f"a prefix of {tuple(numbers.shape)} numbers does not fit: this one has {expected}, tokens "
                             f"and 2 x {self.layers} layers x {self.heads} heads x {self.width}")
        self.embedding.weight.copy_(numbers)

    def cache(self, batch):
        """A new Cache for `batch` rows with the P tokens in every layer; it keeps what follows them too."""
        layers = self.numbers().view(self.tokens, self.layers, 2, self.heads, self.width).permute(1, 2, 3, 0, 4)
        cache = Cache()
        for layer, (k, v) in enumerate(layers):                                          # (K, P, d) each
            cache.put(layer, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1))
        cache.mask = torch.ones(batch, self.tokens, dtype=torch.bool, device=layers.device)
        return cache


class Recorder(nn.Module):
    """A prefix of no tokens: after a pass, its cache holds what every layer wanted to keep."""

    tokens = 0

    def __init__(self):
        super().__init__()
        self.seen = Cache()

    def cache(self, batch):
        return self.seen


@torch.no_grad()
def shape_of(backbone):
    """(L, K, d): attention layers that a prefix stands before, their heads of keys and values, the width of a head.

    One token goes through the model, and each layer shows what it keeps of it: no family has to say it.
    """
    recorder, standing, was_training = Recorder(), backbone.prefix, backbone.training
    one = torch.zeros(1, 1, dtype=torch.long, device=next(backbone.parameters()).device)
    backbone.prefix = recorder
    try:
        backbone.eval().states(one, torch.ones_like(one))
    finally:
        backbone.prefix = standing
        backbone.train(was_training)
    (_, heads, _, width), = {k.shape for k in recorder.seen.keys}    # the layers of a model are alike
    return len(recorder.seen.keys), heads, width


def parameter_count(model, tokens, projection=False, hidden=None):
    """How many numbers `attach_prefix` would add: P * L*2*K*d, or those of P vectors and two linear layers."""
    layers, heads, width = shape_of(body(model))
    vector, row = heads * width, layers * 2 * heads * width
    hidden = hidden or vector
    return tokens * vector + (vector + 1) * hidden + (hidden + 1) * row if projection else tokens * row


def attach_prefix(model, tokens, projection=False, hidden=None, seed=0):
    """Put a fresh prefix of `tokens` tokens before every text of a classifier or a body, at backbone.prefix -> Prefix.

    projection, hidden: see Prefix. Deterministic by seed. Raises InputError before anything has changed.
    """
    backbone = body(model)
    if backbone.prefix is not None:
        raise InputError(f"this model has a prefix of {backbone.prefix.tokens} tokens already: detach it first")
    room_behind(backbone, tokens)
    if hidden is not None and not (projection and type(hidden) is int and hidden >= 1):
        raise InputError(f"hidden {short(hidden)}: must be a whole number from 1, and goes with a "
                         f"projection only")
    prefix = Prefix(*shape_of(backbone), tokens, projection, hidden, seed)
    weight = backbone.word_embeddings.weight
    # 16 bits would round small steps away; Cache.extend casts to what a layer computes in
    backbone.prefix = prefix.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    return prefix


def detach_prefix(model):
    """Take the prefix off again -> Prefix. The base is as it was."""
    trained_parameters(model)                                        # refuses a model that has none
    prefix, body(model).prefix = body(model).prefix, None
    return prefix


def trained_parameters(model):
    """{path: parameter} of the prefix."""
    if body(model).prefix is None:
        raise InputError("this model has no prefix: attach one first")
    return {path: parameter for path, parameter in model.named_parameters() if "prefix" in path.split(".")}


def body(model):
    """The backbone of a classifier, or the backbone itself."""
    return getattr(model, "backbone", model)


def room_behind(backbone, tokens):
    """How long texts may be behind `tokens` more tokens, None: any. InputError if there is no room for a text."""
    if type(tokens) is not int or tokens < 1:
        raise InputError(f"{short(tokens)} tokens before a text: must be a whole number from 1, "
                         f"usually 5 to 100")
    if backbone.max_input_tokens is not None and tokens >= backbone.max_input_tokens:
        raise InputError(f"{tokens} tokens before a text leave none of the {backbone.max_input_tokens} positions of this "
                         f"model{backbone.prefix_note()}: take fewer")
    return None if backbone.max_input_tokens is None else backbone.max_input_tokens - tokens
