"""Targets: whether one may be written, and folders and files that appear only once they are complete.

Converters import nothing of the package but what a cell is, so they have their own; a data set is a folder of folders.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dataset_conversion.core.cases import ConversionError


def require_free_target(target: Path, overwrite: bool) -> None:
    """Raise a ConversionError if ``target`` is a file, or a folder with something in it and not ``overwrite``."""
    if target.exists() and not target.is_dir():
        raise ConversionError(f"Target {target} is a file; move it away or choose another target.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ConversionError(f"Target folder {target} is not empty; use --overwrite to replace it.")


def foretold(target: Path) -> str:
    """What a run would do with a target that it may write, in words."""
    if target.is_dir() and any(target.iterdir()):
        count = sum(path.is_file() for path in target.rglob("*"))
        return f"would replace {target} and the {count} file(s) in it"
    return f"would {'replace' if target.is_file() else 'write'} {target}"


def require_apart(source: Path, target: Path) -> None:
    """Raise a ConversionError if ``source`` is ``target`` or lies in it: replacing it would lose the source.

    The same holds for the folder where the command runs, which an empty name means, as of a variable that is not set.
    """
    target = Path(target).resolve()
    for what, folder in (("Source", Path(source).resolve()), ("The current folder", Path.cwd())):
        if target == folder or target in folder.parents:
            raise ConversionError(f"{what} {folder} lies inside the target {target}; choose another target.")


def require_outside(source: Path, target: Path) -> None:
    """Raise a ConversionError if ``target`` lies in ``source``: the next run would take what is written for scans."""
    source, target = Path(source).resolve(), Path(target).resolve()
    if source in target.parents:
        raise ConversionError(
            f"Target {target} lies inside the source {source}, so that the next run would read it; choose another "
            "target, or name the folder of the archive alone as source."
        )


def require_writable(target: Path, *, dry_run: bool = False) -> None:
    """Raise a ConversionError unless something can be written beside ``target``, or in what exists of the path to it.

    A folder at which a disk is mounted is refused, since no other can take its place.

    What a user may do is only known once it was tried: an empty folder is made and removed. A dry run, which may not
    touch anything, asks the system instead.
    """
    if os.path.ismount(target):
        raise ConversionError(
            f"Target {target} is a mount point, which no folder can take the place of; name a folder inside it."
        )
    folder = Path(target).resolve().parent
    while not folder.exists():
        folder = folder.parent
    with writing(folder):
        if dry_run:
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                number = errno.EACCES if folder.is_dir() else errno.ENOTDIR
                raise OSError(number, os.strerror(number))
            return
        tempfile.TemporaryDirectory(prefix=".writable-", dir=folder).cleanup()


@contextlib.contextmanager
def staged_folder(
    target: Path, *, overwrite: bool = False, then: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place once the block ends well.

    If the block, the exchange or ``then`` raises, the staged folder and every parent made for it are removed and
    ``target`` is as it was. The staged name starts with a dot, so that nnU-Net never takes it for a data set. Where
    ``target`` is a link, the folder that it leads to is replaced. Old contents that cannot be removed in the end are a
    warning, since the new ones are in place.

    Args:
        then: Called when ``target`` is in place and its old contents are still at hand.

    Raises:
        ConversionError: If ``target`` is not empty and not ``overwrite``, or cannot be written.
    """
    target = Path(target).resolve()
    require_free_target(target, overwrite)
    with _made_parents(target):
        staged, replaced = _sibling(target, "partial"), None
        in_place = False
        try:
            with writing(target):
                staged.mkdir()
            yield staged
            require_free_target(target, overwrite)  # others may have written there meanwhile
            with writing(target):
                if target.exists():
                    replaced = target.rename(_sibling(target, "replaced"))
                staged.rename(target)
            in_place = True
            then()
        except BaseException:
            shutil.rmtree(target if in_place else staged, ignore_errors=True)
            if replaced is not None:
                _put_back(replaced, target)
            raise
        if replaced is not None:
            _remove(replaced, target)


def _remove(replaced: Path, target: Path) -> None:
    try:
        shutil.rmtree(replaced)
    except (OSError, KeyboardInterrupt) as error:  # all is done but this
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else error.strerror or error
        print(
            f"warning: {replaced} could not be removed ({reason}); it holds the old contents of "
            f"{target}, remove it by hand.",
            file=sys.stderr,
        )


def _put_back(replaced: Path, target: Path) -> None:
    try:
        replaced.rename(target)
    except OSError as error:
        raise ConversionError(
            f"{target} could neither be replaced nor put back ({error.strerror}); its old contents are in {replaced}."
        ) from error


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target``; the file written there replaces ``target`` once the block ends well.

    Links to folders are followed, as :func:`staged_folder` does.
    """
    target = Path(target).parent.resolve() / Path(target).name
    with _made_parents(target):
        staged = _sibling(target, "partial")
        try:
            yield staged
            if staged.exists():
                with writing(target):
                    staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)


def _sibling(target: Path, purpose: str) -> Path:
    return target.with_name(f".{target.name}.{purpose}-{secrets.token_hex(4)}")


def final_path(path: Path) -> Path:
    """Where a file in a staged folder is going to lie, for error messages."""
    return Path(re.sub(r"/\.([^/]+)\.partial-[0-9a-f]{8}(?=/|$)", r"/\1", str(path)))


@contextlib.contextmanager
def _made_parents(target: Path) -> Iterator[None]:
    """Make the parents of ``target``; take back those that we made if the block raises."""
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):  # somebody else may have put a file there meanwhile
                parent.rmdir()
        raise


@contextlib.contextmanager
def writing(path: Path, case: str = "") -> Iterator[None]:
    """Name the file in whatever goes wrong while it is written: a full disk says no name of its own.

    Raises:
        ConversionError: For an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or "is the disk full, or the folder read-only?"
        remedy = "free some space" if error.errno == errno.ENOSPC else "make the folder writable"
        raise ConversionError(
            f"{f'Case {case}: ' if case else ''}{final_path(path)} cannot be written ({reason}); "
            f"{remedy} or choose another target."
        ) from error
