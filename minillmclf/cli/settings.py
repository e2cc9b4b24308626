"""The settings of a run: one flat dataclass. Each field is a flag, and a key of run.json.

Here: names, defaults, --help. Not here: which values and combinations are refused (checks.py), and
what is built from the settings (build.py).
"""
import argparse
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace

from ..classify.label_text.wordings import read_template
from ..classify.sentence_vectors import sentence_settings
from ..errors import InputError, did_you_mean
from ..files import find_model, is_utf8, read_json, short
from ..training.rates import default_lr
from .checks import check, flag, is_default, unread_settings
from .four_bits import with_kind_of_file

SWITCH = "off on"                      # choices of a flag that means on when it has no value
OLD_NAMES = {                          # in run.json of the first version -> now
    "several_labels": "multi_label", "rank_stabilised": "use_rslora", "keep": "truncation_side",
    "checkpointing": "gradient_checkpointing", "focal": "focal_gamma"}
NEW_SETTINGS = ("head_init", "head_lr", "dev", "dtype")    # that the first version did not have
OLD_SIDES = {"head": "right", "tail": "left", "head+tail": "middle", "middle": "both"}  # for keep
ALIASES = {                            # other names that flags, --config and fine_tune take
    **OLD_NAMES, "learning_rate": "lr", "num_train_epochs": "epochs", "warmup_ratio": "warmup",
    "per_device_train_batch_size": "batch_size", "max_grad_norm": "clip", "lora_r": "rank",
    "lora_alpha": "alpha", "lora_dropout": "adapter_dropout"}
GROUPS = {"usual": "the usual settings", "weights": "which weights learn",
          "texts": "label texts (--readout labels)", "long": "long texts",
          "few": "few rows", "optim": "optimisation", "hardware": "hardware", "data": "data"}
ROWS_AT_ONCE = ("micro_batch_size", "eval_batch_size")  # only rounding, and dropout, see them
FEW = 50                               # rows a class, on average, below which few_rows.py chooses


def setting(default, group, text, choices="", shown=None):
    """A field of Settings. group: a key of GROUPS; text: for --help; choices: the allowed values,
    spaces between them, first what holds without the flag (but SWITCH: "off on"); shown: the
    default as --help shows it."""
    return field(default=default, metadata={
        "group": group, "help": text, "choices": tuple(choices.split()),
        "shown": default if shown is None else shown})


