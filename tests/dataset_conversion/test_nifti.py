"""Volumes whose headers are odd and valid: what nnU-Net's readers see in the source, they see in the data set."""

import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion import Dataset004_Hippocampus as hippocampus
from dataset_conversion import Dataset501_BraTS2020 as brats
from dataset_conversion import Dataset502_ACDC as acdc
from dataset_conversion import phantoms
from dataset_conversion.formats import nifti, volumes
from dataset_conversion.phantoms.acdc import ACDC_SPACING_MM

SHAPE = (6, 7, 8)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[1:4, 2:5, 2:6], LABELS[4, 2:5, 2:6] = 1, 2
BRIGHTNESS = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
NAN, INF = float("nan"), float("inf")


def affine(angle=0.3, spacing=(1, 1, 1), origin=(0, 0, 0), shear=0.0):
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, :3] *= spacing
    matrix[0, 1] += shear
    matrix[:3, 3] = origin
    return matrix


def placed(qform=None, sform=None, qcode=1, scode=1, spacing=(1, 1, 1), **fields):
    """Header fields of a volume with these two positions."""
    header = nibabel.Nifti1Header()
    header["pixdim"][1:4] = spacing
    header.set_qform(affine(0, spacing) if qform is None else qform)
    header.set_sform(affine() if sform is None else sform)
    header["qform_code"], header["sform_code"] = qcode, scode
    names = (*nifti._TRANSFORMS, "pixdim")
    return {name: header[name] for name in names} | fields


