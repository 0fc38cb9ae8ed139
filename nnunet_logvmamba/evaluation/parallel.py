"""One function over many cases, in processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from nnunet_logvmamba.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int = 1, text: str = "cases"
) -> list[Result]:
    """Apply a function to every item and give the results in the order of the items.

    The first error ends the work; what waits is not begun. Processes are started afresh, so function and items must be
    picklable; one process means this one.

    Raises:
        UserError: If a process was killed.
    """
    from tqdm import tqdm

    bar = {"total": len(items), "desc": text, "unit": "case", "disable": None}
    processes = min(processes, len(items))
    if processes <= 1:
        return [function(item) for item in tqdm(items, **bar)]
    context = _context()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        try:
            return list(tqdm(pool.map(function, items), **bar))
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {processes} processes was killed, perhaps for want of memory: use fewer, with --jobs"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _context() -> multiprocessing.context.BaseContext:
    """Fork from a server that has imported MONAI once, which takes seconds; start afresh where that cannot be done."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", f"{__package__}.surface"])
    return context


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its children
    # The processes are the parallelism; torch would otherwise start a thread per core in each of them.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
