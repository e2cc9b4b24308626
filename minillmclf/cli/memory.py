"""How much memory does training take? An estimate for python -m minillmclf.inspect and .choose.

Weights, AdamW's moments and gradients are counted. The activations that the backward pass needs,
most of the memory for long texts or large batches, are measured (activations.py), on one text and
on two. Each further text is taken to add what the second one added.

When the backward pass begins there are no gradients yet, and when it ends no activations are left.
So a step takes weights, moments and the *larger* of gradients and activations (`step_bytes`).

With --dtype bf16 the matrices that stay frozen take two bytes a number, and while one of them is
multiplied in fp32 it exists a second time, in fp32: the largest is counted.

Not counted: what Python and torch take themselves, 300 MB and more; and freed memory that the C
library keeps, much on Linux if tensors are some MB large (tests/reference/switches.py measures
both). A run with a 4-bit base or --gradient-checkpointing gives it back (training/give_back.py).
"""
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from torch import nn

from ..classify.windows import Windowed
from ..models.half import MAX_WIDENED
from ..training.recompute import RecomputedForward, all_blocks, block_stacks
from ..tuning import LORA_METHODS, METHODS as TUNING, lora, tune
from ..tuning.quant import bits_per_parameter
from ..tuning.selection import four_bit_sizes, in_head
from .activations import (all_trainable, peak_activations, peak_in_forward,
                          saved_activation_bytes)
from .build import tuning_config
from .settings import Settings

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MEASURED_METHODS = ("full", "last-1", "head", "bitfit", "lora", "dora", "qlora", "houlsby",
                    "pfeiffer", "prefix", "prompt")


def size_text(count):
    """A number of bytes with three digits: 12345678 -> "12.3 MB"."""
    unit = next(u for u in UNITS if count < 999.5 * UNITS[u] or u == "TB")
    count /= UNITS[unit]
    return f"{count:.{max(0, 3 - len(str(int(count))))}f} {unit}"


@dataclass(frozen=True)
class Step:
    """The properties of a training step on which the size of its activations depends."""
    rows: int                     # texts on the device at once: a batch, or a micro-batch
    length: int                   # tokens of each text, or of each of its windows
    checkpointing: bool = False
    precision: str = "fp32"
    windows: int = 0              # of a document; 0: it is cut to `length`


# ---------------------------------------------------------------- weights and moments

@contextmanager
def tuned_classifier(backbone, head, method, length):
    """with tuned_classifier(...) as (model, trained, total): ...   A classifier in training mode,
    with a tuning method; at the end backbone and head are again as they were.

    trained, total: numbers of parameters; model.max_length: `length`, less the virtual tokens of
    the method. A classification head takes the place of the language-model head.
    """
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    modes, lm_head = {m: m.training for m in model.modules()}, backbone.lm_head
    if is_classification_head(head):
        backbone.lm_head = None
    model.config, model.max_length = backbone.source_config, length
    config = tuning_config(Settings(method="lora" if method == "qlora" else method))
    tuned = False
    try:
        trained, total = tune(model, config)
        tuned = True
        yield model.train(), trained, total
    finally:
        if config["method"] in LORA_METHODS:    # not merged, which a base in four bits would refuse
            for path, layer in lora.find_wrapped(model).items():
                model.set_submodule(path, layer.base)
        elif tuned and config["method"] in TUNING:
            TUNING[config["method"]].detach(model)
        backbone.lm_head = lm_head
        for module, training in modes.items():
            module.training = training


def is_classification_head(head):
    """Is it a classification head, not label texts?"""
    return "head.out" in head.NAMES.values()


def state_bytes(backbone, method, trained, total, dtype="fp32"):
    """Bytes of the weights in fp32 (qlora: linear layers in 4 bits; dtype "bf16": matrices that
    stay frozen) and of AdamW's two moments. backbone: as in `tuned_classifier`."""
    weights, in_4_bits = 4 * total, four_bit_sizes(backbone)
    if method == "qlora" and not in_4_bits:
        in_4_bits = {name: m.weight.numel()
                     for name, m in backbone.named_modules()
                     if isinstance(m, nn.Linear) and not in_head(name)
                     and name.rpartition(".")[2] not in backbone.FULL_PRECISION}
    weights -= round(sum(in_4_bits.values()) * (4 - bits_per_parameter() / 8))
    if dtype == "bf16":
        half = {name: m for name, m in backbone.named_modules()
                if isinstance(m, (nn.Linear, nn.Embedding)) and not m.weight.requires_grad
                and name not in in_4_bits}
        weights -= 2 * sum(m.weight.numel() for m in half.values())
        linear = [m.weight.numel() for m in half.values() if isinstance(m, nn.Linear)]
        weights += 4 * min(MAX_WIDENED, max(linear, default=0))         # one of them, widened
    return weights + 8 * trained


def step_bytes(state, trained, activations, accumulating=False):
    """The most bytes that a step takes. state: `state_bytes`; trained: number of parameters;
    activations: bytes; accumulating: are there micro-batches? From the second on, the gradients of
    the earlier ones exist beside its activations."""
    gradients = 4 * trained
    return state + (gradients + activations if accumulating else max(gradients, activations))


# ---------------------------------------------------------------- a step by a method

