"""Long documents in sliding windows: each is a text for the body and its head, and their answers become one.

A row of a batch is a document's windows behind one another, each of max_length tokens with its own special tokens; only a
document that is a single window may be shorter. So a batch stays (B, T), and `Windows.read` cuts it into rows again. Of a
pair the longer text is cut into windows; the other stands in each of them, with at most half of the room.

mean        the mean of the windows' scores: every passage has a vote
max         of each class its highest score: one passage is enough ("multiple instance learning")
attention   features h_w of the windows, weighed by a_w = softmax over w of v . tanh(U h_w), then the head's last layer once;
            U and v are learned with the rest (Ilse, Tomczak, Welling 2018, arXiv:1802.04712, without their gate)

Memory does not grow with a document. Where nothing is learned, a few windows at a time go through the body, as many as the
batch has rows (AT_ONCE at least), and only their scores or features stay. In training the activations of all of a step's
windows stay until the backward pass: micro_batch_size x max_windows of them at most, and with --gradient-checkpointing only the
inputs of their blocks. A document with more windows shows max_windows of them, drawn anew in each step; all are used to
predict. So a step may miss the passage that tells: what it learns is noisier then, and --max-windows is the price.

Not here: attention across windows (Longformer, BigBird): what is told by two passages together, no single window sees.
"""
import torch
from torch import nn

from ..errors import InputError
from ..text.cutting import cut_to, keep_end, spans
from .head import attention, query

WAYS = ("mean", "max", "attention")
AT_ONCE = 8               # windows that go through the body together, even where the batch has fewer rows
NUMBERS = {"overlap": 0, "max_windows": 1, "max_document": 1}                # of a description, and the least of each


def check_windows(described, where="windows"):
    """InputError unless it is {"pool": "mean", "overlap": 32, "max_windows": 8, "max_document": 8192}, or None. -> itself"""
    if described is None:
        return None
    if not isinstance(described, dict) or set(described) != {"pool", *NUMBERS}:
        raise InputError(f"{where} {described!r:.100}: should be an object with pool, {', '.join(NUMBERS)}")
    if described["pool"] not in WAYS:
        raise InputError(f"{where}: pool {described['pool']!r:.40} is not known; known: {', '.join(WAYS)}")
    for name, least in NUMBERS.items():
        if type(described[name]) is not int or described[name] < least:
            raise InputError(f"{where}: {name} {described[name]!r:.40}: should be a whole number from {least} up")
    return described


def use_windows(head, width, size, described):
    """Let a head read windows of `size` tokens from now on. width: D of its features; described: as in check_windows.

    What attention learns is `head.windows.U` and `.v`: saved with the head, under names that only this package knows.
    """
    head.windows = Windows(width, size, **check_windows(described))
    if described["pool"] == "attention":
        head.NAMES = {**head.NAMES, "minillmclf_windows.U": "head.windows.U", "minillmclf_windows.v": "head.windows.v"}
        head.ARCHITECTURE = "MinillmclfWindowClassifier"


