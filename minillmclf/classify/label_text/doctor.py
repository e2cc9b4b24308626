"""The label doctor: what the tokenizer alone tells about label texts, before any model runs.

    ' positive'  1  Ġpositive  3967        in its place, after "Sentiment:"
    'positive'   2  24561 1800             tokenized alone: other tokens, another probability

Here: the tokens of each text in its place and alone, texts that begin alike, lengths, unknown
tokens, the ends of the prompt; each fault with its remedy. Not here: faults with which no readout
can be built (readout.py).
"""
import textwrap
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import permutations

from ...files import escape_control
from .masks import MaskReadout
from .readout import SourceReadout

WIDTH = 100               # columns of a printed line
MAX_LINES, FEWER_LINES = 30, 10    # lines for texts: one each if there are up to 30, else 10
EXAMPLE, NO_LIMIT = "an example of a text", 10**9
FORMS = {"as it is": lambda text: text,
         "space before": lambda text: " " + text,
         "Capital": lambda text: text[:1].upper() + text[1:],
         "space, Capital": lambda text: " " + text[:1].upper() + text[1:]}


@dataclass
class LabelText:
    """A label text as it is scored. ids, pieces: of its tokens, with the end token if any."""
    label: str
    text: str                     # with the space that joins it to the prompt, if any: " positive"
    pieces: list
    ids: list
    alone: dict                   # form -> the ids of that form, tokenized without a prompt
    in_use: list                  # the forms with exactly the scored ids
    unknown: bool                 # does it have an unknown token?
    in_bytes: bool                # is one of its characters split into byte tokens?

    @classmethod
    def from_readout(cls, tokenizer, readout, pieces, number, label):
        """The text of this number in a readout. pieces: id -> piece."""
        text, path = readout.texts[number], readout.tree.paths[number]
        ids = readout.tree.edge_tokens[path].tolist()
        body = ids[:-1] if readout.end == "eos" else ids
        alone = {form: tokenizer.ids(change(text)) for form, change in FORMS.items()}
        return cls(
            label, readout.continuation(text), [pieces[i] for i in ids], ids, alone,
            in_use=[form for form, found in alone.items() if found == body],
            unknown=tokenizer.unk_id is not None and tokenizer.unk_id in body,
            in_bytes=any("\ufffd" in tokenizer.decode([i], keep_specials=True) for i in body))


@dataclass
class LabelReport:
    """What was found. `warnings` are sentences that ask for a decision, `notes` are not."""
    place: str                    # where a label stands
    end: str | None               # the token that ends each label, as the vocabulary writes it
    score_by: str
    texts: list                   # a LabelText for each text, class by class
    shared: list                  # {"piece", "id", "texts"}: classes with the same first token
    beginnings: list         # (a, b): the tokens of text b begin with those of text a
    lengths: dict                 # {"shortest", "longest", "mean"} number of tokens
    blank: dict                   # id -> piece: tokens of `alone` that are only white space
    prompt: dict                  # of an example: {"tokens": how many, "first", "last": 3 pieces}
    warnings: list
    notes: list

    def as_dict(self):
        """The report as plain dicts, lists, numbers and strings, ready for JSON."""
        return asdict(self)

    def lines(self):
        """The report as aligned lines of at most WIDTH columns, ready to print."""
        end = f"each ended by {self.end}" if self.end else "no end token"
        lines, shown = [f"{len(self.texts)} label texts {self.place}, {end}"], self.shown_texts()
        used, alone = [["class", "text", "tokens", "pieces", "ids"]], [["text", *FORMS]]
        for t in shown:
            pieces = " ".join(t.pieces)
            used.append([t.label, repr(t.text), len(t.ids), pieces, first_ids(t.ids, 4)])
            alone.append([repr(t.text.lstrip(" "))] + [
                first_ids(ids, 2) + " *" * (form in t.in_use) for form, ids in t.alone.items()])
        lines += align_columns(used, 12, 22, 6, 22)
        if len(shown) < len(self.texts):
            lines.append(f"  and {len(self.texts) - len(shown)} more, less conspicuous")
        lines += ["", "cut alone, without a prompt (* the very tokens in use)"]
        lines += align_columns(alone, 18, 18, 18, 18)
        lines += [f"  {i} is {piece!r}, white space alone" for i, piece in self.blank.items()]
        first, last = (escape_control(" ".join(self.prompt[end])) for end in ("first", "last"))
        lines += ["", f"prompt: {self.prompt['tokens']} tokens for {EXAMPLE!r}; first {first}, "
                  f"last {last}"]
        lines += ["tokens of a label text: shortest {shortest}, longest {longest}, mean {mean:.1f}"
                  .format(**self.lengths)]
        for sentence in self.sentences():
            lines += textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_long_words=False)
        counts = [f"{len(found)} {kind}{'s' * (len(found) != 1)}"
                  for kind, found in (("warning", self.warnings), ("note", self.notes))]
        return lines + [", ".join(counts) if self.warnings or self.notes else "no findings"]

    def sentences(self):
        """What stands below the tables: groups of texts that begin alike, warnings, notes."""
        sentences = [f"begin with {escape_control(group['piece'])} ({group['id']}): "
                     f"{quote_texts(group['texts'])}" for group in self.shared[:FEWER_LINES]]
        if len(self.shared) > FEWER_LINES:
            sentences.append(f"and {len(self.shared) - FEWER_LINES} more groups that begin alike")
        sentences += [f"WARNING: {warning}" for warning in self.warnings]
        return sentences + [f"note: {note}" for note in self.notes]

    def shown_texts(self):
        """The texts that get a line: all; of many, those with a fault first, then the longest."""
        if len(self.texts) <= MAX_LINES:
            return self.texts
        begins = {short for short, _ in self.beginnings}
        ranked = sorted(self.texts,
                        key=lambda t: (not t.unknown, t.text not in begins, -len(t.ids)))
        return sorted(ranked[:FEWER_LINES], key=self.texts.index)      # in their order again


