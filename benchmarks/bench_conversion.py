"""Time the converters with one worker process and with two, on generated sources of realistic file sizes.

``python benchmarks/bench_conversion.py [--quick] [--folder DIR]`` writes sources with as many voxels per file as the
real ones and about as hard to compress, runs each converter as a user does, start-up included, with ``--jobs 1`` and
``--jobs 2`` in turns, and writes ``benchmarks/results/conversion_cpu.json``.
"""

import argparse
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile
from checkout import commit_of_checkout
from measure import save, side_by_side
from PIL import Image
from scipy import ndimage

CHECKOUT = Path(__file__).resolve().parents[1]
JOBS = (1, 2)
ROUNDS = 7  # disk and start-up vary from one to the next by a tenth
DISTINCT = 4  # so many are generated; the others are links to them, since a converter cannot tell


def write_brats(folder: Path, quick: bool) -> None:
    """40 cases: four modalities of 240 x 240 x 155 voxels in 16 bits, a sixth of them brain, and a mask."""
    z, y, x = np.ogrid[:155, :240, :240]
    brain = ((z - 75) / 65) ** 2 + ((y - 120) / 80) ** 2 + ((x - 120) / 65) ** 2 < 1
    tumour = np.select([((z - 80) ** 2 + (y - 110) ** 2 + (x - 140) ** 2) < r**2 for r in (9, 15, 24)], [1, 4, 2])
    for number in range(1, 3 if quick else 41):
        name = f"BraTS20_Training_{number:03d}"
        case = folder / "MICCAI_BraTS2020_TrainingData" / name
        case.mkdir(parents=True)
        for suffix in ("t1", "t1ce", "t2", "flair", "seg"):
            path = case / f"{name}_{suffix}.nii.gz"
            if number > DISTINCT:
                link(path, number, name)
            elif suffix == "seg":
                write_volume(tumour.astype(np.uint8), path)
            else:
                noise = np.random.default_rng(number).standard_normal(brain.shape, dtype=np.float32)
                write_volume(np.where(brain, 400 + 40 * noise, 0).astype(np.int16), path)


def link(path: Path, number: int, name: str) -> None:
    """Make ``path`` another name of the file that one of the first cases has in its place."""
    first = name.replace(f"{number:03d}", f"{(number - 1) % DISTINCT + 1:03d}")
    os.link(str(path).replace(name, first), path)


def write_acdc(folder: Path, quick: bool) -> None:
    """100 + 50 patients, two frames of 256 x 216 x 10 voxels each, with masks, as many as the real archive has."""
    _, y, x = np.ogrid[:10, :216, :256]
    radius = np.hypot(y - 108, x - 128) + np.zeros((10, 1, 1))
    mask = np.select([radius < 20, radius < 30, np.hypot(y - 108, x - 95) < 25], [3, 2, 1]).astype(np.uint8)
    for number in (1, 2, 3, 101) if quick else range(1, 151):
        part = "training" if number <= 100 else "testing"
        patient = folder / part / f"patient{number:03d}"
        patient.mkdir(parents=True)
        group = ("NOR", "MINF", "DCM", "HCM", "RV")[number % 5]
        (patient / "Info.cfg").write_text(f"ED: 1\nES: 10\nGroup: {group}\n")
        for frame in (1, 10):
            name = f"patient{number:03d}_frame{frame:02d}"
            voxels = np.random.default_rng([number, frame]).integers(0, 250, mask.shape, dtype=np.int16)
            write_volume(voxels, patient / f"{name}.nii.gz")
            write_volume(mask, patient / f"{name}_gt.nii.gz")


def write_volume(voxels: np.ndarray, path: Path) -> None:
    """NIfTI, compressed."""
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)


