"""Brains with a tumour in the layouts of the BraTS releases."""

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import scipy  # loads ndimage when it is used

from dataset_conversion.core import staging
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.formats import label_values
from dataset_conversion.phantoms.anatomy import check_arguments, largest_part, norm, smooth_noise, write_volume

Trap = Literal[
    "no_enhancing_tumour",
    "odd_mask_name",
    "float_mask",
    "fractional_mask",
    "illegal_label",
    "missing_modality",
    "shifted_origin",
    "other_shape",
    "truncated_file",
]
ODD_MASK_STEM = "W39_1998.09.19_Segm"
# Mean signal per tissue before scaling. T1 shows anatomy; contrast agent lights up the enhancing rim; T2 and FLAIR
# show water, FLAIR without the free fluid, so that oedema stands out from the ventricles.
TISSUES = ("fluid", "grey matter", "white matter", "oedema", "necrosis", "enhancing tumour")
SIGNAL = {
    "t1": (28, 60, 90, 62, 42, 62),
    "t1ce": (30, 63, 91, 64, 44, 128),
    "t2": (150, 86, 62, 118, 136, 108),
    "flair": (30, 96, 68, 122, 92, 114),
}
OEDEMA, NECROSIS, ENHANCING = 3, 4, 5
BRATS_LABEL = {OEDEMA: 2, NECROSIS: 1, ENHANCING: 4}
BratsRelease = Literal["2017", "2018", "2019", "2020", "2021", "2023-GLI", "2023-SSA"]
# File suffixes and the label of enhancing tumour that 2023 changed.
SUFFIX_2023 = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"}
ENHANCING_2023 = 3


