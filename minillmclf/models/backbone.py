"""What every architecture here offers: the contract of a backbone, and the tables that each family fills in.

A backbone reads token ids and gives one vector for each token. Where its checkpoint has a language-model head, `logits`
turns such vectors into scores over the vocabulary. It knows nothing of classes: those are read in classify/.
"""
import torch
from torch import nn

from ..errors import InputError
from .cache import CachedRows
from .layers import Rows
from .weights import Table


class Backbone(nn.Module):
    """The parent of all families.

    A family has `from_config(config, lm_head=False, where="config.json")`, a class method that builds it with fresh
    weights from a parsed config.json (lm_head: the file has tensors of LM_NAMES); `forward(ids, mask, ...) -> hidden
    (B, T, D)`, zeros at padding; and these attributes:

    config      the checked fields of config.json           width       D
    max_tokens  the longest text it can take, None: any     lm_head     its own language-model head, or None
    tied        True: without an own head, the word embeddings are the vocabulary's matrix
    head_dropout  what its classification head in transformers applies
    word_factor   what the vectors of words are multiplied with before anything else reads them
    """

    ARCHITECTURES = {}          # "body", "lm_head", "classifier" -> the class in transformers
    NAMES = {}                  # tensor in the file -> here; None: dropped on purpose. A row stands for weight and bias
    LM_NAMES = {}               # the same for a language-model head of its own
    TIES = {}                   # copy in the file -> the parameter here that it must equal
    LM_TIES = {}                # the same for copies in the language-model head
    SPELLINGS = ()              # (beginning in a file, beginning in NAMES), for files that spell their names otherwise
    TRANSPOSED = ()             # modules whose weight lies in the file as (in, out)
    CLASSIFIER_PREFIX = ""      # what a file with a classification head puts before every name of NAMES
    KEPT_WHOLE = ()             # linear layers that keep their precision where the others are put into four bits
    BLOCKS = "layers"           # where the blocks are that `last-N` counts
    WIDTH = "hidden_size"       # the field with the width of vectors
    DEPTHS = {"layers": "num_hidden_layers"}    # where a stack of blocks is -> how many
    ANSWERS = "in place"        # where a word that it guesses stands: of a mask token, "behind" a text, or "apart" from it

    max_tokens, tied, head_dropout, word_factor = None, False, 0.0, 1.0

    def __init__(self):
        super().__init__()
        self.prefix = None      # a module whose cache(B) holds keys and values of `tokens` that stand before every text

    def rows(self, mask, read=None):
        """The rows of a batch, mask (B, T); with a prefix, its keys and values are looked at too. read: as in `states`."""
        rows = Rows(mask) if self.prefix is None else CachedRows(mask, self.prefix.cache(len(mask)))
        rows.read = read
        return rows

    @property
    def room(self):
        """The longest text that it can take: max_tokens, less those of a prefix. None: any."""
        return self.max_tokens if None in (self.max_tokens, self.prefix) else self.max_tokens - self.prefix.tokens

    def beside(self):
        """For messages about `room`."""
        return "" if self.prefix is None else f" beside its prefix of {self.prefix.tokens} tokens"

    def check_length(self, rows):
        """InputError if a text needs more positions than there are; tokens that stand before it have some too."""
        extra = int(rows.positions.max()) + 1 - self.max_tokens
        if extra > 0:
            raise InputError(f"a text of {self.room + extra} tokens is longer than the {self.room} positions of this "
                             f"model{self.beside()}: set --max-length {self.room} or less")

    @classmethod
    def own_config(cls, config):
        """The part of a config.json that describes this model; some files hold a larger one (Gemma 3 with vision)."""
        return config

    def table(self):
        """How this model's tensors lie in a file. A head that is not taken is dropped on purpose.
        """
        lm_names = self.LM_NAMES if self.lm_head is not None else dict.fromkeys(self.LM_NAMES)
        names = self.NAMES | lm_names
        own = [file for file in self.LM_TIES if names.get(file.removesuffix(".weight"))]    # untied: it is the head itself
        copies = {file: ours for file, ours in self.LM_TIES.items() if file not in own}
        if not self.has_logits:
            names, copies = names | dict.fromkeys(copies), {}
        title = type(self).__name__
        return Table(names, self.TIES | copies, self.SPELLINGS, self.TRANSPOSED, title)

    def states(self, ids, mask, types=None, read=None):
        """The vectors (B, T, D) that a classifier reads; types: (B, T) token types, for families that have them.

        read: "first", "last" or a number n, if that token of each row, or its last n, are all that is wanted -> (B, 1, D) or
        (B, n, D), and the last block goes on with these tokens alone. A row with fewer than n repeats its first.
        """
        return self(ids, mask, read=read)

    def read_by_hand(self, ids, mask, types, read):
        """What `states` gives with `read`, taken from the states of all tokens. Slower; a test holds the two equal."""
        real, states = mask.bool(), self.states(ids, mask, types)                        # (B, T), (B, T, D)
        places = {"first": [0], "last": [-1]}.get(read) or range(-read, 0)
        return torch.stack([torch.stack([own[at][max(place, -int(at.sum()))] for place in places])
                            for own, at in zip(states, real)])                           # (B, n, D)

    def prompt(self, ids, mask):
        """What is read before an answer is written -> ids (B, T), mask (B, T), context; only families that write have it."""
        raise InputError(f"{type(self).__name__} reads text and writes none: generate needs a decoder or an encoder-decoder")

    @property
    def has_logits(self):
        """Can it score the vocabulary?"""
        return self.lm_head is not None or self.tied

    def vocabulary(self):
        """The matrix (V, D) that scores the vocabulary: an own one, or the word embeddings."""
        if not self.has_logits:
            raise InputError(f"this checkpoint has no language-model head: load one that was saved with it "
                             f"({self.ARCHITECTURES['lm_head']})")
        return self.word_embeddings.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden):
        """hidden (..., D) -> scores over the vocabulary (..., V)."""
        return hidden @ self.vocabulary().T


class Decoder(Backbone):
    """What the decoder-only families share: each token sees itself and what stands before it, so text can be continued.

    A family writes `hidden(ids, rows, context=None) -> (N, D)`, or (B * n, D) if the rows say that n tokens each are read; rows
    may also come from a cache (cache.py), context is what an encoder would add.
    """

    LM_NAMES = {"lm_head": "lm_head"}
    LM_TIES = {"lm_head.weight": "word_embeddings.weight"}
    ANSWERS = "behind"

    def own_head(self, vocabulary):
        """The matrix of a language-model head that is not the word embeddings: no bias, no norm."""
        return nn.Linear(self.width, vocabulary, bias=False)

    def forward(self, ids, mask, read=None):
        """ids, mask: (B, T) -> hidden (B, T, D), zeros at padding. mask is 1 where a token is. read: as in `states`."""
        rows = self.rows(mask, read)
        return rows.read_from(self.hidden(ids, rows))

    def prompt(self, ids, mask):
        """What is read before an answer is written -> ids (B, T), mask (B, T), context."""
        return ids, mask, None
