"""Threads for the compiled scan: torch's own where we can have them, else a pool.

After each of its operations torch's OpenMP keeps its threads waiting busily for some milliseconds. Other threads then
share their cores with these and get half of them; so where torch brings GNU OpenMP, the work is done by its team. Any
other runtime, a second OpenMP above all, would compete with it. numba's own threads are not used: one of its layers is
a second OpenMP, and the other ends the process when two threads scan at once.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch

from nnunet_logvmamba.ops.backends import forked

_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(work: Callable[[], None], threads: int) -> None:
    """Call ``work`` in up to ``threads`` threads at once, the calling one among them, and wait for all.

    ``work`` must release the GIL for most of its time, and the number of calls must not matter to it: OpenMP may give
    fewer threads than it is asked for. The first error of any call is raised.
    """
    errors: list[BaseException] = []
    began: set[int] = set()

    def guarded(_: int | None = None) -> None:
        try:
            began.add(threading.get_ident())
            work()
        except BaseException as error:  # an error cannot pass through OpenMP; it is raised below
            errors.append(error)

    team = None if forked() else _torchs_team()
    if team is None:
        others = [_pool(threads).submit(guarded) for _ in range(threads - 1)]
        guarded()
        wait(others)
    else:
        team(_Work(guarded), None, threads, 0)
    if errors:
        raise errors[0]
    if threading.get_ident() not in began:
        # An interrupt that came before the first line there; ctypes tells it to nobody.
        raise KeyboardInterrupt


@functools.cache
def _torchs_team() -> Callable | None:
    """``GOMP_parallel`` of the GNU OpenMP that came with torch and is in use, or None."""
    if not hasattr(os, "RTLD_NOLOAD") or "OpenMP" not in torch.__config__.parallel_info():
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            team = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):  # not the one that torch has loaded
            continue
        team.argtypes, team.restype = (_Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
        return team
    return None


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    """The pool for that many threads, the calling one counted; its threads start when they are first needed."""
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="nnunet_logvmamba_scan")
    return _pools[threads]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a fork has the objects but not their threads
