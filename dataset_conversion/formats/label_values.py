"""Values of masks: counted, checked and mapped to other values."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dataset_conversion.core.cases import ConversionError, Description

MAX_COUNTABLE = 65535


def value_counts(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of an array, sorted, and how often each occurs; for masks much faster than sorting their voxels."""
    if _is_countable(voxels):
        counts = np.bincount(voxels.ravel().astype(np.intp))
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(voxels, return_counts=True)


def _is_countable(voxels: np.ndarray) -> bool:
    return voxels.dtype.kind in "ui" and voxels.size > 0 and voxels.min() >= 0 and voxels.max() <= MAX_COUNTABLE


def check_labels(voxels: np.ndarray, description: Description, case: str, path: Path) -> dict[int, int]:
    """Count the voxels of every value of a mask.

    Returns:
        Source value to number of voxels.

    Raises:
        ConversionError: For a fraction in single precision, a NaN or a value that the data set does not have.
    """
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32)  # as nnU-Net reads them
    values, counts = value_counts(voxels)
    for value in values:
        if not np.isfinite(value) or value != np.rint(value):
            raise ConversionError(f"Case {case}: mask {path} holds {value!s}, but labels are whole numbers.")
    for value in map(int, values):
        if value not in description.label_map:
            legal = ", ".join(map(str, sorted(description.label_map)))
            hint = description.foreign_values.get(value, "")
            raise ConversionError(
                f"Case {case}: mask {path} holds label {value}, but {description.name} has only {legal}"
                f"{f' ({hint})' if hint else ''}."
            )
    return {int(value): int(count) for value, count in zip(values, counts)}


def remap_labels(voxels: np.ndarray, label_map: Mapping[int, int]) -> np.ndarray:
    """Replace every value of a mask by its image under ``label_map``, all at once.

    Args:
        voxels: Any shape, any dtype that holds whole numbers.

    Returns:
        Same shape, uint8.

    Raises:
        ValueError: If a value has no image.
    """
    voxels = np.asarray(voxels)
    values, _ = value_counts(voxels)
    strangers = [value for value in values.tolist() if value not in label_map]
    if strangers:
        raise ValueError(f"Label values {strangers[:5]} are not among {sorted(label_map)}")
    if _is_countable(voxels):
        table = np.zeros(int(voxels.max()) + 1, np.uint8)
        for value in values.tolist():
            table[value] = label_map[value]
        return table[voxels]
    result = np.zeros(voxels.shape, np.uint8)
    for value, image in label_map.items():
        result[voxels == value] = image
    return result


def inverse(label_map: Mapping[int, int]) -> dict[int, int]:
    """The way back through a label map that merges nothing."""
    return {ours: theirs for theirs, ours in label_map.items()}
