"""3D data sets of NIfTI volumes: every file of a case is checked, images keep their bytes, masks get our labels.

``nifti`` and ``label_values`` are imported where they are used: only whoever reads voxels needs them, and with worker
processes that is not the main process, which therefore starts its workers at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.core import sources, staging
from dataset_conversion.core.cases import Case, ConversionError, Description, Facts

NIFTI_ENDINGS = (".nii.gz", ".nii")
FILE_ENDING = ".nii.gz"
RESTORED = "labels restored by dataset_conversion"


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
        from dataset_conversion.formats import label_values, nifti

        images = nifti.check_images(case.images, case.name)
        if not case.masks:
            return Facts(remarks=images.remarks, readers=images.readers)
        voxels, remarks = nifti.check_mask(images, case.masks[0], case.name)
        histogram = label_values.check_labels(voxels, self.description, case.name, case.masks[0])
        return Facts(histogram, remarks={**images.remarks, **remarks}, readers=images.readers)

    def write_images(self, case: Case, folder: Path) -> None:
        """Copy every channel; the bytes stay, ``.nii`` is compressed."""
        from dataset_conversion.formats import nifti

        for channel, path in enumerate(case.images):
            target = folder / f"{case.name}_{channel:04d}{FILE_ENDING}"
            with staging.writing(target, case.name):
                nifti.write_image(path, target)

    def write_labels(self, case: Case, dataset: Path, part: str) -> None:
        """Write the mask in our labels; one that is already as we would write it is copied."""
        from dataset_conversion.formats import nifti

        mask, target = case.masks[0], dataset / f"labels{part}" / f"{case.name}{FILE_ENDING}"
        identity = all(theirs == ours for theirs, ours in self.description.label_map.items())
        if identity and nifti.stored_as_we_store(mask, case.images[0], case.name):
            with staging.writing(target, case.name):
                nifti.write_image(mask, target)
            return
        nifti.write_mask(mask, target, self.description.label_map, case.name, grid=case.images[0])

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
    """NIfTI files of ``folder`` by stem, sorted; a folder named like a file is taken for the file in it.

    Raises:
        ConversionError: If one stem lies there twice, as ``.nii`` and ``.nii.gz``, or such a folder has several files.
    """
    return sources.files_by_stem(folder, nifti_stem, volume_in)


def volume_in(folder: Path) -> Path | None:
    """The NIfTI file in a folder that is named like one, as unpackers leave it that keep the name within a ``.gz``.

    Returns:
        None for folders of other names and for those without a NIfTI file.

    Raises:
        ConversionError: If there are several.
    """
    if nifti_stem(folder) is None or not folder.is_dir():
        return None
    candidates = [path for path in sorted(folder.iterdir()) if nifti_stem(path) is not None]
    files = [file for path in candidates if (file := path if path.is_file() else volume_in(path)) is not None]
    if len(files) > 1:
        names = " and ".join(path.name for path in files[:2]) + (f" and {len(files) - 2} more" if files[2:] else "")
        raise ConversionError(
            f"{folder} is a folder that holds {names}, where one volume is expected; move the file that is meant up."
        )
    return files[0] if files else None


def lies_below(source: Path) -> str:
    """What lies below a source in which no case was found, for the error message."""
    for folder in sources.walk_folders(source):
        for path in sorted(folder.iterdir()):
            if nifti_stem(path) is not None and path.is_file():
                return f"; volumes such as {path} lie there, in folders of other names."
    return "; is the archive unpacked there?"


def found_instead(folder: Path, stem: str) -> str:
    """What lies in ``folder`` in place of a volume that is missing, for the error message; "" if nothing does."""
    if (folder / f"{stem}.hdr").exists() and any(folder.glob(f"{stem}.img*")):
        return f"; {stem}.hdr and .img are there, save the pair as one {stem}.nii.gz"
    for ending in NIFTI_ENDINGS:
        if (folder / f"{stem}{ending}").is_dir():
            return f"; {stem}{ending} is a folder that holds no NIfTI file, unpack it anew"
    return ""


@dataclass(frozen=True)
class RestoredVolumes:
    """Predictions back in the source's label values, uint8, on their own grid.

    Where these differ from ours, the header says that they are restored: a second time they would be swapped unseen.

    Attributes:
        description: The data set; its ``label_map`` is followed backwards.
    """

    description: Description

    def check(self, case: Case) -> Facts:
        """Read a prediction; every label must be one of ours."""
        from dataset_conversion.formats import label_values, nifti

        path, label_map = case.images[0], label_values.inverse(self.description.label_map)
        if self._mark and nifti.description_of(path, case.name) == self._mark:
            raise ConversionError(f"Case {case.name}: {path} is restored already; name the folder of the predictions.")
        backwards = replace(
            self.description,
            name=f"a prediction of {self.description.name}",
            label_map=label_map,
            foreign_values=dict.fromkeys(set(label_map.values()) - set(label_map), "it looks restored already"),
        )
        return Volumes(backwards).check(replace(case, mask=path))

    def write(self, case: Case, target: Path) -> None:
        """Write the mask in the source's label values."""
        from dataset_conversion.formats import label_values, nifti

        backwards = label_values.inverse(self.description.label_map)
        nifti.write_mask(case.images[0], target, backwards, case.name, description=self._mark)

    @property
    def _mark(self) -> str:
        """What the header of a restored volume says, nothing where its labels are ours."""
        return RESTORED if any(theirs != ours for theirs, ours in self.description.label_map.items()) else ""
