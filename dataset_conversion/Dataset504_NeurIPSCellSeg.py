"""NeurIPS 2022 Cell Segmentation (2D microscopy, instances) as an nnU-Net data set of background, interior, boundary.

Run from a checkout: ``python -m dataset_conversion.Dataset504_NeurIPSCellSeg SOURCE``.
"""

import argparse
import csv
import functools
import re
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy  # loads ndimage when it is used

from dataset_conversion.core import command_line, conversion, sources, splitting, staging
from dataset_conversion.core.cases import SHOWN, Case, ConversionError, Description, Facts, Options, Skipped, Work
from dataset_conversion.formats import label_values, pictures

if TYPE_CHECKING:
    from typing_extensions import Unpack

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2
PERCENTILES = (1, 99)
FLAT_RANGE = 0.001
CASES_TABLE = "cases.csv"
DEFAULT_GROW_PIXELS = 2
PROTOCOLS = ("crossval", "paper", "official")
# Folders of the challenge's archive; the last one on the way down to a set tells what it is.
PART_FOLDER = re.compile(r"(training|tuning|testing|hidden)([-_ ].*)?", re.IGNORECASE)
CHALLENGE_FOLDER = "Training-labeled"
TRAINING_PICTURES, TUNING_PICTURES = 1000, 101
# The tuning set counts its pictures from 1 again, so that its cases need names of their own.
TUNING_PREFIX = "tuning_"
TUNING_CASE = re.compile(rf"{TUNING_PREFIX}(cell_[0-9]+)")
ONE_NUMBER = "one number for several separate pieces (a broken cell, or a mask whose cells need numbers)"

DESCRIPTION = Description(
    name="NeurIPSCellSeg",
    channels=("R", "G", "B"),
    labels={"background": BACKGROUND, "interior": INTERIOR, "boundary": BOUNDARY},
    label_map={BACKGROUND: BACKGROUND, INTERIOR: INTERIOR, BOUNDARY: BOUNDARY},
    licence="terms of the challenge for its own data; for other sources in this layout their own licence holds",
    reference="https://neurips22-cellseg.grand-challenge.org; Ma et al. 2024, doi:10.1038/s41592-024-02233-6",
    release="2022",
    text="Cells in microscopy pictures of any modality. Instance maps lie in instancesTr and instancesTs.",
)


@dataclass(frozen=True)
class Cells:
    """Pictures as 8-bit RGB, instance maps as three classes, and the instance maps themselves beside them."""

    file_ending: str = pictures.FILE_ENDING
    reader_writer: str = "NaturalImage2DIO"
    unit: str = "pixels"

    def check(self, case: Case) -> Facts:
        """Read picture and instance map; count pixels per class, instances, and instances without any interior."""
        picture = pictures.as_rgb(pictures.read_picture(case.images[0], case.name), case.name, case.images[0])
        rescale(picture)
        if not case.masks:
            return Facts()
        mask = case.masks[0]
        instances = read_instances(mask, case.name)
        if instances.shape != picture.shape[:2]:
            turned = instances.shape == picture.shape[1::-1]
            raise ConversionError(
                f"Case {case.name}: {mask} has {instances.shape[0]} x {instances.shape[1]} pixels, but "
                f"{case.images[0].name} has {picture.shape[0]} x {picture.shape[1]}"
                f"{'; it seems to be transposed' if turned else ''}."
            )
        classes = three_classes(instances)
        histogram = np.bincount(classes.ravel(), minlength=3).tolist()
        ids = label_values.value_counts(instances[instances > 0])[0]
        lost = len(ids) - len(label_values.value_counts(instances[classes == INTERIOR])[0])
        counts = {"instances": len(ids), "instances lost in the three classes": lost}
        remarks = {ONE_NUMBER: mask} if len(ids) == 1 and _in_pieces(instances) else {}
        return Facts(dict(enumerate(histogram)), counts, remarks)

    def write_images(self, case: Case, folder: Path) -> None:
        """Write ``<case>_0000.png``, one file for the three channels."""
        path = case.images[0]
        picture = pictures.as_rgb(pictures.read_picture(path, case.name), case.name, path)
        pictures.write_png(rescale(picture), folder / f"{case.name}_0000{self.file_ending}", case.name)

    def write_labels(self, case: Case, dataset: Path, part: str) -> None:
        """Write the three classes, and the instance map with its own numbers."""
        mask = case.masks[0]
        instances = read_instances(mask, case.name)
        pictures.write_png(
            three_classes(instances), dataset / f"labels{part}" / f"{case.name}{self.file_ending}", case.name
        )
        target = dataset / f"instances{part}" / f"{case.name}.tiff"
        import tifffile

        with staging.writing(target, case.name):
            if _stored_as_we_store(mask):
                shutil.copyfile(mask, target)
            else:
                tifffile.imwrite(target, instances, compression="zlib", metadata=None, software=False)

    def label_folders(self, part: str) -> tuple[str, ...]:
        """``labels<part>`` and ``instances<part>``, which nnU-Net does not look at."""
        return (f"labels{part}", f"instances{part}")


