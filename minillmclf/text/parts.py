"""Several texts in one: a prompt and its answers, each after a marker, cut to a budget of tokens.

    [CLS] Prompt: Name a fruit. Answer A: An apple. Answer B: A chair. [SEP]

(Each marker has its own line.) The markers are plain words, because a tokenizer joins at most two
texts, and GPT-2 puts nothing between them. Markers and texts are tokenized one by one, so the
budget is exact and no marker is ever cut.

Not here: pairs (Tokenizer.add_special_tokens), templates (prompt.py), cutting (cutting.py).
"""
from ..errors import InputError
from .cutting import text_ids, truncate_all

ONE_ANSWER = ("Prompt:\n", "\n\nAnswer:\n")
TWO_ANSWERS = ("Prompt:\n", "\n\nAnswer A:\n", "\n\nAnswer B:\n")


def join_parts(tokenizer, texts, markers, max_length, keep="head"):
    """Texts, each after its marker -> (ids, token types), [number of tokens cut from each text].

    keep: one of cutting.TRUNCATION_SIDES. There are at most max_length ids, special tokens
    included, and at least one of each text that has tokens; else InputError.
    """
    marks = [tokenizer.ids(marker) for marker in markers]
    parts = text_ids(tokenizer, texts)
    fixed = tokenizer.num_special_tokens(False) + sum(map(len, marks))
    needed = fixed + sum(len(part) > 0 for part in parts)
    if needed > max_length:
        raise InputError(f"{len(texts)} texts with their markers take {needed} tokens at least, "
                         f"and {max_length} are allowed: raise --max-length, or take a model that "
                         "reads longer texts if this is all it can")
    (kept, _), ids = truncate_all(parts, max_length - fixed, keep), []
    for mark, part in zip(marks, kept):
        ids += mark + part
    cut = [len(part) - len(left) for part, left in zip(parts, kept)]
    return tokenizer.add_special_tokens(ids), cut


def joined_size(tokenizer, texts, markers):
    """How many ids `join_parts` gives if it cuts nothing."""
    count = sum(len(tokenizer.ids(text)) for text in (*markers, *texts))
    return tokenizer.num_special_tokens(False) + count
