"""Files of cases: found by name in a folder, read as label maps or instance maps with their spacing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
"""Read by SimpleITK; their spacing is in mm."""

PICTURE_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
"""Natural images; their unit is the pixel."""

ENDINGS = VOLUME_ENDINGS + PICTURE_ENDINGS


class CaseError(ValueError):
    """Files that cannot be scored: one sentence that names the file and what is wrong with it."""


@dataclass(frozen=True)
class LabelMap:
    """Integers per voxel and what is known of where the voxels lie.

    Attributes:
        values: Integer array, axes as in the file read by nnU-Net (slices, rows, columns), or (rows, columns). A single
            slice has two axes.
        spacing: Voxel size per axis of ``values``.
        unit: ``mm``, or ``px`` where the file knows no size.
        position: Origin and direction in SimpleITK's order; empty where the file knows none.
    """

    values: np.ndarray
    spacing: tuple[float, ...]
    unit: str
    position: tuple[float, ...] = ()


def ending_of(path: Path) -> str | None:
    """Give the ending by which a file is read, ``.nii.gz`` as a whole; None for other files."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def find_cases(folder: Path, *, endings: Sequence[str] = ENDINGS, suffixes: Sequence[str] = ()) -> dict[str, Path]:
    """Give the files of a folder by case: the name without its ending and without the first of ``suffixes`` it has.

    Where any name has such a suffix, files without one are taken for something else, such as a gallery.

    Raises:
        CaseError: If there is no such folder, it holds no such file, or two files are of one case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CaseError(f"{folder} is not a folder")
    files = {}
    for path in sorted(folder.iterdir()):
        ending = ending_of(path)
        if not path.name.startswith(".") and ending in endings and path.is_file():
            files[path] = path.name[: -len(ending)]
    if any(name.endswith(tuple(suffixes)) for name in files.values()):
        files = {path: name for path, name in files.items() if name.endswith(tuple(suffixes))}
    found: dict[str, Path] = {}
    for path, name in files.items():
        case = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
        if case in found:
            raise CaseError(f"{folder} holds two files of the case '{case}', {found[case].name} and {path.name}")
        found[case] = path
    if not found:
        raise CaseError(f"{folder} holds no file that ends in {', '.join(endings)}")
    return found


def check_pairs(
    predicted: Collection[str], true: Collection[str], predictions: Path, references: Path, *, predicted_only: bool
) -> list[str]:
    """Give the cases that have a reference but no prediction, which is an error unless ``predicted_only``.

    Raises:
        CaseError: If a case is on one side only, naming the first.
    """
    alone = sorted(set(predicted) - set(true))
    if alone:
        raise CaseError(f"{references} holds no reference for {len(alone)} prediction(s), the first is '{alone[0]}'")
    unscored = sorted(set(true) - set(predicted))
    if unscored and not predicted_only:
        raise CaseError(
            f"{predictions} holds no prediction for {len(unscored)} reference(s), the first is '{unscored[0]}'; "
            f"to score the predicted cases alone, add --predicted-only"
        )
    return unscored


def read_labels(path: Path) -> LabelMap:
    """Read one label map or instance map.

    Volumes keep their spacing in mm. Pictures have pixels of size 1; a multi-page TIFF takes its spacing from the JSON
    file of the same name that nnU-Net keeps beside it, where there is one.

    Raises:
        CaseError: If the file cannot be read, is a colour picture, or holds numbers that are not whole.
    """
    path = Path(path)
    try:
        read = _read_volume(path) if ending_of(path) in VOLUME_ENDINGS else _read_picture(path)
    except CaseError:
        raise
    except Exception as error:  # every library has its own way to say that a file is broken
        raise CaseError(f"{path} cannot be read: {_reason(error)}") from error
    values = read.values
    if values.size == 0:
        raise CaseError(f"{path} holds no voxel: its shape is {values.shape}")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or not (values == np.round(values)).all():
            raise CaseError(f"{path} holds numbers that are not whole; labels and instances must be")
        values = values.astype(np.int64)
    elif values.dtype.kind not in "iub":
        raise CaseError(f"{path} holds {values.dtype} values; labels and instances are whole numbers")
    if values.min() < 0:
        raise CaseError(f"{path} holds the negative value {values.min()}; labels and instances start at 0")
    return LabelMap(values, read.spacing, read.unit, read.position)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # SimpleITK puts its reason last, behind the lines of its source.
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def _read_volume(path: Path) -> LabelMap:
    import SimpleITK as sitk

    if ending_of(path) in (".nii", ".nii.gz"):
        _check_nifti(path)
    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise CaseError(f"{path} holds {image.GetNumberOfComponentsPerPixel()} channels; a label map has one")
    values, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
    if values.ndim not in (2, 3):
        raise CaseError(f"{path} has {values.ndim} axes; a label map has 2 or 3")
    if values.ndim == 3 and values.shape[0] == 1:  # one slice: distances are those of its outlines
        values, spacing = values[0], spacing[1:]
    return LabelMap(values, tuple(map(float, spacing)), "mm", (*image.GetOrigin(), *image.GetDirection()))


def check_gzip(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is; any other file is passed over.

    Raises:
        EOFError, OSError, zlib.error: If the end is missing or the checksum is wrong.
    """
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass


def _check_nifti(path: Path) -> None:
    """Refuse what SimpleITK reads as 0 without a word: the missing end of a broken file, and what is not finite."""
    import nibabel

    check_gzip(path)
    voxels = np.asanyarray(nibabel.load(path).dataobj)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise CaseError(f"{path} holds numbers that are not finite; labels and instances are whole numbers")


def _read_picture(path: Path) -> LabelMap:
    values = read_picture(path)
    if values.ndim == 3 and values.shape[-1] in (2, 3, 4) and values.shape[0] > 4:
        raise CaseError(f"{path} is a colour picture; a label map has one channel that holds the numbers themselves")
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim not in (2, 3):
        raise CaseError(f"{path} has the shape {values.shape}; a label map has 2 or 3 axes")
    spacing, unit = (1.0,) * values.ndim, "px"
    side_file = path.with_suffix(".json")
    if values.ndim == 3 and side_file.is_file():
        spacing = tuple(map(float, json.loads(side_file.read_text())["spacing"]))
        unit = "mm"
        if len(spacing) != 3:
            raise CaseError(f"{side_file} names {len(spacing)} spacings for a volume")
    return LabelMap(values, spacing, unit)


def read_picture(path: Path) -> np.ndarray:
    """Read a PNG, BMP or TIFF as it is stored, (height, width), (height, width, channels) or (pages, height, width).

    Raises:
        CaseError: If it cannot be read.
    """
    from skimage.io import imread
    from tifffile import imread as read_tiff

    try:
        return np.asarray(read_tiff(path) if ending_of(path) in (".tif", ".tiff") else imread(path))
    except Exception as error:  # every library has its own way to say that a file is broken
        raise CaseError(f"{path} cannot be read: {_reason(error)}") from error


def check_same_grid(
    truth: LabelMap, prediction: LabelMap, truth_file: Path, prediction_file: Path, *, position: bool = True
) -> None:
    """Raise CaseError, naming both files, unless both maps have the same shape, spacing and position.

    What only one of the files knows is not compared, nor is the position if ``position`` is False.
    """
    if truth.values.shape != prediction.values.shape:
        difference = "shape", prediction.values.shape, truth.values.shape
    elif truth.unit == prediction.unit and not np.allclose(truth.spacing, prediction.spacing, rtol=1e-3, atol=1e-5):
        difference = "spacing", _rounded(prediction.spacing), _rounded(truth.spacing)
    elif (
        position
        and truth.position
        and prediction.position
        and (
            len(truth.position) != len(prediction.position)
            or not np.allclose(truth.position, prediction.position, rtol=1e-3, atol=1e-2)
        )
    ):
        difference = "origin or direction", _rounded(prediction.position), _rounded(truth.position)
    else:
        return
    what, predicted, true = difference
    raise CaseError(f"{prediction_file} has {what} {predicted} but its reference {truth_file} has {true}")


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