# --- pictures and classes -------------------------------------------------------------------------------------------


def rescale(picture: np.ndarray) -> np.ndarray:
    """Stretch each channel from the 1st and 99th percentile of its non-zero pixels to 0 and 255.

    A channel of zeros stays as it is; one with hardly any range is only cut to 0 to 255. Hardly any is 0.001, of floats
    below 1 that share of the largest.

    Args:
        picture: (height, width, channels), any dtype.

    Returns:
        Same shape, uint8.
    """
    from skimage import exposure

    result = np.zeros(picture.shape, np.uint8)
    for channel in range(picture.shape[-1]):
        values = picture[..., channel]
        bright = values[values != 0]
        if bright.size == 0:
            continue
        low, high = np.percentile(bright, PERCENTILES)
        dim = min(1, np.abs(bright).max()) if picture.dtype.kind == "f" else 1
        if high - low > FLAT_RANGE * dim:
            values = exposure.rescale_intensity(values, in_range=(low, high), out_range="uint8")
        result[..., channel] = np.clip(values, 0, 255)
    return result


def three_classes(instances: np.ndarray) -> np.ndarray:
    """Interior (1) and boundary (2) of instances, 0 elsewhere, by ``nnunet_logvmamba.evaluation.instances``.

    Args:
        instances: (height, width), whole numbers, 0 background.

    Returns:
        Same shape, uint8.
    """
    from nnunet_logvmamba.evaluation.instances import to_classes

    return to_classes(instances)


