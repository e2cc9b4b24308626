"""What fine-tuning minimises: cross-entropy over the classes, plain, weighted, smoothed or focal.

A loss here is a sum over the rows of a batch; `count` says what to divide it by to get the mean. So
a batch can be cut into micro-batches: divide each sum by the count of the full batch. The mean of
the micro-batches' means is another number where they differ in size or in weight.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def class_loss(logits, targets, weights=None, smoothing=0.0):
    """Cross-entropy of logits (B, C) and targets (B,), summed over the rows -> scalar.

    weights: (C,), how much a row of each class counts, or None; smoothing: the share of a target
    that is spread over all classes.
    """
    return F.cross_entropy(logits.float(), targets, weight=weights, label_smoothing=smoothing,
                           reduction="sum")


def focal_loss(logits, targets, weights=None, gamma=2.0):
    """Cross-entropy times (1 - p)^gamma, p the target's probability, summed over rows -> scalar.

    Rows that are already right count little, which leaves more weight to rare and hard ones
    (Lin et al. 2017, "Focal Loss for Dense Object Detection"). gamma 0 is cross-entropy.
    """
    log_p = logits.float().log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)      # (B,)
    wrong = (1 - log_p.exp()).clamp(min=1e-12)     # 0 ** gamma, gamma < 1, has no finite gradient
    losses = -wrong ** gamma * log_p
    return (losses if weights is None else losses * weights[targets]).sum()


def class_count(targets, weights=None):
    """What a summed loss is divided by: the number of rows, or the weights of their classes."""
    return torch.tensor(float(len(targets))) if weights is None else weights[targets].sum()


@dataclass
class CrossEntropy:
    """The objective of training: the loss of a batch, and what it counts.

    weights: (C,) or None; smoothing: of class_loss; focal_gamma: of focal_loss, 0 for class_loss.
    """
    weights: torch.Tensor | None = None
    smoothing: float = 0.0
    focal_gamma: float = 0.0

    def count(self, targets):
        """What the summed loss of rows with these targets (B,) is divided by -> scalar."""
        return class_count(targets, self.weights_on(targets.device))

    def __call__(self, model, batch):
        """The summed loss of a batch -> scalar."""
        logits, weights = model(batch), self.weights_on(batch.labels.device)
        if self.focal_gamma:
            return focal_loss(logits, batch.labels, weights, self.focal_gamma)
        return class_loss(logits, batch.labels, weights, self.smoothing)

    def weights_on(self, device):
        return None if self.weights is None else self.weights.to(device)
