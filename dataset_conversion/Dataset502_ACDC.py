"""ACDC (cardiac cine MR, both labelled phases) as an nnU-Net data set, folds by patient.

Run from a checkout: ``python -m dataset_conversion.Dataset502_ACDC SOURCE``.
"""

import functools
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_conversion.core import command_line, conversion, reporting, sources, splitting
from dataset_conversion.core.cases import Case, ConversionError, Description, Options, Skipped, Work
from dataset_conversion.formats import volumes

if TYPE_CHECKING:
    from typing_extensions import Unpack

PATIENT_FOLDER = re.compile(r"patient([0-9]{3})")
CASE_NAME = re.compile(r"(patient[0-9]{3})_frame[0-9]{2}")
LAST_TRAINING_PATIENT, LAST_PATIENT = 100, 150
GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")
PHASES = ("ED", "ES")
PROTOCOLS = ("official", "paper", "crossval", "70-10-20")

DESCRIPTION = Description(
    name="ACDC",
    channels=("cineMRI",),
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    label_map={0: 0, 1: 1, 2: 2, 3: 3},
    licence="the organisers' terms, reported as CC BY-NC-SA 4.0; see MANDATORY_CITATION.md in every patient's folder",
    reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/; Bernard et al. 2018, doi:10.1109/TMI.2018.2837502",
    release="2017",
    text="Right ventricular cavity, myocardium and left ventricular cavity at end diastole and end systole.",
    notice="The organisers make the citation compulsory for everybody who uses the data.",
)


@dataclass(frozen=True)
class Found:
    """What lies below a source: cases of patients 001 to 100, cases of patients 101 to 150, and the rest."""

    training: tuple[Case, ...]
    testing: tuple[Case, ...]
    skipped: tuple[Skipped, ...]


