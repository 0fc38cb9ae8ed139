"""EndoVis 2017 robotic instruments (endoscopic video frames, RGB) as an nnU-Net data set of instrument types.

Run from a checkout: ``python -m dataset_conversion.Dataset503_EndoVis2017 SOURCE``.
"""

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.core import command_line, conversion, sources, splitting
from dataset_conversion.core.cases import Case, ConversionError, Description, Facts, Options, Skipped, Work
from dataset_conversion.formats import label_values, pictures

if TYPE_CHECKING:
    from typing_extensions import Unpack

PROTOCOLS = ("official", "paper", "crossval")
GEOMETRIES = ("crop", "full-third")
FOLDS = ("five", "published")
PUBLISHED_FOLDS = ((1, 3), (2, 5), (4, 8), (6, 7))
SEQUENCE_FOLDER = re.compile(r"instrument_dataset_([1-9][0-9]?)")
FRAME = re.compile(r"frame[0-9]{3,4}")
CASE_NAME = re.compile(r"(seq|test)([0-9]{1,2})_(frame[0-9]{3,4})")
TYPE_FOLDER = "TypeSegmentation"
TRAINING_ARCHIVE = re.compile(r"instrument_.*_training", re.IGNORECASE)
# Folders whose pictures are masks, or frames of the other camera.
NO_FRAMES = re.compile(r"right_frames|ground_truth|gt|(Binary|Parts?|Type)Segmentation(Rescaled)?")
TRAINING_SEQUENCES, TEST_SEQUENCES = 8, 10
# Test sequences 1 to 8 go on where the training sequences of the same number end.
FIRST_TEST_FRAME = 225
TRAINING_FRAMES, TEST_FRAMES = 1800, 1200

# Frames have black borders; the picture itself starts at (TOP, LEFT).
FULL_HEIGHT, FULL_WIDTH = 1080, 1920
TOP, LEFT, HEIGHT, WIDTH = 28, 320, 1024, 1280
THIRD = 3

# By substring of the folder below ground_truth; the names around it are irregular.
TYPES = {
    "Bipolar_Forceps": 1,
    "Prograsp_Forceps": 2,
    "Large_Needle_Driver": 3,
    "Vessel_Sealer": 4,
    "Grasping_Retractor": 5,
    "Monopolar_Curved_Scissors": 6,
    "Other": 7,
}
# In a training mask a pixel's value names the part: background, shaft, wrist, clasper, probe.
PART_VALUES = (0, 10, 20, 30, 40)

DESCRIPTION = Description(
    name="EndoVis2017",
    channels=("R", "G", "B"),
    labels={
        "background": 0,
        "Bipolar Forceps": 1,
        "Prograsp Forceps": 2,
        "Large Needle Driver": 3,
        "Vessel Sealer": 4,
        "Grasping Retractor": 5,
        "Monopolar Curved Scissors": 6,
        "Ultrasound Probe": 7,
    },
    label_map={value: value for value in range(8)},
    foreign_values={
        **dict.fromkeys((30, 100, 255), "that is the coding of PartsSegmentation, types are 0 to 7"),
        **dict.fromkeys(range(32, 225, 32), "types times 32, as in a ready-made copy; take the organisers' archive"),
    },
    licence="terms of the organisers; registration required, no redistribution",
    reference="https://endovissub2017-roboticinstrumentsegmentation.grand-challenge.org; "
    "Allan et al. 2019, arXiv:1902.06426",
    release="2017",
    text="Types of robotic instruments in endoscopic video. Frames of one sequence belong on one side of a split.",
)


