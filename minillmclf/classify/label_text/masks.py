"""Label texts in place of mask tokens, the other door out of an encoder (Schick and Schuetze 2021, "PET").

    "a dull film. It was [MASK]."          ->  log p(" bad"), log p(" good") at the mask
    "a dull film. It was [MASK][MASK]."    ->  a label of two tokens: log p of its first and of its second, added

Tokens of a longer label are guessed independently of each other, in one forward for each length: the whole of it is not a
probability of the text, as a decoder's is. The encoder needs its masked-LM head. Not here: decoders and T5 (labels.py).
"""
import torch

from ...errors import InputError
from ...text.prompt import Prompt
from .labels import LabelReadout


class Filled(Prompt):
    """A prompt with a mask token where the label stands; nothing is left to stand behind it."""

    def __init__(self, prompt, mask):
        super().__init__(prompt.template, prompt.instruction, prompt.shots)
        self.mask = mask

    def render(self, texts):
        return super().render(texts) + self.mask + super().tail(texts)

    def tail(self, texts):
        return ""

    def shown(self, texts):
        return super().render(texts) + self.template.answer("...") + super().tail(texts)


class MaskReadout(LabelReadout):
    """For encoders: a label of n tokens stands where the prompt has n mask tokens."""

    def __init__(self, tokenizer, labels, prompt, label_texts, end="auto", score_by="sum"):
        if tokenizer.mask_id is None:
            raise InputError("this tokenizer has no mask token: label texts cannot be read from this encoder")
        self.mask_id = tokenizer.mask_id
        super().__init__(tokenizer, labels, Filled(prompt, tokenizer.mask_text), label_texts, "none" if end == "auto" else end, score_by)
        if end == "eos":
            raise InputError("end 'eos': in place of mask tokens a label has no end token")
        self.extra = self.longest - 1                          # one mask is in the prompt

    def check_prompt(self):
        """What stands behind the label is read as well."""

    def ids(self, tokenizer, text):
        return tokenizer.layout(tokenizer.ids(text))[0]

    def lay_out(self, tokenizer, parts, max_length):
        """As for decoders; a single mask token stands for the label."""
        (ids, types), cut = super().lay_out(tokenizer, parts, max_length)
        if ids.count(self.mask_id) != 1:
            raise InputError(f"a text holds the tokenizer's own {tokenizer.mask_text}: it cannot be told from the label's "
                             f"place, remove it")
        return (ids, types), cut

    def text_scores(self, backbone, ids, mask, types=None):
        scores, of_length = [None] * len(self.texts), {}
        for number, path in enumerate(self.tree.paths):
            of_length.setdefault(len(path), []).append(number)
        for length, numbers in of_length.items():
            guesses = self.guess(backbone, ids, mask, types, length)                         # (B, n, V)
            for number in numbers:
                tokens = self.tree.tokens[self.tree.paths[number]]                           # (n,)
                scores[number] = guesses[:, torch.arange(length, device=ids.device), tokens].sum(1)
        return torch.stack(scores, 1)

    def guess(self, backbone, ids, mask, types, length):
        """Log-probabilities (B, n, V) at n = `length` mask tokens, where the prompts have one."""
        place = (ids == self.mask_id).int().argmax(1, keepdim=True)                          # (B, 1)
        column = torch.arange(ids.shape[1] + length - 1, device=ids.device).expand(len(ids), -1)
        old = torch.where(column <= place, column, torch.maximum(column - length + 1, place))
        ids, mask, types = (None if x is None else x.gather(1, old) for x in (ids, mask, types))
        hidden = backbone.states(ids, mask, types)                                           # (B, T + n - 1, D)
        places = place + torch.arange(length, device=ids.device)                             # (B, n)
        picked = hidden.gather(1, places.unsqueeze(2).expand(-1, -1, hidden.shape[-1]))
        return backbone.logits(picked).float().log_softmax(-1)

    def completion_loss(self, backbone, ids, mask, labels):
        """Minus log p of each row's label at its mask tokens: the masked-language-model loss."""
        first = torch.tensor([own[0] for own in self.own], device=labels.device)
        return -self.text_scores(backbone, ids, mask).gather(1, first[labels].unsqueeze(1)).sum()