def write_brats2020(
    target: Path,
    num_cases: int,
    *,
    shape: tuple[int, int, int] = (48, 48, 40),
    seed: int = 2020,
    first_number: int = 1,
    labelled: bool = True,
    file_ending: str = ".nii.gz",
    traps: Mapping[int, Trap] | None = None,
    release: BratsRelease = "2020",
) -> Path:
    """Write a brain-tumour phantom in the folder layout of BraTS 2020 and return the folder of its cases.

    Four modalities at 1 mm, skull-stripped, with noise, a smooth bias field per modality and an own intensity scale per
    file; masks with 2 oedema around a core, 4 enhancing rim, 1 necrotic centre. Bright spots that are no tumour (white
    matter lesions, vessels) keep a threshold from being enough.

    Args:
        target: Folder to make; may exist if it is empty.
        shape: Voxels along x, y and z, 16 to 48 each.
        first_number: Number of the first case; case N is the same whichever run wrote it.
        labelled: False writes the validation layout, which has no masks.
        file_ending: ``.nii.gz``, or ``.nii`` as in the widely used uncompressed copy.
        traps: Case number to what is odd or wrong about that case.
        release: Others than 2020 name folders and files otherwise; those of 2023 label the enhancing tumour 3 and have
            two time points of every patient.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    traps = dict(traps or {})
    check_arguments(num_cases, shape, file_ending, first_number, 999 if release == "2020" else 99999)
    numbers = range(first_number, first_number + num_cases)
    for number, trap in traps.items():
        if trap not in get_args(Trap) or number not in numbers:
            raise ConversionError(
                f"Trap {trap!r} for case {number} is unknown; traps are {', '.join(get_args(Trap))}, "
                f"cases {numbers[0]} to {numbers[-1]}."
            )
    split = "Training" if labelled else "Validation"
    cases = {
        "2020": f"MICCAI_BraTS2020_{split}Data",
        "2021": f"BraTS2021_{split}_Data",
        "2023-GLI": f"ASNR-MICCAI-BraTS2023-GLI-Challenge-{split}Data",
        "2023-SSA": f"ASNR-MICCAI-BraTS2023-SSA-Challenge-{split}Data",
    }.get(release, f"MICCAI_BraTS_{release}_Data_{split}" + "/HGG" * labelled)
    names = [
        {
            "2020": f"BraTS20_{split}_{number:03d}",
            "2021": f"BraTS2021_{number:05d}",
            "2017": f"Brats17_CBICA_{number:03d}_1",
            "2018": f"Brats18_CBICA_{number:03d}_1",
            "2019": f"BraTS19_CBICA_{number:03d}_1",
        }.get(release, f"BraTS-{release[5:]}-{(number + 1) // 2:05d}-{(number + 1) % 2:03d}")
        for number in numbers
    ]
    with staging.staged_folder(target) as staged:
        folder = staged / cases
        folder.mkdir(parents=True)
        for number, name in zip(numbers, names):
            _write_brats_case(folder / name, number, shape, seed, labelled, file_ending, traps.get(number), release)
        if release == "2020":
            _write_brats_tables(folder, names, labelled)
    return Path(target) / cases


def brats_case(
    rng: np.random.Generator, shape: tuple[int, int, int], *, enhancing: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One brain with one tumour.

    Returns:
        Modality to int16 volume, zero outside the brain, and the uint8 mask in BraTS labels; all (z, y, x).
    """
    size = np.array(shape[::-1])
    noise = partial(smooth_noise, rng, tuple(size))
    grid = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in size), indexing="ij"))

    axes = size * (0.45, 0.47, 0.41) * rng.uniform(0.94, 1.0, 3)
    radius = norm(grid, axes) + 0.02 * noise(4.0)
    brain = scipy.ndimage.binary_fill_holes(largest_part(radius < 1))
    depth = 1 - radius
    fluid, grey = _anatomy(grid, axes, depth, noise)
    white = brain & ~fluid & ~grey

    tissue = np.select([fluid, grey], [0, 1], 2)
    tumour = _tumour(rng, grid, size.min(), brain & ~_inflate(fluid, 0.8), white, radius, noise)
    if not enhancing:
        tumour[tumour == ENHANCING] = NECROSIS
    tissue = np.where(tumour > 0, tumour, tissue)

    # Partial volume: every voxel mixes the tissues around it.
    mixture = np.stack(
        [scipy.ndimage.gaussian_filter((tissue == index).astype(float), 0.55) for index in range(len(TISSUES))]
    )
    spots = _white_matter_lesions(rng, grid, white & (tumour == 0) & (depth > 0.25))
    vessels = np.clip(noise(0.8) - 2.2, 0, 0.6) + np.clip(noise(1.0) - 1.6, 0, 0.8) * _sinus(grid, axes, depth)
    extra = {"t1": 0 * spots, "t1ce": 70 * vessels, "t2": 34 * spots, "flair": 48 * spots}
    shared_bias = noise(0.3 * size.min())

    images = {}
    for modality, typical in SIGNAL.items():
        means = np.array(typical) * rng.uniform(0.94, 1.06, len(TISSUES))
        signal = np.tensordot(means, mixture, 1) + extra[modality] * (tumour == 0)
        signal *= 1 + 0.05 * noise(1.2)
        signal *= np.exp(0.06 * shared_bias + 0.08 * noise(0.3 * size.min()))
        grain = 5.5 * rng.standard_normal((2, *size))
        signal = np.hypot(signal + grain[0], grain[1])  # magnitude images have Rician noise
        signal *= np.exp(rng.uniform(np.log(2), np.log(8)))  # scanners have no common scale
        images[modality] = np.where(brain, np.clip(np.rint(signal), 1, 32767), 0).astype(np.int16)
    return images, label_values.remap_labels(tumour, {0: 0, **BRATS_LABEL})


