"""What python -m tests.bench times: which models, texts and ways to train; nothing of how they are
run.

A case is one line of a table: a model with random weights, texts as long as those of a real set,
and what is done with them. Here: the cases, config.json of each family, texts of random token ids.
Not here: who does the work (sides.py), and what is measured without a reference beside it in the
same process (alone.py).
"""
import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path

from minillmclf.models import initialise_weights, model_class, save_backbone
from minillmclf.text.batch import make_batches
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.training.plan import Split

# ids below FIRST are specials and label words; texts are drawn from those above
FIRST, VOCABULARY = 1000, 16000
PAD = 0
TEMPLATE = "{text} it was: {label}"
WORDS = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=3)]     # a token each
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "was", ":", ".", *WORDS]
# tokens of a text: mean, deviation, least, most
SPREAD = {"sst2": (22, 10, 4, 50), "documents": (241, 130, 32, 512)}
# tokens of the label texts, as in Banking77
LABEL_LENGTHS = {2: [1], 6: [1, 1, 1, 2, 2, 2], 77: [1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6]}


@dataclass(frozen=True)
class Case:
    """One line of a table. model: of `config`; lengths: a key of SPREAD, or a number of tokens that
    all rows have; batch, batches: rows of a batch, and how many of these a call works on; work:
    train, backward or infer; labels: for readouts that ask for words; aims: how many times faster
    than D and T the specification hopes to be; precision: fp32 or bf16."""
    row: str
    name: str
    build: str = "classes"
    model: str = "bert"
    layers: int = 6
    width: int = 384
    lengths: str | int = "sst2"
    batch: int = 32
    batches: int = 2
    method: str = "full"
    targets: str | None = None
    work: str = "train"
    labels: int = 2
    aims: tuple = (None, None)
    precision: str = "fp32"


def three(row, aims, **same):
    """Full training, LoRA and inference of one kind."""
    kinds = (("full", "full", "train"), ("LoRA", "lora", "train"), ("inference", "full", "infer"))
    return [Case(row, name, method=method, work=work, aims=aim, **same)
            for (name, method, work), aim in zip(kinds, aims)]


CASES = [
    *three("bert-sst2", ((2.5, 1.4), (2.5, 1.4), (2.8, 1.45)), model="bert"),
    *three("bert-documents", ((2.0, 1.4), (2.0, 1.4), (2.2, 1.4)), lengths="documents", batch=8),
    Case("equal-lengths", "full", lengths=64, batch=16, batches=1, aims=(1.0, None)),
    Case("equal-lengths", "inference", lengths=64, batch=16, batches=1, work="infer",
         aims=(1.0, None)),
    *three("label-token", ((5.0, 1.4), (5.0, 1.4), (None, None)), build="label_token",
           model="llama", batch=16),
    *(Case("label-scoring", f"{count} labels", build="label_scoring", model="gpt2", batch=rows,
           batches=1, work="infer", labels=count, aims=(None, 3.0))
      for count, rows in ((2, 16), (6, 16), (77, 4))),
    *(Case("deberta", f"T = {length}", model="deberta-v2", lengths=length, batch=1024 // length,
           batches=1, work="backward", aims=(aim, None))
      for length, aim in ((32, 2.6), (128, 1.5), (256, 1.2), (512, 1.1))),
    Case("lora-all-linear", "train", method="lora", targets="all-linear", batch=16,
         aims=(1.3, None)),
    Case("qlora", "train", method="qlora", batch=16, aims=(1.2, None)),
    *(Case("families", f"{model}, {name}", model=model, batch=16, work=work, aims=(aim, 1.4))
      for model in ("roberta", "gpt2", "mistral", "gemma", "t5")
      for name, work, aim in (("full", "train", 2.5), ("inference", "infer", 2.8))),
    *three("bf16", ((None, None),) * 3, build="bf16", precision="bf16"),
    *(Case("tokenizers", name, build="tokenizers", batch=200, work="infer")
      for name in ("WordPiece", "byte-level BPE", "Unigram")),
]


