"""NIfTI files: reading with every byte checked, comparing their grids, and copies that keep their bytes."""

import gzip
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from dataset_conversion import label_values, sources, staging
from dataset_conversion.cases import ConversionError

# Headers keep single precision; files of one case that were resampled together agree far better than this.
SPACING_TOLERANCE_MM = 1e-4
ORIGIN_TOLERANCE_MM = 1e-3
DIRECTION_TOLERANCE = 1e-4


def read_header(path: Path, case: str) -> sitk.ImageFileReader:
    """Size, spacing, origin and direction of the 3D single-channel volume at ``path``, without its voxels.

    Raises:
        ConversionError: If it is no such volume; the text names case and file.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise sources.unreadable(path, case, str(error).strip().splitlines()[-1].split("): ")[-1]) from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1 or min(reader.GetSize()) < 1:
        raise ConversionError(
            f"Case {case}: {path} has size {reader.GetSize()} and {reader.GetNumberOfComponents()} component(s) "
            "per voxel, where one 3D volume is expected."
        )
    return reader


def read_voxels(path: Path, case: str) -> np.ndarray:
    """All voxels at ``path`` as they are stored, axes (x, y, z), after the checksum of a compressed file was compared.

    ITK fills the missing end of a broken download with zeros and turns NaN into zero, both without a word; nibabel
    does neither, so that the checks read with nibabel.

    Raises:
        ConversionError: If the file is damaged; the text names case and file.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
        voxels = np.asarray(nibabel.Nifti1Image.from_bytes(raw).dataobj)
    except Exception as error:  # gzip, zlib and nibabel have no common error
        raise sources.unreadable(path, case, getattr(error, "strerror", None) or error) from None
    if voxels.size == 0:
        raise ConversionError(f"Case {case}: {path} has size {voxels.shape} and so no voxel; fetch the file again.")
    if voxels.dtype.fields:
        raise ConversionError(f"Case {case}: {path} holds colours, where one value per voxel is expected.")
    return voxels


def check_images(paths: Iterable[Path], case: str) -> sitk.ImageFileReader:
    """Read every channel of a case; return the grid that they share.

    Raises:
        ConversionError: For the first file that cannot be read, lies on another grid, or holds NaN or infinity.
    """
    grid = None
    for path in paths:
        voxels = read_voxels(path, case)  # first, since ITK shouts about broken headers
        finite = voxels.dtype.kind in "bui" or np.isfinite(voxels).all()
        header = read_header(path, case)
        grid = grid or header
        check_geometry(grid, header, case)
        if not finite:
            raise ConversionError(
                f"Case {case}: {path} holds NaN or infinite values, which nnU-Net cannot train on; "
                "replace them in the source file."
            )
    return grid


def check_geometry(reference: sitk.ImageFileReader, other: sitk.ImageFileReader, case: str) -> None:
    """Raise a ConversionError unless both volumes lie on the same grid: size, spacing, origin and direction."""
    reference_path, other_path = Path(reference.GetFileName()), Path(other.GetFileName())
    for what, get, tolerance in (
        ("size", sitk.ImageFileReader.GetSize, 0),
        ("spacing", sitk.ImageFileReader.GetSpacing, SPACING_TOLERANCE_MM),
        ("origin", sitk.ImageFileReader.GetOrigin, ORIGIN_TOLERANCE_MM),
        ("direction", sitk.ImageFileReader.GetDirection, DIRECTION_TOLERANCE),
    ):
        first, second = get(reference), get(other)
        if not np.allclose(first, second, rtol=0, atol=tolerance):
            raise ConversionError(
                f"Case {case}: {what} of {other_path} is {_short(second)}, but {reference_path.name} has "
                f"{_short(first)}; all files of a case must share one grid."
            )


def _short(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def write_image(source: Path, target: Path) -> None:
    """Copy a NIfTI image to ``target`` (``.nii.gz``); voxels and header stay byte for byte, no time stamp is added."""
    if source.name.lower().endswith(".gz"):
        shutil.copyfile(source, target)
        return
    with (
        source.open("rb") as raw,
        target.open("wb") as packed,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=packed, mtime=0) as stream,
    ):
        shutil.copyfileobj(raw, stream, 1 << 20)


def stored_as_we_store(mask: Path, image: Path, case: str) -> bool:
    """Whether a mask is uint8 on exactly the grid of the image, so that it can be copied."""
    ours, theirs = read_header(mask, case), read_header(image, case)
    return (
        ours.GetPixelID() == sitk.sitkUInt8
        and ours.GetSpacing() == theirs.GetSpacing()
        and ours.GetOrigin() == theirs.GetOrigin()
        and ours.GetDirection() == theirs.GetDirection()
    )


def write_mask(
    source: Path, target: Path, label_map: Mapping[int, int], case: str, *, grid: Path | None = None
) -> None:
    """Write the mask at ``source`` to ``target`` with other labels, as uint8, on the grid of the image at ``grid``.

    Args:
        grid: The mask's own where this is left out.

    Raises:
        ConversionError: If the mask cannot be written; the text names case and file.
    """
    mask = sitk.GetImageFromArray(
        label_values.remap_labels(sitk.GetArrayFromImage(sitk.ReadImage(str(source))), label_map)
    )
    header = read_header(grid or source, case)
    mask.SetSpacing(header.GetSpacing())
    mask.SetOrigin(header.GetOrigin())
    mask.SetDirection(header.GetDirection())
    with staging.writing(target, case):
        sitk.WriteImage(mask, str(target), useCompression=True)
