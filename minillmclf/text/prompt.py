"""Texts put together: what is kept of a long input, and prompts that ask a language model for a label.

Here: one budget of tokens shared by the parts (`fit`); a template with named fields (Template), with an instruction and
finished examples before it (Prompt), as "few-shot" prompts are since GPT-3 (Brown et al. 2020, arXiv:2005.14165).
Not here: which examples are shown (shots.py), default wordings and what is read from a command line (wordings.py), and
what a model makes of a prompt.

A template is plain text, not a language: {name} is a text, {label} the label, any other brace a brace. So a chat format
is nothing special, only a template in a file:

    <|user|>
    {text}
    <|assistant|>
    {label}<|end|>

The space before a label belongs to the label. For a byte-level or SentencePiece tokenizer " positive" is a word, " "
before "positive" is two pieces that the model has seldom seen so: a prompt that ends in a space asks another question.
"""
import re

from ..errors import InputError
from ..files import short


def fit(parts, budget):
    """Shorten lists of ids at their ends, the longest first, until together they hold at most `budget` tokens.

    -> (parts, how many tokens were cut). A short part is never cut while a longer one is left, so none vanishes; of two
    that have become equal the one that was shorter is cut first, as the `tokenizers` library does ("longest_first").
    """
    lengths, room = [len(part) for part in parts], max(0, budget)
    cut = max(0, sum(lengths) - budget)
    for place, i in enumerate(sorted(range(len(parts)), key=lengths.__getitem__)):       # shortest first
        lengths[i] = min(lengths[i], room // (len(parts) - place))     # its share of the room that is left
        room -= lengths[i]
    return [part[:length] for part, length in zip(parts, lengths)], cut


class Template:
    """Template("Review: {text}\\nSentiment: {label}", fields=("text",)): what a row looks like.

    text: each of `fields` in braces, at least once, and {label} at most once; without it the label follows the text
    after one space, or at once if the text ends with white space. Raises InputError for any other {word}.
    texts, below: one string for each of `fields`, in their order. They are put in as they are, whatever they hold.
    """

    def __init__(self, text, fields=("text",)):
        self.text, self.fields = text, tuple(fields)
        if len(set(self.fields)) < len(self.fields) or "label" in self.fields:
            raise InputError(f"template fields {list(self.fields)}: each needs a name of its own, other than 'label': "
                             "rename the column")
        known = "|".join([*map(re.escape, self.fields), r"\w+"])
        parts = re.split(r"\{(" + known + r")\}", text)            # "Review: ", "text", "\nSentiment: ", "label", ""
        self._check(parts[1::2])
        if "label" not in parts[1::2]:
            parts[-1] += "" if text[-1:].isspace() else " "
            parts += ["label", ""]
        place = 2 * parts[1::2].index("label") + 1                 # odd places hold names, even ones fixed text
        self._before, self._behind = parts[:place], parts[place + 1:]
        self._joint = " " * (len(parts[place - 1]) - len(parts[place - 1].rstrip(" ")))

    def _check(self, names):
        where, known = f"template {self.text!r}", ", ".join(f"{{{name}}}" for name in self.fields)
        for name in names:
            if name not in (*self.fields, "label"):
                raise InputError(f"{where}: there is no field {{{name}}}: write {known} for the texts and {{label}} "
                                 "for the label")
        for name in self.fields:
            if name not in names:
                raise InputError(f"{where}: {{{name}}} does not stand in it: write each of {known} at least once (or "
                                 "correct the path, if this was to be the name of a file)")
        if names.count("label") > 1:
            raise InputError(f"{where}: {{label}} stands in it {names.count('label')} times: write it once")

    def _fill(self, parts, texts):
        if isinstance(texts, str) or len(texts) != len(self.fields):
            raise InputError(f"template {short(self.text)}: given {short(texts)}, needs {len(self.fields)} text(s), one for "
                             f"each of {', '.join(self.fields)}")
        value = dict(zip(self.fields, texts))                      # in one pass: a text may itself hold "{label}"
        return "".join(value[part] if place % 2 else part for place, part in enumerate(parts))

    def prompt(self, texts):
        """Everything up to the label, without spaces at its end: "Review: Great.\\nSentiment:"."""
        return self._fill(self._before, texts).rstrip(" ")

    def answer(self, label_text):
        """The label with the spaces that join it to the prompt: " positive". Raises InputError if it is blank."""
        if not label_text.strip():
            raise InputError(f"template {short(self.text)}: the text of a label is empty: give each class at least one word")
        return self._joint + label_text

    def tail(self, texts):
        """What stands behind the label; "" where nothing does."""
        return self._fill(self._behind, texts)

    def whole(self, texts, label_text):
        """A finished example: prompt, answer and tail, without white space at the end."""
        return (self.prompt(texts) + self.answer(label_text) + self.tail(texts)).rstrip()

    @property
    def reads_on(self):
        """True if a text stands behind the label: a decoder, which reads left to right, would see it too late."""
        return len(self._behind) > 1


class Prompt:
    """An instruction, finished examples ("shots"), and the row to be judged, with one blank line between them.

    shots: [(texts, label text), ...] in the order in which they are shown. Raises InputError as Template does.
    """

    def __init__(self, template, instruction="", shots=()):
        self.template, self.instruction = template, instruction
        self.shots = tuple((tuple(texts), label_text) for texts, label_text in shots)
        blocks = [instruction.strip()] if instruction.strip() else []
        blocks += [template.whole(*shot) for shot in self.shots]
        self._front = "".join(block + "\n\n" for block in blocks)

    def render(self, texts):
        """"instruction\\n\\nshot 1\\n\\nshot 2\\n\\nprompt"; without instruction and shots just the prompt."""
        return self._front + self.template.prompt(texts)

    def tail(self, texts):
        """What stands behind the label of the row; "" where nothing does."""
        return self.template.tail(texts)

    def shown(self, texts):
        """All that is read, for people: with "..." where the label goes."""
        return self.render(texts) + self.template.answer("...")

    def size(self, texts, count):
        """Tokens of the whole row but for its label. count: a function, str -> number of tokens."""
        return count(self.render(texts) + self.tail(texts))

    def fitted(self, texts, count, budget):
        """(texts, False) where they fit: where `size` is at most `budget`. Else they are cut: (shorter texts, True).

        One cap of characters holds for all texts, the largest that fits: so the longest is cut first, and a short one
        only once none is longer. Cut at the end. Nothing else is ever cut: InputError if not even 1 character fits.
        """
        texts = tuple(texts)
        if self.size(texts, count) <= budget:
            return texts, False
        longest = max(map(len, texts), default=0)
        cap = largest(lambda length: self.size(cut(texts, length), count) <= budget, longest)
        if not cap:
            fixed = self.size([""] * len(texts), count)
            raise InputError(f"the prompt takes {fixed} tokens without its texts, and {budget} are allowed with them: "
                             "use fewer shots, a shorter instruction, or a model that takes longer texts")
        return cut(texts, cap), True


def cut(texts, cap):
    """Each text with at most `cap` characters; one that is cut loses the white space at its new end as well."""
    return tuple(text if len(text) <= cap else text[:cap].rstrip() for text in texts)


def largest(fits, limit):
    """The largest number from 1 to limit - 1 that fits(number), by bisection; 0 if none does. `limit` does not fit.

    Tokens do not grow strictly with characters ("unhappines" may take more than "unhappiness"): what is returned fits,
    and the next number does not, though a still larger one might.
    """
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
