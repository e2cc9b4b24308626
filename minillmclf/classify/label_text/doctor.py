"""The label doctor: what a person should know about label texts before they are scored, from the tokenizer alone.

    ' positive'  1  Ġpositive  3967        where it stands, behind "Sentiment:"
    'positive'   2  24561 1800             cut alone: other tokens, another probability

Here: the tokens of each text in its place and cut alone, texts that begin alike, lengths, unknown tokens, the ends of the
prompt; each fault with its remedy. Not here: what makes a readout impossible, which building it refuses (labels.py), and
what a model makes of the texts (calibrate.py).
"""
import textwrap
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import permutations

from .labels import SourceReadout
from .masks import MaskReadout

WIDTH = 100               # columns of a terminal
ALL, SOME = 30, 10        # up to ALL texts each has its line; of more, SOME have
EXAMPLE, UNCUT = "an example of a text", 10**9
FORMS = {"as it is": lambda text: text,
         "space before": lambda text: " " + text,
         "Capital": lambda text: text[:1].upper() + text[1:],
         "space, Capital": lambda text: " " + text[:1].upper() + text[1:]}


@dataclass
class LabelText:
    """One label text as it is scored. ids, pieces: its tokens, the end token among them where there is one."""
    label: str
    text: str                     # with the space that joins it to the prompt, if one does: " positive"
    pieces: list
    ids: list
    alone: dict                   # form -> the ids of that form where no prompt is before it
    in_use: list                  # the forms that are, cut alone, the very tokens in use
    unknown: bool                 # is a token of it the unknown one?
    in_bytes: bool                # is a character of it spelled in pieces of bytes?


@dataclass
class Report:
    """What was found. Sentences in `warnings` ask for a decision, those in `notes` do not."""
    place: str                    # where a label stands
    end: str | None               # the token that ends each label, as the vocabulary writes it
    score_by: str
    texts: list                   # a LabelText for each text, class by class
    shared: list                  # {"piece", "id", "texts"}: texts of different classes that begin with the same token
    beginnings: list              # (text, text): all tokens of the first begin the second
    lengths: dict                 # {"shortest", "longest", "mean"} number of tokens
    blank: dict                   # id -> piece: tokens of `alone` that are nothing but white space
    prompt: dict                  # {"tokens": how many, "first": three pieces, "last": three pieces} of an example
    warnings: list
    notes: list

    def as_dict(self):
        """The report as plain dicts, lists, numbers and strings: ready for JSON."""
        return asdict(self)

    def lines(self):
        """The report as aligned lines of at most WIDTH columns, ready to print."""
        shown = conspicuous(self)
        left = len(self.texts) - len(shown)
        end = f"each ended by {self.end}" if self.end else "no end token"
        lines = [f"{len(self.texts)} label texts {self.place}, {end}"]
        lines += aligned([["class", "text", "tokens", "pieces", "ids"], *(
            [t.label, repr(t.text), len(t.ids), " ".join(t.pieces), listed(t.ids, 4)] for t in shown)], (12, 22, 6, 22, 0))
        lines += [f"  and {left} more, less conspicuous"] * (left > 0)
        lines += ["", "cut alone, without a prompt (* the very tokens in use)"]
        lines += aligned([["text", *FORMS], *(
            [repr(t.text.lstrip(" ")), *(listed(ids, 2) + " *" * (form in t.in_use) for form, ids in t.alone.items())]
            for t in shown)], (18, 18, 18, 18, 0))
        lines += [f"  {i} is {piece!r}, white space alone" for i, piece in self.blank.items()]
        first, last = (visible(" ".join(self.prompt[end])) for end in ("first", "last"))
        lines += ["", f"prompt: {self.prompt['tokens']} tokens for {EXAMPLE!r}; first {first}, last {last}"]
        lines += ["tokens of a label text: shortest {shortest}, longest {longest}, mean {mean:.1f}".format(**self.lengths)]
        for group in self.shared[:SOME]:
            lines += wrapped(f"begin with {visible(group['piece'])} ({group['id']}): {some(group['texts'])}")
        lines += [f"and {len(self.shared) - SOME} more groups that begin alike"] * (len(self.shared) > SOME)
        lines += [line for warning in self.warnings for line in wrapped(f"WARNING: {warning}")]
        lines += [line for note in self.notes for line in wrapped(f"note: {note}")]
        return lines + [summary(self)]


