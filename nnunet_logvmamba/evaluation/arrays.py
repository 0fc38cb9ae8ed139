"""What callers pass as masks, instance maps and spacings: taken as arrays of one kind, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAMES = "truth", "prediction"


def check_same_shape(truth: np.ndarray, prediction: np.ndarray) -> None:
    """Raise ValueError, naming both shapes, unless the two masks have the same one."""
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape} and prediction {prediction.shape}; they must be equal")


def as_masks(truth: object, prediction: object, axes: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Give two masks as boolean arrays.

    Args:
        truth: Array, tensor or nested list of truth values, or of numbers of which one beside 0 occurs (0 and 1, 0 and
            255).
        prediction: Another one of the same shape.
        axes: Numbers of axes that are allowed; any if None.

    Raises:
        ValueError: If either is nothing of the kind, or the shapes differ.
    """
    masks = tuple(_as_mask(mask, name) for mask, name in zip((truth, prediction), NAMES))
    check_same_shape(*masks)
    if axes is not None and masks[0].ndim not in axes:
        raise ValueError(f"masks have {' or '.join(map(str, axes))} axes here, not the shape {masks[0].shape}")
    return masks


def as_instances(truth: object, prediction: object) -> tuple[np.ndarray, np.ndarray]:
    """Give two instance maps of the same shape as integer arrays; see :func:`as_instance_map`."""
    maps = tuple(as_instance_map(values, name) for values, name in zip((truth, prediction), NAMES))
    check_same_shape(*maps)
    return maps


def as_instance_map(values: object, name: str = "the map") -> np.ndarray:
    """Give an array, tensor or nested list of whole numbers of at least 0 as integers.

    Raises:
        ValueError: If it is nothing of the kind; ``name`` says which argument it was.
    """
    array = as_array(values, name)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        broken = array[~(np.rint(array) == array)]
        if broken.size:
            raise ValueError(f"{name} holds {broken[0]}; instances and classes are whole numbers")
        array = array.astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"{name} holds {array.min()}; instances and classes start at 0")
    return array


def as_spacing(spacing: object, axes: int, name: str = "spacing_mm") -> tuple[float, ...]:
    """Give one size above 0 per axis.

    Raises:
        ValueError: If it is nothing of the kind.
    """
    try:
        sizes = tuple(map(float, spacing))
    except (TypeError, ValueError):
        raise ValueError(f"{name} is one number per axis of the masks, not {spacing!r}") from None
    if len(sizes) != axes:
        raise ValueError(f"{name} has {len(sizes)} values for masks of {axes} axes")
    for size in sizes:
        check_number(size, f"sizes of voxels in {name}", above=0)
    return sizes


def check_number(value: object, name: str, *, least: float | None = None, above: float | None = None) -> None:
    """Raise ValueError unless a value is a finite number within its bounds."""
    words = f"of at least {least}" if above is None else f"above {above}"
    number = isinstance(value, (int, float, np.number)) and np.isfinite(value)
    if not number or (value < least if above is None else value <= above):
        raise ValueError(f"{name} must be a number {words}, not {value}")


def check_whole(value: object, name: str, *, least: int) -> None:
    """Raise ValueError unless a value is a whole number of at least ``least``."""
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value}")


def _as_mask(mask: object, name: str) -> np.ndarray:
    array = as_array(mask, name)
    if array.dtype.kind == "b":
        return array
    inside = array != 0
    strangers = array[inside & ~(array == array.max())]
    if strangers.size or not np.isfinite(array.max()):
        more = f" and {array.max()}" if strangers.size else ""
        first = strangers[0] if strangers.size else array.max()
        raise ValueError(f"{name} holds {first}{more}; a mask is one label, so pass {name} == label")
    return inside


def as_array(values: object, name: str) -> np.ndarray:
    """Give an array, tensor or nested list of truth values or numbers as an array.

    Raises:
        ValueError: If it is nothing of the kind, or has no axis or no voxel.
    """
    try:
        # A tensor may want gradients or lie on a GPU.
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be taken for an array of numbers ({_first_line(error)})") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {array.dtype} values, which are neither truth values nor numbers")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} has the shape {array.shape} and so no voxel")
    return array


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
