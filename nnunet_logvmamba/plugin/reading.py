"""Reads every file once: the numbers as nnU-Net's reader gives them, and what the header says besides.

nnU-Net's readers hide what a check has to see: SimpleITK reads a file that is cut off, and replaces what is not finite.
Reading twice or three times to see it takes as long as it sounds, and most of that time is decompression.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from nnunet_logvmamba.evaluation.cases import (
    NIFTI_ENDINGS,
    PICTURE_ENDINGS,
    TIFF_ENDINGS,
    VOLUME_ENDINGS,
    check_gzip,
    ending_of,
    for_itk,
    placed_by_itk,
    placed_by_nibabel,
)

if TYPE_CHECKING:
    import nibabel
    import SimpleITK as sitk
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

_READ_HERE = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")


@dataclass(frozen=True)
class Reading:
    """One file.

    Attributes:
        values: (channels, slices, rows, columns), or with the axes that the reader makes of another file; whole numbers
            keep the file's type, others are float32.
        spacing: As the reader gives it, per axis.
        stored: Type of the numbers in the file, in the words of its library; empty where it is not known.
        affines: As in :class:`~nnunet_logvmamba.evaluation.cases.Volume`, by library.
        header: Of a NIfTI file, as it is stored.
        replaced: Number of voxels that are not finite in the file, and that the reader gives another number.
        palette: Whether the file holds indices of a table of colours.
    """

    values: np.ndarray
    spacing: tuple[float, ...]
    stored: str = ""
    affines: Mapping[str, np.ndarray] = field(default_factory=dict)
    header: nibabel.Nifti1Header | None = None
    replaced: int = 0
    palette: bool = False


def read_once(reader: type[BaseReaderWriter], path: Path, *, label: bool = False) -> Reading:
    """Read an image, or the label map of a case, as nnU-Net does.

    Raises:
        Exception: Of any library, if the file is damaged or the reader does not take it.
    """
    found = _read_nifti(reader.__name__, path) if ending_of(path) in NIFTI_ENDINGS else None
    return found or _read_by(reader, path, label=label)


def size_beyond_three_axes(reader: type[BaseReaderWriter], path: Path) -> tuple[int, ...] | None:
    """Give the size of a file that has more than three axes for its reader, as a series of phases, by its header alone.

    None is given for any other, and where the header says nothing.
    """
    if reader.__name__ not in _READ_HERE or ending_of(path) not in VOLUME_ENDINGS:
        return None
    try:
        if ending_of(path) in NIFTI_ENDINGS:
            size = tuple(map(int, _header_of(path)[0].get_data_shape()))
            while reader.__name__ == "SimpleITKIO" and size[3:] and size[-1] == 1:  # ITK drops such an axis
                size = size[:-1]
        else:
            header = _itk_header(path)
            size = () if header is None else header.GetSize()
    except Exception:  # nnU-Net's reader says what is wrong, if anything is
        return None
    return size if len(size) > 3 else None


def _read_by(reader: type[BaseReaderWriter], path: Path, *, label: bool) -> Reading:
    check_gzip(path)  # where such a file is cut off, SimpleITK reads zeros and says nothing
    with contextlib.redirect_stdout(io.StringIO()):  # their exceptions decide, not what they print
        values, properties = reader().read_seg(str(path)) if label else reader().read_images([str(path)])
    spacing = tuple(map(float, properties["spacing"]))
    if ending_of(path) in PICTURE_ENDINGS:
        stored, palette = _kind_of_picture(path)
        return Reading(values, spacing, stored, palette=palette)
    header = _itk_header(path) if ending_of(path) in VOLUME_ENDINGS else None
    if header is None or header.GetDimension() > 3:
        return Reading(values, spacing)
    placed = placed_by_itk(header, np.broadcast_to(np.uint8(0), header.GetSize()[::-1]))
    return Reading(values, spacing, _itk_type(header), placed.affines)


def _read_nifti(reader: str, path: Path) -> Reading | None:
    """Decompress once, and leave to nnU-Net's reader what is not a plain volume of three axes or what it may refuse."""
    if reader not in _READ_HERE:
        return None
    try:
        header, before = _header_of(path)
        if header["dim"][0] != 3 or header.get_data_dtype().kind not in "iuf":
            return None
        compressed = path.suffix.lower() == ".gz"
        if reader == "SimpleITKIO" and compressed and scaling(header) == (1, 0):
            found = _proven_by_checksum(path, header, before)
            if found is not None:
                return found
    except Exception:  # nnU-Net's reader says what is wrong, if anything is
        return None
    content = path.read_bytes()
    return _from_bytes(reader, path, header, gzip.decompress(content) if compressed else content)


