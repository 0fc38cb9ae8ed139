"""Writes files in one step, so that nobody ever reads half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another path in the same folder to write to; it becomes ``path``, or is removed if anything goes wrong.

    Raises:
        OSError: If it cannot be written, with the name that was asked for; what was there stays as it was.
    """
    path = path.resolve()  # a link stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def replace_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, or leave what was there if anything goes wrong.

    Raises:
        OSError: If it cannot be written, with the name that was asked for; nothing is left beside it.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
