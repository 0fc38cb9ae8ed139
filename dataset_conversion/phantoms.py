"""Generated miniature sources in each data owner's layout, traps included, for the demo and the tests.

They stand for no patient. Equal arguments give byte-identical files; a case depends on seed, shape and its number only,
so cases beyond those trained on can be generated later and are new to the network.

Run from a checkout: ``python -m dataset_conversion.phantoms brats2020 TARGET --cases 12``.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image
from scipy import ndimage

from dataset_conversion import command_line, label_values, staging, volumes
from dataset_conversion.cases import ConversionError

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
MAX_EDGE = 48

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

ACDC_GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")
ACDC_SPACING_MM = (1.5, 1.5, 10.0)
# Folders below ground_truth as the organisers spell them.
ENDOVIS_FOLDERS = {
    1: (
        "Left_Prograsp_Forceps_labels",
        "Maryland_Bipolar_Forceps_labels",
        "Other_labels",
        "Right_Prograsp_Forceps_labels",
    ),
    2: ("Left_Prograsp_Forceps_labels", "Other_labels", "Right_Prograsp_Forceps_labels"),
    3: ("Left_Large_Needle_Driver_labels", "Right_Large_Needle_Driver_labels"),
    4: ("Large_Needle_Driver_Left_labels", "Large_Needle_Driver_Right_labels", "Prograsp_Forceps_labels"),
    5: ("Bipolar_Forceps_labels", "Grasping_Retractor_labels", "Vessel_Sealer_labels"),
    6: (
        "Left_Large_Needle_Driver_labels",
        "Monopolar_Curved_Scissors_labels",
        "Prograsp_Forceps",
        "Right_Large_Needle_Driver_labels",
    ),
    7: ("Left_Bipolar_Forceps", "Right_Vessel_Sealer"),
    8: (
        "Bipolar_Forceps_labels",
        "Left_Grasping_Retractor_labels",
        "Monopolar_Curved_Scissors_labels",
        "Right_Grasping_Retractor_labels",
    ),
}
ENDOVIS_PICTURE = (28, 320, 1024, 1280)  # top, left, height, width


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
    _check_arguments(num_cases, shape, file_ending)
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
    noise = partial(_smooth_noise, rng, tuple(size))
    grid = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in size), indexing="ij"))

    axes = size * (0.45, 0.47, 0.41) * rng.uniform(0.94, 1.0, 3)
    radius = _norm(grid, axes) + 0.02 * noise(4.0)
    brain = ndimage.binary_fill_holes(_largest_part(radius < 1))
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
        [ndimage.gaussian_filter((tissue == index).astype(float), 0.55) for index in range(len(TISSUES))]
    )
    spots = _white_matter_lesions(rng, grid, white & (tumour == 0) & (depth > 0.25))
    vessels = np.clip(noise(0.8) - 2.2, 0, 0.6) + np.clip(noise(1.0) - 1.6, 0, 0.8) * _sinus(grid, axes, depth)
    extra = {"t1": 0 * spots, "t1ce": 70 * vessels, "t2": 34 * spots, "flair": 48 * spots}
    shared_bias = noise(0.3 * size.min())

    images = {}
    for modality, means in SIGNAL.items():
        means = np.array(means) * rng.uniform(0.94, 1.06, len(TISSUES))
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
    centre = seats[rng.integers(len(seats))]
    centre = grid[(slice(None), *centre)]
    size = edge * rng.uniform(0.17, 0.27)
    away = grid - centre[:, None, None, None]
    preference = 0.22 * (ndimage.gaussian_filter(white.astype(float), 1.0) - 0.5)
    whole = _norm(away, size * rng.uniform(0.85, 1.2, 3)) + 0.13 * noise(2.4) - preference
    whole = _largest_part((whole < 1) & room)
    away = away - (rng.uniform(-0.15, 0.15, 3) * size)[:, None, None, None]
    core = _norm(away, size * rng.uniform(0.55, 0.68) * rng.uniform(0.88, 1.14, 3)) + 0.08 * noise(2.0)
    necrotic = core + 0.06 * noise(1.5) < rng.uniform(0.54, 0.70)
    return np.select([whole & (core < 1) & necrotic, whole & (core < 1), whole], [NECROSIS, ENHANCING, OEDEMA], 0)


def _white_matter_lesions(rng: np.random.Generator, grid: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Small bright spots, 0 to 1, as age leaves them in healthy white matter."""
    spots = np.zeros(room.shape)
    seats = np.argwhere(room)
    for _ in range(rng.integers(2, 6) if len(seats) else 0):
        centre = grid[(slice(None), *seats[rng.integers(len(seats))])]
        spots = np.maximum(
            spots, np.exp(-0.5 * _norm(grid - centre[:, None, None, None], rng.uniform(0.8, 1.5, 3)) ** 2)
        )
    return spots


