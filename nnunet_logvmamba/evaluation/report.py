"""Scores on disk and on the screen: a row per case and label, means with the number of cases behind them."""

from __future__ import annotations

import csv
import json
import math
import os
import secrets
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .cases import CaseError
from .layout import in_columns


def describe(values: Iterable[float]) -> dict[str, float | int | None]:
    """Give mean, standard deviation over cases, median and the number of cases behind them; NaN is left out.

    Infinite values are left out as well, and both kinds are counted.
    """
    values = list(values)
    finite = [float(value) for value in values if math.isfinite(value)]
    return {
        "mean": statistics.fmean(finite) if finite else None,
        "std": statistics.stdev(finite) if len(finite) > 1 else None,
        "median": statistics.median(finite) if finite else None,
        "cases": len(finite),
        "cases_left_out": len(values) - len(finite),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write rows under a header; numbers in full precision, what is undefined as ``nan``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: object) -> None:
    """Write indented JSON that any reader takes: NaN and infinity become null."""
    path.write_text(as_json(content), encoding="utf-8")


def as_json(content: object) -> str:
    """Give what ``write_json`` writes."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(content: object) -> object:
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def as_text_table(header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> str:
    """Lay rows out in columns, words to the left and numbers to the right; see ``in_columns`` for ``width``."""
    cells = [list(map(str, header)), *(list(map(_cell, row)) for row in rows)]
    numbers = [index for index in range(len(header)) if not all(isinstance(row[index], str) for row in rows)]
    return in_columns(cells, right=numbers, width=width)


def _cell(value: object) -> str:
    if value is None or isinstance(value, float) and math.isnan(value):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a target that holds anything, unless told to replace what has the same name.

    Raises:
        CaseError: Naming the folder and the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise CaseError(f"{folder} is a file; name a folder to write to")
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise CaseError(f"{folder} is not empty; name another folder, or replace files of the same name: --overwrite")


@contextmanager
def staged_files(folder: Path, *, overwrite: bool, last: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder to write to, whose files move to ``folder`` once the block has ended without an error.

    An interrupted run leaves the target as it was. Files in the target that have other names stay.

    Args:
        overwrite: Replace files of the same name; otherwise the target must be absent or empty.
        last: Names of files that move after all others, such as the summary. Older ones leave before anything moves,
            also where no new one takes their place, so that they never stand beside scores that are not theirs.

    Raises:
        CaseError: If the target is a file, or not empty while ``overwrite`` is False; if it cannot be written to, or
            what is to be replaced is no file.
    """
    check_target(folder, overwrite=overwrite)
    folder = folder.absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    # Inside the target, which may be all that the user can write to, or another disk than its parent.
    staged = folder / f".{secrets.token_hex(4)}.partial"
    try:
        try:
            staged.mkdir(parents=True)
        except OSError as error:
            raise CaseError(f"{folder} cannot be written to ({error.strerror}); name another folder") from error
        yield staged
        _move_all(staged, folder, last)
        shutil.rmtree(staged)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        for path in new:
            with suppress(OSError):  # absent, or no longer empty
                path.rmdir()
        raise


def _move_all(staged: Path, folder: Path, last: Sequence[str]) -> None:
    """Move all files of one folder to another, or put back what was there before."""
    names = sorted((path.name for path in staged.iterdir()), key=lambda name: (name in last, name))
    leaving = [*last, *(name for name in names if name not in last)]
    for target in (folder / name for name in leaving):
        if os.path.lexists(target) and not target.is_file():
            raise CaseError(f"{target} is in the way: it is no file; move it, or name another folder")
    before = staged / ".before"
    before.mkdir()
    moved = []
    try:
        for name in leaving:
            if (folder / name).is_file():
                os.replace(folder / name, before / name)
        for name in names:
            os.replace(staged / name, folder / name)
            moved.append(name)
    except BaseException:
        for name in moved:
            (folder / name).unlink()
        for path in before.iterdir():
            os.replace(path, folder / path.name)
        raise
