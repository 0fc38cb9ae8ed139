"""What the generated volumes are drawn with, and how they are written."""

from pathlib import Path

import numpy as np
import scipy  # loads ndimage when it is used

from dataset_conversion.core import sources
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.formats import volumes

MAX_EDGE = 48


def check_arguments(
    num_cases: int, shape: tuple[int, int, int], file_ending: str, first_number: int, last_number: int = 999
) -> None:
    """Raise a ConversionError for what is out of range, such as cases that the data owner's names cannot number."""
    if num_cases < 1:
        raise ConversionError(f"{num_cases} cases cannot be generated; ask for at least 1.")
    if not 1 <= first_number <= last_number + 1 - num_cases:
        raise ConversionError(
            f"Cases {first_number} to {first_number + num_cases - 1} are out of range; they are numbered from 1 to "
            f"{last_number} in this layout."
        )
    if len(shape) != 3 or not all(16 <= edge <= MAX_EDGE for edge in shape):
        raise ConversionError(f"Shape {tuple(shape)} is out of range; give three edges of 16 to {MAX_EDGE} voxels.")
    if file_ending not in volumes.NIFTI_ENDINGS:
        raise ConversionError(f"File ending {file_ending!r} is unknown; use one of {volumes.NIFTI_ENDINGS}.")


def norm(vectors: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """Length of (3, z, y, x) vectors after division by ``scale``, per axis."""
    return np.sqrt(((vectors / np.reshape(scale, (-1, 1, 1, 1))) ** 2).sum(0))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise smoothed over ``sigma`` voxels, mean 0 and standard deviation 1."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="reflect")
    return (field - field.mean()) / field.std()


def largest_part(mask: np.ndarray) -> np.ndarray:
    parts, count = scipy.ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]) if count else mask


def write_volume(
    voxels: np.ndarray,
    path: Path,
    origin: tuple[float, ...] = (0.0, 0.0, 0.0),
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> None:
    import SimpleITK as sitk  # late, as wherever a library is not needed to say what is wrong with a command

    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin)
    sitk.WriteImage(image, sources.for_itk(path), useCompression=path.name.endswith(".gz"))
