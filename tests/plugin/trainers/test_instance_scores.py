"""Instances of the final validation on cells, from files whose scores can be worked out by hand."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from skimage.io import imsave
from tifffile import imwrite

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.evaluation.instances import to_classes
from nnunet_logvmamba.plugin.trainers.scores import write_instance_scores

DATASET = "Dataset704_Cells"
LABELS = {"background": 0, "interior": 1, "boundary": 2}


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """What a trainer knows at the end of a validation of three images; ``log`` holds what it was told to log.

    Four squares of 12 pixels: all are found in ``a``, two and a false one in ``b``; ``c`` has none, and none is
    predicted. Image ``d`` belongs to the training.
    """
    validation, truths = tmp_path / "fold_0/validation", tmp_path / "raw" / DATASET / "instancesTr"
    for folder in (validation, truths):
        folder.mkdir(parents=True)
    squares = np.zeros((60, 60), np.uint16)
    for number, (row, column) in enumerate(((5, 5), (5, 25), (25, 5), (25, 25)), start=1):
        squares[row : row + 12, column : column + 12] = number
    some = np.where(squares > 2, 0, squares)
    some[44:56, 44:56] = 9
    nothing = np.zeros_like(squares)
    for case, truth, seen in (("a", squares, squares), ("b", squares, some), ("c", nothing, nothing)):
        imwrite(truths / f"{case}.tiff", truth)
        imsave(validation / f"{case}.png", to_classes(seen), check_contrast=False)
    imwrite(truths / "d.tiff", squares)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setattr("nnunet_logvmamba.plugin.trainers.scores.default_num_processes", 1)
    log = []
    return SimpleNamespace(
        local_rank=0,
        output_folder=str(tmp_path / "fold_0"),
        dataset_json={"labels": LABELS, "file_ending": ".png"},
        plans_manager=SimpleNamespace(dataset_name=DATASET),
        print_to_log_file=lambda *words, **_: log.append(" ".join(map(str, words))),
        log=log,
        truths=truths,
        validation=validation,
    )


def test_instances_are_matched_image_by_image_and_averaged_over_images(finished):
    content = json.loads(write_instance_scores(finished).read_text())
    rows = {row["case"]: row for row in content["scores"]}
    assert list(rows) == content["cases"] == ["a", "b", "c"]
    assert [(row["tp"], row["fp"], row["fn"]) for row in rows.values()] == [(4, 0, 0), (2, 1, 2), (0, 0, 0)]
    assert [row["f1"] for row in rows.values()] == [1, pytest.approx(4 / 7), None]
    assert [row["object_iou"] for row in rows.values()] == [1, pytest.approx(2 / 5), None]
    f1 = content["mean"]["f1"]
    assert (f1["mean"], f1["cases"], f1["cases_left_out"]) == (pytest.approx((1 + 4 / 7) / 2), 2, 1)
    assert content["settings"] == {
        "grow_px": 2,
        "min_size_px": 16,
        "fill_holes": False,
        "watershed": False,
        "iou": 0.5,
        "border_px": 2,
        "tile_px": None,
        "tolerance_px": 2,
    }
    assert "within 2 px of the border removed" in content["definitions"]["f1"]
    assert finished.log == ["Instances (instances.json): mean f1 0.7857, mean object_iou 0.7000"]


def test_the_command_says_the_same_by_default(finished, tmp_path):
    content = json.loads(write_instance_scores(finished).read_text())
    out = tmp_path / "out"
    words = ["--references", finished.truths, "--predicted-only", "--jobs", "1"]
    assert main(["instances", str(finished.validation), str(out), *map(str, words)]) == 0
    command = json.loads((out / "scores.json").read_text())
    assert command == {**{key: content[key] for key in command if key in content}, "cases_not_scored": ["d"]}
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    written = [{key: "nan" if value is None else str(value) for key, value in row.items()} for row in content["scores"]]
    assert written == rows


@pytest.mark.parametrize(
    "labels",
    [
        {"background": "0", "interior": "1", "boundary": "2"},
        {"background": 0.0, "interior": 1.0, "boundary": [2]},
        {"boundary": 2, "interior": 1, "background": 0, "ignore": None},
    ],
)
def test_the_three_classes_are_known_however_their_numbers_are_written(labels, finished):
    expected = json.loads(write_instance_scores(finished).read_text())
    finished.dataset_json = {"labels": labels, "file_ending": ".png"}
    assert json.loads(write_instance_scores(finished).read_text()) == expected


@pytest.mark.parametrize(
    ("labels", "ending"),
    [
        ({"background": 0, "cell": 1}, ".png"),
        ({"background": 0, "boundary": 1, "interior": 2}, ".png"),
        ({**LABELS, "nucleus": 3}, ".png"),
        ({**LABELS, "ignore": 3}, ".png"),
        (LABELS, ".nii.gz"),
    ],
)
def test_other_data_sets_have_no_instances_and_nothing_is_said(labels, ending, finished):
    finished.dataset_json = {"labels": labels, "file_ending": ending}
    assert write_instance_scores(finished) is None
    assert finished.log == []
    assert not (finished.validation / "instances.json").exists()


def test_volumes_of_cells_are_left_alone(finished):
    finished.dataset_json = {"labels": LABELS, "file_ending": ".tif"}
    imwrite(finished.validation / "a.tif", np.zeros((6, 60, 60), np.uint8))
    assert write_instance_scores(finished) is None
    assert finished.log == []


def test_only_the_first_process_writes(finished):
    finished.local_rank = 1
    assert write_instance_scores(finished) is None
    assert not (finished.validation / "instances.json").exists()


def test_without_true_instance_maps_the_log_says_what_is_needed(finished, monkeypatch):
    written = write_instance_scores(finished)
    finished.truths.rename(finished.truths.with_name("elsewhere"))
    assert write_instance_scores(finished) is None
    (said,) = finished.log[1:]
    assert said == (
        f"No instances.json, instances cannot be scored: true instance maps are read from nnUNet_raw/{DATASET}/"
        f"instancesTr, as our converter writes them, and {finished.truths} is not a folder; validate again with "
        f"nnUNetv2_train ... --val once they are there"
    )
    assert not written.exists(), "an older one would pass for the new one"
    monkeypatch.delenv("nnUNet_raw")
    assert write_instance_scores(finished) is None
    assert "and nnUNet_raw is not set; validate again" in finished.log[2]
    assert len(finished.log) == 3


def lose_a_truth(finished):
    (finished.truths / "b.tiff").unlink()


def cut_a_truth(finished):
    imwrite(finished.truths / "b.tiff", np.zeros((60, 50), np.uint16))


def break_a_prediction(finished):
    (finished.validation / "b.png").write_bytes(b"broken")


def break_the_first(finished):
    (finished.validation / "a.png").write_bytes(b"broken")


def predict_another_class(finished):
    imsave(finished.validation / "b.png", np.full((60, 60), 3, np.uint8), check_contrast=False)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose_a_truth, "instancesTr holds no reference for 1 prediction(s), the first is 'b'"),
        (cut_a_truth, "b.png has shape (60, 60) but its reference"),
        (break_a_prediction, "b.png cannot be read"),
        (break_the_first, "a.png cannot be read"),
        (predict_another_class, "b.png: holds the value 3; three-class predictions hold 0, 1 and 2 only"),
    ],
)
def test_a_validation_is_not_lost_for_its_instances(spoil, says, finished):
    written = write_instance_scores(finished)
    spoil(finished)
    assert write_instance_scores(finished) is None
    assert "No instances.json, instances cannot be scored: " in finished.log[-1]
    assert says in finished.log[-1]
    assert not written.exists()


def test_a_full_disk_is_said_in_the_log_and_leaves_no_half_file(finished, monkeypatch):
    write_text = Path.write_text

    def fail(self, *args, **kwargs):
        if "instances.json" not in self.name:
            return write_text(self, *args, **kwargs)
        write_text(self, "{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    assert write_instance_scores(finished) is None
    assert "No space left on device" in finished.log[-1]
    assert {path.suffix for path in finished.validation.iterdir()} == {".png"}
