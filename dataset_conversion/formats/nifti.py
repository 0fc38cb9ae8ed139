"""NIfTI files: reading with every byte checked, where their voxels lie, and copies and masks that lie there too."""

import contextlib
import gzip
import logging
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from dataset_conversion.core import sources, staging
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.formats import label_values

# nnU-Net's readers of NIfTI, the one that we prefer first; both keep the order in which voxels are stored.
ITK, NIBABEL = READERS = ("SimpleITKIO", "NibabelIO")

# Headers keep single precision; files of one case that were resampled together agree far better than this.
SPACING_TOLERANCE_MM = 1e-4
ORIGIN_TOLERANCE_MM = 1e-3
DIRECTION_TOLERANCE = 1e-4
# What nnU-Net grants the channels of a case; where a mask lies is taken from its image.
RELATIVE_SPACING_TOLERANCE = 1e-5

_IMAGES = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}  # by the size of the header, which it starts with
_LONGEST_HEADER = max(_IMAGES)
_GZIP_MAGIC = b"\x1f\x8b"
_UNIT_OF_LENGTH, _METRE, _MICROMETRE = 7, 1, 3
# Headers that agree in these fields, in pixdim and in the unit are placed alike by every reader.
_TRANSFORMS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
# Fields about values, which an image does not share with its mask.
_VALUES = ("cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3", "intent_name")

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by us


@dataclass(frozen=True)
class Grid:
    """How the voxels of the file at ``path`` lie for one of nnU-Net's readers.

    Attributes:
        size: Voxels along x, y and z.
        spacing: mm for SimpleITK, the header's own unit for nibabel.
        origin: Position of the first voxel; LPS for SimpleITK, RAS for nibabel.
        direction: 3 x 3, row by row.
    """

    path: Path
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


@dataclass(frozen=True)
class Volume:
    """What a 3D file holds.

    Attributes:
        voxels: (x, y, z), in the dtype they are stored in; float32, as nnU-Net takes them, if they are stored as float
            or scaled.
        grids: By the names of those of nnU-Net's readers that take the file, at least one.
        refusal: Why SimpleITK does not take it, or "".
    """

    voxels: np.ndarray
    grids: Mapping[str, Grid]
    refusal: str = ""


@dataclass(frozen=True)
class Images:
    """The checked channels of a case.

    Attributes:
        first: Grids of the first channel, see :class:`Volume`.
        readers: Those of nnU-Net's readers for which all channels lie on one grid, in the order of ``READERS``.
        remarks: What a user should know of the files, to one of them.
    """

    first: Mapping[str, Grid]
    readers: tuple[str, ...]
    remarks: Mapping[str, Path] = field(default_factory=dict)


# --- reading --------------------------------------------------------------------------------------------------------


def read_volume(path: Path, case: str) -> Volume:
    """Read the 3D single-channel volume at ``path``, after the checksum of a compressed file was compared.

    ITK fills the missing end of a broken download with zeros and turns NaN into zero, both without a word; nibabel
    does neither, so that voxels are read with nibabel. ITK in turn refuses what nibabel reads: direction cosines that
    are not orthonormal, NIfTI-2.

    Raises:
        ConversionError: If the file is damaged, no such volume, or read differently by the two; the text names case
            and file.
    """
    image, header, voxels = _load(path, case)
    if voxels.size == 0:
        raise ConversionError(f"Case {case}: {path} has size {voxels.shape} and so no voxel; fetch the file again.")
    if voxels.dtype.fields:
        raise ConversionError(f"Case {case}: {path} holds colours, where one value per voxel is expected.")
    size, components = _without_trailing_ones(voxels.shape), 2 if voxels.dtype.kind == "c" else 1
    grids, refusal = {}, ""
    try:
        itk = _read_itk_header(path)
    except RuntimeError as error:
        refusal = _reason(error)
    else:
        size, components = itk.GetSize(), itk.GetNumberOfComponents()
        grids[ITK] = Grid(path, size, itk.GetSpacing(), itk.GetOrigin(), itk.GetDirection())
    if len(size) != 3 or components != 1:
        raise ConversionError(
            f"Case {case}: {path} has size {size} and {components} component(s) "
            "per voxel, where one 3D volume is expected."
        )
    if ITK in grids:
        _check_offset(header, voxels, path, case)
    grids |= _nibabel_grid(image, path, size)
    if not grids:
        raise sources.unreadable(path, case, refusal)
    if voxels.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what exceeds single precision is infinite for nnU-Net
            voxels = voxels.astype(np.float32, copy=False)
    return Volume(voxels.reshape(size), grids, refusal)


