"""BraTS 2017 to 2021, 2023-GLI or 2023-SSA (brain tumour, four MR channels) as an nnU-Net data set with regions.

Run from a checkout: ``python -m dataset_conversion.Dataset501_BraTS2020 SOURCE``.
"""

import functools
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.core import command_line, conversion, sources, splitting
from dataset_conversion.core.cases import Case, ConversionError, Description, Options, Skipped, Work
from dataset_conversion.formats import label_values, volumes

if TYPE_CHECKING:
    from typing_extensions import Unpack

PROTOCOLS = ("crossval", "paper", "official")
CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
# Source label to ours: oedema 2 -> 1, necrotic and non-enhancing core 1 -> 2, enhancing tumour 4 -> 3, so that each
# region is painted over the larger one around it.
LABEL_MAP = {0: 0, 1: 2, 2: 1, 4: 3}
# The widely used Kaggle copy names the mask of this one case after the scan it came from.
ODDLY_NAMED_CASE = "BraTS20_Training_355"

DESCRIPTION = Description(
    name="BraTS2020",
    channels=CHANNELS,
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


@dataclass(frozen=True)
class Release:
    """How one release names its folders and files.

    Attributes:
        labelled: Pattern of a training case's folder; its group ``patient`` is one person.
        unlabelled: Pattern of a validation case's folder, except in 2020 the same as of a training case.
        suffixes: File suffixes of T1, T1ce, T2 and FLAIR, in this order, and of the mask. ``_t1`` is a prefix of
            ``_t1ce``, so whole suffixes are compared.
        separator: What stands before the suffix.
        training_cases: Labelled cases of the complete archive.
    """

    description: Description
    labelled: re.Pattern[str]
    unlabelled: re.Pattern[str]
    suffixes: tuple[str, str, str, str]
    separator: str
    training_cases: int
    mask_suffix: str = "seg"


_SUFFIXES = ("t1", "t1ce", "t2", "flair")
_SUFFIXES_2023 = ("t1n", "t1c", "t2w", "t2f")
_SUFFIX = re.compile(f"[_-]({'|'.join((*_SUFFIXES, *_SUFFIXES_2023, 'seg'))})$", re.IGNORECASE)
_MASKS = ("_seg", "-seg")
_BRATS2021 = re.compile(r"(?P<patient>BraTS2021_[0-9]{5})")
# Time points from 100 on are those of 2024, after treatment.
_BRATS2023 = re.compile(r"(?P<patient>BraTS-GLI-[0-9]{5})-0[0-9]{2}")
_BRATS2023_SSA = re.compile(r"(?P<patient>BraTS-SSA-[0-9]{5})-[0-9]{3}")
_PAPERS = "Menze et al. 2015, doi:10.1109/TMI.2014.2377694; Bakas et al. 2017, doi:10.1038/sdata.2017.117"


def _release_before_2020(year: str, prefix: str, training_cases: int, page: str) -> Release:
    """2017 to 2019 label as 2020 does; the name ends with the number of a scan of its patient."""
    pattern = re.compile(rf"(?P<patient>(?i:{prefix})_[A-Za-z0-9_]+)_[0-9]+")
    description = replace(
        DESCRIPTION,
        name=f"BraTS{year}",
        release=year,
        foreign_values={3: f"enhancing tumour is 4 in BraTS {year}, a 3 belongs to BraTS 2023 and later"},
        reference=f"{page}; {_PAPERS}",
        licence=f"BraTS {year} data usage agreement of the organisers; registration required",
    )
    return Release(description, pattern, pattern, _SUFFIXES, "_", training_cases)


def _release_2023(task: str, pattern: re.Pattern[str], training_cases: int, paper: str) -> Release:
    """Tasks of 2023 with the labels of adult glioma."""
    description = replace(
        DESCRIPTION,
        name=f"BraTS2023{task}",
        release=f"2023-{task}",
        label_map={0: 0, 1: 2, 2: 1, 3: 3},
        foreign_values={
            4: "enhancing tumour is 3 in BraTS 2023; a 4 belongs to BraTS 2022 and before, or is the resection "
            "cavity of BraTS 2024"
        },
        reference=f"https://www.synapse.org/Synapse:syn51156910; {paper}; {_PAPERS}",
        licence="BraTS 2023 data usage agreement of the organisers; registration required",
        text="Brain tumour segmentation in T1, T1 with contrast, T2 and FLAIR. Source labels 2, 1, 3 are 1, 2, 3 here.",
    )
    return Release(description, pattern, pattern, _SUFFIXES_2023, "-", training_cases)


BEFORE_2020 = ("2017", "2018", "2019")
_PAGES = "https://www.med.upenn.edu"
RELEASES = {
    "2017": _release_before_2020("2017", "BraTS17", 285, f"{_PAGES}/sbia/brats2017.html"),
    "2018": _release_before_2020("2018", "BraTS18", 285, f"{_PAGES}/sbia/brats2018.html"),
    "2019": _release_before_2020("2019", "BraTS19", 335, f"{_PAGES}/cbica/brats2019/"),
    "2020": Release(
        DESCRIPTION,
        re.compile(r"(?P<patient>BraTS20_Training_[0-9]{3})"),
        re.compile(r"(?P<patient>BraTS20_Validation_[0-9]{3})"),
        _SUFFIXES,
        "_",
        369,
    ),
    "2021": Release(
        replace(
            DESCRIPTION,
            name="BraTS2021",
            release="2021",
            foreign_values={3: "enhancing tumour is 4 in BraTS 2021, a 3 belongs to BraTS 2023 and later"},
            reference=f"https://www.synapse.org/Synapse:syn25829067; Baid et al. 2021, arXiv:2107.02314; {_PAPERS}",
            licence="BraTS 2021 data usage agreement of the organisers; registration required",
        ),
        _BRATS2021,
        _BRATS2021,
        _SUFFIXES,
        "_",
        1251,
    ),
    "2023-GLI": _release_2023("GLI", _BRATS2023, 1251, "Baid et al. 2021, arXiv:2107.02314"),
    "2023-SSA": _release_2023("SSA", _BRATS2023_SSA, 60, "Adewole et al. 2023, arXiv:2305.19369"),
}
# Tasks whose labels mean something else, in part from year to year, so that they are named and left out.
_OTHER_TASK = re.compile(r"brats-(?P<task>[a-z]+(-[a-z]+)*)-[0-9].*", re.IGNORECASE)
_OTHER_TASKS = {
    "MEN": " (meningioma)",
    "MEN-RT": " (meningioma before radiotherapy)",
    "MET": " (metastases)",
    "PED": " (tumours of children)",
    "GOAT": " (tumours of all kinds)",
}
_GLIOMA_2024 = re.compile(r"brats-gli-[0-9]{5}-[1-9][0-9]{2}", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """What lies below a source: the release, its labelled and unlabelled cases, and the rest."""

    release: Release
    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


def convert(
    source: Path,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None = None,
    dataset_id: int = 501,
    overwrite: bool = False,
    *,
    protocol: str = "crossval",
    release: str | None = None,
    **options: "Unpack[Work]",
) -> Path:
    """Write Dataset501_BraTS2020 (or _BraTS2021, _BraTS2023GLI …) from the archive below ``source``; return its folder.

    Labels become 1 oedema, 2 necrotic and non-enhancing core, 3 enhancing tumour, trained as the regions whole tumour,
    tumour core and enhancing tumour; :func:`restore_labels` is the inverse. Source files are never changed.

    Args:
        nnunet_preprocessed: Gets five deterministic folds over the sorted patients, as many folds as patients if there
            are fewer than five; None writes no folds.
        overwrite: Replace an existing data set of this name and its folds.
        protocol: ``crossval`` trains on all labelled cases; ``paper`` holds out a fifth of them for testing (236, 59
            and 74 of the 369 of 2020); ``official`` adds the unlabelled validation cases for testing.
        release: A key of ``RELEASES``; by default the one that lies there.
        options: ``jobs``, worker processes; ``dry_run``, check and report only.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    found = find_cases(source, release)
    cases, tests, skipped = list(found.labelled), [], list(found.skipped)
    notes = list(found.notes)
    if len(cases) != found.release.training_cases:
        notes.append(f"this copy has {len(cases)} of {found.release.training_cases} labelled cases")
    if protocol == "official":
        tests = list(found.unlabelled)
        if not tests:
            raise ConversionError(
                f"Protocol official tests on unlabelled validation cases, and there are none below {source}; "
                "add them or choose another protocol."
            )
    elif found.unlabelled:
        folder = found.unlabelled[0].images[0].parents[1]
        reason = f"{len(found.unlabelled)} unlabelled case(s) of this release, which --protocol official converts"
        skipped.append(Skipped(folder, reason))
    if protocol == "paper":
        cases, tests = paper_split(cases)
        notes.append(
            "the paper's test cases are not published: these are the first of five folds over the sorted patients"
        )
    return conversion.write_dataset(
        cases,
        found.release.description,
        volumes.Volumes(found.release.description),
        source=source,
        dataset_id=dataset_id,
        nnunet_raw=nnunet_raw,
        nnunet_preprocessed=nnunet_preprocessed,
        test_cases=tests,
        protocol=protocol,
        skipped=skipped,
        notes=notes,
        overwrite=overwrite,
        **options,
    )


def paper_split(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Cases to train and validate on, and a fifth to test on: 295 and 74 of BraTS 2020's 369."""
    group_of = {case.name: case.group or case.name for case in cases}
    held_out = set(splitting.make_splits(group_of, group_of.__getitem__)[0]["val"])
    return (
        [case for case in cases if case.name not in held_out],
        [case for case in cases if case.name in held_out],
    )


def convert_images(source: Path, out: Path, **options: "Unpack[Options]") -> Path:
    """Write scans below ``source`` into ``out`` as ``nnUNetv2_predict -i`` expects them; masks are not looked at.

    A case is any set of ``<case>_t1``, ``<case>_t1ce``, ``<case>_t2`` and ``<case>_flair`` in one folder, or of
    ``<case>-t1n``, ``<case>-t1c``, ``<case>-t2w`` and ``<case>-t2f``, whatever the case is called, so scans of one's
    own can be predicted.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_test_images`.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    return conversion.write_test_images(
        find_scans(source),
        volumes.Volumes(DESCRIPTION),
        out,
        source=source,
        **options,
    )


def restore(
    predictions: Path,
    out: Path,
    release: str | None = None,
    **options: "Unpack[Options]",
) -> Path:
    """Write predictions with the label values of their release, named ``<case>.nii.gz``.

    Args:
        release: A key of ``RELEASES``; by default case names tell, which those of one's own scans do not.
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_restored`.

    Raises:
        ConversionError: Before anything is written; the text names the prediction.
    """
    found = conversion.find_predictions(predictions, volumes.FILE_ENDING)
    if release is None:
        release = _release_of_predictions(found)
    return conversion.write_restored(
        {path: path.name for path in found.values()},
        volumes.RestoredVolumes(RELEASES[release].description),
        out,
        source=predictions,
        **options,
    )


def _release_of_predictions(found: Mapping[str, Path]) -> str:
    seen: dict[str, Path] = {}
    for case, path in found.items():
        names = [
            name
            for name, release in RELEASES.items()
            if release.labelled.fullmatch(case) or release.unlabelled.fullmatch(case)
        ]
        if not names:
            raise ConversionError(f"The name of prediction {path} tells no release; name one with --release.")
        seen[names[0]] = path
    if len(seen) > 1:
        first, second, *_ = seen.values()
        raise ConversionError(
            f"Predictions {first} and {second} belong to different releases ({', '.join(seen)}); "
            "restore them one release at a time."
        )
    return next(iter(seen))


def restore_labels(voxels: np.ndarray) -> np.ndarray:
    """Labels of this data set back in BraTS 2020's own values (1 -> 2, 2 -> 1, 3 -> 4); any shape, uint8.

    Raises:
        ValueError: If a value is not 0, 1, 2 or 3.
    """
    return label_values.remap_labels(voxels, label_values.inverse(LABEL_MAP))


def find_cases(source: Path, wanted: str | None = None) -> Found:
    """The cases of one release below ``source``, sorted by name.

    Args:
        wanted: Name of a release; by default the only one that lies there.

    Raises:
        ConversionError: If there are none, two releases lie there, one case lies there twice, or one lacks a file.
    """
    source = sources.require_source(source)
    labelled: dict[str, dict[str, Path]] = {name: {} for name in RELEASES}
    unlabelled: dict[str, dict[str, Path]] = {name: {} for name in RELEASES}
    strangers: list[Skipped] = []
    misnamed: list[Skipped] = []
    for folder in sources.walk_folders(source, volumes.volume_in):
        other = _other_task(folder.name)
        if other:
            strangers.append(Skipped(folder, f"a case of {other}"))
            continue
        kinds = {name: kind for name, release in RELEASES.items() if (kind := _kind_of(folder, release))}
        for name, kind in kinds.items():
            folders = (labelled if kind == "labelled" else unlabelled)[name]
            sources.enter_once(folders, folder.name, folder, f"Case {folder.name}")
        if not kinds and _holds_volumes(folder):
            prefixes = ("brats17", "brats18", "brats19", "brats20", "brats-")
            sources.require_folder_name(folder, prefixes, "BraTS20_Training_001")
            misnamed.append(Skipped(folder, "holds volumes, but is not named as a case (BraTS20_Training_001)"))
    chosen = _choose(wanted, labelled, unlabelled, strangers, source)
    release = RELEASES[chosen]
    skipped = [*strangers, *misnamed]
    for name in RELEASES:
        if name != chosen:
            skipped += [
                Skipped(folder, f"a case of {_title(name)}")
                for folders in (labelled[name], unlabelled[name])
                for folder in folders.values()
            ]
    notes: list[str] = []
    cases = [_case(labelled[chosen][name], release, True, skipped, notes) for name in sorted(labelled[chosen])]
    others = [_case(unlabelled[chosen][name], release, False, skipped, notes) for name in sorted(unlabelled[chosen])]
    twice = sorted({case.name for case in cases} & {case.name for case in others})
    if twice:
        first, second = labelled[chosen][twice[0]], unlabelled[chosen][twice[0]]
        raise ConversionError(f"Case {twice[0]} lies both in {first} and in {second}; give one copy as source.")
    return Found(release, tuple(cases), tuple(others), tuple(skipped), tuple(notes))


def _title(release: str) -> str:
    return "BraTS 2017 to 2019" if release in BEFORE_2020 else f"BraTS {release}"


def _other_task(name: str) -> str | None:
    """What a folder holds by its name if it is a case of a task that is not converted."""
    if _GLIOMA_2024.fullmatch(name):
        return "BraTS-GLI of 2024 (after treatment, where 4 is the resection cavity)"
    match = _OTHER_TASK.fullmatch(name)
    task = match["task"].upper() if match else "GLI"
    return None if task in ("GLI", "SSA") else f"BraTS-{task}{_OTHER_TASKS.get(task, '')}"


def _holds_volumes(folder: Path) -> bool:
    return any(volumes.nifti_stem(path) is not None for path in folder.iterdir())


def _kind_of(folder: Path, release: Release) -> str | None:
    """Whether a folder holds a labelled or an unlabelled case of a release, or None."""
    if release.labelled is release.unlabelled:  # then only the folder above tells the two apart
        if not release.labelled.fullmatch(folder.name):
            return None
        mask = f"{folder.name}{release.separator}{release.mask_suffix}"
        if any(volumes.nifti_stem(path) == mask for path in folder.iterdir()):
            return "labelled"
        return "unlabelled" if "validation" in folder.parent.name.lower() else "labelled"
    if release.labelled.fullmatch(folder.name):
        return "labelled"
    return "unlabelled" if release.unlabelled.fullmatch(folder.name) else None


def _choose(
    wanted: str | None,
    labelled: Mapping[str, Mapping[str, Path]],
    unlabelled: Mapping[str, Mapping[str, Path]],
    strangers: Sequence[Skipped],
    source: Path,
) -> str:
    present = [
        name
        for name, folders in labelled.items()
        if any(name not in BEFORE_2020 or _holds_volumes(folder) for folder in folders.values())
    ]
    if wanted is None and len(present) > 1:
        first, second = (next(iter(labelled[name].values())) for name in present[:2])
        raise ConversionError(
            f"Cases of BraTS {' and '.join(present)} lie below {source}, such as {first} and {second}; "
            "choose one with --release."
        )
    if (wanted or (present or [""])[0]) in present:
        return wanted or present[0]
    counts = Counter({f"unlabelled of BraTS {name}": len(folders) for name, folders in unlabelled.items() if folders})
    counts.update(f"of {_title(name)}" for name, folders in labelled.items() for _ in folders)
    counts.update(skip.reason.removeprefix("a case ") for skip in strangers)
    seen = [f"{count} {what}" for what, count in counts.items()]
    where = f", such as {strangers[0].path}; this task is not converted" if strangers else ""
    which = f"BraTS {wanted}" if wanted else "BraTS 2017 to 2021, 2023-GLI or 2023-SSA (such as BraTS20_Training_001)"
    raise ConversionError(
        f"No folder of a labelled case of {which} below {source}"
        + (f", only {', '.join(seen)}{where}." if seen else volumes.lies_below(source))
    )


def _case(folder: Path, release: Release, labelled: bool, skipped: list[Skipped], notes: list[str]) -> Case:
    name = folder.name
    files = volumes.nifti_files(folder)
    images = _images(name, folder, files, release)
    mask = files.pop(f"{name}{release.separator}{release.mask_suffix}", None)
    if mask is None and name == ODDLY_NAMED_CASE and len(files) == 1:
        mask = files.popitem()[1]
        notes.append(f"case {name}: mask taken from {mask.name}")
    if mask is None and labelled:
        wanted = f"{name}{release.separator}{release.mask_suffix}"
        instead = volumes.found_instead(folder, wanted)
        raise ConversionError(f"Case {name} has no mask {wanted}.nii.gz (or .nii) in {folder}{instead}.")
    skipped += [Skipped(path, "neither a modality nor the mask of its case") for path in files.values()]
    match = (release.labelled if labelled else release.unlabelled).fullmatch(name)
    return Case(name, images, mask if labelled else None, group=match and match["patient"])


def _images(name: str, folder: Path, files: dict[str, Path], release: Release) -> tuple[Path, ...]:
    """Take the four modalities of a case out of ``files``, in channel order."""
    stems = [f"{name}{release.separator}{suffix}" for suffix in release.suffixes]
    missing = [stem for stem in stems if stem not in files]
    if missing:
        wanted = " and ".join(f"{stem}.nii.gz" for stem in missing)
        instead = volumes.found_instead(folder, missing[0])
        raise ConversionError(f"Case {name} lacks {wanted} (or .nii) in {folder}{instead}.")
    return tuple(files.pop(stem) for stem in stems)


def find_scans(source: Path) -> list[Case]:
    """Every set of four modalities below ``source``, labelled or not, of any release, sorted by name.

    Suffixes may be in capitals. Images that are neither a modality nor a mask are counted in a note.

    Raises:
        ConversionError: If there are none, one name occurs twice, or a modality is missing.
    """
    source = sources.require_source(source)
    cases: dict[str, Case] = {}
    seen: dict[str, Path] = {}
    unread: list[Path] = []
    for folder in sources.walk_folders(source, volumes.volume_in):
        files = sources.files_by_stem(folder, _lower_suffix, volumes.volume_in)
        unread += sources.images_of_others(folder, volumes.NIFTI_ENDINGS)
        for release in (RELEASES["2020"], RELEASES["2023-GLI"]):  # 2021 names its files as 2020 does
            parts = [stem.rpartition(release.separator) for stem in files]
            for name in sorted({name for name, _, suffix in parts if suffix in release.suffixes}):
                sources.enter_once(seen, name, folder, f"Case {name}")
                sources.require_case_name(name, folder)
                cases[name] = Case(name, _images(name, folder, files, release))
        unread += [path for stem, path in files.items() if not stem.endswith(_MASKS)]
    sources.say_unread(unread)
    if not cases:
        wanted = ", ".join(f"<case>_{suffix}.nii.gz" for suffix in _SUFFIXES)
        raise ConversionError(f"No scans below {source}; a case needs {wanted} in one folder.")
    return [cases[name] for name in sorted(cases)]


def _lower_suffix(path: Path) -> str | None:
    """Stem of a volume, its suffix in small letters where it is that of a modality or a mask."""
    stem = volumes.nifti_stem(path)
    return stem and _SUFFIX.sub(lambda suffix: suffix[0].lower(), stem)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: convert, write scans to predict, or restore predictions."""
    parser = command_line.make_parser(
        "dataset_conversion.Dataset501_BraTS2020",
        __doc__,
        default_id=501,
        protocols=PROTOCOLS,
    )
    parser.add_argument(
        "--release", choices=RELEASES, help="by default the one that lies there; not for --images-only, which takes all"
    )
    arguments = parser.parse_intermixed_args(argv)
    return command_line.run_converter(
        parser,
        arguments,
        convert=functools.partial(convert, protocol=arguments.protocol, release=arguments.release),
        convert_images=convert_images,
        restore=functools.partial(restore, release=arguments.release),
        only_for={"release": (command_line.CONVERT, command_line.RESTORE)},
    )


if __name__ == "__main__":
    sys.exit(main())
