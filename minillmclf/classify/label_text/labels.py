"""Label tokens: a class read out of a language model's own words (Schick and Schuetze 2021, "PET"; Brown et al. 2020).

    "Review: a dull film\nSentiment:"  ->  log p(" negative" | prompt), log p(" positive" | prompt), ...  ->  scores (B, C)

A class has one or more label texts; each is scored whole, all its tokens, never by the first alone, and the probabilities
of a class's texts are added. Where a label stands depends on the architecture: behind the prompt (decoders), in an answer
of its own (encoder-decoders), or in place of mask tokens (encoders). No weight is new here, so what reads classes still
writes text.

Here: token ids of label texts in their context, exact scoring, and the loss of instruction tuning. Not here: mask tokens
(masks.py), templates (text/prompt.py), the tree that scores all labels at once (models/tree.py), decoding (decode.py),
calibration (calibrate.py).
"""
import contextlib

import torch
import torch.nn.functional as F

from ...errors import InputError
from ...files import short
from ...models.cache import prefill
from ...models.tree import Tree, log_probs, pad_right, shared
from ...training.completion_loss import text_to_text_loss
from ..readout import Readout

ENDS, WAYS = ("auto", "none", "eos"), ("sum", "token", "char", "byte")
SHARE_FROM = 16          # tokens; to read a shorter beginning apart from its rows costs more than it saves


def ids_behind(tokenizer, context, more):
    """The ids of the text `more` where it stands behind `context`: "positive" alone is another token than " positive"."""
    before, both = tokenizer.ids(context), tokenizer.ids(context + more)
    if both[:len(before)] != before or len(both) == len(before):
        raise InputError(f"label text {short(more)}: behind {context[-40:]!r} it is not cut into "
                         f"tokens of its own "
                         f"({tokenizer.tokens(context + more)[-6:]}): end the template with another sign, such as ':'")
    return both[len(before):]


