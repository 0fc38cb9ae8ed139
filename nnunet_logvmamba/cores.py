"""What a process that computes on CPUs may use of their cores, and keeps of their memory."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from functools import cache, partial

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_THRESHOLDS = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT")


def usable_cores() -> int:
    """Count the cores that this process may use: those of its affinity, at most the quota of its container."""
    import joblib

    return joblib.cpu_count()


def usable_threads() -> int:
    """Count the threads that this process should compute with: its cores, fewer if OpenMP's variables say so."""
    limits = (re.match(r"\s*0*([1-9]\d*)", os.environ.get(name, "")) for name in THREAD_VARIABLES)
    return min([usable_cores(), *(int(limit[1]) for limit in limits if limit)])


def keep_to_usable_threads() -> None:
    """Take from torch the threads that have no core.

    nnU-Net's commands ask for as many as the machine has cores, whatever the job may use, and take no notice of
    ``OMP_NUM_THREADS``. Threads that share a core wait for each other busily, which made a training beside another one
    six times slower; and where OpenMP grants fewer threads than torch asks for, the backward of oneDNN's convolutions
    waits for the missing ones for ever.
    """
    import torch

    threads = usable_threads()
    if torch.get_num_threads() > threads:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Keep what a training step frees for the next one, in place of giving it back to the system and asking anew.

    glibc gives back what is free at the end of its heap, and a map of full resolution is tens of MiB: up to a tenth of
    a step went into pages that came and went. From here on the process stays as large as it once was, but not the
    workers that it forks. Thresholds that are set in the environment stay as they are, and other C libraries do not
    have this.
    """
    tunables = re.search(r"malloc\.(mmap|trim)_threshold", os.environ.get("GLIBC_TUNABLES", ""))
    if sys.platform != "linux" or tunables or _THRESHOLDS & os.environ.keys():
        return
    if _limits_of_malloc(32 * 2**20, 2**31 - 1):  # the most that it takes
        _give_back_in_workers()


def _limits_of_malloc(apart: int, kept: int) -> bool:
    """Set from how many bytes on memory is asked for apart, and how many free ones are kept, if there is a way to."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, apart) and mallopt(_M_TRIM_THRESHOLD, kept))


@cache
def _give_back_in_workers() -> None:
    # That is how far glibc moves its limits by itself, which it no longer does.
    os.register_at_fork(after_in_child=partial(_limits_of_malloc, 32 * 2**20, 64 * 2**20))
