"""Reads JSON, and writes files in one step, one or several, so that nobody ever reads half of them."""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from nnunet_logvmamba.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room."""

_BEFORE = ".before"
_OF_DISKS = (*FULL, errno.EIO)
"""Errors of writing that name no file."""


def may_be_written(folder: str | Path) -> bool:
    """Whether this user may write into a folder or, where there is none, make it."""
    above = os.path.abspath(folder)
    while not os.path.exists(above) and above != os.path.dirname(above):  # nor where nobody may look
        above = os.path.dirname(above)
    return os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another path in the same folder to write to; it becomes ``path``, or is removed if anything goes wrong.

    A file that is replaced hands its permissions on. The content is on the disk before it gets the name, and what a
    process of this machine left that was killed while it wrote the same file is removed. What a process of another
    machine or container writes is not touched: nobody here knows whether that still runs.

    Raises:
        OSError: If it cannot be written, with the name that was asked for; what was there stays as it was.
    """
    path = path.resolve()  # a link stays a link
    temporary = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}")
    try:
        _remove_leftovers(path)
        yield temporary
        if path.is_file():
            shutil.copymode(path, temporary)
        _to_disk(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    with suppress(OSError):  # not every system takes folders; the file is whole anyway
        _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    ours = f".{path.name}.{_machine()}."
    for left in path.parent.glob(f"{glob.escape(ours)}*"):
        number = left.name[len(ours) :]
        if os.name == "posix" and number.isdecimal() and not _is_running(int(number)):
            left.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """A short name for whatever numbers its processes by itself: the machine, or the container on it."""
    with suppress(OSError):
        return hashlib.sha256(f"{platform.node()} {os.stat('/proc/self/ns/pid').st_ino}".encode()).hexdigest()[:8]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If it is damaged; the sentence ends with the remedy.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {remedy}") from error


def replace_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, or leave what was there if anything goes wrong.

    Raises:
        OSError: If it cannot be written, with the name that was asked for; nothing is left beside it.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def move_into(folder: Path, files: Iterable[Path]) -> None:
    """Move files into a folder of the same file system, each in one step, in the place of one of the same name.

    Each is on the disk before it moves, so that one or the other survives a kill or a loss of power.
    """
    for path in files:
        _to_disk(path)
        os.replace(path, folder / path.name)
    with suppress(OSError):  # not every system takes folders; the files are whole anyway
        _to_disk(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same folder out of a block, where the system knows such locks.

    Nothing is written, and a process that is killed lets go.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a target that holds anything, unless told to replace what has the same name.

    Raises:
        UserError: Naming the folder and the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to write to")
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder, or replace files of the same name: --overwrite")


@contextmanager
def staged_files(folder: Path, *, overwrite: bool, last: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder to write to, whose content moves to ``folder`` once the block has ended without an error.

    An interrupted run leaves the target as it was. Files in the target that have other names stay; a folder replaces
    one of the same name as a whole.

    Args:
        overwrite: Replace files of the same name; otherwise the target must be absent or empty.
        last: Names of files that move after all others, such as the summary. Older ones leave before anything moves,
            also where no new one takes their place, so that they never stand beside scores that are not theirs.

    Raises:
        UserError: If the target is a file, or not empty while ``overwrite`` is False; if it cannot be written to, or
            what is to be replaced is no file.
    """
    check_target(folder, overwrite=overwrite)
    folder = folder.absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    # Inside the target, which may be all that the user can write to, or another disk than its parent.
    staged = folder / f".{os.urandom(4).hex()}.partial"
    try:
        try:
            staged.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written to ({error.strerror}); name another folder") from error
        try:
            yield staged
        except OSError as error:
            raise _in_place_of(error, staged, folder) from error
        _move_all(staged, folder, last)
    except BaseException as error:
        before = staged / _BEFORE
        if before.is_dir() and any(before.iterdir()):
            raise UserError(f"{folder} could not be put back as it was: move back what lies in {before}") from error
        shutil.rmtree(staged, ignore_errors=True)
        for path in new:
            with suppress(OSError):  # absent, or no longer empty
                path.rmdir()
        raise
    shutil.rmtree(staged, ignore_errors=True)


def _in_place_of(error: OSError, staged: Path, folder: Path) -> Exception:
    """What to say of an error while files are staged: the name of the target, and of a full disk something at all."""
    named = staged if error.filename is None and error.errno in _OF_DISKS else Path(str(error.filename))
    if named != staged and staged not in named.parents:
        return error
    where = folder / named.relative_to(staged)
    room = "make room, or " if error.errno in FULL else ""
    return UserError(f"{where} cannot be written ({error.strerror or error}): {room}name another folder")


def _move_all(staged: Path, folder: Path, last: Sequence[str]) -> None:
    """Move all that is in one folder to another, or put back what was there before."""
    names = sorted((path.name for path in staged.iterdir()), key=lambda name: (name in last, name))
    leaving = [*last, *(name for name in names if name not in last)]
    for target in (folder / name for name in leaving):
        kind = "folder" if (staged / target.name).is_dir() else "file"
        if os.path.lexists(target) and not (target.is_dir() if kind == "folder" else target.is_file()):
            raise UserError(f"{target} is in the way: it is no {kind}; move it, or name another folder")
    before = staged / _BEFORE
    before.mkdir()
    moved = []
    try:
        for name in leaving:
            if os.path.lexists(folder / name):
                os.replace(folder / name, before / name)
        for name in names:
            with suppress(OSError) if (staged / name).is_dir() else nullcontext():  # not every system takes folders
                _to_disk(staged / name)
            moved.append(name)
            os.replace(staged / name, folder / name)
    except BaseException:
        for name in moved:
            if not os.path.lexists(staged / name):  # an interrupt may come between the two lines
                os.replace(folder / name, staged / name)
        for path in before.iterdir():
            os.replace(path, folder / path.name)
        raise