# ------------------------------------------------------------------------------------------------ what is counted

def examine(tokenizer, readout, labels=None):
    """Look at a built LabelReadout, SourceReadout or MaskReadout -> Report. No model is needed.

    labels: names of the classes, in order; without them a class is called by its first text. Raises InputError where no
    prompt could be laid out either: one that doubles the token before a text, or writes a mask token of its own.
    """
    names = labels or [readout.texts[own[0]] for own in readout.own]
    pieces = {i: piece for piece, i in tokenizer.vocab.items()}
    owner = {number: name for name, own in zip(names, readout.own) for number in own}
    texts = [look_at(tokenizer, readout, pieces, number, owner[number]) for number in range(len(readout.texts))]
    cut = [i for t in texts for ids in t.alone.values() for i in ids]
    prompt = readout.lay_out(tokenizer, (EXAMPLE,) * len(readout.prompt.template.fields), UNCUT)[0][0]
    lengths = [len(t.ids) for t in texts]
    report = Report(
        place_of(readout), pieces[tokenizer.eos_id] if readout.end == "eos" else None, readout.score_by, texts,
        shared=shared_first(texts), beginnings=beginnings(texts, readout.end == "eos"),
        lengths={"shortest": min(lengths), "longest": max(lengths), "mean": sum(lengths) / len(lengths)},
        blank={i: pieces[i] for i in sorted(set(cut)) if not tokenizer.decode([i], keep_specials=True).strip()},
        prompt={"tokens": len(prompt), "first": [pieces[i] for i in prompt[:3]], "last": [pieces[i] for i in prompt[-3:]]},
        warnings=[], notes=[])
    found = [*about_texts(report, isinstance(readout, MaskReadout)), *about_start(tokenizer, prompt, pieces)]
    if not isinstance(readout, SourceReadout):                             # there it begins an answer of its own
        found += about_joint(readout.prompt)
    for kind, sentence in found:
        getattr(report, kind).append(sentence)
    return report


def place_of(readout):
    """Where the labels of a readout stand, in words."""
    kinds = {MaskReadout: "in place of mask tokens", SourceReadout: "in an answer of their own"}
    return kinds.get(type(readout), "behind the prompt")


def look_at(tokenizer, readout, pieces, number, label):
    """The text of this number -> LabelText."""
    text, tokens = readout.texts[number], readout.tree.tokens.tolist()
    ids = [tokens[edge] for edge in readout.tree.paths[number]]
    body = ids[:-1] if readout.end == "eos" else ids
    alone = {form: tokenizer.ids(change(text)) for form, change in FORMS.items()}
    return LabelText(
        label, text if isinstance(readout, SourceReadout) else readout.prompt.template.answer(text),
        [pieces[i] for i in ids], ids, alone, in_use=[form for form, found in alone.items() if found == body],
        unknown=tokenizer.unk_id is not None and tokenizer.unk_id in body,
        in_bytes=any("\ufffd" in tokenizer.decode([i], keep_specials=True) for i in body))


def shared_first(texts):
    """Groups of texts of different classes that begin with the same token -> [{"piece", "id", "texts"}], largest first."""
    groups = defaultdict(list)
    for t in texts:
        groups[t.ids[0], t.pieces[0]].append(t)
    found = [{"piece": piece, "id": i, "texts": [t.text for t in group]}
             for (i, piece), group in groups.items() if len({t.label for t in group}) > 1]
    return sorted(found, key=lambda group: -len(group["texts"]))


def beginnings(texts, ended):
    """Pairs of texts of which the first begins the second, before any end token -> [(text, text), ...]"""
    bodies = [(t.text, t.ids[:-1] if ended else t.ids) for t in texts]
    return [(a, b) for (a, short), (b, long) in permutations(bodies, 2) if long[:len(short)] == short]


# ------------------------------------------------------------------------------------------------ what is said of it

