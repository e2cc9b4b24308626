"""Prompts: what a language model reads before it names a label.

    Judge the mood of each review.     the instruction

    Review: A fine day.                a finished example, a "shot" of few-shot prompting
    Sentiment: positive                (Brown et al. 2020, arXiv:2005.14165)

    Review: So so.                     the row itself, up to its label
    Sentiment:

A template is plain text: {label} stands for the label, {name} for a text, any other brace for
itself. So a chat format is a template too: "<|user|>\\n{text}\\n<|assistant|>\\n{label}".

The space before a label belongs to the label: " positive" is one common token of a byte-level or
SentencePiece tokenizer, while a prompt that ends in a space ends in a token that is rare there.

Not here: which examples are shown, default wordings, and what a model does with a prompt
(classify/label_text/).
"""
import re

from ..errors import InputError
from ..files import short


class Template:
    """The wording of a row: Template("Review: {text}\\nSentiment: {label}", fields=("text",)).

    text: holds each of `fields` in braces at least once, and {label} at most once. Without {label}
    the label comes last, after one space unless the text ends with white space. InputError for any
    other {word}. texts of the methods: a string for each field, in the order of `fields`, inserted
    as it is, braces and all.
    """

    def __init__(self, text, fields=("text",)):
        self.text, self.fields = text, tuple(fields)
        if len(set(self.fields)) < len(self.fields) or "label" in self.fields:
            raise InputError(f"template fields {list(self.fields)}: each needs a name of its own, "
                             "other than 'label': rename the column")
        names = "|".join([*map(re.escape, self.fields), r"\w+"])
        parts = re.split(r"\{(" + names + r")\}", text)          # fixed text, name, fixed text, ...
        self._check(parts[1::2])
        if "label" not in parts[1::2]:
            parts[-1] += "" if text[-1:].isspace() else " "
            parts += ["label", ""]
        place = 2 * parts[1::2].index("label") + 1
        self._before, self._after = parts[:place], parts[place + 1:]
        self._spaces = " " * (len(parts[place - 1]) - len(parts[place - 1].rstrip(" ")))

    def _check(self, names):
        """InputError unless the names in braces are the fields and at most one {label}."""
        known = ", ".join(f"{{{name}}}" for name in self.fields)
        faults = [f"there is no field {{{name}}}: write {known} for the texts and {{label}} for "
                  "the label" for name in names if name not in (*self.fields, "label")]
        faults += [f"{{{name}}} does not stand in it: write each of {known} at least once (or "
                   "correct the path, if this was to be the name of a file)"
                   for name in self.fields if name not in names]
        if names.count("label") > 1:
            faults.append(f"{{label}} stands in it {names.count('label')} times: write it once")
        if faults:
            raise InputError(f"template {self.text!r}: {faults[0]}")

    def _fill(self, parts, texts):
        if isinstance(texts, str) or len(texts) != len(self.fields):
            raise InputError(f"template {short(self.text)}: given {short(texts)}, needs "
                             f"{len(self.fields)} text(s), one for each of "
                             f"{', '.join(self.fields)}")
        values = dict(zip(self.fields, texts))
        return "".join(values[part] if place % 2 else part for place, part in enumerate(parts))

    def prompt(self, texts):
        """What stands before the label, without final spaces: "Review: Great.\\nSentiment:"."""
        return self._fill(self._before, texts).rstrip(" ")

    def continuation(self, label_text):
        """The label with the spaces before it: " positive". InputError for a blank label text."""
        if not label_text.strip():
            raise InputError(f"template {short(self.text)}: the text of a label is empty: give "
                             "each class at least one word")
        return self._spaces + label_text

    def tail(self, texts):
        """What stands after the label."""
        return self._fill(self._after, texts)

    def example(self, texts, label_text):
        """A finished example: prompt, label and tail, without white space at the end."""
        return (self.prompt(texts) + self.continuation(label_text) + self.tail(texts)).rstrip()

    @property
    def has_text_after_label(self):
        """Does a text come after the label? A decoder has not read it when it writes the label."""
        return len(self._after) > 1


class Prompt:
    """An instruction, shots, and the row to classify, with a blank line between them.

    shots: [(texts, label text), ...] in the order shown. mask: an encoder's mask token, which takes
    the place of the label; what stands after the label is then read too. InputError as in Template.
    """

    def __init__(self, template, instruction="", shots=(), mask=""):
        self.template, self.instruction, self.mask = template, instruction, mask
        self.shots = tuple((tuple(texts), label_text) for texts, label_text in shots)
        blocks = [instruction.strip()] if instruction.strip() else []
        blocks += [template.example(*shot) for shot in self.shots]
        self._front = "".join(block + "\n\n" for block in blocks)

    def render(self, texts):
        """What the model reads: instruction, shots, the row up to its label or with a mask."""
        prompt = self._front + self.template.prompt(texts)
        return prompt + self.mask + self.template.tail(texts) if self.mask else prompt

    def tail(self, texts):
        """What stands after the label and is not in `render`."""
        return "" if self.mask else self.template.tail(texts)

    def display_text(self, texts):
        """What the model reads, to be printed: "..." stands for the label."""
        after = self.template.tail(texts) if self.mask else ""
        return self._front + self.template.prompt(texts) + self.template.continuation("...") + after

    def num_tokens(self, texts, count):
        """Tokens of the whole prompt but the label. count: a function, str -> number of tokens."""
        return count(self.render(texts) + self.tail(texts))

    def fit_texts(self, texts, count, budget):
        """-> (the texts, cut so that `num_tokens` is at most `budget`; were they cut?)."""
        kept = shorten_texts(texts, lambda shorter: self.num_tokens(shorter, count), budget)
        return kept, kept != tuple(texts)


def shorten_texts(texts, size, budget, what="its texts"):
    """Cut strings at their ends, the longest first, until size(texts) <= budget. -> tuple of str

    A cap on their characters is found by bisection; white space at a new end is dropped too. Texts
    of this cap fit, those of one more do not; a still larger cap might, because a longer text may
    have fewer tokens ("unhappiness", "unhappines"). InputError if one character each is too much.
    """
    texts = tuple(texts)

    def capped(cap):
        return tuple(text if len(text) <= cap else text[:cap].rstrip() for text in texts)
    if size(texts) <= budget:
        return texts
    low, high = 0, max(map(len, texts), default=0)                      # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if size(capped(middle)) <= budget:
            low = middle
        else:
            high = middle
    if not low:
        raise InputError(f"the prompt takes {size([''] * len(texts))} tokens without {what}, and "
                         f"{budget} are allowed with them: use fewer shots, a shorter instruction, "
                         "or a model that takes longer texts")
    return capped(low)
