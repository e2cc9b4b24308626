"""Constrained decoding: a model writes one of L given answers; at each step only tokens that lead to one may follow.

    prompt -> " very" 0.6 -> " good" 0.3      Greedy takes " very", the likelier beginning, and ends with " very good",
           |              -> " bad"  0.2      0.6 * 0.3 = 0.18. The answer " bad" has 0.4, and was lost at the first
           -> " bad"  0.4                     step. A beam of two paths keeps it.

So the answer is always one of the set, in the tokens of the tree: the tokenizer's own, if they came from it. That it is
the likeliest of the set is certain only with as many beams as answers. Exact scoring (models/tree.py) is always right,
in one forward over all answers; this computes only the tokens on its way, a forward for each.

De Cao et al. 2021 ("Autoregressive Entity Retrieval", section 3.2) decode along such a tree. Here: the search, and where
it and exact scores disagree. Not here: which texts the answers are (labels.py); free text (models/cache.py); a
correction for length, so long answers have lower sums.
"""
import math

import torch

from ...errors import InputError
from ...models.cache import CachedRows, pick, start
from ...models.tree import AT_ONCE


@torch.inference_mode()
def constrained(model, ids, mask, tree, beams=1):
    """Answer each prompt with a sequence of a tree -> (choices (B,), log_probs (B,)), found step by step.

    ids, mask: (B, T), prompts of any lengths, padded on either side, for a decoder or an encoder-decoder; beams: how many
    paths a row keeps, 1 is greedy. choices: the number of the sequence in tree.paths. log_probs: the sum of what the
    model gives its tokens among its *whole vocabulary*: nothing is shared out anew among the tokens that are allowed, so
    the sum is the exact score of that sequence, and beams are compared by it. Raises InputError if a sequence begins
    another one, if the longest answer does not fit behind the longest prompt, or if a score is NaN.
    """
    if type(beams) is not int or beams < 1:
        raise InputError(f"beams {beams!r}: should be a whole number from 1 (greedy) up")
    after, ends = ways_on(tree)
    was_training = model.training
    model.eval()
    try:
        best = search(model, *model.prompt(ids, mask), tree, after, ends, beams)
    finally:
        model.train(was_training)
    return (torch.tensor([ends[edge] for _, edge, _ in best], device=ids.device),
            torch.tensor([log_prob for log_prob, _, _ in best], device=ids.device))


def search(model, ids, mask, context, tree, after, ends, beams):
    """The best whole path of each row, a list of B.

    A path is (log-probability, last edge, row): the row of the last forward in which it was found; edge -1 is no edge.
    """
    check_room(model, mask, tree)
    held, cache = [[(0.0, -1, row)] for row in range(len(ids))], start(model, len(ids))
    while True:
        rows = CachedRows(mask, cache)
        found = next_edges(model, rows.last(model.hidden(ids, rows, context)), tree)     # (n, E), a row for each path
        each = enumerate(found.tolist())
        held = [longer(paths, each, after, ends) for paths in held]
        check_numbers(held)
        held = [paths[:beams] for paths in held]
        going = [(edge, row) for paths in held for _, edge, row in paths if edge not in ends]
        if not going:
            return [paths[0] for paths in held]
        edges, live = map(list, zip(*going))
        if live != list(range(len(found))):            # a lost path's row is missing, one with two ways on comes twice
            cache.keep(live)
            context = pick(context, live)
        ids = tree.tokens[edges].unsqueeze(1)                                            # (n, 1)
        mask = torch.ones_like(ids)


def longer(paths, each, after, ends):
    """A row's paths, a step later: one that has ended stays, any other goes on in all its ways -> new paths, best first.

    each: the rows of a forward and their numbers, to be read in the order of the paths.
    """
    new = []
    for path in paths:
        if path[1] in ends:
            new.append(path)
        else:
            row, log_probs = next(each)
            new += [(path[0] + log_probs[edge], edge, row) for edge in after[path[1]]]
    return sorted(new, key=lambda path: -path[0])                                        # equal ones keep their order


def next_edges(model, states, tree):
    """Log-probability of each edge's token after each state (n, D) -> (n, E), over the whole vocabulary."""
    few = max(1, AT_ONCE // len(model.vocabulary()))
    found = []
    for part in states.split(few):
        logits = model.logits(part).float()                                              # (at most few, V)
        found.append(logits[:, tree.tokens] - logits.logsumexp(-1, keepdim=True))
    return torch.cat(found)


def ways_on(tree):
    """({last edge of a path, -1 for none: the edges that may follow}, {last edge of a sequence: its number})."""
    after, ends = {}, {}
    for number, path in enumerate(tree.paths):
        ends.setdefault(path[-1], number)
        for before, edge in zip([-1, *path], path):
            after.setdefault(before, {})[edge] = None                                    # a dict keeps their order
    for number, path in enumerate(tree.paths):
        if ends[path[-1]] != number:
            raise InputError(f"sequences {ends[path[-1]]} and {number} (from 0) are the same tokens: leave one out")
        if path[-1] in after:
            other = next(n for n, longer in enumerate(tree.paths) if path[-1] in longer[:-1])
            raise InputError(f"sequence {number} (from 0) is the beginning of sequence {other}, so nothing tells "
                             f"whether to stop there: end every label with a terminator")
    return after, ends


def check_numbers(held):
    """InputError if the model gives NaN somewhere: it has no place in an order."""
    for number, paths in enumerate(held):
        if any(math.isnan(log_prob) for log_prob, _, _ in paths):
            raise InputError(f"batch row {number}: an answer's score is NaN: compute in float32, or check the weights")


def check_room(model, mask, tree):
    """The longest prompt and the longest answer must fit; an answer's last token is never read."""
    prompt, answer = int(mask.sum(1).max()), max(map(len, tree.paths))
    if model.max_input_tokens is not None and prompt + answer - 1 > model.max_input_tokens:
        raise InputError(f"a prompt of {prompt} tokens and an answer of {answer} are more than the {model.max_input_tokens} "
                         f"positions of this model{model.prefix_note()}: shorten the prompt")


def disagreements(choices, scores):
    """Where constrained decoding missed the likeliest sequence -> [(row, chosen, best), ...].

    choices: (B,), of `constrained`; scores: (B, L), exact scores of all sequences (tree.sums). Equal scores are no miss.
    """
    if scores.dim() != 2 or choices.shape != scores.shape[:1] or int(choices.max()) >= scores.shape[1]:
        raise InputError(f"choices {tuple(choices.shape)} up to {int(choices.max())} do not go with scores "
                         f"{tuple(scores.shape)}: both should be of the same rows and the same tree")
    best = scores.max(1)
    missed = ~(scores.gather(1, choices.unsqueeze(1)).squeeze(1) >= best.values)         # so written that NaN is a miss
    return [(row, int(choices[row]), int(best.indices[row])) for row in missed.nonzero().flatten().tolist()]
