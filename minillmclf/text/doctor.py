"""The data doctor: what a person should know about a data set before the first training step.

Here: sizes, balance, repeated and leaked texts, lengths and truncation, each fault with its remedy. Not here: what
makes a file unreadable (data.py). Texts count as the same when they are equal but for case and white space
(`data.text_key`); a repeated text with two different labels is counted apart, for at most one of them is right.
"""
import math
from collections import Counter
from dataclasses import asdict, dataclass

from minillmclf.text.data import Dataset, text_key

SPLITS = ("train", "dev", "test")
UNBALANCED, FEW = 5, 5            # warn beyond this ratio of largest to smallest class, and below this number of rows


@dataclass
class Report:
    """The counts; a dict `{split: number}` wherever a number is per split."""
    name: str
    split: str                    # how the splits came about: "column", "files" or "random"
    rows: dict
    classes: dict                 # label -> {"train": rows, "dev": rows, "test": rows, "share": part of the train rows}
    imbalance: float | None       # largest / smallest class of train; None where a class has no train row
    repeated: dict                # rows beyond the first of a text inside one split, where all carry the same label
    contradicting: dict           # the same, of texts that carry more than one label in this split
    shared: dict                  # "train/test" -> {"same_label", "conflicting"}: distinct texts in both splits
    empty: dict                   # rows with an empty text
    lengths: dict                 # split -> {"p50", "p90", "p99", "max"}
    unit: str                     # of lengths: "tokens" (special tokens included) or "words"
    max_length: int | None
    truncated: dict               # rows longer than max_length; {} where max_length is None
    warnings: list                # one sentence per fault, with its remedy

    def as_dict(self) -> dict:
        """The report as plain dicts, lists, numbers and strings: ready for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as aligned ASCII lines, ready to print; other characters in names are escaped."""
        count = {label: [n[s] for s in SPLITS] + [f"{n['share']:.1%}"] for label, n in self.classes.items()}
        lines = [f"data set {_ascii(self.name)}, split by {self.split}", ""]
        lines += _aligned(["class", *SPLITS, "of train"], {"(all)": [self.rows[s] for s in SPLITS] + [""], **count})
        ratio = "unknown" if self.imbalance is None else f"{self.imbalance:.1f}"
        body = {"repeated, same label": self.repeated, "repeated, other label": self.contradicting, "empty": self.empty}
        for mark in ("p50", "p90", "p99", "max"):
            body[f"{self.unit}, {mark}"] = {s: self.lengths.get(s, {}).get(mark, "-") for s in SPLITS}
        if self.max_length is not None:
            at_least = "" if self.unit == "tokens" else " at least"       # a word is one token or more
            body[f"truncated to {self.max_length} tokens{at_least}"] = self.truncated
        lines += ["", f"largest / smallest class of train: {ratio}", ""]
        lines += _aligned(["rows", *SPLITS], {name: [n.get(s, "-") for s in SPLITS] for name, n in body.items()}) + [""]
        for pair, n in self.shared.items():
            lines.append(f"texts in both {pair.replace('/', ' and ')}: {n['same_label']} with the same label, "
                         f"{n['conflicting']} with another")
        return lines + [f"WARNING: {_ascii(warning)}" for warning in self.warnings]


