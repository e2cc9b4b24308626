"""Freed memory goes back to the system at once, where a run asks for little memory.

The C library of Linux (glibc) keeps freed blocks of up to 32 MB for later use. A tensor seldom fits
the hole that another one left: a process with QLoRA took 1.8 times what its tensors take. Above a
threshold the library can take each block from the system, and give it back when it is freed
(mallopt(3)). New pages cost time, 14 to 17 % of a step of a small model
(lessons/measurements/memory.md). So this is for runs that prefer little memory to speed: a 4-bit
base, or activation checkpointing, on a CPU.

Not here: other C libraries and GPUs, whose memory torch manages itself.
"""
import ctypes
import os
from contextlib import contextmanager

THRESHOLD = 10**6              # bytes of a block that is taken from the system, and given back
USUAL = 32 * 2**20             # the largest threshold that glibc sets by itself; it then keeps
                               # up to twice as much free at the end of its heap
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1                 # their numbers in malloc.h
BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")      # the user has set a threshold


def threshold_setter():
    """glibc's mallopt, or None: another C library, or a user who has set the threshold."""
    if any(name in os.environ for name in BY_HAND):
        return None
    try:
        library = ctypes.CDLL(None)
        return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):                            # Windows has no such library
        return None


@contextmanager
def give_back_freed(wanted=True):
    """While it is open, blocks of THRESHOLD bytes or more go back to the system when they are
    freed; afterwards the threshold is USUAL. wanted=False: nothing changes."""
    set_option = threshold_setter() if wanted else None
    if set_option:
        set_option(M_MMAP_THRESHOLD, THRESHOLD)
    try:
        yield
    finally:
        if set_option:
            set_option(M_MMAP_THRESHOLD, USUAL)
            set_option(M_TRIM_THRESHOLD, 2 * USUAL)
