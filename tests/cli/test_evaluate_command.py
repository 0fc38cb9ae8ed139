"""``logvmamba evaluate`` as a user runs it: what is written, what is refused, and nnU-Net's own Dice beside ours."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2
from skimage.io import imsave
from tifffile import imwrite

from nnunet_logvmamba.cli import evaluate as command
from nnunet_logvmamba.cli import main
from nnunet_logvmamba.evaluation import folders, policies, scoring
from nnunet_logvmamba.evaluation.cases import FOLD_ALL

SPACING = (3.0, 1.0, 0.5)  # slices, rows, columns
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": [3]}
LABELS = {"background": 0, "outer": 1, "inner": 2, "rare": 3}


def run(*words: object) -> int:
    return main(["evaluate", *map(str, words), "--jobs", "1"])


def write_volume(path: Path, values: np.ndarray, spacing: tuple[float, ...] = SPACING, origin: float = 0) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((origin,) * values.ndim)
    sitk.WriteImage(image, str(path))


def volume(seed: int, rare: bool) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction with nested labels, the prediction a voxel off and with some noise."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, (14, 24, 28)), indexing="ij"), -1)
    distance = np.linalg.norm((grid - generator.uniform((6, 10, 12), (8, 14, 16))) / (1, 2, 2), axis=-1)
    truth = (distance < 5).astype(np.uint8) + (distance < 3.5) + (distance < 1.5) * rare
    prediction = np.roll(truth, 1, axis=int(generator.integers(3)))
    prediction[generator.random(truth.shape) < 0.01] = 1
    return truth, prediction


@pytest.fixture
def volumes(tmp_path) -> Path:
    """Three cases, of which two lack label 3 in the truth and one has it in the prediction."""
    for name in ("labelsTr", "predictions"):
        (tmp_path / name).mkdir()
    for seed, case in enumerate(("a", "b", "c")):
        truth, prediction = volume(seed, rare=case == "a")
        if case == "b":
            prediction[0, 0, 0] = 3
        write_volume(tmp_path / "labelsTr" / f"{case}.nii.gz", truth)
        write_volume(tmp_path / "predictions" / f"{case}.nii.gz", prediction)
    write_dataset_json(tmp_path / "predictions", LABELS)
    return tmp_path


def write_dataset_json(folder: Path, labels: dict, **more: object) -> None:
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content))


def read_rows(folder: Path) -> list[dict]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def read_summary(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def test_the_parser_offers_what_the_package_can_do():
    assert command.METRICS == scoring.MASK_METRICS
    assert command.INSTANCE_METRICS == scoring.INSTANCE_METRICS
    assert set(command.POLICIES) == set(policies.POLICIES)
    assert set(command.AVERAGES) == set(folders.AVERAGES)


def test_one_row_per_case_and_label_and_a_summary_that_explains_itself(volumes, capsys):
    out = volumes / "out"
    assert run(volumes / "predictions", volumes / "labelsTr", "--output", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["scores.csv", "scores.json", "scores.txt"]
    rows = read_rows(out)
    assert list(rows[0]) == ["case", "label", "dice", "iou", "hd95", "nsd"]
    assert [(row["case"], row["label"]) for row in rows] == [(c, n) for c in "abc" for n in ("outer", "inner", "rare")]
    summary = read_summary(out)
    assert summary["cases"] == ["a", "b", "c"]
    assert summary["labels"] == {"outer": [1], "inner": [2], "rare": [3]}
    assert summary["policy"]["name"] == "nnunet"
    assert summary["unit"] == "mm"
    assert summary["metrics"]["hd95"]["unit"] == "mm"
    assert "joined" in summary["metrics"]["hd95"]["definition"]
    assert summary["tolerances"]["outer"] == {
        "value": 2,
        "unit": "mm",
        "source": "default, 2 mm where no tolerance is published for the structure",
    }
    # One case has label 3 on both sides, one in the prediction alone, one nowhere.
    rare = summary["mean"]["rare"]
    assert rare["dice"]["cases"] == 2
    assert rare["dice"]["left_out"] == ["c"]
    assert rare["hd95"]["cases"] == 1
    assert rare["hd95"]["left_out"] == ["b", "c"]
    assert rare["nsd"]["cases"] == 2
    assert summary["empty_masks"]["rare"] == {"both_empty": ["c"], "false_positive": ["b"], "miss": []}
    own = [float(row["dice"]) for row in rows if row["label"] == "outer"]
    assert summary["mean"]["outer"]["dice"]["mean"] == pytest.approx(np.mean(own))
    assert summary["mean"]["outer"]["dice"]["std"] == pytest.approx(np.std(own, ddof=1))
    by_label = [summary["mean"][name]["dice"]["mean"] for name in summary["mean"]]
    assert summary["overall"]["dice"]["mean"] == pytest.approx(np.mean(by_label))
    printed = capsys.readouterr().out
    text = (out / "scores.txt").read_text()
    assert text.strip() in printed
    assert f"{np.mean(own):.4f} ± {np.std(own, ddof=1):.4f} (3)" in text
    assert "policy nnunet" in text
    assert "NaN" not in (out / "scores.json").read_text()


@pytest.mark.parametrize("average", ["class-first", "frame-first"])
def test_both_orders_of_averaging(tmp_path, average):
    # Frame a: label 1 scores 1 and label 2 is in neither; frame b: label 1 scores 0.6, label 2 0.2;
    # frame-first: (1 + 0.4) / 2; class-first: (0.8 + 0.2) / 2.
    for name in ("truth", "predictions"):
        (tmp_path / name).mkdir()
    truth, prediction = np.zeros((2, 10, 20), np.uint8)
    truth[0, :10] = prediction[0, :10] = 1
    imsave(tmp_path / "truth/a.png", truth, check_contrast=False)
    imsave(tmp_path / "predictions/a.png", prediction, check_contrast=False)
    truth, prediction = np.zeros((2, 10, 20), np.uint8)
    truth[0, :5], prediction[0, 2:7] = 1, 1  # Dice 2 * 3 / 10
    truth[5, :5], prediction[5, 4:9] = 2, 2  # Dice 2 * 1 / 10
    imsave(tmp_path / "truth/b.png", truth, check_contrast=False)
    imsave(tmp_path / "predictions/b.png", prediction, check_contrast=False)
    out = tmp_path / "out"
    words = ("--metrics", "dice", "--average", average, "--output", out)
    assert run(tmp_path / "predictions", tmp_path / "truth", *words) == 0
    overall = read_summary(out)["overall"]["dice"]
    expected = {"class-first": (0.8 + 0.2) / 2, "frame-first": (1 + 0.4) / 2}[average]
    assert overall["mean"] == pytest.approx(expected)
    assert overall["cases"] == {"class-first": 1, "frame-first": 2}[average]


def test_a_frame_without_anything_is_left_out_of_the_mean_over_frames(tmp_path):
    for name in ("truth", "predictions"):
        (tmp_path / name).mkdir()
        for case, value in (("a", 1), ("b", 0)):
            imsave(tmp_path / name / f"{case}.png", np.full((8, 8), value, np.uint8), check_contrast=False)
    out = tmp_path / "out"
    words = ("--metrics", "dice", "nsd", "nsd_umamba", "--average", "frame-first", "--policy", "umamba")
    assert run(tmp_path / "predictions", tmp_path / "truth", *words, "--output", out) == 0
    summary = read_summary(out)
    assert summary["overall"]["dice"] == {"mean": 1, "std": None, "cases": 1, "left_out": ["b"]}
    assert summary["mean"]["1"]["dice"]["cases"] == 2  # per label the policy says 1
    assert summary["unit"] == "px"
    assert summary["tolerances"]["1"]["unit"] == "px"
    assert "no NSD" in summary["metrics"]["nsd_umamba"]["definition"]


def test_spacing_orders_hd95_and_can_be_replaced(volumes):
    truth, prediction = np.zeros((2, 6, 12, 12), np.uint8)
    truth[1, 1, 1] = prediction[3, 1, 1] = 1
    for folder, values in (("labelsTr", truth), ("predictions", prediction)):
        for path in (volumes / folder).glob("*.nii.gz"):
            write_volume(path, values)

    def distance(*words: object) -> tuple[float, str]:
        out = volumes / f"out{len(list(volumes.iterdir()))}"
        assert run(volumes / "predictions", volumes / "labelsTr", "--metrics", "hd95", "--output", out, *words) == 0
        summary = read_summary(out)
        return summary["mean"]["outer"]["hd95"]["mean"], summary["unit"]

    assert distance() == (6, "mm")
    assert distance("--spacing", 1) == (2, "px")
    assert distance("--spacing", 5, 1, 1) == (10, "mm")


def test_hd95_policy_and_tolerances_are_the_users(volumes):
    out = volumes / "out"
    words = ("--hd95", "max", "--policy", "brats", "--tolerance", "inner=1", "rare=0.5", "--output", out)
    assert run(volumes / "predictions", volumes / "labelsTr", *words) == 0
    summary = read_summary(out)
    assert summary["hd95"] == "max"
    assert "larger" in summary["metrics"]["hd95"]["definition"]
    assert {name: one["value"] for name, one in summary["tolerances"].items()} == {"outer": 2, "inner": 1, "rare": 0.5}
    assert summary["tolerances"]["inner"]["source"] == "given by the user"
    assert summary["policy"]["miss"]["hd95"] == 373.12866
    rows = {(row["case"], row["label"]): row for row in read_rows(out)}
    assert float(rows["b", "rare"]["hd95"]) == 373.12866
    assert float(rows["c", "rare"]["dice"]) == 1
    (note,) = summary["notes"]
    assert note.startswith("HD95 of 1 half-empty pair(s) is 373.12866, a BraTS diagonal")


def test_volume_difference_and_lesions(volumes, capsys):
    out = volumes / "out"
    assert (
        run(volumes / "predictions", volumes / "labelsTr", "--metrics", "volume_difference", "lesions", "--output", out)
        == 0
    )
    rows = {(row["case"], row["label"]): row for row in read_rows(out)}
    # One voxel of 1.5 cubic millimetres.
    assert float(rows["b", "rare"]["volume_difference"]) == pytest.approx(0.0015)
    assert [rows["b", "rare"][name] for name in scoring.LESION_COLUMNS] == ["0", "0", "1"]
    summary = read_summary(out)
    assert summary["metrics"]["volume_difference"]["unit"] == "ml"
    assert summary["mean"]["rare"]["lesions_false"]["sum"] == 1
    everywhere = sum(int(row["lesions_true"]) for row in rows.values())
    assert summary["overall"]["lesions_true"]["sum"] == everywhere > 1
    assert "total of rare: lesions_true 1, lesions_missed 0, lesions_false 1\n" in capsys.readouterr().out


def test_without_dataset_json_the_values_that_occur_are_the_labels(volumes, capsys):
    (volumes / "predictions/dataset.json").unlink()
    out = volumes / "out"
    assert run(volumes / "predictions", volumes / "labelsTr", "--metrics", "dice", "--output", out) == 0
    summary = read_summary(out)
    assert summary["labels"] == {"1": [1], "2": [2], "3": [3]}
    assert "found in the files" in summary["labels_from"]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("labels:")] == [
        "labels: 1, 2, 3, found in the files, for want of dataset.json"
    ]


def test_dataset_json_is_found_above_the_references_and_names_the_policy(volumes):
    (volumes / "predictions/dataset.json").unlink()
    write_dataset_json(volumes, REGIONS, regions_class_order=[1, 2, 3], name="Dataset501_BraTS2020")
    out = volumes / "out"
    assert run(volumes / "predictions", volumes / "labelsTr", "--metrics", "dice", "--output", out) == 0
    summary = read_summary(out)
    assert summary["labels"] == {"whole": [1, 2, 3], "core": [2, 3], "active": [3]}
    assert summary["policy"]["name"] == "brats"


@pytest.mark.parametrize("place", ["above", "plans"])
def test_a_data_set_without_a_name_is_called_as_nnunet_calls_it(volumes, place):
    folder = volumes / "Dataset137_BraTS2021" if place == "above" else volumes / "predictions"
    if place == "above":
        folder.mkdir()
        (volumes / "labelsTr").rename(folder / "labelsTr")
        (volumes / "predictions/dataset.json").unlink()
    else:
        (folder / "plans.json").write_text(json.dumps({"dataset_name": "Dataset137_BraTS2021"}))
    write_dataset_json(folder, LABELS)
    references = (folder if place == "above" else volumes) / "labelsTr"
    out = volumes / "out"
    assert run(volumes / "predictions", references, "--metrics", "dice", "--output", out) == 0
    assert read_summary(out)["policy"]["name"] == "brats"


def test_a_table_that_cannot_be_written_is_shown_and_its_file_is_named(volumes, capsys):
    (volumes / "file").touch()
    words = ("--metrics", "dice", "--output", volumes / "file" / "out")
    assert run(volumes / "predictions", volumes / "labelsTr", *words) == 2
    said = capsys.readouterr()
    assert "outer" in said.out
    assert f"{volumes / 'file' / 'out'} cannot be written to (Not a directory); name another folder" in said.err


@pytest.mark.parametrize("fault", ["dangling", "latin-1"])
def test_links_that_lead_nowhere_and_names_that_are_no_text_are_refused(volumes, capsys, fault):
    for name in ("labelsTr", "predictions"):
        path = volumes / name / "b.nii.gz"
        if fault == "dangling":
            path.unlink()
            path.symlink_to("../.git/annex/objects/not-here")
        else:
            path.rename(path.with_name(os.fsdecode(b"b\xe9.nii.gz")))
    assert run(volumes / "predictions", volumes / "labelsTr") == 2
    says = {"dangling": "b.nii.gz is a link that leads nowhere", "latin-1": "has bytes that are not UTF-8"}
    assert says[fault] in capsys.readouterr().err


def test_a_terminal_that_has_no_plus_or_minus_gets_the_table(volumes, run_command):
    words = ["logvmamba", "evaluate", volumes / "predictions", volumes / "labelsTr"]
    done = run_command(words, PYTHONIOENCODING="ascii")
    assert "outer" in done.stdout


def test_several_processes_write_the_same(volumes):
    for jobs, name in ((1, "one"), (2, "two")):
        words = ["evaluate", volumes / "predictions", volumes / "labelsTr", "--jobs", jobs, "--output", volumes / name]
        assert main(list(map(str, words))) == 0
    for path in (volumes / "one").iterdir():
        assert path.read_bytes() == (volumes / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("labels", "more"),
    [(LABELS, {}), (REGIONS, {"regions_class_order": [1, 2, 3]}), ({**LABELS, "ignore": 4}, {})],
    ids=["labels", "regions", "ignore"],
)
def test_dice_and_iou_are_those_of_nnunet(volumes, labels, more):
    predictions, references = volumes / "predictions", volumes / "labelsTr"
    write_dataset_json(predictions, labels, **more)
    if "ignore" in labels:
        for path in references.glob("*.nii.gz"):
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            values[:, :12, :10] = 4
            write_volume(path, values)
    plans = volumes / "plans.json"
    plans.write_text(json.dumps({"label_manager": "LabelManager"}))
    files = (predictions / "dataset.json", plans, volumes / "theirs.json")
    compute_metrics_on_folder2(*map(str, (references, predictions, *files)), num_processes=1)
    theirs = json.loads((volumes / "theirs.json").read_text())
    assert run(predictions, references, "--metrics", "dice", "iou", "--output", volumes / "out") == 0
    rows = {(row["case"], row["label"]): row for row in read_rows(volumes / "out")}
    summary = read_summary(volumes / "out")
    compared = 0
    for case in theirs["metric_per_case"]:
        name = Path(case["prediction_file"]).name.removesuffix(".nii.gz")
        for label, values in summary["labels"].items():
            key = str(values[0]) if labels is not REGIONS else str(tuple(values))
            for ours, nnunets in (("dice", "Dice"), ("iou", "IoU")):
                expected = case["metrics"][key][nnunets]
                value = float(rows[name, label][ours])
                assert value == pytest.approx(expected, abs=1e-6, nan_ok=True)
                compared += not math.isnan(value)
    assert compared > 12
    for label, values in summary["labels"].items():
        key = str(values[0]) if labels is not REGIONS else str(tuple(values))
        assert summary["mean"][label]["dice"]["mean"] == pytest.approx(theirs["mean"][key]["Dice"], abs=1e-6)
    assert summary["overall"]["dice"]["mean"] == pytest.approx(theirs["foreground_mean"]["Dice"], abs=1e-6)


@pytest.fixture
def cells(tmp_path) -> Path:
    """Two instance maps: in the first all is found, in the second one of two cells."""
    for name in ("truth", "predictions"):
        (tmp_path / name).mkdir()
    truth = np.zeros((40, 60), np.int32)
    truth[5:20, 5:20], truth[10:30, 30:50] = 7, 70_000
    for case, seen in (("a", truth), ("b", np.where(truth == 7, 0, truth))):
        imwrite(tmp_path / "truth" / f"{case}_label.tiff", truth)
        imwrite(tmp_path / "predictions" / f"{case}.tif", seen)
    return tmp_path


def test_instances_are_scored_beside_their_foreground(cells, capsys):
    out = cells / "out"
    assert run(cells / "predictions", cells / "truth", "--instances", "--output", out) == 0
    rows = read_rows(out)
    columns = ["f1", "object_iou", "average_precision", "dice", "iou", "nsd", "tp", "fp", "fn"]
    assert list(rows[0]) == ["case", "label", *columns]
    assert [float(row["f1"]) for row in rows] == pytest.approx([1, 2 / 3])
    assert [float(row["object_iou"]) for row in rows] == pytest.approx([1, 1 / 2])
    assert [row["fn"] for row in rows] == ["0", "1"]
    assert float(rows[1]["dice"]) == pytest.approx(2 * 400 / (400 + 625))
    summary = read_summary(out)
    assert summary["tolerances"]["instances"]["unit"] == "px"
    assert "within 2 px of the border" in summary["metrics"]["f1"]["definition"]
    for means in (summary["mean"]["instances"], summary["overall"]):
        assert [means[name]["sum"] for name in ("tp", "fp", "fn")] == [3, 0, 1]
    assert "\ntotal of instances: TP 3, FP 0, FN 1\n" in capsys.readouterr().out
    assert "\ntotal of instances: TP 3, FP 0, FN 1\n" in (out / "scores.txt").read_text()


def test_instance_maps_taken_for_labels_are_noticed(cells, capsys):
    values = np.arange(40 * 60).reshape(40, 60) // 6
    imwrite(cells / "truth/a_label.tiff", values)
    for case in ("a", "b"):
        (cells / "predictions" / f"{case}.tif").rename(cells / "predictions" / f"{case}_label.tif")
    assert run(cells / "predictions", cells / "truth") == 2
    assert "add --instances" in capsys.readouterr().err
    assert run(cells / "predictions", cells / "truth", "--instances", "--metrics", "dice", "f1") == 0
    assert run(cells / "predictions", cells / "truth", "--metrics", "f1") == 2
    assert "f1 is a score of instance maps" in capsys.readouterr().err


def other_shape(root):
    write_volume(root / "predictions/b.nii.gz", np.zeros((14, 24, 27), np.uint8))


def other_spacing(root):
    write_volume(root / "predictions/b.nii.gz", np.zeros((14, 24, 28), np.uint8), (3, 1, 0.6))


def other_origin(root):
    write_volume(root / "predictions/b.nii.gz", np.zeros((14, 24, 28), np.uint8), origin=5)


def strange_label(root):
    write_volume(root / "predictions/b.nii.gz", np.full((14, 24, 28), 9, np.uint8))


def strange_label_in_the_truth(root):
    write_volume(root / "labelsTr/c.nii.gz", np.full((14, 24, 28), 4, np.uint8))


def fractions(root):
    write_volume(root / "predictions/b.nii.gz", np.full((14, 24, 28), 0.5, np.float32))


def not_a_number(root):
    write_volume(root / "predictions/b.nii.gz", np.full((14, 24, 28), np.nan, np.float32))


def negative(root):
    write_volume(root / "predictions/b.nii.gz", np.full((14, 24, 28), -1, np.int16))


def truncated(root):
    path = root / "predictions/b.nii.gz"
    path.write_bytes(path.read_bytes()[:100])


def truncated_behind_the_header(root):
    path = root / "predictions/b.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])


def truncated_unpacked(root):
    path = root / "predictions/b.nii.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes())[:-9])
    path.unlink()


def damaged(root):
    """A file whose voxels can be unpacked but are not those that were packed."""
    path = root / "labelsTr/b.nii.gz"
    voxels = bytearray(gzip.decompress(path.read_bytes()))
    checksum = path.read_bytes()[-8:]
    voxels[-9] ^= 1
    path.write_bytes(gzip.compress(bytes(voxels))[:-8] + checksum)


def empty_file(root):
    (root / "predictions/b.nii.gz").write_bytes(b"")


def no_prediction(root):
    (root / "predictions/b.nii.gz").unlink()


def no_reference(root):
    (root / "labelsTr/b.nii.gz").unlink()


def no_folder(root):
    shutil.rmtree(root / "labelsTr")


def no_files(root):
    for path in (root / "labelsTr").iterdir():
        path.unlink()


def twice(root):
    shutil.copy(root / "predictions/b.nii.gz", root / "predictions/b.nii")


def broken_json(root):
    (root / "predictions/dataset.json").write_text("{")


def no_labels(root):
    (root / "predictions/dataset.json").write_text("{}")


def words_for_labels(root):
    write_dataset_json(root / "predictions", {"background": 0, "outer": "1.5"})


def several_ignored(root):
    write_dataset_json(root / "predictions", {**LABELS, "ignore": [4, 5]})


def picture_among_volumes(root):
    for folder in ("predictions", "labelsTr"):
        (root / folder / "c.nii.gz").unlink()
        imsave(root / folder / "c.png", np.zeros((9, 9), np.uint8), check_contrast=False)


def target_in_use(root):
    (root / "out").mkdir()
    (root / "out/scores.json").write_text("precious")


def vectors(root):
    image = sitk.GetImageFromArray(np.zeros((14, 24, 28, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(root / "predictions/b.nii.gz"))


def images_for_references(root):
    for path in (root / "labelsTr").iterdir():
        path.rename(path.with_name(path.name.replace(".", "_0000.", 1)))


def images_for_predictions(root):
    for path in (root / "predictions").glob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace(".", "_0001.", 1)))


def images_without_numbers(root):
    for path in (root / "labelsTr").iterdir():
        intensities = np.random.default_rng(0).integers(0, 2000, (14, 24, 28), dtype=np.uint16)
        write_volume(path, intensities)


def images_and_no_dataset_json(root):
    images_without_numbers(root)
    (root / "predictions/dataset.json").unlink()


def swapped(root):
    (root / "labelsTr/predict_from_raw_data_args.json").write_text("{}")


def swapped_and_validated(root):
    (root / "labelsTr/summary.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (images_for_references, "labelsTr holds images of the cases, the first is 'a_0000'; name the folder of their"),
        (images_for_predictions, "predictions holds images of the cases, the first is 'a_0001'; name the folder"),
        (
            images_without_numbers,
            "labelsTr/a.nii.gz holds the value .*, which is no label; .*; if it is an image, name",
        ),
        (images_and_no_dataset_json, "add --instances; if the references, which alone have so many, are images, name"),
        (swapped, "labelsTr holds predictions, for predict_from_raw_data_args.json is in it, and .*predictions come f"),
        (swapped_and_validated, "labelsTr holds predictions, for summary.json is in it, and "),
        (fractions, "numbers that are not whole, the first is .*: if it is an image, name the folder of the segment"),
        (
            other_shape,
            r"predictions/b.nii.gz has shape \(14, 24, 27\) but its reference .*labelsTr/b.nii.gz has \(14, 24",
        ),
        (other_spacing, r"b.nii.gz has spacing \(3.0, 1.0, 0.6\) but its reference .* \(3.0, 1.0, 0.5\)"),
        (other_origin, "b.nii.gz has origin or direction"),
        (other_origin, "; logvmamba evaluate --ignore-position scores it all the same"),
        (strange_label, "predictions/b.nii.gz holds the value 9, which is no label; the labels are 0, 1, 2, 3"),
        (strange_label_in_the_truth, "labelsTr/c.nii.gz holds the value 4, which is no label"),
        (fractions, "b.nii.gz holds numbers that are not whole"),
        (not_a_number, "b.nii.gz holds numbers that are not finite"),
        (negative, "b.nii.gz holds the negative value -1"),
        (truncated, "predictions/b.nii.gz cannot be read"),
        (truncated_behind_the_header, "predictions/b.nii.gz cannot be read: Compressed file ended"),
        (truncated_unpacked, "predictions/b.nii cannot be read"),
        (damaged, "labelsTr/b.nii.gz cannot be read: CRC check failed"),
        (empty_file, "predictions/b.nii.gz cannot be read"),
        (no_prediction, r"predictions holds no prediction for 1 reference\(s\), the first is 'b'.*--predicted-only"),
        (no_reference, r"labelsTr holds no reference for 1 prediction\(s\), the first is 'b'"),
        (no_folder, "labelsTr is not a folder"),
        (no_files, "labelsTr holds no file"),
        (twice, "two files of the case 'b', b.nii and b.nii.gz"),
        (broken_json, "dataset.json cannot be read as JSON"),
        (no_labels, "dataset.json has no 'labels'"),
        (words_for_labels, "the label 'outer' must be a whole number or a list of them, not '1.5'"),
        (several_ignored, r"the label 'ignore' must be a whole number, not \[4, 5\]"),
        (picture_among_volumes, "c.png has 2 axes in px, the first case 3 in mm"),
        (target_in_use, "out is not empty"),
        (vectors, "b.nii.gz holds 3 channels"),
    ],
)
def test_bad_input_gets_one_sentence_and_nothing_is_written(volumes, capfd, spoil, says):
    spoil(volumes)
    before = sorted(volumes.rglob("*"))
    assert run(volumes / "predictions", volumes / "labelsTr", "--output", volumes / "out") == 2
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.strip() and not line.startswith(("cases:", "labels:"))]
    assert len(lines) == 1, error
    assert re.search(says, lines[0]), lines[0]
    assert sorted(volumes.rglob("*")) == before
    if spoil is target_in_use:
        assert (volumes / "out/scores.json").read_text() == "precious"


def test_two_folders_of_predictions_may_be_compared(volumes):
    for name in ("predictions", "labelsTr"):
        (volumes / name / "predict_from_raw_data_args.json").write_text("{}")
    assert run(volumes / "predictions", volumes / "labelsTr", "--metrics", "Dice") == 0


def test_labels_of_tolerances_may_be_written_in_any_capitalisation(volumes, capsys):
    folders = volumes / "predictions", volumes / "labelsTr"
    assert run(*folders, "--metrics", "NSD", "--tolerance", "INNER=1", "Rare=0.5", "--output", volumes / "out") == 0
    tolerances = read_summary(volumes / "out")["tolerances"]
    assert {name: one["value"] for name, one in tolerances.items()} == {"outer": 2, "inner": 1, "rare": 0.5}
    capsys.readouterr()
    assert run(*folders, "--tolerance", "Iner=1") == 2
    said = "a tolerance for 'Iner', which is no label (did you mean inner?); the labels are outer, inner, rare"
    assert said in capsys.readouterr().err
    assert run(*folders, "--tolerance", "inner=1", "Inner=1") == 2
    assert "two tolerances for the label 'inner': give one" in capsys.readouterr().err


def test_labels_that_differ_in_capitals_alone_have_each_their_tolerance(volumes, capsys):
    write_dataset_json(volumes / "predictions", {"background": 0, "CSF": 1, "csf": 2, "rare": 3})
    folders = volumes / "predictions", volumes / "labelsTr"
    assert run(*folders, "--metrics", "NSD", "--tolerance", "CSF=1", "csf=3", "--output", volumes / "out") == 0
    assert [one["value"] for one in read_summary(volumes / "out")["tolerances"].values()] == [1, 3, 2]
    capsys.readouterr()
    assert run(*folders, "--tolerance", "Csf=1") == 2
    assert "a tolerance for 'Csf' may be that of CSF or csf: write it as the label is" in capsys.readouterr().err


def test_the_validation_of_a_fold_says_whose_the_other_references_are(volumes):
    no_prediction(volumes)
    validation = volumes / "fold_0" / "validation"
    (volumes / "predictions").rename(validation.parent.with_name("moved"))
    validation.parent.mkdir()
    (volumes / "moved").rename(validation)
    out = volumes / "out"
    assert run(validation, volumes / "labelsTr", "--predicted-only", "--output", out) == 0
    text = (out / "scores.txt").read_text()
    assert "cases: 2; 1 more references are of the cases of other folds, which this one trained on" in text


@pytest.mark.parametrize(
    ("folder", "said"),
    [("fold_all/validation", True), ("crossval_results_folds_all", True), ("fold_0/validation", False)],
)
def test_the_validation_of_fold_all_is_said_to_be_of_its_training_cases(volumes, capsys, folder, said):
    (volumes / folder).parent.mkdir(exist_ok=True)
    (volumes / "predictions").rename(volumes / folder)
    out = volumes / "out"
    assert run(volumes / folder, volumes / "labelsTr", "--output", out) == 0
    line = f"note: {FOLD_ALL}"
    assert (line in capsys.readouterr().out.splitlines()) == said
    assert (line in (out / "scores.txt").read_text().splitlines()) == said
    assert (FOLD_ALL in read_summary(out)["notes"]) == said


@pytest.mark.parametrize(
    "words",
    [
        ("--tolerance", "nowhere=2"),
        ("--tolerance", "inner=x"),
        ("--tolerance", "1", "2"),
        ("--tolerance", "inner=1", "inner=2"),
        ("--tolerance", "-1"),
        ("--spacing", "0"),
        ("--spacing", "1", "1"),
        ("--metrics", "dise"),
        ("--metrics", "nsd_umamba"),
        ("--metrics", "f1"),
        ("--policy", "mine"),
        ("--dataset-json", "nowhere.json"),
        ("--instances", "--dataset-json", "nowhere.json"),
    ],
)
def test_options_that_do_not_fit_are_refused(volumes, words, capsys):
    try:
        code = run(volumes / "predictions", volumes / "labelsTr", *words)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert any(word.removeprefix("--").partition("=")[0].split("_")[0] in error for word in words), error


def test_metrics_are_known_in_any_capitalisation_and_shown_in_one(volumes, capsys):
    tables = []
    for words in (("dice", "hd95"), ("Dice", "HD95"), ("DICE", "hD95", "dice")):
        out = volumes / f"out{len(tables)}"
        assert run(volumes / "predictions", volumes / "labelsTr", "--metrics", *words, "--output", out) == 0
        tables.append((out / "scores.txt").read_text())
        assert list(read_rows(out)[0]) == ["case", "label", "dice", "hd95"]
    assert len(set(tables)) == 1
    assert tables[0].splitlines()[0].split() == ["label", "Dice", "HD95", "[mm]"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(volumes / "predictions", volumes / "labelsTr", "--metrics", "dise")
    assert "there is no metric 'dise'; there are Dice, IoU, HD95, NSD, nsd_umamba, " in capsys.readouterr().err


def test_an_error_in_a_process_ends_the_whole_run(volumes, capsys):
    strange_label(volumes)
    words = ["evaluate", volumes / "predictions", volumes / "labelsTr", "--jobs", 2, "--output", volumes / "out"]
    assert main(list(map(str, words))) == 2
    assert "predictions/b.nii.gz holds the value 9" in capsys.readouterr().err
    assert not (volumes / "out").exists()


def test_a_disk_that_fills_up_leaves_no_summary(volumes, monkeypatch, capsys):
    def no_space(*_):
        raise OSError(28, "No space left on device", "scores.json")

    monkeypatch.setattr(folders, "write_json", no_space)
    assert (
        run(volumes / "predictions", volumes / "labelsTr", "--metrics", "dice", "--output", volumes / "deep/out") == 2
    )
    assert "No space left on device" in capsys.readouterr().err
    assert not (volumes / "deep").exists()


def test_a_process_that_is_killed_ends_the_run_with_a_sentence(volumes, capsys, monkeypatch):
    words = ["evaluate", volumes / "predictions", volumes / "labelsTr", "--jobs", 2, "--output", volumes / "out"]
    monkeypatch.setattr(folders, "_score_case", _die)
    assert main(list(map(str, words))) == 2
    assert "one of 2 processes was killed" in capsys.readouterr().err
    assert not (volumes / "out").exists()


def _die(_: object, **__: object) -> None:
    os._exit(9)


def test_volumes_of_tiff_take_the_spacing_from_the_json_beside_the_prediction(tmp_path):
    truth, prediction = np.zeros((2, 5, 8, 8), np.uint8)
    truth[1, 4, 4] = prediction[3, 4, 4] = 1
    for name, values in (("truth", truth), ("predictions", prediction)):
        (tmp_path / name).mkdir()
        imwrite(tmp_path / name / "a.tiff", values)
    words = (tmp_path / "predictions", tmp_path / "truth", "--metrics", "hd95", "--output")
    assert run(*words, tmp_path / "pixels") == 0
    assert read_summary(tmp_path / "pixels")["mean"]["1"]["hd95"]["mean"] == 2
    (tmp_path / "predictions/a.json").write_text(json.dumps({"spacing": [4, 1, 1]}))
    assert run(*words, tmp_path / "mm") == 0
    summary = read_summary(tmp_path / "mm")
    assert (summary["mean"]["1"]["hd95"]["mean"], summary["unit"]) == (8, "mm")


def test_a_single_slice_is_scored_as_the_plane_it_is(tmp_path):
    truth, prediction = np.zeros((2, 1, 20, 20), np.uint8)
    truth[0, 5:15, 5:15] = prediction[0, 5:15, 7:17] = 1
    for name, values in (("truth", truth), ("predictions", prediction)):
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / "a.nii.gz", values, (8, 1, 0.5))
    out = tmp_path / "out"
    words = ("--metrics", "hd95", "nsd_umamba", "--output", out)
    assert run(tmp_path / "predictions", tmp_path / "truth", *words) == 0
    summary = read_summary(out)
    assert (summary["mean"]["1"]["hd95"]["mean"], summary["unit"]) == (1, "mm")


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A volume and one of its slices, predictions one row off; voxels of 5 x 2 x 1 mm."""
    truth = np.zeros((4, 12, 12), np.uint8)
    truth[1:3, 3:8, 3:8] = 1
    for name, values in (("truth", truth), ("predictions", np.roll(truth, 1, 1))):
        (tmp_path / name).mkdir()
        values[1, 0, 0] = name == "predictions"
        write_volume(tmp_path / name / "several.nii.gz", values, (5, 2, 1))
        write_volume(tmp_path / name / "alone.nii.gz", values[1:2], (5, 2, 1))
    return tmp_path