def _sinus(grid: np.ndarray, axes: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Where large veins run: along the surface near the midline."""
    return (np.abs(grid[2]) < 0.16 * axes[2]) & (depth < 0.12)


def _norm(vectors: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """Length of (3, z, y, x) vectors after division by ``scale``, per axis."""
    return np.sqrt(((vectors / np.reshape(scale, (-1, 1, 1, 1))) ** 2).sum(0))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise smoothed over ``sigma`` voxels, mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="reflect")
    return (field - field.mean()) / field.std()


def _inflate(mask: np.ndarray, distance: float) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask) <= distance


def _largest_part(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]) if count else mask


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
        _write_volume(voxels, path, (2.0, *origin[1:]) if shifted else origin)
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
    _write_volume(
        mask, folder / (ODD_MASK_STEM + ".nii" if odd else f"{folder.name}{suffixes['seg']}{file_ending}"), origin
    )


def _write_volume(
    voxels: np.ndarray,
    path: Path,
    origin: tuple[float, ...] = (0.0, 0.0, 0.0),
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path), useCompression=path.name.endswith(".gz"))


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
    _check_arguments(num_cases, shape, ".nii.gz")
    with staging.staged_folder(target) as staged:
        for name in ("imagesTr", "labelsTr", "imagesTs")[: 3 if num_unlabelled else 2]:
            (staged / name).mkdir()
        for position in range(num_cases + num_unlabelled):
            number = first_number + position
            image, mask = hippocampus_case(np.random.default_rng([seed, number, *shape]), shape)
            name = f"hippocampus_{number:03d}.nii.gz"
            images = staged / ("imagesTr" if position < num_cases else "imagesTs")
            _write_volume(image, images / name)
            (images / f"._{name}").write_bytes(b"Mac OS X        ")
            if position < num_cases:
                _write_volume(
                    mask.astype(np.float32 if number in float_masks else np.uint8), staged / "labelsTr" / name
                )
    return Path(target)


def hippocampus_case(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One hippocampus: a float32 image and its uint8 mask (1 anterior, 2 posterior), both (z, y, x)."""
    size = np.array(shape[::-1])
    noise = partial(_smooth_noise, rng, tuple(size))
    grid = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in size), indexing="ij"))
    bent = grid - (rng.uniform(-0.05, 0.05, 3) * size)[:, None, None, None]
    bent[0] += 0.25 * np.abs(bent[1])  # the tail rises
    body = _norm(bent, size * (0.14, 0.36, 0.14) * rng.uniform(0.9, 1.1, 3)) + 0.08 * noise(2.0) < 1
    mask = np.where(body, np.where(bent[1] > rng.uniform(0.02, 0.12) * size[1], 1, 2), 0)
    image = 60 + 12 * noise(2.0) + 30 * ndimage.gaussian_filter(body.astype(float), 0.7) + 4 * noise(0.01)
    return (image * np.exp(rng.uniform(0, 6))).astype(np.float32), mask.astype(np.uint8)