def _load(path: Path, case: str) -> tuple[nibabel.Nifti1Pair, nibabel.Nifti1Header, np.ndarray]:
    """The file at ``path`` as nibabel reads it, its header as it is stored, and all of its values."""
    content, header = _read_content(path, case)
    slope, offset = _scaling(header)
    if slope is not None and not np.isfinite(offset):
        raise ConversionError(f"Case {case}: {path} adds scl_inter {offset} to its values; save it again without.")
    try:
        image = _IMAGES[int(header["sizeof_hdr"])].from_bytes(content)
        return image, header, np.asarray(image.dataobj)
    except nibabel.spatialimages.HeaderDataError as error:
        remedy = "save it again with a usual data type, or fetch the file again"
        raise sources.unreadable(path, case, error, remedy) from None
    except Exception as error:  # nibabel has no common error
        raise sources.unreadable(path, case, error) from None


def _read_content(path: Path, case: str) -> tuple[bytes, nibabel.Nifti1Header]:
    """The uncompressed bytes of a file and the header that they start with.

    Raises:
        ConversionError: If it is damaged, or called so that nibabel or ITK does not read it.
    """
    try:
        content = path.read_bytes()
        compressed = content.startswith(_GZIP_MAGIC)
        content = gzip.decompress(content) if compressed else content
        header = _header(content)
        if header is None:
            raise ValueError("it is no NIfTI file")
    except Exception as error:  # gzip and zlib have no common error
        raise sources.unreadable(path, case, getattr(error, "strerror", None) or error) from None
    name, fitting = path.name, ".nii.gz" if compressed else ".nii"
    stem = name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else path.stem
    ending = name[len(stem) :]
    if ending not in (fitting, fitting.upper()):
        fault = f"ends in {ending}, which ITK does not read"
        if ending.lower() != fitting:
            fault = "is compressed" if compressed else "is not compressed, unlike its name says"
        raise ConversionError(f"Case {case}: {path} {fault}; rename it to {stem}{fitting}.")
    return content, header


def _header(content: bytes) -> nibabel.Nifti1Header | None:
    """The header that a file starts with, nothing in it mended; None if there is none."""
    for sign in "<>":  # little and big endian
        (size,) = struct.unpack(f"{sign}i", content[:4].ljust(4, b"\0"))
        if size in _IMAGES and len(content) >= size:
            return _IMAGES[size].header_class(content[:size], sign, check=False)
    return None


def _scaling(header: nibabel.Nifti1Header) -> tuple[float | None, float]:
    """Slope and offset of the stored values; no slope where 0 or no number stands for it, as the standard has it."""
    slope, offset = float(header["scl_slope"]), float(header["scl_inter"])
    return slope if slope and np.isfinite(slope) else None, offset


def _check_offset(header: nibabel.Nifti1Header, voxels: np.ndarray, path: Path, case: str) -> None:
    """Raise a ConversionError for an offset without a slope: SimpleITK adds it to the values, nibabel does not."""
    slope, offset = _scaling(header)
    if slope is None and np.isfinite(offset) and offset:
        with _quietly():
            theirs = sitk.GetArrayFromImage(sitk.ReadImage(sources.for_itk(path), imageIO="NiftiImageIO"))
        readings = [f"{float(values.min())!r} to {float(values.max())!r}" for values in (voxels, theirs)]
        raise ConversionError(
            f"Case {case}: {path} has scl_slope {float(header['scl_slope']):g} and scl_inter {offset:g}, so that "
            f"nibabel reads {readings[0]} and SimpleITK {readings[1]}; save it again with scl_slope 1."
        )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _read_itk_header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(sources.for_itk(path))
    reader.SetImageIO("NiftiImageIO")
    with _quietly():
        reader.ReadImageInformation()
    return reader


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without ITK's warnings, which it prints at every reading; :func:`check_images` remarks what they are about."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _reason(error: RuntimeError) -> str:
    reason = str(error).strip().splitlines()[-1].split("): ")[-1].removeprefix("ITK ERROR: ")
    return " ".join(reason.split()).rstrip("!.")


