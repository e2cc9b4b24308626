"""From settings to a classifier, for train, evaluate, compare and inspect alike."""
import re

from ..classify import build as modules
from ..classify.classifier import Classifier
from ..classify.multilabel import MultiLabel
from ..classify.preference import Preference
from ..classify.task import SingleLabel
from ..errors import InputError
from ..files import short
from ..training.rates import lr_text
from ..tuning import ADAPTER_METHODS, BOTTLENECK_METHODS, LORA_METHODS, METHODS, tune
from ..tuning.frozen import half_modules
from ..tuning.quant_files import has_four_bits
from .device import check_device, device_lines, move

ROUNDED = 1e-5                 # a probability may differ by so much from rounding alone
# truncation_side -> what is kept of a text (text/cutting.py)
KEPT_END = {"right": "head", "left": "tail", "middle": "head+tail", "both": "middle"}


def build_classifier(s, labels, fields=("text",)):
    """Build a classifier on its device, add its tuning method -> (classifier, number of parameters
    that are trainable, of all). fields: the names by which a template calls a row's texts."""
    refuse_adapter_of_random_weights(s)
    model = Classifier.from_backbone(
        s.model, labels, **classifier_options(s, fields), seed=s.seed,
        pretrained=s.weights == "pretrained", quantise=s.quantise if s.method == "qlora" else None,
        dtype=s.dtype, method=s.method, device=check_device(s.device))
    trainable, total = tune(model, tuning_config(s), s.seed)
    return move(model, s.device), trainable, total


def refuse_adapter_of_random_weights(s):
    """InputError for settings that would save an adapter of weights that lie in no file."""
    if s.weights == "random" and s.method in ADAPTER_METHODS:
        raise InputError(f"--weights random, --method {s.method}: an adapter is saved without its "
                         "base, and random weights lie in no file: take --method full")


def own_head_note(settings):
    """settings: of run.json -> [a line] if transformers cannot load the run's head, or reads less
    of a text than it does, else []."""
    if settings.get("readout", "head") != "head":
        return []
    pool, windows = settings.get("pool", "family"), settings.get("windows", "none")
    side, is_lora = settings.get("truncation_side"), settings.get("method") in LORA_METHODS
    lacks, loads = "transformers has no head that", ": for a model to load there, train with"
    own = [(windows == "attention", f"{lacks} weighs windows{loads} --windows mean or none"),
           (settings.get("preference") == "bradley-terry",
            f"{lacks} compares answers{loads} --preference head"),
           (pool != "family", f"{lacks} pools {pool}{loads} --pool family"),
           (windows != "none", "transformers reads the first window of a text alone"),
           (side in ("middle", "both"), f"transformers has no --truncation-side {side}, and keeps "
            f"the beginning of a long text{loads} --truncation-side right or left"),
           (is_lora and (settings.get("max_length") or side == "left"), "with this adapter "
            "transformers cuts a long text where the base's tokenizer says, not where this run "
            "does: for a model to load there, merge it with python -m minillmclf.merge")]
    return [line for applies, line in own if applies][:1]


def other_names_note(s, model):
    """-> [a line] if transformers would call this run's classes by other names, else []. It takes
    the names of an adapter's classes from the base."""
    names = model.config.get("id2label") or {}                    # of the base
    names = [names.get(str(number)) for number in range(len(names))]
    wrong = [i for i, (one, other) in enumerate(zip(names, model.labels)) if one != other]
    is_read = s.method in ADAPTER_METHODS and s.method not in BOTTLENECK_METHODS
    if not is_read or s.readout != "head" or len(names) != len(model.labels) or not wrong:
        return []
    return [f"NOTE: a pipeline of transformers gives the adapter's classes the names of the base: "
            f"class {wrong[0]} is {short(model.labels[wrong[0]])}, there {short(names[wrong[0]])}. "
            "Use Classifier.load, or a merged model"]


