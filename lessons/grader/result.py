"""What grading an exercise gives."""
from dataclasses import dataclass

PASSED, FAILED, NOT_STARTED, REFUSED = "passed", "failed", "not started", "refused"

WAITS = "calls a function that is not written yet"          # how such a message begins


@dataclass
class Result:
    """state: one of the four above. message: the first fault, in words. looks_like: the variant
    that gives the same outputs, or None; hint: the number, from 1, of the hint for it, or None."""
    id: str
    title: str
    object: str
    points: int
    of: int
    state: str
    message: str = ""
    looks_like: str | None = None
    hint: int | None = None

    @classmethod
    def of_row(cls, row, points, state, message="", **more):
        """row: of a table of exercises."""
        return cls(row.id, row.title, row.object, points, row.points, state, message, **more)
