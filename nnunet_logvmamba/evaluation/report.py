"""Scores on disk and on the screen: a row per case and label, means with the number of cases behind them."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_logvmamba.files import replace_text, replacing

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
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: object) -> None:
    """Write indented JSON that any reader takes: NaN and infinity become null."""
    replace_text(path, as_json(content))


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
