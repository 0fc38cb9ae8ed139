"""Microscopy in the layout of the NeurIPS 2022 challenge."""

import csv
from pathlib import Path

import numpy as np
import scipy  # loads ndimage when it is used

from dataset_conversion.core import staging
from dataset_conversion.core.cases import ConversionError

CELL_KINDS = ("grey8.png", "grey16.tif", "rgba.png", "rgb.bmp", "rgb16.tiff", "grey8.jpg")


def write_cells(
    target: Path,
    num_pictures: int,
    *,
    num_tuning: int = 0,
    num_unlabelled: int = 0,
    groups: bool = False,
    edge: int = 96,
    seed: int = 2022,
) -> Path:
    """Write microscopy phantoms in the layout of the NeurIPS 2022 challenge and return the folder of the training set.

    File formats, channels and bit depths take turns. Every picture has cells of radius 3 to 12, two that touch, and
    one whose number is above 32767; every second label map is stored as int32.

    Args:
        num_tuning: Labelled pictures in ``Tuning``, counted from 1 again.
        num_unlabelled: Pictures in ``Training-unlabeled``.
        groups: Write a ``cases.csv`` in which pairs of neighbours are one group.
        edge: Pixels along both axes, 48 or more.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    if num_pictures < 1 or edge < 48:
        raise ConversionError(f"{num_pictures} pictures of {edge} pixels: ask for at least 1 of at least 48.")
    import tifffile

    parts = (("Training-labeled", num_pictures), ("Tuning", num_tuning), ("Training-unlabeled", num_unlabelled))
    with staging.staged_folder(target) as staged:
        number, rows = 0, []
        for part, count in parts:
            for index in range(1, count + 1):
                number += 1
                kind, ending = CELL_KINDS[number % len(CELL_KINDS)].split(".")
                picture, instances = microscopy_picture(np.random.default_rng([seed, number, edge]), edge)
                name = f"cell_{index if part == 'Tuning' else number:05d}"
                _save_cells(picture, kind, staged / part / "images" / f"{name}.{ending}")
                if part != "Training-unlabeled":
                    path = staged / part / "labels" / f"{name}_label.tiff"
                    path.parent.mkdir(exist_ok=True)
                    tifffile.imwrite(path, instances.astype(np.int32 if number % 2 else np.uint16), software=False)
                if part == "Training-labeled":
                    rows.append([f"{name}.{ending}", f"{name}_label.tiff", kind[:4], f"field_{number // 2:03d}"])
        if groups:
            with (staged / "Training-labeled" / "cases.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["image", "label", "modality", "group"], *rows])
    return Path(target) / "Training-labeled"


def microscopy_picture(rng: np.random.Generator, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture, 0 to 1, and its instance map, uint16, both (edge, edge)."""
    y, x = np.mgrid[:edge, :edge]
    instances = np.zeros((edge, edge), np.uint16)
    # A cell too small to have an interior, two that touch, and others wherever there is room.
    cells = [(6, 6, 3), (edge // 2, edge // 2 - 9, 9), (edge // 2, edge // 2 + 9, 9)]
    cells += [(*rng.integers(12, edge - 12, 2), rng.integers(5, 12)) for _ in range(8)]
    for index, (row, column, radius) in enumerate(cells):
        disc = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        if index < 3 or not instances[disc].any():
            instances[disc & (instances == 0)] = 40000 if index == 1 else 3 * index + 1
    bright = scipy.ndimage.gaussian_filter((instances > 0).astype(float), 1.0)
    return np.clip(0.1 + 0.7 * bright + 0.03 * rng.standard_normal((edge, edge)), 0, 1), instances


def _save_cells(picture: np.ndarray, kind: str, path: Path) -> None:
    import tifffile
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([picture, picture**2, 1 - picture], -1)
    if kind == "grey16":
        tifffile.imwrite(path, (picture * 4095).astype(np.uint16), software=False)
    elif kind == "rgb16":
        tifffile.imwrite(path, (colours * 65535).astype(np.uint16), photometric="rgb", software=False)
    elif kind == "rgba":
        Image.fromarray(np.dstack([(colours * 255).astype(np.uint8), np.full(picture.shape, 255, np.uint8)])).save(path)
    else:
        Image.fromarray(((colours if kind == "rgb" else picture) * 255).astype(np.uint8)).save(path)
