"""The loss of instruction tuning: next-token cross-entropy of the answer (Wei et al. 2022, "FLAN").

Its softmax is over the whole vocabulary, that of losses.CrossEntropy over the label texts. Both
need a model that reads label texts (classify/label_text/).
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class CompletionLoss:
    """An objective like losses.CrossEntropy, but its mean is over answer tokens.

    lengths: the number of tokens of each class's answer, its end token included.
    """
    lengths: list[int]

    def divisor(self, targets):
        """The number of answer tokens of rows with these targets (B,) -> scalar."""
        return torch.tensor(self.lengths, dtype=torch.float, device=targets.device)[targets].sum()

    def __call__(self, model, batch):
        """The summed loss of a batch -> scalar."""
        def loss(backbone, ids, mask, types):
            return model.head.completion_loss(backbone, ids, mask, batch.labels)
        return model(batch, loss)


def text_to_text_loss(model, ids, mask, target_ids, target_mask):
    """Mean cross-entropy of each target token, given the source and the target before it -> scalar.

    ids, mask: (B, S), the source; target_ids, target_mask: (B, T), padded on either side.
    """
    hidden = model(ids, mask, model.shift_right(target_ids, target_mask), target_mask)  # (B, T, D)
    real = target_mask.bool()
    return F.cross_entropy(model.logits(hidden[real]).float(), target_ids[real])
