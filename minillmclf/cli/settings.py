"""The settings of a run, one flat dataclass. The command line, `--config run.json` and the saved run.json are three views
of it: each field below is a flag, and a key."""
import argparse
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields, replace

from ..errors import InputError, did_you_mean
from ..files import read_json, short


def setting(default, text, **more):
    """A field with what --help says of it; `more`: the choices, where they are few."""
    return field(default=default, metadata={"help": text, **more})


@dataclass
class Settings:
    model: str = setting("mini-bert", "a Hugging Face folder, or the name of one in checkpoints/")
    data: str = setting("tickets", "a .csv/.tsv/.jsonl file, a folder with train/dev/test files, or a bundled set's name")
    out: str = setting("", "folder of the run (default: runs/MODEL-DATA-METHOD-SEED)")
    method: str = setting("full", "which weights learn: full, head, last-N (the N highest blocks and the head), bitfit, lora, "
                                  "dora, qlora, houlsby, pfeiffer, prefix or prompt; what is said of adapters below is for these")
    rank: int = setting(8, "lora, dora, qlora: rank of an update")
    alpha: float = setting(16.0, "lora, dora, qlora: an update is multiplied with alpha / rank")
    adapter_dropout: float = setting(0.0, "lora, dora, qlora: dropout on what an update reads")
    rank_stabilised: str = setting("off", "lora, dora, qlora: on divides alpha by sqrt(rank)", choices=["off", "on"])
    targets: str = setting("", "lora, dora, qlora: names of linear layers with commas between, all-linear, or a regular "
                               "expression for whole paths (default: queries and values)")
    bias: str = setting("none", "lora, dora, qlora: which biases learn besides", choices=["none", "all", "lora_only"])
    quantise: str = setting("nf4", "qlora: the 4-bit numbers of the frozen layers", choices=["nf4", "fp4"])
    adapter_size: int = setting(32, "houlsby, pfeiffer: width in the middle of a bottleneck")
    virtual_tokens: int = setting(20, "prefix, prompt: tokens before every text")
    projection: str = setting("off", "prefix: on makes keys and values by a small network while they learn", choices=["off", "on"])
    readout: str = setting("head", "how a class is read out: by a head, or as label texts, the model's own words",
                           choices=["head", "labels"])
    template: str = setting("", 'labels: what the model reads, "Review: {text}\\nSentiment: {label}", or a file with it '
                                '(default: "Text: {text}\\nLabel: {label}")')
    label_texts: str = setting("", 'labels: {"class": "text" or ["text", ...]} as JSON, or a file with it (default: the '
                                   "classes' names)")
    instruction: str = setting("", "labels: what stands before every text, or a file with it")
    end: str = setting("auto", "labels: eos ends every label text with the end-of-text token, auto where it is needed",
                       choices=["auto", "none", "eos"])
    score_by: str = setting("sum", "labels: log-probabilities as they are, or per token, char or byte",
                            choices=["sum", "token", "char", "byte"])
    objective: str = setting("classes", "labels: only the label texts compete, or with completion the whole vocabulary does "
                                        "(instruction tuning)", choices=["classes", "completion"])
    pool: str = setting("family", "how a text's vectors become one: family (the head that transformers has), or plainly "
                                  "first, mean, max, last; attention learns which tokens count",
                      choices=["family", "first", "mean", "max", "last", "attention"])
    preference: str = setting("none", "which of two answers is better: head reads a prompt and both in one text, bradley-terry "
                                      "gives each answer a score of its own", choices=["none", "head", "bradley-terry"])
    swap: str = setting("none", "answers a and b exchanged: train learns each row both ways, predict takes the mean of both "
                                "orders (preference head, or labels)", choices=["none", "train", "predict", "both"])
    weights: str = setting("pretrained", "start from the checkpoint's weights, or from random ones to see what "
                                         "pretraining is worth", choices=["pretrained", "random"])
    text_column: str = setting("", "name(s) of the text column(s), comma between two (default: text, or text_a,text_b)")
    label_column: str = setting("", "name of the label column (default: label); or a,b,c: for each class a "
                                    "column with 0 or 1 in it, of rows with several labels")
    quoting: str = setting("auto", "CSV, TSV: none takes quotes as they stand, for files written without "
                                   "quoting; double reads quoted lines that look like rows, which auto refuses",
                           choices=["auto", "double", "none"])
    several_labels: str = setting("off", 'on: a row has any number of labels, none too, in its cell "a|b" (or a list in JSONL); '
                                         "each class then has a probability of its own, and a threshold fitted on dev",
                                  choices=["off", "on"])
    rows_per_class: int = setting(0, "train on so many rows a class only, drawn by the seed (0: all)")
    max_length: int = setting(0, "tokens of a text, specials included; longer ones are cut (0: what the model can take)")
    keep: str = setting("head", "what is kept of a longer one", choices=["head", "tail", "head+tail", "middle"])
    windows: str = setting("none", "read a long document in windows of max_length tokens, and take the mean or the maximum of "
                                   "their scores, or learn what each of them counts",
                           choices=["none", "mean", "max", "attention"])
    overlap: int = setting(32, "windows: tokens that neighbours share")
    max_windows: int = setting(8, "windows: of a document in a training step, drawn anew each time (bounds memory; all are "
                                  "used to predict)")
    max_document: int = setting(8192, "windows: tokens of a document, specials included; longer ones are cut")
    epochs: int = setting(6, "passes over the training rows at most")
    min_steps: int = setting(0, "more epochs than that, if it takes them to make so many steps (small data)")
    lr: float = setting(3e-4, "peak learning rate, or auto: by method and width, as in "
                              "training/rates.py", shown="auto")
    batch_size: int = setting(32, "rows of one optimiser step")
    batch_tokens: int = setting(0, "also at most so many padded tokens in a step (0: no limit)")
    micro_batch_size: int = setting(0, "rows at a time on the device; a step's gradient is the same (0: all of a step)")
    weight_decay: float = setting(0.01, "AdamW's, on matrices only")
    warmup: float = setting(0.1, "share of the steps in which the rate rises")
    schedule: str = setting("linear", "how the rate falls after that", choices=["linear", "cosine", "constant"])
    clip: float = setting(1.0, "largest gradient norm (0: no clipping)")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes")
    class_weights: str = setting("none", "balanced weighs a class by rows / (classes x its rows); with several labels a "
                                         "row, the rows that have it by rows without it / rows with it", choices=["none", "balanced"])
    sampling: str = setting("none", "balanced draws an epoch in which all classes are equally frequent", choices=["none", "balanced"])
    focal: float = setting(0.0, "gamma of the focal loss, usually 2: rows that are right already count less (0: cross-entropy)")
    layer_decay: float = setting(1.0, "a layer one step lower learns so many times as fast (1: all alike)")
    optimizer: str = setting("adamw", "adamw, or of the package bitsandbytes: adamw8bit holds its state in 8 bits, "
                                      "paged-adamw lends it to the CPU's memory where the GPU's is short",
                             choices=["adamw", "adamw8bit", "paged-adamw"])
    checkpointing: str = setting("off", "on keeps only the input of each block and computes its inside again for the "
                                        "gradients: less memory, about a third slower, the same numbers",
                                 choices=["off", "on"])
    precision: str = setting("fp32", "bf16 uses autocast: for GPUs", choices=["fp32", "bf16"])
    metric: str = setting("accuracy", "which dev metric chooses the best epoch; with several labels a row log_loss by default, "
                                      "exact_match and micro_f1 instead of accuracy",
                          choices=["accuracy", "macro_f1", "log_loss", "ece", "exact_match", "micro_f1"])
    patience: int = setting(0, "stop after so many epochs without a better one (0: never)")
    eval_batch_size: int = setting(64, "rows at a time where nothing is learned")
    save_every: int = setting(100, "steps between two states on disk")
    baselines: str = setting("on", "off leaves out the bag of words, which takes minutes on very many rows or classes",
                             choices=["on", "off"])
    seed: int = setting(0, "of the new head, the order of rows, dropout, and a split made here")
    device: str = setting("auto", "auto, cpu, cuda, ...")
    parallel: str = setting("ddp", "under torchrun: ddp gives each process a whole model, fsdp a share of every block",
                            choices=["ddp", "fsdp"])

    def check(self, given=()):
        """Raise InputError for values that make no sense, or that others make meaningless. -> self

        given: names of settings that were asked for: a meaningless one is refused as a default too.
        """
        for f in fields(self):
            choices, value = f.metadata.get("choices"), getattr(self, f.name)
            if choices and value not in choices:
                raise InputError(f"{flag(f.name)} {short(value)[1:-1]}: known are "
                                 + ", ".join(choices) + did_you_mean(value, choices))
        if kind_of(self.method) not in METHODS:
            known = ", ".join(METHODS) + ", with N from 1 to the model's blocks"
            raise InputError(f"--method {short(self.method)[1:-1]}: known are {known}"
                             + did_you_mean(self.method, METHODS))
        rules = {"1 or more": (lambda v: v >= 1, "epochs batch_size eval_batch_size save_every rank adapter_size virtual_tokens "
                                                 "max_windows max_document"),
                 "0 or more": (lambda v: v >= 0, "rows_per_class max_length overlap min_steps batch_tokens micro_batch_size "
                                                 "weight_decay clip patience focal"),
                 "more than 0": (lambda v: v > 0, "lr alpha"),
                 "from 0 to below 1": (lambda v: 0 <= v < 1, "warmup label_smoothing adapter_dropout"),
                 "above 0 and not above 1": (lambda v: 0 < v <= 1, "layer_decay"),
                 "from 0 to 2**63 - 1": (lambda v: 0 <= v < 2**63, "seed"),
                 "a finite number": (math.isfinite, "lr alpha weight_decay focal clip")}
        for words, (holds, names) in rules.items():
            for name in names.split():
                if not holds(getattr(self, name)):
                    raise InputError(f"{flag(name)} {getattr(self, name)}: should be {words}")
        for name, wanted in idle(vars(self)).items():
            if name in given or getattr(self, name) != getattr(Settings(), name):
                raise InputError(f"{flag(name)} goes with {wanted}")
        if self.windows != "none" and self.method == "prompt":
            raise InputError("--method prompt puts its words before a whole row, not before each of its windows: --windows none")
        if self.windows != "none" and self.parallel == "fsdp":
            raise InputError("--parallel fsdp needs as many forward passes in every process, and documents differ in windows: "
                             "--parallel ddp")
        if self.objective == "completion" and (self.class_weights != "none" or self.label_smoothing or self.focal):
            raise InputError("--objective completion learns words, not classes: --class-weights, --label-smoothing and --focal go "
                             "with --objective classes")
        if self.focal and self.label_smoothing:
            raise InputError("--focal and --label-smoothing are two answers to one question: use one of them")
        if self.sampling == "balanced" and self.class_weights == "balanced":
            raise InputError("--sampling balanced and --class-weights balanced would correct an imbalance twice: use one of them")
        self.check_several()
        return self

    def check_several(self):
        """Raise InputError for settings that do not go with several labels a row, or only with these."""
        if self.several_labels == "off":
            if "," in self.label_column:
                raise InputError(f"--label-column {self.label_column:.60}: a column for each class goes with "
                                 "--several-labels on")
            if self.metric in ("exact_match", "micro_f1"):
                raise InputError(f"--metric {self.metric} goes with --several-labels on")
            return
        for name in ONE_LABEL:
            if getattr(self, name) != getattr(Settings(), name):
                raise InputError(f"{flag(name)} {getattr(self, name)} is for one label a row: "
                                 "leave it out, or say --several-labels off")
        if self.metric == "accuracy":
            raise InputError("--metric accuracy is for one label a row: with --several-labels on choose by log_loss, exact_match, "
                             "micro_f1, macro_f1 or ece")

    def decisive(self):
        """The settings that the result depends on; a run may only be continued with the same ones. On what it is computed
        (device, processes, with which memory) changes a result by rounding only, and where dropout draws."""
        free = ("out", "save_every", "device", "parallel", "checkpointing", "baselines")
        return {k: v for k, v in asdict(self).items() if k not in free}


