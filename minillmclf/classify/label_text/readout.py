"""A readout of label texts: a class is scored by words that name it, its "verbalizer" (Schick and
Schuetze 2021, "PET"; Brown et al. 2020).

    "Review: a dull film\\nSentiment:"  ->  log p(" negative" | prompt), log p(" positive" | prompt)

A class has one or more label texts. Each is scored by all its tokens, not by its first alone; the
probabilities of a class's texts are added. The place of the label depends on the architecture:
after the prompt (decoders), in a target of its own (encoder-decoders), or in place of mask tokens
(encoders: masks.py). No weight is added, so the model can still write text. L: number of all texts.

Not here: templates (text/prompt.py), the tree that scores all label texts in one forward pass
(models/tree.py), decoding (decode.py), calibration (calibrate.py).
"""
import contextlib
import functools
import os.path
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ...errors import InputError
from ...files import short
from ...models.cache import prefill
from ...models.tree import TokenTree, tree_log_probs, pad_right, num_shared_tokens
from ...training.completion_loss import text_to_text_loss
from ..readout import Readout

ENDS, SCORE_BY = ("auto", "none", "eos"), ("sum", "token", "char", "byte")
MIN_SHARED_TOKENS = 16   # a shorter common beginning is not worth a forward pass of its own


@dataclass
class Shared:
    """The common beginning of all rows that a head reads in a `shared_work` block."""
    head: object
    tokens: int
    cache: object = None            # filled by the first batch


SHARED = ContextVar("SHARED", default=None)     # of this thread: threads may use one model at once


def ids_after(tokenizer, context, more):
    """The ids of `more` after `context`: " positive" is another token than "positive"."""
    before, both = tokenizer.ids(context), tokenizer.ids(context + more)
    if both[:len(before)] != before or len(both) == len(before):
        raise InputError(f"label text {short(more)}: after {context[-40:]!r} it is not cut into "
                         f"tokens of its own ({tokenizer.tokens(context + more)[-6:]}): end the "
                         "template with another sign, such as ':'")
    return both[len(before):]


