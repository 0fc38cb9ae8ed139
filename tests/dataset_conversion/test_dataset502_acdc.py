"""The ACDC converter on generated hearts: phases from Info.cfg, whole patients in folds, names for the submission."""

import gzip
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion import Dataset502_ACDC as acdc
from dataset_conversion import phantoms
from dataset_conversion.core import reporting, splitting
from dataset_conversion.core.cases import ConversionError

MODULE = "dataset_conversion.Dataset502_ACDC"
NAME = "Dataset502_ACDC"
SMALL = (24, 20, 3)


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("acdc") / "download"
    phantoms.write_acdc(folder, 5, num_test_patients=2, shape=SMALL)
    return folder


def test_both_phases_become_cases_whichever_frames_they_are(source, tmp_path):
    target = acdc.convert(source, tmp_path / "raw", tmp_path / "preprocessed")
    assert target == tmp_path / "raw" / NAME
    assert names(target / "labelsTr")[:4] == [
        "patient001_frame01.nii.gz",
        "patient001_frame09.nii.gz",
        "patient002_frame03.nii.gz",
        "patient002_frame11.nii.gz",
    ]
    assert len(names(target / "imagesTr")) == 10
    assert names(target / "imagesTs") == [name.replace(".nii", "_0000.nii") for name in names(target / "labelsTs")]
    cases = json.loads((target / reporting.REPORT).read_text())["cases"]
    assert cases["patient002_frame11"]["phase"] == "ED"
    assert cases["patient001_frame01"]["phase"] == "ED"


def test_images_and_masks_keep_their_bytes_since_nothing_needs_to_change(source, tmp_path):
    target = acdc.convert(source, tmp_path / "raw", tmp_path / "preprocessed")
    folder = source / "database" / "training" / "patient003"
    name = "patient003_frame09"
    assert (target / "imagesTr" / f"{name}_0000.nii.gz").read_bytes() == (folder / f"{name}.nii.gz").read_bytes()
    assert (target / "labelsTr" / f"{name}.nii.gz").read_bytes() == (folder / f"{name}_gt.nii.gz").read_bytes()


def test_a_mask_of_another_type_is_written_anew_with_the_same_labels(tmp_path):
    folder = phantoms.write_acdc(tmp_path / "source", 2, shape=SMALL) / "training" / "patient001"
    path = str(folder / "patient001_frame01_gt.nii.gz")
    before = sitk.ReadImage(path)
    sitk.WriteImage(sitk.Cast(before, sitk.sitkFloat32), path)
    target = acdc.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed", protocol="crossval")
    after = sitk.ReadImage(str(target / "labelsTr" / "patient001_frame01.nii.gz"))
    assert after.GetPixelID() == sitk.sitkUInt8
    assert (sitk.GetArrayFromImage(after) == sitk.GetArrayFromImage(before)).all()
    assert after.GetSpacing() == before.GetSpacing() == (1.5, 1.5, 10.0)


def test_folds_hold_whole_patients_and_every_diagnosis(tmp_path):
    phantoms.write_acdc(tmp_path / "source", 25, shape=(16, 16, 2))
    acdc.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed", protocol="crossval")
    splits = json.loads((tmp_path / "preprocessed" / NAME / "splits_final.json").read_text())
    cases = json.loads((tmp_path / "raw" / NAME / reporting.REPORT).read_text())["cases"]
    assert len(splits) == 5
    for fold in splits:
        train, val = ({case[:10] for case in fold[side]} for side in ("train", "val"))
        assert not train & val
        assert Counter(cases[case]["stratum"] for case in fold["val"]) == dict.fromkeys(acdc.GROUPS, 2)


def test_a_hundred_patients_give_five_folds_of_twenty():
    cases = {f"patient{number:03d}_frame{frame:02d}": number for number in range(1, 101) for frame in (1, 12)}
    splits = splitting.make_splits(cases, lambda case: case[:10], lambda case: acdc.GROUPS[cases[case] % 5])
    assert [len({case[:10] for case in fold["val"]}) for fold in splits] == [20] * 5


def test_protocols_choose_what_is_held_out(tmp_path):
    phantoms.write_acdc(tmp_path / "source", 40, num_test_patients=1, shape=(16, 16, 2))
    counts, folds = {}, {}
    for number, protocol in enumerate(acdc.PROTOCOLS, 502):
        target = acdc.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "pre", number, protocol=protocol)
        counts[protocol] = [
            len(names(target / part)) if (target / part).is_dir() else 0 for part in ("labelsTr", "labelsTs")
        ]
        splits = json.loads((tmp_path / "pre" / target.name / "splits_final.json").read_text())
        folds[protocol] = [len(fold["val"]) for fold in splits]
    assert counts == {"official": [80, 2], "paper": [80, 2], "crossval": [80, 0], "70-10-20": [60, 20]}
    assert folds == {"official": [16] * 5, "paper": [16] * 5, "crossval": [16] * 5, "70-10-20": [10]}


def test_older_copies_without_test_masks_give_images_only(tmp_path, capsys):
    phantoms.write_acdc(tmp_path / "source", 2, num_test_patients=2, test_masks=False, shape=SMALL)
    target = acdc.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed")
    assert len(names(target / "imagesTs")) == 4
    assert not (target / "labelsTs").exists()
    assert "the test patients have no masks in this copy: images only" in capsys.readouterr().out


def test_two_runs_give_identical_bytes_on_one_or_two_cores(source, tmp_path, fingerprint):
    for jobs in (1, 2):
        acdc.convert(source, tmp_path / str(jobs) / "raw", tmp_path / str(jobs) / "preprocessed", jobs=jobs)
    assert len(fingerprint(tmp_path / "1")) == 2 * 14 + 3
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2")


