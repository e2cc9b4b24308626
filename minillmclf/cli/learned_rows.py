"""Rows that a model is judged by though it has learned them: its score on these is memory."""
from pathlib import Path

from ..classify.learned import count_learned, hash_rows, read_learned, unite
from ..files import find_model, short


def count_before(learned, parts):
    """learned: a set of hashes or None; parts: {name: Examples}, of which a model will be judged ->
    {"learned_before": {name: [number learned, number of rows]}}, or {} if none is learned."""
    counts = {name: [count_learned(learned, rows), len(rows)] for name, rows in parts.items()}
    found = {name: count for name, count in counts.items() if count[0]}
    return {"learned_before": found} if found else {}


def count_before_folds(s, examples):
    """As `count_before`, of all rows of a cross-validation: each will be held out once. s: the
    cli.settings.Settings of its models."""
    learned = None if s.weights == "random" else read_learned(find_model(s.model))
    return count_before(learned, {"held-out": examples})


def mark_learned(model, data):
    """Add the training rows of a Dataset to what a classifier has learned -> as `count_before`, of
    the dev and test rows, for run.json."""
    before = count_before(model.learned, {"test": data.test, "dev": data.dev})
    model.learned = unite(model.learned, hash_rows(model.task.training_examples(data.train)))
    return before


def learned_warning(record):
    """record: run.json, or another with its keys settings and learned_before -> [a line], or [] if
    --model had learned none of the rows that judge the run."""
    counts = record.get("learned_before", {})
    if not counts:
        return []
    words = " and ".join(f"{count} of {rows} {name} rows" for name, (count, rows) in counts.items())
    return [f"WARNING: {short(Path(record['settings']['model']), 200)} had learned {words} before "
            "this training: the score on them is memory: take another --model, or other rows"]


def warn_of_learned(model, rows, split):
    """Print a line if a classifier has learned some of the rows that it was judged by, unless
    `split` asks for the train rows -> {"learned_rows": their number, None if not known}."""
    count = count_learned(model.learned, rows)
    if count and split != "train":
        print(f"WARNING: {count} of {len(rows)} rows were learned by this model: judge it by "
              "others")
    return {"learned_rows": count}