def model_lines(s, model, trainable, total):
    """What was built, and the learning rate -> lines to print."""
    loaded = model.report.summary() if s.weights == "pretrained" else "random weights"
    lines = [f"{s.model}: {loaded}; {trainable:,} of {total:,} parameters trainable; {lr_text(s)}"]
    if model.quantise:
        kinds = sorted({re.sub(r"\.\d+\.", ".{}.", path) for path in model.not_quantised})
        layers = f"the body's linear layers; kept whole: {', '.join(kinds)}"
        if has_four_bits(s.model):
            layers = "the layers that are so in the file"
        lines.append(f"in four bits ({model.quantise}): {layers}")
    if s.dtype == "bf16":
        half = half_modules(model).values()
        lines.append(f"in bf16: the {len(half)} frozen matrices of the body, "
                     f"{sum(module.weight.numel() for module in half):,} numbers; what learns, "
                     "norms and biases stay in fp32")
    return lines + other_names_note(s, model) + device_lines(model, s.precision)


def check_saved(model, folder, texts):
    """Load what was just saved. InputError unless its probabilities equal the model's: exactly on a
    CPU, to ROUNDED on other devices, which may add up in another order."""
    try:
        again = Classifier.load(folder, device=next(model.parameters()).device)
    except InputError as error:
        fault = f"is refused when it is loaded again ({error})"
    else:
        before, after = model.predict(texts), again.predict(texts)
        same = (again.labels, again.task.settings()) == (model.labels, model.task.settings())
        distance, on_cpu = abs(before - after).max(), next(model.parameters()).device.type == "cpu"
        if same and distance <= (0 if on_cpu else ROUNDED):
            return
        fault = f"answers otherwise when it is loaded again, by {distance:.2g} in a probability"
    raise InputError(f"{folder}: what was saved {fault}: the state of training is kept; give the "
                     "same command again; if that ends here too, look whether the base has changed")


def classifier_options(s, fields=("text",)):
    """The settings that decide a classifier's modules -> keywords of classify.build.Options.
    fields: the names by which a template calls a row's texts."""
    options = {"readout": s.readout, "pool": s.pool, "max_length": s.max_length or None,
               "keep": KEPT_END[s.truncation_side], "multi_label": s.multi_label == "on",
               "preference": {"kind": s.preference, "swap": s.swap}}
    if s.windows != "none":
        options["windows"] = {"pool": s.windows, "overlap": s.overlap,
                              "max_windows": s.max_windows, "max_document": s.max_document}
    if s.readout == "labels":
        end = "eos" if (s.objective, s.end) == ("completion", "auto") else s.end
        options |= {"template": s.template, "label_texts": s.label_texts, "fields": list(fields),
                    "instruction": s.instruction, "end": end, "score_by": s.score_by}
    return options


def task_class(s):
    """The class of Task that the settings ask for."""
    if s.multi_label == "on":
        return MultiLabel
    compares = s.preference != "none" or s.swap != "none" and s.readout == "labels"
    return Preference if compares else SingleLabel


def build_task(settings, data):
    """The Task of a run, made without its model. settings: a dict, as in its run.json."""
    described = {"fields": data.columns} if settings.get("readout") == "labels" else {}
    preference = {"kind": settings.get("preference"), "swap": settings.get("swap")}
    multi_label = settings.get("multi_label") == "on"
    return modules.build_task(data.labels, described, preference, multi_label)


def tuning_config(s):
    """The settings that decide how to tune -> the tuning config, a dict that tuning.tune takes."""
    targets = s.targets or None
    if targets != "all-linear" and re.fullmatch(r"[\w.]+(,[\w.]+)*", s.targets):
        targets = s.targets.split(",")
    values = {"rank": s.rank, "alpha": s.alpha, "dropout": s.adapter_dropout, "targets": targets,
              "use_rslora": s.use_rslora == "on", "bias": s.bias, "quantise": s.quantise,
              "size": s.adapter_size, "tokens": s.virtual_tokens,
              "projection": s.projection == "on"}
    options = METHODS[s.method].options if s.method in METHODS else ()    # last-N has none
    return {"method": s.method, **{name: values[name] for name in options}}
