"""Which rows go into which step: the batches of all epochs, which follow from the seed alone."""
import random
from dataclasses import dataclass

from ..text.batch import make_batches
from .contrastive import grouped_batches

EPOCHS_COUNTED = 10_000  # the steps of further epochs are extrapolated, see Plan


@dataclass
class Split:
    """One split of the data as the loop takes it: N encoded rows, and their N targets."""
    encoded: list
    targets: list


def plan_epochs(model, train, settings):
    """The batches of all epochs of `train`, a Split -> Plan."""
    return Plan([model.row_size(row) for row in train.encoded], train.targets, settings)


class Plan:
    """plan[epoch] -> the batches of an epoch, a list of lists of row numbers, computed on demand.

    sizes: the tokens of each row, padding between its sequences included (Classifier.row_size);
    targets: class numbers. epochs: the number of epochs; steps: the steps of all epochs together.
    With --batch-tokens the epochs have different numbers of steps. Those of the first
    EPOCHS_COUNTED are counted, and the sum is scaled up to all epochs.
    """

    def __init__(self, sizes, targets, settings):
        self.sizes, self.targets, self.settings = sizes, targets, settings
        self.epochs = max(settings.epochs, -(-settings.min_steps // len(self[0])))   # rounded up
        counted = min(self.epochs, EPOCHS_COUNTED) if settings.batch_tokens else 1
        self.steps = sum(len(self[epoch]) for epoch in range(counted)) * self.epochs // counted

    def __getitem__(self, epoch):
        s, seed = self.settings, f"{self.settings.seed}:{epoch}"
        if s.objective == "contrastive":
            return grouped_batches(self.targets, s.batch_size, seed)
        balanced = s.sampling == "balanced"
        rows = balanced_rows(self.targets, seed) if balanced else range(len(self.sizes))
        batches = make_batches([self.sizes[row] for row in rows], s.batch_size, seed=seed,
                               tokens=s.batch_tokens)
        return [[rows[index] for index in batch] for batch in batches]

    def __iter__(self):
        return (self[epoch] for epoch in range(self.epochs))


def balanced_rows(targets, seed):
    """Balanced sampling: as many rows as there are, equally many of each class -> row numbers.

    Rows of small classes repeat, but no row does before all rows of its class have been drawn.
    A model trained on such epochs treats all classes as equally likely. Where they are not, its
    probabilities need calibration.
    """
    rng, rows = random.Random(f"balanced:{seed}"), {}                # rows: by class
    for row, target in enumerate(targets):
        rows.setdefault(target, []).append(row)
    classes = sorted(rows)
    rng.shuffle(classes)
    chosen, left = [], {target: [] for target in rows}       # left: rows yet to draw, by class
    for turn in range(len(targets)):
        target = classes[turn % len(classes)]
        if not left[target]:
            left[target] = rng.sample(rows[target], len(rows[target]))
        chosen.append(left[target].pop())
    return chosen
