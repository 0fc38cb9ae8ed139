"""How many cores this process may use, which on shared machines is fewer than there are."""

from __future__ import annotations

import os
import re

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
