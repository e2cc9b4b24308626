"""What is to be compared? Models x methods x readouts x settings, each once, and those that cannot be with the reason why.

A candidate is one row of the comparison. It holds the settings of its runs, all but the seed and the number of rows.
Whether it can be is asked before the first run: the model is built on the "meta" device, where no weight is read.
"""
import itertools
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..errors import InputError, did_you_mean
from ..files import find_model, short
from ..cli.settings import METHODS, Settings, flag, idle, kind_of, read_settings

BASELINES = ("majority", "bag-of-words")
SHIPPED = ("mini-bert", "mini-llama", "mini-t5")
TUNED = ("full", "lora", "qlora", "head")
OWN = ("model", "out", "rows_per_class", "seed")           # settings that the comparison itself decides
ROWS = ("data", "label_column", "several_labels", "quoting")                # and those that all share
KINDS = {f.name: type(f.default) for f in fields(Settings)}


@dataclass(frozen=True)
class Candidate:
    """One row: the model as it was named, what its runs are made with, and by which of the sweep's values."""
    model: str
    settings: Settings
    own: str = ""                                          # the model's own settings, as in a label
    sweep: dict = field(default_factory=dict)              # setting -> its value in this candidate
    tuned: str = ""                                        # the method's own settings, as they were given

    @property
    def baseline(self):
        return self.model in BASELINES

    @property
    def group(self):
        """What a sweep chooses within."""
        return self.model, self.settings.method, self.settings.readout, self.tuned

    @property
    def swept(self):
        return ",".join(filter(None, [self.tuned, *(f"{key}={value}" for key, value in self.sweep.items())]))


def read_pair(pair, where):
    """"lr=1e-4" -> ("lr", 0.0001); InputError, beginning with `where`, unless it is a setting of a model and its kind."""
    key, _, value = pair.partition("=")
    if key not in KINDS or key in OWN + ROWS:
        raise InputError(f"{where}: {key!r} is not a setting of a model")
    try:
        return key, KINDS[key](value)
    except ValueError:
        raise InputError(f"{where}: {key} should be a {KINDS[key].__name__}, is {value!r}") from None


def read_own(text, flag="--models"):
    """"mini-bert@lr=1e-4,pool=mean" -> ("mini-bert", {"lr": 1e-4, "pool": "mean"})."""
    name, _, own = text.partition("@")
    return name, dict(read_pair(pair, f"{flag} {text}") for pair in filter(None, own.split(",")))


def read_sweep(given):
    """["lr=1e-4,3e-4", "rank=4,8"] -> a list of {"lr": ..., "rank": ...}, their product; [{}] for none."""
    values = {}
    for text in given:
        key, _, listed = text.partition("=")
        if key in ("method", "readout"):
            raise InputError(f"--sweep {text}: name them with --{key}s: each of these is a row of its own")
        if key in values:
            raise InputError(f"--sweep: {key} is named twice")
        values[key] = list(dict.fromkeys(read_pair(f"{key}={value}", f"--sweep {text}")[1] for value in listed.split(",")))
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


def make(text, method, readout, swept, flags, readouts):
    """The candidate of one combination. readouts: all that the comparison has.

    A model's own settings go over the sweep's, these over the method's own, all over the flags; flags that only another
    readout of the comparison, or another method, reads are left out of it.
    """
    (name, own), (method, tuned) = read_own(text), read_own(method, "--methods")
    tuned = {} if "method" in own else tuned
    given = {**flags, **tuned, "method": method, "readout": readout, **swept, **own, "model": name}
    useless = idle({**vars(Settings()), **given})
    for key in sorted(key for key in tuned if useless.get(key, "").startswith("--method")):
        raise InputError(f"--methods {method}: reads no {key}: leave it out")
    for key, wanted in useless.items():
        meant = key in own and "readout" in own
        if wanted.startswith("--method") or len(readouts) > 1 and not meant:
            given.pop(key, None)
    kept = {key: value for key, value in swept.items() if key not in own and key in given}
    s = read_settings(given)
    pairs = [pair for pair in text.partition("@")[2].split(",") if pair]
    said = [pair for pair in pairs if pair.partition("=")[0] not in ("method", "readout")]      # a label names these anyway
    tuned = ",".join(f"{key}={value}" for key, value in tuned.items() if key not in swept and key not in own)
    return Candidate(text, s, ",".join(said), kept, tuned)


def expand(models, methods, readouts, sweep, flags):
    """All candidates, in the order of the table. sweep: as read_sweep gives it; flags: settings, for all of them."""
    for method in (text.partition("@")[0] for text in methods):
        if kind_of(method) not in METHODS:
            raise InputError(f"--methods {short(method)}: known are {', '.join(METHODS)}"
                             + did_you_mean(method, METHODS))
    used, found = {*readouts}, []
    for text in models:
        used |= {read_own(text)[1].get("readout", readouts[0])} if text not in BASELINES else set()
    for text in models:
        if text in BASELINES:
            found.append(Candidate(text, read_settings({k: v for k, v in flags.items() if k in (*ROWS, "text_column")})))
            continue
        find_model(text.partition("@")[0])
        for method, readout, swept in itertools.product(methods, readouts, sweep):
            one = make(text, method, readout, swept, flags, used)
            if not any(one.settings == other.settings for other in found if not other.baseline):
                found.append(one)
    for key in sweep[0] if sweep else ():
        if not any(key in one.sweep for one in found):
            raise InputError(f"--sweep {key}: no method and readout of this comparison reads it: leave it out")
    read = [set(flags) - set(idle(vars(one.settings))) for one in found if not one.baseline]
    for key in flags if read else ():
        if not any(key in one for one in read):
            raise InputError(f"{flag(key)}: no method and readout of this comparison reads it: "
                             "leave it out")
    return found


def how(candidate):
    """What its label says behind the model: ", lora, labels"."""
    return "" if candidate.baseline else f", {candidate.settings.method}" + ", labels" * (candidate.settings.readout == "labels")


def labels_of(candidates):
    """A short name for each candidate's group -> {group: label}; models of one name by their whole path, and with a method
    that comes more than once its own settings."""
    def label(c, whole):
        name = c.model.partition("@")[0]
        several = len({one.tuned for one in candidates if one.group[:3] == c.group[:3]}) > 1
        return (name if whole else Path(name).name) + (f"@{c.own}" if c.own else "") + how(c) + f" {c.tuned}" * several
    brief = {c.group: label(c, False) for c in candidates}
    return {c.group: label(c, list(brief.values()).count(brief[c.group]) > 1) for c in candidates}


def obstacle(candidate, data):
    """Why this candidate cannot be, in one line; "" if nothing is seen against it. No weights are read."""
    from ..cli import build as building
    from ..classify.classifier import Classifier
    from ..tuning import tune
    from ..tuning.quant_files import open_checkpoint
    s = candidate.settings
    try:
        building.task_kind(s).check_columns(data.columns, s.readout)
        if s.method == "qlora" and s.weights == "random":
            raise InputError("qlora: there is nothing to learn in random weights that are frozen")
        options = building.options_of(s, data.columns)
        model = Classifier.empty(open_checkpoint(s.model), data.labels, **options)
        recipe = building.recipe_of(s)
        tune(model, {**recipe, "method": "lora"} if s.method == "qlora" else recipe, s.seed)       # four bits need weights
    except InputError as error:
        return str(error)
    except NotImplementedError:                             # a value is looked at that "meta" has not: the run will tell
        return ""
    return ""
