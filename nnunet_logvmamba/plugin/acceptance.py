"""Whether nnU-Net can predict a folder of images with a trained model, found out with nnU-Net's own reader."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import (
    NIFTI_ENDINGS,
    PICTURE_ENDINGS,
    check_gzip,
    ending_of,
    read_image,
    read_labels,
    read_volume,
    reason_of,
)
from nnunet_logvmamba.evaluation.dataset_json import Labels, channels_of, labels_of
from nnunet_logvmamba.evaluation.folders import check_values
from nnunet_logvmamba.evaluation.parallel import map_cases
from nnunet_logvmamba.plugin import intensities
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
    """

    channels: tuple[str, ...]
    ending: str
    reader: type[BaseReaderWriter]
    labels: Labels
    trained: Mapping = field(default_factory=dict)
    source: str = "the model was trained on"

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
        The number of cases, the images that nnU-Net would pass over because of their ending, and sentences about images
        that it predicts although they are odd.

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
    raise_first([*faults, *(seen.fault for seen in looks if seen.fault)], more=max(0, len(stray) - 1))
    return len(cases), others, [sentence for seen in looks for sentence in seen.odd]


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
    """What was seen in the images of one case, in sentences without their full stops.

    Attributes:
        fault: What keeps nnU-Net from predicting it, or from a mask that means anything; None if nothing does.
        odd: What it predicts all the same.
        ranges: Smallest and largest value of each channel.
    """

    fault: str | None = None
    odd: tuple[str, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()


def look(model: Model, files: Sequence[Path]) -> Look:
    """Look at one case of a folder of images.

    Args:
        files: All files of the case, in the order of their channel numbers.
    """
    case = files[0].name[: -len(f"_0000{model.ending}")]
    following = [files[0].with_name(f"{case}_{index:04d}{model.ending}") for index in range(len(files) + 1)]
    for expected, path in zip(following, files):
        if expected != path:
            return Look(
                f"{expected} is missing although there is {path.name}; {model.wants}: add it or correct the numbers"
            )
    return look_inside(model, files)


def look_inside(model: Model, files: Sequence[Path]) -> Look:
    """Look at one case, whatever its files are called.

    Args:
        files: All files of the case, in the order of their channels.
    """
    try:
        image, _ = _read(model, files)
    except Exception as error:  # every library has its own way to say that a file is broken
        return Look(_why_unreadable(model, files, error))
    if (channels := len(image)) != len(model.channels):
        return Look(_other_channels(model, files, channels))
    names = [str(path) for path in files]
    bad = intensities.not_finite(image, names, model.channels)
    if bad is not None:
        return Look(f"{bad}, of which nnU-Net makes a mask that means nothing: repair the image or leave it out")
    hidden = filter(None, map(_hidden_by_simpleitk, [model] * len(files), files))
    odd = *hidden, *intensities.oddities(image, names, model.channels, model.trained)
    return Look(None, odd, tuple((float(values.min()), float(values.max())) for values in image))


def _hidden_by_simpleitk(model: Model, path: Path) -> str | None:
    """Say which voxels of a NIfTI file are not finite where SimpleITK reads another number in their place."""
    if not model.reader.__name__.startswith("SimpleITK") or ending_of(path) not in NIFTI_ENDINGS:
        return None
    import nibabel

    image = nibabel.load(path)
    if image.get_data_dtype().kind != "f":
        return None
    values = np.asanyarray(image.dataobj)
    number = values.size - int(np.count_nonzero(np.isfinite(values)))
    if number == 0:
        return None
    return (
        f"{path} holds {number} voxel(s) of {values.size} that are NaN or infinite, for which SimpleITK reads other "
        "numbers, mostly 0: repair the image if they lie where it matters"
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


def _why_unreadable(model: Model, files: Sequence[Path], error: Exception) -> str:
    """Read the files one by one to name the one that the reader will not take, or how they differ."""
    shapes, spacings = [], []
    for path in files:
        try:
            image, spacing = _read(model, [path])
        except Exception as alone:
            reader = model.reader.__name__
            return f"{path} cannot be read by nnU-Net's {reader} ({reason_of(alone)}): {_remedy(model, path)}"
        shapes.append(image.shape)
        spacings.append(spacing)
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
        return (
            "save it with axes at right angles, or let nnU-Net read all images of this model with nibabel: "
            "'image_reader_writer': 'NibabelIO' in its plans.json"
        )
    return "replace it"


def _read(model: Model, files: Sequence[Path]) -> tuple[np.ndarray, tuple[float, ...]]:
    """Give voxels, channels first, and spacing. What the readers print is dropped: their exceptions decide."""
    for path in files:
        check_gzip(path)  # where such a file is cut off, SimpleITK reads zeros and says nothing
    with contextlib.redirect_stdout(io.StringIO()):
        data, properties = model.reader().read_images([str(path) for path in files])
    return data, tuple(map(float, properties["spacing"]))