def test_restored_predictions_have_the_names_of_the_submission(source, tmp_path, run_module, nnunet_variables):
    assert run_module(MODULE, source, "--jobs", 1, environment=nnunet_variables).returncode == 0
    target = tmp_path / "nnUNet_raw" / NAME
    predictions = target / "labelsTs"
    done = run_module(MODULE, "--restore", predictions, tmp_path / "submit", environment=nnunet_variables)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "submit") == [
        f"patient{number}_{phase}.nii.gz" for number in (101, 102) for phase in ("ED", "ES")
    ]
    folder = source / "database" / "testing" / "patient101"
    assert "ED: 11" in (folder / "Info.cfg").read_text()
    restored = voxels(tmp_path / "submit" / "patient101_ED.nii.gz")
    assert restored.dtype == np.uint8
    assert (restored == voxels(folder / "patient101_frame11_gt.nii.gz")).all()

    unset = run_module(MODULE, "--restore", predictions, tmp_path / "again")
    assert (unset.returncode, unset.stderr.count("\n")) == (2, 1)
    assert "nnUNet_raw is not set" in unset.stderr


def test_a_prediction_of_no_known_case_is_refused_and_of_an_own_scan_keeps_its_name(source, tmp_path):
    target = acdc.convert(source, tmp_path / "raw", tmp_path / "preprocessed")
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    mask = (target / "labelsTr" / "patient001_frame01.nii.gz").read_bytes()
    (predictions / "my_heart.nii.gz").write_bytes(mask)
    acdc.restore(predictions, tmp_path / "submit", tmp_path / "raw")
    assert names(tmp_path / "submit") == ["my_heart.nii.gz"]
    (predictions / "patient149_frame01.nii.gz").write_bytes(mask)
    with pytest.raises(ConversionError, match=r"patient149_frame01\.nii\.gz belongs to no case"):
        acdc.restore(predictions, tmp_path / "again", tmp_path / "raw")


def test_restoring_test_patients_needs_a_conversion_that_has_them(source, tmp_path, capsys):
    acdc.convert(source, tmp_path / "raw", tmp_path / "pre", protocol="crossval")
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    mask = tmp_path / "raw" / NAME / "labelsTr" / "patient001_frame01.nii.gz"
    (predictions / "patient101_frame03.nii.gz").write_bytes(mask.read_bytes())
    with pytest.raises(ConversionError, match="patient101_frame03.* name with -d a conversion .* --protocol official"):
        acdc.restore(predictions, tmp_path / "submit", tmp_path / "raw")
    with pytest.raises(SystemExit):
        acdc.main(["--help"])
    assert "with the -d of the conversion" in " ".join(capsys.readouterr().out.split())


def test_a_byte_order_mark_in_the_info_is_no_part_of_the_first_key(source):
    path = source / "database" / "training" / "patient001" / "Info.cfg"
    before = path.read_bytes()
    assert before.startswith(b"ED:")
    try:
        path.write_bytes(b"\xef\xbb\xbf" + before)
        assert acdc.read_info(path)["ED"] == "1"
    finally:
        path.write_bytes(before)


def test_only_a_folder_with_a_heart_in_it_must_be_named_as_a_patient(source, tmp_path):
    root = tmp_path / "patients"
    shutil.copytree(source, root / "patients_of_2017")
    (root / "patient_lists").mkdir()
    assert len(acdc.find_cases(root).training) == 10
    shutil.copy(source / "database" / "training" / "patient001" / "Info.cfg", root / "patient_lists")
    with pytest.raises(ConversionError, match="patient_lists is not named"):
        acdc.find_cases(root)


def test_images_only_takes_stacks_but_no_masks_and_no_series(source, tmp_path):
    acdc.convert_images(source / "database" / "testing", tmp_path / "scans")
    assert names(tmp_path / "scans") == [
        f"patient{number}_frame{frame}_0000.nii.gz"
        for number, frame in ((101, "03"), (101, 11), (102, "01"), (102, "09"))
    ]


def test_endings_in_capitals_are_no_reason_to_lose_a_scan(source, tmp_path, fingerprint):
    loud = tmp_path / "loud"
    shutil.copytree(source, loud)
    plain = gzip.decompress(next(loud.rglob("patient101_frame03.nii.gz")).read_bytes())
    for path in list(loud.rglob("*.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    for root, folder in (("quiet", source), ("loud", loud)):
        acdc.convert(folder, tmp_path / f"{root}_raw", tmp_path / f"{root}_preprocessed")
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        assert fingerprint(tmp_path / "loud_raw" / NAME / part) == fingerprint(tmp_path / "quiet_raw" / NAME / part)
    scan = next(loud.rglob("patient101_frame03.NII.GZ"))
    scan.with_name("patient101_frame03.NII").write_bytes(plain)
    scan.unlink()
    acdc.convert_images(loud / "database" / "testing", tmp_path / "scans")
    assert len(names(tmp_path / "scans")) == 4
    assert gzip.decompress((tmp_path / "scans" / "patient101_frame03_0000.nii.gz").read_bytes()) == plain


def test_the_citation_is_printed_and_saved(source, tmp_path, capsys):
    target = acdc.convert(source, tmp_path / "raw", tmp_path / "preprocessed")
    said = capsys.readouterr().out
    assert "doi:10.1109/TMI.2018.2837502" in said
    assert "make the citation compulsory" in said
    assert "2018.2837502" in json.loads((target / reporting.REPORT).read_text())["citation"]
