"""Whether a raw data set can be trained on: numbers in its images, values in its labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import read_labels
from nnunet_logvmamba.evaluation.dataset_json import Labels, channels_of, labels_of
from nnunet_logvmamba.evaluation.parallel import map_cases
from nnunet_logvmamba.plugin import intensities
from nnunet_logvmamba.plugin.acceptance import Look, Model, look_inside, raise_first
from nnunet_logvmamba.plugin.first_run import read_raw


def check_dataset(folder: Path, *, processes: int = 1) -> tuple[int, list[str]]:
    """Read every image and label of a raw data set.

    Args:
        folder: ``Dataset123_Name``, as nnU-Net wants it.

    Returns:
        The number of cases, and sentences about images that are odd.

    Raises:
        UserError: Naming the first fault, and how many more cases have one.
    """
    content, images = read_raw(folder)
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    source = str(folder / "dataset.json")
    labels, channels = labels_of(content, source), channels_of(content, source)
    reader = determine_reader_writer_from_dataset_json(content, next(iter(images.values()))[0], verbose=False)
    model = Model(channels, content["file_ending"], reader, labels, source="the data set has")
    listed = get_filenames_of_train_images_and_targets(str(folder), content)
    cases = [([Path(file) for file in files["images"]], Path(files["label"])) for files in listed.values()]
    looks = map_cases(partial(_look, model), cases, processes=processes, text="cases")
    raise_first([seen.fault for seen in looks if seen.fault])
    return len(cases), [sentence for seen in looks for sentence in seen.odd] + _apart(cases, looks)


def _look(model: Model, case: tuple[Sequence[Path], Path]) -> Look:
    images, label = case
    seen = look_inside(model, images)
    fault = seen.fault or fault_of_labels(label, model.labels)
    return Look(fault, seen.odd, seen.ranges)


def fault_of_labels(path: Path, labels: Labels) -> str | None:
    """Say which values of a label map ``dataset.json`` does not name, and in how many voxels; None if there is none."""
    try:
        values, counts = np.unique(read_labels(path).values, return_counts=True)
    except UserError as error:
        return str(error)
    known = {0, *(() if labels.ignored is None else (labels.ignored,))}.union(*labels.values.values())
    strange = [f"{value} in {count} voxel(s)" for value, count in zip(values, counts) if int(value) not in known]
    if not strange:
        return None
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    return (
        f"{path} holds values that are no labels ({', '.join(strange[:5])}{more}); the labels are "
        f"{', '.join(map(str, sorted(known)))}, {labels.source}: correct the map, or name the value there"
    )


def _apart(cases: Sequence[tuple[Sequence[Path], Path]], looks: Sequence[Look]) -> list[str]:
    """Say which cases have values far outside of what the others have; the median stands for them."""
    said = []
    for channel in range(min(len(seen.ranges) for seen in looks)):
        lows, highs = ([seen.ranges[channel][end] for seen in looks] for end in (0, 1))
        usual = {"min": median(lows), "max": median(highs)}
        low, high = intensities.bounds_of({str(channel): usual}, channel) or (-np.inf, np.inf)
        for (files, _), lowest, highest in zip(cases, lows, highs):
            if not (low <= lowest and highest <= high):
                said.append(
                    f"{files[min(channel, len(files) - 1)]} (channel {channel}) has values from {lowest:g} to "
                    f"{highest:g}, the other cases mostly from {usual['min']:g} to {usual['max']:g}; check its "
                    "unit and how it was exported"
                )
    return said