def write(path, voxels, fields=(), *, order="<", kind=nibabel.Nifti1Image, axes=()):
    """A NIfTI file byte by byte, with what no library would write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = kind.header_class(endianness=order)
    header.set_data_shape(voxels.shape + axes)
    header.set_data_dtype(voxels.dtype)
    header["pixdim"][1:4] = 1
    header.set_sform(np.eye(4), 1)
    for name, value in dict(fields).items():
        header[name] = value
    header["vox_offset"] = len(header.binaryblock) + 4
    content = header.binaryblock + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes("F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def decathlon(folder, *cases):
    """A source of at least two subjects; a case is the arguments of its image and of its mask for :func:`write`."""
    for number, (image, mask) in enumerate([*cases, ({}, {})][: max(2, len(cases))]):
        name = f"hippocampus_{2 * number + 1:03d}.nii.gz"
        write(folder / "imagesTr" / name, **{"voxels": BRIGHTNESS, **image})
        write(folder / "labelsTr" / name, **{"voxels": LABELS, **mask})
    return folder


def converted(source, tmp_path):
    return hippocampus.convert(source, tmp_path / "raw", tmp_path / "preprocessed", jobs=1)


def said_of(dataset):
    return json.loads((dataset / "conversion_report.json").read_text())["notes"]


def itk_place(path):
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return "refused"
    return [*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()]


def assert_masks_lie_on_their_images(dataset):
    masks = sorted((dataset / "labelsTr").iterdir())
    assert masks
    for mask in masks:
        image = dataset / "imagesTr" / mask.name.replace(".nii.gz", "_0000.nii.gz")
        ours, theirs = nibabel.load(mask), nibabel.load(image)
        np.testing.assert_array_equal(ours.affine, theirs.affine)
        assert ours.header.get_zooms() == theirs.header.get_zooms()
        assert ours.shape == theirs.shape == SHAPE
        assert itk_place(mask) == itk_place(image)
        assert ours.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(ours.dataobj), LABELS)


# Where a mask lies

REFLECTION = affine(0, (1, 1, 2)) @ np.diag([1, 1, -1, 1])
PLACES = {
    **{f"codes {q} and {s}": placed(sform=affine(0.4, (1, 1, 1), (10, 20, 30)), qcode=q, scode=s)
       for q, s in itertools.product(range(5), repeat=2)},
    "sheared sform beside a qform": placed(sform=affine(shear=0.1), scode=2),
    "reflection in both": placed(REFLECTION, REFLECTION, spacing=(1, 1, 2)),
    "reflection in the qform": placed(REFLECTION, scode=0, spacing=(1, 1, 2)),
    "reflection in the sform": placed(sform=np.diag([-1, 1, 1, 1]), qcode=0),
    "pixdim that the sform does not have": placed(sform=np.diag([-1, -1, 1, 1]), spacing=(1.3, 1.3, 10)),
    "negative pixdim": placed(pixdim=[1, -1, 1, 1, 1, 1, 1, 1]),
    "qfac 0": placed(pixdim=[0, 1, 1, 2, 1, 1, 1, 1], scode=0),
    "unknown code": placed(qcode=7, scode=0),
    "micrometres": placed(scode=0, xyzt_units=3),
    "metres": placed(qcode=0, xyzt_units=1),
    "unknown unit": placed(xyzt_units=0),
    "seconds and mm": placed(xyzt_units=10),
    "an unreal time step": placed(pixdim=[1, 1, 1, 1, 0, 0, 0, 0]),
}  # fmt: skip
UNLIKE_ITS_IMAGE = {
    "sform alone, as nibabel saves": lambda image: {"qform_code": 0},
    "both as ITK saves what it read": lambda image: {"sform_code": 1, "qform_code": 1},
}


def test_a_written_mask_lies_on_its_image_for_nibabel_and_simpleitk_alike(tmp_path):
    """Masks that are packed anew and masks that are copied, with the header of the image."""
    kinds = (np.uint8, np.int16, np.float64)
    cases = [({"fields": place}, {"voxels": LABELS.astype(kind), "fields": place})
             for place in PLACES.values() for kind in kinds]  # fmt: skip
    assert_masks_lie_on_their_images(converted(decathlon(tmp_path / "source", *cases), tmp_path))


def test_a_mask_with_one_of_its_images_two_positions_is_written_with_both(tmp_path, capfd):
    place = placed(sform=affine(0, (1, 1, 1), (10, 20, 30)), qcode=1, scode=2)
    by_nibabel = placed(sform=affine(0, (1, 1, 1), (10, 20, 30)), qcode=0, scode=2)
    by_itk = placed(sform=affine(0), qcode=1, scode=1)
    cases = [({"fields": place}, {"fields": mask}) for mask in (by_nibabel, by_itk, place)]
    dataset = converted(decathlon(tmp_path / "source", *cases), tmp_path)
    assert_masks_lie_on_their_images(dataset)
    notes = " ".join(said_of(dataset))
    assert "only NibabelIO finds the mask on its image" in notes
    assert "only SimpleITKIO finds the mask on its image" in notes
    assert "1 case(s), first hippocampus_001.nii.gz of case hippocampus_001" in notes


def test_a_mask_that_no_reader_finds_on_its_image_is_refused(tmp_path, refused):
    """Far from the origin a tolerance does not grow; the sentence shows the digits that differ."""
    far, off = (placed(affine(0, origin=(0, 0, z)), affine(0, origin=(0, 0, z))) for z in (-1000, -1000.4))
    source = decathlon(tmp_path / "source", ({"fields": far}, {"fields": off}))
    refused(source, "origin of", "labelsTr/hippocampus_001.nii.gz is (-0, -0, -1000.4), but", "has (-0, -0, -1000)")
    near = placed(affine(0, origin=(0, 0, -1000.002)), affine(0, origin=(0, 0, -1000.002)))
    refused(decathlon(source, ({"fields": far}, {"fields": near})), "-1000.002")


def test_restored_predictions_keep_the_header_of_the_prediction(tmp_path):
    for number, place in enumerate([*PLACES.values(), SHEARED], 1):
        write(tmp_path / "predictions" / f"case_{number:03d}.nii.gz", LABELS.astype(np.int16), place)
    hippocampus.restore(tmp_path / "predictions", tmp_path / "out", jobs=1)
    brats.restore(tmp_path / "predictions", tmp_path / "brats", "2020", jobs=1)
    for file in sorted((tmp_path / "predictions").iterdir()):
        for out in ("out", "brats"):
            ours, theirs = nibabel.load(tmp_path / out / file.name), nibabel.load(file)
            np.testing.assert_array_equal(ours.affine, theirs.affine)
            assert itk_place(tmp_path / out / file.name) == itk_place(file)
            assert ours.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.array([0, 2, 1])[LABELS])


def test_two_conversions_give_the_same_bytes_whenever_they_run(tmp_path, monkeypatch, fingerprint):
    source = decathlon(tmp_path / "source", ({}, {"voxels": LABELS.astype(np.int16)}))
    first = converted(source, tmp_path / "first")
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert fingerprint(first) == fingerprint(converted(source, tmp_path / "second"))


def test_what_the_image_says_of_its_values_is_not_said_of_the_mask(tmp_path):
    image = {"cal_max": 900, "cal_min": 5, "intent_code": 3, "intent_name": b"t test", "scl_slope": 2, "scl_inter": 7}
    dataset = converted(decathlon(tmp_path / "source", ({"fields": image}, {"fields": {"cal_max": 2}})), tmp_path)
    assert_masks_lie_on_their_images(dataset)
    mask = nibabel.load(dataset / "labelsTr" / "hippocampus_001.nii.gz")
    assert [float(mask.header[name]) for name in ("cal_max", "cal_min", "intent_code")] in ([0, 0, 0], [2, 0, 0])
    assert not mask.header.extensions


# What a mask holds


def scaled(slope, offset, factor=1, shift=0):
    stored = LABELS.astype(np.int16) * factor + shift
    return {"voxels": stored, "fields": {"scl_slope": slope, "scl_inter": offset}}


def resaved(voxels, kind, folder):
    """What nibabel writes for float data under a header of whole numbers."""
    folder.mkdir(exist_ok=True)
    header = nibabel.Nifti1Image(LABELS.astype(kind), np.eye(4)).header
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float64), np.eye(4), header), folder / "mask.nii.gz")
    return folder / "mask.nii.gz"


WHOLE = {
    "slope 0.1": scaled(0.1, 0, 10),
    "slope 0.1 in bytes": {**scaled(0.1, 0, 10), "voxels": LABELS * np.uint8(10)},
    "slope -1": scaled(-1, 0, -1),
    "slope -1 and an offset": scaled(-1, 2, -1, 2),
    "an offset": scaled(1, 3, 1, -3),
    "half an offset": scaled(0.5, 0.5, 2, -1),
    "slope 0": scaled(0, 0),
    "slope 0 and no offset": scaled(0, NAN),
    "slope NaN": scaled(NAN, 0),
    "neither": scaled(NAN, NAN),
    "slope infinite": scaled(INF, 0),
    **{f"stored as {np.dtype(kind)}": {"voxels": LABELS.astype(kind)} for kind in "bBhHiIlLfd"},
    **{f"big-endian {np.dtype(kind)}": {"voxels": LABELS.astype(kind), "order": ">"} for kind in "bhHiIlLfd"},
    "one trailing axis": {"axes": (1,)},
    "two trailing axes of int16": {"voxels": LABELS.astype(np.int16), "axes": (1, 1)},
    "just beside 1": {"voxels": np.where(LABELS == 1, 0.99999999977, LABELS)},
    "just above 1": {"voxels": np.where(LABELS == 1, 1.0000000149, LABELS)},
    "cal_max": {"fields": {"cal_max": 2, "cal_min": 0}},
}


def test_what_is_whole_in_single_precision_is_a_label(tmp_path):
    source = decathlon(tmp_path / "source", *[({}, mask) for mask in WHOLE.values()])
    for number, (voxels, kind) in enumerate([(LABELS, "i"), *[(LABELS > 0, kind) for kind in "Bhi"]], 201):
        name = f"hippocampus_{number:03d}.nii.gz"
        write(source / "imagesTr" / name, BRIGHTNESS)
        shutil.copy(resaved(voxels, kind, tmp_path / "resaved"), source / "labelsTr" / name)
    dataset = converted(source, tmp_path)
    for mask in sorted((dataset / "labelsTr").iterdir()):
        binary = mask.name > "hippocampus_201.nii.gz"
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
        np.testing.assert_array_equal(found.T, LABELS > 0 if binary else LABELS)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(nibabel.load(mask).get_fdata(), found.T)


def with_value(value, kind=np.float64):
    voxels = LABELS.astype(kind)
    voxels[0, 0, 0] = value
    return {"voxels": voxels}


NOT_WHOLE = {
    "almost 1": (with_value(0.999999), "holds 0.999999, but labels are whole numbers"),
    "a seventh digit": (with_value(1.0000002), "holds 1.0000002, but"),
    "a half": (scaled(1, 0.5), "holds 0.5, but"),
    "slope 0.3": (scaled(0.3, 0), "holds 0.3, but"),
    "slope 1e-9": (scaled(1e-9, 0), "holds 1e-09, but"),
    "huge": (with_value(2**64 - 1, np.uint64), "holds label 18446744073709551615, but"),
    "too much for single precision": (with_value(1e300), "holds inf, but"),
    "slope 0 and an offset": (
        scaled(0, 5),
        "001.nii.gz has scl_slope 0 and scl_inter 5, so that nibabel reads 0.0 to 2.0 and SimpleITK 5.0 to 7.0; save",
    ),
    "slope NaN and an offset": (scaled(NAN, 5), "has scl_slope nan and scl_inter 5, so that nibabel reads 0.0 to 2.0"),
    "slope infinite and an offset": (scaled(INF, -2), "has scl_slope inf and scl_inter -2, so that nibabel reads 0.0"),
    "offset NaN": (scaled(1, NAN), "adds scl_inter nan to its values; save it again without"),
    "offset infinite": (scaled(2, INF), "adds scl_inter inf to its values"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_a_mask_that_holds_no_labels_is_refused_with_the_digits_that_tell(name, tmp_path, refused):
    mask, says = NOT_WHOLE[name]
    refused(decathlon(tmp_path / "source", ({}, mask)), "labelsTr/hippocampus_001.nii.gz", says)


def test_a_mask_whose_labels_were_lost_in_bytes_is_refused(tmp_path, refused):
    """Two labels do not survive nibabel's scaling to 255 steps: half of them lies between two."""
    source = decathlon(tmp_path / "source", ({}, {}))
    shutil.copy(resaved(LABELS, "B", tmp_path / "resaved"), source / "labelsTr" / "hippocampus_001.nii.gz")
    refused(source, "hippocampus_001.nii.gz holds 0.9960785, but labels are whole numbers")