def test_one_slice_beside_several_is_scored_as_the_plane_it_is(mixed, capsys):
    words = ("--metrics", "dice", "hd95", "nsd", "volume_difference", "--output")
    assert run(mixed / "predictions", mixed / "truth", *words, mixed / "out") == 0
    rows = {row["case"]: row for row in read_rows(mixed / "out")}
    assert float(rows["alone"]["volume_difference"]) == pytest.approx(5 * 2 * 1 / 1000)
    assert float(rows["several"]["volume_difference"]) == pytest.approx(5 * 2 * 1 / 1000)
    summary = read_summary(mixed / "out")
    assert summary["metrics"]["volume_difference"]["unit"] == "ml"
    assert "6 neighbours, 4 in a single slice" in summary["metrics"]["hd95"]["definition"]
    assert "note: 1 of 2 cases are one slice, the first is 'alone'" in capsys.readouterr().out
    (mixed / "flat").mkdir()  # the same slice in a folder of its own
    for name in ("truth", "predictions"):
        shutil.copytree(mixed / name, mixed / "flat" / name)
        (mixed / "flat" / name / "several.nii.gz").unlink()
    assert run(mixed / "flat/predictions", mixed / "flat/truth", *words, mixed / "flat/out") == 0
    (alone,) = read_rows(mixed / "flat/out")
    assert {name: alone[name] for name in ("dice", "hd95", "nsd")} == {
        name: rows["alone"][name] for name in ("dice", "hd95", "nsd")
    }
    assert float(alone["volume_difference"]) == 2  # mm², as ever in a folder of planes


