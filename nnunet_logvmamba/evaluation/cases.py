"""Files of cases: found by name in a folder, read as label maps or instance maps with their spacing."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_logvmamba.errors import UserError

if TYPE_CHECKING:
    import nibabel
    import SimpleITK as sitk

NIFTI_ENDINGS = (".nii.gz", ".nii")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".mha", ".gipl")
"""Read by SimpleITK, NIfTI also by nibabel; their spacing is in mm."""

TIFF_ENDINGS = (".tif", ".tiff")
PICTURE_ENDINGS = (".png", ".bmp", *TIFF_ENDINGS)
"""Natural images; their unit is the pixel."""

ENDINGS = VOLUME_ENDINGS + PICTURE_ENDINGS

GALLERY = "gallery.png"
"""What ``logvmamba instances`` draws beside its maps; no case."""

FOLD_ALL = "Fold all is validated on the cases it was trained on: these scores say nothing about new cases."
"""What every table and page of such scores says."""

SPACING_TOLERANCE = 1e-3
"""Share of a voxel by which two spacings may differ and be the same."""

DIRECTION_TOLERANCE = 1e-3
"""By how much two direction cosines may differ; NIfTI's quaternions alone are off by up to 3e-4."""

ORIGIN_TOLERANCE = 1e-2
"""Share of the shortest edge of a voxel by which two origins may differ, beside what single precision rounds off."""


IMAGE_INSTEAD = "if it is an image, name the folder of the segmentations instead"
"""The remedy where a file holds what hardly any segmentation does."""


@dataclass(frozen=True)
class Volume:
    """Voxels as a file stores them, and where they lie.

    Attributes:
        values: Axes (slices, rows, columns) or (rows, columns), as nnU-Net reads them.
        spacing: Voxel size in mm per axis of ``values``.
        affines: By the library that reads the header, since SimpleITK and nibabel may take different parts of it: the
            matrix that takes an index per axis of ``values`` and a 1 to positions towards right, front and top.
            SimpleITK's is in mm and has no third row for a file of two axes, nibabel's is in the header's unit.
    """

    values: np.ndarray
    spacing: tuple[float, ...]
    affines: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LabelMap:
    """Integers per voxel and what is known of where the voxels lie.

    Attributes:
        values: Integer array, axes as in the file read by nnU-Net (slices, rows, columns), or (rows, columns). A single
            slice has two axes, whichever of the three it is a slice of.
        spacing: Voxel size per axis of ``values``.
        unit: ``mm``, or ``px`` where the file knows no size.
        affines: See :class:`Volume`; empty where the file knows no position.
        slice_axis: Of a single slice, the axis of the file that was left out.
        thickness: Its voxel size; None where the file does not know it.
    """

    values: np.ndarray
    spacing: tuple[float, ...]
    unit: str
    affines: Mapping[str, np.ndarray] = field(default_factory=dict)
    slice_axis: int | None = None
    thickness: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        shape = list(self.values.shape)
        if self.slice_axis is not None:
            shape.insert(self.slice_axis, 1)
        return tuple(shape)


def ending_of(path: Path) -> str | None:
    """Give the ending by which a file is read, ``.nii.gz`` as a whole; None for other files."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def for_itk(path: Path) -> str:
    """Give the name of a file as SimpleITK takes it, which ends the whole process at one that is not UTF-8.

    Raises:
        UserError: If it is not.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path {name!a} has bytes that are not UTF-8, which SimpleITK cannot open: rename the folder or file"
        ) from None
    return name


def is_of_training_cases(predictions: Path) -> bool:
    """Whether a folder of predictions is nnU-Net's validation of fold ``all``, or what it makes of that alone."""
    folder = Path(predictions).resolve()
    own = (folder.parent.name, folder.name) == ("fold_all", "validation")
    return own or folder.name == "crossval_results_folds_all"


