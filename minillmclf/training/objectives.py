"""What is minimised: cross-entropy over classes, masked words (Devlin et al. 2018), and a teacher's hidden states
(distillation: Hinton et al. 2015; Sanh et al. 2019, DistilBERT).
"""
import torch
import torch.nn.functional as F


def class_loss(scores, labels, weights=None, smoothing=0.0):
    """Cross-entropy of (B, C) scores against (B,) labels, summed over the rows; weights: (C,) or None. -> scalar

    A sum, so that a batch cut into pieces can be divided by `class_count` of the *whole* batch: the mean of the pieces'
    means is another number.
    """
    return F.cross_entropy(scores.float(), labels, weight=weights, label_smoothing=smoothing, reduction="sum")


def class_count(labels, weights=None):
    """What a summed class loss is divided by to be a mean: the rows, or the weights of their classes. -> scalar"""
    return weights[labels].sum() if weights is not None else torch.tensor(float(len(labels)))


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


def word_means(hidden, words, count):
    """Mean hidden state of each word: hidden (N, D), words (N,) number of the word or -1 for specials -> (count, D)."""
    real = words >= 0
    sums = hidden.new_zeros(count, hidden.shape[-1]).index_add(0, words[real], hidden[real])
    return sums / torch.bincount(words[real], minlength=count).unsqueeze(1)


def cosine_distance(a, b):
    """1 - cos(a, b), averaged over all but the last dimension."""
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()
