"""Data-parallel training under torchrun: several processes train one model.

Every process plans the same steps and takes its share of each batch; the gradients are summed.
Since each loss is divided by the divisor of the full batch, that sum is the gradient that a single
process would compute (up to rounding; dropout draws differ). Here: the few functions of
torch.distributed that are needed, and the step and the store for loop.fit.

In this file each process holds the full model (--parallel ddp). torch's DistributedDataParallel
overlaps the sum with the backward pass, which is faster on many machines, but it averages the
gradients, and hides how. Sharded models: fsdp.py. Starting and ending processes: cli/launch.py.
"""
import functools
import math

import torch
import torch.distributed as dist

from .. import loop
from ..checkpoint import Store, seed_step


def is_distributed():
    """Is this one of several processes, which cli/launch.py starts?"""
    return dist.is_available() and dist.is_initialized()


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size():
    """The number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def is_main_process():
    """Is this the process that prints and writes files?"""
    return rank() == 0


def barrier():
    """Wait until all processes are here."""
    if is_distributed():
        dist.barrier()


def all_reduce(number):
    """The sum of a number over all processes."""
    if not is_distributed():
        return number
    total = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(total)                                             # in place
    return total.item()


def is_sharded(tensor):
    """Does this process hold only a shard of the tensor (a DTensor, fsdp.py)?"""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor):
    """The whole tensor, gathered if it is sharded: then all processes must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def replicate_model(model):
    """Copy the main process's trainable weights to all processes, which have the same frozen ones;
    let them split evaluation."""
    if is_distributed():
        for parameter in model.parameters():
            if parameter.requires_grad:
                dist.broadcast(parameter.data, 0)
        model.compute_logits = functools.partial(shared_logits, model)


def shared_logits(model, encoded, batch_size=64, calibrated=True):
    """Classifier.compute_logits, but each process computes a share of the rows -> (N, C), all."""
    compute = type(model).compute_logits
    if not is_distributed():
        return compute(model, encoded, batch_size, calibrated)
    own = encoded[rank()::world_size()]
    missing = math.ceil(len(encoded) / world_size()) - len(own)     # shares must be equally long
    own = compute(model, own + encoded[:1] * missing, batch_size, calibrated)   # (N / processes, C)
    shares = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(shares, own)
    return torch.stack(shares, 1).flatten(0, 1)[:len(encoded)]       # in the order of the texts


def take_step(model, optimizer, train, rows, settings, objective, update=None):
    """loop.take_step, but each process computes its share of the rows."""
    if not is_main_process():                           # no two processes drop the same neurons
        seed_step(torch.initial_seed(), rank())
    divisor = objective.divisor(torch.tensor([train.targets[row] for row in rows]))
    optimizer.zero_grad(set_to_none=True)
    own, missing = own_share(rows, settings.micro_batch_size)
    loss = loop.add_gradients(model, train, own, settings, objective, divisor) if own else 0.0
    for _ in range(missing):             # passes that add 0 to loss and gradients: divided by inf
        loss += loop.add_gradients(model, train, rows[:1], settings, objective, math.inf)
    loss = all_reduce(loss)
    gradients = [p.grad for p in model.parameters()
                 if p.grad is not None and not is_sharded(p.grad)]     # FSDP has summed its own
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    (update or loop.update_weights)(model, optimizer, settings, loss)
    return loss


def own_share(rows, micro_batch_size):
    """-> this process's rows, and how many micro-batches fewer than the longest share it has: all
    processes must make equally many forward passes."""
    own, longest = rows[rank()::world_size()], math.ceil(len(rows) / world_size())
    size = micro_batch_size or longest
    return own, math.ceil(longest / size) - math.ceil(len(own) / size)


class SharedStore(Store):
    """A Store of several processes: they stop together, and the main process writes.

    Sharded tensors are written in full, so any number of processes can go on from the files.
    """

    def is_stop_asked(self):
        return all_reduce(float(super().is_stop_asked())) > 0

    def write(self, path, tensors, metadata):
        whole = {}
        for name, tensor in tensors.items():         # one at a time: the device may not hold all
            gathered = full_tensor(tensor.detach())
            if is_main_process():
                whole[name] = gathered.cpu()
        if is_main_process():
            super().write(path, whole, metadata)

    def move_like(self, tensor, parameter):
        tensor = super().move_like(tensor, parameter)
        if not is_sharded(parameter) or tensor.shape != parameter.shape:
            return tensor                       # not sharded, or a number of steps
        return torch.distributed.tensor.distribute_tensor(           # fsdp.py has imported that
            tensor, parameter.device_mesh, parameter.placements)

    def load_best(self, model):
        barrier()                                                    # until it has been written
        super().load_best(model)


def gather_model(model):
    """Undo `replicate_model` and fsdp.shard_model: the main process gets the full model. If it was
    sharded, it is then on the CPU, and the other processes have no parameters left."""
    vars(model).pop("compute_logits", None)
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            tensor = full_tensor(parameter.detach()).cpu()
            full = torch.nn.Parameter(tensor, parameter.requires_grad)
            module.register_parameter(name, full if is_main_process() else None)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.cpu())
        module._forward_pre_hooks.clear()             # by which FSDP gathers parameters
        module._forward_hooks.clear()