def small(case):
    """The same case for --quick: two layers, half the rows."""
    rows = case.batch if isinstance(case.lengths, int) else max(2, case.batch // 2)
    return replace(case, layers=2, batch=rows)


# ---------------------------------------------------------------------------------- models and data

def config(model, layers, width):
    """A config.json, without dropout."""
    heads = max(1, width // 64)
    usual = dict(model_type=model, vocab_size=VOCABULARY, hidden_size=width,
                 num_hidden_layers=layers, num_attention_heads=heads, pad_token_id=PAD)
    encoder = usual | dict(intermediate_size=4 * width, hidden_act="gelu",
                           max_position_embeddings=512, hidden_dropout_prob=0.0,
                           attention_probs_dropout_prob=0.0, type_vocab_size=2,
                           layer_norm_eps=1e-12)
    decoder = usual | dict(intermediate_size=8 * width // 3 // 64 * 64 or 64,
                           max_position_embeddings=4096, rms_norm_eps=1e-6,
                           num_key_value_heads=heads, head_dim=width // heads,
                           attention_dropout=0.0, tie_word_embeddings=False)
    grouped = {"num_key_value_heads": heads // 2 if heads % 2 == 0 else 1}
    return {"bert": encoder,
            "roberta": encoder | dict(max_position_embeddings=514, type_vocab_size=1,
                                      pad_token_id=1),
            "deberta-v2": encoder | dict(
                type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"],
                share_att_key=True, norm_rel_ebd="layer_norm", position_buckets=256,
                max_relative_positions=-1, layer_norm_eps=1e-7, position_biased_input=False,
                pooler_hidden_size=width, pooler_dropout=0.0),
            "gpt2": dict(model_type=model, vocab_size=VOCABULARY, n_embd=width, n_layer=layers,
                         n_head=heads, n_positions=1024, embd_pdrop=0.0, attn_pdrop=0.0,
                         resid_pdrop=0.0, tie_word_embeddings=True, pad_token_id=PAD),
            "llama": decoder | dict(hidden_act="silu"),
            "mistral": decoder | dict(hidden_act="silu", sliding_window=4096) | grouped,
            "gemma": decoder | dict(hidden_activation="gelu_pytorch_tanh",
                                    tie_word_embeddings=True) | grouped,
            "t5": dict(model_type=model, vocab_size=VOCABULARY, d_model=width, d_kv=width // heads,
                       d_ff=decoder["intermediate_size"], num_layers=layers, num_heads=heads,
                       dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                       is_encoder_decoder=True, decoder_start_token_id=PAD, pad_token_id=PAD,
                       eos_token_id=2)}[model]


def body(place, model, layers, width, lm_head=False):
    """The folder of a model with random weights and its tokenizer; written once."""
    folder = Path(place) / f"{model}-{layers}-{width}{'-lm' * lm_head}"
    if not (folder / "tokenizer.json").exists():
        settings = config(model, layers, width)
        made = initialise_weights(model_class(settings).from_config(settings, lm_head=lm_head),
                                  seed=0, std=0.03)
        made.source_config = settings
        save_backbone(made, folder)
        WordPiece.from_vocab(PIECES).save(folder)
    return folder


@dataclass
class Data:
    """rows: token ids and class numbers; bucketed, mixed: batches of like and of random length."""
    rows: Split
    bucketed: list
    mixed: list
    size: int

    @property
    def lengths(self):
        return [len(ids) for ids, _ in self.rows.encoded]

    def tokens(self, batches):
        """Real tokens, no padding."""
        return sum(len(self.rows.encoded[row][0]) for rows in batches for row in rows)


def draw(case, seed):
    """The rows that a call works on, out of the fifty batches of an epoch. Of the bucketed epoch
    `case.batches` are taken, evenly from the shortest to the longest, so that a few are like all;
    of the epoch at random as many as come, so that they are padded as its batches are. (Random
    batches of the bucketed rows would hold less padding: the longest would not be among them.) A
    case of a single batch has the same rows in both."""
    rng = random.Random(f"{case.row}:{case.name}:{seed}")
    count = case.batch * (50 if case.batches > 1 else 1)
    if isinstance(case.lengths, int):
        lengths = [case.lengths] * count
    else:
        mean, deviation, least, most = SPREAD[case.lengths]
        lengths = [min(most, max(least, round(rng.gauss(mean, deviation)))) for _ in range(count)]
    batches = sorted(make_batches(lengths, case.batch, seed=str(seed)),
                     key=lambda rows: sum(lengths[row] for row in rows))
    chosen = [batches[(2 * number + 1) * len(batches) // (2 * case.batches)]
              for number in range(case.batches)]
    rng.shuffle(chosen)
    chosen = [row for rows in chosen for row in rows]
    places = cut(list(range(len(chosen))), case.batch)
    if case.batches == 1:
        mixed = [rng.sample(places[0], case.batch)]
    else:
        chosen += rng.sample(range(count), len(chosen))
        mixed = cut(list(range(len(chosen) // 2, len(chosen))), case.batch)
    encoded = [rng.choices(range(FIRST, VOCABULARY), k=lengths[row]) for row in chosen]
    if case.model == "t5":
        encoded = [ids[:-1] + [2] for ids in encoded]             # transformers' head reads at </s>
    rows = Split([(ids, [0] * len(ids)) for ids in encoded],
                 [rng.randrange(case.labels) for _ in encoded])
    return Data(rows, places, mixed, case.batch)


def cut(rows, size):
    return [rows[start:start + size] for start in range(0, len(rows), size)]


def label_texts(count, rng):
    """Label texts of which none begins another; many of several words share their first."""
    lengths, found = LABEL_LENGTHS.get(count, [1, 2, 3]), []
    while len(found) < count:
        more = lengths[len(found) % len(lengths)] - 1
        new = [rng.choice(WORDS[:50] if more else WORDS[50:]), *rng.choices(WORDS, k=more)]
        if not any(new[:len(old)] == old or old[:len(new)] == new for old in found):
            found.append(new)
    return [" ".join(words) for words in found]
