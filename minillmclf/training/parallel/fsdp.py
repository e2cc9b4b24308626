"""Sharded models under torchrun (--parallel fsdp): each process holds a shard of every tensor, and
the full parameters of a block only while that block computes.

This is torch's `fully_shard` (FSDP2; Rajbhandari et al. 2019, "ZeRO", stage 3). A sharded tensor is
a DTensor; processes.full_tensor gathers it. Not here: tensor or pipeline parallelism.
"""
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ...errors import InputError
from ..recompute import all_blocks
from .processes import is_distributed, world_size


def shard_model(model, optimizer="adamw"):
    """Shard a model's parameters among the processes. optimizer: its name in build_optimizer."""
    if not is_distributed():
        raise InputError("--parallel fsdp shares a model among processes, and this is one: start "
                         "it with torchrun --nproc-per-node N -m minillmclf.train ...")
    if optimizer != "adamw":
        raise InputError(f"--optimizer {optimizer} works on whole tensors, --parallel fsdp shares "
                         "them out: take adamw or ddp")
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    parts = [*all_blocks(model), model]
    for part in parts:
        part = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        part.set_force_sum_reduction_for_comms(True)      # gradients are summed, not averaged
        part.set_gradient_divide_factor(1.0)
    for part in parts:         # a run may go on with dev rows: what inference mode gathers first is
        part.unshard()         # of no use for a step
        part.reshard()