@pytest.mark.parametrize(
    ("spacing", "hd95", "volume"), [(("1",), 1, 1e-3), (("5", "3", "1"), 3, 15e-3), (("2",), 2, 8e-3)]
)
def test_a_slice_beside_volumes_takes_its_part_of_the_spacing(mixed, spacing, hd95, volume):
    for name in ("truth", "predictions"):
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(mixed / name / "alone.nii.gz")))
        values[0, 0, 0] = 0
        values[0, 3, 3] = 0
        write_volume(mixed / name / "alone.nii.gz", values, (5, 2, 1))
    words = ("--metrics", "hd95", "volume_difference", "--spacing", *spacing, "--output", mixed / "out")
    assert run(mixed / "predictions", mixed / "truth", *words) == 0
    rows = {row["case"]: row for row in read_rows(mixed / "out")}
    assert float(rows["alone"]["hd95"]) == hd95
    assert float(rows["alone"]["volume_difference"]) == pytest.approx(volume)


def test_what_a_slice_beside_volumes_has_no_score_for_is_said(mixed, capsys):
    assert run(mixed / "predictions", mixed / "truth", "--metrics", "nsd_umamba") == 2
    assert "several.nii.gz: nsd_umamba is a score of 2D masks" in capsys.readouterr().err
    for name in ("truth", "predictions"):
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(mixed / name / "alone.nii.gz")))
        write_volume(mixed / name / "alone.nii.gz", values[0], (2, 1))
    assert run(mixed / "predictions", mixed / "truth", "--metrics", "hd95") == 0
    words = (mixed / "predictions", mixed / "truth", "--metrics", "volume_difference")
    assert run(*words) == 2
    assert f"{mixed / 'truth/alone.nii.gz'} is one slice of unknown thickness among volumes" in capsys.readouterr().err
    assert run(*words, "--spacing", "5", "2", "1") == 0


