"""Distillation: a small student learns the vectors that a pretrained teacher gives to words and to
texts (DistilBERT, Sanh et al. 2019; TinyBERT, Jiao et al. 2020).

Mean vectors of whole words are compared, so student and teacher may have different vocabularies.
"""
import torch
from torch import nn

from ..classify.head import BertHead, pool
from ..errors import InputError
from ..models import initialise_weights, load_backbone
from ..text.tokenizers.tokenizer import load_tokenizer
from .losses import cosine_distance, word_means
from .tasks import OnDevice, encode, padded

SAME = {                         # keys of config.json that must agree -> the remedy if not
    "num_attention_heads": "set --heads {}", "max_position_embeddings": "choose another --teacher",
    "type_vocab_size": "choose another --teacher"}


@torch.no_grad()
def start_from_teacher(student, teacher, tokenizer, teacher_tokenizer):
    """Copy the teacher's embeddings and evenly spaced layers to a student of the same width. The
    embedding of a piece that the teacher lacks is the mean of the teacher's pieces for it. Of each
    MLP the neurons with the largest product of weight norms, in times out, are kept."""
    check_fits(student.config, teacher.config)
    known = teacher.word_embeddings.weight
    for piece, row in tokenizer.vocab.items():
        student.word_embeddings.weight[row] = known[pieces_of(piece, teacher_tokenizer)].mean(0)
    copy_parts(student, teacher, ("position_embeddings", "type_embeddings", "embedding_norm"))
    for number, layer in enumerate(student.layers):
        source = teacher.layers[(number + 1) * len(teacher.layers) // len(student.layers) - 1]
        copy_parts(layer, source,
                   ("q_proj", "k_proj", "v_proj", "o_proj", "attention_norm", "mlp_norm"))
        strength = source.up_proj.weight.norm(dim=1) * source.down_proj.weight.norm(dim=0)
        keep = strength.topk(layer.up_proj.out_features).indices
        layer.up_proj.weight.copy_(source.up_proj.weight[keep])
        layer.up_proj.bias.copy_(source.up_proj.bias[keep])
        layer.down_proj.weight.copy_(source.down_proj.weight[:, keep])
        layer.down_proj.bias.copy_(source.down_proj.bias)


def copy_parts(module, source, names):
    for name in names:
        getattr(module, name).load_state_dict(getattr(source, name).state_dict())


def check_fits(student, teacher):
    """Compare two configs: SAME must agree, and the teacher needs at least as many layers and MLP
    neurons. InputError if not."""
    for flag, key in (("--layers", "num_hidden_layers"), ("--mlp-width", "intermediate_size")):
        if student[key] > teacher[key]:
            raise InputError(f"{flag} {student[key]}: the teacher has only {teacher[key]}")
    for key, remedy in SAME.items():
        if student[key] != teacher[key]:
            raise InputError(f"the teacher's {key} is {teacher[key]}, the student's is "
                             f"{student[key]}: {remedy.format(teacher[key])}")


def pieces_of(piece, tokenizer):
    """Ids of the teacher's pieces for a piece of the student: the same piece, or its parts."""
    if piece in tokenizer.vocab:
        return [tokenizer.vocab[piece]]
    if piece.startswith("##"):
        return [tokenizer.vocab.get("##" + char, tokenizer.unk_id) for char in piece[2:]]
    return tokenizer.ids(piece)


def tokenise(tokenizer, texts, device="cpu"):
    """-> Batch, words' indices (N,) of the tokens that are not padding (-1: a special token), list
    of the words. The first two are on the device."""
    encoded, owners, words = [], [], []
    for text in texts:
        ids, own = [], []
        for word, pieces in tokenizer.words(text):
            ids += pieces
            own += [len(words)] * len(pieces)
            words.append(word)
        encoded.append(tokenizer.add_special_tokens(ids))
        owners += [-1, *own, -1]
    return padded(tokenizer, encoded).to(device), torch.tensor(owners).to(device), words


class Distillation(OnDevice):
    """Cosine distance to the teacher's vectors: of each word's mean, of each text's mean, and of
    BERT's pooled first token. A task as in tasks.py, whose batches are lists of texts."""

    def __init__(self, student, tokenizer, teacher, seed, cut_out):
        """teacher: its folder; cut_out: whether the student starts as a part of the teacher."""
        self.teacher, self.teacher_tokenizer = load_backbone(teacher), load_tokenizer(teacher)
        if student.width != self.teacher.width:
            raise InputError(f"--width {student.width}: the teacher's hidden states have "
                             f"{self.teacher.width} numbers; set --width {self.teacher.width}")
        if cut_out:
            start_from_teacher(student, self.teacher, tokenizer, self.teacher_tokenizer)
        self.student, self.tokenizer = student, tokenizer
        self.head = initialise_weights(BertHead(student, classes=1), seed)   # the pooled token

    def loss(self, texts):
        batch, owners, words = tokenise(self.tokenizer, texts, self.device)
        seen, seen_owners, seen_words = tokenise(self.teacher_tokenizer, texts, self.device)
        if words != seen_words:
            raise InputError("teacher and student split the same text into different words: their "
                             "casing or accent rules differ")
        with torch.no_grad():
            target = self.teacher(seen.ids, seen.mask)                       # (B, T', D)
            target_words = word_means(target[seen.mask.bool()], seen_owners, len(words))  # (W, D)
            target_text = pool(target, seen.mask, "mean")                    # (B, D)
        hidden = self.student(batch.ids, batch.mask)                         # (B, T, D)
        own_words = word_means(hidden[batch.mask.bool()], owners, len(words))             # (W, D)
        pooled = self.head.features(hidden, batch.mask)                      # (B, D)
        parts = {"words": cosine_distance(own_words, target_words),
                 "text": cosine_distance(pool(hidden, batch.mask, "mean"), target_text),
                 "pooled": cosine_distance(pooled, target_text)}
        logged = {name: float(value.detach()) for name, value in parts.items()}
        return sum(parts.values()), logged, int(batch.mask.sum())


class TextVectors(OnDevice):
    """Cosine distance between the student's hidden state at a text's last token, which a
    classification head will read, and the mean of the teacher's hidden states.

    A linear map between the two widths is learned and discarded (Reimers and Gurevych 2020,
    arXiv:2004.09813, have none).
    """

    def __init__(self, student, tokenizer, teacher, seed):
        """teacher: folder of a BERT."""
        self.student, self.tokenizer = student, tokenizer
        self.teacher, self.teacher_tokenizer = load_backbone(teacher), load_tokenizer(teacher)
        matrix = nn.Linear(student.width, self.teacher.width, bias=False)
        self.head = initialise_weights(matrix, seed)

    def distance(self, texts):
        """-> scalar, number of the student's tokens."""
        seen, own = (encode(tokenizer, texts).to(self.device)
                     for tokenizer in (self.teacher_tokenizer, self.tokenizer))
        with torch.no_grad():
            target = pool(self.teacher(seen.ids, seen.mask), seen.mask, "mean")  # (B, D')
        last = pool(self.student.states(own.ids, own.mask), own.mask, "last")    # (B, D)
        return cosine_distance(self.head(last), target), int(own.mask.sum())


class Mixture(OnDevice):
    """The losses of a task on pairs and on packed rows of text, and the distance of TextVectors, in
    one step: a model that learns to answer goes on learning to speak. A task as in tasks.py, whose
    batches are {"answers": pairs, "text": rows, "vectors": texts}, or one of the first two alone
    (held-out ones)."""

    def __init__(self, task, vectors, vector_weight):
        """task: a CausalLM or SpanCorruption; vectors: a TextVectors, or None."""
        self.task, self.vectors, self.vector_weight = task, vectors, vector_weight
        self.student, self.tokenizer, self.begin = task.student, task.tokenizer, task.begin
        self.head, self.teacher = vectors and vectors.head, vectors and vectors.teacher

    def loss(self, batch):
        if not isinstance(batch, dict):
            return self.task.loss(batch)
        total, logged, read = 0.0, {}, 0
        for name in ("answers", "text"):
            loss, parts, tokens = self.task.loss(batch[name])
            total, read = total + loss, read + tokens
            logged[name] = parts[self.task.name]
        if self.vectors:
            distance, tokens = self.vectors.distance(batch["vectors"])
            total, read = total + self.vector_weight * distance, read + tokens
            logged["vectors"] = float(distance.detach())
        return total, logged, read