@dataclass(frozen=True)
class Frames:
    """Video frames and instrument types, both cropped to the picture or both reduced to a third.

    Attributes:
        geometry: ``crop`` cuts the black borders off, 1024 x 1280; ``full-third`` keeps them and reduces the frame to
            360 x 640, by the mean of 3 x 3 pixels in frames and by their middle pixel in masks.
    """

    geometry: str
    file_ending: str = pictures.FILE_ENDING
    reader_writer: str = "NaturalImage2DIO"
    unit: str = "pixels"

    def check(self, case: Case) -> Facts:
        """Read the frame and its masks; count pixels per type and pixels that several instruments claim."""
        read_frame(case.images[0], case.name)
        if case.mask is None:
            return Facts()
        types, overlapping = read_types(case)
        inside = self.fit(types, mask=True)
        values, counts = label_values.value_counts(inside)
        histogram = {int(value): int(count) for value, count in zip(values, counts)}
        outside = int(np.count_nonzero(types) - np.count_nonzero(crop(types)))
        return Facts(histogram, {"overlapping pixels": overlapping, "labelled pixels in the black border": outside})

    def fit(self, picture: np.ndarray, *, mask: bool) -> np.ndarray:
        """A full frame, (1080, 1920) or (1080, 1920, 3), in our geometry; same dtype."""
        if self.geometry == "crop":
            return crop(picture)
        if mask:
            return picture[THIRD // 2 :: THIRD, THIRD // 2 :: THIRD]
        blocks = picture.reshape(FULL_HEIGHT // THIRD, THIRD, FULL_WIDTH // THIRD, THIRD, -1)
        return np.rint(blocks.mean((1, 3))).astype(picture.dtype)

    def write_images(self, case: Case, folder: Path) -> None:
        """Write ``<case>_0000.png``, one file for the three channels."""
        frame = self.fit(read_frame(case.images[0], case.name), mask=False)
        pictures.write_png(frame, folder / f"{case.name}_0000{self.file_ending}", case.name)

    def write_labels(self, case: Case, dataset: Path, part: str) -> None:
        """Write the types."""
        types, _ = read_types(case)
        target = dataset / f"labels{part}" / f"{case.name}{self.file_ending}"
        pictures.write_png(self.fit(types, mask=True), target, case.name)

    def label_folders(self, part: str) -> tuple[str, ...]:
        """``labels<part>`` alone."""
        return (f"labels{part}",)


def crop(picture: np.ndarray) -> np.ndarray:
    """The picture within the black borders of a full frame."""
    return picture[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]


def read_frame(path: Path, case: str) -> np.ndarray:
    """The frame at ``path``, (1080, 1920, 3), uint8; a transparency channel is left out.

    Raises:
        ConversionError: If it cannot be read or is no such picture.
    """
    frame = pictures.read_picture(path, case)
    if frame.shape[:2] != (FULL_HEIGHT, FULL_WIDTH) or frame.ndim != 3 or frame.shape[-1] < 3:
        raise ConversionError(
            f"Case {case}: {path} has shape {frame.shape}, where an RGB frame of {FULL_HEIGHT} x {FULL_WIDTH} pixels "
            "is expected; take the organisers' archive."
        )
    if frame.dtype != np.uint8:
        raise ConversionError(f"Case {case}: {path} holds {frame.dtype} values, where 8 bits per channel are expected.")
    return frame[..., :3]


def read_mask(path: Path, case: str) -> np.ndarray:
    """The mask at ``path``, (1080, 1920), as it is stored; of equal channels one.

    Raises:
        ConversionError: If it cannot be read, has another size, or channels that differ.
    """
    mask = pictures.read_picture(path, case, indices=True)
    if mask.ndim == 3:
        if (mask[..., :3] != mask[..., :1]).any():
            raise ConversionError(
                f"Case {case}: the channels of mask {path} differ; is it a picture for viewing, such as "
                "TypeSegmentationRescaled?"
            )
        mask = mask[..., 0]
    if mask.shape != (FULL_HEIGHT, FULL_WIDTH):
        raise ConversionError(
            f"Case {case}: mask {path} has {mask.shape[0]} x {mask.shape[1]} pixels, but frames have "
            f"{FULL_HEIGHT} x {FULL_WIDTH}."
        )
    return mask


def read_types(case: Case) -> tuple[np.ndarray, int]:
    """Type of the instrument at every pixel, (1080, 1920), uint8, and how many pixels several instruments claim.

    Instruments are painted in the order of their folders' names, later over earlier.

    Raises:
        ConversionError: If a mask cannot be read or holds a value that it must not hold.
    """
    if isinstance(case.mask, Path):
        mask = read_mask(case.mask, case.name)
        label_values.check_labels(mask, DESCRIPTION, case.name, case.mask)
        return mask.astype(np.uint8), 0
    types = np.zeros((FULL_HEIGHT, FULL_WIDTH), np.uint8)
    claims = np.zeros(types.shape, np.uint8)
    for path in case.masks:
        mask = read_mask(path, case.name)
        strangers = sorted(set(label_values.value_counts(mask)[0].tolist()) - set(PART_VALUES))
        if strangers:
            legal = ", ".join(map(str, PART_VALUES))
            raise ConversionError(
                f"Case {case.name}: mask {path} holds value {strangers[0]}, but parts have only {legal}."
            )
        here = mask > 0
        types[here] = type_of(path.parent)
        claims += here
    return types, int(np.count_nonzero(claims > 1))


def type_of(folder: Path) -> int:
    """Type of the instrument whose masks lie in ``folder``.

    Raises:
        ConversionError: If its name contains none of the known types, or more than one.
    """
    found = [value for name, value in TYPES.items() if name in folder.name]
    if len(found) != 1:
        raise ConversionError(
            f"Folder {folder} names {'no' if not found else 'more than one'} known instrument; known are "
            f"{', '.join(TYPES)}."
        )
    return found[0]


# --- the source -----------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What lies below a source: frames of the training sequences, frames of the test sequences, and the rest."""

    training: list[Case] = field(default_factory=list)
    testing: list[Case] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_cases(source: Path) -> Found:
    """The frames below ``source``, wherever folders ``instrument_dataset_N`` lie; sorted by sequence and frame.

    A sequence with ``ground_truth`` is for training; one with ``left_frames`` alone for testing, and its masks may lie
    in another ``instrument_dataset_N`` with ``TypeSegmentation``, directly or in ``gt``.

    Raises:
        ConversionError: If there are no training sequences, one lies there twice, a frame or a mask has no partner, or
            an instrument is unknown.
    """
    source = sources.require_source(source)
    training: dict[int, Path] = {}
    frames: dict[int, Path] = {}
    masks: dict[int, Path] = {}
    found = Found()
    for folder in sources.walk_folders(source):
        match = SEQUENCE_FOLDER.fullmatch(folder.name)
        if match is None:
            parts = ("left_frames", "ground_truth", "gt", TYPE_FOLDER)
            if folder.name != "gt" and any((folder / part).is_dir() for part in parts):
                sources.require_folder_name(folder, ("instrument_dataset",), "instrument_dataset_1")
                reason = "holds frames or masks, but is not named as a sequence (instrument_dataset_1)"
                found.skipped.append(Skipped(folder, reason))
            continue
        number = int(match[1])
        if (folder / "instruments_masks").is_dir():
            raise ConversionError(
                f"Folder {folder} is of a ready-made copy, whose frames are JPEG and whose masks are types times 32; "
                "take the organisers' archive."
            )
        gathered = []
        if (folder / "ground_truth").is_dir():
            gathered.append((training, folder, "training sequence"))
        elif (folder / "left_frames").is_dir():
            if any(TRAINING_ARCHIVE.fullmatch(part) for part in folder.parent.parts):
                raise ConversionError(f"Training sequence {folder} has no folder ground_truth; unpack it again.")
            gathered.append((frames, folder / "left_frames", "test sequence"))
        for candidate in (folder / TYPE_FOLDER, folder / "gt" / TYPE_FOLDER):
            if candidate.is_dir():
                gathered.append((masks, candidate, "masks of test sequence"))
        if not gathered:
            raise ConversionError(f"Folder {folder} holds neither left_frames nor ground_truth nor {TYPE_FOLDER}.")
        for folders, part, what in gathered:
            sources.enter_once(folders, number, part, f"The {what} {number}")
    if not training:
        raise ConversionError(f"No folder instrument_dataset_N with ground_truth below {source}; is it unpacked there?")
    for number in sorted(training):
        _training_sequence(number, training[number], found)
    _testing_sequences(frames, masks, found)
    for what, cases, expected in (
        ("training", found.training, TRAINING_FRAMES),
        ("test", found.testing, TEST_FRAMES),
    ):
        if cases and len(cases) != expected:
            found.notes.append(f"this copy has {len(cases)} {what} frames, the organisers count {expected}")
    return found


def _frames(folder: Path, found: Found) -> dict[str, Path]:
    """PNG files of a folder by frame name, sorted; the rest of the folder is reported."""
    frames = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".png" and FRAME.fullmatch(path.stem) and path.is_file():
            frames[path.stem] = path
        elif not path.name.startswith("."):
            found.skipped.append(Skipped(path, "no frame (frameNNN.png)"))
    return frames


def _training_sequence(number: int, folder: Path, found: Found) -> None:
    if not 1 <= number <= TRAINING_SEQUENCES:
        raise ConversionError(f"Training sequence {folder} is none of 1 to {TRAINING_SEQUENCES}.")
    if not (folder / "left_frames").is_dir():
        raise ConversionError(f"Training sequence {folder} has no folder left_frames; unpack it again.")
    frames = _frames(folder / "left_frames", found)
    if not frames:
        raise ConversionError(f"There are no frames (frameNNN.png) in {folder / 'left_frames'}.")
    instruments = {}
    for path in sorted((folder / "ground_truth").iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            instruments[path] = _frames(path, found)
        elif not path.is_dir():
            found.skipped.append(Skipped(path, "no folder of an instrument"))
    if not instruments:
        raise ConversionError(f"There is no instrument in {folder / 'ground_truth'}; unpack it again.")
    for instrument, masks in instruments.items():
        type_of(instrument)
        alone = sorted(set(frames) ^ set(masks))
        if alone:
            has, lacks = (folder / "left_frames", instrument) if alone[0] in frames else (instrument, "left_frames")
            raise ConversionError(f"Frame {has / f'{alone[0]}.png'} has no partner in {lacks}; unpack it again.")
    if (folder / "right_frames").is_dir():
        found.skipped.append(Skipped(folder / "right_frames", "frames of the right camera, which are not labelled"))
    for name, path in frames.items():
        parts = tuple(instruments[instrument][name] for instrument in instruments)
        found.training.append(Case(f"seq{number}_{name}", (path,), parts, group=f"sequence {number}"))


def _testing_sequences(frames: dict[int, Path], masks: dict[int, Path], found: Found) -> None:
    lonely = sorted(set(masks) - set(frames)) or (sorted(set(frames) - set(masks)) if masks else [])
    if lonely:
        where, missing = (masks, "left_frames") if lonely[0] in masks else (frames, TYPE_FOLDER)
        raise ConversionError(
            f"Test sequence {lonely[0]} in {where[lonely[0]]} has no {missing}; unpack both archives."
        )
    for number in sorted(frames):
        if not 1 <= number <= TEST_SEQUENCES:
            raise ConversionError(f"Test sequence {frames[number]} is none of 1 to {TEST_SEQUENCES}.")
        pictures_here = _frames(frames[number], found)
        labels = _frames(masks[number], found) if masks else {}
        alone = sorted(set(pictures_here) ^ set(labels)) if masks else []
        if alone:
            has, lacks = (frames, masks) if alone[0] in pictures_here else (masks, frames)
            raise ConversionError(
                f"Test frame {has[number] / f'{alone[0]}.png'} has no partner in {lacks[number]}; unpack both archives."
            )
        first = next(iter(pictures_here), None)
        if number <= TRAINING_SEQUENCES and first and int(first.removeprefix("frame")) < FIRST_TEST_FRAME:
            raise ConversionError(
                f"Test sequence {number} starts with {pictures_here[first]}, where the organisers' start with frame "
                f"{FIRST_TEST_FRAME}; if it is the training sequence, put its folder ground_truth beside left_frames."
            )
        for name, path in pictures_here.items():
            case = Case(f"test{number}_{name}", (path,), labels.get(name), group=f"test sequence {number}")
            found.testing.append(case)
    if frames and not masks:
        found.notes.append("the test frames have no masks in this copy: images only")


# --- conversion -----------------------------------------------------------------------------------------------------


def convert(
    source: Path,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None,
    dataset_id: int = 503,
    overwrite: bool = False,
    *,
    protocol: str = "official",
    geometry: str = "crop",
    folds: str = "five",
    **options: "Unpack[Work]",
) -> Path:
    """Write Dataset503_EndoVis2017 from the folders ``instrument_dataset_N`` below ``source`` and return its folder.

    Frames and masks become PNG files of one geometry, masks the types of instruments. Source files are never changed.

    Args:
        nnunet_preprocessed: Gets the folds: whole sequences.
        protocol: ``official`` and ``paper`` train on the eight training sequences and test on the ten test
            sequences; ``crossval`` leaves the latter out.
        geometry: ``crop`` (1024 x 1280) or ``full-third`` (360 x 640, as published tables seem to use).
        folds: ``five``, or ``published``: four folds that validate on sequences 1+3, 2+5, 4+8 and 6+7.
        options: ``jobs``, worker processes; ``dry_run``, check and report only.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    found = find_cases(source)
    cases, tests, notes, skipped = found.training, found.testing, [*found.notes], [*found.skipped]
    notes.append(f"geometry {geometry}" + (", inferred from published tables" if geometry == "full-third" else ""))
    if protocol == "crossval":
        if tests:
            folder = tests[0].images[0].parents[2]
            skipped.append(Skipped(folder, f"{len(tests)} test frame(s), which protocol crossval does not use"))
        tests = []
    elif not tests:
        raise ConversionError(
            f"Protocol {protocol} tests on the test sequences, and there are none below {source}; "
            "add them or choose --protocol crossval."
        )
    else:
        notes.append(
            "test sequences 1 to 8 follow the training sequences of the same number; the organisers ask to leave that "
            "one out of the training when scoring them, and nothing is left out here"
        )
    if protocol == "paper":
        notes.append("the paper's tables come from fold all; predict with --disable_tta, since it does not mirror")
    splits = _published_splits(cases) if folds == "published" else None
    return conversion.write_dataset(
        cases,
        DESCRIPTION,
        Frames(geometry),
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


def _published_splits(cases: Sequence[Case]) -> list[dict[str, list[str]]]:
    by_group = splitting.group_cases(
        [case.name for case in cases], {case.name: case.group or case.name for case in cases}.__getitem__
    )
    for number in range(1, TRAINING_SEQUENCES + 1):
        if f"sequence {number}" not in by_group:
            raise ConversionError(f"The published folds need all sequences, and sequence {number} is missing.")
    folds = [[name for number in fold for name in by_group[f"sequence {number}"]] for fold in PUBLISHED_FOLDS]
    return splitting.splits_from_folds([case.name for case in cases], folds)


def convert_images(
    source: Path,
    out: Path,
    *,
    geometry: str = "crop",
    **options: "Unpack[Options]",
) -> Path:
    """Write every full frame below ``source`` into ``out`` as ``nnUNetv2_predict -i`` expects it.

    Frames in ``instrument_dataset_N/left_frames`` become ``testN_frameNNN``; other pictures keep their names. Masks
    and frames of the right camera are passed over.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_test_images`.

    Raises:
        ConversionError: Before anything is written; the text names case and file.
    """
    source = sources.require_source(source)

    def name_of(path: Path) -> str | None:
        name, folder = pictures.picture_stem(path), path.parent
        if name is None or any(NO_FRAMES.fullmatch(part) for part in (source.name, *folder.relative_to(source).parts)):
            return None
        sequence = SEQUENCE_FOLDER.fullmatch(folder.parent.name) if folder.name == "left_frames" else None
        return f"test{sequence[1]}_{name}" if sequence else name

    cases = sources.find_scans(source, name_of, "frames", pictures.PICTURE_ENDINGS)
    return conversion.write_test_images(cases, Frames(geometry), out, source=source, **options)


@dataclass(frozen=True)
class FullFrames:
    """Predictions of either geometry as masks of the full frame with the types as values."""

    def check(self, case: Case) -> Facts:
        """Read a prediction; its size tells the geometry."""
        self._read(case)
        return Facts()

    def write(self, case: Case, target: Path) -> None:
        """Put the prediction where it was cut out, or enlarge it three times."""
        types = self._read(case)
        if types.shape == (HEIGHT, WIDTH):
            full = np.zeros((FULL_HEIGHT, FULL_WIDTH), np.uint8)
            crop(full)[...] = types
        else:
            full = types.repeat(THIRD, 0).repeat(THIRD, 1)
        pictures.write_png(full, target, case.name)

    def _read(self, case: Case) -> np.ndarray:
        types = pictures.read_picture(case.images[0], case.name, indices=True)
        sizes = ((HEIGHT, WIDTH), (FULL_HEIGHT // THIRD, FULL_WIDTH // THIRD))
        if types.shape not in sizes:
            raise ConversionError(
                f"Prediction {case.images[0]} has shape {types.shape}; predictions have {sizes[0]} or {sizes[1]}."
            )
        label_values.check_labels(types, DESCRIPTION, case.name, case.images[0])
        return types.astype(np.uint8)


def restore(predictions: Path, out: Path, **options: "Unpack[Options]") -> Path:
    """Write predictions as masks of the full frame, ``instrument_dataset_N/TypeSegmentation/frameNNN.png``.

    Pixels outside the crop are background. Frames of one's own keep their names.

    Args:
        options: ``overwrite``, ``jobs`` and ``dry_run``, see :func:`conversion.write_restored`.

    Raises:
        ConversionError: Before anything is written; the text names the prediction.
    """
    names = {}
    for case, path in conversion.find_predictions(predictions, pictures.FILE_ENDING).items():
        match = CASE_NAME.fullmatch(case)
        names[path] = f"instrument_dataset_{match[2]}/{TYPE_FOLDER}/{match[3]}.png" if match else path.name
    return conversion.write_restored(names, FullFrames(), out, source=predictions, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: convert, write frames to predict, or restore predictions."""
    parser = command_line.make_parser(
        "dataset_conversion.Dataset503_EndoVis2017",
        __doc__,
        default_id=503,
        protocols=PROTOCOLS,
    )
    parser.add_argument(
        "--geometry", choices=GEOMETRIES, default="crop", help="1024 x 1280, or 360 x 640; default crop"
    )
    parser.add_argument(
        "--folds", choices=FOLDS, default="five", help="five, or the published four; always whole sequences"
    )
    arguments = parser.parse_intermixed_args(argv)
    return command_line.run_converter(
        parser,
        arguments,
        convert=functools.partial(
            convert, protocol=arguments.protocol, geometry=arguments.geometry, folds=arguments.folds
        ),
        convert_images=functools.partial(convert_images, geometry=arguments.geometry),
        restore=restore,
        only_for={"geometry": (command_line.CONVERT, command_line.IMAGES_ONLY), "folds": (command_line.CONVERT,)},
    )


if __name__ == "__main__":
    sys.exit(main())