def test_predictions_that_lack_cases_are_scored_when_asked_for(volumes):
    no_prediction(volumes)
    out = volumes / "out"
    assert run(volumes / "predictions", volumes / "labelsTr", "--predicted-only", "--output", out) == 0
    assert read_summary(out)["cases_not_scored"] == ["b"]
    assert "cases: 2, 1 more without a prediction" in (out / "scores.txt").read_text()


def test_a_lost_origin_can_be_ignored(volumes):
    read = sitk.ReadImage(str(volumes / "predictions/b.nii.gz"))
    words = (volumes / "predictions", volumes / "labelsTr", "--metrics", "hd95", "--ignore-position", "--output")
    assert run(*words, volumes / "before") == 0
    write_volume(volumes / "predictions/b.nii.gz", sitk.GetArrayFromImage(read), origin=5)
    assert run(*words, volumes / "after") == 0
    before, after = read_summary(volumes / "before"), read_summary(volumes / "after")
    assert before["mean"] == after["mean"]
    assert after["position"] == "not compared"


def test_ignoring_positions_turns_a_mirrored_header_only_when_asked_to(volumes):
    truths = volumes / "mirrored"
    truths.mkdir()
    for path in (volumes / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        shutil.copy(path, volumes / "predictions" / path.name)
        image.SetOrigin(image.TransformIndexToPhysicalPoint((image.GetWidth() - 1, 0, 0)))
        image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))  # the same voxels on the same grid
        sitk.WriteImage(image, str(truths / path.name))
    words = (volumes / "predictions", truths, "--metrics", "dice", "--output")
    assert run(*words, volumes / "stored", "--ignore-position") == 0
    assert run(*words, volumes / "turned", "--ignore-position", "--reorient") == 0
    assert run(*words, volumes / "compared") == 0
    stored, turned, compared = (read_summary(volumes / name) for name in ("stored", "turned", "compared"))
    assert stored["overall"]["dice"]["mean"] == 1
    assert turned["mean"] == compared["mean"]
    assert turned["overall"]["dice"]["mean"] < 0.9
    assert (stored["position"], turned["position"]) == ("not compared", "not compared, but turned")