# ------------------------------------------------------------------------------ what is counted

def examine_labels(tokenizer, readout, labels):
    """Look at a LabelReadout, SourceReadout or MaskReadout -> LabelReport. No model is needed.

    labels: names of the classes, in order. InputError where the example prompt cannot be encoded.
    """
    pieces = {i: piece for piece, i in tokenizer.vocab.items()}
    texts = [LabelText.from_readout(tokenizer, readout, pieces, number, name)
             for name, numbers in zip(labels, readout.class_texts) for number in numbers]
    lengths = [len(t.ids) for t in texts]
    alone = sorted({i for t in texts for ids in t.alone.values() for i in ids})
    example = (EXAMPLE,) * len(readout.prompt.template.fields)
    prompt = readout.encode_row(tokenizer, example, NO_LIMIT)[0][0]
    report = LabelReport(
        readout.PLACE, pieces[tokenizer.eos_id] if readout.end == "eos" else None, readout.score_by,
        texts, group_by_first(texts), find_beginnings(texts, readout.end == "eos"),
        lengths={"shortest": min(lengths), "longest": max(lengths),
                 "mean": sum(lengths) / len(lengths)},
        blank={i: pieces[i] for i in alone
               if not tokenizer.decode([i], keep_specials=True).strip()},
        prompt={"tokens": len(prompt), "first": [pieces[i] for i in prompt[:3]],
                "last": [pieces[i] for i in prompt[-3:]]},
        warnings=[], notes=[])
    findings = text_findings(report, isinstance(readout, MaskReadout))
    findings += start_findings(tokenizer, prompt, pieces)
    if not isinstance(readout, SourceReadout):                    # its label has a text of its own
        findings += template_findings(readout.prompt.template, example)
    for kind, holds, sentence in findings:
        if holds:
            getattr(report, kind).append(sentence)
    return report


def group_by_first(texts):
    """Texts of different classes with the same first token -> LabelReport.shared, largest first."""
    groups = defaultdict(list)
    for t in texts:
        groups[t.ids[0], t.pieces[0]].append(t)
    found = [{"piece": piece, "id": i, "texts": [t.text for t in group]}
             for (i, piece), group in groups.items() if len({t.label for t in group}) > 1]
    return sorted(found, key=lambda group: -len(group["texts"]))


