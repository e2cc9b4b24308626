"""The options of label texts, as Classifier.from_backbone takes them and a config.json keeps them.

Here: checks, defaults, and the readout class for each kind of architecture.
"""
from ...errors import InputError
from ...files import is_names, is_text, short
from ...text.prompt import Prompt, Template
from .masks import MaskReadout
from .readout import ENDS, SCORE_BY, LabelReadout, SourceReadout
from .wordings import read_label_texts, wordings

READOUTS = {"decoder": LabelReadout, "encoder-decoder": SourceReadout,   # by Backbone.KIND
            "encoder": MaskReadout}


def is_shots(value):
    """Is it [(text or texts, label text), ...]?"""
    return isinstance(value, (list, tuple)) and all(
        isinstance(shot, (list, tuple)) and len(shot) == 2 and is_text(shot[1])
        and (is_text(shot[0]) or is_names(shot[0])) for shot in value)


OPTIONS = {"template": (is_text, "a text"), "instruction": (is_text, "a text"),     # (test, what)
           "label_texts": (lambda value: isinstance(value, (dict, str)),
                           'an object {"label": ["text", ...]}'),
           "fields": (is_names, "names"), "shots": (is_shots, "[[texts, label text], ...]"),
           "end": (is_text, "a word"), "score_by": (is_text, "a word")}


def read_label_options(readout, given, labels):
    """Check the given ones of OPTIONS and add the defaults of the others -> options, a dict; {} for
    readout "head", the other being "labels". InputError for unknown names and wrong values."""
    if readout not in ("head", "labels"):
        raise InputError(f"readout {short(readout)} is not known; known: head, labels")
    unknown = sorted(set(given) - set(OPTIONS if readout == "labels" else ()))
    if unknown:
        raise InputError(f"readout {readout!r} takes no {', '.join(unknown)}")
    if readout == "head":
        return {}
    for name, value in given.items():
        test, words = OPTIONS[name]
        if value and not test(value):
            raise InputError(f"{name} of the readout should be {words}, is {short(value)}")
    end, score_by = given.get("end") or "auto", given.get("score_by") or "sum"
    if end not in ENDS or score_by not in SCORE_BY:
        raise InputError(f"end {short(end)}, score_by {short(score_by)}: known are "
                         f"{', '.join(ENDS)}, and {', '.join(SCORE_BY)}")
    template = given.get("template")
    pair = template is not None and "{text_a}" in template
    fields = list(given.get("fields") or (("text_a", "text_b") if pair else ("text",)))
    shots = [[[texts] if isinstance(texts, str) else list(texts), label_text]
             for texts, label_text in given.get("shots") or []]
    options = {"readout": "labels", "template": template or wordings(fields)[0], "fields": fields,
               "label_texts": read_label_texts(given.get("label_texts") or "", labels),
               "instruction": given.get("instruction") or "", "shots": shots, "end": end,
               "score_by": score_by}
    build_prompt(options)                                   # InputError for a faulty template
    return options


def build_prompt(options):
    """The Prompt of some label options."""
    template = Template(options["template"], options["fields"])
    return Prompt(template, options["instruction"], options["shots"])


def label_readout(backbone, tokenizer, labels, options):
    """The LabelReadout for a backbone. options: as `read_label_options` returns them."""
    head = READOUTS[backbone.KIND](tokenizer, labels, build_prompt(options),
                                   options["label_texts"], options["end"], options["score_by"])
    head.label_options, head.max_texts = options, len(options["fields"])
    return head
