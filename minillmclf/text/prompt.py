"""What of a long input is kept: one budget of tokens, shared by the parts."""


def fit(parts, budget):
    """Shorten lists of ids at their ends, the longest first, until together they hold at most `budget` tokens.

    -> (parts, how many tokens were cut). A short part is never cut while a longer one is left, so none vanishes; of two
    that have become equal the one that was shorter is cut first, as the `tokenizers` library does ("longest_first").
    """
    lengths = [len(part) for part in parts]
    cut = max(0, sum(lengths) - budget)
    for _ in range(cut):
        longest = max(range(len(parts)), key=lambda i: (lengths[i], -len(parts[i])))
        lengths[longest] -= 1
    return [part[:length] for part, length in zip(parts, lengths)], cut
