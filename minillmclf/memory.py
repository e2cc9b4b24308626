"""How much memory does training take? Weights, gradients and moments are counted; what a step keeps is measured.

Between its forward and its backward pass a step keeps what the gradients will need: most of the memory that a long text or
a large batch takes. How much is not worked out from a formula: the forward pass is run, on one text and on two, with every
switch really on, and the tensors that autograd saves are added up; more texts add what the second one added. Dropout is
on, as in training: with it torch's attention keeps all its weights on a CPU, T x T for each head, and else none of them.

Here: `training_memory`, `Step` and `switches`, which python -m minillmclf.inspect and python -m minillmclf.choose print.
Not here: what passes by while the backward pass computes, a tenth more; what Python and torch take themselves, 300 MB and
more; and what the C library holds of memory that is free again: much on Linux where tensors are some MB large, unless the
environment says MALLOC_MMAP_THRESHOLD_=65536 (tests/reference/switches.py measures both).
"""
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
METHODS = ("full", "last-1", "head", "bitfit", "lora", "dora", "qlora", "houlsby", "pfeiffer", "prefix", "prompt")


def size(count):
    """Bytes for people, three figures: 12.3 MB."""
    unit = next(u for u in UNITS if count < 999.5 * UNITS[u] or u == "TB")
    count /= UNITS[unit]
    return f"{count:.{max(0, 3 - len(str(int(count))))}f} {unit}"


@dataclass(frozen=True)
class Step:
    """What of a training step decides how much it keeps. windows: of a document, each of `length` tokens; 0: it is cut."""
    rows: int                     # texts on the device at a time: all of a step, or micro_batch_size
    length: int                   # tokens of each
    checkpointing: bool = False
    precision: str = "fp32"
    windows: int = 0


@contextmanager
def tuned(backbone, head, method, length):
    """with tuned(...) as (model, trained, total): a classifier in training mode, with what the method adds to it.

    trained, total: numbers of parameters; model.max_length: `length`, less what the method puts before a text. Afterwards
    backbone and head are as they were.
    """
    from torch import nn

    from .building import recipe_of
    from .settings import Settings
    from .tuning import UPDATES, adapter, lora, prefix, prompt, tune
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    modes = [(module, module.training) for module in model.modules()]
    model.config, model.max_length = backbone.source_config, length
    recipe = recipe_of(Settings(method="lora" if method == "qlora" else method))
    trained, total = tune(model, recipe)
    undo = dict.fromkeys(UPDATES, lora.merge) | dict.fromkeys(("houlsby", "pfeiffer"), adapter.unwrap)
    undo |= {"prefix": prefix.detach_prefix, "prompt": prompt.detach_prompt}
    try:
        yield model.train(), trained, total
    finally:
        undo.get(recipe["method"], bool)(model)
        for module, training in modes:
            module.training = training


def held(backbone, method, trained, total):
    """Bytes that are there all the time: weights in fp32 (qlora: linear layers in four bits), gradients, AdamW's moments."""
    from torch import nn

    from .tuning.quant import HEADS, bits_per_parameter
    weights = 4 * total
    if method == "qlora":
        packed = sum(m.weight.numel() for name, m in backbone.named_modules() if isinstance(m, nn.Linear)
                     and not HEADS.search(name) and name.rpartition(".")[2] not in backbone.KEPT_WHOLE)
        weights -= round(packed * (4 - bits_per_parameter() / 8))
    return weights + 12 * trained


def kept_for_backward(model, length, rows=1, precision="fp32"):
    """Bytes that training keeps for the backward pass of `rows` texts of `length` tokens: a pass is run, and they are added.

    model: has a backbone and a head, as a classifier. Nothing is kept on the device "meta", where no pass can be run.
    """
    import torch
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    if any(parameter.is_meta for parameter in model.parameters()):
        return 0
    ids, mask = (torch.full((rows * model.head.SEQUENCES, length), value) for value in (0, 1))
    if getattr(model, "prompt", None) is not None:
        ids, mask, _ = model.prompt.extend(ids, mask)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), \
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        scores = model.head.read(model.backbone, ids, mask)               # noqa: F841  while it lives, so does what it keeps
    return sum(kept.values())


