"""Whether nnU-Net can predict a folder of images with a trained model, found out with nnU-Net's own reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import (
    PICTURE_ENDINGS,
    ending_of,
    read_image,
    read_labels,
    read_volume,
    reason_of,
    same_place,
)
from nnunet_logvmamba.evaluation.dataset_json import Labels, channels_of, labels_of
from nnunet_logvmamba.evaluation.folders import check_values
from nnunet_logvmamba.evaluation.parallel import map_cases
from nnunet_logvmamba.plugin import intensities
from nnunet_logvmamba.plugin.header_traps import traps_of
from nnunet_logvmamba.plugin.observations import Seen, by, grouped
from nnunet_logvmamba.plugin.reading import Reading, check_alike, read_once, size_beyond_three_axes
from nnunet_logvmamba.results.runs import read_dataset_json, read_json

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

CELLS = "python -m dataset_conversion.Dataset504_NeurIPSCellSeg --images-only"


@dataclass(frozen=True)
class Model:
    """What a trained model takes.

    Attributes:
        channels: Names of the channels that lie in files. The second stage of a cascade gets its other channels from
            the first stage.
        ending: How the name of every file ends.
        reader: nnU-Net's class that reads them.
        labels: What it predicts, to tell segmentations from images.
        trained: ``foreground_intensity_properties_per_channel`` of its plans.
        source: Who wants these channels, in words.
        reader_set_by: Where another reader can be named.
    """

    channels: tuple[str, ...]
    ending: str
    reader: type[BaseReaderWriter]
    labels: Labels
    trained: Mapping = field(default_factory=dict)
    source: str = "the model was trained on"
    reader_set_by: str = (
        "let nnU-Net read all images of this model with nibabel: 'image_reader_writer': 'NibabelIO' in its plans.json"
    )

    @property
    def wants(self) -> str:
        """The channels in words."""
        return f"{self.source} {len(self.channels)} channel(s) ({', '.join(self.channels)})"


def read_model(folder: Path) -> Model:
    """Read ``dataset.json`` and ``plans.json`` of a folder ``TRAINER__PLANS__CONFIGURATION``.

    Raises:
        UserError: If the folder is no such folder or the files do not hold what nnU-Net wrote.
    """
    for name in ("dataset.json", "plans.json"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is no trained model, for it has no {name}: name the folder TRAINER__PLANS__CONFIGURATION "
                "that holds it and the folds"
            )
    dataset_json, plans = read_dataset_json(folder), read_json(folder / "plans.json")
    channels = channels_of(dataset_json, "dataset.json")
    if not channels:
        raise UserError(f"{folder / 'dataset.json'} names no channels in 'channel_names': name them there")
    if not isinstance(plans.get("image_reader_writer"), str):
        raise UserError(f"{folder / 'plans.json'} names no 'image_reader_writer': copy it anew")
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # late, because it imports torch

    try:
        reader = PlansManager(plans).image_reader_writer_class
    except RuntimeError as error:
        raise UserError(
            f"{folder / 'plans.json'} names the reader '{plans['image_reader_writer']}', and this nnU-Net has none of "
            "that name: install the version that trained the model"
        ) from error
    trained = plans.get("foreground_intensity_properties_per_channel") or {}
    return Model(channels, dataset_json["file_ending"], reader, labels_of(dataset_json, "dataset.json"), trained)


def check_folder(folder: Path) -> None:
    """Raise UserError if it is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")


