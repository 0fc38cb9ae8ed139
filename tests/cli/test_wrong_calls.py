"""A wrong call of any command is answered before anything is loaded that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_logvmamba.cli import SUB_COMMANDS

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("nnunet_logvmamba.cli", "numpy", "scipy")
# What is slow among all that these import is loaded in every call, and found there.
OF_COMMANDS = (*QUICK, *(f"nnunet_logvmamba.cli.{name}" for name in SUB_COMMANDS))
OF_COMMANDS += ("nnunet_logvmamba.evaluation.folders", "nnunet_logvmamba.results.runs")
OF_COMMANDS += ("nnunet_logvmamba.plugin.plans", "nnunet_logvmamba.plugin.checkpoint_damage")
SLOW = ("torch", "torchvision", "batchgenerators", "scipy.ndimage", "scipy.stats", "skimage", "monai", "matplotlib")
SLOW += ("SimpleITK", "nibabel", "tifffile", "PIL", "pandas", "numba", "onnx", "jinja2")

# Every call in a process of its own, forked from one that has loaded what every call may load.
EACH = """
import contextlib, importlib, io, json, os, sys
calls, quick, slow = json.load(sys.stdin)
for module in quick:
    importlib.import_module(module)
for module, words in calls:
    reading, writing = os.pipe()
    if os.fork() == 0:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                code = importlib.import_module(module).main(words)
        except SystemExit as stop:
            code = stop.code
        loaded = sorted(set(slow) & sys.modules.keys())
        os.write(writing, json.dumps([code, said.getvalue(), loaded]).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        print(answer.read().decode())
    os.wait()
"""

MODEL = "nnUNetTrainerLoGVMamba__nnUNetPlans__2d"
NEW = "plans -d 998 -c 2d --name new"
CARD = "plan -d 998 --gpu-memory 16"
TYPO = "nnUNetTrainerLoGVMabma"

# The call, and what is said; files and folders are those of `here`.
CALLS = {
    "dcotor": "did you mean doctor?",
    "doctor --jsn": "did you mean --json?",
    "--verbose doctor": "unrecognized arguments: --verbose",
    "run 997 2d": "has no data set 997",
    "run 998 4d": "there is no configuration '4d'",
    "run 998 2d --fold x": "--fold takes the numbers of folds",
    "run 998 2d --fold 5": "there is no fold 5",
    f"run 998 2d --trainer {TYPO}": "the nearest is nnUNetTrainerLoGVMamba:",
    "run 998 2d --predict nowhere out": "nowhere is not a folder",
    "run 998 2d --predict model out --references nowhere": "nowhere is not a folder",
    "run 998 2d": "has no folder imagesTr",
    "plan -d 998": "required: --gpu-memory",
    "plan -d 997 --gpu-memory 16": "has no data set 997",
    "plan -d 998 --gpu-memory 1": "must be a number of at least 2",
    f"{CARD} --network UNet": "invalid choice",
    f"{CARD} --set checkpointing": "--set takes NAME=VALUE",
    f"{CARD} --name nnUNetPlans": "are nnU-Net's own",
    f"{CARD} --name a__b": "cannot name plans",
    f"{CARD} --name Mine": "Mine.json exists already",
    CARD: "has no folder imagesTr",
    "plans -d 997 -c 2d --name new": "one data set Dataset997_* is needed",
    "plans -d 998 -c 4d --name new": "there is no configuration '4d' in these plans; there are 2d",
    "plans -d 998 -c 2d --name 2d": "cannot be derived from itself",
    "plans -d 998 -c 2d --name new__one": "cannot name a configuration",
    f"{NEW} -p none": "there are no plans none in",
    f"{NEW} --set placement": "--set takes NAME=VALUE",
    f"{NEW} --train epochs=3": "unknown setting 'epochs'",
    f"{NEW} --train num_epochs=no": "must be a whole number of at least 1",
    f"{NEW} --train optimizer=sdg": "unknown optimizer 'sdg'",
    f"{NEW} --train pretrained=nowhere.pth": "there is no checkpoint",
    f"{NEW} --keep-network --set placement=head": "cannot go with --keep-network",
    f"{NEW} --network UNet": "invalid choice",
    "summary": "one of the arguments",
    "summary --preset paper4d": "there is no preset 'paper4d'",
    "summary -d 997": "one data set Dataset997_* is needed",
    "summary -d 998 -c 4d": "there is no configuration '4d' in nnUNetPlans",
    f"summary -d 998 -c 2d -tr {TYPO}": "the nearest is nnUNetTrainerLoGVMamba:",
    "summary -d 998 -c 2d -tr nnUNetTrainerOfMine": "nnU-Net finds no trainer 'nnUNetTrainerOfMine'",
    "peers -d 997": "one data set Dataset997_* is needed",
    "peers -d 998 -c 4d": "there is no configuration '4d' in nnUNetPlans",
    "check nowhere": "nowhere is not there",
    "check no.pth": "no.pth is damaged",
    "check nowhere model": "nowhere is not a folder",
    "check model nowhere": "the folder of images comes first",
    "check pictures nowhere": "nowhere is no trained model",
    f"check empty {MODEL}": "has no dataset.json",
    "check nnUNet_raw/Dataset998_Balls": "has no folder imagesTr",
    "check empty": "holds no checkpoint",
    "adopt nowhere -d 998": "nowhere is not there",
    "adopt empty -d 998": "has no folds",
    "adopt no.pth -d 998": "no.pth is damaged",
    "adopt no.pth -d Balls": "'Balls' is neither the number",
    f"adopt {MODEL} -d 998 --fold 7": "has no fold 7",
    f"adopt {MODEL} -d 998": "checkpoint_final.pth does not exist",
    "evaluate nowhere empty": "nowhere is not a folder",
    "evaluate empty empty": "holds no file that ends in",
    "evaluate predictions empty": "holds no file that ends in",
    "evaluate predictions references": "holds no reference for 1 prediction(s), the first is 'a'",
    "evaluate predictions predictions --metrics F1": "add --instances",
    "evaluate predictions predictions --tolerance x": "must be a number",
    "evaluate predictions predictions --output predictions": "is not empty",
    "instances nowhere out": "nowhere is not a folder",
    "instances empty out": "holds no file that ends in",
    "instances pictures empty --references nowhere": "nowhere is not a folder",
    "instances pictures out --gallery x.png": "--gallery needs the images",
    "instances pictures pictures": "is not empty",
    "compare nowhere": "nowhere is not a folder",
    "compare empty": "holds no trained model",
    f"compare {MODEL} --names a": "--names takes OLD=NEW",
    f"compare {MODEL}": "fold_0",
    "report nowhere": "nowhere is not the folder of a fold",
    "report empty": "empty is not the folder of a fold",
    "report no.pth": "is a file",
    f"report {MODEL} --images nowhere": "nowhere is not a folder",
    f"report {MODEL}": "dataset.json",
    "export nowhere out.onnx": "nowhere is not a folder",
    "export empty out.onnx": "is no trained model",
    f"export {MODEL} nowhere/out.onnx": "there is no folder nowhere",
    f"export {MODEL} out.onnx": "has no checkpoint_final.pth",
    "study": "required: ACTION",
    "study rnu": "invalid choice",
    "study nowhere.toml": "there is no file nowhere.toml",
    "study run study.toml": "study.toml",
    "doctor nowhere": "nowhere",
    "summary --preset paper2d --receptive-field field.jpg": "does not end in .png",
    "completion basch": "invalid choice",
}
UNSET = {  # without nnU-Net's variables
    "run 998 2d": "are not set",
    CARD: "are not set",
    NEW: "nnUNet_preprocessed is not set",
    "summary -d 998": "nnUNet_preprocessed is not set",
    "peers -d 998": "nnUNet_preprocessed is not set",
    "adopt no.pth -d 998": "nnUNet_results is not set",
}
CONVERTERS = ("004_Hippocampus", "501_BraTS2020", "502_ACDC", "503_EndoVis2017", "504_NeurIPSCellSeg")
OTHERS = {
    **{f"Dataset{name} {words}": said for name in CONVERTERS for words, said in {
        "nowhere": "nowhere", "nowhere -d x": "invalid dataset_id", "--images-only nowhere out": "nowhere",
        "--restore nowhere out": "nowhere",
    }.items()},
    "phantoms brats": "invalid choice",
    "phantoms cells out --shape 1 2 3": "are for the 3D layouts only",
    "phantoms acdc out --distance 20": "are for long_range only",
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """Folders in which every call goes wrong."""
    root = tmp_path_factory.mktemp("here")
    labels = {"background": 0, "ball": 1}
    described = json.dumps({"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    for folder in ("nnUNet_raw/Dataset998_Balls", "nnUNet_preprocessed/Dataset998_Balls", "empty"):
        (root / folder).mkdir(parents=True)
    for part in ("raw", "preprocessed"):
        (root / f"nnUNet_{part}/Dataset998_Balls/dataset.json").write_text(described)
    (root / "nnUNet_preprocessed/Dataset998_Balls/nnUNetPlans.json").write_text('{"configurations": {"2d": {}}}')
    (root / "nnUNet_preprocessed/Dataset998_Balls/Mine.json").write_text("{}")
    (root / MODEL / "fold_0").mkdir(parents=True)
    (root / "study.toml").write_text("trainers = 3\n")
    for file in ("no.pth", "model/plans.json", "predictions/a.nii.gz", "references/b.nii.gz", "pictures/a.png"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text("{}")
    return root


def answers(
    calls: list[tuple[str, list[str]]], here: Path, environment: dict[str, str], quick=QUICK, slow=SLOW
) -> list[list]:
    """Exit code, what was said, and which slow packages were loaded, for each call of a module."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    done = subprocess.run(
        [sys.executable, "-c", EACH],
        input=json.dumps([calls, quick, slow]),
        cwd=here,
        env={**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "1000", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(calls: dict[str, str], found: list[list]) -> None:
    assert len(found) == len(calls)
    for (call, sentence), (code, said, loaded) in zip(calls.items(), found):
        assert code == 2, (call, said)
        assert sentence in said, (call, said)
        assert "Traceback" not in said, call
        assert loaded == [], call


def test_every_command_answers_a_wrong_call_at_once(here):
    assert {call.partition(" ")[0] for call in CALLS} >= set(SUB_COMMANDS)
    folders = {f"nnUNet_{part}": str(here / f"nnUNet_{part}") for part in ("raw", "preprocessed", "results")}
    calls = [("nnunet_logvmamba.cli", call.split()) for call in CALLS]
    check(CALLS, answers(calls, here, folders, OF_COMMANDS))


def test_every_command_says_at_once_which_variables_are_not_set(here):
    calls = [("nnunet_logvmamba.cli", call.split()) for call in UNSET]
    check(UNSET, answers(calls, here, {}, OF_COMMANDS))


def test_every_converter_answers_a_wrong_call_at_once(here):
    calls = [(f"dataset_conversion.{call.split()[0]}", call.split()[1:]) for call in OTHERS]
    folders = {name: str(here / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    check(OTHERS, answers(calls, here, folders))


def test_help_is_printed_without_numpy(here):
    calls = [("nnunet_logvmamba.cli", [*name, "--help"]) for name in ([], *([name] for name in SUB_COMMANDS))]
    for (module, words), (code, said, loaded) in zip(calls, answers(calls, here, {}, (), ("numpy", "nnunetv2", *SLOW))):
        assert (code, loaded) == (0, []), (module, words)
        assert said.startswith("usage: "), (module, words)
