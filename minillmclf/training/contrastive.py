"""Contrastive fine-tuning: texts of one class come together, texts of different classes part.

The supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, L_out) trains the body on
pairs of rows. B rows make B * (B - 1) pairs, so few rows give much to learn from. SetFit (Tunstall
et al. 2022, arXiv:2209.11055) has the same idea, but its loss looks at each pair alone. The head is
a linear probe on the new features (probe.py). The paper's projection head is left out: the loss
reads what the classifier reads. A batch needs several rows of each class: `grouped_batches`.
"""
import random

import torch
import torch.nn.functional as F

from .probe import features_of

TEMPERATURE = 0.1
GROUP = 4              # rows of a class in a batch, at least
LEAST_STEPS = 25       # of an epoch; after each epoch a probe is fitted and evaluated


def contrastive_loss(features, targets, temperature=TEMPERATURE):
    """features (B, D), targets (B,) -> scalar, summed over the rows that have a positive.

    A row's positives are the other rows of its class. Its loss is the mean over them of
    -log softmax(cosine similarity / temperature), the softmax over all other rows.
    """
    unit = F.normalize(features.float(), dim=1)
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)              # (B, B)
    similarity = (unit @ unit.T / temperature).masked_fill(own, float("-inf"))    # (B, B)
    log_p = similarity.log_softmax(1).masked_fill(own, 0.0)                       # (B, B)
    positive = (targets.unsqueeze(0) == targets.unsqueeze(1)) & ~own              # (B, B)
    counts = positive.sum(1)                                                      # (B,)
    losses = -(log_p * positive).sum(1) / counts.clamp(min=1)                     # (B,)
    return losses.sum()                                      # a row without a positive adds 0


class Contrastive:
    """objective(model, batch) / objective.divisor(targets) is the mean loss of a batch."""

    def divisor(self, targets):
        """targets (B,) -> how many rows have a positive, at least 1."""
        same = targets.unsqueeze(0) == targets.unsqueeze(1)
        return (same.sum(1) > 1).sum().clamp(min=1).float()

    def __call__(self, model, batch):
        """The summed loss of a batch -> scalar."""
        return contrastive_loss(features_of(model, batch), batch.labels)


def grouped_batches(targets, size, seed):
    """The batches of an epoch, lists of row numbers, each with several rows of each of its classes.

    A batch samples two classes or more, then equally many rows of each (all rows of a class that
    has fewer): GROUP, or size // 2 if that is less, or size // classes if that is more. So a batch
    has at most `size` rows, and an epoch N / size batches, at least LEAST_STEPS. Each batch is
    sampled anew: an epoch may repeat a row or miss one.
    targets: the class numbers of N rows; size: 4 or more.
    """
    rng, rows = random.Random(f"grouped:{seed}"), {}                     # rows: by class
    for row, target in enumerate(targets):
        rows.setdefault(target, []).append(row)
    group = max(2, min(GROUP, size // 2), size // len(rows))
    count = max(1, min(len(rows), size // group))                        # of classes in a batch
    steps = max(LEAST_STEPS, -(-len(targets) // size))
    return [[row for target in rng.sample(sorted(rows), count)
             for row in rng.sample(rows[target], min(group, len(rows[target])))]
            for _ in range(steps)]
