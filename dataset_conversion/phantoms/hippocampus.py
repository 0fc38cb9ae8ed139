"""Hippocampi in the layout of the Medical Segmentation Decathlon."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import scipy  # loads ndimage when it is used

from dataset_conversion.core import staging
from dataset_conversion.phantoms.anatomy import check_arguments, norm, smooth_noise, write_volume


def write_hippocampus(
    target: Path,
    num_cases: int,
    *,
    shape: tuple[int, int, int] = (34, 40, 32),
    seed: int = 2018,
    first_number: int = 1,
    float_masks: Sequence[int] = (),
    num_unlabelled: int = 0,
) -> Path:
    """Write a hippocampus phantom in the layout of the Medical Segmentation Decathlon and return its folder.

    Beside ``imagesTr`` and ``labelsTr`` lie the ``._*`` files that the original archive has.

    Args:
        shape: Voxels along x, y and z, 16 to 48 each.
        float_masks: Numbers of the cases whose mask is stored as float32.
        num_unlabelled: Cases in ``imagesTs``, numbered after the labelled ones.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    check_arguments(num_cases, shape, ".nii.gz", first_number, 999 - num_unlabelled)
    with staging.staged_folder(target) as staged:
        for name in ("imagesTr", "labelsTr", "imagesTs")[: 3 if num_unlabelled else 2]:
            (staged / name).mkdir()
        for position in range(num_cases + num_unlabelled):
            number = first_number + position
            image, mask = hippocampus_case(np.random.default_rng([seed, number, *shape]), shape)
            name = f"hippocampus_{number:03d}.nii.gz"
            images = staged / ("imagesTr" if position < num_cases else "imagesTs")
            write_volume(image, images / name)
            (images / f"._{name}").write_bytes(b"Mac OS X        ")
            if position < num_cases:
                write_volume(mask.astype(np.float32 if number in float_masks else np.uint8), staged / "labelsTr" / name)
    return Path(target)


def hippocampus_case(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One hippocampus: a float32 image and its uint8 mask (1 anterior, 2 posterior), both (z, y, x)."""
    size = np.array(shape[::-1])
    noise = partial(smooth_noise, rng, tuple(size))
    grid = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in size), indexing="ij"))
    bent = grid - (rng.uniform(-0.05, 0.05, 3) * size)[:, None, None, None]
    bent[0] += 0.25 * np.abs(bent[1])  # the tail rises
    body = norm(bent, size * (0.14, 0.36, 0.14) * rng.uniform(0.9, 1.1, 3)) + 0.08 * noise(2.0) < 1
    mask = np.where(body, np.where(bent[1] > rng.uniform(0.02, 0.12) * size[1], 1, 2), 0)
    image = 60 + 12 * noise(2.0) + 30 * scipy.ndimage.gaussian_filter(body.astype(float), 0.7) + 4 * noise(0.01)
    return (image * np.exp(rng.uniform(0, 6))).astype(np.float32), mask.astype(np.uint8)
