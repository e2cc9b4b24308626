"""The rows of a run: reading them, the data doctor's findings, encoding them, predictions.csv."""
import csv
import io
import random

from ..errors import InputError
from ..files import short, write_text
from ..text.data import load_data, text_names
from .build import task_kind

HOW = ("quoting",)        # settings that say how files are read, besides the columns' names


def draw_rows(examples, per_class, seed):
    """`per_class` rows of each class, drawn by the seed; a class with fewer gives all it has."""
    order = sorted(examples, key=lambda e: (e.label, e.texts))
    random.Random(f"rows:{seed}").shuffle(order)
    taken, kept = {}, []
    for example in order:
        taken[example.label] = taken.get(example.label, 0) + 1
        if taken[example.label] <= per_class:
            kept.append(example)
    return kept


def load_dataset(s, table=None):
    """The Dataset of a run, with the columns and training rows that the settings ask for.
    table: read instead of s.data."""
    data = load_data(table or s.data, s.text_column or None, s.label_column or None, s.seed,
                     task_kind(s).MULTI_LABEL, s.quoting)
    task_kind(s).check_columns(data.columns, s.readout)
    if s.rows_per_class:
        data.train = draw_rows(data.train, s.rows_per_class, s.seed)
    return data


def diagnose(model, data):
    """The data doctor's findings, with lengths in the model's own tokens."""
    from ..text.doctor import examine, unknown_share
    from ..tuning.prompt import new_word_ids
    lengths = {split: [model.head.count_tokens(model.tokenizer, row.texts)
                       for row in getattr(data, split)] for split in ("train", "dev", "test")}
    setting, most = model.head.length_limit(model.max_length)
    unknown = {split: unknown_share(model.tokenizer, [e.texts for e in getattr(data, split)])
               for split in lengths}
    remedy = f"raise {setting}"
    if setting == "max_length" and most >= (model.backbone.max_input_tokens or most + 1):
        ways = [] if model.head.label_options else ["--truncation-side middle keeps both ends"]
        if ways and model.head.max_texts == 2 and not new_word_ids(model):
            ways.insert(0, "--windows mean reads them whole")
        remedy = "the model takes no more" + ": " * bool(ways) + ", ".join(ways)
    return examine(data, lengths, most, remedy, unknown)


def write_predictions(path, examples, probabilities, labels, answers=None):
    """predictions.csv: line in the source, texts, label, answer, and the probability of each class.

    probabilities: (N, C); answers: by default the likeliest classes. Texts are not changed, not
    even =1+1, which a spreadsheet computes.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    names = text_names(len(examples[0].texts))
    writer.writerow(["line", *names, "label", "predicted", *(f"p_{name}" for name in labels)])
    answers = answers or [labels[p.argmax()] for p in probabilities]
    for example, answer, p in zip(examples, answers, probabilities):
        row = [example.row, *example.texts, example.label, answer]
        writer.writerow([*row, *(f"{x:.6f}" for x in p)])
    write_text(path, out.getvalue())


def encode(model, examples, training=False):
    """Encode one split for the loop -> Split, how many texts were cut."""
    from ..training.plan import Split
    encoded, shortened = model.encode([e.texts for e in examples], training)
    return Split(encoded, model.task.targets(examples)), shortened


def reading_of(s, data):
    """How the rows of a run are read, for its model to remember (Classifier.set_reading)."""
    label = s.label_column or data.label_column
    more = {name: getattr(s, name) for name in HOW}
    return {"text_column": list(data.columns), "label_column": label, **more}


def text_columns(model, asked):
    """The text columns to read for a model: those of --text-column (`asked`), else those that it
    was trained on. None stands for the usual ones, where it does not know. InputError for another
    number of columns."""
    known = model.reading["text_column"] if model.reading else None
    names = [name.strip() for name in asked.split(",")] if asked else known
    if known and len(names) != len(known):
        raise InputError(f"--text-column {short(asked)}: names {len(names)}, and this model was "
                         f"trained on {len(known)} text(s) a row ({', '.join(known)}): name all")
    fields = model.head.label_options.get("fields", ["text"])
    return names or (None if fields in (["text"], ["text_a", "text_b"]) else fields)


def how_to_read(model, flags):
    """The settings HOW, from flags or else from the model -> keywords of text.data's readers."""
    known = model.reading or {}
    found = {name: getattr(flags, name, None) or known.get(name) for name in HOW}
    return {name: value for name, value in found.items() if value}
