"""What lies below a source: folders, files and names, nothing passed over without a word."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dataset_conversion.core import reporting
from dataset_conversion.core.cases import Case, ConversionError

# Names that nnU-Net, SimpleITK and every file system read alike.
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Of files that a user may take for scans, whatever a command reads of them.
IMAGE_ENDINGS = (
    *(".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mgz", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm"),
    *(".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".webp", ".jp2"),
)
# Archives packed on a Mac hold their folders a second time in here, without the files.
MACOS_FOLDER = "__MACOSX"


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


def for_itk(path: Path) -> str:
    """The name of a file as SimpleITK takes it, which ends the whole process at one that is not UTF-8.

    Raises:
        ConversionError: If it is not.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConversionError(
            f"The path {name!a} has bytes that are not UTF-8, which SimpleITK cannot open; rename the folder or file."
        ) from None
    return name


# The file that a folder stands for, or None for other folders.
StandsFor = Callable[[Path], Path | None]


def for_itself(folder: Path) -> None:
    """No folder stands for a file."""


def walk_folders(source: Path, stands_for: StandsFor = for_itself) -> Iterator[Path]:
    """``source`` and every folder below it, sorted, links followed, hidden folders and macOS's ``__MACOSX`` left out.

    Args:
        stands_for: Folders below ``source`` for which this gives a file are left out too.

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
        names[:] = sorted(name for name in names if not is_litter(name))
        for name in sorted(files):
            require_target(os.path.join(folder, name))
        for name in names:
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in above[folder]:
                raise ConversionError(f"Link {path} leads back to {real}, which is above it; remove the link.")
            above[path] = above[folder] | {real}
        if folder == os.fspath(source) or not stands_for(Path(folder)):
            yield Path(folder)


def require_target(path: str | Path) -> None:
    """Raise a ConversionError for a link that leads nowhere, as where a repository keeps large files elsewhere."""
    if os.path.islink(path) and not os.path.exists(path):
        raise ConversionError(f"Link {path} leads nowhere or in a circle; remove it or put the file there.")


def is_litter(name: str) -> bool:
    """Whether a folder of this name is hidden, or macOS's ``__MACOSX``."""
    return name.startswith(".") or name == MACOS_FOLDER


def files_by_stem(
    folder: Path, stem_of: Callable[[Path], str | None], stands_for: StandsFor = for_itself
) -> dict[str, Path]:
    """Files of ``folder`` by stem, sorted; files whose stem is None are passed over.

    Args:
        stands_for: A folder with a stem is taken for the file that this gives, and passed over if it gives none.

    Raises:
        ConversionError: If one stem lies there twice, such as ``.nii`` and ``.nii.gz``, or a link leads nowhere.
    """
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        stem = stem_of(path)
        if stem is not None:
            require_target(path)
        if stem is None or (file := path if path.is_file() else stands_for(path)) is None:
            continue
        if stem in found:
            raise ConversionError(
                f"Case {folder.name} has both {found[stem][0]} and {path.name} in {folder}; remove one of them."
            )
        found[stem] = path.name, file
    return {stem: file for stem, (_, file) in found.items()}


def find_scans(
    source: Path,
    stem_of: Callable[[Path], str | None],
    what: str,
    endings: tuple[str, ...],
    stands_for: StandsFor = for_itself,
) -> list[Case]:
    """Every file below ``source`` with a stem as a case of its own, to predict.

    Args:
        what: What the files are, for the error message.
        endings: Endings of files that are read; images with others are counted in a note.
        stands_for: See :func:`files_by_stem`.

    Raises:
        ConversionError: If there are none, or one has a name that not every tool reads alike.
    """
    source = require_source(source)
    folders = [*walk_folders(source, stands_for)]
    cases = [
        Case(require_case_name(name, path), (path,))
        for folder in folders
        for name, path in files_by_stem(folder, stem_of, stands_for).items()
    ]
    say_unread(
        [path for folder in folders for path in images_of_others(folder, endings)]
        + [folder for folder in folders if stem_of(folder) is not None and not any(folder.iterdir())]
    )
    if not cases:
        raise ConversionError(f"There are no {what} below {source}.")
    return cases


def images_of_others(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files of ``folder`` with the ending of an image that is none of ``endings``, sorted."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(IMAGE_ENDINGS)
        and not path.name.lower().endswith(endings)
        and not path.name.startswith(".")
        and path.is_file()
    ]


def say_unread(paths: Sequence[Path]) -> None:
    """Print a note of images that a command passes over, if there are any."""
    if paths:
        reporting.say(f"note: {len(paths)} file(s) not read, first {paths[0]}")


def enter_once(found: dict, key: object, folder: Path, what: str) -> None:
    """Note in ``found`` in which folder something lies.

    Raises:
        ConversionError: If it lies in another folder as well.
    """
    if key in found:
        raise ConversionError(f"{what} lies both in {found[key]} and in {folder}; give one copy as source.")
    found[key] = folder


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


def unreadable(path: Path, case: str, reason: object, remedy: str = "fetch the file again") -> ConversionError:
    """The error for a damaged file."""
    reason = " ".join(str(reason).split()).rstrip(".!") or "no reason given"
    return ConversionError(f"Case {case}: {path} cannot be read ({reason}); {remedy}.")


def trailing_number(case: str) -> int:
    """The number at the end of a case name, such as 17 for ``hippocampus_017``."""
    match = re.search(r"(\d+)$", case)
    if match is None:
        raise ConversionError(f"Case {case} does not end in a number, so its subject is unknown; rename its files.")
    return int(match.group(1))
