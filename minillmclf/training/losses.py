"""What is minimised: cross-entropy over classes, or a yes or no for each class; masked words (Devlin et al. 2018), the next
word (Radford et al. 2018), missing spans (Raffel et al. 2020); and a teacher's hidden states (distillation: Hinton et al. 2015;
Sanh et al. 2019).
"""
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import InputError


def class_loss(scores, labels, weights=None, smoothing=0.0):
    """Cross-entropy of (B, C) scores against (B,) labels, summed over the rows; weights: (C,) or None. -> scalar

    A sum, so that a batch cut into pieces can be divided by `class_count` of the *whole* batch: the mean of the pieces'
    means is another number.
    """
    return F.cross_entropy(scores.float(), labels, weight=weights, label_smoothing=smoothing, reduction="sum")


def focal_loss(scores, labels, weights=None, gamma=2.0):
    """Cross-entropy times (1 - p)^gamma, p the probability of the true class, summed over the rows -> scalar.

    Rows that are right already count little, so rare and hard ones are heard (Lin et al. 2017, "Focal Loss for Dense Object
    Detection"). gamma 0 is cross-entropy. scores: (B, C), labels: (B,), weights: (C,) or None.
    """
    logp = scores.float().log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)                   # (B,)
    losses = -(1 - logp.exp()).clamp(min=1e-12) ** gamma * logp        # the gradient of 0 ** gamma, gamma < 1, is infinite
    return (losses if weights is None else losses * weights[labels]).sum()


def class_count(labels, weights=None):
    """What a summed class loss is divided by to be a mean: the rows, or the weights of their classes. -> scalar"""
    return weights[labels].sum() if weights is not None else torch.tensor(float(len(labels)))


@dataclass
class Classes:
    """What the loop minimises for scores of classes. weights: (C,) or None; smoothing: share spread over all classes;
    gamma: of the focal loss, 0 is plain cross-entropy."""
    weights: torch.Tensor | None = None
    smoothing: float = 0.0
    gamma: float = 0.0

    def count(self, labels):
        """What the summed loss of rows with these labels (B,) is divided by. -> scalar"""
        return class_count(labels, self.of(labels))

    def __call__(self, model, batch):
        """The loss of a batch, summed. -> scalar"""
        scores, weights = model(batch), self.of(batch.labels)
        if self.gamma:
            return focal_loss(scores, batch.labels, weights, self.gamma)
        return class_loss(scores, batch.labels, weights, self.smoothing)

    def of(self, labels):
        return None if self.weights is None else self.weights.to(labels.device)


@dataclass
class LabelSets:
    """What the loop minimises where a row may have several labels: for each class its own yes or no, binary cross-entropy
    of (B, C) scores against (B, C) labels of 0 and 1 (transformers' problem_type multi_label_classification).

    A row counts as often as there are classes, so the mean is over rows x classes. weights: (C,), by which the loss of a
    class is multiplied where the row has it, or None.
    """
    weights: torch.Tensor | None = None

    def count(self, labels):
        """What the summed loss of rows with these labels (B, C) is divided by. -> scalar"""
        return torch.tensor(float(labels.numel()))

    def __call__(self, model, batch):
        """The loss of a batch, summed over its rows and the classes. -> scalar"""
        scores = model(batch).float()
        weights = None if self.weights is None else self.weights.to(scores.device)
        return F.binary_cross_entropy_with_logits(scores, batch.labels, pos_weight=weights, reduction="sum")


def positive_weights(truth, labels):
    """Rows that have not a class / rows that have it, so that both weigh alike in its loss: truth (N, C) of 0 and 1 -> (C,).

    Raises InputError for a class that all rows have, or none: one of the two would weigh nothing, or without end.
    """
    truth = torch.as_tensor(truth)
    rows, positives = len(truth), truth.sum(0)                               # (C,)
    for name, count in zip(labels, positives.tolist()):
        if count in (0, rows):
            raise InputError(f"--class-weights balanced: {int(count)} of {rows} train rows have the class {name!r}: add others, or "
                             "use --class-weights none")
    return (rows - positives) / positives


@dataclass
class Completion:
    """Instruction tuning: the next word, of answers alone (Wei et al. 2022, "FLAN"). lengths: tokens of each class's
    answer, its end among them, so that the loss is a mean over tokens. The whole vocabulary competes; with `Classes`, the
    label texts alone do. Both need a model that reads label texts."""
    lengths: list[int]

    def count(self, labels):
        return torch.tensor(self.lengths, dtype=torch.float, device=labels.device)[labels].sum()

    def __call__(self, model, batch):
        def loss(backbone, ids, mask, types):
            return model.head.completion_loss(backbone, ids, mask, batch.labels)
        return model(batch, loss)