ONE_LABEL = ("readout", "preference", "swap", "rows_per_class", "label_smoothing", "sampling", "focal")
METHODS = ("full", "head", "last-N", "bitfit", "houlsby", "pfeiffer", "lora", "dora", "qlora",
           "prefix", "prompt")
GOES_WITH = (            # setting, its values with which these are read; else they mean nothing
    ("readout", ("labels",), "template label_texts instruction end score_by objective"),
    ("readout", ("head",), "pool preference keep windows"),
    ("windows", ("mean", "max", "attention"), "overlap max_windows max_document"),
    ("method", ("lora", "dora", "qlora"),
     "rank alpha adapter_dropout rank_stabilised targets bias"),
    ("method", ("qlora",), "quantise"),
    ("method", ("houlsby", "pfeiffer"), "adapter_size"),
    ("method", ("prefix", "prompt"), "virtual_tokens"),
    ("method", ("prefix",), "projection"),
    ("method", METHODS[:1] + METHODS[2:9], "layer_decay"))      # of a head: one layer


def flag(name):
    """The flag of a setting: "batch_size" -> "--batch-size"."""
    return "--" + name.replace("_", "-")


def kind_of(method):
    """A method as METHODS has it: last-3 is last-N; an unknown one as it is."""
    if re.fullmatch(r"last-[1-9]\d*", method):
        return "last-N"
    return "" if method == "last-N" else method


