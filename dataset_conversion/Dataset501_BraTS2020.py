"""BraTS 2020 (brain tumour, four MR channels) as an nnU-Net data set with regions.

Run from a checkout: ``python -m dataset_conversion.Dataset501_BraTS2020 SOURCE``.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_conversion import common, volumes
from dataset_conversion.common import Case, ConversionError

# Channel order 0000…0003 by file suffix. "_t1" is a prefix of "_t1ce", so whole suffixes are compared.
MODALITIES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
MASK_SUFFIX = "seg"
# Source label to ours: oedema 2 -> 1, necrotic and non-enhancing core 1 -> 2, enhancing tumour 4 -> 3, so that each
# region is painted over the larger one around it.
LABEL_MAP = {0: 0, 1: 2, 2: 1, 4: 3}
CASE_FOLDER = re.compile(r"BraTS20_Training_(\d{3})")
UNLABELLED_FOLDER = re.compile(r"BraTS20_Validation_\d{3}")
# The widely used Kaggle copy names the mask of this one case after the scan it came from.
ODDLY_NAMED_CASE = "BraTS20_Training_355"
OTHER_RELEASES = {
    "BraTS 2017 to 2019": re.compile(r"Brats1[789]_.+"),
    "BraTS 2021": re.compile(r"BraTS2021_\d{5}"),
    "BraTS 2023 or later": re.compile(r"BraTS-GLI-\d+-\d+"),
}

DESCRIPTION = common.Description(
    name="BraTS2020",
    channels=tuple(MODALITIES.values()),
    labels={"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
    regions_class_order=(1, 2, 3),
    label_map=LABEL_MAP,
    foreign_values={3: "enhancing tumour is 4 in BraTS 2020, a 3 belongs to BraTS 2023 and later"},
    licence="BraTS 2020 data usage agreement of the organisers; registration required",
    reference="https://www.med.upenn.edu/cbica/brats2020/; Menze et al. 2015, doi:10.1109/TMI.2014.2377694; "
    "Bakas et al. 2017, doi:10.1038/sdata.2017.117",
    release="2020",
    text="Brain tumour segmentation in T1, T1 with contrast, T2 and FLAIR. Source labels 2, 1, 4 are 1, 2, 3 here.",
)


def convert(
    source: Path,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None = None,
    dataset_id: int = 501,
    overwrite: bool = False,
    *,
    jobs: int = 1,
    dry_run: bool = False,
) -> Path:
    """Write Dataset501_BraTS2020 from the unpacked archive somewhere below ``source`` and return its folder.

    Labels become 1 oedema, 2 necrotic and non-enhancing core, 3 enhancing tumour, trained as the regions whole tumour,
    tumour core and enhancing tumour; :func:`restore_labels` is the inverse. Source files are never changed.

    Args:
        nnunet_preprocessed: Gets five deterministic folds over the sorted cases, as many folds as cases if there are
            fewer than five; None writes no folds.
        overwrite: Replace an existing data set of this name and its folds.
        dry_run: Check and report only.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    return common.write_dataset(
        find_cases(source),
        DESCRIPTION,
        volumes.Volumes(DESCRIPTION),
        source=source,
        dataset_id=dataset_id,
        nnunet_raw=nnunet_raw,
        nnunet_preprocessed=nnunet_preprocessed,
        overwrite=overwrite,
        jobs=jobs,
        dry_run=dry_run,
    )


