"""Label texts as options: what Classifier.from_backbone takes for them, and a config.json keeps.

Here: checks, defaults, and the class that reads label texts, by where an architecture writes.
"""
from ...errors import InputError
from ...files import short
from ...text.prompt import Prompt, Template
from .labels import ENDS, WAYS, LabelReadout, SourceReadout
from .masks import MaskReadout
from .wordings import default_template, read_label_texts

READOUTS = {"decoder": LabelReadout, "encoder-decoder": SourceReadout,   # by Backbone.KIND
            "encoder": MaskReadout}


def is_words(value):
    """Is it a list of strings?"""
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)


def is_shots(value):
    """Is it [(text or texts, label text), ...]?"""
    return isinstance(value, (list, tuple)) and all(
        isinstance(shot, (list, tuple)) and len(shot) == 2 and isinstance(shot[1], str)
        and (isinstance(shot[0], str) or is_words(shot[0])) for shot in value)


ASKED = {                                                   # name: (test, what it should be)
    **dict.fromkeys(("template", "instruction"), (lambda v: isinstance(v, str), "a text")),
    "label_texts": (lambda v: isinstance(v, (dict, str)), 'an object {"label": ["text", ...]}'),
    "fields": (is_words, "names"), "shots": (is_shots, "[[texts, label text], ...]"),
    **dict.fromkeys(("end", "score_by"), (lambda v: isinstance(v, str), "a word"))}


def read_readout(readout, asked, labels):
    """readout: "head" or "labels", asked: what ASKED has -> {} for a head, else all that a readout
    of label texts is made of."""
    if readout not in ("head", "labels"):
        raise InputError(f"readout {short(readout)} is not known; known: head, labels")
    unknown = sorted(set(asked) - set(ASKED if readout == "labels" else ()))
    if unknown:
        raise InputError(f"readout {readout!r} takes no {', '.join(unknown)}")
    if readout == "head":
        return {}
    for key, value in asked.items():
        holds, wanted = ASKED[key]
        if value and not holds(value):
            raise InputError(f"{key} of the readout should be {wanted}, is {short(value)}")
    end, score_by = asked.get("end") or "auto", asked.get("score_by") or "sum"
    if end not in ENDS or score_by not in WAYS:
        raise InputError(f"end {short(end)}, score_by {short(score_by)}: known are "
                         f"{', '.join(ENDS)}, and {', '.join(WAYS)}")
    template = asked.get("template")
    pair = template is not None and "{text_a}" in template
    names = list(asked.get("fields") or (("text_a", "text_b") if pair else ("text",)))
    shots = [[[texts] if isinstance(texts, str) else list(texts), text]
             for texts, text in asked.get("shots") or []]
    found = {"readout": "labels", "template": template or default_template(names), "fields": names,
             "label_texts": read_label_texts(asked.get("label_texts") or "", labels),
             "instruction": asked.get("instruction") or "", "shots": shots, "end": end,
             "score_by": score_by}
    prompt_of(found)                                        # InputError for a faulty template
    return found


def prompt_of(described):
    """The prompt of label texts."""
    template = Template(described["template"], described["fields"])
    return Prompt(template, described["instruction"], described["shots"])


def build_labels(backbone, tokenizer, labels, described):
    """The readout of label texts for an architecture, as `read_readout` describes it."""
    head = READOUTS[backbone.KIND](tokenizer, labels, prompt_of(described),
                                      described["label_texts"], described["end"],
                                      described["score_by"])
    head.described, head.most_texts = described, len(described["fields"])
    return head