def convert(
    source: Path,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None,
    dataset_id: int = 502,
    overwrite: bool = False,
    *,
    protocol: str = "official",
    **options: "Unpack[Work]",
) -> Path:
    """Write Dataset502_ACDC from the patient folders somewhere below ``source`` and return its folder.

    Every patient gives two cases, end diastole and end systole, which ``Info.cfg`` tells; labels stay as they are.
    Source files are never changed.

    Args:
        nnunet_preprocessed: Gets the folds: whole patients, diagnoses spread evenly.
        protocol: ``official`` and ``paper`` train on patients 001 to 100 and test on 101 to 150; ``crossval`` leaves
            the latter out; ``70-10-20`` divides the first 100 into training, validation (one fold) and test.
        options: ``jobs``, worker processes; ``dry_run``, check and report only.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    found = find_cases(source)
    cases, tests, skipped = list(found.training), list(found.testing), list(found.skipped)
    splits, notes = None, _completeness(cases, tests)
    if protocol in ("official", "paper"):
        if not tests:
            raise ConversionError(
                f"Protocol {protocol} tests on patients 101 to 150, and there are none below {source}; "
                "add them or choose --protocol crossval."
            )
        if not tests[0].masks:
            notes.append("the test patients have no masks in this copy: images only")
        if protocol == "paper":
            notes.append("inferred: the paper trains on 80 and validates on 20 patients, as each fold does")
    elif tests:
        folder = tests[0].images[0].parents[1]
        skipped.append(Skipped(folder, f"patients 101 to 150, which protocol {protocol} does not use"))
        tests = []
    if protocol == "70-10-20":
        cases, tests = splitting.hold_out(cases, 0.2)
        training, validation = splitting.hold_out(cases, 0.125)
        splits = [{"train": [case.name for case in training], "val": [case.name for case in validation]}]
        notes.append("there is one fold: train with -f 0")
    return conversion.write_dataset(
        cases,
        DESCRIPTION,
        volumes.Volumes(DESCRIPTION),
        source=source,
        dataset_id=dataset_id,
        nnunet_raw=nnunet_raw,
        nnunet_preprocessed=nnunet_preprocessed,
        test_cases=tests,
        splits=splits,
        protocol=protocol,
        skipped=skipped,
        notes=notes,
        overwrite=overwrite,
        **options,
    )


def _completeness(training: Sequence[Case], testing: Sequence[Case]) -> list[str]:
    counts = [len({case.group for case in cases}) for cases in (training, testing)]
    notes = []
    for what, count, expected in zip(
        ("training", "test"), counts, (LAST_TRAINING_PATIENT, LAST_PATIENT - LAST_TRAINING_PATIENT)
    ):
        if count and count != expected:
            notes.append(f"this copy has {count} of {expected} {what} patients")
    return notes


def find_cases(source: Path) -> Found:
    """The two labelled frames of every patient below ``source``, sorted by name.

    Raises:
        ConversionError: If there are no patients, one lies there twice, an ``Info.cfg`` cannot be understood, or a
            frame or its mask is missing. Only all test patients together may be without masks.
    """
    source = sources.require_source(source)
    folders: dict[str, Path] = {}
    skipped: list[Skipped] = []
    for folder in sources.walk_folders(source, volumes.volume_in):
        if PATIENT_FOLDER.fullmatch(folder.name):
            sources.enter_once(folders, folder.name, folder, f"Patient {folder.name}")
        elif (folder / "Info.cfg").exists() or volumes.nifti_files(folder):
            sources.require_folder_name(folder, ("patient",), "patient001")
            skipped.append(Skipped(folder, "holds Info.cfg or volumes, but is not named as a patient (patient001)"))
    if not folders:
        raise ConversionError(f"No folder named patientNNN below {source}{volumes.lies_below(source)}")
    found: dict[bool, list[Case]] = defaultdict(list)
    for name in sorted(folders):
        testing = _is_test_patient(folders[name])
        cases, more = _cases_of(folders[name], testing)
        found[testing].extend(cases)
        skipped.extend(more)
    if not found[False]:
        raise ConversionError(f"None of the patients 001 to 100, which are the training part, lies below {source}.")
    without = [case for case in found[True] if not case.masks]
    if without and len(without) < len(found[True]):
        raise ConversionError(
            f"Case {without[0].name} has no mask {without[0].name}_gt.nii.gz in {without[0].images[0].parent}, "
            "but other test cases have one; fetch the test part again."
        )
    return Found(tuple(found[False]), tuple(found[True]), tuple(skipped))


def _is_test_patient(folder: Path) -> bool:
    number = int(folder.name[-3:])
    if not 1 <= number <= LAST_PATIENT:
        raise ConversionError(f"Patient folder {folder} has a number out of range; ACDC has 001 to {LAST_PATIENT}.")
    testing = number > LAST_TRAINING_PATIENT
    if folder.parent.name == ("training" if testing else "testing"):
        raise ConversionError(
            f"Patient folder {folder} lies in {folder.parent.name}, but {folder.name} belongs to the "
            f"{'test' if testing else 'training'} part."
        )
    return testing


def _cases_of(folder: Path, testing: bool) -> tuple[list[Case], list[Skipped]]:
    info = read_info(folder / "Info.cfg", need_group=not testing)
    files = volumes.nifti_files(folder)
    skipped, cases = [], []
    for phase in PHASES:
        name = f"{folder.name}_frame{int(info[phase]):02d}"
        image, mask = files.pop(name, None), files.pop(f"{name}_gt", None)
        if image is None:
            instead = volumes.found_instead(folder, name)
            raise ConversionError(f"Case {name} ({phase}) has no {name}.nii.gz (or .nii) in {folder}{instead}.")
        if mask is None and not testing:
            instead = volumes.found_instead(folder, f"{name}_gt")
            raise ConversionError(f"Case {name} ({phase}) has no mask {name}_gt.nii.gz (or .nii) in {folder}{instead}.")
        about = {"phase": phase, "submit": f"{folder.name}_{phase}.nii.gz"}
        cases.append(Case(name, (image,), mask, group=folder.name, stratum=info.get("Group", ""), about=about))
    for stem, path in files.items():
        reason = "4D series" if stem.endswith("_4d") else "neither of the two frames that Info.cfg names"
        skipped.append(Skipped(path, reason))
    return sorted(cases, key=lambda case: case.name), skipped


def read_info(path: Path, *, need_group: bool = True) -> dict[str, str]:
    """The ``key: value`` lines of an ``Info.cfg``.

    Raises:
        ConversionError: If it cannot be read, or ED, ES or Group is missing or makes no sense.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ConversionError(f"There is no {path}, which tells the end-diastolic and end-systolic frame.") from None
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path} cannot be read ({error}); fetch the file again.") from None
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value.strip()}
    for phase in PHASES:
        if not re.fullmatch(r"[0-9]{1,2}", info.get(phase, "")) or int(info[phase]) < 1:
            raise ConversionError(f"{path} gives {info.get(phase)!r} as frame {phase}, where a number is expected.")
    if int(info["ED"]) == int(info["ES"]):
        raise ConversionError(f"{path} gives frame {info['ED']} as both ED and ES; they must differ.")
    if need_group and info.get("Group") not in GROUPS:
        raise ConversionError(f"{path} gives {info.get('Group')!r} as Group; known are {', '.join(GROUPS)}.")
    return info


