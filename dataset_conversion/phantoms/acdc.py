"""Beating hearts in the layout of ACDC."""

from functools import partial
from pathlib import Path

import numpy as np

from dataset_conversion.core import staging
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.phantoms.anatomy import check_arguments, smooth_noise, write_volume

ACDC_GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")
LAST_TRAINING_PATIENT, MAX_TEST_PATIENTS = 100, 50
ACDC_SPACING_MM = (1.5, 1.5, 10.0)


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
        num_test_patients: Patients from 101 to at most 150, in ``testing``.
        test_masks: False leaves the masks of the test patients out, as older copies do.
        shape: Voxels along x, y and z; z may be as low as 2.
        first_number: Number of the first training patient; the last may have 100.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    check_arguments(num_patients, (*shape[:2], max(shape[2], 16)), file_ending, first_number, LAST_TRAINING_PATIENT)
    if not 0 <= num_test_patients <= MAX_TEST_PATIENTS:
        raise ConversionError(f"{num_test_patients} test patients are out of range; ask for 0 to {MAX_TEST_PATIENTS}.")
    parts = (
        ("training", range(first_number, first_number + num_patients)),
        ("testing", range(LAST_TRAINING_PATIENT + 1, LAST_TRAINING_PATIENT + 1 + num_test_patients)),
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
        write_volume(image, folder / f"{name}{file_ending}", spacing_mm=ACDC_SPACING_MM)
        if labelled:
            write_volume(mask, folder / f"{name}_gt{file_ending}", spacing_mm=ACDC_SPACING_MM)
    import nibabel

    series = nibabel.Nifti1Image(np.stack([frames["ED"][0].T, frames["ES"][0].T], -1), np.diag([*ACDC_SPACING_MM, 1]))
    nibabel.save(series, folder / f"{folder.name}_4d{file_ending}")


def heart_case(
    rng: np.random.Generator, shape: tuple[int, int, int], *, contracted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One heart: an int16 image and its uint8 mask (1 RV cavity, 2 myocardium, 3 LV cavity), both (z, y, x)."""
    size = np.array(shape[::-1])
    noise = partial(smooth_noise, rng, tuple(size))
    _, y, x = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in size), indexing="ij"))
    taper = np.linspace(1.0, 0.75, size[0])[:, None, None]  # towards the apex
    radius = np.hypot(y, x - 0.08 * size[2]) / (0.26 * size[1] * taper * rng.uniform(0.9, 1.1)) + 0.03 * noise(2.0)
    right = np.hypot(y / 1.2, x + 0.16 * size[2]) / (0.24 * size[1] * taper) < 1
    cavity = 0.5 if contracted else 0.68
    mask = np.select([radius < cavity, radius < 1, right], [3, 2, 1], 0)
    image = np.choose(mask, [60, 150, 70, 170]) * (1 + 0.1 * noise(1.5)) + 8 * rng.standard_normal(size)
    return np.clip(np.rint(image), 0, 32767).astype(np.int16), mask.astype(np.uint8)
