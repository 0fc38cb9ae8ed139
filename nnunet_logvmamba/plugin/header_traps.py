"""What in the header of a NIfTI file is read in two ways, and which of them nnU-Net takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_logvmamba.evaluation.cases import DIRECTION_TOLERANCE, same_place
from nnunet_logvmamba.plugin.observations import Seen, by
from nnunet_logvmamba.plugin.reading import Reading, scaling

if TYPE_CHECKING:
    import nibabel

UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
"""Of ``xyzt_units``, but for mm: name, and mm in one."""

SIZE_TOLERANCE = 1e-2
"""Share of a voxel by which two sizes may differ; a shear alone makes that of a small angle."""


def traps_of(path: Path, reading: Reading, reader: str, *, label: bool) -> list[Seen]:
    """Give what is read in two ways; nothing for files of another format.

    Args:
        path: The file.
        reading: What was read of it.
        reader: Name of nnU-Net's class that reads it.
        label: Whether it is a label map.
    """
    header = reading.header
    if header is None:
        return []
    shape = reading.values.shape[:0:-1]
    return [
        *_place(path, header, reading, reader, shape),
        *_sizes(path, header, reading),
        *_angles(path, header, reader),
        *_units(path, header, reading, reader),
        *_scaling(path, header, label=label),
    ]


def _place(
    path: Path, header: nibabel.Nifti1Header, reading: Reading, reader: str, shape: tuple[int, ...]
) -> Iterator[Seen]:
    (qform, of_qform), (sform, of_sform) = _transforms(header)
    library = "SimpleITK" if reader.startswith("SimpleITK") else "nibabel"
    if qform is None and sform is None:
        yield Seen(
            "no position",
            f"{path} does not say where it lies (qform_code and sform_code are 0), so SimpleITK and nibabel put it in "
            f"two places; nnU-Net trains all the same and writes predictions where {library} sees it: keep to one "
            "library, or set a code",
        )
        return
    if qform is None or sform is None:
        return
    edge = float(np.min(header["pixdim"][1:4]))
    one, two = (np.column_stack((form[:3, :3] / _lengths(form), form[:3, 3])) for form in (qform, sform))
    if same_place(one, two, edge):
        return
    taken = {}
    for name, affine in reading.affines.items():
        mm = UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))[1] if name == "SimpleITK" else 1.0
        seen = np.column_stack((affine[:, 2::-1] / np.linalg.norm(affine[:, 2::-1], axis=0), affine[:, 3] / mm))
        taken[name] = "sform" if same_place(seen, two, edge) else "qform"
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in shape))])
    apart = np.linalg.norm(corners @ (qform - sform)[:3].T, axis=1).max()
    yield Seen(
        "two transforms",
        f"{path} lies in two places, by its qform (code {of_qform}) and by its sform (code {of_sform}), up to "
        f"{apart:.3g} apart; {' and '.join(f'{name} takes the {form}' for name, form in taken.items())}, and nnU-Net "
        f"writes predictions where {library} sees it: look at one of them over its image, and make both forms equal",
    )


def _sizes(path: Path, header: nibabel.Nifti1Header, reading: Reading) -> Iterator[Seen]:
    _, (sform, _) = _transforms(header)
    if sform is None:
        return
    sizes, lengths = np.asarray(header["pixdim"][1:4], np.float64), _lengths(sform)
    if not np.allclose(sizes, lengths, rtol=SIZE_TOLERANCE, atol=0):
        yield Seen(
            "two spacings",
            f"{path} has voxels of {by(sizes)} by pixdim and of {by(lengths)} by its sform; nnU-Net plans, resamples "
            f"and scores with {by(reading.spacing[::-1])}: correct the wrong one",
        )


def _angles(path: Path, header: nibabel.Nifti1Header, reader: str) -> Iterator[Seen]:
    _, (sform, _) = _transforms(header)
    if sform is None:
        return
    axes = sform[:3, :3] / _lengths(sform)
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > DIRECTION_TOLERANCE:
        yield Seen(
            "sheared",
            f"{path} has axes that are {np.degrees(np.arcsin(min(cosine, 1))):.2g} degrees off a right angle by its "
            f"sform; nnU-Net's {reader} takes them for right angles, SimpleITK refuses such a file where it has no "
            "other transform: resample the images if that angle matters",
        )


def _units(path: Path, header: nibabel.Nifti1Header, reading: Reading, reader: str) -> Iterator[Seen]:
    name, mm = UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    if name:
        as_mm = reader.startswith("SimpleITK")
        yield Seen(
            "units",
            f"{path} counts in {name}, of which SimpleITK makes mm and nibabel does not; nnU-Net's {reader} reads "
            f"voxels of {by(reading.spacing[::-1])} "
            + ("mm" if as_mm else f"and takes them for mm, {1 / mm:g} times what they are")
            + ": save all files in mm",
        )


def _scaling(path: Path, header: nibabel.Nifti1Header, *, label: bool) -> Iterator[Seen]:
    slope, intercept = scaling(header)
    stored = f"scl_slope {float(header['scl_slope']):g} and scl_inter {float(header['scl_inter']):g}"
    if intercept != 0 and float(header["scl_slope"]) != slope:
        yield Seen(
            "scaling",
            f"{path} has {stored}: SimpleITK adds {intercept:g} to its values, nibabel does not; save it again with "
            "scl_slope 1 and scl_inter 0",
        )
    elif label and (slope, intercept) != (1, 0):
        yield Seen(
            "scaled mask",
            f"{path} is a mask that is stored scaled ({stored}), as nibabel saves floats under the header of integers; "
            "its labels are whole in single precision, which nnU-Net reads, and not in double: save it as integers "
            "with a new header",
        )


def _transforms(header: nibabel.Nifti1Header) -> tuple[tuple[np.ndarray | None, int], tuple[np.ndarray | None, int]]:
    from nibabel.spatialimages import HeaderDataError

    try:
        return header.get_qform(coded=True), header.get_sform(coded=True)
    except (ValueError, HeaderDataError):  # a quaternion that is none
        return (None, 0), header.get_sform(coded=True)


def _lengths(form: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(form[:3, :3], axis=0), 1e-12)
