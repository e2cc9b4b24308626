"""The whole idea in one file: a pretrained BERT learns to sort texts into classes."""
#
#     python lessons/in_one_file.py
#
# It trains for about a minute on messages that customers wrote. Then it prints how often it is
# right on messages that it has never seen. Read from top to bottom. The functions stand in the
# order in which a text becomes a class:
#
#     text -> words -> pieces -> ids -> padded batch -> hidden states -> logits -> loss -> a step
#
# The package minillmclf does the same, and more. Each part below names the module that does it
# properly, and says what that module adds. A test compares the two: ids, logits and gradients are
# the same.
#
# Shapes: B texts in a batch, T tokens in a text, D numbers in a hidden state, H attention heads,
# d = D / H numbers in a head, C classes, V pieces in the vocabulary.

import csv
import json
import unicodedata                   # knows which characters are accents, which are punctuation
from pathlib import Path             # finds the files from wherever you start Python

import torch
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints/mini-bert"


# --- 1. A text becomes ids -----------------------------------------------------------------------
# WordPiece cuts a text into words, and each word into pieces that stand in a fixed vocabulary.
#
# properly: minillmclf/text/tokenizers/wordpiece.py, which also keeps capitals for the models that
#           want them; minillmclf/text/tokenizers/tokenizer.py, which also encodes pairs of texts,
#           and decodes ids.

# padding, an unknown word, the start of a text, its end, and a hidden word (for pretraining)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# where Chinese characters stand in Unicode
CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
           (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


# Returns {piece: id}. A piece that continues a word begins with ##.
def load_vocab(folder):
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


# Tidies a text: plain spaces, no invisible characters, each Chinese character apart.
def clean(text):
    cleaned = ""
    for char in text:
        category = unicodedata.category(char)            # two letters: "Lu" is a capital letter
        if char in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
            cleaned += " "                               # any kind of space
        elif any(first <= ord(char) <= last for first, last in CHINESE):
            cleaned += f" {char} "                       # Chinese has no spaces between words
        elif char != "\ufffd" and category not in ("Cc", "Cf", "Co"):
            cleaned += char              # neither broken, nor invisible (Cc, Cf), nor private (Co)
    return cleaned


# "Whose café?" -> ["whose", "cafe", "?"]
def split_words(text):
    spaced = ""
    for char in unicodedata.normalize("NFD", clean(text)):       # "é" becomes "e" and an accent
        category = unicodedata.category(char)
        if category.startswith("P") or char in "$+<=>^`|~":      # punctuation: a word of its own
            spaced += f" {char} "
        elif category != "Mn":                                   # accents are left out
            spaced += char.lower()
    return spaced.split()


# "toaster" -> ["to", "##aster"]: takes the longest piece that fits, again and again.
def split_pieces(word, vocab):
    if len(word) > 100:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start > 0 else ""
        end = len(word)
        while end > start and prefix + word[start:end] not in vocab:
            end -= 1                             # not a piece: try without the last letter
        if end == start:
            return ["[UNK]"]                     # nothing fits here: the whole word is unknown
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


# Returns the ids of a text: [CLS], its pieces, [SEP]. BERT reads 512 tokens at most.
def encode(text, vocab, max_tokens=512):
    for token in SPECIAL:                        # a special token in the text stays whole
        text = text.replace(token, f" {token} ")
    pieces = []
    for part in text.split(" "):
        words = [part] if part in SPECIAL else split_words(part)
        for word in words:
            pieces += split_pieces(word, vocab)
    pieces = ["[CLS]"] + pieces[:max_tokens - 2] + ["[SEP]"]
    return [vocab[piece] for piece in pieces]


# --- 2. Texts become a batch ---------------------------------------------------------------------
# The rows of a tensor are equally long, so short texts are padded. The mask tells tokens (True)
# from padding (False).
#
# properly: minillmclf/text/batch.py, which also puts texts of like length together, to pad less.

# Lists of ids -> ids (B, T), mask (B, T)
def pad(rows):
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])        # 0 is [PAD]
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    return ids, mask


# --- 3. A batch becomes hidden states ------------------------------------------------------------
# BERT gives each token a vector, its hidden state. Each layer adds to it what it finds in the other
# tokens of the text.
#
# properly: minillmclf/models/bert.py, which also has RoBERTa, and guesses masked words;
#           minillmclf/models/layers.py, where padding costs little: only attention sees it.

