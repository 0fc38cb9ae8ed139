"""The main job on a generated tumour phantom: stock nnU-Net plans, preprocesses, trains and predicts with LoG-VMamba.

``make demo``, or ``python benchmarks/demo.py [--device cpu|cuda] [--folder .demo]``. Everything it writes lies below
the folder, whatever ``nnUNet_*`` variables are set; the folder is made anew. Every command is printed before it runs,
so that each can be repeated by hand, and its seconds behind it.
"""

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

CHECKOUT = Path(__file__).resolve().parents[1]
DATASET, TRAINER, CONFIGURATION = "501", "nnUNetTrainerLoGVMamba", "3d_demo"
NUM_TRAINING, NUM_HELD_OUT, FIRST_HELD_OUT = 20, 4, 101
# A short schedule for two CPU cores, with the default recipe; a real training has 250,000 iterations.
SCHEDULE = {
    "num_epochs": 8,
    "num_iterations_per_epoch": 25,
    "num_val_iterations_per_epoch": 2,
    "seed": 1,
}
BATCH_SIZE, PATCH_SIZE = 2, (32, 32, 32)

# Tissue: its label in BraTS 2020's masks, its label in our data set and so in predictions, its colour in the picture.
TISSUES = {
    "oedema": (2, 1, (0.25, 0.65, 0.30)),
    "necrosis": (1, 2, (0.90, 0.25, 0.25)),
    "enhancing tumour": (4, 3, (0.98, 0.80, 0.20)),
}
REGIONS = {
    "WT": ("oedema", "necrosis", "enhancing tumour"),
    "TC": ("necrosis", "enhancing tumour"),
    "ET": ("enhancing tumour",),
}
IN_TRUTH, IN_PREDICTION = 0, 1
T1CE, FLAIR = 1, 3


def run(command: list[str], environment: dict[str, str]) -> None:
    """Print a command, run it from the checkout and say its seconds; if it fails, the demo ends with its exit code."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    program = Path(sys.executable).with_name(command[0])
    arguments = [str(program), *command[1:]] if program.exists() else command
    if command[0] == "python":
        arguments = [sys.executable, *command[1:]]
    start = time.perf_counter()
    done = subprocess.run(arguments, cwd=CHECKOUT, env=environment)
    if done.returncode:
        sys.exit(f"demo: stopped, since the command above ended with exit code {done.returncode}")
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)


def make_anew(folder: Path) -> None:
    """Empty the demo's folder, or make it; a folder that the demo did not make is left alone and ends it."""
    marker = folder / "made_by_demo"
    try:
        if folder.exists() and any(folder.iterdir()):
            if not marker.exists():
                sys.exit(f"demo: {folder} is not empty and was not made by the demo; name another with --folder")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        sys.exit(f"demo: {error.filename or folder}: {error.strerror}; name another folder with --folder")