def idle(values):
    """Which settings do others make meaningless? values: of all -> {name: what it goes with}"""
    found = {}
    for key, wanted, names in GOES_WITH:
        if key in found or (kind_of(values[key]) if key == "method" else values[key]) not in wanted:
            either = " or ".join(filter(None, [", ".join(wanted[:-1]), wanted[-1]]))
            reason = found.get(key, f"{flag(key)} {either}")
            found = {**dict.fromkeys(names.split(), reason), **found}
    return found


def add_settings(parser, names=None):
    """A flag for each field (or for those named); absent flags leave no trace, so that --config can fill them."""
    for f in fields(Settings):
        if names is None or f.name in names:
            shown = f.metadata.get("shown", f.default)
            kind = rate if f.name == "lr" else type(f.default)
            parser.add_argument(flag(f.name), type=kind, default=argparse.SUPPRESS,
                                choices=f.metadata.get("choices"),
                                help=f.metadata["help"] + (f" [{shown}]" if shown != "" else ""))
    return parser


def rate(text):
    """A learning rate as it is typed: a number, or auto."""
    return text if text == "auto" else float(text)


def refuse_several(s, command):
    """Raise InputError where a command is for one label a row, and the settings say otherwise."""
    if s.several_labels == "on" or "," in s.label_column:
        raise InputError(f"{command} is for one label a row: --several-labels on, or a column for each class, "
                         "goes with train, evaluate and predict")


