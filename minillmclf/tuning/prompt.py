"""Prompt tuning: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".

P new "words" stand before every text. Only their vectors learn, D numbers each: the model itself stays as it is. They
are tokens like others from there on: each costs as much as a word, each takes a position, and pooling sees them:
"first" reads the first of them, "last" the last word of the text, as in PEFT.

What a family does to the vectors of words it does to these too. Trap: Gemma multiplies them with sqrt(D), and the vectors
that PEFT saves for a Gemma of transformers 5 are those behind this step; divide them by sqrt(D).

Unlike LoRA, a prompt changes the answers from its start; `detach_prompt` gives the base back, bit for bit. Nothing is
frozen here: `trained_parameters` says what should learn. Not here: files; keys and values for each layer (prefix.py).
"""
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.layers import Rows
from .prefix import body, room_behind


class PromptEmbedding(nn.Module):
    """Word embeddings that know P words more: id V + i is row i of `vectors` (P, D)."""

    def __init__(self, base, vectors):
        super().__init__()
        self.base, self.vectors = base, nn.Parameter(vectors)

    @property
    def weight(self):
        """(V, D), the base's matrix. Tied models score the vocabulary with it, and the new words are not in that."""
        return self.base.weight

    def forward(self, ids):
        """ids (...), below V + P -> (..., D)."""
        new = ids - len(self.weight)                                                      # from 0 up: a new word
        words, vectors = self.base(ids.where(new < 0, 0)), self.vectors[new.clamp(min=0)]
        return words.where((new < 0).unsqueeze(-1), vectors.to(words.dtype))


@dataclass(frozen=True)
class Prompt:
    """Puts P new words before texts. first: the id of the first, V; tokens: P; longest: tokens of a text, None: any."""
    first: int
    tokens: int
    longest: int | None

    def extend(self, ids, mask, types=None):
        """ids, mask, types: (B, T) -> the same (B, P + T), with the P new ids before each row's first real token.

        Their types are 0; types None stays None. Trap: before left padding, they would stand apart from their text.
        """
        most = int(Rows(mask).lengths.max())             # and refuses a row without a text, which a prompt would hide
        if self.longest is not None and most > self.longest:
            raise InputError(f"a text of {most} tokens does not fit behind a prompt of {self.tokens}: set --max-length "
                             f"{self.longest} or less")
        column = torch.arange(self.tokens + ids.shape[1], device=ids.device)              # (P + T,)
        place = column - mask.int().argmax(1, keepdim=True)                               # (B, P + T), the first new: 0
        new = (place >= 0) & (place < self.tokens)
        old = (column - self.tokens * (place >= 0)).clamp(min=0)                          # where a token stood before
        ids, mask = ids.gather(1, old).where(~new, self.first + place), mask.gather(1, old).masked_fill(new, 1)
        return ids, mask, None if types is None else types.gather(1, old).masked_fill(new, 0)


class Prompted:
    """Stands for a classifier's `encode` and puts new words before every sequence of its rows."""

    def __init__(self, encode, prompt):
        self.encode, self.words = encode, list(range(prompt.first, prompt.first + prompt.tokens))
        self.longest = prompt.longest

    def __call__(self, texts, training=False):
        """As Classifier.encode -> (rows, how many were cut)."""
        rows, shortened = self.encode(texts, training)
        return list(map(self.extend, rows)), shortened

    def extend(self, row):
        """A row (ids, types), or one of several such sequences -> with the new words, of type 0."""
        if isinstance(row[0], tuple):
            return type(row)(*map(self.extend, row))
        ids, types = row
        if self.longest is not None and len(ids) > self.longest:
            raise InputError(f"a text of {len(ids)} tokens does not fit behind a prompt of "
                             f"{len(self.words)}: set --max-length {self.longest} or less")
        return self.words + ids, [0] * len(self.words) + types


def attach_prompt(model, tokens, ids=None, seed=0):
    """Teach a classifier or a body `tokens` new words -> Prompt; a classifier keeps it as `prompt`, for its forward.

    They begin as the embeddings of the tokens `ids`, repeated or cut to P, as in PEFT; else as normal numbers that vary
    as those of the embeddings do. Deterministic by seed. Raises InputError before anything has changed.
    """
    backbone = body(model)
    words, longest = backbone.word_embeddings, room_behind(backbone, tokens)
    if isinstance(words, PromptEmbedding):
        raise InputError(f"this model has a prompt of {len(words.vectors)} tokens already: detach it first")
    W = words.weight.detach()
    W = W.to(torch.promote_types(W.dtype, torch.float32))            # 16 bits would round small steps away
    if ids is None:
        vectors = torch.randn(tokens, W.shape[1], generator=torch.Generator().manual_seed(seed)).to(W) * W.std()
    elif len(ids) and all(type(token) is int and 0 <= token < len(W) for token in ids):
        vectors = W[[ids[place % len(ids)] for place in range(tokens)]]                   # (P, D)
    else:
        raise InputError(f"a prompt cannot begin as the tokens {short(ids)}: name one or more ids "
                         f"from 0 to {len(W) - 1}")
    backbone.word_embeddings, prompt = PromptEmbedding(words, vectors), Prompt(len(W), tokens, longest)
    if backbone is not model:
        model.prompt = prompt
    if backbone is not model and hasattr(model, "encode"):
        model.encode = Prompted(model.encode, prompt)
    return prompt


def detach_prompt(model):
    """Forget the new words -> their vectors (P, D). The base is as it was."""
    (vectors,), backbone = trained_parameters(model).values(), body(model)
    backbone.word_embeddings = backbone.word_embeddings.base
    if backbone is not model:
        model.prompt = None
        vars(model).pop("encode", None)
    return vectors


def trained_parameters(model):
    """{path: parameter} of the new words: one, (P, D)."""
    words = body(model).word_embeddings
    if not isinstance(words, PromptEmbedding):
        raise InputError("this model has no prompt: attach one first")
    return {path: parameter for path, parameter in model.named_parameters() if parameter is words.vectors}
