"""Under torchrun: the processes find each other, one of them speaks, and they end together.

  torchrun --nproc-per-node 2 -m minillmclf.train --data my.csv

torchrun starts the same command several times and tells each, in the environment, its number and how to find the others.
gloo carries numbers between CPUs, nccl between GPUs.
"""
import contextlib
import os
import sys
import time

from ...errors import Stopped


@contextlib.contextmanager
def together():
    """with together(): the work of one of several processes. Without torchrun, or with one process, nothing happens.

    Only the first process prints. Where one fails, it alone tells why, and all end: the others, who then wait in vain for
    its numbers, end without a word.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ) or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    import torch.distributed as dist
    rank, store = join()
    try:
        with quiet(rank > 0):
            yield
    except (SystemExit, Stopped) as end:                    # the same in all of them: the first has said why
        time.sleep(min(rank, 1))
        code = 130 if isinstance(end, Stopped) else end.code
        raise end if rank == 0 else SystemExit(code)
    except BaseException:
        if not first_to_fail(store):
            time.sleep(1)                                   # torchrun ends all when one ends: let the other speak
            sys.stdout.flush()
            os._exit(2)                                     # an ordinary end would wait for the others' numbers
        if rank > 0:
            print(file=sys.stderr)                          # below the first process's progress bar
        raise
    dist.barrier()                                          # one that leaves early may cut off what another still reads
    dist.destroy_process_group()


def join():
    """Meet the other processes -> this one's number, and a store of keys and values that all can read."""
    import torch
    import torch.distributed as dist
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    return rank, store


@contextlib.contextmanager
def quiet(wanted):
    """Whatever is printed inside goes nowhere, if wanted."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stdout(nowhere if wanted else sys.stdout):
            with contextlib.redirect_stderr(nowhere if wanted else sys.stderr):
                yield


def first_to_fail(store):
    """Has no other process failed before?"""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:                                    # the process that held the store is gone
        return False
