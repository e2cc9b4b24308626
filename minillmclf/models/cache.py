"""Writing text, token by token: `generate`, and the keys and values that it keeps between steps.

A decoder's tokens never look at later ones, so a new token leaves all earlier keys and values as
they are: a cache keeps them, and each step computes the new token alone. The models know nothing of
it: they ask a `Rows` for keys and values, and its subclass `CachedRows` adds the earlier ones.

Not here: choosing among given answers (classify/). Sampling: Fan et al. 2018 (top-k), Holtzman et
al. 2019 (top-p).
"""
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..text.batch import token_positions
from .layers import Rows


class Cache:
    """The keys and values that each attention layer has computed so far, and their mask."""

    def __init__(self):
        self.keys, self.values = [], []             # (B, K, S, d) for each layer
        self.mask = None                            # (B, S)

    def put(self, layer, k, v):
        """Replace the keys and values of a layer, or append a new layer's: (B, K, S, d) each."""
        place = slice(layer, layer + 1)             # empty, at the end, for a new layer
        self.keys[place], self.values[place] = [k], [v]

    def expand(self, count):
        """The cache of one row -> a new cache of `count` equal rows, without a copy."""
        new = Cache()
        new.keys, new.values = ([x.expand(count, -1, -1, -1) for x in kept]
                                for kept in (self.keys, self.values))
        new.mask = self.mask.expand(count, -1)
        return new

    def keep_rows(self, live):
        """Drop all rows of the batch but those numbered in `live`."""
        self.keys, self.values = pick_rows(self.keys, live), pick_rows(self.values, live)
        self.mask = pick_rows(self.mask, live)


class CachedRows(Rows):
    """Rows of new tokens, which look at the tokens of a cache and at each other.

    mask: (B, T), of the new tokens alone. The n-th call of `keys_values` is made by layer n.
    """

    def __init__(self, mask, cache, layout=None):
        super().__init__(mask, layout)
        old_mask = self.mask[:, :0] if cache.mask is None else cache.mask
        self.key_mask = torch.cat([old_mask, self.mask], dim=1)    # (B, S), the T new places last
        self.uniform = bool(self.key_mask.all())
        self.key_position_ids = token_positions(self.key_mask)
        self.set_query_positions()
        self.cache, self.layer = cache, -1
        self.earlier = list(zip(cache.keys, cache.values))         # (k, v) of each layer so far
        cache.mask = self.key_mask

    def set_query_positions(self):
        """Set the positions of the queries, which are those of the last T keys."""
        self.position_ids = self.key_position_ids[:, -self.mask.shape[1]:]          # (B, T)
        self.positions = self.unpad(self.position_ids)                              # (N,)
        self.longest = int(self.key_position_ids.max()) + 1

    def is_triangle(self, window):
        return not self.earlier and super().is_triangle(window)

    def keys_values(self, k, v):
        """k, v: (N, K, d), of the new tokens -> those of all tokens, (B, K, S, d) each, the earlier
        ones first. The cache keeps them for this layer."""
        k, v = super().keys_values(k, v)
        self.layer += 1
        if self.layer < len(self.earlier):
            k, v = (torch.cat([old.to(new.dtype), new], dim=2)      # a prefix is trained in fp32
                    for old, new in zip(self.earlier[self.layer], (k, v)))
        self.cache.put(self.layer, k, v)    # the same again where recompute.py repeats a block
        return k, v


def pick_rows(tensors, live):
    """The rows numbered in `live` of a tensor, or of all tensors in a collection; None -> None."""
    if isinstance(tensors, dict):
        return {key: pick_rows(tensor, live) for key, tensor in tensors.items()}
    if isinstance(tensors, (list, tuple)):
        return type(tensors)(pick_rows(tensor, live) for tensor in tensors)
    return None if tensors is None else tensors[live]


def new_cache(model, count):
    """A cache for `count` rows: empty, or with the keys and values of the model's prefix."""
    return Cache() if model.prefix is None else model.prefix.cache(count)