def check_images(folder: Path, model: Model, *, processes: int = 1) -> tuple[int, list[Path], list[str]]:
    """Read every image as ``nnUNetv2_predict`` would.

    Returns:
        The number of cases, the images that nnU-Net would pass over because of their ending, and a sentence about each
        kind of image that it predicts although it is odd.

    Raises:
        UserError: If nnU-Net finds no case or cannot predict one, naming the first fault and how many more there are.
        UserError: If a process was killed.
    """
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    check_folder(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    named = [path for path in files if path.name.endswith(model.ending)]
    others = [path for path in files if not path.name.endswith(model.ending) and ending_of(path) is not None]
    if not named:
        raise UserError(f"{_nothing_found(folder, files, model)}, so nnU-Net would find no case")
    lists = create_lists_from_splitted_dataset_folder(str(folder), model.ending, num_processes=processes)
    cases = [tuple(map(Path, case)) for case in lists if case]
    stray = sorted(set(named).difference(*cases))
    faults = []
    if stray and all(_is_segmentation(path, model.labels) for path in stray[:3]):
        raise UserError(f"{stray[0]} holds nothing but labels, so it is no scan: name the folder of the images instead")
    if stray:
        faults.append(
            f"{stray[0]} has no channel number, on which nnU-Net stops: name images <case>_0000{model.ending} and so "
            "on, and keep other files elsewhere"
        )
    looks = map_cases(partial(look, model), cases, processes=processes, text="images")
    raise_first([*faults, *(seen.fault.said for seen in looks if seen.fault)], more=max(0, len(stray) - 1))
    names = [files[0].name[: -len(f"_0000{model.ending}")] for files in cases]
    return len(cases), others, [group.said for group in grouped(pairs(names, looks))]


def raise_first(faults: Sequence[str], *, more: int = 0, of: str = "case(s)") -> None:
    """Raise UserError with the first fault and the number of further ones; none, and nothing happens."""
    more += len(faults) - 1
    if faults:
        raise UserError(faults[0] + (f"; {more} more {of} have faults" if more else ""))


def _is_segmentation(path: Path, labels: Labels) -> bool:
    """Whether a file without a channel number holds some label, and no value that is none."""
    try:
        values = read_labels(path).values
        check_values(values, labels, path)
    except UserError:
        return False
    return bool(values.any())


def _nothing_found(folder: Path, files: Sequence[Path], model: Model) -> str:
    endings = Counter(ending_of(path) or path.suffix for path in files)
    if not endings:
        return f"{folder} holds no files; expected are <case>_0000{model.ending} and so on"
    ending, number = endings.most_common(1)[0]
    return (
        f"{folder} holds no file that ends in {model.ending}, as those that the model was trained on, but {number} "
        f"file(s) that end in {ending or 'nothing'}: convert them"
    )


@dataclass(frozen=True)
class Look:
    """What was seen in the images of one case, and in its label map.

    Attributes:
        fault: What keeps nnU-Net from predicting it, or from a mask that means anything; None if nothing does.
        odd: What it predicts all the same.
        ranges: Smallest and largest value of each channel.
        shape, spacing: Of the image, axes as the reader gives them.
        affine: Where it lies for the reader's library; None where the file does not know.
        stored: Types of the numbers in the files of the image.
        labels: Values of the label map.
    """

    fault: Seen | None = None
    odd: tuple[Seen, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    affine: np.ndarray | None = None
    stored: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


def pairs(names: Iterable[str], looks: Iterable[Look]) -> list[tuple[str, Seen]]:
    """Give all that was seen, faults too, with the names of the cases."""
    return [(name, seen) for name, case in zip(names, looks) for seen in (case.fault, *case.odd) if seen is not None]


def look(model: Model, files: Sequence[Path]) -> Look:
    """Look at one case of a folder of images.

    Args:
        files: All files of the case, in the order of their channel numbers.
    """
    case = files[0].name[: -len(f"_0000{model.ending}")]
    following = [files[0].with_name(f"{case}_{index:04d}{model.ending}") for index in range(len(files) + 1)]
    for expected, path in zip(following, files):
        if expected != path:
            said = f"{expected} is missing although there is {path.name}; {model.wants}: add it or correct the numbers"
            return Look(Seen("missing", said, fatal=True))
    return look_inside(model, files)


def look_inside(model: Model, files: Sequence[Path]) -> Look:
    """Look at one case, whatever its files are called.

    Args:
        files: All files of the case, in the order of their channels.
    """
    for path in files:
        if (size := size_beyond_three_axes(model.reader, path)) is not None:
            return Look(Seen("axes", _too_many_axes(model, files, path, size), fatal=True))
    try:
        readings = [read_once(model.reader, path) for path in files]
        check_alike(readings)
    except Exception as error:  # every library has its own way to say that a file is broken
        return Look(Seen("cannot be read", why_unreadable(model, files, error), fatal=True))
    image = [channel for reading in readings for channel in reading.values]
    if (channels := len(image)) != len(model.channels):
        return Look(Seen("channels", _other_channels(model, files, channels), fatal=True))
    names = [str(path) for path in files]
    ranges = intensities.ranges_of(image)
    if not np.isfinite(ranges).all():
        bad = intensities.not_finite(image, names, model.channels)
        said = f"{bad}, of which nnU-Net makes a mask that means nothing: repair the image or leave it out"
        return Look(Seen("not finite", said, fatal=True))
    odd = [Seen("position", said) for said in _apart(model, files, readings)]
    odd += [Seen("not finite", _hidden(path, reading)) for path, reading in zip(files, readings) if reading.replaced]
    odd += [Seen(*one) for one in intensities.oddities(image, names, model.channels, model.trained, ranges)]
    for path, reading in zip(files, readings):
        odd += traps_of(path, reading, model.reader.__name__, label=False)
    first, stored = readings[0], tuple(dict.fromkeys(reading.stored for reading in readings))
    return Look(None, tuple(odd), ranges, image[0].shape, first.spacing, placed(model, first), stored)


def _apart(model: Model, files: Sequence[Path], readings: Sequence[Reading]) -> Iterator[str]:
    """Say which files of a case lie elsewhere than its first."""
    first = placed(model, readings[0])
    for path, reading in zip(files[1:], readings[1:]):
        here = placed(model, reading)
        if first is not None and here is not None and not same_place(here, first, min(readings[0].spacing)):
            yield (
                f"{path} lies elsewhere than {files[0].name} (origin or direction), where nnU-Net goes by voxels "
                "alone: look at one over the other"
            )


def placed(model: Model, reading: Reading) -> np.ndarray | None:
    """Give the affine by the library that reads for the model."""
    library = "nibabel" if model.reader.__name__.startswith("Nibabel") else "SimpleITK"
    return reading.affines.get(library)


def _hidden(path: Path, reading: Reading) -> str:
    """Say how many voxels of a file are not finite where its reader gives another number in their place."""
    return (
        f"{path} holds {reading.replaced} voxel(s) of {reading.values.size} that are NaN or infinite, for which "
        "SimpleITK reads other numbers, mostly 0: repair the image if they lie where it matters"
    )


def _other_channels(model: Model, files: Sequence[Path], channels: int) -> str:
    case = files[0].name[: -len(f"_0000{model.ending}")]
    subject = f"{files[0]} has" if len(files) == 1 else f"{files[0]} and the other files of its case have together"
    if ending_of(files[0]) in PICTURE_ENDINGS:
        remedy = "give every image these channels"
        if len(model.channels) == 3:
            remedy += f" (for cells, {CELLS} makes them)"
    elif channels < len(model.channels):
        remedy = f"add {case}_{len(files):04d}{model.ending}"
    else:
        remedy = "leave out what is not among them"
    return f"{subject} {channels} channel(s), and {model.wants}: {remedy}"


def _too_many_axes(model: Model, files: Sequence[Path], path: Path, size: tuple[int, ...]) -> str:
    case = files[0].name[: -len(f"_0000{model.ending}")]
    said = f"{path} has {len(size)} axes ({by(size)}), and nnU-Net needs three"
    if max(size[3:]) == 1:
        return f"{said}: save it with those"
    if len(files) == 1 and len(size) == 4 and size[3] == len(model.channels):
        names = [f"{case}_{index:04d}{model.ending}" for index in range(size[3])]
        return f"{said}: split it into {', '.join(names[:2])}{' and so on' if len(names) > 2 else ''}"
    return f"{said}; {model.wants}: save each of them as a file of three axes, {case}_0000{model.ending} and so on"


def why_unreadable(model: Model, files: Sequence[Path], error: Exception) -> str:
    """Read the files one by one to name the one that the reader will not take, or how they differ."""
    shapes, spacings = [], []
    for path in files:
        try:
            reading = read_once(model.reader, path)
        except Exception as alone:
            reader = model.reader.__name__
            return f"{path} cannot be read by nnU-Net's {reader} ({reason_of(alone)}): {_remedy(model, path)}"
        shapes.append(reading.values.shape)
        spacings.append(reading.spacing)
    for what, values in (("shape", shapes), ("spacing", spacings)):
        for path, value in zip(files, values):
            if value != values[0]:
                return (
                    f"{path} has the {what} {value}, and {files[0].name} {values[0]}: all files of a case need the "
                    "same one"
                )
    return f"{files[0]} and the other files of its case cannot be read together ({reason_of(error)})"


def _remedy(model: Model, path: Path) -> str:
    """Say what helps where a file is not broken, but its axes are not those that the reader takes."""
    picture, wants_pages = ending_of(path) in PICTURE_ENDINGS, model.reader.__name__ == "Tiff3DIO"
    try:
        volume = None if picture else read_volume(path)
        shape = read_image(path).shape
    except Exception:  # every library has its own way to say that a file is broken
        return "replace it"
    if picture and not wants_pages and (len(shape) == 2 or shape[-1] in (3, 4)):
        return f"save it with the shape {shape}"
    if len(shape) != 3 and (not picture or wants_pages):
        return "save it with three axes"
    if volume is not None and "SimpleITK" not in volume.affines:
        return f"save it with axes at right angles, or {model.reader_set_by}"
    return "replace it"
