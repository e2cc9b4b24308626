"""Few rows of each class ("few-shot"): settings that do better there than those for many rows.

Contrastive training of the body and a probe as the head, at least STEPS steps however few the rows,
a lower learning rate, all tokens pooled, and no dev rows held out of so few. With --method head the
probe alone is the answer. lessons/measurements/few_rows.md compares the ways, with encoders on five
sets, with a decoder, a T5 and other methods on three. By itself train chooses these settings only
for data whose splits it makes. What the user gives stays as it is.
"""
import math
from dataclasses import replace

from ..errors import InputError
from ..files import find_model, read_json
from ..models import MODELS
from ..models.config import read_model_config
from ..training.rates import default_lr
from .cross import assign_rows
from .launch import are_several
from .rows import hold_out_as_asked, load_dataset
from .run_folder import out_folder
from .settings import FEW, flag, with_current_names

STEPS, MOST_STEPS = 50, 150     # two batches for each batch of rows, but at least and at most so
                                # many; an epoch of more steps is finished all the same
LR_DIVISOR = 3                  # the learning rate is the usual one, divided by this


def read_run(s, flags, config=None, table=None):
    """What train and fine_tune begin with -> Settings, Dataset, a line about what was chosen or "".

    s: the Settings; flags: {name: value} that the user gave; config: as for read_settings, and then
    nothing is chosen but by --few-rows on; table: read in place of --data.
    """
    data, line = load_dataset(s, table), ""
    earlier = table is None and began_earlier(s)
    if flags.get("few_rows") == "on" or config is None and not earlier:
        given = {name for name, value in with_current_names(flags).items() if value != "auto"}
        s, line = adapt_to_rows(s, data, given)
    data = hold_out_as_asked(s, data)
    if s.dev == "cross":
        assign_rows(data.train, s.seed)          # InputError for a class of too few rows
    return s, data, line


def began_earlier(s):
    """Does --out hold a run of a version that chose nothing? It goes on as it began."""
    path = out_folder(s) / "run.json"
    try:
        return "few_rows" not in read_json(path).get("settings", {})
    except (InputError, TypeError):                       # no run there, or no readable one
        return False


def adapt_to_rows(s, data, given):
    """Choose the settings that --few-rows chooses -> (Settings, a line about them or "").

    data: text.data.Dataset; given: names of the settings that the user gave. InputError where
    --few-rows on does not go with one of them.
    """
    learned = learned_rows(s, data, given)
    if not (s.few_rows == "on" or s.few_rows == "auto" and are_few(learned, data)):
        return s, ""
    start = f"{rows_a_class(data.train, data):.0f} rows a class are few, but"
    if s.few_rows == "on":
        start = "--few-rows on:"
    left_out = f"{start} the settings for few rows are left out: "
    if reason := why_none_apply(s):
        return s, left_out + reason
    if s.few_rows == "auto" and are_several():
        return s, left_out + "they are for one process, not torchrun"
    chosen = choose(s, data, len(learned))
    chosen = {name: value for name, value in chosen.items()
              if name not in given and getattr(s, name) != value}
    try:
        adapted = replace(s, **chosen).check(given)
    except InputError as error:                  # one that the user gave does not go with them
        if s.few_rows == "on":
            raise InputError(f"--few-rows on: {error}") from None
        return s, left_out + str(error)
    words = " ".join(f"{flag(name)} {value:g}" if isinstance(value, float) else
                     f"{flag(name)} {value}" for name, value in chosen.items())
    line = (f"{rows_a_class(learned, data):.0f} rows a class are few: {words} "
            "(--few-rows off leaves these out)")
    return adapted, line if chosen else ""


def learned_rows(s, data, given):
    """The rows that are learned once the settings for few rows are chosen -> list of Examples: also
    the dev rows held out of train, unless --dev split keeps them. given: as in `adapt_to_rows`."""
    dev = s.dev if "dev" in given else choose_dev(s, data)
    return hold_out_as_asked(replace(s, dev=dev), replace(data)).train      # data stays as it is


def rows_a_class(rows, data):
    """How many of these rows a class has on average."""
    return len(rows) / len(data.labels)


def are_few(learned, data):
    """Does train by itself choose the settings for few rows? learned: from `learned_rows`."""
    random = data.source["split"] == "random"    # marked splits mean a measurement: nothing changes
    return random and rows_a_class(learned, data) < FEW


def why_none_apply(s):
    """Why the settings for few rows do not suit the way that texts are read, or ""."""
    for name, wanted in (("readout", "head"), ("windows", "none"), ("preference", "none")):
        if getattr(s, name) != wanted:
            return f"they are for {flag(name)} {wanted}"
    return ""


def choose_dev(s, data):
    """-> the --dev for few rows: none where train held out the dev rows, and test rows remain."""
    if s.multi_label == "on" or why_none_apply(s):           # thresholds are fitted on dev rows
        return s.dev
    held_out = data.source["dev_from_train"] and data.test and not s.rows_per_class
    return "none" if held_out else s.dev


def choose(s, data, learned):
    """-> {name: value} of the settings for few rows that apply to the method and the task. learned:
    how many rows are learned."""
    chosen = {"head_init": "probe"}
    if s.pool == "family" and is_encoder(s.model):
        chosen["pool"] = "mean"
    chosen["dev"] = choose_dev(s, data)
    if s.method == "head" or s.epochs == 0:                  # the probe alone
        return chosen | {"epochs": 0}
    if s.multi_label == "on" or learned == len(data.labels):     # one row a class makes no pair
        return chosen
    steps = min(MOST_STEPS, max(STEPS, math.ceil(2 * learned / s.batch_size)))
    return chosen | {"objective": "contrastive", "epochs": 1, "min_steps": steps,
                     "lr": float(f"{default_lr(s)[0] / LR_DIVISOR:.3g}")}


def is_encoder(model):
    """Is the model in this folder, or of this shipped name, an encoder?"""
    family = read_model_config(find_model(model)).get("model_type")
    return family in MODELS and MODELS[family].KIND == "encoder"
