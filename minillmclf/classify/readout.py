"""What a readout is made of: as arguments of Classifier.from_backbone, and as it lies in a config.json.

Here: checks, defaults, and the choice of the class that reads label texts, by where an architecture writes its answer.
"""
import math

from ..errors import InputError
from ..files import short
from ..text.prompt import Prompt, Template
from .label_text.wordings import default_template, read_label_texts
from .head import MISTAKE, POOLS
from .label_text.labels import ENDS, WAYS, LabelReadout, SourceReadout
from .label_text.masks import MaskReadout

UNSAID = 512         # tokens of a text, where neither the model nor its tokenizer says how many it takes
READOUTS = {"decoder": LabelReadout, "encoder-decoder": SourceReadout, "encoder": MaskReadout}


def is_words(value):
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)


def is_shots(value):
    return isinstance(value, (list, tuple)) and all(
        isinstance(shot, (list, tuple)) and len(shot) == 2 and (isinstance(shot[0], str) or is_words(shot[0]))
        and isinstance(shot[1], str) for shot in value)


ASKED = {"template": (lambda v: isinstance(v, str), "a text"),                              # key: (test, what it should be)
         "label_texts": (lambda v: isinstance(v, (dict, str)), 'an object {"label": ["text", ...]}'),
         "fields": (is_words, "names"), "instruction": (lambda v: isinstance(v, str), "a text"),
         "shots": (is_shots, "[[texts, label text], ...]"), "end": (lambda v: isinstance(v, str), "a word"),
         "score_by": (lambda v: isinstance(v, str), "a word")}


READING = {"text_column": (lambda v: is_words(v) and len(v) > 0, "a list of names"),
           "label_column?": (lambda v: isinstance(v, str), "a name"),
           "quoting?": (lambda v: isinstance(v, str), "a word")}


def read_readout(readout, asked, labels):
    """The arguments of from_backbone -> {} for a head, else all of what a label readout is made of."""
    if readout not in ("head", "labels"):
        raise InputError(f"readout {readout!r:.40} is not known; known: head, labels")
    unknown = sorted(set(asked) - set(ASKED if readout == "labels" else ()))
    if unknown:
        raise InputError(f"readout {readout!r} takes no {', '.join(unknown)}")
    if readout == "head":
        return {}
    for key, value in asked.items():
        test, wanted = ASKED[key]
        if value and not test(value):
            raise InputError(f"{key} of the readout should be {wanted}, is {value!r:.60}")
    end, score_by = asked.get("end") or "auto", asked.get("score_by") or "sum"
    if end not in ENDS or score_by not in WAYS:
        raise InputError(f"end {end!r}, score_by {score_by!r}: known are {', '.join(ENDS)}, and {', '.join(WAYS)}")
    template = asked.get("template")
    pair = template is not None and "{text_a}" in template
    fields = list(asked.get("fields") or (("text_a", "text_b") if pair else ("text",)))
    shots = [[list((texts,) if isinstance(texts, str) else texts), text] for texts, text in asked.get("shots") or []]
    made = {"readout": "labels", "template": template or default_template(fields), "fields": fields,
            "label_texts": read_label_texts(asked.get("label_texts") or "", labels), "instruction": asked.get("instruction") or "",
            "shots": shots, "end": end, "score_by": score_by}
    prompt_of(made)                                                    # faults of the template are told now
    return made


def prompt_of(readout):
    """The prompt that a readout describes."""
    return Prompt(Template(readout["template"], readout["fields"]), readout["instruction"], readout["shots"])


def build_labels(backbone, tokenizer, labels, readout):
    """The label readout for an architecture, as `read_readout` describes it."""
    return READOUTS[backbone.KIND](tokenizer, labels, prompt_of(readout), readout["label_texts"], readout["end"],
                                      readout["score_by"])


def read_settings(config, where):
    """What `Classifier.save` wrote into a config.json for us, with defaults for files of others."""
    settings = config.get("minillmclf", {})
    plain = {"pool": "family", "max_length": None, "readout": {}, "keep": "head", "windows": None, "calibration": None,
             "preference": {}, "thresholds": None, "reading": None, "ignored": []}
    good = isinstance(settings, dict) and set(settings) <= set(plain) and isinstance(settings.get("readout", {}), dict)
    if not good or settings.get("pool") not in (None, *POOLS, MISTAKE):
        raise InputError(f"{where}: minillmclf = {settings!r:.80} is not known; "
                         f"pool is {', '.join(POOLS)}")
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification", "multi_label_classification"):
        raise InputError(f"{where}: problem_type {problem!r} is not supported; supported: single_label_classification, "
                         "multi_label_classification")
    settings = plain | settings
    several = problem == "multi_label_classification"
    if settings["thresholds"] is not None and not several:
        raise InputError(f"{where}: minillmclf has thresholds, which go with problem_type multi_label_classification, not {problem!r}")
    if several and settings["thresholds"] is None:
        settings["thresholds"] = [0.5] * len(labels_of(config, where))
    if settings["readout"]:
        try:
            asked = dict(settings["readout"])
            settings["readout"] = read_readout(asked.pop("readout", None), asked, labels_of(config, where))
        except InputError as error:
            raise InputError(f"{where}: minillmclf: {error}") from None
    return settings | {"pool": settings["pool"] or "family"}


def text_length(asked, backbone, tokenizer, folder):
    """Tokens of a text: as many as were asked for, or, for None, as model and tokenizer take, which the tokenizer remembers.

    Raises InputError for a number that leaves no room for a text, or that the model has no positions for.
    """
    highest, least = backbone.max_tokens or math.inf, tokenizer.num_special_tokens(True) + 1
    tokenizer.max_length = min(highest, tokenizer.max_length or backbone.max_tokens or UNSAID)
    if asked is not None and not (type(asked) is int and least <= asked <= highest):
        raise InputError(f"max_length {short(asked)}: must lie between {least} and the {highest} "
                         f"positions of {folder}")
    return asked or tokenizer.max_length


def check_labels(labels, where="a classifier"):
    """At least two different names."""
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise InputError(f"{where}: labels must be at least two different names, got {list(labels)}")


def labels_of(config, where):
    """The label names of a config.json, in class order."""
    names = config.get("id2label")
    if names is None:
        names = {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise InputError(f"{where}: id2label should number its classes from 0 up, is {names!r:.100}")
    labels = [str(names[str(i)]) for i in range(len(names))]
    check_labels(labels, where)
    return labels
