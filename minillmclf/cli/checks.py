"""Which values of the settings are refused, and which combinations. The settings: settings.py."""
import math
import re
from dataclasses import fields

from ..errors import InputError, did_you_mean
from ..files import short

METHODS = ("full", "head", "last-N", "bitfit", "houlsby", "pfeiffer", "lora", "dora", "qlora",
           "prefix", "prompt")
RANGES = (               # (what a value should be, the test of it, names)
    ("1 or more", lambda v: v >= 1, "batch_size eval_batch_size save_every rank "
     "adapter_size virtual_tokens max_windows max_document"),
    ("0 or more", lambda v: v >= 0, "epochs rows_per_class max_length overlap min_steps "
     "batch_tokens micro_batch_size gradient_accumulation weight_decay clip patience focal_gamma "
     "head_lr"),
    ("more than 0", lambda v: v > 0, "lr alpha"),
    ("from 0 to below 1", lambda v: 0 <= v < 1, "warmup label_smoothing adapter_dropout"),
    ("above 0 and not above 1", lambda v: 0 < v <= 1, "layer_decay"),
    ("from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63, "seed"),
    ("a finite number", math.isfinite, "lr head_lr alpha weight_decay focal_gamma clip"))
GOES_WITH = (            # (setting, values, names): names are read only with one of the values
    ("readout", ("labels",), "template label_texts instruction end score_by"),
    ("readout", ("head",), "pool preference truncation_side windows head_init head_lr"),
    ("windows", ("mean", "max", "attention"), "overlap max_windows max_document"),
    ("method", ("lora", "dora", "qlora"), "rank alpha adapter_dropout use_rslora targets bias"),
    ("method", ("qlora",), "quantise"),
    ("method", ("houlsby", "pfeiffer"), "adapter_size"),
    ("method", ("prefix", "prompt"), "virtual_tokens"),
    ("method", ("prefix",), "projection"),
    ("method", tuple(m for m in METHODS if m not in ("head", "prefix", "prompt")), "layer_decay"))
SINGLE_LABEL_ONLY = ("readout", "preference", "swap", "rows_per_class", "label_smoothing",
                     "sampling", "focal_gamma")
PATIENCE = "--patience {patience} waits for a better result on dev rows: --dev split"
WITHOUT_EFFECT = (       # (name, has this setting no effect?, the error). Refused only if the user
    # gave it: a run.json of an earlier version may have such a setting
    ("patience", lambda s: s.patience and s.dev == "none", PATIENCE),
    ("head_lr", lambda s: s.objective == "contrastive" and s.head_lr,
     "--objective contrastive learns a body at --lr, and its last layer is a probe: leave out "
     "--head-lr"),
    ("head_init", lambda s: s.objective == "contrastive" and s.head_init == "random",
     "--objective contrastive fits a probe as the head: leave out --head-init random"),
    ("batch_size", lambda s: s.objective == "contrastive" and s.batch_size < 4,
     "--objective contrastive compares two rows of each of two classes: --batch-size "
     "{batch_size} should be 4 or more"))
CONTRADICTIONS = (       # (is it one?, the error)
    (lambda s: s.epochs == 0 and s.head_init == "random",
     "--epochs 0: should be 1 or more; without a step only --head-init probe gives a head"),
    (lambda s: s.dev == "cross" and s.patience, PATIENCE),
    (lambda s: s.dev == "cross" and s.multi_label == "on",
     "--dev cross deals the rows of each class into folds: --multi-label off, or --dev split"),
    (lambda s: s.windows != "none" and s.method == "prompt",
     "--method prompt puts its words before a whole row, not before each of its windows: "
     "--windows none"),
    (lambda s: s.windows != "none" and s.parallel == "fsdp",
     "--parallel fsdp needs as many forward passes in every process, and documents differ in "
     "windows: --parallel ddp"),
    (lambda s: s.dtype == "bf16" and s.method == "full",
     "--dtype bf16 is for matrices that stay frozen, and --method full trains all of them: take "
     "--precision bf16, or --method lora"),
    (lambda s: s.dtype == "bf16" and s.parallel == "fsdp",
     "--parallel fsdp shares out tensors of one dtype: --dtype fp32, or --parallel ddp"),
    (lambda s: s.objective == "completion" and s.readout == "head",
     "--objective completion goes with --readout labels"),
    (lambda s: s.objective == "contrastive" and (s.readout == "labels" or s.method == "head"),
     "--objective contrastive trains a body under a head: --readout head, and a --method that "
     "changes the body"),
    (lambda s: s.objective == "contrastive" and s.multi_label == "on",
     "--objective contrastive is for one label a row: --multi-label off"),
    (lambda s: s.objective == "contrastive" and (
        s.micro_batch_size or s.gradient_accumulation or s.batch_tokens or s.sampling != "none"),
     "--objective contrastive compares all rows of a step, and draws them by class: leave out "
     "--micro-batch-size, --gradient-accumulation, --batch-tokens and --sampling"),
    (lambda s: (s.head_init == "probe" or s.objective == "contrastive") and (
        s.windows != "none" or s.preference != "none"),
     "--head-init probe and --objective contrastive need one vector a row: --windows none and "
     "--preference none"),
    (lambda s: s.objective == "completion" and (
        s.class_weights != "none" or s.label_smoothing or s.focal_gamma),
     "--objective completion learns words, not classes: --class-weights, --label-smoothing and "
     "--focal-gamma go with --objective classes"),
    (lambda s: s.focal_gamma and s.label_smoothing,
     "--focal-gamma and --label-smoothing are two answers to one question: use one of them"),
    (lambda s: s.sampling == "balanced" and s.class_weights == "balanced",
     "--sampling balanced and --class-weights balanced would correct an imbalance twice: use one "
     "of them"),
    (lambda s: s.gradient_accumulation and s.micro_batch_size,
     "--gradient-accumulation {gradient_accumulation} and --micro-batch-size {micro_batch_size} "
     "both divide a step: use one of them"),
    (lambda s: s.gradient_accumulation > s.batch_size,
     "--gradient-accumulation {gradient_accumulation}: a step has {batch_size} rows only: lower "
     "it, or raise --batch-size"),
    (lambda s: s.multi_label == "off" and "," in s.label_column,
     "--label-column {label_column:.60}: a column for each class goes with --multi-label"),
    (lambda s: s.multi_label == "off" and s.metric in ("exact_match", "micro_f1"),
     "--metric {metric} goes with --multi-label"),
    (lambda s: s.multi_label == "on" and s.metric == "accuracy",
     "--metric accuracy is for one label a row: with --multi-label choose by log_loss, "
     "exact_match, micro_f1, macro_f1 or ece"))


def check(s, given=()):
    """InputError for a wrong value, for two that contradict each other, or for an unused one.

    s: Settings, which are returned; given: names that the user set. If one of these is not used,
    even its default is refused.
    """
    for f in fields(s):
        refuse_unknown(flag(f.name), getattr(s, f.name), f.metadata["choices"])
    if method_kind(s.method) not in METHODS:
        refuse_unknown("--method", s.method, METHODS,
                       ", with N from 1 to the model's blocks")
    for words, holds, names in RANGES:
        for name in names.split():
            if not holds(getattr(s, name)):
                raise InputError(f"{flag(name)} {getattr(s, name)}: should be {words}")
    for name, wanted in unread_settings(vars(s)).items():
        if name in given or not is_default(s, name):
            raise InputError(f"{flag(name)} goes with {wanted}")
    for contradict, words in CONTRADICTIONS:
        if contradict(s):
            raise InputError(words.format(**vars(s)))
    for name, has_no_effect, words in WITHOUT_EFFECT:
        if name in given and has_no_effect(s):
            raise InputError(words.format(**vars(s)))
    for name in SINGLE_LABEL_ONLY if s.multi_label == "on" else ():
        if not is_default(s, name):
            raise InputError(f"{flag(name)} {getattr(s, name)} is for one label a row: "
                             "leave it out, or say --multi-label off")
    return s


def refuse_unknown(name, value, known, more=""):
    """InputError unless a value is among the known ones. An empty `known` allows all values."""
    if known and value not in known:
        raise InputError(f"{name} {short(value)[1:-1]}: known are {', '.join(known)}{more}"
                         + did_you_mean(value, known))


def flag(name):
    """The flag of a setting: "batch_size" -> "--batch-size"."""
    return "--" + name.replace("_", "-")


def is_default(s, name):
    """Has a setting its default value?"""
    return getattr(s, name) == getattr(type(s), name)


def method_kind(method):
    """The entry of METHODS for a method: "last-3" -> "last-N", "lora" -> "lora"; "last-N" -> ""."""
    if re.fullmatch(r"last-[1-9]\d*", method):
        return "last-N"
    return "" if method == "last-N" else method


def unread_settings(values):
    """All settings {name: value} -> {name of one that is not read: the flag that it goes with}."""
    unread = {}
    for key, wanted, names in GOES_WITH:
        value = method_kind(values[key]) if key == "method" else values[key]
        if key in unread or value not in wanted:
            *first, last = wanted
            either = f"{', '.join(first)} or {last}" if first else last
            reason = unread.get(key, f"{flag(key)} {either}")
            unread = {**dict.fromkeys(names.split(), reason), **unread}   # the first reason stays
    return unread


def refuse_multi_label(s, command):
    """Raise InputError for multi-label settings in a command that is for one label a row."""
    if s.multi_label == "on" or "," in s.label_column:
        raise InputError(f"{command} is for one label a row: --multi-label, or a column for each "
                         "class, goes with train, evaluate and predict")
