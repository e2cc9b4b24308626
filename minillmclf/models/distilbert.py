"""DistilBERT (Sanh et al. 2019, "DistilBERT, a distilled version of BERT"): half of BERT's layers.

It was trained to answer as BERT does. Token types are gone, so of a pair it only sees where [SEP]
stands, and in training nothing is dropped between attention and the sum. What else differs are
names: of the numbers in config.json, which `config_fields` translates, and of the tensors. Trap: in
its classification head, relu stands where BERT has tanh. A line marked "differs" replaces BERT's.

Here: the body and the masked-LM head. Not here: distillation (pretrain/distil.py), the
classification head (classify/family_heads.py).
"""
from .bert import Bert, BertLayer
from .config import REQUIRED
from .layers import ACTIVATIONS, attention


class DistilBertLayer(BertLayer):
    """BERT's block without the dropout between attention and the sum."""

    def attend(self, x, rows):
        """x: (N, D), rows: layers.Rows -> (M, D)."""
        queries, dropout = rows.queries(x), self.attention_dropout if self.training else 0.0
        attended = attention(*self.project(x, queries), rows, dropout)               # (M, D)
        return self.attention_norm(queries + self.o_proj(attended))                  # differs


class DistilBert(Bert):
    """The DistilBERT body, and the masked-LM head if the file has one."""

    FIELDS = dict(
        vocab_size=REQUIRED, dim=REQUIRED, n_layers=REQUIRED, n_heads=REQUIRED, hidden_dim=REQUIRED,
        activation="gelu", max_position_embeddings=512, dropout=0.1, attention_dropout=0.1,
        seq_classif_dropout=0.2)
    BERT_FIELDS = {                                  # a field here -> the same in BERT
        "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size", "activation": "hidden_act",
        "dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob",
        "seq_classif_dropout": "classifier_dropout"}
    FIXED = dict(tie_word_embeddings=True, tie_weights_=True)
    # sinusoidal_pos_embds: position embeddings began as sinusoids; the file holds them as trained
    INERT = ("sinusoidal_pos_embds", "qa_dropout")
    CHOICES = {"activation": ACTIVATIONS}
    MULTIPLES = (("dim", "n_heads"),)
    ARCHITECTURES = {"body": "DistilBertModel", "lm_head": "DistilBertForMaskedLM",
                     "classifier": "DistilBertForSequenceClassification"}
    ALIASES = (("", "distilbert."),)
    WIDTH_FIELD, DEPTH_FIELDS, TOKEN_TYPES = "dim", {"layers": "n_layers"}, False
    NAMES = {
        "distilbert.embeddings.word_embeddings": "word_embeddings",
        "distilbert.embeddings.position_embeddings": "position_embeddings",
        "distilbert.embeddings.LayerNorm": "embedding_norm",
        "distilbert.embeddings.position_ids": None,
        "distilbert.transformer.layer.{}.attention.q_lin": "layers.{}.q_proj",
        "distilbert.transformer.layer.{}.attention.k_lin": "layers.{}.k_proj",
        "distilbert.transformer.layer.{}.attention.v_lin": "layers.{}.v_proj",
        "distilbert.transformer.layer.{}.attention.out_lin": "layers.{}.o_proj",
        "distilbert.transformer.layer.{}.sa_layer_norm": "layers.{}.attention_norm",
        "distilbert.transformer.layer.{}.ffn.lin1": "layers.{}.up_proj",
        "distilbert.transformer.layer.{}.ffn.lin2": "layers.{}.down_proj",
        "distilbert.transformer.layer.{}.output_layer_norm": "layers.{}.mlp_norm",
        "pre_classifier": None,
        "classifier": None,
    }
    LM_NAMES = {"vocab_transform": "lm_head.dense", "vocab_layer_norm": "lm_head.norm",
                "vocab_projector.bias": "lm_head.bias"}
    LM_TIES = {"vocab_projector.weight": "word_embeddings.weight"}
    LAYER = DistilBertLayer

    def __init__(self, c, lm_head):
        super().__init__(c, lm_head)
        self.type_embeddings = None                                                  # differs

    @classmethod
    def config_fields(cls, config, where):
        """The checked fields of a config.json, and the same under the names that BERT has."""
        c = super().config_fields(config, where)
        renamed = {bert: c[own] for own, bert in cls.BERT_FIELDS.items()}
        return c | renamed | {"layer_norm_eps": 1e-12, "type_vocab_size": 1}

    def embed_types(self, types, ids, rows):
        """Nothing is added for a token type."""
        return 0.0                                                                   # differs