# Attention moves information between the tokens of a text. Then an MLP works on each token alone.
class BertLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, D_mlp = config["hidden_size"], config["intermediate_size"]
        self.num_heads = config["num_attention_heads"]
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.o_proj = nn.Linear(D, D)
        self.up_proj, self.down_proj = nn.Linear(D, D_mlp), nn.Linear(D_mlp, D)
        self.attention_norm = nn.LayerNorm(D, config["layer_norm_eps"])
        self.mlp_norm = nn.LayerNorm(D, config["layer_norm_eps"])
        # Dropout sets some numbers to 0 at random, in training only, so that none is relied on.
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.attention_dropout = nn.Dropout(config["attention_probs_dropout_prob"])

    def split_heads(self, x):
        x = x.unflatten(2, (self.num_heads, -1))                 # (B, T, D) -> (B, T, H, d)
        return x.transpose(1, 2)                                 # (B, H, T, d)

    def attention(self, x, mask):
        q = self.split_heads(self.q_proj(x))     # (B, H, T, d), what a token looks for
        k = self.split_heads(self.k_proj(x))     # (B, H, T, d), what a token offers
        v = self.split_heads(self.v_proj(x))     # (B, H, T, d), what a token hands over
        d = q.shape[3]
        scores = q @ k.transpose(2, 3) / d ** 0.5                # (B, H, T, T), how well they fit
        # The mask as (B, 1, 1, T) is the same for all heads and queries. Padding gets the weight 0.
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        weights = self.attention_dropout(scores.softmax(dim=3))  # (B, H, T, T), each row sums to 1
        mixed = (weights @ v).transpose(1, 2).flatten(2)         # (B, T, D), heads side by side
        return self.o_proj(mixed)

    def forward(self, x, mask):
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))        # (B, T, D)
        # gelu keeps large numbers as they are, and makes very negative ones nearly 0.
        mlp = self.down_proj(nn.functional.gelu(self.up_proj(x)))                 # (B, T, D)
        return self.mlp_norm(x + self.dropout(mlp))                               # (B, T, D)


# ids and mask, (B, T) each -> hidden states (B, T, D)
class Bert(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], D)              # (V, D)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], D)
        self.type_embeddings = nn.Embedding(config["type_vocab_size"], D)
        self.embedding_norm = nn.LayerNorm(D, config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, ids, mask):
        x = self.word_embeddings(ids)                            # (B, T, D), which piece it is
        x = x + self.position_embeddings.weight[:ids.shape[1]]   # (T, D), where it stands
        x = x + self.type_embeddings.weight[0]                   # (D), [1] is for a second text
        x = self.dropout(self.embedding_norm(x))
        for layer in self.layers:
            x = layer(x, mask)
        return x


# --- 4. Hidden states become logits --------------------------------------------------------------
# The head reads the hidden state of [CLS], the first token, which has looked at all the others.
# It gives one number for each class. The largest wins.
#
# properly: minillmclf/classify/head.py, which also reads the mean of all tokens, or the last one;
#           minillmclf/classify/classifier.py, which also saves a model, loads it and predicts.

# ids and mask, (B, T) each -> logits (B, C)
class Classifier(nn.Module):
    def __init__(self, config, num_classes):
        super().__init__()
        D = config["hidden_size"]
        self.bert = Bert(config)
        self.pooler = nn.Linear(D, D)
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.classifier = nn.Linear(D, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.02)        # this layer is not pretrained
        nn.init.zeros_(self.classifier.bias)

    def forward(self, ids, mask):
        hidden = self.bert(ids, mask)                            # (B, T, D)
        pooled = torch.tanh(self.pooler(hidden[:, 0]))           # (B, D)
        return self.classifier(self.dropout(pooled))             # (B, C)


# --- 5. The pretrained weights -------------------------------------------------------------------
# A checkpoint is a dictionary of named tensors. Its names are those of the transformers library.
#
# properly: minillmclf/models/weights.py, which also checks each name and each shape, tells what
#           is wrong, reads a model that lies in several files, and saves.

