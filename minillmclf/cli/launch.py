"""Several processes under torchrun: they find each other, only one prints, and all end together.

  torchrun --nproc-per-node 2 -m minillmclf.train --data my.csv

torchrun starts the same command several times and tells each process, in the environment, its
number and how to find the others. gloo connects CPUs, nccl connects GPUs, each process one of its
own; what is on the CPU (numbers, logits) goes by gloo there too.
"""
import contextlib
import os
import sys
import time

from ..errors import Stopped


def are_several():
    """Has torchrun started several processes?"""
    return ({"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)
            and os.environ["WORLD_SIZE"] != "1")


@contextlib.contextmanager
def in_all_processes():
    """with in_all_processes(): ...   Each process runs the block; without torchrun there is one.

    Only the main process prints. When a process fails, it alone prints its error, and all end: the
    others would wait for its tensors for ever.
    """
    if not are_several():
        yield
        return
    import torch.distributed as dist
    rank, store = join_processes()
    try:
        with silence_output(rank > 0):
            yield
    except (SystemExit, Stopped) as end:                # raised in all: the main one tells why
        time.sleep(min(rank, 1))
        code = 130 if isinstance(end, Stopped) else end.code
        raise end if rank == 0 else SystemExit(code)
    except BaseException:
        if not is_first_to_fail(store):
            time.sleep(1)                               # let the first to fail print its error:
            sys.stdout.flush()                          # torchrun ends all when one ends
            os._exit(2)                                 # a plain exit would wait for the others
        if rank > 0:
            print(file=sys.stderr)                      # below the main process's progress bar
        raise
    dist.barrier()                                      # an early exit may cut off the others
    dist.destroy_process_group()


def join_processes():
    """Connect to the other processes -> this one's rank, and a key-value store that all share."""
    import torch
    import torch.distributed as dist
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpu:                        # cli/device.py refuses more processes here than devices
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank,
                            world_size=size)
    return rank, store


@contextlib.contextmanager
def silence_output(wanted):
    """with silence_output(wanted): ...   If wanted, nothing that the block prints is shown."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stdout(nowhere if wanted else sys.stdout):
            with contextlib.redirect_stderr(nowhere if wanted else sys.stderr):
                yield


def is_first_to_fail(store):
    """Is this the first process to fail?"""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:                                # the main process, with the store, ended
        return False
