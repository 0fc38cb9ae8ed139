"""What several sub-commands ask of the numbers in their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(least: float, kind: type = float) -> Callable[[str], float]:
    """Give a parser of finite numbers that are not below ``least``; ``kind`` is float or int."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"must be a {'whole ' if kind is int else ''}number of at least {least}, not '{text}'"
            )
        return value

    return parse


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    value = at_least(0)(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def share(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value