NAMES = {                            # name in the file: name here. {} is the number of a layer.
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


# A classifier with the pretrained weights of a folder. Only its last layer is new.
def load_classifier(folder, num_classes):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for file_name, our_name in NAMES.items():
        for layer in range(config["num_hidden_layers"]):
            for kind in (".weight", ".bias"):
                name = file_name.format(layer) + kind            # layer takes the place of {}
                if name in tensors:                              # embeddings have no bias
                    # The file has 16 bits for each number. float() makes it 32 bits.
                    weights[our_name.format(layer) + kind] = tensors[name].float()
    model = Classifier(config, num_classes)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["classifier.weight", "classifier.bias"] and not unexpected
    return model


# --- 6. The data ---------------------------------------------------------------------------------
# A CSV file with three columns: text, label, and split, which is train, dev or test.
#
# properly: minillmclf/text/data.py, which also reads other files and columns, splits data that
#           have no split, and names the row where something is wrong.

# Returns {"train": [(ids, target), ...], "dev": ..., "test": ...} and the names of the classes.
# A target is the number of the right class.
def load_tickets(path, vocab):
    with open(path, encoding="utf-8", newline="") as file:
        tickets = list(csv.DictReader(file))
    labels = sorted({ticket["label"] for ticket in tickets})
    splits = {"train": [], "dev": [], "test": []}
    for ticket in tickets:
        target = labels.index(ticket["label"])
        splits[ticket["split"]].append((encode(ticket["text"], vocab), target))
    return splits, labels


# [(ids, target), ...] -> ids (B, T), mask (B, T), targets (B)
def collate(rows):
    ids, mask = pad([ids for ids, target in rows])
    return ids, mask, torch.tensor([target for ids, target in rows])


# --- 7. How often is it right? -------------------------------------------------------------------
# All rows go through the model in one batch. They are few and short.
#
# properly: minillmclf/training/metrics.py, which also has F1 for each class, the log loss, and
#           whether a probability of 0.9 is right nine times in ten.

@torch.no_grad()
def accuracy(model, rows):
    model.eval()                                                 # switches dropout off
    ids, mask, targets = collate(rows)
    answers = model(ids, mask).argmax(dim=1)                     # (B), the largest logit's class
    return (answers == targets).float().mean().item()


# --- 8. Training ---------------------------------------------------------------------------------
# AdamW keeps two averages for each parameter: of its gradients, and of their squares. A step goes
# along the first, divided by the root of the second. So all parameters move at about one speed.
#
# properly: minillmclf/training/optim.py, which also lets lower layers learn more slowly, and has
#           other schedules and an 8-bit optimiser.

class AdamW:
    def __init__(self, parameters):
        self.parameters, self.steps = list(parameters), 0
        self.averages = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate, weight_decay=0.01):
        self.steps += 1
        for p, average, square in zip(self.parameters, self.averages, self.squares):
            # += changes the tensor itself: the average goes a tenth of the way to the new gradient.
            average += 0.1 * (p.grad - average)
            square += 0.001 * (p.grad ** 2 - square)
            # Both began at 0, so they are too small in the first steps. The divisors correct that.
            direction = average / (1 - 0.9 ** self.steps)
            size = (square / (1 - 0.999 ** self.steps)).sqrt()
            if p.dim() >= 2:                                     # biases and norms do not decay
                p -= learning_rate * weight_decay * p
            p -= learning_rate * direction / (size + 1e-8)
            p.grad = None                                        # the next batch gives a new one


# The share of the learning rate that a step uses. It rises to 1 over the first tenth of the steps
# and then falls to 0. Both are straight lines, and the lower one counts.
def rate_factor(step, total):
    warmup = round(0.1 * total)
    return min((step + 1) / (warmup + 1), (total - step) / (total - warmup))


# properly: minillmclf/training/loop.py, which also goes on where a run was stopped, keeps the best
#           epoch, accumulates gradients, uses several GPUs, and notices when training diverges.

def train(model, train_rows, dev_rows, epochs=6, batch_size=32, learning_rate=3e-4):
    optimizer = AdamW(model.parameters())
    for epoch in range(epochs):
        model.train()                                            # switches dropout on
        losses = []
        batches = torch.randperm(len(train_rows)).split(batch_size)               # row numbers
        for step, chosen in enumerate(batches, start=epoch * len(batches)):
            ids, mask, targets = collate([train_rows[i] for i in chosen])
            loss = nn.functional.cross_entropy(model(ids, mask), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)            # no huge steps
            optimizer.step(learning_rate * rate_factor(step, epochs * len(batches)))
            losses.append(loss.item())
        print(f"epoch {epoch + 1}   train loss {sum(losses) / len(losses):.3f}   "
              f"dev accuracy {accuracy(model, dev_rows):.3f}", flush=True)


# --- All of it -----------------------------------------------------------------------------------
# properly: minillmclf/train.py, which also takes your data and your models, keeps a record of the
#           run, and compares the result with simple baselines.

def main(seed=0):
    torch.manual_seed(seed)          # decides the new layer, the order of the rows, and dropout
    vocab = load_vocab(CHECKPOINT)
    splits, labels = load_tickets(ROOT / "minillmclf/datasets/tickets.csv", vocab)
    model = load_classifier(CHECKPOINT, len(labels))
    train(model, splits["train"], splits["dev"])
    print(f"test accuracy {accuracy(model, splits['test']):.3f}")

    text = "The toaster came without its plug!"
    ids, mask = pad([encode(text, vocab)])                       # a batch of one text
    probabilities = model(ids, mask).softmax(dim=1)[0]           # (C)
    print(text, "->", labels[probabilities.argmax()], f"{probabilities.max():.2f}")


if __name__ == "__main__":
    main()