def _header_of(path: Path) -> tuple[nibabel.Nifti1Header, bytes]:
    """Give the header as it is stored, and all bytes that lie before the voxels."""
    import nibabel

    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        before = file.read(540)
        kind = nibabel.Nifti2Header if before[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
        header = kind.from_fileobj(io.BytesIO(before), check=False)
        offset = int(header["vox_offset"])
        return header, (before + file.read(max(0, offset - len(before))))[:offset]


def _proven_by_checksum(path: Path, header: nibabel.Nifti1Header, before: bytes) -> Reading | None:
    """Read by SimpleITK, which decompresses twice as fast as Python, if what it gives is all that is in the file.

    The checksum at the end of the file is that of everything in it. Where it is that of the header and of the voxels as
    SimpleITK gives them, the file is whole and none of its numbers was replaced.
    """
    import SimpleITK as sitk

    with _silent():
        image = sitk.ReadImage(for_itk(path))
    values = sitk.GetArrayViewFromImage(image)
    with path.open("rb") as file:
        file.seek(-8, io.SEEK_END)
        checksum, size = struct.unpack("<II", file.read())
    if values.shape != header.get_data_shape()[::-1] or values.dtype != header.get_data_dtype():
        return None
    if (len(before) + values.nbytes) % 2**32 != size or zlib.crc32(values, zlib.crc32(before)) != checksum:
        return None
    values = _in_single_precision(np.array(values))
    stored = SimpleNamespace(header=header, affine=header.get_best_affine())
    affines = {**placed_by_itk(image, values).affines, **placed_by_nibabel(stored, values).affines}
    spacing = tuple(map(float, image.GetSpacing()[::-1]))
    return Reading(values[None], spacing, header.get_data_dtype().name, affines, header)


def _from_bytes(reader: str, path: Path, header: nibabel.Nifti1Header, content: bytes) -> Reading | None:
    """Read by nibabel, and make of it what the reader would."""
    import nibabel
    from nibabel.orientations import io_orientation

    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    itk, replaced = _itk_header(path), 0
    try:
        image = kind.from_bytes(content)
        if reader == "SimpleITKIO":
            if itk is None or itk.GetSize() != image.shape:
                return None
            values, replaced = _as_simpleitk(np.asanyarray(image.dataobj.get_unscaled()), header)
            affines, spacing = dict(placed_by_nibabel(image, values.T).affines), itk.GetSpacing()
        else:
            affines = dict(placed_by_nibabel(image, np.broadcast_to(np.uint8(0), image.shape[::-1])).affines)
            if reader == "NibabelIOWithReorient":
                image = image.as_reoriented(io_orientation(image.affine))
            values, spacing = np.asanyarray(image.dataobj), image.header.get_zooms()
    except Exception:  # nnU-Net's reader says what is wrong, if anything is
        return None
    if itk is not None:
        affines = {**placed_by_itk(itk, np.broadcast_to(np.uint8(0), itk.GetSize()[::-1])).affines, **affines}
    values = _in_single_precision(values).T[None]
    return Reading(values, tuple(map(float, spacing[::-1])), header.get_data_dtype().name, affines, header, replaced)


def _in_single_precision(values: np.ndarray) -> np.ndarray:
    """Give float32, as nnU-Net's readers do; whole numbers stay what they are."""
    if values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def scaling(header: nibabel.Nifti1Header) -> tuple[float, float]:
    """Give slope and intercept as SimpleITK takes them; nibabel leaves the intercept out where there is no slope."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    return (slope if np.isfinite(slope) and slope != 0 else 1.0), (intercept if np.isfinite(intercept) else 0.0)


def _as_simpleitk(values: np.ndarray, header: nibabel.Nifti1Header) -> tuple[np.ndarray, int]:
    """Give the numbers that SimpleITK makes of stored ones, and how many were not finite."""
    replaced = 0
    if values.dtype.kind == "f" and not np.isfinite((values.min(), values.max())).all():
        finite = np.isfinite(values)
        replaced = values.size - int(np.count_nonzero(finite))
        values = np.where(finite, values, 0)
    slope, intercept = scaling(header)
    if (slope, intercept) != (1, 0):
        with np.errstate(over="ignore"):
            values = (values.astype(np.float64) * slope + intercept).astype(np.float32)
    return values, replaced


def _itk_header(path: Path) -> sitk.ImageFileReader | None:
    """Read a header by SimpleITK, None if it refuses the file."""
    import SimpleITK as sitk

    try:
        with _silent():
            header = sitk.ImageFileReader()
            header.SetFileName(for_itk(path))
            header.ReadImageInformation()
    except RuntimeError:
        return None
    return header


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep SimpleITK from warning of what is looked for here."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _itk_type(header: sitk.ImageFileReader) -> str:
    import SimpleITK as sitk

    return sitk.GetPixelIDValueAsString(header.GetPixelID())


def _kind_of_picture(path: Path) -> tuple[str, bool]:
    """Give the type of the numbers of a picture, and whether they are indices of a table of colours."""
    import tifffile
    from PIL import Image

    if ending_of(path) in TIFF_ENDINGS:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return str(page.dtype), page.photometric == tifffile.PHOTOMETRIC.PALETTE
    with Image.open(path) as picture:
        return picture.mode, picture.mode == "P"


def check_alike(readings: Sequence[Reading]) -> None:
    """Raise RuntimeError unless all files of a case have one shape and spacing, as nnU-Net asks."""
    first = readings[0]
    if any(other.values.shape != first.values.shape for other in readings):
        raise RuntimeError("their shapes differ")
    if any(not np.allclose(other.spacing, first.spacing) for other in readings):
        raise RuntimeError("their spacings differ")