def write_acdc(
    target: Path,
    num_patients: int,
    *,
    num_test_patients: int = 0,
    test_masks: bool = True,
    shape: tuple[int, int, int] = (40, 36, 6),
    seed: int = 2017,
    first_number: int = 1,
    file_ending: str = ".nii.gz",
) -> Path:
    """Write a heart phantom in the layout of ACDC and return its folder ``database``.

    Two labelled frames per patient, 1.5 x 1.5 x 10 mm, and a 4D series. Every third patient has its end diastole in
    frame 11 and its end systole in frame 3.

    Args:
        num_test_patients: Patients from 101 on, in ``testing``.
        test_masks: False leaves the masks of the test patients out, as older copies do.
        shape: Voxels along x, y and z; z may be as low as 2.
        first_number: Number of the first training patient.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    _check_arguments(num_patients, (*shape[:2], max(shape[2], 16)), file_ending)
    parts = (
        ("training", range(first_number, first_number + num_patients)),
        ("testing", range(101, 101 + num_test_patients)),
    )
    with staging.staged_folder(target) as staged:
        for part, numbers in parts:
            for number in numbers:
                folder = staged / "database" / part / f"patient{number:03d}"
                _write_acdc_patient(folder, number, shape, seed, part == "training" or test_masks, file_ending)
    return Path(target) / "database"


def _write_acdc_patient(
    folder: Path, number: int, shape: tuple[int, int, int], seed: int, labelled: bool, file_ending: str
) -> None:
    folder.mkdir(parents=True)
    phases = {"ED": 11, "ES": 3} if number % 3 == 2 else {"ED": 1, "ES": 9}
    info = {**phases, "Group": ACDC_GROUPS[number % 5], "Height": 170.0, "NbFrame": 12, "Weight": 70.0}
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    (folder / "MANDATORY_CITATION.md").write_text("A generated phantom: nothing to cite.\n")
    rng = np.random.default_rng([seed, number, *shape])
    frames = {phase: heart_case(rng, shape, contracted=phase == "ES") for phase in phases}
    for phase, frame in phases.items():
        name = f"{folder.name}_frame{frame:02d}"
        image, mask = frames[phase]
        _write_volume(image, folder / f"{name}{file_ending}", spacing_mm=ACDC_SPACING_MM)
        if labelled:
            _write_volume(mask, folder / f"{name}_gt{file_ending}", spacing_mm=ACDC_SPACING_MM)
    series = nibabel.Nifti1Image(np.stack([frames["ED"][0].T, frames["ES"][0].T], -1), np.diag([*ACDC_SPACING_MM, 1]))
    nibabel.save(series, folder / f"{folder.name}_4d{file_ending}")


def heart_case(
    rng: np.random.Generator, shape: tuple[int, int, int], *, contracted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One heart: an int16 image and its uint8 mask (1 RV cavity, 2 myocardium, 3 LV cavity), both (z, y, x)."""
    size = np.array(shape[::-1])
    noise = partial(_smooth_noise, rng, tuple(size))
    _, y, x = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in size), indexing="ij"))
    taper = np.linspace(1.0, 0.75, size[0])[:, None, None]  # towards the apex
    radius = np.hypot(y, x - 0.08 * size[2]) / (0.26 * size[1] * taper * rng.uniform(0.9, 1.1)) + 0.03 * noise(2.0)
    right = np.hypot(y / 1.2, x + 0.16 * size[2]) / (0.24 * size[1] * taper) < 1
    cavity = 0.5 if contracted else 0.68
    mask = np.select([radius < cavity, radius < 1, right], [3, 2, 1], 0)
    image = np.choose(mask, [60, 150, 70, 170]) * (1 + 0.1 * noise(1.5)) + 8 * rng.standard_normal(size)
    return np.clip(np.rint(image), 0, 32767).astype(np.int16), mask.astype(np.uint8)


