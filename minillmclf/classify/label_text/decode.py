"""Constrained decoding: the model writes one of L given answers, token by token, and at each step
only tokens that lead to one of them are allowed (De Cao et al. 2021, "Autoregressive Entity
Retrieval", section 3.2).

    prompt -> " very" 0.6 -> " good" 0.3    Greedy takes " very", the likelier beginning, and
           |              -> " bad"  0.2    ends with " very good", 0.6 * 0.3 = 0.18. " bad" has
           -> " bad"  0.4                   0.4 and was lost at the first step. Two beams keep it.

Beam search is sure to find the likeliest answer only with as many beams as answers. Exact scoring
(models/tree.py) always finds it, in one forward pass over all answers; decoding takes one forward
pass for each token. Not here: which texts the answers are (readout.py); free text
(models/cache.py); length normalisation.
"""
import math

import torch

from ...errors import InputError
from ...models.cache import CachedRows, pick_rows, new_cache
from ...models.tree import MAX_LOGITS


@torch.inference_mode()
def decode_constrained(model, ids, mask, tree, beams=1):
    """Decode a sequence of the tree for each prompt -> (choices (B,), log_probs (B,)).

    model: a decoder or an encoder-decoder; ids, mask: (B, T), padded on either side; beams: paths
    kept for each row, 1 is greedy. choices: indices into tree.paths; log_probs: of the chosen
    sequences, over the whole vocabulary, not renormalised among the allowed tokens. InputError if
    a sequence is the beginning of another, if prompt and answer are too long for the model, or if a
    score is NaN.
    """
    if type(beams) is not int or beams < 1:
        raise InputError(f"beams {beams!r}: should be a whole number from 1 (greedy) up")
    was_training = model.training
    model.eval()
    try:
        best = beam_search(model, ids, mask, tree, beams)
    finally:
        model.train(was_training)
    log_probs, choices = zip(*best)
    return torch.tensor(choices, device=ids.device), torch.tensor(log_probs, device=ids.device)


def beam_search(model, ids, mask, tree, beams):
    """Beam search -> [(log-probability, index of the sequence), ...], the best for each prompt.

    The beam has a list of paths for each prompt: (log-probability, last edge, row of the forward
    pass that computed it). Edge -1 stands for the end of the prompt.
    """
    after, ends = following_edges(tree)
    ids, mask, context = model.prepare_prompt(ids, mask)
    prompt, answer = int(mask.sum(1).max()), max(map(len, tree.paths))
    most = model.max_input_tokens
    if most is not None and prompt + answer - 1 > most:             # the last token is not read
        raise InputError(f"a prompt of {prompt} tokens and an answer of {answer} are more than the "
                         f"{most} positions of this model{model.prefix_note()}: shorten the prompt")
    beam, cache = [[(0.0, -1, row)] for row in range(len(ids))], new_cache(model, len(ids))
    while True:
        rows = CachedRows(mask, cache)
        states = rows.final_tokens(model.hidden_states(ids, rows, context))  # (n, D), one a path
        computed = enumerate(edge_log_probs(model, states, tree).tolist())
        beam = [extend_paths(paths, computed, after, ends) for paths in beam]
        for number, paths in enumerate(beam):
            if any(math.isnan(log_prob) for log_prob, _, _ in paths):
                raise InputError(f"batch row {number}: an answer's score is NaN: compute in "
                                 "float32, or check the weights")
        beam = [paths[:beams] for paths in beam]
        unfinished = [(edge, row) for paths in beam for _, edge, row in paths if edge not in ends]
        if not unfinished:
            return [(paths[0][0], ends[paths[0][1]]) for paths in beam]
        edges, sources = map(list, zip(*unfinished))
        if sources != list(range(len(states))):    # some row was dropped or is continued twice
            cache.keep_rows(sources)
            context = pick_rows(context, sources)
        ids = tree.edge_tokens[edges].unsqueeze(1)                                       # (n, 1)
        mask = torch.ones_like(ids)


def extend_paths(paths, computed, after, ends):
    """Extend the unfinished paths of a prompt by each allowed edge -> paths, best first.

    computed: an iterator over (row, log-probability of each edge) of the batch's unfinished paths.
    """
    extended = []
    for path in paths:
        log_prob, edge, _ = path
        if edge in ends:
            extended.append(path)
        else:
            row, log_probs = next(computed)
            extended += [(log_prob + log_probs[new], new, row) for new in after[edge]]
    return sorted(extended, key=lambda path: -path[0])                   # ties keep their order


def edge_log_probs(model, states, tree):
    """States (n, D) -> the log-probability of the token of each of E edges after them, (n, E)."""
    log_probs = []
    for part in states.split(max(1, MAX_LOGITS // len(model.output_embeddings()))):
        logits = model.logits(part).float()                                              # (., V)
        log_probs.append(logits[:, tree.edge_tokens] - logits.logsumexp(-1, keepdim=True))
    return torch.cat(log_probs)


def following_edges(tree):
    """-> {edge or -1: edges that may follow it}, {last edge of a sequence: its number}."""
    after, ends = {}, {}
    for number, path in enumerate(tree.paths):
        ends[path[-1]] = number
        for before, edge in zip([-1, *path], path):
            after.setdefault(before, {})[edge] = None                    # a dict keeps their order
    for number, path in enumerate(tree.paths):
        if path[-1] in after:
            other = next(n for n, other in enumerate(tree.paths) if path[-1] in other[:-1])
            raise InputError(f"sequence {number} (from 0) is the beginning of sequence {other}, so "
                             "nothing tells whether to stop there: end every label with a "
                             "terminator")
    return after, ends


def find_misses(choices, log_probs):
    """Rows where decoding missed the likeliest sequence -> [(row, chosen, best), ...].

    choices: (N,), from `decode_constrained`; log_probs: (N, L), exact log-probabilities of all
    sequences. A tie does not count as a miss, a NaN does.
    """
    best = log_probs.max(1)
    missed = ~(log_probs.gather(1, choices.unsqueeze(1)).squeeze(1) >= best.values)
    return [(row, int(choices[row]), int(best.indices[row]))
            for row in missed.nonzero().flatten().tolist()]