def write_endovis(folder: Path, quick: bool) -> None:
    """48 frames of 1080 x 1920 pixels in colour with three instruments each."""
    instruments = ("Large_Needle_Driver_Left_labels", "Large_Needle_Driver_Right_labels", "Prograsp_Forceps_labels")
    for number in (1, 2):
        sequence = folder / f"instrument_dataset_{number}"
        for index in range(2 if quick else 24):
            rng = np.random.default_rng([number, index])
            frame = np.zeros((1080, 1920, 3), np.uint8)
            texture = ndimage.zoom(rng.uniform(40, 200, (128, 160, 3)), (8, 8, 1), order=1)
            frame[28:1052, 320:1600] = texture + rng.integers(0, 8, texture.shape)
            write_png(frame, sequence / "left_frames" / f"frame{index:03d}.png")
            for row, instrument in enumerate(instruments):
                mask = np.zeros(frame.shape[:2], np.uint8)
                mask[200 + 250 * row : 300 + 250 * row, 400:1100] = 10
                write_png(mask, sequence / "ground_truth" / instrument / f"frame{index:03d}.png")


def write_cells(folder: Path, quick: bool) -> None:
    """32 pictures of 1024 x 1024 pixels, 16 bits, with 400 cells each."""
    y, x = np.mgrid[:1024, :1024]
    cell = ((y % 51 - 25) ** 2 + (x % 51 - 25) ** 2) < 20**2
    instances = np.where(cell, 1 + 21 * (y // 51) + x // 51, 0).astype(np.uint16)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(4 if quick else 32):
        picture = 300 + 900 * cell + np.random.default_rng(number).integers(0, 60, cell.shape)
        tifffile.imwrite(folder / "images" / f"cell_{number:05d}.tif", picture.astype(np.uint16))
        tifffile.imwrite(folder / "labels" / f"cell_{number:05d}_label.tiff", instances)


def write_png(pixels: np.ndarray, path: Path) -> None:
    """PNG, as a camera's archive has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


SOURCES = {
    "BraTS 2020": (write_brats, "Dataset501_BraTS2020", ()),
    "ACDC": (write_acdc, "Dataset502_ACDC", ()),
    "EndoVis 2017": (write_endovis, "Dataset503_EndoVis2017", ("--protocol", "crossval")),
    "NeurIPS cells": (write_cells, "Dataset504_NeurIPSCellSeg", ()),
}


def convert(source: Path, target: Path, module: str, options: tuple[str, ...], jobs: int) -> None:
    """Run a converter in a process of its own, into folders that are made anew."""
    shutil.rmtree(target, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "nnUNet_raw": str(target / "raw"),
        "nnUNet_preprocessed": str(target / "preprocessed"),
        "OMP_NUM_THREADS": "1",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    }
    command = [sys.executable, "-m", f"dataset_conversion.{module}", str(source), "--jobs", str(jobs), *options]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench_conversion: {' '.join(command)} failed: {done.stderr}")


def converted(conversion: Callable[[], object], folder: Path) -> dict[str, str]:
    """Digest of every file that a conversion writes, by its place."""
    conversion()
    files = [path for path in (folder / "target").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def measured(name: str, folder: Path, quick: bool) -> dict[str, object]:
    """Seconds of one converter for each number of jobs."""
    write, module, options = SOURCES[name]
    source = folder / module
    write(source, quick)
    files = [path for path in source.rglob("*") if path.is_file()]
    candidates = {
        str(jobs): functools.partial(convert, source, folder / "target", module, options, jobs) for jobs in JOBS
    }
    if converted(candidates["1"], folder) != converted(candidates["2"], folder):
        sys.exit(f"bench_conversion: two jobs write other files than one for {name}, so nothing is timed")
    rounds = 1 if quick else ROUNDS
    seconds = side_by_side(candidates, rounds=rounds, slow_rounds=rounds)
    result = {
        "data_set": name,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": seconds,
        "speedup": seconds["1"]["seconds"] / seconds["2"]["seconds"],
    }
    shutil.rmtree(source)
    shutil.rmtree(folder / "target")
    return result


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few cases, saved under another name")
    parser.add_argument("--folder", type=Path, help="where sources and targets go; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = []
        for name in SOURCES:
            results.append(measured(name, Path(folder), arguments.quick))
            row = results[-1]
            seconds = [timing["seconds"] for timing in row["seconds"].values()]
            print(f"{name}: {seconds[0]:.1f} s, {seconds[1]:.1f} s, {row['speedup']:.2f}")
    correctness = {"commit": commit_of_checkout(), "checked": len(results), "wrong": []}
    print(save(f"conversion_cpu{'_quick' * arguments.quick}", {"conversions": results}, correctness))


if __name__ == "__main__":
    main()