def prefill(model, ids):
    """A decoder reads ids (1, T) once -> the Cache of what it has read, for `expand`."""
    cache = new_cache(model, 1)
    model.hidden_states(ids, CachedRows(torch.ones_like(ids), cache))
    return cache


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 takes the likeliest; above 0 it is drawn from
    softmax(logits / temperature): with top_k from the k likeliest only, with top_p from the
    fewest that together have probability p. InputError for a number out of its bounds."""
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        drawn = self.top_k or self.top_p is not None
        if self.temperature < 0 or self.temperature == 0 and drawn:
            raise InputError(f"temperature {self.temperature}: should be above 0 where top_k or "
                             "top_p are set, else 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k}: should be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: should lie above 0 and at most at 1")

    def next_tokens(self, logits, generators):
        """logits (B, V) -> the next token of each row (B,). generators: one for each row."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self.temperature
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None:
            probs, order = logits.softmax(-1).sort(-1, descending=True)                    # (B, V)
            dropped = probs.cumsum(-1) - probs >= self.top_p    # the likelier ones already suffice
            dropped = torch.zeros_like(dropped).scatter(-1, order, dropped)    # in the order of ids
            logits = logits.masked_fill(dropped, float("-inf"))
        probs = logits.softmax(-1).cpu()
        new = [torch.multinomial(row, 1, generator=each) for row, each in zip(probs, generators)]
        return torch.cat(new).to(logits.device)


@torch.inference_mode()
def generate(model, ids, mask, max_new_tokens, eos_ids=None, cached=True, **sampling):
    """Continue each row (a decoder), or answer it (an encoder-decoder) -> a list of ids per row.

    ids, mask: (B, T), rows of any lengths, padded on either side. A row ends with the first of
    `eos_ids`, which is part of the result (default: eos_token_id of config.json, one or several),
    or after `max_new_tokens`. sampling: temperature, top_k, top_p, seed, as in `Sampling`. Draws
    depend on `seed` and the number of the row alone, not on the other rows. cached=False computes
    all tokens anew at each step: the same result, slower.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens {max_new_tokens}: should be 1 or more")
    stops = set(eos_ids_in(model.source_config) if eos_ids is None else eos_ids)
    sampling, was_training = Sampling(**sampling), model.training
    model.eval()
    try:
        return continue_rows(model, ids, mask, max_new_tokens, stops, cached, sampling)
    finally:
        model.train(was_training)


def continue_rows(model, ids, mask, max_new_tokens, stops, cached, sampling):
    """What `generate` returns. stops: set of ids that end a row; sampling: a `Sampling`."""
    written = [[] for _ in ids]
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(ids))]
    live, cache = list(range(len(ids))), new_cache(model, len(ids))   # live: unfinished rows
    ids, mask, context = model.prepare_prompt(ids, mask)
    check_positions(model, mask, max_new_tokens)
    step_ids, step_mask = ids, mask              # of this step alone; ids, mask: of all until now
    for _ in range(max_new_tokens):
        rows = CachedRows(step_mask, cache) if cached else model.make_rows(mask)
        hidden = model.hidden_states(step_ids if cached else ids, rows, context)
        logits = model.logits(rows.final_tokens(hidden)).float()                            # (B, V)
        new = sampling.next_tokens(logits, [generators[row] for row in live])              # (B,)
        for row, token in zip(live, new.tolist()):
            written[row].append(token)
        unfinished = [i for i, token in enumerate(new.tolist()) if token not in stops]  # of `live`
        if not unfinished:
            break
        if len(unfinished) < len(live):
            live = [live[i] for i in unfinished]
            ids, mask, new, context = pick_rows((ids, mask, new, context), unfinished)
            cache.keep_rows(unfinished)
        step_ids = new.unsqueeze(1)                                                        # (B, 1)
        step_mask = torch.ones_like(step_ids)
        ids, mask = torch.cat([ids, step_ids], 1), torch.cat([mask, step_mask.to(mask.dtype)], 1)
    return written


def eos_ids_in(config):
    """eos_token_id of a config.json, as a list: it may be one id, several or none."""
    ends = config.get("eos_token_id")
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def check_positions(model, mask, max_new_tokens):
    """InputError unless prompt and answer together fit into the model's positions."""
    longest, most = int(mask.sum(1).max()), model.max_input_tokens
    if most is not None and longest + max_new_tokens - 1 > most:
        raise InputError(f"{longest} tokens and {max_new_tokens} new ones are more than the {most} "
                         f"positions of this model{model.prefix_note()}: shorten the prompt or "
                         "lower max_new_tokens")
