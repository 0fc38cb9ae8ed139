"""What every converter shares: the command line, checks before writing, staged folders, folds and the report.

A converter finds its cases and names a layout that reads and writes them (``volumes.Volumes`` for NIfTI,
``pictures.Pictures`` and its kin for 2D); :func:`write_dataset` does the rest. Nothing is written until every file has
been read and checked, and nothing appears under its final name until all of it is there.
"""

import argparse
import contextlib
import errno
import functools
import io
import json
import multiprocessing
import os
import random
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

SPLIT_SEED = 12345
MAX_FOLDS = 5
REPORT = "conversion_report.json"
# Names that nnU-Net, SimpleITK and every file system read alike.
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Archives packed on a Mac hold their folders a second time in here, without the files.
MACOS_FOLDER = "__MACOSX"
SHOWN = 10
MAX_COUNTABLE = 65535


class ConversionError(Exception):
    """Something the user can put right; its text is one sentence that names the file or value and the remedy."""


@dataclass(frozen=True)
class Case:
    """The source files of one case.

    Attributes:
        images: One file per channel, in channel order, or the one file that holds all channels.
        mask: What it is labelled with: a file, or several that are painted one over the other; None without labels.
        group: Patient, sequence or experiment; never on both sides of a split. By default the case itself.
        stratum: Kind of case that every fold gets its share of.
        about: Facts for the report that a later ``--restore`` needs, such as the name under which to submit.
    """

    name: str
    images: tuple[Path, ...]
    mask: Path | tuple[Path, ...] | None = None
    group: str | None = None
    stratum: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def masks(self) -> tuple[Path, ...]:
        """All files of the mask."""
        return self.mask if isinstance(self.mask, tuple) else () if self.mask is None else (self.mask,)