IMAGE_FAULTS = {
    "slope 0 and an offset": (scaled(0, 5), "so that nibabel reads 0.0 to 2.0 and SimpleITK 5.0 to 7.0"),
    "offset NaN": (scaled(1, NAN), "adds scl_inter nan"),
    "too large for single precision": (with_value(1e39), "holds NaN or infinite values"),
}


@pytest.mark.parametrize("name", IMAGE_FAULTS)
def test_images_are_read_with_the_same_care_in_every_converter(name, tmp_path, refused):
    image, says = IMAGE_FAULTS[name]
    refused(decathlon(tmp_path / "source", (image, {})), "imagesTr/hippocampus_001.nii.gz", says)
    for number, modality in enumerate(("t1", "t1ce", "t2", "flair")):
        write(tmp_path / "own" / f"a_{modality}.nii", **({"voxels": BRIGHTNESS} if number else image))
    refused(tmp_path / "own", "own/a_t1.nii", says, converter=brats, scans=True)
    write(tmp_path / "heart" / "a.nii", **image)
    refused(tmp_path / "heart", "heart/a.nii", says, converter=acdc, scans=True)
    refused(tmp_path / "heart", "heart/a.nii", says, converter=hippocampus, scans=True)


@pytest.mark.parametrize("converter", [brats, acdc, hippocampus])
def test_a_prediction_is_read_with_the_same_care(converter, tmp_path, capfd):
    write(tmp_path / "predictions" / "a.nii.gz", **scaled(0, 5))
    more = ["--release", "2020"] if converter is brats else []
    assert converter.main(["--restore", str(tmp_path / "predictions"), str(tmp_path / "out"), "-np", "1", *more]) == 2
    assert "predictions/a.nii.gz has scl_slope 0 and scl_inter 5" in capfd.readouterr().err


