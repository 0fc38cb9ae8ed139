"""Reads nnU-Net's ``dataset.json``; nothing else in the package looks at labels or channels in it.

It takes what nnU-Net takes: a label is whatever ``int()`` makes a whole number of without loss, 1, 1.0 or "1".
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import SupportsInt

from nnunet_logvmamba.errors import UserError


@dataclass(frozen=True)
class Labels:
    """What there is to score: values per name, and the value whose voxels are not scored, if there is one."""

    values: dict[str, tuple[int, ...]]
    ignored: int | None = None
    source: str = ""
    dataset_name: str = ""

    @property
    def names(self) -> dict[tuple[int, ...], str]:
        """Names of labels and regions by the values they consist of."""
        return {values: name for name, values in self.values.items()}

    @property
    def gap(self) -> tuple[int, int] | None:
        """The first number that no label has, although there is the other one above it; None if there is no gap."""
        ignored = () if self.ignored is None else (self.ignored,)
        used = sorted({0, *ignored}.union(*self.values.values()))
        return next(((low + 1, high) for low, high in pairwise(used) if high > low + 1), None)

    @property
    def are_regions(self) -> bool:
        """Whether nnU-Net trains regions, each with a channel of its own, in place of one number per voxel."""
        return any(len(values) > 1 for values in self.values.values())

    def name_of(self, key: str) -> str:
        """Name of a label or region that nnU-Net's ``summary.json`` calls ``1`` or ``(1, 2)``; others are names.

        nnU-Net copies regions as they are written, so that ``(1.0, 2.0)`` and ``('1', '2')`` are such keys, too.
        """
        try:
            written = ast.literal_eval(key) if key.startswith("(") else (key.removesuffix(".0"),)
            values = tuple(map(whole_number, written))
        except (ValueError, TypeError, SyntaxError):
            return key
        return self.names.get(values, key)


def whole_number(value: str | SupportsInt) -> int:
    """Give ``int(value)``, as nnU-Net does with labels.

    Raises:
        ValueError: If there is no such number, or it is another one, as with 1.5.
    """
    try:
        number = int(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(value, str) and number != value:
        raise ValueError(f"{value!r} is not whole")
    return number


def read_dataset_json(path: Path) -> Labels:
    """Read labels, regions and the ignored label out of nnU-Net's ``dataset.json``; background is not scored.

    Raises:
        UserError: If the file cannot be read or its labels are not nnU-Net's.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    return labels_of(content, str(path))


def labels_of(content: object, source: str) -> Labels:
    """Take labels, regions and the ignored label from the content of a ``dataset.json``; ``source`` is its name.

    Raises:
        UserError: If its labels are not nnU-Net's.
    """
    content = content if isinstance(content, dict) else {}
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"{source} has no 'labels' as nnU-Net's dataset.json has")
    values: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        if name == "ignore" and value is None:  # as if it were not there
            continue
        several = value if isinstance(value, (list, tuple)) and name != "ignore" else [value]
        try:
            values[name] = tuple(map(whole_number, several))
        except ValueError:
            values[name] = ()
        if not values[name]:
            words = "a whole number" if name == "ignore" else "a whole number or a list of them"
            raise UserError(f"{source}: the label '{name}' must be {words}, not {value!r}")
    ignored = values.pop("ignore", (None,))[0]
    values = {name: value for name, value in values.items() if set(value) != {0}}
    if not values:
        raise UserError(f"{source} has no label but the background")
    return Labels(values, ignored, source, str(content.get("name", "")))


def channels_of(content: dict, source: str) -> tuple[str, ...]:
    """Take the names of the channels, in the order of the files, from the content of a ``dataset.json``.

    Raises:
        UserError: If it names them in another way than nnU-Net's; it may name none.
    """
    channels = content.get("modality", content.get("channel_names", {}))  # the order in which nnU-Net looks
    if not isinstance(channels, dict):
        raise UserError(f'{source}: \'channel_names\' must be a table such as {{"0": "T1"}}, not {channels!r:.40}')
    return tuple(map(str, channels.values()))


def fault_of_channels(content: dict, source: str) -> str | None:
    """Say in what the channels are not as nnU-Net takes them; None if they are.

    It plans normalisation by the values in the order of the file, and takes images in the order of their numbers.
    """
    for table in ("modality", "channel_names"):
        channels = content.get(table)
        if not isinstance(channels, dict):
            continue
        numbers, names = list(map(_number, channels)), list(map(str, channels.values()))
        by_number = [name for _, name in sorted(zip(numbers, names), key=lambda one: one[0] or 0)]
        turned = next(
            (key for key, name in channels.items() if _number(key) is None and _number(name) is not None), None
        )
        if turned is not None or (None not in numbers and by_number != names):
            fault = (
                f"'{turned}' before '{channels[turned]}'" if turned is not None else f"{', '.join(map(str, channels))}"
            )
            return (
                f"{source}: '{table}' must have the numbers of the channels before their names, in order, as in "
                f'{{"0": "T1", "1": "CT"}}, and has {fault}'
            )
    return None


def _number(word: str | SupportsInt) -> int | None:
    try:
        return whole_number(word)
    except ValueError:
        return None