def test_nnunets_own_summary_stays_when_writing_beside_it(volumes):
    (volumes / "predictions/summary.json").write_text("nnU-Net's")
    words = ("--metrics", "dice", "--output", volumes / "predictions", "--overwrite")
    assert run(volumes / "predictions", volumes / "labelsTr", *words) == 0
    assert (volumes / "predictions/summary.json").read_text() == "nnU-Net's"
    assert read_summary(volumes / "predictions")["cases"] == ["a", "b", "c"]


NOT_INSTALLED = """
import sys

asked = []

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnunetv2":
            asked.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import nnunet_logvmamba.evaluation.surface
print(asked)

from pathlib import Path
from nnunet_logvmamba.evaluation import folders
from nnunet_logvmamba.evaluation.scoring import Settings
root = Path(sys.argv[1])
pairs, _ = folders.find_pairs(root / 'predictions', root / 'labelsTr')
labels = folders.read_dataset_json(root / 'predictions/dataset.json')
print(folders.as_text(folders.evaluate(pairs, labels, Settings()).summary))
"""


def test_it_works_without_nnunet_and_distances_do_not_ask_for_it(volumes, run_command):
    """nnU-Net is hidden from the interpreter, as if it were not installed."""
    asked, *said = run_command(["python", "-c", NOT_INSTALLED, volumes]).stdout.splitlines()
    assert asked == "[]"
    assert "outer" in "\n".join(said)