def write_endovis2017(
    target: Path,
    frames_per_sequence: int,
    *,
    sequences: Sequence[int] = tuple(range(1, 9)),
    test_sequences: Sequence[int] = (),
    test_masks: bool = True,
    seed: int = 2017,
) -> Path:
    """Write a video phantom in the layout of EndoVis 2017 and return ``target``.

    Full frames with black borders; instruments cross, folder names are as irregular as the organisers', masks of even
    sequences have three equal channels, test masks lie apart and those of even sequences one level deeper.

    Args:
        sequences: Training sequences, of 1 to 8.
        test_sequences: Test sequences, of 1 to 10.
        test_masks: False leaves the archive with the test masks out.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    if frames_per_sequence < 1 or set(sequences) - set(ENDOVIS_FOLDERS) or set(test_sequences) - set(range(1, 11)):
        raise ConversionError("At least 1 frame of training sequences 1 to 8 and test sequences 1 to 10.")
    with staging.staged_folder(target) as staged:
        for number in sequences:
            archive = "instrument_1_4_training" if number <= 4 else "instrument_5_8_training"
            folder = staged / archive / f"instrument_dataset_{number}"
            for index in range(frames_per_sequence):
                rng = np.random.default_rng([seed, number, index])
                frame, parts = endoscopic_frame(rng, len(ENDOVIS_FOLDERS[number]))
                _save_png(frame, folder / "left_frames" / f"frame{index:03d}.png")
                for instrument, part in zip(ENDOVIS_FOLDERS[number], parts):
                    stored = np.repeat(part[..., None], 3, -1) if number % 2 == 0 else part
                    _save_png(stored, folder / "ground_truth" / instrument / f"frame{index:03d}.png")
        for number in test_sequences:
            archive = "instrument_1_8_testing" if number <= 8 else "instrument_9_10_testing"
            for index in range(225, 225 + frames_per_sequence):
                rng = np.random.default_rng([seed, 100 + number, index])
                types = rng.choice(np.arange(1, 8), 2, replace=False)
                frame, parts = endoscopic_frame(rng, len(types))
                name = f"frame{index:03d}.png"
                _save_png(frame, staged / archive / f"instrument_dataset_{number}" / "left_frames" / name)
                if test_masks:
                    masks = staged / "instrument_2017_test" / f"instrument_dataset_{number}"
                    masks = masks / "gt" if number % 2 == 0 else masks
                    types_here, parts_here = np.zeros((2, *frame.shape[:2]), np.uint8)
                    for value, part in zip(types, parts):
                        types_here[part > 0] = value
                        parts_here = np.where(part > 0, np.choose(part // 10, (0, 30, 100, 255)), parts_here)
                    _save_png(types_here, masks / "TypeSegmentation" / name)
                    _save_png(types_here * 32, masks / "TypeSegmentationRescaled" / name)
                    _save_png(parts_here.astype(np.uint8), masks / "PartsSegmentation" / name)
        if sequences:
            for name in ("parts_mapping", "type_mapping"):
                (staged / f"{name}.json").write_text("{}\n")
    return Path(target)


def endoscopic_frame(rng: np.random.Generator, num_instruments: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A frame, (1080, 1920, 3), uint8, and per instrument its parts (10 shaft, 20 wrist, 30 clasper), (1080, 1920).

    The instruments reach in from the border of the picture and cross near its middle.
    """
    top, left, height, width = ENDOVIS_PICTURE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    glow = np.exp(-(((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2) * 3)
    frame = np.zeros((1080, 1920, 3), np.uint8)
    frame[top : top + height, left : left + width] = (
        glow[..., None] * rng.uniform((150, 40, 40), (210, 80, 80))
    ).astype(np.uint8)
    masks = []
    for index in range(num_instruments):
        angle = 2 * np.pi * (index + rng.uniform(0.2, 0.8)) / num_instruments
        along = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
        across = np.abs((y - height / 2) * np.cos(angle) - (x - width / 2) * np.sin(angle))
        inside = (across < 45) & (along > -60)
        part = np.where(inside, np.select([along < 60, along < 160], [30, 20], 10), 0).astype(np.uint8)
        mask = np.zeros(frame.shape[:2], np.uint8)
        mask[top : top + height, left : left + width] = part
        frame[mask > 0] = np.array((110, 115, 120)) + mask[mask > 0][:, None]
        masks.append(mask)
    return frame, masks


def _save_png(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, compress_level=1)


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
    bright = ndimage.gaussian_filter((instances > 0).astype(float), 1.0)
    return np.clip(0.1 + 0.7 * bright + 0.03 * rng.standard_normal((edge, edge)), 0, 1), instances


def _save_cells(picture: np.ndarray, kind: str, path: Path) -> None:
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


def _check_arguments(num_cases: int, shape: tuple[int, int, int], file_ending: str) -> None:
    if num_cases < 1:
        raise ConversionError(f"{num_cases} cases cannot be generated; ask for at least 1.")
    if len(shape) != 3 or not all(16 <= edge <= MAX_EDGE for edge in shape):
        raise ConversionError(f"Shape {tuple(shape)} is out of range; give three edges of 16 to {MAX_EDGE} voxels.")
    if file_ending not in volumes.NIFTI_ENDINGS:
        raise ConversionError(f"File ending {file_ending!r} is unknown; use one of {volumes.NIFTI_ENDINGS}.")


LAYOUTS = {
    "brats2020": write_brats2020,
    "brats2021": partial(write_brats2020, release="2021"),
    "brats2023": partial(write_brats2020, release="2023-GLI"),
    "hippocampus": write_hippocampus,
    "acdc": write_acdc,
    "endovis2017": write_endovis2017,
    "cells": write_cells,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: write one phantom source into an empty or new folder."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_conversion.phantoms",
        description=__doc__,
        epilog=command_line.examples("python -m dataset_conversion.phantoms brats2020 TARGET --cases 12"),
        formatter_class=command_line.HelpFormatter,
    )
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("target", type=Path, help="new or empty folder")
    parser.add_argument(
        "--cases",
        type=int,
        default=12,
        help="default 12; acdc: patients; endovis2017: frames of each sequence; cells: pictures",
    )
    parser.add_argument(
        "--test-cases", type=int, help="acdc: test patients; endovis2017: test sequences; cells: tuning"
    )
    parser.add_argument("--first-number", type=int, help="3D only: number of the first case, default 1")
    parser.add_argument("--unlabelled", action="store_true", help="BraTS only: the validation layout, without masks")
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("X", "Y", "Z"), help=f"3D only: voxels, 16 to {MAX_EDGE} each"
    )
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args(argv)
    tests = {"acdc": "num_test_patients", "endovis2017": "test_sequences", "cells": "num_tuning"}
    if arguments.unlabelled and not arguments.layout.startswith("brats"):
        parser.error("--unlabelled is for BraTS only")
    if arguments.test_cases is not None and arguments.layout not in tests:
        parser.error(f"--test-cases is for {', '.join(tests)} only")
    if arguments.layout in ("endovis2017", "cells") and (arguments.shape or arguments.first_number is not None):
        parser.error("--shape and --first-number are for the 3D layouts only")
    given = {
        "shape": arguments.shape and tuple(arguments.shape),
        "seed": arguments.seed,
        "first_number": arguments.first_number,
        "labelled": False if arguments.unlabelled else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if arguments.test_cases is not None:
        count = arguments.test_cases
        options[tests[arguments.layout]] = range(1, count + 1) if arguments.layout == "endovis2017" else count

    def command() -> None:
        folder = LAYOUTS[arguments.layout](arguments.target, arguments.cases, **options)
        print(f"{arguments.cases} generated case(s): {folder}")

    return command_line.run(command)


if __name__ == "__main__":
    sys.exit(main())
