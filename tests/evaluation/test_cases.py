"""Files as nnU-Net reads and writes them: odd headers, values that are nearly whole, single slices, TIFF axes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import nifti_headers
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from PIL import Image

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import (
    check_same_grid,
    is_white_at_zero,
    read_grid,
    read_labels,
    read_picture,
    turned_like,
)

LABELS = np.zeros((5, 6, 7), np.uint8)  # x, y, z
LABELS[1:4, 1:5, 2:5] = 1
LABELS[2, 2:4, 3:] = 2


def refused(*files: Path) -> str:
    """The sentence about one file that cannot be read or two that do not lie on one grid."""
    with pytest.raises(UserError) as caught:
        check_same_grid(*map(read_labels, files * (3 - len(files))), *files * (3 - len(files)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Where the voxels of NIfTI files lie


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("header", nifti_headers.HEADERS)
def test_what_nnunet_writes_lies_on_what_it_read(header, reader, tmp_path):
    truth, prediction = tmp_path / "truth.nii", tmp_path / "prediction.nii.gz"
    nifti_headers.HEADERS[header](truth, LABELS)
    if reader is SimpleITKIO and header in nifti_headers.NOT_FOR_SIMPLEITK:
        with pytest.raises(RuntimeError, match="orthonormal"):
            reader().read_seg(str(truth))
        return
    values, properties = reader().read_seg(str(truth))
    reader().write_seg(values[0].astype(np.uint8), str(prediction), properties)
    ours, written = read_labels(truth), read_labels(prediction)
    check_same_grid(ours, written, truth, prediction)
    assert (ours.values == values[0]).all()
    assert (written.values == values[0]).all()
    image = read_grid(truth)  # by its header alone
    check_same_grid(ours, image, truth, truth)
    assert (image.shape, image.unit, image.slice_axis) == (ours.shape, ours.unit, ours.slice_axis)
    assert image.spacing == ours.spacing
    assert image.affines.keys() == ours.affines.keys()
    if "micro" not in header or reader is SimpleITKIO:
        assert ours.spacing == pytest.approx(properties["spacing"])


def test_sheared_files_are_read_in_mm_whatever_their_unit(tmp_path):
    sizes = {}
    for header in ("micrometres", "sheared micrometres", "sheared"):
        nifti_headers.HEADERS[header](tmp_path / "a.nii", LABELS)
        sizes[header] = read_labels(tmp_path / "a.nii").spacing
    assert sizes["sheared micrometres"] == pytest.approx(sizes["micrometres"])
    assert sizes["sheared"] == pytest.approx(nifti_headers.SPACING[::-1])


@pytest.mark.parametrize("origin", [(10.0, 20.0, -1000.4), (10.0, 20.02, -1000.0), (-10.0, 20.0, -1000.0)])
@pytest.mark.parametrize("header", ["usual", "sheared", "mirrored sform"])
def test_an_origin_that_is_off_is_noticed_however_far_from_zero(header, origin, tmp_path):
    nifti_headers.HEADERS[header](tmp_path / "truth.nii", LABELS)
    shifted = nibabel.load(tmp_path / "truth.nii").affine.copy()
    shifted[:3, 3] = origin
    nifti_headers.write(tmp_path / "prediction.nii", LABELS, sform=shifted)
    said = refused(tmp_path / "truth.nii", tmp_path / "prediction.nii")
    assert f"{tmp_path / 'prediction.nii'} has origin or direction" in said
    assert "-0.0" not in said
    check_same_grid(
        *(read_labels(tmp_path / f"{name}.nii") for name in ("truth", "prediction")),
        Path("t"),
        Path("p"),
        position=False,
    )


@pytest.mark.parametrize("shear", [0.0, 0.02])
@pytest.mark.parametrize(
    ("other", "what"),
    [
        (nifti_headers.affine(shear=0.03), "origin or direction"),
        (nifti_headers.affine(shear=0.005), "origin or direction"),
        (nifti_headers.mirrored(), "origin or direction"),
        (nifti_headers.affine(scale=1.01), "origin or direction"),
        (nifti_headers.affine() * np.nan, "origin or direction"),
    ],
)
def test_axes_that_are_off_are_noticed(shear, other, what, tmp_path):
    nifti_headers.write(tmp_path / "truth.nii", LABELS, sform=nifti_headers.affine(shear=shear))
    nifti_headers.write(tmp_path / "prediction.nii", LABELS, sform=other)
    if not shear and np.isfinite(other).all() and other[0, 0] > 1:
        return  # SimpleITK takes the size of voxels from elsewhere, and so sees the same
    assert f"has {what}" in refused(tmp_path / "truth.nii", tmp_path / "prediction.nii")


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (-123.456789, 456.789123, -1234.56789)])
@pytest.mark.parametrize("edge", [0.001, 0.7, 5.0])
def test_what_a_writer_rounds_to_single_precision_is_the_same_grid(edge, origin, tmp_path):
    image = sitk.GetImageFromArray(LABELS.T)
    image.SetSpacing([size * edge / 3 for size in nifti_headers.SPACING])
    image.SetOrigin(origin)
    image.SetDirection((nifti_headers.oblique()[:3, :3] / nifti_headers.SPACING).ravel())
    files = [tmp_path / name for name in ("truth.nrrd", "prediction.nii.gz", "other.mha")]
    for file in files:
        sitk.WriteImage(image, str(file))
    maps = [read_labels(file) for file in files]
    for one, other in ((0, 1), (1, 0), (2, 1)):
        check_same_grid(maps[one], maps[other], files[one], files[other])
    image.SetOrigin([value + 0.02 * edge + 5e-6 * abs(value) for value in origin])
    sitk.WriteImage(image, str(files[1]))
    assert "origin" in refused(files[0], files[1])


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_spacing_is_compared_by_its_share(factor, tmp_path):
    for name, size in (("truth", 1.0), ("prediction", factor)):
        for edge in (1e-3, 1.0):
            image = sitk.GetImageFromArray(LABELS.T)
            image.SetSpacing([edge * size] * 3)
            sitk.WriteImage(image, str(tmp_path / f"{name}{edge}.nrrd"))
    for edge in (1e-3, 1.0):
        assert "has spacing" in refused(tmp_path / f"truth{edge}.nrrd", tmp_path / f"prediction{edge}.nrrd")


@pytest.mark.parametrize("reader", [NibabelIOWithReorient, SimpleITKIOWithReorient])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SAR", "PIR"])
def test_a_prediction_in_the_orientation_of_its_image_is_scored_on_the_label(orientation, reader, tmp_path):
    nifti_headers.HEADERS["oblique"](tmp_path / "truth.nii", LABELS)
    image = nibabel.load(tmp_path / "truth.nii")
    codes = nibabel.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes))
    nibabel.save(turned, tmp_path / "image.nii.gz")
    _, properties = reader().read_images([str(tmp_path / "image.nii.gz")])
    values, _ = reader().read_seg(str(tmp_path / "truth.nii"))
    reader().write_seg(values[0].astype(np.uint8), str(tmp_path / "prediction.nii.gz"), properties)
    truth, prediction = (read_labels(tmp_path / name) for name in ("truth.nii", "prediction.nii.gz"))
    prediction = turned_like(prediction, truth)
    check_same_grid(truth, prediction, tmp_path / "truth.nii", tmp_path / "prediction.nii.gz")
    assert (prediction.values == truth.values).all()


def test_what_simpleitk_warns_about_is_not_printed(tmp_path, capfd):
    nifti_headers.HEADERS["two transforms, turned"](tmp_path / "a.nii", LABELS)
    read_labels(tmp_path / "a.nii")
    assert capfd.readouterr().err == ""
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


# Values


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int32])
def test_masks_that_nibabel_saved_anew_hold_their_labels(kind, tmp_path):
    header = nibabel.Nifti1Image(LABELS.astype(kind), np.eye(4)).header
    binary = LABELS > 0
    nibabel.save(nibabel.Nifti1Image(binary.astype(np.float64), np.eye(4), header), tmp_path / "a.nii.gz")
    stored = np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    assert set(np.unique(stored)) != {0, 1}  # or there is nothing to test
    assert (read_labels(tmp_path / "a.nii.gz").values == binary.T).all()


@pytest.mark.parametrize("header", ["usual", "sheared"])
@pytest.mark.parametrize(("slope", "factor"), [(0.1, 10), (0.3, 1), (1 / 3, 3), (float("nan"), 1)])
def test_scaled_masks_hold_what_is_whole_in_single_precision(header, slope, factor, tmp_path):
    form = nifti_headers.affine(shear=0.02 if header == "sheared" else 0)
    values = LABELS.astype(np.int16) * factor
    nifti_headers.write(tmp_path / "a.nii", values, sform=form, slope=slope)
    if slope == 0.3:
        assert "holds numbers that are not whole, the first is 0.3;" in refused(tmp_path / "a.nii")
    else:
        assert (read_labels(tmp_path / "a.nii").values == LABELS.T).all()


def test_a_number_next_to_a_whole_one_is_printed_with_its_digits(tmp_path):
    values = LABELS.astype(np.float64)
    values[0, 0, 0] = 1.00001
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    assert "the first is 1.00001; labels" in refused(tmp_path / "a.nii.gz")
    values[0, 0, 0] = 0.99999999
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    assert read_labels(tmp_path / "a.nii.gz").values[0, 0, 0] == 1
    values[0, 0, 0] = 1e30
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    assert "holds 1e+30, which is too large" in refused(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("slope", "intercept", "readings"),
    [(0, 5, "read as 0, 1, 2 by nibabel and as 5.0, 6.0, 7.0 by SimpleITK"), (0, 0.5, "as 0.5, 1.5, 2.5 by SimpleITK")],
)
def test_values_that_nibabel_and_simpleitk_read_differently_are_both_named(slope, intercept, readings, tmp_path):
    form = nifti_headers.affine()
    nifti_headers.write(tmp_path / "a.nii", LABELS.astype(np.int16), sform=form, slope=slope, intercept=intercept)
    said = refused(tmp_path / "a.nii")
    assert str(tmp_path / "a.nii") in said
    assert readings in said
    assert f"by 0 and adds {intercept} (scl_slope, scl_inter); save it again with scl_slope 1" in said


@pytest.mark.parametrize("header", ["usual", "sheared"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(header, value, tmp_path):
    values = LABELS.astype(np.float32)
    values[0, 0, 0] = value
    nifti_headers.HEADERS[header](tmp_path / "a.nii", values)
    assert "holds numbers that are not finite" in refused(tmp_path / "a.nii")


# Single slices and axes of length 1


@pytest.mark.parametrize("shear", [0.0, 0.02])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_a_plane_whichever_axis_it_is_across(axis, shear, tmp_path):
    values = np.take(LABELS, [3], axis)
    nifti_headers.write(tmp_path / "a.nii", values, sform=nifti_headers.affine(shear=shear))
    read = read_labels(tmp_path / "a.nii")
    assert (read.values == values.squeeze(axis).T).all()
    assert read.spacing == tuple(np.delete(nifti_headers.SPACING[::-1], 2 - axis))
    assert (read.slice_axis, read.thickness) == (2 - axis, nifti_headers.SPACING[axis])
    assert read.shape == values.T.shape
    nifti_headers.write(tmp_path / "b.nii", values, sform=nifti_headers.affine((10, 20, -1000.4), shear))
    assert "origin" in refused(tmp_path / "a.nii", tmp_path / "b.nii")


@pytest.mark.parametrize("shear", [0.0, 0.02])
@pytest.mark.parametrize("origin", [(10.0, 20.0, 0.0), (10.0, 20.0, -1000.0)])
def test_a_file_of_two_axes_lies_on_the_slice_of_three(origin, shear, tmp_path):
    form = nifti_headers.affine(origin, shear)
    nifti_headers.write(tmp_path / "truth.nii", LABELS[..., 3:4], sform=form)
    nifti_headers.write(tmp_path / "prediction.nii", LABELS[..., 3].copy(order="F"), sform=form)
    files = [tmp_path / "truth.nii", tmp_path / "prediction.nii"]
    maps = list(map(read_labels, files))
    check_same_grid(*maps, *files)
    assert (maps[0].values == maps[1].values).all()
    nifti_headers.write(files[1], LABELS[..., 3].copy(order="F"), sform=nifti_headers.affine((12, 20, 0), shear))
    assert "origin" in refused(*files)


def test_slices_across_different_axes_are_different_shapes(tmp_path):
    cube = np.ones((4, 4, 4), np.uint8)
    for name, values in (("truth", cube[:1]), ("prediction", cube[:, :, :1])):
        nifti_headers.write(tmp_path / f"{name}.nii", values.copy(order="F"), sform=np.eye(4))
    assert "has shape (1, 4, 4)" in refused(tmp_path / "truth.nii", tmp_path / "prediction.nii")


@pytest.mark.parametrize("header", ["usual", "sheared"])
def test_further_axes_of_length_1_are_left_out(header, tmp_path):
    nifti_headers.HEADERS[header](tmp_path / "a.nii", LABELS[..., None, None])
    assert (read_labels(tmp_path / "a.nii").values == LABELS.T).all()
    nifti_headers.HEADERS[header](tmp_path / "a.nii", np.stack([LABELS, LABELS], -1))
    assert "has 4 axes; a label map has 2 or 3" in refused(tmp_path / "a.nii")


PICTURE = np.zeros((20, 30), np.uint8)
PICTURE[5:10, 5:15], PICTURE[12:18, 3:9] = 1, 2
TIFFS = {
    "plain": (PICTURE, {}),
    "leading 1": (PICTURE[None], {}),
    "leading 1, 1": (PICTURE[None, None], {}),
    "trailing 1": (PICTURE[..., None], {}),
    "both": (PICTURE[None, ..., None], {}),
    "ImageJ": (PICTURE[None], {"imagej": True, "metadata": {"axes": "ZYX"}}),
    "OME": (PICTURE[None, None, None], {"ome": True, "metadata": {"axes": "TCZYX"}}),
    "MINISWHITE": (PICTURE, {"photometric": "miniswhite"}),
    "leading 1, MINISWHITE": (PICTURE[None], {"photometric": "miniswhite"}),
    "grey and alpha": (np.stack([PICTURE, PICTURE + 7], -1), {"photometric": 1, "extrasamples": ["unassalpha"]}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_labels_in_a_tiff_are_its_stored_numbers_whatever_its_axes(kind, tmp_path):
    values, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    tifffile.imwrite(tmp_path / "plain.tif", PICTURE)
    read, plain = (read_labels(tmp_path / name) for name in ("a.tif", "plain.tif"))
    assert (read.values == PICTURE).all()
    assert (read.spacing, read.unit) == ((1, 1), "px")
    check_same_grid(plain, read, tmp_path / "plain.tif", tmp_path / "a.tif")
    check_same_grid(read, plain, tmp_path / "a.tif", tmp_path / "plain.tif")


@pytest.mark.parametrize("kind", TIFFS)
def test_pictures_look_as_in_a_viewer(kind, tmp_path):
    values, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    shown = read_picture(tmp_path / "a.tif")
    assert is_white_at_zero(tmp_path / "a.tif") == ("MINISWHITE" in kind)
    viewer = Image.open(tmp_path / "a.tif")
    viewer = np.asarray(viewer.getchannel(0) if viewer.mode == "LA" else viewer)
    assert (shown == (viewer[..., 0] if viewer.ndim == 3 else viewer)).all()


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize(
    "options", [{"imagej": True, "metadata": {"axes": "CYX"}}, {"ome": True, "metadata": {"axes": "CYX"}}]
)
def test_channels_of_a_picture_come_last(options, channels, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([PICTURE] * channels), **options)
    assert read_picture(tmp_path / "a.tif").shape == (*PICTURE.shape, channels)


def test_transparency_beside_grey_is_left_out(tmp_path):
    Image.fromarray(np.stack([PICTURE, np.full_like(PICTURE, 255)], -1), "LA").save(tmp_path / "a.png")
    assert (read_labels(tmp_path / "a.png").values == PICTURE).all()
    assert (read_picture(tmp_path / "a.png") == PICTURE).all()
    Image.fromarray(np.stack([PICTURE] * 3, -1)).save(tmp_path / "b.png")
    assert "is a colour picture" in refused(tmp_path / "b.png")


def test_the_spacing_beside_a_tiff_of_one_page_is_taken(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PICTURE[None])
    side = tmp_path / "a.json"
    side.write_text(json.dumps({"spacing": [5, 2, 3]}))
    read = read_labels(tmp_path / "a.tif")
    assert (read.spacing, read.unit, read.thickness) == ((2, 3), "mm", 5)
    for content, says in (
        ({"spacing": [5, 2]}, "a.json names 2 spacings"),
        ({}, "a.json names no 'spacing' of three numbers"),
        ({"spacing": ["x", 1, 1]}, "a.json names no 'spacing' of three numbers"),
        ({"spacing": [0, 1, 1]}, "has the spacing (0.0, 1.0, 1.0); sizes of voxels are above 0"),
    ):
        side.write_text(json.dumps(content))
        assert says in refused(tmp_path / "a.tif")


def test_one_file_of_an_ome_tiff_over_several_is_read_alone(tmp_path):
    names = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="set_{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(3)
    )
    rows, columns = PICTURE.shape
    header = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:0"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="{PICTURE.dtype}" SizeX="{columns}" SizeY="{rows}" SizeZ="3" SizeC="1" SizeT="1">{names}</Pixels>'
        "</Image></OME>"
    )
    tifffile.imwrite(tmp_path / "a.tif", PICTURE, description=header, metadata=None, photometric="minisblack")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").values, PICTURE)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (5, 1, 6), (5, 6)])
def test_the_header_of_an_image_says_where_its_labels_lie(shape, ending, tmp_path):
    image = sitk.GetImageFromArray(np.full(shape, 0.5, np.float32))
    image.SetSpacing((0.5, 2.0, 3.0)[: len(shape)])
    image.SetOrigin((7.0, -8.0, 9.0)[: len(shape)])
    files = tmp_path / f"image{ending}", tmp_path / f"labels{ending}"
    sitk.WriteImage(image, str(files[0]))
    sitk.WriteImage(sitk.Cast(image > 1, sitk.sitkUInt8), str(files[1]))
    grid, labels = read_grid(files[0]), read_labels(files[1])
    check_same_grid(labels, grid, *files[::-1])
    assert (grid.shape, grid.spacing, grid.unit) == (labels.shape, labels.spacing, labels.unit)
    image.SetOrigin((7.0, -8.5, 9.0)[: len(shape)])
    sitk.WriteImage(image, str(files[0]))
    with pytest.raises(UserError, match="has origin or direction"):
        check_same_grid(labels, read_grid(files[0]), *files[::-1])


def test_a_picture_and_a_stack_of_pages_have_the_grid_that_nnunet_predicts_on(tmp_path):
    tifffile.imwrite(tmp_path / "colour_0000.tif", np.zeros((6, 7, 3), np.uint8), photometric="rgb")
    colour = read_grid(tmp_path / "colour_0000.tif")
    assert (colour.shape, colour.unit) == ((6, 7), "px")
    tifffile.imwrite(tmp_path / "pages_0000.tif", np.zeros((5, 6, 7), np.uint8))
    assert (read_grid(tmp_path / "pages_0000.tif").spacing, colour.spacing) == ((1, 1, 1), (1, 1))
    (tmp_path / "pages.json").write_text('{"spacing": [3, 1, 1]}')
    pages = read_grid(tmp_path / "pages_0000.tif")
    assert (pages.shape, pages.spacing, pages.unit) == ((5, 6, 7), (3, 1, 1), "mm")


def test_channels_in_a_fourth_axis_have_no_grid_to_compare_and_broken_headers_are_named(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), np.eye(4)), tmp_path / "four.nii.gz")
    assert read_grid(tmp_path / "four.nii.gz") is None
    (tmp_path / "broken.nii.gz").write_bytes(b"no header")
    with pytest.raises(UserError, match=r"broken.nii.gz cannot be read"):
        read_grid(tmp_path / "broken.nii.gz")
