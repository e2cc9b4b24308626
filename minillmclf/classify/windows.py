"""Long documents in sliding windows: backbone and head read each window as a text of its own, and
the logits of a document's windows are pooled.

A row of a batch holds the windows of a document one after another, each of max_length tokens with
its own special tokens; only a document's single window may be shorter. `Windows.read` cuts the row
into its windows again. Of two texts the longer is cut into windows, and the other is in each.

mean        the mean of the windows' logits: every passage has a vote
max         the highest logit of each class: one passage is enough (multiple instance learning)
attention   the mean of the windows' features h_w, weighted by softmax over w of v . tanh(U h_w),
            then the head's last layer (Ilse, Tomczak, Welling 2018, arXiv:1802.04712, without gate)

In evaluation the backbone reads a few windows at a time, so memory does not grow with a document.
In training the activations of all windows of a step stay until the backward pass. So of a
document with more than max_windows windows, only so many are drawn in each step, and the passage
that matters may not be among them. Not here: attention across windows (Longformer, BigBird).
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..text.cutting import text_ids, truncate_all, truncate, window_spans
from .head import Head, attention_layers, attention_weights

WINDOW_POOLS = ("mean", "max", "attention")
WINDOWS_AT_ONCE = 8       # windows that the backbone reads at a time; B, if that is more
LEAST_VALUES = {"overlap": 0, "max_windows": 1, "max_document": 1}  # option -> its least value


def check_windows(options):
    """-> options, such as {"pool": "mean", "overlap": 32, "max_windows": 8, "max_document": 8192}.
    InputError for unknown keys or wrong values."""
    if not isinstance(options, dict) or set(options) != {"pool", *LEAST_VALUES}:
        raise InputError(f"windows {short(options)}: should be an object with pool, "
                         f"{', '.join(LEAST_VALUES)}")
    for name, value in options.items():
        if name == "pool" and value not in WINDOW_POOLS:
            raise InputError(f"windows: pool {short(value)} is not known; known: "
                             f"{', '.join(WINDOW_POOLS)}")
        if name in LEAST_VALUES and (type(value) is not int or value < LEAST_VALUES[name]):
            raise InputError(f"windows: {name} {short(value)}: should be a whole number from "
                             f"{LEAST_VALUES[name]} up")
    return options


class Windowed(Head):
    """A head that reads documents in windows of `size` tokens with another head.

    head: that other head; width: D; options: as in `check_windows`. The layers of `head` keep their
    names here, so files are as without windows. Attention has parameters `windows.U`, `windows.v`.
    """

    def __init__(self, head, width, size, options):
        super().__init__()
        self.inner = (head,)           # in a tuple, so that its layers are not registered twice
        for name, layer in head.named_children():
            self.add_module(name, layer)
        self.windows = Windows(width, size, **check_windows(options))
        self.NAMES, self.ARCHITECTURE = head.NAMES, head.ARCHITECTURE
        self.pool_option, self.keep = head.pool_option, head.keep
        if options["pool"] == "attention":
            self.NAMES = {**head.NAMES, "minillmclf_windows.U": "head.windows.U",
                          "minillmclf_windows.v": "head.windows.v"}
            self.ARCHITECTURE = "MinillmclfWindowClassifier"

    def encode_row(self, tokenizer, texts, max_length):
        parts = text_ids(tokenizer, texts)
        return self.windows.encode_windows(tokenizer, parts, max_length, self.keep)

    def length_limit(self, max_length):
        return "max_document", self.windows.max_document

    def settings(self):
        return super().settings() | {"windows": self.windows.as_dict()}

    def read(self, backbone, ids, mask, types=None, layout=None):
        return self.windows.read(self.inner[0], backbone, ids, mask, types)


class Windows(nn.Module):
    """How documents are cut into windows, and how the windows' logits become the document's."""

    def __init__(self, width, size, pool, overlap, max_windows, max_document):
        super().__init__()
        if max_document < size:
            raise InputError(f"--max-document {max_document}: is less than the {size} tokens of a "
                             "window: raise it, or lower --max-length")
        self.size, self.pool, self.overlap = size, pool, overlap
        self.max_windows, self.max_document = max_windows, max_document
        if pool == "attention":
            self.U, self.v = attention_layers(width)

    def as_dict(self):
        """-> the options that `check_windows` takes."""
        return {"pool": self.pool, **{name: getattr(self, name) for name in LEAST_VALUES}}

    def encode_windows(self, tokenizer, parts, max_length, keep):
        """parts: the ids of one text or two -> (ids, types) of all windows one after another, was a
        token lost? First the document is cut to max_document tokens, special ones included."""
        if max_length != self.size:
            raise InputError(f"this model takes {max_length} tokens beside what was tuned, but "
                             f"windows of {self.size} were asked for: set --max-length "
                             f"{max_length}")
        special = tokenizer.num_special_tokens(len(parts) == 2)
        parts, lost = truncate_all(parts, self.max_document - special, keep)
        space = self.size - special                                    # for text, in each window
        longer = max(range(len(parts)), key=lambda n: len(parts[n]))
        if len(parts) == 2 and sum(map(len, parts)) > space:
            shorter = 1 - longer
            kept = truncate(parts[shorter], space // 2, keep)          # at most half of a window
            lost += len(parts[shorter]) - len(kept)
            parts[shorter] = kept
            space -= len(kept)
        ids, types = [], []
        for start, end in window_spans(len(parts[longer]), space, self.overlap):
            window = [part[start:end] if n == longer else part for n, part in enumerate(parts)]
            more_ids, more_types = tokenizer.add_special_tokens(*window)
            ids, types = ids + more_ids, types + more_types
        check_row_lengths([len(ids)], self.size)       # a text's own BOS makes its window shorter
        return (ids, types), lost > 0

    def read(self, head, backbone, ids, mask, types=None):
        """ids, mask, types (B, T), rows padded on either side -> logits (B, C)."""
        at_once = max(len(ids), WINDOWS_AT_ONCE)
        ids, mask, types, counts = cut_into_windows(ids, mask, types, self.size)      # (W, size)
        if self.training:
            ids, mask, types, counts = self.draw_windows(ids, mask, types, counts)
        compute = head.features if self.pool == "attention" else head
        results = None  # (W, C or D) of W windows; many small tensors would take more memory
        for start in range(0, len(ids), at_once):
            part = slice(start, start + at_once)
            i, m, t = (x if x is None else x[part] for x in (ids, mask, types))
            new = compute(*head.states_to_pool(backbone, i, m, t))          # (at_once, C or D)
            results = new.new_empty(len(ids), new.shape[1]) if results is None else results
            results[part] = new
        documents = results.split(counts)                   # B tensors (its windows, C or D)
        if self.pool == "attention":
            pooled = [self.window_weights(features) @ features for features in documents]
            return head.class_logits(torch.stack(pooled))                   # (B, D) -> (B, C)
        if self.pool == "mean":
            return torch.stack([logits.mean(0) for logits in documents])                    # (B, C)
        return torch.stack([logits.amax(0) for logits in documents])                        # (B, C)

    def window_weights(self, features):
        """The features of one document's W windows (W, D) -> their weights (W,), sum 1."""
        return attention_weights(self.U, self.v, features)

    def draw_windows(self, ids, mask, types, counts):
        """Draw at most max_windows windows of each document, in order -> as cut_into_windows."""
        chosen, start = [], 0
        for count in counts:
            order = torch.randperm(count) if count > self.max_windows else torch.arange(count)
            chosen.append(start + order[:self.max_windows].sort()[0])
            start += count
        rows = torch.cat(chosen).to(ids.device)
        ids, mask, types = (x if x is None else x[rows] for x in (ids, mask, types))
        return ids, mask, types, list(map(len, chosen))


