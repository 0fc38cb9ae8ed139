"""Text for reading: columns, and lines that fit the width of a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

GAP = "  "


def in_columns(
    cells: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    beside: Collection[int] = (),
    rule: bool = True,
    width: int | None = None,
) -> str:
    """Lay rows out in columns.

    Where they are too wide, columns go into several blocks one below the other, each with the first column, and a cell
    that is too wide even so takes several lines.

    Args:
        cells: Rows of texts, the head first.
        right: Columns of numbers, which stand to the right.
        beside: Columns that mean something only beside the one before, so that both go into the same block.
        rule: Draw a line below the head.
        width: Characters there are; None for as many as it takes.
    """
    widths = [max(map(len, column)) for column in zip(*cells)]
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        blocks = [list(range(len(widths)))]
    else:
        widths[0] = min(widths[0], max(width // 2, 1))
        space = max(width - widths[0] - len(GAP), 1)
        widths[1:] = [min(one, space) for one in widths[1:]]
        blocks = []
        for group in _groups(len(widths), beside):
            needed = sum(widths[column] + len(GAP) for column in group)
            if not blocks or widths[0] + sum(widths[one] + len(GAP) for one in blocks[-1][1:]) + needed > width:
                blocks.append([0])
            blocks[-1] += group
    return "\n\n".join(_block(cells, block, widths, right, rule) for block in blocks or [[0]])


def _groups(number: int, beside: Collection[int]) -> list[list[int]]:
    """Columns but the first, in groups that stay together."""
    groups: list[list[int]] = []
    for column in range(1, number):
        if column in beside and groups:
            groups[-1].append(column)
        else:
            groups.append([column])
    return groups


def _block(
    cells: Sequence[Sequence[str]], block: Sequence[int], widths: Sequence[int], right: Collection[int], rule: bool
) -> str:
    lines = []
    for number, row in enumerate(cells):
        pieces = [textwrap.wrap(row[column], widths[column], break_on_hyphens=False) or [""] for column in block]
        for index in range(max(map(len, pieces))):
            texts = [piece[index] if index < len(piece) else "" for piece in pieces]
            lines.append(
                GAP.join(
                    text.rjust(widths[column]) if column in right else text.ljust(widths[column])
                    for column, text in zip(block, texts)
                ).rstrip()
            )
        if rule and number == 0:
            lines.append(GAP.join("-" * widths[column] for column in block))
    return "\n".join(lines)


def wrapped(text: str, width: int | None) -> str:
    """Break lines that are too wide between words; what continues stands below the text, not below its name.

    The name ends at the last gap of two spaces in the left part of a line. Words such as paths are never broken.
    """
    if width is None:
        return text
    return "\n".join(line if len(line) <= width else _folded(line, width) for line in text.split("\n"))


def _folded(line: str, width: int) -> str:
    name = re.match(rf".{{0,{width * 3 // 5 - len(GAP)}}}{GAP}(?=\S)", line)
    indent = len(line) - len(line.lstrip()) + len(GAP)
    longest = max(map(len, line.split()))
    if name is not None and len(name[0]) + longest <= width and name[0].strip():
        indent = len(name[0])
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
