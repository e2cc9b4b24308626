"""Several processes train one model: what each does alone, and where their numbers come together.

Every process plans the same steps. Of a step's rows it takes its share, and gradients are added up: since a loss is
divided by what the *whole* step counts, the sum is the gradient that one process would have found (up to rounding; with
dropout the draws differ). Alone, each function here does nothing.

ddp   each process holds the whole model. The sum is a line after the backward pass. torch's DistributedDataParallel sums
      while that pass still runs (faster on many machines), but averages, and hides where it happens.
fsdp  each process holds a share of every tensor, and whole blocks only while they compute (torch's `fully_shard`, FSDP2;
      Rajbhandari et al. 2019, "ZeRO", stage 3). Such a tensor is a DTensor; `whole` gathers it, which all do together.

Starting and ending processes: launch.py. Not here: models cut along layers or heads, machines that share no disk.
"""
import math

import torch
import torch.distributed as dist
from torch import nn

from ...errors import InputError


def several():
    """Is this one of several processes (launch.together)?"""
    return dist.is_available() and dist.is_initialized()


def rank():
    return dist.get_rank() if several() else 0


def size():
    return dist.get_world_size() if several() else 1


def first():
    """Is this the process that writes and prints?"""
    return rank() == 0


def wait():
    """Until all processes have come here."""
    if several():
        dist.barrier()


def spread(model, kind):
    """Give all processes the same weights (those of the first) and, with kind "fsdp", each its share of them."""
    if not several():
        if kind == "fsdp":
            raise InputError("--parallel fsdp shares a model among processes, and this is one: start it with "
                             "torchrun --nproc-per-node N -m minillmclf.train ...")
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            dist.broadcast(parameter.data, 0)
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        from ..recompute import blocks_of
        mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
        for part in [*blocks_of(model), model]:
            part = fully_shard(part, mesh=mesh)
            part.set_force_sum_reduction_for_comms(True)                         # gradients are added up, with nothing
            part.set_gradient_divide_factor(1.0)                                 # divided by the number of processes


def pieces(rows, most=0):
    """This process's share of a step's rows, in pieces of at most `most` rows (0: all) -> list of lists.

    All processes get equally many pieces, since they compute in step; where rows run out a piece is empty.
    """
    own, longest = rows[rank()::size()], math.ceil(len(rows) / size())
    return [own[start:start + (most or longest)] for start in range(0, longest, most or longest)]


def own_seed(seed):
    """A seed for this process, so that no two drop the same neurons; the first has that of a run alone."""
    return seed if first() else f"{seed}@{rank()}"


def add_gradients(parameters):
    """Add up the gradients of all processes, in place. FSDP has done so in the backward pass."""
    if several():
        own = [p.grad for p in parameters if p.grad is not None and not is_shared(p.grad)]
        for work in [dist.all_reduce(grad, async_op=True) for grad in own]:
            work.wait()


def add_up(number):
    """The sum of a number over all processes."""
    if not several():
        return number
    dist.all_reduce(total := torch.tensor(number, dtype=torch.float64))
    return total.item()


def any_of(flag):
    """Is it true in any process?"""
    return bool(add_up(float(flag))) if several() else flag


def first_text(text):
    """The first text that any process has, or None."""
    if not several():
        return text
    texts = [None] * size()
    dist.all_gather_object(texts, text)
    return next(filter(None, texts), None)


def scores(model, encoded, batch_size):
    """model.scores with the texts shared out -> (N, C) in the order given, in every process."""
    if not several():
        return model.scores(encoded, batch_size)
    own = encoded[rank()::size()]
    own += encoded[:1] * (math.ceil(len(encoded) / size()) - len(own))         # all compute equally many
    mine = model.scores(own, batch_size)                                       # (N / processes, C)
    parts = [torch.empty_like(mine) for _ in range(size())]
    dist.all_gather(parts, mine)
    return torch.stack(parts, 1).flatten(0, 1)[:len(encoded)]                  # turn by turn, as they were dealt


def is_shared(tensor):
    """Does this process hold only a share of it (a DTensor)?"""
    return hasattr(tensor, "full_tensor")


def whole(tensor):
    """The whole of a tensor, gathered where it is shared."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def share_like(tensor, parameter):
    """A whole tensor as the parameter is: on its device, and shared out as it is."""
    tensor = tensor.to(parameter.device)
    if not is_shared(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def gather(model):
    """Make a shared model, in the first process, a whole one in the CPU's memory again, to be saved."""
    if not any(is_shared(parameter) for parameter in model.parameters()):
        return
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            tensor = nn.Parameter(whole(parameter.detach()).cpu(), parameter.requires_grad)
            module.register_parameter(name, tensor if first() else None)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.cpu())
        module._forward_pre_hooks.clear()                     # by which fully_shard gathers a block before it computes
        module._forward_hooks.clear()
