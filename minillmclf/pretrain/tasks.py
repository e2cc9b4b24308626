"""Pretraining tasks: masked words, the next word, missing spans. Each has a student, its tokenizer,
and `loss(batch)` -> (scalar loss, {name: its parts} for the log, number of tokens read).

Batches and random numbers are made on the CPU, so the seed gives the same ones for every device;
then they are moved to that of the student.

A batch is a list of texts (MaskedLM); rows of packed ids (B, T); or a list of (prompt ids, answer
ids), of which only the answers are learned (Chung et al. 2022, "Scaling Instruction-Finetuned
Language Models"). Not here: where batches come from (packing.py), a teacher (distil.py).
"""
import torch

from ..errors import InputError
from ..models import T5
from ..models.backbone import Decoder
from ..text.batch import collate
from ..training.completion_loss import text_to_text_loss
from .losses import causal_lm_loss, corrupt, corrupt_spans, masked_lm_loss
from .sentencepiece_trainer import SENTINELS


def padded(tokenizer, encoded):
    """A list of (ids, types) -> Batch."""
    return collate(encoded, range(len(encoded)), tokenizer.pad_id)


def encode(tokenizer, texts):
    """Texts, with the special tokens of a classifier's input -> Batch."""
    return padded(tokenizer, [tokenizer.add_special_tokens(tokenizer.ids(text)) for text in texts])


class OnDevice:
    """A student and what is computed beside it. head: a module that learns beside the student and
    is no part of it, or None; teacher: a backbone that does not learn, or None."""

    head = teacher = None

    @property
    def device(self):
        return next(self.student.parameters()).device

    def modules(self):
        """-> list of the modules that have to be on one device."""
        return [part for part in (self.student, self.head, self.teacher) if part is not None]


class Task(OnDevice):
    """begin: the id that each packed row begins with, or None; name: the loss's name in the log."""

    begin = None

    def __init__(self, student, tokenizer, fits, fault):
        """fits: can student and tokenizer learn this task? fault: the error message if not."""
        if not fits:
            raise InputError(fault)
        self.student, self.tokenizer = student, tokenizer

    def padded(self, lists):
        """B lists of ids -> ids (B, T) and mask (B, T), on the device."""
        batch = padded(self.tokenizer, [(ids, [0] * len(ids)) for ids in lists]).to(self.device)
        return batch.ids, batch.mask

    def result(self, loss, tokens):
        return loss, {self.name: float(loss.detach())}, int(tokens)


class MaskedLM(Task):
    """Cross-entropy of the masked tokens of texts."""

    name = "masked_lm"

    def __init__(self, student, tokenizer, where):
        """where: the folder that an error names."""
        fits = student.lm_head is not None and tokenizer.mask_id is not None
        super().__init__(student, tokenizer, fits, f"{where}: has no masked-LM head to train on: "
                         "name the checkpoint that it was trained from; or for an encoder with a "
                         "mask token --head-only makes a new head, and trains nothing else")

    def loss(self, texts):
        tokenizer = self.tokenizer
        batch = encode(tokenizer, texts)
        ids, chosen = corrupt(batch.ids, batch.mask, tokenizer.special_ids, tokenizer.mask_id,
                              len(tokenizer))
        moved = [x.to(self.device) for x in (ids, batch.mask, batch.types, chosen, batch.ids)]
        return self.result(masked_lm_loss(self.student, *moved), batch.mask.sum())


class CausalLM(Task):
    """Cross-entropy of the next token: of all in packed rows, or of pairs' answers and EOS."""

    name = "causal_lm"

    def __init__(self, student, tokenizer, where):
        fits = isinstance(student, Decoder) and student.has_logits and tokenizer.eos_id is not None
        super().__init__(student, tokenizer, fits, f"{where}: should be a decoder with a "
                         "language-model head, and have an end-of-text token")
        self.begin = tokenizer.bos_id

    def pairs(self, batch):
        """[(prompt ids, answer ids)] -> ids, mask, is it of an answer or its EOS? (B, T) each."""
        begin = [] if self.begin is None else [self.begin]
        ids, mask = self.padded([[*begin, *prompt, *answer, self.tokenizer.eos_id]
                                 for prompt, answer in batch])
        starts = torch.tensor([[len(begin) + len(prompt)] for prompt, _ in batch])   # (B, 1)
        return ids, mask, (torch.arange(ids.shape[1]) >= starts).to(self.device)

    def loss(self, batch):
        if isinstance(batch, list):
            ids, mask, counted = self.pairs(batch)
        else:
            ids = batch.to(self.device)
            mask, counted = torch.ones_like(ids), None
        return self.result(causal_lm_loss(self.student, ids, mask, counted), mask.sum())


class SpanCorruption(Task):
    """Cross-entropy of the spans cut out of packed rows, or of pairs' answers."""

    name = "spans"

    def __init__(self, student, tokenizer, where):
        self.sentinels = [tokenizer.vocab[name] for name in SENTINELS if name in tokenizer.vocab]
        fits = isinstance(student, T5) and student.has_logits and self.sentinels
        super().__init__(student, tokenizer, fits, f"{where}: should be a T5 with its "
                         "language-model head, and have sentinels <extra_id_0>, ...")

    def spans(self, rows):
        """ids (B, T) -> [(source ids, target ids)]. torch's random numbers choose the spans."""
        seeds = torch.randint(2**40, (len(rows),)).tolist()
        return [corrupt_spans(row, self.sentinels, self.tokenizer.eos_id, seed)
                for row, seed in zip(rows.tolist(), seeds)]

    def pairs(self, batch):
        """[(prompt ids, answer ids)] -> the same, each ended by EOS."""
        eos = [self.tokenizer.eos_id]
        return [(prompt + eos, answer + eos) for prompt, answer in batch]

    def loss(self, batch):
        pairs = self.pairs(batch) if isinstance(batch, list) else self.spans(batch)
        (ids, mask), (target, target_mask) = map(self.padded, zip(*pairs))   # (B, S), (B, T)
        loss = text_to_text_loss(self.student, ids, mask, target, target_mask)
        return self.result(loss, mask.sum() + target_mask.sum())


TASKS = {"mlm": MaskedLM, "clm": CausalLM, "spans": SpanCorruption}      # by --objective
