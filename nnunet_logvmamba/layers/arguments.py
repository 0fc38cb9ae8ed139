"""What constructors say to values that do not fit: one sentence with the name, the value and what is needed."""

import math
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any


def whole(name: str, value: Any, least: int = 1) -> int:
    """Give ``value`` as an int.

    Raises:
        ValueError: If it is no whole number (True and 2.0 are none either) or is below ``least``.
    """
    if not _is_whole(value) or value < least:
        raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is needed")
    return int(value)


def listed(name: str, values: Any, what: str) -> list:
    """Give ``values`` as a list; ``what`` says of what, for the message.

    Raises:
        ValueError: If it is a single number or word.
    """
    if not _is_list(values):
        raise ValueError(f"{name} is {values!r}; a list {what} is needed")
    return list(values)


def wholes(name: str, values: Any, per: str) -> list[int]:
    """Give ``values`` as a list of ints.

    Raises:
        ValueError: If it is no list, or has entries other than whole numbers of at least 1.
    """
    values = listed(name, values, f"with one entry per {per}")
    if not all(_is_whole(value) and value >= 1 for value in values):
        raise ValueError(f"{name} is {values}; whole numbers of at least 1 are needed, one per {per}")
    return [int(value) for value in values]


def words(name: str, values: Any, valid: Collection[str]) -> tuple[str, ...]:
    """Give ``values`` as a tuple.

    Raises:
        ValueError: If it is no list, or has other entries than the ``valid`` words, which the message names.
    """
    values = listed(name, values, "of words")
    strangers = [value for value in values if value not in tuple(valid)]
    if strangers:
        raise ValueError(f"{name} has {strangers[0]!r}; valid are {', '.join(map(repr, valid))}")
    return tuple(values)


def per_axis(name: str, value: Any, spatial_dims: int, *, odd: bool = False) -> tuple[int, ...]:
    """Give one value for every axis, out of a single one or one for each.

    Raises:
        ValueError: If there are others than ``spatial_dims`` values, or one is no whole number of at least 1, or even
            though it must be ``odd``.
    """
    values = (value,) * spatial_dims if _is_whole(value) else value
    values = tuple(values) if _is_list(values) else ()
    if len(values) != spatial_dims or not all(_is_whole(v) and v >= 1 and (v % 2 or not odd) for v in values):
        kind = "an odd number" if odd else "a whole number of at least 1"
        raise ValueError(f"{name} is {value!r}; {kind}, or one for each of {spatial_dims} axes, is needed")
    return tuple(map(int, values))


def share(name: str, value: Any) -> float:
    """Give ``value`` as a float.

    Raises:
        ValueError: If it is no number from 0 to below 1.
    """
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} is {value!r}; a number from 0 to below 1 is needed")
    return float(value)


def above_zero(name: str, value: Any) -> float:
    """Give ``value`` as a float.

    Raises:
        ValueError: If it is no finite number above 0.
    """
    if not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}; a number above 0 is needed")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Give ``value`` as a bool.

    Raises:
        ValueError: If it is neither True nor False, as the word "false", which Python takes for True.
    """
    if not isinstance(value, Integral) or value not in (0, 1):
        raise ValueError(f"{name} is {value!r}; True or False is needed")
    return bool(value)


def _is_list(value: Any) -> bool:
    single = isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) == 0  # a tensor without axes
    return isinstance(value, Iterable) and not single


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
