"""3D data sets of NIfTI volumes: every file of a case is checked, images keep their bytes, masks get our labels.

``nifti`` and ``label_values`` are imported where they are used: only whoever reads voxels needs them, and with worker
processes that is not the main process, which therefore starts its workers at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion import sources, staging
from dataset_conversion.cases import Case, Description, Facts

NIFTI_ENDINGS = (".nii.gz", ".nii")
FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Volumes:
    """3D cases, one NIfTI file per channel; masks become uint8 on exactly the grid of the first image."""

    description: Description
    file_ending: str = FILE_ENDING
    reader_writer: str = "SimpleITKIO"
    unit: str = "voxels"

    def check(self, case: Case) -> Facts:
        """Read every file of a case; count the voxels of its mask.

        Raises:
            ConversionError: For the first file that cannot be read, holds NaN or infinity, lies on another grid than
                the first image, or has an illegal label.
        """
        from dataset_conversion import label_values, nifti

        images = nifti.check_images(case.images, case.name)
        if case.mask is None:
            return Facts(remarks=images.remarks, readers=images.readers)
        voxels, remarks = nifti.check_mask(images, case.mask, case.name)
        histogram = label_values.check_labels(voxels, self.description, case.name, case.mask)
        return Facts(histogram, remarks={**images.remarks, **remarks}, readers=images.readers)

    def write_images(self, case: Case, folder: Path) -> None:
        """Copy every channel; the bytes stay, ``.nii`` is compressed."""
        from dataset_conversion import nifti

        for channel, path in enumerate(case.images):
            target = folder / f"{case.name}_{channel:04d}{FILE_ENDING}"
            with staging.writing(target, case.name):
                nifti.write_image(path, target)

    def write_labels(self, case: Case, dataset: Path, part: str) -> None:
        """Write the mask in our labels; one that is already as we would write it is copied."""
        from dataset_conversion import nifti

        target = dataset / f"labels{part}" / f"{case.name}{FILE_ENDING}"
        identity = all(theirs == ours for theirs, ours in self.description.label_map.items())
        if identity and nifti.stored_as_we_store(case.mask, case.images[0], case.name):
            with staging.writing(target, case.name):
                nifti.write_image(case.mask, target)
            return
        nifti.write_mask(case.mask, target, self.description.label_map, case.name, grid=case.images[0])

    def label_folders(self, part: str) -> tuple[str, ...]:
        """``labels<part>`` alone."""
        return (f"labels{part}",)


def nifti_stem(path: Path) -> str | None:
    """File name without its NIfTI ending, in capitals or not; None for other files and macOS's ``._*`` files."""
    if path.name.startswith("."):
        return None
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return None


def nifti_files(folder: Path) -> dict[str, Path]:
    """NIfTI files of ``folder`` by stem, sorted.

    Raises:
        ConversionError: If one stem lies there twice, as ``.nii`` and ``.nii.gz``.
    """
    return sources.files_by_stem(folder, nifti_stem)


@dataclass(frozen=True)
class RestoredVolumes:
    """Predictions back in the source's label values, uint8, on their own grid.

    Attributes:
        description: The data set; its ``label_map`` is followed backwards.
    """

    description: Description

    def check(self, case: Case) -> Facts:
        """Read a prediction; every label must be one of ours."""
        from dataset_conversion import label_values

        backwards = replace(
            self.description, label_map=label_values.inverse(self.description.label_map), foreign_values={}
        )
        return Volumes(backwards).check(replace(case, mask=case.images[0]))

    def write(self, case: Case, target: Path) -> None:
        """Write the mask in the source's label values."""
        from dataset_conversion import label_values, nifti

        nifti.write_mask(case.images[0], target, label_values.inverse(self.description.label_map), case.name)
