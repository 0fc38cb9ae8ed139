"""What of a trained fold only nnU-Net and torch can read, for the page about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import PICTURE_ENDINGS, ending_of, is_white_at_zero, read_image, read_labels
from nnunet_logvmamba.plugin.checkpoints import logging_of_checkpoints
from nnunet_logvmamba.results.runs import Training

Read = TypeVar("Read")


class FoldReader:
    """Reads a fold as nnU-Net does; see :class:`nnunet_logvmamba.results.page.cases.Reader`."""

    def __init__(self, training: Training):
        self._training = training
        self._plans = PlansManager(training.plans_json)

    @cached_property
    def _reader(self) -> BaseReaderWriter:
        return self._plans.image_reader_writer_class()

    def logging(self) -> dict[str, list] | None:
        """Give what the best checkpoint that can be read has logged."""
        return logging_of_checkpoints(self._training.folder)

    def configuration(self) -> dict:
        """Give the configuration, with what it inherits.

        Raises:
            UserError: If the plans have none of its name.
        """
        name = self._training.configuration
        try:
            return self._plans.get_configuration(name).configuration
        except (KeyError, RuntimeError, ValueError) as error:
            file = self._training.folder.parent / "plans.json"
            raise UserError(f"{file} has no configuration '{name}' ({error})") from error

    def raw_images(self) -> dict[str, list[Path]]:
        """Give the files of each training case in ``nnUNet_raw``; none where that is not set or lacks them."""
        root = nnUNet_raw.get()
        folder = None if root is None else Path(root) / self._training.dataset
        if folder is None or not folder.is_dir():
            return {}
        if "dataset" not in self._training.dataset_json:
            # nnU-Net's own search compares every file with every case, in twelve processes.
            ending = self._training.dataset_json["file_ending"]
            found: dict[str, list[Path]] = {}
            for path in sorted((folder / "imagesTr").glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
                found.setdefault(path.name[: -len("_0000") - len(ending)], []).append(path)
            return found
        listed = get_filenames_of_train_images_and_targets(str(folder), self._training.dataset_json)
        return {case: [Path(file) for file in files["images"]] for case, files in listed.items()}

    def copied_references(self) -> Path | None:
        """Give the folder in ``nnUNet_preprocessed`` where nnU-Net copies the references to, if that is set."""
        root = nnUNet_preprocessed.get()
        return None if root is None else Path(root) / self._training.dataset / "gt_segmentations"

    def mask(self, path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
        """Labels and spacing as nnU-Net reads them; what its reader does not take, as our scores read it."""
        try:
            values, properties = self._reader.read_seg(str(path))
        except Exception as error:  # every reader has exceptions of its own
            read = _or_refuse(read_labels, path, error)
            return read.values, read.spacing
        return _as_plane(values[0], tuple(map(float, properties["spacing"])))

    def image(self, files: Sequence[Path]) -> np.ndarray:
        """Channels first; as nnU-Net reads it, but turned round where 0 is white, so that it looks as in a viewer."""
        try:
            image, _ = self._reader.read_images([str(path) for path in files])
        except Exception as error:  # every reader has exceptions of its own
            images = [_or_refuse(read_image, path, error) for path in files]
            if images[0].ndim == 3 and ending_of(files[0]) in PICTURE_ENDINGS:
                images = [np.moveaxis(one, -1, 0) for one in images]
            else:
                images = [_as_plane(one)[0][None] for one in images]
            if len({one.shape[1:] for one in images}) > 1:
                raise _cannot_be_read(files[0], error) from error
            return np.concatenate(images)
        image = np.stack([_as_plane(channel)[0] for channel in image])
        for part, path in zip(np.array_split(image, len(files)), files):  # all files have as many channels
            if is_white_at_zero(path):
                np.negative(part, out=part)
        return image


def _as_plane(values: np.ndarray, spacing: tuple[float, ...] = ()) -> tuple[np.ndarray, tuple[float, ...]]:
    """Leave out the axis of a single slice, as nnU-Net's form of a 2D image has it."""
    if values.ndim == 2 or 1 not in values.shape:
        return values, spacing
    axis = values.shape.index(1)
    return values.squeeze(axis), spacing[:axis] + spacing[axis + 1 :]


def _or_refuse(read: Callable[[Path], Read], path: Path, error: Exception) -> Read:
    """Read a file that nnU-Net's reader has refused with an error, or say what that was."""
    try:
        return read(path)
    except UserError:
        raise _cannot_be_read(path, error) from error


def _cannot_be_read(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(f"{path} cannot be read ({reason[-1] if reason else type(error).__name__})")
