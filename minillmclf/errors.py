"""One kind of error for everything that a user can put right.

The library raises `InputError`; the commands print it as one line and leave with exit code 2. Its text
names the file, row or key, the numbers, and the remedy.
"""


class InputError(ValueError):
    """Something outside the program is wrong: a file, a row, a setting. The message says which and how to mend it."""
