"""Distillation: a small student learns to give each word, and each whole text, the vector that a pretrained teacher
gives it (DistilBERT, Sanh et al. 2019; TinyBERT, Jiao et al. 2020).

`Distillation` is for a BERT, word by word; `TextVectors` gives any student the vectors of whole texts, while it goes on with
a task of its own. Teacher and student may have different vocabularies: hidden states are compared word by word. A student of the teacher's
width starts from the teacher's own embeddings and from some of its layers, with the strongest neurons of their MLPs.
"""
import torch
from torch import nn

from ..errors import InputError
from ..models import fresh_weights, load_backbone
from ..text.batch import collate
from ..text.tokenizers.tokenizer import load_tokenizer
from .losses import cosine_distance, word_means


def start_from_teacher(student, teacher, tokenizer, teacher_tokenizer):
    """Give a student of the teacher's width the teacher's embeddings and evenly spaced layers of it.

    A piece that the teacher does not know starts at the mean of the teacher's pieces for its characters. Of each MLP
    the neurons with the largest |in| x |out| are kept.
    """
    check_fits(student.config, teacher.config)
    with torch.no_grad():
        for piece, row in tokenizer.vocab.items():
            student.word_embeddings.weight[row] = teacher.word_embeddings.weight[
                pieces_of(piece, teacher_tokenizer)].mean(0)
        for part in ("position_embeddings", "type_embeddings", "embedding_norm"):
            getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
        for number, layer in enumerate(student.layers):
            source = teacher.layers[(number + 1) * len(teacher.layers) // len(student.layers) - 1]
            for part in ("q_proj", "k_proj", "v_proj", "o_proj", "attention_norm", "mlp_norm"):
                getattr(layer, part).load_state_dict(getattr(source, part).state_dict())
            strength = source.up_proj.weight.norm(dim=1) * source.down_proj.weight.norm(dim=0)      # (F,)
            keep = strength.topk(layer.up_proj.out_features).indices
            layer.up_proj.weight.copy_(source.up_proj.weight[keep])
            layer.up_proj.bias.copy_(source.up_proj.bias[keep])
            layer.down_proj.weight.copy_(source.down_proj.weight[:, keep])
            layer.down_proj.bias.copy_(source.down_proj.bias)


def check_fits(student, teacher):
    """A student is cut out of a teacher that has as many heads and positions, and no fewer layers and neurons."""
    for flag, key in (("--layers", "num_hidden_layers"), ("--mlp-width", "intermediate_size")):
        if student[key] > teacher[key]:
            raise InputError(f"{flag} {student[key]}: the teacher has only {teacher[key]}")
    for key, remedy in (("num_attention_heads", f"set --heads {teacher['num_attention_heads']}"),
                        ("max_position_embeddings", "choose another --teacher"),
                        ("type_vocab_size", "choose another --teacher")):
        if student[key] != teacher[key]:
            raise InputError(f"the teacher's {key} is {teacher[key]}, the student's is {student[key]}: {remedy}")


def pieces_of(piece, tokenizer):
    """Ids of the teacher's pieces that stand for a piece of the student's: itself, or its parts."""
    if piece in tokenizer.vocab:
        return [tokenizer.vocab[piece]]
    if piece.startswith("##"):
        return [tokenizer.vocab.get("##" + char, tokenizer.unk_id) for char in piece[2:]]
    return tokenizer.ids(piece)


def tokenise(tokenizer, texts):
    """-> Batch, number of the word that each real token belongs to (N,), -1 for specials, and the words themselves."""
    encoded, owners, words = [], [], []
    for text in texts:
        ids, here = [], []
        for word, pieces in tokenizer.words(text):
            ids += pieces
            here += [len(words)] * len(pieces)
            words.append(word)
        encoded.append(tokenizer.layout(ids))
        owners += [-1, *here, -1]
    return collate(encoded, range(len(texts)), tokenizer.pad_id), torch.tensor(owners), words


def lay_out(tokenizer, texts):
    """-> Batch of whole texts, as a classifier reads them."""
    return collate([tokenizer.layout(tokenizer.ids(text)) for text in texts], range(len(texts)), tokenizer.pad_id)


def text_means(hidden, mask):
    """hidden (B, T, D), mask (B, T) -> (B, D), the mean over real tokens."""
    return (hidden * mask.bool().unsqueeze(-1)).sum(1) / mask.bool().sum(1, keepdim=True)


class Distillation:
    """Loss: cosine distance to the teacher of every word, of the mean of a text, and of BERT's pooled first token."""

    def __init__(self, student, tokenizer, head, teacher, cut_out):
        """head: makes BERT's pooled token, and learns too; teacher: its folder; cut_out: start as a part of it."""
        self.teacher, self.teacher_tokenizer = load_backbone(teacher), load_tokenizer(teacher)
        if student.width != self.teacher.width:
            raise InputError(f"--width {student.width}: the teacher's hidden states have {self.teacher.width} numbers; "
                             f"set --width {self.teacher.width}")
        if cut_out:
            start_from_teacher(student, self.teacher, tokenizer, self.teacher_tokenizer)
        self.student, self.tokenizer, self.head = student, tokenizer, head

    def loss(self, texts):
        """-> scalar to minimise, its parts for the log, how many tokens the student has read."""
        batch, owners, words = tokenise(self.tokenizer, texts)
        seen, seen_owners, seen_words = tokenise(self.teacher_tokenizer, texts)
        if words != seen_words:
            raise InputError("teacher and student split the same text into different words: their casing or accent rules "
                             "differ")
        with torch.no_grad():
            target = self.teacher(seen.ids, seen.mask)                                  # (B, T', D)
            target_words = word_means(target[seen.mask.bool()], seen_owners, len(words))   # (W, D)
            target_text = text_means(target, seen.mask)                          # (B, D)
        hidden = self.student(batch.ids, batch.mask)                                    # (B, T, D)
        parts = {"words": cosine_distance(word_means(hidden[batch.mask.bool()], owners, len(words)), target_words),
                 "text": cosine_distance(text_means(hidden, batch.mask), target_text),
                 "pooled": cosine_distance(self.head.features(hidden, batch.mask), target_text)}
        return sum(parts.values()), {name: float(value.detach()) for name, value in parts.items()}, int(batch.mask.sum())


class TextVectors:
    """Loss: that of a language model's own task on pairs, and of the same number of texts the cosine distance between what
    stands at a text's last token, where a classification head will read, and the mean of the teacher's hidden states.

    A matrix between both widths learns too and is thrown away (Reimers and Gurevych 2020, arXiv:2004.09813, without it).
    """

    def __init__(self, task, teacher, seed):
        """task: a CausalLM or SpanCorruption of tasks.py; teacher: folder of a BERT."""
        self.task, self.student, self.tokenizer = task, task.student, task.tokenizer
        self.teacher, self.teacher_tokenizer = load_backbone(teacher), load_tokenizer(teacher)
        self.head = fresh_weights(nn.Linear(self.student.width, self.teacher.width, bias=False), seed)

    def loss(self, batch):
        """batch: list of (text, pair), or of pairs alone, where nothing but the task is measured."""
        if isinstance(batch[0][0], list):
            return self.task.loss(batch)
        texts, pairs = zip(*batch)
        loss, parts, read = self.task.loss(list(pairs))
        seen, own = (lay_out(tokenizer, texts) for tokenizer in (self.teacher_tokenizer, self.tokenizer))
        with torch.no_grad():
            target = text_means(self.teacher(seen.ids, seen.mask), seen.mask)                # (B, D')
        hidden = self.student.states(own.ids, own.mask)                                       # (B, T, D)
        last = hidden[torch.arange(len(hidden)), own.mask.sum(1) - 1]                         # (B, D), padding is on the right
        distance = cosine_distance(self.head(last), target)
        return loss + distance, parts | {"text": float(distance.detach())}, read + int(own.mask.sum())