def check_row_lengths(lengths, size):
    """InputError for a row of more than `size` tokens that is not made of whole windows."""
    odd = next((length for length in lengths if length > size and length % size), None)
    if odd:
        raise InputError(f"a row of {odd} tokens is no whole number of windows of {size}: encode "
                         "it with this classifier, and leave special tokens out of the text")


def cut_into_windows(ids, mask, types, size):
    """ids, mask, types (B, T) -> those of all W windows (W, size), and the number of each row's
    windows. Where each row is one window, all stay as they are."""
    lengths = mask.sum(1)                                                           # (B,)
    check_row_lengths(lengths.tolist(), size)
    counts = (lengths + size - 1) // size
    if int(counts.max()) <= 1:
        return ids, mask, types, [1] * len(ids)
    new_lengths = lengths.clamp(max=size).repeat_interleave(counts)                 # (W,)
    new_mask = torch.arange(size, device=mask.device) < new_lengths.unsqueeze(1)    # (W, size)

    def move(old):
        """(B, T) -> (W, size). Both masks mark the same tokens in the same order."""
        new = torch.zeros_like(new_mask, dtype=old.dtype)
        new[new_mask] = old[mask.bool()]
        return new
    types = None if types is None else move(types)
    return move(ids), new_mask.to(mask.dtype), types, counts.tolist()
