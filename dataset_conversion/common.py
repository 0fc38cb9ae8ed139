"""What every converter shares: checks before writing, staged folders, dataset.json, splits and one-sentence errors.

A converter finds its cases and describes its data set; :func:`write_dataset` does the rest. Nothing is written until
every voxel of every file has been read and checked, and nothing appears under its final name until all of it is there.
"""

import argparse
import contextlib
import gzip
import json
import multiprocessing
import os
import random
import re
import secrets
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from tqdm import tqdm

NIFTI_ENDINGS = (".nii.gz", ".nii")
FILE_ENDING = ".nii.gz"
SPLIT_SEED = 12345
MAX_FOLDS = 5
# Headers keep single precision; files of one case that were resampled together agree far better than this.
SPACING_TOLERANCE_MM = 1e-4
ORIGIN_TOLERANCE_MM = 1e-3
DIRECTION_TOLERANCE = 1e-4


class ConversionError(Exception):
    """Something the user can put right; its text is one sentence that names the file or value and the remedy."""


@dataclass(frozen=True)
class Case:
    """The source files of one case: one image per channel, in channel order, and the mask if there is one."""

    name: str
    images: tuple[Path, ...]
    mask: Path | None = None


@dataclass(frozen=True)
class Description:
    """What a data set is: how its source masks are read and what its dataset.json says.

    Attributes:
        name: Second half of the folder name, ``Dataset501_<name>``.
        channels: Channel names in channel order; nnU-Net chooses the normalisation by them.
        labels: Name to label value, or to a list of values where regions are trained.
        label_map: Value in a source mask to value in ours; every other source value is illegal.
        regions_class_order: Label painted for each region, in the order of ``labels``; only with regions.
        foreign_values: Illegal source value to the likely reason, for the error message.
    """

    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    label_map: Mapping[int, int]
    licence: str
    reference: str
    text: str
    release: str
    regions_class_order: tuple[int, ...] | None = None
    foreign_values: Mapping[int, str] = field(default_factory=dict)


# --- commands -------------------------------------------------------------------------------------------------------


def run(command: Callable[[], object]) -> int:
    """Run a command and turn what a user can put right into one sentence on stderr.

    A polite kill (SIGTERM) unwinds like Ctrl-C, so that staged folders are removed. Programming errors keep their
    traceback.

    Returns:
        Exit code: 0, 2 for an error of the user's or the disk's, 130 when interrupted.
    """
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what had been written was removed again.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def require_folder_variable(name: str) -> Path:
    """Folder that the environment variable ``name`` points to; it need not exist yet.

    Raises:
        ConversionError: If the variable is unset or empty.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConversionError(f"{name} is not set; point it at a folder, for example: export {name}=$HOME/{name}")
    return Path(value)


def dataset_id(text: str) -> int:
    """Data set id from the command line; argparse reports the ValueError of anything but 1 to 999."""
    value = int(text)
    if not 1 <= value <= 999:
        raise ValueError(text)
    return value


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every converter has."""
    parser.add_argument("--overwrite", action="store_true", help="replace a target that is not empty")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument(
        "-np", "--num-processes", type=int, default=min(8, os.cpu_count() or 1), help="default: all cores, at most 8"
    )


# --- files ----------------------------------------------------------------------------------------------------------


def require_source(source: Path) -> Path:
    """``source`` as it stands, if it is a folder that can be read; a ConversionError otherwise."""
    source = Path(source)
    if not source.is_dir():
        state = "is a file, not a folder; unpack it first" if source.exists() else "does not exist"
        raise ConversionError(f"Source {source} {state}.")
    return source


def nifti_stem(path: Path) -> str | None:
    """File name without its NIfTI ending; None for other files and for the ``._*`` files that macOS leaves."""
    if path.name.startswith("."):
        return None
    for ending in NIFTI_ENDINGS:
        if path.name.endswith(ending):
            return path.name[: -len(ending)]
    return None