def test_axes_of_length_one_leave_the_header_and_the_voxels_stay(tmp_path):
    image = {"axes": (1,), "fields": {"scl_slope": 3, "scl_inter": 1}}
    dataset = converted(decathlon(tmp_path / "source", (image, {"axes": (1, 1)})), tmp_path)
    assert_masks_lie_on_their_images(dataset)
    written = dataset / "imagesTr" / "hippocampus_001_0000.nii.gz"
    source = tmp_path / "source" / "imagesTr" / "hippocampus_001.nii.gz"
    before, after = (gzip.decompress(path.read_bytes()) for path in (source, written))
    assert after[352:] == before[352:]
    np.testing.assert_allclose(nibabel.load(written).get_fdata(), BRIGHTNESS.astype(float) * 3 + 1)


@pytest.fixture
def refused(tmp_path, capfd, monkeypatch):
    """Assert that the command refuses a source in one sentence and writes nothing."""

    def check(source, *says, converter=hippocampus, scans=False):
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            monkeypatch.setenv(name, str(tmp_path / name))
        before = sorted(path.name for path in tmp_path.iterdir())
        arguments = ["--images-only", str(source), str(tmp_path / "out")] if scans else [str(source)]
        assert converter.main([*arguments, "--jobs", "1"]) == 2
        errors = capfd.readouterr().err
        assert errors.startswith("error: Case ")
        assert errors.count("\n") == 1
        for text in says:
            assert text in errors
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    return check


