"""Hippocampus (Task04 of the Medical Segmentation Decathlon) as an nnU-Net data set, folds by subject.

Run from a checkout: ``python -m dataset_conversion.Dataset004_Hippocampus SOURCE``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_conversion.core import command_line, conversion, sources
from dataset_conversion.core.cases import Case, ConversionError, Description, Options, Skipped, Work
from dataset_conversion.formats import volumes

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = Description(
    name="Hippocampus",
    channels=("MRI",),
    labels={"background": 0, "Anterior": 1, "Posterior": 2},
    label_map={0: 0, 1: 1, 2: 2},
    licence="CC BY-SA 4.0",
    reference="http://medicaldecathlon.com/; Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9",
    release="Medical Segmentation Decathlon, Task04",
    text="Left and right hippocampus heads (Anterior) and bodies (Posterior) in T1-weighted MRI, cropped around them.",
)

# How the cases of the Decathlon's other tasks are called; their labels would be taken for parts of the hippocampus.
OTHER_TASKS = {
    "BRATS": "Task01_BrainTumour",
    "la": "Task02_Heart",
    "liver": "Task03_Liver",
    "prostate": "Task05_Prostate",
    "lung": "Task06_Lung",
    "pancreas": "Task07_Pancreas",
    "hepaticvessel": "Task08_HepaticVessel",
    "spleen": "Task09_Spleen",
    "colon": "Task10_Colon",
}


def convert(
    source: Path,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None = None,
    dataset_id: int = 4,
    overwrite: bool = False,
    **options: "Unpack[Work]",
) -> Path:
    """Write Dataset004_Hippocampus from a folder in Decathlon layout at or right below ``source``; return its folder.

    Images get the channel number that the Decathlon leaves out, masks stored as float become uint8, and scans in
    ``imagesTs`` come along unlabelled. Source files are never changed; its dataset.json is not needed.

    Args:
        nnunet_preprocessed: Gets five deterministic folds by subject; None writes no folds.
        overwrite: Replace an existing data set of this name and its folds.
        options: ``jobs``, worker processes; ``dry_run``, check and report only.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    folder = find_decathlon_folder(source)
    return conversion.write_dataset(
        find_cases(folder),
        DESCRIPTION,
        volumes.Volumes(DESCRIPTION),
        source=source,
        dataset_id=dataset_id,
        nnunet_raw=nnunet_raw,
        nnunet_preprocessed=nnunet_preprocessed,
        test_cases=find_test_cases(folder),
        skipped=find_skipped(folder),
        overwrite=overwrite,
        **options,
    )


def subject_of(case: str) -> int:
    """Number of the subject that a case belongs to.

    Cases 2k-1 and 2k look like the two hippocampi of one person: their mean intensities agree within 10 % in every
    such pair, and mostly do not in the pairs 2k, 2k+1. The source does not document it; keeping them together is safe.
    """
    return (sources.trailing_number(case) + 1) // 2


def find_decathlon_folder(source: Path) -> Path:
    """``source`` or its one sub-folder that has both imagesTr and labelsTr; a ConversionError otherwise."""
    source = sources.require_source(source)
    folders = (path for path in source.iterdir() if path.is_dir() and not sources.is_litter(path.name))
    candidates = [source, *sorted(folders)]
    found = [path for path in candidates if (path / "imagesTr").is_dir() and (path / "labelsTr").is_dir()]
    if len(found) != 1:
        what = f"are {len(found)} folders" if found else "is no folder"
        raise ConversionError(f"There {what} with imagesTr and labelsTr at or right below {source}; name one.")
    return found[0]


def find_cases(folder: Path) -> list[Case]:
    """The cases of a Decathlon folder, sorted by name.

    Raises:
        ConversionError: If there are none, an image or a mask has no partner of the same name, or they are of another
            task.
    """
    images, masks = (volumes.nifti_files(folder / name) for name in ("imagesTr", "labelsTr"))
    for have, lack, what, where in ((images, masks, "mask", "labelsTr"), (masks, images, "image", "imagesTr")):
        alone = sorted(set(have) - set(lack))
        if alone:
            more = f" (and {len(alone) - 1} more such cases)" if len(alone) > 1 else ""
            more += volumes.found_instead(folder / where, alone[0])
            raise ConversionError(f"Case {alone[0]} has {have[alone[0]]} but no {what} in {where}{more}.")
    if not images:
        raise ConversionError(f"There are no NIfTI files in {folder / 'imagesTr'}.")
    for name, path in images.items():
        task = OTHER_TASKS.get(name.rpartition("_")[0])
        if task:
            raise ConversionError(
                f"Case {name}: {path} belongs to the Decathlon's {task}, and this command converts Task04_Hippocampus "
                "alone; nnUNetv2_convert_MSD_dataset converts the others."
            )
    return [Case(name, (images[name],), masks[name], group=str(subject_of(name))) for name in sorted(images)]


def find_test_cases(folder: Path) -> list[Case]:
    """The unlabelled cases of a Decathlon folder, sorted by name; none if there is no imagesTs."""
    images = volumes.nifti_files(folder / "imagesTs") if (folder / "imagesTs").is_dir() else {}
    return [Case(name, (images[name],)) for name in sorted(images)]


def find_skipped(folder: Path) -> list[Skipped]:
    """What lies in the folders of cases and is no volume, and the masks of test scans."""
    skipped = [
        Skipped(path, "no NIfTI file")
        for name in ("imagesTr", "labelsTr", "imagesTs")
        if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir())
        if not path.name.startswith(".")
        and (volumes.nifti_stem(path) is None or path.is_dir() and volumes.volume_in(path) is None)
    ]
    if (folder / "labelsTs").is_dir():
        skipped.append(Skipped(folder / "labelsTs", "masks of test scans, which come along unlabelled"))
    return skipped


def convert_images(source: Path, out: Path, **options: "Unpack[Options]") -> Path:
    """Write every scan below ``source`` into ``out`` as ``nnUNetv2_predict -i`` expects it.

    Masks, in folders ``labelsTr`` and ``labelsTs``, are passed over.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_test_images`.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """

    def stem_of(path: Path) -> str | None:
        return None if path.parent.name in ("labelsTr", "labelsTs") else volumes.nifti_stem(path)

    cases = sources.find_scans(source, stem_of, "NIfTI files", volumes.NIFTI_ENDINGS, volumes.volume_in)
    return conversion.write_test_images(cases, volumes.Volumes(DESCRIPTION), out, source=source, **options)


def restore(predictions: Path, out: Path, **options: "Unpack[Options]") -> Path:
    """Write predictions as uint8 under the Decathlon's names; its labels are ours.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_restored`.

    Raises:
        ConversionError: Before anything is written; the text names the prediction.
    """
    names = {path: path.name for path in conversion.find_predictions(predictions, volumes.FILE_ENDING).values()}
    restorer = volumes.RestoredVolumes(DESCRIPTION)
    return conversion.write_restored(names, restorer, out, source=predictions, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: convert, write scans to predict, or restore predictions."""
    parser = command_line.make_parser("dataset_conversion.Dataset004_Hippocampus", __doc__, default_id=4)
    arguments = parser.parse_intermixed_args(argv)
    return command_line.run_converter(
        parser, arguments, convert=convert, convert_images=convert_images, restore=restore
    )


if __name__ == "__main__":
    sys.exit(main())
