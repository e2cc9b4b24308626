"""What the loop of a run needs: a loss function, a step and a Store for one process or several, the
probe; and of the machine: versions of libraries, peak memory, caches."""
import functools
import platform
import sys
from contextlib import contextmanager, nullcontext

import numpy
import safetensors
import torch

try:
    import resource
except ImportError:                                    # Windows
    resource = None

from .. import __version__
from ..errors import InputError
from ..training import fp16, loop
from ..training.checkpoint import Store
from ..training.completion_loss import CompletionLoss
from ..training.contrastive import Contrastive
from ..training.features import cached_features
from ..training.give_back import give_back_freed
from ..training.monitors.gradients import check_first_steps
from ..training.monitors.memory import name_memory_switch
from ..training.monitors.nonfinite import locate_divergence
from ..training.parallel import processes as parallel
from ..training.probe import L2_PENALTY, L2_PENALTY_AT_START, fit_probe
from ..training.recompute import recompute_blocks
from ..tuning.selection import four_bit_sizes
from .device import device_kind


def library_versions(device):
    """Versions, threads, and the kind of device: results depend on these besides the settings.
    device: of --device."""
    return {"minillmclf": __version__, "python": platform.python_version(),
            "torch": torch.__version__, "numpy": numpy.__version__,
            "safetensors": safetensors.__version__, "threads": torch.get_num_threads(),
            "device": device_kind(device)}


def peak_memory_mb():
    """The most memory that this process has held so far, in MB; None on Windows."""
    if resource is None:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def refuse_fp16(model):
    """InputError for a model that cannot be trained with --precision fp16."""
    fault = "4-bit layers compute in fp32 or bf16" if four_bit_sizes(model) else ""
    if model.backbone.FULL_PRECISION:                      # T5's
        fault = "T5's hidden states may pass 65504, the largest number of fp16"
    if fault:
        raise InputError(f"--precision fp16: {fault}: take --precision bf16 or fp32")


def prepare_for_training(s, model):
    """Replicate or shard a built classifier, and set up gradient checkpointing."""
    if s.precision == "fp16":
        refuse_fp16(model)
    parallel.replicate_model(model)
    if s.parallel == "fsdp":
        from ..training.parallel.fsdp import shard_model   # it loads 600 modules of torch
        shard_model(model, s.optimizer)
    if s.gradient_checkpointing == "on":
        recompute_blocks(model)


def objective_of(s, model, targets):
    """The loss function that the settings ask for. targets: of the training rows."""
    if s.objective == "contrastive":
        if parallel.is_distributed():
            raise InputError("--objective contrastive compares all rows of a step: it takes one "
                             "process, not torchrun")
        return Contrastive()
    if s.objective == "completion":
        return CompletionLoss(model.head.answer_lengths())
    return model.task.build_objective(s, targets)


def add_probe(s, model, train, hooks):
    """Fit the head's last layer to the training rows, where the settings ask for a probe: now, or
    in `hooks` after each epoch of a contrastive loss, which trains no head. train:
    training.plan.Split; hooks: loop.Hooks."""
    contrastive = s.objective == "contrastive"
    if s.head_init != "probe" and not contrastive:
        return
    is_final = contrastive or not (s.epochs or s.min_steps)     # no step of the loop changes it
    fit_head = functools.partial(fit_probe, model, train,
                                 model.task.build_objective(s, train.targets), s.eval_batch_size,
                                 L2_PENALTY if is_final else L2_PENALTY_AT_START)
    if contrastive:
        hooks.before_dev = fit_head
    else:
        fit_head()


def step_and_store(s, model, targets, folder, stop, say):
    """-> what loop.fit takes: a function for a step and a Store, for one process or for several.

    The function checks the first gradients and says in which module a NaN or infinity arose.
    """
    take_step, make_store = loop.take_step, Store
    if parallel.is_distributed():
        take_step, make_store = parallel.take_step, parallel.SharedStore
    objective, store = objective_of(s, model, targets), make_store(folder, stop)
    step = functools.partial(take_step, objective=objective)
    if s.precision == "fp16":
        if device_kind(s.device) == "cpu":
            say("WARNING: --precision fp16 is for GPUs: on a CPU it is slower than fp32")
        loss_scale = fp16.LossScale()
        step = fp16.step_in_fp16(take_step, objective, loss_scale)
        store = fp16.keep_scale(store, loss_scale)
    probed = []                                 # parameters that get no gradient, which is no fault
    if s.objective == "contrastive":
        probed = [f"head.out.{name}" for name, _ in model.head.out.named_parameters()]
    return name_memory_switch(check_first_steps(locate_divergence(step), say, probed)), store


@contextmanager
def memory_of_run(s, model, encoded):
    """with memory_of_run(...): the hidden states of a frozen backbone are computed once, not in
    each epoch; in several processes nothing is cached. A run on a CPU that asks for little memory,
    by a 4-bit base or activation checkpointing, gives freed memory back at once."""
    little = s.gradient_checkpointing == "on" or bool(four_bit_sizes(model))
    cache = nullcontext() if parallel.is_distributed() else cached_features(model, encoded, s)
    with give_back_freed(little and device_kind(s.device) == "cpu"), cache:
        yield


# gather_weights: whole weights from the parts that processes hold; writes_files: the main process?
gather_weights, writes_files = parallel.gather_model, parallel.is_main_process