def read_instances(path: Path, case: str) -> np.ndarray:
    """Instance map at ``path`` with its own numbers, (height, width), uint16, or int32 where 16 bits do not suffice.

    Raises:
        ConversionError: If it cannot be read, has several channels, or holds fractions, negative or huge numbers.
    """
    instances = pictures.read_picture(path, case, indices=True)
    if instances.ndim != 2:
        raise ConversionError(
            f"Case {case}: {path} has {instances.shape[-1]} channels, but an instance map has one number per pixel."
        )
    if not np.isfinite(instances).all() or (instances != np.rint(instances)).any():
        raise ConversionError(f"Case {case}: {path} holds fractions or NaN, but instances have whole numbers.")
    low, high = int(instances.min()), int(instances.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ConversionError(
            f"Case {case}: {path} numbers instances from {low} to {high}; allowed are 0 to {np.iinfo(np.int32).max}."
        )
    if _is_mask(instances):
        raise ConversionError(
            f"Case {case}: {path} gives all its separate cells the number {high}, as a mask does; an instance map "
            "numbers every cell."
        )
    return instances.astype(np.uint16 if high <= np.iinfo(np.uint16).max else np.int32)


def _is_mask(instances: np.ndarray) -> bool:
    """Whether a map has the type or the only value of a mask, and foreground in several pieces."""
    if instances.dtype != bool and label_values.value_counts(instances)[0].tolist() not in ([0, 255], [255]):
        return False
    return _in_pieces(instances)


def _in_pieces(instances: np.ndarray) -> bool:
    return scipy.ndimage.label(instances, np.ones((3, 3)))[1] > 1


def _stored_as_we_store(path: Path) -> bool:
    """Whether an instance map can be copied as it is."""
    if path.suffix.lower() not in pictures.TIFF_ENDINGS or not pictures.is_tiff(path):
        return False
    import tifffile

    with tifffile.TiffFile(path) as file:
        plain = file.series[0].axes == "YX" and file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK
        return plain and file.series[0].dtype in (np.uint16, np.int32)


# --- the source -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What lies below a source: labelled pictures to train on, labelled pictures to test on, and the rest."""

    training: tuple[Case, ...]
    tuning: tuple[Case, ...]
    skipped: tuple[Skipped, ...]
    grouped: bool
    notes: tuple[str, ...] = ()


def find_cases(source: Path) -> Found:
    """The labelled pictures below ``source``: folders ``images`` and ``labels`` beside each other.

    A pair in or below a folder ``Tuning`` is the tuning set, whose cases are called ``tuning_<picture>``; one below
    ``Testing`` or ``Hidden`` is left alone. Groups and modalities come from ``cases.csv`` beside the two folders, where
    there is one; otherwise every picture is a group of its own.

    Raises:
        ConversionError: If there are none, several training sets, or a picture or label without its partner.
    """
    source = sources.require_source(source)
    training, tuning, skipped = [], [], []
    pairs = [folder for folder in sources.walk_folders(source) if _is_pair(folder)]
    for folder in pairs:
        part = _part_of(folder, source)
        if part == "tuning":
            tuning.append(folder)
        elif part == "training":
            training.append(folder)
        else:
            skipped.append(Skipped(folder, "a test set, which this command leaves alone"))
    if not training:
        held_out = [*((folder, "tuning") for folder in tuning), *((skip.path, "test") for skip in skipped)]
        raise ConversionError(
            f"No folder below {source} holds the folders images and labels of a training set"
            + "".join(f"; by its name {folder} is the {what} set" for folder, what in held_out[:SHOWN])
            + "."
        )
    for what, folders in (("training", training), ("tuning", tuning)):
        if len(folders) > 1:
            raise ConversionError(f"Both {folders[0]} and {folders[1]} look like the {what} set; give one as source.")
    cases, more = _cases_of(training[0])
    held, rest = _cases_of(tuning[0], TUNING_PREFIX) if tuning else ((), ())
    used = {folder / name for folder in pairs for name in ("images", "labels")}
    for folder in sources.walk_folders(source):
        if folder not in used:
            count = sum(pictures.picture_stem(path) is not None for path in folder.iterdir())
            if count:
                skipped.append(Skipped(folder, f"{count} picture(s) in no folder images beside a folder labels"))
    grouped = (training[0] / CASES_TABLE).is_file()
    notes = []
    if training[0].name == CHALLENGE_FOLDER and not grouped:
        for what, count, expected in (
            ("training", len(cases), TRAINING_PICTURES),
            ("tuning", len(held), TUNING_PICTURES),
        ):
            if count and count != expected:
                notes.append(f"this copy has {count} of {expected} {what} pictures")
    return Found(tuple(cases), tuple(held), (*skipped, *more, *rest), grouped, tuple(notes))


def _part_of(folder: Path, source: Path) -> str:
    """What a set is by the names of its folder and those above it, up to the source: training where none tells."""
    for name in reversed((source.name, *folder.relative_to(source).parts)):
        match = PART_FOLDER.fullmatch(name)
        if match:
            return match[1].lower()
    return "training"


def _is_pair(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels").is_dir()


def _cases_of(folder: Path, prefix: str = "") -> tuple[list[Case], list[Skipped]]:
    images, labels = (sources.files_by_stem(folder / name, pictures.picture_stem) for name in ("images", "labels"))
    table = read_table(folder / CASES_TABLE) if (folder / CASES_TABLE).exists() else None
    wanted = {f"{name}_label": name for name in images}
    for name in images:
        if f"{name}_label" not in labels:
            raise ConversionError(f"Case {name}: {images[name]} has no label {name}_label.tiff in {folder / 'labels'}.")
    for stem in labels:
        if stem not in wanted:
            raise ConversionError(f"Label {labels[stem]} has no picture in {folder / 'images'}.")
    if not images:
        raise ConversionError(f"There are no pictures in {folder / 'images'}.")
    if table is not None and set(table) != set(images):
        stray = sorted(set(table) ^ set(images))[0]
        where = "is in the table but not in images" if stray in table else "is in images but not in the table"
        raise ConversionError(f"{folder / CASES_TABLE} does not fit: picture {stray} {where}.")
    cases = []
    for name, path in images.items():
        row = table[name] if table else {}
        group, stratum = row.get("group") or None, row.get("modality") or ""
        case = f"{prefix}{sources.require_case_name(name, path)}"
        about = {"submit": f"{name}_label.tiff"} if prefix else {}
        cases.append(Case(case, (path,), labels[f"{name}_label"], group=group, stratum=stratum, about=about))
    used = {*images.values(), *labels.values()}
    skipped = [
        Skipped(path, "neither a picture nor a label")
        for name in ("images", "labels")
        for path in sorted((folder / name).iterdir())
        if path not in used and not path.name.startswith(".")
    ]
    return cases, skipped


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a ``cases.csv`` by stem of their column ``image``; its column ``group`` keeps related pictures together.

    Raises:
        ConversionError: If it cannot be read, lacks a column, or names a picture twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConversionError(f"Table {path} cannot be read ({error}); save it as UTF-8 text with commas.") from None
    missing = {"image", "group"} - set(rows[0] if rows else ())
    if missing:
        raise ConversionError(f"Table {path} has no column {sorted(missing)[0]!r}; it needs image and group.")
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        if not row["image"] or not row["group"]:
            raise ConversionError(f"Table {path} has a row without image or group: {row['image'] or row['group']!r}.")
        picture = Path(row["image"])
        stem = pictures.picture_stem(picture) or picture.name
        if stem in table:
            raise ConversionError(f"Table {path} names picture {row['image']} twice; remove one row.")
        table[stem] = row
    return table


# --- conversion -----------------------------------------------------------------------------------------------------


def convert(
    source: Path,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None,
    dataset_id: int = 504,
    overwrite: bool = False,
    *,
    protocol: str = "crossval",
    test_groups: Collection[str] = (),
    test_share: float = 0.0,
    **options: "Unpack[Work]",
) -> Path:
    """Write Dataset504_NeurIPSCellSeg from the folders ``images`` and ``labels`` below ``source``; return its folder.

    Pictures become 8-bit RGB PNG with each channel rescaled; instance maps become background, interior and boundary,
    and are kept in ``instancesTr`` and ``instancesTs``. Source files are never changed.

    Args:
        nnunet_preprocessed: Gets five folds, whole groups of ``cases.csv`` on one side, modalities spread evenly.
        protocol: ``crossval`` trains on all of the training set; ``paper`` and ``official`` test on the tuning set,
            which must lie below ``source`` with its labels.
        test_groups: Groups (without ``cases.csv``: pictures) to hold out for testing; with ``crossval`` only.
        test_share: Share of the training set to hold out, by group and modality; with ``crossval`` only.
        options: ``jobs``, worker processes; ``dry_run``, check and report only.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    found = find_cases(source)
    cases, tests, skipped = list(found.training), [], list(found.skipped)
    notes = ["groups from cases.csv" if found.grouped else "no groups are published: every picture is its own group"]
    notes += found.notes
    if (test_groups or test_share) and protocol != "crossval":
        raise ConversionError(f"Protocol {protocol} has its own test set; leave out --test-groups and --test-share.")
    if test_groups and test_share:
        raise ConversionError("Both --test-groups and --test-share are given; choose one.")
    if protocol != "crossval":
        if not found.tuning:
            raise ConversionError(
                f"Protocol {protocol} needs the labelled tuning set, and there is none below {source}."
            )
        tests = list(found.tuning)
    elif found.tuning:
        skipped.append(Skipped(found.tuning[0].images[0].parents[1], "the tuning set; --protocol paper tests on it"))
    if test_groups:
        strangers = sorted(set(test_groups) - {case.group or case.name for case in cases})
        if strangers:
            raise ConversionError(f"Test group {strangers[0]} does not exist; groups are those of {CASES_TABLE}.")
        tests = [case for case in cases if (case.group or case.name) in test_groups]
        cases = [case for case in cases if (case.group or case.name) not in test_groups]
        if not cases:
            raise ConversionError("--test-groups names every group, which leaves none to train with; name fewer.")
    elif test_share:
        cases, tests = splitting.hold_out(cases, test_share)
        notes.append(f"{test_share:g} of the training set held out for testing, by group and modality")
    return conversion.write_dataset(
        cases,
        DESCRIPTION,
        Cells(),
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


def convert_images(source: Path, out: Path, **options: "Unpack[Options]") -> Path:
    """Write every picture below ``source`` into ``out`` as ``nnUNetv2_predict -i`` expects it.

    Channels and intensities are treated as in :func:`convert`; folders ``labels`` and files ``*_label.*`` are passed
    over.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_test_images`.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    source = sources.require_source(source)

    def stem_of(path: Path) -> str | None:
        stem = pictures.picture_stem(path)
        is_label = path.parent.name == "labels" and path.parent != source
        return None if stem is None or is_label or stem.endswith("_label") else stem

    cases = sources.find_scans(source, stem_of, "pictures", pictures.PICTURE_ENDINGS)
    return conversion.write_test_images(cases, Cells(), out, source=source, **options)


def find_instances(classes: np.ndarray, grow_pixels: int = DEFAULT_GROW_PIXELS) -> np.ndarray:
    """Instances from the three classes, as ``logvmamba instances`` recovers them by default.

    Args:
        classes: (height, width), 0 background, 1 interior, 2 boundary.
        grow_pixels: 2 makes up for the boundary; 0 leaves the shrunken pieces that published tables score.

    Returns:
        Same shape, uint16, or int32 where 16 bits do not suffice; numbered from 1.
    """
    from nnunet_logvmamba.evaluation.instances import recover_instances

    instances = recover_instances(classes, grow=grow_pixels)
    return instances.astype(np.uint16 if instances.max(initial=0) <= np.iinfo(np.uint16).max else np.int32)


@dataclass(frozen=True)
class Instances:
    """Predictions as instance maps; what was done stands in each file's description."""

    grow_pixels: int

    def check(self, case: Case) -> Facts:
        """Read a prediction."""
        self._read(case)
        return Facts()

    def write(self, case: Case, target: Path) -> None:
        """Write the instance map as TIFF."""
        import tifffile

        from nnunet_logvmamba.evaluation.instances import MIN_INTERIOR

        instances = find_instances(self._read(case), self.grow_pixels)
        text = f"interior pieces of at least {MIN_INTERIOR} pixels, grown by {self.grow_pixels}"
        with staging.writing(target, case.name):
            tifffile.imwrite(target, instances, compression="zlib", description=text, metadata=None, software=False)

    def _read(self, case: Case) -> np.ndarray:
        classes = pictures.read_picture(case.images[0], case.name, indices=True)
        if classes.ndim != 2:
            raise ConversionError(
                f"Prediction {case.images[0]} has {classes.shape[-1]} channels; predictions have one."
            )
        label_values.check_labels(classes, DESCRIPTION, case.name, case.images[0])
        return classes


def restore(
    predictions: Path,
    out: Path,
    grow_pixels: int = DEFAULT_GROW_PIXELS,
    **options: "Unpack[Options]",
) -> Path:
    """Write predictions as instance maps ``<case>_label.tiff``, see :func:`find_instances`.

    Cases of the challenge's tuning set, ``tuning_cell_00001``, lose their prefix; other names stay.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_restored`.

    Raises:
        ConversionError: Before anything is written; the text names the prediction.
    """
    found = conversion.find_predictions(predictions, pictures.FILE_ENDING)
    names = {}
    for case, path in found.items():
        match = TUNING_CASE.fullmatch(case)
        names[path] = f"{match[1] if match else case}_label.tiff"
    return conversion.write_restored(names, Instances(grow_pixels), out, source=predictions, **options)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a share between 0 and 1, such as 0.2, not '{text}'")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: convert, write pictures to predict, or restore predictions."""
    parser = command_line.make_parser(
        "dataset_conversion.Dataset504_NeurIPSCellSeg",
        __doc__,
        default_id=504,
        protocols=PROTOCOLS,
    )
    parser.add_argument("--test-groups", nargs="+", default=(), metavar="GROUP", help="groups to hold out for testing")
    parser.add_argument(
        "--test-share", type=_share, default=0.0, help="share of the training set to hold out by group, such as 0.2"
    )
    parser.add_argument(
        "--grow",
        type=int,
        choices=range(6),
        default=DEFAULT_GROW_PIXELS,
        help="with --restore: pixels to grow each instance by; 0 compares with published tables, default 2",
    )
    arguments = parser.parse_intermixed_args(argv)
    return command_line.run_converter(
        parser,
        arguments,
        convert=functools.partial(
            convert,
            protocol=arguments.protocol,
            test_groups=arguments.test_groups,
            test_share=arguments.test_share,
        ),
        convert_images=convert_images,
        restore=functools.partial(restore, grow_pixels=arguments.grow),
        only_for={
            "test_groups": (command_line.CONVERT,),
            "test_share": (command_line.CONVERT,),
            "grow": (command_line.RESTORE,),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