def _nibabel_grid(image: nibabel.Nifti1Pair, path: Path, size: tuple[int, ...]) -> dict[str, Grid]:
    """The grid as nnU-Net's NibabelIO takes it, or none if it makes no sense or is not in mm, which it cannot tell."""
    affine, spacing = image.affine, np.array(image.header.get_zooms()[:3], float)
    in_mm = int(image.header["xyzt_units"]) & _UNIT_OF_LENGTH not in (_METRE, _MICROMETRE)
    if not in_mm or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4 or not (spacing > 0).all():
        return {}
    direction = affine[:3, :3] / spacing
    return {NIBABEL: Grid(path, size, tuple(spacing), tuple(affine[:3, 3]), tuple(direction.ravel()))}


# --- checking -------------------------------------------------------------------------------------------------------


def check_images(paths: Iterable[Path], case: str) -> Images:
    """Read every channel of a case.

    Raises:
        ConversionError: For the first file that cannot be read, lies on another grid, or holds NaN or infinity.
    """
    first: Mapping[str, Grid] = {}
    readers: tuple[str, ...] = READERS
    remarks: dict[str, Path] = {}
    for path in paths:
        volume = read_volume(path, case)
        first = first or volume.grids
        readers = _agreeing(first, volume.grids, readers, case, RELATIVE_SPACING_TOLERANCE)
        if volume.voxels.dtype.kind == "f" and not np.isfinite(volume.voxels).all():
            raise ConversionError(
                f"Case {case}: {path} holds NaN or infinite values, which nnU-Net cannot train on; "
                "replace them in the source file."
            )
        if volume.refusal:
            remarks.setdefault(f"SimpleITK does not read volumes ({volume.refusal}), nibabel does", path)
        elif not _placed_alike(volume.grids):
            remarks.setdefault(
                "the two positions in a header (qform, sform) differ or are missing, so that programs place the volume "
                "differently; nnU-Net goes by its voxels, and masks get the header of their image",
                path,
            )
    return Images(first, readers, remarks)


def check_mask(images: Images, path: Path, case: str) -> tuple[np.ndarray, dict[str, Path]]:
    """Read the mask of a case; it is written with the header of its image, so one reader that finds it there is enough.

    Returns:
        Its voxels, and what a user should know of it, see :class:`Images`.

    Raises:
        ConversionError: If it cannot be read, or lies on another grid than the first image for all readers.
    """
    volume = read_volume(path, case)
    agreeing = _agreeing(images.first, volume.grids, READERS, case)
    lost = [reader for reader in images.first if reader not in agreeing]
    remark = f"only {' and '.join(agreeing)} finds the mask on its image; it is written to lie there for others too"
    return volume.voxels, {remark: path} if lost else {}


def _agreeing(
    first: Mapping[str, Grid],
    second: Mapping[str, Grid],
    readers: Iterable[str],
    case: str,
    spacing_tolerance: float | None = None,
) -> tuple[str, ...]:
    """Those of ``readers`` for which two files lie on one grid.

    Raises:
        ConversionError: If there are none.
    """
    common = [reader for reader in readers if reader in first and reader in second]
    if not common:
        a, b = (next(iter(grids.items())) for grids in (first, second))
        raise ConversionError(
            f"Case {case}: of nnU-Net's readers {b[1].path} is read by {b[0]} alone, but {a[1].path.name} by {a[0]} "
            "alone; save all files of the case with the same header."
        )
    differences = {reader: _difference(first[reader], second[reader], spacing_tolerance) for reader in common}
    agreeing = tuple(reader for reader in common if not differences[reader])
    if not agreeing:
        raise ConversionError(f"Case {case}: {differences[common[0]]}; all files of a case must share one grid.")
    return agreeing


def _difference(first: Grid, second: Grid, relative_spacing_tolerance: float | None) -> str:
    """How two grids differ in size, spacing, origin or direction, or ""; no tolerance grows with the origin."""
    spacing_tolerance: float | np.ndarray = SPACING_TOLERANCE_MM
    if relative_spacing_tolerance is not None:
        spacing_tolerance = relative_spacing_tolerance * np.abs(first.spacing)
    for what, tolerance in (
        ("size", 0),
        ("spacing", spacing_tolerance),
        ("origin", ORIGIN_TOLERANCE_MM),
        ("direction", DIRECTION_TOLERANCE),
    ):
        ours, theirs = getattr(first, what), getattr(second, what)
        if (np.abs(np.subtract(ours, theirs)) > tolerance).any():
            return f"{what} of {second.path} is {_short(theirs)}, but {first.path.name} has {_short(ours)}"
    return ""