def find_cases(folder: Path, *, endings: Sequence[str] = ENDINGS, suffixes: Sequence[str] = ()) -> dict[str, Path]:
    """Give the files of a folder by case: the name without its ending and without the first of ``suffixes`` it has.

    A file without such a suffix is none of them where its case has one with it, such as the classes behind an instance
    map; nor is the gallery that ``logvmamba instances`` draws beside such files.

    Raises:
        UserError: If there is no such folder, it holds no such file, two files are of one case, or one is a link that
            leads nowhere or has a name that is not UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    files = {}
    for path in sorted(folder.iterdir()):
        ending = ending_of(path)
        if not ending or path.name.startswith(".") or ending not in endings:
            continue
        for_itk(path)
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link that leads nowhere: remove it, or put the file there")
        if path.is_file():
            files[path] = path.name[: -len(ending)]
    marked = {name for name in files.values() if name.endswith(tuple(suffixes))}
    if marked:
        other = {name.removesuffix(suffix) for name in marked for suffix in suffixes} - marked
        files = {path: name for path, name in files.items() if name not in other and path.name != GALLERY}
    found: dict[str, Path] = {}
    for path, name in files.items():
        case = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
        if case in found:
            raise UserError(f"{folder} holds two files of the case '{case}', {found[case].name} and {path.name}")
        found[case] = path
    if not found:
        raise UserError(f"{folder} holds no file that ends in {', '.join(endings)}")
    return found


def check_pairs(
    predicted: Collection[str], true: Collection[str], predictions: Path, references: Path, *, predicted_only: bool
) -> list[str]:
    """Give the cases that have a reference but no prediction, which is an error unless ``predicted_only``.

    Raises:
        UserError: If a case is on one side only, naming the first.
    """
    alone = sorted(set(predicted) - set(true))
    for folder, cases, others in ((references, true, predicted), (predictions, predicted, true)):
        if alone and (image := image_of(others, cases)) is not None:
            raise UserError(
                f"{folder} holds images of the cases, the first is '{image}'; name the folder of their segmentations"
            )
    if alone:
        raise UserError(
            f"{references} holds no reference for {len(alone)} prediction(s), the first is '{alone[0]}'; add it, or "
            f"move what cannot be scored out of {predictions}"
        )
    unscored = sorted(set(true) - set(predicted))
    if unscored and not predicted_only:
        raise UserError(
            f"{predictions} holds no prediction for {len(unscored)} reference(s), the first is '{unscored[0]}'; "
            f"to score the predicted cases alone, add --predicted-only"
        )
    return unscored


def image_of(cases: Collection[str], names: Collection[str]) -> str | None:
    """Give the first name that is nnU-Net's of an image of one of the cases, ``<case>_0000``; None if none is."""
    return min((name for name in names if name not in cases and re.sub(r"_\d{4}$", "", name) in cases), default=None)


def read_labels(path: Path) -> LabelMap:
    """Read one label map or instance map.

    Volumes keep their spacing in mm. Pictures have pixels of size 1; a TIFF of pages takes its spacing from the JSON
    file of the same name that nnU-Net keeps beside it, where there is one. A file of a single slice becomes a plane.

    What is whole in single precision, as nnU-Net reads it, is a label: 0.99999999977 is 1.

    Raises:
        UserError: If the file cannot be read, is a colour picture, or holds numbers that are not whole.
    """
    path = Path(path)
    try:
        if ending_of(path) in VOLUME_ENDINGS:
            volume, unit = read_volume(path), "mm"
        else:
            volume, unit = _read_label_picture(path)
    except UserError:
        raise
    except Exception as error:  # every library has its own way to say that a file is broken
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    if volume.values.size == 0:
        raise UserError(f"{path} holds no voxel: its shape is {volume.values.shape}")
    if volume.values.ndim not in (2, 3):
        raise UserError(f"{path} has {volume.values.ndim} axes; a label map has 2 or 3")
    if not all(np.isfinite(size) and size > 0 for size in volume.spacing):
        raise UserError(f"{path} has the spacing {_rounded(volume.spacing)}; sizes of voxels are above 0")
    return _on_its_grid(replace(volume, values=_whole(volume.values, path)), unit)


