"""The BraTS 2020 converter on generated sources, its traps, and nnU-Net's own verdict on the result."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion import Dataset501_BraTS2020 as brats
from dataset_conversion import phantoms
from dataset_conversion.core import reporting, splitting
from dataset_conversion.core.cases import Case, ConversionError

MODULE = "dataset_conversion.Dataset501_BraTS2020"
SMALL = (24, 24, 20)
NAME = "Dataset501_BraTS2020"
write = phantoms.write_brats2020


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brats") / "download"
    write(folder, 6, shape=SMALL)
    return folder


def test_images_keep_their_bytes_and_channels_their_order(source, tmp_path):
    target = brats.convert(source, tmp_path / "raw")
    assert target == tmp_path / "raw" / NAME
    assert len(list((target / "imagesTr").iterdir())) == 24
    case = next(path for path in sorted(source.rglob("BraTS20_Training_*")) if path.is_dir())
    for channel, modality in enumerate(("t1", "t1ce", "t2", "flair")):
        converted = target / "imagesTr" / f"{case.name}_{channel:04d}.nii.gz"
        assert converted.read_bytes() == (case / f"{case.name}_{modality}.nii.gz").read_bytes()


def test_labels_survive_the_round_trip(source, tmp_path):
    target = brats.convert(source, tmp_path / "raw")
    masks = sorted(source.rglob("*_seg.nii.gz"))
    assert len(masks) == 6
    for path in masks:
        theirs = voxels(path)
        ours = voxels(target / "labelsTr" / path.name.replace("_seg", ""))
        assert ours.dtype == np.uint8
        assert ((ours == 1) == (theirs == 2)).all()
        assert ((ours == 2) == (theirs == 1)).all()
        assert ((ours == 3) == (theirs == 4)).all()
        assert (brats.restore_labels(ours) == theirs).all()
    with pytest.raises(ValueError, match="4"):
        brats.restore_labels(np.array([4]))


def test_dataset_json_declares_the_regions_in_painting_order(source, tmp_path):
    description = json.loads((brats.convert(source, tmp_path / "raw") / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    assert description["labels"] == {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
    }
    assert description["regions_class_order"] == [1, 2, 3]
    assert description["numTraining"] == 6
    assert description["file_ending"] == ".nii.gz"


def test_two_runs_give_identical_bytes_on_one_or_two_cores(source, tmp_path, fingerprint):
    folders = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        brats.convert(source, folder / "raw", folder / "preprocessed", jobs=jobs)
        folders.append(folder)
    assert len(fingerprint(folders[0])) == 6 * 5 + 3
    assert fingerprint(folders[0]) == fingerprint(folders[1])


def test_source_is_not_touched(source, tmp_path, fingerprint):
    before = fingerprint(source)
    brats.convert(source, tmp_path / "raw")
    assert fingerprint(source) == before


def test_five_folds_are_written_where_nnunet_reads_them(source, tmp_path):
    brats.convert(source, tmp_path / "raw", tmp_path / "preprocessed")
    splits = json.loads((tmp_path / "preprocessed" / NAME / "splits_final.json").read_text())
    cases = [f"BraTS20_Training_{number:03d}" for number in range(1, 7)]
    assert len(splits) == 5
    assert sorted(case for fold in splits for case in fold["val"]) == cases
    assert all(not set(fold["train"]) & set(fold["val"]) for fold in splits)


def test_fewer_cases_give_fewer_folds(tmp_path):
    write(tmp_path / "source", 3, shape=SMALL)
    brats.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed")
    assert len(json.loads((tmp_path / "preprocessed" / NAME / "splits_final.json").read_text())) == 3


def test_uncompressed_copy_gives_the_same_voxels(tmp_path):
    write(tmp_path / "packed", 2, shape=SMALL)
    write(tmp_path / "plain", 2, shape=SMALL, file_ending=".nii")
    packed = brats.convert(tmp_path / "packed", tmp_path / "raw1")
    plain = brats.convert(tmp_path / "plain", tmp_path / "raw2")
    files = sorted(path.relative_to(packed) for path in packed.rglob("*.nii.gz"))
    assert len(files) == 10
    for path in files:
        assert (voxels(packed / path) == voxels(plain / path)).all()


def test_a_mask_stored_as_float_becomes_uint8(tmp_path):
    write(tmp_path / "source", 2, shape=SMALL, traps={2: "float_mask"})
    assert voxels(next((tmp_path / "source").rglob("*002_seg.nii.gz"))).dtype == np.float32
    target = brats.convert(tmp_path / "source", tmp_path / "raw")
    mask = voxels(target / "labelsTr" / "BraTS20_Training_002.nii.gz")
    assert mask.dtype == np.uint8
    assert np.unique(mask).tolist() == [0, 1, 2, 3]


def test_a_case_without_enhancing_tumour_is_welcome(tmp_path):
    write(tmp_path / "source", 2, shape=SMALL, traps={2: "no_enhancing_tumour"})
    target = brats.convert(tmp_path / "source", tmp_path / "raw")
    assert np.unique(voxels(target / "labelsTr" / "BraTS20_Training_002.nii.gz")).tolist() == [0, 1, 2]


def test_the_odd_mask_name_is_accepted_for_case_355(tmp_path, capsys):
    write(tmp_path / "source", 2, shape=SMALL, file_ending=".nii", first_number=354, traps={355: "odd_mask_name"})
    odd = next((tmp_path / "source").rglob("W39_1998.09.19_Segm.nii"))
    target = brats.convert(tmp_path / "source", tmp_path / "raw")
    assert (brats.restore_labels(voxels(target / "labelsTr" / "BraTS20_Training_355.nii.gz")) == voxels(odd)).all()
    assert "BraTS20_Training_355: mask taken from W39_1998.09.19_Segm.nii" in capsys.readouterr().out


def test_the_odd_mask_name_is_refused_if_it_is_not_the_only_candidate(tmp_path):
    cases = write(tmp_path / "source", 2, shape=SMALL, first_number=354, traps={355: "odd_mask_name"})
    folder = cases / "BraTS20_Training_355"
    shutil.copy(folder / "W39_1998.09.19_Segm.nii", folder / "another.nii")
    with pytest.raises(ConversionError, match="BraTS20_Training_355 has no mask"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


def test_cases_are_found_however_deep_and_beside_other_folders(tmp_path, capsys):
    deep = tmp_path / "source" / "archive" / "BraTS2020_TrainingData"
    write(deep, 2, shape=SMALL)
    write(tmp_path / "source" / "validation", 1, shape=SMALL, labelled=False)
    (tmp_path / "source" / "Brats18_CBICA_AAB_1").mkdir()
    target = brats.convert(tmp_path / "source", tmp_path / "raw")
    assert len(list((target / "labelsTr").iterdir())) == 2
    said = capsys.readouterr().out
    assert "skipped 1: a case of BraTS 2017 to 2019: Brats18_CBICA_AAB_1" in said
    assert "1 unlabelled case(s) of this release" in said


BAD_CASES = [
    ("illegal_label", "_seg.nii.gz", "label 3"),
    ("fractional_mask", "_seg.nii.gz", "3.5"),
    ("missing_modality", "_t2.nii.gz", "lacks"),
    ("shifted_origin", "_t2.nii.gz", "origin"),
    ("other_shape", "_t2.nii.gz", "size"),
    ("truncated_file", "_t2.nii.gz", "cannot be read (Compressed file ended"),
    ("odd_mask_name", "_seg.nii.gz", "no mask"),
]


@pytest.mark.parametrize(("trap", "file", "what"), BAD_CASES, ids=[bad[0] for bad in BAD_CASES])
def test_a_bad_case_is_one_sentence_naming_case_and_file_and_writes_nothing(
    tmp_path, capfd, monkeypatch, trap, file, what
):
    write(tmp_path / "source", 3, shape=SMALL, traps={2: trap})
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert brats.main([str(tmp_path / "source"), "-np", "1"]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: Case BraTS20_Training_002")
    assert errors.count("\n") == 1
    assert f"BraTS20_Training_002{file}" in errors
    assert what in errors
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_all_bad_cases_are_named_at_once(tmp_path):
    write(tmp_path / "source", 4, shape=SMALL, traps={1: "illegal_label", 3: "shifted_origin"})
    with pytest.raises(ConversionError, match=r"BraTS20_Training_001: .*1 more case.*BraTS20_Training_003"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


def test_not_a_number_in_an_image_is_refused(tmp_path):
    cases = write(tmp_path / "source", 2, shape=SMALL)
    path = cases / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz"
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
    image[3, 3, 3] = float("nan")
    sitk.WriteImage(image, str(path))
    with pytest.raises(ConversionError, match=r"BraTS20_Training_001_t1\.nii\.gz holds NaN"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


def test_a_case_given_twice_is_refused(tmp_path):
    write(tmp_path / "source" / "a", 2, shape=SMALL)
    write(tmp_path / "source" / "b", 1, shape=SMALL)
    with pytest.raises(ConversionError, match="BraTS20_Training_001 lies both in"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


def test_a_modality_given_twice_is_refused(tmp_path):
    cases = write(tmp_path / "source", 2, shape=SMALL)
    (cases / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"both BraTS20_Training_001_t1\.nii and"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


def test_validation_cases_are_told_by_their_folder_even_from_inside_it(tmp_path, monkeypatch):
    write(tmp_path / "source", 2, shape=SMALL, release="2021", labelled=False)
    monkeypatch.chdir(tmp_path / "source" / "BraTS2021_Validation_Data")
    with pytest.raises(ConversionError, match=r"only 2 unlabelled of BraTS 2021\."):
        brats.find_cases(".")


def test_a_source_may_be_a_link_and_the_report_does_not_tell(source, tmp_path, fingerprint):
    (tmp_path / "link").symlink_to(source)
    brats.convert(source, tmp_path / "plain")
    brats.convert(tmp_path / "link", tmp_path / "linked")
    assert fingerprint(tmp_path / "linked") == fingerprint(tmp_path / "plain")


def test_a_validation_scan_of_a_training_patient_is_refused(tmp_path):
    """Time points of one patient on both sides, as the names of 2023 allow."""
    write(tmp_path / "source" / "training", 3, shape=SMALL, release="2023-GLI")
    write(tmp_path / "source" / "validation", 1, shape=SMALL, release="2023-GLI", labelled=False, first_number=4)
    with pytest.raises(ConversionError, match=r"Group BraTS-GLI-00002 .* BraTS-GLI-00002-000 .* BraTS-GLI-00002-001; "):
        brats.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "pre", protocol="official")
    assert not (tmp_path / "raw").exists()
    shutil.rmtree(tmp_path / "source" / "validation")
    write(tmp_path / "source" / "validation", 2, shape=SMALL, release="2023-GLI", labelled=False, first_number=5)
    target = brats.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "pre", protocol="official")
    cases = json.loads((target / reporting.REPORT).read_text())["cases"].values()
    training, testing = ({case["group"] for case in cases if case["part"] == part} for part in ("Tr", "Ts"))
    assert (training, testing) == ({"BraTS-GLI-00001", "BraTS-GLI-00002"}, {"BraTS-GLI-00003"})


def test_a_release_that_is_not_converted_is_named(tmp_path):
    (tmp_path / "source" / "Brats18_CBICA_AAB_1").mkdir(parents=True)
    with pytest.raises(ConversionError, match="only 1 of BraTS 2017 to 2019"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


OTHER_RELEASES = [
    ("2017", "BraTS2017", 4),
    ("2018", "BraTS2018", 4),
    ("2019", "BraTS2019", 4),
    ("2021", "BraTS2021", 4),
    ("2023-GLI", "BraTS2023GLI", 3),
    ("2023-SSA", "BraTS2023SSA", 3),
]


@pytest.mark.parametrize(("release", "name", "enhancing"), OTHER_RELEASES, ids=[row[0] for row in OTHER_RELEASES])
def test_other_releases_are_told_by_their_names_and_keep_the_meaning_of_labels(tmp_path, release, name, enhancing):
    write(tmp_path / "source", 4, shape=SMALL, release=release)
    target = brats.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed")
    assert target.name == f"Dataset501_{name}"
    assert json.loads((target / "dataset.json").read_text())["release"] == release
    masks = sorted((tmp_path / "source").rglob("*seg.nii.gz"))
    assert len(masks) == 4
    for path in masks:
        theirs, ours = voxels(path), voxels(target / "labelsTr" / path.name.replace("_seg", "").replace("-seg", ""))
        for before, after in ((0, 0), (2, 1), (1, 2), (enhancing, 3)):
            assert ((theirs == before) == (ours == after)).all()


STRANGERS = {
    "BraTS-PED-00001-000": r"1 of BraTS-PED \(tumours of children\)",
    "BraTS-MEN-00004-000": r"1 of BraTS-MEN \(meningioma\)",
    "BraTS-MEN-RT-0001-1": r"1 of BraTS-MEN-RT \(meningioma before radiotherapy\)",
    "brats-met-00086-000": r"1 of BraTS-MET \(metastases\)",
    "BRATS-MET-00086-000-1": r"1 of BraTS-MET \(metastases\)",
    "BraTS-GoAT-00001": r"1 of BraTS-GOAT",
    "BraTS-XYZ-00001-000": "1 of BraTS-XYZ",
    "BraTS-GLI-00005-100": r"1 of BraTS-GLI of 2024 \(after treatment, where 4 is the resection cavity\)",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_task_whose_labels_mean_something_else_is_named_and_never_converted(tmp_path, name, capsys):
    folder = tmp_path / "source" / "archive" / name
    folder.mkdir(parents=True)
    for suffix in ("t1n", "t1c", "t2w", "t2f", "seg"):
        (folder / f"{name}-{suffix}.nii.gz").touch()
    with pytest.raises(ConversionError, match=rf"only {STRANGERS[name]}.*{name}; this task is not converted"):
        brats.convert(tmp_path / "source", tmp_path / "raw")
    write(tmp_path / "source" / "more", 3, shape=SMALL, release="2023-GLI")
    brats.convert(tmp_path / "source", tmp_path / "raw")
    said = capsys.readouterr().out
    assert "3 labelled case(s)" in said
    assert f"skipped 1: a case of BraTS-{name.split('-')[1].upper()}" in said


@pytest.mark.parametrize("name", ["brats19_2013_0_1_", "Brats18 CBICA", "brats-ssa-00001-000", "BraTS-GLI-1-000"])
def test_a_case_that_is_almost_named_as_its_owner_names_it_is_to_be_renamed(tmp_path, name):
    write(tmp_path / "source", 2, shape=SMALL)
    (tmp_path / "source" / name).mkdir()
    (tmp_path / "source" / name / "t1.nii").touch()
    with pytest.raises(ConversionError, match=rf"{name} is not named as the data owner names them .*; rename it"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


def test_grades_and_validation_cases_of_the_early_releases_are_told_apart(tmp_path):
    for grade, number in (("HGG", 1), ("LGG", 5)):
        cases = write(tmp_path / grade, 2, shape=SMALL, release="2019", first_number=number)
        shutil.copytree(cases, tmp_path / "source" / "MICCAI_BraTS_2019_Data_Training" / grade)
    write(tmp_path / "source" / "v", 2, shape=SMALL, release="2019", first_number=8, labelled=False)
    found = brats.find_cases(tmp_path / "source")
    assert [len(found.labelled), len(found.unlabelled)] == [4, 2]
    assert {case.group for case in found.labelled} == {f"BraTS19_CBICA_{number:03d}" for number in (1, 2, 5, 6)}
    (tmp_path / "source" / "BraTS19_CBICA_009_1").mkdir()
    with pytest.raises(ConversionError, match="Case BraTS19_CBICA_009_1 lies both in|BraTS19_CBICA_009_1 lacks"):
        brats.find_cases(tmp_path / "source")


def test_time_points_of_one_patient_stay_on_one_side(tmp_path):
    write(tmp_path / "source", 9, shape=SMALL, release="2023-GLI")
    brats.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed")
    splits = json.loads((tmp_path / "preprocessed" / "Dataset501_BraTS2023GLI" / "splits_final.json").read_text())
    assert sorted(len(fold["val"]) for fold in splits) == [1, 2, 2, 2, 2]
    for fold in splits:
        train, val = ({case.rpartition("-")[0] for case in fold[side]} for side in ("train", "val"))
        assert not train & val


@pytest.mark.parametrize(
    ("release", "file", "what"),
    [("2021", "BraTS2021_00002_seg.nii.gz", "label 3"), ("2023-GLI", "BraTS-GLI-00001-001-seg.nii.gz", "label 4")],
)
def test_labels_of_another_release_are_a_conflict(tmp_path, release, file, what):
    write(tmp_path / "source", 3, shape=SMALL, release=release, traps={2: "illegal_label"})
    with pytest.raises(ConversionError, match=rf"{file} holds {what}, .*BraTS 202"):
        brats.convert(tmp_path / "source", tmp_path / "raw")


def test_two_releases_in_one_source_need_a_choice(tmp_path):
    write(tmp_path / "source" / "a", 2, shape=SMALL)
    write(tmp_path / "source" / "b", 2, shape=SMALL, release="2021")
    with pytest.raises(ConversionError, match=r"2020 and 2021 .*--release"):
        brats.convert(tmp_path / "source", tmp_path / "raw")
    assert brats.convert(tmp_path / "source", tmp_path / "raw", release="2021").name == "Dataset501_BraTS2021"
    with pytest.raises(ConversionError, match="No folder of a labelled case of BraTS 2023-GLI"):
        brats.convert(tmp_path / "source", tmp_path / "raw", release="2023-GLI")


def test_the_paper_holds_out_236_59_and_74_of_369_cases():
    cases = [Case(f"BraTS20_Training_{number:03d}", ()) for number in range(1, 370)]
    rest, held_out = brats.paper_split(cases)
    assert len(held_out) == 74
    folds = splitting.make_splits([case.name for case in rest])
    assert {(len(fold["train"]), len(fold["val"])) for fold in folds} == {(236, 59)}
    assert not {case.name for case in rest} & {case.name for case in held_out}


def test_protocols_choose_what_is_held_out(tmp_path):
    write(tmp_path / "source" / "training", 6, shape=SMALL)
    with pytest.raises(ConversionError, match="Protocol official tests on unlabelled validation cases"):
        brats.convert(tmp_path / "source", tmp_path / "raw", protocol="official")
    write(tmp_path / "source" / "validation", 2, shape=SMALL, labelled=False)
    counts = {}
    for number, protocol in ((501, "crossval"), (502, "paper"), (503, "official")):
        target = brats.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "pre", number, protocol=protocol)
        counts[protocol] = [
            len(list((target / part).iterdir())) if (target / part).is_dir() else 0
            for part in ("labelsTr", "imagesTs", "labelsTs")
        ]
        report = json.loads((target / reporting.REPORT).read_text())
        assert report["protocol"] == protocol
        assert set(report["cases"]) >= {f"BraTS20_Training_{number:03d}" for number in range(1, 7)}
    assert counts == {"crossval": [6, 0, 0], "paper": [4, 8, 2], "official": [6, 8, 0]}


def test_the_report_tells_counts_labels_gaps_and_what_was_skipped(tmp_path, capsys):
    cases = write(tmp_path / "source", 3, shape=SMALL, traps={2: "no_enhancing_tumour"})
    (cases / "BraTS20_Training_001" / "extra.nii.gz").write_bytes(b"")
    target = brats.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed")
    report = json.loads((target / reporting.REPORT).read_text())
    assert report["training_cases"] == 3
    assert report["cases_without"] == {
        "whole tumor": [],
        "tumor core": [],
        "enhancing tumor": ["BraTS20_Training_002"],
    }
    label = report["labels"]["3"]
    assert label["source"] == 4
    assert label["training_voxels"] == sum((voxels(path) == 3).sum() for path in (target / "labelsTr").iterdir())
    assert report["skipped"] == [
        {
            "path": "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/extra.nii.gz",
            "reason": "neither a modality nor the mask of its case",
        }
    ]
    assert report["notes"] == ["this copy has 3 of 369 labelled cases"]
    said = capsys.readouterr().out
    assert "without enhancing tumor: 1 case(s), BraTS20_Training_002" in said
    assert f"cite: {report['citation']}" in said
    assert f"licence: {report['licence']}" in said
    assert str(tmp_path) not in (target / reporting.REPORT).read_text()


@pytest.mark.parametrize("release", brats.RELEASES)
def test_restored_predictions_are_the_masks_of_the_source(tmp_path, release):
    write(tmp_path / "source", 3, shape=SMALL, release=release)
    target = brats.convert(tmp_path / "source", tmp_path / "raw")
    (target / "labelsTr" / "dataset.json").write_text("{}")  # as nnU-Net leaves it among predictions
    brats.restore(target / "labelsTr", tmp_path / "submit")
    masks = sorted((tmp_path / "source").rglob("*seg.nii.gz"))
    assert len(masks) == len(list((tmp_path / "submit").iterdir())) == 3
    for path in masks:
        restored = tmp_path / "submit" / path.name.replace("_seg", "").replace("-seg", "")
        assert voxels(restored).dtype == np.uint8
        assert (voxels(restored) == voxels(path)).all()
        assert sitk.ReadImage(str(restored)).GetOrigin() == sitk.ReadImage(str(path)).GetOrigin()
    with pytest.raises(ConversionError, match=r"submit/\S+\.nii\.gz is restored already; name the folder of"):
        brats.restore(tmp_path / "submit", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_owners_masks_are_no_predictions(source, tmp_path):
    (tmp_path / "masks").mkdir()
    for path in source.rglob("*_seg.nii.gz"):
        shutil.copy(path, tmp_path / "masks" / path.name.replace("_seg", ""))
    said = r"label 4, but a prediction of BraTS2020 has only 0, 1, 2, 3 \(it looks restored already\)"
    with pytest.raises(ConversionError, match=said):
        brats.restore(tmp_path / "masks", tmp_path / "submit")


def test_predictions_of_own_scans_need_the_release(source, tmp_path, run_module):
    target = brats.convert(source, tmp_path / "raw")
    shutil.move(target / "labelsTr" / "BraTS20_Training_001.nii.gz", target / "labelsTr" / "mine.nii.gz")
    refused = run_module(MODULE, "--restore", target / "labelsTr", tmp_path / "submit")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "mine.nii.gz tells no release; name one with --release" in refused.stderr
    assert not (tmp_path / "submit").exists()
    done = run_module(MODULE, "--restore", target / "labelsTr", tmp_path / "submit", "--release", "2023-GLI")
    assert done.returncode == 0, done.stderr
    assert np.unique(voxels(tmp_path / "submit" / "mine.nii.gz")).tolist() == [0, 1, 2, 3]


def test_the_command_refuses_in_one_sentence_what_it_cannot_do(
    source, tmp_path, run_module, nnunet_variables, fingerprint
):
    unset = run_module(MODULE, source)
    assert (unset.returncode, unset.stderr.count("\n")) == (2, 1)
    assert "nnUNet_raw is not set" in unset.stderr

    absent = run_module(MODULE, tmp_path / "nowhere", environment=nnunet_variables)
    assert (absent.returncode, absent.stderr) == (2, f"error: Source {tmp_path / 'nowhere'} does not exist.\n")
    assert list(tmp_path.iterdir()) == []

    assert run_module(MODULE, source, environment=nnunet_variables).returncode == 0
    before = fingerprint(tmp_path)
    full = run_module(MODULE, source, environment=nnunet_variables)
    assert (full.returncode, full.stderr.count("\n")) == (2, 1)
    assert "--overwrite" in full.stderr
    assert fingerprint(tmp_path) == before

    assert run_module(MODULE, source, "--overwrite", environment=nnunet_variables).returncode == 0
    assert fingerprint(tmp_path) == before


def test_a_refused_source_leaves_an_existing_data_set_as_it_was(source, tmp_path, fingerprint):
    brats.convert(source, tmp_path / "raw", tmp_path / "preprocessed")
    write(tmp_path / "bad", 3, shape=SMALL, traps={2: "illegal_label"})
    before = fingerprint(tmp_path)
    with pytest.raises(ConversionError, match="label 3"):
        brats.convert(tmp_path / "bad", tmp_path / "raw", tmp_path / "preprocessed", overwrite=True)
    assert fingerprint(tmp_path) == before


def test_an_id_in_use_and_foreign_splits_are_refused(source, tmp_path):
    (tmp_path / "raw" / "Dataset501_Other").mkdir(parents=True)
    with pytest.raises(ConversionError, match="Id 501 is taken"):
        brats.convert(source, tmp_path / "raw")
    splits = tmp_path / "preprocessed" / "Dataset502_BraTS2020" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text("[]")
    with pytest.raises(ConversionError, match="holds other splits"):
        brats.convert(source, tmp_path / "raw", tmp_path / "preprocessed", 502)
    assert splits.read_text() == "[]"
    assert brats.convert(source, tmp_path / "raw", tmp_path / "preprocessed", 502, overwrite=True).name == (
        "Dataset502_BraTS2020"
    )
    assert len(json.loads(splits.read_text())) == 5


def test_a_source_inside_the_target_is_not_overwritten(tmp_path):
    inside = tmp_path / "raw" / NAME / "source"
    write(inside, 2, shape=SMALL)
    with pytest.raises(ConversionError, match="inside the target"):
        brats.convert(inside, tmp_path / "raw", overwrite=True)
    assert len(list(inside.rglob("*.nii.gz"))) == 10


def test_a_dry_run_checks_and_writes_nothing(source, tmp_path, capsys):
    brats.convert(source, tmp_path / "raw", tmp_path / "preprocessed", dry_run=True)
    assert "source label 4 -> 3" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_images_only_serves_prediction_of_any_scan(tmp_path, run_module, fingerprint):
    validation = write(tmp_path / "validation", 1, shape=SMALL, labelled=False)
    own = tmp_path / "validation" / "own"
    own.mkdir()
    for path in (validation / "BraTS20_Validation_001").iterdir():
        shutil.copy(path, own / path.name.replace("BraTS20_Validation_001", "my_patient"))
    done = run_module(MODULE, tmp_path / "validation", "--images-only", tmp_path / "scans")
    assert done.returncode == 0, done.stderr
    assert brats.main(["--images-only", str(tmp_path / "validation"), str(tmp_path / "same"), "--jobs", "1"]) == 0
    assert fingerprint(tmp_path / "same") == fingerprint(tmp_path / "scans")
    assert sorted(path.name for path in (tmp_path / "scans").iterdir()) == [
        f"{case}_{channel:04d}.nii.gz" for case in ("BraTS20_Validation_001", "my_patient") for channel in range(4)
    ]
    t1ce = own / "my_patient_t1ce.nii.gz"
    for suffix in ("t1", "t2", "flair"):
        (own / f"my_patient_{suffix}.nii.gz").rename(own / f"my_patient_{suffix.upper()}.nii.gz")
    brats.convert_images(tmp_path / "validation", tmp_path / "loud")
    assert fingerprint(tmp_path / "loud") == fingerprint(tmp_path / "scans")
    assert (tmp_path / "scans" / "my_patient_0001.nii.gz").read_bytes() == t1ce.read_bytes()
    t1ce.unlink()
    with pytest.raises(ConversionError, match=r"my_patient lacks my_patient_t1ce\.nii\.gz"):
        brats.convert_images(tmp_path / "validation", tmp_path / "again")
    assert not (tmp_path / "again").exists()
