"""A linear probe: the last layer of a head, fitted by logistic regression on fixed features.

Alain and Bengio 2016 (arXiv:1610.01644) ask in this way what a layer knows. The loss is convex in
the last layer, so L-BFGS finds its minimum in a second, where AdamW takes epochs. Fine-tuning that
starts there spoils the features less than from random weights, and does better on few rows (LP-FT,
"linear probing, then fine-tuning": Kumar et al. 2022, arXiv:2202.10054).
"""
from types import SimpleNamespace

import torch

STRENGTH = 0.1         # of the L2 penalty, where features have length 1 on average; with 1.0 the
                       # answers to few rows are far too unsure (lessons/measurements/few_rows.md)
START_STRENGTH = 1.0   # of a probe that training goes on from, which makes it surer


def minimise(loss, parameters, steps=100):
    """Change the parameters, tensors, until loss(), a convex function of them, is least: L-BFGS,
    which keeps two vectors of their size for each of 10 steps."""
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


def fit_probe(model, train, objective, batch_size=64, strength=STRENGTH):
    """Replace the last layer of a classifier's head by the probe on its own features.

    train: plan.Split; objective: as losses.CrossEntropy, of which the probe minimises the sum over
    all rows, plus strength / 2 times the squared weights. Rows pass through the model once.
    """
    out = model.head.out                                                        # Linear, D to C

    def compute(batch):
        return features_of(model, batch)                                        # (B, D)
    features = model.compute_in_batches(train.encoded, compute, out.in_features, batch_size)
    features = features.clone()           # (N, D), no longer a tensor of inference mode
    scale = features.norm(dim=1).mean()
    weight = torch.zeros(out.out_features, out.in_features, requires_grad=True)
    bias = torch.zeros(out.out_features, requires_grad=out.bias is not None)
    rows = SimpleNamespace(features=features / scale, labels=torch.tensor(train.targets))

    def logits(rows):
        return rows.features @ weight.T + bias                                  # (N, C)

    def loss():
        return objective(logits, rows) + strength / 2 * (weight ** 2).sum()
    minimise(loss, [weight, bias] if out.bias is not None else [weight])
    with torch.no_grad():
        out.weight.copy_(weight / scale)
        if out.bias is not None:
            out.bias.copy_(bias)
