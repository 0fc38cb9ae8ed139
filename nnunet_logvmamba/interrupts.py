"""A polite kill or a closed terminal unwinds a command like Ctrl-C, so that no half of an output stays.

Nor is it an error that nobody reads on, as behind ``| head``: the command ends quietly.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # no SIGHUP on Windows


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise KeyboardInterrupt at these signals, but for those that are ignored already, as by nohup."""
    heeded = [which for which in _SIGNALS if signal.getsignal(which) is not signal.SIG_IGN]
    previous = {which: signal.signal(which, _unwind) for which in heeded}
    hook, sys.unraisablehook = sys.unraisablehook, partial(_unwind_again, sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for which, handler in previous.items():
            signal.signal(which, handler)


@contextmanager
def put_off() -> Iterator[None]:
    """Let an interrupt that comes in a block come at its end, so that a process that begins there is known by then."""
    if threading.current_thread() is not threading.main_thread():  # no interrupt comes here
        yield
        return
    came: list[int] = []
    previous = {}
    for which in (signal.SIGINT, *_SIGNALS):
        if callable(signal.getsignal(which)):  # a process that begins gets the system's own for it
            previous[which] = signal.signal(which, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
        for number in dict.fromkeys(came):  # also behind an error, which may be one that the caller lives with
            signal.raise_signal(number)


@contextmanager
def ending_with_its_reader() -> Iterator[None]:
    """End quietly, with the exit code that a shell gives SIGPIPE, once nobody reads what is printed.

    What was printed is handed over here, since Python would complain of it at its exit. A pipe to anything else that
    breaks stays an error.
    """
    try:
        try:
            yield
        except SystemExit:  # of argparse, which has printed a help
            print(end="", flush=True)
            raise
        print(end="", flush=True)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left
        raise SystemExit(141) from None


def _reader_is_gone() -> bool:
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # no poll on Windows, no file where Python code reads what is printed
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


@contextmanager
def kept_to_ourselves() -> Iterator[None]:
    """Let no process that begins here heed the signals by which a queue tells all of a job that its time is nearly up.

    Whoever began them heeds these, and ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unwind(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _ours() -> list[signal.Signals]:
    return [which for which in _SIGNALS if signal.getsignal(which) is _unwind]


def _change_mask(how: int) -> None:
    signal.pthread_sigmask(how, _ours())


def _end_at_once() -> None:
    """Let a forked worker end as others do: its pool kills it politely, and a handler in Python may come too late.

    A worker that is about to wait for its next task would note the signal and wait, and its pool would wait for it.
    """
    for which in _ours():
        signal.signal(which, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {which})  # and a kill that came meanwhile takes effect


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=partial(_change_mask, signal.SIG_BLOCK),
        after_in_parent=partial(_change_mask, signal.SIG_UNBLOCK),
        after_in_child=_end_at_once,
    )


def _unwind_again(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Repeat an interrupt that fell into a destructor or a weak reference's callback, which cannot raise."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)
    elif hasattr(signal, "pthread_kill"):
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM)).start()
    else:
        threading.Timer(0.05, signal.raise_signal, (signal.SIGTERM,)).start()
