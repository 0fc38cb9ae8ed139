"""Worker processes that map work over cases, and end whatever happens."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dataset_conversion.core.cases import Case, ConversionError

# Work, cases and a verb for the progress bar, to the results in order: what `workers` yields.
EachCase = Callable[[Callable, Sequence[Case], str], Iterator]


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[EachCase]:
    """Yield a function that maps work over cases, in order, in ``jobs`` processes that stay for the next call.

    A progress bar shows on a terminal.

    Raises:
        ConversionError: If a worker dies.
    """
    pool = None
    if jobs > 1:
        # Spawned, not forked: a forked worker would inherit our signal handlers and die noisily at the end.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker)
        watch = _Watch(pool)

    def each_case(work: Callable, cases: Sequence[Case], verb: str) -> Iterator:
        from tqdm import tqdm  # late, since workers need none

        try:
            if pool and len(cases) > 1:
                # Small cases go out several at a time; few, since what went out cannot be called back by Ctrl-C.
                results = pool.map(work, cases, chunksize=max(1, min(4, len(cases) // (32 * jobs))))
            else:
                results = map(work, cases)
            yield from tqdm(results, total=len(cases), desc=verb, unit="case", disable=None)
        except BrokenProcessPool:
            watch.died.set()
            raise ConversionError(
                f"A worker process died during the {verb}, perhaps for lack of memory, or because a script uses "
                "several jobs outside of if __name__ == '__main__'; try again with --jobs 1."
            ) from None
        except BaseException:
            if pool:  # nobody may still write into a folder that the caller now removes
                watch.shut_down()
            raise

    try:
        yield each_case
    finally:
        if pool:
            watch.shut_down()


class _Watch(threading.Thread):
    """Ends every worker of a pool once one has died, as of kill -9 or for lack of memory.

    CPython's pool may wait for ever then: for a worker that it started after it had ended the others, or for the rest
    of a result of which a part was sent, as it has the other end of that pipe open itself.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        super().__init__(daemon=True)
        self.pool, self.lock = pool, threading.Lock()
        self.died, self.ending, self.gone = (threading.Event() for _ in range(3))
        self.start()

    def run(self) -> None:
        while not self.died.wait(0.2):
            ended = multiprocessing.connection.wait([process.sentinel for process in self._processes()], 0)
            with self.lock:
                if self.ending.is_set():
                    return
                if ended:
                    self.died.set()
                    self.pool._result_queue._writer.close()  # type: ignore[attr-defined] # typeshed has no private names
        while not self.gone.wait(0.05):
            for process in self._processes():
                process.kill()

    def _processes(self) -> list:
        return list((self.pool._processes or {}).values())

    def shut_down(self) -> None:
        """Wait for what the workers are at, and end them."""
        with self.lock:
            self.ending.set()
        self.pool.shutdown(cancel_futures=True)
        self.gone.set()


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end when that is gone, which a worker would not notice by itself."""

    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
        os._exit(1)

    def leave() -> None:
        # A tenth of a second would go by while Python takes NumPy and ITK down; a traceback is still to be printed.
        if sys.exc_info()[0] is None:
            os._exit(0)

    multiprocessing.util.Finalize(None, leave, exitpriority=-100)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()
