"""What a cell should print, and what it printed: compared, and refreshed.

All is compared as text. A number with a tolerance, `0.831~0.02`, is compared by value: what came
may lie 0.02 above or below. Blanks beside such a number may differ, as a sign moves them.
"""
import difflib
import re
from decimal import Decimal, InvalidOperation

AMOUNT = r"(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
NUMBER = re.compile(rf"(?<![\w.])([-+]?(?:{AMOUNT}|(?:nan|inf)\b))(?:~({AMOUNT}))?")


def parts(line):
    """"loss 0.5~0.1 now" -> (["loss ", " now"], [("0.5", "0.1")]); without a tolerance: None."""
    pieces = NUMBER.split(line)
    return pieces[::3], list(zip(pieces[1::3], pieces[2::3]))


def plain(text):
    """An expected output without its tolerances, as it was printed."""
    return NUMBER.sub(r"\1", text)


def near(number, came, tolerance):
    try:
        number, came, tolerance = (Decimal(each.replace(",", "")) for each in
                                   (number, came, tolerance))
        return number == came or abs(number - came) <= tolerance
    except InvalidOperation:                       # inf - inf; a comparison with nan
        return False


def alike(expected, came):
    """Have two lines the same words, and numbers in the same places?"""
    (words, numbers), others = parts(expected), parts(came)[0]
    if len(words) != len(others):
        return False
    for place, (word, other) in enumerate(zip(words, others)):
        for beside, strip in ((place - 1, str.lstrip), (place, str.rstrip)):
            if 0 <= beside < len(numbers) and numbers[beside][1]:
                word, other = strip(word), strip(other)
        if word != other:
            return False
    return True


def same(expected, came):
    """Is a printed line the expected one?"""
    if not alike(expected, came):
        return False
    return all(number == found if tolerance is None else near(number, found, tolerance)
               for (number, tolerance), (found, _) in zip(parts(expected)[1], parts(came)[1]))


def difference(expected, came):
    """None, or the lines that differ: "-" stands before what was expected, "+" before what came."""
    old, new = expected.splitlines(), came.splitlines()
    if len(old) == len(new):
        old = [found if same(line, found) else line for line, found in zip(old, new)]
    return None if old == new else "\n".join(
        line.rstrip("\n") for line in difflib.ndiff(old, new) if line[0] != "?")


def refreshed(expected, came):
    """What came, with the tolerances of what was expected.

    A line within its tolerances stays as it was, so that a page changes only where it must.
    """
    old, new = expected.splitlines(), came.splitlines()
    shapes = [[" ".join(NUMBER.sub("0", line).split()) for line in lines] for lines in (old, new)]
    result = list(new)
    for i, j, size in difflib.SequenceMatcher(None, *shapes, False).get_matching_blocks():
        for line, place in zip(old[i:i + size], range(j, j + size)):
            result[place] = line if same(line, new[place]) else stated(line, new[place])
    return "".join(line + "\n" for line in result)


def stated(expected, came):
    """A line that came, with the tolerances of the expected line."""
    tolerances = iter([tolerance for _, tolerance in parts(expected)[1]])

    def state(found):
        tolerance = next(tolerances)
        return found[0] if tolerance is None else f"{found[0]}~{tolerance}"
    return NUMBER.sub(state, came)
