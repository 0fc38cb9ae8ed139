"""The generated sources: their layout, their determinism, and that they look like what they stand for."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dataset_conversion import phantoms
from dataset_conversion.common import ConversionError

SMALL = (24, 24, 20)


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    return phantoms.write_brats2020(tmp_path_factory.mktemp("brats") / "source", 6)


def test_brats_phantom_has_the_folder_layout_of_the_archive(brats):
    assert brats.name == "MICCAI_BraTS2020_TrainingData"
    folders = sorted(path.name for path in brats.iterdir() if path.is_dir())
    assert folders == [f"BraTS20_Training_{number:03d}" for number in range(1, 7)]
    name = folders[0]
    files = sorted(path.name for path in (brats / name).iterdir())
    assert files == [f"{name}_{suffix}.nii.gz" for suffix in ("flair", "seg", "t1", "t1ce", "t2")]
    with (brats / "name_mapping.csv").open() as file:
        assert [row["BraTS_2020_subject_ID"] for row in csv.DictReader(file)] == folders
    with (brats / "survival_info.csv").open() as file:
        assert [row["Brats20ID"] for row in csv.DictReader(file)] == folders


def test_brats_phantom_is_skull_stripped_millimetre_data_with_nested_regions(brats):
    for folder in sorted(path for path in brats.iterdir() if path.is_dir()):
        mask_image = sitk.ReadImage(str(folder / f"{folder.name}_seg.nii.gz"))
        assert mask_image.GetSpacing() == (1.0, 1.0, 1.0)
        assert max(mask_image.GetSize()) <= phantoms.MAX_EDGE
        mask = sitk.GetArrayFromImage(mask_image)
        assert np.unique(mask).tolist() == [0, 1, 2, 4]
        brains = [voxels(folder / f"{folder.name}_{modality}.nii.gz") > 0 for modality in phantoms.SIGNAL]
        assert all((brain == brains[0]).all() for brain in brains)
        assert 0.2 < brains[0].mean() < 0.8
        assert not (mask > 0)[~brains[0]].any()
        # Nearly every voxel beside the necrosis belongs to the core: the rim closes around it.
        around = ndimage.binary_dilation(mask == 1) & (mask != 1)
        assert np.isin(mask[around], (1, 4)).mean() > 0.7


def test_each_modality_shows_what_it_shows_in_patients(brats):
    for folder in sorted(path for path in brats.iterdir() if path.is_dir()):
        images = {modality: voxels(folder / f"{folder.name}_{modality}.nii.gz") for modality in phantoms.SIGNAL}
        mask = voxels(folder / f"{folder.name}_seg.nii.gz")
        healthy = ndimage.binary_erosion((images["t1"] > 0) & (mask == 0), iterations=2)

        def mean(modality, where, images=images):
            return images[modality][where].mean()

        assert mean("t1ce", mask == 4) > 1.15 * mean("t1ce", healthy), "contrast agent lights up the rim"
        assert mean("t1ce", mask == 4) > 1.3 * mean("t1ce", mask == 1), "necrosis takes up no contrast agent"
        assert mean("flair", mask == 2) > 1.2 * mean("flair", healthy), "oedema is bright in FLAIR"
        assert mean("t2", mask == 2) > 1.1 * mean("t2", healthy), "oedema is bright in T2"
        assert mean("t1", mask == 2) < mean("t1", healthy), "oedema is dark in T1"


def test_one_threshold_does_not_segment_the_phantom(brats):
    dice = []
    for threshold in np.arange(0, 3, 0.1):
        scores = []
        for folder in (path for path in brats.iterdir() if path.is_dir()):
            flair = voxels(folder / f"{folder.name}_flair.nii.gz").astype(float)
            brain = flair > 0
            guess = brain & ((flair - flair[brain].mean()) / flair[brain].std() > threshold)
            truth = voxels(folder / f"{folder.name}_seg.nii.gz") > 0
            scores.append(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
        dice.append(np.mean(scores))
    assert max(dice) < 0.8, f"the best z-score threshold on FLAIR reaches WT Dice {max(dice):.3f}"


def test_tumours_differ_in_place_and_size(brats):
    centres, sizes = [], []
    for folder in (path for path in brats.iterdir() if path.is_dir()):
        mask = voxels(folder / f"{folder.name}_seg.nii.gz") > 0
        centres.append(ndimage.center_of_mass(mask))
        sizes.append(mask.sum())
    assert np.ptp(centres, axis=0).max() > 8
    assert max(sizes) > 1.3 * min(sizes)


def test_equal_arguments_give_identical_bytes(tmp_path, fingerprint):
    first = phantoms.write_brats2020(tmp_path / "first", 2, shape=SMALL)
    again = phantoms.write_brats2020(tmp_path / "again", 2, shape=SMALL)
    other = phantoms.write_brats2020(tmp_path / "other", 2, shape=SMALL, seed=7)
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)


def test_a_case_is_the_same_whichever_run_wrote_it(tmp_path, fingerprint):
    both = phantoms.write_brats2020(tmp_path / "both", 3, shape=SMALL)
    last = phantoms.write_brats2020(tmp_path / "last", 1, shape=SMALL, first_number=3)
    assert fingerprint(both / "BraTS20_Training_003") == fingerprint(last / "BraTS20_Training_003")


def test_validation_layout_has_no_masks_and_other_brains(tmp_path):
    training = phantoms.write_brats2020(tmp_path / "training", 1, shape=SMALL)
    validation = phantoms.write_brats2020(tmp_path / "validation", 1, shape=SMALL, labelled=False)
    assert sorted(path.name for path in validation.rglob("*.nii.gz")) == [
        f"BraTS20_Validation_001_{modality}.nii.gz" for modality in ("flair", "t1", "t1ce", "t2")
    ]
    first = voxels(training / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz")
    second = voxels(validation / "BraTS20_Validation_001" / "BraTS20_Validation_001_t1.nii.gz")
    assert (first != second).any()


def test_a_case_without_enhancing_tumour_has_none(tmp_path):
    cases = phantoms.write_brats2020(tmp_path / "source", 1, shape=SMALL, traps={1: "no_enhancing_tumour"})
    mask = voxels(cases / "BraTS20_Training_001" / "BraTS20_Training_001_seg.nii.gz")
    assert np.unique(mask).tolist() == [0, 1, 2]


def test_hippocampus_phantom_has_the_decathlon_layout(tmp_path):
    folder = phantoms.write_hippocampus(tmp_path / "source", 3, float_masks=[2], num_unlabelled=1)
    names = [f"hippocampus_{number:03d}.nii.gz" for number in (1, 2, 3)]
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == names
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == sorted([*names, *(f"._{n}" for n in names)])
    assert (folder / "imagesTs" / "hippocampus_004.nii.gz").is_file()
    assert [voxels(folder / "labelsTr" / name).dtype.kind for name in names] == ["u", "f", "u"]
    assert all(np.unique(voxels(folder / "labelsTr" / name)).tolist() == [0, 1, 2] for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_cases": 0}, "0 cases"),
        ({"num_cases": 1, "shape": (64, 48, 40)}, "64"),
        ({"num_cases": 1, "file_ending": ".mha"}, ".mha"),
        ({"num_cases": 1, "traps": {1: "goblin"}}, "goblin"),
        ({"num_cases": 1, "traps": {2: "float_mask"}}, "case 2"),
    ],
)
def test_arguments_out_of_range_are_named_and_nothing_is_written(tmp_path, arguments, message):
    with pytest.raises(ConversionError, match=message):
        phantoms.write_brats2020(tmp_path / "source", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_command_writes_a_source_and_refuses_a_full_target(tmp_path, run_module):
    arguments = ("brats2020", tmp_path / "source", "--cases", "1", "--shape", "16", "16", "16")
    assert run_module("dataset_conversion.phantoms", *arguments).returncode == 0
    assert len(list((tmp_path / "source").rglob("*.nii.gz"))) == 5
    again = run_module("dataset_conversion.phantoms", *arguments)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    assert "Traceback" not in again.stderr