# Direction cosines that are not orthonormal, and other files that SimpleITK refuses

SHEARED = placed(sform=affine(shear=0.02), qcode=0, scode=2)


def test_sheared_volumes_are_converted_for_the_reader_that_takes_them(tmp_path, capfd):
    cases = [({"fields": SHEARED}, {"fields": SHEARED}), ({"axes": (1,)}, {"voxels": LABELS.astype(float)})]
    dataset = converted(decathlon(tmp_path / "source", *cases), tmp_path)
    assert json.loads((dataset / "dataset.json").read_text())["overwrite_image_reader_writer"] == "NibabelIO"
    said, errors = capfd.readouterr()
    assert_masks_lie_on_their_images(dataset)
    assert "nnU-Net reads this data set with NibabelIO, since SimpleITKIO does not read every case" in said
    assert "orthonormal direction cosines" in said
    assert "first hippocampus_001.nii.gz of case hippocampus_001" in said
    assert "again" not in said
    assert errors == ""


@pytest.mark.slow
def test_nnunet_finds_nothing_wrong_with_sheared_volumes(tmp_path):
    dataset = converted(decathlon(tmp_path / "source", ({"fields": SHEARED}, {"fields": SHEARED})), tmp_path)
    folders = {name: str(tmp_path / name) for name in ("nnUNet_preprocessed", "nnUNet_results")}
    done = subprocess.run(
        [
            Path(sys.executable).with_name("nnUNetv2_extract_fingerprint"),
            "-d",
            "4",
            "-np",
            "1",
            "--verify_dataset_integrity",
        ],
        env=os.environ | {"nnUNet_raw": str(dataset.parent), "OMP_NUM_THREADS": "1"} | folders,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "verify_dataset_integrity Done" in done.stdout
    assert "arning" not in done.stdout
    assert (tmp_path / "nnUNet_preprocessed" / dataset.name / "dataset_fingerprint.json").is_file()


def test_nifti_2_is_converted_for_the_reader_that_takes_it(tmp_path):
    second = {"kind": nibabel.Nifti2Image, "axes": (1,)}
    source = decathlon(tmp_path / "source", (second, {}), (second, {"voxels": LABELS.astype("i2"), **second}))
    dataset = converted(source, tmp_path)
    assert json.loads((dataset / "dataset.json").read_text())["overwrite_image_reader_writer"] == "NibabelIO"
    assert_masks_lie_on_their_images(dataset)


def test_grids_of_sheared_volumes_are_compared_by_affine(tmp_path, refused):
    for shear, says in ((0.03, "direction of"), (0.02, None)):
        other = placed(sform=affine(shear=shear), qcode=0, scode=2)
        source = decathlon(tmp_path / "source", ({"fields": SHEARED}, {"fields": other}))
        if says:
            refused(source, says, "labelsTr/hippocampus_001.nii.gz")
    moved = placed(sform=affine(shear=0.02, origin=(0, 0, 0.4)), qcode=0, scode=2)
    refused(decathlon(source, ({"fields": SHEARED}, {"fields": moved})), "origin of")
    thick = placed(sform=affine(shear=0.02, spacing=(1, 1, 2)), qcode=0, scode=2, spacing=(1, 1, 2))
    refused(decathlon(source, ({"fields": SHEARED}, {"fields": thick})), "spacing of")
    refused(decathlon(source, ({"fields": SHEARED}, {"voxels": LABELS[1:], "fields": SHEARED})), "size of")


def test_channels_differ_in_spacing_by_no_more_than_nnunet_grants(tmp_path, refused):
    """The mask of a case may differ more, since it is written with the spacing of its image."""
    wide = placed(affine(0, (1.00005, 1, 1)), scode=0, spacing=(1.00005, 1, 1))
    near = placed(affine(0, (1.000005, 1, 1)), scode=0, spacing=(1.000005, 1, 1))
    plain = placed(affine(0), scode=0)
    dataset = converted(decathlon(tmp_path / "source", ({"fields": plain}, {"fields": wide})), tmp_path)
    assert_masks_lie_on_their_images(dataset)
    for name, fields in (("near", near), ("wide", wide)):
        for modality in ("t1", "t1ce", "t2", "flair"):
            write(tmp_path / name / f"a_{modality}.nii", BRIGHTNESS, fields if modality == "t2" else plain)
    brats.convert_images(tmp_path / "near", tmp_path / "out", jobs=1)
    shutil.rmtree(tmp_path / "out")
    refused(tmp_path / "wide", "spacing of", "a_t2.nii is (1.00004", converter=brats, scans=True)


def test_channels_that_no_reader_takes_together_are_named(tmp_path, refused):
    flat = placed(sform=np.zeros((4, 4)), qcode=0, scode=1)
    refused(decathlon(tmp_path / "flat", ({"fields": flat}, {})), "imagesTr/hippocampus_001.nii.gz cannot be read")
    in_metres = placed(qcode=0, xyzt_units=1)
    for modality, fields in (("t1", SHEARED), ("t1ce", in_metres), ("t2", SHEARED), ("flair", SHEARED)):
        write(tmp_path / "own" / f"a_{modality}.nii", BRIGHTNESS, fields)
    says = ("own/a_t1ce.nii is read by SimpleITKIO alone", "a_t1.nii by NibabelIO alone")
    refused(tmp_path / "own", *says, converter=brats, scans=True)


def test_cases_that_no_reader_takes_together_are_named(tmp_path, monkeypatch, capfd):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(tmp_path / name))
    in_metres = placed(qcode=0, xyzt_units=1)
    cases = [({"fields": place}, {"fields": place}) for place in (SHEARED, in_metres)]
    assert hippocampus.main([str(decathlon(tmp_path / "source", *cases)), "--jobs", "1"]) == 2
    errors = capfd.readouterr().err
    assert "SimpleITKIO does not read hippocampus_001, NibabelIO does not read hippocampus_003" in errors
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_sheared_scan_to_predict_is_written_and_the_model_that_takes_it_named(tmp_path, capfd):
    write(tmp_path / "own" / "a.nii", BRIGHTNESS, SHEARED)
    write(tmp_path / "own" / "b.nii", BRIGHTNESS)
    for converter in (acdc, hippocampus):
        converter.convert_images(tmp_path / "own", tmp_path / converter.__name__, jobs=1)
        said, errors = capfd.readouterr()
        assert '1 case(s), first a, can be predicted only by a model whose plans.json says "image_reader_w' in said
        assert errors == ""
        assert len(list((tmp_path / converter.__name__).iterdir())) == 2


