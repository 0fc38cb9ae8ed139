"""Looks through preprocessed cases once: every value is finite, every label is one of the data set's."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping, nnUNetBaseDataset

from nnunet_logvmamba import files
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.dataset_json import channels_of, labels_of
from nnunet_logvmamba.evaluation.parallel import map_cases
from nnunet_logvmamba.plugin.observations import Examination, Seen
from nnunet_logvmamba.plugin.plans import check_to_train
from nnunet_logvmamba.results.runs import read_json

OUTSIDE = -1
"""What nnU-Net writes into a label map where the image is empty."""

MEND = "mend it in the raw data set or leave the case out, and preprocess again"

_OF_PLANNED = ("dataset_fingerprint.json", "gt_segmentations")
_ENDINGS = (".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)

Stamps = list[list[int]]
"""Size in bytes and time of change in nanoseconds of each file of a case."""


def memory_file(folder: Path) -> Path:
    """Where it is kept which cases of a preprocessed folder were sound.

    Beside the folder, since nnU-Net tells the format of the data from the endings of all files in it.
    """
    return folder.with_name(f"{folder.name}.checked.json")


def known_cases(folder: Path, labels: Sequence[int]) -> dict[str, Stamps]:
    """Give the cases that were found sound with these labels; a file that says nothing useful counts for none."""
    try:
        content = json.loads(memory_file(folder).read_text(encoding="utf-8"))
        return dict(content["cases"]) if content["labels"] == list(labels) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def remember(folder: Path, labels: Sequence[int], cases: Mapping[str, Stamps]) -> None:
    """Add cases to those that are known to be sound.

    Raises:
        OSError: If the file cannot be written; what was there stays.
    """
    content = {"labels": list(labels), "cases": {**known_cases(folder, labels), **cases}}
    files.replace_text(memory_file(folder), json.dumps(content) + "\n")


def unchecked(folder: Path, cases: Iterable[str], labels: Sequence[int]) -> dict[str, Stamps]:
    """Give, in order, the cases that were not checked yet or whose files changed since, with what they are now."""
    known, names = known_cases(folder, labels), set(os.listdir(folder))
    now = {case: _stamps(folder, case, names) for case in dict.fromkeys(cases)}
    return {case: stamps for case, stamps in now.items() if not stamps or known.get(case) != stamps}


def _stamps(folder: Path, case: str, names: set[str]) -> Stamps:
    files = [(folder / f"{case}{ending}").stat() for ending in _ENDINGS if f"{case}{ending}" in names]
    return [[file.st_size, file.st_mtime_ns] for file in files]


def has_cases(folder: Path) -> bool:
    """Whether a folder is there and holds preprocessed cases; an interrupted preprocessing may leave an empty one."""
    return folder.is_dir() and any(file.suffix in (".b2nd", ".npz") for file in folder.iterdir())


def cases_in(folder: Path) -> list[str]:
    """Give the cases of a preprocessed folder."""
    return list(_reader_of(folder).get_identifiers(str(folder)))


def preprocessing(dataset: str, plans: str, configurations: Iterable[str]) -> str:
    """Give nnU-Net's command that preprocesses configurations of the plans of a data set, which is given by name."""
    number = dataset.removeprefix("Dataset").partition("_")[0]
    return f"nnUNetv2_preprocess -d {number} -plans_name {plans} -c {' '.join(configurations)}"


def fault(dataset: nnUNetBaseDataset, case: str, labels: Sequence[int], channels: Mapping[str, str]) -> str | None:
    """Say what is wrong with one preprocessed case, None if nothing is; arguments as for :func:`look`."""
    return next((seen.said for seen in look(dataset, case, labels, channels) if seen.fatal), None)


def look(dataset: nnUNetBaseDataset, case: str, labels: Sequence[int], channels: Mapping[str, str]) -> Iterator[Seen]:
    """Say what is wrong with one preprocessed case, then what is odd about it.

    Args:
        dataset: What reads cases; images are (channel, z, y, x), label maps (1, z, y, x).
        labels: Values that a label map may hold.
        channels: Names of the channels by their number as a string, as in ``dataset.json``.
    """
    try:
        image, label_map, *_ = dataset.load_case(case)
        constant = []
        for channel in range(image.shape[0]):  # one at a time, since cases may be large
            values, which = np.asarray(image[channel]), channel_in_words(channel, channels)
            low, high = values.min(), values.max()
            if not np.isfinite((low, high)).all():
                number = np.count_nonzero(~np.isfinite(values))
                yield Seen("not finite", f"{which} holds {number} value(s) that are not finite", fatal=True)
            elif low == high:
                constant.append(Seen("constant", f"{which} has the value {low:g} everywhere"))
        values = np.asarray(label_map[0])
        strange = ~np.isin(values, labels)
        if strange.any():
            found = ", ".join(f"{value:g}" for value in np.unique(values[strange])[:5].tolist())
            number = np.count_nonzero(strange)
            yield Seen("labels", f"its label map holds {found} in {number} voxel(s)", fatal=True)
        elif not (values > 0).any():
            constant.append(Seen("empty labels", "its label map holds no label, so it is background to the network"))
        yield from constant
    except _UNREADABLE as error:
        said = f"it cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
        yield Seen("cannot be read", said, fatal=True)