def nifti_files(folder: Path) -> dict[str, Path]:
    """NIfTI files of ``folder`` by stem, sorted.

    Raises:
        ConversionError: If one stem lies there twice, as ``.nii`` and ``.nii.gz``.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = nifti_stem(path)
        if stem is None or not path.is_file():
            continue
        if stem in found:
            raise ConversionError(
                f"Case {folder.name} has both {found[stem].name} and {path.name} in {folder}; remove one of them."
            )
        found[stem] = path
    return found


def walk_folders(source: Path) -> Iterator[Path]:
    """``source`` and every folder below it, sorted, links followed once, hidden folders left out."""
    seen = set()
    for folder, names, _ in os.walk(source, followlinks=True):
        identity = os.path.realpath(folder)
        if identity in seen:
            names.clear()
            continue
        seen.add(identity)
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield Path(folder)


def require_free_target(target: Path, overwrite: bool) -> None:
    """Raise a ConversionError if ``target`` is a file, or a folder with something in it and not ``overwrite``."""
    if target.exists() and not target.is_dir():
        raise ConversionError(f"Target {target} is a file; move it away or choose another target.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ConversionError(f"Target folder {target} is not empty; use --overwrite to replace it.")


@contextlib.contextmanager
def staged_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place once the block ends well.

    If the block raises, the staged folder and every parent made for it are removed and ``target`` is as it was.
    The staged name starts with a dot, so that nnU-Net never takes it for a data set.

    Raises:
        ConversionError: If ``target`` is not empty and not ``overwrite``.
    """
    target = Path(target).absolute()
    require_free_target(target, overwrite)
    with _made_parents(target):
        staged = _sibling(target, "partial")
        try:
            staged.mkdir()
            yield staged
            replaced = None
            if target.exists():
                replaced = target.rename(_sibling(target, "replaced"))
            staged.rename(target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        if replaced is not None:
            shutil.rmtree(replaced)


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target``; the file written there replaces ``target`` once the block ends well."""
    target = Path(target).absolute()
    with _made_parents(target):
        staged = _sibling(target, "partial")
        try:
            yield staged
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)


def _sibling(target: Path, purpose: str) -> Path:
    return target.with_name(f".{target.name}.{purpose}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def _made_parents(target: Path) -> Iterator[None]:
    """Make the parents of ``target``; take back those that we made if the block raises."""
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):  # somebody else may have put a file there meanwhile
                parent.rmdir()
        raise


# --- checks ---------------------------------------------------------------------------------------------------------


def read_header(path: Path, case: str) -> sitk.ImageFileReader:
    """Size, spacing, origin and direction of the 3D single-channel volume at ``path``, without its voxels.

    Raises:
        ConversionError: If it is no such volume; the text names case and file.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, case, str(error).strip().splitlines()[-1].split("): ")[-1]) from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise ConversionError(
            f"Case {case}: {path} has size {reader.GetSize()} and {reader.GetNumberOfComponents()} component(s) "
            "per voxel, where one 3D volume is expected."
        )
    return reader


