"""Several texts in one row: a prompt and its answers as one marked text, with a budget for each.

    [CLS] Prompt: Name a fruit. Answer A: An apple. Answer B: A chair. [SEP]           a line break behind each colon

One text with plain words as markers, in each of the ten families alike. A pair would not do: it has two places for three
texts, and what stands between them is a matter of family, [SEP] in BERT, nothing at all in GPT-2. Headings on a line of
their own were in every model's pretraining.

Markers and texts become ids one by one, so that a budget in tokens is exact and no marker is ever cut.
Not here: two texts as a pair (tokenizer.layout); templates with a label in them (prompt.py); which end of a long text is
kept (cutting.py); two sequences in one row, read apart (batch.py).
"""
from ..errors import InputError
from ..files import short
from .cutting import keep_end

ONE_ANSWER = ("Prompt:\n", "\n\nAnswer:\n")
TWO_ANSWERS = ("Prompt:\n", "\n\nAnswer A:\n", "\n\nAnswer B:\n")


def shares(lengths, budget):
    """How many tokens each part keeps: a short part all of them, the others equally many of what is left. -> list

    What prompt.fit finds by cutting one token after another, at once: the tokens of a long answer are many.
    """
    kept, left = [0] * len(lengths), max(0, budget)
    order = sorted(range(len(lengths)), key=lambda part: lengths[part])
    for waiting, part in zip(range(len(order), 0, -1), order):
        kept[part] = min(lengths[part], left // waiting)
        left -= kept[part]
    return kept


def lay_out(tokenizer, texts, markers, max_length, keep="head"):
    """Texts, each behind its marker, as one text -> (ids, token types), [how many tokens of each text were cut].

    texts: as many strings as markers; keep: what stays of a long one (cutting.KEEPS). At most max_length tokens with the
    special ones; a text that has a token keeps at least one. Raises InputError where even that does not fit.
    """
    signs, parts = [tokenizer.ids(marker) for marker in markers], [tokenizer.ids(text) for text in texts]
    if not any(parts):
        raise InputError(f"the text {short(texts[0])} holds no token, only characters that the tokenizer drops")
    fixed = tokenizer.num_special_tokens(False) + sum(map(len, signs))
    needed = fixed + sum(len(part) > 0 for part in parts)
    if needed > max_length:
        raise InputError(f"{len(texts)} texts with their markers take {needed} tokens at least, and {max_length} are "
                         "allowed: raise --max-length, or take a model that reads longer texts if this is all it can")
    kept, ids = shares([len(part) for part in parts], max_length - fixed), []
    for sign, part, length in zip(signs, parts, kept):
        ids += sign + keep_end(part, length, keep)
    return tokenizer.layout(ids), [len(part) - length for part, length in zip(parts, kept)]


def size(tokenizer, texts, markers):
    """Tokens of the row that `lay_out` would make if nothing were cut."""
    return tokenizer.num_special_tokens(False) + sum(len(tokenizer.ids(text)) for text in (*markers, *texts))