@dataclass
class Settings:
    """The settings of a run; lessons/reference/commands.md says more of each than --help."""
    model: str = setting("mini-bert", "usual", "a model folder, or a name in checkpoints/")
    data: str = setting("tickets", "usual", "a file, a folder, or a bundled set's name")
    text_column: str = setting("", "usual", "text column(s) (default: text, or text_a,text_b)")
    label_column: str = setting("", "usual", "label column (default: label); a,b,c: 0/1 each")
    out: str = setting("", "usual", "folder of the run (runs/MODEL-DATA-METHOD-SEED)")
    method: str = setting("full", "usual", "full, head, last-N (highest blocks), bitfit, lora, "
                          "dora, qlora, houlsby, pfeiffer, prefix or prompt")
    readout: str = setting("head", "usual", "how a class is read out", "head labels")
    epochs: int = setting(6, "usual", "passes over the training rows at most")
    lr: float = setting(3e-4, "usual", "peak learning rate; auto: by method and width", "", "auto")
    batch_size: int = setting(32, "usual", "rows of an optimiser step")
    max_length: int = setting(0, "usual", "tokens of a text (0: as many as the model takes)")
    metric: str = setting("accuracy", "usual", "dev metric that chooses the best epoch",
                          "accuracy macro_f1 log_loss ece exact_match micro_f1")
    precision: str = setting("fp32", "usual", "bf16, fp16: by autocast", "fp32 bf16 fp16")
    seed: int = setting(0, "usual", "of new head, row order, dropout and split")
    device: str = setting("auto", "usual", "auto, cpu, cuda, mps, ...")

    rank: int = setting(8, "weights", "lora, dora, qlora: rank of an update")
    alpha: float = setting(16.0, "weights", "the same: scales an update by alpha / rank")
    adapter_dropout: float = setting(0.0, "weights", "the same: dropout before an update")
    use_rslora: str = setting("off", "weights", "the same: scale alpha / sqrt(rank)", SWITCH)
    targets: str = setting("", "weights", "the same: names, all-linear, a regex (default: q, v)")
    bias: str = setting("none", "weights", "the same: biases", "none all lora_only")
    quantise: str = setting("nf4", "weights", "qlora: type of frozen weights", "nf4 fp4")
    adapter_size: int = setting(32, "weights", "houlsby, pfeiffer: width of a bottleneck")
    virtual_tokens: int = setting(20, "weights", "prefix, prompt: tokens before a text")
    projection: str = setting("off", "weights", "prefix: learn it through a small MLP", SWITCH)
    pool: str = setting("family", "weights", "how a head pools tokens",
                        "auto family first mean max last attention")
    weights: str = setting("pretrained", "weights", "weights to start from", "pretrained random")

    template: str = setting("", "texts", 'text or file: "Text: {text}\\nLabel: {label}"')
    label_texts: str = setting("", "texts", "JSON or file: text, or several, of each class")
    instruction: str = setting("", "texts", "text or file, before every text")
    end: str = setting("auto", "texts", "end token after a label", "auto none eos")
    score_by: str = setting("sum", "texts", "log-probability, all or per", "sum token char byte")
    objective: str = setting("classes", "texts", "instruction tuning, or see few rows",
                             "classes completion contrastive")

    truncation_side: str = setting("right", "long", "what is cut off", "right left middle both")
    windows: str = setting("none", "long", "read windows, and pool", "none mean max attention")
    overlap: int = setting(32, "long", "windows: tokens that neighbours share")
    max_windows: int = setting(8, "long", "windows: of a text in a training step")
    max_document: int = setting(8192, "long", "windows: tokens of a text at most")

    few_rows: str = setting("auto", "few", "choose the settings below", "auto on off")
    head_init: str = setting("random", "few", "probe: logistic regression", "random probe")
    head_lr: float = setting(0.0, "few", "learning rate of the head (0: as --lr)")
    dev: str = setting("split", "few", "none: no dev rows; cross: 5 folds", "split none cross")

    min_steps: int = setting(0, "optim", "more epochs until so many steps are made")
    patience: int = setting(0, "optim", "epochs without a better one (0: no early stop)")
    schedule: str = setting("linear", "optim", "how the rate falls", "linear cosine constant")
    warmup: float = setting(0.1, "optim", "share of steps in which the rate rises")
    weight_decay: float = setting(0.01, "optim", "of AdamW, on matrices only")
    clip: float = setting(1.0, "optim", "largest gradient norm (0: no clipping)")
    optimizer: str = setting("adamw", "optim", "bitsandbytes has the last two",
                             "adamw adamw8bit paged-adamw")
    layer_decay: float = setting(1.0, "optim", "rate of a block / that of the next higher")
    label_smoothing: float = setting(0.0, "optim", "share spread over all classes")
    focal_gamma: float = setting(0.0, "optim", "of the focal loss, usually 2 (0: none)")
    class_weights: str = setting("none", "optim", "in the loss", "none balanced")
    sampling: str = setting("none", "optim", "of training rows", "none balanced")

    dtype: str = setting("fp32", "hardware", "of the matrices that stay frozen", "fp32 bf16")
    micro_batch_size: int = setting(0, "hardware", "rows at a time on the device (0: all)")
    gradient_accumulation: int = setting(0, "hardware", "the same, as micro-batches a step")
    batch_tokens: int = setting(0, "hardware", "padded tokens of a step (0: no limit)")
    gradient_checkpointing: str = setting("off", "hardware", "less memory, half slower", SWITCH)
    deterministic: str = setting("off", "hardware", "the same in each run, on a GPU too", SWITCH)
    eval_batch_size: int = setting(64, "hardware", "rows at a time where nothing is learned")
    save_every: int = setting(100, "hardware", "steps between two states on disk")
    parallel: str = setting("ddp", "hardware", "under torchrun", "ddp fsdp")

    multi_label: str = setting("off", "data", "a row has any number of labels: a|b", SWITCH)
    preference: str = setting("none", "data", "compare two answers", "none head bradley-terry")
    swap: str = setting("none", "data", "order of two answers", "none train predict both")
    rows_per_class: int = setting(0, "data", "training rows, drawn by the seed (0: all)")
    quoting: str = setting("auto", "data", "of CSV and TSV", "auto double none")
    baselines: str = setting("on", "data", "off leaves out the bag of words, which is slow", SWITCH)

    check = check                          # a method, check(given): see checks.py

    def decisive_settings(self):
        """{name: value} of what the result depends on: a run is continued only with the same.

        The other settings change a result by rounding and by dropout's random numbers only.
        """
        others = ("out", "save_every", "device", "deterministic", "parallel", "baselines",
                  "few_rows", "gradient_checkpointing", "gradient_accumulation", *ROWS_AT_ONCE)
        # few_rows is in what it has chosen; a run that is not finished goes on on its own kind of
        # device only (run_folder.py)
        return {name: value for name, value in asdict(self).items() if name not in others}

    def decisive_under_old_names(self):
        """The same with the first version's names, and with ROWS_AT_ONCE, which it had among them:
        compare finds its finished runs by these."""
        old_names = {new: old for old, new in OLD_NAMES.items()}
        old_sides = {new: old for old, new in OLD_SIDES.items()}
        decisive = self.decisive_settings() | {name: getattr(self, name) for name in ROWS_AT_ONCE}
        settings = {old_names.get(n, n): value for n, value in decisive.items()
                    if n not in NEW_SETTINGS or not is_default(self, n)}
        return settings | {"keep": old_sides[self.truncation_side]}


