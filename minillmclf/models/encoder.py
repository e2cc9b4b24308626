"""What encoders add to the contract of backbone.py: token types and the masked-LM head."""
import torch
from torch import nn

from ..errors import InputError
from .backbone import Backbone
from .half import product
from .layers import ACTIVATIONS


class MaskedLMHead(nn.Module):
    """hidden -> logits: linear layer, activation, norm, then the word embeddings as a matrix."""

    def __init__(self, c, activation):
        super().__init__()
        self.dense = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.bias = nn.Parameter(torch.zeros(c["vocab_size"]))
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden, embeddings):
        """hidden: (..., D), embeddings: (V, D) -> (..., V)."""
        vectors = self.norm(self.activation(self.dense(hidden)))                  # (..., D)
        return product(vectors, embeddings) + self.bias


class Encoder(Backbone):
    """The parent of the encoders. Each sets `word_embeddings`, `type_embeddings` and `lm_head`."""

    TOKEN_TYPES = True

    def embed_types(self, types, ids, rows):
        """types: (B, T), None for all 0 -> vectors (N, D). InputError for an unknown type."""
        if types is None:
            types = torch.zeros_like(ids)
        highest = (rows.layout.token_types or int(types.max()) + 1) - 1
        known = self.type_embeddings.num_embeddings
        if highest >= known:
            raise InputError(f"token type {highest}: this model has {known} token type(s), "
                             f"numbered from 0")
        return self.type_embeddings(rows.unpad(types))

    def output_embeddings(self):
        """The last matrix of the masked-LM head (V, D): the word embeddings."""
        return super().output_embeddings() if self.lm_head is None else self.word_embeddings.weight

    def logits(self, hidden):
        """hidden (..., D) -> logits over the vocabulary (..., V); needs a masked-LM head."""
        if self.lm_head is None:
            raise InputError("this checkpoint has no masked-LM head: load one that was saved with "
                             "it (*ForMaskedLM)")
        return self.lm_head(hidden, self.word_embeddings.weight)
