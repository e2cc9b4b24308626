"""The data doctor: what a person should know about a data set before the first training step.

Here: sizes, balance, repeated and leaked texts, lengths and truncation, names of classes that look
alike, tokens that the tokenizer does not know, each fault with its remedy. Not here: what makes a file
unreadable (data.py). Texts count as the same when they are equal but for case and white space
(`data.text_key`). A text that comes again with another label is counted apart: at most one label is right. Where a row may
have several labels, each is counted, and another label means another set.
"""
import math
import re
import sys
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass

from .data import Dataset, names_in, text_key

SPLITS = ("train", "dev", "test")
UNBALANCED = 5                    # warn where the largest class of train has more than this times the smallest
FEW = 5                           # warn where a class has fewer train rows than this
UNKNOWN = 0.05                    # warn where this part of a split's tokens, or more, is unknown
UNSEEN = "[\u034f\u115f\u1160\u2800\ufe00-\ufe0f]"          # letters and marks that show nothing
SOME_ROWS = 256                   # of each window that a stream of rows is looked at by


@dataclass
class Report:
    """The counts. A dict "per split" is {"train": number, "dev": number, "test": number}."""
    name: str
    split: str                    # how the splits came about: "column", "files" or "random"
    rows: dict                    # per split
    classes: dict                 # label -> per split, and "share": its part of the train rows
    imbalance: float | None       # largest / smallest class of train; None where a class has no train row
    repeated: dict                # per split: rows beyond the first of a text whose rows all carry one label
    contradicting: dict           # per split: the same for texts whose rows carry more than one
    shared: dict                  # "train/test" -> {"same_label", "conflicting"}: texts that stand in both splits
    empty: dict                   # per split: rows with an empty text
    lengths: dict                 # split -> {"p50", "p90", "p99", "max"}, all texts of a row together
    unit: str                     # of lengths: "tokens" (special tokens included), or "words" for want of these
    max_length: int | None
    truncated: dict               # per split: rows longer than max_length; {} where max_length is None
    warnings: list                # a sentence per fault, with its remedy
    cardinality: dict             # several labels a row: split -> mean labels a row; {} where each row has one
    unlabelled: dict              # several labels a row: per split, rows without any; {} where each row has one
    unknown: dict                 # per split: `unknown_share` of its texts; {} where not counted

    def as_dict(self) -> dict:
        """The report as plain dicts, lists, numbers and strings: ready for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as aligned ASCII lines, ready to print; other characters in names are escaped."""
        classes = [["class", *SPLITS, "of train"], ["all", *(self.rows[s] for s in SPLITS), ""]]
        classes += [[label, *(n[s] for s in SPLITS), f"{n['share']:.1%}"] for label, n in self.classes.items()]
        counts = {"repeated, same label": self.repeated, "repeated, other label": self.contradicting,
                  "empty text": self.empty}
        for mark in ("p50", "p90", "p99", "max"):
            counts[f"{self.unit}, {mark}"] = {s: marks[mark] for s, marks in self.lengths.items()}
        if self.max_length is not None:
            counts[f"over {self.max_length} {self.unit}: truncated"] = self.truncated
        if self.unlabelled:
            counts |= {"without a label": self.unlabelled,
                       "labels a row, mean": {s: f"{mean:.2f}" for s, mean in self.cardinality.items()}}
        rows = [["rows", *SPLITS]] + [[name, *(n.get(s, "-") for s in SPLITS)] for name, n in counts.items()]
        ratio = "unknown" if self.imbalance is None else f"{self.imbalance:.1f}"
        lines = [f"data set {_ascii(self.name)}, split by {self.split}", "", *_aligned(classes), ""]
        lines += [f"largest / smallest class of train: {ratio}", "", *_aligned(rows), ""]
        for pair, n in self.shared.items():
            lines.append(f"texts in both {pair.replace('/', ' and ')}: {n['same_label']} with the same label, "
                         f"{n['conflicting']} with another")
        return lines + [f"WARNING: {_ascii(warning)}" for warning in self.warnings]