class LabelReadout(Readout):
    """For decoders: the label follows the prompt.

    labels: names in class order; prompt: text.prompt.Prompt; label_texts: {label: [text, ...]}.
    end: whether every label ends in an end-of-text token: "eos", "none", or "auto": only if one
    label begins another. score_by: log-probabilities are compared as they are ("sum"), or divided
    by the number of tokens, characters or bytes, which favours long labels.
    """

    PLACE = "behind the prompt"     # where the label stands
    AUTO_END = None                 # what end="auto" means; None: it depends on the label texts
    READS_AFTER_LABEL = False       # may the template go on after {label}?

    def __init__(self, tokenizer, labels, prompt, label_texts, end="auto", score_by="sum"):
        super().__init__()
        self.prompt, self.score_by = prompt, score_by
        self.texts, self.class_texts = [], []       # all label texts; their indices by class
        for label in labels:
            first = len(self.texts)
            self.texts += label_texts[label]
            self.class_texts.append(list(range(first, len(self.texts))))
        if prompt.template.has_text_after_label and not self.READS_AFTER_LABEL:
            raise InputError(f"template {prompt.template.text!r}: a field stands after {{label}}, "
                             "where this model cannot look when it writes the label: put it before")
        label_ids = [self.label_ids(tokenizer, text) for text in self.texts]
        check_ids(tokenizer, self.texts, label_ids)
        nested = any(a != b and b[:len(a)] == a for a in label_ids for b in label_ids)
        auto_end = self.AUTO_END or ("eos" if nested else "none")
        self.end = auto_end if end == "auto" else end
        if self.end == "eos" and tokenizer.eos_id is None:
            raise InputError("labels must end in an end-of-text token here, and this tokenizer has "
                             "none: choose label texts of which none begins another, and end "
                             "'none'")
        end_ids = [tokenizer.eos_id] if self.end == "eos" else []
        self.tree = TokenTree([ids + end_ids for ids in label_ids])
        self.longest_label = max(map(len, self.tree.paths))       # path: the edges, one per token

    @property
    def reserved_tokens(self):
        """Tokens of max_length that are kept free for a label."""
        return self.longest_label

    def continuation(self, text):
        """A label text after the space that joins it to the prompt: " positive"."""
        return self.prompt.template.continuation(text)

    def label_ids(self, tokenizer, text):
        """The ids of a label text in its place, which must not depend on the text before it."""
        template, found = self.prompt.template, []
        for word in ("word", "word."):
            context = template.prompt((word,) * len(template.fields))
            found.append(ids_after(tokenizer, context, self.continuation(text)))
        if found[0] != found[1]:
            raise InputError(f"label text {short(text)}: its tokens depend on the text before it "
                             f"({found[0]}, {found[1]}): put fixed words between the text and the "
                             "label")
        return found[0]

    def prompt_ids(self, tokenizer, text):
        """The ids of a prompt, with the special tokens that begin a text and none that end it."""
        ids = tokenizer.prompt_ids(tokenizer.ids(text))
        if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
            raise InputError(f"the prompt {text[:40]!r} begins with the token that is put before "
                             "every text: two of them spoil the answers, leave it out of the "
                             "template")
        return ids

    def counter(self, tokenizer):
        """A function that counts the tokens of a prompt, a string."""
        return lambda text: len(self.prompt_ids(tokenizer, text))

    def count_tokens(self, tokenizer, parts):
        """The number of tokens of a row with the longest label, before anything is cut."""
        return self.prompt.num_tokens(parts, self.counter(tokenizer)) + self.reserved_tokens

    def fit_texts(self, tokenizer, parts, max_length):
        """Cut a row's texts so that prompt and label fit into max_length -> texts, was any cut?"""
        return self.prompt.fit_texts(parts, self.counter(tokenizer),
                                     max_length - self.reserved_tokens)

    def encode_row(self, tokenizer, parts, max_length):
        """The texts of a row -> (ids, token types), was any cut? max_length: as for `fit_texts`."""
        parts, cut = self.fit_texts(tokenizer, parts, max_length)
        ids = self.prompt_ids(tokenizer, self.prompt.render(parts))
        if not ids:
            raise InputError("the prompt holds no token: give the template a word beside its "
                             "fields")
        return (ids, [0] * len(ids)), cut

    def read(self, backbone, ids, mask, types=None, layout=None):
        """Prompts (B, T) -> logits (B, C): the classes' log-probabilities, not normalised."""
        log_probs = self.text_log_probs(backbone, ids, mask, types)                     # (B, L)
        return self.add_by_class(self.normalize_lengths(log_probs, self.score_by))

    def text_log_probs(self, backbone, ids, mask, types=None):
        """-> the log-probability of each label text, summed over its tokens, (B, L)."""
        ids, mask, context = backbone.prepare_prompt(ids, mask)
        cache = None
        if context is None:                                               # a decoder
            ids, mask, cache = self.share_beginning(backbone, ids, mask)
        return self.tree.sum_paths(tree_log_probs(backbone, ids, mask, self.tree, cache, context))

    def normalize_lengths(self, log_probs, by):
        """Log-probabilities (B, L) -> (B, L), per token, char or byte; unchanged for by="sum"."""
        if by == "sum":
            return log_probs
        lengths = {"token": [len(path) for path in self.tree.paths],
                   "char": [len(text) for text in self.texts],
                   "byte": [len(text.encode()) for text in self.texts]}[by]
        return log_probs / torch.tensor(lengths, dtype=log_probs.dtype, device=log_probs.device)

    def add_by_class(self, log_probs):
        """Log-probabilities of texts (B, L) -> of classes (B, C): the probabilities are added."""
        texts = pad_sequence([torch.tensor(numbers) for numbers in self.class_texts],
                             batch_first=True, padding_value=-1).to(log_probs.device)  # (C, most)
        by_class = log_probs[:, texts.clamp(min=0)]                              # (B, C, most)
        return by_class.masked_fill(texts < 0, float("-inf")).logsumexp(2)

    def share_beginning(self, backbone, ids, mask):
        """Read the rows' common beginning once -> ids and mask of the rest, its cache or None."""
        ids, mask = pad_right(ids, mask)
        shared = SHARED.get()
        if shared is None or shared.head is not self:    # outside of `shared_work`: this batch's
            shared = Shared(self, num_shared_tokens(ids, mask) if len(ids) > 1 else 0)
        tokens = shared.tokens
        if tokens < MIN_SHARED_TOKENS:
            return ids, mask, None
        shared.cache = shared.cache or prefill(backbone, ids[:1, :tokens])
        return ids[:, tokens:], mask[:, tokens:], shared.cache.expand(len(ids))

    @contextlib.contextmanager
    def shared_work(self, model, encoded):
        """with head.shared_work(model, encoded): the rows' common beginning is read just once."""
        sequences = [ids for row in encoded for ids, _ in model.task.sequences(row)]
        before = SHARED.set(Shared(self, common_length(sequences)))
        try:
            yield
        finally:
            SHARED.reset(before)

    def target_ids(self, labels):
        """Class numbers (B,) -> ids (B, n) and mask (B, n) of each class's first label text, padded
        on the right."""
        paths = [torch.tensor(self.tree.paths[self.class_texts[label][0]])
                 for label in labels.tolist()]
        edges = pad_sequence(paths, batch_first=True, padding_value=-1).to(labels.device)
        return self.tree.edge_tokens[edges.clamp(min=0)], (edges >= 0).long()

    def completion_loss(self, backbone, ids, mask, labels):
        """-log p(label text | prompt), summed over the tokens of all label texts. -> scalar

        The loss covers label tokens by place, not by id: an end token counts even if it also pads.
        """
        label_ids, real = self.target_ids(labels)                                   # (B, n)
        ids = torch.cat([ids, label_ids[:, :-1]], 1)               # the last token is never read
        mask = torch.cat([mask, real[:, 1:].to(mask.dtype)], 1)
        states = backbone.states(ids, mask, read=label_ids.shape[1])   # (B, n, D), the last n
        states = states[real.flip(1).bool()]          # (N, D), each predicts a label token
        logits = backbone.logits(states).float()                                    # (N, V)
        return F.cross_entropy(logits, label_ids[real.bool()], reduction="sum")

    def answer_lengths(self):
        """-> C numbers, the tokens of each class's first label text with its end token if any."""
        return [len(self.tree.paths[numbers[0]]) for numbers in self.class_texts]