def test_cells_of_the_shared_data_are_perfect_against_themselves(shared, tmp_path):
    labels = shared / "data/cells/labels"
    (tmp_path / "few").mkdir()
    for path in sorted(labels.iterdir())[::30]:
        os.symlink(path, tmp_path / "few" / path.name)
    out = tmp_path / "out"
    assert run(tmp_path / "few", labels, "--instances", "--predicted-only", "--output", out) == 0
    means = read_summary(out)["mean"]["instances"]
    assert {name: means[name]["mean"] for name in ("f1", "object_iou", "average_precision", "dice", "nsd")} == (
        dict.fromkeys(("f1", "object_iou", "average_precision", "dice", "nsd"), 1)
    )


def test_instance_maps_without_their_option_are_refused_with_it(volumes, capsys):
    maps = volumes / "instancesTr"
    maps.mkdir()
    (maps / "a.tiff").touch()
    (volumes / "dataset.json").write_text("{}")
    assert run(volumes / "predictions", maps) == 2
    assert "then score OUT with --instances" in capsys.readouterr().err
    found = volumes / "out"
    found.mkdir()
    (found / "a_label.tiff").touch()
    assert run(found, maps) == 2
    assert f"{found / 'a_label.tiff'} is named as an instance map: to score instances, add --instances" in (
        capsys.readouterr().err
    )
    (volumes / "dataset.json").unlink()
    assert run(found, found) == 2  # a pair by its name
    assert (
        "add --instances; if it holds classes, name their dataset.json with --dataset-json" in capsys.readouterr().err
    )
    assert run(found, found, "--dataset-json", volumes / "predictions/dataset.json") == 2  # the file is empty
    assert "a_label.tiff cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--iou", "0.9"), "--iou is of instance maps"),
        (("--iou", "0.5"), "--iou is of instance maps"),
        (("--border", "0"), "--border is of instance maps"),
        (("--tile", "20"), "--tile is of instance maps"),
        (("--metrics", "Dice", "--tolerance", "1"), "--tolerance is that of NSD"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(volumes, words, sentence, capsys):
    assert run(volumes / "predictions", volumes / "labelsTr", *words) == 2
    assert sentence in capsys.readouterr().err


def test_a_map_without_the_mark_of_the_others_is_a_case_all_the_same(cells, capsys):
    imwrite(cells / "truth" / "c.tiff", np.ones((40, 60), np.int32))
    words = (cells / "predictions", cells / "truth", "--instances", "--metrics", "F1")
    assert run(*words) == 2
    assert "holds no prediction for 1 reference(s), the first is 'c'" in capsys.readouterr().err
    (cells / "truth" / "c.tiff").unlink()
    (cells / "predictions" / "a.tif").rename(cells / "predictions" / "a_label.tif")
    assert run(*words, "--output", cells / "out") == 0
    assert read_summary(cells / "out")["cases"] == ["a", "b"]


def test_a_case_that_has_instances_at_its_border_alone_is_named(tmp_path, capsys):
    values = np.zeros((4, 12, 12), np.uint8)
    values[:, 4:8, 4:8] = 1
    for name in ("truth", "predictions"):
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / "thin.nii.gz", values)
    words = (tmp_path / "predictions", tmp_path / "truth", "--instances", "--metrics", "F1")
    assert run(*words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 case(s) have no instance further than 2 px from the border" in said
    assert "--border 0 keeps them" in said
    assert run(*words, "--border", "0") == 0
    assert "keeps them" not in capsys.readouterr().out
