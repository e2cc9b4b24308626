"""The data doctor: what to know about a data set before the first training step.

Here: sizes, balance, repeated texts, texts in two splits, lengths and truncation, class names that
look alike, unknown tokens; a warning for each fault, with its remedy. Not here: what makes a file
unreadable (data.py).

Two texts are the same if they differ only in case and white space (`text_key`). Texts that are
repeated with another label are counted apart: at most one of the labels is right. In multi-label
data each label of a row counts, and "another label" is another set of labels.
"""
import math
import re
import sys
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain

from .cells import split_label
from .data import Dataset
from .examples import text_key

SPLITS = ("train", "dev", "test")
MARKS = {"p50": 50, "p90": 90, "p99": 99, "max": 100}    # percentiles of the lengths of rows
MAX_IMBALANCE = 5                 # warn if largest / smallest class of train is more
FEW_ROWS = 5                      # warn if a class has fewer train rows
MANY_UNKNOWN = 0.05               # warn if at least this share of a split's tokens is unknown
INVISIBLE = "[\u034f\u115f\u1160\u2800\ufe00-\ufe0f]"       # characters that show nothing
SOME_ROWS = 256                   # about so many rows of a chunk are counted by `UnknownTokens`
new_dict = partial(field, default_factory=dict)


@dataclass
class DataReport:
    """The counts. "Per split" is {"train": number, "dev": number, "test": number}."""
    name: str
    split: str                        # where the splits come from: "column", "files" or "random"
    rows: dict = new_dict()           # per split
    classes: dict = new_dict()        # label -> per split, and "share": its part of the train rows
    imbalance: float | None = None    # largest / smallest class of train; None if one has no rows
    repeated: dict = new_dict()       # per split: rows after the first of a text, with one label
    contradicting: dict = new_dict()  # per split: the same, with different labels
    shared: dict = new_dict()         # "train/test" -> {"same_label", "conflicting"}: texts in both
    empty: dict = new_dict()          # per split: rows with an empty text
    lengths: dict = new_dict()        # split -> {"p50", "p90", "p99", "max"} of the lengths of rows
    unit: str = "words"               # of lengths: "tokens" (with special tokens), or "words"
    max_length: int | None = None
    truncated: dict = new_dict()      # per split: rows longer than max_length
    warnings: list = field(default_factory=list)     # a sentence per fault, with its remedy
    cardinality: dict = new_dict()    # multi-label only: split -> mean labels a row
    unlabelled: dict = new_dict()     # multi-label only: per split, rows without a label
    unknown: dict = new_dict()        # per split: `unknown_share` of its texts; {} if not counted

    def as_dict(self) -> dict:
        """The fields as plain dicts, lists, numbers and strings, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Aligned ASCII lines to print; other characters in names are escaped."""
        classes = [[label, *(counts[s] for s in SPLITS), f"{counts['share']:.1%}"]
                   for label, counts in self.classes.items()]
        rows = [[title, *(counts.get(s, "-") for s in SPLITS)]
                for title, counts in self.rows_to_print()]
        ratio = "unknown" if self.imbalance is None else f"{self.imbalance:.1f}"
        return [
            f"data set {escape(self.name)}, split by {self.split}", "",
            *align([["class", *SPLITS, "of train"],
                    ["all", *(self.rows[s] for s in SPLITS), ""], *classes]), "",
            f"largest / smallest class of train: {ratio}", "",
            *align([["rows", *SPLITS], *rows]), "",
            *(f"texts in both {pair.replace('/', ' and ')}: {count['same_label']} with the same "
              f"label, {count['conflicting']} with another" for pair, count in self.shared.items()),
            *(f"WARNING: {escape(warning)}" for warning in self.warnings)]

    def rows_to_print(self) -> list[tuple[str, dict]]:
        """What `lines` prints per split -> [(title, {split: number}), ...]."""
        found = [("repeated, same label", self.repeated),
                 ("repeated, other label", self.contradicting), ("empty text", self.empty)]
        for mark in MARKS:
            found.append((f"{self.unit}, {mark}",
                          {s: marks[mark] for s, marks in self.lengths.items()}))
        if self.max_length is not None:
            found.append((f"over {self.max_length} {self.unit}: truncated", self.truncated))
        if self.unlabelled:
            means = {s: f"{mean:.2f}" for s, mean in self.cardinality.items()}
            found += [("without a label", self.unlabelled), ("labels a row, mean", means)]
        return found