def convert_images(source: Path, out: Path, **options: "Unpack[Options]") -> Path:
    """Write every 3D stack below ``source`` into ``out`` as ``nnUNetv2_predict -i`` expects it.

    A file ``<case>.nii.gz`` or ``<case>.nii`` gives a case, whatever it is called; files that end in ``_gt`` or
    ``_4d`` are passed over.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_test_images`.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """

    def stem_of(path: Path) -> str | None:
        stem = volumes.nifti_stem(path)
        return None if stem is None or stem.endswith(("_gt", "_4d")) else stem

    cases = sources.find_scans(source, stem_of, "NIfTI files with a 3D stack", volumes.NIFTI_ENDINGS, volumes.volume_in)
    return conversion.write_test_images(cases, volumes.Volumes(DESCRIPTION), out, source=source, **options)


def restore(
    predictions: Path,
    out: Path,
    nnunet_raw: Path | None = None,
    dataset_id: int = 502,
    **options: "Unpack[Options]",
) -> Path:
    """Write predictions as ``patientNNN_ED.nii.gz`` and ``patientNNN_ES.nii.gz``; scans of one's own keep their names.

    Args:
        nnunet_raw: Where the converted data set lies, whose report knows which frame is which phase; needed for
            cases of ACDC.
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_restored`.

    Raises:
        ConversionError: Before anything is written; the text names the prediction.
    """
    found = conversion.find_predictions(predictions, volumes.FILE_ENDING)
    names = {path: path.name for path in found.values()}
    theirs = {case: path for case, path in found.items() if CASE_NAME.fullmatch(case)}
    if theirs:
        raw = nnunet_raw or command_line.require_folder_variable("nnUNet_raw")
        known = reporting.read_report(raw, dataset_id)["cases"]
        for case, path in theirs.items():
            if "submit" not in known.get(case, {}):
                raise ConversionError(
                    f"Prediction {path} belongs to no case of data set {dataset_id}, so its phase is unknown; "
                    "name with -d a conversion that has this patient, as --protocol official has 101 to 150."
                )
            names[path] = known[case]["submit"]
    return conversion.write_restored(
        names,
        volumes.RestoredVolumes(DESCRIPTION),
        out,
        source=predictions,
        **options,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: convert, write images to predict, or restore predictions."""
    parser = command_line.make_parser(
        "dataset_conversion.Dataset502_ACDC",
        __doc__,
        default_id=502,
        protocols=PROTOCOLS,
        restore_looks_up_names=True,
    )
    arguments = parser.parse_intermixed_args(argv)
    return command_line.run_converter(
        parser,
        arguments,
        convert=functools.partial(convert, protocol=arguments.protocol),
        convert_images=convert_images,
        restore=functools.partial(restore, dataset_id=arguments.dataset_id),
        only_for={"dataset_id": (command_line.CONVERT, command_line.RESTORE)},
    )


if __name__ == "__main__":
    sys.exit(main())