@dataclass(frozen=True)
class Facts:
    """What the check of a case found: voxels per source label, none without a mask, and other things worth counting."""

    histogram: Mapping[int, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A file or folder of the source that is not converted, and why."""

    path: Path
    reason: str


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
        notice: What the data owner asks of users, printed after each conversion beside reference and licence.
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
    notice: str = ""


# Work, cases and a verb for the progress bar, to the results in order: what `workers` yields.
EachCase = Callable[[Callable, Sequence[Case], str], Iterator]


class Layout(Protocol):
    """How the cases of a data set are read and written; sent to the worker processes, so it must pickle."""

    file_ending: str
    reader_writer: str
    unit: str

    def check(self, case: Case) -> Facts:
        """Read every file of a case; raise a ConversionError that names case and file if anything is wrong."""

    def write_images(self, case: Case, folder: Path) -> None:
        """Write the images of a checked case into ``folder`` under nnU-Net's names."""

    def write_labels(self, case: Case, dataset: Path, part: str) -> None:
        """Write the labels of a checked case into ``labels<part>`` of ``dataset``, ``part`` being Tr or Ts."""

    def label_folders(self, part: str) -> tuple[str, ...]:
        """Folders that :meth:`write_labels` writes into."""


# --- commands -------------------------------------------------------------------------------------------------------


def run(command: Callable[[], object]) -> int:
    """Run a command and turn what a user can put right into one sentence on stderr.

    A polite kill (SIGTERM) or a terminal that is closed (SIGHUP, unless nohup has it ignored) unwinds like Ctrl-C, so
    that staged folders are removed. Programming errors keep their traceback.

    Returns:
        Exit code: 0, 2 for an error of the user's or the disk's, 130 when interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text in the terminal's encoding
    previous = {
        which: signal.signal(which, _interrupt)
        for which in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(which) != signal.SIG_IGN
    }
    try:
        command()
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{final_path(error.filename)}: " if isinstance(error.filename, (str, Path)) else ""
        remedy = "check that it exists and that you may read and write there"
        print(f"error: {where}{error.strerror or error}; {remedy}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what had been written was removed again.", file=sys.stderr)
        return 130
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
    return 0


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def require_folder_variable(name: str) -> Path:
    """Folder that the environment variable ``name`` points to; it need not exist yet.

    Raises:
        ConversionError: If the variable is unset or empty, or points to a file.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConversionError(f"{name} is not set; point it at a folder, for example: export {name}=$HOME/{name}")
    if Path(value).exists() and not Path(value).is_dir():
        raise ConversionError(f"{name} points to {value}, which is a file; point it at a folder.")
    return Path(value)


def dataset_id(text: str) -> int:
    """Data set id from the command line; argparse reports the ValueError of anything but 1 to 999."""
    value = int(text)
    if not 1 <= value <= 999:
        raise ValueError(text)
    return value


def positive(text: str) -> int:
    """Whole number above 0 from the command line."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def make_parser(
    module: str,
    description: str,
    *,
    default_id: int,
    protocols: Sequence[str] = (),
    default_protocol: str = "",
    restore_looks_up_names: bool = False,
) -> argparse.ArgumentParser:
    """Parser with the options that every converter has; the first line of ``description`` says what it converts.

    Args:
        restore_looks_up_names: Whether ``--restore`` reads the report of the converted data set, which ``-d`` names.
    """
    which_id = ", the latter with the -d of the conversion, whose report knows the names" * restore_looks_up_names
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog="--images-only and --restore stand in for a conversion and take two folders"
        + (which_id or "; they need no -d")
        + ".",
    )
    parser.add_argument("source", type=Path, nargs="?", help="folder below which the archive was unpacked")
    parser.add_argument(
        "-d", "--dataset-id", type=dataset_id, default=default_id, help=f"1 to 999, default {default_id}"
    )
    if protocols:
        parser.add_argument(
            "--protocol",
            choices=protocols,
            default=default_protocol,
            help=f"which cases train and which are held out, default {default_protocol}",
        )
    parser.add_argument("--overwrite", action="store_true", help="replace a target that is not empty")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument(
        "--jobs",
        "-j",
        "-np",
        "--num-processes",
        dest="jobs",
        metavar="N",
        type=positive,
        default=min(8, os.cpu_count() or 1),
        help="worker processes, default: all cores, at most 8",
    )
    parser.add_argument(
        "--images-only",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="SOURCE OUT: write scans to predict into OUT, as nnUNetv2_predict -i wants them",
    )
    parser.add_argument(
        "--restore",
        type=Path,
        nargs=2,
        metavar=("PREDICTIONS", "OUT"),
        help="write predictions into OUT with the data owner's label values and file names",
    )
    return parser


def run_converter(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    *,
    convert: Callable,
    convert_images: Callable,
    restore: Callable,
) -> int:
    """Do what the command line asks for: convert, write images only, or restore predictions.

    Args:
        convert: Called with source, nnUNet_raw, nnUNet_preprocessed, the id and the common options.
        convert_images: Called with source, out and the common options.
        restore: Called with predictions, out and the common options.

    Returns:
        Exit code, see :func:`run`.
    """
    options = {"overwrite": arguments.overwrite, "jobs": arguments.jobs, "dry_run": arguments.dry_run}
    if arguments.restore:
        if arguments.source or arguments.images_only:
            parser.error("--restore takes PREDICTIONS and OUT and nothing else")
        return run(lambda: restore(*arguments.restore, **options))
    if arguments.images_only:
        folders = [*([arguments.source] if arguments.source else []), *arguments.images_only]
        if len(folders) != 2:
            parser.error("--images-only takes two folders, SOURCE and OUT")
        return run(lambda: convert_images(*folders, **options))
    if not arguments.source:
        parser.error("name the folder below which the archive was unpacked (SOURCE)")

    def command() -> None:
        roots = map(require_folder_variable, ("nnUNet_raw", "nnUNet_preprocessed"))
        convert(arguments.source, *roots, arguments.dataset_id, **options)

    return run(command)


# --- files ----------------------------------------------------------------------------------------------------------


def require_source(source: Path) -> Path:
    """``source`` with its full name, links followed, so that the folders it lies in can be told; it must be a folder.

    Raises:
        ConversionError: If it is none.
    """
    source = Path(source)
    if not source.is_dir():
        state = "is a file, not a folder; unpack it first" if source.exists() else "does not exist"
        raise ConversionError(f"Source {source} {state}.")
    return source.resolve()


def walk_folders(source: Path) -> Iterator[Path]:
    """``source`` and every folder below it, sorted, links followed, hidden folders and macOS's ``__MACOSX`` left out.

    Raises:
        ConversionError: For a link that leads nowhere, or back to a folder above it; a case behind the first would be
            missed without a word, and behind the second there is no end.
        OSError: If a folder cannot be listed, for the same reason.
    """

    def refuse(error: OSError) -> None:
        raise error

    top = os.path.realpath(source)
    above = {os.fspath(source): {top, *map(str, Path(top).parents)}}
    for folder, names, files in os.walk(source, followlinks=True, onerror=refuse):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != MACOS_FOLDER)
        for name in sorted(files):
            path = os.path.join(folder, name)
            if os.path.islink(path) and not os.path.exists(path):
                raise ConversionError(f"Link {path} leads nowhere or in a circle; remove it or put the file there.")
        for name in names:
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in above[folder]:
                raise ConversionError(f"Link {path} leads back to {real}, which is above it; remove the link.")
            above[path] = above[folder] | {real}
        yield Path(folder)


def files_by_stem(folder: Path, stem_of: Callable[[Path], str | None]) -> dict[str, Path]:
    """Files of ``folder`` by stem, sorted; files whose stem is None are passed over.

    Raises:
        ConversionError: If one stem lies there twice, such as ``.nii`` and ``.nii.gz``.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = stem_of(path)
        if stem is None or not path.is_file():
            continue
        if stem in found:
            raise ConversionError(
                f"Case {folder.name} has both {found[stem].name} and {path.name} in {folder}; remove one of them."
            )
        found[stem] = path
    return found


def require_folder_name(folder: Path, prefixes: tuple[str, ...], example: str) -> None:
    """Refuse a folder that was meant to be a case and is not named as one; it would be left out without a word.

    Raises:
        ConversionError: If the name starts with one of ``prefixes``, whatever the case of its letters.
    """
    if folder.name.lower().startswith(prefixes):
        raise ConversionError(f"Folder {folder} is not named as the data owner names them ({example}); rename it.")


def require_case_name(name: str, path: Path) -> str:
    """``name``, if nnU-Net and every file system read it alike.

    Raises:
        ConversionError: For anything but ASCII letters, digits, dot, dash and underscore.
    """
    if not CASE_NAME.fullmatch(name):
        raise ConversionError(
            f"Case {name}: the name of {path} has characters other than a-z, A-Z, 0-9, '.', '-' and '_', "
            "which not every tool reads alike; rename it."
        )
    return name


def require_free_target(target: Path, overwrite: bool) -> None:
    """Raise a ConversionError if ``target`` is a file, or a folder with something in it and not ``overwrite``."""
    if target.exists() and not target.is_dir():
        raise ConversionError(f"Target {target} is a file; move it away or choose another target.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ConversionError(f"Target folder {target} is not empty; use --overwrite to replace it.")


def require_apart(source: Path, target: Path) -> None:
    """Raise a ConversionError if ``source`` is ``target`` or lies in it: replacing it would lose the source.

    The same holds for the folder where the command runs, which an empty name means, as of a variable that is not set.
    """
    target = Path(target).resolve()
    for what, folder in (("Source", Path(source).resolve()), ("The current folder", Path.cwd())):
        if target == folder or target in folder.parents:
            raise ConversionError(f"{what} {folder} lies inside the target {target}; choose another target.")


def require_outside(source: Path, target: Path) -> None:
    """Raise a ConversionError if ``target`` lies in ``source``: the next run would take what is written for scans."""
    source, target = Path(source).resolve(), Path(target).resolve()
    if source in target.parents:
        raise ConversionError(
            f"Target {target} lies inside the source {source}, so that the next run would read it; choose another "
            "target, or name the folder of the archive alone as source."
        )


def require_writable(target: Path) -> None:
    """Raise a ConversionError unless something can be written beside ``target``, or in what exists of the path to it.

    What a user may do is only known once it was tried: an empty folder is made and removed.
    """
    folder = Path(target).resolve().parent
    while not folder.exists():
        folder = folder.parent
    with writing(folder):
        tempfile.TemporaryDirectory(prefix=".writable-", dir=folder).cleanup()


@contextlib.contextmanager
def staged_folder(
    target: Path, *, overwrite: bool = False, then: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place once the block ends well.

    If the block, the exchange or ``then`` raises, the staged folder and every parent made for it are removed and
    ``target`` is as it was. The staged name starts with a dot, so that nnU-Net never takes it for a data set. Where
    ``target`` is a link, the folder that it leads to is replaced. Old contents that cannot be removed in the end are a
    warning, since the new ones are in place.

    Args:
        then: Called when ``target`` is in place and its old contents are still at hand.

    Raises:
        ConversionError: If ``target`` is not empty and not ``overwrite``, or cannot be written.
    """
    target = Path(target).resolve()
    require_free_target(target, overwrite)
    with _made_parents(target):
        staged, replaced = _sibling(target, "partial"), None
        in_place = False
        try:
            with writing(target):
                staged.mkdir()
            yield staged
            with writing(target):
                if target.exists():
                    replaced = target.rename(_sibling(target, "replaced"))
                staged.rename(target)
            in_place = True
            then()
        except BaseException:
            shutil.rmtree(target if in_place else staged, ignore_errors=True)
            if replaced is not None:
                _put_back(replaced, target)
            raise
        if replaced is not None:
            _remove(replaced, target)


def _remove(replaced: Path, target: Path) -> None:
    try:
        shutil.rmtree(replaced)
    except OSError as error:
        print(
            f"warning: {replaced} could not be removed ({error.strerror or error}); it holds the old contents of "
            f"{target}, remove it by hand.",
            file=sys.stderr,
        )


def _put_back(replaced: Path, target: Path) -> None:
    try:
        replaced.rename(target)
    except OSError as error:
        raise ConversionError(
            f"{target} could neither be replaced nor put back ({error.strerror}); its old contents are in {replaced}."
        ) from error


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target``; the file written there replaces ``target`` once the block ends well.

    Links to folders are followed, as :func:`staged_folder` does.
    """
    target = Path(target).parent.resolve() / Path(target).name
    with _made_parents(target):
        staged = _sibling(target, "partial")
        try:
            yield staged
            if staged.exists():
                with writing(target):
                    staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)


def _sibling(target: Path, purpose: str) -> Path:
    return target.with_name(f".{target.name}.{purpose}-{secrets.token_hex(4)}")


def final_path(path: Path) -> Path:
    """Where a file in a staged folder is going to lie, for error messages."""
    return Path(re.sub(r"/\.([^/]+)\.partial-[0-9a-f]{8}(?=/|$)", r"/\1", str(path)))


@contextlib.contextmanager
def _made_parents(target: Path) -> Iterator[None]:
    """Make the parents of ``target``; take back those that we made if the block raises."""
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):  # somebody else may have put a file there meanwhile
                parent.rmdir()
        raise


@contextlib.contextmanager
def writing(path: Path, case: str = "") -> Iterator[None]:
    """Name the file in whatever goes wrong while it is written: a full disk says no name of its own.

    Raises:
        ConversionError: For an OSError, or a RuntimeError, which is SimpleITK's word for a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "is the disk full, or the folder read-only?"
        remedy = "free some space" if getattr(error, "errno", None) == errno.ENOSPC else "make the folder writable"
        raise ConversionError(
            f"{f'Case {case}: ' if case else ''}{final_path(path)} cannot be written ({reason}); "
            f"{remedy} or choose another target."
        ) from error


def unreadable(path: Path, case: str, reason: object) -> ConversionError:
    """The error for a damaged file."""
    reason = " ".join(str(reason).split()).rstrip(".!") or "no reason given"
    return ConversionError(f"Case {case}: {path} cannot be read ({reason}); fetch the file again.")


# --- checks ---------------------------------------------------------------------------------------------------------


def value_counts(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of an array, sorted, and how often each occurs; for masks much faster than sorting their voxels."""
    if _is_countable(voxels):
        counts = np.bincount(voxels.ravel().astype(np.intp))
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(voxels, return_counts=True)


def _is_countable(voxels: np.ndarray) -> bool:
    return voxels.dtype.kind in "ui" and voxels.size > 0 and voxels.min() >= 0 and voxels.max() <= MAX_COUNTABLE


def check_labels(voxels: np.ndarray, description: Description, case: str, path: Path) -> dict[int, int]:
    """Count the voxels of every value of a mask.

    Returns:
        Source value to number of voxels.

    Raises:
        ConversionError: For a fraction, a NaN or a value that the data set does not have.
    """
    values, counts = value_counts(voxels)
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


def _check(layout: Layout, case: Case) -> Facts | str:
    try:
        return layout.check(case)
    except ConversionError as error:
        return str(error)


def check_cases(cases: Sequence[Case], layout: Layout, each_case: EachCase) -> list[Facts]:
    """Check all cases; return what was found, in their order.

    Raises:
        ConversionError: With the sentence of the first bad case and the names of the others.
    """
    results = list(each_case(functools.partial(_check, layout), cases, "check"))
    problems = {case.name: result for case, result in zip(cases, results) if isinstance(result, str)}
    if problems:
        first, *others = problems
        text = problems[first]
        if others:
            named = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
            text = f"{text.rstrip('.')} (and {len(others)} more case(s) with problems: {named})."
        raise ConversionError(text)
    return results


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[EachCase]:
    """Yield a function that maps work over cases, in order, in ``jobs`` processes that stay for the next call.

    A progress bar shows on a terminal.

    Raises:
        ConversionError: If a worker dies.
    """
    pool = None
    if jobs > 1:
        # Spawned, not forked: a forked worker would inherit our signal handlers and die noisily at the end.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker)

    def each_case(work: Callable, cases: Sequence[Case], verb: str) -> Iterator:
        results = pool.map(work, cases) if pool and len(cases) > 1 else map(work, cases)
        try:
            yield from tqdm(results, total=len(cases), desc=verb, unit="case", disable=None)
        except BrokenProcessPool:
            raise ConversionError(
                f"A worker process died during the {verb}, perhaps for lack of memory, or because a script uses "
                "several jobs outside of if __name__ == '__main__'; try again with --jobs 1."
            ) from None

    try:
        yield each_case
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end when that is gone, which a worker would not notice by itself."""

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


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
    values, _ = value_counts(voxels)
    strangers = [value for value in values.tolist() if value not in label_map]
    if strangers:
        raise ValueError(f"Label values {strangers[:5]} are not among {sorted(label_map)}")
    if _is_countable(voxels):
        table = np.zeros(int(voxels.max()) + 1, np.uint8)
        for value in values.tolist():
            table[value] = label_map[value]
        return table[voxels]
    result = np.zeros(voxels.shape, np.uint8)
    for value, image in label_map.items():
        result[voxels == value] = image
    return result


def inverse(label_map: Mapping[int, int]) -> dict[int, int]:
    """The way back through a label map that merges nothing."""
    return {ours: theirs for theirs, ours in label_map.items()}


# --- splits ---------------------------------------------------------------------------------------------------------


def make_splits(
    cases: Collection[str],
    group_of: Callable[[str], object] = str,
    stratum_of: Callable[[str], str] = lambda case: "",
) -> list[dict[str, list[str]]]:
    """Cross-validation folds over sorted, seeded-shuffled groups; no group is on both sides of a fold.

    Five folds, or one per group where there are fewer groups. Folds differ by at most one group's size in cases, and
    so do the shares of each stratum that they hold.

    Args:
        group_of: Case name to the patient (or sequence) it belongs to; by default every case is its own group.
        stratum_of: Case name to the kind of case it is; by default there is one kind.

    Raises:
        ConversionError: With fewer than two groups nothing can be held out.
    """
    groups = group_cases(cases, group_of)
    if len(groups) < 2:
        raise ConversionError(
            f"Only {len(groups)} subject found in {len(cases)} case(s); at least 2 are needed to train and validate."
        )
    folds: list[list[str]] = [[] for _ in range(min(MAX_FOLDS, len(groups)))]
    held: list[Counter] = [Counter() for _ in folds]
    for stratum, group in _shuffled(groups, stratum_of):
        # Large groups come first, each into the fold that has least of its kind, then least of all.
        fold = min(range(len(folds)), key=lambda index: (held[index][stratum], len(folds[index])))
        folds[fold].extend(groups[group])
        held[fold][stratum] += len(groups[group])
    return splits_from_folds(cases, folds)


def group_cases(cases: Iterable[str], group_of: Callable[[str], object]) -> dict[object, list[str]]:
    """Cases of each group, both sorted."""
    groups: dict[object, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(group_of(case), []).append(case)
    return {group: groups[group] for group in sorted(groups)}


def _shuffled(
    groups: Mapping[object, Sequence[str]], stratum_of: Callable[[str], str]
) -> list[tuple[tuple[str, ...], object]]:
    """Stratum and name of every group, stratum by stratum, within each large groups first, otherwise shuffled."""
    order = list(groups)
    random.Random(SPLIT_SEED).shuffle(order)
    order.sort(key=lambda group: -len(groups[group]))
    strata = {group: tuple(sorted({stratum_of(case) for case in groups[group]})) for group in order}
    return [(strata[group], group) for group in sorted(order, key=lambda group: strata[group])]


def splits_from_folds(cases: Iterable[str], folds: Sequence[Collection[str]]) -> list[dict[str, list[str]]]:
    """nnU-Net's list of training and validation cases from the validation cases of each fold."""
    everything = set(cases)
    return [{"train": sorted(everything - set(fold)), "val": sorted(fold)} for fold in folds]


def hold_out(cases: Sequence[Case], share: float) -> tuple[list[Case], list[Case]]:
    """Cases to train on and cases to test on: whole groups, ``share`` of the cases of each stratum.

    The choice depends on names, groups and strata only. A stratum that has a single group stays with the training.

    Raises:
        ConversionError: If nothing would be left on one side.
    """
    by_name = {case.name: case for case in cases}
    groups = group_cases(by_name, lambda name: by_name[name].group or name)
    chosen: set[str] = set()
    ordered = _shuffled(groups, lambda name: by_name[name].stratum)
    for stratum in sorted({stratum for stratum, _ in ordered}):
        members = [group for other, group in ordered if other == stratum]
        wanted = share * sum(len(groups[group]) for group in members)
        for group in reversed(members[1:]):  # small groups first, so that the share is met closely
            if 2 * wanted >= len(groups[group]):
                chosen.update(groups[group])
                wanted -= len(groups[group])
    if not chosen or len(chosen) == len(cases):
        raise ConversionError(
            f"A test share of {share:g} of {len(cases)} case(s) in {len(groups)} group(s) leaves one side empty; "
            "add cases, or choose another share or protocol."
        )
    return [case for case in cases if case.name not in chosen], [case for case in cases if case.name in chosen]


# --- the data set ---------------------------------------------------------------------------------------------------


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
    layout: Layout,
    *,
    source: Path,
    dataset_id: int,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None,
    test_cases: Sequence[Case] = (),
    splits: Sequence[Mapping[str, Sequence[str]]] | None = None,
    protocol: str = "crossval",
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
    overwrite: bool = False,
    jobs: int = 1,
    dry_run: bool = False,
) -> Path:
    """Check everything, then write ``DatasetXXX_Name`` and its splits, and report what was done.

    Args:
        source: Where the cases come from; never changed.
        nnunet_preprocessed: Gets ``DatasetXXX_Name/splits_final.json``, where nnU-Net looks for it; None writes none.
        test_cases: Cases for ``imagesTs``; labelled ones for ``labelsTs`` as well.
        splits: Folds that are prescribed; by default :func:`make_splits` makes them from groups and strata.
        protocol: Name of the choice of training and test cases, for the report.
        skipped: What was seen in the source and left out.
        notes: Sentences for the report: what was assumed or chosen.
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
    if nnunet_preprocessed and Path(nnunet_raw).resolve() == Path(nnunet_preprocessed).resolve():
        raise ConversionError(
            f"nnUNet_raw and nnUNet_preprocessed are the same folder {nnunet_raw}; give each a folder of its own."
        )
    require_apart(source, target)
    require_free_target(target, overwrite)
    require_free_id(name, (target.parent, splits_file.parents[1] if splits_file else None))
    for written in (target, splits_file) if splits_file else (target,):
        require_outside(source, written)
        if not dry_run:
            require_writable(written)
    everything = [*cases, *test_cases]
    _require_unique(everything)
    by_name = {case.name: case for case in cases}
    if splits is None:
        splits = make_splits(by_name, lambda case: by_name[case].group or case, lambda case: by_name[case].stratum)
    require_groups_apart(splits, cases, test_cases)
    if splits_file and splits_file.is_dir():
        raise ConversionError(f"{splits_file} is a folder, where nnU-Net reads a file; move it away.")
    splits_text = json.dumps(splits, indent=2) + "\n"
    if splits_file and not overwrite and splits_file.exists() and splits_file.read_bytes() != splits_text.encode():
        raise ConversionError(f"{splits_file} holds other splits; use --overwrite to replace it.")

    with contextlib.ExitStack() as stack:
        each_case = stack.enter_context(workers(jobs))
        facts = check_cases(everything, layout, each_case)
        report = make_report(
            name,
            description,
            layout,
            Path(source),
            everything,
            facts,
            len(cases),
            len(splits),
            protocol,
            skipped,
            notes,
        )
        print_report(report, layout)
        if dry_run:
            print("  dry run: everything is in order, nothing was written")
            return target
        publish_splits = lambda: None  # noqa: E731
        if splits_file:
            staged_splits = stack.enter_context(staged_file(splits_file))
            with writing(splits_file):
                staged_splits.write_text(splits_text)
            publish_splits = functools.partial(_publish, staged_splits, splits_file)
        folder = stack.enter_context(staged_folder(target, overwrite=overwrite, then=publish_splits))
        write_cases(cases, layout, folder, "Tr", each_case)
        write_cases(test_cases, layout, folder, "Ts", each_case)
        with writing(folder / "dataset.json"):
            _write_dataset_json(folder, name, description, layout, len(cases))
        with writing(folder / REPORT):
            (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"  written: {target}")
    if splits_file:
        sizes = "/".join(str(len(fold["val"])) for fold in splits)
        print(f"  {len(splits)} folds (validation cases {sizes}): {splits_file}")
    print_notice(description)
    return target


def _publish(staged: Path, target: Path) -> None:
    with writing(target):
        staged.replace(target)


def _require_unique(cases: Sequence[Case]) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        other = seen.setdefault(case.name, case)
        if other is not case:
            raise ConversionError(
                f"Case {case.name} occurs twice, as {other.images[0]} and as {case.images[0]}; give one copy as source."
            )


def require_groups_apart(
    splits: Sequence[Mapping[str, Sequence[str]]], cases: Sequence[Case], test_cases: Sequence[Case]
) -> None:
    """Raise a ConversionError if a group lies on both sides of a fold, or among training and test cases."""
    group_of = {case.name: case.group or case.name for case in (*cases, *test_cases)}
    sides = [(fold["train"], fold["val"]) for fold in splits]
    sides.append(([case.name for case in cases], [case.name for case in test_cases]))
    for first, second in sides:
        case_of = {group_of[case]: case for case in reversed(first)}
        for case in second:
            if group_of[case] in case_of:
                raise ConversionError(
                    f"Group {group_of[case]} lies on both sides of a split, with case {case_of[group_of[case]]} and "
                    f"with case {case}; take one of them out of the source, rename the group if two are called alike, "
                    "or choose another protocol."
                )


def _write_dataset_json(folder: Path, name: str, description: Description, layout: Layout, num_training: int) -> None:
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json  # late, since workers need none

    generate_dataset_json(
        str(folder),
        channel_names={str(index): channel for index, channel in enumerate(description.channels)},
        labels=dict(description.labels),
        num_training_cases=num_training,
        file_ending=layout.file_ending,
        regions_class_order=description.regions_class_order,
        dataset_name=name,
        reference=description.reference,
        release=description.release,
        description=description.text,
        overwrite_image_reader_writer=layout.reader_writer,
        license=description.licence,
        converted_by="dataset_conversion of nnunet-logvmamba",
    )


def write_test_images(
    cases: Sequence[Case],
    layout: Layout,
    target: Path,
    *,
    source: Path,
    overwrite: bool = False,
    jobs: int = 1,
    dry_run: bool = False,
) -> Path:
    """Check unlabelled cases and write them into ``target`` under the names that ``nnUNetv2_predict -i`` expects."""
    target = Path(target)
    require_apart(source, target)
    require_outside(source, target)
    require_free_target(target, overwrite)
    if not dry_run:
        require_writable(target)
    cases = [replace(case, mask=None) for case in cases]
    _require_unique(cases)
    with workers(jobs) as each_case:
        check_cases(cases, layout, each_case)
        if dry_run:
            print(f"dry run: {len(cases)} case(s) are in order, nothing was written")
            return target
        with staged_folder(target, overwrite=overwrite) as folder:
            for _ in each_case(functools.partial(layout.write_images, folder=folder), cases, "write"):
                pass
    print(f"{len(cases)} case(s) written for nnUNetv2_predict: {target}")
    return target


class Restorer(Protocol):
    """How predictions are turned into what the data owner expects; sent to the worker processes, so it must pickle."""

    def check(self, case: Case) -> Facts:
        """Read a prediction; raise a ConversionError that names it if it cannot be restored."""

    def write(self, case: Case, target: Path) -> None:
        """Write a checked prediction to ``target``."""


def find_predictions(predictions: Path, ending: str) -> dict[str, Path]:
    """The predictions in a folder by case name, sorted; nnU-Net's JSON files and probabilities are passed over.

    Raises:
        ConversionError: If there are none.
    """
    predictions = require_source(predictions)
    found = {
        path.name[: -len(ending)]: path
        for path in sorted(predictions.iterdir())
        if path.name.endswith(ending) and not path.name.startswith(".")
    }
    if not found:
        raise ConversionError(f"There are no predictions (*{ending}) in {predictions}.")
    return found


def write_restored(
    names: Mapping[Path, str],
    restorer: Restorer,
    target: Path,
    *,
    source: Path,
    overwrite: bool = False,
    jobs: int = 1,
    dry_run: bool = False,
) -> Path:
    """Check predictions and write them into ``target`` as the data owner wants them.

    Args:
        names: Prediction to its path in ``target``.
        source: The folder of the predictions.
    """
    target = Path(target)
    require_apart(source, target)
    require_free_target(target, overwrite)
    if not dry_run:
        require_writable(target)
    owners: dict[str, Path] = {}
    for path, name in names.items():
        if name in owners:
            raise ConversionError(f"{owners[name]} and {path} would both become {name}; restore them one by one.")
        owners[name] = path
    cases = [Case(path.name, (path,), about={"submit": name}) for path, name in names.items()]
    with workers(jobs) as each_case:
        check_cases(cases, restorer, each_case)
        if dry_run:
            print(f"dry run: {len(cases)} prediction(s) are in order, nothing was written")
            return target
        with staged_folder(target, overwrite=overwrite) as folder:
            for name in owners:
                with writing(folder / name):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
            for _ in each_case(functools.partial(_restore, restorer, folder), cases, "restore"):
                pass
    print(f"{len(cases)} prediction(s) restored: {target}")
    return target


def _restore(restorer: Restorer, folder: Path, case: Case) -> None:
    restorer.write(case, folder / case.about["submit"])


def read_report(nnunet_raw: Path, dataset_id: int) -> dict:
    """The report that the conversion left in the data set with this id.

    Raises:
        ConversionError: If there is no such data set, or it has no report that can be read.
    """
    prefix = f"Dataset{dataset_id:03d}_"
    folders = [path for path in sorted(Path(nnunet_raw).glob(f"{prefix}*")) if path.is_dir()]
    if len(folders) != 1:
        raise ConversionError(f"There is no data set {prefix}* in {nnunet_raw}; name the id of the conversion with -d.")
    path = folders[0] / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        cases = report["cases"]
        if not isinstance(cases, dict) or not all(isinstance(case, dict) for case in cases.values()):
            raise TypeError("its cases are no table of facts")
    except FileNotFoundError:
        raise ConversionError(f"There is no {path}; convert the data set first.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} cannot be read ({error}); convert the data set again.") from None
    return report


def write_cases(cases: Sequence[Case], layout: Layout, dataset: Path, part: str, each_case: EachCase) -> None:
    """Write checked cases into ``images<part>`` and their labels into the folders of the layout."""
    if not cases:
        return
    folders = {f"images{part}"} | set(layout.label_folders(part) if any(case.masks for case in cases) else ())
    for folder in sorted(folders):
        with writing(dataset / folder):
            (dataset / folder).mkdir(exist_ok=True)
    for _ in each_case(functools.partial(_write_case, layout, dataset, part), cases, "write"):
        pass


def _write_case(layout: Layout, dataset: Path, part: str, case: Case) -> None:
    layout.write_images(case, dataset / f"images{part}")
    if case.masks:
        layout.write_labels(case, dataset, part)


# --- the report -----------------------------------------------------------------------------------------------------


def make_report(
    name: str,
    description: Description,
    layout: Layout,
    source: Path,
    cases: Sequence[Case],
    facts: Sequence[Facts],
    num_training: int,
    num_folds: int,
    protocol: str,
    skipped: Sequence[Skipped],
    notes: Sequence[str],
) -> dict:
    """Everything that was converted and left out, without dates or places, so that equal sources give equal reports."""
    labelled = [(case, fact) for case, fact in zip(cases, facts) if case.masks]
    training, testing = Counter(), Counter()
    for index, fact in enumerate(facts):
        (training if index < num_training else testing).update(fact.histogram)
    labels = {}
    for source_value, value in sorted(description.label_map.items(), key=lambda item: item[1]):
        labels[str(value)] = {
            "name": _name_of(value, description.labels),
            "source": source_value,
            f"training_{layout.unit}": training[source_value],
            f"test_{layout.unit}": testing[source_value],
        }
    without = {}
    for label, values in description.labels.items():
        values = set(values if isinstance(values, (list, tuple)) else [values])
        if values != {0}:
            absent = [
                case.name
                for case, fact in labelled
                if not any(count and description.label_map[value] in values for value, count in fact.histogram.items())
            ]
            without[label] = absent
    counts: Counter = Counter()
    for fact in facts:
        counts.update(fact.counts)
    return {
        "data_set": name,
        "release": description.release,
        "protocol": protocol,
        "training_cases": num_training,
        "test_cases": {
            "labelled": sum(bool(case.masks) for case in cases[num_training:]),
            "unlabelled": sum(not case.masks for case in cases[num_training:]),
        },
        "groups": len({case.group or case.name for case in cases}),
        "folds": num_folds,
        "labels": labels,
        "cases_without": without,
        "counts": dict(sorted(counts.items())),
        "notes": [printable(note) for note in notes],
        "skipped": [{"path": _relative(skip.path, source), "reason": skip.reason} for skip in skipped],
        "cases": {
            case.name: {
                "part": "Tr" if index < num_training else "Ts",
                "group": case.group or case.name,
                **({"stratum": case.stratum} if case.stratum else {}),
                **case.about,
                "images": [_relative(path, source) for path in case.images],
                "mask": [_relative(path, source) for path in case.masks],
                **{what: count for what, count in sorted(fact.counts.items()) if count},
            }
            for index, (case, fact) in enumerate(zip(cases, facts))
        },
        "citation": description.reference,
        "licence": description.licence,
    }


def _name_of(value: int, labels: Mapping[str, int | list[int]]) -> str:
    """The label of a value; of regions all that it is part of."""
    names = [
        name for name, values in labels.items() if value in (values if isinstance(values, (list, tuple)) else [values])
    ]
    return ", ".join(names)


def _relative(path: Path, source: Path) -> str:
    path = Path(os.path.abspath(path))
    for above in (os.path.abspath(source), os.path.realpath(source)):
        if path.is_relative_to(above):
            return printable(path.relative_to(above).as_posix())
    return printable(path.name)


def printable(name: str) -> str:
    """A file name with the bytes that are no UTF-8 written out, as in ``caf\\xe9.txt``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def print_report(report: Mapping, layout: Layout) -> None:
    """Print the report in short: long lists are cut, the file has them whole."""
    tests = report["test_cases"]
    extra = "".join(f", {count} {what} for testing" for what, count in tests.items() if count)
    remapped = any(str(label["source"]) != value for value, label in report["labels"].items())
    print(f"{report['data_set']} ({report['release']}, protocol {report['protocol']})")
    print(f"  {report['training_cases']} labelled case(s){extra}, {report['groups']} group(s)")
    for value, label in report["labels"].items():
        which = f"source label {label['source']} -> {value}" if remapped else f"label {value}"
        test = f" and {label[f'test_{layout.unit}']:,} for testing" if tests["labelled"] else ""
        print(f"  {which}: {label[f'training_{layout.unit}']:,} {layout.unit}{test} ({label['name']})")
    for label, cases in report["cases_without"].items():
        if cases:
            print(f"  without {label}: {len(cases)} case(s), {_some(cases)}")
    for what, count in report["counts"].items():
        affected = [name for name, case in report["cases"].items() if case.get(what)]
        print(f"  {what}: {count:,}" + (f" in {len(affected)} case(s)" if count else ""))
    for reason in dict.fromkeys(skip["reason"] for skip in report["skipped"]):
        paths = [skip["path"] for skip in report["skipped"] if skip["reason"] == reason]
        print(f"  skipped {len(paths)}: {reason}: {_some(paths)}")
    for note in report["notes"]:
        print(f"  note: {note}")


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f", … ({len(items) - SHOWN} more)" if len(items) > SHOWN else "")


def print_notice(description: Description) -> None:
    """Print what the data owner asks of everybody who uses the data."""
    print(f"  cite: {description.reference}")
    print(f"  licence: {description.licence}" + (f"\n  {description.notice}" if description.notice else ""))


def trailing_number(case: str) -> int:
    """The number at the end of a case name, such as 17 for ``hippocampus_017``."""
    match = re.search(r"(\d+)$", case)
    if match is None:
        raise ConversionError(f"Case {case} does not end in a number, so its subject is unknown; rename its files.")
    return int(match.group(1))
