"""The generated sources: their layout, their determinism, and that they look like what they stand for."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from scipy import ndimage

from dataset_conversion import phantoms
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.phantoms.anatomy import MAX_EDGE
from dataset_conversion.phantoms.brats2020 import SIGNAL

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
        assert max(mask_image.GetSize()) <= MAX_EDGE
        mask = sitk.GetArrayFromImage(mask_image)
        assert np.unique(mask).tolist() == [0, 1, 2, 4]
        brains = [voxels(folder / f"{folder.name}_{modality}.nii.gz") > 0 for modality in SIGNAL]
        assert all((brain == brains[0]).all() for brain in brains)
        assert 0.2 < brains[0].mean() < 0.8
        assert not (mask > 0)[~brains[0]].any()
        # Nearly every voxel beside the necrosis belongs to the core: the rim closes around it.
        around = ndimage.binary_dilation(mask == 1) & (mask != 1)
        assert np.isin(mask[around], (1, 4)).mean() > 0.7


def test_each_modality_shows_what_it_shows_in_patients(brats):
    for folder in sorted(path for path in brats.iterdir() if path.is_dir()):
        images = {modality: voxels(folder / f"{folder.name}_{modality}.nii.gz") for modality in SIGNAL}
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


@pytest.mark.parametrize(("release", "enhancing"), [("2021", 4), ("2023-GLI", 3)])
def test_later_brats_phantoms_have_their_own_names_and_labels(tmp_path, release, enhancing):
    folder = phantoms.write_brats2020(tmp_path / "source", 2, shape=SMALL, release=release)
    case = "BraTS2021_00002" if release == "2021" else "BraTS-GLI-00001-001"
    suffixes = (
        ("_t1", "_t1ce", "_t2", "_flair", "_seg") if release == "2021" else ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")
    )
    assert {path.name for path in (folder / case).iterdir()} == {f"{case}{suffix}.nii.gz" for suffix in suffixes}
    assert np.unique(voxels(folder / case / f"{case}{suffixes[-1]}.nii.gz")).tolist() == [0, 1, 2, enhancing]


def test_heart_phantom_has_two_labelled_phases_and_a_series(tmp_path):
    folder = phantoms.write_acdc(tmp_path / "source", 2, num_test_patients=1, test_masks=False, shape=(24, 20, 3))
    assert folder == tmp_path / "source" / "database"
    assert sorted(path.name for path in (folder / "training" / "patient002").iterdir()) == [
        "Info.cfg",
        "MANDATORY_CITATION.md",
        "patient002_4d.nii.gz",
        "patient002_frame03.nii.gz",
        "patient002_frame03_gt.nii.gz",
        "patient002_frame11.nii.gz",
        "patient002_frame11_gt.nii.gz",
    ]
    assert "ED: 11" in (folder / "training" / "patient002" / "Info.cfg").read_text()
    assert not list((folder / "testing").rglob("*_gt*"))
    assert sitk.ReadImage(str(folder / "training" / "patient002" / "patient002_4d.nii.gz")).GetDimension() == 4
    relaxed, contracted = (
        (voxels(folder / "training" / "patient002" / f"patient002_frame{frame}_gt.nii.gz") == 3).sum()
        for frame in (11, "03")
    )
    assert relaxed > contracted > 0


def test_video_phantom_has_black_borders_part_codes_and_crossing_instruments(tmp_path):
    folder = phantoms.write_endovis2017(tmp_path / "source", 1, sequences=(2, 7), test_sequences=(9,))
    sequence = folder / "instrument_1_4_training" / "instrument_dataset_2"
    frame = np.asarray(Image.open(sequence / "left_frames" / "frame000.png"))
    assert frame.shape == (1080, 1920, 3)
    assert not frame[:28].any()
    assert not frame[:, 1600:].any()
    masks = [np.asarray(Image.open(path)) for path in sorted((sequence / "ground_truth").rglob("*.png"))]
    assert [mask.shape for mask in masks] == [(1080, 1920, 3)] * 3
    assert {value for mask in masks for value in np.unique(mask).tolist()} == {0, 10, 20, 30}
    assert ((masks[0] > 0) & (masks[1] > 0)).any()
    test = folder / "instrument_2017_test" / "instrument_dataset_9"
    assert set(np.unique(np.asarray(Image.open(test / "PartsSegmentation" / "frame225.png")))) == {0, 30, 100, 255}
    assert np.asarray(Image.open(test / "TypeSegmentation" / "frame225.png")).max() <= 7


def test_cell_phantom_has_large_numbers_small_and_touching_cells(tmp_path):
    folder = phantoms.write_cells(tmp_path / "source", 6, num_unlabelled=1, edge=64)
    assert folder == tmp_path / "source" / "Training-labeled"
    assert len({path.suffix for path in (folder / "images").iterdir()}) == 5
    labels = [tifffile.imread(path) for path in sorted((folder / "labels").iterdir())]
    assert {label.dtype for label in labels} == {np.dtype(np.uint16), np.dtype(np.int32)}
    for label in labels:
        assert label.max() == 40000
        assert (label == 1).sum() == 29, "a disc of radius 3"
        large = ndimage.binary_dilation(label == 40000)
        assert ((label > 0) & (label != 40000) & large).any(), "two cells touch"


@pytest.mark.parametrize(
    "write",
    [
        lambda target: phantoms.write_acdc(target, 1, shape=(16, 16, 2)),
        lambda target: phantoms.write_endovis2017(target, 1, sequences=(3,)),
        lambda target: phantoms.write_cells(target, 6, edge=48, groups=True),
    ],
    ids=["acdc", "endovis2017", "cells"],
)
def test_other_layouts_are_written_alike_twice(tmp_path, fingerprint, write):
    write(tmp_path / "first")
    write(tmp_path / "again")
    assert len(fingerprint(tmp_path / "first")) > 3
    assert fingerprint(tmp_path / "first") == fingerprint(tmp_path / "again")


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("acdc", {"num_patients": 0}, "0 cases"),
        ("acdc", {"num_patients": 1, "first_number": -3}, "Cases -3 to -3 are out of range"),
        ("acdc", {"num_patients": 4, "first_number": 99}, "Cases 99 to 102 are .* numbered from 1 to 100"),
        ("acdc", {"num_patients": 1, "num_test_patients": 51}, "51 test patients are out of range; ask for 0 to 50"),
        ("hippocampus", {"num_cases": 999, "num_unlabelled": 1}, "Cases 1 to 999 are out of range"),
        ("brats2020", {"num_cases": 2, "first_number": 999}, "Cases 999 to 1000 are .* numbered from 1 to 999"),
        ("brats2023", {"num_cases": 1, "first_number": 0}, "Cases 0 to 0 are out of range"),
        ("endovis2017", {"frames_per_sequence": 1, "sequences": (9,)}, "sequences 1 to 8"),
        ("cells", {"num_pictures": 1, "edge": 8}, "8 pixels"),
    ],
)
def test_other_layouts_refuse_arguments_out_of_range(tmp_path, layout, options, message):
    with pytest.raises(ConversionError, match=message):
        phantoms.LAYOUTS[layout](tmp_path / "source", **options)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize(
    ("arguments", "num_files"),
    [
        (("brats2023", "--cases", "1", "--shape", "16", "16", "16", "--unlabelled"), 4),
        (("acdc", "--cases", "1", "--test-cases", "1", "--shape", "16", "16", "2", "--seed", "3"), 14),
        (("cells", "--cases", "2", "--test-cases", "1"), 6),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_command_writes_every_layout(tmp_path, arguments, num_files):
    layout, *options = arguments
    assert phantoms.main([layout, str(tmp_path / "source"), *options]) == 0
    assert len([path for path in (tmp_path / "source").rglob("*") if path.is_file()]) == num_files


@pytest.mark.parametrize(
    "arguments", [("cells", "--shape", "16", "16", "16"), ("acdc", "--unlabelled"), ("brats2020", "--test-cases", "1")]
)
def test_command_knows_which_options_go_together(tmp_path, capsys, arguments):
    layout, *options = arguments
    with pytest.raises(SystemExit) as end:
        phantoms.main([layout, str(tmp_path / "source"), *options])
    assert end.value.code == 2
    assert f"{options[0]}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dims", "along", "control", "distance"), [(2, "fast", False, 10), (2, "slow", False, 86), (3, "fast", True, 44)]
)
def test_targets_are_named_by_what_lies_at_the_distance_or_by_themselves(dims, along, control, distance, tmp_path):
    folder = tmp_path / "Dataset601_Pairs"
    options = {"dims": dims, "along": along, "control": control, "distance": distance}
    phantoms.write_long_range(folder, 6, num_tests=2, **options)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 6
    read = voxels if dims == 3 else lambda path: np.asarray(Image.open(path))
    axis = 0 if along == "slow" else dims - 1
    named = []
    for part, count in (("Tr", 6), ("Ts", 2)):
        labels = sorted((folder / f"labels{part}").iterdir())
        assert len(labels) == count
        for path in labels:
            mask = read(path)
            image = read(folder / f"images{part}" / path.name.replace(".", "_0000.", 1)).astype(float)
            parts, found = ndimage.label(mask)
            assert found == 4
            for centre in ndimage.center_of_mass(mask > 0, parts, range(1, 5)):
                at = np.round(centre).astype(int)
                cue = at.copy()
                cue[axis] -= distance
                around = [image[tuple(slice(edge - 1, edge + 2) for edge in place)].mean() for place in (at, cue)]
                assert abs(around[1] - 128) > 40, "a cue lies at the distance"
                named.append((int(mask[tuple(at)]), around[0] > 128, around[1] > 128))
    by_itself = [(label == 1) == bright for label, bright, _ in named]
    by_its_cue = [(label == 1) == bright for label, _, bright in named]
    assert all(by_itself if control else by_its_cue)
    assert 0.2 < np.mean(by_its_cue if control else by_itself) < 0.8
    again = phantoms.write_long_range(tmp_path / "again", 6, **options)
    assert all(path.read_bytes() == (folder / path.relative_to(again)).read_bytes() for path in again.rglob("*_0000.*"))


def test_no_two_targets_of_a_volume_touch():
    rng = np.random.default_rng(0)
    for _ in range(60):  # one in 60 did where lines could move by a radius each
        _, labels = phantoms.long_range.long_range_case(rng, 86, 3)
        assert ndimage.label(labels, np.ones((3, 3, 3)))[1] == 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"distance": 9}, "A distance of 9 is out of range; give 10 to 86 voxels"),
        ({"distance": 87}, "A distance of 87 is out of range"),
        ({"along": "x"}, "2 axes along 'x': write 2 or 3, and fast or slow"),
        ({"num_tests": -1}, "6 cases and -1 tests cannot be generated"),
        ({"first_number": -1}, "Case -1 is out of range; begin with 0 or more"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(options, sentence, tmp_path):
    with pytest.raises(ConversionError, match=sentence):
        phantoms.write_long_range(tmp_path / "pairs", 6, **options)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("acdc TARGET --distance 20", "--distance, --dims, --along and --control are for long_range only"),
        ("long_range TARGET --shape 20 20 20", "--shape is not for long_range"),
        ("cells TARGET --control", "are for long_range only"),
        ("cells TARGET --seed -1", "--seed: invalid natural value: '-1'"),
        ("acdc TARGET --test-cases -1", "--test-cases: invalid natural value: '-1'"),
    ],
)
def test_options_of_another_layout_are_refused(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        phantoms.main(words.split())
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "TARGET").exists()


def test_the_command_writes_pairs(tmp_path, capsys):
    words = ["long_range", str(tmp_path / "pairs"), "--cases", "2", "--test-cases", "1", "--distance", "20"]
    assert phantoms.main([*words, "--along", "slow", "--control"]) == 0
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == [
        "dataset.json",
        "imagesTr",
        "imagesTs",
        "labelsTr",
        "labelsTs",
    ]
    assert "2 generated case(s)" in capsys.readouterr().out
