"""What our commands print: as wide as it is into files and pipes, within the width of a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys

_RELAYED = "nnUNet_logvmamba_columns"


def width() -> int | None:
    """Give the columns of the terminal that shows what is printed, None if none does."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return int(os.environ[_RELAYED]) if _RELAYED in os.environ else None


def relayed() -> dict[str, str]:
    """Give the variables by which a command whose output is passed on knows how wide the terminal is that shows it."""
    columns = width()
    return {} if columns is None else {_RELAYED: str(columns)}


def show(text: str) -> None:
    """Print text, its long lines broken between words on a terminal."""
    from nnunet_logvmamba.evaluation.layout import wrapped  # late, as every command imports this file

    print(wrapped(text, width()))


def show_command(command: str) -> None:
    """Print a command; where it is too wide for a terminal, in several lines that can be copied as they are."""
    lines, limit = [""], width()
    for word in re.findall(r"""(?:'[^']*'|"[^"]*"|\\.|\S)+""", command):  # as a shell has them, quotes and all
        if limit is not None and len(f"{lines[-1]} {word} \\") > limit and lines[-1].strip():
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    print(" \\\n".join(lines))
