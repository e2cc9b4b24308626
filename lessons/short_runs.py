"""Short training runs for lessons 10 and 11: mini-bert on a few messages, in seconds on one core.

Not here: what a real run needs besides (minillmclf/training/loop.py:fit, which lesson 9 shows).
"""
import torch

from minillmclf import Classifier
from minillmclf.cli.settings import Settings
from minillmclf.training import loop, optim
from minillmclf.training.losses import CrossEntropy
from minillmclf.training.plan import Split, plan_epochs
from minillmclf.tuning import LORA_METHODS, tune

LORA = dict(rank=8, alpha=16.0, dropout=0.0, use_rslora=False, targets=None, bias="none")


def new_model(method, labels, **options):
    """mini-bert with a new head, in eval mode. options: numbers of LoRA, other than in LORA."""
    quantise = "nf4" if method == "qlora" else None
    model = Classifier.from_backbone("mini-bert", labels, quantise=quantise)
    tune(model, {"method": method, **(LORA | options if method in LORA_METHODS else options)})
    return model


def split_of(model, rows):
    """Rows of a data set -> Split: what the model reads, and the numbers of their classes."""
    return Split(model.encode([row.texts for row in rows])[0],
                 [model.labels.index(row.label) for row in rows])


def accuracy(model, split):
    """The share of right answers."""
    right = torch.tensor(split.targets)                                             # (N)
    return (model.compute_logits(split.encoded).argmax(1) == right).float().mean().item()


def fit(model, train, lr, epochs=2):
    """Train on a Split, 16 rows a step -> the model, in eval mode."""
    s = Settings(batch_size=16, epochs=epochs)
    optimizer, plan = optim.build_optimizer(model, lr, s.weight_decay), plan_epochs(model, train, s)
    model.train()
    for number, rows in enumerate(rows for batches in plan for rows in batches):
        torch.manual_seed(number)                                  # of dropout
        optim.set_lr(optimizer, optim.lr_factor(number, plan.steps, 4, "linear"))
        loop.take_step(model, optimizer, train, rows, s)
    return model.eval()


def megabytes(model, train):
    """What a step on 16 rows holds in memory, in megabytes -> weights (with 4-bit ones), gradients,
    AdamW's means, and what backward() reads besides the weights."""
    kept, weights = {}, [*model.train().parameters(), *model.buffers()]

    def keep(tensor):                                              # called for each kept tensor
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = CrossEntropy()(model, model.collate(train.encoded, range(16), train.targets))
    loss.backward()
    optimizer = optim.build_optimizer(model, 3e-4, 0.01)
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    means = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    for tensor in weights:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    held = [sum(t.nbytes for t in part) for part in (weights, gradients, means)]
    return [number / 1e6 for number in (*held, sum(kept.values()))]