def examine(folder: Path, *, processes: int = 1) -> Examination:
    """Read every case of a preprocessed data set, or of one folder of it, once.

    Args:
        folder: ``nnUNet_preprocessed/Dataset123_Name``, or the folder of a configuration in it.

    Raises:
        UserError: If it has no ``dataset.json``, or one that nnU-Net would not train with.
    """
    folders = folders_of(folder)
    source = next((path for path in (folder / "dataset.json", folder.parent / "dataset.json") if path.is_file()), None)
    if source is None:
        raise UserError(f"{folder} has no dataset.json, which nnU-Net's preprocessing leaves there: copy it anew")
    content = read_json(source)
    check_to_train(content, source)
    known, channels = labels_of(content, str(source)), channels_of(content, str(source))
    labels = sorted({OUTSIDE, 0, *([] if known.ignored is None else [known.ignored])}.union(*known.values.values()))
    cases = [(path, case) for path in folders for case in cases_in(path)]
    names = {str(number): name for number, name in enumerate(channels)}
    found = map_cases(partial(_look, labels, names), cases, processes=processes, text="cases")
    seen = [
        (f"{path.name}/{case}", replace(one, said=f"{path.name}/{case}: {one.said}; {MEND}"))
        for (path, case), several in zip(cases, found)
        for one in several
    ]
    seen += [(f"{path.name}/{name}", one) for path in folders for name, one in _strays(path)]
    numbers = {one: sum(path == one for path, _ in cases) for one in folders}
    seen += _not_preprocessed(folder, numbers, content.get("numTraining"))
    counts = ", ".join(f"{number} case(s) in {one.name}" for one, number in numbers.items()) or "no case"
    return Examination(f"preprocessed: {counts}", len(cases), tuple(seen), {"labels": ", ".join(map(str, labels[1:]))})


def _look(labels: Sequence[int], channels: Mapping[str, str], case: tuple[Path, str]) -> list[Seen]:
    folder, name = case
    return list(look(_reader_of(folder)(str(folder), [name]), name, labels, channels))


def _reader_of(folder: Path) -> type[nnUNetBaseDataset]:
    return file_ending_dataset_mapping[_ending_of(folder)]


def _ending_of(folder: Path) -> str:
    """The format of the cases of a folder; nnU-Net's own search stops where there is any other file."""
    return "b2nd" if any(folder.glob("*.b2nd")) else "npz"


def _strays(folder: Path) -> Iterator[tuple[str, Seen]]:
    known = {_ending_of(folder), "npy", "pkl"}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.rpartition(".")[2] not in known:
            said = f"{file} is no preprocessed case, and nnU-Net stops at any other file in this folder: remove it"
            yield file.name, Seen("stray file", said, fatal=True)


def is_preprocessed(folder: Path) -> bool:
    """Whether a folder is that of a planned data set, or holds preprocessed cases in some folder or itself."""
    return bool(folders_of(folder) or _planned(folder))


def _not_preprocessed(folder: Path, numbers: Mapping[Path, int], whole: object) -> Iterator[tuple[str, Seen]]:
    """Say which folders were made for cases and hold none or not all.

    Args:
        folder: As for :func:`examine`.
        numbers: Cases of each folder that holds some.
        whole: Number of all cases, as ``dataset.json`` has it.
    """
    planned = _planned(folder)
    if planned and not any(path.is_dir() for path in (*planned, *numbers)):
        file = next(file for file, _ in planned.values())
        names = (name for of, name in planned.values() if of == file)
        said = f"no preprocessed case is in {folder}: run {preprocessing(file.resolve().parent.name, file.stem, names)}"
        yield file.stem, Seen("no cases", said, fatal=True)
    for path, (file, name) in planned.items():
        number = numbers.get(path, 0 if path.is_dir() else None)
        if number == 0 or number is not None and isinstance(whole, int) and number < whole:
            command = preprocessing(file.resolve().parent.name, file.stem, [name])
            there = f"{number} of {whole} preprocessed cases are" if number else "no preprocessed case is"
            said = f"{there} in {path}, as where preprocessing was interrupted: run {command}"
            yield path.name, Seen("too few cases" if number else "no cases", said, fatal=not number)


def _planned(folder: Path) -> dict[Path, tuple[Path, str]]:
    """Give folders of cases, there or not, with the plans and the first configuration that name them.

    Args:
        folder: A preprocessed data set, or the folder of a configuration in it.
    """
    found: dict[Path, tuple[Path, str]] = {}
    home = folder if (folder / "dataset.json").is_file() else folder.parent
    for file in [] if _is_raw(folder) or not (home / "dataset.json").is_file() else sorted(home.glob("*.json")):
        content = files.read_json(file, "plan the data set anew")
        configurations = content.get("configurations") if isinstance(content, dict) else None
        for name, entry in configurations.items() if isinstance(configurations, dict) else ():
            identifier = entry.get("data_identifier") if isinstance(entry, dict) else None
            if identifier and folder in (home, home / identifier):
                found.setdefault(home / identifier, (file, name))
    return found


def folders_of(folder: Path) -> list[Path]:
    """Give the folder, and those in it, that hold preprocessed cases; none of a raw data set."""
    if _is_raw(folder):
        return []
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return [path for path in folders if has_cases(path)]


def _is_raw(folder: Path) -> bool:
    """Whether a folder has images or lists them; planning copies the list, preprocessing the label maps beside it."""
    file = folder / "dataset.json"
    if (folder / "imagesTr").is_dir():
        return True
    return file.is_file() and "dataset" in read_json(file) and not any((folder / name).exists() for name in _OF_PLANNED)


def channel_in_words(channel: int, channels: Mapping[str, Any]) -> str:
    """Number and, where ``dataset.json`` has one, name of a channel."""
    name = channels.get(str(channel))
    return f"channel {channel}" if name is None else f"channel {channel} ({name})"