def add_settings(parser, names=None, grouped=True, but=()):
    """Add a flag for each field (or those in `names`), not those in `but`, under the headings of
    GROUPS.

    A flag that is not given is missing from the namespace, so that --config can fill it.
    """
    groups = {}
    for f in fields(Settings):
        if f.name not in but and (names is None or f.name in names):
            title = GROUPS[f.metadata["group"]]
            if title not in groups:
                groups[title] = parser.add_argument_group(title) if grouped else parser
            add_flag(groups[title], f)
    return parser


def is_switch(name):
    """May the flag of a setting stand without a value, which means on?"""
    return " ".join(Settings.__dataclass_fields__[name].metadata["choices"]) == SWITCH


def add_flag(parser, f):
    """Add the flag of one field, and its aliases, which --help does not show. --help lists the
    choices with the default first."""
    choices, words = f.metadata["choices"], f.metadata["help"]
    kind = learning_rate if f.name == "lr" else type(f.default)
    options = {"dest": f.name, "choices": choices or None, "default": argparse.SUPPRESS,
               "metavar": "N" if kind is int else "X"}
    if is_switch(f.name):
        options |= {"nargs": "?", "const": "on", "metavar": "off"}
        words += f" [{f.default}]"
    elif choices:
        words += f": {', '.join(choices)}"
    elif f.metadata["shown"] != "":
        words += f" [{f.metadata['shown']}]"
    parser.add_argument(flag(f.name), type=kind, help=words, **options)
    for alias in (name for name, own in ALIASES.items() if own == f.name):
        kind = side_from_keep if alias == "keep" else kind
        parser.add_argument(flag(alias), type=kind, help=argparse.SUPPRESS, **options)


def learning_rate(text):
    """A learning rate as it is typed: a number, or auto."""
    return text if text == "auto" else float(text)


def side_from_keep(text):
    """The value of the old --keep (which end is kept) -> truncation_side (which is cut off)."""
    return OLD_SIDES.get(text, text)


