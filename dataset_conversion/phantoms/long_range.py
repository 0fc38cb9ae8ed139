"""Structures whose label hangs on a cue at a set distance, as a data set in nnU-Net's own layout.

Hippocampi and tumours are smaller than the receptive field of a U-Net, so they cannot show what global tokens are for.
Here every image has four pairs of a cue, which is bright or dark, and a target, which always looks the same: behind a
bright cue it is labelled 1, behind a dark one 2. A network that sees less than the distance between them has to guess.
It can guess from the whole image, since instance norm tells every voxel how bright an image is on the average: the
coins of the four pairs are independent, so their majority names 11 of 16 targets in the long run; more takes the cue
itself, or the borders of the image, which tell the lines apart.

As a control the class can stand in the target itself, whose middle is bright or dark; the cues then mean nothing.
"""

import json
from pathlib import Path

import numpy as np

from dataset_conversion.core import staging
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.phantoms.anatomy import write_volume

PAIRS = 4
RADIUS = 4
"""Of cues and targets, in voxels."""
_CUE, _TARGET, _CORE, _NOISE = 60, 35, 2, 10
_SHAPES = {2: (96, 96), 3: (32, 32, 96)}


def write_long_range(
    target: Path,
    num_cases: int,
    *,
    distance: int = 44,
    dims: int = 2,
    along: str = "fast",
    control: bool = False,
    num_tests: int = 0,
    seed: int = 2024,
    first_number: int = 1,
) -> Path:
    """Write the data set and return its folder: give one of the name ``Dataset###_Name`` in ``nnUNet_raw``.

    Images have 96 x 96 pixels (8-bit PNG) or 32 x 32 x 96 voxels (NIfTI, 1 mm), whatever the distance. A cue always
    comes first in the order of memory. Where it lies on its line is drawn, and so is the line in its quarter.

    Args:
        distance: Voxels from the middle of a cue to that of its target, 10 to 86.
        along: ``fast``, the last axis, or ``slow``, the first one: the order in which a scan reads voxels.
        control: Whether the class stands in the target itself.
        num_tests: Cases in ``imagesTs`` and ``labelsTs``, numbered after the others.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    length = _SHAPES[2][1]
    most = length - 2 * RADIUS - 2
    if num_cases < 1 or num_tests < 0:
        raise ConversionError(f"{num_cases} cases and {num_tests} tests cannot be generated; ask for at least 1 and 0.")
    if first_number < 0:
        raise ConversionError(f"Case {first_number} is out of range; begin with 0 or more.")
    if not 2 * RADIUS + 2 <= distance <= most:
        raise ConversionError(f"A distance of {distance} is out of range; give {2 * RADIUS + 2} to {most} voxels.")
    if dims not in _SHAPES or along not in ("fast", "slow"):
        raise ConversionError(f"{dims} axes along {along!r}: write 2 or 3, and fast or slow.")
    ending = ".png" if dims == 2 else ".nii.gz"
    with staging.staged_folder(target) as staged:
        for index in range(num_cases + num_tests):
            number, part = first_number + index, "Tr" if index < num_cases else "Ts"
            rng = np.random.default_rng([seed, number, dims, distance, control])
            image, labels = long_range_case(rng, distance, dims, control)
            if along == "slow":
                image, labels = image.swapaxes(0, -1), labels.swapaxes(0, -1)
            _write(image, staged / f"images{part}" / f"pairs_{number:04d}_0000{ending}")
            _write(labels, staged / f"labels{part}" / f"pairs_{number:04d}{ending}")
        content = {
            "channel_names": {"0": "brightness"},
            "labels": {"background": 0, "behind bright": 1, "behind dark": 2},
            "numTraining": num_cases,
            "file_ending": ending,
        }
        (staged / "dataset.json").write_text(json.dumps(content, indent=4) + "\n")
    return Path(target)


def long_range_case(
    rng: np.random.Generator, distance: int, dims: int, control: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """One image and its labels, both uint8, pairs along the last axis."""
    shape = _SHAPES[dims]
    image, labels = np.full(shape, 128.0), np.zeros(shape, np.uint8)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    lines = [[size * (2 * part + 1) // 4 for part in range(2)] for size in shape[:-1]]
    if dims == 2:
        lines = [[shape[0] * (2 * part + 1) // (2 * PAIRS) for part in range(PAIRS)]]
    play = RADIUS if dims == 2 else RADIUS - 1  # so that voxels of two lines never touch
    for line in np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(PAIRS, dims - 1):
        cue_is_bright, core_is_bright = rng.integers(2, size=2).astype(bool)
        first = rng.integers(RADIUS + 1, shape[-1] - distance - RADIUS)
        line = line + rng.integers(-play, play + 1, dims - 1)
        apart = [np.linalg.norm(grid - [*line, place], axis=-1) for place in (first, first + distance)]
        image[apart[0] <= RADIUS] += _CUE if cue_is_bright else -_CUE
        image[apart[1] <= RADIUS] += _TARGET
        labels[apart[1] <= RADIUS] = 1 if cue_is_bright else 2
        if control:
            image[apart[1] <= _CORE] = 128 + (_CUE if core_is_bright else -_CUE)
            labels[apart[1] <= RADIUS] = 1 if core_is_bright else 2
    image += _NOISE * rng.standard_normal(shape)
    return np.clip(image, 0, 255).round().astype(np.uint8), labels


def _write(voxels: np.ndarray, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    if voxels.ndim == 2:
        Image.fromarray(voxels).save(path)
    else:
        write_volume(np.ascontiguousarray(voxels), path)
