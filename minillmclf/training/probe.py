"""A linear probe: the last layer of a head, fitted by logistic regression on fixed features.

Alain and Bengio 2016 (arXiv:1610.01644) ask in this way what a layer knows. Cross-entropy is convex
in the last layer, so L-BFGS finds its minimum in seconds; AdamW needs epochs. Fine-tuning that
starts there distorts the features less than from random weights (LP-FT, "linear probing, then
fine-tuning": Kumar et al. 2022, arXiv:2202.10054). On few rows it does better, as
lessons/measurements/few_rows.md shows.
"""
import functools
from types import SimpleNamespace

import torch

L2_PENALTY = 0.1           # where features have length 1 on average; with 1.0 the probabilities
                           # for few rows are far too low (lessons/measurements/few_rows.md)
L2_PENALTY_AT_START = 1.0  # of a probe that training goes on from: training raises its confidence


def minimise(loss, parameters, steps=100):
    """Change the parameters, tensors, until loss() is least, by at most `steps` steps of L-BFGS.

    L-BFGS keeps two vectors of the parameters' size for each of its last 10 steps. A loss that is
    not convex, as focal loss, may end in a local minimum.
    """
    solver = torch.optim.LBFGS(parameters, max_iter=steps, history_size=10,
                               line_search_fn="strong_wolfe")

    def value_with_gradient():
        solver.zero_grad()
        value = loss()
        value.backward()
        return value
    solver.step(value_with_gradient)


def features_of(model, batch):
    """What the last layer of a classifier's head reads: Batch -> (B, D)."""
    head = model.head
    return head.features(*head.states_to_pool(model.backbone, batch.ids, batch.mask, batch.types,
                                              batch.layout))


def fit_probe(model, train, objective, batch_size=64, penalty=L2_PENALTY):
    """Replace model.head.out, in place, by the probe on its own features: weight (C, D), bias (C,).

    It minimises objective + penalty / 2 * |weight|^2 over all N rows at once; the features are
    divided by their mean length. train: plan.Split of N rows; objective: as
    losses.CrossEntropy, a sum over rows. The rows pass through the model once, `batch_size` at a
    time. The features (N, D) are kept on the CPU in fp32.
    """
    out = model.head.out                                                        # Linear, D to C
    compute = functools.partial(features_of, model)                             # Batch -> (B, D)
    features = model.compute_in_batches(train.encoded, compute, out.in_features, batch_size)
    features = features.clone()           # (N, D), no longer a tensor of inference mode
    scale = features.norm(dim=1).mean()
    weight = torch.zeros(out.out_features, out.in_features, requires_grad=True)
    bias = torch.zeros(out.out_features, requires_grad=out.bias is not None)
    # To the objective, `logits` is the model, and `rows` one batch of all N rows.
    rows = SimpleNamespace(features=features / scale, labels=torch.tensor(train.targets))

    def logits(rows):
        return rows.features @ weight.T + bias                                  # (N, C)

    def loss():
        return objective(logits, rows) + penalty / 2 * (weight ** 2).sum()
    minimise(loss, [weight, bias] if out.bias is not None else [weight])
    with torch.no_grad():
        out.weight.copy_(weight / scale)
        if out.bias is not None:
            out.bias.copy_(bias)