class SourceReadout(LabelReadout):
    """For encoder-decoders (T5): the prompt is the source, the label a target with an end token."""

    PLACE = "in an answer of their own"
    AUTO_END = "eos"
    reserved_tokens = 0

    def continuation(self, text):
        return text

    def label_ids(self, tokenizer, text):
        return tokenizer.ids(text)

    def prompt_ids(self, tokenizer, text):
        return tokenizer.add_special_tokens(tokenizer.ids(text))[0]

    def completion_loss(self, backbone, ids, mask, labels):
        label_ids, real = self.target_ids(labels)
        return text_to_text_loss(backbone, ids, mask, label_ids, real) * real.sum()


def text_log_probs(model, encoded, batch_size=64):
    """A classifier's log-probability of each label text -> (N, L). Rows have one sequence each."""
    compute = functools.partial(model, read=model.head.text_log_probs)
    return model.compute_in_batches(encoded, compute, len(model.head.texts), batch_size)


def common_length(rows):
    """How many ids all rows have in common at their start; at least one of each is left over."""
    if not rows:
        return 0
    return min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1)      # it takes lists, too


def check_ids(tokenizer, texts, label_ids):
    """InputError for a label text of unknown tokens alone, or for two with the same tokens."""
    text_of = {}
    for text, ids in zip(texts, label_ids):
        if all(i == tokenizer.unk_id or not tokenizer.decode([i], keep_specials=True).strip()
               for i in ids):
            raise InputError(f"label text {short(text)} is made of unknown tokens alone "
                             f"({short(ids)}): choose another word for it")
        if tuple(ids) in text_of:
            raise InputError(f"label texts {text_of[tuple(ids)]!r} and {text!r} are the same "
                             f"tokens {ids} to this tokenizer: choose another word for one of "
                             "them")
        text_of[tuple(ids)] = text
