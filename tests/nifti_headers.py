"""NIfTI files with headers that usual writers do not make but scanners and conversions do; byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

SPACING = (1.0, 2.0, 3.0)


def affine(origin: tuple[float, ...] = (10.0, 20.0, -1000.0), shear: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """RAS affine of ``SPACING`` along the axes x, y, z."""
    matrix = np.diag([*SPACING, 1.0])
    matrix[0, 1] = shear * SPACING[1]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = origin
    return matrix


def write(
    path: Path,
    values: np.ndarray,
    *,
    sform: np.ndarray | None = None,
    sform_code: int = 1,
    qform: np.ndarray | None = None,
    qform_code: int = 1,
    units: str = "mm",
    slope: float = 1,
    intercept: float = 0,
) -> None:
    """Write values, axes (x, y, z), as they are, under a header of these fields; codes are 0 without their form."""
    header = nibabel.Nifti1Image(values, np.eye(4)).header
    header["sform_code"] = header["qform_code"] = 0
    header["pixdim"][1 : values.ndim + 1] = [*SPACING, 1, 1][: values.ndim]
    if qform is not None:
        header.set_qform(qform, qform_code)
    if sform is not None:
        header.set_sform(sform, sform_code)
    header.set_xyzt_units(units)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["magic"], header["vox_offset"] = b"n+1", 352
    with path.open("wb") as file:
        header.write_to(file)
        file.write(b"\0" * (352 - file.tell()))
        file.write(values.tobytes(order="F"))


def oblique() -> np.ndarray:
    """An affine turned about two axes, with voxels of ``SPACING``."""
    one, two = np.deg2rad((20, -35))
    turn = np.array([[np.cos(one), -np.sin(one), 0], [np.sin(one), np.cos(one), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(two), -np.sin(two)], [0, np.sin(two), np.cos(two)]])
    matrix = affine((-87.6543, 45.678, -1034.5))
    matrix[:3, :3] = turn * SPACING
    return matrix


def mirrored() -> np.ndarray:
    """An affine whose determinant is below 0."""
    matrix = affine()
    matrix[0, 0] *= -1
    return matrix


HEADERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "usual": lambda path, values: write(path, values, sform=affine(), qform=affine()),
    "oblique": lambda path, values: write(path, values, sform=oblique(), qform=oblique()),
    "quaternion alone": lambda path, values: write(path, values, qform=oblique()),
    "sheared": lambda path, values: write(path, values, sform=affine(shear=0.02)),
    "sheared oblique": lambda path, values: write(path, values, sform=oblique() @ affine((0, 0, 0), 0.05) / 2),
    "hardly sheared": lambda path, values: write(path, values, sform=affine(shear=1e-4)),
    "sheared beside a quaternion": lambda path, values: write(
        path, values, sform=affine(shear=0.1), sform_code=2, qform=affine()
    ),
    "two transforms, scanner last": lambda path, values: write(
        path, values, sform=affine((1, 2, 3)), sform_code=1, qform=affine(), qform_code=2
    ),
    "two transforms, scanner first": lambda path, values: write(
        path, values, sform=affine((1, 2, 3)), sform_code=2, qform=affine(), qform_code=1
    ),
    "two transforms, turned": lambda path, values: write(
        path, values, sform=oblique(), sform_code=4, qform=mirrored(), qform_code=1
    ),
    "no transform": lambda path, values: write(path, values),
    "mirrored": lambda path, values: write(path, values, sform=mirrored(), qform=mirrored()),
    "mirrored sform": lambda path, values: write(path, values, sform=mirrored()),
    "scaled sform": lambda path, values: write(path, values, sform=affine(scale=2), qform=affine()),
    "scaled sform alone": lambda path, values: write(path, values, sform=affine(scale=2)),
    "micrometres": lambda path, values: write(path, values, sform=affine(), qform=affine(), units="micron"),
    "sheared micrometres": lambda path, values: write(path, values, sform=affine(shear=0.02), units="micron"),
}
"""By what is unusual; values have the axes (x, y, z)."""

NOT_FOR_SIMPLEITK = ("sheared", "sheared oblique", "sheared micrometres")