def about_texts(r, masked):
    """("warnings" or "notes", sentence) for each fault of the texts themselves. masked: do they stand in place of masks?"""
    unknown, in_bytes = ([t.text for t in r.texts if getattr(t, fault)] for fault in ("unknown", "in_bytes"))
    if unknown:
        yield "warnings", f"{some(unknown)} with unknown tokens, which any other rare word has too: choose other words"
    pairs = [f"{a!r} begins {b!r}" for a, b in r.beginnings]
    pairs = "; ".join(pairs[:3]) + (f"; and {len(pairs) - 3} more" if len(pairs) > 3 else "")
    if pairs and masked:
        yield "notes", f"{pairs}: each is read from mask tokens of its own number"
    elif pairs and r.end:
        yield "notes", f"{pairs}: the end token {r.end} tells them apart"
    elif pairs:
        yield "warnings", (f"{pairs}, and no end token: the shorter one is never less probable: use --end auto, or other "
                           f"words")
    if r.lengths["shortest"] < r.lengths["longest"]:
        yield "warnings", (f"label texts of {r.lengths['shortest']} to {r.lengths['longest']} tokens, compared by "
                           f"{r.score_by}: sums favour short ones, --score-by token favours long ones: choose words of one "
                           f"length, or try both on dev")
    if r.shared:
        yield "notes", (f"{sum(len(group['texts']) for group in r.shared)} texts begin with the same token as one of another "
                        f"class: they are scored whole here, a tool that looks at first tokens would confuse them")
    if in_bytes:
        yield "notes", f"{some(in_bytes)} with characters spelled in bytes: more tokens than it looks, seldom seen ones"


def about_start(tokenizer, prompt, pieces):
    """Is the token that begins every text there, once? Where it also ends texts (GPT-2) none is expected."""
    start = tokenizer.cls_id if tokenizer.bos_id is None else tokenizer.bos_id
    if start is None or start == tokenizer.eos_id:
        return
    if prompt[0] != start:
        yield "warnings", (f"the prompt does not begin with {pieces[start]}, though the vocabulary has it: if the model was "
                           f"trained with it, set add_bos_token in tokenizer_config.json")
    if prompt[1:].count(start):
        yield "warnings", (f"the prompt holds {pieces[start]} {prompt.count(start)} times: it is put before every text, leave "
                           f"it out")


def about_joint(prompt):
    """What stands directly before and behind the label."""
    texts = (EXAMPLE,) * len(prompt.template.fields)
    before, joint, behind = prompt.template.prompt(texts)[-1:], prompt.template.answer("x")[:-1], prompt.template.tail(texts)[:1]
    if before.isspace():
        yield "warnings", (f"the prompt ends in {before!r}: the label begins without the space that its usual token holds; "
                           f"if no chat format asks for it, end the template with a word and ':'")
    if len(joint) > 1:
        yield "warnings", f"{len(joint)} spaces before the label: one belongs to its token, more are rare tokens: leave one"
    if not joint and before.isalnum():
        yield "warnings", f"the label follows the letter {before!r} without a space: put ' ' or ':' between them"
    if behind.isalnum():
        yield "warnings", f"the letter {behind!r} follows the label without a space: put one behind {{label}}"


# ------------------------------------------------------------------------------------------------ how it is shown

def conspicuous(r):
    """The texts that get a line: all, or of many those with a fault first, then the longest; in the order of the classes."""
    if len(r.texts) <= ALL:
        return r.texts
    begin = {short for short, _ in r.beginnings}

    def rank(number):
        t = r.texts[number]
        return not t.unknown, t.text not in begin, -len(t.ids)
    return [r.texts[number] for number in sorted(sorted(range(len(r.texts)), key=rank)[:SOME])]


def summary(r):
    """The last line."""
    if not r.warnings and not r.notes:
        return "no findings"
    counts = ((len(r.warnings), "warning"), (len(r.notes), "note"))
    return ", ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts)


def visible(piece):
    """A piece with no line end or other control character in it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in piece)


def listed(ids, most):
    """"3967", or "24561 1800 +3" where there are more than `most`."""
    return " ".join(map(str, ids[:most])) + (f" +{len(ids) - most}" if len(ids) > most else "")


def some(texts, most=5):
    """"' a', ' b' and 3 more"."""
    return ", ".join(map(repr, texts[:most])) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def aligned(table, widest):
    """Rows of cells -> lines; a cell longer than its column's `widest` is cut, 0 means as long as it likes."""
    table = [[visible(str(cell)) for cell in row] for row in table]
    table = [[cell[:most - 3] + "..." if 0 < most < len(cell) else cell for cell, most in zip(row, widest)] for row in table]
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def wrapped(text):
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False)
