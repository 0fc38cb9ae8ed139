"""Whether a raw data set can be trained on: what its images and labels hold, and what nnU-Net will make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import read_labels, same_place
from nnunet_logvmamba.evaluation.dataset_json import Labels, channels_of, labels_of
from nnunet_logvmamba.evaluation.parallel import map_cases
from nnunet_logvmamba.plugin import intensities
from nnunet_logvmamba.plugin.acceptance import Look, Model, look_inside, pairs, placed, raise_first, why_unreadable
from nnunet_logvmamba.plugin.first_run import read_layout, reader_of
from nnunet_logvmamba.plugin.header_traps import traps_of
from nnunet_logvmamba.plugin.observations import Examination, Seen, by, grouped, names_of
from nnunet_logvmamba.plugin.plans import NNUNETS_FOLDS, check_to_train
from nnunet_logvmamba.plugin.reading import Reading, read_once

FAR = 10.0
"""How many times the median a spacing may be; units that were mixed up are a thousand apart."""

DIFFER = ("spacings", "types")
"""Kinds that many data sets have, and that nnU-Net is made for."""


def check_dataset(folder: Path, *, processes: int = 1) -> tuple[int, list[str]]:
    """Read every image and label of a raw data set.

    Args:
        folder: ``Dataset123_Name``, as nnU-Net wants it.

    Returns:
        The number of cases, and a sentence about each kind of odd thing.

    Raises:
        UserError: Naming the first fault, and how many more cases have one.
    """
    found = examine(folder, processes=processes)
    raise_first(found.faults)
    return found.cases, [group.said for group in grouped(found.seen) if group.kind not in DIFFER]


def examine(folder: Path, *, processes: int = 1) -> Examination:
    """Read every image and label of a raw data set once.

    Raises:
        UserError: If it is no data set that nnU-Net would begin with.
    """
    content, listed = read_layout(folder)
    source = str(folder / "dataset.json")
    check_to_train(content, folder / "dataset.json", raw=True)
    labels, channels = labels_of(content, source), channels_of(content, source)
    first = next(iter(listed.values()))[0][0]
    reader = reader_of(content, first)
    set_by = f"let nnU-Net read all images with nibabel: 'overwrite_image_reader_writer': 'NibabelIO' in {source}"
    model = Model(channels, content["file_ending"], reader, labels, source="the data set has", reader_set_by=set_by)
    names = list(listed)
    cases = [([Path(image) for image in images], Path(label)) for images, label in listed.values()]
    looks = map_cases(partial(_look, model), cases, processes=processes, text="cases")
    seen = (*pairs(names, looks), *_together(model, names, cases, looks, content))
    about = (
        f"{len(cases)} case(s), {len(channels)} channel(s) ({', '.join(channels)}), read by nnU-Net's {reader.__name__}"
    )
    facts = _facts(labels, looks)
    if len(cases) < NNUNETS_FOLDS:
        facts["folds"] = f"nnU-Net makes {NNUNETS_FOLDS} only of as many cases: train the fold all, or write your own"
    return Examination(about, len(cases), seen, facts)


def _look(model: Model, case: tuple[Sequence[Path], Path]) -> Look:
    images, file = case
    seen = look_inside(model, images)
    try:
        reading = read_once(model.reader, file, label=True)
    except Exception as error:  # every library has its own way to say that a file is broken
        said = fault_of_labels(file, model.labels) or why_unreadable(model, [file], error)
        return replace(seen, odd=(*seen.odd, Seen("labels", said, fatal=True)))
    counts = _labels_in(reading.values)
    odd = [*seen.odd, *_against_image(model, reading, file, images[0], seen)]
    if len(reading.values) == 1 and (fault := fault_of_labels(file, model.labels, counts)) is not None:
        odd.append(Seen("labels", fault, fatal=True))
    odd += traps_of(file, reading, model.reader.__name__, label=counts is not None)
    return replace(seen, odd=tuple(odd), labels=tuple(counts or ()))


def _labels_in(values: np.ndarray) -> dict[int, int] | None:
    """Count the voxels of every label; None if the map needs a second look: several channels, or no whole numbers."""
    if len(values) != 1 or values.size == 0:
        return None
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.rint(values)) or np.abs(values).max() >= 2**31:
            return None
        values = values.astype(np.int32)
    values = values.ravel()
    some = values[values != 0]  # which are few
    if some.size and int(some.min()) < 0:
        return None
    found, counts = np.unique(some, return_counts=True)
    rest = {0: values.size - some.size} if some.size < values.size else {}
    return {**rest, **{int(value): int(count) for value, count in zip(found, counts)}}


def fault_of_labels(path: Path, labels: Labels, counts: Mapping[int, int] | None = None) -> str | None:
    """Say which values of a label map ``dataset.json`` does not name, and in how many voxels; None if there is none.

    Args:
        path: The label map.
        labels: What it may hold.
        counts: Voxels by value, where it was read already.
    """
    if counts is None:
        try:
            values, numbers = np.unique(read_labels(path).values, return_counts=True)
        except UserError as error:
            return str(error)
        counts = {int(value): int(number) for value, number in zip(values, numbers)}
    known = {0, *(() if labels.ignored is None else (labels.ignored,))}.union(*labels.values.values())
    strange = [f"{value} in {count} voxel(s)" for value, count in counts.items() if value not in known]
    if not strange:
        return None
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    return (
        f"{path} holds values that are no labels ({', '.join(strange[:5])}{more}); the labels are "
        f"{', '.join(map(str, sorted(known)))}, {labels.source}: correct the map, or name the value there"
    )


def _against_image(model: Model, reading: Reading, file: Path, image: Path, seen: Look) -> Iterator[Seen]:
    """Say in what a label map is not on the grid of its image, as nnU-Net compares them."""
    shape, here, there = reading.values.shape[1:], placed(model, reading), seen.affine
    if len(reading.values) != 1:
        colours = ", for it stores a table of colours in place of labels" if reading.palette else ""
        said = f"{file} holds {len(reading.values)} channels{colours}, and nnU-Net takes the first for the labels"
        yield Seen("labels", f"{said}: save the numbers themselves, in one channel", fatal=True)
    elif not seen.shape:
        return
    elif shape != seen.shape:
        said = f"{file} has the shape {shape}, but its image {image} has {seen.shape}: nnU-Net needs the same"
        yield Seen("grid", said, fatal=True)
    elif not np.allclose(reading.spacing, seen.spacing):
        said = f"{file} has the spacing {by(reading.spacing)}, but its image {image} has {by(seen.spacing)}"
        yield Seen("grid", f"{said}: nnU-Net's check of the data set refuses that, correct the wrong one", fatal=True)
    elif here is not None and there is not None and not same_place(here, there, min(seen.spacing)):
        yield Seen(
            "position",
            f"{file} lies elsewhere than its image {image} (origin or direction), where nnU-Net goes by voxels alone: "
            "look at one over the other, and give it the header of the image",
        )


def _together(
    model: Model,
    names: Sequence[str],
    cases: Sequence[tuple[Sequence[Path], Path]],
    looks: Sequence[Look],
    content: dict,
) -> Iterator[tuple[str, Seen]]:
    """Give what is seen only by looking at all cases."""
    whole = [(name, files[0], look) for name, (files, _), look in zip(names, cases, looks) if look.shape]
    if whole:
        yield from _intensities_apart(names, cases, looks)
        yield from _single_slices(whole)
        yield from _spacings(whole)
        yield from _directions(model, whole)
        yield from _types(whole)
    yield from _never_seen(model.labels, names, looks)
    if (number := content.get("numTraining")) != len(cases):
        said = (
            f"dataset.json says numTraining {number}, and there are {len(cases)} case(s): nnU-Net's check of the data "
            "set refuses that, and without the check it plans the batch size for that number; correct it there"
        )
        yield "dataset.json", Seen("numTraining", said, fatal=not isinstance(number, (int, float)))


def _intensities_apart(
    names: Sequence[str], cases: Sequence[tuple[Sequence[Path], Path]], looks: Sequence[Look]
) -> Iterator[tuple[str, Seen]]:
    """Say which cases have values far outside of what the others have; the median stands for them."""
    known = [(name, files, look.ranges) for name, (files, _), look in zip(names, cases, looks) if look.ranges]
    for channel in range(min(len(ranges) for _, _, ranges in known)):
        lows, highs = ([ranges[channel][end] for _, _, ranges in known] for end in (0, 1))
        usual = {"min": median(lows), "max": median(highs)}
        low, high = intensities.bounds_of({str(channel): usual}, channel) or (-np.inf, np.inf)
        for (name, files, _), lowest, highest in zip(known, lows, highs):
            if not (low <= lowest and highest <= high):
                said = (
                    f"{files[min(channel, len(files) - 1)]} (channel {channel}) has values from {lowest:g} to "
                    f"{highest:g}, the other cases mostly from {usual['min']:g} to {usual['max']:g}; check its unit "
                    "and how it was exported"
                )
                yield name, Seen("intensities", said)


Whole = Sequence[tuple[str, Path, Look]]


def _single_slices(whole: Whole) -> Iterator[tuple[str, Seen]]:
    """One slice beside many; where all are of one slice, as pictures are, nnU-Net plans 2d alone."""
    single = [(name, file, look.shape) for name, file, look in whole if 1 in look.shape]
    if len(single) == len(whole) and len({shape.index(1) for _, _, shape in single}) == 1:
        return
    for name, file, shape in single:
        said = (
            f"{file} is of one slice (shape {shape}), beside {len(whole) - len(single)} case(s) of several: in 3d "
            "nnU-Net pads it to the patch, and it plans 3d only if most cases have several slices; leave it out there, "
            "or train 2d"
        )
        yield name, Seen("one slice", said)


def _spacings(whole: Whole) -> Iterator[tuple[str, Seen]]:
    spacings = np.array([look.spacing for _, _, look in whole])
    usual = np.median(spacings, axis=0)
    for (name, file, look), far in zip(whole, np.maximum(spacings / usual, usual / spacings).max(axis=1)):
        if far > FAR:
            said = f"{file} has voxels of {by(look.spacing)}, the other cases mostly of {by(usual)}: check its unit"
            yield name, Seen("spacing", said)
    same = np.isclose(spacings, usual, rtol=1e-3).all(axis=1)
    smallest, largest = (by(end(spacings, axis=0)) for end in (np.min, np.max))
    for (name, file, look), alike in zip(whole, same):
        if not alike:
            said = (
                f"{file} has voxels of {by(look.spacing)}, {int(same.sum())} case(s) as in the middle, {by(usual)}, "
                f"and all {smallest} to {largest} (axes as nnU-Net reads them); nnU-Net resamples all to its planned "
                "spacing"
            )
            yield name, Seen("spacings", said)


def _directions(model: Model, whole: Whole) -> Iterator[tuple[str, Seen]]:
    import nibabel

    if "Reorient" in model.reader.__name__:
        return
    codes = {}
    for name, _, look in whole:
        if look.affine is not None and look.affine.shape == (3, 4) and np.linalg.det(look.affine[:, :3]) != 0:
            codes[name] = "".join(nibabel.aff2axcodes(np.vstack((look.affine[:, [2, 1, 0, 3]], (0, 0, 0, 1)))))
    if len(set(codes.values())) < 2:
        return
    (most, number), *_ = Counter(codes.values()).most_common()
    for name, file, _ in whole:
        if codes.get(name, most) != most:
            said = (
                f"{file} runs along {codes[name]}, {number} case(s) along {most}; nnU-Net's {model.reader.__name__} "
                "does not turn images, so the network sees patients in several poses: turn them all one way, or set "
                "'overwrite_image_reader_writer': 'NibabelIOWithReorient' in dataset.json"
            )
            yield name, Seen("directions", said)


def _types(whole: Whole) -> Iterator[tuple[str, Seen]]:
    counted = Counter(look.stored for _, _, look in whole)
    if len(counted) < 2:
        return
    (most, number), *_ = counted.most_common()
    for name, file, look in whole:
        if look.stored != most:
            said = (
                f"{file} holds numbers of type {' and '.join(look.stored)}, {number} case(s) {' and '.join(most)}; "
                "nnU-Net makes float32 of all, so this is well unless the values differ too"
            )
            yield name, Seen("types", said)


def _never_seen(labels: Labels, names: Sequence[str], looks: Sequence[Look]) -> Iterator[tuple[str, Seen]]:
    read = [(name, set(look.labels)) for name, look in zip(names, looks) if look.labels]
    foreground = set().union(*labels.values.values())
    empty = [name for name, found in read if not found & foreground]
    if empty and len(empty) == len(looks):
        yield "dataset.json", Seen("empty labels", "no case holds any label, on which nnU-Net's planning stops", True)
        return
    for name in empty:
        said = f"{name} holds no label; nnU-Net trains with it as background, and leaves it out of its mean Dice"
        yield name, Seen("empty labels", f"{said} unless something is predicted there")
    found = set().union(*(values for _, values in read)) if read else foreground
    missing = [label for label, values in labels.values.items() if not found & set(values)]
    if missing and len(read) == len(looks):
        said = f"no case holds {names_of(missing)}, of which nnU-Net will learn nothing: check labels and dataset.json"
        yield "dataset.json", Seen("labels never seen", said)


def _facts(labels: Labels, looks: Sequence[Look]) -> dict[str, str]:
    facts = {}
    shapes = np.array([look.shape for look in looks if len(look.shape) == 3])
    if len(shapes):
        spacings = np.array([look.spacing for look in looks if len(look.shape) == 3])
        facts["shape"] = f"{by(shapes.min(axis=0))} to {by(shapes.max(axis=0))}"
        facts["spacing"] = (
            f"{by(spacings.min(axis=0))} to {by(spacings.max(axis=0))}, median {by(np.median(spacings, axis=0))}"
        )
    number = {
        name: sum(not set(values).isdisjoint(look.labels) for look in looks) for name, values in labels.values.items()
    }
    facts["labels"] = ", ".join(f"{name} in {cases} case(s)" for name, cases in number.items())
    return facts