def read_grid(path: Path) -> LabelMap | None:
    """Read from its header alone where the voxels of an image lie, and a prediction of it will; the values are all 0.

    Colours of a picture are left out. None for a volume of more than three axes, of which the first are channels.

    Raises:
        UserError: If the header cannot be read.
    """
    import nibabel
    import SimpleITK as sitk

    ending = ending_of(path) or ""
    if ending in PICTURE_ENDINGS:
        shape = read_picture(path).shape
        if len(shape) == 2 or shape[-1] in (2, 3, 4):
            return LabelMap(np.broadcast_to(np.uint8(0), shape[:2]), (1.0, 1.0), "px")
        side_file = path.with_name(re.sub(r"_\d{4}$", "", path.name[: -len(ending)]) + ".json")
        spacing = _spacing_in(side_file) if side_file.is_file() else (1.0, 1.0, 1.0)
        return LabelMap(np.broadcast_to(np.uint8(0), shape), spacing, "mm")
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        stored = None
        if ending in NIFTI_ENDINGS:
            image = nibabel.load(path)
            stored = placed_by_nibabel(image, np.broadcast_to(np.uint8(0), image.shape[::-1]))
        header = sitk.ImageFileReader()
        header.SetFileName(for_itk(path))
        try:
            header.ReadImageInformation()
        except RuntimeError:
            if stored is None:
                raise
            return _on_its_grid(stored, "mm")
        if header.GetDimension() > 3:
            return None
        volume = placed_by_itk(header, np.broadcast_to(np.uint8(0), header.GetSize()[::-1]))
    except Exception as error:  # every library has its own way to say that a file is broken
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    affines = volume.affines if stored is None else {**volume.affines, **stored.affines}
    return _on_its_grid(replace(volume, affines=affines), "mm")


def _on_its_grid(volume: Volume, unit: str) -> LabelMap:
    """Make a plane of a single slice."""
    values, spacing, affines = volume.values, volume.spacing, volume.affines
    if values.ndim == 2 or 1 not in values.shape:
        return LabelMap(values, spacing, unit, affines)
    axis = values.shape.index(1)  # one slice: distances are those of its outlines
    return LabelMap(
        values.squeeze(axis),
        spacing[:axis] + spacing[axis + 1 :],
        unit,
        {reader: np.delete(affine, axis, axis=1) for reader, affine in affines.items()},
        axis,
        spacing[axis],
    )


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    """Give the labels as integers."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise UserError(f"{path} holds numbers that are not finite; labels and instances are whole numbers")
        single = values.astype(np.float32)
        broken = single != np.rint(single)
        if broken.any():
            raise UserError(
                f"{path} holds numbers that are not whole, the first is {single[broken][0]!s}; labels and instances "
                f"must be: {IMAGE_INSTEAD}"
            )
        if np.abs(single).max() >= 2**63:
            raise UserError(f"{path} holds {np.abs(single).max():g}, which is too large for a label")
        values = np.rint(values).astype(np.int64)
    elif values.dtype.kind not in "iub":
        raise UserError(f"{path} holds {values.dtype} values; labels and instances are whole numbers")
    if values.min() < 0:
        raise UserError(f"{path} holds the negative value {values.min()}; labels and instances start at 0")
    return values


def reason_of(error: BaseException) -> str:
    """Give what a library says, in one line without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # SimpleITK puts its reason last, behind the lines of its source.
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def read_volume(path: Path) -> Volume:
    """Read a volume as nnU-Net does: by SimpleITK, and a NIfTI file that SimpleITK refuses by nibabel.

    SimpleITK refuses NIfTI files whose direction cosines are not orthonormal, such as a slightly sheared affine.

    Raises:
        UserError: If it has several channels, or SimpleITK and nibabel read other values from it.
        Exception: Of either library, if the file is broken. NIfTI is read to its end, for SimpleITK takes what is
            missing for zeros.
    """
    import SimpleITK as sitk

    stored = _read_by_nibabel(path) if ending_of(path) in NIFTI_ENDINGS else None
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()  # what they are about, the readings are compared for
    try:
        image = sitk.ReadImage(for_itk(path))
    except RuntimeError:
        if stored is None:
            raise
        return stored
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} holds {image.GetNumberOfComponentsPerPixel()} channels; a label map has one")
    volume = placed_by_itk(image, sitk.GetArrayFromImage(image))
    if stored is None:
        return volume
    _check_same_values(volume.values, stored.values, path)
    return replace(volume, affines={**volume.affines, **stored.affines})