def read_voxels(path: Path, case: str) -> np.ndarray:
    """All voxels at ``path`` as they are stored, axes (x, y, z), after the checksum of a compressed file was compared.

    ITK fills the missing end of a broken download with zeros and turns NaN into zero, both without a word; nibabel
    does neither, so that the checks read with nibabel.

    Raises:
        ConversionError: If the file is damaged; the text names case and file.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.name.endswith(".gz") else raw
        return np.asarray(nibabel.Nifti1Image.from_bytes(raw).dataobj)
    except (EOFError, OSError, ValueError, zlib.error, nibabel.spatialimages.HeaderDataError) as error:
        raise _unreadable(path, case, str(error)) from None


def _unreadable(path: Path, case: str, reason: str) -> ConversionError:
    reason = " ".join(reason.split()).rstrip(".!")
    return ConversionError(f"Case {case}: {path} cannot be read ({reason}); fetch the file again.")


def check_geometry(reference: sitk.ImageFileReader, other: sitk.ImageFileReader, case: str) -> None:
    """Raise a ConversionError unless both volumes lie on the same grid: size, spacing, origin and direction."""
    reference_path, other_path = Path(reference.GetFileName()), Path(other.GetFileName())
    for what, get, tolerance in (
        ("size", sitk.ImageFileReader.GetSize, 0),
        ("spacing", sitk.ImageFileReader.GetSpacing, SPACING_TOLERANCE_MM),
        ("origin", sitk.ImageFileReader.GetOrigin, ORIGIN_TOLERANCE_MM),
        ("direction", sitk.ImageFileReader.GetDirection, DIRECTION_TOLERANCE),
    ):
        first, second = get(reference), get(other)
        if not np.allclose(first, second, rtol=0, atol=tolerance):
            raise ConversionError(
                f"Case {case}: {what} of {other_path} is {_short(second)}, but {reference_path.name} has "
                f"{_short(first)}; all files of a case must share one grid."
            )


def _short(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def check_labels(voxels: np.ndarray, description: Description, case: str, path: Path) -> dict[int, int]:
    """Count the voxels of every value of a mask.

    Returns:
        Source value to number of voxels.

    Raises:
        ConversionError: For a fraction, a NaN or a value that the data set does not have.
    """
    values, counts = np.unique(voxels, return_counts=True)
    for value in values:
        if not np.isfinite(value) or value != np.rint(value):
            raise ConversionError(f"Case {case}: mask {path} holds {value:g}, but labels are whole numbers.")
    for value in values.astype(np.int64).tolist():
        if value not in description.label_map:
            legal = ", ".join(map(str, sorted(description.label_map)))
            hint = description.foreign_values.get(value, "")
            raise ConversionError(
                f"Case {case}: mask {path} holds label {value}, but {description.name} has only {legal}"
                f"{f' ({hint})' if hint else ''}."
            )
    return {int(value): int(count) for value, count in zip(values, counts)}


def check_case(case: Case, description: Description) -> dict[int, int]:
    """Read every file of a case; return the voxel counts of its mask, empty without one.

    Raises:
        ConversionError: For the first file that cannot be read, holds NaN or infinity, lies on another grid than the
            first image, or has an illegal label.
    """
    reference = read_header(case.images[0], case.name)
    for path in case.images:
        check_geometry(reference, read_header(path, case.name), case.name)
        if not np.isfinite(read_voxels(path, case.name)).all():
            raise ConversionError(
                f"Case {case.name}: {path} holds NaN or infinite values, which nnU-Net cannot train on; "
                "replace them in the source file."
            )
    if case.mask is None:
        return {}
    check_geometry(reference, read_header(case.mask, case.name), case.name)
    return check_labels(read_voxels(case.mask, case.name), description, case.name, case.mask)


def _check(case: Case, description: Description) -> dict[int, int] | str:
    try:
        return check_case(case, description)
    except ConversionError as error:
        return str(error)


def check_cases(cases: Sequence[Case], description: Description, num_processes: int = 1) -> dict[int, int]:
    """Check all cases and return the label histogram over all of them.

    Raises:
        ConversionError: With the sentence of the first bad case and the names of the others.
    """
    histogram = dict.fromkeys(sorted(description.label_map), 0)
    problems = {}
    for case, result in zip(cases, _each_case(partial(_check, description=description), cases, num_processes, "check")):
        if isinstance(result, str):
            problems[case.name] = result
        else:
            for value, count in result.items():
                histogram[value] += count
    if problems:
        raise ConversionError(_join_problems(problems))
    return histogram


def _join_problems(problems: Mapping[str, str]) -> str:
    first, *others = problems
    if not others:
        return problems[first]
    named = ", ".join(others[:10]) + (", …" if len(others) > 10 else "")
    return f"{problems[first].rstrip('.')} (and {len(others)} more case(s) with problems: {named})."


def _each_case(work: Callable, cases: Sequence[Case], num_processes: int, verb: str) -> Iterator:
    """Results of ``work`` for each case, in order; the progress bar shows only on a terminal."""
    show = partial(tqdm, total=len(cases), desc=verb, unit="case", disable=None)
    if num_processes <= 1 or len(cases) < 2:
        yield from show(map(work, cases))
        return
    # Spawned, not forked: a forked worker would inherit our SIGTERM handler and die noisily when the pool closes.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(num_processes, len(cases)), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from show(pool.imap(work, cases))


# --- labels ---------------------------------------------------------------------------------------------------------


def remap_labels(voxels: np.ndarray, label_map: Mapping[int, int]) -> np.ndarray:
    """Replace every value of a mask by its image under ``label_map``, all at once.

    Args:
        voxels: Any shape, any dtype that holds whole numbers.

    Returns:
        Same shape, uint8.

    Raises:
        ValueError: If a value has no image.
    """
    voxels = np.asarray(voxels)
    result = np.zeros(voxels.shape, np.uint8)
    known = np.zeros(voxels.shape, bool)
    for value, image in label_map.items():
        hit = voxels == value
        result[hit] = image
        known |= hit
    if not known.all():
        strangers = np.unique(voxels[~known])[:5].tolist()
        raise ValueError(f"Label values {strangers} are not among {sorted(label_map)}")
    return result


# --- writing --------------------------------------------------------------------------------------------------------


def write_image(source: Path, target: Path) -> None:
    """Copy a NIfTI image to ``target`` (``.nii.gz``); voxels and header stay byte for byte, no time stamp is added."""
    if source.name.endswith(".gz"):
        shutil.copyfile(source, target)
        return
    with (
        source.open("rb") as raw,
        target.open("wb") as packed,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=packed, mtime=0) as stream,
    ):
        shutil.copyfileobj(raw, stream, 1 << 20)


def write_case(case: Case, images_folder: Path, labels_folder: Path | None, label_map: Mapping[int, int]) -> None:
    """Write one checked case under nnU-Net's names; the mask as uint8 on exactly the grid of the first image.

    Raises:
        ConversionError: If the mask cannot be written; the text names case and file.
    """
    for channel, path in enumerate(case.images):
        write_image(path, images_folder / f"{case.name}_{channel:04d}{FILE_ENDING}")
    if labels_folder is None:
        return
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(case.mask)))
    mask = sitk.GetImageFromArray(remap_labels(voxels, label_map))
    mask.CopyInformation(sitk.ReadImage(str(case.images[0])))
    target = labels_folder / f"{case.name}{FILE_ENDING}"
    try:
        sitk.WriteImage(mask, str(target), useCompression=True)
    except RuntimeError as error:  # SimpleITK's word for a full disk as for a forbidden folder
        raise ConversionError(f"Case {case.name}: {target} cannot be written; is the disk full?") from error


def make_splits(cases: Collection[str], group_of: Callable[[str], object] = str) -> list[dict[str, list[str]]]:
    """Cross-validation folds over sorted, seeded-shuffled groups; no group is on both sides of a fold.

    Five folds, or one per group where there are fewer groups. Folds differ by at most one group's size in cases.

    Args:
        group_of: Case name to the patient (or sequence) it belongs to; by default every case is its own group.

    Raises:
        ConversionError: With fewer than two groups nothing can be held out.
    """
    groups: dict[object, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(group_of(case), []).append(case)
    if len(groups) < 2:
        raise ConversionError(
            f"Only {len(groups)} subject found in {len(cases)} case(s); at least 2 are needed to train and validate."
        )
    order = sorted(groups)
    random.Random(SPLIT_SEED).shuffle(order)
    order.sort(key=lambda group: -len(groups[group]))  # stable: large groups first, each time into the smallest fold
    folds: list[list[str]] = [[] for _ in range(min(MAX_FOLDS, len(groups)))]
    for group in order:
        min(folds, key=len).extend(groups[group])
    everything = set(cases)
    return [{"train": sorted(everything - set(fold)), "val": sorted(fold)} for fold in folds]


def require_free_id(name: str, folders: Iterable[Path | None]) -> None:
    """Raise a ConversionError if another data set has the id of ``name``; nnU-Net would refuse both later."""
    prefix = name.split("_")[0]
    for folder in folders:
        if folder is None or not folder.is_dir():
            continue
        for other in sorted(folder.glob(f"{prefix}_*")):
            if other.is_dir() and other.name != name:
                raise ConversionError(
                    f"Id {prefix.removeprefix('Dataset')} is taken by {other}; choose another one with -d."
                )


def write_dataset(
    cases: Sequence[Case],
    description: Description,
    *,
    source: Path,
    dataset_id: int,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None,
    group_of: Callable[[str], object] = str,
    test_cases: Sequence[Case] = (),
    overwrite: bool = False,
    num_processes: int = 1,
    dry_run: bool = False,
) -> Path:
    """Check everything, then write ``DatasetXXX_Name`` and its splits, and report what was done.

    Args:
        source: Where the cases come from; never changed.
        nnunet_preprocessed: Gets ``DatasetXXX_Name/splits_final.json``, where nnU-Net looks for it; None writes none.
        group_of: Case name to subject, for the splits.
        test_cases: Unlabelled cases for ``imagesTs``.
        overwrite: Replace an existing data set and its splits.
        dry_run: Check and report only.

    Returns:
        The folder of the data set in ``nnunet_raw``.

    Raises:
        ConversionError: For anything wrong in source or target; nothing has been written then.
    """
    name = f"Dataset{dataset_id:03d}_{description.name}"
    target = Path(nnunet_raw).absolute() / name
    splits_file = Path(nnunet_preprocessed).absolute() / name / "splits_final.json" if nnunet_preprocessed else None
    resolved = Path(source).resolve()
    if target.resolve() == resolved or target.resolve() in resolved.parents:
        raise ConversionError(f"Source {source} lies inside the target {target}; choose another nnUNet_raw.")
    require_free_target(target, overwrite)
    require_free_id(name, (target.parent, splits_file.parents[1] if splits_file else None))
    splits = make_splits([case.name for case in cases], group_of)
    splits_text = json.dumps(splits, indent=2) + "\n"
    if splits_file and splits_file.exists() and splits_file.read_text() != splits_text and not overwrite:
        raise ConversionError(f"{splits_file} holds other splits; use --overwrite to replace it.")

    histogram = check_cases([*cases, *test_cases], description, num_processes)
    print(f"{name}: {len(cases)} labelled case(s)" + (f", {len(test_cases)} unlabelled" if test_cases else ""))
    for value, count in histogram.items():
        print(f"  source label {value} -> {description.label_map[value]}: {count:,} voxels")
    if dry_run:
        print("  dry run: everything is in order, nothing was written")
        return target

    with contextlib.ExitStack() as stack:
        if splits_file:
            stack.enter_context(staged_file(splits_file)).write_text(splits_text)
        folder = stack.enter_context(staged_folder(target, overwrite=overwrite))
        _write_all(cases, folder / "imagesTr", folder / "labelsTr", description, num_processes)
        if test_cases:
            _write_all(test_cases, folder / "imagesTs", None, description, num_processes)
        generate_dataset_json(
            str(folder),
            channel_names={str(index): channel for index, channel in enumerate(description.channels)},
            labels=dict(description.labels),
            num_training_cases=len(cases),
            file_ending=FILE_ENDING,
            regions_class_order=description.regions_class_order,
            dataset_name=name,
            reference=description.reference,
            release=description.release,
            description=description.text,
            overwrite_image_reader_writer="SimpleITKIO",
            license=description.licence,
            converted_by="dataset_conversion of nnunet-logvmamba",
        )
    print(f"  written: {target}")
    if splits_file:
        sizes = "/".join(str(len(fold["val"])) for fold in splits)
        print(f"  {len(splits)} folds (validation cases {sizes}): {splits_file}")
    return target


def write_test_images(
    cases: Sequence[Case],
    description: Description,
    target: Path,
    *,
    overwrite: bool = False,
    num_processes: int = 1,
    dry_run: bool = False,
) -> Path:
    """Check unlabelled cases and write them into ``target`` under the names that ``nnUNetv2_predict -i`` expects."""
    target = Path(target)
    require_free_target(target, overwrite)
    cases = [Case(case.name, case.images) for case in cases]
    check_cases(cases, description, num_processes)
    if dry_run:
        print(f"dry run: {len(cases)} case(s) are in order, nothing was written")
        return target
    with staged_folder(target, overwrite=overwrite) as folder:
        _write_all(cases, folder, None, description, num_processes)
    print(f"{len(cases)} case(s) written for nnUNetv2_predict: {target}")
    return target


def _write_all(
    cases: Sequence[Case], images: Path, labels: Path | None, description: Description, num_processes: int
) -> None:
    for folder in (images, labels):
        if folder is not None:
            folder.mkdir(exist_ok=True)
    work = partial(write_case, images_folder=images, labels_folder=labels, label_map=description.label_map)
    for _ in _each_case(work, cases, num_processes, "write"):
        pass


def trailing_number(case: str) -> int:
    """The number at the end of a case name, such as 17 for ``hippocampus_017``."""
    match = re.search(r"(\d+)$", case)
    if match is None:
        raise ConversionError(f"Case {case} does not end in a number, so its subject is unknown; rename its files.")
    return int(match.group(1))
