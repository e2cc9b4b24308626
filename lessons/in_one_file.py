"""The whole idea in one file: a pretrained BERT learns to sort texts into classes.

    python lessons/in_one_file.py

It trains on customers' messages for one or two minutes, then prints how often it is right on
messages that it has never seen. Read from top to bottom. The functions stand in the order in which
a text becomes a class:

    text -> words -> pieces -> ids -> padded batch -> hidden states -> logits -> loss -> a step

The package minillmclf does the same, and more. Each part below names the module that does it
properly, and says what that module adds. A test holds both equal: same ids, logits and gradients.

Shapes: B texts in a batch, T tokens in a text, D numbers in a hidden state, H attention heads,
d = D / H numbers in a head, C classes, V pieces in the vocabulary.
"""
import csv
import json
import unicodedata                   # tells which characters are accents and which are punctuation
from pathlib import Path             # finds the files, wherever you start Python

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints" / "mini-bert"
TICKETS = ROOT / "minillmclf" / "datasets" / "tickets.csv"


# --- 1. A text becomes ids -----------------------------------------------------------------------
# WordPiece: cut a text into words, and each word into pieces that stand in a fixed vocabulary.
# properly: minillmclf/text/wordpiece.py, which also reads cased vocabularies and is several times
# as fast; minillmclf/text/tokenizer.py, which also encodes pairs of texts and decodes ids.

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SYMBOLS = "$+<=>^`|~"                # Unicode calls these symbols; BERT calls them punctuation
CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
           (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


def load_vocab(folder):
    """Return {piece: id}. A piece that continues a word begins with ##."""
    with open(folder / "tokenizer.json", encoding="utf-8") as file:
        return json.load(file)["model"]["vocab"]


def split_words(text):
    """Split at spaces and punctuation: "Whose café?" -> ["whose", "cafe", "?"]."""
    cleaned = ""
    for char in text:
        category = unicodedata.category(char)
        if char in "\t\n\r" or category.startswith("Z"):            # any kind of space
            cleaned += " "
        elif char == "\ufffd" or category in ("Cc", "Cf", "Co"):    # broken or invisible: drop it
            continue
        elif any(first <= ord(char) <= last for first, last in CHINESE):
            cleaned += f" {char} "               # Chinese has no spaces: each character is a word
        else:
            cleaned += char
    spaced = ""
    for char in unicodedata.normalize("NFD", cleaned):              # "é" becomes "e" and an accent
        category = unicodedata.category(char)
        if category == "Mn":                                        # the accent: drop it
            continue
        elif category.startswith("P") or char in SYMBOLS:           # punctuation is its own word
            spaced += f" {char} "
        else:
            spaced += char.lower()
    return spaced.split()


def split_pieces(word, vocab):
    """Take the longest piece that fits, again and again: "toaster" -> ["to", "##aster"]."""
    if len(word) > 100:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start > 0 else ""
        end = len(word)
        while end > start and prefix + word[start:end] not in vocab:
            end -= 1                             # too long: try without the last letter
        if end == start:                         # no piece fits: the whole word is unknown
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def encode(text, vocab, max_tokens=512):
    """Return a text's ids: [CLS], its pieces, [SEP]. BERT takes 512 tokens at most."""
    for token in SPECIAL:                        # a text may contain the word "[SEP]": keep it whole
        text = text.replace(token, f" {token} ")
    pieces = []
    for part in text.split(" "):
        if part in SPECIAL:
            pieces.append(part)
        else:
            for word in split_words(part):
                pieces += split_pieces(word, vocab)
    pieces = ["[CLS]"] + pieces[:max_tokens - 2] + ["[SEP]"]
    return [vocab[piece] for piece in pieces]


# --- 2. Texts become a batch ---------------------------------------------------------------------
# A tensor needs rows of one length, so short texts are padded. The mask remembers where.
# properly: minillmclf/text/batch.py, which also batches texts of like length, to pad less.

def pad(rows):
    """Lists of ids -> ids (B, T) and mask (B, T). The mask is True at tokens, False at padding."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)         # 0 is the id of [PAD]
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        mask[i, :len(row)] = True
    return ids, mask


# --- 3. A batch becomes hidden states ------------------------------------------------------------
# BERT: one vector for each token, which each layer improves by looking at the other tokens.
# properly: minillmclf/models/bert.py, which also has RoBERTa and guesses masked words;
# minillmclf/models/layers.py, where padding costs nothing because padded places are left out.

class BertLayer(nn.Module):
    """Attention mixes the tokens of a text. Then an MLP works on each token alone."""

    def __init__(self, config):
        super().__init__()
        D, eps = config["hidden_size"], config["layer_norm_eps"]
        self.num_heads = config["num_attention_heads"]
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.o_proj = nn.Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, eps)
        self.up_proj = nn.Linear(D, config["intermediate_size"])
        self.down_proj = nn.Linear(config["intermediate_size"], D)
        self.mlp_norm = nn.LayerNorm(D, eps)
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.attention_dropout = nn.Dropout(config["attention_probs_dropout_prob"])

    def split_heads(self, x):
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) # (B, T, D) -> (B, H, T, d)

    def attention(self, x, mask):
        q = self.split_heads(self.q_proj(x))                        # (B, H, T, d) what I look for
        k = self.split_heads(self.k_proj(x))                        # (B, H, T, d) what I offer
        v = self.split_heads(self.v_proj(x))                        # (B, H, T, d) what I pass on
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5         # (B, H, T, T)
        is_padding = ~mask[:, None, None, :]                        # (B, 1, 1, T)
        scores = scores.masked_fill(is_padding, float("-inf"))      # nobody looks at padding
        weights = self.attention_dropout(scores.softmax(dim=-1))    # (B, H, T, T)
        mixed = (weights @ v).transpose(1, 2).flatten(2)            # (B, T, D)
        return self.o_proj(mixed)

    def mlp(self, x):
        return self.down_proj(F.gelu(self.up_proj(x)))              # (B, T, D)

    def forward(self, x, mask):
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        x = self.mlp_norm(x + self.dropout(self.mlp(x)))
        return x                                                    # (B, T, D)


class Bert(nn.Module):
    """ids and mask, (B, T) each -> hidden states (B, T, D)."""

    def __init__(self, config):
        super().__init__()
        D = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], D)                    # (V, D)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], D)
        self.type_embeddings = nn.Embedding(config["type_vocab_size"], D)
        self.embedding_norm = nn.LayerNorm(D, config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, ids, mask):
        x = self.word_embeddings(ids)                               # (B, T, D) which piece it is
        x = x + self.position_embeddings.weight[:ids.shape[1]]      # (T, D) where it stands
        x = x + self.type_embeddings.weight[0]                      # (D,) it is in the first text
        x = self.dropout(self.embedding_norm(x))
        for layer in self.layers:
            x = layer(x, mask)
        return x                                                    # (B, T, D)


# --- 4. Hidden states become logits --------------------------------------------------------------
# The head: one number for each class, read from the hidden state of [CLS]. It has seen all tokens.
# properly: minillmclf/classify/head.py, which also pools by mean or maximum and has other heads;
# minillmclf/classify/classifier.py, which also saves a model and predicts.

class Classifier(nn.Module):
    """ids and mask, (B, T) each -> logits (B, C)."""

    def __init__(self, config, num_classes):
        super().__init__()
        D = config["hidden_size"]
        self.bert = Bert(config)
        self.pooler = nn.Linear(D, D)
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.classifier = nn.Linear(D, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.02)           # new: no file holds its weights
        nn.init.zeros_(self.classifier.bias)

    def forward(self, ids, mask):
        hidden = self.bert(ids, mask)                               # (B, T, D)
        pooled = torch.tanh(self.pooler(hidden[:, 0]))              # (B, D)
        return self.classifier(self.dropout(pooled))                # (B, C)


# --- 5. The pretrained weights -------------------------------------------------------------------
# A checkpoint is a dictionary of named tensors. The file has its own names for our modules.
# properly: minillmclf/models/weights.py, which also checks every name and shape and says what is
# wrong, reads models in several files, and saves.

NAMES = {                            # in the file: here; {} is the number of the layer
    "bert.embeddings.word_embeddings": "bert.word_embeddings",
    "bert.embeddings.position_embeddings": "bert.position_embeddings",
    "bert.embeddings.token_type_embeddings": "bert.type_embeddings",
    "bert.embeddings.LayerNorm": "bert.embedding_norm",
    "bert.encoder.layer.{}.attention.self.query": "bert.layers.{}.q_proj",
    "bert.encoder.layer.{}.attention.self.key": "bert.layers.{}.k_proj",
    "bert.encoder.layer.{}.attention.self.value": "bert.layers.{}.v_proj",
    "bert.encoder.layer.{}.attention.output.dense": "bert.layers.{}.o_proj",
    "bert.encoder.layer.{}.attention.output.LayerNorm": "bert.layers.{}.attention_norm",
    "bert.encoder.layer.{}.intermediate.dense": "bert.layers.{}.up_proj",
    "bert.encoder.layer.{}.output.dense": "bert.layers.{}.down_proj",
    "bert.encoder.layer.{}.output.LayerNorm": "bert.layers.{}.mlp_norm",
    "bert.pooler.dense": "pooler",
}


def load_classifier(folder, num_classes):
    """A classifier with the folder's pretrained weights. Only its last layer is newly initialised."""
    with open(folder / "config.json", encoding="utf-8") as file:
        config = json.load(file)
    model = Classifier(config, num_classes)
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for file_name, our_name in NAMES.items():
        for layer in range(config["num_hidden_layers"]):
            for kind in (".weight", ".bias"):
                source = file_name.format(layer) + kind
                if source in tensors:                               # embeddings have no bias
                    weights[our_name.format(layer) + kind] = tensors[source].float()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["classifier.weight", "classifier.bias"], f"not in the file: {missing}"
    assert not unexpected, f"no module has these names: {unexpected}"
    return model


# --- 6. The data ---------------------------------------------------------------------------------
# properly: minillmclf/text/data.py, which also reads other formats, makes a missing split, and
# reports texts that stand twice.

def load_tickets(path, vocab):
    """Return {"train": [(ids, target), ...], "dev": ..., "test": ...} and the names of the classes."""
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    labels = sorted({line["label"] for line in lines})
    splits = {"train": [], "dev": [], "test": []}
    for line in lines:
        row = (encode(line["text"], vocab), labels.index(line["label"]))
        splits[line["split"]].append(row)
    return splits, labels


def collate(rows):
    """Rows of the data -> ids (B, T), mask (B, T), targets (B,)."""
    ids, mask = pad([ids for ids, _ in rows])
    return ids, mask, torch.tensor([target for _, target in rows])


# --- 7. How often is it right? -------------------------------------------------------------------
# properly: minillmclf/training/metrics.py, which also has F1 of each class, the log loss, and
# whether the probabilities can be trusted.

@torch.no_grad()
def accuracy(model, rows):
    """The share of the rows whose largest logit is that of the right class."""
    model.eval()                                                    # no dropout
    right = 0
    for start in range(0, len(rows), 64):
        ids, mask, targets = collate(rows[start:start + 64])
        answers = model(ids, mask).argmax(dim=1)                    # (B,)
        right += (answers == targets).sum().item()
    return right / len(rows)


# --- 8. Training ---------------------------------------------------------------------------------
# AdamW: a step goes along the mean of the latest gradients, divided by their usual size.
# properly: minillmclf/training/optim.py, which also lets lower layers learn more slowly, and has
# other schedules.

class AdamW:
    """Keeps two running means for each parameter: of its gradient, and of the gradient's square."""

    def __init__(self, parameters, weight_decay=0.01):
        self.parameters, self.weight_decay, self.steps = list(parameters), weight_decay, 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate):
        self.steps += 1
        for p, mean, square in zip(self.parameters, self.means, self.squares):
            mean.copy_(0.9 * mean + 0.1 * p.grad)
            square.copy_(0.999 * square + 0.001 * p.grad ** 2)
            direction = mean / (1 - 0.9 ** self.steps)              # the means began at 0, so they
            size = (square / (1 - 0.999 ** self.steps)).sqrt()      # are too small in early steps
            if p.dim() >= 2:                                        # matrices shrink a little;
                p -= learning_rate * self.weight_decay * p          # biases and norms do not
            p -= learning_rate * direction / (size + 1e-8)
            p.grad = None