def _short(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.8g}" for value in values) + ")"


def _placed_alike(grids: Mapping[str, Grid]) -> bool:
    """Whether both readers, if both take a file, place its voxels alike."""
    if len(grids) < len(READERS):
        return True
    theirs, ours = (
        np.column_stack([np.reshape(grid.direction, (3, 3)) * np.abs(grid.spacing), grid.origin])
        for grid in (grids[ITK], grids[NIBABEL])
    )
    return np.allclose(theirs, ours * [[-1], [-1], [1]], rtol=0, atol=ORIGIN_TOLERANCE_MM)  # LPS against RAS


# --- writing --------------------------------------------------------------------------------------------------------


def write_image(source: Path, target: Path) -> None:
    """Copy a NIfTI image to ``target`` (``.nii.gz``); voxels and header stay byte for byte, no time stamp is added.

    Only axes of length 1 behind the third leave the header, since nnU-Net's NibabelIO takes three.
    """
    compressed = source.name.lower().endswith(".gz")
    with gzip.open(source) if compressed else source.open("rb") as raw:
        head = raw.read(_LONGEST_HEADER)
        ours = _with_three_axes(head)
        if compressed and ours == head:
            shutil.copyfile(source, target)
            return
        with _packed(target) as stream:
            stream.write(ours)
            shutil.copyfileobj(raw, stream, 1 << 20)


def _with_three_axes(head: bytes) -> bytes:
    """The first bytes of a file, in which the header has three axes."""
    header = _header(head)
    if header is None or header["dim"][0] <= 3:
        return head
    header.set_data_shape(header.get_data_shape()[:3])
    return header.binaryblock + head[len(header.binaryblock) :]


@contextlib.contextmanager
def _packed(target: Path) -> Iterator[gzip.GzipFile]:
    with target.open("wb") as packed, gzip.GzipFile("", "wb", compresslevel=6, fileobj=packed, mtime=0) as stream:
        yield stream


def stored_as_we_store(mask: Path, image: Path, case: str) -> bool:
    """Whether a mask is uint8, not scaled and placed as its image for every reader, so that it can be copied."""
    ours, theirs = (_read_content(path, case)[1] for path in (mask, image))
    slope, offset = _scaling(ours)
    plain = ours.get_data_dtype() == np.uint8 and slope in (None, 1) and (offset == 0 or not np.isfinite(offset))
    return plain and _place(ours) == _place(theirs)


def _place(header: nibabel.Nifti1Header) -> list:
    """All that tells a reader where voxels lie."""
    transforms = [header[name].tolist() for name in _TRANSFORMS]
    return [type(header), header["pixdim"][:4].tolist(), int(header["xyzt_units"]) & _UNIT_OF_LENGTH, *transforms]


def description_of(path: Path, case: str) -> str:
    """The description in the header of a volume."""
    return _read_content(path, case)[1]["descrip"].item().decode("latin-1")


def write_mask(
    source: Path,
    target: Path,
    label_map: Mapping[int, int],
    case: str,
    *,
    grid: Path | None = None,
    description: str = "",
) -> None:
    """Write the mask at ``source`` to ``target`` with other labels, as uint8, where the image at ``grid`` lies.

    The header is the image's, so that every reader places both alike, whatever it makes of two positions that differ.

    Args:
        grid: The mask's own where this is left out.
        description: Stands in the header, in place of that of the image; up to 79 letters.

    Raises:
        ConversionError: If the mask cannot be written; the text names case and file.
    """
    voxels = label_values.remap_labels(read_volume(source, case).voxels, label_map)
    _, header = _read_content(grid or source, case)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    for name in _VALUES:
        header[name] = np.zeros_like(header[name])
    if description:
        header["descrip"] = description
    no_extensions = bytes(4)
    header["vox_offset"] = len(header.binaryblock) + len(no_extensions)
    with staging.writing(target, case), _packed(target) as stream:
        stream.write(header.binaryblock + no_extensions)
        stream.write(voxels.tobytes("F"))
