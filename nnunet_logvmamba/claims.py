"""Claims: a file that one process holds while it does what no other may do meanwhile, and that says who that is.

A process that is killed lets go, and what it forked holds nothing. The file stays where it is: whoever came to remove
it could be removing the next one's.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Holder:
    """The process that holds a file, and what it does."""

    host: str
    process: int
    doing: str

    def __str__(self) -> str:
        return f"process {self.process} of {self.host}" if self.process else "another process"


class HeldError(Exception):
    """A file is held by another process."""

    def __init__(self, holder: Holder):
        super().__init__(f"held by {holder}")
        self.holder = holder


@contextmanager
def claimed(
    file: Path, doing: str = "", *, waits: Callable[[Holder], None] | None = None
) -> Iterator[Callable[[str], None]]:
    """Hold a file, which is made if need be; what is given writes down what is being done.

    A process does not keep itself out, and gives a file up that it opens and closes otherwise. Where nothing can be
    locked, since the file system knows no locks or the file is somebody else's, there is a warning.

    Args:
        file: For no other purpose.
        doing: What is being done.
        waits: Called if another process holds it, which is then waited for.

    Raises:
        HeldError: If another process holds it and ``waits`` is None.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = _opened(file)
    if lock is None:
        yield lambda doing: None
        return
    with lock:
        try:
            _take_now(lock)
        except HeldError as error:
            if waits is None:
                raise
            waits(error.holder)
            _take(lock, wait=True)

        def say(doing: str) -> None:
            lock.truncate(0)
            lock.write(json.dumps([socket.gethostname(), os.getpid(), doing]))
            lock.flush()

        say(doing)
        yield say
        lock.truncate(0)


def holder_of(file: Path) -> Holder | None:
    """Give the other process that holds a file, None if none does or nobody may know."""
    try:
        lock = file.open(encoding="utf-8")
    except (FileNotFoundError, PermissionError):
        return None
    with lock:
        try:
            _take(lock, only_look=True)
        except HeldError as error:
            return error.holder
        return None


def _opened(file: Path) -> IO[str] | None:
    is_new = not file.exists()
    try:
        lock = file.open("a+", encoding="utf-8")
    except PermissionError as error:
        _warn(file, error)
        return None
    if is_new:
        with suppress(OSError):  # on a folder that several users share, the next one may be another
            file.chmod(0o666)
    return lock


def _take_now(lock: IO[str]) -> None:
    """Take a lock, or wait for a moment: whoever only looks at it holds it for as long as that takes."""
    for _ in range(4):
        with suppress(HeldError):
            return _take(lock)
        time.sleep(0.25)
    _take(lock)


def _take(lock: IO[str], *, wait: bool = False, only_look: bool = False) -> None:
    if os.name == "nt":
        return
    import fcntl

    kind = fcntl.LOCK_SH if only_look else fcntl.LOCK_EX  # who may only read takes no other
    try:
        # Not flock, which children that are forked inherit: those of nnU-Net outlive a parent that is killed.
        fcntl.lockf(lock, kind | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise HeldError(_read(lock)) from None
        if not only_look:
            _warn(lock.name, error)


def _warn(file: Path | str, error: OSError) -> None:
    warnings.warn(
        f"{file} cannot be locked ({error.strerror}), so nothing keeps another process from doing the same at the same "
        "time",
        stacklevel=2,
    )


def _read(lock: IO[str]) -> Holder:
    lock.seek(0)
    try:
        return Holder(*json.loads(lock.read()))
    except ValueError:  # it has only just taken it
        return Holder("?", 0, "")