def placed_by_itk(header: sitk.Image | sitk.ImageFileReader, values: np.ndarray) -> Volume:
    dimension = header.GetDimension()
    axes = np.reshape(header.GetDirection(), (dimension, dimension)) * header.GetSpacing()
    affine = np.column_stack((axes[:, ::-1], header.GetOrigin()))
    affine[:2] *= -1  # SimpleITK's first two axes point to the left and back
    return Volume(values, tuple(map(float, header.GetSpacing()[::-1])), {"SimpleITK": affine})


def check_gzip(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is; any other file is passed over.

    Raises:
        EOFError, OSError, zlib.error: If the end is missing or the checksum is wrong.
    """
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass


def _read_by_nibabel(path: Path) -> Volume:
    """As nnU-Net's NibabelIO does, but with sizes in mm where the header counts otherwise, as SimpleITK does."""
    import nibabel

    check_gzip(path)
    image = nibabel.load(path)
    values = np.asanyarray(image.dataobj).T
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path} holds numbers that are not finite; labels and instances are whole numbers")
    return placed_by_nibabel(image, values)


def placed_by_nibabel(image: nibabel.Nifti1Image, values: np.ndarray) -> Volume:
    zooms = image.header.get_zooms()[::-1]
    while values.ndim > 3 and values.shape[0] == 1:
        values, zooms = values[0], zooms[1:]
    mm = {1: 1000.0, 3: 0.001}.get(int(image.header["xyzt_units"]) & 7, 1.0)
    affine = image.affine[:3]  # in the header's unit, which nibabel does not write when it saves the affine alone
    affine = np.column_stack((affine[:, : min(values.ndim, 3)][:, ::-1], affine[:, 3]))
    return Volume(values, tuple(float(size) * mm for size in zooms), {"nibabel": affine})


def _check_same_values(by_itk: np.ndarray, by_nibabel: np.ndarray, path: Path) -> None:
    one, two = by_itk.ravel(), by_nibabel.ravel()
    if one.dtype.kind in "iub" and two.dtype.kind in "iub":
        same = np.array_equal(one, two)
    else:
        same = one.shape == two.shape and np.isclose(one, two, rtol=1e-6, atol=1e-3).all()
    if not same:
        import nibabel

        with nibabel.openers.ImageOpener(path) as file:
            header = type(nibabel.load(path).header).from_fileobj(file, check=False)
        raise UserError(
            f"{path} is read as {_few(two)} by nibabel and as {_few(one)} by SimpleITK, for its header scales values "
            f"by {header['scl_slope']:g} and adds {header['scl_inter']:g} (scl_slope, scl_inter); save it again with "
            "scl_slope 1 and scl_inter 0"
        )


def _few(values: np.ndarray) -> str:
    found = np.unique(values)
    return ", ".join(map(str, found[:3])) + (", …" if len(found) > 3 else "")


def _read_label_picture(path: Path) -> tuple[Volume, str]:
    """Give the numbers as they are stored; in mm where nnU-Net left the spacing of a TIFF of pages beside it."""
    values = _without_axes_of_one(_stored_picture(path), 3)
    if values.ndim == 3 and values.shape[-1] in (2, 3, 4) and values.shape[0] > 4:
        raise UserError(f"{path} is a colour picture; a label map has one channel that holds the numbers themselves")
    if values.ndim not in (2, 3):
        raise UserError(f"{path} has the shape {values.shape}; a label map has 2 or 3 axes")
    side_file = path.with_suffix(".json")
    if values.ndim == 2 or not side_file.is_file():
        return Volume(values, (1.0,) * values.ndim, {}), "px"
    return Volume(values, _spacing_in(side_file), {}), "mm"


