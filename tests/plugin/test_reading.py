"""What is read once is what nnU-Net's own readers give."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from nifti_headers import HEADERS, affine, write
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_logvmamba.plugin import reading
from nnunet_logvmamba.plugin.reading import read_once

READERS = (SimpleITKIO, NibabelIO, NibabelIOWithReorient)
VALUES = np.arange(-10, 110, dtype=np.int16).reshape(4, 5, 6)
SCALINGS = ((1, 0), (2, 5), (0.1, 0), (0, 5), (0, 0), (float("nan"), 0), (float("nan"), 5), (1, -3), (1e-8, 0))


def with_gaps(kind: type) -> np.ndarray:
    values = VALUES.astype(kind)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    return values


def as_its_reader_does(reader: type, path: Path) -> None:
    """Compare with the reader itself, refusals too."""
    try:
        values, properties = reader().read_images([str(path)])
    except Exception as error:
        with pytest.raises(type(error)):
            read_once(reader, path)
        return
    found = read_once(reader, path)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found.values.astype(np.float32), values)
    np.testing.assert_allclose(found.spacing, properties["spacing"], rtol=1e-6)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("header", HEADERS)
def test_every_header_is_read_as_the_reader_reads_it(tmp_path, header, reader):
    HEADERS[header](tmp_path / "a.nii", VALUES)
    as_its_reader_does(reader, tmp_path / "a.nii")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    as_its_reader_does(reader, tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "values",
    [
        VALUES.astype(np.uint8),
        VALUES,
        VALUES.astype(np.uint16),
        VALUES.astype(np.int32) * 10**7,
        with_gaps(np.float32),
        with_gaps(np.float64),
        VALUES * 1e38,
        VALUES.astype(np.float32),
        VALUES[..., :1],
        VALUES[:, :1],
        VALUES[..., 0],
        VALUES[..., None],
        np.stack([VALUES, VALUES], -1),
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
def test_every_type_shape_and_scaling_is_read_as_the_reader_reads_it(tmp_path, values, reader, ending):
    for slope, intercept in SCALINGS if values.dtype in (np.int16, np.float32) else SCALINGS[:2]:
        write(tmp_path / "a.nii", values, sform=affine(), slope=slope, intercept=intercept)
        if ending == ".nii.gz":
            (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
        as_its_reader_does(reader, tmp_path / f"a{ending}")


def test_a_sound_compressed_file_is_decompressed_once(tmp_path, monkeypatch):
    write(tmp_path / "a.nii", VALUES, sform=affine())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    for name in ("_from_bytes", "_read_by"):
        monkeypatch.setattr(reading, name, None)  # what would read it a second time
    found = read_once(SimpleITKIO, tmp_path / "a.nii.gz")
    assert (found.stored, found.replaced, found.values.dtype) == ("int16", 0, np.int16)


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: content[:-8] + bytes(8)])
def test_a_compressed_file_whose_end_or_checksum_is_wrong_is_refused(tmp_path, damage):
    write(tmp_path / "a.nii", np.random.default_rng(0).integers(0, 999, (40, 50, 60), np.int16), sform=affine())
    content = gzip.compress((tmp_path / "a.nii").read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(damage(content))
    for reader in READERS:
        with pytest.raises((EOFError, OSError)):
            read_once(reader, tmp_path / "a.nii.gz")


def test_voxels_that_simpleitk_replaces_are_counted(tmp_path):
    write(tmp_path / "a.nii", with_gaps(np.float32), sform=affine())
    assert read_once(SimpleITKIO, tmp_path / "a.nii").replaced == 3
    assert np.isnan(read_once(NibabelIO, tmp_path / "a.nii").values).any()
