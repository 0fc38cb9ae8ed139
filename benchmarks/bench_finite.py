"""Time what it costs to keep numbers that are not finite out of a training.

``python benchmarks/bench_finite.py [--quick]`` takes, in turns and in one run on the CPU, a training step of
``nnUNetTrainerStockNetwork`` and of ``nnUNetTrainerLoGVMamba`` as it is, the same step as nnU-Net takes it, and what is
done on top alone, since that is far less than a step varies by; then a check of preprocessed cases, and a save with and
without the look at its weights. It writes ``benchmarks/results/finite_cpu.json``.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from checkout import commit_of_checkout
from measure import save, side_by_side
from workloads import HIPPOCAMPUS

DATASET, PLANS, CHANNELS = "Dataset900_Cases", "nnUNetPlans", {"0": "MRI"}
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}
FAMILIES = ("StockNetwork", "LoGVMamba")


def plans(patch: tuple[int, ...]) -> dict:
    """One configuration as nnU-Net plans it for hippocampus."""
    arguments = {key: value for key, value in HIPPOCAMPUS.plan.items() if key not in ("input_channels", "num_classes")}
    arguments |= {"conv_op": "torch.nn.Conv3d", "norm_op": "torch.nn.InstanceNorm3d", "nonlin": "torch.nn.LeakyReLU"}
    stages = len(HIPPOCAMPUS.features)
    arguments |= {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    configuration = {
        "data_identifier": f"{PLANS}_3d_fullres",
        "batch_size": HIPPOCAMPUS.batch_size,
        "batch_dice": False,
        "spacing": [1.0] * 3,
        "patch_size": list(patch),
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
        },
    }
    return {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"3d_fullres": configuration},
        "continue_training": False,
    }


@contextmanager
def folders(shape: tuple[int, ...]) -> Iterator[Path]:
    """Folders of nnU-Net with one preprocessed case; gives the folder of the case."""
    with tempfile.TemporaryDirectory() as root:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(root) / name)
        from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

        folder = Path(root) / "preprocessed" / DATASET / f"{PLANS}_3d_fullres"
        folder.mkdir(parents=True)
        image = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
        labels = (image > 1).astype(np.int16) + (image > 2)
        of = (
            {"blocks": b, "chunks": c}
            for b, c in (comp_blosc2_params(image.shape, HIPPOCAMPUS.patch_size, size) for size in (4, 2))
        )
        image_layout, label_layout = of
        layout = image_layout | {f"{key}_seg": value for key, value in label_layout.items()}
        nnUNetDatasetBlosc2.save_case(image, labels, {}, str(folder / "case"), **layout)
        yield folder


def steps(family: str, patch: tuple[int, ...], rounds: int) -> dict:
    """A step as it is, as nnU-Net takes it, and what is on top alone; with what a save costs."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_logvmamba.plugin import trainers

    def trainer() -> nnUNetTrainer:
        dataset = {"channel_names": CHANNELS, "labels": LABELS, "file_ending": ".nii.gz"}
        torch.manual_seed(0)
        made = getattr(trainers, f"nnUNetTrainer{family}")(plans(patch), "3d_fullres", 0, dataset, torch.device("cpu"))
        made.initialize()
        made.network.train()
        return made

    watched, bare = trainer(), trainer()
    bare.loss._forward_hooks.clear()
    bare.optimizer._optimizer_step_pre_hooks.clear()
    scales = [[size // 2**stage for size in patch] for stage in range(len(HIPPOCAMPUS.features) - 1)]
    batch = {
        "data": torch.randn(HIPPOCAMPUS.batch_size, 1, *patch),
        "target": [torch.randint(0, 3, (HIPPOCAMPUS.batch_size, 1, *scale)) for scale in scales],
        "keys": ["case"] * HIPPOCAMPUS.batch_size,
    }
    loss = torch.zeros((), requires_grad=True)

    def on_top() -> None:
        watched._tell_gradients(watched.loss, (), loss)
        watched._before_update(watched.optimizer)

    watched.train_step(batch)  # so that there are gradients
    file = Path(watched.output_folder) / "checkpoint.pth"
    times = side_by_side(
        {
            "step": lambda: watched.train_step(batch),
            "nnunet_step": lambda: nnUNetTrainer.train_step(bare, batch),
            "on_top": on_top,
            "save": lambda: watched.save_checkpoint(str(file)),
            "nnunet_save": lambda: nnUNetTrainer.save_checkpoint(bare, str(file)),
        },
        rounds=rounds,
        slow_rounds=rounds,
    )
    share = times["on_top"]["seconds"] / times["nnunet_step"]["seconds"]
    print(f"{family}: on top of a step {share:.3%}")
    return {"family": family, "seconds": times, "share_of_a_step": share}


def check_of_cases(folder: Path, shape: tuple[int, ...], rounds: int) -> dict:
    """One case in memory of the system, as it is read and checked."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from nnunet_logvmamba.plugin.preprocessed_cases import fault

    def check() -> None:
        found = fault(nnUNetDatasetBlosc2(str(folder)), "case", [-1, 0, 1, 2], CHANNELS)
        if found is not None:
            raise SystemExit(found)

    gigabytes = 4e-9 * float(np.prod(shape))
    times = side_by_side({"check": check}, rounds=rounds)
    print(f"check of cases: {gigabytes / times['check']['seconds']:.2f} GB/s")
    return {"gigabytes": gigabytes, "seconds": times}


def main() -> None:
    """Measure everything and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    quick = parser.parse_args().quick
    shape, patch, rounds = ((48,) * 3, (16,) * 3, 3) if quick else ((256,) * 3, HIPPOCAMPUS.patch_size, 21)
    with folders(shape) as folder:
        commit = commit_of_checkout()
        results = {
            "steps": [steps(family, patch, rounds) for family in FAMILIES],
            "cases": check_of_cases(folder, shape, rounds),
        }
        print(save("finite_cpu_quick" if quick else "finite_cpu", results, None, commit=commit))


if __name__ == "__main__":
    main()