def convert_images(source: Path, out: Path, *, overwrite: bool = False, jobs: int = 1, dry_run: bool = False) -> Path:
    """Write scans below ``source`` into ``out`` as ``nnUNetv2_predict -i`` expects them; masks are not looked at.

    A case is any set of ``<case>_t1``, ``<case>_t1ce``, ``<case>_t2`` and ``<case>_flair`` in one folder, whatever
    the case is called, so scans of one's own can be predicted.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    return common.write_test_images(
        find_scans(source),
        volumes.Volumes(DESCRIPTION),
        out,
        source=source,
        overwrite=overwrite,
        jobs=jobs,
        dry_run=dry_run,
    )


def restore_labels(voxels: np.ndarray) -> np.ndarray:
    """Labels of this data set back in BraTS 2020's own values (1 -> 2, 2 -> 1, 3 -> 4); any shape, uint8.

    Raises:
        ValueError: If a value is not 0, 1, 2 or 3.
    """
    return common.remap_labels(voxels, {ours: theirs for theirs, ours in LABEL_MAP.items()})


def find_cases(source: Path) -> list[Case]:
    """The labelled BraTS 2020 cases below ``source``, sorted by name; says what else was seen and skipped.

    Raises:
        ConversionError: If there are none, one lies there twice, or one lacks a file.
    """
    source = common.require_source(source)
    folders: dict[str, Path] = {}
    others = dict.fromkeys(("unlabelled BraTS 2020", *OTHER_RELEASES), 0)
    for folder in common.walk_folders(source):
        if CASE_FOLDER.fullmatch(folder.name):
            if folder.name in folders:
                raise ConversionError(
                    f"Case {folder.name} lies both in {folders[folder.name]} and in {folder}; give one copy as source."
                )
            folders[folder.name] = folder
        elif UNLABELLED_FOLDER.fullmatch(folder.name):
            others["unlabelled BraTS 2020"] += 1
        else:
            for release, pattern in OTHER_RELEASES.items():
                others[release] += bool(pattern.fullmatch(folder.name))
    seen = ", ".join(f"{count} of {what}" for what, count in others.items() if count)
    if not folders:
        raise ConversionError(
            f"No folder named BraTS20_Training_NNN below {source}"
            + (f", only {seen}, which this command does not convert." if seen else "; is the archive unpacked there?")
        )
    if seen:
        print(f"skipped folders that are no labelled BraTS 2020 case: {seen}")
    return [_labelled_case(folders[name]) for name in sorted(folders)]


def _labelled_case(folder: Path) -> Case:
    name = folder.name
    files = volumes.nifti_files(folder)
    images = _images(name, folder, files)
    mask = files.pop(f"{name}_{MASK_SUFFIX}", None)
    if mask is None and name == ODDLY_NAMED_CASE and len(files) == 1:
        mask = files.popitem()[1]
        print(f"case {name}: mask taken from {mask.name}")
    if mask is None:
        raise ConversionError(f"Case {name} has no mask {name}_{MASK_SUFFIX}.nii.gz (or .nii) in {folder}.")
    for path in files.values():
        print(f"skipped {path}: neither a modality nor the mask of case {name}")
    return Case(name, images, mask)


def _images(name: str, folder: Path, files: dict[str, Path]) -> tuple[Path, ...]:
    """Take the four modalities of a case out of ``files``, in channel order."""
    missing = [suffix for suffix in MODALITIES if f"{name}_{suffix}" not in files]
    if missing:
        wanted = " and ".join(f"{name}_{suffix}.nii.gz" for suffix in missing)
        raise ConversionError(f"Case {name} lacks {wanted} (or .nii) in {folder}.")
    return tuple(files.pop(f"{name}_{suffix}") for suffix in MODALITIES)


def find_scans(source: Path) -> list[Case]:
    """Every set of four modalities below ``source``, labelled or not, sorted by name.

    Raises:
        ConversionError: If there are none, one name occurs twice, or a modality is missing.
    """
    source = common.require_source(source)
    cases: dict[str, Case] = {}
    for folder in common.walk_folders(source):
        files = volumes.nifti_files(folder)
        for name in sorted({stem.rpartition("_")[0] for stem in files if stem.rpartition("_")[2] in MODALITIES}):
            if name in cases:
                raise ConversionError(
                    f"Case {name} lies both in {cases[name].images[0].parent} and in {folder}; give one copy as source."
                )
            cases[name] = Case(name, _images(name, folder, files))
    if not cases:
        wanted = ", ".join(f"<case>_{suffix}.nii.gz" for suffix in MODALITIES)
        raise ConversionError(f"No scans below {source}; a case needs {wanted} in one folder.")
    return [cases[name] for name in sorted(cases)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: convert the labelled cases, or with --images-only the scans to predict."""
    parser = common.make_parser("dataset_conversion.Dataset501_BraTS2020", __doc__, default_id=501)
    arguments = parser.parse_intermixed_args(argv)
    return common.run_converter(parser, arguments, convert=convert, convert_images=convert_images, restore=None)


if __name__ == "__main__":
    sys.exit(main())
