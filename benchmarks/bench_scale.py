"""Measure what the costs of a study of BraTS's size rest on, and write ``benchmarks/results/scale_cpu.json``.

``python benchmarks/bench_scale.py`` generates a case of 240 x 240 x 155 voxels in four channels, has nnU-Net plan and
preprocess it, draws patches as a training does, writes a checkpoint, and counts the work of every network on that plan.
Seconds are those of the processor, of one core, so that it matters little what else runs. ``scale.py`` reckons with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np
import torch
from bench_network import peers
from measure import save
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from workloads import BRATS

from dataset_conversion.Dataset501_BraTS2020 import DESCRIPTION
from dataset_conversion.phantoms.anatomy import write_volume
from dataset_conversion.phantoms.brats2020 import brats_case
from nnunet_logvmamba.networks.costs import summarize
from nnunet_logvmamba.plugin import trainers

SHAPE, HEAD = (155, 240, 240), (150, 180, 145)  # z, y, x of the volume; x, y, z of the phantom in it: a sixth is brain
QUICK = (40, 48, 48), (36, 40, 36)
NAME, NUMBER = "Dataset801_Phantom", "801"
CONFIGURATION = "3d_fullres"
PATCHES = 24
ENDING = ".nii.gz"


def write_case(raw: Path, shape: tuple[int, ...], head: tuple[int, int, int]) -> None:
    """A data set of one phantom in the middle of nothing, labelled as our converter labels BraTS."""
    images, mask = brats_case(np.random.default_rng(2021), head)
    folder = raw / NAME
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    around = [((whole - part) // 2, whole - part - (whole - part) // 2) for whole, part in zip(shape, mask.shape)]
    label = np.zeros(256, np.uint8)
    label[list(DESCRIPTION.label_map)] = list(DESCRIPTION.label_map.values())
    for channel, voxels in enumerate(images.values()):
        write_volume(np.pad(voxels, around), folder / "imagesTr" / f"case_{channel:04d}{ENDING}")
    write_volume(np.pad(label[mask], around), folder / "labelsTr" / f"case{ENDING}")
    content = {
        "channel_names": dict(enumerate(DESCRIPTION.channels)),
        "labels": DESCRIPTION.labels,
        "regions_class_order": DESCRIPTION.regions_class_order,
        "numTraining": 1,
        "file_ending": ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files below a folder, by their names."""
    return {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def preprocess(raw: Path, preprocessed: Path) -> float:
    """Plan and preprocess with nnU-Net's command; seconds of the processor for the case, in a process that runs."""
    program = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    command = [program, "-d", NUMBER, "-npfp", "1", "-np", "1", "-c", CONFIGURATION]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    manager = PlansManager(str(preprocessed / "nnUNetPlans.json"))
    planned = manager.get_configuration(CONFIGURATION)
    images = [str(path) for path in sorted((raw / "imagesTr").iterdir())]
    label = str(raw / "labelsTr" / f"case{ENDING}")
    preprocessor = planned.preprocessor_class(verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        preprocessor.run_case_save(
            str(Path(folder) / "case"), images, label, manager, planned, str(raw / "dataset.json")
        )
        return time.process_time() - begin


def read_so_far() -> int:
    """Bytes that this process has asked the system for."""
    return int(next(line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line).split()[1])


def draw_patches(trainer) -> dict[str, float]:
    """Seconds of one core and bytes for one patch of nnU-Net's loader, with its augmentation."""
    loader, _ = trainer.get_dataloaders()
    batches = PATCHES // trainer.batch_size
    begin = time.process_time()
    for _ in range(batches):
        next(loader)
    seconds = (time.process_time() - begin) / PATCHES
    plain = loader.data_loader
    plain.transforms = None
    plain._data.mmap_kwargs = {}  # mapped pages are read by nobody who counts
    before = read_so_far()
    for _ in range(batches):
        next(plain)
    return {"seconds": seconds, "bytes": (read_so_far() - before) / PATCHES}


def write_checkpoint(trainer, folder: Path) -> int:
    """Bytes of a checkpoint after a step of the optimizer, without which it has no state."""
    for parameter in trainer.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    return (folder / "checkpoint_final.pth").stat().st_size


def windows(shape: list[int], patch: list[int]) -> int:
    """How many patches nnU-Net predicts of a case, without mirroring."""
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    padded = tuple(max(edge, size) for edge, size in zip(shape, patch))
    return prod(map(len, compute_steps_for_sliding_window(padded, tuple(patch), 0.5)))


def work(plans: dict) -> dict[str, dict[str, int]]:
    """Parameters, multiply-adds of a patch forwards and bytes kept for the backward pass, of every 3D network."""
    found = {}
    for name in peers(BRATS):
        trainer = getattr(trainers, f"nnUNetTrainer{'StockNetwork' if name == 'PlainConvUNet' else name}")
        manager = PlansManager(trainer._own_plans(plans, CONFIGURATION))
        planned = manager.get_configuration(CONFIGURATION)
        channels, classes = len(DESCRIPTION.channels), len(DESCRIPTION.regions_class_order)
        with torch.device("meta"):
            network = trainer.build_network_architecture(manager, planned, channels, classes)
        cost = summarize(network, channels, planned.patch_size, planned.batch_size)
        found[name] = {
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            "kept_bytes": cost.activation_bytes,
        }
        print(name, found[name], flush=True)
    return found


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small case, saved under another name")
    args = parser.parse_args()
    shape, head = QUICK if args.quick else (SHAPE, HEAD)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(root) / name)
            (Path(root) / name).mkdir()
        os.environ.update(nnUNet_n_proc_DA="1")  # the planner takes no 0
        write_case(Path(root) / "raw", shape, head)
        preprocessed = Path(root) / "preprocessed" / NAME
        seconds = preprocess(Path(root) / "raw" / NAME, preprocessed)
        os.environ.update(nnUNet_n_proc_DA="0")
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        planned = plans["configurations"][CONFIGURATION]

        from nnunetv2.run.run_training import get_trainer_from_args

        trainer = get_trainer_from_args(
            NUMBER, CONFIGURATION, "all", "nnUNetTrainerLoGVMamba", device=torch.device("cpu")
        )
        trainer.initialize()
        cropped = plans["original_median_shape_after_transp"]
        results = {
            "case": {
                "shape": shape,
                "cropped": cropped,
                "raw": sizes(Path(root) / "raw" / NAME),
                "preprocessed": sizes(preprocessed / planned["data_identifier"])
                | {"gt_segmentations": sum(sizes(preprocessed / "gt_segmentations").values())},
                "seconds": seconds,
            },
            "plan": {
                "patch": planned["patch_size"],
                "batch": planned["batch_size"],
                "features": planned["architecture"]["arch_kwargs"]["features_per_stage"],
                "regions": len(DESCRIPTION.regions_class_order),
                "windows": windows(cropped, planned["patch_size"]),
            },
            "patch": draw_patches(trainer),
            "checkpoint": {
                "trainer": "LoGVMamba",
                "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
                "bytes": write_checkpoint(trainer, Path(trainer.output_folder)),
            },
            "work": {},
        }
        print(json.dumps(results, indent=1), flush=True)
        results["work"] = work(plans)
    print(save(f"scale_cpu{'_quick' * args.quick}", results, None))


if __name__ == "__main__":
    main()
