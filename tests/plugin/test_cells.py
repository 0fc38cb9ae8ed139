"""Real microscopy from files to instances, command by command: what a cell biologist does, with the 2D network."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from commands import NnunetFolders, run_command
from matplotlib import image as pictures
from PIL import Image
from small_project import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CASES_OF_A_KIND = 2
NAME = "Dataset504_NeurIPSCellSeg"
TRAINER = "nnUNetTrainerLoGVMambaSwin"
SMALL = ["features_per_stage=[8,8,16,24,32]", "n_blocks_per_stage=[1,1,1,1]", "n_blocks_per_stage_decoder=1"]
SHORT = ["num_epochs=1", "num_iterations_per_epoch=3", "num_val_iterations_per_epoch=1", "seed=1"]
pytestmark = pytest.mark.slow
KINDS = ("fluorescence_256", "histology_rgb", "fluorescence_16bit")


@pytest.fixture(scope="module")
def source(shared, tmp_path_factory) -> Path:
    """Two real images of three kinds, among them colour and 16 bits, in the layout of the shared data."""
    folder = tmp_path_factory.mktemp("cells")
    with (shared / "data" / "cells" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for kind in KINDS for row in [r for r in rows if r["modality"] == kind][:CASES_OF_A_KIND]]
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for row in chosen:
        shutil.copy(shared / "data" / "cells" / "images" / row["image"], folder / "images")
        shutil.copy(shared / "data" / "cells" / "labels" / row["label"], folder / "labels")
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(chosen)
    return folder


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory) -> NnunetFolders:
    """The data set converted, planned, and one short training of a small network on patches that 32 does not divide."""
    folders = NnunetFolders.below(tmp_path_factory.mktemp("nnunet"))
    convert = ["python", "-m", "dataset_conversion.Dataset504_NeurIPSCellSeg", source]
    run_command(convert, cwd=ROOT, **folders.environment)
    plan = "nnUNetv2_plan_and_preprocess -d 504 -c 2d --verify_dataset_integrity -np 1 -npfp 1"
    run_command(plan.split(), nnUNet_n_proc_DA="1", **folders.environment)
    configure = "logvmamba plans -d 504 -c 2d --name 2d_small --network LoGVMambaSwinUNet"
    configure += " --batch-size 2 --patch-size 100 130"
    written = run_command([*configure.split(), "--set", *SMALL, "--train", *SHORT], **folders.environment)
    assert f"nnUNetv2_train 504 2d_small 0 -tr {TRAINER}" in written.stdout
    run_command(f"nnUNetv2_train 504 2d_small 0 -tr {TRAINER} -device cpu".split(), **folders.environment)
    return folders


def predict(folders: NnunetFolders, images: Path, target: Path, check: bool = True):
    command = f"nnUNetv2_predict -i {images} -o {target} -d 504 -c 2d_small -f 0 -tr {TRAINER}"
    options = "-device cpu -npp 1 -nps 1 --disable_tta"
    return run_command([*command.split(), *options.split()], check=check, **folders.environment)


def test_the_training_saw_every_image_as_three_channels_and_knows_its_network(trained):
    fold = trained.results / NAME / f"{TRAINER}__nnUNetPlans__2d_small" / "fold_0"
    checkpoint = read_checkpoint(fold / "checkpoint_final.pth")
    assert checkpoint["network_weights"]["encoder.patch_embed.proj.weight"].shape == (8, 3, 4, 4)
    assert np.isfinite(checkpoint["logging"]["train_losses"]).all()
    assert "ATTENTION: no pretrained encoder was asked for" in next(fold.glob("training_log*")).read_text()


def test_the_training_scored_its_instances_and_they_are_compared(trained, tmp_path):
    model = trained.results / NAME / f"{TRAINER}__nnUNetPlans__2d_small"
    validation = model / "fold_0" / "validation"
    content = json.loads((validation / "instances.json").read_text())
    summary = json.loads((validation / "summary.json").read_text())
    cases = [Path(entry["prediction_file"]).stem for entry in summary["metric_per_case"]]
    assert content["cases"] == sorted(cases)
    out = tmp_path / "out"
    references = trained.raw / NAME / "instancesTr"
    run_command(["logvmamba", "instances", validation, out, "--references", references, "--predicted-only"])
    command = json.loads((out / "scores.json").read_text())
    for key in ("settings", "definitions", "mean", "cases"):
        assert content[key] == command[key], key
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [[row["case"], row["tp"], row["fp"], row["fn"]] for row in rows] == [
        [row["case"], str(row["tp"]), str(row["fp"]), str(row["fn"])] for row in content["scores"]
    ]
    (log,) = (model / "fold_0").glob("training_log_*.txt")
    assert "Instances (instances.json): mean f1" in log.read_text()
    # The same fold under another trainer's name, with scores that stand out, is a method to compare with.
    other = tmp_path / NAME / "nnUNetTrainerVMambaSwin__nnUNetPlans__2d_small"
    shutil.copytree(model, other)
    copied = other / "fold_0" / "validation" / "instances.json"
    for row in content["scores"]:
        row["f1"] = 0.75
    copied.write_text(json.dumps(content))
    page = run_command(["logvmamba", "compare", model, other, "--metrics", "F1"]).stdout
    assert re.search(r"\| VMambaSwin \| \*\*0\.7500", page)
    assert "F1: pairs" in page


def test_predictions_become_instances_scores_and_a_gallery(trained, tmp_path):
    images, some = trained.raw / NAME / "imagesTr", tmp_path / "images"
    some.mkdir()
    for path in sorted(images.iterdir())[:2]:
        shutil.copy(path, some)
    predict(trained, some, tmp_path / "predicted")
    # A few steps teach a network nothing, so what is scored is recovered from the truth's own classes.
    truths = trained.raw / NAME / "labelsTr"
    everything = len(KINDS) * CASES_OF_A_KIND
    for name, classes, count in (("predicted", tmp_path / "predicted", 2), ("truth", truths, everything)):
        command = ["logvmamba", "instances", classes, tmp_path / f"{name}_instances", "--images", images]
        command += ["--references", trained.raw / NAME / "instancesTr", "--predicted-only", "--gallery-cases", 3]
        run_command(command)
        out = tmp_path / f"{name}_instances"
        assert len(list(out.glob("*_label.tif*"))) == count
        gallery = pictures.imread(out / "gallery.png")
        assert min(gallery.shape[:2]) > 300
        assert gallery[..., :3].std() > 0.05
    scores = json.loads((tmp_path / "truth_instances" / "scores.json").read_text())["mean"]
    assert scores["f1"]["mean"] > 0.8
    assert scores["dice_foreground"]["mean"] > 0.9
    for path in (tmp_path / "truth_instances").glob("*_label.tif*"):
        case = path.name.split("_label")[0]
        assert tifffile.imread(path).shape == np.asarray(Image.open(truths / f"{case}.png")).shape


def test_an_image_smaller_than_the_patch_is_predicted_at_its_own_size(trained, tmp_path):
    (tmp_path / "images").mkdir()
    tiny = np.random.default_rng(0).integers(0, 255, (20, 31, 3), np.uint8)
    Image.fromarray(tiny).save(tmp_path / "images" / "tiny_0000.png")
    predict(trained, tmp_path / "images", tmp_path / "predicted")
    assert np.asarray(Image.open(tmp_path / "predicted" / "tiny.png")).shape == (20, 31)


def test_an_image_with_too_few_channels_is_named_in_one_sentence(trained, tmp_path):
    (tmp_path / "images").mkdir()
    grey = np.random.default_rng(0).integers(0, 2**16, (64, 80), np.uint16)
    Image.fromarray(grey).save(tmp_path / "images" / "grey_0000.png")
    done = predict(trained, tmp_path / "images", tmp_path / "predicted", check=False)
    assert done.returncode != 0
    assert "the image has 1 channel(s) and the network was built for 3: give every image 3 channel(s)" in done.stderr
    assert not list((tmp_path / "predicted").glob("*.png"))