def training_memory(backbone, head, method, length):
    """What one method takes in training, in fp32 with AdamW -> (parameters that learn, bytes of weights, gradients and
    moments, bytes kept for the backward pass of a text of `length` tokens). The model is as it was afterwards."""
    with tuned(backbone, head, method, length) as (model, trained, total):
        used = min(length, model.max_length)                       # what stands before a text takes positions from it
        kept = kept_for_backward(model, used) * length // used // head.SEQUENCES
    return trained, held(backbone, method, trained, total), kept


# ------------------------------------------------------------------------------------------- the switches of the loop

@contextmanager
def recomputed(model, whole):
    """Within: every block but `whole` keeps its input only, as with --checkpointing on (training/recompute.py)."""
    from .training.recompute import Recomputed, blocks_of
    blocks = [block for block in blocks_of(model) if block is not whole]
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = Recomputed(block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


@contextmanager
def windowed(head, width, step):
    """Within: the head reads documents in step.windows windows of step.length tokens, as with --windows mean."""
    from .classify.windows import use_windows
    before = head.windows
    use_windows(head, width, step.length, {"pool": "mean", "overlap": 0, "max_windows": step.windows,
                                           "max_document": step.windows * step.length})
    head.windows.train()
    try:
        yield
    finally:
        head.windows = before


def tops(model):
    """The two highest blocks of each stack. With checkpointing a step keeps most when one of them has been computed again:
    the inputs of all blocks are still there then, and all that this one keeps. (The highest may keep less: a head that
    reads one token asks it for that one.)"""
    from torch import nn
    return [block for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "layers" for block in module[-2:]]


def step_keeps(model, step):
    """Bytes that a Step keeps for its backward pass. model: as `tuned` gives it.

    Not all grows with the rows (with bf16 the weights are there a second time, in 16 bits), hence one text and two.
    """
    length = step.length * max(1, step.windows)

    def kept(rows, whole=None):
        with recomputed(model, whole) if step.checkpointing else nullcontext(), \
                windowed(model.head, model.backbone.width, step) if step.windows else nullcontext():
            return kept_for_backward(model, length, rows, step.precision)
    most = 0
    for whole in tops(model) if step.checkpointing else [None]:
        one, two = kept(1, whole), kept(2, whole)
        most = max(most, one + (step.rows - 1) * (two - one))
    return most


def switches(batch_size, length, method, heads=True):
    """What can be done about a step that is too large -> [(flags, Step)], the step as it is first, all together last.

    heads: the classifier has a head, not label texts: only then can it read in windows.
    """
    step, half = Step(batch_size, length), max(8, length // 2)
    micro, few = max(1, batch_size // 8), max(1, batch_size // 4)
    found = [("as it is", step), (f"--micro-batch-size {micro}", replace(step, rows=micro)),
             (f"--batch-tokens {few * length}", replace(step, rows=few)),
             ("--checkpointing on", replace(step, checkpointing=True)),
             ("--precision bf16", replace(step, precision="bf16")),
             (f"--max-length {half}", replace(step, length=half))]
    if heads and method != "prompt":
        quarter = max(8, length // 4)
        found.append((f"--max-length {quarter} --windows mean --max-windows 2", replace(step, length=quarter, windows=2)))
    return [*found, (f"--micro-batch-size {micro} --checkpointing on --precision bf16 --max-length {half}",
                     Step(micro, half, True, "bf16"))]


def switch_table(backbone, head, method, batch_size, length):
    """Each switch with what its step takes -> [(flags, Step, bytes)]: weights, gradients, moments and what is kept."""
    with tuned(backbone, head, method, length) as (model, trained, total):
        always, most = held(backbone, method, trained, total), model.max_length
        return [(flags, step, always + step_keeps(model, step))
                for flags, step in switches(batch_size, most, method, "head.out" in head.NAMES.values())]
