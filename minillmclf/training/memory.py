"""How much memory does training take? Weights, moments and gradients are counted; what a step keeps is measured.

Between its forward and its backward pass a step keeps what the gradients will need: most of the memory that a long text or
a large batch takes. How much is not worked out from a formula: the forward pass is run, on one text and on two, with every
switch really on, and the tensors that autograd saves are added up; more texts add what the second one added. Dropout is
on, as in training: with it torch's attention keeps all its weights on a CPU, T x T for each head, and else none of them.

When the backward pass begins there are no gradients yet, and when it ends nothing is kept any more: so a step takes its
weights and moments and the *larger* of gradients and what is kept (`step_bytes`). Frozen blocks keep little, but while one
of them computes, all of its inside is there: at least one block's worth is counted (`passing`).

Here: `training_memory`, `Step` and `switches`, which python -m minillmclf.inspect and python -m minillmclf.choose print.
Not here: what Python and torch take themselves, 300 MB and more; and what the C library holds of memory that is free again: much on Linux where tensors are some MB large, unless the
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

    trained, total: numbers of parameters; model.max_length: `length`, less what the method puts before a text. A language-model
    head is left out where a classification head takes its place. Afterwards backbone and head are as they were.
    """
    from torch import nn

    from ..cli.build import recipe_of
    from ..cli.settings import Settings
    from ..tuning import METHODS, tune
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    modes, lm_head = [(module, module.training) for module in model.modules()], backbone.lm_head
    if has_classes(head):
        backbone.lm_head = None
    model.config, model.max_length = backbone.source_config, length
    recipe = recipe_of(Settings(method="lora" if method == "qlora" else method))
    trained, total = tune(model, recipe)
    try:
        yield model.train(), trained, total
    finally:
        if recipe["method"] in METHODS:
            METHODS[recipe["method"]].detach(model)
        backbone.lm_head = lm_head
        for module, training in modes:
            module.training = training


def has_classes(head):
    """Is it a classification head, not label texts?"""
    return "head.out" in head.NAMES.values()


def sequences_of(head):
    """Sequences that a row has for this head."""
    return getattr(head, "SEQUENCES", 1)


def held(backbone, method, trained, total):
    """Bytes that are there all the time: weights in fp32 (qlora: linear layers in four bits) and AdamW's two moments."""
    from torch import nn

    from ..tuning.quant import HEADS, bits_per_parameter
    weights = 4 * total
    if method == "qlora":
        packed = sum(m.weight.numel() for name, m in backbone.named_modules() if isinstance(m, nn.Linear)
                     and not HEADS.search(name) and name.rpartition(".")[2] not in backbone.KEPT_WHOLE)
        weights -= round(packed * (4 - bits_per_parameter() / 8))
    return weights + 8 * trained


def step_bytes(always, trained, texts, accumulating=False):
    """The most that a step takes. always: of `held`; texts: what is kept of them; accumulating: its micro-batches after the
    first find gradients there."""
    return always + (4 * trained + texts if accumulating else max(4 * trained, texts))


def passing(kept, kept_in_full, in_forward, carrying, blocks):
    """What is kept of a step's texts, and what passes by -> bytes. kept_in_full: where all parameters learn; in_forward: of
    `most_in_forward`; carrying: of all `blocks`, those that hand a gradient on.

    A block's whole inside is there while its gradients are computed, also where its parameters are frozen and little is kept.
    """
    inside = max(0, kept_in_full // blocks - kept // carrying) if carrying else 0
    return max(in_forward, kept + inside)


@contextmanager
def all_learning(model):
    """Within: every parameter learns."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


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
        return tensor.detach()          # a tensor that its own operation saves would otherwise keep itself alive for ever
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        scores = forward(model, length, rows, precision)                  # noqa: F841  while it lives, so does what it keeps
    return sum(kept.values())


def forward(model, length, rows, precision):
    """A forward pass -> logits; None on the device "meta"."""
    import torch

    from ..tuning.prompt import new_words
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    ids = torch.tensor([new_words(model) + [0] * length] * (rows * sequences_of(model.head)))
    mask = torch.ones_like(ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return model.head.read(model.backbone, ids, mask)


def most_in_forward(model, length, rows=1, precision="fp32"):
    """The most bytes that tensors take at a time in a forward pass beside the weights, and how many blocks hand a gradient on."""
    import weakref

    from torch import is_tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    alive, now, most, carrying, blocks = set(), 0, 0, [], blocks_in(model)

    def free(key, size):
        nonlocal now
        now -= size
        alive.discard(key)

    class Watch(TorchDispatchMode):
        """Each operation's outputs are counted until torch frees their memory."""

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal now, most
            out = function(*args, **(kwargs or {}))
            inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if is_tensor(t)}
            for storage in (t.untyped_storage() for t in tree_leaves(out) if is_tensor(t)):
                key, size = storage._cdata, storage.nbytes()
                if key not in alive and key not in inputs:                 # a view takes no memory
                    alive.add(key)
                    now += size
                    weakref.finalize(storage, free, key, size)
            most = max(most, now)
            return out

    def note(block, given, out):
        carrying.append(any(t.requires_grad for t in tree_leaves(out) if is_tensor(t)))
    hooks = [block.register_forward_hook(note) for block in blocks]
    try:
        with Watch():
            forward(model, length, rows, precision)
    finally:
        for hook in hooks:
            hook.remove()
    return most, sum(carrying)