def training_memory(backbone, head, method, length, dtype="fp32"):
    """Training by a method with AdamW, the frozen matrices in `dtype` -> (number of trainable
    parameters, bytes that do not depend on the texts, bytes of activations of a text of `length`
    tokens), for `step_bytes`."""
    with tuned_classifier(backbone, head, method, length) as (model, trained, total):
        used = min(length, model.max_length)               # virtual tokens take the rest
        saved, fixed = saved_activation_bytes(model, used), 0
        if trained < total:                                # fixed: such as DoRA's sums W + BA
            fixed = max(0, 2 * saved - saved_activation_bytes(model, used, rows=2))
            with all_trainable(model):
                in_full = saved_activation_bytes(model, used) - fixed
            in_forward, grad_blocks = peak_in_forward(model, used)
            if fixed:
                in_forward = peak_in_forward(model, used, rows=2)[0] - in_forward
            saved = peak_activations(model, saved - fixed, in_full, in_forward, grad_blocks)
        state = state_bytes(backbone, method, trained, total, dtype) + fixed
    return trained, state, saved * length // used // head.SEQUENCES_PER_ROW


# ---------------------------------------------------------------- the switches of the loop

@contextmanager
def checkpoint_blocks(model, but):
    """with checkpoint_blocks(model, but): ...   Every block except `but` saves only its input, as
    with --gradient-checkpointing."""
    blocks = [block for block in all_blocks(model) if block is not but]
    for block in blocks:
        block.forward = RecomputedForward(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward                  # of the instance: that of the class is there again


@contextmanager
def use_windows(model, step):
    """with use_windows(model, step): ...   The head reads documents of step.windows windows."""
    before = model["head"]
    model["head"] = Windowed(before, model["backbone"].width, step.length, {
        "pool": "mean", "overlap": 0, "max_windows": step.windows,
        "max_document": step.windows * step.length})
    try:
        yield
    finally:
        model["head"] = before


def step_activation_bytes(model, step):
    """Bytes of activations of a Step. model: from `tuned_classifier`.

    One text and two are measured, because a part does not grow with the rows: with bf16, a copy of
    the weights. With checkpointing the peak comes when one of the two highest blocks is recomputed:
    then the inputs of all blocks and all activations of this one exist. (The highest block may have
    fewer than the one below, if a head reads only one token of it.)
    """
    length = step.length * max(1, step.windows)

    def for_all_rows(measure):
        one, two = measure(1), measure(2)
        return one + (step.rows - 1) * (two - one)

    def kept(rows):
        with use_windows(model, step) if step.windows else nullcontext():
            return saved_activation_bytes(model, length, rows, step.precision)

    extra = 0
    if not all(parameter.requires_grad for parameter in model.parameters()):
        plain = for_all_rows(kept)
        with all_trainable(model):
            in_full = for_all_rows(kept)
        in_forward = {n: peak_in_forward(model, step.length, n, step.precision) for n in (1, 2)}
        peak = peak_activations(model, plain, in_full, for_all_rows(lambda n: in_forward[n][0]),
                                in_forward[1][1])
        extra = peak - plain
    if not step.checkpointing:
        return for_all_rows(kept) + extra
    most = 0
    for stack in block_stacks(model):
        for block in stack[-2:]:
            with checkpoint_blocks(model, block):
                most = max(most, for_all_rows(kept))
    return most + extra


def memory_switches(batch_size, length, method, classification, dtype):
    """Switches that make a step smaller -> [(flags, Step)]. The first entry has none of them, the
    last several together. classification: is it a classification head, which can read windows?
    dtype: of the frozen matrices."""
    step, half, quarter = Step(batch_size, length), max(8, length // 2), max(8, length // 4)
    micro, few = max(1, batch_size // 8), max(1, batch_size // 4)
    found = [("as it is", step),
             (f"--micro-batch-size {micro}", replace(step, rows=micro)),
             (f"--batch-tokens {few * length}", replace(step, rows=few)),
             ("--gradient-checkpointing", replace(step, checkpointing=True)),
             ("--precision bf16", replace(step, precision="bf16")),
             (f"--max-length {half}", replace(step, length=half))]
    if dtype == "fp32" and method != "full":
        found.append(("--dtype bf16", step))
    if classification and method != "prompt":
        found.append((f"--max-length {quarter} --windows mean --max-windows 2",
                      replace(step, length=quarter, windows=2)))
    found.append((f"--micro-batch-size {micro} --gradient-checkpointing --precision bf16 "
                  f"--max-length {half}", Step(micro, half, True, "bf16")))
    return found


def switch_table(backbone, head, method, batch_size, length, dtype="fp32"):
    """The memory of a step with each of the `memory_switches` -> [(flags, Step, bytes)]. dtype: of
    the frozen matrices."""
    table = []
    with tuned_classifier(backbone, head, method, length) as (model, trained, total):
        states = {each: state_bytes(backbone, method, trained, total, each)
                  for each in ("fp32", "bf16")}
        for flags, step in memory_switches(batch_size, model.max_length, method,
                                           is_classification_head(head), dtype):
            state = states["bf16" if "--dtype bf16" in flags else dtype]
            needed = step_bytes(state, trained, step_activation_bytes(model, step),
                                accumulating="--micro-batch-size" in flags)
            table.append((flags, step, needed))
    return table