def _anatomy(grid: np.ndarray, axes: np.ndarray, depth: np.ndarray, noise: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Fluid (sulci, ventricles) and grey matter (cortex, deep nuclei) as two disjoint masks inside and outside."""
    folds = noise(1.6)
    sulci = (folds > 1.0) & (depth < 0.13)
    ventricles = np.zeros(depth.shape, bool)
    nuclei = np.zeros(depth.shape, bool)
    z, y, x = grid / axes[:, None, None, None]
    for side in (-1, 1):
        ventricles |= ((x - side * (0.13 + 0.10 * np.abs(y))) / 0.10) ** 2 + (y / 0.42) ** 2 + (
            (z - 0.08) / 0.20
        ) ** 2 < 1
        nuclei |= ((x - side * 0.32) / 0.13) ** 2 + ((y - 0.02) / 0.26) ** 2 + ((z + 0.06) / 0.24) ** 2 < 1
    fissure = (np.abs(x) < 0.045) & (depth < 0.32) & (z > -0.2)
    fluid = sulci | ventricles | fissure
    cortex = (depth < 0.17 + 0.05 * folds) | (np.abs(x) < 0.13) & (depth < 0.42) & (z > -0.2)
    return fluid, (cortex | nuclei) & ~fluid


def _tumour(
    rng: np.random.Generator,
    grid: np.ndarray,
    edge: int,
    room: np.ndarray,
    white: np.ndarray,
    radius: np.ndarray,
    noise: Callable,
) -> np.ndarray:
    """Tissue index of the tumour, 0 elsewhere: oedema that follows white matter, around a rim, around necrosis."""
    off_midline = np.abs(grid[2]) > 0.1 * grid.shape[3]
    seats = np.argwhere(white & off_midline & (radius > 0.3) & (radius < 0.68))
    z, y, x = seats[rng.integers(len(seats))]
    centre = grid[:, z, y, x]
    size = edge * rng.uniform(0.17, 0.27)
    away = grid - centre[:, None, None, None]
    preference = 0.22 * (scipy.ndimage.gaussian_filter(white.astype(float), 1.0) - 0.5)
    whole = norm(away, size * rng.uniform(0.85, 1.2, 3)) + 0.13 * noise(2.4) - preference
    whole = largest_part((whole < 1) & room)
    away = away - (rng.uniform(-0.15, 0.15, 3) * size)[:, None, None, None]
    core = norm(away, size * rng.uniform(0.55, 0.68) * rng.uniform(0.88, 1.14, 3)) + 0.08 * noise(2.0)
    necrotic = core + 0.06 * noise(1.5) < rng.uniform(0.54, 0.70)
    return np.select([whole & (core < 1) & necrotic, whole & (core < 1), whole], [NECROSIS, ENHANCING, OEDEMA], 0)


def _white_matter_lesions(rng: np.random.Generator, grid: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Small bright spots, 0 to 1, as age leaves them in healthy white matter."""
    spots = np.zeros(room.shape)
    seats = np.argwhere(room)
    for _ in range(rng.integers(2, 6) if len(seats) else 0):
        z, y, x = seats[rng.integers(len(seats))]
        centre = grid[:, z, y, x]
        spots = np.maximum(
            spots, np.exp(-0.5 * norm(grid - centre[:, None, None, None], rng.uniform(0.8, 1.5, 3)) ** 2)
        )
    return spots


def _sinus(grid: np.ndarray, axes: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Where large veins run: along the surface near the midline."""
    return (np.abs(grid[2]) < 0.16 * axes[2]) & (depth < 0.12)


def _inflate(mask: np.ndarray, distance: float) -> np.ndarray:
    return scipy.ndimage.distance_transform_edt(~mask) <= distance


def _write_brats_case(
    folder: Path,
    number: int,
    shape: tuple[int, int, int],
    seed: int,
    labelled: bool,
    file_ending: str,
    trap: Trap | None,
    release: BratsRelease,
) -> None:
    folder.mkdir()
    suffixes = SUFFIX_2023 if release.startswith("2023") else {name: f"_{name}" for name in SUFFIX_2023}
    # A validation case must differ from the training case of the same number.
    rng = np.random.default_rng([seed, number, int(labelled), *shape])
    images, mask = brats_case(rng, shape, enhancing=trap != "no_enhancing_tumour")
    origin = (0.0, 1.0 - shape[1], 0.0)
    for modality, voxels in images.items():
        path = folder / f"{folder.name}{suffixes[modality]}{file_ending}"
        if modality == "t2" and trap == "missing_modality":
            continue
        shifted = modality == "t2" and trap == "shifted_origin"
        if modality == "t2" and trap == "other_shape":
            voxels = voxels[:-1]
        write_volume(voxels, path, (2.0, *origin[1:]) if shifted else origin)
        if modality == "t2" and trap == "truncated_file":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if not labelled:
        return
    if (trap == "illegal_label") != release.startswith("2023"):  # the value of the other releases is the illegal one
        mask[mask == 4] = ENHANCING_2023
    if trap == "float_mask":
        mask = mask.astype(np.float32)
    if trap == "fractional_mask":
        mask = np.where(mask == 4, 3.5, mask).astype(np.float32)
    odd = trap == "odd_mask_name"
    write_volume(
        mask, folder / (ODD_MASK_STEM + ".nii" if odd else f"{folder.name}{suffixes['seg']}{file_ending}"), origin
    )


def _write_brats_tables(folder: Path, names: Sequence[str], labelled: bool) -> None:
    """The two tables that lie beside the case folders, with made-up contents."""
    suffix = "" if labelled else "_validation_data"
    with (folder / f"name_mapping{suffix}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Grade", "BraTS_2019_subject_ID", "BraTS_2020_subject_ID"])
        table.writerows(["HGG", "NA", name] for name in names)
    with (folder / f"survival_{'info' if labelled else 'evaluation'}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Brats20ID", "Age", "Survival_days", "Extent_of_Resection"])
        table.writerows([name, "60.0", "365", "GTR"] for name in names)
