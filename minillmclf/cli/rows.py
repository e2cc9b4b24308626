"""The rows of a run: read them, let the data doctor look, encode them, write predictions.csv."""
import math
import random
from collections import Counter

from ..errors import InputError
from ..files import short, write_text
from ..text.data import load_data
from ..text.doctor import examine_data, unknown_share
from ..text.examples import print_note, split_names, text_column_names
from .tables import csv_text


def draw_rows(examples, per_class, seed):
    """`per_class` rows of each class, drawn by the seed; a class with fewer gives all it has, and
    this is said once."""
    if note := too_few_note(examples, per_class):
        print_note(note)
    order = sorted(examples, key=lambda e: (e.label, e.texts))
    random.Random(f"rows:{seed}").shuffle(order)
    seen, drawn = {}, []
    for example in order:
        seen[example.label] = seen.get(example.label, 0) + 1
        if seen[example.label] <= per_class:
            drawn.append(example)
    return drawn


def too_few_note(examples, per_class):
    """A line to print or write where a class has fewer than `per_class` rows, else ""."""
    rows = Counter(e.label for e in examples)
    few = [label for label in sorted(rows, key=rows.get) if rows[label] < per_class]
    if not few:
        return ""
    return (f"{len(few)} of {len(rows)} classes have fewer than {per_class} train rows and "
            f"give all of them: {short(few[0])} has {rows[few[0]]}")


def load_dataset(s, table=None):
    """The Dataset of a run: columns and number of training rows are those of the settings.
    table: a Table in memory, instead of the file s.data."""
    from .build import task_class                      # torch takes seconds, --help should not
    kind = task_class(s)
    data = load_data(table or s.data, s.text_column or None, s.label_column or None, s.seed,
                     kind.MULTI_LABEL, s.quoting, needs_dev=s.dev == "split")
    kind.check_columns(data.columns, s.readout)
    data = hold_out_as_asked(s, data)
    if s.rows_per_class:
        data.train = draw_rows(data.train, s.rows_per_class, s.seed)
    return data


def hold_out_as_asked(s, data):
    """With --dev none and cross, the dev rows that were held out of train go back -> data.
    InputError where the user marked dev rows, or where there are no test rows to judge a model by.
    """
    if s.dev == "split":
        return data
    if data.source["dev_from_train"] and data.test:
        data.train, data.dev = data.train + data.dev, []
    if data.dev:
        raise InputError(f"--dev {s.dev}: {short(s.data, 200)} has dev rows of its own, or no test "
                         "rows beside them; let these choose: --dev split")
    return data


def diagnose_data(model, data):
    """The data doctor's Report; lengths are counted in the model's own tokens."""
    from ..tuning.prompt import new_word_ids
    lengths = {split: [model.head.count_tokens(model.tokenizer, row.texts)
                       for row in getattr(data, split)] for split in ("train", "dev", "test")}
    setting, max_tokens = model.head.length_limit(model.max_length)
    unknown = {split: unknown_share(model.tokenizer, [e.texts for e in getattr(data, split)])
               for split in lengths}
    remedy = f"raise {setting}"
    if setting == "max_length" and max_tokens >= (model.backbone.max_input_tokens or math.inf):
        ways = [] if model.head.label_options else ["--truncation-side middle keeps both ends"]
        if ways and model.head.max_texts == 2 and not new_word_ids(model):
            ways.insert(0, "--windows mean reads them whole")
        remedy = "the model takes no more" + ": " * bool(ways) + ", ".join(ways)
    return examine_data(data, lengths, max_tokens, remedy, unknown)


def write_predictions(path, examples, probabilities, labels, answers=None):
    """Write predictions.csv: line in the source, texts, label, answer, probability of each class.

    probabilities: (N, C); answers: default the likeliest classes. Texts are written as they are,
    even one like =1+1, which a spreadsheet would compute.
    """
    names = text_column_names(len(examples[0].texts))
    answers = answers or [labels[p.argmax()] for p in probabilities]
    rows = [[e.row, *e.texts, e.label, answer, *(f"{x:.6f}" for x in p)]
            for e, answer, p in zip(examples, answers, probabilities)]
    header = ["line", *names, "label", "predicted", *(f"p_{name}" for name in labels)]
    write_text(path, csv_text(header, rows))


def encode_split(model, examples, training=False):
    """Encode one split for the loop -> plan.Split."""
    from ..training.plan import Split
    return Split(encode_examples(model, examples, training)[0], model.task.targets(examples))


def encode_examples(model, examples, training=False):
    """As Classifier.encode of the texts of Examples; an InputError names the line in the file."""
    return model.encode([e.texts for e in examples], training, [e.row for e in examples])


def reading_of(s, data):
    """How the rows of a run are read -> dict, which its model saves (Classifier.set_reading)."""
    return {"text_column": list(data.columns),
            "label_column": s.label_column or data.label_column, "quoting": s.quoting}


def text_columns(model, asked, columns=()):
    """The text columns to read for a model: those of --text-column (`asked`), else those that it
    was trained on; None, which means the default columns, if neither is known. columns: of the
    file. InputError for another number of columns than it was trained on."""
    known = model.reading["text_column"] if model.reading else None
    names = list(split_names(asked, columns)) if asked else known
    if known and len(names) != len(known):
        raise InputError(f"--text-column {short(asked)}: names {len(names)}, and this model was "
                         f"trained on {len(known)} text(s) a row ({', '.join(known)}): name all")
    fields = model.head.label_options.get("fields", ["text"])
    return names or (None if fields in (["text"], ["text_a", "text_b"]) else fields)


def reading_options(model, flags):
    """--quoting, of the flags or else the model -> keywords of text.data's readers."""
    quoting = getattr(flags, "quoting", None) or (model.reading or {}).get("quoting")
    return {"quoting": quoting} if quoting else {}
