"""The EndoVis 2017 converter on generated video: irregular folders, geometry, overlaps, sequences in folds."""

import json

import numpy as np
import pytest
from PIL import Image

from dataset_conversion import Dataset503_EndoVis2017 as endovis
from dataset_conversion import phantoms
from dataset_conversion.core import reporting
from dataset_conversion.core.cases import ConversionError

MODULE = "dataset_conversion.Dataset503_EndoVis2017"
NAME = "Dataset503_EndoVis2017"


def pixels(path):
    return np.array(Image.open(path))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """All training sequences with one frame each and two test sequences, one of them with its masks a level deeper."""
    folder = tmp_path_factory.mktemp("endovis") / "download"
    return phantoms.write_endovis2017(folder, 1, test_sequences=(1, 10))


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    endovis.convert(source, root / "raw", root / "preprocessed")
    return root


@pytest.fixture(scope="module")
def thirds(source, tmp_path_factory):
    """The same source in the other geometry and with the published folds."""
    root = tmp_path_factory.mktemp("thirds")
    endovis.convert(source, root / "raw", root / "preprocessed", geometry="full-third", folds="published")
    return root


def frame_of(source, case):
    number, name = case.removeprefix("seq").split("_")
    archive = "instrument_1_4_training" if int(number) <= 4 else "instrument_5_8_training"
    return source / archive / f"instrument_dataset_{number}", f"{name}.png"


def test_frames_are_cut_to_the_picture_within_the_black_border(source, converted):
    target = converted / "raw" / NAME
    assert names(target / "imagesTr") == [f"seq{number}_frame000_0000.png" for number in range(1, 9)]
    assert names(target / "imagesTs") == ["test10_frame225_0000.png", "test1_frame225_0000.png"]
    for case in ("seq1_frame000", "seq7_frame000"):
        folder, name = frame_of(source, case)
        full, cut = pixels(folder / "left_frames" / name), pixels(target / "imagesTr" / f"{case}_0000.png")
        assert cut.shape == (1024, 1280, 3)
        assert (cut == full[28:1052, 320:1600]).all()
        full[28:1052, 320:1600] = 0
        assert not full.any()


@pytest.mark.parametrize("sequence", range(1, 9))
def test_instruments_are_told_by_their_folders_and_the_last_name_is_painted_last(source, converted, sequence):
    case = f"seq{sequence}_frame000"
    folder, name = frame_of(source, case)
    truth = np.zeros((1080, 1920), np.uint8)
    for instrument in sorted(path.name for path in (folder / "ground_truth").iterdir()):
        mask = pixels(folder / "ground_truth" / instrument / name)
        assert (mask.ndim == 3) == (sequence % 2 == 0)
        value = next(value for text, value in endovis.TYPES.items() if text in instrument)
        truth[(mask[..., 0] if mask.ndim == 3 else mask) > 0] = value
    ours = pixels(converted / "raw" / NAME / "labelsTr" / f"{case}.png")
    assert ours.dtype == np.uint8
    assert (ours == truth[28:1052, 320:1600]).all()
    assert len(np.unique(ours)) > 2 or sequence == 3


def test_test_masks_hold_types_and_not_parts_wherever_they_lie(source, converted):
    for number, level in ((1, ""), (10, "gt")):
        folder = source / "instrument_2017_test" / f"instrument_dataset_{number}" / level / "TypeSegmentation"
        truth = pixels(folder / "frame225.png")
        ours = pixels(converted / "raw" / NAME / "labelsTs" / f"test{number}_frame225.png")
        assert (ours == truth[28:1052, 320:1600]).all()
        assert 0 < ours.max() <= 7
    assert json.loads((converted / "raw" / NAME / reporting.REPORT).read_text())["skipped"] == []


def test_overlapping_instruments_are_counted(source, converted):
    report = json.loads((converted / "raw" / NAME / reporting.REPORT).read_text())
    folder, name = frame_of(source, "seq3_frame000")
    masks = [pixels(path / name) > 0 for path in sorted((folder / "ground_truth").iterdir())]
    assert report["cases"]["seq3_frame000"]["overlapping pixels"] == (masks[0] & masks[1]).sum() > 0
    assert report["counts"]["overlapping pixels"] > 0
    assert report["cases_without"]["Vessel Sealer"]
    assert report["labels"]["4"]["training_pixels"] > 0