def escape(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def align(table) -> list[str]:
    """Rows of cells -> lines: the first column aligned left, the others right."""
    table = [[escape(str(cell)) for cell in row] for row in table]
    first, *widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]).rstrip()
            for row in table]


# ------------------------------------------------------------------------------------- counting

def examine_data(dataset: Dataset, lengths=None, max_length=None, remedy="raise max_length",
                 unknown=None) -> DataReport:
    """Fill a Report.

    lengths: {split: tokens of each row, special tokens included}; None: counted in words.
    max_length: the most tokens of a row that the model reads. remedy: what to do about longer rows.
    unknown: {split: its `unknown_share`}. ValueError if `lengths` does not fit the rows.
    """
    unit = "words" if lengths is None else "tokens"
    r = DataReport(dataset.name, dataset.source["split"], unit=unit, max_length=max_length,
                   unknown=unknown or {})
    r.classes, texts = {label: {} for label in dataset.labels}, {}
    for s in SPLITS:
        rows = getattr(dataset, s)
        if lengths is None:
            sizes = [sum(len(text.split()) for text in e.texts) for e in rows]
        else:
            sizes = list(map(int, lengths.get(s, ())))
        if len(sizes) != len(rows):
            raise ValueError(f"lengths['{s}'] has {len(sizes)} numbers for {len(rows)} rows")
        names = [split_label(e.label, dataset.multi_label) for e in rows]
        found = Counter(chain.from_iterable(names))
        for label, counts in r.classes.items():
            counts[s] = found[label]
        texts[s] = labels_of_texts(rows)
        r.rows[s] = len(rows)
        r.repeated[s] = count_repeats(texts[s], contradicting=False)
        r.contradicting[s] = count_repeats(texts[s], contradicting=True)
        r.empty[s] = sum(not all(map(str.strip, e.texts)) for e in rows)
        if rows:
            r.lengths[s] = {name: percentile(sizes, p) for name, p in MARKS.items()}
        if max_length is not None:
            r.truncated[s] = sum(size > max_length for size in sizes)
        if dataset.multi_label:
            r.unlabelled[s] = sum(not labels for labels in names)
        if dataset.multi_label and rows:
            r.cardinality[s] = sum(map(len, names)) / len(rows)
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        r.shared[f"{a}/{b}"] = count_shared(texts[a], texts[b])
    for counts in r.classes.values():
        counts["share"] = counts["train"] / max(1, len(dataset.train))
    sizes = [counts["train"] for counts in r.classes.values()]
    r.imbalance = max(sizes) / min(sizes) if min(sizes, default=0) else None
    r.warnings = [*class_warnings(r), *row_warnings(r, remedy), *unknown_warning(r.unknown)]
    return r


def labels_of_texts(examples) -> dict:
    """{text: the label of each of its rows}"""
    labels = {}
    for example in examples:
        labels.setdefault(text_key(example.texts), []).append(example.label)
    return labels


def count_repeats(texts: dict, contradicting: bool) -> int:
    """Rows after the first of each text with one label; if contradicting, with several."""
    return sum(len(labels) - 1 for labels in texts.values()
               if (len(set(labels)) > 1) == contradicting)


def count_shared(first: dict, second: dict) -> dict[str, int]:
    """The numbers of texts in both splits, with the same label and with others."""
    same = [len({*first[text], *second[text]}) == 1 for text in first.keys() & second.keys()]
    return {"same_label": sum(same), "conflicting": len(same) - sum(same)}


def percentile(numbers, percent):
    """The smallest of the numbers that `percent` % of them do not exceed (nearest rank)."""
    return sorted(numbers)[math.ceil(percent * len(numbers) / 100) - 1]


# ------------------------------------------------------------------------------------- warnings

