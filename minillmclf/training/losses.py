"""What fine-tuning minimises: cross-entropy over the classes, plain, weighted, smoothed or focal.

A loss here is a sum over the rows of a batch; divided by its `divisor` it is the mean. A batch may
be cut into micro-batches: the sum of each is divided by the divisor of the full batch. To average
their means instead is wrong where micro-batches differ in size or in weight.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def class_loss(logits, targets, weights=None, smoothing=0.0):
    """Cross-entropy of logits (B, C) and targets (B,), summed over the rows -> scalar.

    weights: (C,), the weight of each class's rows, or None; smoothing: label smoothing, the share
    of a target's probability that is spread over all classes.
    """
    return F.cross_entropy(logits.float(), targets, weight=weights, label_smoothing=smoothing,
                           reduction="sum")


def focal_loss(logits, targets, weights=None, gamma=2.0):
    """Cross-entropy times (1 - p)^gamma, p the target's probability, summed over rows -> scalar.

    Rows with p near 1 count little, so rare and hard rows count more (Lin et al. 2017, "Focal Loss
    for Dense Object Detection"). With gamma 0 it is cross-entropy.
    """
    log_p = logits.float().log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)      # (B,)
    factor = (1 - log_p.exp()).clamp(min=1e-12)    # at 0 the gradient is infinite if gamma < 1
    losses = -factor ** gamma * log_p                                                     # (B,)
    return (losses if weights is None else losses * weights[targets]).sum()


@dataclass
class CrossEntropy:
    """The objective of training. objective(model, batch) / its divisor(targets) is the mean loss.

    weights: (C,) or None; smoothing: for class_loss; focal_gamma: 0, or gamma of focal_loss, which
    then replaces class_loss."""
    weights: torch.Tensor | None = None
    smoothing: float = 0.0
    focal_gamma: float = 0.0

    def divisor(self, targets):
        """Targets (B,) -> scalar, for a mean loss: B, or the sum of the weights of the targets."""
        weights = self.weights_on(targets.device)
        return torch.tensor(float(len(targets))) if weights is None else weights[targets].sum()

    def __call__(self, model, batch):
        """The summed loss of a batch -> scalar."""
        logits, weights = model(batch), self.weights_on(batch.labels.device)
        if self.focal_gamma:
            return focal_loss(logits, batch.labels, weights, self.focal_gamma)
        return class_loss(logits, batch.labels, weights, self.smoothing)

    def weights_on(self, device):
        return None if self.weights is None else self.weights.to(device)