def rate_factor(step, total):
    """Rise to 1 over the first tenth of the steps, then fall to 0 in a straight line."""
    warmup = round(0.1 * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / (total - warmup)


# properly: minillmclf/training/loop.py, which also resumes a stopped run, keeps the best epoch,
# cuts a batch that is too big for the memory, uses several GPUs, and says where numbers overflow.

def train(model, train_rows, dev_rows, epochs=6, batch_size=32, peak_rate=3e-4):
    """Fine-tune all weights. Prints a line for each epoch."""
    optimizer = AdamW(model.parameters())
    starts = range(0, len(train_rows), batch_size)
    step, total = 0, epochs * len(starts)
    for epoch in range(epochs):
        model.train()                                               # with dropout
        order, losses = torch.randperm(len(train_rows)).tolist(), []
        for start in starts:
            batch = [train_rows[i] for i in order[start:start + batch_size]]
            ids, mask, targets = collate(batch)
            loss = F.cross_entropy(model(ids, mask), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(peak_rate * rate_factor(step, total))
            losses.append(loss.item())
            step += 1
        print(f"epoch {epoch + 1}   train loss {sum(losses) / len(losses):.3f}   "
              f"dev accuracy {accuracy(model, dev_rows):.3f}", flush=True)


# --- All together --------------------------------------------------------------------------------
# properly: python -m minillmclf.train, in minillmclf/train.py, which also keeps a record of the
# run, compares with simple baselines, and takes your own data and models.

def main(seed=0):
    """Train, test, and answer one new message. Returns the accuracy on the test split."""
    torch.manual_seed(seed)                      # of the new layer, the order of rows, and dropout
    vocab = load_vocab(CHECKPOINT)
    splits, labels = load_tickets(TICKETS, vocab)
    model = load_classifier(CHECKPOINT, len(labels))
    train(model, splits["train"], splits["dev"])
    result = accuracy(model, splits["test"])
    print(f"test accuracy {result:.3f}")

    text = "The toaster came without its plug!"
    ids, mask = pad([encode(text, vocab)])
    probabilities = model(ids, mask).softmax(dim=1)[0]              # (C,)
    best = probabilities.argmax().item()
    print(f"{text} -> {labels[best]} ({probabilities[best]:.2f})")
    return result


if __name__ == "__main__":
    main()