def training_memory(backbone, head, method, length):
    """What one method takes in training, in fp32 with AdamW -> (trainable parameters, bytes of weights, moments and what a
    step keeps whatever its texts are, bytes for a text of `length` tokens). `step_bytes` adds them up. The model is as it was afterwards."""
    with tuned(backbone, head, method, length) as (model, trained, total):
        used = min(length, model.max_length)                       # what stands before a text takes positions from it
        text, once = kept_for_backward(model, used), 0
        if trained < total:
            once = max(0, 2 * text - kept_for_backward(model, used, rows=2))      # DoRA's sums of matrices
            with all_learning(model):
                in_full = kept_for_backward(model, used) - once
            in_forward, carrying = most_in_forward(model, used)
            if once:
                in_forward = most_in_forward(model, used, rows=2)[0] - in_forward
            text = passing(text - once, in_full, in_forward, carrying, len(blocks_in(model)))
        always = held(backbone, method, trained, total) + once
        return trained, always, text * length // used // sequences_of(head)


# ------------------------------------------------------------------------------------------- the switches of the loop

@contextmanager
def recomputed(model, whole):
    """Within: every block but `whole` keeps its input only, as with --checkpointing on (training/recompute.py)."""
    from .recompute import Recomputed, blocks_of
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
def windowed(model, step):
    """Within: the head reads documents in step.windows windows of step.length tokens, as with --windows mean."""
    from ..classify.windows import Windowed
    before = model["head"]
    model["head"] = Windowed(before, model["backbone"].width, step.length, {
        "pool": "mean", "overlap": 0, "max_windows": step.windows,
        "max_document": step.windows * step.length})
    try:
        yield
    finally:
        model["head"] = before


def blocks_in(model, of_each=slice(None)):
    """The blocks of all stacks; of_each: which of each stack."""
    from torch import nn
    return [block for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "layers" for block in module[of_each]]


def tops(model):
    """The two highest blocks of each stack. With checkpointing a step keeps most when one of them has been computed again:
    the inputs of all blocks are still there then, and all that this one keeps. (The highest may keep less: a head that
    reads one token asks it for that one.)"""
    return blocks_in(model, slice(-2, None))


def step_keeps(model, step):
    """Bytes that a Step keeps for its backward pass, and what passes by. model: as `tuned` gives it.

    Not all grows with the rows (with bf16 the weights are there a second time, in 16 bits), hence one text and two.
    """
    length = step.length * max(1, step.windows)

    def kept(rows, whole=None, checkpointing=step.checkpointing):
        with recomputed(model, whole) if checkpointing else nullcontext(), \
                windowed(model, step) if step.windows else nullcontext():
            return kept_for_backward(model, length, rows, step.precision)
    def grown(one, two):
        return one + (step.rows - 1) * (two - one)

    most = more = 0
    if not all(parameter.requires_grad for parameter in model.parameters()):
        plain = grown(kept(1, None, False), kept(2, None, False))
        with all_learning(model):
            in_full = grown(kept(1, None, False), kept(2, None, False))
        (one, carrying), (two, _) = (most_in_forward(model, step.length, n, step.precision) for n in (1, 2))
        more = passing(plain, in_full, grown(one, two), carrying, len(blocks_in(model))) - plain
    for whole in tops(model) if step.checkpointing else [None]:
        most = max(most, grown(kept(1, whole), kept(2, whole)))
    return most + more


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
    """Each switch with what its step takes -> [(flags, Step, bytes)]."""
    with tuned(backbone, head, method, length) as (model, trained, total):
        always, most = held(backbone, method, trained, total), model.max_length
        return [(flags, step, step_bytes(always, trained, step_keeps(model, step), "--micro-batch-size" in flags))
                for flags, step in switches(batch_size, most, method, has_classes(head))]
