"""Pretraining tasks, each a network, its tokenizer and a loss: masked words, the next word, missing spans.

What one is given: texts (MaskedLM); rows of packed ids (B, T); or a list of (prompt ids, answer ids), an instruction
mixture, of which only answers are to be learned (Chung et al. 2022, "Scaling Instruction-Finetuned Language Models").
Here: how such a batch becomes what a loss of losses.py takes. Not here: where batches come from (pretrain/packing.py).
`loss(batch)` -> (scalar to minimise, its parts for the log, how many tokens were read).
"""
import torch

from ..errors import InputError
from ..models import T5
from ..models.backbone import Decoder
from ..text.batch import collate
from .sentencepiece_trainer import SENTINELS
from ..training.completion_loss import text_to_text_loss
from .losses import causal_lm_loss, corrupt, corrupt_spans, masked_lm_loss


def padded(lists, pad_id):
    """Lists of ids -> ids (B, T) and mask (B, T)."""
    batch = collate([(ids, [0] * len(ids)) for ids in lists], range(len(lists)), pad_id)
    return batch.ids, batch.mask


class MaskedLM:
    """Loss: cross-entropy of the masked tokens of texts."""

    head = None

    def __init__(self, student, tokenizer, where):
        if student.lm_head is None or tokenizer.mask_id is None:
            raise InputError(f"{where}: has no masked-LM head to train on")
        self.student, self.tokenizer = student, tokenizer

    def loss(self, texts):
        encoded = [self.tokenizer.layout(self.tokenizer.ids(text)) for text in texts]
        batch = collate(encoded, range(len(texts)), self.tokenizer.pad_id)
        ids, chosen = corrupt(batch.ids, batch.mask, self.tokenizer.special_ids, self.tokenizer.mask_id, len(self.tokenizer))
        loss = masked_lm_loss(self.student, ids, batch.mask, batch.types, chosen, batch.ids)
        return loss, {"masked_lm": float(loss.detach())}, int(batch.mask.sum())


class CausalLM:
    """Loss: cross-entropy of every token of a row, given those before it; of pairs, of the answer and EOS alone."""

    head = None

    def __init__(self, student, tokenizer, where):
        if not isinstance(student, Decoder) or not student.has_logits or tokenizer.eos_id is None:
            raise InputError(f"{where}: should be a decoder with a language-model head, and have an end-of-text token")
        self.student, self.tokenizer, self.begin = student, tokenizer, tokenizer.bos_id

    def pairs(self, batch):
        """[(prompt ids, answer ids)] -> ids, mask, and where an answer or its EOS stands, (B, T) each."""
        prompts = [[*([] if self.begin is None else [self.begin]), *prompt] for prompt, _ in batch]
        answers = [[*answer, self.tokenizer.eos_id] for _, answer in batch]
        ids, mask = padded([a + b for a, b in zip(prompts, answers)], self.tokenizer.pad_id)
        places = torch.arange(ids.shape[1])                                                     # (T,)
        return ids, mask, places >= torch.tensor([[len(prompt)] for prompt in prompts])

    def loss(self, batch):
        ids, mask, counted = self.pairs(batch) if isinstance(batch, list) else (batch, torch.ones_like(batch), None)
        loss = causal_lm_loss(self.student, ids, mask, counted)
        return loss, {"causal_lm": float(loss.detach())}, int(mask.sum())


class SpanCorruption:
    """Loss: cross-entropy of the spans cut out of a row; of pairs, of the answer, written to the prompt as source."""

    head = None

    def __init__(self, student, tokenizer, where):
        self.sentinels = [tokenizer.vocab[name] for name in SENTINELS if name in tokenizer.vocab]
        if not isinstance(student, T5) or not student.has_logits or not self.sentinels:
            raise InputError(f"{where}: should be a T5 with its language-model head, and have sentinels <extra_id_0>, ...")
        self.student, self.tokenizer, self.begin = student, tokenizer, None

    def spans(self, rows):
        """(B, T) ids -> [(source ids, target ids)], other spans each time, as torch's random numbers fall."""
        seeds = torch.randint(2**40, (len(rows),)).tolist()
        return [corrupt_spans(row, self.sentinels, self.tokenizer.eos_id, seed) for row, seed in zip(rows.tolist(), seeds)]

    def pairs(self, batch):
        """[(prompt ids, answer ids)] -> the same, both ended by EOS."""
        return [tuple([*ids, self.tokenizer.eos_id] for ids in pair) for pair in batch]

    def loss(self, batch):
        texts = self.pairs(batch) if isinstance(batch, list) else self.spans(batch)
        (ids, mask), (target, target_mask) = (padded(side, self.tokenizer.pad_id) for side in zip(*texts))
        loss = text_to_text_loss(self.student, ids, mask, target, target_mask)
        return loss, {"spans": float(loss.detach())}, int(mask.sum() + target_mask.sum())
