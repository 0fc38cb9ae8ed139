"""What callers pass as masks, instance maps and spacings: taken as arrays of one kind, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

NAMES = "truth", "prediction"


def as_masks(truth: object, prediction: object) -> tuple[np.ndarray, np.ndarray]:
    """Give two masks as boolean arrays of two or three axes.

    Args:
        truth: Array, tensor or nested list of truth values, or of numbers of which one beside 0 occurs (0 and 1, 0 and
            255).
        prediction: Another one of the same shape.

    Raises:
        ValueError: If either is nothing of the kind, or the shapes differ.
    """
    true, predicted = (_as_mask(mask, name) for mask, name in zip((truth, prediction), NAMES))
    return _of_one_case(true, predicted, "masks")


def as_instances(truth: object, prediction: object) -> tuple[np.ndarray, np.ndarray]:
    """Give two instance maps of the same shape as integer arrays of two or three axes; see :func:`as_instance_map`."""
    true, predicted = (as_instance_map(values, name) for values, name in zip((truth, prediction), NAMES))
    return _of_one_case(true, predicted, "instance maps")


def _of_one_case(truth: np.ndarray, prediction: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Refuse what has other axes than those of space, which would be pooled with them."""
    for array, name in zip((truth, prediction), NAMES):
        if array.ndim not in (2, 3):
            remedy = "score one case at a time, without axes of batch or channels" if array.ndim > 3 else "keep theirs"
            raise ValueError(f"{kind} have 2 or 3 axes here, not the shape {array.shape} of {name}; {remedy}")
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape} and prediction {prediction.shape}; they must be equal")
    return truth, prediction


def refuse_one_hot(mask: np.ndarray, name: str) -> None:
    """Raise ValueError if a mask of three axes is two or more classes of a plane, each position in exactly one.

    That cannot be told from a volume for sure. Asked for are fewer classes than rows and columns, and two that occur.
    """
    for axis, one in ((0, "label"), (-1, "..., label")) if mask.ndim == 3 else ():
        classes = mask.shape[axis]
        if not 2 <= classes < min(np.delete(mask.shape, axis)) or np.count_nonzero(mask) * classes != mask.size:
            continue
        if mask.any(axis).all() and np.moveaxis(mask, axis, 0).any((1, 2)).sum() > 1:
            raise ValueError(
                f"{name} has the shape {mask.shape} and is one-hot along axis {axis % 3}; a mask is one label, so pass "
                f"{name}[{one}]"
            )


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
            raise ValueError(
                f"{name} holds {broken[0]}; instances and classes are whole numbers, so of probabilities or logits "
                "take the argmax over the classes first"
            )
        array = array.astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"{name} holds {array.min()}; instances and classes start at 0")
    return array


def as_spacing(spacing: Sequence[float], axes: int, name: str = "spacing_mm") -> tuple[float, ...]:
    """Give one size above 0 per axis.

    Raises:
        ValueError: If it is nothing of the kind.
    """
    try:
        if isinstance(spacing, str):  # whose letters are no sizes
            raise TypeError
        sizes = tuple(map(float, spacing))
    except (TypeError, ValueError):
        number = isinstance(spacing, int | float | np.number)
        remedy = f"; if all are equal, pass ({', '.join([str(spacing)] * axes)})" if number else ""
        words = " ".join(repr(spacing).split())
        raise ValueError(f"{name} is one number per axis of the masks, not {words}{remedy}") from None
    if len(sizes) != axes:
        raise ValueError(f"{name} has {len(sizes)} values for masks of {axes} axes")
    for size in sizes:
        check_number(size, f"sizes of voxels in {name}", above=0)
    return sizes


def check_number(value: object, name: str, *, least: float = -np.inf, above: float | None = None) -> None:
    """Raise ValueError unless a value is a finite number within its bounds."""
    words = f"of at least {least}" if above is None else f"above {above}"
    within = False
    if isinstance(value, (int, float, np.number)) and np.isfinite(value):
        within = bool(value >= least if above is None else value > above)
    if not within:
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
    if strangers.size:
        holds = f"{name} holds {strangers[0]} and {array.max()}"
        single = array.astype(np.float32)  # in which labels are whole
        if (single == np.rint(single)).all():
            raise ValueError(f"{holds}; a mask is one label, so pass {name} == label")
        kind, threshold = ("probabilities", 0.5) if array.min() >= 0 and array.max() <= 1 else ("logits", 0)
        raise ValueError(
            f"{holds}, as {kind} do; a mask is one label, so pass {name} > {threshold}, or of several classes "
            f"{name}.argmax(axis) == label"
        )
    return inside


def as_array(values: object, name: str) -> np.ndarray:
    """Give an array, tensor or nested list of truth values or numbers as an array.

    Raises:
        ValueError: If it is nothing of the kind, has no axis or no voxel, or holds NaN or infinity.
    """
    _refuse_packed(values, name)
    try:
        array = np.asarray(_from_tensor(values) if hasattr(values, "detach") else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be taken for an array of numbers ({_first_line(error)})") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {array.dtype} values, which are neither truth values nor numbers")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} has the shape {array.shape} and so no voxel")
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        nan = np.isnan(array).any()
        kind, remedy = (
            ("NaN", f", or if it means background, pass numpy.nan_to_num({name})") if nan else ("infinity", "")
        )
        raise ValueError(
            f"{name} holds {kind}, which is not a number, in {array.size - np.count_nonzero(finite)} of {array.size} "
            f"voxels; mend the step that made it{remedy}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)  # SciPy takes no other order


def _refuse_packed(values: object, name: str) -> None:
    """Raise ValueError for tensors and matrices that do not store every value as it is."""
    if getattr(values, "is_quantized", False):
        raise ValueError(f"{name} is a quantized tensor; call its dequantize() first")
    layout = str(getattr(values, "layout", "")).removeprefix("torch.")
    if layout.startswith("sparse"):
        raise ValueError(f"{name} is a sparse tensor ({layout}); call its to_dense() first")
    if hasattr(values, "toarray"):
        raise ValueError(f"{name} is a sparse matrix; call its toarray() first")


def _from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """Take a tensor from any device; it may want gradients, and be of a small type that numpy does not have."""
    small = tensor.is_floating_point() and tensor.element_size() < 4
    return (tensor.float() if small else tensor).numpy(force=True)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
