"""The configurations of a comparison: models x methods x readouts x settings, none twice.

A configuration is the settings that the runs of a table row share: all but the seed and the number
of training rows. Not here: which can be trained (comparison.py), training them (runs.py).
"""
import itertools
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..cli.checks import METHODS, flag, method_kind, unread_settings
from ..cli.settings import Settings, read_settings, with_current_names
from ..errors import InputError, did_you_mean
from ..files import find_model, short

BASELINES = ("majority", "bag-of-words")
SHIPPED_MODELS = ("mini-bert", "mini-llama", "mini-t5")
DEFAULT_METHODS = ("full", "lora", "qlora", "head")
# the comparison decides these, and needs dev rows
DECIDED_SETTINGS = ("model", "out", "rows_per_class", "seed", "few_rows", "dev")
SHARED_SETTINGS = ("data", "label_column", "multi_label", "quoting")         # all runs share these
SETTING_TYPES = {f.name: type(f.default) for f in fields(Settings)}


@dataclass(frozen=True)
class Configuration:
    """model: as on the command line, "mini-bert@lr=1e-4"; model_settings: "lr=1e-4" of it; sweep:
    {setting: value} of --sweep; method_settings: "rank=16" of "lora@rank=16"."""
    model: str
    settings: Settings
    model_settings: str = ""
    sweep: dict = field(default_factory=dict)
    method_settings: str = ""

    @property
    def is_baseline(self):
        return self.model in BASELINES

    @property
    def group(self):
        """Configurations of one group differ in --sweep only; the best of them gets a row."""
        return self.model, self.settings.method, self.settings.readout, self.method_settings

    @property
    def row_settings(self):
        """The settings of its method and of --sweep: "rank=16,lr=0.001"."""
        pairs = [f"{key}={value}" for key, value in self.sweep.items()]
        return ",".join(filter(None, [self.method_settings, *pairs]))

    @property
    def label_suffix(self):
        """What the label of its row says after the model: ", lora, labels"."""
        words = [] if self.is_baseline else ["", self.settings.method]
        if self.settings.readout == "labels":
            words.append("labels")
        return ", ".join(words)


def read_pair(pair, where):
    """"lr=1e-4" -> ("lr", 0.0001). An InputError begins with `where`."""
    key, _, value = pair.partition("=")
    (key, value), = with_current_names({key: value}).items()
    if key not in SETTING_TYPES or key in DECIDED_SETTINGS + SHARED_SETTINGS:
        raise InputError(f"{where}: {key!r} is not a setting of a model")
    try:
        return key, SETTING_TYPES[key](value)
    except ValueError:
        kind = SETTING_TYPES[key].__name__
        raise InputError(f"{where}: {key} should be a {kind}, is {value!r}") from None


def read_own_settings(text, option="--models"):
    """"mini-bert@lr=1e-4,pool=mean" -> ("mini-bert", {"lr": 1e-4, "pool": "mean"})."""
    name, _, own = text.partition("@")
    return name, dict(read_pair(pair, f"{option} {text}") for pair in own.split(",") if pair)


def read_sweep(given):
    """["lr=1e-4,3e-4", "rank=4,8"] -> [{"lr": 1e-4, "rank": 4}, ...]: all four combinations."""
    values = {}
    for text in given:
        key, _, listed = text.partition("=")
        if key in ("method", "readout"):
            raise InputError(f"--sweep {text}: name them with --{key}s: each of these is a row of "
                             "its own")
        if key in values:
            raise InputError(f"--sweep: {key} is named twice")
        read = [read_pair(f"{key}={value}", f"--sweep {text}")[1] for value in listed.split(",")]
        values[key] = list(dict.fromkeys(read))
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


def make_configuration(model, method, readout, swept, flags, readouts):
    """One configuration. readouts: all of the comparison; swept, flags: {setting: value}.

    Highest priority first: the model's own settings (after @), the sweep's, the method's, flags.
    Flags that only another method or readout of the comparison reads are left out."""
    name, own = read_own_settings(model)
    method, of_method = read_own_settings(method, "--methods")
    if "method" in own:                                        # then `method` is not used
        of_method = {}
    row = {"method": method, "readout": readout}
    given = flags | of_method | row | swept | own | {"model": name}
    unread = unread_settings(vars(Settings()) | given)         # name -> the flag that it goes with
    for key in sorted(of_method):
        if unread.get(key, "").startswith("--method"):
            raise InputError(f"--methods {method}: reads no {key}: leave it out")
    for key, goes_with in unread.items():                      # what stays, read_settings refuses
        is_own_mistake = key in own and "readout" in own
        if goes_with.startswith("--method") or len(readouts) > 1 and not is_own_mistake:
            given.pop(key, None)
    s = read_settings(given)
    pairs = [pair for pair in model.partition("@")[2].split(",") if pair]
    shown = [pair for pair in pairs if pair.partition("=")[0] not in ("method", "readout")]
    used = [f"{key}={value}" for key, value in of_method.items() if key not in swept | own]
    sweep = {key: value for key, value in swept.items() if key not in own and key in given}
    return Configuration(model, s, ",".join(shown), sweep, ",".join(used))


def make_configurations(models, methods, readouts, sweep, flags):
    """All configurations, in the order of the table. sweep: from `read_sweep`."""
    for method in methods:
        name = method.partition("@")[0]
        if method_kind(name) not in METHODS:
            raise InputError(f"--methods {short(name)}: known are {', '.join(METHODS)}"
                             + did_you_mean(name, METHODS))
    own = [read_own_settings(model)[1] for model in models if model not in BASELINES]
    all_readouts = {*readouts, *(settings.get("readout", readouts[0]) for settings in own)}
    shared = {key: flags[key] for key in (*SHARED_SETTINGS, "text_column") if key in flags}
    found, trained = [], []
    for model in models:
        if model in BASELINES:
            found.append(Configuration(model, read_settings(shared)))
            continue
        find_model(model.partition("@")[0])
        for method, readout, swept in itertools.product(methods, readouts, sweep):
            one = make_configuration(model, method, readout, swept, flags, all_readouts)
            if not any(one.settings == other.settings for other in trained):
                trained.append(one)
                found.append(one)
    check_all_read(trained, sweep, flags)
    return found


def check_all_read(trained, sweep, flags):
    """Raise InputError for a setting of the sweep, or a flag, that no configuration reads."""
    why = "no method and readout of this comparison reads it: leave it out"
    for key in sweep[0] if sweep else ():
        if not any(key in one.sweep for one in trained):
            raise InputError(f"--sweep {key}: {why}")
    unread = [unread_settings(vars(one.settings)) for one in trained]
    for key in flags:
        if unread and all(key in settings for settings in unread):
            raise InputError(f"{flag(key)}: {why}")


def labels_of(configurations):
    """A short name for each group -> {group: label}. It has the model's whole path if two models
    have the same name, and the method's settings if two groups differ in these alone."""
    def label(c, name):
        variants = {one.method_settings for one in configurations if one.group[:3] == c.group[:3]}
        own = f"@{c.model_settings}" if c.model_settings else ""
        return name + own + c.label_suffix + (f" {c.method_settings}" if len(variants) > 1 else "")
    paths = {c.group: label(c, c.model.partition("@")[0]) for c in configurations}
    names = {c.group: label(c, Path(c.model.partition("@")[0]).name) for c in configurations}
    shown = list(names.values())
    return {group: paths[group] if shown.count(name) > 1 else name
            for group, name in names.items()}