class LabelReadout(Readout):
    """For decoders: the label stands behind the prompt. classify/classifier.py calls it as it calls a head.

    labels: names in class order; prompt: text.prompt.Prompt; label_texts: {label: [text, ...]}; end: whether an
    end-of-text token belongs to every label: "eos", "none", or "auto", where it is needed to tell a label from one that
    begins alike; score_by: what is compared, log-probabilities as they are ("sum"), or divided by the number of tokens,
    characters or bytes, which favours long labels.
    """

    def __init__(self, tokenizer, labels, prompt, label_texts, end="auto", score_by="sum"):
        super().__init__()
        self.prompt, self.score_by = prompt, score_by
        self.texts = [text for label in labels for text in label_texts[label]]
        self.own, count = [], 0                                        # for each class, which of the texts are its own
        for label in labels:
            self.own.append(list(range(count, count + len(label_texts[label]))))
            count += len(label_texts[label])
        self.check_prompt()
        paths = [self.label_ids(tokenizer, text) for text in self.texts]
        check_ids(tokenizer, self.texts, paths)
        self.end = self.needs_end(paths) if end == "auto" else end
        if self.end == "eos" and tokenizer.eos_id is None:
            raise InputError("labels must end in an end-of-text token here, and this tokenizer has none: choose label texts "
                             "of which none begins another, and end 'none'")
        self.tree = Tree([path + [tokenizer.eos_id] * (self.end == "eos") for path in paths])
        self.longest = self.extra = max(map(len, self.tree.paths))     # extra: tokens that a label takes of a row's room
        self.common = self.kept = None

    # ------------------------------------------------------------------------------------------------ texts to ids

    def check_prompt(self):
        """InputError if the template does not suit the architecture."""
        if self.prompt.template.reads_on:
            raise InputError(f"template {self.prompt.template.text!r}: a field stands behind {{label}}, where this model "
                             f"cannot look when it writes the label: put it before")

    def label_ids(self, tokenizer, text):
        """The ids of a label text in its place. Two endings of a prompt must agree, so that every row's does."""
        template = self.prompt.template
        found = [ids_behind(tokenizer, template.prompt((word,) * len(template.fields)), template.answer(text))
                 for word in ("word", "word.")]
        if found[0] != found[1]:
            raise InputError(f"label text {short(text)}: its tokens depend on the text before it "
                             f"({found[0]}, {found[1]}): put "
                             f"fixed words between the text and the label")
        return found[0]

    def needs_end(self, paths):
        """Is a label the beginning of another? -> "eos" or "none"."""
        alike = any(a != b and b[:len(a)] == a for a in paths for b in paths)
        return "eos" if alike else "none"

    def ids(self, tokenizer, text):
        """A prompt's ids, with the special tokens that stand before a text and none behind it."""
        ids = tokenizer.begin(tokenizer.ids(text))
        if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
            raise InputError(f"the prompt {text[:40]!r} begins with the token that is put before every text: two of them "
                             f"spoil the answers, leave it out of the template")
        return ids

    def length(self, tokenizer, parts):
        """Tokens of a row and its longest label before anything is cut."""
        return self.prompt.size(parts, lambda text: len(self.ids(tokenizer, text))) + self.extra

    def fitted(self, tokenizer, parts, max_length):
        """A row's texts -> so much of them as fits into max_length with prompt and label, were they cut?"""
        return self.prompt.fitted(parts, lambda text: len(self.ids(tokenizer, text)), max_length - self.extra)

    def lay_out(self, tokenizer, parts, max_length):
        """A row's texts -> (ids, types), was it shortened? max_length: of prompt and label."""
        parts, cut = self.fitted(tokenizer, parts, max_length)
        ids = self.ids(tokenizer, self.prompt.render(parts))
        if not ids:
            raise InputError("the prompt holds no token: give the template a word beside its fields")
        return (ids, [0] * len(ids)), cut

    # ------------------------------------------------------------------------------------------------ ids to scores

    def read(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask: (B, T) prompts -> scores of the classes (B, C), log-probabilities that need not sum to one."""
        return self.by_class(self.weigh(self.text_scores(backbone, ids, mask, types), self.score_by))

    def text_scores(self, backbone, ids, mask, types=None):
        """Log-probability of each label text, summed over its tokens -> (B, L)."""
        ids, mask, context = backbone.prompt(ids, mask)
        cache = None
        if context is None:
            ids, mask, cache = self.share(backbone, ids, mask)
        return self.tree.sums(log_probs(backbone, ids, mask, self.tree, cache, context))

    def weigh(self, sums, how):
        """Sums of log-probabilities (B, L) -> as they are, or per token, character or byte (B, L)."""
        if how == "sum":
            return sums
        lengths = {"token": map(len, self.tree.paths), "char": map(len, self.texts),
                   "byte": (len(text.encode()) for text in self.texts)}[how]
        return sums / torch.tensor(list(lengths), dtype=sums.dtype, device=sums.device)

    def by_class(self, scores):
        """Scores of label texts (B, L) -> of classes (B, C): the probabilities of a class's texts are added."""
        return torch.stack([scores[:, own].logsumexp(1) for own in self.own], 1)

    # ------------------------------------------------------------------------------------------------ a shared prompt

    def share(self, backbone, ids, mask):
        """The beginning that all rows share is read once -> what is left of the rows, and a cache of that beginning."""
        ids, mask = pad_right(ids, mask)
        tokens = shared(ids, mask) if self.common is None else self.common
        if tokens < SHARE_FROM or self.common is None and len(ids) == 1:
            return ids, mask, None
        cache = prefill(backbone, ids[:1, :tokens]) if self.kept is None else self.kept
        if self.common is not None:
            self.kept = cache
        return ids[:, tokens:], mask[:, tokens:], cache.expand(len(ids))

    @contextlib.contextmanager
    def reading(self, model, encoded):
        """Within: what all rows begin with is read once for all batches."""
        sequences = [ids for row in encoded for ids, _ in model.task.sequences(row)]
        self.common, self.kept = common(sequences), None
        try:
            yield
        finally:
            self.common = self.kept = None

    # ------------------------------------------------------------------------------------------------ learning to answer

    def targets(self, labels):
        """Class numbers (B,) -> the ids of each class's first text, padded: ids (B, n), mask (B, n)."""
        paths = [self.tree.paths[self.own[label][0]] for label in labels.tolist()]
        tokens, width = self.tree.tokens, max(map(len, paths))
        ids, mask = labels.new_zeros(len(paths), width), labels.new_zeros(len(paths), width)
        for row, path in enumerate(paths):
            ids[row, :len(path)], mask[row, :len(path)] = tokens[path], 1
        return ids, mask

    def completion_loss(self, backbone, ids, mask, labels):
        """Minus log p(answer | prompt), summed over all tokens of all answers; only they are learned. -> scalar

        Which tokens they are is known by their place, never by an id: an end-of-text token is learned even if it also pads.
        """
        more, real = self.targets(labels)                                                    # (B, n)
        ids = torch.cat([ids, more[:, :-1]], 1)                       # an answer's last token is foretold, but not read
        mask = torch.cat([mask, real[:, 1:].to(mask.dtype)], 1)
        states = backbone.states(ids, mask, read=more.shape[1])                                     # (B, n, D) each row's last n
        states = states[real.flip(1).bool()]                                                 # (M, D) before the answers' tokens
        return F.cross_entropy(backbone.logits(states).float(), more[real.bool()], reduction="sum")

    def answer_lengths(self):
        """Tokens of each class's answer, its end among them, a list (C,)."""
        return [len(self.tree.paths[own[0]]) for own in self.own]


class SourceReadout(LabelReadout):
    """For encoder-decoders (T5): the prompt is the source, the label a target of its own, always ended by its token."""

    def __init__(self, *asked, **more):
        super().__init__(*asked, **more)
        self.extra = 0

    def label_ids(self, tokenizer, text):
        return tokenizer.ids(text)

    def needs_end(self, paths):
        return "eos"

    def ids(self, tokenizer, text):
        return tokenizer.layout(tokenizer.ids(text))[0]

    def completion_loss(self, backbone, ids, mask, labels):
        target, real = self.targets(labels)
        return text_to_text_loss(backbone, ids, mask, target, real) * real.sum()


def text_scores(model, encoded, batch_size=64):
    """Log-probability of each label text (N, L), in the order of `head.texts`, by a classifier, for
    rows of one sequence each."""
    def compute(batch):
        return model(batch, model.head.text_scores)
    return model.over(encoded, compute, len(model.head.texts), batch_size)


def common(rows):
    """How many ids all lists begin with alike; at least one of each is left over."""
    if not rows:
        return 0
    low, high = min(rows), max(rows)                     # in the order of the alphabet: what these share, all share
    alike = next((place for place, pair in enumerate(zip(low, high)) if pair[0] != pair[1]), min(len(low), len(high)))
    return min(alike, min(map(len, rows)) - 1)


def check_ids(tokenizer, texts, paths):
    """InputError for a label text that no token tells, or for two that the same tokens tell."""
    seen = {}
    for text, path in zip(texts, paths):
        meant = [i for i in path if i != tokenizer.unk_id and tokenizer.decode([i], keep_specials=True).strip()]
        if not meant:
            raise InputError(f"label text {short(text)} is made of unknown tokens alone ({short(path)}): "
                             f"choose another word for it")
        if tuple(path) in seen:
            raise InputError(f"label texts {seen[tuple(path)]!r} and {text!r} are the same tokens {path} to this tokenizer: "
                             f"choose another word for one of them")
        seen[tuple(path)] = text