def read_settings(arguments, config=None):
    """Defaults, then the file's settings, then the flags -> Settings.

    config: path of a run.json, or of a JSON object. A learning rate that is not given, or
    "auto", is filled in by the rule.
    """
    from ..training.rates import default_lr
    known, values = {f.name: type(f.default) for f in fields(Settings)}, {}
    if config:
        record = read_json(config)
        values = record.get("settings", record)
        if not isinstance(values, dict):
            raise InputError(f"{config}: settings should be an object, is {short(values)}")
    where = config or "settings"
    values = {k: v for k, v in values.items() if k != "out"} | arguments
    if "," in str(values.get("label_column")):
        values.setdefault("several_labels", "on")
    if values.get("several_labels") == "on":
        values.setdefault("metric", "log_loss")                # the default, accuracy, is of one label a row
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown setting(s) {', '.join(map(short, unknown[:6]))}"
                         f"{did_you_mean(unknown[0], known)}; known: {', '.join(known)}")
    by_rule = values.get("lr", "auto") == "auto"
    values = {name: value for name, value in values.items() if name != "lr" or not by_rule}
    for name, value in values.items():
        if type(value) is int and known[name] is float:
            values[name] = float(value)
        elif type(value) is not known[name]:
            raise InputError(f"{where}: {name} should be {known[name].__name__}, is {short(value)}")
    if config and "settings" in record:     # a run: what it had no use for is not asked again
        for name in set(idle(vars(Settings(**values)))) - set(arguments):
            values.pop(name, None)
    s = with_contents(Settings(**values).check(arguments))
    return replace(s, lr=default_lr(s)[0]) if by_rule else s


def with_contents(s):
    """The settings with the contents of the files that they name, so that run.json says it all. -> Settings"""
    from ..classify.label_text.wordings import read_template
    texts = s.label_texts
    if texts and not texts.lstrip().startswith("{"):
        texts = json.dumps(read_json(texts), ensure_ascii=False)
    return replace(s, template=read_template(s.template), instruction=read_template(s.instruction), label_texts=texts)