def find_beginnings(texts, ended):
    """-> [(a, b), ...], b begins with the tokens of a. ended: do all texts have an end token?"""
    bodies = [(t.text, t.ids[:-1] if ended else t.ids) for t in texts]
    return [(a, b) for (a, short), (b, long) in permutations(bodies, 2)
            if long[:len(short)] == short]


# ----------------------------------- findings: ("warnings" or "notes", does it hold?, a sentence)

def text_findings(r, masked):
    """Findings about the label texts. masked: do they stand in place of mask tokens?"""
    unknown, in_bytes = ([t.text for t in r.texts if getattr(t, fault)]
                         for fault in ("unknown", "in_bytes"))
    pairs = "; ".join(f"{a!r} begins {b!r}" for a, b in r.beginnings[:3])
    pairs += f"; and {len(r.beginnings) - 3} more" * (len(r.beginnings) > 3)
    shortest, longest = r.lengths["shortest"], r.lengths["longest"]
    alike = sum(len(group["texts"]) for group in r.shared)
    return [
        ("warnings", unknown,
         f"{quote_texts(unknown)} with unknown tokens, which any other rare word has too: choose "
         "other words"),
        ("notes", pairs and masked,
         f"{pairs}: each is read from mask tokens of its own number"),
        ("notes", pairs and not masked and r.end,
         f"{pairs}: the end token {r.end} tells them apart"),
        ("warnings", pairs and not masked and not r.end,
         f"{pairs}, and no end token: the shorter one is never less probable: use --end auto, or "
         "other words"),
        ("warnings", shortest < longest,
         f"label texts of {shortest} to {longest} tokens, compared by {r.score_by}: sums favour "
         "short ones, --score-by token favours long ones: choose words of one length, or try both "
         "on dev"),
        ("notes", r.shared,
         f"{alike} texts begin with the same token as one of another class: they are scored whole "
         "here, a tool that looks at first tokens would confuse them"),
        ("notes", in_bytes,
         f"{quote_texts(in_bytes)} with characters spelled in bytes: more tokens than it looks, "
         "seldom seen ones")]


def start_findings(tokenizer, prompt, pieces):
    """Is the token that begins every text there exactly once? Not checked where the same token
    also ends texts (GPT-2)."""
    start = tokenizer.cls_id if tokenizer.bos_id is None else tokenizer.bos_id
    if start is None or start == tokenizer.eos_id:
        return []
    return [
        ("warnings", prompt[0] != start,
         f"the prompt does not begin with {pieces[start]}, though the vocabulary has it: if the "
         "model was trained with it, set add_bos_token in tokenizer_config.json"),
        ("warnings", start in prompt[1:],
         f"the prompt holds {pieces[start]} {prompt.count(start)} times: it is put before every "
         "text, leave it out")]


def template_findings(template, example):
    """Findings about the characters directly before and after the label."""
    before, after = template.prompt(example)[-1:], template.tail(example)[:1]
    spaces = len(template.continuation("x")) - 1
    return [
        ("warnings", before.isspace(),
         f"the prompt ends in {before!r}: the label begins without the space that its usual token "
         "holds; if no chat format asks for it, end the template with a word and ':'"),
        ("warnings", spaces > 1,
         f"{spaces} spaces before the label: one belongs to its token, more are rare tokens: leave "
         "one"),
        ("warnings", not spaces and before.isalnum(),
         f"the label follows the letter {before!r} without a space: put ' ' or ':' between them"),
        ("warnings", after.isalnum(),
         f"the letter {after!r} follows the label without a space: put one behind {{label}}")]


# ------------------------------------------------------------------------------ how it is printed

def first_ids(ids, most):
    """-> "3967", or "24561 1800 +3" where there are 3 more than `most`."""
    return " ".join(map(str, ids[:most])) + f" +{len(ids) - most}" * (len(ids) > most)


def quote_texts(texts, most=5):
    """-> "' a', ' b' and 3 more"."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(map(repr, texts[:most])) + more


def align_columns(table, *widest):
    """Rows of cells -> lines. widest: characters of each column but the last; cells are cut."""
    rows = []
    for row in table:
        row = [escape_control(str(cell)) for cell in row]
        for i, most in enumerate(widest):
            row[i] = row[i] if len(row[i]) <= most else row[i][:most - 3] + "..."
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
