"""Prompt tuning: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".

P new "words" stand before every text. Only their vectors (P, D) are trained; the base stays frozen.
They are tokens like others: each costs as much as a word and takes a position. As in PEFT, the
pooling "first" reads the first of them, and "last" the last word of the text.

So two things are attached. The word embeddings get P more rows, whose ids follow the vocabulary's
(`PromptEmbedding`); a classifier's `encode` puts these ids before every text (`PromptedEncode`).

Trap: Gemma multiplies word vectors by sqrt(D). For a Gemma of transformers 5, PEFT saves the new
vectors after this step, so peft/attach.py divides them by sqrt(D).

Unlike LoRA, a new prompt changes the answers; `detach_prompt` restores the base bit for bit. Not
here: files (peft/); keys and values for each layer (prefix.py).
"""
import torch
from torch import nn

from ..errors import InputError
from .prefix import backbone_of, check_tokens


class PromptEmbedding(nn.Module):
    """Word embeddings `base` and P more words: id V + i is row i of `vectors` (P, D)."""

    def __init__(self, base, vectors):
        super().__init__()
        self.base, self.vectors = base, nn.Parameter(vectors)

    @property
    def weight(self):
        """(V, D), the base's matrix: a tied language-model head has no logits for new words."""
        return self.base.weight

    def forward(self, ids):
        """ids (...), below V + P -> (..., D)."""
        row = ids - len(self.weight)                               # of `vectors`; < 0: an old word
        old, new = self.base(ids.where(row < 0, 0)), self.vectors[row.clamp(min=0)]     # (..., D)
        return old.where((row < 0).unsqueeze(-1), new.to(old.dtype))


class PromptedEncode:
    """Replaces a classifier's `encode` to put new words before every sequence of its rows."""

    def __init__(self, encode, words):
        self.encode, self.words = encode, words

    def __call__(self, *args, **named):
        """Arguments and result as of Classifier.encode: (rows, how many were cut)."""
        rows, shortened = self.encode(*args, **named)
        return list(map(self.add_words, rows)), shortened

    def add_words(self, row):
        """Put the new words, of type 0, before (ids, types), or before both of a Pair of these."""
        if isinstance(row[0], tuple):
            return type(row)(*map(self.add_words, row))
        ids, types = row
        return self.words + ids, [0] * len(self.words) + types


def new_word_ids(model):
    """The ids of a model's new words, a list of P; [] without a prompt."""
    words = getattr(backbone_of(model), "word_embeddings", None)
    if not isinstance(words, PromptEmbedding):
        return []
    return list(range(len(words.weight), len(words.weight) + len(words.vectors)))


def attach_prompt(model, tokens, seed=0):
    """Add `tokens` new words to a classifier or a backbone -> their ids, a list.

    From now on a classifier's `encode` puts them before every text; for a backbone the caller must.
    Their vectors start as normal numbers, by the seed, with the standard deviation of the
    embeddings. Raises InputError before anything has changed.
    """
    backbone = backbone_of(model)
    words = backbone.word_embeddings
    check_tokens(backbone, tokens)
    if isinstance(words, PromptEmbedding):
        raise InputError(f"this model has a prompt of {len(words.vectors)} tokens already: detach "
                         "it first")
    W = words.weight.detach()
    W = W.to(torch.promote_types(W.dtype, torch.float32))     # 16 bits would round small steps away
    noise = torch.randn(tokens, W.shape[1], generator=torch.Generator().manual_seed(seed))
    backbone.word_embeddings = PromptEmbedding(words, noise.to(W) * W.std())
    if model is not backbone and hasattr(model, "encode"):
        model.encode = PromptedEncode(model.encode, new_word_ids(model))
    return new_word_ids(model)


def detach_prompt(model):
    """Take the new words off again -> their vectors (P, D). The base is as it was."""
    [vectors] = trainable_parameters(model).values()
    backbone = backbone_of(model)
    backbone.word_embeddings = backbone.word_embeddings.base
    if isinstance(getattr(model, "encode", None), PromptedEncode):
        del model.encode                            # the instance's own; the class still has its
    return vectors


def trainable_parameters(model):
    """{path: parameter} of the new words' vectors: one parameter, (P, D)."""
    words = backbone_of(model).word_embeddings
    if not isinstance(words, PromptEmbedding):
        raise InputError("this model has no prompt: attach one first")
    return {path: p for path, p in model.named_parameters() if p is words.vectors}
