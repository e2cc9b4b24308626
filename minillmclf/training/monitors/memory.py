"""A step that needs more memory than there is: one line that names the switch that helps most.

Which one does follows from what a step holds (cli/memory.py): activations grow with the rows and
tokens of a micro-batch, weights and moments do not. What is saved stays: nothing is written then.
"""
from ...errors import InputError, is_no_memory
from ..parallel.processes import own_share


def name_memory_switch(step):
    """Wrap a step of the loop: an error for lack of memory becomes an InputError with a remedy."""
    def step_or_advice(model, optimizer, train, rows, settings):
        try:
            return step(model, optimizer, train, rows, settings)
        except (MemoryError, RuntimeError) as error:
            if not is_no_memory(error):
                raise
            own = own_share(rows, 0)[0] or rows[:1]             # of several processes
            longest = max(model.row_size(train.encoded[row]) for row in own)
            at_once = min(settings.micro_batch_size or len(own), len(own))
            raise InputError(f"not enough memory for {at_once} rows of up to {longest} tokens at a "
                             f"time: {advice(settings, at_once, longest)}; python -m "
                             "minillmclf.inspect says what each switch takes; what was saved of "
                             "this run stays") from None
    return step_or_advice


def advice(settings, at_once, longest):
    """The flag that makes a step smaller at the least cost. at_once: rows on the device."""
    if at_once > 1 and settings.objective != "contrastive":     # which compares all rows at once
        return f"set --micro-batch-size {max(1, at_once // 4)}, which changes no result but dropout"
    if settings.gradient_checkpointing == "off":
        return "set --gradient-checkpointing, which takes half as long again"
    if settings.method == "full":
        return "set --method lora, which needs no moments of most weights"
    return f"set --max-length {max(8, longest // 2)}, or take a smaller model"