class Windows(nn.Module):
    """How a head's documents are cut into windows, and how the windows' answers become the document's."""

    def __init__(self, width, size, pool, overlap, max_windows, max_document):
        super().__init__()
        if max_document < size:
            raise InputError(f"--max-document {max_document}: is less than the {size} tokens of a window: raise it, or "
                             "lower --max-length")
        self.size, self.pool, self.overlap = size, pool, overlap
        self.max_windows, self.max_document = max_windows, max_document
        if pool == "attention":
            self.U, self.v = query(width)

    def as_dict(self):
        """What check_windows describes."""
        return {"pool": self.pool, **{name: getattr(self, name) for name in NUMBERS}}

    # ------------------------------------------------------------------------------------------------ text to row

    def lay_out(self, tokenizer, parts, max_length, keep):
        """Ids of one text or two, without special tokens -> (ids, types) of all windows in a row, was a token lost?

        A document of more than max_document tokens, special ones included, is cut to it before: `keep` says where.
        """
        if max_length != self.size:
            raise InputError(f"this model takes {max_length} tokens beside what was tuned, but windows of {self.size} were "
                             f"asked for: set --max-length {max_length}")
        overhead = tokenizer.num_special_tokens(len(parts) == 2)
        parts, lost = cut_to(parts, self.max_document - overhead, keep)
        room, long = self.size - overhead, max(range(len(parts)), key=lambda place: len(parts[place]))
        if sum(map(len, parts)) > room:
            for other in set(range(len(parts))) - {long}:
                lost += max(0, len(parts[other]) - room // 2)
                parts[other] = keep_end(parts[other], room // 2, keep)
                room -= len(parts[other])
        ids, types = [], []
        for start, end in spans(len(parts[long]), room, self.overlap):
            new = tokenizer.layout(*(part[start:end] if place == long else part for place, part in enumerate(parts)))
            ids, types = ids + new[0], types + new[1]
        check_whole([len(ids)], self.size)
        return (ids, types), lost > 0

    # ------------------------------------------------------------------------------------------------ rows to scores

    def read(self, head, backbone, ids, mask, types=None):
        """ids, mask, types: (B, T), rows as `lay_out` makes them, padded on either side -> scores (B, C)."""
        at_once = max(len(ids), AT_ONCE)
        ids, mask, types, counts = cut_rows(ids, mask, types, self.size)                # (W, size), W = sum(counts)
        if self.training:
            ids, mask, types, counts = self.draw(ids, mask, types, counts)
        compute = head.features if self.pool == "attention" else head
        answers = None                               # one tensor: small ones kept from each piece would hold its memory open
        for start in range(0, len(ids), at_once):
            i, m, t = (x if x is None else x[start:start + at_once] for x in (ids, mask, types))
            piece = compute(*head.states(backbone, i, m, t))
            answers = piece.new_empty(len(ids), piece.shape[1]) if answers is None else answers
            answers[start:start + at_once] = piece
        documents = answers.split(counts)                                    # B of (windows, C), or (windows, D) for attention
        if self.pool == "mean":
            return torch.stack([scores.mean(0) for scores in documents])                                   # (B, C)
        if self.pool == "max":
            return torch.stack([scores.amax(0) for scores in documents])                                   # (B, C)
        return head.classes(torch.stack([self.weights(features) @ features for features in documents]))    # (B, D) -> (B, C)

    def weights(self, features):
        """One document's windows (windows, D) -> what each counts (windows,), together 1."""
        return attention(self.U, self.v, features)

    def draw(self, ids, mask, types, counts):
        """Of each document's windows at most max_windows, in their order; torch's generator draws, as for dropout."""
        chosen, start = [], 0
        for count in counts:
            some = torch.randperm(count)[:self.max_windows].sort()[0] if count > self.max_windows else torch.arange(count)
            chosen.append(start + some)
            start += count
        rows = torch.cat(chosen).to(ids.device)
        ids, mask, types = (x if x is None else x[rows] for x in (ids, mask, types))
        return ids, mask, types, [len(some) for some in chosen]


def check_whole(lengths, size):
    """InputError for a row that is no whole number of windows of `size` tokens; one alone may be shorter."""
    odd = next((length for length in lengths if length > size and length % size), None)
    if odd:
        raise InputError(f"a row of {odd} tokens is no whole number of windows of {size}: encode it with this classifier, "
                         "and leave special tokens out of the text")


def cut_rows(ids, mask, types, size):
    """(B, T) -> ids, mask, types of W windows, (W, size), and how many each row has, a list of B.

    Where all rows are single windows they stay just as they are, with their padding: the plain classifier's batch.
    """
    lengths = mask.sum(1)                                                                             # (B,)
    check_whole(lengths.tolist(), size)
    counts = (lengths + size - 1) // size
    if int(counts.max()) <= 1:
        return ids, mask, types, [1] * len(ids)
    longest = lengths.clamp(max=size).repeat_interleave(counts)                                       # (W,)
    new_mask = torch.arange(size, device=mask.device) < longest.unsqueeze(1)                          # (W, size)

    def move(old):
        """Both masks name the same tokens in the same order: row by row, from left to right."""
        new = torch.zeros_like(new_mask, dtype=old.dtype)
        new[new_mask] = old[mask.bool()]
        return new
    return move(ids), new_mask.to(mask.dtype), None if types is None else move(types), counts.tolist()