def test_a_third_of_the_full_frame_is_the_mean_in_frames_and_the_middle_in_masks(source, converted, thirds):
    target = thirds / "raw" / NAME
    folder, name = frame_of(source, "seq2_frame000")
    full, small = pixels(folder / "left_frames" / name), pixels(target / "imagesTr" / "seq2_frame000_0000.png")
    assert small.shape == (360, 640, 3)
    for row, column in ((100, 200), (180, 320), (0, 0)):
        block = full[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].reshape(9, 3)
        assert (small[row, column] == np.rint(block.mean(0))).all()
    mask = pixels(target / "labelsTr" / "seq2_frame000.png")
    whole = np.zeros((1080, 1920), np.uint8)
    endovis.crop(whole)[...] = pixels(converted / "raw" / NAME / "labelsTr" / "seq2_frame000.png")
    assert (mask == whole[1::3, 1::3]).all()


def test_folds_hold_whole_sequences(converted, thirds):
    splits = json.loads((converted / "preprocessed" / NAME / "splits_final.json").read_text())
    assert [len(fold["val"]) for fold in splits] == [2, 2, 2, 1, 1]
    published = json.loads((thirds / "preprocessed" / NAME / "splits_final.json").read_text())
    assert [[case[:4] for case in fold["val"]] for fold in published] == [
        ["seq1", "seq3"],
        ["seq2", "seq5"],
        ["seq4", "seq8"],
        ["seq6", "seq7"],
    ]
    for fold in [*splits, *published]:
        train, val = ({case.split("_")[0] for case in fold[side]} for side in ("train", "val"))
        assert not train & val
        assert len(train | val) == 8


def test_published_folds_need_all_sequences_and_official_the_test_frames(tmp_path):
    phantoms.write_endovis2017(tmp_path / "source", 1, sequences=(1, 2))
    with pytest.raises(ConversionError, match="sequence 3 is missing"):
        endovis.convert(tmp_path / "source", tmp_path / "raw", None, protocol="crossval", folds="published")
    with pytest.raises(ConversionError, match="there are none below"):
        endovis.convert(tmp_path / "source", tmp_path / "raw", None)
    assert not (tmp_path / "raw").exists()


def test_two_runs_give_identical_bytes_on_one_or_two_cores(source, converted, tmp_path, fingerprint):
    endovis.convert(source, tmp_path / "raw", tmp_path / "preprocessed", jobs=2)
    assert len(fingerprint(tmp_path)) == 2 * 10 + 3
    assert fingerprint(tmp_path) == fingerprint(converted)


@pytest.mark.parametrize("geometry", endovis.GEOMETRIES)
def test_restored_predictions_are_masks_of_the_full_frame(source, converted, thirds, tmp_path, geometry):
    root = converted if geometry == "crop" else thirds
    endovis.restore(root / "raw" / NAME / "labelsTs", tmp_path / "submit")
    for number, level in ((1, ""), (10, "gt")):
        truth = pixels(
            source / "instrument_2017_test" / f"instrument_dataset_{number}" / level / "TypeSegmentation/frame225.png"
        )
        restored = pixels(tmp_path / "submit" / f"instrument_dataset_{number}" / "TypeSegmentation" / "frame225.png")
        assert restored.shape == (1080, 1920)
        if geometry == "crop":
            assert (restored == truth).all()
        else:
            assert (restored[1::3, 1::3] == truth[1::3, 1::3]).all()
            assert (restored == truth).mean() > 0.99