# Names, and what ITK and nibabel print


def test_scans_to_predict_may_be_folders_with_the_volume_in_them(tmp_path, refused):
    for number, modality in enumerate(("t1n", "t1c", "t2w", "t2f")):
        write(tmp_path / "own" / "deep" / f"a-{modality}.nii" / f"0000005{number}_brain.nii", BRIGHTNESS)
    brats.convert_images(tmp_path / "own", tmp_path / "out", jobs=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"a_000{n}.nii.gz" for n in range(4)]
    for converter in (acdc, hippocampus):
        converter.convert_images(tmp_path / "own", tmp_path / converter.__name__, jobs=1)
        written = sorted(path.name for path in (tmp_path / converter.__name__).iterdir())
        assert written == [f"a-{modality}_0000.nii.gz" for modality in ("t1c", "t1n", "t2f", "t2w")]
    write(tmp_path / "own" / "deep" / "a-t1n.nii" / "again.nii", BRIGHTNESS)
    for converter in (brats, acdc, hippocampus):
        assert converter.main(["--images-only", str(tmp_path / "own"), str(tmp_path / "late"), "-np", "1"]) == 2


def test_a_decathlon_source_may_hold_folders_with_the_volume_in_them(tmp_path):
    source = decathlon(tmp_path / "source", ({}, {}))
    for path in sorted(source.rglob("*_001.nii.gz")):
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        (path / "volume.nii.gz").write_bytes(content)
    assert_masks_lie_on_their_images(converted(source, tmp_path))