def _ascii(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _aligned(table) -> list[str]:
    table = [[_ascii(str(cell)) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table]


def examine(dataset: Dataset, lengths=None, max_length=None, remedy="raise max_length",
            unknown=None) -> Report:
    """Count what `Report` lists. Raises ValueError where `lengths` has more or fewer numbers than there are rows.

    lengths: {split: tokens of each row, special tokens included}; without it lengths are counted in words.
    max_length: the most tokens of a row that the model sees. Counted in words, fewer rows seem to exceed it.
    remedy: what to do about longer ones. unknown: `unknown_share` of each split.
    """
    splits, unit = {s: getattr(dataset, s) for s in SPLITS}, "words" if lengths is None else "tokens"
    if lengths is None:
        lengths = {s: [sum(len(text.split()) for text in e.texts) for e in splits[s]] for s in SPLITS}
    for s, numbers in lengths.items():
        if len(numbers) != len(splits[s]):
            raise ValueError(f"lengths['{s}'] has {len(numbers)} numbers for {len(splits[s])} rows")
    sets = {s: [names_in(e.label) if dataset.several else [e.label] for e in splits[s]] for s in SPLITS}
    by_label = {s: Counter(name for names in sets[s] for name in names) for s in SPLITS}
    classes = {label: {s: by_label[s][label] for s in SPLITS} for label in dataset.labels}
    for n in classes.values():
        n["share"] = n["train"] / max(1, len(dataset.train))
    sizes = [n["train"] for n in classes.values()]
    texts = {s: _labels_of_texts(splits[s]) for s in SPLITS}
    report = Report(
        dataset.name, dataset.source["split"], {s: len(splits[s]) for s in SPLITS}, classes,
        imbalance=max(sizes) / min(sizes) if min(sizes, default=0) else None,
        repeated={s: sum(len(t) - 1 for t in texts[s].values() if len(set(t)) == 1) for s in SPLITS},
        contradicting={s: sum(len(t) - 1 for t in texts[s].values() if len(set(t)) > 1) for s in SPLITS},
        shared={f"{a}/{b}": _shared(texts[a], texts[b]) for a, b in (SPLITS[:2], SPLITS[::2], SPLITS[1:])},
        empty={s: sum(not all(text.strip() for text in e.texts) for e in splits[s]) for s in SPLITS},
        lengths={s: _percentiles(numbers) for s, numbers in lengths.items() if len(numbers)},
        unit=unit, max_length=max_length, truncated={}, warnings=[], cardinality={}, unlabelled={},
        unknown=unknown or {})
    if dataset.several:
        report.cardinality = {s: sum(map(len, names)) / len(names) for s, names in sets.items() if names}
        report.unlabelled = {s: sum(not each for each in names) for s, names in sets.items()}
    if max_length is not None:
        report.truncated = {s: int(sum(n > max_length for n in numbers)) for s, numbers in lengths.items()}
    report.warnings = _warnings(report, remedy)
    return report


def _labels_of_texts(examples) -> dict:
    labels = {}                                                    # text -> the label of each of its rows
    for example in examples:
        labels.setdefault(text_key(example.texts), []).append(example.label)
    return labels


def _shared(first: dict, second: dict) -> dict[str, int]:
    same = Counter(len({*first[text], *second[text]}) == 1 for text in first.keys() & second.keys())
    return {"same_label": same[True], "conflicting": same[False]}


def _percentiles(numbers) -> dict[str, int]:
    """Nearest rank: the smallest length that p percent of the rows do not exceed."""
    ranked = sorted(map(int, numbers))
    marks = {f"p{p}": ranked[math.ceil(p * len(ranked) / 100) - 1] for p in (50, 90, 99)}
    return marks | {"max": ranked[-1]}


def _warnings(r: Report, remedy: str) -> list[str]:
    found, train = [], {label: n["train"] for label, n in r.classes.items()}
    if r.imbalance is not None and r.imbalance > UNBALANCED:
        found.append(f"{max(train, key=train.get)} has {r.imbalance:.1f} times the train rows of "
                     f"{min(train, key=train.get)}: judge by macro-F1, and weight the classes or add rows")
    few = [label for label in train if train[label] < FEW]
    if few:
        found.append(f"{_some(few)} with fewer than {FEW} train rows: add rows, or merge them with other classes")
    if r.unlabelled and round(r.cardinality.get("train", 0) * r.rows["train"]) + r.unlabelled["train"] == r.rows["train"]:
        found.append("no train row seems to have two labels: if some have, write a bar between their names, a|b")
    if r.unlabelled:
        always = [label for label in train if train[label] == r.rows["train"] > 0]
        if always:
            found.append(f"{_some(always)} in every train row: no row says what it is not, so leave it out")
    elif barred := [label for label in train if "|" in label]:
        found.append(f"{_some(barred)} with a bar in the name: if it stands between several labels of a row, "
                     "--multi-label")
    found += [f"{_some(labels)} whose names differ only by case, Unicode form, spaces or invisible "
              "characters: if they are one class, write its name in one way" for labels in look_alikes(train)]
    for s in ("dev", "test"):
        unseen = [label for label in r.classes if not r.classes[label][s]]
        if unseen and r.rows[s]:
            found.append(f"{_some(unseen)} without a {s} row: {s} scores say nothing of them, so add rows")
    at_least = "" if r.unit == "tokens" else " (counted in words; in tokens more will)"
    for counts, fault in (
            (r.empty, "have an empty text: remove or fill them"),
            (r.repeated, "repeat a text and its label: remove the copies"),
            (r.contradicting, "repeat a text with other labels: keep the right row, remove the others" if r.unlabelled else
             "repeat a text that has two labels or more: keep the right one, remove the others"),
            (r.truncated, f"exceed {r.max_length} tokens{at_least} and get truncated: {remedy}")):
        if any(counts.values()):
            found.append(", ".join(f"{number} {s}" for s, number in counts.items() if number) + f" row(s) {fault}")
    for pair, n in r.shared.items():
        if sum(n.values()):
            found.append(f"{sum(n.values())} text(s) of {pair.replace('/', ' stand in ')} too and flatter its "
                         f"scores: remove them from {pair.split('/')[0]}")
    return found + unknown_line(r.unknown)


def _some(labels) -> str:
    return f"{len(labels)} class(es) ({', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''})"


def look_alikes(labels):
    """Names that a person takes for one and the same -> list of lists of them."""
    alike = {}
    for label in labels:
        seen = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
        seen = "".join(char for char in seen if unicodedata.category(char)[0] not in "ZC")
        alike.setdefault(re.sub(UNSEEN, "", seen), []).append(label)
    return [names for names in alike.values() if len(names) > 1]


def unknown_share(tokenizer, rows):
    """The part of the tokens of rows (tuples of texts) that the tokenizer does not know, 0.0 to 1.0."""
    found = [tokenizer.ids(text) for texts in rows for text in texts] if tokenizer.unk_id is not None else []
    return sum(ids.count(tokenizer.unk_id) for ids in found) / max(1, sum(map(len, found)))


def unknown_line(shares):
    """{name of some rows: `unknown_share`} -> a list with the sentence that warns; [] if all is well."""
    many = [f"{share:.0%} of the tokens in {name}" for name, share in shares.items() if share >= UNKNOWN]
    return [f"{', '.join(many)} are unknown to this model's tokenizer, and all look the same to it: take a "
            "model that was made for the language and script of these texts"] if many else []


class UnknownTokens:
    """watch(rows), for each window of a stream, warns on standard error once if it has too many of them."""

    def __init__(self, tokenizer):
        self.tokenizer, self.told = tokenizer, False

    def __call__(self, rows):
        if not self.told:
            some = rows[::1 + len(rows) // SOME_ROWS]
            for line in unknown_line({"the texts": unknown_share(self.tokenizer, some)}):
                self.told = True
                print(f"WARNING: {line}", file=sys.stderr, flush=True)