def test_frames_without_masks_are_named_by_sequence_for_prediction(source, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    frame = source / "instrument_1_8_testing" / "instrument_dataset_1" / "left_frames" / "frame225.png"
    (own / "clip.png").write_bytes(frame.read_bytes())
    endovis.convert_images(own, tmp_path / "scans")
    assert names(tmp_path / "scans") == ["clip_0000.png"]
    endovis.convert_images(source / "instrument_1_8_testing", tmp_path / "test")
    assert names(tmp_path / "test") == ["test1_frame225_0000.png"]
    assert (pixels(tmp_path / "test" / "test1_frame225_0000.png") == endovis.crop(pixels(frame))).all()


def test_scans_to_predict_are_found_below_the_complete_archive(source, tmp_path):
    """Beside masks of every kind, pictures of types for viewing included."""
    assert any(source.rglob("TypeSegmentationRescaled/*.png"))
    endovis.convert_images(source, tmp_path / "scans")
    assert names(tmp_path / "scans") == [
        "test10_frame225_0000.png",
        "test1_frame000_0000.png",
        "test1_frame225_0000.png",
        *(f"test{number}_frame000_0000.png" for number in range(2, 9)),
    ]


def make_sequence(folder, first_frame, ground_truth=True):
    """Empty files where :func:`endovis.find_cases`, which reads none, looks for them."""
    for part in ("left_frames", *(["ground_truth/Left_Large_Needle_Driver_labels"] if ground_truth else [])):
        (folder / part).mkdir(parents=True)
        (folder / part / f"frame{first_frame:03d}.png").touch()


@pytest.mark.parametrize("below", ["", "instrument_1_4_training"])
def test_a_training_sequence_without_its_masks_is_no_test_sequence_whatever_the_source(tmp_path, below):
    archive = tmp_path / "instrument_1_4_training"
    make_sequence(archive / "instrument_dataset_1", 0)
    make_sequence(archive / "instrument_dataset_3", 225, ground_truth=False)
    with pytest.raises(ConversionError, match=r"instrument_dataset_3 has no folder ground_truth"):
        endovis.find_cases(tmp_path / below)


def test_a_test_sequence_that_starts_like_a_training_sequence_is_refused(tmp_path):
    make_sequence(tmp_path / "a" / "instrument_dataset_1", 0)
    make_sequence(tmp_path / "b" / "instrument_dataset_3", 224, ground_truth=False)
    with pytest.raises(ConversionError, match=r"instrument_dataset_3/left_frames/frame224\.png, .* ground_truth"):
        endovis.find_cases(tmp_path)


def test_the_words_train_and_test_in_other_folders_mean_nothing(tmp_path):
    make_sequence(tmp_path / "train_and_test" / "instrument_1_4_training" / "instrument_dataset_1", 0)
    make_sequence(tmp_path / "train_and_test" / "instrument_1_8_testing" / "instrument_dataset_1", 225, False)
    make_sequence(tmp_path / "train_and_test" / "instrument_9_10_testing" / "instrument_dataset_9", 0, False)
    found = endovis.find_cases(tmp_path)
    assert [case.name for case in found.training] == ["seq1_frame000"]
    assert [case.name for case in found.testing] == ["test1_frame225", "test9_frame000"]


def test_a_source_may_be_called_like_its_sequences(tmp_path):
    make_sequence(tmp_path / "instrument_datasets" / "instrument_dataset_1", 0)
    assert len(endovis.find_cases(tmp_path / "instrument_datasets").training) == 1


def test_test_frames_without_their_archive_of_masks_give_images_only(tmp_path, capsys):
    phantoms.write_endovis2017(tmp_path / "source", 1, sequences=(1, 2), test_sequences=(3,), test_masks=False)
    target = endovis.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "pre")
    assert names(target / "imagesTs") == ["test3_frame225_0000.png"]
    assert not (target / "labelsTs").exists()
    assert "images only" in capsys.readouterr().out


def test_the_command_knows_its_options(source, tmp_path, run_module, nnunet_variables):
    done = run_module(
        MODULE, source, "-d", 603, "--protocol", "crossval", "--geometry", "full-third", "--folds", "published",
        "--dry-run", "--jobs", 1, environment=nnunet_variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Dataset603_EndoVis2017 (2017, protocol crossval)" in done.stdout
    assert "nothing was written" in done.stdout
    assert list(tmp_path.iterdir()) == []