def with_current_names(values):
    """Translate old names and aliases in {name: value}. InputError for a setting given twice."""
    renamed = {}
    for name, value in values.items():
        new = ALIASES.get(name, name)
        if new in renamed:
            raise InputError(f"{name} is given twice, under another name too: {new} is enough")
        renamed[new] = side_from_keep(value) if name == "keep" and isinstance(value, str) else value
    return renamed


def read_settings(arguments, config=None):
    """Flags {name: value}, over the settings of a file, over the defaults -> Settings.

    config: path of a run.json, or of a JSON object with settings. A learning rate that is missing
    or "auto" is set by default_lr; gradient_accumulation becomes micro_batch_size.
    """
    arguments, values, is_run = with_current_names(arguments), {}, False
    if config:
        record = read_json(config)
        values, is_run = record.get("settings", record), "settings" in record
        if not isinstance(values, dict):
            raise InputError(f"{config}: settings should be an object, is {short(values)}")
        values = with_current_names(values)
        values.pop("out", None)
        if "gradient_accumulation" in arguments:
            values.pop("micro_batch_size", None)
    values = check_types(values | arguments, config or "settings")
    if "," in values.get("label_column", ""):
        values.setdefault("multi_label", "on")
    if values.get("multi_label") == "on":
        values.setdefault("metric", "log_loss")          # accuracy is for one label a row
    if (values.get("method"), values.get("head_init")) == ("head", "probe"):
        values.setdefault("epochs", 0)                   # the probe is the answer
    lr_is_auto = "lr" not in values
    if is_run:                             # run.json holds all settings, also those never read
        for name in set(unread_settings(vars(Settings(**values)))) - set(arguments):
            values.pop(name, None)
    s = read_named_files(Settings(**values).check(arguments))
    s = with_sentence_settings(s, values)
    s = with_kind_of_file(s, arguments if is_run else values)
    if s.gradient_accumulation > 1:
        s = replace(s, micro_batch_size=math.ceil(s.batch_size / s.gradient_accumulation))
    s = replace(s, gradient_accumulation=0)
    return replace(s, lr=default_lr(s)[0]) if lr_is_auto else s


def with_sentence_settings(s, given):
    """Set pool, if it is "auto" or missing from `given`, and max_length, if missing, to what a
    sentence-transformers folder says -> Settings."""
    if s.readout != "head" or given.get("pool", "auto") != "auto":
        return s
    try:
        folder = find_model(s.model)
    except InputError:                         # the model is not there, which building it will say
        return replace(s, pool="family")
    found = {name: value for name, value in sentence_settings(folder).items()
             if name == "pool" or name not in given}
    return replace(s, **{"pool": "family", **found})


def check_types(values, where):
    """Check names and types of settings {name: value} -> them, without lr "auto". 1 may be 1.0."""
    known, checked = {f.name: type(f.default) for f in fields(Settings)}, {}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown setting(s) {', '.join(map(short, unknown[:6]))}"
                         f"{did_you_mean(unknown[0], known)}; known: {', '.join(known)}")
    for name, value in values.items():
        if type(value) is int and known[name] is float:
            value = float(value)
        if (name, value) == ("lr", "auto"):
            continue
        if type(value) is not known[name]:
            raise InputError(f"{where}: {name} should be {known[name].__name__}, is {short(value)}")
        if not is_utf8(value):
            raise InputError(f"{where}: {flag(name)} {short(value, 200)}: is not UTF-8, and could "
                             "not be written into run.json: rename the file or the folder")
        checked[name] = value
    return checked


def read_named_files(s):
    """Replace names of files by what the files hold, so that run.json has it -> Settings."""
    texts = s.label_texts
    if texts and not texts.lstrip().startswith("{"):
        texts = json.dumps(read_json(texts), ensure_ascii=False)
    return replace(s, template=read_template(s.template),
                   instruction=read_template(s.instruction), label_texts=texts)