def demo_environment(folder: Path) -> dict[str, str]:
    """The user's environment without its nnU-Net settings, with folders below ``folder`` and few worker processes."""
    set_aside = [name for name in os.environ if name.startswith("nnUNet_")]
    if set_aside:
        print(f"demo: your {', '.join(sorted(set_aside))} do not count here")
    ours = {f"nnUNet_{name}": str(folder / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")}
    # The first is also the number of threads that nnUNetv2_predict computes with.
    ours |= {"nnUNet_def_n_proc": "2", "nnUNet_n_proc_DA": "2"}
    return {name: value for name, value in os.environ.items() if name not in set_aside} | ours


def read(path: Path) -> sitk.Image:
    """An image with its geometry."""
    return sitk.ReadImage(str(path))


def score(truth_file: Path, prediction_file: Path) -> dict[str, tuple[float, float]]:
    """Dice and HD95 in mm per region."""
    from nnunet_logvmamba.evaluation.overlap import dice
    from nnunet_logvmamba.evaluation.surface import hd95

    truth, prediction = read(truth_file), read(prediction_file)
    spacing_mm = truth.GetSpacing()[::-1]
    truth, prediction = sitk.GetArrayFromImage(truth), sitk.GetArrayFromImage(prediction)
    scores = {}
    for region, tissues in REGIONS.items():
        labels = [TISSUES[tissue] for tissue in tissues]
        masks = [
            np.isin(volume, [label[which] for label in labels])
            for volume, which in ((truth, IN_TRUTH), (prediction, IN_PREDICTION))
        ]
        scores[region] = dice(*masks), hd95(*masks, spacing=spacing_mm)
    return scores


def paint(cases: list[str], images: Path, truths: dict[str, Path], predictions: Path, target: Path) -> None:
    """Draw image, truth and prediction side by side, one row per case, through the slice with most tumour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    titles = ("FLAIR", "T1 with contrast agent", "truth", "prediction")
    figure, axes = plt.subplots(len(cases), 4, figsize=(11, 2.8 * len(cases)), squeeze=False, layout="constrained")
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=11)
    for row, case in zip(axes, cases):
        flair, t1ce, truth, prediction = (
            sitk.GetArrayFromImage(read(path))
            for path in (
                images / f"{case}_{FLAIR:04d}.nii.gz",
                images / f"{case}_{T1CE:04d}.nii.gz",
                truths[case],
                predictions / f"{case}.nii.gz",
            )
        )
        z = int((truth > 0).sum(axis=(1, 2)).argmax())
        overlays = (flair, None, None), (t1ce, None, None), (t1ce, truth, IN_TRUTH), (t1ce, prediction, IN_PREDICTION)
        for axis, (picture, labels, which) in zip(row, overlays):
            shown = np.repeat(picture[z][..., None] / max(float(picture[z].max()), 1e-6), 3, axis=2)
            for *values, colour in TISSUES.values() if labels is not None else ():
                here = labels[z] == values[which]
                shown[here] = 0.35 * shown[here] + 0.65 * np.asarray(colour)
            axis.imshow(np.clip(shown, 0, 1), origin="lower", interpolation="nearest")
            axis.set_axis_off()
        row[0].text(0, 1, f"{case}, slice {z}", color="white", fontsize=8)
    figure.legend(
        handles=[Patch(color=colour, label=tissue) for tissue, (_, _, colour) in TISSUES.items()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    figure.savefig(target, dpi=120)
    plt.close(figure)


def main() -> int:
    """Run the demo; the last line has the scores on cases that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / ".demo", help="everything goes below it")
    arguments = parser.parse_args()
    start = time.perf_counter()
    folder = arguments.folder.resolve()
    make_anew(folder)
    environment = demo_environment(folder)

    phantoms = ["python", "-m", "dataset_conversion.phantoms", "brats2020"]
    converter = ["python", "-m", "dataset_conversion.Dataset501_BraTS2020"]
    training, held_out = folder / "source", folder / "held_out"
    images, predictions = folder / "held_out_images", folder / "predictions"
    run([*phantoms, str(training), "--cases", str(NUM_TRAINING)], environment)
    run([*phantoms, str(held_out), "--cases", str(NUM_HELD_OUT), "--first-number", str(FIRST_HELD_OUT)], environment)
    run([*converter, str(training), "-d", DATASET], environment)
    run([*converter, str(held_out), "--images-only", str(images)], environment)
    run(
        ["nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", "3d_fullres", "-np", "2", "-npfp", "2"],
        environment,
    )
    print(
        f"\nThe demo's schedule is short, {SCHEDULE['num_epochs']} epochs of "
        f"{SCHEDULE['num_iterations_per_epoch']} iterations; a real training has 1000 of 250."
    )
    schedule = [f"{name}={value}" for name, value in SCHEDULE.items()]
    run(
        ["logvmamba", "plans", "-d", DATASET, "-c", "3d_fullres", "--name", CONFIGURATION]
        + ["--batch-size", str(BATCH_SIZE), "--patch-size", *map(str, PATCH_SIZE), "--train", *schedule],
        environment,
    )
    run(["nnUNetv2_train", DATASET, CONFIGURATION, "0", "-tr", TRAINER, "-device", arguments.device], environment)
    # MONAI, which the scores need, takes seconds to import, and one core is idle while the prediction starts.
    threading.Thread(target=importlib.import_module, args=("nnunet_logvmamba.evaluation.surface",), daemon=True).start()
    run(
        ["nnUNetv2_predict", "-i", str(images), "-o", str(predictions), "-d", DATASET, "-c", CONFIGURATION]
        + ["-f", "0", "-tr", TRAINER, "-device", arguments.device, "-npp", "1", "-nps", "1"],
        environment,
    )

    truths = {path.name.removesuffix("_seg.nii.gz"): path for path in held_out.rglob("*_seg.nii.gz")}
    cases = sorted(truths)
    print(f"\n{'case':24}" + "".join(f"{region + ' Dice':>10}{'HD95 mm':>9}" for region in REGIONS))
    table = []
    for case in cases:
        scores = score(truths[case], predictions / f"{case}.nii.gz")
        table.append([value for region in REGIONS for value in scores[region]])
        print(f"{case:24}" + "".join(f"{table[-1][2 * i]:10.3f}{table[-1][2 * i + 1]:9.2f}" for i in range(3)))
    mean = np.mean(table, axis=0)
    print(f"{'mean':24}" + "".join(f"{mean[2 * i]:10.3f}{mean[2 * i + 1]:9.2f}" for i in range(3)))
    picture = folder / "demo.png"
    paint(cases, images, truths, predictions, picture)
    print(f"picture: {picture}")
    scores = ", ".join(f"{region} Dice {mean[2 * i]:.3f}" for i, region in enumerate(REGIONS))
    print(f"demo: {scores} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