def corrupt(ids, mask, special_ids, mask_id, vocab_size, share=0.15):
    """Choose `share` of the real, not special tokens; of those 80 % become [MASK], 10 % a random token, 10 % stay.

    ids, mask: (B, T) -> (corrupted ids (B, T), chosen (B, T) bool). At least one token is chosen.
    """
    allowed = mask.bool() & ~torch.isin(ids, torch.tensor(sorted(special_ids)))
    chosen = (torch.rand(ids.shape) < share) & allowed
    if not chosen.any():
        chosen.view(-1)[allowed.flatten().nonzero()[:1, 0]] = True
    dice = torch.rand(ids.shape)
    corrupted = torch.where(chosen & (dice < 0.8), mask_id, ids)
    return torch.where(chosen & (dice >= 0.9), torch.randint(vocab_size, ids.shape), corrupted), chosen


def masked_lm_loss(model, ids, mask, types, chosen, targets):
    """Cross-entropy of the original tokens at the chosen places only; no other logits are computed. -> scalar."""
    hidden = model(ids, mask, types)[chosen]                                 # (M, D)
    return F.cross_entropy(model.logits(hidden).float(), targets[chosen])    # (M, V) against (M,)


def causal_lm_loss(model, ids, mask, counted=None):
    """Mean cross-entropy of each token given those before it in its row; a row's first token is given. -> scalar.

    ids, mask: (B, T). counted: (B, T), True at the tokens that are to be predicted; None: at all. It is said by place,
    never by the id: a padding id may stand in a text, and an end-of-text token is to be learned even where it also pads.
    """
    target = mask[:, 1:].bool() & mask[:, :-1].bool()                        # (B, T - 1)
    if counted is not None:
        target &= counted[:, 1:].bool()
    logits = model.logits(model(ids, mask)[:, :-1][target])                  # (M, V)
    return F.cross_entropy(logits.float(), ids[:, 1:][target])


def text_to_text_loss(model, ids, mask, target_ids, target_mask):
    """Mean cross-entropy of the tokens of target texts, each given the source text and the target before it. -> scalar.

    ids, mask: (B, S) source; target_ids, target_mask: (B, T), padded on either side.
    """
    hidden = model(ids, mask, model.shift_right(target_ids, target_mask), target_mask)
    real = target_mask.bool()
    return F.cross_entropy(model.logits(hidden[real]).float(), target_ids[real])


def corrupt_spans(ids, sentinels, eos_id, seed, share=0.15, mean_length=3.0):
    """Cut random spans out of a text -> (source ids, target ids), as T5 was pretrained.

        a b c d e f g h  ->  a b <0> e f g <1> EOS   and   <0> c d <1> h EOS

    ids: a list, without special tokens, at least 2; sentinels: the ids that stand for spans, first the first; share: of
    the tokens that are cut out; mean_length: of a span. Kept and cut pieces take turns, a kept one first.
    """
    cut = min(max(round(len(ids) * share), 1), len(ids) - 1)
    spans = min(max(round(cut / mean_length), 1), cut, len(ids) - cut, len(sentinels))
    draw = random.Random(seed)
    source, target, place = [], [], 0
    for sentinel, kept, gone in zip(sentinels, pieces(len(ids) - cut, spans, draw), pieces(cut, spans, draw)):
        source += [*ids[place:place + kept], sentinel]
        target += [sentinel, *ids[place + kept:place + kept + gone]]
        place += kept + gone
    return source + [eos_id], target + [eos_id]


def pieces(total, count, draw):
    """`count` random whole numbers from 1 up that add up to `total`; every way to do so is as likely as any other."""
    ends = [0, *sorted(draw.sample(range(1, total), count - 1)), total]
    return [end - start for start, end in zip(ends, ends[1:])]


def word_means(hidden, words, count):
    """Mean hidden state of each word: hidden (N, D), words (N,) number of the word or -1 for specials -> (count, D)."""
    real = words >= 0
    sums = hidden.new_zeros(count, hidden.shape[-1]).index_add(0, words[real], hidden[real])
    return sums / torch.bincount(words[real], minlength=count).unsqueeze(1)


def cosine_distance(a, b):
    """1 - cos(a, b), averaged over all but the last dimension."""
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()