def class_warnings(r: DataReport):
    """Yield a sentence for each fault of the classes."""
    train = {label: counts["train"] for label, counts in r.classes.items()}
    if r.imbalance is not None and r.imbalance > MAX_IMBALANCE:
        yield (f"{max(train, key=train.get)} has {r.imbalance:.1f} times the train rows of "
               f"{min(train, key=train.get)}: judge by macro-F1, and weight the classes or add "
               "rows")
    if few := [label for label in train if train[label] < FEW_ROWS]:
        yield (f"{name_some(few)} with fewer than {FEW_ROWS} train rows: add rows, or merge "
               "them with other classes")
    if r.unlabelled:
        labelled = r.rows["train"] - r.unlabelled["train"]
        if round(r.cardinality.get("train", 0) * r.rows["train"]) == labelled:
            yield ("no train row seems to have two labels: if some have, write a bar between their "
                   "names, a|b")
        if always := [label for label in train if train[label] == r.rows["train"] > 0]:
            yield (f"{name_some(always)} in every train row: no row says what it is not, so leave "
                   "it out")
    elif barred := [label for label in train if "|" in label]:
        yield (f"{name_some(barred)} with a bar in the name: if it stands between several labels "
               "of a row, --multi-label")
    for labels in look_alikes(train):
        yield (f"{name_some(labels)} whose names differ only by case, Unicode form, spaces, "
               "invisible characters, quotes around them or zeros of a number: if they are one "
               "class, write its name in one way")
    for s in ("dev", "test"):
        unseen = [label for label, counts in r.classes.items() if not counts[s]]
        if unseen and r.rows[s]:
            yield (f"{name_some(unseen)} without a {s} row: {s} scores say nothing of them, so add "
                   "rows")


def row_warnings(r: DataReport, remedy: str):
    """Yield a sentence for each fault of the rows."""
    words = "" if r.unit == "tokens" else " (counted in words; in tokens more will)"
    contradiction = "repeat a text that has two labels or more: keep the right one"
    if r.unlabelled:
        contradiction = "repeat a text with other labels: keep the right row"
    for counts, fault in (
            (r.empty, "have an empty text: remove or fill them"),
            (r.repeated, "repeat a text and its label: remove the copies"),
            (r.contradicting, f"{contradiction}, remove the others"),
            (r.truncated, f"exceed {r.max_length} tokens{words} and get truncated: {remedy}")):
        if any(counts.values()):
            numbers = ", ".join(f"{number} {s}" for s, number in counts.items() if number)
            yield f"{numbers} row(s) {fault}"
    yield from shared_warnings(r)


def shared_warnings(r: DataReport):
    """Yield a sentence for each two splits with texts in both."""
    for pair, count in r.shared.items():
        if sum(count.values()):
            yield (f"{sum(count.values())} text(s) of {pair.replace('/', ' stand in ')} too and "
                   f"flatter its scores: remove them from {pair.split('/')[0]}")


def name_some(labels) -> str:
    """How many labels, and the first five of them, for a message."""
    return f"{len(labels)} class(es) ({', '.join(labels[:5])}{', ...' * (len(labels) > 5)})"


def look_alikes(labels):
    """Groups of names that look the same to a person, a list each."""
    alike = {}
    for label in labels:
        key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
        key = "".join(char for char in key if unicodedata.category(char)[0] not in "ZC")
        key = re.sub(INVISIBLE, "", key).strip("\"'\u2018\u2019\u201c\u201d\u201e")
        if number := re.fullmatch(r"(-?)0*(\d+)(\.0+)?", key, re.ASCII):        # 1, 01 and 1.0
            key = number[1] + number[2]
        alike.setdefault(key, []).append(label)
    return [names for names in alike.values() if len(names) > 1]


# ------------------------------------------------------------------------------- unknown tokens

def unknown_share(tokenizer, rows):
    """The share of unknown tokens in rows (tuples of texts), 0.0 to 1.0."""
    if tokenizer.unk_id is None:
        return 0.0
    found = [tokenizer.ids(text) for texts in rows for text in texts]
    return sum(ids.count(tokenizer.unk_id) for ids in found) / max(1, sum(map(len, found)))


def unknown_warning(shares):
    """{what rows are called: their `unknown_share`} -> a list of one warning, or none."""
    many = [f"{share:.0%} of the tokens in {name}"
            for name, share in shares.items() if share >= MANY_UNKNOWN]
    if not many:
        return []
    return [f"{', '.join(many)} are unknown to this model's tokenizer, and all look the same to "
            "it: take a model that was made for the language and script of these texts"]


class UnknownTokens:
    """Called with each chunk of a file; it warns once if too many tokens are unknown."""

    def __init__(self, tokenizer):
        self.tokenizer, self.warned = tokenizer, False

    def __call__(self, rows):
        if not self.warned:
            some_rows = rows[::1 + len(rows) // SOME_ROWS]
            for line in unknown_warning({"the texts": unknown_share(self.tokenizer, some_rows)}):
                self.warned = True
                print(f"WARNING: {line}", file=sys.stderr, flush=True)