def test_a_name_that_itk_cannot_read_by_is_to_be_changed(tmp_path, refused):
    source = decathlon(tmp_path / "source", ({}, {}))
    image, mask = (source / part / "hippocampus_001.nii.gz" for part in ("imagesTr", "labelsTr"))
    for name in ("hippocampus_001.Nii.Gz", "hippocampus_001.NII.gz", "hippocampus_001.nii.GZ"):
        moved = image.rename(image.with_name(name))
        refused(source, f"{name} ends in {name[15:]}, which ITK does not read; rename it to hippocampus_001.nii.gz.")
        moved.rename(image)
    plain = mask.with_name("hippocampus_001.nii")
    mask.rename(plain)
    refused(source, "hippocampus_001.nii is compressed; rename it to hippocampus_001.nii.gz.")
    mask.write_bytes(gzip.decompress(plain.read_bytes()))
    plain.unlink()
    refused(source, "is not compressed, unlike its name says; rename it to hippocampus_001.nii.")


def test_scales_that_itk_warns_of_are_told_once_in_our_words(tmp_path, capfd):
    """As in ACDC: pixdim has the voxel size, sform only the directions."""
    source = phantoms.write_acdc(tmp_path / "source", 5, num_test_patients=1, shape=(16, 16, 3)).parents[0]
    for path in sorted((tmp_path / "source").rglob("patient*_frame*.nii.gz")):
        image = nibabel.load(path)
        header = image.header.copy()
        header.set_sform(np.diag([-1, -1, 1, 1]), 1)
        nibabel.Nifti1Image(np.asarray(image.dataobj), None, header).to_filename(path)
    sitk.ReadImage(str(path))
    assert "unexpected scales in sform" in capfd.readouterr().err
    for jobs in (1, 2):
        dataset = acdc.convert(source, tmp_path / str(jobs), tmp_path / "pre", overwrite=True, jobs=jobs)
        said, errors = capfd.readouterr()
        assert errors == ""
        assert said.count("(qform, sform) differ") == 1
        assert "12 case(s), first patient001_frame01.nii.gz of case patient001_frame01" in said
    assert sitk.ProcessObject.GetGlobalWarningDisplay()
    spacing = sitk.ReadImage(str(next((dataset / "labelsTr").iterdir()))).GetSpacing()
    assert spacing == pytest.approx(ACDC_SPACING_MM)


def test_headers_that_nibabel_mends_print_nothing(tmp_path, capfd):
    place = PLACES["negative pixdim"]
    converted(decathlon(tmp_path / "source", ({"fields": place}, {"fields": place})), tmp_path)
    assert capfd.readouterr().err == ""


def test_a_plain_source_has_no_notes(tmp_path):
    dataset = converted(decathlon(tmp_path / "source", ({}, {})), tmp_path)
    assert said_of(dataset) == []
    assert json.loads((dataset / "dataset.json").read_text())["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert volumes.Volumes(hippocampus.DESCRIPTION).reader_writer == "SimpleITKIO"
    assert Path(dataset).name == "Dataset004_Hippocampus"
