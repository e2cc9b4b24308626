"""Label texts in place of mask tokens: the readout for encoders (Schick and Schuetze 2021, "PET").

    "a dull film. It was [MASK]."        ->  log p(" bad"), log p(" good") at the mask token
    "a dull film. It was [MASK][MASK]."  ->  for labels of two tokens: the sum of both log p

All labels of one length share a forward pass. A label's tokens are predicted independently of each
other, so the product is not the probability of the text, as it is for a decoder. The encoder needs
its masked-LM head. Not here: decoders and encoder-decoders (readout.py).
"""
import torch

from ...errors import InputError
from ...text.prompt import Prompt
from .readout import LabelReadout


class MaskReadout(LabelReadout):
    """For encoders: a label of n tokens takes the place of n mask tokens in the prompt."""

    PLACE = "in place of mask tokens"
    AUTO_END = "none"
    READS_AFTER_LABEL = True

    def __init__(self, tokenizer, labels, prompt, label_texts, end="auto", score_by="sum"):
        if tokenizer.mask_id is None:
            raise InputError("this tokenizer has no mask token: label texts cannot be read from "
                             "this encoder")
        if end == "eos":
            raise InputError("--end eos and --objective completion, which needs it: in place of "
                             "mask tokens a label has no end token: leave them out")
        masked = Prompt(prompt.template, prompt.instruction, prompt.shots, tokenizer.mask_text)
        super().__init__(tokenizer, labels, masked, label_texts, end, score_by)
        self.mask_id = tokenizer.mask_id

    @property
    def reserved_tokens(self):
        return self.longest_label - 1                               # one mask is in the prompt

    def prompt_ids(self, tokenizer, text):
        return tokenizer.add_special_tokens(tokenizer.ids(text))[0]

    def encode_row(self, tokenizer, parts, max_length):
        """As for decoders, with one mask token in place of the label, whatever its length."""
        (ids, types), cut = super().encode_row(tokenizer, parts, max_length)
        if ids.count(self.mask_id) != 1:
            raise InputError(f"a text holds the tokenizer's own {tokenizer.mask_text}: it cannot "
                             "be told from the label's place, remove it")
        return (ids, types), cut

    def text_log_probs(self, backbone, ids, mask, types=None):
        text_log_probs = [None] * len(self.texts)
        for length in sorted(set(map(len, self.tree.paths))):
            log_probs = self.mask_log_probs(backbone, ids, mask, types, length)     # (B, n, V)
            places = torch.arange(length, device=ids.device)                        # (n,)
            for number, path in enumerate(self.tree.paths):
                if len(path) == length:
                    tokens = self.tree.edge_tokens[path]
                    text_log_probs[number] = log_probs[:, places, tokens].sum(1)
        return torch.stack(text_log_probs, 1)                                       # (B, L)

    def mask_log_probs(self, backbone, ids, mask, types, length):
        """Log-probabilities (B, n, V) where each row's mask token stands n = `length` times."""
        place = (ids == self.mask_id).int().argmax(1, keepdim=True)                 # (B, 1)
        # Each of T + n - 1 new columns copies an old one, `source`: up to the mask the same; then
        # n - 1 times the mask; then what follows it, moved by n - 1.
        column = torch.arange(ids.shape[1] + length - 1, device=ids.device).expand(len(ids), -1)
        source = torch.where(column <= place, column, torch.maximum(column - length + 1, place))
        ids, mask, types = (None if x is None else x.gather(1, source) for x in (ids, mask, types))
        hidden = backbone.states(ids, mask, types)                               # (B, T + n - 1, D)
        places = place + torch.arange(length, device=ids.device)                    # (B, n)
        hidden = hidden.gather(1, places.unsqueeze(2).expand(-1, -1, hidden.shape[-1]))
        return backbone.logits(hidden).float().log_softmax(-1)

    def completion_loss(self, backbone, ids, mask, labels):
        """-log p of each row's label at its mask tokens, summed: the masked-language-model loss."""
        first = torch.tensor([numbers[0] for numbers in self.class_texts], device=labels.device)
        log_probs = self.text_log_probs(backbone, ids, mask)                        # (B, L)
        return -log_probs.gather(1, first[labels].unsqueeze(1)).sum()
