"""The parent of every architecture: the contract of a backbone, and the tables of each family.

A backbone turns token ids into one vector for each token. With a language-model head, `logits`
turns these into logits over the vocabulary. Classes belong to classify/.
"""
from torch import nn

from ..errors import InputError
from .cache import CachedRows
from .config import ConfigTables, read_config
from .half import product
from .last_token import FewQueries, run_few_queries
from .layers import Rows
from .weights import RenameTable


class Backbone(nn.Module, ConfigTables):
    """The parent of all families.

    A family is built by `from_config` and reads text in three steps, which `forward` joins:
    `embed(ids, rows, types)` -> x (N, D), `run(layers, x, rows, context)` -> x, `finish(x)` -> x.
    context: what T5's decoder reads of the source (T5.decoder_context); None in other families.

    Its `__init__(c, lm_head)` takes the checked fields of a config.json and sets

    config, width    these fields, and D
    max_tokens       the most tokens of a text; None: no limit
    lm_head          its own language-model head, or None
    tied             if lm_head is None: are the word embeddings the matrix of the logits?
    head_dropout     the dropout rate of its classification head in transformers
    embedding_scale  what `embed` multiplies word embeddings by (Gemma)
    """

    KIND = "encoder"            # or "decoder", "encoder-decoder"
    ARCHITECTURES = {}          # "body", "lm_head", "classifier" -> the class in transformers
    NAMES = {}                  # module or tensor in the file -> here; None: dropped on purpose
    LM_NAMES = {}               # the same for a language-model head of its own
    SHARED_NAMES = ()           # those of LM_NAMES that a classification head's tensors have too
    TIES = {}                   # copy in the file -> the parameter here that it must equal
    LM_TIES = {}                # the same for copies in the language-model head
    ALIASES = ()                # (prefix of names in some files, the prefix in NAMES)
    TRANSPOSED = ()             # modules whose weight lies in the file as (in, out)
    CLASSIFIER_PREFIX = ""      # before every name of NAMES, in a file with a classification head
    FULL_PRECISION = ()         # linear layers that are never quantised
    BLOCKS_PATH = "layers"      # path of the blocks that the method `last-N` counts
    TOKEN_TYPES = False         # does it read token types?
    WIDTH_FIELD = "hidden_size"                      # the field with the width of vectors
    DEPTH_FIELDS = {"layers": "num_hidden_layers"}   # path of blocks -> the field with their number

    max_tokens, tied, head_dropout, embedding_scale = None, False, 0.0, 1.0

    def __init__(self):
        super().__init__()
        self.prefix = None      # a module whose cache(B) holds keys and values before every text

    # ------------------------------------------------------------------------- config and files

    @classmethod
    def own_config(cls, config):
        """The part of a config.json that describes this model; some files hold a larger one."""
        return config

    @classmethod
    def config_fields(cls, config, where):
        """The checked fields of a config.json; `where` names the file in errors."""
        return read_config(config, cls, where)

    @classmethod
    def from_config(cls, config, lm_head=False, where="config.json"):
        """A newly initialised model from a parsed config.json.

        lm_head: the file has a language-model head of its own. InputError for what is not built.
        """
        return cls(cls.config_fields(config, where), lm_head)

    def rename_table(self):
        """The rename table. It drops a language-model head that this model does not have."""
        has_own_head = self.lm_head is not None
        names = self.NAMES | (self.LM_NAMES if has_own_head else dict.fromkeys(self.LM_NAMES))
        # a matrix that is loaded as the own head is no copy of the word embeddings
        copies = {file: ours for file, ours in self.LM_TIES.items()
                  if not names.get(file.removesuffix(".weight"))}
        if not self.has_logits:                          # nothing uses the copies: drop them too
            names, copies = names | dict.fromkeys(copies), {}
        return RenameTable(names, self.TIES | copies, self.ALIASES, self.TRANSPOSED,
                           type(self).__name__)

    # ------------------------------------------------------------------------- reading text

    @property
    def blocks(self):
        """The stack of blocks whose last output is what `forward` returns."""
        return self.get_submodule(self.BLOCKS_PATH)

    def make_rows(self, mask, layout=None):
        """mask (B, T) -> the Rows of a batch, which also see the keys and values of a prefix."""
        if self.prefix is None:
            return Rows(mask, layout)
        return CachedRows(mask, self.prefix.cache(len(mask)), layout)

    def prepare(self, ids, mask, types=None, layout=None):
        """ids, mask, types: (B, T) -> the arguments of `run`: x (N, D), rows, context."""
        rows = self.make_rows(mask, layout)
        return self.embed(ids, rows, types), rows, None

    def finish(self, x):
        """What follows the last block: (M, D) -> (M, D)."""
        return x

    def hidden_states(self, ids, rows, context=None):
        """A decoder's ids (B, T) and their rows -> hidden (N, D)."""
        return self.finish(self.run(self.blocks, self.embed(ids, rows), rows, context))

    def forward(self, ids, mask, types=None, layout=None):
        """ids, mask, types: (B, T) -> hidden (B, T, D), zeros at padding.

        mask: 1 where a token is. types: 0 for the first text of a pair, 1 for the second, None for
        all 0; families without token types ignore them. layout: text.batch.Layout of the mask.
        """
        x, rows, context = self.prepare(ids, mask, types, layout)
        return rows.pad(self.finish(self.run(self.blocks, x, rows, context)))

    def states(self, ids, mask, types=None, read=None, layout=None):
        """The hidden states that a classifier reads, with the same arguments in every family.

        read: None for all tokens -> (B, T, D); "first" or "last" for one of each row -> (B, 1, D);
        n for its last n -> (B, n, D), where a shorter row repeats its first token.
        """
        if read is None:
            return Backbone.forward(self, ids, mask, types, layout)     # T5's own takes two texts
        x, rows, context = self.prepare(ids, mask, types, layout)
        return run_few_queries(self, x, FewQueries(rows, read), context)

    @property
    def max_input_tokens(self):
        """The most tokens of a text, those of the prefix not counted; None: no limit."""
        if self.max_tokens is None or self.prefix is None:
            return self.max_tokens
        return self.max_tokens - self.prefix.tokens

    def prefix_note(self):
        """For messages about `max_input_tokens`."""
        return "" if self.prefix is None else f" beside its prefix of {self.prefix.tokens} tokens"

    def check_length(self, rows):
        """InputError if a text and its prefix need more positions than there are."""
        extra = rows.longest - self.max_tokens
        if extra > 0:
            most = self.max_input_tokens
            raise InputError(f"a text of {most + extra} tokens is longer than the {most} positions "
                             f"of this model{self.prefix_note()}: set --max-length {most} or less")

    # ------------------------------------------------------------------------- language model

    def prepare_prompt(self, ids, mask):
        """ids, mask: (B, T) -> ids, mask (B, T) that `generate` continues, and context."""
        raise InputError(f"{type(self).__name__} reads text and writes none: generate needs a "
                         "decoder or an encoder-decoder")

    @property
    def has_logits(self):
        """Can it compute logits over the vocabulary?"""
        return self.lm_head is not None or self.tied

    def output_embeddings(self):
        """The matrix (V, D) of the logits: that of `lm_head`, or the word embeddings."""
        if not self.has_logits:
            raise InputError(f"this checkpoint has no language-model head: load one that was saved "
                             f"with it ({self.ARCHITECTURES['lm_head']})")
        return self.word_embeddings.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden):
        """hidden (..., D) -> logits over the vocabulary (..., V)."""
        return product(hidden, self.output_embeddings())


class Decoder(Backbone):
    """What decoder-only families share: a token sees itself and those before it, so text can be
    continued. A family writes `embed` and `run`, and has `layers` and `final_norm`.
    """

    KIND = "decoder"
    LM_NAMES = {"lm_head": "lm_head"}
    LM_TIES = {"lm_head.weight": "word_embeddings.weight"}

    def build_lm_head(self, wanted):
        """Set `tied` -> the language-model head, or None if it is tied or not wanted."""
        self.tied = self.config["tie_word_embeddings"]
        vocabulary = self.config["vocab_size"]
        return nn.Linear(self.width, vocabulary, bias=False) if wanted and not self.tied else None

    def finish(self, x):
        return self.final_norm(x)

    def prepare_prompt(self, ids, mask):
        return ids, mask, None
