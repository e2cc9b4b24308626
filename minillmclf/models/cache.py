"""Writing text, token by token: `generate`, and the keys and values that it keeps between the steps.

A decoder's earlier tokens never look at later ones, so their keys and values stay as they are when a token is added:
they are kept, and each step computes the new token alone. The cache is attached from outside. A model asks its rows for
the keys that a layer's queries look at (`Rows.recall`); `CachedRows` answers with the earlier ones too. Training never
sees any of this.

Not here: choosing among given answers (classify/). Sampling: Fan et al. 2018 (top-k), Holtzman et al. 2019 (top-p).
"""
import torch

from ..errors import InputError
from .layers import Rows


class Cache:
    """The keys and values of every attention layer so far, and which places hold tokens."""

    def __init__(self):
        self.keys, self.values = [], []             # per layer (B, K, S, d): grouped heads stay grouped
        self.mask = None                            # (B, S)

    def put(self, layer, k, v):
        """What a layer's queries look at from now on: all keys and values, (B, K, S, d) each."""
        self.keys[layer:layer + 1], self.values[layer:layer + 1] = [k], [v]

    def expand(self, count):
        """The cache of one row -> a new one of `count` rows that all begin alike; no number is copied yet."""
        wide = Cache()
        wide.keys, wide.values = ([x.expand(count, -1, -1, -1) for x in kept] for kept in (self.keys, self.values))
        wide.mask = self.mask.expand(count, -1)
        return wide

    def keep(self, live):
        """Forget all rows of the batch but `live`."""
        self.keys, self.values = pick(self.keys, live), pick(self.values, live)
        self.mask = pick(self.mask, live)


class CachedRows(Rows):
    """Rows of new tokens, whose queries look at the tokens of a cache and at each other.

    mask: (B, T) of the new tokens alone. The n-th `recall` of a pass is that of the n-th layer.
    """

    def __init__(self, mask, cache):
        super().__init__(mask)
        earlier = self.mask[:, :0] if cache.mask is None else cache.mask
        self.key_real = torch.cat([earlier, self.mask], dim=1)                          # (B, S)
        self.key_grid = (self.key_real.cumsum(1) - 1).clamp(min=0)
        self.grid = self.key_grid[:, earlier.shape[1]:]                                 # (B, T)
        self.positions = self.grid.flatten()[self.places]                               # (N,)
        self.alike = bool(self.key_real.all())
        self.key_mask = None if self.alike else self.key_real[:, None, None, :]
        self.cache, self.layer = cache, -1
        self.earlier = list(zip(cache.keys, cache.values))                              # of each layer, before this pass
        cache.mask = self.key_real

    def plain(self, window):
        return not self.earlier and super().plain(window)

    def recall(self, k, v):
        self.layer += 1
        if self.layer < len(self.earlier):
            k, v = (torch.cat([old.to(new.dtype), new], dim=2)                          # a prefix learns in fp32
                    for old, new in zip(self.earlier[self.layer], (k, v)))
        self.cache.put(self.layer, k, v)            # the same again where a layer is computed twice (training/recompute.py)
        return k, v


def pick(tensors, live):
    """The rows `live` of a tensor, or of all tensors in nested lists and tuples; None stays None."""
    if isinstance(tensors, (list, tuple)):
        return type(tensors)(pick(part, live) for part in tensors)
    return None if tensors is None else tensors[live]


def start(model, count):
    """The cache that `count` rows begin with: empty, or filled by the model's prefix (tuning/prefix.py)."""
    return Cache() if model.prefix is None else model.prefix.cache(count)


def prefill(model, ids):
    """A decoder reads ids (1, T) once -> the Cache of what it has read, for `expand`."""
    cache = start(model, 1)
    model.hidden(ids, CachedRows(torch.ones_like(ids), cache))
    return cache


@torch.inference_mode()
def generate(model, ids, mask, max_new_tokens, eos_ids=None, temperature=0.0, top_k=None, top_p=None, seed=0, cached=True):
    """Continue each row (a decoder), or answer it (an encoder-decoder) -> [new ids, ...], a list for each row.

    ids, mask: (B, T), rows of any lengths, padded on either side. A row ends with the first of `eos_ids`, which is
    part of the result (default: eos_token_id of config.json, one or several), or after `max_new_tokens`.
    temperature 0 takes the likeliest token; above 0 tokens are drawn from softmax(logits / temperature), with top_k
    among the k likeliest only, with top_p among the fewest that hold a share of p. Draws follow from `seed` and the
    number of the row alone, not from batch mates. cached=False computes everything anew at each step: the same, slower.
    """
    check_choice(max_new_tokens, temperature, top_k, top_p)
    was_training = model.training
    model.eval()
    stops = set(ends_of(model.source_config) if eos_ids is None else eos_ids)
    written, draws = [[] for _ in ids], [torch.Generator().manual_seed(seed + row) for row in range(len(ids))]
    live, cache = list(range(len(ids))), start(model, len(ids))
    ids, mask, context = model.prompt(ids, mask)
    check_room(model, mask, max_new_tokens)
    step_ids, step_mask = ids, mask
    for _ in range(max_new_tokens):
        rows = CachedRows(step_mask, cache) if cached else model.rows(mask)
        logits = model.logits(rows.last(model.hidden(step_ids if cached else ids, rows, context)))         # (B, V)
        new = choose(logits.float(), temperature, top_k, top_p, [draws[row] for row in live])               # (B,)
        for row, token in zip(live, new.tolist()):
            written[row].append(token)
        going = [place for place, token in enumerate(new.tolist()) if token not in stops]
        if not going:
            break
        if len(going) < len(live):
            live, (ids, mask, new, context) = [live[place] for place in going], pick((ids, mask, new, context), going)
            cache.keep(going)
        step_ids, step_mask = new.unsqueeze(1), torch.ones_like(new.unsqueeze(1))                           # (B, 1)
        ids, mask = torch.cat([ids, step_ids], 1), torch.cat([mask, step_mask.to(mask.dtype)], 1)
    model.train(was_training)
    return written


def choose(logits, temperature, top_k, top_p, draws):
    """The next token of each row: logits (B, V) -> (B,). draws: a torch.Generator for each row."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None:
        likeliest, order = logits.softmax(-1).sort(-1, descending=True)                                    # (B, V)
        beyond = likeliest.cumsum(-1) - likeliest >= top_p           # those before it hold the share already
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
    chances = logits.softmax(-1).cpu()
    new = [torch.multinomial(row, 1, generator=draw) for row, draw in zip(chances, draws)]
    return torch.cat(new).to(logits.device)


def ends_of(config):
    """eos_token_id of a config.json, as a list: it may be one id, several or none."""
    ends = config.get("eos_token_id")
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def check_choice(max_new_tokens, temperature, top_k, top_p):
    """The ways to choose, or one InputError that says which number is out of its bounds."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens {max_new_tokens}: should be 1 or more")
    if temperature < 0 or (temperature == 0 and (top_k or top_p is not None)):
        raise InputError(f"temperature {temperature}: should be above 0 where top_k or top_p are set, else 0 or more")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k {top_k}: should be 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p}: should lie above 0 and at most at 1")


def check_room(model, mask, max_new_tokens):
    """Prompt and answer together must fit into the model's positions."""
    longest = int(mask.sum(1).max())
    if model.room is not None and longest + max_new_tokens - 1 > model.room:
        raise InputError(f"{longest} tokens and {max_new_tokens} new ones are more than the {model.room} positions "
                         f"of this model{model.beside()}: shorten the prompt or lower max_new_tokens")