def _ascii(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _aligned(header, body) -> list[str]:
    table = [header] + [[_ascii(name), *map(str, cells)] for name, cells in body.items()]
    widths = [max(map(len, column)) for column in zip(*table)]
    return [f"{row[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:])) for row in table]


def examine(dataset: Dataset, lengths=None, max_length=None) -> Report:
    """Count what `Report` lists.

    lengths: {split: tokens of each row, special tokens included}; without it lengths are counted in words. max_length:
    the longest row in tokens that the model will see; longer ones are counted as truncated (in words: at least so many).
    """
    splits = {"train": dataset.train, "dev": dataset.dev, "test": dataset.test}
    unit = "words" if lengths is None else "tokens"
    if lengths is None:
        lengths = {s: [sum(len(text.split()) for text in e.texts) for e in splits[s]] for s in SPLITS}
    for split, numbers in lengths.items():
        if len(numbers) != len(splits[split]):
            raise ValueError(f"lengths['{split}'] has {len(numbers)} numbers for {len(splits[split])} rows")
    rows = {s: len(splits[s]) for s in SPLITS}
    counts = {s: Counter(e.label for e in splits[s]) for s in SPLITS}
    classes = {label: {s: counts[s][label] for s in SPLITS} | {"share": counts["train"][label] / max(1, rows["train"])}
               for label in dataset.labels}
    sizes = [n["train"] for n in classes.values()]
    copies = {s: _copies(splits[s]) for s in SPLITS}                       # split -> text -> its labels, one per row
    report = Report(
        name=dataset.name, split=dataset.source.get("split", "unknown"), rows=rows, classes=classes,
        imbalance=max(sizes) / min(sizes) if min(sizes, default=0) else None,
        repeated={s: sum(len(c) - 1 for c in copies[s].values() if len(set(c)) == 1) for s in SPLITS},
        contradicting={s: sum(len(c) - 1 for c in copies[s].values() if len(set(c)) > 1) for s in SPLITS},
        shared={f"{a}/{b}": _shared(copies[a], copies[b]) for a, b in (SPLITS[:2], SPLITS[::2], SPLITS[1:])},
        empty={s: sum(not all(text.strip() for text in e.texts) for e in splits[s]) for s in SPLITS},
        lengths={s: _percentiles(numbers) for s, numbers in lengths.items() if numbers}, unit=unit, max_length=max_length,
        truncated={} if max_length is None else {s: sum(n > max_length for n in lengths[s]) for s in lengths}, warnings=[])
    report.warnings = _warnings(report)
    return report


def _copies(examples) -> dict:
    labels = {}
    for example in examples:
        labels.setdefault(text_key(example.texts), []).append(example.label)
    return labels


def _shared(first: dict, second: dict) -> dict[str, int]:
    kinds = Counter(len({*first[text], *second[text]}) == 1 for text in first.keys() & second.keys())
    return {"same_label": kinds[True], "conflicting": kinds[False]}


def _percentiles(numbers) -> dict[str, int]:
    """Nearest rank: the smallest length that p percent of the rows do not exceed."""
    ranked = sorted(numbers)
    marks = {f"p{p}": int(ranked[math.ceil(p * len(ranked) / 100) - 1]) for p in (50, 90, 99)}
    return marks | {"max": int(ranked[-1])}


def _warnings(r: Report) -> list[str]:
    found = []
    by_size = sorted(r.classes, key=lambda label: r.classes[label]["train"])
    if r.imbalance is not None and r.imbalance > UNBALANCED:
        found.append(f"'{by_size[-1]}' has {r.imbalance:.1f} times the train rows of '{by_size[0]}': judge by macro-F1, "
                     "not by accuracy, and weight the classes or add rows of the small ones")
    for label in r.classes:
        if r.classes[label]["train"] < FEW:
            found.append(f"'{label}' has {r.classes[label]['train']} train rows: add rows, or merge it with another class")
        for s in (s for s in ("dev", "test") if r.rows[s] and not r.classes[label][s]):
            found.append(f"'{label}' has no {s} row, so {s} scores say nothing of it: add some")
    for s in SPLITS:
        if r.repeated[s]:
            found.append(f"{s} repeats texts in {r.repeated[s]} rows with the same label: remove the copies")
        if r.contradicting[s]:
            found.append(f"{s} repeats texts in {r.contradicting[s]} rows with another label: keep the right label of each")
        if r.empty[s]:
            found.append(f"{s} has {r.empty[s]} rows with an empty text: remove or fill them")
        if r.truncated.get(s):
            found.append(f"{r.truncated[s]} of {r.rows[s]} {s} rows exceed {r.max_length} tokens and will be truncated: "
                         "raise max_length as far as the model allows, or choose which end is cut")
    for pair, n in r.shared.items():
        if sum(n.values()):
            first, second = pair.split("/")
            found.append(f"{sum(n.values())} texts of {first} stand in {second} too, so {second} scores flatter: "
                         f"remove them from {first}")
    return found
