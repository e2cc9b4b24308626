"""What pretraining minimises: masked words (Devlin et al. 2018), the next word (Radford et al.
2018), missing spans (Raffel et al. 2020), and the distance to a teacher's hidden states (Hinton et
al. 2015; Sanh et al. 2019).
"""
import random

import torch
import torch.nn.functional as F

PART = 512                             # tokens whose logits are in memory at once: 16 MB at V 8,000


def corrupt(ids, mask, special_ids, mask_id, vocab_size, share=0.15):
    """Choose `share` of the tokens; of those 80 % become [MASK], 10 % a random token, 10 % stay.

    ids, mask: (B, T) -> (corrupted ids (B, T), chosen (B, T) bool). Special tokens and padding are
    not chosen; at least one token is.
    """
    allowed = mask.bool() & ~torch.isin(ids, torch.tensor(sorted(special_ids)))
    chosen = (torch.rand(ids.shape) < share) & allowed
    if not chosen.any():
        chosen.view(-1)[allowed.flatten().nonzero()[:1, 0]] = True
    dice = torch.rand(ids.shape)
    corrupted = torch.where(chosen & (dice < 0.8), mask_id, ids)
    random_ids = torch.randint(vocab_size, ids.shape)
    return torch.where(chosen & (dice >= 0.9), random_ids, corrupted), chosen


def masked_lm_loss(model, ids, mask, types, chosen, targets):
    """Mean cross-entropy of the original tokens at the chosen places -> scalar.

    ids, mask, types, chosen, targets: (B, T). No logits are computed at other places.
    """
    hidden = model(ids, mask, types)[chosen]                                 # (M, D)
    return F.cross_entropy(model.logits(hidden).float(), targets[chosen])    # (M, V) and (M,)


def causal_lm_loss(model, ids, mask, counted=None):
    """Mean cross-entropy of each token but a row's first, given those before it -> scalar.

    ids, mask: (B, T); counted: (B, T), True at the tokens to predict; None: all. The mask tells
    padding, not the id: an end-of-text token is learned even where it also pads.
    """
    target = mask[:, 1:].bool() & mask[:, :-1].bool()                        # (B, T - 1)
    if counted is not None:
        target &= counted[:, 1:].bool()
    hidden, wanted = model(ids, mask)[:, :-1][target], ids[:, 1:][target]    # (M, D) and (M,)
    if not len(wanted):
        return hidden.sum()
    losses = [F.cross_entropy(model.logits(states).float(), tokens, reduction="sum")
              for states, tokens in zip(hidden.split(PART), wanted.split(PART))]
    return sum(losses) / len(wanted)


def corrupt_spans(ids, sentinels, eos_id, seed, share=0.15, mean_length=3.0):
    """Cut random spans out of a text -> (source ids, target ids), as T5 was pretrained.

        a b c d e f g h  ->  a b <0> e f g <1> EOS   and   <0> c d <1> h EOS

    ids: a list of 2 or more, without special tokens; sentinels: the ids that replace the first
    span, the second, ...; share: part of the tokens that is cut out; mean_length: tokens of a span.
    Kept and cut pieces alternate, beginning with a kept one.
    """
    cut = min(max(round(len(ids) * share), 1), len(ids) - 1)
    spans = min(max(round(cut / mean_length), 1), cut, len(ids) - cut, len(sentinels))
    draw = random.Random(seed)
    kept_lengths, cut_lengths = pieces(len(ids) - cut, spans, draw), pieces(cut, spans, draw)
    source, target, place = [], [], 0
    for sentinel, kept, gone in zip(sentinels, kept_lengths, cut_lengths):
        source += [*ids[place:place + kept], sentinel]
        target += [sentinel, *ids[place + kept:place + kept + gone]]
        place += kept + gone
    return source + [eos_id], target + [eos_id]


def pieces(total, count, draw):
    """`count` random positive integers that sum to `total`, uniform over all such lists."""
    ends = [0, *sorted(draw.sample(range(1, total), count - 1)), total]
    return [end - start for start, end in zip(ends, ends[1:])]


def word_means(hidden, words, count):
    """Mean hidden state of each word -> (W, D). count: W.

    hidden: (N, D); words: (N,), the index of each token's word, -1 for special tokens.
    """
    real = words >= 0
    sums = hidden.new_zeros(count, hidden.shape[-1]).index_add(0, words[real], hidden[real])
    return sums / torch.bincount(words[real], minlength=count).unsqueeze(1)


def cosine_distance(a, b):
    """1 - cos(a, b), averaged over all but the last dimension -> scalar."""
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()