def _without_axes_of_one(values: np.ndarray, most: int) -> np.ndarray:
    """Leave out first and last axes of length 1 until there are no more than ``most`` axes."""
    while values.ndim > most and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _spacing_in(side_file: Path) -> tuple[float, ...]:
    try:
        spacing = tuple(map(float, json.loads(side_file.read_text(encoding="utf-8"))["spacing"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{side_file} names no 'spacing' of three numbers, as nnU-Net writes it") from error
    if len(spacing) != 3:
        raise UserError(f"{side_file} names {len(spacing)} spacings for a volume")
    return spacing


def read_picture(path: Path) -> np.ndarray:
    """Read a PNG, BMP or TIFF as one looks at it, (height, width), (height, width, channels) or (pages, height, width).

    First and last axes of length 1 are left out, two to four channels come last, and where 0 is white
    (:func:`is_white_at_zero`) the numbers are turned round, so that large is bright. Labels are never turned round.

    Raises:
        UserError: If it cannot be read.
    """
    values = _without_axes_of_one(_stored_picture(path), 2)
    if values.ndim == 3 and values.shape[0] in (2, 3, 4) and values.shape[-1] > 4:
        values = np.moveaxis(values, 0, -1)
    if is_white_at_zero(path):
        return np.invert(values) if values.dtype.kind in "bui" else -values
    return values


def read_image(path: Path) -> np.ndarray:
    """Read an image without nnU-Net: a picture by :func:`read_picture`, a volume by SimpleITK or else nibabel.

    Raises:
        UserError: If it cannot be read.
    """
    if ending_of(path) in PICTURE_ENDINGS:
        return read_picture(path)
    try:
        return read_volume(path).values
    except UserError:
        raise
    except Exception as error:  # every library has its own way to say that a file is broken
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error


def is_white_at_zero(path: Path) -> bool:
    """Whether a file is a TIFF that counts from white to black (MINISWHITE); nnU-Net takes its numbers as stored."""
    import tifffile

    if ending_of(path) not in TIFF_ENDINGS:
        return False
    with tifffile.TiffFile(path) as file:
        return file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE


def _stored_picture(path: Path) -> np.ndarray:
    """Give the numbers of a picture in their axes, transparency beside grey left out."""
    import tifffile
    from skimage.io import imread

    try:
        if ending_of(path) not in TIFF_ENDINGS:
            values = np.asarray(imread(path))
            return values[..., 0] if values.ndim == 3 and values.shape[-1] == 2 else values
        with tifffile.TiffFile(path) as file:
            several = len(set(re.findall(r'FileName="([^"]*)"', file.ome_metadata or ""))) > 1
        # A file of an OME-TIFF that spans several is read alone: tifffile fills with 0 what it does not find beside it.
        with tifffile.TiffFile(path, is_ome=False if several else None) as file:
            series, extra = file.series[0], set(file.pages[0].extrasamples)
            values = np.asarray(series.asarray())
            transparent = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA} & extra
            return values[..., 0] if transparent and series.axes.endswith("S") and values.shape[-1] == 2 else values
    except Exception as error:  # every library has its own way to say that a file is broken
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error


def check_same_grid(
    truth: LabelMap, prediction: LabelMap, truth_file: Path, prediction_file: Path, *, position: bool = True
) -> None:
    """Raise UserError, naming both files, unless both maps have the same shape, spacing and position.

    What only one of the files knows is not compared, nor is the position if ``position`` is False. Spacings and
    positions are the same if SimpleITK or nibabel sees the same: nnU-Net reads a data set by one of them and writes
    what that one sees.
    """
    if _slices(truth) != _slices(prediction):
        what, predicted, true = "shape", str(prediction.shape), str(truth.shape)
    elif truth.unit == prediction.unit and not _same_spacing(truth, prediction):
        what, predicted, true = "spacing", str(_rounded(prediction.spacing)), str(_rounded(truth.spacing))
    elif position and (places := _elsewhere(truth, prediction)):
        what, (predicted, true) = "origin or direction", map(_in_words, places)
    else:
        return
    remedy = "; logvmamba evaluate --ignore-position scores it all the same" if what.startswith("origin") else ""
    raise UserError(f"{prediction_file} has {what} {predicted} but its reference {truth_file} has {true}{remedy}")


def turned_like(read: LabelMap, other: LabelMap) -> LabelMap:
    """Give a volume with its axes in the order and direction of another's, if then both lie on one grid; else as it is.

    nnU-Net's readers that reorient images take a label in another orientation than the image, and write predictions in
    that of the image.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    if read.values.ndim != 3 or other.values.ndim != 3 or not _elsewhere(other, read):
        return read
    for reader in read.affines.keys() & other.affines.keys():
        ours, theirs = (np.vstack((one.affines[reader], (0, 0, 0, 1))) for one in (read, other))
        if not np.isfinite((ours, theirs)).all() or abs(np.linalg.det(theirs)) == 0:
            continue
        turn = io_orientation(np.linalg.inv(theirs) @ ours)
        if np.isnan(turn).any():
            continue
        back = inv_ornt_aff(turn, read.values.shape)
        turned = replace(
            read,
            values=apply_orientation(read.values, turn),
            spacing=tuple(read.spacing[axis] for axis in np.argsort(turn[:, 0])),
            affines={name: (np.vstack((one, (0, 0, 0, 1))) @ back)[:3] for name, one in read.affines.items()},
        )
        if turned.values.shape == other.values.shape and not _elsewhere(other, turned):
            return turned
    return read


def _slices(read: LabelMap) -> tuple[int, ...]:
    """Give the shape with the axis of slices; in a picture, an axis of length 1 means nothing wherever it is."""
    shape = read.shape if read.affines else read.values.shape
    return (1, *shape) if len(shape) == 2 else shape


def _same_spacing(truth: LabelMap, prediction: LabelMap) -> bool:
    """By the sizes of voxels, which a header has apart from its affine, or by the lengths of the affine's axes."""
    lengths = [[np.linalg.norm(one[:, :-1], axis=0) for one in views] for views in _views(truth, prediction)]
    sizes = [(truth.spacing, prediction.spacing), *lengths]
    return any(np.allclose(two, one, rtol=SPACING_TOLERANCE, atol=0) for one, two in sizes)


def _views(truth: LabelMap, prediction: LabelMap) -> list[tuple[np.ndarray, np.ndarray]]:
    """Give the affines of both as each reader sees them; each against each where no reader takes both."""
    readers = [reader for reader in truth.affines if reader in prediction.affines]
    views = [(truth.affines[reader], prediction.affines[reader]) for reader in readers]
    return views or list(product(truth.affines.values(), prediction.affines.values()))


def _elsewhere(truth: LabelMap, prediction: LabelMap) -> tuple[np.ndarray, np.ndarray] | None:
    """Affines of prediction and truth that differ, None if any reader sees both at one place or one has none."""
    views = _views(truth, prediction)
    if not views or any(same_place(*view, min(truth.spacing)) for view in views):
        return None
    return views[0][::-1]


def same_place(one: np.ndarray, two: np.ndarray, edge: float) -> bool:
    rows = min(len(one), len(two))  # a file of two axes says nothing about the third
    one, two = one[:rows], two[:rows]
    rounding = 4 * np.finfo(np.float32).eps * np.abs(two[:, -1])
    origin = np.abs(one[:, -1] - two[:, -1]) <= ORIGIN_TOLERANCE * edge + rounding
    lengths = np.linalg.norm(two[:, :-1], axis=0)
    return bool(origin.all() and (np.abs(one[:, :-1] - two[:, :-1]) <= DIRECTION_TOLERANCE * lengths).all())


def _in_words(affine: np.ndarray) -> str:
    axes = " ".join(str(_rounded(column)) for column in affine[:, -2::-1].T)
    return f"{_rounded(affine[:, -1])} and axes {axes} mm"


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") + 0.0 for value in values)  # without the sign of 0
