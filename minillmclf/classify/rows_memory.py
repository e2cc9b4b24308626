"""An evaluation that needs more memory than there is: one line that names the switch that helps.

What it holds grows with the rows at a time and their tokens.
"""
import functools

from ..errors import NoMemory, is_no_memory


def name_rows_switch(compute_in_batches):
    """Wrap Classifier.compute_in_batches: an error for lack of memory becomes a NoMemory with a
    remedy. It is no InputError: that means answers that are not finite (training/loop.py)."""
    @functools.wraps(compute_in_batches)
    def compute_or_advice(model, encoded, compute, columns, batch_size=64):
        try:
            return compute_in_batches(model, encoded, compute, columns, batch_size)
        except (MemoryError, RuntimeError) as error:
            if not is_no_memory(error):
                raise
            longest = max(map(model.row_size, encoded), default=0)
            raise NoMemory(advice(min(batch_size, len(encoded)), longest)) from None
    return compute_or_advice


def advice(at_once, longest):
    """What to lower. at_once: rows at a time; longest: tokens of the longest row."""
    fault = f"not enough memory to answer {at_once} rows of up to {longest} tokens at a time"
    if at_once > 1:
        fewer = max(1, at_once // 4)
        return (f"{fault}: set --eval-batch-size {fewer} (predict, evaluate and merge: "
                f"--batch-size {fewer})")
    return (f"{fault}: cut the texts (train: --max-length {max(8, longest // 2)}), take a smaller "
            "model or use a larger machine")
